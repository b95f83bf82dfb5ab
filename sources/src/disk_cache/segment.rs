//! One file of the cache: a run of an object, laid out like the object, with a table behind it.
//!
//! ```text
//!   0                             data, up to a page      table                   end
//!   +---------+---------+--- - - ---+---------+-----------+----------------------+
//!   | block 0 | (hole)  |           | block n | 48 bytes a block ...  | 192: header|
//!   +---------+---------+--- - - ---+---------+-----------+----------------------+
//! ```
//!
//! The file has its full length, sparse, from the moment that it has its name. A block is written
//! once, in its place; then its entry of the table, whose seal binds it to the object, the block
//! and the checksum of the bytes. A block without a sound entry is not there, and a block whose
//! bytes do not match its entry is damage: so a block that was written by half is never served,
//! whoever was killed and whatever reached the disk. Blocks that are there are never written again,
//! and a file leaves by `unlink` alone: whoever has mapped it reads on.
//!
//! Header, little-endian: magic 8, object's key 32, index 8, object's length 8, block bytes 4,
//! flags 4 (1: encrypted), segment bytes 8, key id 8, salt 32, CRC-64/NVME of these 8; then, outside
//! the checksum because it changes: tier 1, frequency 1, zeros 6, time of entry 8 (nanoseconds
//! since 1970).

use std::{
    fs::{self, File, OpenOptions},
    io,
    ops::Range,
    os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt},
    path::Path,
    sync::{Mutex, PoisonError},
    time::{SystemTime, UNIX_EPOCH},
};

use crc_fast::{CrcAlgorithm::Crc64Nvme, checksum};

use super::{
    encryption::{CacheKey, Seal, SegmentKey, random},
    layout::{Layout, ObjectKey, PAGE},
};

const MAGIC: &[u8; 8] = b"extmseg1";
pub(super) const HEADER_BYTES: u64 = 192;
const ENTRY_BYTES: u64 = 48;
/// Where the checksum of the header stands in it, and what it covers.
const HEADER_SUM_AT: usize = 112;
const HEAT_AT: usize = 120;
const ENCRYPTED: u32 = 1;
/// S3-FIFO counts no further.
const FREQUENCY_MAX: u8 = 3;

/// Which of its two queues S3-FIFO keeps a segment in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Tier {
    Small,
    Main,
}

/// What the policy knows of a segment. Kept in the file, for every process and the next one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Heat {
    pub(super) tier: Tier,
    /// How often it was asked for since it came, or since the policy last looked: 0 to 3.
    pub(super) frequency: u8,
    /// When it came to the head of its queue, in nanoseconds since 1970.
    pub(super) entered: u64,
}

impl Heat {
    pub(super) fn now(tier: Tier) -> Heat {
        let nanos = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_nanos();
        Heat { tier, frequency: 0, entered: nanos as u64 }
    }

    fn encode(self) -> [u8; 16] {
        let mut bytes = [0; 16];
        bytes[0] = matches!(self.tier, Tier::Main) as u8;
        bytes[1] = self.frequency;
        bytes[8..].copy_from_slice(&self.entered.to_le_bytes());
        bytes
    }

    fn decode(bytes: &[u8]) -> Heat {
        Heat {
            tier: if bytes[0] == 1 { Tier::Main } else { Tier::Small },
            frequency: bytes[1].min(FREQUENCY_MAX),
            entered: u64_at(bytes, 8),
        }
    }
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"))
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes"))
}

/// The head of a segment's file, as it says itself.
#[derive(Clone, Debug)]
pub(super) struct Header {
    pub(super) object: [u8; 32],
    pub(super) index: u64,
    pub(super) layout: Layout,
    /// The key that it is encrypted with.
    pub(super) key_id: Option<[u8; 8]>,
    salt: [u8; 32],
    pub(super) heat: Heat,
}

