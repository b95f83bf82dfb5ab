//! Writes seeds: the golden frames, those of each connection as one input.
//!
//! ```text
//!   FOLDER/v000     what clients say
//!   FOLDER/blocks   0, what clients say; 1, what servers say
//!   FOLDER/client   a place in an object, and sound answers; at the end each kind of another one
//! ```

use std::{fs, path::Path};

fn main() {
    let root = std::env::args().nth(1).expect("usage: seeds FOLDER");
    let root = Path::new(&root);
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/golden");
    let kinds = [("v000", '>', None), ("blocks", '>', Some(0)), ("blocks", '<', Some(1))];
    for (name, who, first) in kinds {
        let folder = root.join(name);
        fs::create_dir_all(&folder).expect("the folder can be made");
        let text = fs::read_to_string(golden.join(name).with_extension("txt"));
        let text = text.expect("the golden frames are there");
        for (number, connection) in text.split("\nnew\n").enumerate() {
            let frames = connection.lines().filter_map(|line| bytes(line.strip_prefix(who)?));
            let input: Vec<u8> = first.into_iter().chain(frames.flatten()).collect();
            let side = if who == '>' { "client" } else { "server" };
            fs::write(folder.join(format!("golden-{side}-{number}")), input).expect("written");
        }
    }
    let folder = root.join("client");
    fs::create_dir_all(&folder).expect("the folder can be made");
    // Nothing else for as long as the client asks; or something else, after so many sound answers.
    for sound in [0usize, 1, 2, 3, 5, 8, 40] {
        for other in [0, 165, 175, 185, 192, 200, 210, 225, 235, 244, 250] {
            let place = [0xff, 0x7f, 0x10, 0x20, 0x00, 0x60];
            let input = [&place[..], &vec![0; sound], &[other], &[3; 64]].concat();
            fs::write(folder.join(format!("sound-{sound}-{other}")), input).expect("written");
        }
    }
}

/// The bytes of a line that has no names in it.
fn bytes(line: &str) -> Option<Vec<u8>> {
    let mut bytes = Vec::new();
    // Every second part is within quotes.
    for (n, part) in line.split('"').enumerate() {
        if n % 2 == 1 {
            bytes.extend(part.as_bytes());
            continue;
        }
        let digits: String = part.split(' ').collect();
        for pair in digits.as_bytes().chunks(2) {
            let pair = std::str::from_utf8(pair).ok().filter(|pair| pair.len() == 2)?;
            bytes.push(u8::from_str_radix(pair, 16).ok()?);
        }
    }
    Some(bytes)
}
