//! Models.

use std::{
    collections::BTreeMap,
    ffi::{CString, c_char},
    path::Path,
    ptr,
    sync::Mutex,
};

use super::{
    MOXIN_STRLEN, Versioned, c_string, free, give, guard, hold,
    image::{moxin_pixel_budget, pixel_budget},
    init_params,
    library::{MOXIN_BACKEND_AUTO, backend_from, backend_number, moxin_backend},
    moxin_error, moxin_op, moxin_session_params, moxin_status, moxin_str,
    op::with_op,
    out,
    quantize::{MOXIN_QUANT_MODE_AFFINE, moxin_quant_mode, scheme},
    read_params, session, text, view, write_result,
};
use crate::{
    Error, Result,
    runtime::{CpuKernels, Dtype, LoadOptions, Model, ModelInfo, QuantizeOptions},
};

/// A model in memory.
pub struct moxin_model {
    pub(super) model: Model,
    /// Texts that [`moxin_model_metadata`] has shown.
    metadata: Mutex<BTreeMap<String, CString>>,
}

/// The type of activations: one of MOXIN_DTYPE_*.
pub type moxin_dtype = u32;
/// What the backend does best: bfloat16 on a GPU, float32 on the CPU.
pub const MOXIN_DTYPE_AUTO: moxin_dtype = 0;
/// 16 bits, more precise and of smaller range than bfloat16.
pub const MOXIN_DTYPE_F16: moxin_dtype = 1;
/// bfloat16, as the checkpoints are stored.
pub const MOXIN_DTYPE_BF16: moxin_dtype = 2;
/// 32 bits.
pub const MOXIN_DTYPE_F32: moxin_dtype = 3;

/// Whose code computes on the CPU: one of MOXIN_CPU_KERNELS_*. On a GPU it makes no difference.
pub type moxin_cpu_kernels = u32;
/// What the environment variable `MOXIN_CPU_KERNELS` says, "own" or "mlx"; where it is not set,
/// this library's own, but MLX's on Apple's systems.
pub const MOXIN_CPU_KERNELS_AUTO: moxin_cpu_kernels = 0;
/// This library's own, where activations are float32.
pub const MOXIN_CPU_KERNELS_OWN: moxin_cpu_kernels = 1;
/// MLX's.
pub const MOXIN_CPU_KERNELS_MLX: moxin_cpu_kernels = 2;

/// How a model is loaded.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct moxin_model_params {
    /// sizeof(moxin_model_params)
    pub struct_size: usize,
    /// Bytes that loading may take; a model that needs more is refused before it is read. 0, the
    /// default: what is available.
    pub memory_limit: u64,
    /// Bytes for the tokens of pictures that were encoded before, so that the same picture need not
    /// be again. A picture takes tokens_per_image * hidden_size numbers, 4 MiB in Moxin-7B with
    /// float32. Default: 64 MiB. 0: none are kept.
    pub image_cache_bytes: u64,
    /// Where it computes. Default: MOXIN_BACKEND_AUTO.
    pub backend: moxin_backend,
    /// The type of activations. Default: MOXIN_DTYPE_AUTO.
    pub dtype: moxin_dtype,
    /// Bits that the language model is quantized to while it is read, so that all of it is never in
    /// memory as it is stored: 2, 3, 4, 5, 6 or
    /// 8. Default: 0, it stays as it is stored.
    pub quant_bits: u32,
    /// Neighbours that share a scale: 32, 64 or 128. Default: 64.
    pub quant_group_size: u32,
    /// Another mode than MOXIN_QUANT_MODE_AFFINE, the default, has its own bits and group size: the
    /// two above are not looked at then.
    pub quant_mode: moxin_quant_mode,
    /// Whose code computes on the CPU. Default: MOXIN_CPU_KERNELS_AUTO.
    pub cpu_kernels: moxin_cpu_kernels,
    /// A chat template, in Jinja, that takes the place of the folder's; UTF-8, NUL-terminated. It
    /// is read during the call only. Default: NULL, the folder's.
    pub chat_template: *const c_char,
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
    /// The same for models whose embeddings may stand for each other's. 0 from moxin_model_inspect.
    pub fingerprint: u64,
    /// Positions that the decoder was made for.
    pub context_length: u32,
    /// Rows of the token embedding.
    pub vocab_size: u32,
    /// Width of a token.
    pub hidden_size: u32,
    /// Edge of the square that a picture is brought to, in pixels; 0 where that depends on the
    /// picture.
    pub image_size: u32,
    /// Positions that a picture takes; 0 where that depends on the picture: see
    /// moxin_model_image_tokens.
    pub tokens_per_image: u32,
    /// Where the model computes, or would; never MOXIN_BACKEND_AUTO.
    pub backend: moxin_backend,
    /// The type of activations; never MOXIN_DTYPE_AUTO.
    pub dtype: moxin_dtype,
    /// Bits a number in the scheme that most quantized matrices have; 0 where none is quantized.
    pub quant_bits: u32,
    /// Neighbours that share a scale in that scheme; 0 where none is quantized.
    pub quant_group_size: u32,
    /// The mode of that scheme.
    pub quant_mode: moxin_quant_mode,
    /// The architecture, as config.json names it, such as "prismatic"; NUL-terminated, cut where it
    /// is longer.
    pub model_type: [c_char; 32],
    /// Pictures that a conversation may have; 0 for as many as fit into the context.
    pub max_images: u32,
    /// Not 0: the model takes system text.
    pub takes_system: u32,
    /// Not 0: a conversation goes on after an answer. 0: it ends with it.
    pub takes_turns: u32,
    /// Must be ignored.
    pub reserved: u32,
    /// What to ask about a picture where a user has no question, in the words that the model was
    /// made for; NUL-terminated.
    pub default_prompt: [c_char; 64],
}

