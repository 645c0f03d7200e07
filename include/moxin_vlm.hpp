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

/// Why a call failed. what() is for a person to read.
class Error : public std::runtime_error {
public:
    Error(moxin_status status, const std::string &message, std::vector<std::string> causes = {})
        : std::runtime_error(message), status_(status),
          causes_(std::make_shared<const std::vector<std::string>>(std::move(causes))) {}

    /// Copies what a C error says; NULL has only its status.
    Error(moxin_status status, const moxin_error *error)
        : Error(status, message_of(status, error), causes_of(error)) {}

    moxin_status status() const noexcept { return status_; }

    /// What led to it, the nearest cause first.
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

/// How this header speaks with C; programs have no need of it.
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

/// Calls a function whose last parameter is an error, and throws what it reports.
template <class Function, class... Arguments>
void call(Function function, Arguments... arguments) {
    moxin_error *error = nullptr;
    moxin_status status = function(arguments..., &error);
    check(status, error);
}

/// Calls a function whose last parameter but one receives a new handle, and returns the handle.
template <class T, class Function, class... Arguments>
T *make(Function function, Arguments... arguments) {
    T *made = nullptr;
    call(function, arguments..., &made);
    return made;
}

/// Calls a function whose last parameter but one receives a struct.
template <class T, class Function, class... Arguments>
T get(Function function, Arguments... arguments) {
    T result{};
    result.struct_size = sizeof result;
    call(function, arguments..., &result);
    return result;
}

inline std::string copy(moxin_str text) { return { text.data, text.len }; }

} // namespace detail

/// Cancels operations, from any thread. It may be given to any number of them.
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

/// Options of one long operation; {} has none.
struct Op {
    /// Told the stage, MOXIN_STAGE_*, and the part of it that is done, 0 to 1. Returning false
    /// cancels the operation.
    std::function<bool(moxin_stage, float)> progress;
    /// Must live until the operation has begun.
    const Cancel *cancel = nullptr;
    /// The longest it may take, the wait for its turn included. 0: no limit.
    std::chrono::milliseconds timeout{ 0 };
};

namespace detail {

/// An Op in the form of C, which stays where it is while C has it.
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

    /// Makes a call with this operation; what progress threw goes before the call's own outcome.
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

/// How a picture's file is decoded: the fields of moxin_image_params.
struct ImageOptions : moxin_image_params {
    ImageOptions() : moxin_image_params() {
        moxin_image_params_init(this, sizeof(moxin_image_params));
    }
};

/// How many pixels a picture may have in front of the encoder: the fields of moxin_pixel_budget.
struct PixelBudget : moxin_pixel_budget {
    PixelBudget(std::uint64_t min = 0, std::uint64_t max = 0) : moxin_pixel_budget() {
        struct_size = sizeof(moxin_pixel_budget);
        min_pixels = min;
        max_pixels = max;
    }
};

/// How a model is loaded: the fields of moxin_model_params.
struct ModelOptions : moxin_model_params {
    ModelOptions() : moxin_model_params() {
        moxin_model_params_init(this, sizeof(moxin_model_params));
    }
};

/// What of a model is quantized, and how: the fields of moxin_quant_params, of which `modules` is a
/// std::vector here and `module_count` is not looked at.
struct QuantOptions : moxin_quant_params {
    QuantOptions() : moxin_quant_params() {
        moxin_quant_params_init(this, sizeof(moxin_quant_params));
    }

    struct Module {
        std::string path;
        /// 0: it is not quantized.
        std::uint32_t bits;
        std::uint32_t group_size;
        moxin_quant_mode mode = MOXIN_QUANT_MODE_AFFINE;
    };

    /// Exceptions.
    std::vector<Module> modules;
};

/// How a session generates: the fields of moxin_session_params, of which `stop` is a std::vector
/// here and `stop_count` is not looked at.
struct SessionOptions : moxin_session_params {
    SessionOptions() : moxin_session_params() {
        moxin_session_params_init(this, sizeof(moxin_session_params));
    }

