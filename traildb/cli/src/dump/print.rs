//! Events as lines: CSV, JSON, a trail to a line.

use std::sync::atomic::{AtomicBool, Ordering};

use traildb::{Item, Uuid};

use crate::{
    failure::Failure,
    open::Database,
    output::Output,
    render,
    select::{Column, Content},
    values::{Form, Values},
    walk::{Batch, Lose, Step},
};

/// Bytes rendered before they are written.
const PUT_BYTES: usize = 64 << 10;
/// Bytes of a batch that is rendered ahead of its turn, and of the line that these end in.
pub(super) const AHEAD_BYTES: usize = 4 << 20;

/// What a line looks like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Layout {
    Csv { delimiter: u8, header: bool },
    Json { no_empty: bool },
    Trails,
}

/// Prints batches, or renders them ahead of their turn for another that prints them.
pub(super) struct Printer<'d> {
    layout: Layout,
    compat: bool,
    columns: Vec<Column>,
    /// How many of the columns are fields.
    fields: usize,
    /// Of each shard.
    values: Vec<Values<'d>>,
    /// What is rendered and not written yet.
    out: Vec<u8>,
    trail: Trail,
    printed: Printed,
    /// Shards of which an event was printed, or rendered ahead.
    begun: Vec<bool>,
    /// Shards of which no more can be printed: this one has met that. One that renders ahead takes those that
    /// are unwanted when it begins.
    lost: Vec<bool>,
}

/// The trail that events are of.
#[derive(Clone, Copy)]
struct Trail {
    uuid: Uuid,
    /// Whether its first event is still to come.
    first: bool,
}

/// What was printed.
#[derive(Clone, Copy, Default)]
pub(super) struct Printed {
    pub(super) events: u64,
    /// Trails of which an event was printed.
    pub(super) trails: u64,
}

/// How far a batch is rendered.
struct Place {
    /// The next step.
    step: usize,
    /// Of each shard, the first item of its next event.
    items: Vec<usize>,
}

impl Place {
    fn start(batch: &Batch) -> Place {
        Place { step: 0, items: vec![0; batch.items.len()] }
    }
}

/// A batch rendered ahead of its turn, as far as that went.
pub(super) struct Ahead {
    batch: Batch,
    out: Vec<u8>,
    to: Place,
    /// What was taken for granted, which printing what is before the batch may have changed.
    lost: Vec<bool>,
    /// What is so when `out` is printed.
    trail: Trail,
    printed: Printed,
    begun: Vec<bool>,
}

impl<'d> Printer<'d> {
    /// A printer of these columns, for events of these shards. It is one of so many `printers`, which
    /// share the memory for values.
    pub(super) fn new(
        layout: Layout,
        compat: bool,
        columns: Vec<Column>,
        shards: &[Database<'d>],
        printers: usize,
    ) -> Printer<'d> {
        let form = match layout {
            _ if compat => Form::Plain,
            Layout::Csv { delimiter, .. } => Form::Csv(delimiter),
            Layout::Json { .. } | Layout::Trails => Form::Json,
        };
        let shares = shards.len() * printers;
        let values = shards.iter().map(|&database| Values::new(database, form, shares));
        Printer {
            layout,
            compat,
            fields: columns.iter().filter(|c| matches!(c.content, Content::Field(_))).count(),
            columns,
            values: values.collect(),
            out: Vec::new(),
            trail: Trail { uuid: Uuid::default(), first: true },
            printed: Printed::default(),
            begun: vec![false; shards.len()],
            lost: vec![false; shards.len()],
        }
    }

    /// What was printed so far.
    pub(super) fn printed(&self) -> Printed {
        self.printed
    }

    /// Prints what comes before all events.
    pub(super) fn head(&mut self, output: &mut Output) -> Result<(), Failure> {
        let Layout::Csv { delimiter, header: true } = self.layout else { return Ok(()) };
        let mut line = Vec::new();
        for (n, column) in self.columns.iter().enumerate() {
            if n > 0 {
                line.push(delimiter);
            }
            match self.compat {
                true => line.extend_from_slice(column.name.as_bytes()),
                false => render::csv(&mut line, column.name.as_bytes(), delimiter),
            }
        }
        line.push(b'\n');
        output.put(&line)
    }

