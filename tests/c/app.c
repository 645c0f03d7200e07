/*
 * Uses the C ABI as an app does, and checks the results. Run by tests/c.rs.
 *
 *   app check MODEL OTHER IMAGE     everything below; OTHER is a model of another kind than MODEL
 *   app text-only MODEL IMAGE       a model that takes no pictures
 *   app quantize MODEL IMAGE PLACE  quantizing, saving to PLACE, and loading back
 *   app kill-saving MODEL FOLDER    ends with SIGKILL while a model is saved to FOLDER
 *   app faults MODEL IMAGE          injected failures, which only debug builds support
 *   app first NAME MODEL            calls one function before all others
 *   app exit-streaming MODEL MS     ends with exit(42) while answers are streamed
 */
#include "check.h"

#include <pthread.h>
#include <signal.h>
#include <sys/resource.h>
#include <unistd.h>

static const char *const QUESTION = "Describe the picture.";
static const char *const COUNT = "How many shapes are there?";

static uint64_t handles(void) {
    moxin_memory_stats stats = { 0 };
    moxin_error *error = NULL;
    stats.struct_size = sizeof stats;
    NEED(moxin_memory_stats_get(&stats, &error));
    return stats.handles;
}

/* Freed objects are dropped in the engine's turn: this waits for it. */
static moxin_memory_stats settled_memory(const moxin_model *model) {
    moxin_memory_stats stats = { 0 };
    moxin_error *error = NULL;
    stats.struct_size = sizeof stats;
    moxin_session_free(begin(model));
    NEED(moxin_memory_stats_get(&stats, &error));
    return stats;
}

static moxin_embedding *encode(const moxin_model *model, const moxin_image *image) {
    moxin_embedding *embedding = NULL;
    moxin_error *error = NULL;
    NEED(moxin_model_encode_image(model, image, NULL, NULL, &embedding, &error));
    return embedding;
}

static moxin_session *looking(const moxin_model *model, const moxin_image *image) {
    moxin_error *error = NULL;
    moxin_session *session = begin(model);
    NEED(moxin_session_add_image(session, image, NULL, &error));
    return session;
}

static moxin_image *dot(uint32_t color) {
    moxin_image *image = NULL;
    moxin_error *error = NULL;
    NEED(moxin_image_from_pixels(&color, 1, 1, 4, MOXIN_PIXEL_FORMAT_RGBA8, &image, &error));
    return image;
}

/* ---------------------------------------------------------------- properties of a model */

static void check_model_facts(const moxin_model *model, const char *path) {
    moxin_error *error = NULL;
    moxin_model_info loaded = { 0 }, inspected = { 0 };
    moxin_str value = { 0 };
    loaded.struct_size = sizeof loaded;
    inspected.struct_size = sizeof inspected;
    NEED(moxin_model_info_get(model, &loaded, &error));
    NEED(moxin_model_inspect(path, &inspected, &error));
    CHECK(inspected.fingerprint == 0 && loaded.fingerprint != 0);
    inspected.fingerprint = loaded.fingerprint;
    CHECK(memcmp(&loaded, &inspected, sizeof loaded) == 0);
    CHECK(strcmp(loaded.model_type, "prismatic") == 0);
    CHECK(loaded.backend != MOXIN_BACKEND_AUTO && loaded.dtype != MOXIN_DTYPE_AUTO);
    CHECK(loaded.max_images == 1 && loaded.takes_system == 0 && loaded.takes_turns != 0);
    CHECK(loaded.text_only == 0);
    CHECK(strlen(loaded.default_prompt) > 0);
    uint32_t tokens = 0;
    moxin_pixel_budget budget = { 0 };
    budget.struct_size = sizeof budget;
    budget.max_pixels = 1000;
    NEED(moxin_model_image_tokens(model, 3000, 20, &budget, &tokens, &error));
    CHECK(tokens == loaded.tokens_per_image); /* of any size */
    budget.no_tiles = 1;
    budget.max_tokens = tokens;
    NEED(moxin_model_image_tokens(model, 3000, 20, &budget, &tokens, &error));
    budget.max_tokens = loaded.tokens_per_image - 1;
    EXPECT(MOXIN_STATUS_INVALID_ARGUMENT,
           moxin_model_image_tokens(model, 3000, 20, &budget, &tokens, &error));
    moxin_session_params params;
    moxin_memory_estimate estimate = { 0 };
    estimate.struct_size = sizeof estimate;
    moxin_session_params_init(&params, sizeof params);
    CHECK(params.image_budget == NULL);
    params.image_budget = &budget;
    EXPECT(MOXIN_STATUS_INVALID_ARGUMENT,
           moxin_model_estimate(path, NULL, &params, &estimate, &error));

    NEED(moxin_model_metadata(model, "model_type", &value, &error));
    CHECK(strcmp(value.data, "prismatic") == 0 && value.len == 9);
    moxin_str first = value;
    NEED(moxin_model_metadata(model, "image_sizes.0", &value, &error));
    CHECK((uint32_t)atol(value.data) == loaded.image_size);
    NEED(moxin_model_metadata(model, "image_sizes", &value, &error));
    CHECK(value.data[0] == '[' && strlen(value.data) == value.len);
    NEED(moxin_model_metadata(model, "model_type", &value, &error));
    CHECK(value.data == first.data); /* it stays where it is */
    EXPECT(MOXIN_STATUS_NOT_FOUND, moxin_model_metadata(model, "no.such.field", &value, &error));
    EXPECT(MOXIN_STATUS_NOT_FOUND, moxin_model_metadata(model, "image_sizes.99", &value, &error));

    const char *info = moxin_build_info();
    CHECK(info == moxin_build_info());
    CHECK(strstr(info, "\"cpu\"") != NULL && strstr(info, "\"mlx\":\"0.") != NULL &&
          strstr(info, moxin_version()) != NULL);
}

/* A model that takes no pictures says so, refuses them, and answers texts. */
static void check_text_only(const char *path, const moxin_image *image) {
    moxin_error *error = NULL;
    moxin_model_info info = { 0 };
    info.struct_size = sizeof info;
    NEED(moxin_model_inspect(path, &info, &error));
    CHECK(info.text_only != 0 && info.max_images == 0);
    CHECK(info.image_size == 0 && info.tokens_per_image == 0);
    CHECK(info.takes_system != 0 && info.takes_turns != 0);

    moxin_model *model = load(path);
    moxin_session *session = begin(model);
    moxin_embedding *embedding = NULL;
    uint32_t tokens = 0;
    const moxin_status refused = MOXIN_STATUS_INVALID_ARGUMENT;
    EXPECT(refused, moxin_model_image_tokens(model, 8, 8, NULL, &tokens, &error));
    EXPECT(refused, moxin_model_encode_image(model, image, NULL, NULL, &embedding, &error));
    CHECK(moxin_session_add_image(session, image, NULL, &error) == refused);
    CHECK(strstr(moxin_error_message(error).data, "reads text only") != NULL);
    moxin_error_free(error);
    error = NULL;

    moxin_event event = { 0 };
    event.struct_size = sizeof event;
    NEED(moxin_session_add_text(session, MOXIN_ROLE_USER, COUNT, MOXIN_STRLEN, &error));
    while (event.kind != MOXIN_EVENT_KIND_FINISHED) {
        NEED(moxin_session_step(session, &event, &error));
    }
    CHECK(stats_of(session).generated_tokens > 0 && stats_of(session).image_tokens == 0);
    moxin_session_free(session);
    moxin_model_free(model);
}

/* An error has its causes. */
static void check_causes(const char *path) {
    moxin_error *error = NULL;
    moxin_model *model = NULL;
    moxin_image *image = NULL;
    CHECK(moxin_model_load("no/such/folder", NULL, NULL, &model, &error) == MOXIN_STATUS_NOT_FOUND);
    CHECK(moxin_error_cause(error) == NULL);
    moxin_error_free(error);
    error = NULL;
    char inside[4096]; /* a file cannot be a folder */
    snprintf(inside, sizeof inside, "%s/config.json/x.png", path);
    CHECK(moxin_image_from_file(inside, NULL, &image, &error) == MOXIN_STATUS_IO);
    const moxin_error *cause = moxin_error_cause(error);
    CHECK(cause != NULL && moxin_error_status(cause) == MOXIN_STATUS_IO);
    CHECK(strstr(moxin_error_message(error).data, moxin_error_message(cause).data) != NULL);
    CHECK(strstr(moxin_error_message(error).data, "x.png") != NULL);
    CHECK(moxin_error_cause(cause) == NULL);
    moxin_error_free(error);
    CHECK(model == NULL && image == NULL);
}

