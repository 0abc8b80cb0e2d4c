#![allow(clippy::unwrap_used)]

use tessera_model::Model;

use super::*;
use crate::engine::unit_sizes;

const LLAMA_8B: &str = "meta-llama/Meta-Llama-3.1-8B";

fn workload(model: &str, keys: &[&str]) -> Workload {
    let keys: Vec<String> = keys.iter().map(|&key| key.to_owned()).collect();
    Workload::of_model(model, &keys).unwrap()
}

fn plan(model: &str, keys: &[&str], nodes: usize, gpus: usize, gpu: &str) -> ClusterPlan {
    let cluster = Cluster::new(nodes, gpus, find_gpu(gpu).unwrap(), None).unwrap();
    ClusterPlan::new(&workload(model, keys), cluster).unwrap()
}

#[track_caller]
fn close(found: f64, expected: f64) {
    assert!((found / expected - 1.0).abs() < 1e-4, "{found} is not {expected}");
}

/// Llama-3.1-8B: H = 4096, F = 14336, L = 32, V = 128256, 32 query heads and 8 key/value heads of 128. T = 8192 tokens a
/// rank, feed-forward layers in chunks of 4096, logits in chunks of 1024.
///
/// Units: embedding V·H = 525,336,576; a block 6144·H + H·H + 2F·H + H·F + 2H = 218,112,000; head V·H + H = 525,340,672.
#[test]
fn the_memory_of_an_8b_on_8_h100_is_what_a_hand_comes_to() {
    let plan = plan(LLAMA_8B, &[], 1, 8, "h100");
    let memory = plan.memory;
    // (525,336,576 + 32·218,112,000 + 525,340,672) / 8 · 4 bytes.
    assert_eq!(memory.master_bytes, 4_015_130_624);
    assert_eq!(memory.moment_bytes, 2 * memory.master_bytes);
    assert_eq!(memory.gradient_bytes, memory.master_bytes);
    // The head is the largest: two of it, in two and in four bytes.
    assert_eq!(memory.weight_slot_bytes, 2 * 525_340_672 * 2);
    assert_eq!(memory.gradient_slot_bytes, 2 * 525_340_672 * 4);
    // 32 inputs of blocks, that of the head, the gradient.
    assert_eq!(memory.input_bytes, 34 * 8192 * 4096 * 2);
    // m, norm, qkv, attended of all tokens; norm, gate and up, activation of a chunk; and in fp32 a root mean square and 32
    // log-sum-exps of each token, a root mean square of each in the chunk.
    let (tokens, chunk) = (8192, 4096);
    let halves = tokens * (4096 + 4096 + 6144 + 4096) + chunk * (4096 + 28_672 + 14_336);
    close(memory.kept_bytes as f64, f64::from(2 * halves + 4 * (tokens * 33 + chunk)));
    // The head's: input, its norm's output, their gradient; a root mean square; logits in fp32, their gradient in bf16. A block's
    // backward takes less.
    close(memory.scratch_bytes as f64, f64::from(1024 * (3 * 4096 * 2 + 4 + 128_256 * (4 + 2))));
    assert_eq!(memory.exchange_bytes, 0);
    // Cosines and sines of 8192 positions; tokens, positions, documents, rows with a target, and targets; a few scalars; twice
    // 32 MiB for the stream.
    let known = 8192 * 128 * 4 + 5 * 8192 * 4 + 2 * (32 << 20);
    assert!((known..known + 400).contains(&memory.other_bytes), "{}", memory.other_bytes);
    close(memory.total_bytes() as f64, 26.2199e9);
    assert!(plan.fits);
}

