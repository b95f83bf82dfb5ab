//! `extmem doctor`: what this machine offers, and what to do about what is missing.

use std::{
    env, fs,
    io::{self, Write},
};

use pager::{Mode, Pager, Probe};
use serde_json::json;

use crate::{FAILED, Failure, LIMITED, OK, with_causes};

/// Say what this machine offers, and what to do about what is missing.
#[derive(clap::Args)]
#[command(after_help = "Exit codes: 0 everything works, 3 it works with limits, 1 it failed.\n\n\
    Examples:\n  extmem doctor\n  extmem doctor --json | jq .mode")]
pub(crate) struct Args {
    /// Print one JSON object instead of lines
    #[arg(long)]
    json: bool,
}

/// Mappings that a process may have; regions need one each, and few more.
const MAPS_NEEDED: u64 = 4096;
/// Descriptors that many connections at a time need.
const FILES_NEEDED: u64 = 1024;

/// One thing that was looked at.
struct Finding {
    name: &'static str,
    good: bool,
    found: String,
    /// What to do about it.
    remedies: Vec<String>,
}

pub(crate) fn run(args: &Args) -> Result<u8, Failure> {
    let probe = Pager::probe();
    let mut findings =
        vec![faults(&probe, &Around::look()), moving(&probe), poison(&probe), tracking(&probe)];
    findings.extend([
        page_tables(&probe),
        address_space(),
        overcommit(),
        map_count(),
        descriptors(),
    ]);
    // Whatever comes of it, what was found may say why.
    let (works, trial) = match try_it() {
        Ok(trial) => (true, trial),
        Err(why) => (false, format!("FAILED: {why}")),
    };
    let limited = findings.iter().any(|finding| !finding.good);
    let mut out = io::stdout().lock();
    let written = match args.json {
        true => print_json(&mut out, &probe, &findings, &trial),
        false => print_lines(&mut out, &probe, &findings, &trial),
    };
    written.and_then(|()| out.flush()).map_err(Failure::output)?;
    Ok(match (works, limited) {
        (false, _) => FAILED,
        (true, true) => LIMITED,
        (true, false) => OK,
    })
}

fn print_lines(
    out: &mut impl Write,
    probe: &Probe,
    findings: &[Finding],
    trial: &str,
) -> io::Result<()> {
    writeln!(out, "kernel  {}", kernel())?;
    writeln!(out, "mode    {}", probe.mode)?;
    writeln!(out, "trial   {trial}\n")?;
    for finding in findings {
        let mark = if finding.good { "ok  " } else { "note" };
        writeln!(out, "{mark}  {:<18} {}", finding.name, finding.found)?;
        for remedy in &finding.remedies {
            writeln!(out, "      {:<18} - {remedy}", "")?;
        }
    }
    Ok(())
}

fn print_json(
    out: &mut impl Write,
    probe: &Probe,
    findings: &[Finding],
    trial: &str,
) -> io::Result<()> {
    let mode = match probe.mode {
        Mode::Full => "full",
        Mode::UserModeOnly => "user_mode_only",
        Mode::Signals => "signals",
        Mode::CheckedOnly => "checked_only",
    };
    let tried: Vec<_> =
        probe.tried.iter().map(|(way, answer)| json!({"way": way, "answer": answer})).collect();
    let findings: Vec<_> = findings
        .iter()
        .map(|f| json!({"name": f.name, "ok": f.good, "found": f.found, "do": f.remedies}))
        .collect();
    let report = json!({
        "kernel": kernel(),
        "mode": mode,
        "tried": tried,
        "features": format!("{:#x}", probe.features),
        "trial": trial,
        "findings": findings,
    });
    writeln!(out, "{report}")
}

fn kernel() -> String {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    match release.trim() {
        "" => "unknown".to_owned(),
        release => format!("Linux {release}"),
    }
}

