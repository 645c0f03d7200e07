/*
 * Everything that an app does with a model, and each part of it again with every single failure:
 * see failing.h. Run by failures.rs.
 *
 *   whole save SOURCE IMAGE PLACE KIND
 *       saves the models that the others are compared with to PLACE
 *   whole each SOURCE IMAGE PLACE KIND MOST
 *       all parts, each with at most MOST failures of a kind
 *   whole one SOURCE IMAGE PLACE KIND PART N
 *       one failure in one part
 *   whole known SOURCE IMAGE PLACE known N
 *       the part with an allocation known to be fatal, which must end the process
 *   whole first SOURCE IMAGE PLACE KIND N
 *       all parts in a fresh process, with one failure in total
 *   whole careless SOURCE IMAGE PLACE memory
 *       a part that does not check its own memory, whose failure must be detected
 *
 * After each failure the same work is done again: it must succeed, with the usual result.
 */
#define _GNU_SOURCE
#include "check.h"
#include "failing.h"

#include <dirent.h>
#include <semaphore.h>

static const char *const QUESTION = "Describe the picture.";

/* The model's folder, the picture's file, and the folder for saving, with the path of a saved model
 * and its expected content. */
static const char *source, *picture, *parent;
static char place[512], saved[512], old[512];

/* The results of the parts, and those without failures. */
static moxin_model *model;
static moxin_image *image;
static moxin_embedding *embedding;
static moxin_session *session;
static struct answer answer, expected[2];
static int quantized;

static const char *current; /* the current part */

/* Allocations in other libraries that end the process when they fail, because that code cannot
 * report it. The test fails if one of them becomes an error, or does not occur. */
static const struct {
    const char *part;
    size_t bytes;
} KNOWN[] = {
    /* serde's copy of a part of tokenizer.json, from which the tokenizers crate detects the kind of
     * model: grows with the file. */
    { "load", 65536 },
    /* The png crate's buffers for compressed and decompressed data: they do not grow. */
    { "picture", 131072 },
    { "picture", 262144 },
};

static long failing_known(size_t bytes) {
    size_t i;
    for (i = 0; i < sizeof KNOWN / sizeof KNOWN[0]; i++) {
        if (bytes == KNOWN[i].bytes && strcmp(current, KNOWN[i].part) == 0) {
            return (long)i + 1;
        }
    }
    return 0;
}

/* ---------------------------------------------------------------- folders */

static int same_file(const char *a, const char *b) {
    static char x[1 << 16], y[1 << 16];
    FILE *f = fopen(a, "rb"), *g = fopen(b, "rb");
    int same = f && g;
    while (same) {
        size_t n = fread(x, 1, sizeof x, f);
        same = fread(y, 1, sizeof y, g) == n && memcmp(x, y, n) == 0;
        if (n == 0) {
            break;
        }
    }
    if (f) {
        fclose(f);
    }
    if (g) {
        fclose(g);
    }
    return same;
}

/* Calls f with the path of each entry; returns their number, or -1 if there is no such folder. */
static int each_entry(const char *folder, void (*f)(const char *path)) {
    DIR *open = opendir(folder);
    struct dirent *entry;
    int count = 0;
    if (open == NULL) {
        return -1;
    }
    while ((entry = readdir(open)) != NULL) {
        char path[1024];
        if (strcmp(entry->d_name, ".") == 0 || strcmp(entry->d_name, "..") == 0) {
            continue;
        }
        count++;
        snprintf(path, sizeof path, "%s/%s", folder, entry->d_name);
        if (f) {
            f(path);
        }
    }
    closedir(open);
    return count;
}

/* Returns whether two folders have the same files. */
static int same_folder(const char *a, const char *b) {
    DIR *open = opendir(a);
    struct dirent *entry;
    int same = open != NULL && each_entry(a, NULL) == each_entry(b, NULL);
    while (same && (entry = readdir(open)) != NULL) {
        char x[1024], y[1024];
        snprintf(x, sizeof x, "%s/%s", a, entry->d_name);
        snprintf(y, sizeof y, "%s/%s", b, entry->d_name);
        same = entry->d_name[0] == '.' || same_file(x, y);
    }
    if (open) {
        closedir(open);
    }
    return same;
}

static void remove_all(const char *path) {
    if (unlink(path) != 0) {
        each_entry(path, remove_all);
        rmdir(path);
    }
}

static int leftovers;

static void remove_leftover(const char *path) {
    if (strcmp(path, place) != 0 && strcmp(path, saved) != 0 && strcmp(path, old) != 0) {
        leftovers++;
        remove_all(path);
    }
}

/* ---------------------------------------------------------------- parts */

