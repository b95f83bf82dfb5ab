//! How near is each way of putting bytes in place to what the kernel does with a file it has in memory?
//!
//! ```text
//!   mmap        the file in its cache, in large folios, and once more in folios of 4 KiB
//!   recalled    a region whose units were given up and whose frames nobody has used since: each is moved
//!               back, and no byte is copied. What hands pages over without a copy costs about as much
//!   copied      a region over a source in memory, with room for an eighth of the object, or for all
//!   sealed      a memory file, mapped: no region
//! ```
//!
//! All of a table run in turn, each round in another order, each time over a fresh mapping; what is
//! recycled by the pager was used before, because a program pays for that once. `goal` lines say what
//! was aimed for. `--only scan,work,random,install,load,fault` measures some, `--rounds N` in so many
//! rounds.

mod shared;

use std::{
    fs::File,
    io::Write,
    sync::atomic::{AtomicBool, Ordering},
    time::{Duration, Instant},
};

use memmap2::{Advice, Mmap, MmapMut};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use pager::{
    Bytes, Hint, Mapped, Mechanism, Pager, Region, SealedMap,
    bench::Units,
    sealed::{Part, seal},
};
use shared::{Folios, Memory, cpu, median, ns_per_byte, shuffled, sum, words, work_of};
use userfaultfd::{Event, Uffd, UffdBuilder};

/// The object. An eighth of it holds 36 units of 2 MiB, the fewest that a budget may have room for.
const LEN: usize = 640 << 20;
const EIGHTH: u64 = LEN as u64 / 8;
/// Room for all of it.
const WHOLE: u64 = LEN as u64 + LEN as u64 / 8;
const ROUNDS: usize = 11;
/// Of the passes that take more than a second.
const ROUNDS_LONG: usize = 5;
/// Of what takes a few milliseconds.
const ROUNDS_SHORT: usize = 31;
/// What is received and installed in one round.
const INSTALLED: usize = 32 << 20;
/// Bytes of a slice that is loaded, and of the part of the object that they are taken from.
const SLICE: usize = 512;
const RESIDENT: usize = 64 << 20;
const PAGE: usize = 4096;
/// Faults that are measured, and pages that are announced for each.
const FAULTS: usize = 1_000;
const ANNOUNCED: usize = 8;

/// One way to read the object.
#[derive(Clone, Copy, PartialEq)]
enum Way {
    Mmap { large: bool },
    Sealed,
    Recalled { hint: Told },
    Copied { kib: u64, budget: u64, hint: Told },
}

/// What the region is told about the reads.
#[derive(Clone, Copy, PartialEq)]
enum Told {
    Sequential,
    Nothing,
    /// Nothing is fetched ahead: each unit waits for its fault.
    Random,
}

impl Told {
    fn hint(self) -> Hint<'static> {
        match self {
            Told::Sequential => Hint::Sequential,
            Told::Nothing => Hint::Normal,
            Told::Random => Hint::Random,
        }
    }

    fn name(self) -> &'static str {
        match self {
            Told::Sequential => ", sequential hint",
            Told::Nothing => "",
            Told::Random => ", faults alone",
        }
    }
}

impl Way {
    fn name(self) -> String {
        match self {
            Way::Mmap { large: true } => "mmap, large folios".to_owned(),
            Way::Mmap { large: false } => "mmap, folios of 4 KiB".to_owned(),
            Way::Sealed => "sealed memory file, mapped".to_owned(),
            Way::Recalled { hint } => format!("recalled, unit 2 MiB{}", hint.name()),
            Way::Copied { kib, budget, hint } => {
                let room = if budget == EIGHTH { "an eighth" } else { "all" };
                format!("copied, unit {kib} KiB, room for {room}{}", hint.name())
            }
        }
    }
}

const LARGE: Way = Way::Mmap { large: true };
const SMALL: Way = Way::Mmap { large: false };

const fn copied(kib: u64, budget: u64, hint: Told) -> Way {
    Way::Copied { kib, budget, hint }
}

