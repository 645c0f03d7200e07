/*
 * Uses the C ABI as a careless caller would, and checks the results. Run by tests/c.rs.
 *
 *   abi check MODEL IMAGE RGB WIDTH HEIGHT  everything below; RGB is a file with the picture's
 *                                           pixels, three bytes each
 *   abi exit-loading MODEL                  ends with exit(42) while another thread loads a model
 *   abi exit-encoding MODEL                 the same while another thread encodes pictures
 *   abi exit-in-progress MODEL              ends with exit(42) inside a progress callback
 *   abi exit-stepping MODEL MILLISECONDS    ends with exit(42) while another thread generates
 *   abi exit-leaving MODEL                  ends with exit(42) and frees nothing
 */
#include "check.h"

#include <math.h>
#include <pthread.h>

/* ---------------------------------------------------------------- the library itself, and NULL
 * everywhere */

static void check_library(void) {
    CHECK(moxin_abi_version() == MOXIN_ABI_VERSION);
    CHECK(strchr(moxin_version(), '.') != NULL);
    CHECK(strcmp(moxin_status_name(MOXIN_STATUS_BUSY), "MOXIN_STATUS_BUSY") == 0);
    CHECK(strcmp(moxin_status_name(MOXIN_STATUS_PANIC), "MOXIN_STATUS_PANIC") == 0);
    CHECK(strcmp(moxin_status_name(MOXIN_STATUS_PANIC + 1), "unknown status") == 0);
    CHECK(strcmp(moxin_status_name(UINT32_MAX), "unknown status") == 0);
    CHECK(moxin_backend_available(MOXIN_BACKEND_AUTO));
    CHECK(moxin_backend_available(MOXIN_BACKEND_CPU));
    CHECK(!moxin_backend_available(99));
    CHECK(!(moxin_backend_available(MOXIN_BACKEND_METAL) &&
            moxin_backend_available(MOXIN_BACKEND_CUDA)));
}

static bool no_events(void *user_data, const moxin_event *event) {
    (void)user_data;
    (void)event;
    CHECK(!"a stream that did not start has no events");
    return true;
}

static void check_null(const moxin_model *model, const moxin_image *image,
                       const moxin_session *session, const char *path) {
    const moxin_status null_argument = MOXIN_STATUS_NULL_ARGUMENT;
    moxin_error *error = NULL;
    moxin_model *no_model = NULL;
    moxin_image *no_image = NULL;
    moxin_session *no_session = NULL;
    moxin_embedding *no_embedding = NULL;
    moxin_event event = empty_event();
    moxin_stats stats = { 0 };
    moxin_model_info info = { 0 };
    moxin_embedding_info embedding_info = { 0 };
    float number = 0;
    stats.struct_size = sizeof stats;
    info.struct_size = sizeof info;
    embedding_info.struct_size = sizeof embedding_info;

    moxin_memory_estimate estimate = { 0 };
    moxin_memory_stats memory = { 0 };
    moxin_str value;
    estimate.struct_size = sizeof estimate;
    memory.struct_size = sizeof memory;

    moxin_error_free(NULL);
    moxin_model_free(NULL);
    moxin_image_free(NULL);
    moxin_embedding_free(NULL);
    moxin_session_free(NULL);
    moxin_cancel_free(NULL);
    moxin_cancel_trigger(NULL);
    moxin_session_cancel(NULL);
    moxin_image_params_init(NULL, sizeof(moxin_image_params));
    moxin_video_params_init(NULL, sizeof(moxin_video_params));
    moxin_model_params_init(NULL, sizeof(moxin_model_params));
    moxin_session_params_init(NULL, sizeof(moxin_session_params));
    CHECK(moxin_error_status(NULL) == MOXIN_STATUS_OK);
    CHECK(moxin_error_cause(NULL) == NULL);
    CHECK(moxin_error_message(NULL).len == 0 && *moxin_error_message(NULL).data == '\0');

    EXPECT(null_argument, moxin_model_load(NULL, NULL, NULL, &no_model, &error));
    EXPECT(null_argument, moxin_model_load(path, NULL, NULL, NULL, &error));
    EXPECT(null_argument, moxin_model_info_get(NULL, &info, &error));
    EXPECT(null_argument, moxin_model_info_get(model, NULL, &error));
    EXPECT(null_argument, moxin_image_from_file(NULL, NULL, &no_image, &error));
    EXPECT(null_argument, moxin_image_from_file("x.png", NULL, NULL, &error));
    EXPECT(null_argument, moxin_image_from_bytes(NULL, 0, NULL, &no_image, &error));
    EXPECT(null_argument, moxin_image_from_bytes("x", 1, NULL, NULL, &error));
    EXPECT(null_argument,
           moxin_image_from_pixels(NULL, 1, 1, 3, MOXIN_PIXEL_FORMAT_RGB8, &no_image, &error));
    EXPECT(null_argument,
           moxin_image_from_pixels("xyz", 1, 1, 3, MOXIN_PIXEL_FORMAT_RGB8, NULL, &error));
    EXPECT(null_argument, moxin_image_size(NULL, NULL, NULL, &error));
    uint32_t no_tokens = 0;
    EXPECT(null_argument, moxin_model_image_tokens(NULL, 8, 8, NULL, &no_tokens, &error));
    EXPECT(null_argument, moxin_model_image_tokens(model, 8, 8, NULL, NULL, &error));
    EXPECT(null_argument, moxin_session_prompt_tokens(NULL, &no_tokens, &error));
    moxin_locations *no_locations = NULL;
    moxin_location location = { 0 };
    location.struct_size = sizeof location;
    EXPECT(null_argument, moxin_model_locate(NULL, "x", 1, 8, 8, NULL, &no_locations, &error));
    EXPECT(null_argument, moxin_model_locate(model, "x", 1, 8, 8, NULL, NULL, &error));
    EXPECT(null_argument, moxin_locations_get(NULL, 0, &location, &error));
    CHECK(moxin_locations_count(NULL) == 0);
    moxin_locations_free(NULL);
    /* The model writes no boxes. */
    EXPECT(MOXIN_STATUS_INVALID_STATE,
           moxin_model_locate(model, "x", 1, 8, 8, NULL, &no_locations, &error));
    CHECK(no_locations == NULL);
    moxin_video *no_video = NULL;
    moxin_video_info video_info = { 0 };
    video_info.struct_size = sizeof video_info;
    EXPECT(null_argument, moxin_video_from_file(NULL, NULL, &no_video, &error));
    EXPECT(null_argument, moxin_video_from_file("x.gif", NULL, NULL, &error));
    EXPECT(null_argument, moxin_video_from_bytes(NULL, 1, NULL, &no_video, &error));
    EXPECT(null_argument, moxin_video_from_bytes("x", 1, NULL, NULL, &error));
    EXPECT(null_argument, moxin_video_from_frames(NULL, 1, NULL, 1, &no_video, &error));
    EXPECT(null_argument, moxin_video_info_get(NULL, &video_info, &error));
    EXPECT(null_argument, moxin_session_add_video(session, NULL, NULL, &error));
    EXPECT(null_argument, moxin_model_encode_video(model, NULL, NULL, NULL, &no_embedding, &error));
    moxin_video_free(NULL);
    CHECK(no_video == NULL);
    EXPECT(null_argument, moxin_model_encode_image(NULL, image, NULL, NULL, &no_embedding, &error));
    EXPECT(null_argument, moxin_model_encode_image(model, NULL, NULL, NULL, &no_embedding, &error));
    EXPECT(null_argument, moxin_model_encode_image(model, image, NULL, NULL, NULL, &error));
    EXPECT(null_argument, moxin_embedding_info_get(NULL, &embedding_info, &error));
    EXPECT(null_argument, moxin_embedding_copy(NULL, &number, 1, &error));
    EXPECT(null_argument, moxin_session_new(NULL, NULL, &no_session, &error));
    EXPECT(null_argument, moxin_session_new(model, NULL, NULL, &error));
    EXPECT(null_argument, moxin_session_add_text(NULL, MOXIN_ROLE_USER, "x", 1, &error));
    EXPECT(null_argument, moxin_session_add_text(session, MOXIN_ROLE_USER, NULL, 0, &error));
    EXPECT(null_argument, moxin_session_add_prompt(NULL, "x", 1, &error));
    EXPECT(null_argument, moxin_session_add_prompt(session, NULL, 0, &error));
    EXPECT(null_argument, moxin_session_add_image(NULL, image, NULL, &error));
    EXPECT(null_argument, moxin_session_add_image(session, NULL, NULL, &error));
    EXPECT(null_argument, moxin_session_add_embedding(session, NULL, &error));
    EXPECT(null_argument, moxin_session_step(NULL, &event, &error));
    EXPECT(null_argument, moxin_session_step(session, NULL, &error));
    EXPECT(null_argument, moxin_session_reset(NULL, &error));
    EXPECT(null_argument, moxin_session_stats(NULL, &stats, &error));
    EXPECT(null_argument, moxin_session_stats(session, NULL, &error));
    EXPECT(null_argument, moxin_session_add_embedding(NULL, NULL, &error));
    EXPECT(null_argument, moxin_session_fork(NULL, &no_session, &error));
    EXPECT(null_argument, moxin_session_fork(session, NULL, &error));
    EXPECT(null_argument, moxin_session_set_params(NULL, NULL, &error));
    EXPECT(null_argument, moxin_session_rewind(NULL, 0, &error));
    EXPECT(null_argument, moxin_session_prefill(NULL, NULL, &error));
    EXPECT(null_argument, moxin_session_start(NULL, NULL, no_events, NULL, NULL, &error));
    EXPECT(null_argument, moxin_session_start(session, NULL, NULL, NULL, NULL, &error));
    EXPECT(null_argument, moxin_embedding_info_get(NULL, NULL, &error));
    EXPECT(null_argument, moxin_model_inspect(NULL, &info, &error));
    EXPECT(null_argument, moxin_model_inspect(path, NULL, &error));
    EXPECT(null_argument, moxin_model_estimate(NULL, NULL, NULL, &estimate, &error));
    EXPECT(null_argument, moxin_model_estimate(path, NULL, NULL, NULL, &error));
    EXPECT(null_argument, moxin_model_metadata(NULL, "model_type", &value, &error));
    EXPECT(null_argument, moxin_model_metadata(model, NULL, &value, &error));
    EXPECT(null_argument, moxin_model_metadata(model, "model_type", NULL, &error));
    EXPECT(null_argument, moxin_model_unload(NULL, &error));
    EXPECT(null_argument, moxin_model_quantize(NULL, NULL, NULL, &error));
    EXPECT(null_argument, moxin_model_save(NULL, "x", false, NULL, &error));
    EXPECT(null_argument, moxin_model_save(model, NULL, false, NULL, &error));
    moxin_quant_params_init(NULL, sizeof(moxin_quant_params));
    EXPECT(null_argument, moxin_memory_stats_get(NULL, &error));
#ifndef __APPLE__
    EXPECT(MOXIN_STATUS_BACKEND_UNAVAILABLE, moxin_set_metallib_path("mlx.metallib", &error));
#endif
    EXPECT(null_argument, moxin_set_metallib_path(NULL, &error));
    EXPECT(MOXIN_STATUS_OK, moxin_set_log(NULL, MOXIN_LOG_LEVEL_TRACE, NULL, NULL, &error));
    NEED(moxin_model_estimate(path, NULL, NULL, &estimate, &error));
    NEED(moxin_memory_stats_get(&memory, &error));
    CHECK(no_model == NULL && no_image == NULL && no_session == NULL && no_embedding == NULL);

    /* The output for the error may be NULL too, both if the call fails and if it succeeds. */
    CHECK(moxin_model_load(NULL, NULL, NULL, NULL, NULL) == null_argument);
    CHECK(moxin_session_step(NULL, NULL, NULL) == null_argument);
    CHECK(moxin_image_size(image, NULL, NULL, NULL) == MOXIN_STATUS_OK);
    CHECK(moxin_session_reset(session, NULL) == MOXIN_STATUS_OK);
    CHECK(moxin_suspend(10000, NULL) == MOXIN_STATUS_OK);
    moxin_resume();
    CHECK(moxin_memory_set_limits(UINT64_MAX, UINT64_MAX, NULL) == MOXIN_STATUS_OK);
}

