//! The experts' products on tensor cores: what faults.rs plants its faults in. Groups of experts, and the plain kernels, are
//! in the tests of the operators.

use half::bf16;
use tessera_cuda_emulator::Random;
use tessera_ops::Queue;
use tessera_ops::experts::linear::{self, WeightLayout};

use crate::device::{Kernels, Launch, input, output, unsigned};
use crate::experts::Routing;
use crate::support::{Values, assert_close, view, view_mut};

/// The kernels of linear.cu, for all experts of a routing.
struct Products<'a> {
    kernels: Kernels,
    routing: &'a Routing,
}

impl Products<'_> {
    fn launch(columns: usize, rows: usize, experts: usize) -> Launch {
        Launch::grid([columns.div_ceil(128), rows, experts]).shared(4 * 128 * 64 * size_of::<bf16>())
    }

    /// y = x·M, where weights lie as `[outputs, inputs]` if `transposed`.
    fn rows(&mut self, x: &[bf16], weight: &[bf16], transposed: bool, y: &mut [bf16], inputs: usize) {
        let (count, experts) = (self.routing.count(), self.routing.experts().len());
        let outputs = y.len() / count;
        let way = if transposed { "transposed" } else { "straight" };
        self.kernels.run(
            &format!("experts_linear_rows_{way}"),
            Self::launch(outputs, count.div_ceil(128) + experts, 1),
            &mut [
                input(x),
                input(weight),
                input(&self.routing.offsets),
                unsigned(experts),
                output(y),
                unsigned(inputs),
                unsigned(outputs),
            ],
        );
    }

    /// dM += aᵀ·b.
    fn weight(
        &mut self,
        (a, a_width): (&[bf16], usize),
        (b, b_width): (&[bf16], usize),
        dweight: &mut [f32],
    ) {
        let offsets = input(&self.routing.offsets);
        self.kernels.run(
            "experts_linear_weight",
            Self::launch(b_width, a_width.div_ceil(128), self.routing.experts().len()),
            &mut [input(a), input(b), offsets, output(dweight), unsigned(a_width), unsigned(b_width)],
        );
    }

    /// The three products of a layer against the CPU's.
    fn check(&mut self, random: &mut Random, inputs: usize, outputs: usize, layout: WeightLayout) {
        let (routing, count, experts) = (self.routing, self.routing.count(), self.routing.experts().len());
        let transposed = layout == WeightLayout::OutputsInputs;
        let [x, dx] = [(); 2].map(|()| Values::<bf16>::random(random, count * inputs));
        let [dy, y] = [(); 2].map(|()| Values::<bf16>::random(random, count * outputs));
        let weight = Values::<bf16>::random(random, experts * inputs * outputs);
        let dweight = Values::<f32>::random(random, weight.exact.len());
        let [mut found_y, mut found_dx] = [&y, &dx].map(|values| values.rounded.clone());
        let mut found_dweight = dweight.rounded.clone();
        self.rows(&x.rounded, &weight.rounded, transposed, &mut found_y, inputs);
        self.rows(&dy.rounded, &weight.rounded, !transposed, &mut found_dx, outputs);
        let (left, right) = ((&x.rounded[..], inputs), (&dy.rounded[..], outputs));
        let (left, right) = if transposed { (right, left) } else { (left, right) };
        self.weight(left, right, &mut found_dweight);

        let (queue, group) = (&Queue::cpu(), &routing.group());
        let shape = if transposed { [experts * outputs, inputs] } else { [experts * inputs, outputs] };
        let [mut y, mut dx, mut dweight] = [y.exact, dx.exact, dweight.exact];
        let (x, dy) = (view(&x.exact, [count, inputs]), view(&dy.exact, [count, outputs]));
        let weight = view(&weight.exact, shape);
        linear::forward(queue, x, weight, layout, group, view_mut(&mut y, [count, outputs])).unwrap();
        linear::backward_input(queue, dy, weight, layout, group, view_mut(&mut dx, [count, inputs])).unwrap();
        linear::backward_weight(queue, dy, x, layout, group, view_mut(&mut dweight, shape)).unwrap();
        assert_close("y", &found_y, &y);
        assert_close("dx", &found_dx, &dx);
        assert_close("dweight", &found_dweight, &dweight);
    }
}

/// Widths above a tile, and inner dimensions that end inside of a stage.
#[test]
pub fn products_on_tensor_cores_follow_the_cpu() {
    let mut random = Random::new(7);
    let routing = Routing::random(&mut random, 150, 2, 3);
    let mut products = Products { kernels: Kernels::load("experts_linear"), routing: &routing };
    for layout in [WeightLayout::OutputsInputs, WeightLayout::InputsOutputs] {
        products.check(&mut random, 72, 136, layout);
    }
}
