//! Many transactions, one swap: who gets a number, who is aborted, who waits.
//!
//! All of it is decided on one view of the sequencer, without any I/O.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::{
    blob::Blob,
    catalog::Isolation,
    cloud::{ETag, Fault},
    error::{AbortCause, StoreError, with_cause},
    page::PageId,
    sequence::{
        codec::{Commit, NUMBERS, Numbers, Write, date_of},
        window::{Reads, View, both_write},
    },
    settings::{Rule, Settings},
};

/// Transactions in one swap.
pub(super) const BATCH_MAX: usize = 256;
/// Bytes of what a transaction writes that lie in the sequencer itself.
pub(super) const INLINE_BYTES: usize = 2 << 10;
/// Bytes of what one transaction writes.
pub(crate) const WRITES_BYTES_MAX: usize = 8 << 20;
/// Bytes of the window in the sequencer: what each swap puts.
const WINDOW_BYTES_MAX: usize = 256 << 10;
/// Bytes of what the commits of the window write, wherever that lies: what each reader has in memory.
const DATA_BYTES_MAX: usize = 4 * WRITES_BYTES_MAX;
/// Commits of a window at most, whatever is set.
const WINDOW_COMMITS_MAX: usize = 10_000;
/// Clients whose newest life is remembered. Once there are as many, one that is not among them may have been: its
/// object tells (see [`Plan::unproven`]).
pub(crate) const LIVES_MAX: usize = 1000;
/// Whose commits have no life that could be over: of each it is known from its snapshot alone whether it still counts.
/// No client has that name, as an epoch is a time.
pub(super) const NO_LIFE: (u64, u64) = (0, 0);
/// Dates that are remembered, and how many of them fall into the age of a snapshot.
const DATES_MAX: usize = 64;
const DATES_PER_AGE: u64 = 8;

/// A transaction that wants a number.
pub(crate) struct Submission {
    pub(super) id: u128,
    pub(super) client: u64,
    pub(super) epoch: u64,
    /// `None`: it has read nothing, so it is as if it began now.
    pub(super) snapshot: Option<u64>,
    pub(super) isolation: Isolation,
    pub(super) reads: Reads,
    pub(super) writes: Arc<[Write]>,
    /// The object that has its writes.
    pub(super) object: Option<(String, u32)>,
    /// The collections that it writes to, and the indexes of each that it knew.
    indexes: Vec<(PageId, Vec<PageId>)>,
    progress: Mutex<Progress>,
}

#[derive(Clone, Default)]
pub(super) struct Progress {
    /// It was in a swap of which it is not known what came.
    pub(super) tried: Option<Tried>,
    /// What came of it.
    pub(super) outcome: Option<Result<u64, StoreError>>,
    /// What the client's own object said of its life.
    pub(super) life: Option<Life>,
    /// The leaves that it writes to could be read, after others could not.
    pub(super) is_readable: bool,
}

/// What is known of a life that the sequencer does not know.
#[derive(Clone)]
pub(super) enum Life {
    /// It was the newest, after this version of the numbers was read: no later one has committed in it.
    NewestIn(ETag),
    /// It is over, and stays so.
    Over,
}

/// Swaps that may have happened.
#[derive(Clone)]
pub(super) struct Tried {
    /// The last commit when it was tried for the first time: what is committed is behind that.
    pub(super) from: u64,
    /// The version that the newest of them would replace: while that is there, it may still happen.
    pub(super) over: ETag,
}

impl Submission {
    pub(super) fn new(
        id: u128,
        (client, epoch): (u64, u64),
        snapshot: Option<u64>,
        isolation: Isolation,
        reads: Reads,
        writes: Arc<[Write]>,
        object: Option<(String, u32)>,
    ) -> Submission {
        let (indexes, progress) = Default::default();
        Submission {
            id,
            client,
            epoch,
            snapshot,
            isolation,
            reads,
            writes,
            object,
            indexes,
            progress,
        }
    }

    /// The same: its writes have the entries of these indexes, by collection, and of no others.
    pub(super) fn knowing(mut self, indexes: Vec<(PageId, Vec<PageId>)>) -> Submission {
        self.indexes = indexes;
        self
    }

