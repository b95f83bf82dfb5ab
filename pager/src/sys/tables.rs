//! Whether this kernel frees page tables that have become empty.
//!
//! From Linux 6.14 on (`CONFIG_PT_RECLAIM`, x86-64), `MADV_DONTNEED` of all that one table describes
//! frees the table. Other kernels keep it until the range is unmapped: 4 KiB for each 2 MiB that was
//! ever touched. No feature bit tells, so it is tried.

use std::{io, sync::OnceLock};

use super::mapping::{HUGE, Mapping, PAGE};

/// Tables made and given up. Enough to stand out from what other threads do meanwhile.
const TABLES: usize = 64;

/// How often it is tried: others may make tables just then, which hides what went.
const ATTEMPTS: usize = 5;

/// Whether giving up all of a 2 MiB span frees its page table. Asked once; where it cannot be known,
/// no.
pub(crate) fn are_freed() -> bool {
    static FREED: OnceLock<bool> = OnceLock::new();
    *FREED.get_or_init(|| (0..ATTEMPTS).any(|_| try_once().unwrap_or(false)))
}

fn try_once() -> io::Result<bool> {
    let mapping = Mapping::reserve(TABLES * HUGE, HUGE)?;
    // Kernels without huge pages refuse this, and have small ones anyway.
    let _ = mapping.advise(0, mapping.len(), libc::MADV_NOHUGEPAGE);
    for table in 0..TABLES {
        // Reading maps the page of zeros: a table, and no memory beside it.
        // SAFETY: the byte lies inside the mapping, which is readable and anonymous.
        unsafe { mapping.base().as_ptr().add(table * HUGE).read_volatile() };
    }
    let before = bytes_of_tables()?;
    mapping.advise(0, mapping.len(), libc::MADV_DONTNEED)?;
    Ok(before.saturating_sub(bytes_of_tables()?) >= (TABLES / 2 * PAGE) as u64)
}

/// Bytes of this process's page tables.
fn bytes_of_tables() -> io::Result<u64> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmPTE:"));
    let kib = line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok());
    kib.map(|kib| kib << 10).ok_or_else(|| io::Error::from(io::ErrorKind::InvalidData))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernel_says_how_many_tables_there_are() {
        assert!(bytes_of_tables().unwrap() >= PAGE as u64);
        // Whatever it is, it is one answer.
        assert_eq!(are_freed(), are_freed());
    }
}