    /// Texts that end an answer; they are not part of it. At most 64, of 1 to 1024 bytes each.
    std::vector<std::string> stop;

    /// Makes a call with these options in the form of C.
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

    /// The same from a file's bytes, which are not needed any more when it returns.
    static Image from_bytes(const void *data, std::size_t len, const ImageOptions &options = {}) {
        return Image(detail::make<moxin_image>(moxin_image_from_bytes, data, len, &options));
    }

    /// Copies pixels; stride: bytes from one row to the next.
    static Image from_pixels(const void *pixels, Size size, std::size_t stride,
                             moxin_pixel_format format) {
        return Image(detail::make<moxin_image>(moxin_image_from_pixels, pixels, size.width,
                                               size.height, stride, format));
    }

    /// In pixels, upright.
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

/// A picture's tokens in the space of the model that made them.
class Embedding {
public:
    moxin_embedding_info info() const {
        return detail::get<moxin_embedding_info>(moxin_embedding_info_get, get());
    }

    /// token_count * hidden_size numbers, token after token.
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

/// An Error unless the library that is loaded has the ABI of this header.
inline void check_abi() {
    if (moxin_abi_version() != MOXIN_ABI_VERSION) {
        throw Error(MOXIN_STATUS_INVALID_STATE, "this program was built for ABI " +
                                                    std::to_string(MOXIN_ABI_VERSION) +
                                                    " of libmoxin_vlm, and the library has " +
                                                    std::to_string(moxin_abi_version()));
    }
}

/// A model in memory.
class Model {
public:
    /// Loads a Hugging Face folder. Progress has MOXIN_STAGE_LOAD.
    explicit Model(std::string_view path, const ModelOptions &options = {}, Op op = {}) {
        check_abi();
        detail::RunningOp running(std::move(op));
        std::string folder(path);
        running.run([&] {
            handle_.reset(detail::make<moxin_model>(moxin_model_load, folder.c_str(), &options,
                                                    running.get()));
        });
    }

    /// What a folder holds, from its files' headers alone.
    static moxin_model_info inspect(std::string_view path) {
        return detail::get<moxin_model_info>(moxin_model_inspect, std::string(path).c_str());
    }

    /// The memory that loading and a session will take, from the files' headers alone.
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

    /// A value of config.json by its dotted path.
    std::string metadata(std::string_view key) const {
        moxin_str value{};
        detail::call(moxin_model_metadata, get(), std::string(key).c_str(), &value);
        return detail::copy(value);
    }

    /// Positions that a picture of this size takes in a conversation.
    std::uint32_t image_tokens(std::uint32_t width, std::uint32_t height,
                               const PixelBudget &budget = {}) const {
        std::uint32_t tokens = 0;
        detail::call(moxin_model_image_tokens, get(), width, height, &budget, &tokens);
        return tokens;
    }

    /// Runs the vision encoders. Progress has MOXIN_STAGE_ENCODE.
    Embedding encode(const Image &image, Op op = {}, const PixelBudget &budget = {}) const {
        detail::RunningOp running(std::move(op));
        Embedding made;
        running.run([&] {
            made.handle_.reset(detail::make<moxin_embedding>(moxin_model_encode_image, get(),
                                                             image.get(), &budget, running.get()));
        });
        return made;
    }

    /// Quantizes the model in memory. Progress has MOXIN_STAGE_QUANTIZE.
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

    /// Writes the model as it is now to a folder that can be loaded. Progress has MOXIN_STAGE_SAVE.
    ///
    /// With overwrite an empty folder is replaced, or a model's: one that holds files alone, among
    /// them a config.json with a "model_type". Never the folder that the model comes from, nor one
    /// that holds it: see moxin_model_save.
    void save(std::string_view directory, bool overwrite = false, Op op = {}) const {
        std::string folder(directory);
        detail::RunningOp running(std::move(op));
        running.run([&] {
            detail::call(moxin_model_save, get(), folder.c_str(), overwrite, running.get());
        });
    }

