//! The endpoints, one module per API.

pub mod chat;
pub mod describe;
pub mod messages;
pub mod openapi;
pub mod responses;
pub mod service;

use std::time::SystemTime;

use moxin_vlm::Role;
use schemars::JsonSchema;
use serde::Deserialize;
use uuid::Uuid;

use crate::{
    error::{ApiError, Result},
    question::Part,
};

/// Fields of OpenAI's requests that need no effect.
const IGNORED: &[&str] = &[
    "user",
    "metadata",
    "safety_identifier",
    "prompt_cache_key",
    "prompt_cache_retention",
    "service_tier",
    "parallel_tool_calls",
];

/// The content of a message in OpenAI's APIs: a text, or parts.
#[derive(Deserialize, JsonSchema)]
#[serde(untagged, expecting = "expected a string or a list of parts")]
enum Content<P> {
    Text(String),
    Parts(Vec<P>),
}

impl<P> Content<P> {
    /// Reads the parts with `read`, which gets the field of each.
    fn parts(&self, field: &str, read: impl Fn(&P, &str) -> Result<Part>) -> Result<Vec<Part>> {
        match self {
            Content::Text(text) => Ok(vec![Part::Text(text.clone())]),
            Content::Parts(parts) => parts
                .iter()
                .enumerate()
                .map(|(i, part)| read(part, &format!("{field}[{i}]")))
                .collect(),
        }
    }
}

/// Returns the role of the message in `field`, by its name in OpenAI's APIs.
fn role(name: &str, field: &str) -> Result<Role> {
    match name {
        "system" | "developer" => Ok(Role::System),
        "user" => Ok(Role::User),
        "assistant" => Ok(Role::Assistant),
        other => {
            let message =
                format!("{field}.role is {other:?}; expected system, developer, user or assistant");
            Err(ApiError::field(format!("{field}.role"), message))
        }
    }
}

/// Returns a new id that starts with `prefix`.
fn new_id(prefix: &str) -> String {
    format!("{prefix}{}", Uuid::new_v4().simple())
}

/// Returns the current time in seconds since 1970.
fn now() -> u64 {
    crate::models::seconds(SystemTime::now())
}
