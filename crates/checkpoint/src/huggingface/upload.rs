//! A model's folder put into a repository on the hub, as one commit.
//!
//! How the hub takes large files is hf-hub's matter: the public hub has a protocol of its own for them, xet. Where a hub does not
//! offer that, hf-hub puts them into the commit itself, which is made in memory.

use std::fs;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use hf_hub::repository::RepoTreeEntry;
use hf_hub::{HFClientSync, HFError, HFRepositorySync, RepoTypeModel};
use tessera_files::{Digest, IoContext, Sha256, sha256_file, sha256_hex};

use super::hub::{Limit, client, hub_error, root_cause};
use super::{HubOptions, HuggingFaceError};

/// Commits among which one is looked for that was made, but not confirmed.
const RECENT: usize = 20;
/// How often a hub is asked that does not answer: for half a minute, if the first pause is a quarter of a second.
const ATTEMPTS: u32 = 8;
/// The same before a run, where someone may be waiting: for two seconds.
const FIRST_ATTEMPTS: u32 = 4;
/// How long an answer may take to what is sent, and how many bytes of it are sent in a second at the least.
const ANSWERING: Duration = Duration::from_secs(60);
const SLOWEST: u64 = 1 << 20;
/// What helps against a refusal.
const RIGHTS: &str =
    "set HF_TOKEN to a token that may write to this repository and make it if it is not there";

