//! Stop strings over streamed text. (A stop token such as `</s>` needs no rule of its own: it is compared as an id, before it is text.)

use crate::{Error, Result};

/// Watches a text that arrives in pieces for strings that end it, and holds back what may be the beginning of one.
///
/// The string that is complete first ends the text; of several complete at the same character, the longest. Where the borders between the
/// pieces lie makes no difference.
#[derive(Debug)]
pub struct StopStrings {
    stops: Vec<String>,
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
    /// [`Error::InvalidArgument`] for an empty string, which would end every text before it begins.
    pub fn new(stops: Vec<String>) -> Result<Self> {
        match stops.iter().position(String::is_empty) {
            Some(i) => Err(Error::InvalidArgument(format!("stop string {} of {} is empty", i + 1, stops.len()))),
            None => Ok(Self { stops, held: String::new(), stopped: false }),
        }
    }

    /// Takes the next piece of text. Once stopped, everything further is dropped.
    pub fn push(&mut self, piece: &str) -> StopOutcome {
        if self.stopped {
            return StopOutcome { text: String::new(), stopped: true };
        }
        self.held.push_str(piece);
        let mut text = std::mem::take(&mut self.held);
        match self.first_match(&text) {
            Some(start) => {
                text.truncate(start);
                self.stopped = true;
            }
            None => self.held = text.split_off(text.len() - self.possible_beginning(&text)),
        }
        StopOutcome { text, stopped: self.stopped }
    }

    /// The text has ended without a stop string: gives what was held back.
    pub fn finish(&mut self) -> String {
        std::mem::take(&mut self.held)
    }

    /// Where the stop string that is complete first begins.
    fn first_match(&self, text: &str) -> Option<usize> {
        let matches = self.stops.iter().filter_map(|stop| text.find(stop.as_str()).map(|start| (start + stop.len(), start)));
        matches.min().map(|(_, start)| start)
    }

    /// Length in bytes of the longest end of `text` that some stop string begins with.
    fn possible_beginning(&self, text: &str) -> usize {
        let longest = |stop: &String| stop.char_indices().map(|(i, _)| i).filter(|&i| text.ends_with(&stop[..i])).max();
        self.stops.iter().filter_map(longest).max().unwrap_or(0)
    }
}
