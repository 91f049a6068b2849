//! What an origin writes to a ledger: an entry for everything that carries an id, when it comes in.

use std::{borrow::Cow, sync::Arc, time::Duration};

use http::{HeaderName, header::COOKIE, request};
use parking_lot::Mutex;
use tokio::time;

use super::serving::Tasks;
use crate::{
    ledger::{Id, Ledger, Page, unix_micros},
    load::KeyPlace,
};

/// The header that carries the id of a request, both ways.
pub(super) const ID: HeaderName = HeaderName::from_static("x-loadtest-id");

/// An entry is on its way to the file after this time at the latest.
const FLUSH_EVERY: Duration = Duration::from_millis(100);

/// The key of a request without one.
const NO_KEY: &str = "-";

/// The account of one origin; kept while a ledger is there to take it.
#[derive(Debug)]
pub(super) struct Account {
    key: KeyPlace,
    page: Mutex<Option<Page>>,
}

impl Account {
    /// `key`: where HTTP requests have their key.
    pub(super) fn new(key: KeyPlace) -> Arc<Self> {
        Arc::new(Self { key, page: Mutex::default() })
    }

    /// Writes to `ledger` from now on, until [`close`](Self::close).
    pub(super) fn open(self: &Arc<Self>, ledger: &Ledger, tasks: &Tasks) {
        *self.page.lock() = Some(ledger.page());
        let account = Arc::clone(self);
        tasks.spawn(async move {
            loop {
                time::sleep(FLUSH_EVERY).await;
                match &mut *account.page.lock() {
                    Some(page) => page.flush(),
                    None => break,
                }
            }
        });
    }

    /// Hands over what was written. What comes in after this is in no account.
    pub(super) fn close(&self) {
        self.page.lock().take();
    }

    /// A request whose head came in.
    pub(super) fn request(&self, head: &request::Parts) {
        if let Some(id) = head.headers.get(ID).and_then(|id| Id::parse(id.as_bytes())) {
            let key = key(&self.key, head).filter(|key| !key.is_empty());
            let key = key.map_or(Cow::Borrowed(NO_KEY), String::from_utf8_lossy);
            self.entry(id, &key, head.headers.contains_key("x-shadow"));
        }
    }

    /// A message or line that came in: `<id> <key> ` and anything.
    pub(super) fn text(&self, text: &[u8]) {
        let mut words = text.splitn(3, |byte| matches!(byte, b' ' | b'\r' | b'\n'));
        if let Some(id) = words.next().and_then(Id::parse) {
            let key = words.next().filter(|key| !key.is_empty());
            self.entry(id, &key.map_or(Cow::Borrowed(NO_KEY), String::from_utf8_lossy), false);
        }
    }

    fn entry(&self, id: Id, key: &str, shadow: bool) {
        if let Some(page) = &mut *self.page.lock() {
            page.origin(id, key, shadow, unix_micros());
        }
    }
}

fn key<'a>(place: &KeyPlace, head: &'a request::Parts) -> Option<&'a [u8]> {
    /// What stands behind `name=`.
    fn value<'a>(pair: &'a [u8], name: &str) -> Option<&'a [u8]> {
        pair.trim_ascii().strip_prefix(name.as_bytes())?.strip_prefix(b"=")
    }
    match place {
        KeyPlace::Header(name) => head.headers.get(name).map(|key| key.as_bytes()),
        KeyPlace::Cookie(name) => {
            let cookies =
                head.headers.get_all(COOKIE).into_iter().flat_map(|line| line.as_bytes().split(|b| *b == b';'));
            cookies.into_iter().find_map(|pair| value(pair, name))
        }
        KeyPlace::Query(name) => head.uri.query()?.split('&').find_map(|pair| value(pair.as_bytes(), name)),
        KeyPlace::ClientIp => None,
    }
}

#[cfg(test)]
mod tests {
    use http::Request;

    use super::*;

    #[test]
    fn the_key_is_found_where_it_is() {
        let request = Request::get("/a?run=1&run_id=q7&x=run_id=8")
            .header("x-session-id", "h7")
            .header("cookie", "other=1; xsession=2")
            .header("cookie", "session=c7; session=c8")
            .body(())
            .unwrap();
        let (head, ()) = request.into_parts();
        for (place, expected) in [
            ("header:x-session-id", Some("h7")),
            ("header:x-nobody", None),
            ("cookie:session", Some("c7")),
            ("cookie:nobody", None),
            ("query:run_id", Some("q7")),
            ("query:id", None),
            ("client-ip", None),
        ] {
            assert_eq!(key(&place.parse().unwrap(), &head), expected.map(str::as_bytes), "{place}");
        }
    }
}
