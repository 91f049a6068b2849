//! Every fault that a file can have, by table; then what a faultless one means.

use super::*;
use crate::{
    AlertFormat, Arm, ArmSettings, Beyond, Combine, Endpoint, Fallback, Guard, Health, HealthProbe, HttpVersion,
    KeySource, Keyless, Match, Mirror, PauseLimits, Protocol, Route, Severity, SharedCause, Signal, SignalLimit,
    Silent, Split, Timeouts, UpstreamTls,
};

const EXAMPLE: &str = include_str!("../../crossfade.example.toml");

fn parse(text: &str) -> Result<Config, Faults> {
    Config::parse(text, Path::new("/etc/crossfade"))
}

/// Parses `text` and compares its faults, one to a line.
#[track_caller]
fn check(text: &str, expected: &[&str]) {
    match parse(text) {
        Ok(_) => assert!(expected.is_empty(), "no fault in\n{text}"),
        Err(faults) => {
            let faults: Vec<String> = faults.0.iter().map(ToString::to_string).collect();
            assert_eq!(faults, expected, "in\n{text}");
        }
    }
}

/// A route without a fault whose settings from line 5 on are `lines`.
fn route(protocol: &str, lines: &str) -> String {
    arms(protocol, lines, "endpoints = [\"127.0.0.1:9001\"]", "endpoints = [\"127.0.0.1:9002\"]")
}

/// With one line of settings, those of blue are on line 7 and with one more line those of green on line 9.
fn arms(protocol: &str, lines: &str, blue: &str, green: &str) -> String {
    format!(
        "[[route]]\nname = \"shop\"\nprotocol = \"{protocol}\"\nlisten = \"127.0.0.1:8080\"\n{lines}\n\
         [route.blue]\n{blue}\n[route.green]\n{green}\n"
    )
}

/// The single fault of an HTTP route with these settings from line 5 on.
#[track_caller]
fn check_http(lines: &str, expected: &str) {
    check(&route("http", lines), &[expected]);
}

#[track_caller]
fn check_green(green: &str, expected: &str) {
    check(&arms("http", "", "endpoints = [\"127.0.0.1:9001\"]", green), &[expected]);
}

/// The single fault of a file that has these lines at its top, and a good route below them.
#[track_caller]
fn check_top(lines: &str, expected: &str) {
    check(&format!("{lines}\n{}", route("http", "")), &[expected]);
}

fn accepted(text: &str) -> Config {
    parse(text).unwrap_or_else(|faults| panic!("{faults}\nin\n{text}"))
}

#[test]
fn syntax() {
    check(
        "a = \nb = foo bar\n[c\n",
        &[
            "syntax (line 1): string values must be quoted, expected literal string at column 5; correct the toml here",
            "syntax (line 2): string values must be quoted, expected literal string at column 5; correct the toml here",
            "syntax (line 3): unclosed table, expected `]` at column 3; correct the toml here",
        ],
    );
    check("a = 0.05%\n", &["syntax (line 1): invalid float, expected nothing at column 9; write the number without %"]);
    check("a = 1\r\na = 2\r\n", &["syntax (line 2): duplicate key \"a\" at column 1; correct the toml here"]);
    let large = "#".repeat(LARGEST + 1);
    check(&large, &["file: is larger than 1 MiB; name a configuration file of crossfade"]);
}

#[test]
fn unknown_keys() {
    check_top("sever = 1", "sever (line 1): unknown key; did you mean \"server\"");
    check_top("\"a b\" = 1", "\"a b\" (line 1): unknown key; remove it; known here are server, admin, alert, route");
    check_top("[server]\nwrokers = 1", "server.wrokers (line 2): unknown key; did you mean \"workers\"");
    check_top(
        "[server]\nthreads = 1",
        "server.threads (line 2): unknown key; remove it; known here are workers, drain, access_log, max_connections, \
         max_connections_per_client",
    );
    check_green(
        "endpoints = [\"127.0.0.1:9002\"]\nkeyless = \"random\"",
        "route[0].green.keyless (line 10): unknown key; it belongs to route[0]: write it above route[0].green",
    );
    check_http("[route.health]\npaths = \"/\"", "route[0].health.paths (line 6): unknown key; did you mean \"path\"");
    check_http("match = { hots = \"a\" }", "route[0].match.hots (line 5): unknown key; did you mean \"host\"");
}

#[test]
fn types() {
    check_http("name = 1", "syntax (line 5): duplicate key \"name\" at column 1; correct the toml here");
    check_http("keyless = 5", "route[0].keyless (line 5): expected a string, found the integer 5; write it in quotes");
    check_http(
        "keyless = \"green\"",
        "route[0].keyless (line 5): unknown value \"green\"; write \"blue\" or \"random\"",
    );
    check_http(
        "fallback = \"green\"",
        "route[0].fallback (line 5): unknown value \"green\"; write \"blue\" or \"none\"",
    );
    check_http(
        "expose_arm = \"yes\"",
        "route[0].expose_arm (line 5): expected a boolean, found the string \"yes\"; \
         write true or false, without quotes",
    );
    check_http(
        "allow_override = 1",
        "route[0].allow_override (line 5): expected a boolean, found the integer 1; \
         write true or false, without quotes",
    );
    check_http(
        "green_percentage = true",
        "route[0].green_percentage (line 5): expected a number, found the boolean true; \
         write a number, without quotes",
    );
    check_http(
        "key = \"client-ip\"",
        "route[0].key (line 5): expected a list, found the string \"client-ip\"; write [\"client-ip\"]",
    );
    check_http("key = 1.5", "route[0].key (line 5): expected a list, found the float 1.5; write it in square brackets");
    check_http("key = [1979-05-27]", "route[0].key[0] (line 5): expected a string, found a date; write it in quotes");
    check_http("timeouts = []", "route[0].timeouts (line 5): expected a table, found a list; write [route.timeouts]");
    check_top("server = 1", "server (line 1): expected a table, found the integer 1; write [server]");
    check_top("[[admin]]", "admin (line 1): expected a table, found a list; write [admin]");
    check(
        "[route]\nname = \"shop\"",
        &["route (line 1): expected a list of tables, found a table; \
           write the header in double brackets: [[route]]"],
    );
    check(
        "route = [1]",
        &["route[0] (line 1): expected a table, found the integer 1; write it below a header [[route]]"],
    );
}

#[test]
fn numbers() {
    let workers = |number: &str, shown: &str| {
        check_top(
            &format!("[server]\nworkers = {number}"),
            &format!("server.workers (line 2): {shown} is out of range; write a whole number from 1 to 1024"),
        );
    };
    workers("0", "0");
    workers("-1", "-1");
    workers("1025", "1025");
    workers("0xffff", "0xffff");
    workers("99999999999999999999", "99999999999999999999");
    workers(&"9".repeat(99), "999999999999999999999999…");
    check_top(
        "[server]\nworkers = 1.5",
        "server.workers (line 2): expected an integer, found the float 1.5; write a whole number, without quotes",
    );
    check_top(
        "[server]\nmax_connections = 0",
        "server.max_connections (line 2): 0 is out of range; write a whole number from 1 to 10000000",
    );
    check_top(
        "[server]\nmax_connections_per_client = 0",
        "server.max_connections_per_client (line 2): 0 is out of range; write a whole number from 1 to 10000000",
    );
    let percent = |number: &str, problem: &str, cure: &str| {
        check_http(
            &format!("green_percentage = {number}"),
            &format!("route[0].green_percentage (line 5): {problem}; {cure}"),
        );
    };
    let steps = "write per cent from 0 to 100, in steps of 0.01, such as 12.5";
    percent("100.01", "100.01 is not between 0 and 100", steps);
    percent("-1", "-1 is not between 0 and 100", steps);
    percent("0.005", "0.005 is finer than a hundredth of a percent", steps);
    percent("nan", "the float nan is not a finite number", "write a number such as 10.5");
    percent("-inf", "the float -inf is not a finite number", "write a number such as 10.5");
    percent("1e999", "the float 1e999 is not a finite number", "write a number such as 10.5");
    check_http(
        "[route.mirror]\nsample = 101",
        &format!("route[0].mirror.sample (line 6): 101 is not between 0 and 100; {steps}"),
    );
}

#[test]
fn durations() {
    let drain = |value: &str, problem: &str, cure: &str| {
        check_top(&format!("[server]\ndrain = {value}"), &format!("server.drain (line 2): {problem}; {cure}"));
    };
    let units = "write a whole number and a unit: \"250ms\", \"10s\", \"5m\" or \"1h\"";
    drain("25", "25 has no unit", "write \"25s\" or \"25ms\"");
    drain("\"25\"", "\"25\" has no unit", "write \"25s\" or \"25ms\"");
    drain("2.5", "expected a duration, found the float 2.5", units);
    drain("\"\"", "\"\" is not a duration", units);
    drain("\"s\"", "\"s\" is not a duration", units);
    drain("\"-1s\"", "\"-1s\" is not a duration", units);
    drain("\"1.5s\"", "\"1.5s\" is not a duration", units);
    drain("\"1d\"", "\"1d\" is not a duration", units);
    drain("\"1h30m\"", "\"1h30m\" is not a duration", units);
    drain("\"10 s\"", "\"10 s\" is not a duration", units);
    drain("\"0s\"", "\"0s\" is no time at all", "write at least \"1ms\"");
    drain("\"25h\"", "\"25h\" is longer than a day", "write at most \"24h\"");
    drain("\"99999999999999999999h\"", "\"99999999999999999999h\" is longer than a day", "write at most \"24h\"");
    drain("\"9999999999999999999h\"", "\"9999999999999999999h\" is longer than a day", "write at most \"24h\"");
    for setting in ["request_header", "keepalive", "connect", "response_header", "idle", "write"] {
        check_http(
            &format!("[route.timeouts]\n{setting} = \"0ms\""),
            &format!("route[0].timeouts.{setting} (line 6): \"0ms\" is no time at all; write at least \"1ms\""),
        );
    }
    for (text, expected) in [
        ("1ms", Duration::from_millis(1)),
        ("10s", Duration::from_secs(10)),
        ("5m", Duration::from_secs(300)),
        ("24h", Duration::from_secs(86_400)),
    ] {
        let config = accepted(&format!("[server]\ndrain = \"{text}\"\n{}", route("http", "")));
        assert_eq!(config.server.drain, expected);
    }
}

