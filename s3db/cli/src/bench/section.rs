//! Sections of BENCHMARKS.md: their place in the file, tables, and what a measured figure is worth
//! nothing without: the date and the machine. Knows nothing of the rest of the program: `s3db/peer` has
//! it too.

use std::{fs, io, path::Path};

/// What stands in a file between `<!-- NAME -->` and `<!-- end NAME -->`.
pub(super) struct Section<'a> {
    pub(super) name: &'a str,
    /// Its heading and all below it.
    pub(super) text: &'a str,
}

impl Section<'_> {
    /// Replaces the section in `file`, or adds it at the end.
    pub(super) fn write_into(&self, file: &Path) -> io::Result<()> {
        let old = match fs::read_to_string(file) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => String::new(),
            read => read?,
        };
        fs::write(file, self.replaced(&old))
    }

    fn replaced(&self, old: &str) -> String {
        let (begin, end) =
            (format!("<!-- {} -->", self.name), format!("<!-- end {} -->", self.name));
        let section = format!("{begin}\n{}\n{end}\n", self.text.trim());
        let place = old.find(&begin).zip(old.find(&end)).filter(|(begin, end)| begin < end);
        match place {
            Some((from, to)) => {
                let rest = &old[to + end.len()..];
                format!("{}{section}{}", &old[..from], rest.strip_prefix('\n').unwrap_or(rest))
            }
            None if old.is_empty() => section,
            None => format!("{}\n\n{section}", old.trim_end()),
        }
    }
}

/// A table in Markdown, which is as well for a screen.
pub(super) fn table(
    text: &mut String,
    heads: &[&str],
    rows: impl IntoIterator<Item = Vec<String>>,
) {
    let rows: Vec<Vec<String>> = rows.into_iter().collect();
    let width = |n: usize| {
        rows.iter()
            .filter_map(|row| row.get(n))
            .map(String::len)
            .max()
            .unwrap_or(0)
            .max(heads[n].len())
    };
    let widths: Vec<usize> = (0..heads.len()).map(width).collect();
    let line = |cells: Vec<&str>| {
        let padded = cells.iter().zip(&widths).map(|(cell, width)| format!("{cell:width$}"));
        format!("| {} |\n", padded.collect::<Vec<_>>().join(" | "))
    };
    *text += &line(heads.to_vec());
    let rule: Vec<String> = widths.iter().map(|width| "-".repeat(*width)).collect();
    *text += &line(rule.iter().map(String::as_str).collect());
    for row in &rows {
        *text += &line(row.iter().map(String::as_str).collect());
    }
    text.push('\n');
}

/// The machine in one line.
pub(super) fn machine() -> String {
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
pub(super) fn date() -> String {
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
    fn the_section_is_replaced_and_nothing_else() {
        let section = Section { name: "paper", text: "new\n" };
        let whole = "<!-- paper -->\nnew\n<!-- end paper -->\n";
        let old = "# B\n\n<!-- paper -->\nold\n<!-- end paper -->\n\nmore\n";
        assert_eq!(section.replaced(old), format!("# B\n\n{whole}\nmore\n"));
        assert_eq!(section.replaced("# B\n"), format!("# B\n\n{whole}"));
        assert_eq!(section.replaced(""), whole);
        // An end without a beginning is text.
        assert!(section.replaced("<!-- end paper --> <!-- paper -->").ends_with(whole));
    }

    #[test]
    fn dates_at_the_edges_of_the_calendar() {
        for (days, expected) in
            [(0, "1970-01-01"), (58, "1970-02-28"), (11_016, "2000-02-29"), (19_722, "2023-12-31")]
        {
            assert_eq!(date_of(days), expected, "{days}");
        }
    }
}