/* ---------------------------------------------------------------- conversations */

static void check_fork_and_rewind(const moxin_model *model, const moxin_image *image) {
    moxin_error *error = NULL;
    moxin_session *fork = NULL, *session = looking(model, image), *plain = looking(model, image);
    struct answer first = ask(session, QUESTION);
    CHECK(stats_of(session).message_count == 2);

    /* Both continue from the same point, independently. */
    NEED(moxin_session_fork(session, &fork, &error));
    CHECK(stats_of(fork).message_count == 2);
    struct answer here = ask(session, COUNT);
    struct answer there = ask(fork, "What is written?");
    CHECK(stats_of(session).reused_tokens > stats_of(session).image_tokens);
    CHECK(stats_of(fork).reused_tokens > stats_of(fork).image_tokens);
    struct answer plain_first = ask(plain, QUESTION);
    struct answer plain_here = ask(plain, COUNT);
    CHECK(same_answer(&first, &plain_first) && same_answer(&here, &plain_here) &&
          !same_answer(&here, &there));

    /* Back to the first answer: the other question is answered as in the fork. */
    NEED(moxin_session_rewind(session, 2, &error));
    CHECK(stats_of(session).message_count == 2);
    struct answer again = ask(session, "What is written?");
    CHECK(same_answer(&there, &again));
    CHECK(stats_of(session).reused_tokens > stats_of(session).image_tokens);

    /* Other parameters apply from the next answer, and what was computed is kept. */
    moxin_session_params params;
    moxin_session_params_init(&params, sizeof params);
    params.max_tokens = 2;
    NEED(moxin_session_rewind(session, 2, &error));
    NEED(moxin_session_set_params(session, &params, &error));
    again = ask(session, "What is written?");
    CHECK(again.count == 2 && again.finish == MOXIN_FINISH_REASON_MAX_TOKENS);
    CHECK(stats_of(session).reused_tokens > stats_of(session).image_tokens);
    params.top_p = 2;
    EXPECT(MOXIN_STATUS_INVALID_ARGUMENT, moxin_session_set_params(session, &params, &error));
    NEED(moxin_session_set_params(session, NULL, &error));

    /* With one message fewer, the same question is answered again; after removing all, the picture
     * is still there. */
    NEED(moxin_session_rewind(session, 3, &error));
    again = finish_answer(session);
    CHECK(same_answer(&there, &again));
    NEED(moxin_session_rewind(session, 0, &error));
    again = ask(session, QUESTION);
    CHECK(same_answer(&first, &again));
    CHECK(stats_of(session).cached_images == 0 && stats_of(session).image_tokens > 0 &&
          stats_of(session).vision_ms == 0);
    EXPECT(MOXIN_STATUS_INVALID_ARGUMENT, moxin_session_rewind(session, 3, &error));

    moxin_event event = empty_event();
    NEED(moxin_session_add_text(session, MOXIN_ROLE_USER, COUNT, MOXIN_STRLEN, &error));
    NEED(moxin_session_step(session, &event, &error));
    EXPECT(MOXIN_STATUS_INVALID_STATE, moxin_session_rewind(session, 0, &error));
    EXPECT(MOXIN_STATUS_INVALID_STATE, moxin_session_set_params(session, NULL, &error));
    moxin_session *no_fork = NULL;
    EXPECT(MOXIN_STATUS_INVALID_STATE, moxin_session_fork(session, &no_fork, &error));
    CHECK(no_fork == NULL);
    moxin_session_free(session); /* a fork outlives it */
    again = ask(fork, COUNT);
    CHECK(again.count > 0);
    moxin_session_free(fork);
    moxin_session_free(plain);
}

struct seen {
    int encode, prefill;
    float latest;
    int rising;
    int stop; /* returns false in prefill */
};

static bool see(void *user_data, moxin_stage stage, float fraction) {
    struct seen *seen = user_data;
    seen->encode += stage == MOXIN_STAGE_ENCODE;
    seen->prefill += stage == MOXIN_STAGE_PREFILL;
    seen->rising = seen->rising && fraction >= 0 && fraction <= 1;
    seen->latest = fraction;
    return !(seen->stop && stage == MOXIN_STAGE_PREFILL && fraction > 0);
}

static void check_prefill(const moxin_model *model, const moxin_image *image) {
    moxin_error *error = NULL;
    struct seen seen = { 0, 0, 0, 1, 0 };
    moxin_op op = { 0 };
    moxin_event event = empty_event();
    moxin_session_params params;
    op.struct_size = sizeof op;
    op.progress = see;
    op.user_data = &seen;
    moxin_session *plain = looking(model, image);
    struct answer expected = ask(plain, QUESTION);
    moxin_session_free(plain);

    moxin_session *session = begin(model);
    EXPECT(MOXIN_STATUS_INVALID_STATE, moxin_session_prefill(session, NULL, &error));
    moxin_session_free(session);

    moxin_session_params_init(&params, sizeof params);
    params.prefill_chunk = 20;
    NEED(moxin_session_new(model, &params, &session, &error));
    NEED(moxin_session_add_image(session, image, NULL, &error));
    NEED(moxin_session_add_text(session, MOXIN_ROLE_USER, QUESTION, MOXIN_STRLEN, &error));
    NEED(moxin_session_prefill(session, &op, &error));
    CHECK(seen.prefill > 3 && seen.rising && seen.latest == 1);
    EXPECT(MOXIN_STATUS_INVALID_STATE, moxin_session_prefill(session, NULL, &error));
    NEED(moxin_session_step(session, &event, &error));
    CHECK(event.kind == MOXIN_EVENT_KIND_TEXT && event.token_id == expected.tokens[0]);
    while (event.kind != MOXIN_EVENT_KIND_FINISHED) {
        NEED(moxin_session_step(session, &event, &error));
    }
    CHECK(stats_of(session).generated_tokens == (uint32_t)expected.count);

    /* Cancelled in the middle, the question is rolled back, and the next one is answered as if it
     * had never been asked. */
    NEED(moxin_session_reset(session, &error));
    NEED(moxin_session_add_image(session, image, NULL, &error));
    NEED(moxin_session_add_text(session, MOXIN_ROLE_USER, COUNT, MOXIN_STRLEN, &error));
    seen.stop = 1;
    EXPECT(MOXIN_STATUS_CANCELLED, moxin_session_prefill(session, &op, &error));
    CHECK(stats_of(session).message_count == 0);
    NEED(moxin_session_add_image(session, image, NULL, &error));
    struct answer after = ask(session, QUESTION);
    CHECK(same_answer(&expected, &after));
    moxin_session_free(session);

    /* A picture is read before there is a question, and used when it comes. */
    session = looking(model, image);
    NEED(moxin_session_prefill(session, NULL, &error));
    CHECK(stats_of(session).prompt_tokens > stats_of(session).image_tokens &&
          stats_of(session).message_count == 0);
    EXPECT(MOXIN_STATUS_INVALID_STATE, moxin_session_step(session, &event, &error));
    after = ask(session, QUESTION);
    CHECK(same_answer(&expected, &after));
    CHECK(stats_of(session).reused_tokens > stats_of(session).image_tokens);

    op.progress = NULL;
    op.timeout_ms = 1;
    NEED(moxin_session_reset(session, &error));
    moxin_image *unknown = dot(0x123456);
    NEED(moxin_session_add_image(session, unknown, NULL, &error));
    EXPECT(MOXIN_STATUS_TIMEOUT, moxin_session_prefill(session, &op, &error));
    NEED(moxin_session_add_image(session, unknown, NULL,
                                 &error)); /* it was kept, and may be replaced */
    moxin_image_free(unknown);
    moxin_session_free(session);
}

