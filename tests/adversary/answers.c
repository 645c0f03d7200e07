/*
 * Stops an answer and the reading of a prompt at every place and in every way, and checks the
 * state afterwards. Run by answers.rs.
 *
 *   answers MODEL PICTURE places    at every place
 *   answers MODEL PICTURE heard     in the middle of slow layers, from another thread
 */
#include "check.h"

#include <pthread.h>

#define QUESTION "Describe the picture."

static const struct {
    const char *kind;
    moxin_status status;
} ENDS[] = {
    { "suspend", MOXIN_STATUS_SUSPENDED }, { "cancel", MOXIN_STATUS_CANCELLED },
    { "timeout", MOXIN_STATUS_TIMEOUT },   { "memory", MOXIN_STATUS_OUT_OF_MEMORY },
    { "mlx", MOXIN_STATUS_BACKEND },       { "eval", MOXIN_STATUS_BACKEND },
    { "panic", MOXIN_STATUS_PANIC },
};

/* In the picture's encoding, its projection, the first chunk of the prompt and a later one. The
 * model has four layers. */
static const char *const READING[] = { "encoder:5", "projector:2", "decoder:2", "decoder:7" };

/* Before the first token and in a later one, with the prompt in one chunk. */
static const char *const ANSWERING[] = { "head:1", "decoder:6" };

enum { ENDS_COUNT = sizeof ENDS / sizeof ENDS[0] };
#define COUNT_OF(list) (sizeof(list) / sizeof((list)[0]))

static struct answer expected;
static char case_name[64];

static void begin_case(const char *path, const char *kind, const char *place) {
    snprintf(case_name, sizeof case_name, "%s@%s", kind, place);
    if (getenv("ANSWERS_VERBOSE") != NULL) {
        fprintf(stderr, "%s %s\n", path, case_name);
    }
    setenv("MOXIN_TEST_FAULT", case_name, 1);
}

static void end_case(void) { unsetenv("MOXIN_TEST_FAULT"); }

static void expect_case(moxin_status wanted, moxin_status found, moxin_error **error, int line) {
    if (found != wanted) {
        fprintf(stderr, "answers.c:%d: %s: %s (%s), not %s\n", line, case_name,
                moxin_status_name((uint32_t)found), moxin_error_message(*error).data,
                moxin_status_name((uint32_t)wanted));
        failures++;
    }
    moxin_error_free(*error);
    *error = NULL;
}

static void check_answer(const struct answer *answer, int line) {
    if (!same_answer(answer, &expected)) {
        fprintf(stderr, "answers.c:%d: %s: \"%s\", not \"%s\"\n", line, case_name, answer->text,
                expected.text);
        failures++;
    }
}

/* Returns whether a place is reached only for a picture that is not in the cache. */
static int is_in_encoding(const char *place) {
    return strncmp(place, "encoder", 7) == 0 || strncmp(place, "projector", 9) == 0;
}

/* Returns a session with the picture, which is not encoded yet if the place is in its encoding. */
static moxin_session *look(const moxin_model *model, const moxin_image *image, uint32_t chunk,
                           const char *place) {
    moxin_error *error = NULL;
    moxin_session *session = NULL;
    moxin_session_params params;
    if (is_in_encoding(place)) {
        moxin_memory_trim();
    }
    moxin_session_params_init(&params, sizeof params);
    params.prefill_chunk = chunk;
    params.max_tokens = 4; /* answers could be longer: the tested places come before */
    NEED(moxin_session_new(model, &params, &session, &error));
    NEED(moxin_session_add_image(session, image, NULL, &error));
    return session;
}

static void put(moxin_session *session, const char *question) {
    moxin_error *error = NULL;
    NEED(moxin_session_add_text(session, MOXIN_ROLE_USER, question, MOXIN_STRLEN, &error));
}

/* A turn that was rolled back removed its picture: a new one is accepted. */
static void check_taken_back(moxin_session *session, const moxin_image *image, int line) {
    moxin_error *error = NULL;
    CHECK(stats_of(session).message_count == 0);
    expect_case(MOXIN_STATUS_OK, moxin_session_add_image(session, image, NULL, &error), &error,
                line);
    struct answer answer = ask(session, QUESTION);
    check_answer(&answer, line);
}

/* ---------------------------------------------------------------- prefill */

