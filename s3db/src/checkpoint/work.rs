//! Work in the background: what commits and reads found to be due, and all there is, for who sweeps.

use std::mem::discriminant;

use futures::future::join_all;

use super::{Checkpointed, checkpoint_together};
use crate::{
    catalog::Backend,
    cloud::queue::BATCH_MAX,
    error::StoreError,
    log::{Left, Log, Scope},
    page::{PageId, Stream},
    sequence,
    settings::Rule,
    store::Store,
};

/// Batches of one scope within one sweep: what arrives faster than this waits for the next one.
const SWEEP_ROUNDS_MAX: usize = 1000;
/// Streams that a sweep drains beside each other: it holds a batch of each.
const STREAMS_AT_ONCE: usize = 4;
/// Queues that a sweep drains, or sends on from, beside each other. Each that is empty is waited for for a second.
const QUEUES_AT_ONCE: usize = 8;

/// Batches of one scope that are taken on before others have their turn.
const VISIT_ROUNDS_MAX: usize = 32;
/// Rounds of work after which what becomes due all the time is left to the next one who works.
const WORK_ROUNDS_MAX: usize = 32;

/// Streams that one look of a reader takes on. The next one goes on.
const LOOK_STREAMS_MAX: usize = 32;

/// Turns in which less comes in than was asked for, after which it is what others hold or send.
const TRICKLES_MAX: u32 = 10;

/// Failures that pass, within one round of work, after which it is the services that fail.
const FAILURES_MAX: u32 = 16;

/// Work on many things, of which one that fails is not in the way of the others.
#[derive(Default)]
struct Round {
    first: Option<StoreError>,
    failures: u32,
}

impl Round {
    /// Remembers a failure. Whether it is time to stop: what is damaged, or needs a key or a right that is
    /// missing, may be in many places, each of which is in nobody's way.
    fn fails(&mut self, error: StoreError) -> bool {
        self.failures += u32::from(error.is_passing());
        self.first.get_or_insert(error);
        self.failures >= FAILURES_MAX
    }

    fn end(self, done: Checkpointed) -> Result<Checkpointed, StoreError> {
        match self.first {
            Some(error) => Err(error),
            None => Ok(done),
        }
    }
}

/// Batches of one scope, until nothing is left that was there before.
#[derive(Default)]
struct Turns {
    /// Messages that are still to be received, from the first trickle on, or the first batch that held
    /// others back.
    owed: Option<u64>,
    trickles: u32,
}

impl Turns {
    /// Whether all is done after a batch of `taken` messages that left `left` behind.
    ///
    /// A receive is given fewer messages than there are, and after a turn nobody waits for full ones:
    /// so a trickle is the end only when as many were received since the first one as were there then.
    async fn are_over(
        &mut self,
        log: &dyn Log,
        scope: Scope,
        taken: u64,
        left: Left,
    ) -> Result<bool, StoreError> {
        self.owed = self.owed.map(|owed| owed.saturating_sub(taken));
        match left {
            Left::Nothing => return Ok(true),
            Left::Backlog => return Ok(false),
            Left::Trickle => self.trickles += 1,
            // What is held by others comes to nothing in the next turn.
            Left::Held => {}
        }
        let owed = match self.owed {
            Some(owed) => owed,
            None => log.waiting(scope).await?,
        };
        self.owed = Some(owed);
        Ok(owed == 0 || self.trickles > TRICKLES_MAX)
    }
}

/// A scope that somebody works on. If that ends before it is done, it is due again.
struct Taken<'a> {
    store: &'a Store,
    scope: Option<Scope>,
}

impl Drop for Taken<'_> {
    fn drop(&mut self) {
        if let Some(scope) = self.scope.take() {
            self.store.make_due(scope);
        }
    }
}

impl Store {
    pub(crate) fn make_due(&self, scope: Scope) {
        self.due.add(scope);
    }

    pub(crate) fn make_due_later(&self, scope: Scope) {
        self.due.add_later(scope);
    }

