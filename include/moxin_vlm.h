/*
 * moxin-vlm: vision-language models in an app. SPDX-License-Identifier: MIT OR Apache-2.0
 *
 * Generated from src/ffi by cbindgen. Change it there and run `cargo xtask header`.
 *
 * Results   Functions that can fail return a moxin_status. Outputs are written only on success. If
 *           the last parameter is `error`, it may be NULL; otherwise it receives an error on
 *           failure, which the caller frees with moxin_error_free. Each function lists its errors;
 *           any function may also return NULL_ARGUMENT, INVALID_ARGUMENT and PANIC.
 * Ownership Every handle has one _free function, which ignores NULL. Handles may be freed in any
 *           order: a session keeps the parts of its model that it needs, an embedding needs
 *           nothing, and a fork does not need the session it was copied from.
 * Threads   Every function may be called from any thread. All computing happens on one thread of
 *           the library, where sessions take turns: a turn is one chunk of a prompt or one token.
 *           A second operation on a busy session returns MOXIN_STATUS_BUSY. Do not free a handle
 *           while another thread may use it, for example in moxin_session_cancel. Inside a
 *           callback a handle may be freed, because the current call keeps alive what it uses.
 * Callbacks Progress callbacks run on the calling thread, stream callbacks on a thread of the
 *           stream, and the log callback on a thread of its own. Callbacks may call every function,
 *           including _free functions, which do not wait there. A callback must return: no
 *           exception and no longjmp may leave it.
 * Process   When the process exits, calls in exit handlers return immediately, and no callback is
 *           called any more. In a child that was forked after the library was first used, every
 *           call that can fail returns INVALID_STATE, and _free functions release nothing: fork
 *           before the first use, or call exec in the child. If the library was computing at the
 *           fork, the child's exit may skip handlers that were registered before the library's
 *           first use.
 * Structs   Parameter structs are set up by their _init function, which also writes struct_size;
 *           NULL stands for the defaults. In structs that receive results, the caller sets
 *           struct_size: `moxin_event event = { sizeof event };`
 * Text      UTF-8. Text parameters are a pointer and a length, or MOXIN_STRLEN for text that ends
 *           with NUL. Text results are also NUL-terminated.
 */

#ifndef MOXIN_VLM_H
#define MOXIN_VLM_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/**
 * The length to pass for a text that ends with NUL.
 */
#define MOXIN_STRLEN SIZE_MAX

/**
 * The ABI version of this header. It increases with every incompatible release. Compare it with
 * moxin_abi_version before any other call.
 */
#define MOXIN_ABI_VERSION 3



/**
 * The result of a call.
 */
typedef enum moxin_status {
    /**
     * The call succeeded.
     */
    MOXIN_STATUS_OK = 0,
    /**
     * A pointer that must not be NULL is NULL.
     */
    MOXIN_STATUS_NULL_ARGUMENT = 1,
    /**
     * A value is out of range, a text is not UTF-8, a struct was not initialized, or an embedding
     * belongs to another model.
     */
    MOXIN_STATUS_INVALID_ARGUMENT = 2,
    /**
     * The object is in a state that does not allow this call; the message says what to call
     * instead.
     */
    MOXIN_STATUS_INVALID_STATE = 3,
    /**
     * The operation was cancelled. All objects stay usable.
     */
    MOXIN_STATUS_CANCELLED = 4,
    /**
     * The operation exceeded its time limit.
     */
    MOXIN_STATUS_TIMEOUT = 5,
    /**
     * Another operation or stream is running on the same session.
     */
    MOXIN_STATUS_BUSY = 6,
    /**
     * The library is suspended; see moxin_suspend.
     */
    MOXIN_STATUS_SUSPENDED = 7,
    /**
     * A file or folder does not exist.
     */
    MOXIN_STATUS_NOT_FOUND = 8,
    /**
     * Reading or writing failed.
     */
    MOXIN_STATUS_IO = 9,
    /**
     * A file of the model is damaged or inconsistent.
     */
    MOXIN_STATUS_CORRUPT_MODEL = 10,
    /**
     * The library does not support this kind of model.
     */
    MOXIN_STATUS_UNSUPPORTED_MODEL = 11,
    /**
     * An image cannot be read, is too large, or has an unknown format.
     */
    MOXIN_STATUS_UNSUPPORTED_IMAGE = 12,
    /**
     * The prompt does not fit into the context.
     */
    MOXIN_STATUS_CONTEXT_FULL = 13,
    /**
     * The operation would exceed the memory limit; nothing was allocated.
     */
    MOXIN_STATUS_OUT_OF_MEMORY = 14,
    /**
     * The requested backend is not available on this machine or in this build.
     */
    MOXIN_STATUS_BACKEND_UNAVAILABLE = 15,
    /**
     * MLX reported an error.
     */
    MOXIN_STATUS_BACKEND = 16,
    /**
     * A bug in the library. Please report it with the error's message.
     */
    MOXIN_STATUS_PANIC = 17,
} moxin_status;

/**
 * The kind of an event.
 */
typedef enum moxin_event_kind {
    /**
     * Part of the prompt was read: done of total positions. The first such event may follow the
     * encoding of a picture, with done 0.
     */
    MOXIN_EVENT_KIND_PREFILL = 0,
    /**
     * One token was generated: text, token_id and logprob are set.
     */
    MOXIN_EVENT_KIND_TEXT = 1,
    /**
     * The answer is complete: finish says why, and text has the rest of the text.
     */
    MOXIN_EVENT_KIND_FINISHED = 2,
} moxin_event_kind;

/**
 * Why an answer ended.
 */
typedef enum moxin_finish_reason {
    /**
     * The answer has not ended.
     */
    MOXIN_FINISH_REASON_NONE = 0,
    /**
     * The model ended its turn.
     */
    MOXIN_FINISH_REASON_END_OF_TURN = 1,
    /**
     * A stop text was generated.
     */
    MOXIN_FINISH_REASON_STOP_SEQUENCE = 2,
    /**
     * The answer reached max_tokens.
     */
    MOXIN_FINISH_REASON_MAX_TOKENS = 3,
    /**
     * The conversation fills the context.
     */
    MOXIN_FINISH_REASON_CONTEXT_FULL = 4,
    /**
     * The answer was cancelled; the turn was rolled back.
     */
    MOXIN_FINISH_REASON_CANCELLED = 5,
    /**
     * The answer failed, see the event's error; the turn was rolled back. Only in streams: a step
     * returns its status instead.
     */
    MOXIN_FINISH_REASON_ERROR = 6,
} moxin_finish_reason;

/**
 * Cancels operations.
 */
typedef struct moxin_cancel moxin_cancel;

/**
 * The features of a picture in the embedding space of the model that encoded it. Does not keep the
 * model alive.
 */
typedef struct moxin_embedding moxin_embedding;

/**
 * Why a call failed. Immutable; may be read from any thread.
 */
typedef struct moxin_error moxin_error;

/**
 * A decoded picture.
 */
typedef struct moxin_image moxin_image;

/**
 * The boxes and points in an answer.
 */
typedef struct moxin_locations moxin_locations;

/**
 * A loaded model.
 */
typedef struct moxin_model moxin_model;

/**
 * A conversation with a model.
 */
typedef struct moxin_session moxin_session;

/**
 * A video: frames of one size, each with its time.
 */
typedef struct moxin_video moxin_video;

/**
 * How large a picture may be when it reaches the encoder. Models whose pictures all have one size
 * ignore everything but max_tokens.
 */
typedef struct moxin_pixel_budget {
    /**
     * sizeof(moxin_pixel_budget)
     */
    size_t struct_size;
    /**
     * Smaller pictures are enlarged to at least this many pixels, by models that take any size. 0:
     * the value from the model folder.
     */
    uint64_t min_pixels;
    /**
     * Larger pictures are reduced to at most this many pixels, in all their tiles together. 0: the
     * value from the model folder.
     */
    uint64_t max_pixels;
    /**
     * The maximum number of positions that a picture takes. A larger picture is reduced, or cut
     * into fewer tiles; a model that cannot do this refuses it. 0: no maximum.
     */
    uint64_t max_tokens;
    /**
     * If not 0, pictures are not cut into tiles by models that do this.
     */
    uint32_t no_tiles;
    /**
     * Must be 0.
     */
    uint32_t reserved;
} moxin_pixel_budget;

