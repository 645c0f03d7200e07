//! Models.

use std::{
    collections::BTreeMap,
    ffi::{CString, c_char},
    path::Path,
    ptr,
    sync::Mutex,
};

use super::{
    MOXIN_STRLEN, Versioned, c_string, free, guard,
    image::{moxin_pixel_budget, pixel_budget},
    init_params, into_c,
    library::{MOXIN_BACKEND_AUTO, backend_from, backend_number, moxin_backend},
    moxin_error, moxin_op, moxin_session_params, moxin_status, moxin_str,
    op::with_op,
    out,
    quantize::{MOXIN_QUANT_MODE_AFFINE, moxin_quant_mode, scheme},
    read_params, retain, session, text, view, write_result,
};
use crate::{
    Error, Result,
    runtime::{CpuKernels, Dtype, LoadOptions, Model, ModelInfo, QuantizeOptions},
};

/// A loaded model.
pub struct moxin_model {
    pub(super) model: Model,
    /// The texts that [`moxin_model_metadata`] has returned.
    metadata: Mutex<BTreeMap<String, CString>>,
}

/// The type of activations: one of MOXIN_DTYPE_*.
pub type moxin_dtype = u32;
/// The best type for the backend: bfloat16 on a GPU, float32 on the CPU.
pub const MOXIN_DTYPE_AUTO: moxin_dtype = 0;
/// float16: more precise than bfloat16, with a smaller range.
pub const MOXIN_DTYPE_F16: moxin_dtype = 1;
/// bfloat16, the type that checkpoints are stored in.
pub const MOXIN_DTYPE_BF16: moxin_dtype = 2;
/// float32.
pub const MOXIN_DTYPE_F32: moxin_dtype = 3;

/// The kernels used on the CPU: one of MOXIN_CPU_KERNELS_*. Has no effect on a GPU.
pub type moxin_cpu_kernels = u32;
/// The environment variable `MOXIN_CPU_KERNELS` ("own" or "mlx"). If it is not set: this library's
/// own kernels, or MLX's on Apple systems.
pub const MOXIN_CPU_KERNELS_AUTO: moxin_cpu_kernels = 0;
/// This library's own kernels, if activations are float32.
pub const MOXIN_CPU_KERNELS_OWN: moxin_cpu_kernels = 1;
/// MLX's kernels.
pub const MOXIN_CPU_KERNELS_MLX: moxin_cpu_kernels = 2;

/// Options for loading a model.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct moxin_model_params {
    /// sizeof(moxin_model_params)
    pub struct_size: usize,
    /// The number of bytes that loading may use. A model that needs more is refused before it is
    /// read. 0, the default: the available memory.
    pub memory_limit: u64,
    /// The size in bytes of the cache of encoded pictures. A cached picture is not encoded again. A
    /// picture takes tokens_per_image * hidden_size values: 4 MiB in Moxin-7B with float32.
    /// Default: 64 MiB. 0 disables the cache.
    pub image_cache_bytes: u64,
    /// The device. Default: MOXIN_BACKEND_AUTO.
    pub backend: moxin_backend,
    /// The type of activations. Default: MOXIN_DTYPE_AUTO.
    pub dtype: moxin_dtype,
    /// Quantizes the language model to this many bits while loading, so that the full weights are
    /// never in memory: 2, 3, 4, 5, 6 or
    /// 8. Default: 0, the weights stay as stored.
    pub quant_bits: u32,
    /// The group size: 32, 64 or 128 neighbors share a scale. Default: 64.
    pub quant_group_size: u32,
    /// The quantization mode. Default: MOXIN_QUANT_MODE_AFFINE. Other modes have fixed bits and
    /// group size, and ignore the two fields above.
    pub quant_mode: moxin_quant_mode,
    /// The kernels used on the CPU. Default: MOXIN_CPU_KERNELS_AUTO.
    pub cpu_kernels: moxin_cpu_kernels,
    /// A Jinja chat template to use instead of the one in the folder; NUL-terminated UTF-8, read
    /// only during the call. Default: NULL, the folder's template.
    pub chat_template: *const c_char,
    /// The size in bytes of the cache of ended conversations, by their keys and values
    /// (moxin_memory_estimate.kv_per_token). When a session is freed, its conversation stays there,
    /// and a new session that starts with the same prompt reads only the rest:
    /// moxin_stats.reused_tokens. Conversations are removed when other work needs the memory.
    /// Default: 0, none is kept.
    pub prefix_cache_bytes: u64,
}

