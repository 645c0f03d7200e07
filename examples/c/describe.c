/*
 * Talks with a model about pictures and videos, and streams the answers.
 *
 *   describe [options] MODEL [IMAGE] (--image FILE | --video FILE | --frames FOLDER |
 *            --text TEXT | --system TEXT | --prompt TEXT | --assistant TEXT)...
 *
 *   --image FILE            adds a picture to the message
 *   --video FILE            adds a video to the message: an animated GIF, WebP or PNG
 *   --frames FOLDER         adds the video of the pictures in a folder, in the order of their names
 *   --fps N                 frames per second of the video before it (default 2)
 *   --text TEXT             adds a text to the message
 *   --prompt TEXT           adds the last text of the message, which is then answered
 *   --assistant TEXT        after --prompt: uses this answer instead of generating one
 *   --system TEXT           adds instructions, if the model supports them
 *   --max-tokens N          maximum number of tokens in an answer (default 256)
 *   --max-pixels N          maximum number of pixels per picture that reach the encoder
 *   --repetition-penalty P  makes tokens that already occurred less likely (default 1)
 *   --raw                   uses prompts unchanged, including control tokens
 *   --no-exif               ignores the orientation in a picture's metadata
 *   --json                  prints one JSON object with text, token ids and log-probabilities
 */
#define _POSIX_C_SOURCE 200809L /* scandir, which lists a folder by name */

#include <dirent.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "moxin_vlm.h"

enum { MAX_PARTS = 256 };

enum kind { IMAGE, VIDEO, FRAMES, TEXT, SYSTEM, PROMPT, ASSISTANT };

/* A part of the conversation, in the order given. */
struct part {
    enum kind kind;
    const char *text;
    double fps;
};

struct options {
    const char *model;
    struct part parts[MAX_PARTS];
    int part_count;
    uint32_t max_tokens;
    uint64_t max_pixels;
    uint64_t max_image_tokens;
    uint32_t no_tiles;
    float repetition_penalty;
    uint32_t ignore_orientation;
    int raw;
    int json;
};

/* One answer, for --json. */
struct answer {
    char *text;
    size_t text_len;
    int32_t *tokens;
    float *logprobs;
    size_t token_count;
    moxin_finish_reason finish;
};

static void usage(void) {
    fprintf(stderr, "usage: describe [--json] [--no-exif] [--raw] [--no-tiles] [--max-tokens N]\n"
                    "       [--max-pixels N] [--max-image-tokens N] [--repetition-penalty P]\n"
                    "       MODEL [IMAGE] (--image FILE | --video FILE [--fps N] | --frames FOLDER "
                    "[--fps N] |\n"
                    "       --text TEXT | --system TEXT | --prompt TEXT | --assistant TEXT)...\n");
    exit(2);
}

/* Prints why a call failed, frees the error and ends the program. */
static void die(const char *doing, moxin_error *error) {
    moxin_str message = moxin_error_message(error);
    fprintf(stderr, "describe: %s: %s (%s)\n", doing, message.data,
            moxin_status_name((uint32_t)moxin_error_status(error)));
    moxin_error_free(error);
    exit(1);
}

static void *grow(void *memory, size_t count, size_t size) {
    void *larger = realloc(memory, count * size);
    if (larger == NULL) {
        fprintf(stderr, "describe: out of memory\n");
        exit(1);
    }
    return larger;
}

static uint64_t parse_count(const char *option, const char *text) {
    char *end = NULL;
    unsigned long value = strtoul(text, &end, 10);
    if (end == text || *end != '\0' || value == 0 || value > 1000000000) {
        fprintf(stderr, "describe: %s needs a number from 1 to 1000000000, not %s\n", option, text);
        exit(2);
    }
    return value;
}

static double parse_number(const char *option, const char *text) {
    char *end = NULL;
    double value = strtod(text, &end);
    if (end == text || *end != '\0') {
        fprintf(stderr, "describe: %s needs a number, not %s\n", option, text);
        exit(2);
    }
    return value;
}

static void add_part(struct options *options, enum kind kind, const char *text) {
    if (options->part_count == MAX_PARTS) {
        fprintf(stderr, "describe: more than %d parts\n", MAX_PARTS);
        exit(2);
    }
    options->parts[options->part_count].kind = kind;
    options->parts[options->part_count].text = text;
    options->parts[options->part_count].fps = 2;
    options->part_count++;
}

