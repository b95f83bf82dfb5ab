//! The newest view of the sequencer, the swap, and who makes it.
//!
//! ```text
//!   1  enter what is submitted, wait for the turn     crash: nothing happened, unless it is in a swap
//!   2  whoever has the turn: known by now? done
//!   3  decide on the newest view for all who wait     (see `batch`)
//!   4  put it, if it is still that version (H2)       this is the commit point
//!        412: read, go to 3
//!        no answer: read (H3); what is in the window is committed, whoever put it there
//! ```
//!
//! Who gives up waiting takes nothing from the others: what is submitted stays in the list until it is
//! known what came of it, and the next one who has the turn goes on. Nothing is taken out before that.

use std::{
    collections::{BTreeSet, HashMap},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
};

use bytes::Bytes;
use futures::{StreamExt as _, stream};

use crate::{
    Checkpointed, client,
    cloud::{Get, Put, PutIf},
    error::StoreError,
    fail_point::{FailPoint, reached},
    page::{Page, PageId},
    retry::Attempts,
    sequence::{
        batch::{self, BATCH_MAX, Life, Submission, Tried},
        codec::{self, Commit, NUMBERS, Numbers},
        versions,
        window::View,
    },
    store::Store,
};

/// Pages of which is remembered up to which commit a copy was the newest.
const COVERED_MAX: usize = 100_000;
/// Transactions that wait for a number.
const WAITING_MAX: usize = 10_000;
/// Transactions whose leaves are looked at at the same time.
const LOOKS_AT_ONCE: usize = 16;
/// Collections of which is remembered that they need no sequencer.
const PLAIN_MAX: usize = 10_000;

/// The sequencer, as one process sees it.
#[derive(Default)]
pub(crate) struct Sequencer {
    view: Mutex<Option<Arc<View>>>,
    waiting: Mutex<Vec<Arc<Submission>>>,
    /// Held by who swaps.
    turn: tokio::sync::Mutex<()>,
    /// Of a page: the write id of a copy, and a commit up to which everything was on pages when that copy
    /// was the newest.
    covered: Mutex<HashMap<PageId, (u128, u64)>>,
    /// Commits wait for their pages: now, or when the checkpoint interval is over.
    is_due: AtomicBool,
    is_due_later: AtomicBool,
    /// Collections that were without isolation, and when that was seen, in microseconds of the monotonic clock:
    /// one can be dropped, and made again with it.
    plain: Mutex<HashMap<String, u64>>,
}

