//! Picking rows and putting them back.

use tessera_ops::{Queue, rows};

use crate::support::{Seeded, unwritten, view, view_mut};

#[test]
fn gather_picks_and_scatter_puts_back() {
    let queue = Queue::cpu();
    let mut seeded = Seeded::new(1);
    for _ in 0..40 {
        let (count, width) = (seeded.extent(60), seeded.extent(70));
        let x = seeded.values::<f32>(count * width);
        let picked: Vec<u32> = (0..count as u32).rev().filter(|_| seeded.below(2) == 0).collect();
        let index = view(&picked, [picked.len()]);
        let mut y = unwritten::<f32>(picked.len() * width);
        rows::gather(&queue, view(&x, [count, width]), index, view_mut(&mut y, [picked.len(), width]))
            .unwrap();
        for (y, &row) in y.chunks_exact(width).zip(&picked) {
            assert_eq!(y, &x[row as usize * width..][..width]);
        }

        let before = seeded.values::<f32>(count * width);
        let mut after = before.clone();
        rows::scatter(&queue, view(&y, [picked.len(), width]), index, view_mut(&mut after, [count, width]))
            .unwrap();
        for row in 0..count {
            let source = if picked.contains(&(row as u32)) { &x } else { &before };
            assert_eq!(after[row * width..][..width], source[row * width..][..width]);
        }
    }
}
