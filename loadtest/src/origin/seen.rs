//! What an HTTP origin saw: counts, and a bounded list of requests.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::atomic::{AtomicU64, Ordering},
};

use http::{HeaderMap, Method, request};
use parking_lot::Mutex;

/// Requests kept in the list, and pairs of path and method counted apart. When full, the oldest request leaves the
/// list, and further pairs are counted in [`Seen::requests`] only.
const BOUND: usize = 10_000;

/// What an HTTP origin saw since it was started. A request is seen when its header has come in, answered or not.
#[derive(Debug, Default)]
pub struct Seen {
    connections: AtomicU64,
    open: AtomicU64,
    requests: AtomicU64,
    messages: AtomicU64,
    lists: Mutex<Lists>,
}

#[derive(Debug, Default)]
struct Lists {
    by_path: BTreeMap<String, Vec<(Method, u64)>>,
    /// Methods in `by_path`, over all paths.
    counted: usize,
    recent: VecDeque<SeenRequest>,
}

impl Lists {
    fn count(&mut self, path: &str, method: &Method) {
        let known = self.by_path.get_mut(path).and_then(|methods| methods.iter_mut().find(|(m, _)| m == method));
        if let Some((_, count)) = known {
            *count += 1;
        } else if self.counted < BOUND {
            self.counted += 1;
            self.by_path.entry(path.to_owned()).or_default().push((method.clone(), 1));
        }
    }
}

/// One request an HTTP origin saw.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SeenRequest {
    /// The method.
    pub method: Method,
    /// The path with its query, as it came.
    pub path: String,
    /// The `x-shadow` header.
    pub shadow: Option<String>,
    /// The `x-session-id` header.
    pub session: Option<String>,
}

impl Seen {
    /// Connections accepted.
    pub fn connections(&self) -> u64 {
        self.connections.load(Ordering::Relaxed)
    }

    /// Connections open now, upgraded ones not counted.
    pub fn open_connections(&self) -> u64 {
        self.open.load(Ordering::Relaxed)
    }

    /// Requests received.
    pub fn requests(&self) -> u64 {
        self.requests.load(Ordering::Acquire)
    }

    /// Messages received on WebSockets.
    pub fn messages(&self) -> u64 {
        self.messages.load(Ordering::Relaxed)
    }

    /// Requests received with this method and path (without query).
    pub fn count(&self, method: &Method, path: &str) -> u64 {
        let lists = self.lists.lock();
        let methods = lists.by_path.get(path).map_or(&[][..], Vec::as_slice);
        methods.iter().find(|(m, _)| m == method).map_or(0, |(_, count)| *count)
    }

    /// Requests by path (without query) and method, in the order of the paths: `(path, method, count)`.
    pub fn by_path(&self) -> Vec<(String, Method, u64)> {
        let lists = self.lists.lock();
        let counts = lists.by_path.iter();
        counts.flat_map(|(path, methods)| methods.iter().map(|(m, n)| (path.clone(), m.clone(), *n))).collect()
    }

    /// The last 10 000 requests, oldest first.
    pub fn recent(&self) -> Vec<SeenRequest> {
        self.lists.lock().recent.iter().cloned().collect()
    }

    pub(super) fn connection(&self) -> OpenConnection<'_> {
        self.connections.fetch_add(1, Ordering::Relaxed);
        self.open.fetch_add(1, Ordering::Relaxed);
        OpenConnection(self)
    }

    pub(super) fn message(&self) {
        self.messages.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn request(&self, head: &request::Parts) {
        let path = head.uri.path();
        let request = SeenRequest {
            method: head.method.clone(),
            path: head.uri.path_and_query().map_or(path, |p| p.as_str()).to_owned(),
            shadow: text(&head.headers, "x-shadow"),
            session: text(&head.headers, "x-session-id"),
        };

        let mut lists = self.lists.lock();
        lists.count(path, &head.method);
        if lists.recent.len() == BOUND {
            lists.recent.pop_front();
        }
        lists.recent.push_back(request);
        drop(lists);
        // Last, so that whoever waits for a count finds the request in the list.
        self.requests.fetch_add(1, Ordering::Release);
    }
}

/// Counts a connection as open while it lives.
pub(super) struct OpenConnection<'a>(&'a Seen);

impl Drop for OpenConnection<'_> {
    fn drop(&mut self) {
        self.0.open.fetch_sub(1, Ordering::Relaxed);
    }
}

fn text(headers: &HeaderMap, name: &str) -> Option<String> {
    headers.get(name).map(|value| String::from_utf8_lossy(value.as_bytes()).into_owned())
}
