//! Every exchange of both protocols, replayed from the frames of `sources/tests/golden` by clients that
//! know the text of `PROTOCOL.md` alone.

use std::{
    fs::File,
    io::{Read, Write},
    net::TcpStream,
    os::unix::{fs::FileExt, net::UnixStream},
    path::Path,
    time::Duration,
};

use crate::{
    origin::{Origin, sample},
    serve::Server,
};

/// The object of the transcripts.
const OBJECT_BYTES: usize = 10_500_000;

fn transcript(name: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/golden").join(name);
    std::fs::read_to_string(path).expect("the golden frames")
}

/// A server of `s3://bucket/`, whose S3 is `origin`.
fn start(origin: &Origin, object: &[u8], folder: &Path) -> Server {
    // Clients of S3 say what they do, besides.
    for key in ["/bucket/key", "/bucket/key?x-id=GetObject"] {
        origin.put(key, object, "v");
    }
    let socket = folder.join("extmem.sock");
    let args = ["--allow", "s3://bucket", "--max-bytes", "256MiB", "--memory-bytes", "64MiB"];
    let args = [&args[..], &["--unix", socket.to_str().expect("text")]].concat();
    let environment = [
        ("AWS_ENDPOINT_URL", origin.base()),
        ("AWS_ACCESS_KEY_ID", "id"),
        ("AWS_SECRET_ACCESS_KEY", "key"),
        ("AWS_REGION", "us-east-1"),
    ];
    Server::start_in(&folder.join("cache"), &args, &environment)
}

/// The words of a line; what is within quotes is one.
fn words(line: &str) -> Vec<&str> {
    let mut words = Vec::new();
    let mut rest = line.trim();
    while !rest.is_empty() {
        let end = match rest.strip_prefix('"') {
            Some(text) => text.find('"').expect("a second quote") + 2,
            None => rest.find(' ').unwrap_or(rest.len()),
        };
        let (word, more) = rest.split_at(end);
        words.push(word);
        rest = more.trim_start();
    }
    words
}

/// What a word stands for, if it stands for bytes.
fn literal(word: &str) -> Option<Vec<u8>> {
    if let Some(text) = word.strip_prefix('"') {
        return Some(text.strip_suffix('"').expect("a second quote").as_bytes().to_vec());
    }
    let pairs = word.as_bytes().chunks(2);
    pairs.map(|pair| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok()).collect()
}

/// What is asked for in a `READ` of V000.
#[derive(Clone, Copy, Default)]
struct Asked {
    offset: u64,
    size: u64,
}

/// Plays a transcript; returns how many answers there were.
fn replay<S: Read + Write>(script: &str, object: &[u8], connect: impl Fn() -> S) -> usize {
    let mut stream = None;
    let mut asked = Asked::default();
    let mut answers = 0;
    for (number, line) in script.lines().enumerate() {
        let at = || format!("line {}: {line}", number + 1);
        let words = words(line);
        let Some((first, rest)) = words.split_first() else { continue };
        match *first {
            "#" => continue,
            "new" => {
                stream = Some(connect());
                continue;
            }
            "<" | ">" => {}
            _ => panic!("{}", at()),
        }
        let stream = stream.as_mut().unwrap_or_else(|| panic!("{}: no connection", at()));
        if *first == ">" {
            let parts = rest.iter().map(|word| literal(word).unwrap_or_else(|| panic!("{}", at())));
            let frame = parts.collect::<Vec<_>>().concat();
            if frame.starts_with(b"READ") {
                let number = |at: usize| u64::from_le_bytes(frame[at..at + 8].try_into().unwrap());
                asked = Asked { offset: number(4), size: number(12) };
            }
            stream.write_all(&frame).unwrap_or_else(|error| panic!("{}: {error}", at()));
        } else {
            hear(stream, rest, object, asked).unwrap_or_else(|why| panic!("{}: {why}", at()));
            answers += 1;
        }
    }
    answers
}

