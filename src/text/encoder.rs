//! Turns prompts into tokens such that only the prompt's own markup becomes control tokens.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use aho_corasick::{AhoCorasick, MatchKind};
use tokenizers::AddedVocabulary;

use super::{Message, Part, Prompt, Tokenizer};
use crate::{Error, Result};

/// Turns prompts into token ids. Cloning is cheap. Any number of threads may use it at once.
///
/// Control tokens are the tokenizer's special tokens, those that look like one (`<|im_end|>`,
/// `[INST]`), and those that the model's configuration names. Only a prompt's markup becomes
/// control tokens; text of a user or an answer never does. A prompt without a control spelling in
/// its texts has exactly the ids that transformers produces.
#[derive(Clone)]
pub struct PromptEncoder {
    shared: Arc<Shared>,
}

struct Shared {
    tokenizer: Tokenizer,
    /// The added vocabulary without control tokens.
    content: AddedVocabulary,
    /// Control tokens, by the index of the patterns below.
    ids: Vec<u32>,
    /// Finds every control spelling, including overlapping ones.
    every: AhoCorasick,
    /// Finds control spellings as the tokenizer does: the leftmost, and of several the longest.
    longest: AhoCorasick,
    /// Control tokens that text never becomes, except for the unknown token.
    forbidden: HashSet<u32>,
}

impl PromptEncoder {
    /// Creates an encoder for a model whose configuration names these control tokens, such as the
    /// end-of-sequence token.
    ///
    /// # Errors
    /// [`Error::CorruptModel`] if the tokenizer's control tokens cannot be searched for.
    pub fn new(tokenizer: &Tokenizer, named: &[u32]) -> Result<Self> {
        let is_control = |id: u32, content: &str, special: bool| {
            special || looks_like_control(content) || named.contains(&id)
        };
        let added = || {
            tokenizer
                .added_tokens()
                .filter(|(id, token)| is_control(*id, &token.content, token.special))
        };
        let mut control: Vec<(u32, String)> = added()
            .map(|(id, token)| (id, token.content.clone()))
            .collect();
        let elsewhere = named
            .iter()
            .filter(|id| control.iter().all(|(known, _)| known != *id));
        let elsewhere: Vec<_> = elsewhere
            .filter_map(|id| Some((*id, tokenizer.token_text(*id)?)))
            .collect();
        control.extend(elsewhere);
        control.retain(|(_, spelling)| !spelling.is_empty());
        let (ids, spellings): (Vec<u32>, Vec<String>) = control.into_iter().unzip();
        let finder = |kind| {
            let built = AhoCorasick::builder().match_kind(kind).build(&spellings);
            built.map_err(|error| {
                tokenizer.at_fault(format!(
                    "its control tokens cannot be searched for: {error}"
                ))
            })
        };
        let shared = Shared {
            content: tokenizer.added_without(added().map(|(_, token)| token.clone()))?,
            every: finder(MatchKind::Standard)?,
            longest: finder(MatchKind::LeftmostLongest)?,
            forbidden: ids
                .iter()
                .copied()
                .filter(|id| Some(*id) != tokenizer.unknown())
                .collect(),
            ids,
            tokenizer: tokenizer.clone(),
        };
        Ok(Self {
            shared: Arc::new(shared),
        })
    }

    /// Checks by its length alone that a prompt may fit into a context of so many positions.
    ///
    /// # Errors
    /// [`Error::ContextFull`] with the minimum number of tokens.
    pub fn check_room(&self, bytes: usize, positions: usize) -> Result<()> {
        // At least one position is for the answer.
        match self.shared.tokenizer.fewest_tokens(bytes) {
            fewest if fewest >= positions => Err(Error::ContextFull {
                needed: fewest.saturating_add(1),
                limit: positions,
            }),
            _ => Ok(()),
        }
    }

    /// Estimates the memory that encoding a prompt of so many bytes needs.
    pub fn memory(&self, bytes: usize) -> u64 {
        self.shared.tokenizer.memory(bytes)
    }

