//! Sockets, and the runtime they live on.

use std::{
    io,
    net::{Ipv4Addr, SocketAddr, TcpListener},
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use hyper::{
    Method, Request, StatusCode,
    body::{Body as _, Incoming},
    server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::TokioIo;
use s3s::{
    Body, HttpResponse,
    auth::SimpleAuth,
    service::{S3Service, S3ServiceBuilder},
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    runtime::Runtime,
    sync::Semaphore,
};
use tokio_rustls::TlsAcceptor;

use crate::{
    faults::{self, Fault, Faults, Mode},
    files,
    line::{Line, Link, Shape},
    service::{Access, Service},
    store::Store,
    tls,
};

/// Connections served at once; more wait in the listener's queue.
const CONNECTIONS_MAX: usize = 1_024;
/// Whoever begins a handshake has so long for it.
const HANDSHAKE_MAX: Duration = Duration::from_secs(10);

/// How an endpoint behaves. The default is an unhurried S3 on a free port.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The loopback port to listen on; 0 takes a free one.
    pub port: u16,
    /// The one access key, and its secret.
    pub credentials: (String, String),
    /// Delay and rate of each connection.
    pub shape: Shape,
    /// Bytes per second of all connections together; `None` is no bound.
    pub link_rate: Option<u64>,
    /// Whether unsigned requests may read objects and list them.
    pub anonymous_reads: bool,
    /// Whether `/__fault` is there.
    pub fault_switch: bool,
    /// Seed of the draws of faults.
    pub seed: u64,
    /// The most bytes of bodies and parts to hold. Mapped files do not count.
    pub store_bytes_max: u64,
    /// Threads that serve, at least one.
    pub threads: usize,
}

impl Default for Settings {
    fn default() -> Settings {
        Settings {
            port: 0,
            credentials: ("test".to_owned(), "testtest".to_owned()),
            shape: Shape::default(),
            link_rate: None,
            anonymous_reads: false,
            fault_switch: false,
            seed: 1,
            store_bytes_max: 4 << 30,
            threads: 1,
        }
    }
}

/// What has been asked of an endpoint since it started.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// GET requests.
    pub gets: u64,
    /// HEAD requests.
    pub heads: u64,
    /// All other requests.
    pub writes: u64,
    /// Bytes of answered bodies, as promised by their heads.
    pub bytes_out: u64,
    /// Connections accepted.
    pub connections: u64,
}

#[derive(Default)]
struct Tally {
    gets: AtomicU64,
    heads: AtomicU64,
    writes: AtomicU64,
    bytes_out: AtomicU64,
    connections: AtomicU64,
}

/// Another way to what an endpoint serves, with connections of its own kind.
#[derive(Clone, Debug, Default)]
pub struct Door {
    /// The loopback port to listen on; 0 takes a free one.
    pub port: u16,
    /// Delay and rate of each connection.
    pub shape: Shape,
    /// Bytes per second of all its connections together; `None` is no bound.
    pub link_rate: Option<u64>,
    /// Whether `/__fault` is there. Faults are the door's own.
    pub fault_switch: bool,
    /// Seed of the draws of faults.
    pub seed: u64,
    /// Plain HTTP over the files of this folder, as [`files`](crate::files) has it, instead of S3.
    pub files: Option<PathBuf>,
    /// Whether connections are encrypted, with the certificate of [`tls`](crate::tls).
    pub tls: bool,
}

/// A running endpoint. Dropping it closes every connection.
pub struct Endpoint {
    address: SocketAddr,
    store: Store,
    s3: S3Service,
    front: Arc<Front>,
    tally: Arc<Tally>,
    runtime: Option<Runtime>,
}

/// What the connections of one door share.
struct Front {
    s3: S3Service,
    files: Option<PathBuf>,
    faults: Faults,
    fault_switch: bool,
    shape: Shape,
    tally: Arc<Tally>,
}

