//! Compares the library with PyTorch on tiny random checkpoints; `tests/parity/README.md` describes
//! how the expected numbers were made.
//!
//! Everything runs in float32 on the CPU. `tests/parity/sensitivity.py` shows that a wrong epsilon,
//! window, activation, block and so on changes features or logits by at least twice the tolerance.

use std::{collections::HashMap, fs, path::PathBuf};

use mlx_rs::{Array, ops::indexing::TryIndexOp};
use moxin_vlm::{
    Backend, ConcatKeyValueCache, Event, FinishReason, Generate, GenerationOptions, LoadOptions,
    Message, Model, MoxinVLM, Op, Picture, Processor, Role, Session, Tokenizer,
    compat::load_model_on, device::Device, generate::Stats, image::Pixels, load_tokenizer,
    models::prismatic::pure_prompt, nn::Want,
};
use safetensors::{SafeTensors, tensor::TensorView};
use serde::Deserialize;

const CHECKPOINTS: [&str; 3] = ["naive_f32", "letterbox_bf16", "crop_siglip"];
const PICTURES: [&str; 3] = ["photo", "small", "tall"];
const TOLERANCE: f32 = 5e-4;
/// `</s>`
const END: u32 = 2;

/// A checkpoint and PyTorch's results for it.
struct Fixture {
    name: &'static str,
    folder: PathBuf,
    tensors: HashMap<String, Vec<f32>>,
    cases: Vec<Case>,
}

/// A conversation up to a question, and the greedy answer to it.
#[derive(Debug, Clone, Deserialize)]
struct Case {
    name: String,
    picture: Option<String>,
    /// Question, answer, question and so on.
    turns: Vec<String>,
    prompt: String,
    ids: Vec<u32>,
    answer: String,
    answer_ids: Vec<u32>,
    logprobs: Vec<f32>,
}

#[derive(Deserialize)]
struct Expected {
    cases: Vec<Case>,
}

impl Fixture {
    fn all() -> [Fixture; 3] {
        CHECKPOINTS.map(Fixture::read)
    }

    fn read(name: &'static str) -> Fixture {
        let folder = parity().join(name);
        let expected: Expected =
            serde_json::from_slice(&fs::read(folder.join("expected.json")).unwrap()).unwrap();
        let file = fs::read(folder.join("expected.safetensors")).unwrap();
        let tensors = SafeTensors::deserialize(&file)
            .unwrap()
            .iter()
            .map(|(name, tensor)| (name.to_owned(), floats(&tensor)))
            .collect();
        Fixture {
            name,
            folder,
            tensors,
            cases: expected.cases,
        }
    }

    fn model(&self) -> PathBuf {
        self.folder.join("model")
    }

    fn processor(&self) -> Processor {
        Processor::from_file(&self.model().join("preprocessor_config.json")).unwrap()
    }

    fn tokenizer(&self) -> Tokenizer {
        load_tokenizer(self.model()).unwrap()
    }

    fn tensor(&self, name: &str) -> &[f32] {
        &self.tensors[name]
    }

    fn case(&self, name: &str) -> &Case {
        self.cases.iter().find(|case| case.name == name).unwrap()
    }

    /// Fails if numbers differ from PyTorch's by more than the tolerance, or are not numbers.
    fn assert_close(&self, name: &str, ours: &[f32]) {
        assert_close(&format!("{} {name}", self.name), ours, self.tensor(name));
    }

    /// Runs `test` with the model loaded for this thread's CPU.
    fn with_vlm(&self, test: impl FnOnce(&mut MoxinVLM)) {
        let device = Device::new(Backend::Cpu).unwrap();
        device.run(|| {
            test(&mut load_model_on(&self.model(), &device, None, &|_, _| Ok(())).unwrap())
        });
    }

    fn session(&self, case: &Case, prefill_chunk: usize) -> Session {
        let model = Model::load(
            self.model(),
            LoadOptions {
                backend: Backend::Cpu,
                ..Default::default()
            },
            Op::default(),
        )
        .unwrap();
        let options = GenerationOptions {
            max_tokens: case.answer_ids.len(),
            prefill_chunk,
            ..Default::default()
        };
        let session = model.session(options).unwrap();
        if let Some(name) = &case.picture {
            session.add_image(picture(name)).unwrap();
        }
        session
    }

