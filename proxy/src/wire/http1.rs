//! A strict gate in front of the HTTP/1 engine: finds the end of a request's head and refuses what two parties could
//! read in two ways, before anything is forwarded. Sections are those of RFC 9110 (semantics), RFC 9112 (HTTP/1.1) and
//! RFC 3986 (URIs).

use std::{net::Ipv6Addr, str};

use memchr::{memchr, memchr2};

/// The longest head, in bytes, from the request line to the empty line after the fields.
pub const MAX_HEAD: usize = 64 * 1024;
/// The most field lines in a head.
pub const MAX_FIELDS: usize = 100;
/// More options than this in `Connection` are an attempt to have fields removed. The engine's limit is the same.
const MAX_CONNECTION_OPTIONS: usize = 9;

/// How a client opens HTTP/2 without asking first (RFC 9113, 3.4).
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// Looks at a request's bytes so far. `scanned`: what the last call for this request answered, 0 at first; those bytes
/// are not looked at again until the head is whole.
///
/// The answer doesn't depend on how the bytes were cut: until the end of the head is found only what is wrong wherever it
/// stands counts (line ends, control characters, size); all else is judged on the whole head.
pub fn scan(bytes: &[u8], scanned: usize) -> Scan {
    let opening = bytes.len().min(PREFACE.len());
    if bytes[..opening] == PREFACE[..opening] {
        // The empty line within the preface must not end a head, so none of it counts as scanned.
        return if opening == PREFACE.len() { Scan::Http2Preface } else { Scan::Incomplete { scanned: 0 } };
    }
    let window = &bytes[..bytes.len().min(MAX_HEAD)];
    match find_end(window, scanned.min(window.len())) {
        Ok(Progress::End(length)) => judge(&window[..length]).map_or_else(Scan::Rejected, Scan::Head),
        Ok(Progress::Scanned(_)) if window.len() == MAX_HEAD => Scan::Rejected(HEAD_TOO_LARGE),
        Ok(Progress::Scanned(scanned)) => Scan::Incomplete { scanned },
        Err(rejection) => Scan::Rejected(rejection),
    }
}

/// What the bytes so far amount to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scan {
    /// Nothing wrong yet, more to come. `scanned` goes into the next call.
    Incomplete {
        scanned: usize,
    },
    /// The client speaks HTTP/2 from the first byte.
    Http2Preface,
    Head(Head),
    Rejected(Rejection),
}

/// A request head that can be read in one way only.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Head {
    /// Bytes up to and with the empty line; an empty line before the request line counts.
    pub length: usize,
    /// What follows the head.
    pub body: BodyLength,
    /// Whether another request may follow: the default of 1.1 unless `Connection: close`, in 1.0 only with
    /// `Connection: keep-alive` (9112, 9.3).
    pub keep_alive: bool,
    /// Whether the method is one that can be sent twice (9110, 9.2.2).
    pub idempotent: bool,
    /// What its fields say that few say, so that nobody must look at all of them again for it.
    pub says: Says,
}

/// Rare things that a head's fields say.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Says {
    /// There is an `Expect` (9110, 10.1.1).
    pub expect: bool,
    /// It wants an event stream.
    pub events: bool,
    /// `Connection` names `Upgrade`. Who wants it says so there, too, or it was for the hop before (9110, 7.8).
    pub upgrade: bool,
    /// `Connection` has options beyond `close`, `keep-alive` and `upgrade`: fields that end here (9110, 7.6.1).
    pub hop_fields: bool,
}

/// What follows a head (9112, 6.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BodyLength {
    /// The next request, if any.
    None,
    /// So many bytes, at least one.
    Length(u64),
    Chunked,
    /// Nothing until the response is there; after a 101 a tunnel (9110, 7.8), after any other the next request. Bytes
    /// that come before the response belong to neither and must be held back.
    ///
    /// Said of every 1.1 request with an `Upgrade` field, also without `Connection: upgrade`: to be on the safe side of
    /// an engine or an origin that doesn't look. Not said when `Upgrade` offers HTTP/2 (`h2c`): such a tunnel would
    /// carry requests past the routes, so the field must be removed on the way.
    Upgrade,
}

/// Why a request is turned away. The connection must be closed after the answer, as the rest of it can't be framed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rejection {
    /// The status code of the answer.
    pub status: u16,
    /// A metric label.
    pub reason: &'static str,
    /// For the client: what is wrong and the cure, without a full stop.
    pub message: &'static str,
}

/// The whole answer to a rejected request, ready to be written before the connection is closed.
pub fn rejection_response(rejection: &Rejection) -> Vec<u8> {
    let Rejection { status, message, .. } = rejection;
    let phrase = match status {
        400 => "Bad Request",
        405 => "Method Not Allowed",
        408 => "Request Timeout",
        431 => "Request Header Fields Too Large",
        501 => "Not Implemented",
        505 => "HTTP Version Not Supported",
        _ => "Rejected",
    };
    // 9110, 15.5.6: a 405 names what is allowed.
    let allow = if *status == 405 { "Allow: GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS, TRACE\r\n" } else { "" };
    // 405 and 501 may be stored by a cache unless told otherwise (9110, 15.1).
    format!(
        "HTTP/1.1 {status} {phrase}\r\nConnection: close\r\nContent-Type: text/plain\r\nCache-Control: no-store\r\n\
         {allow}Content-Length: {}\r\n\r\n{message}\n",
        message.len() + 1
    )
    .into_bytes()
}

const fn reject(status: u16, reason: &'static str, message: &'static str) -> Rejection {
    Rejection { status, reason, message }
}

// In the order in which they are looked for.
const BARE_LF: Rejection =
    reject(400, "bare_lf", "a line of the request head ends with lf alone; end every line with cr lf");
const BARE_CR: Rejection = reject(400, "bare_cr", "a cr in the request head is not followed by lf; remove it");
const CONTROL_CHARACTER: Rejection =
    reject(400, "control_character", "there is a control character in the request head; remove or encode it");
const HEAD_TOO_LARGE: Rejection =
    reject(431, "head_too_large", "the request head is longer than 64 kib; send fewer or shorter fields");
const BAD_REQUEST_LINE: Rejection = reject(
    400,
    "bad_request_line",
    "the request does not begin with a method, a target and a version; send for example GET / HTTP/1.1",
);
const BAD_METHOD: Rejection =
    reject(400, "bad_method", "the method is not a token; use letters, for example GET or POST");
const CONNECT_METHOD: Rejection =
    reject(405, "connect_method", "CONNECT is not served here; send requests for the origin itself");
