//! Conversations.

use std::{ffi::c_char, ptr, sync::Mutex};

use super::{
    Versioned, free,
    generate::LastEvent,
    give, guard, hold,
    image::{moxin_pixel_budget, pixel_budget},
    init_params, moxin_embedding, moxin_error, moxin_image, moxin_model, moxin_status, out,
    read_params, text,
};
use crate::{
    Error, Result,
    runtime::{GenerationOptions, MAX_STOP_STRINGS, Role, SamplingParams, Session},
};

/// A conversation with a model.
pub struct moxin_session {
    pub(super) session: Session,
    /// What C code may still look at of the latest event.
    pub(super) last_event: Mutex<LastEvent>,
}

impl moxin_session {
    fn new(session: Session) -> moxin_session {
        moxin_session {
            session,
            last_event: Mutex::default(),
        }
    }
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
    /// How many of the latest tokens count as come up before. 0, the default: all of the
    /// conversation.
    pub repetition_window: u32,
    /// The same seed draws the same tokens. Default: 0.
    pub seed: u64,
    /// Tokens of one answer at most. Default: 512.
    pub max_tokens: u32,
    /// Positions of the whole conversation at most, image tokens included. 0, the default: 4096,
    /// more where a picture alone takes so many, fewer where the model was made for fewer.
    pub max_context: u32,
    /// Positions of the prompt that one step works through. Default: 256.
    pub prefill_chunk: u32,
    /// How many of the likeliest tokens each TEXT event lists, 0 to 20. Default: 0.
    pub logprobs: u32,
    /// Texts that end an answer, NUL-terminated UTF-8, of 1 to 1024 bytes each; they are not part
    /// of it. May be NULL where stop_count is 0.
    pub stop: *const *const c_char,
    /// The number of these texts, 0 to 64.
    pub stop_count: usize,
}

// SAFETY: repr(C), begins with its size, otherwise numbers and pointers that are checked before
// use.
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
            logprobs: 0,
            stop: ptr::null(),
            stop_count: 0,
        }
    }
}

/// Sets up parameters with the defaults; struct_size is sizeof(moxin_session_params), and nothing
/// is written past it.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn moxin_session_params_init(
    params: *mut moxin_session_params,
    struct_size: usize,
) {
    // SAFETY: NULL, or the caller's struct of that size.
    unsafe { init_params(params, struct_size) };
}

/// Begins a conversation. params, error: may be NULL. *out_session receives a session that the
/// caller frees with moxin_session_free; it keeps what it needs of the model.
///
/// Fails with INVALID_ARGUMENT, naming the parameter; with OUT_OF_MEMORY where a conversation of
/// max_context positions would not fit; with INVALID_STATE where the model was unloaded.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn moxin_session_new(
    model: *const moxin_model,
    params: *const moxin_session_params,
    out_session: *mut *mut moxin_session,
    error: *mut *mut moxin_error,
) -> moxin_status {
    guard(error, || {
        let place = out(out_session, "out_session")?;
        // SAFETY: NULL or a handle of this library that was not freed, and the caller's initialized
        // struct; checked place.
        unsafe {
            let session = hold(model, "model")?.model.session(options(params)?)?;
            give(place, moxin_session::new(session));
        }
        Ok(())
    })
}

/// A session of its own whose conversation has been the same until now: to ask two things about one
/// picture without reading it twice. *out_session receives a session that the caller frees with
/// moxin_session_free.
///
/// Fails with INVALID_STATE while an answer is being generated or where the model was unloaded,
/// with BUSY, and with OUT_OF_MEMORY where there is no room for a copy of what was computed.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn moxin_session_fork(
    session: *const moxin_session,
    out_session: *mut *mut moxin_session,
    error: *mut *mut moxin_error,
) -> moxin_status {
    guard(error, || {
        let place = out(out_session, "out_session")?;
        // SAFETY: NULL or a handle of this library that was not freed; checked place.
        unsafe {
            give(
                place,
                moxin_session::new(hold(session, "session")?.session.fork()?),
            )
        };
        Ok(())
    })
}

