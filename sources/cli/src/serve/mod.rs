//! `extmem serve`: one cache for every program on this machine.
//!
//! ```text
//!   V000 (TCP) ----------> v000 ----+
//!                                   +--> objects --> DiskCache --> source, once for all
//!   blocks (Unix, TCP) --> blocks --+       |
//!                                           +--> handles   v000: which version a client began with
//!                                           +--> spans     v000: ranges that lie in no single file
//! ```
//!
//! A request of V000 names an address; the answer names a file of the cache, which the client maps
//! itself. A request of our own protocol is answered with such a file's descriptor, or with bytes.
//! Files never change and leave by `unlink`, so what is open or mapped stays good.
//!
//! `seen` notes what all of them do, and `page` shows it.

mod ahead; // who reads on and on
mod blocks; // the second protocol: requests side by side
mod handles; // which version an old client may see
mod metrics; // what Prometheus is told
mod objects; // addresses to sources
mod page; // what people see
mod pieces; // parts of objects in memory that clients map
mod recent; // what was used last
mod saved; // what the cache spares its clients
mod seats; // places for connections, and shares of everything
mod seen; // who is there, what failed, what is hot
mod spans; // ranges across files
mod unix; // a socket of this machine, and who is on its other end
mod v000; // the first protocol

use std::{
    fs::{DirBuilder, File, OpenOptions, TryLockError},
    io::{self, Write},
    net::{AddrParseError, SocketAddr},
    num::NonZeroUsize,
    os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
    str::FromStr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use sd_notify::NotifyState;
use sources::{
    AllowList, Cache, CachePolicy,
    server::socket::{Socket, descriptors_max},
    size,
};
use tokio::{
    net::TcpListener,
    sync::{Semaphore, mpsc, watch},
    task::JoinSet,
};

use self::{
    blocks::Gate,
    handles::Handles,
    objects::Objects,
    page::Page,
    pieces::Pieces,
    seats::{Peer, Seats, Shares},
    seen::Seen,
    spans::Spans,
};
use crate::Failure;

/// Serve a disk cache to every program on this machine.
#[derive(clap::Args)]
#[command(
    // A service has its options in two places: the last of those that are given twice counts.
    args_override_self = true,
    after_help = "Addresses that clients may ask for start with one of the --allow prefixes; \
    without any, with s3://. Files are served from folders: --allow file:///srv/data.\n\
    There is no password on --listen: whoever reaches the port may ask, and only who may read the \
    directory (its owner) gets anything out of the answer. Listen on loopback addresses only.\n\
    SIGTERM and SIGINT stop it: requests under way are answered, what was read is written.\n\n\
    Examples:\n  \
    extmem serve --dir /var/cache/extmem\n  \
    extmem serve --dir /var/cache/extmem --max-bytes 200GiB --block-bytes 4MiB\n  \
    extmem serve --dir /var/cache/extmem --unix /run/extmem.sock --http 127.0.0.1:9010\n  \
    EXTMEM_SERVER=unix:///run/extmem.sock tdb dump -i s3://bucket/events.tdb\n  \
    extmem serve --dir ./cache --allow s3://logs/2026/ --allow https://host/pub/"
)]
pub(crate) struct Args {
    /// Address to serve protocol V000 on; port 0 takes any that is free. `none`: it is not served
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:9009")]
    listen: Listen,
    /// Unix socket to serve our own protocol on
    #[arg(long, value_name = "PATH")]
    unix: Option<PathBuf>,
    /// Users besides this one who may connect to it, by number
    #[arg(long, value_name = "UID", requires = "unix")]
    allow_uid: Vec<u32>,
    /// Address to serve our own protocol on by TCP, for clients that know the token
    #[arg(long, value_name = "ADDR", requires = "token_file")]
    tcp: Option<SocketAddr>,
    /// File with the token; this user alone should be able to read it
    #[arg(long, value_name = "FILE", requires = "tcp")]
    token_file: Option<PathBuf>,
    /// Address of a page for people that shows what the server does, and of /metrics, /healthz and
    /// /readyz
    #[arg(long, value_name = "ADDR")]
    http: Option<SocketAddr>,
    /// Let --http be an address that other machines reach; the page has no password
    #[arg(long, requires = "http")]
    http_anyone: bool,
    /// Name by which browsers may call the page, besides localhost and IP addresses
    #[arg(long, value_name = "NAME", requires = "http")]
    http_host: Vec<String>,
    /// Directory of the cache; it may be one that programs use by themselves, too
    #[arg(long, env = "EXTMEM_CACHE", value_name = "DIR")]
    dir: PathBuf,
    /// The most that the directory may take, whoever else uses it
    #[arg(long, value_name = "SIZE", default_value = "16GiB", value_parser = room)]
    max_bytes: u64,
    /// What must stay free on its disk
    #[arg(long, value_name = "SIZE", default_value = "1GiB", value_parser = size::parse)]
    free_bytes: u64,
    /// What is fetched at once for a byte that is missing: a power of two from 4KiB to 64MiB
    #[arg(long, value_name = "SIZE", default_value = "1MiB", value_parser = block)]
    block_bytes: u64,
    /// Memory for clients of --unix that map objects: each byte is there once for all of them. It is
    /// taken when they map, and given back when nobody has had it for five minutes. Size, or 0 for none.
    /// Users of --allow-uid could keep more of it than is counted [default: a quarter of the memory that
    /// is available at the start, limits of cgroups included, and 16GiB at most]
    #[arg(long, value_name = "SIZE", value_parser = size::parse, requires = "unix")]
    memory_bytes: Option<u64>,
    /// Addresses that may be asked for start with this; may be given more than once
    #[arg(long, value_name = "PREFIX")]
    allow: Vec<String>,
    /// Connections at once, to each of the addresses; further ones are closed, or take the place of one that has said nothing yet
    #[arg(long, value_name = "N", default_value = "1024")]
    connections_max: NonZeroUsize,
    /// Connections at once from one address, or by one user of this machine
    #[arg(long, value_name = "N", default_value = "512")]
    connections_per_client: NonZeroUsize,
    /// Requests of sources that are worked on at once, half of them for one client; others wait. What the disk has does not
    #[arg(long, value_name = "N", default_value_t = 256, value_parser = clap::value_parser!(u16).range(1..))]
    requests_max: u16,
}

