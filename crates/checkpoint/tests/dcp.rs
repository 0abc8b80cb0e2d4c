//! Checkpoint folders: what Composer's writer wrote is read bit for bit, what we write is read back for any number
//! of ranks, and damage is found.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use half::{bf16, f16};
use safetensors::{Dtype, SafeTensors, tensor::TensorView};
use tessera_checkpoint::dcp::pickle::{self, Protocol, StorageReference, TensorReference, TimeDelta, Value};
use tessera_checkpoint::dcp::{
    ComposerWeights, DcpError, DcpReader, ElementType, ItemFault, MetadataFault, RankMetadata, RankWriter,
    SaveId, StatePath, WriteFault, write_metadata,
};
use tessera_checkpoint::{StoredDType, WeightSource};

fn fixture() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/composer-sharded")
}

fn expected() -> BTreeMap<String, (Vec<usize>, Vec<u32>)> {
    let bytes = fs::read(fixture().join("weights.safetensors")).unwrap();
    let tensors = SafeTensors::deserialize(&bytes).unwrap();
    let bits = |data: &[u8]| data.as_chunks::<4>().0.iter().map(|&bytes| u32::from_le_bytes(bytes)).collect();
    tensors.iter().map(|(name, view)| (name.to_owned(), (view.shape().to_vec(), bits(view.data())))).collect()
}

fn assert_is_expected(weights: &ComposerWeights) {
    let expected = expected();
    assert!(weights.tensors().keys().eq(expected.keys()));
    for (name, (shape, bits)) in &expected {
        assert_eq!(&weights.tensors()[name].shape, shape, "{name}");
        assert_eq!(weights.tensors()[name].dtype, StoredDType::F32);
        let mut out = vec![0.0; bits.len()];
        weights.read(name, 0, &mut out).unwrap();
        assert_eq!(&out.iter().map(|value| value.to_bits()).collect::<Vec<_>>(), bits, "{name}");
    }
}

/// A small generator, so that every run tries the same damage (Knuth's MMIX constants).
struct Random(u64);

impl Random {
    fn below(&mut self, limit: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as usize % limit
    }
}

/// A copy of a checkpoint folder that may be damaged.
fn copy(folder: &Path) -> tempfile::TempDir {
    let copy = tempfile::tempdir().unwrap();
    for entry in fs::read_dir(folder).unwrap() {
        let entry = entry.unwrap();
        fs::copy(entry.path(), copy.path().join(entry.file_name())).unwrap();
    }
    copy
}

#[test]
fn composers_weights_are_read_bit_for_bit() {
    assert_is_expected(&ComposerWeights::open(&fixture().join("ep1-ba5")).unwrap());
}

#[test]
fn any_range_of_composers_weights_is_read() {
    let weights = ComposerWeights::open(&fixture().join("ep1-ba5")).unwrap();
    let mut random = Random(1);
    for (name, (_, bits)) in expected() {
        for _ in 0..50 {
            let start = random.below(bits.len() + 1);
            let length = random.below(bits.len() - start + 1);
            let mut out = vec![0.0; length];
            weights.read(&name, start, &mut out).unwrap();
            assert!(
                out.iter().map(|value| value.to_bits()).eq(bits[start..start + length].iter().copied()),
                "{name}"
            );
        }
        let mut one = [0.0];
        assert!(weights.read(&name, bits.len(), &mut one).unwrap_err().to_string().contains(&name));
    }
}

#[test]
fn composers_state_is_read() {
    let reader = DcpReader::open(&fixture().join("ep1-ba5")).unwrap();
    reader.verify().unwrap();
    assert_eq!(reader.optimizer(), Some("DecoupledAdamW"));
    let name = StatePath::optimizer_state("DecoupledAdamW", "model.norm.weight", "step").to_string();
    assert!(reader.tensors()[&name].shape().is_empty());
    let mut step = [0.0];
    reader.read_elements(&name, 0, &mut step).unwrap();
    assert_eq!(step, [5.0]);
    assert_eq!(reader.object("state.timestamp.Timestamp.batch").unwrap(), Value::Int(5));
    assert_eq!(reader.object("state.run_name").unwrap().as_str(), Some("ift-tiny"));
    let betas = reader.object("state.optimizers.DecoupledAdamW.param_groups.0.betas").unwrap();
    assert_eq!(betas, Value::tuple([0.9.into(), 0.95.into()]));
    let unknown = reader.object("state.nothing").unwrap_err().to_string();
    assert!(unknown.contains("state.nothing") && unknown.contains("ep1-ba5"), "{unknown}");
    let bytes = reader.read_elements("rng.0.torch", 0, &mut step).unwrap_err();
    assert!(matches!(bytes, DcpError::NotFloating { dtype: ElementType::U8, .. }), "{bytes}");
}

