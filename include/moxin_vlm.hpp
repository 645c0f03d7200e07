// moxin-vlm for C++17 and later. SPDX-License-Identifier: MIT OR Apache-2.0
//
// A thin layer over moxin_vlm.h, which documents each call. What C++ adds:
//
// Objects: Model, Image, Embedding, Session and Cancel own one handle each. They can be moved but
// not copied, and may be destroyed in any order.
//
// Errors: a call that fails throws moxin::Error, which has the status, the message and its causes.
//
// Options: ModelOptions, SessionOptions and ImageOptions have the fields of the C structs and start
// with their defaults.
//
// Text: parameters are std::string_view and results are std::string, always UTF-8. So are paths.
//
// Callbacks are std::function. An exception must not pass through C. If a callback throws, the
// exception is caught, the operation is cancelled, and the exception is thrown again after C has
// returned: by the call that the callback belongs to, or, for Session::start, by the future that it
// returns. Exceptions of a log function are dropped, because it belongs to no call.
//
// Threads: as in C, every call may be made on any thread. A second operation on a busy session
// throws an Error with MOXIN_STATUS_BUSY. An object must outlive the calls that other threads make
// with it, Session::cancel included.

#ifndef MOXIN_VLM_HPP
#define MOXIN_VLM_HPP

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <exception>
#include <functional>
#include <future>
#include <iterator>
#include <memory>
#include <new>
#include <optional>
#include <stdexcept>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "moxin_vlm.h"

namespace moxin {

/// Why a call failed. what() is a message for people.
class Error : public std::runtime_error {
public:
    Error(moxin_status status, const std::string &message, std::vector<std::string> causes = {})
        : std::runtime_error(message), status_(status),
          causes_(std::make_shared<const std::vector<std::string>>(std::move(causes))) {}

    /// Copies a C error; NULL has only its status.
    Error(moxin_status status, const moxin_error *error)
        : Error(status, message_of(status, error), causes_of(error)) {}

    moxin_status status() const noexcept { return status_; }

    /// The causes, the nearest first.
    const std::vector<std::string> &causes() const noexcept { return *causes_; }

private:
    static std::string message_of(moxin_status status, const moxin_error *error) {
        return error != nullptr ? moxin_error_message(error).data
                                : moxin_status_name(static_cast<std::uint32_t>(status));
    }

    static std::vector<std::string> causes_of(const moxin_error *error) {
        std::vector<std::string> causes;
        if (error != nullptr) {
            for (error = moxin_error_cause(error); error != nullptr;
                 error = moxin_error_cause(error)) {
                causes.emplace_back(moxin_error_message(error).data);
            }
        }
        return causes;
    }

    moxin_status status_;
    std::shared_ptr<const std::vector<std::string>>
        causes_; // shared, so that copying an Error cannot fail
};

/// Calls C; not for use by programs.
namespace detail {

template <class T, void (*free)(T *)>
struct Free {
    void operator()(T *object) const noexcept { free(object); }
};

template <class T, void (*free)(T *)>
using Handle = std::unique_ptr<T, Free<T, free>>;

inline void check(moxin_status status, moxin_error *error) {
    Handle<moxin_error, moxin_error_free> owned(error);
    if (status != MOXIN_STATUS_OK) {
        throw Error(status, error);
    }
}

/// Calls a function whose last parameter is an error, and throws that error.
template <class Function, class... Arguments>
void call(Function function, Arguments... arguments) {
    moxin_error *error = nullptr;
    moxin_status status = function(arguments..., &error);
    check(status, error);
}

/// Calls a function whose second-to-last parameter receives a new handle, and returns the handle.
template <class T, class Function, class... Arguments>
T *make(Function function, Arguments... arguments) {
    T *made = nullptr;
    call(function, arguments..., &made);
    return made;
}

/// Calls a function whose second-to-last parameter receives a struct, and returns the struct.
template <class T, class Function, class... Arguments>
T get(Function function, Arguments... arguments) {
    T result{};
    result.struct_size = sizeof result;
    call(function, arguments..., &result);
    return result;
}

inline std::string copy(moxin_str text) { return { text.data, text.len }; }

} // namespace detail

/// Cancels operations, from any thread. Can be used for any number of operations.
class Cancel {
public:
    Cancel() : handle_(moxin_cancel_new()) {
        if (!handle_) {
            throw std::bad_alloc();
        }
    }

