//! Listeners, connections, and how many there may be.
//!
//! Connections are counted when they are taken. The last two of them answer health, metrics and the page alone, until others have
//! gone. When all are taken, a new one gets a fixed refusal, or its health: so a supervisor sees a busy server as alive.

use std::io;
use std::net::{IpAddr, SocketAddr, ToSocketAddrs};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket, UnixListener};
use tokio::runtime::{Builder, Runtime};
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::timeout;

use crate::error::{Error, Result};

use crate::mem::warm::warm_heap;

use super::app::App;
use super::router::{handle, router};
use super::seats::Seat;
use super::wire::{BUFFER_BYTES, HEAD_BYTES, LINGER, Socket, State, Wire};
use super::{Settings, Shared};

/// What the system holds for a connection in each direction.
const SOCKET_BYTES: u32 = 128 << 10;
const BACKLOG: u32 = 64;
/// What ordinary connections take on the network's thread.
const WARM_BYTES: usize = 1 << 20;

enum Listener {
    Tcp(TcpListener),
    Unix(UnixListener, PathBuf),
}

impl Listener {
    async fn accept(&self) -> io::Result<Socket> {
        match self {
            Listener::Tcp(listener) => {
                let (socket, _) = listener.accept().await?;
                // Tokens are small, and wait for nothing.
                socket.set_nodelay(true)?;
                Ok(Socket::Tcp(socket))
            }
            Listener::Unix(listener, _) => Ok(Socket::Unix(listener.accept().await?.0)),
        }
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        if let Listener::Unix(_, path) = self {
            let _ = std::fs::remove_file(path);
        }
    }
}

/// What listens, on the thread that will serve.
pub struct Network {
    runtime: Runtime,
    listeners: Vec<Listener>,
}

impl Network {
    /// Takes the addresses of the settings.
    pub fn open(settings: &Settings) -> Result<Network> {
        let runtime = Builder::new_current_thread()
            .enable_io()
            .enable_time()
            .build()
            .map_err(|e| Error::stopped(format!("the network cannot be started: {e}")))?;
        let mut listeners = Vec::new();
        for host in &settings.hosts {
            let refused = |e: io::Error| {
                Error::stopped(format!("cannot listen on {host}, port {}: {e}; name another address or port", settings.port))
            };
            if host.ends_with(".sock") {
                let path = Path::new(host);
                remove_stale(path);
                let _inside = runtime.enter();
                listeners.push(Listener::Unix(UnixListener::bind(path).map_err(refused)?, path.to_owned()));
                continue;
            }
            for address in addresses(host, settings.port).map_err(refused)? {
                let _inside = runtime.enter();
                listeners.push(Listener::Tcp(listen_on(address).map_err(refused)?));
            }
        }
        Ok(Network { runtime, listeners })
    }

    /// What it listens on.
    pub fn addresses(&self) -> Vec<SocketAddr> {
        let address = |listener: &Listener| match listener {
            Listener::Tcp(listener) => listener.local_addr().ok(),
            Listener::Unix(..) => None,
        };
        self.listeners.iter().filter_map(address).collect()
    }

