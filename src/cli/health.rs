//! `lowkey health`: asks a server whether it is ready, for images that hold no other program and for scripts. It owns the one request
//! that it sends; an answer other than 200 is a failure, and so is none within the time that was given.

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream, ToSocketAddrs};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use clap::Args;

use crate::error::{Error, Result};

/// A status line and what comes with it; more is not read.
const MOST_BYTES: u64 = 16 << 10;

#[derive(Args)]
pub struct HealthArgs {
    /// The server: http://HOST:PORT, or the path of its socket
    #[arg(long, value_name = "URL", default_value_t = default_url())]
    url: String,
    /// Seconds to wait for the whole answer
    #[arg(long, value_name = "S", default_value = "5", value_parser = seconds)]
    timeout: Duration,
}

/// Where `lowkey serve` listens with the same variables. Of several addresses it is the first; one that means all is asked for on this
/// machine.
fn default_url() -> String {
    let variable = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
    url_of(variable("LOWKEY_HOST").as_deref(), variable("LOWKEY_PORT").as_deref())
}

fn url_of(hosts: Option<&str>, port: Option<&str>) -> String {
    let host = match hosts.and_then(|list| list.split(',').map(str::trim).find(|host| !host.is_empty())) {
        None | Some("0.0.0.0") => "127.0.0.1",
        Some("::") => "::1",
        Some(path) if path.ends_with(".sock") => return path.to_owned(),
        Some(host) => host,
    };
    let port = port.unwrap_or("8080");
    match host.contains(':') {
        true => format!("http://[{host}]:{port}"),
        false => format!("http://{host}:{port}"),
    }
}

fn seconds(text: &str) -> std::result::Result<Duration, String> {
    let seconds = text.parse::<f64>().ok().filter(|seconds| (0.001..=3600.0).contains(seconds));
    seconds.map(Duration::from_secs_f64).ok_or(format!("'{text}' is not a time in seconds, from 0.001 to 3600"))
}

/// Where a server listens.
#[derive(Debug, PartialEq, Eq)]
enum Place {
    Socket(String),
    /// Host, with its port.
    Tcp(String),
}

impl Place {
    fn of(url: &str) -> Result<Place> {
        let wrong = |what: &str| Error::usage("--url", format!("{url:?} {what}: give http://HOST:PORT, or the path of a socket"));
        if url.ends_with(".sock") {
            return Ok(Place::Socket(url.strip_prefix("unix:").unwrap_or(url).to_owned()));
        }
        if url.starts_with("https:") {
            return Err(wrong("asks for TLS, which the server itself does not speak"));
        }
        let rest = url.strip_prefix("http://").ok_or_else(|| wrong("is no address of a server"))?;
        let host = rest.split_once('/').map_or(rest, |(host, _)| host);
        let has_port =
            host.rsplit_once(':').is_some_and(|(_, port)| !port.is_empty() && port.bytes().all(|b| b.is_ascii_digit()));
        match host {
            "" => Err(wrong("names no host")),
            _ if host.contains('@') || host.chars().any(|c| c.is_control() || c == ' ') => {
                Err(wrong("is no address of a server"))
            }
            _ if has_port => Ok(Place::Tcp(host.to_owned())),
            _ => Ok(Place::Tcp(format!("{host}:80"))),
        }
    }
}

/// The time that is left, or that none is.
fn left(end: Instant) -> std::io::Result<Duration> {
    let left = end.saturating_duration_since(Instant::now());
    if left.is_zero() { Err(ErrorKind::TimedOut.into()) } else { Ok(left) }
}

/// A stream whose waiting has an end.
trait Timed: Read + Write {
    fn limit(&self, left: Duration) -> std::io::Result<()>;
}

impl Timed for TcpStream {
    fn limit(&self, left: Duration) -> std::io::Result<()> {
        self.set_read_timeout(Some(left)).and_then(|()| self.set_write_timeout(Some(left)))
    }
}

impl Timed for UnixStream {
    fn limit(&self, left: Duration) -> std::io::Result<()> {
        self.set_read_timeout(Some(left)).and_then(|()| self.set_write_timeout(Some(left)))
    }
}

/// Connects to the first address that takes a connection.
fn connect(addresses: impl Iterator<Item = SocketAddr>, end: Instant) -> std::io::Result<TcpStream> {
    let mut last = ErrorKind::AddrNotAvailable.into();
    for address in addresses {
        match TcpStream::connect_timeout(&address, left(end)?) {
            Ok(stream) => return Ok(stream),
            Err(error) => last = error,
        }
    }
    Err(last)
}

/// Sends the request, and reads the first line of the answer.
fn ask(stream: &mut dyn Timed, host: &str, end: Instant) -> std::io::Result<String> {
    stream.limit(left(end)?)?;
    write!(stream, "GET /health HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n")?;
    let mut head = Vec::new();
    let mut byte = [0];
    while !head.ends_with(b"\n") && (head.len() as u64) < MOST_BYTES {
        stream.limit(left(end)?)?;
        match stream.read(&mut byte) {
            Ok(0) => break,
            Ok(_) => head.push(byte[0]),
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(String::from_utf8_lossy(&head).trim_end().to_owned())
}

/// The status of an answer, from its first line.
fn status(line: &str) -> Option<u16> {
    let (version, rest) = line.split_once(' ')?;
    version.strip_prefix("HTTP/1.")?;
    rest.split(' ').next()?.parse().ok()
}

pub fn run(args: HealthArgs) -> Result<u8> {
    let end = Instant::now() + args.timeout;
    let answer = match Place::of(&args.url)? {
        Place::Socket(path) => UnixStream::connect(path).and_then(|mut stream| ask(&mut stream, "localhost", end)),
        Place::Tcp(host) => {
            let stream = host.to_socket_addrs().and_then(|addresses| connect(addresses, end));
            stream.and_then(|mut stream| ask(&mut stream, &host, end))
        }
    };
    let line = answer.map_err(|error| match error.kind() {
        ErrorKind::TimedOut | ErrorKind::WouldBlock => {
            Error::stopped(format!("{}: no answer within {:?}", args.url, args.timeout))
        }
        _ => Error::io(&args.url, error),
    })?;
    match status(&line) {
        Some(200) => super::answer("ok").map(|()| 0),
        Some(503) => Err(Error::stopped(format!("{}: not ready: 503", args.url))),
        Some(status) => Err(Error::stopped(format!("{}: status {status}: is it a server of lowkey?", args.url))),
        None => Err(Error::stopped(format!("{}: the answer is no HTTP", args.url))),
    }
}

#[cfg(test)]
#[path = "../../tests/unit/cli/health.rs"]
mod tests;
