//! How many connections there may be: in all, as far as there are descriptors for them, and for one client.

use std::{
    collections::{HashMap, hash_map::Entry},
    hash::{BuildHasher, RandomState},
    net::IpAddr,
    num::NonZeroUsize,
    sync::Arc,
};

use parking_lot::Mutex;

/// What a worker holds a new connection against.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Limits {
    /// Open client connections in all.
    pub(crate) connections: usize,
    /// Of one client. `None`: as many as there may be in all.
    pub(crate) connections_per_client: Option<NonZeroUsize>,
}

/// Every client connection needs a descriptor, and so does its upstream. Raises the soft limit as far as is allowed and
/// needed. Where that is not enough, fewer clients are taken in: being out of descriptors must show as a client turned
/// away, not as an endpoint that cannot be reached. `workers`: descriptors of the workers' own. Returns how many
/// clients there may be.
pub(crate) fn within_file_limit(max_connections: usize, workers: usize) -> usize {
    let own = OWN_DESCRIPTORS + workers as u64;
    let needed = 2 * max_connections as u64 + own;
    let limit = rlimit::increase_nofile_limit(needed).unwrap_or(needed);
    if limit >= needed {
        return max_connections;
    }
    let room = usize::try_from(limit.saturating_sub(own).max(limit / 4) / 2).unwrap_or(max_connections).max(1);
    if room >= max_connections {
        return max_connections;
    }
    tracing::warn!(
        limit,
        needed,
        max_connections = room,
        "The limit of open files is below what max_connections needs, so fewer are taken; raise it (ulimit -n, LimitNOFILE)"
    );
    room
}

/// Descriptors for the admin API, checks, copies and idle upstream connections.
const OWN_DESCRIPTORS: u64 = 512;

/// Open connections by client, as long as there is a limit to them. Touched when a connection begins and when it ends,
/// by no request, so a lock that two workers rarely want at the same time is cheap enough.
#[derive(Debug)]
pub(crate) struct Clients {
    shards: [Mutex<HashMap<u128, usize>>; SHARDS],
    /// Of its own, so that nobody can choose addresses that all meet at one lock.
    hasher: RandomState,
}

const SHARDS: usize = 64;

impl Clients {
    pub(crate) fn new() -> Arc<Self> {
        let shards = std::array::from_fn(|_| Mutex::default());
        Arc::new(Self { shards, hasher: RandomState::new() })
    }

    /// Counts a connection of `client` until the answer is dropped. `None`: it has `most` already. An entry lives as long
    /// as its client has a connection, so there are never more than connections.
    pub(crate) fn admit(self: &Arc<Self>, client: IpAddr, most: NonZeroUsize) -> Option<Admission> {
        let key = key(client);
        let mut shard = self.shard(key).lock();
        let open = shard.entry(key).or_default();
        if *open >= most.get() {
            return None;
        }
        *open += 1;
        drop(shard);
        Some(Admission { clients: Arc::clone(self), key })
    }

    fn shard(&self, key: u128) -> &Mutex<HashMap<u128, usize>> {
        &self.shards[self.hasher.hash_one(key) as usize % SHARDS]
    }
}

/// A connection that is counted for its client.
#[derive(Debug)]
pub(crate) struct Admission {
    clients: Arc<Clients>,
    key: u128,
}

impl Drop for Admission {
    fn drop(&mut self) {
        if let Entry::Occupied(mut open) = self.clients.shard(self.key).lock().entry(self.key) {
            *open.get_mut() -= 1;
            if *open.get() == 0 {
                open.remove();
            }
        }
    }
}

/// Who counts as one client: an IPv4 address; the first half of an IPv6 address, which is what one customer has (RFC 6177
/// gives a site a /64 at least), since whoever has one can take any address in it.
fn key(client: IpAddr) -> u128 {
    match client.to_canonical() {
        IpAddr::V4(address) => address.to_ipv6_mapped().to_bits(),
        IpAddr::V6(address) => address.to_bits() >> 64 << 64,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn an_ipv4_address_is_one_client_and_so_is_the_network_of_an_ipv6_address() {
        for (a, b, same) in [
            ("192.0.2.1", "192.0.2.1", true),
            ("192.0.2.1", "192.0.2.2", false),
            ("192.0.2.1", "::ffff:192.0.2.1", true),
            ("::ffff:192.0.2.1", "::ffff:192.0.2.2", false),
            ("2001:db8:0:1::1", "2001:db8:0:1:ffff:ffff:ffff:ffff", true),
            ("2001:db8:0:1::1", "2001:db8:0:2::1", false),
            ("::1", "0.0.0.1", false),
        ] {
            assert_eq!(key(address(a)) == key(address(b)), same, "{a} and {b}");
        }
    }

    #[test]
    fn a_client_has_its_connections_until_they_end_and_then_leaves_nothing_behind() {
        let clients = Clients::new();
        let two = NonZeroUsize::new(2).unwrap();
        let (one, other) = (address("192.0.2.1"), address("192.0.2.2"));
        let first = clients.admit(one, two).unwrap();
        let second = clients.admit(one, two).unwrap();
        assert!(clients.admit(one, two).is_none());
        let others = clients.admit(other, two).unwrap();
        drop(first);
        let third = clients.admit(one, two).unwrap();
        assert!(clients.admit(one, two).is_none());
        // A limit that was lowered holds for what comes; one that was raised, too.
        assert!(clients.admit(other, NonZeroUsize::MIN).is_none());
        assert!(clients.admit(one, NonZeroUsize::MAX).is_some());
        drop((second, third, others));
        assert!(clients.shards.iter().all(|shard| shard.lock().is_empty()));
    }
}
