//! The ledger under a model checker: every order of its callers that shuttle finds.
//!
//! ```text
//!   touchers --+                    +-- guesser: speculate, then deliver, stage, or take back
//!   loaders ---+--> ledger, kernel <-+-- engine: installs or fails what is asked for
//!   evictor ---+                    +-- ghost: a fault that is delivered late
//!   quitter ---+    a load that is dropped while it waits
//!   writer ----+    keeps a unit, and touches it
//! ```
//!
//! A touch does what the fault thread does about it: where bytes are in memory, as they are at every second
//! touch, it puts them in place itself, and the engine tells of it later.
//!
//! The kernel is modelled by what a reader can see of it: a page is missing, there, or poisoned, and
//! whoever sleeps on it goes on when it is woken and looks again. A wake-up that is lost is a
//! deadlock, which the checker reports; the rest is asserted. `make deep` runs it.

use shuttle::{
    future::block_on,
    rand::Rng,
    scheduler::{PctScheduler, RandomScheduler},
    sync::{Condvar, mpsc},
    thread,
};

use super::*;
use crate::{policy::Clock, pool::Pool};

const UNITS: u64 = 3;
const UNIT: usize = 4096;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Page {
    Missing,
    There,
    Poisoned,
}

struct Pages {
    pages: [Page; UNITS as usize],
    /// Wake-ups of each page so far.
    wakes: [u64; UNITS as usize],
}

/// What the kernel does with three pages.
struct Kernel {
    state: Mutex<Pages>,
    woken: Condvar,
}

impl Kernel {
    fn set(&self, offset: usize, len: usize, page: Option<Page>, wake: bool) {
        let mut state = lock(&self.state);
        for at in offset / UNIT..((offset + len) / UNIT).min(UNITS as usize) {
            if let Some(page) = page {
                assert!(
                    page != Page::There || state.pages[at] != Page::There,
                    "page {at} is put in place twice"
                );
                state.pages[at] = page;
            }
            state.wakes[at] += u64::from(wake);
        }
        drop(state);
        self.woken.notify_all();
    }

    fn page(&self, unit: u64) -> Page {
        lock(&self.state).pages[unit as usize]
    }
}

impl Port for Kernel {
    fn can_fail(&self) -> bool {
        true
    }

    fn install(&self, _: &Mapping, offset: usize, frame: Frame) -> io::Result<()> {
        self.set(offset, frame.filled().len(), Some(Page::There), true);
        Ok(())
    }
    fn try_install(
        &self,
        _: &Mapping,
        offset: usize,
        frame: &mut Frame,
        _: usize,
    ) -> io::Result<bool> {
        let takes_more = shuttle::rand::thread_rng().gen_bool(0.2);
        if !takes_more {
            self.set(offset, frame.filled().len(), Some(Page::There), true);
        }
        Ok(!takes_more)
    }
    fn discard(&self, _: &Mapping, offset: usize, len: usize) -> io::Result<()> {
        self.set(offset, len, Some(Page::Missing), false);
        Ok(())
    }
    fn fail(&self, _: &Mapping, offset: usize, len: usize) -> io::Result<()> {
        self.set(offset, len, Some(Page::Poisoned), true);
        Ok(())
    }
    fn wake(&self, _: &Mapping, offset: usize, len: usize) -> io::Result<()> {
        self.set(offset, len, None, true);
        Ok(())
    }
}

/// What the engine is told.
enum Told {
    Missing(u64),
    Marker(u64),
    /// The fault thread has found bytes of the unit, and put them in place or not.
    Found(u64, Held, bool),
    Stop,
}

#[derive(Clone)]
struct World {
    ledger: Arc<Ledger>,
    kernel: Arc<Kernel>,
    budget: Budget,
    engine: mpsc::Sender<Told>,
}