#[test]
fn the_history_is_bounded_and_has_a_file_of_its_own() {
    let admin = |line: &str, problem: &str| {
        check_top(&format!("[admin]\nstate = \"a.db\"\n{line}"), &format!("admin.{problem}"));
    };
    let cure = "write a whole number of hours or days, at least an hour: \"12h\" or \"30d\"";
    let other = "write the path of another file, such as \"crossfade.history.db\"";
    admin("history = \"a.db\"", &format!("history (line 3): is the state file; {other}"));
    admin("history = \"\"", "history (line 3): is empty; write the path of a file");
    admin("history_keep = 30", &format!("history_keep (line 3): expected an age, found the integer 30; {cure}"));
    for text in ["", "d", "30", "30m", "1.5d", "-1d", "1d12h", "30 d"] {
        let problem = format!("history_keep (line 3): \"{text}\" is not an age; {cure}");
        admin(&format!("history_keep = \"{text}\""), &problem);
    }
    admin("history_keep = \"0d\"", &format!("history_keep (line 3): \"0d\" is no time at all; {cure}"));
    for text in ["3651d", "99999999999999999999d", "9999999999999999999d"] {
        let problem = format!("history_keep (line 3): \"{text}\" is longer than ten years; write at most \"3650d\"");
        admin(&format!("history_keep = \"{text}\""), &problem);
    }
    let range = "write a number of bytes from 8388608 to 17179869184";
    admin("history_max = \"1MiB\"", &format!("history_max (line 3): \"1MiB\" is out of range; {range}"));

    for (lines, path, hours, mib) in [
        ("", "crossfade.history.db", 720, 64),
        ("state = \"a.db\"", "a.history.db", 720, 64),
        ("state = \"b\"\nhistory_keep = \"1h\"\nhistory_max = \"8MiB\"", "b.history.db", 1, 8),
        ("history = \"c/h.db\"\nhistory_keep = \"3650d\"", "c/h.db", 3650 * 24, 64),
    ] {
        let expected = History {
            path: Path::new("/etc/crossfade").join(path),
            keep: Duration::from_secs(hours * 3600),
            max: mib * 1024 * 1024,
        };
        assert_eq!(accepted(&format!("[admin]\n{lines}\n{}", route("http", ""))).admin.history, expected, "{lines}");
    }
}

#[test]
fn sizes() {
    let size = |value: &str, problem: &str, cure: &str| {
        check_http(
            &format!("[route.mirror]\nsample = 1\nmax_body = {value}"),
            &format!("route[0].mirror.max_body (line 7): {problem}; {cure}"),
        );
    };
    let units = "write bytes, such as 65536, or a whole number and a unit: \"64KiB\" or \"1MiB\"";
    let range = "write a number of bytes from 1 to 16777216";
    size("\"64kb\"", "\"64kb\" is not a size", units);
    size("\"65536\"", "\"65536\" is not a size", units);
    size("\"KiB\"", "\"KiB\" is not a size", units);
    size("1.5", "expected a size, found the float 1.5", units);
    size("0", "0 is out of range", range);
    size("-5", "-5 is out of range", range);
    size("\"0B\"", "\"0B\" is out of range", range);
    size("\"17MiB\"", "\"17MiB\" is out of range", range);
    size("\"99999999999999999999GiB\"", "\"99999999999999999999GiB\" is out of range", range);
}

#[test]
fn server_and_admin() {
    check_top(
        "[server]\naccess_log = 1",
        "server.access_log (line 2): expected a boolean, found the integer 1; write true or false, without quotes",
    );
    let listen = |value: &str, cure: &str| {
        check_top(
            &format!("[admin]\nlisten = \"{value}\""),
            &format!("admin.listen (line 2): \"{value}\" is not an address to listen on; {cure}"),
        );
    };
    let address = "write an ip address and a port, such as \"127.0.0.1:8080\" or \"[::1]:8080\"";
    listen("localhost:9900", address);
    listen("127.0.0.1", address);
    listen("127.0.0.1:65536", address);
    listen("", address);
    listen(":9900", "write \"0.0.0.0:9900\" for every interface, \"127.0.0.1:9900\" for this machine only");
    check(
        &format!("[admin]\nlisten = \"0.0.0.0:9900\"\n{}", route("http", "")),
        &[
            "admin.tokens (line 1): is missing, and 0.0.0.0:9900 can be reached from other machines; \
             write tokens = \"tokens.txt\", or listen on 127.0.0.1",
            "admin.tls (line 1): is missing, and 0.0.0.0:9900 can be reached from other machines; \
             write tls = { cert = \"admin.pem\", key = \"admin.key\" }, or listen on 127.0.0.1",
        ],
    );
    check_top(
        "[admin]\nlisten = \"10.0.0.1:9900\"\ntls = { cert = \"a\", key = \"b\" }",
        "admin.tokens (line 1): is missing, and 10.0.0.1:9900 can be reached from other machines; \
         write tokens = \"tokens.txt\", or listen on 127.0.0.1",
    );
    check_top("[admin]\nstate = \"\"", "admin.state (line 2): is empty; write the path of a file");
    check_top(
        "[admin]\ntokens = \"a\\u0000b\"",
        "admin.tokens (line 2): has a nul character; write the path of a file",
    );
    check(
        &format!("[admin]\ntls = {{}}\n{}", route("http", "")),
        &[
            "admin.tls.cert (line 2): is missing; write cert = \"cert.pem\", the certificate chain",
            "admin.tls.key (line 2): is missing; write key = \"key.pem\", the private key",
        ],
    );
    check(
        &format!("[admin]\nhosts = [\"a:1\", \"*.b\", \"ok\", \"c.\"]\n{}", route("http", "")),
        &[
            "admin.hosts[0] (line 2): \"a:1\" has a port; write the host without its port",
            "admin.hosts[1] (line 2): \"*.b\" has a wildcard, which is not supported; write a host in full",
            "admin.hosts[3] (line 2): \"c.\" ends with a dot; write it without the dot",
        ],
    );
}

#[test]
fn a_route_needs_its_basics() {
    check("", &["route: is missing; add a [[route]] table"]);
    check("route = []", &["route (line 1): is empty; add a [[route]] table"]);
    check(
        "[[route]]",
        &[
            "route[0].name (line 1): is missing; write name = \"shop\"",
            "route[0].protocol (line 1): is missing; write protocol = \"http\", \"mqtt\" or \"tcp\"",
            "route[0].listen (line 1): is missing; write listen = \"127.0.0.1:8080\"",
            "route[0].blue (line 1): is missing; add [route.blue] with endpoints = [\"127.0.0.1:9001\"]",
            "route[0].green (line 1): is missing; add [route.green] with endpoints = [\"127.0.0.1:9001\"]",
        ],
    );
    check(
        &route("htpp", ""),
        &["route[0].protocol (line 3): unknown value \"htpp\"; write \"http\", \"mqtt\" or \"tcp\""],
    );
    let long = "a".repeat(65);
    let shown = format!("{}…", "a".repeat(60));
    for (name, shown) in [("", ""), ("a b", "a b"), ("ä", "ä"), (long.as_str(), shown.as_str())] {
        check(
            &route("http", "").replace("\"shop\"", &format!("\"{name}\"")),
            &[&format!(
                "route[0].name (line 2): \"{shown}\" is not a name; \
                 write 1 to 64 of the characters a-z, A-Z, 0-9, '-' and '_'"
            )],
        );
    }
    check_http(
        "tls = true",
        "route[0].tls (line 5): expected a table, found the boolean true; \
         write tls = { cert = \"cert.pem\", key = \"key.pem\" }",
    );
}

