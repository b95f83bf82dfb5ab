//! Clusters of clients of 2008, as the paper prints their protocols, and what becomes of what they commit.
//!
//! ```text
//!   client   one transaction after the other: a new record, with its entry in an index; its own two
//!            records of other pages get the transaction's number; at times an old record goes
//!   behind   ATOMIC queue, checkpoints of data pages (5.1) and of trees (5.2)
//! ```
//!
//! Nothing here is asserted: the paper's protocols lose data, on services of today as on those of 2007, and
//! what a run counts is how much. The hardened protocols run the same faults in `cluster`, and lose nothing.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    ops::AddAssign,
    sync::{Arc, Mutex},
    time::Duration,
};

use bytes::Bytes;

use super::stage::{STEPS_MAX, lock};
use crate::{
    cloud::{
        Cloud,
        model::{Executor, Faults, Latency, Mishap, Process, World},
    },
    error::StoreError,
    names::PAGES,
    page::{Page, PageId},
    paper::{
        Change, PaperClient, PaperSettings, Variant,
        tree::{Looked, create_tree},
    },
    record::{Key, Payload},
    stamp::Stamp,
    tree::secondary,
};

const RECORDS: PageId = PageId(1 << 64 | 1);
const INDEX: PageId = PageId(2 << 64 | 1);
/// How long what is left is worked off in the end: so many rounds, one per lock timeout.
const ROUNDS: u32 = 40;

/// What a run of printed protocols does. The seed decides the rest.
#[derive(Clone, Debug, PartialEq)]
pub struct PrintedPlan {
    /// Which protocol.
    pub variant: Variant,
    /// Clients.
    pub clients: u32,
    /// Transactions that each tries.
    pub transactions: u32,
    /// What goes wrong.
    pub faults: Faults,
    /// How long calls take.
    pub latency: Latency,
    /// What must be left of the lock's timeout, of 2 s, for the put (5.1, 5.2).
    pub padding: Duration,
    /// Clients insert records, and change none: then nobody puts a page but under the lock of its tree, and
    /// no counter or order says more than a record's key.
    pub only_inserts: bool,
    /// Bytes above which pages are split.
    pub page_bytes_max: usize,
    /// Probability that a client that crashed comes back.
    pub comes_back: f64,
    /// How long clients work, in virtual time.
    pub work: Duration,
}

impl PrintedPlan {
    /// A protocol under every fault, on services of today.
    pub fn new(variant: Variant) -> PrintedPlan {
        PrintedPlan {
            variant,
            clients: 3,
            transactions: 10,
            // Bytes of nobody are no fault that the paper knows.
            faults: Faults { poisoned: 0.0, ..Faults::ALL },
            latency: Latency::ROUGH,
            padding: PaperSettings::new(variant).padding,
            only_inserts: false,
            page_bytes_max: 900,
            comes_back: 0.7,
            work: Duration::from_secs(60),
        }
    }
}

/// What became of what was committed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PrintedReport {
    /// Runs.
    pub runs: u64,
    /// Runs in which anything was not as it should be.
    pub broken: u64,
    /// Transactions that were committed.
    pub committed: u64,
    /// Records of them that are not there, or are older than what was committed last.
    pub lost: u64,
    /// Records that were deleted, and are there.
    pub revived: u64,
    /// Clients of whose last transaction a part is there. Promised by Atomicity alone.
    pub torn: u64,
    /// Reads that showed less than an earlier read or an own commit had. Promised from Monotonicity on.
    pub back: u64,
    /// Entries of an index without their record, and records without their entry.
    pub dangling: u64,
    /// Messages that nobody gets rid of.
    pub stuck: u64,
    /// Tokens of locks that are gone, and with each what waits behind it (W6).
    pub tokens_gone: u64,
    /// Trees that a reader does not come through.
    pub unreadable: u64,
}