const BAD_VERSION: Rejection = reject(400, "bad_version", "the version cannot be read; send HTTP/1.1");
const UNSUPPORTED_VERSION: Rejection =
    reject(505, "bad_version", "this version of http is not served on this connection; send HTTP/1.1");
const BAD_TARGET: Rejection = reject(
    400,
    "bad_target",
    "the request target is not a path, an http url or (with OPTIONS) an asterisk; percent-encode spaces and remove the \
     fragment and user information",
);
const TOO_MANY_FIELDS: Rejection =
    reject(431, "too_many_fields", "the request has more than 100 header fields; send fewer");
const OBS_FOLD: Rejection =
    reject(400, "obs_fold", "a header line begins with white space; put every field on one line");
const BAD_FIELD_NAME: Rejection = reject(
    400,
    "bad_field_name",
    "a header line does not begin with a field name and a colon; remove spaces and other characters before the colon",
);
const BOTH_FRAMINGS: Rejection =
    reject(400, "both_framings", "both content-length and transfer-encoding are present; send only one of them");
const BAD_CONTENT_LENGTH: Rejection =
    reject(400, "bad_content_length", "content-length is not one plain decimal number; send it once, digits only");
const BAD_TRANSFER_ENCODING: Rejection = reject(
    400,
    "bad_transfer_encoding",
    "transfer-encoding does not frame the body; send it once, in http/1.1 only, with the value chunked",
);
const TRANSFER_CODING_UNSUPPORTED: Rejection = reject(
    501,
    "transfer_coding_unsupported",
    "the only transfer coding served is chunked; compress with content-encoding instead",
);
const MISSING_HOST: Rejection = reject(400, "missing_host", "the host field is missing; http/1.1 requires it");
const REPEATED_HOST: Rejection = reject(400, "repeated_host", "there is more than one host field; send exactly one");
const BAD_HOST: Rejection =
    reject(400, "bad_host", "the host field is not a host name or address with an optional port; correct it");
const HOST_MISMATCH: Rejection =
    reject(400, "host_mismatch", "the host field differs from the host of the request target; send the same in both");
const CONNECTION_HEADER: Rejection = reject(
    400,
    "connection_header",
    "the connection field has ten or more options or names a field that must reach the origin; list only close, \
     keep-alive, upgrade and the fields of this hop",
);
const UPGRADE_WITH_BODY: Rejection =
    reject(400, "upgrade_with_body", "a request that asks for an upgrade has a body; send it without one");

/// A field line of a head that [`scan`] has found to be right.
#[derive(Clone, Copy, Debug)]
pub struct Field<'a> {
    pub name: &'a [u8],
    /// Without the white space around it.
    pub value: &'a [u8],
    /// The whole line with its end.
    pub line: &'a [u8],
}

impl Field<'_> {
    /// `name`: in lower case.
    pub fn is(&self, name: &[u8]) -> bool {
        self.name.len() == name.len() && self.name.eq_ignore_ascii_case(name)
    }
}

/// The fields of a head that [`scan`] has found to be right, without the empty line that may precede it.
pub fn fields(head: &[u8]) -> impl Iterator<Item = Field<'_>> {
    let mut rest = memchr(b'\n', head).map_or(&[][..], |end| &head[end + 1..]);
    std::iter::from_fn(move || {
        let (line, after) = rest.split_at(memchr(b'\n', rest)? + 1);
        rest = after;
        // Names are short: `memchr` would cost more.
        let colon = line.iter().position(|&byte| byte == b':')?;
        Some(Field { name: &line[..colon], value: trim(&line[colon + 1..line.len() - 2]), line })
    })
}

/// Method, target and whether the version is 1.1, of such a head.
pub fn request_line_of(head: &[u8]) -> (&[u8], &[u8], bool) {
    let line = Lines(head).next().unwrap_or_default();
    let method = line.iter().position(|&byte| byte == b' ').unwrap_or_default();
    let target = line.iter().rposition(|&byte| byte == b' ').unwrap_or_default();
    (&line[..method], line.get(method + 1..target).unwrap_or_default(), line.ends_with(b"1.1"))
}

enum Progress {
    /// The head is so many bytes long.
    End(usize),
    /// No end yet, and nothing to look at again before this place.
    Scanned(usize),
}

/// Finds the empty line after the fields. Errors: the first byte that may stand nowhere in a head.
fn find_end(window: &[u8], mut at: usize) -> Result<Progress, Rejection> {
    if at == 0 && is_one_head(window) {
        return Ok(Progress::End(window.len()));
    }
    while let Some(distance) = memchr(b'\n', &window[at..]) {
        let lf = at + distance;
        // 9112, 2.2 lets a server take LF alone for a line end; a server that doesn't would see other lines.
        let line = &window[at..lf];
        let text = line.strip_suffix(b"\r");
        check_text(text.unwrap_or(line))?;
        if text.is_none() {
            return Err(BARE_LF);
        }
        at = lf + 1;
        match lf {
            // 9112, 2.2: an empty line before the request line is ignored, from clients that end a body with one too
            // many.
            1 => {}
            3 if window[1] == b'\n' => return Err(BAD_REQUEST_LINE),
            _ if window[lf - 2] == b'\n' => return Ok(Progress::End(at)),
            _ => {}
        }
    }
    // A CR at the very end waits for what follows it.
    let rest = &window[at..];
    let rest = rest.strip_suffix(b"\r").unwrap_or(rest);
    check_text(rest)?;
    Ok(Progress::Scanned(at + rest.len()))
}

/// The usual case at one glance: what has come is one whole head, and each byte may stand where it stands.
fn is_one_head(window: &[u8]) -> bool {
    // The last LF and what is before it are known, and LF at the very start would have no CR before it.
    let Some(rest) = window.strip_suffix(b"\n\r\n").filter(|rest| !matches!(rest, [] | [b'\r' | b'\n', ..])) else {
        return false;
    };
    let neighbours = rest.iter().zip(&window[1..]).zip(&window[2..]);
    // No early exit: the compiler makes whole vectors of it.
    !neighbours.fold(false, |wrong, ((&byte, &next), &after)| {
        let control = (byte < b' ') & (byte != b'\t') & (byte != b'\r') & (byte != b'\n') | (byte == 0x7f);
        let torn = (byte == b'\r') != (next == b'\n');
        let ends = (byte == b'\n') & (after == b'\n');
        wrong | control | torn | ends
    })
}

