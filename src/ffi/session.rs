//! Conversations.

use std::{ffi::c_char, ptr, sync::Mutex};

use super::{
    Versioned, free,
    generate::LastEvent,
    guard,
    image::{moxin_pixel_budget, pixel_budget},
    init_params, into_c, moxin_embedding, moxin_error, moxin_image, moxin_model, moxin_status,
    moxin_video, out, read_params, retain, text,
};
use crate::{
    Error, Result,
    runtime::{GenerationOptions, MAX_STOP_STRINGS, Role, SamplingParams, Session},
};

/// A conversation with a model.
pub struct moxin_session {
    pub(super) session: Session,
    /// The data that C code may still read of the latest event.
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

/// The author of a text: one of MOXIN_ROLE_*.
pub type moxin_role = u32;
/// Instructions before the conversation.
pub const MOXIN_ROLE_SYSTEM: moxin_role = 0;
/// A question.
pub const MOXIN_ROLE_USER: moxin_role = 1;
/// An answer.
pub const MOXIN_ROLE_ASSISTANT: moxin_role = 2;

/// Parameters of a session.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct moxin_session_params {
    /// sizeof(moxin_session_params)
    pub struct_size: usize,
    /// 0, the default: always the most likely token. Higher values: more variety.
    pub temperature: f32,
    /// Samples from this many of the most likely tokens. 0, the default: from all.
    pub top_k: u32,
    /// Samples from the most likely tokens that together have this probability. Default: 1, from
    /// all.
    pub top_p: f32,
    /// Samples from tokens at least this fraction as likely as the most likely one. Default: 0,
    /// from all.
    pub min_p: f32,
    /// A value above 1 makes tokens that already occurred less likely. Default: 1.
    pub repetition_penalty: f32,
    /// The number of latest tokens that repetition_penalty looks at. 0, the default: the whole
    /// conversation.
    pub repetition_window: u32,
    /// The same seed samples the same tokens. Default: 0.
    pub seed: u64,
    /// The maximum number of tokens in an answer. Default: 512.
    pub max_tokens: u32,
    /// The maximum number of positions in the whole conversation, including image tokens. 0, the
    /// default: 4096, more if a single picture needs more, less if the model was made for less.
    pub max_context: u32,
    /// The number of prompt positions read per step. Default: 256.
    pub prefill_chunk: u32,
    /// The number of most likely tokens that each TEXT event lists, 0 to 20. Default: 0.
    pub logprobs: u32,
    /// Texts that end an answer and are not part of it: NUL-terminated UTF-8 of 1 to 1024 bytes
    /// each. May be NULL if stop_count is 0.
    pub stop: *const *const c_char,
    /// The number of stop texts, 0 to 64.
    pub stop_count: usize,
    /// Is subtracted from a token's logit once for each time that the answer already contains it: -2
    /// to 2. Default: 0.
    pub frequency_penalty: f32,
    /// Is subtracted from the logits of all tokens that the answer already contains: -2 to 2.
    /// Default: 0.
    pub presence_penalty: f32,
    /// Separates conversations in the prefix cache: an ended one is only continued by those with the
    /// same number. Give each user of a server another one, so that times tell nobody what others
    /// asked. Default: 0.
    pub prefix_scope: u64,
    /// The budget of each picture that is added without one of its own. NULL, the default: that of
    /// the model folder. It is read during the call.
    pub image_budget: *const moxin_pixel_budget,
}

// SAFETY: repr(C), starts with its size, otherwise numbers and pointers that are checked before
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
            frequency_penalty: sampling.frequency_penalty,
            presence_penalty: sampling.presence_penalty,
            prefix_scope: options.prefix_scope,
            image_budget: ptr::null(),
        }
    }
}

/// Sets all parameters to their defaults. struct_size is sizeof(moxin_session_params); nothing
/// beyond it is written.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn moxin_session_params_init(
    params: *mut moxin_session_params,
    struct_size: usize,
) {
    // SAFETY: NULL, or the caller's struct of that size.
    unsafe { init_params(params, struct_size) };
}

