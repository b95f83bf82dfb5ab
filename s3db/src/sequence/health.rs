//! Whether the sequencer is there, and what waits in it.

use bytes::Bytes;

use crate::{
    blob::Blob,
    cloud::Get,
    error::{StoreError, with_cause},
    page::PageId,
    retry::Attempts,
    sequence::{
        codec::{NUMBERS, Numbers},
        sequencer::{Need, data, need, newest},
    },
    store::Store,
};

/// What is known of the sequencer of a database that needs one.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct SequencerState {
    /// The number of the last commit.
    pub last: u64,
    /// Commits that wait: for their pages, or behind others that do.
    pub waiting: u64,
    /// Those of them that were put aside, since a leaf that they write to cannot be read.
    pub aside: u64,
    /// When the oldest of these was committed: milliseconds since 1970, by the object store's clock.
    pub oldest_ms: Option<u64>,
    /// Why it cannot be used: it is lost, or damaged. Nothing else is known of it then.
    pub problem: Option<String>,
}

/// What there is: a get, mostly a 304, and a look into the whole catalogue where it is not there. `None` where no
/// collection is known to need it. What large commits write is not looked at.
pub(crate) async fn examine(store: &Store) -> Result<Option<SequencerState>, StoreError> {
    let broken = |error: StoreError| {
        Some(SequencerState { problem: Some(with_cause(&error)), ..SequencerState::default() })
    };
    let mut numbers = numbers(store).await;
    if matches!(numbers, Ok(None)) && matches!(need(store, false).await?, Need::Yes) {
        // Planted since, perhaps, by who made that collection.
        numbers = self::numbers(store).await;
        if matches!(numbers, Ok(None)) {
            numbers = Err(StoreError::Lost { object: NUMBERS.into() });
        }
    }
    match numbers {
        Ok(Some(numbers)) => Ok(Some(SequencerState {
            last: numbers.last,
            waiting: numbers.waiting().count() as u64,
            aside: numbers.aside.len() as u64,
            oldest_ms: numbers.waiting().next().map(|(_, commit)| commit.date_ms),
            problem: None,
        })),
        Ok(None) => Ok(None),
        Err(error @ (StoreError::Lost { .. } | StoreError::Damaged { .. })) => Ok(broken(error)),
        Err(error) => Err(error),
    }
}

/// What the sequencer says now; `None` if it is not there.
async fn numbers(store: &Store) -> Result<Option<Numbers>, StoreError> {
    let mut attempts = Attempts::new(&store.cloud, &store.settings);
    let known = store.sequencer.view();
    loop {
        match store.cloud.objects.get(NUMBERS, known.as_ref().map(|view| &view.etag)).await {
            Ok(Get::Unchanged { .. }) => return Ok(known.map(|view| view.numbers.clone())),
            Ok(Get::Found { bytes, .. }) => {
                let damaged = |source| StoreError::Damaged { object: NUMBERS.into(), source };
                return Numbers::decode(&bytes).map(Some).map_err(damaged);
            }
            Ok(Get::Absent) => return Ok(None),
            Err(fault) => attempts.after(fault).await?,
        }
    }
}

/// What waits for its pages in a sequencer that is there.
#[derive(Default)]
pub(crate) struct Waiting {
    /// How many records.
    pub(crate) records: u64,
    /// Those of them whose payload lies in a blob: the number of the commit, the key, and the blob.
    pub(crate) blobs: Vec<(u64, Bytes, Blob)>,
    /// What is wrong with the data of large commits: nothing is known of those behind it then.
    pub(crate) problem: Option<String>,
}

/// Looks at what waits. No blob is read.
pub(crate) async fn examine_data(store: &Store) -> Result<Waiting, StoreError> {
    let mut waiting = Waiting::default();
    let view = match newest(store).await {
        Ok(view) => view,
        Err(error @ (StoreError::Lost { .. } | StoreError::Damaged { .. })) => {
            return Ok(Waiting { problem: Some(with_cause(&error)), ..waiting });
        }
        Err(error) => return Err(error),
    };
    let numbers = &view.numbers;
    for (number, commit) in numbers.waiting() {
        waiting.records += commit.writes.len() as u64;
        let blobs = commit.writes.iter().filter_map(|write| Some((write, write.blob()?)));
        waiting.blobs.extend(blobs.map(|(write, blob)| (number, write.key.clone(), *blob)));
        // It may be known here from before it was lost.
        let Some((object, _)) = &commit.object else { continue };
        let lost = match data(store, object, commit.id).await {
            Ok(Some(_)) => continue,
            Ok(None) => StoreError::Lost { object: object.clone() },
            Err(error @ StoreError::Damaged { .. }) => error,
            Err(error) => return Err(error),
        };
        // On its pages by now, and collected?
        if is_waiting(store, number).await? {
            return Ok(Waiting { problem: Some(with_cause(&lost)), ..waiting });
        }
    }
    Ok(waiting)
}

/// Whether a commit waits for its pages still.
pub(crate) async fn is_waiting(store: &Store, number: u64) -> Result<bool, StoreError> {
    Ok(newest(store).await?.numbers.waiting().any(|(waits, _)| waits == number))
}

/// Whether a leaf, which was read before this is called, has commits that the sequencer does not know.
///
/// # Errors
/// [`StoreError::Tree`] if it has: the sequencer is an old copy, and its numbers would come again.
pub(crate) async fn is_behind(
    store: &Store,
    page: PageId,
    complete: u64,
) -> Result<(), StoreError> {
    let what = "has commits that the sequencer does not know, which must be an old copy: restore \
                sequencer/numbers from a newer one";
    match newest(store).await?.numbers.last < complete {
        true => Err(StoreError::Tree { page, what }),
        false => Ok(()),
    }
}
