//! AdamW against candle's, whose formula is torch's: decay lr·wd on all parameters.

use candle_core::WithDType;
use candle_nn::{Optimizer, ParamsAdamW};
use tessera_ops::{Float, Queue, adamw};

use crate::oracle;
use crate::support::{Seeded, assert_close, scaled, view, view_mut};

fn follows_candle<T: Float + WithDType>(tolerance: f64) {
    const STEPS: usize = 20;
    let settings = ParamsAdamW { lr: 1e-2, beta1: 0.9, beta2: 0.999, eps: 1e-8, weight_decay: 0.1 };
    for count in [1, 17, 16_384, 40_000] {
        let mut seeded = Seeded::new(count as u64);
        let mut p = seeded.values::<T>(count);
        let (mut m, mut v) = (vec![T::ZERO; count], vec![T::ZERO; count]);
        let variable = oracle::variable(&p, count);
        let mut optimizer = candle_nn::AdamW::new(vec![variable.clone()], settings.clone()).unwrap();
        for step in 1..=STEPS {
            let gradient = seeded.values::<T>(count);
            let learning_rate = settings.lr / step as f64;
            optimizer.set_learning_rate(learning_rate);
            let loss =
                (variable.as_tensor() * oracle::constant(&gradient, count)).unwrap().sum_all().unwrap();
            optimizer.backward_step(&loss).unwrap();
            let hyperparameters = adamw::Hyperparameters {
                learning_rate,
                betas: (settings.beta1, settings.beta2),
                epsilon: settings.eps,
                decay: learning_rate * settings.weight_decay,
            };
            // A gradient of half the size and a clip factor of 2.
            let halved = scaled(&gradient, 0.5);
            let state = adamw::State {
                parameters: view_mut(&mut p, [count]),
                first_moment: view_mut(&mut m, [count]),
                second_moment: view_mut(&mut v, [count]),
                rounded: None,
            };
            let (g, decision) = (view(&halved, [count]), [2.0, 1.0, step as f64, 0.0, 0.0]);
            adamw::update(&Queue::cpu(), state, g, count, hyperparameters, view(&decision, [5])).unwrap();
            assert_close("parameters", &p, &oracle::elements(&variable), tolerance);
        }
    }
}

#[test]
fn follows_candle_in_fp32() {
    follows_candle::<f32>(5e-7);
}

#[test]
fn follows_candle_in_fp64() {
    follows_candle::<f64>(1e-14);
}
