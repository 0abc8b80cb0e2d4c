//! Who started this process, and which of how many it is.
//!
//! Launchers tell it by environment variables: Open MPI's `mpirun`, Slurm's `srun`, MPICH's `mpiexec`, `prterun`, and `torchrun`,
//! whose names manifests use too; what one of them leaves open is said on the command line. A run file never says it: the same
//! file runs anywhere. What is said is held against what MPI finds, so that processes which do not see one another never train
//! into one folder.

use std::num::NonZeroUsize;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use tessera_dist::nccl::{self, UniqueId};
use tessera_dist::rendezvous::{Met, Rendezvous};
use tessera_dist::{Deadline, Group, Pending, Single, threads};
use tessera_ops::Queue;
use tessera_ops::cuda::Gpu;

use crate::error::TrainError;
use crate::plan::limiting_group;

/// Lateness that a launcher does not explain: a machine is slow, or busy with something else.
const LATE: Duration = Duration::from_secs(10);

/// What a launcher tells a process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Launch {
    /// The launcher, as messages name it.
    pub launcher: &'static str,
    /// This process, counted from 0 over all nodes.
    pub process: usize,
    /// All processes of the run.
    pub processes: usize,
}

/// The variables of the launchers: this process, all processes. The first that say it count: `mpirun` below `srun` leaves those
/// of both, and both leave PMIx's, which has no variable for the number of processes.
const LAUNCHERS: [(&str, &str, Option<&str>); 5] = [
    ("mpirun", "OMPI_COMM_WORLD_RANK", Some("OMPI_COMM_WORLD_SIZE")),
    ("mpiexec (PMI)", "PMI_RANK", Some("PMI_SIZE")),
    ("srun", "SLURM_PROCID", Some("SLURM_STEP_NUM_TASKS")),
    ("torchrun or a manifest", "RANK", Some("WORLD_SIZE")),
    ("a launcher over PMIx", "PMIX_RANK", None),
];

/// What the command line says of a launch; it comes before what the environment says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Given {
    /// This process, counted from 0 over all nodes: `--rank`.
    pub rank: Option<usize>,
    /// All processes of the run: `--world-size`.
    pub world_size: Option<usize>,
}

impl Launch {
    /// A process that nobody launched as one of several.
    pub fn alone() -> Self {
        Self { launcher: "no launcher", process: 0, processes: 1 }
    }