impl Endpoint {
    /// Starts to listen, on threads of its own. Works anywhere, also inside a runtime.
    ///
    /// # Errors
    /// When the port is taken, or threads cannot be had.
    pub fn start(settings: Settings) -> io::Result<Endpoint> {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(settings.threads.max(1))
            .thread_name("s3-endpoint")
            .enable_io()
            .enable_time()
            .build()?;
        let store = Store::new(settings.store_bytes_max);
        let mut builder = S3ServiceBuilder::new(Service { store: store.clone() });
        let (key, secret) = settings.credentials;
        builder.set_auth(SimpleAuth::from_single(key, secret));
        builder.set_access(Access { anonymous_reads: settings.anonymous_reads });
        let (s3, tally) = (builder.build(), Arc::new(Tally::default()));
        let door = Door {
            port: settings.port,
            shape: settings.shape,
            link_rate: settings.link_rate,
            fault_switch: settings.fault_switch,
            seed: settings.seed,
            files: None,
            tls: false,
        };
        let (address, front) = listen(&runtime, door, s3.clone(), tally.clone())?;
        Ok(Endpoint { address, store, s3, front, tally, runtime: Some(runtime) })
    }

    /// Opens another way to the same objects, and says where it is.
    ///
    /// # Errors
    /// When the port is taken.
    pub fn open(&self, door: Door) -> io::Result<String> {
        let runtime = self.runtime.as_ref().expect("there until the endpoint is dropped");
        let scheme = if door.tls { "https" } else { "http" };
        let (address, _) = listen(runtime, door, self.s3.clone(), self.tally.clone())?;
        Ok(format!("{scheme}://{address}"))
    }

    /// Where it listens, such as `http://127.0.0.1:40123`.
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// The objects. What is put here is served at once.
    pub fn store(&self) -> &Store {
        &self.store
    }

    /// The switch for answers that go wrong, behind the first door.
    pub fn faults(&self) -> &Faults {
        &self.front.faults
    }

    /// What has been asked so far, behind all doors.
    pub fn counters(&self) -> Counters {
        let tally = &self.tally;
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Counters {
            gets: read(&tally.gets),
            heads: read(&tally.heads),
            writes: read(&tally.writes),
            bytes_out: read(&tally.bytes_out),
            connections: read(&tally.connections),
        }
    }
}

impl Drop for Endpoint {
    fn drop(&mut self) {
        // In the background: dropping must work inside another runtime, which may not block.
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

fn listen(
    runtime: &Runtime,
    door: Door,
    s3: S3Service,
    tally: Arc<Tally>,
) -> io::Result<(SocketAddr, Arc<Front>)> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, door.port))?;
    listener.set_nonblocking(true)?;
    let address = listener.local_addr()?;
    let front = Arc::new(Front {
        s3,
        files: door.files,
        faults: Faults::new(door.seed),
        fault_switch: door.fault_switch,
        shape: door.shape,
        tally,
    });
    let guard = runtime.enter();
    let listener = tokio::net::TcpListener::from_std(listener)?;
    let link = door.link_rate.map(Link::new);
    let tls = door.tls.then(tls::acceptor).transpose()?;
    runtime.spawn(accept(listener, link, tls, front.clone()));
    drop(guard);
    Ok((address, front))
}

async fn accept(
    listener: tokio::net::TcpListener,
    link: Option<Link>,
    tls: Option<TlsAcceptor>,
    front: Arc<Front>,
) {
    let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    loop {
        let Ok(place) = places.clone().acquire_owned().await else { return };
        let Ok(socket) = next(&listener).await else {
            // Out of descriptors, most likely: some will close.
            tokio::time::sleep(Duration::from_millis(50)).await;
            continue;
        };
        front.tally.connections.fetch_add(1, Ordering::Relaxed);
        let line = Line::new(socket, front.shape, link.clone());
        let (front, tls) = (front.clone(), tls.clone());
        tokio::spawn(async move {
            match tls {
                None => serve(line, front).await,
                // Who does not trust the certificate goes away.
                Some(tls) => {
                    let line = tokio::time::timeout(HANDSHAKE_MAX, tls.accept(line)).await;
                    if let Ok(Ok(line)) = line {
                        serve(line, front).await;
                    }
                }
            }
            drop(place);
        });
    }
}

