//! Events of another database, without a look at each value of each event.
//!
//! ```text
//!   cursor --> items --> numbers there -> numbers here, by field --> row
//!                             |  not known yet
//!                             +--> value, read once --> its number here
//! ```

use super::{Builder, batch::lock, spill::Spilled};
use crate::{
    error::{Error, InputError},
    item::{Item, Uuid},
    read::{Event, Reader, View},
    storage::Storage,
};

/// Numbers of a page of a map. A page is made when the first of its numbers is needed.
const PAGE: usize = 1024;
/// Bytes of a page.
const PAGE_BYTES: usize = 4 * PAGE;
/// Of the memory that is allowed, maps may take one part in so many.
const MAPS_SHARE: u64 = 8;
/// Events, and bytes of values and of pages, between two looks at the limits.
const EVENTS: usize = 4096;
const BYTES: usize = 1 << 20;

/// Adds events of one reader to a builder.
///
/// Made by [`Builder::appender`]. The events may come from any cursor of the reader, in any order.
#[derive(Debug)]
pub struct Appender<'b, 'r, S: Storage> {
    builder: &'b mut Builder,
    reader: &'r Reader<S>,
    /// Number of the reader's fields.
    fields: usize,
    /// The builder's field, and the reader's, by ascending field of the builder; both from 0.
    columns: Vec<(usize, usize)>,
    /// By field of the reader, its column, unless it is left out.
    column: Vec<Option<usize>>,
    /// By column, the builder's numbers of the reader's values.
    maps: Vec<Map>,
    /// The trail of the last event, and its number.
    trail: Option<(Uuid, u32)>,
    row: Vec<(u16, u32)>,
    value: Vec<u8>,
    /// Events and bytes of values that may still be added before the next look at the limits.
    events_left: usize,
    bytes_left: usize,
    /// What had been spilled when the numbers were made.
    spilled: Spilled,
    /// Bytes of maps beyond which all of them are forgotten. Then values are read again, as they are
    /// when some were spilled.
    maps_max: u64,
    /// Bytes between two looks at the limits.
    bytes_step: usize,
}

/// Numbers by number, in pages; 0 is not known yet.
#[derive(Debug, Default)]
struct Map {
    pages: Vec<Option<Box<[u32; PAGE]>>>,
    /// Pages that were made.
    made: usize,
}

impl Map {
    fn get(&self, number: u64) -> u32 {
        let page = self.pages.get(number as usize / PAGE).and_then(Option::as_ref);
        page.map_or(0, |page| page[number as usize % PAGE])
    }

    /// Returns how many bytes of memory it took.
    fn set(&mut self, number: u64, becomes: u32) -> usize {
        let page = number as usize / PAGE;
        if page >= self.pages.len() {
            self.pages.resize_with(page + 1, || None);
        }
        let is_new = self.pages[page].is_none();
        self.made += usize::from(is_new);
        let page = self.pages[page].get_or_insert_with(|| Box::new([0; PAGE]));
        page[number as usize % PAGE] = becomes;
        if is_new { PAGE_BYTES } else { 0 }
    }

    /// Bytes of memory that it takes.
    fn memory(&self) -> u64 {
        (self.made * PAGE_BYTES + self.pages.capacity() * size_of::<usize>()) as u64
    }
}

impl Builder {
    /// Adds all events of a database that has the same fields in the same order.
    ///
    /// Each value is read once. Events of equal times come after those that were added before.
    ///
    /// # Errors
    /// [`InputError::OtherFields`] if the fields differ, with nothing added; what the reader
    /// returns, and [`Error::File`] as for [`add`](Builder::add), with a part of the events added.
    pub fn append<S: Storage>(&mut self, reader: &Reader<S>) -> Result<(), Error> {
        self.append_view(&reader.view())
    }

