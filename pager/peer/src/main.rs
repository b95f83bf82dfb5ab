//! Has a file in memory and shows it by FUSE, as often as it is told, each time with an empty cache of the
//! kernel's:
//!
//! ```text
//! peer-fuse FILE FOLDER [KIB [THREADS]]
//!
//!   a line in      one line out
//!   mount          how far the kernel reads ahead, in KiB; FOLDER/object can be read
//!   unmount        the largest request so far, in KiB; nothing of it is in the kernel's memory any more
//! ```
//!
//! It ends with its input. KIB is how far the kernel reads ahead, THREADS how many answer it. Outside of the
//! workspace; `make bench` runs it beside ours, and reads the file itself, as it reads everything.

#![forbid(unsafe_code)]

use std::{
    env,
    ffi::OsStr,
    fs,
    io::{self, BufRead, Write},
    os::linux::fs::MetadataExt,
    path::{Path, PathBuf},
    process::ExitCode,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering::Relaxed},
    },
    time::{Duration, UNIX_EPOCH},
};

use fuser::{
    BackgroundSession, Config, Errno, FileAttr, FileHandle, FileType, Filesystem, Generation,
    INodeNo, KernelConfig, LockOwner, MountOption, OpenFlags, ReplyAttr, ReplyData, ReplyDirectory,
    ReplyEntry, Request, Session,
};

/// The only file, and its number.
const NAME: &str = "object";
const NUMBER: INodeNo = INodeNo(2);
/// How long the kernel may believe what it was told: nothing here changes.
const TTL: Duration = Duration::from_secs(3600);
/// Several requests, each as large as the kernel has them: 1 MiB where nobody has raised `fs.fuse.max_pages_limit`.
const AHEAD_KIB: u32 = 4096;
const THREADS: usize = 2;
/// Requests of the kernel's read-ahead that may be under way.
const BACKGROUND: u16 = 64;

/// A folder with the object in it.
struct One {
    bytes: Arc<Vec<u8>>,
    /// Bytes of the largest request.
    largest: Arc<AtomicU32>,
}

impl One {
    fn attributes(&self, number: INodeNo) -> Option<FileAttr> {
        let (kind, perm, size) = match number {
            INodeNo::ROOT => (FileType::Directory, 0o555, 0),
            NUMBER => (FileType::RegularFile, 0o444, self.bytes.len() as u64),
            _ => return None,
        };
        Some(FileAttr {
            ino: number,
            size,
            blocks: size.div_ceil(512),
            atime: UNIX_EPOCH,
            mtime: UNIX_EPOCH,
            ctime: UNIX_EPOCH,
            crtime: UNIX_EPOCH,
            kind,
            perm,
            nlink: 1,
            uid: 0,
            gid: 0,
            rdev: 0,
            blksize: 4096,
            flags: 0,
        })
    }
}

impl Filesystem for One {
    fn init(&mut self, _: &Request, config: &mut KernelConfig) -> io::Result<()> {
        // What the kernel does not do stays as it is.
        let _ = config.set_max_background(BACKGROUND);
        Ok(())
    }

    fn lookup(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        match self.attributes(NUMBER) {
            Some(found) if parent == INodeNo::ROOT && name == NAME => {
                reply.entry(&TTL, &found, Generation(0));
            }
            _ => reply.error(Errno::ENOENT),
        }
    }

    fn getattr(&self, _: &Request, number: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        match self.attributes(number) {
            Some(found) => reply.attr(&TTL, &found),
            None => reply.error(Errno::ENOENT),
        }
    }

    fn read(
        &self,
        _: &Request,
        number: INodeNo,
        _: FileHandle,
        offset: u64,
        size: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        if number != NUMBER {
            return reply.error(Errno::EISDIR);
        }
        self.largest.fetch_max(size, Relaxed);
        let start = usize::try_from(offset).map_or(self.bytes.len(), |at| at.min(self.bytes.len()));
        let end = start.saturating_add(size as usize).min(self.bytes.len());
        reply.data(&self.bytes[start..end]);
    }

