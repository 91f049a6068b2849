use crate::{
    cuts::{self, Draw},
    wire::chunked::{Chunks, Malformed},
};

/// What came of a body: bytes that belong to it and whether it ended, and what the chunks held.
type Outcome = (Result<(usize, bool), Malformed>, Vec<u8>);

/// What no trailer may say, with hyphens for underscores: framing, routing, and who somebody is.
const FORBIDDEN: [&str; 10] = [
    "authorization",
    "connection",
    "content-length",
    "cookie",
    "forwarded",
    "host",
    "transfer-encoding",
    "x-crossfade-arm",
    "x-forwarded-for",
    "x-forwarded-proto",
];

/// A chunked body gives the same data, end and verdict whole, byte by byte and in pieces; what is held back is never more
/// than what has come and was not passed on; another reader agrees about each size and about the whole; no trailer says
/// what only a head may; bytes put into chunks come out again.
pub fn chunked(bytes: &[u8]) {
    let shown = bytes.escape_ascii();
    let whole = fed(std::iter::once(bytes));
    assert_eq!(fed(bytes.chunks(1)), whole, "byte by byte: {shown}");
    assert_eq!(fed(cuts::pieces(bytes)), whole, "in pieces: {shown}");
    match whole {
        (Ok((used, true)), data) => {
            let (plain, trailers) = plainly(&bytes[..used]).unwrap_or_else(|| panic!("{shown}"));
            assert_eq!(plain, data, "{shown}");
            assert!(!trailers.iter().any(|name| FORBIDDEN.contains(&name.as_str())), "{trailers:?}: {shown}");
            assert_eq!(fed([&bytes[..used], b"0\r\n\r\n"].into_iter()), (Ok((used, true)), data), "{shown}");
            let cut = cuts::prefixes(bytes, used).into_iter().filter(|cut| *cut < used);
            cut.for_each(|cut| assert_eq!(fed(std::iter::once(&bytes[..cut])).0, Ok((cut, false)), "{cut}: {shown}"));
        }
        (Ok((used, false)), _) => assert!(used == bytes.len() && plainly(bytes).is_none(), "{shown}"),
        (Err(Malformed), _) => assert!(plainly(bytes).is_none_or(|(_, trailers)| !trailers.is_empty()), "{shown}"),
    }

    let body = in_chunks(bytes);
    assert_eq!(fed(std::iter::once(body.as_slice())), (Ok((body.len(), true)), bytes.to_vec()), "{shown}");
    assert_eq!(fed(cuts::pieces(&body)), (Ok((body.len(), true)), bytes.to_vec()), "{shown}");
}

fn fed<'a>(pieces: impl Iterator<Item = &'a [u8]>) -> Outcome {
    let (mut chunks, mut data, mut used, mut held) = (Chunks::default(), Vec::new(), 0, 0);
    for piece in pieces {
        let fed = match chunks.feed(piece, |piece| data.extend_from_slice(piece)) {
            Ok(fed) => fed,
            Err(Malformed) => return (Err(Malformed), data),
        };
        assert!(fed.used <= piece.len() && (fed.done || fed.used == piece.len()), "{fed:?}");
        // Between two reads a body holds back only what it held back before or has just been given.
        assert!(chunks.open() <= held + fed.used && (!fed.done || chunks.open() == 0), "{chunks:?}");
        held = chunks.open();
        used += fed.used;
        if fed.done {
            return (Ok((used, true)), data);
        }
    }
    (Ok((used, false)), data)
}

/// Reads a body that is whole, line by line, leaving it to `httparse` what a size is and what a trailer. `None`: it is
/// none. With the names of its trailers, in lower case and with hyphens for underscores.
fn plainly(mut body: &[u8]) -> Option<(Vec<u8>, Vec<String>)> {
    let mut data = Vec::new();
    loop {
        let end = body.iter().position(|byte| *byte == b'\n')? + 1;
        let line = body.split_off(..end)?;
        let text = line.strip_suffix(b"\r\n")?;
        let (digits, extension) = text.split_at(text.iter().position(|byte| *byte == b';').unwrap_or(text.len()));
        let visible = |byte: &u8| matches!(byte, b' '..=b'~' | b'\t');
        if !(1..=16).contains(&digits.len())
            || !digits.iter().all(u8::is_ascii_hexdigit)
            || !extension.iter().all(visible)
        {
            return None;
        }
        let Ok(httparse::Status::Complete((length, size))) = httparse::parse_chunk_size(line) else { return None };
        assert_eq!(length, line.len(), "{}", line.escape_ascii());
        if size == 0 {
            break;
        }
        data.extend_from_slice(body.split_off(..usize::try_from(size).ok()?)?);
        body = body.strip_prefix(b"\r\n")?;
    }
    let mut fields = vec![httparse::EMPTY_HEADER; body.iter().filter(|byte| **byte == b'\n').count()];
    match httparse::parse_headers(body, &mut fields) {
        Ok(httparse::Status::Complete((length, fields))) if length == body.len() && body.ends_with(b"\r\n") => {
            let names = fields.iter().map(|field| field.name.to_ascii_lowercase().replace('_', "-"));
            Some((data, names.collect()))
        }
        _ => None,
    }
}

/// The bytes as a body, in chunks, extensions and trailers of the drawing's choice.
fn in_chunks(bytes: &[u8]) -> Vec<u8> {
    let mut draw = Draw::from(bytes);
    let mut body = Vec::new();
    for chunk in cuts::pieces(bytes) {
        let size = match draw.below(3) {
            0 => format!("{:x}", chunk.len()),
            1 => format!("{:016X}", chunk.len()),
            _ => format!("{:x};name=\"value\"", chunk.len()),
        };
        body.extend([size.as_bytes(), b"\r\n", chunk, b"\r\n"].concat());
    }
    body.extend_from_slice(if draw.below(2) == 0 { b"0\r\n\r\n" } else { b"00\r\nx-sum: 1\r\n\r\n" });
    body
}
