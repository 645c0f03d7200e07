//! A conversation with a model, one step at a time: a picture, a chunk of the prompt, or a token.

mod reading;
mod steps;

use std::time::Instant;

use jiff::ZonedDateTime;

use self::reading::Reading;
use super::{
    Answer, CachedRow, ChatMedium, ChatModel, Conversation, Event, FinishReason, GenerationOptions,
    Prefix, Prompt, PromptRequest, PromptWriter, Stats, Watch, Written,
};
use crate::{
    Error, Result,
    device::inject,
    device::memory_stats,
    error::guarded,
    models::Budget,
    nn::{KVCache, KeyValueCache},
    text::{Message, Role},
};

/// A conversation: its messages and pictures, and the keys and values computed so far.
pub struct Chat {
    options: GenerationOptions,
    max_context: usize,
    conversation: Conversation,
    /// Whether the next picture may replace the last one, because reading it ahead was stopped.
    replaceable: bool,
    cache: Vec<KVCache>,
    /// The rows that the cache contains, and the prompt rows that will follow.
    rows: Vec<CachedRow>,
    writer: PromptWriter,
    /// The prompt that is read next, and when it was requested.
    prompt: Option<(Prompt, Instant)>,
    /// The prompt that is being read.
    written: Written,
    /// The prompts and answers before it, one entry per answer.
    answered: Vec<Written>,
    phase: Phase,
    stats: Stats,
    /// The state of the weights that the keys and values were computed with.
    revision: u64,
}

enum Phase {
    Idle,
    Begin(Turn),
    Read {
        turn: Turn,
        reading: Box<Reading>,
    },
    Decode {
        turn: Turn,
        answer: Box<Answer>,
        next: Next,
    },
}

/// State of a running turn, for measuring it and for rolling it back.
#[derive(Clone, Copy)]
struct Turn {
    began: Instant,
    /// The number of messages that were complete before.
    kept: usize,
    /// Whether there is a question. Without one, only the pictures are read, so that the first
    /// question need not wait for them.
    answers: bool,
}

enum Next {
    /// The logits of the next token are available.
    Sample(Vec<f32>),
    /// This token must be read first.
    Feed(u32),
    Finish(FinishReason),
}

impl Chat {
    /// Starts an empty conversation.
    pub fn new(model: &ChatModel, options: GenerationOptions) -> Result<Chat> {
        let max_context = model.permitted_context(&options)?;
        Ok(Chat {
            options,
            max_context,
            conversation: Conversation::new(model.limits(), model.writer.is_marked()),
            replaceable: false,
            cache: model.weights.decoder.new_cache(),
            rows: Vec::new(),
            writer: model.writer.clone().at(ZonedDateTime::now()),
            prompt: None,
            written: Written::default(),
            answered: Vec::new(),
            phase: Phase::Idle,
            stats: Stats::default(),
            revision: model.revision,
        })
    }

    /// Returns the budget of pictures that are added without one of their own.
    pub fn image_budget(&self) -> Budget {
        self.options.image_budget
    }

    /// Replaces all options. Applies from the next answer; what was computed is kept.
    pub fn set_options(&mut self, model: &ChatModel, options: GenerationOptions) -> Result<()> {
        self.between_turns()?;
        self.max_context = model.permitted_context(&options)?;
        self.options = options;
        Ok(())
    }

    /// Adds a text: to the last message if it has the same role, otherwise as a new message.
    pub fn add_text(&mut self, role: Role, text: &str) -> Result<()> {
        self.between_turns()?;
        self.check_room(text.len())?;
        self.conversation.add_text(role, text)?;
        self.prompt = None;
        Ok(())
    }

    /// Checks by its length alone that a text may fit into the context together with the others.
    ///
    /// # Errors
    /// [`Error::ContextFull`] with the minimum number of tokens.
    pub fn check_room(&self, bytes: usize) -> Result<()> {
        self.writer.check_room(
            bytes.saturating_add(self.conversation.bytes()),
            self.max_context,
        )
    }

    /// Adds a picture or a video to the user's message. If the model takes no more, it may replace
    /// one whose reading ahead was stopped.
    pub fn add_medium(&mut self, medium: ChatMedium) -> Result<()> {
        self.between_turns()?;
        self.conversation.add_medium(medium, self.replaceable)?;
        self.replaceable = false;
        self.prompt = None;
        Ok(())
    }

