//! Encoded pictures.

use std::ptr;

use super::{
    Versioned, free, guard,
    image::{moxin_pixel_budget, pixel_budget},
    into_c, moxin_error, moxin_image, moxin_model, moxin_op, moxin_status, moxin_video,
    op::with_op,
    out, retain, write_result,
};
use crate::{Error, runtime::Embedding};

/// The features of a picture in the embedding space of the model that encoded it. Does not keep the
/// model alive.
pub struct moxin_embedding(pub(super) Embedding);

/// The size of an embedding.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct moxin_embedding_info {
    /// sizeof(moxin_embedding_info)
    pub struct_size: usize,
    /// The fingerprint of the model that made it; see moxin_model_info.
    pub model_fingerprint: u64,
    /// A hash that identifies the picture.
    pub image_hash: u64,
    /// The number of prompt positions it takes.
    pub token_count: u32,
    /// The number of values per token.
    pub hidden_size: u32,
}

// SAFETY: repr(C), starts with its size, otherwise integers.
unsafe impl Versioned for moxin_embedding_info {}

/// Runs the model's vision encoders on a picture, unless the same picture was encoded before and
/// its features are still in the model's cache. The embedding can take the picture's place in any
/// session of this model, even after the model is loaded again.
///
/// budget, op and error may be NULL. *out_embedding receives an embedding, which the caller frees
/// with moxin_embedding_free. Progress is reported with stage MOXIN_STAGE_ENCODE.
///
/// Errors: INVALID_ARGUMENT if the model cannot take the picture or the budget; INVALID_STATE if
/// the model was unloaded; CANCELLED, TIMEOUT, OUT_OF_MEMORY, SUSPENDED, BACKEND.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn moxin_model_encode_image(
    model: *const moxin_model,
    image: *const moxin_image,
    budget: *const moxin_pixel_budget,
    op: *const moxin_op,
    out_embedding: *mut *mut moxin_embedding,
    error: *mut *mut moxin_error,
) -> moxin_status {
    guard(error, || {
        let place = out(out_embedding, "out_embedding")?;
        // SAFETY: NULL, or handles of this library that were not freed; the pointers in op are
        // valid during this call.
        unsafe {
            let (model, image, budget) = (
                retain(model, "model")?,
                retain(image, "image")?,
                pixel_budget(budget, "budget")?,
            );
            let embedding = with_op(op, |op| {
                model.model.encode_image_within(&image.0, budget, op)
            })?;
            into_c(place, moxin_embedding(embedding));
        }
        Ok(())
    })
}

/// Encodes a video, as moxin_model_encode_image does a picture.
///
/// Errors: those of moxin_model_encode_image; INVALID_ARGUMENT if the model reads no videos.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn moxin_model_encode_video(
    model: *const moxin_model,
    video: *const moxin_video,
    budget: *const moxin_pixel_budget,
    op: *const moxin_op,
    out_embedding: *mut *mut moxin_embedding,
    error: *mut *mut moxin_error,
) -> moxin_status {
    guard(error, || {
        let place = out(out_embedding, "out_embedding")?;
        // SAFETY: NULL, or handles of this library that were not freed; the pointers in op are
        // valid during this call.
        unsafe {
            let (model, video, budget) = (
                retain(model, "model")?,
                retain(video, "video")?,
                pixel_budget(budget, "budget")?,
            );
            let embedding = with_op(op, |op| model.model.encode_video(&video.0, budget, op))?;
            into_c(place, moxin_embedding(embedding));
        }
        Ok(())
    })
}

/// Gets the size of an embedding. out_info->struct_size must be set.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn moxin_embedding_info_get(
    embedding: *const moxin_embedding,
    out_info: *mut moxin_embedding_info,
    error: *mut *mut moxin_error,
) -> moxin_status {
    guard(error, || {
        let place = out(out_info, "out_info")?;
        // SAFETY: NULL, or a handle of this library that was not freed.
        let embedding = unsafe { retain(embedding, "embedding")? };
        let info = moxin_embedding_info {
            model_fingerprint: embedding.0.model(),
            image_hash: embedding.0.picture().short(),
            token_count: embedding.0.tokens() as u32,
            hidden_size: embedding.0.width() as u32,
            ..moxin_embedding_info::defaults()
        };
        // SAFETY: `out` was checked; it is the caller's struct with its size.
        unsafe { write_result(place, info, "out_info") }
    })
}

/// Copies the values of an embedding, token by token. values has room for capacity floats;
/// token_count * hidden_size floats are needed.
///
/// Errors: INVALID_ARGUMENT if capacity is too small (the message names the number needed);
/// SUSPENDED, BACKEND.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn moxin_embedding_copy(
    embedding: *const moxin_embedding,
    values: *mut f32,
    capacity: usize,
    error: *mut *mut moxin_error,
) -> moxin_status {
    guard(error, || {
        let place = out(values, "values")?;
        // SAFETY: NULL, or a handle of this library that was not freed.
        let numbers = unsafe { retain(embedding, "embedding")? }.0.to_vec()?;
        if numbers.len() > capacity {
            return Err(Error::InvalidArgument(format!(
                "capacity is {capacity}; the embedding has {} values",
                numbers.len()
            )));
        }
        // SAFETY: the caller's buffer has room for at least that many floats.
        unsafe { ptr::copy_nonoverlapping(numbers.as_ptr(), place, numbers.len()) };
        Ok(())
    })
}

/// Frees an embedding. NULL is ignored.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn moxin_embedding_free(embedding: *mut moxin_embedding) {
    // SAFETY: NULL, or a handle of this library, which the caller does not use again.
    unsafe { free(embedding, drop) };
}