    /// A reader found a page that was not put for long. Its shard is due; and a look at what belongs to no
    /// page: streams, or whole transactions that nobody sent on.
    pub(crate) fn make_due_for_reader(&self, page: PageId) {
        if self.database().backend != Backend::S3Log {
            let nobody = Stream { client: 0, epoch: 0 };
            self.make_due(self.log.scope_of(page, nobody));
        }
        if self.settings.rules.hold(Rule::Adoption) {
            self.due.want_look();
        }
    }

    /// Makes everything due that commits left for later. To be called once per checkpoint interval,
    /// and at the end: what was written once would wait for a sweep otherwise.
    pub fn make_all_due(&self) {
        self.due.add_all();
        self.sequencer.make_all_due();
    }

    /// Whether commits or reads found something to do in the background.
    pub fn has_work(&self) -> bool {
        self.has_own_work() || self.due.is_look_due(self.cloud.clock.monotonic_us())
    }

    fn has_own_work(&self) -> bool {
        !self.due.is_empty() || self.sequencer.is_due()
    }

    /// Does what commits and reads found to be due: forwards transactions, checkpoints. What becomes
    /// due meanwhile waits for the next call. To be called again and again by a task in the
    /// background.
    ///
    /// # Errors
    /// The first error; what failed is due again, at once if the services failed, and with the next
    /// [`Store::make_all_due`] if something is damaged. What did not fail is done, and nothing is
    /// lost.
    pub async fn work(&self) -> Result<Checkpointed, StoreError> {
        self.round(false, true).await
    }

    /// One round of work, of everything if `all` is due. What others own is left to them if it `heeds` that.
    async fn round(&self, all: bool, heeds: bool) -> Result<Checkpointed, StoreError> {
        let _turn = self.due.turn.lock().await;
        if all {
            self.make_all_due();
        }
        let mut done = Checkpointed::default();
        let mut round = Round::default();
        // Due again at the end, or they would come up again in this round's place of others.
        let mut failed = Vec::new();
        // Whole transactions are sent on before shards are drained. Those of a client that commits
        // faster than that are due again by then: shards must get their turn nevertheless.
        let now: Vec<Scope> = self.due.now();
        for scope in now {
            self.due.remove(scope);
            let mut taken = Taken { store: self, scope: Some(scope) };
            match self.visit(scope, heeds).await {
                Ok(more) => {
                    taken.scope = None;
                    done += more;
                }
                Err(error) => {
                    if !error.is_passing() {
                        // It fails again at the next call, and after that.
                        taken.scope = None;
                        self.make_due_later(scope);
                    }
                    failed.push(taken);
                    if round.fails(error) {
                        break;
                    }
                }
            }
        }
        drop(failed);
        // Only in the background: nobody who waits for his own has to do this first.
        if heeds && self.due.is_look_due(self.cloud.clock.monotonic_us()) {
            match self.look_for_readers().await {
                Ok(more) => done += more,
                Err(error) => {
                    round.fails(error);
                }
            }
        }
        match self.sequencer.work(self).await {
            Ok(more) => done += more,
            Err(error) => {
                round.fails(error);
            }
        }
        round.end(done)
    }

    /// Looks for readers: checkpoints what any stream has that was not seen applied here, or sends on what
    /// anyone left in the queues of whole transactions.
    async fn look_for_readers(&self) -> Result<Checkpointed, StoreError> {
        let interval_us = self.settings.checkpoint_interval.as_micros() as u64;
        let now_us = || self.cloud.clock.monotonic_us();
        // Also one that fails, as that of who may not list.
        self.due.begin_look(now_us(), interval_us);
        let (mut done, mut round) = (Checkpointed::default(), Round::default());
        let (mut has_found, mut is_cut) = (false, false);
        if self.database().backend == Backend::S3Log {
            let scopes = self.log.scopes(&[]).await?;
            is_cut = scopes.len() > LOOK_STREAMS_MAX;
            for scope in scopes.into_iter().take(LOOK_STREAMS_MAX) {
                match self.visit(scope, true).await {
                    Ok(more) => done += more,
                    Err(error) if round.fails(error.clone()) => return Err(error),
                    Err(_) => {}
                }
            }
            has_found = done.applied > 0;
        } else {
            for client in self.log.forwards(&[]) {
                match self.turn(Scope::Client(client), &mut done).await {
                    Ok((forwarded, _)) => has_found |= forwarded > 0,
                    Err(error) => {
                        round.fails(error);
                    }
                }
            }
            if has_found {
                // They are in any of the shards by now.
                self.log.scopes(&[]).await?.into_iter().for_each(|shard| self.make_due(shard));
            }
        }
        if has_found || is_cut {
            self.due.look_helped(now_us(), interval_us);
        }
        if is_cut {
            self.due.want_look();
        }
        round.end(done)
    }

