//! Exports: written in pieces and read back.

use std::fs;

use safetensors::Dtype;
use serde_json::{Value, json};
use tessera_checkpoint::WeightSource;
use tessera_checkpoint::huggingface::{
    Export, ExportDType, ExportOptions, Extras, HuggingFaceError, SafetensorsSource, check_tensors,
};

use crate::values;

fn options<'a>(
    dtype: ExportDType,
    config: &'a Value,
    side_files: &'a [(String, Vec<u8>)],
) -> ExportOptions<'a> {
    ExportOptions { dtype, max_shard_bytes: 100, config, side_files }
}

fn tensors() -> Vec<(String, Vec<usize>)> {
    [("model.embed_tokens.weight", vec![5, 4]), ("b", vec![3]), ("c", vec![16, 4])]
        .map(|(name, shape)| (name.to_owned(), shape))
        .to_vec()
}

fn filled(count: usize, first: f32) -> Vec<f32> {
    (0..count).map(|index| first + index as f32).collect()
}

#[test]
fn pieces_in_any_order_come_back_from_shards() {
    let root = tempfile::tempdir().unwrap();
    let folder = root.path().join("huggingface/ba3");
    let config = json!({"torch_dtype": "bfloat16", "tie_word_embeddings": true, "x": {"y": null}});
    let side_files = [("tokenizer.json".to_owned(), b"{}".to_vec())];
    let mut export =
        Export::create(&folder, &tensors(), &options(ExportDType::F32, &config, &side_files)).unwrap();
    export.write_range("c", 40, &filled(24, 140.0)).unwrap();
    export.write("b", &filled(3, -1.0)).unwrap();
    export.write_range("c", 0, &filled(40, 100.0)).unwrap();
    assert!(!folder.exists());
    export.write("model.embed_tokens.weight", &filled(20, 0.5)).unwrap();
    export.finish().unwrap();

    let names = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"];
    for name in names {
        let bytes = fs::read(folder.join(name)).unwrap();
        let (header, metadata) = safetensors::SafeTensors::read_metadata(&bytes).unwrap();
        assert_eq!(header % 8, 0);
        assert_eq!(metadata.metadata().as_ref().unwrap()["format"], "pt");
    }
    let index: Value =
        serde_json::from_slice(&fs::read(folder.join("model.safetensors.index.json")).unwrap()).unwrap();
    let places = json!({"b": names[0], "c": names[1], "model.embed_tokens.weight": names[0]});
    assert_eq!(index, json!({"metadata": {"total_size": 4 * 87}, "weight_map": places}));
    let source = SafetensorsSource::open(&folder).unwrap();
    check_tensors(&source, &tensors(), Extras { tied: None, buffers: &[] }).unwrap();
    assert_eq!(values(&source, "c"), filled(64, 100.0));
    assert_eq!(values(&source, "b"), filled(3, -1.0));
    assert_eq!(values(&source, "model.embed_tokens.weight"), filled(20, 0.5));
    let exported: Value = serde_json::from_slice(&fs::read(folder.join("config.json")).unwrap()).unwrap();
    assert_eq!(exported, json!({"torch_dtype": "float32", "tie_word_embeddings": true, "x": {"y": null}}));
    assert_eq!(fs::read(folder.join("tokenizer.json")).unwrap(), b"{}");
}

#[test]
fn one_file_has_no_index_and_halves_are_rounded() {
    let root = tempfile::tempdir().unwrap();
    for (dtype, stored, expected) in [
        (ExportDType::Bf16, Dtype::BF16, [1.0, 1.0078125, -3.0]),
        (ExportDType::F16, Dtype::F16, [1.0009766, 1.0039063, -3.0]),
    ] {
        let folder = root.path().join(dtype.name());
        let tensor = [("w".to_owned(), vec![3])];
        let mut export = Export::create(&folder, &tensor, &options(dtype, &json!({}), &[])).unwrap();
        export.write("w", &[1.001, 1.004, -3.0]).unwrap();
        export.finish().unwrap();
        let bytes = fs::read(folder.join("model.safetensors")).unwrap();
        let stored_as = safetensors::SafeTensors::deserialize(&bytes).unwrap().tensor("w").unwrap().dtype();
        assert_eq!(stored_as, stored);
        assert_eq!(values(&SafetensorsSource::open(&folder).unwrap(), "w"), expected);
        assert!(!folder.join("model.safetensors.index.json").exists());
    }
}

#[test]
fn what_is_missing_doubled_or_not_finite_is_refused() {
    let root = tempfile::tempdir().unwrap();
    let folder = root.path().join("ba1");
    let config = json!({});
    let create = |dtype| Export::create(&folder, &tensors(), &options(dtype, &config, &[])).unwrap();
    let text = |result: Result<(), HuggingFaceError>| result.unwrap_err().to_string();

    let mut export = create(ExportDType::F16);
    assert!(text(export.write("d", &[1.0])).contains("no tensor \"d\""));
    assert!(text(export.write("b", &[1.0])).contains("has 3 elements, got 1"));
    assert!(text(export.write_range("b", 2, &[1.0, 2.0])).contains("2..4"));
    assert!(text(export.write("b", &[1.0, 70_000.0, 0.0])).contains("not finite in float16"));
    export.write_range("c", 4, &[0.0; 8]).unwrap();
    assert!(text(export.write_range("c", 11, &[0.0; 2])).contains("11..13 of tensor \"c\" overlap"));
    let problem = text(export.finish());
    assert!(problem.contains("not written whole: b, c, model.embed_tokens.weight"), "{problem}");
    assert!(text(create(ExportDType::F32).write("b", &[f32::NAN; 3])).contains("not finite in float32"));
    // Nothing is left of what was not finished.
    assert_eq!(fs::read_dir(root.path()).unwrap().count(), 0);

    let twice = [("b".to_owned(), vec![1]), ("b".to_owned(), vec![1])];
    let problem = Export::create(&folder, &twice, &options(ExportDType::F32, &config, &[])).unwrap_err();
    assert!(problem.to_string().contains("given twice"));
}

#[test]
fn an_empty_tensor_needs_no_writing() {
    let root = tempfile::tempdir().unwrap();
    let tensors = [("none".to_owned(), vec![0, 4])];
    let export =
        Export::create(&root.path().join("e"), &tensors, &options(ExportDType::F32, &json!({}), &[]))
            .unwrap();
    export.finish().unwrap();
    let source = SafetensorsSource::open(&root.path().join("e")).unwrap();
    assert_eq!(source.tensors()["none"].shape, [0, 4]);
}