/* ---------------------------------------------------------------- arguments out of range */

static void check_arguments(const moxin_model *model, moxin_session *session, const char *path) {
    const moxin_status invalid = MOXIN_STATUS_INVALID_ARGUMENT;
    const char *not_utf8 = "caf\xe9";
    moxin_error *error = NULL;
    moxin_model *no_model = NULL;
    moxin_image *no_image = NULL;
    moxin_session *no_session = NULL;
    moxin_model_params model_params;
    moxin_image_params image_params;
    moxin_quant_params quant;
    moxin_module_quant module = { 0 };
    moxin_session_params params;
    moxin_memory_estimate estimate = { 0 };
    moxin_model_info info = { 0 };
    moxin_str value;
    const char *stops[2] = { "", NULL };

    EXPECT(invalid, moxin_model_load(not_utf8, NULL, NULL, &no_model, &error));
    EXPECT(invalid, moxin_image_from_file(not_utf8, NULL, &no_image, &error));
    EXPECT(invalid,
           moxin_session_add_text(session, MOXIN_ROLE_USER, not_utf8, MOXIN_STRLEN, &error));
    EXPECT(invalid, moxin_session_add_text(session, MOXIN_ROLE_USER, "\xe2\x82", 2, &error));
    EXPECT(invalid,
           moxin_session_add_text(session, MOXIN_ROLE_USER, "x", MOXIN_STRLEN - 1, &error));
    EXPECT(invalid, moxin_session_add_text(session, 99, "x", 1, &error));
    EXPECT(invalid, moxin_session_add_text(session, UINT32_MAX, "x", 1, &error));
    EXPECT(MOXIN_STATUS_NOT_FOUND,
           moxin_model_load("no/such/folder", NULL, NULL, &no_model, &error));
    EXPECT(MOXIN_STATUS_NOT_FOUND, moxin_model_load("", NULL, NULL, &no_model, &error));
    EXPECT(MOXIN_STATUS_NOT_FOUND, moxin_image_from_file("no/such.png", NULL, &no_image, &error));
    EXPECT(MOXIN_STATUS_UNSUPPORTED_IMAGE, moxin_image_from_file(path, NULL, &no_image, &error));
    EXPECT(MOXIN_STATUS_UNSUPPORTED_IMAGE, moxin_image_from_bytes("", 0, NULL, &no_image, &error));
    EXPECT(MOXIN_STATUS_UNSUPPORTED_IMAGE,
           moxin_image_from_bytes("not a picture", 13, NULL, &no_image, &error));
    EXPECT(invalid, moxin_image_from_bytes("x", SIZE_MAX, NULL, &no_image, &error));

    EXPECT(invalid, moxin_image_from_pixels("xyz", 1, 1, 3, 99, &no_image, &error));
    EXPECT(invalid,
           moxin_image_from_pixels("xyz", 0, 1, 3, MOXIN_PIXEL_FORMAT_RGB8, &no_image, &error));
    EXPECT(invalid,
           moxin_image_from_pixels("xyz", 1, 0, 3, MOXIN_PIXEL_FORMAT_RGB8, &no_image, &error));
    EXPECT(invalid,
           moxin_image_from_pixels("xyz", 1, 1, 2, MOXIN_PIXEL_FORMAT_RGB8, &no_image, &error));
    EXPECT(invalid,
           moxin_image_from_pixels("xyz", 1, 1, 0, MOXIN_PIXEL_FORMAT_RGB8, &no_image, &error));
    EXPECT(invalid, moxin_image_from_pixels("xyz", 1, 2, SIZE_MAX, MOXIN_PIXEL_FORMAT_RGB8,
                                            &no_image, &error));
    EXPECT(invalid, moxin_image_from_pixels("xyz", 1, UINT32_MAX, SIZE_MAX / 2,
                                            MOXIN_PIXEL_FORMAT_RGB8, &no_image, &error));
    EXPECT(invalid, moxin_image_from_pixels("xyz", UINT32_MAX, 1, SIZE_MAX / 4,
                                            MOXIN_PIXEL_FORMAT_RGB8, &no_image, &error));

    info.struct_size = sizeof info;
    moxin_model_params_init(&model_params, sizeof model_params);
    model_params.backend = 99;
    EXPECT(invalid, moxin_model_load(path, &model_params, NULL, &no_model, &error));
    model_params.backend = MOXIN_BACKEND_CPU;
    model_params.memory_limit = 1000;
    EXPECT(MOXIN_STATUS_OUT_OF_MEMORY,
           moxin_model_load(path, &model_params, NULL, &no_model, &error));
    model_params.memory_limit = 0;
    model_params.backend =
        moxin_backend_available(MOXIN_BACKEND_METAL) ? MOXIN_BACKEND_CUDA : MOXIN_BACKEND_METAL;
    EXPECT(MOXIN_STATUS_BACKEND_UNAVAILABLE,
           moxin_model_load(path, &model_params, NULL, &no_model, &error));
    model_params.backend = MOXIN_BACKEND_CPU;
    model_params.dtype = 99;
    EXPECT(invalid, moxin_model_load(path, &model_params, NULL, &no_model, &error));
    estimate.struct_size = sizeof estimate;
    EXPECT(invalid, moxin_model_estimate(path, &model_params, NULL, &estimate, &error));
    EXPECT(invalid, moxin_model_inspect(not_utf8, &info, &error));
    EXPECT(MOXIN_STATUS_NOT_FOUND, moxin_model_inspect("no/such/folder", &info, &error));
    EXPECT(MOXIN_STATUS_NOT_FOUND,
           moxin_model_estimate("no/such/folder", NULL, NULL, &estimate, &error));
    EXPECT(invalid, moxin_model_metadata(model, not_utf8, &value, &error));
    EXPECT(invalid, moxin_set_log(NULL, 99, NULL, NULL, &error));
    EXPECT(invalid, moxin_session_rewind(session, SIZE_MAX, &error));
    model_params.dtype = MOXIN_DTYPE_AUTO;
    model_params.quant_bits = 7;
    EXPECT(invalid, moxin_model_load(path, &model_params, NULL, &no_model, &error));
    EXPECT(invalid, moxin_model_estimate(path, &model_params, NULL, &estimate, &error));
    model_params.quant_bits = 4;
    model_params.quant_group_size = 0;
    EXPECT(invalid, moxin_model_load(path, &model_params, NULL, &no_model, &error));
    model_params.quant_group_size = UINT32_MAX;
    EXPECT(invalid, moxin_model_load(path, &model_params, NULL, &no_model, &error));
    model_params.quant_bits = 0;
    model_params.quant_group_size = 64;
    model_params.quant_mode = 4;
    EXPECT(invalid, moxin_model_load(path, &model_params, NULL, &no_model, &error));
    model_params.quant_mode = MOXIN_QUANT_MODE_AFFINE;
    model_params.cpu_kernels = 3;
    EXPECT(invalid, moxin_model_load(path, &model_params, NULL, &no_model, &error));
    model_params.cpu_kernels = MOXIN_CPU_KERNELS_MLX;
    model_params.chat_template = "{{ messages }}"; /* The small model has none. */
    EXPECT(invalid, moxin_model_load(path, &model_params, NULL, &no_model, &error));
    model_params.chat_template = "\xff";
    EXPECT(invalid, moxin_model_load(path, &model_params, NULL, &no_model, &error));
    model_params.chat_template = NULL;
#define REFUSED_QUANT(field, value)                                                                \
    moxin_quant_params_init(&quant, sizeof quant);                                                 \
    quant.field = value;                                                                           \
    EXPECT(invalid, moxin_model_quantize(model, &quant, NULL, &error))
    REFUSED_QUANT(bits, 0);
    REFUSED_QUANT(bits, 7);
    REFUSED_QUANT(bits, UINT32_MAX);
    REFUSED_QUANT(group_size, 16);
    REFUSED_QUANT(group_size, 0);
    REFUSED_QUANT(mode, 4);
    REFUSED_QUANT(mode, UINT32_MAX);
    REFUSED_QUANT(module_count, SIZE_MAX);
#undef REFUSED_QUANT
    moxin_quant_params_init(&quant, sizeof quant);
    CHECK(quant.bits == 4 && quant.group_size == 64 && quant.embedding == 1 && quant.head == 1 &&
          quant.vision == 0);
    quant.module_count = 1;
    EXPECT(MOXIN_STATUS_NULL_ARGUMENT, moxin_model_quantize(model, &quant, NULL, &error));
    quant.modules = &module;
    EXPECT(MOXIN_STATUS_NULL_ARGUMENT, moxin_model_quantize(model, &quant, NULL, &error));
    module.path = not_utf8;
    EXPECT(invalid, moxin_model_quantize(model, &quant, NULL, &error));
    module.path = "language_model";
    module.reserved = 1;
    EXPECT(invalid, moxin_model_quantize(model, &quant, NULL, &error));
    module.reserved = 0;
    module.mode = 4;
    EXPECT(invalid, moxin_model_quantize(model, &quant, NULL, &error));
    module.mode = MOXIN_QUANT_MODE_AFFINE;
    module.bits = 9;
    EXPECT(invalid, moxin_model_quantize(model, &quant, NULL, &error));
    EXPECT(invalid, moxin_model_save(model, not_utf8, false, NULL, &error));
    EXPECT(invalid, moxin_model_save(model, path, true, NULL, &error));
    EXPECT(MOXIN_STATUS_NOT_FOUND,
           moxin_model_save(model, "no/such/folder/here", false, NULL, &error));
    moxin_image_params_init(&image_params, sizeof image_params);
    image_params.reserved = 1;
    EXPECT(invalid, moxin_image_from_file(path, &image_params, &no_image, &error));
    moxin_pixel_budget budget = { 0 };
    uint32_t no_tokens = 0;
    budget.struct_size = sizeof budget;
    budget.reserved = 1;
    EXPECT(invalid, moxin_model_image_tokens(model, 8, 8, &budget, &no_tokens, &error));

#define REFUSED(field, value)                                                                      \
    moxin_session_params_init(&params, sizeof params);                                             \
    params.field = value;                                                                          \
    EXPECT(invalid, moxin_session_new(model, &params, &no_session, &error))

    REFUSED(temperature, -1);
    REFUSED(temperature, (float)NAN);
    REFUSED(top_p, 1.5f);
    REFUSED(top_p, (float)NAN);
    REFUSED(min_p, -0.5f);
    REFUSED(repetition_penalty, 0);
    REFUSED(frequency_penalty, 2.5f);
    REFUSED(frequency_penalty, (float)NAN);
    REFUSED(presence_penalty, -2.5f);
    REFUSED(max_tokens, 0);
    REFUSED(max_tokens, UINT32_MAX);
    REFUSED(max_context, UINT32_MAX);
    REFUSED(prefill_chunk, 0);
    REFUSED(prefill_chunk, UINT32_MAX);
    REFUSED(logprobs, 21);
    REFUSED(logprobs, UINT32_MAX);
    REFUSED(stop_count, SIZE_MAX);
#undef REFUSED
    moxin_session_params_init(&params, sizeof params);
    params.stop_count = 1;
    EXPECT(MOXIN_STATUS_NULL_ARGUMENT, moxin_session_new(model, &params, &no_session, &error));
    params.stop = stops;
    EXPECT(invalid, moxin_session_new(model, &params, &no_session, &error));
    stops[0] = "x";
    params.stop_count = 2;
    EXPECT(MOXIN_STATUS_NULL_ARGUMENT, moxin_session_new(model, &params, &no_session, &error));
    stops[1] = not_utf8;
    EXPECT(invalid, moxin_session_new(model, &params, &no_session, &error));
    CHECK(no_model == NULL && no_image == NULL && no_session == NULL);
}

