/*
 * moxin-vlm: vision-language models in an app. SPDX-License-Identifier: MIT OR Apache-2.0
 *
 * Generated from src/ffi by cbindgen; change it there and run `cargo xtask header`.
 *
 * Results   Functions that can fail return a moxin_status. Outputs are written only on success. Where there is a last parameter
 *           `error`, it may be NULL; else on failure it receives an error that the caller frees with moxin_error_free. What a
 *           function fails with stands at it; besides, any can return NULL_ARGUMENT, INVALID_ARGUMENT and PANIC.
 * Ownership Every handle has one _free function, which accepts NULL. Handles may be freed in any order: a session keeps what it
 *           needs of its model, an embedding needs nothing, a fork does not need the session it was made from.
 * Threads   Every function may be called from any thread. All computing is done on one thread of the library, on which sessions
 *           take turns, a chunk of a prompt or a token each. A second operation on a session that is at work returns
 *           MOXIN_STATUS_BUSY. A handle must not be freed while another thread may call with it, moxin_session_cancel included;
 *           inside a callback it may, for the call that it belongs to keeps alive what it uses.
 * Callbacks Progress is told on the thread that called; a stream's events on a thread of the stream; the log on one of its own.
 *           Inside a callback every function may be called, _free included, which does not wait there for anything. A callback
 *           must return: no exception and no longjmp may leave it.
 * Process   When the process ends, calls in exit handlers are answered at once, and no callback is called any more. In a child
 *           that was forked after the library was first used, every call that can fail returns INVALID_STATE, and frees give
 *           nothing back: fork before the first use, or call exec in the child. Where the library was computing at the fork, the
 *           child's exit may skip handlers that were registered before the library's first use.
 * Structs   Parameter structs are set up by their _init function, which also writes struct_size; NULL stands for the defaults.
 *           Structs that receive results have struct_size set by the caller: `moxin_event event = { sizeof event };`
 * Text      UTF-8. What comes in is a pointer and a length, or MOXIN_STRLEN for text that ends with NUL. What goes out is also
 *           NUL-terminated.
 */

#ifndef MOXIN_VLM_H
#define MOXIN_VLM_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/**
 * Stands for the length of a text that ends with NUL.
 */
#define MOXIN_STRLEN SIZE_MAX

/**
 * Grows with every release that breaks what is in this header. Compare with moxin_abi_version before anything else.
 */
#define MOXIN_ABI_VERSION 3



/**
 * How a call ended.
 */
typedef enum moxin_status {
    /**
     * It did what it was asked.
     */
    MOXIN_STATUS_OK = 0,
    /**
     * A pointer that must not be NULL is.
     */
    MOXIN_STATUS_NULL_ARGUMENT = 1,
    /**
     * A value is out of its range, a text is not UTF-8, a struct was not initialized, or an embedding belongs to another model.
     */
    MOXIN_STATUS_INVALID_ARGUMENT = 2,
    /**
     * The call does not fit the state of its object; the message says which call would.
     */
    MOXIN_STATUS_INVALID_STATE = 3,
    /**
     * It was cancelled; everything stays usable.
     */
    MOXIN_STATUS_CANCELLED = 4,
    /**
     * It took longer than its time limit.
     */
    MOXIN_STATUS_TIMEOUT = 5,
    /**
     * Another operation, or a stream, is under way on the same session.
     */
    MOXIN_STATUS_BUSY = 6,
    /**
     * The library is suspended: see moxin_suspend.
     */
    MOXIN_STATUS_SUSPENDED = 7,
    /**
     * A file or folder is not there.
     */
    MOXIN_STATUS_NOT_FOUND = 8,
    /**
     * Reading or writing failed.
     */
    MOXIN_STATUS_IO = 9,
    /**
     * A model's file is damaged or contradicts itself.
     */
    MOXIN_STATUS_CORRUPT_MODEL = 10,
    /**
     * The model is of a kind that the library does not run.
     */
    MOXIN_STATUS_UNSUPPORTED_MODEL = 11,
    /**
     * An image cannot be read, is too large, or is of an unknown format.
     */
    MOXIN_STATUS_UNSUPPORTED_IMAGE = 12,
    /**
     * The prompt does not fit the context.
     */
    MOXIN_STATUS_CONTEXT_FULL = 13,
    /**
     * It would take more memory than is allowed; nothing was allocated.
     */
    MOXIN_STATUS_OUT_OF_MEMORY = 14,
    /**
     * The backend asked for is not on this machine or not in this build.
     */
    MOXIN_STATUS_BACKEND_UNAVAILABLE = 15,
    /**
     * MLX reported an error.
     */
    MOXIN_STATUS_BACKEND = 16,
    /**
     * The library itself is at fault. Please report it, with the error's message.
     */
    MOXIN_STATUS_PANIC = 17,
} moxin_status;

/**
 * What one step brought.
 */
typedef enum moxin_event_kind {
    /**
     * Part of the prompt was read: done of total positions. The first such event may be the picture's encoding, with done 0.
     */
    MOXIN_EVENT_KIND_PREFILL = 0,
    /**
     * One token: text, token_id, logprob.
     */
    MOXIN_EVENT_KIND_TEXT = 1,
    /**
     * The answer is complete: finish, and in text what was still waiting.
     */
    MOXIN_EVENT_KIND_FINISHED = 2,
} moxin_event_kind;

/**
 * Why an answer ended.
 */
typedef enum moxin_finish_reason {
    /**
     * It has not.
     */
    MOXIN_FINISH_REASON_NONE = 0,
    /**
     * The model ended its turn.
     */
    MOXIN_FINISH_REASON_END_OF_TURN = 1,
    /**
     * A stop text came up.
     */
    MOXIN_FINISH_REASON_STOP_SEQUENCE = 2,
    /**
     * The answer reached its maximum length.
     */
    MOXIN_FINISH_REASON_MAX_TOKENS = 3,
    /**
     * The conversation fills the context.
     */
    MOXIN_FINISH_REASON_CONTEXT_FULL = 4,
    /**
     * It was cancelled; the turn was taken back.
     */
    MOXIN_FINISH_REASON_CANCELLED = 5,
    /**
     * It failed, as the event's error says; the turn was taken back. Only in streams: a step returns its status instead.
     */
    MOXIN_FINISH_REASON_ERROR = 6,
} moxin_finish_reason;

/**
 * Cancels operations.
 */
typedef struct moxin_cancel moxin_cancel;

/**
 * A picture's features in the space of the model that made them. Keeps nothing else alive.
 */
typedef struct moxin_embedding moxin_embedding;

