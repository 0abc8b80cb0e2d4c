//! The files of the flight recorder, in one folder that all ranks see: a ring and a heartbeat for each rank, and the
//! alarm.
//!
//! A folder is one attempt's; what an earlier one left is set aside. A ring is written once, when something went wrong. The
//! heartbeat says all the while how far a rank has come, so that the others can tell who is behind even if that rank can no
//! longer write. The alarm asks all processes for their rings, also those that wait for nothing, and says why the run ends as
//! soon as that is known, so that nobody waits on.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tessera_files::{IoContext, write_atomic};

use crate::error::DistError;
use crate::recorder::{Record, Recorder, beginning_unix_seconds, unix_seconds};
use crate::watchdog::Alarm;

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
    /// How often its process has written it.
    pub beats: u64,
    /// The last collective that it called.
    pub last: Option<Record>,
}

/// What the alarm's file says.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Raised {
    #[serde(flatten)]
    header: Header,
    /// Why the run ends; `None` while that is looked into.
    verdict: Option<Alarm>,
}

/// The file that asks for the rings.
const ALARM: &str = "alarm.json";
/// How folders of earlier attempts begin.
const EARLIER: &str = "earlier-";

fn ring_path(folder: &Path, rank: usize) -> PathBuf {
    folder.join(format!("rank-{rank}.jsonl"))
}

fn rank_of_ring(name: &str) -> Option<usize> {
    name.strip_prefix("rank-")?.strip_suffix(".jsonl")?.parse().ok()
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
pub(crate) fn write_heartbeat(folder: &Path, recorder: &Recorder, beats: u64) -> Result<(), DistError> {
    let path = heartbeat_path(folder, recorder.rank());
    let heartbeat = Heartbeat { header: Header::of(recorder), beats, last: recorder.last() };
    Ok(fs::write(&path, line(&heartbeat)).context("write", &path)?)
}

/// Reads a rank's heartbeat; `None` if there is none, or only half of one.
pub(crate) fn read_heartbeat(folder: &Path, rank: usize) -> Option<Heartbeat> {
    serde_json::from_slice(&fs::read(heartbeat_path(folder, rank)).ok()?).ok()
}

/// Whether a rank has written no heartbeat at all, as far as that can be known.
pub(crate) fn has_no_heartbeat(folder: &Path, rank: usize) -> bool {
    matches!(heartbeat_path(folder, rank).try_exists(), Ok(false))
}

/// Asks all processes for their rings, and tells them why the run ends if that is known. Several may do so at once; what one
/// has told the others stays.
pub(crate) fn raise_alarm(
    folder: &Path,
    recorder: &Recorder,
    verdict: Option<&Alarm>,
) -> Result<(), DistError> {
    if read_verdict(folder).is_some() || (verdict.is_none() && alarm_is_raised(folder)) {
        return Ok(());
    }
    let path = folder.join(ALARM);
    let raised = Raised { header: Header::of(recorder), verdict: verdict.cloned() };
    let own = folder.join(format!("alarm-{}.partial", recorder.rank()));
    fs::write(&own, line(&raised)).context("write", &own)?;
    Ok(fs::rename(&own, &path).context("move", &own)?)
}

/// Whether a process has asked for the rings.
pub(crate) fn alarm_is_raised(folder: &Path) -> bool {
    folder.join(ALARM).exists()
}

/// Why the run ends, if a process has said it.
pub(crate) fn read_verdict(folder: &Path) -> Option<Alarm> {
    serde_json::from_slice::<Raised>(&fs::read(folder.join(ALARM)).ok()?).ok()?.verdict
}

/// Makes way for a new attempt: rings that an earlier one left, with what was written beside them, go to a folder
/// `earlier-<number>` within; heartbeats alone tell nothing and are removed.
pub(crate) fn set_aside(folder: &Path) -> Result<(), DistError> {
    if !folder.exists() {
        return Ok(());
    }
    let files: Vec<String> = names(folder)?.into_iter().filter(|name| !name.starts_with(EARLIER)).collect();
    if !files.iter().any(|name| rank_of_ring(name).is_some()) {
        let paths = files.iter().map(|name| folder.join(name));
        return Ok(paths.into_iter().try_for_each(|path| fs::remove_file(&path).context("remove", &path))?);
    }
    let mut places = (1_u64..).map(|number| folder.join(format!("{EARLIER}{number}")));
    let Some(place) = places.find(|place| !place.exists()) else { return Ok(()) };
    fs::create_dir(&place).context("create", &place)?;
    for name in files {
        let path = folder.join(&name);
        fs::rename(&path, place.join(&name)).context("move", &path)?;
    }
    Ok(())
}

/// The ranks that have left a ring.
pub(crate) fn ranks_with_ring(folder: &Path) -> Result<Vec<usize>, DistError> {
    let mut ranks: Vec<usize> = names(folder)?.iter().filter_map(|name| rank_of_ring(name)).collect();
    ranks.sort_unstable();
    Ok(ranks)
}

/// What is in a folder, as far as its names are text: those of this module are.
fn names(folder: &Path) -> Result<Vec<String>, DistError> {
    let mut names = Vec::new();
    for entry in fs::read_dir(folder).context("list", folder)? {
        names.extend(entry.context("list", folder)?.file_name().into_string());
    }
    Ok(names)
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

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn an_attempt_finds_nothing_of_an_earlier_one() {
        let folder = tempfile::tempdir().unwrap();
        let folder = folder.path().join("flight");
        set_aside(&folder).unwrap();
        fs::create_dir(&folder).unwrap();
        let recorder = Recorder::new(1, 2);
        for number in 1..=2 {
            write_heartbeat(&folder, &recorder, 1).unwrap();
            raise_alarm(&folder, &recorder, None).unwrap();
            write_ring(&folder, &recorder).unwrap();
            assert!(alarm_is_raised(&folder));
            set_aside(&folder).unwrap();
            assert!(!alarm_is_raised(&folder));
            assert!(ranks_with_ring(&folder).unwrap().is_empty());
            assert!(read_heartbeat(&folder, 1).is_none());
            let earlier = folder.join(format!("earlier-{number}"));
            assert_eq!(ranks_with_ring(&earlier).unwrap(), [1]);
            assert!(read_heartbeat(&earlier, 1).is_some());
        }
        write_heartbeat(&folder, &recorder, 1).unwrap();
        set_aside(&folder).unwrap();
        assert_eq!(names(&folder).unwrap().len(), 2, "heartbeats are worth no folder");
    }
}
