//! A place in a store: a file, or whatever lies below a folder.

use std::fmt;
use std::sync::Arc;

use futures_util::TryStreamExt;
use object_store::path::{Path, PathPart};
use object_store::{ObjectMeta, ObjectStore, ObjectStoreExt};
use tokio::runtime::Runtime;

use crate::address::{Address, Scheme};
use crate::connect::{Credentials, connect};
use crate::error::{Problem, StoreError};
use crate::explain;

/// A file or folder that a url names. Nothing says that it is there.
#[derive(Clone)]
pub struct Place {
    store: Arc<Connection>,
    path: Path,
}

/// A store, and the thread-less runtime on which it is asked: whoever calls waits.
struct Connection {
    store: Box<dyn ObjectStore>,
    runtime: Runtime,
    scheme: Scheme,
    root: String,
}

/// A file as a listing tells of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Object {
    /// Its path below the place that was listed; empty for the place itself.
    pub name: String,
    /// Bytes.
    pub size: u64,
    /// The store's word for its content: another content has another.
    pub etag: Option<String>,
    /// Its version, in a store that keeps several.
    pub version: Option<String>,
    /// When it was written, in milliseconds since 1970.
    pub modified: i64,
}

impl Object {
    /// What tells this content from another at the same place.
    pub fn identity(&self) -> String {
        match &self.etag {
            Some(etag) => etag.trim_start_matches("W/").trim_matches('"').to_owned(),
            None => format!("{}-{}", self.modified, self.size),
        }
    }
}

impl Place {
    /// The place that `url` names, asked for as the environment says.
    ///
    /// # Errors
    /// For a text that is no url that can be used, and an environment that cannot.
    pub fn parse(url: &str) -> Result<Self, StoreError> {
        Self::with_credentials(url, &Credentials::Environment)
    }

    /// The place that `url` names, asked for with these credentials.
    ///
    /// # Errors
    /// As [`Place::parse`], and for credentials that are not of such a store.
    pub fn with_credentials(url: &str, credentials: &Credentials) -> Result<Self, StoreError> {
        let address = Address::parse(url)?;
        let fits = match credentials {
            Credentials::Environment => true,
            Credentials::Aws { .. } => address.scheme == Scheme::S3,
            Credentials::AzureSas(_) => address.scheme == Scheme::Azure,
            Credentials::GoogleToken(_) => address.scheme == Scheme::Google,
        };
        let failed = |reason: String| StoreError::new(&address.root, Problem::Setup(reason));
        if !fits {
            return Err(failed(format!("credentials of the kind {credentials:?} are for another store")));
        }
        let store = connect(&address, credentials).map_err(|error| failed(error.to_string()))?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let runtime = runtime.map_err(|error| failed(error.to_string()))?;
        let Address { scheme, root, path, .. } = address;
        Ok(Self { store: Arc::new(Connection { store, runtime, scheme, root }), path })
    }

    /// The place `name` below this one. A name is as listings have it: what looks like an escape in it is part of it.
    pub fn join(&self, name: &str) -> Self {
        let parts = name.split('/').filter(|part| !part.is_empty());
        let path = parts.fold(self.path.clone(), |path, name| path.join(part(name)));
        Self { store: self.store.clone(), path }
    }

    /// The place that this one is in, and its name there; `None` for a bucket.
    pub fn parent(&self) -> Option<(Self, String)> {
        let name = self.path.filename()?.to_owned();
        let parts: Vec<_> = self.path.parts().collect();
        let path = parts[..parts.len() - 1].iter().cloned().collect();
        Some((Self { store: self.store.clone(), path }, name))
    }

    /// The path within the store, without the bucket.
    pub fn key(&self) -> &str {
        self.path.as_ref()
    }

    /// Whether it is on a web server, which has no folders and takes nothing.
    pub fn is_single_file(&self) -> bool {
        self.store.scheme == Scheme::Http
    }

    /// The file at this place, if there is one.
    ///
    /// # Errors
    /// When the store refuses or cannot be reached.
    pub fn file(&self) -> Result<Option<Object>, StoreError> {
        if self.path.is_root() {
            return Ok(None);
        }
        match self.wait(self.store().head(&self.path)) {
            Ok(meta) => Ok(Some(object(meta, String::new()))),
            Err(error) if error.is_not_found() => Ok(None),
            // This answer has no text that says why; that of a listing has.
            Err(error) if self.is_single_file() => Err(error),
            Err(error) => Err(self.list().err().unwrap_or(error)),
        }
    }

    /// Every file below this place, in the order of their paths; none where there is no such folder.
    ///
    /// # Errors
    /// When the store refuses, cannot be reached, or is a web server.
    pub fn list(&self) -> Result<Vec<Object>, StoreError> {
        if self.is_single_file() {
            return Err(self.error(Problem::SingleFile));
        }
        let below = self.wait(self.store().list(Some(&self.path)).try_collect::<Vec<ObjectMeta>>())?;
        let named = below.into_iter().filter_map(|meta| {
            let parts = meta.location.prefix_match(&self.path)?;
            let name = parts.map(|part| part.as_ref().to_owned()).collect::<Vec<_>>().join("/");
            // An empty object may stand for a folder; its name is that of the folder.
            (!name.is_empty()).then(|| object(meta, name))
        });
        let mut objects: Vec<_> = named.collect();
        objects.sort_by(|one, other| std::path::Path::new(&one.name).cmp(std::path::Path::new(&other.name)));
        Ok(objects)
    }

    /// Removes the file at this place; one that is not there counts as removed.
    ///
    /// # Errors
    /// When the store refuses or cannot be reached.
    pub fn delete(&self) -> Result<(), StoreError> {
        match self.wait(self.store().delete(&self.path)) {
            Err(error) if !error.is_not_found() => Err(error),
            _ => Ok(()),
        }
    }

    pub(crate) fn store(&self) -> &dyn ObjectStore {
        self.store.store.as_ref()
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    pub(crate) fn error(&self, problem: impl Into<Problem>) -> StoreError {
        StoreError::new(self.to_string(), problem)
    }

    pub(crate) fn explain(&self, error: &object_store::Error) -> StoreError {
        self.error(explain::problem(error, self.store.scheme))
    }

    /// Waits for what is asked of the store.
    pub(crate) fn block_on<T>(&self, asked: impl Future<Output = T>) -> T {
        self.store.runtime.block_on(asked)
    }

    fn wait<T>(&self, asked: impl Future<Output = Result<T, object_store::Error>>) -> Result<T, StoreError> {
        self.block_on(asked).map_err(|error| self.explain(&error))
    }
}

/// A name as part of a path. Only what no listing has, such as `..`, is escaped.
fn part(name: &str) -> PathPart<'_> {
    PathPart::parse(name).unwrap_or_else(|_| PathPart::from(name))
}

fn object(meta: ObjectMeta, name: String) -> Object {
    let ObjectMeta { size, e_tag, version, last_modified, .. } = meta;
    Object { name, size, etag: e_tag.map(quoted), version, modified: last_modified.timestamp_millis() }
}

/// An ETag as headers have it: Azure's listings leave its quotes out.
pub(crate) fn quoted(etag: String) -> String {
    let is_whole = etag.starts_with('"') || etag.starts_with("W/");
    if is_whole { etag } else { format!("\"{etag}\"") }
}

impl fmt::Display for Place {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.path.is_root() {
            true => formatter.write_str(&self.store.root),
            false => write!(formatter, "{}/{}", self.store.root, self.path),
        }
    }
}

impl fmt::Debug for Place {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "Place({self})")
    }
}
