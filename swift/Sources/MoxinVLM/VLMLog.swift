import CMoxinVLM

#if canImport(os)
    import os
#endif

/// What the library has to say about its work.
public enum VLMLog {
    /// How much is told. Each level has those before it.
    public enum Level: Sendable, Comparable, CaseIterable {
        /// Nothing.
        case off
        /// What went wrong.
        case error
        /// What may surprise, such as a refusal for want of memory.
        case warning
        /// What was done: a model loaded, an answer given, and how long it took.
        case info
        /// How it was done, and every error that a call returned.
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
        /// Where in the library it comes from.
        public var target: String
        /// What it says.
        public var text: String
    }

    /// Has messages up to a level go to `handler` from now on, in the place of the one before;
    /// `nil`: nowhere.
    ///
    /// It is called on a thread of the library that does nothing else, one message after the other.
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
        /// Has messages up to a level go to the system's log, where Console shows them under the
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