/// Adds a text to the conversation: a question, which the next steps answer, or an answer already
/// given. len: bytes, or MOXIN_STRLEN.
///
/// It is text: where a control token such as `</s>` is spelt in it, the model reads the characters,
/// not the token. See moxin_session_add_prompt for the other way.
///
/// Texts and pictures of one role that follow each other are parts of one message.
///
/// Fails with INVALID_STATE for a system text where the model takes none, for a question after the
/// answer where it takes none then (see moxin_model_info), and while an answer is being generated;
/// with CONTEXT_FULL where the conversation cannot fit into the context, which is known from its
/// length in bytes; with BUSY.
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
            other => {
                return Err(Error::InvalidArgument(format!(
                    "role is {other}; 0 to {MOXIN_ROLE_ASSISTANT} is expected"
                )));
            }
        };
        // SAFETY: NULL or a handle of this library that was not freed, and the caller's text.
        unsafe {
            hold(session, "session")?
                .session
                .add_text(role, text(data, len, "data")?)
        }
    })
}

/// Adds prompt text as it is: control tokens spelt in it are control tokens, and nothing is put
/// around it but the `<s>` in front of the whole prompt, where it does not begin with one. For
/// prompts in a format of your own; what a user says goes to moxin_session_add_text, which makes no
/// control token of it. len: bytes, or MOXIN_STRLEN.
///
/// The text is a message, which the next steps answer. Texts added one after the other are joined
/// without anything between them. The answer is not trimmed in front, is used as it is in later
/// prompts, and is closed by `</s>` as every answer. Before and after such a pair the conversation
/// may have others in the usual form; moxin_session_rewind and moxin_session_fork count it like
/// them. A picture stands behind the first token, as always.
///
/// Fails with INVALID_STATE while an answer is being generated, and where a question added with
/// moxin_session_add_text waits for its answer; with CONTEXT_FULL as moxin_session_add_text; with
/// BUSY.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn moxin_session_add_prompt(
    session: *const moxin_session,
    data: *const c_char,
    len: usize,
    error: *mut *mut moxin_error,
) -> moxin_status {
    // SAFETY: NULL or a handle of this library that was not freed, and the caller's text.
    guard(error, || unsafe {
        hold(session, "session")?
            .session
            .add_prompt(text(data, len, "data")?)
    })
}

/// Adds a picture to the user's message, behind what is there of it; it is encoded when its turn
/// comes. The image may be freed at once.
///
/// Where the answer is cancelled or fails, its pictures are taken back with the question. Added
/// again it is not encoded again: its tokens are in the model's cache.
///
/// budget: how many pixels it may have in front of the encoder; may be NULL. error: may be NULL.
///
/// Fails with INVALID_STATE for more pictures than moxin_model_info says, after an answer where the
/// model does not take one then, and while an answer is being generated; with INVALID_ARGUMENT for
/// a picture or a budget that the model cannot take; with BUSY.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn moxin_session_add_image(
    session: *const moxin_session,
    image: *const moxin_image,
    budget: *const moxin_pixel_budget,
    error: *mut *mut moxin_error,
) -> moxin_status {
    // SAFETY: NULL or handles of this library that were not freed, and the caller's initialized
    // struct.
    guard(error, || unsafe {
        let (session, image) = (hold(session, "session")?, hold(image, "image")?);
        session
            .session
            .add_image_within(image.0.clone(), pixel_budget(budget)?)
    })
}

/// As moxin_session_add_image, for a picture that is already encoded, by the same model: else
/// INVALID_ARGUMENT.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn moxin_session_add_embedding(
    session: *const moxin_session,
    embedding: *const moxin_embedding,
    error: *mut *mut moxin_error,
) -> moxin_status {
    // SAFETY: NULL or handles of this library that were not freed.
    guard(error, || unsafe {
        hold(session, "session")?
            .session
            .add_embedding(&hold(embedding, "embedding")?.0)
    })
}

