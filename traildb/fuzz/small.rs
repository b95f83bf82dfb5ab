//! One small database for all inputs, its events, and its index.

use std::sync::OnceLock;

use traildb::{Builder, Item, Reader, Uuid, index::Build};

/// A database in memory.
pub struct Small {
    pub reader: Reader<&'static [u8]>,
    pub events: Vec<(u64, Vec<Item>)>,
    /// The trail of each event.
    #[allow(dead_code, reason = "of the targets that share this, one asks for it")]
    pub trails: Vec<u64>,
    /// The bytes of its index.
    #[allow(dead_code, reason = "of the targets that share this, one asks for it")]
    pub index: Vec<u8>,
}

/// The database, made when it is first asked for.
pub fn database() -> &'static Small {
    static SMALL: OnceLock<Small> = OnceLock::new();
    SMALL.get_or_init(|| {
        let folder = tempfile::tempdir().expect("a scratch folder can be made");
        let path = folder.path().join("small.tdb");
        let mut builder = Builder::new(&["a", "b", "user"]).expect("the fields are good");
        for n in 0..600u64 {
            let text = |of: &str, k: u64| if k == 0 { String::new() } else { format!("{of}{k}") };
            let values = [text("x", n % 3), text("", n % 7), text("user ", n * n % 211)];
            let uuid = Uuid::from_number(u128::from(n % 150) << 96 | 5);
            builder.add(uuid, n * 86_400, &values).expect("the event is good");
        }
        builder.finish(&path).expect("the database is written");
        let bytes: &'static [u8] = std::fs::read(&path).expect("it can be read").leak();
        let reader = Reader::new(bytes).expect("it can be opened");
        let index = folder.path().join("small.tdbidx");
        Build::new(&reader).write(&index).expect("the index is written");
        let index = std::fs::read(index).expect("it can be read");
        let (mut events, mut trails) = (Vec::new(), Vec::new());
        let mut cursor = reader.cursor().expect("the codebook is good");
        for trail in 0..reader.trails() {
            cursor.seek(trail).expect("every trail is there");
            while let Some(event) = cursor.next_event().expect("every event is good") {
                events.push((event.time, event.items.to_vec()));
                trails.push(trail);
            }
        }
        drop(cursor);
        Small { reader, events, trails, index }
    })
}