#[test]
fn keys() {
    let http = "write header:NAME, cookie:NAME, query:NAME, path:N or client-ip";
    let one = |protocol: &str, source: &str, problem: &str, cure: &str| {
        check(
            &route(protocol, &format!("key = [\"{source}\"]")),
            &[&format!("route[0].key[0] (line 5): {problem}; {cure}")],
        );
    };
    check_http("key = []", &format!("route[0].key (line 5): is empty; {http}"));
    one("http", "session", "\"session\" is not a key source", http);
    one("http", "headers:x", "\"headers:x\" is not a key source", http);
    one("mqtt", "x", "\"x\" is not a key source", "write mqtt-client-id, mqtt-username or client-ip");
    one("tcp", "x", "\"x\" is not a key source", "write client-ip or sni");
    let name = |kind: &str| format!("write a name behind the colon, such as \"{kind}:session\"");
    one("http", "header:", "\"header:\" names no header", &name("header"));
    one("http", "header:x y", "\"x y\" is not the name of a header", &name("header"));
    one("http", "header::path", "\":path\" is not the name of a header", &name("header"));
    one("http", "cookie:a=b", "\"a=b\" is not the name of a cookie", &name("cookie"));
    one("http", "query:", "\"query:\" names no query parameter", &name("query"));
    one("http", "query:a\\tb", "\"a\\tb\" is not the name of a query parameter", &name("query"));
    for segment in ["", "0", "+1", "-1", "x", "99999999999999999999"] {
        let problem = format!("{segment:?} is not the number of a path segment");
        one("http", &format!("path:{segment}"), &problem, "write path:1 for the first one");
    }
    for (protocol, sources, cure) in [
        ("http", &["mqtt-client-id", "mqtt-username", "sni"][..], http),
        (
            "mqtt",
            &["header:x", "cookie:x", "query:x", "path:1", "sni"],
            "write mqtt-client-id, mqtt-username or client-ip",
        ),
        ("tcp", &["header:x", "cookie:x", "query:x", "path:1", "mqtt-client-id"], "write client-ip or sni"),
    ] {
        for source in sources {
            one(protocol, source, &format!("a route with protocol = \"{protocol}\" has no such key"), cure);
        }
    }
    check(
        &route("tcp", "key = [\"sni\"]\ntls = { cert = \"a\", key = \"b\" }"),
        &["route[0].key[0] (line 5): this route ends tls itself, so no server name is left to peek at; \
           write \"client-ip\", or remove tls from the route"],
    );
    check_http(
        "key = [\"header:X-Id\", \"header:x-id\"]",
        "route[0].key[1] (line 5): is in the list twice; remove one of the two",
    );
    check_http(
        "key = [\"client-ip\", \"cookie:a\"]",
        "route[0].key[1] (line 5): is never tried, because client-ip before it is always present; \
         move client-ip to the end",
    );
    let config = accepted(&route(
        "http",
        "key = [\"header:X-Id\", \"cookie:Session\", \"query:run id\", \"path:12\", \"client-ip\"]",
    ));
    assert_eq!(
        config.routes[0].key,
        [
            KeySource::Header("x-id".to_owned()),
            KeySource::Cookie("Session".to_owned()),
            KeySource::Query("run id".to_owned()),
            KeySource::PathSegment(12),
            KeySource::ClientIp
        ]
    );
}

#[test]
fn matches() {
    let host = |value: &str, problem: &str| {
        check_http(&format!("match = {{ host = \"{value}\" }}"), &format!("route[0].match.host (line 5): {problem}"));
    };
    host("*.example", "\"*.example\" has a wildcard, which is not supported; write a host in full");
    host("shop.example:80", "\"shop.example:80\" has a port; write the host without its port");
    host("http://shop", "\"http://shop\" is a url; write the host alone, such as \"shop.example\"");
    host("[::1]", "\"[::1]\" is an ipv6 address, which is not supported here; write a name");
    host("shop.", "\"shop.\" ends with a dot; write it without the dot");
    host("", "\"\" has no host; write a name or an address");
    host("bücher.example", "\"bücher.example\" is not ascii; write an international name in its xn-- form");
    host("a b", "\"a b\" is not a host name; write letters, digits, '-' and '_', in parts separated by dots");
    host(
        "1.2.3.256",
        "\"1.2.3.256\" is neither a name nor an ipv4 address; write four numbers from 0 to 255, or a name",
    );
    let path = |value: &str, problem: &str| {
        check_http(&format!("match = {{ path = \"{value}\" }}"), &format!("route[0].match.path (line 5): {problem}"));
    };
    path("api", "\"api\" does not start with '/'; write a path such as \"/api\"");
    let encoded = "write a path as clients send it, percent-encoded where needed";
    path("/a?b", &format!("\"/a?b\" has the character '?'; {encoded}"));
    path("/a b", &format!("\"/a b\" has the character ' '; {encoded}"));
    path("/ä", &format!("\"/ä\" has the character 'ä'; {encoded}"));
    let config = accepted(&route("http", "match = { host = \"Shop.Example\", path = \"/api/\" }"));
    assert_eq!(config.routes[0].matching, Match { host: Some("shop.example".to_owned()), path: "/api".to_owned() });
}

#[test]
fn http_only_settings() {
    for protocol in ["mqtt", "tcp"] {
        let only = format!("only an http route has it, and this one is {protocol}");
        for (lines, place, line) in [
            ("match = { path = \"/a\" }", "match", 5),
            ("expose_arm = false", "expose_arm", 5),
            ("allow_override = true", "allow_override", 5),
            ("[route.mirror]\nsample = 1", "mirror", 5),
        ] {
            check(&route(protocol, lines), &[&format!("route[0].{place} (line {line}): {only}; remove it")]);
        }
        check(
            &arms(
                protocol,
                "",
                "endpoints = [\"127.0.0.1:9001\"]",
                "endpoints = [\"127.0.0.1:9002\"]\nhttp_version = \"2\"",
            ),
            &[&format!("route[0].green.http_version (line 10): {only}; remove it")],
        );
        check(
            &route(protocol, "[route.health]\nprobe = \"http\"\npath = \"/\""),
            &[&format!("route[0].health.probe (line 6): {only}; write probe = \"tcp\"")],
        );
    }
}

#[test]
fn arms_and_labels() {
    check_green(
        "endpoints = [\"127.0.0.1:9002\"]\nlabel = \"Blue\"",
        "route[0].green.label (line 10): \"Blue\" is also blue's label; write another label for one of the two",
    );
    let other = "is the name of the other arm; write another label, or none";
    let endpoints = "endpoints = [\"127.0.0.1:9001\"]";
    check(
        &arms("http", "", &format!("{endpoints}\nlabel = \"green\""), &format!("{endpoints}\nlabel = \"go\"")),
        &[&format!("route[0].blue.label (line 8): \"green\" {other}")],
    );
    check(
        &arms("http", "", &format!("{endpoints}\nlabel = \"python\""), &format!("{endpoints}\nlabel = \"blue\"")),
        &[&format!("route[0].green.label (line 11): \"blue\" {other}")],
    );
    check(
        &arms("http", "", "label = \"go\"", "label = \"go\""),
        &[
            "route[0].blue.endpoints (line 6): is missing; write endpoints = [\"127.0.0.1:9001\"]",
            "route[0].green.endpoints (line 8): is missing; write endpoints = [\"127.0.0.1:9001\"]",
            "route[0].green.label (line 9): \"go\" is also blue's label; write another label for one of the two",
        ],
    );
    check_green(
        "endpoints = [\"127.0.0.1:9002\"]\nlabel = \"go 2\"",
        "route[0].green.label (line 10): \"go 2\" is not a name; \
         write 1 to 64 of the characters a-z, A-Z, 0-9, '-' and '_'",
    );
    check_green(
        "endpoints = [\"127.0.0.1:9002\"]\nhttp_version = \"3\"",
        "route[0].green.http_version (line 10): unknown value \"3\"; write \"auto\", \"1.1\" or \"2\"",
    );
}

#[test]
fn endpoints() {
    check_green(
        "endpoints = []",
        "route[0].green.endpoints (line 9): is empty; write at least one, such as [\"127.0.0.1:9001\"]",
    );
    let one = |value: &str, expected: &str| {
        check_green(
            &format!("endpoints = [\"{value}\"]"),
            &format!("route[0].green.endpoints[0] (line 9): {expected}"),
        );
    };
    let port = "write a port from 1 to 65535";
    one("host", "\"host\" has no port; write host:port");
    one("[::1]", "\"[::1]\" has no port; write host:port");
    one("host:", &format!("\"host:\" has no valid port; {port}"));
    one("host:http", &format!("\"host:http\" has no valid port; {port}"));
    one("host:+80", &format!("\"host:+80\" has no valid port; {port}"));
    one("host:65536", &format!("\"host:65536\" has no valid port; {port}"));
    one("host:0", &format!("\"host:0\" has port 0, which cannot be connected to; {port}"));
    one("http://host:80", "\"http://host:80\" is a url; write host:port, without \"http://\"");
    one("::1:9001", "\"::1:9001\" is not host:port; write an ipv6 address in brackets: [::1]:9001");
    one("[::1:9001", "\"[::1:9001\" has an open bracket; write [::1]:9001");
    one("[host]:80", "\"[host]:80\" has no ipv6 address in its brackets; write [::1]:9001");
    one(":80", "\"\" has no host; write a name or an address");
    one("127.0.1:80", "\"127.0.1\" is neither a name nor an ipv4 address; write four numbers from 0 to 255, or a name");
    one(
        "user@host:80",
        "\"user@host\" is not a host name; write letters, digits, '-' and '_', in parts separated by dots",
    );
    one(
        "127.0.0.1:8080",
        "127.0.0.1:8080 is where this route listens, so that requests would go in circles; \
         write the address of the system behind it",
    );
    check_green(
        "endpoints = [\"APP:80\", \"b:80\",\n\"app:80\"]",
        "route[0].green.endpoints[2] (line 10): app:80 is in the list twice; remove one of the two",
    );
    let loops = |listen: &str, endpoint: &str| {
        let text = arms("tcp", "", "endpoints = [\"10.0.0.1:1\"]", &format!("endpoints = [\"{endpoint}\"]"));
        parse(&text.replace("127.0.0.1:8080", listen)).is_err()
    };
    for (listen, endpoint, expected) in [
        ("127.0.0.1:8080", "localhost:8080", true),
        ("127.0.0.1:8080", "0.0.0.0:8080", true),
        ("0.0.0.0:8080", "127.0.0.1:8080", true),
        ("[::]:8080", "[::1]:8080", true),
        ("[::]:8080", "localhost:8080", true),
        ("[::1]:8080", "[0:0:0:0:0:0:0:1]:8080", true),
        ("0.0.0.0:8080", "10.0.0.1:8080", false),
        ("10.0.0.1:8080", "localhost:8080", false),
        ("127.0.0.1:8080", "127.0.0.2:8080", false),
        ("127.0.0.1:8080", "app:8080", false),
    ] {
        assert_eq!(loops(listen, endpoint), expected, "{listen} {endpoint}");
    }
    let config = accepted(&arms(
        "http",
        "",
        "endpoints = [\"10.0.0.1:1\"]",
        "endpoints = [\"App_1.Example.:80\", \"[::0:1]:81\"]",
    ));
    let endpoints: Vec<String> = config.routes[0].green.endpoints.iter().map(ToString::to_string).collect();
    assert_eq!(endpoints, ["app_1.example.:80", "[::1]:81"]);
}