/// Starts a conversation. params and error may be NULL. *out_session receives a session, which the
/// caller frees with moxin_session_free. The session keeps the parts of the model that it needs.
///
/// Errors: INVALID_ARGUMENT, naming the parameter; OUT_OF_MEMORY if a conversation of max_context
/// positions would not fit; INVALID_STATE if the model was unloaded.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn moxin_session_new(
    model: *const moxin_model,
    params: *const moxin_session_params,
    out_session: *mut *mut moxin_session,
    error: *mut *mut moxin_error,
) -> moxin_status {
    guard(error, || {
        let place = out(out_session, "out_session")?;
        // SAFETY: NULL, or a handle of this library that was not freed, and the caller's
        // initialized struct; the output pointer was checked.
        unsafe {
            let session = retain(model, "model")?.model.session(options(params)?)?;
            into_c(place, moxin_session::new(session));
        }
        Ok(())
    })
}

/// Copies a session with its conversation so far, for example to ask two questions about one
/// picture without reading it twice. *out_session receives a session, which the caller frees with
/// moxin_session_free.
///
/// Errors: INVALID_STATE while an answer is being generated, or if the model was unloaded; BUSY;
/// OUT_OF_MEMORY if there is no room for a copy of keys and values.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn moxin_session_fork(
    session: *const moxin_session,
    out_session: *mut *mut moxin_session,
    error: *mut *mut moxin_error,
) -> moxin_status {
    guard(error, || {
        let place = out(out_session, "out_session")?;
        // SAFETY: NULL, or a handle of this library that was not freed; the output pointer was
        // checked.
        unsafe {
            into_c(
                place,
                moxin_session::new(retain(session, "session")?.session.fork()?),
            )
        };
        Ok(())
    })
}

/// Adds text to the conversation: a question, which the next steps answer, or an answer that
/// already exists. len is the number of bytes, or MOXIN_STRLEN.
///
/// The text is never interpreted: if it spells a control token such as `</s>`, the model reads the
/// characters, not the token. See moxin_session_add_prompt for the opposite.
///
/// Consecutive texts and pictures of one role are parts of one message.
///
/// Errors: INVALID_STATE if role is SYSTEM and the model does not support it, if a question follows
/// an answer and the model does not support that (see moxin_model_info), or while an answer is
/// being generated; CONTEXT_FULL if the length in bytes already shows that the conversation cannot
/// fit; BUSY.
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
                    "role is {other}; expected 0 to {MOXIN_ROLE_ASSISTANT}"
                )));
            }
        };
        // SAFETY: NULL, or a handle of this library that was not freed, and the caller's text.
        unsafe {
            retain(session, "session")?
                .session
                .add_text(role, text(data, len, "data")?)
        }
    })
}

/// Adds prompt text unchanged, for prompts in a format of your own. Control tokens spelled in the
/// text are control tokens. Nothing is added around it, except the `<s>` at the start of the whole
/// prompt if it is missing. Do not use it for text from users; moxin_session_add_text never turns
/// text into control tokens. len is the number of bytes, or MOXIN_STRLEN.
///
/// The text is a message, which the next steps answer. Texts added one after the other are joined
/// without a separator. The answer is not trimmed at the start, appears unchanged in later prompts,
/// and is closed by `</s>` like every answer. Such messages can be mixed with ordinary ones;
/// moxin_session_rewind and moxin_session_fork treat them alike. A picture is placed after the
/// first token, as always.
///
/// Errors: INVALID_STATE while an answer is being generated, or if a question added with
/// moxin_session_add_text waits for its answer; CONTEXT_FULL as for moxin_session_add_text; BUSY.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn moxin_session_add_prompt(
    session: *const moxin_session,
    data: *const c_char,
    len: usize,
    error: *mut *mut moxin_error,
) -> moxin_status {
    // SAFETY: NULL, or a handle of this library that was not freed, and the caller's text.
    guard(error, || unsafe {
        retain(session, "session")?
            .session
            .add_prompt(text(data, len, "data")?)
    })
}