#[test]
fn every_form_of_a_link_leads_to_the_checkpoint() {
    let root = tempfile::tempdir().unwrap();
    let checkpoints = root.path().join("run/checkpoints");
    fs::create_dir_all(&checkpoints).unwrap();
    fs::rename(copy(&fixture().join("ep1-ba5")).keep(), checkpoints.join("ep1-ba5")).unwrap();
    let link = checkpoints.join("latest-sharded-rank0");
    std::os::unix::fs::symlink("ep1-ba5", &link).unwrap();
    assert_is_expected(&ComposerWeights::open(&link).unwrap());
    let text = checkpoints.join("latest-sharded-rank0.symlink");
    let forms =
        ["ep1-ba5", "ep1-ba5\n", "run/checkpoints/ep1-ba5", "dbfs:/databricks/mlflow-tracking/1/a/ep1-ba5"];
    for content in forms {
        fs::write(&text, content).unwrap();
        assert_is_expected(&ComposerWeights::open(&text).unwrap());
    }
    fs::write(&text, "ep7-ba7").unwrap();
    let error = ComposerWeights::open(&text).unwrap_err().to_string();
    assert!(error.contains("ep7-ba7") && error.contains("latest-sharded-rank0.symlink"), "{error}");
    let error = ComposerWeights::open(&checkpoints).unwrap_err().to_string();
    assert!(error.contains(".metadata"), "{error}");
}

/// A `torch.save` file of `{state: {model: {model.<name>: tensor}}}`, as Composer writes it for one process.
fn monolith(path: &Path, tensors: &BTreeMap<String, (Vec<usize>, Vec<u32>)>) {
    monolith_of(path, tensors, ElementType::F32);
}

/// The same with elements of another type, as which `bits` are then to be read.
fn monolith_of(path: &Path, tensors: &BTreeMap<String, (Vec<usize>, Vec<u32>)>, dtype: ElementType) {
    let mut zip = zip::ZipWriter::new(fs::File::create(path).unwrap());
    let options = zip::write::SimpleFileOptions::default().compression_method(zip::CompressionMethod::Stored);
    let mut model = Vec::new();
    for (key, (name, (shape, bits))) in tensors.iter().enumerate() {
        zip.start_file(format!("ep1-ba5-rank0/data/{key}"), options).unwrap();
        zip.write_all(&bits.iter().flat_map(|bits| bits.to_le_bytes()).collect::<Vec<_>>()).unwrap();
        let storage = StorageReference { key: key.to_string().into(), dtype, elements: bits.len() };
        let strides = (0..shape.len()).map(|axis| shape[axis + 1..].iter().product()).collect();
        let tensor = TensorReference { storage: Arc::new(storage), offset: 0, shape: shape.clone(), strides };
        model.push((Value::from(format!("model.{name}").as_str()), Value::Tensor(Arc::new(tensor))));
    }
    let state = Value::dict([("model", Value::OrderedDict(model.into())), ("run_name", "tiny".into())]);
    zip.start_file("ep1-ba5-rank0/data.pkl", options).unwrap();
    zip.write_all(&pickle::write(&Value::dict([("state", state)]), Protocol::Two)).unwrap();
    zip.finish().unwrap();
}

#[test]
fn a_monolithic_checkpoint_is_read_and_its_damage_found() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("ep1-ba5-rank0.pt");
    monolith(&path, &expected());
    assert_is_expected(&ComposerWeights::open(&path).unwrap());
    let mut bytes = fs::read(&path).unwrap();
    bytes[1000] ^= 4;
    fs::write(&path, bytes).unwrap();
    let weights = ComposerWeights::open(&path).unwrap();
    let damaged: Vec<_> =
        weights.tensors().keys().filter(|name| weights.read(name, 0, &mut [0.0]).is_err()).collect();
    assert_eq!(damaged, [expected().keys().next().unwrap()]);
    fs::write(&path, b"\x80\x02}.").unwrap();
    assert!(matches!(ComposerWeights::open(&path).unwrap_err(), DcpError::NotACheckpoint { .. }));
}