/**
 * Why a call failed. Immutable; may be read on any thread.
 */
typedef struct moxin_error moxin_error;

/**
 * A decoded picture.
 */
typedef struct moxin_image moxin_image;

/**
 * A model in memory.
 */
typedef struct moxin_model moxin_model;

/**
 * A conversation with a model.
 */
typedef struct moxin_session moxin_session;

/**
 * How many pixels a picture may have in front of the model's encoder, where the model takes
 * pictures of any size; others ignore it.
 */
typedef struct moxin_pixel_budget {
    /**
     * sizeof(moxin_pixel_budget)
     */
    size_t struct_size;
    /**
     * A picture of fewer is enlarged. 0: what the model's folder says.
     */
    uint64_t min_pixels;
    /**
     * A picture of more is made smaller. 0: what the model's folder says.
     */
    uint64_t max_pixels;
} moxin_pixel_budget;

/**
 * What an operation is doing: one of MOXIN_STAGE_*.
 */
typedef uint32_t moxin_stage;

/**
 * Told the stage of an operation and the part of it that is done, 0 to 1, on the thread that called the operation. Returning false cancels
 * the operation.
 */
typedef bool (*moxin_progress_fn)(void *user_data, moxin_stage stage, float fraction);

/**
 * Options of one long operation. NULL, or zeros behind struct_size, stand for none.
 */
typedef struct moxin_op {
    /**
     * sizeof(moxin_op)
     */
    size_t struct_size;
    /**
     * Told how far the operation is. May be NULL.
     */
    moxin_progress_fn progress;
    /**
     * Passed to progress.
     */
    void *user_data;
    /**
     * Cancels the operation, from any thread. May be NULL.
     */
    const struct moxin_cancel *cancel;
    /**
     * The longest the operation may take, in milliseconds, the wait for its turn included. 0: no limit.
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
     * The fingerprint of the model that made it: see moxin_model_info.
     */
    uint64_t model_fingerprint;
    /**
     * Tells pictures apart.
     */
    uint64_t image_hash;
    /**
     * Positions it takes in a prompt.
     */
    uint32_t token_count;
    /**
     * Numbers a token.
     */
    uint32_t hidden_size;
} moxin_embedding_info;

/**
 * UTF-8 text that the library owns, also NUL-terminated. How long it lives stands with the function that returns it.
 */
typedef struct moxin_str {
    /**
     * The bytes, never NULL.
     */
    const char *data;
    /**
     * Their number, the final NUL not counted.
     */
    size_t len;
} moxin_str;

/**
 * A token that could have come.
 */
typedef struct moxin_token_logprob {
    /**
     * The token.
     */
    int32_t token_id;
    /**
     * Its log-probability, before temperature and filters.
     */
    float logprob;
} moxin_token_logprob;

/**
 * One step's outcome. What it points to lives until the next step on the session, or its end; in a stream, until the callback returns.
 */
typedef struct moxin_event {
    /**
     * sizeof(moxin_event)
     */
    size_t struct_size;
    /**
     * Which of the fields below count.
     */
    enum moxin_event_kind kind;
    /**
     * Why the answer ended; MOXIN_FINISH_REASON_NONE before FINISHED.
     */
    enum moxin_finish_reason finish;
    /**
     * Whole characters; empty while the bytes of one are waiting.
     */
    struct moxin_str text;
    /**
     * The token, -1 in other events than TEXT.
     */
    int32_t token_id;
    /**
     * The token's log-probability, before temperature and filters.
     */
    float logprob;
    /**
     * Positions of the prompt that are read.
     */
    uint32_t done;
    /**
     * Positions of the prompt.
     */
    uint32_t total;
    /**
     * The likeliest tokens, likeliest first, where moxin_session_params.logprobs asks for them; else NULL.
     */
    const struct moxin_token_logprob *top;
    /**
     * Their number.
     */
    size_t top_count;
    /**
     * What went wrong, where finish is MOXIN_FINISH_REASON_ERROR; else NULL. Not to be freed.
     */
    const struct moxin_error *error;
} moxin_event;

/**
 * Told one event of a stream. Returning false cancels the answer; its end is told too.
 */
typedef bool (*moxin_event_fn)(void *user_data, const struct moxin_event *event);

/**
 * Called once with the user data that was given to a function, when the library will not use it any more.
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
     * Positions of the prompt: the whole conversation, with image tokens.
     */
    uint32_t prompt_tokens;
    /**
     * Those of them that are a picture's.
     */
    uint32_t image_tokens;
    /**
     * Those of them that were kept from earlier turns.
     */
    uint32_t reused_tokens;
    /**
     * Tokens generated.
     */
    uint32_t generated_tokens;
    /**
     * Pictures that did not have to be encoded, because the same had been before.
     */
    uint32_t cached_images;
    /**
     * Messages of the conversation, the answer included once it is complete.
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
     * Positions of the prompt read a second, without those reused.
     */
    double prefill_tps;
    /**
     * Tokens a second after the first.
     */
    double decode_tps;
    /**
     * The most memory that the process's models ever held, in bytes.
     */
    uint64_t peak_bytes;
} moxin_stats;

/**
 * How a file is decoded.
 */
typedef struct moxin_image_params {
    /**
     * sizeof(moxin_image_params)
     */
    size_t struct_size;
    /**
     * Pixels that a picture may have; a larger one is refused by its header. Default: 100,000,000.
     */
    uint64_t max_pixels;
    /**
     * Not 0: leave the picture as stored, whatever orientation its metadata gives. Default: 0, it is turned upright.
     */
    uint32_t ignore_orientation;
    /**
     * Must be 0.
     */
    uint32_t reserved;
} moxin_image_params;

/**
 * How pixels lie in memory: one of MOXIN_PIXEL_FORMAT_*.
 */
typedef uint32_t moxin_pixel_format;

/**
 * What a model computes on: one of MOXIN_BACKEND_*.
 */
typedef uint32_t moxin_backend;

/**
 * How much is logged: one of MOXIN_LOG_LEVEL_*. Each level has those before it.
 */
typedef uint32_t moxin_log_level;

/**
 * Told one message: where in the library it comes from, and what it says. The texts live until the function returns.
 */
typedef void (*moxin_log_fn)(void *user_data, moxin_log_level level, struct moxin_str target, struct moxin_str message);

/**
 * What the library holds in this process, in bytes.
 */
