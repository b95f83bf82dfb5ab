//! From readers to the file, without making any of them wait.

use std::{
    fs::OpenOptions,
    io::{self, Write},
    ops::Range,
    path::Path,
    sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TrySendError, sync_channel},
    thread::JoinHandle,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use super::{
    Kind, REGIONS_MAX, TRACE_BYTES_MAX,
    format::{Encoder, Record, RegionInfo},
};
use crate::{
    signals::SignalsBlocked,
    sync::{Arc, AtomicU64, Mutex, Ordering, lock},
};

/// Accesses that wait for the writer: 3 MiB of them.
const QUEUE: usize = 1 << 16;
/// What is written at a time.
const BUFFER: usize = 64 << 10;
/// What a process that is killed loses of its trace, at most.
const FLUSH: Duration = Duration::from_secs(1);

/// Records the accesses of the pagers that it was given to: see the module's page. Cheap to clone.
///
/// Ends with [`finish`](Recorder::finish). One that is dropped instead writes what is left in the
/// background, which the end of the process cuts off.
#[derive(Clone)]
pub struct Recorder(Arc<Shared>);

struct Shared {
    sender: SyncSender<Message>,
    began: Instant,
    lost: Arc<AtomicU64>,
    /// Regions opened so far. Locked while one is announced, so that they come in their order.
    regions: Mutex<u32>,
    writer: Mutex<Option<JoinHandle<io::Result<Summary>>>>,
}

enum Message {
    Record(Record),
    End,
}

/// What a trace holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Summary {
    /// Regions that were opened.
    pub regions: u32,
    /// Accesses and requests that were written.
    pub records: u64,
    /// Those that were left out, because the disk was too slow or the trace had no more room.
    pub lost: u64,
    /// Bytes of the file.
    pub bytes: u64,
}

impl Recorder {
    /// Records into a new file.
    ///
    /// # Errors
    /// What the system says, `AlreadyExists` for a file that is there.
    pub fn create(path: &Path) -> io::Result<Recorder> {
        Recorder::to(OpenOptions::new().write(true).create_new(true).open(path)?)
    }

    /// Records into whatever takes bytes. It is written to by a thread of its own, in pieces.
    ///
    /// # Errors
    /// What the system says where it refuses a thread, and what `output` says to the first bytes.
    pub fn to(mut output: impl Write + Send + 'static) -> io::Result<Recorder> {
        let began = Instant::now();
        let unix = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let mut head = Vec::new();
        Encoder::head(u64::try_from(unix.as_micros()).unwrap_or(u64::MAX), &mut head);
        output.write_all(&head)?;
        let lost = Arc::new(AtomicU64::new(0));
        let (sender, messages) = sync_channel(QUEUE);
        let mut writer = Writer {
            output,
            encoder: Encoder::default(),
            buffer: Vec::with_capacity(BUFFER),
            summary: Summary { bytes: head.len() as u64, ..Summary::default() },
            lost: lost.clone(),
        };
        // As the pager's other threads: a handler of the program that touched a region here would
        // wait for nothing, but it would hold up the trace.
        let _masked = SignalsBlocked::new();
        let thread = std::thread::Builder::new().name("pager-trace".to_owned());
        let thread = thread.spawn(move || writer.run(&messages))?;
        let (regions, writer) = (Mutex::new(0), Mutex::new(Some(thread)));
        Ok(Recorder(Arc::new(Shared { sender, began, lost, regions, writer })))
    }

    /// Writes what was recorded so far, and the end. What happens afterwards is not recorded. A second
    /// call returns what is known of a trace that has ended: nothing.
    ///
    /// # Errors
    /// The first failure to write. The trace then ends where it happened.
    pub fn finish(&self) -> io::Result<Summary> {
        let Some(writer) = lock(&self.0.writer).take() else { return Ok(Summary::default()) };
        // Waits for room; the writer takes out whatever happens to it.
        let _ = self.0.sender.send(Message::End);
        writer.join().unwrap_or_else(|_| Err(io::Error::other("the trace's thread panicked")))
    }

