//! Sampling the next token from the logits, in the order of transformers: repetition penalty,
//! temperature, top-k, top-p, min-p, then a random draw. Frequency and presence penalty, which
//! transformers does not have, follow the repetition penalty, as in
//! [vLLM](https://docs.vllm.ai/en/latest/api/vllm/sampling_params/).
//!
//! The draw is reproducible on every platform: ChaCha8, keyed by rand's `seed_from_u64`, provides
//! one 53-bit number for each sampled token.

use std::{cmp::Ordering, collections::BTreeMap};

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{RngCore, SeedableRng};

use crate::{Error, Result, device::room};

/// How the next token is sampled. The default always takes the most likely token.
#[derive(Debug, Clone, PartialEq)]
pub struct SamplingParams {
    /// Divides the logits: values below 1 sharpen the distribution, values above 1 flatten it. 0
    /// takes the most likely token, and of equal ones the lowest id.
    pub temperature: f32,
    /// Keeps this many of the most likely tokens, and those equal to the last of them. 0 = all.
    pub top_k: u32,
    /// Keeps the most likely tokens that together reach this probability: above 0, at most 1. 1 =
    /// all.
    pub top_p: f32,
    /// Keeps the tokens at least this fraction as likely as the most likely one: 0 to 1. 0 = all.
    pub min_p: f32,
    /// Makes tokens of the history less likely (above 1) or more likely (below 1): positive logits
    /// are divided by it, negative ones multiplied. 1 = off.
    pub repetition_penalty: f32,
    /// The number of latest tokens of the history that the penalty applies to. 0 = all.
    pub repetition_window: usize,
    /// Is subtracted from a token's logit once for each time that the answer already contains it: -2
    /// to 2. 0 = off.
    pub frequency_penalty: f32,
    /// Is subtracted from the logits of all tokens that the answer already contains: -2 to 2. 0 =
    /// off.
    pub presence_penalty: f32,
    /// The seed of the random numbers. The same seed and the same logits result in the same tokens.
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
            frequency_penalty: 0.0,
            presence_penalty: 0.0,
            seed: 0,
        }
    }
}

impl SamplingParams {
    /// Checks the range of each value.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] naming the first field that is out of range.
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
        )?;
        for (field, penalty) in [
            ("frequency_penalty", self.frequency_penalty),
            ("presence_penalty", self.presence_penalty),
        ] {
            check(
                (-2.0..=2.0).contains(&penalty),
                field,
                "from -2 to 2",
                penalty,
            )?;
        }
        Ok(())
    }
}

/// A sampled token.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Choice {
    /// The token id.
    pub token: u32,
    /// The natural logarithm of its probability according to the model: without penalty,
    /// temperature or filters.
    pub logprob: f32,
}

/// Samples the tokens of an answer one after the other, with one stream of random numbers.
#[derive(Debug)]
pub struct Sampler {
    params: SamplingParams,
    random: ChaCha8Rng,
    /// How often each token was sampled.
    counts: BTreeMap<u32, u32>,
}

impl Sampler {
    /// Creates a sampler at the start of its seed's random numbers.
    ///
    /// # Errors
    /// As for [`SamplingParams::validate`].
    pub fn new(params: SamplingParams) -> Result<Self> {
        params.validate()?;
        let random = ChaCha8Rng::seed_from_u64(params.seed);
        Ok(Self {
            params,
            random,
            counts: BTreeMap::new(),
        })
    }

    /// Samples a token. `logits` has one value per token id; -inf rules a token out. `history` has
    /// the tokens so far, for the repetition penalty; ids beyond the logits are ignored.
    ///
    /// # Errors
    /// [`Error::InvalidState`] if the logits contain NaN or infinity, or rule out every token;
    /// [`Error::InvalidArgument`] if there are no logits.
    pub fn sample(&mut self, logits: &[f32], history: &[u32]) -> Result<Choice> {
        let normalizer = log_sum_exp(logits)?;
        let scores = self.penalized(logits, history)?;
        let index = match self.params.temperature {
            0.0 => argmax(&scores),
            _ => self.draw(&self.candidates(&scores)?),
        };
        *self.counts.entry(index as u32).or_default() += 1;
        Ok(choice(logits, index, normalizer))
    }

    /// Returns the distribution that [`sample`](Self::sample) draws from: tokens and their
    /// probabilities, which add up to 1. Tokens not listed are never drawn.
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
        self.penalize_history(logits, history, &mut scores);
        self.penalize_answer(&mut scores);
        Ok(scores)
    }

    fn penalize_history(&self, logits: &[f32], history: &[u32], scores: &mut [f32]) {
        let SamplingParams {
            repetition_penalty: penalty,
            repetition_window: window,
            ..
        } = self.params;
        if penalty == 1.0 {
            return;
        }
        let recent = if window == 0 {
            history
        } else {
            &history[history.len().saturating_sub(window)..]
        };
        for &token in recent {
            // Uses the raw logit each time, so that a repeated token is penalized once.
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
    }

    fn penalize_answer(&self, scores: &mut [f32]) {
        let SamplingParams {
            frequency_penalty: frequency,
            presence_penalty: presence,
            ..
        } = self.params;
        for (&token, &count) in &self.counts {
            if let Some(score) = scores.get_mut(token as usize)
                && score.is_finite()
            {
                *score = (*score - (frequency * count as f32 + presence)).clamp(f32::MIN, f32::MAX);
            }
        }
    }

    /// Returns the tokens that pass top-k, top-p and min-p, with weights relative to the most
    /// likely token.
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

    /// Returns the lowest score that top-k keeps.
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
        // Rounding can leave the sum slightly below the draw.
        drawn.or(candidates.last()).map_or(0, |c| c.index)
    }
}

/// Reserves room for one item per token of the vocabulary.
fn room_for_all<T>(logits: &[f32]) -> Result<Vec<T>> {
    room(logits.len(), || {
        format!("sampling from {} tokens", logits.len())
    })
}

struct Candidate {
    index: usize,
    weight: f64,
}

/// Top-p: keeps the most likely tokens until their probabilities add up to `top_p`, in descending
/// order.
fn keep_nucleus(candidates: &mut Vec<Candidate>, top_p: f64) {
    if top_p >= 1.0 {
        return;
    }
    let total: f64 = candidates.iter().map(|c| c.weight).sum();
    // Nearly all tokens are so unlikely that even all of them together are cut off, so they need no
    // sorting.
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

/// Returns the `k` most likely tokens according to the model, in descending order; of equal ones,
/// the lower id first.
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

/// There is no NaN: log_sum_exp has refused it.
fn descending(a: f32, b: f32) -> Ordering {
    b.partial_cmp(&a).unwrap_or(Ordering::Equal)
}

/// Returns the lowest index of the highest score.
fn argmax(scores: &[f32]) -> usize {
    (1..scores.len()).fold(0, |best, i| if scores[i] > scores[best] { i } else { best })
}

/// Returns the logarithm of the sum of exponentials, which turns a logit into a log-probability.
/// Refuses logits that are no distribution.
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
