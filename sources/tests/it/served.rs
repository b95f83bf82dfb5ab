//! Block servers that are silent, lie and break off, and what their client makes of that.

use std::{
    fs::File,
    io::Write,
    os::fd::AsFd,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use pager::{BlockSource, Frame, Pager, SourceError, Version};
use sources::server::{
    Link, Place, Served,
    frames::{Answer, BODY_BYTES_MAX, Code, FILES, MEMORY, NO_HANDLE, READ_BYTES_MAX, Request},
    socket::{Incoming, Socket},
};
use tokio::net::{UnixListener, UnixStream};

/// What never comes must fail.
const WAIT: Duration = Duration::from_secs(30);
const LEN: u64 = 100_000;

/// What a frame is answered with: bytes, and a descriptor beside the first of them. `None` is nothing.
type Said = Option<(Vec<u8>, Option<File>)>;

/// A block server that says what `answer` makes of each request, to whoever connects.
struct Fake {
    folder: tempfile::TempDir,
}

impl Fake {
    fn start(answer: impl Fn(u64, &Request) -> Said + Send + Sync + 'static) -> Fake {
        let folder = tempfile::tempdir().expect("a folder");
        let listener = UnixListener::bind(socket(folder.path())).expect("a socket");
        let answer = Arc::new(answer);
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(serve(Socket::Unix(stream), answer.clone()));
            }
        });
        Fake { folder }
    }

    fn source(&self) -> Served {
        let link = Link::new(Place::Unix(socket(self.folder.path())), String::new());
        Served::new("s3://bucket/key", "s3://bucket/key", link).expect("a source")
    }
}

fn socket(folder: &Path) -> PathBuf {
    folder.join("extmem.sock")
}

async fn serve(socket: Socket, answer: Arc<impl Fn(u64, &Request) -> Said>) {
    let mut incoming = Incoming::default();
    while let Ok(Some((head, body))) = incoming.frame(&socket, BODY_BYTES_MAX, WAIT).await {
        let request = Request::decode(head.kind, &body).expect("a request");
        let Some((bytes, file)) = answer(head.id, &request) else { continue };
        let file = file.as_ref().map(AsFd::as_fd);
        if socket.send(&[bytes.into()], file, WAIT).await.is_err() {
            return;
        }
    }
}

fn version() -> Version {
    Version::strong("\"v\"")
}

/// What a sound server says to everything but a read.
fn soundly(id: u64, request: &Request) -> Said {
    let answer = match request {
        Request::Hello { .. } => {
            Answer::Welcome { has: FILES | MEMORY, requests_max: 4, read_bytes_max: READ_BYTES_MAX }
        }
        Request::Open { .. } => Answer::Opened {
            handle: 3,
            len: LEN,
            alignment: 4096,
            part_bytes: 1 << 20,
            version: version(),
        },
        Request::Close { .. } => Answer::Closed,
        _ => return None,
    };
    Some((answer.encode(id), None))
}

fn file_of(bytes: &[u8]) -> File {
    let mut file = tempfile::tempfile().expect("a file");
    file.write_all(bytes).expect("write");
    file
}

