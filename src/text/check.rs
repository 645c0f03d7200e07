//! Checks the steps of a `tokenizer.json` before `tokenizers` builds anything from it.
//!
//! Each step of a tokenizer may make a text longer, and steps multiply: three steps that each
//! replace one character with a thousand turn a short prompt into gigabytes. The maximum growth of
//! each chain of steps is therefore computed, and a tokenizer far above real ones is refused. The
//! highest real ones are SentencePiece's NFKC tables with 33, Llama and Mistral with 12, and Qwen
//! with 6.

use std::path::Path;

use regex_syntax::Parser;
use serde::Deserialize;
use serde_json::Value;

use crate::{Error, Result};

/// The maximum number of bytes that the normalizer, the pre-tokenizer or the decoder may make from
/// one.
const MAX_GROWTH: usize = 64;

/// The maximum number of steps in a chain.
const MAX_STEPS: usize = 64;

/// The maximum number of bytes in a pattern, or in an affix that the model adds to a part of a
/// word.
const MAX_PATTERN: usize = 4096;

/// The maximum number of tokens that the post-processor may add around a text.
const MAX_FRAME: usize = 64;

/// The maximum number of tokens outside the model's own vocabulary.
const MAX_ADDED: usize = 1 << 16;

/// The maximum number of bytes in their spellings together, normalized if they are to be. The
/// automata that find them take a hundred times as much memory.
const MAX_ADDED_BYTES: usize = 4 << 20;

/// The maximum number of bytes in a token. The longest of real vocabularies have about 256.
pub const MAX_TOKEN: usize = 1024;

/// The results of the checks.
pub struct Findings {
    /// The maximum number of bytes that normalizer and pre-tokenizer make from one.
    pub growth: usize,
    /// The token for unknown text, by its spelling or its id.
    pub unk_token: Option<String>,
    pub unk_id: Option<u32>,
}

/// The checked parts of a `tokenizer.json`.
#[derive(Deserialize)]
struct Parts {
    #[serde(default)]
    normalizer: Value,
    #[serde(default)]
    pre_tokenizer: Value,
    #[serde(default)]
    post_processor: Value,
    #[serde(default)]
    decoder: Value,
    #[serde(default)]
    added_tokens: Vec<Added>,
    model: Model,
}

#[derive(Deserialize)]
struct Added {
    content: String,
    #[serde(default)]
    normalized: bool,
}

#[derive(Deserialize)]
struct Model {
    dropout: Option<f64>,
    continuing_subword_prefix: Option<String>,
    end_of_word_suffix: Option<String>,
    max_input_chars_per_word: Option<u64>,
    unk_token: Option<String>,
    unk_id: Option<u32>,
}

/// Checks the text of a `tokenizer.json`.
///
/// # Errors
/// [`Error::UnsupportedModel`] naming the field for something that no real tokenizer does;
/// [`Error::CorruptModel`] if it is not a tokenizer.
pub fn check(path: &Path, bytes: &[u8]) -> Result<Findings> {
    let parts: Parts = serde_json::from_slice(bytes)
        .map_err(|e| Error::corrupt(path, format!("not a usable tokenizer: {e}")))?;
    let explain = |wrong| match wrong {
        Wrong::Unsupported(what) => Error::unsupported(path, what),
        Wrong::Corrupt(what) => Error::corrupt(path, what),
    };
    parts.check().map_err(explain)
}

/// What is wrong with a field.
enum Wrong {
    Unsupported(String),
    Corrupt(String),
}

type Checked<T> = std::result::Result<T, Wrong>;

