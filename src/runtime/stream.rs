//! Answers that are pushed: each on a thread of its own, which calls the program back.

use std::panic::{AssertUnwindSafe, catch_unwind};

use super::{
    callback,
    sync::{Arc, Condvar, Mutex, MutexGuard, thread},
};
use crate::{Error, Result};

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
    /// Calls `on_event` with every event that `next` brings, on a new thread, to the last; then drops it. `refuse` is called where it
    /// returns false, and `release` before the last event, so that the session is free again when the program hears of the end.
    pub fn spawn<E>(
        self: &Arc<Self>,
        mut next: impl FnMut() -> Next<E> + Send + 'static,
        mut on_event: impl FnMut(E) -> bool + Send + 'static,
        refuse: impl Fn() + Send + 'static,
        release: impl FnOnce() + Send + 'static,
    ) -> Result<()> {
        *self.running() += 1;
        let streams = Leave(self.clone());
        let body = move || {
            let streams = streams;
            let mut tell = |event: E| callback::enter(|| catch_unwind(AssertUnwindSafe(|| on_event(event))).unwrap_or(false));
            let last = loop {
                match next() {
                    Next::Event(event) => {
                        if !tell(event) {
                            refuse();
                        }
                    }
                    Next::Last(event) => break event,
                }
            };
            // What `next` holds of the session goes first: who hears of the end may want to do something with it.
            drop(next);
            release();
            tell(last);
            callback::enter(|| catch_unwind(AssertUnwindSafe(|| drop(on_event)))).ok();
            drop(streams);
        };
        let thread = thread::Builder::new().name("moxin-stream".into()).spawn(body);
        thread.map(drop).map_err(|error| Error::InvalidState(format!("the stream's thread could not be started: {error}")))
    }

    /// Waits until all have ended, their callbacks dropped. Inside a callback it does not wait: what waits for itself waits for ever.
    pub fn wait(&self) {
        if callback::is_inside() {
            return;
        }
        let mut running = self.running();
        while *running > 0 {
            running = self.ended.wait(running).unwrap_or_else(|poisoned| poisoned.into_inner());
        }
    }

    fn running(&self) -> MutexGuard<'_, usize> {
        // Nothing panics while it is held.
        self.running.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

/// Counts a stream out, also where its thread could not be started.
struct Leave(Arc<Streams>);

impl Drop for Leave {
    fn drop(&mut self) {
        *self.0.running() -= 1;
        self.0.ended.notify_all();
    }
}
