/*
 * Failures inside MLX, and the library's reaction. Run by mlx.rs.
 *
 *   mlx MODEL PICTURE
 */
#include "check.h"

#define QUESTION "Describe the picture."
#define COUNT "How many shapes are there?"
#define WORDS "LU factorization failed" /* of a singular matrix */

static moxin_session *look(const moxin_model *model, const moxin_image *image) {
    moxin_error *error = NULL;
    moxin_session *session = begin(model);
    NEED(moxin_session_add_image(session, image, NULL, &error));
    return session;
}

static void set_fault(const char *fault) { setenv("MOXIN_TEST_FAULT", fault, 1); }

/* Ends the fault and checks that the error has MLX's message. */
static void expect_fault(moxin_status status, moxin_error **error, const char *what) {
    const char *message = moxin_error_message(*error).data;
    if (status != MOXIN_STATUS_BACKEND || strstr(message, WORDS) == NULL) {
        fprintf(stderr, "mlx.c: %s: %s (%s)\n", what, moxin_status_name((uint32_t)status), message);
        failures++;
    }
    unsetenv("MOXIN_TEST_FAULT");
    moxin_error_free(*error);
    *error = NULL;
}

static void check_load(const char *path) {
    static const char *const faults[] = { "eval@load:1", "eval@load:9" };
    for (int i = 0; i < 2; i++) {
        moxin_error *error = NULL;
        moxin_model *model = NULL;
        set_fault(faults[i]);
        expect_fault(moxin_model_load(path, NULL, NULL, &model, &error), &error, faults[i]);
        CHECK(model == NULL);
        moxin_model_free(load(path));
    }
}

static void check_encode(const moxin_model *model, const moxin_image *image) {
    static const char *const faults[] = { "eval@encoder:1", "eval@encoder:6", "eval@projector:3" };
    for (int i = 0; i < 3; i++) {
        moxin_error *error = NULL;
        moxin_embedding *embedding = NULL;
        moxin_memory_trim(); /* otherwise it is cached */
        set_fault(faults[i]);
        expect_fault(moxin_model_encode_image(model, image, NULL, NULL, &embedding, &error), &error,
                     faults[i]);
        NEED(moxin_model_encode_image(model, image, NULL, NULL, &embedding, &error));
        moxin_embedding_free(embedding);
    }
}

/* In a second turn, in its prompt and in its answer: the first turn stays, and other conversations
 * too. */
static void check_turns(const moxin_model *model, const moxin_image *image) {
    static const char *const faults[] = { "eval@decoder:2", "eval@decoder:7", "eval@head:1",
                                          "eval@head:2" };
    moxin_error *error = NULL;
    moxin_session *session = look(model, image);
    const struct answer first = ask(session, QUESTION), second = ask(session, COUNT);
    moxin_session_free(session);
    for (int i = 0; i < 4; i++) {
        moxin_event event = empty_event();
        moxin_session *fork = NULL, *other = look(model, image);
        moxin_status status;
        NEED(moxin_session_add_text(other, MOXIN_ROLE_USER, QUESTION, MOXIN_STRLEN, &error));
        for (int steps = 0; steps < 3; steps++) {
            NEED(moxin_session_step(other, &event, &error));
        }
        session = look(model, image);
        struct answer answer = ask(session, QUESTION);
        CHECK(same_answer(&answer, &first));
        NEED(moxin_session_fork(session, &fork, &error));
        NEED(moxin_session_add_text(session, MOXIN_ROLE_USER, COUNT, MOXIN_STRLEN, &error));
        set_fault(faults[i]);
        do {
            status = moxin_session_step(session, &event, &error);
        } while (status == MOXIN_STATUS_OK && event.kind != MOXIN_EVENT_KIND_FINISHED);
        expect_fault(status, &error, faults[i]);
        CHECK(stats_of(session).message_count == 2);
        answer = ask(session, COUNT);
        CHECK(same_answer(&answer, &second));
        CHECK(stats_of(session).reused_tokens == 0); /* the computed values may be anything */
        answer = ask(fork, COUNT);
        CHECK(same_answer(&answer, &second));
        CHECK(stats_of(fork).reused_tokens > 64);
        struct answer rest = finish_answer(other);
        CHECK(rest.finish == first.finish && strstr(first.text, rest.text) != NULL);
        moxin_session_free(fork);
        moxin_session_free(other);
        moxin_session_free(session);
    }
}

static struct answer ask_in_new_session(const moxin_model *model, const moxin_image *image) {
    moxin_session *session = look(model, image);
    struct answer answer = ask(session, QUESTION);
    moxin_session_free(session);
    return answer;
}

/* The matrices that were replaced before the failure are read again. */
static void check_quantize(const char *path, const moxin_image *image) {
    moxin_error *error = NULL;
    moxin_model *model = load(path), *plain = load(path);
    const struct answer dense = ask_in_new_session(plain, image);
    NEED(moxin_model_quantize(plain, NULL, NULL, &error));
    const struct answer quantized = ask_in_new_session(plain, image);
    set_fault("eval@quantizing:7");
    expect_fault(moxin_model_quantize(model, NULL, NULL, &error), &error, "quantizing");
    struct answer answer = ask_in_new_session(model, image);
    CHECK(same_answer(&answer, &dense));
    NEED(moxin_model_quantize(model, NULL, NULL, &error));
    answer = ask_in_new_session(model, image);
    CHECK(same_answer(&answer, &quantized));
    moxin_model_free(model);
    moxin_model_free(plain);
}

int main(int argc, char **argv) {
    if (argc != 3) {
        return 2;
    }
    moxin_model *model = load(argv[1]);
    moxin_image *image = open_image(argv[2]);
    check_load(argv[1]);
    check_encode(model, image);
    check_turns(model, image);
    check_quantize(argv[1], image);
    moxin_image_free(image);
    moxin_model_free(model);
    return failures > 0;
}
