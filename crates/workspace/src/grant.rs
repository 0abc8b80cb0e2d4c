//! Credentials that a catalogue hands out for an hour, for a folder in an object store: of a table, or of a version of a model.

use std::collections::BTreeMap;
use std::fmt;

use serde::Deserialize;
use serde_json::Value;

/// Whom a store is asked as.
#[derive(PartialEq, Eq)]
pub enum Access {
    /// None are needed: what is wanted is in a folder of this machine.
    Local,
    /// Keys for S3.
    Aws {
        /// The key's name.
        access_key_id: String,
        /// The key.
        secret_access_key: String,
        /// What makes it temporary.
        session_token: Option<String>,
    },
    /// A signature for Azure.
    AzureSas(String),
    /// A bearer token for Google.
    GoogleToken(String),
}

impl fmt::Debug for Access {
    /// Their kind only.
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Local => "Local",
            Self::Aws { .. } => "Aws",
            Self::AzureSas(_) => "AzureSas",
            Self::GoogleToken(_) => "GoogleToken",
        })
    }
}

/// What a catalogue answers, as Unity Catalog has it.
#[derive(Deserialize)]
pub struct Granted {
    aws_temp_credentials: Option<Aws>,
    azure_user_delegation_sas: Option<Sas>,
    gcp_oauth_token: Option<Oauth>,
    /// Milliseconds since 1970, as a number or a text.
    #[serde(default)]
    expiration_time: Value,
    #[serde(default)]
    storage_mode: Value,
    #[serde(default)]
    encryption_details: Value,
    /// Whatever else is granted: of it the name is told.
    #[serde(flatten)]
    others: BTreeMap<String, Value>,
}

#[derive(Deserialize)]
struct Aws {
    access_key_id: String,
    secret_access_key: String,
    session_token: Option<String>,
}

#[derive(Deserialize)]
struct Sas {
    sas_token: String,
}

#[derive(Deserialize)]
struct Oauth {
    oauth_token: String,
}

impl fmt::Debug for Granted {
    /// Without the credentials.
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Granted").field("storage_mode", &self.storage_mode).finish_non_exhaustive()
    }
}

impl Granted {
    /// When they cease to be good, in milliseconds since 1970, if that is told.
    pub fn expires(&self) -> Option<i64> {
        let time = &self.expiration_time;
        time.as_i64().or_else(|| time.as_str()?.parse().ok()).filter(|time| *time > 0)
    }

    /// What keeps files from being put there as [`Granted::access`] says.
    pub fn keeps_from_writing(&self) -> Option<&'static str> {
        if self.storage_mode == "DEFAULT_STORAGE" {
            return Some(
                "the workspace's default storage (DEFAULT_STORAGE), which takes files by signed addresses only",
            );
        }
        (self.encryption_details["sse_encryption_details"]["algorithm"] == "AWS_SSE_KMS")
            .then_some("a bucket whose files are to be encrypted by a key of their own (AWS_SSE_KMS)")
    }

    /// The credentials.
    ///
    /// # Errors
    /// For those of a store that is none of Amazon's, Microsoft's and Google's: what was granted instead.
    pub fn access(self) -> Result<Access, String> {
        if let Some(Aws { access_key_id, secret_access_key, session_token }) = self.aws_temp_credentials {
            return Ok(Access::Aws { access_key_id, secret_access_key, session_token });
        }
        if let Some(Sas { sas_token }) = self.azure_user_delegation_sas {
            return Ok(Access::AzureSas(sas_token.trim_start_matches('?').to_owned()));
        }
        if let Some(Oauth { oauth_token }) = self.gcp_oauth_token {
            return Ok(Access::GoogleToken(oauth_token));
        }
        let kinds: Vec<_> = self.others.into_keys().filter(|key| key != "url").collect();
        Err(kinds.join(", "))
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
    fn credentials_are_those_of_one_store() {
        let keys = json!({"access_key_id": "a", "secret_access_key": "secret", "session_token": "secret"});
        let plain = json!({"aws_temp_credentials": keys, "expiration_time": "5", "url": "s3://a"});
        let found = granted(plain.clone());
        assert_eq!((found.keeps_from_writing(), found.expires()), (None, Some(5)));
        assert!(!format!("{found:?}").contains("secret"));
        assert!(
            matches!(found.access().unwrap(), Access::Aws { session_token: Some(token), .. } if token == "secret")
        );
        let mut default = plain.clone();
        default["storage_mode"] = "DEFAULT_STORAGE".into();
        assert!(granted(default).keeps_from_writing().unwrap().contains("DEFAULT_STORAGE"));
        let mut encrypted = plain;
        encrypted["encryption_details"] = json!({"sse_encryption_details": {"algorithm": "AWS_SSE_KMS"}});
        assert!(granted(encrypted).keeps_from_writing().unwrap().contains("AWS_SSE_KMS"));
        let signature =
            granted(json!({"azure_user_delegation_sas": {"sas_token": "?sv=1"}, "expiration_time": 7}));
        assert_eq!(
            (signature.expires(), signature.access().unwrap()),
            (Some(7), Access::AzureSas("sv=1".into()))
        );
        let other = granted(
            json!({"r2_temp_credentials": {"access_key_id": "a"}, "expiration_time": 0, "url": "r2://a"}),
        );
        assert_eq!((other.expires(), other.access().unwrap_err().as_str()), (None, "r2_temp_credentials"));
    }
}
