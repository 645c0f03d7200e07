// Tests what moxin_vlm.hpp adds to the C header: `wrapper MODEL IMAGE QWEN2-VL`.
#include <atomic>
#include <cstdlib>
#include <fstream>
#include <iostream>
#include <iterator>
#include <memory>
#include <string>
#include <thread>
#include <type_traits>
#include <vector>

#include "moxin_vlm.hpp"

#define CHECK(condition)                                                                           \
    do {                                                                                           \
        if (!(condition)) {                                                                        \
            std::cerr << __FILE__ << ':' << __LINE__ << ": not so: " #condition "\n";              \
            std::exit(1);                                                                          \
        }                                                                                          \
    } while (false)

namespace {

const char *const QUESTION = "What is written?";

// An exception type that no library throws.
struct Thrown {
    int number;
};

template <class T>
constexpr bool moves_only =
    std::is_nothrow_move_constructible_v<T> && std::is_nothrow_move_assignable_v<T> &&
    !std::is_copy_constructible_v<T>;

static_assert(moves_only<moxin::Model> && moves_only<moxin::Image> && moves_only<moxin::Embedding>);
static_assert(moves_only<moxin::Session> && moves_only<moxin::Cancel>);
static_assert(std::is_nothrow_copy_constructible_v<moxin::Error>);

// Returns the status of the Error that a call throws, or MOXIN_STATUS_OK if it throws none.
template <class Call>
moxin_status status_of(Call call) {
    try {
        call();
    } catch (const moxin::Error &error) {
        CHECK(std::string(error.what()).size() > 3);
        return error.status();
    }
    return MOXIN_STATUS_OK;
}

// Returns the number that a call throws, or 0 if it throws none.
template <class Call>
int thrown_by(Call call) {
    try {
        call();
    } catch (const Thrown &thrown) {
        return thrown.number;
    }
    return 0;
}

std::string answer(moxin::Session &session, const std::string &question = QUESTION) {
    session.add_text(MOXIN_ROLE_USER, question);
    std::string text;
    for (const moxin::Event &event : session.generate()) {
        text += event.text;
    }
    return text;
}

moxin::Session about(const moxin::Model &model, const moxin::Image &image,
                     const moxin::SessionOptions &options = {}) {
    moxin::Session session(model, options);
    session.add_image(image);
    return session;
}

void errors(const std::string &folder) {
    try {
        moxin::Model model(folder + "/missing");
        CHECK(false);
    } catch (const std::runtime_error &error) {
        CHECK(std::string(error.what()).find("missing") != std::string::npos);
    }
    CHECK(status_of([&] { moxin::Model(folder + "/missing"); }) == MOXIN_STATUS_NOT_FOUND);
    CHECK(status_of([&] { moxin::Image::from_file(folder + "/config.json"); }) ==
          MOXIN_STATUS_UNSUPPORTED_IMAGE);
    moxin::Error error(MOXIN_STATUS_IO, "outer", { "inner", "innermost" });
    CHECK(error.causes().size() == 2 && error.causes()[1] == "innermost" &&
          moxin::Error(error).causes() == error.causes());
}

void loading(const std::string &folder) {
    moxin::Op op;
    op.progress = [](moxin_stage stage, float fraction) -> bool {
        CHECK(stage == MOXIN_STAGE_LOAD && fraction >= 0 && fraction <= 1);
        throw Thrown{ 1 };
    };
    CHECK(thrown_by([&] { moxin::Model(folder, {}, op); }) == 1);
    op.progress = [](moxin_stage, float) { return false; };
    CHECK(status_of([&] { moxin::Model(folder, {}, op); }) == MOXIN_STATUS_CANCELLED);
    op.progress = [](moxin_stage, float fraction) {
        return fraction < 1 ? true : throw Thrown{ 2 };
    };
    CHECK(thrown_by([&] { moxin::Model(folder, {}, op); }) == 2);
    moxin::Cancel cancel;
    cancel.trigger();
    moxin::Op cancelled;
    cancelled.cancel = &cancel;
    CHECK(status_of([&] { moxin::Model(folder, {}, cancelled); }) == MOXIN_STATUS_CANCELLED);
    moxin::ModelOptions options;
    options.memory_limit = 1000;
    CHECK(status_of([&] { moxin::Model(folder, options); }) == MOXIN_STATUS_OUT_OF_MEMORY);
}

void images(const moxin::Model &model, const std::string &path, const std::string &expected) {
    std::ifstream file(path, std::ios::binary);
    std::vector<char> bytes{ std::istreambuf_iterator<char>(file), {} };
    moxin::Image image = moxin::Image::from_bytes(bytes.data(), bytes.size());
    CHECK(image.size().width == 448 && image.size().height == 448);
    moxin::Image moved = std::move(image);
    moxin::Session session = about(model, moved);
    CHECK(answer(session) == expected);

    std::vector<unsigned char> pixels(2 * 16 * 3, 7);
    moxin::Image small =
        moxin::Image::from_pixels(pixels.data(), { 16, 2 }, 16 * 3, MOXIN_PIXEL_FORMAT_RGB8);
    CHECK(small.size().width == 16 && small.size().height == 2);

    moxin::SessionOptions few;
    few.image_budget = moxin::PixelBudget();
    few.image_budget->max_tokens = 1;
    moxin::Session narrow(model, few);
    CHECK(status_of([&] { narrow.add_image(small); }) == MOXIN_STATUS_INVALID_ARGUMENT);
    narrow.add_image(small, {}); // a budget of its own
    moxin::ImageOptions options;
    CHECK(options.max_pixels > 1000);
    options.max_pixels = 10;
    CHECK(status_of([&] { moxin::Image::from_file(path, options); }) ==
          MOXIN_STATUS_UNSUPPORTED_IMAGE);
}

void embeddings(const moxin::Model &model, const moxin::Image &image, const std::string &expected) {
    moxin::Embedding embedding = model.encode(image);
    moxin_embedding_info info = embedding.info();
    CHECK(info.token_count == model.info().tokens_per_image &&
          info.model_fingerprint == model.info().fingerprint);
    CHECK(embedding.values().size() == std::size_t{ info.token_count } * info.hidden_size);
    moxin::Session session(model);
    session.add_embedding(embedding);
    CHECK(answer(session) == expected);
    moxin::Op op;
    op.progress = [](moxin_stage, float) -> bool { throw Thrown{ 3 }; };
    moxin::Image other = moxin::Image::from_pixels(std::vector<unsigned char>(300, 1).data(),
                                                   { 10, 10 }, 30, MOXIN_PIXEL_FORMAT_RGB8);
    CHECK(thrown_by([&] { model.encode(other, op); }) == 3);
}

/// The model reads no videos.
void videos(const moxin::Model &model, const std::string &path) {
    std::vector<moxin::Image> frames;
    for (int i = 0; i < 3; ++i) {
        frames.push_back(moxin::Image::from_file(path));
    }
    moxin::Video video = moxin::Video::from_frames(frames, 4.0);
    moxin_video_info info = video.info();
    CHECK(info.frame_count == 3 && info.fps == 4.0 && info.width == frames[0].size().width);
    CHECK(moxin::Video::from_frames(frames, { 0.0, 1.0, 4.0 }).info().fps == 0.5);
    CHECK(status_of([&] { moxin::Video::from_frames(frames, { 0.0 }); }) ==
          MOXIN_STATUS_INVALID_ARGUMENT);
    CHECK(status_of([&] { moxin::Video::from_frames({}, 1.0); }) == MOXIN_STATUS_INVALID_ARGUMENT);
    CHECK(status_of([&] { moxin::Video::from_file(path); }) == MOXIN_STATUS_UNSUPPORTED_IMAGE);
    moxin::Session session(model);
    CHECK(status_of([&] { session.add_video(video); }) == MOXIN_STATUS_INVALID_ARGUMENT);
    CHECK(status_of([&] { session.add_video(video, moxin::PixelBudget()); }) ==
          MOXIN_STATUS_INVALID_ARGUMENT);
    CHECK(status_of([&] { model.encode(video); }) == MOXIN_STATUS_INVALID_ARGUMENT);
}

void steps(const moxin::Model &model, const moxin::Image &image, const std::string &expected) {
    moxin::SessionOptions options;
    CHECK(options.max_tokens == 512 && options.top_p == 1.0f);
    options.logprobs = 3;
    moxin::Session session = about(model, image, options);
    session.add_text(MOXIN_ROLE_USER, QUESTION);
    std::string text;
    for (const moxin::Event &event : session.generate()) {
        if (event.kind == MOXIN_EVENT_KIND_TEXT) {
            text += event.text;
            CHECK(event.top.size() == 3 && event.top[0].token_id == event.token_id &&
                  event.logprob <= 0);
            break; // the answer continues below
        }
        CHECK(event.kind == MOXIN_EVENT_KIND_PREFILL && event.top.empty());
    }
    moxin::Event last;
    while (last.kind != MOXIN_EVENT_KIND_FINISHED) {
        last = session.step();
        text += last.text;
    }
    CHECK(text == expected && last.finish == MOXIN_FINISH_REASON_END_OF_TURN && !last.error);
    CHECK(session.stats().generated_tokens > 1);
    CHECK(status_of([&] { session.step(); }) == MOXIN_STATUS_INVALID_STATE);

    moxin::Session raw = about(model, image);
    raw.add_prompt("In: " + std::string(QUESTION) + "\nOut:");
    std::string raw_text;
    for (const moxin::Event &event : raw.generate()) {
        raw_text += event.text;
    }
    CHECK(raw_text == " " + expected);

    options.stop = { "none such", "word" };
    moxin::Session stopped = about(model, image, options);
    CHECK(answer(stopped) == expected.substr(0, expected.find("word")));
    options.stop.clear();
    options.max_tokens = 1;
    moxin::Session brief = about(model, image, options);
    CHECK(answer(brief).size() < expected.size());
    options.top_p = 7;
    CHECK(status_of([&] { moxin::Session(model, options); }) == MOXIN_STATUS_INVALID_ARGUMENT);

    moxin::Session cancelled = about(model, image);
    cancelled.add_text(MOXIN_ROLE_USER, QUESTION);
    moxin_finish_reason finish = MOXIN_FINISH_REASON_NONE;
    for (const moxin::Event &event : cancelled.generate()) {
        cancelled.cancel();
        finish = event.finish;
    }
    CHECK(finish == MOXIN_FINISH_REASON_CANCELLED);
    CHECK(thrown_by([&] {
              moxin::Session thrower = about(model, image);
              thrower.add_text(MOXIN_ROLE_USER, QUESTION);
              for (const moxin::Event &event : thrower.generate()) {
                  throw Thrown{ event.kind == MOXIN_EVENT_KIND_PREFILL ? 4 : 5 };
              }
          }) == 4);
}

void conversations(const moxin::Model &model, const moxin::Image &image,
                   const std::string &expected) {
    moxin::Session session = about(model, image);
    session.add_text(MOXIN_ROLE_USER, QUESTION);
    bool told = false;
    moxin::Op op;
    op.progress = [&](moxin_stage stage, float) {
        told = told || stage == MOXIN_STAGE_PREFILL;
        return true;
    };
    session.prefill(op);
    CHECK(told);
    std::string text;
    for (const moxin::Event &event : session.generate()) {
        text += event.text;
    }
    CHECK(text == expected);

    moxin::Session fork = session.fork();
    std::string second = answer(session, "How many shapes are there?");
    CHECK(answer(fork, "How many shapes are there?") == second);
    CHECK(session.stats().message_count == 4);
    session.rewind(2);
    CHECK(session.stats().message_count == 2);
    CHECK(answer(session, "How many shapes are there?") == second);
    session.rewind(2);
    moxin::SessionOptions brief;
    brief.max_tokens = 1;
    session.set_options(brief);
    answer(session, "How many shapes are there?");
    CHECK(session.stats().generated_tokens == 1);
    session.set_options({});
    session.reset();
    session.add_image(image);
    CHECK(answer(session) == expected);
    CHECK(status_of([&] { session.add_text(MOXIN_ROLE_USER, "\xff"); }) ==
          MOXIN_STATUS_INVALID_ARGUMENT);
    session.add_text(MOXIN_ROLE_USER, {}); // an empty view has a null pointer
}

void pushing(const moxin::Model &model, const moxin::Image &image, const std::string &expected) {
    moxin::Session session = about(model, image);
    auto ask = [&] { session.add_text(MOXIN_ROLE_USER, QUESTION); };

    ask();
    std::string text;
    int finished = 0;
    auto held = std::make_shared<int>();
    std::future<moxin_finish_reason> result = session.start([&, held](const moxin::Event &event) {
        text += event.text;
        finished += event.kind == MOXIN_EVENT_KIND_FINISHED;
        return true;
    });
    CHECK(result.get() == MOXIN_FINISH_REASON_END_OF_TURN);
    CHECK(text == expected && finished == 1 && held.use_count() == 1);

    ask();
    CHECK(session.start([](const moxin::Event &) { return false; }).get() ==
          MOXIN_FINISH_REASON_CANCELLED);
    ask();
    result = session.start([](const moxin::Event &) -> bool { throw Thrown{ 6 }; });
    CHECK(thrown_by([&] { result.get(); }) == 6);
    ask();
    result = session.start([](const moxin::Event &event) {
        return event.kind != MOXIN_EVENT_KIND_FINISHED ? true : throw Thrown{ 7 };
    });
    CHECK(thrown_by([&] { result.get(); }) == 7);

    moxin::Op op;
    moxin::Cancel cancel;
    cancel.trigger();
    op.cancel = &cancel;
    ask();
    CHECK(session.start([](const moxin::Event &) { return true; }, op).get() ==
          MOXIN_FINISH_REASON_CANCELLED);
    op.progress = [](moxin_stage, float) { return true; };
    ask();
    CHECK(status_of([&] { session.start([](const moxin::Event &) { return true; }, op); }) ==
          MOXIN_STATUS_INVALID_ARGUMENT);
    op = {};
    op.timeout = std::chrono::milliseconds(1);
    CHECK(status_of([&] { session.start([](const moxin::Event &) { return true; }, op).get(); }) ==
          MOXIN_STATUS_TIMEOUT);

    moxin::Session empty(model);
    CHECK(status_of([&] { empty.start([held](const moxin::Event &) { return true; }); }) ==
          MOXIN_STATUS_INVALID_STATE);
    CHECK(held.use_count() == 1);
    ask();
    session.start(
        [](const moxin::Event &) { return true; }); // nobody waits; the session's end does
}

void library(const std::string &folder, const moxin::Image &image) {
    CHECK(moxin::version() == moxin_version() && moxin::build_info().front() == '{');
    CHECK(moxin::backend_available(MOXIN_BACKEND_CPU) && !moxin::backend_available(99));
    moxin_model_info found = moxin::Model::inspect(folder);
    moxin::Model model(folder);
    CHECK(found.parameter_count == model.info().parameter_count && model.info().fingerprint != 0);
    moxin_memory_estimate estimate = moxin::Model::estimate(folder);
    CHECK(estimate.weights > 1000000 && estimate.total > estimate.weights);
    CHECK(!model.metadata("vision_backbone_id").empty());
    CHECK(status_of([&] { model.metadata("no.such.key"); }) == MOXIN_STATUS_NOT_FOUND);
    CHECK(moxin::memory_stats().handles >= 2);
    moxin::set_memory_limits(moxin::memory_stats().limit, 0);
    moxin::trim_memory();

    auto held = std::make_shared<std::atomic<int>>();
    moxin::set_log(
        [held](moxin_log_level, std::string_view, std::string_view message) {
            *held += static_cast<int>(message.size());
            throw Thrown{ 9 };
        },
        MOXIN_LOG_LEVEL_TRACE);
    moxin::Model logged(folder);
    moxin::set_log({}, MOXIN_LOG_LEVEL_OFF);
    while (held.use_count() > 1) {
        std::this_thread::yield(); // it is destroyed on the log's own thread
    }
    CHECK(*held > 0);

    moxin::Session session = about(model, image);
    session.add_text(MOXIN_ROLE_USER, QUESTION);
    moxin::suspend(std::chrono::milliseconds(1000));
    CHECK(status_of([&] { session.step(); }) == MOXIN_STATUS_SUSPENDED);
    moxin::resume();
    moxin::set_cpu_threads(0);
    CHECK(status_of([] { moxin::set_cpu_threads(1000000); }) == MOXIN_STATUS_INVALID_ARGUMENT);
    moxin::QuantOptions four_bits;
    four_bits.modules.push_back({ "language_model.lm_head", 8, 64, MOXIN_QUANT_MODE_AFFINE });
    int told = 0;
    moxin::Op op;
    op.progress = [&](moxin_stage stage, float) {
        return told += stage == MOXIN_STAGE_QUANTIZE, true;
    };
    model.quantize(four_bits, op);
    CHECK(model.info().quant_bits == 4 && told > 1);
    bool refused = false;
    try {
        model.save(folder, true); // its own source
    } catch (const moxin::Error &error) {
        refused = error.status() == MOXIN_STATUS_INVALID_ARGUMENT;
    }
    CHECK(refused);
    model.unload();
    CHECK(status_of([&] { session.step(); }) == MOXIN_STATUS_INVALID_STATE);
}

} // namespace

