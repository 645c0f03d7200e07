//! A conversation that any thread may hold.

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
    image::Picture,
    models::Budget,
    text::{Message, Role},
};

/// A conversation with a model. Clones are the same conversation; it lives as long as any of them,
/// and keeps its model alive.
///
/// One operation at a time: a second one, from another thread or beside a stream, fails with
/// [`Error::Busy`]. [`Session::cancel`] and [`Session::stats`] are not among them.
#[derive(Clone)]
pub struct Session {
    model: Model,
    shared: Arc<Shared>,
}

struct Shared {
    slot: Arc<Slot<Conversation>>,
    cancel: Cancel,
    /// Those of the latest step.
    stats: Mutex<Stats>,
    streams: Arc<Streams>,
}

/// A chat that is dropped on the engine thread.
struct Conversation(Option<Chat>);

impl Drop for Conversation {
    fn drop(&mut self) {
        engine::dispose(self.0.take());
    }
}

/// What ends a streamed answer early.
#[derive(Default)]
pub struct StreamOptions {
    /// Cancels it, as [`Session::cancel`] does.
    pub cancel: Option<Cancel>,
    /// The longest it may take; it ends with [`Error::Timeout`] then.
    pub timeout: Option<Duration>,
}

impl Session {
    pub(super) fn new(model: Model, options: GenerationOptions) -> Result<Session> {
        let for_chat = model.clone();
        let chat = engine::turn(move || {
            for_chat.with(|loaded| Ok(Conversation(Some(Chat::new(loaded, options)?))))
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

    /// The model it talks to.
    pub fn model(&self) -> &Model {
        &self.model
    }

    /// Adds a text. The user's is answered by the next steps; an assistant's is taken as an answer
    /// already given. Texts of one role that follow each other become one message, a line each.
    ///
    /// It is text: where a control token such as `</s>` is spelt in it, the model reads the
    /// characters, not the token. See [`Session::add_prompt`] for the other way.
    ///
    /// # Errors
    /// [`Error::InvalidState`] for a system text, which this model does not take, and while an
    /// answer is being generated; [`Error::ContextFull`] where the conversation cannot fit into the
    /// context, which is known from its length in bytes.
    pub fn add_text(&self, role: Role, text: &str) -> Result<()> {
        // Before it is copied.
        lock_chat(self.shared.slot.claim()?.slot(), |chat| {
            chat.check_room(text.len())
        })?;
        let text = text.to_owned();
        self.change(move |chat| chat.add_text(role, &text))
    }

    /// Adds prompt text as it is: control tokens spelt in it are control tokens, and nothing is put
    /// around it but the `<s>` in front of the whole prompt, where it does not begin with one. For
    /// prompts in a format of one's own; what a user says goes to [`Session::add_text`], which
    /// makes no control token of it.
    ///
    /// The text is a message of [`Role::Prompt`], which the next steps answer. Texts added one
    /// after the other are joined without anything between them. The answer is not trimmed in
    /// front, is used as it is in later prompts, and is closed by `</s>` as every answer. Before
    /// and after such a pair the conversation may have others in the usual form; rewinding and
    /// forking count it like them. A picture stands behind the first token, as always.
    ///
    /// # Errors
    /// [`Error::InvalidState`] while an answer is being generated, and where a question added with
    /// [`Session::add_text`] waits for its answer; [`Error::ContextFull`] as for
    /// [`Session::add_text`].
    pub fn add_prompt(&self, text: &str) -> Result<()> {
        self.add_text(Role::Prompt, text)
    }

    /// Sets the picture that the conversation is about. It is encoded by the next step. Where the
    /// first answer is cancelled or fails, it is taken back with the question; added again it is
    /// not encoded again.
    ///
    /// # Errors
    /// [`Error::InvalidState`] for a second picture, and after the first answer.
    pub fn add_image(&self, picture: Picture) -> Result<()> {
        self.add_image_within(picture, Budget::default())
    }

    /// Does what [`Session::add_image`] does, with a budget of pixels where the model takes
    /// pictures of any size.
    ///
    /// # Errors
    /// Also [`Error::InvalidArgument`] for a picture or a budget that the model cannot take.
    pub fn add_image_within(&self, picture: Picture, budget: Budget) -> Result<()> {
        let image = self.model.chat_image(picture, budget)?;
        self.change(move |chat| chat.add_image(image))
    }

    /// Sets the picture by its embedding, which must come from the same model.
    pub fn add_embedding(&self, embedding: &Embedding) -> Result<()> {
        let (model, embedding) = (self.model.clone(), embedding.clone());
        self.change(move |chat| chat.add_image(model.chat_embedding(&embedding)?))
    }

    /// Does one chunk of prefill, or generates one token, or ends the answer. See [`Event`].
    ///
    /// # Errors
    /// An error takes the turn back: its texts, and a picture added with them. The session can go
    /// on with another. [`Error::Suspended`] does not: the next step goes on where this one did
    /// not, and until then the session is generating. [`Session::cancel`] is heard before every
    /// layer; the event is then [`Event::Finished`] with [`FinishReason::Cancelled`], and the turn
    /// is taken back.
    ///
    /// | a step or a stream ends with | what is kept |
    /// |---|---|
    /// | [`Error::Suspended`], steps only: a stream waits | all; the next step goes on |
    /// | [`FinishReason::Cancelled`], [`Error::Timeout`] | the turn is taken back; what was read of the turns before stays in the cache |
    /// | [`Error::OutOfMemory`], [`Error::ContextFull`] | the same |
    /// | [`Error::Backend`], [`Error::Panic`] | the turn is taken back, and all is read anew: nothing computed is trusted |
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

    /// Does a step that `op` may end too. A step that was done is not cancelled any more: its event
    /// is the answer's.
    fn step_of(&self, claim: &Claim<Conversation>, op: Op) -> Result<Event> {
        let (session, slot) = (self.clone(), claim.slot().clone());
        let control = Control::new(op.cancel.clone(), op.timeout);
        let step = move || {
            engine::run_to_its_end(op, move |reporter| {
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

    /// Makes tokens of the prompt that the next step reads, where there is one, off the engine's
    /// thread. Cancelled, out of time, or suspended it leaves the conversation as it is; any other
    /// error takes the turn back.
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

    /// Reads the prompt, so that the first token comes at once: encodes the picture and fills the
    /// KV cache, in chunks between which other sessions have their turns. Before the first question
    /// it reads the picture alone.
    ///
    /// # Errors
    /// [`Error::Cancelled`], also by [`Session::cancel`], [`Error::Timeout`], [`Error::Suspended`],
    /// and what [`Session::step`] fails with. None leaves the session generating.
    /// [`Error::InvalidState`] where there is nothing to read. What is kept is in this table; a
    /// picture that is kept before any question may be replaced by adding one.
    ///
    /// | ends with | a picture, before any question | a question |
    /// |---|---|---|
    /// | [`Error::Suspended`] | all stays; the next call goes on where this one ended, and so does an answer | the same |
    /// | [`Error::Cancelled`], [`Error::Timeout`] | all stays, as above | the turn is taken back |
    /// | [`Error::OutOfMemory`], [`Error::ContextFull`] | all stays | the turn is taken back |
    /// | [`Error::Backend`], [`Error::Panic`] | the picture stays, and is read anew | the turn is taken back, and all is read anew |
    pub fn prefill(&self, mut op: Op) -> Result<()> {
        let claim = self.shared.slot.claim()?;
        if !lock_chat(claim.slot(), |chat| Ok(chat.can_step()))? {
            // What was cancelled before would have been a question.
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
                // The chat has put itself right, or was not touched.
                Err(error) => return Err(error),
            }
        }
    }

    /// Generates the answer on a thread of the library's own, which calls `on_event` with each
    /// event. The last one is [`Event::Finished`] or an error; it comes exactly once, and then
    /// `on_event` is dropped. Where `on_event` returns false the answer is cancelled, and its end
    /// is told too.
    ///
    /// While the library is suspended the stream pauses. When `on_event` is told the end the
    /// session is free again: the next question may be asked from there.
    ///
    /// # Errors
    /// [`Error::Busy`]; [`Error::InvalidState`] where there is nothing to answer. `on_event` is not
    /// called then.
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
        let held = Arc::new(Mutex::new(Some(claim)));
        let release = {
            let held = held.clone();
            move || drop(lock(&held).take())
        };
        let next = move || {
            let held = lock(&held);
            match held.as_ref().map(|claim| session.next(claim, &control)) {
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

    /// A stream's next event: waits while the library is suspended, and ends the answer where its
    /// options say so.
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

    /// Ends the answer that is being generated, or the question that waits for one, from any
    /// thread, within a layer: its step is [`Event::Finished`] with [`FinishReason::Cancelled`]. A
    /// [`Session::prefill`] that is under way fails with [`Error::Cancelled`]. Where there is none
    /// of these it does nothing: whatever is added afterwards is not touched. Nothing but an atomic
    /// store: a signal handler may do it.
    pub fn cancel(&self) {
        self.shared.cancel.trigger();
    }

    /// Cancels the answer that is being generated and waits until its stream, where there is one,
    /// has told its end and dropped its callback. Inside a callback it does not wait, nor when the
    /// process ends: callbacks are not called any more then.
    pub fn close(&self) {
        self.cancel();
        self.shared.streams.wait(&CALLS);
    }

    /// A session of its own whose conversation has been the same until now, computed keys and
    /// values included.
    ///
    /// # Errors
    /// [`Error::InvalidState`] while an answer is being generated; [`Error::OutOfMemory`] where
    /// there is no room for a copy.
    pub fn fork(&self) -> Result<Session> {
        let claim = self.shared.slot.claim()?;
        let (session, slot) = (self.clone(), claim.slot().clone());
        let (fork, stats) = engine::turn(move || {
            session.at(&slot, |chat, loaded| {
                let fork = chat.fork(loaded)?;
                let stats = fork.stats();
                Ok((Conversation(Some(fork)), stats))
            })
        })?;
        Ok(Session::with(self.model.clone(), fork, stats))
    }

    /// Has answers from the next on generated with other options. What was computed stays.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] naming the option; [`Error::InvalidState`] while an answer is
    /// being generated; [`Error::OutOfMemory`] where there is no room for the new context.
    pub fn set_options(&self, options: GenerationOptions) -> Result<()> {
        let claim = self.shared.slot.claim()?;
        let (session, slot) = (self.clone(), claim.slot().clone());
        engine::turn(move || session.at(&slot, |chat, loaded| chat.set_options(loaded, options)))
    }

    /// Forgets all but the first `messages` of the conversation; the picture stays.
    /// [`Stats::messages`] tells how many there are.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] where there are fewer; [`Error::InvalidState`] while an answer is
    /// being generated.
    pub fn rewind(&self, messages: usize) -> Result<()> {
        self.change(move |chat| chat.rewind(messages))
    }

    /// Forgets the conversation and a cancellation that is pending; the options stay.
    pub fn reset(&self) -> Result<()> {
        self.change(|chat| {
            chat.reset();
            Ok(())
        })
    }

    /// The conversation so far.
    pub fn messages(&self) -> Result<Vec<Message>> {
        let claim = self.shared.slot.claim()?;
        lock_chat(claim.slot(), |chat| Ok(chat.messages().to_vec()))
    }

    /// Counts and times of the latest turn, as of its latest step; also while an answer is being
    /// generated.
    pub fn stats(&self) -> Stats {
        *lock(&self.shared.stats)
    }

    /// Whether an answer is being generated.
    pub fn is_generating(&self) -> Result<bool> {
        let claim = self.shared.slot.claim()?;
        lock_chat(claim.slot(), |chat| Ok(chat.is_generating()))
    }

    /// Changes the conversation, in the engine's turn, for it may drop arrays. What was cancelled
    /// before is not what comes now.
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

    /// Takes the turn back that is under way or waits, and with it a cancellation; returns whether
    /// there was one.
    fn withdraw(&self, claim: &Claim<Conversation>) -> Result<bool> {
        let shared = self.shared.clone();
        self.mend(claim, move |chat| {
            shared.cancel.clear();
            chat.withdraw()
        })
    }

    /// Changes the chat without the model, in the engine's turn, for it may drop arrays.
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
        .0
        .as_mut()
        .ok_or_else(|| Error::InvalidState("the session was freed".into()))?;
    f(chat)
}