impl Header {
    fn encode(&self) -> [u8; HEADER_BYTES as usize] {
        let mut bytes = [0; HEADER_BYTES as usize];
        bytes[..8].copy_from_slice(MAGIC);
        bytes[8..40].copy_from_slice(&self.object);
        bytes[40..48].copy_from_slice(&self.index.to_le_bytes());
        bytes[48..56].copy_from_slice(&self.layout.object_len.to_le_bytes());
        bytes[56..60].copy_from_slice(&(self.layout.block_bytes as u32).to_le_bytes());
        let flags = if self.key_id.is_some() { ENCRYPTED } else { 0 };
        bytes[60..64].copy_from_slice(&flags.to_le_bytes());
        bytes[64..72].copy_from_slice(&self.layout.segment_bytes.to_le_bytes());
        bytes[72..80].copy_from_slice(&self.key_id.unwrap_or_default());
        bytes[80..112].copy_from_slice(&self.salt);
        let sum = checksum(Crc64Nvme, &bytes[..HEADER_SUM_AT]);
        bytes[HEADER_SUM_AT..HEAT_AT].copy_from_slice(&sum.to_le_bytes());
        bytes[HEAT_AT..HEAT_AT + 16].copy_from_slice(&self.heat.encode());
        bytes
    }

    /// Reads the header of a file of `file_len` bytes; `None` if there is none, or the file has not
    /// the length that it should have.
    pub(super) fn read(file: &File, file_len: u64) -> io::Result<Option<Header>> {
        let Some(at) = file_len.checked_sub(HEADER_BYTES) else { return Ok(None) };
        let mut bytes = [0; HEADER_BYTES as usize];
        match file.read_exact_at(&mut bytes, at) {
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
            other => other?,
        }
        let sum = checksum(Crc64Nvme, &bytes[..HEADER_SUM_AT]);
        if &bytes[..8] != MAGIC || sum != u64_at(&bytes, HEADER_SUM_AT) {
            return Ok(None);
        }
        let layout = Layout {
            object_len: u64_at(&bytes, 48),
            block_bytes: u64::from(u32_at(&bytes, 56)),
            segment_bytes: u64_at(&bytes, 64),
        };
        let header = Header {
            object: bytes[8..40].try_into().expect("32 bytes"),
            index: u64_at(&bytes, 40),
            layout,
            key_id: (u32_at(&bytes, 60) & ENCRYPTED != 0)
                .then(|| bytes[72..80].try_into().expect("8 bytes")),
            salt: bytes[80..112].try_into().expect("32 bytes"),
            heat: Heat::decode(&bytes[HEAT_AT..HEAT_AT + 16]),
        };
        let sound = layout.is_sound()
            && header.index < layout.segments()
            && file_len == file_bytes(&layout, header.index);
        Ok(sound.then_some(header))
    }
}

/// Where the table of a segment starts.
fn table_at(layout: &Layout, index: u64) -> u64 {
    layout.data_bytes(index).next_multiple_of(PAGE)
}

fn table_bytes(layout: &Layout, index: u64) -> u64 {
    let blocks = layout.segment_blocks(index);
    (blocks.end - blocks.start) * ENTRY_BYTES
}

fn file_bytes(layout: &Layout, index: u64) -> u64 {
    table_at(layout, index) + table_bytes(layout, index) + HEADER_BYTES
}

/// The most that a segment takes on disk besides its blocks: table and header in whole pages, and
/// what a file system needs to remember where a file with many holes lies.
pub(super) fn overhead_bytes(layout: &Layout, index: u64) -> u64 {
    (table_bytes(layout, index) + HEADER_BYTES).next_multiple_of(PAGE) + 2 * PAGE
}

/// One line of the table.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Entry {
    /// CRC-64/NVME of the bytes on disk.
    sum: u64,
    seal: Seal,
}

impl Entry {
    fn encode(&self, object: &ObjectKey, block: u64) -> [u8; ENTRY_BYTES as usize] {
        let mut bytes = [0; ENTRY_BYTES as usize];
        bytes[..8].copy_from_slice(&self.sum.to_le_bytes());
        bytes[8..20].copy_from_slice(&self.seal.nonce);
        bytes[20..36].copy_from_slice(&self.seal.tag);
        let binding = binding(object, block, &bytes[..40]);
        bytes[40..].copy_from_slice(&binding.to_le_bytes());
        bytes
    }

    fn decode(bytes: &[u8], object: &ObjectKey, block: u64) -> Option<Entry> {
        if u64_at(bytes, 40) != binding(object, block, &bytes[..40]) {
            return None;
        }
        Some(Entry {
            sum: u64_at(bytes, 0),
            seal: Seal {
                nonce: bytes[8..20].try_into().expect("12 bytes"),
                tag: bytes[20..36].try_into().expect("16 bytes"),
            },
        })
    }
}

/// What a block's entry is sealed with: an entry of zeros, or of another block, does not have it.
fn binding(object: &ObjectKey, block: u64, entry: &[u8]) -> u64 {
    let mut bytes = [0; 32 + 8 + 40];
    bytes[..32].copy_from_slice(&object.0);
    bytes[32..40].copy_from_slice(&block.to_le_bytes());
    bytes[40..].copy_from_slice(entry);
    checksum(Crc64Nvme, &bytes)
}

