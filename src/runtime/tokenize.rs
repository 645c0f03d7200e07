//! Makes tokens of prompts on threads of their own, so that nobody waits for a long one longer than
//! it wants to.

use std::{
    sync::{Arc, Condvar, Mutex, mpsc},
    thread,
};

use super::{lock, queue::GLANCE};
use crate::{
    Error, Result,
    device::require,
    error::guarded,
    generate::{Prompt, PromptRequest, PromptWriter},
};

/// Prompts of one model that are worked on at once, those included that nobody waits for any more.
/// So a model whose tokenizer is slow on purpose keeps but a few threads busy, and no other model
/// waiting.
const MOST: usize = 4;

/// Bytes of a prompt that is worked on here where no thread can be started.
const SHORT: usize = 16 << 10;

/// The places in which prompts of one model are worked on.
#[derive(Default)]
pub struct Places {
    taken: Mutex<usize>,
    freed: Condvar,
}

/// Writes a prompt. `go_on` is asked now and then, and ends the wait with its error. What was
/// begun goes on to its end then, unheard; [`PromptWriter`] bounds the length of a prompt.
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
        // Where nobody waits any more, nobody misses it.
        let _ = sender.send(prompt);
    };
    match thread::Builder::new()
        .name("moxin-tokenizer".into())
        .spawn(work)
    {
        Ok(_) => {}
        Err(_) if request.bytes() <= SHORT => return guarded(|| writer.write(&request)),
        Err(error) => {
            return Err(Error::InvalidState(format!(
                "the tokenizer's thread could not be started: {error}"
            )));
        }
    }
    loop {
        match result.recv_timeout(GLANCE) {
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

/// A place that is taken, until it is dropped.
struct Place(Arc<Places>);

impl Place {
    fn wait(places: &Arc<Places>, go_on: &dyn Fn() -> Result<()>) -> Result<Place> {
        let mut taken = lock(&places.taken);
        while *taken >= MOST {
            taken = places
                .freed
                .wait_timeout(taken, GLANCE)
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