impl World {
    fn new(budget_bytes: u64) -> (World, mpsc::Receiver<Told>) {
        let (engine, requests) = mpsc::channel();
        let budget = Budget::new(budget_bytes);
        let pool = Pool::new(&budget, Box::new(Clock::default()));
        let kernel = Arc::new(Kernel {
            state: Mutex::new(Pages { pages: [Page::Missing; UNITS as usize], wakes: [0; 3] }),
            woken: Condvar::new(),
        });
        let again = Mutex::new(engine.clone());
        let ledger = Ledger::new(
            0,
            Geometry::new(UNITS * UNIT as u64, 12),
            Some(Mapping::reserve(UNITS as usize * UNIT, SPAN_BYTES as usize).unwrap()),
            kernel.clone(),
            budget.clone(),
            Arc::default(),
            Box::new(move |unit| lock(&again).send(Told::Missing(unit)).unwrap()),
        );
        let ledger = Arc::new(ledger.unwrap());
        let tenant: Arc<dyn Tenant> = ledger.clone();
        ledger.settle(pool.join(Arc::downgrade(&tenant)).unwrap());
        (World { ledger, kernel, budget, engine }, requests)
    }

    fn tell(&self, asked: Asked, unit: u64) {
        match asked {
            Asked::Claimed => self.engine.send(Told::Missing(unit)).unwrap(),
            Asked::Marker => self.engine.send(Told::Marker(unit)).unwrap(),
            // A guess that is late is on its way, and is delivered by whoever claimed it.
            Asked::Resident | Asked::Used | Asked::Late | Asked::Coming => {}
        }
    }

    /// What the fault thread does about a touch of `unit`.
    fn fault(&self, unit: u64) {
        let asked = self.ledger.fault(unit);
        let held = match asked {
            Asked::Claimed if shuttle::rand::thread_rng().gen_bool(0.5) => {
                let (frame, charge) = self.bytes();
                Some(Held { frame, charge })
            }
            Asked::Marker => self.ledger.try_take_staged(unit),
            _ => None,
        };
        match held {
            Some(mut held) => {
                let placed = self.ledger.place(unit, &mut held).unwrap();
                self.engine.send(Told::Found(unit, held, placed)).unwrap();
            }
            None => self.tell(asked, unit),
        }
    }

    /// A thread touches `unit`, and sleeps until it may look again. Whether it read the bytes.
    fn touch(&self, unit: u64) -> bool {
        loop {
            let wakes = {
                let state = lock(&self.kernel.state);
                match state.pages[unit as usize] {
                    Page::There => return true,
                    Page::Poisoned => return false,
                    Page::Missing => state.wakes[unit as usize],
                }
            };
            self.fault(unit);
            let mut state = lock(&self.kernel.state);
            while state.wakes[unit as usize] == wakes {
                state = self.kernel.woken.wait(state).unwrap();
            }
        }
    }

    /// Pins `unit` and asks for it, as `Region::load` does; what to wait for.
    fn ask_for(&self, unit: u64) -> Option<Arc<Waiter>> {
        let Ok(asked) = self.ledger.pin(unit) else { panic!("no limit is near") };
        if matches!(asked, Asked::Resident | Asked::Used) {
            return None;
        }
        let waiter = Waiter::new(WaitsBy::Task);
        let waits = self.ledger.wait(unit, &waiter);
        if asked == Asked::Claimed || (waits && self.ledger.claim_if_idle(unit)) {
            self.tell(Asked::Claimed, unit);
        } else {
            self.tell(asked, unit);
        }
        waits.then_some(waiter)
    }

    /// A load that is dropped before its bytes have come.
    fn quit(&self, unit: u64) {
        drop(self.ask_for(unit));
        thread::yield_now();
        self.ledger.unpin(unit);
    }

    /// What `Region::load` does for one unit.
    fn load(&self, unit: u64) -> bool {
        let waiter = self.ask_for(unit);
        let loaded = waiter.is_none_or(|waiter| block_on(Decided(waiter)).is_ok());
        if loaded {
            assert_eq!(self.kernel.page(unit), Page::There, "a guard's bytes are there");
            thread::yield_now();
            assert_eq!(self.kernel.page(unit), Page::There, "and stay");
        }
        self.ledger.unpin(unit);
        loaded
    }

