/*
 * Deliberate faults that the sanitizers and Valgrind must detect. Run by tests/c.rs.
 *
 *   faulty nothing    none
 *   faulty leak       a picture that is never freed
 *   faulty past-end   fewer pixels than the call says
 *   faulty freed      a picture used after it was freed
 *   faulty overflow   undefined arithmetic
 */
#include <limits.h>
#include <stdlib.h>
#include <string.h>

#include "moxin_vlm.h"

static moxin_image *picture(uint32_t width) {
    moxin_image *image = NULL;
    unsigned char *pixels = calloc(width, 3);
    if (pixels != NULL) {
        moxin_image_from_pixels(pixels, width, 1, 3 * (size_t)width, MOXIN_PIXEL_FORMAT_RGB8,
                                &image, NULL);
    }
    free(pixels);
    return image;
}

/* AddressSanitizer only checks C, not the library's own accesses. So C reads beyond the end too. */
static int past_end(void) {
    moxin_image *image = NULL;
    unsigned char *pixels = calloc(5, 1);
    if (pixels == NULL) {
        return 1;
    }
    moxin_image_from_pixels(pixels, 2, 1, 6, MOXIN_PIXEL_FORMAT_RGB8, &image, NULL);
    moxin_image_free(image);
    const int last = ((volatile unsigned char *)pixels)[5];
    free(pixels);
    return last == 99; /* used, so that the read is not removed */
}

static int freed(void) {
    moxin_image *image = picture(2);
    moxin_image_free(image);
    return *(volatile unsigned char *)image == 99;
}

static int overflow(int number) {
    volatile int sum = INT_MAX - 1 + number;
    return sum == 0;
}

int main(int argc, char **argv) {
    const char *fault = argc > 1 ? argv[1] : "";
    if (strcmp(fault, "leak") == 0) {
        return picture(1000) == NULL;
    }
    if (strcmp(fault, "past-end") == 0) {
        return past_end();
    }
    if (strcmp(fault, "freed") == 0) {
        return freed();
    }
    if (strcmp(fault, "overflow") == 0) {
        return overflow(argc);
    }
    moxin_image_free(picture(1000));
    return strcmp(fault, "nothing") == 0 ? 0 : 2;
}
