//! Streaming detokenization: returns each token's text as soon as it is final, in linear time.
//!
//! Decoding all tokens again for each new one would be quadratic. Instead, the bytes of a token are
//! computed in the way its tokenizer decodes. Two ways cover today's language models:
//! - **byte fallback** (Llama, Mistral, Gemma): `▁` is a space, and unknown text is spelled in
//!   tokens of one byte (`<0xF0>`).
//! - **byte level** (GPT-2, Qwen): each character of a token stands for one byte.
//!
//! For any other decoder, a short window of the latest tokens is decoded twice, with and without
//! the new one.

use std::mem;

use tokenizers::DecoderWrapper;

use super::Tokenizer;
use crate::Result;

/// Decodes tokens one at a time. The pieces together are exactly what [`Tokenizer::decode`] returns
/// for all tokens, unless a decoder of another kind changes earlier text afterwards.
///
/// No piece ends inside a code point. A run of byte tokens is waiting back until a token of another
/// kind ends it, because `tokenizers` decodes a run as a whole: one invalid byte turns every byte
/// of its run into U+FFFD.
#[derive(Debug)]
pub struct StreamDecoder {
    tokenizer: Tokenizer,
    style: Style,
    /// Whether leading white space is still to be removed.
    trimming: bool,
}

#[derive(Debug)]
enum Style {
    ByteFallback(ByteFallback),
    /// Bytes of an incomplete code point.
    ByteLevel(Vec<u8>),
    Window(Window),
}

impl StreamDecoder {
    /// Creates a decoder at the start of a text.
    pub fn new(tokenizer: &Tokenizer) -> Self {
        Self {
            tokenizer: tokenizer.clone(),
            style: Style::of(tokenizer.decoder()),
            trimming: false,
        }
    }

    /// Creates a decoder in the middle of a text, after a token that is not special: the space
    /// before the next one is part of the text.
    pub fn after(tokenizer: &Tokenizer, id: u32) -> Self {
        let mut decoder = Self::new(tokenizer);
        match &mut decoder.style {
            Style::ByteFallback(style) => style.strip.1 = 0,
            Style::ByteLevel(_) => {}
            Style::Window(window) => {
                *window = Window {
                    ids: vec![id],
                    settled: 1,
                }
            }
        }
        decoder
    }

    /// Removes white space at the start of the text: an answer's first token usually contains the
    /// space after the prompt.
    pub fn trim_start(mut self) -> Self {
        self.trimming = true;
        self
    }

    /// Adds a token; returns the text that is now final. It is empty while bytes wait for others.
    ///
    /// # Errors
    /// [`crate::Error::CorruptModel`] if the tokenizer's decoder fails on the token.
    pub fn push(&mut self, id: u32) -> Result<String> {
        let Some(token) = self.tokenizer.spoken(id) else {
            return Ok(String::new());
        };
        let text = match &mut self.style {
            Style::ByteFallback(style) => style.push(token, &self.tokenizer)?,
            Style::ByteLevel(pending) => {
                pending.extend(byte_level_bytes(&token));
                settled_text(pending)
            }
            Style::Window(window) => window.push(id, &self.tokenizer)?,
        };
        Ok(self.trimmed(text))
    }

    /// Ends the text and returns what was waiting back. Bytes that never became a code point are
    /// U+FFFD.
    ///
    /// # Errors
    /// As for [`push`](Self::push).
    pub fn finish(&mut self) -> Result<String> {
        let text = match &mut self.style {
            Style::ByteFallback(style) => style.end_run(),
            Style::ByteLevel(pending) => String::from_utf8_lossy(&mem::take(pending)).into_owned(),
            Style::Window(window) => mem::take(window).text_after_settled(&self.tokenizer)?,
        };
        Ok(self.trimmed(text))
    }

    fn trimmed(&mut self, text: String) -> String {
        if !self.trimming {
            return text;
        }
        let text = text.trim_start();
        self.trimming = text.is_empty();
        text.into()
    }
}

impl Style {
    fn of(decoder: Option<&DecoderWrapper>) -> Self {
        let steps = match decoder {
            None => return Style::Window(Window::default()),
            Some(DecoderWrapper::Sequence(sequence)) => sequence.get_decoders(),
            Some(single) => std::slice::from_ref(single),
        };
        match steps {
            [DecoderWrapper::ByteLevel(_)] => Style::ByteLevel(Vec::new()),
            _ => ByteFallback::of(steps)
                .map(Style::ByteFallback)
                .unwrap_or_else(|| Style::Window(Window::default())),
        }
    }
}

/// Replace steps, then optionally byte fallback, then optionally a strip at the start of the whole
/// text.
#[derive(Debug)]
struct ByteFallback {
    replacements: Vec<DecoderWrapper>,
    byte_tokens: bool,
    /// The bytes of the byte tokens since the last token of another kind.
    run: Vec<u8>,
    /// The character to be removed at the start, and its maximum count.
    strip: (char, usize),
}

impl ByteFallback {
    /// Returns `None` if the steps are of another kind.
    fn of(steps: &[DecoderWrapper]) -> Option<Self> {
        use DecoderWrapper::{ByteFallback as Bytes, Fuse, Replace, Strip};
        let (replacements, rest) = steps.split_at(
            steps
                .iter()
                .take_while(|step| matches!(step, Replace(_)))
                .count(),
        );
        let (byte_tokens, rest) = match rest {
            [Bytes(_), rest @ ..] => (true, rest),
            rest => (false, rest),
        };
        let strip = match rest {
            [] | [Fuse(_)] => (' ', 0),
            [Fuse(_), Strip(strip)] if strip.stop == 0 => (strip.content, strip.start),
            _ => return None,
        };
        Some(Self {
            replacements: replacements.to_vec(),
            byte_tokens,
            run: Vec::new(),
            strip,
        })
    }