/// A real region, read by both doors. What came of it, or what went wrong.
fn try_it() -> Result<String, String> {
    let failed = |error: pager::Error| with_causes(&error);
    let pager = Pager::builder().budget_bytes(16 << 20).build().map_err(failed)?;
    let bytes: Vec<u8> = (0..1u32 << 20).map(|n| (n % 251) as u8).collect();
    let region = pager.open(sources::Memory::new("doctor", bytes)).map_err(failed)?;
    let at = 700_001;
    let loaded = region.load(at..at + 1).map_err(failed)?[0];
    if loaded != (at % 251) as u8 {
        return Err("load returned a wrong byte; please report this".to_owned());
    }
    match region.map() {
        Ok(mapped) if mapped[300_000] == (300_000 % 251) as u8 => Ok(format!(
            "a load and a page fault gave the right bytes ({} faults)",
            region.stats().faults
        )),
        Ok(_) => Err("a page fault gave a wrong byte; please report this".to_owned()),
        Err(_) => Ok("a load gave the right byte; objects cannot be mapped here".to_owned()),
    }
}

/// What decides beside the kernel whether a process gets page faults.
struct Around {
    /// `vm.unprivileged_userfaultfd`.
    unprivileged: Option<u64>,
    has_device: bool,
    in_container: bool,
    has_filters: bool,
}

impl Around {
    fn look() -> Around {
        Around {
            unprivileged: sysctl("vm/unprivileged_userfaultfd"),
            has_device: fs::metadata("/dev/userfaultfd").is_ok(),
            in_container: in_container(),
            has_filters: seccomp_filters(),
        }
    }
}

fn faults(probe: &Probe, around: &Around) -> Finding {
    let found = match probe.mode {
        Mode::Full => "faults of programs and of system calls are served".to_owned(),
        Mode::UserModeOnly => {
            "faults of programs are served; a system call on a missing page gets EFAULT, so load() \
             what you hand to one"
                .to_owned()
        }
        Mode::Signals => "faults of programs are served by a handler of SIGSEGV".to_owned(),
        Mode::CheckedOnly => {
            let tried: Vec<String> =
                probe.tried.iter().map(|(way, answer)| format!("{way}: {answer}")).collect();
            format!(
                "no userfaultfd, so load() and read_at() only, or a handler of SIGSEGV where a program asks \
                 for it, Builder::signal_faults ({})",
                tried.join("; ")
            )
        }
    };
    let mut remedies = Vec::new();
    if probe.mode != Mode::Full {
        let or = if around.unprivileged == Some(0) {
            remedies.push("as root: sysctl vm.unprivileged_userfaultfd=1".to_owned());
            "or "
        } else {
            ""
        };
        remedies.push(match around.has_device {
            true => format!(
                "{or}give this user's group /dev/userfaultfd: chgrp GROUP /dev/userfaultfd; chmod \
                 660 /dev/userfaultfd (a udev rule makes it last)"
            ),
            false => format!("{or}provide /dev/userfaultfd, on Linux 6.1 and later"),
        });
    }
    if probe.mode == Mode::CheckedOnly {
        if around.in_container {
            remedies.push(
                "in a container: --device /dev/userfaultfd, or a seccomp profile that allows \
                 userfaultfd (--security-opt seccomp=PROFILE.json)"
                    .to_owned(),
            );
        }
        if around.has_filters {
            remedies
                .push("a seccomp filter is active on this process and may forbid it".to_owned());
        }
        remedies.push("the kernel needs CONFIG_USERFAULTFD=y".to_owned());
    }
    Finding { name: "page faults", good: probe.mode == Mode::Full, found, remedies }
}

fn feature(name: &'static str, has: bool, gives: &str, without: &str, since: &str) -> Finding {
    match has {
        true => Finding { name, good: true, found: gives.to_owned(), remedies: Vec::new() },
        false => Finding {
            name,
            good: false,
            found: without.to_owned(),
            remedies: vec![format!("needs Linux {since} or later, and userfaultfd")],
        },
    }
}

fn moving(probe: &Probe) -> Finding {
    let (gives, without) =
        ("large units are put in place without copying", "every unit is copied into place");
    feature("UFFDIO_MOVE", probe.can_move, gives, without, "6.8")
}

fn poison(probe: &Probe) -> Finding {
    let gives = "a bare read of bytes that cannot be had raises SIGBUS";
    let without = "a bare read of bytes that cannot be had ends the process";
    feature("UFFDIO_POISON", probe.can_poison, gives, without, "6.6")
}

