//! The frames of `golden/`, which are those of `PROTOCOL.md`, as the library reads and writes them.

use sources::server::{
    frames::{self, Answer, BODY_BYTES_MAX, Request},
    v000,
};

/// The frames that begin with `who` and have nothing in them that a server may choose.
fn frames(text: &str, who: char) -> Vec<Vec<u8>> {
    let lines = text.lines().filter_map(|line| line.strip_prefix(who));
    lines.filter_map(|line| bytes(line.trim())).collect()
}

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

#[test]
fn our_own_frames_are_read_and_written_as_they_are() {
    let text = include_str!("../golden/blocks.txt");
    let (mut requests, mut answers, mut broken) = (0, 0, 0);
    for frame in frames(text, '>') {
        let (head, body) = frame.split_first_chunk().expect("a head");
        let read = frames::Head::decode(head, BODY_BYTES_MAX)
            .and_then(|head| Ok((head.id, Request::decode(head.kind, body)?)));
        match read {
            Ok((id, request)) => assert_eq!(request.encode(id), frame, "{request:?}"),
            Err(_) => broken += 1,
        }
        requests += 1;
    }
    for frame in frames(text, '<') {
        let (head, body) = frame.split_first_chunk().expect("a head");
        let head = frames::Head::decode(head, BODY_BYTES_MAX).expect("sound");
        let answer = Answer::decode(head.kind, body).expect("an answer");
        assert_eq!(answer.encode(head.id), frame, "{answer:?}");
        answers += 1;
    }
    assert_eq!((requests, answers, broken), (30, 9, 3));
}

#[test]
fn the_first_frames_are_read_and_written_as_they_are() {
    let text = include_str!("../golden/v000.txt");
    let (mut hellos, mut reads, mut exits, mut others, mut long) = (0, 0, 0, 0, 0);
    for frame in frames(text, '>') {
        let (head, path) = frame.split_first_chunk().expect("a head");
        let head = v000::Head::decode(head);
        match head.want {
            v000::Want::Hello => hellos += 1,
            v000::Want::Read => reads += 1,
            v000::Want::Exit => exits += 1,
            v000::Want::Unknown(_) => others += 1,
        }
        match head.path_bytes as usize > v000::PATH_BYTES_MAX {
            true => long += 1,
            false => {
                assert_eq!(head.path_bytes as usize, path.len());
                assert!(v000::path(path).is_some(), "{path:?}");
            }
        }
    }
    assert_eq!((hellos, reads, exits, others, long), (7, 15, 1, 1, 1));
    let refusals = [v000::Answer::Unsupported, v000::Answer::Missing, v000::Answer::Failed];
    let known: Vec<Vec<u8>> =
        refusals.into_iter().chain([v000::Answer::Welcome]).map(|one| one.encode()).collect();
    let answers = frames(text, '<');
    assert!(answers.len() >= 10 && answers.iter().all(|answer| known.contains(answer)));
}