    void trigger() const noexcept { moxin_cancel_trigger(get()); }

    const moxin_cancel *get() const noexcept { return handle_.get(); }

private:
    detail::Handle<moxin_cancel, moxin_cancel_free> handle_;
};

/// Options for one long operation; {} sets none.
struct Op {
    /// Receives the stage, MOXIN_STAGE_*, and the fraction that is complete, 0 to 1. Returning
    /// false cancels the operation.
    std::function<bool(moxin_stage, float)> progress;
    /// Must live until the operation has started.
    const Cancel *cancel = nullptr;
    /// The time limit, including the time spent waiting for other operations. 0: no limit.
    std::chrono::milliseconds timeout{ 0 };
};

namespace detail {

/// An Op in C's form, at a fixed address while C uses it.
class RunningOp {
public:
    explicit RunningOp(Op op) : progress_(std::move(op.progress)) {
        op_.struct_size = sizeof op_;
        op_.progress = progress_ ? &RunningOp::report : nullptr;
        op_.user_data = this;
        op_.cancel = op.cancel != nullptr ? op.cancel->get() : nullptr;
        op_.timeout_ms =
            op.timeout.count() > 0 ? static_cast<std::uint64_t>(op.timeout.count()) : 0;
    }

    RunningOp(const RunningOp &) = delete;
    RunningOp &operator=(const RunningOp &) = delete;

    const moxin_op *get() const noexcept { return &op_; }

    /// Makes a call with this operation; an exception from progress takes precedence over the
    /// call's result.
    template <class Call>
    void run(Call call) {
        try {
            call();
        } catch (const Error &) {
            rethrow();
            throw;
        }
        rethrow();
    }

private:
    void rethrow() const {
        if (thrown_) {
            std::rethrow_exception(thrown_);
        }
    }

    static bool report(void *self, moxin_stage stage, float fraction) noexcept {
        auto *op = static_cast<RunningOp *>(self);
        try {
            return !op->thrown_ && op->progress_(stage, fraction);
        } catch (...) {
            op->thrown_ = std::current_exception();
            return false;
        }
    }

    std::function<bool(moxin_stage, float)> progress_;
    std::exception_ptr thrown_;
    moxin_op op_{};
};

} // namespace detail

/// Options for decoding a picture: the fields of moxin_image_params.
struct ImageOptions : moxin_image_params {
    ImageOptions() : moxin_image_params() {
        moxin_image_params_init(this, sizeof(moxin_image_params));
    }
};

/// Options for reading a video from a file: the fields of moxin_video_params.
struct VideoOptions : moxin_video_params {
    VideoOptions() : moxin_video_params() {
        moxin_video_params_init(this, sizeof(moxin_video_params));
    }
};

/// How large a picture may be when it reaches the encoder: the fields of moxin_pixel_budget.
struct PixelBudget : moxin_pixel_budget {
    PixelBudget(std::uint64_t min = 0, std::uint64_t max = 0) : moxin_pixel_budget() {
        struct_size = sizeof(moxin_pixel_budget);
        min_pixels = min;
        max_pixels = max;
    }
};

/// Options for loading a model: the fields of moxin_model_params.
struct ModelOptions : moxin_model_params {
    ModelOptions() : moxin_model_params() {
        moxin_model_params_init(this, sizeof(moxin_model_params));
    }
};

/// Which modules are quantized, and how: the fields of moxin_quant_params, except that `modules` is
/// a std::vector and `module_count` is ignored.
struct QuantOptions : moxin_quant_params {
    QuantOptions() : moxin_quant_params() {
        moxin_quant_params_init(this, sizeof(moxin_quant_params));
    }