    /// Frees the weights, though sessions still hold the model; their calls then throw.
    void unload() { detail::call(moxin_model_unload, get()); }

    const moxin_model *get() const noexcept { return handle_.get(); }

private:
    detail::Handle<moxin_model, moxin_model_free> handle_;
};

/// What one step brought; the fields are those of moxin_event, and its own for as long as one
/// likes.
struct Event {
    moxin_event_kind kind = MOXIN_EVENT_KIND_PREFILL;
    moxin_finish_reason finish = MOXIN_FINISH_REASON_NONE;
    std::string text;
    std::int32_t token_id = -1;
    float logprob = 0;
    std::uint32_t done = 0;
    std::uint32_t total = 0;
    /// The likeliest tokens, as many as the session's `logprobs` asks for.
    std::vector<moxin_token_logprob> top;
    /// What went wrong, where finish is MOXIN_FINISH_REASON_ERROR.
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

/// The events of one answer, for a range-for; each step of the loop does one step of the session.
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

    /// Does the first step. Once only: a second begin goes on where the first one is.
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

/// A stream that the library pushes, from generate_start until destroy.
class Push {
public:
    Push(std::function<bool(const Event &)> on_event, Op op)
        : on_event_(std::move(on_event)), op_(std::move(op)) {}

    /// Begins. The library owns it from here, and destroys it also where it cannot begin.
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
        push.reset(); // what the callbacks hold goes before the one who waits goes on
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

/// A conversation with a model. It keeps what it needs of the model alive.
class Session {
public:
    explicit Session(const Model &model, const SessionOptions &options = {})
        : handle_(options.with_params([&](const moxin_session_params *params) {
              return detail::make<moxin_session>(moxin_session_new, model.get(), params);
          })) {}

    void add_text(moxin_role role, std::string_view text) {
        // An empty view may have no data, and C wants some.
        detail::call(moxin_session_add_text, get(), role, text.empty() ? "" : text.data(),
                     text.size());
    }

    /// Adds prompt text as it is: control tokens spelt in it are control tokens. See
    /// moxin_session_add_prompt.
    void add_prompt(std::string_view text) {
        detail::call(moxin_session_add_prompt, get(), text.empty() ? "" : text.data(), text.size());
    }

    /// moxin_session_add_image.
    void add_image(const Image &image, const PixelBudget &budget = {}) {
        detail::call(moxin_session_add_image, get(), image.get(), &budget);
    }

    void add_embedding(const Embedding &embedding) {
        detail::call(moxin_session_add_embedding, get(), embedding.get());
    }

    /// Does the answer's work up to its first token. Progress has MOXIN_STAGE_ENCODE and
    /// MOXIN_STAGE_PREFILL.
    void prefill(Op op = {}) {
        detail::RunningOp running(std::move(op));
        running.run([&] { detail::call(moxin_session_prefill, get(), running.get()); });
    }

    /// One chunk of the prompt or one token.
    Event step() { return Event(detail::get<moxin_event>(moxin_session_step, get())); }

    /// The answer, a step at a time: `for (const moxin::Event &event : session.generate())`. A
    /// failure throws from the loop. Leaving the loop leaves the answer as it is: generate() again
    /// goes on with it, cancel() and a last step take it back. The session must live meanwhile.
    Events generate() { return Events(get()); }

    /// The answer, pushed: on_event gets each event, on a thread of the library, and cancels by
    /// returning false. The last event is FINISHED; then on_event is destroyed, and then the future
    /// is ready. It has the finish reason, or throws what on_event threw, or the Error that ended
    /// the answer. The future may be dropped: the answer goes on. When the process ends, it may
    /// never become ready: do not wait for it in an exit handler or the destructor of a global. The
    /// op's progress must be empty.
    std::future<moxin_finish_reason> start(std::function<bool(const Event &)> on_event,
                                           Op op = {}) {
        return detail::Push::start(
            get(), std::make_unique<detail::Push>(std::move(on_event), std::move(op)));
    }

