//! Requests as JSON: their size, type and fields are checked, and errors name the field.

use std::time::Duration;

use axum::{
    body::{Body, Bytes, to_bytes},
    extract::Request,
    http::{HeaderMap, StatusCode, header},
};
use base64::{
    Engine,
    alphabet::STANDARD,
    engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig},
};
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};
use tokio::{sync::OwnedSemaphorePermit, time::timeout};

use crate::{
    app::App,
    error::{ApiError, Result},
};

/// A request, and the room for its content, which others get when it is dropped.
pub struct Received<T> {
    pub content: T,
    _room: OwnedSemaphorePermit,
}

/// Receives a request.
///
/// # Errors
/// 415 unless it is JSON; 413 if it is too large; 408 if it takes too long; 503 if all requests
/// together are too large; 400 naming the field.
pub async fn receive<T: DeserializeOwned>(app: &App, request: Request) -> Result<Received<T>> {
    let (parts, body) = request.into_parts();
    check_type(&parts.headers)?;
    let most = app.limits.body_bytes();
    let length = length(&parts.headers).unwrap_or(most);
    if length > most {
        return Err(too_large(app));
    }
    let room = app.reserve(length)?;
    let bytes = read(app, body, most).await?;
    Ok(Received {
        content: parse(&bytes)?,
        _room: room,
    })
}

fn check_type(headers: &HeaderMap) -> Result<()> {
    let kind = headers
        .get(header::CONTENT_TYPE)
        .and_then(|value| value.to_str().ok())
        .unwrap_or("none");
    let essence = kind.split(';').next().unwrap_or_default().trim();
    if essence.eq_ignore_ascii_case("application/json") {
        return Ok(());
    }
    Err(ApiError::new(
        StatusCode::UNSUPPORTED_MEDIA_TYPE,
        format!("the Content-Type is {kind}; application/json is expected"),
    ))
}

fn length(headers: &HeaderMap) -> Option<usize> {
    headers
        .get(header::CONTENT_LENGTH)?
        .to_str()
        .ok()?
        .parse()
        .ok()
}

async fn read(app: &App, body: Body, most: usize) -> Result<Bytes> {
    let limit = Duration::from_secs(app.limits.body_seconds);
    match timeout(limit, to_bytes(body, most)).await {
        Ok(Ok(bytes)) => Ok(bytes),
        Ok(Err(error)) if is_limit(&error) => Err(too_large(app)),
        Ok(Err(error)) => Err(ApiError::new(
            StatusCode::BAD_REQUEST,
            format!("the request could not be read: {error}"),
        )),
        Err(_) => Err(ApiError::new(
            StatusCode::REQUEST_TIMEOUT,
            format!(
                "the request did not arrive within {} seconds (--body-seconds)",
                limit.as_secs()
            ),
        )),
    }
}

/// Returns whether a body was longer than its limit, rather than broken.
fn is_limit(error: &axum::Error) -> bool {
    let mut cause: Option<&dyn std::error::Error> = Some(error);
    while let Some(error) = cause {
        if error.to_string().contains("length limit") {
            return true;
        }
        cause = error.source();
    }
    false
}

fn too_large(app: &App) -> ApiError {
    ApiError::new(
        StatusCode::PAYLOAD_TOO_LARGE,
        format!(
            "the request is larger than {} MiB (--max-body)",
            app.limits.max_body
        ),
    )
}

/// Reads JSON; an error names the field by its path, such as `messages[0].content`.
fn parse<T: DeserializeOwned>(bytes: &[u8]) -> Result<T> {
    let mut deserializer = serde_json::Deserializer::from_slice(bytes);
    let value = serde_path_to_error::deserialize(&mut deserializer).map_err(|error| {
        let path = error.path().to_string();
        let message = error.inner().to_string();
        let field = match path.as_str() {
            "." | "?" => quoted(&message).map(str::to_owned),
            path => Some(path.to_owned()),
        };
        match (error.inner().is_data(), field) {
            (true, Some(field)) => {
                let message = format!("{field}: {message}");
                ApiError::field(field, message)
            }
            (true, None) => ApiError::new(StatusCode::BAD_REQUEST, message),
            (false, _) => ApiError::new(
                StatusCode::BAD_REQUEST,
                format!("the request is not valid JSON: {message}"),
            ),
        }
    })?;
    deserializer.end().map_err(|error| {
        ApiError::new(
            StatusCode::BAD_REQUEST,
            format!("the request is not valid JSON: {error}"),
        )
    })?;
    Ok(value)
}

