//! What is planned, held against what the engine does: bytes allocated, and bytes sent.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::error::Error;
use std::ops::Range;
use std::path::Path;
use std::sync::Mutex;
use std::time::Duration;

use tessera_checkpoint::{StoredDType, TensorInfo, WeightSource};
use tessera_data::MicroBatch;
use tessera_dist::{Deadline, Degrees, Mesh, Operation, Single, Wire, threads};
use tessera_model::LossScale;
use tessera_model::config::ModelConfig;

use super::*;
use crate::spec::{Offload, OptimizerSpec};

const ROWS: usize = 2;
const ROW_TOKENS: usize = 12;
/// Dense with a tied head and without; with two groups of experts a block, and with three.
const MODELS: [&str; 4] = ["tied_gqa", "untied_mha", "mixtral", "dbrx"];
const DEGREES: [Degrees; 6] = [
    Degrees { shard: 1, replicate: 1, context: 1 },
    Degrees { shard: 2, replicate: 1, context: 1 },
    Degrees { shard: 3, replicate: 1, context: 1 },
    Degrees { shard: 4, replicate: 1, context: 1 },
    Degrees { shard: 2, replicate: 2, context: 1 },
    Degrees { shard: 2, replicate: 1, context: 2 },
];

fn model(name: &str) -> Model {
    let goldens = Path::new(env!("CARGO_MANIFEST_DIR")).join("../model/tests/goldens");
    Model::new(ModelConfig::load(&goldens.join(name).join("config.json")).unwrap())
}

fn settings(context: usize, recompute: bool, residency: Residency) -> EngineSettings {
    EngineSettings {
        micro_batch_tokens: (ROWS * ROW_TOKENS).div_ceil(context),
        micro_batch_rows: ROWS,
        positions: ROW_TOKENS,
        chunk_tokens: 5,
        recompute,
        offload: Offload::None,
        residency,
        wire: Wire::default(),
        optimizer: Optimizer { spec: OptimizerSpec::default(), peak_learning_rate: 1e-3 },
        max_grad_norm: 1.0,
    }
}

/// Every combination that changes what is allocated or sent.
fn cases() -> impl Iterator<Item = (&'static str, Degrees, bool, Residency)> {
    MODELS.into_iter().flat_map(|name| {
        DEGREES.into_iter().flat_map(move |degrees| {
            [true, false].into_iter().flat_map(move |recompute| {
                [Residency::WhileUsed, Residency::WholeStep]
                    .map(|residency| (name, degrees, recompute, residency))
            })
        })
    })
}

/// Runs `body` on every rank, with its mesh, and returns what each says.
fn each_rank<T: Send>(degrees: Degrees, body: impl Fn(Mesh) -> T + Sync) -> Vec<T> {
    let ranks = degrees.shard * degrees.replicate * degrees.context;
    let groups = threads::groups(ranks, &Deadline::new(Duration::from_secs(60))).unwrap();
    std::thread::scope(|scope| {
        let body = &body;
        let ranks =
            groups.into_iter().map(|group| scope.spawn(move || body(Mesh::new(group, degrees).unwrap())));
        ranks.collect::<Vec<_>>().into_iter().map(|rank| rank.join().unwrap()).collect()
    })
}

/// Runs `body` on every rank, with its mesh, and returns what the first one says.
fn on_ranks<T: Send>(degrees: Degrees, body: impl Fn(Mesh) -> T + Sync) -> T {
    each_rank(degrees, body).swap_remove(0)
}

/// Bytes of every buffer that the engine holds.
fn allocated(engine: &Engine) -> usize {
    let units = engine.units.iter().map(|unit| {
        let state = unit.state().read().unwrap();
        let moments: usize = state.moments.iter().map(Buffer::len).sum();
        state.master.len() + moments + unit.gradient().lock().unwrap().len()
    });
    let Workspace { inputs, kept, gradient, scratch, balance, exchange, batch: _ } = &engine.workspace;
    let single = [gradient, scratch, balance, &exchange.given, &exchange.got];
    let single = single.into_iter().chain([&engine.rope_table, &engine.statistics, &engine.decision]);
    let workspace = inputs.iter().chain(kept).chain(single).map(Buffer::len);
    units.chain(workspace).sum::<usize>() + engine.units.slot_bytes().unwrap()
}

