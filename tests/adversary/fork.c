/*
 * Forks while the library is working: `fork MODE MODEL IMAGE`. Run by process.rs. In the child
 * every call is refused, and frees and exit handlers do not block; the parent continues unaffected.
 */
#include "check.h"

#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <sys/wait.h>
#include <unistd.h>

enum { FORKS = 8, CHILD_MS = 5000 };

static const char *mode, *path;
static moxin_model *model;
static moxin_session *session, *streaming;
static moxin_image *image;
static moxin_embedding *embedding;
static moxin_cancel *cancel;
static moxin_error *old_error;
static atomic_int events, stop, destroyed, answered;
static int generation; /* 0: the parent, 1: its child, 2: a child of that */

static int is_mode(const char *name) { return strcmp(mode, name) == 0; }

static bool on_event(void *user_data, const moxin_event *event) {
    (void)user_data;
    atomic_fetch_add(&events, 1);
    if (event->kind == MOXIN_EVENT_KIND_FINISHED && !atomic_load(&stop)) {
        CHECK(moxin_session_add_text(streaming, MOXIN_ROLE_USER, "Describe", MOXIN_STRLEN, NULL) ==
              MOXIN_STATUS_OK);
        CHECK(moxin_session_start(streaming, NULL, on_event, NULL, NULL, NULL) == MOXIN_STATUS_OK);
    }
    return true;
}

static void on_log(void *user_data, moxin_log_level level, moxin_str target, moxin_str message) {
    (void)user_data;
    (void)level;
    (void)target;
    (void)message;
}

static void on_destroy(void *user_data) {
    (void)user_data;
    atomic_fetch_add(&destroyed, 1);
}

static void free_everything(void) {
    moxin_session_free(streaming);
    moxin_session_free(session);
    moxin_embedding_free(embedding);
    moxin_image_free(image);
    moxin_model_free(model);
    moxin_cancel_free(cancel);
    moxin_error_free(old_error);
    if (generation > 0 && failures > 0) {
        _exit(1);
    }
}

/* Calls every function that may fail, in a child. */
static void call_everything(void) {
    const moxin_status refused = MOXIN_STATUS_INVALID_STATE;
    moxin_error *error = NULL;
    moxin_model *no_model = NULL;
    moxin_session *no_session = NULL;
    moxin_image *no_image = NULL;
    moxin_embedding *no_embedding = NULL;
    moxin_event event = empty_event();
    moxin_stats stats;
    moxin_model_info info;
    moxin_embedding_info embedding_info;
    moxin_memory_stats memory;
    moxin_memory_estimate estimate;
    moxin_str value;
    float number;
    memset(&stats, 0, sizeof stats);
    memset(&info, 0, sizeof info);
    memset(&embedding_info, 0, sizeof embedding_info);
    memset(&memory, 0, sizeof memory);
    memset(&estimate, 0, sizeof estimate);
    stats.struct_size = sizeof stats;
    info.struct_size = sizeof info;
    embedding_info.struct_size = sizeof embedding_info;
    memory.struct_size = sizeof memory;
    estimate.struct_size = sizeof estimate;

    EXPECT(refused, moxin_model_load(path, NULL, NULL, &no_model, &error));
    EXPECT(refused, moxin_model_inspect(path, &info, &error));
    EXPECT(refused, moxin_model_estimate(path, NULL, NULL, &estimate, &error));
    EXPECT(refused, moxin_model_info_get(model, &info, &error));
    EXPECT(refused, moxin_model_metadata(model, "model_type", &value, &error));
    EXPECT(refused, moxin_model_quantize(model, NULL, NULL, &error));
    EXPECT(refused, moxin_model_save(model, "/no/such/folder", false, NULL, &error));
    EXPECT(refused, moxin_model_unload(model, &error));
    EXPECT(refused, moxin_image_from_bytes("x", 1, NULL, &no_image, &error));
    EXPECT(refused, moxin_image_size(image, NULL, NULL, &error));
    EXPECT(refused, moxin_model_encode_image(model, image, NULL, NULL, &no_embedding, &error));
    EXPECT(refused, moxin_embedding_info_get(embedding, &embedding_info, &error));
    EXPECT(refused, moxin_embedding_copy(embedding, &number, 1, &error));
    EXPECT(refused, moxin_session_new(model, NULL, &no_session, &error));
    EXPECT(refused, moxin_session_fork(session, &no_session, &error));
    EXPECT(refused, moxin_session_add_text(session, MOXIN_ROLE_USER, "x", 1, &error));
    EXPECT(refused, moxin_session_add_image(session, image, NULL, &error));
    EXPECT(refused, moxin_session_add_embedding(session, embedding, &error));
    EXPECT(refused, moxin_session_set_params(session, NULL, &error));
    EXPECT(refused, moxin_session_prefill(session, NULL, &error));
    EXPECT(refused, moxin_session_rewind(session, 0, &error));
    EXPECT(refused, moxin_session_reset(session, &error));
    EXPECT(refused, moxin_session_stats(streaming, &stats, &error));
    EXPECT(refused, moxin_session_step(streaming, &event, &error));
    atomic_store(&destroyed, 0);
    EXPECT(refused, moxin_session_start(session, NULL, on_event, NULL, on_destroy, &error));
    EXPECT(refused, moxin_set_log(on_log, MOXIN_LOG_LEVEL_TRACE, NULL, on_destroy, &error));
    CHECK(atomic_load(&destroyed) == 2);
    EXPECT(refused, moxin_memory_stats_get(&memory, &error));
    EXPECT(refused, moxin_memory_set_limits(UINT64_MAX, UINT64_MAX, &error));
    EXPECT(refused, moxin_suspend(100000, &error));
    CHECK(moxin_set_cpu_threads(2) == refused);
    CHECK(!moxin_backend_available(MOXIN_BACKEND_CPU));
    CHECK(moxin_build_info()[0] == '{');
    CHECK(moxin_version() != NULL && moxin_abi_version() == MOXIN_ABI_VERSION);
    moxin_resume();
    moxin_memory_trim();
    moxin_session_cancel(streaming);
    moxin_cancel_trigger(cancel);
    moxin_cancel_free(moxin_cancel_new());

    /* The message says what to do. */
    CHECK(moxin_session_reset(session, &error) == refused);
    CHECK(strstr(moxin_error_message(error).data, "fork") != NULL);
    moxin_error_free(error);
}

