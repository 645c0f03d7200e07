//! Answers that end early: nothing that was asked for is lost, and nothing unwanted is computed.

use std::{cell::Cell, ffi::OsStr, thread, time::Duration};

use mlx_rs::Array;
use moxin_vlm::{
    Cancel, ConcatKeyValueCache, Error, Event, FinishReason, GenerationOptions, KVCache,
    KeyValueCache, LoadOptions, Model, MoxinVLM, Op, Picture, PixelFormat, Role, Session, Stage,
    load_model, nn::Want, resume, suspend, trim_memory,
};

use crate::{
    child::{Limits, Program, in_child},
    programs::{demo, tiny},
};

const DESCRIBE: &str = "Describe the picture.";

fn model() -> Model {
    Model::load(tiny(), LoadOptions::default(), Op::default()).unwrap()
}

fn picture() -> Picture {
    Picture::open(demo(), &Default::default()).unwrap()
}

fn other_picture() -> Picture {
    Picture::from_pixels(&[200; 3 * 64], 8, 8, 24, PixelFormat::Rgb8).unwrap()
}

/// Returns a session with the picture, which is not encoded yet.
fn looking(model: &Model, prefill_chunk: usize) -> Session {
    trim_memory();
    let session = model
        .session(GenerationOptions {
            prefill_chunk,
            ..Default::default()
        })
        .unwrap();
    session.add_image(picture()).unwrap();
    session
}

/// Returns the tokens and the text of the answer that is in progress or pending.
fn answer(session: &Session) -> (Vec<u32>, String) {
    let (mut tokens, mut all) = (Vec::new(), String::new());
    for event in session.generate() {
        match event.unwrap() {
            Event::Prefill { .. } => {}
            Event::Text { token, text, .. } => {
                tokens.push(token);
                all += &text;
            }
            Event::Finished { text, reason } => {
                assert_eq!(reason, FinishReason::EndOfTurn);
                all += &text;
            }
        }
    }
    (tokens, all)
}

fn ask(session: &Session, question: &str) -> (Vec<u32>, String) {
    session.add_text(Role::User, question).unwrap();
    answer(session)
}

/// The number of a report while the prompt is read: it follows four blocks of two encoders, three
/// layers of the projector, the end of both and the first chunk of the prompt.
const IN_THE_PROMPT: usize = 14;

/// How an operation is stopped in the middle.
#[derive(Debug, Clone, Copy, PartialEq)]
enum End {
    Suspended,
    Refused,
    Cancelled,
    SessionCancelled,
    TimedOut,
}

const ENDS: [End; 5] = [
    End::Suspended,
    End::Refused,
    End::Cancelled,
    End::SessionCancelled,
    End::TimedOut,
];

/// Prefill that is stopped at its report number `last`; returns its error, or `None` if it
/// completed before.
fn prefill_until(session: &Session, end: End, last: usize) -> Option<Error> {
    let cancel = Cancel::new();
    let reports = Cell::new(0);
    let timeout = (end == End::TimedOut).then_some(Duration::from_millis(100));
    let mut progress = |_: Stage, _: f32| {
        reports.set(reports.get() + 1);
        if reports.get() != last {
            return true;
        }
        match end {
            // The engine is working: it does not stop immediately.
            End::Suspended => drop(suspend(Duration::ZERO)),
            End::Refused => return false,
            End::Cancelled => cancel.trigger(),
            End::SessionCancelled => session.cancel(),
            End::TimedOut => thread::sleep(timeout.unwrap_or_default()),
        }
        true
    };
    let result = session.prefill(Op {
        progress: Some(&mut progress),
        cancel: Some(cancel.clone()),
        timeout,
    });
    resume();
    result.err()
}

fn fits(end: End, error: &Error) -> bool {
    match end {
        End::Suspended => matches!(error, Error::Suspended),
        End::TimedOut => matches!(error, Error::Timeout),
        _ => matches!(error, Error::Cancelled),
    }
}

/// Stops reading ahead for every reason, and then reads again or not: in the first report, in the
/// encoding, and in the prompt; or with everything in one chunk.
fn for_each_end(check: impl Fn(usize, usize, End, bool, &str)) {
    for (chunk, last) in [(16, 1), (16, 4), (16, IN_THE_PROMPT), (256, 3)] {
        for end in ENDS {
            for again in [false, true] {
                check(
                    chunk,
                    last,
                    end,
                    again,
                    &format!("{end:?} at report {last}, chunks of {chunk}, read again: {again}"),
                );
            }
        }
    }
}