    /// Serves until `Shared::stop`, then until answers under way have ended or `stop_wait` is over.
    pub fn serve(self, settings: Settings, shared: Arc<Shared>) -> Result<()> {
        let Network { runtime, listeners } = self;
        let stop_wait = settings.stop_wait;
        let app = App::new(settings, shared.clone())
            .map_err(|e| Error::stopped(format!("the system has no memory for another thread: {e}")))?;
        warm_heap(WARM_BYTES);
        shared.is_warm();
        runtime.block_on(async {
            let router = router(app.clone());
            let listening = |listener| tokio::spawn(listen(app.clone(), router.clone(), listener));
            let tasks: Vec<_> = listeners.into_iter().map(listening).collect();
            shared.stopped().await;
            for task in tasks {
                let _ = task.await;
            }
            let gone = async {
                while app.seats.n_taken() > 0 {
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
            };
            let _ = timeout(stop_wait, gone).await;
        });
        // Connections that are left are closed with it.
        drop(runtime);
        Ok(())
    }
}

fn addresses(host: &str, port: u16) -> io::Result<Vec<SocketAddr>> {
    let bare = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
    match bare.parse::<IpAddr>() {
        Ok(ip) => Ok(vec![SocketAddr::new(ip, port)]),
        Err(_) => Ok((bare, port).to_socket_addrs()?.collect()),
    }
}

fn listen_on(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    socket.set_reuseaddr(true)?;
    // Connections have them from their listener.
    socket.set_send_buffer_size(SOCKET_BYTES)?;
    socket.set_recv_buffer_size(SOCKET_BYTES)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

/// A socket that a server left behind which is no more.
fn remove_stale(path: &Path) {
    use std::os::unix::fs::FileTypeExt;
    let is_socket = std::fs::symlink_metadata(path).is_ok_and(|found| found.file_type().is_socket());
    if is_socket && std::os::unix::net::UnixStream::connect(path).is_err() {
        let _ = std::fs::remove_file(path);
    }
}

async fn listen(app: Arc<App>, router: Router, listener: Listener) {
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            _ = app.shared.stopped() => return,
        };
        match accepted {
            Ok(socket) => match app.seats.take() {
                Some(seat) => drop(tokio::spawn(converse(app.clone(), router.clone(), socket, seat))),
                None => {
                    app.shared.counters.refused_connections.add(1);
                    // No more of them than so; others wait in the system's queue.
                    if let Ok(place) = app.turned_away.clone().acquire_owned().await {
                        tokio::spawn(turn_away(app.clone(), socket, place));
                    }
                }
            },
            Err(error) => {
                log::warn!("a connection could not be taken: {error}");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

/// A connection from its first byte to its last.
async fn converse(app: Arc<App>, router: Router, socket: Socket, seat: Seat) {
    let (state, seat) = (State::new(), Arc::new(seat));
    let is_local = matches!(socket, Socket::Unix(_));
    let wire = Wire::new(socket, state.clone(), app.settings.io_timeout, app.settings.keep_alive);
    let service = service_fn(|request| handle(app.clone(), router.clone(), state.clone(), seat.clone(), is_local, request));
    let mut connection = std::pin::pin!(
        http1::Builder::new()
            .max_buf_size(BUFFER_BYTES)
            .max_header_size(HEAD_BYTES)
            .max_headers(64)
            .header_read_timeout(None::<Duration>)
            // Clients look for names as they are written in documents.
            .title_case_headers(true)
            .serve_connection(TokioIo::new(wire), service)
    );
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        _ = app.shared.stopped() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = ended {
        log::debug!("a connection ended: {error}");
    }
}

/// One connection too many: its health if that is what it asks for, else a fixed refusal.
async fn turn_away(app: Arc<App>, mut socket: Socket, _place: OwnedSemaphorePermit) {
    let answer = async {
        let (mut head, mut n) = ([0; 1024], 0);
        while n < head.len() && !head[..n].windows(4).any(|end| end == b"\r\n\r\n") {
            match socket.read(&mut head[n..]).await? {
                0 => break,
                more => n += more,
            }
        }
        let path =
            head[..n].strip_prefix(b"GET ").map_or(&b""[..], |rest| rest.split(|b| b" ?".contains(b)).next().unwrap_or(b""));
        let is_healthy = [&b"/health"[..], b"/v1/health"].contains(&path) && app.shared.is_ready();
        let (status, body) = match is_healthy {
            true => ("200 OK", r#"{"status":"ok"}"#),
            false => (
                "503 Service Unavailable",
                r#"{"error":{"message":"all connections of this server are taken: try again","type":"unavailable_error","code":null,"param":null}}"#,
            ),
        };
        let text = format!(
            "HTTP/1.1 {status}\r\nContent-Type: application/json; charset=utf-8\r\nCache-Control: no-store\r\nServer: lowkey\r\n\
             {}Connection: close\r\nContent-Length: {}\r\n\r\n{body}",
            if is_healthy { "" } else { "Retry-After: 1\r\n" },
            body.len()
        );
        socket.write_all(text.as_bytes()).await?;
        socket.shutdown().await?;
        // Unread bytes would reset the connection under the answer.
        let mut waste = [0; 1024];
        while socket.read(&mut waste).await? > 0 {}
        io::Result::Ok(())
    };
    let _ = timeout(LINGER, answer).await;
}
