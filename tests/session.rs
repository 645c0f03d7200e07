//! Tests conversations through the public API, on the small trained model: what a session promises,
//! and that every way leads to the same answer.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Barrier, LazyLock, Mutex, mpsc};
use std::thread;
use std::time::Duration;

use mlx_rs::Array;
use mlx_rs::ops::indexing::{TryIndexOp, argmax_axis};
use moxin_vlm::Message;
use moxin_vlm::models::prismatic::pure_prompt;
use moxin_vlm::{
    Cancel, ConcatKeyValueCache, Embedding, Error, Event, FinishReason, Generate,
    GenerationOptions, KVCache, KeyValueCache, LoadOptions, Model, MoxinVLM, Op, Picture,
    Processor, QuantizeOptions, Role, SamplingParams, Session, Stage, Tokenizer, load_model,
    load_tokenizer,
};

const DESCRIBE: &str = "Describe the picture.";
const COUNT: &str = "How many shapes are there?";
const EOS: u32 = 2;

static MODEL: LazyLock<Model> = LazyLock::new(load);
static DEMO: LazyLock<Embedding> =
    LazyLock::new(|| MODEL.encode_image(&demo(), Op::default()).unwrap());

fn tiny() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("models/tiny")
}

fn load() -> Model {
    Model::load(tiny(), LoadOptions::default(), Op::default()).unwrap()
}

fn demo() -> Picture {
    Picture::open(tiny().with_file_name("demo.png"), &Default::default()).unwrap()
}

fn greedy() -> GenerationOptions {
    GenerationOptions {
        top_logprobs: 3,
        ..Default::default()
    }
}

/// Returns options with which nearly every token is equally likely, so that answers are long and
/// depend on the seed.
fn rambling(seed: u64, max_tokens: usize) -> GenerationOptions {
    let sampling = SamplingParams {
        temperature: 50.0,
        seed,
        ..Default::default()
    };
    GenerationOptions {
        sampling,
        max_tokens,
        ..Default::default()
    }
}

/// A seed with which [`rambling`] does not reach the end-of-turn token within some thousand tokens.
const LONG: u64 = 0;

fn session(options: GenerationOptions) -> Session {
    MODEL.session(options).unwrap()
}

/// Returns a session with the demo picture, already encoded.
fn looking(options: GenerationOptions) -> Session {
    let session = session(options);
    session.add_embedding(&DEMO).unwrap();
    session
}

/// A complete answer.
#[derive(Debug, Clone, PartialEq)]
struct Answer {
    text: String,
    tokens: Vec<u32>,
    logprobs: Vec<f32>,
    reason: FinishReason,
}

/// Performs steps up to the end of the answer.
fn answer(session: &Session) -> moxin_vlm::Result<Answer> {
    let mut answer = Answer {
        text: String::new(),
        tokens: Vec::new(),
        logprobs: Vec::new(),
        reason: FinishReason::Cancelled,
    };
    for event in session.generate() {
        match event? {
            Event::Prefill { .. } => {}
            Event::Text {
                text,
                token,
                logprob,
                ..
            } => {
                answer.text += &text;
                answer.tokens.push(token);
                answer.logprobs.push(logprob);
            }
            Event::Finished { reason, text } => {
                answer.text += &text;
                answer.reason = reason;
            }
        }
    }
    Ok(answer)
}

fn ask(session: &Session, question: &str) -> Answer {
    session.add_text(Role::User, question).unwrap();
    answer(session).unwrap()
}

fn assert_close(a: &[f32], b: &[f32]) {
    assert_eq!(a.len(), b.len());
    a.iter()
        .zip(b)
        .for_each(|(a, b)| assert!((a - b).abs() < 1e-4, "{a} and {b}"));
}

// One answer in many ways.

#[test]
fn an_answer_streams_and_becomes_a_turn() {
    let session = session(greedy());
    session.add_image(demo()).unwrap();
    let answer = ask(&session, DESCRIBE);
    assert_eq!(answer.reason, FinishReason::EndOfTurn);
    assert!(answer.tokens.len() > 5, "{answer:?}");
    assert_eq!(
        session.messages().unwrap(),
        [
            Message::user(DESCRIBE),
            Message::assistant(answer.text.trim_end())
        ]
    );
    assert_eq!(
        load_tokenizer(tiny())
            .unwrap()
            .decode(&answer.tokens)
            .unwrap()
            .trim(),
        answer.text
    );

    let stats = session.stats();
    assert_eq!(
        (
            stats.image_tokens,
            stats.reused_tokens,
            stats.generated_tokens
        ),
        (64, 0, answer.tokens.len())
    );
    assert!(stats.prompt_tokens > 64 && stats.peak_bytes > 0);
    assert!(!session.is_generating().unwrap());
}

