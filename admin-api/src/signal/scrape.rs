//! Asks for the signals that are not pushed.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use config::{Scrape, Url};
use http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use http_body_util::BodyExt;
use tokio::{
    task::{JoinSet, yield_now},
    time::{Instant, MissedTickBehavior, interval, timeout_at},
};
use tokio_util::sync::CancellationToken;

use super::{
    Key, Moment, Scraped,
    exposition::{Page, Wanted},
};
use crate::{Control, outbound::Outbound};

/// Scrapes what the configuration says, when it is due.
pub struct Scraper {
    control: Arc<Control>,
    outbound: Arc<Outbound>,
    /// When each is due next, by route and name, and what was asked last.
    due: HashMap<Key, (Scrape, Instant)>,
    under_way: HashSet<Key>,
    asking: JoinSet<Vec<Answer>>,
}

type Answer = (Key, Scrape, Scraped);

/// Pages that are asked for at once. What is due beyond that waits for the next second.
const PAGES: usize = 32;
const PATIENCE: Duration = Duration::from_secs(10);
const TICK: Duration = Duration::from_secs(1);
/// Of a page, in bytes: others get their turn before the next one.
const PIECE: usize = 64 * 1024;

impl Scraper {
    pub fn new(control: Arc<Control>) -> Self {
        Self {
            control,
            outbound: Arc::default(),
            due: HashMap::new(),
            under_way: HashSet::new(),
            asking: JoinSet::new(),
        }
    }

    /// Scrapes until `shutdown`.
    pub async fn run(mut self, shutdown: CancellationToken) {
        let mut ticks = interval(TICK);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
        loop {
            tokio::select! {
                () = shutdown.cancelled() => return,
                _ = ticks.tick() => self.ask(Instant::now()),
                Some(answered) = self.asking.join_next() => match answered {
                    Ok(answers) => self.take(answers),
                    // What it asked for would be under way for ever.
                    Err(error) => {
                        tracing::error!(%error, "Scraping panicked");
                        self.under_way.clear();
                    }
                },
            }
        }
    }

    /// Asks for every page that something is due on, once for all that is read from it.
    fn ask(&mut self, now: Instant) {
        // Who takes over scrapes as well, and what it hears counts.
        if self.control.is_frozen() {
            return;
        }
        let scrapes = self.control.signals().scrapes();
        let configured: HashSet<&Key> = scrapes.iter().map(|(key, ..)| key).collect();
        self.due.retain(|key, _| configured.contains(key));
        let mut pages: BTreeMap<&Url, Vec<(Key, &Scrape, Wanted)>> = BTreeMap::new();
        for (key, scrape, limit) in &scrapes {
            let waiting = self.due.get(key).is_some_and(|(asked, due)| asked == scrape && now < *due);
            if waiting || self.under_way.contains(key) {
                continue;
            }
            let (metric, labels) = (scrape.metric.clone(), scrape.labels.clone());
            let wanted = Wanted { metric, labels, combine: scrape.combine, limit: *limit };
            pages.entry(&scrape.url).or_default().push((key.clone(), scrape, wanted));
        }
        let mut pages: Vec<_> = pages.into_iter().collect();
        // Who has waited longest comes first, and who was never asked before all others.
        pages.sort_by_key(|(_, asked)| asked.iter().map(|(key, ..)| self.due.get(key).map(|(_, due)| *due)).min());
        pages.truncate(PAGES.saturating_sub(self.asking.len()));
        for (url, asked) in pages {
            let shortest = asked.iter().map(|(_, scrape, _)| scrape.every).min().unwrap_or(PATIENCE);
            let (mut keys, mut wanted) = (Vec::new(), Vec::new());
            for (key, scrape, want) in asked {
                self.due.insert(key.clone(), (scrape.clone(), now + scrape.every));
                self.under_way.insert(key.clone());
                keys.push((key, scrape.clone()));
                wanted.push(want);
            }
            let (outbound, url, patience) = (Arc::clone(&self.outbound), url.clone(), shortest.min(PATIENCE));
            self.asking.spawn(async move {
                let page = format!("{url}{}", url.path());
                let found = match read(&outbound, &url, wanted, patience).await {
                    Ok(found) => found,
                    Err(problem) => vec![Err(problem); keys.len()],
                };
                let outcomes = found.into_iter().map(|found| found.map_err(|problem| format!("{page} {problem}")));
                keys.into_iter().zip(outcomes).map(|((key, scrape), outcome)| (key, scrape, outcome)).collect()
            });
        }
    }

    fn take(&mut self, answers: Vec<Answer>) {
        let now = Moment::now();
        for (key, scrape, outcome) in answers {
            self.under_way.remove(&key);
            self.control.signals().scraped(&key, &scrape, outcome, now);
        }
    }
}

/// What a page says of each, in their order. Errors: why it says nothing of any.
async fn read(outbound: &Outbound, url: &Url, wanted: Vec<Wanted>, patience: Duration) -> Result<Vec<Scraped>, String> {
    let until = Instant::now() + patience;
    let mut headers = HeaderMap::new();
    headers.insert(header::ACCEPT, HeaderValue::from_static("text/plain;version=0.0.4"));
    let response = outbound.send(Method::GET, url, headers, Bytes::new(), patience).await?;
    match response.status() {
        StatusCode::OK => {}
        status if status.is_redirection() => return Err(format!("answers {status}; write the url that it leads to")),
        status => return Err(format!("answers {status}")),
    }
    let mut page = Page::new(wanted);
    let mut body = response.into_body();
    loop {
        let frame = timeout_at(until, body.frame()).await;
        match frame.map_err(|_| format!("does not end within {patience:?}"))? {
            Some(Ok(frame)) => {
                for piece in frame.data_ref().map(|bytes| bytes.chunks(PIECE)).into_iter().flatten() {
                    page.read(piece)?;
                    yield_now().await;
                }
            }
            Some(Err(_)) => return Err("breaks off".to_owned()),
            None => return page.finish(),
        }
    }
}
