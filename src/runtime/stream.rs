//! Streamed answers: each on a thread of its own, which calls the program back.

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

/// How often a waiting thread checks whether it should stop waiting.
const POLL_INTERVAL: Duration = Duration::from_millis(20);

/// The running streams of one session.
#[derive(Default)]
pub struct Streams {
    running: Mutex<usize>,
    ended: Condvar,
}

/// The result of a stream's next step.
pub enum Next<E> {
    /// An event that is not the last.
    Event(E),
    /// The last event.
    Last(E),
}

impl Streams {
    /// Calls `on_event` on a new thread with every event that `next` returns, up to the last; then
    /// drops it. Calls `refuse` if it returns false, and `release` before the last event, so that
    /// the session is free by then. If `calls` have ended, the stream ends, and `on_event` is
    /// neither called nor dropped: objects that it uses may be gone.
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
            // `next` is dropped before the last event: the program may want to use the session
            // there.
            drop(next);
            // It may be the last owner of the session, which must not outlive the wait for streams:
            // a process that exits in between would leak it.
            drop(refuse);
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

    /// Waits until all streams have ended and dropped their callbacks, or until `calls` are ended
    /// and none is running. Does not wait inside a callback, which would wait for itself, or in a
    /// forked child, where the streams do not run.
    pub fn wait(&self, calls: &Calls) {
        if callback::is_inside() || process::is_forked() {
            return;
        }
        let mut running = self.running();
        while *running > 0 && !calls.are_over() {
            running = self
                .ended
                .wait_timeout(running, POLL_INTERVAL)
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
        // Nothing panics while the lock is held.
        self.running
            .lock()
            .unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

/// Removes a stream from the count, even if its thread could not be started.
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
