//! A client of protocol V000, written from the text of `PROTOCOL.md` alone.

use std::{
    fs::File,
    io::{self, Read, Write},
    net::TcpStream,
    os::unix::fs::FileExt,
    time::Duration,
};

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Reply {
    pub(crate) kind: String,
    pub(crate) offset: u64,
    pub(crate) size: u64,
    pub(crate) path: String,
}

impl Reply {
    pub(crate) fn is(&self, kind: &str) -> bool {
        self.kind == kind
    }
}

pub(crate) struct Client {
    pub(crate) stream: TcpStream,
}

pub(crate) fn frame(kind: &[u8; 4], offset: u64, size: u64, path: &[u8]) -> Vec<u8> {
    let mut bytes = kind.to_vec();
    bytes.extend(offset.to_le_bytes());
    bytes.extend(size.to_le_bytes());
    bytes.extend((path.len() as u32).to_le_bytes());
    bytes.extend(path);
    bytes
}

impl Client {
    pub(crate) fn connect(address: &str) -> io::Result<Client> {
        let stream = TcpStream::connect(address)?;
        stream.set_nodelay(true)?;
        // The server may take as long as its retries; a test that hangs must fail.
        stream.set_read_timeout(Some(Duration::from_secs(60)))?;
        Ok(Client { stream })
    }

    pub(crate) fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.stream.write_all(bytes)
    }

    pub(crate) fn reply(&mut self) -> io::Result<Reply> {
        let mut head = [0; 24];
        self.stream.read_exact(&mut head)?;
        let number = |at: usize| u64::from_le_bytes(head[at..at + 8].try_into().unwrap());
        let len = u32::from_le_bytes(head[20..].try_into().unwrap());
        assert!(len <= 1023, "a path of {len} bytes");
        let mut path = vec![0; len as usize];
        self.stream.read_exact(&mut path)?;
        Ok(Reply {
            kind: String::from_utf8(head[..4].to_vec()).unwrap(),
            offset: number(4),
            size: number(12),
            path: String::from_utf8(path).unwrap(),
        })
    }

    pub(crate) fn ask(
        &mut self,
        kind: &[u8; 4],
        offset: u64,
        size: u64,
        url: &str,
    ) -> io::Result<Reply> {
        self.send(&frame(kind, offset, size, url.as_bytes()))?;
        self.reply()
    }

    pub(crate) fn hello(&mut self, url: &str) -> io::Result<Reply> {
        self.ask(b"V000", 0, 0, url)
    }

    /// Asks as a page fault does: until the file that is named can be opened. `Ok(Err)` is what the
    /// server answered instead of a file.
    pub(crate) fn read(
        &mut self,
        url: &str,
        offset: u64,
        size: u64,
    ) -> io::Result<Result<Vec<u8>, Reply>> {
        for _ in 0..20 {
            let reply = self.ask(b"READ", offset, size, url)?;
            if !reply.is("OKOK") {
                return Ok(Err(reply));
            }
            assert!(reply.path.starts_with('/') && reply.size > 0, "{reply:?}");
            let file = match File::open(&reply.path) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                other => other?,
            };
            let mut bytes = vec![0; reply.size as usize];
            file.read_exact_at(&mut bytes, reply.offset)?;
            return Ok(Ok(bytes));
        }
        Err(io::Error::other("twenty files vanished before they could be opened"))
    }
}