#[test]
fn an_embedding_replaces_its_picture() {
    assert_eq!(
        (DEMO.tokens(), DEMO.width()),
        (MODEL.info().image_tokens, MODEL.info().hidden_size)
    );
    let numbers = DEMO.to_vec().unwrap();
    assert_eq!(numbers.len(), DEMO.tokens() * DEMO.width());
    let encoding = session(greedy());
    encoding.add_image(demo()).unwrap();
    let expected = ask(&encoding, DESCRIBE);
    assert_eq!(ask(&looking(greedy()), DESCRIBE), expected);
    assert_eq!(ask(&looking(greedy()), DESCRIBE), expected);
    // It outlives the model that made it, and works with the same model loaded again; no other
    // model accepts it.
    let other = load();
    let again = other.encode_image(&demo(), Op::default()).unwrap();
    drop(other);
    assert_eq!(again.to_vec().unwrap(), numbers);
    assert_eq!(
        (again.model(), again.picture()),
        (DEMO.model(), DEMO.picture())
    );
    let reloaded = session(greedy());
    reloaded.add_embedding(&again).unwrap();
    assert_eq!(ask(&reloaded, DESCRIBE), expected);
    let random = Model::load(
        tiny().with_file_name("../tests/parity/naive_f32/model"),
        LoadOptions::default(),
        Op::default(),
    )
    .unwrap();
    let foreign = random.encode_image(&demo(), Op::default()).unwrap();
    assert_ne!(foreign.model(), DEMO.model());
    assert_eq!(foreign.picture(), DEMO.picture());
    let refused = session(greedy()).add_embedding(&foreign);
    assert!(
        matches!(&refused, Err(Error::InvalidArgument(what)) if what.contains("another model")),
        "{refused:?}"
    );
}

#[test]
fn prefill_in_chunks_changes_nothing() {
    let expected = ask(&looking(greedy()), DESCRIBE);
    for prefill_chunk in [1, 7, 64] {
        let session = looking(GenerationOptions {
            prefill_chunk,
            ..greedy()
        });
        let answer = ask(&session, DESCRIBE);
        assert_eq!(answer.tokens, expected.tokens, "chunks of {prefill_chunk}");
        assert_close(&answer.logprobs, &expected.logprobs);
    }
}

#[test]
fn prefill_reports_progress() {
    let session = session(GenerationOptions {
        prefill_chunk: 20,
        ..greedy()
    });
    session.add_image(demo()).unwrap();
    session.add_text(Role::User, DESCRIBE).unwrap();
    let mut reported = Vec::new();
    while let Event::Prefill { done, total } = session.step().unwrap() {
        reported.push((done, total));
    }
    let total = session.stats().prompt_tokens;
    let expected: Vec<_> = (0..total)
        .step_by(20)
        .chain([total])
        .map(|done| (done, total))
        .collect();
    assert_eq!(reported, expected);
}

/// The low-level parts, as a program would use them on a thread of its own.
struct Parts {
    model: MoxinVLM,
    tokenizer: Tokenizer,
    dino: Array,
    siglip: Array,
}

impl Parts {
    fn new() -> Parts {
        let processor = Processor::from_file(&tiny().join("preprocessor_config.json")).unwrap();
        let pixels = processor.process(&demo()).unwrap();
        let (height, width) = (pixels.height as i32, pixels.width as i32);
        let planes = Array::from_slice(&pixels.data, &[2, 3, height, width])
            .transpose_axes(&[0, 2, 3, 1])
            .unwrap();
        Parts {
            model: load_model(tiny()).unwrap(),
            tokenizer: load_tokenizer(tiny()).unwrap(),
            dino: planes.try_index((..1, .., .., ..)).unwrap(),
            siglip: planes.try_index((1.., .., .., ..)).unwrap(),
        }
    }

    fn ids(&self, question: &str) -> Array {
        let ids = self
            .tokenizer
            .encode(&pure_prompt(&[Message::user(question)]).unwrap(), true)
            .unwrap();
        Array::from_slice(&ids, &[1, ids.len() as i32])
    }
}

#[test]
fn the_low_level_iterator_agrees() {
    let expected = ask(&looking(greedy()), DESCRIBE);
    let mut parts = Parts::new();
    let ids = parts.ids(DESCRIBE);
    let mut cache: Vec<KVCache> = Vec::new();
    let tokens = Generate::new(
        &mut parts.model,
        &mut cache,
        0.0,
        parts.dino,
        parts.siglip,
        ids,
    );
    let tokens: Vec<u32> = tokens
        .map(|token| token.unwrap().try_item_cast().unwrap())
        .take_while(|token| *token != EOS)
        .collect();
    assert_eq!(tokens, expected.tokens);
}

/// Returns greedy tokens, and the logits of the first and the last.
fn decode<C: KeyValueCache + Default>(
    parts: &Parts,
    count: usize,
) -> (Vec<u32>, Vec<f32>, Vec<f32>) {
    let mut cache: Vec<C> = Vec::new();
    let logits = parts
        .model
        .forward(&parts.dino, &parts.siglip, &parts.ids(DESCRIBE), &mut cache)
        .unwrap();
    let mut logits = logits.try_index((.., -1.., ..)).unwrap();
    let first = logits.to_vec_cast().unwrap();
    let mut tokens = Vec::new();
    for _ in 0..count {
        let token = argmax_axis(logits.try_index((.., -1, ..)).unwrap(), -1, false).unwrap();
        tokens.push(token.try_item_cast().unwrap());
        logits = parts.model.decode_token(&token, &mut cache).unwrap();
    }
    (tokens, first, logits.to_vec_cast().unwrap())
}