/**
 * The stage of an operation: one of MOXIN_STAGE_*.
 */
typedef uint32_t moxin_stage;

/**
 * Receives the stage of an operation and the fraction that is complete, 0 to 1, on the thread that
 * called the operation. Returning false cancels the operation.
 */
typedef bool (*moxin_progress_fn)(void *user_data, moxin_stage stage, float fraction);

/**
 * Options for one long operation. NULL, or zeros after struct_size, stand for none.
 */
typedef struct moxin_op {
    /**
     * sizeof(moxin_op)
     */
    size_t struct_size;
    /**
     * The progress callback. May be NULL.
     */
    moxin_progress_fn progress;
    /**
     * Passed to progress.
     */
    void *user_data;
    /**
     * A cancel object, which can be triggered from any thread. May be NULL.
     */
    const struct moxin_cancel *cancel;
    /**
     * The time limit in milliseconds, including the time spent waiting for other operations. 0: no
     * limit.
     */
    uint64_t timeout_ms;
} moxin_op;

/**
 * The size of an embedding.
 */
typedef struct moxin_embedding_info {
    /**
     * sizeof(moxin_embedding_info)
     */
    size_t struct_size;
    /**
     * The fingerprint of the model that made it; see moxin_model_info.
     */
    uint64_t model_fingerprint;
    /**
     * A hash that identifies the picture.
     */
    uint64_t image_hash;
    /**
     * The number of prompt positions it takes.
     */
    uint32_t token_count;
    /**
     * The number of values per token.
     */
    uint32_t hidden_size;
} moxin_embedding_info;

/**
 * UTF-8 text owned by the library, also NUL-terminated. Each function that returns one says how
 * long it lives.
 */
typedef struct moxin_str {
    /**
     * The bytes, never NULL.
     */
    const char *data;
    /**
     * The number of bytes, without the final NUL.
     */
    size_t len;
} moxin_str;

/**
 * A candidate for the next token.
 */
typedef struct moxin_token_logprob {
    /**
     * The token.
     */
    int32_t token_id;
    /**
     * The log-probability of the token, before temperature and filters.
     */
    float logprob;
} moxin_token_logprob;

/**
 * The result of one step. Its pointers are valid until the next step on the session, or until the
 * session is freed; in a stream, until the callback returns.
 */
typedef struct moxin_event {
    /**
     * sizeof(moxin_event)
     */
    size_t struct_size;
    /**
     * The kind of the event, which says which fields below are set.
     */
    enum moxin_event_kind kind;
    /**
     * Why the answer ended; MOXIN_FINISH_REASON_NONE before the FINISHED event.
     */
    enum moxin_finish_reason finish;
    /**
     * Complete characters only; empty while a character is incomplete.
     */
    struct moxin_str text;
    /**
     * The token; -1 in events other than TEXT.
     */
    int32_t token_id;
    /**
     * The token's log-probability, before temperature and filters.
     */
    float logprob;
    /**
     * The number of prompt positions that were read.
     */
    uint32_t done;
    /**
     * The number of prompt positions.
     */
    uint32_t total;
    /**
     * The most likely tokens, in descending order, if moxin_session_params.logprobs is set;
     * otherwise NULL.
     */
    const struct moxin_token_logprob *top;
    /**
     * The number of entries in top.
     */
    size_t top_count;
    /**
     * The error, if finish is MOXIN_FINISH_REASON_ERROR; otherwise NULL. The library frees it.
     */
    const struct moxin_error *error;
} moxin_event;

/**
 * Receives one event of a stream. Returning false cancels the answer; its FINISHED event still
 * follows.
 */
typedef bool (*moxin_event_fn)(void *user_data, const struct moxin_event *event);

/**
 * Called once with the user data of a callback, when the library no longer uses it.
 */
typedef void (*moxin_destroy_fn)(void *user_data);

/**
 * Counts and times of a session's latest turn.
 */
typedef struct moxin_stats {
    /**
     * sizeof(moxin_stats)
     */
    size_t struct_size;
    /**
     * Positions of the prompt: the whole conversation, including image tokens.
     */
    uint32_t prompt_tokens;
    /**
     * Prompt positions that belong to pictures.
     */
    uint32_t image_tokens;
    /**
     * Prompt positions that were reused from earlier turns.
     */
    uint32_t reused_tokens;
    /**
     * Generated tokens.
     */
    uint32_t generated_tokens;
    /**
     * Pictures that were found in the cache and not encoded again.
     */
    uint32_t cached_images;
    /**
     * Messages in the conversation, including the answer once it is complete.
     */
    uint32_t message_count;
    /**
     * Milliseconds in the vision encoders.
     */
    double vision_ms;
    /**
     * Milliseconds in prefill, without vision.
     */
    double prefill_ms;
    /**
     * Milliseconds from the first step of the turn to its first token.
     */
    double first_token_ms;
    /**
     * Milliseconds in the steps after the first token.
     */
    double decode_ms;
    /**
     * Prompt positions read per second, without reused ones.
     */
    double prefill_tps;
    /**
     * Tokens per second after the first token.
     */
    double decode_tps;
    /**
     * Peak memory of all models in the process, in bytes.
     */
    uint64_t peak_bytes;
} moxin_stats;

/**
 * Options for decoding a picture.
 */
typedef struct moxin_image_params {
    /**
     * sizeof(moxin_image_params)
     */
    size_t struct_size;
    /**
     * The maximum number of pixels. A larger picture is refused after its header is read. Default:
     * 100,000,000.
     */
    uint64_t max_pixels;
    /**
     * If not 0, the orientation in the picture's metadata is ignored. Default: 0, the picture is
     * turned upright.
     */
    uint32_t ignore_orientation;
    /**
     * Must be 0.
     */
    uint32_t reserved;
} moxin_image_params;

/**
 * The layout of pixels in memory: one of MOXIN_PIXEL_FORMAT_*.
 */
typedef uint32_t moxin_pixel_format;

/**
 * The device that a model runs on: one of MOXIN_BACKEND_*.
 */
typedef uint32_t moxin_backend;

/**
 * The log level: one of MOXIN_LOG_LEVEL_*. Each level includes those before it.
 */
typedef uint32_t moxin_log_level;

/**
 * Receives one log message: the module it comes from, and the text. Both are valid until the
 * function returns.
 */
typedef void (*moxin_log_fn)(void *user_data,
                             moxin_log_level level,
                             struct moxin_str target,
                             struct moxin_str message);

/**
 * Something in a picture that an answer names. Pixels of the upright original picture, from its
 * top left corner.
 */
typedef struct moxin_location {
    /**
     * sizeof(moxin_location)
     */
    size_t struct_size;
    /**
     * The label; empty if the answer has none. Lives as long as the moxin_locations.
     */
    struct moxin_str label;
    /**
     * The left edge of a box; the x of a point.
     */
    float left;
    /**
     * The top edge of a box; the y of a point.
     */
    float top;
    /**
     * The right edge of a box, not less than left; equal to left for a point.
     */
    float right;
    /**
     * The bottom edge of a box, not less than top; equal to top for a point.
     */
    float bottom;
    /**
     * Not 0 if it is a point.
     */
    uint32_t is_point;
    /**
     * Must be ignored.
     */
    uint32_t reserved;
} moxin_location;

/**
 * The memory that the library uses in this process, in bytes.
 */
typedef struct moxin_memory_stats {
    /**
     * sizeof(moxin_memory_stats)
     */
    size_t struct_size;
    /**
     * In use: weights, conversations, embeddings and intermediate results.
     */
    uint64_t active;
    /**
     * Free buffers kept for reuse; moxin_memory_trim releases them.
     */
    uint64_t cache;
    /**
     * The highest value that active ever had.
     */
    uint64_t peak;
    /**
     * The limit set with moxin_memory_set_limits. UINT64_MAX: only the machine limits it.
     */
    uint64_t limit;
    /**
     * The memory that can still be allocated, within the limit and within what the machine, the
     * process's control groups and its resource limits allow.
     */
    uint64_t available;
    /**
     * The part of active that caches encoded pictures; moxin_memory_trim releases it.
     */
    uint64_t image_cache;
    /**
     * Not bytes: the number of handles of all kinds, errors included, that were not freed. 0 in a
     * program that has freed everything.
     */
    uint64_t handles;
    /**
     * The part of active that keeps ended conversations for others; moxin_memory_trim releases it.
     */
    uint64_t prefix_cache;
} moxin_memory_stats;