    /// Hides the control spellings in messages before a template writes them: the first character
    /// of each is replaced with one that occurs in no text. Consecutive texts count as one.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] for texts that use all of Unicode's private characters.
    pub fn mask(&self, messages: &[Message]) -> Result<(Vec<Message>, Mask)> {
        let mut mask = Mask::new(messages);
        let masked = messages
            .iter()
            .map(|message| self.masked(message, &mut mask))
            .collect::<Result<_>>()?;
        Ok((masked, mask))
    }

    fn masked(&self, message: &Message, mask: &mut Mask) -> Result<Message> {
        let mut parts = Vec::new();
        for run in message
            .parts
            .chunk_by(|a, b| matches!((a, b), (Part::Text(_), Part::Text(_))))
        {
            let texts: Vec<&str> = run.iter().filter_map(Part::text).collect();
            if texts.is_empty() {
                parts.extend_from_slice(run);
                continue;
            }
            let joined = texts.concat();
            let starts: BTreeSet<usize> = self
                .shared
                .every
                .find_overlapping_iter(&joined)
                .map(|found| found.start())
                .collect();
            let mut at = 0;
            for text in texts {
                let mut masked = String::with_capacity(text.len());
                for (i, c) in text.char_indices() {
                    masked.push(if starts.contains(&(at + i)) {
                        mask.hide(c)?
                    } else {
                        c
                    });
                }
                at += text.len();
                parts.push(Part::Text(masked));
            }
        }
        Ok(Message {
            role: message.role,
            parts,
        })
    }

    /// Makes a prompt from the rendering of masked messages: control tokens spelled in it are the
    /// template's, and masked text becomes text again.
    pub fn unmask(&self, rendering: &str, mask: &Mask) -> Prompt {
        let mut prompt = Prompt::default();
        let mut done = 0;
        for found in self.shared.longest.find_iter(rendering) {
            prompt.push(&mask.restore(&rendering[done..found.start()]));
            prompt.push_markup(&rendering[found.start()..found.end()]);
            done = found.end();
        }
        prompt.push(&mask.restore(&rendering[done..]));
        prompt
    }

    /// Returns the token ids of a prompt. If `framed`, the tokenizer adds its tokens around it,
    /// such as `<s>` at the start, but not twice if raw prompt text starts with it.
    ///
    /// # Errors
    /// As for [`Tokenizer::encode`]; [`Error::CorruptModel`] if the tokenizer makes a control token
    /// from plain text.
    pub fn encode(&self, prompt: &Prompt, framed: bool) -> Result<Vec<u32>> {
        let frame = |ids| {
            if framed {
                self.shared.tokenizer.frame(ids)
            } else {
                Ok(ids)
            }
        };
        let controls = self.controls(prompt);
        let expected = self.forbidden(frame(controls.iter().map(|(_, id)| *id).collect())?);
        let mut ids = Vec::new();
        let mut found = None;
        if !self.text_spells_control(prompt) {
            ids = self.shared.tokenizer.encode(prompt.text(), framed)?;
            found = Some(self.forbidden(ids.iter().copied()));
        }
        if found.as_ref() != Some(&expected) {
            ids = frame(self.encode_parts(prompt, &controls)?)?;
            found = Some(self.forbidden(ids.iter().copied()));
        }
        if found.as_ref() != Some(&expected) {
            return Err(self
                .shared
                .tokenizer
                .at_fault("the tokenizer makes a control token from plain text".into()));
        }
        let starts_with_control = controls.first().is_some_and(|(range, _)| range.start == 0);
        if framed && starts_with_control && ids.len() > 1 && ids[0] == ids[1] {
            ids.remove(0);
        }
        Ok(ids)
    }

    /// Returns whether a prompt starts with a control token.
    pub fn starts_with_control(&self, prompt: &Prompt) -> bool {
        self.controls(prompt)
            .first()
            .is_some_and(|(range, _)| range.start == 0)
    }

