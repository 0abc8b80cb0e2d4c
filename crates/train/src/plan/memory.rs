//! What memory a run needs, and how many rows it therefore computes at a time.

use std::fs;
use std::num::NonZeroUsize;
use std::os::unix::fs::MetadataExt;

use tessera_dist::{Degrees, PROCESS_SCRATCH_BYTES};
use tessera_model::Model;
use tessera_ops::cuda;

use super::cluster::GPU_RESERVED_BYTES;
use super::{RunPlan, Settings, engine_settings};
use crate::engine::{MemoryPlan, check_context};
use crate::error::TrainError;
use crate::spec::{MicrobatchSize, Parallel, ShardDegree};

/// Tokens of a micro-batch from which on matrix products run at their best rate; more only cost memory.
const GOOD_MICRO_BATCH_TOKENS: usize = 4096;
/// The share of the machine's memory that a plan may use.
const USABLE_MEMORY: f64 = 0.85;
/// More ranks than any run has: a degree above it is refused when the run starts.
const MOST_RANKS: usize = 1 << 20;

/// What memory is for, and how many bytes of it.
type Part = (&'static str, usize);

impl RunPlan {
    /// What this process needs memory for, and how many bytes of it: for all ranks that run in it, or each of its GPUs.
    pub fn memory_parts(&self) -> Vec<Part> {
        parts(&self.memory, &self.settings, self.answer_bytes, self.process_scratch_bytes)
    }

    /// What the GPUs of this process need memory of the host for, and how many bytes of it.
    pub fn host_memory_parts(&self) -> Vec<Part> {
        host_parts(&self.memory, &self.settings)
    }

    /// All parts together.
    pub fn memory_bytes(&self) -> usize {
        total(&self.memory_parts())
    }
}

fn parts(
    memory: &MemoryPlan,
    settings: &Settings,
    answer_bytes: usize,
    process_scratch_bytes: usize,
) -> Vec<Part> {
    let (on_gpus, ranks) = (settings.on_gpus(), settings.local_ranks().get());
    let snapshot = if on_gpus { 0 } else { snapshot_bytes(memory, settings) };
    let parts = [
        ("weights", memory.master_bytes),
        ("optimizer", memory.moment_bytes),
        ("gradients", memory.gradient_bytes),
        ("gathered weights", memory.weight_slot_bytes),
        ("leaving gradients", memory.gradient_slot_bytes),
        ("copy for a checkpoint", snapshot),
        ("cache for answers", answer_bytes),
        ("inputs of blocks", memory.input_bytes * memory.inputs),
        ("kept for the backward", memory.kept_bytes * memory.kept_arenas),
        ("scratch", memory.scratch_bytes()),
        ("exchange of sequences", memory.exchange_bytes()),
        ("exchange between processes", process_scratch_bytes),
        ("rotary table", memory.rope_table_bytes),
        ("sums", memory.balance_bytes + memory.scalar_bytes),
        ("micro-batch", memory.batch_bytes),
        ("workspace of the stream", memory.stream_bytes),
    ];
    let copies = if on_gpus { 1 } else { ranks };
    parts.into_iter().filter(|&(_, bytes)| bytes > 0).map(|(part, bytes)| (part, bytes * copies)).collect()
}

fn host_parts(memory: &MemoryPlan, settings: &Settings) -> Vec<Part> {
    if !settings.on_gpus() {
        return Vec::new();
    }
    let copy = match settings.save_async {
        true => snapshot_bytes(memory, settings),
        false => memory.passage_bytes(settings.save_weights_only),
    };
    let parts = [("optimizer", memory.host_moment_bytes), ("copy for a checkpoint", copy)];
    let gpus = settings.local_ranks().get();
    parts.into_iter().filter(|&(_, bytes)| bytes > 0).map(|(part, bytes)| (part, bytes * gpus)).collect()
}

/// Bytes of the host that a rank's copy for a checkpoint takes.
fn snapshot_bytes(memory: &MemoryPlan, settings: &Settings) -> usize {
    if settings.save_async { memory.snapshot_bytes(settings.save_weights_only) } else { 0 }
}

/// Memory that a plan must fit.
struct Room {
    /// Whose it is.
    place: String,
    total: usize,
    usable: usize,
}

impl Room {
    /// This machine's.
    fn host() -> Self {
        let total = total_memory();
        Self { place: "the machine".to_owned(), total, usable: (total as f64 * USABLE_MEMORY) as usize }
    }

    /// That of the smallest of some GPUs, less what CUDA and its libraries take.
    fn of(gpus: &[usize]) -> Result<Self, TrainError> {
        let mut smallest: Option<(usize, usize)> = None;
        for &gpu in gpus {
            let total = cuda::total_memory(gpu)?;
            smallest = smallest.filter(|&(_, least)| least <= total).or(Some((gpu, total)));
        }
        let (gpu, total) = smallest.unwrap_or_default();
        let usable = total.saturating_sub(GPU_RESERVED_BYTES as usize);
        Ok(Self { place: format!("GPU {gpu}"), total, usable })
    }

    /// Fails unless `needed` bytes fit, of which `states` are for what training must keep.
    fn check(&self, needed: usize, states: usize, tokens: usize) -> Result<(), TrainError> {
        if needed <= self.usable {
            return Ok(());
        }
        Err(TrainError::TooLarge {
            needed: gibibytes(needed),
            place: self.place.clone(),
            total: gibibytes(self.total),
            states: gibibytes(states),
            tokens,
        })
    }

    /// Fails unless the `pinned` bytes that GPUs keep here fit.
    fn check_pinned(&self, pinned: usize) -> Result<(), TrainError> {
        if pinned <= self.usable {
            return Ok(());
        }
        Err(TrainError::TooMuchPinned { needed: gibibytes(pinned), total: gibibytes(self.total) })
    }
}

/// What a rank packs into for the others, of `ranks` in all or as many as `parallel` names: those of one process reach one
/// another's buffers.
pub(super) fn process_scratch_bytes(settings: &Settings, ranks: usize) -> usize {
    let Degrees { shard, replicate, context } = planned_degrees(settings, ranks);
    let others = shard * replicate * context > settings.local_ranks().get();
    if others && !settings.on_gpus() { PROCESS_SCRATCH_BYTES } else { 0 }
}

fn total(parts: &[Part]) -> usize {
    parts.iter().map(|(_, bytes)| bytes).sum()
}

/// How the ranks of a run are cut: as many as `parallel` names, and where it leaves their number open `ranks`.
fn planned_degrees(settings: &Settings, ranks: usize) -> Degrees {
    let Parallel { shard, replicate, context, .. } = settings.parallel;
    let [replicate, context] = [replicate, context].map(|degree| degree.get().min(MOST_RANKS));
    let shard = match shard {
        ShardDegree::Remaining => ranks.div_ceil(replicate * context),
        ShardDegree::Ranks(ranks) => ranks.get().min(MOST_RANKS),
    };
    Degrees { shard, replicate, context }
}

/// Decides `device_train_microbatch_size: auto`, `activation_checkpointing: auto` and `reshard_after_forward: auto` from the
/// memory plan for so many `ranks` and the machine's total memory: the same machine always decides the same.
pub(super) fn decide_microbatch(
    settings: &mut Settings,
    model: &Model,
    answer_bytes: usize,
    ranks: usize,
    processes_here: usize,
) -> Result<MemoryPlan, TrainError> {
    let degrees = planned_degrees(settings, ranks);
    check_context(model.config(), settings.context_length, degrees.context)?;
    let plan = |settings: &Settings, rows: usize| {
        MemoryPlan::new(model, degrees.into(), &engine_settings(settings, rows))
    };
    let sharers = if settings.on_gpus() { 1 } else { processes_here };
    let process_scratch = process_scratch_bytes(settings, ranks);
    let needed = |settings: &Settings, plan: &MemoryPlan| {
        total(&parts(plan, settings, answer_bytes, process_scratch)) * sharers
    };
    let room = if settings.on_gpus() { Room::of(&settings.gpus)? } else { Room::host() };
    let good = GOOD_MICRO_BATCH_TOKENS.div_ceil(settings.context_length);
    let own = settings.global_train_batch_size.div_ceil(degrees.shard * degrees.replicate);
    let mut rows = match settings.device_train_microbatch_size {
        MicrobatchSize::Auto => good.min(own),
        MicrobatchSize::Rows(rows) => rows.get(),
    };
    let mut memory = plan(settings, rows)?;
    while rows > 1
        && settings.device_train_microbatch_size == MicrobatchSize::Auto
        && needed(settings, &memory) > room.usable
    {
        rows /= 2;
        memory = plan(settings, rows)?;
    }
    // Processors gain less from keeping more, and their memory is others' too. Several processes must not decide differently.
    if settings.on_gpus() && ranks == settings.local_ranks().get() {
        // Blocks first: what they keep saves more time.
        let keep: [fn(&mut Settings); 2] =
            [|settings| settings.has_room_for_blocks = true, |settings| settings.has_room_for_weights = true];
        for keep in keep {
            let mut keeping = settings.clone();
            keep(&mut keeping);
            let larger = plan(&keeping, rows)?;
            if needed(&keeping, &larger) <= room.usable {
                (*settings, memory) = (keeping, larger);
            }
        }
    }
    let (ranks_here, tokens) =
        (settings.local_ranks().get() * processes_here, settings.context_length * rows);
    let states = memory.state_bytes() * if settings.on_gpus() { 1 } else { ranks_here };
    room.check(needed(settings, &memory), states, tokens)?;
    let on_host = total(&host_parts(&memory, settings)) * processes_here;
    if on_host > 0 {
        Room::host().check_pinned(on_host)?;
    }
    if let Some(rows) = NonZeroUsize::new(rows) {
        settings.device_train_microbatch_size = MicrobatchSize::Rows(rows);
    }
    Ok(memory)
}

/// The machine's memory in bytes, or the control group's limit where that is less; no limit where the system does not
/// tell.
pub fn total_memory() -> usize {
    let (machine, limit) = memory_and_limit().unwrap_or((u64::MAX, u64::MAX));
    usize::try_from(machine.min(limit)).unwrap_or(usize::MAX)
}

/// Tells the control group whose limit is less than the machine's memory from all others of the machine. Where that is
/// mounted, a process sees the group of its container, which is named by its inode; by its path it is a root like any other.
pub(crate) fn limiting_group() -> Option<String> {
    let (machine, limit) = memory_and_limit()?;
    let group =
        ["/sys/fs/cgroup/memory", "/sys/fs/cgroup"].into_iter().find_map(|path| fs::metadata(path).ok())?;
    (limit < machine).then(|| format!("{}:{}", group.dev(), group.ino()))
}

/// The machine's memory and the control group's limit in bytes.
fn memory_and_limit() -> Option<(u64, u64)> {
    let mut system = sysinfo::System::new().ok()?;
    system.refresh_memory();
    let limit = system.cgroup_limits().map_or(u64::MAX, |limits| limits.total_memory);
    Some((system.total_memory(), limit))
}

/// A number of bytes as people read it.
pub fn gibibytes(bytes: usize) -> String {
    format!("{:.2} GiB", bytes as f64 / f64::from(1 << 30))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pinned_memory_that_the_machine_has_not_is_refused() {
        let room = Room { place: String::new(), total: 1 << 30, usable: 1 << 29 };
        assert!(room.check_pinned(1 << 29).is_ok());
        let error = room.check_pinned((1 << 29) + 1).map_err(|error| error.to_string());
        assert!(error.is_err_and(
            |error| error.contains("0.50 GiB of the machine's memory") && error.contains("1.00 GiB")
        ));
    }
}
