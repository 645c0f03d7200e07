//! Conversations.

use std::{
    ffi::{CString, c_char},
    ptr,
    sync::Mutex,
};

use super::{
    Versioned, c_string, deref, free, give, guard, init_params, moxin_embedding, moxin_error, moxin_image, moxin_model, moxin_status,
    moxin_str, out, read_params, text, view, write_result,
};
use crate::{
    Error, Result,
    generate::{Event, FinishReason, GenerationOptions, SamplingParams},
    runtime::Session,
    text::Role,
};

/// A conversation with a model.
pub struct moxin_session {
    session: Session,
    /// The text of the latest event, which C code may still look at.
    event_text: Mutex<CString>,
}

/// Whose a text is: one of MOXIN_ROLE_*.
pub type moxin_role = u32;
/// Instructions before the conversation.
pub const MOXIN_ROLE_SYSTEM: moxin_role = 0;
/// A question.
pub const MOXIN_ROLE_USER: moxin_role = 1;
/// An answer.
pub const MOXIN_ROLE_ASSISTANT: moxin_role = 2;

/// How a session generates.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct moxin_session_params {
    /// sizeof(moxin_session_params)
    pub struct_size: usize,
    /// 0: always the likeliest token, the default. Higher: more varied.
    pub temperature: f32,
    /// Draw from so many of the likeliest tokens. 0, the default: from all.
    pub top_k: u32,
    /// Draw from the likeliest tokens that together have this probability. Default: 1, from all.
    pub top_p: f32,
    /// Draw from tokens at least this fraction as likely as the likeliest. Default: 0, from all.
    pub min_p: f32,
    /// Above 1: makes tokens that came up before less likely. Default: 1.
    pub repetition_penalty: f32,
    /// How many of the latest tokens count as come up before.
    pub repetition_window: u32,
    /// The same seed draws the same tokens. Default: 0.
    pub seed: u64,
    /// Tokens of one answer at most. Default: 512.
    pub max_tokens: u32,
    /// Positions of the whole conversation at most, image tokens included. 0, the default: 4096, or fewer where the model was made for fewer.
    pub max_context: u32,
    /// Positions of the prompt that one step works through. Default: 256.
    pub prefill_chunk: u32,
    /// Texts that end an answer, NUL-terminated UTF-8; they are not part of it. May be NULL where stop_count is 0.
    pub stop: *const *const c_char,
    /// The number of these texts.
    pub stop_count: usize,
}

/// What one step brought.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum moxin_event_kind {
    /// Part of the prompt was read: done of total positions. The first such event may be the picture's encoding, with done 0.
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
}

/// One step's outcome.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct moxin_event {
    /// sizeof(moxin_event)
    pub struct_size: usize,
    /// Which of the fields below count.
    pub kind: moxin_event_kind,
    /// Why the answer ended; MOXIN_FINISH_REASON_NONE before FINISHED.
    pub finish: moxin_finish_reason,
    /// Whole characters; empty while the bytes of one are waiting. Lives until the next step on the session, or its end.
    pub text: moxin_str,
    /// The token, -1 in other events than TEXT.
    pub token_id: i32,
    /// The token's log-probability, before temperature and filters.
    pub logprob: f32,
    /// Positions of the prompt that are read.
    pub done: u32,
    /// Positions of the prompt.
    pub total: u32,
}

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
    /// Milliseconds in the vision encoders.
    pub vision_ms: f64,
    /// Milliseconds in prefill, without vision.
    pub prefill_ms: f64,
    /// Milliseconds from the first step of the turn to its first token.
    pub first_token_ms: f64,
    /// Milliseconds in the steps after the first token.
    pub decode_ms: f64,
    /// The most memory that the process's models ever held, in bytes.
    pub peak_bytes: u64,
}

// SAFETY: repr(C), begins with its size, otherwise numbers and pointers that are checked before use.
unsafe impl Versioned for moxin_session_params {
    fn defaults() -> Self {
        let options = GenerationOptions::default();
        let sampling = options.sampling;
        moxin_session_params {
            struct_size: size_of::<Self>(),
            temperature: sampling.temperature,
            top_k: sampling.top_k,
            top_p: sampling.top_p,
            min_p: sampling.min_p,
            repetition_penalty: sampling.repetition_penalty,
            repetition_window: sampling.repetition_window as u32,
            seed: sampling.seed,
            max_tokens: options.max_tokens as u32,
            max_context: 0,
            prefill_chunk: options.prefill_chunk as u32,
            stop: ptr::null(),
            stop_count: 0,
        }
    }
}

// SAFETY: repr(C) and begins with its size. It is only ever written to C, so no foreign bits become its enums.
unsafe impl Versioned for moxin_event {
    fn defaults() -> Self {
        moxin_event {
            struct_size: size_of::<Self>(),
            kind: moxin_event_kind::Prefill,
            finish: moxin_finish_reason::None,
            text: moxin_str { data: c"".as_ptr(), len: 0 },
            token_id: -1,
            logprob: 0.0,
            done: 0,
            total: 0,
        }
    }
}

