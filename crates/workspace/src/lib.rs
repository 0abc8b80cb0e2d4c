//! A Databricks workspace: files of Unity Catalog's volumes, brought to this machine by the workspace's Files API, and where its tables lie.
//!
//! [`VolumePath`] is a path as the service wrote it, [`Workspace`] the address and token of the environment, and
//! [`Workspace::fetch`] brings the files below a path into a cache folder, one folder for each state of the volume, whole
//! or not at all. [`Workspace::table`] tells where a [`TableName`] lies, and with which credentials it may be read. What is read of a volume is decided by who asks: nothing here knows of data.

mod address;
mod client;
mod error;
mod fetch;
mod grant;
mod listing;
mod path;
mod table;

pub use address::Workspace;
pub use error::WorkspaceError;
pub use fetch::{FetchedVolume, Request, cached};
pub use grant::{Access, Granted};
pub use path::VolumePath;
pub use table::{TableName, TablePlace};
