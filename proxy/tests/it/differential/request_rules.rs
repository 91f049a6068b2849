//! Why the path makes of a request what another parser does not: one rule a reason, with its section of an RFC.

use http::{Uri, Version};

use super::{Rule, Sent, Verdict, requests::Understood};

type Theirs = Verdict<Understood>;

/// What an intermediary does to a request that it takes; then what it answers itself; then what it refuses.
pub(super) const RULES: &[Rule<Understood>] = &[
    Rule { why: "RFC 9110, 7.6.1: connection, what it names and the fields of one hop end here", apply: hop_by_hop },
    Rule {
        why: "RFC 9110, 7.8: an upgrade goes on in 1.1, when the connection names it; never to h2c",
        apply: upgrade,
    },
    Rule {
        why: "RFC 9112, 3.2.1: an origin gets a target in origin form; 3.2.2: and its authority as host",
        apply: origin_form,
    },
    Rule { why: "RFC 9112, 3.2: without an authority the host is empty, which 1.1 must say", apply: empty_host },
    Rule { why: "RFC 9112, 2.5: an intermediary sends its own version", apply: own_version },
    Rule { why: "RFC 9110, 7.6.2: max-forwards is one less, of options and trace", apply: one_forward_less },
    Rule { why: "RFC 9110, 7.6.2: with no forward left the request is answered here", apply: no_forward_left },
    Rule { why: "RFC 7239, 8.1: who called is said by the path; nobody can forge it", apply: unforged },
    Rule {
        why: "RFC 3875, 4.1.18: an underscore is a hyphen to CGI: such names of framing and callers end here",
        apply: underscores,
    },
    Rule { why: "RFC 9112, 3.2.4: no route takes an asterisk", apply: asterisk },
    Rule {
        why: "RFC 3986, 2: what should be escaped is the origin's to judge; its 400 leaves the client's connection",
        apply: judged_by_origin,
    },
    Rule {
        why: "RFC 9110, 5.4: an origin with the same limit of fields refuses those that the path adds",
        apply: one_field_too_many,
    },
    Rule { why: "RFC 9112, 8: a request that stops short is not answered", apply: stops_short },
    Rule {
        why: "RFC 9112, 2.2: lf alone ends no line",
        apply: |sent, ours, theirs| {
            refused(ours, theirs, 400, "ends with lf alone", sent.has_bare_lf() || ends_with_cr(ours))
        },
    },
    Rule {
        why: "RFC 9112, 2.2: one empty line before a request line, not two",
        apply: |sent, ours, theirs| refused(ours, theirs, 400, "does not begin with a method", sent.has(b"\r\n\r\n")),
    },
    Rule {
        why: "RFC 9110, 8.6: a length is one number of digits, once",
        apply: |sent, ours, theirs| {
            refused(ours, theirs, 400, "content-length is not one plain", sent.has(b"content-length"))
        },
    },
    Rule {
        why: "RFC 9112, 6.1: both framings may be an attempt to smuggle",
        apply: |sent, ours, theirs| {
            refused(
                ours,
                theirs,
                400,
                "both content-length and",
                sent.has(b"content-length") && sent.has(b"transfer-encoding"),
            )
        },
    },
    Rule {
        why: "RFC 9112, 6.1: chunked is not applied twice, and nothing is in 1.0",
        apply: |sent, ours, theirs| {
            refused(ours, theirs, 400, "transfer-encoding does not frame", sent.has(b"transfer-encoding"))
        },
    },
    Rule {
        why: "RFC 9112, 6.1: a coding that is not understood is 501",
        apply: |sent, ours, theirs| {
            refused(ours, theirs, 501, "the only transfer coding", sent.has(b"transfer-encoding"))
        },
    },
    Rule {
        why: "RFC 9112, 3.2: 1.1 without host is 400",
        apply: |_, ours, theirs| refused(ours, theirs, 400, "the host field is missing", true),
    },
    Rule {
        why: "RFC 9112, 3.2: more than one host is 400",
        apply: |sent, ours, theirs| refused(ours, theirs, 400, "more than one host", sent.count(b"host:") > 1),
    },
    Rule {
        why: "RFC 9112, 3.2: a host that is none is 400",
        apply: |sent, ours, theirs| refused(ours, theirs, 400, "not a host name or address", sent.has(b"host:")),
    },
    Rule {
        why: "RFC 9112, 3.2.2: a host that differs from the target's routes to two places",
        apply: |sent, ours, theirs| refused(ours, theirs, 400, "differs from the host", sent.has(b"://")),
    },
    Rule {
        why: "RFC 9112, 3.2: a target is a path, an http url, or an asterisk with options",
        apply: |_, ours, theirs| refused(ours, theirs, 400, "the request target is not", true),
    },
    Rule {
        why: "RFC 9110, 9.3.6: a gateway does not serve connect",
        apply: |sent, ours, theirs| refused(ours, theirs, 405, "CONNECT is not served", sent.has(b"CONNECT")),
    },
    Rule {
        why: "RFC 9110, 15.6.6: another version is 505",
        apply: |sent, ours, theirs| refused(ours, theirs, 505, "this version of http", sent.has(b"HTTP/")),
    },
    Rule {
        why: "RFC 9110, 7.6.1: connection names no field that framing or routing depends on, and few",
        apply: |sent, ours, theirs| refused(ours, theirs, 400, "the connection field has", sent.has(b"connection:")),
    },
    Rule {
        why: "RFC 9110, 7.8: with a body before it, where a tunnel begins is a guess",
        apply: |sent, ours, theirs| refused(ours, theirs, 400, "asks for an upgrade has a body", sent.has(b"upgrade:")),
    },
    Rule {
        why: "RFC 6585, 5: a head has a limit",
        apply: |sent, ours, theirs| refused(ours, theirs, 431, "longer than 64 kib", sent.bytes.len() > 64 * 1024),
    },
    Rule {
        why: "RFC 9110, 6.5.1: a trailer that frames, routes or identifies is refused",
        apply: |sent, ours, theirs| chunk(ours, theirs, sent.has_forbidden_trailer()),
    },
    Rule {
        why: "RFC 9112, 7.1.1: an extension is of visible characters",
        apply: |sent, ours, theirs| chunk(ours, theirs, sent.has(b";") && sent.has_odd_byte()),
    },
    Rule {
        why: "RFC 9112, 7.1.2: lines of trailers end with cr lf, too",
        apply: |sent, ours, theirs| chunk(ours, theirs, sent.has_bare_lf()),
    },
    Rule {
        why: "RFC 9112, 7.1: a size is of digits alone, few of them, and nothing may pad it",
        apply: |sent, ours, theirs| chunk(ours, theirs, sent.has_odd_size()),
    },
];

