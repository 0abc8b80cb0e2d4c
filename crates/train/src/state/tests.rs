//! Every number of ranks reads what every other wrote, element for element.
#![allow(clippy::unwrap_used)]

use std::num::NonZeroU64;
use std::path::Path;
use std::thread;
use std::time::Duration;

use tessera_dist::{Deadline, Degrees, Mesh, threads};
use tessera_model::config::ModelConfig;
use tessera_model::{Model, Piece};
use tessera_ops::DType;

use super::{Moment, Owed, Patience, Position, Saver, SaverSettings, resume};
use crate::engine::{Engine, MemoryPlan, Sharing};
use crate::observe::Silent;
use crate::plan::{RunPlan, Settings, engine_settings};
use crate::schedule::Schedule;
use crate::spec::RunSpec;
use crate::time::{EpochLength, RunLength};

const IDENTITY: &str = "the data";

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
                let engine = Engine::new(Model::new(config.clone()), mesh, plan.engine_settings()).unwrap();
                part(engine, &plan);
            });
        }
    });
}

/// A value that no other element of any tensor or moment shares by accident.
fn value(kind: usize, name: &str, element: usize) -> f32 {
    let mix = |hash: u32, word: u32| (hash ^ word).wrapping_mul(0x9e37_79b1).rotate_left(13);
    let hash = name.bytes().fold(kind as u32, |hash, byte| mix(hash, byte.into()));
    mix(hash, element as u32) as f32 / u32::MAX as f32
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

fn save(folder: &Path, config: &ModelConfig, degrees: Degrees) {
    on_ranks(config, degrees, |engine, plan| {
        each_piece(&engine, |kind, piece, values| {
            for (place, target) in values.iter_mut().enumerate() {
                *target = value(kind, &piece.parameter.name, piece.first + place);
            }
        });
        let settings = SaverSettings {
            folder: folder.to_owned(),
            keep: None,
            patience: Patience { patience: Duration::from_secs(60), hurried: Default::default() },
        };
        let mut saver = Saver::new(settings);
        let moment = Moment {
            plan,
            position: &Position { batch: 3, ..Position::default() },
            data_identity: IDENTITY,
            owed: Owed::default(),
            weights_only: false,
        };
        saver.start(&engine, &moment, degrees.shard <= 2).unwrap();
        saver.finish().unwrap();
    });
}

fn assert_read(folder: &Path, config: &ModelConfig, degrees: Degrees) {
    on_ranks(config, degrees, |mut engine, plan| {
        let resumed = resume(folder, &mut engine, plan, IDENTITY, &Silent).unwrap().unwrap();
        assert_eq!(resumed.position.batch, 3);
        each_piece(&engine, |kind, piece, values| {
            for (place, &found) in values.iter().enumerate() {
                let (name, element) = (&piece.parameter.name, piece.first + place);
                assert_eq!(found, value(kind, name, element), "{name}, element {element}, buffer {kind}");
            }
        });
    });
}

fn ranks(shard: usize) -> Degrees {
    Degrees { shard, replicate: 1, context: 1 }
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