    /// Ends the answer that is being generated, or a prefill, from any thread, within a layer.
    void cancel() const noexcept { moxin_session_cancel(get()); }

    /// A second session with the same conversation, which goes its own way from here.
    Session fork() const { return Session(detail::make<moxin_session>(moxin_session_fork, get())); }

    /// Has answers from the next on generated with other options: all of them are replaced.
    void set_options(const SessionOptions &options) {
        options.with_params([&](const moxin_session_params *params) {
            detail::call(moxin_session_set_params, get(), params);
            return 0;
        });
    }

    /// Forgets all but the first messages.
    void rewind(std::size_t messages_to_keep) {
        detail::call(moxin_session_rewind, get(), messages_to_keep);
    }

    /// Forgets the conversation.
    void reset() { detail::call(moxin_session_reset, get()); }

    /// Counts and times of the latest turn.
    moxin_stats stats() const { return detail::get<moxin_stats>(moxin_session_stats, get()); }

    const moxin_session *get() const noexcept { return handle_.get(); }

private:
    explicit Session(moxin_session *session) : handle_(session) {}

    detail::Handle<moxin_session, moxin_session_free> handle_;
};

// The library as a whole.

/// Such as "0.1.0".
inline std::string version() { return moxin_version(); }

/// Version, ABI, MLX, backends and target, as JSON.
inline std::string build_info() { return moxin_build_info(); }

/// Whether models can run on one of MOXIN_BACKEND_*, here and now.
inline bool backend_available(moxin_backend backend) { return moxin_backend_available(backend); }

/// Where Metal's kernels, mlx.metallib, lie; before anything else is called.
inline void set_metallib_path(std::string_view path) {
    detail::call(moxin_set_metallib_path, std::string(path).c_str());
}

/// Told what the library has to say, on a thread for it, up to a MOXIN_LOG_LEVEL_*.
using Log =
    std::function<void(moxin_log_level level, std::string_view target, std::string_view message)>;

/// Sets the log function in place of an earlier one; an empty one turns the log off. The earlier
/// one is destroyed on the log's thread, maybe later.
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
        } catch (...) { // there is no call to throw it from
        }
    };
    auto destroy = [](void *self) noexcept { delete static_cast<Log *>(self); };
    detail::call(moxin_set_log, static_cast<moxin_log_fn>(pass_on), max_level, owned.release(),
                 static_cast<moxin_destroy_fn>(destroy));
}

/// Lets nothing compute, until resume: for an app that goes to the background.
inline void suspend(std::chrono::duration<std::uint32_t, std::milli> drain_timeout) {
    detail::call(moxin_suspend, drain_timeout.count());
}

inline void resume() noexcept { moxin_resume(); }

inline moxin_memory_stats memory_stats() {
    return detail::get<moxin_memory_stats>(moxin_memory_stats_get);
}

/// Bytes that may be in use, and that MLX may keep for reuse; UINT64_MAX for no limit but the
/// machine's.
inline void set_memory_limits(std::uint64_t total_bytes, std::uint64_t cache_bytes) {
    detail::call(moxin_memory_set_limits, total_bytes, cache_bytes);
}

/// Sets the number of threads of this library's own kernels for the CPU; 0 for as many as there are
/// cores.
inline void set_cpu_threads(std::uint32_t threads) {
    moxin_status status = moxin_set_cpu_threads(threads);
    if (status == MOXIN_STATUS_INVALID_ARGUMENT) {
        throw Error(status,
                    "too many threads: at most four for each CPU, or 64 where that is more");
    }
    detail::check(status, nullptr);
}

/// Gives back what is kept for reuse.
inline void trim_memory() noexcept { moxin_memory_trim(); }

} // namespace moxin

#endif // MOXIN_VLM_HPP