/// What was read, until its time has been taken.
enum Kept {
    Mmap(Mmap),
    Sealed { _map: SealedMap },
    Region { region: Region, _mapped: Mapped },
}

/// The object, wherever it is.
struct Object {
    bytes: Bytes,
    large: File,
    small: File,
    sealed: File,
    /// Over all of the object, with room for it.
    recalled: Region,
    /// With the frames that its regions have used.
    pagers: Vec<(u64, u64, Pager, Region)>,
}

fn mechanism(kib: u64) -> Mechanism {
    if kib < 256 { Mechanism::Copy } else { Mechanism::Move }
}

fn pager(kib: u64, budget: u64) -> Pager {
    let builder = Pager::builder().budget_bytes(budget).mechanism(mechanism(kib));
    builder.unit_bytes(kib << 10).build().expect("this needs userfaultfd with MOVE")
}

impl Object {
    fn new() -> Object {
        let bytes = words(LEN);
        // The kernel takes folios as large as the write.
        let file = |step: usize| {
            let mut file = tempfile::tempfile().expect("a file for mmap");
            bytes
                .chunks(step)
                .for_each(|chunk| file.write_all(chunk).expect("room for the object"));
            file.sync_all().expect("nothing of it is written later");
            file
        };
        let (large, small) = (file(LEN), file(PAGE));
        let sealed = seal(LEN as u64, |file| file.write_all(&bytes)).expect("a memory file");
        let bytes = Bytes::from(bytes);
        let recalled = pager(2048, WHOLE).open(Memory(bytes.clone())).expect("open");
        Object { bytes, large, small, sealed, recalled, pagers: Vec::new() }
    }

    /// The pager of a region that copies. A region of it stays open, and with it what is recycled.
    fn pager(&mut self, kib: u64, budget: u64) -> Pager {
        let known = self.pagers.iter().find(|known| (known.0, known.1) == (kib, budget));
        if let Some((_, _, pager, _)) = known {
            return pager.clone();
        }
        let pager = pager(kib, budget);
        let stays = pager.open(Memory(self.bytes.slice(..PAGE))).expect("open");
        self.pagers.push((kib, budget, pager.clone(), stays));
        pager
    }

    /// Reads the object by `way` with `read`, whose answer must be `expected`. Returns the seconds of wall
    /// and processor time, and what is kept to be dropped later.
    fn read(&mut self, way: Way, expected: u64, read: &dyn Fn(&[u8]) -> u64) -> (f64, f64, Kept) {
        if let Way::Recalled { .. } = way {
            self.give_up_all();
        }
        let pager = match way {
            Way::Copied { kib, budget, .. } => Some(self.pager(kib, budget)),
            _ => None,
        };
        let (cpu_before, start) = (cpu(), Instant::now());
        let (got, kept) = match way {
            Way::Mmap { large } => {
                let file = if large { &self.large } else { &self.small };
                // SAFETY: the file is this program's own, unlinked, and not written any more.
                let mapped = unsafe { Mmap::map(file) }.expect("mmap");
                (read(&mapped), Kept::Mmap(mapped))
            }
            Way::Sealed => {
                let part = Part {
                    file: self.sealed.try_clone().expect("a descriptor"),
                    range: 0..LEN as u64,
                };
                let map = SealedMap::new(&[part]).expect("a sealed file");
                (read(&map), Kept::Sealed { _map: map })
            }
            Way::Recalled { hint } => {
                self.recalled.advise(hint.hint()).expect("advise");
                let mapped = self.recalled.map().expect("map");
                let got = read(&mapped);
                (got, Kept::Region { region: self.recalled.clone(), _mapped: mapped })
            }
            Way::Copied { hint, .. } => {
                let pager = pager.expect("made above");
                let region = pager.open(Memory(self.bytes.clone())).expect("open");
                region.advise(hint.hint()).expect("advise");
                let mapped = region.map().expect("map");
                (read(&mapped), Kept::Region { region, _mapped: mapped })
            }
        };
        let took = (start.elapsed().as_secs_f64(), (cpu() - cpu_before).as_secs_f64());
        assert_eq!(got, expected, "{}", way.name());
        if let (Kept::Region { region, .. }, Way::Copied { .. }) = (&kept, way) {
            // Its frames go back to where the next region takes them.
            region.advise(Hint::DontNeed(0..LEN as u64)).expect("advise");
        }
        (took.0, took.1, kept)
    }

