//! A value that one operation at a time may use.

use super::sync::{
    Arc, Mutex, MutexGuard,
    atomic::{AtomicBool, Ordering},
};
use crate::{Error, Result, process};

/// Holds a value; who comes second is told [`Error::Busy`] instead of being made to wait.
pub struct Slot<T> {
    busy: AtomicBool,
    value: Mutex<T>,
}

/// The right to use a slot's value, until it is dropped.
pub struct Claim<T>(Arc<Slot<T>>);

impl<T> Slot<T> {
    /// A slot that nobody uses.
    pub fn new(value: T) -> Arc<Slot<T>> {
        Arc::new(Slot {
            busy: AtomicBool::new(false),
            value: Mutex::new(value),
        })
    }

    /// The right to use the value, where nobody else has it. Fails in a forked child: who has it
    /// may not be there.
    pub fn claim(self: &Arc<Self>) -> Result<Claim<T>> {
        process::check()?;
        match self.busy.swap(true, Ordering::AcqRel) {
            true => Err(Error::Busy),
            false => Ok(Claim(self.clone())),
        }
    }

    /// The value, for the thread that works for whoever has the claim.
    pub fn lock(&self) -> MutexGuard<'_, T> {
        // Who uses the value mends it after a panic.
        self.value
            .lock()
            .unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

impl<T> Claim<T> {
    /// What is claimed.
    pub fn slot(&self) -> &Arc<Slot<T>> {
        &self.0
    }
}

impl<T> Drop for Claim<T> {
    fn drop(&mut self) {
        self.0.busy.store(false, Ordering::Release);
    }
}
