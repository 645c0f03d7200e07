import CMoxinVLM

#if canImport(os)
    import os
#endif

/// The library's log.
public enum VLMLog {
    /// The log level. Each level includes those before it.
    public enum Level: Sendable, Comparable, CaseIterable {
        /// Nothing.
        case off
        /// Failures.
        case error
        /// Unexpected conditions, such as a request that was refused for lack of memory.
        case warning
        /// Completed work: a loaded model, an answer, and how long it took.
        case info
        /// Details, and every error that a call returned.
        case debug
        /// Everything.
        case trace

        var rawValue: moxin_log_level {
            switch self {
            case .off: moxin_log_level(MOXIN_LOG_LEVEL_OFF)
            case .error: moxin_log_level(MOXIN_LOG_LEVEL_ERROR)
            case .warning: moxin_log_level(MOXIN_LOG_LEVEL_WARN)
            case .info: moxin_log_level(MOXIN_LOG_LEVEL_INFO)
            case .debug: moxin_log_level(MOXIN_LOG_LEVEL_DEBUG)
            case .trace: moxin_log_level(MOXIN_LOG_LEVEL_TRACE)
            }
        }
    }

    /// One message.
    public struct Message: Sendable, Equatable {
        /// Its level.
        public var level: Level
        /// The module that it comes from.
        public var target: String
        /// The text.
        public var text: String
    }

    /// Sets the log handler and the level, replacing the previous handler; `nil` disables logging.
    ///
    /// The handler is called on a dedicated thread of the library, with one message at a time.
    public static func set(_ level: Level, handler: (@Sendable (Message) -> Void)?) throws {
        try VLMRuntime.requireABI()
        guard let handler else {
            return try check { moxin_set_log(nil, level.rawValue, nil, nil, $0) }
        }
        let receiver = Unmanaged.passRetained(Receiver(handler: handler)).toOpaque()
        try check { error in
            moxin_set_log(
                { receiver, level, target, text in
                    guard let receiver else { return }
                    let level = Level.allCases.first { $0.rawValue == level } ?? .trace
                    let message = Message(level: level, target: String(target), text: String(text))
                    Unmanaged<Receiver>.fromOpaque(receiver).takeUnretainedValue().handler(message)
                }, level.rawValue, receiver,
                { receiver in
                    if let receiver {
                        Unmanaged<Receiver>.fromOpaque(receiver).release()
                    }
                }, error)
        }
    }

    #if canImport(os)
        /// Sends messages up to a level to the system's log, where Console shows them under the
        /// subsystem `moxin-vlm`.
        public static func useSystemLog(_ level: Level = .info) throws {
            try set(level) { message in
                let logger = Logger(subsystem: "moxin-vlm", category: message.target)
                logger.log(level: message.level.systemLevel, "\(message.text, privacy: .public)")
            }
        }
    #endif
}

private final class Receiver: Sendable {
    let handler: @Sendable (VLMLog.Message) -> Void

    init(handler: @escaping @Sendable (VLMLog.Message) -> Void) {
        self.handler = handler
    }
}

#if canImport(os)
    extension VLMLog.Level {
        fileprivate var systemLevel: OSLogType {
            switch self {
            case .off, .trace, .debug: .debug
            case .info: .info
            case .warning: .default
            case .error: .error
            }
        }
    }
#endif