/// With the units above: forward and backward gather embedding and blocks twice, the head and the last block once; all are
/// reduced once.
#[test]
fn the_traffic_of_an_8b_on_8_h100_is_what_a_hand_comes_to() {
    let links = plan(LLAMA_8B, &[], 1, 8, "h100").links;
    let gathered = 525_336_576_u64 + (2 * 31 + 1) * 218_112_000 + 525_340_672;
    assert_eq!(links.gathered, Split { nvlink_bytes: gathered * 2 / 8 * 7, network_bytes: 0 });
    let reduced = 525_336_576_u64 + 32 * 218_112_000 + 525_340_672;
    assert_eq!(links.reduced, Split { nvlink_bytes: reduced * 4 / 8 * 7, network_bytes: 0 });
    assert_eq!((links.replicated.bytes(), links.exchanged.bytes()), (0, 0));

    // Over two nodes 15 of 16 slices come from elsewhere; one of the 15 ways leads to the other node.
    let links = plan(LLAMA_8B, &[], 2, 8, "h100").links;
    assert_eq!(links.gathered.bytes(), gathered * 2 / 16 * 15);
    assert_eq!(links.gathered.network_bytes, gathered * 2 / 16);

    // One copy in each node: what a GPU owns of the gradient goes to its fellow, half to be summed and half summed.
    let links = plan(LLAMA_8B, &["parallel.replicate=2"], 2, 8, "h100").links;
    assert_eq!(links.gathered.network_bytes, 0);
    assert_eq!(links.replicated, Split { nvlink_bytes: 0, network_bytes: reduced * 4 / 8 });
}

/// Eight rows of 8192 tokens; the blocks have 6,979,588,096 parameters, the head with its norm 525,336,576.
#[test]
fn the_time_of_an_8b_on_8_h100_is_what_a_hand_comes_to() {
    let plan = plan(LLAMA_8B, &[], 1, 8, "h100");
    assert_eq!(
        plan.rows,
        Rows {
            micro_batch: 1,
            largest_micro_batch: plan.rows.largest_micro_batch,
            micro_batches: 1,
            global_batch: 8
        }
    );
    let time = plan.time;
    // 6·(6,979,588,096 + 525,336,576)·65,536 + 6·L·H·8192²·8.
    close(time.model_flops, 2.951_056e15 + 0.422_212e15);
    // The blocks' third again: (2.744486e15 + 0.422212e15) / 3.
    close(time.hardware_flops, 3.373_268e15 + 1.055_566e15);
    // 4.428834e15 / 8 / (989.5e12 · 0.55).
    close(time.compute_seconds, 1.017_23);
    // (25.88553e9 + 28.10591e9) / (450e9 · 0.8).
    close(time.transfer_seconds, 0.149_976);
    // 9 · 4,015,130,624 / (3.35e12 · 0.8).
    close(time.optimizer_seconds, 0.013_484);
    close(time.step_seconds, 1.017_23 + 0.1 * 0.149_976 + 0.013_484);
    close(time.tokens_per_second_per_gpu, 7833.9);
    close(time.mfu, 0.40750);
}

#[test]
fn the_largest_micro_batch_is_the_last_that_fits() {
    for (model, keys, gpus) in [
        (LLAMA_8B, &[][..], 8),
        ("mistralai/Mixtral-8x7B-v0.1", &["context_length=4096"][..], 16),
        ("meta-llama/Llama-3.2-1B", &["parallel.context=2", "context_length=131072"][..], 2),
    ] {
        let plan = plan(model, keys, 1, gpus, "h200");
        let largest = plan.rows.largest_micro_batch.unwrap();
        let bytes =
            |rows| DeviceMemory::new(&workload(model, keys), plan.parallel, rows).unwrap().total_bytes();
        assert!(bytes(largest) <= plan.usable_bytes && bytes(largest + 1) > plan.usable_bytes, "{model}");
    }
}

#[test]
fn a_rank_s_rows_are_dealt_out_evenly() {
    let plan = plan(LLAMA_8B, &["global_train_batch_size=100"], 1, 8, "h100");
    let Rows { micro_batch, largest_micro_batch, micro_batches, .. } = plan.rows;
    assert!(micro_batch <= largest_micro_batch.unwrap());
    assert!(micro_batch * micro_batches >= 13 && micro_batch * (micro_batches - 1) < 13);
    let asked = ["global_train_batch_size=100", "device_train_microbatch_size=2"];
    let plan = self::plan(LLAMA_8B, &asked, 1, 8, "h100");
    assert_eq!((plan.rows.micro_batch, plan.rows.micro_batches), (2, 7));
}

