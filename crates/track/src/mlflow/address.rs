//! Where a tracking server is, and who is asking.
//!
//! Variables are those of MLflow's own client. What they hold never leaves this module but in the header of a request: no
//! error, log or file shows it.

use std::fmt;

use reqwest::RequestBuilder;
use reqwest::Url;

use super::MlflowError;

/// The address that stands for a workspace.
const WORKSPACE: &str = "databricks";
/// The address that stands for a workspace's catalog of models.
const UNITY_CATALOG: &str = "databricks-uc";

/// A key and a variable that name a server.
#[derive(Clone, Copy)]
struct Name {
    key: &'static str,
    variable: &'static str,
}

const TRACKING: Name = Name { key: "mlflow.tracking_uri", variable: "MLFLOW_TRACKING_URI" };
const REGISTRY: Name = Name { key: "mlflow.registry_uri", variable: "MLFLOW_REGISTRY_URI" };

/// A tracking server as a run reaches it.
#[derive(Clone)]
pub struct Server {
    url: Url,
    credentials: Credentials,
    /// It is a Databricks workspace.
    is_workspace: bool,
}

#[derive(Clone)]
enum Credentials {
    None,
    Token { token: String, variable: &'static str },
    Password { user: String, password: String, origin: &'static str },
}

impl Server {
    /// The server that the run file names, else the environment, of which `variable` gives the values.
    ///
    /// # Errors
    /// When none is named, the address is none, or what it needs is not set.
    pub fn find(key: Option<&str>, variable: impl Fn(&str) -> Option<String>) -> Result<Self, MlflowError> {
        Self::named(TRACKING, key, &variable)?.ok_or(MlflowError::NoServer)
    }

    /// The registry of models that the run file names, else the environment, else that of the tracking server. That of a workspace is
    /// its catalog.
    ///
    /// # Errors
    /// When its address is none, what it needs is not set, or it is a kind that is not served.
    pub fn find_registry(
        key: Option<&str>,
        tracking: &Self,
        variable: impl Fn(&str) -> Option<String>,
    ) -> Result<Self, MlflowError> {
        let named = Self::named(REGISTRY, key, &variable)?;
        let registry = named.unwrap_or_else(|| tracking.clone());
        if registry.is_workspace && !cfg!(feature = "stores") {
            return Err(MlflowError::CatalogNotBuilt);
        }
        Ok(registry)
    }

    /// The server that a key or variable names, if one does.
    fn named(
        name: Name,
        key: Option<&str>,
        variable: &impl Fn(&str) -> Option<String>,
    ) -> Result<Option<Self>, MlflowError> {
        let variable = |name: &str| variable(name).filter(|value| !value.trim().is_empty());
        let (origin, text) = match (key, variable(name.variable)) {
            (Some(text), _) => (name.key, text.to_owned()),
            (None, Some(text)) => (name.variable, text),
            (None, None) => return Ok(None),
        };
        let text = text.trim();
        let (kind, profile) = text.split_once("://").unwrap_or((text, ""));
        let is_registry = name.key == REGISTRY.key;
        let is_workspace = kind == WORKSPACE || (is_registry && kind == UNITY_CATALOG);
        if is_workspace && !profile.is_empty() {
            return Err(MlflowError::Profile { origin, profile: profile.to_owned() });
        }
        if is_registry && kind == WORKSPACE {
            return Err(MlflowError::OldRegistry { origin });
        }
        if is_workspace {
            let needed =
                |name: &'static str| variable(name).ok_or(MlflowError::NoCredentials { variable: name });
            let (host, token) = (needed("DATABRICKS_HOST")?, needed("DATABRICKS_TOKEN")?);
            let host = if host.contains("://") { host } else { format!("https://{host}") };
            let credentials = Credentials::Token { token, variable: "DATABRICKS_TOKEN" };
            return Ok(Some(Self {
                url: address("DATABRICKS_HOST", &host)?,
                credentials,
                is_workspace: true,
            }));
        }
        let mut url = address(origin, text)?;
        let inside = (!url.username().is_empty() || url.password().is_some()).then(|| {
            let decoded = |text: &str| percent_decoded(text);
            (decoded(url.username()), decoded(url.password().unwrap_or_default()))
        });
        if key.is_some() && inside.is_some() {
            return Err(MlflowError::CredentialsInFile { key: name.key });
        }
        // An address that has a host can be without a user.
        let _ = (url.set_username(""), url.set_password(None));
        let credentials = if let Some(token) = variable("MLFLOW_TRACKING_TOKEN") {
            Credentials::Token { token, variable: "MLFLOW_TRACKING_TOKEN" }
        } else if let Some(user) = variable("MLFLOW_TRACKING_USERNAME") {
            let password = variable("MLFLOW_TRACKING_PASSWORD")
                .ok_or(MlflowError::NoCredentials { variable: "MLFLOW_TRACKING_PASSWORD" })?;
            let origin = "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD";
            Credentials::Password { user, password, origin }
        } else if let Some((user, password)) = inside {
            Credentials::Password { user, password, origin: "the user name and password in its address" }
        } else {
            Credentials::None
        };
        Ok(Some(Self { url, credentials, is_workspace: false }))
    }

    /// Whether it is a Databricks workspace, whose registry is Unity Catalog.
    pub(super) fn is_workspace(&self) -> bool {
        self.is_workspace
    }

    /// The server's address as people and files may see it.
    pub fn place(&self) -> String {
        self.url.as_str().trim_end_matches('/').to_owned()
    }

    /// The address of something on the server.
    pub(super) fn url(&self, path: &str) -> String {
        format!("{}/{path}", self.place())
    }

    /// The request with who is asking.
    pub(super) fn sign(&self, request: RequestBuilder) -> RequestBuilder {
        match &self.credentials {
            Credentials::None => request,
            Credentials::Token { token, .. } => request.bearer_auth(token),
            Credentials::Password { user, password, .. } => request.basic_auth(user, Some(password)),
        }
    }

    /// What to do about credentials that the server does not take.
    pub(super) fn advice(&self) -> String {
        match self.credentials {
            Credentials::None => {
                "no credentials were sent; set MLFLOW_TRACKING_TOKEN, or MLFLOW_TRACKING_USERNAME and \
                                  MLFLOW_TRACKING_PASSWORD"
                    .to_owned()
            }
            Credentials::Token { variable, .. } => {
                format!("it does not take {variable}, which may have expired or lack the permission")
            }
            Credentials::Password { origin, .. } => {
                format!("it does not take {origin}, or the user lacks the permission")
            }
        }
    }

    /// What the server said, without secrets, control characters and the end of long tales.
    pub(super) fn clean(&self, text: &str) -> String {
        const LONGEST: usize = 400;
        let mut text: String =
            text.chars().map(|character| if character.is_control() { ' ' } else { character }).collect();
        let secret = match &self.credentials {
            Credentials::None => "",
            Credentials::Token { token, .. } => token,
            Credentials::Password { password, .. } => password,
        };
        if !secret.is_empty() {
            text = text.replace(secret, "[redacted]");
        }
        text.chars().take(LONGEST).collect()
    }
}

fn address(origin: &'static str, text: &str) -> Result<Url, MlflowError> {
    let expected = "the address of a server, such as http://localhost:5000 (a folder or database is for MLflow's own client)";
    match Url::parse(text) {
        Ok(url) if matches!(url.scheme(), "http" | "https") && url.has_host() => Ok(url),
        // What cannot be taken apart may hold a password anywhere.
        _ => {
            let found = if text.contains('@') { "[redacted]".to_owned() } else { format!("`{text}`") };
            Err(MlflowError::Address { origin, found, expected })
        }
    }
}

fn percent_decoded(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut decoded = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while at < bytes.len() {
        let code = text.get(at + 1..at + 3).and_then(|digits| u8::from_str_radix(digits, 16).ok());
        match (bytes[at], code) {
            (b'%', Some(byte)) => {
                decoded.push(byte);
                at += 3;
            }
            (byte, _) => {
                decoded.push(byte);
                at += 1;
            }
        }
    }
    String::from_utf8_lossy(&decoded).into_owned()
}

impl fmt::Debug for Server {
    /// Without credentials.
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Server").field("place", &self.place()).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn find(key: Option<&str>, variables: &[(&str, &str)]) -> Result<Server, MlflowError> {
        Server::find(key, |name| {
            variables.iter().find(|(known, _)| *known == name).map(|(_, value)| (*value).to_owned())
        })
    }

    #[test]
    fn the_key_comes_before_the_variable() {
        let variables = [("MLFLOW_TRACKING_URI", "http://b:5000/")];
        assert_eq!(find(Some("http://a/prefix/"), &variables).unwrap().place(), "http://a/prefix");
        assert_eq!(find(None, &variables).unwrap().place(), "http://b:5000");
        assert!(
            find(None, &[]).unwrap_err().to_string().contains("MLFLOW_TRACKING_URI, or mlflow.tracking_uri")
        );
        assert!(find(None, &[("MLFLOW_TRACKING_URI", "")]).is_err());
    }

    #[test]
    fn the_registry_is_that_of_the_tracking_server_unless_another_is_named() {
        let tracking = find(Some("http://a"), &[]).unwrap();
        let found = |key, variable: &'static str| {
            let registry = Server::find_registry(key, &tracking, |name| {
                (name == REGISTRY.variable).then(|| variable.to_owned())
            });
            registry.map(|server| server.place()).map_err(|error| error.to_string())
        };
        assert_eq!(found(None, "").unwrap(), "http://a");
        assert_eq!(found(None, "http://b").unwrap(), "http://b");
        assert_eq!(found(Some("http://c/"), "http://b").unwrap(), "http://c");
        assert!(found(Some("http://me:p4ss@c"), "").unwrap_err().contains("mlflow.registry_uri holds"));
        assert!(found(None, "databricks").unwrap_err().contains("write databricks-uc"));
        assert!(found(None, "databricks-uc").unwrap_err().contains("DATABRICKS_HOST"));
        let refused = found(Some("databricks-uc://me"), "").unwrap_err();
        assert!(refused.contains("mlflow.registry_uri names the profile me"), "{refused}");
    }

