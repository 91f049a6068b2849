use std::net::IpAddr;

use crate::{
    cuts::Draw,
    request::{Request, parts},
    wire::http1::{self, BodyLength, Head, MAX_FIELDS, MAX_HEAD, Scan, scan},
};

/// Lines that the proxy may add: host, connection, the three of `X-Forwarded`, via; `transfer-encoding` replaces one.
const ADDED: usize = 6;

/// Fields that reach no endpoint as the client sent them, with hyphens for underscores.
const OURS: [&str; 14] = [
    "connection",
    "forwarded",
    "keep-alive",
    "proxy-authenticate",
    "proxy-authorization",
    "proxy-connection",
    "te",
    "transfer-encoding",
    "upgrade",
    "x-crossfade-arm",
    "x-forwarded-for",
    "x-forwarded-host",
    "x-forwarded-proto",
    "x-shadow",
];

/// A head that passes is written anew as a head that passes, for us and for `httparse`, with the same method, target, host
/// and framing, so that the endpoint serves what the route was chosen by; nothing that only the proxy may say comes from
/// the client, under any spelling; every other field arrives as it was, in order.
pub fn http1_request(bytes: &[u8]) {
    let Scan::Head(framing) = scan(bytes, 0) else { return };
    let head = &bytes[..framing.length];
    let head = head.strip_prefix(b"\r\n").unwrap_or(head);
    let mut draw = Draw::from(bytes);
    let client: IpAddr =
        if draw.below(2) == 0 { [192, 0, 2, 7].into() } else { [0x2001, 0xdb8, 0, 0, 0, 0, 0, 7].into() };
    let tls = draw.below(2) == 0;

    let request = Request::new(head, &framing);
    let mut out = Vec::new();
    request.write(&mut out, client, tls);
    let count = http1::fields(head).count();
    // Long heads may outgrow what we would take ourselves; the limits are tested apart.
    if count + ADDED > MAX_FIELDS || out.len() > MAX_HEAD {
        return;
    }
    let shown = format!("{}\nwritten anew: {}", head.escape_ascii(), out.escape_ascii());
    let Scan::Head(again) = scan(&out, 0) else { panic!("{:?}: {shown}", scan(&out, 0)) };
    let upgrade = framing.body == BodyLength::Upgrade && options(head).any(|option| option == b"upgrade");
    // Who offers an upgrade without asking for it in `Connection` asks the hop before.
    let body = if framing.body == BodyLength::Upgrade && !upgrade { BodyLength::None } else { framing.body };
    assert_eq!((again.length, again.body), (out.len(), body), "{shown}");
    assert_eq!(again.idempotent, framing.idempotent, "{shown}");
    assert!(again.keep_alive, "{shown}");

    let written = Request::new(&out, &again);
    assert_eq!((written.method, written.path, written.query), (request.method, request.path, request.query), "{shown}");
    assert!(written.http11, "{shown}");
    let mut rooms = [String::new(), String::new()];
    let [here, there] = &mut rooms;
    let host = request.host(here);
    assert_eq!(written.host(there), host, "{shown}");
    assert!(!host.bytes().any(|byte| byte.is_ascii_uppercase()), "{shown}");
    check_fields(head, &out, upgrade, &request, &shown);
    read_by_another(&out, &framing, &shown);

    // The second proxy in a row finds nothing to object to.
    let mut twice = Vec::new();
    written.write(&mut twice, client, tls);
    assert!(matches!(scan(&twice, 0), Scan::Head(head) if head.body == body), "{shown}");
    if let Some(parts) = parts(&out) {
        assert_eq!(parts.method.as_str().as_bytes(), request.method, "{shown}");
        assert_eq!(parts.headers.len(), http1::fields(&out).count(), "{shown}");
    }
}

/// What `Connection` names, in lower case.
fn options(head: &[u8]) -> impl Iterator<Item = Vec<u8>> {
    http1::fields(head)
        .filter(|field| field.is(b"connection"))
        .flat_map(|field| field.value.split(|byte| *byte == b','))
        .map(|option| option.trim_ascii().to_ascii_lowercase())
}

