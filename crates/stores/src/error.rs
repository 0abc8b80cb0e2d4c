//! What can go wrong with a place that is elsewhere, sorted by what helps.

use tessera_files::FileError;

/// Something could not be done with a url.
#[derive(Debug, thiserror::Error)]
#[error("{url}: {problem}")]
pub struct StoreError {
    /// What was asked for, without secrets.
    pub url: String,
    /// What is wrong.
    #[source]
    pub problem: Problem,
}

/// What is wrong, and what helps.
#[derive(Debug, thiserror::Error)]
pub enum Problem {
    /// The text is no url that can be used.
    #[error(
        "this url cannot be used: {0}; expected s3://bucket/path, gs://bucket/path, az://container/path, \
         abfss://container@account.dfs.core.windows.net/path, or https:// for a single file"
    )]
    Url(String),
    /// The environment says something that cannot be used.
    #[error("the store cannot be set up: {0}; correct the environment variable that says so")]
    Setup(String),
    /// Nobody is known to ask as.
    #[error("there are no credentials for it ({detail}); set {variables}")]
    NoCredentials {
        /// What said so.
        detail: String,
        /// The variables that would help.
        variables: &'static str,
    },
    /// The credentials were good once.
    #[error(
        "the credentials have expired ({0}); run the same command again, where they come from the environment with new ones: what was \
         fetched is kept"
    )]
    Expired(String),
    /// The credentials are not taken.
    #[error("the store does not accept the credentials ({detail}); check {variables}")]
    BadCredentials {
        /// What said so.
        detail: String,
        /// Where they come from.
        variables: &'static str,
    },
    /// The credentials are good, but not for this.
    #[error(
        "access is not permitted ({0}); give these credentials the right to list, read and, where results go, write and delete \
         there, or use others"
    )]
    Forbidden(String),
    /// The bucket is not there.
    #[error("there is no such bucket or container ({0}); check its name and region, or create it")]
    NoBucket(String),
    /// The object is not there.
    #[error("nothing is there; check the path")]
    NotFound,
    /// The object is another than the one that was listed.
    #[error("it was changed while it was read; run the same command again")]
    Changed,
    /// A web server tells nothing by which a change could be seen.
    #[error(
        "the server tells neither an ETag nor a time of last change, so that another content would not be noticed; download \
         the file and name it where it lies here"
    )]
    Unversioned,
    /// An object below it has a name that is no path.
    #[error(
        "an object there has a name that cannot be used ({0}); rename or remove it, or name another folder"
    )]
    ObjectName(String),
    /// A web server has no folders, and takes nothing.
    #[error("a web server has single files to read only; name one file, or use an object store")]
    SingleFile,
    /// A small file was expected.
    #[error("it has {size} bytes, more than the {limit} of such a file; check the path")]
    TooLarge {
        /// Its size.
        size: u64,
        /// The most that is read.
        limit: u64,
    },
    /// The store cannot be reached, or fails.
    #[error("the store does not answer as it should ({0}); try again when it does")]
    Unreachable(String),
    /// The file on this machine.
    #[error(transparent)]
    File(#[from] FileError),
}

impl StoreError {
    pub(crate) fn new(url: impl Into<String>, problem: impl Into<Problem>) -> Self {
        Self { url: url.into(), problem: problem.into() }
    }

    /// Whether the same call may succeed later without anybody doing anything about it.
    pub fn passes(&self) -> bool {
        matches!(self.problem, Problem::Unreachable(_))
    }

    /// Whether nothing is there.
    pub fn is_not_found(&self) -> bool {
        matches!(self.problem, Problem::NotFound)
    }
}
