//! A socket that carries frames, and descriptors beside them.

use std::{
    collections::VecDeque,
    io::{self, IoSlice, IoSliceMut},
    mem::MaybeUninit,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    time::Duration,
};

use bytes::{Bytes, BytesMut};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use rustix::{
    cmsg_space,
    event::{PollFd, PollFlags, Timespec, poll},
    io::Errno,
    net::{
        RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
        SendAncillaryMessage, SendFlags, Shutdown, recvmsg, sendmsg, shutdown, sockopt,
    },
};
use tokio::{
    io::Interest,
    net::{TcpStream, UnixStream},
    time::timeout,
};

use super::frames::{HEAD_BYTES, Head};

/// Bytes that are received at once, and that are made room for before they come.
const CHUNK_BYTES: usize = 64 << 10;
const ROOM_BYTES_MAX: usize = 1 << 20;
/// Descriptors are no reason to have more than so many.
const DESCRIPTORS_ENOUGH: u64 = 65_536;
/// Descriptors that may wait for their frames.
const FILES_MAX: usize = 64;
/// Descriptors that come with one message: one for each frame that one read may bring.
const FILES_AT_ONCE: usize = 16;

/// A connection.
#[derive(Debug)]
pub enum Socket {
    /// On this machine; carries descriptors.
    Unix(UnixStream),
    /// Carries bytes alone.
    Tcp(TcpStream),
}

impl Socket {
    /// Whether descriptors can be sent.
    pub fn carries_files(&self) -> bool {
        matches!(self, Socket::Unix(_))
    }

    /// Ends the connection, for whoever waits on it here, too.
    pub fn close(&self) {
        let _ = match self {
            Socket::Unix(stream) => shutdown(stream, Shutdown::Both),
            Socket::Tcp(stream) => shutdown(stream, Shutdown::Both),
        };
    }

    async fn io<T>(
        &self,
        interest: Interest,
        mut work: impl FnMut(BorrowedFd<'_>) -> io::Result<T>,
    ) -> io::Result<T> {
        match self {
            Socket::Unix(stream) => stream.async_io(interest, || work(stream.as_fd())).await,
            Socket::Tcp(stream) => stream.async_io(interest, || work(stream.as_fd())).await,
        }
    }

    /// Sends `parts`, one after the other, with `file` beside the first byte. Fails when nothing
    /// goes out for `stall`.
    ///
    /// # Errors
    /// What the system says, and [`TimedOut`](io::ErrorKind::TimedOut) for a peer that does not
    /// read.
    pub async fn send(
        &self,
        parts: &[Bytes],
        file: Option<BorrowedFd<'_>>,
        stall: Duration,
    ) -> io::Result<()> {
        let mut file = file;
        for part in parts {
            let mut rest = &part[..];
            while !rest.is_empty() {
                let sent =
                    timeout(stall, self.io(Interest::WRITABLE, |fd| send_once(fd, rest, file)));
                let sent = sent.await.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))??;
                if sent == 0 {
                    return Err(io::ErrorKind::WriteZero.into());
                }
                rest = &rest[sent..];
                // It has gone with the first byte.
                file = None;
            }
        }
        Ok(())
    }

    /// Waits until the peer has taken what was sent to it, but for one small frame at most. Fails when
    /// it has not for `stall`. On TCP nothing is waited for.
    ///
    /// # Errors
    /// What the system says, and [`TimedOut`](io::ErrorKind::TimedOut) for a peer that does not
    /// read.
    pub async fn taken(&self, stall: Duration) -> io::Result<()> {
        let Socket::Unix(stream) = self else { return Ok(()) };
        // A socket may be written to when a quarter of its room is taken, or less: of the least room
        // that there is, this is one frame.
        let _narrow = Narrow::of(stream)?;
        let taken = self.io(Interest::WRITABLE, |fd| match may_be_written(fd)? {
            true => Ok(()),
            false => Err(io::ErrorKind::WouldBlock.into()),
        });
        timeout(stall, taken).await.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))?
    }
}

impl Socket {
    /// Whether the peer has taken what was sent to it, but for one small frame at most, or has no end of
    /// this connection any more. Tells it also of a socket that is [closed](Socket::close) here, whose
    /// peer may read what was sent before. On TCP, always.
    pub fn is_taken(&self) -> bool {
        let Socket::Unix(stream) = self else { return true };
        let Ok(_narrow) = Narrow::of(stream) else { return true };
        polled(stream.as_fd()).is_ok_and(|events| events.contains(PollFlags::OUT))
    }
}

