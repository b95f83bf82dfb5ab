//! A connection of protocol V000: one request after the other, every one answered.
//!
//! `PROTOCOL.md`, part 1, is the text. What the first server left open is decided so:
//!
//! - A connection says something within [`FRAME_WAIT`]; later it may be silent for days.
//! - A frame must be whole within [`FRAME_WAIT`] of its first byte, and its path no longer than 1023
//!   bytes; what is longer is answered `FAIL`, and the connection closed, since nobody can tell
//!   where the next frame begins.
//! - Unknown types, and addresses that are not served, get `PROT`.
//! - After an error the connection stays open.

use std::{
    collections::HashMap,
    sync::{Arc, atomic::Ordering::Relaxed},
    time::Duration,
};

use pager::{BlockSource, SourceError};
use sources::server::v000::{Answer, HEAD_BYTES, Head, PATH_BYTES_MAX, Want, path};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    sync::watch,
    time::timeout,
};

use super::{
    Server,
    ahead::Streams,
    handles::{Known, Pinned},
    objects::{Object, turn_for},
    seats::Seat,
    seen::Client,
    spans::NoSpan,
};

/// From the first byte of a frame to its last, and for taking an answer. The first clients wait as
/// long.
const FRAME_WAIT: Duration = Duration::from_secs(10);
/// What follows a frame that was refused is read for so long, and not more than so often.
const REST_WAIT: Duration = Duration::from_secs(1);
const REST_READS: usize = 64;
/// Addresses that one connection may use: the first clients use one.
const ADDRESSES_MAX: usize = 64;

/// What a connection knows of an address that it asked for.
struct Handle {
    object: Arc<Object>,
    pinned: Pinned,
    /// Whether it is among the clients that are remembered.
    counted: bool,
    streams: Streams,
}

/// Why a connection ends.
enum End {
    /// The client left, as agreed (`true`) or not.
    Left(bool),
    /// It broke a rule and is told so.
    Refused,
}

/// Serves a connection until its client leaves, or the server stops.
pub(super) async fn serve(
    server: &Arc<Server>,
    client: &Client,
    mut stream: TcpStream,
    seat: &Seat,
    mut stopping: watch::Receiver<bool>,
) {
    // Answers are small and awaited.
    let _ = stream.set_nodelay(true);
    let mut handles = HashMap::new();
    let mut goodbye = false;
    let mut first_wait = Some(FRAME_WAIT);
    loop {
        // Only between requests: one that has begun is answered.
        let request = tokio::select! {
            biased;
            _ = stopping.wait_for(|stop| *stop) => break,
            () = seat.ousted(), if first_wait.is_some() => break,
            request = next_request(&mut stream, first_wait) => request,
        };
        if first_wait.take().is_some() && !seat.begin() {
            break;
        }
        let (head, url) = match request {
            Ok(request) => request,
            Err(End::Left(agreed)) => {
                goodbye = agreed;
                break;
            }
            Err(End::Refused) => {
                let _ = send(&mut stream, &Answer::Failed).await;
                let _ = timeout(REST_WAIT, ignore_rest(&mut stream)).await;
                break;
            }
        };
        let answer = answer(server, client, seat, &mut handles, head, url.as_deref()).await;
        if send(&mut stream, &answer).await.is_err() {
            break;
        }
    }
    for (url, handle) in handles.iter().filter(|(_, handle)| handle.counted) {
        match goodbye {
            true => server.handles.end(url, &handle.pinned),
            false => server.handles.lost(url, &handle.pinned),
        }
    }
}

/// The next request, with its path if that is text. Waits for its first byte for ever, or not longer
/// than `first_wait`.
async fn next_request(
    stream: &mut (impl AsyncRead + Unpin),
    first_wait: Option<Duration>,
) -> Result<(Head, Option<String>), End> {
    let mut head = [0; HEAD_BYTES];
    let first = stream.read(&mut head);
    let first = match first_wait {
        Some(wait) => timeout(wait, first).await.map_err(|_| End::Left(false))?,
        None => first.await,
    };
    let got = first.ok().filter(|got| *got > 0).ok_or(End::Left(false))?;
    let rest = async {
        stream.read_exact(&mut head[got..]).await.map_err(|_| End::Left(false))?;
        let head = Head::decode(&head);
        let len = head.path_bytes as usize;
        if len > PATH_BYTES_MAX {
            return Err(End::Refused);
        }
        let mut bytes = vec![0; len];
        stream.read_exact(&mut bytes).await.map_err(|_| End::Left(false))?;
        if head.want == Want::Exit {
            return Err(End::Left(true));
        }
        Ok((head, path(&bytes).map(str::to_owned)))
    };
    timeout(FRAME_WAIT, rest).await.unwrap_or(Err(End::Refused))
}

/// Reads what is left of a frame that was refused: a connection that is closed with bytes unread may
/// take the answer along.
async fn ignore_rest(stream: &mut TcpStream) {
    let _ = stream.shutdown().await;
    let mut bytes = [0; 4096];
    for _ in 0..REST_READS {
        if !stream.read(&mut bytes).await.is_ok_and(|got| got > 0) {
            return;
        }
    }
}

async fn send(stream: &mut TcpStream, answer: &Answer) -> Result<(), ()> {
    match timeout(FRAME_WAIT, stream.write_all(&answer.encode())).await {
        Ok(Ok(())) => Ok(()),
        _ => Err(()),
    }
}