    struct Module {
        std::string path;
        /// 0: the module is not quantized.
        std::uint32_t bits;
        std::uint32_t group_size;
        moxin_quant_mode mode = MOXIN_QUANT_MODE_AFFINE;
    };

    /// Exceptions.
    std::vector<Module> modules;
};

/// Parameters of a session: the fields of moxin_session_params, except that `stop` is a std::vector,
/// `stop_count` is ignored, and `image_budget` is a std::optional.
struct SessionOptions : moxin_session_params {
    SessionOptions() : moxin_session_params() {
        moxin_session_params_init(this, sizeof(moxin_session_params));
    }

    /// Texts that end an answer and are not part of it. At most 64, of 1 to 1024 bytes each.
    std::vector<std::string> stop;

    /// The budget of each picture that is added without one of its own.
    std::optional<PixelBudget> image_budget;

    /// Makes a call with these options in C's form.
    template <class Call>
    auto with_params(Call call) const
        -> decltype(call(static_cast<const moxin_session_params *>(nullptr))) {
        std::vector<const char *> texts;
        for (const std::string &text : stop) {
            texts.push_back(text.c_str());
        }
        moxin_session_params params = *this;
        params.stop = texts.data();
        params.stop_count = texts.size();
        params.image_budget = image_budget ? &*image_budget : nullptr;
        return call(&params);
    }
};

/// A decoded picture.
class Image {
public:
    struct Size {
        std::uint32_t width;
        std::uint32_t height;
    };

    /// Reads a file: PNG, JPEG, WebP, GIF, BMP or TIFF.
    static Image from_file(std::string_view path, const ImageOptions &options = {}) {
        return Image(
            detail::make<moxin_image>(moxin_image_from_file, std::string(path).c_str(), &options));
    }

    /// Reads the bytes of a file, which may be freed when it returns.
    static Image from_bytes(const void *data, std::size_t len, const ImageOptions &options = {}) {
        return Image(detail::make<moxin_image>(moxin_image_from_bytes, data, len, &options));
    }

    /// Copies pixels; stride is the number of bytes from one row to the next.
    static Image from_pixels(const void *pixels, Size size, std::size_t stride,
                             moxin_pixel_format format) {
        return Image(detail::make<moxin_image>(moxin_image_from_pixels, pixels, size.width,
                                               size.height, stride, format));
    }

    /// Returns the size in pixels, after the picture was turned upright.
    Size size() const {
        Size size{};
        detail::call(moxin_image_size, get(), &size.width, &size.height);
        return size;
    }

    const moxin_image *get() const noexcept { return handle_.get(); }

private:
    explicit Image(moxin_image *image) : handle_(image) {}

    detail::Handle<moxin_image, moxin_image_free> handle_;
};

/// A video: frames of one size, each with its time.
class Video {
public:
    /// Reads an animated GIF, WebP or PNG.
    static Video from_file(std::string_view path, const VideoOptions &options = {}) {
        return Video(
            detail::make<moxin_video>(moxin_video_from_file, std::string(path).c_str(), &options));
    }

    /// Reads the bytes of a file, which may be freed when it returns.
    static Video from_bytes(const void *data, std::size_t len, const VideoOptions &options = {}) {
        return Video(detail::make<moxin_video>(moxin_video_from_bytes, data, len, &options));
    }

    /// Makes a video of frames that follow each other fps times per second.
    static Video from_frames(const std::vector<Image> &frames, double fps) {
        return from(frames, nullptr, fps);
    }

    /// Makes a video of frames with the time of each in seconds.
    static Video from_frames(const std::vector<Image> &frames, const std::vector<double> &times) {
        if (times.size() != frames.size()) {
            throw Error(MOXIN_STATUS_INVALID_ARGUMENT,
                        std::to_string(times.size()) + " times for " +
                            std::to_string(frames.size()) + " frames; expected one for each");
        }
        return from(frames, times.data(), 0);
    }

