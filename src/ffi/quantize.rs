//! Quantization: which modules, and how.

use std::{ffi::c_char, ptr};

use super::{
    MOXIN_STRLEN, Versioned, guard, init_params, moxin_error, moxin_model, moxin_op, moxin_status,
    op::with_op, read_params, retain, text,
};
use crate::{
    Error, Result,
    runtime::{Mode, Quantization, QuantizeOptions},
};

/// How a group encodes its values: one of MOXIN_QUANT_MODE_*.
pub type moxin_quant_mode = u32;
/// An integer of 2, 3, 4, 5, 6 or 8 bits, times a scale, plus a bias. 32, 64 or 128 neighbors share
/// scale and bias.
pub const MOXIN_QUANT_MODE_AFFINE: moxin_quant_mode = 0;
/// 4-bit floats; 32 share a power of two.
pub const MOXIN_QUANT_MODE_MXFP4: moxin_quant_mode = 1;
/// 8-bit floats; 32 share a power of two.
pub const MOXIN_QUANT_MODE_MXFP8: moxin_quant_mode = 2;
/// 4-bit floats; 16 share an 8-bit scale.
pub const MOXIN_QUANT_MODE_NVFP4: moxin_quant_mode = 3;

/// The scheme of some modules.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct moxin_module_quant {
    /// The path of a module in the checkpoint, such as "language_model.lm_head", or a prefix of
    /// several that ends before a dot, such as "language_model.model.layers.0"; NUL-terminated
    /// UTF-8.
    pub path: *const c_char,
    /// 2, 3, 4, 5, 6 or 8. 0: the modules are not quantized.
    pub bits: u32,
    /// 32, 64 or 128.
    pub group_size: u32,
    /// A mode other than MOXIN_QUANT_MODE_AFFINE has fixed bits and group size; bits must still not
    /// be 0.
    pub mode: moxin_quant_mode,
    /// Must be 0.
    pub reserved: u32,
}

/// Which modules are quantized, and how. The defaults are those of mlx-community: the language
/// model with its embedding and output head, with 4 bits and a group size of 64.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct moxin_quant_params {
    /// sizeof(moxin_quant_params)
    pub struct_size: usize,
    /// 2, 3, 4, 5, 6 or 8. Default: 4.
    pub bits: u32,
    /// The number of neighbors in a row that share a scale and a bias: 32, 64 or 128. Default: 64.
    pub group_size: u32,
    /// If not 0, the token embedding is quantized. Default: 1.
    pub embedding: u32,
    /// If not 0, the output head is quantized. Default: 1.
    pub head: u32,
    /// If not 0, vision encoders and projector are quantized, if the group size divides their
    /// widths. Default: 0.
    pub vision: u32,
    /// The quantization mode. Default: MOXIN_QUANT_MODE_AFFINE. Other modes have fixed bits and
    /// group size, and ignore the fields above.
    pub mode: moxin_quant_mode,
    /// Exceptions. If several match a module, the one with the longest path applies. May be NULL if
    /// module_count is 0.
    pub modules: *const moxin_module_quant,
    /// The number of entries in modules.
    pub module_count: usize,
}

// SAFETY: repr(C), starts with its size, otherwise numbers and pointers that are checked before
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

/// Sets all parameters to their defaults. struct_size is sizeof(moxin_quant_params); nothing beyond
/// it is written.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn moxin_quant_params_init(
    params: *mut moxin_quant_params,
    struct_size: usize,
) {
    // SAFETY: NULL, or the caller's struct of that size.
    unsafe { init_params(params, struct_size) };
}

/// Quantizes a model in memory, one matrix at a time, so that the peak is the model plus one
/// matrix. Matrices that are already quantized stay as they are. Sessions continue, and keep what
/// they have computed.
///
/// params, op and error may be NULL. Progress is reported with stage MOXIN_STAGE_QUANTIZE.
///
/// Errors: INVALID_ARGUMENT if MLX does not have the scheme; INVALID_STATE if nothing is left to
/// quantize or the model was unloaded; CANCELLED, TIMEOUT, OUT_OF_MEMORY, SUSPENDED, BACKEND. On
/// error the model stays as it was: replaced matrices are read again from the folder or, if the
/// folder has changed, were kept in memory.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn moxin_model_quantize(
    model: *const moxin_model,
    params: *const moxin_quant_params,
    op: *const moxin_op,
    error: *mut *mut moxin_error,
) -> moxin_status {
    // SAFETY: NULL, or a handle of this library that was not freed, and the caller's initialized
    // structs, whose pointers are valid during the call.
    guard(error, || unsafe {
        let (model, options) = (retain(model, "model")?, quantize_options(params)?);
        with_op(op, |op| model.model.quantize(options, op))
    })
}

/// # Safety
/// As for [`read_params`]; `modules` has `module_count` entries whose paths end with NUL.
unsafe fn quantize_options(params: *const moxin_quant_params) -> Result<QuantizeOptions> {
    // SAFETY: the caller upholds this function's contract.
    let params = unsafe { read_params(params, "params")? };
    if params.module_count > 4096 {
        return Err(Error::InvalidArgument(format!(
            "params.module_count is {}; expected 0 to 4096",
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
                "params.modules[{i}].reserved is {}; expected 0",
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

/// Converts a scheme from C. Whether MLX has such an affine scheme is checked later.
pub(super) fn scheme(mode: moxin_quant_mode, bits: u32, group_size: u32) -> Result<Quantization> {
    let mode = *Mode::ALL.get(mode as usize).ok_or_else(|| {
        Error::InvalidArgument(format!(
            "the quantization mode is {mode}; expected 0 to {MOXIN_QUANT_MODE_NVFP4}"
        ))
    })?;
    Ok(mode
        .scheme()
        .unwrap_or(Quantization::affine(group_size as usize, bits as usize)))
}