#[test]
fn both_caches_lead_to_the_same_tokens() {
    let parts = Parts::new();
    let (tokens, first, last) = decode::<KVCache>(&parts, 12);
    let (tokens2, first2, last2) = decode::<ConcatKeyValueCache>(&parts, 12);
    assert_eq!(tokens, tokens2);
    assert_close(&first, &first2);
    assert_close(&last, &last2);
}

/// A program with a loading screen loads weights on one thread and computes on another.
#[test]
fn a_model_loaded_on_one_thread_computes_on_another() {
    let expected = ask(&looking(greedy()), DESCRIBE);
    let mut parts = thread::spawn(|| load_model(tiny()).unwrap())
        .join()
        .map(|model| Parts {
            model,
            ..Parts::new()
        })
        .unwrap();
    let ids = parts.ids(DESCRIBE);
    let mut cache: Vec<KVCache> = Vec::new();
    let first = Generate::new(
        &mut parts.model,
        &mut cache,
        0.0,
        parts.dino,
        parts.siglip,
        ids,
    )
    .next()
    .unwrap()
    .unwrap();
    assert_eq!(first.try_item_cast::<u32>().unwrap(), expected.tokens[0]);
}

// Several turns.

#[test]
fn a_second_turn_reuses_the_first() {
    let warm = looking(greedy());
    let first = ask(&warm, DESCRIBE);
    let second = ask(&warm, COUNT);
    let stats = warm.stats();
    // All but the last token of the answer has been read.
    assert!(stats.reused_tokens >= 64 + first.tokens.len(), "{stats:?}");
    assert!(stats.reused_tokens < stats.prompt_tokens);

    let cold = looking(greedy());
    cold.add_text(Role::User, DESCRIBE).unwrap();
    cold.add_text(Role::Assistant, &first.text).unwrap();
    let fresh = ask(&cold, COUNT);
    assert_eq!(cold.stats().reused_tokens, 0);
    assert_eq!((&second.tokens, &second.text), (&fresh.tokens, &fresh.text));
    assert_close(&second.logprobs, &fresh.logprobs);
    assert_eq!(cold.messages().unwrap(), warm.messages().unwrap());
}

// Ended conversations that others continue.

fn pooling() -> Model {
    let options = LoadOptions {
        prefix_cache: 8 << 20,
        ..Default::default()
    };
    Model::load(tiny(), options, Op::default()).unwrap()
}

/// Asks two questions in a new session, the first with a given answer; returns the second answer
/// and the number of reused positions.
fn ask_after(model: &Model, options: GenerationOptions, answer: &str) -> (Answer, usize) {
    let session = model.session(options).unwrap();
    session.add_image(demo()).unwrap();
    session.add_text(Role::User, DESCRIBE).unwrap();
    session.add_text(Role::Assistant, answer).unwrap();
    let answer = ask(&session, COUNT);
    (answer, session.stats().reused_tokens)
}

#[test]
fn a_new_session_continues_an_ended_one() {
    let model = pooling();
    let session = model.session(greedy()).unwrap();
    session.add_image(demo()).unwrap();
    let first = ask(&session, DESCRIBE);
    let read = session.stats().prompt_tokens;
    let expected = ask(&session, COUNT);
    session.rewind(2).unwrap();
    // While it lives, it is its own.
    let (fresh, reused) = ask_after(&model, greedy(), &first.text);
    assert_eq!((fresh.tokens, reused), (expected.tokens.clone(), 0));
    drop(session);
    let (again, reused) = ask_after(&model, greedy(), &first.text);
    assert_eq!(again.tokens, expected.tokens);
    assert!(reused > read + first.tokens.len(), "{reused} of {read}");
    // Whatever differs is read, from the first difference on.
    let (_, other) = ask_after(&model, greedy(), "Something else.");
    assert!((1..read + 3).contains(&other), "{other} of {read}");
    let elsewhere = GenerationOptions {
        prefix_scope: 7,
        ..greedy()
    };
    assert_eq!(ask_after(&model, elsewhere, &first.text).1, 0);
    assert_eq!(ask_after(&load(), greedy(), &first.text).1, 0);
}

#[test]
fn ended_conversations_are_dropped_with_the_weights_they_belong_to() {
    let model = pooling();
    let earlier = model.session(greedy()).unwrap();
    earlier.add_image(demo()).unwrap();
    let first = ask(&earlier, DESCRIBE);
    ask_after(&model, greedy(), &first.text);
    model
        .quantize(QuantizeOptions::default(), Op::default())
        .unwrap();
    assert_eq!(ask_after(&model, greedy(), &first.text).1, 0);
    // A session that began before keeps what it has read, and nobody continues it.
    drop(earlier);
    moxin_vlm::trim_memory();
    let (_, reused) = ask_after(&model, greedy(), &first.text);
    assert_eq!(reused, 0);
    assert!(ask_after(&model, greedy(), &first.text).1 > 0);
}

#[test]
fn a_prompt_is_counted_without_reading_it() {
    let session = session(greedy());
    assert!(matches!(
        session.prompt_tokens(),
        Err(Error::InvalidState(_))
    ));
    session.add_embedding(&DEMO).unwrap();
    session.add_text(Role::User, COUNT).unwrap();
    let tokens = session.prompt_tokens().unwrap();
    assert_eq!(session.stats().prompt_tokens, 0);
    answer(&session).unwrap();
    assert_eq!(session.stats().prompt_tokens, tokens);
}