/// What a model in a folder will take, in bytes.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct moxin_memory_estimate {
    /// sizeof(moxin_memory_estimate)
    pub struct_size: usize,
    /// The weights, once loaded.
    pub weights: u64,
    /// Keys and values of one position of a conversation.
    pub kv_per_token: u64,
    /// Keys and values of a conversation of max_context positions.
    pub kv_total: u64,
    /// The most while loading.
    pub load_peak: u64,
    /// What encoding a picture takes beyond the weights, for the time.
    pub vision_peak: u64,
    /// What a step of a conversation takes beyond weights, keys and values, for the time.
    pub step_peak: u64,
    /// The most in all: to load the model, encode a picture, and have one conversation of
    /// max_context positions.
    pub total: u64,
    /// What could be taken now.
    pub available: u64,
}

// SAFETY: repr(C), begins with its size, otherwise integers and a pointer that may be NULL.
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
        }
    }
}

// SAFETY: repr(C), begins with its size, otherwise integers.
unsafe impl Versioned for moxin_model_info {}

// SAFETY: repr(C), begins with its size, otherwise integers.
unsafe impl Versioned for moxin_memory_estimate {}

/// Sets up parameters with the defaults; struct_size is sizeof(moxin_model_params), and nothing is
/// written past it.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn moxin_model_params_init(
    params: *mut moxin_model_params,
    struct_size: usize,
) {
    // SAFETY: NULL, or the caller's struct of that size.
    unsafe { init_params(params, struct_size) };
}