    moxin_video_info info() const {
        return detail::get<moxin_video_info>(moxin_video_info_get, get());
    }

    const moxin_video *get() const noexcept { return handle_.get(); }

private:
    explicit Video(moxin_video *video) : handle_(video) {}

    static Video from(const std::vector<Image> &frames, const double *times, double fps) {
        std::vector<const moxin_image *> handles;
        for (const Image &frame : frames) {
            handles.push_back(frame.get());
        }
        // An empty vector may have a null pointer, which C refuses with another error.
        handles.push_back(nullptr);
        return Video(detail::make<moxin_video>(moxin_video_from_frames, handles.data(),
                                               frames.size(), times, fps));
    }

    detail::Handle<moxin_video, moxin_video_free> handle_;
};

/// The features of a picture or a video in the embedding space of the model that encoded it.
class Embedding {
public:
    moxin_embedding_info info() const {
        return detail::get<moxin_embedding_info>(moxin_embedding_info_get, get());
    }

    /// Copies the token_count * hidden_size values, token by token.
    std::vector<float> values() const {
        moxin_embedding_info size = info();
        std::vector<float> values(std::size_t{ size.token_count } * size.hidden_size);
        detail::call(moxin_embedding_copy, get(), values.data(), values.size());
        return values;
    }

    const moxin_embedding *get() const noexcept { return handle_.get(); }

private:
    friend class Model;

    Embedding() = default;

    detail::Handle<moxin_embedding, moxin_embedding_free> handle_;
};

/// Throws an Error unless the loaded library has the ABI of this header.
inline void check_abi() {
    if (moxin_abi_version() != MOXIN_ABI_VERSION) {
        throw Error(MOXIN_STATUS_INVALID_STATE, "this program was built for ABI " +
                                                    std::to_string(MOXIN_ABI_VERSION) +
                                                    " of libmoxin_vlm, and the library has " +
                                                    std::to_string(moxin_abi_version()));
    }
}

/// Something in a picture that an answer names, in pixels of the upright original. For a point,
/// left equals right, and top equals bottom.
struct Location {
    std::string label;
    float left = 0;
    float top = 0;
    float right = 0;
    float bottom = 0;
    bool is_point = false;
};

/// A model in memory.
class Model {
public:
    /// Loads a Hugging Face folder. Progress is reported with stage MOXIN_STAGE_LOAD.
    explicit Model(std::string_view path, const ModelOptions &options = {}, Op op = {}) {
        check_abi();
        detail::RunningOp running(std::move(op));
        std::string folder(path);
        running.run([&] {
            handle_.reset(detail::make<moxin_model>(moxin_model_load, folder.c_str(), &options,
                                                    running.get()));
        });
    }

    /// Describes the model in a folder, from the headers of its files.
    static moxin_model_info inspect(std::string_view path) {
        return detail::get<moxin_model_info>(moxin_model_inspect, std::string(path).c_str());
    }

    /// Estimates the memory for loading and one session, from the headers of the folder's files.
    static moxin_memory_estimate estimate(std::string_view path, const ModelOptions &options = {},
                                          const SessionOptions &session = {}) {
        std::string folder(path);
        return session.with_params([&](const moxin_session_params *params) {
            return detail::get<moxin_memory_estimate>(moxin_model_estimate, folder.c_str(),
                                                      &options, params);
        });
    }

    moxin_model_info info() const {
        return detail::get<moxin_model_info>(moxin_model_info_get, get());
    }

    /// Returns a field of config.json by its dotted path.
    std::string metadata(std::string_view key) const {
        moxin_str value{};
        detail::call(moxin_model_metadata, get(), std::string(key).c_str(), &value);
        return detail::copy(value);
    }

