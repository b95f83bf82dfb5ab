//! Events of a CSV into a database.

use std::{
    fs::File,
    io::{BufRead, BufReader},
    ops::Range,
    path::Path,
    time::{Duration, Instant},
};

use traildb::{Builder, Options, Uuid};

use crate::Figures;

/// Lines parsed at a time, off the clock, before they are added on it.
const BATCH: usize = 65_536;

/// The text of a batch of lines, and where the cells are in it.
#[derive(Default)]
struct Batch {
    text: Vec<u8>,
    cells: Vec<Range<usize>>,
    events: Vec<(Uuid, u64)>,
}

pub(crate) fn run(csv: &Path, out: &Path, threads: u16) -> Result<Figures, String> {
    let told = |error: &dyn std::fmt::Display| format!("{}: {error}", csv.display());
    let failed = |error: traildb::Error| format!("{}: {error}", out.display());
    let mut input = BufReader::with_capacity(1 << 20, File::open(csv).map_err(|e| told(&e))?);
    let mut header = String::new();
    input.read_line(&mut header).map_err(|e| told(&e))?;
    let names: Vec<&str> = header.trim_end().split(',').collect();
    if !names.starts_with(&["uuid", "time"]) {
        return Err(told(&"the header does not start with uuid,time"));
    }
    let fields = &names[2..];

    let mut adding = Duration::ZERO;
    let clock = Instant::now();
    let options = Options::default().threads(usize::from(threads));
    let mut builder = Builder::with_options(fields, options).map_err(failed)?;
    adding += clock.elapsed();
    let mut batch = Batch::default();
    let mut figures = Figures::default();
    while batch.fill(&mut input, fields.len()).map_err(|e| told(&e))? {
        let clock = Instant::now();
        let mut values: Vec<&[u8]> = Vec::with_capacity(fields.len());
        for (n, &(uuid, time)) in batch.events.iter().enumerate() {
            values.clear();
            let cells = &batch.cells[n * fields.len()..(n + 1) * fields.len()];
            values.extend(cells.iter().map(|cell| &batch.text[cell.clone()]));
            builder.add(uuid, time, &values).map_err(failed)?;
        }
        adding += clock.elapsed();
        figures.events += batch.events.len() as u64;
    }
    let clock = Instant::now();
    builder.finish(out).map_err(failed)?;
    let finishing = clock.elapsed();
    figures.seconds = vec![(adding + finishing).as_secs_f64()];
    (figures.adding, figures.finishing) = (adding.as_secs_f64(), finishing.as_secs_f64());
    Ok(figures)
}

impl Batch {
    /// Parses the next lines. Returns whether there were any.
    fn fill(&mut self, input: &mut impl BufRead, fields: usize) -> Result<bool, String> {
        self.text.clear();
        self.cells.clear();
        self.events.clear();
        while self.events.len() < BATCH {
            let start = self.text.len();
            let read = input.read_until(b'\n', &mut self.text).map_err(|e| e.to_string())?;
            if read == 0 {
                break;
            }
            let end = self.text.len() - usize::from(self.text.last() == Some(&b'\n'));
            let line = &self.text[start..end];
            let mut cells = line.split(|&byte| byte == b',');
            let mut text = || cells.next().and_then(|cell| std::str::from_utf8(cell).ok());
            let (uuid, time) = (text(), text());
            let event = uuid.and_then(|t| t.parse().ok()).zip(time.and_then(|t| t.parse().ok()));
            self.events.push(event.ok_or("a line without a UUID and a time")?);
            let (before, mut at) = (self.cells.len(), start);
            for cell in line.split(|&byte| byte == b',') {
                self.cells.push(at..at + cell.len());
                at += cell.len() + 1;
            }
            self.cells.drain(before..before + 2);
            if self.cells.len() - before != fields {
                return Err(format!("event {}: {fields} fields are expected", self.events.len()));
            }
        }
        Ok(!self.events.is_empty())
    }
}
