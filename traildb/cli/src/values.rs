//! The values of many events: fetched together, rendered once, kept within a bound.
//!
//! ```text
//!   items of a batch --> distinct, not kept --> chunks of a plan --> two rounds each --> kept
//! ```

use hashbrown::HashMap;
use traildb::Item;

use crate::{failure::Failure, open::Database, render};

/// Rendered values that are kept, of all shards. What does not fit is read again each time it is
/// printed.
const KEPT_BYTES: usize = 64 << 20;
/// A shard keeps so much, however many there are: of the most that are open, with as many threads as there may
/// be, this is what all may keep.
const KEPT_BYTES_MIN: usize = 8 << 10;
/// Bytes for each value that may be kept: it takes some 20 bytes of table beside its own.
const KEPT_BYTES_EACH: usize = 32;

/// How values are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Form {
    /// As CSV with this delimiter.
    Csv(u8),
    /// As JSON: a string, or `{"hex":...}`.
    Json,
    /// As they are, up to the first NUL byte.
    Plain,
    /// As they are.
    Bytes,
}

impl Form {
    /// Appends `value` in this form.
    pub(crate) fn render(self, out: &mut Vec<u8>, value: &[u8]) {
        match self {
            Form::Csv(delimiter) => render::csv(out, value, delimiter),
            Form::Json => render::json(out, value),
            Form::Plain => render::plain(out, value),
            Form::Bytes => out.extend_from_slice(value),
        }
    }
}

/// Values in one form.
pub(crate) struct Values<'d> {
    database: Database<'d>,
    form: Form,
    kept: Vec<u8>,
    kept_max: usize,
    /// Start and end of each in `kept`, which is small enough for 32 bits.
    places: HashMap<Item, (u32, u32)>,
    /// For each field, bytes of an offset and of a value on average. Empty where bytes are local.
    shapes: Vec<(f64, f64)>,
    value: Vec<u8>,
    missing: Vec<Item>,
}

impl<'d> Values<'d> {
    /// The values of a database, which is one of `shards`.
    pub(crate) fn new(database: Database<'d>, form: Form, shards: usize) -> Values<'d> {
        Values {
            kept_max: (KEPT_BYTES / shards.max(1)).max(KEPT_BYTES_MIN),
            database,
            form,
            kept: Vec::new(),
            places: HashMap::new(),
            shapes: Vec::new(),
            value: Vec::new(),
            missing: Vec::new(),
        }
    }

    /// Keeps no more than so many bytes of values, and about as many of a table.
    pub(crate) fn keep_at_most(&mut self, bytes: u64) {
        let bytes = usize::try_from(bytes).unwrap_or(usize::MAX);
        self.kept_max = self.kept_max.min(bytes).max(KEPT_BYTES_MIN);
    }

    /// Whether values come from afar.
    pub(crate) fn is_remote(&self) -> bool {
        self.database.is_remote()
    }

    /// Gets the values of `items` ready, so that [`append`](Values::append) need not wait.
    pub(crate) fn fetch(&mut self, items: &[Item]) -> Result<(), Failure> {
        if self.kept.len() > self.kept_max / 2
            || self.places.len() > self.kept_max / KEPT_BYTES_EACH
        {
            self.kept.clear();
            self.places.clear();
        }
        let mut missing = std::mem::take(&mut self.missing);
        missing.clear();
        let places = &self.places;
        missing.extend(items.iter().filter(|item| !item.is_null() && !places.contains_key(*item)));
        missing.sort_unstable_by_key(|item| (item.field(), item.value()));
        missing.dedup();
        let done = self.fetch_missing(&missing);
        self.missing = missing;
        done
    }

    fn fetch_missing(&mut self, mut missing: &[Item]) -> Result<(), Failure> {
        while !missing.is_empty() && self.kept.len() < self.kept_max {
            let chunk = match self.database.is_remote() {
                true => self.plan(missing)?,
                false => missing.len(),
            };
            let (now, later) = missing.split_at(chunk);
            self.database.reader.prefetch_values(now)?;
            for &item in now {
                let start = self.kept.len();
                self.value.clear();
                self.database.reader.append_value(item, &mut self.value)?;
                self.form.render(&mut self.kept, &self.value);
                if self.kept.len() > self.kept_max {
                    self.kept.truncate(start);
                    // A long value must not keep its memory for good.
                    self.kept.shrink_to(self.kept_max);
                    self.value = Vec::new();
                    return Ok(());
                }
                // `kept` is at most KEPT_BYTES long.
                self.places.insert(item, (start as u32, self.kept.len() as u32));
            }
            missing = later;
        }
        Ok(())
    }

    /// How many of `items`, which are sorted by field and number, one plan can ask for: as many as
    /// lie in the units that it may have. Values of a lexicon lie in the order of their numbers, so
    /// the average length says about where.
    fn plan(&mut self, items: &[Item]) -> Result<usize, Failure> {
        if self.shapes.is_empty() {
            self.shapes = shapes(&self.database)?;
        }
        let unit = self.database.unit as f64;
        let mut last = [None; 2];
        let mut units = 0;
        for (n, item) in items.iter().enumerate() {
            let field = item.field();
            let (offset, value) = self.shapes.get(usize::from(field)).copied().unwrap_or_default();
            let number = item.value() as f64;
            let spots = [number * offset / unit, number * value / unit];
            for (last, spot) in last.iter_mut().zip(spots) {
                let spot = Some((field, spot as u64));
                if *last != spot {
                    *last = spot;
                    units += 1;
                }
            }
            if units > self.database.plan_units && n > 0 {
                return Ok(n);
            }
        }
        Ok(items.len())
    }

    /// Appends the value of `item` in its form to `out`.
    pub(crate) fn append(&mut self, item: Item, out: &mut Vec<u8>) -> Result<(), Failure> {
        if item.is_null() {
            self.form.render(out, b"");
            return Ok(());
        }
        if let Some(&(start, end)) = self.places.get(&item) {
            out.extend_from_slice(&self.kept[start as usize..end as usize]);
            return Ok(());
        }
        self.value.clear();
        self.database.reader.append_value(item, &mut self.value)?;
        self.form.render(out, &self.value);
        Ok(())
    }
}

/// Bytes of an offset and of a value, on average, of each field from 0 on.
fn shapes(database: &Database<'_>) -> Result<Vec<(f64, f64)>, Failure> {
    let reader = &database.reader;
    let lens: HashMap<&str, u64> = reader.members().into_iter().collect();
    let mut shapes = vec![(0.0, 0.0)];
    for (name, field) in reader.fields()?.names().zip(1..) {
        let len = lens.get(&*format!("lexicon.{name}")).copied().unwrap_or(0) as f64;
        let width = if len < 4294967296.0 { 4.0 } else { 8.0 };
        let count = reader.values(field)?.max(1) as f64;
        shapes.push((width, (len / count - width).max(0.0)));
    }
    Ok(shapes)
}
