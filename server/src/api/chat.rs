//! `POST /v1/chat/completions`: <https://platform.openai.com/docs/api-reference/chat/create>.

use std::sync::Arc;

use axum::{
    Extension, Json,
    extract::{Request, State},
    response::{IntoResponse, Response, sse},
};
use moxin_vlm::{Budget, Event, FinishReason, Stats, text::StreamDecoder};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::{Content, IGNORED, new_id, now, role};
use crate::{
    answer::{Answer, Piece, Token, Whole},
    app::App,
    error::{ApiError, Result},
    json::{receive, refuse_rest},
    models::Served,
    options::{Asked, budget, source},
    question::{Part, Question, Source, Turn},
    router::Scope,
    sse::{Writer, event, stream},
};

/// A request for an answer.
#[derive(Deserialize, JsonSchema)]
pub struct ChatRequest {
    /// The name of the model; the first one if it is missing.
    model: Option<String>,
    /// The conversation. The last message is the user's.
    messages: Vec<ChatMessage>,
    /// Whether the answer is streamed.
    stream: Option<bool>,
    stream_options: Option<StreamSettings>,
    /// The maximum number of tokens in the answer.
    max_tokens: Option<u32>,
    /// The newer name of `max_tokens`.
    max_completion_tokens: Option<u32>,
    /// 0, the default, always takes the most likely token.
    temperature: Option<f32>,
    /// Samples from the most likely tokens that together have this probability.
    top_p: Option<f32>,
    /// The number of answers.
    n: Option<u32>,
    /// One to four texts that end the answer.
    stop: Option<Stop>,
    /// The same seed samples the same tokens.
    seed: Option<i64>,
    /// Whether the log-probabilities of tokens are returned.
    logprobs: Option<bool>,
    /// The number of most likely tokens at each position, 0 to 20.
    top_logprobs: Option<u32>,
    /// -2 to 2: makes tokens that the answer contains less likely.
    presence_penalty: Option<f32>,
    /// -2 to 2: makes tokens less likely the more often the answer contains them.
    frequency_penalty: Option<f32>,
    /// Extension: samples from this many of the most likely tokens.
    top_k: Option<u32>,
    /// Extension: samples from tokens at least this fraction as likely as the most likely one.
    min_p: Option<f32>,
    /// Extension: above 1, makes tokens that occurred in the conversation less likely.
    repetition_penalty: Option<f32>,
    /// Extension: the maximum number of pixels of each picture that reach the encoder.
    max_pixels: Option<usize>,
    /// Extension: the maximum number of positions that each picture takes.
    max_image_tokens: Option<usize>,
    /// Extension: whether pictures are cut into tiles, by models that do this; true by default.
    tiles: Option<bool>,
    #[serde(flatten)]
    rest: Map<String, Value>,
}

