//! The input in blocks, parsed into batches, on a thread of its own where there is one.
//!
//! ```text
//!   read 256 KiB --> parse rows --> Batch ===(at most 4)===> builder
//!        ^ the row that is not whole     <==(used again)===
//! ```
//!
//! A block, or the bound of a batch, whichever comes first, ends a batch: memory does not depend on
//! how short the rows are, nor on how many fields they lack.

use std::{
    io::{self, Read},
    sync::mpsc,
    thread,
};

use memchr::memchr;

use super::{
    batch::{Batch, KEPT_BYTES, Sink},
    columns::To,
    csv::Csv,
    json::Json,
    problem::{Problem, Tally},
};

/// Bytes read at a time.
const BLOCK: usize = 256 << 10;
/// A row may always be so long: 64 MiB.
const ROW_BYTES_LEAST: usize = 64 << 20;
/// A row is never longer: batches count their bytes in 31 bits.
const ROW_BYTES_MOST: usize = 1 << 30;
/// Batches between the threads.
const BATCHES: usize = 4;
/// What is read, and all batches that there are at a time, where rows are not long: half a megabyte each.
pub(super) const MEMORY: u64 = 8 << 20;

/// The longest row where `memory` bytes may be used, 0 for no limit: one is held up to eight times, in
/// what was read, which may have room for as much again, and in the batches.
pub(super) fn row_bytes_max(memory: u64) -> usize {
    let share = if memory == 0 { u64::MAX } else { memory / 16 };
    usize::try_from(share).unwrap_or(usize::MAX).clamp(ROW_BYTES_LEAST, ROW_BYTES_MOST)
}

/// What rows look like.
pub(super) enum Syntax {
    Csv(Csv, Vec<To>),
    Json(Json),
}

/// Reads events.
pub(super) struct Feed {
    input: Box<dyn Read + Send>,
    syntax: Syntax,
    fields: usize,
    /// What was read; what is not yet parsed starts at `at`.
    text: Vec<u8>,
    at: usize,
    /// Whether the input has ended.
    ended: bool,
    /// Whether the rest of a line is to be passed over.
    discarding: bool,
    bytes: u64,
    /// The number of the next line.
    line: u64,
    /// A row longer than this is no event.
    row_max: usize,
    pub(super) tally: Tally,
}

impl Feed {
    /// Reads `input`, of which `text` is the start.
    pub(super) fn new(
        input: Box<dyn Read + Send>,
        text: Vec<u8>,
        line: u64,
        syntax: Syntax,
        fields: usize,
        row_max: usize,
        tally: Tally,
    ) -> Feed {
        let (at, bytes) = (0, text.len() as u64);
        let (ended, discarding) = (false, false);
        Feed { input, syntax, fields, text, at, ended, discarding, bytes, line, row_max, tally }
    }

    /// Gives all batches to `take`, which runs on the caller's thread. With `threads` more than
    /// one, reading and parsing run on another. `take` returns false to end early.
    pub(super) fn run<E>(
        mut self,
        threads: usize,
        mut take: impl FnMut(&Batch) -> Result<bool, E>,
    ) -> Result<Tally, Ended<E>> {
        if threads <= 1 {
            let mut batch = Batch::default();
            while self.next(&mut batch).map_err(Ended::Input)? {
                if !take(&batch).map_err(Ended::Taker)? {
                    break;
                }
            }
            return Ok(self.tally);
        }
        let (full, filled) = mpsc::sync_channel::<Batch>(BATCHES);
        let (empty, emptied) = mpsc::sync_channel::<Batch>(2 * BATCHES);
        let parser = thread::spawn(move || {
            loop {
                let mut batch = emptied.try_recv().unwrap_or_default();
                let more = self.next(&mut batch)?;
                let over = !more || batch.problem.is_some();
                // Where nobody takes any more, the error is theirs.
                if (more && full.send(batch).is_err()) || over {
                    return Ok(self.tally);
                }
            }
        });
        for batch in filled {
            // On an error the parser is left alone: it may wait for input that never comes.
            if !take(&batch).map_err(Ended::Taker)? {
                break;
            }
            // Full only if the parser has ended.
            let _ = empty.try_send(batch);
        }
        match parser.join() {
            Ok(tally) => tally.map_err(Ended::Input),
            Err(panic) => std::panic::resume_unwind(panic),
        }
    }

