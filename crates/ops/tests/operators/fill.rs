//! Setting and copying.

use tessera_ops::{Queue, fill};

use crate::support::{Seeded, view, view_mut};

#[test]
fn zero_and_copy_reach_every_element() {
    let queue = Queue::cpu();
    for count in [0, 1, 65_535, 65_536, 200_001] {
        let from = Seeded::new(count as u64).values::<f64>(count);
        let mut to = vec![f64::NAN; count];
        fill::copy(&queue, view(&from, [count]), view_mut(&mut to, [count])).unwrap();
        assert_eq!(to, from);
        fill::zero(&queue, view_mut(&mut to, [count])).unwrap();
        assert!(to.iter().all(|&value| value == 0.0));
    }
}
