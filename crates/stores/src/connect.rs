//! The clients of the stores, and whom they ask as.

use std::fmt;
use std::time::Duration;

use object_store::aws::{AmazonS3Builder, AmazonS3ConfigKey};
use object_store::azure::{AzureConfigKey, MicrosoftAzureBuilder, split_sas};
use object_store::gcp::{GoogleCloudStorageBuilder, GoogleConfigKey};
use object_store::http::HttpBuilder;
use object_store::{BackoffConfig, ClientOptions, ObjectStore, RetryConfig};
use tessera_workspace::Access;

use crate::address::{Address, Scheme};

/// How long a connection may take to come up.
const CONNECT: Duration = Duration::from_secs(10);
/// How long an answer, or the next bytes of one, may take: a part of an upload has to be sent in it.
const SILENCE: Duration = Duration::from_secs(120);

/// Whom a store is asked as.
#[derive(Clone, Default)]
pub enum Credentials {
    /// As the environment says: `AWS_*`, `GOOGLE_*`, `AZURE_*`, endpoints included; else as the machine, where its provider
    /// gives it a role.
    #[default]
    Environment,
    /// Keys for S3, such as a catalogue hands out for an hour.
    Aws {
        /// The key's name.
        access_key_id: String,
        /// The key.
        secret_access_key: String,
        /// What makes it temporary.
        session_token: Option<String>,
        /// Where the bucket is; `None`: as the environment says.
        region: Option<String>,
        /// The address of a store that is not Amazon's; `None`: as the environment says.
        endpoint: Option<String>,
    },
    /// A signature for Azure, without a `?`.
    AzureSas(String),
    /// A bearer token for Google.
    GoogleToken(String),
}

impl fmt::Debug for Credentials {
    /// Their kind only.
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Environment => "Environment",
            Self::Aws { .. } => "Aws",
            Self::AzureSas(_) => "AzureSas",
            Self::GoogleToken(_) => "GoogleToken",
        })
    }
}

impl From<Access> for Credentials {
    /// Those that a catalogue handed out. It does not tell where a bucket is.
    fn from(access: Access) -> Self {
        match access {
            Access::Local => Self::Environment,
            Access::Aws { access_key_id, secret_access_key, session_token } => {
                Self::Aws { access_key_id, secret_access_key, session_token, region: None, endpoint: None }
            }
            Access::AzureSas(signature) => Self::AzureSas(signature),
            Access::GoogleToken(token) => Self::GoogleToken(token),
        }
    }
}

/// The client of the store that an address is in.
pub(crate) fn connect(
    address: &Address,
    credentials: &Credentials,
) -> Result<Box<dyn ObjectStore>, object_store::Error> {
    let variable = |name: &str| std::env::var(name).ok();
    Ok(match address.scheme {
        Scheme::S3 => {
            let builder = match credentials {
                Credentials::Aws { .. } => amazon_as_given(credentials, variable),
                _ => AmazonS3Builder::from_env(),
            };
            let plain = match credentials {
                Credentials::Aws { endpoint: Some(endpoint), .. } => is_plain(endpoint),
                _ => AMAZON_ENDPOINTS.iter().any(|(name, _)| names_plain(variable(name))),
            };
            let builder = builder.with_bucket_name(&address.bucket).with_client_options(options(plain));
            Box::new(builder.with_retry(retry()).build()?)
        }
        Scheme::Google => {
            let builder = match credentials {
                Credentials::GoogleToken(token) => google_as_given(token, variable),
                _ => GoogleCloudStorageBuilder::from_env(),
            };
            let plain = names_plain(variable(GOOGLE_ENDPOINT));
            let builder = builder.with_bucket_name(&address.bucket).with_client_options(options(plain));
            Box::new(builder.with_retry(retry()).build()?)
        }
        Scheme::Azure => {
            let builder = match credentials {
                Credentials::AzureSas(signature) => azure_as_given(signature, variable)?,
                _ => MicrosoftAzureBuilder::from_env(),
            };
            let plain = names_plain(variable("AZURE_STORAGE_ENDPOINT"))
                || std::env::var_os("AZURE_STORAGE_USE_EMULATOR").is_some();
            let builder = builder.with_url(&address.root).with_client_options(options(plain));
            Box::new(builder.with_retry(retry()).build()?)
        }
        Scheme::Http => {
            let plain = is_plain(&address.root);
            let builder = HttpBuilder::new().with_url(&address.root).with_client_options(options(plain));
            Box::new(builder.with_retry(retry()).build()?)
        }
    })
}