fn check_fields(head: &[u8], out: &[u8], upgrade: bool, request: &Request<'_>, shown: &str) {
    let normal = |name: &[u8]| String::from_utf8_lossy(name).to_ascii_lowercase().replace('_', "-");
    let values = |name: &str| -> Vec<&[u8]> {
        http1::fields(out).filter(|field| normal(field.name) == name).map(|field| field.value).collect()
    };
    for once in ["x-forwarded-for", "x-forwarded-proto", "host"] {
        assert_eq!(values(once).len(), 1, "{once}: {shown}");
    }
    assert_eq!(values("x-forwarded-host").len(), usize::from(request.authority.is_some()), "{shown}");
    assert!(values("content-length").len() + values("transfer-encoding").len() <= 1, "{shown}");
    assert!(values("connection").iter().all(|value| *value == b"upgrade"), "{shown}");
    assert!(values("connection").is_empty() || !values("upgrade").is_empty(), "{shown}");
    assert!(upgrade || values("upgrade").is_empty(), "{shown}");
    assert!(values("via").last().is_some_and(|via| via.ends_with(b" crossfade")), "{shown}");
    for never in ["te", "keep-alive", "forwarded", "x-shadow", "x-crossfade-arm"] {
        assert!(values(never).is_empty(), "{never}: {shown}");
    }
    assert!(OURS.iter().filter(|name| name.starts_with("proxy-")).all(|name| values(name).is_empty()), "{shown}");

    let options: Vec<_> = options(head).collect();
    let counted =
        |name: &[u8]| name.eq_ignore_ascii_case(b"max-forwards") && matches!(request.method, b"TRACE" | b"OPTIONS");
    let mut arrived = http1::fields(out).map(|field| field.line);
    for field in http1::fields(head) {
        let name = normal(field.name);
        let foreign_length = name == "content-length" && field.name.contains(&b'_');
        let stays = !OURS.contains(&name.as_str())
            && !foreign_length
            && !counted(field.name)
            && (name == "upgrade" || !options.contains(&field.name.to_ascii_lowercase()));
        if stays {
            assert!(arrived.any(|line| line == field.line), "{} is lost: {shown}", field.line.escape_ascii());
        }
    }
    for field in http1::fields(out) {
        let name = field.name.to_ascii_lowercase();
        let ours = matches!(name.as_slice(), b"connection" | b"via") || counted(&name);
        let names_itself = matches!(name.as_slice(), b"close" | b"keep-alive" | b"upgrade");
        assert!(ours || names_itself || !options.contains(&name), "{} stays: {shown}", name.escape_ascii());
        // What is no number goes on as it came.
        if counted(&name)
            && let Some(before) = request.max_forwards()
        {
            assert_eq!(field.value, before.saturating_sub(1).to_string().as_bytes(), "{shown}");
        }
    }
}

fn read_by_another(out: &[u8], framing: &Head, shown: &str) {
    let mut fields = [httparse::EMPTY_HEADER; MAX_FIELDS];
    let mut request = httparse::Request::new(&mut fields);
    assert_eq!(request.parse(out), Ok(httparse::Status::Complete(out.len())), "{shown}");
    assert_eq!(request.version, Some(1), "{shown}");
    assert!(request.path.is_some_and(|path| path == "*" || path.starts_with('/')), "{shown}");
    let value = |name: &str| {
        let field = request.headers.iter().find(|field| field.name.eq_ignore_ascii_case(name))?;
        str::from_utf8(field.value).ok()
    };
    let (length, coding) = (value("content-length"), value("transfer-encoding"));
    match framing.body {
        BodyLength::Length(expected) => assert_eq!(length.map(str::parse), Some(Ok(expected)), "{shown}"),
        BodyLength::Chunked => assert_eq!((length, coding), (None, Some("chunked")), "{shown}"),
        BodyLength::None | BodyLength::Upgrade => {
            assert!(coding.is_none() && length.is_none_or(|length| length.parse() == Ok(0)), "{shown}");
        }
    }
    let control = |byte: &u8| (*byte < b' ' && *byte != b'\t') || *byte == 0x7f;
    assert!(!request.headers.iter().any(|field| field.value.iter().any(control)), "{shown}");
}
