//! Rotary embedding.

use candle_core::WithDType;
use tessera_ops::{Float, Queue, rope};

use crate::oracle;
use crate::support::{Seeded, assert_close, assert_gradient, inner_product, unwritten, view, view_mut};

/// What a call works on: `heads` of the row's `width / size` heads are turned.
struct Layout {
    heads: usize,
    size: usize,
    width: usize,
    known_positions: usize,
}

impl Layout {
    fn seeded(seeded: &mut Seeded) -> Self {
        let (heads, size) = (seeded.extent(4), 2 * seeded.extent(20));
        Self { heads, size, width: heads * size + seeded.below(9), known_positions: 50 }
    }

    fn table<T: Float>(&self) -> Vec<T> {
        let frequencies: Vec<f64> =
            (0..self.size / 2).map(|i| 1e4_f64.powf(-2.0 * i as f64 / self.size as f64)).collect();
        let mut table = unwritten(self.known_positions * self.size);
        let table_view = view_mut(&mut table, [self.known_positions, self.size]);
        rope::fill_table(&frequencies, table_view).unwrap();
        table
    }

    fn forward<T: Float>(&self, x: &[T], positions: &[u32]) -> Vec<T> {
        let mut x = x.to_vec();
        let (table, rows) = (self.table::<T>(), positions.len());
        let x_view = view_mut(&mut x, [rows, self.width]);
        let table = view(&table, [self.known_positions, self.size]);
        rope::forward(&Queue::cpu(), x_view, self.heads, view(positions, [rows]), table).unwrap();
        x
    }

    fn backward<T: Float>(&self, dx: &[T], positions: &[u32]) -> Vec<T> {
        let mut dx = dx.to_vec();
        let (table, rows) = (self.table::<T>(), positions.len());
        let dx_view = view_mut(&mut dx, [rows, self.width]);
        let table = view(&table, [self.known_positions, self.size]);
        rope::backward(&Queue::cpu(), dx_view, self.heads, view(positions, [rows]), table).unwrap();
        dx
    }
}

#[test]
fn backward_is_the_derivative_and_the_inverse() {
    let mut seeded = Seeded::new(1);
    for _ in 0..40 {
        let layout = Layout::seeded(&mut seeded);
        let positions_count = seeded.extent(40);
        let positions = seeded.ids(positions_count, layout.known_positions);
        let x = seeded.values::<f64>(positions.len() * layout.width);
        let cotangent = seeded.values::<f64>(x.len());
        let turned = layout.forward(&x, &positions);
        let gradient = layout.backward(&cotangent, &positions);
        assert_gradient("x", &x, &gradient, |x| inner_product(&layout.forward(x, &positions), &cotangent));
        assert_close("turned back", &layout.backward(&turned, &positions), &x, 1e-14);
        for (before, after) in x.chunks_exact(layout.width).zip(turned.chunks_exact(layout.width)) {
            let kept = layout.heads * layout.size..;
            assert_eq!(before[kept.clone()], after[kept], "columns after the heads stay as they are");
        }
    }
}

#[test]
fn scores_depend_on_the_distance_alone() {
    let layout = Layout { heads: 1, size: 16, width: 16, known_positions: 50 };
    let mut seeded = Seeded::new(2);
    let (q, k) = (seeded.values::<f64>(16), seeded.values::<f64>(16));
    for distance in [0, 1, 7, 20] {
        let score = |position: u32| {
            inner_product(&layout.forward(&q, &[position + distance]), &layout.forward(&k, &[position]))
        };
        assert!((score(0) - score(13)).abs() < 1e-13 && (score(0) - score(29)).abs() < 1e-13);
    }
    assert_eq!(layout.forward(&q, &[0]), q, "position 0 turns nothing");
}

fn agrees_with_candle<T: Float + WithDType>(tolerance: f64) {
    let mut seeded = Seeded::new(3);
    for _ in 0..20 {
        let mut layout = Layout::seeded(&mut seeded);
        layout.width = layout.heads * layout.size;
        let (rows, half) = (layout.known_positions, layout.size / 2);
        let positions: Vec<u32> = (0..rows as u32).collect();
        let (x, cotangent) =
            (seeded.values::<T>(rows * layout.width), seeded.values::<T>(rows * layout.width));
        let table = oracle::constant(&layout.table::<T>(), (rows, layout.size));
        let (cosine, sine) = (table.narrow(1, 0, half).unwrap(), table.narrow(1, half, half).unwrap());
        let variable = oracle::variable(&x, (1, rows, layout.heads, layout.size));
        let by_head = variable.transpose(1, 2).unwrap().contiguous().unwrap();
        let turned = candle_nn::rotary_emb::rope_slow(&by_head, &cosine, &sine).unwrap();
        let turned = turned.transpose(1, 2).unwrap().contiguous().unwrap();
        assert_close("x", &layout.forward(&x, &positions), &oracle::elements(&turned), tolerance);
        let expected = oracle::gradients(&turned, &cotangent, &[&variable]);
        assert_close("dx", &layout.backward(&cotangent, &positions), &expected[0], tolerance);
    }
}

#[test]
fn agrees_with_candle_in_fp32() {
    agrees_with_candle::<f32>(1e-6);
}

#[test]
fn agrees_with_candle_in_fp64() {
    agrees_with_candle::<f64>(1e-14);
}