/// How long requests under way may take after the signal to stop.
const DRAIN: Duration = Duration::from_secs(10);
/// How long answers to the page may take after that.
const PAGE_DRAIN: Duration = Duration::from_secs(1);
/// Of the bytes allowed, so many are for spans.
const SPAN_SHARE: u64 = 16;
const SPAN_BYTES_MIN: u64 = 16 << 20;
/// One span takes half of them at most, and the first clients ask for the head of a package in one, up
/// to 10,000,000 bytes: so many, where that is no more than a quarter of all.
const SPAN_BYTES_OF_HEADS: u64 = 32 << 20;
const SPAN_BYTES_MAX: u64 = 256 << 20;

/// The smallest cache: four files of 2 MiB, and spans.
const ROOM_BYTES_MIN: u64 = (8 << 20) + SPAN_BYTES_MIN;
/// Clients that map objects get this part of the memory that is available, unless told otherwise: what
/// is shared cannot be reclaimed without swap, and others have use for the rest.
const MEMORY_SHARE: u64 = 4;
/// And no more than this: in pieces of 1 MiB as many as there may be descriptors for.
const MEMORY_BYTES_MAX: u64 = 16 << 30;

/// Descriptors that are on their way to clients: at most this part of those that this process may have.
/// The kernel counts them, too, for the user who sends them.
const FILES_SHARE: u64 = 4;
const FILES_MAX: usize = 4096;

