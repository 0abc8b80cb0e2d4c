//! The files of the flight recorder, in one folder that all ranks see: a ring and a heartbeat for each rank, and the
//! alarm.
//!
//! A ring is written once, when something went wrong. The heartbeat says all the while how far a rank has come, so that
//! the others can tell who is behind even if that rank can no longer write. The alarm asks all processes for their
//! rings, also those that wait for nothing.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tessera_files::{IoContext, write_atomic};

use crate::error::DistError;
use crate::recorder::{Record, Recorder, beginning_unix_seconds, unix_seconds};

/// The first line of a ring. Times are seconds since 1970.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Header {
    /// The rank, in the world.
    pub rank: usize,
    /// The ranks of the world.
    pub world_size: usize,
    /// When the process began.
    pub began_unix: f64,
    /// When this was written.
    pub written_unix: f64,
    /// For how many seconds the process had just stood still.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stood_still: Option<f64>,
}

impl Header {
    fn of(recorder: &Recorder) -> Self {
        Self {
            rank: recorder.rank(),
            world_size: recorder.world_size(),
            began_unix: beginning_unix_seconds(),
            written_unix: unix_seconds(),
            stood_still: recorder.stood_still(),
        }
    }
}

/// One rank's ring, as it was written.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Ring {
    pub header: Header,
    pub records: Vec<Record>,
}

/// How far a rank had come when it last wrote.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Heartbeat {
    #[serde(flatten)]
    pub header: Header,
    /// The last collective that it called.
    pub last: Option<Record>,
}

impl Heartbeat {
    pub fn of(recorder: &Recorder) -> Self {
        Self { header: Header::of(recorder), last: recorder.last() }
    }
}

fn ring_path(folder: &Path, rank: usize) -> PathBuf {
    folder.join(format!("rank-{rank}.jsonl"))
}

fn alarm_path(folder: &Path) -> PathBuf {
    folder.join("alarm.json")
}

fn heartbeat_path(folder: &Path, rank: usize) -> PathBuf {
    folder.join(format!("heartbeat-{rank}.json"))
}

/// One line of JSON.
fn line(value: &impl Serialize) -> Vec<u8> {
    // Plain structs of numbers and strings have a JSON form.
    let mut line = serde_json::to_vec(value).unwrap_or_default();
    line.push(b'\n');
    line
}

/// Writes a rank's ring, whole or not at all.
pub(crate) fn write_ring(folder: &Path, recorder: &Recorder) -> Result<(), DistError> {
    let mut bytes = line(&Header::of(recorder));
    recorder.records().iter().for_each(|record| bytes.extend(line(record)));
    Ok(write_atomic(&ring_path(folder, recorder.rank()), &bytes)?)
}

/// Reads a rank's ring; `None` if there is none.
pub(crate) fn read_ring(folder: &Path, rank: usize) -> Result<Option<Ring>, DistError> {
    let path = ring_path(folder, rank);
    let Some(text) = read(&path)? else { return Ok(None) };
    let mut lines = text.lines().enumerate();
    let (_, first) = lines.next().unwrap_or((0, ""));
    let header = parse(&path, 0, first)?;
    let records = lines.map(|(index, text)| parse(&path, index, text)).collect::<Result<_, _>>()?;
    Ok(Some(Ring { header, records }))
}

/// Writes a rank's heartbeat. It is neither synced nor renamed into place, because it is written all the time and
/// a reader can do without it.
pub(crate) fn write_heartbeat(folder: &Path, recorder: &Recorder) -> Result<(), DistError> {
    let path = heartbeat_path(folder, recorder.rank());
    Ok(fs::write(&path, line(&Heartbeat::of(recorder))).context("write", &path)?)
}

/// Reads a rank's heartbeat; `None` if there is none, or only half of one.
pub(crate) fn read_heartbeat(folder: &Path, rank: usize) -> Option<Heartbeat> {
    serde_json::from_slice(&fs::read(heartbeat_path(folder, rank)).ok()?).ok()
}

/// Asks all processes for their rings. Several may do so at once, so it is not renamed into place.
pub(crate) fn raise_alarm(folder: &Path, recorder: &Recorder) -> Result<(), DistError> {
    let path = alarm_path(folder);
    Ok(fs::write(&path, line(&Header::of(recorder))).context("write", &path)?)
}

/// Whether a process has asked for the rings since this one began.
pub(crate) fn alarm_is_raised(folder: &Path) -> bool {
    let header =
        fs::read(alarm_path(folder)).ok().and_then(|text| serde_json::from_slice::<Header>(&text).ok());
    header.is_some_and(|header| header.written_unix > beginning_unix_seconds())
}

/// The ranks that have left a ring.
pub(crate) fn ranks_with_ring(folder: &Path) -> Result<Vec<usize>, DistError> {
    let mut ranks = Vec::new();
    for entry in fs::read_dir(folder).context("list", folder)? {
        let name = entry.context("list", folder)?.file_name();
        let rank = name.to_str().and_then(|name| name.strip_prefix("rank-")?.strip_suffix(".jsonl"));
        ranks.extend(rank.and_then(|rank| rank.parse::<usize>().ok()));
    }
    ranks.sort_unstable();
    Ok(ranks)
}

fn read(path: &Path) -> Result<Option<String>, DistError> {
    match fs::read_to_string(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        text => Ok(Some(text.context("read", path)?)),
    }
}

fn parse<T: DeserializeOwned>(path: &Path, index: usize, text: &str) -> Result<T, DistError> {
    serde_json::from_str(text).map_err(|error| DistError::Ring {
        path: path.to_owned(),
        line: index + 1,
        reason: error.to_string(),
    })
}
