//! What is compared, and what came of it.

use crate::tool::Output;

/// Differences that are printed in full; of more, only the number is told.
const SHOWN_MAX: usize = 20;

/// What came of the comparisons of one data set, or of all.
pub(crate) struct Report {
    equal: usize,
    differ: usize,
    fails: usize,
    verbose: bool,
}

impl Report {
    pub(crate) fn new(verbose: bool) -> Report {
        Report { equal: 0, differ: 0, fails: 0, verbose }
    }

    /// Equal, different, and failures of the C tool, which say nothing about ours.
    pub(crate) fn counts(&self) -> [usize; 3] {
        [self.equal, self.differ, self.fails]
    }

    pub(crate) fn add(&mut self, other: Report) {
        self.equal += other.equal;
        self.differ += other.differ;
        self.fails += other.fails;
    }

    /// The same question of the C tool and of ours, or of one tool about two files.
    pub(crate) fn same(&mut self, what: &str, theirs: &Output, ours: &Output) {
        match (theirs, ours) {
            (Ok(theirs), Ok(ours)) if theirs == ours => {
                self.equal += 1;
                if self.verbose {
                    println!("  equal    {what}: {} bytes", ours.len());
                }
            }
            (Ok(theirs), Ok(ours)) => self.tell(what, &difference(theirs, ours)),
            (Err(error), _) => {
                self.fails += 1;
                println!("  C fails  {what}: {error}");
            }
            (_, Err(error)) => self.tell(what, error),
        }
    }

    /// What was compared piece by piece: how much of it is equal, or how it differs.
    pub(crate) fn compared(&mut self, what: &str, outcome: Result<String, String>) {
        match outcome {
            Ok(equal) => {
                self.equal += 1;
                if self.verbose {
                    println!("  equal    {what}: {equal}");
                }
            }
            Err(how) => self.tell(what, &how),
        }
    }

    /// As [`same`](Report::same), of lines whose first two cells are UUID and time: those of equal
    /// times may come in any order.
    pub(crate) fn same_events(&mut self, what: &str, theirs: &Output, ours: &Output) {
        let sorted = |output: &Output| output.as_ref().map(|o| by_time(o)).map_err(String::clone);
        self.same(what, &sorted(theirs), &sorted(ours));
    }

    /// Something of ours that must not fail.
    pub(crate) fn works(&mut self, what: &str, ours: &Output) -> bool {
        if let Err(error) = ours {
            self.tell(what, error);
        }
        ours.is_ok()
    }

    fn tell(&mut self, what: &str, how: &str) {
        self.differ += 1;
        match self.differ {
            ..SHOWN_MAX => println!("  DIFFERS  {what}: {how}"),
            SHOWN_MAX => println!("  ... and more"),
            _ => {}
        }
    }
}

/// Lines, those that follow each other with equal UUID and time sorted by the rest.
fn by_time(output: &[u8]) -> Vec<u8> {
    let mut lines: Vec<&[u8]> = output.split_inclusive(|&byte| byte == b'\n').collect();
    let key = |line: &[u8]| {
        let ends = line.iter().enumerate().filter(|(_, byte)| **byte == b',').map(|(at, _)| at);
        ends.take(2).last().map_or(line.len(), |end| end)
    };
    for group in lines.chunk_by_mut(|a, b| a[..key(a)] == b[..key(b)]) {
        group.sort_unstable();
    }
    lines.concat()
}

/// The first line that differs.
fn difference(theirs: &[u8], ours: &[u8]) -> String {
    let split =
        |bytes: &[u8]| bytes.split(|&byte| byte == b'\n').map(<[u8]>::to_vec).collect::<Vec<_>>();
    let (theirs, ours) = (split(theirs), split(ours));
    let at =
        theirs.iter().zip(&ours).position(|(a, b)| a != b).unwrap_or(theirs.len().min(ours.len()));
    let line = |lines: &[Vec<u8>]| match lines.get(at) {
        Some(line) => format!("{:?}", String::from_utf8_lossy(&line[..line.len().min(200)])),
        None => "nothing".to_owned(),
    };
    format!(
        "{} lines, {} of ours; first at line {}: {} became {}",
        theirs.len(),
        ours.len(),
        at + 1,
        line(&theirs),
        line(&ours)
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_events_of_equal_times_may_change_places() {
        let cases = [
            ("equal times", "a,1,x\na,1,y\n", "a,1,y\na,1,x\n", true),
            ("other times", "a,1,x\na,2,y\n", "a,2,y\na,1,x\n", false),
            ("other trails", "a,1,x\nb,1,x\n", "b,1,x\na,1,x\n", false),
            ("no fields", "a,1\na,1\n", "a,1\na,1\n", true),
            ("one event less", "a,1,x\na,1,x\n", "a,1,x\n", false),
        ];
        for (what, one, other, equal) in cases {
            assert_eq!(by_time(one.as_bytes()) == by_time(other.as_bytes()), equal, "{what}");
        }
    }

    #[test]
    fn what_fails_is_told_by_whose_it_is() {
        let mut report = Report::new(false);
        let (good, bad) = (Ok(vec![1]), Err("no".to_owned()));
        report.same("both", &good, &good);
        report.same("ours", &good, &bad);
        report.same("theirs", &bad, &good);
        report.same("other bytes", &good, &Ok(vec![2]));
        report.compared("pieces", Ok("3 lines".to_owned()));
        report.compared("other pieces", Err("line 3".to_owned()));
        assert_eq!(report.counts(), [2, 3, 1]);
    }
}