/// Variables that name a store which is not Amazon's.
const AMAZON_ENDPOINTS: [(&str, AmazonS3ConfigKey); 3] = [
    ("AWS_ENDPOINT", AmazonS3ConfigKey::Endpoint),
    ("AWS_ENDPOINT_URL", AmazonS3ConfigKey::Endpoint),
    ("AWS_ENDPOINT_URL_S3", AmazonS3ConfigKey::S3Endpoint),
];
/// Variables that say where a bucket is.
const AMAZON_REGIONS: [(&str, AmazonS3ConfigKey); 2] =
    [("AWS_REGION", AmazonS3ConfigKey::Region), ("AWS_DEFAULT_REGION", AmazonS3ConfigKey::DefaultRegion)];
/// Variables that say where an account is, and whose, if its url does not.
const AZURE_PLACES: [(&str, AzureConfigKey); 3] = [
    ("AZURE_STORAGE_ACCOUNT_NAME", AzureConfigKey::AccountName),
    ("AZURE_STORAGE_ENDPOINT", AzureConfigKey::Endpoint),
    ("AZURE_STORAGE_USE_EMULATOR", AzureConfigKey::UseEmulator),
];
/// The variable that names a store which is not Google's.
const GOOGLE_ENDPOINT: &str = "GOOGLE_BASE_URL";

/// For keys that were handed out. Nothing of the environment's credentials belongs to them, above all no session token. Where stores are
/// it may still say: catalogues tell no region, and one that runs beside a store of its own (as that of the tests does) tells no
/// address.
fn amazon_as_given(credentials: &Credentials, variable: impl Fn(&str) -> Option<String>) -> AmazonS3Builder {
    let mut builder = AmazonS3Builder::new();
    let Credentials::Aws { access_key_id, secret_access_key, session_token, region, endpoint } = credentials
    else {
        return builder;
    };
    builder = builder.with_access_key_id(access_key_id).with_secret_access_key(secret_access_key);
    if let Some(token) = session_token {
        builder = builder.with_token(token);
    }
    let as_told = |builder: AmazonS3Builder, keys: &[(&str, AmazonS3ConfigKey)]| {
        keys.iter().fold(builder, |builder, (name, key)| match variable(name) {
            Some(value) => builder.with_config(*key, value),
            None => builder,
        })
    };
    builder = match region {
        Some(region) => builder.with_region(region),
        None => as_told(builder, &AMAZON_REGIONS),
    };
    match endpoint {
        Some(endpoint) => builder.with_endpoint(endpoint),
        None => as_told(builder, &AMAZON_ENDPOINTS),
    }
}

/// The same for a signature for Azure: whatever else the environment has, an account's key included, would be preferred to it.
fn azure_as_given(
    signature: &str,
    variable: impl Fn(&str) -> Option<String>,
) -> Result<MicrosoftAzureBuilder, object_store::Error> {
    let mut builder = MicrosoftAzureBuilder::new().with_sas_authorization(split_sas(signature)?);
    for (name, key) in AZURE_PLACES {
        if let Some(value) = variable(name) {
            builder = builder.with_config(key, value);
        }
    }
    Ok(builder)
}

/// The same for Google's bearer token.
fn google_as_given(token: &str, variable: impl Fn(&str) -> Option<String>) -> GoogleCloudStorageBuilder {
    let builder = GoogleCloudStorageBuilder::new().with_bearer_token(token);
    match variable(GOOGLE_ENDPOINT) {
        Some(endpoint) => builder.with_config(GoogleConfigKey::BaseUrl, endpoint),
        None => builder,
    }
}

