//! What routes owe each other: names of their own, and listeners that can be opened together.

use std::{collections::HashMap, net::SocketAddr};

use super::route::Draft;
use crate::{
    Protocol, address,
    fault::{Flaw, quoted},
    reader::Document,
};

/// `admin`: where the admin API listens, unless that is faulty.
pub(super) fn check(document: &Document, drafts: &[Draft], admin: Option<SocketAddr>) {
    let mut names: HashMap<&str, &Draft> = HashMap::new();
    for (index, draft) in drafts.iter().enumerate() {
        if let Some(name) = &draft.name {
            match names.get(name.as_str()) {
                Some(first) => document.fault(
                    &draft.spots.name,
                    Flaw::new(
                        format!("{} is also the name of {}", quoted(name), first.spots.name.owner()),
                        "give one of the two another name",
                    ),
                ),
                None => _ = names.insert(name, draft),
            }
        }
        let Some(listen) = draft.listen else { continue };
        if let Some(admin) = admin
            && clash(listen, admin)
        {
            let problem = format!("{} the admin api listens", meets(listen, admin));
            let cure = "write another port here or in admin.listen";
            document.fault(&draft.spots.listen, Flaw::new(problem, cure));
        }
        beside_others(document, draft, listen, &drafts[..index]);
    }
}

/// Compares a route with those above it, and stops at the first one that it cannot stand beside.
fn beside_others(document: &Document, draft: &Draft, listen: SocketAddr, others: &[Draft]) {
    let mut sharing = false;
    for other in others {
        let Some(taken) = other.listen else { continue };
        let owner = other.spots.listen.owner();
        let shared = listen == taken && draft.protocol == Some(Protocol::Http) && other.protocol == draft.protocol;
        if shared {
            if draft.tls != other.tls && !sharing {
                let (has, has_not) = if draft.tls { ("this route", owner) } else { (owner, "this route") };
                document.fault(
                    &draft.spots.tls,
                    Flaw::new(
                        format!("{listen} is shared, and {has} has tls while {has_not} has none"),
                        "give every route of a listener tls, or none",
                    ),
                );
            }
            sharing = true;
            if draft.matching.is_some() && draft.matching == other.matching {
                return document.fault(
                    &draft.spots.matching,
                    Flaw::new(
                        format!("{owner} takes the same requests of {listen}"),
                        "write match = { host = \"shop.example\", path = \"/\" } with another host or path",
                    ),
                );
            }
        } else if clash(listen, taken) && draft.protocol.is_some() && other.protocol.is_some() {
            let flaw = match listen == taken {
                true => Flaw::new(
                    format!("{listen} is taken by {owner}, and only http routes can share a listener"),
                    "write another port",
                ),
                false => Flaw::new(
                    format!("{} {owner} listens", meets(listen, taken)),
                    "write another port, or the same address in both",
                ),
            };
            return document.fault(&draft.spots.listen, flaw);
        }
    }
}

/// Whether only one of the two can be opened. Port 0 is a new port every time.
fn clash(a: SocketAddr, b: SocketAddr) -> bool {
    (a == b && a.port() != 0) || address::overlap(a, b)
}

fn meets(a: SocketAddr, b: SocketAddr) -> String {
    if a == b { format!("{a} is where") } else { format!("{a} overlaps {b}, where") }
}
