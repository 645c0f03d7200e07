/*
 * Eight threads that start, fork, step, stream, cancel, suspend and free sessions at random. Run by
 * tests/c.rs.
 *
 *   stress MODEL ROUNDS [SEED]      ROUNDS for each thread
 */
#include "check.h"

#include <pthread.h>

enum { THREADS = 8, SLOTS = 4 };

static moxin_model *model;
static moxin_embedding *picture;
static const char *model_path;

/* Sessions that every thread may cancel, or take out and free. The lock protects the pointer, not
 * the session. */
static struct {
    pthread_mutex_t lock;
    moxin_session *session;
} slots[SLOTS];

static pthread_mutex_t counters = PTHREAD_MUTEX_INITIALIZER;
static int started, ended, destroyed, cancelled, finished, failed;

static void count(int *counter) {
    pthread_mutex_lock(&counters);
    (*counter)++;
    pthread_mutex_unlock(&counters);
}

/* xorshift (Marsaglia, 2003) */
static uint32_t draw(uint32_t *state, uint32_t below) {
    *state ^= *state << 13;
    *state ^= *state >> 17;
    *state ^= *state << 5;
    return *state % below;
}

/* Whatever other threads do, a call may only fail in these ways. */
static void allow(moxin_status status, moxin_error **error, const char *call, int line) {
    switch (status) {
    case MOXIN_STATUS_OK:
    case MOXIN_STATUS_BUSY:
    case MOXIN_STATUS_SUSPENDED:
    case MOXIN_STATUS_CANCELLED:
    case MOXIN_STATUS_INVALID_STATE:
    case MOXIN_STATUS_TIMEOUT:
        break;
    default:
        fprintf(stderr, "stress.c:%d: %s: %s (%s)\n", line, call,
                moxin_status_name((uint32_t)status), moxin_error_message(*error).data);
        count(&failures);
    }
    check((status == MOXIN_STATUS_OK) == (*error == NULL), call, __FILE__, line);
    moxin_error_free(*error);
    *error = NULL;
}

#define ALLOW(call) allow(call, &error, #call, __LINE__)

static moxin_session *ready(uint32_t *random) {
    moxin_error *error = NULL;
    moxin_session *session = NULL;
    moxin_session_params params;
    moxin_session_params_init(&params, sizeof params);
    params.max_tokens = 1 + draw(random, 12);
    params.prefill_chunk = 8 + draw(random, 100);
    params.temperature = draw(random, 2) ? 1.0f : 0.0f;
    params.seed = draw(random, 1000);
    NEED(moxin_session_new(model, &params, &session, &error));
    if (draw(random, 2)) {
        NEED(moxin_session_add_embedding(session, picture, &error));
    }
    NEED(moxin_session_add_text(session, MOXIN_ROLE_USER, "How many shapes are there?",
                                MOXIN_STRLEN, &error));
    return session;
}

struct stream {
    moxin_session *session; /* freed at the event with this number; 0: never */
    int free_at;
    int stop_at; /* returns false there */
    int events;
    int last;
};

static bool on_event(void *user_data, const moxin_event *event) {
    struct stream *stream = user_data;
    CHECK(stream->last == 0);
    stream->events++;
    if (stream->events == stream->free_at) {
        moxin_session_free(stream->session);
    }
    if (event->kind == MOXIN_EVENT_KIND_FINISHED) {
        stream->last = 1;
        count(&ended);
        count(event->finish == MOXIN_FINISH_REASON_CANCELLED ? &cancelled
              : event->finish == MOXIN_FINISH_REASON_ERROR   ? &failed
                                                             : &finished);
    }
    return stream->events != stream->stop_at;
}

static void on_destroy(void *user_data) {
    struct stream *stream = user_data;
    CHECK(stream->last == 1);
    if (stream->free_at > stream->events) {
        moxin_session_free(stream->session); /* the answer was shorter */
    }
    free(stream);
    count(&destroyed);
}

static void stream(moxin_session *session, uint32_t *random, int frees_itself) {
    moxin_error *error = NULL;
    struct stream *stream = calloc(1, sizeof *stream);
    if (stream == NULL) {
        exit(1);
    }
    stream->session = session;
    stream->free_at = frees_itself ? 1 + (int)draw(random, 6) : 0;
    stream->stop_at = draw(random, 4) ? 0 : 1 + (int)draw(random, 6);
    count(&started);
    NEED(moxin_session_start(session, NULL, on_event, stream, on_destroy, &error));
}

static void pull(moxin_session *session, uint32_t *random) {
    moxin_error *error = NULL;
    moxin_event event = empty_event();
    for (uint32_t steps = draw(random, 10); steps > 0 && event.kind != MOXIN_EVENT_KIND_FINISHED;
         steps--) {
        ALLOW(moxin_session_step(session, &event, &error));
        if (draw(random, 10) == 0) {
            moxin_session_cancel(session);
        }
    }
}

static bool free_in_progress(void *user_data, moxin_stage stage, float fraction) {
    moxin_session **session = user_data;
    (void)stage;
    (void)fraction;
    moxin_session_free(*session); /* its current call continues */
    *session = NULL;
    return true;
}

