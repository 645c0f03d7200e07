//! A checkpoint's `tokenizer.json`, read and run by Hugging Face's `tokenizers`.

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

/// The largest tokenizers that are published have up to about 35 MB.
const MAX_BYTES: u64 = 64 << 20;

/// The most bytes that a text may have once it is normalized.
const MAX_NORMALIZED: usize = 64 << 20;

/// The most times that the bytes of a text are those of its tokens' spellings. Unicode's
/// composition makes one byte of three, and compatibility forms one of four. A tokenizer that drops
/// text, such as white space, is taken to drop no more than that.
const MAX_SHRINKING: usize = 4;

/// Bytes that tokenizing takes for a byte of normalized text, measured with Llama's kind of
/// tokenizer, which takes most.
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
    /// The most bytes that normalizer and pre-tokenizer make of one.
    growth: usize,
    /// Bytes of the longest token's spelling.
    longest: usize,
    /// The token for what the vocabulary lacks.
    unknown: Option<u32>,
}

impl Tokenizer {
    /// Reads a `tokenizer.json`.
    ///
    /// The truncation and padding that such a file may carry are ignored, as transformers ignores
    /// them unless a caller asks: a prompt is never cut short silently.
    ///
    /// # Errors
    /// [`Error::NotFound`] or [`Error::Io`] where the file cannot be read, [`Error::CorruptModel`]
    /// where it is not a tokenizer, [`Error::UnsupportedModel`] where it could make a text many
    /// times as long, or has tokens of more than 1,024 bytes.
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
                format!(
                    "model.vocab has a token of {longest} bytes; at most {MAX_TOKEN} are expected"
                ),
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

    /// The fewest tokens that a text of this many bytes can have.
    ///
    /// It is a bound for texts that are mostly of tokens: where a tokenizer drops most of a text,
    /// or takes a run of unknown characters for one token, there may be fewer.
    pub fn fewest_tokens(&self, bytes: usize) -> usize {
        bytes.div_ceil(self.shared.longest * MAX_SHRINKING)
    }

    /// An estimate of the memory that tokenizing a text of this many bytes takes.
    pub fn memory(&self, bytes: usize) -> u64 {
        (bytes as u64).saturating_mul(self.shared.growth.min(MAX_SHRINKING) as u64 * BYTES_A_BYTE)
    }

    fn check_length(&self, text: &str) -> Result<()> {
        let most = MAX_NORMALIZED / self.shared.growth;
        if text.len() > most {
            let bytes = text.len();
            return Err(Error::InvalidArgument(format!(
                "a text of {bytes} bytes is too long for this model's tokenizer, which takes {most}"
            )));
        }
        Ok(())
    }

    /// The token ids of `text`. With `add_special`, also what the tokenizer puts around a text,
    /// such as `<s>` in front.
    ///
    /// A special token that is spelt out in the text, such as `</s>`, becomes that token, as in
    /// transformers.
    ///
    /// # Errors
    /// [`Error::CorruptModel`] where the tokenizer contradicts itself on this text, such as an
    /// unknown token that it does not have; [`Error::InvalidArgument`] where the text is so long
    /// that it could become one of more than 64 MiB.
    pub fn encode(&self, text: &str, add_special: bool) -> Result<Vec<u32>> {
        self.check_length(text)?;
        let encoding = contained(&self.shared.path, "cannot encode text", || {
            self.shared.tokenizer.encode_fast(text, add_special)
        })?;
        Ok(encoding.get_ids().to_vec())
    }

    /// The token ids of `text`, with the tokens of another added vocabulary, and without what the
    /// tokenizer puts around a text.
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

    /// Puts around tokens what the tokenizer puts around a text, such as `<s>` in front.
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

    /// The tokens beside the model's own vocabulary, by id.
    pub(super) fn added_tokens(&self) -> impl Iterator<Item = (u32, &AddedToken)> {
        self.shared
            .tokenizer
            .get_added_vocabulary()
            .get_added_tokens_decoder()
            .iter()
            .map(|(id, token)| (*id, token))
    }

    /// The added vocabulary, in which `tokens` are not found.
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

    /// The token for what the vocabulary lacks.
    pub(super) fn unknown(&self) -> Option<u32> {
        self.shared.unknown
    }

    /// An error about the file that the tokenizer comes from.
    pub(crate) fn at_fault(&self, what: String) -> Error {
        Error::corrupt(&self.shared.path, what)
    }

    /// The text of `ids`. Special tokens and ids that the vocabulary lacks are left out.
    ///
    /// # Errors
    /// [`Error::CorruptModel`] where the tokenizer's decoder fails on these tokens.
    pub fn decode(&self, ids: &[u32]) -> Result<String> {
        // Some decoders count on at least one token.
        if ids.iter().all(|&id| self.spoken(id).is_none()) {
            return Ok(String::new());
        }
        contained(&self.shared.path, "cannot decode tokens", || {
            self.shared.tokenizer.decode(ids, true)
        })
    }

    /// The id of a token by its exact spelling in the vocabulary, such as `</s>` or `▁the`.
    pub fn token_id(&self, token: &str) -> Option<u32> {
        self.shared.tokenizer.token_to_id(token)
    }

    /// The spelling of a token in the vocabulary, such as `</s>`, `▁the` or `<0xF0>`; not the text
    /// it stands for.
    pub fn token_text(&self, id: u32) -> Option<String> {
        self.shared.tokenizer.id_to_token(id)
    }

    /// Number of tokens, the added ones included. The model may have more rows than that (padding
    /// rows).
    pub fn vocab_size(&self) -> usize {
        self.shared.tokenizer.get_vocab_size(true)
    }

    /// Whether the token is a special one, which [`decode`](Self::decode) leaves out.
    pub fn is_special(&self, id: u32) -> bool {
        self.token_text(id).is_some_and(|token| {
            self.shared
                .tokenizer
                .get_added_vocabulary()
                .is_special_token(&token)
        })
    }

    /// The spelling of a token that takes part in decoding: one that is known and not special.
    pub(super) fn spoken(&self, id: u32) -> Option<String> {
        self.token_text(id).filter(|token| {
            !self
                .shared
                .tokenizer
                .get_added_vocabulary()
                .is_special_token(token)
        })
    }

    /// How token spellings become text.
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

/// Runs a call into `tokenizers`, which panics on some malformed files (a `Strip` decoder that cuts
/// more than a token holds, for one): that too is a fault of the file.
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
