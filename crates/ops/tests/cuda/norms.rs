//! Norms: a row is read once, its weight's gradient is summed block by block.

use half::bf16;
use tessera_ops::{Queue, rms_norm};

use crate::support::{
    Random, Values, Variant, assert_on_gpu, on, on_mut, stream, unwritten, upload, view, view_mut,
};

const EPSILON: f64 = 1e-5;

struct Case<V> {
    rows: usize,
    width: usize,
    x: Values<V>,
    weight: Values<V>,
    dy: Values<V>,
    dx: Values<V>,
    dweight: Values<f32>,
}

impl<V: Variant> Case<V> {
    fn random(random: &mut Random) -> Self {
        let (rows, width) = (random.extent(40), random.extent(300));
        Self {
            rows,
            width,
            x: Values::random(random, rows * width),
            weight: Values::random(random, width),
            dy: Values::random(random, rows * width),
            dx: Values::random(random, rows * width),
            dweight: Values::random(random, width),
        }
    }

    fn shape(&self) -> [usize; 2] {
        [self.rows, self.width]
    }
}

fn rms_norm_case<V: Variant>(queue: &Queue, case: &Case<V>) {
    let (shape, rows, width) = (case.shape(), case.rows, case.width);
    let [x, weight, dy] = [&case.x, &case.weight, &case.dy].map(|values| upload(queue, &values.rounded));
    let (mut y, mut rms) =
        (upload(queue, &unwritten::<V>(rows * width)), upload(queue, &unwritten::<f32>(rows)));
    let (mut dx, mut dweight) = (upload(queue, &case.dx.rounded), upload(queue, &case.dweight.rounded));
    let (x, weight) = (on::<V>(&x, shape), on::<V>(&weight, [width]));
    let (y_view, rms_view) = (on_mut::<V>(&mut y, shape), on_mut::<f32>(&mut rms, [rows]));
    rms_norm::forward(queue, x, weight, EPSILON, y_view, rms_view).unwrap();
    let (dy, rms_view) = (on::<V>(&dy, shape), on::<f32>(&rms, [rows]));
    let (dx_view, dweight_view) = (on_mut::<V>(&mut dx, shape), on_mut::<f32>(&mut dweight, [width]));
    rms_norm::backward(queue, dy, x, weight, rms_view, dx_view, dweight_view).unwrap();

    let cpu = Queue::cpu();
    let (mut expected_y, mut expected_rms) = (vec![0.0; rows * width], vec![0.0; rows]);
    let (x, weight) = (view(&case.x.exact, shape), view(&case.weight.exact, [width]));
    let (y_view, rms_view) = (view_mut(&mut expected_y, shape), view_mut(&mut expected_rms, [rows]));
    rms_norm::forward(&cpu, x, weight, EPSILON, y_view, rms_view).unwrap();
    let (mut expected_dx, mut expected_dweight) = (case.dx.exact.clone(), case.dweight.exact.clone());
    let (dy, rms_view) = (view(&case.dy.exact, shape), view(&expected_rms, [rows]));
    let (dx_view, dweight_view) =
        (view_mut(&mut expected_dx, shape), view_mut(&mut expected_dweight, [width]));
    rms_norm::backward(&cpu, dy, x, weight, rms_view, dx_view, dweight_view).unwrap();

    assert_on_gpu::<V>(queue, "y", &y, &expected_y);
    assert_on_gpu::<f32>(queue, "inverse rms", &rms, &expected_rms);
    assert_on_gpu::<V>(queue, "dx", &dx, &expected_dx);
    assert_on_gpu::<f32>(queue, "dweight", &dweight, &expected_dweight);
}

fn fuzz<V: Variant>(seed: u64, check: fn(&Queue, &Case<V>)) {
    let (queue, mut random) = (stream(), Random::new(seed));
    for _ in 0..12 {
        check(&queue, &Case::random(&mut random));
    }
}

#[test]
fn rms_norm_follows_the_cpu() {
    fuzz::<f32>(1, rms_norm_case);
    fuzz::<bf16>(2, rms_norm_case);
}