static moxin_status load_model(moxin_error **error) {
    moxin_model_params params;
    moxin_model_params_init(&params, sizeof params);
    params.image_cache_bytes = 0;
    return moxin_model_load(source, &params, NULL, &model, error);
}

static void free_model(void) {
    moxin_model_free(model);
    model = NULL;
}

static moxin_status open_picture(moxin_error **error) {
    return moxin_image_from_file(picture, NULL, &image, error);
}

static void free_picture(void) {
    moxin_image_free(image);
    image = NULL;
}

/* The features of a picture, and a copy of their values. */
static moxin_status encode(moxin_error **error) {
    static float numbers[64 * 192];
    moxin_status status;
    moxin_embedding_free(embedding);
    embedding = NULL;
    status = moxin_model_encode_image(model, image, NULL, NULL, &embedding, error);
    return status == MOXIN_STATUS_OK
               ? moxin_embedding_copy(embedding, numbers, sizeof numbers / sizeof numbers[0], error)
               : status;
}

static void free_embedding(void) {
    moxin_embedding_free(embedding);
    embedding = NULL;
}

static moxin_status begin_session(moxin_error **error) {
    moxin_session_params params;
    moxin_session_params_init(&params, sizeof params);
    params.max_tokens = 8;
    return moxin_session_new(model, &params, &session, error);
}

static void free_session(void) {
    moxin_session_free(session);
    session = NULL;
}

static void note_event(const moxin_event *event) {
    if (event->kind == MOXIN_EVENT_KIND_TEXT && answer.count < MAX_TOKENS) {
        answer.tokens[answer.count++] = event->token_id;
    }
    strncat(answer.text, event->text.data, sizeof answer.text - strlen(answer.text) - 1);
    answer.finish = event->finish;
}

/* Adds the question with its picture, after removing what a failed attempt has left. */
static moxin_status question(moxin_error **error) {
    moxin_status status = moxin_session_reset(session, error);
    memset(&answer, 0, sizeof answer);
    if (status == MOXIN_STATUS_OK) {
        status = moxin_session_add_image(session, image, NULL, error);
    }
    return status == MOXIN_STATUS_OK
               ? moxin_session_add_text(session, MOXIN_ROLE_USER, QUESTION, MOXIN_STRLEN, error)
               : status;
}

static moxin_status pull(moxin_error **error) {
    moxin_event event = empty_event();
    moxin_status status = question(error);
    while (status == MOXIN_STATUS_OK && event.kind != MOXIN_EVENT_KIND_FINISHED) {
        status = moxin_session_step(session, &event, error);
        if (status == MOXIN_STATUS_OK) {
            note_event(&event);
        }
    }
    return status;
}

static sem_t stream_ended;
static moxin_status stream_status;
static char stream_message[512];

static bool on_event(void *user_data, const moxin_event *event) {
    (void)user_data;
    note_event(event);
    if (event->kind == MOXIN_EVENT_KIND_FINISHED) {
        stream_status = moxin_error_status(event->error);
        snprintf(stream_message, sizeof stream_message, "%s",
                 moxin_error_message(event->error).data);
    }
    return true;
}

static void on_stream_end(void *user_data) {
    (void)user_data;
    sem_post(&stream_ended);
}

static moxin_status stream(moxin_error **error) {
    moxin_status status = question(error);
    if (status == MOXIN_STATUS_OK) {
        status = moxin_session_start(session, NULL, on_event, NULL, on_stream_end, error);
        while (sem_wait(&stream_ended) != 0) {
        }
        if (status == MOXIN_STATUS_OK) {
            CHECK((stream_message[0] == 0) == (stream_status == MOXIN_STATUS_OK));
            status = stream_status;
        }
    }
    return status;
}

/* Returns whether the answer is the usual one; the very first one becomes the reference. */
static int answer_is_right(void) {
    struct answer *always = &expected[quantized];
    if (always->count == 0) {
        *always = answer;
    }
    return same_answer(&answer, always);
}

static moxin_status quantize(moxin_error **error) {
    moxin_quant_params params;
    moxin_status status;
    moxin_quant_params_init(&params, sizeof params);
    params.bits = 8;
    status = moxin_model_quantize(model, &params, NULL, error);
    quantized = quantized || status == MOXIN_STATUS_OK;
    return status;
}

/* Replaces a quantized model with a dense one. */
static void dense_again(void) {
    moxin_error *error = NULL;
    free_session();
    free_model();
    quantized = 0;
    NEED(load_model(&error));
    NEED(begin_session(&error));
}

static int still_answers(void) {
    moxin_error *error = NULL;
    NEED(pull(&error));
    return answer_is_right();
}

static void remove_place(void) { remove_all(place); }

static moxin_status save_new(moxin_error **error) {
    return moxin_model_save(model, place, false, NULL, error);
}