/// Loads a model from a Hugging Face folder (config.json, the weights, tokenizer.json,
/// preprocessor_config.json).
///
/// path: the folder, UTF-8, NUL-terminated. params, op, error: may be NULL. *out_model receives a
/// model that the caller frees with moxin_model_free. Progress has the stage MOXIN_STAGE_LOAD.
///
/// Fails with NOT_FOUND, CORRUPT_MODEL, UNSUPPORTED_MODEL or IO, naming the file and the field or
/// tensor; with INVALID_ARGUMENT where path is no folder; with OUT_OF_MEMORY before any weight is
/// read; with BACKEND_UNAVAILABLE, CANCELLED, TIMEOUT, SUSPENDED.
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
        // SAFETY: the caller's text, NUL-terminated, and its initialized structs, the op's pointers
        // being valid during this call; checked place.
        unsafe {
            let (path, options) = (text(path, MOXIN_STRLEN, "path")?, load_options(params)?);
            let model = with_op(op, |op| Model::load(Path::new(path), options, op))?;
            give(
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

/// What the model in a folder is, without loading it: from config.json and the headers of the
/// weights. out_info->struct_size must be set.
///
/// path: the folder, UTF-8, NUL-terminated.
///
/// Fails with NOT_FOUND, CORRUPT_MODEL, UNSUPPORTED_MODEL, IO, or INVALID_ARGUMENT where path is no
/// folder.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn moxin_model_inspect(
    path: *const c_char,
    out_info: *mut moxin_model_info,
    error: *mut *mut moxin_error,
) -> moxin_status {
    guard(error, || {
        let place = out(out_info, "out_info")?;
        // SAFETY: the caller's text, NUL-terminated; checked place, and the caller's struct with
        // its size.
        unsafe {
            let info = Model::inspect(Path::new(text(path, MOXIN_STRLEN, "path")?))?;
            write_result(place, info_for_c(&info), "out_info")
        }
    })
}

/// What the model in a folder will take, loaded with params and talked to in one session with
/// session_params, without loading it: from config.json and the headers of the weights.
/// out_estimate->struct_size must be set.
///
/// path: the folder, UTF-8, NUL-terminated. params, session_params, error: may be NULL.
///
/// Fails with NOT_FOUND, CORRUPT_MODEL, UNSUPPORTED_MODEL, IO, INVALID_ARGUMENT or
/// BACKEND_UNAVAILABLE.
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
        // SAFETY: the caller's text, NUL-terminated, and its initialized structs.
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
        // SAFETY: checked by `out`, and the caller's struct with its size.
        unsafe { write_result(place, estimate, "out_estimate") }
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
        // SAFETY: NULL or a handle of this library that was not freed; checked place, and the
        // caller's struct with its size.
        unsafe {
            write_result(
                place,
                info_for_c(&hold(model, "model")?.model.info()),
                "out_info",
            )
        }
    })
}

/// How many positions a picture of this size takes in a conversation. budget, error: may be NULL.
///
/// Fails with INVALID_ARGUMENT for a size or a budget that the model cannot take.
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
        // SAFETY: NULL or a handle of this library that was not freed, and the caller's initialized
        // struct.
        let (model, budget) = unsafe { (hold(model, "model")?, pixel_budget(budget)?) };
        let tokens = model
            .model
            .image_tokens(width as usize, height as usize, budget)?;
        // SAFETY: checked by `out`.
        unsafe { place.write(tokens as u32) };
        Ok(())
    })
}

/// A field of the model's config.json by its path, such as "model_type",
/// "text_config.num_hidden_layers" or "image_sizes.0": a text as it is, all else as JSON.
/// *out_value lives as long as the model's handle.
///
/// key: UTF-8, NUL-terminated. Fails with NOT_FOUND where there is no such field.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn moxin_model_metadata(
    model: *const moxin_model,
    key: *const c_char,
    out_value: *mut moxin_str,
    error: *mut *mut moxin_error,
) -> moxin_status {
    guard(error, || {
        let place = out(out_value, "out_value")?;
        // SAFETY: NULL or a handle of this library that was not freed, and the caller's text,
        // NUL-terminated.
        let (model, key) = unsafe { (hold(model, "model")?, text(key, MOXIN_STRLEN, "key")?) };
        let value = model.model.metadata(key).ok_or_else(|| Error::NotFound {
            path: "config.json".into(),
            what: format!("field `{key}`"),
        })?;
        let mut shown = model
            .metadata
            .lock()
            .unwrap_or_else(|poisoned| poisoned.into_inner());
        let shown = shown.entry(key.into()).or_insert_with(|| c_string(&value));
        // SAFETY: checked by `out`. The text stays where it is as long as the model: nothing is
        // taken out of the map.
        unsafe { place.write(view(shown)) };
        Ok(())
    })
}

