#![allow(clippy::unwrap_used)]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;

use serde::Deserialize;

use super::*;
use crate::{Model, Names, Naming};

/// The counts that the headers of the models' files add up to, by the names of the configs.
const COUNTS: [(u64, &[&str]); 14] = [
    (1_235_814_400, &["llama-3.2-1b"]),
    (3_212_749_824, &["llama-3.2-3b"]),
    (8_030_261_248, &["llama-3.1-8b", "llama-3-8b"]),
    (70_553_706_496, &["llama-3.1-70b", "llama-3-70b"]),
    (405_853_388_800, &["llama-3.1-405b"]),
    (6_738_415_616, &["llama-2-7b", "codellama-7b-python"]),
    (13_015_864_320, &["llama-2-13b", "codellama-13b-python"]),
    (68_976_648_192, &["llama-2-70b"]),
    (6_738_546_688, &["codellama-7b"]),
    (13_016_028_160, &["codellama-13b"]),
    (33_743_970_304, &["codellama-34b"]),
    (7_241_732_096, &["mistral-7b-v0.1", "mistral-7b-v0.2"]),
    (46_702_792_704, &["mixtral-8x7b"]),
    (131_596_523_520, &["dbrx"]),
];

/// By hand: two of Mixtral's eight experts, four of DBRX's sixteen, and everything that is no expert.
const ACTIVE: [(u64, &str); 2] = [(12_879_925_248, "mixtral-8x7b"), (36_469_708_800, "dbrx")];

#[test]
fn every_model_has_its_exact_number_of_parameters() {
    for entry in all() {
        let config = entry.config().unwrap();
        let (count, _) = COUNTS.iter().find(|(_, names)| names.contains(&entry.config.name)).unwrap();
        assert_eq!(config.parameter_count(), *count, "{}", entry.name);
        let active = ACTIVE.iter().find(|(_, name)| *name == entry.config.name);
        assert_eq!(
            config.active_parameter_count(),
            active.map_or(*count, |(active, _)| *active),
            "{}",
            entry.name
        );
        assert_eq!(Model::new(config).parameter_count() as u64, *count, "{}", entry.name);
    }
}

/// The tensors of a model's files as `transformers` writes them; `scripts/goldens/make_manifests.py` makes these.
#[derive(Deserialize)]
struct Manifest {
    blocks: usize,
    block: BTreeMap<String, Vec<usize>>,
    /// A block's tensors where all experts lie in two of them.
    fused: Option<BTreeMap<String, Vec<usize>>>,
    outside: BTreeMap<String, Vec<usize>>,
}

impl Manifest {
    fn tensors(&self, block: &BTreeMap<String, Vec<usize>>) -> BTreeMap<String, Vec<usize>> {
        let mut tensors = self.outside.clone();
        for index in 0..self.blocks {
            let number = index.to_string();
            tensors
                .extend(block.iter().map(|(name, shape)| (name.replace("{block}", &number), shape.clone())));
        }
        tensors
    }
}

fn manifests() -> BTreeMap<String, Manifest> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/manifests");
    ["llama", "mistral", "mixtral", "dbrx"]
        .into_iter()
        .flat_map(|family| {
            let text = fs::read_to_string(folder.join(format!("{family}.json"))).unwrap();
            serde_json::from_str::<BTreeMap<String, Manifest>>(&text).unwrap()
        })
        .collect()
}

#[test]
fn every_tensor_is_named_and_shaped_as_in_the_files_of_transformers() {
    let manifests = manifests();
    let tensors = |model: Model| model.tensors().into_iter().collect::<BTreeMap<_, _>>();
    for entry in all() {
        let manifest = &manifests[entry.config.name];
        let config = entry.config().unwrap();
        assert_eq!(tensors(Model::new(config.clone())), manifest.tensors(&manifest.block), "{}", entry.name);
        if let Some(fused) = &manifest.fused {
            let expected = manifest.tensors(fused);
            let names = Names::new(config.family, Naming::FusedExperts);
            assert_eq!(tensors(Model::with_names(config, names)), expected, "{}", entry.name);
        }
    }
}

#[test]
fn names_are_unique_and_found() {
    let names: BTreeSet<_> = all().iter().map(|entry| entry.name).collect();
    assert_eq!(names.len(), all().len());
    for entry in all() {
        assert_eq!(find(entry.name).unwrap().name, entry.name);
        assert_eq!(find(&entry.name.to_uppercase()).unwrap().name, entry.name);
    }
}

#[test]
fn mistrals_first_instruct_model_has_its_own_window_and_base() {
    let config = |name: &str| find(name).unwrap().config().unwrap();
    let [first, second] = ["v0.1", "v0.2"].map(|version| format!("mistralai/Mistral-7B-Instruct-{version}"));
    assert_eq!((config(&first).sliding_window, config(&first).rope.theta), (Some(4096), 1.0e4));
    assert_eq!((config(&second).sliding_window, config(&second).rope.theta), (None, 1.0e6));
    assert_eq!(find(&first).unwrap().service, ServiceStatus::NotListed);
}

#[test]
fn a_name_that_is_nearly_right_is_offered() {
    let cases = [
        ("meta-llama/Llama-3.2-1B-Instuct", "meta-llama/Llama-3.2-1B-Instruct"),
        ("Llama-3.2-3B", "meta-llama/Llama-3.2-3B"),
        ("meta-llama/Llama-3.1-8B", "meta-llama/Meta-Llama-3.1-8B"),
        ("mixtral-8x7b", "mistralai/Mixtral-8x7B-v0.1"),
        ("databricks/dbrx", "databricks/dbrx-base"),
    ];
    for (name, expected) in cases {
        let message = find(name).unwrap_err().to_string();
        assert_eq!(message, format!("`{name}` is not in the catalogue, did you mean `{expected}`?"));
    }
    let message = find("gpt2").unwrap_err().to_string();
    assert_eq!(message, "`gpt2` is not in the catalogue; `tessera models` lists what is");
}
