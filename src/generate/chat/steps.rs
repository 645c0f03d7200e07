//! The steps of an answer: encoding pictures, reading the prompt, generating tokens.

use std::time::Instant;

use super::{CachedRow, Chat, Next, Phase, Turn, nothing_to_answer, reading::Reading};
use crate::{
    Error, Result,
    device::{Tensor, floats},
    generate::{Answer, ChatModel, Event, FinishReason, MediumContent, Prompt, Watch, common},
    nn::{Input, KVCache, Row, Segment, Want},
};

impl Chat {
    /// Performs the next step of the phase. If the watch ends it, the phase is unchanged.
    pub(super) fn advance(&mut self, model: &ChatModel, turn: Turn, watch: Watch) -> Result<Event> {
        match std::mem::replace(&mut self.phase, Phase::Begin(turn)) {
            Phase::Idle => Err(nothing_to_answer()),
            Phase::Begin(_) => self.begin(model, turn, watch),
            Phase::Read { reading, .. } => self.read(model, turn, reading, watch),
            Phase::Decode { answer, next, .. } => self.decode(model, turn, answer, next, watch),
        }
    }

    /// Writes the prompt, checks that there is room for it, and starts reading it.
    fn begin(&mut self, model: &ChatModel, turn: Turn, watch: Watch) -> Result<Event> {
        let prompt = match self.prompt.take() {
            Some((prompt, _)) => prompt,
            None => self.writer.write(&self.request(turn.answers)?)?,
        };
        let total = prompt.rows.len();
        if total == 0 {
            return Err(Error::InvalidState(
                "the model's tokenizer.json makes no tokens from the prompt; it is damaged".into(),
            ));
        }
        // At least one position is for the answer.
        if total >= self.max_context {
            return Err(Error::ContextFull {
                needed: total + 1,
                limit: self.max_context,
            });
        }
        let most = self.max_context.min(
            total
                + if turn.answers {
                    self.options.max_tokens
                } else {
                    0
                },
        );
        let cached = model.memory.cache(self.positions());
        // The last row of a chunk may start a span.
        let chunk = self.options.prefill_chunk + prompt.longest_span() - 1;
        let needed = model
            .memory
            .conversation(most, chunk)
            .saturating_sub(cached);
        model.require(
            &format!("a prompt of {total} tokens and its answer"),
            needed,
        )?;
        self.stats.prompt_tokens = total;
        self.stats.image_tokens = prompt
            .sources
            .iter()
            .filter(|source| source.is_some())
            .count();
        self.written = prompt.written.clone();
        if self.keep(model, &prompt, turn) == total {
            self.phase = Phase::Idle;
            return Ok(Event::Prefill { done: total, total });
        }
        let features = vec![None; prompt.media.len()];
        self.read(model, turn, Box::new(Reading { prompt, features }), watch)
    }

    /// Truncates the cache to the prefix that it has in common with a prompt, or continues a longer
    /// one from the model's pool; returns its length. Never cuts a span.
    fn keep(&mut self, model: &ChatModel, prompt: &Prompt, turn: Turn) -> usize {
        let rows: Vec<CachedRow> = (prompt.rows.iter().copied())
            .zip(prompt.sources.iter().copied())
            .collect();
        // An answer starts with the logits of the last position.
        let most = rows.len() - usize::from(turn.answers);
        let own = common(&self.rows, &rows).min(self.positions());
        let mut kept = prompt.cut(own.min(most));
        let mut pool = model.prefixes.borrow_mut();
        if self.revision == model.revision
            && let Some(found) = pool.longest(self.options.prefix_scope, &rows)
        {
            let pooled = prompt.cut(found.length.min(most));
            if pooled > kept
                && let Some(cache) = pool.take(found)
            {
                (self.cache, kept) = (cache, pooled);
            }
        }
        self.cache
            .iter_mut()
            .for_each(|layer| layer.truncate(kept as i32));
        self.rows = rows;
        self.stats.reused_tokens = kept;
        kept
    }

    /// Encodes the next picture whose rows are to be read, or reads a chunk.
    fn read(
        &mut self,
        model: &ChatModel,
        turn: Turn,
        reading: Box<Reading>,
        watch: Watch,
    ) -> Result<Event> {
        let from = self.positions();
        let total = reading.prompt.rows.len();
        let rows = reading.prompt.chunk(from, self.options.prefill_chunk);
        self.phase = Phase::Read { turn, reading };
        let Phase::Read { reading, .. } = &mut self.phase else {
            return Err(nothing_to_answer());
        };
        // If spans grow with the prompt, an incomplete one cannot be read.
        let grows = !turn.answers && reading.prompt.grows;
        if let Some(i) = reading.missing(&rows) {
            let medium = &self.conversation.media()[i];
            reading.features[i] = Some(match &medium.content {
                MediumContent::Features(features) => features.clone(),
                MediumContent::Medium(content) => {
                    let clock = Instant::now();
                    let (features, cached) =
                        model.encode(content, &medium.plan, medium.key, watch.progress)?;
                    self.stats.vision += clock.elapsed();
                    self.stats.cached_images += usize::from(cached);
                    features
                }
            });
            return Ok(Event::Prefill { done: from, total });
        }
        let clock = Instant::now();
        let logits = match grows {
            true => None,
            false => {
                let want = if turn.answers && rows.end == total {
                    Want::Last
                } else {
                    Want::None
                };
                let features = reading.features_of(&rows);
                let (rows, cache) = (&reading.prompt.rows[rows.clone()], &mut self.cache[..]);
                forward(
                    model,
                    Segment {
                        input: Input::Ids,
                        rows,
                        features: &features,
                        cache,
                        want,
                    },
                    watch,
                )?
            }
        };
        reading.forget_before(rows.end);
        if rows.end == total {
            self.phase = match logits {
                Some(logits) => {
                    let answer = Box::new(Answer::new(
                        model,
                        &self.options,
                        self.messages(),
                        &self.rows,
                    )?);
                    Phase::Decode {
                        turn,
                        answer,
                        next: Next::Sample(numbers(&logits)?),
                    }
                }
                None => Phase::Idle,
            };
        }
        self.stats.prefill += clock.elapsed();
        Ok(Event::Prefill {
            done: if grows { total } else { self.positions() },
            total,
        })
    }