/// Adds a picture at the end of the user's message. It is encoded when the model reads it. The
/// image may be freed immediately.
///
/// If the answer is cancelled or fails, its pictures are removed together with the question. A
/// picture that is added again is not encoded again, because its features are in the model's cache.
///
/// budget takes the place of the session's; it may be NULL. error may be NULL.
///
/// Errors: INVALID_STATE for more pictures than moxin_model_info allows, after an answer if the
/// model does not support that, or while an answer is being generated; INVALID_ARGUMENT if the
/// model cannot take the picture or the budget; BUSY.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn moxin_session_add_image(
    session: *const moxin_session,
    image: *const moxin_image,
    budget: *const moxin_pixel_budget,
    error: *mut *mut moxin_error,
) -> moxin_status {
    // SAFETY: NULL, or handles of this library that were not freed, and the caller's initialized
    // struct.
    guard(error, || unsafe {
        let (session, image) = (retain(session, "session")?, retain(image, "image")?);
        let picture = image.0.clone();
        match budget.is_null() {
            true => session.session.add_image(picture),
            false => session
                .session
                .add_image_within(picture, pixel_budget(budget, "budget")?),
        }
    })
}

/// Adds a video at the end of the user's message, as moxin_session_add_image does a picture. The
/// model reads all of its frames. The video may be freed immediately.
///
/// budget takes the place of the session's; it may be NULL. Its pixels are those of each frame, and
/// its max_tokens those of the whole video. error may be NULL.
///
/// Errors: those of moxin_session_add_image; INVALID_ARGUMENT if the model reads no videos (see
/// moxin_model_info.takes_videos).
#[unsafe(no_mangle)]
pub unsafe extern "C" fn moxin_session_add_video(
    session: *const moxin_session,
    video: *const moxin_video,
    budget: *const moxin_pixel_budget,
    error: *mut *mut moxin_error,
) -> moxin_status {
    // SAFETY: NULL, or handles of this library that were not freed, and the caller's initialized
    // struct.
    guard(error, || unsafe {
        let (session, video) = (retain(session, "session")?, retain(video, "video")?);
        let video = video.0.clone();
        match budget.is_null() {
            true => session.session.add_video(video),
            false => session
                .session
                .add_video_within(video, pixel_budget(budget, "budget")?),
        }
    })
}

/// Adds a picture or a video that was already encoded, as moxin_session_add_image does.
///
/// Errors: those of moxin_session_add_image; INVALID_ARGUMENT if another model encoded it.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn moxin_session_add_embedding(
    session: *const moxin_session,
    embedding: *const moxin_embedding,
    error: *mut *mut moxin_error,
) -> moxin_status {
    // SAFETY: NULL, or handles of this library that were not freed.
    guard(error, || unsafe {
        retain(session, "session")?
            .session
            .add_embedding(&retain(embedding, "embedding")?.0)
    })
}

/// Cancels the answer that is being generated, or the question that waits for one, from any thread.
/// It takes effect within one layer: the step, or the stream's last event, is FINISHED with
/// MOXIN_FINISH_REASON_CANCELLED, and the turn is rolled back. A running moxin_session_prefill
/// fails with CANCELLED. Otherwise the call does nothing, and text added later is not affected.
/// NULL is ignored. The call only sets a flag, so it is safe in a signal handler.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn moxin_session_cancel(session: *const moxin_session) {
    // SAFETY: NULL, or a handle of this library that was not freed.
    if let Some(session) = unsafe { session.as_ref() } {
        session.session.cancel();
    }
}

/// Replaces all parameters. Applies from the next answer; what was computed is kept. params: NULL
/// stands for the defaults.
///
/// Errors: INVALID_ARGUMENT, naming the parameter; OUT_OF_MEMORY if a conversation of max_context
/// positions would not fit; INVALID_STATE while an answer is being generated, or if the model was
/// unloaded; BUSY.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn moxin_session_set_params(
    session: *const moxin_session,
    params: *const moxin_session_params,
    error: *mut *mut moxin_error,
) -> moxin_status {
    // SAFETY: NULL, or a handle of this library that was not freed, and the caller's initialized
    // struct.
    guard(error, || unsafe {
        retain(session, "session")?
            .session
            .set_options(options(params)?)
    })
}

