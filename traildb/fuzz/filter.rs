//! Whatever the text, it is a filter or an error that points into it: no panic, no hang, no memory
//! without bound. Of what is a filter, each event matches it or its negation, and never both.
#![no_main]

mod small;

use libfuzzer_sys::fuzz_target;
use traildb::filter::{self, BindError, FileValues, UnknownFields};

fuzz_target!(|input: &[u8]| {
    let parsed = match filter::parse(input) {
        Ok(parsed) => parsed,
        Err(error) => {
            let text = std::str::from_utf8(input);
            let is_whole =
                text.map_or(error.at() <= input.len(), |t| t.is_char_boundary(error.at()));
            assert!(is_whole, "an error at {}", error.at());
            assert!(!error.to_string().is_empty() && !error.reason().is_empty());
            return;
        }
    };
    // Files are made up: their names are their lines.
    let lines = |path: &std::path::Path| {
        let name = path.to_string_lossy().into_owned();
        Ok(name.replace('/', "\n").into_bytes())
    };
    let format = if input.len() % 2 == 0 { FileValues::Lines } else { FileValues::Whole };
    let loaded = parsed.load_files(format, lines).expect("every file can be read");
    assert!(loaded.files().is_empty());
    let small = small::database();
    let bind = |expr: &filter::Expr| expr.bind_with(&small.reader, UnknownFields::NoMatch);
    let negated = loaded.clone().not();
    let (wanted, unwanted) = match (bind(&loaded), bind(&negated)) {
        (Ok(wanted), Ok(unwanted)) => (wanted, unwanted),
        // Brought into clauses, one of them can be larger than the other.
        (Err(BindError::TooLarge), _) | (_, Err(BindError::TooLarge)) => return,
        (wanted, unwanted) => panic!("{wanted:?} {unwanted:?}"),
    };
    for (time, items) in &small.events {
        let matches = wanted.matches(*time, items);
        assert_ne!(matches, unwanted.matches(*time, items), "{items:?} at {time}");
        assert!(!matches || wanted.times().is_some_and(|times| times.contains(time)));
    }
});