impl Parts {
    fn check(self) -> Checked<Findings> {
        let normalizer =
            Chain::new("normalizers", normalizer_growth).growth(&self.normalizer, "normalizer")?;
        let pre_tokenizer = Chain::new("pretokenizers", pre_tokenizer_growth)
            .growth(&self.pre_tokenizer, "pre_tokenizer")?;
        Chain::new("decoders", decoder_growth).growth(&self.decoder, "decoder")?;
        let frame = frame_tokens(&self.post_processor, "post_processor")?;
        at_most("post_processor", "tokens around a text", frame, MAX_FRAME)?;
        self.check_added(normalizer)?;
        self.model.check()?;
        Ok(Findings {
            growth: normalizer * pre_tokenizer,
            unk_token: self.model.unk_token,
            unk_id: self.model.unk_id,
        })
    }

    fn check_added(&self, growth: usize) -> Checked<()> {
        at_most("added_tokens", "tokens", self.added_tokens.len(), MAX_ADDED)?;
        for (i, token) in self.added_tokens.iter().enumerate() {
            at_most(
                &format!("added_tokens[{i}].content"),
                "bytes",
                token.content.len(),
                MAX_TOKEN,
            )?;
        }
        let bytes = self
            .added_tokens
            .iter()
            .map(|token| token.content.len() * if token.normalized { growth } else { 1 });
        at_most("added_tokens", "bytes in all", bytes.sum(), MAX_ADDED_BYTES)
    }
}

impl Model {
    fn check(&self) -> Checked<()> {
        if self.dropout.is_some_and(|dropout| dropout != 0.0) {
            return Err(Wrong::Unsupported(
                "model.dropout makes the tokens of a text random; expected null".into(),
            ));
        }
        for (name, affix) in [
            ("continuing_subword_prefix", &self.continuing_subword_prefix),
            ("end_of_word_suffix", &self.end_of_word_suffix),
        ] {
            at_most(
                &format!("model.{name}"),
                "bytes",
                affix.as_ref().map_or(0, String::len),
                MAX_GROWTH,
            )?;
        }
        let word = self.max_input_chars_per_word.unwrap_or(0);
        at_most(
            "model.max_input_chars_per_word",
            "characters",
            word.try_into().unwrap_or(usize::MAX),
            MAX_TOKEN,
        )
    }
}

/// Walks through the steps of one field.
struct Chain {
    /// The name of the list in a `Sequence`.
    list: &'static str,
    /// Returns the maximum number of bytes that one step makes from one.
    step: fn(&str, &Value, &str) -> Checked<usize>,
    steps: usize,
}

impl Chain {
    fn new(list: &'static str, step: fn(&str, &Value, &str) -> Checked<usize>) -> Chain {
        Chain {
            list,
            step,
            steps: 0,
        }
    }

    /// Returns the maximum number of bytes that a field's steps together make from one.
    fn growth(&mut self, value: &Value, field: &str) -> Checked<usize> {
        if value.is_null() {
            return Ok(1);
        }
        self.steps += 1;
        at_most(field, "steps", self.steps, MAX_STEPS)?;
        let kind = text(value, "type", field)?;
        let growth = match kind {
            "Sequence" => self.sequence(value, field)?,
            kind => (self.step)(kind, value, field)?,
        };
        within_growth(field, growth)
    }

    fn sequence(&mut self, value: &Value, field: &str) -> Checked<usize> {
        let mut growth = 1;
        for (i, step) in list(value, self.list, field)?.iter().enumerate() {
            let field = format!("{field}.{}[{i}]", self.list);
            growth = within_growth(&field, growth * self.growth(step, &field)?)?;
        }
        Ok(growth)
    }
}

fn within_growth(field: &str, growth: usize) -> Checked<usize> {
    match growth {
        1..=MAX_GROWTH => Ok(growth),
        _ => Err(Wrong::Unsupported(format!(
            "{field} can make a text {growth} times as long; expected at most {MAX_GROWTH} times"
        ))),
    }
}

