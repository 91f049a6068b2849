//! What is wrong with a file: where, what, and what to do about it.

use std::{error::Error, fmt};

use serde::Serialize;

/// One thing that is wrong, with the place to look at and the way out. Lower case, no full stop.
#[derive(Clone, Debug, Eq, PartialEq, Serialize)]
pub struct Fault {
    /// The setting, as a path from the top of the file: `route[1].green.endpoints[0]`, counted from 0.
    pub place: String,
    /// Counted from 1. `None` when no line is to blame.
    pub line: Option<usize>,
    pub problem: String,
    pub cure: String,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.place)?;
        if let Some(line) = self.line {
            write!(f, " (line {line})")?;
        }
        write!(f, ": {}; {}", self.problem, self.cure)
    }
}

/// Everything that is wrong with a file, in the order of its lines. Displayed one to a line.
#[derive(Clone, Debug, Eq, PartialEq, Serialize)]
pub struct Faults(pub Vec<Fault>);

impl Error for Faults {}

impl fmt::Display for Faults {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, fault) in self.0.iter().enumerate() {
            if index > 0 {
                f.write_str("\n")?;
            }
            fault.fmt(f)?;
        }
        Ok(())
    }
}

/// A problem and its cure, found by code that does not know the place.
#[derive(Debug)]
pub(crate) struct Flaw {
    pub(crate) problem: String,
    pub(crate) cure: String,
}

impl Flaw {
    pub(crate) fn new(problem: impl Into<String>, cure: impl Into<String>) -> Self {
        Self { problem: problem.into(), cure: cure.into() }
    }
}

/// What somebody wrote, fit for one line of a message: escaped, in quotes, cut when long.
pub(crate) fn quoted(text: &str) -> String {
    const LONGEST: usize = 60;
    if text.chars().nth(LONGEST).is_none() {
        return format!("{text:?}");
    }
    let head: String = text.chars().take(LONGEST).collect();
    format!("{:?}", head + "…")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fault_reads_place_line_problem_cure() {
        let mut fault = Fault {
            place: "route[1].green.endpoints[0]".to_owned(),
            line: Some(31),
            problem: "\"host\" has no port".to_owned(),
            cure: "write host:port".to_owned(),
        };
        assert_eq!(fault.to_string(), "route[1].green.endpoints[0] (line 31): \"host\" has no port; write host:port");
        fault.line = None;
        assert_eq!(
            Faults(vec![fault.clone(), fault]).to_string(),
            "route[1].green.endpoints[0]: \"host\" has no port; write host:port\n\
             route[1].green.endpoints[0]: \"host\" has no port; write host:port"
        );
    }

    #[test]
    fn a_quotation_stays_on_one_line_and_short() {
        assert_eq!(quoted("a\nb"), r#""a\nb""#);
        assert_eq!(quoted(&"é".repeat(500)), format!("\"{}…\"", "é".repeat(60)));
    }
}
