//! One conversation with a model, a step at a time: a chunk of the prompt or one token.

use std::{
    cell::RefCell,
    time::{Duration, Instant},
};

use mlx_rs::{Array, ops::indexing::TryIndexOp};

use super::{Choice, ImageCache, Sampler, SamplingParams, StopStrings, top_logprobs};
use crate::{
    Error, Result,
    device::{floats, memory_stats, require},
    image::{Picture, PictureHash, Processor},
    models::moxin::{MemoryNeeds, MoxinVLM, Rows},
    nn::{KVCache, KeyValueCache},
    panic::{guarded, inject},
    text::{Prompt, PromptEncoder, Role, StreamDecoder, Tokenizer, Turn},
};

/// A model with what it takes to talk to it.
pub struct ChatModel {
    /// The weights.
    pub vlm: MoxinVLM,
    /// Pictures to pixels.
    pub processor: Processor,
    /// Tokens to text.
    pub tokenizer: Tokenizer,
    /// Prompts to tokens.
    pub prompts: PromptEncoder,
    /// Tokens that end an answer.
    pub eos: Vec<u32>,
    /// What its work takes.
    pub memory: MemoryNeeds,
    /// Pictures encoded before.
    pub images: RefCell<ImageCache>,
}

/// A picture's tokens.
pub struct Encoded {
    /// In the decoder's space, `[1, tokens, hidden]`, evaluated.
    pub tokens: Array,
    /// Which picture it is.
    pub picture: PictureHash,
    /// Whether they were at hand from an earlier encoding.
    pub cached: bool,
}

impl ChatModel {
    /// A picture's tokens, from the cache where they are there. `progress` is told the part that is done, 0 to 1; an error from it ends the
    /// work.
    pub fn encode_image(&self, picture: &Picture, progress: &dyn Fn(f32) -> Result<()>) -> Result<Encoded> {
        let hash = picture.hash();
        if let Some(tokens) = self.images.borrow_mut().get(hash) {
            log::debug!("picture {:016x}: encoded before", hash.short());
            return Ok(Encoded { tokens, picture: hash, cached: true });
        }
        let making = Processor::working_bytes(self.processor.size(), picture.width().max(picture.height()) as usize);
        require("encoding a picture", self.memory.vision.max(making), u64::MAX)?;
        let clock = Instant::now();
        let features = self.vlm.encode_by_blocks(&self.processor.process(picture)?, progress)?;
        let tokens = self.vlm.project_by_layers(&features, &|| progress(1.0))?;
        tokens.eval()?;
        log::debug!("picture {:016x}: encoded in {:?}", hash.short(), clock.elapsed());
        self.images.borrow_mut().insert(hash, tokens.clone());
        Ok(Encoded { tokens, picture: hash, cached: false })
    }
}

/// As in OpenAI's API.
const MAX_TOP_LOGPROBS: usize = 20;

/// How a session generates.
#[derive(Debug, Clone, PartialEq)]
pub struct GenerationOptions {
    /// How a token is drawn. The default is greedy.
    pub sampling: SamplingParams,
    /// Tokens of one answer at most.
    pub max_tokens: usize,
    /// Texts that end an answer; they are not part of it. At most 64, of 1 to 1,024 bytes each.
    pub stop: Vec<String>,
    /// Positions of the whole conversation at most, image tokens included. `None`: 4096, or fewer where the model was made for fewer.
    pub max_context: Option<usize>,
    /// Positions that one step of prefill works through.
    pub prefill_chunk: usize,
    /// How many of the likeliest tokens each [`Event::Text`] lists, at most 20.
    pub top_logprobs: usize,
}

impl Default for GenerationOptions {
    fn default() -> Self {
        GenerationOptions {
            sampling: SamplingParams::default(),
            max_tokens: 512,
            stop: Vec::new(),
            max_context: None,
            prefill_chunk: 256,
            top_logprobs: 0,
        }
    }
}