impl PrintedReport {
    /// What was not as it should be, each under its name.
    pub fn counts(&self) -> [(&'static str, u64); 7] {
        [
            ("lost", self.lost),
            ("revived", self.revived),
            ("torn", self.torn),
            ("gone back", self.back),
            ("dangling", self.dangling),
            ("stuck", self.stuck),
            ("unreadable", self.unreadable),
        ]
    }

    /// Whether everything was as it should be.
    pub fn is_sound(&self) -> bool {
        self.counts().iter().all(|(_, count)| *count == 0)
    }
}

impl AddAssign for PrintedReport {
    fn add_assign(&mut self, more: PrintedReport) {
        self.runs += more.runs;
        self.broken += more.broken;
        self.committed += more.committed;
        self.lost += more.lost;
        self.revived += more.revived;
        self.torn += more.torn;
        self.back += more.back;
        self.dangling += more.dangling;
        self.stuck += more.stuck;
        self.tokens_gone += more.tokens_gone;
        self.unreadable += more.unreadable;
    }
}

/// What clients know.
#[derive(Default)]
struct Known {
    committed: u64,
    back: u64,
    /// Records that were inserted by a commit, with what they say.
    inserted: BTreeMap<Key, Payload>,
    /// Records of which nobody knows whether they are there: their last transaction was unclear.
    unclear: HashSet<Key>,
    deleted: HashSet<Key>,
    /// The last number that each client committed, and whether a later one was unclear.
    numbers: BTreeMap<u64, (u64, bool)>,
    tried: HashMap<u64, u32>,
    lives: HashMap<Process, u64>,
    next_process: u32,
}

#[derive(Clone)]
struct Shop {
    plan: PrintedPlan,
    world: World,
    known: Arc<Mutex<Known>>,
}

fn own_key(client: u64, part: &str) -> Result<Key, StoreError> {
    Ok(Key::new(format!("{part}-{client:03}"))?)
}

fn number_of(looked: &Looked) -> u64 {
    let digits = looked.payload.as_ref().and_then(|it| std::str::from_utf8(it.as_bytes()).ok());
    digits.and_then(|digits| digits.trim_end_matches('.').parse().ok()).unwrap_or(0)
}

/// Runs `plan` with `seed`.
pub fn run_printed(plan: &PrintedPlan, seed: u64) -> PrintedReport {
    let world = World::new(seed, Faults::NONE, plan.latency);
    world.receive_many();
    let mut executor = Executor::new(world.time.clone(), seed ^ 0x5eed);
    let known = Arc::new(Mutex::new(Known { next_process: 10, ..Known::default() }));
    let shop = Shop { plan: plan.clone(), world: world.clone(), known: known.clone() };
    let (admin, supervisor, sweeper) = (Process(1), Process(2), Process(3));
    for process in [admin, supervisor, sweeper] {
        world.make_safe(process);
    }
    {
        let (shop, cloud) = (shop.clone(), world.cloud(admin));
        world.time.spawn(admin, async move {
            // Nothing goes wrong here.
            let _ = shop.open(&cloud).await;
        });
    }
    executor.run(u64::MAX, STEPS_MAX);
    world.set_faults(plan.faults.clone());
    let end_us = world.time.now_us() + plan.work.as_micros() as u64;
    for client in 1..=u64::from(plan.clients) {
        shop.start(client);
    }
    world.time.spawn(supervisor, shop.clone().supervise(end_us));
    executor.run(end_us, STEPS_MAX);

    world.set_faults(Faults { stale_max: plan.faults.stale_max, ..Faults::NONE });
    world.time.kill(supervisor);
    world.time.end_stalls();
    executor.run(end_us + 100_000_000, STEPS_MAX);
    let lives: Vec<(Process, u64)> = {
        let mut known = lock(&known);
        known.lives.drain().collect()
    };
    let mut back: Vec<u64> = lives.iter().map(|(_, client)| *client).collect();
    back.sort_unstable();
    back.dedup();
    for (process, _) in lives {
        world.time.kill(process);
    }
    {
        let (shop, cloud) = (shop.clone(), world.cloud(sweeper));
        world.time.spawn(sweeper, async move { shop.work_off(&cloud, &back).await });
    }
    executor.run(u64::MAX, STEPS_MAX);
    let mut report = shop.compare();
    report.runs = 1;
    report.broken = u64::from(!report.is_sound());
    report
}

impl Shop {
    /// Two trees; in that of the records, each client's own.
    async fn open(&self, cloud: &Cloud) -> Result<(), StoreError> {
        let mut records = Page::root(RECORDS);
        for client in 1..=u64::from(self.plan.clients) {
            for part in ["a", "z"] {
                let key = Bytes::copy_from_slice(own_key(client, part)?.as_bytes());
                let payload = Bytes::from_static(b"0");
                records.apply_if(&key, Stamp::default(), Some(payload.into()), |_| true);
            }
        }
        create_tree(cloud, &records).await?;
        create_tree(cloud, &Page::root(INDEX)).await
    }