static void check_logprobs(const moxin_model *model, const moxin_image *image) {
    moxin_error *error = NULL;
    moxin_session *session = NULL;
    moxin_session_params params;
    moxin_event event = empty_event();
    moxin_session_params_init(&params, sizeof params);
    CHECK(params.logprobs == 0);
    params.logprobs = 3;
    NEED(moxin_session_new(model, &params, &session, &error));
    NEED(moxin_session_add_image(session, image, NULL, &error));
    NEED(moxin_session_add_text(session, MOXIN_ROLE_USER, QUESTION, MOXIN_STRLEN, &error));
    int texts = 0;
    while (event.kind != MOXIN_EVENT_KIND_FINISHED) {
        NEED(moxin_session_step(session, &event, &error));
        CHECK(event.top_count == (event.kind == MOXIN_EVENT_KIND_TEXT ? 3u : 0u) &&
              (event.top == NULL) == (event.top_count == 0));
        if (event.kind == MOXIN_EVENT_KIND_TEXT) {
            texts++;
            CHECK(event.top[0].token_id == event.token_id && event.top[0].logprob == event.logprob);
            CHECK(event.top[0].logprob >= event.top[1].logprob &&
                  event.top[1].logprob >= event.top[2].logprob);
        }
    }
    CHECK(texts > 3);
    moxin_session_free(session);
}

/* ---------------------------------------------------------------- streams */

struct stream {
    pthread_mutex_t lock;
    pthread_cond_t changed;
    struct answer answer;
    int events, texts, last, destroyed, after_last;
    int stop_at;             /* returns false at this text; 0: never */
    int linger_ms;           /* each event takes so long */
    moxin_status last_error; /* that of the last event */
    moxin_session *session;  /* is used inside the callback */
    moxin_session *to_free;  /* is freed inside the first text's callback */
    int busy;                /* of the calls inside callbacks */
    const char *next;        /* is asked in the last event */
    struct stream *next_stream;
};

static void start(moxin_session *session, const moxin_op *op, struct stream *stream);

static bool on_event(void *user_data, const moxin_event *event) {
    struct stream *stream = user_data;
    bool go_on = true;
    const int is_last = event->kind == MOXIN_EVENT_KIND_FINISHED;
    CHECK(event->struct_size == sizeof *event);
    CHECK((event->finish == MOXIN_FINISH_REASON_ERROR) == (event->error != NULL));
    if (stream->session != NULL) {
        moxin_error *error = NULL;
        moxin_stats stats = { 0 };
        stats.struct_size = sizeof stats;
        CHECK(moxin_session_stats(stream->session, &stats, NULL) == MOXIN_STATUS_OK);
        moxin_status status = moxin_session_add_text(stream->session, MOXIN_ROLE_USER,
                                                     is_last && stream->next ? stream->next : "x",
                                                     MOXIN_STRLEN, NULL);
        stream->busy += status == MOXIN_STATUS_BUSY;
        CHECK(status == (is_last ? MOXIN_STATUS_OK : MOXIN_STATUS_BUSY));
        if (is_last && stream->next != NULL) {
            NEED(moxin_session_start(stream->session, NULL, on_event, stream->next_stream, NULL,
                                     &error));
        }
    }
    if (stream->to_free != NULL && event->kind == MOXIN_EVENT_KIND_TEXT) {
        moxin_session_free(stream->to_free);
        stream->to_free = NULL;
    }
    if (stream->linger_ms > 0) {
        sleep_ms(stream->linger_ms);
    }
    pthread_mutex_lock(&stream->lock);
    stream->after_last += stream->last;
    stream->events++;
    if (event->kind == MOXIN_EVENT_KIND_TEXT) {
        stream->texts++;
        if (stream->answer.count < MAX_TOKENS) {
            stream->answer.tokens[stream->answer.count++] = event->token_id;
        }
        go_on = stream->texts != stream->stop_at;
    }
    strncat(stream->answer.text, event->text.data,
            sizeof stream->answer.text - strlen(stream->answer.text) - 1);
    if (is_last) {
        stream->last++;
        stream->answer.finish = event->finish;
        stream->last_error = moxin_error_status(event->error);
    }
    pthread_cond_broadcast(&stream->changed);
    pthread_mutex_unlock(&stream->lock);
    return go_on;
}

static void on_destroy(void *user_data) {
    struct stream *stream = user_data;
    pthread_mutex_lock(&stream->lock);
    stream->destroyed++;
    pthread_cond_broadcast(&stream->changed);
    pthread_mutex_unlock(&stream->lock);
}

static struct stream new_stream(void) {
    struct stream stream;
    memset(&stream, 0, sizeof stream);
    pthread_mutex_init(&stream.lock, NULL);
    pthread_cond_init(&stream.changed, NULL);
    return stream;
}

static void start(moxin_session *session, const moxin_op *op, struct stream *stream) {
    moxin_error *error = NULL;
    NEED(moxin_session_start(session, op, on_event, stream, on_destroy, &error));
}

static void wait_for(struct stream *stream, const int *flag) {
    pthread_mutex_lock(&stream->lock);
    while (*flag == 0) {
        pthread_cond_wait(&stream->changed, &stream->lock);
    }
    pthread_mutex_unlock(&stream->lock);
}

/* Waits for the end of a stream and checks it. */
static void wait_for_end(struct stream *stream) {
    wait_for(stream, &stream->destroyed);
    CHECK(stream->last == 1 && stream->destroyed == 1 && stream->after_last == 0);
}