    /// Copies the conversation. Keys and values are copied when one of the two continues.
    pub fn fork(&self, model: &ChatModel) -> Result<Chat> {
        self.between_turns()?;
        model.require(
            "a fork of the conversation",
            model.memory.cache(self.positions()),
        )?;
        Ok(Chat {
            options: self.options.clone(),
            max_context: self.max_context,
            conversation: self.conversation.clone(),
            replaceable: self.replaceable,
            cache: self.cache.clone(),
            rows: self.rows.clone(),
            writer: self.writer.clone(),
            prompt: None,
            written: Written::default(),
            answered: self.answered.clone(),
            phase: Phase::Idle,
            stats: Stats {
                messages: self.messages().len(),
                ..Stats::default()
            },
            revision: self.revision,
        })
    }

    /// Adds what an ended conversation has read to the model's pool, for conversations that continue
    /// it.
    pub fn retire(mut self, model: &ChatModel) {
        if self.revision == model.revision {
            self.rows.truncate(self.positions());
            model.prefixes.borrow_mut().insert(Prefix {
                scope: self.options.prefix_scope,
                rows: self.rows,
                cache: self.cache,
            });
        }
    }

    /// Removes all but the first `messages`, with their pictures. A picture that comes before all
    /// messages stays.
    pub fn rewind(&mut self, messages: usize) -> Result<()> {
        self.between_turns()?;
        self.conversation.rewind(messages)?;
        // At most this many answers are kept.
        self.answered.truncate(
            self.messages()
                .iter()
                .filter(|message| message.role == Role::Assistant)
                .count(),
        );
        self.prompt = None;
        self.stats.messages = messages;
        Ok(())
    }

    /// Rolls back the turn in progress, or the question that waits for its answer; returns whether
    /// there was one. Pictures that were being read ahead of any question stay.
    pub fn withdraw(&mut self) -> bool {
        let turn = match self.current() {
            Some(turn) => turn,
            None if self.can_step() => self.open_turn(true),
            None => return false,
        };
        log::info!(
            "an answer was cancelled after {} tokens",
            self.stats.generated_tokens
        );
        self.roll_back(turn);
        turn.answers
    }

    /// Stops reading ahead. The conversation stays as it is, and nothing is read twice.
    pub fn pause(&mut self) {
        if self.is_reading() {
            self.phase = Phase::Idle;
        }
        self.replaceable = !self.can_step();
    }

    /// Returns the request for the prompt that the next step needs, if it is not written yet. The
    /// caller may write it elsewhere and pass it to [`Chat::set_prompt`]; otherwise the step writes
    /// it.
    ///
    /// # Errors
    /// [`Error::ContextFull`] if the prompt is too long for the context, whatever its tokens are.
    pub fn unwritten(&self) -> Result<Option<(PromptWriter, PromptRequest)>> {
        let answers = match self.phase {
            _ if self.prompt.is_some() => return Ok(None),
            Phase::Idle if self.conversation.asks() => true,
            Phase::Idle if self.conversation.has_unasked_image() => false,
            Phase::Begin(turn) => turn.answers,
            _ => return Ok(None),
        };
        Ok(Some((self.writer.clone(), self.request(answers)?)))
    }

    /// Sets the prompt that [`Chat::unwritten`] asked for, and when it was requested.
    pub fn set_prompt(&mut self, prompt: Prompt, since: Instant) {
        self.prompt = Some((prompt, since));
    }

    /// Returns the number of positions of the prompt that the next step reads, once it is written.
    ///
    /// # Errors
    /// [`Error::InvalidState`] if there is nothing to read.
    pub fn prompt_tokens(&self) -> Result<usize> {
        match (&self.prompt, &self.phase) {
            (Some((prompt, _)), _) => Ok(prompt.rows.len()),
            (None, Phase::Read { .. } | Phase::Decode { .. }) => Ok(self.stats.prompt_tokens),
            (None, _) => Err(nothing_to_answer()),
        }
    }

    /// Returns the request for the conversation's prompt.
    fn request(&self, answers: bool) -> Result<PromptRequest> {
        self.check_room(0)?;
        Ok(
            PromptRequest::new(self.messages(), self.conversation.media(), answers)
                .after(&self.answered),
        )
    }

    /// Removes the conversation; the options stay.
    pub fn reset(&mut self) {
        self.conversation.clear();
        self.answered.clear();
        self.prompt = None;
        self.phase = Phase::Idle;
        self.stats = Stats::default();
        self.forget();
    }

    /// Returns the conversation so far.
    pub fn messages(&self) -> &[Message] {
        self.conversation.messages()
    }

    /// Returns counts and times of the latest turn.
    pub fn stats(&self) -> Stats {
        self.stats
    }

    /// Returns whether an answer is being generated.
    pub fn is_generating(&self) -> bool {
        self.current().is_some()
    }

