//! Random reads, hints and evictions by several threads over several regions under tiny budgets,
//! against the bytes themselves.

use pager::{Hint, RegionOptions};
use proptest::prelude::*;

use crate::support::{Known, Random, builder, byte_at, bytes_of, can_fault, modes};

#[derive(Clone, Debug)]
enum Op {
    Load { at: u64, len: u64 },
    ReadAt { at: u64, len: u64 },
    Touch { at: u64 },
    WillNeed { at: u64, len: u64 },
    DontNeed { at: u64, len: u64 },
    Advise(u8),
}

fn any_op() -> impl Strategy<Value = Op> {
    let place = || (any::<u64>(), 0..60_000u64);
    prop_oneof![
        4 => place().prop_map(|(at, len)| Op::Load { at, len: len % 30_000 }),
        2 => place().prop_map(|(at, len)| Op::ReadAt { at, len }),
        6 => any::<u64>().prop_map(|at| Op::Touch { at }),
        1 => place().prop_map(|(at, len)| Op::WillNeed { at, len }),
        1 => place().prop_map(|(at, len)| Op::DontNeed { at, len: len * 10 }),
        1 => (0..3u8).prop_map(Op::Advise),
    ]
}

fn run(region: &pager::Region, mapped: Option<&pager::Mapped>, op: &Op) {
    let object = region.len();
    let clip = |at: u64, len: u64| {
        let at = at % object;
        at..(at + len).min(object)
    };
    match *op {
        Op::Load { at, len } => {
            let range = clip(at, len);
            match region.load(range.clone()) {
                Ok(guard) => assert_eq!(guard[..], bytes_of(range)[..]),
                // Other threads hold pins too.
                Err(pager::Error::PinLimit { .. }) => {}
                Err(error) => panic!("{error}"),
            }
        }
        Op::ReadAt { at, len } => {
            let range = clip(at, len);
            let mut buf = vec![0; (range.end - range.start) as usize];
            match region.read_at(range.start, &mut buf) {
                Ok(()) => assert_eq!(buf, bytes_of(range)),
                Err(pager::Error::PinLimit { .. }) => {}
                Err(error) => panic!("{error}"),
            }
        }
        Op::Touch { at } => {
            if let Some(mapped) = mapped {
                let at = at % object;
                assert_eq!(mapped[at as usize], byte_at(at));
            }
        }
        Op::WillNeed { at, len } => region.advise(Hint::WillNeed(&[clip(at, len)])).unwrap(),
        Op::DontNeed { at, len } => region.advise(Hint::DontNeed(clip(at, len))).unwrap(),
        Op::Advise(n) => {
            let hints = [Hint::Normal, Hint::Sequential, Hint::Random];
            region.advise(hints[usize::from(n)].clone()).unwrap();
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    #[test]
    fn every_read_gives_the_objects_bytes(
        lens in prop::collection::vec(1..3_000_000u64, 1..4),
        spare_units in 0..64u64,
        scripts in prop::collection::vec(prop::collection::vec(any_op(), 1..120), 1..5),
    ) {
        for mode in modes() {
            let budget = 32 * 8192 + 4 * 4096 + spare_units * 8192;
            let builder = builder().mode(mode).unit_bytes(4096).budget_bytes(budget);
            let pager = builder.build().unwrap();
            let regions: Vec<_> =
                lens.iter().map(|&len| pager.open(Known::new(len)).unwrap()).collect();
            let maps: Vec<_> = regions.iter().map(|region| region.map().ok()).collect();
            std::thread::scope(|scope| {
                for script in &scripts {
                    let (regions, maps) = (&regions, &maps);
                    scope.spawn(move || {
                        for (n, op) in script.iter().enumerate() {
                            let n = n % regions.len();
                            run(&regions[n], maps[n].as_ref(), op);
                        }
                    });
                }
            });
            prop_assert!(pager.budget().peak() <= budget);
            prop_assert_eq!(pager.budget().pinned(), 0);
        }
    }
}

/// Eviction against readers: every unit is wanted and evicted all the time.
#[test]
fn readers_under_constant_eviction_see_no_wrong_byte() {
    for unit in [4096u64, 65_536] {
        let pager =
            builder().unit_bytes(unit).budget_bytes(32 * (unit + 4096) + 4 * unit).build().unwrap();
        let len = 200 * unit;
        let regions: Vec<_> = (0..2)
            .map(|_| {
                let options = RegionOptions::default().unit_bytes(unit);
                pager.open_with(Known::new(len), options).unwrap()
            })
            .collect();
        std::thread::scope(|scope| {
            for thread in 0..6u64 {
                let regions = &regions;
                scope.spawn(move || {
                    let mut random = Random(thread);
                    let region = &regions[thread as usize % 2];
                    let mapped = can_fault().then(|| region.map().unwrap());
                    for _ in 0..3000 {
                        let at = random.below(len);
                        match &mapped {
                            Some(mapped) if thread < 4 => {
                                assert_eq!(mapped[at as usize], byte_at(at));
                            }
                            _ => match region.load(at..at + 1) {
                                Ok(guard) => assert_eq!(guard[0], byte_at(at)),
                                Err(pager::Error::PinLimit { .. }) => {}
                                Err(error) => panic!("{error}"),
                            },
                        }
                    }
                });
            }
        });
        assert!(regions[0].stats().units_evicted > 1000);
    }
}
