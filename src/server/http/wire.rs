//! A connection's socket, with the time-outs that hyper does not keep: a whole head, an idle connection, a write that is not taken.
//!
//! What a connection is about is known to `State`, which the service sets when a request comes and when its answer has gone.
//! Closing lingers: an answer that was given before the request was read to its end would otherwise be lost with the reset that
//! the unread bytes cause.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpStream, UnixStream};
use tokio::sync::Notify;
use tokio::time::{Instant, Sleep, sleep_until};

/// What hyper may buffer of each direction.
pub const BUFFER_BYTES: usize = 32 << 10;
/// A head may have so many bytes.
pub const HEAD_BYTES: usize = 16 << 10;
/// Closing waits so long, and takes so much, for what the client still sends.
const LINGER: Duration = Duration::from_secs(1);
const LINGER_BYTES: usize = 1 << 20;

const TIMED_OUT: &[u8] = b"HTTP/1.1 408 Request Timeout\r\nConnection: close\r\nContent-Length: 0\r\n\r\n";

pub enum Socket {
    Tcp(TcpStream),
    Unix(UnixStream),
}

macro_rules! either {
    ($socket:expr, $call:ident($($arg:expr),*)) => {
        match $socket {
            Socket::Tcp(socket) => Pin::new(socket).$call($($arg),*),
            Socket::Unix(socket) => Pin::new(socket).$call($($arg),*),
        }
    };
}

impl AsyncRead for Socket {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        either!(self.get_mut(), poll_read(cx, buf))
    }
}