/// 9112, 2.2 (CR) and 9110, 5.5 (NUL and the other control characters, which are refused as well).
fn check_text(text: &[u8]) -> Result<(), Rejection> {
    let control = |byte: u8| (byte < b' ' && byte != b'\t') || byte == 0x7f;
    // No early exit: the compiler makes whole vectors of it.
    if !text.iter().fold(false, |found, &byte| found | control(byte)) {
        return Ok(());
    }
    let first = text.iter().find(|&&byte| control(byte));
    Err(if first == Some(&b'\r') { BARE_CR } else { CONTROL_CHARACTER })
}

/// Judges a whole head, whose line ends and characters are right.
fn judge(head: &[u8]) -> Result<Head, Rejection> {
    let mut lines = Lines(head.strip_prefix(b"\r\n").unwrap_or(head));
    let request = request_line(lines.next().unwrap_or_default())?;
    let mut fields = Fields::default();
    for (at, line) in lines.enumerate() {
        if at == MAX_FIELDS {
            return Err(TOO_MANY_FIELDS);
        }
        fields.take(line)?;
    }

    let length = fields.framing(&request)?;
    fields.check_host(&request)?;
    if fields.connection_options > MAX_CONNECTION_OPTIONS || fields.names_protected_field {
        return Err(CONNECTION_HEADER);
    }
    // 9110, 7.8: ignored in 1.0.
    let body = match length {
        length if !fields.upgrade || fields.upgrade_to_http2 || !request.http11 => length,
        BodyLength::None => BodyLength::Upgrade,
        // What an engine still has to read of the body it could take for the tunnel's first bytes, or the reverse.
        _ => return Err(UPGRADE_WITH_BODY),
    };
    Ok(Head {
        length: head.len(),
        body,
        keep_alive: !fields.close && (request.http11 || fields.keep_alive),
        idempotent: matches!(request.method, b"GET" | b"HEAD" | b"OPTIONS" | b"TRACE" | b"PUT" | b"DELETE"),
        says: fields.says,
    })
}

/// The lines of a head, without their line ends, up to the empty one.
struct Lines<'a>(&'a [u8]);

impl<'a> Iterator for Lines<'a> {
    type Item = &'a [u8];

    fn next(&mut self) -> Option<&'a [u8]> {
        let lf = memchr(b'\n', self.0)?;
        let line = self.0[..lf].strip_suffix(b"\r")?;
        self.0 = &self.0[lf + 1..];
        if line.is_empty() { None } else { Some(line) }
    }
}

struct Request<'a> {
    method: &'a [u8],
    /// The authority of a target in absolute form.
    authority: Option<&'a [u8]>,
    /// Version 1.1 rather than 1.0.
    http11: bool,
}

/// Reads `method SP target SP version` (9112, 3), where both spaces are single and nothing else is white space.
fn request_line(line: &[u8]) -> Result<Request<'_>, Rejection> {
    let method_end = memchr(b' ', line).ok_or(BAD_REQUEST_LINE)?;
    let (method, rest) = (&line[..method_end], &line[method_end + 1..]);
    if method.is_empty() || !method.iter().all(|&byte| is_token(byte)) {
        return Err(BAD_METHOD);
    }
    let target_end = rest.iter().rposition(|&byte| byte == b' ').ok_or(BAD_REQUEST_LINE)?;
    let (target, version) = (&rest[..target_end], &rest[target_end + 1..]);
    let http11 = match version {
        b"HTTP/1.1" => true,
        b"HTTP/1.0" => false,
        [b'H', b'T', b'T', b'P', b'/', b'0'..=b'9', b'.', b'0'..=b'9'] => return Err(UNSUPPORTED_VERSION),
        _ => return Err(BAD_VERSION),
    };
    // Its target is an authority (9112, 3.2.3), which nothing here routes by.
    if method == b"CONNECT" {
        return Err(CONNECT_METHOD);
    }
    Ok(Request { method, authority: authority(method, target)?, http11 })
}

/// Checks a target and finds its authority, if it is in absolute form (9112, 3.2).
///
/// Refused are white space, `#` (a fragment is never sent, and engines cut it off) and bytes that aren't UTF-8 (engines
/// escape them on the way). The rest that RFC 3986 wants percent-encoded, such as `|`, `{`, `"`, `^` or UTF-8, clients do
/// send, everybody reads it in the same way, and so it may pass.
fn authority<'a>(method: &[u8], target: &'a [u8]) -> Result<Option<&'a [u8]>, Rejection> {
    if target.iter().any(|byte| matches!(byte, b' ' | b'\t' | b'#')) || str::from_utf8(target).is_err() {
        return Err(BAD_TARGET);
    }
    match target {
        [b'/', ..] => Ok(None),
        b"*" if method == b"OPTIONS" => Ok(None),
        _ => {
            let after =
                strip_scheme(target, b"http://").or_else(|| strip_scheme(target, b"https://")).ok_or(BAD_TARGET)?;
            let authority = &after[..memchr2(b'/', b'?', after).unwrap_or(after.len())];
            if authority.is_empty() || !is_host(authority) { Err(BAD_TARGET) } else { Ok(Some(authority)) }
        }
    }
}

fn strip_scheme<'a>(target: &'a [u8], scheme: &[u8]) -> Option<&'a [u8]> {
    let (start, rest) = target.split_at_checked(scheme.len())?;
    start.eq_ignore_ascii_case(scheme).then_some(rest)
}

/// What is gathered from the fields; those that can occur in several lines are counted.
#[derive(Default)]
struct Fields<'a> {
    hosts: usize,
    host: &'a [u8],
    content_lengths: usize,
    content_length: &'a [u8],
    transfer_encodings: usize,
    /// The last line's value, whose last coding is the final one.
    transfer_encoding: &'a [u8],
    connection_options: usize,
    names_protected_field: bool,
    close: bool,
    keep_alive: bool,
    upgrade: bool,
    upgrade_to_http2: bool,
    says: Says,
}