/* ---------------------------------------------------------------- struct_size */

enum { CANARY = 0xa5, TAIL = 64 };

static void fill(void *memory, size_t size) { memset(memory, CANARY, size); }

static int untouched(const unsigned char *memory, size_t from, size_t to) {
    while (from < to) {
        if (memory[from++] != CANARY) {
            return 0;
        }
    }
    return 1;
}

static size_t size_in(const void *memory) {
    size_t size;
    memcpy(&size, memory, sizeof size);
    return size;
}

/* An _init function writes all of the caller's size, its own size field first, and nothing beyond.
 */
#define CHECK_INIT(init, type)                                                                     \
    do {                                                                                           \
        union {                                                                                    \
            type params;                                                                           \
            unsigned char bytes[sizeof(type) + TAIL];                                              \
        } room;                                                                                    \
        for (size_t size = 0; size < sizeof room; size++) {                                        \
            fill(&room, sizeof room);                                                              \
            init(&room.params, size);                                                              \
            CHECK(untouched(room.bytes, size, sizeof room));                                       \
            if (size < sizeof(size_t)) {                                                           \
                CHECK(untouched(room.bytes, 0, size));                                             \
            } else {                                                                               \
                CHECK(size_in(room.bytes) == size);                                                \
                for (size_t i = sizeof(type); i < size; i++) {                                     \
                    CHECK(room.bytes[i] == 0);                                                     \
                }                                                                                  \
            }                                                                                      \
        }                                                                                          \
    } while (0)

