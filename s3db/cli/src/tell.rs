//! Words on standard error. Nobody may hear them: it is full, or closed, and what a command does goes on.

/// [`eprintln!`] that does not panic where nobody hears it.
macro_rules! tell {
    ($($what:tt)*) => {{
        use std::io::Write as _;
        let _ = writeln!(std::io::stderr(), $($what)*);
    }};
}

/// The same without the end of the line.
macro_rules! tell_on {
    ($($what:tt)*) => {{
        use std::io::Write as _;
        let _ = write!(std::io::stderr(), $($what)*);
    }};
}
