//! What this kernel offers, asked once.

use std::{fmt, io};

use super::{
    signal::Line,
    tables,
    uffd::{
        Descriptor, FEATURE_MOVE, FEATURE_POISON, FEATURE_WP_ASYNC, FEATURE_WP_UNPOPULATED,
        FEATURE_WRITE_FAULTS, Route, handshake, open_raw,
    },
    watch::WriteTracking,
    writes,
};

/// How missing units reach the pager.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Mode {
    /// userfaultfd that also serves system calls on missing pages.
    Full,
    /// userfaultfd for touches of the program's own; a system call on a missing page gets EFAULT,
    /// so slices given to system calls must be loaded first.
    UserModeOnly,
    /// A handler of SIGSEGV for touches of the program's own, as its limits say: see
    /// [`Builder::signal_faults`](crate::Builder::signal_faults). A system call on a missing page gets EFAULT.
    Signals,
    /// No faults: `load` and `read_at` work, `map` is refused.
    CheckedOnly,
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Mode::Full => "full userfaultfd",
            Mode::UserModeOnly => "userfaultfd, user mode only",
            Mode::Signals => "SIGSEGV handler",
            Mode::CheckedOnly => "checked API only",
        })
    }
}

/// Which modes a pager may use. The default takes the best that the kernel gives.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum ModeRequest {
    /// Full, else user mode only, else the checked API.
    #[default]
    Auto,
    /// User mode only even where full would work.
    UserModeOnly,
    /// A handler of SIGSEGV even where there is userfaultfd: see
    /// [`Builder::signal_faults`](crate::Builder::signal_faults).
    Signals,
    /// No userfaultfd at all, and no handler either.
    CheckedOnly,
}

/// What the kernel was asked and what it said.
#[derive(Clone, Debug)]
pub struct Probe {
    /// The mode that a pager with default settings runs in.
    pub mode: Mode,
    /// One line per way that was tried, with the system's answer.
    pub tried: Vec<(String, String)>,
    /// `UFFDIO_MOVE` (Linux 6.8): units are put in place without copying.
    pub can_move: bool,
    /// `UFFDIO_POISON` (Linux 6.6): a page that cannot be had raises SIGBUS instead of ending the
    /// process.
    pub can_poison: bool,
    /// Asynchronous write protection and `PAGEMAP_SCAN` (Linux 6.7), which was tried: see
    /// [`WriteTracking::Scan`].
    pub can_track_writes: bool,
    /// Whether the kernel frees a page table when the last page of its 2 MiB span is given up (Linux
    /// 6.14 on x86-64). Else it stays until the region closes, and is charged to the budget.
    pub frees_page_tables: bool,
    /// All feature bits that the kernel reported, as in `linux/userfaultfd.h`.
    pub features: u64,
}

impl fmt::Display for Probe {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "mode: {}", self.mode)?;
        for (way, answer) in &self.tried {
            writeln!(f, "  {way}: {answer}")?;
        }
        let yes_no = |yes: bool| if yes { "yes" } else { "no" };
        writeln!(f, "move: {}", yes_no(self.can_move))?;
        writeln!(f, "poison: {}", yes_no(self.can_poison))?;
        writeln!(f, "write tracking: {}", yes_no(self.can_track_writes))?;
        write!(f, "frees page tables: {}", yes_no(self.frees_page_tables))
    }
}

impl Probe {
    /// Says that faults are served by a handler of SIGSEGV, or why not.
    pub(crate) fn add_signals(&mut self, opened: &io::Result<Line>) {
        let answer = match opened {
            Ok(line) => {
                self.mode = Mode::Signals;
                self.can_poison = line.nothing().is_some();
                // To map something over a whole span takes its table away on every kernel.
                self.frees_page_tables = true;
                "works".to_owned()
            }
            Err(error) => error.to_string(),
        };
        self.tried.push(("SIGSEGV handler".to_owned(), answer));
    }
}

/// A descriptor, if there is one, and how it came about.
pub(crate) struct Opened {
    pub(crate) descriptor: Option<Descriptor>,
    pub(crate) probe: Probe,
}

/// Opens the best descriptor that `request` allows. The order is: whatever serves system calls too
/// comes first.
pub(crate) fn open_descriptor(request: ModeRequest) -> Opened {
    open_descriptor_for(request, None)
}

/// The same, where writes are to be found in the way `tracking`, or in the best that there is. One descriptor
/// has one way.
pub(crate) fn open_descriptor_for(request: ModeRequest, tracking: Option<WriteTracking>) -> Opened {
    first_of(request, |route| open(route, tracking))
}