impl<'a> Fields<'a> {
    fn take(&mut self, line: &'a [u8]) -> Result<(), Rejection> {
        let name_end = line.iter().position(|&byte| !is_token(byte));
        let (name, value) = match name_end {
            // 9112, 5.2: white space before the first field is the same.
            Some(0) if matches!(line[0], b' ' | b'\t') => return Err(OBS_FOLD),
            // 9112, 5.1: no white space before the colon.
            Some(end) if end > 0 && line[end] == b':' => (&line[..end], trim(&line[end + 1..])),
            _ => return Err(BAD_FIELD_NAME),
        };
        match name.len() {
            4 if name.eq_ignore_ascii_case(b"host") => {
                self.hosts += 1;
                self.host = value;
            }
            6 if name.eq_ignore_ascii_case(b"expect") => self.says.expect = true,
            6 if name.eq_ignore_ascii_case(b"accept") => self.says.events |= value.starts_with(b"text/event-stream"),
            7 if name.eq_ignore_ascii_case(b"upgrade") => {
                self.upgrade = true;
                self.upgrade_to_http2 |= list(value).any(is_http2);
            }
            10 if name.eq_ignore_ascii_case(b"connection") => list(value).for_each(|option| self.option(option)),
            14 if name.eq_ignore_ascii_case(b"content-length") => {
                self.content_lengths += 1;
                self.content_length = value;
            }
            17 if name.eq_ignore_ascii_case(b"transfer-encoding") => {
                self.transfer_encodings += 1;
                self.transfer_encoding = value;
            }
            _ => {}
        }
        Ok(())
    }

    /// 9110, 7.6.1: naming a field in `Connection` has every proxy remove it, so what routing, framing and the origin's
    /// view of the client depend on can't be named.
    fn option(&mut self, option: &[u8]) {
        const PROTECTED: [&[u8]; 7] = [
            b"host",
            b"forwarded",
            b"x-forwarded-for",
            b"x-forwarded-host",
            b"x-forwarded-proto",
            b"content-length",
            b"transfer-encoding",
        ];
        self.connection_options += 1;
        let (close, keep_alive) = (option.eq_ignore_ascii_case(b"close"), option.eq_ignore_ascii_case(b"keep-alive"));
        self.close |= close;
        self.keep_alive |= keep_alive;
        let upgrade = option.eq_ignore_ascii_case(b"upgrade");
        self.says.upgrade |= upgrade;
        self.says.hop_fields |= !(close || keep_alive || upgrade);
        self.names_protected_field |= PROTECTED.iter().any(|name| option.eq_ignore_ascii_case(name))
            || !option.iter().all(|&byte| is_token(byte));
    }

    /// 9112, 6.1 to 6.3. A length that is repeated or in a list is refused even when all agree.
    fn framing(&self, request: &Request<'_>) -> Result<BodyLength, Rejection> {
        match (self.content_lengths, self.transfer_encodings) {
            (0, 0) => Ok(BodyLength::None),
            (1, 0) => match decimal(self.content_length).ok_or(BAD_CONTENT_LENGTH)? {
                0 => Ok(BodyLength::None),
                length => Ok(BodyLength::Length(length)),
            },
            (_, 0) => Err(BAD_CONTENT_LENGTH),
            (0, _) if !request.http11 => Err(BAD_TRANSFER_ENCODING),
            (0, 1) if self.transfer_encoding.eq_ignore_ascii_case(b"chunked") => Ok(BodyLength::Chunked),
            (0, 1) => Err(judge_codings(self.transfer_encoding)),
            (0, _) => Err(BAD_TRANSFER_ENCODING),
            (_, _) => Err(BOTH_FRAMINGS),
        }
    }

    /// 9112, 3.2 to 3.2.2; 3.2.2 would have the target win over a differing Host.
    fn check_host(&self, request: &Request<'_>) -> Result<(), Rejection> {
        match self.hosts {
            0 if request.http11 => Err(MISSING_HOST),
            0 => Ok(()),
            1 if !is_host(self.host) => Err(BAD_HOST),
            1 if request.authority.is_some_and(|authority| !authority.eq_ignore_ascii_case(self.host)) => {
                Err(HOST_MISMATCH)
            }
            1 => Ok(()),
            _ => Err(REPEATED_HOST),
        }
    }
}

/// 9112, 6.1: other codings before a final `chunked` are legal but not served here (501); without it in the end, or with
/// it twice, the length of the body is unknown (400).
fn judge_codings(value: &[u8]) -> Rejection {
    let count = list(value).count();
    let legal = count > 1
        && list(value).enumerate().all(|(at, coding)| {
            coding.eq_ignore_ascii_case(b"chunked") == (at + 1 == count) && coding.iter().all(|&byte| is_token(byte))
        });
    if legal { TRANSFER_CODING_UNSUPPORTED } else { BAD_TRANSFER_ENCODING }
}

/// 9112, 3.2: `uri-host [ ":" port ]` of RFC 3986, 3.2.2, but for the comma, by which repeated fields are joined. Empty is
/// a valid value (9110, 7.2), which simple health checks send.
fn is_host(value: &[u8]) -> bool {
    let (valid, rest) = if let Some(literal) = value.strip_prefix(b"[") {
        let Some(end) = memchr(b']', literal) else { return false };
        let address = str::from_utf8(&literal[..end]).ok().and_then(|text| text.parse::<Ipv6Addr>().ok());
        (address.is_some(), &literal[end + 1..])
    } else {
        let (name, rest) = value.split_at(memchr(b':', value).unwrap_or(value.len()));
        (is_reg_name(name) && (rest.is_empty() || !name.is_empty()), rest)
    };
    valid && (rest.is_empty() || rest.strip_prefix(b":").is_some_and(is_port))
}

/// A registered name of RFC 3986 without the comma, or nothing.
fn is_reg_name(name: &[u8]) -> bool {
    let mut rest = name;
    while let Some((&byte, after)) = rest.split_first() {
        rest = match (byte, after) {
            (b'%', [high, low, after @ ..]) if high.is_ascii_hexdigit() && low.is_ascii_hexdigit() => after,
            (b'-' | b'.' | b'_' | b'~' | b'!' | b'$' | b'&' | b'\'' | b'(' | b')' | b'*' | b'+' | b';' | b'=', _) => {
                after
            }
            _ if byte.is_ascii_alphanumeric() => after,
            _ => return false,
        };
    }
    true
}

/// Nothing (RFC 3986, 3.2.3 allows `host:`), or a number that a port can be.
fn is_port(port: &[u8]) -> bool {
    port.is_empty() || (port.len() <= 5 && decimal(port).is_some_and(|port| port <= u16::MAX.into()))
}

/// `1*DIGIT` (9110, 8.6), at most 2^63 - 1, as origins keep lengths in signed numbers.
pub(crate) fn decimal(value: &[u8]) -> Option<u64> {
    if value.is_empty() {
        return None;
    }
    let number = value.iter().try_fold(0_u64, |number, byte| {
        let digit = byte.checked_sub(b'0').filter(|digit| *digit <= 9)?;
        number.checked_mul(10)?.checked_add(digit.into())
    })?;
    (number <= i64::MAX as u64).then_some(number)
}

