import Foundation

/// The result of one step of an answer.
public enum GenerationEvent: Sendable, Equatable {
    /// Part of the prompt was read: `done` of `total` positions. The first such event may follow
    /// the encoding of a picture, with `done` 0.
    case prefill(done: Int, total: Int)
    /// Text that is now complete, empty while a character is incomplete, and the token that
    /// completed it; `nil` for text that was held back until the end.
    case text(String, Token?)
    /// The answer is complete.
    case finished(GenerationStats, StopReason)
}

/// An answer as it is generated: `for try await event in session.stream("What is this?")`.
///
/// The stream is cold: the question is asked when the first event is requested, and each loop over
/// the stream asks again. It is pulled: a step is computed only when an event is requested. If you
/// leave the loop or cancel its task, the turn is rolled back, and the session is ready for the
/// next question. A cancelled loop throws `CancellationError`, so an answer that ended without an
/// error is complete.
public struct GenerationStream: AsyncSequence, Sendable {
    public typealias Element = GenerationEvent

    let session: VLMSession
    let request: Request

    public func makeAsyncIterator() -> Iterator {
        Iterator(generation: Generation(session: session, request: request))
    }

    public struct Iterator: AsyncIteratorProtocol {
        let generation: Generation

        /// Computes the next event; returns `nil` after ``GenerationEvent/finished(_:_:)``.
        public mutating func next() async throws -> GenerationEvent? {
            try await generation.next()
        }
    }

    /// Only the texts, without empty ones.
    public var text: TextStream { TextStream(stream: self) }

    /// Returns the complete answer.
    public func response() async throws -> Response {
        var text = ""
        var tokens: [Token] = []
        for try await event in self {
            switch event {
            case .prefill: break
            case .text(let delta, let token):
                text += delta
                token.map { tokens.append($0) }
            case .finished(let stats, let reason):
                return Response(text: text, tokens: tokens, stopReason: reason, stats: stats)
            }
        }
        throw VLMError.internalFailure(.init(message: "the answer has no end"))
    }
}

/// The texts of an answer, as they become complete.
public struct TextStream: AsyncSequence, Sendable {
    public typealias Element = String

    let stream: GenerationStream

    public func makeAsyncIterator() -> Iterator {
        Iterator(events: stream.makeAsyncIterator())
    }

    public struct Iterator: AsyncIteratorProtocol {
        var events: GenerationStream.Iterator

        /// Returns the next text that is not empty.
        public mutating func next() async throws -> String? {
            while let event = try await events.next() {
                if case .text(let text, _) = event, !text.isEmpty {
                    return text
                }
            }
            return nil
        }
    }
}

/// The question of a stream.
struct Request: Sendable {
    enum Question: Sendable {
        case new(Turn, [VLMImage])
        /// The last question of the conversation again.
        case again
    }

    var question: Question
    var options: GenerationOptions?
}

/// An answer in progress. Its session references it weakly: when the loop over it is left, it is
/// freed, and the session rolls the turn back.
final class Generation: @unchecked Sendable {
    enum Phase {
        case fresh
        case running
        /// The answer is complete; this event is still to be delivered.
        case finishing(GenerationEvent)
        case ended
    }

    let session: VLMSession
    let request: Request
    /// Used on the engine's thread only.
    var phase = Phase.fresh
    /// Used on the engine's thread only.
    var question = Turn(role: .user, text: "")
    /// Used on the engine's thread only.
    var text = ""

    private let lock = NSLock()
    /// The session's handle while it works on this answer. Guarded by `lock`.
    private var running: Handle?

    init(session: VLMSession, request: Request) {
        self.session = session
        self.request = request
    }

    func next() async throws -> GenerationEvent? {
        try await withTaskCancellationHandler {
            try await session.next(of: self)
        } onCancel: {
            cancel()
        }
    }

    /// Makes the next step the last. Only an atomic store in the library.
    func cancel() {
        lock.withLock { running?.cancel() }
    }

    /// From now on, cancelling the task reaches the engine.
    func begin(on handle: Handle) {
        lock.withLock { running = handle }
        if Task.isCancelled {
            cancel()
        }
        phase = .running
    }

    func end(_ phase: Phase = .ended) {
        lock.withLock { running = nil }
        self.phase = phase
    }
}
