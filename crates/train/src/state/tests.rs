//! Every number of ranks reads what every other wrote, element for element.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::error::Error;
use std::fs;
use std::num::NonZeroU64;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Barrier, Mutex};
use std::thread;
use std::time::Duration;

use tessera_checkpoint::dcp::{RankMetadata, RankWriter, SaveId};
use tessera_checkpoint::{StoredDType, TensorInfo, WeightSource};
use tessera_dist::{Deadline, Degrees, Mesh, threads};
use tessera_model::config::ModelConfig;
use tessera_model::{Model, Piece};
use tessera_ops::{DType, Queue};

use super::same_weights::same_weights;
use super::shards::Assembly;
use super::{Moment, Owed, Patience, Position, Saver, SaverSettings, exchange, resume};
use crate::engine::{Engine, MemoryPlan, OptimizerCounts, Sharing};
use crate::error::TrainError;
use crate::observe::Silent;
use crate::plan::{RunPlan, Settings, engine_settings};
use crate::schedule::Schedule;
use crate::spec::{ReduceDType, RunSpec};
use crate::time::{EpochLength, RunLength};

const IDENTITY: &str = "the data";
/// How far a saved engine has come: no two numbers alike.
const POSITION: Position = Position {
    epoch: 0,
    batch: 3,
    sample: 24,
    token: 190,
    batch_in_epoch: 2,
    sample_in_epoch: 16,
    token_in_epoch: 127,
    elapsed: Duration::from_micros(61_000_250),
};
const COUNTS: OptimizerCounts = OptimizerCounts { updates: 8, skipped_in_a_row: 1, skipped: 4 };

fn config(case: &str) -> ModelConfig {
    let goldens = Path::new(env!("CARGO_MANIFEST_DIR")).join("../model/tests/goldens");
    ModelConfig::load(&goldens.join(case).join("config.json")).unwrap()
}

fn plan(config: &ModelConfig) -> RunPlan {
    let text = "model: m\ntrain_data_path: d\ncontext_length: 8\nglobal_train_batch_size: 8";
    let spec = RunSpec::parse(text, Path::new("run.yaml"), &[]).unwrap();
    let settings = Settings::resolve(spec, config, || None).unwrap();
    let epoch = EpochLength { samples: 64, samples_per_batch: NonZeroU64::MIN, tokens: 512 };
    let length = RunLength { total_batches: 64, epoch };
    let model = Model::new(config.clone());
    let schedule = Schedule::resolve(&settings.scheduler, &length).unwrap();
    let alone = Sharing { ranks: 1, context: 1, lends: true };
    RunPlan {
        parameters: model.parameter_count(),
        epoch_flops: 0.0,
        schedule,
        length,
        memory: MemoryPlan::new(&model, alone, &engine_settings(&settings, 1)).unwrap(),
        answer_bytes: 0,
        process_scratch_bytes: 0,
        settings,
    }
}

/// Runs `part` on each of the ranks that `degrees` make, with an engine each.
fn on_ranks(config: &ModelConfig, degrees: Degrees, part: impl Fn(Engine, &RunPlan) + Sync) {
    let world_size = degrees.shard * degrees.replicate * degrees.context;
    let groups = threads::groups(world_size, &Deadline::new(Duration::from_secs(60))).unwrap();
    thread::scope(|scope| {
        for world in groups {
            scope.spawn(|| {
                let plan = plan(config);
                let mesh = Mesh::new(world, degrees).unwrap();
                let engine =
                    Engine::new(Queue::cpu(), Model::new(config.clone()), mesh, plan.engine_settings())
                        .unwrap();
                part(engine, &plan);
            });
        }
    });
}

/// A value that no other element of any tensor or moment shares by accident: any bits that are finite, so that negative and
/// subnormal numbers are among them.
fn value(kind: usize, name: &str, element: usize) -> f32 {
    const LARGEST_EXPONENT_BIT: u32 = 1 << 30;
    let mix = |hash: u32, word: u32| (hash ^ word).wrapping_mul(0x9e37_79b1).rotate_left(13);
    let hash = name.bytes().fold(kind as u32, |hash, byte| mix(hash, byte.into()));
    f32::from_bits(mix(hash, element as u32) & !LARGEST_EXPONENT_BIT)
}

