//! Sequences that lie on several ranks: losses and gradients are those of one rank that has all of it.

use std::time::Duration;

use tessera_data::MicroBatch;
use tessera_dist::{Deadline, Degrees, DistError, Group, Mesh, Operation, threads};
use tessera_ops::{OpError, Queue};
use tessera_train::TrainError;
use tessera_train::engine::{
    Engine, EngineSettings, Evaluation, OwnNews, StepOutcome, balance_traffic_bytes, check_context,
    context_traffic_bytes,
};

use crate::golden::{Golden, Kind, named, relative, rows, slices};

const CASES: [&str; 6] = ["tied_gqa", "sliding_window", "head_dim", "mixtral", "mixtral_window", "dbrx"];

/// Two heads a rank; one head each, where keys and values go to two ranks; two sequences on two ranks each.
const LAYOUTS: [(usize, usize); 3] = [(1, 2), (1, 4), (2, 2)];

/// Two rows, then three of which one is empty, with 62 tokens: not all ranks have equally many.
const BATCHES: [usize; 2] = [0, 2];

/// What `body` returns on each rank of `shard`·`context`, in their order.
fn on_ranks<R: Send>(shard: usize, context: usize, body: impl Fn(Mesh) -> R + Sync) -> Vec<R> {
    let deadline = Deadline::new(Duration::from_secs(60));
    let groups = threads::groups(shard * context, &deadline).unwrap();
    let rank = |world: Box<dyn Group>| {
        let mesh = Mesh::new(world, Degrees { shard, replicate: 1, context }).unwrap();
        body(mesh)
    };
    std::thread::scope(|scope| {
        let ranks: Vec<_> = groups.into_iter().map(|world| scope.spawn(|| rank(world))).collect();
        ranks.into_iter().map(|rank| rank.join().unwrap()).collect()
    })
}

/// Settings that leave room for a rank's part of a sequence and not a token more.
fn tight(golden: &Golden, context: usize, recompute: bool) -> EngineSettings {
    let settings = golden.settings(recompute);
    EngineSettings { micro_batch_tokens: settings.micro_batch_tokens.div_ceil(context), ..settings }
}

fn empty() -> MicroBatch {
    MicroBatch { cu_seqlens: vec![0, 0], row_starts: vec![0, 0], ..MicroBatch::default() }
}

/// The micro-batches that an engine takes of a batch: all in one, or, where there are other sequences, row by row.
fn micro_batches(engine: &Engine, batch: &MicroBatch) -> Vec<MicroBatch> {
    let (place, places) = engine.data_place();
    if places == 1 {
        return vec![batch.clone()];
    }
    let rows = rows(batch);
    let turns = rows.len().div_ceil(places);
    (0..turns).map(|turn| rows.get(turn * places + place).cloned().unwrap_or_else(empty)).collect()
}

/// What comes of a batch on one rank.
struct Seen {
    gradients: Vec<Vec<f32>>,
    outcome: StepOutcome,
    evaluation: Evaluation,
}

fn see(golden: &Golden, engine: &mut Engine, index: usize) -> Seen {
    let batches = micro_batches(engine, &golden.batches[index]);
    for batch in &batches {
        engine.evaluate_micro_batch(batch).unwrap();
    }
    let evaluation = engine.finish_evaluation().unwrap();
    for batch in &batches {
        engine.train_micro_batch(batch, golden.scale(index)).unwrap();
    }
    engine.units().finish_reductions(&Queue::cpu()).unwrap();
    let gradients = slices(engine, Kind::Gradient);
    let outcome = engine.finish_step(1.0, OwnNews::default(), |_| {}).unwrap();
    Seen { gradients, outcome, evaluation }
}

/// The slices of all ranks, one after the other.
fn joined(ranks: &[Seen]) -> Vec<Vec<f32>> {
    let units = 0..ranks[0].gradients.len();
    units.map(|unit| ranks.iter().flat_map(|seen| seen.gradients[unit].clone()).collect()).collect()
}

#[test]
fn losses_and_gradients_are_those_of_one_rank() {
    for case in CASES {
        let golden = Golden::open(case);
        for ((shard, context), recompute) in LAYOUTS.into_iter().zip([true, false, true]) {
            for index in BATCHES {
                let mut alone = golden.engine(recompute);
                let one = see(&golden, &mut alone, index);
                let expected = named(alone.model(), &one.gradients);
                let ranks = on_ranks(shard, context, |mesh| {
                    let mut engine = golden.engine_of(mesh, tight(&golden, context, recompute));
                    see(&golden, &mut engine, index)
                });
                let what = format!("{case}, batch {index}, {shard} sequences on {context} ranks each");
                for (name, gradient) in named(alone.model(), &joined(&ranks)) {
                    let error = relative(&gradient, &expected[&name]);
                    assert!(error < 1e-5, "{what}: gradient of {name} is off by {error:e}");
                }
                for seen in &ranks {
                    let agrees = |number: &str, found: f64, expected: f64| {
                        let error = (found - expected).abs();
                        assert!(error <= 1e-5 * expected, "{what}: {number} {found}, expected {expected}");
                    };
                    agrees("loss", seen.outcome.loss_sum, one.outcome.loss_sum);
                    agrees("balance loss", seen.outcome.balance_loss, one.outcome.balance_loss);
                    agrees("gradient norm", seen.outcome.gradient_norm, one.outcome.gradient_norm);
                    agrees("evaluated loss", seen.evaluation.loss_sum, one.evaluation.loss_sum);
                    assert_eq!(seen.outcome.hits, one.outcome.hits, "{what}");
                    assert_eq!(seen.evaluation.hits, one.evaluation.hits, "{what}");
                }
            }
        }
    }
}

