//! Options for long operations: progress, cancellation and a time limit.

use std::time::{Duration, Instant};

use super::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};
use crate::{Error, Result};

/// Cancels operations. Clones share one flag; once set, it stays set.
#[derive(Debug, Clone, Default)]
pub struct Cancel {
    flag: Arc<AtomicBool>,
    /// Another flag that also cancels.
    other: Option<Arc<AtomicBool>>,
}

impl Cancel {
    /// Returns a flag that is not set.
    pub fn new() -> Cancel {
        Cancel::default()
    }

    /// Cancels every operation that was given this flag or a clone of it; they fail with
    /// [`Error::Cancelled`]. Only an atomic store, so it is safe in a signal handler.
    pub fn trigger(&self) {
        self.flag.store(true, Ordering::Relaxed);
    }

    /// Returns whether the flag is set.
    pub fn is_triggered(&self) -> bool {
        let other = self
            .other
            .as_ref()
            .is_some_and(|other| other.load(Ordering::Relaxed));
        other || self.flag.load(Ordering::Relaxed)
    }

    /// Returns a flag that is set if `self` or `other` is.
    pub(super) fn or(&self, other: Option<&Cancel>) -> Cancel {
        Cancel {
            flag: self.flag.clone(),
            other: other.map(|other| other.flag.clone()),
        }
    }

    /// Clears the flag.
    pub(super) fn clear(&self) {
        self.flag.store(false, Ordering::Relaxed);
    }
}

/// The stage of an operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    /// Reading weights.
    Load,
    /// Running the vision encoders.
    Encode,
    /// Reading the prompt.
    Prefill,
    /// Quantizing matrices.
    Quantize,
    /// Writing weights.
    Save,
}

/// Options for one long operation. The default sets none of them.
#[derive(Default)]
pub struct Op<'a> {
    /// Receives the stage and the fraction that is complete, 0 to 1, on the calling thread.
    /// Returning false cancels the operation.
    pub progress: Option<&'a mut dyn FnMut(Stage, f32) -> bool>,
    /// Cancels the operation.
    pub cancel: Option<Cancel>,
    /// The time limit, including the time spent waiting for other operations.
    pub timeout: Option<Duration>,
}

/// The conditions under which an operation stops early.
#[derive(Clone, Default)]
pub struct Control {
    /// Set when the progress callback asks to stop.
    pub refused: Cancel,
    cancel: Option<Cancel>,
    deadline: Option<Instant>,
}

impl Control {
    /// Starts the time limit of an operation that begins now.
    pub fn new(cancel: Option<Cancel>, timeout: Option<Duration>) -> Control {
        // A limit beyond the clock's range is no limit.
        let deadline = timeout.and_then(|timeout| Instant::now().checked_add(timeout));
        Control {
            refused: Cancel::new(),
            cancel,
            deadline,
        }
    }

    /// Returns the options of an operation that stops when this one does.
    pub fn op(&self) -> Op<'static> {
        let timeout = self
            .deadline
            .map(|deadline| deadline.saturating_duration_since(Instant::now()));
        Op {
            progress: None,
            cancel: self.cancel.clone(),
            timeout,
        }
    }

    /// Fails if the caller wants the operation to stop.
    pub fn check(&self) -> Result<()> {
        if self.is_cancelled() {
            return Err(Error::Cancelled);
        }
        match self.deadline {
            Some(deadline) if Instant::now() >= deadline => Err(Error::Timeout),
            _ => Ok(()),
        }
    }

    /// Returns whether the caller cancelled the operation; a time limit does not count.
    pub fn is_cancelled(&self) -> bool {
        self.refused.is_triggered() || self.cancel.as_ref().is_some_and(Cancel::is_triggered)
    }
}
