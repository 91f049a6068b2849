//! The account of every request as a file: what the load sent and got, and what each origin saw, to be joined by
//! [`verify`].
//!
//! Text, one entry a line, fields separated by tabs, so that `grep`, `sort` and `join` work on it too. The first line
//! says whose account it is. Times are Unix time in microseconds.
//!
//! ```text
//! # loadtest-ledger 1 load 1a2b3c4d
//! 1a2b3c4d0000002a  user-7  ok  go  1763723531000123  1763723531000874
//! 1a2b3c4d0000002b  user-9  reset  -  1763723531000223  1763723531000991
//! ```
//!
//! A load's entry: id, key, outcome, arm (`-` unknown), when it was sent, when its fate was known. The outcome is `ok`,
//! `error` (answered with a failure), `again` (a second answer to an id), or the kind of failure.
//!
//! ```text
//! # loadtest-ledger 1 origin go
//! 1a2b3c4d0000002a  user-7  seen  1763723531000398
//! 1a2b3c4d0000002a  user-7  shadow  1763723531000401
//! ```
//!
//! An origin's entry: id, key, `seen` or `shadow` (a mirrored copy, marked by `x-shadow`), when it came in.

use std::{
    fmt,
    fs::File,
    io::{self, Write},
    path::{Path, PathBuf},
    str::FromStr,
    sync::mpsc::{self, SyncSender},
    thread::{self, JoinHandle},
    time::{SystemTime, UNIX_EPOCH},
};

pub mod verify;

const MAGIC: &str = "# loadtest-ledger 1";
/// Text gathered before it is handed to the writing thread, in bytes.
const CHUNK: usize = 64 * 1024;
/// Chunks on their way to the disk: 16 MiB. When full, whoever writes waits: a ledger loses nothing.
const CHUNKS: usize = 256;

/// The id of a request: the run in the upper half, its number in the lower. Sixteen hexadecimal digits on the wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Id(pub u64);

impl Id {
    /// Length on the wire, in bytes.
    pub const LEN: usize = 16;

    /// The id of request `number` of `run`.
    pub fn new(run: u32, number: u32) -> Self {
        Self(u64::from(run) << 32 | u64::from(number))
    }

    /// The run it belongs to.
    pub fn run(self) -> u32 {
        (self.0 >> 32) as u32
    }

    /// Its number in the run.
    pub fn number(self) -> u32 {
        self.0 as u32
    }

    /// As sent: sixteen lower-case hexadecimal digits.
    pub fn digits(self) -> [u8; Self::LEN] {
        const DIGITS: &[u8; 16] = b"0123456789abcdef";
        let mut digits = [0; Self::LEN];
        for (nth, digit) in digits.iter_mut().enumerate() {
            *digit = DIGITS[(self.0 >> (60 - 4 * nth)) as usize & 15];
        }
        digits
    }

    /// Reads what [`digits`](Self::digits) wrote; `None` for anything else.
    pub fn parse(digits: &[u8]) -> Option<Self> {
        if digits.len() != Self::LEN {
            return None;
        }
        digits.iter().try_fold(0_u64, |id, digit| Some(id << 4 | u64::from(char::from(*digit).to_digit(16)?))).map(Self)
    }
}

impl fmt::Display for Id {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

/// Unix time now, in microseconds.
pub fn unix_micros() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_micros()).unwrap_or(u64::MAX)
}

/// Whose account a file is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Owner {
    /// A load, by the first half of its ids.
    Load { run: u32 },
    /// An origin, by its label.
    Origin { label: String },
}

impl fmt::Display for Owner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Load { run } => write!(f, "{MAGIC} load {run:08x}"),
            Self::Origin { label } => write!(f, "{MAGIC} origin {label}"),
        }
    }
}

impl FromStr for Owner {
    type Err = String;

    fn from_str(line: &str) -> Result<Self, String> {
        let owner = line.strip_prefix(MAGIC).and_then(|rest| rest.trim_start().split_once(' '));
        match owner {
            Some(("load", run)) => u32::from_str_radix(run, 16).ok().map(|run| Self::Load { run }),
            Some(("origin", label)) => Some(Self::Origin { label: label.to_owned() }),
            _ => None,
        }
        .ok_or_else(|| format!("the first line is not {MAGIC:?} with load or origin; give a file that loadtest wrote"))
    }
}

