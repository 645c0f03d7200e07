//! Reads and runs a checkpoint's `tokenizer.json` with Hugging Face's `tokenizers`.

use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tokenizers::{
    AddedToken, AddedVocabulary, DecoderWrapper, Encoding, Model, NormalizerWrapper, OffsetType,
    PreTokenizer, Token,
};

use super::check::{MAX_TOKEN, check};
use crate::{Error, Result, file};

/// The largest published tokenizers have up to about 35 MB.
const MAX_BYTES: u64 = 64 << 20;

/// The maximum number of bytes in a text after normalization.
const MAX_NORMALIZED: usize = 64 << 20;

/// The maximum ratio of a text's bytes to those of its tokens' spellings. Unicode's composition
/// makes one byte from three, and compatibility forms one from four. A tokenizer that drops text,
/// such as white space, is assumed to drop no more than that.
const MAX_SHRINKING: usize = 4;

/// The memory in bytes for tokenizing a byte of normalized text, measured with a Llama tokenizer,
/// which needs most.
const BYTES_A_BYTE: u64 = 160;

/// Turns text into token ids and back. Cloning is cheap: the clones share one vocabulary. Any
/// number of threads may use it at once.
#[derive(Clone)]
pub struct Tokenizer {
    shared: Arc<Shared>,
}

struct Shared {
    path: PathBuf,
    tokenizer: tokenizers::Tokenizer,
    /// The maximum number of bytes that normalizer and pre-tokenizer make from one.
    growth: usize,
    /// The number of bytes in the longest token's spelling.
    longest: usize,
    /// The token for unknown text.
    unknown: Option<u32>,
}

impl Tokenizer {
    /// Reads a `tokenizer.json`.
    ///
    /// Truncation and padding settings in the file are ignored, as transformers does by default: a
    /// prompt is never cut silently.
    ///
    /// # Errors
    /// [`Error::NotFound`] or [`Error::Io`] if the file cannot be read; [`Error::CorruptModel`] if
    /// it is not a tokenizer; [`Error::UnsupportedModel`] if it could make a text many times as
    /// long, or has tokens of more than 1,024 bytes.
    pub fn from_file(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let bytes = file::read_json(path, "the tokenizer", MAX_BYTES)?;
        let findings = check(path, &bytes)?;
        let tokenizer = contained(path, "not a usable tokenizer", || {
            let mut tokenizer = tokenizers::Tokenizer::from_bytes(&bytes)?;
            tokenizer.with_truncation(None)?;
            tokenizer.with_padding(None);
            Ok(tokenizer)
        })?;
        let vocabulary = tokenizer.get_vocab(true);
        let longest = vocabulary.keys().map(String::len).max().unwrap_or(0);
        if longest > MAX_TOKEN {
            return Err(Error::unsupported(
                path,
                format!("model.vocab has a token of {longest} bytes; expected at most {MAX_TOKEN}"),
            ));
        }
        let unknown = findings
            .unk_id
            .or_else(|| vocabulary.get(&findings.unk_token?).copied());
        let (path, growth, longest) = (path.into(), findings.growth, longest.max(1));
        Ok(Self {
            shared: Arc::new(Shared {
                path,
                tokenizer,
                growth,
                longest,
                unknown,
            }),
        })
    }

    /// Returns the minimum number of tokens for a text of this many bytes.
    ///
    /// The bound holds for texts that mostly consist of tokens. If a tokenizer drops most of a
    /// text, or makes one token from a run of unknown characters, there may be fewer.
    pub fn fewest_tokens(&self, bytes: usize) -> usize {
        bytes.div_ceil(self.shared.longest * MAX_SHRINKING)
    }

    /// Estimates the memory that tokenizing a text of this many bytes needs.
    pub fn memory(&self, bytes: usize) -> u64 {
        (bytes as u64).saturating_mul(self.shared.growth.min(MAX_SHRINKING) as u64 * BYTES_A_BYTE)
    }

    fn check_length(&self, text: &str) -> Result<()> {
        let most = MAX_NORMALIZED / self.shared.growth;
        if text.len() > most {
            let bytes = text.len();
            return Err(Error::InvalidArgument(format!(
                "a text of {bytes} bytes is too long for this model's tokenizer, which takes at \
                    most {most}"
            )));
        }
        Ok(())
    }

    /// Returns the token ids of `text`. With `add_special`, includes the tokens that the tokenizer
    /// adds around a text, such as `<s>` at the start.
    ///
    /// A special token that is spelled in the text, such as `</s>`, becomes that token, as in
    /// transformers.
    ///
    /// # Errors
    /// [`Error::CorruptModel`] if the tokenizer is inconsistent on this text, for example lacks its
    /// own unknown token; [`Error::InvalidArgument`] if the text could exceed 64 MiB after
    /// normalization.
    pub fn encode(&self, text: &str, add_special: bool) -> Result<Vec<u32>> {
        self.check_length(text)?;
        let encoding = contained(&self.shared.path, "cannot encode text", || {
            self.shared.tokenizer.encode_fast(text, add_special)
        })?;
        Ok(encoding.get_ids().to_vec())
    }

    /// Returns the token ids of `text` with another added vocabulary, and without the tokens that
    /// are added around a text.
    pub(super) fn encode_with(&self, added: &AddedVocabulary, text: &str) -> Result<Vec<u32>> {
        self.check_length(text)?;
        let tokenizer = &self.shared.tokenizer;
        contained(&self.shared.path, "cannot encode text", || {
            let mut parts = added.extract_and_normalize(tokenizer.get_normalizer(), text);
            if let Some(step) = tokenizer.get_pre_tokenizer() {
                step.pre_tokenize(&mut parts)?;
            }
            tokenizer
                .get_model()
                .tokenize_in_pretokenized(&mut parts, None)?;
            Ok(parts
                .into_encoding(None, 0, OffsetType::None)?
                .get_ids()
                .to_vec())
        })
    }

