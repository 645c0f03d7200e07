//! A conversation that any thread may use.

use std::{
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use super::{
    Cancel, Embedding, Model, Op, Stage,
    engine::{self, CALLS},
    lock,
    op::Control,
    slot::{Claim, Slot},
    stream::{Next, Streams},
    tokenize,
};
use crate::{
    Error, Result,
    device::inject,
    generate::{Chat, ChatModel, Event, FinishReason, GenerationOptions, Stats, Watch},
    image::{Medium, Picture, Video},
    models::Budget,
    text::{Message, Role},
};

/// A conversation with a model. Clones share the conversation. It lives as long as any of them, and
/// keeps its model alive.
///
/// Only one operation may run at a time: a second one, from another thread or beside a stream,
/// fails with [`Error::Busy`]. [`Session::cancel`] and [`Session::stats`] are always allowed.
#[derive(Clone)]
pub struct Session {
    model: Model,
    shared: Arc<Shared>,
}

struct Shared {
    slot: Arc<Slot<Conversation>>,
    cancel: Cancel,
    /// The statistics of the latest step.
    stats: Mutex<Stats>,
    streams: Arc<Streams>,
}

/// A chat that ends on the engine thread.
struct Conversation {
    chat: Option<Chat>,
    model: Model,
}

impl Conversation {
    fn new(chat: Chat, model: &Model) -> Conversation {
        Conversation {
            chat: Some(chat),
            model: model.clone(),
        }
    }
}

impl Drop for Conversation {
    fn drop(&mut self) {
        if let Some(chat) = self.chat.take() {
            self.model.retire(chat);
        }
    }
}

/// Conditions that end a streamed answer early.
#[derive(Default)]
pub struct StreamOptions {
    /// Cancels the answer, as [`Session::cancel`] does.
    pub cancel: Option<Cancel>,
    /// The time limit; after it the answer ends with [`Error::Timeout`].
    pub timeout: Option<Duration>,
}

impl Session {
    pub(super) fn new(model: Model, options: GenerationOptions) -> Result<Session> {
        let for_chat = model.clone();
        let chat = engine::turn(move || {
            for_chat.with(|loaded| Ok(Conversation::new(Chat::new(loaded, options)?, &for_chat)))
        })?;
        Ok(Session::with(model, chat, Stats::default()))
    }

    fn with(model: Model, chat: Conversation, stats: Stats) -> Session {
        let (slot, stats) = (Slot::new(chat), Mutex::new(stats));
        Session {
            model,
            shared: Arc::new(Shared {
                slot,
                cancel: Cancel::new(),
                stats,
                streams: Arc::default(),
            }),
        }
    }

    /// Returns the model of the session.
    pub fn model(&self) -> &Model {
        &self.model
    }

    /// Adds a text. The next steps answer a user's text; an assistant's text counts as an existing
    /// answer. Consecutive texts and pictures of one role are parts of one message.
    ///
    /// The text is never interpreted: if it spells a control token such as `</s>`, the model reads
    /// the characters, not the token. See [`Session::add_prompt`] for the opposite.
    ///
    /// # Errors
    /// [`Error::InvalidState`] if the role is [`Role::System`] and the model does not support it,
    /// if a question follows an answer and the model does not support that, or while an answer is
    /// being generated; [`Error::ContextFull`] if the length in bytes already shows that the
    /// conversation cannot fit.
    pub fn add_text(&self, role: Role, text: &str) -> Result<()> {
        // Checked before the text is copied.
        lock_chat(self.shared.slot.claim()?.slot(), |chat| {
            chat.check_room(text.len())
        })?;
        let text = text.to_owned();
        self.change(move |chat| chat.add_text(role, &text))
    }

    /// Adds prompt text unchanged, for prompts in a custom format. Control tokens spelled in the
    /// text are control tokens. Nothing is added around it, except the `<s>` at the start of the
    /// whole prompt if it is missing. Do not use it for text from users; [`Session::add_text`]
    /// never turns text into control tokens.
    ///
    /// The text is a message of [`Role::Prompt`], which the next steps answer. Texts added one
    /// after the other are joined without a separator. The answer is not trimmed at the start,
    /// appears unchanged in later prompts, and is closed by `</s>` like every answer. Such messages
    /// can be mixed with ordinary ones; rewinding and forking treat them alike. A picture is placed
    /// after the first token, as always.
    ///
    /// # Errors
    /// [`Error::InvalidState`] while an answer is being generated, or if a question added with
    /// [`Session::add_text`] waits for its answer; [`Error::ContextFull`] as for
    /// [`Session::add_text`].
    pub fn add_prompt(&self, text: &str) -> Result<()> {
        self.add_text(Role::Prompt, text)
    }

    /// Adds a picture at the end of the user's message, within the session's budget. The model
    /// encodes it in one of the next steps. If the answer is cancelled or fails, its pictures are
    /// removed together with the question; a picture that is added again is not encoded again.
    ///
    /// # Errors
    /// [`Error::InvalidState`] for more pictures than
    /// [`ModelInfo::max_images`](crate::ModelInfo::max_images), after an answer if the model does
    /// not support that, or while an answer is being generated; [`Error::InvalidArgument`] if the
    /// model cannot take the picture or the budget.
    pub fn add_image(&self, picture: Picture) -> Result<()> {
        self.add_image_within(picture, self.budget()?)
    }

    /// Adds a picture as [`Session::add_image`] does, within a budget of its own.
    ///
    /// # Errors
    /// As for [`Session::add_image`].
    pub fn add_image_within(&self, picture: Picture, budget: Budget) -> Result<()> {
        self.add_medium(picture.into(), budget)
    }

    /// Adds a video at the end of the user's message, as [`Session::add_image`] does a picture. The
    /// model reads all of its frames.
    ///
    /// # Errors
    /// As for [`Session::add_image`]; [`Error::InvalidArgument`] also if the model reads no videos
    /// (see [`ModelInfo::max_videos`](crate::ModelInfo::max_videos)).
    ///
    /// # Example
    /// ```no_run
    /// # use moxin_vlm::{Picture, Role, Session, Video};
    /// # fn ask(session: &Session, frames: Vec<Picture>) -> moxin_vlm::Result<()> {
    /// session.add_video(Video::from_frames(frames, 2.0)?)?;
    /// session.add_text(Role::User, "What moves?")?;
    /// # Ok(())
    /// # }
    /// ```
    pub fn add_video(&self, video: Video) -> Result<()> {
        self.add_video_within(video, self.budget()?)
    }

    /// Adds a video as [`Session::add_video`] does, within a budget of its own: its pixels are
    /// those of each frame, and its `max_tokens` those of the whole video.
    ///
    /// # Errors
    /// As for [`Session::add_video`].
    pub fn add_video_within(&self, video: Video, budget: Budget) -> Result<()> {
        self.add_medium(video.into(), budget)
    }

    fn add_medium(&self, medium: Medium, budget: Budget) -> Result<()> {
        let medium = self.model.chat_medium(medium, budget)?;
        self.change(move |chat| chat.add_medium(medium))
    }

    /// Returns the budget of pictures and videos that are added without one of their own.
    fn budget(&self) -> Result<Budget> {
        lock_chat(self.shared.slot.claim()?.slot(), |chat| {
            Ok(chat.image_budget())
        })
    }

    /// Adds a picture that the same model has already encoded.
    pub fn add_embedding(&self, embedding: &Embedding) -> Result<()> {
        let (model, embedding) = (self.model.clone(), embedding.clone());
        self.change(move |chat| chat.add_medium(model.chat_embedding(&embedding)?))
    }

    /// Performs one step: reads a chunk of the prompt, generates a token, or ends the answer. See
    /// [`Event`].
    ///
    /// # Errors
    /// On error the turn is rolled back: its texts and pictures are removed, and the session can
    /// take another question. After [`Error::Suspended`] nothing is rolled back: the answer stays
    /// in progress, and the next step continues it. [`Session::cancel`] takes effect before the
    /// next layer; the event is then [`Event::Finished`] with [`FinishReason::Cancelled`], and the
    /// turn is rolled back.
    ///
    /// | a step or a stream ends with | what is kept |
    /// |---|---|
    /// | [`Error::Suspended`], steps only: a stream waits | everything; the next step continues |
    /// | [`FinishReason::Cancelled`], [`Error::Timeout`] | the turn is rolled back; earlier turns stay in the cache |
    /// | [`Error::OutOfMemory`], [`Error::ContextFull`] | the same |
    /// | [`Error::Backend`], [`Error::Panic`] | the turn is rolled back, and everything is read again |
    pub fn step(&self) -> Result<Event> {
        let claim = self.shared.slot.claim()?;
        self.step_of(
            &claim,
            Op {
                cancel: Some(self.shared.cancel.clone()),
                ..Op::default()
            },
        )
    }

    /// Performs a step that `op` may also end. A completed step is not cancelled any more: its
    /// event belongs to the answer.
    fn step_of(&self, claim: &Claim<Conversation>, op: Op) -> Result<Event> {
        let (session, slot) = (self.clone(), claim.slot().clone());
        let control = Control::new(op.cancel.clone(), op.timeout);
        let step = move || {
            engine::run_to_completion(op, move |reporter| {
                inject("engine")?;
                let (progress, poll) = (
                    |part| reporter.report(Stage::Encode, part),
                    || reporter.check(),
                );
                session.at(&slot, |chat, loaded| {
                    chat.step(
                        loaded,
                        Watch {
                            progress: &progress,
                            poll: &poll,
                        },
                    )
                })
            })
        };
        match self.tokenize(claim, &control).and_then(|()| step()) {
            Err(Error::Cancelled) => match self.withdraw(claim)? {
                true => Ok(Event::Finished {
                    reason: FinishReason::Cancelled,
                    text: String::new(),
                }),
                false => Err(Error::InvalidState(
                    "there is nothing to answer: add the user's text first".into(),
                )),
            },
            event => event,
        }
    }

    /// Tokenizes the prompt for the next step, if needed, outside the engine's thread. If this is
    /// cancelled, suspended, or exceeds its time, the conversation stays as it is; any other error
    /// rolls the turn back.
    fn tokenize(&self, claim: &Claim<Conversation>, control: &Control) -> Result<()> {
        let since = Instant::now();
        let write = |(writer, request)| {
            tokenize::write(self.model.tokenizing(), writer, request, &|| {
                engine::check(control)
            })
        };
        match lock_chat(claim.slot(), |chat| chat.unwritten())
            .and_then(|unwritten| unwritten.map(write).transpose())
        {
            Ok(Some(prompt)) => lock_chat(claim.slot(), |chat| {
                chat.set_prompt(prompt, since);
                Ok(())
            }),
            Ok(None) => Ok(()),
            Err(error @ (Error::Cancelled | Error::Timeout | Error::Suspended)) => Err(error),
            Err(error) => {
                self.withdraw(claim)?;
                Err(error)
            }
        }
    }

    /// Returns the answer's events as an iterator, which ends after [`Event::Finished`] or an
    /// error.
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

    /// Reads the prompt ahead of time, so that the first token comes sooner: encodes the pictures
    /// and fills the KV cache, in chunks between which other sessions take turns. Before the first
    /// question it reads the pictures alone.
    ///
    /// # Errors
    /// [`Error::Cancelled`], also through [`Session::cancel`]; [`Error::Timeout`];
    /// [`Error::Suspended`]; and the errors of [`Session::step`]. None of them leaves an answer in
    /// progress. [`Error::InvalidState`] if there is nothing to read. The table shows what is kept;
    /// a picture that is kept before any question may be replaced by adding another one.
    ///
    /// | ends with | a picture, before any question | a question |
    /// |---|---|---|
    /// | [`Error::Suspended`] | everything stays; the next call, or an answer, continues here | the same |
    /// | [`Error::Cancelled`], [`Error::Timeout`] | everything stays, as above | the turn is rolled back |
    /// | [`Error::OutOfMemory`], [`Error::ContextFull`] | everything stays | the turn is rolled back |
    /// | [`Error::Backend`], [`Error::Panic`] | the picture stays, and is read again | the turn is rolled back, and everything is read again |
    pub fn prefill(&self, mut op: Op) -> Result<()> {
        let claim = self.shared.slot.claim()?;
        if !lock_chat(claim.slot(), |chat| Ok(chat.can_step()))? {
            // An earlier cancellation would have been for a question.
            self.shared.cancel.clear();
        }
        let control = Control::new(Some(self.shared.cancel.or(op.cancel.as_ref())), op.timeout);
        loop {
            let (session, slot) = (self.clone(), claim.slot().clone());
            let progress = op
                .progress
                .as_mut()
                .map(|progress| &mut **progress as &mut dyn FnMut(Stage, f32) -> bool);
            let read = self.tokenize(&claim, &control).and_then(|()| {
                engine::run(
                    Op {
                        progress,
                        ..control.op()
                    },
                    move |reporter| {
                        let (progress, poll) = (
                            |part| reporter.report(Stage::Encode, part),
                            || reporter.check(),
                        );
                        let (event, reading) = session.at(&slot, |chat, loaded| {
                            let event = chat.read_step(
                                loaded,
                                Watch {
                                    progress: &progress,
                                    poll: &poll,
                                },
                            )?;
                            Ok((event, chat.is_reading()))
                        })?;
                        if let Event::Prefill { done, total } = event {
                            match reporter.report(Stage::Prefill, done as f32 / total.max(1) as f32)
                            {
                                // Nothing is left to be done later.
                                Err(Error::Suspended) if !reading => {}
                                goes_on => goes_on?,
                            }
                        }
                        Ok(reading)
                    },
                )
            });
            match read {
                Ok(true) => {}
                Ok(false) => return Ok(()),
                Err(error @ (Error::Cancelled | Error::Timeout)) => {
                    if !self.withdraw(&claim)? {
                        self.mend(&claim, Chat::pause)?;
                    }
                    return Err(error);
                }
                Err(Error::Suspended) => {
                    self.mend(&claim, Chat::pause)?;
                    return Err(Error::Suspended);
                }
                // The chat has rolled itself back, or was not touched.
                Err(error) => return Err(error),
            }
        }
    }

    /// Generates the answer on a thread of the library, which calls `on_event` with each event. The
    /// last event is [`Event::Finished`] or an error; exactly one is sent, and then `on_event` is
    /// dropped. If `on_event` returns false, the answer is cancelled; its last event still follows.
    ///
    /// While the library is suspended, the stream pauses. At the last event the session is already
    /// free: the next question may be asked there.
    ///
    /// # Errors
    /// [`Error::Busy`]; [`Error::InvalidState`] if there is nothing to answer. `on_event` is then
    /// not called.
    ///
    /// # Example
    /// ```
    /// use std::sync::mpsc::channel;
    ///
    /// use moxin_vlm::{Event, GenerationOptions, LoadOptions, Model, Op, Picture, Role, StreamOptions};
    ///
    /// # fn main() -> moxin_vlm::Result<()> {
    /// let model = Model::load("models/tiny", LoadOptions::default(), Op::default())?;
    /// let session = model.session(GenerationOptions::default())?;
    /// session.add_image(Picture::open("models/demo.png", &Default::default())?)?;
    /// session.prefill(Op::default())?; // the picture is read while the user is still typing
    /// session.add_text(Role::User, "How many shapes are there?")?;
    /// let (sender, events) = channel();
    /// session.start(StreamOptions::default(), move |event| sender.send(event).is_ok())?;
    /// let mut answer = String::new();
    /// for event in events {
    ///     if let Event::Text { text, .. } | Event::Finished { text, .. } = event? {
    ///         answer += &text;
    ///     }
    /// }
    /// assert_eq!(answer, "Three.");
    /// # Ok(()) }
    /// ```
    pub fn start(
        &self,
        options: StreamOptions,
        on_event: impl FnMut(Result<Event>) -> bool + Send + 'static,
    ) -> Result<()> {
        let claim = self.shared.slot.claim()?;
        if !lock_chat(claim.slot(), |chat| Ok(chat.can_step()))? {
            return Err(Error::InvalidState(
                "there is nothing to answer: add the user's text first".into(),
            ));
        }
        let control = Control::new(
            Some(self.shared.cancel.or(options.cancel.as_ref())),
            options.timeout,
        );
        let (session, refused, shared) = (self.clone(), self.shared.clone(), self.shared.clone());
        let claim = Arc::new(Mutex::new(Some(claim)));
        let release = {
            let claim = claim.clone();
            move || drop(lock(&claim).take())
        };
        let next = move || {
            let claim = lock(&claim);
            match claim.as_ref().map(|claim| session.next(claim, &control)) {
                Some(Ok(event @ Event::Finished { .. })) => Next::Last(Ok(event)),
                Some(Ok(event)) => Next::Event(Ok(event)),
                Some(Err(error)) => Next::Last(Err(error)),
                None => Next::Last(Err(Error::InvalidState("the stream has ended".into()))),
            }
        };
        shared.streams.spawn(
            &CALLS,
            next,
            on_event,
            move || refused.cancel.trigger(),
            release,
        )
    }

    /// Returns a stream's next event: waits while the library is suspended, and ends the answer if
    /// its options say so.
    fn next(&self, claim: &Claim<Conversation>, control: &Control) -> Result<Event> {
        loop {
            match self.step_of(claim, control.op()) {
                Err(Error::Suspended) => engine::wait_for_resume(|| control.check().is_err()),
                Err(Error::Timeout) => {
                    self.withdraw(claim)?;
                    return Err(Error::Timeout);
                }
                event => return event,
            }
        }
    }

    /// Cancels the answer that is being generated, or the question that waits for one, from any
    /// thread, within one layer: its step is [`Event::Finished`] with [`FinishReason::Cancelled`].
    /// A running [`Session::prefill`] fails with [`Error::Cancelled`]. Otherwise this does nothing,
    /// and text added later is not affected. Only an atomic store, so it is safe in a signal
    /// handler.
    pub fn cancel(&self) {
        self.shared.cancel.trigger();
    }

    /// Cancels the answer that is being generated and waits until its stream, if there is one, has
    /// sent its last event and dropped its callback. Does not wait inside a callback, or when the
    /// process exits, because callbacks are then no longer called.
    pub fn close(&self) {
        self.cancel();
        self.shared.streams.wait(&CALLS);
    }

    /// Copies the session with its conversation so far, including the computed keys and values.
    ///
    /// # Errors
    /// [`Error::InvalidState`] while an answer is being generated; [`Error::OutOfMemory`] if there
    /// is no room for a copy.
    pub fn fork(&self) -> Result<Session> {
        let claim = self.shared.slot.claim()?;
        let (session, slot) = (self.clone(), claim.slot().clone());
        let (fork, stats) = engine::turn(move || {
            session.at(&slot, |chat, loaded| {
                let fork = chat.fork(loaded)?;
                let stats = fork.stats();
                Ok((Conversation::new(fork, &session.model), stats))
            })
        })?;
        Ok(Session::with(self.model.clone(), fork, stats))
    }

    /// Replaces all options. Applies from the next answer; what was computed is kept.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] names the option; [`Error::InvalidState`] while an answer is
    /// being generated; [`Error::OutOfMemory`] if there is no room for the new context.
    pub fn set_options(&self, options: GenerationOptions) -> Result<()> {
        let claim = self.shared.slot.claim()?;
        let (session, slot) = (self.clone(), claim.slot().clone());
        engine::turn(move || session.at(&slot, |chat, loaded| chat.set_options(loaded, options)))
    }

    /// Removes all but the first `messages` of the conversation; the pictures stay.
    /// [`Stats::messages`] is the number of messages.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] if there are fewer messages; [`Error::InvalidState`] while an
    /// answer is being generated.
    pub fn rewind(&self, messages: usize) -> Result<()> {
        self.change(move |chat| chat.rewind(messages))
    }

    /// Removes the whole conversation and a pending cancellation; the options stay.
    pub fn reset(&self) -> Result<()> {
        self.change(|chat| {
            chat.reset();
            Ok(())
        })
    }

    /// Returns the conversation so far.
    pub fn messages(&self) -> Result<Vec<Message>> {
        let claim = self.shared.slot.claim()?;
        lock_chat(claim.slot(), |chat| Ok(chat.messages().to_vec()))
    }

    /// Returns the number of positions of the prompt that the next step would read, including image
    /// tokens; nothing is computed.
    ///
    /// # Errors
    /// [`Error::InvalidState`] if there is nothing to read; those of [`Session::step`] for a prompt
    /// that is too long or that the model's template refuses: the question is then rolled back.
    pub fn prompt_tokens(&self) -> Result<usize> {
        let claim = self.shared.slot.claim()?;
        let control = Control::new(Some(self.shared.cancel.clone()), None);
        self.tokenize(&claim, &control)?;
        lock_chat(claim.slot(), |chat| chat.prompt_tokens())
    }

    /// Returns counts and times of the latest turn, as of its latest step, even while an answer is
    /// being generated.
    pub fn stats(&self) -> Stats {
        *lock(&self.shared.stats)
    }

    /// Returns whether an answer is being generated.
    pub fn is_generating(&self) -> Result<bool> {
        let claim = self.shared.slot.claim()?;
        lock_chat(claim.slot(), |chat| Ok(chat.is_generating()))
    }

    /// Changes the conversation in the engine's turn, because it may drop arrays. An earlier
    /// cancellation does not apply to what comes now.
    fn change(&self, f: impl FnOnce(&mut Chat) -> Result<()> + Send + 'static) -> Result<()> {
        let claim = self.shared.slot.claim()?;
        let (shared, slot) = (self.shared.clone(), claim.slot().clone());
        engine::turn(move || {
            lock_chat(&slot, |chat| {
                f(chat)?;
                shared.cancel.clear();
                *lock(&shared.stats) = chat.stats();
                Ok(())
            })
        })
    }

    /// Rolls back the turn that is in progress or waiting, and clears a cancellation; returns
    /// whether there was one.
    fn withdraw(&self, claim: &Claim<Conversation>) -> Result<bool> {
        let shared = self.shared.clone();
        self.mend(claim, move |chat| {
            shared.cancel.clear();
            chat.withdraw()
        })
    }

    /// Changes the chat without the model, in the engine's turn, because it may drop arrays.
    fn mend<T: Send + 'static>(
        &self,
        claim: &Claim<Conversation>,
        f: impl FnOnce(&mut Chat) -> T + Send + 'static,
    ) -> Result<T> {
        let (shared, slot) = (self.shared.clone(), claim.slot().clone());
        engine::turn(move || {
            lock_chat(&slot, |chat| {
                let result = f(chat);
                *lock(&shared.stats) = chat.stats();
                Ok(result)
            })
        })
    }

    /// Calls `f` with the conversation and the model's weights. On the engine thread only.
    fn at<T>(
        &self,
        slot: &Slot<Conversation>,
        f: impl FnOnce(&mut Chat, &ChatModel) -> Result<T>,
    ) -> Result<T> {
        self.model.with(|loaded| {
            let (result, stats) = lock_chat(slot, |chat| {
                let result = f(chat, loaded);
                Ok((result, chat.stats()))
            })?;
            *lock(&self.shared.stats) = stats;
            result
        })
    }
}

/// Calls `f` with the chat.
fn lock_chat<T>(slot: &Slot<Conversation>, f: impl FnOnce(&mut Chat) -> Result<T>) -> Result<T> {
    let mut conversation = slot.lock();
    let chat = conversation
        .chat
        .as_mut()
        .ok_or_else(|| Error::InvalidState("the session was freed".into()))?;
    f(chat)
}