    /// Returns the number of positions that a picture of this size takes in a conversation.
    std::uint32_t image_tokens(std::uint32_t width, std::uint32_t height,
                               const PixelBudget &budget = {}) const {
        std::uint32_t tokens = 0;
        detail::call(moxin_model_image_tokens, get(), width, height, &budget, &tokens);
        return tokens;
    }

    /// Returns the boxes and points in an answer about one picture of this size, which was in the
    /// conversation with this budget, in the pixels of that picture.
    std::vector<Location> locate(std::string_view answer, std::uint32_t width, std::uint32_t height,
                                 const PixelBudget &budget = {}) const {
        detail::Handle<moxin_locations, moxin_locations_free> found(detail::make<moxin_locations>(
            moxin_model_locate, get(), answer.data(), answer.size(), width, height, &budget));
        std::vector<Location> locations(moxin_locations_count(found.get()));
        for (std::size_t i = 0; i < locations.size(); ++i) {
            auto location = detail::get<moxin_location>(moxin_locations_get, found.get(), i);
            locations[i] = { detail::copy(location.label),
                             location.left,
                             location.top,
                             location.right,
                             location.bottom,
                             location.is_point != 0 };
        }
        return locations;
    }

    /// Runs the vision encoders. Progress is reported with stage MOXIN_STAGE_ENCODE.
    Embedding encode(const Image &image, Op op = {}, const PixelBudget &budget = {}) const {
        return encode(moxin_model_encode_image, image.get(), std::move(op), budget);
    }

    /// Encodes a video, as the overload for pictures does.
    Embedding encode(const Video &video, Op op = {}, const PixelBudget &budget = {}) const {
        return encode(moxin_model_encode_video, video.get(), std::move(op), budget);
    }

    /// Quantizes the model in memory. Progress is reported with stage MOXIN_STAGE_QUANTIZE.
    void quantize(const QuantOptions &options = {}, Op op = {}) {
        std::vector<moxin_module_quant> modules;
        for (const QuantOptions::Module &module : options.modules) {
            modules.push_back(
                { module.path.c_str(), module.bits, module.group_size, module.mode, 0 });
        }
        moxin_quant_params params = options;
        params.modules = modules.data();
        params.module_count = modules.size();
        detail::RunningOp running(std::move(op));
        running.run([&] { detail::call(moxin_model_quantize, get(), &params, running.get()); });
    }

    /// Saves the model in its current form to a folder that can be loaded. Progress is reported
    /// with stage MOXIN_STAGE_SAVE.
    ///
    /// With overwrite, an empty folder or a model folder is replaced; a model folder has only
    /// files, among them a config.json with a "model_type". Never replaces the folder that the
    /// model was loaded from, or one that contains it: see moxin_model_save.
    void save(std::string_view directory, bool overwrite = false, Op op = {}) const {
        std::string folder(directory);
        detail::RunningOp running(std::move(op));
        running.run([&] {
            detail::call(moxin_model_save, get(), folder.c_str(), overwrite, running.get());
        });
    }

    /// Frees the weights while sessions stay; their calls then throw.
    void unload() { detail::call(moxin_model_unload, get()); }

    const moxin_model *get() const noexcept { return handle_.get(); }

private:
    template <class Function, class Medium>
    Embedding encode(Function function, const Medium *medium, Op op,
                     const PixelBudget &budget) const {
        detail::RunningOp running(std::move(op));
        Embedding made;
        running.run([&] {
            made.handle_.reset(
                detail::make<moxin_embedding>(function, get(), medium, &budget, running.get()));
        });
        return made;
    }

    detail::Handle<moxin_model, moxin_model_free> handle_;
};

/// The result of one step: the fields of moxin_event, with their own memory.
struct Event {
    moxin_event_kind kind = MOXIN_EVENT_KIND_PREFILL;
    moxin_finish_reason finish = MOXIN_FINISH_REASON_NONE;
    std::string text;
    std::int32_t token_id = -1;
    float logprob = 0;
    std::uint32_t done = 0;
    std::uint32_t total = 0;
    /// The most likely tokens, as many as the session's `logprobs`.
    std::vector<moxin_token_logprob> top;
    /// The error, if finish is MOXIN_FINISH_REASON_ERROR.
    std::optional<Error> error;

