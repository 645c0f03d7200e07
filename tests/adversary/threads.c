/*
 * Survives a temporary lack of threads: `threads MODE MODEL IMAGE [N]`. Run by process.rs. The
 * program's own pthread_create replaces the system's, for the library too, and fails if `refuse`
 * is set.
 */
#define _GNU_SOURCE
#include "check.h"

#include <dlfcn.h>
#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>

static atomic_int refuse, asked, refused;
static atomic_int fails = -1; /* the number of the one thread that fails, if refuse is 0 */

int pthread_create(pthread_t *thread, const pthread_attr_t *attributes, void *(*start)(void *),
                   void *argument) {
    typedef int create_fn(pthread_t *, const pthread_attr_t *, void *(*)(void *), void *);
    void *symbol = dlsym(RTLD_NEXT, "pthread_create");
    create_fn *create;
    memcpy(&create, &symbol, sizeof create);
    if (atomic_fetch_add(&asked, 1) == atomic_load(&fails) || atomic_load(&refuse)) {
        atomic_fetch_add(&refused, 1);
        return EAGAIN;
    }
    return create(thread, attributes, start, argument);
}

struct told {
    atomic_int events, finished, destroyed;
};

static bool on_event(void *user_data, const moxin_event *event) {
    struct told *told = user_data;
    atomic_fetch_add(&told->events, 1);
    atomic_fetch_add(&told->finished, event->kind == MOXIN_EVENT_KIND_FINISHED);
    return true;
}

static void on_log(void *user_data, moxin_log_level level, moxin_str target, moxin_str message) {
    struct told *told = user_data;
    (void)level;
    (void)target;
    (void)message;
    atomic_fetch_add(&told->events, 1);
}

static void on_destroy(void *user_data) {
    struct told *told = user_data;
    atomic_fetch_add(&told->destroyed, 1);
}

static void wait_for(atomic_int *count) {
    for (int i = 0; i < 5000 && atomic_load(count) == 0; i++) {
        sleep_ms(1);
    }
    CHECK(atomic_load(count) == 1);
}

/* Expects a refusal that says what was missing and what to do. */
static void expect_refusal(moxin_status status, moxin_error **error) {
    CHECK(status == MOXIN_STATUS_INVALID_STATE);
    CHECK(strstr(moxin_error_message(*error).data, "thread could not be started") != NULL);
    CHECK(strstr(moxin_error_message(*error).data, "try again") != NULL);
    moxin_error_free(*error);
    *error = NULL;
}

static void no_engine(const char *path) {
    moxin_error *error = NULL;
    moxin_model *model = NULL;
    atomic_store(&refuse, 1);
    for (int i = 0; i < 2; i++) {
        moxin_status status = moxin_model_load(path, NULL, NULL, &model, &error);
        expect_refusal(status, &error);
    }
    atomic_store(&refuse, 0);
    moxin_model_free(load(path));
}

static void no_log(const char *path) {
    static struct told first, second;
    moxin_error *error = NULL;
    atomic_store(&refuse, 1);
    moxin_status status = moxin_set_log(on_log, MOXIN_LOG_LEVEL_DEBUG, &first, on_destroy, &error);
    expect_refusal(status, &error);
    CHECK(first.destroyed == 1);
    atomic_store(&refuse, 0);
    NEED(moxin_set_log(on_log, MOXIN_LOG_LEVEL_DEBUG, &second, on_destroy, &error));
    moxin_model_free(load(path));
    NEED(moxin_set_log(NULL, MOXIN_LOG_LEVEL_OFF, NULL, NULL, &error));
    wait_for(&second.destroyed);
    CHECK(second.events > 0 && first.events == 0 && first.destroyed == 1);
}

static void no_stream(const char *path) {
    static struct told first, second;
    moxin_error *error = NULL;
    moxin_model *model = load(path);
    moxin_session *session = begin(model);
    NEED(moxin_session_add_text(session, MOXIN_ROLE_USER, "Describe", MOXIN_STRLEN, &error));
    atomic_store(&refuse, 1);
    moxin_status status = moxin_session_start(session, NULL, on_event, &first, on_destroy, &error);
    expect_refusal(status, &error);
    CHECK(first.destroyed == 1 && first.events == 0);
    atomic_store(&refuse, 0);
    NEED(moxin_session_start(session, NULL, on_event, &second, on_destroy, &error));
    wait_for(&second.destroyed);
    CHECK(second.finished == 1);
    moxin_session_free(session);
    moxin_model_free(model);
}