    fn readdir(
        &self,
        _: &Request,
        _: INodeNo,
        _: FileHandle,
        offset: u64,
        mut reply: ReplyDirectory,
    ) {
        let all = [
            (INodeNo::ROOT, FileType::Directory, "."),
            (INodeNo::ROOT, FileType::Directory, ".."),
            (NUMBER, FileType::RegularFile, NAME),
        ];
        for (next, (number, kind, name)) in (1..).zip(all).skip(offset as usize) {
            if reply.add(number, next, kind, name) {
                break;
            }
        }
        reply.ok();
    }
}

/// What is mounted, and where.
struct Peer {
    bytes: Arc<Vec<u8>>,
    folder: PathBuf,
    ahead_kib: u32,
    threads: usize,
    largest: Arc<AtomicU32>,
    mounted: Option<BackgroundSession>,
}

impl Peer {
    fn mount(&mut self) -> io::Result<u32> {
        let mut config = Config::default();
        config.mount_options = vec![MountOption::RO, MountOption::FSName("peer-fuse".to_owned())];
        config.n_threads = Some(self.threads);
        config.clone_fd = true;
        let one = One { bytes: self.bytes.clone(), largest: self.largest.clone() };
        self.mounted = Some(Session::new(one, &self.folder, &config)?.spawn()?);
        read_ahead(&self.folder, self.ahead_kib)
    }

    fn unmount(&mut self) -> io::Result<()> {
        self.mounted.take().map_or(Ok(()), BackgroundSession::umount_and_join)
    }

    fn answer(&mut self, command: &str) -> io::Result<String> {
        match command {
            "mount" => self.mount().map(|ahead_kib| ahead_kib.to_string()),
            "unmount" => self.unmount().map(|()| (self.largest.load(Relaxed) >> 10).to_string()),
            other => Err(io::Error::other(format!("no command: {other}"))),
        }
    }
}

/// Has the kernel read so far ahead in what is mounted at `folder`, which it does 128 KiB of else, whatever a
/// file system asks for. Returns how far it is now.
fn read_ahead(folder: &Path, kib: u32) -> io::Result<u32> {
    let device = fs::metadata(folder)?.st_dev();
    // As the C library packs them.
    let (major, minor) = ((device >> 8) & 0xfff, (device & 0xff) | ((device >> 12) & 0xfff_00));
    let setting = format!("/sys/class/bdi/{major}:{minor}/read_ahead_kb");
    fs::write(&setting, kib.to_string())?;
    fs::read_to_string(&setting)?.trim().parse().map_err(io::Error::other)
}

fn run(args: &[String]) -> Result<(), String> {
    let [file, folder, rest @ ..] = args else {
        return Err("usage: peer-fuse FILE FOLDER [KIB [THREADS]]".to_owned());
    };
    let number = |at: usize, usual: u32| match rest.get(at) {
        None => Ok(usual),
        Some(text) => text.parse().map_err(|_| format!("no number: {text}")),
    };
    let mut peer = Peer {
        bytes: Arc::new(fs::read(file).map_err(|e| format!("{file}: {e}"))?),
        folder: folder.into(),
        ahead_kib: number(0, AHEAD_KIB)?,
        threads: number(1, THREADS as u32)?.clamp(1, 64) as usize,
        largest: Arc::default(),
        mounted: None,
    };
    for line in io::stdin().lock().lines() {
        let line = line.map_err(|e| e.to_string())?;
        let answer = peer.answer(line.trim()).map_err(|e| format!("{}: {e}", line.trim()))?;
        let mut out = io::stdout().lock();
        writeln!(out, "{answer}").and_then(|()| out.flush()).map_err(|e| e.to_string())?;
    }
    peer.unmount().map_err(|e| e.to_string())
}

fn main() -> ExitCode {
    let args: Vec<String> = env::args().skip(1).collect();
    match run(&args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            eprintln!("peer-fuse: {message}");
            ExitCode::FAILURE
        }
    }
}
