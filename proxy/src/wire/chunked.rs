//! The chunked coding (RFC 9112, section 7.1), read strictly and in whatever pieces it comes, so that it can be passed on
//! byte for byte: what two parties could read in two ways is refused.

use super::http1::{is_token, reads_as};

/// The most bytes of chunk extensions in a body, and of its trailers. Nobody needs them; whoever sends them without end is
/// up to something.
const MAX_EXTENSIONS: usize = 16 * 1024;
const MAX_TRAILERS: usize = 16 * 1024;
/// Digits of a chunk's size.
const MAX_DIGITS: usize = 16;
/// Fields that mean nothing good in a trailer (RFC 9110, section 6.5.1): framing, routing, and what says who somebody is.
const FORBIDDEN: [&[u8]; 20] = [
    b"transfer-encoding",
    b"content-length",
    b"host",
    b"trailer",
    b"connection",
    b"te",
    b"authorization",
    b"content-encoding",
    b"forwarded",
    b"x-forwarded-for",
    b"x-forwarded-host",
    b"x-forwarded-proto",
    b"x-crossfade-arm",
    b"x-shadow",
    b"cookie",
    b"set-cookie",
    b"proxy-authorization",
    b"upgrade",
    b"keep-alive",
    b"expect",
];

/// Finds the end of a chunked body.
#[derive(Debug, Default)]
pub struct Chunks {
    state: State,
    extensions: usize,
    trailers: usize,
    /// Bytes since the last place up to which all is known to be right.
    open: usize,
    /// The line of a trailer so far.
    line: Vec<u8>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum State {
    /// Before the first digit of a size.
    #[default]
    Start,
    Size(u64),
    /// Behind the `;` that follows a size.
    Extension(u64),
    /// Behind the CR that ends a size.
    SizeCr(u64),
    Data(u64),
    DataEnd,
    DataCr,
    Trailer,
    TrailerCr,
    Done,
}

/// What a piece of a body came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fed {
    /// Bytes of the piece that belong to the body.
    pub used: usize,
    /// Whether the body ends with them.
    pub done: bool,
}

/// What came is no chunked body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Malformed;

impl Chunks {
    /// Takes a piece. `data`: sees what the chunks hold, in order. Errors: it is malformed, whatever may follow.
    pub fn feed(&mut self, bytes: &[u8], mut data: impl FnMut(&[u8])) -> Result<Fed, Malformed> {
        let mut at = 0;
        while let (Some(&byte), false) = (bytes.get(at), self.state == State::Done) {
            if let State::Data(left) = self.state {
                let here = usize::try_from(left).unwrap_or(usize::MAX).min(bytes.len() - at);
                data(&bytes[at..at + here]);
                at += here;
                let left = left - here as u64;
                self.state = if left == 0 { State::DataEnd } else { State::Data(left) };
                continue;
            }
            self.state = self.step(byte)?;
            at += 1;
            let settled = matches!(self.state, State::Data(_) | State::Start | State::Done)
                || (self.state == State::Trailer && self.line.is_empty());
            self.open = if settled { 0 } else { self.open + 1 };
        }
        Ok(Fed { used: at, done: self.state == State::Done })
    }

    /// How many of the last bytes are a line that is not whole yet: they may still turn out to be wrong.
    pub fn open(&self) -> usize {
        self.open
    }

    fn step(&mut self, byte: u8) -> Result<State, Malformed> {
        let digit = char::from(byte).to_digit(16).map(u64::from);
        Ok(match (self.state, byte) {
            (State::Start, _) => State::Size(digit.ok_or(Malformed)?),
            (State::Size(size), b'\r') => State::SizeCr(size),
            (State::Size(size), b';') => State::Extension(size),
            (State::Size(size), _) => match digit {
                // Fifteen digits are 2^60: more than anybody sends, and nothing overflows. Zeros in front end, too.
                Some(digit) if size < 1 << 56 && self.open < MAX_DIGITS => State::Size(size << 4 | digit),
                _ => return Err(Malformed),
            },
            (State::Extension(size), b'\r') => State::SizeCr(size),
            (State::Extension(size), b' '..=b'~' | b'\t') if self.extensions < MAX_EXTENSIONS => {
                self.extensions += 1;
                State::Extension(size)
            }
            (State::SizeCr(0), b'\n') => State::Trailer,
            (State::SizeCr(size), b'\n') => State::Data(size),
            (State::DataEnd, b'\r') => State::DataCr,
            (State::DataCr, b'\n') => State::Start,
            (State::Trailer, b'\r') => State::TrailerCr,
            (State::Trailer, b'\t' | b' '..=b'~' | 0x80..) if self.trailers < MAX_TRAILERS => {
                self.trailers += 1;
                self.line.push(byte);
                State::Trailer
            }
            (State::TrailerCr, b'\n') if self.line.is_empty() => State::Done,
            (State::TrailerCr, b'\n') => {
                check_trailer(&self.line)?;
                self.line.clear();
                State::Trailer
            }
            _ => return Err(Malformed),
        })
    }
}

