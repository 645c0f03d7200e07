/*
 * Starts conversations, generates answers and frees them, again and again. Prints after every
 * hundredth: cycles, resident bytes, bytes in use by MLX, live handles. Run by `cargo xtask soak`.
 * Linux only, because it reads /proc.
 *
 *   soak MODEL CYCLES
 */
#include "check.h"

#include <inttypes.h>
#include <pthread.h>
#include <unistd.h>

static long resident_bytes(void) {
    long pages = 0, resident = 0;
    FILE *file = fopen("/proc/self/statm", "r");
    if (file == NULL || fscanf(file, "%ld %ld", &pages, &resident) != 2) {
        perror("/proc/self/statm");
        exit(1);
    }
    fclose(file);
    return resident * sysconf(_SC_PAGESIZE);
}

struct end {
    pthread_mutex_t lock;
    pthread_cond_t changed;
    int destroyed;
};

static bool on_event(void *user_data, const moxin_event *event) {
    (void)user_data;
    CHECK(event->finish != MOXIN_FINISH_REASON_ERROR);
    return true;
}

static void on_destroy(void *user_data) {
    struct end *end = user_data;
    pthread_mutex_lock(&end->lock);
    end->destroyed = 1;
    pthread_cond_signal(&end->changed);
    pthread_mutex_unlock(&end->lock);
}

/* Every kind of answer in turn: to the end, cancelled, abandoned, streamed; each with one of 40
 * pictures, which are more than this program's cache can hold. */
static void cycle(const moxin_model *model, long number) {
    moxin_error *error = NULL;
    moxin_image *image = NULL;
    moxin_session *session = NULL;
    moxin_session_params params;
    moxin_event event = empty_event();
    const uint32_t pixel = 0xff000000u + (uint32_t)(number % 40) * 6151u;
    moxin_session_params_init(&params, sizeof params);
    params.max_tokens = 6;
    NEED(moxin_image_from_pixels(&pixel, 1, 1, 4, MOXIN_PIXEL_FORMAT_RGBA8, &image, &error));
    NEED(moxin_session_new(model, &params, &session, &error));
    NEED(moxin_session_add_image(session, image, NULL, &error));
    NEED(moxin_session_add_text(session, MOXIN_ROLE_USER, "How many shapes are there?",
                                MOXIN_STRLEN, &error));
    if (number % 4 == 3) {
        struct end end = { PTHREAD_MUTEX_INITIALIZER, PTHREAD_COND_INITIALIZER, 0 };
        NEED(moxin_session_start(session, NULL, on_event, &end, on_destroy, &error));
        pthread_mutex_lock(&end.lock);
        while (!end.destroyed) {
            pthread_cond_wait(&end.changed, &end.lock);
        }
        pthread_mutex_unlock(&end.lock);
    } else {
        for (int step = 0; event.kind != MOXIN_EVENT_KIND_FINISHED && (number % 4 != 2 || step < 4);
             step++) {
            if (number % 4 == 1 && step == 4) {
                moxin_session_cancel(session);
            }
            NEED(moxin_session_step(session, &event, &error));
        }
    }
    EXPECT(MOXIN_STATUS_NOT_FOUND, moxin_image_from_file("no/such.png", NULL, &image, &error));
    moxin_session_free(session);
    moxin_image_free(image);
}

int main(int argc, char **argv) {
    moxin_error *error = NULL;
    moxin_model *model = NULL;
    moxin_model_params params;
    moxin_memory_stats memory = { 0 };
    memory.struct_size = sizeof memory;
    if (argc != 3) {
        fprintf(stderr, "see the top of soak.c for the arguments\n");
        return 2;
    }
    moxin_model_params_init(&params, sizeof params);
    params.image_cache_bytes = 1 << 20;
    NEED(moxin_model_load(argv[1], &params, NULL, &model, &error));
    for (long number = 1; number <= atol(argv[2]); number++) {
        cycle(model, number);
        if (number % 100 == 0) {
            NEED(moxin_memory_stats_get(&memory, &error));
            printf("%ld %ld %" PRIu64 " %" PRIu64 "\n", number, resident_bytes(), memory.active,
                   memory.handles);
            fflush(stdout);
        }
    }
    moxin_model_free(model);
    NEED(moxin_memory_stats_get(&memory, &error));
    CHECK(memory.handles == 0);
    return failures > 0;
}
