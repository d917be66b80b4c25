//! Listeners, connections, and how many there may be.
//!
//! Connections are counted when they are taken. The last two of them answer health, metrics and the page alone, until others have
//! gone. When all are taken, the longest idle one makes way. Where none is idle, the new one gets a fixed refusal, or its health: so a
//! supervisor sees a busy server as alive. However many come, the latest of them is heard at once.

use std::io;
use std::net::{IpAddr, SocketAddr, ToSocketAddrs};
use std::os::unix::fs::PermissionsExt;
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
use tokio::task::yield_now;
use tokio::time::timeout;

use crate::error::{Error, Result};

use crate::mem::warm::warm_stack;

use super::app::App;
use super::router::{handle, router};
use super::seats::Seat;
use super::wire::{BUFFER_BYTES, HEAD_BYTES, Socket, State, Wire};
use super::{Settings, Shared, WARM_STACK_BYTES};

/// What the system holds for a connection in each direction.
const SOCKET_BYTES: u32 = 128 << 10;
const BACKLOG: u32 = 64;
/// How long a connection beyond all others is listened to.
const TURNING_AWAY: Duration = Duration::from_millis(500);

/// For answers that are ended with `stop_wait`, to tell their clients.
const LAST_WORDS: Duration = Duration::from_millis(500);

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
                let listener = Listener::Unix(UnixListener::bind(path).map_err(refused)?, path.to_owned());
                // For the owner and the group, whatever the umask: who else may write to it may use the server.
                std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o660)).map_err(refused)?;
                listeners.push(listener);
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

    /// Serves until `Shared::stop`, then until answers under way have ended, or `stop_wait` is over and they had time to say so.
    pub fn serve(self, settings: Settings, shared: Arc<Shared>) -> Result<()> {
        let Network { runtime, listeners } = self;
        let stop_wait = settings.stop_wait;
        let app = App::new(settings, shared.clone())
            .map_err(|e| Error::stopped(format!("the system has no memory for another thread: {e}")))?;
        warm_stack::<WARM_STACK_BYTES>();
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
            let _ = timeout(stop_wait + LAST_WORDS, gone).await;
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
            Ok(socket) => {
                let state = State::new();
                match app.seats.take(&state) {
                    Some(seat) => drop(tokio::spawn(converse(app.clone(), router.clone(), socket, state, seat))),
                    None => {
                        app.shared.counters.refused_connections.add(1);
                        app.turned_away.push(tokio::spawn(turn_away(app.clone(), socket)).abort_handle());
                    }
                }
                // Those who make way go, and the new one is heard, before the next is taken.
                yield_now().await;
            }
            Err(error) => {
                log::warn!("a connection could not be taken: {error}");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

/// A connection from its first byte to its last.
async fn converse(app: Arc<App>, router: Router, socket: Socket, state: Arc<State>, seat: Seat) {
    let seat = Arc::new(seat);
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
        biased;
        // Between two requests, for somebody else: nothing is under way.
        _ = state.closing() => return,
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

const TAKEN: &str = concat!(
    r#"{"error":{"message":"all connections of this server are taken: try again","#,
    r#""type":"unavailable_error","code":null,"param":null}}"#
);

/// One connection too many: its health if that is what it asks for, else a fixed refusal.
async fn turn_away(app: Arc<App>, mut socket: Socket) {
    let (mut head, mut n) = ([0; 512], 0);
    let reading = async {
        while n < head.len() && !head[..n].windows(4).any(|end| end == b"\r\n\r\n") {
            match socket.read(&mut head[n..]).await {
                Ok(more @ 1..) => n += more,
                _ => break,
            }
        }
    };
    // Whoever is slower than that is refused all the same.
    let _ = timeout(TURNING_AWAY, reading).await;
    let path = head[..n].strip_prefix(b"GET ").and_then(|rest| rest.split(|b| b" ?".contains(b)).next());
    let is_healthy = path.is_some_and(|path| [&b"/health"[..], b"/v1/health"].contains(&path)) && app.shared.is_ready();
    let (status, body) = match is_healthy {
        true => ("200 OK", r#"{"status":"ok"}"#),
        false => ("503 Service Unavailable\r\nRetry-After: 1", TAKEN),
    };
    let text = format!(
        "HTTP/1.1 {status}\r\nContent-Type: application/json; charset=utf-8\r\nCache-Control: no-store\r\nServer: lowkey\r\n\
         Connection: close\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    );
    let answer = async {
        socket.write_all(text.as_bytes()).await?;
        socket.shutdown().await?;
        // Unread bytes would reset the connection under the answer.
        while socket.read(&mut head).await? > 0 {}
        io::Result::Ok(())
    };
    let _ = timeout(TURNING_AWAY, answer).await;
}