/// Calls `body` with each piece of each of this rank's buffers: kind (the weights, then the moments), piece, values.
fn each_piece(engine: &Engine, mut body: impl FnMut(usize, &Piece<'_>, &mut [f32])) {
    for (index, unit) in engine.units().iter().enumerate() {
        let mut state = unit.state().write().unwrap();
        let state = &mut *state;
        for (kind, buffer) in std::iter::once(&mut state.master).chain(&mut state.moments).enumerate() {
            let mut view = buffer.view_mut(DType::F32);
            let values = view.as_slice_mut::<f32>().unwrap();
            for piece in engine.model().units()[index].pieces(engine.slice(index)) {
                body(kind, &piece, &mut values[piece.place.clone()]);
            }
        }
    }
}

fn fill(engine: &mut Engine) {
    engine.set_optimizer_counts(COUNTS).unwrap();
    each_piece(engine, |kind, piece, values| {
        for (place, target) in values.iter_mut().enumerate() {
            *target = value(kind, &piece.parameter.name, piece.first + place);
        }
    });
}

fn save_engine(folder: &Path, engine: &Engine, plan: &RunPlan, in_place: bool) -> Result<(), TrainError> {
    let settings = SaverSettings {
        folder: folder.to_owned(),
        keep: None,
        patience: Patience { patience: Duration::from_secs(60), hurried: Default::default() },
    };
    let mut saver = Saver::new(settings);
    let moment = Moment {
        plan,
        position: &POSITION,
        data_identity: IDENTITY,
        owed: Owed::default(),
        weights_only: false,
    };
    saver.start(engine, &moment, in_place)?;
    saver.finish().map(drop)
}

fn save(folder: &Path, config: &ModelConfig, degrees: Degrees) {
    on_ranks(config, degrees, |mut engine, plan| {
        fill(&mut engine);
        save_engine(folder, &engine, plan, degrees.shard <= 2).unwrap();
    });
}

/// Checks that what was saved is there again on other ranks: weights and moments bit for bit, and all that is counted.
fn assert_read(folder: &Path, config: &ModelConfig, degrees: Degrees) {
    let read = Mutex::new(0);
    on_ranks(config, degrees, |mut engine, plan| {
        let resumed = resume(folder, &mut engine, plan, IDENTITY, &Silent).unwrap().unwrap();
        assert_eq!(resumed.position, POSITION);
        assert_eq!(engine.optimizer_counts().unwrap(), COUNTS);
        each_piece(&engine, |kind, piece, values| {
            for (place, &found) in values.iter().enumerate() {
                let (name, element) = (&piece.parameter.name, piece.first + place);
                let expected = value(kind, name, element);
                assert_eq!(
                    found.to_bits(),
                    expected.to_bits(),
                    "{name}, element {element}, buffer {kind}: {found}, not {expected}"
                );
            }
            *read.lock().unwrap() += values.len();
        });
    });
    // Weights and two moments of every parameter, once in each copy of the model.
    let all = Model::new(config.clone()).parameter_count() * 3 * degrees.replicate;
    assert_eq!(read.into_inner().unwrap(), all, "not every element was looked at");
}

fn ranks(shard: usize) -> Degrees {
    Degrees { shard, replicate: 1, context: 1 }
}

#[test]
fn what_came_after_a_checkpoint_had_its_default() {
    let config = config("tied_gqa");
    let settings = plan(&config).settings;
    let mut saved = settings.to_json().unwrap();
    saved["parallel"].as_object_mut().unwrap().remove("reduce_dtype").unwrap();
    assert_eq!(settings.difference(&saved).unwrap(), None);
    saved.as_object_mut().unwrap().remove("parallel").unwrap();
    assert_eq!(settings.difference(&saved).unwrap(), None);
    let mut rounded = settings;
    rounded.parallel.reduce_dtype = ReduceDType::Bf16;
    let difference = rounded.difference(&saved).unwrap().unwrap();
    assert_eq!(
        (difference.key.as_str(), difference.before.as_str(), difference.now.as_str()),
        ("parallel.reduce_dtype", "\"fp32\"", "\"bf16\"")
    );
}

#[test]
fn every_world_size_reads_every_other() {
    for case in ["tied_gqa", "dbrx"] {
        let config = config(case);
        for saved in [1, 2, 3, 4, 8] {
            let folder = tempfile::tempdir().unwrap();
            save(folder.path(), &config, ranks(saved));
            for read in [1, 2, 3, 4, 8] {
                assert_read(folder.path(), &config, ranks(read));
            }
        }
    }
}

/// Ranks 0 and 2 hold the one half of every unit, ranks 1 and 3 the other.
#[test]
fn ranks_whose_replicated_state_differs_save_nothing_and_are_named() {
    let folder = tempfile::tempdir().unwrap();
    let differing = |part: &(dyn Fn(&mut Engine) + Sync)| {
        let said = Mutex::new(Vec::new());
        on_ranks(&config("tied_gqa"), Degrees { shard: 2, replicate: 2, context: 1 }, |mut engine, plan| {
            fill(&mut engine);
            if engine.units().mesh().world().rank() == 3 {
                part(&mut engine);
            }
            match save_engine(folder.path(), &engine, plan, true) {
                Err(TrainError::Diverged { rank, other, .. }) => said.lock().unwrap().push((rank, other)),
                ended => panic!("{ended:?}"),
            }
        });
        said.into_inner().unwrap()
    };
    let weights = differing(&|engine| {
        let mut state = engine.units().iter().next().unwrap().state().write().unwrap();
        let mut view = state.master.view_mut(DType::F32);
        let last = view.as_slice_mut::<f32>().unwrap().last_mut().unwrap();
        *last = f32::from_bits(last.to_bits() ^ 1);
    });
    assert_eq!(weights, [(3, 1); 4]);
    let counts = differing(&|engine| {
        let counts = OptimizerCounts { updates: 1, ..OptimizerCounts::default() };
        engine.set_optimizer_counts(counts).unwrap();
    });
    assert_eq!(counts, [(3, 0); 4]);
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
}

#[test]
fn hybrid_layouts_read_and_write_the_same_checkpoints() {
    let config = config("mixtral");
    let hybrid = Degrees { shard: 2, replicate: 2, context: 1 };
    let folder = tempfile::tempdir().unwrap();
    save(folder.path(), &config, hybrid);
    assert_read(folder.path(), &config, ranks(3));
    let folder = tempfile::tempdir().unwrap();
    save(folder.path(), &config, ranks(3));
    assert_read(folder.path(), &config, hybrid);
}

/// What the first rank, which has the folder, and the second come to when each does its own part of a checkpoint.
fn assemble(
    folder: &Path,
    first: impl Fn(Assembly) -> String + Sync,
    second: impl Fn(Assembly) -> String + Sync,
) -> Vec<String> {
    let said = Mutex::new(vec![String::new(); 2]);
    on_ranks(&config("tied_gqa"), ranks(2), |engine, _| {
        let patience = Patience { patience: Duration::from_secs(600), hurried: Arc::default() };
        let assembly =
            Assembly::begin(&engine, &POSITION, folder.join("ep0-ba3"), patience).unwrap().unwrap();
        let rank = assembly.rank();
        let text = if rank == 0 { first(assembly) } else { second(assembly) };
        said.lock().unwrap()[rank] = text;
    });
    said.into_inner().unwrap()
}

fn shard(assembly: &Assembly) -> RankMetadata {
    let id = SaveId::of("a test");
    RankWriter::create(&assembly.folder(), assembly.rank(), id).unwrap().finish().unwrap()
}

fn complete(assembly: Assembly) -> String {
    let shard = shard(&assembly);
    assembly.complete(shard).map_or_else(|error| error.to_string(), |whole| format!("whole: {whole}"))
}

#[test]
fn a_rank_that_ends_without_its_shard_is_not_waited_for() {
    let folder = tempfile::tempdir().unwrap();
    let said = assemble(folder.path(), complete, |assembly| {
        drop(assembly);
        String::new()
    });
    assert!(said[0].contains("rank 1") && said[0].contains("its thread ended"), "{said:?}");
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0, "nothing is half there");
}

