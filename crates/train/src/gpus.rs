//! Which GPUs this process drives.
//!
//! Normally one process drives all of its machine's, a thread each. Where a launcher starts several processes on a machine,
//! each drives the one with its number among them.

use tessera_ops::cuda::{self, Found};

use crate::error::TrainError;
use crate::spec::Devices;

/// The variables that tell a process its number on its machine, and how many there are: Open MPI's, torchrun's and
/// manifests', Slurm's.
const LOCAL_VARIABLES: [(&str, &str); 3] = [
    ("OMPI_COMM_WORLD_LOCAL_RANK", "OMPI_COMM_WORLD_LOCAL_SIZE"),
    ("LOCAL_RANK", "LOCAL_WORLD_SIZE"),
    ("SLURM_LOCALID", "SLURM_NTASKS_PER_NODE"),
];

/// Devices with `auto` decided, and the GPUs among them that are this process's; none for the CPU.
///
/// # Errors
/// When GPUs are asked for that are not there or that this build cannot use.
pub fn resolve(devices: Devices) -> Result<(Devices, Vec<usize>), TrainError> {
    let devices = match devices {
        // What is there but cannot be used must not make a run a thousand times slower without a word.
        Devices::Auto => match cuda::find()? {
            Found::Some(_) => Devices::EveryGpu,
            Found::None(_) => Devices::ONE_CPU,
        },
        devices => devices,
    };
    let asked = match &devices {
        Devices::Auto | Devices::Cpu { .. } => return Ok((devices, Vec::new())),
        Devices::EveryGpu => (0..cuda::count()?).collect(),
        Devices::Gpus(indices) => indices.clone(),
    };
    let found = cuda::count()?;
    if let Some(missing) = asked.iter().find(|&&index| index >= found) {
        let expected = format!("indices below {found}, the number of GPUs here; {missing} is not there");
        return Err(TrainError::unsupported("devices", devices, expected));
    }
    let own = own_share(asked, |name| std::env::var(name).ok())?;
    Ok((devices, own))
}

/// Those of a machine's `gpus` that are this process's.
fn own_share(gpus: Vec<usize>, variable: impl Fn(&str) -> Option<String>) -> Result<Vec<usize>, TrainError> {
    let number = |name: &str| variable(name)?.trim().parse::<usize>().ok();
    let place = LOCAL_VARIABLES.iter().find_map(|(own, all)| Some((number(own)?, number(all)?)));
    let Some((own, processes)) = place.filter(|&(_, processes)| processes > 1) else { return Ok(gpus) };
    // A scheduler that gives each process a GPU shows it no other.
    if gpus.len() == 1 {
        return Ok(gpus);
    }
    gpus.get(own).map(|&gpu| vec![gpu]).ok_or_else(|| {
        let expected =
            format!("a GPU for each of the {processes} processes that were started here, or one process that drives all");
        TrainError::unsupported("devices", format!("{} GPUs", gpus.len()), expected)
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn share(variables: &[(&str, &str)]) -> Result<Vec<usize>, TrainError> {
        own_share(vec![0, 1, 2], |name| {
            variables.iter().find(|(known, _)| *known == name).map(|(_, value)| (*value).to_owned())
        })
    }

    #[test]
    fn one_process_drives_all_and_several_one_each() {
        assert_eq!(share(&[]).unwrap(), [0, 1, 2]);
        assert_eq!(share(&[("LOCAL_RANK", "0"), ("LOCAL_WORLD_SIZE", "1")]).unwrap(), [0, 1, 2]);
        assert_eq!(share(&[("SLURM_LOCALID", "2"), ("SLURM_NTASKS_PER_NODE", "3")]).unwrap(), [2]);
        let error = share(&[("LOCAL_RANK", "3"), ("LOCAL_WORLD_SIZE", "4")]).unwrap_err().to_string();
        assert!(error.contains("4 processes"), "{error}");
    }
}
