//! Tables of Unity Catalog: where one lies, and with which credentials it may be read for an hour.
//!
//! Two requests tell both, which Databricks' workspaces and the open Unity Catalog server answer alike. Views have no files, and
//! what is no Delta table is of no use here: either is refused by name before credentials are asked for.

use std::fmt;

use reqwest::{RequestBuilder, Response, Url};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::json;

use crate::address::Workspace;
use crate::client::{Client, Failure};
use crate::error::WorkspaceError;
use crate::grant::{Access, Granted};

/// The version of the interface. The open server has no other.
const VERSION: &str = "2.1";
/// The version by which Databricks' own client asks for credentials.
const EARLIER: &str = "2.0";
/// Kinds of tables whose files are a Delta table of their own.
const TABLES: [&str; 2] = ["MANAGED", "EXTERNAL"];
/// What a Delta table is called; with UniForm others read it too.
const DELTA: [&str; 3] = ["DELTA", "DELTA_UNIFORM_ICEBERG", "DELTA_UNIFORM_HUDI"];

/// The name of a table: `catalog.schema.table`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TableName {
    name: String,
}

impl TableName {
    /// Reads a name of three parts; `None`: the text is none.
    pub fn parse(text: &str) -> Option<Self> {
        let plain = |part: &str| {
            let fits = |character: char| {
                !character.is_whitespace() && !character.is_control() && !"/\\:*?[]\"'".contains(character)
            };
            !part.is_empty() && part.chars().all(fits)
        };
        let parts: Vec<_> = text.split('.').collect();
        (parts.len() == 3 && parts.into_iter().all(plain)).then(|| Self { name: text.to_owned() })
    }
}

impl fmt::Display for TableName {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.name)
    }
}

/// Where a table lies, and who may read it.
#[derive(Debug)]
pub struct TablePlace {
    /// The url of its folder.
    pub location: String,
    /// Whom its store is asked as.
    pub access: Access,
}

/// What a table is. Of a view some of it is missing or `null`.
#[derive(Deserialize)]
struct Table {
    table_type: Option<String>,
    data_source_format: Option<String>,
    storage_location: Option<String>,
    table_id: Option<String>,
}

impl Workspace {
    /// Where the table lies, with credentials to read it.
    ///
    /// # Errors
    /// When there is no such table, it is none that can be read, or the workspace does not let it be read.
    pub fn table(&self, name: &TableName) -> Result<TablePlace, WorkspaceError> {
        let client = Client::new(self.clone())?;
        let asked = |error| about(error, name);
        let url = self.catalog(VERSION, &format!("tables/{}", name.name));
        let table: Table = client.answer(name, || client.get(&url)).map_err(asked)?;
        let refused = |found: String| WorkspaceError::NoDeltaTable { name: name.to_string(), found };
        let kind = table.table_type.unwrap_or_default();
        if !TABLES.contains(&kind.as_str()) {
            return Err(refused(format!("of the kind {}", self.clean(&kind))));
        }
        let format = table.data_source_format.unwrap_or_default();
        if !DELTA.contains(&format.as_str()) {
            return Err(refused(format!("in the format {}", self.clean(&format))));
        }
        let Some(location) = table.storage_location.filter(|location| !location.is_empty()) else {
            return Err(refused("without a place where it lies".to_owned()));
        };
        if location.starts_with("file:") {
            let folder = Url::parse(&location).ok().and_then(|url| url.to_file_path().ok());
            let folder = folder.ok_or_else(|| refused(format!("at {location:?}, which is no place")))?;
            return Ok(TablePlace { location: folder.display().to_string(), access: Access::Local });
        }
        let body = json!({ "table_id": table.table_id, "operation": "READ" });
        let ask = |version: &str| -> Result<Granted, WorkspaceError> {
            let url = self.catalog(version, "temporary-table-credentials");
            client.answer(name, || client.post(&url).json(&body))
        };
        let granted = match ask(VERSION) {
            Err(WorkspaceError::NotFound { .. }) => ask(EARLIER),
            answered => answered,
        };
        let granted = granted.map_err(asked)?;
        let access = granted
            .access()
            .map_err(|kinds| WorkspaceError::NoKnownAccess { name: name.to_string(), kinds })?;
        Ok(TablePlace { location, access })
    }

    /// The address of something in the catalogue.
    fn catalog(&self, version: &str, path: &str) -> String {
        format!("{}/api/{version}/unity-catalog/{}", self.place(), crate::address::encoded(path))
    }
}

impl Client {
    /// What the workspace answers about a table.
    fn answer<T: DeserializeOwned>(
        &self,
        name: &TableName,
        request: impl Fn() -> RequestBuilder,
    ) -> Result<T, WorkspaceError> {
        self.patiently(&name.name, async |_| {
            let answer: Response = self.send(&name.name, request()).await?;
            let text = answer.text().await.map_err(|error| self.broken(&error))?;
            serde_json::from_str(&text).map_err(|error| {
                // It may hold credentials: only where it goes wrong is told.
                let (place, name) = (self.workspace.place(), name.to_string());
                let (line, column) = (error.line(), error.column());
                Failure::Lasting(WorkspaceError::NoCatalog { place, name, line, column })
            })
        })
    }
}

/// An error of a request as one about a table.
fn about(error: WorkspaceError, name: &TableName) -> WorkspaceError {
    let name = name.to_string();
    match error {
        WorkspaceError::NotFound { place, .. } => WorkspaceError::NoTable { place, name },
        WorkspaceError::NotAllowed { place, message, .. } => {
            WorkspaceError::TableNotAllowed { place, name, message }
        }
        error => error,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_tables() {
        for text in ["main.default.chat", "a-b.c_d.e", "é.ü.ß"] {
            assert!(TableName::parse(text).is_some(), "{text}");
        }
        for text in ["main.default", "a.b.c.d", "a..c", "data/a.b.c", "a.b.c d", "s3://a.b.c", "*.b.c"] {
            assert!(TableName::parse(text).is_none(), "{text}");
        }
    }
}