typedef struct moxin_memory_stats {
    /**
     * sizeof(moxin_memory_stats)
     */
    size_t struct_size;
    /**
     * In use: weights, conversations, embeddings, and what is being computed.
     */
    uint64_t active;
    /**
     * Kept for reuse; moxin_memory_trim gives it back.
     */
    uint64_t cache;
    /**
     * The most that was ever in use.
     */
    uint64_t peak;
    /**
     * What may be in use: see moxin_memory_set_limits. UINT64_MAX: what the machine has.
     */
    uint64_t limit;
    /**
     * What could still be taken: what the machine, the process's control groups and its resource limits leave, within the limit.
     */
    uint64_t available;
    /**
     * Of what is in use, tokens of pictures seen before; moxin_memory_trim gives them back.
     */
    uint64_t image_cache;
    /**
     * Not bytes: handles of all kinds that were given and not yet freed, errors included. A program that has freed everything finds 0.
     */
    uint64_t handles;
} moxin_memory_stats;

/**
 * The type of activations: one of MOXIN_DTYPE_*.
 */
typedef uint32_t moxin_dtype;

/**
 * How quantized numbers are told: one of MOXIN_QUANT_MODE_*.
 */
typedef uint32_t moxin_quant_mode;

/**
 * Whose code computes on the CPU: one of MOXIN_CPU_KERNELS_*. On a GPU it makes no difference.
 */
typedef uint32_t moxin_cpu_kernels;

/**
 * How a model is loaded.
 */
typedef struct moxin_model_params {
    /**
     * sizeof(moxin_model_params)
     */
    size_t struct_size;
    /**
     * Bytes that loading may take; a model that needs more is refused before it is read. 0, the default: what is available.
     */
    uint64_t memory_limit;
    /**
     * Bytes for the tokens of pictures that were encoded before, so that the same picture need not be again. A picture takes
     * tokens_per_image * hidden_size numbers, 4 MiB in Moxin-7B with float32. Default: 64 MiB. 0: none are kept.
     */
    uint64_t image_cache_bytes;
    /**
     * Where it computes. Default: MOXIN_BACKEND_AUTO.
     */
    moxin_backend backend;
    /**
     * The type of activations. Default: MOXIN_DTYPE_AUTO.
     */
    moxin_dtype dtype;
    /**
     * Bits that the language model is quantized to while it is read, so that all of it is never in memory as it is stored: 2, 3, 4, 5, 6 or
     * 8. Default: 0, it stays as it is stored.
     */
    uint32_t quant_bits;
    /**
     * Neighbours that share a scale: 32, 64 or 128. Default: 64.
     */
    uint32_t quant_group_size;
    /**
     * Another mode than MOXIN_QUANT_MODE_AFFINE, the default, has its own bits and group size: the two above are not looked at then.
     */
    moxin_quant_mode quant_mode;
    /**
     * Whose code computes on the CPU. Default: MOXIN_CPU_KERNELS_AUTO.
     */
    moxin_cpu_kernels cpu_kernels;
    /**
     * A chat template, in Jinja, that takes the place of the folder's; UTF-8, NUL-terminated. It is
     * read during the call only. Default: NULL, the folder's.
     */
    const char *chat_template;
} moxin_model_params;

/**
 * What a model is.
 */
typedef struct moxin_model_info {
    /**
     * sizeof(moxin_model_info)
     */
    size_t struct_size;
    /**
     * Numbers in all tensors of the folder.
     */
    uint64_t parameter_count;
    /**
     * Bytes of these tensors.
     */
    uint64_t weight_bytes;
    /**
     * The same for models whose embeddings may stand for each other's. 0 from moxin_model_inspect.
     */
    uint64_t fingerprint;
    /**
     * Positions that the decoder was made for.
     */
    uint32_t context_length;
    /**
     * Rows of the token embedding.
     */
    uint32_t vocab_size;
    /**
     * Width of a token.
     */
    uint32_t hidden_size;
    /**
     * Edge of the square that a picture is brought to, in pixels; 0 where that depends on the
     * picture.
     */
    uint32_t image_size;
    /**
     * Positions that a picture takes; 0 where that depends on the picture: see
     * moxin_model_image_tokens.
     */
    uint32_t tokens_per_image;
    /**
     * Where the model computes, or would; never MOXIN_BACKEND_AUTO.
     */
    moxin_backend backend;
    /**
     * The type of activations; never MOXIN_DTYPE_AUTO.
     */
    moxin_dtype dtype;
    /**
     * Bits a number in the scheme that most quantized matrices have; 0 where none is quantized.
     */
    uint32_t quant_bits;
    /**
     * Neighbours that share a scale in that scheme; 0 where none is quantized.
     */
    uint32_t quant_group_size;
    /**
     * The mode of that scheme.
     */
    moxin_quant_mode quant_mode;
    /**
     * The architecture, as config.json names it, such as "prismatic"; NUL-terminated, cut where it is longer.
     */
    char model_type[32];
    /**
     * Pictures that a conversation may have; 0 for as many as fit into the context.
     */
    uint32_t max_images;
    /**
     * Not 0: the model takes system text.
     */
    uint32_t takes_system;
    /**
     * Not 0: a conversation goes on after an answer. 0: it ends with it.
     */
    uint32_t takes_turns;
    /**
     * Must be ignored.
     */
    uint32_t reserved;
    /**
     * What to ask about a picture where a user has no question, in the words that the model was
     * made for; NUL-terminated.
     */
    char default_prompt[64];
} moxin_model_info;

/**
 * How a session generates.
 */
typedef struct moxin_session_params {
    /**
     * sizeof(moxin_session_params)
     */
    size_t struct_size;
    /**
     * 0: always the likeliest token, the default. Higher: more varied.
     */
    float temperature;
    /**
     * Draw from so many of the likeliest tokens. 0, the default: from all.
     */
    uint32_t top_k;
    /**
     * Draw from the likeliest tokens that together have this probability. Default: 1, from all.
     */
    float top_p;
    /**
     * Draw from tokens at least this fraction as likely as the likeliest. Default: 0, from all.
     */
    float min_p;
    /**
     * Above 1: makes tokens that came up before less likely. Default: 1.
     */
    float repetition_penalty;
    /**
     * How many of the latest tokens count as come up before. 0, the default: all of the conversation.
     */
    uint32_t repetition_window;
    /**
     * The same seed draws the same tokens. Default: 0.
     */
    uint64_t seed;
    /**
     * Tokens of one answer at most. Default: 512.
     */
    uint32_t max_tokens;
    /**
     * Positions of the whole conversation at most, image tokens included. 0, the default: 4096, more
     * where a picture alone takes so many, fewer where the model was made for fewer.
     */
    uint32_t max_context;
    /**
     * Positions of the prompt that one step works through. Default: 256.
     */
    uint32_t prefill_chunk;
    /**
     * How many of the likeliest tokens each TEXT event lists, 0 to 20. Default: 0.
     */
    uint32_t logprobs;
    /**
     * Texts that end an answer, NUL-terminated UTF-8, of 1 to 1024 bytes each; they are not part
     * of it. May be NULL where stop_count is 0.
     */
    const char *const *stop;
    /**
     * The number of these texts, 0 to 64.
     */
    size_t stop_count;
} moxin_session_params;

