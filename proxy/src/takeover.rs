//! A second process takes the listening sockets over from the one that runs on the same state file, and nobody notices.
//!
//! They talk over a unix socket beside the state file, a JSON object a line. The one that runs offers ([`offer`]); the
//! one that starts asks it ([`incumbent`]):
//!
//! | starts | runs |
//! |---|---|
//! | `takeover`: which protocol, who it is | |
//! | | `sockets`: how many; their descriptors come with it |
//! | binds what it has no socket for; `release` | |
//! | | refuses changes, closes the state file; `released` |
//! | opens the state file, starts everything but to accept; `ready` | |
//! | | `go`, accepts no more, drains, ends |
//! | accepts; `splits` with every change from now on | |
//! | | `followed` |
//!
//! Up to `go` either can fail and the one that runs goes on as if nothing had been. From `go` on it is the other's. A
//! socket is open in one of the two at any moment, so no connection is refused or reset.

mod channel;
mod incumbent;
mod offer;
mod predecessor;

use std::{
    collections::BTreeMap,
    io,
    path::{Path, PathBuf},
};

use admin_api::RouteState;
use config::Split;
use serde::{Deserialize, Serialize};
use tokio::time::Duration;

pub(crate) use incumbent::Incumbent;
pub(crate) use offer::Offer;
pub(crate) use predecessor::Predecessor;

/// Two that do not speak the same do not take over from each other.
const PROTOCOL: u32 = 1;
/// How long either waits for the other's next word. Nothing that is waited for takes longer than opening a state file.
const PATIENCE: Duration = Duration::from_secs(30);

/// What the one that starts says.
#[derive(Debug, Deserialize, Serialize)]
#[serde(tag = "say", rename_all = "snake_case")]
enum Asked {
    Takeover {
        protocol: u32,
        pid: u32,
    },
    Release,
    /// `closing`: which of the sockets, in the order they came, it has no use for.
    Ready {
        closing: Vec<usize>,
    },
    /// The splits of all routes, so that what the other one still serves follows them.
    Splits {
        number: u64,
        routes: BTreeMap<String, Share>,
    },
}

/// What the one that runs says.
#[derive(Debug, Deserialize, Serialize)]
#[serde(tag = "say", rename_all = "snake_case")]
enum Told {
    Sockets {
        protocol: u32,
        pid: u32,
        count: usize,
    },
    Released,
    Go,
    /// The splits of this number, and of those before it, are live.
    Followed {
        number: u64,
    },
    Refused {
        problem: String,
    },
}

/// A route's state.
#[derive(Debug, Deserialize, Serialize)]
struct Share {
    /// Green's buckets.
    green: u16,
    revision: u64,
    latched: bool,
}

impl From<RouteState> for Share {
    fn from(state: RouteState) -> Self {
        Self { green: state.split.buckets(), revision: state.revision, latched: state.latched }
    }
}

impl Share {
    fn state(&self) -> Option<RouteState> {
        let split = Split::from_buckets(self.green)?;
        Some(RouteState { split, revision: self.revision, latched: self.latched })
    }
}

/// Where the one that runs on `state` listens. Errors: the path is longer than a socket's may be.
fn address(state: &Path) -> io::Result<PathBuf> {
    let mut name = state.as_os_str().to_owned();
    name.push(".takeover");
    if name.len() > LONGEST {
        let problem = format!(
            "{} has {} characters and a socket's path may have {LONGEST}; move the state file to a folder with a shorter \
             path, or name it relative to the working directory",
            name.display(),
            name.len()
        );
        return Err(io::Error::new(io::ErrorKind::InvalidFilename, problem));
    }
    Ok(name.into())
}

/// Linux: `sun_path` has 108 bytes, with the zero at its end (unix(7)).
const LONGEST: usize = 107;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_address_is_beside_the_state_file_and_fits_into_a_socket_address() {
        assert_eq!(address(Path::new("/var/lib/crossfade.db")).unwrap(), Path::new("/var/lib/crossfade.db.takeover"));
        for (length, fits) in [(LONGEST - 9, true), (LONGEST - 8, false), (4_000, false)] {
            let state = "s".repeat(length);
            match address(Path::new(&state)) {
                Ok(path) => {
                    assert!(fits, "{length}");
                    std::os::unix::net::SocketAddr::from_pathname(path).unwrap();
                }
                Err(error) => assert!(!fits && error.to_string().contains("may have 107; move"), "{length}: {error}"),
            }
        }
    }

    #[test]
    fn what_is_said_stays_readable_by_other_versions() {
        let said = |word: &Asked| serde_json::to_string(word).unwrap();
        assert_eq!(said(&Asked::Takeover { protocol: 1, pid: 7 }), r#"{"say":"takeover","protocol":1,"pid":7}"#);
        assert_eq!(said(&Asked::Release), r#"{"say":"release"}"#);
        assert_eq!(said(&Asked::Ready { closing: vec![2] }), r#"{"say":"ready","closing":[2]}"#);
        let routes = BTreeMap::from([("shop".to_owned(), Share { green: 250, revision: 3, latched: false })]);
        assert_eq!(
            said(&Asked::Splits { number: 1, routes }),
            r#"{"say":"splits","number":1,"routes":{"shop":{"green":250,"revision":3,"latched":false}}}"#
        );
        let told = |word: &Told| serde_json::to_string(word).unwrap();
        assert_eq!(
            told(&Told::Sockets { protocol: 1, pid: 7, count: 3 }),
            r#"{"say":"sockets","protocol":1,"pid":7,"count":3}"#
        );
        assert_eq!(told(&Told::Released), r#"{"say":"released"}"#);
        assert_eq!(told(&Told::Go), r#"{"say":"go"}"#);
        assert_eq!(told(&Told::Followed { number: 1 }), r#"{"say":"followed","number":1}"#);
        let refused = Told::Refused { problem: "no".to_owned() };
        assert_eq!(told(&refused), r#"{"say":"refused","problem":"no"}"#);
        // A field that a later version adds is no nonsense.
        assert!(serde_json::from_str::<Asked>(r#"{"say":"takeover","protocol":2,"pid":7,"more":[]}"#).is_ok());
    }
}
