//! Stop strings in streamed text. (Stop tokens such as `</s>` need no code here: they are compared
//! by id, before they become text.)

use std::collections::HashMap;

use aho_corasick::{
    Anchored,
    automaton::{Automaton, StateID},
    nfa::contiguous::NFA,
};

use crate::{Error, Result};

/// The maximum number of stop strings in a session.
pub const MAX_STOP_STRINGS: usize = 64;

/// The maximum number of bytes in a stop string.
pub const MAX_STOP_BYTES: usize = 1024;

/// Searches a text that arrives in pieces for strings that end it, and holds back text that may be
/// the start of one.
///
/// The string that is complete first ends the text; if several are complete at the same character,
/// the longest. The boundaries between pieces make no difference. The work depends on the length of
/// the text only, not on the number of strings or their length.
#[derive(Debug)]
pub struct StopStrings {
    /// `None` if there are no stop strings.
    matcher: Option<Matcher>,
    held: String,
    stopped: bool,
}

/// The result of adding a piece of text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StopOutcome {
    /// Text that can be shown now. It never includes the stop string.
    pub text: String,
    /// Whether a stop string has ended the text.
    pub stopped: bool,
}

impl StopStrings {
    /// Creates a search for `stops`, which may be empty.
    ///
    /// # Errors
    /// As for [`StopStrings::check`].
    pub fn new(stops: Vec<String>) -> Result<Self> {
        Self::check(&stops)?;
        let matcher = if stops.is_empty() {
            None
        } else {
            Some(Matcher::new(&stops)?)
        };
        Ok(Self {
            matcher,
            held: String::new(),
            stopped: false,
        })
    }

    /// Checks the number of stop strings and the length of each.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] for more than [`MAX_STOP_STRINGS`], for a string of more than
    /// [`MAX_STOP_BYTES`], and for an empty one, which would end every text before it starts.
    pub fn check(stops: &[String]) -> Result<()> {
        let count = stops.len();
        if count > MAX_STOP_STRINGS {
            return Err(Error::InvalidArgument(format!(
                "there are {count} stop strings; at most {MAX_STOP_STRINGS} are allowed"
            )));
        }
        match stops
            .iter()
            .enumerate()
            .find(|(_, stop)| !(1..=MAX_STOP_BYTES).contains(&stop.len()))
        {
            Some((i, stop)) => Err(Error::InvalidArgument(format!(
                "stop string {} of {count} has {} bytes; 1 to {MAX_STOP_BYTES} are allowed",
                i + 1,
                stop.len()
            ))),
            None => Ok(()),
        }
    }

    /// Adds the next piece of text. After a stop string everything is dropped.
    pub fn push(&mut self, piece: &str) -> StopOutcome {
        if self.stopped {
            return StopOutcome {
                text: String::new(),
                stopped: true,
            };
        }
        let mut text = std::mem::take(&mut self.held);
        let before = text.len();
        text.push_str(piece);
        match self
            .matcher
            .as_mut()
            .map_or(Found::Held(0), |matcher| matcher.push(piece))
        {
            Found::Stop { end, length } => {
                text.truncate(before + end - length);
                self.stopped = true;
            }
            Found::Held(length) => self.held = text.split_off(text.len() - length),
        }
        StopOutcome {
            text,
            stopped: self.stopped,
        }
    }

    /// Ends the text, unless a stop string has ended it, and returns the text that was held back.
    pub fn finish(&mut self) -> String {
        std::mem::take(&mut self.held)
    }
}

/// An automaton whose state is the longest suffix of the text that is a prefix of a stop string.
#[derive(Debug)]
struct Matcher {
    automaton: NFA,
    /// The length in bytes of the prefix for each state. States that are not listed have none.
    depths: HashMap<StateID, usize>,
    state: StateID,
}

/// What the automaton found in a piece.
enum Found {
    /// A stop string of this length, in bytes, ends at `end` of the piece.
    Stop { end: usize, length: usize },
    /// The text ends with a prefix of a stop string, of this length in bytes.
    Held(usize),
}

impl Matcher {
    fn new(stops: &[String]) -> Result<Matcher> {
        let unusable = |error: String| {
            Error::InvalidArgument(format!("the stop strings cannot be matched: {error}"))
        };
        let automaton = NFA::new(stops).map_err(|error| unusable(error.to_string()))?;
        let start = automaton
            .start_state(Anchored::No)
            .map_err(|error| unusable(error.to_string()))?;
        let mut depths = HashMap::new();
        for stop in stops {
            let mut state = start;
            for (i, byte) in stop.bytes().enumerate() {
                state = automaton.next_state(Anchored::No, state, byte);
                depths.insert(state, i + 1);
            }
        }
        Ok(Matcher {
            automaton,
            depths,
            state: start,
        })
    }

    fn push(&mut self, piece: &str) -> Found {
        for (i, byte) in piece.bytes().enumerate() {
            self.state = self.automaton.next_state(Anchored::No, self.state, byte);
            if self.automaton.is_match(self.state) {
                let lengths = (0..self.automaton.match_len(self.state))
                    .map(|i| self.automaton.match_pattern(self.state, i));
                let length = lengths
                    .map(|pattern| self.automaton.pattern_len(pattern))
                    .max()
                    .unwrap_or(0);
                return Found::Stop { end: i + 1, length };
            }
        }
        Found::Held(self.depths.get(&self.state).copied().unwrap_or(0))
    }
}
