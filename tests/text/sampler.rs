use std::collections::HashMap;

use moxin_vlm::Error;
use moxin_vlm::generate::{Sampler, SamplingParams, top_logprobs};
use serde::Deserialize;

use crate::{Random, fixture};

#[derive(Deserialize)]
struct Fixture {
    /// `None` is -inf.
    logits: HashMap<String, Vec<Option<f32>>>,
    history: Vec<u32>,
    cases: Vec<Case>,
    logprobs: Vec<f64>,
    draws: Vec<Draws>,
}

#[derive(Deserialize)]
struct Case {
    logits: String,
    temperature: f32,
    top_k: u32,
    top_p: f32,
    min_p: f32,
    repetition_penalty: f32,
    kept: Vec<(u32, f64)>,
}

#[derive(Deserialize)]
struct Draws {
    seed: String,
    tokens: Vec<u32>,
}

impl Fixture {
    fn logits(&self, name: &str) -> Vec<f32> {
        self.logits[name]
            .iter()
            .map(|logit| logit.unwrap_or(f32::NEG_INFINITY))
            .collect()
    }
}

fn load() -> Fixture {
    fixture("sampling")
}

fn sampler(params: SamplingParams) -> Sampler {
    Sampler::new(params).unwrap()
}

fn at_temperature(temperature: f32) -> SamplingParams {
    SamplingParams {
        temperature,
        ..Default::default()
    }
}

#[test]
fn filters_as_transformers_does() {
    let fixture = load();
    for case in &fixture.cases {
        let Case {
            temperature,
            top_k,
            top_p,
            min_p,
            repetition_penalty,
            ..
        } = *case;
        let params = SamplingParams {
            temperature,
            top_k,
            top_p,
            min_p,
            repetition_penalty,
            ..Default::default()
        };
        let mut found = sampler(params.clone())
            .distribution(&fixture.logits(&case.logits), &fixture.history)
            .unwrap();
        found.sort_by_key(|&(token, _)| token);
        let tokens = |kept: &[(u32, f64)]| kept.iter().map(|&(token, _)| token).collect::<Vec<_>>();
        assert_eq!(
            tokens(&found),
            tokens(&case.kept),
            "{}: {params:?}",
            case.logits
        );
        for (&(token, p), &(_, expected)) in found.iter().zip(&case.kept) {
            assert!(
                (p - expected).abs() < 2e-6,
                "{}: {params:?}: token {token} has {p}, expected {expected}",
                case.logits
            );
        }
    }
}

/// Against ChaCha8 and a walk over the probabilities written in Python.
#[test]
fn draws_the_documented_random_numbers() {
    let fixture = load();
    for draws in &fixture.draws {
        let mut sampler = sampler(SamplingParams {
            seed: draws.seed.parse().unwrap(),
            ..at_temperature(1.0)
        });
        let tokens: Vec<u32> = draws
            .tokens
            .iter()
            .map(|_| sampler.sample(&fixture.logits("base"), &[]).unwrap().token)
            .collect();
        assert_eq!(tokens, draws.tokens, "seed {}", draws.seed);
    }
}

#[test]
fn draws_by_the_distribution() {
    let fixture = load();
    let logits = fixture.logits("base");
    let mut sampler = sampler(SamplingParams {
        top_k: 12,
        top_p: 0.95,
        seed: 4,
        ..at_temperature(2.0)
    });
    let expected: HashMap<u32, f64> = sampler
        .distribution(&logits, &[])
        .unwrap()
        .into_iter()
        .collect();
    let mut counts: HashMap<u32, f64> = HashMap::new();
    let draws = 20_000;
    for _ in 0..draws {
        *counts
            .entry(sampler.sample(&logits, &[]).unwrap().token)
            .or_default() += 1.0;
    }
    assert!(counts.keys().all(|token| expected.contains_key(token)));
    for (token, p) in expected {
        let frequency = counts.get(&token).copied().unwrap_or(0.0) / draws as f64;
        let deviation = (p * (1.0 - p) / draws as f64).sqrt();
        assert!(
            (frequency - p).abs() < 4.5 * deviation,
            "token {token}: drawn {frequency}, probability {p}"
        );
    }
}

#[test]
fn same_seed_same_tokens() {
    let logits = load().logits("base");
    let tokens = |seed| {
        let mut sampler = sampler(SamplingParams {
            seed,
            ..at_temperature(1.5)
        });
        (0..64)
            .map(|_| sampler.sample(&logits, &[]).unwrap().token)
            .collect::<Vec<_>>()
    };
    assert_eq!(tokens(9), tokens(9));
    assert_ne!(tokens(9), tokens(10));
}

