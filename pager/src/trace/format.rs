//! The file, written and read: the module's page has its table.

use std::{
    io::{self, Read},
    ops::Range,
};

use super::{Kind, REGIONS_MAX, TRACE_BYTES_MAX};
use crate::units::{OBJECT_BYTES_MAX, UNIT_BYTES_MAX, UNIT_BYTES_MIN};

const HEAD: &[u8; 8] = b"extmtrc\x01";

/// Bytes of a text.
const TEXT_MAX: usize = 4096;
/// Bytes of all texts of a trace: what a reader keeps of regions.
const TEXTS_MAX: usize = 8 << 20;
/// Units of one record: what a replay does for a few bytes has a bound.
pub(super) const COUNT_MAX: u64 = 64;

mod tag {
    pub(super) const END: u8 = 0;
    pub(super) const OPENED: u8 = 1;
    pub(super) const CLOSED: u8 = 2;
    pub(super) const LOST: u8 = 3;
}

/// Codes of accesses, in their order.
const KINDS: [Kind; 5] = [Kind::Hit, Kind::Wait, Kind::Fault, Kind::Fetch, Kind::Guess];
const KINDS_FROM: u8 = 16;

/// A region, as its trace knows it.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct RegionInfo {
    /// The source's name for the object.
    pub name: String,
    /// The version that was read.
    pub version: String,
    /// Length of the object in bytes.
    pub len: u64,
    /// Bytes of a unit.
    pub unit_bytes: u64,
}

impl RegionInfo {
    pub(super) fn new(name: &str, version: &str, len: u64, unit_bytes: u64) -> RegionInfo {
        let short = |text: &str| {
            let mut end = text.len().min(TEXT_MAX);
            while !text.is_char_boundary(end) {
                end -= 1;
            }
            text[..end].to_owned()
        };
        RegionInfo { name: short(name), version: short(version), len, unit_bytes }
    }

    /// Number of units.
    pub fn units(&self) -> u64 {
        self.len.div_ceil(self.unit_bytes)
    }

    /// Bytes of these units, the last of which may be short.
    pub fn bytes_of(&self, units: &Range<u64>) -> u64 {
        let at = |unit: u64| (unit * self.unit_bytes).min(self.len);
        at(units.end) - at(units.start)
    }
}

/// One line of a trace.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Record {
    /// A region was opened.
    Opened {
        /// Its number: regions are numbered from 0 in the order in which they were opened.
        region: u32,
        /// What it is.
        info: RegionInfo,
    },
    /// It was closed.
    Closed {
        /// Its number.
        region: u32,
    },
    /// Accesses are missing here: the disk was too slow for them.
    Lost {
        /// How many.
        records: u64,
    },
    /// An access, or a request.
    Access {
        /// Microseconds since the start of the trace.
        at_us: u64,
        /// The region's number.
        region: u32,
        /// Which units, at least one and at most 64. What was longer is
        /// several, one behind the other at the same time.
        units: Range<u64>,
        /// What happened.
        kind: Kind,
    },
}

/// Why a trace cannot be read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TraceError {
    /// The file cannot be read.
    #[error("the trace cannot be read at byte {at}")]
    Io {
        /// Where in the file.
        at: u64,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// It is no trace, or a damaged one.
    #[error("not a trace that can be read: at byte {at}, {reason}")]
    Damaged {
        /// Where in the file.
        at: u64,
        /// What is wrong there.
        reason: String,
    },
    /// It asks for more than a replay may take.
    #[error("the trace is too large to replay: {0}")]
    TooLarge(String),
}

/// Turns records into bytes.
#[derive(Default)]
pub(super) struct Encoder {
    now_us: u64,
    /// For each region, the end of its latest access.
    ends: Vec<u64>,
}

impl Encoder {
    pub(super) fn head(started_us: u64, out: &mut Vec<u8>) {
        out.extend_from_slice(HEAD);
        out.extend_from_slice(&started_us.to_le_bytes());
    }

    pub(super) fn end(out: &mut Vec<u8>) {
        out.push(tag::END);
    }