/// The elements of a comma-separated list; empty ones don't count (9110, 5.6.1.2).
pub(crate) fn list(value: &[u8]) -> impl Iterator<Item = &[u8]> {
    value.split(|&byte| byte == b',').map(trim).filter(|element| !element.is_empty())
}

/// Whether a protocol of an `Upgrade` field is HTTP/2, whatever version follows the slash.
fn is_http2(protocol: &[u8]) -> bool {
    let name = &protocol[..memchr(b'/', protocol).unwrap_or(protocol.len())];
    [b"h2c".as_slice(), b"h2", b"http"].iter().any(|http2| name.eq_ignore_ascii_case(http2))
}

/// Without the spaces and tabs around it (9110, 5.6.3).
fn trim(mut value: &[u8]) -> &[u8] {
    while let [b' ' | b'\t', rest @ ..] = value {
        value = rest;
    }
    while let [rest @ .., b' ' | b'\t'] = value {
        value = rest;
    }
    value
}

/// Whether an origin may take one field name for another: servers that pass fields on as CGI variables take an underscore
/// for a hyphen. `known`: in any case, with hyphens.
pub(crate) fn reads_as(name: &[u8], known: &[u8]) -> bool {
    let same = |(a, b): (&u8, &u8)| a.eq_ignore_ascii_case(b) || (*a == b'_' && *b == b'-');
    name.len() == known.len() && name.iter().zip(known).all(same)
}

/// Whether a byte may stand in a token: a method, a field name, an option (9110, 5.6.2).
pub(crate) fn is_token(byte: u8) -> bool {
    TOKEN[usize::from(byte)]
}

const TOKEN: [bool; 256] = {
    let mut table = [false; 256];
    let mut byte: u8 = 0;
    while byte < 128 {
        table[byte as usize] = byte.is_ascii_alphanumeric();
        byte += 1;
    }
    let mut marks: &[u8] = b"!#$%&'*+-.^_`|~";
    while let [mark, rest @ ..] = marks {
        table[*mark as usize] = true;
        marks = rest;
    }
    table
};

#[cfg(test)]
mod tests {
    use super::{super::seeded::Xorshift, *};

    /// Reads a request as it would come in one piece.
    fn whole(bytes: impl AsRef<[u8]>) -> Scan {
        scan(bytes.as_ref(), 0)
    }

    /// Reads a request byte by byte, resuming, and checks that the answer stays what it is.
    fn dripped(bytes: &[u8]) -> Scan {
        let mut resume = 0;
        for end in 0..=bytes.len() {
            match scan(&bytes[..end], resume) {
                Scan::Incomplete { scanned } => {
                    assert!((resume..=end).contains(&scanned), "{scanned} after {resume}, with {end} bytes");
                    resume = scanned;
                }
                answer => return answer,
            }
        }
        Scan::Incomplete { scanned: resume }
    }

    /// Reads a request in two pieces, cut wherever it can be, and checks that the answer stays what it is.
    fn check_in_two(bytes: &[u8]) {
        let answer = whole(bytes);
        for cut in 0..bytes.len() {
            let in_two = match scan(&bytes[..cut], 0) {
                Scan::Incomplete { scanned } => scan(bytes, scanned),
                early => early,
            };
            assert_eq!(in_two, answer, "cut at {cut}: {}", bytes.escape_ascii());
        }
    }

    fn accepted(bytes: impl AsRef<[u8]>) -> Head {
        let bytes = bytes.as_ref();
        match whole(bytes) {
            Scan::Head(head) => head,
            other => panic!("{}: {other:?}", bytes.escape_ascii()),
        }
    }

    fn check_rejected(bytes: impl AsRef<[u8]>, status: u16, reason: &str) {
        let bytes = bytes.as_ref();
        let shown = bytes[..bytes.len().min(200)].escape_ascii().to_string();
        match whole(bytes) {
            Scan::Rejected(rejection) => assert_eq!((rejection.status, rejection.reason), (status, reason), "{shown}"),
            other => panic!("{shown}: {other:?}"),
        }
        if bytes.len() < 4096 {
            assert_eq!(dripped(bytes), whole(bytes), "{shown}");
            check_in_two(bytes);
        }
    }

    fn check_accepted(bytes: impl AsRef<[u8]>, body: BodyLength, keep_alive: bool) {
        let bytes = bytes.as_ref();
        let head = accepted(bytes);
        assert_eq!((head.body, head.keep_alive), (body, keep_alive), "{}", bytes.escape_ascii());
        assert_eq!(dripped(bytes), Scan::Head(head), "{}", bytes.escape_ascii());
        check_in_two(bytes);
        for cut in 0..head.length {
            assert!(matches!(whole(&bytes[..cut]), Scan::Incomplete { .. }), "{cut}: {}", bytes.escape_ascii());
        }
    }

    /// A 1.1 request with these field lines after its Host.
    fn with(fields: &str) -> String {
        format!("POST / HTTP/1.1\r\nHost: a\r\n{fields}\r\n")
    }

    #[test]
    fn heads_that_can_be_read_in_one_way_pass() {
        use BodyLength::{Chunked, Length, None, Upgrade};
        let get = "GET / HTTP/1.1\r\nHost: a\r\n";
        for (request, body, keep_alive) in [
            (format!("{get}\r\n"), None, true),
            (format!("\r\n{get}\r\n"), None, true),
            (format!("{get}Connection: close\r\n\r\n"), None, false),
            (format!("{get}CONNECTION: te ,, CLOSE\r\n\r\n"), None, false),
            (format!("{get}connection: keep-alive\r\nconnection: close\r\n\r\n"), None, false),
            ("GET / HTTP/1.0\r\n\r\n".into(), None, false),
            ("GET / HTTP/1.0\r\nConnection: Keep-Alive\r\n\r\n".into(), None, true),
            ("POST / HTTP/1.0\r\nContent-Length: 7\r\n\r\n1234567".into(), Length(7), false),
            ("GET / HTTP/1.0\r\nUpgrade: websocket\r\nConnection: upgrade\r\n\r\n".into(), None, false),
            (with("Content-Length: 0\r\n"), None, true),
            (with("content-length:\t 0042 \t\r\n"), Length(42), true),
            (with("Content-Length: 9223372036854775807\r\n"), Length(i64::MAX as u64), true),
            (with("Transfer-Encoding: chunked\r\n"), Chunked, true),
            (with("transfer-encoding:CHUNKED \r\n"), Chunked, true),
            (with("Upgrade: websocket\r\nConnection: Upgrade\r\n"), Upgrade, true),
            (with("Upgrade: websocket\r\nConnection: Upgrade\r\nContent-Length: 0\r\n"), Upgrade, true),
            (with("Upgrade: websocket\r\n"), Upgrade, true),
            (with("Upgrade: h2c\r\nConnection: Upgrade, HTTP2-Settings\r\nHTTP2-Settings: AA\r\n"), None, true),
            (with("Upgrade: websocket, H2C\r\n"), None, true),
            (with("Upgrade: HTTP/2.0\r\n"), None, true),
            (with("Upgrade: h2c\r\nContent-Length: 3\r\n"), Length(3), true),
            (with("X: caf\u{e9}\tand\ttabs \r\nEmpty:\r\n!#$%&'*+-.^_`|~: 1\r\n"), None, true),
            (with("Connection: 1,2,3,4,5,6,7,8,9\r\n"), None, true),
        ] {
            check_accepted(&request, body, keep_alive);
        }
    }