/// What all connections share.
pub(crate) struct Server {
    objects: Objects,
    handles: Handles,
    spans: Spans,
    pieces: Pieces,
    /// Fetched at once.
    extent_bytes: u64,
    /// Fetches ahead of readers.
    ahead: Arc<Semaphore>,
    seats: Arc<Seats>,
    files_paused: blocks::Pause,
    counts: Counts,
    seen: Seen,
    /// The most that the directory may take.
    bytes_max: u64,
}

/// What happened so far.
#[derive(Debug, Default)]
pub(crate) struct Counts {
    connections: AtomicU64,
    refused: AtomicU64,
    /// Connections of those who may ask for nothing.
    denied: AtomicU64,
    requests: AtomicU64,
    failures: AtomicU64,
}

pub(crate) fn run(args: &Args) -> Result<(), Failure> {
    let told = |text: String| Failure::Told(text);
    if args.listen.0.is_none() && args.unix.is_none() && args.tcp.is_none() {
        return Err(told("nobody could ask: give --listen, --unix or --tcp an address".to_owned()));
    }
    let mut allow = AllowList::new();
    let fallback = ["s3://".to_owned()];
    for prefix in if args.allow.is_empty() { &fallback[..] } else { &args.allow } {
        allow = allow.allow(prefix).map_err(|why| told(format!("--allow {prefix}: {why}")))?;
    }
    let span_bytes = span_bytes(args.max_bytes);
    let cache_bytes = args.max_bytes.saturating_sub(span_bytes);
    // Larger files mean fewer ranges that cross two of them; a queue wants a few dozen at least.
    let segment = (cache_bytes / 64).clamp(2 << 20, 16 << 20);
    let segment_bytes = (1 << segment.ilog2()).max(args.block_bytes);
    // Fewer of its files than four are no queue, and a file has a whole block.
    if cache_bytes < 4 * segment_bytes {
        let least = (4 * segment_bytes + SPAN_BYTES_OF_HEADS) >> 20;
        let block = segment_bytes >> 20;
        return Err(told(format!(
            "--max-bytes: with blocks of {block}MiB use at least {least}MiB"
        )));
    }
    let policy = CachePolicy {
        bytes_max: Some(cache_bytes),
        free_bytes_min: args.free_bytes,
        block_bytes: args.block_bytes.min(64 << 10),
        segment_bytes,
        // Of files alone: `Options::open_cached` sees to them.
        weak: false,
        // What is handed out is mapped as it lies there.
        key: None,
    };
    if std::env::var_os("EXTMEM_CACHE_KEY_FILE").is_some()
        || std::env::var_os("EXTMEM_CACHE_KEY").is_some()
    {
        let text = "a cache that is encrypted cannot be served: its files are what clients map";
        return Err(told(text.to_owned()));
    }
    let dir = std::path::absolute(&args.dir).map_err(|error| told(error.to_string()))?;
    let failed = |error: io::Error| Failure::Told(error.to_string());
    let lock = Lock::of(&dir);
    // Before anything is changed, where there was a server before.
    let locked = if lock.is_there() { Some(lock.take().map_err(failed)?) } else { None };
    let cache = Cache::open(&dir, policy).map_err(failed)?;
    let _locked = match locked {
        Some(locked) => locked,
        None => lock.take().map_err(failed)?,
    };
    let files_max = descriptors_max();
    let memory_bytes =
        args.memory_bytes.unwrap_or_else(|| memory_share(sources::available::memory()));
    let pieces = Pieces::new(memory_bytes, args.block_bytes, files_max);
    let shares = Shares {
        requests: args.requests_max.into(),
        files: usize::try_from(files_max / FILES_SHARE).unwrap_or(usize::MAX).min(FILES_MAX),
        fills: pieces.fills_max(),
    };
    let server = Server {
        handles: Handles::open(&dir.join("serve/handles")).map_err(failed)?,
        spans: Spans::open(&dir.join("serve/spans"), span_bytes).map_err(failed)?,
        pieces,
        objects: Objects::new(cache, allow),
        extent_bytes: args.block_bytes,
        ahead: Arc::new(Semaphore::new(ahead::FETCHES_MAX)),
        seats: Seats::new(args.connections_max.get(), args.connections_per_client.get(), shares),
        files_paused: blocks::Pause::default(),
        counts: Counts::default(),
        seen: Seen::default(),
        bytes_max: args.max_bytes,
    };
    server.spans.check_path_len().map_err(failed)?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    let runtime = runtime.map_err(|error| told(format!("threads: {error}")))?;
    let done = runtime.block_on(serve(args, Arc::new(server)));
    // A disk or a name server that hangs must not keep us.
    runtime.shutdown_timeout(Duration::from_secs(1));
    done
}

