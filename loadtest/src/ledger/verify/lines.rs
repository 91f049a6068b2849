//! Reads files line by line, whatever is in them, with a bound on each line.

use std::{
    fs::File,
    io::{BufRead, BufReader, Read},
    path::{Path, PathBuf},
    str,
};

use super::{Fault, Owner};

/// The longest line, in bytes.
const LONGEST: usize = 4096;
const BUFFER: usize = 256 * 1024;

/// The lines of a file.
pub(super) struct Lines {
    path: PathBuf,
    reader: BufReader<File>,
    number: u64,
    line: Vec<u8>,
}

/// A line, without its end.
pub(super) enum Line<'a> {
    Whole(&'a str),
    /// The last one, and its end is missing.
    Cut,
}

impl Lines {
    /// Errors: it cannot be opened.
    pub(super) fn open(path: &Path) -> Result<Self, Fault> {
        let file = File::open(path).map_err(|source| Fault::Read { path: path.to_owned(), source })?;
        Ok(Self { path: path.to_owned(), reader: BufReader::with_capacity(BUFFER, file), number: 0, line: Vec::new() })
    }

    /// The file and the number of the last line.
    pub(super) fn place(&self) -> String {
        format!("{}:{}", self.path.display(), self.number)
    }

    /// What is wrong with the last line.
    pub(super) fn fault(&self, problem: impl Into<String>) -> Fault {
        Fault::Line { path: self.path.clone(), line: self.number, problem: problem.into() }
    }

    /// Reads the first line of a ledger. Errors: it is none.
    pub(super) fn owner(&mut self) -> Result<Owner, Fault> {
        let owner = match self.next()? {
            Some(Line::Whole(line)) => line.parse(),
            Some(Line::Cut) | None => "".parse(),
        };
        owner.map_err(|problem: String| self.fault(problem))
    }

    /// The next line; `None` behind the last. Errors: it cannot be read, is too long, or is no text.
    pub(super) fn next(&mut self) -> Result<Option<Line<'_>>, Fault> {
        self.line.clear();
        let read = self.reader.by_ref().take(LONGEST as u64 + 1).read_until(b'\n', &mut self.line);
        read.map_err(|source| Fault::Read { path: self.path.clone(), source })?;
        self.number += 1;
        match self.line.split_last() {
            None => Ok(None),
            Some((b'\n', line)) => match str::from_utf8(line) {
                Ok(line) => Ok(Some(Line::Whole(line))),
                Err(_) => Err(self.fault("is no UTF-8 text; give the file as loadtest wrote it")),
            },
            Some(_) if self.line.len() > LONGEST => {
                Err(self.fault(format!("longer than {LONGEST} bytes; give the file as loadtest wrote it")))
            }
            Some(_) => Ok(Some(Line::Cut)),
        }
    }
}
