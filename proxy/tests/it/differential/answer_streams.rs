//! What endpoints answer, rightly, doubtfully and wrongly.

/// All that an endpoint says to a request.
#[derive(Clone, Debug)]
pub(super) struct Answer {
    pub(super) name: String,
    pub(super) method: &'static str,
    pub(super) bytes: Vec<u8>,
}

impl Answer {
    /// Up to where it may be split. Bytes behind an answer's end must not come late: on a pooled connection nothing tells
    /// them from the answer to the next request (RFC 9112, section 6.3).
    pub(super) fn divisible(&self) -> usize {
        let head =
            self.bytes.windows(4).position(|window| window == b"\r\n\r\n").map_or(self.bytes.len(), |end| end + 3);
        if self.has_surplus() { head } else { self.bytes.len() }
    }

    fn has_surplus(&self) -> bool {
        self.method == "HEAD" || self.name.starts_with("surplus: ")
    }
}

/// Every answer of the table; names are unique.
pub(super) fn answers() -> Vec<Answer> {
    let all = [("GET", well_formed()), ("GET", doubtful()), ("HEAD", to_head())];
    let named =
        |method| move |(name, text): (&str, String)| Answer { name: name.to_owned(), method, bytes: latin1(&text) };
    all.into_iter().flat_map(|(method, table)| table.into_iter().map(named(method))).collect()
}

/// Each character is a byte.
fn latin1(text: &str) -> Vec<u8> {
    text.chars().map(|char| u8::try_from(char).unwrap()).collect()
}

fn ok(fields: &[&str], body: &str) -> String {
    answer("HTTP/1.1 200 OK", fields, body)
}

fn answer(line: &str, fields: &[&str], body: &str) -> String {
    let fields: String = fields.iter().map(|field| format!("{field}\r\n")).collect();
    format!("{line}\r\n{fields}\r\n{body}")
}

fn chunked(body: &str) -> String {
    ok(&["transfer-encoding: chunked"], body)
}

