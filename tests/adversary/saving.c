/* Overwrites a saved model for ever: moxin_model_save is to be killed at any moment.
 *
 * saving MODEL PLACE
 */
#include "check.h"

int main(int argc, char **argv)
{
    moxin_error *error = NULL;
    moxin_model *model;
    if (argc != 3) {
        return 2;
    }
    model = load(argv[1]);
    for (;;) {
        NEED(moxin_model_save(model, argv[2], true, NULL, &error));
        putchar('.');
        fflush(stdout);
    }
}
