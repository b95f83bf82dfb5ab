//! Memory that several processes share and nobody can change: what a block server hands out, and its
//! clients map.
//!
//! ```text
//!   server:  seal(len, fill) -> File --SCM_RIGHTS--> client:  SealedMap::new(&[Part]) -> &[u8]
//! ```
//!
//! A memory file (`memfd_create(2)`) with the seals `F_SEAL_WRITE` and `F_SEAL_SHRINK` cannot be
//! written or cut by anybody, its maker included, for as long as it exists; the kernel refuses the
//! seals while somebody could write. So a slice of its bytes is as good as one of constant memory,
//! whoever made it: this is the one kind of file whose mapping is safe without trust.

use std::{
    fs::File,
    io::{self, Seek, SeekFrom, Write},
    ops::{Deref, Range},
    os::unix::fs::MetadataExt,
    slice,
};

use nix::{
    errno::Errno,
    fcntl::{FcntlArg, SealFlag, fcntl},
    sys::{
        memfd::{MFdFlags, memfd_create},
        statfs::{TMPFS_MAGIC, fstatfs},
    },
};

use crate::sys::{PAGE, Shared};

/// `MFD_NOEXEC_SEAL`: no program, and never one. Since Linux 6.3; from then on a system may refuse files
/// that do not say so (`vm.memfd_noexec` = 2).
const NO_PROGRAM: MFdFlags = MFdFlags::from_bits_retain(8);

/// Bytes of a block, as `stat(2)` counts them.
const BLOCK_BYTES: u64 = 512;

/// Parts of files, side by side, as one slice.
///
/// Pages are shared with everybody who maps them; they are in memory once. Memory that the kernel
/// swapped out and cannot read back raises SIGBUS, as for any memory.
pub struct SealedMap {
    memory: Shared,
    len: usize,
}

/// A part of a sealed memory file, of whole pages but at the end of the map.
#[derive(Debug)]
pub struct Part {
    /// The file. It may be closed after it was mapped.
    pub file: File,
    /// Bytes of it. They begin at a multiple of the page, 4096, and end at one in every part but the
    /// last.
    pub range: Range<u64>,
}

/// Makes a memory file of `len` bytes that `fill` writes (from the start, exactly `len`), and seals it.
///
/// # Errors
/// What the system says, or `fill`; [`InvalidData`](io::ErrorKind::InvalidData) when it wrote less or
/// more.
pub fn seal(len: u64, fill: impl FnOnce(&mut File) -> io::Result<()>) -> io::Result<File> {
    let flags = MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING;
    let made = match memfd_create("extmem", flags | NO_PROGRAM) {
        Err(Errno::EINVAL) => memfd_create("extmem", flags),
        made => made,
    };
    let mut file = File::from(made?);
    fill(&mut file)?;
    file.flush()?;
    if file.stream_position()? != len || file.metadata()?.len() != len {
        let text = format!("not the {len} bytes that were to be sealed");
        return Err(io::Error::new(io::ErrorKind::InvalidData, text));
    }
    let seals = SealFlag::F_SEAL_WRITE
        | SealFlag::F_SEAL_SHRINK
        | SealFlag::F_SEAL_GROW
        | SealFlag::F_SEAL_SEAL;
    fcntl(&file, FcntlArg::F_ADD_SEALS(seals))?;
    file.seek(SeekFrom::Start(0))?;
    Ok(file)
}

/// Whether nobody can change or cut `file` any more.
///
/// # Errors
/// When it is no memory file.
pub fn is_sealed(file: &File) -> io::Result<bool> {
    let seals = SealFlag::from_bits_truncate(fcntl(file, FcntlArg::F_GET_SEALS)?);
    Ok(seals.contains(SealFlag::F_SEAL_WRITE | SealFlag::F_SEAL_SHRINK))
}

/// A map that is being put together, part by part: their files need not be open all at once.
pub struct Assembly {
    memory: Shared,
    at: usize,
    len: usize,
}

impl Assembly {
    /// Room for a map of `len` bytes. It takes addresses, and no memory.
    ///
    /// # Errors
    /// [`InvalidInput`](io::ErrorKind::InvalidInput) where no slice can be so long; and what the
    /// system says.
    pub fn new(len: u64) -> io::Result<Assembly> {
        // More than this no slice may have.
        let sound = usize::try_from(len).ok().filter(|len| isize::try_from(*len).is_ok());
        let len = sound.ok_or_else(|| refuse("no address space has room for it"))?;
        // A map of nothing has an address, too.
        Ok(Assembly { memory: Shared::reserve(len.max(1))?, at: 0, len })
    }