/// Whether an endpoint is without encryption: one that was written so was meant so.
fn is_plain(endpoint: &str) -> bool {
    endpoint.starts_with("http://")
}

fn names_plain(endpoint: Option<String>) -> bool {
    endpoint.is_some_and(|endpoint| is_plain(&endpoint))
}

fn options(plain: bool) -> ClientOptions {
    ClientOptions::new()
        .with_allow_http(plain)
        // A large file takes as long as it takes, while bytes come.
        .with_timeout_disabled()
        .with_read_timeout(SILENCE)
        .with_connect_timeout(CONNECT)
}

/// Each request is repeated a few times, within seconds: whoever can wait for longer asks again.
fn retry() -> RetryConfig {
    let backoff = BackoffConfig {
        init_backoff: Duration::from_millis(100),
        max_backoff: Duration::from_secs(5),
        base: 2.0,
    };
    RetryConfig { backoff, max_retries: 4, retry_timeout: Duration::from_secs(60) }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    /// Somebody's environment, full of credentials of their own.
    fn variable(name: &str) -> Option<String> {
        let value = match name {
            "AWS_REGION" => "eu-central-1",
            "AWS_ENDPOINT_URL" => "http://127.0.0.1:1",
            "AZURE_STORAGE_ENDPOINT" => "http://127.0.0.1:2",
            "AZURE_STORAGE_USE_EMULATOR" => return None,
            "GOOGLE_BASE_URL" => "http://127.0.0.1:3",
            "AWS_ENDPOINT" | "AWS_ENDPOINT_URL_S3" | "AWS_DEFAULT_REGION" => return None,
            _ => "the environment's",
        };
        Some(value.to_owned())
    }

    #[test]
    fn keys_that_were_handed_out_are_not_mixed_with_the_environments() {
        let mut given = Credentials::Aws {
            access_key_id: "id".into(),
            secret_access_key: "secret".into(),
            session_token: None,
            region: None,
            endpoint: None,
        };
        let value = |given: &Credentials, key| amazon_as_given(given, variable).get_config_value(&key);
        assert_eq!(value(&given, AmazonS3ConfigKey::AccessKeyId).unwrap(), "id");
        assert_eq!(value(&given, AmazonS3ConfigKey::Token), None);
        assert_eq!(value(&given, AmazonS3ConfigKey::Region).unwrap(), "eu-central-1");
        assert_eq!(value(&given, AmazonS3ConfigKey::Endpoint).unwrap(), "http://127.0.0.1:1");
        if let Credentials::Aws { region, endpoint, .. } = &mut given {
            (*region, *endpoint) = (Some("us-west-2".into()), Some("https://store".into()));
        }
        assert_eq!(value(&given, AmazonS3ConfigKey::Region).unwrap(), "us-west-2");
        assert_eq!(value(&given, AmazonS3ConfigKey::Endpoint).unwrap(), "https://store");
    }

    #[test]
    fn a_signature_that_was_handed_out_is_the_only_credential() {
        let builder = azure_as_given("sv=1&sig=x", variable).unwrap();
        for key in [AzureConfigKey::AccessKey, AzureConfigKey::Token, AzureConfigKey::ClientSecret] {
            assert_eq!(builder.get_config_value(&key), None, "{key:?}");
        }
        assert_eq!(builder.get_config_value(&AzureConfigKey::Endpoint).unwrap(), "http://127.0.0.1:2");
    }

    #[test]
    fn a_token_that_was_handed_out_is_the_only_credential() {
        let builder = google_as_given("token", variable);
        assert_eq!(builder.get_config_value(&GoogleConfigKey::BearerToken).unwrap(), "token");
        assert_eq!(builder.get_config_value(&GoogleConfigKey::ServiceAccount), None);
        assert_eq!(builder.get_config_value(&GoogleConfigKey::BaseUrl).unwrap(), "http://127.0.0.1:3");
    }
}