#[test]
fn upstream_tls() {
    check_green(
        "endpoints = [\"app:80\"]\ntls = true",
        "route[0].green.tls (line 10): expected a table, found the boolean true; \
         write tls = { server_name = \"app.example\" }",
    );
    let name = |value: &str, problem: &str, cure: &str| {
        check_green(
            &format!("endpoints = [\"app:80\"]\ntls = {{ server_name = \"{value}\" }}"),
            &format!("route[0].green.tls.server_name (line 10): {problem}; {cure}"),
        );
    };
    let dns = "write the dns name in the server's certificate, such as \"app.example\"";
    name("", "is empty, which would switch certificate checks off", dns);
    name("127.0.0.1", "\"127.0.0.1\" is an address, not a name", dns);
    name("::1", "\"::1\" is an address, not a name", dns);
    name("[::1]", "\"[::1]\" is an address, not a name", dns);
    name("*.example", "\"*.example\" has a wildcard, which is not supported", "write a host in full");
    for endpoints in ["\"127.0.0.1:80\"", "\"[::1]:80\"", "\"a:80\", \"b:80\"", "\"a:80\", \"127.0.0.1:80\""] {
        check_green(
            &format!("endpoints = [{endpoints}]\ntls = {{}}"),
            "route[0].green.tls.server_name (line 10): is missing, and the endpoints are not all one dns name; \
             write server_name = \"app.example\", the name in their certificate",
        );
    }
    let tls = |green: &str| {
        let text = arms("mqtt", "", "endpoints = [\"127.0.0.1:9001\"]", green);
        accepted(&text).routes[0].green.tls.clone().unwrap()
    };
    assert_eq!(
        tls("endpoints = [\"App.example.:80\", \"app.example.:81\"]\ntls = { ca = \"roots.pem\" }"),
        UpstreamTls { server_name: "app.example".to_owned(), ca: Some("/etc/crossfade/roots.pem".into()) }
    );
    assert_eq!(
        tls("endpoints = [\"127.0.0.1:80\"]\ntls = { server_name = \"App.Example\" }"),
        UpstreamTls { server_name: "app.example".to_owned(), ca: None }
    );
}

#[test]
fn health() {
    let one = |lines: &str, expected: &str| {
        check_http(&format!("[route.health]\n{lines}"), &format!("route[0].health.{expected}"));
    };
    one("probe = \"ping\"", "probe (line 6): unknown value \"ping\"; write \"tcp\", \"http\" or \"off\"");
    one("probe = \"http\"", "path (line 5): is missing; write path = \"/health\"");
    one("path = \"/\"", "path (line 6): a tcp probe asks for no path; write probe = \"http\", or remove the path");
    one(
        "probe = \"http\"\npath = \"health\"",
        "path (line 7): \"health\" does not start with '/'; write a path such as \"/api\"",
    );
    one(
        "interval = \"1s\"\ntimeout = \"2s\"",
        "timeout (line 7): is longer than the interval, 1s; \
         write a timeout of at most the interval, or a longer interval",
    );
    one("healthy_after = 0", "healthy_after (line 6): 0 is out of range; write a whole number from 1 to 1000");
    one("unhealthy_after = -1", "unhealthy_after (line 6): -1 is out of range; write a whole number from 1 to 1000");
    let health = |lines: &str| accepted(&route("http", &format!("[route.health]\n{lines}"))).routes[0].health.clone();
    assert_eq!(health(""), Some(Health::default()));
    assert_eq!(health("probe = \"off\""), None);
    assert_eq!(health("interval = \"500ms\"").unwrap().timeout, Duration::from_millis(500));
    assert_eq!(
        health("probe = \"http\"\npath = \"/up?deep=1\"").unwrap().probe,
        HealthProbe::Http { path: "/up?deep=1".to_owned() }
    );
}

#[test]
fn mirror_and_guard() {
    check_http(
        "[route.mirror]",
        "route[0].mirror.sample (line 5): is missing; write sample = 10.0 for 10 per cent of the keys",
    );
    check_http(
        "[route.mirror]\nsample = 1\nmax_in_flight = 0",
        "route[0].mirror.max_in_flight (line 7): 0 is out of range; write a whole number from 1 to 10000",
    );
    check_http(
        "mirror = true",
        "route[0].mirror (line 5): expected a table, found the boolean true; write [route.mirror] with sample = 10.0",
    );
    let one = |line: &str, expected: &str| {
        let expected = format!("route[0].guard.{expected}");
        let expected: Vec<&str> = expected.lines().collect();
        check(&route("http", &format!("[route.guard]\n{line}")), &expected);
    };
    one("mode = \"yes\"", "mode (line 6): unknown value \"yes\"; write \"on\" or \"off\"");
    let share = "write a share above 0 and below 1, such as 0.05 for 5 per cent";
    one("max_error_rate = 0", &format!("max_error_rate (line 6): 0 is out of range; {share}"));
    one("max_error_rate = 5", &format!("max_error_rate (line 6): 5 is out of range; {share}"));
    one("max_error_rate = 1.0", &format!("max_error_rate (line 6): 1 is out of range; {share}"));
    one(
        "max_error_rate = nan",
        "max_error_rate (line 6): the float nan is not a finite number; write a number such as 10.5",
    );
    let increase = "write a share of blue's error rate above 0 and at most 100, such as 0.5 for half as much again";
    one("max_error_increase = 0", &format!("max_error_increase (line 6): 0 is out of range; {increase}"));
    one("max_error_increase = 101", &format!("max_error_increase (line 6): 101 is out of range; {increase}"));
    for key in ["max_p50_ratio", "max_p95_ratio", "max_p99_ratio"] {
        let ratio = "write a ratio above 1 and at most 100, such as 2.0 for twice blue's";
        one(&format!("{key} = 1"), &format!("{key} (line 6): 1 is out of range; {ratio}"));
        one(&format!("{key} = 100.5"), &format!("{key} (line 6): 100.5 is out of range; {ratio}"));
    }
    one(
        "min_throughput = 1",
        "min_throughput (line 6): 1 is out of range; write a share above 0 and below 1, such as 0.5 for half of blue's",
    );
    one(
        &format!("min_match_rate = 70\n{MIRROR}"),
        "min_match_rate (line 6): 70 is out of range; write a share above 0 and below 1, such as 0.7 for 70 per cent",
    );
    let unmeasured =
        "is measured by the mirror, and this route has none; add [route.mirror] with sample = 10.0, or remove it";
    one("min_match_rate = 0.7", &format!("min_match_rate (line 6): {unmeasured}"));
    one("[route.guard.pause]\nmin_match_rate = 0.7", &format!("pause.min_match_rate (line 7): {unmeasured}"));
    check(
        &route("mqtt", "[route.guard]\nmin_match_rate = 0.7"),
        &["route[0].guard.min_match_rate (line 6): only an http route has it, and this one is mqtt; remove it"],
    );
    for (key, short, long, shown, range) in [
        ("answer_within", "500ms", "61s", "61s", "\"1s\" to \"60s\""),
        ("baseline", "10500ms", "6m", "360s", "\"10s\" to \"300s\""),
    ] {
        let whole = format!("write whole seconds from {range}");
        let read = if short == "500ms" { "500ms" } else { "10.5s" };
        one(&format!("{key} = \"{short}\""), &format!("{key} (line 6): {read} is out of range; {whole}"));
        one(&format!("{key} = \"{long}\""), &format!("{key} (line 6): {shown} is out of range; {whole}"));
    }
    let count = |most| format!("write a whole number from 1 to {most}");
    one("max_failed_checks = 0", &format!("max_failed_checks (line 6): 0 is out of range; {}", count(1000)));
    one("min_requests = 0", &format!("min_requests (line 6): 0 is out of range; {}", count(1_000_000_000)));
    one("min_keys = 33", &format!("min_keys (line 6): 33 is out of range; {}", count(32)));
    one("shared_cause = \"trip\"", "shared_cause (line 6): unknown value \"trip\"; write \"hold\" or \"rollback\"");
    one(
        "pause = 0.01",
        "pause (line 6): expected a table, found the float 0.01; \
         write [route.guard.pause] with max_error_rate = 0.01",
    );
    one(
        "[route.guard.pause]\nmax_error_rate = 1",
        &format!("pause.max_error_rate (line 7): 1 is out of range; {share}"),
    );
    one(
        "[route.guard.pause]\nmax_error_rate = 0.05",
        "pause.max_error_rate (line 7): 0.05 is not below the limit at which green is taken off, 0.05; \
         write a stricter limit, or leave it out",
    );
    one(
        &format!("min_match_rate = 0.7\n[route.guard.pause]\nmin_match_rate = 0.6\nmax_p95_ratio = 2.5\n{MIRROR}"),
        "pause.min_match_rate (line 8): 0.6 is not above the limit at which green is taken off, 0.7; \
         write a stricter limit, or leave it out\n\
         route[0].guard.pause.max_p95_ratio (line 9): 2.5 is not below the limit at which green is taken off, 2; \
         write a stricter limit, or leave it out",
    );
    let guard = |lines: &str| accepted(&route("http", &format!("[route.guard]\n{lines}"))).routes[0].guard;
    assert_eq!(guard(""), Some(Guard::default()));
    assert_eq!(guard("mode = \"off\"\nbaseline = \"5m\""), None);
    let all = "max_error_increase = 0.5\nmax_p50_ratio = 3\nmin_match_rate = 0.7\nshared_cause = \"rollback\"\n\
               [route.guard.pause]\nmax_p95_ratio = 1.5\nmin_match_rate = 0.8\n[route.mirror]\nsample = 1";
    assert_eq!(
        guard(all),
        Some(Guard {
            max_error_increase: Some(0.5),
            max_p50_ratio: Some(3.0),
            min_match_rate: Some(0.7),
            shared_cause: SharedCause::Rollback,
            pause: PauseLimits { max_error_rate: None, max_p95_ratio: Some(1.5), min_match_rate: Some(0.8) },
            ..Guard::default()
        })
    );
}

