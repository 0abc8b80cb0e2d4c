//! Where a workspace is, and who is asking. The token never leaves this module but in the header of a request.

use std::fmt;
use std::time::Duration;

use reqwest::{RequestBuilder, Url};

use crate::error::WorkspaceError;

/// How much of what a workspace says is shown.
const LONGEST: usize = 400;

/// A workspace as the environment names it.
#[derive(Clone)]
pub struct Workspace {
    place: String,
    token: String,
    /// How long is waited before something is tried again; it doubles.
    pub pause: Duration,
}

impl Workspace {
    /// The workspace that `DATABRICKS_HOST` and `DATABRICKS_TOKEN` name, of which `variable` gives the values. `why` says what it is
    /// needed for.
    ///
    /// # Errors
    /// When one of them is not set, or the host is none.
    pub fn find(why: &str, variable: impl Fn(&str) -> Option<String>) -> Result<Self, WorkspaceError> {
        let needed = |name: &'static str| {
            let value = variable(name).map(|value| value.trim().to_owned()).filter(|value| !value.is_empty());
            value.ok_or(WorkspaceError::NoCredentials { why: why.to_owned(), variable: name })
        };
        let (host, token) = (needed("DATABRICKS_HOST")?, needed("DATABRICKS_TOKEN")?);
        let address = if host.contains("://") { host.clone() } else { format!("https://{host}") };
        let url = Url::parse(&address).ok().filter(|url| {
            let plain = url.username().is_empty() && url.password().is_none() && url.query().is_none();
            plain && matches!(url.scheme(), "http" | "https") && url.has_host()
        });
        // What cannot be taken apart may hold a password anywhere.
        let found = || if host.contains(['@', '?']) { "[redacted]".to_owned() } else { format!("`{host}`") };
        let url = url.ok_or_else(|| WorkspaceError::Address { found: found() })?;
        let place = url.as_str().trim_end_matches('/').to_owned();
        Ok(Self { place, token, pause: Duration::from_millis(500) })
    }

    /// Its address as people and files may see it.
    pub(crate) fn place(&self) -> String {
        self.place.clone()
    }

    /// The address of a file or folder in the part `kind` of its Files API.
    pub(crate) fn url(&self, kind: &str, path: &str) -> String {
        format!("{}/api/2.0/fs/{kind}{}", self.place, encoded(path))
    }

    pub(crate) fn sign(&self, request: RequestBuilder) -> RequestBuilder {
        request.bearer_auth(&self.token)
    }

    /// What the workspace said, without the token, control characters and the end of long tales.
    pub(crate) fn clean(&self, text: &str) -> String {
        let text = text.replace(&self.token, "[redacted]");
        text.chars()
            .map(|character| if character.is_control() { ' ' } else { character })
            .take(LONGEST)
            .collect()
    }
}

/// A path as an address has it: every byte that could mean something else is escaped.
pub(crate) fn encoded(path: &str) -> String {
    let byte = |byte: u8| match byte {
        b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' | b'/' => {
            char::from(byte).to_string()
        }
        byte => format!("%{byte:02X}"),
    };
    path.bytes().map(byte).collect()
}

impl fmt::Debug for Workspace {
    /// Without the token.
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Workspace").field("place", &self.place).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn find(host: &str, token: &str) -> Result<Workspace, WorkspaceError> {
        Workspace::find("data is asked for", |name| {
            Some(if name == "DATABRICKS_HOST" { host } else { token }.to_owned())
        })
    }

    #[test]
    fn hosts_and_tokens() {
        for host in ["adb-1.net", "https://adb-1.net/", " https://adb-1.net"] {
            let workspace = find(host, "t").unwrap();
            assert_eq!(workspace.place(), "https://adb-1.net");
            let url = "https://adb-1.net/api/2.0/fs/files/Volumes/c/s/v/a%20b%25%C3%A4%23.jsonl";
            assert_eq!(workspace.url("files", "/Volumes/c/s/v/a b%ä#.jsonl"), url);
        }
        assert!(find("", "t").unwrap_err().to_string().contains("DATABRICKS_HOST is not set"));
        assert!(find("h", " ").unwrap_err().to_string().contains("DATABRICKS_TOKEN is not set"));
        for host in ["ftp://a", "https://", "https://me:p4ss@a", "https://a?token=p4ss"] {
            let error = find(host, "t").unwrap_err().to_string();
            assert!(error.contains("DATABRICKS_HOST is") && !error.contains("p4ss"), "{error}");
        }
    }

    #[test]
    fn the_token_is_never_shown() {
        let workspace = find("h", "s3cret").unwrap();
        let said = format!("{workspace:?} {}", workspace.clean("bad s3cret\u{1b}!"));
        assert!(!said.contains("s3cret") && said.contains("bad [redacted] !"), "{said}");
    }
}
