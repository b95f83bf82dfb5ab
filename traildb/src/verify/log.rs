//! Findings: counted all, kept within a bound, from any thread.

use std::sync::{Mutex, MutexGuard, PoisonError};

use super::{Finding, Report, Severity};
use crate::error::Error;

/// Collects findings.
pub(super) struct Log {
    max: usize,
    inner: Mutex<Report>,
}

impl Log {
    pub(super) fn new(max: usize) -> Log {
        Log { max, inner: Mutex::default() }
    }

    /// A reader fails at `offset` of `member`, or reads something else than was written.
    pub(super) fn error(&self, member: &str, offset: u64, reason: impl Into<String>) {
        self.add(Severity::Error, member, offset, None, reason.into());
    }

    /// A rule that no reader depends on is broken.
    pub(super) fn warning(&self, member: &str, offset: u64, reason: impl Into<String>) {
        self.add(Severity::Warning, member, offset, None, reason.into());
    }

    /// An error in a trail.
    pub(super) fn trail(&self, trail: u64, member: &str, offset: u64, reason: impl Into<String>) {
        self.add(Severity::Error, member, offset, Some(trail), reason.into());
    }

    /// Damage becomes a finding; anything else, such as a storage that fails, ends the check.
    pub(super) fn take<T>(&self, result: Result<T, Error>) -> Result<Option<T>, Error> {
        self.take_in(None, result)
    }

    /// [`take`](Log::take) where the damage is in `trail`.
    pub(super) fn take_in<T>(
        &self,
        trail: Option<u64>,
        result: Result<T, Error>,
    ) -> Result<Option<T>, Error> {
        match result {
            Ok(value) => Ok(Some(value)),
            Err(Error::Damaged { member, offset, reason, .. }) => {
                self.add(Severity::Error, &member, offset, trail, reason);
                Ok(None)
            }
            Err(Error::Version { version, .. }) => {
                let reason = format!("version {version}; 0 and 1 are known");
                self.add(Severity::Error, "version", 0, None, reason);
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    /// Whether an error of this member is known.
    pub(super) fn has_errors(&self, member: &str) -> bool {
        self.lock().by_member.get(member).is_some_and(|&(errors, _)| errors > 0)
    }

    fn add(
        &self,
        severity: Severity,
        member: &str,
        offset: u64,
        trail: Option<u64>,
        reason: String,
    ) {
        let mut report = self.lock();
        let member = member.to_owned();
        let of_member = report.by_member.entry(member.clone()).or_default();
        let seen = of_member.0 + of_member.1;
        match severity {
            Severity::Error => of_member.0 += 1,
            Severity::Warning => of_member.1 += 1,
        }
        match severity {
            Severity::Error => report.errors += 1,
            Severity::Warning => report.warnings += 1,
        }
        // The first of each member are kept, so that one bad member does not hide another.
        if seen < self.max as u64 && report.findings.len() < self.max.saturating_mul(16) {
            report.findings.push(Finding { severity, member, offset, trail, reason });
        }
    }

    pub(super) fn into_report(self) -> Report {
        let mut report = self.inner.into_inner().unwrap_or_else(PoisonError::into_inner);
        // A sort that keeps findings of one place in the order in which they were made.
        report.findings.sort_by(|a, b| {
            (a.severity, &a.member, a.offset).cmp(&(b.severity, &b.member, b.offset))
        });
        report.findings.truncate(self.max);
        report
    }

    fn lock(&self) -> MutexGuard<'_, Report> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