static void check_picture_alone(const moxin_model *model, const moxin_image *image, int end,
                                const char *place, int again) {
    moxin_error *error = NULL;
    moxin_session *session = look(model, image, 40, place);
    begin_case("a picture", ENDS[end].kind, place);
    moxin_status status = moxin_session_prefill(session, NULL, &error);
    end_case();
    expect_case(ENDS[end].status, status, &error, __LINE__);
    if (again) {
        expect_case(MOXIN_STATUS_OK, moxin_session_prefill(session, NULL, &error), &error,
                    __LINE__);
    }
    struct answer answer =
        ask(session, QUESTION); /* a session that is generating would refuse the text */
    check_answer(&answer, __LINE__);
    moxin_session_free(session);
}

static void check_question(const moxin_model *model, const moxin_image *image, int end,
                           const char *place, int again) {
    moxin_error *error = NULL;
    moxin_session *session = look(model, image, 40, place);
    put(session, QUESTION);
    begin_case("a question", ENDS[end].kind, place);
    moxin_status status = moxin_session_prefill(session, NULL, &error);
    end_case();
    expect_case(ENDS[end].status, status, &error, __LINE__);
    if (ENDS[end].status == MOXIN_STATUS_SUSPENDED) {
        CHECK(stats_of(session).message_count == 1);
        if (again) {
            expect_case(MOXIN_STATUS_OK, moxin_session_prefill(session, NULL, &error), &error,
                        __LINE__);
        }
        struct answer answer = finish_answer(session);
        check_answer(&answer, __LINE__);
    } else {
        check_taken_back(session, image, __LINE__);
    }
    moxin_session_free(session);
}

/* ---------------------------------------------------------------- steps and streams */

static void check_steps(const moxin_model *model, const moxin_image *image, int end,
                        const char *place, uint32_t chunk) {
    moxin_error *error = NULL;
    moxin_event event = empty_event();
    moxin_session *session = look(model, image, chunk, place),
                  *untouched = look(model, image, chunk, place);
    struct answer answer;
    moxin_status status = MOXIN_STATUS_OK;
    put(untouched, QUESTION);
    NEED(moxin_session_step(untouched, &event, &error));
    NEED(moxin_session_step(untouched, &event, &error));
    if (is_in_encoding(place)) {
        moxin_memory_trim();
    }
    put(session, QUESTION);
    memset(&answer, 0, sizeof answer);
    begin_case("steps", ENDS[end].kind, place);
    do {
        status = moxin_session_step(session, &event, &error);
        if (status == MOXIN_STATUS_OK && event.kind == MOXIN_EVENT_KIND_TEXT) {
            answer.tokens[answer.count++] = event.token_id;
            strncat(answer.text, event.text.data, sizeof answer.text - strlen(answer.text) - 1);
        }
    } while (status == MOXIN_STATUS_OK && event.kind != MOXIN_EVENT_KIND_FINISHED);
    end_case();
    if (ENDS[end].status == MOXIN_STATUS_CANCELLED) {
        expect_case(MOXIN_STATUS_OK, status, &error, __LINE__);
        CHECK(event.finish == MOXIN_FINISH_REASON_CANCELLED);
    } else {
        expect_case(ENDS[end].status, status, &error, __LINE__);
    }
    if (ENDS[end].status == MOXIN_STATUS_SUSPENDED) {
        struct answer rest = finish_answer(session);
        for (int i = 0; i < rest.count && answer.count < MAX_TOKENS; i++) {
            answer.tokens[answer.count++] = rest.tokens[i];
        }
        strncat(answer.text, rest.text, sizeof answer.text - strlen(answer.text) - 1);
        answer.finish = rest.finish;
        check_answer(&answer, __LINE__);
    } else {
        check_taken_back(session, image, __LINE__);
    }
    /* Another session, in the middle of its answer, is not affected. */
    answer = finish_answer(untouched);
    check_answer(&answer, __LINE__);
    moxin_session_free(session);
    moxin_session_free(untouched);
}

struct stream {
    pthread_mutex_t lock;
    pthread_cond_t changed;
    struct answer answer;
    moxin_status error;
    int ended;
};

static bool on_event(void *user_data, const moxin_event *event) {
    struct stream *stream = user_data;
    if (event->kind == MOXIN_EVENT_KIND_TEXT && stream->answer.count < MAX_TOKENS) {
        stream->answer.tokens[stream->answer.count++] = event->token_id;
    }
    strncat(stream->answer.text, event->text.data,
            sizeof stream->answer.text - strlen(stream->answer.text) - 1);
    if (event->kind == MOXIN_EVENT_KIND_FINISHED) {
        stream->answer.finish = event->finish;
        stream->error = moxin_error_status(event->error);
    }
    return true;
}

static void on_destroy(void *user_data) {
    struct stream *stream = user_data;
    pthread_mutex_lock(&stream->lock);
    stream->ended = 1;
    pthread_cond_broadcast(&stream->changed);
    pthread_mutex_unlock(&stream->lock);
}