/// Returns the name in a message such as "missing field `messages`".
fn quoted(message: &str) -> Option<&str> {
    message.split('`').nth(1)
}

/// Refuses fields that ask for something this server does not do. Those in `ignored` need no
/// effect; those in `harmless` are accepted if their value asks for nothing.
pub fn refuse_rest(
    rest: &Map<String, Value>,
    at: &str,
    ignored: &[&str],
    harmless: &[(&str, &[&str])],
) -> Result<()> {
    for (name, value) in rest {
        let asks_nothing = match value {
            Value::Null | Value::Bool(false) => true,
            Value::Array(items) => items.is_empty(),
            Value::Object(fields) => fields.is_empty(),
            _ => false,
        };
        if asks_nothing || ignored.contains(&name.as_str()) {
            continue;
        }
        let allowed = harmless
            .iter()
            .find(|(harmless, _)| harmless == name)
            .map_or(&[][..], |(_, values)| values);
        if allowed.iter().any(|allowed| {
            serde_json::from_str(allowed).is_ok_and(|allowed: Value| allowed == *value)
        }) {
            continue;
        }
        let field = match at {
            "" => name.clone(),
            at => format!("{at}.{name}"),
        };
        let message = format!("{field} is not supported by this server");
        return Err(ApiError::field(field, message).code("unsupported_parameter"));
    }
    Ok(())
}

/// Decodes base64, with or without line breaks and padding.
pub fn base64(text: &str, field: &str) -> Result<Vec<u8>> {
    const CONFIG: GeneralPurposeConfig =
        GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent);
    let text: Vec<u8> = text
        .bytes()
        .filter(|byte| !byte.is_ascii_whitespace())
        .collect();
    GeneralPurpose::new(&STANDARD, CONFIG)
        .decode(text)
        .map_err(|error| ApiError::field(field, format!("{field} is not valid base64: {error}")))
}

#[cfg(test)]
mod tests {
    use serde::Deserialize;

    use super::*;

    #[derive(Debug, Deserialize)]
    struct Sample {
        #[allow(dead_code)]
        list: Vec<u32>,
        #[serde(flatten)]
        rest: Map<String, Value>,
    }

    #[test]
    fn errors_name_the_field() {
        let error = |text: &str| parse::<Sample>(text.as_bytes()).unwrap_err();
        assert_eq!(error(r#"{"list": [1, -1]}"#).param.unwrap(), "list[1]");
        assert_eq!(error("{}").param.unwrap(), "list");
        for text in [
            "",
            "{",
            "{\"list\": [NaN]}",
            "{\"list\": []} x",
            "\u{1}",
            "[]",
        ] {
            assert_eq!(error(text).status, 400, "{text}");
        }
        let deep = "[".repeat(100_000);
        assert_eq!(error(&format!("{{\"list\": {deep}")).status, 400);
        assert_eq!(
            parse::<Sample>(b"{\"list\": [], \"\xff\": 1}")
                .unwrap_err()
                .status,
            400
        );
    }

    #[test]
    fn what_is_not_done_is_refused() {
        let check = |text: &str| {
            let sample: Sample = parse(text.as_bytes()).unwrap();
            refuse_rest(
                &sample.rest,
                "",
                &["user"],
                &[("choice", &["\"none\"", "{\"a\":1}"])],
            )
        };
        assert!(check(r#"{"list": [], "user": "me", "tools": [], "x": null, "y": false}"#).is_ok());
        assert!(check(r#"{"list": [], "choice": "none"}"#).is_ok());
        assert!(check(r#"{"list": [], "choice": {"a": 1}}"#).is_ok());
        let error = check(r#"{"list": [], "choice": "auto"}"#).unwrap_err();
        assert_eq!(error.param.unwrap(), "choice");
        assert!(check(r#"{"list": [], "tools": [1]}"#).is_err());
    }

    #[test]
    fn base64_may_have_line_breaks() {
        for text in ["aGVsbG8=", "aGVs\r\nbG8=", "aGVsbG8", " aGVsbG8=\n"] {
            assert_eq!(base64(text, "url").unwrap(), b"hello", "{text:?}");
        }
        assert_eq!(base64("a*b", "url").unwrap_err().param.unwrap(), "url");
    }
}