/**
 * The type of activations: one of MOXIN_DTYPE_*.
 */
typedef uint32_t moxin_dtype;

/**
 * How a group encodes its values: one of MOXIN_QUANT_MODE_*.
 */
typedef uint32_t moxin_quant_mode;

/**
 * The kernels used on the CPU: one of MOXIN_CPU_KERNELS_*. Has no effect on a GPU.
 */
typedef uint32_t moxin_cpu_kernels;

/**
 * Options for loading a model.
 */
typedef struct moxin_model_params {
    /**
     * sizeof(moxin_model_params)
     */
    size_t struct_size;
    /**
     * The number of bytes that loading may use. A model that needs more is refused before it is
     * read. 0, the default: the available memory.
     */
    uint64_t memory_limit;
    /**
     * The size in bytes of the cache of encoded pictures. A cached picture is not encoded again. A
     * picture takes tokens_per_image * hidden_size values: 4 MiB in Moxin-7B with float32.
     * Default: 64 MiB. 0 disables the cache.
     */
    uint64_t image_cache_bytes;
    /**
     * The device. Default: MOXIN_BACKEND_AUTO.
     */
    moxin_backend backend;
    /**
     * The type of activations. Default: MOXIN_DTYPE_AUTO.
     */
    moxin_dtype dtype;
    /**
     * Quantizes the language model to this many bits while loading, so that the full weights are
     * never in memory: 2, 3, 4, 5, 6 or
     * 8. Default: 0, the weights stay as stored.
     */
    uint32_t quant_bits;
    /**
     * The group size: 32, 64 or 128 neighbors share a scale. Default: 64.
     */
    uint32_t quant_group_size;
    /**
     * The quantization mode. Default: MOXIN_QUANT_MODE_AFFINE. Other modes have fixed bits and
     * group size, and ignore the two fields above.
     */
    moxin_quant_mode quant_mode;
    /**
     * The kernels used on the CPU. Default: MOXIN_CPU_KERNELS_AUTO.
     */
    moxin_cpu_kernels cpu_kernels;
    /**
     * A Jinja chat template to use instead of the one in the folder; NUL-terminated UTF-8, read
     * only during the call. Default: NULL, the folder's template.
     */
    const char *chat_template;
    /**
     * The size in bytes of the cache of ended conversations, by their keys and values
     * (moxin_memory_estimate.kv_per_token). When a session is freed, its conversation stays there,
     * and a new session that starts with the same prompt reads only the rest:
     * moxin_stats.reused_tokens. Conversations are removed when other work needs the memory.
     * Default: 0, none is kept.
     */
    uint64_t prefix_cache_bytes;
} moxin_model_params;

/**
 * Properties of a model.
 */
typedef struct moxin_model_info {
    /**
     * sizeof(moxin_model_info)
     */
    size_t struct_size;
    /**
     * The number of values in all tensors of the folder.
     */
    uint64_t parameter_count;
    /**
     * The size of these tensors in bytes.
     */
    uint64_t weight_bytes;
    /**
     * Identifies the weights that encode pictures: embeddings can be exchanged between models with
     * the same fingerprint. 0 from moxin_model_inspect.
     */
    uint64_t fingerprint;
    /**
     * The number of positions that the decoder was made for.
     */
    uint32_t context_length;
    /**
     * The number of rows of the token embedding.
     */
    uint32_t vocab_size;
    /**
     * The number of values per token.
     */
    uint32_t hidden_size;
    /**
     * The edge in pixels of the square that pictures are resized to; 0 if the size depends on the
     * picture, or if there are no pictures.
     */
    uint32_t image_size;
    /**
     * The number of positions per picture; 0 if it depends on the picture (see
     * moxin_model_image_tokens), or if there are no pictures.
     */
    uint32_t tokens_per_image;
    /**
     * The device that the model runs on, or would run on; never MOXIN_BACKEND_AUTO.
     */
    moxin_backend backend;
    /**
     * The type of activations; never MOXIN_DTYPE_AUTO.
     */
    moxin_dtype dtype;
    /**
     * The bits per value of the scheme that most quantized matrices have; 0 if none is quantized.
     */
    uint32_t quant_bits;
    /**
     * The group size of that scheme; 0 if none is quantized.
     */
    uint32_t quant_group_size;
    /**
     * The mode of that scheme.
     */
    moxin_quant_mode quant_mode;
    /**
     * The architecture as named in config.json, such as "prismatic"; NUL-terminated, truncated if
     * longer.
     */
    char model_type[32];
    /**
     * The maximum number of pictures in a conversation; 0: as many as fit into the context, or none
     * if text_only is not 0.
     */
    uint32_t max_images;
    /**
     * Not 0 if the model supports system text.
     */
    uint32_t takes_system;
    /**
     * Not 0 if a conversation can continue after an answer; 0 if it ends with the answer.
     */
    uint32_t takes_turns;
    /**
     * Not 0 if answers can have boxes and points: see moxin_model_locate.
     */
    uint32_t grounding;
    /**
     * The prompt to use when the user asks nothing, in the words that the model was trained with;
     * NUL-terminated.
     */
    char default_prompt[64];
    /**
     * Not 0 if the model reads text only: it takes no pictures.
     */
    uint32_t text_only;
    /**
     * Not 0 if the model reads videos: see moxin_session_add_video.
     */
    uint32_t takes_videos;
} moxin_model_info;

/**
 * Parameters of a session.
 */
typedef struct moxin_session_params {
    /**
     * sizeof(moxin_session_params)
     */
    size_t struct_size;
    /**
     * 0, the default: always the most likely token. Higher values: more variety.
     */
    float temperature;
    /**
     * Samples from this many of the most likely tokens. 0, the default: from all.
     */
    uint32_t top_k;
    /**
     * Samples from the most likely tokens that together have this probability. Default: 1, from
     * all.
     */
    float top_p;
    /**
     * Samples from tokens at least this fraction as likely as the most likely one. Default: 0,
     * from all.
     */
    float min_p;
    /**
     * A value above 1 makes tokens that already occurred less likely. Default: 1.
     */
    float repetition_penalty;
    /**
     * The number of latest tokens that repetition_penalty looks at. 0, the default: the whole
     * conversation.
     */
    uint32_t repetition_window;
    /**
     * The same seed samples the same tokens. Default: 0.
     */
    uint64_t seed;
    /**
     * The maximum number of tokens in an answer. Default: 512.
     */
    uint32_t max_tokens;
    /**
     * The maximum number of positions in the whole conversation, including image tokens. 0, the
     * default: 4096, more if a single picture needs more, less if the model was made for less.
     */
    uint32_t max_context;
    /**
     * The number of prompt positions read per step. Default: 256.
     */
    uint32_t prefill_chunk;
    /**
     * The number of most likely tokens that each TEXT event lists, 0 to 20. Default: 0.
     */
    uint32_t logprobs;
    /**
     * Texts that end an answer and are not part of it: NUL-terminated UTF-8 of 1 to 1024 bytes
     * each. May be NULL if stop_count is 0.
     */
    const char *const *stop;
    /**
     * The number of stop texts, 0 to 64.
     */
    size_t stop_count;
    /**
     * Is subtracted from a token's logit once for each time that the answer already contains it: -2
     * to 2. Default: 0.
     */
    float frequency_penalty;
    /**
     * Is subtracted from the logits of all tokens that the answer already contains: -2 to 2.
     * Default: 0.
     */
    float presence_penalty;
    /**
     * Separates conversations in the prefix cache: an ended one is only continued by those with the
     * same number. Give each user of a server another one, so that times tell nobody what others
     * asked. Default: 0.
     */
    uint64_t prefix_scope;
    /**
     * The budget of each picture that is added without one of its own. NULL, the default: that of
     * the model folder. It is read during the call.
     */
    const struct moxin_pixel_budget *image_budget;
} moxin_session_params;

/**
 * The memory that a model in a folder needs, in bytes.
 */
