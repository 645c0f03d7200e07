/*
 * Measures the cost of moxin_session_step beyond its work: its time on the caller's clock, and the
 * time that the library measured inside. Run by `cargo xtask call-cost`. Prints for each answer:
 * steps, nanoseconds outside, nanoseconds inside; then the nanoseconds of a call that needs no turn
 * on the library's thread.
 *
 *   call_cost MODEL IMAGE ANSWERS
 */
#include "check.h"

static double now_ns(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (double)time.tv_sec * 1e9 + (double)time.tv_nsec;
}

int main(int argc, char **argv) {
    moxin_error *error = NULL;
    if (argc != 4) {
        fprintf(stderr, "see the top of call_cost.c for the arguments\n");
        return 2;
    }
    moxin_model *model = load(argv[1]);
    moxin_image *image = open_image(argv[2]);
    for (long i = atol(argv[3]); i > 0; i--) {
        moxin_session *session = begin(model);
        moxin_event event = empty_event();
        moxin_stats stats = { 0 };
        double outside = 0;
        int texts = 0;
        stats.struct_size = sizeof stats;
        NEED(moxin_session_add_image(session, image, NULL, &error));
        NEED(moxin_session_add_text(session, MOXIN_ROLE_USER, "Describe the picture.", MOXIN_STRLEN,
                                    &error));
        while (event.kind != MOXIN_EVENT_KIND_FINISHED) {
            const double before = now_ns();
            NEED(moxin_session_step(session, &event, &error));
            /* The library counts the steps after the first token, including the last one, which
             * ends the answer. */
            outside +=
                event.kind == MOXIN_EVENT_KIND_PREFILL || texts++ == 0 ? 0 : now_ns() - before;
        }
        NEED(moxin_session_stats(session, &stats, &error));
        printf("%d %.0f %.0f\n", texts - 1, outside, stats.decode_ms * 1e6);
        moxin_session_free(session);
    }
    moxin_session *session = begin(model);
    moxin_stats stats = { 0 };
    stats.struct_size = sizeof stats;
    const double before = now_ns();
    for (int i = 0; i < 100000; i++) {
        NEED(moxin_session_stats(session, &stats, &error));
    }
    printf("%.1f\n", (now_ns() - before) / 100000);
    moxin_session_free(session);
    moxin_image_free(image);
    moxin_model_free(model);
    return failures > 0;
}