static struct answer answer_of(const moxin_model *model, const moxin_image *image) {
    moxin_error *error = NULL;
    moxin_session *session = begin(model);
    NEED(moxin_session_add_image(session, image, NULL, &error));
    struct answer answer = ask(session, "How many shapes are there?");
    moxin_session_free(session);
    return answer;
}

/* Fewer threads than requested only affect speed. */
static void no_pool(const char *path, const moxin_image *image) {
    moxin_model *model = load(path);
    CHECK(moxin_set_cpu_threads(8) == MOXIN_STATUS_OK);
    atomic_store(&refuse, 1);
    struct answer few = answer_of(model, image);
    CHECK(atomic_load(&refused) > 0);
    atomic_store(&refuse, 0);
    moxin_memory_trim();
    moxin_model_free(model);
    model = load(path);
    struct answer many = answer_of(model, image);
    CHECK(same_answer(&few, &many) && strcmp(many.text, "Three.") == 0);
    moxin_model_free(model);
}

/* Repeats a call until it succeeds, which is the second time at the latest. */
#define TRY(call)                                                                                  \
    do {                                                                                           \
        moxin_status status = call;                                                                \
        if (status != MOXIN_STATUS_OK) {                                                           \
            CHECK(moxin_error_message(error).len > 0);                                             \
            fprintf(stderr, "%s: %s\n", #call, moxin_error_message(error).data);                   \
            CHECK(status == MOXIN_STATUS_INVALID_STATE || status == MOXIN_STATUS_BACKEND);         \
            moxin_error_free(error);                                                               \
            error = NULL;                                                                          \
            NEED(call);                                                                            \
        }                                                                                          \
    } while (0)

/* One thread after the other cannot be started: a typed error, or none, and the next attempt works.
 */
static void each(const char *path, const moxin_image *image, int number) {
    static struct told log, stream;
    moxin_error *error = NULL;
    moxin_model *model = NULL;
    moxin_session *session = NULL;
    moxin_embedding *embedding = NULL;
    CHECK(moxin_set_cpu_threads(3) == MOXIN_STATUS_OK);
    atomic_store(&fails, atomic_load(&asked) + number);
    TRY(moxin_set_log(on_log, MOXIN_LOG_LEVEL_INFO, &log, on_destroy, &error));
    TRY(moxin_model_load(path, NULL, NULL, &model, &error));
    TRY(moxin_model_encode_image(model, image, NULL, NULL, &embedding, &error));
    TRY(moxin_session_new(model, NULL, &session, &error));
    TRY(moxin_session_add_embedding(session, embedding, &error));
    NEED(moxin_session_add_text(session, MOXIN_ROLE_USER, "How many shapes are there?",
                                MOXIN_STRLEN, &error));
    struct answer answer = finish_answer(session);
    CHECK(strcmp(answer.text, "Three.") == 0);
    NEED(moxin_session_add_text(session, MOXIN_ROLE_USER, "Describe", MOXIN_STRLEN, &error));
    memset(&stream, 0, sizeof stream);
    if (moxin_session_start(session, NULL, on_event, &stream, on_destroy, NULL) !=
        MOXIN_STATUS_OK) {
        CHECK(stream.destroyed == 1);
        memset(&stream, 0, sizeof stream);
        NEED(moxin_session_start(session, NULL, on_event, &stream, on_destroy, &error));
    }
    wait_for(&stream.destroyed);
    CHECK(stream.finished == 1);
    moxin_session_free(session);
    moxin_embedding_free(embedding);
    moxin_model_free(model);
    printf("refused %d\n", atomic_load(&refused));
}

int main(int argc, char **argv) {
    if (argc < 4) {
        return 2;
    }
    const char *mode = argv[1], *path = argv[2];
    moxin_image *image = open_image(argv[3]);
    if (strcmp(mode, "engine") == 0) {
        no_engine(path);
    } else if (strcmp(mode, "log") == 0) {
        no_log(path);
    } else if (strcmp(mode, "stream") == 0) {
        no_stream(path);
    } else if (strcmp(mode, "pool") == 0) {
        no_pool(path, image);
    } else if (strcmp(mode, "each") == 0 && argc == 5) {
        each(path, image, atoi(argv[4]));
    }
    moxin_image_free(image);
    return failures > 0;
}