/* A struct of results is written up to the caller's size, and its size field is unchanged. */
#define CHECK_RESULT(type, call)                                                                   \
    do {                                                                                           \
        union {                                                                                    \
            type result;                                                                           \
            unsigned char bytes[sizeof(type) + TAIL];                                              \
        } room;                                                                                    \
        for (size_t size = sizeof(size_t); size <= sizeof room; size += 4) {                       \
            fill(&room, sizeof room);                                                              \
            memcpy(&room, &size, sizeof size);                                                     \
            EXPECT(MOXIN_STATUS_OK, call(&room.result));                                           \
            CHECK(size_in(room.bytes) == size);                                                    \
            CHECK(untouched(room.bytes, size < sizeof(type) ? size : sizeof(type), sizeof room));  \
        }                                                                                          \
        room.result.struct_size = 0;                                                               \
        EXPECT(MOXIN_STATUS_INVALID_ARGUMENT, call(&room.result));                                 \
        room.result.struct_size = sizeof(size_t) - 1;                                              \
        EXPECT(MOXIN_STATUS_INVALID_ARGUMENT, call(&room.result));                                 \
        room.result.struct_size = SIZE_MAX;                                                        \
        EXPECT(MOXIN_STATUS_INVALID_ARGUMENT, call(&room.result));                                 \
    } while (0)

/* A struct of parameters is refused if it is too small for its size field, or sets unknown fields.
 */
#define CHECK_PARAMS(type, call, ok)                                                               \
    do {                                                                                           \
        union {                                                                                    \
            type params;                                                                           \
            unsigned char bytes[sizeof(type) + TAIL];                                              \
        } room;                                                                                    \
        memset(&room, 0, sizeof room);                                                             \
        EXPECT(MOXIN_STATUS_INVALID_ARGUMENT, call(&room.params));                                 \
        room.params.struct_size = sizeof(size_t) - 1;                                              \
        EXPECT(MOXIN_STATUS_INVALID_ARGUMENT, call(&room.params));                                 \
        room.params.struct_size = SIZE_MAX;                                                        \
        EXPECT(MOXIN_STATUS_INVALID_ARGUMENT, call(&room.params));                                 \
        room.params.struct_size = sizeof(size_t);                                                  \
        EXPECT(ok, call(&room.params));                                                            \
        INIT(room);                                                                                \
        room.params.struct_size = sizeof room;                                                     \
        EXPECT(ok, call(&room.params));                                                            \
        room.bytes[sizeof room - 1] = 1;                                                           \
        EXPECT(MOXIN_STATUS_INVALID_ARGUMENT, call(&room.params));                                 \
        room.params.struct_size = sizeof(type);                                                    \
        EXPECT(ok, call(&room.params));                                                            \
    } while (0)

static void check_sizes(const moxin_model *model, const moxin_embedding *embedding,
                        const moxin_session *session, const char *path) {
    const moxin_status not_found = MOXIN_STATUS_NOT_FOUND;
    moxin_error *error = NULL;
    moxin_model *no_model = NULL;
    moxin_image *no_image = NULL;
    moxin_session *new_session = NULL;
    moxin_event event = empty_event();

    CHECK_INIT(moxin_image_params_init, moxin_image_params);
    CHECK_INIT(moxin_video_params_init, moxin_video_params);
    CHECK_INIT(moxin_model_params_init, moxin_model_params);
    CHECK_INIT(moxin_session_params_init, moxin_session_params);
    CHECK_INIT(moxin_quant_params_init, moxin_quant_params);

#define CALL(result) moxin_model_info_get(model, result, &error)
    CHECK_RESULT(moxin_model_info, CALL);
#undef CALL
#define CALL(result) moxin_embedding_info_get(embedding, result, &error)
    CHECK_RESULT(moxin_embedding_info, CALL);
#undef CALL
#define CALL(result) moxin_session_stats(session, result, &error)
    CHECK_RESULT(moxin_stats, CALL);
#undef CALL
#define CALL(result) moxin_memory_stats_get(result, &error)
    CHECK_RESULT(moxin_memory_stats, CALL);
#undef CALL
#define CALL(result) moxin_model_inspect(path, result, &error)
    CHECK_RESULT(moxin_model_info, CALL);
#undef CALL
#define CALL(result) moxin_model_estimate(path, NULL, NULL, result, &error)
    CHECK_RESULT(moxin_memory_estimate, CALL);
#undef CALL

    /* A missing folder shows whether parameters were accepted. */
#define INIT(room) moxin_model_params_init(&room.params, sizeof room)
#define CALL(params) moxin_model_load("no/such/folder", params, NULL, &no_model, &error)
    CHECK_PARAMS(moxin_model_params, CALL, not_found);
#undef CALL
#undef INIT
#define INIT(room) memset(&room, 0, sizeof room)
#define CALL(op) moxin_model_load("no/such/folder", NULL, op, &no_model, &error)
    CHECK_PARAMS(moxin_op, CALL, not_found);
#undef CALL
#undef INIT
#define INIT(room) moxin_image_params_init(&room.params, sizeof room)
#define CALL(params) moxin_image_from_file("no/such.png", params, &no_image, &error)
    CHECK_PARAMS(moxin_image_params, CALL, not_found);
#undef CALL
#undef INIT
#define INIT(room) moxin_session_params_init(&room.params, sizeof room)
#define CALL(params)                                                                               \
    (moxin_session_free(new_session), new_session = NULL,                                          \
     moxin_session_new(model, params, &new_session, &error))
    CHECK_PARAMS(moxin_session_params, CALL, MOXIN_STATUS_OK);
#undef CALL
#undef INIT
    moxin_session_free(new_session);

    /* An unloaded model shows whether parameters were accepted. */
    moxin_model *gone = load(path);
    NEED(moxin_model_unload(gone, &error));
#define INIT(room) moxin_quant_params_init(&room.params, sizeof room)
#define CALL(params) moxin_model_quantize(gone, params, NULL, &error)
    CHECK_PARAMS(moxin_quant_params, CALL, MOXIN_STATUS_INVALID_STATE);
#undef CALL
#undef INIT
    moxin_model_free(gone);

    event.struct_size = 0;
    EXPECT(MOXIN_STATUS_INVALID_ARGUMENT, moxin_session_step(session, &event, &error));
    event.struct_size = SIZE_MAX;
    EXPECT(MOXIN_STATUS_INVALID_ARGUMENT, moxin_session_step(session, &event, &error));
}

/* Events for callers of every version are written up to their size. */
static void check_event_sizes(moxin_session *session) {
    union {
        moxin_event event;
        unsigned char bytes[sizeof(moxin_event) + TAIL];
    } room;
    moxin_error *error = NULL;
    NEED(moxin_session_reset(session, &error));
    NEED(moxin_session_add_text(session, MOXIN_ROLE_USER, "Hello", MOXIN_STRLEN, &error));
    for (size_t size = sizeof(size_t); size <= sizeof room; size += 16) {
        fill(&room, sizeof room);
        memcpy(&room, &size, sizeof size);
        moxin_status status = moxin_session_step(session, &room.event, &error);
        if (status == MOXIN_STATUS_INVALID_STATE) { /* the answer was a short one */
            moxin_error_free(error);
            error = NULL;
            NEED(moxin_session_add_text(session, MOXIN_ROLE_USER, "Hello", MOXIN_STRLEN, &error));
            status = moxin_session_step(session, &room.event, &error);
        }
        EXPECT(MOXIN_STATUS_OK, status);
        CHECK(size_in(room.bytes) == size);
        CHECK(untouched(room.bytes, size < sizeof(moxin_event) ? size : sizeof(moxin_event),
                        sizeof room));
    }
    NEED(moxin_session_reset(session, &error));
}

/* ---------------------------------------------------------------- pictures */