static void check_streams(const moxin_model *model, const moxin_image *image) {
    moxin_error *error = NULL;
    moxin_session *plain = looking(model, image), *session = looking(model, image);
    struct answer expected = ask(plain, QUESTION), expected_second = ask(plain, COUNT);
    moxin_session_free(plain);

    /* The same answer as step by step; calls from inside are busy; the next question is asked in
     * the last event. */
    struct stream stream = new_stream(), second = new_stream();
    stream.session = session;
    stream.next = COUNT;
    stream.next_stream = &second;
    NEED(moxin_session_add_text(session, MOXIN_ROLE_USER, QUESTION, MOXIN_STRLEN, &error));
    start(session, NULL, &stream);
    wait_for_end(&stream);
    CHECK(same_answer(&expected, &stream.answer) && stream.busy == stream.events - 1 &&
          stream.events > stream.texts + 1);
    wait_for(&second, &second.last);
    CHECK(same_answer(&expected_second, &second.answer) && second.last == 1);
    moxin_session_free(session);

    /* With nothing to answer, or an op that is not for streams, there is no event, but the user
     * data is destroyed. */
    session = looking(model, image);
    stream = new_stream();
    EXPECT(MOXIN_STATUS_INVALID_STATE,
           moxin_session_start(session, NULL, on_event, &stream, on_destroy, &error));
    CHECK(stream.destroyed == 1 && stream.events == 0);
    EXPECT(MOXIN_STATUS_NULL_ARGUMENT,
           moxin_session_start(session, NULL, NULL, &stream, on_destroy, &error));
    CHECK(stream.destroyed == 2 && stream.events == 0);
    NEED(moxin_session_add_text(session, MOXIN_ROLE_USER, QUESTION, MOXIN_STRLEN, &error));
    struct seen seen = { 0, 0, 0, 1, 0 };
    moxin_op op = { 0 };
    op.struct_size = sizeof op;
    op.progress = see;
    op.user_data = &seen;
    EXPECT(MOXIN_STATUS_INVALID_ARGUMENT,
           moxin_session_start(session, &op, on_event, &stream, on_destroy, &error));
    CHECK(stream.destroyed == 3 && stream.events == 0);

    /* Busy while it runs; stopped by its own callback, it ends with FINISHED and the turn is rolled
     * back. */
    stream = new_stream();
    stream.stop_at = 2;
    stream.linger_ms = 5;
    start(session, NULL, &stream);
    EXPECT(MOXIN_STATUS_BUSY, moxin_session_start(session, NULL, on_event, &stream, NULL, &error));
    moxin_event event = empty_event();
    EXPECT(MOXIN_STATUS_BUSY, moxin_session_step(session, &event, &error));
    EXPECT(MOXIN_STATUS_BUSY, moxin_session_reset(session, &error));
    EXPECT(MOXIN_STATUS_BUSY, moxin_session_prefill(session, NULL, &error));
    wait_for_end(&stream);
    CHECK(stream.texts == 2 && stream.answer.finish == MOXIN_FINISH_REASON_CANCELLED);
    CHECK(stats_of(session).message_count == 0);
    NEED(moxin_session_add_image(session, image, NULL, &error));

    /* Stopped by the session's cancel, by an op's cancel object, by its time limit. */
    for (int way = 0; way < 3; way++) {
        moxin_cancel *cancel = moxin_cancel_new();
        op.progress = NULL;
        op.cancel = way == 1 ? cancel : NULL;
        op.timeout_ms = way == 2 ? 30 : 0;
        NEED(moxin_session_add_text(session, MOXIN_ROLE_USER, QUESTION, MOXIN_STRLEN, &error));
        stream = new_stream();
        stream.linger_ms = 10;
        start(session, &op, &stream);
        wait_for(&stream, &stream.events);
        if (way == 0) {
            moxin_session_cancel(session);
        }
        moxin_cancel_trigger(op.cancel);
        moxin_cancel_free(cancel);
        wait_for_end(&stream);
        CHECK(stream.answer.finish ==
              (way == 2 ? MOXIN_FINISH_REASON_ERROR : MOXIN_FINISH_REASON_CANCELLED));
        CHECK(stream.last_error == (way == 2 ? MOXIN_STATUS_TIMEOUT : MOXIN_STATUS_OK));
        CHECK(stats_of(session).message_count == 0);
        NEED(moxin_session_add_image(session, image, NULL, &error));
    }
    struct answer after = ask(session, QUESTION);
    CHECK(same_answer(&expected, &after));

    /* Freed while it runs: when the call returns, all events were delivered and the user data
     * destroyed. */
    stream = new_stream();
    stream.linger_ms = 10;
    NEED(moxin_session_add_text(session, MOXIN_ROLE_USER, QUESTION, MOXIN_STRLEN, &error));
    start(session, NULL, &stream);
    wait_for(&stream, &stream.texts);
    moxin_session_free(session);
    CHECK(stream.last == 1 && stream.destroyed == 1 && stream.after_last == 0);
    CHECK(stream.answer.finish == MOXIN_FINISH_REASON_CANCELLED);

    /* Freed inside its own callback: the last event still comes. */
    session = looking(model, image);
    stream = new_stream();
    stream.to_free = session;
    NEED(moxin_session_add_text(session, MOXIN_ROLE_USER, QUESTION, MOXIN_STRLEN, &error));
    start(session, NULL, &stream);
    wait_for_end(&stream);
    CHECK(stream.texts == 1 && stream.answer.finish == MOXIN_FINISH_REASON_CANCELLED);

    /* An error ends a stream as its last event. */
    moxin_session_params params;
    moxin_session_params_init(&params, sizeof params);
    params.max_context = 10;
    NEED(moxin_session_new(model, &params, &session, &error));
    NEED(moxin_session_add_image(session, image, NULL, &error));
    NEED(moxin_session_add_text(session, MOXIN_ROLE_USER, QUESTION, MOXIN_STRLEN, &error));
    stream = new_stream();
    start(session, NULL, &stream);
    wait_for_end(&stream);
    CHECK(stream.answer.finish == MOXIN_FINISH_REASON_ERROR &&
          stream.last_error == MOXIN_STATUS_CONTEXT_FULL);
    moxin_session_free(session);
}

/* ---------------------------------------------------------------- cached pictures */

static void check_image_cache(const char *path, const moxin_image *image) {
    moxin_error *error = NULL;
    moxin_model *model = load(path);
    moxin_model_info info = { 0 };
    moxin_embedding_info first = { 0 }, second = { 0 };
    info.struct_size = sizeof info;
    first.struct_size = second.struct_size = sizeof first;
    NEED(moxin_model_info_get(model, &info, &error));

    const uint64_t others = settled_memory(model).image_cache; /* other models' */
    moxin_session *one = looking(model, image), *two = looking(model, image);
    struct answer answer = ask(one, QUESTION);
    CHECK(stats_of(one).cached_images == 0 && stats_of(one).vision_ms > 0);
    struct answer again = ask(two, QUESTION);
    CHECK(stats_of(two).cached_images == 1 && stats_of(two).vision_ms < stats_of(one).vision_ms);
    CHECK(same_answer(&answer, &again));
    const uint64_t bytes = settled_memory(model).image_cache - others;
    CHECK(bytes >= (uint64_t)info.tokens_per_image * info.hidden_size * 2);

    /* Another picture of the same size is another picture. */
    moxin_image *red = dot(0xff0000ff), *almost_red = dot(0xff0000fe);
    moxin_embedding *embedding = encode(model, red), *other = encode(model, almost_red),
                    *same = encode(model, red);
    NEED(moxin_embedding_info_get(embedding, &first, &error));
    NEED(moxin_embedding_info_get(other, &second, &error));
    CHECK(first.image_hash != second.image_hash && first.model_fingerprint == info.fingerprint);
    CHECK(settled_memory(model).image_cache == others + 3 * bytes);
    const size_t count = (size_t)first.token_count * first.hidden_size;
    float *numbers = malloc(3 * count * sizeof *numbers);
    NEED(moxin_embedding_copy(embedding, numbers, count, &error));
    NEED(moxin_embedding_copy(other, numbers + count, count, &error));
    NEED(moxin_embedding_copy(same, numbers + 2 * count, count, &error));
    CHECK(memcmp(numbers, numbers + count, count * sizeof *numbers) != 0);
    CHECK(memcmp(numbers, numbers + 2 * count, count * sizeof *numbers) == 0);
    free(numbers);

    /* After trimming, the cache is empty; memory in use stays. */
    moxin_memory_trim();
    CHECK(settled_memory(model).image_cache == 0);
    NEED(moxin_embedding_info_get(embedding, &first, &error));
    again = ask(two, COUNT);
    CHECK(again.count > 0);

    moxin_embedding_free(embedding);
    moxin_embedding_free(other);
    moxin_embedding_free(same);
    moxin_session_free(one);
    moxin_session_free(two);
    moxin_model_free(model);
    model = NULL;

    /* A budget of one picture keeps the latest; a budget of 0 keeps none. */
    for (int pictures = 0; pictures < 2; pictures++) {
        moxin_model_params params;
        moxin_model_params_init(&params, sizeof params);
        CHECK(params.image_cache_bytes == 64 << 20);
        params.image_cache_bytes = bytes * (uint64_t)pictures;
        NEED(moxin_model_load(path, &params, NULL, &model, &error));
        moxin_embedding_free(encode(model, red));
        moxin_embedding_free(encode(model, almost_red));
        CHECK(settled_memory(model).image_cache == params.image_cache_bytes);
        one = looking(model, almost_red);
        ask(one, COUNT);
        CHECK(stats_of(one).cached_images == (uint32_t)pictures);
        two = looking(model, red);
        ask(two, COUNT);
        CHECK(stats_of(two).cached_images == 0);
        moxin_session_free(one);
        moxin_session_free(two);
        moxin_model_free(model);
        model = NULL;
    }
    moxin_image_free(red);
    moxin_image_free(almost_red);
}

/* ---------------------------------------------------------------- the prefix cache */