async fn read(source: &Served, range: std::ops::Range<u64>) -> Result<Vec<u8>, SourceError> {
    let frame = Frame::with_capacity((range.end - range.start) as usize);
    Ok(source.read_into(&version(), range, frame).await?.filled().to_vec())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_read_makes_of_each_answer() {
    type Lie = fn(u64) -> Said;
    let cases: [(&str, Lie); 13] = [
        ("fewer bytes", |id| {
            Some(([Answer::Bytes { length: 9 }.encode(id), vec![0; 9]].concat(), None))
        }),
        ("more bytes", |id| {
            Some(([Answer::Bytes { length: 11 }.encode(id), vec![0; 11]].concat(), None))
        }),
        ("a body of 4 GiB", |id| {
            let mut frame = Answer::Bytes { length: u64::from(u32::MAX) }.encode(id);
            frame.extend([0; 100]);
            Some((frame, None))
        }),
        ("another kind", |id| Some((Request::Close { handle: 1 }.encode(id), None))),
        ("an answer to another question", |id| Some((Answer::Closed.encode(id), None))),
        ("half a text", |id| {
            let whole = Answer::failed(&SourceError::Permanent {
                object: String::new(),
                reason: "a text".to_owned(),
                cause: None,
            });
            let mut frame = whole.encode(id);
            frame[22..24].copy_from_slice(&u16::MAX.to_le_bytes());
            Some((frame, None))
        }),
        ("what must be zero is not", |id| {
            let mut frame = Answer::Closed.encode(id);
            frame[6] = 1;
            Some((frame, None))
        }),
        ("a file without a descriptor", |id| {
            Some((Answer::File { position: 0, length: 10 }.encode(id), None))
        }),
        ("a file of no bytes", |id| {
            Some((Answer::File { position: 0, length: 0 }.encode(id), Some(file_of(&[1; 99]))))
        }),
        ("a file that is shorter than was said", |id| {
            Some((Answer::File { position: 95, length: 10 }.encode(id), Some(file_of(&[1; 99]))))
        }),
        ("a place beyond all files", |id| {
            let frame = Answer::File { position: u64::MAX - 3, length: 10 }.encode(id);
            Some((frame, Some(file_of(&[1; 99]))))
        }),
        ("a length beyond all numbers", |id| {
            let frame = Answer::File { position: 0, length: u64::MAX }.encode(id);
            Some((frame, Some(file_of(&[1; 99]))))
        }),
        ("a socket for a file", |id| {
            let (one, _other) = std::os::unix::net::UnixStream::pair().expect("a pair");
            let frame = Answer::File { position: 0, length: 10 }.encode(id);
            Some((frame, Some(File::from(std::os::fd::OwnedFd::from(one)))))
        }),
    ];
    for (what, lie) in cases {
        let fake = Fake::start(move |id, request| match request {
            Request::Read { .. } => lie(id),
            other => soundly(id, other),
        });
        let source = fake.source();
        source.stat().await.unwrap_or_else(|error| panic!("{what}: {error}"));
        let got = tokio::time::timeout(WAIT, read(&source, 50..60)).await;
        let got = got.unwrap_or_else(|_| panic!("{what}: it hangs"));
        assert!(got.is_err(), "{what}: {got:?}");
    }
    // And one that says what is true.
    let fake = Fake::start(move |id, request| match request {
        Request::Read { offset, .. } => {
            let frame = Answer::File { position: *offset, length: 10 }.encode(id);
            Some((frame, Some(file_of(&[7; LEN as usize]))))
        }
        other => soundly(id, other),
    });
    assert_eq!(read(&fake.source(), 50..60).await.expect("bytes"), [7; 10]);
}

/// What its source says to a server, the server's clients hear.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn errors_are_of_the_same_kind_on_both_sides() {
    let object = || "at the server".to_owned();
    let reason = || "so it is".to_owned();
    let wait = Some(Duration::from_millis(1500));
    let of_sources = [
        SourceError::NotFound { object: object(), cause: None },
        SourceError::Changed { object: object(), expected: "a".to_owned(), found: "b".to_owned() },
        SourceError::Throttled {
            object: object(),
            what: "read",
            range: None,
            attempts: 3,
            retry_after: wait,
            cause: None,
        },
        SourceError::Denied { object: object(), reason: reason(), cause: None },
        SourceError::Transient {
            object: object(),
            what: "read",
            range: None,
            attempts: 3,
            reason: reason(),
            cause: None,
        },
        SourceError::Corrupt { object: object(), range: None, reason: reason() },
        SourceError::Permanent { object: object(), reason: reason(), cause: None },
    ];
    // What the server says of itself.
    let told = |code| Answer::Failed { code, retry_after_ms: 0, text: reason() };
    let of_servers = [
        (
            told(Code::Unauthorized),
            SourceError::Denied { object: object(), reason: reason(), cause: None },
        ),
        (
            told(Code::Malformed),
            SourceError::Permanent { object: object(), reason: reason(), cause: None },
        ),
    ];
    let of_sources = of_sources.into_iter().map(|error| (Answer::failed(&error), error));
    for (answer, expected) in of_sources.chain(of_servers) {
        let fake = Fake::start(move |id, request| match request {
            Request::Read { .. } => Some((answer.encode(id), None)),
            other => soundly(id, other),
        });
        let error = read(&fake.source(), 50..60).await.expect_err("an error");
        let kind = std::mem::discriminant::<SourceError>;
        assert_eq!(kind(&error), kind(&expected), "{error:?} and not {expected:?}");
        let is_named = error.to_string().contains("s3://bucket/key");
        assert!(is_named, "{error}");
        if let SourceError::Throttled { retry_after, .. } = error {
            assert_eq!(retry_after, wait);
        }
    }
}

