//! How long does writing a database take, how large is it, and how much memory does that cost?
//!
//! ```text
//!   cargo bench -p extmem-traildb --bench write -- edits.csv out.tdb [threads [memory [bigrams]]]
//! ```
//!
//! The CSV has a header line `uuid,time,FIELD,...` and no quotes. Time is told apart: `read` is
//! what splitting the lines takes alone, `add` what the builder takes for the events, measured by
//! a second pass over the lines that adds them, and `finish` everything after the last event.

use std::{
    fs::File,
    io::{BufRead, BufReader},
    time::Instant,
};

use traildb::{Bigrams, Builder, Options, Uuid};

fn main() {
    let args: Vec<String> = std::env::args().skip(1).filter(|arg| arg != "--bench").collect();
    let [csv, out, rest @ ..] = &args[..] else {
        println!("left out: write: no CSV was named");
        return;
    };
    let threads = rest.first().map_or(0, |n| n.parse().expect("a number of threads"));
    let memory = rest.get(1).map_or(0, |n| n.parse().expect("a number of bytes"));
    let bigrams = match rest.get(2).map(String::as_str) {
        Some("on") => Bigrams::On,
        Some("off") => Bigrams::Off,
        _ => Bigrams::Auto,
    };

    let start = Instant::now();
    let mut bytes = 0;
    let events = lines(csv, |_, _, values| bytes += values.iter().map(|v| v.len()).sum::<usize>());
    let read = start.elapsed().as_secs_f64();

    let header = BufReader::new(File::open(csv).unwrap()).lines().next().unwrap().unwrap();
    let names: Vec<&str> = header.split(',').skip(2).collect();
    let options = Options::default().threads(threads).memory_bytes(memory).bigrams(bigrams);
    let mut builder = Builder::with_options(&names, options).unwrap();
    let start = Instant::now();
    lines(csv, |uuid, time, values| builder.add(uuid, time, values).unwrap());
    let add = start.elapsed().as_secs_f64() - read;
    let before = peak_memory();
    let start = Instant::now();
    let written = builder.finish(out).unwrap();
    let finish = start.elapsed().as_secs_f64();
    println!("| events | threads | read | add | finish | add + finish | bytes | peak memory |");
    println!("| ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |");
    println!(
        "| {events} | {threads} | {read:.2} s | {add:.2} s | {finish:.2} s | {:.2} s | {} | {} MB \
         ({before} MB when added) |",
        add + finish,
        written.bytes,
        peak_memory()
    );
}

/// Calls `event` with each line after the first. Returns how many there are.
fn lines(path: &str, mut event: impl FnMut(Uuid, u64, &[&[u8]])) -> u64 {
    let mut reader = BufReader::with_capacity(1 << 18, File::open(path).unwrap());
    let mut line = Vec::new();
    let (mut n, mut values) = (0, Vec::<&[u8]>::new());
    while reader.read_until(b'\n', &mut line).unwrap() > 0 {
        if n > 0 {
            let mut cells = line[..line.len() - 1].split(|&b| b == b',');
            let mut uuid = [0; 16];
            let digits = cells.next().unwrap();
            let digit = |c: u8| (c & 15) + if c > b'9' { 9 } else { 0 };
            for (byte, pair) in uuid.iter_mut().zip(digits.chunks_exact(2)) {
                *byte = digit(pair[0]) << 4 | digit(pair[1]);
            }
            let time = cells.next().unwrap().iter().fold(0, |n, c| n * 10 + u64::from(c & 15));
            values.extend(cells);
            event(Uuid(uuid), time, &values);
        }
        n += 1;
        values = values.into_iter().map(|_| -> &[u8] { &[] }).collect();
        values.clear();
        line.clear();
    }
    n - 1
}

/// The most memory that this process has had, in MB.
fn peak_memory() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap_or("0");
    line.trim().trim_end_matches(" kB").trim().parse::<u64>().unwrap_or(0) / 1000
}
