//! Chat templates: Jinja programs in model folders that turn messages into a prompt.
//!
//! A template is untrusted: its length, steps, depth and output are limited. It is rendered as
//! transformers renders it (<https://huggingface.co/docs/transformers/chat_templating_writing>):
//! blocks are trimmed, Python's string methods work, and `raise_exception` stops it with a message.

use std::{collections::BTreeMap, fmt, path::Path, sync::Arc};

use jiff::{ZonedDateTime, fmt::strtime};
use minijinja::{
    Environment, Error as JinjaError, ErrorKind, Value, context,
    syntax::SyntaxConfig,
    value::{Kwargs, Serde},
};
use serde_json::json;

use super::{Message, Part};
use crate::{Error, Result, file};

/// The maximum length of a template; published ones have up to about 10 KB.
const MAX_TEMPLATE_BYTES: u64 = 1 << 20;

/// The number of steps in one rendering: about one second of work.
const FUEL: u64 = 4_000_000;

/// The maximum depth of calls and blocks.
const DEPTH: usize = 100;

/// The number of output bytes allowed beyond a multiple of the messages' bytes.
const MAX_EXTRA_BYTES: usize = 1 << 20;

/// The tokenizer's settings, with the texts of tokens and possibly a template.
const CONFIG: &str = "tokenizer_config.json";

/// The name of a template in its environment.
const NAME: &str = "chat_template";

/// The form in which a template gets a message's content.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ContentStyle {
    /// One string: the texts joined together.
    Text,
    /// A list of parts, each an object with a `type`.
    Parts,
}

/// The tokens of `tokenizer_config.json` that templates may use.
/// (<https://huggingface.co/docs/transformers/main_classes/tokenizer>)
const TOKENS: [&str; 7] = [
    "bos_token",
    "eos_token",
    "unk_token",
    "sep_token",
    "pad_token",
    "cls_token",
    "mask_token",
];

/// A chat template. Cloning is cheap.
#[derive(Clone)]
pub struct Template {
    environment: Arc<Environment<'static>>,
    /// The texts of [`TOKENS`], by name.
    tokens: BTreeMap<&'static str, String>,
    /// The current time for `strftime_now`.
    now: ZonedDateTime,
}

impl Template {
    /// Reads the template of a folder: `chat_template.jinja`, or that in `chat_template.json`, or
    /// that in `tokenizer_config.json`; `None` if there is none. A `source` replaces all of them.
    ///
    /// # Errors
    /// [`Error::CorruptModel`] names the file and what is wrong with the template;
    /// [`Error::InvalidArgument`] says what is wrong with `source`.
    pub fn from_folder(folder: &Path, source: Option<&str>) -> Result<Option<Template>> {
        let config = read_json(&folder.join(CONFIG))?.unwrap_or_default();
        let tokens: BTreeMap<_, _> = TOKENS
            .into_iter()
            .filter_map(|name| Some((name, token(&config[name])?)))
            .collect();
        let of = |path: &Path, source: &str| {
            let template =
                Template::parse(source).map_err(|error| Error::corrupt(path, error.to_string()))?;
            Ok(Some(Template {
                tokens: tokens.clone(),
                ..template
            }))
        };
        if let Some(source) = source {
            return Ok(Some(Template {
                tokens,
                ..Template::parse(source)?
            }));
        }
        let path = folder.join("chat_template.jinja");
        if let Some(source) = read(&path)? {
            return of(&path, &source);
        }
        let path = folder.join("chat_template.json");
        let json = read_json(&path)?.unwrap_or_default();
        for (path, json) in [(path, &json), (folder.join(CONFIG), &config)] {
            if let Some(source) = named(&json["chat_template"]) {
                return of(&path, source);
            }
        }
        Ok(None)
    }

    /// Parses a template.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] with the line of the error.
    pub fn parse(source: &str) -> Result<Template> {
        if source.len() as u64 > MAX_TEMPLATE_BYTES {
            let what = format!(
                "a chat template of {} bytes; at most {MAX_TEMPLATE_BYTES} are supported",
                source.len()
            );
            return Err(Error::InvalidArgument(what));
        }
        let mut environment = Environment::new();
        let syntax = SyntaxConfig::builder()
            .trim_blocks(true)
            .lstrip_blocks(true)
            .build();
        environment.set_syntax(
            syntax
                .map_err(|error| Error::InvalidArgument(format!("the chat template: {error}")))?,
        );
        environment.set_fuel(Some(FUEL));
        environment.set_recursion_limit(DEPTH);
        environment
            .set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
        environment.add_function(
            "raise_exception",
            |message: String| -> Result<Value, JinjaError> {
                Err(JinjaError::new(ErrorKind::InvalidOperation, message).with_source(Raised))
            },
        );
        environment.add_filter("tojson", to_json);
        let source = without_generation(source);
        let added = environment.add_template_owned(NAME, source);
        added.map_err(|error| Error::InvalidArgument(format!("the chat template: {error}")))?;
        Ok(Template {
            environment: Arc::new(environment),
            tokens: BTreeMap::new(),
            now: ZonedDateTime::now(),
        })
    }