impl GenerationOptions {
    /// Positions of the whole conversation at most, for a model that was made for `trained`.
    pub fn context(&self, trained: usize) -> usize {
        self.max_context.unwrap_or(4096).min(trained)
    }

    /// Checks every field's range.
    pub fn validate(&self) -> Result<()> {
        self.sampling.validate()?;
        for (name, value) in
            [("max_tokens", self.max_tokens), ("prefill_chunk", self.prefill_chunk), ("max_context", self.max_context.unwrap_or(1))]
        {
            if !(1..=1 << 24).contains(&value) {
                return Err(Error::InvalidArgument(format!("{name} is {value}; 1 to {} is expected", 1 << 24)));
            }
        }
        if self.top_logprobs > MAX_TOP_LOGPROBS {
            return Err(Error::InvalidArgument(format!("logprobs is {}; 0 to {MAX_TOP_LOGPROBS} is expected", self.top_logprobs)));
        }
        StopStrings::check(&self.stop)
    }
}

/// What a step tells and asks while it computes. An error from either ends the step.
#[derive(Clone, Copy)]
pub struct Watch<'a> {
    /// Told the part of the picture's encoding that is done, 0 to 1, after every block.
    pub progress: &'a dyn Fn(f32) -> Result<()>,
    /// Called before every layer of the decoder.
    pub poll: &'a dyn Fn() -> Result<()>,
}

/// What one step brought.
#[derive(Debug, Clone, PartialEq)]
pub enum Event {
    /// Part of the prompt was read.
    Prefill {
        /// Positions of the prompt in the cache.
        done: usize,
        /// Positions of the prompt.
        total: usize,
    },
    /// One token.
    Text {
        /// Text that became complete with it; empty while the bytes of a character or a possible stop text are waiting.
        text: String,
        /// The token.
        token: u32,
        /// Its log-probability before temperature and filters.
        logprob: f32,
        /// The likeliest tokens and their log-probabilities, likeliest first.
        top: Vec<Choice>,
    },
    /// The answer is complete; the next step needs a new question.
    Finished {
        /// Why it ended.
        reason: FinishReason,
        /// Text that was still waiting.
        text: String,
    },
}

/// Why an answer ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FinishReason {
    /// The model ended its turn.
    EndOfTurn,
    /// A stop text came up.
    StopSequence,
    /// The answer reached its maximum length.
    MaxTokens,
    /// The conversation fills the context.
    ContextFull,
    /// It was cancelled; the turn was taken back.
    Cancelled,
}

/// Counts and times of the latest turn.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Stats {
    /// Positions of the prompt, the whole conversation so far, with image tokens.
    pub prompt_tokens: usize,
    /// Those of them that are a picture's.
    pub image_tokens: usize,
    /// Those of them that were in the cache from earlier turns.
    pub reused_tokens: usize,
    /// Pictures of this turn whose tokens were at hand from an earlier encoding.
    pub cached_images: usize,
    /// Tokens generated.
    pub generated_tokens: usize,
    /// Time in the vision encoders and the projector.
    pub vision: Duration,
    /// Time in prefill, without vision.
    pub prefill: Duration,
    /// From the first step of the turn to its first token, time between steps included.
    pub first_token: Duration,
    /// Time in the steps after the first token.
    pub decode: Duration,
    /// The most memory that MLX ever held in this process, in bytes.
    pub peak_bytes: u64,
    /// Messages of the conversation, the answer included once it is complete.
    pub messages: usize,
}

impl Stats {
    /// Positions of the prompt a second, without those reused.
    pub fn prefill_rate(&self) -> f64 {
        rate(self.prompt_tokens.saturating_sub(self.reused_tokens), self.prefill)
    }

    /// Tokens a second after the first.
    pub fn decode_rate(&self) -> f64 {
        rate(self.generated_tokens.saturating_sub(1), self.decode)
    }
}

