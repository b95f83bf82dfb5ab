//! Whatever comes in on a connection of V000 is taken apart frame by frame, as the server does: no
//! panic, and what was understood is what was said. Answers are heard as they were meant.
#![no_main]

use libfuzzer_sys::fuzz_target;
use sources::server::v000::{Answer, HEAD_BYTES, Head, PATH_BYTES_MAX, Want, path};

fuzz_target!(|input: &[u8]| {
    let mut rest = input;
    while let Some((head, after)) = rest.split_first_chunk::<HEAD_BYTES>() {
        let read = Head::decode(head);
        let kind = match read.want {
            Want::Hello => *b"V000",
            Want::Read => *b"READ",
            Want::Exit => *b"EXIT",
            Want::Unknown(kind) => {
                assert!(![*b"V000", *b"READ", *b"EXIT"].contains(&kind));
                kind
            }
        };
        let numbers = [read.offset.to_le_bytes(), read.size.to_le_bytes()].concat();
        let written = [&kind[..], &numbers, &read.path_bytes.to_le_bytes()].concat();
        assert_eq!(written, head);
        let len = read.path_bytes as usize;
        // From here on nobody can tell where a frame begins.
        let Some((bytes, next)) = after.split_at_checked(len).filter(|_| len <= PATH_BYTES_MAX)
        else {
            return;
        };
        if let Some(path) = path(bytes) {
            assert!(path.as_bytes() == bytes && !bytes.contains(&0));
            let (position, size) = (read.offset, read.size);
            let answer = Answer::File { path: path.to_owned(), position, size }.encode();
            assert_eq!((&answer[..4], &answer[4..20]), (&b"OKOK"[..], &numbers[..]));
            assert_eq!((&answer[20..24], &answer[24..]), (&head[20..], bytes));
        }
        rest = next;
    }
});