    /// Returns the same template with `now` as the fixed current time for `strftime_now`.
    pub fn at(self, now: ZonedDateTime) -> Template {
        Template { now, ..self }
    }

    /// Renders messages. With `answers`, the prompt continues up to the start of the answer.
    ///
    /// # Errors
    /// [`Error::InvalidState`] with the template's own message, if it refuses this conversation;
    /// [`Error::UnsupportedModel`] if it fails or does not end.
    pub fn render(
        &self,
        messages: &[Message],
        style: ContentStyle,
        answers: bool,
    ) -> Result<String> {
        let bytes: usize = messages.iter().map(Message::bytes).sum();
        let messages: Vec<_> = messages
            .iter()
            .map(|message| to_template(message, style))
            .collect();
        let limit = bytes.saturating_mul(4).saturating_add(MAX_EXTRA_BYTES);
        let template = self
            .environment
            .get_template(NAME)
            .map_err(|error| failed(&error))?;
        let context = context! {
            messages => Value::from(Serde(&messages)),
            add_generation_prompt => answers,
            // transformers passes these as None, which differs from undefined.
            tools => (),
            documents => (),
            strftime_now => self.clock(),
            ..Value::from(Serde(&self.tokens))
        };
        let mut output = Limited {
            text: Vec::new(),
            limit,
        };
        template
            .render_captured_to(context, &mut output)
            .map_err(|error| failed(&error))?;
        String::from_utf8(output.text)
            .map_err(|_| Error::InvalidState("the chat template writes invalid UTF-8".into()))
    }

    /// Returns `strftime_now`, which formats the time as Python's `strftime` does.
    fn clock(&self) -> Value {
        let now = self.now.clone();
        Value::from_function(move |format: String| {
            strtime::format(format, &now)
                .map_err(|error| JinjaError::new(ErrorKind::InvalidOperation, error.to_string()))
        })
    }
}

impl fmt::Debug for Template {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Template")
            .field("tokens", &self.tokens)
            .finish_non_exhaustive()
    }
}

/// Marks an error raised by the template itself.
#[derive(Debug)]
struct Raised;

impl fmt::Display for Raised {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("raised by the template")
    }
}

impl std::error::Error for Raised {}

fn failed(error: &JinjaError) -> Error {
    let raised = std::error::Error::source(error).is_some_and(|source| source.is::<Raised>());
    match raised {
        true => Error::InvalidState(format!(
            "the model's chat template: {}",
            error.detail().unwrap_or("it refuses this conversation")
        )),
        false => Error::InvalidState(format!("the model's chat template fails: {error}")),
    }
}

/// The output of a template, with a size limit.
struct Limited {
    text: Vec<u8>,
    limit: usize,
}

impl std::io::Write for Limited {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        if self.text.len() + bytes.len() > self.limit {
            return Err(std::io::Error::other(format!(
                "it writes more than {} bytes",
                self.limit
            )));
        }
        self.text.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// A message as templates receive it, with fields in the order in which programs write them.
#[derive(serde::Serialize)]
struct Said {
    role: &'static str,
    content: serde_json::Value,
}

fn to_template(message: &Message, style: ContentStyle) -> Said {
    let part = |part: &Part| match part {
        Part::Text(text) => json!({ "type": "text", "text": text }),
        Part::Image => json!({ "type": "image" }),
        Part::Video => json!({ "type": "video" }),
    };
    let content = match style {
        ContentStyle::Text => json!(message.text("")),
        ContentStyle::Parts => message.parts.iter().map(part).collect(),
    };
    Said {
        role: message.role.name(),
        content,
    }
}

/// Python's `json.dumps`, as transformers calls it: spaces after commas and colons, no escaping of
/// non-ASCII characters.
fn to_json(value: Value, options: Kwargs) -> Result<String, JinjaError> {
    let wrong =
        |error: serde_json::Error| JinjaError::new(ErrorKind::BadSerialization, error.to_string());
    let indent: Option<usize> = options.get("indent")?;
    let mut text = Vec::new();
    match indent {
        Some(indent) => {
            let spaces = vec![b' '; indent.min(16)];
            let formatter = serde_json::ser::PrettyFormatter::with_indent(&spaces);
            serde::Serialize::serialize(
                &value,
                &mut serde_json::Serializer::with_formatter(&mut text, formatter),
            )
            .map_err(wrong)?;
        }
        None => {
            serde::Serialize::serialize(
                &value,
                &mut serde_json::Serializer::with_formatter(&mut text, Spaced),
            )
            .map_err(wrong)?;
        }
    }
    String::from_utf8(text)
        .map_err(|error| JinjaError::new(ErrorKind::BadSerialization, error.to_string()))
}

/// JSON with spaces after commas and colons.
struct Spaced;

impl serde_json::ser::Formatter for Spaced {
    fn begin_array_value<W: ?Sized + std::io::Write>(
        &mut self,
        writer: &mut W,
        first: bool,
    ) -> std::io::Result<()> {
        if first {
            Ok(())
        } else {
            writer.write_all(b", ")
        }
    }