const MIRROR: &str = "[route.mirror]\nsample = 1";

/// A plan with these lines in its only step, which is on line 6.
fn step(lines: &str) -> String {
    route("http", &format!("[route.plan]\n[[route.plan.step]]\n{lines}"))
}

#[test]
fn plans() {
    let one = |lines: &str, expected: &str| check(&step(lines), &[&format!("route[0].plan.step[0].{expected}")]);
    check_http(
        "[route.plan]",
        "route[0].plan.step (line 5): is missing; add a [[route.plan.step]] table with green = 1 and bake = \"10m\"",
    );
    check_http("[route.plan]\nstep = []", "route[0].plan.step (line 6): is empty; add a [[route.plan.step]] table");
    one("bake = \"1s\"", "green (line 6): is missing; write green = 10 for 10 per cent");
    one("green = 1", "bake (line 6): is missing; write bake = \"10m\"");
    one("green = 1\nbake = \"0s\"", "bake (line 8): \"0s\" is no time at all; write at least \"1s\"");
    one("green = 1\nbake = 600", "bake (line 8): 600 has no unit; write \"600s\" or \"600m\"");
    check_http(
        "[[route.step]]\ngreen = 1",
        "route[0].step (line 5): unknown key; write its header with plan: [[route.plan.step]]",
    );
    one(
        "green = 1\nbake = \"500ms\"",
        "bake (line 8): 500ms is not a whole number of seconds; write whole seconds, such as \"90s\"",
    );
    one("green = 1\nbake = \"721h\"", "bake (line 8): \"721h\" is longer than 30 days; write at most \"720h\"");
    one(
        "green = 0\nbake = \"1s\"",
        "green (line 7): is 0, so that only copies reach green, and this route has no mirror; \
         add [route.mirror] with sample = 10.0, or begin above 0",
    );
    let good = "green = 1\nbake = \"1s\"";
    one(
        &format!("{good}\napproval = \"go live\""),
        "approval (line 9): \"go live\" is not a name; write 1 to 64 of the characters a-z, A-Z, 0-9, '-' and '_'",
    );
    one(
        &format!("{good}\nwebhook = \"ci.example\""),
        "webhook (line 9): is not a url; write all of it, such as \"https://host.example/path\"",
    );
    one(
        &format!("{good}\nrequire = {{ throughput = 1.5 }}"),
        "require.throughput (line 9): 1.5 is out of range; write a share above 0 and at most 1, such as 0.95",
    );
    one(
        &format!("{good}\nrequire = {{ match_rate = 0.8 }}"),
        "require.match_rate (line 9): is measured by the mirror, and this route has none; \
         add [route.mirror] with sample = 10.0, or remove it",
    );
    one(
        &format!("{good}\nrequire = {{ match_rate = 0.8 }}\n[route.mirror]\nsample = 1"),
        "require.match_rate (line 9): is not measured, because the guard does not ask for it; \
         write min_match_rate = 0.7 in [route.guard], or remove it",
    );
    one(
        &format!("{good}\nrequire = {{}}\notherwise = \"rollback\""),
        "require (line 9): is empty; write require = { throughput = 0.95 }, or remove it",
    );
    one(&format!("{good}\nafter = []"), "after (line 9): is empty; name the routes that come first, or remove it");
    one(
        &format!("{good}\notherwise = \"rollback\""),
        "otherwise (line 9): says what happens when a requirement is not met, and there is none; \
         write require = { throughput = 0.95 }, or remove it",
    );
    check_http(
        &format!("[route.guard]\nmode = \"off\"\n[[route.plan.step]]\n{good}"),
        "route[0].plan.step (line 7): nobody watches green, because the guard of this route is off; \
         remove mode = \"off\" from it",
    );
    check_http(
        &format!("[route.plan]\nexpected_rps = 0\n[[route.plan.step]]\n{good}"),
        "route[0].plan.expected_rps (line 6): 0 is out of range; \
         write requests a second, above 0 and at most 1000000000",
    );
    let second =
        |green: &str| step(&format!("green = 10\nbake = \"1s\"\n[[route.plan.step]]\ngreen = {green}\nbake = \"1s\""));
    check(
        &second("5"),
        &["route[0].plan.step[1].green (line 10): goes down, from 10 % to 5 %; \
           write the steps in rising order; to go back is what the guard and a rollback are for"],
    );
    check(
        &second("10.0"),
        &["route[0].plan.step[1].green (line 10): repeats the 10 % of the step before; \
           write one of the two, with the bake of both"],
    );
    let gate = format!("{good}\nsignal = \"lag\"");
    one(&gate, "signal (line 9): this route has no signal \"lag\"; add a [[route.signal]] of this name");
    let with = |name: &str| format!("{gate}\n[[route.signal]]\nname = {name:?}\nlimit = \"> 1\"");
    one(&with("memory"), "signal (line 9): this route has no signal \"lag\"; write one of memory");
    assert!(accepted(&step(&with("lag"))).routes[0].plan.is_some());
    let two = format!("{good}\n[[route.plan.step]]\ngreen = 2\nbake = \"1s\"");
    assert_eq!(accepted(&step(&two)).routes[0].plan.as_ref().unwrap().steps.len(), 2);
}

#[test]
fn plans_that_wait_for_each_other() {
    let plan = |after: &[&str]| {
        let after = if after.is_empty() { String::new() } else { format!("after = {after:?}\n") };
        format!("[[route.plan.step]]\ngreen = 1\nbake = \"1s\"\n{after}")
    };
    let named = |name: &str, port: u16, plan: &str| {
        format!(
            "[[route]]\nname = \"{name}\"\nprotocol = \"tcp\"\nlisten = \"127.0.0.1:{port}\"\n{plan}\
             [route.blue]\nendpoints = [\"a:1\"]\n[route.green]\nendpoints = [\"b:1\"]\n"
        )
    };
    let after = |names: &[&str]| step(&format!("green = 1\nbake = \"1s\"\nafter = {names:?}"));
    check(
        &after(&["shoe"]),
        &["route[0].plan.step[0].after[0] (line 9): there is no route \"shoe\"; write one of shop"],
    );
    check(
        &after(&["shop"]),
        &["route[0].plan.step[0].after[0] (line 9): waits for itself: shop → shop; \
           remove one of these, so that some route is the first"],
    );
    check(
        &(after(&["a", "a"]) + &named("a", 1, &plan(&[]))),
        &["route[0].plan.step[0].after[1] (line 9): is in the list twice; remove one of the two"],
    );
    check(
        &(after(&["a"]) + &named("a", 1, "")),
        &["route[0].plan.step[0].after[0] (line 9): route a has no plan, so that it is never done; \
           give a a [route.plan], or remove it here"],
    );
    check(
        &(after(&["a"]) + &named("a", 1, "plan = [1]\n")),
        &["route[1].plan (line 18): expected a table, found a list; write [route.plan] with a [[route.plan.step]]"],
    );
    let circle = after(&["a", "b"])
        + &named("a", 1, &plan(&["b"]))
        + &named("b", 2, &plan(&["c"]))
        + &named("c", 3, &plan(&["a"]));
    check(
        &circle,
        &["route[1].plan.step[0].after[0] (line 21): waits for itself: a → b → c → a; \
           remove one of these, so that some route is the first"],
    );
    let waves = after(&["a", "b"])
        + &named("a", 1, &plan(&["b", "c"]))
        + &named("b", 2, &plan(&["c"]))
        + &named("c", 3, &plan(&[]));
    check(&waves, &[]);
    // As many as there can be, each waiting for all before it, take no time.
    let routes = (0..400).map(|n| {
        let names: Vec<String> = (0..n.min(40)).map(|n| format!("r{n}")).collect();
        named(&format!("r{n}"), 1 + n, &plan(&names.iter().map(String::as_str).collect::<Vec<_>>()))
    });
    check(&routes.collect::<String>(), &[]);
}