    /// Puts together what was `given` and the launcher's variables, of which `variable` gives the values.
    ///
    /// # Errors
    /// When a variable is no number, one of the two numbers is not said, or the process is none of the processes.
    pub fn read(given: Given, variable: impl Fn(&str) -> Option<String>) -> Result<Self, TrainError> {
        if let Given { rank: Some(process), world_size: Some(processes) } = given {
            return Self::of("the command line", "--rank", process, processes);
        }
        for (launcher, process_name, processes_name) in LAUNCHERS {
            let number = |name: &'static str| {
                let number = variable(name).map(|text| text.trim().parse::<usize>().map_err(|_| text));
                number.transpose().map_err(|found| TrainError::Launch { launcher, name, found })
            };
            let process = given.rank.map_or_else(|| number(process_name), |rank| Ok(Some(rank)))?;
            let said = processes_name.map(number).transpose()?.flatten();
            // A launcher of another number of processes counts others than those of the run.
            if given.world_size.is_some() && said.is_some() && given.world_size != said {
                continue;
            }
            let processes = given.world_size.or(said);
            match (process, processes, processes_name) {
                (Some(process), Some(processes), _) => {
                    return Self::of(launcher, process_name, process, processes);
                }
                (Some(_), None, None) if given.rank.is_none() => {
                    return Err(TrainError::LaunchedOfUnknown { launcher });
                }
                _ => {}
            }
        }
        if given == Given::default() { Ok(Self::alone()) } else { Err(TrainError::LaunchedHalf) }
    }

    fn of(
        launcher: &'static str,
        name: &'static str,
        process: usize,
        processes: usize,
    ) -> Result<Self, TrainError> {
        if process >= processes {
            let found = format!("{process} of {processes}");
            return Err(TrainError::Launch { launcher, name, found });
        }
        Ok(Self { launcher, process, processes })
    }

    /// Puts together what was `given` and the environment.
    ///
    /// # Errors
    /// As [`Launch::read`].
    pub fn find(given: Given) -> Result<Self, TrainError> {
        Self::read(given, |name| std::env::var(name).ok())
    }

    /// Ends the other processes of the run too, which would wait for this one; does nothing where there are none.
    #[cfg_attr(not(feature = "mpi"), allow(unused_variables))]
    pub fn abort(&self, code: u8) {
        #[cfg(feature = "mpi")]
        if self.processes > 1 {
            tessera_dist::mpi::abort(i32::from(code));
        }
    }

    /// Whether this process has rank 0, which writes and tells what there is to tell.
    pub fn leads(&self) -> bool {
        self.process == 0
    }

    /// Joins the other ranks, with one rank of this process on each of `gpus` (numbers of this machine). Processes find one
    /// another at the master's address.
    ///
    /// # Errors
    /// When a GPU or NCCL cannot be used, or another process does not come.
    pub fn join_gpus(&self, gpus: &[usize], deadline: &Deadline) -> Result<Ranks, TrainError> {
        let gpus = gpus.iter().map(|&ordinal| Gpu::open(ordinal)).collect::<Result<Vec<_>, _>>()?;
        if self.processes == 1 && gpus.len() == 1 {
            return Ok(Ranks { gpus, ..Ranks::of(vec![Box::new(Single)]) });
        }
        let (id, first_rank, world_size) = self.meet(gpus.len(), deadline)?;
        let groups = nccl::groups(&gpus, first_rank, world_size, &id, deadline)?;
        Ok(Ranks { gpus, ..Ranks::of(groups) })
    }

    /// What NCCL knows the run by, the first rank of this process, which brings so many, and the number of all.
    fn meet(&self, ranks: usize, deadline: &Deadline) -> Result<(UniqueId, usize, usize), TrainError> {
        if self.processes == 1 {
            return Ok((UniqueId::new()?, 0, ranks));
        }
        let variable = |name: &str| std::env::var(name).ok();
        let rendezvous = Rendezvous::read(variable, self.process, self.processes)?;
        let id = || UniqueId::new().map(|id| id.as_bytes().to_vec());
        let Met { first_rank, world_size, bytes } = rendezvous.meet(ranks, deadline.get(), id)?;
        let found = bytes.len();
        let bytes = bytes.try_into().map_err(|_| {
            TrainError::unsupported(
                "the master's word",
                format!("{found} bytes"),
                format!("{}: start all processes from one build", UniqueId::BYTES),
            )
        })?;
        Ok((UniqueId::from_bytes(bytes), first_rank, world_size))
    }

    /// Joins the other ranks, with `local_ranks` ranks of this process. Those that do not come are named by what is seen of them
    /// beside `folder`, the run's.
    ///
    /// # Errors
    /// When this build has no engine for several processes, one of them does not come, or a thread or the launcher's
    /// library fails.
    pub fn join(
        &self,
        local_ranks: NonZeroUsize,
        deadline: &Deadline,
        folder: &Path,
    ) -> Result<Ranks, TrainError> {
        match (self.processes, local_ranks.get()) {
            (1, 1) => Ok(Ranks::of(vec![Box::new(Single)])),
            (1, ranks) => Ok(Ranks::of(threads::groups(ranks, deadline)?)),
            (_, 1) => self.join_processes(deadline, folder),
            (processes, ranks) => Err(TrainError::unsupported(
                "devices",
                format!("cpu:{ranks}"),
                format!("cpu: {} started {processes} processes, each of which is one rank", self.launcher),
            )),
        }
    }

    #[cfg(feature = "mpi")]
    fn join_processes(&self, deadline: &Deadline, folder: &Path) -> Result<Ranks, TrainError> {
        let presence = tessera_dist::Presence::show(folder, self.process)?;
        let connected = tessera_dist::mpi::connect(deadline.get());
        let (group, session) = connected.map_err(|error| presence.name_missing(error, self.processes))?;
        presence.joined();
        self.hold_against(group.rank(), group.world_size())?;
        Ok(Ranks { groups: vec![group], gpus: Vec::new(), session: Some((session, deadline.clone())) })
    }

    /// Fails unless MPI has found this process to be the rank that it was said to be, of as many.
    #[cfg(any(feature = "mpi", test))]
    fn hold_against(&self, rank: usize, world_size: usize) -> Result<(), TrainError> {
        let Self { launcher, process, processes } = *self;
        if (rank, world_size) == (process, processes) {
            return Ok(());
        }
        let (said, found) = ((process, processes), (rank, world_size));
        Err(TrainError::Unlaunched { launcher, said, found })
    }

    #[cfg(not(feature = "mpi"))]
    fn join_processes(&self, _: &Deadline, _: &Path) -> Result<Ranks, TrainError> {
        Err(TrainError::NoProcesses { launcher: self.launcher, processes: self.processes })
    }
}