    Event() = default;

    explicit Event(const moxin_event &event)
        : kind(event.kind), finish(event.finish), text(detail::copy(event.text)),
          token_id(event.token_id), logprob(event.logprob), done(event.done), total(event.total),
          top(event.top, event.top + event.top_count) {
        if (event.error != nullptr) {
            error.emplace(moxin_error_status(event.error), event.error);
        }
    }
};

class Session;

/// The events of one answer, for a range-for; each iteration performs one step of the session.
class Events {
public:
    class iterator {
    public:
        using iterator_category = std::input_iterator_tag;
        using value_type = Event;
        using difference_type = std::ptrdiff_t;
        using pointer = const Event *;
        using reference = const Event &;

        iterator() = default;

        reference operator*() const { return events_->event_; }
        pointer operator->() const { return &events_->event_; }

        iterator &operator++() {
            if (!events_->next()) {
                events_ = nullptr;
            }
            return *this;
        }

        void operator++(int) { ++*this; }

        friend bool operator==(const iterator &a, const iterator &b) {
            return a.events_ == b.events_;
        }
        friend bool operator!=(const iterator &a, const iterator &b) { return !(a == b); }

    private:
        friend class Events;

        explicit iterator(Events *events) : events_(events) {}

        Events *events_ = nullptr;
    };

    /// Performs the first step. Call it once: a second begin continues where the first one is.
    iterator begin() {
        iterator first(this);
        return ++first;
    }

    iterator end() { return {}; }

private:
    friend class Session;

    explicit Events(const moxin_session *session) : session_(session) {}

    bool next() {
        if (event_.kind == MOXIN_EVENT_KIND_FINISHED) {
            return false;
        }
        event_ = Event(detail::get<moxin_event>(moxin_session_step, session_));
        return true;
    }

    const moxin_session *session_;
    Event event_;
};

namespace detail {

/// The callback of a stream, from generate_start until destroy.
class Push {
public:
    Push(std::function<bool(const Event &)> on_event, Op op)
        : on_event_(std::move(on_event)), op_(std::move(op)) {}

    /// Starts the stream. The library owns the object from here, and destroys it even if it cannot
    /// start.
    static std::future<moxin_finish_reason> start(const moxin_session *session,
                                                  std::unique_ptr<Push> push) {
        std::future<moxin_finish_reason> result = push->result_.get_future();
        Push *stream = push.release();
        call(moxin_session_start, session, stream->op_.get(), &Push::take, stream, &Push::destroy);
        return result;
    }

private:
    static bool take(void *self, const moxin_event *event) noexcept {
        auto *push = static_cast<Push *>(self);
        try {
            Event copy(*event);
            push->finish_ = copy.finish;
            push->error_ = copy.error;
            return !push->thrown_ && push->on_event_(copy);
        } catch (...) {
            push->thrown_ = std::current_exception();
            return false;
        }
    }

    static void destroy(void *self) noexcept {
        std::unique_ptr<Push> push(static_cast<Push *>(self));
        std::promise<moxin_finish_reason> result = std::move(push->result_);
        std::exception_ptr thrown = push->thrown_;
        if (!thrown && push->error_) {
            thrown = std::make_exception_ptr(*push->error_);
        }
        moxin_finish_reason finish = push->finish_;
        push.reset(); // frees the callbacks' captures before the waiting thread continues
        if (thrown) {
            result.set_exception(thrown);
        } else {
            result.set_value(finish);
        }
    }

