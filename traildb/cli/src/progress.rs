//! A bar on stderr, when that is a terminal and nothing else is written to one.

use std::io::{IsTerminal, stderr, stdout};

use indicatif::{ProgressBar, ProgressStyle};

/// A bar that counts to `total` `unit`s. Hidden where it would get in the way.
pub(crate) fn bar(total: u64, unit: &str, to_stdout: bool) -> ProgressBar {
    let seen = stderr().is_terminal() && !(to_stdout && stdout().is_terminal());
    if !seen {
        return ProgressBar::hidden();
    }
    let bar = ProgressBar::new(total);
    let template =
        format!("{{wide_bar}} {{human_pos}}/{{human_len}} {unit} {{per_sec}}, {{eta}} left");
    if let Ok(style) = ProgressStyle::with_template(&template) {
        bar.set_style(style);
    }
    bar
}
