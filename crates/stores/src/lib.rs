//! Files that are not on this machine, by url: `s3://`, `gs://`, `az://`, `abfss://` for object stores, `https://` for a single file
//! on a server.
//!
//! The crate `object_store` speaks the protocols. What is added here is what a training run needs of them: calls that
//! block, files that come whole or not at all however often the connection drops, and errors that say which of the usual
//! things is wrong (credentials, permissions, names, the network) and what to do about it. Whom the calls are made for is read
//! from the environment, or given where a catalogue hands out credentials for one place; neither is ever part of a message.

mod address;
mod connect;
mod error;
mod explain;
mod fetched;
mod place;
mod transfer;

pub use connect::Credentials;
pub use error::{Problem, StoreError};
pub use fetched::Snapshot;
pub use place::{Object, Place};