fn check_trailer(line: &[u8]) -> Result<(), Malformed> {
    let end =
        line.iter().position(|byte| !is_token(*byte)).filter(|end| *end > 0 && line[*end] == b':').ok_or(Malformed)?;
    let name = &line[..end];
    if FORBIDDEN.iter().any(|forbidden| reads_as(name, forbidden)) { Err(Malformed) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn whole(bytes: &[u8]) -> Result<(Fed, Vec<u8>), Malformed> {
        let mut data = Vec::new();
        let fed = Chunks::default().feed(bytes, |piece| data.extend_from_slice(piece))?;
        Ok((fed, data))
    }

    #[test]
    fn a_body_ends_where_it_ends_in_whatever_pieces_it_comes() {
        for (body, data) in [
            ("0\r\n\r\n", ""),
            ("5\r\nhello\r\n0\r\n\r\n", "hello"),
            ("5;a=\"b;c\"\r\nhello\r\nA\r\n0123456789\r\n000\r\nx-sum: 1\r\ny:\r\n\r\n", "hello0123456789"),
            ("1\r\n\n\r\n0\r\n\r\n", "\n"),
        ] {
            let behind = format!("{body}GET / HTTP/1.1\r\n");
            let (fed, found) = whole(behind.as_bytes()).unwrap();
            assert_eq!((fed, found), (Fed { used: body.len(), done: true }, data.as_bytes().to_vec()));
            for cut in 0..body.len() {
                let (mut chunks, mut found) = (Chunks::default(), Vec::new());
                let first = chunks.feed(&body.as_bytes()[..cut], |piece| found.extend_from_slice(piece)).unwrap();
                assert_eq!(first, Fed { used: cut, done: false });
                let rest = chunks.feed(&behind.as_bytes()[cut..], |piece| found.extend_from_slice(piece)).unwrap();
                assert_eq!((rest.used + cut, rest.done), (body.len(), true), "{body:?} cut at {cut}");
                assert_eq!(found, data.as_bytes());
            }
        }
    }

    #[test]
    fn what_can_be_read_in_two_ways_is_refused() {
        for faulty in [
            "\r\n",
            "x\r\n",
            " 5\r\n",
            "5 \r\n",
            "5\n",
            "+5\r\n",
            "-1\r\n",
            "0x5\r\n",
            "5\r\nhelloX",
            "5\r\nhello\n",
            "5\r\nhello\r\r\n",
            "5;a\nb\r\n",
            "5;a\x00\r\n",
            "5;a\rb\r\n",
            "fffffffffffffffff\r\n",
            "00000000000000000",
            "0\r\nX-Forwarded-For: 10.0.0.1\r\n\r\n",
            "0\r\n\n",
            "0\r\nx: y\n\r\n",
            "0\r\n x: y\r\n\r\n",
            "0\r\nx y: z\r\n\r\n",
            "0\r\nnothing\r\n\r\n",
            "0\r\nContent-Length: 5\r\n\r\n",
            "0\r\nX_Forwarded-for: 10.0.0.1\r\n\r\n",
            "0\r\ntransfer-encoding: chunked\r\n\r\n",
        ] {
            assert_eq!(whole(faulty.as_bytes()).err(), Some(Malformed), "{faulty:?}");
            for cut in 0..faulty.len() {
                let (first, second) = faulty.as_bytes().split_at(cut);
                let mut chunks = Chunks::default();
                let fed = chunks.feed(first, |_| {}).and_then(|_| chunks.feed(second, |_| {}));
                assert_eq!(fed, Err(Malformed), "{faulty:?} cut at {cut}");
            }
        }
        let endless = [b"1;".as_slice(), &[b'x'; MAX_EXTENSIONS + 1]].concat();
        assert_eq!(whole(&endless).err(), Some(Malformed));
        let endless = [b"0\r\nx:".as_slice(), &[b'x'; MAX_TRAILERS]].concat();
        assert_eq!(whole(&endless).err(), Some(Malformed));
    }
}
