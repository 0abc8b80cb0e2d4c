//! Routing tokens to experts and back, and the experts' own arithmetic on their rows.

use std::ops::Range;

use tessera_ops::experts::linear::WeightLayout;
use tessera_ops::experts::{self, ExpertRows};
use tessera_ops::{Float, Queue, View};

use crate::support::{Seeded, bits, unwritten, view, view_mut};

mod activation;
mod bounds;
mod linear;
pub mod mixture;

const LAYOUTS: [WeightLayout; 2] = [WeightLayout::OutputsInputs, WeightLayout::InputsOutputs];

/// Where the tokens of a layer go.
pub struct Routing {
    pub tokens: usize,
    pub choices: usize,
    pub chosen: Vec<u32>,
    pub slots: Vec<u32>,
    pub places: Vec<u32>,
    pub offsets: Vec<u32>,
}

impl Routing {
    pub fn new(tokens: usize, experts: usize, choices: usize, chosen: Vec<u32>) -> Self {
        let count = tokens * choices;
        let (mut slots, mut places) = (vec![u32::MAX; count], vec![u32::MAX; count]);
        let mut offsets = vec![u32::MAX; experts + 1];
        experts::sort(
            &Queue::cpu(),
            view(&chosen, [tokens, choices]),
            view_mut(&mut slots, [count]),
            view_mut(&mut places, [count]),
            view_mut(&mut offsets, [experts + 1]),
        )
        .unwrap();
        Self { tokens, choices, chosen, slots, places, offsets }
    }

    /// Any number of tokens, some experts without any.
    pub fn random(seeded: &mut Seeded) -> Self {
        let (tokens, experts) = (seeded.extent(50), seeded.extent(9));
        let choices = seeded.extent(experts.min(4));
        let popular = seeded.extent(experts);
        let mut chosen = Vec::new();
        for _ in 0..tokens {
            let first = seeded.below(popular);
            chosen.extend((0..choices).map(|choice| ((first + choice) % experts) as u32));
        }
        Self::new(tokens, experts, choices, chosen)
    }

    pub fn experts(&self) -> usize {
        self.offsets.len() - 1
    }

    pub fn count(&self) -> usize {
        self.slots.len()
    }

    pub fn group(&self, experts: Range<usize>) -> ExpertRows<'_> {
        ExpertRows { offsets: View::of(&self.offsets), experts }
    }

    fn rows(&self, experts: &Range<usize>) -> Range<usize> {
        self.offsets[experts.start] as usize..self.offsets[experts.end] as usize
    }

    /// The experts cut into groups, some of them empty.
    fn groups(&self, seeded: &mut Seeded) -> Vec<Range<usize>> {
        let mut cuts = vec![0, self.experts()];
        cuts.extend((0..seeded.below(4)).map(|_| seeded.below(self.experts() + 1)));
        cuts.sort_unstable();
        cuts.windows(2).map(|pair| pair[0]..pair[1]).collect()
    }

    fn gather<T: Float>(&self, x: &[T], group: &ExpertRows<'_>, y: &mut [T]) {
        let width = x.len() / self.tokens;
        let (x, y) = (view(x, [self.tokens, width]), view_mut(y, [self.count(), width]));
        experts::gather(&Queue::cpu(), x, View::of(&self.slots), self.choices, group, y).unwrap();
    }

    fn combine<T: Float>(&self, x: &[T], group: &ExpertRows<'_>, y: &mut [T]) {
        let width = y.len() / self.tokens;
        let (x, y) = (view(x, [self.count(), width]), view_mut(y, [self.tokens, width]));
        let (slots, places) = (View::of(&self.slots), View::of(&self.places));
        experts::combine(&Queue::cpu(), x, slots, places, self.choices, group, y).unwrap();
    }
}

#[test]
fn sorting_is_stable() {
    let mut seeded = Seeded::new(1);
    for _ in 0..60 {
        let routing = Routing::random(&mut seeded);
        let mut expected: Vec<u32> = (0..routing.count() as u32).collect();
        expected.sort_by_key(|&slot| routing.chosen[slot as usize]);
        assert_eq!(routing.slots, expected);
        for (row, &slot) in routing.slots.iter().enumerate() {
            assert_eq!(routing.places[slot as usize] as usize, row);
        }
        for expert in 0..routing.experts() {
            for row in routing.rows(&(expert..expert + 1)) {
                assert_eq!(routing.chosen[routing.slots[row] as usize] as usize, expert);
            }
        }
        assert_eq!(routing.rows(&(0..routing.experts())), 0..routing.count());
    }
}

#[test]
fn tokens_go_to_their_experts_and_come_back() {
    let mut seeded = Seeded::new(2);
    for _ in 0..60 {
        let routing = Routing::random(&mut seeded);
        let width = seeded.extent(70);
        let x = seeded.values::<f32>(routing.tokens * width);
        let groups = routing.groups(&mut seeded);
        let mut gathered = unwritten::<f32>(routing.count() * width);
        let before = seeded.values::<f32>(routing.tokens * width);
        let outputs = seeded.values::<f32>(routing.count() * width);
        let mut combined = before.clone();
        for experts in groups {
            let untouched = gathered.clone();
            routing.gather(&x, &routing.group(experts.clone()), &mut gathered);
            let rows = routing.rows(&experts);
            for row in 0..routing.count() {
                let token = routing.slots[row] as usize / routing.choices;
                let from = if rows.contains(&row) { &x[token * width..] } else { &untouched[row * width..] };
                assert_eq!(bits(&gathered[row * width..][..width]), bits(&from[..width]));
            }
            routing.combine(&outputs, &routing.group(experts), &mut combined);
        }
        let mut expected = before;
        for (row, &slot) in routing.slots.iter().enumerate() {
            let y = &mut expected[slot as usize / routing.choices * width..][..width];
            y.iter_mut().zip(&outputs[row * width..]).for_each(|(y, x)| *y += x);
        }
        // One group after the other adds in the order of the sorted rows, as one group would.
        assert_eq!(bits(&combined), bits(&expected));
    }
}
