//! Saving a checkpoint, beside the training or before it goes on.
//!
//! Weights and moments change only in the optimizer's update. So a thread copies them unit by unit while the next forward
//! and backward run, and the update waits only for a unit that is not yet copied; the copy is then written at leisure.
//! Every rank of one copy of the model writes its own slices; how they make one checkpoint, [`super::shards`] knows.
//! Without `save_async` each unit is written under its lock, and what lies in memory of the host is not copied.

use std::path::PathBuf;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Condvar, Mutex, PoisonError, RwLock};
use std::thread::JoinHandle;

use tessera_checkpoint::dcp::pickle::Value;
use tessera_checkpoint::dcp::{
    CheckpointName, ElementType, RankMetadata, RankWriter, SaveId, StatePath, point_latest, retain,
};
use tessera_dist::{DistError, UnitState};
use tessera_files::FileError;
use tessera_model::UnitTable;
use tessera_ops::{Buffer, DType, Event, Home, OpError, Queue, View, fill};

use crate::engine::Engine;
use crate::error::TrainError;
use crate::plan::{RunPlan, file_error};
use crate::spec::OptimizerSpec;
use crate::state::shards::{Assembly, Patience};
use crate::state::{ANSWERS_OWED, EVALUATION_OWED, EXPORT_OWED, Owed, Position, RANKS, own};

/// How checkpoints of a run are kept.
#[derive(Debug, Clone)]
pub struct SaverSettings {
    /// The run's `checkpoints` folder.
    pub folder: PathBuf,
    /// How many stay; `None`: all.
    pub keep: Option<usize>,
    /// How long rank 0 waits for the shards of the others.
    pub patience: Patience,
}

/// Saves the checkpoints of one run, one at a time.
pub struct Saver {
    settings: SaverSettings,
    spares: Arc<Spares>,
    running: Option<Running>,
}

/// Memory that copies were made in. Memory that a GPU copies to by itself takes as long to be had as a copy takes, so it is kept
/// for the next checkpoint; other memory is given back.
#[derive(Default)]
struct Spares(Mutex<Vec<Buffer>>);

impl Spares {
    fn take(&self, queue: &Queue, bytes: usize) -> Result<Buffer, OpError> {
        let mut spares = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match spares.iter().position(|spare| spare.len() == bytes) {
            Some(place) => Ok(spares.swap_remove(place)),
            None => Buffer::staging(queue, bytes),
        }
    }

    fn give_back(&self, queue: &Queue, copies: impl IntoIterator<Item = Buffer>) {
        if queue.home() == Home::Gpu {
            self.0.lock().unwrap_or_else(PoisonError::into_inner).extend(copies);
        }
    }
}

/// A checkpoint that is whole.
#[derive(Debug)]
pub struct Saved {
    /// Its folder.
    pub path: PathBuf,
    /// Why the latest could not be pointed at it, or older ones not be removed.
    pub trouble: Option<FileError>,
}

/// A checkpoint being saved by a thread.
struct Running {
    thread: JoinHandle<Result<Saved, TrainError>>,
    copied: Arc<Copied>,
}

/// How many units a snapshot has copied.
#[derive(Default)]
struct Copied {
    units: Mutex<usize>,
    changed: Condvar,
}

impl Copied {
    fn set(&self, units: usize) {
        *self.units.lock().unwrap_or_else(PoisonError::into_inner) = units;
        self.changed.notify_all();
    }

    fn wait_for(&self, unit: usize) {
        let mut units = self.units.lock().unwrap_or_else(PoisonError::into_inner);
        while *units <= unit {
            units = self.changed.wait(units).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

/// Lets every waiter go, however the copying ended.
struct Release<'a>(&'a Copied);

impl Drop for Release<'_> {
    fn drop(&mut self) {
        self.0.set(usize::MAX);
    }
}

impl Saver {
    /// A saver for a run.
    pub fn new(settings: SaverSettings) -> Self {
        Self { settings, spares: Arc::default(), running: None }
    }

