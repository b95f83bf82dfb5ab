//! Whatever the bytes, the reader answers or refuses: no panic, no hang, no memory without bound.
#![no_main]

mod bytes;
mod compact;

use bytes::Bytes;
use compact::{Compact, PACKAGE, REMOTE};
use libfuzzer_sys::fuzz_target;
use traildb::{Error, Item, Reader, Uuid};

fuzz_target!(|input: &[u8]| {
    let compact = Compact::parse(input);
    let remote = compact.flags & REMOTE != 0;
    let opened = if compact.flags & PACKAGE != 0 {
        Reader::new(Bytes { bytes: compact.package(), remote })
    } else {
        let members = compact.members();
        Reader::open_directory(|name| {
            let found = members.iter().find(|(other, _)| other == name);
            Ok(found.map(|(_, bytes)| Bytes { bytes: bytes.clone(), remote }))
        })
    };
    if let Ok(reader) = opened {
        // Errors are answers; what counts is that they come.
        let _ = read_all(&reader);
        let _ = search(&reader);
    }
});

fn read_all(reader: &Reader<Bytes>) -> Result<(), Error> {
    let fields = reader.fields()?.len() as u16;
    let mut value = Vec::new();
    for field in 1..=fields {
        let last = reader.values(field)?;
        for number in (1..=last.min(16)).chain(last.saturating_sub(1)..=last) {
            value.clear();
            let item = Item::new(field, number);
            reader.append_value(item, &mut value)?;
            assert_eq!(*reader.value(item)?, *value);
        }
    }
    let mut cursor = reader.cursor()?;
    for trail in 0..reader.trails().min(4096) {
        // A damaged trail does not keep others from being read.
        if cursor.seek(trail).is_err() {
            continue;
        }
        let mut last = 0;
        while let Ok(Some(event)) = cursor.next_event() {
            assert!(event.time >= last, "time runs backwards");
            assert_eq!(event.items.len(), usize::from(fields));
            last = event.time;
        }
    }
    Ok(())
}

fn search(reader: &Reader<Bytes>) -> Result<(), Error> {
    let known = reader.uuids(0..reader.trails().min(64))?;
    let mut wanted = known.clone();
    wanted.extend(known.iter().map(|uuid| Uuid::from_number(uuid.number().wrapping_add(1))));
    let found = reader.trail_ids(&wanted)?;
    for (uuid, trail) in wanted.iter().zip(found) {
        if let Some(trail) = trail {
            assert_eq!(reader.uuid(trail)?, *uuid);
        }
    }
    reader.prefetch_trails(&[0, reader.trails().saturating_sub(1)])?;
    if reader.fields()?.len() > 0 {
        let _ = reader.item(1, b"a")?;
        let _ = reader.item(1, &[b'x'; 300])?;
        reader.prefetch_values(&[Item::new(1, 0), Item::new(1, 1)])?;
    }
    Ok(())
}