/// What became of a swap.
pub(super) enum Swapped {
    Done(Arc<View>),
    /// Another version is there. If an attempt was without an answer, it may have happened.
    Lost {
        is_unclear: bool,
    },
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Applies what any client left, if there is a sequencer.
///
/// # Errors
/// [`StoreError::Lost`] when there is none, and a collection needs it, as far as this client may read the
/// catalogue; and whatever the services say.
pub(crate) async fn sweep(store: &Store) -> Result<Checkpointed, StoreError> {
    match find(store).await? {
        Some(_) => super::apply(store).await,
        None => Ok(Checkpointed::default()),
    }
}

/// The newest view; `None` where there is no sequencer, and no collection is known to need one.
pub(crate) async fn find(store: &Store) -> Result<Option<Arc<View>>, StoreError> {
    match newest(store).await {
        Err(StoreError::Lost { object }) if object == NUMBERS => match need(store, true).await? {
            // Planted since, perhaps, by who made that collection.
            Need::Yes => newest(store).await.map(Some),
            // An entry that cannot be read is told by `verify`, and by whoever uses it.
            Need::No | Need::Unclear(_) => Ok(None),
        },
        found => found.map(Some),
    }
}

/// Whether the catalogue has a collection that needs a sequencer.
pub(super) enum Need {
    Yes,
    No,
    /// None of the entries that can be read does. Why another one cannot.
    Unclear(StoreError),
}

/// Reads the catalogue; if it `may_recall`, of collections that needed none when that was seen, less than
/// [`Settings::ttl`](crate::Settings) ago, no more than their names.
pub(super) async fn need(store: &Store, may_recall: bool) -> Result<Need, StoreError> {
    let plain = &store.sequencer.plain;
    let ttl_us = store.settings.ttl.as_micros() as u64;
    let mut need = Need::No;
    for name in store.collections().await? {
        let now_us = store.cloud.clock.monotonic_us();
        let is_young = |seen_us: &u64| now_us.saturating_sub(*seen_us) < ttl_us;
        if may_recall && lock(plain).get(&name).is_some_and(is_young) {
            continue;
        }
        match store.peek_collection(&name).await {
            Ok(of) if of.isolation.is_some() => return Ok(Need::Yes),
            Ok(_) => {
                let mut plain = lock(plain);
                if plain.len() >= PLAIN_MAX {
                    plain.retain(|_, seen_us| now_us.saturating_sub(*seen_us) < ttl_us);
                }
                if plain.len() < PLAIN_MAX {
                    plain.insert(name, now_us);
                }
            }
            Err(StoreError::NotFound(_)) => {}
            Err(
                error @ (StoreError::Damaged { .. }
                | StoreError::Misled { .. }
                | StoreError::Denied { .. }),
            ) => need = Need::Unclear(error),
            Err(error) => return Err(error),
        }
    }
    Ok(need)
}

/// Makes sure that there is a sequencer, before the catalogue names a collection that needs one.
///
/// It is planted once: where it is gone, and some collection needs it, it is lost, since its numbers would come
/// again.
pub(crate) async fn plant(store: &Store) -> Result<(), StoreError> {
    match newest(store).await {
        // What was seen before will not do: numbers that begin again are a loss.
        Err(StoreError::Lost { object }) if object == NUMBERS => match need(store, false).await? {
            Need::No => {}
            Need::Yes => return newest(store).await.map(drop),
            // It may be of a collection that needs it.
            Need::Unclear(error) => return Err(error),
        },
        found => return found.map(drop),
    }
    let write_id = store.cloud.chance.next_u128();
    let bytes = Numbers { write_id, ..Numbers::default() }.encode();
    let mut attempts = Attempts::new(&store.cloud, &store.settings);
    loop {
        match store.cloud.objects.put(NUMBERS, bytes.clone(), PutIf::Absent).await {
            // Whoever planted it: all begin with the same numbers.
            Put::Stored(_) | Put::Refused => return Ok(()),
            Put::Conflict | Put::Missing => attempts.after_loss(NUMBERS).await?,
            Put::Failed(fault) | Put::Unknown(fault) => attempts.after(fault).await?,
        }
    }
}

impl Sequencer {
    /// The newest view that is known here.
    pub(super) fn view(&self) -> Option<Arc<View>> {
        lock(&self.view).clone()
    }

    /// Takes a view, unless a newer one is known.
    fn keep(&self, view: View) -> Arc<View> {
        let view = Arc::new(view);
        let mut known = lock(&self.view);
        let is_older = known.as_ref().is_some_and(|known| {
            let order = |view: &View| (view.numbers.last, view.numbers.applied);
            order(known) > order(&view)
        });
        if !is_older {
            *known = Some(view.clone());
        }
        view
    }

    /// Up to which commit a copy of a leaf is known to have everything.
    pub(super) fn covers(&self, page: &Page) -> u64 {
        let noted = lock(&self.covered).get(&page.id).copied();
        let noted = noted.filter(|(write_id, _)| *write_id == page.write_id);
        noted.map_or(0, |(_, number)| number).max(versions::complete_to(page))
    }

    /// A copy was the newest after all commits up to `number` were on their pages.
    pub(super) fn cover(&self, page: &Page, number: u64) {
        let mut covered = lock(&self.covered);
        if covered.len() >= COVERED_MAX {
            // Each that is missing costs a request.
            covered.clear();
        }
        let noted = covered.entry(page.id).or_insert((page.write_id, 0));
        if noted.0 != page.write_id {
            *noted = (page.write_id, 0);
        }
        noted.1 = noted.1.max(number);
    }

    /// Waits until nobody else in this process swaps.
    pub(super) async fn turn(&self) -> tokio::sync::MutexGuard<'_, ()> {
        self.turn.lock().await
    }

    pub(super) fn make_due(&self) {
        self.is_due.store(true, Ordering::Relaxed);
    }

