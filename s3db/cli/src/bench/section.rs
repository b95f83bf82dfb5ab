//! Sections of BENCHMARKS.md: their place in the file, and tables. Knows nothing of the rest of the program:
//! `s3db/peer` has it too.

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
        // In one step: whoever is stopped here leaves the file as it was.
        let mut aside = file.as_os_str().to_owned();
        aside.push(format!(".{}.new", std::process::id()));
        let put = fs::write(&aside, self.replaced(&old)).and_then(|()| match fs::metadata(file) {
            Ok(about) => fs::set_permissions(&aside, about.permissions()),
            Err(_) => Ok(()),
        });
        put.and_then(|()| fs::rename(&aside, file)).inspect_err(|_| {
            let _ = fs::remove_file(&aside);
        })
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
}