    /// A map to write of `unit`: keeps it wherever it is, touches it, and lets it go. What is written while it
    /// is kept must not leave.
    fn write(&self, unit: u64) {
        assert_eq!(self.ledger.keep_untouched(unit, true), Kept::Yes, "no limit is near");
        block_on(self.ledger.until(|| !self.ledger.is_leaving(unit)));
        if self.touch(unit) {
            assert_eq!(self.kernel.page(unit), Page::There);
            thread::yield_now();
            assert_eq!(self.kernel.page(unit), Page::There, "what was written is lost");
        }
        block_on(self.ledger.until(|| !self.ledger.is_coming(unit)));
        self.ledger.unkeep(unit);
    }

    fn bytes(&self) -> (Frame, Reservation) {
        let mut frame = Frame::with_capacity(UNIT);
        frame.put(&[1; UNIT]);
        (frame, self.budget.try_reserve(self.ledger.unit_cost()).expect("the budget is large"))
    }

    fn fail(&self, unit: u64) {
        let error = SourceError::transient_read("model", 0..1, "reset", None);
        drop(self.ledger.fail(unit, &error, true).unwrap());
    }

    /// A request for `unit` ends, well or not.
    fn deliver(&self, unit: u64) {
        if shuttle::rand::thread_rng().gen_bool(0.3) {
            self.fail(unit);
        } else {
            let (frame, charge) = self.bytes();
            drop(self.ledger.install(unit, frame, charge).unwrap());
        }
    }

    /// A guess is claimed, and its request ends in one of the ways that a transfer has.
    fn guess(&self, unit: u64) {
        if self.ledger.speculate(unit) != Speculated::Claimed {
            return;
        }
        match shuttle::rand::thread_rng().gen_range(0..3) {
            0 => {
                if self.ledger.unclaim(unit) {
                    self.tell(Asked::Claimed, unit);
                }
            }
            1 => {
                let (frame, charge) = self.bytes();
                drop(self.ledger.stage(unit, frame, charge).unwrap());
            }
            _ => {
                let (frame, charge) = self.bytes();
                drop(self.ledger.install(unit, frame, charge).unwrap());
            }
        }
        if shuttle::rand::thread_rng().gen_bool(0.5) {
            self.ledger.drop_guess(unit);
        }
    }

    /// What the engine does about `unit` when a reader has touched its neighbour. It is a thread of its own
    /// here, which is more than can happen.
    fn bring_back(&self, unit: u64) {
        if !self.ledger.claim_back(unit) {
            return;
        }
        if shuttle::rand::thread_rng().gen_bool(0.5) {
            let (frame, charge) = self.bytes();
            drop(self.ledger.restore(unit, Held { frame, charge }, false).unwrap());
        } else if self.ledger.unclaim(unit) {
            self.engine.send(Told::Missing(unit)).unwrap();
        }
    }

    fn serve(&self, requests: &mpsc::Receiver<Told>) {
        while self.handle(requests.recv().unwrap()) {}
        while let Ok(told) = requests.try_recv() {
            self.handle(told);
        }
    }

    /// What the engine does about `told`. False if that is to stop.
    fn handle(&self, told: Told) -> bool {
        match told {
            Told::Missing(unit) => self.deliver(unit),
            Told::Marker(unit) => drop(self.ledger.install_staged(unit).unwrap()),
            Told::Found(unit, held, true) => {
                drop(self.ledger.announce(unit));
                drop(held);
            }
            Told::Found(unit, held, false) => {
                drop(self.ledger.restore(unit, held, false).unwrap());
            }
            Told::Stop => return false,
        }
        true
    }