/// A socket with the least room for what is not read, as long as this lives.
struct Narrow<'a> {
    stream: &'a UnixStream,
    before: usize,
}

impl Narrow<'_> {
    fn of(stream: &UnixStream) -> io::Result<Narrow<'_>> {
        // The system tells twice what it was told.
        let before = sockopt::socket_send_buffer_size(stream)? / 2;
        sockopt::set_socket_send_buffer_size(stream, 0)?;
        Ok(Narrow { stream, before })
    }
}

impl Drop for Narrow<'_> {
    fn drop(&mut self) {
        // A socket that cannot be told is closed.
        let _ = sockopt::set_socket_send_buffer_size(self.stream, self.before);
    }
}

fn may_be_written(socket: BorrowedFd<'_>) -> io::Result<bool> {
    // Also one that is closed, or broken: whoever writes to it is told.
    Ok(!polled(socket)?.is_empty())
}

fn polled(socket: BorrowedFd<'_>) -> io::Result<PollFlags> {
    let mut polled = [PollFd::from_borrowed_fd(socket, PollFlags::OUT)];
    let now = Timespec { tv_sec: 0, tv_nsec: 0 };
    poll(&mut polled, Some(&now))?;
    Ok(polled[0].revents())
}

/// Whether a descriptor could not be sent because too many of this user's are on their way.
pub fn has_no_descriptor(error: &io::Error) -> bool {
    error.raw_os_error() == Some(Errno::TOOMANYREFS.raw_os_error())
}

/// How many descriptors this process may have, from now on: as many as it may allow itself, or enough.
pub fn descriptors_max() -> u64 {
    // What every system allows.
    let Ok((soft, hard)) = getrlimit(Resource::RLIMIT_NOFILE) else { return 256 };
    let more = hard.min(DESCRIPTORS_ENOUGH);
    match more > soft && setrlimit(Resource::RLIMIT_NOFILE, more, hard).is_ok() {
        true => more,
        false => soft,
    }
}

