//! Errors that a sanitizer must find, and what it must not take for one: `sanitize.sh` compiles this with
//! the flags of the tests, and believes no run of them where this one goes wrong.
//!
//! ```text
//! planted heap   reads behind the end of a heap block       must be reported by AddressSanitizer
//! planted race   two threads write one word without a lock  must be reported by ThreadSanitizer
//! planted order  the same with every lock of `std`          must not be reported
//! ```

use std::{
    cell::UnsafeCell,
    hint::black_box,
    sync::{
        Arc, Condvar, Mutex, OnceLock, RwLock,
        atomic::{AtomicU64, Ordering},
    },
    thread,
    time::Duration,
};

/// A word that anybody may write: whether two do at a time is for the caller to see to.
struct Word(UnsafeCell<u64>);

// SAFETY: none. It is what `race` is about.
unsafe impl Sync for Word {}

impl Word {
    fn add(&self) {
        // SAFETY: of the callers, `order` holds a lock, and `race` is wrong on purpose.
        unsafe { *black_box(self.0.get()) += 1 }
    }
}

const ROUNDS: u64 = 20_000;

fn main() {
    match std::env::args().nth(1).as_deref() {
        Some("heap") => heap(),
        Some("race") => race(),
        Some("order") => order(),
        _ => std::process::exit(2),
    }
}

fn heap() {
    let block = black_box(vec![7u8; 32].into_boxed_slice());
    // SAFETY: none. One byte behind the end.
    let byte = unsafe { *block.as_ptr().add(black_box(32)) };
    println!("{byte}");
}

fn race() {
    let word = Word(UnsafeCell::new(0));
    // Both run at a time, and nothing orders them.
    let begun = AtomicU64::new(0);
    thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                begun.fetch_add(1, Ordering::Relaxed);
                while begun.load(Ordering::Relaxed) < 2 {
                    thread::yield_now();
                }
                (0..ROUNDS).for_each(|_| word.add());
            });
        }
    });
}

/// Locks that threads wait for, and the last of several handles.
fn order() {
    let words: Arc<[Word; 4]> = Arc::new([(); 4].map(|()| Word(UnsafeCell::new(0))));
    let (mutex, rwlock) = (Arc::new(Mutex::new(())), Arc::new(RwLock::new(())));
    let turn = Arc::new((Mutex::new(0u64), Condvar::new()));
    let once = Arc::new([const { OnceLock::<Box<u64>>::new() }; 64]);
    let threads: Vec<_> = (0..4u64)
        .map(|id| {
            let (words, mutex, rwlock) = (words.clone(), mutex.clone(), rwlock.clone());
            let (turn, once) = (turn.clone(), once.clone());
            thread::spawn(move || {
                for _ in 0..ROUNDS {
                    let held = mutex.lock().unwrap();
                    words[0].add();
                    drop(held);
                    let held = rwlock.write().unwrap();
                    words[1].add();
                    drop(held);
                    drop(rwlock.read().unwrap());
                }
                for n in 0..200 {
                    let (lock, changed) = &*turn;
                    let mut now = lock.lock().unwrap();
                    while *now != n * 4 + id {
                        now = match n % 2 {
                            0 => changed.wait(now).unwrap(),
                            _ => changed.wait_timeout(now, Duration::from_secs(9)).unwrap().0,
                        };
                    }
                    words[2].add();
                    *now += 1;
                    drop(now);
                    changed.notify_all();
                }
                let found: u64 = once.iter().map(|once| **once.get_or_init(|| Box::new(1))).sum();
                assert_eq!(found, 64);
            })
        })
        .collect();
    let by_scope = Word(UnsafeCell::new(0));
    thread::scope(|scope| drop(scope.spawn(|| by_scope.add())));
    by_scope.add();
    // Whoever has the last handle frees what the others wrote.
    drop(words);
    threads.into_iter().for_each(|thread| thread.join().unwrap());
}