/**
 * What a model in a folder will take, in bytes.
 */
typedef struct moxin_memory_estimate {
    /**
     * sizeof(moxin_memory_estimate)
     */
    size_t struct_size;
    /**
     * The weights, once loaded.
     */
    uint64_t weights;
    /**
     * Keys and values of one position of a conversation.
     */
    uint64_t kv_per_token;
    /**
     * Keys and values of a conversation of max_context positions.
     */
    uint64_t kv_total;
    /**
     * The most while loading.
     */
    uint64_t load_peak;
    /**
     * What encoding a picture takes beyond the weights, for the time.
     */
    uint64_t vision_peak;
    /**
     * What a step of a conversation takes beyond weights, keys and values, for the time.
     */
    uint64_t step_peak;
    /**
     * The most in all: to load the model, encode a picture, and have one conversation of max_context positions.
     */
    uint64_t total;
    /**
     * What could be taken now.
     */
    uint64_t available;
} moxin_memory_estimate;

/**
 * The scheme of some modules.
 */
typedef struct moxin_module_quant {
    /**
     * The path of a module in the checkpoint, such as "language_model.lm_head", or the beginning of several up to a dot, such as
     * "language_model.model.layers.0"; UTF-8, NUL-terminated.
     */
    const char *path;
    /**
     * 2, 3, 4, 5, 6 or 8. 0: it is not quantized.
     */
    uint32_t bits;
    /**
     * 32, 64 or 128.
     */
    uint32_t group_size;
    /**
     * Another mode than MOXIN_QUANT_MODE_AFFINE has its own bits and group size; bits must not be 0 all the same.
     */
    moxin_quant_mode mode;
    /**
     * Must be 0.
     */
    uint32_t reserved;
} moxin_module_quant;

/**
 * What of a model is quantized, and how. By default, as MLX's community does: the language model with its embedding and output head, in 4 bits
 * and groups of 64.
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
     * Neighbours in a row that share a scale and a bias: 32, 64 or 128. Default: 64.
     */
    uint32_t group_size;
    /**
     * Not 0: the token embedding too. Default: 1.
     */
    uint32_t embedding;
    /**
     * Not 0: the output head too. Default: 1.
     */
    uint32_t head;
    /**
     * Not 0: vision encoders and projector too, where the group size divides their widths. Default: 0.
     */
    uint32_t vision;
    /**
     * Another mode than MOXIN_QUANT_MODE_AFFINE, the default, has its own bits and group size: those above are not looked at then.
     */
    moxin_quant_mode mode;
    /**
     * Exceptions; of several that fit a module the longest path counts. May be NULL where module_count is 0.
     */
    const struct moxin_module_quant *modules;
    /**
     * Their number.
     */
    size_t module_count;
} moxin_quant_params;

/**
 * Whose a text is: one of MOXIN_ROLE_*.
 */
typedef uint32_t moxin_role;

/**
 * Three bytes: red, green, blue.
 */
#define MOXIN_PIXEL_FORMAT_RGB8 0

/**
 * Four bytes: red, green, blue, alpha. Alpha is dropped, not composited.
 */
#define MOXIN_PIXEL_FORMAT_RGBA8 1

/**
 * Four bytes: blue, green, red, alpha, as Core Video has them. Alpha is dropped.
 */
#define MOXIN_PIXEL_FORMAT_BGRA8 2

/**
 * One byte: grey.
 */
#define MOXIN_PIXEL_FORMAT_GRAY8 3

/**
 * The GPU where there is one, else the CPU.
 */
#define MOXIN_BACKEND_AUTO 0

/**
 * The processor.
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
 * What went wrong.
 */
#define MOXIN_LOG_LEVEL_ERROR 1

/**
 * What may surprise, such as a refusal for want of memory.
 */
#define MOXIN_LOG_LEVEL_WARN 2

/**
 * What was done: a model loaded, an answer given, and how long it took.
 */
#define MOXIN_LOG_LEVEL_INFO 3

/**
 * How it was done, and every error that a call returned.
 */
#define MOXIN_LOG_LEVEL_DEBUG 4

/**
 * Everything.
 */
#define MOXIN_LOG_LEVEL_TRACE 5

/**
 * What the backend does best: bfloat16 on a GPU, float32 on the CPU.
 */
#define MOXIN_DTYPE_AUTO 0

/**
 * 16 bits, more precise and of smaller range than bfloat16.
 */
#define MOXIN_DTYPE_F16 1

/**
 * bfloat16, as the checkpoints are stored.
 */
#define MOXIN_DTYPE_BF16 2

/**
 * 32 bits.
 */
#define MOXIN_DTYPE_F32 3

/**
 * What the environment variable `MOXIN_CPU_KERNELS` says, "own" or "mlx"; where it is not set, this library's own, but MLX's on Apple's systems.
 */
#define MOXIN_CPU_KERNELS_AUTO 0

/**
 * This library's own, where activations are float32.
 */
#define MOXIN_CPU_KERNELS_OWN 1

/**
 * MLX's.
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
 * A whole number of 2, 3, 4, 5, 6 or 8 bits, times a scale, plus a bias; 32, 64 or 128 neighbours share scale and bias.
 */
#define MOXIN_QUANT_MODE_AFFINE 0

/**
 * Floats of 4 bits; 32 share a power of two.
 */
#define MOXIN_QUANT_MODE_MXFP4 1

/**
 * Floats of 8 bits; 32 share a power of two.
 */
#define MOXIN_QUANT_MODE_MXFP8 2

/**
 * Floats of 4 bits; 16 share one of 8 bits.
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
 * Runs the model's vision encoders on a picture, unless the same picture was encoded before and its tokens are still in the model's cache.
 * The embedding can stand for the picture in any session of this model, also when it was loaded anew.
 *
 * budget, op, error: may be NULL. *out_embedding receives an embedding that the caller frees with moxin_embedding_free. Progress has the stage
 * MOXIN_STAGE_ENCODE.
 *
 * Fails with INVALID_ARGUMENT for a picture or a budget that the model cannot take; with CANCELLED, TIMEOUT, OUT_OF_MEMORY, SUSPENDED, BACKEND, and with INVALID_STATE where the model was unloaded.
 */