fn about(object: &ObjectKey, block: u64) -> [u8; 40] {
    let mut bytes = [0; 40];
    bytes[..32].copy_from_slice(&object.0);
    bytes[32..].copy_from_slice(&block.to_le_bytes());
    bytes
}

/// Why a block that should be there cannot be had from the disk.
#[derive(Debug)]
pub(super) enum ReadFault {
    /// Its bytes are not those that were written.
    Damaged { block: u64 },
    /// The disk refused.
    Io(io::Error),
}

/// An open segment.
pub(super) struct Segment {
    file: File,
    object: ObjectKey,
    index: u64,
    layout: Layout,
    cipher: Option<SegmentKey>,
    table: Mutex<Table>,
}

struct Table {
    entries: Vec<Option<Entry>>,
    /// Blocks that this process has compared with their entries, or written.
    checked: Vec<bool>,
    /// Blocks that were fetched ahead of who asks for them: the first time is the first use of
    /// what was fetched, and no second one.
    fresh: Vec<bool>,
    /// Blocks that were asked for since the segment's frequency was last raised.
    asked: Vec<bool>,
    asked_any: bool,
}

impl Segment {
    /// Opens the file at `path`. `None` if there is none.
    ///
    /// # Errors
    /// [`InvalidData`](io::ErrorKind::InvalidData) if it is no sound segment with this identity and
    /// this key: then it is of no use to anybody.
    pub(super) fn open(
        path: &Path,
        object: ObjectKey,
        index: u64,
        layout: Layout,
        key: Option<&CacheKey>,
    ) -> io::Result<Option<Segment>> {
        // Written through the same descriptor; readers without leave to write still read.
        let opened = match OpenOptions::new().read(true).write(true).open(path) {
            Err(error) if is_read_only(&error) => File::open(path),
            other => other,
        };
        let file = match opened {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            other => other?,
        };
        let wrong = || io::Error::new(io::ErrorKind::InvalidData, "no sound segment of the cache");
        let header = Header::read(&file, file.metadata()?.len())?.ok_or_else(wrong)?;
        if header.object != object.0
            || header.index != index
            || header.layout != layout
            || header.key_id != key.map(CacheKey::id_bytes)
        {
            return Err(wrong());
        }
        let cipher = key.map(|key| SegmentKey::derive(key, &header.salt)).transpose()?;
        let segment = Segment::new(file, object, index, layout, cipher);
        segment.refresh()?;
        Ok(Some(segment))
    }

    /// Opens a file as what its header says it is, to be looked at. Without a key, blocks that are
    /// encrypted are checked as they lie on disk.
    pub(super) fn inspect(
        path: &Path,
        header: &Header,
        key: Option<&CacheKey>,
    ) -> io::Result<Segment> {
        let cipher = key.map(|key| SegmentKey::derive(key, &header.salt)).transpose()?;
        let object = ObjectKey(header.object);
        let file = File::open(path)?;
        let segment = Segment::new(file, object, header.index, header.layout, cipher);
        segment.refresh()?;
        Ok(segment)
    }

    /// Makes an empty segment: as `temporary` first, then under its name.
    pub(super) fn create(
        path: &Path,
        temporary: &Path,
        object: ObjectKey,
        index: u64,
        layout: Layout,
        key: Option<&CacheKey>,
        tier: Tier,
    ) -> io::Result<Segment> {
        let salt = if key.is_some() { random::<32>()? } else { [0; 32] };
        let header = Header {
            object: object.0,
            index,
            layout,
            key_id: key.map(CacheKey::id_bytes),
            salt,
            heat: Heat::now(tier),
        };
        let mut how = OpenOptions::new();
        let file = how.read(true).write(true).create(true).truncate(true).mode(0o600);
        let file = file.open(temporary)?;
        let len = file_bytes(&layout, index);
        file.set_len(len)?;
        file.write_all_at(&header.encode(), len - HEADER_BYTES)?;
        fs::rename(temporary, path)?;
        let cipher = key.map(|key| SegmentKey::derive(key, &salt)).transpose()?;
        Ok(Segment::new(file, object, index, layout, cipher))
    }