fn tracking(probe: &Probe) -> Finding {
    let (gives, without) =
        ("writes can be tracked without faults", "writes can be tracked by faults only");
    feature("write tracking", probe.can_track_writes, gives, without, "6.7")
}

/// A table is 4 KiB for each 2 MiB of an object that was ever read.
fn page_tables(probe: &Probe) -> Finding {
    let name = "page tables";
    if probe.frees_page_tables {
        let found = "freed with the memory that they describe".to_owned();
        return Finding { name, good: true, found, remedies: Vec::new() };
    }
    Finding {
        name,
        good: false,
        found: "kept until a region closes: they take up to an eighth of the budget".to_owned(),
        remedies: vec![
            "needs Linux 6.14 or later on x86-64, with CONFIG_PT_RECLAIM".to_owned(),
            "or close a region after scattered reads of more than 64 times its budget".to_owned(),
        ],
    }
}

/// A region takes as much address space as its object has bytes.
fn address_space() -> Finding {
    let name = "address space";
    match limit("Max address space") {
        Some(u64::MAX) => {
            Finding { name, good: true, found: "no limit".to_owned(), remedies: Vec::new() }
        }
        Some(bytes) => Finding {
            name,
            good: false,
            found: format!("{bytes} bytes a process: larger objects cannot be opened"),
            remedies: vec!["ulimit -v unlimited: address space costs no memory".to_owned()],
        },
        None => unknown(name),
    }
}

/// Mode 2 counts address space as if it were memory.
fn overcommit() -> Finding {
    let name = "vm.overcommit";
    match sysctl("vm/overcommit_memory") {
        Some(2) => Finding {
            name,
            good: false,
            found: "address space counts as memory: large objects cannot be opened".to_owned(),
            remedies: vec!["as root: sysctl vm.overcommit_memory=0 (or 1)".to_owned()],
        },
        Some(_) => {
            let found = "address space is free".to_owned();
            Finding { name, good: true, found, remedies: Vec::new() }
        }
        None => unknown(name),
    }
}

fn map_count() -> Finding {
    let name = "vm.max_map_count";
    match sysctl("vm/max_map_count") {
        Some(count) => Finding {
            name,
            good: count >= MAPS_NEEDED,
            found: format!("{count} mappings a process"),
            remedies: match count >= MAPS_NEEDED {
                true => Vec::new(),
                false => vec![format!("as root: sysctl vm.max_map_count={MAPS_NEEDED} or more")],
            },
        },
        None => unknown(name),
    }
}

fn descriptors() -> Finding {
    let name = "open files";
    match limit("Max open files") {
        Some(count) => Finding {
            name,
            good: count >= FILES_NEEDED,
            found: match count {
                u64::MAX => "no limit".to_owned(),
                count => format!("{count} a process"),
            },
            remedies: match count >= FILES_NEEDED {
                true => Vec::new(),
                false => vec![format!("ulimit -n {FILES_NEEDED}: each connection takes one")],
            },
        },
        None => unknown(name),
    }
}

/// The soft limit of this process that /proc calls so; `u64::MAX` if there is none.
fn limit(name: &str) -> Option<u64> {
    let limits = fs::read_to_string("/proc/self/limits").ok()?;
    let line = limits.lines().find_map(|line| line.strip_prefix(name))?;
    match line.split_whitespace().next()? {
        "unlimited" => Some(u64::MAX),
        number => number.parse().ok(),
    }
}

fn unknown(name: &'static str) -> Finding {
    let found = "cannot be read from /proc".to_owned();
    Finding { name, good: false, found, remedies: vec!["mount procfs at /proc".to_owned()] }
}

fn sysctl(name: &str) -> Option<u64> {
    fs::read_to_string(format!("/proc/sys/{name}")).ok()?.trim().parse().ok()
}

/// Docker and Podman leave a file, Kubernetes and systemd-nspawn a variable.
fn in_container() -> bool {
    let files = ["/.dockerenv", "/run/.containerenv"];
    let variables = ["KUBERNETES_SERVICE_HOST", "container"];
    files.iter().any(|path| fs::metadata(path).is_ok())
        || variables.iter().any(|name| env::var_os(name).is_some())
}

