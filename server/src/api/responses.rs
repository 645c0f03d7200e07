//! `POST /v1/responses`: <https://platform.openai.com/docs/api-reference/responses/create>.

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

use super::{Content, IGNORED, new_id, now, role};
use crate::{
    answer::{Answer, Piece},
    app::App,
    error::{ApiError, Result},
    json::{receive, refuse_rest},
    options::{Asked, budget, source},
    question::{Part, Question, Turn},
    router::Scope,
    sse::{Writer, named_event, stream},
};

/// A request for an answer.
#[derive(Deserialize, JsonSchema)]
pub struct ResponsesRequest {
    /// The name of the model; the first one if it is missing.
    model: Option<String>,
    /// A question, or the messages of a conversation.
    input: Input,
    /// Instructions before the conversation, if the model supports them.
    instructions: Option<String>,
    /// Whether the answer is streamed.
    stream: Option<bool>,
    /// The maximum number of tokens in the answer.
    max_output_tokens: Option<u32>,
    /// 0, the default, always takes the most likely token.
    temperature: Option<f32>,
    /// Samples from the most likely tokens that together have this probability.
    top_p: Option<f32>,
    #[serde(flatten)]
    rest: Map<String, Value>,
}

#[derive(Deserialize, JsonSchema)]
#[serde(untagged, expecting = "expected a string or a list of messages")]
enum Input {
    Text(String),
    Items(Vec<Item>),
}

/// A message of the conversation.
#[derive(Deserialize, JsonSchema)]
struct Item {
    /// `message`, or missing.
    #[serde(rename = "type")]
    kind: Option<String>,
    /// `system` or `developer` if the model supports it, `user`, `assistant`.
    role: Option<String>,
    /// A text, or parts.
    content: Option<Content<ContentPart>>,
    #[serde(flatten)]
    rest: Map<String, Value>,
}

/// A text or a picture.
#[derive(Deserialize, JsonSchema)]
struct ContentPart {
    /// `input_text`, `output_text` or `input_image`.
    #[serde(rename = "type")]
    kind: String,
    text: Option<String>,
    /// A `data:` URL with base64; `https:` where the server allows it.
    image_url: Option<String>,
    /// `auto`, `low` or `high`.
    detail: Option<String>,
    #[serde(flatten)]
    rest: Map<String, Value>,
}

/// An answer.
#[derive(Clone, Serialize, JsonSchema)]
pub struct ResponseBody {
    id: String,
    object: &'static str,
    created_at: u64,
    /// `in_progress`, `completed`, `incomplete` or `failed`.
    status: &'static str,
    error: Option<Value>,
    incomplete_details: Option<Value>,
    instructions: Option<String>,
    max_output_tokens: Option<u32>,
    metadata: Map<String, Value>,
    model: String,
    output: Vec<OutputMessage>,
    parallel_tool_calls: bool,
    previous_response_id: Option<String>,
    store: bool,
    temperature: f32,
    text: Value,
    tool_choice: &'static str,
    tools: Vec<Value>,
    top_p: f32,
    truncation: &'static str,
    usage: Option<Usage>,
}

#[derive(Clone, Serialize, JsonSchema)]
struct OutputMessage {
    #[serde(rename = "type")]
    kind: &'static str,
    id: String,
    status: &'static str,
    role: &'static str,
    content: Vec<OutputText>,
}

#[derive(Clone, Serialize, JsonSchema)]
struct OutputText {
    #[serde(rename = "type")]
    kind: &'static str,
    text: String,
    annotations: Vec<Value>,
    logprobs: Vec<Value>,
}

#[derive(Clone, Serialize, JsonSchema)]
struct Usage {
    input_tokens: usize,
    input_tokens_details: InputDetails,
    output_tokens: usize,
    output_tokens_details: OutputDetails,
    total_tokens: usize,
}

#[derive(Clone, Serialize, JsonSchema)]
struct InputDetails {
    /// Input tokens that were not read again.
    cached_tokens: usize,
}

#[derive(Clone, Serialize, JsonSchema)]
struct OutputDetails {
    reasoning_tokens: usize,
}

/// Answers a conversation.
pub async fn respond(
    State(app): State<Arc<App>>,
    Extension(Scope(scope)): Extension<Scope>,
    request: Request,
) -> Result<Response> {
    let received = receive::<ResponsesRequest>(&app, request).await?;
    let question = received.content.question(&app)?;
    let name = app
        .models
        .find(received.content.model.as_deref())?
        .name
        .clone();
    let mut body = received.content.body(name);
    let streams = received.content.stream == Some(true);
    drop(received);
    let answer = Answer::start(&app, question, scope, "input").await?;
    if streams {
        return stream(answer, ResponsesWriter::new(body)).await;
    }
    let whole = answer.only().await?;
    body.finish(whole.reason, &whole.stats);
    body.output = vec![message(new_id("msg_"), body.message_status(), whole.text)];
    Ok(Json(body).into_response())
}