    /// Does everything that is due or was left for later, and what becomes due meanwhile, until
    /// nothing is; but not for ever beside those who commit all the time.
    pub(crate) async fn work_off(&self) -> Result<Checkpointed, StoreError> {
        let mut done = self.round(true, false).await?;
        for _ in 1..WORK_ROUNDS_MAX {
            if !self.has_own_work() {
                break;
            }
            done += self.round(false, false).await?;
        }
        Ok(done)
    }

    /// Takes on what there is in `scope`, batch by batch: one batch per interval would fall behind
    /// a client that writes more than that. What is left is due again. Who `heeds` owners works in the
    /// background, where it is not worth a put of its page what a batch kept an ordered queue from giving
    /// out, if it is little.
    async fn visit(&self, scope: Scope, heeds: bool) -> Result<Checkpointed, StoreError> {
        let mut done = Checkpointed::default();
        if heeds && self.is_left_to_owner(scope).await {
            self.make_due_later(scope);
            return Ok(done);
        }
        let mut turns = Turns::default();
        for _ in 0..VISIT_ROUNDS_MAX {
            let (taken, left) = self.turn(scope, &mut done).await?;
            let is_over = turns.are_over(&*self.log, scope, taken, left).await?;
            let is_little = left == Left::Held
                && heeds
                && turns.owed.is_some_and(|owed| (1..BATCH_MAX as u64).contains(&owed));
            if is_over || is_little {
                if is_little || left == Left::Trickle {
                    // What came in before was given out; each page would be put for what comes in
                    // now. That waits for the next commit, or the interval.
                    self.make_due_later(scope);
                }
                return Ok(done);
            }
        }
        self.make_due(scope);
        Ok(done)
    }

    /// One batch of `scope`: how many messages or objects that was, and what is left.
    async fn turn(&self, scope: Scope, done: &mut Checkpointed) -> Result<(u64, Left), StoreError> {
        self.turns(&[scope], done).await.pop().unwrap_or(Ok((0, Left::Nothing)))
    }

    /// One batch of each of `scopes`, which are of one kind.
    async fn turns(
        &self,
        scopes: &[Scope],
        done: &mut Checkpointed,
    ) -> Vec<Result<(u64, Left), StoreError>> {
        let client = |scope: &Scope| match scope {
            Scope::Client(client) => Some(*client),
            Scope::Shard(_) | Scope::Stream(_) => None,
        };
        let clients: Vec<u64> = scopes.iter().filter_map(client).collect();
        if clients.is_empty() {
            return checkpoint_together(self, scopes, done).await;
        }
        let most = self.settings.records_per_checkpoint_max;
        let forwards = clients.iter().map(|client| self.log.forward(*client, most));
        let forwarded = join_all(forwards).await.into_iter();
        let told = forwarded.map(|forwarded| {
            forwarded.map(|forwarded| {
                done.poison += forwarded.poison;
                done.gone += forwarded.gone;
                (forwarded.taken, forwarded.left)
            })
        });
        told.collect()
    }

