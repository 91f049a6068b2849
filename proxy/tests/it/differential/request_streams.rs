//! What clients send, rightly, doubtfully and wrongly: byte streams, each of one request or more.

use crate::http_bad_input::{Case, bad_heads, head};

/// What a client says, up to where the test adds a last request of its own.
#[derive(Clone, Debug)]
pub(super) struct Stream {
    pub(super) name: String,
    pub(super) bytes: Vec<u8>,
}

/// A request line, fields behind `Host`, and what follows the head.
fn request(line: &str, fields: &[&str], body: &str) -> Vec<u8> {
    let mut bytes = head(line, &[&["host: a"], fields].concat());
    bytes.extend(body.bytes());
    bytes
}

fn get(fields: &[&str]) -> Vec<u8> {
    request("GET /get HTTP/1.1", fields, "")
}

fn post(fields: &[&str], body: &str) -> Vec<u8> {
    request("POST /post HTTP/1.1", fields, body)
}

fn chunked(body: &str) -> Vec<u8> {
    post(&["transfer-encoding: chunked"], body)
}

fn line(line: &str) -> Vec<u8> {
    request(line, &[], "")
}

fn host(host: &str) -> Vec<u8> {
    head("GET /host HTTP/1.1", &[&format!("host: {host}")])
}

/// Every stream of the table; names are unique.
pub(super) fn streams() -> Vec<Stream> {
    let mut all = well_formed();
    all.extend(doubtful());
    let own = all.into_iter().map(|(name, bytes)| Stream { name: name.to_owned(), bytes });
    let bad = bad_heads().into_iter().map(|Case(name, bytes, ..)| Stream { name: format!("bad: {name}"), bytes });
    own.chain(bad).collect()
}

