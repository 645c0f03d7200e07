import CMoxinVLM
import Foundation

/// Why a call failed. Work whose task was cancelled throws `CancellationError` instead.
public enum VLMError: LocalizedError, Sendable, Equatable {
    /// A bug in the package: it passed a null pointer to the library.
    case nullArgument(Details)
    /// A value is out of range, or an embedding belongs to another model.
    case invalidArgument(Details)
    /// The object is in a state that does not allow the call, for example after a model was
    /// unloaded.
    case invalidState(Details)
    /// The operation was cancelled, but not through its task. All objects stay usable.
    case cancelled(Details)
    /// The operation exceeded its time limit.
    case timedOut(Details)
    /// The session is already answering, or reading ahead.
    case sessionBusy(Details)
    /// The library is suspended; see ``VLMRuntime/quiesce(timeout:)``.
    case suspended(Details)
    /// A file or folder does not exist.
    case notFound(Details)
    /// Reading or writing failed.
    case io(Details)
    /// A file of the model is damaged or inconsistent.
    case corruptModel(Details)
    /// The library does not support this kind of model.
    case unsupportedModel(Details)
    /// An image cannot be read, is too large, or has an unknown format.
    case unsupportedImage(Details)
    /// The prompt does not fit into the context.
    case contextFull(Details)
    /// The operation would exceed the memory limit; nothing was allocated.
    case outOfMemory(Details)
    /// The requested backend is not available on this machine or in this build.
    case backendUnavailable(Details)
    /// MLX reported an error.
    case backend(Details)
    /// A bug in the library.
    case internalFailure(Details)
    /// The library has another ABI version than this package.
    case incompatibleLibrary(expected: UInt32, found: UInt32)
    /// A newer library returned a status that this package does not know.
    case unknown(status: UInt32, Details)

    /// The library's description of an error.
    public struct Details: Sendable, Equatable {
        /// A message for people: what went wrong, where, and what to do.
        public var message: String
        /// The causes, such as the system's message for a file that could not be read; the nearest
        /// cause first.
        public var causes: [String]

        /// Creates a description.
        public init(message: String, causes: [String] = []) {
            self.message = message
            self.causes = causes
        }
    }

    /// The library's description of the error.
    public var details: Details {
        switch self {
        case .nullArgument(let details), .invalidArgument(let details), .invalidState(let details),
            .cancelled(let details),
            .timedOut(let details), .sessionBusy(let details), .suspended(let details),
            .notFound(let details), .io(let details),
            .corruptModel(let details), .unsupportedModel(let details),
            .unsupportedImage(let details), .contextFull(let details),
            .outOfMemory(let details), .backendUnavailable(let details), .backend(let details),
            .internalFailure(let details),
            .unknown(_, let details):
            return details
        case .incompatibleLibrary(let expected, let found):
            return Details(
                message:
                    "the library has ABI \(found); this package was written for ABI \(expected)")
        }
    }

    /// What went wrong, and where.
    public var errorDescription: String? { details.message }

    /// The original cause.
    public var failureReason: String? { details.causes.last }

    /// What a person, or the app, can do about it.
    public var recoverySuggestion: String? {
        switch self {
        case .nullArgument, .internalFailure, .unknown:
            "This is a bug in moxin-vlm. Please report it with this message."
        case .invalidArgument: "Fix the value that the message names."
        case .invalidState: "Do what the message says first, or start a new session."
        case .cancelled: "Ask again."
        case .timedOut: "Allow more time, or reduce the work: a shorter answer, a smaller context."
        case .sessionBusy:
            "Wait for the current answer, or cancel it. Use two sessions for two answers at once."
        case .suspended: "Call VLMRuntime.resume() when the app is in the foreground again."
        case .notFound: "Check the path that the message names, and that the download is complete."
        case .io:
            "Check the permissions of the file and its folder, and that the disk is not full."
        case .corruptModel: "Download the model again."
        case .unsupportedModel: "Choose one of the models that VLMRuntime.buildInfo lists."
        case .unsupportedImage: "Choose another picture: PNG, JPEG, WebP, GIF, BMP or TIFF."
        case .contextFull:
            "Ask a shorter question, rewind or reset the session, or raise maxContext."
        case .outOfMemory:
            "Load the model quantized, lower maxContext, unload other models, or close other apps."
        case .backendUnavailable: "Choose another backend, or .automatic."
        case .backend: "Try again. If it persists, load the model again."
        case .incompatibleLibrary: "Use the library and the Swift package of the same release."
        }
    }
}

extension VLMError {
    /// Creates the error for a status other than `MOXIN_STATUS_OK`.
    init(status: UInt32, details: Details) {
        let make = VLMError.statuses[status] ?? { .unknown(status: status, $0) }
        self = make(details)
    }

    /// Every status of the header.
    static let statuses: [UInt32: @Sendable (Details) -> VLMError] = [
        MOXIN_STATUS_NULL_ARGUMENT.rawValue: { .nullArgument($0) },
        MOXIN_STATUS_INVALID_ARGUMENT.rawValue: { .invalidArgument($0) },
        MOXIN_STATUS_INVALID_STATE.rawValue: { .invalidState($0) },
        MOXIN_STATUS_CANCELLED.rawValue: { .cancelled($0) },
        MOXIN_STATUS_TIMEOUT.rawValue: { .timedOut($0) },
        MOXIN_STATUS_BUSY.rawValue: { .sessionBusy($0) },
        MOXIN_STATUS_SUSPENDED.rawValue: { .suspended($0) },
        MOXIN_STATUS_NOT_FOUND.rawValue: { .notFound($0) },
        MOXIN_STATUS_IO.rawValue: { .io($0) },
        MOXIN_STATUS_CORRUPT_MODEL.rawValue: { .corruptModel($0) },
        MOXIN_STATUS_UNSUPPORTED_MODEL.rawValue: { .unsupportedModel($0) },
        MOXIN_STATUS_UNSUPPORTED_IMAGE.rawValue: { .unsupportedImage($0) },
        MOXIN_STATUS_CONTEXT_FULL.rawValue: { .contextFull($0) },
        MOXIN_STATUS_OUT_OF_MEMORY.rawValue: { .outOfMemory($0) },
        MOXIN_STATUS_BACKEND_UNAVAILABLE.rawValue: { .backendUnavailable($0) },
        MOXIN_STATUS_BACKEND.rawValue: { .backend($0) },
        MOXIN_STATUS_PANIC.rawValue: { .internalFailure($0) },
    ]

    static let busy = VLMError.sessionBusy(
        Details(message: "the session is answering, or reading ahead, already"))
}

extension VLMError.Details {
    init(_ error: OpaquePointer?) {
        self.init(message: String(moxin_error_message(error)))
        var cause = moxin_error_cause(error)
        while let known = cause {
            causes.append(String(moxin_error_message(known)))
            cause = moxin_error_cause(known)
        }
    }
}