/* The status of a successful child: not one that occurs by itself. */
enum { WELL = 7 };

static void end_child(void) { exit(failures > 0 ? 1 : WELL); }

/* Returns whether a child ends by itself, with this status. */
static int ends_with(int wanted, pid_t child) {
    int status = 0;
    for (int ms = 0; ms < CHILD_MS; ms++) {
        if (waitpid(child, &status, WNOHANG) == child) {
            return WIFEXITED(status) && WEXITSTATUS(status) == wanted;
        }
        sleep_ms(1);
    }
    fprintf(stderr, "%s: a child hangs\n", mode);
    kill(child, SIGKILL);
    waitpid(child, &status, 0);
    return 0;
}

static void fork_once(int frees) {
    fflush(NULL);
    pid_t child = fork();
    if (child == 0) {
        generation++;
        call_everything();
        printf("child\n"); /* written at its end */
        if (generation == 1) {
            fork_once(frees);
        }
        if (!frees) {
            moxin_session_free(streaming);
            streaming = NULL;
        }
        end_child();
    }
    CHECK(child > 0 && ends_with(WELL, child));
}

static void *work(void *unused) {
    moxin_error *error = NULL;
    while (!atomic_load(&stop)) {
        moxin_model *other = NULL;
        NEED(moxin_model_load(path, NULL, NULL, &other, &error));
        moxin_session *talk = begin(other);
        ask(talk, "Describe");
        EXPECT(MOXIN_STATUS_INVALID_STATE, moxin_session_prefill(talk, NULL, &error));
        moxin_session_free(talk);
        moxin_model_free(other);
        atomic_fetch_add(&answered, 1);
    }
    return unused;
}

/* The library is first used in the child, and then in the parent too. */
static int fork_first(const char *picture) {
    pid_t child = fork();
    moxin_model *loaded = load(path);
    moxin_session *talk = begin(loaded);
    moxin_image *shown = open_image(picture);
    moxin_error *error = NULL;
    NEED(moxin_session_add_image(talk, shown, NULL, &error));
    struct answer answer = ask(talk, "How many shapes are there?");
    CHECK(strcmp(answer.text, "Three.") == 0);
    moxin_image_free(shown);
    moxin_session_free(talk);
    moxin_model_free(loaded);
    if (child == 0) {
        end_child();
    }
    CHECK(child > 0 && ends_with(WELL, child));
    return failures > 0;
}

/* Forks in a callback, and the child returns from it: it ends, or continues with an error. */
static bool forks_in_progress(void *user_data, moxin_stage stage, float fraction) {
    (void)stage;
    (void)fraction;
    pid_t *child = user_data;
    if (*child == -1) {
        *child = fork();
        generation += *child == 0;
    }
    return true;
}

