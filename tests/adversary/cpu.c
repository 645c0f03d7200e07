/*
 * Asks for threads: `cpu MODE MODEL IMAGE`. Run by process.rs, which counts them.
 */
#include "check.h"

static void on_log(void *user_data, moxin_log_level level, moxin_str target, moxin_str message) {
    (void)target;
    if (level == MOXIN_LOG_LEVEL_WARN && strstr(message.data, "MOXIN_CPU_THREADS") != NULL) {
        *(int *)user_data = 1;
    }
}

static int destroyed;

static void on_destroy(void *user_data) {
    (void)user_data;
    destroyed = 1;
}

int main(int argc, char **argv) {
    static int warned;
    moxin_error *error = NULL;
    if (argc != 4) {
        return 2;
    }
    NEED(moxin_set_log(on_log, MOXIN_LOG_LEVEL_WARN, &warned, on_destroy, &error));
    if (strcmp(argv[1], "function") == 0) {
        const uint32_t numbers[] = { UINT32_MAX, 100000, 1 << 16 };
        for (size_t i = 0; i < sizeof numbers / sizeof numbers[0]; i++) {
            CHECK(moxin_set_cpu_threads(numbers[i]) == MOXIN_STATUS_INVALID_ARGUMENT);
        }
        CHECK(moxin_set_cpu_threads(64) == MOXIN_STATUS_OK);
        CHECK(moxin_set_cpu_threads(0) == MOXIN_STATUS_OK);
    }
    moxin_model *model = load(argv[2]);
    moxin_session *session = begin(model);
    moxin_image *image = open_image(argv[3]);
    NEED(moxin_session_add_image(session, image, NULL, &error));
    struct answer answer = ask(session, "How many shapes are there?");
    CHECK(strcmp(answer.text, "Three.") == 0);
    moxin_image_free(image);
    moxin_session_free(session);
    moxin_model_free(model);
    NEED(moxin_set_log(NULL, MOXIN_LOG_LEVEL_OFF, NULL, NULL, &error));
    for (int i = 0; i < 5000 && !*(volatile int *)&destroyed; i++) {
        sleep_ms(1);
    }
    CHECK(warned == (strcmp(argv[1], "variable") == 0));
    return failures > 0;
}