#[test]
fn greedy_takes_the_first_of_the_most_likely() {
    let mut greedy = sampler(SamplingParams::default());
    assert_eq!(
        greedy
            .sample(&[1.0, 5.0, 5.0, f32::NEG_INFINITY], &[])
            .unwrap()
            .token,
        1
    );
    assert_eq!(
        greedy
            .sample(&[f32::NEG_INFINITY, -3.0], &[])
            .unwrap()
            .token,
        1
    );
    let mut penalized = sampler(SamplingParams {
        repetition_penalty: 2.0,
        ..Default::default()
    });
    assert_eq!(
        penalized.sample(&[1.0, 5.0, 4.0], &[1, 1]).unwrap().token,
        2
    );
    assert_eq!(penalized.sample(&[-1.0, -1.5], &[0]).unwrap().token, 1);
    assert_eq!(
        penalized.sample(&[1.0, 5.0], &[9, u32::MAX]).unwrap().token,
        1
    );
}

#[test]
fn penalizes_within_the_window() {
    let chosen = |repetition_window, history: &[u32]| {
        let params = SamplingParams {
            repetition_penalty: 2.0,
            repetition_window,
            ..Default::default()
        };
        sampler(params)
            .sample(&[5.0, 4.5, 4.0], history)
            .unwrap()
            .token
    };
    assert_eq!(chosen(1, &[0, 1]), 0);
    assert_eq!(chosen(1, &[1, 0]), 1);
    for whole in [2, 99, 0] {
        assert_eq!(chosen(whole, &[0, 1]), 2);
    }
}

#[test]
fn log_probabilities_are_the_models_own() {
    let fixture = load();
    let logits = fixture.logits("base");
    let mut sampler = sampler(SamplingParams {
        top_k: 8,
        repetition_penalty: 1.5,
        seed: 1,
        ..at_temperature(3.0)
    });
    for _ in 0..20 {
        let choice = sampler.sample(&logits, &fixture.history).unwrap();
        assert!((f64::from(choice.logprob) - fixture.logprobs[choice.token as usize]).abs() < 1e-5);
    }

    let mut expected: Vec<u32> = (0..logits.len() as u32).collect();
    expected
        .sort_by(|&a, &b| fixture.logprobs[b as usize].total_cmp(&fixture.logprobs[a as usize]));
    for k in [0, 1, 5, logits.len(), 999] {
        let top = top_logprobs(&logits, k).unwrap();
        let tokens: Vec<u32> = top.iter().map(|choice| choice.token).collect();
        assert_eq!(tokens, expected[..k.min(logits.len())]);
        assert!(top.iter().all(|choice| {
            (f64::from(choice.logprob) - fixture.logprobs[choice.token as usize]).abs() < 1e-5
        }));
    }
    let equal: Vec<u32> = top_logprobs(&[1.0, 2.0, 2.0, 2.0], 2)
        .unwrap()
        .iter()
        .map(|choice| choice.token)
        .collect();
    assert_eq!(equal, [1, 2]);
}

#[test]
fn refuses_logits_that_are_no_distribution() {
    for params in [SamplingParams::default(), at_temperature(1.0)] {
        let mut sampler = sampler(params);
        for (logits, what) in [
            (vec![1.0, f32::NAN], "NaN"),
            (vec![f32::NAN, 1.0], "NaN"),
            (vec![1.0, f32::INFINITY], "infinity"),
            (vec![f32::NEG_INFINITY; 3], "every token"),
        ] {
            let error = sampler.sample(&logits, &[]).unwrap_err();
            assert!(
                matches!(error, Error::InvalidState(_)) && error.to_string().contains(what),
                "{error}"
            );
            assert!(top_logprobs(&logits, 1).is_err());
        }
        assert!(matches!(
            sampler.sample(&[], &[]),
            Err(Error::InvalidArgument(_))
        ));
    }
}

