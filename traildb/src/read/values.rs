//! The values of events that follow one another.

use super::Reader;
use crate::{error::Error, item::Item, storage::Storage};

/// Looks values up and remembers the last one of each field.
///
/// Events of a trail have most of their items in common, so most values need no second look: asked
/// for those of one event after the other, this is two to three times as fast as
/// [`Reader::value`]. Nothing stays pinned; where bytes are not in memory, values are copied.
///
/// ```no_run
/// # fn main() -> Result<(), traildb::Error> {
/// let reader = traildb::Reader::open("events.tdb")?;
/// let mut values = reader.last_values()?;
/// let mut trail = reader.trail(0)?;
/// while let Some(event) = trail.next_event()? {
///     for &item in event.items {
///         println!("{}", values.get(item)?.escape_ascii());
///     }
/// }
/// # Ok(())
/// # }
/// ```
pub struct LastValues<'r, S: Storage> {
    reader: &'r Reader<S>,
    fields: Box<[Last<'r>]>,
}

#[derive(Default)]
struct Last<'r> {
    item: Item,
    value: &'r [u8],
    /// The value, where it had to be copied.
    copy: Option<Vec<u8>>,
}

impl<'r, S: Storage> LastValues<'r, S> {
    pub(super) fn new(reader: &'r Reader<S>) -> Result<LastValues<'r, S>, Error> {
        let fields = reader.fields()?.len();
        Ok(LastValues { reader, fields: (0..fields).map(|_| Last::default()).collect() })
    }

    /// The value of an item. Empty for NULL.
    ///
    /// # Errors
    /// As [`Reader::value`].
    #[inline]
    pub fn get(&mut self, item: Item) -> Result<&[u8], Error> {
        let place = usize::from(item.field()).wrapping_sub(1);
        match self.fields.get(place) {
            Some(last) if last.item == item => {}
            _ => self.look_up(place, item)?,
        }
        let last = &self.fields[place];
        Ok(match &last.copy {
            None => last.value,
            Some(copy) => copy,
        })
    }

    fn look_up(&mut self, place: usize, item: Item) -> Result<(), Error> {
        if let Some(value) = self.reader.value_in_memory(item)? {
            // There is a lexicon, so there is a field.
            let last = &mut self.fields[place];
            (last.item, last.value, last.copy) = (item, value, None);
            return Ok(());
        }
        let last = &mut self.fields[place];
        // Until it is whole, it is nobody's.
        last.item = Item::default();
        let copy = last.copy.get_or_insert_default();
        copy.clear();
        self.reader.append_value(item, copy)?;
        last.item = item;
        Ok(())
    }
}

impl<S: Storage> std::fmt::Debug for LastValues<'_, S> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LastValues").field("fields", &self.fields.len()).finish_non_exhaustive()
    }
}