    /// [`append`](Builder::append) of the events that a view shows: those that pass its filters.
    ///
    /// # Errors
    /// As for `append`. A view of changes alone is refused as one of other fields: its events lack
    /// items.
    pub fn append_view<S: Storage>(&mut self, view: &View<'_, S>) -> Result<(), Error> {
        let reader = view.reader();
        if view.shows_only_changes() || !reader.fields()?.names().eq(self.fields.names()) {
            return Err(InputError::OtherFields.into());
        }
        let fields: Vec<u16> = (1..=self.fields.len() as u16).collect();
        let mut appender = self.appender(reader, &fields)?;
        let mut cursor = view.cursor()?;
        for trail in 0..reader.trails() {
            cursor.seek(trail)?;
            let mut uuid = None;
            while let Some(event) = cursor.next_event()? {
                let uuid = match uuid {
                    Some(uuid) => uuid,
                    None => *uuid.insert(reader.uuid(trail)?),
                };
                appender.add(uuid, &event)?;
            }
        }
        Ok(())
    }

    /// Starts adding events of a reader. `fields` says for each field of the reader, in order, which
    /// field of the builder it becomes, counted from 1; 0 leaves it out. Other fields of the builder
    /// are NULL.
    ///
    /// # Errors
    /// [`InputError::OtherFields`] if there are more or fewer of them than the reader has fields, if
    /// one is not a field of the builder, or is named twice.
    pub fn appender<'b, 'r, S: Storage>(
        &'b mut self,
        reader: &'r Reader<S>,
        fields: &[u16],
    ) -> Result<Appender<'b, 'r, S>, Error> {
        let mut columns: Vec<(usize, usize)> = fields
            .iter()
            .enumerate()
            .filter(|&(_, &to)| to > 0)
            .map(|(from, &to)| (usize::from(to) - 1, from))
            .collect();
        columns.sort_unstable();
        let twice = columns.windows(2).any(|pair| pair[0].0 == pair[1].0);
        let outside = columns.last().is_some_and(|&(to, _)| to >= self.fields.len());
        if fields.len() != reader.fields()?.len() || twice || outside {
            return Err(InputError::OtherFields.into());
        }
        self.check()?;
        // What was added before has its numbers first.
        self.settle();
        let maps = columns.iter().map(|_| Map::default()).collect();
        let mut column = vec![None; fields.len()];
        for (at, &(_, from)) in columns.iter().enumerate() {
            column[from] = Some(at);
        }
        let spilled = self.spilled();
        let maps_max = match self.options.memory_bytes {
            0 => u64::MAX,
            bytes => bytes / MAPS_SHARE,
        };
        Ok(Appender {
            builder: self,
            reader,
            fields: fields.len(),
            columns,
            column,
            maps,
            trail: None,
            row: Vec::new(),
            value: Vec::new(),
            events_left: 0,
            bytes_left: 0,
            spilled,
            maps_max,
            bytes_step: BYTES,
        })
    }
}

impl<S: Storage> Appender<'_, '_, S> {
    /// Adds an event of the reader, with all of its items.
    ///
    /// # Errors
    /// [`InputError::Arity`] if items are missing, as in a view of changes, [`InputError::OtherFields`]
    /// if they are not in the order of the reader's fields, as in such a view when all change, and
    /// what the reader returns: the event has not been added then. [`Error::File`] as for [`Builder::add`].
    pub fn add(&mut self, uuid: Uuid, event: &Event<'_>) -> Result<(), Error> {
        let reader = self.reader;
        self.add_with(uuid, event, |item, value| reader.append_value(item, value))
    }

    /// Whether the builder has a number for the value of that item. Then it is not read again.
    pub fn knows(&self, item: Item) -> bool {
        let column = usize::from(item.field()).checked_sub(1).and_then(|field| self.column[field]);
        item.is_null() || column.is_none_or(|column| self.maps[column].get(item.value()) > 0)
    }

