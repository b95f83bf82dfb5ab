//! Time, medians, and the machine they belong to.

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
    let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
    let info = read("/proc/cpuinfo");
    let model = info.lines().find_map(|line| line.strip_prefix("model name")?.split(": ").nth(1));
    let memory = read("/proc/meminfo");
    let memory = memory.lines().find_map(|line| line.strip_prefix("MemTotal:"));
    let kib = memory.and_then(|rest| rest.split_whitespace().next()?.parse::<u64>().ok());
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let load = read("/proc/loadavg");
    format!(
        "{} with {cores} cores and {} GiB of memory, Linux {}, load {} at the start",
        model.unwrap_or("a processor without a name").trim(),
        kib.unwrap_or(0).div_ceil(1 << 20),
        read("/proc/sys/kernel/osrelease").trim(),
        load.split_whitespace().next().unwrap_or("unknown"),
    )
}

/// Today in UTC, as year, month, day.
pub fn date() -> String {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    date_of((since.unwrap_or_default().as_secs() / 86_400) as i64)
}

/// The date of the n-th day after 1970-01-01, counted in eras of 400 years from March 1 of year 0.
fn date_of(days: i64) -> String {
    let shifted = days + 719_468;
    let (era, day) = (shifted.div_euclid(146_097), shifted.rem_euclid(146_097));
    let year = (day - day / 1_460 + day / 36_524 - day / 146_096) / 365;
    let in_year = day - (365 * year + year / 4 - year / 100);
    let month = (5 * in_year + 2) / 153;
    let of_month = in_year - (153 * month + 2) / 5 + 1;
    let (month, carry) = if month < 10 { (month + 3, 0) } else { (month - 9, 1) };
    format!("{:04}-{month:02}-{of_month:02}", year + era * 400 + carry)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_at_the_edges_of_the_calendar() {
        let cases = [
            (0, "1970-01-01"),
            (58, "1970-02-28"),
            (59, "1970-03-01"),
            (11_016, "2000-02-29"),
            (11_017, "2000-03-01"),
            (19_722, "2023-12-31"),
            (20_778, "2026-11-21"),
        ];
        for (days, expected) in cases {
            assert_eq!(date_of(days), expected, "{days}");
        }
    }

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