/// What is kept in mixed precision is between half and all of what the engine keeps in fp32, for every kind of block.
#[test]
fn two_bytes_take_the_place_of_four_where_the_compute_is() {
    for entry in tessera_model::catalogue::all() {
        let workload = workload(entry.name, &["context_length=4096"]);
        let parallel = Layout { shard: 64, replicate: 1, context: 1 };
        let memory = DeviceMemory::new(&workload, parallel, 1).unwrap();
        let settings = workload.engine_settings(1, 1);
        let model = Model::new(workload.config().clone());
        let full = crate::engine::MemoryPlan::new(&model, Degrees::from(parallel).into(), &settings).unwrap();
        let share = memory.kept_bytes as f64 / full.kept_bytes as f64;
        assert!((0.5..0.51).contains(&share), "{}: {share}", entry.name);
        let elements: usize = unit_sizes(workload.model()).iter().map(|size| size.shard(64)).sum();
        assert_eq!(memory.master_bytes, 4 * elements as u64);
    }
}

#[test]
fn the_best_interval_is_young_s_where_failures_are_rare() {
    let failures = Failures {
        mean_seconds: 1e6,
        stall_seconds: 5.0,
        save_seconds: 60.0,
        restart_seconds: 600.0,
        step_seconds: 1.0,
    };
    let best = failures.best_interval().unwrap();
    let young = (2.0_f64 * 5.0 * 1e6).sqrt();
    assert!((best.seconds / young - 1.0).abs() < 2e-3, "{} {young}", best.seconds);
    // δ/τ + τ/2M + (R + L)/M to the first order: 0.00158 + 0.00158 + 0.00066.
    assert!((best.expected_loss - 0.00382).abs() < 2e-5, "{}", best.expected_loss);
    assert!((best.restarts_per_day - 0.0864).abs() < 1e-12);
}

#[test]
fn the_best_interval_loses_least_and_the_simulation_agrees() {
    // Failures from rare to so frequent that most of the time is lost.
    for mean_seconds in [200.0, 2000.0, 20_000.0, 200_000.0] {
        let failures = Failures {
            mean_seconds,
            stall_seconds: 10.0,
            save_seconds: 20.0,
            restart_seconds: 60.0,
            step_seconds: 0.5,
        };
        let best = failures.best_interval().unwrap();
        for factor in [0.5, 0.9, 1.1, 2.0] {
            assert!(
                failures.expected_loss(best.seconds * factor) > best.expected_loss,
                "{mean_seconds} {factor}"
            );
        }
        let kept = |loss: f64| 1.0 - loss;
        let ratio = kept(best.simulated_loss) / kept(best.expected_loss);
        assert!((ratio - 1.0).abs() < 0.01, "{mean_seconds}: {ratio}");
    }
}

#[test]
fn nothing_is_saved_before_the_last_save_is_done() {
    let failures = Failures {
        mean_seconds: 1e5,
        stall_seconds: 0.0,
        save_seconds: 90.0,
        restart_seconds: 0.0,
        step_seconds: 40.0,
    };
    let best = failures.best_interval().unwrap();
    assert_eq!((best.batches, best.seconds), (3, 120.0));
}

