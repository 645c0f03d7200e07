//! Answers, step by step or as a stream.

use std::{
    ffi::{CString, c_void},
    ptr,
    time::Duration,
};

use super::{
    Versioned, c_string, guard,
    library::UserData,
    moxin_destroy_fn, moxin_error, moxin_op, moxin_session, moxin_status, moxin_str,
    op::{stream_options, with_op},
    out, retain, view, write_result,
};
use crate::{
    Error, Result,
    runtime::{Event, FinishReason},
};

/// The kind of an event.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum moxin_event_kind {
    /// Part of the prompt was read: done of total positions. The first such event may follow the
    /// encoding of a picture, with done 0.
    Prefill = 0,
    /// One token was generated: text, token_id and logprob are set.
    Text = 1,
    /// The answer is complete: finish says why, and text has the rest of the text.
    Finished = 2,
}

/// Why an answer ended.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum moxin_finish_reason {
    /// The answer has not ended.
    None = 0,
    /// The model ended its turn.
    EndOfTurn = 1,
    /// A stop text was generated.
    StopSequence = 2,
    /// The answer reached max_tokens.
    MaxTokens = 3,
    /// The conversation fills the context.
    ContextFull = 4,
    /// The answer was cancelled; the turn was rolled back.
    Cancelled = 5,
    /// The answer failed, see the event's error; the turn was rolled back. Only in streams: a step
    /// returns its status instead.
    Error = 6,
}

/// A candidate for the next token.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct moxin_token_logprob {
    /// The token.
    pub token_id: i32,
    /// The log-probability of the token, before temperature and filters.
    pub logprob: f32,
}

/// The result of one step. Its pointers are valid until the next step on the session, or until the
/// session is freed; in a stream, until the callback returns.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct moxin_event {
    /// sizeof(moxin_event)
    pub struct_size: usize,
    /// The kind of the event, which says which fields below are set.
    pub kind: moxin_event_kind,
    /// Why the answer ended; MOXIN_FINISH_REASON_NONE before the FINISHED event.
    pub finish: moxin_finish_reason,
    /// Complete characters only; empty while a character is incomplete.
    pub text: moxin_str,
    /// The token; -1 in events other than TEXT.
    pub token_id: i32,
    /// The token's log-probability, before temperature and filters.
    pub logprob: f32,
    /// The number of prompt positions that were read.
    pub done: u32,
    /// The number of prompt positions.
    pub total: u32,
    /// The most likely tokens, in descending order, if moxin_session_params.logprobs is set;
    /// otherwise NULL.
    pub top: *const moxin_token_logprob,
    /// The number of entries in top.
    pub top_count: usize,
    /// The error, if finish is MOXIN_FINISH_REASON_ERROR; otherwise NULL. The library frees it.
    pub error: *const moxin_error,
}

/// Receives one event of a stream. Returning false cancels the answer; its FINISHED event still
/// follows.
pub type moxin_event_fn =
    Option<unsafe extern "C" fn(user_data: *mut c_void, event: *const moxin_event) -> bool>;

/// Counts and times of a session's latest turn.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct moxin_stats {
    /// sizeof(moxin_stats)
    pub struct_size: usize,
    /// Positions of the prompt: the whole conversation, including image tokens.
    pub prompt_tokens: u32,
    /// Prompt positions that belong to pictures.
    pub image_tokens: u32,
    /// Prompt positions that were reused from earlier turns.
    pub reused_tokens: u32,
    /// Generated tokens.
    pub generated_tokens: u32,
    /// Pictures that were found in the cache and not encoded again.
    pub cached_images: u32,
    /// Messages in the conversation, including the answer once it is complete.
    pub message_count: u32,
    /// Milliseconds in the vision encoders.
    pub vision_ms: f64,
    /// Milliseconds in prefill, without vision.
    pub prefill_ms: f64,
    /// Milliseconds from the first step of the turn to its first token.
    pub first_token_ms: f64,
    /// Milliseconds in the steps after the first token.
    pub decode_ms: f64,
    /// Prompt positions read per second, without reused ones.
    pub prefill_tps: f64,
    /// Tokens per second after the first token.
    pub decode_tps: f64,
    /// Peak memory of all models in the process, in bytes.
    pub peak_bytes: u64,
}

// SAFETY: repr(C) and starts with its size. C never writes it, so its enums are always valid.
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

// SAFETY: repr(C), starts with its size, otherwise numbers.
unsafe impl Versioned for moxin_stats {}

