//! What the reference says beyond the header's comments.

/// Part of the page: a title, what it is about, and how the names begin that belong there. Where
/// several fit, the longest counts.
pub struct Topic {
    pub title: &'static str,
    pub about: &'static str,
    pub names: &'static [&'static str],
}

pub const INTRODUCTION: &str = "\
`libmoxin_vlm` shows a picture to a vision-language model and streams what the model says about it. Its C interface is one header,
[moxin_vlm.h](../include/moxin_vlm.h), for C99 and later and C++11 and later. This page says what the header says, put in order; a first
program stands in the [README](../README.md#c), a longer one in [describe.c](../examples/c/describe.c).";

pub const PICTURE: &str = "\
![Three drawings. The life of a session: empty, asked, reading, generating, answered, and how a turn is taken back. Who keeps whom alive: each
handle is freed by its own function, in any order; sessions keep the weights. Threads: calls queue for the one engine thread; progress is told
on the calling thread, streams and the log each on a thread of their own.](c-api.svg)";

pub const STATUSES: &str = "\
*Any function* stands for every one that has a last parameter `error`. The others are named where their comments say that they can fail so.";

/// Any function may fail with these, whatever its comment says.
pub const ANY: [&str; 3] = ["NULL_ARGUMENT", "INVALID_ARGUMENT", "PANIC"];

/// What can be done about each status.
pub const ADVICE: [(&str, &str); 18] = [
    ("OK", "Go on."),
    (
        "NULL_ARGUMENT",
        "Correct the program; the message names the parameter.",
    ),
    (
        "INVALID_ARGUMENT",
        "Correct the program; the message names the parameter, what was expected and what came. Structs need their _init function or \
         their struct_size.",
    ),
    (
        "INVALID_STATE",
        "Do first what the message says: finish or cancel the answer, add a question, load the model again. A new session, where the model \
         takes no second picture.",
    ),
    (
        "CANCELLED",
        "Nothing: it was asked for. In a session the turn was taken back; add it again to ask \
         again.",
    ),
    (
        "TIMEOUT",
        "Ask again with more time. After moxin_suspend something is still being computed: call it again to wait longer before the app \
         goes to the background.",
    ),
    (
        "BUSY",
        "Wait for the other operation, or for the stream's last event; or end it with moxin_session_cancel. For two answers at once take \
         two sessions.",
    ),
    (
        "SUSPENDED",
        "Call moxin_resume when the app may compute again, then repeat the call. A conversation \
         goes on where it was.",
    ),
    (
        "NOT_FOUND",
        "Correct the path or the key; the message names what is missing and what it was for.",
    ),
    (
        "IO",
        "See to the file, its rights, or the disk; the message names it, and moxin_error_cause has \
         the system's own words.",
    ),
    (
        "CORRUPT_MODEL",
        "Get the file anew, for a download that was cut off ends so; the message names it and the \
         field or tensor.",
    ),
    (
        "UNSUPPORTED_MODEL",
        "Take another model: \"models\" in moxin_build_info names the kinds that run.",
    ),
    (
        "UNSUPPORTED_IMAGE",
        "Convert the picture to a format of moxin_image_from_file, or make it smaller, or raise \
         max_pixels.",
    ),
    (
        "CONTEXT_FULL",
        "Ask less, forget messages with moxin_session_rewind or moxin_session_reset, or begin a \
         session with a larger max_context.",
    ),
    (
        "OUT_OF_MEMORY",
        "Free sessions, models and pictures, call moxin_memory_trim, take a smaller max_context, or raise the limit; the message has both \
         figures. moxin_model_estimate tells them before.",
    ),
    (
        "BACKEND_UNAVAILABLE",
        "Take MOXIN_BACKEND_AUTO, or ask moxin_backend_available before. For Metal see to \
         mlx.metallib: moxin_set_metallib_path.",
    ),
    (
        "BACKEND",
        "Try again, perhaps after moxin_memory_trim; where it stays so, report it with the \
         message, which has MLX's own words.",
    ),
    (
        "PANIC",
        "Report it, with the message. The turn was taken back; the next call works.",
    ),
];

pub const TOPICS: [Topic; 10] = [
    Topic {
        title: "Statuses",
        about: "",
        names: &["moxin_status"],
    },
    Topic {
        title: "Errors",
        about: "Where a function's `error` is not NULL, a failure leaves a text for people there, \
            and what lies behind it.",
        names: &["moxin_error"],
    },
    Topic {
        title: "Library",
        about: "What the library is, where its messages go, and how it rests while the app is in \
            the background.",
        names: &[
            "moxin_abi_version",
            "moxin_version",
            "moxin_build_info",
            "moxin_backend",
            "moxin_set_metallib_path",
            "moxin_set_log",
            "moxin_log",
            "moxin_set_cpu_threads",
            "moxin_suspend",
            "moxin_resume",
            "moxin_str",
            "moxin_strlen",
            "moxin_destroy_fn",
        ],
    },
    Topic {
        title: "Cancelling and operations",
        about: "What a program may attach to a call that takes long: progress, a cancel object, a \
            time limit.",
        names: &[
            "moxin_cancel",
            "moxin_op",
            "moxin_progress_fn",
            "moxin_stage",
        ],
    },
    Topic {
        title: "Models",
        about: "A model is loaded once and shared by all its sessions.",
        names: &[
            "moxin_model",
            "moxin_dtype",
            "moxin_cpu_kernels",
            "moxin_memory_estimate",
            "moxin_module_quant",
            "moxin_quant",
            "moxin_pixel_budget",
        ],
    },
    Topic {
        title: "Pictures",
        about: "Decoded pictures, from files or pixels.",
        names: &["moxin_image", "moxin_pixel_format"],
    },
    Topic {
        title: "Embeddings",
        about: "A picture encoded ahead, to be asked about in several sessions.",
        names: &["moxin_embedding", "moxin_model_encode_image"],
    },
    Topic {
        title: "Sessions",
        about: "A conversation about one picture: what is in it, before and between answers.",
        names: &["moxin_session", "moxin_role"],
    },
    Topic {
        title: "Generating",
        about: "Answers, pulled step by step or pushed as a stream.",
        names: &[
            "moxin_generate",
            "moxin_session_prefill",
            "moxin_session_cancel",
            "moxin_session_stats",
            "moxin_event",
            "moxin_finish_reason",
            "moxin_token_logprob",
            "moxin_stats",
        ],
    },
    Topic {
        title: "Memory",
        about: "What is held in this process, and its limits.",
        names: &["moxin_memory"],
    },
];
