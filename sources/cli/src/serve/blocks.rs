//! A connection of our own protocol: requests side by side, answers in any order.
//!
//! ```text
//!   reader --request--> a task each --answer--> writer --> client
//!      |                                          |
//!      +-- waits where there are too many         +-- gives a client up that does not read
//! ```
//!
//! A read waits until what was announced before it is being fetched, and then has it as it comes: from
//! memory while it is on its way, and from a file of the cache when it is there. What nobody announced
//! is fetched by whole extents, and sent before all of its extent is here.
//!
//! `PROTOCOL.md`, part 2, is the text.

use std::{
    collections::HashMap,
    fs::File,
    io,
    ops::Range,
    os::fd::AsFd,
    sync::{Arc, Mutex, MutexGuard, PoisonError, atomic::Ordering::Relaxed},
    time::{Duration, Instant},
};

use bytes::Bytes;
use futures::{FutureExt, StreamExt, future::Shared};
use pager::{BlockSource, SourceError};
use sources::{
    disk_cache::Announced,
    server::{
        frames::{Answer, BODY_BYTES_MAX, Code, FILES, MEMORY, NO_HANDLE, READ_BYTES_MAX, Request},
        socket::{Incoming, Socket, has_no_descriptor},
    },
};
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot, watch},
    task::JoinSet,
};

use super::{
    Server,
    handles::Pinned,
    objects::{Object, turn_for},
    pieces::{NoPiece, Piece},
    seats::{Part, Seat},
    seen::Client,
};

/// From the first byte of a frame to its last, and for taking some bytes of an answer.
const FRAME_WAIT: Duration = Duration::from_secs(10);
/// Requests of one connection that are worked on.
const REQUESTS_MAX: usize = 64;
/// Objects that one connection may have open.
const HANDLES_MAX: usize = 1024;
/// Bytes of answers that wait for one client to read them.
const UNREAD_BYTES: usize = 16 << 20;
/// They are counted by this.
const UNIT: u64 = 4096;
/// A client takes so many bytes of an answer in a second, or is given up: others wait for the room.
const RATE_MIN_BYTES_PER_S: u64 = 256 << 10;
/// Announcements that are followed at once, for one connection. Others are not heard. A reader that
/// fills its link has some sixteen requests under way, of which each is one, and begins the next ones
/// before they are done.
const AHEAD_MAX: usize = 32;
/// The most that one announcement makes the server fetch.
const AHEAD_BYTES_MAX: u64 = 256 << 20;

/// Descriptors that are sent before the client must have taken those before: the kernel counts them as
/// this process's until then, and lets nobody have any where they are too many.
const FILES_UNREAD: usize = 16;

/// How long an answer waits until one more descriptor may be on its way. Those that ended connections
/// sent stay counted until their clients, which may be stopped, have taken them: bytes do as well.
const FILE_WAIT: Duration = Duration::from_millis(500);
/// How often an ended connection's client is looked at that has not taken its descriptors.
const UNTAKEN_LOOK: Duration = Duration::from_millis(200);
/// After the kernel has refused a descriptor none is sent for so long: bytes do as well.
const FILES_PAUSE: Duration = Duration::from_secs(1);

/// Whether descriptors are left alone, as the kernel has refused one.
#[derive(Debug, Default)]
pub(super) struct Pause(Mutex<Option<Instant>>);

