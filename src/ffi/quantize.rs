//! What of a model is quantized, and how.

use std::{ffi::c_char, ptr};

use super::{
    MOXIN_STRLEN, Versioned, guard, hold, init_params, moxin_error, moxin_model, moxin_op,
    moxin_status, op::with_op, read_params, text,
};
use crate::{
    Error, Result,
    runtime::{Mode, Quantization, QuantizeOptions},
};

/// How quantized numbers are told: one of MOXIN_QUANT_MODE_*.
pub type moxin_quant_mode = u32;
/// A whole number of 2, 3, 4, 5, 6 or 8 bits, times a scale, plus a bias; 32, 64 or 128 neighbours
/// share scale and bias.
pub const MOXIN_QUANT_MODE_AFFINE: moxin_quant_mode = 0;
/// Floats of 4 bits; 32 share a power of two.
pub const MOXIN_QUANT_MODE_MXFP4: moxin_quant_mode = 1;
/// Floats of 8 bits; 32 share a power of two.
pub const MOXIN_QUANT_MODE_MXFP8: moxin_quant_mode = 2;
/// Floats of 4 bits; 16 share one of 8 bits.
pub const MOXIN_QUANT_MODE_NVFP4: moxin_quant_mode = 3;

/// The scheme of some modules.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct moxin_module_quant {
    /// The path of a module in the checkpoint, such as "language_model.lm_head", or the beginning
    /// of several up to a dot, such as "language_model.model.layers.0"; UTF-8, NUL-terminated.
    pub path: *const c_char,
    /// 2, 3, 4, 5, 6 or 8. 0: it is not quantized.
    pub bits: u32,
    /// 32, 64 or 128.
    pub group_size: u32,
    /// Another mode than MOXIN_QUANT_MODE_AFFINE has its own bits and group size; bits must not be
    /// 0 all the same.
    pub mode: moxin_quant_mode,
    /// Must be 0.
    pub reserved: u32,
}

/// What of a model is quantized, and how. By default, as MLX's community does: the language model
/// with its embedding and output head, in 4 bits and groups of 64.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct moxin_quant_params {
    /// sizeof(moxin_quant_params)
    pub struct_size: usize,
    /// 2, 3, 4, 5, 6 or 8. Default: 4.
    pub bits: u32,
    /// Neighbours in a row that share a scale and a bias: 32, 64 or 128. Default: 64.
    pub group_size: u32,
    /// Not 0: the token embedding too. Default: 1.
    pub embedding: u32,
    /// Not 0: the output head too. Default: 1.
    pub head: u32,
    /// Not 0: vision encoders and projector too, where the group size divides their widths.
    /// Default: 0.
    pub vision: u32,
    /// Another mode than MOXIN_QUANT_MODE_AFFINE, the default, has its own bits and group size:
    /// those above are not looked at then.
    pub mode: moxin_quant_mode,
    /// Exceptions; of several that fit a module the longest path counts. May be NULL where
    /// module_count is 0.
    pub modules: *const moxin_module_quant,
    /// Their number.
    pub module_count: usize,
}

// SAFETY: repr(C), begins with its size, otherwise numbers and pointers that are checked before
// use.
unsafe impl Versioned for moxin_quant_params {
    fn defaults() -> Self {
        let QuantizeOptions {
            quantization,
            embedding,
            head,
            vision,
            ..
        } = QuantizeOptions::default();
        moxin_quant_params {
            struct_size: size_of::<Self>(),
            bits: quantization.bits as u32,
            group_size: quantization.group_size as u32,
            embedding: embedding.into(),
            head: head.into(),
            vision: vision.into(),
            mode: MOXIN_QUANT_MODE_AFFINE,
            modules: ptr::null(),
            module_count: 0,
        }
    }
}

/// Sets up parameters with the defaults; struct_size is sizeof(moxin_quant_params), and nothing is
/// written past it.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn moxin_quant_params_init(
    params: *mut moxin_quant_params,
    struct_size: usize,
) {
    // SAFETY: NULL, or the caller's struct of that size.
    unsafe { init_params(params, struct_size) };
}

/// Quantizes a model in memory, a matrix at a time, so that it never takes more than the model and
/// one matrix. Matrices that are quantized already stay as they are. Conversations go on; what they
/// have computed stays.
///
/// params, op, error: may be NULL. Progress has the stage MOXIN_STAGE_QUANTIZE.
///
/// Fails with INVALID_ARGUMENT for a scheme that MLX does not have, with INVALID_STATE where
/// nothing is left to quantize or the model was unloaded, with CANCELLED, TIMEOUT, OUT_OF_MEMORY,
/// SUSPENDED, BACKEND. A failure leaves the model as it was: what was replaced is read again from
/// its folder, or, where that has changed since, was kept until the end.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn moxin_model_quantize(
    model: *const moxin_model,
    params: *const moxin_quant_params,
    op: *const moxin_op,
    error: *mut *mut moxin_error,
) -> moxin_status {
    // SAFETY: NULL or a handle of this library that was not freed, and the caller's initialized
    // structs with pointers valid during the call.
    guard(error, || unsafe {
        let (model, options) = (hold(model, "model")?, quantize_options(params)?);
        with_op(op, |op| model.model.quantize(options, op))
    })
}

/// # Safety
/// As for [`read_params`]; `modules` has `module_count` entries whose paths end with NUL.
unsafe fn quantize_options(params: *const moxin_quant_params) -> Result<QuantizeOptions> {
    // SAFETY: as promised by the caller.
    let params = unsafe { read_params(params, "params")? };
    if params.module_count > 4096 {
        return Err(Error::InvalidArgument(format!(
            "params.module_count is {}; 0 to 4096 is expected",
            params.module_count
        )));
    }
    let mut modules = Vec::new();
    for i in 0..params.module_count {
        if params.modules.is_null() {
            return Err(Error::NullArgument("params.modules"));
        }
        // SAFETY: the caller's array of that many entries, and their texts.
        let (path, module) = unsafe {
            let module = params.modules.add(i).read();
            (
                text(module.path, MOXIN_STRLEN, "params.modules.path")?,
                module,
            )
        };
        if module.reserved != 0 {
            return Err(Error::InvalidArgument(format!(
                "params.modules[{i}].reserved is {}; 0 is expected",
                module.reserved
            )));
        }
        let scheme = scheme(module.mode, module.bits, module.group_size)?;
        modules.push((path.to_owned(), (module.bits > 0).then_some(scheme)));
    }
    Ok(QuantizeOptions {
        quantization: scheme(params.mode, params.bits, params.group_size)?,
        embedding: params.embedding != 0,
        head: params.head != 0,
        vision: params.vision != 0,
        modules,
    })
}

/// A scheme as C tells it; whether there is such an affine one is checked where it is used.
pub(super) fn scheme(mode: moxin_quant_mode, bits: u32, group_size: u32) -> Result<Quantization> {
    let mode = *Mode::ALL.get(mode as usize).ok_or_else(|| {
        Error::InvalidArgument(format!(
            "the quantization mode is {mode}; 0 to {MOXIN_QUANT_MODE_NVFP4} is expected"
        ))
    })?;
    Ok(mode
        .scheme()
        .unwrap_or(Quantization::affine(group_size as usize, bits as usize)))
}
