//! The options of an answer, from the fields of a request.

use moxin_vlm::{Budget, GenerationOptions, SamplingParams};
use uuid::Uuid;

use crate::{
    args::Limits,
    error::{ApiError, Result},
    json::base64,
    question::Source,
};

/// The fields that requests may set; `None`: the default.
#[derive(Default)]
pub struct Asked {
    pub max_tokens: Option<u32>,
    /// The name of `max_tokens` in this API.
    pub max_tokens_field: &'static str,
    pub temperature: Option<f32>,
    pub top_p: Option<f32>,
    pub top_k: Option<u32>,
    pub min_p: Option<f32>,
    pub repetition_penalty: Option<f32>,
    pub frequency_penalty: Option<f32>,
    pub presence_penalty: Option<f32>,
    pub seed: Option<i64>,
    pub stop: Vec<String>,
    pub top_logprobs: u32,
}

impl Asked {
    /// Returns the options, within the server's limits.
    pub fn options(self, limits: &Limits) -> Result<GenerationOptions> {
        let most = limits.max_answer_tokens;
        let max_tokens = match self.max_tokens {
            None => most,
            Some(tokens) if (1..=most).contains(&(tokens as usize)) => tokens as usize,
            Some(tokens) => {
                let field = self.max_tokens_field;
                let message = format!(
                    "{field} is {tokens}; this server allows 1 to {most} (--max-answer-tokens)"
                );
                return Err(ApiError::field(field, message));
            }
        };
        let usual = SamplingParams::default();
        let options = GenerationOptions {
            sampling: SamplingParams {
                temperature: self.temperature.unwrap_or(usual.temperature),
                top_p: self.top_p.unwrap_or(usual.top_p),
                top_k: self.top_k.unwrap_or(usual.top_k),
                min_p: self.min_p.unwrap_or(usual.min_p),
                repetition_penalty: self.repetition_penalty.unwrap_or(usual.repetition_penalty),
                frequency_penalty: self.frequency_penalty.unwrap_or(usual.frequency_penalty),
                presence_penalty: self.presence_penalty.unwrap_or(usual.presence_penalty),
                // Without a seed every answer is another one, as clients expect.
                seed: self
                    .seed
                    .map_or_else(|| Uuid::new_v4().as_u64_pair().0, |seed| seed as u64),
                ..usual
            },
            max_tokens,
            stop: self.stop,
            max_context: limits.max_context,
            prefill_chunk: limits.prefill_chunk,
            top_logprobs: self.top_logprobs as usize,
            ..GenerationOptions::default()
        };
        options
            .validate()
            .map_err(|error| ApiError::library(error, "stop"))?;
        Ok(options)
    }
}

/// Returns the budget of a picture: the request's, and OpenAI's `detail` unless it has a number.
pub fn budget(detail: Option<&str>, request: Budget, field: &str) -> Result<Budget> {
    // OpenAI's low detail is one picture of 512 by 512 pixels:
    // https://platform.openai.com/docs/guides/images-vision
    const LOW: usize = 512 * 512;
    let max_pixels = match (request.max_pixels, detail) {
        (Some(pixels), _) => Some(pixels),
        (None, None | Some("auto" | "high")) => None,
        (None, Some("low")) => Some(LOW),
        (None, Some(other)) => {
            let message = format!("{field}.detail is {other:?}; expected auto, low or high");
            return Err(ApiError::field(format!("{field}.detail"), message));
        }
    };
    Ok(Budget {
        max_pixels,
        ..request
    })
}

/// Returns where a picture is, from a data: or https: URL.
pub fn source(url: &str, field: &str) -> Result<Source> {
    if let Some(data) = url.strip_prefix("data:") {
        let Some((kind, content)) = data.split_once(',') else {
            return Err(ApiError::field(
                field,
                format!("{field} is not a complete data: URL"),
            ));
        };
        if !kind.trim_end().to_lowercase().ends_with(";base64") {
            let message =
                format!("{field} must have its content as base64: data:image/png;base64,…");
            return Err(ApiError::field(field, message));
        }
        return Ok(Source::Bytes(base64(content, field)?));
    }
    if url.starts_with("https://") {
        return Ok(Source::Url(url.to_owned()));
    }
    let message = format!("{field} must be a data: URL, or https:// where the server allows it");
    Err(ApiError::field(field, message))
}
