//! Bars on stderr, when that is a terminal and nothing else is written to one.

use std::{
    fmt,
    io::{IsTerminal, stderr, stdout},
    time::Duration,
};

use indicatif::{HumanCount, ProgressBar, ProgressState, ProgressStyle};

/// A bar that counts to `total` `unit`s. Hidden where it would get in the way.
pub(crate) fn bar(total: u64, unit: &str, to_stdout: bool) -> ProgressBar {
    if !is_seen(to_stdout) {
        return ProgressBar::hidden();
    }
    let template =
        format!("{{wide_bar}} {{human_pos}}/{{human_len}} {unit} {{rate}}, {{eta}} left");
    styled(ProgressBar::new(total), &template)
}

/// A bar for bytes read, of `total`; 0 where nobody knows how many there are.
pub(crate) fn reading(total: u64) -> ProgressBar {
    if !is_seen(false) {
        return ProgressBar::hidden();
    }
    match total {
        0 => {
            let bar = ProgressBar::new_spinner();
            bar.enable_steady_tick(Duration::from_millis(200));
            styled(bar, "{spinner} {binary_bytes} read, {binary_bytes_per_sec}, {elapsed}")
        }
        total => styled(
            ProgressBar::new(total),
            "{wide_bar} {binary_bytes}/{binary_total_bytes} {binary_bytes_per_sec}, {eta} left",
        ),
    }
}

/// A sign of life for work whose end is not known.
pub(crate) fn working(what: &str) -> ProgressBar {
    if !is_seen(false) {
        return ProgressBar::hidden();
    }
    let bar = styled(ProgressBar::new_spinner(), "{spinner} {msg}, {elapsed}");
    bar.set_message(what.to_owned());
    bar.enable_steady_tick(Duration::from_millis(200));
    bar
}

/// How many of them a second: whole ones, unless these are few.
fn rate(state: &ProgressState, out: &mut dyn fmt::Write) {
    // What cannot be written is seen by nobody.
    let _ = match state.per_sec() {
        few if few < 9.95 => write!(out, "{few:.1}/s"),
        many => write!(out, "{}/s", HumanCount(many.round() as u64)),
    };
}

fn is_seen(to_stdout: bool) -> bool {
    stderr().is_terminal() && !(to_stdout && stdout().is_terminal())
}

fn styled(bar: ProgressBar, template: &str) -> ProgressBar {
    if let Ok(style) = ProgressStyle::with_template(template) {
        bar.set_style(style.with_key("rate", rate));
    }
    bar
}
