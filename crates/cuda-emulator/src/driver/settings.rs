//! The environment variables of the shared library.

use std::path::PathBuf;
use std::time::Duration;

use crate::Checks;

/// How the emulated machine is made.
#[derive(Debug, Clone)]
pub(crate) struct Settings {
    /// `TESSERA_EMULATOR_DEVICES`: how many devices there are; 1.
    pub devices: usize,
    /// `TESSERA_EMULATOR_MEMORY`: bytes of each; 8 GiB.
    pub memory: u64,
    /// `TESSERA_EMULATOR_CAPABILITY`: their compute capability without its point; 80, or 90.
    pub capability: u32,
    /// `TESSERA_EMULATOR_DRIVER`: the version of CUDA that the driver is made for, as it tells it; 13040 is 13.4, the newest that
    /// cudarc knows.
    pub driver: u32,
    /// `TESSERA_EMULATOR_SEED`: draws all orders; 0.
    pub seed: u64,
    /// `TESSERA_EMULATOR_CHECKS`: a list of `shared-races`, `global-races` and `uninitialised`, or `none`; the first
    /// and the last, since races in global memory cost much memory to watch.
    pub checks: Checks,
    /// `TESSERA_EMULATOR_DEADLINE`: seconds without progress after which a wait fails; 60.
    pub deadline: Duration,
    /// `TESSERA_EMULATOR_FAIL`: `device:launch`, both from 0; the device is lost at that launch.
    pub fail: Option<(usize, u64)>,
    /// `TESSERA_EMULATOR_HANG`: `rank:collective`, both from 0; the rank never comes to it.
    pub hang: Option<(usize, u64)>,
    /// `TESSERA_EMULATOR_MEET`: a folder of this run's own in which the ranks of several processes meet; without it those of
    /// one process do.
    pub meet: Option<PathBuf>,
    /// `TESSERA_EMULATOR_STRICT=1`: a call of a function that the emulator lacks ends the process.
    pub strict: bool,
    /// `TESSERA_EMULATOR_REPORT`: a file for the counters by kernel, written at the process's end.
    pub report: Option<String>,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            devices: 1,
            memory: 8 << 30,
            capability: 80,
            driver: 13040,
            seed: 0,
            checks: Checks { global_races: false, ..Checks::ALL },
            deadline: Duration::from_secs(60),
            fail: None,
            hang: None,
            meet: None,
            strict: false,
            report: None,
        }
    }
}

/// More devices would not have default streams of their own.
const MOST_DEVICES: usize = 64;

impl Settings {
    /// From variables by name without their prefix; what is wrong is said, and the default holds.
    pub fn read(variable: impl Fn(&str) -> Option<String>) -> (Self, Vec<String>) {
        let mut settings = Self::default();
        let mut problems = Vec::new();
        let mut number = |name: &str, default: u64| match variable(name).map(|text| (text.parse(), text)) {
            None => default,
            Some((Ok(value), _)) => value,
            Some((Err(_), text)) => {
                problems.push(format!("TESSERA_EMULATOR_{name} is '{text}': expected a number"));
                default
            }
        };
        settings.devices = (number("DEVICES", 1) as usize).min(MOST_DEVICES);
        settings.memory = number("MEMORY", settings.memory);
        settings.capability = number("CAPABILITY", settings.capability.into()) as u32;
        settings.driver = number("DRIVER", settings.driver.into()) as u32;
        settings.seed = number("SEED", 0);
        settings.deadline = Duration::from_secs(number("DEADLINE", settings.deadline.as_secs()));
        settings.strict = number("STRICT", 0) != 0;
        settings.report = variable("REPORT");
        settings.meet = variable("MEET").map(PathBuf::from);
        let mut pair = |name: &str| {
            let text = variable(name)?;
            let parsed =
                text.split_once(':').and_then(|(who, when)| Some((who.parse().ok()?, when.parse().ok()?)));
            if parsed.is_none() {
                problems.push(format!("TESSERA_EMULATOR_{name} is '{text}': expected two numbers as 1:20"));
            }
            parsed
        };
        settings.fail = pair("FAIL");
        settings.hang = pair("HANG");
        if let Some(text) = variable("CHECKS") {
            settings.checks = Checks { shared_races: false, global_races: false, uninitialised: false };
            for name in text.split(',').map(str::trim) {
                match name {
                    "shared-races" => settings.checks.shared_races = true,
                    "global-races" => settings.checks.global_races = true,
                    "uninitialised" => settings.checks.uninitialised = true,
                    "none" => {}
                    _ => problems.push(format!(
                        "TESSERA_EMULATOR_CHECKS has '{name}': expected shared-races, global-races, uninitialised or none"
                    )),
                }
            }
        }
        (settings, problems)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn variables_are_read_and_mistakes_named() {
        let (settings, problems) = Settings::read(|name| {
            let text = match name {
                "DEVICES" => "4",
                "CHECKS" => "global-races, uninitialized",
                "HANG" => "1:20",
                "SEED" => "x",
                _ => return None,
            };
            Some(text.to_owned())
        });
        assert_eq!((settings.devices, settings.hang), (4, Some((1, 20))));
        assert!(settings.checks.global_races && !settings.checks.shared_races);
        assert_eq!(problems.len(), 2, "{problems:?}");
    }
}
