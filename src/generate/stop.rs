//! Stop strings over streamed text. (A stop token such as `</s>` needs no rule of its own: it is
//! compared as an id, before it is text.)

use std::collections::HashMap;

use aho_corasick::{
    Anchored,
    automaton::{Automaton, StateID},
    nfa::contiguous::NFA,
};

use crate::{Error, Result};

/// The most stop strings that a session takes.
pub const MAX_STOP_STRINGS: usize = 64;

/// The most bytes of one stop string.
pub const MAX_STOP_BYTES: usize = 1024;

/// Watches a text that arrives in pieces for strings that end it, and holds back what may be the
/// beginning of one.
///
/// The string that is complete first ends the text; of several complete at the same character, the
/// longest. Where the borders between the pieces lie makes no difference. The work grows with the
/// text alone, not with the number of strings or their length.
#[derive(Debug)]
pub struct StopStrings {
    /// `None` where there is nothing to watch for.
    matcher: Option<Matcher>,
    held: String,
    stopped: bool,
}

/// What a piece of text brought.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StopOutcome {
    /// Text that can be shown now. The stop string is never part of it.
    pub text: String,
    /// Whether a stop string has ended the text.
    pub stopped: bool,
}

impl StopStrings {
    /// Watches for any of `stops`, which may be none.
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
    /// [`MAX_STOP_BYTES`], and for an empty one, which would end every text before it begins.
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

    /// Takes the next piece of text. Once stopped, everything further is dropped.
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

    /// Ends the text, where no stop string has, and returns what was held back.
    pub fn finish(&mut self) -> String {
        std::mem::take(&mut self.held)
    }
}

/// An automaton whose state is the longest end of the text that some stop string begins with.
#[derive(Debug)]
struct Matcher {
    automaton: NFA,
    /// Bytes of the beginning that a state stands for. A state that is not listed stands for none.
    depths: HashMap<StateID, usize>,
    state: StateID,
}

/// What the automaton found in a piece, in bytes.
enum Found {
    /// A stop string of this length is complete at `end` of the piece.
    Stop { end: usize, length: usize },
    /// The text ends with the beginning of a stop string, of this length.
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