#[test]
fn weights_in_fp64_are_refused_by_name_and_integers_are_left_out() {
    let root = tempfile::tempdir().unwrap();
    let whole = BTreeMap::from([("model.norm.weight".to_owned(), (vec![1], vec![0, 0]))]);
    let monolithic = root.path().join("ep1-ba5-rank0.pt");
    for (dtype, length) in [(ElementType::F64, 8), (ElementType::I64, 8), (ElementType::Bool, 1)] {
        let sharded = root.path().join(format!("{dtype:?}"));
        fs::create_dir(&sharded).unwrap();
        let mut writer = RankWriter::create(&sharded, 0, save()).unwrap();
        let path = StatePath::weight("model.norm.weight");
        writer.write_bytes(&path, dtype, &[1], 0, &vec![0; length]).unwrap();
        write_metadata(&sharded, vec![writer.finish().unwrap()]).unwrap();
        monolith_of(&monolithic, &whole, dtype);
        for path in [&sharded, &monolithic] {
            let error = ComposerWeights::open(path).unwrap_err();
            if dtype == ElementType::F64 {
                let text = error.to_string();
                assert!(text.contains("model.norm.weight") && text.contains("fp32"), "{text}");
            } else {
                assert!(error.to_string().contains("no tensors under state.model"), "{error}");
            }
        }
    }
}