fn rate(count: usize, time: Duration) -> f64 {
    if time.is_zero() { 0.0 } else { count as f64 / time.as_secs_f64() }
}

/// A conversation: its turns, its picture, and the keys and values computed so far.
pub struct Chat {
    options: GenerationOptions,
    max_context: usize,
    turns: Vec<Turn>,
    image: Option<ChatImage>,
    /// Whether another picture may take its place: it was being read ahead, and that ended early.
    replaceable: bool,
    cache: Vec<KVCache>,
    /// Text tokens of the prompt that the cache holds the beginning of; a picture's stand behind the first.
    cached: Vec<u32>,
    prompts: PromptEncoder,
    /// The tokens of the prompt that is to be read next, and when they were asked for.
    tokens: Option<(Vec<u32>, Instant)>,
    phase: Phase,
    stats: Stats,
}

/// The picture of a conversation.
#[derive(Clone)]
pub enum ChatImage {
    /// Not yet encoded.
    Picture(Picture),
    /// Tokens in the decoder's space, `[1, tokens, hidden]`.
    Tokens(Array),
}

enum Phase {
    Idle,
    Encode(Turning),
    Prefill { turn: Turning, embeds: Array },
    Decode { turn: Turning, answer: Box<Answer>, next: Next },
}

/// What a running turn needs to be measured and, when it fails, taken back.
#[derive(Clone, Copy)]
struct Turning {
    began: Instant,
    /// Turns that were complete before.
    kept_turns: usize,
    /// Whether there is a question. Without one only the picture is read, so that the first question need not wait for it.
    answers: bool,
}

enum Next {
    /// Logits of the next token are at hand.
    Sample(Vec<f32>),
    /// This token is to be read first.
    Feed(u32),
    Finish(FinishReason),
}

struct Answer {
    sampler: Sampler,
    decoder: StreamDecoder,
    stop: StopStrings,
    text: String,
}

impl Chat {
    /// An empty conversation.
    pub fn new(model: &ChatModel, options: GenerationOptions) -> Result<Chat> {
        let max_context = permitted_context(model, &options)?;
        Ok(Chat {
            options,
            max_context,
            turns: Vec::new(),
            image: None,
            replaceable: false,
            cache: model.vlm.new_cache(),
            cached: Vec::new(),
            prompts: model.prompts.clone(),
            tokens: None,
            phase: Phase::Idle,
            stats: Stats::default(),
        })
    }

    /// Answers from the next on are generated so. What was computed stays.
    pub fn set_options(&mut self, model: &ChatModel, options: GenerationOptions) -> Result<()> {
        self.between_turns()?;
        self.max_context = permitted_context(model, &options)?;
        self.options = options;
        Ok(())
    }

    /// Adds to the conversation. Texts of one role that follow each other become one, a line each;
    /// raw prompt texts are joined as they are.
    pub fn add_text(&mut self, role: Role, text: &str) -> Result<()> {
        self.between_turns()?;
        self.check_room(text.len())?;
        match role {
            Role::System => {
                return Err(Error::InvalidState(
                    "this model takes no system text: its prompt format has only questions and answers".into(),
                ));
            }
            Role::Assistant if self.turns.is_empty() => {
                return Err(Error::InvalidState("a conversation begins with the user's text".into()));
            }
            _ => {}
        }
        self.tokens = None;
        match self.turns.last_mut() {
            Some(last) if last.role == role => {
                if role != Role::Prompt {
                    last.text.push('\n');
                }
                last.text.push_str(text);
            }
            Some(last) if last.role.asks() && role.asks() => {
                return Err(Error::InvalidState(
                    "a question waits for its answer; have it answered before the next is put in another form, as raw prompt or as text"
                        .into(),
                ));
            }
            _ => self.turns.push(Turn { role, text: text.to_owned() }),
        }
        Ok(())
    }