    async fn client(&self, cloud: &Cloud, id: u64) -> Result<PaperClient, StoreError> {
        let settings = PaperSettings {
            ttl: Duration::from_secs(4),
            checkpoint_interval: Duration::from_secs(2),
            page_bytes_max: self.plan.page_bytes_max,
            padding: self.plan.padding,
            ..PaperSettings::new(self.plan.variant)
        };
        PaperClient::new(settings, id, cloud.clone(), cloud.clone()).await
    }

    fn start(&self, client: u64) {
        let process = {
            let mut known = lock(&self.known);
            known.next_process += 1;
            let process = Process(known.next_process);
            known.lives.insert(process, client);
            process
        };
        let shop = self.clone();
        self.world.time.spawn(process, async move { shop.live(process, client).await });
    }

    async fn supervise(self, end_us: u64) {
        while self.world.time.now_us() < end_us {
            self.world.time.sleep(1_000_000).await;
            let mut restarts = Vec::new();
            for process in self.world.take_crashed() {
                if let Some(client) = lock(&self.known).lives.remove(&process)
                    && self.world.with_probability(self.plan.comes_back)
                {
                    restarts.push(client);
                }
            }
            restarts.into_iter().for_each(|client| self.start(client));
        }
    }

    /// One life of a client.
    async fn live(&self, process: Process, id: u64) {
        let (world, cloud) = (&self.world, self.world.cloud(process));
        let client = loop {
            match self.client(&cloud, id).await {
                Ok(client) => break Arc::new(client),
                Err(_) => world.time.sleep(1_000_000).await,
            }
        };
        if self.plan.variant == Variant::Atomicity {
            // Recovery at the start (section 7).
            let _ = client.forward(true).await;
        }
        let committed: Arc<Mutex<Vec<PageId>>> = Arc::default();
        {
            let (client, time, variant) = (client.clone(), world.time.clone(), self.plan.variant);
            let committed = committed.clone();
            world.time.spawn(process, async move {
                loop {
                    time.sleep(1_500_000).await;
                    if variant == Variant::Atomicity {
                        let _ = client.forward(false).await;
                    }
                    let mut pages = std::mem::take(&mut *lock(&committed));
                    pages.sort_unstable();
                    pages.dedup();
                    // What fails is tried again with the next commit to that page.
                    for page in pages {
                        let _ = client.checkpoint(page).await;
                    }
                    for root in [RECORDS, INDEX] {
                        let _ = client.checkpoint_tree(root).await;
                    }
                }
            });
        }
        let mut seen: HashMap<Key, u64> = HashMap::new();
        loop {
            let tried = {
                let mut known = lock(&self.known);
                let tried = known.tried.entry(id).or_default();
                *tried += 1;
                *tried
            };
            if tried > self.plan.transactions {
                return;
            }
            world.time.sleep(world.below(4_000_000)).await;
            // What cannot be read is not written.
            let _ = self.transaction(&client, id, u64::from(tried), &mut seen, &committed).await;
        }
    }