static float *numbers_of(const moxin_model *model, const moxin_image *image, size_t *count) {
    moxin_error *error = NULL;
    moxin_embedding *embedding = NULL;
    moxin_embedding_info info = { 0 };
    info.struct_size = sizeof info;
    NEED(moxin_model_encode_image(model, image, NULL, NULL, &embedding, &error));
    NEED(moxin_embedding_info_get(embedding, &info, &error));
    *count = (size_t)info.token_count * info.hidden_size;
    float *numbers = malloc((*count + 1) * sizeof *numbers);
    if (numbers == NULL) {
        exit(1);
    }
    numbers[*count] = 12345;
    EXPECT(MOXIN_STATUS_NULL_ARGUMENT, moxin_embedding_copy(embedding, NULL, *count, &error));
    EXPECT(MOXIN_STATUS_NULL_ARGUMENT, moxin_embedding_info_get(embedding, NULL, &error));
    EXPECT(MOXIN_STATUS_INVALID_ARGUMENT,
           moxin_embedding_copy(embedding, numbers, *count - 1, &error));
    NEED(moxin_embedding_copy(embedding, numbers, *count, &error));
    CHECK(numbers[*count] == 12345);
    moxin_embedding_free(embedding);
    return numbers;
}

/* Returns the largest difference between the features of one picture and another, which is freed.
 */
static double difference(const moxin_model *model, const float *seen, moxin_image *image) {
    size_t count;
    float *numbers = numbers_of(model, image, &count);
    double largest = 0;
    for (size_t i = 0; i < count; i++) {
        double apart = fabs((double)seen[i] - (double)numbers[i]);
        largest = apart > largest ? apart : largest;
    }
    free(numbers);
    moxin_image_free(image);
    return largest;
}

/* Makes a picture from RGB pixels in another format, with a stride that leaves space after each
 * row. */
static moxin_image *from_rgb(const unsigned char *rgb, uint32_t width, uint32_t height,
                             moxin_pixel_format format) {
    const size_t pixel = format == MOXIN_PIXEL_FORMAT_RGB8    ? 3
                         : format == MOXIN_PIXEL_FORMAT_GRAY8 ? 1
                                                              : 4;
    const size_t red = format == MOXIN_PIXEL_FORMAT_BGRA8 ? 2 : 0;
    const size_t row = width * pixel, stride = row + 13;
    const size_t size = stride * (height - 1) + row; /* the last row ends with its last pixel */
    moxin_image *image = NULL;
    moxin_error *error = NULL;
    unsigned char *pixels = malloc(size);
    if (pixels == NULL) {
        exit(1);
    }
    fill(pixels, size);
    for (uint32_t y = 0; y < height; y++) {
        for (uint32_t x = 0; x < width; x++) {
            const unsigned char *from = rgb + 3 * ((size_t)y * width + x);
            unsigned char *to = pixels + y * stride + x * pixel;
            if (pixel == 1) {
                to[0] = from[1];
            } else {
                to[red] = from[0];
                to[1] = from[1];
                to[2 - red] = from[2];
            }
        }
    }
    NEED(moxin_image_from_pixels(pixels, width, height, stride, format, &image, &error));
    fill(pixels, size); /* they were copied */
    free(pixels);
    return image;
}

static unsigned char *read_file(const char *path, size_t *size) {
    FILE *file = fopen(path, "rb");
    unsigned char *bytes = malloc(1 << 24);
    if (file == NULL || bytes == NULL) {
        perror(path);
        exit(1);
    }
    *size = fread(bytes, 1, 1 << 24, file);
    fclose(file);
    return bytes;
}

static void check_images(const moxin_model *model, const moxin_image *image, const char *path,
                         const char *rgb_path, uint32_t width, uint32_t height) {
    size_t size, rgb_size, count;
    unsigned char *bytes = read_file(path, &size), *rgb = read_file(rgb_path, &rgb_size);
    moxin_error *error = NULL;
    moxin_image *decoded = NULL, *small = NULL;
    moxin_image_params params;
    uint32_t found_width = 0, found_height = 0;
    const moxin_pixel_format color[] = { MOXIN_PIXEL_FORMAT_RGB8, MOXIN_PIXEL_FORMAT_RGBA8,
                                         MOXIN_PIXEL_FORMAT_BGRA8 };
    float *seen = numbers_of(model, image, &count);
    CHECK(rgb_size == (size_t)width * height * 3);

    NEED(moxin_image_from_bytes(bytes, size, NULL, &decoded, &error));
    NEED(moxin_image_size(decoded, &found_width, &found_height, &error));
    CHECK(found_width == width && found_height == height);
    CHECK(difference(model, seen, decoded) < 1e-5);

    moxin_image_params_init(&params, sizeof params);
    CHECK(params.max_pixels == 100000000 && params.ignore_orientation == 0);
    params.max_pixels = 100;
    EXPECT(MOXIN_STATUS_UNSUPPORTED_IMAGE,
           moxin_image_from_bytes(bytes, size, &params, &small, &error));
    EXPECT(MOXIN_STATUS_UNSUPPORTED_IMAGE,
           moxin_image_from_bytes(bytes, size / 2, NULL, &small, &error));
    CHECK(small == NULL);

    for (size_t i = 0; i < sizeof color / sizeof color[0]; i++) {
        CHECK(difference(model, seen, from_rgb(rgb, width, height, color[i])) < 1e-5);
    }

    /* A gray picture, once with one byte per pixel, once with three: it differs from the color
     * picture. */
    moxin_image *gray = from_rgb(rgb, width, height, MOXIN_PIXEL_FORMAT_GRAY8);
    for (size_t i = 0; i < rgb_size; i += 3) {
        rgb[i] = rgb[i + 2] = rgb[i + 1];
    }
    CHECK(difference(model, seen, from_rgb(rgb, width, height, MOXIN_PIXEL_FORMAT_RGB8)) > 0.01);
    free(seen);
    seen = numbers_of(model, gray, &count);
    CHECK(difference(model, seen, from_rgb(rgb, width, height, MOXIN_PIXEL_FORMAT_RGB8)) < 1e-5);
    moxin_image_free(gray);
    free(seen);
    free(bytes);
    free(rgb);
}

/* ---------------------------------------------------------------- videos */

/* The model reads no videos, which is an error of its own. */
static void check_videos(const moxin_model *model, const moxin_image *image) {
    const moxin_image *frames[3] = { image, image, image };
    const double times[] = { 0, 0.5, 2 };
    moxin_error *error = NULL;
    moxin_video *video = NULL;
    moxin_session *session = NULL;
    moxin_embedding *embedding = NULL;
    moxin_model_info model_info = { 0 };
    moxin_video_info info = { 0 };
    moxin_video_params params;
    uint32_t width, height;

    NEED(moxin_image_size(image, &width, &height, &error));
    NEED(moxin_video_from_frames(frames, 3, NULL, 2.0, &video, &error));
    info.struct_size = sizeof info;
    NEED(moxin_video_info_get(video, &info, &error));
    CHECK(info.frame_count == 3 && info.fps == 2.0);
    CHECK(info.width == width && info.height == height);
    moxin_video_free(video);
    NEED(moxin_video_from_frames(frames, 3, times, 0, &video, &error));
    NEED(moxin_video_info_get(video, &info, &error));
    CHECK(info.frame_count == 3 && info.fps == 1.0);

    model_info.struct_size = sizeof model_info;
    NEED(moxin_model_info_get(model, &model_info, &error));
    CHECK(model_info.takes_videos == 0);
    NEED(moxin_session_new(model, NULL, &session, &error));
    EXPECT(MOXIN_STATUS_INVALID_ARGUMENT, moxin_session_add_video(session, video, NULL, &error));
    EXPECT(MOXIN_STATUS_INVALID_ARGUMENT,
           moxin_model_encode_video(model, video, NULL, NULL, &embedding, &error));
    CHECK(embedding == NULL);
    moxin_session_free(session);
    moxin_video_free(video);
    video = NULL;

    EXPECT(MOXIN_STATUS_INVALID_ARGUMENT,
           moxin_video_from_frames(frames, 0, NULL, 2.0, &video, &error));
    EXPECT(MOXIN_STATUS_INVALID_ARGUMENT,
           moxin_video_from_frames(frames, SIZE_MAX, NULL, 2.0, &video, &error));
    EXPECT(MOXIN_STATUS_INVALID_ARGUMENT,
           moxin_video_from_frames(frames, 3, NULL, -1.0, &video, &error));
    frames[1] = NULL;
    EXPECT(MOXIN_STATUS_NULL_ARGUMENT,
           moxin_video_from_frames(frames, 3, NULL, 2.0, &video, &error));
    moxin_video_params_init(&params, sizeof params);
    CHECK(params.fps == 2.0 && params.max_frames == 768 && params.max_pixels == 100000000);
    params.max_frames = 0;
    EXPECT(MOXIN_STATUS_INVALID_ARGUMENT,
           moxin_video_from_bytes("GIF89a", 6, &params, &video, &error));
    EXPECT(MOXIN_STATUS_UNSUPPORTED_IMAGE,
           moxin_video_from_bytes("GIF89a", 6, NULL, &video, &error));
    EXPECT(MOXIN_STATUS_NOT_FOUND, moxin_video_from_file("/no/clip.gif", NULL, &video, &error));
    CHECK(video == NULL);
}

