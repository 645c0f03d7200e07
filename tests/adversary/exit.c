/*
 * Exits while a stream runs, with handlers of its own that free objects and call the library:
 * `exit MODE MODEL IMAGE`. Run by process.rs. No callback may be called once a handler runs that
 * was registered before the library's.
 */
#include "check.h"

#include <pthread.h>
#include <stdatomic.h>
#include <unistd.h>

static const char *mode, *path;
static moxin_model *model;
static moxin_session *session;
static atomic_int events, messages, destroyed, over;

static int is_mode(const char *name) { return strcmp(mode, name) == 0; }

/* Callbacks that come too late end the process with a status of their own. */
static void called(atomic_int *count) {
    if (atomic_load(&over)) {
        fprintf(stderr, "a callback was called after the library's exit handler\n");
        _exit(9);
    }
    atomic_fetch_add(count, 1);
}

static bool on_event(void *user_data, const moxin_event *event) {
    (void)user_data;
    (void)event;
    called(&events);
    if (is_mode("callback") || is_mode("freeing")) {
        sleep(100);
    }
    if (is_mode("inside") && atomic_load(&events) == 3) {
        exit(0);
    }
    sleep_ms(2);
    return true;
}

static void on_destroy(void *user_data) {
    (void)user_data;
    called(&destroyed);
}

static void on_log(void *user_data, moxin_log_level level, moxin_str target, moxin_str message) {
    (void)user_data;
    (void)level;
    (void)target;
    (void)message;
    called(&messages);
    sleep_ms(is_mode("slow-log") ? 100000 : 1);
}

static bool on_progress(void *user_data, moxin_stage stage, float fraction) {
    (void)user_data;
    (void)stage;
    (void)fraction;
    called(&events);
    if (is_mode("progress")) {
        sleep(100);
    }
    return true;
}

/* During process exit every call returns immediately, and computes nothing. */
static void ask_everything(void) {
    moxin_model *no_model = NULL;
    moxin_session *no_session = NULL;
    moxin_event event = empty_event();
    moxin_memory_stats memory;
    memset(&memory, 0, sizeof memory);
    memory.struct_size = sizeof memory;
    CHECK(moxin_model_load(path, NULL, NULL, &no_model, NULL) == MOXIN_STATUS_CANCELLED);
    CHECK(moxin_session_new(model, NULL, &no_session, NULL) == MOXIN_STATUS_CANCELLED);
    CHECK(moxin_session_step(session, &event, NULL) != MOXIN_STATUS_OK);
    CHECK(moxin_session_reset(session, NULL) != MOXIN_STATUS_OK);
    CHECK(moxin_model_unload(model, NULL) == MOXIN_STATUS_CANCELLED);
    moxin_session_start(session, NULL, on_event, NULL, NULL, NULL);
    moxin_set_log(NULL, MOXIN_LOG_LEVEL_OFF, NULL, NULL, NULL);
    moxin_memory_stats_get(&memory, NULL);
    moxin_memory_trim();
    moxin_suspend(100000, NULL);
    moxin_resume();
}

/* Registered before the first library call, so that it runs after the library's own handler. */
static void last_handler(void) {
    atomic_store(&over, 1);
    ask_everything();
    moxin_session_free(session);
    moxin_model_free(model);
    sleep_ms(50); /* for callbacks that come too late */
    if (failures > 0) {
        _exit(1);
    }
}

/* Registered after it, so that it runs before: everything works as usual. */
static void first_handler(void) {
    moxin_session_free(session);
    CHECK(atomic_load(&destroyed) == 1);
    session = NULL;
}

static void start_stream(void) {
    moxin_error *error = NULL;
    moxin_session_params params;
    moxin_session_params_init(&params, sizeof params);
    params.temperature = 50; /* generates a long answer */
    NEED(moxin_session_new(model, &params, &session, &error));
    NEED(moxin_session_add_text(session, MOXIN_ROLE_USER, "Describe", MOXIN_STRLEN, &error));
    NEED(moxin_session_start(session, NULL, on_event, NULL, on_destroy, &error));
}

static void wait_for(atomic_int *count) {
    for (int i = 0; i < 10000 && atomic_load(count) == 0; i++) {
        sleep_ms(1);
    }
    CHECK(atomic_load(count) > 0);
}

static void *load_again(void *unused) {
    moxin_op op;
    memset(&op, 0, sizeof op);
    op.struct_size = sizeof op;
    op.progress = on_progress;
    for (;;) {
        moxin_model *other = NULL;
        moxin_model_load(path, NULL, &op, &other, NULL);
        moxin_model_free(other);
    }
    return unused;
}

static pthread_t freer;

static void *free_session(void *unused) {
    moxin_session_free(session);
    return unused;
}

static void join_freer(void) {
    pthread_join(freer, NULL);
    session = NULL;
}

int main(int argc, char **argv) {
    moxin_error *error = NULL;
    if (argc != 4) {
        return 2;
    }
    mode = argv[1];
    path = argv[2];
    atexit(last_handler);
    if (is_mode("freeing")) {
        atexit(join_freer);
    }
    if (is_mode("log") || is_mode("slow-log")) {
        NEED(moxin_set_log(on_log, MOXIN_LOG_LEVEL_TRACE, NULL, on_destroy, &error));
    }
    model = load(path);
    start_stream();
    wait_for(&events);
    if (is_mode("after")) {
        atexit(first_handler);
    } else if (is_mode("suspended")) {
        NEED(moxin_suspend(10000, &error));
        sleep_ms(50);
    } else if (is_mode("log") || is_mode("slow-log")) {
        wait_for(&messages);
    } else if (is_mode("operation") || is_mode("progress")) {
        pthread_t thread;
        atomic_store(&events, 0);
        pthread_create(&thread, NULL, load_again, NULL);
        wait_for(&events);
    } else if (is_mode("freeing")) {
        pthread_create(&freer, NULL, free_session, NULL);
        sleep_ms(20);
    } else if (is_mode("inside")) {
        sleep(100);
    }
    return failures > 0;
}