    /// Announces a region. `None` for one too many: it is not recorded.
    pub(crate) fn opened(
        &self,
        name: &str,
        version: &str,
        len: u64,
        unit_bytes: u64,
    ) -> Option<Traced> {
        let info = RegionInfo::new(name, version, len, unit_bytes);
        let mut regions = lock(&self.0.regions);
        let region = *regions;
        if region == REGIONS_MAX {
            return None;
        }
        // Not to be left out, or what follows means nothing. Opening a region may wait.
        self.0.sender.send(Message::Record(Record::Opened { region, info })).ok()?;
        *regions += 1;
        Some(Traced { recorder: self.clone(), region })
    }

    fn try_record(&self, record: Record) {
        if let Err(TrySendError::Full(_)) = self.0.sender.try_send(Message::Record(record)) {
            self.0.lost.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// A region's place in a trace.
#[derive(Clone)]
pub(crate) struct Traced {
    recorder: Recorder,
    region: u32,
}

impl Traced {
    /// Something happened to `units`. Takes no lock that a reader who is stopped in a fault could
    /// hold, and never waits.
    pub(crate) fn note(&self, units: std::ops::Range<u64>, kind: Kind) {
        if units.is_empty() {
            return;
        }
        let at_us = u64::try_from(self.recorder.0.began.elapsed().as_micros()).unwrap_or(u64::MAX);
        self.recorder.try_record(Record::Access { at_us, region: self.region, units, kind });
    }

    /// The region is closed.
    pub(crate) fn closed(&self) {
        self.recorder.try_record(Record::Closed { region: self.region });
    }
}

struct Writer<W> {
    output: W,
    encoder: Encoder,
    buffer: Vec<u8>,
    summary: Summary,
    /// Accesses that found the queue full.
    lost: Arc<AtomicU64>,
}

impl<W: Write> Writer<W> {
    fn run(&mut self, messages: &Receiver<Message>) -> io::Result<Summary> {
        let mut failed = None;
        loop {
            let record = match messages.recv_timeout(FLUSH) {
                Ok(Message::Record(record)) => Some(record),
                Err(RecvTimeoutError::Timeout) => None,
                Ok(Message::End) | Err(RecvTimeoutError::Disconnected) => break,
            };
            // After a failure the queue is still emptied: who announces a region waits for room.
            if failed.is_none() {
                failed = self.take(record).err();
            }
        }
        if let Some(error) = failed {
            return Err(error);
        }
        self.note_lost();
        Encoder::end(&mut self.buffer);
        self.flush()?;
        Ok(self.summary)
    }

    /// A record, or a moment without any.
    fn take(&mut self, record: Option<Record>) -> io::Result<()> {
        self.note_lost();
        let Some(record) = record else { return self.flush() };
        // Room for the longest record, for what was lost, and for the end.
        let room = TRACE_BYTES_MAX - self.summary.bytes - self.buffer.len() as u64;
        let longest = 16_384 + 32 * (units_of(&record) / super::format::COUNT_MAX);
        if room < longest {
            self.summary.lost += 1;
            return Ok(());
        }
        match &record {
            Record::Opened { .. } => self.summary.regions += 1,
            Record::Access { .. } => self.summary.records += 1,
            _ => {}
        }
        self.encoder.record(&record, &mut self.buffer);
        if self.buffer.len() >= BUFFER { self.flush() } else { Ok(()) }
    }

    fn note_lost(&mut self) {
        let records = self.lost.swap(0, Ordering::Relaxed);
        if records > 0 {
            self.summary.lost += records;
            self.encoder.record(&Record::Lost { records }, &mut self.buffer);
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        self.output.write_all(&self.buffer)?;
        self.summary.bytes += self.buffer.len() as u64;
        self.buffer.clear();
        self.output.flush()
    }
}

fn units_of(record: &Record) -> u64 {
    match record {
        Record::Access { units: Range { start, end }, .. } => end - start,
        _ => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::{super::Reader, *};
    use std::sync::{Condvar, Mutex, mpsc};

    /// Bytes that the test sees.
    #[derive(Clone, Default)]
    struct Page(Arc<Mutex<Vec<u8>>>);

    impl Write for Page {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn records(bytes: &[u8]) -> (Vec<Record>, bool) {
        let mut reader = Reader::new(bytes).expect("a trace");
        let mut records = Vec::new();
        while let Some(record) = reader.next_record().expect("a record") {
            records.push(record);
        }
        (records, reader.is_complete())
    }

    #[test]
    fn threads_are_recorded_and_regions_keep_their_order() {
        let page = Page::default();
        let recorder = Recorder::to(page.clone()).expect("a recorder");
        std::thread::scope(|scope| {
            for thread in 0..4u64 {
                let recorder = &recorder;
                scope.spawn(move || {
                    let name = format!("region {thread}");
                    let traced = recorder.opened(&name, "v", 1 << 30, 4096).expect("a region");
                    for unit in 0..100 {
                        traced.note(unit..unit + 1 + thread, Kind::Hit);
                    }
                    traced.note(7..7, Kind::Hit);
                    traced.closed();
                });
            }
        });
        let summary = recorder.finish().expect("a trace");
        assert_eq!((summary.regions, summary.records, summary.lost), (4, 400, 0));
        let bytes = page.0.lock().unwrap().clone();
        assert_eq!(summary.bytes, bytes.len() as u64);
        let (records, complete) = records(&bytes);
        assert!(complete);
        assert_eq!(records.len(), 4 + 400 + 4);
        assert_eq!(recorder.finish().expect("nothing"), Summary::default());
        assert!(recorder.opened("late", "v", 1, 4096).is_none(), "the trace has ended");
    }

    /// A disk that stands still: nobody waits for it, and what is left out is counted.
    #[test]
    fn a_slow_disk_loses_accesses_and_holds_nobody_up() {
        struct Stuck {
            page: Page,
            gate: Arc<(Mutex<bool>, Condvar)>,
            entered: mpsc::Sender<()>,
        }
        impl Write for Stuck {
            fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
                let _ = self.entered.send(());
                let (open, opened) = &*self.gate;
                let open = open.lock().unwrap();
                drop(opened.wait_while(open, |open| !*open).unwrap());
                self.page.write(bytes)
            }
            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        let (page, gate) = (Page::default(), Arc::new((Mutex::new(true), Condvar::new())));
        let (entered, enters) = mpsc::channel();
        let stuck = Stuck { page: page.clone(), gate: gate.clone(), entered };
        let recorder = Recorder::to(stuck).expect("the head is written");
        enters.recv().expect("the head");
        *gate.0.lock().unwrap() = false;
        let traced = recorder.opened("x", "v", 1 << 40, 4096).expect("a region");
        let mut noted = 0;
        // Until the writer stands still, and then until the queue is full.
        while enters.try_recv().is_err() {
            traced.note(0..1, Kind::Hit);
            noted += 1;
        }
        while recorder.0.lost.load(Ordering::Relaxed) < 1000 {
            traced.note(0..1, Kind::Hit);
            noted += 1;
        }
        *gate.0.lock().unwrap() = true;
        gate.1.notify_all();
        let summary = recorder.finish().expect("a trace");
        assert!(summary.lost >= 1000, "{summary:?}");
        assert_eq!(summary.records + summary.lost, noted, "{summary:?}");
        let (records, complete) = records(&page.0.lock().unwrap());
        assert!(complete);
        let lost = records.iter().map(|record| match record {
            Record::Lost { records } => *records,
            _ => 0,
        });
        assert_eq!(lost.sum::<u64>(), summary.lost);
    }

    #[test]
    fn a_disk_that_fails_is_said_at_the_end() {
        struct Full(u32);
        impl Write for Full {
            fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
                self.0 += 1;
                match self.0 {
                    1 => Ok(bytes.len()),
                    _ => Err(io::ErrorKind::StorageFull.into()),
                }
            }
            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        let recorder = Recorder::to(Full(0)).expect("the head is written");
        // More than one buffer of them, and more regions than the queue holds.
        for _ in 0..1000 {
            let traced = recorder.opened(&"x".repeat(4096), "v", 1 << 40, 4096).expect("a region");
            (0..100).for_each(|unit| traced.note(unit..unit + 1, Kind::Fault));
        }
        let error = recorder.finish().expect_err("the disk is full");
        assert_eq!(error.kind(), io::ErrorKind::StorageFull);
    }
}