static void one_round(uint32_t *random) {
    moxin_error *error = NULL;
    const uint32_t slot = draw(random, SLOTS);
    moxin_session *session = NULL, *fork = NULL;
    moxin_op op = { 0 };
    op.struct_size = sizeof op;
    switch (draw(random, 12)) {
    case 0:
    case 1: /* step by step, perhaps not to the end */
        session = ready(random);
        pull(session, random);
        moxin_session_free(session);
        break;
    case 2: /* streamed, and freed at some time */
        session = ready(random);
        stream(session, random, 0);
        sleep_ms((long)draw(random, 4));
        moxin_session_free(session);
        break;
    case 3: /* streamed, and freed by its own callback */
        stream(ready(random), random, 1);
        break;
    case 4: /* streamed where other threads can use it; the previous one is freed */
    case 5:
        session = ready(random);
        stream(session, random, 0);
        pthread_mutex_lock(&slots[slot].lock);
        fork = slots[slot].session;
        slots[slot].session = session;
        pthread_mutex_unlock(&slots[slot].lock);
        moxin_session_free(fork);
        break;
    case 6: /* other threads' sessions */
    case 7:
        pthread_mutex_lock(&slots[slot].lock);
        session = slots[slot].session;
        if (session != NULL) {
            moxin_event event = empty_event();
            moxin_stats stats = { 0 };
            stats.struct_size = sizeof stats;
            NEED(moxin_session_stats(session, &stats, &error));
            if (draw(random, 2)) {
                moxin_session_cancel(session);
            }
            ALLOW(moxin_session_step(session, &event, &error));
            ALLOW(moxin_session_reset(session, &error));
        }
        pthread_mutex_unlock(&slots[slot].lock);
        break;
    case 8: /* forks, freed in either order */
        session = ready(random);
        NEED(moxin_session_fork(session, &fork, &error));
        pull(session, random);
        pull(fork, random);
        if (draw(random, 2)) {
            moxin_session_free(fork);
            fork = NULL;
        }
        moxin_session_free(session);
        moxin_session_free(fork);
        break;
    case 9: /* freed in the middle of a call */
        session = ready(random);
        op.progress = free_in_progress;
        op.user_data = &session;
        ALLOW(moxin_session_prefill(session, &op, &error));
        CHECK(session == NULL || error == NULL);
        moxin_session_free(session);
        break;
    case 10: { /* a picture, cancelled in the middle or not */
        const uint32_t pixel = draw(random, 1000);
        moxin_image *image = NULL;
        moxin_embedding *embedding = NULL;
        moxin_cancel *cancel = moxin_cancel_new();
        NEED(moxin_image_from_pixels(&pixel, 1, 1, 4, MOXIN_PIXEL_FORMAT_RGBA8, &image, &error));
        op.cancel = cancel;
        op.timeout_ms = draw(random, 3) ? 0 : 1 + draw(random, 20);
        if (draw(random, 4) == 0) {
            moxin_cancel_trigger(cancel);
        }
        ALLOW(moxin_model_encode_image(model, image, NULL, &op, &embedding, &error));
        moxin_image_free(image);
        moxin_cancel_free(cancel);
        moxin_embedding_free(embedding);
        break;
    }
    case 11: /* functions for the whole library */
        switch (draw(random, 8)) {
        case 0:
            ALLOW(moxin_suspend(draw(random, 5), &error));
            moxin_resume();
            break;
        case 1: {
            moxin_model *other = NULL;
            ALLOW(moxin_model_load(model_path, NULL, NULL, &other, &error));
            if (other != NULL && draw(random, 2)) {
                NEED(moxin_model_unload(other, &error));
            }
            moxin_model_free(other);
            break;
        }
        default:
            moxin_memory_trim();
        }
        break;
    }
}

struct work {
    uint32_t seed;
    long rounds;
};

static void *work(void *argument) {
    struct work *work = argument;
    uint32_t random = work->seed;
    for (long i = 0; i < work->rounds; i++) {
        one_round(&random);
    }
    return NULL;
}

int main(int argc, char **argv) {
    pthread_t threads[THREADS];
    struct work works[THREADS];
    moxin_error *error = NULL;
    moxin_image *image = NULL;
    moxin_memory_stats memory = { 0 };
    if (argc < 3) {
        fprintf(stderr, "see the top of stress.c for the arguments\n");
        return 2;
    }
    model_path = argv[1];
    model = load(model_path);
    NEED(moxin_image_from_pixels("abc", 1, 1, 3, MOXIN_PIXEL_FORMAT_RGB8, &image, &error));
    NEED(moxin_model_encode_image(model, image, NULL, NULL, &picture, &error));
    moxin_image_free(image);
    for (int i = 0; i < SLOTS; i++) {
        pthread_mutex_init(&slots[i].lock, NULL);
    }
    for (int i = 0; i < THREADS; i++) {
        works[i].seed =
            (argc > 3 ? (uint32_t)atol(argv[3]) : 1) * 1000003u + (uint32_t)i * 7919u + 1;
        works[i].rounds = atol(argv[2]);
        pthread_create(&threads[i], NULL, work, &works[i]);
    }
    for (int i = 0; i < THREADS; i++) {
        pthread_join(threads[i], NULL);
    }
    for (int i = 0; i < SLOTS; i++) {
        moxin_session_free(slots[i].session);
    }
    moxin_embedding_free(picture);
    moxin_model_free(model);
    /* Streams that free their own session are not waited for by that. */
    for (int i = 0; i < 6000 && destroyed != started; i++) {
        sleep_ms(10);
    }
    CHECK(started == ended && ended == destroyed && started > 0);
    CHECK(cancelled > 0 && finished > 0);
    memory.struct_size = sizeof memory;
    NEED(moxin_memory_stats_get(&memory, &error));
    CHECK(memory.handles == 0);
    printf("%d streams: %d finished, %d cancelled, %d failed\n", started, finished, cancelled,
           failed);
    return failures > 0;
}