/// The factors of Unicode's normal forms are those of its FAQ on normalization. A step may be
/// applied to each stretch between two added tokens, even of one byte, so that a prefix counts in
/// full.
fn normalizer_growth(kind: &str, step: &Value, field: &str) -> Checked<usize> {
    Ok(match kind {
        "Strip" | "StripAccents" | "Nmt" => 1,
        "NFC" | "NFD" => 3,
        "NFKC" | "NFKD" => 11,
        "Lowercase" | "ByteLevel" => 2,
        // Spaces around each Chinese character, decomposed accents, lower case.
        "Bert" => 8,
        "Prepend" => 1 + text(step, "prepend", field)?.len(),
        "Replace" => replace_growth(step, field)?,
        "Precompiled" => longest_replacement(text(step, "precompiled_charsmap", field)?, field)?,
        _ => return Err(unknown_type(kind, field)),
    })
}

fn pre_tokenizer_growth(kind: &str, step: &Value, field: &str) -> Checked<usize> {
    Ok(match kind {
        // A space before each part, then up to two bytes per byte.
        "ByteLevel" if step["add_prefix_space"] != Value::Bool(false) => 4,
        "ByteLevel" => 2,
        // The replacement for each space, and one at the start.
        "Metaspace" => 2 * text(step, "replacement", field)?.len().max(1),
        "Split" => {
            pattern(step, field)?;
            1
        }
        "BertPreTokenizer" | "CharDelimiterSplit" | "Delimiter" | "Digits" | "FixedLength"
        | "Punctuation" | "UnicodeScripts" | "Whitespace" | "WhitespaceSplit" => 1,
        _ => return Err(unknown_type(kind, field)),
    })
}

fn decoder_growth(kind: &str, step: &Value, field: &str) -> Checked<usize> {
    Ok(match kind {
        "Replace" => match pattern(step, field)? {
            Pattern::Regex(_) => {
                return Err(Wrong::Unsupported(format!(
                    "{field}.pattern is a regular expression; expected a string in a decoder"
                )));
            }
            Pattern::String(_) => replace_growth(step, field)?,
        },
        "ByteFallback" | "Fuse" | "Metaspace" | "Strip" => 1,
        // A space for each token, or for an empty delimiter between all characters; U+FFFD for a
        // byte that belongs to no character.
        "BPEDecoder" | "WordPiece" | "CTC" | "ByteLevel" => 2,
        _ => return Err(unknown_type(kind, field)),
    })
}

/// Returns the growth of a `Replace` step: its content for the shortest text that its pattern
/// matches.
fn replace_growth(step: &Value, field: &str) -> Checked<usize> {
    let content = text(step, "content", field)?.len();
    let shortest = match pattern(step, field)? {
        Pattern::String(pattern) => pattern.len(),
        // Patterns that this parser does not support are run by `fancy-regex` with backtracking,
        // which takes unbounded time.
        Pattern::Regex(pattern) => match Parser::new().parse(pattern) {
            Ok(hir) => hir.properties().minimum_len().unwrap_or(1),
            Err(error) => {
                let why = error
                    .to_string()
                    .lines()
                    .last()
                    .unwrap_or_default()
                    .to_owned();
                return Err(Wrong::Unsupported(format!(
                    "{field}.pattern is not a plain regular expression: {why}"
                )));
            }
        },
    };
    Ok(match shortest {
        0 => 1 + content,
        shortest => content.div_ceil(shortest).max(1),
    })
}

enum Pattern<'a> {
    String(&'a str),
    Regex(&'a str),
}

fn pattern<'a>(step: &'a Value, field: &str) -> Checked<Pattern<'a>> {
    let pattern = match (&step["pattern"]["String"], &step["pattern"]["Regex"]) {
        (Value::String(string), Value::Null) => Pattern::String(string),
        (Value::Null, Value::String(regex)) => Pattern::Regex(regex),
        _ => {
            return Err(Wrong::Corrupt(format!(
                "{field}.pattern is neither a String nor a Regex"
            )));
        }
    };
    let (Pattern::String(text) | Pattern::Regex(text)) = pattern;
    at_most(
        &format!("{field}.pattern"),
        "bytes",
        text.len(),
        MAX_PATTERN,
    )?;
    Ok(pattern)
}