/// After a lost connection a server had another length for the same version, and was believed: a map was
/// shorter than its object.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_version_has_one_length() {
    let fake = Fake::start(|id, request| match request {
        // No answer of the protocol: the connection is over.
        Request::Read { .. } => Some((Request::Close { handle: 1 }.encode(id), None)),
        Request::Open { pinned: Some(_), .. } => {
            let (alignment, part_bytes) = (4096, 1 << 20);
            let (len, version) = (LEN / 2, version());
            let answer = Answer::Opened { handle: 4, len, alignment, part_bytes, version };
            Some((answer.encode(id), None))
        }
        other => soundly(id, other),
    });
    let source = fake.source();
    assert_eq!(source.stat().await.expect("stat").len, LEN);
    let lost = read(&source, 0..10).await.expect_err("no answer");
    assert!(matches!(lost, SourceError::Transient { .. }), "{lost}");
    let error = read(&source, 0..10).await.expect_err("another length");
    assert!(matches!(error, SourceError::Corrupt { .. }), "{error}");
    assert!(error.to_string().contains("100000") && error.to_string().contains("50000"), "{error}");
    let error = source.map(&version()).await.map(drop).expect_err("another length");
    assert!(matches!(error, SourceError::Corrupt { .. }), "{error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_map_makes_of_each_answer() {
    type Lie = fn(u64) -> Said;
    let cases: [(&str, Lie); 6] = [
        ("a file that anybody may change", |id| {
            let frame = Answer::File { position: 0, length: LEN }.encode(id);
            Some((frame, Some(file_of(&[1; LEN as usize]))))
        }),
        ("less than it says", |id| {
            let file = pager::sealed::seal(10, |file| file.write_all(&[1; 10])).expect("sealed");
            Some((Answer::File { position: 0, length: LEN }.encode(id), Some(file)))
        }),
        ("more than the object has", |id| {
            let file = pager::sealed::seal(LEN + 1, |file| file.write_all(&[1; LEN as usize + 1]));
            let frame = Answer::File { position: 0, length: LEN + 1 }.encode(id);
            Some((frame, Some(file.expect("sealed"))))
        }),
        ("pieces of one byte", |id| {
            let file = pager::sealed::seal(1, |file| file.write_all(&[1])).expect("sealed");
            Some((Answer::File { position: 0, length: 1 }.encode(id), Some(file)))
        }),
        ("pieces that end within a page", |id| {
            let file = pager::sealed::seal(50_000, |file| file.write_all(&[1; 50_000]));
            let frame = Answer::File { position: 0, length: 50_000 }.encode(id);
            Some((frame, Some(file.expect("sealed"))))
        }),
        ("another place than was asked for", |id| {
            let file = pager::sealed::seal(LEN, |file| file.write_all(&[1; LEN as usize]));
            let frame = Answer::File { position: 1, length: LEN - 1 }.encode(id);
            Some((frame, Some(file.expect("sealed"))))
        }),
    ];
    for (what, lie) in cases {
        let fake = Fake::start(move |id, request| match request {
            Request::Memory { .. } => lie(id),
            other => soundly(id, other),
        });
        let source = fake.source();
        let version = source.stat().await.expect("stat").version;
        let got = tokio::time::timeout(WAIT, source.map(&version)).await;
        let got = got.unwrap_or_else(|_| panic!("{what}: it hangs"));
        assert!(got.is_err(), "{what}: mapped {} bytes", got.map_or(0, |map| map.len()));
    }
}

/// It may take its time, and no more than that.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_says_nothing_is_left_after_seconds() {
    let fake = Fake::start(|_, _| None);
    let began = Instant::now();
    let error = tokio::time::timeout(WAIT, fake.source().stat()).await.expect("an end");
    let error = error.expect_err("nothing was said");
    assert!(matches!(error, SourceError::Transient { .. }), "{error}");
    assert!(began.elapsed() > Duration::from_secs(4), "{:?} is no time", began.elapsed());
}

