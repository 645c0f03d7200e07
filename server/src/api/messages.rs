//! `POST /v1/messages` and `/v1/messages/count_tokens`, the API of Anthropic:
//! <https://docs.anthropic.com/en/api/messages>.

use std::sync::Arc;

use axum::{
    Extension, Json,
    extract::{Request, State},
    response::{IntoResponse, Response, sse},
};
use moxin_vlm::{Budget, Event, FinishReason, Role, Stats};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use super::new_id;
use crate::{
    answer::{Answer, Piece, count},
    app::App,
    error::{ApiError, Result},
    json::{base64, receive, refuse_rest},
    models::Served,
    options::{Asked, source},
    question::{Part, Question, Source, Turn},
    router::Scope,
    sse::{Writer, named_event, stream},
};

/// A request for an answer.
#[derive(Deserialize, JsonSchema)]
pub struct MessagesRequest {
    /// The name of the model.
    model: String,
    /// The maximum number of tokens in the answer.
    max_tokens: u32,
    /// The conversation. The last message is the user's.
    messages: Vec<InputMessage>,
    /// Instructions before the conversation, if the model supports them.
    system: Option<Content>,
    /// Whether the answer is streamed.
    stream: Option<bool>,
    /// Texts that end the answer.
    stop_sequences: Option<Vec<String>>,
    /// 0, the default, always takes the most likely token.
    temperature: Option<f32>,
    /// Samples from this many of the most likely tokens.
    top_k: Option<u32>,
    /// Samples from the most likely tokens that together have this probability.
    top_p: Option<f32>,
    #[serde(flatten)]
    rest: Map<String, Value>,
}

/// A request for the number of tokens.
#[derive(Deserialize, JsonSchema)]
pub struct CountRequest {
    /// The name of the model.
    model: String,
    /// The conversation. The last message is the user's.
    messages: Vec<InputMessage>,
    /// Instructions before the conversation, if the model supports them.
    system: Option<Content>,
    #[serde(flatten)]
    rest: Map<String, Value>,
}

/// A message of the conversation.
#[derive(Deserialize, JsonSchema)]
struct InputMessage {
    /// `user` or `assistant`.
    role: String,
    /// A text, or blocks.
    content: Content,
    #[serde(flatten)]
    rest: Map<String, Value>,
}

#[derive(Deserialize, JsonSchema)]
#[serde(untagged, expecting = "expected a string or a list of blocks")]
enum Content {
    Text(String),
    Blocks(Vec<Block>),
}

/// A text or a picture.
#[derive(Deserialize, JsonSchema)]
struct Block {
    /// `text` or `image`.
    #[serde(rename = "type")]
    kind: String,
    text: Option<String>,
    source: Option<ImageSource>,
    #[serde(flatten)]
    rest: Map<String, Value>,
}

#[derive(Deserialize, JsonSchema)]
struct ImageSource {
    /// `base64`; `url` where the server allows it.
    #[serde(rename = "type")]
    kind: String,
    /// The content of the picture as base64.
    data: Option<String>,
    url: Option<String>,
    #[serde(flatten)]
    rest: Map<String, Value>,
}

/// An answer.
#[derive(Clone, Serialize, JsonSchema)]
pub struct MessageBody {
    id: String,
    #[serde(rename = "type")]
    kind: &'static str,
    role: &'static str,
    model: String,
    content: Vec<TextBlock>,
    stop_reason: Option<&'static str>,
    stop_sequence: Option<String>,
    usage: Usage,
}

#[derive(Clone, Serialize, JsonSchema)]
struct TextBlock {
    #[serde(rename = "type")]
    kind: &'static str,
    text: String,
}

#[derive(Clone, Serialize, JsonSchema)]
struct Usage {
    /// Prompt tokens that were read.
    input_tokens: usize,
    cache_creation_input_tokens: usize,
    /// Prompt tokens that were not read again.
    cache_read_input_tokens: usize,
    output_tokens: usize,
}

/// The number of tokens in a prompt.
#[derive(Serialize, JsonSchema)]
pub struct TokenCount {
    input_tokens: usize,
}