typedef struct moxin_memory_estimate {
    /**
     * sizeof(moxin_memory_estimate)
     */
    size_t struct_size;
    /**
     * The loaded weights.
     */
    uint64_t weights;
    /**
     * Keys and values per position of a conversation.
     */
    uint64_t kv_per_token;
    /**
     * Keys and values of a conversation of max_context positions.
     */
    uint64_t kv_total;
    /**
     * The peak while loading.
     */
    uint64_t load_peak;
    /**
     * The temporary memory of encoding a picture, in addition to the weights.
     */
    uint64_t vision_peak;
    /**
     * The temporary memory of a step, in addition to weights, keys and values.
     */
    uint64_t step_peak;
    /**
     * The overall peak: loading the model, encoding a picture, and one conversation of max_context
     * positions.
     */
    uint64_t total;
    /**
     * The memory available now.
     */
    uint64_t available;
} moxin_memory_estimate;

/**
 * The scheme of some modules.
 */
typedef struct moxin_module_quant {
    /**
     * The path of a module in the checkpoint, such as "language_model.lm_head", or a prefix of
     * several that ends before a dot, such as "language_model.model.layers.0"; NUL-terminated
     * UTF-8.
     */
    const char *path;
    /**
     * 2, 3, 4, 5, 6 or 8. 0: the modules are not quantized.
     */
    uint32_t bits;
    /**
     * 32, 64 or 128.
     */
    uint32_t group_size;
    /**
     * A mode other than MOXIN_QUANT_MODE_AFFINE has fixed bits and group size; bits must still not
     * be 0.
     */
    moxin_quant_mode mode;
    /**
     * Must be 0.
     */
    uint32_t reserved;
} moxin_module_quant;

/**
 * Which modules are quantized, and how. The defaults are those of mlx-community: the language
 * model with its embedding and output head, with 4 bits and a group size of 64.
 */
typedef struct moxin_quant_params {
    /**
     * sizeof(moxin_quant_params)
     */
    size_t struct_size;
    /**
     * 2, 3, 4, 5, 6 or 8. Default: 4.
     */
    uint32_t bits;
    /**
     * The number of neighbors in a row that share a scale and a bias: 32, 64 or 128. Default: 64.
     */
    uint32_t group_size;
    /**
     * If not 0, the token embedding is quantized. Default: 1.
     */
    uint32_t embedding;
    /**
     * If not 0, the output head is quantized. Default: 1.
     */
    uint32_t head;
    /**
     * If not 0, vision encoders and projector are quantized, if the group size divides their
     * widths. Default: 0.
     */
    uint32_t vision;
    /**
     * The quantization mode. Default: MOXIN_QUANT_MODE_AFFINE. Other modes have fixed bits and
     * group size, and ignore the fields above.
     */
    moxin_quant_mode mode;
    /**
     * Exceptions. If several match a module, the one with the longest path applies. May be NULL if
     * module_count is 0.
     */
    const struct moxin_module_quant *modules;
    /**
     * The number of entries in modules.
     */
    size_t module_count;
} moxin_quant_params;

/**
 * The author of a text: one of MOXIN_ROLE_*.
 */
typedef uint32_t moxin_role;

/**
 * Options for reading a video from a file.
 */
typedef struct moxin_video_params {
    /**
     * sizeof(moxin_video_params)
     */
    size_t struct_size;
    /**
     * The number of frames to read per second; 0: all frames of the file. Default: 2, as the models
     * were trained.
     */
    double fps;
    /**
     * The maximum number of pixels in a frame. A larger video is refused after its header is read.
     * Default: 100,000,000.
     */
    uint64_t max_pixels;
    /**
     * The maximum number of frames; a longer video is read with fewer per second. Default: 768.
     */
    uint32_t max_frames;
    /**
     * If not 0, the orientation in the file's metadata is ignored. Default: 0, the frames are
     * turned upright.
     */
    uint32_t ignore_orientation;
} moxin_video_params;

/**
 * The size of a video.
 */
typedef struct moxin_video_info {
    /**
     * sizeof(moxin_video_info)
     */
    size_t struct_size;
    /**
     * The number of frames per second, on average.
     */
    double fps;
    /**
     * The number of frames.
     */
    uint32_t frame_count;
    /**
     * The number of columns.
     */
    uint32_t width;
    /**
     * The number of rows.
     */
    uint32_t height;
    /**
     * Must be ignored.
     */
    uint32_t reserved;
} moxin_video_info;

/**
 * Three bytes: red, green, blue.
 */
#define MOXIN_PIXEL_FORMAT_RGB8 0

/**
 * Four bytes: red, green, blue, alpha. Alpha is ignored, not composited.
 */
#define MOXIN_PIXEL_FORMAT_RGBA8 1

/**
 * Four bytes: blue, green, red, alpha, the layout of Core Video. Alpha is ignored.
 */
#define MOXIN_PIXEL_FORMAT_BGRA8 2

/**
 * One byte: gray.
 */
#define MOXIN_PIXEL_FORMAT_GRAY8 3

/**
 * The GPU if there is one, otherwise the CPU.
 */
#define MOXIN_BACKEND_AUTO 0

/**
 * The CPU.
 */
#define MOXIN_BACKEND_CPU 1

/**
 * An Apple GPU.
 */
#define MOXIN_BACKEND_METAL 2

/**
 * An Nvidia GPU.
 */
#define MOXIN_BACKEND_CUDA 3

/**
 * Nothing.
 */
#define MOXIN_LOG_LEVEL_OFF 0

/**
 * Failures.
 */
#define MOXIN_LOG_LEVEL_ERROR 1

/**
 * Unexpected conditions, such as a request that was refused for lack of memory.
 */
#define MOXIN_LOG_LEVEL_WARN 2

/**
 * Completed work: a loaded model, an answer, and how long it took.
 */
#define MOXIN_LOG_LEVEL_INFO 3

/**
 * Details, and every error that a call returned.
 */
#define MOXIN_LOG_LEVEL_DEBUG 4

/**
 * Everything.
 */
#define MOXIN_LOG_LEVEL_TRACE 5

/**
 * The best type for the backend: bfloat16 on a GPU, float32 on the CPU.
 */
#define MOXIN_DTYPE_AUTO 0

/**
 * float16: more precise than bfloat16, with a smaller range.
 */
#define MOXIN_DTYPE_F16 1

/**
 * bfloat16, the type that checkpoints are stored in.
 */
#define MOXIN_DTYPE_BF16 2

/**
 * float32.
 */
#define MOXIN_DTYPE_F32 3

/**
 * The environment variable `MOXIN_CPU_KERNELS` ("own" or "mlx"). If it is not set: this library's
 * own kernels, or MLX's on Apple systems.
 */
#define MOXIN_CPU_KERNELS_AUTO 0

/**
 * This library's own kernels, if activations are float32.
 */
#define MOXIN_CPU_KERNELS_OWN 1

/**
 * MLX's kernels.
 */
#define MOXIN_CPU_KERNELS_MLX 2

/**
 * Reading weights.
 */
#define MOXIN_STAGE_LOAD 0

/**
 * Running the vision encoders.
 */
#define MOXIN_STAGE_ENCODE 1

/**
 * Reading the prompt.
 */
#define MOXIN_STAGE_PREFILL 2

/**
 * Quantizing matrices.
 */
#define MOXIN_STAGE_QUANTIZE 3

/**
 * Writing weights.
 */
#define MOXIN_STAGE_SAVE 4

/**
 * An integer of 2, 3, 4, 5, 6 or 8 bits, times a scale, plus a bias. 32, 64 or 128 neighbors share
 * scale and bias.
 */
#define MOXIN_QUANT_MODE_AFFINE 0

/**
 * 4-bit floats; 32 share a power of two.
 */
#define MOXIN_QUANT_MODE_MXFP4 1

/**
 * 8-bit floats; 32 share a power of two.
 */
#define MOXIN_QUANT_MODE_MXFP8 2

/**
 * 4-bit floats; 16 share an 8-bit scale.
 */
#define MOXIN_QUANT_MODE_NVFP4 3

/**
 * Instructions before the conversation.
 */
#define MOXIN_ROLE_SYSTEM 0

/**
 * A question.
 */
#define MOXIN_ROLE_USER 1

/**
 * An answer.
 */
#define MOXIN_ROLE_ASSISTANT 2

