//! A model's folder put into a repository on the hub, as one commit.
//!
//! How the hub takes large files is hf-hub's matter: the public hub has a protocol of its own for them, xet. Where a hub does not
//! offer that, hf-hub puts them into the commit itself, which is made in memory.

use std::fs;
use std::path::{Path, PathBuf};
use std::thread;

use hf_hub::{HFClientSync, HFError, HFRepositorySync, RepoTypeModel};
use tessera_files::{Digest, IoContext, Sha256, sha256_file, sha256_hex};

use super::hub::{connect, hub_error, root_cause};
use super::{HubOptions, HuggingFaceError};

/// Commits among which one is looked for that was made, but not confirmed.
const RECENT: usize = 20;
/// How often a hub is asked that does not answer: for half a minute, if the first pause is a quarter of a second.
const ATTEMPTS: u32 = 8;
/// What helps against a refusal.
const RIGHTS: &str =
    "set HF_TOKEN to a token that may write to this repository and make it if it is not there";

/// A repository to put models into.
pub struct HubTarget {
    id: String,
    options: HubOptions,
    client: HFClientSync,
    endpoint: String,
}

impl HubTarget {
    /// The repository `owner/name`, which the hub has not been asked about.
    ///
    /// # Errors
    /// Where the hub may not be asked.
    pub fn new(id: &str, options: HubOptions) -> Result<Self, HuggingFaceError> {
        if options.offline {
            let problem = "HF_HUB_OFFLINE is set, but a model is to be put there; unset it".to_owned();
            return Err(HuggingFaceError::HubRefuses { id: id.to_owned(), problem });
        }
        let connected = connect(&options, &options.cache, 0);
        let (client, _) = connected.map_err(|error| hub_error(id, error.to_string()))?;
        let endpoint = options.address();
        Ok(Self { id: id.to_owned(), options, client, endpoint })
    }

    /// The hub's address.
    pub fn endpoint(&self) -> &str {
        &self.endpoint
    }

    /// Makes sure that the hub knows who asks, and that the repository is there; one that is not is made, private.
    ///
    /// # Errors
    /// When the hub does not answer, or refuses.
    pub fn check(&self) -> Result<(), HuggingFaceError> {
        let create = self.client.create_repository().repo_id(&self.id).repo_type(RepoTypeModel).private(true);
        let known = self.client.whoami().send().and_then(|_| create.exist_ok(true).send());
        known.map(drop).map_err(|error| self.explained(&error))
    }

    /// Puts the files of `folder` into the repository, whose other files stay, and gives the commit. Its title says whose model it
    /// is, with what all files hash to, so that a commit which was made but not confirmed is found.
    ///
    /// # Errors
    /// When a file cannot be read; when the hub does not answer, again and again, or refuses.
    pub fn upload(&self, folder: &Path, whose: &str) -> Result<String, HuggingFaceError> {
        let title = format!("{whose} ({})", &digest(folder)?[..16]);
        let (owner, name) = hf_hub::split_id(&self.id);
        let repository = self.client.repository(RepoTypeModel, owner, name);
        let mut pause = self.options.retry_delay;
        let mut attempt = 1;
        loop {
            match commit(&repository, folder, &title) {
                Ok(commit) => return Ok(commit),
                // hf-hub itself would send a commit again whose answer was lost, and so make it twice.
                Err(error) if passes(&error) && attempt < ATTEMPTS => {}
                Err(error) => return Err(self.explained(&error)),
            }
            thread::sleep(pause);
            (pause, attempt) = (pause * 2, attempt + 1);
        }
    }

    fn explained(&self, error: &HFError) -> HuggingFaceError {
        match error {
            HFError::AuthRequired { .. } | HFError::Forbidden { .. } | HFError::RepoNotFound { .. } => {
                let problem = format!("{error}; {RIGHTS}");
                HuggingFaceError::HubRefuses { id: self.id.clone(), problem }
            }
            HFError::Request { source, .. } => {
                let place = &self.endpoint;
                hub_error(&self.id, format!("the hub at {place} cannot be reached: {}", root_cause(source)))
            }
            error => hub_error(&self.id, error.to_string()),
        }
    }
}

/// Whether the same may succeed later without anybody's doing.
fn passes(error: &HFError) -> bool {
    match error {
        HFError::Request { .. } | HFError::Xet { .. } | HFError::RateLimited { .. } => true,
        HFError::Http { context } => context.status.is_server_error(),
        _ => false,
    }
}

/// The commit of this title, which is made if there is none.
fn commit(
    repository: &HFRepositorySync<RepoTypeModel>,
    folder: &Path,
    title: &str,
) -> Result<String, HFError> {
    let recent = repository.list_commits().limit(RECENT).send()?;
    if let Some(commit) = recent.into_iter().find(|commit| commit.title == title) {
        return Ok(commit.id);
    }
    let made = repository.upload_folder().folder_path(folder).commit_message(title).send()?;
    made.commit_oid.ok_or_else(|| HFError::malformed_response("the commit that was made"))
}

/// What the names and contents of a folder's files hash to.
fn digest(folder: &Path) -> Result<String, HuggingFaceError> {
    let entries = fs::read_dir(folder).context("list", folder)?;
    let mut files: Vec<PathBuf> = Vec::new();
    for entry in entries {
        files.push(entry.context("list", folder)?.path());
    }
    files.sort();
    let mut hash = Sha256::new();
    for file in files {
        hash.update(file.file_name().unwrap_or_default().as_encoded_bytes());
        hash.update(sha256_file(&file)?);
    }
    Ok(sha256_hex(hash))
}