/// Properties of a model.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct moxin_model_info {
    /// sizeof(moxin_model_info)
    pub struct_size: usize,
    /// The number of values in all tensors of the folder.
    pub parameter_count: u64,
    /// The size of these tensors in bytes.
    pub weight_bytes: u64,
    /// Identifies the weights that encode pictures: embeddings can be exchanged between models with
    /// the same fingerprint. 0 from moxin_model_inspect.
    pub fingerprint: u64,
    /// The number of positions that the decoder was made for.
    pub context_length: u32,
    /// The number of rows of the token embedding.
    pub vocab_size: u32,
    /// The number of values per token.
    pub hidden_size: u32,
    /// The edge in pixels of the square that pictures are resized to; 0 if the size depends on the
    /// picture, or if there are no pictures.
    pub image_size: u32,
    /// The number of positions per picture; 0 if it depends on the picture (see
    /// moxin_model_image_tokens), or if there are no pictures.
    pub tokens_per_image: u32,
    /// The device that the model runs on, or would run on; never MOXIN_BACKEND_AUTO.
    pub backend: moxin_backend,
    /// The type of activations; never MOXIN_DTYPE_AUTO.
    pub dtype: moxin_dtype,
    /// The bits per value of the scheme that most quantized matrices have; 0 if none is quantized.
    pub quant_bits: u32,
    /// The group size of that scheme; 0 if none is quantized.
    pub quant_group_size: u32,
    /// The mode of that scheme.
    pub quant_mode: moxin_quant_mode,
    /// The architecture as named in config.json, such as "prismatic"; NUL-terminated, truncated if
    /// longer.
    pub model_type: [c_char; 32],
    /// The maximum number of pictures in a conversation; 0: as many as fit into the context, or none
    /// if text_only is not 0.
    pub max_images: u32,
    /// Not 0 if the model supports system text.
    pub takes_system: u32,
    /// Not 0 if a conversation can continue after an answer; 0 if it ends with the answer.
    pub takes_turns: u32,
    /// Not 0 if answers can have boxes and points: see moxin_model_locate.
    pub grounding: u32,
    /// The prompt to use when the user asks nothing, in the words that the model was trained with;
    /// NUL-terminated.
    pub default_prompt: [c_char; 64],
    /// Not 0 if the model reads text only: it takes no pictures.
    pub text_only: u32,
    /// Not 0 if the model reads videos: see moxin_session_add_video.
    pub takes_videos: u32,
}

/// The memory that a model in a folder needs, in bytes.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct moxin_memory_estimate {
    /// sizeof(moxin_memory_estimate)
    pub struct_size: usize,
    /// The loaded weights.
    pub weights: u64,
    /// Keys and values per position of a conversation.
    pub kv_per_token: u64,
    /// Keys and values of a conversation of max_context positions.
    pub kv_total: u64,
    /// The peak while loading.
    pub load_peak: u64,
    /// The temporary memory of encoding a picture, in addition to the weights.
    pub vision_peak: u64,
    /// The temporary memory of a step, in addition to weights, keys and values.
    pub step_peak: u64,
    /// The overall peak: loading the model, encoding a picture, and one conversation of max_context
    /// positions.
    pub total: u64,
    /// The memory available now.
    pub available: u64,
}

// SAFETY: repr(C), starts with its size, otherwise integers and a pointer that may be NULL.
unsafe impl Versioned for moxin_model_params {
    fn defaults() -> Self {
        moxin_model_params {
            struct_size: size_of::<Self>(),
            memory_limit: 0,
            image_cache_bytes: LoadOptions::default().image_cache,
            backend: MOXIN_BACKEND_AUTO,
            dtype: MOXIN_DTYPE_AUTO,
            quant_bits: 0,
            quant_group_size: 64,
            quant_mode: MOXIN_QUANT_MODE_AFFINE,
            cpu_kernels: MOXIN_CPU_KERNELS_AUTO,
            chat_template: ptr::null(),
            prefix_cache_bytes: LoadOptions::default().prefix_cache,
        }
    }
}

// SAFETY: repr(C), starts with its size, otherwise integers.
unsafe impl Versioned for moxin_model_info {}

// SAFETY: repr(C), starts with its size, otherwise integers.
unsafe impl Versioned for moxin_memory_estimate {}

/// Sets all parameters to their defaults. struct_size is sizeof(moxin_model_params); nothing beyond
/// it is written.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn moxin_model_params_init(
    params: *mut moxin_model_params,
    struct_size: usize,
) {
    // SAFETY: NULL, or the caller's struct of that size.
    unsafe { init_params(params, struct_size) };
}

