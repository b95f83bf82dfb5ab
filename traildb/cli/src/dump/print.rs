//! Events as lines: CSV, JSON, a trail to a line.

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

/// What a line looks like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Layout {
    Csv { delimiter: u8, header: bool },
    Json { no_empty: bool },
    Trails,
}

/// Prints batches.
pub(super) struct Printer<'d> {
    layout: Layout,
    compat: bool,
    columns: Vec<Column>,
    /// How many of the columns are fields.
    fields: usize,
    /// Of each shard.
    values: Vec<Values<'d>>,
    line: Vec<u8>,
    uuid: Uuid,
    /// Whether the trail's first event is still to come.
    first: bool,
    /// Events, and trails of which one was printed.
    printed: (u64, u64),
    /// Shards of which an event was printed.
    begun: Vec<bool>,
    /// Shards of which no more can be printed.
    lost: Vec<bool>,
}

impl<'d> Printer<'d> {
    /// A printer of these columns, for events of these shards.
    pub(super) fn new(
        layout: Layout,
        compat: bool,
        columns: Vec<Column>,
        shards: &[Database<'d>],
    ) -> Printer<'d> {
        let form = match layout {
            _ if compat => Form::Plain,
            Layout::Csv { delimiter, .. } => Form::Csv(delimiter),
            Layout::Json { .. } | Layout::Trails => Form::Json,
        };
        let share = shards.len();
        let values = shards.iter().map(|&database| Values::new(database, form, share));
        Printer {
            layout,
            compat,
            fields: columns.iter().filter(|c| matches!(c.content, Content::Field(_))).count(),
            columns,
            values: values.collect(),
            line: Vec::new(),
            uuid: Uuid::default(),
            first: true,
            printed: (0, 0),
            begun: vec![false; share],
            lost: vec![false; share],
        }
    }

    /// How many events were printed, and of how many trails.
    pub(super) fn printed(&self) -> (u64, u64) {
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
        let mut items: Vec<_> = batch.items.iter().map(|items| items.iter().copied()).collect();
        for step in &batch.steps {
            self.line.clear();
            match *step {
                Step::Begin(uuid) => (self.uuid, self.first) = (uuid, true),
                Step::Event(time, shard) => {
                    let place = shard as usize;
                    if self.lost[place] {
                        continue;
                    }
                    // There is an item for each field of each event of the batch.
                    let mut items = items[place].by_ref().take(self.fields);
                    if let Err(failure) = self.event(time, place, &mut items) {
                        self.lost[place] = true;
                        lose(place, failure, self.begun[place])?;
                        continue;
                    }
                    self.printed.0 += 1;
                    self.printed.1 += u64::from(self.first);
                    (self.first, self.begun[place]) = (false, true);
                }
                Step::End if self.layout == Layout::Trails && !self.first => {
                    self.line.extend_from_slice(b"]}\n");
                }
                Step::End => {}
            }
            output.put(&self.line)?;
        }
        Ok(())
    }

    /// Writes an event of the shard at a place into `line`.
    fn event(&mut self, time: u64, place: usize, items: &mut Items<'_>) -> Result<(), Failure> {
        let (uuid, values) = (self.uuid, &mut self.values[place]);
        let mut line = Line { out: &mut self.line, columns: &self.columns, values };
        match self.layout {
            Layout::Csv { delimiter, .. } => {
                let form = if self.compat { Form::Plain } else { Form::Csv(delimiter) };
                line.csv(uuid, time, items, delimiter, form)
            }
            Layout::Json { no_empty } => line.json(uuid, time, items, no_empty, self.compat),
            Layout::Trails => {
                match self.first {
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
        if self.out.is_empty() && form != Form::Plain {
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
            if self.out.len() > 1 {
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
