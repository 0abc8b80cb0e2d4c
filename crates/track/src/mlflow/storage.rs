//! The folder in an object store in which a catalog keeps the files of a version, and the credentials that it hands out for it.

use std::fmt;

use serde::Deserialize;
use serde_json::Value;

#[cfg(feature = "stores")]
pub(super) use built::Storage;
#[cfg(not(feature = "stores"))]
pub(super) use not_built::Storage;

/// Credentials for one folder, for about an hour.
#[derive(Deserialize)]
pub(super) struct Granted {
    aws_temp_credentials: Option<AwsKeys>,
    azure_user_delegation_sas: Option<AzureSignature>,
    gcp_oauth_token: Option<GoogleToken>,
    /// Milliseconds since 1970, as a number or a text.
    #[serde(default)]
    expiration_time: Value,
    #[serde(default)]
    storage_mode: String,
    #[serde(default)]
    encryption_details: Value,
}

#[derive(Deserialize)]
#[cfg_attr(not(feature = "stores"), allow(dead_code))]
struct AwsKeys {
    access_key_id: String,
    secret_access_key: String,
    session_token: Option<String>,
}

#[derive(Deserialize)]
#[cfg_attr(not(feature = "stores"), allow(dead_code))]
struct AzureSignature {
    sas_token: String,
}

#[derive(Deserialize)]
#[cfg_attr(not(feature = "stores"), allow(dead_code))]
struct GoogleToken {
    oauth_token: String,
}

impl Granted {
    /// When they cease to be good.
    #[cfg_attr(not(feature = "stores"), allow(dead_code))]
    fn expires(&self) -> Option<i64> {
        let time = &self.expiration_time;
        time.as_i64().or_else(|| time.as_str()?.parse().ok()).filter(|time| *time > 0)
    }

    /// What of it is not spoken here.
    fn unspoken(&self) -> Option<&'static str> {
        if self.storage_mode == "DEFAULT_STORAGE" {
            return Some(
                "the workspace's default storage (DEFAULT_STORAGE), which takes files by signed addresses only",
            );
        }
        if self.encryption_details["sse_encryption_details"]["algorithm"] == "AWS_SSE_KMS" {
            return Some("a bucket whose files are to be encrypted by a key of their own (AWS_SSE_KMS)");
        }
        let is_known = self.aws_temp_credentials.is_some()
            || self.azure_user_delegation_sas.is_some()
            || self.gcp_oauth_token.is_some();
        (!is_known).then_some("a store that is none of Amazon's, Microsoft's and Google's")
    }
}

impl fmt::Debug for Granted {
    /// Without the credentials.
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Granted").field("storage_mode", &self.storage_mode).finish_non_exhaustive()
    }
}

#[cfg(feature = "stores")]
mod built {
    use std::collections::BTreeMap;

    use jiff::Timestamp;
    use tessera_files::IoContext;
    use tessera_stores::{Credentials, Place, Problem, StoreError};

    use super::super::MlflowError;
    use super::super::client::Content;
    use super::{AwsKeys, AzureSignature, GoogleToken, Granted};

    /// How long before their end credentials are no more begun with.
    const MARGIN: i64 = 5 * 60 * 1000;

    /// A folder that may be written to.
    pub(in super::super) struct Storage {
        root: Place,
        expires: Option<i64>,
    }

