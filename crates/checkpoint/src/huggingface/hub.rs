//! A repository on the Hugging Face hub, of a model or a data set, brought into the cache folder that `huggingface_hub` also uses.
//!
//! hf-hub talks to the hub; what it leaves open is done here. Its cached downloads do not look at the status of the
//! answer and do not repeat a broken body, so it downloads into a staging folder; a file whose size is the one that
//! the repository lists, and whose content has the SHA-256 under which hf-hub stored it, is then moved into the cache.
//! The cache so holds whole files only, and what is in it with the right size is used without being hashed again.
//! `HF_HUB_OFFLINE`, which hf-hub does not read, is honoured here.
//!
//! A hub that takes a connection and then says nothing is given up: hf-hub waits for it without end.
//!
//! One process fetches from a repository at a time; others wait for it. Large files may be transferred by hf-xet,
//! whose telemetry is governed by `HF_HUB_DISABLE_TELEMETRY`, which only the environment can set.

mod remote;

use std::fmt;
use std::fs::{self, File};
use std::io;
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use hf_hub::HFError;
use tessera_files::{FolderLock, IoContext, replace_symlink, sha256_file, write_atomic};

use super::HuggingFaceError;
use remote::Remote;
pub(super) use remote::{Limit, client};

/// Where a download lies until it has been checked, within the repository's folder in the cache.
const STAGING: &str = ".unchecked";
/// Names of the files of data sets, a file for each commit, within the repository's folder in the cache.
const LISTINGS: &str = ".listings";
/// How often a file is asked for before giving up.
const ATTEMPTS: u32 = 5;
/// The branch that is meant when none is given.
const DEFAULT_REVISION: &str = "main";

/// The hub where none is named.
const PUBLIC_HUB: &str = "https://huggingface.co";

/// How far the download of a file has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HubProgress<'a> {
    /// The file's name in the repository.
    pub file: &'a str,
    /// Bytes that are there.
    pub done: u64,
    /// Bytes of the whole file.
    pub total: u64,
}

/// Called as a download goes on, from a thread of the download.
pub type HubProgressCallback = Arc<dyn Fn(HubProgress<'_>) + Send + Sync>;

/// How the hub is reached.
#[derive(Clone)]
pub struct HubOptions {
    /// Use only what is in the cache.
    pub offline: bool,
    /// The hub's address; `None`: `HF_ENDPOINT`, else the public hub.
    pub endpoint: Option<String>,
    /// Who is asking; `None`: `HF_TOKEN`, else the token that `hf auth login` stored.
    pub token: Option<String>,
    /// The cache folder.
    pub cache: PathBuf,
    /// The pause before the first repetition; each further one is twice as long.
    pub retry_delay: Duration,
    /// How long the next word of an answer, or piece of a file, is waited for.
    pub silence: Duration,
    /// Told how downloads go on.
    pub progress: Option<HubProgressCallback>,
}

impl HubOptions {
    /// What the environment says: `HF_HUB_OFFLINE`, `HF_HUB_CACHE`, `HF_HOME`; hf-hub itself reads `HF_ENDPOINT` and
    /// `HF_TOKEN`.
    pub fn from_env() -> Self {
        let offline = std::env::var("HF_HUB_OFFLINE").is_ok_and(|value| is_true(&value));
        Self {
            offline,
            endpoint: None,
            token: None,
            cache: hf_hub::resolve_cache_dir(),
            retry_delay: Duration::from_millis(250),
            silence: Duration::from_secs(30),
            progress: None,
        }
    }

    /// The hub's address as people and files may see it: without who is asking, and without a query.
    pub fn address(&self) -> String {
        let given = self.endpoint.clone().or_else(|| std::env::var("HF_ENDPOINT").ok());
        let given = given.unwrap_or_else(|| PUBLIC_HUB.to_owned());
        shown_address(&given)
    }
}

/// An address without who is asking, and without a query.
pub(super) fn shown_address(address: &str) -> String {
    let address = address.split(['?', '#']).next().unwrap_or_default().trim_end_matches('/');
    let Some((scheme, rest)) = address.split_once("://") else { return address.to_owned() };
    let (host, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
    let host = host.rsplit('@').next().unwrap_or(host);
    format!("{scheme}://{host}{path}")
}

impl fmt::Debug for HubOptions {
    /// Without the token.
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("HubOptions")
            .field("offline", &self.offline)
            .field("endpoint", &self.endpoint)
            .field("token_set", &self.token.is_some())
            .field("cache", &self.cache)
            .finish_non_exhaustive()
    }
}

/// The values that `huggingface_hub` takes as true.
fn is_true(value: &str) -> bool {
    ["1", "on", "yes", "true"].contains(&value.to_ascii_lowercase().as_str())
}

/// What a repository holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum RepositoryKind {
    Model,
    DataSet,
}