    fn decode(
        &mut self,
        model: &ChatModel,
        turn: Turn,
        mut answer: Box<Answer>,
        next: Next,
        watch: Watch,
    ) -> Result<Event> {
        let clock = Instant::now();
        let logits = match next {
            Next::Finish(reason) => return self.finish(model, *answer, reason),
            Next::Sample(logits) => logits,
            Next::Feed(_) if self.positions() >= self.max_context => {
                return self.finish(model, *answer, FinishReason::ContextFull);
            }
            Next::Feed(token) => match self.feed(model, token, watch) {
                Ok(logits) => logits,
                Err(error) => {
                    self.phase = Phase::Decode { turn, answer, next };
                    return Err(error);
                }
            },
        };
        let (choice, top) = answer.choose(&logits, &self.history(), self.options.top_logprobs)?;
        if self.stats.generated_tokens == 0 {
            self.stats.first_token = turn.began.elapsed();
        } else {
            self.stats.decode += clock.elapsed();
        }
        if model.eos.contains(&choice.token) {
            return self.finish(model, *answer, FinishReason::EndOfTurn);
        }
        self.stats.generated_tokens += 1;
        let (text, stopped) = answer.push(choice.token)?;
        let next = match stopped {
            true => Next::Finish(FinishReason::StopSequence),
            false if self.stats.generated_tokens >= self.options.max_tokens => {
                Next::Finish(FinishReason::MaxTokens)
            }
            false => Next::Feed(choice.token),
        };
        self.phase = Phase::Decode { turn, answer, next };
        Ok(Event::Text {
            text,
            token: choice.token,
            logprob: choice.logprob,
            top,
        })
    }

    /// Reads one token; returns the logits of the next.
    fn feed(&mut self, model: &ChatModel, token: u32, watch: Watch) -> Result<Vec<f32>> {
        let next = self
            .rows
            .iter()
            .flat_map(|(row, _)| row.position)
            .max()
            .map_or(0, |last| last + 1);
        let row = Row::causal(token, [next; 3], self.rows.len());
        let segment = Segment {
            input: Input::Ids,
            rows: &[row],
            features: &[],
            cache: &mut self.cache[..],
            want: Want::Last,
        };
        let logits = forward(model, segment, watch)?;
        self.rows.push((row, None));
        logits.map_or_else(
            || Err(Error::InvalidState("a step returned no logits".into())),
            |logits| numbers(&logits),
        )
    }

    /// Returns the tokens so far, for the repetition penalty; a row with a feature counts as the
    /// model's image token, if it has one.
    fn history(&self) -> Vec<u32> {
        self.rows
            .iter()
            .map(|(row, _)| row.id)
            .filter(|id| *id != Row::NO_ID)
            .collect()
    }

    /// Adds the answer as a message of the conversation.
    fn finish(&mut self, model: &ChatModel, answer: Answer, reason: FinishReason) -> Result<Event> {
        let (text, rest, ids) = answer.finish(reason)?;
        self.answered.push(
            std::mem::take(&mut self.written).with_answer(&model.tokenizer.decode(&ids)?, &ids),
        );
        self.conversation.add_answer(text);
        self.phase = Phase::Idle;
        let stats = &self.stats;
        log::info!(
            "an answer of {} tokens ({reason:?}): prompt {} ({} reused), first token after {:?}, \
             {:.2} tokens a second",
            stats.generated_tokens,
            stats.prompt_tokens,
            stats.reused_tokens,
            stats.first_token,
            stats.decode_rate()
        );
        Ok(Event::Finished { reason, text: rest })
    }
}

/// Computes one segment with the decoder.
fn forward(model: &ChatModel, segment: Segment<KVCache>, watch: Watch) -> Result<Option<Tensor>> {
    let mut results = model
        .weights
        .decoder
        .forward(&mut [segment], &|_| (watch.poll)());
    results
        .pop()
        .unwrap_or_else(|| Err(Error::InvalidState("the decoder computed nothing".into())))
}

/// Returns logits `[1, vocabulary]` as numbers.
fn numbers(logits: &Tensor) -> Result<Vec<f32>> {
    floats(logits, "logits")
}
