//! A socket that carries frames, and descriptors beside them.

use std::{
    collections::VecDeque,
    io::{self, IoSlice, IoSliceMut},
    mem::MaybeUninit,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    time::Duration,
};

use bytes::{Bytes, BytesMut};
use rustix::{
    cmsg_space,
    net::{
        RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
        SendAncillaryMessage, SendFlags, Shutdown, recvmsg, sendmsg, shutdown,
    },
};
use tokio::{
    io::Interest,
    net::{TcpStream, UnixStream},
    time::timeout,
};

use super::frames::{HEAD_BYTES, Head};

/// Bytes that are received at once.
const CHUNK_BYTES: usize = 64 << 10;
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
    buffer: BytesMut,
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
        if self.buffer.is_empty() && self.receive(socket).await? == 0 {
            return Ok(None);
        }
        let rest = async {
            self.fill(socket, HEAD_BYTES).await?;
            let head: [u8; HEAD_BYTES] = self.buffer[..HEAD_BYTES].try_into().expect("a head");
            let head = Head::decode(&head, body_bytes_max)
                .map_err(|broken| io::Error::new(io::ErrorKind::InvalidData, broken))?;
            self.fill(socket, HEAD_BYTES + head.body_bytes).await?;
            let mut frame = self.buffer.split_to(HEAD_BYTES + head.body_bytes).freeze();
            Ok(Some((head, frame.split_off(HEAD_BYTES))))
        };
        timeout(wait, rest).await.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))?
    }

    /// The descriptor that came with a frame. In the order of the frames.
    pub fn file(&mut self) -> Option<OwnedFd> {
        self.files.as_mut()?.pop_front()
    }

    async fn fill(&mut self, socket: &Socket, bytes: usize) -> io::Result<()> {
        while self.buffer.len() < bytes {
            if self.receive(socket).await? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
        Ok(())
    }

    async fn receive(&mut self, socket: &Socket) -> io::Result<usize> {
        let mut chunk = [0; CHUNK_BYTES];
        let (files, truncated) = (&mut self.files, &mut self.truncated);
        let once = |fd: BorrowedFd<'_>| receive_once(fd, &mut chunk, files, truncated);
        let got = socket.io(Interest::READABLE, once).await?;
        self.buffer.extend_from_slice(&chunk[..got]);
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