    /// Whether the indexes of what it writes are those that it knew.
    fn knows(&self, numbers: &Numbers) -> bool {
        let same = |(tree, roots): &(PageId, Vec<PageId>)| {
            numbers.indexes_of(*tree).iter().map(|index| index.root).eq(roots.iter().copied())
        };
        self.indexes.iter().all(same)
    }

    pub(super) fn progress(&self) -> MutexGuard<'_, Progress> {
        self.progress.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What it names that was put the longest ago: when, in microseconds since 1970, and the object.
    fn oldest(&self) -> Option<(u64, String)> {
        // Of an object whose name tells no age nothing is known.
        let data = self.object.as_ref().map(|(name, _)| {
            (date_of(name).map_or(0, |put_ms| put_ms.saturating_mul(1000)), name.clone())
        });
        let blobs = self.writes.iter().filter_map(Write::blob).map(Blob::stamp);
        let blob = blobs.min().map(|stamp| (stamp.clock, crate::blob_id::object(stamp, 0)));
        data.into_iter().chain(blob).min()
    }

    fn commit(&self, date_ms: u64) -> Commit {
        Commit {
            id: self.id,
            client: self.client,
            epoch: self.epoch,
            date_ms,
            object: self.object.clone(),
            writes: self.writes.clone(),
        }
    }
}

/// What one swap is to do.
pub(super) struct Plan {
    /// What is known without it, by place in the batch.
    pub(super) settled: Vec<(usize, Result<u64, StoreError>)>,
    /// Who gets which number by it.
    pub(super) taken: Vec<(usize, u64)>,
    /// For whom there is no room until some commits are on their pages.
    pub(super) crowded: Vec<usize>,
    /// Whose life is not among those that the sequencer remembers, which are as many as it does: a later one may
    /// have committed before so many others. Asked is the client's object, after the numbers were read; what is
    /// put over just these is then by a life that was the newest.
    pub(super) unproven: Vec<usize>,
    /// Some cannot be judged: the view is older than their snapshots.
    pub(super) is_old: bool,
    /// What it puts.
    pub(super) next: Numbers,
}

/// Decides. `now_ms` is the object store's time.
pub(super) fn plan(
    view: &View,
    batch: &[Arc<Submission>],
    now_ms: u64,
    settings: &Settings,
) -> Plan {
    let next = view.numbers.clone();
    let (settled, taken, crowded, unproven) = Default::default();
    let mut plan = Plan { settled, taken, crowded, unproven, is_old: false, next };
    for (place, submission) in batch.iter().enumerate() {
        let verdict = judge(view, submission, now_ms, settings);
        let tried = submission.progress().tried.clone();
        match verdict {
            Verdict::Settled(Err(_)) if tried.is_some_and(|tried| tried.over == view.etag) => {
                // What it was tried on is still there: it may happen yet.
                plan.settled.push((place, Err(unknown())));
            }
            Verdict::Settled(outcome) => plan.settled.push((place, outcome)),
            Verdict::Old => plan.is_old = true,
            Verdict::Unproven => plan.unproven.push(place),
            Verdict::Fits => {
                let in_the_way = plan.taken.iter().any(|(at, _)| meet(&batch[*at], submission));
                if in_the_way && settings.rules.hold(Rule::WriteCheck) {
                    // It is judged by what becomes of the others.
                    continue;
                }
                // A later life of its client, in this swap: then this one is fenced.
                if settings.rules.hold(Rule::EpochFence) && is_over(&plan.next, submission) {
                    continue;
                }
                if !has_room(&plan.next, submission, settings) {
                    if plan.taken.is_empty() {
                        plan.crowded.push(place);
                    }
                    continue;
                }
                plan.taken.push((place, admit(&mut plan.next, submission, now_ms, settings)));
            }
        }
    }
    trim(&mut plan.next, settings);
    plan
}