    /// What must hold when nobody is left who asks.
    fn check(&self) {
        let cost = self.ledger.unit_cost();
        for unit in 0..UNITS {
            let (word, page) = (self.ledger.words.get(unit), self.kernel.page(unit));
            let expected = match word.state() {
                State::Absent | State::Staged => page == Page::Missing,
                State::Resident => page == Page::There,
                // The marker may have gone with its span.
                State::Poisoned => page != Page::There,
                State::Fetching | State::Leaving => false,
            };
            assert!(expected, "unit {unit} is {word:?}, {:?}, its page {page:?}", word.state());
            assert_eq!(word.pins(), 0, "unit {unit}");
            assert!(!word.has(KEPT), "unit {unit}: no map is left");
            assert!(!word.has(UNTOLD), "unit {unit}: nobody told the policy");
            let waits = word.state() == State::Resident && word.has(WAITERS);
            assert!(!waits, "unit {unit}: nobody told who waits");
        }
        assert_eq!((self.budget.pinned(), self.budget.dirty()), (0, 0));
        assert_eq!(self.budget.speculative(), self.ledger.guesses() * cost);
        self.ledger.retire();
        assert_eq!((self.budget.used(), self.budget.speculative()), (0, 0));
        assert_eq!(self.ledger.guesses(), 0);
        assert!((0..UNITS).all(|unit| self.kernel.page(unit) != Page::There));
    }
}

/// The actors of the picture at the top, all of them on one unit, some on its neighbour too: what
/// shares a page-table span leaves together.
fn story() {
    let (world, requests) = World::new(1 << 20);
    let engine = {
        let world = world.clone();
        thread::spawn(move || world.serve(&requests))
    };
    let actors: [fn(&World); 9] = [
        |world| {
            world.touch(0);
        },
        |world| {
            world.touch(0);
            world.load(1);
        },
        |world| {
            world.load(0);
            world.load(0);
        },
        |world| {
            world.ledger.evict(0);
            // By name, also what the policy has not heard of yet.
            world.ledger.discard(0..2);
            world.ledger.evict(0);
        },
        |world| {
            world.guess(0);
            world.guess(1);
        },
        // Read by the fault thread when whoever touched the page has long gone on.
        |world| world.fault(0),
        |world| world.quit(0),
        |world| world.write(0),
        |world| {
            world.bring_back(0);
            world.bring_back(1);
        },
    ];
    let actors = actors.map(|actor| {
        let world = world.clone();
        thread::spawn(move || actor(&world))
    });
    for actor in actors {
        actor.join().unwrap();
    }
    world.engine.send(Told::Stop).unwrap();
    engine.join().unwrap();
    world.check();
}

/// Two that pin one unit, where the limit has room for one unit.
fn one_unit_is_all() {
    let (world, _requests) = World::new(2 * (UNIT + PAGE) as u64);
    assert_eq!(world.ledger.speculate(0), Speculated::NoRoom, "a quarter is half a unit");
    assert_eq!(world.ledger.fault(0), Asked::Claimed);
    let (frame, charge) = world.bytes();
    drop(world.ledger.install(0, frame, charge).unwrap());
    let actors = [(); 2].map(|()| {
        let world = world.clone();
        thread::spawn(move || {
            for _ in 0..2 {
                assert!(world.ledger.pin(0).is_ok(), "refused, though its own count has room");
                world.ledger.unpin(0);
            }
        })
    });
    // Whoever finds the limit reached elsewhere asks for what is not pinned.
    world.ledger.release_idle_pins();
    actors.into_iter().for_each(|actor| actor.join().unwrap());
    world.check();
}

/// `SHUTTLE_ROUNDS=n` looks at more orders.
fn rounds() -> usize {
    std::env::var("SHUTTLE_ROUNDS").ok().and_then(|n| n.parse().ok()).unwrap_or(20_000)
}

fn check(orders: impl shuttle::scheduler::Scheduler + 'static, story: fn()) {
    let mut config = shuttle::Config::new();
    // The kernel's calls and a frame's bytes do not fit the default of 32 KiB.
    config.stack_size = 1 << 20;
    shuttle::Runner::new(orders, config).run(story);
}

#[test]
fn no_order_of_callers_loses_a_wake_or_a_byte() {
    check(RandomScheduler::new(rounds()), story);
}

#[test]
fn nor_does_one_with_few_switches() {
    check(PctScheduler::new(4, rounds()), story);
}

#[test]
fn who_pins_the_only_unit_is_never_refused() {
    check(RandomScheduler::new(rounds()), one_unit_is_all);
}