    std::function<bool(const Event &)> on_event_;
    RunningOp op_;
    std::promise<moxin_finish_reason> result_;
    std::exception_ptr thrown_;
    std::optional<Error> error_;
    moxin_finish_reason finish_ = MOXIN_FINISH_REASON_NONE;
};

} // namespace detail

/// A conversation with a model. It keeps the parts of the model that it needs alive.
class Session {
public:
    explicit Session(const Model &model, const SessionOptions &options = {})
        : handle_(options.with_params([&](const moxin_session_params *params) {
              return detail::make<moxin_session>(moxin_session_new, model.get(), params);
          })) {}

    void add_text(moxin_role role, std::string_view text) {
        // An empty view may have a null pointer, which C refuses.
        detail::call(moxin_session_add_text, get(), role, text.empty() ? "" : text.data(),
                     text.size());
    }

    /// Adds prompt text unchanged: control tokens spelled in it are control tokens. See
    /// moxin_session_add_prompt.
    void add_prompt(std::string_view text) {
        detail::call(moxin_session_add_prompt, get(), text.empty() ? "" : text.data(), text.size());
    }

    /// Adds a picture within the session's budget: see moxin_session_add_image.
    void add_image(const Image &image) {
        const moxin_pixel_budget *none = nullptr;
        detail::call(moxin_session_add_image, get(), image.get(), none);
    }

    /// Adds a picture within a budget of its own.
    void add_image(const Image &image, const PixelBudget &budget) {
        detail::call(moxin_session_add_image, get(), image.get(), &budget);
    }

    /// Adds a video within the session's budget: see moxin_session_add_video.
    void add_video(const Video &video) {
        const moxin_pixel_budget *none = nullptr;
        detail::call(moxin_session_add_video, get(), video.get(), none);
    }

    /// Adds a video within a budget of its own.
    void add_video(const Video &video, const PixelBudget &budget) {
        detail::call(moxin_session_add_video, get(), video.get(), &budget);
    }

    void add_embedding(const Embedding &embedding) {
        detail::call(moxin_session_add_embedding, get(), embedding.get());
    }

    /// Performs the answer's work up to its first token. Progress is reported with stages
    /// MOXIN_STAGE_ENCODE and MOXIN_STAGE_PREFILL.
    void prefill(Op op = {}) {
        detail::RunningOp running(std::move(op));
        running.run([&] { detail::call(moxin_session_prefill, get(), running.get()); });
    }

    /// Reads one chunk of the prompt, or generates one token.
    Event step() { return Event(detail::get<moxin_event>(moxin_session_step, get())); }

    /// Generates the answer step by step: `for (const moxin::Event &event : session.generate())`. A
    /// failure throws from the loop. Leaving the loop leaves the answer in progress: generate()
    /// again continues it; cancel() and one more step roll it back. The session must live during
    /// the loop.
    Events generate() { return Events(get()); }

    /// Generates the answer as a stream: on_event receives each event on a thread of the library,
    /// and cancels by returning false. The last event is FINISHED; then on_event is destroyed, and
    /// then the future is ready. It has the finish reason, or throws the exception of on_event or
    /// the Error that ended the answer. The future may be dropped: the answer continues. When the
    /// process exits, it may never become ready: do not wait for it in an exit handler or the
    /// destructor of a global. The op's progress must be empty.
    std::future<moxin_finish_reason> start(std::function<bool(const Event &)> on_event,
                                           Op op = {}) {
        return detail::Push::start(
            get(), std::make_unique<detail::Push>(std::move(on_event), std::move(op)));
    }

    /// Cancels the answer that is being generated, or a prefill, from any thread, within one layer.
    void cancel() const noexcept { moxin_session_cancel(get()); }

    /// Copies the session with its conversation so far.
    Session fork() const { return Session(detail::make<moxin_session>(moxin_session_fork, get())); }

    /// Replaces all options. Applies from the next answer.
    void set_options(const SessionOptions &options) {
        options.with_params([&](const moxin_session_params *params) {
            detail::call(moxin_session_set_params, get(), params);
            return 0;
        });
    }