/// Loads a model from a Hugging Face folder (config.json, weights, tokenizer.json, and
/// preprocessor_config.json if it takes pictures).
///
/// path is the folder, NUL-terminated UTF-8. params, op and error may be NULL. *out_model receives
/// a model, which the caller frees with moxin_model_free. Progress is reported with stage
/// MOXIN_STAGE_LOAD.
///
/// Errors: NOT_FOUND, CORRUPT_MODEL, UNSUPPORTED_MODEL and IO, naming the file and the field or
/// tensor; INVALID_ARGUMENT if path is not a folder; OUT_OF_MEMORY before any weight is read;
/// BACKEND_UNAVAILABLE, CANCELLED, TIMEOUT, SUSPENDED.
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
        // SAFETY: the caller's NUL-terminated text and initialized structs, whose pointers are
        // valid during this call; the output pointer was checked.
        unsafe {
            let (path, options) = (text(path, MOXIN_STRLEN, "path")?, load_options(params)?);
            let model = with_op(op, |op| Model::load(Path::new(path), options, op))?;
            into_c(
                place,
                moxin_model {
                    model,
                    metadata: Mutex::default(),
                },
            );
        }
        Ok(())
    })
}

/// Describes the model in a folder without loading it, from config.json and the headers of the
/// weight files. out_info->struct_size must be set.
///
/// path is the folder, NUL-terminated UTF-8.
///
/// Errors: NOT_FOUND, CORRUPT_MODEL, UNSUPPORTED_MODEL, IO; INVALID_ARGUMENT if path is not a
/// folder.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn moxin_model_inspect(
    path: *const c_char,
    out_info: *mut moxin_model_info,
    error: *mut *mut moxin_error,
) -> moxin_status {
    guard(error, || {
        let place = out(out_info, "out_info")?;
        // SAFETY: the caller's NUL-terminated text; the output pointer was checked, and is the
        // caller's struct with its size.
        unsafe {
            let info = Model::inspect(Path::new(text(path, MOXIN_STRLEN, "path")?))?;
            write_result(place, info_for_c(&info), "out_info")
        }
    })
}

/// Estimates the memory that the model in a folder needs when loaded with params and used in one
/// session with session_params. Nothing is loaded: the estimate uses config.json and the headers of
/// the weight files. out_estimate->struct_size must be set.
///
/// path is the folder, NUL-terminated UTF-8. params, session_params and error may be NULL.
///
/// Errors: NOT_FOUND, CORRUPT_MODEL, UNSUPPORTED_MODEL, IO, INVALID_ARGUMENT, BACKEND_UNAVAILABLE.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn moxin_model_estimate(
    path: *const c_char,
    params: *const moxin_model_params,
    session_params: *const moxin_session_params,
    out_estimate: *mut moxin_memory_estimate,
    error: *mut *mut moxin_error,
) -> moxin_status {
    guard(error, || {
        let place = out(out_estimate, "out_estimate")?;
        // SAFETY: the caller's NUL-terminated text and initialized structs.
        let estimate = unsafe {
            let path = Path::new(text(path, MOXIN_STRLEN, "path")?);
            Model::estimate(
                path,
                &load_options(params)?,
                &session::options(session_params)?,
            )?
        };
        let estimate = moxin_memory_estimate {
            weights: estimate.weights,
            kv_per_token: estimate.kv_per_token,
            kv_total: estimate.kv_total,
            load_peak: estimate.load_peak,
            vision_peak: estimate.vision_peak,
            step_peak: estimate.step_peak,
            total: estimate.total,
            available: estimate.available,
            ..moxin_memory_estimate::defaults()
        };
        // SAFETY: `out` was checked; it is the caller's struct with its size.
        unsafe { write_result(place, estimate, "out_estimate") }
    })
}

/// Gets the properties of a model. out_info->struct_size must be set.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn moxin_model_info_get(
    model: *const moxin_model,
    out_info: *mut moxin_model_info,
    error: *mut *mut moxin_error,
) -> moxin_status {
    guard(error, || {
        let place = out(out_info, "out_info")?;
        // SAFETY: NULL, or a handle of this library that was not freed; the output pointer was
        // checked, and is the caller's struct with its size.
        unsafe {
            write_result(
                place,
                info_for_c(&retain(model, "model")?.model.info()),
                "out_info",
            )
        }
    })
}