/// A ledger cannot be written.
#[derive(Debug, thiserror::Error)]
#[error("{}: cannot write the ledger; give a path in a folder that exists and has room", .path.display())]
pub struct WriteError {
    path: PathBuf,
    #[source]
    source: io::Error,
}

/// A ledger being written, by a thread of its own.
#[derive(Debug)]
pub struct Ledger {
    path: PathBuf,
    chunks: SyncSender<Vec<u8>>,
    writing: JoinHandle<io::Result<()>>,
}

impl Ledger {
    /// Creates the file, or empties it. Errors: it cannot be created.
    pub fn create(path: &Path, owner: &Owner) -> Result<Self, WriteError> {
        let failed = |source| WriteError { path: path.to_owned(), source };
        let mut file = File::create(path).map_err(failed)?;
        writeln!(file, "{owner}").map_err(failed)?;
        let (chunks, incoming) = mpsc::sync_channel::<Vec<u8>>(CHUNKS);
        let writing = thread::Builder::new()
            .name("ledger".to_owned())
            .spawn(move || {
                // After a failure the channel is gone, and what pages send is thrown away: `close` says why.
                incoming.iter().try_for_each(|chunk| file.write_all(&chunk)).and_then(|()| file.flush())
            })
            .map_err(failed)?;
        Ok(Self { path: path.to_owned(), chunks, writing })
    }

    /// A page for one thread (or one lock) to write on.
    pub fn page(&self) -> Page {
        Page { text: Vec::with_capacity(CHUNK), chunks: self.chunks.clone() }
    }

    /// Waits until all pages are dropped and everything is written. Errors: something was not.
    pub fn close(self) -> Result<(), WriteError> {
        drop(self.chunks);
        let written = self.writing.join().expect("writing does not panic");
        written.map_err(|source| WriteError { path: self.path, source })
    }
}

/// Where entries are written; they reach the file when a chunk is full, when asked to, and when the page is dropped.
#[derive(Debug)]
pub struct Page {
    text: Vec<u8>,
    chunks: SyncSender<Vec<u8>>,
}

impl Page {
    /// An entry of a load's account.
    pub fn load(&mut self, id: Id, key: &str, outcome: &str, arm: &str, sent_us: u64, done_us: u64) {
        self.line(format_args!("{id}\t{key}\t{outcome}\t{arm}\t{sent_us}\t{done_us}\n"));
    }

    /// An entry of an origin's account. What a peer sent as its key is written with control characters left out.
    pub fn origin(&mut self, id: Id, key: &str, shadow: bool, seen_us: u64) {
        let key: &str = if key.chars().any(char::is_control) { "?" } else { key };
        let what = if shadow { "shadow" } else { "seen" };
        self.line(format_args!("{id}\t{key}\t{what}\t{seen_us}\n"));
    }

    /// Hands what is gathered to the writing thread.
    pub fn flush(&mut self) {
        if !self.text.is_empty() {
            let chunk = std::mem::replace(&mut self.text, Vec::with_capacity(CHUNK));
            let _ = self.chunks.send(chunk);
        }
    }

    fn line(&mut self, line: fmt::Arguments<'_>) {
        self.text.write_fmt(line).expect("memory takes everything");
        if self.text.len() >= CHUNK - 1024 {
            self.flush();
        }
    }
}

impl Drop for Page {
    fn drop(&mut self) {
        self.flush();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_read_as_they_are_written() {
        for id in [Id(0), Id(u64::MAX), Id::new(0x1a2b_3c4d, 42)] {
            assert_eq!(Id::parse(&id.digits()), Some(id));
            assert_eq!(id.to_string().as_bytes(), id.digits());
        }
        assert_eq!((Id::new(7, 42).run(), Id::new(7, 42).number()), (7, 42));
        for faulty in ["", "1", "1a2b3c4d0000002", "1a2b3c4d0000002aa", "1a2b3c4d0000002g", "+1a2b3c4d000002a"] {
            assert_eq!(Id::parse(faulty.as_bytes()), None, "{faulty}");
        }
    }

    #[test]
    fn the_first_line_names_the_owner() {
        for owner in [Owner::Load { run: 0x1a2b_3c4d }, Owner::Origin { label: "go 2".to_owned() }] {
            assert_eq!(owner.to_string().parse(), Ok(owner));
        }
        for faulty in
            ["", "id\tkey", "# loadtest-ledger 1", "# loadtest-ledger 1 load xyz", "# loadtest-ledger 2 load 1"]
        {
            assert!(faulty.parse::<Owner>().is_err(), "{faulty}");
        }
    }
}