// A model that writes boxes: Qwen2-VL, in thousandths of the picture.
void grounding(const std::string &folder) {
    moxin::Model model(folder);
    CHECK(model.info().grounding != 0);
    std::string answer = "the cat(100,200),(300,400) [{\"point_2d\": [1, 2";
    std::vector<moxin::Location> found = model.locate(answer, 2000, 1000);
    CHECK(found.size() == 1 && found[0].label == "the cat" && !found[0].is_point);
    CHECK(found[0].left == 200 && found[0].top == 200);
    CHECK(found[0].right == 600 && found[0].bottom == 400);
    found = model.locate("{\"point_2d\": [500, 5000], \"label\": \"tail\"}", 2000, 1000);
    CHECK(found.size() == 1 && found[0].label == "tail" && found[0].is_point);
    CHECK(found[0].left == 1000 && found[0].top == 1000 && found[0].bottom == 1000);
    CHECK(model.locate("", 2000, 1000).empty());
    CHECK(status_of([&] { model.locate("", 2000, 1); }) == MOXIN_STATUS_INVALID_ARGUMENT);

    moxin_error *error = nullptr;
    moxin_locations *locations = nullptr;
    moxin_location location{};
    location.struct_size = sizeof location;
    CHECK(moxin_model_locate(model.get(), answer.c_str(), MOXIN_STRLEN, 2000, 1000, nullptr,
                             &locations, nullptr) == MOXIN_STATUS_OK);
    CHECK(moxin_locations_get(locations, 1, &location, &error) == MOXIN_STATUS_INVALID_ARGUMENT);
    CHECK(std::string(moxin_error_message(error).data).find("index is 1; there are 1 locations") !=
          std::string::npos);
    moxin_error_free(error);
    moxin_locations_free(locations);
}

int main(int, char **argv) {
    std::string folder = argv[1];
    std::string path = argv[2];
    errors(folder);
    loading(folder);
    moxin::Model model(folder);
    moxin::Image image = moxin::Image::from_file(path);
    std::string expected;
    {
        moxin::Session session = about(model, image);
        expected = answer(session);
        CHECK(expected.find("word") != std::string::npos);
    }
    images(model, path, expected);
    embeddings(model, image, expected);
    videos(model, path);
    steps(model, image, expected);
    conversations(model, image, expected);
    pushing(model, image, expected);
    library(folder, image);
    grounding(argv[3]);
    return 0;
}