    pub(super) fn make_due_later(&self) {
        self.is_due_later.store(true, Ordering::Relaxed);
    }

    /// What was left for later is due now.
    pub(crate) fn make_all_due(&self) {
        if self.is_due_later.swap(false, Ordering::Relaxed) {
            self.make_due();
        }
    }

    /// Whether commits wait for their pages.
    pub(crate) fn is_due(&self) -> bool {
        self.is_due.load(Ordering::Relaxed)
    }

    /// The same; whoever asks sees to it.
    pub(crate) fn take_due(&self) -> bool {
        self.is_due.swap(false, Ordering::Relaxed)
    }

    /// Applies what is due. If that fails it is due again: at once if the services failed, later if
    /// something is damaged.
    pub(crate) async fn work(&self, store: &Store) -> Result<Checkpointed, StoreError> {
        if !self.take_due() {
            return Ok(Checkpointed::default());
        }
        // Whoever gives up in between leaves it due.
        let again = Again(self, true);
        let applied = super::apply(store).await;
        let is_passing = applied.as_ref().is_err_and(StoreError::is_passing);
        if applied.is_err() && !is_passing {
            self.make_due_later();
        }
        again.end(is_passing);
        applied
    }
}

/// Work that is due again if it does not come to its end.
struct Again<'a>(&'a Sequencer, bool);

impl Again<'_> {
    fn end(mut self, again: bool) {
        self.1 = again;
    }
}

impl Drop for Again<'_> {
    fn drop(&mut self) {
        if self.1 {
            self.0.make_due();
        }
    }
}

/// The view now, as the object store has it.
pub(super) async fn newest(store: &Store) -> Result<Arc<View>, StoreError> {
    let mut attempts = Attempts::new(&store.cloud, &store.settings);
    // A commit whose data is not there, and in which version of the numbers.
    let mut missing = None;
    loop {
        let known = store.sequencer.view();
        let unless = known.as_ref().map(|view| &view.etag).filter(|_| missing.is_none());
        let asked_us = store.cloud.clock.monotonic_us();
        match store.cloud.objects.get(NUMBERS, unless).await {
            Ok(Get::Unchanged { date_ms }) => {
                store.pages.saw_date(date_ms, asked_us);
                if let Some(known) = known {
                    return Ok(known);
                }
                return Err(StoreError::Invalid(format!("{NUMBERS}: 304 without a condition")));
            }
            Ok(Get::Found { bytes, etag, date_ms }) => {
                store.pages.saw_date(date_ms, asked_us);
                let damaged = |source| StoreError::Damaged { object: NUMBERS.into(), source };
                let numbers = Numbers::decode(&bytes).map_err(damaged)?;
                let mut view = View { floor: numbers.floor(), numbers, etag };
                let filled = match fill(store, &mut view, known.as_deref()).await {
                    // Who may not list is told so of what is not there.
                    Err(StoreError::Denied { object, .. })
                        if missing.as_ref() != Some(&view.etag) =>
                    {
                        Some(object)
                    }
                    filled => filled?,
                };
                match filled {
                    None => return Ok(store.sequencer.keep(view)),
                    Some(object) if missing.as_ref() == Some(&view.etag) => {
                        return Err(StoreError::Lost { object });
                    }
                    // It may have left the window, and been collected, since the numbers were read.
                    Some(object) => {
                        missing = Some(view.etag);
                        attempts.after_loss(&object).await?;
                    }
                }
            }
            Ok(Get::Absent) => return Err(StoreError::Lost { object: NUMBERS.into() }),
            Err(fault) => attempts.after(fault).await?,
        }
    }
}