/// Where protocol V000 is served, if it is.
#[derive(Clone, Copy, Debug)]
struct Listen(Option<SocketAddr>);

impl FromStr for Listen {
    type Err = AddrParseError;

    fn from_str(text: &str) -> Result<Listen, AddrParseError> {
        match text {
            "none" => Ok(Listen(None)),
            address => address.parse().map(|address| Listen(Some(address))),
        }
    }
}

/// A size of the cache.
fn room(text: &str) -> Result<u64, String> {
    match size::parse(text)? {
        bytes if bytes >= ROOM_BYTES_MIN => Ok(bytes),
        _ => Err(format!("use at least {}MiB", ROOM_BYTES_MIN >> 20)),
    }
}

/// A size of blocks.
fn block(text: &str) -> Result<u64, String> {
    match size::parse(text)? {
        bytes if bytes.is_power_of_two() && (4 << 10..=64 << 20).contains(&bytes) => Ok(bytes),
        _ => Err("use a power of two from 4KiB to 64MiB".to_owned()),
    }
}

/// What memory for clients is where nobody says how much, of what is available. 0 where the system does
/// not say what that is.
fn memory_share(available: Option<u64>) -> u64 {
    (available.unwrap_or(0) / MEMORY_SHARE).min(MEMORY_BYTES_MAX)
}

/// How much of a cache that may take `bytes_max` is for ranges that lie in no single file.
fn span_bytes(bytes_max: u64) -> u64 {
    let least = (bytes_max / 4).clamp(SPAN_BYTES_MIN, SPAN_BYTES_OF_HEADS);
    (bytes_max / SPAN_SHARE).clamp(least, SPAN_BYTES_MAX)
}

/// One server for each directory: a second one would sweep away what the first is writing.
struct Lock {
    folder: PathBuf,
}

impl Lock {
    fn of(dir: &Path) -> Lock {
        Lock { folder: dir.join("serve") }
    }

    fn is_there(&self) -> bool {
        self.folder.join("lock").exists()
    }

    /// Held until it is dropped, or the process ends in whatever way.
    fn take(&self) -> io::Result<File> {
        DirBuilder::new().recursive(true).mode(0o700).create(&self.folder)?;
        let mut how = OpenOptions::new();
        how.read(true).write(true).create(true).truncate(false).mode(0o600);
        let file = how.open(self.folder.join("lock"))?;
        match file.try_lock() {
            Ok(()) => Ok(file),
            Err(TryLockError::WouldBlock) => {
                let text = format!("{}: another server uses this directory", self.folder.display());
                Err(io::Error::new(io::ErrorKind::AddrInUse, text))
            }
            Err(TryLockError::Error(error)) => Err(error),
        }
    }
}

/// What is worth a thought before other machines reach it.
fn warn_of_strangers(args: &Args) {
    let told = "it is no loopback address, so other machines may reach it";
    let v000 = "whoever does may make this server fetch what is allowed, and ask what is there";
    let tcp = "token and bytes cross the network as they are";
    let listeners = [("--listen", args.listen.0, v000), ("--tcp", args.tcp, tcp)];
    for (name, address, why) in listeners {
        if let Some(address) = address.filter(|address| !address.ip().is_loopback()) {
            let line = format!("extmem: warning: {name} {address}: {told}: {why}\n");
            let _ = io::stderr().write_all(line.as_bytes());
        }
    }
    // What others can read, they can say.
    if let Some(file) = &args.token_file
        && let Ok(found) = std::fs::metadata(file)
        && found.permissions().mode() & 0o077 != 0
    {
        let file = file.display();
        let line = format!("extmem: warning: --token-file {file}: others may read it: chmod 600\n");
        let _ = io::stderr().write_all(line.as_bytes());
    }
}