    /// Checks, from its length alone, that a text may fit into the context together with those that
    /// are there.
    ///
    /// # Errors
    /// [`Error::ContextFull`] with the fewest tokens that they can have.
    pub fn check_room(&self, bytes: usize) -> Result<()> {
        let others: usize = self.turns.iter().map(|turn| turn.text.len()).sum();
        self.prompts.check_room(bytes.saturating_add(others), self.max_context)
    }

    /// Sets the picture that the conversation is about. It may take the place of one whose reading ahead ended early.
    pub fn add_image(&mut self, image: ChatImage) -> Result<()> {
        self.between_turns()?;
        if self.image.is_some() && !self.replaceable {
            return Err(Error::InvalidState("this model takes one image a conversation; begin a new session for another".into()));
        }
        if self.turns.iter().any(|turn| turn.role == Role::Assistant) {
            return Err(Error::InvalidState(
                "this model takes its image before the first answer; begin a new session to ask about an image".into(),
            ));
        }
        self.image = Some(image);
        self.replaceable = false;
        self.forget();
        Ok(())
    }

    /// A conversation of its own that has been the same until now. Keys and values are copied when one of the two goes on.
    pub fn fork(&self, model: &ChatModel) -> Result<Chat> {
        self.between_turns()?;
        require("a fork of the conversation", model.memory.cache(self.positions()), u64::MAX)?;
        Ok(Chat {
            options: self.options.clone(),
            max_context: self.max_context,
            turns: self.turns.clone(),
            image: self.image.clone(),
            replaceable: self.replaceable,
            cache: self.cache.clone(),
            cached: self.cached.clone(),
            prompts: self.prompts.clone(),
            tokens: None,
            phase: Phase::Idle,
            stats: Stats { messages: self.turns.len(), ..Stats::default() },
        })
    }

    /// Forgets all but the first `messages` turns. The picture stays.
    pub fn rewind(&mut self, messages: usize) -> Result<()> {
        self.between_turns()?;
        if messages > self.turns.len() {
            return Err(Error::InvalidArgument(format!("cannot keep {messages} messages: the conversation has {}", self.turns.len())));
        }
        self.turns.truncate(messages);
        self.tokens = None;
        self.stats.messages = messages;
        Ok(())
    }

    /// Takes back the turn that is under way, or the question that waits for its answer; returns whether there was one. A picture that
    /// was being read ahead, before any question, stays.
    pub fn withdraw(&mut self) -> bool {
        let turn = match self.current() {
            Some(turn) => turn,
            None if self.can_step() => self.open_turn(true),
            None => return false,
        };
        log::info!("an answer was cancelled after {} tokens", self.stats.generated_tokens);
        self.take_back(turn);
        turn.answers
    }

    /// Stops reading ahead. The conversation stays as it is, and what was read is not read again.
    pub fn pause(&mut self) {
        if self.is_reading() {
            self.phase = Phase::Idle;
        }
        self.replaceable = !self.can_step();
    }

    /// The prompt that the next step reads, where its tokens are not known yet, and what makes
    /// tokens of it. Who has them made elsewhere hands them over with [`Chat::set_tokens`];
    /// otherwise the step makes them.
    ///
    /// # Errors
    /// [`Error::ContextFull`] where the prompt is too long for the context, whatever its tokens
    /// are.
    pub fn untokenized(&self) -> Result<Option<(PromptEncoder, Prompt)>> {
        let answers = match self.phase {
            _ if self.tokens.is_some() => return Ok(None),
            Phase::Idle if self.asked() => true,
            Phase::Idle if self.turns.is_empty() && self.image.is_some() => false,
            Phase::Encode(turn) => turn.answers,
            _ => return Ok(None),
        };
        Ok(Some((self.prompts.clone(), self.prompt(answers)?)))
    }