/// Reading the picture ahead is stopped anywhere and for any reason: the picture stays in the
/// conversation.
#[test]
fn a_picture_that_is_read_ahead_is_not_lost() {
    in_child(
        "answers::a_picture_that_is_read_ahead_is_not_lost",
        Limits::default(),
        || {
            let model = model();
            let expected = ask(&looking(&model, 256), DESCRIBE);
            for_each_end(|chunk, last, end, again, what| {
                let session = looking(&model, chunk);
                let error = prefill_until(&session, end, last)
                    .unwrap_or_else(|| panic!("it was not stopped: {what}"));
                assert!(fits(end, &error), "{what}: {error:?}");
                assert!(!session.is_generating().unwrap(), "{what}");
                if again {
                    session.prefill(Op::default()).unwrap();
                    assert!(!session.is_generating().unwrap(), "{what}");
                }
                assert_eq!(ask(&session, DESCRIBE), expected, "{what}");
                let stats = session.stats();
                assert_eq!(stats.image_tokens, 64, "{what}");
                // Everything that was read is kept, and read only once.
                assert!(!again || stats.reused_tokens == 65, "{what}: {stats:?}");
            });
        },
    );
}

/// An app that adds a picture again after reading it ahead has failed is not refused, and may also
/// use another picture.
#[test]
fn a_picture_whose_reading_ended_early_may_be_replaced() {
    in_child(
        "answers::a_picture_whose_reading_ended_early_may_be_replaced",
        Limits::default(),
        || {
            let model = model();
            let plain = model.session(GenerationOptions::default()).unwrap();
            plain.add_image(other_picture()).unwrap();
            let expected = ask(&plain, DESCRIBE);
            assert!(matches!(
                plain.add_image(picture()),
                Err(Error::InvalidState(_))
            ));
            for end in ENDS {
                let session = looking(&model, 16);
                assert!(
                    matches!(
                        session.add_image(other_picture()),
                        Err(Error::InvalidState(_))
                    ),
                    "{end:?}"
                );
                prefill_until(&session, end, IN_THE_PROMPT).unwrap();
                session.add_image(other_picture()).unwrap();
                assert!(
                    matches!(session.add_image(picture()), Err(Error::InvalidState(_))),
                    "{end:?}"
                );
                assert_eq!(ask(&session, DESCRIBE), expected, "{end:?}");
            }
        },
    );
}

/// The same with a question: a suspension keeps it, everything else rolls it back, and never is
/// half of it left.
#[test]
fn a_question_that_is_read_ahead_is_kept_or_rolled_back() {
    in_child(
        "answers::a_question_that_is_read_ahead_is_kept_or_rolled_back",
        Limits::default(),
        || {
            let model = model();
            let expected = ask(&looking(&model, 256), DESCRIBE);
            for_each_end(|chunk, last, end, again, what| {
                let session = looking(&model, chunk);
                session.add_text(Role::User, DESCRIBE).unwrap();
                let error = prefill_until(&session, end, last)
                    .unwrap_or_else(|| panic!("it was not stopped: {what}"));
                assert!(fits(end, &error), "{what}: {error:?}");
                assert!(!session.is_generating().unwrap(), "{what}");
                if end == End::Suspended {
                    assert_eq!(session.messages().unwrap().len(), 1, "{what}");
                } else {
                    assert_eq!(session.messages().unwrap(), [], "{what}");
                    session.add_image(picture()).unwrap();
                    session.add_text(Role::User, DESCRIBE).unwrap();
                }
                if again {
                    session.prefill(Op::default()).unwrap();
                }
                assert_eq!(answer(&session), expected, "{what}");
                assert_eq!(session.stats().image_tokens, 64, "{what}");
            });
        },
    );
}

