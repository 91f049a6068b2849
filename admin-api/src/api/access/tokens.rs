//! The tokens file: `TOKEN ROLE [NAME]` a line. Pure.

use std::fmt;

use ring::digest;

use super::{Role, fingerprint};

/// Tokens by fingerprint. The tokens themselves are not kept.
pub(crate) struct Tokens(Vec<Token>);

struct Token {
    fingerprint: digest::Digest,
    role: Role,
    name: String,
}

impl fmt::Debug for Tokens {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.0.iter().map(|token| (&token.name, token.role))).finish()
    }
}

const SHORTEST: usize = 16;
const LONGEST: usize = 1024;
const LONGEST_NAME: usize = 64;

impl Tokens {
    /// Errors: every line with a fault, and what is wrong with it. The tokens do not show in them.
    pub(crate) fn parse(text: &str) -> Result<Self, Vec<String>> {
        let mut tokens: Vec<Token> = Vec::new();
        let mut faults = Vec::new();
        for (number, line) in (1..).zip(text.lines()) {
            let line = line.trim();
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            match Token::parse(line, number) {
                Err(problems) => faults.extend(problems.into_iter().map(|problem| format!("line {number}: {problem}"))),
                Ok(token) => {
                    if tokens.iter().any(|before| before.fingerprint.as_ref() == token.fingerprint.as_ref()) {
                        faults.push(format!("line {number}: the token is there twice; remove one of the lines"));
                    }
                    tokens.push(token);
                }
            }
        }
        if tokens.is_empty() && faults.is_empty() {
            faults.push("there is no token; add a line \"TOKEN operate NAME\"".to_owned());
        }
        if faults.is_empty() { Ok(Self(tokens)) } else { Err(faults) }
    }

    /// Those of these tokens that a file with faults still has, none with more rights than it gives them.
    pub(crate) fn restricted_to(&self, text: &str) -> Self {
        let lines = || text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
        let written: Vec<(digest::Digest, Option<&str>)> = lines()
            .map(|line| {
                let mut words = line.split_whitespace();
                (fingerprint(words.next().unwrap_or_default()), words.next())
            })
            .collect();
        let restricted = |token: &Token| {
            let mut still = written.iter().filter(|(found, _)| found.as_ref() == token.fingerprint.as_ref()).peekable();
            still.peek()?;
            let role = if still.any(|(_, role)| *role == Some("read")) { Role::Read } else { token.role };
            Some(Token { fingerprint: token.fingerprint, role, name: token.name.clone() })
        };
        Self(self.0.iter().filter_map(restricted).collect())
    }

    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }

    /// The name and the role of the token with this fingerprint. Takes the same time whichever one it is, and whether it is
    /// any.
    pub(crate) fn find(&self, presented: &digest::Digest) -> Option<(&str, Role)> {
        let mut found = None;
        for token in &self.0 {
            let differs = |(a, b): (&u8, &u8)| a ^ b;
            let pairs = token.fingerprint.as_ref().iter().zip(presented.as_ref());
            if pairs.map(differs).fold(0, |all, one| all | one) == 0 {
                found = Some((token.name.as_str(), token.role));
            }
        }
        found
    }
}

impl Token {
    fn parse(line: &str, number: usize) -> Result<Self, Vec<&'static str>> {
        let mut words = line.split_whitespace();
        let (token, role, name, more) = (words.next().unwrap_or_default(), words.next(), words.next(), words.next());
        let mut problems = Vec::new();
        // RFC 6750, 2.1: nothing else can be sent in a header.
        let sendable = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~+/=".contains(&byte);
        if !token.bytes().all(sendable) {
            problems.push("the token has a character that is not a letter, a digit or one of -._~+/=; choose another");
        }
        if token.len() < SHORTEST {
            problems.push("the token is shorter than 16 characters; choose a longer one (openssl rand -hex 24)");
        }
        if token.len() > LONGEST {
            problems.push("the token is longer than 1024 characters; choose a shorter one");
        }
        let role = match role {
            Some("read") => Some(Role::Read),
            Some("operate") => Some(Role::Operate),
            Some(_) => {
                problems.push("the second word is not a role; use read or operate");
                None
            }
            None => {
                problems.push("there is no role; add read or operate after the token");
                None
            }
        };
        if name.is_some_and(|name| name.len() > LONGEST_NAME) {
            problems.push("the name is longer than 64 bytes; choose a shorter one");
        }
        if more.is_some() {
            problems.push("there are more than three words; write TOKEN ROLE NAME, comments on lines of their own");
        }
        match role {
            Some(role) if problems.is_empty() => Ok(Self {
                fingerprint: fingerprint(token),
                role,
                name: name.map_or_else(|| format!("token-line-{number}"), str::to_owned),
            }),
            _ => Err(problems),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LONG: &str = "0123456789abcdef";
    const OTHER: &str = "fedcba9876543210";

    #[test]
    fn a_token_finds_its_name_and_role() {
        let tokens = Tokens::parse(&format!("# ours\n\n{LONG} operate ann\n  {OTHER}\tread\n")).unwrap();
        let find = |token| tokens.find(&fingerprint(token));
        assert_eq!(find(LONG), Some(("ann", Role::Operate)));
        assert_eq!(find(OTHER), Some(("token-line-4", Role::Read)));
        assert_eq!(find("0123456789abcdeF"), None);
        assert_eq!(find(""), None);
    }

    #[test]
    fn every_fault_is_named_with_its_line_and_without_its_token() {
        let secret = "shh:0123456789abcdef";
        let faults =
            Tokens::parse(&format!("short read\n{secret} read\n{LONG}\n{LONG} admin\n{LONG} read a b\n")).unwrap_err();
        let lines: Vec<&str> = faults.iter().filter_map(|fault| fault.split(':').next()).collect();
        assert_eq!(lines, ["line 1", "line 2", "line 3", "line 4", "line 5"]);
        assert!(faults.iter().all(|fault| !fault.contains("0123")), "{faults:?}");
        assert!(Tokens::parse("# nothing\n").is_err());
        assert!(Tokens::parse(&format!("{LONG} read\n{LONG} operate\n")).is_err());
    }

    #[test]
    fn a_file_with_faults_only_takes_away() {
        let tokens = Tokens::parse(&format!("{LONG} operate ann\n{OTHER} operate bob\n")).unwrap();
        for (text, ann, bob) in [
            (format!("{LONG} admin\nshort read\n"), Some(Role::Operate), None),
            (format!("short\n{OTHER} read\n# {LONG} operate\n"), None, Some(Role::Read)),
            (format!("{LONG} operate\n{LONG} read\n{OTHER}\n"), Some(Role::Read), Some(Role::Operate)),
            (String::new(), None, None),
        ] {
            let left = tokens.restricted_to(&text);
            let role = |token| left.find(&fingerprint(token)).map(|(_, role)| role);
            assert_eq!((role(LONG), role(OTHER)), (ann, bob), "{text}");
        }
        let before = Tokens::parse(&format!("{LONG} read\n")).unwrap();
        let left = before.restricted_to(&format!("{LONG} operate\n{OTHER} operate\nx\n"));
        assert_eq!(
            (left.find(&fingerprint(LONG)).unwrap().1, left.find(&fingerprint(OTHER))),
            (Role::Read, None),
            "it adds nothing"
        );
    }
}
