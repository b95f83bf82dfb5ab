//! Time, medians, and the machine.

use std::{
    fs,
    time::{Duration, Instant},
};

/// What a run took: time that passed, and time that this process spent on processors.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Cost {
    pub(crate) wall: Duration,
    pub(crate) cpu: Duration,
}

/// Runs `work` and says what it took.
pub(crate) fn cost<T>(work: impl FnOnce() -> Result<T, String>) -> Result<(T, Cost), String> {
    let (began, cpu) = (Instant::now(), cpu_time());
    let value = work()?;
    Ok((value, Cost { wall: began.elapsed(), cpu: cpu_time().saturating_sub(cpu) }))
}

/// Processor time of this process: user and system, all threads, in ticks of 10 ms.
fn cpu_time() -> Duration {
    let stat = fs::read_to_string("/proc/self/stat").unwrap_or_default();
    // The name in parentheses may hold anything; the fields after it are numbers.
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or("").split_whitespace().collect();
    let ticks = |at: usize| fields.get(at).and_then(|field| field.parse::<u64>().ok()).unwrap_or(0);
    Duration::from_millis((ticks(11) + ticks(12)) * 10)
}

/// The median. Of an even number, the upper of the two in the middle.
///
/// # Panics
/// When there are none.
pub(crate) fn median<T: PartialOrd + Copy>(values: &[T]) -> T {
    let mut sorted = values.to_vec();
    sorted.sort_by(|a, b| a.partial_cmp(b).expect("times and ratios compare"));
    sorted[sorted.len() / 2]
}

pub(crate) fn median_wall(costs: &[Cost]) -> Duration {
    median(&costs.iter().map(|cost| cost.wall).collect::<Vec<_>>())
}

pub(crate) fn median_cpu(costs: &[Cost]) -> Duration {
    median(&costs.iter().map(|cost| cost.cpu).collect::<Vec<_>>())
}

/// Median of the ratios of pairs that ran in turn.
pub(crate) fn median_ratio(of: &[Cost], to: &[Cost]) -> f64 {
    let ratios = of.iter().zip(to).map(|(a, b)| a.wall.as_secs_f64() / b.wall.as_secs_f64());
    median(&ratios.collect::<Vec<_>>())
}

/// Milliseconds.
pub(crate) fn ms(time: Duration) -> String {
    format!("{:.0} ms", time.as_secs_f64() * 1e3)
}

/// Where and when this was measured.
pub(crate) fn machine() -> String {
    let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
    let info = read("/proc/cpuinfo");
    let model = info.lines().find_map(|line| line.strip_prefix("model name")?.split(": ").nth(1));
    let kernel = read("/proc/sys/kernel/osrelease");
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    format!(
        "Measured on {}, {cores} cores, Linux {}, {}.",
        model.unwrap_or("an unnamed processor").trim(),
        kernel.trim(),
        date()
    )
}

/// Today in UTC, as year, month, day.
fn date() -> String {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    let days = (since.unwrap_or_default().as_secs() / 86_400) as i64;
    // Days to a date of the Gregorian calendar, counted in eras of 400 years from March 1 of year 0.
    let shifted = days + 719_468;
    let (era, day) = (shifted.div_euclid(146_097), shifted.rem_euclid(146_097));
    let year = (day - day / 1_460 + day / 36_524 - day / 146_096) / 365;
    let in_year = day - (365 * year + year / 4 - year / 100);
    let month = (5 * in_year + 2) / 153;
    let of_month = in_year - (153 * month + 2) / 5 + 1;
    let (month, carry) = if month < 10 { (month + 3, 0) } else { (month - 9, 1) };
    format!("{:04}-{month:02}-{of_month:02}", year + era * 400 + carry)
}
