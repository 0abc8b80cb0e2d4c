//! Folders in Hugging Face's layout: weights of each dtype, shards, and everything that can be wrong with them.

use std::fs;
use std::path::Path;

use half::{bf16, f16};
use safetensors::Dtype;
use tessera_checkpoint::huggingface::{HubOptions, ModelLocation, ModelSource, SafetensorsSource};
use tessera_checkpoint::{StoredDType, WeightSource};

use crate::{TOKENIZER, f32_bytes, values, write_safetensors};

/// Opens what is at `path` and gives the error that must come, as text.
fn error(folder: &Path) -> String {
    SafetensorsSource::open(folder).unwrap_err().to_string()
}

#[test]
fn each_dtype_is_read_as_fp32_in_any_piece() {
    let expected: Vec<f32> = (0..10_000).map(|index| (index as f32 - 5000.0) / 8.0).collect();
    let bf16s: Vec<u8> = expected.iter().flat_map(|value| bf16::from_f32(*value).to_le_bytes()).collect();
    let f16s: Vec<u8> = expected.iter().flat_map(|value| f16::from_f32(*value).to_le_bytes()).collect();
    let cases = [
        (Dtype::F32, StoredDType::F32, f32_bytes(&expected)),
        (Dtype::BF16, StoredDType::Bf16, bf16s),
        (Dtype::F16, StoredDType::F16, f16s),
    ];
    for (dtype, stored, bytes) in cases {
        let folder = tempfile::tempdir().unwrap();
        write_safetensors(&folder.path().join("model.safetensors"), dtype, &[("w", &[100, 100], bytes)]);
        let source = SafetensorsSource::open(folder.path()).unwrap();
        assert_eq!(source.tensors()["w"].dtype, stored);
        let tolerance = if stored == StoredDType::Bf16 { 4.0 } else { 0.25 };
        let all = values(&source, "w");
        for (value, expected) in all.iter().zip(&expected) {
            assert!((value - expected).abs() <= tolerance, "{value} {expected}");
        }
        let mut piece = vec![0.0; 5001];
        source.read("w", 4321, &mut piece).unwrap();
        assert_eq!(piece, all[4321..9322]);
        let problem = source.read("w", 5000, &mut piece).unwrap_err().to_string();
        assert!(problem.contains("5000..10001") && problem.contains("which has 10000"), "{problem}");
        assert!(source.read("v", 0, &mut piece).unwrap_err().to_string().contains("no tensor \"v\""));
    }
}