/// Reads what commits of a view write that is not in it. What is not there of commits that are on their
/// pages raises the floor; of others it is returned.
async fn fill(
    store: &Store,
    view: &mut View,
    known: Option<&View>,
) -> Result<Option<String>, StoreError> {
    let known: HashMap<u128, &Commit> = match known {
        Some(known) => {
            let aside = known.numbers.aside.iter().map(|(_, commit)| commit);
            known.numbers.commits.iter().chain(aside).map(|it| (it.id, it)).collect()
        }
        None => HashMap::new(),
    };
    let (floor, applied) = (view.numbers.floor(), view.numbers.applied);
    let aside: BTreeSet<u64> = view.numbers.aside.iter().map(|(number, _)| *number).collect();
    let put_aside = view.numbers.aside.iter_mut().map(|(number, commit)| (*number, commit));
    let window = (floor + 1..).zip(&mut view.numbers.commits);
    for (number, commit) in put_aside.chain(window) {
        let Some((object, _)) = commit.object.clone() else { continue };
        if let Some(same) = known.get(&commit.id).filter(|same| !same.writes.is_empty()) {
            commit.writes = same.writes.clone();
            continue;
        }
        match data(store, &object, commit.id).await {
            Ok(Some(writes)) => commit.writes = writes.into(),
            Ok(None) | Err(StoreError::Damaged { .. })
                if number <= applied && !aside.contains(&number) =>
            {
                view.floor = number;
            }
            Ok(None) => return Ok(Some(object)),
            Err(error) => return Err(error),
        }
    }
    Ok(None)
}

/// What a commit writes, from its object; `None` when that is not there.
pub(super) async fn data(
    store: &Store,
    object: &str,
    id: u128,
) -> Result<Option<Vec<codec::Write>>, StoreError> {
    let mut attempts = Attempts::new(&store.cloud, &store.settings);
    loop {
        match store.cloud.objects.get(object, None).await {
            Ok(Get::Found { bytes, .. }) => {
                let damaged = |source| StoreError::Damaged { object: object.to_owned(), source };
                let (of, writes) = codec::decode_data(&bytes).map_err(damaged)?;
                if of != id {
                    let what = "its object holds the data of another commit";
                    return Err(damaged(crate::FrameError::Field { at: 5, what }));
                }
                return Ok(Some(writes));
            }
            Ok(_) => return Ok(None),
            Err(fault) => attempts.after(fault).await?,
        }
    }
}

/// Puts `next` in the place of `view`: H2 and H3. An error that is not [`StoreError::CommitUnknown`] means
/// that it did not happen.
pub(super) async fn swap(
    store: &Store,
    view: &View,
    mut next: Numbers,
) -> Result<Swapped, StoreError> {
    next.write_id = store.cloud.chance.next_u128();
    let bytes: Bytes = next.encode();
    let floor = view.floor.max(next.floor());
    let mut is_unclear = false;
    let mut attempts = Attempts::new(&store.cloud, &store.settings);
    loop {
        let condition = PutIf::Matches(view.etag.clone());
        let fault = match store.cloud.objects.put(NUMBERS, bytes.clone(), condition).await {
            Put::Stored(etag) => {
                let view = View { floor, numbers: next, etag };
                return Ok(Swapped::Done(store.sequencer.keep(view)));
            }
            Put::Refused | Put::Missing => return Ok(Swapped::Lost { is_unclear }),
            Put::Conflict => match attempts.after_loss(NUMBERS).await {
                Err(error) if is_unclear => return Err(unknown(error)),
                waited => {
                    waited?;
                    continue;
                }
            },
            Put::Failed(fault) => fault,
            Put::Unknown(fault) => {
                is_unclear = true;
                // Not there, or not yet: the same condition keeps another attempt safe.
                match newest(store).await {
                    Ok(now) if now.etag != view.etag => return Ok(Swapped::Lost { is_unclear }),
                    _ => fault,
                }
            }
        };
        match attempts.after(fault).await {
            Err(error) if is_unclear => return Err(unknown(error)),
            waited => waited?,
        }
    }
}

/// The same, of what can be put again without effect: nobody has to know whether it happened.
pub(super) async fn swap_freely(
    store: &Store,
    view: &View,
    next: Numbers,
) -> Result<Swapped, StoreError> {
    match swap(store, view, next).await {
        Err(StoreError::CommitUnknown { source }) => {
            Err(StoreError::Cloud { attempts: store.settings.attempts_max, source })
        }
        outcome => outcome,
    }
}

fn unknown(error: StoreError) -> StoreError {
    match error {
        StoreError::Cloud { source, .. } => StoreError::CommitUnknown { source },
        error => {
            let (what, cause) = (NUMBERS.to_owned(), error.to_string());
            StoreError::CommitUnknown { source: crate::cloud::Fault::Unknown { what, cause } }
        }
    }
}

