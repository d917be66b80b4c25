//! What a service manager is told, by the protocol of systemd's `sd_notify(3)`: ready, stopping, and alive. Alive is said by the engine
//! between passes, never by a timer: a pass that hangs is seen. Without a manager all of it is nothing.

use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::time::{Duration, Instant};

pub struct Supervisor {
    socket: Option<(UnixDatagram, SocketAddr)>,
    /// How often it wants to hear that the engine lives.
    every: Option<Duration>,
    last: Instant,
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
        Supervisor { socket, every, last: Instant::now() }
    }

    /// Requests are taken from here on.
    pub fn ready(&self) {
        self.tell("READY=1\nSTATUS=serving");
    }

    pub fn stopping(&self) {
        self.tell("STOPPING=1\nSTATUS=stopping");
    }

    /// Called between passes, as often as may be.
    pub fn alive(&mut self) {
        if self.every.is_some_and(|every| self.last.elapsed() >= every) {
            self.last = Instant::now();
            self.tell("WATCHDOG=1");
        }
    }

    fn tell(&self, what: &str) {
        if let Some((socket, address)) = &self.socket {
            // A manager that has gone is none.
            let _ = socket.send_to_addr(what.as_bytes(), address);
        }
    }
}
