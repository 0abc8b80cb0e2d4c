//! A block's warps and barriers.

use std::collections::BTreeMap;

use super::launch::{Context, Launch};
use super::registers::{LANES, Mask};
use super::report::HazardKind;
use super::warp::{Arrival, Pause, Warp};
use crate::EmulatorError;
use crate::program::BarrierReduction;

pub(super) struct Block {
    warps: Vec<Warp>,
    /// Barriers that some warps have come to, by number.
    barriers: BTreeMap<u32, Vec<(usize, Arrival)>>,
}

impl Block {
    pub fn new(launch: &Launch) -> Self {
        let count = launch.threads().div_ceil(LANES as u32) as usize;
        Self {
            warps: (0..count).map(|index| Warp::new(launch, index, count)).collect(),
            barriers: BTreeMap::new(),
        }
    }

    /// Makes the warps ready for the block that `context` names.
    pub fn start(&mut self, context: &Context) {
        self.barriers.clear();
        for warp in &mut self.warps {
            warp.start(context);
        }
    }

    /// Runs the block to its end: warps that can go on take turns, in a random order.
    pub fn run(&mut self, context: &mut Context) -> Result<(), EmulatorError> {
        let mut ready: Vec<usize> = (0..self.warps.len()).collect();
        while !ready.is_empty() {
            context.random.shuffle(&mut ready);
            let mut next = Vec::with_capacity(ready.len());
            for index in ready {
                match self.warps[index].run(context)? {
                    Pause::Turn => next.push(index),
                    Pause::Done => next.extend(self.release_if_complete(context)),
                    Pause::Barrier(arrival) => {
                        if !arrival.waits {
                            next.push(index);
                        }
                        next.extend(self.arrive(index, arrival, context)?);
                    }
                }
            }
            ready = next;
        }
        self.check_end(context)
    }

    fn live_warps(&self) -> usize {
        self.warps.iter().filter(|warp| warp.is_live()).count()
    }

    /// Notes an arrival; the warps that it releases come back.
    fn arrive(
        &mut self,
        warp: usize,
        arrival: Arrival,
        context: &mut Context,
    ) -> Result<Vec<usize>, EmulatorError> {
        let number = arrival.number;
        let waiting = self.barriers.entry(number).or_default();
        if let Some((_, first)) = waiting.first()
            && first.count != arrival.count
        {
            let instruction = &context.launch.program.instructions[arrival.instruction];
            let problem = format!(
                "barrier {number} is used for {} threads here and for {} by a warp that waits at it",
                describe(arrival.count),
                describe(first.count)
            );
            return Err(context.fault(warp, 0, instruction, problem));
        }
        waiting.push((warp, arrival));
        Ok(self.release(number, context))
    }

    /// A warp's exit may complete barriers of the whole block.
    fn release_if_complete(&mut self, context: &mut Context) -> Vec<usize> {
        let numbers: Vec<u32> = self.barriers.keys().copied().collect();
        numbers.into_iter().flat_map(|number| self.release(number, context)).collect()
    }

    /// Lets the warps go if enough have come: as many as the count says, else all that have not exited.
    fn release(&mut self, number: u32, context: &mut Context) -> Vec<usize> {
        let arrived = self.barriers.get(&number).map_or(0, Vec::len);
        let count =
            self.barriers.get(&number).and_then(|waiting| waiting.first()).and_then(|(_, first)| first.count);
        let wanted = match count {
            Some(threads) => (threads as usize).div_ceil(LANES),
            None => self.live_warps(),
        };
        if arrived == 0 || arrived < wanted {
            return Vec::new();
        }
        let arrivals = self.barriers.remove(&number).unwrap_or_default();
        if count.is_none() {
            self.check_exits(&arrivals, context);
        }
        self.join(&arrivals);
        let votes: u32 = arrivals.iter().map(|(_, arrival)| arrival.votes.count_ones()).sum();
        let threads: u32 = arrivals.iter().map(|(_, arrival)| arrival.lanes.count_ones()).sum();
        let mut released = Vec::new();
        for (warp, arrival) in arrivals.iter().filter(|(_, arrival)| arrival.waits) {
            let result = arrival.reduction.map(|(kind, target)| {
                let value = match kind {
                    BarrierReduction::Count => votes,
                    BarrierReduction::And => u32::from(votes == threads),
                    BarrierReduction::Or => u32::from(votes > 0),
                };
                (target, value)
            });
            self.warps[*warp].pass_barrier(arrival.lanes, result);
            released.push(*warp);
        }
        released
    }

    /// All that came before the barrier, in any of its warps, is ordered before what comes after it.
    fn join(&mut self, arrivals: &[(usize, Arrival)]) {
        let mut clock = vec![0; self.warps.len()];
        for (warp, _) in arrivals {
            let warp = &mut self.warps[*warp];
            warp.end_epoch();
            for (joined, own) in clock.iter_mut().zip(&warp.clock) {
                *joined = (*joined).max(*own);
            }
        }
        for (warp, _) in arrivals.iter().filter(|(_, arrival)| arrival.waits) {
            self.warps[*warp].clock.copy_from_slice(&clock);
        }
    }

    /// The hardware lets exited threads pass for arrived ones; CUDA does not promise it.
    fn check_exits(&self, arrivals: &[(usize, Arrival)], context: &mut Context) {
        let threads: u32 = self.warps.iter().map(|warp| warp.exists.count_ones()).sum();
        let arrived: u32 = arrivals.iter().map(|(_, arrival)| arrival.lanes.count_ones()).sum();
        if let (Some((warp, arrival)), true) = (arrivals.first(), arrived < threads) {
            let instruction = &context.launch.program.instructions[arrival.instruction];
            let detail =
                format!("{} threads exited before a barrier that {arrived} wait at", threads - arrived);
            let lane = arrival.lanes.trailing_zeros() as usize;
            context.hazard(HazardKind::BarrierAfterExit, *warp, lane, instruction, detail);
        }
    }

    /// No warp can go on: fine if all have exited.
    fn check_end(&self, context: &Context) -> Result<(), EmulatorError> {
        let waiting =
            || self.barriers.iter().flat_map(|(number, list)| list.iter().map(move |at| (number, at)));
        let Some((number, (warp, arrival))) = waiting().find(|(_, (_, arrival))| arrival.waits) else {
            return Ok(());
        };
        let instruction = &context.launch.program.instructions[arrival.instruction];
        let lines = waiting().map(|(number, (warp, arrival))| {
            let line = context.launch.program.instructions[arrival.instruction].line;
            format!("warp {warp} at barrier {number}, line {line}")
        });
        let exited = self.warps.len() - self.live_warps();
        let problem = format!(
            "barrier {number} is never complete: {} threads wanted; waiting: {}; exited: {exited} warps",
            describe(arrival.count),
            lines.collect::<Vec<_>>().join("; "),
        );
        Err(context.fault(*warp, arrival.lanes.trailing_zeros() as usize, instruction, problem))
    }
}

fn describe(count: Option<u32>) -> String {
    count.map_or_else(|| "all".to_owned(), |count| count.to_string())
}

/// Lanes that a block of `threads` threads has in warp `index`.
pub(super) fn lanes_of_warp(threads: u32, index: usize) -> Mask {
    match threads as usize - index * LANES {
        count if count >= LANES => Mask::MAX,
        count => (1 << count) - 1,
    }
}