static int saved_or_absent(void) {
    return each_entry(place, NULL) < 0 || same_folder(saved, place);
}

static int is_saved(void) { return same_folder(saved, place); }

static void put_note(const char *folder) {
    char path[600];
    FILE *file;
    snprintf(path, sizeof path, "%s/README.md", folder);
    file = fopen(path, "w");
    CHECK(file != NULL && fputs("another model\n", file) >= 0 && fclose(file) == 0);
}

/* Puts another model at the path. */
static void put_other(void) {
    moxin_error *error = NULL;
    NEED(moxin_model_save(model, place, true, NULL, &error));
    put_note(place);
}

static moxin_status save_over(moxin_error **error) {
    return moxin_model_save(model, place, true, NULL, error);
}

static int saved_or_old(void) { return is_saved() || same_folder(old, place); }

static char *careless_block;

static moxin_status be_careless(moxin_error **error) {
    (void)error;
    careless_block = malloc(1 << 22);
    memset(careless_block, 1, 1 << 22);
    return MOXIN_STATUS_OK;
}

static void free_block(void) { free(careless_block); }

/* The set-up of a part, the part, checks that hold even if it failed, checks for success, and its
 * clean-up. */
struct part {
    const char *name;
    void (*before)(void);
    moxin_status (*run)(moxin_error **error);
    int (*always)(void);
    int (*right)(void);
    void (*undo)(void);
};

static const struct part PARTS[] = {
    { "load", NULL, load_model, NULL, NULL, free_model },
    { "picture", NULL, open_picture, NULL, NULL, free_picture },
    { "encode", NULL, encode, NULL, NULL, free_embedding },
    { "session", NULL, begin_session, NULL, NULL, free_session },
    { "pull", NULL, pull, NULL, answer_is_right, NULL },
    { "stream", NULL, stream, NULL, answer_is_right, NULL },
    { "quantize", NULL, quantize, still_answers, NULL, dense_again },
    { "save", remove_place, save_new, saved_or_absent, is_saved, remove_place },
    { "overwrite", put_other, save_over, saved_or_old, is_saved, remove_place },
};

static const struct part CARELESS = { "careless", NULL, be_careless, NULL, NULL, free_block };

enum {
    PART_COUNT = sizeof PARTS / sizeof PARTS[0],
    TIME_LIMIT = 20 /* seconds, for one part */,
    END_OF_LIST = 4
};

/* ---------------------------------------------------------------- failures */

static void complain(const char *what) {
    fprintf(stderr, "%s, %s %ld (%ld): %s\n", current, FAILING_NAMES[failing.kind], failing.at,
            failing.fired, what);
    failures++;
}

static void on_death(int signal_number) {
    void *frames[64];
    failing_pause();
    complain(strsignal(signal_number));
    backtrace_symbols_fd(frames, backtrace(frames, 64), STDERR_FILENO);
    _exit(3);
}

/* Runs a part, which must succeed unless a failure was injected; it is then repeated and must
 * succeed. */
static void run(const struct part *part) {
    moxin_error *error = NULL;
    moxin_status status;
    current = part->name;
    alarm(TIME_LIMIT);
    failing_go();
    status = part->run(&error);
    failing_pause();
    alarm(0);
    if (status != MOXIN_STATUS_OK) {
        moxin_str message = moxin_error_message(error);
        if (failing.fired < 0 || status == MOXIN_STATUS_PANIC || (error && message.len == 0)) {
            complain(message.data);
        } else if (getenv("MOXIN_FAILURES_SHOW")) {
            printf("%s, %s %ld (%ld): %s\n", current, FAILING_NAMES[failing.kind], failing.at,
                   failing.fired, message.data);
        }
        moxin_error_free(error);
        error = NULL;
    }
    leftovers = 0;
    each_entry(parent, remove_leftover);
    if (leftovers > 0 && !failing.in_folder) {
        complain("something is left beside the saved model");
    }
    if (part->always && !part->always()) {
        complain("something was lost");
    }
    if (status != MOXIN_STATUS_OK && part->run(&error) != MOXIN_STATUS_OK) {
        complain("cannot be done again");
        NEED(moxin_error_status(error));
    }
    if (part->right && !part->right()) {
        complain("the outcome is not as it was");
    }
}

static void undo(const struct part *part) {
    if (part->undo) {
        part->undo();
    }
}

/* Runs a part with one failure, and cleans up. */
static void attempt(const struct part *part, enum failing_kind kind, long n) {
    if (part->before) {
        part->before();
    }
    failing_arm(kind, n);
    run(part);
    if (n > 0 && failing.fired < 0) {
        printf("%s %s %ld did not come\n", part->name, FAILING_NAMES[kind], n);
    }
    undo(part);
}