/// Gets the number of positions that a picture of this size takes in a conversation. budget and
/// error may be NULL.
///
/// Errors: INVALID_ARGUMENT if the model cannot take the size or the budget.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn moxin_model_image_tokens(
    model: *const moxin_model,
    width: u32,
    height: u32,
    budget: *const moxin_pixel_budget,
    out_tokens: *mut u32,
    error: *mut *mut moxin_error,
) -> moxin_status {
    guard(error, || {
        let place = out(out_tokens, "out_tokens")?;
        // SAFETY: NULL, or a handle of this library that was not freed, and the caller's
        // initialized struct.
        let (model, budget) = unsafe { (retain(model, "model")?, pixel_budget(budget, "budget")?) };
        let tokens = model
            .model
            .image_tokens(width as usize, height as usize, budget)?;
        // SAFETY: `out` was checked.
        unsafe { place.write(tokens as u32) };
        Ok(())
    })
}

/// Gets a field of the model's config.json by its path, such as "model_type",
/// "text_config.num_hidden_layers" or "image_sizes.0". A string is returned without quotes,
/// anything else as JSON. *out_value lives as long as the model's handle.
///
/// key is NUL-terminated UTF-8.
///
/// Errors: NOT_FOUND if there is no such field.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn moxin_model_metadata(
    model: *const moxin_model,
    key: *const c_char,
    out_value: *mut moxin_str,
    error: *mut *mut moxin_error,
) -> moxin_status {
    guard(error, || {
        let place = out(out_value, "out_value")?;
        // SAFETY: NULL, or a handle of this library that was not freed, and the caller's
        // NUL-terminated text.
        let (model, key) = unsafe { (retain(model, "model")?, text(key, MOXIN_STRLEN, "key")?) };
        let value = model.model.metadata(key).ok_or_else(|| Error::NotFound {
            path: "config.json".into(),
            what: format!("field `{key}`"),
        })?;
        let mut shown = model
            .metadata
            .lock()
            .unwrap_or_else(|poisoned| poisoned.into_inner());
        let shown = shown.entry(key.into()).or_insert_with(|| c_string(&value));
        // SAFETY: `out` was checked. The text lives as long as the model: nothing is removed from
        // the map.
        unsafe { place.write(view(shown)) };
        Ok(())
    })
}

/// Saves the model in its current form to a folder that moxin_model_load can read. The format is
/// that of mlx-community: the tensor names of the original folder, ".scales" and ".biases" next to
/// quantized weights, "quantization" in config.json, and files of at most 5 GB. Weights that are
/// not quantized are copied exactly. Of the other files, only known ones are copied: tokenizer,
/// processor and generation settings, chat templates, README.md and licenses. A link is followed if
/// it leads to a file in the same folder or, in a snapshot of the Hugging Face cache, into that
/// cache.
///
/// The folder appears only after everything is written. With overwrite, an empty folder or a model
/// folder is replaced, with all its files; a model folder has only files, among them a config.json
/// with a "model_type". At every moment there is a complete model at the path, even if the process
/// is killed; in that case a hidden folder whose name starts with ".moxin-vlm-" may be left next to
/// it. Only if the file system cannot exchange two folders is there a short moment without one.
///
/// directory is NUL-terminated UTF-8. op and error may be NULL. Progress is reported with stage
/// MOXIN_STAGE_SAVE.
///
/// Errors: INVALID_ARGUMENT if the path exists and overwrite is false, if it is not such a folder,
/// if it is or contains the folder that the model was loaded from, or if a file to be copied is a
/// link to elsewhere; NOT_FOUND if the folder that the model was loaded from is gone; CORRUPT_MODEL
/// if a file in it is no longer a file; INVALID_STATE if the model was unloaded, or if the folder
/// to be replaced changes in the meantime; IO, CANCELLED, TIMEOUT, SUSPENDED. On error nothing new
/// is left behind, and an existing folder stays as it was.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn moxin_model_save(
    model: *const moxin_model,
    directory: *const c_char,
    overwrite: bool,
    op: *const moxin_op,
    error: *mut *mut moxin_error,
) -> moxin_status {
    // SAFETY: NULL, or a handle of this library that was not freed; the caller's text and
    // initialized struct, whose pointers are valid during the call.
    guard(error, || unsafe {
        let (model, directory) = (
            retain(model, "model")?,
            text(directory, MOXIN_STRLEN, "directory")?,
        );
        with_op(op, |op| {
            model.model.save(Path::new(directory), overwrite, op)
        })
    })
}

/// Releases the memory of the weights while the handle and its sessions stay. Calls that need the
/// weights then fail with INVALID_STATE. An embedding can still be used with the same model loaded
/// again. Works while the library is suspended. Waits for the current step.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn moxin_model_unload(
    model: *const moxin_model,
    error: *mut *mut moxin_error,
) -> moxin_status {
    // SAFETY: NULL, or a handle of this library that was not freed.
    guard(error, || unsafe { retain(model, "model")?.model.unload() })
}