impl AsyncWrite for Socket {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        either!(self.get_mut(), poll_write(cx, buf))
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        either!(self.get_mut(), poll_flush(cx))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        either!(self.get_mut(), poll_shutdown(cx))
    }

    fn poll_write_vectored(self: Pin<&mut Self>, cx: &mut Context<'_>, bufs: &[io::IoSlice<'_>]) -> Poll<io::Result<usize>> {
        either!(self.get_mut(), poll_write_vectored(cx, bufs))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
enum Phase {
    /// Some of a head has come, or the connection is new.
    Head,
    /// A request is being read or answered; its own limits count.
    Busy,
    /// Between requests.
    Idle,
}

/// Counts answers of all connections, by which the one that has been idle longest is known.
static N_ANSWERS: AtomicU64 = AtomicU64::new(0);

/// What a connection is about.
pub struct State {
    phase: AtomicU8,
    /// Which of all answers was its latest.
    answer: AtomicU64,
    /// Something of an answer waits for the client to take it.
    is_writing: AtomicBool,
    closing: Notify,
}

impl State {
    pub fn new() -> Arc<State> {
        Arc::new(State {
            phase: AtomicU8::new(Phase::Head as u8),
            answer: AtomicU64::new(0),
            is_writing: AtomicBool::new(false),
            closing: Notify::new(),
        })
    }

    pub fn request_comes(&self) {
        self.phase.store(Phase::Busy as u8, Ordering::Relaxed);
    }

    pub fn answer_has_gone(&self) {
        self.answer.store(N_ANSWERS.fetch_add(1, Ordering::Relaxed), Ordering::Relaxed);
        self.phase.store(Phase::Idle as u8, Ordering::Relaxed);
    }

    /// For a connection between two requests, a number that is smaller the longer it has been so.
    pub fn idle_since(&self) -> Option<u64> {
        let is_idle = self.phase() == Phase::Idle && !self.is_writing.load(Ordering::Relaxed);
        is_idle.then(|| self.answer.load(Ordering::Relaxed))
    }

    /// The connection is to be closed.
    pub fn close(&self) {
        self.closing.notify_one();
    }

    pub async fn closing(&self) {
        self.closing.notified().await;
    }

    fn head_comes(&self) {
        self.phase.store(Phase::Head as u8, Ordering::Relaxed);
    }

    fn phase(&self) -> Phase {
        match self.phase.load(Ordering::Relaxed) {
            n if n == Phase::Head as u8 => Phase::Head,
            n if n == Phase::Busy as u8 => Phase::Busy,
            _ => Phase::Idle,
        }
    }
}

/// A deadline that a task is woken for.
struct Alarm {
    sleep: Pin<Box<Sleep>>,
    is_set: bool,
}

impl Alarm {
    fn new() -> Alarm {
        Alarm { sleep: Box::pin(sleep_until(Instant::now())), is_set: false }
    }

    fn set(&mut self, after: Duration) {
        self.sleep.as_mut().reset(Instant::now() + after);
        self.is_set = true;
    }

    fn set_once(&mut self, after: Duration) {
        if !self.is_set {
            self.set(after);
        }
    }

    fn clear(&mut self) {
        self.is_set = false;
    }

    fn rings(&mut self, cx: &mut Context<'_>) -> bool {
        self.is_set && self.sleep.as_mut().poll(cx).is_ready()
    }
}

pub struct Wire {
    socket: Socket,
    state: Arc<State>,
    io_timeout: Duration,
    keep_alive: Duration,
    /// For reading, and the phase that it was set in.
    reading: Alarm,
    phase: Phase,
    writing: Alarm,
    /// Read after the end of what is written.
    lingered: Option<usize>,
    is_at_end: bool,
}

impl Wire {
    pub fn new(socket: Socket, state: Arc<State>, io_timeout: Duration, keep_alive: Duration) -> Wire {
        let phase = state.phase();
        Wire {
            socket,
            state,
            io_timeout,
            keep_alive,
            reading: Alarm::new(),
            phase,
            writing: Alarm::new(),
            lingered: None,
            is_at_end: false,
        }
    }

    fn written<T>(&mut self, cx: &mut Context<'_>, written: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        self.state.is_writing.store(written.is_pending(), Ordering::Relaxed);
        match written {
            Poll::Ready(done) => {
                self.writing.clear();
                Poll::Ready(done)
            }
            Poll::Pending => {
                self.writing.set_once(self.io_timeout);
                match self.writing.rings(cx) {
                    true => Poll::Ready(Err(io::ErrorKind::TimedOut.into())),
                    false => Poll::Pending,
                }
            }
        }
    }

    /// Nothing has come: whether it is too late for it.
    fn poll_late(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let phase = self.state.phase();
        if phase != self.phase {
            self.reading.clear();
            self.phase = phase;
        }
        match phase {
            Phase::Busy => return Poll::Pending,
            Phase::Head => self.reading.set_once(self.io_timeout),
            Phase::Idle => self.reading.set_once(self.keep_alive),
        }
        if !self.reading.rings(cx) {
            return Poll::Pending;
        }
        match phase {
            // As if the client had closed it.
            Phase::Idle => Poll::Ready(Ok(())),
            _ => {
                let _ = Pin::new(&mut self.socket).poll_write(cx, TIMED_OUT);
                Poll::Ready(Err(io::ErrorKind::TimedOut.into()))
            }
        }
    }
}

impl AsyncRead for Wire {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let before = buf.filled().len();
        match Pin::new(&mut this.socket).poll_read(cx, buf) {
            Poll::Ready(Ok(())) if buf.filled().len() > before => {
                if this.state.phase() == Phase::Idle {
                    this.state.head_comes();
                }
                // A head that comes byte by byte is late as a whole.
                if this.phase != Phase::Head {
                    this.reading.clear();
                }
                Poll::Ready(Ok(()))
            }
            Poll::Ready(done) => {
                this.is_at_end = true;
                Poll::Ready(done)
            }
            Poll::Pending => this.poll_late(cx),
        }
    }
}

impl AsyncWrite for Wire {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let written = Pin::new(&mut this.socket).poll_write(cx, buf);
        this.written(cx, written)
    }

    fn poll_write_vectored(self: Pin<&mut Self>, cx: &mut Context<'_>, bufs: &[io::IoSlice<'_>]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let written = Pin::new(&mut this.socket).poll_write_vectored(cx, bufs);
        this.written(cx, written)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let flushed = Pin::new(&mut this.socket).poll_flush(cx);
        this.written(cx, flushed)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.lingered.is_none() {
            ready!(Pin::new(&mut this.socket).poll_shutdown(cx))?;
            this.lingered = Some(0);
            this.reading.set(LINGER);
        }
        let mut waste = [0; 4096];
        while !this.is_at_end && this.lingered.is_some_and(|taken| taken < LINGER_BYTES) {
            let mut buf = ReadBuf::new(&mut waste);
            match Pin::new(&mut this.socket).poll_read(cx, &mut buf) {
                Poll::Ready(Ok(())) if !buf.filled().is_empty() => {
                    this.lingered = this.lingered.map(|taken| taken + buf.filled().len());
                }
                Poll::Ready(_) => this.is_at_end = true,
                Poll::Pending if this.reading.rings(cx) => this.is_at_end = true,
                Poll::Pending => return Poll::Pending,
            }
        }
        Poll::Ready(Ok(()))
    }
}
