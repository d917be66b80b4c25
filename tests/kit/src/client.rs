//! An HTTP client that is as bad as it is told to be: bytes out, and what comes back, in its own time.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use serde_json::Value;

/// How long anything may take.
const PATIENCE: Duration = Duration::from_secs(240);

pub struct Client {
    socket: TcpStream,
    /// What has come and was not read.
    buffer: Vec<u8>,
    is_at_end: bool,
}

#[derive(Debug)]
pub struct Reply {
    pub status: u16,
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
}

impl Reply {
    /// The names of headers are as they were sent.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(given, _)| given == name).map(|(_, value)| value.as_str())
    }

    pub fn text(&self) -> &str {
        std::str::from_utf8(&self.body).expect("a body in UTF-8")
    }

    pub fn json(&self) -> Value {
        serde_json::from_str(self.text()).unwrap_or_else(|e| panic!("{e}: {}", self.text()))
    }

    /// The values of all `data:` events, without `[DONE]`, and whether that was the last.
    pub fn events(&self) -> (Vec<Value>, bool) {
        let data: Vec<&str> = self.text().lines().filter_map(|line| line.strip_prefix("data: ")).collect();
        let is_done = data.last() == Some(&"[DONE]");
        let events = data.iter().filter(|data| **data != "[DONE]").map(|data| serde_json::from_str(data).expect("JSON"));
        (events.collect(), is_done)
    }
}

impl Client {
    pub fn new(address: SocketAddr) -> Client {
        let socket = TcpStream::connect_timeout(&address, PATIENCE).expect("a connection");
        socket.set_read_timeout(Some(PATIENCE)).expect("a time-out");
        socket.set_nodelay(true).expect("no delay");
        Client { socket, buffer: Vec::new(), is_at_end: false }
    }

    /// What the server does with a write to a connection that it has closed is no concern of the sender's.
    pub fn send(&mut self, bytes: &[u8]) -> bool {
        self.socket.write_all(bytes).is_ok()
    }

    pub fn socket(&self) -> &TcpStream {
        &self.socket
    }

    /// More bytes; none at the end.
    fn more(&mut self) -> usize {
        let mut bytes = [0; 4096];
        let n = match self.socket.read(&mut bytes) {
            Ok(n) => n,
            Err(e) if e.kind() == std::io::ErrorKind::ConnectionReset => 0,
            Err(e) => panic!("nothing came: {e}; so far {:?}", String::from_utf8_lossy(&self.buffer)),
        };
        self.buffer.extend_from_slice(&bytes[..n]);
        self.is_at_end |= n == 0;
        n
    }

    fn until(&mut self, end: &[u8]) -> Option<Vec<u8>> {
        loop {
            if let Some(at) = self.buffer.windows(end.len()).position(|window| window == end) {
                return Some(self.buffer.drain(..at + end.len()).collect());
            }
            if self.more() == 0 {
                return None;
            }
        }
    }

    fn exactly(&mut self, n: usize) -> Vec<u8> {
        while self.buffer.len() < n {
            assert!(self.more() > 0, "the end in the middle of a body");
        }
        self.buffer.drain(..n).collect()
    }

    /// Status and headers; none: the connection was closed without a word.
    pub fn head(&mut self) -> Option<Reply> {
        let head = self.until(b"\r\n\r\n")?;
        let head = String::from_utf8(head).expect("a head in ASCII");
        let mut lines = head.trim_end().lines();
        let first = lines.next().expect("a status line");
        let status = first.split(' ').nth(1).and_then(|word| word.parse().ok()).unwrap_or_else(|| panic!("{first}"));
        let pair = |line: &str| line.split_once(": ").map(|(a, b)| (a.to_owned(), b.to_owned()));
        let headers = lines.map(|line| pair(line).unwrap_or_else(|| panic!("{line}"))).collect();
        Some(Reply { status, headers, body: Vec::new() })
    }

    /// A part of a chunked body; none at its end.
    pub fn chunk(&mut self) -> Option<Vec<u8>> {
        let line = self.until(b"\r\n")?;
        let size = usize::from_str_radix(std::str::from_utf8(&line).expect("a size").trim(), 16).expect("a size");
        let chunk = self.exactly(size);
        assert_eq!(self.exactly(2), b"\r\n");
        (size > 0).then_some(chunk)
    }

    /// A whole reply.
    pub fn try_reply(&mut self) -> Option<Reply> {
        let mut reply = self.head()?;
        if let Some(length) = reply.header("Content-Length").map(|length| length.parse().expect("a length")) {
            reply.body = self.exactly(length);
        } else if reply.header("Transfer-Encoding") == Some("chunked") {
            while let Some(chunk) = self.chunk() {
                reply.body.extend(chunk);
            }
        }
        Some(reply)
    }

    pub fn reply(&mut self) -> Reply {
        self.try_reply().expect("a reply")
    }

    /// Whether the server has closed the connection, within a time.
    pub fn is_closed_within(&mut self, time: Duration) -> bool {
        let begun = Instant::now();
        self.socket.set_read_timeout(Some(Duration::from_millis(20))).expect("a time-out");
        let mut bytes = [0; 4096];
        let closed = loop {
            match self.socket.read(&mut bytes) {
                Ok(0) => break true,
                Ok(_) => {}
                Err(e) if e.kind() == std::io::ErrorKind::ConnectionReset => break true,
                Err(_) if begun.elapsed() > time => break false,
                Err(_) => {}
            }
        };
        self.socket.set_read_timeout(Some(PATIENCE)).expect("a time-out");
        closed
    }
}

/// The text of a request with a JSON body.
pub fn request(method: &str, path: &str, headers: &[(&str, &str)], body: &[u8]) -> Vec<u8> {
    let mut text = format!("{method} {path} HTTP/1.1\r\n");
    if !headers.iter().any(|(name, _)| *name == "Host") {
        text.push_str("Host: 127.0.0.1\r\n");
    }
    for (name, value) in headers {
        text.push_str(&format!("{name}: {value}\r\n"));
    }
    if !body.is_empty() || method == "POST" {
        text.push_str(&format!("Content-Length: {}\r\n", body.len()));
    }
    text.push_str("\r\n");
    [text.into_bytes(), body.to_vec()].concat()
}

/// A request on a connection of its own, with a body of JSON.
pub fn post(address: SocketAddr, path: &str, body: &Value) -> Reply {
    let mut client = Client::new(address);
    client.send(&request("POST", path, &[("Content-Type", "application/json")], body.to_string().as_bytes()));
    client.reply()
}

pub fn get(address: SocketAddr, path: &str) -> Reply {
    let mut client = Client::new(address);
    client.send(&request("GET", path, &[], b""));
    client.reply()
}