/// What everybody should take; the seeds of the streams that are made by mutation.
pub(super) fn well_formed() -> Vec<(&'static str, Vec<u8>)> {
    let next = "GET /next HTTP/1.1\r\nhost: b\r\n\r\n";
    vec![
        ("a get", get(&[])),
        ("a get with fields", get(&["accept: */*", "x-a: 1", "X-B: two words"])),
        ("a get with a query", line("GET /a/b%20c?d=e&f=%2F HTTP/1.1")),
        ("a head", line("HEAD /head HTTP/1.1")),
        ("a delete", line("DELETE /1 HTTP/1.1")),
        ("a put", request("PUT /1 HTTP/1.1", &["content-length: 3"], "abc")),
        ("a patch", request("PATCH /1 HTTP/1.1", &["content-length: 2"], "{}")),
        ("options of a path", line("OPTIONS /x HTTP/1.1")),
        ("a method nobody knows", line("BREW /pot HTTP/1.1")),
        ("a method in lower case", line("get / HTTP/1.1")),
        ("every mark of a token as a method", line("!#$%&'*+-.^_`|~ / HTTP/1.1")),
        ("a get with a body", request("GET /get HTTP/1.1", &["content-length: 4"], "body")),
        ("a delete with chunks", request("DELETE / HTTP/1.1", &["transfer-encoding: chunked"], "1\r\nx\r\n0\r\n\r\n")),
        ("a head with a body", request("HEAD / HTTP/1.1", &["content-length: 4"], "body")),
        ("a post", post(&["content-length: 5"], "hello")),
        ("a post of nothing", post(&["content-length: 0"], "")),
        ("a post without length", post(&[], "")),
        ("a length with zeros in front", post(&["content-length: 0005"], "hello")),
        ("white space around a length", post(&["content-length: \t5 \t"], "hello")),
        ("a length without space", post(&["content-length:5"], "hello")),
        ("a length in capitals", post(&["CONTENT-LENGTH: 5"], "hello")),
        ("chunks", chunked("5\r\nhello\r\n1\r\n!\r\n0\r\n\r\n")),
        ("no chunks", chunked("0\r\n\r\n")),
        ("a chunk's size in capitals", chunked("A\r\n0123456789\r\n0\r\n\r\n")),
        ("a chunk's size in small letters", chunked("a\r\n0123456789\r\n0\r\n\r\n")),
        ("zeros before a chunk's size", chunked("0005\r\nhello\r\n000\r\n\r\n")),
        ("a chunk that holds crlf", chunked("4\r\n\r\n\r\n\r\n0\r\n\r\n")),
        ("a chunk that holds a request", chunked(&format!("{:x}\r\n{next}\r\n0\r\n\r\n", next.len()))),
        ("chunked in capitals", post(&["Transfer-Encoding: CHUNKED"], "1\r\nx\r\n0\r\n\r\n")),
        ("white space around chunked", post(&["transfer-encoding: \tchunked\t "], "1\r\nx\r\n0\r\n\r\n")),
        ("a chunk extension", chunked("5;a=b\r\nhello\r\n0;c\r\n\r\n")),
        ("a quoted chunk extension", chunked("5;a=\"b;c\"\r\nhello\r\n0\r\n\r\n")),
        ("a chunk extension without a name", chunked("5;\r\nhello\r\n0\r\n\r\n")),
        ("a chunk extension with spaces", chunked("5; a = b\r\nhello\r\n0\r\n\r\n")),
        ("a trailer", chunked("5\r\nhello\r\n0\r\nx-sum: 1\r\n\r\n")),
        ("two trailers", chunked("0\r\nx-a: 1\r\nX-B:\t2 \r\n\r\n")),
        ("an announced trailer", post(&["trailer: x-sum", "transfer-encoding: chunked"], "0\r\nx-sum: 9\r\n\r\n")),
        ("an empty trailer", chunked("0\r\nx-a:\r\n\r\n")),
        ("two requests", [get(&[]), line("GET /second HTTP/1.1")].concat()),
        ("a body, then a request", [post(&["content-length: 5"], "hello"), get(&[])].concat()),
        ("chunks, then a request", [chunked("1\r\nx\r\n0\r\n\r\n"), get(&[])].concat()),
        ("trailers, then a request", [chunked("0\r\nx-a: 1\r\n\r\n"), post(&["content-length: 1"], "y")].concat()),
        ("four requests", [get(&[]), post(&["content-length: 2"], "ab"), line("HEAD / HTTP/1.1"), get(&[])].concat()),
        ("a body that looks like a request", post(&[&format!("content-length: {}", next.len())], next)),
        ("the end asked for", get(&["connection: close"])),
        ("the end asked for, then more", [get(&["connection: close"]), get(&[])].concat()),
        ("close in capitals", get(&["Connection: CLOSE"])),
        ("close in a list", get(&["connection: x-a, close"])),
        ("keep-alive", get(&["connection: keep-alive"])),
        ("keep-alive and close", get(&["connection: keep-alive, close"])),
        ("close, then keep-alive in another line", get(&["connection: close", "connection: keep-alive"])),
        ("an empty connection", get(&["connection:"])),
        ("version 1.0", head("GET /old HTTP/1.0", &["host: a"])),
        ("version 1.0 without host", head("GET /old HTTP/1.0", &[])),
        ("version 1.0 that stays", head("GET /old HTTP/1.0", &["host: a", "connection: keep-alive"])),
        (
            "version 1.0 with a body",
            [head("POST / HTTP/1.0", &["host: a", "content-length: 2"]), b"ab".to_vec()].concat(),
        ),
        ("version 1.0, then more", [head("GET / HTTP/1.0", &["host: a"]), get(&[])].concat()),
        ("a host with a port", host("a.example:8080")),
        ("a host with an empty port", host("a.example:")),
        ("a host in capitals", host("A.EXAMPLE")),
        ("an address for a host", host("127.0.0.1:80")),
        ("an address of version 6", host("[::1]:80")),
        ("an escaped host", host("a%2Db")),
        ("an empty host", host("")),
        ("absolute form", line("GET http://a/abs?q HTTP/1.1")),
        ("absolute form without a path", line("GET http://a HTTP/1.1")),
        ("absolute form with a query alone", line("GET http://a?q HTTP/1.1")),
        ("absolute form, scheme in capitals", line("GET HTTP://a/ HTTP/1.1")),
        ("absolute form with a port", head("GET http://a:81/ HTTP/1.1", &["host: a:81"])),
        ("absolute form of https", line("GET https://a/s HTTP/1.1")),
        ("absolute form in 1.0", head("GET http://a/ HTTP/1.0", &["host: a"])),
        ("absolute form in 1.0 without host", head("GET http://a/ HTTP/1.0", &[])),
        ("a path of slashes", line("GET //a//b HTTP/1.1")),
        ("a path that goes up", line("GET /a/../b/./c HTTP/1.1")),
        ("a url in the query", line("GET /?u=http://b/ HTTP/1.1")),
        ("an empty query", line("GET /? HTTP/1.1")),
        ("marks in the path", line("GET /a:b@c!$&'()*+,;=-._~ HTTP/1.1")),
        ("an empty line first", [b"\r\n".to_vec(), get(&[])].concat()),
        ("an empty line between", [post(&["content-length: 1"], "x\r\n"), get(&[])].concat()),
        ("expect", post(&["expect: 100-continue", "content-length: 5"], "hello")),
        ("expect in capitals", post(&["Expect: 100-Continue", "content-length: 5"], "hello")),
        ("expect with chunks", post(&["expect: 100-continue", "transfer-encoding: chunked"], "1\r\nx\r\n0\r\n\r\n")),
        ("expect without a body", post(&["expect: 100-continue"], "")),
        (
            "expect in 1.0",
            [head("POST / HTTP/1.0", &["host: a", "expect: 100-continue", "content-length: 1"]), b"x".to_vec()]
                .concat(),
        ),
        (
            "an upgrade that is taken",
            [
                line("GET /x HTTP/1.1"),
                request("GET /switch HTTP/1.1", &["connection: upgrade", "upgrade: echo"], "early"),
            ]
            .concat(),
        ),
        ("an upgrade that is declined", get(&["connection: upgrade", "upgrade: websocket"])),
        ("an upgrade, declined, then more", [get(&["connection: Upgrade", "Upgrade: websocket"]), get(&[])].concat()),
        ("an upgrade in 1.0", head("GET / HTTP/1.0", &["host: a", "connection: upgrade, keep-alive", "upgrade: echo"])),
        ("an upgrade with a length of 0", get(&["connection: upgrade", "upgrade: echo", "content-length: 0"])),
        (
            "an upgrade to h2c",
            get(&["connection: upgrade, http2-settings", "upgrade: h2c", "http2-settings: AAMAAABkAAQAAP__"]),
        ),
        ("max-forwards", request("OPTIONS /x HTTP/1.1", &["max-forwards: 5"], "")),
        ("max-forwards of a get", get(&["max-forwards: 0"])),
        ("trace", line("TRACE /t HTTP/1.1")),
        ("a field of one hop", get(&["connection: x-hop", "x-hop: 1", "x-end: 2"])),
        ("te", get(&["te: trailers", "connection: te"])),
        ("keep-alive as a field", get(&["keep-alive: timeout=5"])),
        ("proxy-connection", get(&["proxy-connection: keep-alive"])),
        ("proxy-authorization", get(&["proxy-authorization: Basic x"])),
        ("a cookie in two lines", get(&["cookie: a=1", "cookie: b=2"])),
        ("a repeated field", get(&["x-a: 1", "X-A: 2", "x-a: 3"])),
        ("an empty value", get(&["x-a:", "x-b: \t "])),
        ("a value without space", get(&["x-a:1"])),
        ("a value with tabs within", get(&["x-a: 1\t2"])),
        ("a value beyond ascii", get(&["x-a: caf\u{e9}"])),
        ("a value with colons and quotes", get(&["x-a: \"b\": c;d=e"])),
        ("every mark of a token as a name", get(&["!#$%&'*+-.^_`|~: 1"])),
    ]
}