    fn push(&mut self, mut token: String, tokenizer: &Tokenizer) -> Result<String> {
        for step in &self.replacements {
            token = tokenizer.decode_step(step, token)?;
        }
        if let Some(byte) = byte_token(&token).filter(|_| self.byte_tokens) {
            self.run.push(byte);
            return Ok(String::new());
        }
        let before = self.end_run();
        Ok(before + &self.stripped(token))
    }

    fn end_run(&mut self) -> String {
        let text = String::from_utf8(mem::take(&mut self.run))
            .unwrap_or_else(|e| "\u{FFFD}".repeat(e.as_bytes().len()));
        self.stripped(text)
    }

    fn stripped(&mut self, mut text: String) -> String {
        let (content, left) = &mut self.strip;
        while *left > 0 && text.starts_with(*content) {
            text.remove(0);
            *left -= 1;
        }
        if !text.is_empty() {
            *left = 0;
        }
        text
    }
}

/// Returns the byte of a token such as `<0x0A>`, parsed as `tokenizers` does.
fn byte_token(token: &str) -> Option<u8> {
    let digits = token.strip_prefix("<0x")?.strip_suffix('>')?;
    (digits.len() == 2).then(|| u8::from_str_radix(digits, 16).ok())?
}

/// Returns the bytes of a byte-level token. Those of an added token are its spelling.
fn byte_level_bytes(token: &str) -> Vec<u8> {
    let bytes: Option<Vec<u8>> = token.chars().map(byte_level_byte).collect();
    bytes.unwrap_or_else(|| token.as_bytes().to_vec())
}

/// GPT-2's alphabet: printable Latin-1 bytes stand for themselves; the other 68 are, in order, the
/// characters from U+0100 on.
fn byte_level_byte(c: char) -> Option<u8> {
    match u32::from(c) {
        code @ (0x21..=0x7E | 0xA1..=0xAC | 0xAE..=0xFF) => u8::try_from(code).ok(),
        code @ 0x100..=0x120 => u8::try_from(code - 0x100).ok(),
        code @ 0x121..=0x142 => u8::try_from(code - 0x121 + 0x7F).ok(),
        0x143 => Some(0xAD),
        _ => None,
    }
}

/// Takes everything from `pending` except an incomplete code point at its end. Bytes that cannot
/// become a code point are U+FFFD.
fn settled_text(pending: &mut Vec<u8>) -> String {
    let mut settled = pending.len();
    if let Some(last) = pending.utf8_chunks().last()
        && let Err(error) = std::str::from_utf8(last.invalid())
        && error.error_len().is_none()
    {
        settled -= last.invalid().len();
    }
    let rest = pending.split_off(settled);
    String::from_utf8_lossy(&mem::replace(pending, rest)).into_owned()
}

/// The latest tokens: those whose text was returned, which only serve as context, and those whose
/// text was not.
#[derive(Debug, Default)]
struct Window {
    ids: Vec<u32>,
    settled: usize,
}

impl Window {
    /// The number of tokens that may wait for one that completes them; a code point has at most
    /// four bytes.
    const LIMIT: usize = 8;

    fn push(&mut self, id: u32, tokenizer: &Tokenizer) -> Result<String> {
        self.ids.push(id);
        let text = self.text_after_settled(tokenizer)?;
        let incomplete = text.is_empty() || text.ends_with('\u{FFFD}');
        if incomplete && self.ids.len() - self.settled < Self::LIMIT {
            return Ok(String::new());
        }
        self.ids.drain(..self.settled);
        self.settled = self.ids.len();
        Ok(text)
    }

    /// Returns the text that the decoder makes from all tokens, after the text of the settled ones.
    fn text_after_settled(&self, tokenizer: &Tokenizer) -> Result<String> {
        let before = tokenizer.decode(&self.ids[..self.settled])?;
        let all = tokenizer.decode(&self.ids)?;
        let common: usize = before
            .chars()
            .zip(all.chars())
            .take_while(|(a, b)| a == b)
            .map(|(c, _)| c.len_utf8())
            .sum();
        Ok(all[common..].into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Returns the number of bytes or tokens that wait: all that a push looks at besides its own
    /// token.
    fn waiting(decoder: &StreamDecoder) -> usize {
        match &decoder.style {
            Style::ByteFallback(style) => style.run.len(),
            Style::ByteLevel(pending) => pending.len(),
            Style::Window(window) => window.ids.len(),
        }
    }

    /// The work for a token does not grow with the text before it.
    #[test]
    fn work_is_linear() {
        for name in ["llama", "byte_level", "metaspace"] {
            let path = format!("{}/tests/text/{name}.json", env!("CARGO_MANIFEST_DIR"));
            let tokenizer = Tokenizer::from_file(path).unwrap();
            let ids = tokenizer
                .encode(&"In: What is it? \u{FFFD} 👍🎉 ".repeat(300), false)
                .unwrap();
            let mut decoder = StreamDecoder::new(&tokenizer);
            let mut text = String::new();
            for &id in &ids {
                text += &decoder.push(id).unwrap();
                assert!(
                    waiting(&decoder) <= 2 * Window::LIMIT,
                    "{name}: {} waiting after {} bytes of text",
                    waiting(&decoder),
                    text.len()
                );
            }
            text += &decoder.finish().unwrap();
            assert_eq!(text, tokenizer.decode(&ids).unwrap(), "{name}");
        }
    }
}
