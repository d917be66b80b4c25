//! What goes out: answers to stdout, everything else to stderr. A reader that has gone is no failure; one that does not read
//! is not waited for once a signal has asked to end.

use std::io::{self, ErrorKind, Write};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::interrupt;
use crate::error::{Error, Result};

/// Written at once at most: what a pipe that can be written to takes without blocking (POSIX's PIPE_BUF).
const PIECE_BYTES: usize = 4096;

/// Waits between two looks at the signals, in nanoseconds.
const WAIT_NS: i64 = 100_000_000;

/// Standard output, without a buffer.
struct Stdout;

impl Stdout {
    /// Whether it takes a piece; false once a signal has come and nobody reads.
    fn takes(&self) -> bool {
        let stdout = io::stdout();
        loop {
            let wait = if interrupt::raised() { 0 } else { WAIT_NS };
            let mut fds = [PollFd::new(&stdout, PollFlags::OUT)];
            match poll(&mut fds, Some(&Timespec { tv_sec: 0, tv_nsec: wait })) {
                Ok(0) if wait == 0 => return false,
                Ok(0) | Err(rustix::io::Errno::INTR) => {}
                // What cannot be waited for is written to, and fails there.
                _ => return true,
            }
        }
    }
}

impl Write for Stdout {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if !self.takes() {
            // Lost, as the exit code says.
            return Ok(bytes.len());
        }
        let mut out = io::stdout().lock();
        let piece = &bytes[..bytes.len().min(PIECE_BYTES)];
        out.write_all(piece).and_then(|()| out.flush()).map(|()| piece.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A line on stderr; where nobody can read it, it is lost, and the work goes on.
pub fn say(line: &str) {
    let _ = writeln!(io::stderr().lock(), "{line}");
}

/// Writes one answer to stdout.
pub fn answer(text: &str) -> Result<()> {
    stream(text).and_then(|()| stream("\n"))
}

/// A piece of a streamed answer, out at once.
pub fn stream(text: &str) -> Result<()> {
    Stdout.write_all(text.as_bytes()).map_err(failed)
}

/// One JSON answer to stdout, written as it is made: a long one is never in memory as a whole.
pub fn answer_json(value: &impl serde::Serialize) -> Result<()> {
    let mut out = io::BufWriter::with_capacity(2 * PIECE_BYTES, Stdout);
    serde_json::to_writer(&mut out, value).map_err(io::Error::from).map_err(failed)?;
    out.write_all(b"\n").and_then(|()| out.flush()).map_err(failed)
}

fn failed(e: io::Error) -> Error {
    match e.kind() {
        ErrorKind::BrokenPipe => Error::BrokenPipe,
        _ => Error::io("standard output", e),
    }
}