/// Writes a model as it is now to a folder that moxin_model_load reads, in the form of MLX's
/// community: the names of the folder that it comes from, ".scales" and ".biases" beside what is
/// quantized, "quantization" in config.json, files of at most 5 GB. What is not quantized is
/// copied, number for number. Of the other files those are copied that a model is known to have:
/// tokenizer, processor and generation settings, chat templates, README.md, licences. A link is
/// followed to a file of the same folder and, in a snapshot of Hugging Face's cache, to that cache.
///
/// Nothing is at the place before all is written. With overwrite an empty folder is replaced, or a
/// model's: one that holds files alone, among them a config.json with a "model_type". All its files
/// go. A whole model is at the place at any moment, also where the process is killed; what is left
/// then beside it is a hidden folder whose name begins with ".moxin-vlm-". Only where a file system
/// cannot exchange two folders nothing is there for a moment.
///
/// directory: UTF-8, NUL-terminated. op, error: may be NULL. Progress has the stage
/// MOXIN_STAGE_SAVE.
///
/// Fails with INVALID_ARGUMENT where something is there and overwrite is false, where it is
/// something else than such a folder, where it is the folder that the model comes from or holds
/// that, and where a file to be copied is a link elsewhere; with NOT_FOUND where the folder that
/// the model comes from is gone, CORRUPT_MODEL where a file in it is none any more, INVALID_STATE
/// where the model was unloaded or the folder to be replaced changes meanwhile, IO, CANCELLED,
/// TIMEOUT, SUSPENDED. Whatever fails leaves nothing behind, and what was there.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn moxin_model_save(
    model: *const moxin_model,
    directory: *const c_char,
    overwrite: bool,
    op: *const moxin_op,
    error: *mut *mut moxin_error,
) -> moxin_status {
    // SAFETY: NULL or a handle of this library that was not freed, the caller's text, and its
    // initialized struct with pointers valid during the call.
    guard(error, || unsafe {
        let (model, directory) = (
            hold(model, "model")?,
            text(directory, MOXIN_STRLEN, "directory")?,
        );
        with_op(op, |op| {
            model.model.save(Path::new(directory), overwrite, op)
        })
    })
}

/// Gives the memory of the weights back, though the handle and sessions remain. What would compute
/// with them fails then with INVALID_STATE, but an embedding still fits the same model loaded
/// again. Works while the library is suspended. Waits for a step that is under way.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn moxin_model_unload(
    model: *const moxin_model,
    error: *mut *mut moxin_error,
) -> moxin_status {
    // SAFETY: NULL or a handle of this library that was not freed.
    guard(error, || unsafe { hold(model, "model")?.model.unload() })
}

/// Frees a model. Its memory goes with the last of its sessions. NULL is fine.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn moxin_model_free(model: *mut moxin_model) {
    // SAFETY: NULL or a handle of this library, which the caller does not use again.
    unsafe { free(model, drop) };
}

/// # Safety
/// As for [`read_params`].
unsafe fn load_options(params: *const moxin_model_params) -> Result<LoadOptions> {
    // SAFETY: as promised by the caller.
    let params = unsafe { read_params(params, "params")? };
    let dtype = match params.dtype {
        MOXIN_DTYPE_AUTO => None,
        MOXIN_DTYPE_F16 => Some(Dtype::Float16),
        MOXIN_DTYPE_BF16 => Some(Dtype::Bfloat16),
        MOXIN_DTYPE_F32 => Some(Dtype::Float32),
        other => {
            return Err(Error::InvalidArgument(format!(
                "params.dtype is {other}; 0 to {MOXIN_DTYPE_F32} is expected"
            )));
        }
    };
    let cpu_kernels = match params.cpu_kernels {
        MOXIN_CPU_KERNELS_AUTO => CpuKernels::Auto,
        MOXIN_CPU_KERNELS_OWN => CpuKernels::Own,
        MOXIN_CPU_KERNELS_MLX => CpuKernels::Mlx,
        other => {
            return Err(Error::InvalidArgument(format!(
                "params.cpu_kernels is {other}; 0 to {MOXIN_CPU_KERNELS_MLX} is expected"
            )));
        }
    };
    let chat_template = match params.chat_template.is_null() {
        true => None,
        // SAFETY: as promised by the caller: a text, NUL-terminated, for the time of the call.
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
        chat_template,
    })
}

fn info_for_c(info: &ModelInfo) -> moxin_model_info {
    moxin_model_info {
        model_type: c_text(&info.model_type),
        default_prompt: c_text(info.default_prompt),
        // More than can be said are as many as fit.
        max_images: u32::try_from(info.max_images).unwrap_or(0),
        takes_system: info.system.into(),
        takes_turns: info.several_messages.into(),
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

/// A text in a field of fixed length, cut where it is longer; the last byte stays 0.
fn c_text<const N: usize>(text: &str) -> [c_char; N] {
    let mut field = [0; N];
    field[..N - 1]
        .iter_mut()
        .zip(text.bytes())
        .for_each(|(place, byte)| *place = byte as c_char);
    field
}
