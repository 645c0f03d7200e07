//! Tokenizes prompts on threads of their own, so that a caller can stop waiting for a long one.

use std::{
    sync::{Arc, Condvar, Mutex, mpsc},
    thread,
};

use super::{lock, queue::POLL_INTERVAL};
use crate::{
    Error, Result,
    device::require,
    error::guarded,
    generate::{Prompt, PromptRequest, PromptWriter},
};

/// The maximum number of prompts of one model that are tokenized at once, including abandoned ones.
/// A model whose tokenizer is deliberately slow thus keeps only a few threads busy, and does not
/// delay other models.
const MAX_CONCURRENT: usize = 4;

/// The number of bytes up to which a prompt is tokenized on the calling thread if no thread can be
/// started.
const MAX_INLINE_BYTES: usize = 16 << 10;

/// The threads that tokenize prompts of one model.
#[derive(Default)]
pub struct Places {
    taken: Mutex<usize>,
    freed: Condvar,
}

/// Tokenizes a prompt. `go_on` is polled and ends the wait with its error. The work then continues
/// in the background, and its result is dropped; [`PromptWriter`] limits the length of a prompt.
pub fn write(
    places: &Arc<Places>,
    writer: PromptWriter,
    request: PromptRequest,
    go_on: &dyn Fn() -> Result<()>,
) -> Result<Prompt> {
    go_on()?;
    require(
        &format!("tokenizing a prompt of {} bytes", request.bytes()),
        writer.memory(&request),
    )?;
    let place = Place::wait(places, go_on)?;
    let (sender, result) = mpsc::channel();
    let request = Arc::new(request);
    let (works, asked) = (writer.clone(), request.clone());
    let work = move || {
        let prompt = guarded(|| works.write(&asked));
        drop(place);
        // If nobody waits any more, nobody needs the result.
        let _ = sender.send(prompt);
    };
    match thread::Builder::new()
        .name("moxin-tokenizer".into())
        .spawn(work)
    {
        Ok(_) => {}
        Err(_) if request.bytes() <= MAX_INLINE_BYTES => return guarded(|| writer.write(&request)),
        Err(error) => {
            return Err(Error::InvalidState(format!(
                "the tokenizer's thread could not be started: {error}"
            )));
        }
    }
    loop {
        match result.recv_timeout(POLL_INTERVAL) {
            Ok(prompt) => return prompt,
            Err(mpsc::RecvTimeoutError::Timeout) => go_on()?,
            Err(mpsc::RecvTimeoutError::Disconnected) => {
                return Err(Error::Panic(
                    "the tokenizer's thread ended before its work was done".into(),
                ));
            }
        }
    }
}

/// An occupied place, until it is dropped.
struct Place(Arc<Places>);

impl Place {
    fn wait(places: &Arc<Places>, go_on: &dyn Fn() -> Result<()>) -> Result<Place> {
        let mut taken = lock(&places.taken);
        while *taken >= MAX_CONCURRENT {
            taken = places
                .freed
                .wait_timeout(taken, POLL_INTERVAL)
                .unwrap_or_else(|poisoned| poisoned.into_inner())
                .0;
            go_on()?;
        }
        *taken += 1;
        Ok(Place(places.clone()))
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        *lock(&self.0.taken) -= 1;
        self.0.freed.notify_one();
    }
}