/// What a process tells of itself when it meets the others.
#[derive(Serialize, Deserialize)]
struct Arrival {
    /// Whose memory it takes: processes that say the same share it. Empty where that is not known.
    memory: String,
    host: String,
    /// For how many seconds it has waited for the others.
    waited: f64,
}

/// How the processes of a run came together.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CheckIn {
    /// Those that share this machine's memory, or this container's share of it.
    pub processes_here: usize,
    /// A line for each that came late.
    pub late: Vec<String>,
}

impl CheckIn {
    /// A process without others.
    const ALONE: Self = Self { processes_here: 1, late: Vec::new() };

    /// Of processes with so many ranks each. All met at one time: who waited least came last.
    fn of(own: &Arrival, all: &[Arrival], ranks_each: usize) -> Self {
        let longest = all.iter().map(|arrival| arrival.waited).fold(0.0, f64::max);
        let late =
            all.iter().enumerate().step_by(ranks_each).filter_map(|(rank, Arrival { host, waited, .. })| {
                let behind = longest - waited;
                (behind >= LATE.as_secs_f64()).then(|| {
                format!(
                    "rank {rank} on {host} came {behind:.0} s after the first rank to the start of the run"
                )
            })
            });
        let here = all.iter().filter(|arrival| arrival.memory == own.memory).count() / ranks_each;
        Self { processes_here: if own.memory.is_empty() { 1 } else { here }, late: late.collect() }
    }
}

/// What the kernel says of itself; nothing where there is none that does.
fn kernel(name: &str) -> String {
    let text = std::fs::read_to_string(format!("/proc/sys/kernel/{name}")).unwrap_or_default();
    text.trim().to_owned()
}

/// Tells this boot of this machine from all others.
pub(crate) fn boot() -> String {
    kernel("random/boot_id")
}

/// Tells whose memory this process takes: the machine's, or that of a control group where one sets a limit. Pods of one node
/// share a kernel, but each has a limit of its own.
fn memory_owner() -> String {
    let boot = boot();
    match limiting_group() {
        Some(group) if !boot.is_empty() => format!("{boot} {group}"),
        _ => boot,
    }
}

/// The ranks of this process.
pub struct Ranks {
    /// Each rank's view of the group of all; it goes to a thread of its own.
    pub groups: Vec<Box<dyn Group>>,
    /// Their GPUs, in the same order; none on the CPU.
    gpus: Vec<Arc<Gpu>>,
    #[cfg(feature = "mpi")]
    session: Option<(tessera_dist::mpi::Session, Deadline)>,
}

impl Ranks {
    fn of(groups: Vec<Box<dyn Group>>) -> Self {
        Self {
            groups,
            gpus: Vec::new(),
            #[cfg(feature = "mpi")]
            session: None,
        }
    }

