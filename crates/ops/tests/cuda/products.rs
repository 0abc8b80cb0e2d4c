//! Linear layers: cuBLAS's products, in each of the ways that matrices lie.

use half::bf16;
use tessera_ops::{Queue, linear};

use crate::support::{
    Random, Values, Variant, assert_on_gpu, on, on_mut, refused, stream, upload, view, view_mut,
};

/// Products of inputs of a variant with outputs of `Out`.
fn linear_case<V: Variant, Out: Variant>(queue: &Queue, random: &mut Random) {
    let [rows, inputs, outputs] = [random.extent(20), random.extent(40), random.extent(30)];
    let x = Values::<V>::random(random, rows * inputs);
    let weight = Values::<V>::random(random, outputs * inputs);
    let (y, dx) =
        (Values::<Out>::random(random, rows * outputs), Values::<Out>::random(random, rows * inputs));
    let (dy, dweight) =
        (Values::<V>::random(random, rows * outputs), Values::<f32>::random(random, outputs * inputs));
    let (x_shape, w_shape, y_shape) = ([rows, inputs], [outputs, inputs], [rows, outputs]);

    let [x_on, weight_on, dy_on] = [&x, &weight, &dy].map(|values| upload(queue, &values.rounded));
    let (mut y_on, mut dx_on) = (upload(queue, &y.rounded), upload(queue, &dx.rounded));
    let mut dweight_on = upload(queue, &dweight.rounded);
    let (x_view, weight_view) = (on::<V>(&x_on, x_shape), on::<V>(&weight_on, w_shape));
    linear::forward_add(queue, x_view, weight_view, on_mut::<Out>(&mut y_on, y_shape)).unwrap();
    let dy_view = on::<V>(&dy_on, y_shape);
    linear::backward_input(queue, dy_view, weight_view, on_mut::<Out>(&mut dx_on, x_shape)).unwrap();
    linear::backward_weight(queue, dy_view, x_view, on_mut::<f32>(&mut dweight_on, w_shape)).unwrap();

    let cpu = Queue::cpu();
    let (mut y, mut dx, mut dweight) = (y.exact, dx.exact, dweight.exact);
    let (x, weight, dy) = (view(&x.exact, x_shape), view(&weight.exact, w_shape), view(&dy.exact, y_shape));
    linear::forward_add(&cpu, x, weight, view_mut(&mut y, y_shape)).unwrap();
    linear::backward_input(&cpu, dy, weight, view_mut(&mut dx, x_shape)).unwrap();
    linear::backward_weight(&cpu, dy, x, view_mut(&mut dweight, w_shape)).unwrap();

    assert_on_gpu::<Out>(queue, "y", &y_on, &y);
    assert_on_gpu::<Out>(queue, "dx", &dx_on, &dx);
    assert_on_gpu::<f32>(queue, "dweight", &dweight_on, &dweight);
}

#[test]
fn linear_layers_follow_the_cpu() {
    let (queue, mut random) = (stream(), Random::new(1));
    for _ in 0..12 {
        linear_case::<f32, f32>(&queue, &mut random);
        linear_case::<bf16, bf16>(&queue, &mut random);
        linear_case::<bf16, f32>(&queue, &mut random);
    }
}

#[test]
fn memory_of_the_host_is_refused() {
    let queue = stream();
    let (x, mut y) = ([1.0_f32; 6], [0.0_f32; 4]);
    let (x, weight) = (view(&x, [2, 3]), view(&x, [2, 3]));
    refused(
        linear::forward(&queue, x, weight, view_mut(&mut y, [2, 2])),
        "does not lie in the memory of CUDA device 0",
    );
    let on_gpu = upload(&queue, &[1.0_f32; 6]);
    refused(
        linear::forward(&Queue::cpu(), x, on::<f32>(&on_gpu, [2, 3]), view_mut(&mut y, [2, 2])),
        "host memory",
    );
}