    /// All units of `recalled` are in idle frames after this.
    fn give_up_all(&self) {
        let region = &self.recalled;
        if region.stats().units_installed == 0 {
            sum(&region.map().expect("map"), 0);
        }
        // A guess may still be on its way, or staged.
        let start = Instant::now();
        while {
            region.advise(Hint::DontNeed(0..LEN as u64)).expect("advise");
            region.stats().units_resident > 0
        } {
            assert!(start.elapsed() < Duration::from_secs(10), "{:?}", region.stats());
            std::thread::yield_now();
        }
    }
}

struct Row {
    way: Way,
    wall: Vec<f64>,
    cpu: f64,
}

/// Rows that were measured in turn.
struct Table(Vec<Row>);

impl Table {
    /// Reads the object by each of `ways` in `rounds` rounds and prints the table.
    fn measure(
        object: &mut Object,
        ways: &[Way],
        rounds: usize,
        title: &str,
        read: &dyn Fn(&[u8]) -> u64,
    ) -> Table {
        let expected = read(&object.bytes);
        let mut rows: Vec<Row> =
            ways.iter().map(|&way| Row { way, wall: Vec::new(), cpu: 0.0 }).collect();
        // What a program pays once.
        for &way in ways {
            object.read(way, expected, read);
        }
        let mut folios: [Option<Folios>; 2] = [None, None];
        for round in 0..rounds {
            let mut order: Vec<usize> = (0..ways.len()).collect();
            order.sort_by_key(|&at| shuffled((round * ways.len() + at) as u64));
            for at in order {
                let (wall, cpu, kept) = object.read(ways[at], expected, read);
                rows[at].wall.push(wall);
                rows[at].cpu += cpu / rounds as f64;
                if let Kept::Mmap(mapped) = &kept {
                    folios[usize::from(ways[at] == LARGE)] = Some(Folios::of(mapped));
                }
            }
        }
        println!("\n#### {title}, {rounds} rounds in turn\n");
        let told = |at: usize| folios[at].as_ref().map_or("not read".to_owned(), Folios::to_string);
        println!("The files' caches have {}, and {}.\n", told(1), told(0));
        println!(
            "| {} MiB | wall, median | / large folios | / 4 KiB folios | CPU / large |",
            LEN >> 20
        );
        println!("| --- | --- | --- | --- | --- |");
        let table = Table(rows);
        for row in &table.0 {
            let small = match table.has(SMALL) {
                true => format!("{:.2}", table.ratio(row.way, SMALL)),
                false => String::new(),
            };
            println!(
                "| {} | {:.3} s | {:.2} | {small} | {:.2} |",
                row.way.name(),
                median(row.wall.clone()),
                table.ratio(row.way, LARGE),
                row.cpu / table.row(LARGE).cpu.max(0.001),
            );
        }
        table
    }

    fn has(&self, way: Way) -> bool {
        self.0.iter().any(|row| row.way == way)
    }

    fn row(&self, way: Way) -> &Row {
        self.0.iter().find(|row| row.way == way).expect("a way that was measured")
    }

    /// Median of the ratios of pairs.
    fn ratio(&self, of: Way, to: Way) -> f64 {
        let pairs = self.row(of).wall.iter().zip(&self.row(to).wall);
        median(pairs.map(|(a, b)| a / b).collect())
    }

    fn goal(&self, what: &str, of: Way, to: Way, most: f64) {
        goal(what, self.ratio(of, to), most);
    }
}

fn goal(what: &str, measured: f64, most: f64) {
    let met = if measured <= most { "met" } else { "missed" };
    println!("goal | {what} | {measured:.3} | {most} | {met}");
}