fn seccomp_filters() -> bool {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    status.lines().any(|line| line.strip_prefix("Seccomp:").is_some_and(|mode| mode.trim() == "2"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn probe(mode: Mode, tried: &[(&str, &str)]) -> Probe {
        let tried = tried.iter().map(|&(way, answer)| (way.to_owned(), answer.to_owned()));
        Probe {
            mode,
            tried: tried.collect(),
            can_move: mode != Mode::CheckedOnly,
            can_poison: mode != Mode::CheckedOnly,
            can_track_writes: mode != Mode::CheckedOnly,
            frees_page_tables: true,
            features: 0,
        }
    }

    const OPEN: Around =
        Around { unprivileged: Some(1), has_device: true, in_container: false, has_filters: false };

    /// What is advised begins with these words, in this order.
    fn advises(mode: Mode, around: &Around, expected: &[&str]) {
        let tried = [("userfaultfd(2)", "EPERM"), ("/dev/userfaultfd", "EACCES")];
        let finding = faults(&probe(mode, &tried), around);
        assert_eq!(finding.good, mode == Mode::Full);
        let advice = &finding.remedies;
        assert_eq!(advice.len(), expected.len(), "{mode}: {advice:#?}");
        for (line, start) in advice.iter().zip(expected) {
            assert!(line.starts_with(start), "{mode}: {line:?} is not {start:?}");
        }
        for (way, answer) in tried.iter().filter(|_| mode == Mode::CheckedOnly) {
            assert!(finding.found.contains(&format!("{way}: {answer}")), "{}", finding.found);
        }
    }

    #[test]
    fn each_way_to_lack_page_faults_has_its_advice() {
        let root_only = "as root: sysctl vm.unprivileged_userfaultfd=1";
        let group = "give this user's group /dev/userfaultfd: chgrp GROUP /dev/userfaultfd";
        let or_group = format!("or {group}");
        let provide = "provide /dev/userfaultfd, on Linux 6.1";
        let or_provide = format!("or {provide}");
        let container = "in a container: --device /dev/userfaultfd, or a seccomp profile";
        let filter = "a seccomp filter is active";
        let kernel = "the kernel needs CONFIG_USERFAULTFD=y";
        advises(Mode::Full, &Around { unprivileged: Some(0), ..OPEN }, &[]);
        // An ordinary user, whose device is root's or missing.
        let closed = Around { unprivileged: Some(0), ..OPEN };
        advises(Mode::UserModeOnly, &closed, &[root_only, &or_group]);
        let no_device = Around { has_device: false, ..closed };
        advises(Mode::UserModeOnly, &no_device, &[root_only, &or_provide]);
        advises(Mode::UserModeOnly, &OPEN, &[group]);
        // None at all: what keeps it away may be the kernel, a container or a filter.
        advises(Mode::CheckedOnly, &OPEN, &[group, kernel]);
        let old = Around { unprivileged: None, has_device: false, ..OPEN };
        advises(Mode::CheckedOnly, &old, &[provide, kernel]);
        let filtered = Around { has_filters: true, ..no_device };
        advises(Mode::CheckedOnly, &filtered, &[root_only, &or_provide, filter, kernel]);
        let boxed = Around { in_container: true, ..filtered };
        let all = [root_only, or_provide.as_str(), container, filter, kernel];
        advises(Mode::CheckedOnly, &boxed, &all);
    }

    #[test]
    fn what_the_kernel_lacks_says_since_when_it_is_there() {
        let none = probe(Mode::CheckedOnly, &[]);
        for (finding, since) in
            [(moving(&none), "6.8"), (poison(&none), "6.6"), (tracking(&none), "6.7")]
        {
            assert!(!finding.good, "{}", finding.name);
            assert!(
                finding.remedies[0].contains(since),
                "{}: {:?}",
                finding.name,
                finding.remedies
            );
        }
        let full = probe(Mode::Full, &[]);
        assert!([moving(&full), poison(&full), tracking(&full)].iter().all(|finding| finding.good));
    }
}
