//! Locks and atomics, in one place so that a model checker can take their place.

pub(crate) use std::sync::{
    Arc, Mutex, MutexGuard, PoisonError, Weak,
    atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering},
};

/// Locks `mutex`; a panic of an earlier holder does not spread: what a lock guards here is valid
/// after every statement.
pub(crate) fn lock<T: ?Sized>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
