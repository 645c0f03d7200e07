/*
 * moxin-vlm: vision-language models in an app. SPDX-License-Identifier: MIT OR Apache-2.0
 *
 * Generated from src/ffi by cbindgen; change it there and run `cargo xtask header`.
 *
 * Results   Functions that can fail return a moxin_status. Outputs are written only on success. Where there is a last parameter
 *           `error`, it may be NULL; else on failure it receives an error that the caller frees with moxin_error_free.
 * Ownership Every handle has one _free function, which accepts NULL. Handles may be freed in any order: a session keeps what it
 *           needs of its model.
 * Threads   Every function may be called from any thread. A second operation on a session that is at work returns
 *           MOXIN_STATUS_BUSY. A handle must not be freed while another thread is in a call with it, moxin_session_cancel included.
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
#define MOXIN_ABI_VERSION 1



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
     * A value is out of its range, a text is not UTF-8, or a struct was not initialized.
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
     * Another operation is under way on the same session.
     */
    MOXIN_STATUS_BUSY = 6,
    /**
     * The library is suspended.
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
} moxin_finish_reason;

/**
 * Cancels operations.
 */
typedef struct moxin_cancel moxin_cancel;

/**
 * A picture's tokens in the space of the model that made them. Keeps nothing else alive.
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
 * What a model computes on: one of MOXIN_BACKEND_*.
 */
typedef uint32_t moxin_backend;

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
} moxin_image_params;

/**
 * How pixels lie in memory: one of MOXIN_PIXEL_FORMAT_*.
 */
typedef uint32_t moxin_pixel_format;

/**
 * How a model is loaded.
 */
typedef struct moxin_model_params {
    /**
     * sizeof(moxin_model_params)
     */
    size_t struct_size;
    /**
     * Where it computes. Default: MOXIN_BACKEND_AUTO.
     */
    moxin_backend backend;
    /**
     * Bytes that the weights may take; a model that needs more is refused before it is read. 0, the default: what the machine has available.
     */
    uint64_t memory_limit;
} moxin_model_params;

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
     * Positions that the decoder was made for.
     */
    uint32_t context_length;
    /**
     * Rows of the token embedding.
     */
    uint32_t vocab_size;
    /**
     * Edge of the square that a picture is brought to, in pixels.
     */
    uint32_t image_size;
    /**
     * Positions that a picture takes.
     */
    uint32_t tokens_per_image;
    /**
     * Where the model computes; never MOXIN_BACKEND_AUTO.
     */
    moxin_backend backend;
} moxin_model_info;

/**
 * The size of an embedding.
 */
typedef struct moxin_embedding_info {
    /**
     * sizeof(moxin_embedding_info)
     */
    size_t struct_size;
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
     * How many of the latest tokens count as come up before.
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
     * Positions of the whole conversation at most, image tokens included. 0, the default: 4096, or fewer where the model was made for fewer.
     */
    uint32_t max_context;
    /**
     * Positions of the prompt that one step works through. Default: 256.
     */
    uint32_t prefill_chunk;
    /**
     * Texts that end an answer, NUL-terminated UTF-8; they are not part of it. May be NULL where stop_count is 0.
     */
    const char *const *stop;
    /**
     * The number of these texts.
     */
    size_t stop_count;
} moxin_session_params;

/**
 * Whose a text is: one of MOXIN_ROLE_*.
 */
typedef uint32_t moxin_role;

/**
 * One step's outcome.
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
     * Whole characters; empty while the bytes of one are waiting. Lives until the next step on the session, or its end.
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
} moxin_event;

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
     * The most memory that the process's models ever held, in bytes.
     */
    uint64_t peak_bytes;
} moxin_stats;

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
 * Reading weights.
 */
#define MOXIN_STAGE_LOAD 0

/**
 * Running the vision encoders.
 */
#define MOXIN_STAGE_ENCODE 1

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
 * The number of the ABI that the library has: MOXIN_ABI_VERSION of the header it was built with.
 */
uint32_t moxin_abi_version(void);

/**
 * The library's version, such as "0.1.0". Lives as long as the library.
 */
const char *moxin_version(void);

/**
 * Whether models can run on a backend, here and now. False for a number that is no backend.
 */
bool moxin_backend_available(moxin_backend backend);

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
 * Frees an error. NULL is fine.
 */
void moxin_error_free(struct moxin_error *error);

/**
 * Sets up parameters with the defaults; struct_size is sizeof(moxin_image_params), and nothing is written past it.
 */
void moxin_image_params_init(struct moxin_image_params *params, size_t struct_size);

/**
 * Reads a picture from a file: PNG, JPEG, WebP, GIF (its first frame), BMP or TIFF, told by its content.
 *
 * path: UTF-8, NUL-terminated. params, error: may be NULL. *out receives an image that the caller frees with moxin_image_free.
 *
 * Fails with NOT_FOUND, IO, UNSUPPORTED_IMAGE.
 */
enum moxin_status moxin_image_from_file(const char *path,
                                        const struct moxin_image_params *params,
                                        struct moxin_image **out_image,
                                        struct moxin_error **error);

/**
 * As moxin_image_from_file, from the bytes of a file in memory. They are not needed any more when the call returns.
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
 * Fails with INVALID_ARGUMENT for an empty picture, an unknown format, or a stride shorter than a row.
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
 * Sets up parameters with the defaults; struct_size is sizeof(moxin_model_params), and nothing is written past it.
 */
void moxin_model_params_init(struct moxin_model_params *params, size_t struct_size);