    impl std::fmt::Debug for Storage {
        /// The folder only.
        fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            write!(formatter, "Storage({})", self.root)
        }
    }

    impl Storage {
        /// The folder of this address, with the credentials that were handed out for it.
        pub fn open(location: &str, granted: Granted) -> Result<Self, MlflowError> {
            if let Some(kind) = granted.unspoken() {
                return Err(MlflowError::CatalogStorage { location: location.to_owned(), kind });
            }
            let expires = granted.expires();
            let credentials = match granted {
                Granted { aws_temp_credentials: Some(keys), .. } => {
                    let AwsKeys { access_key_id, secret_access_key, session_token } = keys;
                    Credentials::Aws {
                        access_key_id,
                        secret_access_key,
                        session_token,
                        region: None,
                        endpoint: None,
                    }
                }
                Granted { azure_user_delegation_sas: Some(AzureSignature { sas_token }), .. } => {
                    Credentials::AzureSas(sas_token)
                }
                Granted { gcp_oauth_token: Some(GoogleToken { oauth_token }), .. } => {
                    Credentials::GoogleToken(oauth_token)
                }
                // There is one of them.
                _ => Credentials::Environment,
            };
            let root = Place::with_credentials(location, &credentials).map_err(in_storage)?;
            Ok(Self { root, expires })
        }

        /// Whether its credentials are good for a while.
        pub fn is_open(&self) -> bool {
            self.expires.is_none_or(|time| Timestamp::now().as_millisecond() + MARGIN < time)
        }

        /// Puts a file there, and makes sure that the store has all of it.
        pub fn put(&self, name: &str, content: &Content) -> Result<(), MlflowError> {
            let place = self.root.join(name);
            let size = content.length()?;
            match content {
                Content::Text(text) => place.write(text.clone().into_bytes()),
                Content::File(path) => {
                    let mut file = std::fs::File::open(path).context("open", path)?;
                    place.upload(&mut file, path, size, &mut |_| {})
                }
            }
            .map_err(in_storage)?;
            match place.file().map_err(in_storage)? {
                Some(object) if object.size == size => Ok(()),
                found => Err(MlflowError::Storage {
                    reason: format!(
                        "{place}: it has {} of the {size} bytes that it took",
                        found.map_or(0, |object| object.size)
                    ),
                    passes: true,
                }),
            }
        }

        /// The bytes of each file that is there, by its name.
        pub fn list(&self) -> Result<BTreeMap<String, u64>, MlflowError> {
            let there = self.root.list().map_err(in_storage)?;
            Ok(there.into_iter().map(|object| (object.name, object.size)).collect())
        }
    }

    /// What failed there. New credentials are asked for where the old ones are the reason.
    fn in_storage(error: StoreError) -> MlflowError {
        let passes = error.passes() || matches!(error.problem, Problem::Expired(_));
        MlflowError::Storage { reason: error.to_string(), passes }
    }
}

#[cfg(not(feature = "stores"))]
mod not_built {
    use std::collections::BTreeMap;

    use super::super::MlflowError;
    use super::super::client::Content;
    use super::Granted;

    /// There is none.
    #[derive(Debug)]
    pub(in super::super) enum Storage {}

    impl Storage {
        pub fn open(location: &str, granted: Granted) -> Result<Self, MlflowError> {
            let kind = granted.unspoken().unwrap_or("an object store, which this build does not speak with");
            Err(MlflowError::CatalogStorage { location: location.to_owned(), kind })
        }

        pub fn is_open(&self) -> bool {
            match *self {}
        }

        pub fn put(&self, _: &str, _: &Content) -> Result<(), MlflowError> {
            match *self {}
        }

        pub fn list(&self) -> Result<BTreeMap<String, u64>, MlflowError> {
            match *self {}
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use serde_json::json;

    use super::*;

    fn granted(answer: Value) -> Granted {
        serde_json::from_value(answer).unwrap()
    }

    #[test]
    fn what_is_not_spoken_is_named() {
        let keys = json!({"access_key_id": "a", "secret_access_key": "secret", "session_token": "secret"});
        let plain = json!({"aws_temp_credentials": keys, "expiration_time": "5"});
        assert_eq!((granted(plain.clone()).unspoken(), granted(plain.clone()).expires()), (None, Some(5)));
        assert!(!format!("{:?}", granted(plain.clone())).contains("secret"));
        let mut default = plain.clone();
        default["storage_mode"] = "DEFAULT_STORAGE".into();
        let mut encrypted = plain;
        encrypted["encryption_details"] = json!({"sse_encryption_details": {"algorithm": "AWS_SSE_KMS"}});
        let other = json!({"r2_temp_credentials": {"access_key_id": "a"}});
        for (answer, said) in [(default, "DEFAULT_STORAGE"), (encrypted, "AWS_SSE_KMS"), (other, "none of")] {
            assert!(granted(answer).unspoken().unwrap().contains(said));
        }
    }
}