    /// Hands over the tokens of the prompt that [`Chat::untokenized`] gave, and when they were
    /// asked for.
    pub fn set_tokens(&mut self, ids: Vec<u32>, since: Instant) {
        self.tokens = Some((ids, since));
    }

    /// What the model is to read: the conversation, or nothing but what the tokenizer puts around
    /// it, and the picture.
    fn prompt(&self, answers: bool) -> Result<Prompt> {
        let prompt = if answers { Prompt::of(&self.turns)? } else { Prompt::default() };
        self.prompts.check_room(prompt.text().len(), self.max_context)?;
        Ok(prompt)
    }

    /// Forgets the conversation; the options stay.
    pub fn reset(&mut self) {
        self.turns.clear();
        self.tokens = None;
        self.image = None;
        self.phase = Phase::Idle;
        self.stats = Stats::default();
        self.forget();
    }

    /// The conversation so far.
    pub fn turns(&self) -> &[Turn] {
        &self.turns
    }

    /// Counts and times of the latest turn.
    pub fn stats(&self) -> Stats {
        self.stats
    }

    /// Whether an answer is being generated.
    pub fn is_generating(&self) -> bool {
        self.current().is_some()
    }

    /// Whether there is an answer to go on with, or a question.
    pub fn can_step(&self) -> bool {
        self.is_generating() || self.asked()
    }

    /// Whether the last message waits for an answer.
    fn asked(&self) -> bool {
        self.turns.last().is_some_and(|last| last.role.asks())
    }

    /// Whether part of the prompt is still to be read before the first token of the answer that is being generated.
    pub fn is_reading(&self) -> bool {
        matches!(self.phase, Phase::Encode(_) | Phase::Prefill { .. })
    }

    /// Encodes the picture, reads a chunk of the prompt or generates a token.
    ///
    /// # Errors
    /// [`Error::Cancelled`], [`Error::Timeout`] and [`Error::Suspended`], which come from `watch`, change nothing: the next step does
    /// what this one did not. Other errors take the turn back: its texts, and a picture added since the last answer.
    pub fn step(&mut self, model: &ChatModel, watch: Watch) -> Result<Event> {
        let turn = match self.current() {
            Some(turn) => turn,
            None if self.can_step() => self.open_turn(true),
            None => return Err(nothing_to_answer()),
        };
        self.advance_or_take_back(model, turn, watch)
    }

    /// Does what [`Chat::step`] does before the first token: encodes the picture or reads a chunk of the prompt. Where there is a picture
    /// and no question yet, it reads the picture, and no error takes that back.
    pub fn read_step(&mut self, model: &ChatModel, watch: Watch) -> Result<Event> {
        let asked = self.asked();
        let turn = match self.current() {
            Some(turn) if self.is_reading() => turn,
            Some(_) => return Err(Error::InvalidState("the prompt is read already: generate the answer".into())),
            None if asked || self.turns.is_empty() && self.image.is_some() => self.open_turn(asked),
            None => return Err(Error::InvalidState("there is nothing to read: add a picture or the user's text first".into())),
        };
        self.advance_or_take_back(model, turn, watch)
    }

    fn advance_or_take_back(&mut self, model: &ChatModel, turn: Turning, watch: Watch) -> Result<Event> {
        let event = guarded(|| {
            inject("chat")?;
            self.advance(model, turn, watch)
        });
        match &event {
            Ok(_) | Err(Error::Cancelled | Error::Timeout | Error::Suspended) => {}
            // What was computed cannot be trusted: MLX takes all that it evaluated beside a failure for computed.
            Err(Error::Panic(_) | Error::Backend(_)) => {
                self.take_back(turn);
                self.forget();
            }
            Err(_) => self.take_back(turn),
        }
        self.stats.peak_bytes = memory_stats()?.peak;
        self.stats.messages = self.turns.len();
        event
    }