type Parameters = Vec<(&'static str, ElementType, Vec<usize>, Vec<f32>)>;

/// Tensors of every shape and type that matters, with values that the type holds exactly.
fn parameters() -> Parameters {
    let mut random = Random(7);
    let mut values = |count: usize, dtype| {
        let value = |_| {
            let value = random.below(20_001) as f32 / 64.0 - 150.0;
            match dtype {
                ElementType::Bf16 => bf16::from_f32(value).to_f32(),
                ElementType::F16 => f16::from_f32(value).to_f32(),
                _ => value,
            }
        };
        (0..count).map(value).collect::<Vec<_>>()
    };
    let shapes: [(_, _, &[usize]); 6] = [
        ("model.embed_tokens.weight", ElementType::F32, &[13, 7]),
        ("model.layers.0.mlp.experts", ElementType::F32, &[3, 5, 4]),
        ("model.norm.weight", ElementType::Bf16, &[7]),
        ("model.layers.0.self_attn.q_proj.weight", ElementType::Bf16, &[6, 7]),
        ("model.layers.0.self_attn.k_proj.weight", ElementType::F16, &[1, 9]),
        ("model.one", ElementType::F32, &[1]),
    ];
    shapes
        .map(|(name, dtype, shape)| (name, dtype, shape.to_vec(), values(shape.iter().product(), dtype)))
        .to_vec()
}

fn time() -> Value {
    Value::TimeDelta(TimeDelta { days: 0, seconds: 7, microseconds: 250 })
}

fn save() -> SaveId {
    SaveId::of("a run at batch 10")
}

/// Writes `parameters` as `ranks` ranks, each a flat range of every tensor, cut unevenly; a rank may have none.
fn write(folder: &Path, parameters: &Parameters, ranks: usize) -> Vec<RankMetadata> {
    let head = StatePath::weight("lm_head.weight");
    let mut written = Vec::new();
    for rank in 0..ranks {
        let mut writer = RankWriter::create(folder, rank, save()).unwrap();
        if rank == 0 {
            writer
                .write_object(&StatePath::keys(&["state", "timestamp", "Timestamp", "total_wct"]), &time())
                .unwrap();
            writer.write_object(&StatePath::optimizer_setting("AdamW", "lr"), &0.25.into()).unwrap();
            writer
                .write_object(
                    &StatePath::keys(&["state", "tessera"]),
                    &Value::dict([("seed", u64::MAX.into())]),
                )
                .unwrap();
            let step = StatePath::optimizer_state("AdamW", "model.norm.weight", "step");
            writer.write_elements(&step, ElementType::F32, &[], 0, &[3.0]).unwrap();
            let counts = StatePath::keys(&["state", "counts"]);
            let bytes: Vec<_> = [-5_i64, 1 << 40, 7].iter().flat_map(|count| count.to_le_bytes()).collect();
            writer.write_bytes(&counts, ElementType::I64, &[3], 0, &bytes).unwrap();
        }
        for (name, dtype, shape, values) in parameters {
            let cut = |rank: usize| (values.len() * rank * rank).div_ceil(ranks * ranks);
            let (start, end) = (cut(rank), cut(rank + 1));
            let path = StatePath::weight(name);
            writer.write_elements(&path, *dtype, shape, start, &values[start..end]).unwrap();
            if *name == "model.embed_tokens.weight" && end > start {
                writer.alias(&head, &path).unwrap();
            }
        }
        let length = writer.bytes_written();
        written.push(writer.finish().unwrap());
        assert_eq!(fs::metadata(folder.join(format!("__{rank}_0.distcp"))).unwrap().len(), length);
    }
    written
}

fn assert_holds(folder: &Path, parameters: &Parameters) {
    let weights = ComposerWeights::open(folder).unwrap();
    assert_eq!(weights.tensors().len(), parameters.len() + 1);
    let tied = ("lm_head.weight", parameters[0].1, parameters[0].2.clone(), parameters[0].3.clone());
    let mut random = Random(3);
    for (name, _, shape, values) in parameters.iter().chain([&tied]) {
        assert_eq!(&weights.tensors()[*name].shape, shape);
        for trial in 0..20 {
            let start = if trial == 0 { 0 } else { random.below(values.len()) };
            let length = if trial == 0 { values.len() } else { random.below(values.len() - start + 1) };
            let mut out = vec![f32::NAN; length];
            weights.read(name, start, &mut out).unwrap();
            assert_eq!(out, values[start..start + length], "{name} {start} {length}");
        }
    }
    let reader = DcpReader::open(folder).unwrap();
    reader.verify().unwrap();
    assert_eq!(reader.optimizer(), Some("AdamW"));
    assert_eq!(reader.object("state.timestamp.Timestamp.total_wct").unwrap(), time());
    assert_eq!(reader.object("state.optimizers.AdamW.param_groups.0.lr").unwrap(), Value::Float(0.25));
    assert_eq!(reader.object("state.tessera").unwrap().get("seed"), Some(&u64::MAX.into()));
    assert_eq!(reader.tensors()["state.counts"].dtype(), ElementType::I64);
    let mut step = [0.0];
    reader.read_elements("state.optimizers.AdamW.state.model.model.norm.weight.step", 0, &mut step).unwrap();
    assert_eq!(step, [3.0]);
}

#[test]
fn any_number_of_ranks_writes_the_same_tensors() {
    for ranks in [1, 2, 3, 5] {
        let folder = tempfile::tempdir().unwrap();
        let parameters = parameters();
        let written = write(folder.path(), &parameters, ranks);
        // As it reaches rank 0: through serde.
        let sent = serde_json::to_string(&written).unwrap();
        write_metadata(folder.path(), serde_json::from_str(&sent).unwrap()).unwrap();
        assert_holds(folder.path(), &parameters);
    }
}

/// What a rank does not ask for it does not read, be it ever so damaged.
#[test]
fn a_rank_reads_its_own_range_only() {
    let folder = tempfile::tempdir().unwrap();
    let (_, _, _, values) = &parameters()[0];
    write_metadata(folder.path(), write(folder.path(), &parameters(), 3)).unwrap();
    for other in [0, 2] {
        let shard = folder.path().join(format!("__{other}_0.distcp"));
        let length = fs::metadata(&shard).unwrap().len();
        fs::write(&shard, vec![0; length as usize]).unwrap();
    }
    let name = StatePath::weight("model.embed_tokens.weight").to_string();
    let reader = DcpReader::open(folder.path()).unwrap();
    let (start, end) = (values.len().div_ceil(9), (values.len() * 4).div_ceil(9));
    let mut own = vec![0.0; end - start];
    reader.read_elements(&name, start, &mut own).unwrap();
    assert_eq!(own, values[start..end]);
    for (beyond, shard) in [(start - 1, "__0_0.distcp"), (end, "__2_0.distcp")] {
        let error = reader.read_elements(&name, beyond, &mut [0.0]).unwrap_err().to_string();
        assert!(error.contains(shard), "{error}");
    }
}

#[test]
fn tied_weights_are_stored_once() {
    let folder = tempfile::tempdir().unwrap();
    let values = vec![1.0; 100_000];
    let parameters = vec![("model.embed_tokens.weight", ElementType::F32, vec![1000, 100], values)];
    write_metadata(folder.path(), write(folder.path(), &parameters, 1)).unwrap();
    assert!(fs::metadata(folder.path().join("__0_0.distcp")).unwrap().len() < 420_000);
    assert_holds(folder.path(), &parameters);
}

#[test]
fn the_same_state_gives_the_same_bytes() {
    let bytes = || {
        let folder = tempfile::tempdir().unwrap();
        write_metadata(folder.path(), write(folder.path(), &parameters(), 2)).unwrap();
        ["__0_0.distcp", "__1_0.distcp", ".metadata"].map(|name| fs::read(folder.path().join(name)).unwrap())
    };
    assert_eq!(bytes(), bytes());
}

/// Writes a folder for PyTorch to open (`scripts/parity/check_dcp.py`) where `TESSERA_DCP_FOLDER` says: three ranks, and
/// beside it `<folder>.safetensors` with what is to be found.
#[test]
fn a_folder_for_pytorch() {
    let Some(folder) = std::env::var_os("TESSERA_DCP_FOLDER").map(PathBuf::from) else { return };
    fs::create_dir_all(&folder).unwrap();
    let parameters = parameters();
    write_metadata(&folder, write(&folder, &parameters, 3)).unwrap();
    let bytes: Vec<_> = parameters
        .iter()
        .map(|(_, dtype, _, values)| match dtype {
            ElementType::Bf16 => {
                values.iter().flat_map(|&value| bf16::from_f32(value).to_le_bytes()).collect()
            }
            ElementType::F16 => values.iter().flat_map(|&value| f16::from_f32(value).to_le_bytes()).collect(),
            _ => values.iter().flat_map(|value| value.to_le_bytes()).collect::<Vec<u8>>(),
        })
        .collect();
    let views = parameters.iter().zip(&bytes).map(|((name, dtype, shape, _), bytes)| {
        let dtype = match dtype {
            ElementType::Bf16 => Dtype::BF16,
            ElementType::F16 => Dtype::F16,
            _ => Dtype::F32,
        };
        (*name, TensorView::new(dtype, shape.clone(), bytes).unwrap())
    });
    let head = ("lm_head.weight", TensorView::new(Dtype::F32, parameters[0].2.clone(), &bytes[0]).unwrap());
    safetensors::serialize_to_file(views.chain([head]), None, &folder.with_extension("safetensors")).unwrap();
}

#[test]
fn a_shard_of_another_save_is_named() {
    let (folder, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let weight = StatePath::weight("w");
    let write = |folder: &Path, rank: usize, save: &str| {
        let mut writer = RankWriter::create(folder, rank, SaveId::of(save)).unwrap();
        writer.write_elements(&weight, ElementType::F32, &[8], rank * 4, &[1.0; 4]).unwrap();
        writer.finish().unwrap()
    };
    let ranks: Vec<_> = (0..2).map(|rank| write(folder.path(), rank, "one")).collect();
    let stranger = write(other.path(), 1, "another");
    let mixed = write_metadata(folder.path(), vec![ranks[0].clone(), stranger]).unwrap_err();
    assert!(matches!(mixed, DcpError::Write { fault: WriteFault::OtherSave, .. }), "{mixed}");
    write_metadata(folder.path(), ranks).unwrap();
    DcpReader::open(folder.path()).unwrap().verify().unwrap();

    fs::copy(other.path().join("__1_0.distcp"), folder.path().join("__1_0.distcp")).unwrap();
    let reader = DcpReader::open(folder.path()).unwrap();
    let mut values = [0.0; 4];
    reader.read_elements(&weight.to_string(), 0, &mut values).unwrap();
    let error = reader.read_elements(&weight.to_string(), 4, &mut values).unwrap_err();
    assert!(error.is_damage() && error.to_string().contains("__1_0.distcp"), "{error}");
    assert!(matches!(error, DcpError::Item { fault: ItemFault::OtherSave, .. }), "{error}");
}

#[test]
fn what_does_not_make_up_a_checkpoint_is_not_committed() {
    let folder = tempfile::tempdir().unwrap();
    let mut ranks = write(folder.path(), &parameters(), 3);
    let twice = write_metadata(folder.path(), vec![ranks[0].clone(), ranks[0].clone()]).unwrap_err();
    assert!(matches!(twice, DcpError::Write { fault: WriteFault::Twice, .. }), "{twice}");
    let missing = ranks.remove(1);
    let hole = write_metadata(folder.path(), ranks.clone()).unwrap_err();
    assert!(matches!(hole, DcpError::Write { fault: WriteFault::Cover { .. }, .. }), "{hole}");
    let overlap =
        write_metadata(folder.path(), [ranks, vec![missing.clone(), missing]].concat()).unwrap_err();
    assert!(overlap.to_string().contains("overlap"), "{overlap}");
    assert!(!folder.path().join(".metadata").exists());

    let mut writer = RankWriter::create(folder.path(), 0, save()).unwrap();
    let path = StatePath::weight("a");
    let past = writer.write_elements(&path, ElementType::F32, &[2, 2], 3, &[0.0; 2]).unwrap_err();
    assert!(
        matches!(past, DcpError::Write { fault: WriteFault::Range { start: 3, end: 5, .. }, .. }),
        "{past}"
    );
    let whole = writer.write_elements(&path, ElementType::I64, &[2], 0, &[0.0; 2]).unwrap_err();
    assert!(matches!(whole, DcpError::Write { fault: WriteFault::Conversion(_), .. }), "{whole}");
    let odd = writer.write_bytes(&path, ElementType::I64, &[2], 0, &[0; 9]).unwrap_err();
    assert!(matches!(odd, DcpError::Write { fault: WriteFault::PartialElement { .. }, .. }), "{odd}");
    let alias = writer.alias(&StatePath::weight("b"), &path).unwrap_err();
    assert!(matches!(alias, DcpError::Write { fault: WriteFault::NoTarget(_), .. }), "{alias}");
    writer.write_elements(&path, ElementType::F32, &[2], 0, &[0.0]).unwrap();
    let other = writer.write_elements(&path, ElementType::F32, &[3], 1, &[0.0]).unwrap_err();
    assert!(matches!(other, DcpError::Write { fault: WriteFault::Disagreement { .. }, .. }), "{other}");
}

#[test]
fn a_full_disk_is_told_apart() {
    let folder = tempfile::tempdir().unwrap();
    std::os::unix::fs::symlink("/dev/full", folder.path().join("__0_0.distcp")).unwrap();
    let mut writer = RankWriter::create(folder.path(), 0, save()).unwrap();
    let values = vec![0.0; 1 << 20];
    let error =
        writer.write_elements(&StatePath::weight("a"), ElementType::F32, &[1 << 20], 0, &values).unwrap_err();
    assert!(error.is_storage_full(), "{error}");
}

#[test]
fn a_truncated_or_missing_shard_is_named() {
    let folder = copy(&fixture().join("ep1-ba5"));
    let shard = folder.path().join("__1_0.distcp");
    fs::write(&shard, &fs::read(&shard).unwrap()[..200_000]).unwrap();
    let error = DcpReader::open(folder.path()).unwrap_err();
    assert!(matches!(&error, DcpError::Truncated { path, found: 200_000, .. } if *path == shard), "{error}");
    fs::remove_file(&shard).unwrap();
    assert!(DcpReader::open(folder.path()).unwrap_err().to_string().contains("__1_0.distcp"));
}

#[test]
fn a_hole_in_the_metadata_is_found() {
    let folder = copy(&fixture().join("ep1-ba5"));
    let path = folder.path().join(".metadata");
    let mut bytes = fs::read(&path).unwrap();
    // The embedding's size, 97 × 32, becomes 98 × 32.
    let size = bytes.windows(4).position(|window| window == [b'K', 97, b'K', 32]).unwrap();
    bytes[size + 1] = 98;
    fs::write(&path, bytes).unwrap();
    let error = DcpReader::open(folder.path()).unwrap_err();
    assert!(matches!(&error, DcpError::Metadata { fault: MetadataFault::Cover { .. }, .. }), "{error}");
    assert!(error.to_string().contains("embed_tokens"), "{error}");
}

/// Every tensor and object of an open checkpoint, for comparison.
fn content(reader: &DcpReader) -> Option<(Vec<Vec<u32>>, Vec<Value>)> {
    let tensors = reader.tensors().iter().filter(|(_, tensor)| tensor.dtype().weight_type().is_some());
    let tensors = tensors.map(|(name, tensor)| {
        let mut out = vec![0.0; tensor.elements()];
        reader.read_elements(name, 0, &mut out).ok()?;
        Some(out.iter().map(|value| value.to_bits()).collect())
    });
    let tensors = tensors.collect::<Option<_>>()?;
    Some((tensors, reader.objects().map(|name| reader.object(name).ok()).collect::<Option<_>>()?))
}

#[test]
fn flipped_bits_in_a_shard_are_found_or_harmless() {
    for folder in [copy(&fixture().join("ep1-ba5")), {
        let folder = tempfile::tempdir().unwrap();
        write_metadata(folder.path(), write(folder.path(), &parameters(), 2)).unwrap();
        folder
    }] {
        let whole = content(&DcpReader::open(folder.path()).unwrap()).unwrap();
        let shard = folder.path().join("__0_0.distcp");
        let bytes = fs::read(&shard).unwrap();
        let mut random = Random(11);
        let mut found = 0;
        for _ in 0..120 {
            let mut damaged = bytes.clone();
            damaged[random.below(bytes.len())] ^= 1 << random.below(8);
            fs::write(&shard, damaged).unwrap();
            let reader = DcpReader::open(folder.path()).unwrap();
            match reader.verify() {
                Ok(()) => assert_eq!(content(&reader).unwrap(), whole),
                Err(error) => {
                    assert!(matches!(error, DcpError::Item { .. }), "{error}");
                    // Whoever reads without a look at everything before does not miss it either.
                    let read = content(&DcpReader::open(folder.path()).unwrap());
                    assert!(read.is_none_or(|read| read == whole), "damage was read: {error}");
                    found += 1;
                }
            }
        }
        assert!(found > 20, "{found}");
        fs::write(&shard, bytes).unwrap();
    }
}

#[test]
fn a_flipped_bit_in_a_weight_names_file_and_tensor() {
    let folder = copy(&fixture().join("ep1-ba5"));
    let (name, (_, bits)) = expected().into_iter().find(|(name, _)| name.ends_with("q_proj.weight")).unwrap();
    let wanted: Vec<_> = bits[..8].iter().flat_map(|bits| bits.to_le_bytes()).collect();
    let shard = folder.path().join("__0_0.distcp");
    let mut bytes = fs::read(&shard).unwrap();
    let position = bytes.windows(32).position(|window| window == wanted).unwrap();
    bytes[position] ^= 1;
    fs::write(&shard, bytes).unwrap();
    let weights = ComposerWeights::open(folder.path()).unwrap();
    let error = weights.read(&name, 5, &mut [0.0]).unwrap_err();
    let item = matches!(error.downcast_ref(), Some(DcpError::Item { fault: ItemFault::Checksum { .. }, .. }));
    assert!(
        item && error.to_string().contains(&name) && error.to_string().contains("__0_0.distcp"),
        "{error}"
    );
}

#[test]
fn damaged_metadata_never_panics() {
    let folder = copy(&fixture().join("ep1-ba5"));
    let path = folder.path().join(".metadata");
    let bytes = fs::read(&path).unwrap();
    let mut random = Random(5);
    let mut opened = 0;
    for trial in 0..2000 {
        let mut damaged = bytes.clone();
        for _ in 0..=trial % 4 {
            let position = random.below(bytes.len());
            damaged[position] = random.below(256) as u8;
        }
        if trial % 10 == 0 {
            damaged.truncate(random.below(bytes.len()));
        }
        fs::write(&path, damaged).unwrap();
        if let Ok(reader) = DcpReader::open(folder.path()) {
            opened += 1;
            if trial % 50 == 1 {
                let _ = reader.verify();
            }
        }
    }
    assert!(opened < 2000);
}