/// Gets the number of positions of the prompt that the next step would read, including image
/// tokens. Nothing is computed.
///
/// Errors: INVALID_STATE if there is nothing to read; CONTEXT_FULL, and INVALID_STATE if the model's
/// template refuses the conversation, after which the question is rolled back; BUSY.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn moxin_session_prompt_tokens(
    session: *const moxin_session,
    out_tokens: *mut u32,
    error: *mut *mut moxin_error,
) -> moxin_status {
    guard(error, || {
        let place = out(out_tokens, "out_tokens")?;
        // SAFETY: NULL, or a handle of this library that was not freed; the output pointer was
        // checked.
        unsafe {
            let tokens = retain(session, "session")?.session.prompt_tokens()?;
            place.write(tokens as u32);
        }
        Ok(())
    })
}

/// Removes all but the first messages of the conversation; its pictures stay. To generate the last
/// answer again, keep one message fewer than there are (moxin_stats.message_count) and take steps.
/// To rephrase the question, keep two fewer. The part of the prompt that still matches is not read
/// again.
///
/// Errors: INVALID_ARGUMENT if there are fewer messages; INVALID_STATE while an answer is being
/// generated; BUSY.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn moxin_session_rewind(
    session: *const moxin_session,
    messages_to_keep: usize,
    error: *mut *mut moxin_error,
) -> moxin_status {
    // SAFETY: NULL, or a handle of this library that was not freed.
    guard(error, || unsafe {
        retain(session, "session")?.session.rewind(messages_to_keep)
    })
}

/// Removes the whole conversation, its pictures, an answer in progress and a pending cancellation.
/// The parameters stay.
///
/// Errors: BUSY.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn moxin_session_reset(
    session: *const moxin_session,
    error: *mut *mut moxin_error,
) -> moxin_status {
    // SAFETY: NULL, or a handle of this library that was not freed.
    guard(error, || unsafe {
        retain(session, "session")?.session.reset()
    })
}

/// Frees a session. An answer in progress is cancelled; if it is streamed, the call waits until the
/// last event was delivered and the stream's user data destroyed. Inside a callback of the library
/// it does not wait; the session is then freed when the callback returns. NULL is ignored.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn moxin_session_free(session: *mut moxin_session) {
    // SAFETY: NULL, or a handle of this library, which the caller does not use again.
    unsafe { free(session, |session| session.session.close()) };
}

/// # Safety
/// As for [`read_params`]; `stop` has `stop_count` texts that end with NUL.
pub(super) unsafe fn options(params: *const moxin_session_params) -> Result<GenerationOptions> {
    // SAFETY: the caller upholds this function's contract.
    let params = unsafe { read_params(params, "params")? };
    if params.stop_count > MAX_STOP_STRINGS {
        let expected = format!("expected 0 to {MAX_STOP_STRINGS}");
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
    // SAFETY: NULL, or the caller's initialized struct.
    let image_budget = unsafe { pixel_budget(params.image_budget, "params.image_budget")? };
    Ok(GenerationOptions {
        sampling: SamplingParams {
            temperature: params.temperature,
            top_k: params.top_k,
            top_p: params.top_p,
            min_p: params.min_p,
            repetition_penalty: params.repetition_penalty,
            repetition_window: params.repetition_window as usize,
            frequency_penalty: params.frequency_penalty,
            presence_penalty: params.presence_penalty,
            seed: params.seed,
        },
        max_tokens: params.max_tokens as usize,
        max_context: (params.max_context > 0).then_some(params.max_context as usize),
        image_budget,
        prefill_chunk: params.prefill_chunk as usize,
        stop,
        prefix_scope: params.prefix_scope,
        top_logprobs: params.logprobs as usize,
    })
}