enum moxin_status moxin_model_encode_image(const struct moxin_model *model,
                                           const struct moxin_image *image,
                                           const struct moxin_pixel_budget *budget,
                                           const struct moxin_op *op,
                                           struct moxin_embedding **out_embedding,
                                           struct moxin_error **error);

/**
 * The size of an embedding. out_info->struct_size must be set.
 */
enum moxin_status moxin_embedding_info_get(const struct moxin_embedding *embedding,
                                           struct moxin_embedding_info *out_info,
                                           struct moxin_error **error);

/**
 * Copies the numbers of an embedding, token after token. values has room for capacity floats; token_count * hidden_size are needed.
 *
 * Fails with INVALID_ARGUMENT, naming the number needed, where the room is too small; with SUSPENDED, BACKEND.
 */
enum moxin_status moxin_embedding_copy(const struct moxin_embedding *embedding,
                                       float *values,
                                       size_t capacity,
                                       struct moxin_error **error);

/**
 * Frees an embedding. NULL is fine.
 */
void moxin_embedding_free(struct moxin_embedding *embedding);

/**
 * The name of a status, such as "MOXIN_STATUS_BUSY"; "unknown status" for a number that is none. Lives as long as the library.
 */
const char *moxin_status_name(uint32_t status);

/**
 * The status that came with an error; MOXIN_STATUS_OK for NULL.
 */
enum moxin_status moxin_error_status(const struct moxin_error *error);

/**
 * What went wrong, where, and what to do, for a person to read. Lives as long as the error. Empty for NULL.
 */
struct moxin_str moxin_error_message(const struct moxin_error *error);

/**
 * What lies behind an error, such as the system's own words for a file that could not be read; NULL where it is all that is known, and for
 * NULL. Each cause has the status of the first. They live as long as the first, and are freed with it, never by themselves.
 */
const struct moxin_error *moxin_error_cause(const struct moxin_error *error);

/**
 * Frees an error and its causes. NULL is fine.
 */
void moxin_error_free(struct moxin_error *error);

/**
 * Encodes the picture, or reads one chunk of the prompt, or generates one token, and tells of it in *out_event, whose struct_size must be
 * set. Call it until the event is FINISHED.
 *
 * moxin_session_cancel is heard before every layer: the event is then FINISHED with MOXIN_FINISH_REASON_CANCELLED, and the turn is taken
 * back. So does a failure: the turn's texts go, and a picture added with them; the session can go on with another. SUSPENDED does not: the
 * next step goes on where this one did not, and until then an answer is being generated. After BACKEND and PANIC all is read anew.
 *
 * Fails with INVALID_STATE where there is nothing to answer or the model was unloaded, CONTEXT_FULL for
 * a prompt that does not fit, OUT_OF_MEMORY, BUSY, SUSPENDED, BACKEND.
 */
enum moxin_status moxin_session_step(const struct moxin_session *session,
                                     struct moxin_event *out_event,
                                     struct moxin_error **error);

/**
 * Generates the answer on a thread of the library and calls on_event with each event, up to exactly one that is FINISHED; then it calls
 * destroy(user_data), once. The call itself returns at once.
 *
 * Inside on_event, moxin_session_cancel and moxin_session_stats do their work, moxin_session_free does not wait, and any other call on the
 * session is BUSY but in the last event: by then the session is free again, and the next question may be asked from there or anywhere.
 * While the library is suspended the stream pauses. When the process ends, on_event is called no more.
 *
 * op: may be NULL; its cancel object ends the answer as moxin_session_cancel does, its time limit with MOXIN_FINISH_REASON_ERROR and TIMEOUT;
 * its progress must be NULL. destroy: may be NULL; where the call fails it has been called before it returns.
 *
 * Fails with INVALID_STATE where there is nothing to answer, with BUSY.
 */
enum moxin_status moxin_session_start(const struct moxin_session *session,
                                      const struct moxin_op *op,
                                      moxin_event_fn on_event,
                                      void *user_data,
                                      moxin_destroy_fn destroy,
                                      struct moxin_error **error);

/**
 * Reads the prompt ahead, so that the first token of the answer comes at once: encodes the picture and computes keys and values, in chunks
 * between which other sessions have their turns. Before the first question it reads the picture alone.
 *
 * op, error: may be NULL. Progress has the stages MOXIN_STAGE_ENCODE and MOXIN_STAGE_PREFILL. The op's cancel object, moxin_session_cancel,
 * the time limit and moxin_suspend are heard before every block of an encoder and every layer of the decoder.
 *
 * Fails as moxin_session_step does, with INVALID_STATE where there is nothing to read, with CANCELLED, TIMEOUT. No failure leaves an answer
 * being generated. What was added is kept or taken back so:
 *
 * - SUSPENDED: all is kept. The next call, or an answer, goes on where this one ended, and texts may be added before.
 * - Any other failure, while the picture is read alone: the picture is kept. After CANCELLED and TIMEOUT what was read is not read again.
 *   A picture that is kept so, or after SUSPENDED, may be replaced: adding one does not fail.
 * - Any other failure, where there is a question: the turn is taken back, its texts and a picture added with them.
 */
enum moxin_status moxin_session_prefill(const struct moxin_session *session,
                                        const struct moxin_op *op,
                                        struct moxin_error **error);

/**
 * Counts and times of the latest turn, as of its latest step; also while an answer is being generated. out_stats->struct_size must be set.
 * Never waits.
 */
enum moxin_status moxin_session_stats(const struct moxin_session *session,
                                      struct moxin_stats *out_stats,
                                      struct moxin_error **error);

/**
 * Sets up parameters with the defaults; struct_size is sizeof(moxin_image_params), and nothing is written past it.
 */
void moxin_image_params_init(struct moxin_image_params *params, size_t struct_size);

/**
 * Reads a picture from a file: PNG, JPEG, WebP, GIF (its first frame), BMP or TIFF, told by its content.
 *
 * path: UTF-8, NUL-terminated. params, error: may be NULL. *out_image receives an image that the caller frees with moxin_image_free.
 *
 * Fails with NOT_FOUND, IO, UNSUPPORTED_IMAGE, and with INVALID_ARGUMENT for a path that is not UTF-8. Fails with OUT_OF_MEMORY and both
 * figures, before it is done, where reading or decoding takes more than is available or than moxin_memory_set_limits leaves.
 */
enum moxin_status moxin_image_from_file(const char *path,
                                        const struct moxin_image_params *params,
                                        struct moxin_image **out_image,
                                        struct moxin_error **error);

