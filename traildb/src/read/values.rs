//! The values of events that follow one another.

use super::Reader;
use crate::{error::Error, item::Item, member::lexicon::Slices, storage::Storage};

/// Looks values up and remembers the last one of each field.
///
/// Events of a trail have most of their items in common, so most values need no second look: asked
/// for those of one event after the other, this is two to three times as fast as
/// [`Reader::value`]. Nothing stays pinned; where bytes are not in memory, values are copied. Who wants
/// all values of all events has them quicker from
/// [`Trail::next_with_values`](crate::Trail::next_with_values).
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
    /// The values that are in memory.
    slices: Slices<'r>,
}

impl Last<'_> {
    #[inline(always)]
    fn bytes(&self) -> &[u8] {
        match &self.copy {
            None => self.value,
            Some(copy) => copy,
        }
    }
}

impl<'r, S: Storage> LastValues<'r, S> {
    pub(super) fn new(reader: &'r Reader<S>) -> Result<LastValues<'r, S>, Error> {
        let fields = reader.lexicons()?.iter().map(|lexicon| {
            let slices = lexicon.in_memory(&reader.members);
            Last { slices, ..Last::default() }
        });
        Ok(LastValues { reader, fields: fields.collect() })
    }

    /// The value of an item. Empty for NULL.
    ///
    /// # Errors
    /// As [`Reader::value`].
    #[inline]
    pub fn get(&mut self, item: Item) -> Result<&[u8], Error> {
        let place = usize::from(item.field()).wrapping_sub(1);
        let known = self.fields.get(place).is_some_and(|last| last.item == item);
        if !known {
            self.look_up(place, item)?;
        }
        Ok(self.fields[place].bytes())
    }

    #[inline]
    fn look_up(&mut self, place: usize, item: Item) -> Result<(), Error> {
        if let Some(last) = self.fields.get_mut(place)
            && last.copy.is_none()
            && let Some(value) = match item.is_null() {
                true => Some(&[][..]),
                false => last.slices.get(item.value()),
            }
        {
            (last.item, last.value) = (item, value);
            return Ok(());
        }
        self.look_up_anywhere(place, item)
    }

    #[inline(never)]
    fn look_up_anywhere(&mut self, place: usize, item: Item) -> Result<(), Error> {
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