/// After a suspended prefill the question may still be changed, and the part that was read is not
/// read again.
#[test]
fn a_suspended_question_continues() {
    in_child(
        "answers::a_suspended_question_continues",
        Limits::default(),
        || {
            let model = model();
            let whole = looking(&model, 256);
            whole.add_text(Role::User, DESCRIBE).unwrap();
            let expected = ask(&whole, "Be brief.");
            let session = looking(&model, 16);
            session.add_text(Role::User, DESCRIBE).unwrap();
            prefill_until(&session, End::Suspended, IN_THE_PROMPT).unwrap();
            assert_eq!(ask(&session, "Be brief."), expected);
            assert!(session.stats().reused_tokens >= 16, "{:?}", session.stats());
            assert_eq!(session.messages().unwrap().len(), 2);
        },
    );
}

/// A cancellation before there was anything to cancel does not affect later reading ahead.
#[test]
fn reading_ahead_ignores_earlier_cancellations() {
    let model = model();
    let session = looking(&model, 256);
    session.cancel();
    session.prefill(Op::default()).unwrap();
    session.add_text(Role::User, DESCRIBE).unwrap();
    session.cancel();
    assert!(matches!(
        session.prefill(Op::default()),
        Err(Error::Cancelled)
    ));
    assert_eq!(session.messages().unwrap(), []);
}

/// The decoder polls before each layer and before the head, and stops at once on an error. The
/// cache is unchanged.
#[test]
fn a_decoder_that_is_stopped_at_any_layer_can_continue() {
    let model = load_model(tiny()).unwrap();
    check_every_layer::<KVCache>(&model);
    check_every_layer::<ConcatKeyValueCache>(&model);
}

fn check_every_layer<C: KeyValueCache + Default>(model: &MoxinVLM) {
    let layers = model.decoder.settings().layers;
    let embeds = |ids: &[u32]| model.embed(ids, None).unwrap();
    let numbers = |logits: Array| logits.to_vec_cast::<f32>().unwrap();
    let (prompt, token) = (embeds(&[1, 5, 9, 77, 12]), embeds(&[33]));
    let run = |ended_at: &dyn Fn(usize) -> bool| {
        let mut cache: Vec<C> = (0..layers).map(|_| C::default()).collect();
        let mut logits = Vec::new();
        for input in [&prompt, &token, &prompt] {
            let held = cache[0].offset();
            for end in (0..=layers).filter(|end| ended_at(*end)) {
                let polls = Cell::new(0);
                let poll = || {
                    polls.set(polls.get() + 1);
                    if polls.get() > end {
                        Err(Error::Suspended)
                    } else {
                        Ok(())
                    }
                };
                let ended = model.forward_embeddings(input, &mut cache, Want::Last, &poll);
                assert!(matches!(ended, Err(Error::Suspended)), "{ended:?}");
                assert_eq!(polls.get(), end + 1);
                assert!(cache.iter().all(|layer| layer.offset() == held));
                if end < layers {
                    polls.set(0);
                    assert!(matches!(
                        model.forward_embeddings(input, &mut cache, Want::None, &poll),
                        Err(Error::Suspended)
                    ));
                    assert!(cache.iter().all(|layer| layer.offset() == held));
                }
            }
            let polls = Cell::new(0);
            let poll = || {
                polls.set(polls.get() + 1);
                Ok(())
            };
            logits.push(numbers(
                model
                    .forward_embeddings(input, &mut cache, Want::Last, &poll)
                    .unwrap()
                    .unwrap(),
            ));
            assert_eq!(polls.get(), layers + 1);
        }
        logits
    };
    let expected = run(&|_| false);
    for end in 0..=layers {
        assert_eq!(run(&|at| at == end), expected, "stopped at {end}");
    }
    assert_eq!(run(&|_| true), expected, "ended everywhere");
}

/// Faults in every layer, block and chunk, of every kind and on every path, through the C ABI.
#[test]
fn every_failure_on_every_path() {
    if !cfg!(debug_assertions) {
        return println!("SKIPPED: a release build has no fault injection");
    }
    let program = Program::build("answers.c");
    program.run(
        &[tiny().as_os_str(), demo().as_os_str(), OsStr::new("places")],
        Limits::default(),
    );
}

/// Every way of cancelling takes effect within a layer, whatever is being computed.
#[test]
fn cancelling_takes_effect_within_a_layer() {
    if !cfg!(debug_assertions) {
        return println!("SKIPPED: a release build has no fault injection");
    }
    let program = Program::build("answers.c");
    program.run(
        &[tiny().as_os_str(), demo().as_os_str(), OsStr::new("heard")],
        Limits::default(),
    );
}
