//! Locks and atomics, in one place so that a model checker can take their place.
//!
//! `--cfg shuttle` puts those of [shuttle](https://docs.rs/shuttle) here, which runs a test under
//! many orders of its threads: see `cache/model.rs` and `make deep`.

pub(crate) use std::sync::{Arc, PoisonError, TryLockError, Weak};

#[cfg(not(shuttle))]
pub(crate) use std::{
    hint::spin_loop,
    sync::{
        Mutex, MutexGuard,
        atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering},
    },
};

#[cfg(shuttle)]
pub(crate) use shuttle::{
    hint::spin_loop,
    sync::{
        Mutex, MutexGuard,
        atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering},
    },
};

/// Locks `mutex`; a panic of an earlier holder does not spread: what a lock guards here is valid
/// after every statement.
pub(crate) fn lock<T: ?Sized>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// [`lock`] for a thread that must not wait: `None` while somebody else holds `mutex`.
pub(crate) fn try_lock<T: ?Sized>(mutex: &Mutex<T>) -> Option<MutexGuard<'_, T>> {
    match mutex.try_lock() {
        Ok(guard) => Some(guard),
        Err(TryLockError::Poisoned(held)) => Some(held.into_inner()),
        Err(TryLockError::WouldBlock) => None,
    }
}