    /// [`add`](Appender::add), with values from elsewhere: `read` appends the value of an item. It is
    /// called for those that the builder does not [know](Appender::knows).
    ///
    /// # Errors
    /// As for `add`, and what `read` returns.
    pub fn add_with<E: From<Error>>(
        &mut self,
        uuid: Uuid,
        event: &Event<'_>,
        mut read: impl FnMut(Item, &mut Vec<u8>) -> Result<(), E>,
    ) -> Result<(), E> {
        let (got, expected) = (event.items.len(), self.fields);
        if got != expected {
            return Err(Error::from(InputError::Arity { got, expected }).into());
        }
        self.builder.check()?;
        if self.events_left == 0 || self.bytes_left == 0 {
            (self.events_left, self.bytes_left) = (EVENTS, self.bytes_step);
            self.make_room()?;
        }
        self.row.clear();
        for column in 0..self.columns.len() {
            let (to, from) = self.columns[column];
            let item = event.items[from];
            if !item.is_null() {
                if usize::from(item.field()) != from + 1 {
                    return Err(Error::from(InputError::OtherFields).into());
                }
                let number = match self.maps[column].get(item.value()) {
                    0 => self.number(column, item, &mut read)?,
                    number => number,
                };
                // A value can be empty in version 0.
                if number > 0 {
                    self.row.push((to as u16 + 1, number));
                }
            }
        }
        let tables = self.builder.batches.tables();
        let trail = match self.trail {
            Some((last, trail)) if last == uuid => trail,
            _ => {
                let trail = lock(&tables.trails).number(uuid);
                self.trail = Some((uuid, trail));
                trail
            }
        };
        lock(&tables.rows).push(trail, event.time, self.row.iter().copied());
        self.builder.totals.add(event.time, 1 + self.row.len() as u64);
        self.events_left -= 1;
        Ok(())
    }

    /// Spills if there is need to, and forgets the numbers of what was spilled, or all if there are too
    /// many.
    fn make_room(&mut self) -> Result<(), Error> {
        let of_maps = self.maps.iter().map(Map::memory).sum();
        self.builder.make_room(EVENTS, BYTES, of_maps)?;
        let spilled = self.builder.spilled();
        if spilled.events != self.spilled.events {
            self.trail = None;
        }
        if spilled.values != self.spilled.values || of_maps > self.maps_max {
            self.maps.fill_with(Map::default);
        }
        self.spilled = spilled;
        Ok(())
    }

    /// The builder's number of a value that has none yet.
    #[cold]
    fn number<E>(
        &mut self,
        column: usize,
        item: Item,
        read: &mut impl FnMut(Item, &mut Vec<u8>) -> Result<(), E>,
    ) -> Result<u32, E> {
        self.value.clear();
        read(item, &mut self.value)?;
        self.bytes_left = self.bytes_left.saturating_sub(self.value.len());
        let tables = self.builder.batches.tables();
        let number = lock(&tables.fields[self.columns[column].0]).number(&self.value);
        let taken = self.maps[column].set(item.value(), number);
        self.bytes_left = self.bytes_left.saturating_sub(taken);
        Ok(number)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Numbers are forgotten when they take too much, and the database is the same.
    #[test]
    fn maps_are_bounded_and_leave_no_trace() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        let mut builder = Builder::new(&["a", "b"]).unwrap();
        for n in 0..200_000u64 {
            // Numbers go from first to last, and then up and down.
            let at = if n < 100_000 { n } else { n.wrapping_mul(0x9E37_79B9_7F4A_7C15) % 100_000 };
            let uuid = Uuid::from_number(u128::from(n % 777));
            builder.add(uuid, n, &[format!("a{at}"), format!("b{}", at % 7)]).unwrap();
        }
        builder.finish(path("from.tdb")).unwrap();
        let reader = Reader::open(path("from.tdb")).unwrap();
        let append = |name: &str, maps_max: u64| {
            let mut builder = Builder::new(&["a", "b"]).unwrap();
            let mut appender = builder.appender(&reader, &[1, 2]).unwrap();
            (appender.maps_max, appender.bytes_step) = (maps_max, 64 << 10);
            let mut most = 0;
            let mut cursor = reader.cursor().unwrap();
            for trail in 0..reader.trails() {
                cursor.seek(trail).unwrap();
                let uuid = reader.uuid(trail).unwrap();
                while let Some(event) = cursor.next_event().unwrap() {
                    appender.add(uuid, &event).unwrap();
                    most = most.max(appender.maps.iter().map(Map::memory).sum());
                }
            }
            builder.finish(path(name)).unwrap();
            (std::fs::read(path(name)).unwrap(), most)
        };
        let (all, most) = append("all.tdb", u64::MAX);
        assert!(most > 400_000, "{most} bytes: four for each value");
        let (some, most) = append("some.tdb", 64 << 10);
        // What comes between two looks is on top.
        assert!(most < 3 * (64 << 10), "{most} bytes");
        assert!(all == some, "the bytes differ");
        let (none, most) = append("none.tdb", 0);
        assert!(most > 0 && all == none, "the bytes differ");
    }
}
