//! Errors as clients expect them: JSON with a message for people, and fields for programs.

use axum::{
    Json,
    http::{HeaderValue, StatusCode, header::RETRY_AFTER},
    response::{IntoResponse, Response},
};
use schemars::JsonSchema;
use serde::Serialize;
use serde_json::{Value, json};

/// The result of handling a request.
pub type Result<T, E = ApiError> = std::result::Result<T, E>;

/// Why a request failed.
#[derive(Debug, Clone)]
pub struct ApiError {
    pub status: StatusCode,
    /// The field of the request that is wrong.
    pub param: Option<String>,
    /// A word for programs.
    pub code: Option<&'static str>,
    pub message: String,
    /// The seconds after which another try may succeed.
    pub retry_after: Option<u64>,
}

/// The body of an error, as OpenAI's clients read it.
#[derive(Serialize, JsonSchema)]
pub struct ErrorBody {
    pub error: ErrorFields,
}

/// The fields of an error.
#[derive(Serialize, JsonSchema)]
pub struct ErrorFields {
    /// What was wrong, for people.
    pub message: String,
    /// The kind of error.
    #[serde(rename = "type")]
    pub kind: String,
    /// The field of the request that is wrong.
    pub param: Option<String>,
    /// A word for programs.
    pub code: Option<String>,
}

impl ApiError {
    /// Returns an error with a message.
    pub fn new(status: StatusCode, message: impl Into<String>) -> ApiError {
        ApiError {
            status,
            param: None,
            code: None,
            message: message.into(),
            retry_after: None,
        }
    }

    /// Returns an error about a field of the request.
    pub fn field(param: impl Into<String>, message: impl Into<String>) -> ApiError {
        ApiError {
            param: Some(param.into()),
            ..ApiError::new(StatusCode::BAD_REQUEST, message)
        }
    }

    /// Adds a word for programs.
    pub fn code(self, code: &'static str) -> ApiError {
        ApiError {
            code: Some(code),
            ..self
        }
    }

    /// Adds the seconds after which another try may succeed.
    pub fn retry(self, seconds: u64) -> ApiError {
        ApiError {
            retry_after: Some(seconds),
            ..self
        }
    }

    /// Names the field, unless one is named already.
    pub fn at(self, param: &str) -> ApiError {
        ApiError {
            param: self.param.or_else(|| Some(param.to_owned())),
            ..self
        }
    }

    /// Reports that the server ends.
    pub fn shutting_down() -> ApiError {
        let message = "the server is shutting down; send the request to another one";
        ApiError::new(StatusCode::SERVICE_UNAVAILABLE, message)
            .code("shutting_down")
            .retry(5)
    }

    /// Translates an error of the library. `param` is the field that has the content.
    pub fn library(error: moxin_vlm::Error, param: &str) -> ApiError {
        use moxin_vlm::Error::*;
        let message = error.to_string();
        match error {
            ContextFull { .. } => ApiError::field(param, message).code("context_length_exceeded"),
            UnsupportedImage { .. } => ApiError::field(param, message).code("invalid_image"),
            InvalidArgument(_) => {
                let param = option_in(&message).unwrap_or(param).to_owned();
                ApiError::field(param, message)
            }
            InvalidState(_) => ApiError::field(param, message),
            OutOfMemory { .. } => ApiError::new(StatusCode::SERVICE_UNAVAILABLE, message)
                .code("out_of_memory")
                .retry(10),
            Timeout => ApiError::new(
                StatusCode::SERVICE_UNAVAILABLE,
                "the answer took longer than this server allows (--max-seconds)",
            )
            .code("timeout")
            .retry(10),
            Cancelled | Suspended | Busy => ApiError::shutting_down(),
            _ => ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, message).code("internal_error"),
        }
    }

    /// Returns the kind in OpenAI's words.
    fn kind(&self) -> &'static str {
        match self.status.as_u16() {
            401 => "authentication_error",
            403 => "permission_error",
            429 => "rate_limit_error",
            500.. => "server_error",
            _ => "invalid_request_error",
        }
    }

    /// Returns the body that OpenAI's clients read.
    pub fn body(&self) -> ErrorBody {
        ErrorBody {
            error: ErrorFields {
                message: self.message.clone(),
                kind: self.kind().into(),
                param: self.param.clone(),
                code: self.code.map(str::to_owned),
            },
        }
    }

    /// Returns the body that Anthropic's clients read:
    /// <https://docs.anthropic.com/en/api/errors>.
    pub fn anthropic_body(&self) -> Value {
        let kind = match self.status.as_u16() {
            401 => "authentication_error",
            403 => "permission_error",
            404 => "not_found_error",
            413 => "request_too_large",
            429 => "rate_limit_error",
            503 => "overloaded_error",
            500.. => "api_error",
            _ => "invalid_request_error",
        };
        json!({"type": "error", "error": {"type": kind, "message": self.message}})
    }

    /// Returns a response with this body.
    fn respond(&self, body: impl Serialize) -> Response {
        let mut response = (self.status, Json(body)).into_response();
        if let Some(seconds) = self.retry_after {
            response
                .headers_mut()
                .insert(RETRY_AFTER, HeaderValue::from(seconds));
        }
        response
    }
}

/// Returns the option that a message of the library starts with.
fn option_in(message: &str) -> Option<&str> {
    let text = message
        .strip_prefix("invalid argument: ")
        .unwrap_or(message);
    let word = text.split([' ', ':']).next()?;
    let known = [
        "temperature",
        "top_k",
        "top_p",
        "min_p",
        "repetition_penalty",
        "frequency_penalty",
        "presence_penalty",
        "max_tokens",
        "max_pixels",
        "logprobs",
        "stop",
    ];
    known.contains(&word).then_some(word)
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let mut response = self.respond(self.body());
        // The layer around Anthropic's endpoints writes the body again.
        response.extensions_mut().insert(self);
        response
    }
}

/// Writes the errors of a response in Anthropic's form.
pub async fn for_anthropic(response: Response) -> Response {
    match response.extensions().get::<ApiError>().cloned() {
        Some(error) => {
            let mut written = error.respond(error.anthropic_body());
            written.extensions_mut().insert(error);
            written
        }
        None => response,
    }
}