/// 8,030,261,248 parameters: 12 bytes of each are saved, by one node at 2 GB/s; a GPU copies its eighth at 64 GB/s · 0.8.
#[test]
fn saving_costs_what_is_not_done_beside_the_training() {
    let (copying, writing) = (12_045_391_872.0 / 51.2e9, 96_363_134_976.0 / 2e9);
    let beside = plan(LLAMA_8B, &[], 1, 8, "h100");
    assert_eq!(
        (beside.saving.pinned_bytes, beside.saving.checkpoint_bytes),
        (12_045_391_872, 96_363_134_976)
    );
    let failures = beside.failures(50_000.0).unwrap();
    close(failures.mean_seconds, 50_000.0 * 3600.0 / 8.0);
    close(failures.save_seconds, copying + writing);
    // The copy is shorter than a step: only the slowdown is left.
    close(failures.stall_seconds, 0.05 * (copying + writing));
    close(failures.restart_seconds, 300.0 + writing);

    // Meanwhile no copy: an embedding, a block and a head with the last norm pass through, their masters and two moments.
    let waiting = plan(LLAMA_8B, &["save_async=false"], 1, 8, "h100");
    let [embedding, block, head] = [525_336_576, 218_112_000, 525_340_672_u64];
    assert_eq!(waiting.saving.pinned_bytes, (embedding + block + head) / 8 * 12);
    // Moments that the host has are saved from where they lie.
    let offloaded = plan(LLAMA_8B, &["save_async=false", "offload=optimizer"], 1, 8, "h100");
    assert_eq!(offloaded.saving.pinned_bytes, (embedding + block + head) / 8 * 4);
    assert_eq!(
        (offloaded.memory.moment_bytes, offloaded.memory.host_moment_bytes),
        (0, waiting.memory.moment_bytes)
    );

    let failures = waiting.failures(50_000.0).unwrap();
    close(failures.stall_seconds, copying + writing);
    assert_eq!(failures.save_seconds, 0.0);
}

#[test]
fn every_model_of_the_catalogue_has_a_smallest_cluster() {
    let gpu = find_gpu("h100").unwrap();
    let rows = smallest_clusters(gpu).unwrap();
    let named: usize = rows.iter().map(|row| row.models.len()).sum();
    assert_eq!(named, tessera_model::catalogue::all().len());
    for row in &rows {
        let (usual, maximum) = (row.usual.cluster.unwrap(), row.maximum.cluster.unwrap());
        assert!(usual.gpus <= maximum.gpus, "{row:?}");
        for smallest in [usual, maximum] {
            assert!(smallest.memory_bytes <= gpu.usable_bytes());
            // 16 bytes of state for each parameter must lie somewhere.
            assert!(smallest.gpus as u64 * gpu.usable_bytes() > 16 * row.parameters, "{row:?}");
        }
    }
    let find = |model: &str| rows.iter().find(|row| row.models[0].contains(model)).unwrap();
    assert_eq!(find("Llama-3.2-1B").usual.cluster.unwrap().gpus, 1);
    // 405,853,388,800 · 16 bytes alone fill 84 GPUs.
    assert!(find("405B").usual.cluster.unwrap().gpus > 84);
}

#[test]
fn what_cannot_be_planned_is_refused_by_name() {
    let gpu = find_gpu("H100").unwrap();
    let said = [
        Cluster::new(0, 8, gpu, None).unwrap_err().to_string(),
        Cluster::new(usize::MAX, 2, gpu, None).unwrap_err().to_string(),
        Cluster::new(1, 8, gpu, Some(0.0)).unwrap_err().to_string(),
        find_gpu("h1000").unwrap_err().to_string(),
        Workload::of_model("gpt2", &[]).err().unwrap().to_string(),
        Workload::of_model("Llama-3.2-3B", &[]).err().unwrap().to_string(),
    ];
    let expected = [
        "0 nodes of 8 GPUs",
        "1 to 131072 GPUs",
        "0 Gbit/s",
        "known are a100-40gb, a100-80gb, h100, h200, b200",
        "`tessera models` lists what is",
        "did you mean `meta-llama/Llama-3.2-3B`?",
    ];
    for (said, expected) in said.iter().zip(expected) {
        assert!(said.contains(expected), "{said}");
    }
    let plan = |keys: &[&str], gpus| {
        let cluster = Cluster::new(1, gpus, gpu, None).unwrap();
        ClusterPlan::new(&workload(LLAMA_8B, keys), cluster).unwrap_err().to_string()
    };
    assert!(plan(&["parallel.shard=3"], 8).contains("product is 8"));
    assert!(plan(&["parallel.context=3"], 3).contains("parallel.context"));
    let eight = self::plan(LLAMA_8B, &[], 1, 8, "h100");
    assert!(eight.failures(-1.0).unwrap_err().to_string().contains("-1 hours"));
}
