//! A value that only one operation at a time may use.

use super::sync::{
    Arc, Mutex, MutexGuard,
    atomic::{AtomicBool, Ordering},
};
use crate::{Error, Result, process};

/// Contains a value. A second operation gets [`Error::Busy`] instead of waiting.
pub struct Slot<T> {
    busy: AtomicBool,
    value: Mutex<T>,
}

/// The right to use a slot's value, until it is dropped.
pub struct Claim<T>(Arc<Slot<T>>);

impl<T> Slot<T> {
    /// Creates an unused slot.
    pub fn new(value: T) -> Arc<Slot<T>> {
        Arc::new(Slot {
            busy: AtomicBool::new(false),
            value: Mutex::new(value),
        })
    }

    /// Returns the right to use the value, if nobody else has it. Fails in a forked child, where
    /// the owner may not exist.
    pub fn claim(self: &Arc<Self>) -> Result<Claim<T>> {
        process::check()?;
        match self.busy.swap(true, Ordering::AcqRel) {
            true => Err(Error::Busy),
            false => Ok(Claim(self.clone())),
        }
    }

    /// Locks the value, for the thread that works for the owner of the claim.
    pub fn lock(&self) -> MutexGuard<'_, T> {
        // The owner of the claim repairs the value after a panic.
        self.value
            .lock()
            .unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

impl<T> Claim<T> {
    /// Returns the claimed slot.
    pub fn slot(&self) -> &Arc<Slot<T>> {
        &self.0
    }
}

impl<T> Drop for Claim<T> {
    fn drop(&mut self) {
        self.0.busy.store(false, Ordering::Release);
    }
}
