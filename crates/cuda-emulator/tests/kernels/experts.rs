//! The order of slots by expert: what faults.rs plants a fault in, and what the experts' products need.

use std::ops::Range;

use tessera_cuda_emulator::Random;
use tessera_ops::experts::{self, ExpertRows};
use tessera_ops::{Queue, View};

use crate::device::{Kernels, Launch, input, output, unsigned};
use crate::support::{indices, view, view_mut};

/// Slots in the order of their experts, some of which have none.
pub struct Routing {
    tokens: usize,
    choices: usize,
    slots: Vec<u32>,
    places: Vec<u32>,
    pub offsets: Vec<u32>,
}

impl Routing {
    /// Chooses at random, but never the expert number 1.
    pub fn random(random: &mut Random, tokens: usize, choices: usize, experts: usize) -> Self {
        let mut chosen = indices(random, tokens * choices, experts);
        for expert in chosen.iter_mut().filter(|expert| **expert == 1) {
            *expert = 0;
        }
        let count = chosen.len();
        let (mut slots, mut places, mut offsets) =
            (vec![u32::MAX; count], vec![u32::MAX; count], vec![u32::MAX; experts + 1]);
        Kernels::load("experts_sort").run(
            "experts_sort",
            Launch::blocks(experts).threads(1024),
            &mut [
                input(&chosen),
                output(&mut slots),
                output(&mut places),
                output(&mut offsets),
                unsigned(count),
            ],
        );
        let routing = Self { tokens, choices, slots, places, offsets };
        routing.check_order(&chosen);
        routing
    }

    fn check_order(&self, chosen: &[u32]) {
        let (mut slots, mut places) = (self.slots.clone(), self.places.clone());
        let mut offsets = self.offsets.clone();
        experts::sort(
            &Queue::cpu(),
            view(chosen, [self.tokens, self.choices]),
            view_mut(&mut slots, [self.count()]),
            view_mut(&mut places, [self.count()]),
            view_mut(&mut offsets, [self.offsets.len()]),
        )
        .unwrap();
        assert_eq!((&self.slots, &self.places, &self.offsets), (&slots, &places, &offsets));
    }

    pub fn count(&self) -> usize {
        self.tokens * self.choices
    }

    /// All experts, as one group.
    pub fn experts(&self) -> Range<usize> {
        0..self.offsets.len() - 1
    }

    pub fn group(&self) -> ExpertRows<'_> {
        ExpertRows { offsets: View::of(&self.offsets), experts: self.experts() }
    }
}

#[test]
pub fn sorting_is_the_cpus() {
    Routing::random(&mut Random::new(2), 1100, 3, 5);
}