/// Answers a conversation.
pub async fn create(
    State(app): State<Arc<App>>,
    Extension(Scope(scope)): Extension<Scope>,
    request: Request,
) -> Result<Response> {
    let received = receive::<MessagesRequest>(&app, request).await?;
    let question = received.content.question(&app)?;
    let streams = received.content.stream == Some(true);
    drop(received);
    let stops = question.options.stop.clone();
    let answer = Answer::start(&app, question, scope, "messages").await?;
    let mut writer = MessageWriter::new(answer.served.clone(), stops);
    if streams {
        return stream(answer, writer).await;
    }
    let whole = answer.only().await?;
    writer.ids = whole.tokens.iter().map(|token| token.id).collect();
    writer.finish(whole.reason, &whole.stats);
    writer.body.content = vec![TextBlock {
        kind: "text",
        text: whole.text,
    }];
    Ok(Json(writer.body).into_response())
}

/// Counts the tokens of a conversation.
pub async fn count_tokens(
    State(app): State<Arc<App>>,
    request: Request,
) -> Result<Json<TokenCount>> {
    let received = receive::<CountRequest>(&app, request).await?;
    let CountRequest {
        model,
        messages,
        system,
        rest,
    } = &received.content;
    refuse_rest(rest, "", IGNORED, HARMLESS)?;
    let question = Question {
        model: Some(model.clone()),
        turns: turns(system, messages)?,
        options: Asked::default().options(&app.limits)?,
        choices: 1,
    };
    drop(received);
    Ok(Json(TokenCount {
        input_tokens: count(&app, question, "messages").await?,
    }))
}

/// Fields of a request that need no effect.
const IGNORED: &[&str] = &["metadata", "service_tier", "cache_control"];