    /// Starts to save `moment`; the earlier checkpoint must have been finished. With `in_place` nothing is copied, and the
    /// state must not change before [`Saver::finish`].
    pub fn start(&mut self, engine: &Engine, moment: &Moment<'_>, in_place: bool) -> Result<(), TrainError> {
        let path = self.settings.folder.join(moment.position.checkpoint_name().to_string());
        let Some(assembly) = Assembly::begin(engine, moment.position, path, self.settings.patience.clone())?
        else {
            return Ok(());
        };
        let job = Job::new(engine, moment, self.settings.clone(), self.spares.clone(), assembly)?;
        let copied = Arc::new(Copied::default());
        let shared = copied.clone();
        let thread = std::thread::Builder::new()
            .name("checkpoint".into())
            .spawn(move || if in_place { job.run_in_place() } else { job.run_beside(&shared) })
            .map_err(|source| file_error("start a thread for", &self.settings.folder, source))?;
        self.running = Some(Running { thread, copied });
        Ok(())
    }

    /// Waits until the snapshot under way, if any, has copied `unit`.
    pub fn wait_until_copied(&self, unit: usize) {
        if let Some(running) = &self.running {
            running.copied.wait_for(unit);
        }
    }

    /// Whether a checkpoint is complete whose outcome has not been asked for.
    pub fn has_news(&self) -> bool {
        self.running.as_ref().is_some_and(|running| running.thread.is_finished())
    }

    /// Whether a checkpoint is being saved.
    pub fn is_busy(&self) -> bool {
        self.running.as_ref().is_some_and(|running| !running.thread.is_finished())
    }

    /// Waits for the checkpoint being saved, if any, and returns its folder.
    pub fn finish(&mut self) -> Result<Option<Saved>, TrainError> {
        let Some(running) = self.running.take() else { return Ok(None) };
        running.thread.join().map_err(|_| TrainError::SaverFailed)?.map(Some)
    }
}

impl Drop for Saver {
    /// A checkpoint under way is completed, whatever ends the run, if the other ranks' shards come soon.
    fn drop(&mut self) {
        self.settings.patience.hurried.store(true, Ordering::Relaxed);
        if let Some(running) = self.running.take() {
            let _ = running.thread.join();
        }
    }
}

/// What a checkpoint says besides weights and moments.
#[derive(Clone, Copy)]
pub struct Moment<'a> {
    /// The run.
    pub plan: &'a RunPlan,
    /// How far it has come.
    pub position: &'a Position,
    /// The identity of the training data.
    pub data_identity: &'a str,
    /// What is still due at this position.
    pub owed: Owed,
    /// Whether the optimizer's state is left out.
    pub weights_only: bool,
}

/// One unit as it is to be saved.
struct SavedUnit {
    table: UnitTable,
    slice: std::ops::Range<usize>,
    state: Arc<RwLock<UnitState>>,
}