    fn new(
        file: File,
        object: ObjectKey,
        index: u64,
        layout: Layout,
        cipher: Option<SegmentKey>,
    ) -> Segment {
        let blocks = layout.segment_blocks(index);
        let blocks = (blocks.end - blocks.start) as usize;
        let table = Table {
            entries: vec![None; blocks],
            checked: vec![false; blocks],
            fresh: vec![false; blocks],
            asked: vec![false; blocks],
            asked_any: false,
        };
        Segment { file, object, index, layout, cipher, table: Mutex::new(table) }
    }

    fn with<T>(&self, work: impl FnOnce(&mut Table) -> T) -> T {
        work(&mut self.table.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn first(&self) -> u64 {
        self.layout.segment_blocks(self.index).start
    }

    fn slot(&self, block: u64) -> usize {
        (block - self.first()) as usize
    }

    /// Reads the table again: other processes may have written blocks.
    pub(super) fn refresh(&self) -> io::Result<()> {
        let mut bytes = vec![0; table_bytes(&self.layout, self.index) as usize];
        self.file.read_exact_at(&mut bytes, table_at(&self.layout, self.index))?;
        let (object, first) = (self.object, self.first());
        self.with(|table| {
            let lines = bytes.chunks(ENTRY_BYTES as usize).zip(&mut table.entries);
            for (slot, (line, entry)) in lines.enumerate() {
                if entry.is_none() {
                    *entry = Entry::decode(line, &object, first + slot as u64);
                }
            }
        });
        Ok(())
    }

    /// Whether a block is there, as far as this process has seen.
    pub(super) fn holds(&self, block: u64) -> bool {
        self.with(|table| table.entries[self.slot(block)].is_some())
    }

    /// How many blocks from `block` on are there, up to `end`.
    pub(super) fn run(&self, block: u64, end: u64) -> u64 {
        let end = end.min(self.layout.segment_blocks(self.index).end);
        let slots = self.slot(block)..self.slot(block) + (end - block) as usize;
        self.with(|table| {
            table.entries[slots].iter().take_while(|entry| entry.is_some()).count() as u64
        })
    }

    /// Reads some blocks that are there into `into`, which has exactly their length, and checks
    /// every one of them.
    pub(super) fn read(&self, blocks: &Range<u64>, into: &mut [u8]) -> Result<(), ReadFault> {
        self.file.read_exact_at(into, self.layout.place(blocks.start)).map_err(ReadFault::Io)?;
        let mut rest = into;
        for block in blocks.clone() {
            let (bytes, more) = rest.split_at_mut(self.layout.block_len(block));
            rest = more;
            let entry = self.with(|table| table.entries[self.slot(block)]);
            let sound = entry.is_some_and(|entry| {
                checksum(Crc64Nvme, bytes) == entry.sum
                    && self.cipher.as_ref().is_none_or(|cipher| {
                        cipher.open(&about(&self.object, block), &entry.seal, bytes)
                    })
            });
            if !sound {
                return Err(ReadFault::Damaged { block });
            }
        }
        Ok(())
    }

    /// Writes a block that is not there: its bytes, and then its entry. `fresh` says that nobody has
    /// asked for it yet. The caller holds the lock of the cache.
    pub(super) fn write(&self, block: u64, bytes: &[u8], fresh: bool) -> io::Result<()> {
        assert_eq!(bytes.len(), self.layout.block_len(block), "a whole block");
        assert!(!self.holds(block), "what is there is not written again");
        let place = self.layout.place(block);
        let entry = match &self.cipher {
            None => {
                self.file.write_all_at(bytes, place)?;
                Entry { sum: checksum(Crc64Nvme, bytes), seal: Seal::default() }
            }
            Some(cipher) => {
                let mut sealed = bytes.to_vec();
                let seal = cipher.seal(&about(&self.object, block), &mut sealed)?;
                self.file.write_all_at(&sealed, place)?;
                Entry { sum: checksum(Crc64Nvme, &sealed), seal }
            }
        };
        let slot = self.slot(block);
        let at = table_at(&self.layout, self.index) + slot as u64 * ENTRY_BYTES;
        self.file.write_all_at(&entry.encode(&self.object, block), at)?;
        self.with(|table| {
            table.entries[slot] = Some(entry);
            table.checked[slot] = true;
            table.fresh[slot] = fresh;
        });
        Ok(())
    }

    /// Compares blocks that are there with their entries, each once for this opening.
    pub(super) fn check(&self, blocks: &Range<u64>) -> Result<(), ReadFault> {
        let mut bytes = Vec::new();
        for block in blocks.clone() {
            let slot = self.slot(block);
            if self.with(|table| table.checked[slot]) {
                continue;
            }
            bytes.resize(self.layout.block_len(block), 0);
            self.read(&(block..block + 1), &mut bytes)?;
            self.with(|table| table.checked[slot] = true);
        }
        Ok(())
    }

    /// The first block from `block` on that has not been checked: those before it are good.
    pub(super) fn checked_to(&self, block: u64) -> u64 {
        let slot = self.slot(block);
        self.with(|table| {
            block + table.checked[slot..].iter().take_while(|&&checked| checked).count() as u64
        })
    }

    /// The file, for whoever opens it anew.
    pub(super) fn file(&self) -> &File {
        &self.file
    }

    /// Notes that blocks were asked for and were there.
    ///
    /// The frequency of the segment goes up by one when the first of its blocks is asked for again,
    /// and then whenever a block is that was counted already: a scan that passes its blocks one
    /// after the other counts once.
    pub(super) fn touched(&self, blocks: &Range<u64>) {
        let (first, slots) = (self.first(), blocks.start..blocks.end);
        let raise = self.with(|table| {
            let slots = (slots.start - first) as usize..(slots.end - first) as usize;
            let Table { fresh, asked, asked_any, .. } = table;
            let counted: Vec<_> = slots.filter(|&slot| !std::mem::take(&mut fresh[slot])).collect();
            if counted.is_empty() {
                return false;
            }
            let again = counted.iter().any(|&slot| asked[slot]);
            if again {
                asked.fill(false);
            }
            let raise = again || !*asked_any;
            *asked_any = true;
            counted.iter().for_each(|&slot| asked[slot] = true);
            raise
        });
        if !raise {
            return;
        }
        // A hint for the policy: lost when the disk refuses or two processes meet.
        let at = file_bytes(&self.layout, self.index) - HEADER_BYTES + HEAT_AT as u64 + 1;
        let mut frequency = [0];
        if self.file.read_exact_at(&mut frequency, at).is_ok() && frequency[0] < FREQUENCY_MAX {
            let _ = self.file.write_all_at(&[frequency[0] + 1], at);
        }
    }

    /// Whether the file has lost its name: evicted, or removed by a person.
    pub(super) fn is_gone(&self) -> bool {
        self.file.metadata().is_ok_and(|found| found.nlink() == 0)
    }
}

/// Writes what the policy decided about a segment that stays.
pub(super) fn set_heat(path: &Path, heat: Heat) -> io::Result<()> {
    let file = OpenOptions::new().read(true).write(true).open(path)?;
    let len = file.metadata()?.len();
    let at = len.checked_sub(HEADER_BYTES).ok_or(io::ErrorKind::InvalidData)?;
    file.write_all_at(&heat.encode(), at + HEAT_AT as u64)
}

pub(super) fn is_read_only(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem)
}

#[cfg(test)]
mod tests {
    use pager::Version;

