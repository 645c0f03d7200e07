//! Choosing the next token from the logits, in the order that transformers has: repetition penalty,
//! temperature, top-k, top-p, min-p, then a draw.
//!
//! The draw is reproducible on every platform: ChaCha8, keyed by rand's `seed_from_u64`, gives one
//! number of 53 bits for each token drawn.

use std::cmp::Ordering;

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{RngCore, SeedableRng};

use crate::{Error, Result, device::room};

/// How the next token is chosen. The default takes the likeliest token each time.
#[derive(Debug, Clone, PartialEq)]
pub struct SamplingParams {
    /// Divides the logits: below 1 bolder, above 1 more varied. 0 takes the likeliest token, the
    /// lowest id of equal ones.
    pub temperature: f32,
    /// Keep this many likeliest tokens, and those equal to the last of them. 0 = all.
    pub top_k: u32,
    /// Keep the likeliest tokens that together reach this probability: above 0, at most 1. 1 = all.
    pub top_p: f32,
    /// Keep the tokens at least this fraction as likely as the likeliest: 0 to 1. 0 = all.
    pub min_p: f32,
    /// Makes tokens of the history less likely (above 1) or likelier (below 1): positive logits are
    /// divided by it, negative ones multiplied. 1 = off.
    pub repetition_penalty: f32,
    /// How many of the latest tokens of the history the penalty concerns. 0 = all.
    pub repetition_window: usize,
    /// Start of the random numbers. The same seed and the same logits give the same tokens.
    pub seed: u64,
}

impl Default for SamplingParams {
    fn default() -> Self {
        Self {
            temperature: 0.0,
            top_k: 0,
            top_p: 1.0,
            min_p: 0.0,
            repetition_penalty: 1.0,
            repetition_window: 0,
            seed: 0,
        }
    }
}

impl SamplingParams {
    /// Checks the range of each value.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] naming the first field that is out of its range.
    pub fn validate(&self) -> Result<()> {
        let check = |valid: bool, field: &str, range: &str, value: f32| match valid {
            true => Ok(()),
            false => Err(Error::InvalidArgument(format!(
                "{field} must be {range}, found {value}"
            ))),
        };
        let (temperature, penalty) = (self.temperature, self.repetition_penalty);
        check(
            temperature.is_finite() && temperature >= 0.0,
            "temperature",
            "a finite number of at least 0",
            temperature,
        )?;
        check(
            self.top_p > 0.0 && self.top_p <= 1.0,
            "top_p",
            "above 0 and at most 1",
            self.top_p,
        )?;
        check(
            (0.0..=1.0).contains(&self.min_p),
            "min_p",
            "from 0 to 1",
            self.min_p,
        )?;
        check(
            penalty.is_finite() && penalty > 0.0,
            "repetition_penalty",
            "a finite number above 0",
            penalty,
        )
    }
}

/// A token that was chosen.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Choice {
    /// Its id.
    pub token: u32,
    /// The natural logarithm of its probability by the model itself: without penalty, temperature
    /// or cuts.
    pub logprob: f32,
}

/// Chooses tokens, one after the other, with one stream of random numbers.
#[derive(Debug)]
pub struct Sampler {
    params: SamplingParams,
    random: ChaCha8Rng,
}

impl Sampler {
    /// A sampler at the start of its seed's random numbers.
    ///
    /// # Errors
    /// As for [`SamplingParams::validate`].
    pub fn new(params: SamplingParams) -> Result<Self> {
        params.validate()?;
        let random = ChaCha8Rng::seed_from_u64(params.seed);
        Ok(Self { params, random })
    }