impl RepositoryKind {
    /// What the names of such repositories' folders in the cache begin with.
    fn prefix(self) -> &'static str {
        match self {
            Self::Model => "models",
            Self::DataSet => "datasets",
        }
    }

    /// What helps where the hub does not hand a repository out.
    fn local(self) -> &'static str {
        match self {
            Self::Model => "give a local folder with the model's files",
            Self::DataSet => "give local files",
        }
    }
}

/// A repository at one commit.
#[derive(Debug)]
pub(super) struct HubRepository {
    kind: RepositoryKind,
    id: String,
    commit: String,
    options: HubOptions,
    /// The repository's folder in the cache.
    folder: PathBuf,
    /// `None`: only what is in the cache.
    remote: Option<Remote>,
}

impl HubRepository {
    /// Finds the commit of `revision` and what files it has. If the hub cannot be reached, what is in the cache is
    /// used.
    pub fn open(
        kind: RepositoryKind,
        id: &str,
        revision: Option<&str>,
        options: &HubOptions,
    ) -> Result<Self, HuggingFaceError> {
        let revision = revision.unwrap_or(DEFAULT_REVISION);
        if !stays_below(revision) {
            return Err(hub_error(id, format!("{revision:?} is not a branch, tag or commit")));
        }
        let folder = options.cache.join(format!("{}--{}", kind.prefix(), id.replace('/', "--")));
        if options.offline {
            return Self::cached(kind, id, revision, options, folder, "HF_HUB_OFFLINE is set");
        }
        match Remote::connect(kind, id, revision, options, &folder.join(STAGING)) {
            Ok((remote, commit)) => {
                let repository = Self {
                    kind,
                    id: id.to_owned(),
                    commit,
                    options: options.clone(),
                    folder,
                    remote: Some(remote),
                };
                repository.write_reference(revision)?;
                Ok(repository)
            }
            Err(HFError::Request { source, .. }) => Self::cached(
                kind,
                id,
                revision,
                options,
                folder,
                &format!("the hub at {} cannot be reached ({})", options.address(), root_cause(&source)),
            ),
            Err(error) => Err(hub_error(id, explain(&error, kind))),
        }
    }

    fn cached(
        kind: RepositoryKind,
        id: &str,
        revision: &str,
        options: &HubOptions,
        folder: PathBuf,
        reason: &str,
    ) -> Result<Self, HuggingFaceError> {
        let commit = if is_hash(revision) {
            Some(revision.to_owned())
        } else {
            fs::read_to_string(folder.join("refs").join(revision)).ok().map(|text| text.trim().to_owned())
        };
        let commit =
            commit.filter(|commit| is_hash(commit) && folder.join("snapshots").join(commit).is_dir());
        let commit = commit.ok_or_else(|| {
            let cache = options.cache.display();
            hub_error(
                id,
                format!(
                    "{reason}, and revision {revision} is not in the cache {cache}; fetch it \
                once while the hub can be reached, or {}",
                    kind.local()
                ),
            )
        })?;
        Ok(Self { kind, id: id.to_owned(), commit, options: options.clone(), folder, remote: None })
    }

    /// The folder in which the fetched files of this commit lie.
    pub fn snapshot(&self) -> PathBuf {
        self.folder.join("snapshots").join(&self.commit)
    }

    /// The names of all files that the repository has; from the cache, as they were told when the hub was reached, `None` if it
    /// never was for this commit.
    pub fn listing(&self) -> Result<Option<Vec<String>>, HuggingFaceError> {
        let path = self.folder.join(LISTINGS).join(&self.commit);
        let Some(remote) = &self.remote else {
            let names = fs::read_to_string(&path).ok();
            return Ok(names.map(|names| names.lines().map(str::to_owned).collect()));
        };
        let names: Vec<String> = remote.sizes.keys().cloned().collect();
        self.note(&path, &names.join("\n"))?;
        Ok(Some(names))
    }

