//! What a service manager is told, by the protocol of systemd's `sd_notify(3)`: ready, stopping, and alive. Alive is said by the engine
//! between passes and between the pieces of a session that it saves or restores, never by a timer: a pass that hangs is seen. While
//! the server stops, the same asks for more time. Without a manager all of it is nothing.

use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// While the server stops: 20 seconds from now on, enough for what is written between two signs of life
/// (`kv::past::disk::SYNC_BYTES`), also where a card takes half a megabyte in a second.
const EXTEND: &str = "EXTEND_TIMEOUT_USEC=20000000";
const EXTEND_EVERY: Duration = Duration::from_secs(1);

pub struct Supervisor {
    socket: Option<(UnixDatagram, SocketAddr)>,
    /// How often it wants to hear that the engine lives.
    every: Option<Duration>,
    told: Mutex<Told>,
}

/// When it was told what.
struct Told {
    alive: Instant,
    /// `None`: the server does not stop.
    stopping: Option<Instant>,
}

impl Supervisor {
    /// The one that the environment names, if any (`NOTIFY_SOCKET`, `WATCHDOG_USEC`, `WATCHDOG_PID`).
    pub fn find() -> Supervisor {
        let number = |name: &str| std::env::var(name).ok()?.parse::<u64>().ok();
        let is_ours = number("WATCHDOG_PID").is_none_or(|pid| pid == u64::from(std::process::id()));
        let every = number("WATCHDOG_USEC").filter(|us| *us > 0 && is_ours).map(|us| Duration::from_micros(us) / 3);
        let socket = std::env::var_os("NOTIFY_SOCKET").filter(|name| !name.is_empty()).and_then(|name| {
            let address = match name.as_bytes() {
                [b'@', name @ ..] => SocketAddr::from_abstract_name(name),
                name => SocketAddr::from_pathname(std::ffi::OsStr::from_bytes(name)),
            };
            match address.and_then(|address| Ok((UnixDatagram::unbound()?, address))) {
                Ok(socket) => Some(socket),
                Err(e) => {
                    log::warn!("NOTIFY_SOCKET cannot be used: {e}");
                    None
                }
            }
        });
        Supervisor { socket, every, told: Mutex::new(Told { alive: Instant::now(), stopping: None }) }
    }

    /// Requests are taken from here on.
    pub fn ready(&self) {
        self.tell("READY=1\nSTATUS=serving");
    }

    /// The server begins to stop.
    pub fn stopping(&self) {
        let is_news = self.told().stopping.replace(Instant::now()).is_none();
        if is_news {
            self.tell(&format!("STOPPING=1\nSTATUS=stopping\n{EXTEND}"));
        }
    }

    /// Called as often as may be.
    pub fn alive(&self) {
        let mut told = self.told();
        if self.every.is_some_and(|every| told.alive.elapsed() >= every) {
            told.alive = Instant::now();
            self.tell("WATCHDOG=1");
        }
        if told.stopping.is_some_and(|last| last.elapsed() >= EXTEND_EVERY) {
            told.stopping = Some(Instant::now());
            self.tell(EXTEND);
        }
    }

    fn told(&self) -> std::sync::MutexGuard<'_, Told> {
        self.told.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn tell(&self, what: &str) {
        if let Some((socket, address)) = &self.socket {
            // A manager that has gone is none.
            let _ = socket.send_to_addr(what.as_bytes(), address);
        }
    }
}
