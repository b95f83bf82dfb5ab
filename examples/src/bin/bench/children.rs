//! The benchmarks that the pager carries itself: they need no S3. Each is a program that prints
//! Markdown, so it runs as one, and what it prints goes into the section.

use std::{
    env,
    path::Path,
    process::{Command, Stdio},
};

use examples::report::{Aim, Goal, Section};

/// A warm scan through a region, against the kernel's `mmap`.
pub(crate) fn warm_scan() -> Result<Section, String> {
    let body = printed("warm_scan")?;
    Ok(Section {
        name: "warm",
        title: "1. Warm scan",
        question: "What does a region cost over the kernel's `mmap` of the same cached file, with a \
                   fresh mapping each time?",
        goals: warm_goals(&body),
        body: body.replace("#### ", "### "),
    })
}

/// Random reads by many threads under a small budget.
pub(crate) fn random_reads() -> Result<Section, String> {
    let body = printed("random_reads")?;
    let over = column(&body, 6).fold(0.0, f64::max);
    let text = "A wrong byte ends the program, and so does memory of more than 32 MiB over the \
                budget: neither happened. Memory is the growth of RssAnon and VmPTE.";
    Ok(Section {
        name: "random",
        title: "5. Random reads",
        question: "Random reads of 4 KiB by 1 to 16 threads, under a budget of a quarter of the \
                   object: is every byte right, and does memory stay within the budget?",
        goals: vec![
            Goal::new("wrong bytes", 0.0, Aim::AtMost(0.0)),
            Goal::new("most memory over the budget, MiB", over, Aim::AtMost(32.0)),
        ],
        body: format!("{text}\n\n{}", body.trim()),
    })
}

/// The least ratio to `mmap` of each table.
fn warm_goals(body: &str) -> Vec<Goal> {
    let tables = body.split("#### ").skip(1);
    tables
        .map(|table| {
            let title = table.split([',', '(']).next().unwrap_or("").trim();
            let rows = table.lines().filter(|line| line.starts_with("| region"));
            let rows: String = rows.map(|line| format!("{line}\n")).collect();
            let best = column(&rows, 2).fold(f64::INFINITY, f64::min);
            Goal::new(format!("best region / mmap, {title}"), best, Aim::None)
        })
        .collect()
}

/// The numbers that open the cells of one column of a table.
fn column(table: &str, at: usize) -> impl Iterator<Item = f64> {
    table.lines().filter_map(move |line| {
        let cell = line.strip_prefix('|')?.split('|').nth(at)?;
        cell.split_whitespace().next()?.parse().ok()
    })
}

/// Runs a benchmark of the pager and returns what it prints.
pub(crate) fn printed(name: &str) -> Result<String, String> {
    eprintln!("  cargo bench -p extmem-pager --bench {name}");
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let cargo = env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let output = Command::new(cargo)
        .args(["bench", "-q", "-p", "extmem-pager", "--features", "bench", "--profile", "release"])
        .args(["--bench", name])
        .current_dir(root)
        .stderr(Stdio::inherit())
        .output()
        .map_err(|e| format!("cargo: {e}"))?;
    if !output.status.success() {
        return Err(format!("cargo bench --bench {name} failed: {}", output.status));
    }
    String::from_utf8(output.stdout).map_err(|_| format!("{name} printed no text"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_come_out_of_tables() {
        let body = "\n#### bare sum (measured: 0.2 ns), 11 rounds\n\nBaseline: x\n\n\
            | scan | wall | / mmap | CPU |\n| --- | --- | --- | --- |\n\
            | mmap | 0.1 s | 1.00 | 1.00 |\n| region, a | 0.3 s | 2.50 | 3.00 |\n\
            | region, b | 0.2 s | 1.50 | 2.00 |\n";
        let goals = warm_goals(body);
        assert_eq!(goals.len(), 1);
        assert_eq!(goals[0].what, "best region / mmap, bare sum");
        assert!((goals[0].measured - 1.5).abs() < 1e-9);
        assert_eq!(column("| 4 KiB | x | 1 | 2 | 3 us | 4 us | 0.5 MiB |", 6).next(), Some(0.5));
    }
}