/**
 * As moxin_image_from_file, from the bytes of a file in memory. They are not needed any more when the call returns.
 *
 * Fails with UNSUPPORTED_IMAGE, and with OUT_OF_MEMORY as moxin_image_from_file does.
 */
enum moxin_status moxin_image_from_bytes(const void *data,
                                         size_t len,
                                         const struct moxin_image_params *params,
                                         struct moxin_image **out_image,
                                         struct moxin_error **error);

/**
 * Copies a picture from pixels in memory, rows from top to bottom. stride: bytes from the beginning of a row to the beginning of the next.
 * The last row may end with its last pixel.
 *
 * Fails with INVALID_ARGUMENT for an empty picture, an unknown format, or a stride shorter than a row; with OUT_OF_MEMORY where there is no
 * room for the copy.
 */
enum moxin_status moxin_image_from_pixels(const void *pixels,
                                          uint32_t width,
                                          uint32_t height,
                                          size_t stride,
                                          moxin_pixel_format format,
                                          struct moxin_image **out_image,
                                          struct moxin_error **error);

/**
 * The size of a picture in pixels, upright. The places for width and height may each be NULL.
 */
enum moxin_status moxin_image_size(const struct moxin_image *image,
                                   uint32_t *width,
                                   uint32_t *height,
                                   struct moxin_error **error);

/**
 * Frees a picture. NULL is fine.
 */
void moxin_image_free(struct moxin_image *image);

/**
 * The number of the ABI that the library has: MOXIN_ABI_VERSION of the header it was built with.
 */
uint32_t moxin_abi_version(void);

/**
 * The library's version, such as "0.1.0". Lives as long as the library.
 */
const char *moxin_version(void);

/**
 * What the library is made of, as JSON: "version", "abi", "mlx" (its version), "target", "backends" (those that work here and now), and
 * "models" (the model_type of each kind that it runs). Lives as long as the library. In a forked child it may be "{}".
 */
const char *moxin_build_info(void);

/**
 * Whether models can run on a backend, here and now. False for a number that is no backend.
 */
bool moxin_backend_available(moxin_backend backend);

/**
 * Says where Metal's kernels, mlx.metallib, lie; to be called before any other function but moxin_version and moxin_abi_version. Needed only
 * where the file is neither beside the library nor in Resources/ beside it.
 *
 * path: UTF-8, NUL-terminated.
 *
 * Fails with NOT_FOUND, with INVALID_STATE where MLX is in use already, and with BACKEND_UNAVAILABLE where the library was built without
 * Metal, as on Linux.
 */
enum moxin_status moxin_set_metallib_path(const char *path,
                                          struct moxin_error **error);

/**
 * Has messages up to max_level go to a function from now on, or nowhere where log is NULL. It replaces the function set before, which still
 * gets what was logged until now.
 *
 * log is called on a thread of the library that does nothing else, one message after the other; it may take its time, and may call any
 * function of this header. What is logged on that thread is dropped. So is what comes faster than log takes it: at most 1,024 messages, or
 * 1 MiB of them, wait. Then one message says how many were dropped.
 *
 * destroy(user_data) is called exactly once: on that thread after the last message, or before this call returns where it fails or log is
 * NULL. destroy may be NULL. When the process ends, neither is called any more.
 *
 * Fails with INVALID_ARGUMENT for an unknown level, and with INVALID_STATE in a Rust program that has a logger of its own and where the
 * thread cannot be started. The function set before stays then.
 */
enum moxin_status moxin_set_log(moxin_log_fn log,
                                moxin_log_level max_level,
                                void *user_data,
                                moxin_destroy_fn destroy,
                                struct moxin_error **error);

/**
 * Sets the number of threads that this library's own kernels for the CPU use in the whole process, from the next work on. 0, the default: the
 * environment variable `MOXIN_CPU_THREADS` does not count any more, and there are as many as cores. Results do not depend on it.
 *
 * The most is four for each CPU that the process may use, or 64 where that is more. Where `MOXIN_CPU_THREADS` is not a number up to that, it
 * does not count, and a warning is logged.
 *
 * Fails with INVALID_ARGUMENT for more, and then changes nothing.
 */
enum moxin_status moxin_set_cpu_threads(uint32_t threads);

/**
 * Lets nothing compute from now on: for an app that goes to the background, where iOS refuses work for the GPU and answers would fail.
 *
 * Operations fail with MOXIN_STATUS_SUSPENDED until moxin_resume; what is under way ends so too, at its next tensor, block or layer; a stream
 * pauses and goes on later. Conversations stay as they are. What computes nothing works all the while: adding to a conversation, cancelling,
 * freeing, moxin_model_unload, moxin_memory_trim. The call returns when nothing is under way any more.
 *
 * Fails with TIMEOUT where something still is after drain_timeout_ms milliseconds; the library is suspended all the same.
 */
enum moxin_status moxin_suspend(uint32_t drain_timeout_ms,
                                struct moxin_error **error);

/**
 * Ends what moxin_suspend began. Does nothing where the library is not suspended.
 */
void moxin_resume(void);

/**
 * What the library holds now. out_stats->struct_size must be set. Never waits.
 */
enum moxin_status moxin_memory_stats_get(struct moxin_memory_stats *out_stats, struct moxin_error **error);

/**
 * Limits what may be in use, and what MLX keeps for reuse, in bytes; UINT64_MAX stands for no limit but the machine's.
 *
 * What is in use already stays. A load, a session or a picture that would go beyond is refused with MOXIN_STATUS_OUT_OF_MEMORY and both
 * figures, before anything is allocated.
 */
enum moxin_status moxin_memory_set_limits(uint64_t total_bytes,
                                          uint64_t cache_bytes,
                                          struct moxin_error **error);

/**
 * Gives back what is kept for reuse: MLX's free buffers, and tokens of pictures seen before. For when the system says that memory is short.
 * Does not wait: it is done as soon as nothing is being computed.
 */
void moxin_memory_trim(void);

/**
 * Sets up parameters with the defaults; struct_size is sizeof(moxin_model_params), and nothing is written past it.
 */
void moxin_model_params_init(struct moxin_model_params *params, size_t struct_size);

/**
 * Loads a model from a Hugging Face folder (config.json, the weights, tokenizer.json, preprocessor_config.json).
 *
 * path: the folder, UTF-8, NUL-terminated. params, op, error: may be NULL. *out_model receives a model that the caller frees with
 * moxin_model_free. Progress has the stage MOXIN_STAGE_LOAD.
 *
 * Fails with NOT_FOUND, CORRUPT_MODEL, UNSUPPORTED_MODEL or IO, naming the file and the field or
 * tensor; with INVALID_ARGUMENT where path is no folder; with OUT_OF_MEMORY before any weight is
 * read; with BACKEND_UNAVAILABLE, CANCELLED, TIMEOUT, SUSPENDED.
 */