    /// Fills the next batch. Returns whether there was anything left.
    fn next(&mut self, batch: &mut Batch) -> io::Result<bool> {
        batch.clear();
        loop {
            if self.discarding {
                self.discard();
                if self.discarding && !self.ended {
                    self.fill()?;
                    continue;
                }
            }
            let text = &self.text[self.at..];
            if text.is_empty() && self.ended {
                return Ok(false);
            }
            let mut sink = Sink::new(batch, &mut self.tally, self.fields);
            let (taken, line) = match &self.syntax {
                Syntax::Csv(csv, columns) => {
                    csv.parse(text, self.ended, self.line, columns, &mut sink)
                }
                Syntax::Json(json) => json.parse(text, self.ended, self.line, &mut sink),
            };
            self.line = line;
            if taken == 0 && !self.ended && batch.problem.is_none() {
                if text.len() <= self.row_max {
                    batch.clear();
                    self.fill()?;
                    continue;
                }
                let mut sink = Sink::new(batch, &mut self.tally, self.fields);
                sink.reject(self.line, Problem::too_long(self.row_max));
                self.discard();
            }
            batch.text.extend_from_slice(&self.text[self.at..][..taken]);
            self.at += taken;
            batch.bytes = self.bytes - (self.text.len() - self.at) as u64;
            batch.lines = self.line - 1;
            return Ok(true);
        }
    }

    /// Passes over a line, as far as it was read.
    fn discard(&mut self) {
        let end = memchr(b'\n', &self.text[self.at..]).map(|n| self.at + n + 1);
        self.at = end.unwrap_or(self.text.len());
        self.discarding = end.is_none();
        self.line += u64::from(end.is_some());
    }

    /// Reads more behind the row that is not whole: twice as much as there is of it, so that looking
    /// for its end costs no square.
    fn fill(&mut self) -> io::Result<()> {
        self.text.drain(..self.at);
        self.text.shrink_to(KEPT_BYTES);
        self.at = 0;
        let have = self.text.len();
        let wanted = have.min((self.row_max + BLOCK).saturating_sub(have)).max(BLOCK);
        let read = self.input.by_ref().take(wanted as u64).read_to_end(&mut self.text)?;
        self.ended = read < wanted;
        self.bytes += read as u64;
        Ok(())
    }
}

/// Why feeding ended early.
pub(super) enum Ended<E> {
    /// The input could not be read.
    Input(io::Error),
    /// Whoever took the events said so.
    Taker(E),
}

#[cfg(test)]
mod tests {
    use super::{
        super::batch::{CELLS, ROWS},
        *,
    };

    /// An input that gives a few bytes at a time, and more and more.
    struct Drip(io::Cursor<Vec<u8>>, usize);

