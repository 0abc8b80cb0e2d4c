//! The router: its choices, their weights, and its gradient.

use tessera_ops::{Queue, router};

use crate::support::{
    Random, Values, assert_on_gpu, download, on, on_mut, refused, stream, unwritten_on, upload, view,
    view_mut,
};

/// The power of the norm, tokens, experts, choices of each token.
fn router_follows(random: &mut Random, norm: Option<f64>, [tokens, experts, choices]: [usize; 3]) {
    let (queue, cpu) = (stream(), Queue::cpu());
    let (shape, chosen_shape) = ([tokens, experts], [tokens, choices]);
    let logits = Values::<f32>::of((0..tokens * experts).map(|_| 6.0 * random.uniform()).collect::<Vec<_>>());
    let dweights = Values::<f32>::random(random, tokens * choices);
    let dprobabilities = Values::<f32>::random(random, tokens * experts);

    let [mut logits_on, mut gradient] =
        [&logits, &dprobabilities].map(|values| upload(&queue, &values.rounded));
    let dweights_on = upload(&queue, &dweights.rounded);
    let mut chosen_on = upload(&queue, &vec![u32::MAX; tokens * choices]);
    let mut weights_on = unwritten_on::<f32>(&queue, tokens * choices);
    let chosen = on_mut::<u32>(&mut chosen_on, chosen_shape);
    let weights = on_mut::<f32>(&mut weights_on, chosen_shape);
    router::forward(&queue, on_mut::<f32>(&mut logits_on, shape), norm, chosen, weights).unwrap();
    let (dweights_view, probabilities) =
        (on::<f32>(&dweights_on, chosen_shape), on::<f32>(&logits_on, shape));
    let (chosen, dlogits) = (on::<u32>(&chosen_on, chosen_shape), on_mut::<f32>(&mut gradient, shape));
    router::backward(&queue, dweights_view, probabilities, chosen, norm, dlogits).unwrap();

    let (mut probabilities, mut dlogits) = (logits.exact, dprobabilities.exact);
    let (mut chosen, mut weights) = (vec![u32::MAX; tokens * choices], vec![0.0; tokens * choices]);
    let (chosen_view, weights_view) =
        (view_mut(&mut chosen, chosen_shape), view_mut(&mut weights, chosen_shape));
    router::forward(&cpu, view_mut(&mut probabilities, shape), norm, chosen_view, weights_view).unwrap();
    let (dweights, probabilities_view) = (view(&dweights.exact, chosen_shape), view(&probabilities, shape));
    let (chosen_view, dlogits_view) = (view(&chosen, chosen_shape), view_mut(&mut dlogits, shape));
    router::backward(&cpu, dweights, probabilities_view, chosen_view, norm, dlogits_view).unwrap();

    assert_eq!(download::<u32>(&queue, &chosen_on), chosen);
    assert_on_gpu::<f32>(&queue, "probabilities", &logits_on, &probabilities);
    assert_on_gpu::<f32>(&queue, "weights", &weights_on, &weights);
    assert_on_gpu::<f32>(&queue, "dlogits", &gradient, &dlogits);
}

#[test]
fn routers_follow_the_cpu() {
    let mut random = Random::new(1);
    for (experts, choices) in [(1, 1), (8, 2), (16, 4), (33, 5), (70, 70)] {
        for norm in [None, Some(1.0), Some(2.0), Some(3.5)] {
            let tokens = random.extent(11);
            router_follows(&mut random, norm, [tokens, experts, choices]);
        }
    }
    router_follows(&mut random, None, [2, 1024, 3]);
}

/// Equal probabilities, and those of a token whose logits are NaN: the choices are the lowest experts.
#[test]
fn ties_and_nans_choose_different_experts() {
    let queue = stream();
    let mut logits = upload(&queue, &[[1.0_f32; 40], [f32::NAN; 40]].concat());
    let (mut chosen, mut weights) = (upload(&queue, &[u32::MAX; 6]), upload(&queue, &[0.5_f32; 6]));
    let chosen_view = on_mut::<u32>(&mut chosen, [2, 3]);
    let weights_view = on_mut::<f32>(&mut weights, [2, 3]);
    router::forward(&queue, on_mut::<f32>(&mut logits, [2, 40]), Some(1.0), chosen_view, weights_view)
        .unwrap();
    assert_eq!(download::<u32>(&queue, &chosen), [0, 1, 2, 0, 1, 2]);
    let weights = download::<f32>(&queue, &weights);
    assert!(weights[..3].iter().all(|weight| (weight - 1.0 / 3.0).abs() < 1e-6));
    assert!(weights[3..].iter().all(|weight| weight.is_nan()));
}

#[test]
fn more_experts_than_a_warp_can_note_are_refused() {
    let queue = stream();
    let mut logits = unwritten_on::<f32>(&queue, 1025);
    let (mut chosen, mut weights) = (upload(&queue, &[0_u32]), unwritten_on::<f32>(&queue, 1));
    let (chosen, weights) = (on_mut::<u32>(&mut chosen, [1, 1]), on_mut::<f32>(&mut weights, [1, 1]));
    refused(
        router::forward(&queue, on_mut::<f32>(&mut logits, [1, 1025]), None, chosen, weights),
        "1025 is more than a kernel can take",
    );
}