#[test]
fn reset_starts_over() {
    let session = looking(greedy());
    let first = ask(&session, DESCRIBE);
    session.add_text(Role::User, COUNT).unwrap();
    session.step().unwrap();
    session.cancel();
    session.reset().unwrap();
    assert_eq!(session.messages().unwrap(), []);
    session.add_image(demo()).unwrap();
    assert_eq!(ask(&session, DESCRIBE), first);
    assert_eq!(session.stats().reused_tokens, 0);
}

#[test]
fn texts_of_one_role_become_one_message() {
    let session = looking(greedy());
    session
        .add_text(Role::User, "What is in the picture?")
        .unwrap();
    session.add_text(Role::User, COUNT).unwrap();
    let [message] = &session.messages().unwrap()[..] else {
        panic!("expected one message")
    };
    assert_eq!(
        message.text("\n"),
        format!("What is in the picture?\n{COUNT}")
    );
    assert_eq!(answer(&session).unwrap().reason, FinishReason::EndOfTurn);
}

// Sampling.

#[test]
fn the_seed_decides() {
    let ramble = |seed| {
        ask(
            &looking(GenerationOptions {
                top_logprobs: 0,
                ..rambling(seed, 12)
            }),
            DESCRIBE,
        )
    };
    assert_eq!(ramble(7), ramble(7));
    assert!((8..12).any(|seed| ramble(seed).tokens != ramble(7).tokens));

    let warm = |seed| {
        let sampling = SamplingParams {
            temperature: 1.0,
            seed,
            ..Default::default()
        };
        ask(
            &looking(GenerationOptions {
                sampling,
                ..Default::default()
            }),
            DESCRIBE,
        )
    };
    assert_eq!(warm(3), warm(3));
    assert_eq!(
        ask(&looking(greedy()), DESCRIBE),
        ask(&looking(greedy()), DESCRIBE)
    );
}

#[test]
fn top_logprobs_are_sorted_and_hold_the_chosen() {
    let session = looking(GenerationOptions {
        top_logprobs: 5,
        ..Default::default()
    });
    session.add_text(Role::User, DESCRIBE).unwrap();
    let mut seen = 0;
    for event in session.generate() {
        let Event::Text {
            token,
            logprob,
            top,
            ..
        } = event.unwrap()
        else {
            continue;
        };
        seen += 1;
        assert_eq!(top.len(), 5);
        assert_eq!((top[0].token, top[0].logprob), (token, logprob));
        assert!(
            top.windows(2)
                .all(|pair| pair[0].logprob >= pair[1].logprob)
        );
        let total: f32 = top.iter().map(|choice| choice.logprob.exp()).sum();
        assert!(logprob <= 0.0 && total <= 1.0001, "{total}");
    }
    assert!(seen > 5);
}

// Ends of answers.

#[test]
fn a_stop_string_ends_an_answer() {
    let full = ask(&looking(greedy()), DESCRIBE);
    let stop = full.text.split_whitespace().nth(2).unwrap().to_owned();
    let session = looking(GenerationOptions {
        stop: vec!["never said".into(), stop.clone()],
        ..greedy()
    });
    let cut = ask(&session, DESCRIBE);
    assert_eq!(
        (cut.reason, cut.text.as_str()),
        (
            FinishReason::StopSequence,
            full.text.split(&stop).next().unwrap()
        )
    );
    assert_eq!(session.messages().unwrap()[1].text(""), cut.text);

    // The answer in the next prompt is the one that was shown.
    let second = ask(&session, "Where is it?");
    let cold = looking(GenerationOptions {
        stop: vec![stop],
        ..greedy()
    });
    cold.add_text(Role::User, DESCRIBE).unwrap();
    cold.add_text(Role::Assistant, &cut.text).unwrap();
    let fresh = ask(&cold, "Where is it?");
    assert_eq!((second.tokens, second.text), (fresh.tokens, fresh.text));
}

#[test]
fn a_limit_of_tokens_ends_an_answer() {
    let full = ask(&looking(greedy()), DESCRIBE);
    for max_tokens in [1, 3] {
        let session = looking(GenerationOptions {
            max_tokens,
            ..greedy()
        });
        let cut = ask(&session, DESCRIBE);
        assert_eq!(
            (cut.reason, cut.tokens.as_slice()),
            (FinishReason::MaxTokens, &full.tokens[..max_tokens])
        );
    }
}

#[test]
fn a_full_context_ends_an_answer() {
    let free = looking(greedy());
    let full = ask(&free, DESCRIBE);
    let prompt = free.stats().prompt_tokens;

    // Room for the prompt and four tokens; the logits of one more are known without reading it.
    let session = looking(GenerationOptions {
        max_context: Some(prompt + 4),
        ..greedy()
    });
    let cut = ask(&session, DESCRIBE);
    assert_eq!(
        (cut.reason, cut.tokens.as_slice()),
        (FinishReason::ContextFull, &full.tokens[..5])
    );

    // No room for another question, and therefore none for its turn.
    session.add_text(Role::User, COUNT).unwrap();
    let refused = answer(&session);
    assert!(
        matches!(&refused, Err(Error::ContextFull { needed, limit }) if needed > limit && *limit == prompt + 4),
        "{refused:?}"
    );
    assert_eq!(session.messages().unwrap().len(), 2);
    session.reset().unwrap();
    session.add_embedding(&DEMO).unwrap();
    assert_eq!(ask(&session, DESCRIBE), cut);
}

