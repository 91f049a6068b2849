//! The control plane: HTTP API, guard, state database, incidents.

mod plane;

pub use plane::*;