    /// Where each rank computes: a stream of its GPU, or the CPU.
    ///
    /// # Errors
    /// When CUDA fails.
    pub fn queues(&self) -> Result<Vec<Queue>, TrainError> {
        if self.gpus.is_empty() {
            return Ok(self.groups.iter().map(|_| Queue::cpu()).collect());
        }
        Ok(self.gpus.iter().map(Queue::cuda).collect::<Result<_, _>>()?)
    }

    /// Meets all ranks for the first time, in a process that has waited for them `since` it came. All processes call it.
    ///
    /// # Errors
    /// When a rank is not there.
    pub fn check_in(&self, processes: usize, since: Instant) -> Result<CheckIn, TrainError> {
        if processes == 1 {
            return Ok(CheckIn::ALONE);
        }
        let met: Vec<_> =
            self.groups.iter().map(|group| group.barrier("start-up check")).collect::<Result<_, _>>()?;
        met.into_iter().try_for_each(Pending::wait)?;
        let own = Arrival {
            memory: memory_owner(),
            host: kernel("hostname"),
            waited: since.elapsed().as_secs_f64(),
        };
        let told = serde_json::to_vec(&own)?;
        let told = self.groups.iter().map(|group| group.all_gather_bytes("who came when", told.clone()));
        let mut all = Vec::new();
        for told in told.collect::<Result<Vec<_>, _>>()? {
            all = told.wait()?;
        }
        let all: Vec<Arrival> =
            all.iter().map(|bytes| serde_json::from_slice(bytes)).collect::<Result<_, _>>()?;
        Ok(CheckIn::of(&own, &all, self.groups.len()))
    }

    /// Sends bytes from rank 0, which alone needs to have them, to all ranks. All processes call it.
    ///
    /// # Errors
    /// When a rank is not there.
    pub fn broadcast(&self, label: &'static str, bytes: Vec<u8>) -> Result<Vec<u8>, TrainError> {
        let calls: Vec<_> = self
            .groups
            .iter()
            .map(|group| group.broadcast(label, 0, bytes.clone()))
            .collect::<Result<_, _>>()?;
        let mut received = Vec::new();
        for call in calls {
            received = call.wait()?;
        }
        Ok(received)
    }

