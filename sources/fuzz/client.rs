//! The client's end of our own protocol against a server that says what the input has it say: frames that
//! come in parts, answers to other questions, descriptors of all kinds, and hanging up in between. No
//! panic, no hang, no memory beyond what was asked for; and as long as all answers were sound, the right
//! bytes, by a read and by a map that is put together piece by piece.
#![no_main]

use std::{
    fs::File,
    io::Write,
    os::fd::{AsFd, OwnedFd},
    path::PathBuf,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::Duration,
};

use bytes::Bytes;

use futures::TryStreamExt;
use libfuzzer_sys::fuzz_target;
use pager::{BlockSource, Frame, SourceError, Version, sealed};
use sources::server::{
    Link, Place, Served,
    frames::{Answer, BODY_BYTES_MAX, Code, FILES, MEMORY, READ_BYTES_MAX, Request},
    socket::{Incoming, Socket},
};
use tokio::net::UnixListener;

/// Nothing here takes so long but a hang, and libFuzzer ends those sooner.
const WAIT: Duration = Duration::from_secs(60);
/// Bytes of a piece of the object, which is this long and a little more.
const PIECE: u64 = 8192;
/// The most bytes of what is read at once, and of files.
const BYTES_MAX: u64 = 128 << 10;

/// What the input says, to its end.
struct Script(Bytes);

impl Script {
    fn bytes(&mut self, count: usize) -> Option<Bytes> {
        (count <= self.0.len()).then(|| self.0.split_to(count))
    }

    fn u8(&mut self) -> Option<u8> {
        Some(self.bytes(1)?[0])
    }

    fn u16(&mut self) -> Option<u64> {
        Some(u16::from_le_bytes(self.bytes(2)?[..].try_into().ok()?).into())
    }

    /// Mostly small, and sometimes beyond all bounds.
    fn number(&mut self) -> Option<u64> {
        Some(match self.u8()? {
            0 => u64::from_le_bytes(self.bytes(8)?[..].try_into().ok()?),
            1 => u64::MAX - self.u16()?,
            2 => self.u16()? * PIECE,
            _ => self.u16()?,
        })
    }
}

/// What an object has at `at`.
fn byte(at: u64) -> u8 {
    (at % 251) as u8
}

fn object(from: u64, len: u64) -> Vec<u8> {
    (from..from + len).map(byte).collect()
}

fn version() -> Version {
    Version::strong("v")
}

/// What is said to a request: bytes, and what goes with the first of them. `None` is the end.
type Said = (Vec<u8>, Option<OwnedFd>);

/// The answer of a sound server to a request for an object of `len` bytes.
fn sound(id: u64, request: &Request, len: u64) -> Said {
    let answer = match *request {
        // It was lied to about the length before.
        Request::Read { offset, .. } | Request::Memory { offset, .. } if offset >= len => {
            let text = "behind the end".to_owned();
            Answer::Failed { code: Code::Malformed, retry_after_ms: 0, text }
        }
        Request::Hello { .. } => {
            Answer::Welcome { has: FILES | MEMORY, requests_max: 4, read_bytes_max: READ_BYTES_MAX }
        }
        Request::Open { .. } => Answer::Opened {
            handle: 1,
            len,
            alignment: 4096,
            part_bytes: 1 << 20,
            version: version(),
        },
        Request::Read { offset, length, file, .. } if !file || offset / PIECE % 2 == 0 => {
            let head = Answer::Bytes { length }.encode(id);
            return ([head, object(offset, length)].concat(), None);
        }
        Request::Read { offset, .. } | Request::Memory { offset, .. } => {
            let start = offset - offset % PIECE;
            let piece = object(start, PIECE.min(len - start));
            let length = start + piece.len() as u64 - offset;
            let file = sealed::seal(piece.len() as u64, |file| file.write_all(&piece));
            let frame = Answer::File { position: offset - start, length }.encode(id);
            return (frame, file.ok().map(OwnedFd::from));
        }
        Request::Ahead { .. } | Request::Close { .. } => Answer::Closed,
    };
    (answer.encode(id), None)
}

/// A descriptor of some kind, of a file of so many bytes where it is one.
fn descriptor(kind: u8, len: u64) -> Option<OwnedFd> {
    let bytes = object(0, len.min(BYTES_MAX));
    match kind % 6 {
        0 => None,
        1 => {
            let len = bytes.len() as u64;
            sealed::seal(len, |file| file.write_all(&bytes)).ok().map(OwnedFd::from)
        }
        2 => std::io::pipe().ok().map(|(read, _)| read.into()),
        3 => std::os::unix::net::UnixStream::pair().ok().map(|(one, _)| one.into()),
        4 => File::open("/dev/null").ok().map(OwnedFd::from),
        _ => File::open("/proc/self/exe").ok().map(OwnedFd::from),
    }
}

/// What comes after an answer.
#[derive(PartialEq)]
enum Then {
    /// All was sound so far.
    Sound,
    /// The client has an answer, and may ask again.
    More,
    /// The end: it may wait for the rest of it.
    End,
}

