//! The texts of the reference that are not in the header's comments.

/// A section of the page: its title, its introduction, and the prefixes of the names in it. If
/// several prefixes match, the longest applies.
pub struct Topic {
    pub title: &'static str,
    pub about: &'static str,
    pub names: &'static [&'static str],
}

pub const INTRODUCTION: &str = "\
`libmoxin_vlm` shows pictures to a vision-language model and streams its answers. Its C interface is
a single header, [moxin_vlm.h](../include/moxin_vlm.h), for C99 or later and C++11 or later. This
page has the content of the header, ordered by topic. The [README](../README.md#c) has a first
program, and [describe.c](../examples/c/describe.c) is a longer one.";

pub const PICTURE: &str = "\
![Three diagrams. The states of a session: empty, asked, reading, generating, answered, and how a
turn is rolled back. Ownership: each handle is freed by its own function, in any order; sessions
keep the weights. Threads: calls wait for the one engine thread; progress callbacks run on the
calling thread, streams and the log each on a thread of their own.](c-api.svg)";

pub const STATUSES: &str = "\
*Any function* means every function with a last parameter `error`. Other functions are listed if
their comments name the error.";

/// Any function may fail with these, whatever its comment says.
pub const ANY: [&str; 3] = ["NULL_ARGUMENT", "INVALID_ARGUMENT", "PANIC"];

/// What to do about each status.
pub const ADVICE: [(&str, &str); 18] = [
    ("OK", "Continue."),
    (
        "NULL_ARGUMENT",
        "Fix the program; the message names the parameter.",
    ),
    (
        "INVALID_ARGUMENT",
        "Fix the program; the message names the parameter, what was expected and what was found. \
         Structs need their _init function or their struct_size.",
    ),
    (
        "INVALID_STATE",
        "Do what the message says first: finish or cancel the answer, add a question, load the \
         model again, or start a new session if the model takes no further picture.",
    ),
    (
        "CANCELLED",
        "Nothing; you asked for it. In a session the turn was rolled back; add it again to ask \
         again.",
    ),
    (
        "TIMEOUT",
        "Try again with more time. After moxin_suspend, something is still being computed: call \
         it again to wait longer before the app moves to the background.",
    ),
    (
        "BUSY",
        "Wait for the other operation or for the stream's last event, or end it with \
         moxin_session_cancel. Use two sessions for two answers at once.",
    ),
    (
        "SUSPENDED",
        "Call moxin_resume when the app may compute again, then repeat the call. A conversation \
         continues where it was.",
    ),
    (
        "NOT_FOUND",
        "Fix the path or the key; the message names what is missing and what it was for.",
    ),
    (
        "IO",
        "Check the file, its permissions, and the disk; the message names the file, and \
         moxin_error_cause has the system's message.",
    ),
    (
        "CORRUPT_MODEL",
        "Download the file again, because it may be incomplete; the message names it and the \
         field or tensor.",
    ),
    (
        "UNSUPPORTED_MODEL",
        "Use another model: \"models\" in moxin_build_info lists the supported kinds.",
    ),
    (
        "UNSUPPORTED_IMAGE",
        "Convert the picture to a format of moxin_image_from_file, make it smaller, or raise \
         max_pixels.",
    ),
    (
        "CONTEXT_FULL",
        "Ask a shorter question, remove messages with moxin_session_rewind or \
         moxin_session_reset, or start a session with a larger max_context.",
    ),
    (
        "OUT_OF_MEMORY",
        "Free sessions, models and pictures, call moxin_memory_trim, use a smaller max_context, \
         or raise the limit; the message has both figures. moxin_model_estimate computes them in \
         advance.",
    ),
    (
        "BACKEND_UNAVAILABLE",
        "Use MOXIN_BACKEND_AUTO, or call moxin_backend_available first. Metal needs \
         mlx.metallib: see moxin_set_metallib_path.",
    ),
    (
        "BACKEND",
        "Try again, perhaps after moxin_memory_trim. If it persists, report it with the message, \
         which includes MLX's.",
    ),
    (
        "PANIC",
        "Report it with the message. The turn was rolled back; the next call works.",
    ),
];

pub const TOPICS: [Topic; 12] = [
    Topic {
        title: "Statuses",
        about: "",
        names: &["moxin_status"],
    },
    Topic {
        title: "Errors",
        about: "If a function's `error` is not NULL, a failure stores a message for people there, with \
            its causes.",
        names: &["moxin_error"],
    },
    Topic {
        title: "Library",
        about: "Version and build information, logging, and suspending the library while the app is \
            in the background.",
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
        about: "Options for long calls: progress, a cancel object, and a time limit.",
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
        title: "Videos",
        about: "Videos, from frames or animated files.",
        names: &["moxin_video"],
    },
    Topic {
        title: "Embeddings",
        about: "Pictures and videos that are encoded ahead of time, for use in several sessions.",
        names: &[
            "moxin_embedding",
            "moxin_model_encode_image",
            "moxin_model_encode_video",
        ],
    },
    Topic {
        title: "Sessions",
        about: "Conversations: adding texts, pictures and videos, and going back.",
        names: &["moxin_session", "moxin_role"],
    },
    Topic {
        title: "Generating",
        about: "Answers, step by step or as a stream.",
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
        title: "Boxes and points",
        about: "Places in a picture that an answer names, in the picture's own pixels.",
        names: &["moxin_location", "moxin_locations", "moxin_model_locate"],
    },
    Topic {
        title: "Memory",
        about: "The memory used in this process, and its limits.",
        names: &["moxin_memory"],
    },
];