/// What some take and some do not, and what nobody should.
fn doubtful() -> Vec<(&'static str, Vec<u8>)> {
    let many = |count: usize| (1..count).map(|n| format!("x-{n}: 1")).collect::<Vec<_>>();
    let hundred = many(100);
    let hundred: Vec<_> = hundred.iter().map(String::as_str).collect();
    let long = format!("x-long: {}", "a".repeat(20_000));
    let longer = format!("x-longer: {}", "a".repeat(60_000));
    let path = format!("GET /{} HTTP/1.1", "p".repeat(9_000));
    let extension = format!("1;{}\r\nx\r\n0\r\n\r\n", "e".repeat(17_000));
    let long_extension = format!("1;{}\r\nx\r\n0\r\n\r\n", "e".repeat(1_000));
    let trailer = format!("0\r\nx-t: {}\r\n\r\n", "t".repeat(17_000));
    let next = "GET /smuggled HTTP/1.1\r\nhost: b\r\n\r\n";
    vec![
        // Lengths.
        ("a length that is a list", post(&["content-length: 5, 5"], "hello")),
        ("a length in two lines", post(&["content-length: 5", "Content-Length: 5"], "hello")),
        ("a length with a comma behind", post(&["content-length: 5,"], "hello")),
        ("a length in quotes", post(&["content-length: \"5\""], "hello")),
        ("two numbers for a length", post(&["content-length: 5 5"], "hello")),
        ("a length with an underscore", post(&["content-length: 1_0"], "0123456789")),
        ("a length in other digits", post(&["content-length: \u{665}"], "hello")),
        ("the largest length", post(&["content-length: 9223372036854775807"], "hello")),
        ("a length of 2^63", post(&["content-length: 9223372036854775808"], "hello")),
        ("a length of 2^64 - 1", post(&["content-length: 18446744073709551615"], "hello")),
        ("a length that wraps to 5", post(&["content-length: 18446744073709551621"], "hello")),
        ("a length shorter than the body", post(&["content-length: 3"], "hello")),
        ("a length that takes the next request in", post(&["content-length: 40"], next)),
        ("a length by another name", post(&["content_length: 5"], "hello")),
        ("a length that the connection names", post(&["connection: content-length", "content-length: 5"], "hello")),
        ("a body without a length", post(&[], "hello")),
        // Both framings.
        (
            "chunked before a length of the rest",
            post(&["transfer-encoding: chunked", "content-length: 5"], &format!("0\r\n\r\n{next}")),
        ),
        (
            "a length of the rest before chunked",
            post(&["content-length: 44", "transfer-encoding: chunked"], &format!("0\r\n\r\n{next}")),
        ),
        ("a wrong length and chunked", post(&["transfer-encoding: chunked", "content-length: x"], "0\r\n\r\n")),
        (
            "a space before the colon of chunked",
            post(&["content-length: 5", "transfer-encoding : chunked"], "0\r\n\r\n"),
        ),
        ("an underscore in chunked's name", post(&["content-length: 5", "transfer_encoding: chunked"], "0\r\n\r\n")),
        // Codings.
        ("chunked in a list", post(&["transfer-encoding: , chunked"], "0\r\n\r\n")),
        ("chunked with a comma behind", post(&["transfer-encoding: chunked,"], "0\r\n\r\n")),
        (
            "gzip in one line, chunked in another",
            post(&["transfer-encoding: gzip", "transfer-encoding: chunked"], "0\r\n\r\n"),
        ),
        (
            "chunked in one line, identity in another",
            post(&["transfer-encoding: chunked", "transfer-encoding: identity"], "0\r\n\r\n"),
        ),
        ("identity, chunked", post(&["transfer-encoding: identity, chunked"], "0\r\n\r\n")),
        ("chunked by a vertical tab", post(&["transfer-encoding: \x0bchunked"], "0\r\n\r\n")),
        ("chunked in a folded line", post(&["transfer-encoding:", " chunked"], "0\r\n\r\n")),
        (
            "chunked on a get in 1.0 that stays",
            head("GET / HTTP/1.0", &["host: a", "connection: keep-alive", "transfer-encoding: chunked"]),
        ),
        ("te that asks for chunked", get(&["te: chunked"])),
        // Chunks.
        ("a space behind a chunk's size", chunked("5 \r\nhello\r\n0\r\n\r\n")),
        ("a tab behind a chunk's size", chunked("5\t\r\nhello\r\n0\r\n\r\n")),
        ("a space before a chunk extension", chunked("5 ;a\r\nhello\r\n0\r\n\r\n")),
        ("a space before a chunk's size", chunked(" 5\r\nhello\r\n0\r\n\r\n")),
        ("a chunk's size with a sign", chunked("+5\r\nhello\r\n0\r\n\r\n")),
        ("a negative chunk", chunked("-5\r\nhello\r\n0\r\n\r\n")),
        ("a chunk's size by 0x", chunked("0x5\r\nhello\r\n0\r\n\r\n")),
        ("a chunk's size with an underscore", chunked("1_0\r\n0123456789abcdef\r\n0\r\n\r\n")),
        ("an empty chunk's size", chunked("\r\nhello\r\n0\r\n\r\n")),
        ("a chunk's size of words", chunked("five\r\nhello\r\n0\r\n\r\n")),
        ("a chunk of 2^60", chunked("1000000000000000\r\nhello")),
        ("a chunk of 2^64", chunked("10000000000000000\r\nhello")),
        ("a chunk that wraps to 5", chunked("10000000000000005\r\nhello\r\n0\r\n\r\n")),
        ("seventeen zeros before a chunk's size", chunked("000000000000000005\r\nhello\r\n0\r\n\r\n")),
        ("a chunk's size ended by lf", chunked("5\nhello\r\n0\r\n\r\n")),
        ("a chunk's size ended by cr", chunked("5\rhello\r\n0\r\n\r\n")),
        ("a chunk ended by lf", chunked("5\r\nhello\n0\r\n\r\n")),
        ("a chunk longer than its size", chunked("5\r\nhello!\r\n0\r\n\r\n")),
        ("a chunk shorter than its size", chunked("5\r\nhell\r\n0\r\n\r\n")),
        ("a chunk without an end", chunked("5\r\nhello0\r\n\r\n")),
        ("a last chunk ended by lf", chunked("0\n\n")),
        ("a body ended by lf", chunked("0\r\n\n")),
        ("lf in a chunk extension", chunked("5;a\nb\r\nhello\r\n0\r\n\r\n")),
        ("cr in a chunk extension", chunked("5;a\rb\r\nhello\r\n0\r\n\r\n")),
        ("nul in a chunk extension", chunked("5;a\0b\r\nhello\r\n0\r\n\r\n")),
        ("a chunk extension beyond ascii", chunked("5;\u{e9}\r\nhello\r\n0\r\n\r\n")),
        ("a long chunk extension", chunked(&long_extension)),
        ("an endless chunk extension", chunked(&extension)),
        // Trailers.
        ("a trailer that frames", chunked("0\r\ncontent-length: 5\r\n\r\n")),
        ("a trailer that chunks", chunked("0\r\nTransfer-Encoding: chunked\r\n\r\n")),
        ("a trailer that routes", chunked("0\r\nhost: b\r\n\r\n")),
        ("a trailer that says who somebody is", chunked("0\r\nx-forwarded-for: 10.0.0.1\r\n\r\n")),
        ("a trailer that authorizes", chunked("0\r\nauthorization: Basic x\r\n\r\n")),
        ("a trailer without a colon", chunked("0\r\nx-a\r\n\r\n")),
        ("a trailer without a name", chunked("0\r\n: 1\r\n\r\n")),
        ("a trailer with a space before the colon", chunked("0\r\nx-a : 1\r\n\r\n")),
        ("a folded trailer", chunked("0\r\nx-a: 1\r\n 2\r\n\r\n")),
        ("a trailer ended by lf", chunked("0\r\nx-a: 1\n\r\n")),
        ("a trailer with nul", chunked("0\r\nx-a: \0\r\n\r\n")),
        ("a trailer with a lonely cr", chunked("0\r\nx-a: 1\r2\r\n\r\n")),
        ("a trailer without end", chunked(&trailer)),
        ("a request for a trailer", chunked(&format!("0\r\n{next}"))),
        // Hosts.
        ("hosts in two lines, one empty", head("GET / HTTP/1.1", &["host: a", "host:"])),
        ("two hosts in 1.0", head("GET / HTTP/1.0", &["host: a", "host: b"])),
        ("a host with spaces", host("a b")),
        ("a host of a url", host("http://a/")),
        ("a host with a fragment", host("a#b")),
        ("a host with a query", host("a?b")),
        ("a host with a backslash", host("a\\b")),
        ("a host beyond ascii", host("caf\u{e9}")),
        ("a host that is a port", host(":80")),
        ("a host with two ports", host("a:80:80")),
        ("a host with a signed port", host("a:+80")),
        ("a host with a port of six digits", host("a:000080")),
        ("a version 6 address without brackets", host("::1")),
        ("a version 4 address in brackets", host("[1.2.3.4]")),
        ("a zone in a version 6 address", host("[fe80::1%25eth0]")),
        ("a host with half an escape", host("a%2")),
        ("a space before host's colon", head("GET / HTTP/1.1", &["host : a"])),
        ("a folded host", head("GET / HTTP/1.1", &["host:", " a"])),
        ("a list in host", host("a,b")),
        // Targets.
        ("absolute form with a differing host", head("GET http://b/x HTTP/1.1", &["host: a"])),
        ("absolute form with a differing port", head("GET http://a:80/ HTTP/1.1", &["host: a"])),
        ("absolute form without host in 1.1", head("GET http://a/ HTTP/1.1", &[])),
        ("absolute form with userinfo", line("GET http://u:p@a/ HTTP/1.1")),
        ("absolute form without an authority", line("GET http:///x HTTP/1.1")),
        ("absolute form of ftp", line("GET ftp://a/ HTTP/1.1")),
        ("absolute form with a backslash", line("GET http:\\\\a\\ HTTP/1.1")),
        ("authority form with get", line("GET a:80 HTTP/1.1")),
        ("a word for a target", line("GET x HTTP/1.1")),
        ("asterisk form", line("OPTIONS * HTTP/1.1")),
        ("asterisk form with a path", line("OPTIONS */x HTTP/1.1")),
        ("a query for a target", line("GET ?q HTTP/1.1")),
        ("quotes and braces in the path", line("GET /\"a\"{b}|c^d`e<f>\\ HTTP/1.1")),
        ("a path beyond ascii", line("GET /caf\u{e9} HTTP/1.1")),
        ("half an escape in the path", line("GET /%2 HTTP/1.1")),
        ("an escaped nul in the path", line("GET /%00 HTTP/1.1")),
        ("an escaped crlf in the path", line("GET /%0d%0aX:%20y HTTP/1.1")),
        ("a fragment in the query", line("GET /?a#b HTTP/1.1")),
        ("delete in the path", line("GET /\x7f HTTP/1.1")),
        ("a long path", line(&path)),
        // Request lines.
        ("a tab between", line("GET\t/\tHTTP/1.1")),
        ("a space behind the version", line("GET / HTTP/1.1 ")),
        ("two spaces before the version", line("GET /  HTTP/1.1")),
        ("a space in front", line(" GET / HTTP/1.1")),
        ("a colon behind the method", line("GET: / HTTP/1.1")),
        ("version 1.2", line("GET / HTTP/1.2")),
        ("version 2.0", line("GET / HTTP/2.0")),
        ("version 3", line("GET / HTTP/3")),
        ("version 0.9", line("GET / HTTP/0.9")),
        ("version 01.1", line("GET / HTTP/01.1")),
        ("another protocol", line("GET / ICAP/1.0")),
        ("a version with a space", line("GET / HTTP /1.1")),
        ("connect with a body", request("CONNECT a:80 HTTP/1.1", &["content-length: 3"], "abc")),
        ("two empty lines between", [get(&[]), b"\r\n\r\n".to_vec(), get(&[])].concat()),
        ("an lf for an empty line first", [b"\n".to_vec(), get(&[])].concat()),
        ("pri, which is no preface", line("PRI /x HTTP/1.1")),
        // Fields.
        ("a hundred fields", get(&hundred[..99])),
        ("20 000 bytes in a field", get(&[&long])),
        ("60 000 bytes in a field", get(&[&longer])),
        ("a folded field", get(&["x-a: 1", "  2"])),
        ("a folded last field", get(&["x-a: 1", " "])),
        ("a colon alone", get(&[":"])),
        ("nul in a field", get(&["x-a: \0"])),
        ("escape in a field", get(&["x-a: \x1b"])),
        ("delete in a field", get(&["x-a: \x7f"])),
        (
            "bytes that are no utf-8 in a field",
            [b"GET / HTTP/1.1\r\nhost: a\r\nx-a: \xff\xfe\r\n\r\n".to_vec()].concat(),
        ),
        ("cr at the end of a field", get(&["x-a: 1\r"])),
        ("cr alone between fields", get(&["x-a: 1\rx-b: 2"])),
        ("lf alone between fields", get(&["x-a: 1\nx-b: 2"])),
        ("lf alone throughout", b"GET /lf HTTP/1.1\nhost: a\n\n".to_vec()),
        ("lf alone at the very end", b"GET /lf HTTP/1.1\r\nhost: a\r\n\n".to_vec()),
        ("a name with a slash", get(&["x/a: 1"])),
        ("a name with a space", get(&["x a: 1"])),
        // Connection, Expect, Upgrade.
        ("connection in quotes", get(&["connection: \"close\""])),
        ("connection that names the host", get(&["connection: host"])),
        ("connection that names x-forwarded-proto", get(&["connection: x-forwarded-proto"])),
        ("an expectation nobody knows", post(&["expect: miracles", "content-length: 1"], "x")),
        ("an expectation in two lines", post(&["expect: 100-continue", "expect: x", "content-length: 1"], "x")),
        ("an upgrade that the connection does not name", get(&["upgrade: echo"])),
        ("an upgrade with a body", post(&["connection: upgrade", "upgrade: echo", "content-length: 3"], "abc")),
        ("max-forwards used up", request("OPTIONS /x HTTP/1.1", &["max-forwards: 0"], "")),
        ("max-forwards used up, trace", request("TRACE /x HTTP/1.1", &["max-forwards: 0"], "")),
        ("max-forwards that is no number", request("TRACE /x HTTP/1.1", &["max-forwards: x"], "")),
        ("a forged x-forwarded-for", get(&["x_forwarded_for: 10.0.0.1", "Forwarded: for=10.0.0.1"])),
        // Cut off: the request that the test adds is swallowed.
        ("half a request line", b"GET /ha".to_vec()),
        ("half a head", b"GET / HTTP/1.1\r\nhost: a\r\nx-half: ".to_vec()),
        ("a body that stops short", post(&["content-length: 500"], "hello")),
        ("chunks that stop short", chunked("ff\r\nhello")),
        ("trailers that stop short", chunked("0\r\nx-a: ")),
    ]
}