fn main() {
    let args: Vec<String> = std::env::args().collect();
    let option = |name: &str| args.windows(2).find(|two| two[0] == name).map(|two| two[1].as_str());
    let only = option("--only");
    let wanted = |name: &str| only.is_none_or(|only| only.split(',').any(|one| one == name));
    let rounds =
        |usual: usize| option("--rounds").map_or(usual, |n| n.parse().expect("a number of rounds"));

    let mut object = Object::new();
    if wanted("scan") {
        scan(&mut object, rounds(ROUNDS));
    }
    if wanted("work") {
        work(&mut object, rounds(ROUNDS_LONG));
    }
    if wanted("random") {
        random(&mut object, rounds(ROUNDS));
    }
    let bytes = object.bytes.clone();
    drop(object);
    if wanted("install") {
        install(&bytes, rounds(ROUNDS_SHORT));
    }
    if wanted("load") {
        load(&bytes, rounds(ROUNDS_SHORT));
    }
    if wanted("fault") {
        fault(&bytes);
    }
}

fn scan(object: &mut Object, rounds: usize) {
    let [hinted, unhinted, faults] =
        [Told::Sequential, Told::Nothing, Told::Random].map(|hint| Way::Recalled { hint });
    let copies = [Told::Sequential, Told::Nothing].map(|hint| copied(2048, EIGHTH, hint));
    let ways = [LARGE, SMALL, Way::Sealed, hinted, unhinted, faults, copies[0], copies[1]];
    let per_byte = ns_per_byte(&object.bytes, 0);
    let title = format!("Bare sum of u64 (measured: {per_byte:.2} ns per byte)");
    let table = Table::measure(object, &ways, rounds, &title, &|bytes| sum(bytes, 0));
    println!();
    table.goal("bare sum, no copy, prefetch / mmap", hinted, LARGE, 1.15);
    table.goal("bare sum, no copy, faults alone / mmap", faults, LARGE, 1.35);
    let best =
        if table.ratio(hinted, SMALL) < table.ratio(unhinted, SMALL) { hinted } else { unhinted };
    table.goal("bare sum, no copy / mmap in 4 KiB folios", best, SMALL, 0.85);
    table.goal("bare sum, one copy, room for an eighth, hint / mmap", copies[0], LARGE, 2.3);
    table.goal("bare sum, one copy, room for an eighth, no hint / mmap", copies[1], LARGE, 2.3);
}

fn work(object: &mut Object, rounds: usize) {
    let two_ns = work_of(2.0, &object.bytes);
    let recalled = Way::Recalled { hint: Told::Sequential };
    let copies = [Told::Sequential, Told::Nothing].map(|hint| copied(2048, EIGHTH, hint));
    let per_byte = ns_per_byte(&object.bytes, two_ns);
    let title = format!("About 2 ns of work per byte (measured: {per_byte:.2} ns per byte)");
    let ways = [LARGE, recalled, copies[0], copies[1]];
    let table = Table::measure(object, &ways, rounds, &title, &|bytes| sum(bytes, two_ns));
    println!();
    table.goal("2 ns per byte, no copy / mmap", recalled, LARGE, 1.03);
    table.goal(
        "2 ns per byte, one copy, room for an eighth, prefetch / mmap",
        copies[0],
        LARGE,
        1.10,
    );
}

fn random(object: &mut Object, rounds: usize) {
    let mut pages: Vec<u32> = (0..(LEN / PAGE) as u32).collect();
    pages.sort_by_key(|&page| shuffled(u64::from(page)));
    let read = |bytes: &[u8]| {
        let word = |&page: &u32| {
            let at = page as usize * PAGE;
            u64::from_le_bytes(*bytes[at..].first_chunk().expect("a word of the page"))
        };
        pages.iter().map(word).fold(0, u64::wrapping_add)
    };
    let recalled = Way::Recalled { hint: Told::Random };
    let copies = [64, 2048].map(|kib| copied(kib, WHOLE, Told::Random));
    let ways = [LARGE, SMALL, Way::Sealed, recalled, copies[0], copies[1]];
    let title = "One word of each page, in an order that looks like chance";
    let table = Table::measure(object, &ways, rounds, title, &read);
    println!();
    table.goal("first touches at random, no copy / mmap", recalled, LARGE, 1.5);
    table.goal("first touches at random, no copy / mmap in 4 KiB folios", recalled, SMALL, 0.3);
}