#[test]
fn signals() {
    let one = |lines: &str, expected: &str| {
        let lines = format!("[[route.signal]]\nname = \"lag\"\nlimit = \"> 1000 for 5m\"\n{lines}");
        check_http(&lines, &format!("route[0].signal[0].{expected}"));
    };
    one("silent = \"trip\"", "silent (line 8): unknown value \"trip\"; write \"hold\", \"ignore\" or \"breach\"");
    let scrape = |lines: &str, expected: &str| {
        one(&format!("[route.signal.scrape]\n{lines}"), &format!("scrape.{expected}"));
    };
    scrape(
        "url = \"127.0.0.1:9100\"\nmetric = \"a\"",
        "url (line 9): is not a url; write all of it, such as \"https://host.example/path\"",
    );
    scrape(
        "url = \"http://a/\"\nmetric = \"a{b=\\\"c\\\"}\"",
        "metric (line 10): \"a{b=\\\"c\\\"}\" is not the name of a metric; \
         write letters, digits, '_' and ':', and no digit first; labels have a table of their own",
    );
    scrape(
        "url = \"http://a/\"\nmetric = \"a\"\nlabels = { \"b-c\" = \"d\" }",
        "labels.b-c (line 11): is not the name of a label; write letters, digits and '_', and no digit first",
    );
    scrape(
        "url = \"http://a/\"\nmetric = \"a\"\nlabels = [\"b\"]",
        "labels (line 11): expected a table, found a list; write labels = { group = \"go\" }",
    );
    scrape(
        "url = \"http://a/\"\nmetric = \"a\"\nevery = \"900ms\"",
        "every (line 11): 900ms is out of range; write a duration from \"1s\" to \"1h\"",
    );
    one(
        "expect_every = \"15s\"\n[route.signal.scrape]\nurl = \"http://a/\"\nmetric = \"a\"",
        "expect_every (line 8): is not longer than scrape.every, 15s, so that every wait would be silence; \
         write a longer one, or leave it out",
    );
    check_http(
        "[[route.signal]]\nname = \"lag\"\nlimit = \"1000\"",
        "route[0].signal[0].limit (line 7): does not begin with '>' or '<', the side that is bad; \
         write a limit such as \"> 1000 for 5m\" or \"< 0.5\"",
    );
    check_http(
        "[[route.signal]]\nname = \"lag\"\nlimit = \"> 1\"\n[[route.signal]]\nname = \"lag\"\nlimit = \"> 2\"",
        "route[0].signal[1].name (line 9): \"lag\" is also the name of another signal here; write another name",
    );

    let signal = |lines: &str| {
        let lines = format!("[[route.signal]]\nname = \"lag\"\nlimit = \"< 5\"\n{lines}");
        accepted(&route("http", &lines)).routes[0].signals[0].clone()
    };
    let limit = SignalLimit { bad: Beyond::Below, value: 5.0, lasting: Duration::ZERO };
    let pushed = Signal {
        name: "lag".to_owned(),
        limit,
        silent: Silent::Hold,
        expect_every: Duration::from_secs(120),
        scrape: None,
    };
    assert_eq!(signal(""), pushed);
    let scraped = signal(
        "[route.signal.scrape]\nurl = \"https://a/m\"\nmetric = \"a:b\"\nlabels = { x = \"é\" }\nevery = \"1m\"",
    );
    let scrape = scraped.scrape.unwrap();
    assert_eq!((scrape.metric.as_str(), scrape.labels["x"].as_str(), scrape.combine), ("a:b", "é", Combine::Worst));
    assert_eq!(scraped.expect_every, Duration::from_secs(180));
}

#[test]
fn alerts() {
    let url = "url = \"https://a/secret\"";
    check_top("[[alert]]", "alert[0].url (line 1): is missing; write url = \"https://hooks.example/…\"");
    check_top(
        "[alert]",
        "alert (line 1): expected a list of tables, found a table; write the header in double brackets: [[alert]]",
    );
    check_top(
        &format!("[[alert]]\n{url}\nseverity = \"high\""),
        "alert[0].severity (line 3): unknown value \"high\"; write \"info\", \"warning\" or \"critical\"",
    );
    check_top(
        &format!("[[alert]]\n{url}\nsecret_file = \"\""),
        "alert[0].secret_file (line 3): is empty; write the path of a file",
    );
    check_top(
        &format!("[[alert]]\n{url}\nname = \"alert-2\"\n[[alert]]\n{url}"),
        "alert[1].name (line 4): \"alert-2\" is also the name of another alert; write another name",
    );
    let file = format!("[[alert]]\n{url}\n[[alert]]\n{url}\nsecret_file = \"s\"\n{}", route("http", ""));
    let config = accepted(&file);
    assert_eq!(config.alerts[0].name, "alert-1");
    assert_eq!((config.alerts[0].format, config.alerts[0].severity), (AlertFormat::Json, Severity::Warning));
    assert_eq!(config.alerts[1].secret_file, Some("/etc/crossfade/s".into()));
    assert!(!format!("{config:?}").contains("/secret"), "the path of a webhook is a secret");
}

/// Two routes: the second with this protocol, listener and further settings. Its listener is on line 13.
fn two(first: (&str, &str, &str), second: (&str, &str, &str)) -> String {
    let one = |name: &str, (protocol, listen, lines): (&str, &str, &str)| {
        route(protocol, lines).replace("\"shop\"", &format!("{name:?}")).replace("127.0.0.1:8080", listen)
    };
    one("a", first) + &one("b", second)
}

#[test]
fn routes_beside_each_other() {
    let files = "tls = { cert = \"a\", key = \"b\" }";
    check(
        &two(("http", "127.0.0.1:80", ""), ("http", "127.0.0.1:81", "")).replace("\"b\"", "\"a\""),
        &["route[1].name (line 11): \"a\" is also the name of route[0]; give one of the two another name"],
    );
    check(
        &two(("http", "127.0.0.1:80", ""), ("http", "127.0.0.1:80", "match = { path = \"/\" }")),
        &["route[1].match (line 14): route[0] takes the same requests of 127.0.0.1:80; \
           write match = { host = \"shop.example\", path = \"/\" } with another host or path"],
    );
    check(
        &two(
            ("http", "127.0.0.1:80", "match = { host = \"A\", path = \"/x\" }"),
            ("http", "127.0.0.1:80", "match = { host = \"a\", path = \"/x/\" }"),
        ),
        &["route[1].match (line 14): route[0] takes the same requests of 127.0.0.1:80; \
           write match = { host = \"shop.example\", path = \"/\" } with another host or path"],
    );
    check(
        &two(("http", "127.0.0.1:80", ""), ("http", "127.0.0.1:80", &format!("match = {{ path = \"/x\" }}\n{files}"))),
        &["route[1].tls (line 15): 127.0.0.1:80 is shared, and this route has tls while route[0] has none; \
           give every route of a listener tls, or none"],
    );
    check(
        &two(("http", "127.0.0.1:80", files), ("http", "127.0.0.1:80", "match = { path = \"/x\" }")),
        &["route[1].tls (line 10): 127.0.0.1:80 is shared, and route[0] has tls while this route has none; \
           give every route of a listener tls, or none"],
    );
    for (first, second) in [("http", "mqtt"), ("mqtt", "mqtt"), ("tcp", "http")] {
        check(
            &two((first, "127.0.0.1:80", ""), (second, "127.0.0.1:80", "")),
            &["route[1].listen (line 13): 127.0.0.1:80 is taken by route[0], \
               and only http routes can share a listener; write another port"],
        );
    }
    for (first, second, overlap) in [
        ("0.0.0.0:80", "127.0.0.1:80", true),
        ("127.0.0.1:80", "0.0.0.0:80", true),
        ("[::]:80", "127.0.0.1:80", true),
        ("[::]:80", "0.0.0.0:80", true),
        ("[::]:80", "[::1]:80", true),
        ("0.0.0.0:80", "[::1]:80", false),
        ("127.0.0.1:80", "127.0.0.2:80", false),
        ("0.0.0.0:80", "127.0.0.1:81", false),
        ("0.0.0.0:0", "127.0.0.1:0", false),
    ] {
        let fault = format!(
            "route[1].listen (line 13): {second} overlaps {first}, where route[0] listens; \
             write another port, or the same address in both"
        );
        let expected: &[&str] = if overlap { &[&fault] } else { &[] };
        check(&two(("http", first, ""), ("http", second, "")), expected);
    }
}

#[test]
fn the_admin_api_keeps_its_address() {
    check(
        &route("http", "").replace("127.0.0.1:8080", "127.0.0.1:9900"),
        &["route[0].listen (line 4): 127.0.0.1:9900 is where the admin api listens; \
           write another port here or in admin.listen"],
    );
    check(
        &route("tcp", "").replace("127.0.0.1:8080", "0.0.0.0:9900"),
        &["route[0].listen (line 4): 0.0.0.0:9900 overlaps 127.0.0.1:9900, where the admin api listens; \
           write another port here or in admin.listen"],
    );
    check(
        &format!("[admin]\nlisten = \"127.0.0.1:0\"\n{}", route("http", "").replace("127.0.0.1:8080", "127.0.0.1:0")),
        &[],
    );
}

#[test]
fn routes_that_may_stand_beside_each_other() {
    let files = "tls = { cert = \"a\", key = \"b\" }";
    let other = "match = { host = \"b.example\" }";
    for (first, second) in [
        (("http", "127.0.0.1:80", ""), ("http", "127.0.0.1:80", other)),
        (("http", "127.0.0.1:80", files), ("http", "127.0.0.1:80", &format!("{other}\n{files}"))),
        (("http", "127.0.0.1:0", ""), ("http", "127.0.0.1:0", other)),
        (("http", "127.0.0.1:0", ""), ("mqtt", "127.0.0.1:0", "")),
        (("mqtt", "127.0.0.1:0", ""), ("mqtt", "127.0.0.1:0", files)),
        (("tcp", "127.0.0.1:0", ""), ("tcp", "127.0.0.1:0", "")),
    ] {
        check(&two(first, second), &[]);
    }
}