/// A repository to put models into.
pub struct HubTarget {
    id: String,
    options: HubOptions,
    client: HFClientSync,
    /// The hub's address as it was given, which may hold a password.
    given: String,
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
        let failed = |error: HFError| hub_error(id, error.to_string());
        let client = client(&options, &options.cache, 0, Limit::Silence).map_err(failed)?;
        let given = client.endpoint().to_owned();
        let client = HFClientSync::from_inner(client).map_err(failed)?;
        let endpoint = options.address();
        Ok(Self { id: id.to_owned(), options, client, given, endpoint })
    }

    /// The hub's address, as people and files may see it.
    pub fn endpoint(&self) -> &str {
        &self.endpoint
    }

    /// Makes sure that the hub knows who asks, and that the repository is there; one that is not is made, private.
    ///
    /// # Errors
    /// When the hub does not answer, again and again, or refuses.
    pub fn check(&self) -> Result<(), HuggingFaceError> {
        let repository = self.repository();
        let create = self.client.create_repository().repo_id(&self.id).repo_type(RepoTypeModel).private(true);
        let create = create.exist_ok(true);
        self.patiently(FIRST_ATTEMPTS, || {
            self.client.whoami().send()?;
            // Looked for first: a token may be allowed to write to a repository, but not to make one.
            if !repository.exists().send()? {
                create.clone().send()?;
            }
            Ok(())
        })
    }

    /// Whether the repository is there, as far as the hub tells whom it knows; nothing is made.
    ///
    /// # Errors
    /// When the hub does not answer, again and again, or refuses.
    pub fn look(&self) -> Result<bool, HuggingFaceError> {
        let repository = self.repository();
        self.patiently(FIRST_ATTEMPTS, || {
            self.client.whoami().send()?;
            repository.exists().send()
        })
    }

    /// Puts the files of `folder` into the repository, and gives the commit. What an earlier model left there and this one lacks is
    /// removed by the same commit; other files stay. Its title says whose model it is, with what all files hash to, so that a
    /// commit which was made but not confirmed is found.
    ///
    /// # Errors
    /// When a file cannot be read; when the hub does not answer, again and again, or refuses.
    pub fn upload(&self, folder: &Path, whose: &str) -> Result<String, HuggingFaceError> {
        let title = format!("{whose} ({})", &digest(folder)?[..16]);
        let limit = Limit::Whole(ANSWERING + Duration::from_secs(size(folder)? / SLOWEST));
        let failed = |error: HFError| hub_error(&self.id, error.to_string());
        let sending = client(&self.options, &self.options.cache, 0, limit).map_err(failed)?;
        let sending = HFClientSync::from_inner(sending).map_err(failed)?;
        let (asking, sending) = (self.repository(), self.repository_of(&sending));
        // hf-hub itself would send a commit again whose answer was lost, and so make it twice.
        self.patiently(ATTEMPTS, || commit(&asking, &sending, folder, &title))
    }

    fn repository(&self) -> HFRepositorySync<RepoTypeModel> {
        self.repository_of(&self.client)
    }

    fn repository_of(&self, client: &HFClientSync) -> HFRepositorySync<RepoTypeModel> {
        let (owner, name) = hf_hub::split_id(&self.id);
        client.repository(RepoTypeModel, owner, name)
    }

    /// Does what may fail in passing until it succeeds, or has failed so often.
    fn patiently<T>(
        &self,
        attempts: u32,
        attempt: impl Fn() -> Result<T, HFError>,
    ) -> Result<T, HuggingFaceError> {
        let mut pause = self.options.retry_delay;
        for _ in 1..attempts {
            match attempt() {
                Err(error) if passes(&error) => {}
                ended => return ended.map_err(|error| self.explained(&error)),
            }
            thread::sleep(pause);
            pause *= 2;
        }
        attempt().map_err(|error| self.explained(&error))
    }

    fn explained(&self, error: &HFError) -> HuggingFaceError {
        let said = error.to_string().replace(&self.given, &self.endpoint);
        match error {
            HFError::AuthRequired { .. } | HFError::Forbidden { .. } | HFError::RepoNotFound { .. } => {
                let problem = format!("{said}; {RIGHTS}");
                HuggingFaceError::HubRefuses { id: self.id.clone(), problem }
            }
            HFError::Request { source, .. } => {
                let place = &self.endpoint;
                hub_error(&self.id, format!("the hub at {place} cannot be reached: {}", root_cause(source)))
            }
            _ => hub_error(&self.id, said),
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
    asking: &HFRepositorySync<RepoTypeModel>,
    sending: &HFRepositorySync<RepoTypeModel>,
    folder: &Path,
    title: &str,
) -> Result<String, HFError> {
    let recent = asking.list_commits().limit(RECENT).send()?;
    if let Some(commit) = recent.into_iter().find(|commit| commit.title == title) {
        return Ok(commit.id);
    }
    let stale = stale(asking, folder)?;
    let upload = sending.upload_folder().folder_path(folder).commit_message(title);
    let made = upload.maybe_delete_patterns((!stale.is_empty()).then_some(stale)).send()?;
    made.commit_oid.ok_or_else(|| HFError::malformed_response("the commit that was made"))
}

/// The names of the files of an earlier model in the repository that `folder` does not replace: a reader of the new model would
/// take them for its own.
fn stale(repository: &HFRepositorySync<RepoTypeModel>, folder: &Path) -> Result<Vec<String>, HFError> {
    let listing = repository.list_tree().recursive(false).send()?;
    let names = listing.into_iter().filter_map(|entry| match entry {
        RepoTreeEntry::File { path, .. } => Some(path),
        RepoTreeEntry::Directory { .. } => None,
    });
    // hf-hub takes patterns, which these names are not.
    let is_plain = |name: &String| !name.contains(['*', '?', '[', '{', '\\']);
    Ok(names.filter(|name| is_of_a_model(name) && is_plain(name) && !folder.join(name).exists()).collect())
}

/// Whether a file in a repository is part of a model as an export has it.
fn is_of_a_model(name: &str) -> bool {
    const NAMES: [&str; 11] = [
        "added_tokens.json",
        "chat_template.jinja",
        "chat_template.json",
        "generation_config.json",
        "merges.txt",
        "special_tokens_map.json",
        "tokenizer.json",
        "tokenizer.model",
        "tokenizer_config.json",
        "vocab.json",
        "vocab.txt",
    ];
    let is_weights = name.ends_with(".safetensors") || name.ends_with(".safetensors.index.json");
    !name.contains('/') && (is_weights || NAMES.contains(&name))
}

/// The bytes of a folder's files.
fn size(folder: &Path) -> Result<u64, HuggingFaceError> {
    let mut size = 0;
    for file in files(folder)? {
        size += fs::metadata(&file).context("read", &file)?.len();
    }
    Ok(size)
}

/// The paths of a folder's files, in order.
fn files(folder: &Path) -> Result<Vec<PathBuf>, HuggingFaceError> {
    let entries = fs::read_dir(folder).context("list", folder)?;
    let mut files: Vec<PathBuf> = Vec::new();
    for entry in entries {
        files.push(entry.context("list", folder)?.path());
    }
    files.sort();
    Ok(files)
}

/// What the names and contents of a folder's files hash to.
fn digest(folder: &Path) -> Result<String, HuggingFaceError> {
    let mut hash = Sha256::new();
    for file in files(folder)? {
        hash.update(file.file_name().unwrap_or_default().as_encoded_bytes());
        hash.update(sha256_file(&file)?);
    }
    Ok(sha256_hex(hash))
}