    /// Prints what is in `batch`, of shards that `lose` was not called for.
    pub(super) fn print(
        &mut self,
        batch: &Batch,
        output: &mut Output,
        lose: &mut Lose<'_>,
    ) -> Result<(), Failure> {
        for (place, items) in batch.items.iter().enumerate() {
            let values = &mut self.values[place];
            if let Err(failure) = values.fetch(items)
                // What is at hand is read once more for each event, up to the one that it is of.
                && values.is_remote()
                && !self.lost[place]
            {
                self.lost[place] = true;
                lose(place, failure, self.begun[place])?;
            }
        }
        self.print_from(Place::start(batch), batch, output, lose)
    }

    fn print_from(
        &mut self,
        mut place: Place,
        batch: &Batch,
        output: &mut Output,
        lose: &mut Lose<'_>,
    ) -> Result<(), Failure> {
        loop {
            let rendered = self.render(batch, &mut place, PUT_BYTES);
            let put = output.put(&self.out);
            self.out.clear();
            put?;
            match rendered {
                Ok(()) if place.step == batch.steps.len() => return Ok(()),
                Ok(()) => {}
                Err((shard, failure)) => {
                    self.lost[shard] = true;
                    lose(shard, failure, self.begun[shard])?;
                }
            }
        }
    }

    /// Renders `batch` as if what is before it was printed, and no shard lost but those that are
    /// `unwanted` now: to its end, to the first event that cannot be rendered, or until it takes
    /// [`AHEAD_BYTES`].
    pub(super) fn ahead(&mut self, batch: Batch, unwanted: &[AtomicBool]) -> Ahead {
        let first = batch.within.is_none();
        self.trail = Trail { uuid: batch.within.unwrap_or_default(), first };
        self.printed = Printed::default();
        self.begun.fill(false);
        for (lost, unwanted) in self.lost.iter_mut().zip(unwanted) {
            *lost = unwanted.load(Ordering::Relaxed);
        }
        for (values, items) in self.values.iter_mut().zip(&batch.items) {
            // What is wrong is met again at the event that it is of.
            let _ = values.fetch(items);
        }
        let mut to = Place::start(&batch);
        self.out.reserve(PUT_BYTES);
        // The same: in its turn it fails again, and then it counts.
        let _ = self.render(&batch, &mut to, AHEAD_BYTES);
        Ahead {
            batch,
            out: std::mem::take(&mut self.out),
            to,
            lost: self.lost.clone(),
            trail: self.trail,
            printed: self.printed,
            begun: self.begun.clone(),
        }
    }

    /// Prints a batch that another printer has rendered ahead, in its turn: the bytes are those that
    /// [`print`](Printer::print) would print.
    pub(super) fn take(
        &mut self,
        ahead: Ahead,
        output: &mut Output,
        lose: &mut Lose<'_>,
    ) -> Result<(), Failure> {
        let Ahead { batch, out, to, lost, trail, printed, begun } = ahead;
        // Of a trail that goes on an event was printed, unless all were of shards that are lost.
        if lost != self.lost || (batch.within.is_some() && self.trail.first) {
            return self.print(&batch, output, lose);
        }
        output.put(&out)?;
        drop(out);
        self.trail = trail;
        self.printed.events += printed.events;
        self.printed.trails += printed.trails;
        self.begun.iter_mut().zip(begun).for_each(|(all, one)| *all |= one);
        if to.step == batch.steps.len() {
            return Ok(());
        }
        self.print_from(to, &batch, output, lose)
    }

    /// Renders steps from `at` on, until there are no more or they take `bytes_max`. An event that
    /// cannot be rendered is the next step then, and its shard comes with the error.
    fn render(
        &mut self,
        batch: &Batch,
        at: &mut Place,
        bytes_max: usize,
    ) -> Result<(), (usize, Failure)> {
        while let Some(step) = batch.steps.get(at.step) {
            match *step {
                Step::Begin(uuid) => self.trail = Trail { uuid, first: true },
                Step::Event(time, shard) => {
                    let shard = shard as usize;
                    let start = at.items[shard];
                    if !self.lost[shard] {
                        // There is an item for each field of each event of the batch.
                        let items = &batch.items[shard][start..start + self.fields];
                        let line = self.out.len();
                        if let Err(failure) = self.event(time, shard, items) {
                            self.out.truncate(line);
                            return Err((shard, failure));
                        }
                        self.printed.events += 1;
                        self.printed.trails += u64::from(self.trail.first);
                        (self.trail.first, self.begun[shard]) = (false, true);
                    }
                    at.items[shard] = start + self.fields;
                }
                Step::End if self.layout == Layout::Trails && !self.trail.first => {
                    self.out.extend_from_slice(b"]}\n");
                }
                Step::End => {}
            }
            at.step += 1;
            if self.out.len() >= bytes_max {
                break;
            }
        }
        Ok(())
    }