static void init_stream(struct stream *stream) {
    memset(stream, 0, sizeof *stream);
    pthread_mutex_init(&stream->lock, NULL);
    pthread_cond_init(&stream->changed, NULL);
}

static void wait_for_end(struct stream *stream) {
    pthread_mutex_lock(&stream->lock);
    while (!stream->ended) {
        pthread_cond_wait(&stream->changed, &stream->lock);
    }
    pthread_mutex_unlock(&stream->lock);
}

static void check_stream(const moxin_model *model, const moxin_image *image, int end,
                         const char *place, uint32_t chunk) {
    moxin_error *error = NULL;
    moxin_session *session = look(model, image, chunk, place);
    struct stream stream;
    init_stream(&stream);
    put(session, QUESTION);
    begin_case("a stream", ENDS[end].kind, place);
    NEED(moxin_session_start(session, NULL, on_event, &stream, on_destroy, &error));
    wait_for_end(&stream);
    end_case();
    switch (ENDS[end].status) {
    case MOXIN_STATUS_SUSPENDED: /* it is only suspended for a moment */
        check_answer(&stream.answer, __LINE__);
        break;
    case MOXIN_STATUS_CANCELLED:
        CHECK(stream.answer.finish == MOXIN_FINISH_REASON_CANCELLED);
        check_taken_back(session, image, __LINE__);
        break;
    default:
        CHECK(stream.answer.finish == MOXIN_FINISH_REASON_ERROR);
        expect_case(ENDS[end].status, stream.error, &error, __LINE__);
        check_taken_back(session, image, __LINE__);
    }
    moxin_session_free(session);
}

/* ---------------------------------------------------------------- moxin_session_cancel in prefill
 */

static bool cancel_session(void *session, moxin_stage stage, float fraction) {
    (void)stage;
    (void)fraction;
    moxin_session_cancel(session);
    return true;
}

/* It takes effect while the prompt is read, and not only when the first token comes. */
static void check_cancel(const moxin_model *model, const moxin_image *image) {
    for (int asked = 0; asked < 2; asked++) {
        moxin_error *error = NULL;
        moxin_session *session = look(model, image, 256, "encoder");
        moxin_op op = { 0 };
        snprintf(case_name, sizeof case_name, "moxin_session_cancel, asked: %d", asked);
        op.struct_size = sizeof op;
        op.progress = cancel_session;
        op.user_data = session;
        if (asked) {
            put(session, QUESTION);
        }
        expect_case(MOXIN_STATUS_CANCELLED, moxin_session_prefill(session, &op, &error), &error,
                    __LINE__);
        if (asked) {
            check_taken_back(session, image, __LINE__);
        } else {
            struct answer answer = ask(session, QUESTION);
            check_answer(&answer, __LINE__);
        }
        moxin_session_free(session);
    }
}

/* ---------------------------------------------------------------- how soon cancelling takes effect
 */

enum { LAYER_MS = 400, LAYERS = 4 }; /* as the fault "slow" causes */

struct later {
    pthread_t thread;
    moxin_session *session;
    moxin_cancel *cancel;
    int suspends;
    long acted;
};

static long now_ms(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return time.tv_sec * 1000 + time.tv_nsec / 1000000;
}

static void *act_later(void *data) {
    struct later *later = data;
    sleep_ms(LAYER_MS / 4);
    later->acted = now_ms();
    moxin_session_cancel(later->session);
    moxin_cancel_trigger(later->cancel);
    if (later->suspends) {
        moxin_error *error = NULL;
        NEED(moxin_suspend(10000, &error));
    }
    return NULL;
}

enum work { PREFILL, STEP, DECODE, ENCODE, STREAM };
enum heard { BY_SESSION, BY_OP, BY_TIME, BY_SUSPEND };

/* Each layer is slow. The cancellation comes in the first, and the work ends after it: the others
 * are not computed. */
