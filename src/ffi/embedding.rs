//! Pictures that a model has encoded.

use std::ptr;

use super::{
    Versioned, free, give, guard, hold,
    image::{moxin_pixel_budget, pixel_budget},
    moxin_error, moxin_image, moxin_model, moxin_op, moxin_status,
    op::with_op,
    out, write_result,
};
use crate::{Error, runtime::Embedding};

/// A picture's features in the space of the model that made them. Keeps nothing else alive.
pub struct moxin_embedding(pub(super) Embedding);

/// The size of an embedding.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct moxin_embedding_info {
    /// sizeof(moxin_embedding_info)
    pub struct_size: usize,
    /// The fingerprint of the model that made it: see moxin_model_info.
    pub model_fingerprint: u64,
    /// Tells pictures apart.
    pub image_hash: u64,
    /// Positions it takes in a prompt.
    pub token_count: u32,
    /// Numbers a token.
    pub hidden_size: u32,
}

// SAFETY: repr(C), begins with its size, otherwise integers.
unsafe impl Versioned for moxin_embedding_info {}

/// Runs the model's vision encoders on a picture, unless the same picture was encoded before and
/// its tokens are still in the model's cache. The embedding can stand for the picture in any
/// session of this model, also when it was loaded anew.
///
/// budget, op, error: may be NULL. *out_embedding receives an embedding that the caller frees with
/// moxin_embedding_free. Progress has the stage MOXIN_STAGE_ENCODE.
///
/// Fails with INVALID_ARGUMENT for a picture or a budget that the model cannot take; with
/// CANCELLED, TIMEOUT, OUT_OF_MEMORY, SUSPENDED, BACKEND, and with INVALID_STATE where the model
/// was unloaded.
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
        // SAFETY: NULL or handles of this library that were not freed; the op's pointers are valid
        // during this call.
        unsafe {
            let (model, image, budget) = (
                hold(model, "model")?,
                hold(image, "image")?,
                pixel_budget(budget)?,
            );
            let embedding = with_op(op, |op| {
                model.model.encode_image_within(&image.0, budget, op)
            })?;
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
        let embedding = unsafe { hold(embedding, "embedding")? };
        let info = moxin_embedding_info {
            model_fingerprint: embedding.0.model(),
            image_hash: embedding.0.picture().short(),
            token_count: embedding.0.tokens() as u32,
            hidden_size: embedding.0.width() as u32,
            ..moxin_embedding_info::defaults()
        };
        // SAFETY: checked by `out`, and the caller's struct with its size.
        unsafe { write_result(place, info, "out_info") }
    })
}

/// Copies the numbers of an embedding, token after token. values has room for capacity floats;
/// token_count * hidden_size are needed.
///
/// Fails with INVALID_ARGUMENT, naming the number needed, where the room is too small; with
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
        // SAFETY: NULL or a handle of this library that was not freed.
        let numbers = unsafe { hold(embedding, "embedding")? }.0.to_vec()?;
        if numbers.len() > capacity {
            return Err(Error::InvalidArgument(format!(
                "capacity is {capacity}; the embedding has {} numbers",
                numbers.len()
            )));
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
    unsafe { free(embedding, drop) };
}