/* Asks a question in a new session of this scope, which is freed; returns its statistics. */
static moxin_stats ask_once(const moxin_model *model, const moxin_image *image, uint64_t scope) {
    moxin_error *error = NULL;
    moxin_session *session = NULL;
    moxin_session_params params;
    moxin_session_params_init(&params, sizeof params);
    params.prefix_scope = scope;
    NEED(moxin_session_new(model, &params, &session, &error));
    NEED(moxin_session_add_image(session, image, NULL, &error));
    NEED(moxin_session_add_text(session, MOXIN_ROLE_USER, QUESTION, MOXIN_STRLEN, &error));
    uint32_t tokens = 0;
    NEED(moxin_session_prompt_tokens(session, &tokens, &error));
    struct answer answer = finish_answer(session);
    CHECK(answer.count > 0);
    moxin_stats stats = stats_of(session);
    CHECK(stats.prompt_tokens == tokens);
    EXPECT(MOXIN_STATUS_INVALID_STATE, moxin_session_prompt_tokens(session, &tokens, &error));
    moxin_session_free(session);
    return stats;
}

static void check_prefix_cache(const char *path, const moxin_image *image) {
    moxin_error *error = NULL;
    moxin_model *model = NULL;
    moxin_model_params params;
    moxin_model_params_init(&params, sizeof params);
    CHECK(params.prefix_cache_bytes == 0);
    params.prefix_cache_bytes = 1 << 20;
    NEED(moxin_model_load(path, &params, NULL, &model, &error));
    CHECK(ask_once(model, image, 0).reused_tokens == 0);
    CHECK(ask_once(model, image, 1).reused_tokens == 0);
    moxin_stats again = ask_once(model, image, 1);
    CHECK(again.reused_tokens == again.prompt_tokens - 1); /* its logits start the answer */
    CHECK(settled_memory(model).prefix_cache > 0);
    moxin_memory_trim();
    CHECK(settled_memory(model).prefix_cache == 0);
    CHECK(ask_once(model, image, 1).reused_tokens == 0);
    moxin_model_free(model);
}

/* ---------------------------------------------------------------- memory, unloading, suspension */

static void check_memory(const moxin_model *any, const char *path, const moxin_image *image) {
    moxin_error *error = NULL;
    moxin_model *model = NULL;
    moxin_session *session = NULL;
    moxin_embedding *embedding = NULL;
    moxin_memory_stats before = { 0 }, now = { 0 };
    moxin_memory_estimate estimate = { 0 }, small = { 0 };
    moxin_session_params params;
    before.struct_size = now.struct_size = sizeof now;
    estimate.struct_size = small.struct_size = sizeof small;
    before = settled_memory(any);
    CHECK(before.limit == UINT64_MAX && before.available > 0);
    NEED(moxin_model_estimate(path, NULL, NULL, &estimate, &error));
    CHECK(estimate.weights > 0 && estimate.load_peak >= estimate.weights &&
          estimate.total >= estimate.load_peak);
    CHECK(estimate.total >= estimate.weights + estimate.kv_total &&
          estimate.kv_total % estimate.kv_per_token == 0);
    moxin_session_params_init(&params, sizeof params);
    params.max_context = 256;
    NEED(moxin_model_estimate(path, NULL, &params, &small, &error));
    CHECK(small.kv_total == 256 * small.kv_per_token && small.total < estimate.total &&
          small.weights == estimate.weights);

    /* Less than loading needs: refused, with both figures. */
    NEED(moxin_memory_set_limits(before.active + estimate.load_peak - 1, UINT64_MAX, &error));
    CHECK(moxin_model_load(path, NULL, NULL, &model, &error) == MOXIN_STATUS_OUT_OF_MEMORY);
    char figures[64];
    snprintf(figures, sizeof figures, "%llu bytes and %llu", (unsigned long long)estimate.load_peak,
             (unsigned long long)estimate.load_peak - 1);
    CHECK(strstr(moxin_error_message(error).data, figures) != NULL);
    moxin_error_free(error);
    error = NULL;
    NEED(moxin_memory_set_limits(before.active + estimate.load_peak, 0, &error));
    NEED(moxin_model_load(path, NULL, NULL, &model, &error));
    NEED(moxin_memory_stats_get(&now, &error));
    CHECK(now.limit == before.active + estimate.load_peak && now.available <= now.limit);
    CHECK(now.active - before.active <= estimate.weights + estimate.weights / 10 &&
          now.active > before.active);

    /* Room for the model only: a session of the usual length and a picture are refused, a small
     * session is not. */
    NEED(moxin_memory_set_limits(now.active + estimate.kv_total / 2, 0, &error));
    EXPECT(MOXIN_STATUS_OUT_OF_MEMORY, moxin_session_new(model, NULL, &session, &error));
    NEED(moxin_memory_set_limits(now.active + estimate.vision_peak - 1, 0, &error));
    EXPECT(MOXIN_STATUS_OUT_OF_MEMORY,
           moxin_model_encode_image(model, image, NULL, NULL, &embedding, &error));
    CHECK(session == NULL && embedding == NULL);
    NEED(moxin_memory_set_limits(UINT64_MAX, UINT64_MAX, &error));
    NEED(moxin_session_new(model, NULL, &session, &error));

    /* Too little memory in the middle of a conversation: refused, rolled back, and working again
     * later. */
    NEED(moxin_memory_stats_get(&now, &error));
    NEED(moxin_memory_set_limits(now.active + 1000, 0, &error));
    NEED(moxin_session_add_text(session, MOXIN_ROLE_USER, COUNT, MOXIN_STRLEN, &error));
    moxin_event event = empty_event();
    EXPECT(MOXIN_STATUS_OUT_OF_MEMORY, moxin_session_step(session, &event, &error));
    NEED(moxin_memory_set_limits(UINT64_MAX, UINT64_MAX, &error));
    CHECK(stats_of(session).message_count == 0);
    CHECK(ask(session, COUNT).count > 0);
    moxin_session_free(session);
    moxin_model_free(model);
}

static void check_unload(const char *path, const char *other_path, const moxin_image *image) {
    moxin_error *error = NULL;
    moxin_memory_stats before = { 0 }, loaded = { 0 }, after = { 0 };
    before.struct_size = loaded.struct_size = after.struct_size = sizeof before;
    NEED(moxin_memory_stats_get(&before, &error));
    moxin_model *model = load(path), *foreign = load(other_path);
    moxin_embedding *embedding = encode(model, image);
    moxin_session *session = begin(model), *other = begin(foreign);
    NEED(moxin_session_add_embedding(session, embedding, &error));
    struct answer first = ask(session, QUESTION);
    moxin_session_reset(session, NULL);
    moxin_event event = empty_event();
    NEED(moxin_session_add_text(session, MOXIN_ROLE_USER, COUNT, MOXIN_STRLEN, &error));
    NEED(moxin_session_step(session, &event, &error));
    NEED(moxin_memory_stats_get(&loaded, &error));

    NEED(moxin_model_unload(model, &error));
    NEED(moxin_model_unload(model, &error));
    NEED(moxin_memory_stats_get(&after, &error));
    CHECK(after.active < loaded.active);
    moxin_session *no_session = NULL;
    moxin_embedding *no_embedding = NULL;
    EXPECT(MOXIN_STATUS_INVALID_STATE, moxin_session_step(session, &event, &error));
    EXPECT(MOXIN_STATUS_INVALID_STATE, moxin_session_new(model, NULL, &no_session, &error));
    EXPECT(MOXIN_STATUS_INVALID_STATE,
           moxin_model_encode_image(model, image, NULL, NULL, &no_embedding, &error));
    CHECK(no_session == NULL && no_embedding == NULL);
    moxin_model_info info = { 0 };
    info.struct_size = sizeof info;
    NEED(moxin_model_info_get(model, &info, &error)); /* its properties are still known */
    moxin_session_free(session);
    moxin_model_free(model);

    /* The embedding works with the same model loaded again, and no other. */
    model = load(path);
    session = begin(model);
    NEED(moxin_session_add_embedding(session, embedding, &error));
    struct answer again = ask(session, QUESTION);
    CHECK(same_answer(&first, &again));
    EXPECT(MOXIN_STATUS_INVALID_ARGUMENT, moxin_session_add_embedding(other, embedding, &error));
    moxin_session_free(session);
    moxin_session_free(other);
    moxin_embedding_free(embedding);
    moxin_model_free(model);
    moxin_model_free(foreign);
}

