//! Tables for people: columns as wide as their widest cell.

/// How the cells of a column are aligned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Align {
    Left,
    Right,
}

/// Rows of text cells under a head.
pub(crate) struct Table {
    columns: Vec<(&'static str, Align)>,
    rows: Vec<Vec<String>>,
}

impl Table {
    /// A table with these columns.
    pub(crate) fn new(columns: &[(&'static str, Align)]) -> Table {
        Table { columns: columns.to_vec(), rows: Vec::new() }
    }

    /// Adds a row, a cell for each column.
    pub(crate) fn row(&mut self, cells: impl IntoIterator<Item = String>) {
        let row: Vec<String> = cells.into_iter().collect();
        debug_assert_eq!(row.len(), self.columns.len());
        self.rows.push(row);
    }

    /// The table, every line after `indent`, with two spaces between columns.
    pub(crate) fn render(&self, indent: &str) -> String {
        let width = |text: &str| text.chars().count();
        let wide: Vec<usize> = self
            .columns
            .iter()
            .enumerate()
            .map(|(k, (head, _))| {
                self.rows.iter().map(|row| width(&row[k])).max().unwrap_or(0).max(width(head))
            })
            .collect();
        let head = self.columns.iter().map(|(head, _)| (*head).to_owned()).collect();
        let mut text = String::new();
        for row in std::iter::once(&head).chain(&self.rows) {
            let mut line = indent.to_owned();
            for (k, cell) in row.iter().enumerate() {
                if k > 0 {
                    line.push_str("  ");
                }
                let fill = " ".repeat(wide[k] - width(cell));
                match self.columns[k].1 {
                    Align::Left => line.extend([cell.as_str(), &fill]),
                    Align::Right => line.extend([&fill, cell.as_str()]),
                }
            }
            text.push_str(line.trim_end());
            text.push('\n');
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_they_must() {
        let mut table = Table::new(&[("name", Align::Left), ("n", Align::Right)]);
        table.row(["\u{17c}\u{17c}\u{17c}\u{17c}\u{17c}".to_owned(), "1".to_owned()]);
        table.row(["b".to_owned(), "100".to_owned()]);
        let expected = "  name     n\n  \u{17c}\u{17c}\u{17c}\u{17c}\u{17c}    1\n  b      100\n";
        assert_eq!(table.render("  "), expected);
    }
}