impl ResponsesRequest {
    fn question(&self, app: &App) -> Result<Question> {
        let harmless: [(&str, &[&str]); 5] = [
            ("text", &[r#"{"format":{"type":"text"}}"#]),
            ("tool_choice", &[r#""none""#, r#""auto""#]),
            ("truncation", &[r#""disabled""#]),
            ("stream_options", &[r#"{"include_obfuscation":false}"#]),
            ("top_logprobs", &["0"]),
        ];
        refuse_rest(&self.rest, "", IGNORED, &harmless)?;
        let mut turns = Vec::new();
        if let Some(instructions) = &self.instructions {
            turns.push(Turn {
                role: Role::System,
                parts: vec![Part::Text(instructions.clone())],
                field: "instructions".into(),
            });
        }
        match &self.input {
            Input::Text(text) => turns.push(Turn {
                role: Role::User,
                parts: vec![Part::Text(text.clone())],
                field: "input".into(),
            }),
            Input::Items(items) => {
                for (i, item) in items.iter().enumerate() {
                    turns.push(item.turn(format!("input[{i}]"))?);
                }
            }
        }
        let options = Asked {
            max_tokens: self.max_output_tokens,
            max_tokens_field: "max_output_tokens",
            temperature: self.temperature,
            top_p: self.top_p,
            ..Asked::default()
        };
        Ok(Question {
            model: self.model.clone(),
            turns,
            options: options.options(&app.limits)?,
            choices: 1,
        })
    }

    fn body(&self, model: String) -> ResponseBody {
        ResponseBody {
            id: new_id("resp_"),
            object: "response",
            created_at: now(),
            status: "in_progress",
            error: None,
            incomplete_details: None,
            instructions: self.instructions.clone(),
            max_output_tokens: self.max_output_tokens,
            metadata: match self.rest.get("metadata") {
                Some(Value::Object(metadata)) => metadata.clone(),
                _ => Map::new(),
            },
            model,
            output: Vec::new(),
            parallel_tool_calls: true,
            previous_response_id: None,
            store: false,
            temperature: self.temperature.unwrap_or(0.0),
            text: json!({"format": {"type": "text"}}),
            tool_choice: "auto",
            tools: Vec::new(),
            top_p: self.top_p.unwrap_or(1.0),
            truncation: "disabled",
            usage: None,
        }
    }
}

impl Item {
    fn turn(&self, field: String) -> Result<Turn> {
        refuse_rest(&self.rest, &field, &["id", "status", "phase"], &[])?;
        if let Some(kind) = self.kind.as_deref().filter(|kind| *kind != "message") {
            let message = format!("{field}.type is {kind:?}; expected message");
            return Err(ApiError::field(format!("{field}.type"), message));
        }
        let role = role(self.role.as_deref().unwrap_or("missing"), &field)?;
        let parts = match &self.content {
            None => {
                let field = format!("{field}.content");
                let message = format!("{field} is missing");
                return Err(ApiError::field(field, message));
            }
            Some(content) => content.parts(&format!("{field}.content"), ContentPart::part)?,
        };
        Ok(Turn { role, parts, field })
    }
}

impl ContentPart {
    fn part(&self, field: &str) -> Result<Part> {
        refuse_rest(&self.rest, field, &["annotations", "logprobs"], &[])?;
        match (self.kind.as_str(), &self.text, &self.image_url) {
            ("input_text" | "output_text", Some(text), None) => Ok(Part::Text(text.clone())),
            ("input_image", None, Some(url)) => {
                let budget = budget(self.detail.as_deref(), Budget::default(), field)?;
                let field = format!("{field}.image_url");
                Ok(Part::Image {
                    source: source(url, &field)?,
                    budget,
                    field,
                })
            }
            ("input_text" | "output_text" | "input_image", ..) => {
                let message = format!("{field} does not have what an {} needs", self.kind);
                Err(ApiError::field(field, message))
            }
            (other, ..) => {
                let message =
                    format!("{field}.type is {other:?}; expected input_text or input_image");
                Err(ApiError::field(format!("{field}.type"), message).code("unsupported_content"))
            }
        }
    }
}

fn message(id: String, status: &'static str, text: String) -> OutputMessage {
    OutputMessage {
        kind: "message",
        id,
        status,
        role: "assistant",
        content: vec![output_text(text)],
    }
}

fn output_text(text: String) -> OutputText {
    OutputText {
        kind: "output_text",
        text,
        annotations: Vec::new(),
        logprobs: Vec::new(),
    }
}

impl ResponseBody {
    fn finish(&mut self, reason: FinishReason, stats: &Stats) {
        let is_whole = !matches!(reason, FinishReason::MaxTokens | FinishReason::ContextFull);
        (self.status, self.incomplete_details) = match is_whole {
            true => ("completed", None),
            false => ("incomplete", Some(json!({"reason": "max_output_tokens"}))),
        };
        self.usage = Some(Usage {
            input_tokens: stats.prompt_tokens,
            input_tokens_details: InputDetails {
                cached_tokens: stats.reused_tokens,
            },
            output_tokens: stats.generated_tokens,
            output_tokens_details: OutputDetails {
                reasoning_tokens: 0,
            },
            total_tokens: stats.prompt_tokens + stats.generated_tokens,
        });
    }

    fn message_status(&self) -> &'static str {
        match self.status {
            "incomplete" => "incomplete",
            _ => "completed",
        }
    }
}

/// Writes the events of a response.
struct ResponsesWriter {
    body: ResponseBody,
    message_id: String,
    text: String,
    sequence: usize,
}

impl ResponsesWriter {
    fn new(body: ResponseBody) -> ResponsesWriter {
        ResponsesWriter {
            body,
            message_id: new_id("msg_"),
            text: String::new(),
            sequence: 0,
        }
    }

    /// Returns an event of this type, with these fields.
    fn event(&mut self, kind: &str, fields: Value) -> sse::Event {
        let mut data = json!({"type": kind, "sequence_number": self.sequence});
        if let (Value::Object(data), Value::Object(fields)) = (&mut data, fields) {
            data.extend(fields);
        }
        self.sequence += 1;
        named_event(kind, &data)
    }

    /// Returns an event about the text.
    fn about_text(&mut self, kind: &str, field: &str, value: Value) -> sse::Event {
        let mut fields = json!({
            "item_id": self.message_id, "output_index": 0, "content_index": 0, field: value,
        });
        if kind.starts_with("response.output_text") {
            fields["logprobs"] = json!([]);
        }
        self.event(kind, fields)
    }

    fn delta(&mut self, text: &str) -> Option<sse::Event> {
        self.text += text;
        (!text.is_empty())
            .then(|| self.about_text("response.output_text.delta", "delta", json!(text)))
    }
}

impl Writer for ResponsesWriter {
    fn start(&mut self, _: &Stats) -> Vec<sse::Event> {
        let mut item = message(self.message_id.clone(), "in_progress", String::new());
        item.content.clear();
        let body = json!({"response": self.body});
        vec![
            self.event("response.created", body.clone()),
            self.event("response.in_progress", body),
            self.event(
                "response.output_item.added",
                json!({"output_index": 0, "item": item}),
            ),
            self.about_text(
                "response.content_part.added",
                "part",
                json!(output_text(String::new())),
            ),
        ]
    }

    fn piece(&mut self, piece: Piece) -> Vec<sse::Event> {
        match piece.event {
            Event::Prefill { .. } => Vec::new(),
            Event::Text { text, .. } => self.delta(&text).into_iter().collect(),
            Event::Finished { reason, text } => {
                self.body.finish(reason, &piece.stats);
                self.delta(&text).into_iter().collect()
            }
        }
    }

    fn end(&mut self) -> Vec<sse::Event> {
        let text = self.text.clone();
        let item = message(
            self.message_id.clone(),
            self.body.message_status(),
            text.clone(),
        );
        self.body.output = vec![item.clone()];
        let last = match self.body.status {
            "incomplete" => "response.incomplete",
            _ => "response.completed",
        };
        vec![
            self.about_text("response.output_text.done", "text", json!(text)),
            self.about_text(
                "response.content_part.done",
                "part",
                json!(output_text(text)),
            ),
            self.event(
                "response.output_item.done",
                json!({"output_index": 0, "item": item}),
            ),
            self.event(last, json!({"response": self.body})),
        ]
    }

    fn error(&mut self, error: &ApiError) -> Vec<sse::Event> {
        let code = error.code.unwrap_or("server_error");
        self.body.status = "failed";
        self.body.error = Some(json!({"code": "server_error", "message": error.message}));
        vec![
            self.event(
                "error",
                json!({"code": code, "message": error.message, "param": error.param}),
            ),
            self.event("response.failed", json!({"response": self.body})),
        ]
    }
}