/// Neither extreme settings nor extreme logits lead outside of the vocabulary, to a token that is
/// ruled out, or to NaN.
#[test]
fn holds_at_the_extremes() {
    let tiny = f32::MIN_POSITIVE;
    let mut random = Random::new(6);
    let values = [
        0.0,
        -0.0,
        tiny,
        -tiny,
        1e30,
        -1e30,
        f32::MAX,
        f32::MIN,
        1.0,
        -1.0,
        f32::NEG_INFINITY,
    ];
    for _ in 0..2000 {
        let logits: Vec<f32> = (0..1 + random.below(6))
            .map(|_| *random.pick(&values))
            .collect();
        if logits.iter().all(|logit| *logit == f32::NEG_INFINITY) {
            continue;
        }
        let params = SamplingParams {
            temperature: *random.pick(&[0.0, 1e-45, tiny, 1.0, f32::MAX]),
            top_k: *random.pick(&[0, 1, 3, u32::MAX]),
            top_p: *random.pick(&[1e-45, 0.5, 1.0]),
            min_p: *random.pick(&[0.0, 0.5, 1.0]),
            repetition_penalty: *random.pick(&[1e-45, tiny, 1.0, f32::MAX]),
            repetition_window: random.below(3),
            frequency_penalty: *random.pick(&[-2.0, 0.0, 2.0]),
            presence_penalty: *random.pick(&[-2.0, 0.0, 2.0]),
            seed: random.below(1000) as u64,
        };
        let history = [0, 1, 1, 77];
        let mut sampler = sampler(params.clone());
        let total: f64 = sampler
            .distribution(&logits, &history)
            .unwrap()
            .iter()
            .map(|&(_, p)| p)
            .sum();
        assert!((total - 1.0).abs() < 1e-9, "{params:?} {logits:?}: {total}");
        let choice = sampler.sample(&logits, &history).unwrap();
        assert!(
            logits[choice.token as usize] > f32::NEG_INFINITY && !choice.logprob.is_nan(),
            "{params:?} {logits:?}: {choice:?}"
        );
    }
}

/// A field to change, and a value that is refused.
type Wrong = (&'static str, fn(&mut SamplingParams, f32), f32);

#[test]
fn validates_each_field() {
    let temperature: fn(&mut SamplingParams, f32) = |p, v| p.temperature = v;
    let top_p: fn(&mut SamplingParams, f32) = |p, v| p.top_p = v;
    let min_p: fn(&mut SamplingParams, f32) = |p, v| p.min_p = v;
    let penalty: fn(&mut SamplingParams, f32) = |p, v| p.repetition_penalty = v;
    let (nan, infinity) = (f32::NAN, f32::INFINITY);
    let wrong: [Wrong; 14] = [
        ("temperature", temperature, -0.1),
        ("temperature", temperature, nan),
        ("temperature", temperature, infinity),
        ("top_p", top_p, 0.0),
        ("top_p", top_p, 1.01),
        ("top_p", top_p, -1.0),
        ("top_p", top_p, nan),
        ("min_p", min_p, -0.1),
        ("min_p", min_p, 1.1),
        ("min_p", min_p, nan),
        ("repetition_penalty", penalty, 0.0),
        ("repetition_penalty", penalty, -1.0),
        ("repetition_penalty", penalty, nan),
        ("repetition_penalty", penalty, infinity),
    ];
    for (field, set, value) in wrong {
        let mut params = SamplingParams::default();
        set(&mut params, value);
        let error = Sampler::new(params).unwrap_err();
        assert!(
            matches!(error, Error::InvalidArgument(_)) && error.to_string().contains(field),
            "{field} {value}: {error}"
        );
    }
    SamplingParams::default().validate().unwrap();
}

#[derive(Deserialize)]
struct Penalties {
    logits: Vec<f32>,
    cases: Vec<Penalized>,
}

#[derive(Deserialize)]
struct Penalized {
    frequency: f32,
    presence: f32,
    repetition: f32,
    answer: Vec<u32>,
    penalized: Vec<f64>,
}

/// Makes the sampler sample these tokens.
fn sample_exactly(sampler: &mut Sampler, tokens: &[u32], vocabulary: usize) {
    for &token in tokens {
        let mut only = vec![f32::NEG_INFINITY; vocabulary];
        only[token as usize] = 0.0;
        assert_eq!(sampler.sample(&only, &[]).unwrap().token, token);
    }
}

#[test]
fn what_the_answer_contains_is_penalized_like_in_mlx_lm() {
    let Penalties { logits, cases } = fixture("penalties");
    assert!(cases.len() > 4);
    for case in cases {
        let mut sampler = sampler(SamplingParams {
            frequency_penalty: case.frequency,
            presence_penalty: case.presence,
            repetition_penalty: case.repetition,
            ..at_temperature(1.0)
        });
        sample_exactly(&mut sampler, &case.answer, logits.len());
        let weights: Vec<f64> = case.penalized.iter().map(|logit| logit.exp()).collect();
        let total: f64 = weights.iter().sum();
        // The history is longer than the answer: only the repetition penalty looks at it.
        let found = sampler.distribution(&logits, &case.answer).unwrap();
        assert_eq!(found.len(), logits.len());
        for (token, probability) in found {
            let expected = weights[token as usize] / total;
            assert!(
                (probability - expected).abs() < 1e-6,
                "{token} of {:?}",
                case.answer
            );
        }
    }
}
