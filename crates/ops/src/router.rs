//! The router of a mixture of experts: which experts a token goes to, and how much each of them counts.
//!
//! forward:  p = softmax(z) over all E experts;  c₁ … c_k the k largest of p, descending, of equal ones the lower index;
//!           qⱼ = p\[cⱼ\];  w = q/n with the p-norm n = (Σⱼ qⱼᵖ)^(1/p), or w = q where no norm is asked for
//! backward: dqⱼ = (dwⱼ − wⱼᵖ⁻¹·Σᵢ dwᵢ·wᵢ)/n, or dq = dw;  dp\[cⱼ\] += dqⱼ;  dz = p·(dp − Σₑ pₑ·dpₑ)
//! z, p `[T, E]`, c `[T, k]` u32, w `[T, k]`. Kept for the backward: p, in place of z, and c. The choice itself has no
//! gradient. Source: `transformers`, where Mixtral divides by the sum (p = 1) and DBRX by the norm that
//! `moe_normalize_expert_weights` names. The norm is taken in fp64: it is k values of a token.
//! On a GPU all is fp32, the norm too, and there are at most 1024 experts.

use crate::buffer::{View, ViewMut};
use crate::check::{self, for_float};
use crate::cuda::Grid;
use crate::dtype::{DType, Float};
use crate::error::OpError;
use crate::parallel::{for_row_blocks, for_row_blocks_of};
use crate::queue::{Device, Queue};
use crate::simd::{dot, maximum, sum};

/// Turns `logits` into probabilities; writes the chosen experts and their weights. `weight_norm` is the positive,
/// finite p of the norm that the weights are divided by.
pub fn forward(
    queue: &Queue,
    mut logits: ViewMut<'_>,
    weight_norm: Option<f64>,
    mut chosen: ViewMut<'_>,
    mut weights: ViewMut<'_>,
) -> Result<(), OpError> {
    const OPERATOR: &str = "router::forward";
    let (tokens, experts) = check::matrix(OPERATOR, "logits", logits.shape())?;
    let choices = choices(OPERATOR, chosen.as_view(), tokens, experts)?;
    check::shape(OPERATOR, "weights", weights.shape(), [tokens, choices])?;
    match queue.device() {
        Device::Cpu => for_float!(OPERATOR, logits, F => {
            let probabilities = logits.as_slice_mut::<F>()?;
            let (chosen, weights) = (chosen.as_slice_mut::<u32>()?, weights.as_slice_mut::<F>()?);
            for_row_blocks_of(probabilities, experts, |_, rows| rows.chunks_exact_mut(experts).for_each(softmax));
            for_row_blocks((chosen, choices), (weights, choices), |first, chosen, weights| {
                let chosen = chosen.chunks_exact_mut(choices);
                let rows = probabilities[first * experts..].chunks_exact(experts);
                for ((chosen, weights), row) in chosen.zip(weights.chunks_exact_mut(choices)).zip(rows) {
                    choose(row, weight_norm, chosen, weights);
                }
            });
            Ok(())
        }),
        Device::Cuda(stream) => {
            check_experts(OPERATOR, experts)?;
            stream
                .kernel(OPERATOR, "router", "router_forward")
                .output("logits", &logits, DType::F32)
                .f32(weight_norm.unwrap_or(0.0))
                .output("chosen", &chosen, DType::U32)
                .output("weights", &weights, DType::F32)
                .u32(tokens)
                .u32(experts)
                .u32(choices)
                .launch(grid(tokens))
        }
    }
}

/// Fails where a warp's lanes cannot note in the bits of a register which experts are taken.
fn check_experts(operator: &'static str, experts: usize) -> Result<(), OpError> {
    if experts <= 1024 { Ok(()) } else { Err(OpError::Extent { operator, value: experts }) }
}

/// A warp for each token.
fn grid(tokens: usize) -> Grid {
    Grid::blocks(tokens.div_ceil(8))
}

/// The number of choices that each of `tokens` tokens has in `chosen`.
fn choices(
    operator: &'static str,
    chosen: View<'_>,
    tokens: usize,
    experts: usize,
) -> Result<usize, OpError> {
    match *chosen.shape().extents() {
        [rows, choices] if rows == tokens && (1..=experts).contains(&choices) => Ok(choices),
        _ => Err(OpError::Shape {
            operator,
            argument: "chosen",
            found: chosen.shape().extents().to_vec(),
            expected: format!("{tokens} rows of 1 to {experts} choices"),
        }),
    }
}

fn softmax<T: Float>(row: &mut [T]) {
    let largest = maximum(row);
    for z in row.iter_mut() {
        *z = (*z - largest).exp();
    }
    let total = sum(row);
    for z in row.iter_mut() {
        *z = *z / total;
    }
}