static int is_part(const char *arg, enum kind *kind) {
    static const char *const names[] = { "--image",  "--video",  "--frames",   "--text",
                                         "--system", "--prompt", "--assistant" };
    for (int i = 0; i < 7; i++) {
        if (strcmp(arg, names[i]) == 0) {
            *kind = (enum kind)i;
            return 1;
        }
    }
    return 0;
}

static struct options parse(int argc, char **argv) {
    struct options options = { 0 };
    int asks = 0;
    enum kind kind = TEXT;
    options.max_tokens = 256;
    options.repetition_penalty = 1;
    for (int i = 1; i < argc; i++) {
        const char *arg = argv[i];
        const char *value = i + 1 < argc ? argv[i + 1] : NULL;
        if (strcmp(arg, "--json") == 0) {
            options.json = 1;
        } else if (strcmp(arg, "--raw") == 0) {
            options.raw = 1;
        } else if (strcmp(arg, "--no-exif") == 0) {
            options.ignore_orientation = 1;
        } else if (strcmp(arg, "--no-tiles") == 0) {
            options.no_tiles = 1;
        } else if (is_part(arg, &kind) && value != NULL) {
            add_part(&options, kind, value);
            asks |= kind == PROMPT;
            i++;
        } else if (strcmp(arg, "--max-tokens") == 0 && value != NULL) {
            options.max_tokens = (uint32_t)parse_count(arg, value);
            i++;
        } else if (strcmp(arg, "--max-pixels") == 0 && value != NULL) {
            options.max_pixels = parse_count(arg, value);
            i++;
        } else if (strcmp(arg, "--max-image-tokens") == 0 && value != NULL) {
            options.max_image_tokens = parse_count(arg, value);
            i++;
        } else if (strcmp(arg, "--repetition-penalty") == 0 && value != NULL) {
            options.repetition_penalty = (float)parse_number(arg, value);
            i++;
        } else if (strcmp(arg, "--fps") == 0 && value != NULL && options.part_count > 0) {
            options.parts[options.part_count - 1].fps = parse_number(arg, value);
            i++;
        } else if (strncmp(arg, "--", 2) == 0) {
            usage();
        } else if (options.model == NULL) {
            options.model = arg;
        } else {
            add_part(&options, IMAGE, arg);
        }
    }
    if (options.model == NULL || !asks) {
        usage();
    }
    return options;
}

/* The loading bar, on the error output so that the answer can be piped. user_data is the percentage
 * shown last. */
static bool show_progress(void *user_data, moxin_stage stage, float fraction) {
    int *shown = user_data;
    int percent = (int)(fraction * 100);
    if (stage == MOXIN_STAGE_LOAD && percent != *shown) {
        fprintf(stderr, "\rloading %3d %%%s", percent, percent == 100 ? "\n" : "");
        *shown = percent;
    }
    return true;
}

static moxin_model *load_model(const struct options *options) {
    moxin_op op = { sizeof op, NULL, NULL, NULL, 0 };
    int shown = -1;
    moxin_model *model = NULL;
    moxin_error *error = NULL;
    if (!options->json) {
        op.progress = show_progress;
        op.user_data = &shown;
    }
    if (moxin_model_load(options->model, NULL, &op, &model, &error) != MOXIN_STATUS_OK) {
        die("loading the model", error);
    }
    return model;
}

static moxin_pixel_budget budget_of(const struct options *options) {
    moxin_pixel_budget budget = { 0 };
    budget.struct_size = sizeof budget;
    budget.max_pixels = options->max_pixels;
    budget.max_tokens = options->max_image_tokens;
    budget.no_tiles = options->no_tiles;
    return budget;
}

static moxin_image *read_image(const struct options *options, const char *path) {
    moxin_image_params params;
    moxin_image *image = NULL;
    moxin_error *error = NULL;
    moxin_image_params_init(&params, sizeof params);
    params.ignore_orientation = options->ignore_orientation;
    if (moxin_image_from_file(path, &params, &image, &error) != MOXIN_STATUS_OK) {
        die("reading the picture", error);
    }
    return image;
}

