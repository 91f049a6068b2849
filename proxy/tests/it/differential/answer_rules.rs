//! Why the path makes of an answer what hyper's client does not: one rule a reason, with its section of an RFC.

use http::Version;

use super::{Rule, Sent, Verdict, answers::Understood};

type Theirs = Verdict<Understood>;

pub(super) const RULES: &[Rule<Understood>] = &[
    Rule { why: "RFC 9110, 7.6.1: connection, what it names and the fields of one hop end here", apply: hop_by_hop },
    Rule { why: "RFC 9112, 2.5: an intermediary sends its own version", apply: own_version },
    Rule {
        why: "RFC 9110, 7.8: nobody switches protocols unasked",
        apply: |_, ours, theirs| broken(ours, theirs, theirs.answers.last() == Some(&101)),
    },
    Rule {
        why: "RFC 9112, 6.3: both framings may be an attempt to smuggle",
        apply: |sent, ours, theirs| broken(ours, theirs, sent.has(b"content-length") && sent.has(b"transfer-encoding")),
    },
    Rule {
        why: "RFC 9112, 6.1: chunked, once, is the only coding, also of an answer that could end by closing",
        apply: |sent, ours, theirs| {
            broken(ours, theirs, sent.has(b"transfer-encoding") && !sent.has(b"transfer-encoding: chunked\r\n"))
        },
    },
    Rule {
        why: "RFC 9112, 6.1: chunked is not applied twice",
        apply: |sent, ours, theirs| broken(ours, theirs, sent.count(b"transfer-encoding") > 1),
    },
    Rule {
        why: "RFC 9112, 6.3: a length is checked where there is no body, too: of interim answers, and to head",
        apply: |sent, ours, theirs| broken(ours, theirs, sent.has(b"content-length")),
    },
    Rule {
        why: "RFC 9110, 6.5.1: a trailer that frames, routes or identifies is refused",
        apply: |sent, ours, theirs| broken(ours, theirs, sent.has_forbidden_trailer()),
    },
    Rule {
        why: "RFC 9112, 7.1.1: an extension is of visible characters",
        apply: |sent, ours, theirs| broken(ours, theirs, sent.has(b";") && sent.has_odd_byte()),
    },
    Rule {
        why: "RFC 9112, 7.1.2: lines of trailers end with cr lf, too",
        apply: |sent, ours, theirs| broken(ours, theirs, sent.has(b"chunked") && sent.has_bare_lf()),
    },
    Rule {
        why: "RFC 9112, 7.1: a size is of digits alone, few of them, and nothing may pad it",
        apply: |sent, ours, theirs| broken(ours, theirs, sent.has(b"chunked") && sent.has_odd_size()),
    },
    Rule { why: "RFC 9110, 5.4: up to 128 fields are taken from an endpoint, hyper takes 100", apply: many_fields },
];

/// The path calls broken what the other parser takes; the interim answers before it are the same. `witness`: whether
/// the fault is in what was sent.
fn broken(ours: &Theirs, theirs: &mut Theirs, witness: bool) {
    let Some((&502, before)) = ours.answers.split_last() else { return };
    if witness && theirs.answers.len() >= ours.answers.len() && theirs.answers.starts_with(before) {
        theirs.clone_from(ours);
    }
}

fn hop_by_hop(_: Sent<'_>, _: &Theirs, theirs: &mut Theirs) {
    const ALWAYS: [&str; 4] = ["keep-alive", "proxy-connection", "proxy-authenticate", "upgrade"];
    let switched = theirs.answers.last() == Some(&101);
    for answer in theirs.messages.iter_mut().filter(|_| !switched) {
        let named = |name: &str| ALWAYS.contains(&name) || answer.options.iter().any(|option| option == name);
        answer.fields.retain(|(name, _)| !named(name));
        answer.options.clear();
    }
}

fn own_version(_: Sent<'_>, _: &Theirs, theirs: &mut Theirs) {
    theirs.messages.iter_mut().for_each(|answer| answer.version = Version::HTTP_11);
}

fn many_fields(sent: Sent<'_>, ours: &Theirs, theirs: &mut Theirs) {
    if (101..=130).contains(&sent.count(b"\r\n")) && theirs.answers.last() == Some(&502) {
        theirs.clone_from(ours);
    }
}