// SAFETY: repr(C), begins with its size, otherwise numbers.
unsafe impl Versioned for moxin_stats {
    fn defaults() -> Self {
        moxin_stats {
            struct_size: size_of::<Self>(),
            prompt_tokens: 0,
            image_tokens: 0,
            reused_tokens: 0,
            generated_tokens: 0,
            vision_ms: 0.0,
            prefill_ms: 0.0,
            first_token_ms: 0.0,
            decode_ms: 0.0,
            peak_bytes: 0,
        }
    }
}

/// Sets up parameters with the defaults; struct_size is sizeof(moxin_session_params), and nothing is written past it.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn moxin_session_params_init(params: *mut moxin_session_params, struct_size: usize) {
    // SAFETY: NULL, or the caller's struct of that size.
    unsafe { init_params(params, struct_size) };
}

/// Begins a conversation. params, error: may be NULL. *out receives a session that the caller frees with moxin_session_free; it keeps what it
/// needs of the model.
///
/// Fails with INVALID_ARGUMENT, naming the parameter.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn moxin_session_new(
    model: *const moxin_model,
    params: *const moxin_session_params,
    out_session: *mut *mut moxin_session,
    error: *mut *mut moxin_error,
) -> moxin_status {
    guard(error, || {
        let place = out(out_session, "out_session")?;
        // SAFETY: NULL or a handle of this library that was not freed, and the caller's initialized struct; checked place.
        unsafe {
            let model = deref(model, "model")?;
            let session = model.0.session(options(params)?)?;
            give(place, moxin_session { session, event_text: Mutex::default() });
        }
        Ok(())
    })
}

/// Adds a text to the conversation: a question, which the next steps answer, or an answer already given. len: bytes, or MOXIN_STRLEN.
///
/// Fails with INVALID_STATE for a system text, which Moxin takes none of, and while an answer is being generated; with BUSY.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn moxin_session_add_text(
    session: *const moxin_session,
    role: moxin_role,
    data: *const c_char,
    len: usize,
    error: *mut *mut moxin_error,
) -> moxin_status {
    guard(error, || {
        let role = match role {
            MOXIN_ROLE_SYSTEM => Role::System,
            MOXIN_ROLE_USER => Role::User,
            MOXIN_ROLE_ASSISTANT => Role::Assistant,
            other => return Err(Error::InvalidArgument(format!("role is {other}; 0 to {MOXIN_ROLE_ASSISTANT} is expected"))),
        };
        // SAFETY: NULL or a handle of this library that was not freed, and the caller's text.
        unsafe { deref(session, "session")?.session.add_text(role, text(data, len, "data")?) }
    })
}

/// Sets the picture that the conversation is about; it is encoded by the next step. The image may be freed at once.
///
/// Fails with INVALID_STATE for a second picture, which Moxin takes none of, and after the first answer; with BUSY.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn moxin_session_add_image(
    session: *const moxin_session,
    image: *const moxin_image,
    error: *mut *mut moxin_error,
) -> moxin_status {
    // SAFETY: NULL or handles of this library that were not freed.
    guard(error, || unsafe { deref(session, "session")?.session.add_image(deref(image, "image")?.0.clone()) })
}

/// As moxin_session_add_image, for a picture that is already encoded, by the same model: else INVALID_ARGUMENT.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn moxin_session_add_embedding(
    session: *const moxin_session,
    embedding: *const moxin_embedding,
    error: *mut *mut moxin_error,
) -> moxin_status {
    // SAFETY: NULL or handles of this library that were not freed.
    guard(error, || unsafe { deref(session, "session")?.session.add_embedding(&deref(embedding, "embedding")?.0) })
}

/// Encodes the picture, or reads one chunk of the prompt, or generates one token, and tells of it in *out_event, whose struct_size must be
/// set. Call it until the event is FINISHED.
///
/// A failure takes the turn back, its texts and a picture added with them; the session can go on with another. Fails with INVALID_STATE where
/// there is nothing to answer, CONTEXT_FULL for a prompt that does not fit, BUSY, BACKEND.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn moxin_generate_step(
    session: *const moxin_session,
    out_event: *mut moxin_event,
    error: *mut *mut moxin_error,
) -> moxin_status {
    guard(error, || {
        let place = out(out_event, "out_event")?;
        // SAFETY: NULL or a handle of this library that was not freed; the caller's struct with its size.
        let session = unsafe {
            super::check_size::<moxin_event>(place.cast::<usize>().read(), "out_event")?;
            deref(session, "session")?
        };
        let event = session.session.step()?;
        let mut kept = session.event_text.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        let text = match &event {
            Event::Text { text, .. } | Event::Finished { text, .. } => text.as_str(),
            Event::Prefill { .. } => "",
        };
        *kept = c_string(text);
        // SAFETY: checked by `out`, and the caller's struct with its size.
        unsafe { write_result(place, moxin_event { text: view(&kept), ..event_for_c(&event) }, "out_event") }
    })
}