    /// Returns the number of positions of the prompt that the next step would read.
    std::uint32_t prompt_tokens() const {
        std::uint32_t tokens = 0;
        detail::call(moxin_session_prompt_tokens, get(), &tokens);
        return tokens;
    }

    /// Removes all but the first messages.
    void rewind(std::size_t messages_to_keep) {
        detail::call(moxin_session_rewind, get(), messages_to_keep);
    }

    /// Removes the conversation.
    void reset() { detail::call(moxin_session_reset, get()); }

    /// Returns counts and times of the latest turn.
    moxin_stats stats() const { return detail::get<moxin_stats>(moxin_session_stats, get()); }

    const moxin_session *get() const noexcept { return handle_.get(); }

private:
    explicit Session(moxin_session *session) : handle_(session) {}

    detail::Handle<moxin_session, moxin_session_free> handle_;
};

// Functions for the library as a whole.

/// Returns the library's version, such as "0.1.0".
inline std::string version() { return moxin_version(); }

/// Describes the build as JSON: version, ABI, MLX, backends and target.
inline std::string build_info() { return moxin_build_info(); }

/// Returns whether models can run on a backend, one of MOXIN_BACKEND_*, now.
inline bool backend_available(moxin_backend backend) { return moxin_backend_available(backend); }

/// Sets the path of Metal's kernels, mlx.metallib. Call it before anything else.
inline void set_metallib_path(std::string_view path) {
    detail::call(moxin_set_metallib_path, std::string(path).c_str());
}

/// Receives log messages on a dedicated thread, up to a MOXIN_LOG_LEVEL_*.
using Log =
    std::function<void(moxin_log_level level, std::string_view target, std::string_view message)>;

/// Sets the log callback and the level, replacing the previous callback; an empty one disables
/// logging. The previous one is destroyed on the log's thread, possibly later.
inline void set_log(Log log, moxin_log_level max_level) {
    if (!log) {
        detail::call(moxin_set_log, nullptr, max_level, nullptr, nullptr);
        return;
    }
    auto owned = std::make_unique<Log>(std::move(log));
    auto pass_on = [](void *self, moxin_log_level level, moxin_str target,
                      moxin_str message) noexcept {
        try {
            (*static_cast<Log *>(self))(level, { target.data, target.len },
                                        { message.data, message.len });
        } catch (...) { // no call could throw it
        }
    };
    auto destroy = [](void *self) noexcept { delete static_cast<Log *>(self); };
    detail::call(moxin_set_log, static_cast<moxin_log_fn>(pass_on), max_level, owned.release(),
                 static_cast<moxin_destroy_fn>(destroy));
}

/// Stops all computing until resume, for an app that moves to the background.
inline void suspend(std::chrono::duration<std::uint32_t, std::milli> drain_timeout) {
    detail::call(moxin_suspend, drain_timeout.count());
}

inline void resume() noexcept { moxin_resume(); }

inline moxin_memory_stats memory_stats() {
    return detail::get<moxin_memory_stats>(moxin_memory_stats_get);
}

/// Sets the limits of the memory in use and of MLX's buffer cache, in bytes; UINT64_MAX: only the
/// machine limits it.
inline void set_memory_limits(std::uint64_t total_bytes, std::uint64_t cache_bytes) {
    detail::call(moxin_memory_set_limits, total_bytes, cache_bytes);
}

/// Sets the number of threads for this library's own CPU kernels; 0 for one per core.
inline void set_cpu_threads(std::uint32_t threads) {
    moxin_status status = moxin_set_cpu_threads(threads);
    if (status == MOXIN_STATUS_INVALID_ARGUMENT) {
        throw Error(status,
                    "too many threads: at most four for each CPU, or 64 where that is more");
    }
    detail::check(status, nullptr);
}

/// Releases memory kept for reuse.
inline void trim_memory() noexcept { moxin_memory_trim(); }

} // namespace moxin

#endif // MOXIN_VLM_HPP