    async fn transaction(
        &self,
        client: &PaperClient,
        id: u64,
        number: u64,
        seen: &mut HashMap<Key, u64>,
        committed: &Mutex<Vec<PageId>>,
    ) -> Result<(), StoreError> {
        let world = &self.world;
        // Somebody else's, and then its own: neither goes back.
        let other = 1 + world.below(u64::from(self.plan.clients));
        for (of, part) in [(other, "a"), (id, "a")] {
            let key = own_key(of, part)?;
            let there = number_of(&client.look(RECORDS, &key).await?);
            let before = seen.entry(key).or_default();
            if there < *before {
                lock(&self.known).back += 1;
            }
            *before = there.max(*before);
        }
        let key = Key::new(format!("m-{:02}-{id:03}-{number:03}", world.below(60)))?;
        // Some are long, so that pages grow.
        let text = format!("{number}{}", ".".repeat(world.below(60) as usize));
        let payload = Payload::new(text)?;
        let there = client.look(RECORDS, &key).await?;
        let mut changes: Vec<Change> = vec![there.put(RECORDS, key.clone(), payload.clone())];
        let entry = Key::new(secondary::join(format!("c{id}").as_bytes(), key.as_bytes()))?;
        let there = client.look(INDEX, &entry).await?;
        changes.push(there.put(INDEX, entry, Payload::default()));
        let parts: &[&str] = if self.plan.only_inserts { &[] } else { &["a", "z"] };
        for part in parts {
            let own = own_key(id, part)?;
            let there = client.look(RECORDS, &own).await?;
            changes.push(Change {
                kind: crate::paper::ChangeKind::Update(Payload::new(format!("{number}"))?),
                ..there.put(RECORDS, own, Payload::default())
            });
        }
        let gone = {
            let known = lock(&self.known);
            let is_own = |it: &&Key| it.as_bytes()[5..8] == *format!("{id:03}").as_bytes();
            let mut own = known.inserted.keys().filter(is_own);
            let deletes = !self.plan.only_inserts && number.is_multiple_of(3);
            own.next().cloned().filter(|_| deletes)
        };
        if let Some(gone) = &gone {
            changes.push(client.look(RECORDS, gone).await?.delete(RECORDS, gone.clone()));
            let entry = Key::new(secondary::join(format!("c{id}").as_bytes(), gone.as_bytes()))?;
            changes.push(client.look(INDEX, &entry).await?.delete(INDEX, entry));
        }
        let pages: Vec<PageId> = changes.iter().map(|change| change.page).collect();
        {
            // Until it is known, and for ever if the process dies.
            let mut known = lock(&self.known);
            known.unclear.insert(key.clone());
            known.unclear.extend(gone.clone());
            if !self.plan.only_inserts {
                known.numbers.entry(id).or_default().1 = true;
            }
        }
        let outcome = client.commit_all(changes).await;
        lock(committed).extend(pages);
        outcome?;
        let mut known = lock(&self.known);
        known.committed += 1;
        known.unclear.remove(&key);
        known.inserted.insert(key, payload);
        if let Some(gone) = gone {
            known.inserted.remove(&gone);
            known.unclear.remove(&gone);
            known.deleted.insert(gone);
        }
        if !self.plan.only_inserts {
            known.numbers.insert(id, (number, false));
        }
        for part in parts {
            seen.insert(own_key(id, part)?, number);
        }
        Ok(())
    }

    /// Everything that can still come to its page: by those clients that came back, and by anyone.
    async fn work_off(&self, cloud: &Cloud, back: &[u64]) {
        let mut clients = Vec::new();
        for id in back {
            clients.extend(self.client(cloud, *id).await.ok());
        }
        let Ok(sweeper) = self.client(cloud, u64::MAX).await else { return };
        for round in 0..ROUNDS {
            if self.plan.variant == Variant::Atomicity {
                for client in &clients {
                    let _ = client.forward(round < 2).await;
                }
            }
            let names = self.world.queue_names();
            let waiting = names.iter().filter(|name| self.world.messages(name) > 0);
            let pages: Vec<PageId> = waiting
                .filter_map(|name| {
                    PageId::of_object(&format!("{PAGES}{}", name.strip_prefix("pu-")?))
                })
                .collect();
            for page in pages {
                let _ = sweeper.checkpoint(page).await;
            }
            for root in [RECORDS, INDEX] {
                let _ = sweeper.checkpoint_tree(root).await;
            }
            cloud.clock.sleep(Duration::from_secs(3)).await;
        }
    }

