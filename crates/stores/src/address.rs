//! What a url says: which store, which bucket, and what in it.

use object_store::path::Path;
use url::Url;

use crate::error::{Problem, StoreError};

/// The protocols by which places are reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Scheme {
    /// Amazon S3 and what speaks like it.
    S3,
    /// Google Cloud Storage.
    Google,
    /// Azure Blob Storage.
    Azure,
    /// A web server, which has single files.
    Http,
}

const SCHEMES: [(&str, Scheme); 8] = [
    ("s3", Scheme::S3),
    ("s3a", Scheme::S3),
    ("gs", Scheme::Google),
    ("az", Scheme::Azure),
    ("abfs", Scheme::Azure),
    ("abfss", Scheme::Azure),
    ("http", Scheme::Http),
    ("https", Scheme::Http),
];

/// A url in its parts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Address {
    pub scheme: Scheme,
    /// Everything up to the path, without a `/` at its end: `s3://bucket`.
    pub root: String,
    /// The bucket or container; the host of a web server.
    pub bucket: String,
    pub path: Path,
}

impl Address {
    pub fn parse(text: &str) -> Result<Self, StoreError> {
        let wrong = |reason: String| StoreError::new(without_secrets(text), Problem::Url(reason));
        let (name, rest) = text.split_once("://").unwrap_or(("", text));
        let Some((_, scheme)) = SCHEMES.iter().find(|(known, _)| *known == name) else {
            return Err(wrong("nothing is known of its kind".to_owned()));
        };
        if has_secrets(*scheme, rest) {
            return Err(wrong(
                "a name, a password or anything after a `?` or `#` would be written into the run's files; credentials come \
                 from the environment"
                    .to_owned(),
            ));
        }
        let (authority, path) = rest.split_once('/').unwrap_or((rest, ""));
        if authority.is_empty() {
            return Err(wrong("it names no bucket".to_owned()));
        }
        let root = format!("{name}://{authority}");
        let path_of = |path: Result<Path, object_store::path::Error>| {
            path.map_err(|error| wrong(format!("its path cannot be used: {error}")))
        };
        if *scheme == Scheme::Http {
            let url = Url::parse(text).map_err(|error| wrong(error.to_string()))?;
            if name == "http" && !is_loopback(&url) {
                return Err(wrong("without encryption only this machine is read".to_owned()));
            }
            let path = path_of(Path::from_url_path(url.path()))?;
            return Ok(Self { scheme: *scheme, root, bucket: authority.to_owned(), path });
        }
        // Keys are written as they are, without the escapes of a web address.
        let path = path_of(Path::parse(path.trim_end_matches('/')))?;
        let bucket = authority.split('@').next().unwrap_or(authority).to_owned();
        Ok(Self { scheme: *scheme, root, bucket, path })
    }
}

/// Whether what follows the protocol has a name, a password or a query in it. A container stands before an `@` in urls of Azure, and
/// a `?` alone may be part of a pattern or a key of other stores.
fn has_secrets(scheme: Scheme, rest: &str) -> bool {
    let authority = rest.split(['/', '?', '#']).next().unwrap_or_default();
    let (before, host) = authority.rsplit_once('@').unwrap_or(("", authority));
    let named = match scheme {
        Scheme::Azure => before.contains(':') || host.contains(':'),
        Scheme::Http => !before.is_empty(),
        Scheme::S3 | Scheme::Google => authority.contains(['@', ':']),
    };
    let asks = rest.split_once('?').is_some_and(|(_, query)| scheme == Scheme::Http || query.contains('='));
    named || asks || (scheme == Scheme::Http && rest.contains('#'))
}

fn is_loopback(url: &Url) -> bool {
    match url.host() {
        Some(url::Host::Ipv4(address)) => address.is_loopback(),
        Some(url::Host::Ipv6(address)) => address.is_loopback(),
        Some(url::Host::Domain(name)) => name == "localhost",
        None => false,
    }
}

/// A url for messages: without a name, a password, or what may be a signature.
fn without_secrets(text: &str) -> String {
    let (scheme, rest) = text.split_once("://").unwrap_or(("", text));
    let rest = rest.split(['?', '#']).next().unwrap_or_default();
    let (authority, path) = rest.split_once('/').unwrap_or((rest, ""));
    let is_container = scheme.starts_with("abfs") && !authority.contains(':');
    let authority = match authority.rsplit_once('@') {
        Some((_, host)) if !is_container => host,
        _ => authority,
    };
    format!("{scheme}://{authority}/{path}")
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_url_is_taken_apart() {
        let address = Address::parse("s3://bucket/a b/c%20d/x.jsonl").unwrap();
        assert_eq!((address.scheme, address.bucket.as_str()), (Scheme::S3, "bucket"));
        assert_eq!(address.path.as_ref(), "a b/c%20d/x.jsonl");
        assert_eq!(Address::parse("gs://bucket/a/").unwrap().path.as_ref(), "a");
        let azure = Address::parse("abfss://box@account.dfs.core.windows.net/x").unwrap();
        assert_eq!((azure.scheme, azure.bucket.as_str()), (Scheme::Azure, "box"));
        assert_eq!(Address::parse("http://127.0.0.1:80/a%20b").unwrap().path.as_ref(), "a b");
    }

    #[test]
    fn what_is_wrong_with_a_url_is_said_without_its_secrets() {
        let cases = [
            ("ftp://host/x", "nothing is known"),
            ("s3:///x", "names no bucket"),
            ("s3://bucket/a//b", "its path cannot be used"),
            ("https://user:secret@host/x", "would be written"),
            ("https://host/x?sig=secret", "would be written"),
            ("http://example.com/x", "without encryption"),
            ("s3://key:secret@bucket/x", "would be written"),
            ("az://box/x?sv=1&sig=secret", "would be written"),
            ("abfss://box@account.dfs.core.windows.net/x?sig=secret", "would be written"),
            ("abfss://box:secret@account.dfs.core.windows.net/x", "would be written"),
        ];
        for (url, said) in cases {
            let error = Address::parse(url).unwrap_err().to_string();
            assert!(error.contains(said) && !error.contains("secret"), "{error}");
        }
    }
}