    impl Read for Drip {
        fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
            self.1 += 1 + self.1 / 8;
            let n = buf.len().min(self.1);
            self.0.read(&mut buf[..n])
        }
    }

    fn all(
        text: &str,
        threads: usize,
        skip: bool,
    ) -> (Vec<(u64, u64, String)>, u64, Option<String>) {
        let syntax = Syntax::Csv(
            Csv { delimiter: b',', quotes: true },
            vec![To::Uuid, To::Time, To::Field(0)],
        );
        let input = Box::new(Drip(io::Cursor::new(text.as_bytes().to_vec()), 0));
        let feed = Feed::new(input, Vec::new(), 1, syntax, 1, ROW_BYTES_LEAST, Tally::new(skip));
        let (mut events, mut problem) = (Vec::new(), None);
        let tally = feed.run(threads, |batch| {
            for (row, cells) in batch.events(1) {
                let value = cells[0].of(&batch.text, &batch.extra);
                events.push((row.line, row.time, String::from_utf8(value.to_vec()).unwrap()));
            }
            problem = batch.problem.as_ref().map(|(line, p)| format!("{line}: {}", p.text()));
            Ok::<_, ()>(problem.is_none())
        });
        let Ok(tally) = tally else { panic!("this input does not fail") };
        (events, tally.total(), problem)
    }

    #[test]
    fn events_keep_their_lines() {
        let text = "a,1,x\n\nb,2,\"p\nq\"\"\"\r\nc,3,z";
        for threads in [1, 2] {
            let (events, skipped, problem) = all(text, threads, false);
            let expected = [(1, 1, "x"), (3, 2, "p\nq\""), (5, 3, "z")];
            let expected: Vec<_> = expected.map(|(l, t, v)| (l, t, v.to_owned())).into();
            assert_eq!((events, skipped, problem), (expected, 0, None), "{threads} threads");
        }
    }

    #[test]
    fn what_comes_before_a_bad_row_is_there() {
        for threads in [1, 2] {
            let (events, _, problem) = all("a,1,x\nb,y,\nc,3,z\n", threads, false);
            assert_eq!(events.len(), 1);
            assert!(problem.unwrap().starts_with("2: column 2: \"y\" is no time"));
            let (events, skipped, problem) = all("a,1,x\nb,y,\nc,3,z\n", threads, true);
            assert_eq!((events.len(), skipped, problem), (2, 1, None));
        }
    }

    #[test]
    fn a_quote_without_end_costs_its_line_alone() {
        let (events, skipped, _) = all("a,1,x\nb,2,\"y\nc,3,z\n", 1, true);
        assert_eq!((events.len(), skipped), (2, 1), "{events:?}");
    }

    #[test]
    fn rows_longer_than_a_block_are_whole() {
        let long = "v".repeat(3 * BLOCK + 7);
        let text = format!("a,1,{long}\nb,2,\"{long}\"\"\"\n");
        for threads in [1, 2] {
            let (events, ..) = all(&text, threads, false);
            assert_eq!(events.len(), 2);
            assert!(events[0].2 == long && events[1].2 == format!("{long}\""));
        }
    }

    /// What rows become is more than their text where they are short, or lack most of the fields.
    #[test]
    fn a_batch_is_bounded_by_what_its_rows_become() {
        for (fields, rows) in [(0, 50_000), (1, 50_000), (3000, 500), (2 * CELLS, 3)] {
            let text: String = (0..rows).map(|n| format!("{{\"u\":\"1\",\"t\":{n}}}\n")).collect();
            let keys = [("u".to_owned(), To::Uuid), ("t".to_owned(), To::Time)];
            let syntax = Syntax::Json(Json::new(keys, false));
            let input = Box::new(io::Cursor::new(text.into_bytes()));
            let tally = Tally::new(false);
            let feed = Feed::new(input, Vec::new(), 1, syntax, fields, ROW_BYTES_LEAST, tally);
            let mut times = Vec::new();
            let tally = feed.run(1, |batch| {
                let count = batch.events(fields).count();
                assert!(count <= ROWS && (count - 1) * fields < CELLS, "{fields}: {count} rows");
                times.extend(batch.events(fields).map(|(row, _)| row.time));
                assert_eq!(batch.lines, times.len() as u64, "{fields} fields");
                Ok::<_, ()>(true)
            });
            assert!(tally.is_ok());
            assert!(times.into_iter().eq(0..rows), "{fields} fields");
        }
    }

    #[test]
    fn a_row_that_is_too_long_is_passed_over() {
        let most = 3 * BLOCK;
        let long = "v".repeat(most + 2 * BLOCK);
        let text = format!("a,1,x\nb,2,{long}\nc,3,z\n");
        // Where it is too long, and where it is not.
        for (row_max, expected) in [(most, (vec![1, 3], 1)), (2 * most, (vec![1, 2, 3], 0))] {
            let input = Box::new(io::Cursor::new(text.clone().into_bytes()));
            let csv = Csv { delimiter: b',', quotes: true };
            let syntax = Syntax::Csv(csv, vec![To::Uuid, To::Time]);
            let feed = Feed::new(input, Vec::new(), 1, syntax, 0, row_max, Tally::new(true));
            let mut lines = Vec::new();
            let tally = feed.run(1, |batch| {
                lines.extend(batch.rows.iter().map(|row| row.line));
                Ok::<_, ()>(true)
            });
            let Ok(tally) = tally else { panic!("memory does not fail") };
            assert_eq!((lines, tally.total()), expected, "{row_max}: {}", tally.table());
        }
    }

    #[test]
    fn the_longest_row_goes_with_the_memory() {
        let cases = [(64 << 20, 64 << 20), (4 << 30, 256 << 20), (1 << 40, 1 << 30), (0, 1 << 30)];
        for (memory, expected) in cases {
            assert_eq!(row_bytes_max(memory), expected, "{memory}");
        }
    }
}