/// Returns the longest replacement in one of SentencePiece's tables: its size, a trie of that size,
/// then the replacements, each ended by a NUL.
fn longest_replacement(table: &str, field: &str) -> Checked<usize> {
    let bytes = base64::decode(table)
        .map_err(|e| Wrong::Corrupt(format!("{field}.precompiled_charsmap: {e}")))?;
    let replacements = bytes
        .split_first_chunk::<4>()
        .and_then(|(size, rest)| rest.get(u32::from_le_bytes(*size) as usize..));
    let replacements = replacements
        .ok_or_else(|| Wrong::Corrupt(format!("{field}.precompiled_charsmap is cut short")))?;
    Ok(replacements
        .split(|byte| *byte == 0)
        .map(<[u8]>::len)
        .max()
        .unwrap_or(0)
        .max(1))
}

/// Returns the number of tokens that a post-processor adds around a text.
fn frame_tokens(value: &Value, field: &str) -> Checked<usize> {
    if value.is_null() {
        return Ok(0);
    }
    match text(value, "type", field)? {
        "ByteLevel" => Ok(0),
        "BertProcessing" | "RobertaProcessing" => Ok(2),
        "TemplateProcessing" => template_tokens(value, field),
        "Sequence" => {
            let steps = list(value, "processors", field)?;
            at_most(field, "steps", steps.len(), MAX_STEPS)?;
            let mut counts = steps
                .iter()
                .enumerate()
                .map(|(i, step)| frame_tokens(step, &format!("{field}.processors[{i}]")));
            counts.try_fold(0, |sum: usize, count| Ok(sum.saturating_add(count?)))
        }
        kind => Err(unknown_type(kind, field)),
    }
}

fn template_tokens(value: &Value, field: &str) -> Checked<usize> {
    let pieces = list(value, "single", field)?;
    at_most(
        &format!("{field}.single"),
        "pieces",
        pieces.len(),
        MAX_FRAME,
    )?;
    let (mut tokens, mut texts) = (0, 0);
    for (i, piece) in pieces.iter().enumerate() {
        let field = format!("{field}.single[{i}]");
        match (piece.get("Sequence"), piece.get("SpecialToken")) {
            (Some(sequence), None) if sequence["id"] == "A" => texts += 1,
            (None, Some(token)) => {
                let id = text(token, "id", &field)?;
                match value["special_tokens"][id]["ids"].as_array() {
                    Some(ids) => tokens += ids.len(),
                    None => {
                        return Err(Wrong::Corrupt(format!(
                            "{field} is {id:?}, which is not in special_tokens"
                        )));
                    }
                }
            }
            _ => {
                return Err(Wrong::Corrupt(format!(
                    "{field} is neither the text, \"A\", nor a special token"
                )));
            }
        }
    }
    match texts {
        1 => Ok(tokens),
        _ => Err(Wrong::Corrupt(format!(
            "{field}.single has the text {texts} times; expected once"
        ))),
    }
}

fn text<'a>(value: &'a Value, name: &str, field: &str) -> Checked<&'a str> {
    value[name]
        .as_str()
        .ok_or_else(|| Wrong::Corrupt(format!("{field}.{name} is not a text")))
}

fn list<'a>(value: &'a Value, name: &str, field: &str) -> Checked<&'a [Value]> {
    value[name]
        .as_array()
        .map(Vec::as_slice)
        .ok_or_else(|| Wrong::Corrupt(format!("{field}.{name} is not a list")))
}

fn at_most(field: &str, what: &str, found: usize, limit: usize) -> Checked<()> {
    if found > limit {
        return Err(Wrong::Unsupported(format!(
            "{field} has {found} {what}; expected at most {limit}"
        )));
    }
    Ok(())
}

fn unknown_type(kind: &str, field: &str) -> Wrong {
    Wrong::Corrupt(format!("{field}.type is {kind:?}, which is unknown"))
}
