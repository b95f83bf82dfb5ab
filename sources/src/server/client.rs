//! One connection to a block server, which many objects share: made when it is needed, and again
//! when it is lost.

use std::{
    collections::HashMap,
    fs::File,
    io,
    os::fd::OwnedFd,
    path::PathBuf,
    sync::{
        Arc, Mutex, PoisonError, Weak,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use bytes::Bytes;
use tokio::{
    net::{TcpStream, UnixStream},
    sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot},
    time::{Instant, timeout},
};
use tracing::debug;

use super::{
    frames::{Answer, Code, FILES, MEMORY, NO_HANDLE, READ_BYTES_MAX, Request},
    socket::{Incoming, Socket},
};

/// How long connecting and the hello may take.
const CONNECT_WAIT: Duration = Duration::from_secs(5);
/// How long a frame may take from its first byte on, and how long the server may leave ours unread.
const FRAME_WAIT: Duration = Duration::from_secs(10);
/// How long a server that could not be reached is left alone: at first, and at most.
const BACKOFF_MIN: Duration = Duration::from_millis(50);
const BACKOFF_MAX: Duration = Duration::from_secs(5);
/// And so many times as long as it took to see that, but not longer than this.
const TOOK_SHARE: u32 = 4;
const TOOK_MAX: Duration = Duration::from_secs(20);
/// A server that has said nothing for so long, although it was asked, is asked whether it is still there: the
/// answer to a read may take as long as its source does, that one comes at once.
const SILENCE: Duration = Duration::from_secs(5);
/// If it says nothing for so long then, the connection is lost. A frame may take as long.
const SIGN_WAIT: Duration = FRAME_WAIT;
/// How long answers come without files when there was no descriptor for one.
const FILES_PAUSE: Duration = Duration::from_secs(60);
/// Frames that may wait to be sent.
const SENDING_MAX: usize = 64;

/// Where a block server listens.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Place {
    /// A Unix socket.
    Unix(PathBuf),
    /// A host and a port.
    Tcp(String),
}

impl std::fmt::Display for Place {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Place::Unix(path) => write!(f, "unix://{}", path.display()),
            Place::Tcp(address) => write!(f, "tcp://{address}"),
        }
    }
}

/// See the module. Clones are the same.
#[derive(Clone, Debug)]
pub struct Link {
    inner: Arc<Inner>,
}

struct Inner {
    place: Place,
    token: String,
    /// Held while connecting, so that one does it for all.
    state: tokio::sync::Mutex<State>,
    generations: AtomicU64,
    /// Until when no files are asked for.
    bare: Arc<Mutex<Option<Instant>>>,
}

/// Without the token.
impl std::fmt::Debug for Inner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Link").field("place", &self.place).finish_non_exhaustive()
    }
}

#[derive(Debug, Default)]
struct State {
    connection: Option<Arc<Connection>>,
    /// Until a server has answered something again.
    failure: Option<Failure>,
}

impl State {
    /// What went wrong a moment ago, for as long as that counts.
    fn check(&self) -> Result<(), Lost> {
        let now = Instant::now();
        match self.failure.as_ref().filter(|failure| now < failure.until) {
            Some(failure) => Err(failure.lost.clone()),
            None => Ok(()),
        }
    }

    /// The server is left alone, twice as long each time.
    /// `took` is how long it took to see that it does not answer: whoever can do without the server is not
    /// to spend its time on that.
    fn fail(&mut self, lost: Lost, took: Duration) -> Lost {
        let backoff = self.failure.as_ref().map_or(BACKOFF_MIN, |failure| failure.backoff);
        let until = Instant::now() + backoff.max((took * TOOK_SHARE).min(TOOK_MAX));
        let backoff = (backoff * 2).min(BACKOFF_MAX);
        self.failure = Some(Failure { lost: lost.clone(), until, backoff });
        lost
    }
}

#[derive(Debug)]
struct Failure {
    lost: Lost,
    until: Instant,
    backoff: Duration,
}

/// A connection that was made.
#[derive(Debug)]
pub(super) struct Connection {
    /// Handles belong to one connection.
    pub(super) generation: u64,
    /// Whether answers may be files.
    pub(super) has_files: bool,
    /// Whether there is sealed memory to be had.
    pub(super) has_memory: bool,
    /// The most bytes of one read.
    pub(super) read_bytes_max: u64,
    sending: mpsc::Sender<Vec<u8>>,
    waiting: Arc<Waiting>,
    turns: Arc<Semaphore>,
    since: Instant,
    ids: AtomicU64,
}