impl Pause {
    fn with<T>(&self, work: impl FnOnce(&mut Option<Instant>) -> T) -> T {
        work(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn begin(&self) {
        self.with(|since| *since = Some(Instant::now()));
    }

    fn is_on(&self) -> bool {
        self.with(|since| since.is_some_and(|since| since.elapsed() < FILES_PAUSE))
    }
}

/// What an open object is.
#[derive(Clone)]
struct Opened {
    url: Arc<str>,
    object: Arc<Object>,
    pinned: Pinned,
    _room: Arc<OwnedSemaphorePermit>,
}

/// What a client has announced, until it is being fetched.
struct Announcement {
    number: u64,
    handle: u32,
    range: Range<u64>,
    begun: Begun,
}

/// Resolves when what was announced is being fetched, or will not be.
type Begun = Shared<oneshot::Receiver<()>>;

/// Whoever waits for an announcement waits no longer than this lives.
struct Pending {
    connection: Arc<Connection>,
    number: u64,
    _begun: oneshot::Sender<()>,
}

impl Drop for Pending {
    fn drop(&mut self) {
        let (_, all) = &mut *self.connection.announced();
        all.retain(|one| one.number != self.number);
    }
}

#[derive(Default)]
struct Handles {
    /// Numbers go round: one that was closed comes back after all others.
    next: u32,
    open: HashMap<u32, Opened>,
}

impl Handles {
    /// `None` where as many are open as may be.
    fn add(&mut self, opened: Opened) -> Option<u32> {
        if self.open.len() >= HANDLES_MAX {
            return None;
        }
        while self.next == NO_HANDLE || self.open.contains_key(&self.next) {
            self.next = self.next.wrapping_add(1);
        }
        let handle = self.next;
        self.next = handle.wrapping_add(1);
        self.open.insert(handle, opened);
        Some(handle)
    }
}

/// A request that is to be answered, with what its handle means. That is found when the request comes:
/// it may have to wait, and another object may have the handle by then.
enum Asked {
    Open {
        url: String,
        pinned: Option<Pinned>,
    },
    Read {
        opened: Option<Opened>,
        offset: u64,
        length: u64,
        file: bool,
    },
    Memory {
        opened: Option<Opened>,
        offset: u64,
    },
    /// The handle is closed.
    Close,
}

/// What goes to the client.
struct Outgoing {
    id: u64,
    parts: Vec<Bytes>,
    /// With what it takes of everybody's, until the client has it.
    file: Option<(File, Part)>,
    /// Given back when it is sent.
    _room: Option<Room>,
}

/// Room for an answer: the connection's, and what it takes of everybody's.
type Room = (OwnedSemaphorePermit, Part);

impl Outgoing {
    fn answer(answer: &Answer, id: u64) -> Outgoing {
        Outgoing { id, parts: vec![answer.encode(id).into()], file: None, _room: None }
    }

    fn with_file(answer: &Answer, id: u64, file: File, part: Part) -> Outgoing {
        Outgoing { file: Some((file, part)), ..Outgoing::answer(answer, id) }
    }
}

/// What the tasks of a connection share.
struct Connection {
    server: Arc<Server>,
    client: Arc<Client>,
    handles: Mutex<Handles>,
    files: bool,
    seat: Arc<Seat>,
    memory: bool,
    /// Memory that its client may have mapped, by what it is.
    given: Mutex<Vec<Arc<Piece>>>,
    /// What is not being fetched yet, and the number of the latest.
    announced: Mutex<(u64, Vec<Announcement>)>,
    unread: Arc<Semaphore>,
    sending: mpsc::Sender<Outgoing>,
    /// What lies around bytes that were read, on its way. As much as announcements may be.
    around: mpsc::UnboundedSender<Around>,
}

/// An extent of which some was read, and its part of what announcements may be.
type Around = (Announced<Arc<dyn BlockSource>>, Part);

/// Whether a file has to have what is asked for, or is to have it.
#[derive(Clone, Copy)]
enum Find {
    Here,
    Bring,
}

/// What a listener asks of its clients.
pub(super) enum Gate {
    /// Nothing more: the system has said who it is.
    Known,
    /// The token.
    Token(String),
    /// It is not to be served.
    Closed(&'static str),
}

/// Serves a connection until its client leaves, or the server stops.
pub(super) async fn serve(
    server: &Arc<Server>,
    client: &Arc<Client>,
    socket: Socket,
    seat: Seat,
    gate: &Gate,
    mut stopping: watch::Receiver<bool>,
) {
    let socket = Arc::new(socket);
    let mut incoming = Incoming::default();
    let memory = if server.pieces.is_on() { MEMORY } else { 0 };
    let greeted = tokio::select! {
        biased;
        () = seat.ousted() => return,
        greeted = greet(&socket, &mut incoming, gate, &seat, FILES | memory) => greeted,
    };
    let has = match greeted {
        Ok(Ok(has)) => has,
        Ok(Err((why, frame))) => {
            server.denied(client, why);
            // It may have left.
            let _ = socket.send(&[frame.into()], None, FRAME_WAIT).await;
            return;
        }
        Err(_) => return,
    };
    let (sending, outgoing) = mpsc::channel(REQUESTS_MAX);
    let writer = tokio::spawn(write(server.clone(), socket.clone(), outgoing));
    // Kept until the last answer is gone, which takes room of its client's until then.
    let seat = Arc::new(seat);
    let (around, mut arriving) = mpsc::unbounded_channel();
    let connection = Arc::new(Connection {
        server: server.clone(),
        client: client.clone(),
        handles: Mutex::default(),
        seat: seat.clone(),
        files: has & FILES != 0,
        memory: has & MEMORY != 0,
        given: Mutex::default(),
        announced: Mutex::default(),
        unread: Arc::new(Semaphore::new(UNREAD_BYTES / UNIT as usize)),
        sending,
        around,
    });
    let mut tasks = JoinSet::new();
    // Nobody waits for these.
    let mut aheads = JoinSet::new();
    loop {
        let frame = tokio::select! {
            biased;
            _ = stopping.wait_for(|stop| *stop) => break,
            Some(_) = tasks.join_next(), if !tasks.is_empty() => continue,
            Some(_) = aheads.join_next(), if !aheads.is_empty() => continue,
            Some((announced, part)) = arriving.recv() => {
                aheads.spawn(arrive(announced, part));
                continue;
            }
            frame = incoming.frame(&socket, BODY_BYTES_MAX, FRAME_WAIT), if tasks.len() < REQUESTS_MAX => frame,
        };
        let (head, body) = match frame {
            Ok(Some(frame)) => frame,
            Ok(None) => break,
            Err(error) => {
                connection.refuse(0, &error.to_string()).await;
                break;
            }
        };
        let request = match Request::decode(head.kind, &body) {
            Ok(request) => request,
            Err(broken) => {
                connection.refuse(head.id, &broken.to_string()).await;
                break;
            }
        };
        server.counts.requests.fetch_add(1, Relaxed);
        // Before others come.
        let announced = connection.announced_before(&request);
        let asked = match request {
            Request::Hello { .. } => {
                connection.refuse(head.id, "one hello is enough").await;
                break;
            }
            Request::Ahead { handle, offset, length } => {
                let opened = connection.opened(handle).filter(|_| aheads.len() < AHEAD_MAX);
                if let Some(opened) = opened
                    && let Some(range) =
                        ahead(offset, length, opened.pinned.len, server.extent_bytes)
                {
                    let pending = connection.clone().announce(handle, range.clone());
                    aheads.spawn(fetch(connection.seat.clone(), opened, range, pending));
                }
                continue;
            }
            Request::Open { url, pinned } => {
                let pinned = pinned.map(|(version, len)| Pinned { version, len });
                Asked::Open { url, pinned }
            }
            Request::Read { handle, offset, length, file } => {
                Asked::Read { opened: connection.opened(handle), offset, length, file }
            }
            Request::Memory { handle, offset } => {
                Asked::Memory { opened: connection.opened(handle), offset }
            }
            Request::Close { handle } => {
                connection.with(|handles| handles.open.remove(&handle));
                Asked::Close
            }
        };
        let connection = connection.clone();
        tasks.spawn(async move {
            futures::future::join_all(announced).await;
            connection.work(head.id, asked).await;
        });
    }
    // Who has left, or is told to leave, reads no further.
    drop((aheads, arriving));
    // What was asked is answered, as long as the client reads.
    while tasks.join_next().await.is_some() {}
    drop(connection);
    let unread = writer.await.unwrap_or_default();
    socket.close();
    // Descriptors in its queue are this process's as before: so are its seat, and what they take.
    let taken = async {
        while !unread.is_empty() && !socket.is_taken() {
            tokio::time::sleep(UNTAKEN_LOOK).await;
        }
    };
    tokio::select! {
        () = taken => {}
        _ = stopping.wait_for(|stop| *stop) => {}
    }
    drop((unread, seat));
}

/// What to fetch for what was announced. For what is short, whole extents: as for who reads there.
fn ahead(offset: u64, length: u64, len: u64, extent: u64) -> Option<Range<u64>> {
    let end = offset.saturating_add(length.min(AHEAD_BYTES_MAX)).min(len);
    if offset >= end {
        return None;
    }
    Some(match end - offset < extent {
        true => offset - offset % extent..end.next_multiple_of(extent).min(len),
        false => offset..end,
    })
}

/// Fetches what will be asked for, in as few requests as there are gaps.
async fn fetch(seat: Arc<Seat>, opened: Opened, range: Range<u64>, pending: Pending) {
    let Some(part) = seat.announcement() else { return };
    let begun = opened.object.announce(&opened.pinned.version, range).await;
    drop(pending);
    if let Ok(Some(announced)) = begun {
        arrive(announced, part).await;
    }
}

/// Brings what was announced, which takes its part until it is here.
async fn arrive(announced: Announced<Arc<dyn BlockSource>>, _part: Part) {
    // Whoever asks for these bytes is told what is wrong with them.
    let _ = announced.arrive().await;
}

/// The hello and the welcome. Says what of `offers` the client may have; or why it may have nothing, which it is
/// still to be told.
async fn greet(
    socket: &Socket,
    incoming: &mut Incoming,
    gate: &Gate,
    seat: &Seat,
    offers: u32,
) -> io::Result<Result<u32, (&'static str, Vec<u8>)>> {
    let refusal = |id: u64, code, text: &str| {
        Answer::Failed { code, retry_after_ms: 0, text: text.to_owned() }.encode(id)
    };
    let frame = incoming.frame(socket, BODY_BYTES_MAX, FRAME_WAIT);
    let frame = tokio::time::timeout(FRAME_WAIT, frame).await.unwrap_or_else(|_| {
        let text = format!("no hello came within {FRAME_WAIT:?}");
        Err(io::Error::new(io::ErrorKind::TimedOut, text))
    });
    let frame = match frame {
        Err(error)
            if matches!(error.kind(), io::ErrorKind::InvalidData | io::ErrorKind::TimedOut) =>
        {
            let why = refusal(0, Code::Malformed, &error.to_string());
            socket.send(&[why.into()], None, FRAME_WAIT).await?;
            return Err(error);
        }
        other => other?,
    };
    let (head, body) = frame.ok_or(io::ErrorKind::UnexpectedEof)?;
    let wrong = match (Request::decode(head.kind, &body), gate) {
        (_, Gate::Closed(why)) => {
            return Ok(Err((why, refusal(head.id, Code::Unauthorized, why))));
        }
        (Ok(Request::Hello { token, .. }), Gate::Token(secret)) if !is_same(&token, secret) => {
            let why = "the token is not the one of this server";
            return Ok(Err((why, refusal(head.id, Code::Unauthorized, why))));
        }
        (Ok(Request::Hello { wants, .. }), _) => {
            // Nobody takes its place any more, or somebody has.
            if !seat.begin() {
                return Err(io::ErrorKind::ConnectionAborted.into());
            }
            let has = if socket.carries_files() { wants & offers } else { 0 };
            let welcome = Answer::Welcome {
                has,
                requests_max: REQUESTS_MAX as u32,
                read_bytes_max: READ_BYTES_MAX,
            };
            socket.send(&[welcome.encode(head.id).into()], None, FRAME_WAIT).await?;
            return Ok(Ok(has));
        }
        (Ok(_), _) => "a connection begins with a hello".to_owned(),
        (Err(broken), _) => broken.to_string(),
    };
    socket.send(&[refusal(head.id, Code::Malformed, &wrong).into()], None, FRAME_WAIT).await?;
    Err(io::ErrorKind::InvalidData.into())
}

/// Compares without telling by its time how much was right.
fn is_same(a: &str, b: &str) -> bool {
    let (a, b) = (super::digest(a.as_bytes()), super::digest(b.as_bytes()));
    a.bytes().zip(b.bytes()).fold(0, |different, (a, b)| different | (a ^ b)) == 0
}

/// Returns the parts of descriptors that the client may not have taken.
async fn write(
    server: Arc<Server>,
    socket: Arc<Socket>,
    outgoing: mpsc::Receiver<Outgoing>,
) -> Vec<Part> {
    let mut unread = Vec::new();
    if write_all(&server, &socket, outgoing, &mut unread).await.is_err() {
        // It does not read, or has left. The reader sees the end, and the tasks fail.
        socket.close();
    }
    unread
}

async fn write_all(
    server: &Server,
    socket: &Socket,
    mut outgoing: mpsc::Receiver<Outgoing>,
    unread: &mut Vec<Part>,
) -> io::Result<()> {
    loop {
        let next = async {
            match unread.len() < FILES_UNREAD {
                true => outgoing.recv().await,
                false => std::future::pending().await,
            }
        };
        let one = tokio::select! {
            biased;
            one = next => one,
            taken = socket.taken(FRAME_WAIT), if !unread.is_empty() => {
                taken?;
                unread.clear();
                continue;
            }
        };
        let Some(one) = one else { return Ok(()) };
        let file = one.file.as_ref().map(|(file, _)| file.as_fd());
        let bytes: u64 = one.parts.iter().map(|part| part.len() as u64).sum();
        let limit = FRAME_WAIT + Duration::from_secs(bytes / RATE_MIN_BYTES_PER_S);
        let sent = tokio::time::timeout(limit, socket.send(&one.parts, file, FRAME_WAIT)).await?;
        match (sent, one.file) {
            (Ok(()), file) => unread.extend(file.map(|(_, part)| part)),
            (Err(error), Some(_)) if has_no_descriptor(&error) => {
                // Nothing of it was sent. Others of this user have as many under way as there may be.
                tracing::warn!(%error, "a descriptor cannot be sent: bytes are sent for a while");
                server.files_paused.begin();
                let text = "too many descriptors are on their way".to_owned();
                let answer = Answer::Failed { code: Code::Throttled, retry_after_ms: 1, text };
                socket.send(&[answer.encode(one.id).into()], None, FRAME_WAIT).await?;
            }
            (Err(error), _) => return Err(error),
        }
    }
}

impl Connection {
    fn with<T>(&self, work: impl FnOnce(&mut Handles) -> T) -> T {
        work(&mut self.handles.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// What `handle` means now.
    fn opened(&self, handle: u32) -> Option<Opened> {
        self.with(|handles| handles.open.get(&handle).cloned())
    }

    fn announced(&self) -> MutexGuard<'_, (u64, Vec<Announcement>)> {
        self.announced.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes that `range` of an object will be fetched.
    fn announce(self: Arc<Connection>, handle: u32, range: Range<u64>) -> Pending {
        let (begun, waits) = oneshot::channel();
        let number = {
            let (latest, all) = &mut *self.announced();
            *latest += 1;
            all.push(Announcement { number: *latest, handle, range, begun: waits.shared() });
            *latest
        };
        Pending { connection: self, number, _begun: begun }
    }

    /// What a request for bytes has to wait for: else it would fetch for itself what is about to be
    /// fetched.
    fn announced_before(&self, request: &Request) -> Vec<Begun> {
        let (handle, wanted) = match *request {
            Request::Read { handle, offset, length, .. } => {
                (handle, offset..offset.saturating_add(length))
            }
            Request::Memory { handle, offset } => (handle, offset..offset.saturating_add(1)),
            _ => return Vec::new(),
        };
        let (_, all) = &*self.announced();
        let concerns = |one: &&Announcement| {
            one.handle == handle && one.range.start < wanted.end && wanted.start < one.range.end
        };
        all.iter().filter(concerns).map(|one| one.begun.clone()).collect()
    }

    async fn refuse(&self, id: u64, why: &str) {
        let answer =
            Answer::Failed { code: Code::Malformed, retry_after_ms: 0, text: why.to_owned() };
        let _ = self.sending.send(Outgoing::answer(&answer, id)).await;
    }

    async fn work(&self, id: u64, asked: Asked) {
        let _seen = self.server.seen.turn(&self.client);
        let no_handle = "there is no such handle";
        let answered = match asked {
            Asked::Open { url, pinned } => {
                self.open(&url, pinned).await.map(|answer| Outgoing::answer(&answer, id))
            }
            Asked::Read { opened, offset, length, file } => {
                let Some(opened) = opened else { return self.refuse(id, no_handle).await };
                let len = opened.pinned.len;
                let end = offset.checked_add(length).filter(|end| *end <= len);
                match end {
                    Some(end) if length > 0 && length <= READ_BYTES_MAX => {
                        self.read(id, &opened, offset..end, file && self.files).await
                    }
                    _ => {
                        let text = "such a range cannot be read: it is empty, too long, or not \
                                    within the object";
                        return self.refuse(id, text).await;
                    }
                }
            }
            Asked::Close => Ok(Outgoing::answer(&Answer::Closed, id)),
            Asked::Memory { opened, offset } => {
                let Some(opened) = opened else { return self.refuse(id, no_handle).await };
                if !self.memory || offset >= opened.pinned.len {
                    let text = "there is no such memory to be had: say so in the hello, and stay \
                                within the object";
                    return self.refuse(id, text).await;
                }
                match tokio::time::timeout(FRAME_WAIT, self.seat.file()).await {
                    Ok(part) => self.memory(id, &opened, offset, part).await,
                    Err(_) => {
                        let text = "too many descriptors are on their way".to_owned();
                        let code = Code::Throttled;
                        let answer = Answer::Failed { code, retry_after_ms: 1000, text };
                        Ok(Outgoing::answer(&answer, id))
                    }
                }
            }
        };
        let outgoing = answered.unwrap_or_else(|error| {
            self.server.counts.failures.fetch_add(1, Relaxed);
            self.server.seen.failed(&self.client, &error);
            Outgoing::answer(&Answer::failed(&error), id)
        });
        let _ = self.sending.send(outgoing).await;
    }

    async fn open(&self, url: &str, pinned: Option<Pinned>) -> Result<Answer, SourceError> {
        let object = self.server.objects.get(url)?;
        let (pinned, alignment, part_bytes) = match pinned {
            Some(pinned) => (pinned, self.server.extent_bytes, self.server.extent_bytes),
            None => {
                let _turn = self.seat.turn(url).await;
                let stat = object.stat().await?;
                (Pinned::of(&stat), stat.alignment, stat.part_bytes)
            }
        };
        let Pinned { version, len } = pinned.clone();
        if !pinned.is_sound() {
            let text = format!("no object has {len} bytes");
            return Ok(Answer::Failed { code: Code::Malformed, retry_after_ms: 0, text });
        }
        // What this client says of its length is for this client alone.
        let object = Arc::new(object.at(&version, len));
        let texts = url.len() + version.token().len();
        let Some(room) = self.seat.handle(texts as u64) else {
            let text = "this client has too much open".to_owned();
            return Ok(Answer::Failed { code: Code::Malformed, retry_after_ms: 0, text });
        };
        let room = Arc::new(room);
        let opened = Opened { url: url.into(), object, pinned, _room: room };
        let handle = self.with(|handles| handles.add(opened));
        match handle {
            Some(handle) => Ok(Answer::Opened { handle, len, alignment, part_bytes, version }),
            None => {
                let text = format!("a connection has at most {HANDLES_MAX} objects open");
                Ok(Answer::Failed { code: Code::Malformed, retry_after_ms: 0, text })
            }
        }
    }

    async fn read(
        &self,
        id: u64,
        opened: &Opened,
        range: Range<u64>,
        file: bool,
    ) -> Result<Outgoing, SourceError> {
        let Opened { object, pinned, .. } = opened;
        self.server.seen.asked(object, &pinned.version, pinned.len, &range);
        let length = range.end - range.start;
        if file && !self.server.files_paused.is_on() {
            // What is on its way is sent as it comes, and need not be on the disk first. All of it: what
            // follows would be a small request of its own.
            let (version, last) = (&pinned.version, range.end - 1);
            let comes = object.is_coming(version, range.start).await
                && (last < self.extent_end(object, range.start)
                    || object.is_coming(version, last).await);
            if let Some(room) = comes.then(|| self.room_now(length)).flatten() {
                return self.bytes(id, opened, range, Some(room)).await;
            }
            if let Some(outgoing) = self.file(id, opened, &range, Find::Here).await? {
                return Ok(outgoing);
            }
            // What is not here is sent as it comes, and what lies around it comes behind.
            if !self.bring(opened, &range).await?
                && let Some(outgoing) = self.file(id, opened, &range, Find::Bring).await?
            {
                return Ok(outgoing);
            }
        }
        // Room first: who does not read its answers holds up nobody else.
        let unread = self.unread.clone().acquire_many_owned(length.div_ceil(UNIT) as u32);
        let room = match unread.await {
            Ok(own) => Some((own, self.seat.room(length).await)),
            Err(_) => None,
        };
        self.bytes(id, opened, range, room).await
    }

    /// Room for an answer of so many bytes, if there is some now.
    fn room_now(&self, bytes: u64) -> Option<Room> {
        let own = self.unread.clone().try_acquire_many_owned(bytes.div_ceil(UNIT) as u32).ok()?;
        Some((own, self.seat.room_now(bytes)?))
    }

    /// An answer that is bytes.
    async fn bytes(
        &self,
        id: u64,
        opened: &Opened,
        range: Range<u64>,
        room: Option<Room>,
    ) -> Result<Outgoing, SourceError> {
        let (Opened { object, pinned, .. }, length) = (opened, range.end - range.start);
        let _turn = self.turn(opened, &range).await;
        let mut parts: Vec<Bytes> = vec![Answer::Bytes { length }.encode(id).into()];
        let mut body = object.read(&pinned.version, range.clone()).await?;
        let mut got = 0;
        while let Some(chunk) = body.next().await {
            let chunk = chunk?;
            got += chunk.len() as u64;
            // A few bytes of a block would keep all of it until they are read, and count as few.
            let is_small = chunk.len() as u64 <= object.block_bytes() / 2;
            parts.push(if is_small { Bytes::copy_from_slice(&chunk) } else { chunk });
        }
        if got != length {
            return Err(SourceError::short_body(object.name(), range, got));
        }
        Ok(Outgoing { id, parts, file: None, _room: room })
    }

    /// A turn to ask the source, which the disk may spare us.
    async fn turn(&self, opened: &Opened, range: &Range<u64>) -> Option<Part> {
        let Opened { url, object, pinned, .. } = opened;
        turn_for(&self.seat, (url, object), &pinned.version, range).await
    }

    /// What is fetched at once, and lies in one file.
    fn extent(&self, object: &Object) -> u64 {
        self.server.extent_bytes.min(object.segment_bytes())
    }

    /// Where the extent with the byte `at` ends.
    fn extent_end(&self, object: &Object, at: u64) -> u64 {
        let extent = self.extent(object);
        (at - at % extent).saturating_add(extent)
    }

    /// Begins to fetch what is missing of the extents around `range`. False where this client has as
    /// much on its way as it may.
    async fn bring(&self, opened: &Opened, range: &Range<u64>) -> Result<bool, SourceError> {
        let Opened { object, pinned, .. } = opened;
        let Some(part) = self.seat.announcement() else { return Ok(false) };
        let extent = self.extent(object);
        let start = range.start - range.start % extent;
        let end = self.extent_end(object, range.end - 1).min(pinned.len);
        // Nothing is missing of what is in memory until the disk has it. Nobody waits for that.
        if let Some(announced) = object.announce(&pinned.version, start..end).await? {
            // Nobody takes it who has left.
            let _ = self.around.send((announced, part));
        }
        Ok(true)
    }

    /// An answer that is a file, where the bytes are in one.
    async fn file(
        &self,
        id: u64,
        opened: &Opened,
        range: &Range<u64>,
        find: Find,
    ) -> Result<Option<Outgoing>, SourceError> {
        let Opened { url, object, pinned, .. } = opened;
        // As much as lies in one extent: the client asks for the rest when it needs it.
        let extent = self.extent(object);
        let end = self.extent_end(object, range.start).min(range.end);
        let (version, wanted) = (&pinned.version, range.start..end);
        let placed = match find {
            Find::Here => object.placed(version, wanted, extent).await?,
            Find::Bring => {
                let _turn = self.seat.turn(url).await;
                object.place(version, wanted, extent).await?
            }
        };
        let Some(placed) = placed else { return Ok(None) };
        // Opened when it may be sent, and not before.
        let part = tokio::time::timeout(FILE_WAIT, self.seat.file()).await;
        let Ok(part) = part else { return Ok(None) };
        match placed.open() {
            Ok(file) => {
                let answer = Answer::File { position: placed.at(), length: placed.len() };
                Ok(Some(Outgoing::with_file(&answer, id, file, part)))
            }
            Err(error) => {
                tracing::warn!(%error, "a file of the cache cannot be opened");
                Ok(None)
            }
        }
    }

    /// The piece with the byte at `offset`.
    async fn memory(
        &self,
        id: u64,
        opened: &Opened,
        offset: u64,
        part: Part,
    ) -> Result<Outgoing, SourceError> {
        let Opened { url, object, pinned, .. } = opened;
        let pieces = &self.server.pieces;
        let refused = |code, text: String| {
            Ok(Outgoing::answer(&Answer::Failed { code, retry_after_ms: 0, text }, id))
        };
        let failed = |text: String| refused(Code::Throttled, text);
        if !object.keeps(&pinned.version) {
            // Its pieces might be of different versions.
            let text = "an object whose version is weak is not mapped: read it".to_owned();
            return refused(Code::Permanent, text);
        }
        let (piece, file, range) = match pieces.get(object, url, pinned, offset, &self.seat).await {
            Ok(piece) => piece,
            Err(NoPiece::Source(error)) => return Err(error),
            Err(NoPiece::Full) => {
                return failed("all memory of the server is mapped by clients".to_owned());
            }
            Err(NoPiece::System(error)) => return failed(format!("no memory: {error}")),
        };
        self.server.seen.asked(object, &pinned.version, pinned.len, &range);
        let answer = Answer::File { position: offset - range.start, length: range.end - offset };
        let mut given = self.given.lock().unwrap_or_else(PoisonError::into_inner);
        if !given.iter().any(|one| Arc::ptr_eq(one, &piece)) {
            given.push(piece);
        }
        Ok(Outgoing::with_file(&answer, id, file, part))
    }
}