#[test]
fn a_rank_that_comes_after_rank_0_gave_up_goes_on() {
    let folder = tempfile::tempdir().unwrap();
    let given_up = Barrier::new(2);
    let said = assemble(
        folder.path(),
        |assembly| {
            drop(assembly);
            given_up.wait();
            String::new()
        },
        |assembly| {
            given_up.wait();
            let failure = RankWriter::create(&assembly.folder(), 1, SaveId::of("a test")).unwrap_err();
            assembly.give_up(failure.into()).map_or_else(|error| error.to_string(), |()| "goes on".to_owned())
        },
    );
    assert_eq!(said[1], "goes on");
}

/// A rank of an attempt before this one may be late: what it leaves must not stand for this attempt's shard.
#[test]
fn a_note_of_an_earlier_attempt_is_nobodys() {
    let folder = tempfile::tempdir().unwrap();
    let earlier = Mutex::new(None);
    assemble(
        folder.path(),
        |assembly| {
            drop(assembly);
            String::new()
        },
        |assembly| {
            *earlier.lock().unwrap() = Some(assembly);
            String::new()
        },
    );
    let late = Mutex::new(earlier.into_inner().unwrap());
    let handed_in = Barrier::new(2);
    let said = assemble(
        folder.path(),
        |assembly| {
            let late = late.lock().unwrap().take().unwrap();
            let shard = shard(&assembly);
            late.complete(shard).unwrap();
            handed_in.wait();
            complete(assembly)
        },
        |assembly| {
            handed_in.wait();
            thread::sleep(Duration::from_millis(100));
            assembly.give_up(TrainError::SaverFailed).unwrap_err().to_string()
        },
    );
    assert!(said[0].contains("rank 1") && said[0].contains(&said[1]), "{said:?}");
    assert!(!folder.path().join("ep0-ba3").exists());
}