static void check_suspension(const moxin_model *model, const moxin_image *image, const char *path) {
    const moxin_status suspended = MOXIN_STATUS_SUSPENDED;
    moxin_error *error = NULL;
    moxin_model *no_model = NULL;
    moxin_embedding *no_embedding = NULL;
    moxin_event event = empty_event();
    moxin_session *plain = looking(model, image), *session = looking(model, image),
                  *streaming = looking(model, image);
    struct answer expected = ask(plain, QUESTION), whole;
    memset(&whole, 0, sizeof whole);
    NEED(moxin_session_add_text(session, MOXIN_ROLE_USER, QUESTION, MOXIN_STRLEN, &error));
    do {
        NEED(moxin_session_step(session, &event, &error));
    } while (event.kind != MOXIN_EVENT_KIND_TEXT);
    const int32_t first = event.token_id;
    struct stream stream = new_stream();
    stream.linger_ms = 2;
    NEED(moxin_session_add_text(streaming, MOXIN_ROLE_USER, QUESTION, MOXIN_STRLEN, &error));
    start(streaming, NULL, &stream);
    wait_for(&stream, &stream.texts);

    NEED(moxin_suspend(60000, &error));
    EXPECT(suspended, moxin_session_step(session, &event, &error));
    EXPECT(suspended, moxin_model_load(path, NULL, NULL, &no_model, &error));
    EXPECT(suspended, moxin_model_encode_image(model, image, NULL, NULL, &no_embedding, &error));
    EXPECT(suspended, moxin_session_prefill(session, NULL, &error));
    CHECK(no_model == NULL && no_embedding == NULL);
    sleep_ms(50); /* events from before the suspension may still be on their way */
    pthread_mutex_lock(&stream.lock);
    const int events = stream.events;
    pthread_mutex_unlock(&stream.lock);
    sleep_ms(100);
    pthread_mutex_lock(&stream.lock);
    CHECK(stream.events == events && stream.last == 0);
    pthread_mutex_unlock(&stream.lock);
    /* Calls that compute nothing work. */
    NEED(moxin_session_add_text(plain, MOXIN_ROLE_USER, COUNT, MOXIN_STRLEN, &error));
    NEED(moxin_session_rewind(plain, 2, &error));
    moxin_session_free(begin(model));
    moxin_memory_trim();
    NEED(moxin_suspend(60000, &error)); /* twice has the same effect as once */

    /* A cancelled answer ends although nothing computes, step by step or streamed. */
    moxin_session *cancelled = looking(model, image);
    NEED(moxin_session_add_text(cancelled, MOXIN_ROLE_USER, QUESTION, MOXIN_STRLEN, &error));
    struct stream stopped = new_stream();
    start(cancelled, NULL, &stopped);
    moxin_session_cancel(cancelled);
    wait_for_end(&stopped);
    CHECK(stopped.answer.finish == MOXIN_FINISH_REASON_CANCELLED);
    NEED(moxin_session_add_text(cancelled, MOXIN_ROLE_USER, QUESTION, MOXIN_STRLEN, &error));
    moxin_session_cancel(cancelled);
    NEED(moxin_session_step(cancelled, &event, &error));
    CHECK(event.finish == MOXIN_FINISH_REASON_CANCELLED);
    moxin_session_free(cancelled);

    moxin_resume();
    wait_for_end(&stream);
    CHECK(same_answer(&expected, &stream.answer));
    whole.tokens[whole.count++] = first;
    do {
        NEED(moxin_session_step(session, &event, &error));
        if (event.kind == MOXIN_EVENT_KIND_TEXT) {
            whole.tokens[whole.count++] = event.token_id;
        }
    } while (event.kind != MOXIN_EVENT_KIND_FINISHED);
    CHECK(whole.count == expected.count &&
          memcmp(whole.tokens, expected.tokens, (size_t)whole.count * sizeof first) == 0);
    moxin_resume();
    moxin_session_free(plain);
    moxin_session_free(session);
    moxin_session_free(streaming);
}

/* ---------------------------------------------------------------- the log */

struct log {
    pthread_mutex_t lock;
    int messages, worst, loads, destroyed;
};

static void on_log(void *user_data, moxin_log_level level, moxin_str target, moxin_str message) {
    struct log *log = user_data;
    pthread_mutex_lock(&log->lock);
    log->messages++;
    log->worst = level > (moxin_log_level)log->worst ? (int)level : log->worst;
    log->loads += strstr(message.data, "bytes") != NULL && strstr(target.data, "moxin_vlm") != NULL;
    CHECK(strlen(message.data) == message.len && strlen(target.data) == target.len &&
          log->destroyed == 0);
    pthread_mutex_unlock(&log->lock);
    moxin_version(); /* any function may be called */
}

static void on_log_destroyed(void *user_data) {
    struct log *log = user_data;
    pthread_mutex_lock(&log->lock);
    log->destroyed++;
    pthread_mutex_unlock(&log->lock);
}

static int wait_for_log(struct log *log, const int *counter) {
    for (int i = 0; i < 6000; i++) {
        pthread_mutex_lock(&log->lock);
        const int value = *counter;
        pthread_mutex_unlock(&log->lock);
        if (value > 0) {
            return value;
        }
        sleep_ms(10);
    }
    return 0;
}

static void check_log(const char *path) {
    moxin_error *error = NULL;
    struct log first = { PTHREAD_MUTEX_INITIALIZER, 0, 0, 0, 0 },
               second = { PTHREAD_MUTEX_INITIALIZER, 0, 0, 0, 0 };
    NEED(moxin_set_log(on_log, MOXIN_LOG_LEVEL_INFO, &first, on_log_destroyed, &error));
    moxin_model_free(load(path));
    CHECK(wait_for_log(&first, &first.loads) == 1 && first.worst <= MOXIN_LOG_LEVEL_INFO);
    NEED(moxin_set_log(on_log, MOXIN_LOG_LEVEL_DEBUG, &second, on_log_destroyed, &error));
    CHECK(wait_for_log(&first, &first.destroyed) == 1);
    moxin_model *model = NULL;
    EXPECT(MOXIN_STATUS_NOT_FOUND, moxin_model_load("no/such/folder", NULL, NULL, &model, &error));
    CHECK(wait_for_log(&second, &second.messages) > 0);
    NEED(moxin_set_log(NULL, MOXIN_LOG_LEVEL_OFF, NULL, NULL, &error));
    CHECK(wait_for_log(&second, &second.destroyed) == 1 && second.worst == MOXIN_LOG_LEVEL_DEBUG);
    struct log refused = { PTHREAD_MUTEX_INITIALIZER, 0, 0, 0, 0 };
    EXPECT(MOXIN_STATUS_INVALID_ARGUMENT,
           moxin_set_log(on_log, 99, &refused, on_log_destroyed, &error));
    CHECK(refused.destroyed == 1 && refused.messages == 0);
}

/* ---------------------------------------------------------------- dtypes */

static void check_dtypes(const char *path, const moxin_image *image) {
    moxin_error *error = NULL;
    struct answer answers[3];
    const moxin_dtype dtypes[3] = { MOXIN_DTYPE_F32, MOXIN_DTYPE_BF16, MOXIN_DTYPE_F16 };
    for (int i = 0; i < 3; i++) {
        moxin_model *model = NULL;
        moxin_model_params params;
        moxin_model_info info = { 0 };
        info.struct_size = sizeof info;
        moxin_model_params_init(&params, sizeof params);
        params.dtype = dtypes[i];
        NEED(moxin_model_load(path, &params, NULL, &model, &error));
        NEED(moxin_model_info_get(model, &info, &error));
        CHECK(info.dtype == dtypes[i]);
        moxin_session *session = looking(model, image);
        answers[i] = ask(session, QUESTION);
        moxin_session_free(session);
        moxin_model_free(model);
    }
    /* The small model is certain of its answers: rounding does not change them. */
    CHECK(same_answer(&answers[0], &answers[1]) && same_answer(&answers[0], &answers[2]));
}

/* ---------------------------------------------------------------- quantizing and saving */

static struct answer answer_of(const moxin_model *model, const moxin_image *image) {
    moxin_session *session = looking(model, image);
    struct answer answer = ask(session, QUESTION);
    moxin_session_free(session);
    return answer;
}