/// A prompt in the caller's own format: written like the library's, it has the same tokens and the
/// same answer.
#[test]
fn a_raw_prompt_is_used_unchanged() {
    let usual = looking(greedy());
    let (first, second) = (ask(&usual, DESCRIBE), ask(&usual, COUNT));

    let raw = looking(greedy());
    let ask_raw = |session: &Session, prompt: &str| {
        session.add_prompt(prompt).unwrap();
        answer(session).unwrap()
    };
    let question = |text: &str| format!("In: {text}\nOut:");
    let found = ask_raw(&raw, &question(DESCRIBE));
    assert_eq!(
        (&found.tokens, found.text),
        (&first.tokens, format!(" {}", first.text))
    );
    let waiting = raw.fork().unwrap();

    // The conversation continues in the caller's format, or in the usual one; nothing is read
    // twice.
    let prompt_tokens = raw.stats().prompt_tokens;
    assert_eq!(ask_raw(&raw, &question(COUNT)).tokens, second.tokens);
    assert!(
        raw.stats().reused_tokens > prompt_tokens,
        "{:?}",
        raw.stats()
    );
    assert_eq!(ask(&waiting, COUNT).tokens, second.tokens);
    assert!(
        waiting.stats().reused_tokens > prompt_tokens,
        "{:?}",
        waiting.stats()
    );
    let roles: Vec<_> = waiting
        .messages()
        .unwrap()
        .iter()
        .map(|turn| turn.role)
        .collect();
    assert_eq!(
        roles,
        [Role::Prompt, Role::Assistant, Role::User, Role::Assistant]
    );

    // It can be asked again, and rephrased.
    raw.rewind(3).unwrap();
    assert_eq!(answer(&raw).unwrap().tokens, second.tokens);
    raw.rewind(2).unwrap();
    assert_eq!(ask(&raw, COUNT).tokens, second.tokens);

    // A whole conversation in one prompt.
    let whole = looking(greedy());
    let told = format!(
        "{} {}</s>{}",
        question(DESCRIBE),
        first.text,
        question(COUNT)
    );
    assert_eq!(ask_raw(&whole, &told).tokens, second.tokens);
    assert_eq!(whole.messages().unwrap().len(), 2);

    // One question at a time, in one format.
    whole.add_prompt("In: ").unwrap();
    assert!(matches!(
        whole.add_text(Role::User, COUNT),
        Err(Error::InvalidState(_))
    ));
    whole.add_prompt(&question(COUNT)[4..]).unwrap();
    assert_eq!(whole.messages().unwrap()[2].text(""), question(COUNT));
    usual.add_text(Role::User, COUNT).unwrap();
    assert!(matches!(
        usual.add_prompt("In: "),
        Err(Error::InvalidState(_))
    ));
}

#[test]
fn a_prompt_that_is_too_long_is_refused_and_rolled_back() {
    let free = looking(greedy());
    let expected = ask(&free, COUNT);
    let prompt = free.stats().prompt_tokens;

    let session = looking(GenerationOptions {
        max_context: Some(prompt),
        ..greedy()
    });
    session.add_text(Role::User, COUNT).unwrap();
    let refused = answer(&session);
    assert!(
        matches!(refused, Err(Error::ContextFull { needed, limit }) if needed == prompt + 1 && limit == prompt),
        "{refused:?}"
    );
    assert_eq!(session.messages().unwrap(), []);

    let session = looking(GenerationOptions {
        max_context: Some(prompt + expected.tokens.len()),
        ..greedy()
    });
    // Known from its tokens, or from its length alone.
    session
        .add_text(Role::User, &"What is there? ".repeat(200))
        .unwrap();
    assert!(matches!(answer(&session), Err(Error::ContextFull { .. })));
    session.add_embedding(&DEMO).unwrap();
    assert!(matches!(
        session.add_text(Role::User, &"What is there? ".repeat(20_000)),
        Err(Error::ContextFull { .. })
    ));
    assert_eq!(ask(&session, COUNT), expected);
}

#[test]
fn the_context_is_at_most_what_the_model_was_made_for() {
    let session = session(GenerationOptions {
        max_context: Some(1 << 24),
        ..greedy()
    });
    session
        .add_text(Role::User, &"What is there? ".repeat(3000))
        .unwrap();
    let refused = answer(&session);
    assert!(
        matches!(refused, Err(Error::ContextFull { limit: 2048, .. })),
        "{refused:?}"
    );
}

#[test]
fn options_out_of_range_are_refused() {
    let sampling = |sampling| GenerationOptions {
        sampling,
        ..Default::default()
    };
    for (field, options) in [
        (
            "max_tokens",
            GenerationOptions {
                max_tokens: 0,
                ..Default::default()
            },
        ),
        (
            "max_context",
            GenerationOptions {
                max_context: Some(0),
                ..Default::default()
            },
        ),
        (
            "prefill_chunk",
            GenerationOptions {
                prefill_chunk: usize::MAX,
                ..Default::default()
            },
        ),
        (
            "stop string",
            GenerationOptions {
                stop: vec![String::new()],
                ..Default::default()
            },
        ),
        (
            "temperature",
            sampling(SamplingParams {
                temperature: f32::NAN,
                ..Default::default()
            }),
        ),
        (
            "top_p",
            sampling(SamplingParams {
                top_p: 0.0,
                ..Default::default()
            }),
        ),
    ] {
        let refused = MODEL.session(options).err();
        assert!(
            matches!(&refused, Some(Error::InvalidArgument(what)) if what.contains(field)),
            "{field}: {refused:?}"
        );
    }
}