/// What `work` takes, in ns per byte of [`INSTALLED`].
fn timed(work: impl FnOnce()) -> f64 {
    let start = Instant::now();
    work();
    start.elapsed().as_secs_f64() * 1e9 / INSTALLED as f64
}

/// Receiving a unit into a recycled frame, putting it in place and taking it away, against a copy.
fn install(bytes: &[u8], rounds: usize) {
    println!(
        "\n#### Receive, install, evict, without ledger and engine, {rounds} rounds in turn\n"
    );
    println!("| ns per KiB | memcpy | receive and install | / memcpy | evict | evict / fill |");
    println!("| --- | --- | --- | --- | --- | --- |");
    let mut goals = Vec::new();
    for (unit, mechanism, most) in [
        (2 << 20, Mechanism::Move, Some(1.35)),
        (256 << 10, Mechanism::Move, Some(2.3)),
        (64 << 10, Mechanism::Copy, None),
    ] {
        let count = INSTALLED / unit;
        let mut units = Units::new(mechanism, unit, count).expect("userfaultfd with MOVE");
        let mut plain = MmapMut::map_anon(INSTALLED + (2 << 20)).expect("memory");
        plain.advise(Advice::HugePage).expect("huge pages");
        let [mut copy, mut fill, mut evict] = [(); 3].map(|()| Vec::new());
        // Each takes bytes that no cache has.
        let mut parts = bytes.chunks_exact(INSTALLED).cycle();
        for round in 0..=rounds {
            let (to_copy, to_fill) = (parts.next().expect("a part"), parts.next().expect("a part"));
            let copied = |plain: &mut MmapMut| {
                timed(|| {
                    for (from, to) in to_copy.chunks(unit).zip(plain.chunks_mut(unit)) {
                        to.copy_from_slice(from);
                    }
                })
            };
            let first = (round % 2 == 0).then(|| copied(&mut plain));
            let filled = timed(|| {
                for (at, from) in to_fill.chunks(unit).enumerate() {
                    units.fill(at, from).expect("install");
                }
            });
            let copied = first.unwrap_or_else(|| copied(&mut plain));
            assert!(units.bytes() == to_fill && plain[..INSTALLED] == *to_copy, "the same bytes");
            let evicted = timed(|| (0..count).for_each(|at| units.evict(at).expect("evict")));
            // The first makes the frames.
            if round > 0 {
                copy.push(copied);
                fill.push(filled);
                evict.push(evicted);
            }
        }
        let ratio =
            |of: &[f64], to: &[f64]| median(of.iter().zip(to).map(|(a, b)| a / b).collect());
        let (installing, leaving) = (ratio(&fill, &copy), ratio(&evict, &fill));
        let [copy, fill, evict] = [copy, fill, evict].map(|all| median(all) * 1024.0);
        println!(
            "| unit {} KiB, {mechanism:?} | {copy:.0} | {fill:.0} | {installing:.2} | {evict:.1} | {leaving:.3} |",
            unit >> 10
        );
        if let Some(most) = most {
            let what = format!("receive and install {} KiB / memcpy", unit >> 10);
            goals.push((what, installing, most));
        }
        if unit == 2 << 20 {
            goals.push(("evict 2048 KiB / fill it".to_owned(), leaving, 0.05));
        }
    }
    println!();
    for (what, measured, most) in goals {
        goal(&what, measured, most);
    }
}

