//! Configs of all families with a few keys broken at random: whatever is read, nothing panics, and an error names a key.

use serde_json::Map;

use super::experts::{dbrx, mixtral};
use super::*;
use crate::Model;

const CASES: u64 = 8000;

/// SplitMix64.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound as u64) as usize
    }

    fn of<T: Clone>(&mut self, choices: &[T]) -> T {
        choices[self.below(choices.len())].clone()
    }
}

fn mistral() -> Value {
    with(
        llama_3_2_1b(),
        json!({
            "architectures": ["MistralForCausalLM"],
            "model_type": "mistral",
            "rope_scaling": "absent",
            "sliding_window": 4096,
            "tie_word_embeddings": false
        }),
    )
}

/// Values that are at the edge of what a key may hold, or beyond it, or of another type.
fn odd_values() -> Vec<Value> {
    let mut values = vec![
        json!(null),
        json!(true),
        json!(-0.0),
        json!(0.5),
        json!(1e-320),
        json!(1e308),
        json!([]),
        json!({}),
        json!([[null], {"rope_type": "llama3"}]),
        json!({"rope_type": "llama3", "factor": 1e-300, "low_freq_factor": 1, "high_freq_factor": 4}),
        json!({"rope_type": "linear", "factor": 0, "rope_theta": 1}),
        json!({"type": "dynamic", "factor": 2}),
        json!({"name": "silu"}),
        json!([1, 2, -3]),
    ];
    let texts = [
        "",
        "silu",
        "llama3",
        "LlamaForCausalLM",
        "MixtralForCausalLM",
        "dbrx",
        "bfloat16",
        "8",
        "ε`\n\u{0}",
    ];
    values.extend(texts.map(Value::from));
    values.extend([0, 1, 2, 3, 7, 64, 96, 1 << 20, i64::MAX - 1].map(Value::from));
    values.extend([-1, i64::MIN].map(Value::from));
    values.extend([(1 << 31) - 1, 1 << 31, 1 << 32, u64::MAX].map(Value::from));
    values
}

/// The config itself or one of the objects within it.
fn level<'a>(config: &'a mut Value, random: &mut Random) -> &'a mut Map<String, Value> {
    let object = config.as_object_mut().unwrap();
    let inner: Vec<String> =
        object.iter().filter(|(_, value)| value.is_object()).map(|(key, _)| key.clone()).collect();
    match inner.get(random.below(2 * inner.len().max(1))) {
        Some(key) => object[key].as_object_mut().unwrap(),
        None => object,
    }
}

/// Removes a key, gives one an odd value, gives it another's value, or brings in a key of another family.
fn mutate(config: &mut Value, families: &[Value], values: &[Value], random: &mut Random) {
    let (kind, other) = (random.below(8), random.of(families));
    let object = level(config, random);
    let keys: Vec<String> = object.keys().cloned().collect();
    let others: Vec<(String, Value)> = other.as_object().unwrap().clone().into_iter().collect();
    if keys.is_empty() || kind == 0 {
        object.extend([random.of(&others)]);
        return;
    }
    let key = random.of(&keys);
    match kind {
        1 => drop(object.remove(&key)),
        2 => drop(object.insert(key, object[&random.of(&keys)].clone())),
        _ => drop(object.insert(key, random.of(values))),
    }
}

/// What must hold for every config that is accepted.
fn check_accepted(config: &ModelConfig) {
    assert_eq!(Model::new(config.clone()).parameter_count() as u64, config.parameter_count());
    assert!(config.active_parameter_count() <= config.parameter_count());
    assert!(config.parameter_count() <= i64::MAX as u64);
    assert!(config.training_flops_per_token(config.max_position_embeddings).full.is_finite());
    if config.head_dim <= 1 << 10 {
        let frequencies = config.rope.inverse_frequencies(config.head_dim);
        assert!(frequencies.iter().all(|frequency| (*frequency as f32).is_finite()), "{:?}", config.rope);
    }
}

#[test]
fn broken_configs_are_read_or_refused_by_a_key() {
    let (families, values) = ([llama_3_2_1b(), mistral(), mixtral(), dbrx()], odd_values());
    let (mut accepted, mut refused) = (0, 0);
    for case in 0..CASES {
        let mut random = Random(case);
        let mut config = random.of(&families);
        for _ in 0..=random.below(3) {
            mutate(&mut config, &families, &values, &mut random);
        }
        match parse(&config) {
            Ok(config) => {
                check_accepted(&config);
                accepted += 1;
            }
            Err(error) => {
                let message = error.to_string();
                let key = message.strip_prefix("m/config.json: `").and_then(|rest| rest.split_once('`'));
                let key = key.unwrap_or_else(|| panic!("no key is named: {message}")).0;
                let last = key.rsplit(['.', ' ']).next().unwrap();
                let known = families.iter().any(|family| holds(family, last)) || holds(&config, last);
                assert!(known || OPTIONAL.contains(&last), "{key} is no key: {message}");
                refused += 1;
            }
        }
    }
    assert!(accepted > CASES / 5 && refused > CASES / 5, "{accepted} accepted, {refused} refused");
}

/// Keys that are asked for by name and that no config here has.
const OPTIONAL: [&str; 4] =
    ["factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"];

/// Whether a key is there at any depth.
fn holds(value: &Value, key: &str) -> bool {
    match value {
        Value::Object(object) => object.contains_key(key) || object.values().any(|value| holds(value, key)),
        Value::Array(values) => values.iter().any(|value| holds(value, key)),
        _ => false,
    }
}