    /// Returns the control tokens that the prompt's markup spells, and where.
    fn controls(&self, prompt: &Prompt) -> Vec<(Range<usize>, u32)> {
        let within = |markup: &Range<usize>| {
            let start = markup.start;
            let matches = self
                .shared
                .longest
                .find_iter(&prompt.text()[markup.clone()]);
            matches
                .map(move |found| {
                    (
                        start + found.start()..start + found.end(),
                        self.shared.ids[found.pattern()],
                    )
                })
                .collect::<Vec<_>>()
        };
        prompt.markup().iter().flat_map(within).collect()
    }

    /// Returns whether text spells a control token, even in part.
    fn text_spells_control(&self, prompt: &Prompt) -> bool {
        let mut markup = prompt.markup().iter().peekable();
        self.shared
            .every
            .find_overlapping_iter(prompt.text())
            .any(|found| {
                // Matches are in the order of their ends.
                while markup.next_if(|range| range.end < found.end()).is_some() {}
                markup
                    .peek()
                    .is_none_or(|range| found.start() < range.start)
            })
    }

    /// Returns the tokens of the prompt's control tokens and of the texts between them, each on its
    /// own, as the tokenizer does it too.
    fn encode_parts(&self, prompt: &Prompt, controls: &[(Range<usize>, u32)]) -> Result<Vec<u32>> {
        let mut ids = Vec::new();
        let mut done = 0;
        let text = |range: Range<usize>| match range.is_empty() {
            true => Ok(Vec::new()),
            false => self
                .shared
                .tokenizer
                .encode_with(&self.shared.content, &prompt.text()[range]),
        };
        for (range, id) in controls {
            ids.extend(text(done..range.start)?);
            ids.push(*id);
            done = range.end;
        }
        ids.extend(text(done..prompt.text().len())?);
        Ok(ids)
    }

    fn forbidden(&self, ids: impl IntoIterator<Item = u32>) -> Vec<u32> {
        ids.into_iter()
            .filter(|id| self.shared.forbidden.contains(id))
            .collect()
    }
}

/// Replacements for the first characters of control spellings.
#[derive(Debug, Clone)]
pub struct Mask {
    /// Private characters that occur in no text of these messages.
    free: Vec<char>,
    /// The replaced character of each replacement.
    hidden: BTreeMap<char, char>,
}

impl Mask {
    fn new(messages: &[Message]) -> Mask {
        let used: HashSet<char> = messages
            .iter()
            .flat_map(Message::texts)
            .flat_map(str::chars)
            .collect();
        Mask {
            free: ('\u{E000}'..='\u{F8FF}')
                .filter(|c| !used.contains(c))
                .collect(),
            hidden: BTreeMap::new(),
        }
    }

    /// Returns the replacement of a character.
    fn hide(&mut self, c: char) -> Result<char> {
        if let Some((private, _)) = self.hidden.iter().find(|(_, hidden)| **hidden == c) {
            return Ok(*private);
        }
        let none = || {
            Error::InvalidArgument(
                "the messages use all of Unicode's private characters; leave one of them out"
                    .into(),
            )
        };
        let private = self.free.pop().ok_or_else(none)?;
        self.hidden.insert(private, c);
        Ok(private)
    }

    fn restore(&self, text: &str) -> String {
        text.chars()
            .map(|c| self.hidden.get(&c).copied().unwrap_or(c))
            .collect()
    }
}

impl fmt::Debug for PromptEncoder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PromptEncoder")
            .field("tokenizer", &self.shared.tokenizer)
            .finish_non_exhaustive()
    }
}

/// Returns whether a token is spelled like a control token. Some tokenizers do not mark theirs as
/// special.
fn looks_like_control(spelling: &str) -> bool {
    let between = |begin, end| {
        spelling
            .strip_prefix(begin)
            .and_then(|rest| rest.strip_suffix(end))
    };
    let is_name = |name: &str| {
        name.starts_with(|c: char| c == '/' || c.is_ascii_uppercase())
            && !name.contains(|c: char| c.is_ascii_lowercase())
    };
    matches!(
        spelling,
        "<s>" | "</s>" | "<bos>" | "<eos>" | "<pad>" | "<PAD>" | "<unk>" | "<mask>"
    ) || between("<|", "|>")
        .or_else(|| between("<｜", "｜>"))
        .is_some()
        || between("[", "]").is_some_and(is_name)
}