/* ---------------------------------------------------------------- operations */

struct progress {
    int calls;
    float latest;
    int rising;
    moxin_stage stage;
    int stop_at;                  /* returns false at this call; 0: never */
    const moxin_cancel *trigger;  /* is triggered at the first call */
    const moxin_session *session; /* is used at the first call */
};

static bool watch(void *user_data, moxin_stage stage, float fraction) {
    struct progress *progress = user_data;
    if (progress->calls == 0) {
        progress->rising = 1;
        moxin_cancel_trigger(progress->trigger);
        if (progress->session !=
            NULL) { /* another operation inside a callback waits for its turn; it does not hang */
            moxin_event event = empty_event();
            CHECK(moxin_session_step(progress->session, &event, NULL) == MOXIN_STATUS_OK);
        }
    }
    if (fraction < progress->latest || fraction < 0 || fraction > 1) {
        progress->rising = 0;
    }
    progress->calls++;
    progress->latest = fraction;
    progress->stage = stage;
    return progress->calls != progress->stop_at;
}

static moxin_op watched(struct progress *progress) {
    moxin_op op;
    memset(&op, 0, sizeof op);
    memset(progress, 0, sizeof *progress);
    op.struct_size = sizeof op;
    op.progress = watch;
    op.user_data = progress;
    return op;
}

static void check_operations(const moxin_model *model, const moxin_image *image, const char *path) {
    moxin_error *error = NULL;
    moxin_model *loaded = NULL;
    moxin_embedding *embedding = NULL;
    struct progress progress;
    moxin_op op = watched(&progress);

    NEED(moxin_model_load(path, NULL, &op, &loaded, &error));
    CHECK(progress.calls > 1 && progress.rising && progress.latest == 1 &&
          progress.stage == MOXIN_STAGE_LOAD);
    moxin_model_free(loaded);
    loaded = NULL;

    op = watched(&progress);
    progress.stop_at = 1;
    EXPECT(MOXIN_STATUS_CANCELLED, moxin_model_load(path, NULL, &op, &loaded, &error));

    moxin_cancel *cancel = moxin_cancel_new();
    op = watched(&progress);
    op.cancel = cancel;
    progress.trigger = cancel;
    EXPECT(MOXIN_STATUS_CANCELLED, moxin_model_load(path, NULL, &op, &loaded, &error));
    progress.calls = 0; /* it stays set: the next operation never starts */
    EXPECT(MOXIN_STATUS_CANCELLED, moxin_model_load(path, NULL, &op, &loaded, &error));
    CHECK(progress.calls == 0);
    EXPECT(MOXIN_STATUS_CANCELLED,
           moxin_model_encode_image(model, image, NULL, &op, &embedding, &error));
    moxin_cancel_free(cancel);

    /* A time limit includes the wait for the turn; loading this model takes longer than 1 ms. */
    op = watched(&progress);
    op.timeout_ms = 1;
    EXPECT(MOXIN_STATUS_TIMEOUT, moxin_model_load(path, NULL, &op, &loaded, &error));
    CHECK(loaded == NULL && embedding == NULL);

    op = watched(&progress);
    op.timeout_ms = UINT64_MAX;
    moxin_session *session = begin(model);
    NEED(moxin_session_add_text(session, MOXIN_ROLE_USER, "Hello", MOXIN_STRLEN, &error));
    progress.session = session;
    NEED(moxin_model_encode_image(model, image, NULL, &op, &embedding, &error));
    CHECK(progress.calls > 1 && progress.rising && progress.latest == 1 &&
          progress.stage == MOXIN_STAGE_ENCODE);
    moxin_embedding_free(embedding);
    moxin_session_free(session);
}

/* ---------------------------------------------------------------- conversations */

static const char *const QUESTION = "Describe the picture.";

static void check_states(const moxin_model *model, const moxin_image *image,
                         const moxin_embedding *embedding) {
    const moxin_status invalid_state = MOXIN_STATUS_INVALID_STATE;
    moxin_error *error = NULL;
    moxin_session *session = begin(model);
    moxin_event event = empty_event();
    moxin_stats stats = { 0 };
    stats.struct_size = sizeof stats;

    EXPECT(invalid_state, moxin_session_step(session, &event, &error));
    EXPECT(invalid_state,
           moxin_session_add_text(session, MOXIN_ROLE_SYSTEM, "Be brief.", MOXIN_STRLEN, &error));
    EXPECT(invalid_state,
           moxin_session_add_text(session, MOXIN_ROLE_ASSISTANT, "Hello", MOXIN_STRLEN, &error));
    NEED(moxin_session_add_image(session, image, NULL, &error));
    EXPECT(invalid_state, moxin_session_step(session, &event, &error));
    EXPECT(invalid_state, moxin_session_add_image(session, image, NULL, &error));
    EXPECT(invalid_state, moxin_session_add_embedding(session, embedding, &error));

    struct answer first = ask(session, QUESTION);
    CHECK(first.finish == MOXIN_FINISH_REASON_END_OF_TURN && first.count > 3);
    NEED(moxin_session_stats(session, &stats, &error));
    CHECK(stats.image_tokens > 0 && stats.prompt_tokens > stats.image_tokens &&
          stats.reused_tokens == 0);
    CHECK(stats.generated_tokens == (uint32_t)first.count);
    CHECK(stats.vision_ms > 0 && stats.prefill_ms > 0 && stats.first_token_ms > 0 &&
          stats.decode_ms > 0 && stats.peak_bytes > 0);
    EXPECT(invalid_state, moxin_session_step(session, &event, &error));
    EXPECT(invalid_state, moxin_session_add_image(session, image, NULL, &error));

    /* While an answer is in progress, nothing can be added. */
    NEED(
        moxin_session_add_text(session, MOXIN_ROLE_USER, "What is written?", MOXIN_STRLEN, &error));
    NEED(moxin_session_step(session, &event, &error));
    EXPECT(invalid_state,
           moxin_session_add_text(session, MOXIN_ROLE_USER, "And?", MOXIN_STRLEN, &error));
    EXPECT(invalid_state,
           moxin_session_add_prompt(session, "In: And?\nOut:", MOXIN_STRLEN, &error));
    EXPECT(invalid_state, moxin_session_add_image(session, image, NULL, &error));
    struct answer second = finish_answer(session);
    CHECK(second.finish == MOXIN_FINISH_REASON_END_OF_TURN && second.count > 0);
    NEED(moxin_session_stats(session, &stats, &error));
    CHECK(stats.reused_tokens > stats.image_tokens);

    /* After a reset, the session answers like a new one; an embedding replaces the picture. */
    NEED(moxin_session_reset(session, &error));
    NEED(moxin_session_add_embedding(session, embedding, &error));
    struct answer again = ask(session, QUESTION);
    CHECK(same_answer(&first, &again));
    NEED(moxin_session_stats(session, &stats, &error));
    CHECK(stats.vision_ms == 0);

    /* A raw prompt that is written like the library's has the same answer, except for the space at
     * its start. */
    NEED(moxin_session_reset(session, &error));
    NEED(moxin_session_add_embedding(session, embedding, &error));
    NEED(moxin_session_add_prompt(session, "In: ", MOXIN_STRLEN, &error));
    NEED(moxin_session_add_prompt(session, QUESTION, MOXIN_STRLEN, &error));
    NEED(moxin_session_add_prompt(session, "\nOut:", MOXIN_STRLEN, &error));
    EXPECT(invalid_state,
           moxin_session_add_text(session, MOXIN_ROLE_USER, "And?", MOXIN_STRLEN, &error));
    struct answer raw = finish_answer(session);
    CHECK(raw.count == first.count &&
          memcmp(raw.tokens, first.tokens, (size_t)raw.count * sizeof raw.tokens[0]) == 0);
    CHECK(raw.text[0] == ' ' && strcmp(raw.text + 1, first.text) == 0);
    moxin_session_free(session);
}

