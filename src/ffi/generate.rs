//! Answers, step by step or as a stream.

use std::{
    ffi::{CString, c_void},
    ptr,
    time::Duration,
};

use super::{
    Versioned, c_string, guard, hold,
    library::UserData,
    moxin_destroy_fn, moxin_error, moxin_op, moxin_session, moxin_status, moxin_str,
    op::{stream_options, with_op},
    out, view, write_result,
};
use crate::{
    Error, Result,
    runtime::{Event, FinishReason},
};

/// What one step brought.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum moxin_event_kind {
    /// Part of the prompt was read: done of total positions. The first such event may be the
    /// picture's encoding, with done 0.
    Prefill = 0,
    /// One token: text, token_id, logprob.
    Text = 1,
    /// The answer is complete: finish, and in text what was still waiting.
    Finished = 2,
}

/// Why an answer ended.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum moxin_finish_reason {
    /// It has not.
    None = 0,
    /// The model ended its turn.
    EndOfTurn = 1,
    /// A stop text came up.
    StopSequence = 2,
    /// The answer reached its maximum length.
    MaxTokens = 3,
    /// The conversation fills the context.
    ContextFull = 4,
    /// It was cancelled; the turn was taken back.
    Cancelled = 5,
    /// It failed, as the event's error says; the turn was taken back. Only in streams: a step
    /// returns its status instead.
    Error = 6,
}

/// A token that could have come.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct moxin_token_logprob {
    /// The token.
    pub token_id: i32,
    /// Its log-probability, before temperature and filters.
    pub logprob: f32,
}

/// One step's outcome. What it points to lives until the next step on the session, or its end; in a
/// stream, until the callback returns.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct moxin_event {
    /// sizeof(moxin_event)
    pub struct_size: usize,
    /// Which of the fields below count.
    pub kind: moxin_event_kind,
    /// Why the answer ended; MOXIN_FINISH_REASON_NONE before FINISHED.
    pub finish: moxin_finish_reason,
    /// Whole characters; empty while the bytes of one are waiting.
    pub text: moxin_str,
    /// The token, -1 in other events than TEXT.
    pub token_id: i32,
    /// The token's log-probability, before temperature and filters.
    pub logprob: f32,
    /// Positions of the prompt that are read.
    pub done: u32,
    /// Positions of the prompt.
    pub total: u32,
    /// The likeliest tokens, likeliest first, where moxin_session_params.logprobs asks for them;
    /// else NULL.
    pub top: *const moxin_token_logprob,
    /// Their number.
    pub top_count: usize,
    /// What went wrong, where finish is MOXIN_FINISH_REASON_ERROR; else NULL. Not to be freed.
    pub error: *const moxin_error,
}

/// Told one event of a stream. Returning false cancels the answer; its end is told too.
pub type moxin_event_fn =
    Option<unsafe extern "C" fn(user_data: *mut c_void, event: *const moxin_event) -> bool>;

/// Counts and times of a session's latest turn.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct moxin_stats {
    /// sizeof(moxin_stats)
    pub struct_size: usize,
    /// Positions of the prompt: the whole conversation, with image tokens.
    pub prompt_tokens: u32,
    /// Those of them that are a picture's.
    pub image_tokens: u32,
    /// Those of them that were kept from earlier turns.
    pub reused_tokens: u32,
    /// Tokens generated.
    pub generated_tokens: u32,
    /// Pictures that did not have to be encoded, because the same had been before.
    pub cached_images: u32,
    /// Messages of the conversation, the answer included once it is complete.
    pub message_count: u32,
    /// Milliseconds in the vision encoders.
    pub vision_ms: f64,
    /// Milliseconds in prefill, without vision.
    pub prefill_ms: f64,
    /// Milliseconds from the first step of the turn to its first token.
    pub first_token_ms: f64,
    /// Milliseconds in the steps after the first token.
    pub decode_ms: f64,
    /// Positions of the prompt read a second, without those reused.
    pub prefill_tps: f64,
    /// Tokens a second after the first.
    pub decode_tps: f64,
    /// The most memory that the process's models ever held, in bytes.
    pub peak_bytes: u64,
}

// SAFETY: repr(C) and begins with its size. It is only ever written to C, so no foreign bits become
// its enums.
unsafe impl Versioned for moxin_event {
    fn defaults() -> Self {
        moxin_event {
            struct_size: size_of::<Self>(),
            kind: moxin_event_kind::Prefill,
            finish: moxin_finish_reason::None,
            text: moxin_str {
                data: c"".as_ptr(),
                len: 0,
            },
            token_id: -1,
            logprob: 0.0,
            done: 0,
            total: 0,
            top: ptr::null(),
            top_count: 0,
            error: ptr::null(),
        }
    }
}