    pub(super) fn record(&mut self, record: &Record, out: &mut Vec<u8>) {
        match record {
            Record::Opened { region, info } => {
                self.ends.push(0);
                out.push(tag::OPENED);
                put(out, u64::from(*region));
                out.push(info.unit_bytes.trailing_zeros() as u8);
                put(out, info.len);
                for text in [&info.name, &info.version] {
                    put(out, text.len() as u64);
                    out.extend_from_slice(text.as_bytes());
                }
            }
            Record::Closed { region } => {
                out.push(tag::CLOSED);
                put(out, u64::from(*region));
            }
            Record::Lost { records } => {
                out.push(tag::LOST);
                put(out, *records);
            }
            Record::Access { at_us, region, units, kind } => {
                let code = KINDS.iter().position(|k| k == kind).expect("all kinds have a code");
                let Some(end) = self.ends.get_mut(*region as usize) else { return };
                let mut start = units.start;
                while start < units.end {
                    let count = (units.end - start).min(COUNT_MAX);
                    // Threads enter the queue a little out of order.
                    let later = at_us.saturating_sub(self.now_us);
                    self.now_us += later;
                    out.push(KINDS_FROM + code as u8);
                    put(out, later);
                    put(out, u64::from(*region));
                    put(out, zigzag(start.wrapping_sub(*end) as i64));
                    put(out, count);
                    start += count;
                    *end = start;
                }
            }
        }
    }
}

