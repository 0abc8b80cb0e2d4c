//! Inverse frequencies of rotary embeddings.

use super::*;

fn assert_near(actual: &[f64], expected: &[f64]) {
    assert_eq!(actual.len(), expected.len());
    for (actual, expected) in actual.iter().zip(expected) {
        assert!((actual - expected).abs() <= 1.0e-12 * expected.abs(), "{actual} is not {expected}");
    }
}

#[test]
fn unscaled_and_linear_frequencies() {
    let frequencies = |scaling| RopeConfig { theta: 10_000.0, scaling }.inverse_frequencies(8);
    assert_near(&frequencies(RopeScaling::None), &[1.0, 0.1, 0.01, 0.001]);
    assert_near(&frequencies(RopeScaling::Linear { factor: 4.0 }), &[0.25, 0.025, 0.0025, 0.00025]);
    // Without effect within `max_position_embeddings`.
    assert_near(&frequencies(RopeScaling::Dynamic { factor: 4.0 }), &[1.0, 0.1, 0.01, 0.001]);
}

/// By hand for θ = 10⁴, heads of 8, an original context of 2π·100 ≈ 628 and thresholds at 1 and 4 turns: the
/// four frequencies turn 100·f = 100, 10, 1 and 0.1 times (scaled by 628 / 628.3185).
#[test]
fn llama3_frequencies_by_hand() {
    let scaled = |low_freq_factor, high_freq_factor| {
        let scaling = RopeScaling::Llama3 {
            factor: 8.0,
            low_freq_factor,
            high_freq_factor,
            original_max_position_embeddings: 628,
        };
        RopeConfig { theta: 10_000.0, scaling }.inverse_frequencies(8)
    };
    // 0.9995 turns are below 1: divided whole.
    assert_near(&scaled(1.0, 4.0), &[1.0, 0.1, 0.00125, 0.000125]);
    // 9.9949 turns between 4 and 16: kept by (turns − 4) / 12, the rest divided by 8.
    let turns = 628.0 * 0.1 / (2.0 * std::f64::consts::PI);
    let kept = (turns - 4.0) / 12.0;
    assert_near(&scaled(4.0, 16.0), &[1.0, kept * 0.1 + (1.0 - kept) * 0.0125, 0.00125, 0.000125]);
}

/// Llama 3.2 1B: pairs 0, 14, 15, 16, 17, 18 and 31, computed apart with the published formula (wavelengths
/// 2π·θ^(2i/64) against 8192 / 4 and 8192 / 1).
#[test]
fn llama3_frequencies_of_llama_3_2() {
    let config = parse(&llama_3_2_1b()).unwrap();
    let frequencies = config.rope.inverse_frequencies(config.head_dim);
    let picked = [0, 14, 15, 16, 17, 18, 31].map(|pair: usize| frequencies[pair]);
    assert_near(&picked, &LLAMA_3_2_FREQUENCIES);
}

const LLAMA_3_2_FREQUENCIES: [f64; 7] = [
    1.0,
    0.0032114459947525913,
    0.001290547928209264,
    0.00042955679655936815,
    9.70828780262767e-05,
    1.9461638184831125e-05,
    9.418306725434909e-08,
];
