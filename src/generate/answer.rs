//! An answer in progress: its tokens' text, and when it ends.

use super::{
    ChatModel, Choice, FinishReason, GenerationOptions, Sampler, Source, StopStrings, top_logprobs,
};
use crate::{
    Result,
    nn::Row,
    text::{Message, Role, StreamDecoder},
};

/// Samples tokens and turns them into text.
pub struct Answer {
    sampler: Sampler,
    decoder: StreamDecoder,
    stop: StopStrings,
    text: String,
    ids: Vec<u32>,
}

impl Answer {
    /// Starts an answer to the last of these messages, after these rows.
    pub fn new(
        model: &ChatModel,
        options: &GenerationOptions,
        messages: &[Message],
        rows: &[(Row, Source)],
    ) -> Result<Answer> {
        // An answer to raw prompt text is not trimmed at its start either.
        let is_raw = messages
            .last()
            .is_some_and(|last| last.role == Role::Prompt);
        let is_spoken = |id: &u32| *id != Row::NO_ID && !model.tokenizer.is_special(*id);
        let spoken = rows.iter().map(|(row, _)| row.id).rfind(is_spoken);
        let decoder = match spoken.filter(|_| is_raw) {
            Some(last) => StreamDecoder::after(&model.tokenizer, last),
            None => StreamDecoder::new(&model.tokenizer).trim_start(),
        };
        Ok(Answer {
            sampler: Sampler::new(options.sampling.clone())?,
            decoder,
            stop: StopStrings::new(options.stop.clone())?,
            text: String::new(),
            ids: Vec::new(),
        })
    }

    /// Samples the next token after `history`. Also returns the most likely tokens, if they are
    /// wanted.
    pub fn choose(
        &mut self,
        logits: &[f32],
        history: &[u32],
        top: usize,
    ) -> Result<(Choice, Vec<Choice>)> {
        let top = if top > 0 {
            top_logprobs(logits, top)?
        } else {
            Vec::new()
        };
        Ok((self.sampler.sample(logits, history)?, top))
    }

    /// Adds a token; returns the text that it completes, and whether a stop text was found.
    pub fn push(&mut self, token: u32) -> Result<(String, bool)> {
        self.ids.push(token);
        let outcome = self.stop.push(&self.decoder.push(token)?);
        self.text.push_str(&outcome.text);
        Ok((outcome.text, outcome.stopped))
    }

    /// Ends the answer; returns its whole text, the part that was held back, and its tokens.
    pub fn finish(mut self, reason: FinishReason) -> Result<(String, String, Vec<u32>)> {
        let mut rest = String::new();
        if reason != FinishReason::StopSequence {
            rest = self.stop.push(&self.decoder.finish()?).text;
            rest.push_str(&self.stop.finish());
        }
        self.text.push_str(&rest);
        Ok((self.text, rest, self.ids))
    }
}