/// Frees a model. Its memory is released with the last of its sessions. NULL is ignored.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn moxin_model_free(model: *mut moxin_model) {
    // SAFETY: NULL, or a handle of this library, which the caller does not use again.
    unsafe { free(model, drop) };
}

/// # Safety
/// As for [`read_params`].
unsafe fn load_options(params: *const moxin_model_params) -> Result<LoadOptions> {
    // SAFETY: the caller upholds this function's contract.
    let params = unsafe { read_params(params, "params")? };
    let dtype = match params.dtype {
        MOXIN_DTYPE_AUTO => None,
        MOXIN_DTYPE_F16 => Some(Dtype::Float16),
        MOXIN_DTYPE_BF16 => Some(Dtype::Bfloat16),
        MOXIN_DTYPE_F32 => Some(Dtype::Float32),
        other => {
            return Err(Error::InvalidArgument(format!(
                "params.dtype is {other}; expected 0 to {MOXIN_DTYPE_F32}"
            )));
        }
    };
    let cpu_kernels = match params.cpu_kernels {
        MOXIN_CPU_KERNELS_AUTO => CpuKernels::Auto,
        MOXIN_CPU_KERNELS_OWN => CpuKernels::Own,
        MOXIN_CPU_KERNELS_MLX => CpuKernels::Mlx,
        other => {
            return Err(Error::InvalidArgument(format!(
                "params.cpu_kernels is {other}; expected 0 to {MOXIN_CPU_KERNELS_MLX}"
            )));
        }
    };
    let chat_template = match params.chat_template.is_null() {
        true => None,
        // SAFETY: the caller upholds this function's contract: NUL-terminated text, valid during
        // the call.
        false => Some(
            unsafe { text(params.chat_template, MOXIN_STRLEN, "params.chat_template")? }.to_owned(),
        ),
    };
    let quantizes = params.quant_bits > 0 || params.quant_mode != MOXIN_QUANT_MODE_AFFINE;
    let quantization = scheme(
        params.quant_mode,
        params.quant_bits,
        params.quant_group_size,
    )?;
    Ok(LoadOptions {
        backend: backend_from(params.backend)?,
        dtype,
        quantize: quantizes.then(|| QuantizeOptions {
            quantization,
            ..QuantizeOptions::default()
        }),
        cpu_kernels,
        memory_limit: (params.memory_limit > 0).then_some(params.memory_limit),
        image_cache: params.image_cache_bytes,
        prefix_cache: params.prefix_cache_bytes,
        chat_template,
    })
}

fn info_for_c(info: &ModelInfo) -> moxin_model_info {
    moxin_model_info {
        model_type: c_text(&info.model_type),
        default_prompt: c_text(info.default_prompt),
        // A number that does not fit becomes the largest one that does.
        max_images: u32::try_from(info.max_images).unwrap_or(0),
        takes_system: info.system.into(),
        takes_turns: info.several_messages.into(),
        grounding: info.grounding.into(),
        text_only: (info.max_images == 0).into(),
        takes_videos: (info.max_videos > 0).into(),
        quant_bits: info
            .quantization
            .map_or(0, |quantization| quantization.bits as u32),
        quant_group_size: info
            .quantization
            .map_or(0, |quantization| quantization.group_size as u32),
        quant_mode: info
            .quantization
            .map_or(MOXIN_QUANT_MODE_AFFINE, |quantization| {
                quantization.mode as u32
            }),
        parameter_count: info.parameters,
        weight_bytes: info.weight_bytes,
        fingerprint: info.fingerprint,
        context_length: info.context_length as u32,
        vocab_size: info.vocabulary as u32,
        hidden_size: info.hidden_size as u32,
        image_size: info.image_size as u32,
        tokens_per_image: info.image_tokens as u32,
        backend: backend_number(info.backend),
        dtype: match info.dtype {
            Dtype::Float16 => MOXIN_DTYPE_F16,
            Dtype::Bfloat16 => MOXIN_DTYPE_BF16,
            _ => MOXIN_DTYPE_F32,
        },
        ..moxin_model_info::defaults()
    }
}

/// Copies a text into a field of fixed length, truncated if longer. The last byte stays 0.
fn c_text<const N: usize>(text: &str) -> [c_char; N] {
    let mut field = [0; N];
    field[..N - 1]
        .iter_mut()
        .zip(text.bytes())
        .for_each(|(place, byte)| *place = byte as c_char);
    field
}