/// Ends the answer that is being generated, from any thread: its next step is FINISHED with MOXIN_FINISH_REASON_CANCELLED, and the turn is
/// taken back. Where none is, the next one ends at once. NULL is fine.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn moxin_session_cancel(session: *const moxin_session) {
    // SAFETY: NULL or a handle of this library that was not freed.
    if let Some(session) = unsafe { session.as_ref() } {
        session.session.cancel();
    }
}

/// Forgets the conversation, and a cancellation that is pending; the parameters stay. Fails with BUSY.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn moxin_session_reset(session: *const moxin_session, error: *mut *mut moxin_error) -> moxin_status {
    // SAFETY: NULL or a handle of this library that was not freed.
    guard(error, || unsafe { deref(session, "session")?.session.reset() })
}

/// Counts and times of the latest turn. out_stats->struct_size must be set. Fails with BUSY.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn moxin_session_stats(
    session: *const moxin_session,
    out_stats: *mut moxin_stats,
    error: *mut *mut moxin_error,
) -> moxin_status {
    guard(error, || {
        let place = out(out_stats, "out_stats")?;
        // SAFETY: NULL or a handle of this library that was not freed.
        let stats = unsafe { deref(session, "session")? }.session.stats()?;
        let ms = |time: std::time::Duration| time.as_secs_f64() * 1e3;
        let stats = moxin_stats {
            prompt_tokens: stats.prompt_tokens as u32,
            image_tokens: stats.image_tokens as u32,
            reused_tokens: stats.reused_tokens as u32,
            generated_tokens: stats.generated_tokens as u32,
            vision_ms: ms(stats.vision),
            prefill_ms: ms(stats.prefill),
            first_token_ms: ms(stats.first_token),
            decode_ms: ms(stats.decode),
            peak_bytes: stats.peak_bytes,
            ..moxin_stats::defaults()
        };
        // SAFETY: checked by `out`, and the caller's struct with its size.
        unsafe { write_result(place, stats, "out_stats") }
    })
}

/// Frees a session. NULL is fine.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn moxin_session_free(session: *mut moxin_session) {
    // SAFETY: NULL or a handle of this library, which the caller does not use again.
    unsafe { free(session) };
}

/// # Safety
/// As for [`read_params`]; `stop` has `stop_count` texts that end with NUL.
unsafe fn options(params: *const moxin_session_params) -> Result<GenerationOptions> {
    // SAFETY: as promised by the caller.
    let params = unsafe { read_params(params, "params")? };
    if params.stop_count > 64 {
        return Err(Error::InvalidArgument(format!("params.stop_count is {}; 0 to 64 is expected", params.stop_count)));
    }
    let mut stop = Vec::new();
    for i in 0..params.stop_count {
        if params.stop.is_null() {
            return Err(Error::NullArgument("params.stop"));
        }
        // SAFETY: the caller's array of that many texts.
        stop.push(unsafe { text(params.stop.add(i).read(), super::MOXIN_STRLEN, "params.stop")? }.to_owned());
    }
    Ok(GenerationOptions {
        sampling: SamplingParams {
            temperature: params.temperature,
            top_k: params.top_k,
            top_p: params.top_p,
            min_p: params.min_p,
            repetition_penalty: params.repetition_penalty,
            repetition_window: params.repetition_window as usize,
            seed: params.seed,
        },
        max_tokens: params.max_tokens as usize,
        max_context: (params.max_context > 0).then_some(params.max_context as usize),
        prefill_chunk: params.prefill_chunk as usize,
        stop,
        top_logprobs: 0,
    })
}

/// An event without its text.
fn event_for_c(event: &Event) -> moxin_event {
    let empty = moxin_event::defaults();
    match event {
        Event::Prefill { done, total } => {
            moxin_event { kind: moxin_event_kind::Prefill, done: *done as u32, total: *total as u32, ..empty }
        }
        Event::Text { token, logprob, .. } => {
            moxin_event { kind: moxin_event_kind::Text, token_id: *token as i32, logprob: *logprob, ..empty }
        }
        Event::Finished { reason, .. } => {
            let finish = match reason {
                FinishReason::EndOfTurn => moxin_finish_reason::EndOfTurn,
                FinishReason::StopSequence => moxin_finish_reason::StopSequence,
                FinishReason::MaxTokens => moxin_finish_reason::MaxTokens,
                FinishReason::ContextFull => moxin_finish_reason::ContextFull,
                FinishReason::Cancelled => moxin_finish_reason::Cancelled,
            };
            moxin_event { kind: moxin_event_kind::Finished, finish, ..empty }
        }
    }
}