/// Leaves the list of those who wait when its future is dropped, if it is in no swap.
struct Entered<'a> {
    sequencer: &'a Sequencer,
    submission: &'a Arc<Submission>,
}

impl Drop for Entered<'_> {
    fn drop(&mut self) {
        let mut waiting = lock(&self.sequencer.waiting);
        let progress = self.submission.progress();
        if progress.tried.is_none() || progress.outcome.is_some() {
            waiting.retain(|it| !Arc::ptr_eq(it, self.submission));
        }
    }
}

/// Submits a transaction, and says which number it has.
///
/// After [`StoreError::CommitUnknown`], or when the future was dropped, the same one can be submitted
/// again: it is committed once at most.
pub(super) async fn submit(store: &Store, submission: &Arc<Submission>) -> Result<u64, StoreError> {
    let sequencer = &store.sequencer;
    {
        let mut waiting = lock(&sequencer.waiting);
        let known = submission.progress().outcome.clone();
        if let Some(known @ (Ok(_) | Err(StoreError::Aborted { .. } | StoreError::Fenced { .. }))) =
            known
        {
            // For good. The window may have left its place by now: it would be committed once more.
            return known;
        }
        submission.progress().outcome = None;
        if !waiting.iter().any(|it| Arc::ptr_eq(it, submission)) {
            if waiting.len() >= WAITING_MAX {
                let what = format!("{NUMBERS}: {WAITING_MAX} transactions wait");
                let source = crate::cloud::Fault::Throttled { what };
                return Err(match submission.progress().tried.is_some() {
                    true => StoreError::CommitUnknown { source },
                    false => StoreError::Cloud { attempts: 1, source },
                });
            }
            waiting.push(submission.clone());
        }
    }
    let _entered = Entered { sequencer, submission };
    loop {
        let _turn = sequencer.turn.lock().await;
        if let Some(outcome) = submission.progress().outcome.clone() {
            return outcome;
        }
        lead(store).await;
    }
}

/// One round for those who wait, by who has the turn. Each of them learns what came of it; an error of the
/// services is that of all.
async fn lead(store: &Store) {
    let sequencer = &store.sequencer;
    // Copied, not taken: whoever leads may end here.
    let batch: Vec<Arc<Submission>> =
        lock(&sequencer.waiting).iter().take(BATCH_MAX).cloned().collect();
    let settle = |submission: &Arc<Submission>, outcome: Result<u64, StoreError>| {
        let mut waiting = lock(&sequencer.waiting);
        waiting.retain(|it| !Arc::ptr_eq(it, submission));
        let mut progress = submission.progress();
        if let Ok(_) | Err(StoreError::Aborted { .. } | StoreError::Fenced { .. }) = outcome {
            progress.tried = None;
        }
        progress.outcome = Some(outcome);
    };
    let outcome = round(store, &batch, &settle).await;
    let Err(error) = outcome else { return };
    for submission in &batch {
        let tried = {
            let progress = submission.progress();
            if progress.outcome.is_some() {
                continue;
            }
            progress.tried.is_some()
        };
        settle(submission, Err(if tried { unknown(error.clone()) } else { error.clone() }));
    }
}

/// Asks the object of a client whether a life is over that the sequencer does not remember.
async fn prove(store: &Store, it: &Arc<Submission>, view: &View, settle: &Settle<'_>) {
    let asked = client::is_over(&store.cloud, &store.settings, (it.client, it.epoch)).await;
    let life = match asked {
        Ok(true) => Life::Over,
        Ok(false) => Life::NewestIn(view.etag.clone()),
        // The error of this client alone.
        Err(error) => return refuse(it, error, settle),
    };
    it.progress().life = Some(life);
}

/// It is not committed, unless an earlier attempt had no answer.
fn refuse(it: &Arc<Submission>, error: StoreError, settle: &Settle<'_>) {
    let was_tried = it.progress().tried.is_some();
    settle(it, Err(if was_tried { unknown(error) } else { error }));
}

/// Takes what became of a transaction.
type Settle<'a> = dyn Fn(&Arc<Submission>, Result<u64, StoreError>) + Sync + 'a;