fn send_once(
    socket: BorrowedFd<'_>,
    bytes: &[u8],
    file: Option<BorrowedFd<'_>>,
) -> io::Result<usize> {
    let mut space = [MaybeUninit::uninit(); cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    let files = file.as_slice();
    if !files.is_empty() {
        assert!(control.push(SendAncillaryMessage::ScmRights(files)), "there is space for one");
    }
    let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
    Ok(sendmsg(socket, &[IoSlice::new(bytes)], &mut control, flags)?)
}

/// What comes in, frame by frame.
///
/// By default descriptors are not taken: the kernel closes what a peer sends.
#[derive(Debug, Default)]
pub struct Incoming {
    /// Room, of which so many bytes have come.
    buffer: BytesMut,
    filled: usize,
    files: Option<VecDeque<OwnedFd>>,
    truncated: bool,
}

impl Incoming {
    /// Takes the descriptors that come with frames, too.
    pub fn with_files() -> Incoming {
        Incoming { files: Some(VecDeque::new()), ..Incoming::default() }
    }

    /// Whether a descriptor was sent that this process had no place for: it has as many open as it
    /// may, or was sent too many.
    pub fn is_truncated(&self) -> bool {
        self.truncated
    }

    /// The next frame. Waits for its first byte for ever, and then for `wait`. `None` at the end of
    /// the connection, between two frames.
    ///
    /// # Errors
    /// What the system says; [`TimedOut`](io::ErrorKind::TimedOut) for half a frame;
    /// [`InvalidData`](io::ErrorKind::InvalidData) for one that is none, or longer than allowed.
    pub async fn frame(
        &mut self,
        socket: &Socket,
        body_bytes_max: usize,
        wait: Duration,
    ) -> io::Result<Option<(Head, Bytes)>> {
        if self.filled == 0 && self.receive(socket, HEAD_BYTES).await? == 0 {
            return Ok(None);
        }
        let rest = async {
            self.fill(socket, HEAD_BYTES).await?;
            let head: [u8; HEAD_BYTES] = self.buffer[..HEAD_BYTES].try_into().expect("a head");
            let head = Head::decode(&head, body_bytes_max)
                .map_err(|broken| io::Error::new(io::ErrorKind::InvalidData, broken))?;
            self.fill(socket, HEAD_BYTES + head.body_bytes).await?;
            let mut frame = self.buffer.split_to(HEAD_BYTES + head.body_bytes).freeze();
            self.filled -= frame.len();
            Ok(Some((head, frame.split_off(HEAD_BYTES))))
        };
        timeout(wait, rest).await.unwrap_or_else(|_| {
            let text = format!("a frame was not whole {wait:?} after its first byte");
            Err(io::Error::new(io::ErrorKind::TimedOut, text))
        })
    }

    /// The descriptor that came with a frame. In the order of the frames.
    pub fn file(&mut self) -> Option<OwnedFd> {
        self.files.as_mut()?.pop_front()
    }

    async fn fill(&mut self, socket: &Socket, bytes: usize) -> io::Result<()> {
        while self.filled < bytes {
            if self.receive(socket, bytes).await? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
        Ok(())
    }

    /// Receives something, of a frame that ends after so many bytes.
    async fn receive(&mut self, socket: &Socket, end: usize) -> io::Result<usize> {
        if self.buffer.len() < end.max(self.filled + 1) {
            // Not all at once for a frame that claims to be long.
            let room = end.clamp(self.filled + CHUNK_BYTES, self.filled + ROOM_BYTES_MAX);
            self.buffer.resize(room, 0);
        }
        let (files, truncated) = (&mut self.files, &mut self.truncated);
        let into = &mut self.buffer[self.filled..];
        let once = |fd: BorrowedFd<'_>| receive_once(fd, into, files, truncated);
        let got = socket.io(Interest::READABLE, once).await?;
        self.filled += got;
        Ok(got)
    }
}

fn receive_once(
    socket: BorrowedFd<'_>,
    into: &mut [u8],
    files: &mut Option<VecDeque<OwnedFd>>,
    truncated: &mut bool,
) -> io::Result<usize> {
    let flags = RecvFlags::CMSG_CLOEXEC | RecvFlags::DONTWAIT;
    let Some(files) = files else {
        let mut none = RecvAncillaryBuffer::default();
        return Ok(recvmsg(socket, &mut [IoSliceMut::new(into)], &mut none, flags)?.bytes);
    };
    let mut space = [MaybeUninit::uninit(); cmsg_space!(ScmRights(FILES_AT_ONCE))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let got = recvmsg(socket, &mut [IoSliceMut::new(into)], &mut control, flags)?;
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(rights) = message {
            files.extend(rights);
        }
    }
    if got.flags.contains(ReturnFlags::CTRUNC) || files.len() > FILES_MAX {
        *truncated = true;
        return Err(io::Error::new(io::ErrorKind::InvalidData, "too many descriptors"));
    }
    Ok(got.bytes)
}

#[cfg(test)]
mod tests {
    use std::{fs::File, os::unix::fs::FileExt};

    use super::*;
    use crate::server::frames::Answer;

    const WAIT: Duration = Duration::from_millis(300);

    #[tokio::test]
    async fn frames_and_files_arrive_in_their_order() {
        let (a, b) = UnixStream::pair().expect("a pair");
        let (a, b) = (Socket::Unix(a), Socket::Unix(b));
        let folder = tempfile::tempdir().expect("a folder");
        let files: Vec<File> = (0..3u8)
            .map(|n| {
                let path = folder.path().join(n.to_string());
                std::fs::write(&path, [n]).expect("write");
                File::open(path).expect("open")
            })
            .collect();
        for (n, file) in files.iter().enumerate() {
            let frame = Answer::File { position: n as u64, length: 1 }.encode(n as u64);
            a.send(&[frame.into()], Some(file.as_fd()), WAIT).await.expect("send");
            let plain = Answer::Closed.encode(100);
            a.send(&[plain.into()], None, WAIT).await.expect("send");
        }
        let mut incoming = Incoming::with_files();
        for n in 0..3u8 {
            let (head, _) = incoming.frame(&b, 100, WAIT).await.expect("a frame").expect("one");
            assert_eq!(head.id, u64::from(n));
            let file = File::from(incoming.file().expect("its file"));
            let mut byte = [9];
            file.read_exact_at(&mut byte, 0).expect("read");
            assert_eq!(byte, [n]);
            let (head, _) = incoming.frame(&b, 100, WAIT).await.expect("a frame").expect("one");
            assert_eq!(head.id, 100);
        }
        assert!(incoming.file().is_none());
        drop(a);
        assert!(incoming.frame(&b, 100, WAIT).await.expect("the end").is_none());
    }

    /// However the bytes come in, and however long the frames are.
    #[tokio::test]
    async fn frames_are_put_together_again() {
        let (a, b) = UnixStream::pair().expect("a pair");
        let (a, b) = (Socket::Unix(a), Socket::Unix(b));
        let lens = [0, 1, 70_000, 15, 3 << 20, 1, 0, CHUNK_BYTES - HEAD_BYTES, 64 << 10, 2 << 20];
        let body = |n: usize| Bytes::from(vec![n as u8 + 1; lens[n]]);
        let mut all = BytesMut::new();
        for (n, len) in lens.iter().enumerate() {
            all.extend_from_slice(&Answer::Bytes { length: *len as u64 }.encode(n as u64));
            all.extend_from_slice(&body(n));
        }
        let mut all = all.freeze();
        let sending = tokio::spawn(async move {
            let mut state = 1usize;
            while !all.is_empty() {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                let most = if state >> 62 == 0 { 200_000 } else { 40 };
                let len = (1 + (state >> 33) % most).min(all.len());
                a.send(&[all.split_to(len)], None, Duration::from_secs(20)).await.expect("send");
            }
        });
        let mut incoming = Incoming::default();
        for (n, len) in lens.iter().enumerate() {
            let frame = incoming.frame(&b, 4 << 20, Duration::from_secs(20)).await;
            let (head, got) = frame.expect("a frame").expect("one");
            assert_eq!((head.id, head.body_bytes), (n as u64, *len));
            assert!(got == body(n), "{n}");
        }
        assert!(incoming.frame(&b, 100, WAIT).await.expect("the end").is_none());
        sending.await.expect("a task");
    }

    #[tokio::test]
    async fn what_the_peer_has_not_taken_is_waited_for() {
        let (a, b) = UnixStream::pair().expect("a pair");
        let (a, b) = (Socket::Unix(a), Socket::Unix(b));
        let frame = || Bytes::from(Answer::Closed.encode(1));
        a.taken(WAIT).await.expect("nothing was sent");
        for _ in 0..5 {
            a.send(&[frame()], None, WAIT).await.expect("send");
        }
        let late = a.taken(WAIT).await.expect_err("five are there");
        assert_eq!(late.kind(), io::ErrorKind::TimedOut);
        // As wide as before.
        a.send(&[Bytes::from(vec![0; 100_000])], None, WAIT).await.expect("send");
        let reading = tokio::spawn(async move {
            let mut incoming = Incoming::default();
            for _ in 0..5 {
                incoming.frame(&b, 100, WAIT).await.expect("a frame").expect("one");
            }
            (b, incoming)
        });
        let (b, incoming) = reading.await.expect("a task");
        assert!(incoming.filled > 0, "some of what follows");
        let rest = tokio::spawn(async move {
            let Socket::Unix(stream) = &b else { return };
            let mut bytes = vec![0; 100_000];
            while stream.readable().await.is_ok()
                && stream.try_read(&mut bytes).is_ok_and(|n| n > 0)
            {}
        });
        a.taken(Duration::from_secs(20)).await.expect("all was read");
        drop(a);
        rest.await.expect("a task");
    }

    /// What lies in the queue of a peer stays there when this end is closed.
    #[tokio::test]
    async fn what_is_not_taken_is_seen_after_the_end() {
        for leaves in [true, false] {
            let (a, b) = UnixStream::pair().expect("a pair");
            let (a, b) = (Socket::Unix(a), Socket::Unix(b));
            assert!(a.is_taken());
            for _ in 0..5 {
                let frame = Answer::Closed.encode(1);
                a.send(&[frame.into()], None, WAIT).await.expect("send");
            }
            assert!(!a.is_taken());
            a.close();
            assert!(!a.is_taken(), "nobody took them");
            if leaves {
                drop(b);
            } else {
                let mut incoming = Incoming::default();
                for _ in 0..5 {
                    incoming.frame(&b, 100, WAIT).await.expect("a frame").expect("one");
                }
            }
            assert!(a.is_taken(), "{leaves}");
        }
    }

    #[tokio::test]
    async fn half_a_frame_and_a_peer_that_does_not_read_are_given_up() {
        let (a, b) = UnixStream::pair().expect("a pair");
        let (a, b) = (Socket::Unix(a), Socket::Unix(b));
        a.send(&[Bytes::from_static(b"\x05\0")], None, WAIT).await.expect("send");
        let half = Incoming::default().frame(&b, 100, WAIT).await.map(drop).expect_err("half");
        assert_eq!(half.kind(), io::ErrorKind::TimedOut);
        let long = Bytes::from(vec![0; 8 << 20]);
        let full = a.send(&[long], None, WAIT).await.expect_err("nobody reads");
        assert_eq!(full.kind(), io::ErrorKind::TimedOut);
    }
}