    /// The turn under way.
    fn current(&self) -> Option<Turning> {
        match &self.phase {
            Phase::Encode(turn) | Phase::Prefill { turn, .. } | Phase::Decode { turn, .. } => Some(*turn),
            Phase::Idle => None,
        }
    }

    fn open_turn(&mut self, answers: bool) -> Turning {
        self.replaceable = false;
        let began = self.tokens.as_ref().map_or_else(Instant::now, |(_, since)| *since);
        let turn = Turning { began, kept_turns: self.answered(), answers };
        self.stats = Stats { messages: self.turns.len(), ..Stats::default() };
        self.phase = Phase::Encode(turn);
        turn
    }

    /// Turns to the last answer.
    fn answered(&self) -> usize {
        self.turns.iter().rposition(|turn| turn.role == Role::Assistant).map_or(0, |i| i + 1)
    }

    /// Does the next thing of the phase. Where the watch ends it, the phase is as it was.
    fn advance(&mut self, model: &ChatModel, turn: Turning, watch: Watch) -> Result<Event> {
        match std::mem::replace(&mut self.phase, Phase::Encode(turn)) {
            Phase::Idle => Err(nothing_to_answer()),
            Phase::Encode(_) => self.begin(model, turn, watch),
            Phase::Prefill { embeds, .. } => self.prefill(model, turn, embeds, watch),
            Phase::Decode { answer, next, .. } => self.decode(model, turn, answer, next, watch),
        }
    }

    /// Encodes the picture where that is still to be done; else makes the prompt and reads its first chunk.
    fn begin(&mut self, model: &ChatModel, turn: Turning, watch: Watch) -> Result<Event> {
        let ids = match self.tokens.take() {
            Some((ids, _)) => ids,
            None => self.prompts.encode(&self.prompt(turn.answers)?)?,
        };
        if ids.is_empty() {
            return Err(Error::InvalidState("the model's tokenizer.json makes no tokens of the prompt; it is damaged".into()));
        }
        let image_tokens = if self.image.is_some() { model.vlm.image_tokens() } else { 0 };
        let total = ids.len() + image_tokens;
        // One position at least is for the answer.
        if total >= self.max_context {
            return Err(Error::ContextFull { needed: total + 1, limit: self.max_context });
        }
        if let Some(ChatImage::Picture(picture)) = &self.image {
            let clock = Instant::now();
            self.tokens = Some((ids, turn.began));
            let encoded = model.encode_image(picture, watch.progress)?;
            self.image = Some(ChatImage::Tokens(encoded.tokens));
            self.stats.vision = clock.elapsed();
            self.stats.cached_images = encoded.cached.into();
            self.phase = Phase::Encode(turn);
            return Ok(Event::Prefill { done: 0, total });
        }
        let most = self.max_context.min(total + if turn.answers { self.options.max_tokens } else { 0 });
        let held = model.memory.cache(self.positions());
        let needed = model.memory.conversation(most, self.options.prefill_chunk).saturating_sub(held);
        require(&format!("a prompt of {total} tokens and its answer"), needed, u64::MAX)?;
        self.stats.prompt_tokens = total;
        self.stats.image_tokens = image_tokens;
        let kept = self.keep(&ids, image_tokens, turn);
        if kept == total {
            self.phase = Phase::Idle;
            return Ok(Event::Prefill { done: total, total });
        }
        let clock = Instant::now();
        let embeds = self.embed(model, &ids, image_tokens, kept)?;
        self.stats.prefill += clock.elapsed();
        self.cached = ids;
        self.prefill(model, turn, embeds, watch)
    }

    /// Cuts the cache back to what it has in common with a prompt; returns its positions. They end anywhere, also within the picture.
    fn keep(&mut self, ids: &[u32], image_tokens: usize, turn: Turning) -> usize {
        let common = self.cached.iter().zip(ids).take_while(|(a, b)| a == b).count();
        let held = if common > 0 { self.positions().min(common + image_tokens) } else { 0 };
        // An answer begins with the logits of the last position.
        let kept = held.min(ids.len() + image_tokens - usize::from(turn.answers));
        self.cache.iter_mut().for_each(|layer| layer.truncate(kept as i32));
        self.stats.reused_tokens = kept;
        kept
    }

