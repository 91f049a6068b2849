//! Who is told when something happens.

use std::path::PathBuf;

use serde::Serialize;

use crate::Url;

/// A webhook.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Alert {
    /// As of a route; unique in a file. Default: `alert-1` for the first one, and so on.
    pub name: String,
    pub url: Url,
    pub format: AlertFormat,
    /// What is less severe is not sent. Default: warning.
    pub severity: Severity,
    /// Its content signs every body, by HMAC-SHA256.
    pub secret_file: Option<PathBuf>,
}

#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum AlertFormat {
    /// An object with the event in it.
    #[default]
    Json,
    /// `{"text": "…"}`, as chat tools take it.
    Text,
}

#[derive(Clone, Copy, Debug, Default, Eq, Ord, PartialEq, PartialOrd, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// Good to know.
    Info,
    /// Somebody has to look.
    #[default]
    Warning,
    /// Green was taken off, or cannot be.
    Critical,
}

impl Severity {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Info => "info",
            Self::Warning => "warning",
            Self::Critical => "critical",
        }
    }
}
