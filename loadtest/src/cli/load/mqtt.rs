//! `loadtest mqtt`.