    /// Appends an event of the shard at a place to `out`.
    fn event(&mut self, time: u64, place: usize, items: &[Item]) -> Result<(), Failure> {
        let (Trail { uuid, first }, values) = (self.trail, &mut self.values[place]);
        let items = &mut items.iter().copied();
        let start = self.out.len();
        let mut line = Line { out: &mut self.out, start, columns: &self.columns, values };
        match self.layout {
            Layout::Csv { delimiter, .. } => {
                let form = if self.compat { Form::Plain } else { Form::Csv(delimiter) };
                line.csv(uuid, time, items, delimiter, form)
            }
            Layout::Json { no_empty } => line.json(uuid, time, items, no_empty, self.compat),
            Layout::Trails => {
                match first {
                    true => line.out.extend_from_slice(
                        format!("{{\"uuid\":\"{uuid}\",\"events\":[").as_bytes(),
                    ),
                    false => line.out.push(b','),
                }
                line.event(time, items)
            }
        }
    }
}

/// A line being written.
struct Line<'l, 'd> {
    out: &'l mut Vec<u8>,
    /// Where it starts there.
    start: usize,
    columns: &'l [Column],
    values: &'l mut Values<'d>,
}

type Items<'i> = dyn Iterator<Item = Item> + 'i;

impl Line<'_, '_> {
    fn csv(
        &mut self,
        uuid: Uuid,
        time: u64,
        items: &mut Items<'_>,
        delimiter: u8,
        form: Form,
    ) -> Result<(), Failure> {
        for (n, column) in self.columns.iter().enumerate() {
            if n > 0 {
                self.out.push(delimiter);
            }
            match column.content {
                Content::Uuid => form.render(self.out, uuid.to_string().as_bytes()),
                Content::Time => form.render(self.out, time.to_string().as_bytes()),
                Content::Empty => {}
                Content::Field(_) => {
                    if let Some(item) = items.next() {
                        self.values.append(item, self.out)?;
                    }
                }
            }
        }
        if self.out.len() == self.start && form != Form::Plain {
            // A lone empty field: an empty line is no record to many readers.
            self.out.extend_from_slice(b"\"\"");
        }
        self.out.push(b'\n');
        Ok(())
    }

    fn json(
        &mut self,
        uuid: Uuid,
        time: u64,
        items: &mut Items<'_>,
        no_empty: bool,
        compat: bool,
    ) -> Result<(), Failure> {
        self.out.push(b'{');
        for column in self.columns {
            let item = match column.content {
                Content::Field(_) => items.next(),
                _ => None,
            };
            let empty = column.content == Content::Empty || item.is_some_and(Item::is_null);
            if no_empty && empty {
                continue;
            }
            if self.out.len() > self.start + 1 {
                self.out.extend_from_slice(b", ");
            }
            // Names consist of letters, digits, `_`, `-` and `%`.
            self.out.extend_from_slice(format!("\"{}\": ", column.name).as_bytes());
            // JSON brings its own quotes; the C tool's values have none.
            let quote: &[u8] = if compat || item.is_none() { b"\"" } else { b"" };
            self.out.extend_from_slice(quote);
            match (column.content, item) {
                (Content::Uuid, _) => self.out.extend_from_slice(uuid.to_string().as_bytes()),
                (Content::Time, _) => self.out.extend_from_slice(time.to_string().as_bytes()),
                (_, Some(item)) => self.values.append(item, self.out)?,
                (_, None) => {}
            }
            self.out.extend_from_slice(quote);
        }
        self.out.extend_from_slice(b"}\n");
        Ok(())
    }

    fn event(&mut self, time: u64, items: &mut Items<'_>) -> Result<(), Failure> {
        self.out.extend_from_slice(format!("[{time}").as_bytes());
        for item in items {
            self.out.push(b',');
            self.values.append(item, self.out)?;
        }
        self.out.push(b']');
        Ok(())
    }
}
