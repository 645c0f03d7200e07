//! Models and embeddings.

use std::{ffi::c_char, path::Path, ptr};

use super::{
    MOXIN_BACKEND_AUTO, MOXIN_BACKEND_CPU, MOXIN_BACKEND_CUDA, MOXIN_BACKEND_METAL, MOXIN_STRLEN, Versioned, backend_from, deref, free,
    give, guard, init_params, moxin_backend, moxin_error, moxin_image, moxin_op, moxin_status, op::with_op, out, read_params, text,
    write_result,
};
use crate::{
    Backend,
    runtime::{Embedding, LoadOptions, Model},
};

/// A model in memory.
pub struct moxin_model(pub(super) Model);

/// A picture's tokens in the space of the model that made them. Keeps nothing else alive.
pub struct moxin_embedding(pub(super) Embedding);

/// How a model is loaded.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct moxin_model_params {
    /// sizeof(moxin_model_params)
    pub struct_size: usize,
    /// Where it computes. Default: MOXIN_BACKEND_AUTO.
    pub backend: moxin_backend,
    /// Bytes that the weights may take; a model that needs more is refused before it is read. 0, the default: what the machine has available.
    pub memory_limit: u64,
}

/// What a model is.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct moxin_model_info {
    /// sizeof(moxin_model_info)
    pub struct_size: usize,
    /// Numbers in all tensors of the folder.
    pub parameter_count: u64,
    /// Bytes of these tensors.
    pub weight_bytes: u64,
    /// Positions that the decoder was made for.
    pub context_length: u32,
    /// Rows of the token embedding.
    pub vocab_size: u32,
    /// Edge of the square that a picture is brought to, in pixels.
    pub image_size: u32,
    /// Positions that a picture takes.
    pub tokens_per_image: u32,
    /// Where the model computes; never MOXIN_BACKEND_AUTO.
    pub backend: moxin_backend,
}

/// The size of an embedding.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct moxin_embedding_info {
    /// sizeof(moxin_embedding_info)
    pub struct_size: usize,
    /// Positions it takes in a prompt.
    pub token_count: u32,
    /// Numbers a token.
    pub hidden_size: u32,
}

// SAFETY: repr(C), begins with its size, otherwise integers.
unsafe impl Versioned for moxin_model_params {
    fn defaults() -> Self {
        moxin_model_params { struct_size: size_of::<Self>(), backend: MOXIN_BACKEND_AUTO, memory_limit: 0 }
    }
}

// SAFETY: repr(C), begins with its size, otherwise integers.
unsafe impl Versioned for moxin_model_info {
    fn defaults() -> Self {
        moxin_model_info {
            struct_size: size_of::<Self>(),
            parameter_count: 0,
            weight_bytes: 0,
            context_length: 0,
            vocab_size: 0,
            image_size: 0,
            tokens_per_image: 0,
            backend: MOXIN_BACKEND_AUTO,
        }
    }
}

// SAFETY: repr(C), begins with its size, otherwise integers.
unsafe impl Versioned for moxin_embedding_info {
    fn defaults() -> Self {
        moxin_embedding_info { struct_size: size_of::<Self>(), token_count: 0, hidden_size: 0 }
    }
}

/// Sets up parameters with the defaults; struct_size is sizeof(moxin_model_params), and nothing is written past it.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn moxin_model_params_init(params: *mut moxin_model_params, struct_size: usize) {
    // SAFETY: NULL, or the caller's struct of that size.
    unsafe { init_params(params, struct_size) };
}

/// Loads a model from a Hugging Face folder (config.json, the weights, tokenizer.json, preprocessor_config.json).
///
/// path: the folder, UTF-8, NUL-terminated. params, op, error: may be NULL. *out receives a model that the caller frees with
/// moxin_model_free. Progress has the stage MOXIN_STAGE_LOAD.
///
/// Fails with NOT_FOUND, CORRUPT_MODEL, UNSUPPORTED_MODEL or IO, naming the file and the field or tensor; with OUT_OF_MEMORY before anything
/// is read; with BACKEND_UNAVAILABLE, CANCELLED, TIMEOUT.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn moxin_model_load(
    path: *const c_char,
    params: *const moxin_model_params,
    op: *const moxin_op,
    out_model: *mut *mut moxin_model,
    error: *mut *mut moxin_error,
) -> moxin_status {
    guard(error, || {
        let place = out(out_model, "out_model")?;
        // SAFETY: the caller's text, NUL-terminated, and its initialized structs.
        let (path, params) = unsafe { (text(path, MOXIN_STRLEN, "path")?, read_params(params, "params")?) };
        let limit = (params.memory_limit > 0).then_some(params.memory_limit);
        let options = LoadOptions { backend: backend_from(params.backend)?, memory_limit: limit };
        // SAFETY: NULL or the caller's initialized struct, whose pointers are valid during this call.
        let model = unsafe { with_op(op, |op| Model::load(Path::new(path), options, op))? };
        // SAFETY: checked by `out`.
        unsafe { give(place, moxin_model(model)) };
        Ok(())
    })
}

