/*
 * A conversation about a picture: reads questions from the standard input, one per line, and
 * streams the answers.
 *
 * chat MODEL IMAGE
 *
 * Answers are written to the standard output; the loading bar, the prompt and a line of statistics
 * after each answer to the error output. Ctrl-C cancels the current answer or the loading; a second
 * one, or one while nothing is running, ends the program.
 */
#define _POSIX_C_SOURCE 200809L

#include <inttypes.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "moxin_vlm.h"

enum { BAR_WIDTH = 40, EXIT_INTERRUPTED = 130 };

static volatile sig_atomic_t working;     /* something is running that Ctrl-C can cancel */
static volatile sig_atomic_t interrupted; /* and it should be cancelled */
static moxin_cancel *cancel_loading;

/* A signal handler must not allocate, lock or print. moxin_cancel_trigger and moxin_session_cancel
 * only perform one atomic store each, so they are allowed. Loading is cancelled that way. An answer
 * is cancelled by the loop in `answer`, which checks `interrupted` after each step:
 * moxin_session_cancel here could come just after the last step, and cancel the next answer
 * instead. */
static void on_interrupt(int signal_number) {
    (void)signal_number;
    if (!working || interrupted) {
        _exit(EXIT_INTERRUPTED);
    }
    interrupted = 1;
    moxin_cancel_trigger(cancel_loading);
}

static void handle_interrupts(void) {
    struct sigaction action;
    memset(&action, 0, sizeof action);
    action.sa_handler = on_interrupt;
    action.sa_flags = SA_RESTART;
    sigemptyset(&action.sa_mask);
    sigaction(SIGINT, &action, NULL);
}

/* Prints why a call failed and frees the error. */
static void complain(const char *doing, moxin_error *error) {
    fprintf(stderr, "chat: %s: %s (%s)\n", doing, moxin_error_message(error).data,
            moxin_status_name((uint32_t)moxin_error_status(error)));
    moxin_error_free(error);
}

static bool show_progress(void *user_data, moxin_stage stage, float fraction) {
    static const char full[] = "########################################";
    int done = (int)(fraction * BAR_WIDTH);
    int *shown = user_data;
    if (stage == MOXIN_STAGE_LOAD && done != *shown) {
        fprintf(stderr, "\rloading [%-*.*s]%s", BAR_WIDTH, done, full,
                done == BAR_WIDTH ? "\n" : "");
        *shown = done;
    }
    return true;
}

static moxin_model *load(const char *path) {
    int shown = -1;
    moxin_op op = { 0 };
    moxin_model *model = NULL;
    moxin_error *error = NULL;
    op.struct_size = sizeof op;
    op.progress = show_progress;
    op.user_data = &shown;
    op.cancel = cancel_loading;
    working = 1;
    if (moxin_model_load(path, NULL, &op, &model, &error) != MOXIN_STATUS_OK) {
        fputc('\n', stderr);
        complain("loading the model", error);
    }
    working = 0;
    return model;
}

/* Encodes the picture once, for all answers. */
static moxin_embedding *encode(const moxin_model *model, const char *path) {
    moxin_image *image = NULL;
    moxin_embedding *picture = NULL;
    moxin_error *error = NULL;
    if (moxin_image_from_file(path, NULL, &image, &error) != MOXIN_STATUS_OK ||
        moxin_model_encode_image(model, image, NULL, NULL, &picture, &error) != MOXIN_STATUS_OK) {
        complain("reading the picture", error);
    }
    moxin_image_free(image);
    return picture;
}

static void print_statistics(const moxin_session *session) {
    moxin_stats stats = { 0 };
    stats.struct_size = sizeof stats;
    if (moxin_session_stats(session, &stats, NULL) == MOXIN_STATUS_OK) {
        fprintf(stderr,
                "[%" PRIu32
                " tokens, the first after %.0f ms, then %.1f a second; prompt of %" PRIu32
                ", %" PRIu32 " of them reused]\n",
                stats.generated_tokens, stats.first_token_ms, stats.decode_tps, stats.prompt_tokens,
                stats.reused_tokens);
    }
}

/* Answers one question. A question that fails or is cancelled is removed, and the conversation
 * continues without it. */
static void answer(const moxin_session *session, const moxin_embedding *picture,
                   const char *question) {
    static bool answered = false;
    moxin_error *error = NULL;
    moxin_event event = { 0 };
    event.struct_size = sizeof event;
    /* The picture is part of the first question. If that question was rolled back, the picture was
     * too, and is added again. */
    if (moxin_session_add_text(session, MOXIN_ROLE_USER, question, MOXIN_STRLEN, &error) !=
            MOXIN_STATUS_OK ||
        (!answered && moxin_session_add_embedding(session, picture, &error) != MOXIN_STATUS_OK)) {
        complain("asking", error);
        return;
    }
    interrupted = 0;
    working = 1;
    while (event.kind != MOXIN_EVENT_KIND_FINISHED) {
        if (interrupted) {
            moxin_session_cancel(session); /* the next step is the last */
        }
        if (moxin_session_step(session, &event, &error) != MOXIN_STATUS_OK) {
            complain("answering", error);
            break;
        }
        fputs(event.text.data, stdout);
        fflush(stdout);
    }
    working = 0;
    putchar('\n');
    fflush(stdout);
    if (event.finish == MOXIN_FINISH_REASON_CANCELLED) {
        fputs("(cancelled: the question and its answer are removed)\n", stderr);
    } else if (event.kind == MOXIN_EVENT_KIND_FINISHED) {
        answered = true;
    }
    print_statistics(session);
}

/* Returns the next line that is not empty, without its newline; NULL at the end of the input. */
static char *read_question(char *line, int size) {
    do {
        fputs("> ", stderr);
        if (fgets(line, size, stdin) == NULL) {
            return NULL;
        }
        line[strcspn(line, "\r\n")] = '\0';
    } while (line[0] == '\0');
    return line;
}

int main(int argc, char **argv) {
    char line[4096];
    if (argc != 3) {
        fprintf(stderr, "usage: chat MODEL IMAGE\n");
        return 2;
    }
    if (moxin_abi_version() != MOXIN_ABI_VERSION) {
        fprintf(stderr, "chat: built for ABI %d, the library has %" PRIu32 "\n", MOXIN_ABI_VERSION,
                moxin_abi_version());
        return 1;
    }
    cancel_loading = moxin_cancel_new();
    handle_interrupts();

    moxin_model *model = load(argv[1]);
    if (model == NULL) {
        return interrupted ? EXIT_INTERRUPTED : 1;
    }
    moxin_embedding *picture = encode(model, argv[2]);
    if (picture == NULL) {
        return 1;
    }
    moxin_session *session = NULL;
    moxin_error *error = NULL;
    if (moxin_session_new(model, NULL, &session, &error) != MOXIN_STATUS_OK) {
        complain("starting a session", error);
        return 1;
    }
    while (read_question(line, sizeof line) != NULL) {
        answer(session, picture, line);
    }
    moxin_session_free(session); /* in any order */
    moxin_embedding_free(picture);
    moxin_model_free(model);
    signal(SIGINT, SIG_DFL);
    moxin_cancel_free(cancel_loading);
    return 0;
}
