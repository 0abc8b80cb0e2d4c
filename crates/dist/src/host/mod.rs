//! Groups whose collectives run on the host: one communication thread for each rank makes them one after another,
//! over a [`Transport`] that knows how bytes reach the other ranks.
//!
//! All groups of a rank share that thread. So two collectives of a rank never wait for each other's peers at the same
//! time, whatever groups they are in, and none can be overtaken: ranks that make the same calls cannot deadlock.

mod group;
mod sums;
mod transport;
mod worker;

pub(crate) use group::{HostGroup, WORLD};
pub(crate) use sums::{add_in_order, parts_of, share};
pub(crate) use transport::{Failure, Peers, Transport, check_extent, lock, narrow, read};
pub(crate) use worker::Worker;