/// The path refuses what the other parser takes, or refuses with another status; all that was before is the same.
/// `witness`: whether the fault is in what was sent.
fn refused(ours: &Theirs, theirs: &mut Theirs, status: u16, says: &str, witness: bool) {
    let Some((&last, before)) = ours.answers.split_last() else { return };
    let same_before = theirs.answers.starts_with(before) && theirs.messages.starts_with(&ours.messages);
    if witness && last == status && ours.text.contains(says) && !ours.stays && same_before {
        theirs.clone_from(ours);
    }
}

/// The last body took the CR of a line's end in.
fn ends_with_cr(ours: &Theirs) -> bool {
    ours.messages.last().is_some_and(|request| request.body.ends_with("\\r"))
}

fn chunk(ours: &Theirs, theirs: &mut Theirs, witness: bool) {
    refused(ours, theirs, 400, "not well divided into chunks", witness);
}

/// Elements of the `connection` fields, in small letters.
fn connection(request: &Understood) -> Vec<String> {
    let values = request.fields.iter().filter(|(name, _)| name == "connection").map(|(_, value)| value);
    values.flat_map(|value| value.split(',')).map(|option| option.trim().to_ascii_lowercase()).collect()
}

fn remove(request: &mut Understood, which: impl Fn(&str) -> bool) {
    request.fields.retain(|(name, _)| !which(name));
}

fn insert(request: &mut Understood, name: &str, value: &str) {
    let at = request.fields.partition_point(|(known, _)| known.as_str() < name);
    request.fields.insert(at, (name.to_owned(), value.to_owned()));
}

fn hop_by_hop(_: Sent<'_>, _: &Theirs, theirs: &mut Theirs) {
    const ALWAYS: [&str; 4] = ["keep-alive", "proxy-connection", "proxy-authorization", "te"];
    for request in &mut theirs.messages {
        let options = connection(request);
        remove(request, |name| {
            ALWAYS.contains(&name) || (name != "upgrade" && options.iter().any(|option| option == name))
        });
        // What is left of it belongs to the next rule.
        remove(request, |name| name == "connection");
        if options.iter().any(|option| option == "upgrade") {
            insert(request, "connection", "upgrade");
        }
    }
}

fn upgrade(_: Sent<'_>, _: &Theirs, theirs: &mut Theirs) {
    let is_http2 = |protocol: &str| {
        let name = protocol.split('/').next().unwrap_or_default().trim();
        ["h2c", "h2", "http"].iter().any(|http2| name.eq_ignore_ascii_case(http2))
    };
    for request in &mut theirs.messages {
        let named = request.fields.iter().any(|(name, _)| name == "connection");
        let offered: Vec<_> = request.fields.iter().filter(|(name, _)| name == "upgrade").collect();
        let http2 = offered.iter().any(|(_, value)| value.split(',').any(is_http2));
        if !named || offered.is_empty() || http2 || request.version == Version::HTTP_10 {
            remove(request, |name| name == "upgrade" || name == "connection");
        }
    }
}

fn origin_form(_: Sent<'_>, _: &Theirs, theirs: &mut Theirs) {
    for request in &mut theirs.messages {
        let Ok(target) = request.target.parse::<Uri>() else { continue };
        if let (Some(_), Some(authority), Some(path)) = (target.scheme(), target.authority(), target.path_and_query()) {
            request.target = path.to_string();
            if !request.fields.iter().any(|(name, _)| name == "host") {
                insert(request, "host", authority.as_str());
            }
        }
    }
}

