//! Ctrl-C. While a model is opened there is nothing to finish: the process ends at once, with 130. From `defer` on the
//! first one only raises a flag, so that the command can end in order (statistics, no partial file), and a second one
//! ends the process at once.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use signal_hook::consts::{SIGINT, SIGTERM};

use crate::error::{Error, Result};

pub struct Interrupt {
    raised: Arc<AtomicBool>,
    /// Of the latest signal.
    code: Arc<AtomicUsize>,
}

impl Interrupt {
    /// Ctrl-C alone: what a stream needs.
    pub fn catch() -> Result<Self> {
        Self::of(&[(SIGINT, 130)])
    }

    /// The request to end too, for commands that write files.
    pub fn catch_with_term() -> Result<Self> {
        Self::of(&[(SIGINT, 130), (SIGTERM, 143)])
    }

    fn of(signals: &[(i32, i32)]) -> Result<Self> {
        let (flag, latest) = (Arc::new(AtomicBool::new(true)), Arc::new(AtomicUsize::new(130)));
        for &(signal, code) in signals {
            // In this order: the first looks at the flag as it was before the second raises it.
            signal_hook::flag::register_conditional_shutdown(signal, code, flag.clone())
                .and_then(|_| signal_hook::flag::register_usize(signal, latest.clone(), code as usize))
                .and_then(|_| signal_hook::flag::register(signal, flag.clone()))
                .map_err(|e| Error::io(format!("signal {signal}"), e))?;
        }
        Ok(Interrupt { raised: flag, code: latest })
    }

    /// From here on there is something to end in order.
    pub fn defer(&self) {
        self.raised.store(false, Ordering::Relaxed);
    }

    pub fn raised(&self) -> bool {
        self.raised.load(Ordering::Relaxed)
    }

    /// What the process ends with that was told to: 130 after Ctrl-C, 143 after SIGTERM.
    pub fn exit_code(&self) -> u8 {
        self.code.load(Ordering::Relaxed) as u8
    }
}
