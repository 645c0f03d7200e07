/*
 * Overwrites a saved model: forever, to be killed at any moment; or once, with a fork in the
 * progress callback.
 *
 *   saving kill|fork MODEL PLACE
 */
#include "check.h"

#include <sys/wait.h>
#include <unistd.h>

static int child; /* the number of forks above this process */
static int forks;

/* Forks once; the child runs first. */
static bool fork_once(void *user, moxin_stage stage, float fraction) {
    (void)user, (void)stage, (void)fraction;
    if (forks++ == 0) {
        pid_t pid = fork();
        int status = 1;
        if (pid == 0) {
            child = 1;
            return true;
        }
        CHECK(waitpid(pid, &status, 0) == pid && status == 0);
    }
    return true;
}

int main(int argc, char **argv) {
    moxin_error *error = NULL;
    moxin_model *model;
    moxin_op op;
    if (argc != 4) {
        return 2;
    }
    model = load(argv[2]);
    while (strcmp(argv[1], "kill") == 0) {
        NEED(moxin_model_save(model, argv[3], true, NULL, &error));
        putchar('.');
        fflush(stdout);
    }
    memset(&op, 0, sizeof op);
    op.struct_size = sizeof op;
    op.progress = fork_once;
    while (forks == 0) {
        moxin_status status = moxin_model_save(model, argv[3], true, &op, &error);
        if (child) {
            CHECK(status == MOXIN_STATUS_INVALID_STATE);
            _exit(failures);
        }
        EXPECT(MOXIN_STATUS_OK, status);
    }
    moxin_model_free(load(argv[3]));
    moxin_model_free(model);
    return failures;
}