/// `load` of a slice that is there, against the slice.
fn load(bytes: &Bytes, rounds: usize) {
    let part = bytes.slice(..RESIDENT);
    let pager = Pager::builder().budget_bytes(4 * RESIDENT as u64).build().expect("userfaultfd");
    let region = pager.open(Memory(part.clone())).expect("open");
    let mapped = region.map().expect("map");
    assert_eq!(sum(&mapped, 0), sum(&part, 0));
    let mut places: Vec<u64> = (0..(RESIDENT / SLICE) as u64).collect();
    places.sort_by_key(|&place| shuffled(place));
    // Where the next slice lies is known beforehand, or only when the last was summed.
    let none = std::hint::black_box(0);
    let slice = |total: u64, chained: bool, place: &u64| {
        place * SLICE as u64 + if chained { total & none } else { 0 }
    };
    let bare = |chained: bool| {
        places.iter().fold(0u64, |total, place| {
            let at = slice(total, chained, place) as usize;
            total.wrapping_add(sum(&mapped[at..at + SLICE], 0))
        })
    };
    let loaded = |chained: bool| {
        places.iter().fold(0u64, |total, place| {
            let at = slice(total, chained, place);
            let guard = region.load(at..at + SLICE as u64).expect("resident");
            total.wrapping_add(sum(&guard, 0))
        })
    };
    let ns = |work: &dyn Fn(bool) -> u64, chained: bool| {
        let start = Instant::now();
        std::hint::black_box(work(chained));
        start.elapsed().as_secs_f64() * 1e9 / places.len() as f64
    };
    assert_eq!(loaded(false), bare(true), "the same bytes");
    println!("\n#### Slices of {SLICE} bytes that are there, summed, {rounds} rounds in turn\n");
    println!("| at random in {} MiB | of the map | `load` | more |", RESIDENT >> 20);
    println!("| --- | --- | --- | --- |");
    let mut goals = Vec::new();
    for (what, chained) in [("places known", false), ("each place known from the last slice", true)]
    {
        let (mut of_bare, mut of_loaded) = (Vec::new(), Vec::new());
        for round in 0..rounds {
            let early = (round % 2 == 0).then(|| ns(&bare, chained));
            of_loaded.push(ns(&loaded, chained));
            of_bare.push(early.unwrap_or_else(|| ns(&bare, chained)));
        }
        let ratio = median(of_loaded.iter().zip(&of_bare).map(|(a, b)| a / b).collect());
        let (of_bare, of_loaded) = (median(of_bare), median(of_loaded));
        let added = of_loaded - of_bare;
        println!("| {what} | {of_bare:.1} ns | {of_loaded:.1} ns | {added:.1} ns |");
        goals.push((format!("load of 512 resident bytes, {what} / the slice"), ratio));
    }
    println!();
    for (what, ratio) in goals {
        goal(&what, ratio, 1.10);
    }
}

/// Memory whose missing pages a thread fills with one COPY each, and nothing else.
struct Bare {
    memory: MmapMut,
    uffd: Uffd,
}

impl Bare {
    fn new(pages: usize) -> Bare {
        let open = |user: bool| {
            let mut builder = UffdBuilder::new();
            builder.close_on_exec(true).non_blocking(true).user_mode_only(user).create()
        };
        let uffd = open(false).or_else(|_| open(true)).expect("userfaultfd");
        let memory = MmapMut::map_anon(pages * PAGE).expect("memory");
        uffd.register(memory.as_ptr().cast_mut().cast(), memory.len()).expect("register");
        Bare { memory, uffd }
    }

    /// Serves faults until `stop`, which is looked at after each.
    fn serve(&self, stop: &AtomicBool) {
        let page = [7u8; PAGE];
        while !stop.load(Ordering::SeqCst) {
            let mut fds = [PollFd::new(std::os::fd::AsFd::as_fd(&self.uffd), PollFlags::POLLIN)];
            poll(&mut fds, PollTimeout::NONE).expect("poll");
            while let Ok(Some(Event::Pagefault { addr, .. })) = self.uffd.read_event() {
                let to = (addr as usize & !(PAGE - 1)) as *mut _;
                // SAFETY: the page is a missing one of `memory`, which nobody looks at but by faults.
                let copied = unsafe { self.uffd.copy(page.as_ptr().cast(), to, PAGE, true) };
                assert_eq!(copied.expect("copy"), PAGE);
            }
        }
    }
}