    #[test]
    fn what_follows_a_head_is_left_alone() {
        let head = "GET / HTTP/1.1\r\nHost: a\r\n\r\n";
        for following in ["\n", "\0\r\r", "GET / HTTP/1.1\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n"] {
            assert_eq!(whole(format!("{head}{following}")), whole(head), "{following:?}");
        }
        assert_eq!(accepted(head).length, head.len());
    }

    #[test]
    fn methods_that_can_be_sent_twice_are_known() {
        for (method, idempotent) in
            [("GET", true), ("HEAD", true), ("PUT", true), ("DELETE", true), ("POST", false), ("get", false)]
        {
            let head = accepted(format!("{method} / HTTP/1.1\r\nHost: a\r\n\r\n"));
            assert_eq!(head.idempotent, idempotent, "{method}");
        }
    }

    /// Every row of the project's table of bad inputs that is about the head of an HTTP/1 request.
    #[test]
    fn the_table_of_bad_inputs_holds() {
        let many = |count: usize| (0..count).map(|at| format!("F{at}: x\r\n")).collect::<String>();
        for (request, status, reason) in [
            // Content-Length with Transfer-Encoding.
            (with("Content-Length: 5\r\nTransfer-Encoding: chunked\r\n"), 400, "both_framings"),
            (with("Transfer-Encoding: chunked\r\nContent-Length: x\r\n"), 400, "both_framings"),
            // Transfer-Encoding that is not finally chunked; on 1.0; lengths that differ.
            (with("Transfer-Encoding: gzip\r\n"), 400, "bad_transfer_encoding"),
            (with("Transfer-Encoding: chunked, gzip\r\n"), 400, "bad_transfer_encoding"),
            (with("Transfer-Encoding: chunked, chunked\r\n"), 400, "bad_transfer_encoding"),
            (with("Transfer-Encoding: , chunked\r\n"), 400, "bad_transfer_encoding"),
            (with("Transfer-Encoding: chunked,\r\n"), 400, "bad_transfer_encoding"),
            (with("Transfer-Encoding: xchunked\r\n"), 400, "bad_transfer_encoding"),
            (with("Transfer-Encoding: \"chunked\"\r\n"), 400, "bad_transfer_encoding"),
            (with("Transfer-Encoding: chunked;q=1\r\n"), 400, "bad_transfer_encoding"),
            (with("Transfer-Encoding:\r\n"), 400, "bad_transfer_encoding"),
            (with("Transfer-Encoding: chunked\r\ntransfer-encoding: chunked\r\n"), 400, "bad_transfer_encoding"),
            (with("Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n"), 400, "bad_transfer_encoding"),
            (with("Transfer-Encoding: gzip, chunked\r\n"), 501, "transfer_coding_unsupported"),
            ("POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n".into(), 400, "bad_transfer_encoding"),
            (with("Content-Length: 5\r\nContent-Length: 6\r\n"), 400, "bad_content_length"),
            (with("Content-Length: 5\r\nContent-Length: 5\r\n"), 400, "bad_content_length"),
            (with("Content-Length: 5, 5\r\n"), 400, "bad_content_length"),
            (with("Content-Length: +5\r\n"), 400, "bad_content_length"),
            (with("Content-Length: -0\r\n"), 400, "bad_content_length"),
            (with("Content-Length: 0x5\r\n"), 400, "bad_content_length"),
            (with("Content-Length: 5 5\r\n"), 400, "bad_content_length"),
            (with("Content-Length: 5_0\r\n"), 400, "bad_content_length"),
            (with("Content-Length:\r\n"), 400, "bad_content_length"),
            (with("Content-Length: 9223372036854775808\r\n"), 400, "bad_content_length"),
            (with("Content-Length: 99999999999999999999999\r\n"), 400, "bad_content_length"),
            // 1.1 without Host.
            ("GET / HTTP/1.1\r\n\r\n".into(), 400, "missing_host"),
            // Two Hosts, user information, a Host that differs from the target's authority.
            (with("Host: a\r\n"), 400, "repeated_host"),
            (with("hOST: b\r\n"), 400, "repeated_host"),
            ("GET / HTTP/1.0\r\nHost: a\r\nHost: a\r\n\r\n".into(), 400, "repeated_host"),
            ("GET / HTTP/1.1\r\nHost: u@a\r\n\r\n".into(), 400, "bad_host"),
            ("GET http://b/ HTTP/1.1\r\nHost: a\r\n\r\n".into(), 400, "host_mismatch"),
            ("GET http://a:80/ HTTP/1.1\r\nHost: a\r\n\r\n".into(), 400, "host_mismatch"),
            ("GET http://a/ HTTP/1.1\r\nHost:\r\n\r\n".into(), 400, "host_mismatch"),
            ("GET http://u@a/ HTTP/1.1\r\nHost: a\r\n\r\n".into(), 400, "bad_target"),
            // LF alone, a space in the target.
            ("GET / HTTP/1.1\nHost: a\r\n\r\n".into(), 400, "bare_lf"),
            ("GET / HTTP/1.1\r\nHost: a\n\r\n".into(), 400, "bare_lf"),
            ("GET / HTTP/1.1\r\nHost: a\r\n\n".into(), 400, "bare_lf"),
            ("GET / HTTP/1.1\r\nHost: a\n\n".into(), 400, "bare_lf"),
            ("\nGET / HTTP/1.1\r\nHost: a\r\n\r\n".into(), 400, "bare_lf"),
            ("GET /a b HTTP/1.1\r\nHost: a\r\n\r\n".into(), 400, "bad_target"),
            ("GET  / HTTP/1.1\r\nHost: a\r\n\r\n".into(), 400, "bad_target"),
            ("GET /  HTTP/1.1\r\nHost: a\r\n\r\n".into(), 400, "bad_target"),
            // Folded lines, space before the colon, NUL, an empty name.
            (with("A: b\r\n c\r\n"), 400, "obs_fold"),
            (with("A: b\r\n\tc\r\n"), 400, "obs_fold"),
            ("GET / HTTP/1.1\r\n Host: a\r\n\r\n".into(), 400, "obs_fold"),
            (with("A : b\r\n"), 400, "bad_field_name"),
            (with("Transfer-Encoding\t: chunked\r\n"), 400, "bad_field_name"),
            (with(": b\r\n"), 400, "bad_field_name"),
            (with("A\r\n"), 400, "bad_field_name"),
            (with("A;B: c\r\n"), 400, "bad_field_name"),
            (with("\u{e9}: c\r\n"), 400, "bad_field_name"),
            (with("A: b\0c\r\n"), 400, "control_character"),
            (with("A: b\x0bc\r\n"), 400, "control_character"),
            (with("A: b\x7fc\r\n"), 400, "control_character"),
            (with("Transfer-Encoding: \x0bchunked\r\n"), 400, "control_character"),
            (with("A: b\rc\r\n"), 400, "bare_cr"),
            (with("A: b\r\r\n"), 400, "bare_cr"),
            // Over 100 fields, over 64 KiB.
            (with(&many(100)), 431, "too_many_fields"),
            (with(&format!("A: {}\r\n", "x".repeat(MAX_HEAD))), 431, "head_too_large"),
            (format!("GET /{}", "x".repeat(MAX_HEAD)), 431, "head_too_large"),
            // Connection naming Host or X-Forwarded-For; ten options.
            (with("Connection: Host\r\n"), 400, "connection_header"),
            (with("Connection: close, x-forwarded-FOR\r\n"), 400, "connection_header"),
            (with("Connection: close\r\nConnection: Content-Length\r\n"), 400, "connection_header"),
            (with("Connection: transfer-encoding\r\n"), 400, "connection_header"),
            (with("Connection: \"host\"\r\n"), 400, "connection_header"),
            (with("Connection: 1,2,3,4,5,6,7,8,9,10\r\n"), 400, "connection_header"),
            (with("Connection: 1,2,3,4,5\r\nConnection: 6,7,8,9,10\r\n"), 400, "connection_header"),
            // Upgrade with a body.
            (with("Upgrade: websocket\r\nContent-Length: 1\r\n"), 400, "upgrade_with_body"),
            (with("Upgrade: foo\r\nTransfer-Encoding: chunked\r\n"), 400, "upgrade_with_body"),
        ] {
            check_rejected(&request, status, reason);
        }
        assert_eq!(accepted(with(&many(99))).body, BodyLength::None);
    }