/// Whether a later life of the same client has committed.
fn is_over(numbers: &Numbers, it: &Submission) -> bool {
    if (it.client, it.epoch) == NO_LIFE {
        // A client may have that name; whoever builds an index has none.
        return false;
    }
    let newest = numbers.lives.iter().find(|(client, ..)| *client == it.client);
    newest.is_some_and(|(_, epoch, _)| *epoch > it.epoch)
}

enum Verdict {
    Settled(Result<u64, StoreError>),
    Fits,
    Old,
    Unproven,
}

fn judge(view: &View, it: &Submission, now_ms: u64, settings: &Settings) -> Verdict {
    let numbers = &view.numbers;
    let rules = settings.rules;
    let aside = numbers.aside.iter().map(|(number, commit)| (*number, commit));
    let found = numbers.numbered().chain(aside).find(|(_, commit)| commit.id == it.id);
    if let Some((number, _)) = found {
        return Verdict::Settled(Ok(number));
    }
    if it.progress().tried.as_ref().is_some_and(|tried| tried.from < numbers.floor()) {
        return Verdict::Settled(Err(unknown()));
    }
    let is_remembered = numbers.lives.iter().any(|(client, ..)| *client == it.client);
    let has_none = (it.client, it.epoch) == NO_LIFE;
    let life = match has_none || is_remembered || numbers.lives.len() < LIVES_MAX {
        true => None,
        false => Some(it.progress().life.clone()),
    };
    let is_over = is_over(numbers, it) || matches!(life, Some(Some(Life::Over)));
    if is_over && rules.hold(Rule::EpochFence) {
        let (client, epoch) = (it.client, it.epoch);
        return Verdict::Settled(Err(StoreError::Fenced { client, epoch }));
    }
    let abort = |why| Verdict::Settled(Err(StoreError::Aborted { why }));
    let snapshot = it.snapshot.unwrap_or(numbers.last);
    if snapshot > numbers.last {
        return Verdict::Old;
    }
    // Entries that it has not, or has for nobody.
    if !it.knows(numbers) && rules.hold(Rule::KnownIndexes) {
        return abort(AbortCause::Indexes);
    }
    // What commits up to the floor wrote is not known here.
    if snapshot < view.floor {
        return abort(AbortCause::Old { snapshot, oldest: view.floor });
    }
    for (_, commit) in numbers.numbered().filter(|(number, _)| *number > snapshot) {
        let written = both_write(&it.writes, &commit.writes);
        if let Some(write) = written.filter(|_| rules.hold(Rule::WriteCheck)) {
            return abort(AbortCause::Written { key: write.key.escape_ascii().to_string() });
        }
        let is_checked = it.isolation == Isolation::Serializable && rules.hold(Rule::ReadCheck);
        if let Some(write) = it.reads.changed_by(&commit.writes).filter(|_| is_checked) {
            return abort(AbortCause::Read { key: write.key.escape_ascii().to_string() });
        }
    }
    if let Some((put_us, object)) = it.oldest()
        && rules.hold(Rule::DataAge)
        && (now_ms * 1000).saturating_sub(put_us) > settings.commit_age_us()
    {
        // Garbage collection may be about to take it. What was tried may be committed, for all that is known.
        if it.progress().tried.is_some() {
            return Verdict::Settled(Err(unknown()));
        }
        return abort(AbortCause::Late { object });
    }
    match life {
        None => Verdict::Fits,
        Some(Some(Life::NewestIn(etag))) if etag == view.etag => Verdict::Fits,
        Some(_) if rules.hold(Rule::EpochFence) => Verdict::Unproven,
        Some(_) => Verdict::Fits,
    }
}

/// Whether `later` cannot have a number next to `earlier`, in one swap.
fn meet(earlier: &Submission, later: &Submission) -> bool {
    both_write(&later.writes, &earlier.writes).is_some()
        || later.isolation == Isolation::Serializable
            && later.reads.changed_by(&earlier.writes).is_some()
}

fn unapplied(numbers: &Numbers) -> impl Iterator<Item = &Commit> {
    let applied = numbers.applied;
    numbers.numbered().filter(move |(number, _)| *number > applied).map(|(_, commit)| commit)
}