/// Tells whoever started this process as a service, if it asks for that.
fn notify(state: NotifyState<'_>) {
    if let Err(error) = sd_notify::notify(&[state]) {
        tracing::warn!(%error, "the service manager could not be told");
    }
}

async fn serve(args: &Args, server: Arc<Server>) -> Result<(), Failure> {
    let (stop, stopping) = watch::channel(false);
    let v000 = V000::bind(args.listen).await?;
    let mut signals = signals().map_err(|error| Failure::Told(format!("signals: {error}")))?;
    let blocks = Blocks::bind(args).await?;
    warn_of_strangers(args);
    let page = match args.http {
        Some(http) => {
            let page = Page::bind(http, args.http_anyone, &args.http_host).await;
            Some(page.map_err(|error| Failure::Told(format!("--http {http}: {error}")))?)
        }
        None => None,
    };
    // Whoever waits for the last of these lines may connect.
    let mut lines = v000.lines()?;
    lines.push_str(&blocks.lines()?);
    if blocks.unix.is_some() {
        lines.push_str(&match server.pieces.room_bytes() {
            0 => "extmem: no memory for clients that map objects\n".to_owned(),
            room => format!("extmem: up to {} for clients that map objects\n", size::show(room)),
        });
    }
    if let Some(page) = &page {
        lines.push_str(&format!("extmem: serving a page on http://{}/\n", page.address()));
    }
    lines.push_str("extmem: ready\n");
    let mut out = io::stdout();
    out.write_all(lines.as_bytes()).and_then(|()| out.flush()).map_err(Failure::output)?;
    notify(NotifyState::Ready);

    if args.allow.is_empty() || args.allow.iter().any(|prefix| prefix.starts_with("s3:")) {
        let server = server.clone();
        tokio::spawn(async move { server.objects.warm_up().await });
    }

    let keeper = server.clone();
    tokio::spawn(async move { keeper.pieces.give_back().await });

    // It says until the end how that goes.
    let (close, closing) = watch::channel(false);
    let page = page.map(|page| tokio::spawn(page.serve(server.clone(), stopping.clone(), closing)));

    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            _ = signals.recv() => break,
            accepted = v000.accept() => match accepted {
                Ok((stream, peer)) => server.take(&mut connections, stream, peer, &stopping),
                // Out of descriptors, or a client that left at once: neither ends the server.
                Err(error) => {
                    tracing::warn!(%error, "a connection could not be accepted");
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
            },
            accepted = blocks.unix() => match accepted {
                Ok((stream, gate, peer)) => {
                    let socket = Socket::Unix(stream);
                    server.take_blocks(&mut connections, socket, gate, peer, &stopping);
                }
                Err(error) => {
                    tracing::warn!(%error, "a connection could not be accepted");
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
            },
            accepted = blocks.tcp() => match accepted {
                Ok((stream, peer, gate)) => {
                    let _ = stream.set_nodelay(true);
                    let socket = Socket::Tcp(stream);
                    let peer = Peer::Tcp(peer.ip());
                    server.take_blocks(&mut connections, socket, gate, peer, &stopping);
                }
                Err(error) => {
                    tracing::warn!(%error, "a connection could not be accepted");
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
            },
            Some(_) = connections.join_next(), if !connections.is_empty() => {}
        }
    }
    notify(NotifyState::Stopping);
    drop((v000, blocks));
    let _ = stop.send(true);
    let drained =
        tokio::time::timeout(DRAIN, async { while connections.join_next().await.is_some() {} });
    if drained.await.is_err() {
        tracing::warn!(left = connections.len(), "stopped with requests under way");
        connections.abort_all();
    }
    if let Err(error) = server.objects.cache().flush().await {
        tracing::warn!(%error, "stopped with blocks unwritten");
    }
    let _ = close.send(true);
    if let Some(page) = page {
        let abort = page.abort_handle();
        if tokio::time::timeout(PAGE_DRAIN, page).await.is_err() {
            abort.abort();
        }
    }
    let count = server.objects.cache().count();
    let line = format!(
        "extmem: served {} request(s) on {} connection(s), {} failed; {} from disk, {} fetched\n",
        server.counts.requests.load(Relaxed),
        server.counts.connections.load(Relaxed),
        server.counts.failures.load(Relaxed),
        size::show(count.hit_bytes),
        size::show(server.objects.traffic().count().bytes),
    );
    let _ = io::stderr().write_all(line.as_bytes());
    Ok(())
}

/// The listener of protocol V000.
struct V000(Option<TcpListener>);

impl V000 {
    async fn bind(listen: Listen) -> Result<V000, Failure> {
        let Some(address) = listen.0 else { return Ok(V000(None)) };
        let bound = TcpListener::bind(address).await;
        Ok(V000(Some(bound.map_err(|error| Failure::Told(format!("{address}: {error}")))?)))
    }

    fn lines(&self) -> Result<String, Failure> {
        let Some(listener) = &self.0 else { return Ok(String::new()) };
        let address = listener.local_addr().map_err(|error| Failure::Told(error.to_string()))?;
        Ok(format!("extmem: serving V000 on {address}\n"))
    }

    async fn accept(&self) -> io::Result<(tokio::net::TcpStream, SocketAddr)> {
        match &self.0 {
            Some(listener) => listener.accept().await,
            None => std::future::pending().await,
        }
    }
}

/// The listeners of our own protocol.
struct Blocks {
    unix: Option<unix::Listener>,
    tcp: Option<(TcpListener, String)>,
}

impl Blocks {
    async fn bind(args: &Args) -> Result<Blocks, Failure> {
        let told = |what: &dyn std::fmt::Display, error: io::Error| {
            Failure::Told(format!("{what}: {error}"))
        };
        let unix = match &args.unix {
            Some(path) => {
                let listener = unix::Listener::bind(path, &args.allow_uid);
                Some(listener.map_err(|error| told(&path.display(), error))?)
            }
            None => None,
        };
        let tcp = match (&args.tcp, &args.token_file) {
            (Some(address), Some(file)) => {
                let token = std::fs::read_to_string(file);
                let token = token.map_err(|error| told(&file.display(), error))?.trim().to_owned();
                if token.len() < 16 {
                    let text = "a token has at least 16 letters; `openssl rand -hex 32` makes one";
                    return Err(Failure::Told(format!("{}: {text}", file.display())));
                }
                let bound = TcpListener::bind(address).await;
                Some((bound.map_err(|error| told(address, error))?, token))
            }
            _ => None,
        };
        Ok(Blocks { unix, tcp })
    }

    fn lines(&self) -> Result<String, Failure> {
        let mut lines = String::new();
        if let Some(unix) = &self.unix {
            lines
                .push_str(&format!("extmem: serving blocks on unix://{}\n", unix.path().display()));
        }
        if let Some((tcp, _)) = &self.tcp {
            let address = tcp.local_addr().map_err(|error| Failure::Told(error.to_string()))?;
            lines.push_str(&format!("extmem: serving blocks on tcp://{address}\n"));
        }
        Ok(lines)
    }

    async fn unix(&self) -> io::Result<(tokio::net::UnixStream, Gate, Peer)> {
        match &self.unix {
            Some(listener) => listener.accept().await,
            None => std::future::pending().await,
        }
    }

    async fn tcp(&self) -> io::Result<(tokio::net::TcpStream, SocketAddr, Gate)> {
        match &self.tcp {
            Some((listener, token)) => {
                let (stream, peer) = listener.accept().await?;
                Ok((stream, peer, Gate::Token(token.clone())))
            }
            None => std::future::pending().await,
        }
    }
}

/// Yields when the server is told to stop. The second time, it stops at once.
fn signals() -> io::Result<mpsc::Receiver<()>> {
    use signal_hook::{
        consts::{SIGINT, SIGTERM},
        iterator::Signals,
    };
    let mut signals = Signals::new([SIGINT, SIGTERM])?;
    let (sender, receiver) = mpsc::channel(1);
    let wait = move || {
        for (n, signal) in signals.forever().enumerate() {
            if n > 0 {
                std::process::exit(128 + signal);
            }
            let _ = sender.try_send(());
        }
    };
    std::thread::Builder::new().name("extmem-signals".to_owned()).spawn(wait)?;
    Ok(receiver)
}

/// A name for a file that stands for `bytes`, and for nothing else.
fn digest(bytes: &[u8]) -> String {
    use sha2::{Digest, Sha256};
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

impl Server {
    /// Serves a connection, unless there are too many.
    fn take(
        self: &Arc<Server>,
        connections: &mut JoinSet<()>,
        stream: tokio::net::TcpStream,
        peer: SocketAddr,
        stopping: &watch::Receiver<bool>,
    ) {
        let Some(seat) = self.seats.take(Peer::V000(peer.ip())) else {
            self.counts.refused.fetch_add(1, Relaxed);
            return;
        };
        self.counts.connections.fetch_add(1, Relaxed);
        let (server, stopping) = (self.clone(), stopping.clone());
        connections.spawn(async move {
            let listed = server.list("V000", peer.to_string());
            v000::serve(&server, &listed.client, stream, &seat, stopping).await;
            drop((seat, listed));
        });
    }

    /// Notes that `client` may ask for nothing: somebody tries, or has a wrong token or user by mistake.
    fn denied(&self, client: &seen::Client, why: &str) {
        let before = self.counts.denied.fetch_add(1, Relaxed);
        self.seen.denied(client, why, before + 1);
    }

    fn take_blocks(
        self: &Arc<Server>,
        connections: &mut JoinSet<()>,
        socket: Socket,
        gate: Gate,
        peer: Peer,
        stopping: &watch::Receiver<bool>,
    ) {
        let Some(seat) = self.seats.take(peer) else {
            self.counts.refused.fetch_add(1, Relaxed);
            return;
        };
        self.counts.connections.fetch_add(1, Relaxed);
        let (server, stopping) = (self.clone(), stopping.clone());
        connections.spawn(async move {
            let listed = server.list("blocks", seen::who(&socket));
            blocks::serve(&server, &listed.client, socket, seat, &gate, stopping).await;
            drop(listed);
        });
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Command {
        #[command(flatten)]
        args: Args,
    }

    #[test]
    fn clients_get_a_quarter_of_the_memory_that_there_is() {
        let cases = [
            (None, 0),
            (Some(0), 0),
            (Some(8 << 30), 2 << 30),
            (Some(200 << 30), MEMORY_BYTES_MAX),
        ];
        for (available, expected) in cases {
            assert_eq!(memory_share(available), expected, "{available:?}");
        }
    }

    /// Clients of other machines have no business here unless somebody says so.
    #[test]
    fn it_listens_on_loopback_where_nothing_else_is_said() {
        let args = |more: &[&str]| {
            let words = ["serve", "--dir", "/var/cache/extmem"].iter().chain(more);
            Command::try_parse_from(words).map(|command| command.args).expect("arguments")
        };
        let args_alone = args(&[]);
        let listens = |args: &Args| args.listen.0.map(|address| address.to_string());
        assert_eq!(listens(&args_alone).as_deref(), Some("127.0.0.1:9009"));
        assert!(args_alone.tcp.is_none() && args_alone.http.is_none() && args_alone.unix.is_none());
        assert_eq!(listens(&args(&["--listen", "[::1]:0"])).as_deref(), Some("[::1]:0"));
        assert_eq!(listens(&args(&["--listen", "none"])), None);
    }
}
