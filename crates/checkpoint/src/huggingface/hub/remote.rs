//! The conversation with the hub: what a repository holds, and its files as they come.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use hf_hub::progress::{DownloadEvent, Progress, ProgressEvent, ProgressHandler};
use hf_hub::repository::RepoTreeEntry;
use hf_hub::{HFClient, HFClientSync, HFError, HFRepository, HFRepositorySync, RepoTypeAny};
use tokio::runtime::{Builder, Runtime};
use tokio::time::timeout;

use super::{ATTEMPTS, HubOptions, HubProgress, HubProgressCallback, RepositoryKind, is_hash, stays_below};

/// How long a connection may take to come up.
const CONNECT: Duration = Duration::from_secs(10);
/// How long nothing may come of a download that has begun. Of one in blocks nothing is told until a whole block is there, which takes
/// a slow line minutes; one in a single body has the client's limit for each piece.
const BLOCK: Duration = Duration::from_secs(600);

/// The repository as the hub shows it.
#[derive(Debug)]
pub(super) struct Remote {
    pub endpoint: String,
    pub repository: HFRepositorySync<RepoTypeAny>,
    /// The same, to download from into the staging folder.
    downloads: HFRepository<RepoTypeAny>,
    runtime: Runtime,
    /// The size of each file.
    pub sizes: BTreeMap<String, u64>,
}

impl Remote {
    /// Asks for the commit of a revision and its files.
    pub fn connect(
        kind: RepositoryKind,
        id: &str,
        revision: &str,
        options: &HubOptions,
        staging: &Path,
    ) -> Result<(Self, String), HFError> {
        let client = client(options, staging, ATTEMPTS as usize, Limit::Silence)?;
        let endpoint = client.endpoint().to_owned();
        let runtime = Builder::new_current_thread().enable_all().build()?;
        let (owner, name) = hf_hub::split_id(id);
        let asynchronous = client.clone();
        let client = HFClientSync::from_inner(client)?;
        let (commit, kind) = match kind {
            RepositoryKind::Model => {
                (client.model(owner, name).info().revision(revision).send()?.sha, RepoTypeAny::Model)
            }
            RepositoryKind::DataSet => {
                (client.dataset(owner, name).info().revision(revision).send()?.sha, RepoTypeAny::Dataset)
            }
        };
        let downloads = asynchronous.repository(kind, owner, name);
        let repository = client.repository(kind, owner, name);
        let commit = commit.filter(|commit| is_hash(commit));
        let commit = commit.ok_or_else(|| HFError::malformed_response("the commit of the revision"))?;
        // What a model is made of lies on top.
        let recursive = kind == RepoTypeAny::Dataset;
        let listing = repository.list_tree().revision(commit.as_str()).recursive(recursive).send()?;
        // A file is put where its name says: below the snapshot, whatever a hub says.
        let sizes = listing.into_iter().filter_map(|entry| match entry {
            RepoTreeEntry::File { path, size, .. } => stays_below(&path).then_some((path, size)),
            RepoTreeEntry::Directory { .. } => None,
        });
        Ok((Self { endpoint, repository, downloads, runtime, sizes: sizes.collect() }, commit))
    }

    /// Downloads a file of so many bytes into the staging folder; an error is for how long nothing came. hf-hub asks for a file's size by
    /// a client of its own, which waits without end: until the download begins the limit is that of the options.
    pub fn download(
        &self,
        name: &str,
        commit: &str,
        size: u64,
        options: &HubOptions,
    ) -> Result<Result<PathBuf, HFError>, Duration> {
        let (has_begun, come) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let callback = options.progress.clone();
        let reporter = Reporter { callback, size, has_begun: has_begun.clone(), come: come.clone() };
        let request = self.downloads.download_file().filename(name).revision(commit);
        let download = request.progress(Progress::new(reporter)).send();
        self.runtime.block_on(async {
            let mut download = pin!(download);
            loop {
                let before = (has_begun.load(Ordering::Relaxed), come.load(Ordering::Relaxed));
                let limit = if before.0 { BLOCK.max(options.silence) } else { options.silence };
                match timeout(limit, &mut download).await {
                    Ok(ended) => return Ok(ended),
                    Err(_) if (has_begun.load(Ordering::Relaxed), come.load(Ordering::Relaxed)) == before => {
                        return Err(limit);
                    }
                    Err(_) => {}
                }
            }
        })
    }
}

/// Passes hf-hub's events on.
struct Reporter {
    callback: Option<HubProgressCallback>,
    size: u64,
    /// Whether the hub has told of the file.
    has_begun: Arc<AtomicBool>,
    /// The bytes that had come by the last event.
    come: Arc<AtomicU64>,
}

impl ProgressHandler for Reporter {
    fn on_progress(&self, event: &ProgressEvent) {
        let ProgressEvent::Download(event) = event else { return };
        if let DownloadEvent::Start { .. } = event {
            self.has_begun.store(true, Ordering::Relaxed);
        }
        if let DownloadEvent::Progress { files } = event {
            for file in files {
                self.come.store(file.bytes_completed, Ordering::Relaxed);
                if let Some(callback) = &self.callback {
                    callback(HubProgress {
                        file: &file.filename,
                        done: file.bytes_completed,
                        total: self.size,
                    });
                }
            }
        }
    }
}

/// How long a hub is waited for.
#[derive(Debug, Clone, Copy)]
pub(in super::super) enum Limit {
    /// While it says something, as the options have it.
    Silence,
    /// So long for each request: while something is sent, nothing is said.
    Whole(Duration),
}

/// A client of the hub; what it keeps of downloads comes to `cache`. A request that failed in passing is repeated so often.
pub(in super::super) fn client(
    options: &HubOptions,
    cache: &Path,
    repetitions: usize,
    limit: Limit,
) -> Result<HFClient, HFError> {
    let http = reqwest::Client::builder().connect_timeout(CONNECT);
    let http = http.user_agent(concat!("tessera/", env!("CARGO_PKG_VERSION")));
    let http = match limit {
        Limit::Silence => http.read_timeout(options.silence),
        Limit::Whole(time) => http.timeout(time),
    };
    let builder = HFClient::builder().client(http.build()?).cache_dir(cache);
    let mut client = builder.retry_base_delay(options.retry_delay).retry_max_attempts(repetitions);
    if let Some(endpoint) = &options.endpoint {
        client = client.endpoint(endpoint);
    }
    if let Some(token) = &options.token {
        client = client.token(token);
    }
    client.build()
}
