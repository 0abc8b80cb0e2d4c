//! SIGINT, SIGTERM and SIGUSR1: the first asks the run to stop where nothing is lost, a second one leaves at once. Once all batches are
//! done nothing can be lost, and the first leaves, or the word that cancels the run.
//!
//! SIGUSR1 is for launchers: mpirun hands it on to all ranks at once, while it meets SIGTERM by ending them.

use std::io;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use signal_hook::consts::{SIGINT, SIGTERM, SIGUSR1};
use signal_hook::iterator::Signals;
use tessera_train::run::StopSignal;

use super::reporter::Reporter;

/// How often is looked whether a run is canceled that does not look itself any more.
const PERIOD: Duration = Duration::from_millis(250);

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
    watch_cancel(stop.clone(), reporter.clone())?;
    let mut signals = Signals::new([SIGINT, SIGTERM, SIGUSR1])?;
    thread::Builder::new().name("signals".into()).spawn(move || {
        let mut again = false;
        for signal in signals.forever() {
            // Before the first batch there is nothing to save.
            if again || !stop.is_heard() {
                reporter.leaving(signal, again, stop.has_trained());
            }
            stop.request(signal);
            reporter.stopping(signal);
            again = true;
        }
    })?;
    Ok(())
}

/// The run itself does what a cancel asks between its batches only. After them it asks for no more than a signal does.
fn watch_cancel(stop: StopSignal, reporter: Arc<Reporter>) -> io::Result<()> {
    let look = move || {
        while !(stop.has_trained() && stop.is_canceled()) {
            thread::sleep(PERIOD);
        }
        reporter.leaving(SIGTERM, false, true);
    };
    thread::Builder::new().name("canceled".into()).spawn(look).map(drop)
}