enum moxin_status moxin_model_load(const char *path,
                                   const struct moxin_model_params *params,
                                   const struct moxin_op *op,
                                   struct moxin_model **out_model,
                                   struct moxin_error **error);

/**
 * What the model in a folder is, without loading it: from config.json and the headers of the weights. out_info->struct_size must be set.
 *
 * path: the folder, UTF-8, NUL-terminated.
 *
 * Fails with NOT_FOUND, CORRUPT_MODEL, UNSUPPORTED_MODEL, IO, or INVALID_ARGUMENT where path is no
 * folder.
 */
enum moxin_status moxin_model_inspect(const char *path,
                                      struct moxin_model_info *out_info,
                                      struct moxin_error **error);

/**
 * What the model in a folder will take, loaded with params and talked to in one session with session_params, without loading it: from
 * config.json and the headers of the weights. out_estimate->struct_size must be set.
 *
 * path: the folder, UTF-8, NUL-terminated. params, session_params, error: may be NULL.
 *
 * Fails with NOT_FOUND, CORRUPT_MODEL, UNSUPPORTED_MODEL, IO, INVALID_ARGUMENT or BACKEND_UNAVAILABLE.
 */
enum moxin_status moxin_model_estimate(const char *path,
                                       const struct moxin_model_params *params,
                                       const struct moxin_session_params *session_params,
                                       struct moxin_memory_estimate *out_estimate,
                                       struct moxin_error **error);

/**
 * What a model is. out_info->struct_size must be set.
 */
enum moxin_status moxin_model_info_get(const struct moxin_model *model,
                                       struct moxin_model_info *out_info,
                                       struct moxin_error **error);

/**
 * How many positions a picture of this size takes in a conversation. budget, error: may be NULL.
 *
 * Fails with INVALID_ARGUMENT for a size or a budget that the model cannot take.
 */
enum moxin_status moxin_model_image_tokens(const struct moxin_model *model,
                                           uint32_t width,
                                           uint32_t height,
                                           const struct moxin_pixel_budget *budget,
                                           uint32_t *out_tokens,
                                           struct moxin_error **error);

/**
 * A field of the model's config.json by its path, such as "model_type", "text_config.num_hidden_layers" or "image_sizes.0": a text as it is,
 * all else as JSON. *out_value lives as long as the model's handle.
 *
 * key: UTF-8, NUL-terminated. Fails with NOT_FOUND where there is no such field.
 */
enum moxin_status moxin_model_metadata(const struct moxin_model *model,
                                       const char *key,
                                       struct moxin_str *out_value,
                                       struct moxin_error **error);

/**
 * Writes a model as it is now to a folder that moxin_model_load reads, in the form of MLX's
 * community: the names of the folder that it comes from, ".scales" and ".biases" beside what is
 * quantized, "quantization" in config.json, files of at most 5 GB. What is not quantized is
 * copied, number for number. Of the other files those are copied that a model is known to have:
 * tokenizer, processor and generation settings, chat templates, README.md, licences. A link is
 * followed to a file of the same folder and, in a snapshot of Hugging Face's cache, to that cache.
 *
 * Nothing is at the place before all is written. With overwrite an empty folder is replaced, or a
 * model's: one that holds files alone, among them a config.json with a "model_type". All its files
 * go. A whole model is at the place at any moment, also where the process is killed; what is left
 * then beside it is a hidden folder whose name begins with ".moxin-vlm-". Only where a file system
 * cannot exchange two folders nothing is there for a moment.
 *
 * directory: UTF-8, NUL-terminated. op, error: may be NULL. Progress has the stage
 * MOXIN_STAGE_SAVE.
 *
 * Fails with INVALID_ARGUMENT where something is there and overwrite is false, where it is
 * something else than such a folder, where it is the folder that the model comes from or holds
 * that, and where a file to be copied is a link elsewhere; with NOT_FOUND where the folder that
 * the model comes from is gone, CORRUPT_MODEL where a file in it is none any more, INVALID_STATE
 * where the model was unloaded or the folder to be replaced changes meanwhile, IO, CANCELLED,
 * TIMEOUT, SUSPENDED. Whatever fails leaves nothing behind, and what was there.
 */
enum moxin_status moxin_model_save(const struct moxin_model *model,
                                   const char *directory,
                                   bool overwrite,
                                   const struct moxin_op *op,
                                   struct moxin_error **error);

/**
 * Gives the memory of the weights back, though the handle and sessions remain. What would compute with them fails then with INVALID_STATE,
 * but an embedding still fits the same model loaded again. Works while the library is suspended. Waits for a step that is under way.
 */
enum moxin_status moxin_model_unload(const struct moxin_model *model,
                                     struct moxin_error **error);

/**
 * Frees a model. Its memory goes with the last of its sessions. NULL is fine.
 */
void moxin_model_free(struct moxin_model *model);

/**
 * A new cancel object, which the caller frees with moxin_cancel_free. It may be given to any number of operations.
 */
struct moxin_cancel *moxin_cancel_new(void);

/**
 * Ends every operation that was given this object, now or later, with MOXIN_STATUS_CANCELLED. NULL is fine. It only stores a flag, so that a
 * signal handler may call it.
 */
void moxin_cancel_trigger(const struct moxin_cancel *cancel);

/**
 * Frees a cancel object; operations that were given it go on. NULL is fine.
 */
void moxin_cancel_free(struct moxin_cancel *cancel);

/**
 * Sets up parameters with the defaults; struct_size is sizeof(moxin_quant_params), and nothing is written past it.
 */
void moxin_quant_params_init(struct moxin_quant_params *params, size_t struct_size);

/**
 * Quantizes a model in memory, a matrix at a time, so that it never takes more than the model and one matrix. Matrices that are quantized
 * already stay as they are. Conversations go on; what they have computed stays.
 *
 * params, op, error: may be NULL. Progress has the stage MOXIN_STAGE_QUANTIZE.
 *
 * Fails with INVALID_ARGUMENT for a scheme that MLX does not have, with INVALID_STATE where nothing is left to quantize or the model was
 * unloaded, with CANCELLED, TIMEOUT, OUT_OF_MEMORY, SUSPENDED, BACKEND. A failure leaves the model as it was: what was replaced is read again
 * from its folder, or, where that has changed since, was kept until the end.
 */