/// What everybody should take; the seeds of the answers that are made by mutation.
pub(super) fn well_formed() -> Vec<(&'static str, String)> {
    vec![
        ("a length", ok(&["content-length: 5"], "hello")),
        ("a length of 0", ok(&["content-length: 0"], "")),
        ("a length with zeros in front", ok(&["content-length: 0005"], "hello")),
        ("white space around a length", ok(&["content-length: \t5 "], "hello")),
        ("fields", ok(&["x-a: 1", "X-B:two words", "x-a: 3", "x-empty:", "content-length: 2"], "ab")),
        ("cookies", ok(&["set-cookie: a=1; path=/", "set-cookie: b=2", "content-length: 2"], "ab")),
        ("a field beyond ascii", ok(&["x-a: caf\u{e9}", "content-length: 1"], "x")),
        ("chunks", chunked("5\r\nhello\r\n6\r\n world\r\n0\r\n\r\n")),
        ("no chunks", chunked("0\r\n\r\n")),
        ("a chunk's size in capitals", chunked("A\r\n0123456789\r\n0\r\n\r\n")),
        ("zeros before a chunk's size", chunked("0005\r\nhello\r\n00\r\n\r\n")),
        ("a chunk extension", chunked("5;a=\"b;c\"\r\nhello\r\n0;d\r\n\r\n")),
        ("a trailer", chunked("5\r\nhello\r\n0\r\nx-sum: 1\r\n\r\n")),
        ("two trailers", chunked("1\r\nx\r\n0\r\nX-A: 1\r\nx-b:\r\n\r\n")),
        ("chunked in capitals", ok(&["Transfer-Encoding: CHUNKED"], "1\r\nx\r\n0\r\n\r\n")),
        ("until the end", ok(&[], "hello")),
        ("until the end, of nothing", ok(&[], "")),
        ("until the end, after close", ok(&["connection: close"], "hello")),
        ("a length and close", ok(&["content-length: 5", "connection: close"], "hello")),
        ("chunks and close", ok(&["transfer-encoding: chunked", "connection: close"], "1\r\nx\r\n0\r\n\r\n")),
        ("version 1.0", answer("HTTP/1.0 200 OK", &[], "hello")),
        ("version 1.0 with a length", answer("HTTP/1.0 200 OK", &["content-length: 5"], "hello")),
        (
            "version 1.0 that stays",
            answer("HTTP/1.0 200 OK", &["content-length: 5", "connection: keep-alive"], "hello"),
        ),
        ("no content", answer("HTTP/1.1 204 No Content", &[], "")),
        ("not modified", answer("HTTP/1.1 304 Not Modified", &["etag: \"a\""], "")),
        ("not modified, with a length", answer("HTTP/1.1 304 Not Modified", &["content-length: 5"], "")),
        ("not modified, chunked", answer("HTTP/1.1 304 Not Modified", &["transfer-encoding: chunked"], "")),
        ("reset content", answer("HTTP/1.1 205 Reset Content", &["content-length: 0"], "")),
        ("a redirect", answer("HTTP/1.1 302 Found", &["location: /x", "content-length: 0"], "")),
        ("an error", answer("HTTP/1.1 500 Internal Server Error", &["content-length: 4"], "oops")),
        ("a status nobody knows", answer("HTTP/1.1 299 Fine", &["content-length: 1"], "x")),
        ("a status of no class", answer("HTTP/1.1 999 Odd", &["content-length: 1"], "x")),
        ("no reason", answer("HTTP/1.1 200 ", &["content-length: 1"], "x")),
        ("no reason and no space", answer("HTTP/1.1 200", &["content-length: 1"], "x")),
        ("a reason of words and marks", answer("HTTP/1.1 200 Very (well) \"done\"", &["content-length: 1"], "x")),
        ("a hint first", format!("HTTP/1.1 103 Early Hints\r\nlink: </a>\r\n\r\n{}", ok(&["content-length: 1"], "x"))),
        (
            "two interim answers",
            format!("HTTP/1.1 102 Processing\r\n\r\nHTTP/1.1 103 Early Hints\r\n\r\n{}", ok(&[], "x")),
        ),
        ("continue that nobody waits for", format!("HTTP/1.1 100 Continue\r\n\r\n{}", ok(&["content-length: 1"], "x"))),
        ("a field of one hop", ok(&["connection: x-hop", "x-hop: 1", "x-end: 2", "content-length: 1"], "x")),
        ("keep-alive", ok(&["keep-alive: timeout=5", "connection: keep-alive", "content-length: 1"], "x")),
        ("an upgrade that is offered", ok(&["upgrade: h2c", "connection: upgrade", "content-length: 1"], "x")),
        (
            "a length of chunks that look like an answer",
            chunked("26\r\nHTTP/1.1 200 OK\r\ncontent-length: 1\r\n\r\nx\r\n0\r\n\r\n"),
        ),
    ]
}

fn to_head() -> Vec<(&'static str, String)> {
    vec![
        ("to head: a length", ok(&["content-length: 5"], "")),
        ("to head: chunked", chunked("")),
        ("to head: nothing said", ok(&[], "")),
        ("to head: a length in two lines", ok(&["content-length: 5", "content-length: 5"], "")),
        ("to head: two lengths", ok(&["content-length: 5", "content-length: 6"], "")),
        ("to head: both framings", ok(&["content-length: 5", "transfer-encoding: chunked"], "")),
        ("to head: no content", answer("HTTP/1.1 204 No Content", &[], "")),
        ("to head: not modified", answer("HTTP/1.1 304 Not Modified", &["content-length: 7"], "")),
        ("to head: a hint first", format!("HTTP/1.1 103 Early Hints\r\n\r\n{}", ok(&["content-length: 1"], ""))),
        ("to head: a body all the same", ok(&["content-length: 5"], "hello")),
        ("to head: chunks all the same", chunked("5\r\nhello\r\n0\r\n\r\n")),
        ("to head: another answer behind", ok(&["content-length: 5"], &ok(&["content-length: 0"], ""))),
        ("to head: version 1.0", answer("HTTP/1.0 200 OK", &["content-length: 5"], "")),
    ]
}