    /// Embeddings of a prompt from a position on.
    fn embed(&self, model: &ChatModel, ids: &[u32], image_tokens: usize, from: usize) -> Result<Array> {
        let image = match &self.image {
            Some(ChatImage::Tokens(tokens)) if from <= image_tokens => Some(tokens),
            _ => return model.vlm.embed(&ids[from - image_tokens..], None),
        };
        let embeds = model.vlm.embed(ids, image)?;
        Ok(if from > 0 { embeds.try_index((.., from as i32.., ..))? } else { embeds })
    }

    fn prefill(&mut self, model: &ChatModel, turn: Turning, embeds: Array, watch: Watch) -> Result<Event> {
        let clock = Instant::now();
        let total = self.stats.prompt_tokens;
        let chunk = self.options.prefill_chunk as i32;
        let decoder = &model.vlm.decoder;
        self.phase = Phase::Prefill { turn, embeds: embeds.clone() };
        if embeds.dim(1) > chunk {
            decoder.prefill_by_layers(&embeds.try_index((.., ..chunk, ..))?, &mut self.cache, watch.poll)?;
            let embeds = embeds.try_index((.., chunk.., ..))?;
            embeds.eval()?;
            self.phase = Phase::Prefill { turn, embeds };
        } else if !turn.answers {
            decoder.prefill_by_layers(&embeds, &mut self.cache, watch.poll)?;
            self.phase = Phase::Idle;
        } else {
            let logits = decoder.forward_by_layers(&embeds, &mut self.cache, Rows::Last, watch.poll)?;
            let answer = Box::new(self.answer(model)?);
            self.phase = Phase::Decode { turn, answer, next: Next::Sample(row(&logits)?) };
        }
        self.stats.prefill += clock.elapsed();
        Ok(Event::Prefill { done: self.positions(), total })
    }

    fn decode(&mut self, model: &ChatModel, turn: Turning, mut answer: Box<Answer>, next: Next, watch: Watch) -> Result<Event> {
        let clock = Instant::now();
        let logits = match next {
            Next::Finish(reason) => return self.finish(*answer, reason),
            Next::Sample(logits) => logits,
            Next::Feed(_) if self.positions() >= self.max_context => return self.finish(*answer, FinishReason::ContextFull),
            Next::Feed(token) => match self.feed(model, token, watch) {
                Ok(logits) => logits,
                Err(error) => {
                    self.phase = Phase::Decode { turn, answer, next };
                    return Err(error);
                }
            },
        };
        let (choice, top) = answer.choose(&logits, &self.cached, self.options.top_logprobs)?;
        if self.stats.generated_tokens == 0 {
            self.stats.first_token = turn.began.elapsed();
        } else {
            self.stats.decode += clock.elapsed();
        }
        if model.eos.contains(&choice.token) {
            return self.finish(*answer, FinishReason::EndOfTurn);
        }
        self.stats.generated_tokens += 1;
        let outcome = answer.stop.push(&answer.decoder.push(choice.token)?);
        answer.text.push_str(&outcome.text);
        let next = match outcome.stopped {
            true => Next::Finish(FinishReason::StopSequence),
            false if self.stats.generated_tokens >= self.options.max_tokens => Next::Finish(FinishReason::MaxTokens),
            false => Next::Feed(choice.token),
        };
        self.phase = Phase::Decode { turn, answer, next };
        Ok(Event::Text { text: outcome.text, token: choice.token, logprob: choice.logprob, top })
    }