    /// Generates the session's answer and compares it with the case's.
    fn assert_answers(&self, session: &Session, case: &Case) {
        let (mut tokens, mut logprobs, mut text, mut ended) =
            (Vec::new(), Vec::new(), String::new(), None);
        for event in session.generate() {
            match event.unwrap() {
                Event::Prefill { .. } => {}
                Event::Text {
                    text: part,
                    token,
                    logprob,
                    ..
                } => {
                    tokens.push(token);
                    logprobs.push(logprob);
                    text += &part;
                }
                Event::Finished { reason, text: part } => {
                    text += &part;
                    ended = Some(reason);
                }
            }
        }
        let name = format!("{} {}", self.name, case.name);
        // An answer that ends with `</s>` ends the turn, and the session does not return that
        // token.
        let (expected, reason) = match case.answer_ids.split_last() {
            Some((&END, before)) => (before, FinishReason::EndOfTurn),
            _ => (case.answer_ids.as_slice(), FinishReason::MaxTokens),
        };
        assert_eq!(tokens, expected, "{name}");
        assert_close(&name, &logprobs, &case.logprobs[..expected.len()]);
        assert_eq!(text.trim(), case.answer, "{name}");
        assert_eq!(ended, Some(reason), "{name}");
    }
}

fn parity() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/parity")
}

fn picture(name: &str) -> Picture {
    Picture::open(
        parity().join("pictures").join(format!("{name}.png")),
        &Default::default(),
    )
    .unwrap()
}

fn floats(tensor: &TensorView) -> Vec<f32> {
    assert_eq!(tensor.dtype(), safetensors::Dtype::F32);
    tensor
        .data()
        .chunks_exact(4)
        .map(|bytes| f32::from_le_bytes(bytes.try_into().unwrap()))
        .collect()
}

fn to_vec(array: &Array) -> Vec<f32> {
    array.to_vec_cast::<f32>().unwrap()
}

fn assert_close(name: &str, ours: &[f32], theirs: &[f32]) {
    assert_eq!(ours.len(), theirs.len(), "{name}: how many numbers");
    for (i, (a, b)) in ours.iter().zip(theirs).enumerate() {
        assert!(
            (a - b).abs() <= TOLERANCE,
            "{name}: number {i} is {a}, PyTorch's {b}"
        );
    }
}

/// The case's turns as messages.
fn turns(case: &Case) -> Vec<Message> {
    let role = |i: usize| {
        if i.is_multiple_of(2) {
            Role::User
        } else {
            Role::Assistant
        }
    };
    case.turns
        .iter()
        .enumerate()
        .map(|(i, text)| Message {
            role: role(i),
            parts: vec![moxin_vlm::Part::Text(text.clone())],
        })
        .collect()
}

#[test]
fn pixels_match_pillow_exactly() {
    for fixture in Fixture::all() {
        let processor = fixture.processor();
        for name in PICTURES {
            let pixels = processor.process(&picture(name)).unwrap();
            let bits = |values: &[f32]| {
                values
                    .iter()
                    .map(|value| value.to_bits())
                    .collect::<Vec<_>>()
            };
            assert!(
                bits(&pixels.data) == bits(fixture.tensor(&format!("{name}.pixels"))),
                "{} {name}",
                fixture.name
            );
        }
    }
}

#[test]
fn prompts_become_the_same_tokens() {
    for fixture in Fixture::all() {
        let tokenizer = fixture.tokenizer();
        for case in &fixture.cases {
            let prompt = pure_prompt(&turns(case)).unwrap();
            assert_eq!(prompt, case.prompt, "{} {}", fixture.name, case.name);
            assert_eq!(
                tokenizer.encode(&prompt, true).unwrap(),
                case.ids,
                "{} {}",
                fixture.name,
                case.name
            );
            assert_eq!(
                tokenizer.decode(&case.answer_ids).unwrap().trim(),
                case.answer,
                "{} {}",
                fixture.name,
                case.name
            );
        }
    }
}

