//! Time, medians, and the machine they belong to.

// One for all that measure.
#[path = "../../s3db/cli/src/bench/machine.rs"]
mod machine;

use std::{
    fs,
    time::{Duration, Instant},
};

/// What a run took: time that passed, and time that this process spent on processors.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Cost {
    /// Time that passed.
    pub wall: Duration,
    /// User and system time of all threads. Counted in ticks of 10 ms, so means of several runs say
    /// more than one.
    pub cpu: Duration,
}

impl Cost {
    /// The wall time in seconds.
    pub fn seconds(&self) -> f64 {
        self.wall.as_secs_f64()
    }
}

/// Runs `work` and says what it took.
///
/// # Errors
/// Those of `work`.
pub fn cost<T>(work: impl FnOnce() -> Result<T, String>) -> Result<(T, Cost), String> {
    let (began, cpu) = (Instant::now(), cpu_time());
    let value = work()?;
    Ok((value, Cost { wall: began.elapsed(), cpu: cpu_time().saturating_sub(cpu) }))
}

/// Processor time of this process so far: user and system, all threads.
pub fn cpu_time() -> Duration {
    cpu_time_in("/proc/self/stat")
}

/// Processor time of another process so far. Zero if there is no such process.
pub fn cpu_time_of(pid: u32) -> Duration {
    cpu_time_in(&format!("/proc/{pid}/stat"))
}

fn cpu_time_in(path: &str) -> Duration {
    let stat = fs::read_to_string(path).unwrap_or_default();
    // The name in parentheses may hold anything; the fields after it are numbers.
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or("").split_whitespace().collect();
    let ticks = |at: usize| fields.get(at).and_then(|field| field.parse::<u64>().ok()).unwrap_or(0);
    Duration::from_millis((ticks(11) + ticks(12)) * 10)
}

/// The most memory that this process has held at a time, in KiB.
pub fn peak_rss_kib() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    line.and_then(|rest| rest.split_whitespace().next()?.parse().ok()).unwrap_or(0)
}

/// The median. Of an even number, the upper of the two in the middle.
///
/// # Panics
/// When there are none.
pub fn median<T: PartialOrd + Copy>(values: &[T]) -> T {
    let mut sorted = values.to_vec();
    sorted.sort_by(|a, b| a.partial_cmp(b).expect("times and ratios compare"));
    sorted[sorted.len() / 2]
}

/// Median of the wall times.
///
/// # Panics
/// When there are none.
pub fn wall(costs: &[Cost]) -> Duration {
    median(&costs.iter().map(|cost| cost.wall).collect::<Vec<_>>())
}

/// Mean of the processor times.
///
/// # Panics
/// When there are none.
pub fn cpu(costs: &[Cost]) -> Duration {
    costs.iter().map(|cost| cost.cpu).sum::<Duration>() / costs.len() as u32
}

/// Median of the ratios of wall times of pairs that ran in turn.
///
/// # Panics
/// When there are none.
pub fn ratio(of: &[Cost], to: &[Cost]) -> f64 {
    median(&of.iter().zip(to).map(|(a, b)| a.seconds() / b.seconds()).collect::<Vec<_>>())
}

/// Milliseconds.
pub fn ms(time: Duration) -> String {
    format!("{:.0} ms", time.as_secs_f64() * 1e3)
}

/// The machine in one line.
pub fn machine() -> String {
    machine::machine()
}

/// Today in UTC, as year, month, day.
pub fn date() -> String {
    machine::date()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians_and_ratios() {
        let cost = |ms| Cost { wall: Duration::from_millis(ms), cpu: Duration::from_millis(ms) };
        assert_eq!(median(&[3, 1, 2]), 2);
        assert_eq!(median(&[1, 2]), 2);
        assert_eq!(wall(&[cost(1), cost(9), cost(5)]), Duration::from_millis(5));
        assert_eq!(cpu(&[cost(1), cost(9), cost(5)]), Duration::from_millis(5));
        // Pair by pair: 2, 1/3 and 5, not the ratio of the medians.
        let (of, to) = ([cost(2), cost(3), cost(10)], [cost(1), cost(9), cost(2)]);
        assert!((ratio(&of, &to) - 2.0).abs() < 1e-9);
    }
}