/// Everything that one checkpoint is made of.
struct Job {
    settings: SaverSettings,
    name: CheckpointName,
    id: SaveId,
    weights_only: bool,
    assembly: Assembly,
    /// Every tensor's name.
    tensors: Vec<String>,
    units: Vec<SavedUnit>,
    spares: Arc<Spares>,
    /// Where copies are made, beside the engine's work.
    queue: Queue,
    /// What the state is that of: the engine's work up to here.
    state_is_made: Event,
    /// The names of the output matrix and of the embedding, where they are one.
    tied: Option<[String; 2]>,
    /// The optimizer's class, the names of its moments, and its count of updates.
    optimizer: (&'static str, &'static [&'static str], u64),
    objects: Vec<(StatePath, Value)>,
}

impl Job {
    fn new(
        engine: &Engine,
        moment: &Moment<'_>,
        settings: SaverSettings,
        spares: Arc<Spares>,
        assembly: Assembly,
    ) -> Result<Self, TrainError> {
        let (optimizer, model) = (&engine.settings().optimizer, engine.model());
        let units = engine.units().iter().zip(engine.model().units()).enumerate();
        let units = units
            .map(|(index, (unit, table))| SavedUnit {
                table: table.clone(),
                slice: engine.slice(index),
                state: unit.state().clone(),
            })
            .collect();
        let counts = engine.optimizer_counts()?;
        let mut objects = run_objects(moment)?;
        let count = |value: u64| Value::Int(value.into());
        objects.push((own(RANKS), count(engine.units().mesh().world().world_size() as u64)));
        objects.push((own("skipped"), count(counts.skipped)));
        objects.push((own("skipped_in_a_row"), count(counts.skipped_in_a_row)));
        if !moment.weights_only {
            objects.push((own("updates"), count(counts.updates)));
            objects.extend(parameter_group(engine, moment));
        }
        Ok(Self {
            settings,
            name: moment.position.checkpoint_name(),
            id: save_id(moment, assembly.ranks())?,
            weights_only: moment.weights_only,
            assembly,
            tensors: model.tensors().into_iter().map(|(name, _)| name).collect(),
            units,
            spares,
            queue: engine.queue().beside()?,
            state_is_made: engine.queue().record()?,
            tied: model
                .config()
                .tie_word_embeddings
                .then(|| [model.names().output(), model.names().embedding()]),
            optimizer: (optimizer.class_name(), optimizer.moments(), counts.updates),
            objects,
        })
    }

    /// Copies every unit, letting the optimizer go on behind it, then writes the copies.
    fn run_beside(self, copied: &Copied) -> Result<Saved, TrainError> {
        let mut copies = Vec::with_capacity(self.units.len());
        {
            let _release = Release(copied);
            self.queue.wait(&self.state_is_made)?;
            for (index, unit) in self.units.iter().enumerate() {
                let state = unit.state.read().map_err(|_| DistError::Abandoned { unit: index })?;
                let buffers = saved_buffers(&state, self.weights_only);
                let copied_buffers = buffers.map(|buffer| copy(&self.queue, &self.spares, buffer));
                copies.push(copied_buffers.collect::<Result<Vec<_>, _>>()?);
                drop(state);
                copied.set(index + 1);
            }
        }
        let (mut copies, queue, spares) = (copies.into_iter(), self.queue.clone(), self.spares.clone());
        self.assemble(|_, write| match copies.next() {
            Some(copies) => {
                let views: Vec<_> = copies.iter().map(|copy| copy.view(DType::F32)).collect();
                let written = write(&views);
                spares.give_back(&queue, copies);
                written
            }
            None => Ok(()),
        })
    }

    fn run_in_place(self) -> Result<Saved, TrainError> {
        let states: Vec<_> = self.units.iter().map(|unit| unit.state.clone()).collect();
        self.queue.wait(&self.state_is_made)?;
        let (queue, spares, weights_only) = (self.queue.clone(), self.spares.clone(), self.weights_only);
        self.assemble(|index, write| {
            let state = states[index].read().map_err(|_| DistError::Abandoned { unit: index })?;
            let buffers = || saved_buffers(&state, weights_only);
            let copies = buffers().map(|buffer| match buffer.on_host(&queue, DType::F32)? {
                Some(_) => Ok(None),
                None => copy(&queue, &spares, buffer).map(Some),
            });
            let copies = copies.collect::<Result<Vec<_>, TrainError>>()?;
            let views = buffers().zip(&copies).map(|(buffer, copy)| match copy {
                Some(copy) => Ok(copy.view(DType::F32)),
                None => Ok(buffer.on_host(&queue, DType::F32)?.unwrap_or_else(|| buffer.view(DType::F32))),
            });
            let written = write(&views.collect::<Result<Vec<_>, TrainError>>()?);
            spares.give_back(&queue, copies.into_iter().flatten());
            written
        })
    }

    /// Writes this rank's shard and makes the checkpoint whole; `with_state` hands the state of one unit after the other to the
    /// writer.
    fn assemble(
        self,
        with_state: impl FnMut(usize, &mut StateWriter<'_>) -> Result<(), TrainError>,
    ) -> Result<Saved, TrainError> {
        let path = self.assembly.path().to_owned();
        let written = self.write(with_state);
        let Self { assembly, settings, name, .. } = self;
        let metadata = match written {
            Ok(metadata) => metadata,
            Err(error) => return assembly.give_up(error).map(|()| Saved { path, trouble: None }),
        };
        if !assembly.complete(metadata)? {
            return Ok(Saved { path, trouble: None });
        }
        // From the rename on the checkpoint is there, whatever becomes of the pointers and the older ones.
        let folder = &settings.folder;
        let after = [point_latest(folder, name), retain(folder, settings.keep).map(drop)];
        Ok(Saved { path, trouble: after.into_iter().find_map(Result::err) })
    }

    /// Writes this rank's shard.
    fn write(
        &self,
        mut with_state: impl FnMut(usize, &mut StateWriter<'_>) -> Result<(), TrainError>,
    ) -> Result<RankMetadata, TrainError> {
        let mut writer = RankWriter::create(&self.assembly.folder(), self.assembly.rank(), self.id)?;
        if self.assembly.rank() == 0 {
            self.write_common(&mut writer)?;
        }
        for (index, unit) in self.units.iter().enumerate() {
            with_state(index, &mut |saved| self.write_unit(&mut writer, unit, saved))?;
        }
        if let Some([output, embedding]) = self.tied.as_ref().filter(|[_, embedding]| self.holds(embedding)) {
            writer.alias(&StatePath::weight(output), &StatePath::weight(embedding))?;
        }
        Ok(writer.finish()?)
    }

    /// Whether a part of a tensor is this rank's.
    fn holds(&self, name: &str) -> bool {
        let mut pieces = self.units.iter().flat_map(|unit| unit.table.pieces(unit.slice.clone()));
        pieces.any(|piece| piece.parameter.name == name)
    }

    /// Writes what all ranks have alike, which one of them writes.
    fn write_common(&self, writer: &mut RankWriter) -> Result<(), TrainError> {
        for (path, value) in &self.objects {
            writer.write_object(path, value)?;
        }
        let (class, _, updates) = self.optimizer;
        let names = if self.weights_only { &[] } else { self.tensors.as_slice() };
        for name in names {
            let path = StatePath::optimizer_state(class, name, "step");
            writer.write_bytes(&path, ElementType::F32, &[], 0, &(updates as f32).to_le_bytes())?;
        }
        Ok(())
    }

    fn write_unit(
        &self,
        writer: &mut RankWriter,
        unit: &SavedUnit,
        saved: &[View<'_>],
    ) -> Result<(), TrainError> {
        let (class, moments, _) = self.optimizer;
        let Some((master, saved_moments)) = saved.split_first() else { return Ok(()) };
        let master = master.as_slice::<f32>()?;
        for piece in unit.table.pieces(unit.slice.clone()) {
            let name = &piece.parameter.name;
            let values = &master[piece.place.clone()];
            if !values.iter().all(|value| value.is_finite()) {
                return Err(TrainError::NotFiniteWeights { name: name.clone() });
            }
            let mut write = |path: &StatePath, values: &[f32]| {
                writer.write_elements(path, ElementType::F32, &piece.parameter.shape, piece.first, values)
            };
            write(&StatePath::weight(name), values)?;
            for (moment, saved) in moments.iter().zip(saved_moments) {
                let values = &saved.as_slice::<f32>()?[piece.place.clone()];
                write(&StatePath::optimizer_state(class, name, moment), values)?;
            }
        }
        Ok(())
    }
}

/// What of a unit's state a checkpoint has: the masters, then the moments.
fn saved_buffers(state: &UnitState, weights_only: bool) -> impl Iterator<Item = &Buffer> {
    let moments = if weights_only { &[] } else { state.moments.as_slice() };
    std::iter::once(&state.master).chain(moments)
}

/// A copy in memory of the host.
fn copy(queue: &Queue, spares: &Spares, buffer: &Buffer) -> Result<Buffer, TrainError> {
    let mut copy = spares.take(queue, buffer.len())?;
    let to = copy.view_mut(DType::F32);
    match buffer.on_host(queue, DType::F32)? {
        Some(from) => fill::copy(&Queue::cpu(), from, to)?,
        None => fill::copy(queue, buffer.view(DType::F32), to)?,
    }
    Ok(copy)
}

/// Writes a unit's masters and moments, which lie in memory of the host.
type StateWriter<'a> = dyn FnMut(&[View<'_>]) -> Result<(), TrainError> + 'a;

/// What tells a save by so many ranks from all others, of this run and of others. The position holds the time spent training,
/// on which all ranks agree and which never comes twice.
fn save_id(moment: &Moment<'_>, ranks: usize) -> Result<SaveId, TrainError> {
    let Moment { plan, position, data_identity, .. } = moment;
    let settings = plan.settings.to_json()?;
    Ok(SaveId::of(&format!("{settings} {data_identity} {position:?} {ranks}")))
}

/// What a checkpoint says about the run and its position.
fn run_objects(moment: &Moment<'_>) -> Result<Vec<(StatePath, Value)>, TrainError> {
    let Moment { plan, position, data_identity, owed, .. } = *moment;
    let timestamp = StatePath::keys(&["state", "timestamp", "Timestamp"]);
    let mut objects: Vec<_> =
        position.timestamp().into_iter().map(|(key, value)| (timestamp.clone().key(key), value)).collect();
    let seed = Value::Int(plan.settings.seed.into());
    objects.extend([
        (StatePath::keys(&["state", "run_name"]), plan.settings.run_name.as_str().into()),
        (StatePath::keys(&["state", "rank_zero_seed"]), seed),
        (own("settings"), plan.settings.to_json()?.to_string().as_str().into()),
        (own("data"), data_identity.into()),
        (own(EVALUATION_OWED), owed.evaluation.into()),
        (own(ANSWERS_OWED), owed.answers.into()),
        (own(EXPORT_OWED), owed.export.into()),
    ]);
    Ok(objects)
}

/// The optimizer's only parameter group, as torch's `state_dict` has it.
fn parameter_group(engine: &Engine, moment: &Moment<'_>) -> Vec<(StatePath, Value)> {
    let optimizer = &engine.settings().optimizer;
    let pair = |[first, second]: [f64; 2]| Value::tuple([Value::Float(first), Value::Float(second)]);
    let (betas, weight_decay, epsilon) = match optimizer.spec {
        OptimizerSpec::AdamW(adam) | OptimizerSpec::DecoupledAdamW(adam) => {
            (adam.betas, adam.weight_decay, Some(adam.eps))
        }
        OptimizerSpec::DecoupledLionW(lion) => (lion.betas, lion.weight_decay, None),
    };
    let peak = moment.plan.settings.learning_rate;
    let last = moment.plan.schedule.multiplier(moment.position.batch.saturating_sub(1));
    let mut settings = vec![
        ("lr", Value::Float(peak * last)),
        ("initial_lr", Value::Float(peak)),
        ("betas", pair(betas)),
        ("weight_decay", Value::Float(weight_decay)),
    ];
    settings.extend(epsilon.map(|epsilon| ("eps", Value::Float(epsilon))));
    let class = optimizer.class_name();
    settings
        .into_iter()
        .map(|(setting, value)| (StatePath::optimizer_setting(class, setting), value))
        .collect()
}
