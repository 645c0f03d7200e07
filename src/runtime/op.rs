//! What a caller may attach to an operation that takes long: progress, cancellation, a time limit.

use std::time::{Duration, Instant};

use super::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};
use crate::{Error, Result};

/// Cancels operations. Clones cancel together; once triggered it stays so.
#[derive(Debug, Clone, Default)]
pub struct Cancel {
    flag: Arc<AtomicBool>,
    /// Another flag that counts too.
    other: Option<Arc<AtomicBool>>,
}

impl Cancel {
    /// One that is not triggered.
    pub fn new() -> Cancel {
        Cancel::default()
    }

    /// Asks every operation that was given this, or a clone of it, to end with
    /// [`Error::Cancelled`]. Nothing but an atomic store: a signal handler may do it.
    pub fn trigger(&self) {
        self.flag.store(true, Ordering::Relaxed);
    }

    /// Whether it was triggered.
    pub fn is_triggered(&self) -> bool {
        let other = self
            .other
            .as_ref()
            .is_some_and(|other| other.load(Ordering::Relaxed));
        other || self.flag.load(Ordering::Relaxed)
    }

    /// Returns one that is triggered where `self` is or `other`.
    pub(super) fn or(&self, other: Option<&Cancel>) -> Cancel {
        Cancel {
            flag: self.flag.clone(),
            other: other.map(|other| other.flag.clone()),
        }
    }

    /// Makes it as if it had not been triggered.
    pub(super) fn clear(&self) {
        self.flag.store(false, Ordering::Relaxed);
    }
}

/// What an operation is doing.
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

/// Options of one long operation. The default has none of them.
#[derive(Default)]
pub struct Op<'a> {
    /// Told the stage and the part of it that is done, 0 to 1, on the calling thread. Returning
    /// false cancels.
    pub progress: Option<&'a mut dyn FnMut(Stage, f32) -> bool>,
    /// Cancels the operation.
    pub cancel: Option<Cancel>,
    /// The longest it may take, the time it waits for its turn included.
    pub timeout: Option<Duration>,
}

/// When an operation is to end early.
#[derive(Clone, Default)]
pub struct Control {
    /// Triggered where the progress callback asks to stop.
    pub refused: Cancel,
    cancel: Option<Cancel>,
    deadline: Option<Instant>,
}

impl Control {
    /// For an operation that begins now.
    pub fn new(cancel: Option<Cancel>, timeout: Option<Duration>) -> Control {
        // A limit too long to be reckoned is no limit.
        let deadline = timeout.and_then(|timeout| Instant::now().checked_add(timeout));
        Control {
            refused: Cancel::new(),
            cancel,
            deadline,
        }
    }

    /// Returns the options of an operation that ends when this one does.
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

    /// Fails where the caller wants the operation to end.
    pub fn check(&self) -> Result<()> {
        if self.is_cancelled() {
            return Err(Error::Cancelled);
        }
        match self.deadline {
            Some(deadline) if Instant::now() >= deadline => Err(Error::Timeout),
            _ => Ok(()),
        }
    }

    /// Whether the caller cancelled it, time limits aside.
    pub fn is_cancelled(&self) -> bool {
        self.refused.is_triggered() || self.cancel.as_ref().is_some_and(Cancel::is_triggered)
    }
}