    /// What readers find in a tree: what lies between the fences of its leaves. `None` when they do not
    /// come to its end.
    fn contents(&self, root: PageId) -> Option<BTreeMap<Bytes, Bytes>> {
        let mut pages: HashMap<PageId, Page> = HashMap::new();
        for (_, versions) in self.world.history(PAGES) {
            let bytes = versions.last().and_then(|version| version.bytes.clone());
            if let Some(page) = bytes.and_then(|bytes| Page::decode(&bytes).ok()) {
                pages.insert(page.id, page);
            }
        }
        let mut page = pages.get(&root)?;
        while page.level > 0 {
            page = pages.get(&page.links().first()?.child)?;
        }
        let (mut found, mut met) = (BTreeMap::new(), HashSet::new());
        loop {
            if !met.insert(page.id) {
                return None;
            }
            for slot in page.slots().iter().filter(|slot| page.owns(&slot.key)) {
                let payload = slot.payload.as_ref().and_then(|payload| payload.here());
                found.insert(slot.key.clone(), payload.cloned().unwrap_or_default());
            }
            match page.right {
                None => return Some(found),
                Some(right) => page = pages.get(&right)?,
            }
        }
    }

    fn compare(&self) -> PrintedReport {
        let known = lock(&self.known);
        let mut report = PrintedReport {
            committed: known.committed,
            back: known.back,
            tokens_gone: self.world.met()[&Mishap::LostToken],
            ..PrintedReport::default()
        };
        let names = self.world.queue_names();
        let waiting = names.iter().filter(|name| !name.starts_with("lock-"));
        report.stuck = waiting.map(|name| self.world.messages(name) as u64).sum();
        let (records, index) = (self.contents(RECORDS), self.contents(INDEX));
        report.unreadable = u64::from(records.is_none()) + u64::from(index.is_none());
        let (Some(records), Some(index)) = (records, index) else { return report };
        let number = |client, part: &str| {
            let key = own_key(client, part).ok()?;
            std::str::from_utf8(records.get(key.as_bytes())?).ok()?.parse::<u64>().ok()
        };
        for (&client, &(last, is_unclear)) in &known.numbers {
            let there = ["a", "z"].map(|part| number(client, part));
            let is_there = |there: &Option<u64>| there.is_some_and(|there| there >= last);
            report.lost += there.iter().filter(|there| !is_there(there)).count() as u64;
            let is_torn = there[0] != there[1];
            // An unclear one of Basic may be half there, by what it promises.
            report.torn += u64::from(is_torn && (!is_unclear || self.is_atomic()));
        }
        for (key, payload) in known.inserted.iter().filter(|(key, _)| !known.unclear.contains(*key))
        {
            let there = records.get(key.as_bytes());
            report.lost += u64::from(there.is_none_or(|there| there != payload.as_bytes()));
        }
        let is_there = |key: &&Key| records.contains_key(key.as_bytes());
        report.revived = known.deleted.iter().filter(is_there).count() as u64;
        let of = |pair: &Bytes| Some(Bytes::copy_from_slice(secondary::divide(pair)?.1));
        let entries: HashSet<Bytes> = index.keys().filter_map(of).collect();
        let listed: HashSet<&Bytes> = records.keys().filter(|key| key.starts_with(b"m-")).collect();
        let without_record = entries.iter().filter(|key| !listed.contains(*key)).count();
        let without_entry = listed.iter().filter(|key| !entries.contains(**key)).count();
        report.dangling = (without_record + without_entry) as u64;
        report
    }

    fn is_atomic(&self) -> bool {
        self.plan.variant == Variant::Atomicity
    }
}