    /// Maps the next part.
    ///
    /// # Errors
    /// [`InvalidInput`](io::ErrorKind::InvalidInput) for a file that is not sealed, lies in huge pages
    /// (`MFD_HUGETLB`) or has holes, for a part that lies not within its file, does not begin where a page does, or follows one that ended within a
    /// page, and for more than there is room for; and what the system says.
    pub fn push(&mut self, part: &Part) -> io::Result<()> {
        if !is_sealed(&part.file).is_ok_and(|sealed| sealed) {
            return Err(refuse("a file that is not sealed may change, and is not mapped"));
        }
        // The kernel maps whole huge pages, beyond what was asked for: over whatever lies there.
        if fstatfs(&part.file)?.filesystem_type() != TMPFS_MAGIC {
            return Err(refuse("a file in huge pages is not mapped"));
        }
        let Range { start, end } = part.range;
        let metadata = part.file.metadata()?;
        if start >= end || end > metadata.len() {
            return Err(refuse("a part that is empty, or not within its file"));
        }
        if metadata.blocks() * BLOCK_BYTES < metadata.len() {
            return Err(refuse("a file with holes would take memory of the reader's"));
        }
        if !start.is_multiple_of(PAGE as u64) || !self.at.is_multiple_of(PAGE) {
            return Err(refuse("a part that does not begin with a page"));
        }
        let part_len = usize::try_from(end - start).ok().filter(|len| *len <= self.len - self.at);
        let part_len = part_len.ok_or_else(|| refuse("more than was to be mapped"))?;
        self.memory.put(self.at, &part.file, start, part_len)?;
        self.at += part_len;
        Ok(())
    }

    /// The map, when all of it is there.
    ///
    /// # Errors
    /// [`InvalidInput`](io::ErrorKind::InvalidInput) when it is not.
    pub fn finish(self) -> io::Result<SealedMap> {
        match self.at == self.len {
            true => Ok(SealedMap { memory: self.memory, len: self.len }),
            false => Err(refuse("less than was to be mapped")),
        }
    }
}

fn refuse(why: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, why)
}

impl SealedMap {
    /// Maps the parts, one behind the other.
    ///
    /// # Errors
    /// As for [`Assembly`].
    pub fn new(parts: &[Part]) -> io::Result<SealedMap> {
        let lens = parts.iter().map(|part| part.range.end.saturating_sub(part.range.start));
        let len = lens.fold(0, u64::saturating_add);
        let mut assembly = Assembly::new(len)?;
        parts.iter().try_for_each(|part| assembly.push(part))?;
        assembly.finish()
    }
}

impl Deref for SealedMap {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        if self.len == 0 {
            return &[];
        }
        // SAFETY: `new` mapped all of it, from files whose seals were there before and cannot be
        // taken away, so the bytes are readable and constant for as long as the mapping lives, which
        // is as long as the borrow of `self`.
        unsafe { slice::from_raw_parts(self.memory.base().as_ptr(), self.len) }
    }
}

impl AsRef<[u8]> for SealedMap {
    fn as_ref(&self) -> &[u8] {
        self
    }
}

