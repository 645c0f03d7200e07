import Foundation

/// What one step of an answer brought.
public enum GenerationEvent: Sendable, Equatable {
    /// Part of the prompt was read: `done` of `total` positions. The first such event may be the
    /// picture's encoding, with `done` 0.
    case prefill(done: Int, total: Int)
    /// Text that became complete, empty while the bytes of a character are waiting, and the token
    /// that brought it; `nil` for what was still waiting at the end.
    case text(String, Token?)
    /// The answer is complete.
    case finished(GenerationStats, StopReason)
}

/// An answer, as it is generated: `for try await event in session.stream("What is this?")`.
///
/// It is cold: nothing is asked before the first event is, and each loop over it asks anew. It is
/// pulled: a step is computed when an event is asked for, never ahead. Leaving the loop, or
/// cancelling its task, takes the turn back, and the session is ready for the next; a loop that was
/// cancelled throws `CancellationError`, so that an answer that ended without an error is complete.
public struct GenerationStream: AsyncSequence, Sendable {
    public typealias Element = GenerationEvent

    let session: VLMSession
    let request: Request

    public func makeAsyncIterator() -> Iterator {
        Iterator(generation: Generation(session: session, request: request))
    }

    public struct Iterator: AsyncIteratorProtocol {
        let generation: Generation

        /// Computes until there is an event; `nil` after ``GenerationEvent/finished(_:_:)``.
        public mutating func next() async throws -> GenerationEvent? {
            try await generation.next()
        }
    }

    /// The texts alone, without empty ones.
    public var text: TextStream { TextStream(stream: self) }

    /// The complete answer.
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

        /// The next text that is not empty.
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

/// What a stream asks.
struct Request: Sendable {
    enum Question: Sendable {
        case new(Turn, [VLMImage])
        /// The last question of the conversation, once more.
        case again
    }

    var question: Question
    var options: GenerationOptions?
}

/// One answer under way. Its session holds it weakly: where the loop over it is left, it goes, and
/// the session takes the turn back.
final class Generation: @unchecked Sendable {
    enum Phase {
        case fresh
        case running
        /// The answer is complete; this event is still to be told.
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
    /// The session's handle while it works for this answer. Guarded by `lock`.
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

    /// Its next step is the last. Nothing but an atomic store in the library.
    func cancel() {
        lock.withLock { running?.cancel() }
    }

    /// From now on a cancelled task reaches the engine.
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