#[test]
fn every_fault_of_a_file_is_reported_at_once() {
    let text = r#"
[server]
workers = 0
drain = 25
acces_log = true

[admin]
listen = "0.0.0.0:9900"

[[route]]
name = "shop"
protocol = "http"
listen = "127.0.0.1:8080"
match = { host = "*.x", path = "api" }
key = ["session", "path:0"]
green_percentage = 101

[route.blue]
endpoints = ["host", "app:80"]
tls = true

[route.green]
label = "blue"
endpoints = ["127.0.0.1:8080"]
keyless = "random"

[route.guard]
baseline = "1500ms"

[[route]]
name = "shop"
protocol = "mqtt"
listen = "127.0.0.1:8080"
"#;
    let faults = parse(text).unwrap_err();
    let places: Vec<(&str, usize)> = faults.0.iter().map(|fault| (fault.place.as_str(), fault.line.unwrap())).collect();
    assert_eq!(
        places,
        [
            ("server.workers", 3),
            ("server.drain", 4),
            ("server.acces_log", 5),
            ("admin.tokens", 7),
            ("admin.tls", 7),
            ("route[0].match.host", 14),
            ("route[0].match.path", 14),
            ("route[0].key[0]", 15),
            ("route[0].key[1]", 15),
            ("route[0].green_percentage", 16),
            ("route[0].blue.endpoints[0]", 19),
            ("route[0].blue.tls", 20),
            ("route[0].green.label", 23),
            ("route[0].green.endpoints[0]", 24),
            ("route[0].green.keyless", 25),
            ("route[0].guard.baseline", 28),
            ("route[1].blue", 30),
            ("route[1].green", 30),
            ("route[1].name", 31),
            ("route[1].listen", 33),
        ]
    );
    let shown = faults.to_string();
    assert_eq!(shown.lines().count(), places.len());
    assert!(!shown.contains(". ") && !shown.ends_with('.'), "{shown}");
}

fn plain_arm(arm: Arm, port: u16) -> ArmSettings {
    ArmSettings {
        label: arm.to_string(),
        endpoints: vec![Endpoint { host: "127.0.0.1".to_owned(), port }],
        tls: None,
        http_version: HttpVersion::Auto,
    }
}

#[test]
fn a_file_with_nothing_but_a_route_has_the_defaults() {
    for (protocol, key, name) in [
        (Protocol::Http, KeySource::ClientIp, "http"),
        (Protocol::Mqtt, KeySource::MqttClientId, "mqtt"),
        (Protocol::Tcp, KeySource::ClientIp, "tcp"),
    ] {
        let expected = Config {
            server: Server {
                workers: None,
                drain: Duration::from_secs(25),
                access_log: false,
                max_connections: 50_000,
                max_connections_per_client: None,
            },
            admin: Admin {
                listen: "127.0.0.1:9900".parse().unwrap(),
                state: "/etc/crossfade/crossfade.db".into(),
                history: History {
                    path: "/etc/crossfade/crossfade.history.db".into(),
                    keep: Duration::from_secs(30 * 24 * 3600),
                    max: 64 * 1024 * 1024,
                },
                tokens: None,
                tls: None,
                hosts: vec![],
            },
            alerts: vec![],
            routes: vec![Route {
                name: "shop".to_owned(),
                protocol,
                listen: "127.0.0.1:8080".parse().unwrap(),
                tls: None,
                matching: Match { host: None, path: "/".to_owned() },
                key: vec![key],
                keyless: Keyless::Blue,
                fallback: Fallback::Blue,
                initial_split: Split::NONE,
                expose_arm: false,
                allow_override: false,
                blue: plain_arm(Arm::Blue, 9001),
                green: plain_arm(Arm::Green, 9002),
                timeouts: Timeouts {
                    request_header: Duration::from_secs(10),
                    keepalive: Duration::from_secs(75),
                    connect: Duration::from_secs(3),
                    response_header: Duration::from_secs(60),
                    idle: Duration::from_secs(3600),
                    write: Duration::from_secs(60),
                },
                health: Some(Health {
                    probe: HealthProbe::Tcp,
                    interval: Duration::from_secs(2),
                    timeout: Duration::from_secs(1),
                    healthy_after: 2,
                    unhealthy_after: 1,
                }),
                mirror: None,
                guard: Some(Guard {
                    max_error_rate: 0.05,
                    max_error_increase: None,
                    max_connect_failures: None,
                    max_p50_ratio: None,
                    max_p95_ratio: Some(2.0),
                    max_p99_ratio: None,
                    min_throughput: 0.5,
                    answer_within: Duration::from_secs(5),
                    min_match_rate: None,
                    max_failed_checks: 3,
                    min_requests: 20,
                    min_keys: 3,
                    baseline: Duration::from_secs(300),
                    shared_cause: SharedCause::Hold,
                    pause: PauseLimits { max_error_rate: None, max_p95_ratio: None, min_match_rate: None },
                }),
                signals: vec![],
                plan: None,
            }],
        };
        assert_eq!(accepted(&route(name, "")), expected);
    }
    assert_eq!(
        accepted(&route("http", "[route.mirror]\nsample = 12.5")).routes[0].mirror,
        Some(Mirror {
            sample: Split::from_percent(12.5).unwrap(),
            max_in_flight: 100,
            timeout: Duration::from_secs(5),
            max_body: 65_536,
        })
    );
}

#[test]
fn paths_are_relative_to_the_folder_of_the_file() {
    let config = accepted(&format!(
        "[admin]\nstate = \"a.db\"\ntokens = \"/t\"\ntls = {{ cert = \"c\", key = \"../k\" }}\n{}",
        route("http", "tls = { cert = \"x/c\", key = \"k\" }")
    ));
    assert_eq!(config.admin.state, Path::new("/etc/crossfade/a.db"));
    assert_eq!(config.admin.tokens, Some("/t".into()));
    assert_eq!(config.admin.tls, Some(TlsFiles { cert: "/etc/crossfade/c".into(), key: "/etc/crossfade/../k".into() }));
    assert_eq!(
        config.routes[0].tls,
        Some(TlsFiles { cert: "/etc/crossfade/x/c".into(), key: "/etc/crossfade/k".into() })
    );
}

#[test]
fn sizes_are_read_in_units_or_bytes() {
    for (text, bytes) in [("1", 1), ("\"1B\"", 1), ("\"64KiB\"", 65_536), ("\"16MiB\"", 16_777_216), ("0x10", 16)] {
        let config = accepted(&route("http", &format!("[route.mirror]\nsample = 1\nmax_body = {text}")));
        assert_eq!(config.routes[0].mirror.unwrap().max_body, bytes, "{text}");
    }
}

/// The contract of the design document, word for word.
#[test]
fn the_contracted_file_is_accepted() {
    let config = accepted(
        r#"
[admin]
listen = "127.0.0.1:9900"
state  = "crossfade.db"             # SQLite; created if missing

[[route]]
name     = "shop"
protocol = "http"                   # http | mqtt | tcp
listen   = "127.0.0.1:8080"
match    = { host = "shop.example", path = "/" }    # optional; several http routes may share one listen
key      = ["header:x-session-id", "cookie:session", "query:run_id", "client-ip"]   # first one present wins
keyless  = "blue"                   # blue | random
fallback = "blue"                   # blue | none: who serves when green can't even be connected to
green_percentage = 0                # only for a route that has no recorded split yet

[route.blue]
label     = "python"
endpoints = ["127.0.0.1:9001"]

[route.green]
label     = "go"
endpoints = ["127.0.0.1:9002", "127.0.0.1:9003"]

[route.mirror]                      # off when absent
sample = 10.0                       # per cent of keys

[route.guard]                       # sensible defaults when absent; mode = "off" to disarm
max_error_rate = 0.05
max_p95_ratio  = 2.0

[[route]]
name     = "broker"
protocol = "mqtt"
listen   = "127.0.0.1:1883"
key      = ["mqtt-client-id"]
[route.blue]
label = "erlang"
endpoints = ["127.0.0.1:2883"]
[route.green]
label = "go"
endpoints = ["127.0.0.1:3883"]
"#,
    );
    assert_eq!(config.routes[0].green.label, "go");
    assert_eq!(config.routes[1].key, [KeySource::MqttClientId]);
}