static void check_cancel(const moxin_model *model, const moxin_embedding *embedding) {
    moxin_error *error = NULL;
    moxin_session *session = begin(model);
    moxin_event event = empty_event();

    NEED(moxin_session_add_embedding(session, embedding, &error));
    struct answer first = ask(session, "How many shapes are there?");
    for (int steps = 0; steps < 4; steps++) { /* before the prefill, after it, and between tokens */
        NEED(moxin_session_add_text(session, MOXIN_ROLE_USER, QUESTION, MOXIN_STRLEN, &error));
        for (int i = 0; i < steps; i++) {
            NEED(moxin_session_step(session, &event, &error));
        }
        moxin_session_cancel(session);
        NEED(moxin_session_step(session, &event, &error));
        CHECK(event.kind == MOXIN_EVENT_KIND_FINISHED &&
              event.finish == MOXIN_FINISH_REASON_CANCELLED);
        EXPECT(MOXIN_STATUS_INVALID_STATE, moxin_session_step(session, &event, &error));
    }
    struct answer after = ask(session, QUESTION);

    /* The cancelled turns left no trace. */
    NEED(moxin_session_reset(session, &error));
    NEED(moxin_session_add_embedding(session, embedding, &error));
    struct answer first_again = ask(session, "How many shapes are there?");
    struct answer undisturbed = ask(session, QUESTION);
    CHECK(same_answer(&first, &first_again));
    CHECK(same_answer(&after, &undisturbed));

    /* A reset clears a pending cancellation. */
    moxin_session_cancel(session);
    NEED(moxin_session_reset(session, &error));
    CHECK(ask(session, "Hello").finish != MOXIN_FINISH_REASON_CANCELLED);
    moxin_session_free(session);
}

static void check_parameters(const moxin_model *model, const moxin_embedding *embedding) {
    moxin_error *error = NULL;
    moxin_session *session = begin(model);
    moxin_session_params params;
    const char *stop = "star";

    NEED(moxin_session_add_embedding(session, embedding, &error));
    struct answer whole = ask(session, QUESTION);
    moxin_session_free(session);
    char *found = strstr(whole.text, stop);
    CHECK(found != NULL);

    moxin_session_params_init(&params, sizeof params);
    CHECK(params.temperature == 0 && params.top_p == 1 && params.max_tokens == 512 &&
          params.prefill_chunk == 256);
    params.max_tokens = 3;
    params.prefill_chunk = 7;
    NEED(moxin_session_new(model, &params, &session, &error));
    NEED(moxin_session_add_embedding(session, embedding, &error));
    struct answer three = ask(session, QUESTION);
    CHECK(three.count == 3 && three.finish == MOXIN_FINISH_REASON_MAX_TOKENS);
    CHECK(memcmp(three.tokens, whole.tokens, 3 * sizeof three.tokens[0]) == 0);
    moxin_session_free(session);

    moxin_session_params_init(&params, sizeof params);
    params.stop = &stop;
    params.stop_count = 1;
    NEED(moxin_session_new(model, &params, &session, &error));
    NEED(moxin_session_add_embedding(session, embedding, &error));
    struct answer stopped = ask(session, QUESTION);
    CHECK(stopped.finish == MOXIN_FINISH_REASON_STOP_SEQUENCE);
    CHECK(found != NULL && strlen(stopped.text) == (size_t)(found - whole.text) &&
          strncmp(stopped.text, whole.text, strlen(stopped.text)) == 0);
    moxin_session_free(session);

    moxin_session_params_init(&params, sizeof params);
    params.max_context = 10;
    NEED(moxin_session_new(model, &params, &session, &error));
    NEED(moxin_session_add_embedding(session, embedding, &error));
    NEED(moxin_session_add_text(session, MOXIN_ROLE_USER, QUESTION, MOXIN_STRLEN, &error));
    moxin_event event = empty_event();
    EXPECT(MOXIN_STATUS_CONTEXT_FULL, moxin_session_step(session, &event, &error));
    moxin_session_free(session);
}

/* An event's text stays valid while other sessions step and other calls use its own session. */
static void check_text_lifetime(const moxin_model *model, const moxin_embedding *embedding) {
    moxin_error *error = NULL;
    moxin_session *session = begin(model), *other = begin(model);
    moxin_event event = empty_event(), other_event = empty_event();
    moxin_stats stats = { 0 };
    char copy[64];
    stats.struct_size = sizeof stats;
    NEED(moxin_session_add_embedding(session, embedding, &error));
    NEED(moxin_session_add_text(session, MOXIN_ROLE_USER, QUESTION, MOXIN_STRLEN, &error));
    NEED(moxin_session_add_text(other, MOXIN_ROLE_USER, QUESTION, MOXIN_STRLEN, &error));
    do {
        NEED(moxin_session_step(session, &event, &error));
    } while (event.text.len == 0);
    CHECK(event.text.len < sizeof copy);
    strncpy(copy, event.text.data, sizeof copy - 1);
    copy[sizeof copy - 1] = '\0';
    NEED(moxin_session_step(other, &other_event, &error));
    NEED(moxin_session_step(other, &other_event, &error));
    NEED(moxin_session_stats(session, &stats, &error));
    moxin_session_cancel(session);
    CHECK(strcmp(copy, event.text.data) == 0);
    NEED(moxin_session_reset(session, &error));
    CHECK(strcmp(copy, event.text.data) == 0);
    moxin_session_free(session);
    moxin_session_free(other);
}

/* ---------------------------------------------------------------- frees in any order */

static void check_frees(const char *path, const moxin_image *image) {
    moxin_error *error = NULL;
    moxin_event event = empty_event();
    for (int order = 0; order < 6; order++) {
        moxin_model *model = load(path);
        moxin_embedding *embedding = NULL;
        moxin_session *session = begin(model);
        NEED(moxin_model_encode_image(model, image, NULL, NULL, &embedding, &error));
        NEED(moxin_session_add_embedding(session, embedding, &error));
        NEED(moxin_session_add_text(session, MOXIN_ROLE_USER, QUESTION, MOXIN_STRLEN, &error));
        NEED(moxin_session_step(session, &event, &error));
        const int first = order / 2, second = (first + 1 + order % 2) % 3;
        for (int i = 0; i < 3; i++) {
            const int which = i == 0 ? first : i == 1 ? second : 3 - first - second;
            if (which == 0) {
                moxin_model_free(model);
                model = NULL;
            } else if (which == 1) {
                moxin_embedding_free(embedding);
                embedding = NULL;
            } else {
                moxin_session_free(session);
                session = NULL;
            }
            /* The rest still works. */
            if (session != NULL) {
                NEED(moxin_session_step(session, &event, &error));
            }
            if (embedding != NULL) {
                moxin_embedding_info info = { 0 };
                info.struct_size = sizeof info;
                NEED(moxin_embedding_info_get(embedding, &info, &error));
                float *numbers = malloc(sizeof *numbers * info.token_count * info.hidden_size);
                NEED(moxin_embedding_copy(embedding, numbers,
                                          (size_t)info.token_count * info.hidden_size, &error));
                free(numbers);
            }
            if (model != NULL) {
                moxin_session_free(begin(model));
            }
        }
    }
}

/* ---------------------------------------------------------------- threads */

struct shared {
    moxin_session *session;
    pthread_mutex_t lock;
    int stepping;
    int ended;
    moxin_status status;
    moxin_event event;
};

static int read_flag(struct shared *shared, const int *flag) {
    pthread_mutex_lock(&shared->lock);
    int value = *flag;
    pthread_mutex_unlock(&shared->lock);
    return value;
}

static void set_flag(struct shared *shared, int *flag) {
    pthread_mutex_lock(&shared->lock);
    *flag = 1;
    pthread_mutex_unlock(&shared->lock);
}