enum moxin_status moxin_model_quantize(const struct moxin_model *model,
                                       const struct moxin_quant_params *params,
                                       const struct moxin_op *op,
                                       struct moxin_error **error);

/**
 * Sets up parameters with the defaults; struct_size is sizeof(moxin_session_params), and nothing is written past it.
 */
void moxin_session_params_init(struct moxin_session_params *params, size_t struct_size);

/**
 * Begins a conversation. params, error: may be NULL. *out_session receives a session that the caller frees with moxin_session_free; it keeps
 * what it needs of the model.
 *
 * Fails with INVALID_ARGUMENT, naming the parameter; with OUT_OF_MEMORY where a conversation of max_context positions would not fit; with
 * INVALID_STATE where the model was unloaded.
 */
enum moxin_status moxin_session_new(const struct moxin_model *model,
                                    const struct moxin_session_params *params,
                                    struct moxin_session **out_session,
                                    struct moxin_error **error);

/**
 * A session of its own whose conversation has been the same until now: to ask two things about one picture without reading it twice.
 * *out_session receives a session that the caller frees with moxin_session_free.
 *
 * Fails with INVALID_STATE while an answer is being generated or where the model was unloaded, with BUSY, and with OUT_OF_MEMORY where there
 * is no room for a copy of what was computed.
 */
enum moxin_status moxin_session_fork(const struct moxin_session *session,
                                     struct moxin_session **out_session,
                                     struct moxin_error **error);

/**
 * Adds a text to the conversation: a question, which the next steps answer, or an answer already given. len: bytes, or MOXIN_STRLEN.
 *
 * It is text: where a control token such as `</s>` is spelt in it, the model reads the characters,
 * not the token. See moxin_session_add_prompt for the other way.
 *
 * Texts and pictures of one role that follow each other are parts of one message.
 *
 * Fails with INVALID_STATE for a system text where the model takes none, for a question after the
 * answer where it takes none then (see moxin_model_info), and while an answer is being generated; with CONTEXT_FULL where the conversation cannot fit into the context, which is
 * known from its length in bytes; with BUSY.
 */
enum moxin_status moxin_session_add_text(const struct moxin_session *session,
                                         moxin_role role,
                                         const char *data,
                                         size_t len,
                                         struct moxin_error **error);

/**
 * Adds prompt text as it is: control tokens spelt in it are control tokens, and nothing is put
 * around it but the `<s>` in front of the whole prompt, where it does not begin with one. For
 * prompts in a format of your own; what a user says goes to moxin_session_add_text, which makes no
 * control token of it. len: bytes, or MOXIN_STRLEN.
 *
 * The text is a message, which the next steps answer. Texts added one after the other are joined
 * without anything between them. The answer is not trimmed in front, is used as it is in later
 * prompts, and is closed by `</s>` as every answer. Before and after such a pair the conversation
 * may have others in the usual form; moxin_session_rewind and moxin_session_fork count it like
 * them. A picture stands behind the first token, as always.
 *
 * Fails with INVALID_STATE while an answer is being generated, and where a question added with
 * moxin_session_add_text waits for its answer; with CONTEXT_FULL as moxin_session_add_text; with
 * BUSY.
 */
enum moxin_status moxin_session_add_prompt(const struct moxin_session *session,
                                           const char *data,
                                           size_t len,
                                           struct moxin_error **error);

/**
 * Adds a picture to the user's message, behind what is there of it; it is encoded when its turn comes. The image may be freed at once.
 *
 * Where the answer is cancelled or fails, its pictures are taken back with the question. Added again it is not encoded again: its tokens
 * are in the model's cache.
 *
 * budget: how many pixels it may have in front of the encoder; may be NULL. error: may be NULL.
 *
 * Fails with INVALID_STATE for more pictures than moxin_model_info says, after an answer where the model does not take one then, and while an
 * answer is being generated; with INVALID_ARGUMENT for a picture or a budget that the model cannot take; with BUSY.
 */
enum moxin_status moxin_session_add_image(const struct moxin_session *session,
                                          const struct moxin_image *image,
                                          const struct moxin_pixel_budget *budget,
                                          struct moxin_error **error);

/**
 * As moxin_session_add_image, for a picture that is already encoded, by the same model: else INVALID_ARGUMENT.
 */
enum moxin_status moxin_session_add_embedding(const struct moxin_session *session,
                                              const struct moxin_embedding *embedding,
                                              struct moxin_error **error);

/**
 * Ends the answer that is being generated, or the question that waits for one, from any thread, within a layer: its step, or its stream's
 * last event, is FINISHED with MOXIN_FINISH_REASON_CANCELLED, and the turn is taken back. A moxin_session_prefill that is under way fails
 * with CANCELLED. Where there is none of these it does nothing: what is added afterwards is not touched. NULL is fine. It only stores a flag, so that a signal handler may call it.
 */
void moxin_session_cancel(const struct moxin_session *session);

/**
 * Has answers from the next on generated with other parameters: all of them are replaced. What was computed stays. params: NULL stands for
 * the defaults.
 *
 * Fails with INVALID_ARGUMENT, naming the parameter; with OUT_OF_MEMORY where a conversation of max_context positions would not fit; with
 * INVALID_STATE while an answer is being generated or where the model was unloaded, with BUSY.
 */
enum moxin_status moxin_session_set_params(const struct moxin_session *session,
                                           const struct moxin_session_params *params,
                                           struct moxin_error **error);

/**
 * Forgets all but the first messages of the conversation; its picture stays. To have the last question answered again, keep one message
 * fewer than there are (moxin_stats.message_count) and take steps; to put it differently, keep two fewer. What of the prompt was read and
 * still holds is not read again.
 *
 * Fails with INVALID_ARGUMENT where there are fewer messages, with INVALID_STATE while an answer is being generated, with BUSY.
 */
enum moxin_status moxin_session_rewind(const struct moxin_session *session,
                                       size_t messages_to_keep,
                                       struct moxin_error **error);

/**
 * Forgets the conversation, its picture, an answer under way, and a cancellation that is pending; the parameters stay. Fails with BUSY.
 */
enum moxin_status moxin_session_reset(const struct moxin_session *session,
                                      struct moxin_error **error);

/**
 * Frees a session. An answer that is being generated is cancelled; where it is streamed, the call waits until the last event was told and
 * the stream's user data destroyed. Inside a callback of the library it does not wait: that is done when the callback has returned. NULL is
 * fine.
 */
void moxin_session_free(struct moxin_session *session);

#ifdef __cplusplus
}  // extern "C"
#endif  // __cplusplus

#endif  /* MOXIN_VLM_H */
