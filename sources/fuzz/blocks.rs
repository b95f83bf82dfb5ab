//! Whatever comes in on a connection of our own protocol is taken apart frame by frame, by the server
//! (the first byte is even) or its client: no panic, no memory beyond the frame, and what was understood
//! is written as it was read.
#![no_main]

use libfuzzer_sys::fuzz_target;
use sources::server::frames::{
    Answer, BODY_BYTES_MAX, HEAD_BYTES, Head, READ_BYTES_MAX, Request, TEXT_BYTES_MAX,
};

fuzz_target!(|input: &[u8]| {
    let Some((side, mut rest)) = input.split_first() else { return };
    let of_client = side % 2 == 1;
    let body_bytes_max = if of_client { READ_BYTES_MAX as usize } else { BODY_BYTES_MAX };
    while let Some((bytes, after)) = rest.split_first_chunk::<HEAD_BYTES>() {
        let Ok(head) = Head::decode(bytes, body_bytes_max) else { return };
        assert!(head.body_bytes <= body_bytes_max);
        assert_eq!(head.encode(), *bytes);
        let Some((body, next)) = after.split_at_checked(head.body_bytes) else { return };
        let frame = [bytes, body].concat();
        if of_client {
            answer(&head, body, &frame);
        } else if let Ok(request) = Request::decode(head.kind, body) {
            // Longer texts than may be sent are cut.
            if fits(body) {
                assert_eq!(request.encode(head.id), frame);
            }
            // Errors are shown to people.
            let _ = format!("{request:?}");
        }
        rest = next;
    }
});

fn fits(body: &[u8]) -> bool {
    body.len() <= TEXT_BYTES_MAX
}

fn answer(head: &Head, body: &[u8], frame: &[u8]) {
    let Ok(answer) = Answer::decode(head.kind, body) else { return };
    match answer {
        Answer::Bytes { length } => {
            assert_eq!(length, body.len() as u64);
            assert_eq!(answer.encode(head.id)[..], frame[..HEAD_BYTES]);
        }
        // Codes of later versions are taken for another one.
        Answer::Failed { .. } => {
            let written = answer.encode(head.id);
            let again = Answer::decode(head.kind, &written[HEAD_BYTES..]);
            assert!(!fits(body) || again == Ok(answer), "{again:?}");
        }
        answer if fits(body) => assert_eq!(answer.encode(head.id), frame),
        _ => {}
    }
}