#ifdef __cplusplus
extern "C" {
#endif // __cplusplus

/**
 * Runs the model's vision encoders on a picture, unless the same picture was encoded before and
 * its features are still in the model's cache. The embedding can take the picture's place in any
 * session of this model, even after the model is loaded again.
 *
 * budget, op and error may be NULL. *out_embedding receives an embedding, which the caller frees
 * with moxin_embedding_free. Progress is reported with stage MOXIN_STAGE_ENCODE.
 *
 * Errors: INVALID_ARGUMENT if the model cannot take the picture or the budget; INVALID_STATE if
 * the model was unloaded; CANCELLED, TIMEOUT, OUT_OF_MEMORY, SUSPENDED, BACKEND.
 */
enum moxin_status moxin_model_encode_image(const struct moxin_model *model,
                                           const struct moxin_image *image,
                                           const struct moxin_pixel_budget *budget,
                                           const struct moxin_op *op,
                                           struct moxin_embedding **out_embedding,
                                           struct moxin_error **error);

/**
 * Encodes a video, as moxin_model_encode_image does a picture.
 *
 * Errors: those of moxin_model_encode_image; INVALID_ARGUMENT if the model reads no videos.
 */
enum moxin_status moxin_model_encode_video(const struct moxin_model *model,
                                           const struct moxin_video *video,
                                           const struct moxin_pixel_budget *budget,
                                           const struct moxin_op *op,
                                           struct moxin_embedding **out_embedding,
                                           struct moxin_error **error);

/**
 * Gets the size of an embedding. out_info->struct_size must be set.
 */
enum moxin_status moxin_embedding_info_get(const struct moxin_embedding *embedding,
                                           struct moxin_embedding_info *out_info,
                                           struct moxin_error **error);

/**
 * Copies the values of an embedding, token by token. values has room for capacity floats;
 * token_count * hidden_size floats are needed.
 *
 * Errors: INVALID_ARGUMENT if capacity is too small (the message names the number needed);
 * SUSPENDED, BACKEND.
 */
enum moxin_status moxin_embedding_copy(const struct moxin_embedding *embedding,
                                       float *values,
                                       size_t capacity,
                                       struct moxin_error **error);

/**
 * Frees an embedding. NULL is ignored.
 */
void moxin_embedding_free(struct moxin_embedding *embedding);

/**
 * Returns the name of a status, such as "MOXIN_STATUS_BUSY", or "unknown status" for an unknown
 * number. The text lives as long as the library.
 */
const char *moxin_status_name(uint32_t status);

/**
 * Returns the status of an error; MOXIN_STATUS_OK for NULL.
 */
enum moxin_status moxin_error_status(const struct moxin_error *error);

/**
 * Returns a message for people: what went wrong, where, and what to do. It lives as long as the
 * error. Empty for NULL.
 */
struct moxin_str moxin_error_message(const struct moxin_error *error);

/**
 * Returns the cause of an error, such as the system's message for a file that could not be read;
 * NULL if there is none, and for NULL. Each cause has the status of the first error. Causes live
 * as long as the first error and are freed with it, never on their own.
 */
const struct moxin_error *moxin_error_cause(const struct moxin_error *error);

/**
 * Frees an error and its causes. NULL is ignored.
 */
void moxin_error_free(struct moxin_error *error);

/**
 * Performs one step of the answer (encodes a picture, reads one chunk of the prompt, or generates
 * one token) and reports it in *out_event, whose struct_size must be set. Call it until the event
 * is FINISHED.
 *
 * moxin_session_cancel takes effect before the next layer: the event is FINISHED with
 * MOXIN_FINISH_REASON_CANCELLED, and the turn is rolled back. A failure also rolls the turn back:
 * its texts and pictures are removed, and the session can take another question. After SUSPENDED
 * nothing is rolled back: the answer stays in progress, and the next step continues it. After
 * BACKEND and PANIC the whole prompt is read again.
 *
 * Errors: INVALID_STATE if there is nothing to answer or the model was unloaded; CONTEXT_FULL if
 * the prompt does not fit; OUT_OF_MEMORY, BUSY, SUSPENDED, BACKEND.
 */
enum moxin_status moxin_session_step(const struct moxin_session *session,
                                     struct moxin_event *out_event,
                                     struct moxin_error **error);

/**
 * Generates the answer on a thread of the library and calls on_event with each event. Exactly one
 * event is FINISHED, and it is the last; destroy(user_data) is then called once. The call itself
 * returns immediately.
 *
 * Inside on_event, moxin_session_cancel and moxin_session_stats work as usual, moxin_session_free
 * does not wait, and every other call on the session fails with BUSY. In the last event the
 * session is already free, so that the next question can be asked there. While the library is
 * suspended, the stream pauses. When the process exits, on_event is no longer called.
 *
 * op may be NULL. Its cancel object ends the answer as moxin_session_cancel does; its time limit
 * ends it with MOXIN_FINISH_REASON_ERROR and TIMEOUT; its progress callback must be NULL. destroy
 * may be NULL; if the call fails, destroy was called before the call returns.
 *
 * Errors: INVALID_STATE if there is nothing to answer; BUSY.
 */
enum moxin_status moxin_session_start(const struct moxin_session *session,
                                      const struct moxin_op *op,
                                      moxin_event_fn on_event,
                                      void *user_data,
                                      moxin_destroy_fn destroy,
                                      struct moxin_error **error);

/**
 * Reads the prompt ahead of time, so that the first token of the answer comes sooner: encodes the
 * pictures and computes keys and values, in chunks between which other sessions take turns. Before
 * the first question it reads the pictures alone.
 *
 * op and error may be NULL. Progress is reported with stages MOXIN_STAGE_ENCODE and
 * MOXIN_STAGE_PREFILL. Cancelling, the time limit and moxin_suspend take effect before the next
 * block of an encoder or layer of the decoder.
 *
 * Errors: those of moxin_session_step; INVALID_STATE if there is nothing to read; CANCELLED,
 * TIMEOUT. No failure leaves an answer in progress. What happens to the conversation depends on
 * the error:
 *
 * - SUSPENDED: everything is kept. The next call, or an answer, continues from here, and texts may
 *   be added first.
 * - Any other error while a picture is read alone: the picture is kept. After CANCELLED and
 *   TIMEOUT the part that was read is kept too. A picture kept in this way, or after SUSPENDED,
 *   may be replaced: adding another one does not fail.
 * - Any other error if there is a question: the turn is rolled back, with its texts and pictures.
 */
enum moxin_status moxin_session_prefill(const struct moxin_session *session,
                                        const struct moxin_op *op,
                                        struct moxin_error **error);

/**
 * Gets counts and times of the latest turn, as of its latest step, even while an answer is being
 * generated. out_stats->struct_size must be set. Never blocks.
 */
enum moxin_status moxin_session_stats(const struct moxin_session *session,
                                      struct moxin_stats *out_stats,
                                      struct moxin_error **error);

/**
 * Sets all parameters to their defaults. struct_size is sizeof(moxin_image_params); nothing beyond
 * it is written.
 */
void moxin_image_params_init(struct moxin_image_params *params, size_t struct_size);

/**
 * Reads a picture from a file: PNG, JPEG, WebP, GIF (first frame), BMP or TIFF. The format is
 * detected from the content.
 *
 * path is NUL-terminated UTF-8. params and error may be NULL. *out_image receives an image, which
 * the caller frees with moxin_image_free.
 *
 * Errors: NOT_FOUND, IO, UNSUPPORTED_IMAGE; INVALID_ARGUMENT if the path is not UTF-8;
 * OUT_OF_MEMORY if reading or decoding needs more memory than is available or than
 * moxin_memory_set_limits allows. This is checked first, and the message has both figures.
 */
enum moxin_status moxin_image_from_file(const char *path,
                                        const struct moxin_image_params *params,
                                        struct moxin_image **out_image,
                                        struct moxin_error **error);

/**
 * Reads a picture from the bytes of a file, as moxin_image_from_file does. The bytes may be freed
 * when the call returns.
 *
 * Errors: UNSUPPORTED_IMAGE; OUT_OF_MEMORY as for moxin_image_from_file.
 */
enum moxin_status moxin_image_from_bytes(const void *data,
                                         size_t len,
                                         const struct moxin_image_params *params,
                                         struct moxin_image **out_image,
                                         struct moxin_error **error);

/**
 * Copies a picture from pixels in memory, with rows from top to bottom. stride is the number of
 * bytes from the start of a row to the start of the next. The last row may end with its last
 * pixel.
 *
 * Errors: INVALID_ARGUMENT if the picture is empty, the format is unknown, or the stride is
 * shorter than a row; OUT_OF_MEMORY if there is no room for the copy.
 */
enum moxin_status moxin_image_from_pixels(const void *pixels,
                                          uint32_t width,
                                          uint32_t height,
                                          size_t stride,
                                          moxin_pixel_format format,
                                          struct moxin_image **out_image,
                                          struct moxin_error **error);

/**
 * Gets the size of a picture in pixels, after it was turned upright. out_width and out_height may
 * each be NULL.
 */
enum moxin_status moxin_image_size(const struct moxin_image *image,
                                   uint32_t *width,
                                   uint32_t *height,
                                   struct moxin_error **error);

/**
 * Frees a picture. NULL is ignored.
 */
void moxin_image_free(struct moxin_image *image);

/**
 * Returns the ABI version of the library: the MOXIN_ABI_VERSION of the header that it was built
 * with.
 */
uint32_t moxin_abi_version(void);

/**
 * Returns the library's version, such as "0.1.0". The text lives as long as the library.
 */
const char *moxin_version(void);

/**
 * Describes the build as JSON: "version", "abi", "mlx" (its version), "target", "backends" (those
 * that are available now) and "models" (the model_type of each supported architecture). The text
 * lives as long as the library. In a forked child it may be "{}".
 */
const char *moxin_build_info(void);

/**
 * Returns whether models can run on a backend now. Returns false for an unknown backend.
 */
bool moxin_backend_available(moxin_backend backend);

/**
 * Sets the path of Metal's kernels, mlx.metallib. Call it before any other function except
 * moxin_version and moxin_abi_version. Only needed if the file is neither next to the library nor
 * in Resources/ next to it.
 *
 * path is NUL-terminated UTF-8.
 *
 * Errors: NOT_FOUND; INVALID_STATE if MLX is already in use; BACKEND_UNAVAILABLE if the library
 * was built without Metal, as on Linux.
 */
enum moxin_status moxin_set_metallib_path(const char *path, struct moxin_error **error);

/**
 * Sets the log callback and the level; if log is NULL, logging is disabled. A callback set earlier
 * still receives the messages logged before this call.
 *
 * log is called on a dedicated thread of the library, with one message at a time. It may block,
 * and may call any function of this header. Messages logged on that thread are dropped. So are
 * messages that arrive faster than log handles them: at most 1,024 messages or 1 MiB wait, and one
 * message then reports how many were dropped.
 *
 * destroy(user_data) is called exactly once: on that thread after the last message, or before this
 * call returns if it fails or log is NULL. destroy may be NULL. When the process exits, neither is
 * called any more.
 *
 * Errors: INVALID_ARGUMENT for an unknown level; INVALID_STATE if the process is a Rust program
 * with a logger of its own, or if the thread cannot be started. On error the previous callback
 * stays.
 */
enum moxin_status moxin_set_log(moxin_log_fn log,
                                moxin_log_level max_level,
                                void *user_data,
                                moxin_destroy_fn destroy,
                                struct moxin_error **error);

/**
 * Sets the number of threads that the library's own CPU kernels use, for the whole process. 0, the
 * default, uses one per core and ignores the environment variable `MOXIN_CPU_THREADS`. Results do
 * not depend on it.
 *
 * The maximum is four per CPU that the process may use, or 64 if that is more. A
 * `MOXIN_CPU_THREADS` that is not a number in this range is ignored with a warning.
 *
 * Errors: INVALID_ARGUMENT if threads is above the maximum; nothing changes.
 */
enum moxin_status moxin_set_cpu_threads(uint32_t threads);

/**
 * Stops all computing, for an app that moves to the background, where iOS does not allow GPU work.
 *
 * Operations fail with MOXIN_STATUS_SUSPENDED until moxin_resume. Running operations fail at their
 * next tensor, block or layer; streams pause and continue later. Conversations are kept. Calls
 * that compute nothing still work: adding to a conversation, cancelling, freeing,
 * moxin_model_unload and moxin_memory_trim. The call returns when nothing is running any more.
 *
 * Errors: TIMEOUT if something is still running after drain_timeout_ms milliseconds; the library
 * is suspended all the same.
 */
enum moxin_status moxin_suspend(uint32_t drain_timeout_ms, struct moxin_error **error);

/**
 * Resumes computing after moxin_suspend. Does nothing if the library is not suspended.
 */
void moxin_resume(void);

/**
 * Reads the boxes and points in an answer about one picture. width, height and budget are those of
 * the picture in the conversation. Places outside the picture are moved to its edge; the last box
 * of an answer that was cut off is left out.
 *
 * The models write boxes in different forms: PaliGemma as `<loc0123>` tokens if the prompt is
 * "detect cat ; dog", Qwen-VL as pairs or as JSON if the prompt asks for it.
 *
 * budget and error may be NULL. *out_locations receives the locations, in the order of the answer,
 * which the caller frees with moxin_locations_free.
 *
 * Errors: INVALID_STATE if the model was not trained to write boxes or points:
 * moxin_model_info.grounding; INVALID_ARGUMENT if the answer is not UTF-8, or the model cannot take
 * the size or the budget.
 */
enum moxin_status moxin_model_locate(const struct moxin_model *model,
                                     const char *answer,
                                     size_t answer_len,
                                     uint32_t width,
                                     uint32_t height,
                                     const struct moxin_pixel_budget *budget,
                                     struct moxin_locations **out_locations,
                                     struct moxin_error **error);

/**
 * Returns the number of locations; 0 for NULL.
 */
size_t moxin_locations_count(const struct moxin_locations *locations);

/**
 * Gets a location. out_location->struct_size must be set.
 *
 * Errors: INVALID_ARGUMENT if index is not less than moxin_locations_count.
 */
enum moxin_status moxin_locations_get(const struct moxin_locations *locations,
                                      size_t index,
                                      struct moxin_location *out_location,
                                      struct moxin_error **error);

/**
 * Frees locations. NULL is ignored.
 */
void moxin_locations_free(struct moxin_locations *locations);

/**
 * Gets the memory that the library uses now. out_stats->struct_size must be set. Never blocks.
 */
enum moxin_status moxin_memory_stats_get(struct moxin_memory_stats *out_stats,
                                         struct moxin_error **error);

/**
 * Sets the limits of the memory in use and of MLX's buffer cache, in bytes. UINT64_MAX: only the
 * machine limits it.
 *
 * Memory that is already in use stays allocated. A load, a session or a picture that would exceed
 * the limit is refused with MOXIN_STATUS_OUT_OF_MEMORY and both figures, before anything is
 * allocated.
 */
enum moxin_status moxin_memory_set_limits(uint64_t total_bytes,
                                          uint64_t cache_bytes,
                                          struct moxin_error **error);

/**
 * Releases memory kept for reuse: MLX's free buffers, the cache of encoded pictures, and ended
 * conversations. Call it
 * when the system reports memory pressure. Does not block: the memory is released as soon as
 * nothing is being computed.
 */
void moxin_memory_trim(void);

/**
 * Sets all parameters to their defaults. struct_size is sizeof(moxin_model_params); nothing beyond
 * it is written.
 */
void moxin_model_params_init(struct moxin_model_params *params, size_t struct_size);

/**
 * Loads a model from a Hugging Face folder (config.json, weights, tokenizer.json, and
 * preprocessor_config.json if it takes pictures).
 *
 * path is the folder, NUL-terminated UTF-8. params, op and error may be NULL. *out_model receives
 * a model, which the caller frees with moxin_model_free. Progress is reported with stage
 * MOXIN_STAGE_LOAD.
 *
 * Errors: NOT_FOUND, CORRUPT_MODEL, UNSUPPORTED_MODEL and IO, naming the file and the field or
 * tensor; INVALID_ARGUMENT if path is not a folder; OUT_OF_MEMORY before any weight is read;
 * BACKEND_UNAVAILABLE, CANCELLED, TIMEOUT, SUSPENDED.
 */
enum moxin_status moxin_model_load(const char *path,
                                   const struct moxin_model_params *params,
                                   const struct moxin_op *op,
                                   struct moxin_model **out_model,
                                   struct moxin_error **error);

/**
 * Describes the model in a folder without loading it, from config.json and the headers of the
 * weight files. out_info->struct_size must be set.
 *
 * path is the folder, NUL-terminated UTF-8.
 *
 * Errors: NOT_FOUND, CORRUPT_MODEL, UNSUPPORTED_MODEL, IO; INVALID_ARGUMENT if path is not a
 * folder.
 */
enum moxin_status moxin_model_inspect(const char *path,
                                      struct moxin_model_info *out_info,
                                      struct moxin_error **error);

/**
 * Estimates the memory that the model in a folder needs when loaded with params and used in one
 * session with session_params. Nothing is loaded: the estimate uses config.json and the headers of
 * the weight files. out_estimate->struct_size must be set.
 *
 * path is the folder, NUL-terminated UTF-8. params, session_params and error may be NULL.
 *
 * Errors: NOT_FOUND, CORRUPT_MODEL, UNSUPPORTED_MODEL, IO, INVALID_ARGUMENT, BACKEND_UNAVAILABLE.
 */
enum moxin_status moxin_model_estimate(const char *path,
                                       const struct moxin_model_params *params,
                                       const struct moxin_session_params *session_params,
                                       struct moxin_memory_estimate *out_estimate,
                                       struct moxin_error **error);

/**
 * Gets the properties of a model. out_info->struct_size must be set.
 */
enum moxin_status moxin_model_info_get(const struct moxin_model *model,
                                       struct moxin_model_info *out_info,
                                       struct moxin_error **error);

/**
 * Gets the number of positions that a picture of this size takes in a conversation. budget and
 * error may be NULL.
 *
 * Errors: INVALID_ARGUMENT if the model cannot take the size or the budget.
 */
enum moxin_status moxin_model_image_tokens(const struct moxin_model *model,
                                           uint32_t width,
                                           uint32_t height,
                                           const struct moxin_pixel_budget *budget,
                                           uint32_t *out_tokens,
                                           struct moxin_error **error);

/**
 * Gets a field of the model's config.json by its path, such as "model_type",
 * "text_config.num_hidden_layers" or "image_sizes.0". A string is returned without quotes,
 * anything else as JSON. *out_value lives as long as the model's handle.
 *
 * key is NUL-terminated UTF-8.
 *
 * Errors: NOT_FOUND if there is no such field.
 */
enum moxin_status moxin_model_metadata(const struct moxin_model *model,
                                       const char *key,
                                       struct moxin_str *out_value,
                                       struct moxin_error **error);

/**
 * Saves the model in its current form to a folder that moxin_model_load can read. The format is
 * that of mlx-community: the tensor names of the original folder, ".scales" and ".biases" next to
 * quantized weights, "quantization" in config.json, and files of at most 5 GB. Weights that are
 * not quantized are copied exactly. Of the other files, only known ones are copied: tokenizer,
 * processor and generation settings, chat templates, README.md and licenses. A link is followed if
 * it leads to a file in the same folder or, in a snapshot of the Hugging Face cache, into that
 * cache.
 *
 * The folder appears only after everything is written. With overwrite, an empty folder or a model
 * folder is replaced, with all its files; a model folder has only files, among them a config.json
 * with a "model_type". At every moment there is a complete model at the path, even if the process
 * is killed; in that case a hidden folder whose name starts with ".moxin-vlm-" may be left next to
 * it. Only if the file system cannot exchange two folders is there a short moment without one.
 *
 * directory is NUL-terminated UTF-8. op and error may be NULL. Progress is reported with stage
 * MOXIN_STAGE_SAVE.
 *
 * Errors: INVALID_ARGUMENT if the path exists and overwrite is false, if it is not such a folder,
 * if it is or contains the folder that the model was loaded from, or if a file to be copied is a
 * link to elsewhere; NOT_FOUND if the folder that the model was loaded from is gone; CORRUPT_MODEL
 * if a file in it is no longer a file; INVALID_STATE if the model was unloaded, or if the folder
 * to be replaced changes in the meantime; IO, CANCELLED, TIMEOUT, SUSPENDED. On error nothing new
 * is left behind, and an existing folder stays as it was.
 */
enum moxin_status moxin_model_save(const struct moxin_model *model,
                                   const char *directory,
                                   bool overwrite,
                                   const struct moxin_op *op,
                                   struct moxin_error **error);

/**
 * Releases the memory of the weights while the handle and its sessions stay. Calls that need the
 * weights then fail with INVALID_STATE. An embedding can still be used with the same model loaded
 * again. Works while the library is suspended. Waits for the current step.
 */
enum moxin_status moxin_model_unload(const struct moxin_model *model, struct moxin_error **error);

/**
 * Frees a model. Its memory is released with the last of its sessions. NULL is ignored.
 */
void moxin_model_free(struct moxin_model *model);

/**
 * Creates a cancel object, which the caller frees with moxin_cancel_free. It can be used for any
 * number of operations.
 */
struct moxin_cancel *moxin_cancel_new(void);

/**
 * Cancels every operation that has this cancel object, now or later; they return
 * MOXIN_STATUS_CANCELLED. NULL is ignored. The call only sets a flag, so it is safe in a signal
 * handler.
 */
void moxin_cancel_trigger(const struct moxin_cancel *cancel);

/**
 * Frees a cancel object. Operations that use it continue. NULL is ignored.
 */
void moxin_cancel_free(struct moxin_cancel *cancel);

/**
 * Sets all parameters to their defaults. struct_size is sizeof(moxin_quant_params); nothing beyond
 * it is written.
 */
void moxin_quant_params_init(struct moxin_quant_params *params, size_t struct_size);

/**
 * Quantizes a model in memory, one matrix at a time, so that the peak is the model plus one
 * matrix. Matrices that are already quantized stay as they are. Sessions continue, and keep what
 * they have computed.
 *
 * params, op and error may be NULL. Progress is reported with stage MOXIN_STAGE_QUANTIZE.
 *
 * Errors: INVALID_ARGUMENT if MLX does not have the scheme; INVALID_STATE if nothing is left to
 * quantize or the model was unloaded; CANCELLED, TIMEOUT, OUT_OF_MEMORY, SUSPENDED, BACKEND. On
 * error the model stays as it was: replaced matrices are read again from the folder or, if the
 * folder has changed, were kept in memory.
 */
enum moxin_status moxin_model_quantize(const struct moxin_model *model,
                                       const struct moxin_quant_params *params,
                                       const struct moxin_op *op,
                                       struct moxin_error **error);

/**
 * Sets all parameters to their defaults. struct_size is sizeof(moxin_session_params); nothing
 * beyond it is written.
 */
void moxin_session_params_init(struct moxin_session_params *params, size_t struct_size);

/**
 * Starts a conversation. params and error may be NULL. *out_session receives a session, which the
 * caller frees with moxin_session_free. The session keeps the parts of the model that it needs.
 *
 * Errors: INVALID_ARGUMENT, naming the parameter; OUT_OF_MEMORY if a conversation of max_context
 * positions would not fit; INVALID_STATE if the model was unloaded.
 */
enum moxin_status moxin_session_new(const struct moxin_model *model,
                                    const struct moxin_session_params *params,
                                    struct moxin_session **out_session,
                                    struct moxin_error **error);

/**
 * Copies a session with its conversation so far, for example to ask two questions about one
 * picture without reading it twice. *out_session receives a session, which the caller frees with
 * moxin_session_free.
 *
 * Errors: INVALID_STATE while an answer is being generated, or if the model was unloaded; BUSY;
 * OUT_OF_MEMORY if there is no room for a copy of keys and values.
 */
enum moxin_status moxin_session_fork(const struct moxin_session *session,
                                     struct moxin_session **out_session,
                                     struct moxin_error **error);

/**
 * Adds text to the conversation: a question, which the next steps answer, or an answer that
 * already exists. len is the number of bytes, or MOXIN_STRLEN.
 *
 * The text is never interpreted: if it spells a control token such as `</s>`, the model reads the
 * characters, not the token. See moxin_session_add_prompt for the opposite.
 *
 * Consecutive texts and pictures of one role are parts of one message.
 *
 * Errors: INVALID_STATE if role is SYSTEM and the model does not support it, if a question follows
 * an answer and the model does not support that (see moxin_model_info), or while an answer is
 * being generated; CONTEXT_FULL if the length in bytes already shows that the conversation cannot
 * fit; BUSY.
 */
enum moxin_status moxin_session_add_text(const struct moxin_session *session,
                                         moxin_role role,
                                         const char *data,
                                         size_t len,
                                         struct moxin_error **error);

/**
 * Adds prompt text unchanged, for prompts in a format of your own. Control tokens spelled in the
 * text are control tokens. Nothing is added around it, except the `<s>` at the start of the whole
 * prompt if it is missing. Do not use it for text from users; moxin_session_add_text never turns
 * text into control tokens. len is the number of bytes, or MOXIN_STRLEN.
 *
 * The text is a message, which the next steps answer. Texts added one after the other are joined
 * without a separator. The answer is not trimmed at the start, appears unchanged in later prompts,
 * and is closed by `</s>` like every answer. Such messages can be mixed with ordinary ones;
 * moxin_session_rewind and moxin_session_fork treat them alike. A picture is placed after the
 * first token, as always.
 *
 * Errors: INVALID_STATE while an answer is being generated, or if a question added with
 * moxin_session_add_text waits for its answer; CONTEXT_FULL as for moxin_session_add_text; BUSY.
 */
enum moxin_status moxin_session_add_prompt(const struct moxin_session *session,
                                           const char *data,
                                           size_t len,
                                           struct moxin_error **error);

/**
 * Adds a picture at the end of the user's message. It is encoded when the model reads it. The
 * image may be freed immediately.
 *
 * If the answer is cancelled or fails, its pictures are removed together with the question. A
 * picture that is added again is not encoded again, because its features are in the model's cache.
 *
 * budget takes the place of the session's; it may be NULL. error may be NULL.
 *
 * Errors: INVALID_STATE for more pictures than moxin_model_info allows, after an answer if the
 * model does not support that, or while an answer is being generated; INVALID_ARGUMENT if the
 * model cannot take the picture or the budget; BUSY.
 */
enum moxin_status moxin_session_add_image(const struct moxin_session *session,
                                          const struct moxin_image *image,
                                          const struct moxin_pixel_budget *budget,
                                          struct moxin_error **error);

/**
 * Adds a video at the end of the user's message, as moxin_session_add_image does a picture. The
 * model reads all of its frames. The video may be freed immediately.
 *
 * budget takes the place of the session's; it may be NULL. Its pixels are those of each frame, and
 * its max_tokens those of the whole video. error may be NULL.
 *
 * Errors: those of moxin_session_add_image; INVALID_ARGUMENT if the model reads no videos (see
 * moxin_model_info.takes_videos).
 */
enum moxin_status moxin_session_add_video(const struct moxin_session *session,
                                          const struct moxin_video *video,
                                          const struct moxin_pixel_budget *budget,
                                          struct moxin_error **error);

/**
 * Adds a picture or a video that was already encoded, as moxin_session_add_image does.
 *
 * Errors: those of moxin_session_add_image; INVALID_ARGUMENT if another model encoded it.
 */
enum moxin_status moxin_session_add_embedding(const struct moxin_session *session,
                                              const struct moxin_embedding *embedding,
                                              struct moxin_error **error);

/**
 * Cancels the answer that is being generated, or the question that waits for one, from any thread.
 * It takes effect within one layer: the step, or the stream's last event, is FINISHED with
 * MOXIN_FINISH_REASON_CANCELLED, and the turn is rolled back. A running moxin_session_prefill
 * fails with CANCELLED. Otherwise the call does nothing, and text added later is not affected.
 * NULL is ignored. The call only sets a flag, so it is safe in a signal handler.
 */
void moxin_session_cancel(const struct moxin_session *session);

/**
 * Replaces all parameters. Applies from the next answer; what was computed is kept. params: NULL
 * stands for the defaults.
 *
 * Errors: INVALID_ARGUMENT, naming the parameter; OUT_OF_MEMORY if a conversation of max_context
 * positions would not fit; INVALID_STATE while an answer is being generated, or if the model was
 * unloaded; BUSY.
 */
enum moxin_status moxin_session_set_params(const struct moxin_session *session,
                                           const struct moxin_session_params *params,
                                           struct moxin_error **error);

/**
 * Gets the number of positions of the prompt that the next step would read, including image
 * tokens. Nothing is computed.
 *
 * Errors: INVALID_STATE if there is nothing to read; CONTEXT_FULL, and INVALID_STATE if the model's
 * template refuses the conversation, after which the question is rolled back; BUSY.
 */
enum moxin_status moxin_session_prompt_tokens(const struct moxin_session *session,
                                              uint32_t *out_tokens,
                                              struct moxin_error **error);

/**
 * Removes all but the first messages of the conversation; its pictures stay. To generate the last
 * answer again, keep one message fewer than there are (moxin_stats.message_count) and take steps.
 * To rephrase the question, keep two fewer. The part of the prompt that still matches is not read
 * again.
 *
 * Errors: INVALID_ARGUMENT if there are fewer messages; INVALID_STATE while an answer is being
 * generated; BUSY.
 */
enum moxin_status moxin_session_rewind(const struct moxin_session *session,
                                       size_t messages_to_keep,
                                       struct moxin_error **error);

/**
 * Removes the whole conversation, its pictures, an answer in progress and a pending cancellation.
 * The parameters stay.
 *
 * Errors: BUSY.
 */
enum moxin_status moxin_session_reset(const struct moxin_session *session,
                                      struct moxin_error **error);

/**
 * Frees a session. An answer in progress is cancelled; if it is streamed, the call waits until the
 * last event was delivered and the stream's user data destroyed. Inside a callback of the library
 * it does not wait; the session is then freed when the callback returns. NULL is ignored.
 */
void moxin_session_free(struct moxin_session *session);

/**
 * Sets all parameters to their defaults. struct_size is sizeof(moxin_video_params); nothing beyond
 * it is written.
 */
void moxin_video_params_init(struct moxin_video_params *params, size_t struct_size);

/**
 * Reads a video from a file: an animated GIF, WebP or PNG. The format is detected from the content.
 * Frames are taken at equal times: each is the one that is shown then. For other formats, decode
 * the frames and use moxin_video_from_frames.
 *
 * path is NUL-terminated UTF-8. params and error may be NULL. *out_video receives a video, which the
 * caller frees with moxin_video_free.
 *
 * Errors: NOT_FOUND, IO; UNSUPPORTED_IMAGE if the file is no animation or has too many frames or
 * pixels; INVALID_ARGUMENT if the path is not UTF-8 or a parameter is out of range; OUT_OF_MEMORY
 * if its frames need more memory than is available or than moxin_memory_set_limits allows.
 */
enum moxin_status moxin_video_from_file(const char *path,
                                        const struct moxin_video_params *params,
                                        struct moxin_video **out_video,
                                        struct moxin_error **error);

/**
 * Reads a video from the bytes of a file, as moxin_video_from_file does. The bytes may be freed
 * when the call returns.
 *
 * Errors: UNSUPPORTED_IMAGE, INVALID_ARGUMENT, OUT_OF_MEMORY, as for moxin_video_from_file.
 */
enum moxin_status moxin_video_from_bytes(const void *data,
                                         size_t len,
                                         const struct moxin_video_params *params,
                                         struct moxin_video **out_video,
                                         struct moxin_error **error);

/**
 * Makes a video of frame_count pictures of one size, which share their pixels with it and may be
 * freed when the call returns. The model reads all of them.
 *
 * times: the time of each frame in seconds, each greater than the one before, or NULL: the frames
 * follow each other fps times per second. fps is ignored if there are times.
 *
 * Errors: INVALID_ARGUMENT if there are no frames or more than 4096, if they differ in size, or if
 * the times or fps are not as described.
 */
enum moxin_status moxin_video_from_frames(const struct moxin_image *const *frames,
                                          size_t frame_count,
                                          const double *times,
                                          double fps,
                                          struct moxin_video **out_video,
                                          struct moxin_error **error);

/**
 * Gets the size of a video. out_info->struct_size must be set.
 */
enum moxin_status moxin_video_info_get(const struct moxin_video *video,
                                       struct moxin_video_info *out_info,
                                       struct moxin_error **error);

/**
 * Frees a video. NULL is ignored.
 */
void moxin_video_free(struct moxin_video *video);

#ifdef __cplusplus
}  // extern "C"
#endif  // __cplusplus

#endif  /* MOXIN_VLM_H */
