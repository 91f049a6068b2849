//! Which worker thread this is, and state that each worker has for itself, so that no two share a cache line.

use std::{cell::Cell, ops::Deref, sync::Arc};

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
}

impl<T> PerWorker<T> {
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

/// A value that every worker holds on to, request after request, without writing where another one writes: an `Arc`'s
/// count would go from core to core, so each worker has an `Arc` of its own, of the one they share.
#[derive(Debug)]
pub(crate) struct Shared<T>(Arc<[Handle<T>]>);

/// Keeps a [`Shared`] value for as long as a request or a connection needs it.
#[derive(Debug)]
pub(crate) struct Handle<T>(Arc<Padded<Arc<T>>>);

impl<T> Shared<T> {
    pub(crate) fn new(value: T, workers: usize) -> Self {
        let value = Arc::new(value);
        Self((0..=workers).map(|_| Handle(Arc::new(Padded(Arc::clone(&value))))).collect())
    }

    /// This thread's.
    pub(crate) fn handle(&self) -> Handle<T> {
        self.0[id()].clone()
    }

    /// What all handles are of.
    pub(crate) fn value(&self) -> &Arc<T> {
        &self.0[0].0.0
    }

    pub(crate) fn is(&self, other: &Self) -> bool {
        Arc::ptr_eq(self.value(), other.value())
    }
}

impl<T> Clone for Shared<T> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<T> Deref for Shared<T> {
    type Target = T;

    fn deref(&self) -> &T {
        self.value()
    }
}

impl<T> Clone for Handle<T> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<T> Deref for Handle<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.0.0
    }
}