/// The next answer.
fn next(script: &mut Script, id: u64, request: &Request, len: u64) -> Option<(Said, Then)> {
    let mut then = Then::More;
    let said = match script.u8()? {
        0..160 => return Some((sound(id, request, len), Then::Sound)),
        160..170 => return None,
        170..180 => {
            then = Then::End;
            let count = script.u16()? as usize;
            (script.bytes(count)?.to_vec(), None)
        }
        // Cut off, or to another question.
        180..190 => {
            then = Then::End;
            let (mut bytes, file) = sound(id, request, len);
            bytes.truncate(script.u16()? as usize);
            (bytes, file)
        }
        190..195 => {
            then = Then::End;
            sound(script.number()?, request, len)
        }
        195..205 => {
            let length = script.u16()?;
            ([Answer::Bytes { length }.encode(id), object(0, length)].concat(), None)
        }
        205..230 => {
            let (kind, size) = (script.u8()?, script.number()?);
            let answer = Answer::File { position: script.number()?, length: script.number()? };
            (answer.encode(id), descriptor(kind, size))
        }
        230..240 => {
            let codes = [Code::NotFound, Code::Changed, Code::Throttled, Code::Malformed];
            let code = codes[usize::from(script.u8()?) % codes.len()];
            let text = "why".to_owned();
            (Answer::Failed { code, retry_after_ms: 1, text }.encode(id), None)
        }
        240..248 => {
            let (handle, len) = (script.u8()?.into(), script.number()?);
            let (alignment, part_bytes) = (script.number()?, script.number()?);
            let version = match script.u8()? % 3 {
                0 => Version::weak("v"),
                1 => Version::strong("other"),
                _ => version(),
            };
            let answer = Answer::Opened { handle, len, alignment, part_bytes, version };
            (answer.encode(id), descriptor(script.u8()?, 10))
        }
        _ => {
            let (has, requests_max) = (script.u8()?.into(), script.u8()?.into());
            let answer = Answer::Welcome { has, requests_max, read_bytes_max: script.number()? };
            (answer.encode(id), None)
        }
    };
    Some((said, then))
}

/// What both ends share.
struct Play {
    script: Mutex<Script>,
    /// Of the object.
    len: u64,
    /// As long as nothing unsound was said.
    honest: AtomicBool,
}

async fn serve(listener: UnixListener, play: Arc<Play>) {
    while let Ok((stream, _)) = listener.accept().await {
        tokio::spawn(converse(Socket::Unix(stream), play.clone()));
    }
}

/// One connection. When the script has ended, each is closed at its next question.
async fn converse(socket: Socket, play: Arc<Play>) {
    let mut incoming = Incoming::default();
    while let Ok(Some((head, body))) = incoming.frame(&socket, BODY_BYTES_MAX, WAIT).await {
        let request = Request::decode(head.kind, &body).expect("our client's request");
        if let Request::Ahead { .. } | Request::Close { .. } = request {
            continue;
        }
        let said = next(&mut play.script.lock().expect("no panic"), head.id, &request, play.len);
        if said.as_ref().is_none_or(|(_, then)| *then != Then::Sound) {
            play.honest.store(false, Relaxed);
        }
        let Some(((bytes, file), then)) = said else { break };
        // In two parts: whoever reads has to put them together.
        let mut first = Bytes::from(bytes);
        let second = first.split_off(first.len() / 3);
        let file = file.as_ref().map(AsFd::as_fd);
        let sent = socket.send(&[first, second], file, WAIT).await;
        if sent.is_err() || then == Then::End {
            break;
        }
    }
    socket.close();
}

/// Everything that a client does.
async fn read(place: PathBuf, at: u64, count: u64, play: &Play) {
    let link = Link::new(Place::Unix(place), String::new());
    let source = Served::new("object", "object", link).expect("a short address");
    let Some(stat) = play.check(source.stat()).await else { return };
    let at = at.min(stat.len.saturating_sub(1));
    let range = at..at + count.min(stat.len - at).min(BYTES_MAX);
    if !range.is_empty() {
        let frame = Frame::with_capacity((range.end - range.start) as usize);
        let read = source.read_into(&stat.version, range.clone(), frame);
        if let Some(frame) = play.check(read).await {
            play.compare(frame.filled(), at, range.end);
        }
        let body = async {
            let body = source.read(&stat.version, range.clone()).await?;
            body.try_collect::<Vec<Bytes>>().await
        };
        if let Some(chunks) = play.check(body).await {
            play.compare(&chunks.concat(), at, range.end);
        }
    }
    if let Some(map) = play.check(source.map(&stat.version)).await {
        play.compare(&map, 0, stat.len);
    }
}

impl Play {
    /// What became of something that a client did; of a sound server it gets what it asks for.
    async fn check<T>(&self, done: impl Future<Output = Result<T, SourceError>>) -> Option<T> {
        let done = tokio::time::timeout(WAIT, done).await;
        let is_honest = self.honest.load(Relaxed);
        match done {
            Ok(Ok(value)) => Some(value),
            Ok(Err(error)) => {
                assert!(!is_honest, "a sound server was not understood: {error}");
                None
            }
            Err(_) => {
                assert!(!is_honest, "a sound server was not heard");
                None
            }
        }
    }

    /// What came is as long as it must be, and right if nobody lied.
    fn compare(&self, got: &[u8], from: u64, end: u64) {
        assert_eq!(got.len() as u64, end - from);
        if self.honest.load(Relaxed) {
            assert!(got == object(from, end - from), "wrong bytes at {from}");
        }
    }
}

fuzz_target!(|input: &[u8]| {
    let mut script = Script(Bytes::copy_from_slice(input));
    let (Some(extra), Some(at), Some(count)) = (script.u16(), script.u16(), script.u16()) else {
        return;
    };
    let (script, honest) = (Mutex::new(script), AtomicBool::new(true));
    let play = Arc::new(Play { script, len: PIECE + extra, honest });
    let place = std::env::temp_dir().join(format!("extmem-fuzz-{}", std::process::id()));
    let _ = std::fs::remove_file(&place);
    let mut runtime = tokio::runtime::Builder::new_current_thread();
    let runtime = runtime.enable_all().build().expect("a runtime");
    runtime.block_on(async {
        let listener = UnixListener::bind(&place).expect("a socket");
        tokio::spawn(serve(listener, play.clone()));
        read(place.clone(), at, count, &play).await;
    });
    let _ = std::fs::remove_file(&place);
});