    /// Returns whether there is an answer to continue, or a question.
    pub fn can_step(&self) -> bool {
        self.is_generating() || self.conversation.asks()
    }

    /// Returns whether part of the prompt must still be read before the first token of the answer
    /// in progress.
    pub fn is_reading(&self) -> bool {
        matches!(self.phase, Phase::Begin(_) | Phase::Read { .. })
    }

    /// Encodes a picture, reads a chunk of the prompt, or generates a token.
    ///
    /// # Errors
    /// [`Error::Cancelled`], [`Error::Timeout`] and [`Error::Suspended`], which come from `watch`,
    /// change nothing: the next step does the same work again. Other errors roll the turn back: its
    /// texts, and pictures added since the last answer.
    pub fn step(&mut self, model: &ChatModel, watch: Watch) -> Result<Event> {
        let turn = match self.current() {
            Some(turn) => turn,
            None if self.can_step() => self.open_turn(true),
            None => return Err(nothing_to_answer()),
        };
        self.advance_or_take_back(model, turn, watch)
    }

    /// Does the part of [`Chat::step`] before the first token: encodes a picture or reads a chunk
    /// of the prompt. If there is a picture but no question yet, it reads up to the picture, and no
    /// error rolls that back.
    pub fn read_step(&mut self, model: &ChatModel, watch: Watch) -> Result<Event> {
        let asked = self.conversation.asks();
        let turn = match self.current() {
            Some(turn) if self.is_reading() => turn,
            Some(_) => {
                return Err(Error::InvalidState(
                    "the prompt is already read: generate the answer".into(),
                ));
            }
            None if asked || self.conversation.has_unasked_image() => self.open_turn(asked),
            None => {
                return Err(Error::InvalidState(
                    "there is nothing to read: add a picture or the user's text first".into(),
                ));
            }
        };
        self.advance_or_take_back(model, turn, watch)
    }

    fn advance_or_take_back(
        &mut self,
        model: &ChatModel,
        turn: Turn,
        watch: Watch,
    ) -> Result<Event> {
        let event = guarded(|| {
            inject("chat")?;
            self.advance(model, turn, watch)
        });
        match &event {
            Ok(_) | Err(Error::Cancelled | Error::Timeout | Error::Suspended) => {}
            // Results cannot be trusted: after a failure, MLX treats everything evaluated with it
            // as computed.
            Err(Error::Panic(_) | Error::Backend(_)) => {
                self.roll_back(turn);
                self.forget();
            }
            Err(_) => self.roll_back(turn),
        }
        self.stats.peak_bytes = memory_stats()?.peak;
        self.stats.messages = self.messages().len();
        event
    }

    /// Returns the turn in progress.
    fn current(&self) -> Option<Turn> {
        match &self.phase {
            Phase::Begin(turn) | Phase::Read { turn, .. } | Phase::Decode { turn, .. } => {
                Some(*turn)
            }
            Phase::Idle => None,
        }
    }

    fn open_turn(&mut self, answers: bool) -> Turn {
        self.replaceable = false;
        let began = self
            .prompt
            .as_ref()
            .map_or_else(Instant::now, |(_, since)| *since);
        let turn = Turn {
            began,
            kept: self.conversation.answered(),
            answers,
        };
        self.stats = Stats {
            messages: self.messages().len(),
            ..Stats::default()
        };
        self.phase = Phase::Begin(turn);
        turn
    }

    /// Rolls back a turn that failed. The cache is truncated when the next turn starts. Pictures
    /// that are read before there is a question are not a turn, and nothing is rolled back.
    fn roll_back(&mut self, turn: Turn) {
        self.phase = Phase::Idle;
        self.replaceable = !turn.answers;
        if !turn.answers {
            return;
        }
        self.conversation.roll_back(turn.kept);
        self.prompt = None;
        self.stats.messages = self.messages().len();
        if self.conversation.media().is_empty() && self.messages().is_empty() {
            self.forget();
        }
    }

    fn forget(&mut self) {
        self.rows.clear();
        self.cache
            .iter_mut()
            .for_each(|layer| *layer = KVCache::new());
    }

    fn positions(&self) -> usize {
        self.cache
            .first()
            .map_or(0, |layer| layer.offset() as usize)
    }

    fn between_turns(&self) -> Result<()> {
        match self.phase {
            Phase::Idle => Ok(()),
            _ => Err(Error::InvalidState(
                "an answer is being generated: finish or cancel it first".into(),
            )),
        }
    }
}

fn nothing_to_answer() -> Error {
    Error::InvalidState("there is nothing to answer: add the user's text first".into())
}