/// Compares an answer with its line.
fn hear(stream: &mut impl Read, words: &[&str], object: &[u8], asked: Asked) -> Result<(), String> {
    let mut got = 0;
    let mut take = |count: usize| -> Result<Vec<u8>, String> {
        let mut bytes = vec![0; count];
        stream.read_exact(&mut bytes).map_err(|error| error.to_string())?;
        got += count;
        Ok(bytes)
    };
    let number =
        |bytes: &[u8]| bytes.iter().rev().fold(0u64, |number, byte| number << 8 | u64::from(*byte));
    let (mut place, mut size, mut body) = (0, 0, None);
    // The first two numbers of a frame of V000 are place and size, whether they have a name or not.
    let mut numbers = 0;
    let mut words = words.iter();
    while let Some(word) = words.next() {
        match *word {
            "end" => {
                return match take(1) {
                    Err(_) => Ok(()),
                    Ok(more) => Err(format!("{more:?} and not the end")),
                };
            }
            "PLACE" => place = number(&take(8)?),
            "SIZE" => {
                size = number(&take(8)?);
                let left = object.len() as u64 - asked.offset;
                if size < asked.size.min(left) || size > left {
                    return Err(format!("{size} bytes for {}, {left} are left", asked.size));
                }
            }
            "PATH" => {
                let len = number(&take(4)?) as usize;
                if len > 1023 {
                    return Err(format!("a path of {len} bytes"));
                }
                let path = String::from_utf8(take(len)?).map_err(|error| error.to_string())?;
                let mut bytes = vec![0; size as usize];
                let file = File::open(&path).map_err(|error| format!("{path}: {error}"))?;
                file.read_exact_at(&mut bytes, place).map_err(|error| error.to_string())?;
                if !path.starts_with('/') || bytes != object[asked.offset as usize..][..bytes.len()]
                {
                    return Err(format!("{path} has other bytes at {place}"));
                }
            }
            "LENGTH" => body = Some(number(&take(4)?) as usize),
            "TEXT" => {
                let len = number(&take(2)?) as usize;
                let text = String::from_utf8(take(len)?).map_err(|error| error.to_string())?;
                if text.is_empty() {
                    return Err("a text that says nothing".to_owned());
                }
            }
            "FAR" => {
                if number(&take(8)?) == 0 {
                    return Err("nothing".to_owned());
                }
            }
            "OBJECT" => {
                let mut next = || words.next().and_then(|word| word.parse::<usize>().ok());
                let (from, count) = (next().expect("an offset"), next().expect("a count"));
                if take(count)? != object[from..from + count] {
                    return Err("other bytes than the object's".to_owned());
                }
            }
            word => {
                let expected = literal(word).unwrap_or_else(|| panic!("{word}: what is that?"));
                let bytes = take(expected.len())?;
                if bytes != expected {
                    return Err(format!("{bytes:02x?} and not {word}"));
                }
                if expected.len() == 8 {
                    match numbers {
                        0 => place = number(&bytes),
                        1 => size = number(&bytes),
                        _ => {}
                    }
                }
            }
        }
        numbers += usize::from(["PLACE", "SIZE"].contains(word) || word.len() == 16);
    }
    match body.is_none_or(|body| got == 16 + body) {
        true => Ok(()),
        false => Err(format!("{got} bytes, which is not what the frame says")),
    }
}

/// What never comes must fail.
const WAIT: Duration = Duration::from_secs(30);

#[test]
fn every_exchange_of_the_first_client() {
    let (origin, folder) = (Origin::start(), tempfile::tempdir().expect("a folder"));
    let object = sample(OBJECT_BYTES, 61);
    let server = start(&origin, &object, folder.path());
    let connect = || {
        let stream = TcpStream::connect(server.address()).expect("a connection");
        stream.set_read_timeout(Some(WAIT)).expect("a time");
        stream
    };
    // From an empty cache, and from a full one.
    for state in ["cold", "warm"] {
        assert_eq!(replay(&transcript("v000.txt"), &object, connect), 25, "{state}");
    }
}

#[test]
fn every_exchange_of_our_own_clients() {
    let (origin, folder) = (Origin::start(), tempfile::tempdir().expect("a folder"));
    let object = sample(OBJECT_BYTES, 62);
    let _server = start(&origin, &object, folder.path());
    let connect = || {
        let stream = UnixStream::connect(folder.path().join("extmem.sock")).expect("a connection");
        stream.set_read_timeout(Some(WAIT)).expect("a time");
        stream
    };
    for state in ["cold", "warm"] {
        assert_eq!(replay(&transcript("blocks.txt"), &object, connect), 34, "{state}");
    }
}
