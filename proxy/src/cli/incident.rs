//! `crossfade incident`: a trip as a page to read, or as JSON.

use anyhow::{Context, Result};
use clap::{ArgGroup, Args};
use http::Method;

use super::{Admin, client::Client, print};

#[derive(Debug, Args)]
#[command(group = ArgGroup::new("which").args(["id", "last"]).required(true))]
pub(super) struct Incident {
    /// Its id, as GET /incidents and the log have it
    id: Option<String>,
    /// The newest one of this route instead
    #[arg(long, value_name = "ROUTE")]
    last: Option<String>,
    #[command(flatten)]
    admin: Admin,
}

impl Incident {
    pub(super) fn show(&self) -> Result<()> {
        let client = Client::new(&self.admin)?;
        let path = format!("/incidents/{}", encoded(&self.id(&client)?));
        if self.admin.json {
            print(&client.call(Method::GET, &path, None)?)
        } else {
            print(&client.page(&path)?.trim_end())
        }
    }

    fn id(&self, client: &Client) -> Result<String> {
        let route = match (&self.id, &self.last) {
            (Some(id), _) => return Ok(id.clone()),
            (None, route) => route.as_deref().expect("clap asks for one of the two"),
        };
        let newest = client.call(Method::GET, &format!("/incidents?route={}&limit=1", encoded(route)), None)?;
        let id = newest["incidents"][0]["id"].as_str();
        id.map(str::to_owned).with_context(|| format!("route {route} has no incident; nothing has tripped it"))
    }
}

/// As part of a URL (RFC 3986, 2.1).
fn encoded(text: &str) -> String {
    let mut encoded = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => encoded.push(byte.into()),
            _ => encoded.push_str(&format!("%{byte:02X}")),
        }
    }
    encoded
}
