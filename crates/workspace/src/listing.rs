//! Which files are below a path of a volume, and in which state.

use reqwest::header::{CONTENT_LENGTH, ETAG, HeaderMap, LAST_MODIFIED};
use serde::{Deserialize, Serialize};

use crate::client::{Client, Failure};
use crate::error::WorkspaceError;
use crate::path::VolumePath;

/// A file of a volume as the workspace tells of it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(crate) struct RemoteFile {
    /// Its path below the one that was asked for; its name, if it is that itself.
    pub(crate) name: String,
    pub(crate) size: u64,
    /// What tells it from an earlier or later one of the same size.
    pub(crate) state: String,
}

/// What is at a path.
pub(crate) struct Listing {
    /// The path is a file.
    pub(crate) is_file: bool,
    /// In the order of their names.
    pub(crate) files: Vec<RemoteFile>,
}

#[derive(Deserialize)]
struct Page {
    #[serde(default)]
    contents: Vec<Entry>,
    #[serde(default)]
    next_page_token: String,
}

#[derive(Deserialize)]
struct Entry {
    name: String,
    #[serde(default)]
    is_directory: bool,
    #[serde(default)]
    file_size: u64,
    #[serde(default)]
    last_modified: i64,
}

impl Client {
    /// The file at `path`, or all files below it.
    pub(crate) fn listing(&self, path: &VolumePath) -> Result<Listing, WorkspaceError> {
        match self.file(path) {
            Ok(file) => return Ok(Listing { is_file: true, files: vec![file] }),
            // It may be a folder. Of one the workspace may also say that it is no file.
            Err(WorkspaceError::NotFound { .. } | WorkspaceError::Rejected { .. }) => {}
            Err(error) => return Err(error),
        }
        let (mut files, mut folders) = (Vec::new(), vec![String::new()]);
        while let Some(folder) = folders.pop() {
            for entry in self.entries(&format!("{}{folder}", path.as_str()))? {
                let Entry { name, is_directory, file_size: size, last_modified } = entry;
                if is_directory {
                    folders.push(format!("{folder}/{name}"));
                } else {
                    let name = format!("{folder}/{name}").trim_start_matches('/').to_owned();
                    files.push(RemoteFile { name, size, state: last_modified.to_string() });
                }
            }
        }
        files.sort();
        Ok(Listing { is_file: false, files })
    }

    fn file(&self, path: &VolumePath) -> Result<RemoteFile, WorkspaceError> {
        let url = self.workspace.url("files", path.as_str());
        self.patiently(path.as_str(), async |_| {
            let answer = self.send(path.as_str(), self.head(&url)).await?;
            let headers = answer.headers();
            let size = text(headers, CONTENT_LENGTH.as_str()).parse().map_err(|_| Failure::Passing {
                reason: "its answer does not say how long the file is".to_owned(),
                after: None,
            })?;
            Ok(RemoteFile { name: path.name().to_owned(), size, state: state(headers) })
        })
    }

    /// What is in a folder, but not in those below.
    fn entries(&self, folder: &str) -> Result<Vec<Entry>, WorkspaceError> {
        let url = self.workspace.url("directories", folder);
        let (mut entries, mut token) = (Vec::new(), String::new());
        loop {
            let Page { contents, next_page_token } = self.patiently(folder, async |_| {
                let query = [("page_token", token.as_str())];
                let request = if token.is_empty() { self.get(&url) } else { self.get(&url).query(&query) };
                let text = self.send(folder, request).await?.text().await;
                let text = text.map_err(|error| self.broken(&error))?;
                serde_json::from_str(&text).map_err(|error| Failure::Passing {
                    reason: format!("its answer is not a workspace's: {error}"),
                    after: None,
                })
            })?;
            entries.extend(contents);
            if let Some(entry) = entries.iter().find(|entry| !is_plain(&entry.name)) {
                let message = format!("the folder holds {:?}, which is no name of a file", entry.name);
                let (place, path) = (self.workspace.place(), folder.to_owned());
                return Err(WorkspaceError::Rejected { place, path, status: 200, message });
            }
            // The same again would come for ever.
            if next_page_token.is_empty() || next_page_token == token {
                return Ok(entries);
            }
            token = next_page_token;
        }
    }
}

/// Whether a name leads nowhere but to the folder that it is in.
fn is_plain(name: &str) -> bool {
    !matches!(name, "" | "." | "..") && !name.contains(['/', '\\', '\0'])
}

/// What the headers of a file say of its state.
fn state(headers: &HeaderMap) -> String {
    let state = [LAST_MODIFIED, ETAG].map(|name| text(headers, name.as_str()));
    state.join(" ").trim().to_owned()
}

fn text(headers: &HeaderMap, name: &str) -> String {
    headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default().to_owned()
}
