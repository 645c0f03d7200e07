// Swift's Observation is part of every Apple system, but programs on Linux do not link with it
// before Swift 6.2.
#if canImport(Darwin)
    import Observation
#endif

/// A conversation for a view: the messages, the answer as it grows, and a field for the next
/// question.
///
/// On Apple systems it is observable. The answer's text changes at most about thirty times per
/// second, however fast tokens arrive, so that a view has time to draw. A turn that is stopped or
/// fails disappears, as it does from the session; its question returns to ``draft``.
@MainActor
#if canImport(Darwin)
    @Observable
#endif
public final class VLMChat {
    /// A message, with an identity for lists.
    public struct Message: Sendable, Equatable, Identifiable {
        /// Its number in the conversation.
        public let id: Int
        /// Its author.
        public let role: Turn.Role
        /// Its text so far.
        public internal(set) var text: String
    }

    /// The state of the chat.
    public enum Phase: Sendable, Equatable {
        /// Waiting for a question.
        case idle
        /// Reading the picture and the question: `done` of `total` positions.
        case reading(done: Int, total: Int)
        /// Generating an answer.
        case answering
    }

    /// The messages, including the answer in progress.
    public private(set) var messages: [Message]
    /// The next question, for a text field to edit.
    public var draft = ""
    /// The current state.
    public private(set) var phase = Phase.idle
    /// Counts and times of the latest answer.
    public private(set) var stats: GenerationStats?
    /// Why the latest answer failed; `nil` if it did not.
    public private(set) var error: (any Error)?

    /// The underlying conversation.
    public let session: VLMSession
    private let interval: Duration
    private let answer = Answer()

    /// Creates a chat in a session.
    ///
    /// - Parameters:
    ///   - session: A session that nothing else uses at the same time.
    ///   - transcript: The messages that the session was created with.
    ///   - interval: The minimum time between two changes of the answer's text.
    public init(
        session: VLMSession, transcript: [Turn] = [], interval: Duration = .milliseconds(33)
    ) {
        self.session = session
        self.interval = interval
        messages = transcript.enumerated().map { Message(id: $0, role: $1.role, text: $1.text) }
    }

    /// Whether ``send(images:options:)`` would send something.
    public var canSend: Bool {
        phase == .idle && !draft.allSatisfy(\.isWhitespace)
    }

    /// Asks the question in ``draft``. Does nothing if it is empty, or while an answer is in
    /// progress.
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

    /// Stops the answer in progress, within a step.
    public func stop() {
        answer.task?.cancel()
    }

    /// Waits until no answer is in progress.
    public func settle() async {
        await answer.task?.value
    }

    /// Forwards events, and combines texts that follow each other quickly.
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

/// The task of the answer in progress, which ends with its chat.
@MainActor
private final class Answer {
    var task: Task<Void, Never>?

    deinit {
        task?.cancel()
    }
}