/// The next connection.
async fn next(listener: &tokio::net::TcpListener) -> io::Result<tokio::net::TcpStream> {
    let (socket, _) = listener.accept().await?;
    // Without it a small answer waits for the acknowledgement of its head, up to 40 ms.
    socket.set_nodelay(true)?;
    Ok(socket)
}

async fn serve(line: impl AsyncRead + AsyncWrite + Unpin, front: Arc<Front>) {
    let service = service_fn(|request| answer(request, front.clone()));
    // An error is a client that went away, or a fault that was asked for.
    let _ = http1::Builder::new().writev(true).serve_connection(TokioIo::new(line), service).await;
}

/// An answer that is none: the connection closes.
#[derive(Debug, thiserror::Error)]
#[error("closed on demand, or by an answer that could not be built")]
struct Closed;

async fn answer(request: Request<Incoming>, front: Arc<Front>) -> Result<HttpResponse, Closed> {
    if front.fault_switch && request.uri().path() == "/__fault" {
        return Ok(switch(request.uri().query().unwrap_or(""), &front.faults));
    }
    front.tally.asked(request.method());
    let line = format!("{} {}", request.method(), request.uri());
    let fault = front.faults.draw(&line);
    match fault {
        Some(Mode::Close) => return Err(Closed),
        Some(mode @ (Mode::SlowDown | Mode::InternalError)) => return Ok(faults::refusal(mode)),
        Some(Mode::Stall(time)) => tokio::time::sleep(time).await,
        _ => {}
    }
    let response = match &front.files {
        Some(root) => {
            files::answer(root, request.method(), request.uri().path(), request.headers())
        }
        None => {
            let answer = hyper::service::Service::call(&front.s3, request);
            answer.await.map_err(|_| Closed)?
        }
    };
    let promised = response.headers().get(hyper::header::CONTENT_LENGTH);
    let promised = promised.and_then(|length| length.to_str().ok()?.parse().ok());
    let promised = promised.or_else(|| response.body().size_hint().exact());
    front.tally.bytes_out.fetch_add(promised.unwrap_or(0), Ordering::Relaxed);
    match fault {
        Some(Mode::CloseAfter) => Err(Closed),
        Some(mode @ (Mode::Truncate(_) | Mode::Corrupt(_))) => {
            Ok(faults::damage(mode, response, front.shape).await)
        }
        _ => Ok(response),
    }
}

impl Tally {
    fn asked(&self, method: &Method) {
        let counter = match *method {
            Method::GET => &self.gets,
            Method::HEAD => &self.heads,
            _ => &self.writes,
        };
        counter.fetch_add(1, Ordering::Relaxed);
    }
}

fn switch(query: &str, faults: &Faults) -> HttpResponse {
    let (status, text) = match Fault::parse(query) {
        Ok(fault) => {
            faults.set(fault);
            (StatusCode::OK, "ok\n".to_owned())
        }
        Err(text) => (StatusCode::BAD_REQUEST, format!("{text}\n")),
    };
    let mut response = HttpResponse::new(Body::from(text));
    *response.status_mut() = status;
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sockets_wait_for_no_acknowledgement() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        runtime.expect("a runtime").block_on(async {
            let here = (Ipv4Addr::LOCALHOST, 0);
            let listener = tokio::net::TcpListener::bind(here).await.expect("a free port");
            let address = listener.local_addr().expect("an address");
            let _client = tokio::net::TcpStream::connect(address).await.expect("it listens");
            let socket = next(&listener).await.expect("a connection");
            assert!(socket.nodelay().expect("an option"));
        });
    }
}