    /// Adds the tokens that the tokenizer puts around a text, such as `<s>` at the start.
    pub(super) fn frame(&self, ids: Vec<u32>) -> Result<Vec<u32>> {
        let tokens = ids
            .into_iter()
            .map(|id| Token::new(id, String::new(), (0, 0)))
            .collect();
        let framed = contained(&self.shared.path, "cannot encode text", || {
            self.shared
                .tokenizer
                .post_process(Encoding::from_tokens(tokens, 0), None, true)
        })?;
        Ok(framed.get_ids().to_vec())
    }

    /// Returns the tokens outside the model's own vocabulary, by id.
    pub(super) fn added_tokens(&self) -> impl Iterator<Item = (u32, &AddedToken)> {
        self.shared
            .tokenizer
            .get_added_vocabulary()
            .get_added_tokens_decoder()
            .iter()
            .map(|(id, token)| (*id, token))
    }

    /// Returns the added vocabulary without `tokens`.
    pub(super) fn added_without(
        &self,
        tokens: impl Iterator<Item = AddedToken>,
    ) -> Result<AddedVocabulary> {
        let tokenizer = &self.shared.tokenizer;
        let mut added = tokenizer.get_added_vocabulary().clone();
        added.set_encode_special_tokens(true);
        contained(&self.shared.path, "not a usable tokenizer", || {
            let tokens = tokens.map(|token| token.special(true));
            added.add_tokens::<NormalizerWrapper>(
                tokens,
                tokenizer.get_model(),
                tokenizer.get_normalizer(),
            )
        })?;
        Ok(added)
    }

    /// Returns the token for unknown text.
    pub(super) fn unknown(&self) -> Option<u32> {
        self.shared.unknown
    }

    /// Returns an error about the tokenizer's file.
    pub(crate) fn at_fault(&self, what: String) -> Error {
        Error::corrupt(&self.shared.path, what)
    }

    /// Returns the text of `ids`. Special tokens and unknown ids are skipped.
    ///
    /// # Errors
    /// [`Error::CorruptModel`] if the tokenizer's decoder fails on these tokens.
    pub fn decode(&self, ids: &[u32]) -> Result<String> {
        // Some decoders expect at least one token.
        if ids.iter().all(|&id| self.spoken(id).is_none()) {
            return Ok(String::new());
        }
        contained(&self.shared.path, "cannot decode tokens", || {
            self.shared.tokenizer.decode(ids, true)
        })
    }

    /// Returns the id of a token by its exact spelling in the vocabulary, such as `</s>` or `▁the`.
    pub fn token_id(&self, token: &str) -> Option<u32> {
        self.shared.tokenizer.token_to_id(token)
    }

    /// Returns the spelling of a token in the vocabulary, such as `</s>`, `▁the` or `<0xF0>`. This
    /// is not its text.
    pub fn token_text(&self, id: u32) -> Option<String> {
        self.shared.tokenizer.id_to_token(id)
    }

    /// Returns the number of tokens, including added ones. The model may have more rows than that,
    /// as padding.
    pub fn vocab_size(&self) -> usize {
        self.shared.tokenizer.get_vocab_size(true)
    }

    /// Returns whether the token is special, so that [`decode`](Self::decode) skips it.
    pub fn is_special(&self, id: u32) -> bool {
        self.token_text(id).is_some_and(|token| {
            self.shared
                .tokenizer
                .get_added_vocabulary()
                .is_special_token(&token)
        })
    }

    /// Returns the spelling of a token that takes part in decoding: one that is known and not
    /// special.
    pub(super) fn spoken(&self, id: u32) -> Option<String> {
        self.token_text(id).filter(|token| {
            !self
                .shared
                .tokenizer
                .get_added_vocabulary()
                .is_special_token(token)
        })
    }

    /// Returns the decoder, which turns token spellings into text.
    pub(super) fn decoder(&self) -> Option<&DecoderWrapper> {
        self.shared.tokenizer.get_decoder()
    }

    /// Runs one decoder step over a single token.
    pub(super) fn decode_step(&self, step: &DecoderWrapper, token: String) -> Result<String> {
        use tokenizers::Decoder;
        contained(&self.shared.path, "cannot decode tokens", || {
            Ok(step.decode_chain(vec![token])?.concat())
        })
    }
}

impl fmt::Debug for Tokenizer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tokenizer")
            .field("path", &self.shared.path)
            .field("vocab_size", &self.vocab_size())
            .finish()
    }
}

/// Runs a call into `tokenizers`, which panics on some malformed files (for example a `Strip`
/// decoder that cuts more than a token has). Such a panic also means that the file is invalid.
fn contained<T>(
    path: &Path,
    what: &str,
    call: impl FnOnce() -> tokenizers::Result<T>,
) -> Result<T> {
    match catch_unwind(AssertUnwindSafe(call)) {
        Ok(result) => result.map_err(|e| Error::corrupt(path, format!("{what}: {e}"))),
        Err(panic) => {
            let reason = panic
                .downcast_ref::<String>()
                .map(String::as_str)
                .or_else(|| panic.downcast_ref::<&str>().copied());
            Err(Error::corrupt(
                path,
                format!(
                    "{what}: {}",
                    reason.unwrap_or("the tokenizers library panicked")
                ),
            ))
        }
    }
}