/**
 * Loads a model from a Hugging Face folder (config.json, the weights, tokenizer.json, preprocessor_config.json).
 *
 * path: the folder, UTF-8, NUL-terminated. params, op, error: may be NULL. *out receives a model that the caller frees with
 * moxin_model_free. Progress has the stage MOXIN_STAGE_LOAD.
 *
 * Fails with NOT_FOUND, CORRUPT_MODEL, UNSUPPORTED_MODEL or IO, naming the file and the field or tensor; with OUT_OF_MEMORY before anything
 * is read; with BACKEND_UNAVAILABLE, CANCELLED, TIMEOUT.
 */
enum moxin_status moxin_model_load(const char *path,
                                   const struct moxin_model_params *params,
                                   const struct moxin_op *op,
                                   struct moxin_model **out_model,
                                   struct moxin_error **error);

/**
 * What a model is. out_info->struct_size must be set.
 */
enum moxin_status moxin_model_info_get(const struct moxin_model *model,
                                       struct moxin_model_info *out_info,
                                       struct moxin_error **error);

/**
 * Frees a model. Its memory goes with the last of its sessions. NULL is fine.
 */
void moxin_model_free(struct moxin_model *model);

/**
 * Runs the model's vision encoders on a picture. The embedding can stand for the picture in any session of this model.
 *
 * op, error: may be NULL. *out receives an embedding that the caller frees with moxin_embedding_free. Progress has the stage
 * MOXIN_STAGE_ENCODE.
 *
 * Fails with CANCELLED, TIMEOUT, BACKEND.
 */
enum moxin_status moxin_encode_image(const struct moxin_model *model,
                                     const struct moxin_image *image,
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
 * Fails with INVALID_ARGUMENT, naming the number needed, where the room is too small.
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
 * A new cancel object. It may be given to any number of operations.
 */
struct moxin_cancel *moxin_cancel_new(void);

/**
 * Ends every operation that was given this object, now or later, with MOXIN_STATUS_CANCELLED. NULL is fine.
 */
void moxin_cancel_trigger(const struct moxin_cancel *cancel);

/**
 * Frees a cancel object; operations that were given it go on. NULL is fine.
 */
void moxin_cancel_free(struct moxin_cancel *cancel);

/**
 * Sets up parameters with the defaults; struct_size is sizeof(moxin_session_params), and nothing is written past it.
 */
void moxin_session_params_init(struct moxin_session_params *params, size_t struct_size);

/**
 * Begins a conversation. params, error: may be NULL. *out receives a session that the caller frees with moxin_session_free; it keeps what it
 * needs of the model.
 *
 * Fails with INVALID_ARGUMENT, naming the parameter.
 */
enum moxin_status moxin_session_new(const struct moxin_model *model,
                                    const struct moxin_session_params *params,
                                    struct moxin_session **out_session,
                                    struct moxin_error **error);

/**
 * Adds a text to the conversation: a question, which the next steps answer, or an answer already given. len: bytes, or MOXIN_STRLEN.
 *
 * Fails with INVALID_STATE for a system text, which Moxin takes none of, and while an answer is being generated; with BUSY.
 */
enum moxin_status moxin_session_add_text(const struct moxin_session *session,
                                         moxin_role role,
                                         const char *data,
                                         size_t len,
                                         struct moxin_error **error);

/**
 * Sets the picture that the conversation is about; it is encoded by the next step. The image may be freed at once.
 *
 * Fails with INVALID_STATE for a second picture, which Moxin takes none of, and after the first answer; with BUSY.
 */
enum moxin_status moxin_session_add_image(const struct moxin_session *session,
                                          const struct moxin_image *image,
                                          struct moxin_error **error);

/**
 * As moxin_session_add_image, for a picture that is already encoded, by the same model: else INVALID_ARGUMENT.
 */
enum moxin_status moxin_session_add_embedding(const struct moxin_session *session,
                                              const struct moxin_embedding *embedding,
                                              struct moxin_error **error);

/**
 * Encodes the picture, or reads one chunk of the prompt, or generates one token, and tells of it in *out_event, whose struct_size must be
 * set. Call it until the event is FINISHED.
 *
 * A failure takes the turn back, its texts and a picture added with them; the session can go on with another. Fails with INVALID_STATE where
 * there is nothing to answer, CONTEXT_FULL for a prompt that does not fit, BUSY, BACKEND.
 */
enum moxin_status moxin_generate_step(const struct moxin_session *session,
                                      struct moxin_event *out_event,
                                      struct moxin_error **error);

/**
 * Ends the answer that is being generated, from any thread: its next step is FINISHED with MOXIN_FINISH_REASON_CANCELLED, and the turn is
 * taken back. Where none is, the next one ends at once. NULL is fine.
 */
void moxin_session_cancel(const struct moxin_session *session);

/**
 * Forgets the conversation, and a cancellation that is pending; the parameters stay. Fails with BUSY.
 */
enum moxin_status moxin_session_reset(const struct moxin_session *session, struct moxin_error **error);

/**
 * Counts and times of the latest turn. out_stats->struct_size must be set. Fails with BUSY.
 */
enum moxin_status moxin_session_stats(const struct moxin_session *session,
                                      struct moxin_stats *out_stats,
                                      struct moxin_error **error);

/**
 * Frees a session. NULL is fine.
 */
void moxin_session_free(struct moxin_session *session);

#ifdef __cplusplus
}  // extern "C"
#endif  // __cplusplus

#endif  /* MOXIN_VLM_H */