    /// Chooses a token. `logits`: one for each token id; -inf rules a token out. `history`: the
    /// tokens so far, for the repetition penalty; ids beyond the logits are passed over.
    ///
    /// # Errors
    /// [`Error::InvalidState`] where the logits hold NaN or infinity, or rule out every token;
    /// [`Error::InvalidArgument`] where there are none.
    pub fn sample(&mut self, logits: &[f32], history: &[u32]) -> Result<Choice> {
        let normalizer = log_sum_exp(logits)?;
        let scores = self.penalized(logits, history)?;
        let index = match self.params.temperature {
            0.0 => argmax(&scores),
            _ => self.draw(&self.candidates(&scores)?),
        };
        Ok(choice(logits, index, normalizer))
    }

    /// What [`sample`](Self::sample) draws from: tokens and their probabilities, which add up to 1.
    /// Tokens not listed are never drawn.
    ///
    /// # Errors
    /// As for [`sample`](Self::sample).
    pub fn distribution(&self, logits: &[f32], history: &[u32]) -> Result<Vec<(u32, f64)>> {
        log_sum_exp(logits)?;
        let scores = self.penalized(logits, history)?;
        if self.params.temperature == 0.0 {
            return Ok(vec![(argmax(&scores) as u32, 1.0)]);
        }
        let candidates = self.candidates(&scores)?;
        let total: f64 = candidates.iter().map(|c| c.weight).sum();
        Ok(candidates
            .iter()
            .map(|c| (c.index as u32, c.weight / total))
            .collect())
    }

    fn penalized(&self, logits: &[f32], history: &[u32]) -> Result<Vec<f32>> {
        let mut scores = room_for_all(logits)?;
        scores.extend(logits);
        let SamplingParams {
            repetition_penalty: penalty,
            repetition_window: window,
            ..
        } = self.params;
        if penalty == 1.0 {
            return Ok(scores);
        }
        let recent = if window == 0 {
            history
        } else {
            &history[history.len().saturating_sub(window)..]
        };
        for &token in recent {
            // From the raw logit each time, so that a repeated token is penalized once.
            let index = token as usize;
            let Some(&logit) = logits.get(index).filter(|logit| logit.is_finite()) else {
                continue;
            };
            let score = if logit < 0.0 {
                logit * penalty
            } else {
                logit / penalty
            };
            scores[index] = score.clamp(f32::MIN, f32::MAX);
        }
        Ok(scores)
    }

    /// The tokens that top-k, top-p and min-p leave, with weights relative to the likeliest token's
    /// 1.
    fn candidates(&self, scores: &[f32]) -> Result<Vec<Candidate>> {
        let temperature = f64::from(self.params.temperature);
        let best = f64::from(scores[argmax(scores)]);
        let lowest = self.top_k_threshold(scores)?;
        let weighed = |(index, &score): (usize, &f32)| Candidate {
            index,
            weight: ((f64::from(score) - best) / temperature).exp(),
        };
        let mut candidates = room_for_all(scores)?;
        candidates.extend(
            scores
                .iter()
                .enumerate()
                .filter(|&(_, &score)| score >= lowest)
                .map(weighed),
        );
        keep_nucleus(&mut candidates, f64::from(self.params.top_p));
        candidates.retain(|c| c.weight >= f64::from(self.params.min_p) && c.weight > 0.0);
        Ok(candidates)
    }

    /// The lowest score that top-k keeps.
    fn top_k_threshold(&self, scores: &[f32]) -> Result<f32> {
        let k = self.params.top_k as usize;
        if k == 0 || k >= scores.len() {
            return Ok(f32::NEG_INFINITY);
        }
        let mut sorted = room_for_all(scores)?;
        sorted.extend(scores);
        Ok(*sorted
            .select_nth_unstable_by(k - 1, |a: &f32, b: &f32| b.total_cmp(a))
            .1)
    }

    fn draw(&mut self, candidates: &[Candidate]) -> usize {
        let total: f64 = candidates.iter().map(|c| c.weight).sum();
        let fraction = (self.random.next_u64() >> 11) as f64 / (1u64 << 53) as f64;
        let mut passed = 0.0;
        let drawn = candidates.iter().find(|c| {
            passed += c.weight;
            passed > fraction * total
        });
        // Rounding can leave the sum a hair short of the draw.
        drawn.or(candidates.last()).map_or(0, |c| c.index)
    }
}