/// Chooses among the probabilities of one token. Where they are NaN, so are the weights, and the choices are still
/// different experts.
fn choose<T: Float>(probabilities: &[T], weight_norm: Option<f64>, chosen: &mut [u32], weights: &mut [T]) {
    for (choice, weight) in weights.iter_mut().enumerate() {
        let (earlier, later) = chosen.split_at_mut(choice);
        let free = (0..).zip(probabilities).filter(|(expert, _)| !earlier.contains(expert));
        let best = free.reduce(|best, other| if other.1 > best.1 { other } else { best });
        // There is one: a token has no more choices than there are experts.
        if let Some((expert, &probability)) = best {
            (later[0], *weight) = (expert, probability);
        }
    }
    if let Some(power) = weight_norm {
        let norm = T::from_f64(norm(weights.iter().copied(), power));
        for weight in weights {
            *weight = *weight / norm;
        }
    }
}

/// (Σ qᵖ)^(1/p).
fn norm<T: Float>(values: impl Iterator<Item = T>, power: f64) -> f64 {
    values.map(|value| value.to_f64().powf(power)).sum::<f64>().powf(1.0 / power)
}

/// The gradient of the logits, given that of the weights and, in `dprobabilities`, what else the probabilities went
/// into (the load-balancing loss; zeros if nothing), which it replaces. On a GPU nobody checks that the choices are experts.
pub fn backward(
    queue: &Queue,
    dweights: View<'_>,
    probabilities: View<'_>,
    chosen: View<'_>,
    weight_norm: Option<f64>,
    mut dprobabilities: ViewMut<'_>,
) -> Result<(), OpError> {
    const OPERATOR: &str = "router::backward";
    let (tokens, experts) = check::matrix(OPERATOR, "probabilities", probabilities.shape())?;
    let choices = choices(OPERATOR, chosen, tokens, experts)?;
    check::shape(OPERATOR, "dweights", dweights.shape(), [tokens, choices])?;
    check::shape(OPERATOR, "dprobabilities", dprobabilities.shape(), [tokens, experts])?;
    match queue.device() {
        Device::Cpu => for_float!(OPERATOR, probabilities, F => {
            let chosen = chosen.as_slice::<u32>()?;
            check::indices(OPERATOR, chosen, experts)?;
            let (probabilities, dweights) = (probabilities.as_slice::<F>()?, dweights.as_slice::<F>()?);
            for_row_blocks_of(dprobabilities.as_slice_mut::<F>()?, experts, |first, gradients| {
                let probabilities = probabilities[first * experts..].chunks_exact(experts);
                let chosen = chosen[first * choices..].chunks_exact(choices);
                let dweights = dweights[first * choices..].chunks_exact(choices);
                let rows = gradients.chunks_exact_mut(experts).zip(probabilities).zip(chosen.zip(dweights));
                for ((gradient, probabilities), (chosen, dweights)) in rows {
                    weights_gradient(dweights, probabilities, chosen, weight_norm, gradient);
                    softmax_gradient(probabilities, gradient);
                }
            });
            Ok(())
        }),
        Device::Cuda(stream) => stream
            .kernel(OPERATOR, "router", "router_backward")
            .input("dweights", dweights, DType::F32)
            .input("probabilities", probabilities, DType::F32)
            .input("chosen", chosen, DType::U32)
            .f32(weight_norm.unwrap_or(0.0))
            .output("dprobabilities", &dprobabilities, DType::F32)
            .u32(tokens)
            .u32(experts)
            .u32(choices)
            .launch(grid(tokens)),
    }
}

/// Adds the gradient that the weights of one token pass on to its probabilities.
fn weights_gradient<T: Float>(
    dweights: &[T],
    probabilities: &[T],
    chosen: &[u32],
    weight_norm: Option<f64>,
    dprobabilities: &mut [T],
) {
    let Some(power) = weight_norm else {
        for (&expert, &dweight) in chosen.iter().zip(dweights) {
            dprobabilities[expert as usize] += dweight;
        }
        return;
    };
    let values = chosen.iter().map(|&expert| probabilities[expert as usize]);
    let norm = norm(values.clone(), power);
    let weights = values.map(|value| value.to_f64() / norm);
    let pull: f64 = weights.clone().zip(dweights).map(|(weight, dweight)| weight * dweight.to_f64()).sum();
    for ((&expert, &dweight), weight) in chosen.iter().zip(dweights).zip(weights) {
        let gradient = (dweight.to_f64() - weight.powf(power - 1.0) * pull) / norm;
        dprobabilities[expert as usize] += T::from_f64(gradient);
    }
}

/// Turns the gradient of one token's probabilities into that of its logits.
fn softmax_gradient<T: Float>(probabilities: &[T], gradient: &mut [T]) {
    let mean = dot(probabilities, gradient);
    for (gradient, &probability) in gradient.iter_mut().zip(probabilities) {
        *gradient = probability * (*gradient - mean);
    }
}