/// The same, where `open` gives a descriptor and the features that the kernel has.
fn first_of(request: ModeRequest, open: impl Fn(Route) -> io::Result<(Descriptor, u64)>) -> Opened {
    let ways: &[(Route, Mode, &str)] = match request {
        ModeRequest::Auto => &[
            (Route::SystemCall, Mode::Full, "userfaultfd(2)"),
            (Route::Device, Mode::Full, "/dev/userfaultfd"),
            (Route::UserModeOnly, Mode::UserModeOnly, "userfaultfd(2), UFFD_USER_MODE_ONLY"),
        ],
        ModeRequest::UserModeOnly => {
            &[(Route::UserModeOnly, Mode::UserModeOnly, "userfaultfd(2), UFFD_USER_MODE_ONLY")]
        }
        ModeRequest::Signals | ModeRequest::CheckedOnly => &[],
    };
    let mut tried = Vec::new();
    for &(route, mode, name) in ways {
        match open(route) {
            Ok((descriptor, features)) => {
                tried.push((name.to_owned(), "works".to_owned()));
                let probe = Probe {
                    mode,
                    tried,
                    can_move: features & FEATURE_MOVE != 0,
                    can_poison: features & FEATURE_POISON != 0,
                    can_track_writes: features & FEATURE_WP_ASYNC != 0 && writes::are_seen(),
                    frees_page_tables: tables::are_freed(),
                    features,
                };
                return Opened { descriptor: Some(descriptor), probe };
            }
            Err(error) => tried.push((name.to_owned(), error.to_string())),
        }
    }
    let probe = Probe {
        mode: Mode::CheckedOnly,
        tried,
        can_move: false,
        can_poison: false,
        can_track_writes: false,
        frees_page_tables: tables::are_freed(),
        features: 0,
    };
    Opened { descriptor: None, probe }
}

fn open(route: Route, tracking: Option<WriteTracking>) -> io::Result<(Descriptor, u64)> {
    // A handshake happens once per descriptor, so the first one only asks.
    let offered = handshake(&open_raw(route)?, 0)?;
    let scan = FEATURE_WP_ASYNC | FEATURE_WP_UNPOPULATED | FEATURE_WRITE_FAULTS;
    let writes = match tracking {
        None if offered & scan == scan && writes::are_seen() => scan,
        Some(WriteTracking::Scan) => scan,
        None | Some(WriteTracking::Faults) => FEATURE_WRITE_FAULTS,
        Some(WriteTracking::Units) => 0,
    };
    let wanted = offered & (FEATURE_MOVE | FEATURE_POISON | writes);
    let fd = open_raw(route)?;
    handshake(&fd, wanted)?;
    Ok((Descriptor::new(fd, wanted), offered))
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use super::*;

    /// What is opened where these routes work, and what was asked for on the way.
    fn opened(request: ModeRequest, works: &[Route]) -> (Probe, Vec<Route>) {
        let asked = RefCell::new(Vec::new());
        let opened = first_of(request, |route| {
            asked.borrow_mut().push(route);
            if !works.contains(&route) {
                return Err(io::ErrorKind::PermissionDenied.into());
            }
            // Any descriptor will do: nothing is asked of it.
            let (read, _) = nix::unistd::pipe()?;
            Ok((Descriptor::new(read, 0), FEATURE_POISON))
        });
        assert_eq!(opened.descriptor.is_some(), opened.probe.mode != Mode::CheckedOnly);
        (opened.probe, asked.into_inner())
    }

    #[test]
    fn what_serves_system_calls_too_comes_first() {
        use Route::{Device, SystemCall, UserModeOnly};
        let all = [SystemCall, Device, UserModeOnly];
        let cases: [(&[Route], Mode, &[Route]); 5] = [
            (&all, Mode::Full, &[SystemCall]),
            (&[Device, UserModeOnly], Mode::Full, &[SystemCall, Device]),
            (&[SystemCall, UserModeOnly], Mode::Full, &[SystemCall]),
            // The device may be there and be root's, while this works.
            (&[UserModeOnly], Mode::UserModeOnly, &all),
            (&[], Mode::CheckedOnly, &all),
        ];
        for (works, mode, expected) in cases {
            let (probe, asked) = opened(ModeRequest::Auto, works);
            assert_eq!((probe.mode, &asked[..]), (mode, expected), "{works:?}");
            assert_eq!(probe.can_poison, mode != Mode::CheckedOnly, "{works:?}");
            // Each way that failed says why, the last one that it works.
            let answers: Vec<_> = probe.tried.iter().map(|(_, answer)| answer.as_str()).collect();
            assert_eq!(answers.len(), expected.len(), "{answers:?}");
            let failed = answers.iter().filter(|answer| **answer == "permission denied").count();
            assert_eq!(failed, expected.len() - usize::from(!works.is_empty()), "{answers:?}");
        }
        let (probe, asked) = opened(ModeRequest::UserModeOnly, &all);
        assert_eq!((probe.mode, &asked[..]), (Mode::UserModeOnly, &[UserModeOnly][..]));
        let (probe, asked) = opened(ModeRequest::CheckedOnly, &all);
        assert_eq!((probe.mode, &asked[..]), (Mode::CheckedOnly, &[][..]));
    }
}