/// Makes room for an item for each token of the vocabulary.
fn room_for_all<T>(logits: &[f32]) -> Result<Vec<T>> {
    room(logits.len(), || {
        format!("choosing among {} tokens", logits.len())
    })
}

struct Candidate {
    index: usize,
    weight: f64,
}

/// Top-p: keeps the likeliest tokens until their probabilities add up to `top_p`, likeliest first.
fn keep_nucleus(candidates: &mut Vec<Candidate>, top_p: f64) {
    if top_p >= 1.0 {
        return;
    }
    let total: f64 = candidates.iter().map(|c| c.weight).sum();
    // Tokens so unlikely that even all together they lie outside: they need no sorting, and they
    // are nearly all of them.
    let negligible = (1.0 - top_p) * total / candidates.len() as f64;
    candidates.retain(|c| c.weight >= negligible);
    candidates.sort_unstable_by(|a, b| b.weight.total_cmp(&a.weight).then(a.index.cmp(&b.index)));
    let mut likelier = 0.0;
    let kept = candidates.iter().take_while(|c| {
        let keep = likelier < top_p * total;
        likelier += c.weight;
        keep
    });
    let kept = kept.count();
    candidates.truncate(kept);
}

/// The `k` likeliest tokens by the model itself, likeliest first, of equal ones the lower id first.
///
/// # Errors
/// As for [`Sampler::sample`].
pub fn top_logprobs(logits: &[f32], k: usize) -> Result<Vec<Choice>> {
    let normalizer = log_sum_exp(logits)?;
    let likelier_first = |&a: &usize, &b: &usize| descending(logits[a], logits[b]).then(a.cmp(&b));
    let mut indices: Vec<usize> = room_for_all(logits)?;
    indices.extend(0..logits.len());
    if k < indices.len() {
        indices.select_nth_unstable_by(k, likelier_first);
        indices.truncate(k);
    }
    indices.sort_unstable_by(likelier_first);
    Ok(indices
        .into_iter()
        .map(|index| choice(logits, index, normalizer))
        .collect())
}

fn choice(logits: &[f32], index: usize, normalizer: f64) -> Choice {
    Choice {
        token: index as u32,
        logprob: (f64::from(logits[index]) - normalizer) as f32,
    }
}

/// Without NaN: log_sum_exp has refused it.
fn descending(a: f32, b: f32) -> Ordering {
    b.partial_cmp(&a).unwrap_or(Ordering::Equal)
}

/// The lowest index of the greatest score.
fn argmax(scores: &[f32]) -> usize {
    (1..scores.len()).fold(0, |best, i| if scores[i] > scores[best] { i } else { best })
}

/// The logarithm of the sum of the exponentials, which turns a logit into a log-probability.
/// Refuses logits that make no distribution.
fn log_sum_exp(logits: &[f32]) -> Result<f64> {
    if logits.is_empty() {
        return Err(Error::InvalidArgument(
            "there are no logits to choose a token from".into(),
        ));
    }
    if let Some(token) = logits
        .iter()
        .position(|logit| logit.is_nan() || *logit == f32::INFINITY)
    {
        let what = if logits[token].is_nan() {
            "NaN"
        } else {
            "infinity"
        };
        return Err(Error::InvalidState(format!(
            "the model produced {what} (logit of token {token}); its weights or the picture's \
             pixels are damaged"
        )));
    }
    let max = f64::from(logits[argmax(logits)]);
    if max == f64::NEG_INFINITY {
        return Err(Error::InvalidState(
            "the model ruled out every token (all logits are -inf)".into(),
        ));
    }
    let sum: f64 = logits
        .iter()
        .map(|&logit| (f64::from(logit) - max).exp())
        .sum();
    Ok(max + sum.ln())
}
