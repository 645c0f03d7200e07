/* Shared by the C tests: checks that count their failures, and functions for loading, starting and
 * asking. */
#ifndef CHECK_H
#define CHECK_H

#define _POSIX_C_SOURCE 200809L

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "moxin_vlm.h"

static int failures; /* a failed check is counted here and does not stop the test */

static inline void check(int holds, const char *what, const char *file, int line) {
    if (!holds) {
        fprintf(stderr, "%s:%d: %s\n", file, line, what);
        failures++;
    }
}

/* Like assert, but cannot be compiled out and does not stop. */
#define CHECK(condition) check(condition, #condition, __FILE__, __LINE__)

/* Checks the status of a call whose last argument is `&error`, and that the error has the same
 * status and a message. */
#define EXPECT(wanted, call) expect(wanted, call, &error, #call, __FILE__, __LINE__)

static inline void expect(moxin_status wanted, moxin_status found, moxin_error **error,
                          const char *call, const char *file, int line) {
    moxin_str message = moxin_error_message(*error);
    if (found != wanted) {
        fprintf(stderr, "%s:%d: %s: %s (%s), not %s\n", file, line, call,
                moxin_status_name((uint32_t)found), message.data,
                moxin_status_name((uint32_t)wanted));
        failures++;
    }
    check(moxin_error_status(*error) == found, "the error has the status of its call", file, line);
    check((*error == NULL) == (found == MOXIN_STATUS_OK), "there is an error where the call failed",
          file, line);
    check(strlen(message.data) == message.len, "a message ends with NUL", file, line);
    check((message.len > 0) == (found != MOXIN_STATUS_OK), "an error has a message", file, line);
    moxin_error_free(*error);
    *error = NULL;
}

/* Stops at once if the rest cannot work. */
#define NEED(call) need(call, &error, #call, __FILE__, __LINE__)

static inline void need(moxin_status found, moxin_error **error, const char *call, const char *file,
                        int line) {
    expect(MOXIN_STATUS_OK, found, error, call, file, line);
    if (found != MOXIN_STATUS_OK) {
        exit(1);
    }
}

static inline void sleep_ms(long ms) {
    struct timespec time = { ms / 1000, ms % 1000 * 1000000 };
    nanosleep(&time, NULL);
}

/* ---------------------------------------------------------------- an answer */

enum { MAX_TOKENS = 64 };

struct answer {
    int32_t tokens[MAX_TOKENS];
    int count;
    char text[1024];
    moxin_finish_reason finish;
};

static inline moxin_event empty_event(void) {
    moxin_event event;
    memset(&event, 0, sizeof event);
    event.struct_size = sizeof event;
    return event;
}

static inline struct answer finish_answer(moxin_session *session) {
    struct answer answer;
    moxin_error *error = NULL;
    moxin_event event = empty_event();
    memset(&answer, 0, sizeof answer);
    do {
        NEED(moxin_session_step(session, &event, &error));
        CHECK(strlen(event.text.data) == event.text.len);
        CHECK((event.kind == MOXIN_EVENT_KIND_FINISHED) ==
              (event.finish != MOXIN_FINISH_REASON_NONE));
        CHECK((event.kind == MOXIN_EVENT_KIND_TEXT) == (event.token_id >= 0));
        if (event.kind == MOXIN_EVENT_KIND_TEXT && answer.count < MAX_TOKENS) {
            CHECK(event.logprob <= 0);
            answer.tokens[answer.count++] = event.token_id;
        }
        strncat(answer.text, event.text.data, sizeof answer.text - strlen(answer.text) - 1);
    } while (event.kind != MOXIN_EVENT_KIND_FINISHED);
    answer.finish = event.finish;
    return answer;
}

static inline struct answer ask(moxin_session *session, const char *question) {
    moxin_error *error = NULL;
    NEED(moxin_session_add_text(session, MOXIN_ROLE_USER, question, MOXIN_STRLEN, &error));
    return finish_answer(session);
}

static inline int same_answer(const struct answer *a, const struct answer *b) {
    return a->count > 0 && a->count == b->count &&
           memcmp(a->tokens, b->tokens, (size_t)a->count * sizeof a->tokens[0]) == 0 &&
           strcmp(a->text, b->text) == 0 && a->finish == b->finish;
}

static inline moxin_model *load(const char *path) {
    moxin_model *model = NULL;
    moxin_error *error = NULL;
    NEED(moxin_model_load(path, NULL, NULL, &model, &error));
    return model;
}

static inline moxin_session *begin(const moxin_model *model) {
    moxin_session *session = NULL;
    moxin_error *error = NULL;
    NEED(moxin_session_new(model, NULL, &session, &error));
    return session;
}

static inline moxin_image *open_image(const char *path) {
    moxin_image *image = NULL;
    moxin_error *error = NULL;
    NEED(moxin_image_from_file(path, NULL, &image, &error));
    return image;
}

static inline moxin_stats stats_of(const moxin_session *session) {
    moxin_stats stats = { 0 };
    moxin_error *error = NULL;
    stats.struct_size = sizeof stats;
    NEED(moxin_session_stats(session, &stats, &error));
    return stats;
}

#endif