/// Values that ask for what happens anyway.
const HARMLESS: &[(&str, &[&str])] = &[
    ("thinking", &[r#"{"type":"disabled"}"#]),
    ("tool_choice", &[r#"{"type":"none"}"#, r#"{"type":"auto"}"#]),
];

impl MessagesRequest {
    fn question(&self, app: &App) -> Result<Question> {
        refuse_rest(&self.rest, "", IGNORED, HARMLESS)?;
        let options = Asked {
            max_tokens: Some(self.max_tokens),
            max_tokens_field: "max_tokens",
            temperature: self.temperature,
            top_p: self.top_p,
            top_k: self.top_k,
            stop: self.stop_sequences.clone().unwrap_or_default(),
            ..Asked::default()
        };
        let options = options
            .options(&app.limits)
            .map_err(|error| match &error.param {
                Some(param) if param == "stop" => ApiError {
                    param: Some("stop_sequences".into()),
                    ..error
                },
                _ => error,
            })?;
        Ok(Question {
            model: Some(self.model.clone()),
            turns: turns(&self.system, &self.messages)?,
            options,
            choices: 1,
        })
    }
}

fn turns(system: &Option<Content>, messages: &[InputMessage]) -> Result<Vec<Turn>> {
    let mut turns = Vec::new();
    if let Some(system) = system {
        turns.push(Turn {
            role: Role::System,
            parts: system.parts("system")?,
            field: "system".into(),
        });
    }
    for (i, message) in messages.iter().enumerate() {
        let field = format!("messages[{i}]");
        refuse_rest(&message.rest, &field, &[], &[])?;
        let role = match message.role.as_str() {
            "user" => Role::User,
            "assistant" => Role::Assistant,
            other => {
                let message = format!("{field}.role is {other:?}; expected user or assistant");
                return Err(ApiError::field(format!("{field}.role"), message));
            }
        };
        turns.push(Turn {
            role,
            parts: message.content.parts(&format!("{field}.content"))?,
            field,
        });
    }
    Ok(turns)
}

impl Content {
    fn parts(&self, field: &str) -> Result<Vec<Part>> {
        match self {
            Content::Text(text) => Ok(vec![Part::Text(text.clone())]),
            Content::Blocks(blocks) => blocks
                .iter()
                .enumerate()
                .map(|(i, block)| block.part(&format!("{field}[{i}]")))
                .collect(),
        }
    }
}

impl Block {
    fn part(&self, field: &str) -> Result<Part> {
        refuse_rest(&self.rest, field, &["cache_control", "citations"], &[])?;
        match (self.kind.as_str(), &self.text, &self.source) {
            ("text", Some(text), None) => Ok(Part::Text(text.clone())),
            ("image", None, Some(image)) => Ok(Part::Image {
                source: image.source(&format!("{field}.source"))?,
                budget: Budget::default(),
                field: format!("{field}.source"),
            }),
            ("text" | "image", ..) => {
                let message = format!(
                    "{field} does not have what a block of type {} needs",
                    self.kind
                );
                Err(ApiError::field(field, message))
            }
            (other, ..) => {
                let message = format!("{field}.type is {other:?}; expected text or image");
                Err(ApiError::field(format!("{field}.type"), message).code("unsupported_content"))
            }
        }
    }
}

impl ImageSource {
    fn source(&self, field: &str) -> Result<Source> {
        refuse_rest(&self.rest, field, &["media_type"], &[])?;
        match (self.kind.as_str(), &self.data, &self.url) {
            ("base64", Some(data), None) => {
                Ok(Source::Bytes(base64(data, &format!("{field}.data"))?))
            }
            ("url", None, Some(url)) => source(url, &format!("{field}.url")),
            _ => {
                let message = format!("{field} must be of type base64 with data, or url with url");
                Err(ApiError::field(field, message))
            }
        }
    }
}

/// Writes the events of a message.
struct MessageWriter {
    body: MessageBody,
    served: Arc<Served>,
    stops: Vec<String>,
    ids: Vec<u32>,
}

impl MessageWriter {
    fn new(served: Arc<Served>, stops: Vec<String>) -> MessageWriter {
        MessageWriter {
            body: MessageBody {
                id: new_id("msg_"),
                kind: "message",
                role: "assistant",
                model: served.name.clone(),
                content: Vec::new(),
                stop_reason: None,
                stop_sequence: None,
                usage: Usage::of(&Stats::default()),
            },
            served,
            stops,
            ids: Vec::new(),
        }
    }

    fn finish(&mut self, reason: FinishReason, stats: &Stats) {
        self.body.usage = Usage::of(stats);
        self.body.stop_reason = Some(match reason {
            FinishReason::EndOfTurn | FinishReason::Cancelled => "end_turn",
            FinishReason::StopSequence => "stop_sequence",
            FinishReason::MaxTokens => "max_tokens",
            FinishReason::ContextFull => "model_context_window_exceeded",
        });
        if reason == FinishReason::StopSequence {
            let text = self.served.tokenizer.decode(&self.ids).unwrap_or_default();
            self.body.stop_sequence = first_of(&self.stops, &text).cloned();
        }
    }

    fn delta(&mut self, text: &str) -> Option<sse::Event> {
        (!text.is_empty()).then(|| {
            let delta = json!({"type": "text_delta", "text": text});
            named("content_block_delta", json!({"index": 0, "delta": delta}))
        })
    }
}

/// Returns the text that comes first in another one; of those at the same place, the first in the
/// list.
fn first_of<'t>(stops: &'t [String], text: &str) -> Option<&'t String> {
    let found = stops
        .iter()
        .filter_map(|stop| Some((text.find(stop.as_str())?, stop)));
    found.min_by_key(|(at, _)| *at).map(|(_, stop)| stop)
}

/// Returns an event of this type, with these fields.
fn named(kind: &str, fields: Value) -> sse::Event {
    let mut data = json!({"type": kind});
    if let (Value::Object(data), Value::Object(fields)) = (&mut data, fields) {
        data.extend(fields);
    }
    named_event(kind, &data)
}

impl Usage {
    fn of(stats: &Stats) -> Usage {
        Usage {
            input_tokens: stats.prompt_tokens - stats.reused_tokens,
            cache_creation_input_tokens: 0,
            cache_read_input_tokens: stats.reused_tokens,
            output_tokens: stats.generated_tokens,
        }
    }
}

impl Writer for MessageWriter {
    fn start(&mut self, stats: &Stats) -> Vec<sse::Event> {
        self.body.usage = Usage::of(stats);
        let block = json!({"type": "text", "text": ""});
        vec![
            named("message_start", json!({"message": self.body})),
            named(
                "content_block_start",
                json!({"index": 0, "content_block": block}),
            ),
        ]
    }

    fn piece(&mut self, piece: Piece) -> Vec<sse::Event> {
        match piece.event {
            Event::Prefill { .. } => Vec::new(),
            Event::Text { text, token, .. } => {
                self.ids.push(token);
                self.delta(&text).into_iter().collect()
            }
            Event::Finished { reason, text } => {
                self.finish(reason, &piece.stats);
                self.delta(&text).into_iter().collect()
            }
        }
    }

    fn end(&mut self) -> Vec<sse::Event> {
        let MessageBody {
            stop_reason,
            stop_sequence,
            usage,
            ..
        } = &self.body;
        let delta = json!({"stop_reason": stop_reason, "stop_sequence": stop_sequence});
        vec![
            named("content_block_stop", json!({"index": 0})),
            named("message_delta", json!({"delta": delta, "usage": usage})),
            named("message_stop", json!({})),
        ]
    }

    fn error(&mut self, error: &ApiError) -> Vec<sse::Event> {
        vec![named_event("error", &error.anthropic_body())]
    }
}
