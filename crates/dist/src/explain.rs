//! What the rings of a run that hung or failed say together.
//!
//! All ranks make the same collectives in the same order. So the first place where the rings are not alike names the
//! culprit: the rank that called something else, or that called nothing more while the others waited for it.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::Path;

use serde::Serialize;

use crate::error::{DistError, name_ranks};
use crate::flight::{self, Ring};
use crate::recorder::{Call, Record};

/// What went wrong, as far as the rings tell.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Explanation {
    /// The ranks of the run.
    pub world_size: usize,
    /// Ranks that left no ring, each with the last collective that it is known to have called: their process was
    /// killed, was stopped, or ended in another way.
    pub silent: Vec<(usize, Option<Record>)>,
    /// Ranks whose process stood still, each with the seconds: it was stopped, or its machine stalled.
    pub stood_still: Vec<(usize, f64)>,
    /// The first place where the rings are not alike.
    pub finding: Finding,
}

/// The first place where rings are not alike.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Finding {
    /// Ranks called different collectives: the calls, that of the fewest ranks first.
    Differs {
        /// The collective's number.
        sequence: u64,
        /// Who called what.
        calls: Vec<(Call, Vec<usize>)>,
    },
    /// Ranks never came to a collective.
    Absent {
        /// What the others called.
        record: Record,
        /// Who did not, each with its last collective.
        absent: Vec<(usize, Option<Record>)>,
        /// Who called it and was not done with it.
        waiting: Vec<usize>,
    },
    /// All ranks called a collective that did not end.
    Unfinished {
        /// The collective.
        record: Record,
        /// Who was not done with it.
        waiting: Vec<usize>,
    },
    /// Everything that was called was completed.
    Complete,
}

/// Reads the rings that watchdogs wrote to `folder`, and compares them.
pub fn explain(folder: &Path) -> Result<Explanation, DistError> {
    let mut rings = BTreeMap::new();
    for rank in flight::ranks_with_ring(folder)? {
        if let Some(ring) = flight::read_ring(folder, rank)? {
            rings.insert(rank, ring);
        }
    }
    // An earlier attempt of the run may have left rings too; they were written before the last one began.
    let began = rings.values().map(|ring| ring.header.began_unix).fold(f64::NEG_INFINITY, f64::max);
    rings.retain(|_, ring| ring.header.written_unix >= began);
    let world_size = rings.values().map(|ring| ring.header.world_size).max();
    let world_size = world_size.ok_or_else(|| DistError::NoRings { folder: folder.to_owned() })?;
    let last = |rank| flight::read_heartbeat(folder, rank).and_then(|heartbeat| heartbeat.last);
    let silent = (0..world_size).filter(|rank| !rings.contains_key(rank)).map(|rank| (rank, last(rank)));
    let stood_still =
        rings.iter().filter_map(|(&rank, ring)| Some((rank, ring.header.stood_still?))).collect();
    Ok(Explanation { world_size, silent: silent.collect(), stood_still, finding: compare(&rings) })
}

/// Finds the first collective, of those that every ring still remembers, that is not the same and complete everywhere.
fn compare(rings: &BTreeMap<usize, Ring>) -> Finding {
    let first = rings.values().filter_map(|ring| Some(ring.records.first()?.sequence)).max().unwrap_or(0);
    let records = rings.values().flat_map(|ring| &ring.records);
    let sequences: BTreeSet<u64> = records.map(|record| record.sequence).collect();
    let differing = sequences.range(first..).find_map(|&sequence| compare_at(rings, sequence));
    differing.unwrap_or(Finding::Complete)
}

fn compare_at(rings: &BTreeMap<usize, Ring>, sequence: u64) -> Option<Finding> {
    let at = |ring: &Ring| {
        let place = ring.records.binary_search_by_key(&sequence, |record| record.sequence).ok()?;
        ring.records.get(place).cloned()
    };
    let records: Vec<(usize, Record)> =
        rings.iter().filter_map(|(&rank, ring)| Some((rank, at(ring)?))).collect();
    let (_, record) = records.first()?.clone();
    if records.iter().any(|(_, other)| other.call != record.call) {
        return Some(Finding::Differs { sequence, calls: by_call(&records) });
    }
    let waiting: Vec<usize> =
        records.iter().filter(|(_, record)| record.finished.is_none()).map(|&(rank, _)| rank).collect();
    let absent = rings.iter().filter(|(_, ring)| at(ring).is_none());
    let absent: Vec<_> = absent.map(|(&rank, ring)| (rank, ring.records.last().cloned())).collect();
    match (absent.is_empty(), waiting.is_empty()) {
        (false, _) => Some(Finding::Absent { record, absent, waiting }),
        (true, false) => Some(Finding::Unfinished { record, waiting }),
        (true, true) => None,
    }
}

/// Which ranks made which call; the call of the fewest first, for it is the odd one.
fn by_call(records: &[(usize, Record)]) -> Vec<(Call, Vec<usize>)> {
    let mut calls: Vec<(Call, Vec<usize>)> = Vec::new();
    for (rank, record) in records {
        match calls.iter_mut().find(|(call, _)| *call == record.call) {
            Some((_, ranks)) => ranks.push(*rank),
            None => calls.push((record.call.clone(), vec![*rank])),
        }
    }
    calls.sort_by_key(|(_, ranks)| ranks.len());
    calls
}

impl fmt::Display for Explanation {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (rank, last) in &self.silent {
            write!(formatter, "Rank {rank} left no record of its collectives: it was killed or stood still")?;
            match last {
                Some(last) => writeln!(formatter, "; the last that it is known to have called is {last}.")?,
                None => writeln!(formatter, ".")?,
            }
        }
        for (rank, seconds) in &self.stood_still {
            let why = "its process was stopped or its machine stalled";
            writeln!(formatter, "Rank {rank} stood still for {seconds:.1} s: {why}.")?;
        }
        // The sentence begins with a rank or a collective.
        let mut finding = self.finding.to_string();
        finding[..1].make_ascii_uppercase();
        formatter.write_str(&finding)
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Finding::Differs { sequence, calls } => {
                write!(formatter, "the ranks part at number {sequence}:")?;
                for (index, (call, ranks)) in calls.iter().enumerate() {
                    let separator = if index == 0 { "" } else { "," };
                    write!(formatter, "{separator} {} called {call}", name_ranks(ranks))?;
                }
                formatter.write_str(".")
            }
            Finding::Absent { record, absent, waiting } => {
                let ranks: Vec<usize> = absent.iter().map(|&(rank, _)| rank).collect();
                write!(formatter, "{} never came to {record}", name_ranks(&ranks))?;
                if !waiting.is_empty() {
                    write!(formatter, ", for which {} waited", name_ranks(waiting))?;
                }
                for (rank, last) in absent {
                    if let Some(last) = last {
                        let how = if last.finished.is_some() { "ended" } else { "did not end" };
                        write!(formatter, "; the last of rank {rank} was {last}, which {how}")?;
                    }
                }
                formatter.write_str(".")
            }
            Finding::Unfinished { record, waiting } => {
                write!(formatter, "{record}, did not end for {}, though ", name_ranks(waiting))?;
                formatter.write_str("every rank with a record came to it.")
            }
            Finding::Complete => formatter.write_str("every collective that was called was completed."),
        }
    }
}