async fn round(
    store: &Store,
    batch: &[Arc<Submission>],
    settle: &Settle<'_>,
) -> Result<(), StoreError> {
    let mut attempts = Attempts::new(&store.cloud, &store.settings);
    // A view from before serves, if nobody else was faster: then the swap is refused.
    let mut view = match store.sequencer.view() {
        Some(view) => view,
        None => newest(store).await?,
    };
    // What became of bringing others to their pages, since the last commit of this round.
    let mut helped: Option<Option<StoreError>> = None;
    loop {
        let open = |it: &&Arc<Submission>| it.progress().outcome.is_none();
        let open: Vec<Arc<Submission>> = batch.iter().filter(open).cloned().collect();
        if open.is_empty() {
            return Ok(());
        }
        let date_ms = store.asked_date_ms().await?;
        let plan = batch::plan(&view, &open, date_ms, &store.settings);
        if !plan.crowded.is_empty() && helped.is_none() {
            // Out of the way of the others: what fails is told where there is no room after it either.
            helped = Some(super::apply::apply_in(store, true).await.err());
            view = newest(store).await?;
            continue;
        }
        for (place, outcome) in plan.settled {
            settle(&open[place], outcome);
        }
        if !plan.unproven.is_empty() {
            // After these numbers were read: see `batch`.
            for place in plan.unproven {
                prove(store, &open[place], &view, settle).await;
            }
            continue;
        }
        // Where something was put aside, nothing is to follow it that could not be brought to its page either.
        let trees = view.aside_trees();
        let taken = plan.taken.iter().map(|(place, _)| &open[*place]);
        let is_unsure = |it: &&Arc<Submission>| {
            !it.progress().is_readable && it.writes.iter().any(|write| trees.contains(&write.tree))
        };
        let unsure: Vec<Arc<Submission>> = taken.filter(is_unsure).cloned().collect();
        if !unsure.is_empty() {
            let look = |it: Arc<Submission>| {
                let trees = &trees;
                async move { (super::apply::can_be_read(store, trees, &it.writes).await, it) }
            };
            let looks: Vec<_> = unsure.into_iter().map(look).collect();
            let mut looks = stream::iter(looks).buffered(LOOKS_AT_ONCE);
            while let Some((look, it)) = looks.next().await {
                match look {
                    Ok(()) => it.progress().is_readable = true,
                    Err(error) => refuse(&it, error, settle),
                }
            }
            continue;
        }
        for place in plan.crowded {
            let was_tried = open[place].progress().tried.is_some();
            let why = helped.as_ref().and_then(Option::as_ref);
            settle(&open[place], Err(batch::full(&view.numbers, why, was_tried)));
        }
        if plan.taken.is_empty() {
            if plan.is_old {
                view = newest(store).await?;
                attempts.after_loss(NUMBERS).await?;
                continue;
            }
            return Ok(());
        }
        let mut before = Vec::with_capacity(plan.taken.len());
        for (place, _) in &plan.taken {
            let mut progress = open[*place].progress();
            let from = progress.tried.as_ref().map_or(view.numbers.last, |tried| tried.from);
            before.push(progress.tried.replace(Tried { from, over: view.etag.clone() }));
        }
        // It certainly did not happen: what is known is what was known before.
        let take_back = || {
            for ((place, _), tried) in plan.taken.iter().zip(before) {
                open[*place].progress().tried = tried;
            }
        };
        match swap(store, &view, plan.next).await {
            Ok(Swapped::Done(now)) => {
                reached(&store.cloud, FailPoint::Sequenced).await;
                for (place, number) in &plan.taken {
                    settle(&open[*place], Ok(*number));
                }
                match batch::is_pressing(&now.numbers, &store.settings) {
                    true => store.sequencer.make_due(),
                    false => store.sequencer.make_due_later(),
                }
                (view, helped) = (now, None);
            }
            Ok(Swapped::Lost { is_unclear }) => {
                if !is_unclear {
                    take_back();
                }
                view = newest(store).await?;
                attempts.after_loss(NUMBERS).await?;
            }
            Err(error) => {
                if !matches!(error, StoreError::CommitUnknown { .. }) {
                    take_back();
                }
                return Err(error);
            }
        }
    }
}
