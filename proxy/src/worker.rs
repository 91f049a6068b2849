//! Which worker thread this is, and state that each worker has for itself, so that no two share a cache line.

use std::cell::Cell;

thread_local! {
    static ID: Cell<usize> = const { Cell::new(0) };
}

/// Tells this thread which worker it is, counted from 1. Threads that were never told are 0: the control plane's and
/// the mirror's.
pub(crate) fn enter(id: usize) {
    ID.set(id);
}

pub(crate) fn id() -> usize {
    ID.get()
}

/// One `T` a worker, and one for all other threads.
#[derive(Debug)]
pub(crate) struct PerWorker<T>(Box<[Padded<T>]>);

/// 128 bytes: adjacent cache lines are fetched in pairs on x86-64.
#[derive(Debug, Default)]
#[repr(align(128))]
struct Padded<T>(T);

impl<T: Default> PerWorker<T> {
    pub(crate) fn new(workers: usize) -> Self {
        Self((0..=workers).map(|_| Padded::default()).collect())
    }

    /// This thread's own.
    pub(crate) fn local(&self) -> &T {
        self.of(id())
    }

    pub(crate) fn of(&self, worker: usize) -> &T {
        &self.0[worker].0
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &T> {
        self.0.iter().map(|padded| &padded.0)
    }
}
