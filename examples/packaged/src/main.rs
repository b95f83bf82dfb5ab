//! What somebody writes who has the crates from a registry: a source of their own, a wrapper of
//! ours around it, and a region on top. Ends with an error if a byte is wrong.

#![forbid(unsafe_code)]

use std::{error::Error, ops::Range};

use futures::stream;
use pager::{BlockSource, ByteStream, Bytes, ObjectStat, Pager, SourceError, Version, async_trait};
use sources::{Memory, Retry};

/// An object of which byte `n` is `n mod 251`.
struct Counting {
    len: u64,
}

#[async_trait]
impl BlockSource for Counting {
    fn name(&self) -> &str {
        "counting"
    }

    async fn stat(&self) -> Result<ObjectStat, SourceError> {
        let version = Version::strong("counting-1");
        Ok(ObjectStat::new(self.len, version).with_part_bytes(1 << 20))
    }

    async fn read(&self, _: &Version, range: Range<u64>) -> Result<ByteStream, SourceError> {
        let bytes: Bytes = range.map(byte).collect();
        Ok(Box::pin(stream::iter([Ok(bytes)])))
    }
}

fn byte(n: u64) -> u8 {
    (n % 251) as u8
}

fn main() -> Result<(), Box<dyn Error>> {
    let pager = Pager::builder().budget_bytes(8 << 20).build()?;
    // Four times the budget, so that most of it has to go again.
    let region = pager.open(Retry::new(Counting { len: 32 << 20 }))?;
    for at in (0..region.len()).step_by(100_003) {
        let end = region.len().min(at + 1_000);
        let bytes = region.load(at..end)?;
        if !bytes.iter().copied().eq((at..end).map(byte)) {
            return Err(format!("bytes {at}..{end} are wrong").into());
        }
    }
    match region.map() {
        Ok(mapped) if mapped[20_000_000] != byte(20_000_000) => return Err("a wrong byte".into()),
        Ok(_) => println!("packaged: loads and page faults read the right bytes"),
        Err(reason) => println!("packaged: loads read the right bytes; {reason}"),
    }
    let small = pager.open(Memory::new("small", vec![7u8; 10]))?;
    if small.load(0..10)?[..] != [7; 10] {
        return Err("the small object has other bytes".into());
    }
    Ok(())
}