static void add_image(moxin_session *session, const struct options *options, const char *path) {
    moxin_pixel_budget budget = budget_of(options);
    moxin_image *image = read_image(options, path);
    moxin_error *error = NULL;
    if (moxin_session_add_image(session, image, &budget, &error) != MOXIN_STATUS_OK) {
        die("adding the picture", error);
    }
    moxin_image_free(image);
}

/* Adds a video, which is freed. */
static void add_video(moxin_session *session, const struct options *options, moxin_video *video) {
    moxin_pixel_budget budget = budget_of(options);
    moxin_error *error = NULL;
    if (moxin_session_add_video(session, video, &budget, &error) != MOXIN_STATUS_OK) {
        die("adding the video", error);
    }
    moxin_video_free(video);
}

static moxin_video *read_video(const struct options *options, const struct part *part) {
    moxin_video_params params;
    moxin_video *video = NULL;
    moxin_error *error = NULL;
    moxin_video_params_init(&params, sizeof params);
    params.ignore_orientation = options->ignore_orientation;
    params.fps = part->fps;
    if (moxin_video_from_file(part->text, &params, &video, &error) != MOXIN_STATUS_OK) {
        die("reading the video", error);
    }
    return video;
}

static int is_visible(const struct dirent *entry) { return entry->d_name[0] != '.'; }

/* Reads the pictures of a folder as a video. */
static moxin_video *read_frames(const struct options *options, const struct part *part) {
    struct dirent **entries = NULL;
    int count = scandir(part->text, &entries, is_visible, alphasort);
    moxin_image **frames = NULL;
    moxin_video *video = NULL;
    moxin_error *error = NULL;
    if (count < 0) {
        perror(part->text);
        exit(1);
    }
    frames = grow(NULL, (size_t)count + 1, sizeof *frames);
    for (int i = 0; i < count; i++) {
        size_t size = strlen(part->text) + strlen(entries[i]->d_name) + 2;
        char *path = grow(NULL, size, 1);
        snprintf(path, size, "%s/%s", part->text, entries[i]->d_name);
        frames[i] = read_image(options, path);
        free(path);
        free(entries[i]);
    }
    if (moxin_video_from_frames((const moxin_image *const *)frames, (size_t)count, NULL, part->fps,
                                &video, &error) != MOXIN_STATUS_OK) {
        die("making the video", error);
    }
    for (int i = 0; i < count; i++) {
        moxin_image_free(frames[i]);
    }
    free(frames);
    free(entries);
    return video;
}

static void add_text(moxin_session *session, moxin_role role, const char *text) {
    moxin_error *error = NULL;
    if (moxin_session_add_text(session, role, text, MOXIN_STRLEN, &error) != MOXIN_STATUS_OK) {
        die("adding a text", error);
    }
}

/* Adds a text of the user, unchanged if prompts are raw. */
static void add_prompt(moxin_session *session, const struct options *options, const char *text) {
    moxin_error *error = NULL;
    if (!options->raw) {
        add_text(session, MOXIN_ROLE_USER, text);
    } else if (moxin_session_add_prompt(session, text, MOXIN_STRLEN, &error) != MOXIN_STATUS_OK) {
        die("adding the prompt", error);
    }
}

static void keep_text(struct answer *answer, moxin_str text) {
    answer->text = grow(answer->text, answer->text_len + text.len + 1, 1);
    memcpy(answer->text + answer->text_len, text.data, text.len + 1);
    answer->text_len += text.len;
}

static void keep_token(struct answer *answer, const moxin_event *event) {
    size_t count = answer->token_count + 1;
    answer->tokens = grow(answer->tokens, count, sizeof *answer->tokens);
    answer->logprobs = grow(answer->logprobs, count, sizeof *answer->logprobs);
    answer->tokens[count - 1] = event->token_id;
    answer->logprobs[count - 1] = event->logprob;
    answer->token_count = count;
}

/* Generates the answer to the last message, and streams it unless it is printed as JSON. */
static struct answer ask(moxin_session *session, int stream) {
    struct answer answer = { 0 };
    moxin_error *error = NULL;
    moxin_event event = { 0 };
    event.struct_size = sizeof event;
    while (event.kind != MOXIN_EVENT_KIND_FINISHED) {
        if (moxin_session_step(session, &event, &error) != MOXIN_STATUS_OK) {
            die("answering", error);
        }
        if (event.kind == MOXIN_EVENT_KIND_TEXT) {
            keep_token(&answer, &event);
        }
        keep_text(&answer, event.text);
        if (stream) {
            fputs(event.text.data, stdout);
            fflush(stdout);
        }
    }
    answer.finish = event.finish;
    return answer;
}