#[test]
fn the_engine_allocates_what_is_planned_to_the_byte() {
    for (name, degrees, recompute, residency) in cases() {
        let settings = settings(degrees.context, recompute, residency);
        let sharing = Sharing { lends: false, ..degrees.into() };
        let plan = MemoryPlan::new(&model(name), sharing, &settings).unwrap();
        let found = on_ranks(degrees, |mesh| {
            allocated(&Engine::new(Queue::cpu(), model(name), mesh, settings.clone()).unwrap())
        });
        assert_eq!(found, plan.engine_bytes(), "{name} {degrees:?} {recompute} {residency:?}");
    }
}

#[test]
fn one_rank_alone_needs_no_slots() {
    for name in MODELS {
        let settings = settings(1, true, Residency::WhileUsed);
        let plan = MemoryPlan::new(&model(name), DEGREES[0].into(), &settings).unwrap();
        assert_eq!(plan.slot_bytes(), 0);
        let single: Box<dyn tessera_dist::Group> = Box::new(Single);
        assert_eq!(
            allocated(&Engine::new(Queue::cpu(), model(name), single, settings).unwrap()),
            plan.engine_bytes()
        );
    }
}

fn batch(vocabulary: u32) -> MicroBatch {
    let tokens = (ROWS * ROW_TOKENS) as u32;
    let row = ROW_TOKENS as u32;
    MicroBatch {
        tokens: (0..tokens).map(|place| place * 7 % vocabulary).collect(),
        labels: (0..tokens).map(|place| (place * 5 % vocabulary) as i32).collect(),
        positions: (0..tokens).map(|place| place % row).collect(),
        cu_seqlens: vec![0, row, tokens],
        row_starts: vec![0, row, tokens],
        loss_tokens: ROWS * ROW_TOKENS,
    }
}

/// Bytes that a rank has sent so far, by what they were sent for.
fn sent(engine: &Engine) -> [u64; 5] {
    let recorder = engine.units.mesh().world().recorder().unwrap().clone();
    [
        Operation::AllGather,
        Operation::ReduceScatter,
        Operation::AllReduceGradient,
        Operation::AllReduce,
        Operation::AllToAll,
    ]
    .map(|operation| recorder.totals(operation).bytes_sent)
}

/// Bytes that the second of two steps sends.
fn sent_in_a_step(mesh: Mesh, name: &str, settings: EngineSettings, micro_batches: usize) -> [u64; 5] {
    let mut engine = Engine::new(Queue::cpu(), model(name), mesh, settings).unwrap();
    engine.initialise(17).unwrap();
    let batch = batch(engine.model.config().vocab_size as u32);
    let step = |engine: &mut Engine| {
        for _ in 0..micro_batches {
            engine.train_micro_batch(&batch, LossScale { token: 0.01, balance: 0.01 }).unwrap();
        }
        engine.finish_step(1.0, OwnNews::default(), |_| {}).unwrap();
        sent(engine)
    };
    let before = step(&mut engine);
    let after = step(&mut engine);
    std::array::from_fn(|index| after[index] - before[index])
}

#[test]
fn a_step_sends_what_the_formula_says() {
    for (name, degrees, recompute, residency) in cases() {
        for micro_batches in [1, 3] {
            let settings = settings(degrees.context, recompute, residency);
            let model = model(name);
            let moves = Moves::of_step(&model, recompute, residency, micro_batches);
            // One of the two for each case: what they change is the same everywhere.
            let wire = if recompute { Wire::Fp32 } else { Wire::Bf16 };
            let settings = EngineSettings { wire, ..settings };
            let found = on_ranks(degrees, |mesh| sent_in_a_step(mesh, name, settings.clone(), micro_batches));
            let bytes = ElementBytes { reduced: wire.size(), ..ElementBytes::FP32 };
            let traffic = Traffic::of_step(&model, &moves, degrees, bytes);
            let (mut exchanged, mut balanced) = (0, 0);
            if degrees.context > 1 {
                exchanged =
                    context_traffic_bytes(&model, degrees.context, ROWS * ROW_TOKENS, recompute).unwrap();
                balanced = model
                    .balance()
                    .map_or(0, |balance| balance_traffic_bytes(balance, degrees.context, ROWS));
            }
            let micro_batches = micro_batches as u64;
            let planned = [
                traffic.gathered,
                traffic.reduced,
                traffic.replicated,
                traffic.statistics + micro_batches * balanced,
                micro_batches * exchanged,
            ];
            assert_eq!(found, planned, "{name} {degrees:?} {recompute} {residency:?} {micro_batches}");
        }
    }
}