    /// Reads one token; gives the logits of the next.
    fn feed(&mut self, model: &ChatModel, token: u32, watch: Watch) -> Result<Vec<f32>> {
        let embeds = model.vlm.embed(&[token], None)?;
        let logits = model.vlm.decoder.forward_by_layers(&embeds, &mut self.cache, Rows::Last, watch.poll)?;
        self.cached.push(token);
        row(&logits)
    }

    fn answer(&self, model: &ChatModel) -> Result<Answer> {
        // What follows raw prompt text is not trimmed either.
        let spoken = self.cached.iter().rfind(|id| !model.tokenizer.is_special(**id));
        let decoder = match (self.turns.last(), spoken) {
            (Some(Turn { role: Role::Prompt, .. }), Some(last)) => StreamDecoder::after(&model.tokenizer, *last),
            _ => StreamDecoder::new(&model.tokenizer).trim_start(),
        };
        Ok(Answer {
            sampler: Sampler::new(self.options.sampling.clone())?,
            decoder,
            stop: StopStrings::new(self.options.stop.clone())?,
            text: String::new(),
        })
    }

    /// Makes the answer a turn of the conversation.
    fn finish(&mut self, mut answer: Answer, reason: FinishReason) -> Result<Event> {
        let mut text = String::new();
        if reason != FinishReason::StopSequence {
            text = answer.stop.push(&answer.decoder.finish()?).text;
            text.push_str(&answer.stop.finish());
        }
        answer.text.push_str(&text);
        self.turns.push(Turn { role: Role::Assistant, text: answer.text });
        self.phase = Phase::Idle;
        let stats = &self.stats;
        log::info!(
            "an answer of {} tokens ({reason:?}): prompt {} ({} reused), first token after {:?}, {:.2} tokens a second",
            stats.generated_tokens,
            stats.prompt_tokens,
            stats.reused_tokens,
            stats.first_token,
            stats.decode_rate()
        );
        Ok(Event::Finished { reason, text })
    }

    /// Undoes a turn that did not end well. The cache is cut back when the next turn begins. A picture that is read before there is a
    /// question is no turn: nothing of it is undone.
    fn take_back(&mut self, turn: Turning) {
        self.phase = Phase::Idle;
        self.replaceable = !turn.answers;
        if !turn.answers {
            return;
        }
        self.turns.truncate(turn.kept_turns);
        self.tokens = None;
        self.stats.messages = turn.kept_turns;
        if turn.kept_turns == 0 {
            self.image = None;
            self.forget();
        }
    }

    fn forget(&mut self) {
        self.cached.clear();
        self.cache.iter_mut().for_each(|layer| *layer = KVCache::new());
    }

    fn positions(&self) -> usize {
        self.cache.first().map_or(0, |layer| layer.offset() as usize)
    }

    fn between_turns(&self) -> Result<()> {
        match self.phase {
            Phase::Idle => Ok(()),
            _ => Err(Error::InvalidState("an answer is being generated: finish or cancel it first".into())),
        }
    }
}

fn nothing_to_answer() -> Error {
    Error::InvalidState("there is nothing to answer: add the user's text first".into())
}

/// The positions that a conversation may have; an error where options are out of their range or there is no room for so many.
fn permitted_context(model: &ChatModel, options: &GenerationOptions) -> Result<usize> {
    options.validate()?;
    let max_context = options.context(model.vlm.decoder.config.max_position_embeddings);
    require(&format!("a conversation of {max_context} tokens"), model.memory.conversation(max_context, options.prefill_chunk), u64::MAX)?;
    Ok(max_context)
}

impl Answer {
    fn choose(&mut self, logits: &[f32], history: &[u32], top: usize) -> Result<(Choice, Vec<Choice>)> {
        let top = if top > 0 { top_logprobs(logits, top)? } else { Vec::new() };
        Ok((self.sampler.sample(logits, history)?, top))
    }
}

/// Logits `[1, 1, vocabulary]` as numbers.
fn row(logits: &Array) -> Result<Vec<f32>> {
    floats(logits, "logits")
}