async fn answer(
    server: &Arc<Server>,
    client: &Client,
    seat: &Seat,
    handles: &mut HashMap<String, Handle>,
    head: Head,
    url: Option<&str>,
) -> Answer {
    server.counts.requests.fetch_add(1, Relaxed);
    let _seen = server.seen.turn(client);
    let Some(url) = url else { return Answer::Failed };
    let answered = match head.want {
        Want::Hello => hello(server, seat, handles, url).await,
        Want::Read => read(server, seat, handles, url, head).await,
        Want::Unknown(_) | Want::Exit => Ok(Answer::Unsupported),
    };
    let answer = answered.unwrap_or_else(|error| {
        tracing::debug!(%error, "a request failed");
        server.seen.failed(client, &error);
        match error {
            SourceError::NotFound { .. } => Answer::Missing,
            SourceError::Permanent { .. } => Answer::Unsupported,
            _ => Answer::Failed,
        }
    });
    if !matches!(answer, Answer::Welcome | Answer::File { .. }) {
        server.counts.failures.fetch_add(1, Relaxed);
    }
    answer
}

/// Pins the version that the object has now.
async fn hello(
    server: &Server,
    seat: &Seat,
    handles: &mut HashMap<String, Handle>,
    url: &str,
) -> Result<Answer, SourceError> {
    let object = server.objects.get(url)?;
    let turn = seat.turn(url).await;
    let stat = object.stat().await?;
    drop(turn);
    let pinned = Pinned::of(&stat);
    if let Some(before) = handles.remove(url).filter(|before| before.counted) {
        server.handles.end(url, &before.pinned);
    }
    if !pinned.is_sound() || !object.keeps(&pinned.version) {
        // There is no file that an answer could name.
        return Ok(Answer::Unsupported);
    }
    if handles.len() >= ADDRESSES_MAX {
        return Ok(Answer::Failed);
    }
    if let Err(error) = server.handles.begin(url, &pinned) {
        // It could not be told apart when it comes back.
        tracing::warn!(%error, "which version a client reads cannot be written down");
        return Ok(Answer::Failed);
    }
    handles.insert(url.to_owned(), Handle::new(&object, pinned, true));
    Ok(Answer::Welcome)
}

/// A client that goes on after its connection was lost.
async fn resume(
    server: &Server,
    seat: &Seat,
    handles: &mut HashMap<String, Handle>,
    url: &str,
) -> Result<Answer, SourceError> {
    if handles.len() >= ADDRESSES_MAX {
        return Ok(Answer::Failed);
    }
    let object = server.objects.get(url)?;
    match server.handles.resume(url) {
        Known::Unclear => Ok(Answer::Failed),
        Known::None => hello(server, seat, handles, url).await,
        Known::One { pinned, counted } => {
            handles.insert(url.to_owned(), Handle::new(&object, pinned, counted));
            Ok(Answer::Welcome)
        }
    }
}

impl Handle {
    fn new(object: &Object, pinned: Pinned, counted: bool) -> Handle {
        let object = Arc::new(object.at(&pinned.version, pinned.len));
        Handle { object, pinned, counted, streams: Streams::default() }
    }
}

async fn read(
    server: &Arc<Server>,
    seat: &Seat,
    handles: &mut HashMap<String, Handle>,
    url: &str,
    head: Head,
) -> Result<Answer, SourceError> {
    if !handles.contains_key(url) {
        let resumed = resume(server, seat, handles, url).await?;
        if resumed != Answer::Welcome {
            return Ok(resumed);
        }
    }
    let Some(handle) = handles.get_mut(url) else { return Ok(Answer::Failed) };
    let Handle { object, pinned, streams, .. } = handle;
    if head.offset >= pinned.len {
        return Ok(Answer::Failed);
    }
    let end = head.offset.saturating_add(head.size.max(1)).min(pinned.len);
    let range = head.offset..end;
    server.seen.asked(object, &pinned.version, pinned.len, &range);
    let segment = object.segment_bytes();
    let (version, extent) = (&pinned.version, server.extent_bytes);
    let is_in_one = range.start / segment == (range.end - 1) / segment;
    let mut placed = match is_in_one {
        true => object.placed(version, range.clone(), extent).await?,
        false => None,
    };
    let mut span = match placed {
        Some(_) => None,
        None => server.spans.find(url, pinned, &range),
    };
    if placed.is_none() && span.is_none() {
        // What is here waits for nobody.
        let _turn = turn_for(seat, (url, object), version, &range).await;
        if is_in_one {
            placed = object.place(version, range.clone(), extent).await?;
        }
        if placed.is_none() {
            match server.spans.get(object, url, pinned, range).await {
                Ok(made) => span = Some(made),
                Err(NoSpan::Source(error)) => return Err(error),
                Err(NoSpan::Disk(error)) => {
                    tracing::warn!(%error, "no file for a range");
                    return Ok(Answer::Failed);
                }
            }
        }
    }
    let (path, position, size) = match (placed, span) {
        (Some(placed), _) => (placed.path().to_owned(), placed.at(), placed.len()),
        (None, Some(span)) => (span.path, span.at, span.len),
        (None, None) => return Ok(Answer::Failed),
    };
    let answered = head.offset..head.offset + size;
    let next = streams.next(&answered, server.extent_bytes, pinned.len);
    server.fetch_ahead(object, &pinned.version, next);
    // `Spans::check_path_len` has seen to both.
    let path = path.into_os_string().into_string().unwrap_or_default();
    Ok(Answer::File { path, position, size })
}