// Cancellation.

fn assert_cancelled(session: &Session, messages: &[Message]) {
    session.cancel();
    assert_eq!(
        session.step().unwrap(),
        Event::Finished {
            reason: FinishReason::Cancelled,
            text: String::new()
        }
    );
    assert_eq!(session.messages().unwrap(), messages);
    assert!(!session.is_generating().unwrap());
}

#[test]
fn cancelling_rolls_the_turn_back() {
    let options = GenerationOptions {
        prefill_chunk: 7,
        ..greedy()
    };
    let reference = looking(options.clone());
    let first = ask(&reference, DESCRIBE);
    let second = ask(&reference, COUNT);

    // In the first turn: before its first step, after the picture, in prefill, in decode.
    for steps in [0, 1, 4, 20] {
        let session = session(options.clone());
        session.add_image(demo()).unwrap();
        session.add_text(Role::User, DESCRIBE).unwrap();
        (0..steps).for_each(|_| drop(session.step().unwrap()));
        assert_cancelled(&session, &[]);
        session.add_embedding(&DEMO).unwrap();
        let answer = ask(&session, DESCRIBE);
        assert_eq!(answer.tokens, first.tokens, "cancelled after {steps} steps");
        assert_close(&answer.logprobs, &first.logprobs);
    }
    // In the second turn: the first stays.
    for steps in [0, 1, 4] {
        let session = looking(options.clone());
        ask(&session, DESCRIBE);
        let turns = session.messages().unwrap();
        session.add_text(Role::User, "What colour is it?").unwrap();
        (0..steps).for_each(|_| drop(session.step().unwrap()));
        assert_cancelled(&session, &turns);
        let answer = ask(&session, COUNT);
        assert_eq!(
            answer.tokens, second.tokens,
            "cancelled after {steps} steps"
        );
        assert_close(&answer.logprobs, &second.logprobs);
    }
}

/// "Stop", pressed just after the answer has ended, does not apply to the next question; pressed
/// before the first step, it does.
#[test]
fn a_cancellation_applies_to_the_current_question() {
    let session = looking(greedy());
    ask(&session, DESCRIBE);
    let turns = session.messages().unwrap();
    session.cancel();
    assert!(matches!(session.step(), Err(Error::InvalidState(_))));
    session.add_text(Role::User, COUNT).unwrap();
    session.cancel();
    assert_eq!(answer(&session).unwrap().reason, FinishReason::Cancelled);
    assert_eq!(session.messages().unwrap(), turns);
    session.cancel();
    assert_eq!(ask(&session, COUNT).reason, FinishReason::EndOfTurn);
}

#[test]
fn another_thread_cancels_within_a_step() {
    let session = looking(rambling(LONG, 2000));
    session.add_text(Role::User, DESCRIBE).unwrap();
    let (cancelled, (started, has_started)) = (AtomicBool::new(false), mpsc::channel());
    thread::scope(|scope| {
        scope.spawn(|| {
            loop {
                let was_cancelled = cancelled.load(Ordering::SeqCst);
                let event = session.step().unwrap();
                if was_cancelled {
                    assert!(
                        matches!(
                            event,
                            Event::Finished {
                                reason: FinishReason::Cancelled,
                                ..
                            }
                        ),
                        "{event:?}"
                    );
                }
                match event {
                    Event::Finished { .. } => break,
                    Event::Text { .. } => drop(started.send(())),
                    Event::Prefill { .. } => {}
                }
            }
        });
        (0..3).for_each(|_| has_started.recv().unwrap());
        session.cancel();
        cancelled.store(true, Ordering::SeqCst);
    });
    assert!(session.stats().generated_tokens < 2000);
    assert_eq!(session.messages().unwrap(), []);
}

// Threads.

#[test]
fn handles_may_go_to_any_thread() {
    fn any_thread<T: Send + Sync + 'static>() {}
    any_thread::<Model>();
    any_thread::<Session>();
    any_thread::<Embedding>();
    any_thread::<Cancel>();
    any_thread::<Picture>();
    any_thread::<Error>();
}

/// One thread at a time steps a session; another gets an error, and no token is lost or duplicated.
#[test]
fn a_busy_session_returns_busy() {
    let expected = ask(&looking(greedy()), DESCRIBE);
    let session = looking(greedy());
    session.add_text(Role::User, DESCRIBE).unwrap();
    let (tokens, finished) = (Mutex::new(Vec::new()), AtomicBool::new(false));
    let step = || {
        while !finished.load(Ordering::SeqCst) {
            match session.step() {
                Ok(Event::Text { token, .. }) => tokens.lock().unwrap().push(token),
                Ok(Event::Prefill { .. }) => {}
                Ok(Event::Finished { reason, .. }) => {
                    assert_eq!(reason, FinishReason::EndOfTurn);
                    finished.store(true, Ordering::SeqCst);
                }
                Err(Error::Busy) => thread::yield_now(),
                // The other thread may have just ended the answer.
                Err(Error::InvalidState(what)) => {
                    assert!(what.contains("nothing to answer"), "{what}")
                }
                Err(error) => panic!("{error:?}"),
            }
        }
    };
    thread::scope(|scope| {
        scope.spawn(step);
        scope.spawn(step);
    });
    // Recorded after the step, and therefore perhaps out of order.
    let (mut tokens, mut all) = (tokens.into_inner().unwrap(), expected.tokens.clone());
    tokens.sort();
    all.sort();
    assert_eq!(tokens, all);
    assert_eq!(session.messages().unwrap()[1].text(""), expected.text);
}

