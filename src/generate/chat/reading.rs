//! A prompt that is being read, and the features that stand in it.

use std::ops::Range;

use crate::{generate::Prompt, nn::Features};

/// A prompt that is being read.
pub struct Reading {
    /// All of it.
    pub prompt: Prompt,
    /// Of each picture, from when it is encoded until its rows are read.
    pub features: Vec<Option<Features>>,
}

impl Reading {
    /// A picture that has rows among these and is not encoded yet.
    pub fn missing(&self, rows: &Range<usize>) -> Option<usize> {
        let is_among = |runs: &[Range<usize>]| {
            runs.iter()
                .any(|run| run.start < rows.end && run.end > rows.start)
        };
        (0..self.features.len())
            .find(|i| self.features[*i].is_none() && is_among(&self.prompt.images[*i]))
    }

    /// What stands in these rows: rows counted from the first of them, features, and the first
    /// feature.
    pub fn features_of(&self, rows: &Range<usize>) -> Vec<(Range<usize>, &Features, usize)> {
        let mut all = Vec::new();
        for (runs, features) in self.prompt.images.iter().zip(&self.features) {
            let Some(features) = features else { continue };
            let mut first = 0;
            for run in runs {
                let (start, end) = (run.start.max(rows.start), run.end.min(rows.end));
                if start < end {
                    all.push((
                        start - rows.start..end - rows.start,
                        features,
                        first + start - run.start,
                    ));
                }
                first += run.len();
            }
        }
        all
    }

    /// Lets go of pictures whose rows are all read.
    pub fn forget_before(&mut self, end: usize) {
        for (runs, features) in self.prompt.images.iter().zip(&mut self.features) {
            if runs.iter().all(|run| run.end <= end) {
                *features = None;
            }
        }
    }
}