/// The two slots turn what the loop asks for into these gathers.
#[test]
fn units_move_as_often_as_the_loop_needs_them() {
    let moves = |name: &str, recompute, micro_batches| {
        Moves::of_step(&model(name), recompute, Residency::WhileUsed, micro_batches)
    };
    // Embedding, two blocks. The last block is still there when its backward comes, and the embedding is also the head.
    let tied = moves("tied_gqa", true, 1);
    assert_eq!((tied.gathers, tied.reductions), (vec![2, 2, 1], vec![2, 1, 1]));
    // Embedding, three blocks, head. The embedding's backward needs no weights. A second micro-batch finds the first block
    // there.
    let untied = moves("untied_mha", true, 1);
    assert_eq!((untied.gathers, untied.reductions), (vec![1, 2, 2, 1, 1], vec![1; 5]));
    assert_eq!(moves("untied_mha", true, 2).gathers, [2, 3, 4, 2, 2]);
    // Embedding; twice attention and two groups of experts; head. Attention is computed again before its experts go
    // backward, but not in the last block.
    let experts = moves("mixtral", true, 1);
    assert_eq!(experts.gathers, [1, 3, 2, 2, 2, 2, 1, 1]);
    assert_eq!(experts.reductions, [1; 8]);
    assert_eq!(moves("mixtral", false, 1).gathers, [1, 2, 2, 2, 2, 2, 1, 1]);
    let whole = Moves::of_step(&model("mixtral"), true, Residency::WholeStep, 5);
    assert_eq!((whole.gathers, whole.reductions), (vec![1; 8], vec![5; 8]));
}

/// Weights that write down what is read of them.
struct Watched {
    tensors: BTreeMap<String, TensorInfo>,
    read: Mutex<Vec<(String, Range<usize>)>>,
}

impl Watched {
    fn of(model: &Model) -> Self {
        let tensors = model.tensors().into_iter();
        let tensors = tensors.map(|(name, shape)| (name, TensorInfo { shape, dtype: StoredDType::F32 }));
        Self { tensors: tensors.collect(), read: Mutex::default() }
    }
}

impl WeightSource for Watched {
    fn tensors(&self) -> &BTreeMap<String, TensorInfo> {
        &self.tensors
    }

    fn read(&self, name: &str, start: usize, out: &mut [f32]) -> Result<(), Box<dyn Error + Send + Sync>> {
        self.read.lock().unwrap().push((name.to_owned(), start..start + out.len()));
        out.fill(0.5);
        Ok(())
    }
}

/// Ranks that hold one copy of the model together read each of its elements once, and each of them its own alone.
#[test]
fn the_ranks_of_a_copy_read_each_weight_once() {
    for name in MODELS {
        for degrees in DEGREES {
            let settings = settings(degrees.context, true, Residency::WhileUsed);
            let read = each_rank(degrees, |mesh| {
                let copy = mesh.replicate().rank();
                let engine = Engine::new(Queue::cpu(), model(name), mesh, settings.clone()).unwrap();
                let source = Watched::of(engine.model());
                engine.load_weights(engine.model().units(), &source, |_| {}).unwrap();
                let read = source.read.into_inner().unwrap();
                let own: usize = (0..engine.units.iter().len()).map(|unit| engine.slice(unit).len()).sum();
                let elements: usize = read.iter().map(|(_, range)| range.len()).sum();
                assert!(elements <= own, "{name} {degrees:?}: a rank of {own} elements read {elements}");
                (copy, read)
            });
            for copy in 0..degrees.replicate {
                let mut ranges: Vec<_> =
                    read.iter().filter(|(of, _)| *of == copy).flat_map(|(_, read)| read).collect();
                ranges.sort_by_key(|(name, range)| (name, range.start));
                let mut read_up_to = BTreeMap::<&str, usize>::new();
                for (tensor, range) in ranges {
                    let before = read_up_to.insert(tensor, range.end).unwrap_or(0);
                    assert_eq!(
                        range.start, before,
                        "{name} {degrees:?}: {tensor} is read twice or not at all"
                    );
                }
                for (tensor, shape) in model(name).tensors() {
                    let elements: usize = shape.iter().product();
                    assert_eq!(
                        read_up_to.get(tensor.as_str()),
                        Some(&elements),
                        "{name} {degrees:?}: {tensor}"
                    );
                }
            }
        }
    }
}

