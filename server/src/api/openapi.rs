//! `GET /openapi.json`: what the server understands, made from the types that it reads and writes.

use std::sync::Arc;

use axum::{Json, extract::State};
use schemars::{JsonSchema, SchemaGenerator, generate::SchemaSettings};
use serde_json::{Map, Value, json};

use super::{
    chat::{ChatRequest, ChatResponse},
    describe::{DescribeRequest, Description},
    messages::{CountRequest, MessageBody, MessagesRequest, TokenCount},
    responses::{ResponseBody, ResponsesRequest},
    service::{Health, ModelBody, ModelList},
};
use crate::{app::App, error::ErrorBody};

/// The statuses of errors that every request with content may have, and their meanings.
const FAILURES: &[(u16, &str)] = &[
    (400, "A field is wrong or not supported; `param` names it."),
    (401, "The API key is missing or wrong."),
    (403, "The Host or the Origin is not allowed."),
    (404, "There is no such model."),
    (408, "The request did not arrive in time."),
    (413, "The request is too large."),
    (415, "The request is not JSON."),
    (
        429,
        "Too many requests wait; `Retry-After` says when to try again.",
    ),
    (500, "The library or the machine failed."),
    (
        503,
        "The server is shutting down or has no room; `Retry-After` says when to try again.",
    ),
];

/// Returns the document.
pub async fn document(State(app): State<Arc<App>>) -> Json<Value> {
    Json(describe(&app.models.all()[0].name))
}

/// Describes the server; `model` is the name in the examples.
fn describe(model: &str) -> Value {
    let hello = json!([{"role": "user", "content": "What is written?"}]);
    // A picture of one pixel.
    let image = "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAIAAACQd1PeAAAADElEQVR4nGP4//8/AAX+Av4N70a4AAAAAElFTkSuQmCC";
    let mut generator = SchemaSettings::openapi3().into_generator();
    let schemas = &mut generator;
    let paths = json!({
        "/v1/chat/completions": {"post": operation::<ChatRequest, ChatResponse>(
            schemas, "chat", "Answers a conversation (OpenAI)", true,
            json!({"model": model, "messages": hello, "max_tokens": 8}))},
        "/v1/responses": {"post": operation::<ResponsesRequest, ResponseBody>(
            schemas, "respond", "Answers a conversation (OpenAI, newer form)", true,
            json!({"model": model, "input": hello, "max_output_tokens": 8}))},
        "/v1/messages": {"post": anthropic(operation::<MessagesRequest, MessageBody>(
            schemas, "message", "Answers a conversation (Anthropic)", true,
            json!({"model": model, "messages": hello, "max_tokens": 8})))},
        "/v1/messages/count_tokens": {"post": anthropic(operation::<CountRequest, TokenCount>(
            schemas, "countTokens", "Counts the tokens of a conversation (Anthropic)", false,
            json!({"model": model, "messages": hello})))},
        "/v1/describe": {"post": operation::<DescribeRequest, Description>(
            schemas, "describe", "Describes a picture", false,
            json!({"image": image, "max_tokens": 8}))},
        "/v1/models": {"get": reading::<ModelList>(schemas, "listModels", "Lists the models")},
        "/v1/models/{id}": {
            "parameters": [{
                "name": "id", "in": "path", "required": true, "schema": {"type": "string"},
            }],
            "get": reading::<ModelBody>(schemas, "getModel", "Returns a model"),
        },
        "/health": {"get": health(schemas)},
        "/metrics": {"get": plain("metrics", "Counts and times, for Prometheus",
            "application/openmetrics-text")},
        "/": {"get": plain("page", "A page to try a model", "text/html")},
        "/openapi.json": {"get": plain("openapi", "This document", "application/json")},
    });
    let definitions: Map<String, Value> = generator.take_definitions(true).into_iter().collect();
    json!({
        "openapi": "3.0.3",
        "info": {
            "title": "moxin-server",
            "description": "Vision-language models over HTTP.",
            "version": env!("CARGO_PKG_VERSION"),
        },
        "paths": paths,
        "components": {
            "schemas": definitions,
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        },
        "security": [{}, {"key": []}],
    })
}

/// Describes an endpoint that reads `Q` and writes `A`.
fn operation<Q: JsonSchema, A: JsonSchema>(
    schemas: &mut SchemaGenerator,
    id: &str,
    summary: &str,
    streams: bool,
    example: Value,
) -> Value {
    let mut content = json!({"application/json": {"schema": schemas.subschema_for::<A>()}});
    if streams {
        let text = json!({"type": "string"});
        let event = json!({
            "type": "object",
            "required": ["data"],
            "properties": {"data": text, "event": text},
        });
        content["text/event-stream"] = json!({"schema": event});
    }
    let schema = schemas.subschema_for::<Q>();
    let request = json!({"application/json": {"schema": schema, "example": example}});
    json!({
        "operationId": id,
        "summary": summary,
        "requestBody": {"required": true, "content": request},
        "responses": responses(schemas, content, FAILURES.iter()),
    })
}

/// Replaces the bodies of errors by Anthropic's.
fn anthropic(mut operation: Value) -> Value {
    let text = json!({"type": "string"});
    let schema = json!({
        "type": "object",
        "required": ["type", "error"],
        "properties": {
            "type": text,
            "error": {
                "type": "object",
                "required": ["type", "message"],
                "properties": {"type": text, "message": text},
            },
        },
    });
    if let Value::Object(responses) = &mut operation["responses"] {
        for (_, response) in responses.iter_mut().filter(|(status, _)| *status != "200") {
            response["content"]["application/json"]["schema"] = schema.clone();
        }
    }
    operation
}

/// Describes an endpoint that reads nothing and writes `A`.
fn reading<A: JsonSchema>(schemas: &mut SchemaGenerator, id: &str, summary: &str) -> Value {
    let content = json!({"application/json": {"schema": schemas.subschema_for::<A>()}});
    let failures = FAILURES
        .iter()
        .filter(|(status, _)| [400, 401, 403, 404].contains(status));
    json!({
        "operationId": id,
        "summary": summary,
        "responses": responses(schemas, content, failures),
    })
}

fn health(schemas: &mut SchemaGenerator) -> Value {
    let mut operation = reading::<Health>(schemas, "health", "Tells whether the server is ready");
    let content = operation["responses"]["200"]["content"].clone();
    operation["responses"]["503"] = json!({
        "description": "The server is loading, draining, or has no model.",
        "content": content,
    });
    operation
}

fn plain(id: &str, summary: &str, kind: &str) -> Value {
    json!({
        "operationId": id,
        "summary": summary,
        "responses": {
            "200": {"description": summary, "content": {kind: {}}},
            "401": {"description": "The API key is missing or wrong."},
            "403": {"description": "The Host or the Origin is not allowed."},
        },
    })
}

fn responses<'f>(
    schemas: &mut SchemaGenerator,
    content: Value,
    failures: impl Iterator<Item = &'f (u16, &'f str)>,
) -> Value {
    let error = schemas.subschema_for::<ErrorBody>();
    let mut responses = json!({"200": {"description": "The answer.", "content": content}});
    for (status, meaning) in failures {
        responses[status.to_string()] = json!({
            "description": meaning,
            "content": {"application/json": {"schema": error}},
        });
    }
    responses
}