/// What came back.
#[derive(Debug)]
pub(super) enum Reply {
    Answer(Answer),
    Bytes(Bytes),
    File { file: File, position: u64, length: u64 },
}

/// The connection is lost, or there is none.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{reason}")]
pub(super) struct Lost {
    pub(super) reason: String,
    /// Whether the server does not want this client: then it is of no use to try again.
    pub(super) refused: bool,
}

impl Lost {
    pub(super) fn new(reason: impl Into<String>) -> Lost {
        Lost { reason: reason.into(), refused: false }
    }
}

/// A server that does not want this client.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Refused(String);

/// Who waits for an answer, and the turn of the question: the server works on it, whether somebody waits still
/// or not, and reads no further where it works on too many.
#[derive(Debug)]
struct Asked {
    sender: oneshot::Sender<Reply>,
    _turn: OwnedSemaphorePermit,
}

/// Who waits for which answer; `None` when the connection is over.
#[derive(Debug)]
struct Waiting {
    by_id: Mutex<Option<HashMap<u64, Asked>>>,
    /// Frames that came after the welcome.
    heard: AtomicU64,
    /// Handles to close, as soon as there is room to say so. Each is open, so they are no more than
    /// the server allows.
    unsaid: Mutex<Vec<u32>>,
}

impl Waiting {
    fn with<T>(&self, work: impl FnOnce(&mut Option<HashMap<u64, Asked>>) -> T) -> T {
        work(&mut self.by_id.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn is_over(&self) -> bool {
        self.with(|by_id| by_id.is_none())
    }

    fn was_heard(&self) -> bool {
        self.heard.load(Relaxed) > 0
    }

    /// The frames that came, where somebody waits for more.
    fn heard_while_asked(&self) -> Option<u64> {
        let is_asked = self.with(|by_id| by_id.as_ref().is_some_and(|by_id| !by_id.is_empty()));
        is_asked.then(|| self.heard.load(Relaxed))
    }

    fn unsaid<T>(&self, work: impl FnOnce(&mut Vec<u32>) -> T) -> T {
        work(&mut self.unsaid.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// Takes the waiters along when the task that would answer them ends.
struct Ends(Arc<Waiting>);

impl Drop for Ends {
    fn drop(&mut self) {
        self.0.with(Option::take);
    }
}

impl Link {
    /// A link to the server at `place`. `token` is the secret of a TCP listener. Nothing is sent.
    pub fn new(place: Place, token: String) -> Link {
        let (state, generations) = (tokio::sync::Mutex::default(), AtomicU64::new(1));
        let bare = Arc::default();
        Link { inner: Arc::new(Inner { place, token, state, generations, bare }) }
    }

    /// Where the server is.
    pub fn place(&self) -> &Place {
        &self.inner.place
    }

    /// The connection, made if there is none. A server that could not be reached a moment ago, or that
    /// hung up before it had answered anything, is not tried again at once.
    pub(super) async fn connection(&self) -> Result<Arc<Connection>, Lost> {
        let mut state = self.inner.state.lock().await;
        if let Some(connection) = state.connection.take() {
            let was_heard = connection.waiting.was_heard();
            if was_heard {
                state.failure = None;
            }
            if !connection.waiting.is_over() {
                return Ok(state.connection.insert(connection).clone());
            }
            if !was_heard {
                let lost = self.lost(&"it hung up before it answered anything");
                return Err(state.fail(lost, connection.since.elapsed()));
            }
        }
        state.check()?;
        let began = Instant::now();
        match self.connect().await {
            Ok(connection) => Ok(state.connection.insert(connection).clone()),
            Err(lost) => Err(state.fail(lost, began.elapsed())),
        }
    }

    /// A connection that nobody shares: what the server gives to it comes back when it is dropped. It is
    /// made no sooner than a shared one would be.
    pub(super) async fn own_connection(&self) -> Result<Arc<Connection>, Lost> {
        self.inner.state.lock().await.check()?;
        // Not under the lock: those who share a connection go on meanwhile.
        let began = Instant::now();
        match self.connect().await {
            Ok(connection) => Ok(connection),
            Err(lost) => Err(self.inner.state.lock().await.fail(lost, began.elapsed())),
        }
    }

    async fn connect(&self) -> Result<Arc<Connection>, Lost> {
        let made = timeout(CONNECT_WAIT, self.inner.connect()).await;
        let made = made.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()));
        made.map(Arc::new).map_err(|error| Lost {
            refused: error.get_ref().is_some_and(|cause| cause.is::<Refused>()),
            ..self.lost(&error)
        })
    }

    fn lost(&self, why: &dyn std::fmt::Display) -> Lost {
        Lost::new(format!("the block server at {}: {why}", self.inner.place))
    }
}

impl Inner {
    /// What to do about a server that does not let this client in.
    fn refusal(&self, text: String) -> String {
        match (&self.place, self.token.is_empty()) {
            (Place::Unix(_), _) => text,
            (Place::Tcp(_), true) => {
                format!("{text}; say which with ?token_file=/path in the server's address")
            }
            (Place::Tcp(_), false) => format!(
                "{text}; the file that token_file names here has another one than the server's \
                 --token-file"
            ),
        }
    }

    async fn connect(&self) -> io::Result<Connection> {
        let socket = match &self.place {
            Place::Unix(path) => Socket::Unix(UnixStream::connect(path).await?),
            Place::Tcp(address) => {
                let stream = TcpStream::connect(address).await?;
                stream.set_nodelay(true)?;
                Socket::Tcp(stream)
            }
        };
        let bare = *self.bare.lock().unwrap_or_else(PoisonError::into_inner);
        let takes_files = socket.carries_files() && bare.is_none_or(|until| until < Instant::now());
        let wants = if takes_files { FILES | MEMORY } else { 0 };
        let hello = Request::Hello { wants, token: self.token.clone() }.encode(0);
        socket.send(&[hello.into()], None, FRAME_WAIT).await?;
        let mut incoming = Incoming::with_files();
        let answer = incoming.frame(&socket, READ_BYTES_MAX as usize, FRAME_WAIT).await?;
        let (head, body) = answer.ok_or(io::ErrorKind::UnexpectedEof)?;
        let (has, requests_max, read_bytes_max) = match Answer::decode(head.kind, &body) {
            Ok(Answer::Welcome { has, requests_max, read_bytes_max }) => {
                (has, requests_max, read_bytes_max)
            }
            Ok(Answer::Failed { code: Code::Unauthorized, text, .. }) => {
                return Err(io::Error::other(Refused(self.refusal(text))));
            }
            Ok(Answer::Failed { code: Code::Malformed | Code::Permanent, text, .. }) => {
                return Err(io::Error::other(Refused(text)));
            }
            Ok(Answer::Failed { text, .. }) => return Err(io::Error::other(text)),
            _ => return Err(io::Error::other("it speaks another protocol")),
        };
        if requests_max == 0 || read_bytes_max == 0 {
            return Err(io::Error::other("it allows nothing"));
        }
        let by_id = Mutex::new(Some(HashMap::new()));
        let (heard, unsaid) = (AtomicU64::new(0), Mutex::default());
        let waiting = Arc::new(Waiting { by_id, heard, unsaid });
        let (sending, frames) = mpsc::channel(SENDING_MAX);
        let socket = Arc::new(socket);
        tokio::spawn(send(socket.clone(), frames, Ends(waiting.clone())));
        if requests_max > 1 {
            let (socket, sending) = (Arc::downgrade(&socket), sending.downgrade());
            tokio::spawn(watch(socket, sending, waiting.clone()));
        }
        let ends = Ends(waiting.clone());
        tokio::spawn(receive(socket, incoming, ends, self.bare.clone()));
        Ok(Connection {
            generation: self.generations.fetch_add(1, Relaxed),
            has_files: takes_files && has & FILES != 0,
            has_memory: takes_files && has & MEMORY != 0,
            read_bytes_max: read_bytes_max.min(READ_BYTES_MAX),
            sending,
            waiting,
            // One is left for the question whether it is there.
            turns: Arc::new(Semaphore::new((requests_max as usize - 1).clamp(1, 1024))),
            since: Instant::now(),
            ids: AtomicU64::new(1),
        })
    }
}

/// Ends with the last handle of the connection, and closes it.
async fn send(socket: Arc<Socket>, mut frames: mpsc::Receiver<Vec<u8>>, _ends: Ends) {
    while let Some(frame) = frames.recv().await {
        if let Err(error) = socket.send(&[frame.into()], None, FRAME_WAIT).await {
            debug!(%error, "the block server does not listen");
            break;
        }
    }
    socket.close();
}

async fn receive(
    socket: Arc<Socket>,
    mut incoming: Incoming,
    ends: Ends,
    bare: Arc<Mutex<Option<Instant>>>,
) {
    loop {
        match receive_one(&socket, &mut incoming, &ends.0).await {
            Ok(true) => {}
            Ok(false) => return,
            Err(error) => {
                debug!(%error, "the connection to the block server is lost");
                if incoming.is_truncated() {
                    // This process has no descriptor left: bytes will do.
                    let until = Instant::now() + FILES_PAUSE;
                    *bare.lock().unwrap_or_else(PoisonError::into_inner) = Some(until);
                    // No fault of the server's: the next connection may come at once.
                    ends.0.heard.fetch_add(1, Relaxed);
                }
                socket.close();
                return;
            }
        }
    }
}

/// Ends a connection whose server does not answer: one that was stopped, or hangs, keeps its sockets open,
/// and nobody who waits for it would ever be told. Ends with the connection.
async fn watch(socket: Weak<Socket>, sending: mpsc::WeakSender<Vec<u8>>, waiting: Arc<Waiting>) {
    while !waiting.is_over() {
        let before = waiting.heard_while_asked();
        tokio::time::sleep(SILENCE).await;
        if before.is_none() || waiting.heard_while_asked() != before {
            continue;
        }
        let Some(sending) = sending.upgrade() else { return };
        // Its answer has the number of no question. Where there is no room the server leaves more unread.
        let _ = sending.try_send(Request::Close { handle: NO_HANDLE }.encode(0));
        drop(sending);
        tokio::time::sleep(SIGN_WAIT).await;
        if waiting.heard_while_asked() == before {
            debug!("the block server does not answer");
            waiting.with(Option::take);
            if let Some(socket) = socket.upgrade() {
                socket.close();
            }
        }
    }
}

/// One answer to whoever waits for it. `false` at the end.
async fn receive_one(
    socket: &Socket,
    incoming: &mut Incoming,
    waiting: &Waiting,
) -> io::Result<bool> {
    let Some((head, body)) = incoming.frame(socket, READ_BYTES_MAX as usize, FRAME_WAIT).await?
    else {
        return Ok(false);
    };
    let broken = |broken| io::Error::new(io::ErrorKind::InvalidData, broken);
    let answer = Answer::decode(head.kind, &body).map_err(broken)?;
    waiting.heard.fetch_add(1, Relaxed);
    let reply = match answer {
        Answer::Bytes { .. } => Reply::Bytes(body),
        Answer::File { position, length } => {
            let file: OwnedFd = incoming.file().ok_or_else(|| io::Error::other("no descriptor"))?;
            Reply::File { file: File::from(file), position, length }
        }
        other => Reply::Answer(other),
    };
    let waiter = waiting.with(|by_id| by_id.as_mut().and_then(|by_id| by_id.remove(&head.id)));
    // Whoever asked may have left, and then nobody else knows of what was opened.
    let unheard = match waiter {
        Some(waiter) => waiter.sender.send(reply).err(),
        None => Some(reply),
    };
    if let Some(Reply::Answer(Answer::Opened { handle, .. })) = unheard {
        waiting.unsaid(|unsaid| unsaid.push(handle));
    }
    Ok(!waiting.is_over())
}

impl Connection {
    /// Asks, and waits for the answer.
    pub(super) async fn ask(&self, request: &Request) -> Result<Reply, Lost> {
        let lost = || Lost::new("the connection to the block server is lost");
        let turn = self.turns.clone().acquire_owned().await.map_err(|_| lost())?;
        self.say_closings();
        let id = self.ids.fetch_add(1, Relaxed);
        let (sender, receiver) = oneshot::channel();
        let asked = Asked { sender, _turn: turn };
        let known = self
            .waiting
            .with(|by_id| by_id.as_mut().map(|by_id| by_id.insert(id, asked)).is_some());
        if !known || self.sending.send(request.encode(id)).await.is_err() {
            return Err(lost());
        }
        receiver.await.map_err(|_| lost())
    }

    /// Gives a handle back: now if there is room for a frame, else before the next question.
    pub(super) fn close(&self, handle: u32) {
        self.waiting.unsaid(|unsaid| unsaid.push(handle));
        self.say_closings();
    }

    fn say_closings(&self) {
        while let Some(handle) = self.waiting.unsaid(Vec::pop) {
            // Its answer has the number of no question.
            if self.sending.try_send(Request::Close { handle }.encode(0)).is_err() {
                self.waiting.unsaid(|unsaid| unsaid.push(handle));
                return;
            }
        }
    }

    /// Says something that has no answer, if there is room for it.
    pub(super) fn tell(&self, request: &Request) {
        let _ = self.sending.try_send(request.encode(0));
    }
}