    #[test]
    fn request_lines_that_are_none_are_rejected() {
        for (line, status, reason) in [
            ("GET", 400, "bad_request_line"),
            ("GET /", 400, "bad_request_line"),
            ("\r\n\r\nGET / HTTP/1.1", 400, "bad_request_line"),
            (" GET / HTTP/1.1", 400, "bad_method"),
            ("G@T / HTTP/1.1", 400, "bad_method"),
            ("GET\t/ HTTP/1.1", 400, "bad_method"),
            ("CONNECT a:443 HTTP/1.1", 405, "connect_method"),
            ("GET / HTTP/2.0", 505, "bad_version"),
            ("GET / HTTP/1.2", 505, "bad_version"),
            ("GET / HTTP/0.9", 505, "bad_version"),
            ("PRI * HTTP/2.0", 505, "bad_version"),
            ("GET / http/1.1", 400, "bad_version"),
            ("GET / HTTP/1.10", 400, "bad_version"),
            ("GET / HTTP/1.1 ", 400, "bad_version"),
            ("GET * HTTP/1.1", 400, "bad_target"),
            ("GET a HTTP/1.1", 400, "bad_target"),
            ("GET a:80 HTTP/1.1", 400, "bad_target"),
            ("GET ?q HTTP/1.1", 400, "bad_target"),
            ("GET http:a HTTP/1.1", 400, "bad_target"),
            ("GET http:///a HTTP/1.1", 400, "bad_target"),
            ("GET http://a\\b/ HTTP/1.1", 400, "bad_target"),
            ("GET ftp://a/ HTTP/1.1", 400, "bad_target"),
            ("GET /#f HTTP/1.1", 400, "bad_target"),
            ("GET /\t HTTP/1.1", 400, "bad_target"),
            ("\x16\x03\x01\x02\0\x01", 400, "control_character"),
        ] {
            check_rejected(format!("{line}\r\nHost: a\r\n\r\n"), status, reason);
        }
        check_rejected(b"GET /\xff HTTP/1.1\r\nHost: a\r\n\r\n", 400, "bad_target");
    }

    #[test]
    fn targets_that_clients_send_pass() {
        for line in [
            "GET /a?b=c|d{e}^\"<f>`\\ HTTP/1.1",
            "GET /caf\u{e9} HTTP/1.1",
            "GET //b/ HTTP/1.1",
            "GET /?http://b/ HTTP/1.1",
            "OPTIONS * HTTP/1.1",
            "GET http://a HTTP/1.1",
            "GET HTTPS://A/b?c HTTP/1.1",
            "GET http://a?b HTTP/1.1",
        ] {
            check_accepted(format!("{line}\r\nHost: a\r\n\r\n"), BodyLength::None, true);
        }
    }

    #[test]
    fn hosts_are_names_or_addresses_with_an_optional_port() {
        for (host, valid) in [
            ("", true),
            ("a.example", true),
            ("A_b-1.example:8080", true),
            ("a:", true),
            ("a%2Db", true),
            ("127.0.0.1:65535", true),
            ("[::1]", true),
            ("[::ffff:1.2.3.4]:80", true),
            (":80", false),
            ("a:65536", false),
            ("a:+1", false),
            ("a:000080", false),
            ("a:80:81", false),
            ("a b", false),
            ("a,b", false),
            ("a/b", false),
            ("a\\b", false),
            ("a%2", false),
            ("a#b", false),
            ("caf\u{e9}", false),
            ("::1", false),
            ("[::1", false),
            ("[::1]x", false),
            ("[1.2.3.4]", false),
            ("[]", false),
        ] {
            let request = format!("GET / HTTP/1.1\r\nHost: {host}\r\n\r\n");
            if valid {
                check_accepted(&request, BodyLength::None, true);
            } else {
                check_rejected(&request, 400, "bad_host");
            }
        }
    }