/* Performs one step, of the encoders: the longest there is. */
static void *one_step(void *argument) {
    struct shared *shared = argument;
    do { /* the other thread may have the session for a moment */
        shared->status = moxin_session_step(shared->session, &shared->event, NULL);
    } while (shared->status == MOXIN_STATUS_BUSY);
    set_flag(shared, &shared->ended);
    return NULL;
}

static void check_busy(const moxin_model *model, const moxin_image *image) {
    moxin_error *error = NULL;
    int busy = 0;
    /* The step takes at least tens of milliseconds; if this thread misses one, there are more. */
    for (int attempt = 0; attempt < 20 && !busy; attempt++) {
        struct shared shared = { begin(model), PTHREAD_MUTEX_INITIALIZER, 0, 0, MOXIN_STATUS_OK,
                                 empty_event() };
        pthread_t thread;
        NEED(moxin_session_add_image(shared.session, image, NULL, &error));
        NEED(moxin_session_add_text(shared.session, MOXIN_ROLE_USER, QUESTION, MOXIN_STRLEN,
                                    &error));
        pthread_create(&thread, NULL, one_step, &shared);
        while (!busy && !read_flag(&shared, &shared.ended)) {
            busy = moxin_session_rewind(shared.session, 1, NULL) == MOXIN_STATUS_BUSY;
        }
        if (busy && !read_flag(&shared, &shared.ended)) {
            moxin_status status =
                moxin_session_add_text(shared.session, MOXIN_ROLE_USER, "x", 1, NULL);
            CHECK(status == MOXIN_STATUS_BUSY || read_flag(&shared, &shared.ended));
        }
        moxin_session_cancel(shared.session); /* never busy */
        pthread_join(thread, NULL);
        CHECK(shared.status == MOXIN_STATUS_OK);
        /* If the step had not started computing, it ended at once; otherwise the next one does. */
        moxin_finish_reason finish = shared.event.finish;
        if (shared.event.kind != MOXIN_EVENT_KIND_FINISHED) {
            finish = finish_answer(shared.session).finish;
        }
        CHECK(finish == MOXIN_FINISH_REASON_CANCELLED);
        moxin_session_free(shared.session);
    }
    CHECK(busy);
}

static void *ask_thread(void *argument) {
    struct answer *answer = malloc(sizeof *answer);
    if (answer != NULL) {
        *answer = ask(argument, QUESTION);
    }
    return answer;
}

/* Sessions on threads of their own have the results of a single one. */
static void check_threads(const moxin_model *model, const moxin_embedding *embedding) {
    enum { THREADS = 3 };
    moxin_error *error = NULL;
    moxin_session *sessions[THREADS];
    pthread_t threads[THREADS];
    moxin_session *alone = begin(model);
    NEED(moxin_session_add_embedding(alone, embedding, &error));
    struct answer expected = ask(alone, QUESTION);
    moxin_session_free(alone);
    for (int i = 0; i < THREADS; i++) {
        sessions[i] = begin(model);
        NEED(moxin_session_add_embedding(sessions[i], embedding, &error));
        pthread_create(&threads[i], NULL, ask_thread, sessions[i]);
    }
    for (int i = 0; i < THREADS; i++) {
        void *answer = NULL;
        pthread_join(threads[i], &answer);
        CHECK(answer != NULL && same_answer(&expected, answer));
        free(answer);
        moxin_session_free(sessions[i]);
    }
}

/* ---------------------------------------------------------------- ends of the process */

static void *step_for_ever(void *argument) {
    struct shared *shared = argument;
    moxin_event event = empty_event();
    for (;;) {
        moxin_session_add_text(shared->session, MOXIN_ROLE_USER, "Describe", MOXIN_STRLEN, NULL);
        do {
            moxin_session_step(shared->session, &event, NULL);
            set_flag(shared, &shared->stepping);
        } while (event.kind != MOXIN_EVENT_KIND_FINISHED);
        moxin_session_reset(shared->session, NULL);
    }
    return NULL;
}

static void exit_stepping(const char *path, long ms) {
    static struct shared shared = { .lock = PTHREAD_MUTEX_INITIALIZER };
    pthread_t thread;
    moxin_model *model = load(path);
    shared.session = begin(model);
    pthread_create(&thread, NULL, step_for_ever, &shared);
    while (!read_flag(&shared, &shared.stepping)) {
        sleep_ms(1);
    }
    sleep_ms(ms);
    exit(42);
}

static void *load_thread(void *argument) {
    for (;;) {
        moxin_model *model = NULL;
        moxin_model_load(argument, NULL, NULL, &model, NULL);
        moxin_model_free(model);
    }
    return NULL;
}

static void exit_loading(char *path) {
    pthread_t thread;
    pthread_create(&thread, NULL, load_thread, path);
    sleep_ms(30);
    exit(42);
}

static void *encode_thread(void *argument) {
    for (uint32_t pixel = 0;;
         pixel++) { /* another picture each time, because a cached one is not encoded again */
        moxin_image *image = NULL;
        moxin_embedding *embedding = NULL;
        moxin_image_from_pixels(&pixel, 1, 1, 4, MOXIN_PIXEL_FORMAT_RGBA8, &image, NULL);
        moxin_model_encode_image(argument, image, NULL, NULL, &embedding, NULL);
        moxin_embedding_free(embedding);
        moxin_image_free(image);
    }
    return NULL;
}

static void exit_encoding(const char *path) {
    pthread_t thread;
    pthread_create(&thread, NULL, encode_thread, load(path));
    sleep_ms(30);
    exit(42);
}

static bool exit_now(void *user_data, moxin_stage stage, float fraction) {
    (void)user_data;
    (void)stage;
    if (fraction > 0) {
        exit(42);
    }
    return true;
}

static void exit_in_progress(const char *path) {
    moxin_op op = { 0 };
    moxin_model *model = NULL;
    op.struct_size = sizeof op;
    op.progress = exit_now;
    moxin_model_load(path, NULL, &op, &model, NULL);
    exit(1);
}

static void exit_leaving(const char *path) {
    moxin_event event = empty_event();
    moxin_error *error = NULL;
    moxin_model *model = load(path);
    moxin_session *session = begin(model);
    moxin_cancel_new();
    moxin_model_load("no/such/folder", NULL, NULL, &model, &error);
    moxin_session_add_text(session, MOXIN_ROLE_USER, "Describe", MOXIN_STRLEN, NULL);
    for (int i = 0; i < 3; i++) {
        moxin_session_step(session, &event, NULL);
    }
    exit(42);
}

int main(int argc, char **argv) {
    const char *mode = argc > 1 ? argv[1] : "";
    if (strcmp(mode, "exit-stepping") == 0 && argc == 4) {
        exit_stepping(argv[2], atol(argv[3]));
    } else if (strcmp(mode, "exit-loading") == 0 && argc == 3) {
        exit_loading(argv[2]);
    } else if (strcmp(mode, "exit-encoding") == 0 && argc == 3) {
        exit_encoding(argv[2]);
    } else if (strcmp(mode, "exit-in-progress") == 0 && argc == 3) {
        exit_in_progress(argv[2]);
    } else if (strcmp(mode, "exit-leaving") == 0 && argc == 3) {
        exit_leaving(argv[2]);
    } else if (strcmp(mode, "check") != 0 || argc != 7) {
        fprintf(stderr, "see the top of abi.c for the arguments\n");
        return 2;
    }
    const char *path = argv[2], *image_path = argv[3];
    moxin_error *error = NULL;
    moxin_embedding *embedding = NULL;

    check_library();
    moxin_model *model = load(path);
    moxin_image *image = open_image(image_path);
    moxin_session *session = begin(model);
    NEED(moxin_model_encode_image(model, image, NULL, NULL, &embedding, &error));
    check_null(model, image, session, path);
    check_arguments(model, session, path);
    check_sizes(model, embedding, session, path);
    check_event_sizes(session);
    check_videos(model, image);
    check_images(model, image, image_path, argv[4], (uint32_t)atol(argv[5]),
                 (uint32_t)atol(argv[6]));
    check_operations(model, image, path);
    check_states(model, image, embedding);
    check_cancel(model, embedding);
    check_parameters(model, embedding);
    check_text_lifetime(model, embedding);
    check_frees(path, image);
    check_busy(model, image);
    check_threads(model, embedding);
    moxin_session_free(session);
    moxin_embedding_free(embedding);
    moxin_image_free(image);
    moxin_model_free(model);
    return failures > 0;
}
