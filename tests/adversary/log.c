/*
 * Careless log callbacks: `log MODE MODEL IMAGE`. Run by process.rs.
 */
#include "check.h"

#include <pthread.h>
#include <stdatomic.h>

enum { THREADS = 3, CALLS = 40000 };

static atomic_int messages, wrong, sinks, slow;
static atomic_long dropped;

static void fail_once(void) {
    CHECK(moxin_session_step(NULL, NULL, NULL) == MOXIN_STATUS_NULL_ARGUMENT); /* logged at DEBUG */
}

static void wait_for(atomic_int *count, int least) {
    for (int i = 0; i < 5000 && atomic_load(count) < least; i++) {
        sleep_ms(1);
    }
    CHECK(atomic_load(count) >= least);
}

static void on_log_that_calls(void *user_data, moxin_log_level level, moxin_str target,
                              moxin_str message) {
    (void)user_data;
    (void)level;
    (void)target;
    (void)message;
    atomic_fetch_add(&messages, 1);
    fail_once();
}

/* A callback that calls the library at DEBUG does not feed itself. */
static void feed_itself(void) {
    moxin_error *error = NULL;
    NEED(moxin_set_log(on_log_that_calls, MOXIN_LOG_LEVEL_DEBUG, NULL, NULL, &error));
    fail_once();
    wait_for(&messages, 1);
    sleep_ms(200);
    CHECK(atomic_load(&messages) == 1);
    fail_once();
    wait_for(&messages, 2);
    sleep_ms(50);
    CHECK(atomic_load(&messages) == 2);
}

static void on_log_slowly(void *user_data, moxin_log_level level, moxin_str target,
                          moxin_str message) {
    (void)user_data;
    (void)target;
    long count = 0;
    if (sscanf(message.data, "%ld messages were dropped", &count) == 1) {
        CHECK(level == MOXIN_LOG_LEVEL_WARN);
        atomic_fetch_add(&dropped, count);
        return;
    }
    atomic_fetch_add(&messages, 1);
    if (atomic_load(&slow)) {
        sleep_ms(10);
    }
}

static void *fail_often(void *unused) {
    for (int i = 0; i < CALLS; i++) {
        fail_once();
    }
    return unused;
}

/* Messages that a slow callback does not handle are dropped, and each is counted. */
static void be_slow(void) {
    moxin_error *error = NULL;
    pthread_t threads[THREADS];
    atomic_store(&slow, 1);
    NEED(moxin_set_log(on_log_slowly, MOXIN_LOG_LEVEL_DEBUG, NULL, NULL, &error));
    for (int i = 0; i < THREADS; i++) {
        pthread_create(&threads[i], NULL, fail_often, NULL);
    }
    for (int i = 0; i < THREADS; i++) {
        pthread_join(threads[i], NULL);
    }
    atomic_store(&slow, 0);
    for (int i = 0;
         i < 5000 && atomic_load(&messages) + atomic_load(&dropped) < (long)THREADS * CALLS; i++) {
        sleep_ms(1);
    }
    CHECK(atomic_load(&messages) + atomic_load(&dropped) == (long)THREADS * CALLS);
    CHECK(atomic_load(&dropped) > CALLS);
    fail_once();
    const int before = atomic_load(&messages);
    wait_for(&messages, before);
}

static void on_log_with_level(void *user_data, moxin_log_level level, moxin_str target,
                              moxin_str message) {
    (void)target;
    (void)message;
    atomic_fetch_add(&messages, 1);
    if (level > *(const moxin_log_level *)user_data) {
        atomic_fetch_add(&wrong, 1);
    }
}

static void on_destroy(void *user_data) {
    (void)user_data;
    atomic_fetch_add(&sinks, 1);
}

static void *set_often(void *user_data) {
    moxin_error *error = NULL;
    const moxin_log_level *level = user_data;
    for (int i = 0; i < 2000; i++) {
        NEED(moxin_set_log(on_log_with_level, *level, user_data, on_destroy, &error));
        fail_once();
    }
    return user_data;
}

/* Callback and level are set together: no callback gets messages of another's level. */
static void set_together(void) {
    moxin_error *error = NULL;
    static moxin_log_level levels[2] = { MOXIN_LOG_LEVEL_ERROR, MOXIN_LOG_LEVEL_DEBUG };
    pthread_t threads[2];
    for (int i = 0; i < 2; i++) {
        pthread_create(&threads[i], NULL, set_often, &levels[i]);
    }
    for (int i = 0; i < 2; i++) {
        pthread_join(threads[i], NULL);
    }
    NEED(moxin_set_log(NULL, MOXIN_LOG_LEVEL_OFF, NULL, NULL, &error));
    wait_for(&sinks, 4000);
    CHECK(atomic_load(&messages) > 0 && atomic_load(&wrong) == 0 && atomic_load(&sinks) == 4000);
}

static moxin_session *streaming;
static atomic_int destroyed;

static bool on_event(void *user_data, const moxin_event *event) {
    (void)user_data;
    (void)event;
    sleep_ms(5);
    return true;
}

/* Frees the session whose stream is running: if it blocked, it would wait for the stream's end. */
static void free_in_destroy(void *user_data) {
    (void)user_data;
    moxin_session_free(streaming);
    atomic_fetch_add(&destroyed, 1);
}

static void count_destroyed(void *user_data) { atomic_fetch_add((atomic_int *)user_data, 1); }

/* destroy of a failing call is a callback like any other: a free in it does not block. */
static void destroy_frees(const char *path) {
    moxin_error *error = NULL;
    moxin_model *model = load(path);
    moxin_session_params params;
    atomic_int ended = 0;
    moxin_session_params_init(&params, sizeof params);
    params.temperature = 50; /* generates a long answer */
    for (int i = 0; i < 2; i++) {
        ended = 0;
        NEED(moxin_session_new(model, &params, &streaming, &error));
        NEED(moxin_session_add_text(streaming, MOXIN_ROLE_USER, "Describe", MOXIN_STRLEN, &error));
        moxin_session *keep = NULL;
        NEED(moxin_session_fork(streaming, &keep, &error));
        NEED(moxin_session_start(streaming, NULL, on_event, &ended, count_destroyed, &error));
        if (i == 0) {
            EXPECT(MOXIN_STATUS_BUSY,
                   moxin_session_start(streaming, NULL, on_event, NULL, free_in_destroy, &error));
        } else {
            EXPECT(MOXIN_STATUS_INVALID_ARGUMENT,
                   moxin_set_log(on_log_slowly, 99, NULL, free_in_destroy, &error));
        }
        CHECK(atomic_load(&ended) == 0); /* the free has not waited for the stream */
        CHECK(atomic_load(&destroyed) == i + 1);
        wait_for(&ended, 1);
        moxin_session_free(keep);
    }
    moxin_model_free(model);
}

int main(int argc, char **argv) {
    if (argc != 4) {
        return 2;
    }
    if (strcmp(argv[1], "feed") == 0) {
        feed_itself();
    } else if (strcmp(argv[1], "slow") == 0) {
        be_slow();
    } else if (strcmp(argv[1], "set") == 0) {
        set_together();
    } else if (strcmp(argv[1], "destroy") == 0) {
        destroy_frees(argv[2]);
    }
    return failures > 0;
}