#[test]
fn many_threads_get_the_same_answers() {
    const THREADS: usize = 8;
    let questions = [
        DESCRIBE,
        COUNT,
        "What is at the top left?",
        "What is written?",
    ];
    let converse = |model: &Model, i: usize| {
        let session = model
            .session(GenerationOptions {
                prefill_chunk: 32,
                max_tokens: 4,
                ..greedy()
            })
            .unwrap();
        session.add_image(demo()).unwrap();
        [
            ask(&session, questions[i % 4]),
            ask(&session, questions[(i + 1) % 4]),
        ]
    };
    let expected: Vec<_> = (0..4).map(|i| converse(&MODEL, i)).collect();
    let embedding = MODEL
        .encode_image(&demo(), Op::default())
        .unwrap()
        .to_vec()
        .unwrap();
    let start = Barrier::new(THREADS + 2);
    thread::scope(|scope| {
        for i in 0..THREADS {
            let (expected, start) = (&expected, &start);
            scope.spawn(move || {
                start.wait();
                assert_eq!(converse(&MODEL, i), expected[i % 4]);
            });
        }
        scope.spawn(|| {
            start.wait();
            for (i, expected) in expected.iter().enumerate().skip(2) {
                assert_eq!(converse(&load(), i), *expected);
            }
        });
        scope.spawn(|| {
            start.wait();
            for _ in 0..4 {
                assert_eq!(
                    MODEL
                        .encode_image(&demo(), Op::default())
                        .unwrap()
                        .to_vec()
                        .unwrap(),
                    embedding
                );
            }
        });
    });
}

/// Two answers of equal length, started together: neither waits for the other's end.
#[test]
fn sessions_advance_side_by_side() {
    const TOKENS: usize = 100;
    let counts = [AtomicUsize::new(0), AtomicUsize::new(0)];
    let start = Barrier::new(2);
    let run = |me: usize| {
        let session = looking(rambling(LONG, TOKENS));
        session.add_text(Role::User, DESCRIBE).unwrap();
        start.wait();
        for event in session.generate() {
            if let Event::Text { .. } = event.unwrap() {
                counts[me].fetch_add(1, Ordering::SeqCst);
            }
        }
        assert_eq!(counts[me].load(Ordering::SeqCst), TOKENS);
        counts[1 - me].load(Ordering::SeqCst)
    };
    thread::scope(|scope| {
        let other = scope.spawn(|| run(1));
        // Whichever ends first finds the other running.
        let seen = [run(0), other.join().unwrap()];
        assert!(seen.iter().all(|seen| *seen > TOKENS / 10), "{seen:?}");
    });
}

// Loading.

#[test]
fn loading_reports_progress_to_its_end() {
    let mut reports = Vec::new();
    let mut progress = |stage, fraction| {
        assert_eq!(stage, Stage::Load);
        reports.push(fraction);
        true
    };
    Model::load(
        tiny(),
        LoadOptions::default(),
        Op {
            progress: Some(&mut progress),
            ..Default::default()
        },
    )
    .unwrap();
    assert!(reports.len() > 20);
    assert!(reports.is_sorted(), "{reports:?}");
    assert_eq!(reports.last(), Some(&1.0));
}

#[test]
fn loading_ends_when_progress_says_so() {
    for last in [0.0, 0.5, 1.0] {
        let mut progress = |_: Stage, fraction: f32| fraction < last;
        let result = Model::load(
            tiny(),
            LoadOptions::default(),
            Op {
                progress: Some(&mut progress),
                ..Default::default()
            },
        );
        assert!(
            matches!(result, Err(Error::Cancelled)),
            "refused from {last} on"
        );
    }
}

#[test]
fn loading_ends_when_another_thread_cancels() {
    let cancel = Cancel::new();
    let for_progress = cancel.clone();
    let (report, reported) = mpsc::channel();
    let (go, may_go) = mpsc::channel::<()>();
    thread::scope(|scope| {
        scope.spawn(move || {
            reported.recv().unwrap();
            cancel.trigger();
            go.send(()).unwrap();
        });
        let mut waited = false;
        let mut progress = |_: Stage, _: f32| {
            if !waited {
                waited = true;
                report.send(()).unwrap();
                may_go.recv().unwrap();
            }
            true
        };
        let op = Op {
            progress: Some(&mut progress),
            cancel: Some(for_progress.clone()),
            ..Default::default()
        };
        // The engine does not wait for the callback: it may have read all of a small model by then,
        // which is dropped all the same.
        assert!(matches!(
            Model::load(tiny(), LoadOptions::default(), op),
            Err(Error::Cancelled)
        ));
    });
    assert!(for_progress.is_triggered());
    let op = Op {
        cancel: Some(for_progress),
        ..Default::default()
    };
    assert!(matches!(
        Model::load(tiny(), LoadOptions::default(), op),
        Err(Error::Cancelled)
    ));
}

