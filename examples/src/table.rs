//! Figures in columns.

use std::fmt::{self, Display};

/// Rows of text under a head; the first column is flush left, the others right.
pub struct Table {
    rows: Vec<Vec<String>>,
}

impl Table {
    /// A table with these column heads.
    pub fn new<const N: usize>(heads: [&str; N]) -> Table {
        Table { rows: vec![heads.map(str::to_owned).to_vec()] }
    }

    /// Adds a row with a cell for each column.
    ///
    /// # Panics
    /// When there are more or fewer.
    pub fn row<const N: usize>(&mut self, cells: [String; N]) {
        assert_eq!(N, self.rows[0].len(), "a cell for each column");
        self.rows.push(cells.to_vec());
    }
}

impl Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let width = |column: usize| self.rows.iter().map(|row| row[column].chars().count()).max();
        let widths: Vec<_> = (0..self.rows[0].len()).map(|c| width(c).unwrap_or(0)).collect();
        for (at, row) in self.rows.iter().enumerate() {
            for (column, (cell, &width)) in row.iter().zip(&widths).enumerate() {
                match column {
                    0 => write!(f, "{cell:<width$}")?,
                    _ => write!(f, "  {cell:>width$}")?,
                }
            }
            writeln!(f)?;
            if at == 0 {
                let total = widths.iter().sum::<usize>() + 2 * (widths.len() - 1);
                writeln!(f, "{}", "-".repeat(total))?;
            }
        }
        Ok(())
    }
}

/// Milliseconds below ten seconds, seconds above.
pub fn time(time: std::time::Duration) -> String {
    match time.as_millis() {
        ms @ ..10_000 => format!("{ms} ms"),
        _ => format!("{:.1} s", time.as_secs_f64()),
    }
}

/// Megabytes of a million bytes.
pub fn megabytes(bytes: u64) -> String {
    format!("{:.1} MB", bytes as f64 / 1e6)
}

/// Dollars with as many places as it takes to see them.
pub fn dollars(usd: f64) -> String {
    format!("${usd:.6}")
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn columns_line_up() {
        let mut table = Table::new(["way", "bytes"]);
        table.row(["faults".into(), "5".into()]);
        table.row(["download".into(), "12345".into()]);
        let expected = "way       bytes\n---------------\nfaults        5\ndownload  12345\n";
        assert_eq!(table.to_string(), expected);
    }

    #[test]
    fn figures_have_their_units() {
        assert_eq!(time(Duration::from_millis(1234)), "1234 ms");
        assert_eq!(time(Duration::from_millis(12_345)), "12.3 s");
        assert_eq!(megabytes(1_250_000), "1.2 MB");
        assert_eq!(dollars(0.0000044), "$0.000004");
    }
}
