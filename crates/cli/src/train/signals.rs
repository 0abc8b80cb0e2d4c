//! SIGINT, SIGTERM and SIGUSR1: the first asks the run to stop where nothing is lost, a second one leaves at once.
//!
//! SIGUSR1 is for launchers: mpirun hands it on to all ranks at once, while it meets SIGTERM by ending them.

use std::io;
use std::sync::Arc;
use std::thread;

use signal_hook::consts::{SIGINT, SIGTERM, SIGUSR1};
use signal_hook::iterator::Signals;
use tessera_train::run::StopSignal;

use super::reporter::Reporter;

/// What a shell expects of a process that a signal has ended. SIGUSR1 stands for SIGTERM, so that schedulers know one code.
pub fn exit_code(signal: i32) -> u8 {
    let signal = if signal == SIGUSR1 { SIGTERM } else { signal };
    u8::try_from(128 + signal).unwrap_or(u8::MAX)
}

/// A signal's name.
pub fn name(signal: i32) -> &'static str {
    match signal {
        SIGINT => "SIGINT",
        SIGTERM => "SIGTERM",
        SIGUSR1 => "SIGUSR1",
        _ => "a signal",
    }
}

/// Listens from now on, on a thread of its own.
pub fn watch(stop: StopSignal, reporter: Arc<Reporter>) -> io::Result<()> {
    let mut signals = Signals::new([SIGINT, SIGTERM, SIGUSR1])?;
    thread::Builder::new().name("signals".into()).spawn(move || {
        let mut again = false;
        for signal in signals.forever() {
            // Before the first batch there is nothing to save.
            if again || !stop.is_heard() {
                reporter.leaving(signal, again);
            }
            stop.request(signal);
            reporter.stopping(signal);
            again = true;
        }
    })?;
    Ok(())
}