static int exists(const char *path) { return access(path, F_OK) == 0; }

static void check_quantize(const char *path, const moxin_image *image, const char *place) {
    moxin_error *error = NULL;
    moxin_model *model = load(path), *loaded = NULL;
    moxin_model_info info = { 0 };
    moxin_memory_estimate dense = { 0 }, small = { 0 };
    moxin_model_params params;
    moxin_quant_params quant;
    moxin_module_quant modules[2] = { { "language_model.lm_head", 8, 64, 0, 0 },
                                      { "language_model.model.layers.0", 0, 0, 0, 0 } };
    char folder[4096];
    struct seen seen = { 0, 0, 0, 1, 0 };
    moxin_op op = { 0 };
    op.struct_size = sizeof op;
    op.progress = see;
    op.user_data = &seen;
    info.struct_size = sizeof info;
    dense.struct_size = small.struct_size = sizeof dense;
    snprintf(folder, sizeof folder, "%s/saved", place);

    NEED(moxin_model_info_get(model, &info, &error));
    CHECK(info.quant_bits == 0 && info.quant_group_size == 0);
    moxin_session *before = looking(model, image);
    ask(before, QUESTION);
    moxin_quant_params_init(&quant, sizeof quant);
    quant.modules = modules;
    quant.module_count = 2;
    NEED(moxin_model_quantize(model, &quant, &op, &error));
    CHECK(seen.rising && seen.encode == 0 && seen.prefill == 0);
    EXPECT(MOXIN_STATUS_INVALID_STATE, moxin_model_quantize(model, &quant, NULL, &error));
    NEED(moxin_model_info_get(model, &info, &error));
    CHECK(info.quant_bits == 4 && info.quant_group_size == 64);
    CHECK(ask(before, COUNT).count > 0); /* a conversation continues */
    moxin_session_free(before);

    NEED(moxin_model_save(model, folder, false, &op, &error));
    CHECK(seen.latest == 1);
    EXPECT(MOXIN_STATUS_INVALID_ARGUMENT, moxin_model_save(model, folder, false, NULL, &error));
    NEED(moxin_model_save(model, folder, true, NULL, &error));
    NEED(moxin_model_load(folder, NULL, NULL, &loaded, &error));
    struct answer here = answer_of(model, image), there = answer_of(loaded, image);
    CHECK(same_answer(&here, &there));
    NEED(moxin_model_info_get(loaded, &info, &error));
    CHECK(info.quant_bits == 4 && info.quant_group_size == 64);
    moxin_model_free(loaded);
    moxin_model_free(model);

    /* Quantized while loading. */
    moxin_model_params_init(&params, sizeof params);
    CHECK(params.quant_bits == 0 && params.quant_group_size == 64);
    NEED(moxin_model_estimate(path, &params, NULL, &dense, &error));
    params.quant_bits = 8;
    NEED(moxin_model_estimate(path, &params, NULL, &small, &error));
    CHECK(small.weights < dense.weights);
    NEED(moxin_model_load(path, &params, NULL, &model, &error));
    NEED(moxin_model_info_get(model, &info, &error));
    CHECK(info.quant_bits == 8);
    CHECK(strcmp(answer_of(model, image).text, here.text) == 0); /* this model is that certain */
    moxin_model_free(model);

    /* Another mode, while loading and in memory: the same. */
    moxin_model_params_init(&params, sizeof params);
    params.quant_mode = MOXIN_QUANT_MODE_MXFP8;
    NEED(moxin_model_load(path, &params, NULL, &model, &error));
    NEED(moxin_model_info_get(model, &info, &error));
    CHECK(info.quant_mode == MOXIN_QUANT_MODE_MXFP8 && info.quant_bits == 8 &&
          info.quant_group_size == 32);
    loaded = load(path);
    moxin_quant_params_init(&quant, sizeof quant);
    quant.mode = MOXIN_QUANT_MODE_MXFP8;
    NEED(moxin_model_quantize(loaded, &quant, NULL, &error));
    here = answer_of(model, image);
    CHECK(moxin_set_cpu_threads(1) == MOXIN_STATUS_OK); /* does not change the answer */
    there = answer_of(loaded, image);
    CHECK(moxin_set_cpu_threads(1000000) == MOXIN_STATUS_INVALID_ARGUMENT);
    CHECK(moxin_set_cpu_threads(0) == MOXIN_STATUS_OK);
    CHECK(same_answer(&here, &there));
    moxin_model_free(loaded);
    moxin_model_free(model);

    /* A full disk: an error, and nothing is left. */
    struct rlimit limit, tight;
    getrlimit(RLIMIT_FSIZE, &limit);
    tight = limit;
    tight.rlim_cur = 1 << 20;
    signal(SIGXFSZ, SIG_IGN);
    model = load(path);
    snprintf(folder, sizeof folder, "%s/full", place);
    setrlimit(RLIMIT_FSIZE, &tight);
    EXPECT(MOXIN_STATUS_IO, moxin_model_save(model, folder, false, NULL, &error));
    setrlimit(RLIMIT_FSIZE, &limit);
    CHECK(!exists(folder));
    NEED(moxin_model_save(model, folder, false, NULL, &error));
    NEED(moxin_model_load(folder, NULL, NULL, &loaded, &error));
    here = answer_of(model, image);
    there = answer_of(loaded, image);
    CHECK(same_answer(&here, &there));
    moxin_model_free(loaded);
    moxin_model_free(model);
}

static bool kill_in_progress(void *user_data, moxin_stage stage, float fraction) {
    (void)user_data;
    if (stage == MOXIN_STAGE_SAVE && fraction > 0.5f) {
        raise(SIGKILL);
    }
    return true;
}

static void kill_saving(const char *path, const char *folder) {
    moxin_op op = { 0 };
    moxin_model *model = load(path);
    op.struct_size = sizeof op;
    op.progress = kill_in_progress;
    moxin_model_save(model, folder, false, &op, NULL);
    exit(1);
}

/* ---------------------------------------------------------------- injected failures */

static void expect_fault(const char *fault, moxin_status wanted, const char *text,
                         moxin_status found, moxin_error **error, int line) {
    const moxin_str message = moxin_error_message(*error);
    if (found != wanted || strstr(message.data, text) == NULL) {
        fprintf(stderr, "app.c:%d: %s: %s (%s)\n", line, fault, moxin_status_name((uint32_t)found),
                message.data);
        failures++;
    }
    moxin_error_free(*error);
    *error = NULL;
}

#define FAULT(wanted, text, call)                                                                  \
    setenv("MOXIN_TEST_FAULT", fault, 1);                                                          \
    status = call;                                                                                 \
    unsetenv("MOXIN_TEST_FAULT");                                                                  \
    expect_fault(fault, wanted, text, status, &error, __LINE__)

