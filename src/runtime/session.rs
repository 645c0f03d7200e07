//! A conversation that any thread may hold.

use std::{
    mem,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
};

use super::{Embedding, Model, Op, engine};
use crate::{
    Error, Result,
    generate::{Chat, ChatImage, Event, GenerationOptions, Stats},
    image::Picture,
    text::{Role, Turn},
};

/// A conversation with a model. Clones are the same conversation; it lives as long as any of them, and keeps its model alive.
///
/// One operation at a time: a second one, from another thread, fails with [`Error::Busy`]. [`Session::cancel`] is not one of them.
#[derive(Clone)]
pub struct Session {
    model: Model,
    shared: Arc<Shared>,
}

struct Shared {
    state: Mutex<State>,
    cancel: AtomicBool,
}

enum State {
    Ready(Box<Chat>),
    /// Another thread has it.
    Busy,
    /// It was lost to a panic.
    Broken,
}

impl Drop for Shared {
    fn drop(&mut self) {
        let state = self.state.get_mut().unwrap_or_else(|poisoned| poisoned.into_inner());
        if let State::Ready(chat) = mem::replace(state, State::Busy) {
            engine::dispose(chat);
        }
    }
}

impl Session {
    pub(super) fn new(model: Model, options: GenerationOptions) -> Result<Session> {
        let for_chat = model.clone();
        let chat = engine::run(Op::default(), move |_| for_chat.with(|loaded| Chat::new(loaded, options)))?;
        let shared = Shared { state: Mutex::new(State::Ready(Box::new(chat))), cancel: AtomicBool::new(false) };
        Ok(Session { model, shared: Arc::new(shared) })
    }

    /// The model it talks to.
    pub fn model(&self) -> &Model {
        &self.model
    }

    /// Adds a text. The user's is answered by the next steps; an assistant's is taken as an answer already given.
    ///
    /// Fails with [`Error::InvalidState`] for a system text, which this model does not take, and while an answer is being generated.
    pub fn add_text(&self, role: Role, text: &str) -> Result<()> {
        self.with(|chat| chat.add_text(role, text))
    }

    /// Sets the picture that the conversation is about. It is encoded by the next step.
    ///
    /// Fails with [`Error::InvalidState`] for a second picture, and after the first answer.
    pub fn add_image(&self, picture: Picture) -> Result<()> {
        self.on_engine(move |chat| chat.add_image(ChatImage::Picture(Arc::new(picture))))
    }

    /// Sets the picture by its embedding, which must come from the same model.
    pub fn add_embedding(&self, embedding: &Embedding) -> Result<()> {
        let tokens = self.model.tokens_of(embedding)?;
        self.on_engine(move |chat| chat.add_image(ChatImage::Tokens(tokens)))
    }

    /// Does one chunk of prefill, or generates one token, or ends the answer. See [`Event`].
    ///
    /// An error takes the turn back: its texts, and a picture added with them. The session can go on with another.
    pub fn step(&self) -> Result<Event> {
        let (model, shared) = (self.model.clone(), Arc::clone(&self.shared));
        self.on_engine(move |chat| model.with(|loaded| chat.step(loaded, &shared.cancel)))
    }

    /// The answer's events as an iterator, which ends after [`Event::Finished`] or an error.
    pub fn generate(&self) -> impl Iterator<Item = Result<Event>> + '_ {
        let mut ended = false;
        std::iter::from_fn(move || {
            if ended {
                return None;
            }
            let event = self.step();
            ended = matches!(event, Ok(Event::Finished { .. }) | Err(_));
            Some(event)
        })
    }

    /// Ends the answer that is being generated, from any thread: its next step is [`Event::Finished`] with
    /// [`FinishReason::Cancelled`](crate::generate::FinishReason::Cancelled). Where none is, the next one ends at once.
    pub fn cancel(&self) {
        self.shared.cancel.store(true, Ordering::Relaxed);
    }

    /// Forgets the conversation and a cancellation that is pending; the options stay.
    pub fn reset(&self) -> Result<()> {
        let shared = Arc::clone(&self.shared);
        self.on_engine(move |chat| {
            chat.reset();
            shared.cancel.store(false, Ordering::Relaxed);
            Ok(())
        })
    }

    /// The conversation so far.
    pub fn turns(&self) -> Result<Vec<Turn>> {
        self.with(|chat| Ok(chat.turns().to_vec()))
    }

    /// Counts and times of the latest turn.
    pub fn stats(&self) -> Result<Stats> {
        self.with(|chat| Ok(chat.stats()))
    }

    /// Whether an answer is being generated.
    pub fn is_generating(&self) -> Result<bool> {
        self.with(|chat| Ok(chat.is_generating()))
    }

    /// What makes, uses or drops arrays is done in the engine's turn.
    fn on_engine<T: Send + 'static>(&self, f: impl FnOnce(&mut Chat) -> Result<T> + Send + 'static) -> Result<T> {
        let mut chat = self.take()?;
        let outcome = engine::run(Op::default(), move |_| {
            let result = f(&mut chat);
            Ok((chat, result))
        });
        match outcome {
            Ok((chat, result)) => {
                self.put_back(State::Ready(chat));
                result
            }
            Err(error) => {
                self.put_back(State::Broken);
                Err(error)
            }
        }
    }

    /// What touches no arrays is done here, without waiting for the engine.
    fn with<T>(&self, f: impl FnOnce(&mut Chat) -> Result<T>) -> Result<T> {
        let mut chat = self.take()?;
        let result = f(&mut chat);
        self.put_back(State::Ready(chat));
        result
    }

    fn take(&self) -> Result<Box<Chat>> {
        let mut state = self.state();
        match mem::replace(&mut *state, State::Busy) {
            State::Ready(chat) => Ok(chat),
            State::Busy => Err(Error::Busy),
            State::Broken => {
                *state = State::Broken;
                Err(Error::InvalidState("the session was lost to an internal error; begin a new one".into()))
            }
        }
    }

    fn put_back(&self, state: State) {
        *self.state() = state;
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        // Nothing panics while it is held: it only swaps values.
        self.shared.state.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}
