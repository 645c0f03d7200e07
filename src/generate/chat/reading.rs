//! A prompt that is being read, and the features in it.

use std::ops::Range;

use crate::{generate::Prompt, nn::Features};

/// A prompt that is being read.
pub struct Reading {
    /// The whole prompt.
    pub prompt: Prompt,
    /// The features of each picture, from its encoding until its rows are read.
    pub features: Vec<Option<Features>>,
}

impl Reading {
    /// Returns a picture that has rows in this range and is not encoded yet.
    pub fn missing(&self, rows: &Range<usize>) -> Option<usize> {
        let is_among = |runs: &[Range<usize>]| {
            runs.iter()
                .any(|run| run.start < rows.end && run.end > rows.start)
        };
        (0..self.features.len())
            .find(|i| self.features[*i].is_none() && is_among(&self.prompt.media[*i]))
    }

    /// Returns the features in these rows: rows counted from the start of the range, features, and
    /// the index of the first feature.
    pub fn features_of(&self, rows: &Range<usize>) -> Vec<(Range<usize>, &Features, usize)> {
        let mut all = Vec::new();
        for (runs, features) in self.prompt.media.iter().zip(&self.features) {
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

    /// Drops pictures whose rows are all read.
    pub fn forget_before(&mut self, end: usize) {
        for (runs, features) in self.prompt.media.iter().zip(&mut self.features) {
            if runs.iter().all(|run| run.end <= end) {
                *features = None;
            }
        }
    }
}