pub(super) fn commits_max(settings: &Settings) -> usize {
    settings.window_commits_max.clamp(1, WINDOW_COMMITS_MAX)
}

/// Whether another commit fits beside those that are not on their pages.
fn has_room(numbers: &Numbers, it: &Submission, settings: &Settings) -> bool {
    let new = it.commit(0);
    let all = || unapplied(numbers).chain([&new]);
    all().count() <= commits_max(settings)
        && all().map(Commit::bytes).sum::<usize>() <= WINDOW_BYTES_MAX
        && all().map(Commit::data_bytes).sum::<usize>() <= DATA_BYTES_MAX
}

/// Whether another commit can be put aside: half as much as the window has room for.
pub(super) fn has_room_aside(numbers: &Numbers, commit: &Commit, settings: &Settings) -> bool {
    let all = || numbers.aside.iter().map(|(_, commit)| commit).chain([commit]);
    all().count() <= commits_max(settings).div_ceil(2)
        && all().map(Commit::bytes).sum::<usize>() <= WINDOW_BYTES_MAX / 2
        && all().map(Commit::data_bytes).sum::<usize>() <= DATA_BYTES_MAX / 2
}

/// Whether the window has too much that is not on its pages for work to wait.
pub(super) fn is_pressing(numbers: &Numbers, settings: &Settings) -> bool {
    unapplied(numbers).count() > commits_max(settings) / 2
        || unapplied(numbers).map(Commit::bytes).sum::<usize>() > WINDOW_BYTES_MAX / 2
        || unapplied(numbers).map(Commit::data_bytes).sum::<usize>() > DATA_BYTES_MAX / 2
}

/// Gives a transaction the next number.
fn admit(numbers: &mut Numbers, it: &Submission, now_ms: u64, settings: &Settings) -> u64 {
    let before_ms = numbers.commits.last().map_or(0, |commit| commit.date_ms);
    let before_ms = numbers.dates.last().map_or(before_ms, |date| date.1.max(before_ms));
    let date_ms = now_ms.max(before_ms);
    numbers.last += 1;
    let number = numbers.last;
    numbers.commits.push(it.commit(date_ms));
    let apart_ms = settings.snapshot_age.as_millis() as u64 / DATES_PER_AGE;
    let is_due = numbers.dates.last().is_none_or(|(_, last_ms)| date_ms >= last_ms + apart_ms);
    if is_due && numbers.dates.len() < DATES_MAX {
        numbers.dates.push((number, date_ms));
    }
    if (it.client, it.epoch) == NO_LIFE {
        return number;
    }
    let life = (it.client, it.epoch, number);
    match numbers.lives.binary_search_by_key(&it.client, |(client, ..)| *client) {
        Ok(at) => numbers.lives[at] = life,
        Err(at) => {
            numbers.lives.insert(at, life);
            if numbers.lives.len() > LIVES_MAX {
                let oldest = numbers.lives.iter().enumerate().min_by_key(|(_, life)| life.2);
                let at = oldest.map_or(0, |(at, _)| at);
                numbers.lives.remove(at);
            }
        }
    }
    number
}

/// Drops commits that are on their pages, the oldest first, as many as are too many.
pub(super) fn trim(numbers: &mut Numbers, settings: &Settings) {
    let mut bytes: usize = numbers.commits.iter().map(Commit::bytes).sum();
    let mut data: usize = numbers.commits.iter().map(Commit::data_bytes).sum();
    let mut dropped = 0;
    for (number, commit) in numbers.numbered() {
        let left = numbers.commits.len() - dropped;
        let is_fine =
            left <= commits_max(settings) && bytes <= WINDOW_BYTES_MAX && data <= DATA_BYTES_MAX;
        if is_fine || number > numbers.applied {
            break;
        }
        bytes -= commit.bytes();
        data -= commit.data_bytes();
        dropped += 1;
    }
    numbers.commits.drain(..dropped);
}