    #[test]
    fn a_preface_of_http2_is_told_from_its_lookalikes() {
        for cut in 0..PREFACE.len() {
            assert_eq!(whole(&PREFACE[..cut]), Scan::Incomplete { scanned: 0 });
        }
        assert_eq!(dripped(PREFACE), Scan::Http2Preface);
        assert_eq!(whole([PREFACE, b"\0\0\0\x04"].concat()), Scan::Http2Preface);
        check_rejected("PRI * HTTP/2.0\r\n\r\nSM\r\n\n", 505, "bad_version");
        check_accepted("PRI /a HTTP/1.1\r\nHost: a\r\n\r\n", BodyLength::None, true);
    }

    #[test]
    fn a_head_of_exactly_the_limit_passes_and_one_more_byte_does_not() {
        let request = |padding: usize| with(&format!("A: {}\r\n", "x".repeat(padding)));
        let padding = MAX_HEAD - request(0).len();
        assert_eq!(accepted(request(padding)).length, MAX_HEAD);
        check_rejected(request(padding + 1), 431, "head_too_large");
        assert_eq!(dripped(request(padding + 1).as_bytes()), Scan::Rejected(HEAD_TOO_LARGE));
        assert_eq!(dripped(request(padding).as_bytes()), whole(request(padding)));
    }

    #[test]
    fn every_answer_is_whole_and_says_what_to_do() {
        for rejection in [
            BARE_LF,
            BARE_CR,
            CONTROL_CHARACTER,
            HEAD_TOO_LARGE,
            BAD_REQUEST_LINE,
            BAD_METHOD,
            CONNECT_METHOD,
            BAD_VERSION,
            UNSUPPORTED_VERSION,
            BAD_TARGET,
            TOO_MANY_FIELDS,
            OBS_FOLD,
            BAD_FIELD_NAME,
            BOTH_FRAMINGS,
            BAD_CONTENT_LENGTH,
            BAD_TRANSFER_ENCODING,
            TRANSFER_CODING_UNSUPPORTED,
            MISSING_HOST,
            REPEATED_HOST,
            BAD_HOST,
            HOST_MISMATCH,
            CONNECTION_HEADER,
            UPGRADE_WITH_BODY,
        ] {
            let bytes = rejection_response(&rejection);
            let mut fields = [httparse::EMPTY_HEADER; 8];
            let mut response = httparse::Response::new(&mut fields);
            let length = response.parse(&bytes).unwrap().unwrap();
            assert_eq!(response.code, Some(rejection.status));
            assert_ne!(response.reason, Some("Rejected"));
            let field = |name| response.headers.iter().find(|field| field.name == name).map(|field| field.value);
            assert_eq!(field("Connection"), Some(b"close".as_slice()));
            assert_eq!(field("Allow").is_some(), rejection.status == 405);
            let body = str::from_utf8(&bytes[length..]).unwrap();
            assert_eq!(field("Content-Length"), Some(body.len().to_string().as_bytes()));
            assert_eq!(body, format!("{}\n", rejection.message));
        }
    }

    /// Reads a head with the engine's parser and checks that it frames the same.
    fn check_against_httparse(bytes: &[u8], head: Head) {
        let shown = bytes.escape_ascii();
        let mut fields = [httparse::EMPTY_HEADER; MAX_FIELDS];
        let mut request = httparse::Request::new(&mut fields);
        assert_eq!(request.parse(bytes), Ok(httparse::Status::Complete(head.length)), "{shown}");
        let values = |name: &str| -> Vec<&str> {
            let named = request.headers.iter().filter(|field| field.name.eq_ignore_ascii_case(name));
            named.map(|field| str::from_utf8(field.value).unwrap()).collect()
        };
        let lengths = values("content-length");
        let codings = values("transfer-encoding");
        match head.body {
            BodyLength::Length(length) => {
                assert_eq!((lengths.len(), codings.len()), (1, 0), "{shown}");
                assert_eq!(lengths[0].parse(), Ok(length), "{shown}");
            }
            BodyLength::Chunked => {
                assert_eq!((lengths.len(), codings.len()), (0, 1), "{shown}");
                assert!(codings[0].eq_ignore_ascii_case("chunked"), "{shown}");
            }
            BodyLength::None | BodyLength::Upgrade => {
                assert!(codings.is_empty() && lengths.iter().all(|length| length.parse() == Ok(0)), "{shown}");
            }
        }
        let hosts = values("host").len();
        assert!(hosts == 1 || (hosts == 0 && request.version == Some(0)), "{shown}");
    }

    #[test]
    fn hostile_input_gets_one_answer_however_it_is_cut_and_what_passes_the_engine_frames_alike() {
        let mut random = Xorshift::from_env();
        let mut heads = 0;
        for round in 0..20_000 {
            let mut bytes = if round % 10 == 0 {
                random.bytes(80)
            } else {
                let lines = [
                    "Host: a\r\n",
                    "Content-Length: 5\r\n",
                    "Transfer-Encoding: chunked\r\n",
                    "Connection: close\r\n",
                    "Upgrade: websocket\r\n",
                    "A: b\r\n",
                    "\r\n",
                ];
                let mut request =
                    String::from(random.pick(&["GET / HTTP/1.1\r\n", "POST http://a/ HTTP/1.0\r\n", "\r\nPUT /"]));
                for _ in 0..random.below(5) {
                    request.push_str(random.pick(&lines));
                }
                (request + "Host: a\r\n\r\n").into_bytes()
            };
            if round % 4 != 0 {
                random.mutate(
                    &mut bytes,
                    &[b"\r\n", b"\n", b"\r", b"\0", b" ", b"\t", b":", b",", b"@", b"\xff", PREFACE],
                );
            }
            let answer = whole(&bytes);
            assert_eq!(dripped(&bytes), answer, "{}", bytes.escape_ascii());
            let mut cuts = [(); 3].map(|()| random.below(bytes.len() + 1));
            cuts.sort_unstable();
            let mut resume = 0;
            for cut in cuts {
                match scan(&bytes[..cut], resume) {
                    Scan::Incomplete { scanned } => resume = scanned,
                    early => assert_eq!(early, answer, "{cut}: {}", bytes.escape_ascii()),
                }
            }
            if let Scan::Head(head) = answer {
                heads += 1;
                check_against_httparse(&bytes, head);
            }
            // Whatever a caller says it has scanned, nothing panics.
            let _ = scan(&bytes, random.below(200));
        }
        assert!(heads > 1000, "only {heads} heads passed: the generator tests nothing");
    }
}
