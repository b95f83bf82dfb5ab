//! `--http ADDR`: what the server does, for people (`/`), for Prometheus (`/metrics`) and for whoever
//! restarts it (`/healthz`, `/readyz`).
//!
//! ```text
//!   browser --GET /--------------> page/index.html, .css, .js    compiled in; nothing from elsewhere
//!           --GET /api/state-----> everything the page shows, as JSON, once a second
//! ```
//!
//! Nothing can be changed here, and there is no password, so it listens on loopback addresses. A web
//! page from elsewhere that has its own name point here (DNS rebinding) is refused by the `Host` that
//! its browser sends. Addresses of objects are shown without what may be a secret (`seen::shown`).

use std::{
    collections::BTreeMap,
    future::Future,
    io,
    net::{IpAddr, SocketAddr},
    pin::Pin,
    sync::{Arc, PoisonError},
    task::{Context, Poll},
    time::{Duration, Instant},
};

use axum::{
    Router,
    extract::{Request, State},
    http::{HeaderMap, HeaderName, StatusCode, header},
    middleware::{self, Next},
    response::{IntoResponse, Response},
    routing::get,
};
use serde_json::{Value, json};
use sources::disk_cache::ObjectMap;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpListener, TcpStream},
    sync::{Mutex, oneshot, watch},
    time::Sleep,
};

use super::{Server, metrics, saved::Saved, seen};

/// Connections at once. A further one takes the place of the one that took nothing for longest: what asks
/// whether the server lives has an answer, whoever else is slow.
const CONNECTIONS_MAX: usize = 64;
/// For a request to come in whole, and for some bytes of an answer to be taken.
const STALL: Duration = Duration::from_secs(30);
/// Objects in the picture: those with most bytes in the cache.
const OBJECTS_MAX: usize = 24;
/// Connections that are listed.
const CLIENTS_MAX: usize = 50;
/// A picture is as old as this, or as ten times what it took to make.
const PICTURE_AGE: Duration = Duration::from_millis(500);

/// What a page may do: run the script beside it and ask its server.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; \
                      connect-src 'self'; base-uri 'none'; form-action 'none'; \
                      frame-ancestors 'none'";