fn write_shards(folder: &Path) {
    let (first, second) = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors");
    write_safetensors(&folder.join(first), Dtype::F32, &[("a", &[2], f32_bytes(&[1.0, 2.0]))]);
    write_safetensors(&folder.join(second), Dtype::F32, &[("b", &[1], f32_bytes(&[3.0]))]);
    let index = format!(r#"{{"metadata":{{}},"weight_map":{{"a":"{first}","b":"{second}"}}}}"#);
    fs::write(folder.join("model.safetensors.index.json"), index).unwrap();
}

#[test]
fn shards_are_one_source() {
    let folder = tempfile::tempdir().unwrap();
    write_shards(folder.path());
    let source = SafetensorsSource::open(folder.path()).unwrap();
    assert_eq!((values(&source, "a"), values(&source, "b")), (vec![1.0, 2.0], vec![3.0]));
}

#[test]
fn wrong_shards_are_named() {
    let shards = || {
        let folder = tempfile::tempdir().unwrap();
        write_shards(folder.path());
        folder
    };
    let replace = |folder: &Path, from: &str, to: &str| {
        let path = folder.join("model.safetensors.index.json");
        let index = fs::read_to_string(&path).unwrap();
        fs::write(path, index.replacen(from, to, 1)).unwrap();
    };
    let folder = shards();
    fs::remove_file(folder.path().join("model-00002-of-00002.safetensors")).unwrap();
    assert!(
        error(folder.path()).contains("names the shard model-00002-of-00002.safetensors, which is not in")
    );

    let folder = shards();
    replace(folder.path(), r#""b":"#, r#""c":"#);
    assert!(error(folder.path()).contains("holds tensor \"c\", which is not there"));

    let folder = shards();
    replace(folder.path(), "model-00001", "../model-00001");
    assert!(error(folder.path()).contains("not a plain file name"));

    let folder = shards();
    let second = folder.path().join("model-00002-of-00002.safetensors");
    write_safetensors(&second, Dtype::F32, &[("b", &[1], f32_bytes(&[3.0])), ("a", &[1], f32_bytes(&[0.0]))]);
    let text = error(folder.path());
    assert!(
        text.contains("tensor \"a\" lies in this file and in") && text.contains("model-00001-of-00002"),
        "{text}"
    );
}

#[test]
fn damaged_files_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.safetensors");
    write_safetensors(&path, Dtype::F32, &[("w", &[100], f32_bytes(&[1.0; 100]))]);
    let whole = fs::read(&path).unwrap();
    for length in [0, 3, 8, 20, whole.len() - 1] {
        fs::write(&path, &whole[..length]).unwrap();
        assert!(error(folder.path()).contains("truncated"), "{length}: {}", error(folder.path()));
    }
    fs::write(&path, [&[255; 8][..], &whole[8..]].concat()).unwrap();
    assert!(error(folder.path()).contains("damaged"));

    write_safetensors(&path, Dtype::F8_E4M3, &[("w", &[4], vec![0; 4])]);
    let text = error(folder.path());
    assert!(text.contains("\"w\" is stored as F8_E4M3") && text.contains("model.safetensors"), "{text}");
}

#[test]
fn pickles_are_refused_with_the_fix() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("pytorch_model.bin"), b"").unwrap();
    assert!(
        error(folder.path()).contains("pytorch_model.bin, a pickle")
            && error(folder.path()).contains("save_pretrained")
    );
    let empty = tempfile::tempdir().unwrap();
    assert!(error(empty.path()).contains("neither model.safetensors nor model.safetensors.index.json"));
}

fn open(folder: &Path) -> Result<ModelSource, String> {
    let location = ModelLocation::parse(folder.to_str().unwrap()).unwrap();
    ModelSource::open(&location, &HubOptions::from_env()).map_err(|error| error.to_string())
}

#[test]
fn a_folder_gives_its_parts_as_they_are() {
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| fs::write(folder.path().join(name), text).unwrap();
    assert!(open(folder.path()).unwrap_err().contains("there is no config.json"));
    write("config.json", r#"{"z": 1, "a": {"rope_theta": 1e6}}"#);
    write("tokenizer.model", "");
    let problem = open(folder.path()).unwrap_err();
    assert!(problem.contains("tokenizer.model but no tokenizer.json") && problem.contains("save_pretrained"));
    write("tokenizer.json", TOKENIZER);
    write("chat_template.jinja", "{{ x }}");
    write("generation_config.json", "{\"eos_token_id\": 2}");
    let model = open(folder.path()).unwrap();
    assert_eq!(model.config.to_string(), r#"{"z":1,"a":{"rope_theta":1000000.0}}"#);
    assert_eq!(model.tokenizer_json, TOKENIZER.as_bytes());
    assert_eq!(model.chat_template.as_deref(), Some("{{ x }}"));
    assert_eq!(model.generation_config.as_ref().unwrap()["eos_token_id"], 2);
    let names: Vec<&str> = model.files.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(names, ["generation_config.json", "tokenizer.json", "chat_template.jinja", "tokenizer.model"]);
    // Without weights it still opens: a random start needs none.
    assert!(model.open_weights().is_err());

    write("chat_template.jinja", "{{ y }}");
    assert_ne!(open(folder.path()).unwrap().identity, model.identity);
    write("tokenizer.json", "{\"version\": ");
    let problem = open(folder.path()).unwrap_err();
    assert!(problem.contains("tokenizer.json: not valid JSON") && problem.contains("line 1"), "{problem}");
}