/// What a model is. out_info->struct_size must be set.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn moxin_model_info_get(
    model: *const moxin_model,
    out_info: *mut moxin_model_info,
    error: *mut *mut moxin_error,
) -> moxin_status {
    guard(error, || {
        let place = out(out_info, "out_info")?;
        // SAFETY: NULL or a handle of this library that was not freed.
        let info = unsafe { deref(model, "model")? }.0.info();
        let backend = match info.backend {
            Backend::Auto => MOXIN_BACKEND_AUTO,
            Backend::Cpu => MOXIN_BACKEND_CPU,
            Backend::Metal => MOXIN_BACKEND_METAL,
            Backend::Cuda => MOXIN_BACKEND_CUDA,
        };
        let info = moxin_model_info {
            parameter_count: info.parameters,
            weight_bytes: info.weight_bytes,
            context_length: info.context_length as u32,
            vocab_size: info.vocabulary as u32,
            image_size: info.image_size as u32,
            tokens_per_image: info.image_tokens as u32,
            backend,
            ..moxin_model_info::defaults()
        };
        // SAFETY: checked by `out`, and the caller's struct with its size.
        unsafe { write_result(place, info, "out_info") }
    })
}

/// Frees a model. Its memory goes with the last of its sessions. NULL is fine.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn moxin_model_free(model: *mut moxin_model) {
    // SAFETY: NULL or a handle of this library, which the caller does not use again.
    unsafe { free(model) };
}

/// Runs the model's vision encoders on a picture. The embedding can stand for the picture in any session of this model.
///
/// op, error: may be NULL. *out receives an embedding that the caller frees with moxin_embedding_free. Progress has the stage
/// MOXIN_STAGE_ENCODE.
///
/// Fails with CANCELLED, TIMEOUT, BACKEND.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn moxin_encode_image(
    model: *const moxin_model,
    image: *const moxin_image,
    op: *const moxin_op,
    out_embedding: *mut *mut moxin_embedding,
    error: *mut *mut moxin_error,
) -> moxin_status {
    guard(error, || {
        let place = out(out_embedding, "out_embedding")?;
        // SAFETY: NULL or handles of this library that were not freed; the op's pointers are valid during this call.
        unsafe {
            let (model, image) = (deref(model, "model")?, deref(image, "image")?);
            let embedding = with_op(op, |op| model.0.encode_image(&image.0, op))?;
            give(place, moxin_embedding(embedding));
        }
        Ok(())
    })
}

/// The size of an embedding. out_info->struct_size must be set.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn moxin_embedding_info_get(
    embedding: *const moxin_embedding,
    out_info: *mut moxin_embedding_info,
    error: *mut *mut moxin_error,
) -> moxin_status {
    guard(error, || {
        let place = out(out_info, "out_info")?;
        // SAFETY: NULL or a handle of this library that was not freed.
        let embedding = &unsafe { deref(embedding, "embedding")? }.0;
        let info = moxin_embedding_info {
            token_count: embedding.tokens() as u32,
            hidden_size: embedding.width() as u32,
            ..moxin_embedding_info::defaults()
        };
        // SAFETY: checked by `out`, and the caller's struct with its size.
        unsafe { write_result(place, info, "out_info") }
    })
}

/// Copies the numbers of an embedding, token after token. values has room for capacity floats; token_count * hidden_size are needed.
///
/// Fails with INVALID_ARGUMENT, naming the number needed, where the room is too small.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn moxin_embedding_copy(
    embedding: *const moxin_embedding,
    values: *mut f32,
    capacity: usize,
    error: *mut *mut moxin_error,
) -> moxin_status {
    guard(error, || {
        let place = out(values, "values")?;
        // SAFETY: NULL or a handle of this library that was not freed.
        let numbers = unsafe { deref(embedding, "embedding")? }.0.to_vec()?;
        if numbers.len() > capacity {
            return Err(crate::Error::InvalidArgument(format!("capacity is {capacity}; the embedding has {} numbers", numbers.len())));
        }
        // SAFETY: the caller's room for at least that many floats.
        unsafe { ptr::copy_nonoverlapping(numbers.as_ptr(), place, numbers.len()) };
        Ok(())
    })
}

/// Frees an embedding. NULL is fine.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn moxin_embedding_free(embedding: *mut moxin_embedding) {
    // SAFETY: NULL or a handle of this library, which the caller does not use again.
    unsafe { free(embedding) };
}