/// A copy of weights in a file of its own, in which one bit of one element may be another.
struct Copied {
    file: PathBuf,
    tensors: BTreeMap<String, TensorInfo>,
    flipped: Option<(String, usize)>,
    read: AtomicUsize,
}

impl Copied {
    fn of(file: PathBuf, config: &ModelConfig, flipped: Option<(String, usize)>) -> Self {
        let tensors = Model::new(config.clone()).tensors().into_iter();
        let tensors = tensors.map(|(name, shape)| (name, TensorInfo { shape, dtype: StoredDType::F32 }));
        Self { file, tensors: tensors.collect(), flipped, read: AtomicUsize::new(0) }
    }
}

impl WeightSource for Copied {
    fn tensors(&self) -> &BTreeMap<String, TensorInfo> {
        &self.tensors
    }

    fn read(&self, name: &str, start: usize, out: &mut [f32]) -> Result<(), Box<dyn Error + Send + Sync>> {
        self.read.fetch_add(out.len(), Ordering::Relaxed);
        for (element, out) in (start..).zip(out) {
            let flips = self.flipped.as_ref().is_some_and(|flipped| *flipped == (name.to_owned(), element));
            *out = f32::from_bits(value(0, name, element).to_bits() ^ u32::from(flips));
        }
        Ok(())
    }

    fn files(&self) -> Vec<PathBuf> {
        vec![self.file.clone()]
    }
}

/// The name and element of places all over this rank's slices.
fn places(engine: &Engine) -> Vec<(String, usize)> {
    let mut places = Vec::new();
    each_piece(engine, |kind, piece, values| {
        let elements = if kind == 0 { vec![0, values.len() / 2, values.len() - 1] } else { Vec::new() };
        let elements = elements.into_iter().map(|place| (piece.parameter.name.clone(), piece.first + place));
        places.extend(elements);
    });
    places
}

#[test]
fn one_bit_that_is_another_in_one_copy_of_the_weights_is_found() {
    let config = config("tied_gqa");
    let folder = tempfile::tempdir().unwrap();
    let file = |copy: usize| folder.path().join(copy.to_string());
    (0..4).for_each(|copy| fs::write(file(copy), "").unwrap());
    let hybrid = Degrees { shard: 2, replicate: 2, context: 1 };
    for (degrees, nodes) in [(ranks(2), 2), (ranks(3), 3), (ranks(4), 2), (hybrid, 2), (hybrid, 4)] {
        let culprit = 1;
        on_ranks(&config, degrees, |engine, _| {
            let rank = engine.units().mesh().world().rank();
            let copy = rank % nodes;
            let own = places(&engine);
            let places = exchange(engine.units().mesh().world(), "test", &own).unwrap().swap_remove(culprit);
            for place in places.into_iter().map(Some).chain([None]) {
                let expected = place.clone().map(|(name, _)| name);
                let weights = Copied::of(file(copy), &config, place.filter(|_| copy == culprit % nodes));
                engine.load_weights(engine.model().units(), &weights, |_| {}).unwrap();
                match (same_weights(&engine, &weights, "a test"), expected) {
                    (Ok(()), None) => {}
                    (Err(TrainError::OtherWeights { ranks, name }), Some(expected)) => {
                        assert_eq!(name, expected, "{degrees:?}");
                        assert!(ranks.iter().any(|rank| rank % nodes == culprit % nodes), "{ranks:?}");
                    }
                    (found, expected) => panic!("{degrees:?}: {found:?}, not {expected:?}"),
                }
            }
        });
    }
}

#[test]
fn ranks_that_see_one_copy_of_the_weights_read_nothing_twice() {
    let config = config("tied_gqa");
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("weights");
    fs::write(&file, "").unwrap();
    let weights = Copied::of(file, &config, None);
    on_ranks(&config, ranks(3), |engine, _| {
        engine.load_weights(engine.model().units(), &weights, |_| {}).unwrap();
        same_weights(&engine, &weights, "a test").unwrap();
    });
    assert_eq!(weights.read.into_inner(), Model::new(config).parameter_count());
}