/// Whoever leaves a server waits for nothing that it says.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn leaving_waits_for_no_goodbye() {
    let fake = Fake::start(|id, request| match request {
        Request::Close { .. } => None,
        Request::Read { length, .. } => {
            let bytes = vec![7; *length as usize];
            Some(([Answer::Bytes { length: *length }.encode(id), bytes].concat(), None))
        }
        other => soundly(id, other),
    });
    let source = fake.source();
    let left = tokio::task::spawn_blocking(move || {
        let pager = Pager::builder().budget_bytes(4 << 20).build().expect("a pager");
        let region = pager.open(source).expect("a region");
        assert_eq!(region.load(10..20).expect("bytes")[..], [7; 10]);
        drop((region, pager));
    });
    tokio::time::timeout(WAIT, left).await.expect("an end").expect("no panic");
}

/// One that stood still after its welcome was waited for until somebody else lost patience.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_stands_still_is_left() {
    let fake = Fake::start(|id, request| match request {
        Request::Close { .. } => None,
        other => soundly(id, other),
    });
    let error = tokio::time::timeout(2 * WAIT, read(&fake.source(), 50..60)).await.expect("an end");
    let error = error.expect_err("no bytes came");
    assert!(matches!(error, SourceError::Transient { .. }), "{error}");
}

/// A read may take as long as the server's source does, as long as the server says that it is there.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_is_there_is_waited_for() {
    // Whose question it is, and how often the client has asked for a sign.
    let asked = std::sync::Mutex::new((0, 0));
    let fake = Fake::start(move |id, request| match request {
        Request::Read { .. } => {
            asked.lock().expect("no panic").0 = id;
            None
        }
        Request::Close { handle: NO_HANDLE } => {
            let (read, signs) = &mut *asked.lock().expect("no panic");
            *signs += 1;
            let mut said = Answer::Closed.encode(id);
            if *signs == 2 {
                said.extend(Answer::Bytes { length: 10 }.encode(*read));
                said.extend([7; 10]);
            }
            Some((said, None))
        }
        other => soundly(id, other),
    });
    let got = tokio::time::timeout(2 * WAIT, read(&fake.source(), 50..60)).await;
    assert_eq!(got.expect("an end").expect("bytes"), [7; 10]);
}

/// A server that does `serve` with each connection, and counts them.
struct Counted {
    folder: tempfile::TempDir,
    calls: Arc<AtomicUsize>,
}

impl Counted {
    fn start<F>(serve: impl Fn(UnixStream) -> F + Send + 'static) -> Counted
    where
        F: Future<Output = ()> + Send,
    {
        let folder = tempfile::tempdir().expect("a folder");
        let listener = UnixListener::bind(socket(folder.path())).expect("a socket");
        let calls = Arc::new(AtomicUsize::new(0));
        let counted = calls.clone();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                counted.fetch_add(1, Relaxed);
                serve(stream).await;
            }
        });
        Counted { folder, calls }
    }

    /// How often it is called by two thousand questions that it does not answer.
    async fn calls(&self) -> usize {
        let link = Link::new(Place::Unix(socket(self.folder.path())), String::new());
        let source = Served::new("s3://bucket/key", "s3://bucket/key", link).expect("a source");
        for _ in 0..2000 {
            let error = source.stat().await.expect_err("nobody answers");
            assert!(error.is_retryable(), "{error}");
            assert!(error.to_string().contains("block server"), "{error}");
        }
        self.calls.load(Relaxed)
    }
}

/// A server that hangs up on everybody is not called again at once by each that asks. Counted, not timed:
/// the pauses double from 50 ms to 5 s, so that fifty calls are minutes.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_hangs_up_is_called_less_and_less_often() {
    let calls = Counted::start(async |stream| drop(stream)).calls().await;
    assert!((1..50).contains(&calls), "{calls} calls");
}

/// One that welcomes everybody, and then hangs up, was called again by every question.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_hangs_up_after_its_welcome_is_called_less_and_less_often() {
    let server = Counted::start(async |stream| {
        let (socket, mut incoming) = (Socket::Unix(stream), Incoming::default());
        let hello = incoming.frame(&socket, BODY_BYTES_MAX, WAIT).await;
        let (head, body) = hello.expect("a frame").expect("a hello");
        let request = Request::decode(head.kind, &body).expect("a request");
        let (welcome, _) = soundly(head.id, &request).expect("a welcome");
        let _ = socket.send(&[welcome.into()], None, WAIT).await;
        // And one question, which has no answer.
        let _ = incoming.frame(&socket, BODY_BYTES_MAX, WAIT).await;
    });
    let calls = server.calls().await;
    assert!((1..50).contains(&calls), "{calls} calls");
}