fn put(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

fn zigzag(value: i64) -> u64 {
    ((value << 1) ^ (value >> 63)) as u64
}

fn unzigzag(value: u64) -> i64 {
    (value >> 1) as i64 ^ -((value & 1) as i64)
}

/// Reads a trace, record by record. Keeps of it only what its regions are.
pub struct Reader<R> {
    input: R,
    /// Bytes read so far.
    at: u64,
    started_us: u64,
    now_us: u64,
    regions: Vec<RegionInfo>,
    ends: Vec<u64>,
    texts: usize,
    over: bool,
    complete: bool,
}

impl<R: Read> Reader<R> {
    /// Reads the head. Give it a buffered `input`: it reads byte by byte.
    ///
    /// # Errors
    /// [`TraceError`] for what is no trace, and for one of another version.
    pub fn new(input: R) -> Result<Reader<R>, TraceError> {
        let mut reader = Reader {
            input,
            at: 0,
            started_us: 0,
            now_us: 0,
            regions: Vec::new(),
            ends: Vec::new(),
            texts: 0,
            over: false,
            complete: false,
        };
        let mut head = [0; 16];
        for byte in &mut head {
            *byte = reader.byte()?.ok_or_else(|| reader.damaged("it is too short for a head"))?;
        }
        let (name, started) = head.split_at(8);
        if name[..7] != HEAD[..7] {
            return Err(TraceError::Damaged { at: 0, reason: "it has another head".to_owned() });
        }
        if name[7] != HEAD[7] {
            let reason = format!("it has version {}, and this program reads {}", name[7], HEAD[7]);
            return Err(TraceError::Damaged { at: 7, reason });
        }
        reader.started_us = started.iter().rev().fold(0, |sum, &byte| sum << 8 | u64::from(byte));
        Ok(reader)
    }

    /// Microseconds from 1970 to the start of the trace.
    pub fn started_us(&self) -> u64 {
        self.started_us
    }

    /// The regions that were opened so far, by their numbers.
    pub fn regions(&self) -> &[RegionInfo] {
        &self.regions
    }

    /// Whether the end was reached. One that was cut off ends without it.
    pub fn is_complete(&self) -> bool {
        self.complete
    }

    /// The next record; `None` at the end, or where the file was cut off.
    ///
    /// # Errors
    /// [`TraceError`]; after one the reader is over.
    pub fn next_record(&mut self) -> Result<Option<Record>, TraceError> {
        if self.over {
            return Ok(None);
        }
        let next = self.record();
        self.over = !matches!(next, Ok(Some(_)));
        next
    }

    fn record(&mut self) -> Result<Option<Record>, TraceError> {
        let Some(tag) = self.byte()? else { return Ok(None) };
        match tag {
            tag::END => match self.byte()? {
                None => {
                    self.complete = true;
                    Ok(None)
                }
                Some(_) => Err(self.damaged("there are bytes behind its end")),
            },
            tag::OPENED => self.opened(),
            tag::CLOSED => {
                let Some(region) = self.region()? else { return Ok(None) };
                Ok(Some(Record::Closed { region }))
            }
            tag::LOST => {
                let Some(records) = self.varint()? else { return Ok(None) };
                Ok(Some(Record::Lost { records }))
            }
            code => match KINDS.get(usize::from(code.wrapping_sub(KINDS_FROM))) {
                Some(&kind) => self.access(kind),
                None => Err(self.damaged(&format!("there is no record with the code {code}"))),
            },
        }
    }

    fn opened(&mut self) -> Result<Option<Record>, TraceError> {
        let Some(region) = self.varint()? else { return Ok(None) };
        if region != self.regions.len() as u64 || region >= u64::from(REGIONS_MAX) {
            return Err(self.damaged(&format!("region {region} is opened out of turn")));
        }
        let Some(shift) = self.byte()? else { return Ok(None) };
        let unit_bytes = 1u64.checked_shl(u32::from(shift)).unwrap_or(0);
        if !(UNIT_BYTES_MIN..=UNIT_BYTES_MAX).contains(&unit_bytes) {
            return Err(self.damaged(&format!("units of 2^{shift} bytes")));
        }
        let Some(len) = self.varint()? else { return Ok(None) };
        if len > OBJECT_BYTES_MAX {
            return Err(self.damaged(&format!("an object of {len} bytes")));
        }
        let Some(name) = self.text()? else { return Ok(None) };
        let Some(version) = self.text()? else { return Ok(None) };
        let info = RegionInfo { name, version, len, unit_bytes };
        self.regions.push(info.clone());
        self.ends.push(0);
        Ok(Some(Record::Opened { region: region as u32, info }))
    }

    fn access(&mut self, kind: Kind) -> Result<Option<Record>, TraceError> {
        let Some(later) = self.varint()? else { return Ok(None) };
        let Some(region) = self.region()? else { return Ok(None) };
        let Some(moved) = self.varint()? else { return Ok(None) };
        let Some(count) = self.varint()? else { return Ok(None) };
        let start = self.ends[region as usize].wrapping_add(unzigzag(moved) as u64);
        let units = self.regions[region as usize].units();
        let end = start.checked_add(count).filter(|&end| end <= units);
        let Some(end) = end.filter(|_| (1..=COUNT_MAX).contains(&count)) else {
            let reason = format!("{count} units from {start} on, of a region that has {units}");
            return Err(self.damaged(&reason));
        };
        self.now_us = match self.now_us.checked_add(later) {
            Some(now) => now,
            None => return Err(self.damaged("time runs over")),
        };
        self.ends[region as usize] = end;
        Ok(Some(Record::Access { at_us: self.now_us, region, units: start..end, kind }))
    }

    fn region(&mut self) -> Result<Option<u32>, TraceError> {
        let Some(region) = self.varint()? else { return Ok(None) };
        match usize::try_from(region) {
            Ok(index) if index < self.regions.len() => Ok(Some(region as u32)),
            _ => Err(self.damaged(&format!("region {region} was never opened"))),
        }
    }

    fn text(&mut self) -> Result<Option<String>, TraceError> {
        let Some(len) = self.varint()? else { return Ok(None) };
        let len = usize::try_from(len).ok().filter(|&len| len <= TEXT_MAX);
        let Some(len) = len else { return Err(self.damaged("a name of more than 4096 bytes")) };
        self.texts += len;
        if self.texts > TEXTS_MAX {
            return Err(self.damaged("its names have more than 8 MiB together"));
        }
        let mut text = Vec::with_capacity(len);
        for _ in 0..len {
            let Some(byte) = self.byte()? else { return Ok(None) };
            text.push(byte);
        }
        let text = String::from_utf8(text);
        text.map(Some).map_err(|_| self.damaged("a name that is not UTF-8"))
    }

    fn varint(&mut self) -> Result<Option<u64>, TraceError> {
        let mut value = 0u64;
        for shift in (0..64).step_by(7) {
            let Some(byte) = self.byte()? else { return Ok(None) };
            let part = u64::from(byte & 0x7f);
            if part << shift >> shift != part {
                break;
            }
            value |= part << shift;
            if byte & 0x80 == 0 {
                return Ok(Some(value));
            }
        }
        Err(self.damaged("a number of more than 64 bits"))
    }

    fn byte(&mut self) -> Result<Option<u8>, TraceError> {
        let mut byte = [0];
        loop {
            match self.input.read(&mut byte) {
                Ok(0) => return Ok(None),
                Ok(_) if self.at == TRACE_BYTES_MAX => {
                    let reason = format!("it has more than {TRACE_BYTES_MAX} bytes");
                    return Err(TraceError::TooLarge(reason));
                }
                Ok(_) => {
                    self.at += 1;
                    return Ok(Some(byte[0]));
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(source) => return Err(TraceError::Io { at: self.at, source }),
            }
        }
    }

    fn damaged(&self, reason: &str) -> TraceError {
        TraceError::Damaged { at: self.at, reason: reason.to_owned() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn info(len: u64, unit_bytes: u64) -> RegionInfo {
        RegionInfo::new("test://a", "v1", len, unit_bytes)
    }

    fn encoded(records: &[Record]) -> Vec<u8> {
        let (mut out, mut encoder) = (Vec::new(), Encoder::default());
        Encoder::head(42, &mut out);
        records.iter().for_each(|record| encoder.record(record, &mut out));
        Encoder::end(&mut out);
        out
    }

    fn read(bytes: &[u8]) -> Result<(Vec<Record>, bool), TraceError> {
        let mut reader = Reader::new(bytes)?;
        let mut records = Vec::new();
        while let Some(record) = reader.next_record()? {
            records.push(record);
        }
        Ok((records, reader.is_complete()))
    }

    fn sample() -> Vec<Record> {
        let access = |at_us, region, units, kind| Record::Access { at_us, region, units, kind };
        vec![
            Record::Opened { region: 0, info: info(1 << 40, 4096) },
            access(0, 0, 5..6, Kind::Fault),
            Record::Opened { region: 1, info: info(65_537, 65_536) },
            access(7, 1, 0..2, Kind::Wait),
            access(7, 0, (1 << 28) - 64..1 << 28, Kind::Hit),
            Record::Lost { records: 300 },
            access(1 << 40, 0, 0..1, Kind::Guess),
            access(1 << 40, 0, 1..2, Kind::Fetch),
            Record::Closed { region: 1 },
        ]
    }

    #[test]
    fn what_is_written_is_read() {
        let records = sample();
        assert_eq!(read(&encoded(&records)).expect("a trace"), (records, true));
        // Long accesses are cut.
        let opened = Record::Opened { region: 0, info: info(1 << 30, 4096) };
        let long = Record::Access { at_us: 5, region: 0, units: 10..150, kind: Kind::Hit };
        let (cut, _) = read(&encoded(&[opened, long])).expect("a trace");
        let units = cut.iter().filter_map(|record| match record {
            Record::Access { at_us: 5, units, .. } => Some(units.clone()),
            _ => None,
        });
        assert_eq!(units.collect::<Vec<_>>(), [10..74, 74..138, 138..150]);
    }

    #[test]
    fn one_that_was_cut_off_is_read_as_far_as_it_goes() {
        let (records, bytes) = (sample(), encoded(&sample()));
        for len in 16..bytes.len() {
            let (read, complete) = read(&bytes[..len]).expect("a trace");
            assert!(records.starts_with(&read), "{len} bytes");
            assert!(!complete, "{len} bytes");
        }
        for len in 0..16 {
            let error = read(&bytes[..len]).expect_err("no head").to_string();
            assert!(error.contains("too short"), "{error}");
        }
    }

    #[test]
    fn names_are_cut_between_letters() {
        let info = RegionInfo::new(&"\u{e9}".repeat(3000), "v", 1, 4096);
        assert_eq!(info.name.len(), 4096);
        let info = RegionInfo::new(&format!("x{}", "\u{e9}".repeat(3000)), "v", 1, 4096);
        assert_eq!(info.name.len(), 4095);
    }

    #[test]
    fn damage_is_named() {
        let head = |rest: &[u8]| [&b"extmtrc\x01\0\0\0\0\0\0\0\0"[..], rest].concat();
        // A region of 16 units of 4 KiB, called "n" at "v".
        let open = [1, 0, 12, 0x80, 0x80, 4, 1, b'n', 1, b'v'];
        let with = |rest: &[u8]| head(&[&open[..], rest].concat());
        let cases = [
            ("another head", b"not a trace, is it".to_vec()),
            ("version 2", b"extmtrc\x02\0\0\0\0\0\0\0\0".to_vec()),
            ("code 99", head(&[99])),
            ("behind its end", head(&[0, 0])),
            ("out of turn", head(&[1, 1, 12, 1, 0, 0])),
            ("2^11", head(&[1, 0, 11, 1, 0, 0])),
            ("2^255", head(&[1, 0, 255, 1, 0, 0])),
            ("4096 bytes", head(&[1, 0, 12, 1, 0x81, 0x20])),
            ("UTF-8", head(&[1, 0, 12, 1, 1, 0xff, 0])),
            ("more than 64 bits", head(&[3, 255, 255, 255, 255, 255, 255, 255, 255, 255, 2])),
            ("more than 64 bits", head(&[3, 128, 128, 128, 128, 128, 128, 128, 128, 128, 128, 1])),
            (
                "an object of",
                head(&[1, 0, 12, 255, 255, 255, 255, 255, 255, 255, 255, 255, 1, 0, 0]),
            ),
            ("never opened", head(&[2, 0])),
            ("never opened", with(&[16, 0, 1, 0, 1])),
            ("17 units from 0", with(&[16, 0, 0, 0, 17])),
            ("0 units from 0", with(&[16, 0, 0, 0, 0])),
            ("of a region that has 16", with(&[16, 0, 0, 1, 1])),
            ("of a region that has 16", with(&[16, 0, 0, 32, 1])),
            (
                "time runs over",
                with(&[
                    16, 1, 0, 0, 1, 16, 255, 255, 255, 255, 255, 255, 255, 255, 255, 1, 0, 0, 1,
                ]),
            ),
        ];
        for (says, bytes) in cases {
            let error = read(&bytes).expect_err(says).to_string();
            assert!(error.contains(says), "{says}: {error}");
        }
    }

    proptest! {
        /// Whatever the bytes: an answer, and every unit inside its region.
        #[test]
        fn hostile_bytes_are_read_or_refused(
            rest in prop::collection::vec(any::<u8>(), 0..400),
            cut in any::<prop::sample::Index>(),
            flip in any::<(prop::sample::Index, u8)>(),
        ) {
            let mut damaged = encoded(&sample());
            let at = flip.0.index(damaged.len());
            damaged[at] ^= flip.1;
            damaged.truncate(16 + cut.index(damaged.len() - 15));
            damaged.extend_from_slice(&rest);
            for bytes in [damaged, [&b"extmtrc\x01\0\0\0\0\0\0\0\0"[..], &rest].concat()] {
                let Ok(mut reader) = Reader::new(&bytes[..]) else { continue };
                let mut regions = Vec::new();
                while let Ok(Some(record)) = reader.next_record() {
                    match record {
                        Record::Opened { info, .. } => regions.push(info),
                        Record::Access { region, units, .. } => {
                            prop_assert!(units.start < units.end);
                            prop_assert!(units.end <= regions[region as usize].units());
                        }
                        _ => {}
                    }
                }
            }
        }
    }
}