/// Ends the answer that is being generated, or the question that waits for one, from any thread,
/// within a layer: its step, or its stream's last event, is FINISHED with
/// MOXIN_FINISH_REASON_CANCELLED, and the turn is taken back. A moxin_session_prefill that is under
/// way fails with CANCELLED. Where there is none of these it does nothing: what is added afterwards
/// is not touched. NULL is fine. It only stores a flag, so that a signal handler may call it.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn moxin_session_cancel(session: *const moxin_session) {
    // SAFETY: NULL or a handle of this library that was not freed.
    if let Some(session) = unsafe { session.as_ref() } {
        session.session.cancel();
    }
}

/// Has answers from the next on generated with other parameters: all of them are replaced. What was
/// computed stays. params: NULL stands for the defaults.
///
/// Fails with INVALID_ARGUMENT, naming the parameter; with OUT_OF_MEMORY where a conversation of
/// max_context positions would not fit; with INVALID_STATE while an answer is being generated or
/// where the model was unloaded, with BUSY.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn moxin_session_set_params(
    session: *const moxin_session,
    params: *const moxin_session_params,
    error: *mut *mut moxin_error,
) -> moxin_status {
    // SAFETY: NULL or a handle of this library that was not freed, and the caller's initialized
    // struct.
    guard(error, || unsafe {
        hold(session, "session")?
            .session
            .set_options(options(params)?)
    })
}

/// Forgets all but the first messages of the conversation; its picture stays. To have the last
/// question answered again, keep one message fewer than there are (moxin_stats.message_count) and
/// take steps; to put it differently, keep two fewer. What of the prompt was read and still holds
/// is not read again.
///
/// Fails with INVALID_ARGUMENT where there are fewer messages, with INVALID_STATE while an answer
/// is being generated, with BUSY.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn moxin_session_rewind(
    session: *const moxin_session,
    messages_to_keep: usize,
    error: *mut *mut moxin_error,
) -> moxin_status {
    // SAFETY: NULL or a handle of this library that was not freed.
    guard(error, || unsafe {
        hold(session, "session")?.session.rewind(messages_to_keep)
    })
}

/// Forgets the conversation, its picture, an answer under way, and a cancellation that is pending;
/// the parameters stay. Fails with BUSY.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn moxin_session_reset(
    session: *const moxin_session,
    error: *mut *mut moxin_error,
) -> moxin_status {
    // SAFETY: NULL or a handle of this library that was not freed.
    guard(error, || unsafe {
        hold(session, "session")?.session.reset()
    })
}

/// Frees a session. An answer that is being generated is cancelled; where it is streamed, the call
/// waits until the last event was told and the stream's user data destroyed. Inside a callback of
/// the library it does not wait: that is done when the callback has returned. NULL is fine.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn moxin_session_free(session: *mut moxin_session) {
    // SAFETY: NULL or a handle of this library, which the caller does not use again.
    unsafe { free(session, |session| session.session.close()) };
}

/// # Safety
/// As for [`read_params`]; `stop` has `stop_count` texts that end with NUL.
pub(super) unsafe fn options(params: *const moxin_session_params) -> Result<GenerationOptions> {
    // SAFETY: as promised by the caller.
    let params = unsafe { read_params(params, "params")? };
    if params.stop_count > MAX_STOP_STRINGS {
        let expected = format!("0 to {MAX_STOP_STRINGS} is expected");
        return Err(Error::InvalidArgument(format!(
            "params.stop_count is {}; {expected}",
            params.stop_count
        )));
    }
    let mut stop = Vec::new();
    for i in 0..params.stop_count {
        if params.stop.is_null() {
            return Err(Error::NullArgument("params.stop"));
        }
        // SAFETY: the caller's array of that many texts.
        stop.push(
            unsafe {
                text(
                    params.stop.add(i).read(),
                    super::MOXIN_STRLEN,
                    "params.stop",
                )?
            }
            .to_owned(),
        );
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
        top_logprobs: params.logprobs as usize,
    })
}