    /// Writes a small file into the repository's folder, unless it is there. Processes may do so at the same time.
    fn note(&self, path: &Path, text: &str) -> Result<(), HuggingFaceError> {
        let folder = path.parent().unwrap_or(path);
        fs::create_dir_all(folder).context("create", folder)?;
        let _lock = wait_for_lock(&self.folder)?;
        if fs::read_to_string(path).is_ok_and(|there| there == text) {
            return Ok(());
        }
        Ok(write_atomic(path, text.as_bytes())?)
    }

    /// The commit.
    pub fn commit(&self) -> &str {
        &self.commit
    }

    /// The names of the files that the repository has; from the cache, of those that were fetched.
    pub fn file_names(&self) -> Result<Vec<String>, HuggingFaceError> {
        match &self.remote {
            Some(remote) => Ok(remote.sizes.keys().cloned().collect()),
            None => super::safetensors::file_names(&self.snapshot()),
        }
    }

    /// Makes sure that a file is in the snapshot. From the cache alone this does nothing.
    pub fn fetch(&self, name: &str) -> Result<(), HuggingFaceError> {
        let Some(remote) = &self.remote else { return Ok(()) };
        let Some(size) = remote.sizes.get(name).copied() else {
            return Err(hub_error(&self.id, format!("the repository has no file {name}")));
        };
        let snapshot = self.snapshot();
        let place = snapshot.join(name);
        let folder = place.parent().unwrap_or(&snapshot);
        fs::create_dir_all(folder).context("create", folder)?;
        let _lock = wait_for_lock(&self.folder)?;
        if fs::metadata(&place).is_ok_and(|found| found.len() == size) {
            return Ok(());
        }
        let staging = self.folder.join(STAGING);
        let result = self.download(remote, name, size);
        if staging.exists() {
            fs::remove_dir_all(&staging).context("remove", &staging)?;
        }
        result
    }

    /// Remembers what commit a branch or tag stood for, for a later use without the hub.
    fn write_reference(&self, revision: &str) -> Result<(), HuggingFaceError> {
        if is_hash(revision) {
            return Ok(());
        }
        self.note(&self.folder.join("refs").join(revision), &self.commit)
    }

    /// Downloads a file and moves it into the cache; a broken or wrong one is asked for again, after a pause that
    /// doubles.
    fn download(&self, remote: &Remote, name: &str, size: u64) -> Result<(), HuggingFaceError> {
        let mut pause = self.options.retry_delay;
        let mut problem = String::new();
        for attempt in 0..ATTEMPTS {
            if attempt > 0 {
                std::thread::sleep(pause);
                pause *= 2;
            }
            match remote.download(name, &self.commit, size, &self.options) {
                Ok(Ok(pointer)) => match self.accept(&pointer, name, size)? {
                    None => return Ok(()),
                    Some(found) => problem = found,
                },
                Err(silence) => {
                    problem = format!("nothing came for {} s", silence.as_secs_f64());
                    continue;
                }
                Ok(Err(HFError::Request { source, .. })) => problem = root_cause(&source),
                Ok(Err(HFError::Xet { source, .. })) => problem = source.to_string(),
                Ok(Err(error)) => {
                    return Err(hub_error(&self.id, format!("{name}: {}", explain(&error, self.kind))));
                }
            }
            // hf-hub's checked path says what its cached one keeps to itself: that the content was refused.
            let probe =
                remote.repository.download_file_to_bytes().filename(name).revision(self.commit.as_str());
            if let Err(error @ (HFError::AuthRequired { .. } | HFError::Forbidden { .. })) =
                probe.range(0..1).send()
            {
                return Err(hub_error(&self.id, format!("{name}: {}", explain(&error, self.kind))));
            }
        }
        let endpoint = &remote.endpoint;
        Err(hub_error(
            &self.id,
            format!(
                "{name} could not be fetched from {endpoint} in {ATTEMPTS} attempts: {problem}; try again later"
            ),
        ))
    }