/// Values that ask for what happens anyway.
const HARMLESS: &[(&str, &[&str])] = &[
    ("response_format", &[r#"{"type":"text"}"#]),
    ("modalities", &[r#"["text"]"#]),
    ("tool_choice", &[r#""none""#, r#""auto""#]),
    ("function_call", &[r#""none""#, r#""auto""#]),
];

/// A message of the conversation.
#[derive(Deserialize, JsonSchema)]
pub struct ChatMessage {
    /// `system` or `developer` if the model supports it, `user`, `assistant`.
    role: String,
    /// A text, or parts.
    content: Option<Content<ContentPart>>,
    #[serde(flatten)]
    rest: Map<String, Value>,
}

/// A text, a picture or a video.
#[derive(Deserialize, JsonSchema)]
struct ContentPart {
    /// `text`, `image_url` or `video_url`.
    #[serde(rename = "type")]
    kind: String,
    text: Option<String>,
    image_url: Option<ImageUrl>,
    /// An extension.
    video_url: Option<VideoUrl>,
    #[serde(flatten)]
    rest: Map<String, Value>,
}

#[derive(Deserialize, JsonSchema)]
struct ImageUrl {
    /// A `data:` URL with base64; `https:` where the server allows it.
    url: String,
    /// `auto`, `low` or `high`.
    detail: Option<String>,
}

#[derive(Deserialize, JsonSchema)]
struct VideoUrl {
    /// A `data:` URL with base64: an animated GIF, WebP or PNG.
    url: String,
    /// The number of frames to read per second; 2 by default.
    fps: Option<f64>,
}

#[derive(Deserialize, JsonSchema)]
#[serde(untagged, expecting = "expected a string or a list of strings")]
enum Stop {
    One(String),
    Several(Vec<String>),
}

#[derive(Deserialize, JsonSchema)]
struct StreamSettings {
    /// Whether the last chunk has the number of tokens.
    include_usage: Option<bool>,
    #[serde(flatten)]
    rest: Map<String, Value>,
}

/// An answer that is not streamed.
#[derive(Serialize, JsonSchema)]
pub struct ChatResponse {
    id: String,
    object: &'static str,
    created: u64,
    model: String,
    choices: Vec<Choice>,
    usage: Usage,
}

#[derive(Serialize, JsonSchema)]
struct Choice {
    index: usize,
    message: AnswerMessage,
    logprobs: Option<Logprobs>,
    finish_reason: &'static str,
}

#[derive(Serialize, JsonSchema)]
struct AnswerMessage {
    role: &'static str,
    content: String,
    refusal: Option<String>,
}

/// A part of a streamed answer.
#[derive(Serialize, JsonSchema)]
struct Chunk {
    id: String,
    object: &'static str,
    created: u64,
    model: String,
    choices: Vec<ChunkChoice>,
    #[serde(skip_serializing_if = "Option::is_none")]
    usage: Option<Option<Usage>>,
}

#[derive(Serialize, JsonSchema)]
struct ChunkChoice {
    index: usize,
    delta: Delta,
    logprobs: Option<Logprobs>,
    finish_reason: Option<&'static str>,
}

#[derive(Default, Serialize, JsonSchema)]
struct Delta {
    #[serde(skip_serializing_if = "Option::is_none")]
    role: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    content: Option<String>,
}

#[derive(Serialize, JsonSchema)]
struct Logprobs {
    content: Vec<TokenLogprob>,
    refusal: Option<Vec<TokenLogprob>>,
}

#[derive(Serialize, JsonSchema)]
struct TokenLogprob {
    token: String,
    logprob: f32,
    bytes: Vec<u8>,
    top_logprobs: Vec<TopLogprob>,
}

#[derive(Serialize, JsonSchema)]
struct TopLogprob {
    token: String,
    logprob: f32,
    bytes: Vec<u8>,
}

/// The numbers of tokens.
#[derive(Clone, Serialize, JsonSchema)]
struct Usage {
    prompt_tokens: usize,
    completion_tokens: usize,
    total_tokens: usize,
    prompt_tokens_details: PromptDetails,
}

#[derive(Clone, Serialize, JsonSchema)]
struct PromptDetails {
    /// Prompt tokens that were not read again.
    cached_tokens: usize,
}

/// Answers a conversation.
pub async fn complete(
    State(app): State<Arc<App>>,
    Extension(Scope(scope)): Extension<Scope>,
    request: Request,
) -> Result<Response> {
    let received = receive::<ChatRequest>(&app, request).await?;
    let request = &received.content;
    let (streams, logprobs) = (request.stream == Some(true), request.logprobs == Some(true));
    let usage = request.includes_usage(streams)?;
    let question = request.question(&app)?;
    drop(received);
    let answer = Answer::start(&app, question, scope, "messages").await?;
    let served = answer.served.clone();
    if streams {
        return stream(answer, ChatWriter::new(served, logprobs, usage)).await;
    }
    let all = answer.whole().await?;
    let completion_tokens = all.iter().map(|whole| whole.stats.generated_tokens).sum();
    let prompt = all.first().map(|whole| whole.stats).unwrap_or_default();
    let choice = |(index, whole): (usize, Whole)| Choice {
        index,
        logprobs: logprobs.then(|| Logprobs::new(&served, None, &whole.tokens)),
        message: AnswerMessage {
            role: "assistant",
            content: whole.text,
            refusal: None,
        },
        finish_reason: finish_reason(whole.reason),
    };
    Ok(Json(ChatResponse {
        id: new_id("chatcmpl-"),
        object: "chat.completion",
        created: now(),
        model: served.name.clone(),
        choices: all.into_iter().enumerate().map(choice).collect(),
        usage: Usage::new(
            prompt.prompt_tokens,
            completion_tokens,
            prompt.reused_tokens,
        ),
    })
    .into_response())
}

impl ChatRequest {
    fn includes_usage(&self, streams: bool) -> Result<bool> {
        let Some(settings) = &self.stream_options else {
            return Ok(false);
        };
        refuse_rest(
            &settings.rest,
            "stream_options",
            &["include_obfuscation"],
            &[],
        )?;
        if !streams {
            let message = "stream_options needs stream: true";
            return Err(ApiError::field("stream_options", message));
        }
        Ok(settings.include_usage == Some(true))
    }

    fn question(&self, app: &App) -> Result<Question> {
        refuse_rest(&self.rest, "", IGNORED, HARMLESS)?;
        let top_logprobs = self.top_logprobs.unwrap_or(0);
        if top_logprobs > 0 && self.logprobs != Some(true) {
            return Err(ApiError::field(
                "top_logprobs",
                "top_logprobs needs logprobs: true",
            ));
        }
        if top_logprobs > 20 {
            let message = format!("top_logprobs is {top_logprobs}; expected 0 to 20");
            return Err(ApiError::field("top_logprobs", message));
        }
        let most = app.limits.max_choices;
        let choices = self.n.unwrap_or(1) as usize;
        if !(1..=most).contains(&choices) {
            let message = format!("n is {choices}; this server allows 1 to {most} (--max-choices)");
            return Err(ApiError::field("n", message));
        }
        let budget = self.budget()?;
        let options = Asked {
            max_tokens: self.max_completion_tokens.or(self.max_tokens),
            max_tokens_field: match self.max_completion_tokens {
                Some(_) => "max_completion_tokens",
                None => "max_tokens",
            },
            temperature: self.temperature,
            top_p: self.top_p,
            top_k: self.top_k,
            min_p: self.min_p,
            repetition_penalty: self.repetition_penalty,
            frequency_penalty: self.frequency_penalty,
            presence_penalty: self.presence_penalty,
            seed: self.seed,
            stop: self.stop()?,
            top_logprobs,
        };
        let turns = self
            .messages
            .iter()
            .enumerate()
            .map(|(i, message)| message.turn(format!("messages[{i}]"), budget));
        Ok(Question {
            model: self.model.clone(),
            turns: turns.collect::<Result<_>>()?,
            options: options.options(&app.limits)?,
            choices,
        })
    }

    /// Returns the budget of each picture.
    fn budget(&self) -> Result<Budget> {
        let (pixels, tokens) = (self.max_pixels, self.max_image_tokens);
        for (name, most) in [("max_pixels", pixels), ("max_image_tokens", tokens)] {
            if most == Some(0) {
                return Err(ApiError::field(name, format!("{name} is 0")));
            }
        }
        Ok(Budget {
            max_pixels: pixels,
            max_tokens: tokens,
            tiles: self.tiles.unwrap_or(true),
            ..Budget::default()
        })
    }

    fn stop(&self) -> Result<Vec<String>> {
        let stop = match &self.stop {
            None => return Ok(Vec::new()),
            Some(Stop::One(text)) => vec![text.clone()],
            Some(Stop::Several(texts)) => texts.clone(),
        };
        if stop.len() > 4 {
            let message = format!("stop has {} texts; expected 1 to 4", stop.len());
            return Err(ApiError::field("stop", message));
        }
        Ok(stop)
    }
}

impl ChatMessage {
    fn turn(&self, field: String, budget: Budget) -> Result<Turn> {
        refuse_rest(&self.rest, &field, &["name"], &[])?;
        let role = role(&self.role, &field)?;
        let parts = match &self.content {
            None => vec![Part::Text(String::new())],
            Some(content) => content.parts(&format!("{field}.content"), |part, field| {
                part.part(field, budget)
            })?,
        };
        Ok(Turn { role, parts, field })
    }
}

impl ContentPart {
    fn part(&self, field: &str, request: Budget) -> Result<Part> {
        refuse_rest(&self.rest, field, &[], &[])?;
        match (
            self.kind.as_str(),
            &self.text,
            &self.image_url,
            &self.video_url,
        ) {
            ("text", Some(text), None, None) => Ok(Part::Text(text.clone())),
            ("video_url", None, None, Some(video)) => {
                let url = format!("{field}.video_url.url");
                let Source::Bytes(bytes) = source(&video.url, &url)? else {
                    return Err(
                        ApiError::field(url, "videos are only possible as data: URLs")
                            .code("remote_images_off"),
                    );
                };
                Ok(Part::Video {
                    bytes,
                    fps: video.fps,
                    budget: request,
                    field: format!("{field}.video_url"),
                })
            }
            ("image_url", None, Some(image), None) => {
                let budget = budget(
                    image.detail.as_deref(),
                    request,
                    &format!("{field}.image_url"),
                )?;
                let field = format!("{field}.image_url.url");
                Ok(Part::Image {
                    source: source(&image.url, &field)?,
                    budget,
                    field,
                })
            }
            ("text" | "image_url" | "video_url", ..) => {
                let message = format!("{field} must have {} and nothing else", self.kind);
                Err(ApiError::field(field, message))
            }
            (other, ..) => {
                let message =
                    format!("{field}.type is {other:?}; expected text, image_url or video_url");
                Err(ApiError::field(format!("{field}.type"), message).code("unsupported_content"))
            }
        }
    }
}

/// Returns OpenAI's word for the end of an answer.
fn finish_reason(reason: FinishReason) -> &'static str {
    match reason {
        FinishReason::EndOfTurn | FinishReason::StopSequence | FinishReason::Cancelled => "stop",
        FinishReason::MaxTokens | FinishReason::ContextFull => "length",
    }
}

impl Usage {
    fn new(prompt_tokens: usize, completion_tokens: usize, cached_tokens: usize) -> Usage {
        Usage {
            prompt_tokens,
            completion_tokens,
            total_tokens: prompt_tokens + completion_tokens,
            prompt_tokens_details: PromptDetails { cached_tokens },
        }
    }
}

impl Logprobs {
    /// Lists tokens that follow `before`.
    fn new(served: &Served, before: Option<u32>, tokens: &[Token]) -> Logprobs {
        let mut before = before;
        let mut content = Vec::new();
        for token in tokens {
            let top = |(id, logprob): &(u32, f32)| {
                let (token, bytes) = text_of(served, before, *id);
                TopLogprob {
                    token,
                    logprob: *logprob,
                    bytes,
                }
            };
            let (text, bytes) = text_of(served, before, token.id);
            content.push(TokenLogprob {
                token: text,
                logprob: token.logprob,
                bytes,
                top_logprobs: token.top.iter().map(top).collect(),
            });
            before = Some(token.id);
        }
        Logprobs {
            content,
            refusal: None,
        }
    }
}

/// Returns the text of a token after another one, and its bytes. Special tokens have their
/// spelling; a part of a character has its byte.
fn text_of(served: &Served, before: Option<u32>, id: u32) -> (String, Vec<u8>) {
    let tokenizer = &served.tokenizer;
    let spelling = || tokenizer.token_text(id).unwrap_or_default();
    if tokenizer.is_special(id) {
        let text = spelling();
        let bytes = text.clone().into_bytes();
        return (text, bytes);
    }
    if let Some(byte) = byte_in(&spelling()) {
        return (String::from_utf8_lossy(&[byte]).into_owned(), vec![byte]);
    }
    let mut decoder = match before {
        Some(before) => StreamDecoder::after(tokenizer, before),
        None => StreamDecoder::new(tokenizer).trim_start(),
    };
    let text = decoder
        .push(id)
        .and_then(|text| Ok(text + &decoder.finish()?));
    let text = text.unwrap_or_default();
    let bytes = text.clone().into_bytes();
    (text, bytes)
}

/// Returns the byte of a token such as `<0xF0>`.
fn byte_in(spelling: &str) -> Option<u8> {
    let digits = spelling.strip_prefix("<0x")?.strip_suffix('>')?;
    u8::from_str_radix(digits, 16).ok()
}

/// Writes chunks.
struct ChatWriter {
    id: String,
    created: u64,
    served: Arc<Served>,
    logprobs: bool,
    usage: bool,
    /// The answer that is being written.
    choice: Option<usize>,
    /// The latest token of that answer.
    latest: Option<u32>,
    prompt_tokens: usize,
    cached_tokens: usize,
    completion_tokens: usize,
}

impl ChatWriter {
    fn new(served: Arc<Served>, logprobs: bool, usage: bool) -> ChatWriter {
        ChatWriter {
            id: new_id("chatcmpl-"),
            created: now(),
            served,
            logprobs,
            usage,
            choice: None,
            latest: None,
            prompt_tokens: 0,
            cached_tokens: 0,
            completion_tokens: 0,
        }
    }

    fn chunk(&self, choices: Vec<ChunkChoice>, usage: Option<Usage>) -> sse::Event {
        event(&Chunk {
            id: self.id.clone(),
            object: "chat.completion.chunk",
            created: self.created,
            model: self.served.name.clone(),
            choices,
            usage: self.usage.then_some(usage),
        })
    }

    fn delta(
        &self,
        index: usize,
        delta: Delta,
        logprobs: Option<Logprobs>,
        finish_reason: Option<&'static str>,
    ) -> sse::Event {
        let choice = ChunkChoice {
            index,
            delta,
            logprobs,
            finish_reason,
        };
        self.chunk(vec![choice], None)
    }

    fn text(&self, index: usize, text: String, logprobs: Option<Logprobs>) -> sse::Event {
        let delta = Delta {
            content: Some(text),
            ..Delta::default()
        };
        self.delta(index, delta, logprobs, None)
    }
}

impl Writer for ChatWriter {
    fn start(&mut self, stats: &Stats) -> Vec<sse::Event> {
        self.prompt_tokens = stats.prompt_tokens;
        self.cached_tokens = stats.reused_tokens;
        Vec::new()
    }

    fn piece(&mut self, piece: Piece) -> Vec<sse::Event> {
        let index = piece.choice;
        let mut events = Vec::new();
        if self.choice != Some(index) {
            (self.choice, self.latest) = (Some(index), None);
            let delta = Delta {
                role: Some("assistant"),
                content: Some(String::new()),
            };
            events.push(self.delta(index, delta, None, None));
        }
        match piece.event {
            Event::Prefill { .. } => {}
            Event::Text {
                text,
                token,
                logprob,
                top,
            } => {
                let logprobs = self.logprobs.then(|| {
                    let token = Token::new(token, logprob, &top);
                    Logprobs::new(&self.served, self.latest, &[token])
                });
                self.latest = Some(token);
                if !text.is_empty() || logprobs.is_some() {
                    events.push(self.text(index, text, logprobs));
                }
            }
            Event::Finished { reason, text } => {
                if !text.is_empty() {
                    events.push(self.text(index, text, None));
                }
                self.completion_tokens += piece.stats.generated_tokens;
                let reason = Some(finish_reason(reason));
                events.push(self.delta(index, Delta::default(), None, reason));
            }
        }
        events
    }

    fn end(&mut self) -> Vec<sse::Event> {
        let mut events = Vec::new();
        if self.usage {
            let usage = Usage::new(
                self.prompt_tokens,
                self.completion_tokens,
                self.cached_tokens,
            );
            events.push(self.chunk(Vec::new(), Some(usage)));
        }
        events.push(sse::Event::default().data("[DONE]"));
        events
    }

    fn error(&mut self, error: &ApiError) -> Vec<sse::Event> {
        vec![event(&error.body())]
    }
}