    use super::*;

    const LAYOUT: Layout =
        Layout { object_len: 3 * 4096 + 5, block_bytes: 4096, segment_bytes: 2 << 20 };

    fn key() -> ObjectKey {
        ObjectKey::of("s3://b/k", "", &Version::strong("v"), LAYOUT.object_len, None)
    }

    fn open(path: &Path) -> io::Result<Option<Segment>> {
        Segment::open(path, key(), 0, LAYOUT, None)
    }

    fn make(folder: &Path) -> (std::path::PathBuf, Segment) {
        let path = folder.join("0.seg");
        let made = Segment::create(&path, &folder.join("tmp"), key(), 0, LAYOUT, None, Tier::Small);
        (path, made.expect("a segment"))
    }

    fn block(n: u8) -> Vec<u8> {
        vec![n; LAYOUT.block_len(u64::from(n))]
    }

    #[test]
    fn blocks_come_back_through_another_opening() {
        let folder = tempfile::tempdir().expect("a folder");
        let (path, segment) = make(folder.path());
        segment.write(0, &block(0), false).expect("write");
        segment.write(3, &block(3), false).expect("write");
        assert_eq!((segment.run(0, 4), segment.run(1, 4), segment.run(3, 4)), (1, 0, 1));
        let other = open(&path).expect("sound").expect("there");
        assert!(other.holds(0) && other.holds(3) && !other.holds(1));
        let mut last = vec![9; 5];
        other.read(&(3..4), &mut last).expect("read");
        assert_eq!(last, block(3));
        segment.write(1, &block(1), false).expect("write");
        assert!(!other.holds(1));
        other.refresh().expect("refresh");
        assert_eq!(other.run(0, 4), 2);
        let mut two = vec![9; 8192];
        other.read(&(0..2), &mut two).expect("read");
        assert_eq!(two, [block(0), block(1)].concat());
        assert!(!other.is_gone());
        fs::remove_file(&path).expect("remove");
        assert!(other.is_gone());
        other.read(&(0..2), &mut two).expect("what lost its name is read to the end");
    }