static bool forks_in_event(void *user_data, const moxin_event *event) {
    forks_in_progress(user_data, MOXIN_STAGE_LOAD, 0);
    CHECK(generation == 0 || event->kind != MOXIN_EVENT_KIND_FINISHED || event->error != NULL);
    return true;
}

static void forks_in_log(void *user_data, moxin_log_level level, moxin_str target,
                         moxin_str message) {
    (void)level;
    (void)target;
    (void)message;
    forks_in_progress(user_data, MOXIN_STAGE_LOAD, 0);
}

/* As above, on the threads of a stream and of the log. */
static int fork_in_callbacks(void) {
    moxin_error *error = NULL;
    static pid_t in_event = -1, in_log = -1;
    NEED(moxin_set_log(forks_in_log, MOXIN_LOG_LEVEL_DEBUG, &in_log, on_destroy, &error));
    moxin_model *loaded = load(path);
    moxin_session *talk = begin(loaded);
    NEED(moxin_session_add_text(talk, MOXIN_ROLE_USER, "Describe", MOXIN_STRLEN, &error));
    NEED(moxin_session_start(talk, NULL, forks_in_event, &in_event, on_destroy, &error));
    NEED(moxin_set_log(NULL, MOXIN_LOG_LEVEL_OFF, NULL, NULL, &error));
    for (int i = 0; i < CHILD_MS && atomic_load(&destroyed) < 2; i++) {
        sleep_ms(1);
    }
    CHECK(in_event > 0 && ends_with(0, in_event));
    CHECK(in_log > 0 && ends_with(0, in_log));
    moxin_session_free(talk);
    moxin_model_free(loaded);
    return failures > 0;
}

static int fork_in_progress(void) {
    moxin_error *error = NULL;
    moxin_op op;
    pid_t child = -1;
    moxin_model *loaded = NULL;
    memset(&op, 0, sizeof op);
    op.struct_size = sizeof op;
    op.progress = forks_in_progress;
    op.user_data = &child;
    moxin_status status = moxin_model_load(path, NULL, &op, &loaded, &error);
    CHECK(status == (child == 0 ? MOXIN_STATUS_INVALID_STATE : MOXIN_STATUS_OK));
    moxin_error_free(error);
    moxin_model_free(loaded);
    if (child == 0) {
        end_child();
    }
    CHECK(child > 0 && ends_with(WELL, child));
    return failures > 0;
}

int main(int argc, char **argv) {
    moxin_error *error = NULL;
    pthread_t worker;
    if (argc != 4) {
        return 2;
    }
    mode = argv[1];
    path = argv[2];
    if (is_mode("first")) {
        return fork_first(argv[3]);
    }
    if (is_mode("progress")) {
        return fork_in_progress();
    }
    if (is_mode("callbacks")) {
        return fork_in_callbacks();
    }
    atexit(free_everything);
    model = load(path);
    session = begin(model);
    streaming = begin(model);
    image = open_image(argv[3]);
    cancel = moxin_cancel_new();
    NEED(moxin_model_encode_image(model, image, NULL, NULL, &embedding, &error));
    CHECK(moxin_session_reset(NULL, &old_error) == MOXIN_STATUS_NULL_ARGUMENT);
    NEED(moxin_session_add_image(session, image, NULL, &error));
    struct answer before = ask(session, "How many shapes are there?");
    NEED(moxin_session_reset(session, &error));
    if (is_mode("streaming") || is_mode("suspended")) {
        NEED(moxin_session_add_text(streaming, MOXIN_ROLE_USER, "Describe", MOXIN_STRLEN, &error));
        NEED(moxin_session_start(streaming, NULL, on_event, NULL, NULL, &error));
        while (atomic_load(&events) == 0) {
            sleep_ms(1);
        }
    }
    if (is_mode("suspended")) {
        NEED(moxin_suspend(10000, &error));
    }
    if (is_mode("working")) {
        NEED(moxin_set_log(on_log, MOXIN_LOG_LEVEL_TRACE, NULL, NULL, &error));
        pthread_create(&worker, NULL, work, NULL);
    }
    for (int i = 0; i < FORKS; i++) {
        fork_once(i % 2);
        sleep_ms(i);
    }
    CHECK(system("exit 0") == 0); /* a child that calls exec can use the library */
    if (is_mode("suspended")) {
        moxin_resume();
    }
    NEED(moxin_session_add_image(session, image, NULL, &error));
    struct answer after = ask(session, "How many shapes are there?");
    CHECK(same_answer(&before, &after) && strcmp(after.text, "Three.") == 0);
    atomic_store(&stop, 1);
    if (is_mode("working")) {
        pthread_join(worker, NULL);
        CHECK(atomic_load(&answered) > 0);
    }
    return failures > 0;
}
