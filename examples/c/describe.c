/*
 * Asks a model about a picture and streams the answer.
 *
 *   describe [options] MODEL IMAGE --prompt TEXT [--prompt TEXT ...]
 *
 *   --prompt TEXT      a question; several make a conversation
 *   --max-tokens N     tokens of one answer at most (default 256)
 *   --no-exif          leave the picture as stored instead of turning it upright
 *   --json             print one JSON object with text, token ids and log-probabilities
 */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "moxin_vlm.h"

enum { MAX_PROMPTS = 64 };

struct options {
    const char *model;
    const char *image;
    const char *prompts[MAX_PROMPTS];
    int prompt_count;
    uint32_t max_tokens;
    uint32_t ignore_orientation;
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

static void usage(void)
{
    fprintf(stderr, "usage: describe [--json] [--no-exif] [--max-tokens N] MODEL IMAGE --prompt TEXT [--prompt TEXT ...]\n");
    exit(2);
}

/* Prints why a call failed, frees the error and ends the program. */
static void die(const char *doing, moxin_error *error)
{
    moxin_str message = moxin_error_message(error);
    fprintf(stderr, "describe: %s: %s (%s)\n", doing, message.data, moxin_status_name((uint32_t)moxin_error_status(error)));
    moxin_error_free(error);
    exit(1);
}

static void *grow(void *memory, size_t count, size_t size)
{
    void *larger = realloc(memory, count * size);
    if (larger == NULL) {
        fprintf(stderr, "describe: out of memory\n");
        exit(1);
    }
    return larger;
}

static uint32_t parse_count(const char *text)
{
    char *end = NULL;
    unsigned long value = strtoul(text, &end, 10);
    if (end == text || *end != '\0' || value == 0 || value > 1000000) {
        fprintf(stderr, "describe: --max-tokens takes a number from 1 to 1000000, not %s\n", text);
        exit(2);
    }
    return (uint32_t)value;
}

static struct options parse(int argc, char **argv)
{
    struct options options = {0};
    options.max_tokens = 256;
    for (int i = 1; i < argc; i++) {
        const char *arg = argv[i];
        const char *value = i + 1 < argc ? argv[i + 1] : NULL;
        if (strcmp(arg, "--json") == 0) {
            options.json = 1;
        } else if (strcmp(arg, "--no-exif") == 0) {
            options.ignore_orientation = 1;
        } else if (strcmp(arg, "--prompt") == 0 && value != NULL && options.prompt_count < MAX_PROMPTS) {
            options.prompts[options.prompt_count++] = value;
            i++;
        } else if (strcmp(arg, "--max-tokens") == 0 && value != NULL) {
            options.max_tokens = parse_count(value);
            i++;
        } else if (strncmp(arg, "--", 2) == 0) {
            usage();
        } else if (options.model == NULL) {
            options.model = arg;
        } else if (options.image == NULL) {
            options.image = arg;
        } else {
            usage();
        }
    }
    if (options.image == NULL || options.prompt_count == 0) {
        usage();
    }
    return options;
}

/* The loading bar, on the error output so that the answer can be piped. user_data: the percentage shown last. */
static bool show_progress(void *user_data, moxin_stage stage, float fraction)
{
    int *shown = user_data;
    int percent = (int)(fraction * 100);
    if (stage == MOXIN_STAGE_LOAD && percent != *shown) {
        fprintf(stderr, "\rloading %3d %%%s", percent, percent == 100 ? "\n" : "");
        *shown = percent;
    }
    return true;
}

static moxin_model *load_model(const struct options *options)
{
    moxin_op op = {sizeof op, NULL, NULL, NULL, 0};
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

static moxin_image *load_image(const struct options *options)
{
    moxin_image_params params;
    moxin_image *image = NULL;
    moxin_error *error = NULL;
    moxin_image_params_init(&params, sizeof params);
    params.ignore_orientation = options->ignore_orientation;
    if (moxin_image_from_file(options->image, &params, &image, &error) != MOXIN_STATUS_OK) {
        die("reading the picture", error);
    }
    return image;
}

static void keep_text(struct answer *answer, moxin_str text)
{
    answer->text = grow(answer->text, answer->text_len + text.len + 1, 1);
    memcpy(answer->text + answer->text_len, text.data, text.len + 1);
    answer->text_len += text.len;
}

static void keep_token(struct answer *answer, const moxin_event *event)
{
    size_t count = answer->token_count + 1;
    answer->tokens = grow(answer->tokens, count, sizeof *answer->tokens);
    answer->logprobs = grow(answer->logprobs, count, sizeof *answer->logprobs);
    answer->tokens[count - 1] = event->token_id;
    answer->logprobs[count - 1] = event->logprob;
    answer->token_count = count;
}

/* Asks one question; streams the answer unless it is to be printed as JSON. */
static struct answer ask(moxin_session *session, const char *prompt, int stream)
{
    struct answer answer = {0};
    moxin_error *error = NULL;
    moxin_event event = {0};
    event.struct_size = sizeof event;
    if (moxin_session_add_text(session, MOXIN_ROLE_USER, prompt, MOXIN_STRLEN, &error) != MOXIN_STATUS_OK) {
        die("adding the question", error);
    }
    while (event.kind != MOXIN_EVENT_KIND_FINISHED) {
        if (moxin_generate_step(session, &event, &error) != MOXIN_STATUS_OK) {
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

static void print_json_string(const char *text)
{
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

static const char *finish_name(moxin_finish_reason finish)
{
    switch (finish) {
    case MOXIN_FINISH_REASON_END_OF_TURN: return "EndOfTurn";
    case MOXIN_FINISH_REASON_STOP_SEQUENCE: return "StopSequence";
    case MOXIN_FINISH_REASON_MAX_TOKENS: return "MaxTokens";
    case MOXIN_FINISH_REASON_CONTEXT_FULL: return "ContextFull";
    case MOXIN_FINISH_REASON_CANCELLED: return "Cancelled";
    case MOXIN_FINISH_REASON_ERROR: return "Error";
    case MOXIN_FINISH_REASON_NONE: break;
    }
    return "None";
}

static void print_json_answer(const struct answer *answer)
{
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

int main(int argc, char **argv)
{
    struct options options = parse(argc, argv);
    moxin_session_params params;
    moxin_session *session = NULL;
    moxin_error *error = NULL;
    if (moxin_abi_version() != MOXIN_ABI_VERSION) {
        fprintf(stderr, "describe: built for ABI %u, the library has %u\n", MOXIN_ABI_VERSION, moxin_abi_version());
        return 1;
    }
    moxin_image *image = load_image(&options);
    moxin_model *model = load_model(&options);
    moxin_session_params_init(&params, sizeof params);
    params.max_tokens = options.max_tokens;
    if (moxin_session_new(model, &params, &session, &error) != MOXIN_STATUS_OK) {
        die("beginning a session", error);
    }
    if (moxin_session_add_image(session, image, &error) != MOXIN_STATUS_OK) {
        die("adding the picture", error);
    }
    moxin_image_free(image);
    moxin_model_free(model); /* the session keeps what it needs */

    if (options.json) {
        fputs("{\"answers\":[", stdout);
    }
    for (int i = 0; i < options.prompt_count; i++) {
        if (!options.json) {
            printf("%s> %s\n", i > 0 ? "\n" : "", options.prompts[i]);
        }
        struct answer answer = ask(session, options.prompts[i], !options.json);
        if (options.json) {
            fputs(i > 0 ? "," : "", stdout);
            print_json_answer(&answer);
        } else {
            putchar('\n');
        }
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