/// The bits of a rank's weights and moments, and the counts beside them.
fn state_of(engine: &Engine) -> (Vec<u32>, OptimizerCounts) {
    let mut bits = Vec::new();
    for unit in engine.units.iter() {
        let state = unit.state().read().unwrap();
        for buffer in std::iter::once(&state.master).chain(&state.moments) {
            bits.extend(
                buffer.view(DType::F32).as_slice::<f32>().unwrap().iter().map(|value| value.to_bits()),
            );
        }
    }
    (bits, engine.optimizer_counts().unwrap())
}

/// A gradient that is not finite in the slice of one rank alone: all ranks skip the step together, nothing of it stays, and
/// the next one is the same as if it had not been.
#[test]
fn all_ranks_skip_a_step_together() {
    for (degrees, slice) in [(DEGREES[1], 1), (DEGREES[3], 2), (DEGREES[4], 1), (DEGREES[5], 3)] {
        let settings = settings(degrees.context, true, Residency::WhileUsed);
        let run = |bad: bool| {
            each_rank(degrees, |mesh| {
                let rank = mesh.world().rank();
                // Ranks of both copies of the model have this slice, whose gradient they share.
                let damages = mesh.shard().rank() == slice;
                let mut engine =
                    Engine::new(Queue::cpu(), model("tied_gqa"), mesh, settings.clone()).unwrap();
                engine.initialise(17).unwrap();
                let batch = batch(engine.model.config().vocab_size as u32);
                let mut step = |damages: bool| {
                    engine.train_micro_batch(&batch, LossScale { token: 0.01, balance: 0.0 }).unwrap();
                    if damages {
                        engine.units.finish_reductions(&engine.queue).unwrap();
                        let mut gradient = engine.units.unit(1).gradient().lock().unwrap();
                        gradient.view_mut(DType::F32).as_slice_mut::<f32>().unwrap()[0] = f32::INFINITY;
                    }
                    let outcome = engine.finish_step(1.0, OwnNews::default(), |_| {}).unwrap();
                    (outcome.skipped_in_a_row, state_of(&engine))
                };
                let first = step(false);
                let skipped = bad.then(|| step(damages));
                (rank, first, skipped, step(false))
            })
        };
        let (disturbed, whole) = (run(true), run(false));
        for ((rank, first, skipped, last), (.., expected)) in disturbed.into_iter().zip(whole) {
            let (in_a_row, (bits, counts)) = skipped.unwrap();
            assert_eq!(in_a_row, 1, "{degrees:?}: rank {rank} did not skip");
            assert!(bits == first.1.0, "{degrees:?}: something of the step stayed on rank {rank}");
            assert_eq!(
                counts,
                OptimizerCounts { updates: 1, skipped_in_a_row: 1, skipped: 1 },
                "rank {rank}"
            );
            assert_eq!(last.0, 0, "{degrees:?}: rank {rank} still skips");
            assert!(last.1.0 == expected.1.0, "{degrees:?}: rank {rank} went on otherwise");
            assert!(last.1.0 != bits, "{degrees:?}: rank {rank} did not go on");
            assert_eq!(
                last.1.1,
                OptimizerCounts { updates: 2, skipped_in_a_row: 0, skipped: 1 },
                "rank {rank}"
            );
        }
    }
}
