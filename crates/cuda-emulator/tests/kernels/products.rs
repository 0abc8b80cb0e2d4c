//! The experts' products, on tensor cores and without.

use std::marker::PhantomData;
use std::ops::Range;

use half::bf16;
use tessera_cuda_emulator::Random;
use tessera_ops::Queue;
use tessera_ops::experts::linear::{self, WeightLayout};

use crate::device::{Kernels, Launch, input, output, unsigned};
use crate::experts::Routing;
use crate::support::{Values, Variant, assert_close, below, view, view_mut};

/// One of the two kernels of linear.cu and linear_plain.cu that multiply rows, or the one for the weight.
struct Products<'a, V> {
    kernels: Kernels,
    /// Rows and columns of a block's tile.
    tile: usize,
    plain: bool,
    routing: &'a Routing,
    variant: PhantomData<V>,
}

impl<V: Variant> Products<'_, V> {
    fn launch(&self, columns: usize, rows: usize, experts: usize) -> Launch {
        let shared = if self.plain { 0 } else { 4 * 128 * 64 * size_of::<bf16>() };
        Launch::grid([columns.div_ceil(self.tile), rows, experts]).shared(shared)
    }

    /// y = x·M for the rows of `experts`, whose weights are [outputs, inputs] where `transposed`.
    fn rows(
        &mut self,
        x: &[V],
        weight: &[V],
        experts: &Range<usize>,
        transposed: bool,
        y: &mut [V],
        inputs: usize,
    ) {
        let outputs = y.len() / self.routing.count();
        let launch = self.launch(outputs, self.routing.count().div_ceil(self.tile) + experts.len(), 1);
        let offsets = &self.routing.offsets[experts.start..=experts.end];
        let mut arguments = vec![
            input(x),
            input(weight),
            input(offsets),
            unsigned(experts.len()),
            output(y),
            unsigned(inputs),
            unsigned(outputs),
        ];
        let name = match (self.plain, transposed) {
            (true, _) => format!("experts_linear_plain_rows_{}", V::SUFFIX),
            (false, true) => "experts_linear_rows_transposed".into(),
            (false, false) => "experts_linear_rows_straight".into(),
        };
        if self.plain {
            arguments.push(unsigned(usize::from(transposed)));
        }
        self.kernels.run(&name, launch, &mut arguments);
    }

    /// dM += aᵀ·b for each of `experts`.
    fn weight(
        &mut self,
        (a, a_width): (&[V], usize),
        (b, b_width): (&[V], usize),
        experts: &Range<usize>,
        dweight: &mut [f32],
    ) {
        let launch = self.launch(b_width, a_width.div_ceil(self.tile), experts.len());
        let offsets = &self.routing.offsets[experts.start..=experts.end];
        let name = if self.plain {
            format!("experts_linear_plain_weight_{}", V::SUFFIX)
        } else {
            "experts_linear_weight".into()
        };
        self.kernels.run(
            &name,
            launch,
            &mut [input(a), input(b), input(offsets), output(dweight), unsigned(a_width), unsigned(b_width)],
        );
    }

    /// The three products of a layer against the CPU's.
    fn check(&mut self, random: &mut Random, inputs: usize, outputs: usize, layout: WeightLayout) {
        let (routing, count) = (self.routing, self.routing.count());
        let transposed = layout == WeightLayout::OutputsInputs;
        for experts in routing.groups() {
            let (x, dy) =
                (Values::<V>::random(random, count * inputs), Values::<V>::random(random, count * outputs));
            let weight = Values::<V>::random(random, experts.len() * inputs * outputs);
            let dweight = Values::<f32>::random(random, weight.exact.len());
            let (y, dx) =
                (Values::<V>::random(random, dy.exact.len()), Values::<V>::random(random, x.exact.len()));
            let (mut found_y, mut found_dx) = (y.rounded.clone(), dx.rounded.clone());
            let mut found_dweight = dweight.rounded.clone();
            self.rows(&x.rounded, &weight.rounded, &experts, transposed, &mut found_y, inputs);
            self.rows(&dy.rounded, &weight.rounded, &experts, !transposed, &mut found_dx, outputs);
            let (left, right) = ((&x.rounded[..], inputs), (&dy.rounded[..], outputs));
            let (left, right) = if transposed { (right, left) } else { (left, right) };
            self.weight(left, right, &experts, &mut found_dweight);

            let (queue, group) = (Queue::cpu(), routing.group(&experts));
            let shape = if transposed {
                [experts.len() * outputs, inputs]
            } else {
                [experts.len() * inputs, outputs]
            };
            let (mut expected_y, mut expected_dx) = (y.exact.clone(), dx.exact.clone());
            let mut expected_dweight = dweight.exact.clone();
            let (x, dy) = (view(&x.exact, [count, inputs]), view(&dy.exact, [count, outputs]));
            let weight = view(&weight.exact, shape);
            linear::forward(&queue, x, weight, layout, &group, view_mut(&mut expected_y, [count, outputs]))
                .unwrap();
            linear::backward_input(
                &queue,
                dy,
                weight,
                layout,
                &group,
                view_mut(&mut expected_dx, [count, inputs]),
            )
            .unwrap();
            linear::backward_weight(&queue, dy, x, layout, &group, view_mut(&mut expected_dweight, shape))
                .unwrap();
            assert_close("y", &found_y, &expected_y);
            assert_close("dx", &found_dx, &expected_dx);
            assert_close("dweight", &found_dweight, &expected_dweight);
        }
    }
}

const LAYOUTS: [WeightLayout; 2] = [WeightLayout::OutputsInputs, WeightLayout::InputsOutputs];

/// Widths below, at and above a tile, and inner dimensions that end inside of a stage.
#[test]
pub fn products_on_tensor_cores_follow_the_cpu() {
    let mut random = Random::new(7);
    let routing = Routing::random(&mut random, 150, 2, 3);
    let mut products = Products::<bf16> {
        kernels: Kernels::load("experts_linear"),
        tile: 128,
        plain: false,
        routing: &routing,
        variant: PhantomData,
    };
    for ((inputs, outputs), layout) in
        [(72, 136), (8, 40)].into_iter().flat_map(|sizes| LAYOUTS.map(|layout| (sizes, layout)))
    {
        products.check(&mut random, inputs, outputs, layout);
    }
}

fn plain_products_follow<V: Variant>(random: &mut Random) {
    let routing = Routing::random(random, 40, 2, 4);
    let mut products = Products::<V> {
        kernels: Kernels::load("experts_linear_plain"),
        tile: 64,
        plain: true,
        routing: &routing,
        variant: PhantomData,
    };
    for layout in LAYOUTS {
        let (inputs, outputs) = (1 + below(random, 70), 1 + below(random, 70));
        products.check(random, inputs, outputs, layout);
    }
}

#[test]
fn plain_products_follow_the_cpu() {
    plain_products_follow::<f32>(&mut Random::new(8));
    plain_products_follow::<bf16>(&mut Random::new(9));
}