    /// Leaves the other ranks in good order.
    ///
    /// # Errors
    /// When the thread that makes the collectives has failed.
    #[cfg_attr(not(feature = "mpi"), allow(clippy::unnecessary_wraps))]
    pub fn leave(self) -> Result<(), TrainError> {
        drop(self.groups);
        #[cfg(feature = "mpi")]
        if let Some((session, deadline)) = self.session {
            session.finish(&deadline)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn read_with(given: Given, variables: &[(&str, &str)]) -> Result<Launch, TrainError> {
        Launch::read(given, |name| {
            variables.iter().find(|(known, _)| *known == name).map(|(_, value)| (*value).to_owned())
        })
    }

    fn read(variables: &[(&str, &str)]) -> Result<Launch, TrainError> {
        read_with(Given::default(), variables)
    }

    #[test]
    fn launchers_are_understood() {
        assert_eq!(read(&[]).unwrap(), Launch::alone());
        let launched = read(&[
            ("SLURM_PROCID", "0"),
            ("SLURM_STEP_NUM_TASKS", "1"),
            ("PMIX_RANK", "2"),
            ("OMPI_COMM_WORLD_RANK", "2"),
            ("OMPI_COMM_WORLD_SIZE", "4"),
        ]);
        let launched = launched.unwrap();
        assert_eq!((launched.launcher, launched.process, launched.processes), ("mpirun", 2, 4));
        assert!(!launched.leads());
        let slurm = read(&[("SLURM_PROCID", "1"), ("SLURM_STEP_NUM_TASKS", "2")]).unwrap();
        assert_eq!((slurm.launcher, slurm.process, slurm.processes), ("srun", 1, 2));
        assert_eq!(read(&[("SLURM_PROCID", "0")]).unwrap(), Launch::alone(), "a batch script without srun");
    }

    #[test]
    fn the_command_line_says_what_the_launcher_does_not() {
        let given = |rank, world_size| Given { rank, world_size };
        let place = |launch: Result<Launch, TrainError>| {
            let launch = launch.unwrap();
            (launch.process, launch.processes)
        };
        // As prterun leaves it.
        let pmix = [("PMIX_RANK", "2")];
        let error = read(&pmix).unwrap_err().to_string();
        assert!(error.contains("a launcher over PMIx") && error.contains("--world-size"), "{error}");
        assert_eq!(place(read_with(given(None, Some(4)), &pmix)), (2, 4));
        let torch = [("RANK", "1"), ("WORLD_SIZE", "2")];
        assert_eq!(place(read_with(given(Some(3), Some(5)), &torch)), (3, 5));
        assert_eq!(place(read_with(given(Some(0), None), &torch)), (0, 2));
        for half in [given(Some(0), None), given(None, Some(2))] {
            let error = read_with(half, &[]).unwrap_err().to_string();
            assert!(error.contains("--rank") && error.contains("--world-size"), "{error}");
        }
        let error = read_with(given(Some(4), Some(4)), &[]).unwrap_err().to_string();
        assert!(error.contains("4 of 4"), "{error}");
    }

    #[test]
    fn a_launcher_of_another_number_of_processes_counts_others() {
        let four = Given { rank: None, world_size: Some(4) };
        let step = [("SLURM_PROCID", "0"), ("SLURM_STEP_NUM_TASKS", "1"), ("PMIX_RANK", "2")];
        let launched = read_with(four, &step).unwrap();
        assert_eq!((launched.process, launched.processes), (2, 4));
        let error = read_with(four, &step[..2]).unwrap_err().to_string();
        assert!(error.contains("--rank") && error.contains("--world-size"), "{error}");
    }

    #[test]
    fn what_is_said_is_held_against_mpi() {
        let launch = Launch { launcher: "srun", process: 1, processes: 4 };
        launch.hold_against(1, 4).unwrap();
        let error = |rank, world_size| launch.hold_against(rank, world_size).unwrap_err().to_string();
        for (found, text) in [(error(2, 4), "rank 2 of 4"), (error(0, 1), "rank 0 of 1")] {
            assert!(
                found.contains("srun") && found.contains("rank 1 of 4") && found.contains(text),
                "{found}"
            );
        }
    }

    #[test]
    fn nonsense_is_named() {
        let error = read(&[("RANK", "one"), ("WORLD_SIZE", "2")]).unwrap_err().to_string();
        assert!(error.contains("RANK") && error.contains("one"), "{error}");
        let error = read(&[("RANK", "2"), ("WORLD_SIZE", "2")]).unwrap_err().to_string();
        assert!(error.contains("2 of 2"), "{error}");
    }

    #[test]
    fn who_comes_late_is_named() {
        let arrival =
            |memory: &str, host: &str, waited| Arrival { memory: memory.into(), host: host.into(), waited };
        let all = [arrival("a", "n1", 40.0), arrival("b", "n2", 0.5), arrival("a", "n1", 31.0)];
        let late = vec!["rank 1 on n2 came 40 s after the first rank to the start of the run".to_owned()];
        assert_eq!(CheckIn::of(&all[0], &all, 1), CheckIn { processes_here: 2, late: late.clone() });
        assert_eq!(CheckIn::of(&all[1], &all, 1), CheckIn { processes_here: 1, late });
        // Where nobody can tell, nobody is taken to share.
        let unknown = [arrival("", "n1", 0.0), arrival("", "n2", 0.0)];
        assert_eq!(CheckIn::of(&unknown[0], &unknown, 1), CheckIn { processes_here: 1, late: Vec::new() });
    }

    #[cfg(not(feature = "mpi"))]
    #[test]
    fn several_processes_need_an_engine() {
        let launch = Launch { launcher: "mpirun", process: 1, processes: 4 };
        let deadline = Deadline::new(Duration::from_secs(1));
        let error =
            launch.join(NonZeroUsize::MIN, &deadline, Path::new("runs/one")).err().unwrap().to_string();
        assert!(error.contains("mpirun") && error.contains("--features mpi"), "{error}");
    }
}