impl std::fmt::Debug for SealedMap {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "SealedMap({} bytes)", self.len)
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::{AsRawFd, OwnedFd};

    use super::*;

    fn bytes(len: usize, seed: u8) -> Vec<u8> {
        (0..len).map(|at| (at % 251) as u8 ^ seed).collect()
    }

    fn sealed(bytes: &[u8]) -> File {
        seal(bytes.len() as u64, |file| file.write_all(bytes)).expect("sealed")
    }

    #[test]
    fn parts_are_one_slice() {
        let (one, two) = (bytes(3 * PAGE, 1), bytes(PAGE + 100, 2));
        let part = |bytes: &[u8], range: Range<u64>| Part { file: sealed(bytes), range };
        let page = PAGE as u64;
        let map = SealedMap::new(&[part(&one, page..3 * page), part(&two, 0..page + 100)]);
        let map = map.expect("a map");
        assert!(map[..] == [&one[PAGE..], &two[..]].concat());
        let sent = std::thread::spawn(move || map.len()).join().expect("another thread");
        assert_eq!(sent, 3 * PAGE + 100);
        assert!(SealedMap::new(&[]).expect("nothing").is_empty());
    }

    #[test]
    fn what_is_sealed_stays_as_it_is() {
        let file = sealed(b"constant");
        assert!(is_sealed(&file).expect("seals"));
        let map = SealedMap::new(&[Part { file: file.try_clone().expect("a clone"), range: 0..8 }]);
        let map = map.expect("a map");
        let mut writer = &file;
        assert!(writer.write_all(b"x").is_err() && file.set_len(0).is_err());
        // Opened anew it is no other file.
        let again = File::options().write(true).open(format!("/proc/self/fd/{}", file.as_raw_fd()));
        let mut again = again.expect("open");
        assert!(again.write_all(b"x").is_err());
        // Nor is it a program: where the kernel can be told so, a system may want to be.
        let flags = MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING;
        let can_be_told = memfd_create("x", flags | NO_PROGRAM).is_ok();
        let mode = file.metadata().expect("metadata").mode();
        assert_eq!(mode & 0o111 == 0, can_be_told, "{mode:o}");
        let punch = nix::fcntl::FallocateFlags::FALLOC_FL_PUNCH_HOLE
            | nix::fcntl::FallocateFlags::FALLOC_FL_KEEP_SIZE;
        assert!(nix::fcntl::fallocate(&again, punch, 0, 4096).is_err());
        assert_eq!(&map[..], b"constant");
    }

    #[test]
    fn what_could_change_is_not_mapped() {
        let flags = MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING;
        let open = || {
            let mut file = File::from(memfd_create("x", flags).expect("a memory file"));
            file.write_all(&bytes(PAGE, 0)).expect("write");
            file
        };
        let only = |seals| {
            let file = open();
            fcntl(&file, FcntlArg::F_ADD_SEALS(seals)).expect("seals");
            file
        };
        let plain = tempfile::tempfile().expect("a file");
        plain.set_len(PAGE as u64).expect("its length");
        let (pipe, _end) = std::io::pipe().expect("a pipe");
        let holes = File::from(memfd_create("x", flags).expect("a memory file"));
        holes.set_len(PAGE as u64).expect("its length");
        fcntl(&holes, FcntlArg::F_ADD_SEALS(SealFlag::all())).expect("seals");
        let cases = [
            ("holes", holes),
            ("no seal", open()),
            ("may be cut", only(SealFlag::F_SEAL_WRITE)),
            ("may be written", only(SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_GROW)),
            ("a file on a disk", plain),
            ("a pipe", File::from(OwnedFd::from(pipe))),
        ];
        for (what, file) in cases {
            let refused = SealedMap::new(&[Part { file, range: 0..1 }]);
            assert_eq!(refused.map(drop).expect_err(what).kind(), io::ErrorKind::InvalidInput);
        }
        // Where the kernel has huge pages; none need be set aside for a file to be made.
        if let Ok(file) = memfd_create("x", flags | MFdFlags::MFD_HUGETLB) {
            let file = File::from(file);
            file.set_len(2 << 20).expect("its length");
            fcntl(&file, FcntlArg::F_ADD_SEALS(SealFlag::all())).expect("seals");
            let refused = SealedMap::new(&[Part { file, range: 0..4096 }]);
            let said = refused.map(drop).expect_err("in huge pages").to_string();
            assert!(said.contains("huge pages"), "{said}");
        }
        let page = PAGE as u64;
        let backwards = Range { start: 5, end: 4 };
        for range in [0..0, backwards, 1..page, 0..page + 1, u64::MAX - 5..u64::MAX] {
            let part = Part { file: sealed(&bytes(PAGE, 0)), range: range.clone() };
            assert!(SealedMap::new(&[part]).is_err(), "{range:?}");
        }
        let parts = [0, 1].map(|_| Part { file: sealed(&bytes(100, 0)), range: 0..100 });
        assert!(SealedMap::new(&parts).is_err(), "only the last may end within a page");
        let mut short = Assembly::new(200).expect("room");
        short.push(&Part { file: sealed(&bytes(100, 0)), range: 0..100 }).expect("a part");
        assert!(short.finish().is_err(), "the rest is not there");
        assert!(Assembly::new(u64::MAX).is_err());
        assert!(seal(5, |file| file.write_all(b"four")).is_err(), "less than was said");
    }
}