/// Moves the horizon to what no snapshot sees that is young enough.
pub(super) fn advance(numbers: &mut Numbers, now_ms: u64, settings: &Settings) {
    let before_ms = now_ms.saturating_sub(settings.snapshot_age.as_millis() as u64);
    let old = numbers.dates.iter().rev().find(|(_, date_ms)| *date_ms < before_ms);
    // Of those of the window each has a date.
    let in_window = numbers.numbered().rev().find(|(_, commit)| commit.date_ms < before_ms);
    let number = old.map(|(number, _)| *number).max(in_window.map(|(number, _)| number));
    if let Some(number) = number {
        numbers.horizon = numbers.horizon.max(number.min(numbers.applied));
    }
    let horizon = numbers.horizon;
    numbers.dates.retain(|(number, _)| *number > horizon);
}

/// What nobody can tell any more, or not yet.
fn unknown() -> StoreError {
    let what = NUMBERS.to_owned();
    let cause = "a swap had no answer, and may have happened".to_owned();
    StoreError::CommitUnknown { source: Fault::Unknown { what, cause } }
}

/// There is no room for another commit until some are on their pages. `why`: what kept them from that.
pub(super) fn full(numbers: &Numbers, why: Option<&StoreError>, was_tried: bool) -> StoreError {
    let lasting = why.filter(|why| !why.is_passing()).map(with_cause);
    let commits = numbers.last - numbers.applied;
    let what = format!("{NUMBERS}, where {commits} commits wait for their pages");
    match lasting {
        Some(why) if was_tried => {
            let source = Fault::Throttled { what: format!("{what}: {why}") };
            StoreError::CommitUnknown { source }
        }
        Some(why) => StoreError::Stuck { commits, why },
        None if was_tried => StoreError::CommitUnknown { source: Fault::Throttled { what } },
        None => StoreError::Cloud { attempts: 1, source: Fault::Throttled { what } },
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::{blob::Value, page::PageId, stamp::Stamp};

    fn writes(keys: &[&'static str]) -> Arc<[Write]> {
        let write = |key: &&'static str| Write {
            tree: PageId(1),
            key: Bytes::from_static(key.as_bytes()),
            payload: None,
        };
        keys.iter().map(write).collect()
    }

    fn submission(
        id: u128,
        snapshot: Option<u64>,
        reads: &[&str],
        keys: &[&'static str],
    ) -> Arc<Submission> {
        let mut read = Reads::default();
        reads.iter().for_each(|key| read.point(PageId(1), key.as_bytes()));
        let level = Isolation::Serializable;
        let it = Submission::new(id, (id as u64, 1), snapshot, level, read, writes(keys), None);
        Arc::new(it)
    }

    fn view(numbers: Numbers, etag: &str) -> View {
        View { floor: numbers.floor(), numbers, etag: ETag::new(etag) }
    }

    fn after(view: &View, batch: &[Arc<Submission>], etag: &str) -> View {
        self::view(plan(view, batch, 1000, &Settings::default()).next, etag)
    }

    fn outcomes(plan: &Plan) -> Vec<(usize, &'static str)> {
        let name = |outcome: &Result<u64, StoreError>| match outcome {
            Ok(_) => "committed",
            Err(StoreError::Aborted { why: AbortCause::Written { .. } }) => "written",
            Err(StoreError::Aborted { why: AbortCause::Read { .. } }) => "read",
            Err(StoreError::Aborted { why: AbortCause::Old { .. } }) => "old",
            Err(StoreError::Fenced { .. }) => "fenced",
            Err(StoreError::CommitUnknown { .. }) => "unknown",
            Err(_) => "something else",
        };
        let settled = plan.settled.iter().map(|(place, outcome)| (*place, name(outcome)));
        settled.chain(plan.crowded.iter().map(|place| (*place, "full"))).collect()
    }

    #[test]
    fn one_swap_takes_what_does_not_meet() {
        let settings = Settings::default();
        let first = view(Numbers::default(), "a");
        let batch = [
            submission(1, Some(0), &[], &["a"]),
            submission(2, Some(0), &[], &["a"]),
            submission(3, Some(0), &["a"], &["b"]),
            submission(4, None, &[], &["c"]),
        ];
        let planned = plan(&first, &batch, 1000, &settings);
        assert_eq!(planned.taken, [(0, 1), (3, 2)]);
        assert!(planned.settled.is_empty(), "the others wait for what comes of it");
        let second = view(planned.next, "b");
        let planned = plan(&second, &batch, 1000, &settings);
        let expected = [(0, "committed"), (1, "written"), (2, "read"), (3, "committed")];
        assert_eq!(outcomes(&planned), expected);
        assert!(planned.taken.is_empty());
    }

    #[test]
    fn a_snapshot_that_the_window_has_left_is_too_old() {
        let settings = Settings { window_commits_max: 2, ..Settings::default() };
        let mut now = view(Numbers::default(), "0");
        for n in 1..=4u64 {
            let mut numbers =
                plan(&now, &[submission(n.into(), None, &[], &["k"])], 1000, &settings).next;
            numbers.applied = numbers.last;
            now = view(numbers, &n.to_string());
        }
        assert_eq!((now.numbers.last, now.floor), (4, 2));
        for (snapshot, expected) in [(1, vec![(0, "old")]), (2, vec![]), (4, vec![])] {
            let planned =
                plan(&now, &[submission(9, Some(snapshot), &[], &["l"])], 1000, &settings);
            assert_eq!(outcomes(&planned), expected, "{snapshot}");
        }
        let ahead = plan(&now, &[submission(9, Some(5), &[], &["l"])], 1000, &settings);
        assert!(ahead.is_old && ahead.taken.is_empty() && ahead.settled.is_empty());
    }

    #[test]
    fn a_window_that_is_full_takes_nobody() {
        let settings = Settings { window_commits_max: 2, ..Settings::default() };
        let batch: Vec<_> = [(1, "a"), (2, "b"), (3, "c")]
            .map(|(id, key)| submission(id, None, &[], &[key]))
            .into();
        let now = view(plan(&view(Numbers::default(), "0"), &batch, 1, &settings).next, "1");
        assert_eq!(now.numbers.last, 2, "the third one waits");
        assert_eq!(outcomes(&plan(&now, &batch[2..], 1, &settings)), [(0, "full")]);
        // Also one that had no answer: it is helped before it is told that nobody knows.
        batch[2].progress().tried = Some(Tried { from: 2, over: ETag::new("0") });
        assert_eq!(outcomes(&plan(&now, &batch[2..], 1, &settings)), [(0, "full")]);
        batch[2].progress().tried = None;
        let mut numbers = now.numbers;
        numbers.applied = 1;
        let planned = plan(&view(numbers, "2"), &batch[2..], 1, &settings);
        assert_eq!((&planned.taken[..], planned.next.floor()), (&[(0, 3)][..], 1));
    }

    /// Two lives of one client, in one process: the first had the last word in the swap that both were in.
    #[test]
    fn the_later_life_of_two_in_one_swap_ends_the_other() {
        let settings = Settings::default();
        let life = |id: u128, epoch: u64, key: &'static str| {
            let (reads, level) = (Reads::default(), Isolation::Snapshot);
            Arc::new(Submission::new(id, (7, epoch), None, level, reads, writes(&[key]), None))
        };
        let first = view(Numbers::default(), "a");
        let batch = [life(2, 2, "a"), life(1, 1, "b")];
        let planned = plan(&first, &batch, 1, &settings);
        assert_eq!(
            (&planned.taken[..], &planned.next.lives[..]),
            (&[(0, 1)][..], &[(7, 2, 1)][..])
        );
        let planned = plan(&view(planned.next, "b"), &batch, 1, &settings);
        assert_eq!(outcomes(&planned), [(0, "committed"), (1, "fenced")]);
        // The earlier one first: both commit, one after the other.
        let batch = [life(3, 1, "a"), life(4, 2, "b")];
        let planned = plan(&first, &batch, 1, &settings);
        assert_eq!(planned.taken, [(0, 1), (1, 2)]);
        assert_eq!(planned.next.lives, [(7, 2, 2)]);
    }

    /// A life that was over committed after a thousand other clients, of which none was told apart from it.
    #[test]
    fn a_life_that_nobody_remembers_is_to_be_proven() {
        let settings = Settings::default();
        let life = |id: u128, life, key: &'static str| {
            let (reads, level) = (Reads::default(), Isolation::Snapshot);
            Arc::new(Submission::new(id, life, None, level, reads, writes(&[key]), None))
        };
        let mut now = after(&view(Numbers::default(), "a"), &[life(1, (1, 2), "k")], "b");
        for n in 0..LIVES_MAX as u64 {
            let other = life(9, (100 + n, 1), "l");
            other.progress().life = Some(Life::NewestIn(now.etag.clone()));
            let mut numbers = plan(&now, &[other], 1, &settings).next;
            (numbers.applied, numbers.commits) = (numbers.last, Vec::new());
            now = view(numbers, "c");
        }
        assert_eq!(now.numbers.lives.len(), LIVES_MAX);
        assert!(now.numbers.lives.iter().all(|(client, ..)| *client != 1));
        let (old, new, known) =
            (life(2, (1, 1), "k"), life(3, (1, 2), "m"), life(4, (100, 1), "n"));
        let batch = [old.clone(), new.clone(), known];
        let planned = plan(&now, &batch, 1, &settings);
        assert_eq!((planned.unproven, planned.taken.len()), (vec![0, 1], 1));
        old.progress().life = Some(Life::Over);
        new.progress().life = Some(Life::NewestIn(now.etag.clone()));
        let planned = plan(&now, &batch, 1, &settings);
        assert_eq!((outcomes(&planned), planned.taken.len()), (vec![(0, "fenced")], 2));
        assert!(planned.unproven.is_empty());
        // By the time of other numbers a later one may have committed.
        let planned = plan(&view(now.numbers.clone(), "d"), &batch, 1, &settings);
        assert_eq!((outcomes(&planned), planned.unproven), (vec![(0, "fenced")], vec![1]));
        // Nobody was forgotten where there is room.
        let few = after(&view(Numbers::default(), "a"), &[life(5, (7, 1), "k")], "b");
        assert_eq!(plan(&few, &[life(6, (1, 1), "l")], 1, &settings).taken.len(), 1);
    }

    /// What had no answer is not said to have failed while it may still happen.
    #[test]
    fn what_was_tried_is_unknown_until_it_is_known() {
        let settings = Settings::default();
        let first = view(Numbers::default(), "a");
        let ours = submission(1, Some(0), &[], &["k"]);
        ours.progress().tried = Some(Tried { from: 0, over: first.etag.clone() });
        // A later life of the same client was there by then: over the same version it may happen yet.
        let mut fenced = first.numbers.clone();
        fenced.lives = vec![(1, 2, 0)];
        let planned = plan(&view(fenced.clone(), "a"), std::slice::from_ref(&ours), 1, &settings);
        assert_eq!(outcomes(&planned), [(0, "unknown")]);
        let planned = plan(&view(fenced, "b"), std::slice::from_ref(&ours), 1, &settings);
        assert_eq!(outcomes(&planned), [(0, "fenced")]);
        // Someone else wrote the record, and it is not in the window: it did not happen.
        let second = after(&first, &[submission(2, None, &[], &["k"])], "b");
        assert_eq!(
            outcomes(&plan(&second, std::slice::from_ref(&ours), 1, &settings)),
            [(0, "written")]
        );
        // The window has left the place where it would be.
        let mut far = second.numbers;
        (far.applied, far.last) = (9, 9);
        far.commits.clear();
        assert_eq!(outcomes(&plan(&view(far, "c"), &[ours], 1, &settings)), [(0, "unknown")]);
    }

    /// What a transaction writes may be collected when it is put so late.
    #[test]
    fn data_that_is_old_is_not_named() {
        let settings = Settings::default();
        let most_ms = settings.commit_age_us() / 1000;
        let object = Some((crate::sequence::codec::data_name(1000, 1), 9));
        let (life, reads, level) = ((1, 1), Reads::default(), Isolation::Snapshot);
        let it = Submission::new(1, life, None, level, reads, writes(&["k"]), object);
        let batch = [Arc::new(it)];
        let first = view(Numbers::default(), "a");
        assert_eq!(plan(&first, &batch, 1000 + most_ms, &settings).taken, [(0, 1)]);
        let late = plan(&first, &batch, 1001 + most_ms, &settings);
        assert!(late.taken.is_empty(), "{:?}", late.taken);
        let (_, outcome) = &late.settled[0];
        let is_late = matches!(outcome, Err(StoreError::Aborted { why: AbortCause::Late { .. } }));
        assert!(is_late, "{outcome:?}");
    }

    /// Of the blobs that it names the oldest one counts, beside that.
    #[test]
    fn a_blob_that_is_old_is_not_named() {
        let settings = Settings::default();
        let most_ms = settings.commit_age_us() / 1000;
        let in_blob = |key: &'static str, begun_ms: u64| {
            let stamp = Stamp { clock: begun_ms * 1000, client: 1, sequence: begun_ms };
            let payload = Some(Value::Blob(Blob::new(stamp, 50_000, 50_000, 7).unwrap()));
            Write { payload, ..writes(&[key])[0].clone() }
        };
        let life = (1, 1);
        for (object_ms, oldest_ms) in [(None, 1500), (Some(1200), 1200), (Some(2500), 1500)] {
            let object = object_ms.map(|ms| (crate::sequence::codec::data_name(ms, 1), 9));
            let (reads, level) = (Reads::default(), Isolation::Snapshot);
            let writes = vec![in_blob("k", 2000), in_blob("l", 1500), in_blob("m", 1900)].into();
            let it = Arc::new(Submission::new(1, life, None, level, reads, writes, object));
            let (first, batch) = (view(Numbers::default(), "a"), [it.clone()]);
            assert_eq!(plan(&first, &batch, oldest_ms + most_ms, &settings).taken, [(0, 1)]);
            let late = plan(&first, &batch, oldest_ms + most_ms + 1, &settings);
            assert!(late.taken.is_empty(), "{:?}", late.taken);
            let (_, outcome) = &late.settled[0];
            let is_late =
                matches!(outcome, Err(StoreError::Aborted { why: AbortCause::Late { .. } }));
            assert!(is_late, "{outcome:?}");
            // What was tried may have happened: it is not said that it did not.
            it.progress().tried = Some(Tried { from: 0, over: ETag::new("z") });
            let late = plan(&first, &batch, oldest_ms + most_ms + 1, &settings);
            assert_eq!(outcomes(&late), [(0, "unknown")]);
        }
    }

    #[test]
    fn the_horizon_follows_the_age_of_snapshots() {
        let settings =
            Settings { snapshot_age: std::time::Duration::from_secs(8), ..Settings::default() };
        let mut now = view(Numbers::default(), "0");
        for second in 1..=10u64 {
            let it = submission(second.into(), None, &[], &["k"]);
            now = view(plan(&now, &[it], second * 1000, &settings).next, &second.to_string());
        }
        let mut numbers = now.numbers;
        numbers.applied = 9;
        for (now_s, expected) in [(9, 0), (10, 1), (12, 3), (60, 9)] {
            advance(&mut numbers, now_s * 1000, &settings);
            assert_eq!(numbers.horizon, expected, "at {now_s} s");
        }
        // One that came soon after another is none of the dates, and is passed all the same.
        let it = submission(11, None, &[], &["k"]);
        let mut numbers = plan(&view(numbers, "11"), &[it], 60_500, &settings).next;
        let it = submission(12, None, &[], &["k"]);
        numbers = plan(&view(numbers, "12"), &[it], 60_501, &settings).next;
        assert_eq!(numbers.dates.last().map(|date| date.0), Some(11));
        numbers.applied = 12;
        for (now_ms, expected) in [(68_500, 10), (68_501, 11), (68_502, 12)] {
            advance(&mut numbers, now_ms, &settings);
            assert_eq!(numbers.horizon, expected, "at {now_ms} ms");
        }
    }
}