    /// Looks everywhere: forwards what any client left behind, and checkpoints every part of the
    /// log until it is empty, or until it holds only what came in meanwhile. Any process may do it at
    /// any time; some process has to do it now and then, or what was written once and never again stays
    /// in the log.
    ///
    /// # Errors
    /// The first error. Nothing is lost; what failed is due again, what did not is done.
    pub async fn sweep(&self) -> Result<Checkpointed, StoreError> {
        let mut done = Checkpointed::default();
        let clients = self.clients().await?;
        let adopts = self.settings.rules.hold(Rule::Adoption);
        let forwards = if adopts { self.log.forwards(&clients) } else { Vec::new() };
        let mut round = Round::default();
        let forwards: Vec<Scope> = forwards.into_iter().map(Scope::Client).collect();
        if !self.sweep_each(&forwards, &mut done, &mut round).await {
            return round.end(done);
        }
        let scopes = self.log.scopes(&clients).await?;
        if !self.sweep_each(&scopes, &mut done, &mut round).await {
            return round.end(done);
        }
        match self.sweep_approved().await {
            Ok(more) => done += more,
            Err(error) => {
                round.fails(error);
            }
        }
        match sequence::sweep(self).await {
            Ok(more) => done += more,
            Err(error) => {
                round.fails(error);
            }
        }
        round.end(done)
    }

    /// Drains these scopes, each until it holds only what came in meanwhile.
    pub(crate) async fn sweep_scopes(
        &self,
        scopes: Vec<Scope>,
    ) -> Result<Checkpointed, StoreError> {
        let (mut done, mut round) = (Checkpointed::default(), Round::default());
        self.sweep_each(&scopes, &mut done, &mut round).await;
        round.end(done)
    }

    /// Drains these scopes, several of one kind at a time: they wait for the services together, and what streams
    /// have of the same leaf is one put of it. False when it is the services that fail.
    async fn sweep_each(
        &self,
        scopes: &[Scope],
        done: &mut Checkpointed,
        round: &mut Round,
    ) -> bool {
        let are_alike = |a: &Scope, b: &Scope| discriminant(a) == discriminant(b);
        for alike in scopes.chunk_by(are_alike) {
            let at_once = match alike {
                [Scope::Stream(_), ..] => STREAMS_AT_ONCE,
                _ => QUEUES_AT_ONCE,
            };
            for some in alike.chunks(at_once) {
                for error in self.sweep_together(some, done).await {
                    if round.fails(error) {
                        return false;
                    }
                }
            }
        }
        true
    }

    /// Drains these scopes, as who works on what is due does: whoever asks for a checkpoint meanwhile
    /// waits for it, and finds due again what failed or was given up. Says what failed.
    async fn sweep_together(&self, scopes: &[Scope], done: &mut Checkpointed) -> Vec<StoreError> {
        let _turn = self.due.turn.lock().await;
        let mut open: Vec<(Taken<'_>, Turns)> = scopes
            .iter()
            .map(|scope| (Taken { store: self, scope: Some(*scope) }, Turns::default()))
            .collect();
        let mut errors = Vec::new();
        for _ in 0..SWEEP_ROUNDS_MAX {
            let now: Vec<Scope> = open.iter().filter_map(|(taken, _)| taken.scope).collect();
            if now.is_empty() {
                break;
            }
            let outcomes = self.turns(&now, done).await;
            let mut left = Vec::new();
            for ((mut taken, mut turns), (scope, outcome)) in
                open.into_iter().zip(now.into_iter().zip(outcomes))
            {
                let is_over = match outcome {
                    Ok((count, left)) => turns.are_over(&*self.log, scope, count, left).await,
                    Err(error) => Err(error),
                };
                match is_over {
                    Ok(false) => left.push((taken, turns)),
                    Ok(true) => taken.scope = None,
                    Err(error) => {
                        if !error.is_passing() {
                            // It fails again at the next call, and after that.
                            taken.scope = None;
                            self.make_due_later(scope);
                        }
                        errors.push(error);
                    }
                }
            }
            open = left;
        }
        // What arrives faster than this waits for the next sweep.
        open.iter_mut().for_each(|(taken, _)| taken.scope = None);
        errors
    }

    /// Checkpoints a part of the log, or sends it on, until nothing is left that was there before; not
    /// what comes in all the time.
    pub(crate) async fn drain(&self, scope: Scope) -> Result<Checkpointed, StoreError> {
        let mut done = Checkpointed::default();
        let mut turns = Turns::default();
        for _ in 0..SWEEP_ROUNDS_MAX {
            let (taken, left) = self.turn(scope, &mut done).await?;
            if turns.are_over(&*self.log, scope, taken, left).await? {
                break;
            }
        }
        Ok(done)
    }
}