fn empty_host(_: Sent<'_>, _: &Theirs, theirs: &mut Theirs) {
    for request in theirs.messages.iter_mut().filter(|request| request.version == Version::HTTP_10) {
        if !request.fields.iter().any(|(name, _)| name == "host") {
            insert(request, "host", "");
        }
    }
}

fn own_version(_: Sent<'_>, _: &Theirs, theirs: &mut Theirs) {
    theirs.messages.iter_mut().for_each(|request| request.version = Version::HTTP_11);
}

fn forwards(request: &Understood) -> Option<u64> {
    let (_, value) = request.fields.iter().find(|(name, _)| name == "max-forwards")?;
    if matches!(request.method.as_str(), "OPTIONS" | "TRACE") { value.parse().ok() } else { None }
}

fn one_forward_less(_: Sent<'_>, _: &Theirs, theirs: &mut Theirs) {
    for request in &mut theirs.messages {
        if let Some(left) = forwards(request).filter(|left| *left > 0) {
            let counted = request.fields.iter_mut().filter(|(name, _)| name == "max-forwards");
            counted.for_each(|(_, value)| *value = (left - 1).to_string());
        }
    }
}

/// The place in the answers of the final one to the message at `at`.
fn answer_to(theirs: &Theirs, at: usize) -> Option<usize> {
    let finals = theirs.answers.iter().enumerate().filter(|(_, status)| **status >= 200 || **status == 101);
    finals.map(|(place, _)| place).nth(at)
}

/// The message at `at` is answered with `status` and goes no further.
fn answered_here(theirs: &mut Theirs, at: usize, status: u16) {
    if let Some(place) = answer_to(theirs, at) {
        theirs.answers[place] = status;
    }
}

fn no_forward_left(_: Sent<'_>, _: &Theirs, theirs: &mut Theirs) {
    answer_for_origin(theirs, |request| match request.method.as_str() {
        _ if forwards(request) != Some(0) => None,
        "TRACE" => Some(405),
        _ => Some(200),
    });
}

fn asterisk(_: Sent<'_>, _: &Theirs, theirs: &mut Theirs) {
    answer_for_origin(theirs, |request| (request.method == "OPTIONS" && request.target == "*").then_some(404));
}

fn answer_for_origin(theirs: &mut Theirs, status: impl Fn(&Understood) -> Option<u16>) {
    let answered: Vec<_> = theirs.messages.iter().map(status).collect();
    for (at, status) in answered.iter().enumerate() {
        if let Some(status) = status {
            answered_here(theirs, at, *status);
        }
    }
    let mut at = answered.iter();
    theirs.messages.retain(|_| at.next().is_none_or(Option::is_none));
}

fn unforged(_: Sent<'_>, _: &Theirs, theirs: &mut Theirs) {
    for request in &mut theirs.messages {
        remove(request, |name| matches!(name, "forwarded" | "x-shadow" | "x-crossfade-arm"));
    }
}

fn underscores(_: Sent<'_>, _: &Theirs, theirs: &mut Theirs) {
    const NAMES: [&str; 7] = [
        "content-length",
        "transfer-encoding",
        "x-forwarded-for",
        "x-forwarded-host",
        "x-forwarded-proto",
        "keep-alive",
        "x-shadow",
    ];
    for request in &mut theirs.messages {
        remove(request, |name| name.contains('_') && NAMES.contains(&name.replace('_', "-").as_str()));
    }
}

/// The origin, not the path, refused what is at the end of theirs, and the client's connection went on.
fn refused_by_origin(ours: &Theirs, theirs: &mut Theirs, witness: bool) {
    let refused = theirs.answers.last().is_some_and(|status| matches!(status, 400 | 414 | 431));
    let longer = ours.answers.len() > theirs.answers.len() || ours.stays;
    if witness && refused && longer && ours.answers.starts_with(&theirs.answers) {
        theirs.clone_from(ours);
    }
}

fn judged_by_origin(sent: Sent<'_>, ours: &Theirs, theirs: &mut Theirs) {
    refused_by_origin(ours, theirs, sent.bytes.iter().any(|byte| b"\"<>\\^`{|}".contains(byte) || *byte >= 0x80));
}

fn one_field_too_many(sent: Sent<'_>, ours: &Theirs, theirs: &mut Theirs) {
    let fields = sent.count(b"\r\n");
    if fields > 95 && ours.answers.first() == Some(&431) && ours.stays && ours.text.is_empty() {
        theirs.clone_from(ours);
    }
}

fn stops_short(_: Sent<'_>, ours: &Theirs, theirs: &mut Theirs) {
    if theirs.answers.last() == Some(&400) && theirs.answers[..theirs.answers.len() - 1] == ours.answers && !ours.stays
    {
        theirs.answers.pop();
    }
}
