//! Random 4 KiB reads by 1 to 16 threads under a budget of a quarter of the object: how many a
//! second, is every byte right, does memory stay within the budget?

use std::{
    ops::Range,
    time::{Duration, Instant},
};

use futures::StreamExt;
use pager::{
    BlockSource, ByteStream, Bytes, Frame, Hint, ObjectStat, Pager, SourceError, Version,
    async_trait,
};

const LEN: u64 = 512 << 20;
const READ: u64 = 4096;
/// What a slow page costs beside the memory: tables, stacks, the runtime.
const SLACK: u64 = 32 << 20;

/// Words that say where they are, so that a wrong byte shows without a second copy.
fn word_at(n: u64) -> u64 {
    n.wrapping_mul(0x9E37_79B9_7F4A_7C15)
}

struct Words;

#[async_trait]
impl BlockSource for Words {
    fn name(&self) -> &str {
        "bench://words"
    }
    async fn stat(&self) -> Result<ObjectStat, SourceError> {
        let version = Version::strong("1");
        Ok(ObjectStat::new(LEN, version))
    }
    async fn read(&self, version: &Version, range: Range<u64>) -> Result<ByteStream, SourceError> {
        let frame = Frame::with_capacity((range.end - range.start) as usize);
        let frame = self.read_into(version, range, frame).await?;
        let bytes = Bytes::copy_from_slice(frame.filled());
        Ok(futures::stream::once(async { Ok(bytes) }).boxed())
    }
    async fn read_into(
        &self,
        _: &Version,
        range: Range<u64>,
        mut frame: Frame,
    ) -> Result<Frame, SourceError> {
        for word in range.start / 8..range.end / 8 {
            frame.put(&word_at(word).to_le_bytes());
        }
        Ok(frame)
    }
    fn fills_frames(&self) -> bool {
        true
    }
}

fn memory() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").expect("procfs");
    let kib = |key: &str| -> u64 {
        let line = status.lines().find(|line| line.starts_with(key)).expect("a line of status");
        line.split_whitespace().nth(1).expect("a number").parse().expect("a number")
    };
    (kib("RssAnon:") + kib("VmPTE:")) << 10
}

/// User and system time of this process.
fn cpu() -> Duration {
    let stat = std::fs::read_to_string("/proc/self/stat").expect("procfs");
    let fields: Vec<&str> = stat.rsplit(')').next().expect("a name").split_whitespace().collect();
    let ticks: u64 =
        fields[11].parse::<u64>().expect("utime") + fields[12].parse::<u64>().expect("stime");
    Duration::from_millis(ticks * 10)
}

/// Reads at random places for `time`; the latencies in ns.
fn read(region: &pager::Region, seed: u64, bare: bool, time: Duration) -> Vec<u32> {
    let mapped = bare.then(|| region.map().expect("this benchmark needs userfaultfd"));
    let mut state = seed;
    let mut latencies = Vec::new();
    let start = Instant::now();
    while start.elapsed() < time {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        let at = (state >> 11) % (LEN / READ) * READ;
        let before = Instant::now();
        let check = |bytes: &[u8]| {
            let (words, _) = bytes.as_chunks::<8>();
            for (n, word) in words.iter().enumerate() {
                let expected = word_at(at / 8 + n as u64);
                assert_eq!(u64::from_le_bytes(*word), expected, "wrong byte at {at}");
            }
        };
        match &mapped {
            Some(mapped) => check(&mapped[at as usize..(at + READ) as usize]),
            None => check(&region.load(at..at + READ).expect("load")),
        }
        latencies.push(before.elapsed().as_nanos() as u32);
    }
    latencies
}

fn main() {
    println!(
        "\n| unit | by | threads | reads/s | median | p99 | memory over budget | CPU of a read |"
    );
    println!("| --- | --- | --- | --- | --- | --- | --- | --- |");
    for unit in [4096u64, 65_536] {
        for bare in [false, true] {
            for threads in [1u64, 2, 4, 8, 16] {
                let before = memory();
                let budget = LEN / 4;
                let builder = Pager::builder().budget_bytes(budget).unit_bytes(unit);
                let pager = builder.build().expect("a pager");
                let region = pager.open(Words).expect("open");
                region.advise(Hint::Random).expect("advise");
                let time = Duration::from_secs(2);
                let (start, cpu_before) = (Instant::now(), cpu());
                let mut most = 0;
                let mut latencies: Vec<u32> = std::thread::scope(|scope| {
                    let readers: Vec<_> = (0..threads)
                        .map(|seed| {
                            let region = &region;
                            scope.spawn(move || read(region, seed, bare, time))
                        })
                        .collect();
                    while readers.iter().any(|reader| !reader.is_finished()) {
                        most = most.max(memory().saturating_sub(before));
                        std::thread::sleep(Duration::from_millis(20));
                    }
                    readers
                        .into_iter()
                        .flat_map(|reader| reader.join().expect("right bytes"))
                        .collect()
                });
                let seconds = start.elapsed().as_secs_f64();
                let cpu = (cpu() - cpu_before).as_secs_f64() * 1e6 / latencies.len() as f64;
                // The readers' own records are no memory of the pager's.
                let records = latencies.capacity() as u64 * 8;
                let over = most.saturating_sub(records).saturating_sub(budget);
                assert!(over <= SLACK, "{over} bytes over a budget of {budget}");
                latencies.sort_unstable();
                println!(
                    "| {} KiB | {} | {threads} | {:.0} | {:.1} us | {:.1} us | {:.1} MiB | {cpu:.1} us |",
                    unit >> 10,
                    if bare { "bare slice" } else { "load" },
                    latencies.len() as f64 / seconds,
                    f64::from(latencies[latencies.len() / 2]) / 1e3,
                    f64::from(latencies[latencies.len() * 99 / 100]) / 1e3,
                    over as f64 / f64::from(1 << 20),
                );
            }
        }
    }
}