// SAFETY: repr(C), begins with its size, otherwise numbers.
unsafe impl Versioned for moxin_stats {}

/// Encodes the picture, or reads one chunk of the prompt, or generates one token, and tells of it
/// in *out_event, whose struct_size must be set. Call it until the event is FINISHED.
///
/// moxin_session_cancel is heard before every layer: the event is then FINISHED with
/// MOXIN_FINISH_REASON_CANCELLED, and the turn is taken back. So does a failure: the turn's texts
/// go, and a picture added with them; the session can go on with another. SUSPENDED does not: the
/// next step goes on where this one did not, and until then an answer is being generated. After
/// BACKEND and PANIC all is read anew.
///
/// Fails with INVALID_STATE where there is nothing to answer or the model was unloaded,
/// CONTEXT_FULL for a prompt that does not fit, OUT_OF_MEMORY, BUSY, SUSPENDED, BACKEND.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn moxin_session_step(
    session: *const moxin_session,
    out_event: *mut moxin_event,
    error: *mut *mut moxin_error,
) -> moxin_status {
    guard(error, || {
        let place = out(out_event, "out_event")?;
        // SAFETY: NULL or a handle of this library that was not freed; the caller's struct with its
        // size.
        let session = unsafe {
            super::check_size::<moxin_event>(place.cast::<usize>().read(), "out_event")?;
            hold(session, "session")?
        };
        let event = session.session.step()?;
        let mut last = session
            .last_event
            .lock()
            .unwrap_or_else(|poisoned| poisoned.into_inner());
        *last = LastEvent::of(&event);
        // SAFETY: checked by `out`, and the caller's struct with its size.
        unsafe { write_result(place, last.show(&event), "out_event") }
    })
}

/// Generates the answer on a thread of the library and calls on_event with each event, up to
/// exactly one that is FINISHED; then it calls destroy(user_data), once. The call itself returns at
/// once.
///
/// Inside on_event, moxin_session_cancel and moxin_session_stats do their work, moxin_session_free
/// does not wait, and any other call on the session is BUSY but in the last event: by then the
/// session is free again, and the next question may be asked from there or anywhere. While the
/// library is suspended the stream pauses. When the process ends, on_event is called no more.
///
/// op: may be NULL; its cancel object ends the answer as moxin_session_cancel does, its time limit
/// with MOXIN_FINISH_REASON_ERROR and TIMEOUT; its progress must be NULL. destroy: may be NULL;
/// where the call fails it has been called before it returns.
///
/// Fails with INVALID_STATE where there is nothing to answer, with BUSY.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn moxin_session_start(
    session: *const moxin_session,
    op: *const moxin_op,
    on_event: moxin_event_fn,
    user_data: *mut c_void,
    destroy: moxin_destroy_fn,
    error: *mut *mut moxin_error,
) -> moxin_status {
    let owner = UserData {
        pointer: user_data,
        destroy,
    };
    guard(error, || {
        let on_event = on_event.ok_or(Error::NullArgument("on_event"))?;
        // SAFETY: NULL or a handle of this library that was not freed, and the caller's initialized
        // struct.
        let (session, options) = unsafe { (hold(session, "session")?, stream_options(op)?) };
        let tell = move |outcome: Result<Event>| {
            let failure = outcome.as_ref().err().map(moxin_error::new);
            let event = outcome.unwrap_or_else(|_| Event::Finished {
                reason: FinishReason::Cancelled,
                text: String::new(),
            });
            let last = LastEvent::of(&event);
            let mut event = last.show(&event);
            if let Some(failure) = &failure {
                event.finish = moxin_finish_reason::Error;
                event.error = failure;
            }
            // SAFETY: the caller's function with the caller's data, which lives until `owner` is
            // dropped.
            unsafe { on_event(owner.pointer(), &raw const event) }
        };
        session.session.start(options, tell)
    })
}