    #[test]
    fn the_registry_of_a_workspace_is_its_catalog() {
        let variables = [("DATABRICKS_HOST", "host"), ("DATABRICKS_TOKEN", "t")];
        let variable = |name: &str| {
            variables.iter().find(|(known, _)| *known == name).map(|(_, value)| (*value).to_owned())
        };
        let workspace = find(Some("databricks"), &variables).unwrap();
        let elsewhere = find(Some("http://a"), &[]).unwrap();
        let of_key = |key, tracking| Server::find_registry(key, tracking, variable);
        for found in [of_key(None, &workspace), of_key(Some("databricks-uc"), &elsewhere)] {
            if cfg!(feature = "stores") {
                let found = found.unwrap();
                assert!(found.is_workspace() && found.place() == "https://host");
            } else {
                assert!(matches!(found, Err(MlflowError::CatalogNotBuilt)));
            }
        }
    }

    #[test]
    fn what_is_no_server_is_refused() {
        for text in ["mlruns", "sqlite:///a.db", "file:///tmp/x", "http://", "ftp://a"] {
            let error = find(Some(text), &[]).unwrap_err().to_string();
            assert!(error.contains("mlflow.tracking_uri is `") && error.contains(text), "{error}");
        }
    }

    #[test]
    fn secrets_are_never_shown() {
        let secret = "p4ss%w0rd";
        let in_address = [("MLFLOW_TRACKING_URI", "https://me:p4ss%25w0rd@host/")];
        let servers = [
            find(None, &in_address).unwrap(),
            find(Some("https://host"), &[("MLFLOW_TRACKING_TOKEN", secret)]).unwrap(),
            find(
                Some("https://host"),
                &[("MLFLOW_TRACKING_USERNAME", "me"), ("MLFLOW_TRACKING_PASSWORD", secret)],
            )
            .unwrap(),
            find(Some("databricks"), &[("DATABRICKS_HOST", "host"), ("DATABRICKS_TOKEN", secret)]).unwrap(),
        ];
        for server in servers {
            assert_eq!(server.place(), "https://host");
            let said =
                format!("{server:?} {} {}", server.advice(), server.clean(&format!("bad {secret}\u{1b}!")));
            assert!(!said.contains(secret) && said.contains("bad [redacted] !"), "{said}");
        }
        let error = find(Some("https://me:p4ss@host"), &[]).unwrap_err().to_string();
        assert!(error.contains("MLFLOW_TRACKING_PASSWORD") && !error.contains("p4ss"), "{error}");
        let error = find(None, &[("MLFLOW_TRACKING_URI", "//me:p4ss@host")]).unwrap_err().to_string();
        assert!(error.contains("[redacted]") && !error.contains("p4ss"), "{error}");
    }

    #[test]
    fn what_is_missing_is_named() {
        for (given, missing) in [
            (vec![("DATABRICKS_HOST", "h")], "DATABRICKS_TOKEN"),
            (vec![("DATABRICKS_TOKEN", "t")], "DATABRICKS_HOST"),
        ] {
            assert!(find(Some("databricks"), &given).unwrap_err().to_string().contains(missing));
        }
        let error = find(Some("http://a"), &[("MLFLOW_TRACKING_USERNAME", "me")]).unwrap_err().to_string();
        assert!(error.contains("MLFLOW_TRACKING_PASSWORD"), "{error}");
    }
}