static void check_heard(const moxin_model *model, const moxin_image *image, enum work work,
                        enum heard heard) {
    static const moxin_status ends[] = { MOXIN_STATUS_CANCELLED, MOXIN_STATUS_CANCELLED,
                                         MOXIN_STATUS_TIMEOUT, MOXIN_STATUS_SUSPENDED };
    moxin_error *error = NULL;
    moxin_event event = empty_event();
    moxin_embedding *embedding = NULL;
    moxin_session *session = look(model, image, 256, work == ENCODE ? "encoder" : "decoder");
    moxin_op op = { 0 };
    struct later later;
    struct stream stream;
    moxin_status status = MOXIN_STATUS_OK;
    memset(&later, 0, sizeof later);
    init_stream(&stream);
    op.struct_size = sizeof op;
    put(session, QUESTION);
    if (work != ENCODE) { /* the picture is cached: only the prompt must be read */
        NEED(moxin_session_step(session, &event, &error));
    }
    for (int texts = 0; work == DECODE && texts < 1; texts += event.kind == MOXIN_EVENT_KIND_TEXT) {
        NEED(moxin_session_step(session, &event, &error));
    }
    moxin_cancel *cancel = moxin_cancel_new();
    op.cancel = cancel;
    op.timeout_ms = heard == BY_TIME ? LAYER_MS / 4 : 0;
    later.session = heard == BY_SESSION ? session : NULL;
    later.cancel = heard == BY_OP ? cancel : NULL;
    later.suspends = heard == BY_SUSPEND;
    begin_case("heard", "slow", work == ENCODE ? "encoder" : "decoder");
    pthread_create(&later.thread, NULL, act_later, &later);
    switch (work) {
    case PREFILL:
        status = moxin_session_prefill(session, &op, &error);
        break;
    case ENCODE:
        status = moxin_model_encode_image(model, image, NULL, &op, &embedding, &error);
        break;
    case STREAM:
        NEED(moxin_session_start(session, &op, on_event, &stream, on_destroy, &error));
        wait_for_end(&stream);
        status = stream.answer.finish == MOXIN_FINISH_REASON_CANCELLED ? MOXIN_STATUS_CANCELLED
                                                                       : stream.error;
        break;
    default:
        status = moxin_session_step(session, &event, &error);
        if (status == MOXIN_STATUS_OK && event.finish == MOXIN_FINISH_REASON_CANCELLED) {
            status = MOXIN_STATUS_CANCELLED;
        }
    }
    const long ended = now_ms();
    pthread_join(later.thread, NULL);
    const long took = ended - later.acted;
    end_case();
    moxin_resume();
    snprintf(case_name, sizeof case_name, "work %d, ended by %d, after %ld ms", (int)work,
             (int)heard, took);
    expect_case(ends[heard], status, &error, __LINE__);
    if (took >= (LAYERS - 1) * LAYER_MS) { /* three and a half were left */
        fprintf(stderr, "answers.c:%d: heard too late: %s\n", __LINE__, case_name);
        failures++;
    }
    moxin_cancel_free(cancel);
    moxin_embedding_free(embedding);
    moxin_session_free(session);
}

static void check_all_heard(const moxin_model *model, const moxin_image *image) {
    for (int heard = BY_SESSION; heard <= BY_SUSPEND; heard++) {
        check_heard(model, image, PREFILL, (enum heard)heard);
        if (heard == BY_SESSION || heard == BY_SUSPEND) {
            check_heard(model, image, STEP, (enum heard)heard);
            check_heard(model, image, DECODE, (enum heard)heard);
        }
        if (heard != BY_SESSION) {
            check_heard(model, image, ENCODE, (enum heard)heard);
        }
        if (heard != BY_SUSPEND) {
            check_heard(model, image, STREAM, (enum heard)heard);
        }
    }
}

int main(int argc, char **argv) {
    if (argc != 4) {
        return 2;
    }
    setenv("RUST_BACKTRACE", "0", 1); /* deliberate panics need none */
    moxin_model *model = load(argv[1]);
    moxin_image *image = open_image(argv[2]);
    moxin_session *session = look(model, image, 256, "encoder");
    expected = ask(session, QUESTION);
    moxin_session_free(session);
    if (strcmp(argv[3], "heard") == 0) {
        check_all_heard(model, image);
    }
    for (int end = 0; strcmp(argv[3], "places") == 0 && end < ENDS_COUNT; end++) {
        const int is_timeout =
            ENDS[end].status == MOXIN_STATUS_TIMEOUT; /* a step has no time limit */
        for (size_t i = 0; i < COUNT_OF(READING); i++) {
            check_picture_alone(model, image, end, READING[i], 0);
            check_question(model, image, end, READING[i], 0);
            if (ENDS[end].status == MOXIN_STATUS_SUSPENDED) {
                check_picture_alone(model, image, end, READING[i], 1);
                check_question(model, image, end, READING[i], 1);
            }
            if (!is_timeout) {
                check_steps(model, image, end, READING[i], 40);
            }
            check_stream(model, image, end, READING[i], 40);
        }
        for (size_t i = 0; i < COUNT_OF(ANSWERING); i++) {
            if (!is_timeout) {
                check_steps(model, image, end, ANSWERING[i], 256);
            }
            check_stream(model, image, end, ANSWERING[i], 256);
        }
    }
    check_cancel(model, image);
    moxin_image_free(image);
    moxin_model_free(model);
    return failures > 0;
}