/// Reads the prompt ahead, so that the first token of the answer comes at once: encodes the picture
/// and computes keys and values, in chunks between which other sessions have their turns. Before
/// the first question it reads the picture alone.
///
/// op, error: may be NULL. Progress has the stages MOXIN_STAGE_ENCODE and MOXIN_STAGE_PREFILL. The
/// op's cancel object, moxin_session_cancel, the time limit and moxin_suspend are heard before
/// every block of an encoder and every layer of the decoder.
///
/// Fails as moxin_session_step does, with INVALID_STATE where there is nothing to read, with
/// CANCELLED, TIMEOUT. No failure leaves an answer being generated. What was added is kept or taken
/// back so:
///
/// - SUSPENDED: all is kept. The next call, or an answer, goes on where this one ended, and texts
///   may be added before.
/// - Any other failure, while the picture is read alone: the picture is kept. After CANCELLED and
///   TIMEOUT what was read is not read again. A picture that is kept so, or after SUSPENDED, may be
///   replaced: adding one does not fail.
/// - Any other failure, where there is a question: the turn is taken back, its texts and a picture
///   added with them.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn moxin_session_prefill(
    session: *const moxin_session,
    op: *const moxin_op,
    error: *mut *mut moxin_error,
) -> moxin_status {
    // SAFETY: NULL or a handle of this library that was not freed; the op's pointers are valid
    // during this call.
    guard(error, || unsafe {
        let session = hold(session, "session")?;
        with_op(op, |op| session.session.prefill(op))
    })
}

/// Counts and times of the latest turn, as of its latest step; also while an answer is being
/// generated. out_stats->struct_size must be set. Never waits.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn moxin_session_stats(
    session: *const moxin_session,
    out_stats: *mut moxin_stats,
    error: *mut *mut moxin_error,
) -> moxin_status {
    guard(error, || {
        let place = out(out_stats, "out_stats")?;
        // SAFETY: NULL or a handle of this library that was not freed.
        let stats = unsafe { hold(session, "session")? }.session.stats();
        let ms = |time: Duration| time.as_secs_f64() * 1e3;
        let stats = moxin_stats {
            prompt_tokens: stats.prompt_tokens as u32,
            image_tokens: stats.image_tokens as u32,
            reused_tokens: stats.reused_tokens as u32,
            generated_tokens: stats.generated_tokens as u32,
            cached_images: stats.cached_images as u32,
            message_count: stats.messages as u32,
            vision_ms: ms(stats.vision),
            prefill_ms: ms(stats.prefill),
            first_token_ms: ms(stats.first_token),
            decode_ms: ms(stats.decode),
            prefill_tps: stats.prefill_rate(),
            decode_tps: stats.decode_rate(),
            peak_bytes: stats.peak_bytes,
            ..moxin_stats::defaults()
        };
        // SAFETY: checked by `out`, and the caller's struct with its size.
        unsafe { write_result(place, stats, "out_stats") }
    })
}

/// What an event for C points to.
#[derive(Default)]
pub(super) struct LastEvent {
    text: CString,
    top: Vec<moxin_token_logprob>,
}

impl LastEvent {
    fn of(event: &Event) -> LastEvent {
        match event {
            Event::Prefill { .. } => LastEvent::default(),
            Event::Finished { text, .. } => LastEvent {
                text: c_string(text),
                top: Vec::new(),
            },
            Event::Text { text, top, .. } => {
                let top = top.iter().map(|choice| moxin_token_logprob {
                    token_id: choice.token as i32,
                    logprob: choice.logprob,
                });
                LastEvent {
                    text: c_string(text),
                    top: top.collect(),
                }
            }
        }
    }

    /// The event, pointing into this.
    fn show(&self, event: &Event) -> moxin_event {
        let empty = moxin_event {
            text: view(&self.text),
            ..moxin_event::defaults()
        };
        match event {
            Event::Prefill { done, total } => moxin_event {
                kind: moxin_event_kind::Prefill,
                done: *done as u32,
                total: *total as u32,
                ..empty
            },
            Event::Text { token, logprob, .. } => moxin_event {
                kind: moxin_event_kind::Text,
                token_id: *token as i32,
                logprob: *logprob,
                top: if self.top.is_empty() {
                    ptr::null()
                } else {
                    self.top.as_ptr()
                },
                top_count: self.top.len(),
                ..empty
            },
            Event::Finished { reason, .. } => {
                let finish = match reason {
                    FinishReason::EndOfTurn => moxin_finish_reason::EndOfTurn,
                    FinishReason::StopSequence => moxin_finish_reason::StopSequence,
                    FinishReason::MaxTokens => moxin_finish_reason::MaxTokens,
                    FinishReason::ContextFull => moxin_finish_reason::ContextFull,
                    FinishReason::Cancelled => moxin_finish_reason::Cancelled,
                };
                moxin_event {
                    kind: moxin_event_kind::Finished,
                    finish,
                    ..empty
                }
            }
        }
    }
}