/// Encoders, projector and the last row of the prefill, each from the picture on.
#[test]
fn features_and_logits_are_close() {
    for fixture in Fixture::all() {
        let processor = fixture.processor();
        fixture.with_vlm(|vlm| {
            let mut images = HashMap::new();
            for name in PICTURES {
                let features = vlm
                    .encode(&processor.process(&picture(name)).unwrap())
                    .unwrap();
                for (encoder, features) in vlm.vision.encoders.iter().zip(&features) {
                    let encoder = if encoder.config.has_cls_token {
                        "dino"
                    } else {
                        "siglip"
                    };
                    fixture.assert_close(&format!("{name}.{encoder}_features"), &to_vec(features));
                }
                let image = vlm.project(&features).unwrap();
                fixture.assert_close(&format!("{name}.projected"), &to_vec(&image));
                images.insert(name, image);
            }
            for case in &fixture.cases {
                let image = case.picture.as_deref().map(|name| &images[name]);
                let embeds = vlm.embed(&case.ids, image).unwrap();
                let logits = vlm
                    .forward_embeddings(&embeds, &mut vlm.new_cache(), Want::Last, &|| Ok(()))
                    .unwrap()
                    .unwrap();
                fixture.assert_close(&format!("{}.logits", case.name), &to_vec(&logits));
            }
        });
    }
}

#[test]
fn sessions_answer_with_the_same_tokens() {
    for fixture in Fixture::all() {
        for case in &fixture.cases {
            let session = fixture.session(case, 256);
            for turn in turns(case) {
                session.add_text(turn.role, &turn.text("")).unwrap();
            }
            fixture.assert_answers(&session, case);
        }
    }
}

/// Chunks shorter than the picture, the window and the prompt, none of which they divide.
#[test]
fn a_prefill_in_chunks_changes_nothing() {
    for fixture in Fixture::all() {
        for chunk in [1, 7] {
            let case = fixture.case("photo.two_turns");
            let session = fixture.session(case, chunk);
            for turn in turns(case) {
                session.add_text(turn.role, &turn.text("")).unwrap();
            }
            fixture.assert_answers(&session, case);
        }
    }
}

/// The session's own answer is in the second prompt, and the keys and values of the first are
/// reused.
#[test]
fn a_conversation_continues_from_its_own_answer() {
    for fixture in Fixture::all() {
        for name in PICTURES {
            let (first, second) = (
                fixture.case(&format!("{name}.short")),
                fixture.case(&format!("{name}.own_answer")),
            );
            let session = fixture.session(first, 256);
            session.add_text(Role::User, &first.turns[0]).unwrap();
            fixture.assert_answers(&session, first);
            session.add_text(Role::User, &second.turns[2]).unwrap();
            fixture.assert_answers(&session, second);
            let Stats {
                prompt_tokens,
                image_tokens,
                reused_tokens,
                ..
            } = session.stats();
            assert_eq!(prompt_tokens, second.ids.len() + image_tokens);
            assert!(
                reused_tokens >= first.ids.len() + image_tokens,
                "{reused_tokens} positions were reused"
            );
        }
    }
}

/// The plain iterator, with the simplest cache.
#[test]
fn the_low_level_iterator_gives_the_same_tokens() {
    for fixture in [Fixture::read("naive_f32"), Fixture::read("letterbox_bf16")] {
        let (processor, case) = (fixture.processor(), fixture.case("photo.short"));
        let pixels = processor.process(&picture("photo")).unwrap();
        fixture.with_vlm(|vlm| {
            let (dino, siglip) = halves(&pixels);
            let ids = Array::from_slice(&case.ids, &[1, case.ids.len() as i32]);
            let mut cache: Vec<ConcatKeyValueCache> = Vec::new();
            let tokens =
                Generate::new(vlm, &mut cache, 0.0, dino, siglip, ids).take(case.answer_ids.len());
            let tokens: Vec<u32> = tokens
                .map(|token| token.unwrap().try_item_cast::<u32>().unwrap())
                .collect();
            assert_eq!(tokens, case.answer_ids, "{}", fixture.name);
        });
    }
}

/// Returns the pixels for both encoders as `[1, height, width, 3]` each.
fn halves(pixels: &Pixels) -> (Array, Array) {
    let size = pixels.height as i32;
    let both = Array::from_slice(&pixels.data, &[2, 3, size, size])
        .transpose_axes(&[0, 2, 3, 1])
        .unwrap();
    (both.try_index(..1).unwrap(), both.try_index(1..).unwrap())
}
