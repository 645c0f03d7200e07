// Swift's Observation is part of every Apple system, but programs on Linux do not link with it
// before Swift 6.2.
#if canImport(Darwin)
    import Observation
#endif

/// A conversation for a view to show: what was said, the answer as it grows, and a field for the
/// next question.
///
/// On Apple systems it is observable. The answer's text changes at most some thirty times a second,
/// however fast tokens come, so that a view has time to draw. A turn that is stopped or fails
/// disappears, as it does from the session; its question goes back to ``draft``.
@MainActor
#if canImport(Darwin)
    @Observable
#endif
public final class VLMChat {
    /// A message, with an identity for lists.
    public struct Message: Sendable, Equatable, Identifiable {
        /// Its number in the conversation.
        public let id: Int
        /// Whose it is.
        public let role: Turn.Role
        /// What it says, so far.
        public internal(set) var text: String
    }

    /// What the chat is doing.
    public enum Phase: Sendable, Equatable {
        /// Waiting for a question.
        case idle
        /// Reading the picture and the question: so many of so many positions.
        case reading(done: Int, total: Int)
        /// Giving an answer.
        case answering
    }

    /// What was said, the answer under way included.
    public private(set) var messages: [Message]
    /// The next question, for a text field to edit.
    public var draft = ""
    /// What it is doing.
    public private(set) var phase = Phase.idle
    /// Counts and times of the latest answer.
    public private(set) var stats: GenerationStats?
    /// Why the latest answer failed; `nil` where it did not.
    public private(set) var error: (any Error)?

    /// The conversation behind it.
    public let session: VLMSession
    private let interval: Duration
    private let answer = Answer()

    /// A chat in a session.
    ///
    /// - Parameters:
    ///   - session: Nothing else should ask it meanwhile.
    ///   - transcript: What the session was begun with.
    ///   - interval: The shortest time between two changes of the answer's text.
    public init(
        session: VLMSession, transcript: [Turn] = [], interval: Duration = .milliseconds(33)
    ) {
        self.session = session
        self.interval = interval
        messages = transcript.enumerated().map { Message(id: $0, role: $1.role, text: $1.text) }
    }

    /// Whether ``send(images:options:)`` would do something.
    public var canSend: Bool {
        phase == .idle && !draft.allSatisfy(\.isWhitespace)
    }

    /// Asks what ``draft`` says. Does nothing where that is empty, or while an answer is given.
    public func send(images: [VLMImage] = [], options: GenerationOptions? = nil) {
        guard canSend else { return }
        let question = draft
        draft = ""
        error = nil
        phase = .reading(done: 0, total: 0)
        messages.append(Message(id: messages.count, role: .user, text: question))
        messages.append(Message(id: messages.count, role: .assistant, text: ""))
        let stream = session.stream(question, images: images, options: options)
        answer.task = Task { [weak self, interval] in
            do {
                try await Self.show(stream, every: interval) { [weak self] in self?.take($0) }
                self?.end(question, nil)
            } catch {
                self?.end(question, error)
            }
        }
    }

    /// Ends the answer under way, within a step.
    public func stop() {
        answer.task?.cancel()
    }

    /// Waits until no answer is under way.
    public func settle() async {
        await answer.task?.value
    }

    /// Passes events on, with texts that follow each other quickly as one.
    private static func show(
        _ stream: GenerationStream, every interval: Duration, _ take: (GenerationEvent) -> Void
    ) async throws {
        var waiting = ""
        var last = ContinuousClock.now - interval
        for try await event in stream {
            if case .text(let text, _) = event {
                waiting += text
                guard ContinuousClock.now - last >= interval else { continue }
            }
            if !waiting.isEmpty {
                take(.text(waiting, nil))
                waiting = ""
                last = .now
            }
            if case .text = event { continue }
            take(event)
        }
    }

    private func take(_ event: GenerationEvent) {
        switch event {
        case .prefill(let done, let total): phase = .reading(done: done, total: total)
        case .text(let text, _):
            phase = .answering
            messages[messages.count - 1].text += text
        case .finished(let stats, _): self.stats = stats
        }
    }

    private func end(_ question: String, _ failure: (any Error)?) {
        if let failure {
            messages.removeLast(2)
            if draft.isEmpty { draft = question }
            error = failure is CancellationError ? nil : failure
        }
        phase = .idle
        answer.task = nil
    }
}

/// The task of the answer under way, which ends with its chat.
@MainActor
private final class Answer {
    var task: Task<Void, Never>?

    deinit {
        task?.cancel()
    }
}
