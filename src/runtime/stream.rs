//! Answers that are pushed: each on a thread of its own, which calls the program back.

use std::{
    mem,
    panic::{AssertUnwindSafe, catch_unwind},
    time::Duration,
};

use super::{
    callback::{self, Calls},
    sync::{Arc, Condvar, Mutex, MutexGuard, thread},
};
use crate::{Error, Result, process};

/// How often a thread that waits looks whether it is still to wait.
const GLANCE: Duration = Duration::from_millis(20);

/// The streams of one session that have not ended.
#[derive(Default)]
pub struct Streams {
    running: Mutex<usize>,
    ended: Condvar,
}

/// What a stream's next step brought.
pub enum Next<E> {
    /// There is more to come.
    Event(E),
    /// The last event.
    Last(E),
}

impl Streams {
    /// Calls `on_event` with every event that `next` brings, on a new thread, to the last; then
    /// drops it. `refuse` is called where it returns false, and `release` before the last event, so
    /// that the session is free again when the program hears of the end. Where `calls` are over the
    /// stream ends, and `on_event` is neither called nor dropped: what it would use may be gone.
    pub fn spawn<E>(
        self: &Arc<Self>,
        calls: &'static Calls,
        mut next: impl FnMut() -> Next<E> + Send + 'static,
        mut on_event: impl FnMut(E) -> bool + Send + 'static,
        refuse: impl Fn() + Send + 'static,
        release: impl FnOnce() + Send + 'static,
    ) -> Result<()> {
        *self.running() += 1;
        let streams = Leave(self.clone());
        let body = move || {
            let streams = streams;
            let mut tell = |event: E| {
                calls.enter(|| catch_unwind(AssertUnwindSafe(|| on_event(event))).unwrap_or(false))
            };
            let last = loop {
                match next() {
                    Next::Event(event) => match tell(event) {
                        Some(true) => {}
                        Some(false) => refuse(),
                        None => break None,
                    },
                    Next::Last(event) => break Some(event),
                }
            };
            // What `next` holds of the session goes first: who hears of the end may want to do
            // something with it.
            drop(next);
            release();
            last.and_then(tell);
            let mut on_event = Some(on_event);
            calls.enter(|| catch_unwind(AssertUnwindSafe(|| drop(on_event.take()))).ok());
            mem::forget(on_event);
            drop(streams);
        };
        let thread = thread::Builder::new()
            .name("moxin-stream".into())
            .spawn(body);
        thread.map(drop).map_err(|error| {
            Error::InvalidState(format!(
                "the stream's thread could not be started ({error}); try again"
            ))
        })
    }

    /// Waits until all have ended, their callbacks dropped, or until `calls` are over and none is
    /// running. Inside a callback it does not wait: what waits for itself waits for ever. Nor in a
    /// forked child, where they do not run.
    pub fn wait(&self, calls: &Calls) {
        if callback::is_inside() || process::is_forked() {
            return;
        }
        let mut running = self.running();
        while *running > 0 && !calls.are_over() {
            running = self
                .ended
                .wait_timeout(running, GLANCE)
                .unwrap_or_else(|poisoned| poisoned.into_inner())
                .0;
        }
        let has_ended = *running == 0;
        drop(running);
        if !has_ended {
            calls.wait();
        }
    }

    fn running(&self) -> MutexGuard<'_, usize> {
        // Nothing panics while it is held.
        self.running
            .lock()
            .unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

/// Counts a stream out, also where its thread could not be started.
struct Leave(Arc<Streams>);

impl Drop for Leave {
    fn drop(&mut self) {
        if process::is_forked() {
            return;
        }
        *self.0.running() -= 1;
        self.0.ended.notify_all();
    }
}