    /// Moves a download from the staging folder into the cache if it is what it should be; else says what it is.
    fn accept(&self, pointer: &Path, name: &str, size: u64) -> Result<Option<String>, HuggingFaceError> {
        let content = fs::canonicalize(pointer).context("open", pointer)?;
        let length = fs::metadata(&content).context("open", &content)?.len();
        let etag = content.file_name().unwrap_or_default().to_owned();
        let sha256 = etag
            .to_str()
            .filter(|etag| etag.len() == 64 && etag.bytes().all(|byte| byte.is_ascii_hexdigit()));
        let problem = if length != size {
            Some(format!("{length} bytes came instead of {size}"))
        } else if let Some(expected) = sha256 {
            let found = sha256_file(&content)?;
            (found != expected).then(|| format!("its SHA-256 is {found} instead of {expected}"))
        } else {
            None // A small file, which git holds itself.
        };
        if problem.is_some() {
            fs::remove_file(pointer).context("remove", pointer)?;
            fs::remove_file(&content).context("remove", &content)?;
            return Ok(problem);
        }
        let blobs = self.folder.join("blobs");
        fs::create_dir_all(&blobs).context("create", &blobs)?;
        let blob = blobs.join(&etag);
        File::open(&content).and_then(|file| file.sync_all()).context("sync", &content)?;
        fs::rename(&content, &blob).context("rename to", &blob)?;
        // As many folders up as the file lies below the repository's.
        let up = "../".repeat(2 + name.matches('/').count());
        replace_symlink(&Path::new(&up).join("blobs").join(&etag), &self.snapshot().join(name))?;
        Ok(None)
    }
}

/// Whether a relative path leads to somewhere below where it starts.
fn stays_below(path: &str) -> bool {
    Path::new(path).components().all(|part| matches!(part, Component::Normal(_)))
}

/// Whether a revision is a commit.
pub(super) fn is_hash(revision: &str) -> bool {
    revision.len() == 40 && revision.bytes().all(|byte| byte.is_ascii_hexdigit())
}

fn wait_for_lock(folder: &Path) -> Result<FolderLock, HuggingFaceError> {
    loop {
        if let Some(lock) = FolderLock::try_take(folder)? {
            return Ok(lock);
        }
        std::thread::sleep(Duration::from_millis(200));
    }
}

pub(super) fn hub_error(id: &str, problem: String) -> HuggingFaceError {
    HuggingFaceError::Hub { id: id.to_owned(), problem }
}

/// The innermost cause, which says more than its wrappings.
pub(super) fn root_cause(error: &dyn std::error::Error) -> String {
    let mut cause = error;
    while let Some(inner) = cause.source() {
        cause = inner;
    }
    cause.to_string()
}

/// What a refusal means and what to do about it.
fn explain(error: &HFError, kind: RepositoryKind) -> String {
    let local = kind.local();
    match error {
        HFError::AuthRequired { .. } => format!(
            "{error}. The repository does not exist, or is private or gated: check its name; ask for access and \
            accept the licence on its page; set HF_TOKEN to a token of the account that did; or {local}"
        ),
        HFError::Forbidden { .. } => format!(
            "{error}. Access is not granted: accept the licence on the repository's page (some are reviewed \
            by hand) and set HF_TOKEN to a token of that account with read rights; or {local}"
        ),
        HFError::RepoNotFound { .. } => format!(
            "{error}. Check its name; it may have been withdrawn; if it is private, set HF_TOKEN; or {local}"
        ),
        HFError::RevisionNotFound { .. } => format!(
            "{error}. Check the repository's name and what stands after the @: a branch, tag or commit; the \
            repository may have been withdrawn; if it is private, set HF_TOKEN; or {local}"
        ),
        HFError::EntryNotFound { .. } => {
            format!("{error}. The repository has changed while it was read; try again")
        }
        HFError::RateLimited { .. } => {
            format!("{error}. Wait some minutes, or set HF_TOKEN, which raises the limit")
        }
        HFError::Io(source) if source.kind() == io::ErrorKind::StorageFull => {
            format!("{error}. Make room, or set HF_HOME to a folder on another disk")
        }
        other => other.to_string(),
    }
}