/// Ends [`Bare::serve`] when it is dropped, also by a panic, which would wait for it otherwise: by a last
/// fault, on the page after those that are measured.
struct Stops<'a> {
    bare: &'a Bare,
    stop: &'a AtomicBool,
}

impl Drop for Stops<'_> {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        touch(self.bare.memory.as_ptr(), FAULTS);
    }
}

/// Ends the process if its thread panics: another waits for it in a fault.
struct Aborts;

impl Drop for Aborts {
    fn drop(&mut self) {
        if std::thread::panicking() {
            std::process::abort();
        }
    }
}

/// What a touch of `page` takes, in us.
fn touch(bytes: *const u8, page: usize) -> f64 {
    let start = Instant::now();
    // SAFETY: the callers pass memory of more pages than that, whose missing ones are served.
    let byte = unsafe { bytes.add(page * PAGE).read_volatile() };
    let took = start.elapsed();
    std::hint::black_box(byte);
    took.as_secs_f64() * 1e6
}

/// A fault on one page whose bytes are staged, against a loop that does nothing but that.
fn fault(bytes: &Bytes) {
    let bare = Bare::new(FAULTS + 1);
    let pager = Pager::builder().budget_bytes(64 << 20).unit_bytes(PAGE as u64).build();
    let pager = pager.expect("userfaultfd");
    let region = pager.open(Memory(bytes.slice(..RESIDENT))).expect("open");
    let mapped = region.map().expect("map");
    // The last page of a range that is announced is staged, if the range is so long.
    let mut ranges: Vec<usize> = (0..RESIDENT / PAGE / ANNOUNCED).collect();
    ranges.sort_by_key(|&range| shuffled(range as u64));
    let (mut of_bare, mut of_region) = (Vec::new(), Vec::new());
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let _ends = Aborts;
            bare.serve(&stop);
        });
        let _stops = Stops { bare: &bare, stop: &stop };
        for (n, &range) in ranges.iter().take(FAULTS).enumerate() {
            let last = (range + 1) * ANNOUNCED - 1;
            let wanted = ((last + 1 - ANNOUNCED) * PAGE) as u64..((last + 1) * PAGE) as u64;
            let before = region.stats();
            region.advise(Hint::WillNeed(std::slice::from_ref(&wanted))).expect("advise");
            let start = Instant::now();
            while region.stats().bytes_fetched - before.bytes_fetched < wanted.end - wanted.start {
                assert!(start.elapsed() < Duration::from_secs(10), "{:?}", region.stats());
                std::thread::yield_now();
            }
            // Until it is staged and everybody sleeps again.
            std::thread::sleep(Duration::from_micros(200));
            let early = (n % 2 == 0).then(|| touch(bare.memory.as_ptr(), n));
            of_region.push(touch(mapped.as_ptr(), last));
            of_bare.push(early.unwrap_or_else(|| touch(bare.memory.as_ptr(), n)));
            assert_eq!(mapped[last * PAGE..][..PAGE], bytes[last * PAGE..][..PAGE]);
            region.advise(Hint::DontNeed(wanted)).expect("advise");
        }
    });
    let staged = region.stats().marker_faults;
    assert!(staged as usize > FAULTS * 9 / 10, "what is measured: {:?}", region.stats());
    let ratio = median(of_region.iter().zip(&of_bare).map(|(a, b)| a / b).collect());
    let [of_bare, of_region] = [of_bare, of_region].map(median);
    println!("\n#### A fault on one page of 4 KiB, {FAULTS} in turn\n");
    println!("| | median |");
    println!("| --- | --- |");
    println!("| a thread that polls, reads and copies, and nothing else | {of_bare:.1} us |");
    println!("| a region, the bytes staged ({staged} of them were) | {of_region:.1} us |\n");
    goal("fault on 4 KiB, bytes staged / bare userfaultfd loop", ratio, 1.3);
}
