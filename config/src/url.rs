//! Where something is asked or told over HTTP.

use std::fmt;

use crate::{
    Endpoint, address,
    fault::{Flaw, quoted},
};

/// An `http` or `https` URL without user and fragment.
///
/// Shown without its path and query: chat tools put a secret there.
#[derive(Clone, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct Url {
    secure: bool,
    endpoint: Endpoint,
    /// Path and query; starts with `/`.
    target: String,
}

impl Url {
    pub(crate) fn parse(text: &str) -> Result<Self, Flaw> {
        const CURE: &str = "write all of it, such as \"https://host.example/path\"";
        let (scheme, rest) = text.split_once("://").ok_or_else(|| Flaw::new("is not a url", CURE))?;
        let secure = match scheme.to_ascii_lowercase().as_str() {
            "http" => false,
            "https" => true,
            other if is_scheme(other) => {
                return Err(Flaw::new(format!("has the scheme {}", quoted(scheme)), "write http:// or https://"));
            }
            // Part of a path or a query, and those are not quoted.
            _ => return Err(Flaw::new("is not a url", CURE)),
        };
        let (authority, target) = rest.split_at(rest.find(['/', '?', '#']).unwrap_or(rest.len()));
        // No more of the text than this is quoted: what is left may be secret.
        if authority.contains('@') {
            return Err(Flaw::new("has a user before its host", "write the host alone"));
        }
        let has_port = authority.rfind(':').is_some_and(|colon| authority.rfind(']').is_none_or(|end| colon > end));
        let endpoint = if has_port {
            address::endpoint(authority)?
        } else {
            address::endpoint(&format!("{authority}:{}", if secure { 443 } else { 80 }))?
        };
        if target.contains('#') {
            return Err(Flaw::new("has a fragment", "leave out the # and what follows it"));
        }
        if !target.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err(Flaw::new("has characters that no url has", "percent-encode them"));
        }
        let target = if target.starts_with('/') { target.to_owned() } else { format!("/{target}") };
        Ok(Self { secure, endpoint, target })
    }

    /// Over TLS.
    pub fn is_secure(&self) -> bool {
        self.secure
    }

    /// The path, without the query.
    pub fn path(&self) -> &str {
        self.target.split('?').next().unwrap_or_default()
    }

    /// All of it, for the request itself; not for logs.
    pub fn whole(&self) -> String {
        format!("{self}{}", self.target)
    }
}

impl fmt::Display for Url {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}://{}", if self.secure { "https" } else { "http" }, self.endpoint)
    }
}

impl fmt::Debug for Url {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Url({self}/…)")
    }
}

/// RFC 3986, section 3.1.
fn is_scheme(text: &str) -> bool {
    text.starts_with(|first: char| first.is_ascii_alphabetic())
        && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"+-.".contains(&byte))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_are_http_and_complete() {
        for (text, whole) in [
            ("http://127.0.0.1:9100/metrics", "http://127.0.0.1:9100/metrics"),
            ("HTTPS://Hooks.Example/T1?a=b/c@d", "https://hooks.example:443/T1?a=b/c@d"),
            ("http://[::1]", "http://[::1]:80/"),
            ("http://[::1]:81?x", "http://[::1]:81/?x"),
        ] {
            assert_eq!(Url::parse(text).unwrap().whole(), whole);
        }
        for (text, problem) in [
            ("hooks.example/x", "is not a url"),
            ("ftp://a/x", "has the scheme \"ftp\""),
            ("hooks.example/secret?to=http://a", "is not a url"),
            ("ann:secret@http://a", "is not a url"),
            ("://a", "is not a url"),
            ("http://ann:secret@a/x", "has a user before its host"),
            ("http:///x", "\"\" has no host"),
            ("http://a:x/secret", "\"a:x\" has no valid port"),
            ("http://a:0/", "\"a:0\" has port 0, which cannot be connected to"),
            ("http://a/#x", "has a fragment"),
            ("http://a/a b", "has characters that no url has"),
        ] {
            assert_eq!(Url::parse(text).unwrap_err().problem, problem, "{text}");
        }
    }

    #[test]
    fn what_may_be_secret_is_not_shown() {
        let url = Url::parse("https://hooks.example/T1/secret?key=secret").unwrap();
        assert_eq!(format!("{url} {url:?}"), "https://hooks.example:443 Url(https://hooks.example:443/…)");
        assert_eq!(url.path(), "/T1/secret");
    }
}