fn doubtful() -> Vec<(&'static str, String)> {
    let many = |count: usize| (0..count).map(|n| format!("x-{n}: 1")).collect::<Vec<_>>();
    let (few, more) = (many(99), many(140));
    let few: Vec<_> = ["content-length: 0"].into_iter().chain(few.iter().map(String::as_str)).collect();
    let more: Vec<_> = ["content-length: 0"].into_iter().chain(more.iter().map(String::as_str)).collect();
    let middle: Vec<_> = more[..120].to_vec();
    let long = format!("x-long: {}", "a".repeat(60_000));
    let extension = format!("1;{}\r\nx\r\n0\r\n\r\n", "e".repeat(17_000));
    let trailer = format!("0\r\nx-t: {}\r\n\r\n", "t".repeat(17_000));
    let next = ok(&["content-length: 8"], "poisoned");
    vec![
        // Lengths.
        ("a length in two lines", ok(&["content-length: 5", "Content-Length: 5"], "hello")),
        ("a length that is a list", ok(&["content-length: 5, 5"], "hello")),
        ("two lengths", ok(&["content-length: 5", "content-length: 6"], "hello!")),
        ("a list of two lengths", ok(&["content-length: 5, 6"], "hello!")),
        ("a length with a sign", ok(&["content-length: +5"], "hello")),
        ("a negative length", ok(&["content-length: -5"], "hello")),
        ("a length by 0x", ok(&["content-length: 0x5"], "hello")),
        ("a fraction", ok(&["content-length: 5.0"], "hello")),
        ("two numbers for a length", ok(&["content-length: 5 5"], "hello")),
        ("no number for a length", ok(&["content-length:"], "hello")),
        ("a length with a comma behind", ok(&["content-length: 5,"], "hello")),
        ("a length of 2^63", ok(&["content-length: 9223372036854775808"], "hello")),
        ("a length of 2^64 - 1", ok(&["content-length: 18446744073709551615"], "hello")),
        ("a length that wraps to 5", ok(&["content-length: 18446744073709551621"], "hello")),
        ("a body shorter than its length", ok(&["content-length: 50"], "hello")),
        ("surplus: a body longer than its length", ok(&["content-length: 3"], "hello")),
        ("surplus: another answer behind", ok(&["content-length: 5"], &format!("hello{next}"))),
        // Both framings, other codings.
        ("a length, then chunked", ok(&["content-length: 5", "transfer-encoding: chunked"], "5\r\nhello\r\n0\r\n\r\n")),
        ("chunked, then a length", ok(&["transfer-encoding: chunked", "content-length: 5"], "5\r\nhello\r\n0\r\n\r\n")),
        ("chunked twice", ok(&["transfer-encoding: chunked, chunked"], "5\r\nhello\r\n0\r\n\r\n")),
        (
            "chunked in two lines",
            ok(&["transfer-encoding: chunked", "transfer-encoding: chunked"], "5\r\nhello\r\n0\r\n\r\n"),
        ),
        ("gzip, chunked", ok(&["transfer-encoding: gzip, chunked"], "5\r\nhello\r\n0\r\n\r\n")),
        ("chunked, gzip", ok(&["transfer-encoding: chunked, gzip"], "hello")),
        ("gzip alone", ok(&["transfer-encoding: gzip"], "hello")),
        ("identity", ok(&["transfer-encoding: identity"], "hello")),
        ("identity and a length", ok(&["transfer-encoding: identity", "content-length: 5"], "hello")),
        ("an empty transfer-encoding", ok(&["transfer-encoding:"], "hello")),
        ("chunked in a list", ok(&["transfer-encoding: , chunked"], "1\r\nx\r\n0\r\n\r\n")),
        ("chunked in quotes", ok(&["transfer-encoding: \"chunked\""], "1\r\nx\r\n0\r\n\r\n")),
        ("chunked, misspelt", ok(&["transfer-encoding: xchunked"], "1\r\nx\r\n0\r\n\r\n")),
        ("chunked in 1.0", answer("HTTP/1.0 200 OK", &["transfer-encoding: chunked"], "1\r\nx\r\n0\r\n\r\n")),
        (
            "chunked in 1.0 that stays",
            answer("HTTP/1.0 200 OK", &["connection: keep-alive", "transfer-encoding: chunked"], "1\r\nx\r\n0\r\n\r\n"),
        ),
        ("a space before chunked's colon", ok(&["transfer-encoding : chunked"], "1\r\nx\r\n0\r\n\r\n")),
        // Chunks and trailers.
        ("a space behind a chunk's size", chunked("5 \r\nhello\r\n0\r\n\r\n")),
        ("a space before a chunk's size", chunked(" 5\r\nhello\r\n0\r\n\r\n")),
        ("a chunk's size with a sign", chunked("+5\r\nhello\r\n0\r\n\r\n")),
        ("a chunk's size by 0x", chunked("0x5\r\nhello\r\n0\r\n\r\n")),
        ("an empty chunk's size", chunked("\r\nhello\r\n0\r\n\r\n")),
        ("a chunk of 2^64", chunked("10000000000000000\r\nhello")),
        ("seventeen zeros before a chunk's size", chunked("000000000000000005\r\nhello\r\n0\r\n\r\n")),
        ("a chunk's size ended by lf", chunked("5\nhello\r\n0\r\n\r\n")),
        ("a chunk ended by lf", chunked("5\r\nhello\n0\r\n\r\n")),
        ("a chunk longer than its size", chunked("5\r\nhello!\r\n0\r\n\r\n")),
        ("lf in a chunk extension", chunked("5;a\nb\r\nhello\r\n0\r\n\r\n")),
        ("nul in a chunk extension", chunked("5;a\0b\r\nhello\r\n0\r\n\r\n")),
        ("an endless chunk extension", chunked(&extension)),
        ("a body ended by lf", chunked("1\r\nx\r\n0\r\n\n\r\n")),
        ("a trailer that frames", chunked("0\r\ncontent-length: 5\r\n\r\n")),
        ("a trailer that sets a cookie", chunked("0\r\nset-cookie: a=1\r\n\r\n")),
        ("a trailer without a colon", chunked("0\r\nx-a\r\n\r\n")),
        ("a trailer with a space before the colon", chunked("0\r\nx-a : 1\r\n\r\n")),
        ("a folded trailer", chunked("0\r\nx-a: 1\r\n 2\r\n\r\n")),
        ("a trailer ended by lf", chunked("0\r\nx-a: 1\n\r\n")),
        ("a trailer ended by lf, and an empty line more", chunked("0\r\nx-a: 1\n\r\n\r\n")),
        ("a trailer without end", chunked(&trailer)),
        ("chunks that stop short", chunked("5\r\nhello\r\n")),
        ("a chunk that stops short", chunked("ff\r\nhello")),
        ("trailers that stop short", chunked("0\r\nx-a: 1\r\n")),
        ("surplus: something behind the last chunk", chunked("0\r\n\r\nhello")),
        // Answers without a body that have one.
        (
            "surplus: no content, with a length and a body",
            answer("HTTP/1.1 204 No Content", &["content-length: 5"], "hello"),
        ),
        (
            "surplus: no content, with chunks",
            answer("HTTP/1.1 204 No Content", &["transfer-encoding: chunked"], "0\r\n\r\n"),
        ),
        ("surplus: not modified, with a body", answer("HTTP/1.1 304 Not Modified", &["content-length: 5"], "hello")),
        ("no content, with a length of 0", answer("HTTP/1.1 204 No Content", &["content-length: 0"], "")),
        (
            "a hint with a length",
            format!("HTTP/1.1 103 Early Hints\r\ncontent-length: 5\r\n\r\n{}", ok(&["content-length: 1"], "x")),
        ),
        (
            "a hint with a body",
            format!("HTTP/1.1 103 Early Hints\r\ncontent-length: 5\r\n\r\nhello{}", ok(&["content-length: 1"], "x")),
        ),
        ("a hint and no more", "HTTP/1.1 103 Early Hints\r\n\r\n".into()),
        (
            "another protocol, unasked",
            "HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: echo\r\n\r\n".into(),
        ),
        // Status lines.
        ("version 1.2", answer("HTTP/1.2 200 OK", &["content-length: 1"], "x")),
        ("version 2.0", answer("HTTP/2.0 200 OK", &["content-length: 1"], "x")),
        ("version 0.9", "hello".into()),
        ("another protocol", "SSH-2.0-OpenSSH_9.2\r\n".into()),
        ("a version in small letters", answer("http/1.1 200 OK", &["content-length: 1"], "x")),
        ("a status of two digits", answer("HTTP/1.1 20 OK", &["content-length: 1"], "x")),
        ("a status of four digits", answer("HTTP/1.1 2000 OK", &["content-length: 1"], "x")),
        ("a status of letters", answer("HTTP/1.1 abc OK", &["content-length: 1"], "x")),
        ("a status below 100", answer("HTTP/1.1 099 Low", &["content-length: 1"], "x")),
        ("two spaces before the status", answer("HTTP/1.1  200 OK", &["content-length: 1"], "x")),
        ("a space in front", answer(" HTTP/1.1 200 OK", &["content-length: 1"], "x")),
        ("an empty line first", format!("\r\n{}", ok(&["content-length: 1"], "x"))),
        ("a reason beyond ascii", answer("HTTP/1.1 200 caf\u{e9}", &["content-length: 1"], "x")),
        ("nul in the reason", answer("HTTP/1.1 200 O\0K", &["content-length: 1"], "x")),
        ("cr in the reason", answer("HTTP/1.1 200 O\rK", &["content-length: 1"], "x")),
        // Fields.
        ("lf for a line's end", "HTTP/1.1 200 OK\ncontent-length: 1\n\nx".into()),
        ("lf between fields", ok(&["x-a: 1\nx-b: 2", "content-length: 1"], "x")),
        ("cr between fields", ok(&["x-a: 1\rx-b: 2", "content-length: 1"], "x")),
        ("a folded field", ok(&["x-a: 1", " 2", "content-length: 1"], "x")),
        ("a folded first field", ok(&[" x-a: 1", "content-length: 1"], "x")),
        ("a space before a colon", ok(&["x-a : 1", "content-length: 1"], "x")),
        ("a field without a colon", ok(&["x-a", "content-length: 1"], "x")),
        ("a field without a name", ok(&[": 1", "content-length: 1"], "x")),
        ("nul in a field", ok(&["x-a: \0", "content-length: 1"], "x")),
        ("escape in a field", ok(&["x-a: \x1b", "content-length: 1"], "x")),
        ("a name with a space", ok(&["x a: 1", "content-length: 1"], "x")),
        ("a name beyond ascii", ok(&["x\u{e9}: 1", "content-length: 1"], "x")),
        ("bytes that are no utf-8 in a field", ok(&["x-a: \u{ff}\u{fe}", "content-length: 1"], "x")),
        ("a hundred fields", ok(&few, "")),
        ("120 fields", ok(&middle, "")),
        ("141 fields", ok(&more, "")),
        ("60 000 bytes in a field", ok(&[&long, "content-length: 1"], "x")),
        ("connection that names the length", ok(&["connection: content-length", "content-length: 1"], "x")),
        (
            "proxy-authenticate",
            answer(
                "HTTP/1.1 407 Proxy Authentication Required",
                &["proxy-authenticate: Basic", "content-length: 1"],
                "x",
            ),
        ),
        // Cut off.
        ("nothing", String::new()),
        ("half a status line", "HTTP/1.1 20".into()),
        ("half a head", "HTTP/1.1 200 OK\r\ncontent-le".into()),
        ("a head without its empty line", "HTTP/1.1 200 OK\r\ncontent-length: 0\r\n".into()),
    ]
}