static void print_json_string(const char *text) {
    putchar('"');
    for (const unsigned char *c = (const unsigned char *)text; *c != '\0'; c++) {
        if (*c == '"' || *c == '\\') {
            printf("\\%c", *c);
        } else if (*c < 0x20) {
            printf("\\u%04x", *c);
        } else {
            putchar(*c);
        }
    }
    putchar('"');
}

static const char *finish_name(moxin_finish_reason finish) {
    switch (finish) {
    case MOXIN_FINISH_REASON_END_OF_TURN:
        return "EndOfTurn";
    case MOXIN_FINISH_REASON_STOP_SEQUENCE:
        return "StopSequence";
    case MOXIN_FINISH_REASON_MAX_TOKENS:
        return "MaxTokens";
    case MOXIN_FINISH_REASON_CONTEXT_FULL:
        return "ContextFull";
    case MOXIN_FINISH_REASON_CANCELLED:
        return "Cancelled";
    case MOXIN_FINISH_REASON_ERROR:
        return "Error";
    case MOXIN_FINISH_REASON_NONE:
        break;
    }
    return "None";
}

static void print_json_answer(const struct answer *answer) {
    fputs("{\"text\":", stdout);
    print_json_string(answer->text);
    fputs(",\"tokens\":[", stdout);
    for (size_t i = 0; i < answer->token_count; i++) {
        printf("%s%" PRId32, i > 0 ? "," : "", answer->tokens[i]);
    }
    fputs("],\"logprobs\":[", stdout);
    for (size_t i = 0; i < answer->token_count; i++) {
        printf("%s%.9g", i > 0 ? "," : "", (double)answer->logprobs[i]);
    }
    printf("],\"finish\":\"%s\"}", finish_name(answer->finish));
}

int main(int argc, char **argv) {
    struct options options = parse(argc, argv);
    moxin_session_params params;
    moxin_session *session = NULL;
    moxin_error *error = NULL;
    if (moxin_abi_version() != MOXIN_ABI_VERSION) {
        fprintf(stderr, "describe: built for ABI %u, the library has %u\n", MOXIN_ABI_VERSION,
                moxin_abi_version());
        return 1;
    }
    moxin_model *model = load_model(&options);
    moxin_session_params_init(&params, sizeof params);
    params.max_tokens = options.max_tokens;
    params.repetition_penalty = options.repetition_penalty;
    if (moxin_session_new(model, &params, &session, &error) != MOXIN_STATUS_OK) {
        die("starting a session", error);
    }
    moxin_model_free(model); /* the session keeps what it needs */

    if (options.json) {
        fputs("{\"answers\":[", stdout);
    }
    int answers = 0;
    for (int i = 0; i < options.part_count; i++) {
        const struct part *part = &options.parts[i];
        switch (part->kind) {
        case IMAGE:
            add_image(session, &options, part->text);
            continue;
        case VIDEO:
            add_video(session, &options, read_video(&options, part));
            continue;
        case FRAMES:
            add_video(session, &options, read_frames(&options, part));
            continue;
        case SYSTEM:
            add_text(session, MOXIN_ROLE_SYSTEM, part->text);
            continue;
        case ASSISTANT:
            add_text(session, MOXIN_ROLE_ASSISTANT, part->text);
            continue;
        case TEXT:
            add_prompt(session, &options, part->text);
            continue;
        case PROMPT:
            add_prompt(session, &options, part->text);
            break;
        }
        if (i + 1 < options.part_count && options.parts[i + 1].kind == ASSISTANT) {
            continue; /* it already has an answer */
        }
        if (!options.json) {
            printf("%s> %s\n", answers > 0 ? "\n" : "", part->text);
        }
        struct answer answer = ask(session, !options.json);
        if (options.json) {
            fputs(answers > 0 ? "," : "", stdout);
            print_json_answer(&answer);
        } else {
            putchar('\n');
        }
        answers++;
        free(answer.text);
        free(answer.tokens);
        free(answer.logprobs);
    }
    if (options.json) {
        fputs("]}\n", stdout);
    }
    moxin_session_free(session);
    return 0;
}
