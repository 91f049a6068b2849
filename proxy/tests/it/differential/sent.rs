//! The bytes themselves, asked whether the fault that a rule names is in them.

/// What was sent, asked for what a rule says was wrong with it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sent<'a> {
    pub(super) bytes: &'a [u8],
}

impl Sent<'_> {
    /// Whatever the case of letters.
    pub(super) fn count(self, what: &[u8]) -> usize {
        self.bytes.windows(what.len()).filter(|window| window.eq_ignore_ascii_case(what)).count()
    }

    pub(super) fn has(self, what: &[u8]) -> bool {
        self.count(what) > 0
    }

    pub(super) fn has_bare_lf(self) -> bool {
        self.bytes.starts_with(b"\n") || self.bytes.windows(2).any(|pair| pair[1] == b'\n' && pair[0] != b'\r')
    }

    /// One that is neither visible nor part of a line's end.
    pub(super) fn has_odd_byte(self) -> bool {
        self.bytes.iter().any(|byte| !matches!(byte, b' '..=b'~' | b'\t' | b'\r' | b'\n'))
    }

    pub(super) fn has_forbidden_trailer(self) -> bool {
        const NAMES: [&str; 20] = [
            "transfer-encoding",
            "content-length",
            "host",
            "trailer",
            "connection",
            "te",
            "authorization",
            "content-encoding",
            "forwarded",
            "x-forwarded-for",
            "x-forwarded-host",
            "x-forwarded-proto",
            "x-crossfade-arm",
            "x-shadow",
            "cookie",
            "set-cookie",
            "proxy-authorization",
            "upgrade",
            "keep-alive",
            "expect",
        ];
        let lines: Vec<_> = self.bytes.split(|byte| *byte == b'\n').collect();
        let is_last_chunk = |line: &[u8]| {
            let zeros = line.iter().take_while(|byte| **byte == b'0').count();
            zeros > 0 && matches!(line[zeros..].first(), Some(b';' | b'\r'))
        };
        let names_one = |line: &[u8]| {
            let name = line.split(|byte| *byte == b':').next().unwrap_or_default();
            NAMES.iter().any(|known| name.eq_ignore_ascii_case(known.as_bytes()))
        };
        let ends: Vec<_> = (0..lines.len()).filter(|at| is_last_chunk(lines[*at])).collect();
        ends.iter().any(|end| lines[end + 1..].iter().take_while(|line| **line != b"\r").any(|line| names_one(line)))
    }

    /// A line that could be a chunk's size but for white space, or of too many digits.
    pub(super) fn has_odd_size(self) -> bool {
        self.bytes.split(|byte| *byte == b'\n').any(|line| {
            let size = line.split(|byte| matches!(byte, b';' | b'\r')).next().unwrap_or_default();
            let digits = size.iter().take_while(|byte| byte.is_ascii_hexdigit()).count();
            digits > 15 || (digits > 0 && size.len() > digits && size[digits..].iter().all(u8::is_ascii_whitespace))
        })
    }
}
