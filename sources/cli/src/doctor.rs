//! `extmem doctor`: what this machine offers, and what to do about what is missing.

use std::{
    fs,
    io::{self, Write},
};

use pager::{Mode, Pager, Probe};
use serde_json::json;

use crate::{Failure, LIMITED, OK};

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
    let mut findings = vec![faults(&probe), moving(&probe), poison(&probe), tracking(&probe)];
    findings.extend([map_count(), descriptors()]);
    let works = try_it().map_err(Failure::from)?;
    let limited = findings.iter().any(|finding| !finding.good);
    let mut out = io::stdout().lock();
    let written = match args.json {
        true => print_json(&mut out, &probe, &findings, &works),
        false => print_lines(&mut out, &probe, &findings, &works),
    };
    written.and_then(|()| out.flush()).map_err(Failure::output)?;
    Ok(if limited { LIMITED } else { OK })
}

fn print_lines(
    out: &mut impl Write,
    probe: &Probe,
    findings: &[Finding],
    works: &str,
) -> io::Result<()> {
    writeln!(out, "kernel  {}", kernel())?;
    writeln!(out, "mode    {}", probe.mode)?;
    writeln!(out, "trial   {works}\n")?;
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
    works: &str,
) -> io::Result<()> {
    let mode = match probe.mode {
        Mode::Full => "full",
        Mode::UserModeOnly => "user_mode_only",
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
        "trial": works,
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

/// A real region, read by both doors.
fn try_it() -> Result<String, pager::Error> {
    let pager = Pager::builder().budget_bytes(16 << 20).build()?;
    let bytes: Vec<u8> = (0..1u32 << 20).map(|n| (n % 251) as u8).collect();
    let region = pager.open(sources::Memory::new("doctor", bytes))?;
    let at = 700_001;
    let loaded = region.load(at..at + 1)?[0];
    let expected = (at % 251) as u8;
    if loaded != expected {
        return Ok("FAILED: load returned a wrong byte; please report this".to_owned());
    }
    match region.map() {
        Ok(mapped) if mapped[300_000] == (300_000 % 251) as u8 => Ok(format!(
            "a load and a page fault gave the right bytes ({} faults)",
            region.stats().faults
        )),
        Ok(_) => Ok("FAILED: a page fault gave a wrong byte; please report this".to_owned()),
        Err(_) => Ok("a load gave the right byte; objects cannot be mapped here".to_owned()),
    }
}

fn faults(probe: &Probe) -> Finding {
    let found = match probe.mode {
        Mode::Full => "faults of programs and of system calls are served".to_owned(),
        Mode::UserModeOnly => {
            "faults of programs are served; a system call on a missing page gets EFAULT, so load() \
             what you hand to one"
                .to_owned()
        }
        Mode::CheckedOnly => {
            let tried: Vec<String> =
                probe.tried.iter().map(|(way, answer)| format!("{way}: {answer}")).collect();
            format!("no userfaultfd, so load() and read_at() only ({})", tried.join("; "))
        }
    };
    let mut remedies = Vec::new();
    if probe.mode != Mode::Full {
        if sysctl("vm/unprivileged_userfaultfd") == Some(0) {
            remedies.push("as root: sysctl vm.unprivileged_userfaultfd=1".to_owned());
        }
        if fs::metadata("/dev/userfaultfd").is_ok() {
            remedies.push(
                "or give this user's group /dev/userfaultfd: chgrp GROUP /dev/userfaultfd; chmod \
                 660 /dev/userfaultfd (a udev rule makes it last)"
                    .to_owned(),
            );
        } else {
            remedies.push("or, on Linux 6.1 and later, provide /dev/userfaultfd".to_owned());
        }
    }
    if probe.mode == Mode::CheckedOnly {
        if in_container() {
            remedies.push(
                "in a container: --device /dev/userfaultfd, or a seccomp profile that allows \
                 userfaultfd (--security-opt seccomp=PROFILE.json)"
                    .to_owned(),
            );
        }
        if seccomp_filters() {
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
    let limits = fs::read_to_string("/proc/self/limits").unwrap_or_default();
    let line = limits.lines().find_map(|line| line.strip_prefix("Max open files"));
    let soft = line.and_then(|rest| rest.split_whitespace().next());
    let count = match soft {
        Some("unlimited") => Some(u64::MAX),
        Some(number) => number.parse().ok(),
        None => None,
    };
    match count {
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

fn unknown(name: &'static str) -> Finding {
    let found = "cannot be read from /proc".to_owned();
    Finding { name, good: false, found, remedies: vec!["mount procfs at /proc".to_owned()] }
}

fn sysctl(name: &str) -> Option<u64> {
    fs::read_to_string(format!("/proc/sys/{name}")).ok()?.trim().parse().ok()
}

fn in_container() -> bool {
    fs::metadata("/.dockerenv").is_ok() || fs::metadata("/run/.containerenv").is_ok()
}

fn seccomp_filters() -> bool {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    status.lines().any(|line| line.strip_prefix("Seccomp:").is_some_and(|mode| mode.trim() == "2"))
}