#[test]
fn a_file_is_loaded_from_disk() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("crossfade.example.toml");
    let config = Config::load(&path).unwrap();
    assert_eq!(config.admin.state, path.with_file_name("crossfade.db"));

    let folder = std::env::temp_dir().join(format!("crossfade-config-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let broken = folder.join("broken.toml");
    std::fs::write(&broken, b"a = 1\nbc\xff").unwrap();
    let not_utf8 = Config::load(&broken).unwrap_err().to_string();
    let absent = Config::load(&folder.join("absent.toml")).unwrap_err().to_string();
    std::fs::write(&broken, vec![b'#'; LARGEST + 1]).unwrap();
    let large = Config::load(&broken).unwrap_err().to_string();
    std::fs::remove_dir_all(&folder).unwrap();

    let place = broken.display();
    assert_eq!(not_utf8, format!("{place} (line 2): is not utf-8 from column 3 on; save it as utf-8"));
    assert_eq!(large, format!("{place}: is larger than 1 MiB; name a configuration file of crossfade"));
    assert!(absent.contains("cannot be read: ") && absent.contains("; name a file that exists"), "{absent}");
}

/// The example with the lines in effect that begin with one of these marks.
fn example_with(marks: &[&str]) -> String {
    let line = |line: &str| {
        let mark = marks.iter().find(|mark| line.starts_with(**mark));
        let rest = mark.map_or(line, |mark| &line[mark.len()..]);
        let setting = rest.starts_with('[') || rest.starts_with(|c: char| c.is_ascii_lowercase());
        if setting { rest.to_owned() } else { line.to_owned() }
    };
    EXAMPLE.lines().map(line).collect::<Vec<_>>().join("\n")
}

#[test]
fn the_defaults_shown_in_the_example_are_the_defaults() {
    let text = example_with(&["#"]);
    assert!(text.contains("\nkeepalive"), "{text}");
    assert_eq!(accepted(&text), accepted(EXAMPLE));
    let all = accepted(&example_with(&["#+ ", "#"]));
    assert!(all.routes[0].mirror.is_some() && all.admin.tls.is_some());
}

/// The template has every table of a file, each ready to take one more line below its header.
const TEMPLATE: &str = r#"
[server]
[admin]
[[route]]
name = "shop"
protocol = "http"
listen = "127.0.0.1:8080"
[route.match]
[route.timeouts]
[route.health]
[route.mirror]
sample = 1
[route.guard]
[route.guard.pause]
[route.plan]
[[route.plan.step]]
green = 1
bake = "1s"
[route.plan.step.require]
throughput = 0.9
[route.blue]
endpoints = ["127.0.0.1:9001"]
[route.green]
endpoints = ["127.0.0.1:9002"]
[[route.signal]]
name = "lag"
limit = "> 1"
[route.signal.scrape]
url = "http://a/"
metric = "a"
[[alert]]
url = "http://a/"
"#;

const DOCUMENT: &str = include_str!("../../../docs/configuration.md");

/// Header, key and default of each row of the document's tables, which stand below headings such as `[server]`.
fn documented() -> Vec<(&'static str, &'static str, &'static str)> {
    let mut header = "";
    let mut rows = Vec::new();
    for line in DOCUMENT.lines() {
        if line.starts_with('#') {
            header = line.split('`').nth(1).unwrap_or_default();
        } else if let ["", key, _, default, ..] = line.split('|').map(str::trim).collect::<Vec<_>>()[..]
            && let Some(key) = key.strip_prefix('`').and_then(|key| key.strip_suffix('`'))
        {
            rows.push((header, key, default));
        }
    }
    rows
}

#[test]
fn the_defaults_in_the_document_are_the_defaults() {
    let mut checked = 0;
    for (header, key, default) in documented() {
        let Some(default) = default.strip_prefix('`').and_then(|default| default.strip_suffix('`')) else { continue };
        if default.contains('`') {
            continue; // More than one, and words between them.
        }
        let place = format!("\n{header}\n");
        assert!(TEMPLATE.contains(&place), "no table {header:?}");
        let text = TEMPLATE.replace(&place, &format!("{place}{key} = {default}\n"));
        assert_eq!(accepted(&text), accepted(TEMPLATE), "{header} {key}");
        checked += 1;
    }
    assert!(checked >= 25, "only {checked} defaults are documented");
}

#[test]
fn the_document_and_the_example_have_every_key() {
    let mut text = TEMPLATE.replace("]\n", "]\nunknown-to-all = 1\n");
    text = text.replace("\"127.0.0.1:9001\"]\nunknown-to-all = 1", "\"127.0.0.1:9001\"]");
    text = text.replace("\"127.0.0.1:9002\"]\nunknown-to-all = 1", "\"127.0.0.1:9002\"]");
    let faults = parse(&text).unwrap_err();
    let example = example_with(&["#+ ", "#"]);
    let mut tables = 0;
    for fault in faults.0 {
        let known = fault.cure.strip_prefix("remove it; known here are ").unwrap();
        let header = match fault.place.strip_suffix(".unknown-to-all").unwrap() {
            "route[0].green" => "[route.blue]".to_owned(),
            place if place.ends_with("[0]") => format!("[[{}]]", place.replace("[0]", "")),
            place => format!("[{}]", place.replace("[0]", "")),
        };
        for key in known.split(", ") {
            let table = match header.as_str() {
                "[[route]]" => {
                    ["match", "timeouts", "health", "mirror", "guard", "plan", "signal", "blue", "green"].contains(&key)
                }
                "[route.plan]" => key == "step",
                "[route.guard]" => key == "pause",
                "[[route.signal]]" => key == "scrape",
                _ => false,
            };
            let found = documented().iter().any(|row| (row.0, row.1) == (header.as_str(), key));
            assert!(found || table, "the document lacks {header} {key}");
            let written = example.contains(&format!("{key} = "));
            assert!(written || table, "the example lacks {key}");
        }
        tables += 1;
    }
    assert_eq!(tables, 17);
}

/// Marsaglia's xorshift64: enough to be surprised by, and a seed says it all.
struct Xorshift(u64);

impl Xorshift {
    fn below(&mut self, bound: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % bound.max(1) as u64) as usize
    }

    fn pick<'a>(&mut self, from: &[&'a str]) -> &'a str {
        from[self.below(from.len())]
    }
}

const ODD_VALUES: &[&str] = &[
    "0",
    "-1",
    "1.5",
    "nan",
    "-inf",
    "1e999",
    "99999999999999999999999999999999999999999999",
    "0xff",
    "1_0",
    "true",
    "\"\"",
    "\"x\"",
    "\"0s\"",
    "\"1h\"",
    "\"1KiB\"",
    "\"é*:[\"",
    "\"\\u0000\"",
    "\"::1\"",
    "\"[\"",
    "\":\"",
    "\"/\"",
    "\"127.0.0.1:0\"",
    "\"[::]:8080\"",
    "\"127.0.0.1:9900\"",
    "\"localhost:8080\"",
    "\"header:\"",
    "\"path:-\"",
    "\"http\"",
    "\"http://\"",
    "\"> 1 for 1s\"",
    "\"mqtt\"",
    "\"tcp\"",
    "\"off\"",
    "[]",
    "[[]]",
    "[1, \"a\"]",
    "[\"sni\", \"sni\"]",
    "{}",
    "{ a = {} }",
    "1979-05-27",
    "\"\"\"",
    "'",
];

fn mutated(random: &mut Xorshift) -> String {
    let mut lines: Vec<String> = example_with(&["#+ ", "#"]).lines().map(str::to_owned).collect();
    for _ in 0..=random.below(6) {
        let at = random.below(lines.len());
        let other = random.below(lines.len());
        match random.below(7) {
            0 | 1 => {
                if let Some((key, _)) = lines[at].split_once('=') {
                    lines[at] = format!("{key}= {}", random.pick(ODD_VALUES));
                }
            }
            2 => lines.swap(at, other),
            3 => lines.insert(at, lines[other].clone()),
            4 if lines.len() > 1 => _ = lines.remove(at),
            5 => {
                let mut letters: Vec<char> = lines[at].chars().collect();
                if !letters.is_empty() {
                    let letter = random.below(letters.len());
                    letters[letter] =
                        random.pick(&["\"", "[", "]", "=", ".", "a", "9", "\u{0}", "é", "\n"]).chars().next().unwrap();
                }
                lines[at] = letters.into_iter().collect();
            }
            _ => {
                let letters: Vec<char> = lines[at].chars().collect();
                lines[at] = letters[..random.below(letters.len() + 1)].iter().collect();
            }
        }
    }
    lines.join("\n")
}

#[test]
fn no_mutation_of_the_example_makes_it_panic() {
    use std::hash::{BuildHasher, RandomState};

    let seed = match std::env::var("CONFIG_SEED") {
        Ok(seed) => seed.parse().unwrap(),
        Err(_) => RandomState::new().hash_one(0) | 1,
    };
    println!("CONFIG_SEED={seed}");
    let mut random = Xorshift(seed);
    let (mut good, mut bad) = (0, 0);
    for _ in 0..2000 {
        let text = mutated(&mut random);
        match parse(&text) {
            Ok(config) => {
                assert!(!config.routes.is_empty());
                good += 1;
            }
            Err(faults) => {
                assert!(!faults.0.is_empty(), "refused without a reason:\n{text}");
                for fault in &faults.0 {
                    let shown = fault.to_string();
                    assert!(!shown.contains('\n') && shown.len() < 2000, "{shown:?} in\n{text}");
                    assert!(fault.line.is_none_or(|line| (1..=text.lines().count() + 1).contains(&line)), "{shown}");
                }
                bad += 1;
            }
        }
    }
    assert!(good > 20 && bad > 20, "{good} accepted, {bad} refused: the mutations test one side only");
}

#[test]
fn a_file_made_to_take_long_is_refused_quickly() {
    let base = Path::new("");
    let many = "[[route]]\nname = \"a\"\n".repeat(18_000);
    let keys = format!("[[route]]\nkey = [{}]", "\"client-ip\",".repeat(80_000));
    for (text, expected) in
        [("=\n".repeat(500_000), "syntax"), (many, "has 18000 entries"), (keys, "has 80000 entries")]
    {
        let faults = Config::parse(&text, base).unwrap_err();
        assert!(faults.0.len() <= 110, "{} faults", faults.0.len());
        assert!(faults.to_string().contains(expected), "{expected}");
    }
}