/// Performs one step of the answer (encodes a picture, reads one chunk of the prompt, or generates
/// one token) and reports it in *out_event, whose struct_size must be set. Call it until the event
/// is FINISHED.
///
/// moxin_session_cancel takes effect before the next layer: the event is FINISHED with
/// MOXIN_FINISH_REASON_CANCELLED, and the turn is rolled back. A failure also rolls the turn back:
/// its texts and pictures are removed, and the session can take another question. After SUSPENDED
/// nothing is rolled back: the answer stays in progress, and the next step continues it. After
/// BACKEND and PANIC the whole prompt is read again.
///
/// Errors: INVALID_STATE if there is nothing to answer or the model was unloaded; CONTEXT_FULL if
/// the prompt does not fit; OUT_OF_MEMORY, BUSY, SUSPENDED, BACKEND.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn moxin_session_step(
    session: *const moxin_session,
    out_event: *mut moxin_event,
    error: *mut *mut moxin_error,
) -> moxin_status {
    guard(error, || {
        let place = out(out_event, "out_event")?;
        // SAFETY: NULL, or a handle of this library that was not freed; the caller's struct with
        // its size.
        let session = unsafe {
            super::check_size::<moxin_event>(place.cast::<usize>().read(), "out_event")?;
            retain(session, "session")?
        };
        let event = session.session.step()?;
        let mut last = session
            .last_event
            .lock()
            .unwrap_or_else(|poisoned| poisoned.into_inner());
        *last = LastEvent::of(&event);
        // SAFETY: `out` was checked; it is the caller's struct with its size.
        unsafe { write_result(place, last.show(&event), "out_event") }
    })
}

/// Generates the answer on a thread of the library and calls on_event with each event. Exactly one
/// event is FINISHED, and it is the last; destroy(user_data) is then called once. The call itself
/// returns immediately.
///
/// Inside on_event, moxin_session_cancel and moxin_session_stats work as usual, moxin_session_free
/// does not wait, and every other call on the session fails with BUSY. In the last event the
/// session is already free, so that the next question can be asked there. While the library is
/// suspended, the stream pauses. When the process exits, on_event is no longer called.
///
/// op may be NULL. Its cancel object ends the answer as moxin_session_cancel does; its time limit
/// ends it with MOXIN_FINISH_REASON_ERROR and TIMEOUT; its progress callback must be NULL. destroy
/// may be NULL; if the call fails, destroy was called before the call returns.
///
/// Errors: INVALID_STATE if there is nothing to answer; BUSY.
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
        // SAFETY: NULL, or a handle of this library that was not freed, and the caller's
        // initialized struct.
        let (session, options) = unsafe { (retain(session, "session")?, stream_options(op)?) };
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

/// Reads the prompt ahead of time, so that the first token of the answer comes sooner: encodes the
/// pictures and computes keys and values, in chunks between which other sessions take turns. Before
/// the first question it reads the pictures alone.
///
/// op and error may be NULL. Progress is reported with stages MOXIN_STAGE_ENCODE and
/// MOXIN_STAGE_PREFILL. Cancelling, the time limit and moxin_suspend take effect before the next
/// block of an encoder or layer of the decoder.
///
/// Errors: those of moxin_session_step; INVALID_STATE if there is nothing to read; CANCELLED,
/// TIMEOUT. No failure leaves an answer in progress. What happens to the conversation depends on
/// the error:
///
/// - SUSPENDED: everything is kept. The next call, or an answer, continues from here, and texts may
///   be added first.
/// - Any other error while a picture is read alone: the picture is kept. After CANCELLED and
///   TIMEOUT the part that was read is kept too. A picture kept in this way, or after SUSPENDED,
///   may be replaced: adding another one does not fail.
/// - Any other error if there is a question: the turn is rolled back, with its texts and pictures.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn moxin_session_prefill(
    session: *const moxin_session,
    op: *const moxin_op,
    error: *mut *mut moxin_error,
) -> moxin_status {
    // SAFETY: NULL, or a handle of this library that was not freed; the pointers in op are valid
    // during this call.
    guard(error, || unsafe {
        let session = retain(session, "session")?;
        with_op(op, |op| session.session.prefill(op))
    })
}

/// Gets counts and times of the latest turn, as of its latest step, even while an answer is being
/// generated. out_stats->struct_size must be set. Never blocks.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn moxin_session_stats(
    session: *const moxin_session,
    out_stats: *mut moxin_stats,
    error: *mut *mut moxin_error,
) -> moxin_status {
    guard(error, || {
        let place = out(out_stats, "out_stats")?;
        // SAFETY: NULL, or a handle of this library that was not freed.
        let stats = unsafe { retain(session, "session")? }.session.stats();
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
        // SAFETY: `out` was checked; it is the caller's struct with its size.
        unsafe { write_result(place, stats, "out_stats") }
    })
}

/// The data that an event for C points to.
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

    /// Converts an event; the result points into `self`.
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