    fn begin_object_key<W: ?Sized + std::io::Write>(
        &mut self,
        writer: &mut W,
        first: bool,
    ) -> std::io::Result<()> {
        self.begin_array_value(writer, first)
    }

    fn begin_object_value<W: ?Sized + std::io::Write>(
        &mut self,
        writer: &mut W,
    ) -> std::io::Result<()> {
        writer.write_all(b": ")
    }
}

/// Removes `{% generation %}` and `{% endgeneration %}`, with which transformers marks the
/// assistant's text for training.
fn without_generation(source: &str) -> String {
    let mut rest = source;
    let mut kept = String::with_capacity(source.len());
    while let Some(start) = rest.find("{%") {
        // After the opening characters: `{%}` is not a closed tag.
        let Some(length) = rest[start + 2..].find("%}") else {
            break;
        };
        let end = start + 2 + length + 2;
        let tag = &rest[start + 2..end - 2];
        let word = tag.trim_matches(|c: char| c == '-' || c == '+' || c.is_whitespace());
        if matches!(word, "generation" | "endgeneration") {
            // White space that is trimmed with a tag is trimmed with its replacement.
            kept.push_str(&rest[..start]);
            let (open, close) = (tag.starts_with('-'), tag.ends_with('-'));
            kept.push_str(if open {
                "{%- if true %}"
            } else {
                "{% if true %}"
            });
            kept.push_str(if close { "{% endif -%}" } else { "{% endif %}" });
        } else {
            kept.push_str(&rest[..end]);
        }
        rest = &rest[end..];
    }
    kept + rest
}

fn read(path: &Path) -> Result<Option<String>> {
    match file::read_json(path, "the model's chat template", MAX_TEMPLATE_BYTES) {
        Ok(bytes) => String::from_utf8(bytes)
            .map(Some)
            .map_err(|_| Error::corrupt(path, "is not UTF-8")),
        Err(Error::NotFound { .. }) => Ok(None),
        Err(error) => Err(error),
    }
}

fn read_json(path: &Path) -> Result<Option<serde_json::Value>> {
    match crate::checkpoint::read_json(path, "the tokenizer's settings") {
        Ok(json) => Ok(Some(json)),
        Err(Error::NotFound { .. }) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Returns a token of `tokenizer_config.json`: a string, or an object with its `content`.
fn token(value: &serde_json::Value) -> Option<String> {
    value
        .as_str()
        .or_else(|| value["content"].as_str())
        .map(str::to_owned)
}

/// Returns the only template, or the one named `default`.
fn named(value: &serde_json::Value) -> Option<&str> {
    let default =
        |list: &'_ Vec<serde_json::Value>| list.iter().position(|entry| entry["name"] == "default");
    match value {
        serde_json::Value::String(source) => Some(source),
        serde_json::Value::Array(list) => list.get(default(list)?)?["template"].as_str(),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn marks_for_training_are_left_out() {
        for (source, expected) in [
            ("a{% generation %}b{% endgeneration %}c", "abc"),
            ("a {%- generation -%} b {%- endgeneration %}c", "abc"),
            ("{% if true %}x{% endif %}", "x"),
        ] {
            let template = Template::parse(source).unwrap();
            assert_eq!(
                template.render(&[], ContentStyle::Text, false).unwrap(),
                expected,
                "{source}"
            );
        }
        assert!(Template::parse("{% if true %}{%}x{% endif %}").is_err());
    }

    /// The output of Python's `json.dumps(x, ensure_ascii=False)`, with and without `indent=2`.
    #[test]
    fn json_is_that_of_python() {
        let template = Template::parse(
            "{{ messages[0] | tojson }}\n{{ messages[0].role | tojson(indent=2) }}",
        )
        .unwrap();
        let rendered = template
            .render(&[Message::user("größer \"x\"")], ContentStyle::Text, false)
            .unwrap();
        assert_eq!(
            rendered,
            "{\"role\": \"user\", \"content\": \"größer \\\"x\\\"\"}\n\"user\""
        );
    }
}
