//! The process that this one took over from, for as long as it finishes what it has: it follows our splits, so that a
//! rollback reaches what comes over the connections that it still keeps.

use std::collections::BTreeMap;

use admin_api::RouteState;
use tokio::{
    sync::watch,
    time::{self, Duration},
};

use super::{Asked, Share, Told, channel::Channel};

/// How long a change may wait for a predecessor that does not answer.
const PATIENCE: Duration = Duration::from_secs(1);

#[derive(Debug)]
pub(crate) struct Predecessor {
    wanted: watch::Sender<Wanted>,
    /// The number that it follows.
    followed: watch::Receiver<u64>,
}

#[derive(Clone, Debug, Default)]
struct Wanted {
    number: u64,
    states: BTreeMap<String, RouteState>,
}

impl Predecessor {
    /// Must be called within a runtime.
    pub(super) fn new(channel: Channel) -> Self {
        let (wanted, wants) = watch::channel(Wanted::default());
        let (follows, followed) = watch::channel(0);
        tokio::spawn(tell(channel, wants, follows));
        Self { wanted, followed }
    }

    /// Has it follow a route's new state, soon.
    pub(crate) fn tell(&self, route: &str, state: RouteState) {
        self.wanted.send_modify(|wanted| {
            wanted.number += 1;
            wanted.states.insert(route.to_owned(), state);
        });
    }

    /// Resolves when it follows everything it was told so far, when it has ended, or when it does not answer.
    pub(crate) fn followed(&self) -> impl Future<Output = ()> + Send + 'static {
        let number = self.wanted.borrow().number;
        let mut followed = self.followed.clone();
        async move {
            if time::timeout(PATIENCE, followed.wait_for(|followed| *followed >= number)).await.is_err() {
                tracing::warn!(
                    "The instance before this one does not follow; what it still serves has the splits before"
                );
            }
        }
    }
}

/// Tells what is wanted until the other end is gone, or ours is.
async fn tell(mut channel: Channel, mut wanted: watch::Receiver<Wanted>, followed: watch::Sender<u64>) {
    loop {
        tokio::select! {
            changed = wanted.changed() => {
                if changed.is_err() {
                    return;
                }
                let Wanted { number, states } = wanted.borrow_and_update().clone();
                let routes = states.into_iter().map(|(route, state)| (route, Share::from(state))).collect();
                if channel.say(&Asked::Splits { number, routes }).await.is_err() {
                    return;
                }
            }
            heard = channel.hear() => match heard {
                Ok(Told::Followed { number }) => drop(followed.send_replace(number)),
                Ok(_) => {}
                // It has finished.
                Err(_) => return,
            }
        }
    }
}
