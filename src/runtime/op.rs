//! What a caller may attach to an operation that takes long: progress, cancellation, a time limit.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
        mpsc,
    },
    time::{Duration, Instant},
};

use super::engine::{EXITING, Message};
use crate::{Error, Result};

/// Cancels operations. Clones cancel together; once triggered it stays so.
#[derive(Debug, Clone, Default)]
pub struct Cancel(Arc<AtomicBool>);

impl Cancel {
    /// One that is not triggered.
    pub fn new() -> Cancel {
        Cancel::default()
    }

    /// Asks every operation that was given this, or a clone of it, to end with [`Error::Cancelled`].
    pub fn trigger(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    /// Whether it was triggered.
    pub fn is_triggered(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

/// What an operation is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    /// Reading weights.
    Load,
    /// Running the vision encoders.
    Encode,
}

/// Options of one long operation. The default has none of them.
#[derive(Default)]
pub struct Op<'a> {
    /// Told the stage and the part of it that is done, 0 to 1, on the calling thread. Returning false cancels.
    pub progress: Option<&'a mut dyn FnMut(Stage, f32) -> bool>,
    /// Cancels the operation.
    pub cancel: Option<Cancel>,
    /// The longest it may take, the time it waits for its turn included.
    pub timeout: Option<Duration>,
}

/// The engine's side of an [`Op`].
pub(super) struct Control {
    refused: Cancel,
    cancel: Option<Cancel>,
    deadline: Option<Instant>,
}

impl Control {
    /// For an operation; `refused` is triggered where the progress callback asks to stop.
    pub(super) fn new(op: &Op, refused: Cancel) -> Control {
        // A limit too long to be reckoned is no limit.
        let deadline = op.timeout.and_then(|timeout| Instant::now().checked_add(timeout));
        Control { refused, cancel: op.cancel.clone(), deadline }
    }

    /// Fails where the operation is to end.
    pub(super) fn check(&self) -> Result<()> {
        if EXITING.is_triggered() || self.refused.is_triggered() || self.cancel.as_ref().is_some_and(Cancel::is_triggered) {
            return Err(Error::Cancelled);
        }
        match self.deadline {
            Some(deadline) if Instant::now() >= deadline => Err(Error::Timeout),
            _ => Ok(()),
        }
    }
}

/// Reports from the engine to the thread that waits.
pub(super) struct Reporter<R> {
    pub(super) control: Control,
    pub(super) sender: mpsc::Sender<Message<R>>,
}

impl<R> Reporter<R> {
    /// Passes progress on; fails where the operation is to end.
    pub(super) fn report(&self, stage: Stage, fraction: f32) -> Result<()> {
        // Nobody waits any more: the result will not be missed either.
        let _ = self.sender.send(Message::Progress(stage, fraction));
        self.control.check()
    }
}