static void check_faults(const char *path, const moxin_image *image) {
    static const struct {
        const char *what;
        moxin_status status;
        const char *text;
    } faults[] = {
        { "panic", MOXIN_STATUS_PANIC, "on purpose, at " },
        { "mlx", MOXIN_STATUS_BACKEND, "matmul" },
        { "memory", MOXIN_STATUS_OUT_OF_MEMORY, "18446744073709551615" },
    };
    moxin_error *error = NULL;
    moxin_status status;
    moxin_model *model = NULL;
    moxin_embedding *embedding = NULL;
    moxin_event event = empty_event();
    moxin_model *good = load(path);
    moxin_session *session = looking(good, image);
    struct answer first = ask(session, QUESTION), second = ask(session, COUNT);
    moxin_session_free(session);
    for (size_t i = 0; i < sizeof faults / sizeof faults[0]; i++) {
        const moxin_status wanted = faults[i].status;
        char fault[32];
        /* At the boundary: any function, even one that does nothing. */
        snprintf(fault, sizeof fault, "%s@call", faults[i].what);
        FAULT(wanted, faults[i].text, moxin_image_size(image, NULL, NULL, &error));
        NEED(moxin_image_size(image, NULL, NULL, &error));
        /* On the engine's thread. */
        snprintf(fault, sizeof fault, "%s@engine", faults[i].what);
        FAULT(wanted, faults[i].text, moxin_model_load(path, NULL, NULL, &model, &error));
        NEED(moxin_model_load(path, NULL, NULL, &model, &error));
        FAULT(wanted, faults[i].text,
              moxin_model_encode_image(model, image, NULL, NULL, &embedding, &error));
        NEED(moxin_model_encode_image(model, image, NULL, NULL, &embedding, &error));
        /* In the middle of a conversation, which can continue. */
        session = looking(model, image);
        struct answer now = ask(session, QUESTION);
        CHECK(same_answer(&first, &now));
        NEED(moxin_session_add_text(session, MOXIN_ROLE_USER, COUNT, MOXIN_STRLEN, &error));
        NEED(moxin_session_step(session, &event, &error));
        NEED(moxin_session_step(session, &event, &error));
        snprintf(fault, sizeof fault, "%s@chat", faults[i].what);
        FAULT(wanted, faults[i].text, moxin_session_step(session, &event, &error));
        CHECK(stats_of(session).message_count == 2);
        now = ask(session, COUNT);
        CHECK(same_answer(&second, &now));
        /* In a stream it is the last event. */
        NEED(moxin_session_add_text(session, MOXIN_ROLE_USER, QUESTION, MOXIN_STRLEN, &error));
        struct stream stream = new_stream();
        setenv("MOXIN_TEST_FAULT", fault, 1);
        start(session, NULL, &stream);
        wait_for_end(&stream);
        unsetenv("MOXIN_TEST_FAULT");
        CHECK(stream.answer.finish == MOXIN_FINISH_REASON_ERROR && stream.last_error == wanted);
        moxin_session_free(session);
        moxin_embedding_free(embedding);
        moxin_model_free(model);
        model = NULL;
        embedding = NULL;
    }
    /* In the middle of quantizing: replaced matrices are restored. */
    for (size_t i = 0; i < sizeof faults / sizeof faults[0]; i++) {
        char fault[32];
        snprintf(fault, sizeof fault, "%s@quantize9", faults[i].what);
        FAULT(faults[i].status, faults[i].text, moxin_model_quantize(good, NULL, NULL, &error));
        session = looking(good, image);
        struct answer restored = ask(session, QUESTION);
        CHECK(same_answer(&first, &restored));
        moxin_session_free(session);
    }
    NEED(moxin_model_quantize(good, NULL, NULL, &error));
    moxin_model_free(good);
}

/* ---------------------------------------------------------------- any function first */

/* No function ends the process because the library was not set up yet. */
static int call_first(const char *name, const char *path) {
    moxin_error *error = NULL;
    moxin_model *model = NULL;
    moxin_image *image = NULL;
    moxin_model_info info = { 0 };
    moxin_memory_estimate estimate = { 0 };
    moxin_memory_stats memory = { 0 };
    info.struct_size = sizeof info;
    estimate.struct_size = sizeof estimate;
    memory.struct_size = sizeof memory;
    if (strcmp(name, "model_load") == 0) {
        NEED(moxin_model_load(path, NULL, NULL, &model, &error));
        moxin_model_free(model);
    } else if (strcmp(name, "model_inspect") == 0) {
        NEED(moxin_model_inspect(path, &info, &error));
    } else if (strcmp(name, "model_estimate") == 0) {
        NEED(moxin_model_estimate(path, NULL, NULL, &estimate, &error));
    } else if (strcmp(name, "memory_stats_get") == 0) {
        NEED(moxin_memory_stats_get(&memory, &error));
    } else if (strcmp(name, "memory_set_limits") == 0) {
        NEED(moxin_memory_set_limits(UINT64_MAX, 0, &error));
    } else if (strcmp(name, "memory_trim") == 0) {
        moxin_memory_trim();
    } else if (strcmp(name, "suspend") == 0) {
        NEED(moxin_suspend(1000, &error));
    } else if (strcmp(name, "resume") == 0) {
        moxin_resume();
    } else if (strcmp(name, "build_info") == 0) {
        CHECK(strstr(moxin_build_info(), "backends") != NULL);
    } else if (strcmp(name, "backend_available") == 0) {
        moxin_backend_available(MOXIN_BACKEND_CUDA);
        CHECK(moxin_backend_available(MOXIN_BACKEND_CPU));
    } else if (strcmp(name, "set_log") == 0) {
        NEED(moxin_set_log(NULL, MOXIN_LOG_LEVEL_OFF, NULL, NULL, &error));
    } else if (strcmp(name, "set_metallib_path") == 0) {
        CHECK(moxin_set_metallib_path("no/such/mlx.metallib", NULL) != MOXIN_STATUS_OK);
    } else if (strcmp(name, "image_from_pixels") == 0) {
        NEED(moxin_image_from_pixels("xyz", 1, 1, 3, MOXIN_PIXEL_FORMAT_RGB8, &image, &error));
        moxin_image_free(image);
    } else if (strcmp(name, "cancel_new") == 0) {
        moxin_cancel_free(moxin_cancel_new());
    } else {
        fprintf(stderr, "no such function: %s\n", name);
        return 1;
    }
    moxin_resume();
    moxin_model_free(load(path));
    CHECK(handles() == 0);
    return failures > 0;
}

/* ---------------------------------------------------------------- the end of the process */

static void exit_streaming(const char *path, long ms) {
    moxin_error *error = NULL;
    moxin_model *model = load(path);
    static struct stream streams[3];
    for (int i = 0; i < 3; i++) {
        moxin_session_params params;
        moxin_session *session = NULL;
        moxin_session_params_init(&params, sizeof params);
        params.temperature = 50; /* generates a long answer */
        NEED(moxin_session_new(model, &params, &session, &error));
        NEED(moxin_session_add_text(session, MOXIN_ROLE_USER, "Describe", MOXIN_STRLEN, &error));
        streams[i] = new_stream();
        start(session, NULL, &streams[i]);
    }
    wait_for(&streams[0], &streams[0].events);
    sleep_ms(ms);
    exit(42);
}

int main(int argc, char **argv) {
    const char *mode = argc > 1 ? argv[1] : "";
    if (strcmp(mode, "first") == 0 && argc == 4) {
        return call_first(argv[2], argv[3]);
    }
    if (strcmp(mode, "exit-streaming") == 0 && argc == 4) {
        exit_streaming(argv[2], atol(argv[3]));
    }
    if (strcmp(mode, "kill-saving") == 0 && argc == 4) {
        kill_saving(argv[2], argv[3]);
    }
    if (strcmp(mode, "text-only") == 0 && argc == 4) {
        moxin_image *image = open_image(argv[3]);
        check_text_only(argv[2], image);
        moxin_image_free(image);
        CHECK(handles() == 0);
        return failures > 0;
    }
    if (strcmp(mode, "quantize") == 0 && argc == 5) {
        moxin_image *image = open_image(argv[3]);
        check_quantize(argv[2], image, argv[4]);
        moxin_image_free(image);
        CHECK(handles() == 0);
        return failures > 0;
    }
    if (strcmp(mode, "faults") == 0 && argc == 4) {
        moxin_image *image = open_image(argv[3]);
        check_faults(argv[2], image);
        moxin_image_free(image);
        CHECK(handles() == 0);
        return failures > 0;
    }
    if (strcmp(mode, "check") != 0 || argc != 5) {
        fprintf(stderr, "see the top of app.c for the arguments\n");
        return 2;
    }
    const char *path = argv[2], *other_path = argv[3];
    moxin_model *model = load(path);
    moxin_image *image = open_image(argv[4]);
    check_model_facts(model, path);
    check_causes(path);
    check_fork_and_rewind(model, image);
    check_prefill(model, image);
    check_logprobs(model, image);
    check_streams(model, image);
    check_image_cache(path, image);
    check_prefix_cache(path, image);
    check_memory(model, path, image);
    check_unload(path, other_path, image);
    check_suspension(model, image, path);
    check_log(path);
    check_dtypes(path, image);
    moxin_image_free(image);
    moxin_model_free(model);
    CHECK(handles() == 0);
    return failures > 0;
}