const HEADERS: [(HeaderName, &str); 5] = [
    (header::CONTENT_SECURITY_POLICY, POLICY),
    (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
    (header::REFERRER_POLICY, "no-referrer"),
    (header::CACHE_CONTROL, "no-store"),
    (HeaderName::from_static("cross-origin-resource-policy"), "same-origin"),
];

const INDEX: &str = include_str!("page/index.html");
const STYLE: &str = include_str!("page/page.css");
const SCRIPT: &str = include_str!("page/page.js");
const ICON: &str = include_str!("page/icon.svg");

/// The page's listener.
pub(super) struct Page {
    listener: TcpListener,
    address: SocketAddr,
    hosts: Vec<String>,
}

/// What the handlers share.
struct Shared {
    server: Arc<Server>,
    hosts: Vec<String>,
    picture: Mutex<Option<Picture>>,
    stopping: watch::Receiver<bool>,
}

/// What lies on the disk.
#[derive(Clone)]
struct Picture {
    made: Instant,
    took: Duration,
    used_bytes: u64,
    maps: Arc<Vec<ObjectMap>>,
}

impl Page {
    /// # Errors
    /// When the address cannot be had, or others than this machine's would reach it and `anyone` does
    /// not say that they may.
    pub(super) async fn bind(
        address: SocketAddr,
        anyone: bool,
        hosts: &[String],
    ) -> io::Result<Page> {
        if !address.ip().is_loopback() && !anyone {
            let text = "others than this machine would reach the page, which has no password; \
                        use a loopback address, or say --http-anyone";
            return Err(io::Error::new(io::ErrorKind::InvalidInput, text));
        }
        let listener = TcpListener::bind(address).await?;
        let address = listener.local_addr()?;
        Ok(Page { listener, address, hosts: hosts.to_vec() })
    }

    pub(super) fn address(&self) -> SocketAddr {
        self.address
    }

    /// Answers until `closing`. `stopping` says that the server has begun to stop.
    pub(super) async fn serve(
        self,
        server: Arc<Server>,
        stopping: watch::Receiver<bool>,
        mut closing: watch::Receiver<bool>,
    ) {
        let shared = Shared { server, hosts: self.hosts, picture: Mutex::default(), stopping };
        let shared = Arc::new(shared);
        let app = Router::new()
            .route("/", get(|| text("text/html; charset=utf-8", INDEX)))
            .route("/page.css", get(|| text("text/css; charset=utf-8", STYLE)))
            .route("/page.js", get(|| text("text/javascript; charset=utf-8", SCRIPT)))
            .route("/icon.svg", get(|| text("image/svg+xml", ICON)))
            .route("/api/state", get(state))
            .route("/metrics", get(prometheus))
            .route("/healthz", get(|| text("text/plain; charset=utf-8", "alive\n")))
            .route("/readyz", get(ready))
            .layer(middleware::from_fn_with_state(shared.clone(), guard))
            .with_state(shared);
        let seats = Arc::<Seats>::default();
        let listener = Seated { listener: self.listener, address: self.address, seats };
        let closed = async move {
            let _ = closing.wait_for(|closing| *closing).await;
        };
        // It ends when it is told to, and not before.
        let _ = axum::serve(listener, app).with_graceful_shutdown(closed).await;
    }
}

/// Refuses what a browser sends for a page from elsewhere, and puts headers on every answer.
async fn guard(State(shared): State<Arc<Shared>>, request: Request, next: Next) -> Response {
    let mut response = match is_for_us(request.headers(), &shared.hosts) {
        true => next.run(request).await,
        false => {
            let text = "this server is not called so; if it is, start it with --http-host NAME\n";
            (StatusCode::MISDIRECTED_REQUEST, text).into_response()
        }
    };
    for (name, value) in HEADERS {
        response.headers_mut().insert(name, axum::http::HeaderValue::from_static(value));
    }
    response
}

/// Whether a request was meant for this server. Somebody else's name can be made to point here; an
/// IP address cannot, nor can `localhost`.
fn is_for_us(headers: &HeaderMap, hosts: &[String]) -> bool {
    let mut all = headers.get_all(header::HOST).iter();
    let (Some(host), None) = (all.next(), all.next()) else { return false };
    let Ok(host) = host.to_str() else { return false };
    let name = match host.strip_prefix('[') {
        Some(rest) => rest.split_once(']').map_or("", |(name, _)| name),
        None => host.split_once(':').map_or(host, |(name, _)| name),
    };
    let is = |ours: &str| name.eq_ignore_ascii_case(ours);
    name.parse::<IpAddr>().is_ok() || is("localhost") || hosts.iter().any(|ours| is(ours))
}

async fn text(kind: &'static str, body: &'static str) -> Response {
    ([(header::CONTENT_TYPE, kind)], body).into_response()
}

async fn ready(State(shared): State<Arc<Shared>>) -> Response {
    match *shared.stopping.borrow() {
        false => (StatusCode::OK, "ready\n").into_response(),
        true => (StatusCode::SERVICE_UNAVAILABLE, "stopping\n").into_response(),
    }
}

async fn prometheus(State(shared): State<Arc<Shared>>) -> Response {
    match shared.picture().await {
        Ok(picture) => {
            let kind = "text/plain; version=0.0.4; charset=utf-8";
            let stopping = *shared.stopping.borrow();
            let body = metrics::text(&shared.server, picture.used_bytes, stopping);
            ([(header::CONTENT_TYPE, kind)], body).into_response()
        }
        Err(error) => unreadable(&error),
    }
}

async fn state(State(shared): State<Arc<Shared>>) -> Response {
    match shared.picture().await {
        Ok(picture) => {
            let kind = [(header::CONTENT_TYPE, "application/json")];
            (kind, shared.state(&picture).to_string()).into_response()
        }
        Err(error) => unreadable(&error),
    }
}

fn unreadable(error: &io::Error) -> Response {
    let text = format!("the directory of the cache cannot be read: {error}\n");
    (StatusCode::INTERNAL_SERVER_ERROR, text).into_response()
}

impl Shared {
    /// What lies on the disk, looked at once for all who ask at about the same time.
    async fn picture(&self) -> io::Result<Picture> {
        let mut picture = self.picture.lock().await;
        if let Some(picture) = &*picture
            && picture.made.elapsed() < PICTURE_AGE.max(picture.took * 10)
        {
            return Ok(picture.clone());
        }
        let cache = self.server.objects.cache().clone();
        let look = move || {
            let made = Instant::now();
            let maps = Arc::new(cache.maps(OBJECTS_MAX, seen::CELLS_MAX)?);
            Ok(Picture { made, used_bytes: cache.used_bytes()?, maps, took: made.elapsed() })
        };
        let looked = tokio::task::spawn_blocking(look).await;
        let made = looked.unwrap_or_else(|_| Err(io::Error::other("the server stops")))?;
        Ok(picture.insert(made).clone())
    }

    fn state(&self, picture: &Picture) -> Value {
        let (server, seen) = (&self.server, &self.server.seen);
        let (count, traffic) = (server.objects.cache().count(), server.objects.traffic().count());
        let saved = Saved::of(server);
        let counted = |counter: &std::sync::atomic::AtomicU64| {
            counter.load(std::sync::atomic::Ordering::Relaxed)
        };
        let (clients, by_protocol) = seen.clients(CLIENTS_MAX);
        let now = Instant::now();
        let ago = |at: Instant| now.saturating_duration_since(at).as_secs();
        let text = |text: &Option<String>| text.as_deref().map(seen::shown);
        // Nobody's request fails of it.
        let trouble = text(&server.objects.cache().trouble());
        let trouble = trouble
            .iter()
            .map(|what| json!({ "ago_s": 0, "who": "the cache", "what": what, "times": 1 }));
        let object = |map: &ObjectMap| {
            json!({
                "id": map.id, "name": text(&map.name), "version": text(&map.version),
                "bytes": map.len, "cached_bytes": map.cached_bytes, "block_bytes": map.block_bytes,
                // Percent, one for each part.
                "resident": map.cells.iter().map(|cell| cell.resident).collect::<Vec<_>>(),
                // A digit, 0 to 3, for each part.
                "heat": seen.heat(map).iter().map(u8::to_string).collect::<String>(),
                "again": map.cells.iter().filter(|cell| cell.heat > 0).count(),
            })
        };
        json!({
            "version": env!("CARGO_PKG_VERSION"),
            "uptime_s": seen.uptime().as_secs(),
            "stopping": *self.stopping.borrow(),
            "cache": {
                "used_bytes": picture.used_bytes, "bytes_max": server.bytes_max,
                "hit_blocks": count.hit_blocks, "hit_bytes": count.hit_bytes,
                "missed_blocks": count.missed_blocks, "joined_blocks": count.joined_blocks,
                "stored_bytes": count.stored_bytes, "evicted_bytes": count.evicted_bytes,
                "skipped_blocks": count.skipped_blocks, "damaged_blocks": count.damaged_blocks,
            },
            "source": {
                "gets": traffic.gets, "stats": traffic.stats, "bytes": traffic.bytes,
                "errors": traffic.errors, "throttles": traffic.throttles,
            },
            "saved": {
                "requests": saved.requests, "bytes": saved.bytes,
                "usd_internet": saved.usd_internet, "usd_region": saved.usd_region,
            },
            "requests": {
                "total": counted(&server.counts.requests), "failed": counted(&server.counts.failures),
                "under_way": seen.under_way(),
            },
            "connections": {
                "total": counted(&server.counts.connections),
                "refused": counted(&server.counts.refused),
                "denied": counted(&server.counts.denied),
                "open": by_protocol.values().sum::<usize>(),
            },
            "clients": clients.iter().map(|client| json!({
                "who": client.who, "protocol": client.protocol, "since_s": ago(client.since),
                "requests": counted(&client.requests),
            })).collect::<Vec<_>>(),
            "failures": trouble.chain(seen.failures().iter().map(|failed| json!({
                "ago_s": ago(failed.at), "who": failed.who, "what": failed.what,
                "times": failed.times,
            }))).collect::<Vec<_>>(),
            "objects": picture.maps.iter().map(object).collect::<Vec<_>>(),
            "objects_max": OBJECTS_MAX,
        })
    }
}

/// A listener with so many seats.
struct Seated {
    listener: TcpListener,
    address: SocketAddr,
    seats: Arc<Seats>,
}

/// Who has a connection, by when it last took something, and which of them came first.
#[derive(Default)]
struct Seats {
    held: std::sync::Mutex<BTreeMap<(Instant, u64), oneshot::Sender<()>>>,
    next: std::sync::atomic::AtomicU64,
}

/// A place, free again when it is dropped.
struct Sitting {
    seats: Arc<Seats>,
    key: (Instant, u64),
    /// Ends when another takes it.
    ousted: oneshot::Receiver<()>,
    is_out: bool,
}

impl Seats {
    fn with<T>(
        &self,
        work: impl FnOnce(&mut BTreeMap<(Instant, u64), oneshot::Sender<()>>) -> T,
    ) -> T {
        work(&mut self.held.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn take(self: &Arc<Seats>) -> Sitting {
        let (stays, ousted) = oneshot::channel();
        let number = self.next.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let key = (Instant::now(), number);
        self.with(|held| {
            if held.len() >= CONNECTIONS_MAX {
                held.pop_first();
            }
            held.insert(key, stays);
        });
        Sitting { seats: self.clone(), key, ousted, is_out: false }
    }
}

impl Sitting {
    /// It has taken something.
    fn took(&mut self) {
        let key = (Instant::now(), self.key.1);
        self.seats.with(|held| {
            if let Some(stays) = held.remove(&self.key) {
                held.insert(key, stays);
                self.key = key;
            }
        });
    }
}

impl Drop for Sitting {
    fn drop(&mut self) {
        self.seats.with(|held| held.remove(&self.key));
    }
}

impl axum::serve::Listener for Seated {
    type Io = Timed;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Timed, SocketAddr) {
        loop {
            match self.listener.accept().await {
                Ok((stream, peer)) => {
                    let _ = stream.set_nodelay(true);
                    return (Timed::new(stream, self.seats.take()), peer);
                }
                // Out of descriptors, or a client that left at once.
                Err(error) => {
                    tracing::warn!(%error, "a connection to the page could not be accepted");
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
            }
        }
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        Ok(self.address)
    }
}

/// A connection that ends when its client takes nothing for [`STALL`], be it that it sends no whole
/// request or that it reads no answer, or when another has its place.
struct Timed<S = TcpStream> {
    stream: S,
    end: Pin<Box<Sleep>>,
    seat: Sitting,
}

impl<S> Timed<S> {
    fn new(stream: S, seat: Sitting) -> Timed<S> {
        Timed { stream, end: Box::pin(tokio::time::sleep(STALL)), seat }
    }

    fn check(&mut self, context: &mut Context<'_>) -> io::Result<()> {
        if !self.seat.is_out {
            self.seat.is_out = Pin::new(&mut self.seat.ousted).poll(context).is_ready();
        }
        if self.seat.is_out {
            return Err(io::ErrorKind::ConnectionAborted.into());
        }
        match self.end.as_mut().poll(context) {
            Poll::Ready(()) => Err(io::ErrorKind::TimedOut.into()),
            Poll::Pending => Ok(()),
        }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Timed<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.check(context)?;
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Timed<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.check(context)?;
        let written = Pin::new(&mut self.stream).poll_write(context, bytes);
        if written.is_ready() {
            self.end.as_mut().reset(tokio::time::Instant::now() + STALL);
            self.seat.took();
        }
        written
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_names_that_nobody_else_can_have() {
        let ours = ["cache.example".to_owned()];
        let cases = [
            (&["localhost:9010"][..], true),
            (&["LOCALHOST"], true),
            (&["127.0.0.1:9010"], true),
            (&["[::1]:9010"], true),
            (&["192.0.2.7"], true),
            (&["cache.example:80"], true),
            (&["evil.example"], false),
            (&["localhost.evil.example:9010"], false),
            (&["127.0.0.1.evil.example"], false),
            (&["evil.cache.example"], false),
            (&["[::1.evil.example]"], false),
            (&["[::1"], false),
            (&[""], false),
            (&[], false),
            (&["localhost", "evil.example"], false),
        ];
        for (hosts, expected) in cases {
            let mut headers = HeaderMap::new();
            for host in hosts {
                headers.append(header::HOST, host.parse().expect("a header"));
            }
            assert_eq!(is_for_us(&headers, &ours), expected, "{hosts:?}");
        }
    }

    /// Who trickles a request has its time all the same, and who reads an answer gets more.
    #[tokio::test(start_paused = true)]
    async fn a_client_that_takes_nothing_is_given_up() {
        use tokio::io::{AsyncReadExt, AsyncWriteExt};
        let (mut client, stream) = tokio::io::duplex(64);
        let seats = Arc::<Seats>::default();
        let mut timed = Timed::new(stream, seats.take());
        let mut byte = [0];
        for _ in 0..2 {
            tokio::time::advance(STALL * 9 / 10).await;
            timed.write_all(b"x").await.expect("it has read");
        }
        for _ in 0..9 {
            client.write_all(b"G").await.expect("send");
            timed.read_exact(&mut byte).await.expect("in time");
            tokio::time::advance(STALL / 9 + Duration::from_millis(1)).await;
        }
        client.write_all(b"G").await.expect("send");
        let late = timed.read_exact(&mut byte).await.expect_err("too late");
        assert_eq!(late.kind(), io::ErrorKind::TimedOut);
        drop(timed);
        seats.with(|held| assert!(held.is_empty()));
    }

    #[tokio::test]
    async fn who_took_nothing_for_longest_gives_way() {
        use tokio::io::AsyncWriteExt;
        let seats = Arc::<Seats>::default();
        let mut all: Vec<_> = (0..CONNECTIONS_MAX)
            .map(|_| {
                let (client, stream) = tokio::io::duplex(64);
                (client, Timed::new(stream, seats.take()))
            })
            .collect();
        all[0].1.write_all(b"x").await.expect("it has its place");
        let _one_more = seats.take();
        seats.with(|held| assert_eq!(held.len(), CONNECTIONS_MAX));
        for _ in 0..2 {
            let gone = all[1].1.write_all(b"x").await.expect_err("the second gave way");
            assert_eq!(gone.kind(), io::ErrorKind::ConnectionAborted);
        }
        for n in [0, 2, CONNECTIONS_MAX - 1] {
            all[n].1.write_all(b"x").await.expect("it has its place");
        }
        drop(all);
        seats.with(|held| assert_eq!(held.len(), 1, "who was ousted took none along"));
    }
}
