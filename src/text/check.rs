//! What a `tokenizer.json` may ask for, checked before `tokenizers` builds anything of it.
//!
//! Each step of a tokenizer may make a text longer, and steps multiply: three that put a thousand
//! characters in the place of one turn a short prompt into gigabytes. So the most that each chain
//! of steps can make of a byte is computed, and a tokenizer that is far above what real ones need
//! is refused. The highest of those are SentencePiece's NFKC tables with 33, Llama and Mistral with
//! 12, Qwen with 6.

use std::path::Path;

use regex_syntax::Parser;
use serde::Deserialize;
use serde_json::Value;

use crate::{Error, Result};

/// The most bytes that the normalizer, the pre-tokenizer or the decoder may make of one.
const MAX_GROWTH: usize = 64;

/// The most steps of one chain.
const MAX_STEPS: usize = 64;

/// The most bytes of a pattern, or of an affix that the model puts to a part of a word.
const MAX_PATTERN: usize = 4096;

/// The most tokens that the post-processor may put around a text.
const MAX_FRAME: usize = 64;

/// The most tokens beside the model's own vocabulary.
const MAX_ADDED: usize = 1 << 16;

/// The most bytes of their spellings together, normalized where they are to be. The automata that
/// find them take a hundred times as much.
const MAX_ADDED_BYTES: usize = 4 << 20;

/// The most bytes of a token. The longest of real vocabularies have some 256.
pub const MAX_TOKEN: usize = 1024;

/// What the checks found out.
pub struct Findings {
    /// The most bytes that normalizer and pre-tokenizer make of one.
    pub growth: usize,
    /// The token for what the vocabulary lacks, by its spelling or its id.
    pub unk_token: Option<String>,
    pub unk_id: Option<u32>,
}

/// The parts of a `tokenizer.json` that are checked.
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
/// [`Error::UnsupportedModel`] naming the field for what no real tokenizer asks for,
/// [`Error::CorruptModel`] for what is no tokenizer.
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
                "model.dropout makes the tokens of a text random; null is expected".into(),
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
    /// The most bytes that one step makes of one.
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

    /// The most bytes that a field's steps together make of one.
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
            "{field} can make a text {growth} times as long; at most {MAX_GROWTH} times is expected"
        ))),
    }
}

/// The figures of Unicode's normal forms are those of its FAQ on normalization. A step may be
/// applied to each stretch between two added tokens, one byte long, so that what is put in front of
/// a text counts in full.
fn normalizer_growth(kind: &str, step: &Value, field: &str) -> Checked<usize> {
    Ok(match kind {
        "Strip" | "StripAccents" | "Nmt" => 1,
        "NFC" | "NFD" => 3,
        "NFKC" | "NFKD" => 11,
        "Lowercase" | "ByteLevel" => 2,
        // Spaces around each Chinese character, accents decomposed, lower case.
        "Bert" => 8,
        "Prepend" => 1 + text(step, "prepend", field)?.len(),
        "Replace" => replace_growth(step, field)?,
        "Precompiled" => longest_replacement(text(step, "precompiled_charsmap", field)?, field)?,
        _ => return Err(unknown_type(kind, field)),
    })
}

fn pre_tokenizer_growth(kind: &str, step: &Value, field: &str) -> Checked<usize> {
    Ok(match kind {
        // A space in front of each part, then up to two bytes for one.
        "ByteLevel" if step["add_prefix_space"] != Value::Bool(false) => 4,
        "ByteLevel" => 2,
        // The replacement for each space, and one in front.
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
                    "{field}.pattern is a regular expression; in a decoder a string is expected"
                )));
            }
            Pattern::String(_) => replace_growth(step, field)?,
        },
        "ByteFallback" | "Fuse" | "Metaspace" | "Strip" => 1,
        // A space for each token, or for an empty delimiter between all characters; U+FFFD for a
        // byte that is none of a character's.
        "BPEDecoder" | "WordPiece" | "CTC" | "ByteLevel" => 2,
        _ => return Err(unknown_type(kind, field)),
    })
}

/// What a `Replace` step can make of a byte: of the shortest text that its pattern matches, its
/// content.
fn replace_growth(step: &Value, field: &str) -> Checked<usize> {
    let content = text(step, "content", field)?.len();
    let shortest = match pattern(step, field)? {
        Pattern::String(pattern) => pattern.len(),
        // What this parser does not know, `fancy-regex` runs by backtracking, which takes time
        // without bound.
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

/// The longest replacement in one of SentencePiece's tables: its size, a trie of that size, then
/// the replacements, each ended by a NUL.
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

/// The number of tokens that a post-processor puts around a text.
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
                            "{field} is {id:?}, which special_tokens does not have"
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
            "{field}.single has the text {texts} times; once is expected"
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
            "{field} has {found} {what}; at most {limit} are expected"
        )));
    }
    Ok(())
}

fn unknown_type(kind: &str, field: &str) -> Wrong {
    Wrong::Corrupt(format!("{field}.type is {kind:?}, which is unknown"))
}
