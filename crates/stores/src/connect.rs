//! The clients of the stores, and whom they ask as.

use std::fmt;
use std::time::Duration;

use object_store::aws::AmazonS3Builder;
use object_store::azure::{MicrosoftAzureBuilder, split_sas};
use object_store::gcp::GoogleCloudStorageBuilder;
use object_store::http::HttpBuilder;
use object_store::{BackoffConfig, ClientOptions, ObjectStore, RetryConfig};

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

/// The client of the store that an address is in.
pub(crate) fn connect(
    address: &Address,
    credentials: &Credentials,
) -> Result<Box<dyn ObjectStore>, object_store::Error> {
    Ok(match address.scheme {
        Scheme::S3 => Box::new(amazon(address, credentials).build()?),
        Scheme::Google => {
            let mut builder = GoogleCloudStorageBuilder::from_env().with_bucket_name(&address.bucket);
            if let Credentials::GoogleToken(token) = credentials {
                builder = builder.with_bearer_token(token);
            }
            Box::new(
                builder
                    .with_client_options(options(is_plain("GOOGLE_BASE_URL")))
                    .with_retry(retry())
                    .build()?,
            )
        }
        Scheme::Azure => {
            let mut builder = MicrosoftAzureBuilder::from_env().with_url(&address.root);
            if let Credentials::AzureSas(signature) = credentials {
                builder = builder.with_sas_authorization(split_sas(signature)?);
            }
            let plain = is_plain("AZURE_STORAGE_ENDPOINT")
                || std::env::var_os("AZURE_STORAGE_USE_EMULATOR").is_some();
            Box::new(builder.with_client_options(options(plain)).with_retry(retry()).build()?)
        }
        Scheme::Http => {
            let plain = address.root.starts_with("http://");
            let builder = HttpBuilder::new().with_url(&address.root).with_client_options(options(plain));
            Box::new(builder.with_retry(retry()).build()?)
        }
    })
}

fn amazon(address: &Address, credentials: &Credentials) -> AmazonS3Builder {
    let mut builder = AmazonS3Builder::from_env().with_bucket_name(&address.bucket);
    let mut plain =
        is_plain("AWS_ENDPOINT_URL") || is_plain("AWS_ENDPOINT_URL_S3") || is_plain("AWS_ENDPOINT");
    if let Credentials::Aws { access_key_id, secret_access_key, session_token, region, endpoint } =
        credentials
    {
        builder = builder.with_access_key_id(access_key_id).with_secret_access_key(secret_access_key);
        if let Some(token) = session_token {
            builder = builder.with_token(token);
        }
        if let Some(region) = region {
            builder = builder.with_region(region);
        }
        if let Some(endpoint) = endpoint {
            plain = endpoint.starts_with("http://");
            builder = builder.with_endpoint(endpoint);
        }
    }
    builder.with_client_options(options(plain)).with_retry(retry())
}

/// Whether a variable names an endpoint without encryption: one that was written so was meant so.
fn is_plain(variable: &str) -> bool {
    std::env::var(variable).is_ok_and(|endpoint| endpoint.starts_with("http://"))
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