    #[test]
    fn every_flipped_byte_is_found() {
        let folder = tempfile::tempdir().expect("a folder");
        let (path, segment) = make(folder.path());
        for n in 0..4 {
            segment.write(n.into(), &block(n), false).expect("write");
        }
        let good = fs::read(&path).expect("the file");
        let table = table_at(&LAYOUT, 0) as usize;
        for at in (0..good.len()).step_by(97).chain(table..good.len()) {
            let mut bad = good.clone();
            bad[at] ^= 0x10;
            fs::write(&path, &bad).expect("write");
            let Ok(Some(segment)) = open(&path) else { continue };
            for n in 0..4u8 {
                let mut bytes = vec![0xff; LAYOUT.block_len(n.into())];
                if segment.holds(n.into())
                    && segment.read(&(n.into()..u64::from(n) + 1), &mut bytes).is_ok()
                {
                    assert_eq!(bytes, block(n), "byte {at} flipped, block {n}");
                }
            }
        }
    }

    #[test]
    fn another_file_is_no_segment_of_this_object() {
        let folder = tempfile::tempdir().expect("a folder");
        let (path, segment) = make(folder.path());
        segment.write(0, &block(0), false).expect("write");
        let good = fs::read(&path).expect("the file");
        let other = ObjectKey::of("s3://b/k", "", &Version::strong("w"), LAYOUT.object_len, None);
        let longer = Layout { object_len: LAYOUT.object_len + 1, ..LAYOUT };
        let cases = [
            ("another object", Segment::open(&path, other, 0, LAYOUT, None)),
            ("another place", Segment::open(&path, key(), 1, LAYOUT, None)),
            ("another length", Segment::open(&path, key(), 0, longer, None)),
            ("encrypted", Segment::open(&path, key(), 0, LAYOUT, Some(&CacheKey::new([1; 32])))),
        ];
        for (what, opened) in cases {
            let error = opened.map(|_| ()).expect_err(what);
            assert_eq!(error.kind(), io::ErrorKind::InvalidData, "{what}");
        }
        for len in [0, 1, 191, 192, good.len() / 2, good.len() - 1] {
            fs::write(&path, &good[..len]).expect("write");
            assert!(open(&path).is_err(), "cut to {len}");
        }
        fs::write(&path, vec![0; good.len()]).expect("write");
        assert!(open(&path).is_err(), "zeros, as after a loss of power");
    }

    #[test]
    fn a_scan_counts_once_and_coming_back_counts_again() {
        let folder = tempfile::tempdir().expect("a folder");
        let (path, segment) = make(folder.path());
        let frequency = || {
            let file = File::open(&path).expect("open");
            let len = file.metadata().expect("metadata").len();
            Header::read(&file, len).expect("read").expect("sound").heat.frequency
        };
        assert_eq!(frequency(), 0);
        for n in 0..4 {
            segment.touched(&(n..n + 1));
        }
        assert_eq!(frequency(), 1, "one pass");
        for n in 0..4 {
            segment.touched(&(n..n + 1));
        }
        assert_eq!(frequency(), 2, "two passes");
        for _ in 0..10 {
            segment.touched(&(2..3));
        }
        assert_eq!(frequency(), 3, "it counts to three");
        fs::remove_file(&path).expect("remove");
        let (_, segment) = make(folder.path());
        segment.write(0, &block(0), true).expect("write");
        segment.touched(&(0..1));
        assert_eq!(frequency(), 0, "what was fetched ahead is used for the first time");
        segment.touched(&(0..1));
        assert_eq!(frequency(), 1, "and again");
        let heat = Heat { tier: Tier::Main, frequency: 1, entered: 77 };
        set_heat(&path, heat).expect("set");
        let file = File::open(&path).expect("open");
        let header = Header::read(&file, file.metadata().expect("metadata").len());
        assert_eq!(header.expect("read").expect("sound").heat, heat);
    }
}