/* Runs a part that the next one needs, without failures. */
static void keep(const struct part *part) {
    if (part->before) {
        part->before();
    }
    failing_arm(FAILING_KINDS, 0);
    run(part);
}

/* Saves the models that others are compared with. */
static void save_models(void) {
    moxin_error *error = NULL;
    NEED(load_model(&error));
    NEED(quantize(&error));
    NEED(moxin_model_save(model, saved, true, NULL, &error));
    NEED(moxin_model_save(model, old, true, NULL, &error));
    put_note(old);
    free_model();
    quantized = 0;
}

static enum failing_kind kind_called(const char *name) {
    int kind;
    for (kind = 0; kind < FAILING_KINDS; kind++) {
        if (strcmp(FAILING_NAMES[kind], name) == 0) {
            return (enum failing_kind)kind;
        }
    }
    fprintf(stderr, "nothing is called %s\n", name);
    exit(2);
}

/* Runs all parts, each with at most so many failures of a kind. */
static void each(enum failing_kind kind, long most) {
    const struct part *part;
    for (part = PARTS; part < PARTS + PART_COUNT; part++) {
        long count, points, last, i;
        keep(part); /* work done once per process is done: see `first` for that */
        undo(part);
        attempt(part, kind, 0);
        count = failing.counts[kind];
        points = count < most ? count : most;
        last = points /
               4; /* the last ones, where the result is published, and evenly spread ones before */
        for (i = 0; i < points; i++) {
            attempt(part, kind,
                    i < last ? count - i : 1 + (i - last) * (count - last) / (points - last));
        }
        printf("%s %s %ld of %ld\n", part->name, FAILING_NAMES[kind], points, count);
        keep(part);
    }
}

/* Runs a part with one failure. */
static void one(enum failing_kind kind, const char *name, long n) {
    const struct part *part;
    for (part = PARTS; part < PARTS + PART_COUNT; part++) {
        if (strcmp(part->name, name) == 0) {
            attempt(part, kind, n);
        }
        keep(part);
    }
}

/* Runs the parts in a fresh process, with one failure, and then all again with the same results. */
static void first(enum failing_kind kind, long n) {
    int i;
    failing_arm(kind, n);
    for (i = 0; i < PART_COUNT; i++) {
        if (PARTS[i].before) {
            PARTS[i].before();
        }
        run(&PARTS[i]);
    }
    printf("first %s %ld of %ld\n", FAILING_NAMES[kind], n, failing.counts[kind]);
    dense_again();
    for (i = 0; i < PART_COUNT; i++) {
        attempt(&PARTS[i], FAILING_KINDS, 0);
        keep(&PARTS[i]);
    }
}

int main(int count, char **arguments) {
    const char *mode = count > 5 ? arguments[1] : "";
    enum failing_kind kind;
    if (count < 6) {
        fprintf(stderr, "see the top of whole.c\n");
        return 2;
    }
    source = arguments[2];
    picture = arguments[3];
    parent = arguments[4];
    kind = kind_called(arguments[5]);
    snprintf(place, sizeof place, "%s/model", parent);
    snprintf(saved, sizeof saved, "%s/saved", parent);
    snprintf(old, sizeof old, "%s/old", parent);
    failing.threshold =
        getenv("MOXIN_FAILURES_BYTES") ? (size_t)atol(getenv("MOXIN_FAILURES_BYTES")) : 1 << 20;
    sem_init(&stream_ended, 0, 0);
    signal(SIGABRT, on_death);
    signal(SIGSEGV, on_death);
    signal(SIGALRM, on_death);
    if (!failing_watch_files()) {
        printf("SKIPPED: file operations cannot be watched here\n");
    }
    if (strcmp(mode, "save") == 0) {
        save_models();
    } else if (strcmp(mode, "each") == 0 && count == 7) {
        each(kind, atol(arguments[6]));
    } else if (strcmp(mode, "known") == 0 && count == 7) {
        size_t i = (size_t)atol(arguments[6]);
        if (i >= sizeof KNOWN / sizeof KNOWN[0]) {
            return END_OF_LIST;
        }
        one(kind, KNOWN[i].part, (long)i + 1);
    } else if (strcmp(mode, "one") == 0 && count == 8) {
        one(kind, arguments[6], atol(arguments[7]));
    } else if (strcmp(mode, "first") == 0 && count == 7) {
        first(kind, atol(arguments[6]));
    } else if (strcmp(mode, "careless") == 0) {
        attempt(&CARELESS, kind, 1);
    } else {
        return 2;
    }
    free_embedding();
    free_session();
    free_picture();
    free_model();
    return failures != 0;
}
