//! Collectives between ranks in several processes of one machine, which meet in a folder.
//!
//! What a rank gives to a collective is a file, named by communicator, collective and rank, that appears whole. Every rank
//! reads the files of all and computes its own result, in the order of the ranks: the bits are those of ranks in one
//! process. A rank that has read the files of a collective removes what it gave to the one before, which nobody needs
//! any more.

use std::fs;
use std::path::{Path, PathBuf};

use super::World;
use super::collective::{Member, Part, share, shares};
use crate::EmulatorError;

/// Where the ranks of a communicator meet.
#[derive(Debug, Clone)]
pub(crate) struct Folder {
    path: PathBuf,
    /// The communicator's name, the same in all processes.
    communicator: String,
}

impl Folder {
    pub fn new(path: &Path, communicator: String) -> Self {
        Self { path: path.to_owned(), communicator }
    }

    /// That of a part of the communicator.
    pub fn part(&self, split: u64, color: i32) -> Self {
        Self { path: self.path.clone(), communicator: format!("{}.{split}.{color}", self.communicator) }
    }

    fn place(&self, name: &str) -> PathBuf {
        self.path.join(format!("{}-{name}", self.communicator))
    }

    /// Lays something out for the others.
    pub fn post(&self, name: &str, bytes: &[u8]) -> Result<(), EmulatorError> {
        let (place, hidden) = (self.place(name), self.place(&format!("{name}.{}.part", std::process::id())));
        let failed = |error| EmulatorError::Collective { problem: format!("{}: {error}", place.display()) };
        fs::write(&hidden, bytes).and_then(|()| fs::rename(&hidden, &place)).map_err(failed)
    }

    pub fn has(&self, name: &str) -> bool {
        self.place(name).exists()
    }

    pub fn read(&self, name: &str) -> Result<Vec<u8>, EmulatorError> {
        let place = self.place(name);
        let failed = |error| EmulatorError::Collective { problem: format!("{}: {error}", place.display()) };
        fs::read(&place).map_err(failed)
    }

    /// Something that is not there is removed too.
    pub fn remove(&self, name: &str) {
        let _ = fs::remove_file(self.place(name));
    }
}

/// A rank's share in a collective over processes.
pub(crate) struct Across {
    pub folder: Folder,
    pub number: u64,
    pub part: Part,
    pub is_sent: bool,
}

impl Across {
    fn name(&self, rank: usize) -> String {
        format!("{}-{rank}", self.number)
    }

    /// Whether there is something to do: to give, or to take what all have given.
    pub fn can_run(&self, member: &Member) -> bool {
        member.has_aborted()
            || !member.hangs_before(self.number) && (!self.is_sent || self.missing(member).is_empty())
    }

    /// The ranks that have not come.
    pub fn missing(&self, member: &Member) -> Vec<usize> {
        (0..member.communicator.size).filter(|rank| !self.folder.has(&self.name(*rank))).collect()
    }

    /// Gives, once, and takes if all have given; whether the collective is over for this rank.
    pub fn run(&mut self, member: &Member, world: &World) -> Result<bool, EmulatorError> {
        if member.has_aborted() {
            return Ok(true);
        }
        let (size, Part { collective, send, receive }) = (member.communicator.size, self.part);
        let said = format!("{collective:?}\n");
        if !std::mem::replace(&mut self.is_sent, true) {
            let sent = collective.sent_bytes(size);
            let given = world.device(member.device).read_input("a collective's input", send, sent)?;
            self.folder.post(&self.name(member.rank), &[said.as_bytes(), &given].concat())?;
        }
        if !self.missing(member).is_empty() {
            return Ok(false);
        }
        let read = |rank: usize| {
            let bytes = self.folder.read(&self.name(rank))?;
            let Some(given) = bytes.strip_prefix(said.as_bytes()) else {
                let theirs = String::from_utf8_lossy(&bytes[..bytes.len().min(200)]).into_owned();
                let theirs = theirs.lines().next().unwrap_or_default();
                let problem =
                    format!("rank {} calls {collective:?} and rank {rank} calls {theirs}", member.rank);
                return Err(EmulatorError::Collective { problem });
            };
            Ok(given.to_vec())
        };
        let whole = shares(collective, size, read)?;
        let result = share(collective, &whole, member.rank);
        world.device(member.device).memory().write(receive, result)?;
        if let Some(before) = self.number.checked_sub(1) {
            self.folder.remove(&format!("{before}-{}", member.rank));
        }
        Ok(true)
    }
}