#[test]
fn a_time_limit_ends_loading_and_encoding() {
    let at_once = || Op {
        timeout: Some(Duration::ZERO),
        ..Default::default()
    };
    assert!(matches!(
        Model::load(tiny(), LoadOptions::default(), at_once()),
        Err(Error::Timeout)
    ));
    assert!(matches!(
        MODEL.encode_image(&demo(), at_once()),
        Err(Error::Timeout)
    ));
    let generous = Op {
        timeout: Some(Duration::MAX),
        ..Default::default()
    };
    assert!(MODEL.encode_image(&demo(), generous).is_ok());
}

#[test]
fn a_memory_limit_is_respected() {
    let options = LoadOptions {
        memory_limit: Some(1_000_000),
        ..Default::default()
    };
    let error = Model::load(tiny(), options, Op::default()).err().unwrap();
    let Error::OutOfMemory {
        needed,
        limit: 1_000_000,
        ..
    } = error
    else {
        panic!("{error:?}")
    };
    assert!(needed > 1_000_000 && needed <= MODEL.info().weight_bytes);
    let text = error.to_string();
    assert!(
        text.contains(&needed.to_string()) && text.contains("1000000") && text.contains("tiny"),
        "{text}"
    );
}

// What a conversation refuses.

#[test]
fn invalid_messages_are_refused() {
    let refused = |result: moxin_vlm::Result<()>, hint: &str| {
        assert!(
            matches!(&result, Err(Error::InvalidState(what)) if what.contains(hint)),
            "{hint}: {result:?}"
        );
    };
    let session = looking(greedy());
    refused(session.step().map(drop), "add the user's text");
    refused(session.add_text(Role::System, "Be brief."), "system");
    refused(
        session.add_text(Role::Assistant, "Yes."),
        "starts with the user's text",
    );
    refused(session.add_image(demo()), "one image");
    session.add_text(Role::User, DESCRIBE).unwrap();
    session.step().unwrap();
    refused(session.add_text(Role::User, COUNT), "being generated");
    refused(session.add_image(demo()), "being generated");
    // None of this affected the answer.
    assert_eq!(answer(&session).unwrap(), ask(&looking(greedy()), DESCRIBE));
    refused(session.step().map(drop), "add the user's text");

    let blind = MODEL.session(greedy()).unwrap();
    ask(&blind, COUNT);
    refused(blind.add_image(demo()), "before the first answer");
}

#[test]
fn a_conversation_needs_no_picture() {
    let session = session(greedy());
    let first = ask(&session, COUNT);
    assert_eq!(session.stats().image_tokens, 0);
    assert_eq!(first.reason, FinishReason::EndOfTurn);
    ask(&session, DESCRIBE);
    assert!(session.stats().reused_tokens > 0);
    // A picture added after the question, but before its answer, counts.
    let late = MODEL.session(greedy()).unwrap();
    late.add_text(Role::User, DESCRIBE).unwrap();
    late.add_image(demo()).unwrap();
    assert_eq!(answer(&late).unwrap(), ask(&looking(greedy()), DESCRIBE));
}

#[test]
fn any_text_is_a_question() {
    for text in [
        "",
        " \n\t ",
        "👩‍👩‍👧‍👦🇫🇷 ñ 漢字 \u{202E}",
        "</s>",
        "a</s>b<s>c<PAD><unk>",
        "\0",
        "<image>",
        "In: x\nOut: y",
        "\u{FEFF}\u{FFFD}",
    ] {
        let session = looking(GenerationOptions {
            max_tokens: 4,
            ..greedy()
        });
        let first = ask(&session, text);
        let again = ask(&session, text);
        assert!(
            first.tokens.len() <= 4 && again.tokens.len() <= 4,
            "{text:?}"
        );
        assert_eq!(session.messages().unwrap().len(), 4, "{text:?}");
    }
}

/// Characters of several bytes, cut anywhere, never appear in halves; the parts add up to the turn.
#[test]
fn rambling_streams_whole_characters() {
    for seed in 0..2 {
        let session = looking(rambling(seed, 100));
        let answer = ask(&session, DESCRIBE);
        assert_eq!(session.messages().unwrap()[1].text(""), answer.text);
        let decoded = load_tokenizer(tiny())
            .unwrap()
            .decode(&answer.tokens)
            .unwrap();
        assert_eq!(answer.text.trim_start(), decoded.trim_start());
    }
}

// Ends.

#[test]
fn a_session_keeps_its_model() {
    let expected = ask(&looking(greedy()), DESCRIBE);
    let model = load();
    let session = model.session(greedy()).unwrap();
    session.add_image(demo()).unwrap();
    drop(model);
    assert_eq!(ask(&session, DESCRIBE), expected);
    session.add_text(Role::User, COUNT).unwrap();
    session.step().unwrap();
    // In the middle of an answer, from another thread.
    thread::spawn(move || drop(session)).join().unwrap();
    assert_eq!(ask(&looking(greedy()), DESCRIBE), expected);
}