/// Fewer tokens than ranks, and none at all.
#[test]
fn a_rank_may_have_no_token_of_a_sequence() {
    let golden = Golden::open("mixtral");
    let short = MicroBatch {
        tokens: vec![3, 1, 4],
        labels: vec![1, 4, 1],
        positions: vec![0, 1, 2],
        cu_seqlens: vec![0, 3],
        row_starts: vec![0, 3],
        loss_tokens: 3,
    };
    let losses = |engine: &mut Engine| {
        engine.train_micro_batch(&empty(), golden.scale(0)).unwrap();
        engine.train_micro_batch(&short, golden.scale(0)).unwrap();
        let outcome = engine.finish_step(1.0, OwnNews::default(), |_| {}).unwrap();
        [outcome.loss_sum, outcome.balance_loss, outcome.gradient_norm]
    };
    let alone = losses(&mut golden.engine(true));
    for rank in on_ranks(1, 4, |mesh| losses(&mut golden.engine_of(mesh, tight(&golden, 4, true)))) {
        for (found, expected) in rank.into_iter().zip(alone) {
            assert!((found / expected - 1.0).abs() < 1e-5, "{found}, expected {expected}");
        }
    }
}

/// A prompt goes through every rank by itself.
#[test]
fn prompts_are_not_split() {
    let golden = Golden::open("tied_gqa");
    let prompt = &golden.batches[0].tokens[..21];
    let alone = golden.engine(true).next_token_logits(prompt).unwrap();
    for logits in on_ranks(1, 2, |mesh| {
        golden.engine_of(mesh, tight(&golden, 2, true)).next_token_logits(prompt).unwrap()
    }) {
        assert_eq!(logits, alone);
    }
}

#[test]
fn bytes_sent_are_those_of_the_formula() {
    for case in ["tied_gqa", "mixtral"] {
        let golden = Golden::open(case);
        for ((context, index), recompute) in [(2, 0), (4, 0), (4, 2)].into_iter().zip([true, false, true]) {
            let batch = &golden.batches[index];
            for (found, expected) in on_ranks(1, context, |mesh| {
                let mut engine = golden.engine_of(mesh, tight(&golden, context, recompute));
                engine.train_micro_batch(batch, golden.scale(index)).unwrap();
                engine.units().finish_reductions(&Queue::cpu()).unwrap();
                let recorder = engine.units().mesh().world().recorder().unwrap().clone();
                let sent = |operation| recorder.totals(operation).bytes_sent;
                let model = engine.model();
                let exchanged = context_traffic_bytes(model, context, batch.tokens.len(), recompute).unwrap();
                let rows = batch.row_starts.len() - 1;
                let balance =
                    model.balance().map_or(0, |balance| balance_traffic_bytes(balance, context, rows));
                ([sent(Operation::AllToAll), sent(Operation::AllReduce)], [exchanged, balance])
            }) {
                assert_eq!(found, expected, "{case}, batch {index}, {context} ranks");
            }
        }
    }
}

/// By hand, for 62 tokens on four ranks, 16 of them each: two blocks of 4 query heads of 12 over 2 key-value heads. A rank
/// has one of each, so w is 3·12 on the way in and 12 on the way out; the blocks go 3 + 2 ways, to three others, in fp32.
#[test]
fn the_formula_is_what_a_hand_computes() {
    let golden = Golden::open("tied_gqa");
    let model = golden.model();
    let heads = model.config().heads();
    assert_eq!((heads.query, heads.key_value, model.blocks().len()), (4, 2, 2));
    let bytes = context_traffic_bytes(&model, 4, 62, true).unwrap();
    assert_eq!(bytes, (16 * (3 + 1) * heads.size * (3 + 2) * 3 * 4) as u64);
}

#[test]
fn what_cannot_be_split_is_refused_by_name() {
    let golden = Golden::open("tied_gqa");
    let model = golden.model();
    let config = model.config();
    for ranks in [1, 2, 4] {
        check_context(config, 64, ranks).unwrap();
    }
    for (context_length, ranks) in [(64, 0), (64, 3), (63, 2), (64, 8)] {
        let error = check_context(config, context_length, ranks).unwrap_err();
        assert!(matches!(error, TrainError::Unsupported { key: "parallel.context", .. }));
        let expected = if context_length == 63 { "one of 1:" } else { "one of 1, 2, 4:" };
        assert!(error.to_string().contains(expected), "{error}");
    }
    for refused in
        on_ranks(1, 3, |mesh| Engine::new(Queue::cpu(), golden.model(), mesh, golden.settings(true)).err())
    {
        assert!(matches!(refused, Some(DistError::Op(OpError::HeadSplit { ranks: 3, .. }))));
    }
}
