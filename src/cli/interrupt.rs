//! Ctrl-C and the request to end. While there is nothing to finish the process ends at once, with 130 or 143. From `defer` on
//! the first signal only raises a flag, so that the command can end in order (statistics, no partial file), and a second one
//! ends the process at once.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};

use signal_hook::consts::{SIGINT, SIGTERM};

use crate::error::{Error, Result};

struct Signals {
    /// Whether a signal ends the process at once.
    at_once: Arc<AtomicBool>,
    /// The exit code that the first one asks for; 0 before.
    code: Arc<AtomicUsize>,
}

static SIGNALS: OnceLock<Signals> = OnceLock::new();

/// Signals are a process's: this is called once, before anything else.
pub fn catch() -> Result<()> {
    let signals = Signals { at_once: Arc::new(AtomicBool::new(true)), code: Arc::default() };
    for (signal, code) in [(SIGINT, 130), (SIGTERM, TERMINATED)] {
        // In this order: the first looks at the flag as it was before the second raises it.
        signal_hook::flag::register_conditional_shutdown(signal, code.into(), signals.at_once.clone())
            .and_then(|_| signal_hook::flag::register(signal, signals.at_once.clone()))
            .and_then(|_| signal_hook::flag::register_usize(signal, signals.code.clone(), code as usize))
            .map_err(|e| Error::io(format!("signal {signal}"), e))?;
    }
    let _ = SIGNALS.set(signals);
    Ok(())
}

/// From here on there is something to end in order.
pub fn defer() {
    if let Some(signals) = SIGNALS.get() {
        signals.at_once.store(false, Ordering::Relaxed);
    }
}

/// From here on a terminal that goes away, or whoever asks for settings to be read again, ends nothing.
#[cfg(feature = "serve")]
pub fn ignore_hangups() -> Result<()> {
    let heard = Arc::new(AtomicBool::new(false));
    signal_hook::flag::register(signal_hook::consts::SIGHUP, heard).map(|_| ()).map_err(|e| Error::io("signal SIGHUP", e))
}

/// The exit code of a request to end.
pub const TERMINATED: u8 = 143;

/// What was to be ended in order has ended: the exit code that a signal asked for meanwhile, which is then forgotten, and signals end
/// the process at once again.
pub fn take() -> Option<u8> {
    let signals = SIGNALS.get()?;
    let code = signals.code.swap(0, Ordering::Relaxed);
    signals.at_once.store(true, Ordering::Relaxed);
    (code > 0).then_some(code as u8)
}

/// The exit code that a signal asked for.
pub fn code() -> Option<u8> {
    let code = SIGNALS.get()?.code.load(Ordering::Relaxed);
    (code > 0).then_some(code as u8)
}

pub fn raised() -> bool {
    code().is_some()
}
