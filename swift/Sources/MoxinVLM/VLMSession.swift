import CMoxinVLM
import Foundation

/// A message of a conversation.
public struct Turn: Sendable, Equatable, Codable {
    /// The author of a message.
    public enum Role: String, Sendable, Codable {
        /// Instructions before the conversation.
        case system
        /// A question.
        case user
        /// An answer.
        case assistant
        /// Prompt text that is used unchanged: see
        /// ``VLMSession/stream(rawPrompt:images:options:)``.
        case prompt
    }

    /// The author.
    public var role: Role
    /// The text.
    public var text: String

    /// Creates a message.
    public init(role: Role, text: String) {
        self.role = role
        self.text = text
    }
}

/// A conversation with a model.
///
/// Only one operation may run at a time: a second one throws ``VLMError/sessionBusy(_:)``. Use two
/// sessions for two answers at once.
public actor VLMSession {
    /// The messages so far. A question appears together with its complete answer; one that was
    /// cancelled or failed does not appear.
    public private(set) var transcript: [Turn]
    /// The default options of answers.
    public private(set) var options: GenerationOptions

    private let handle: Handle
    /// The options that the library's session has.
    private var appliedOptions: GenerationOptions
    private weak var generation: Generation?
    /// Whether the library's session may have a turn in progress: that of `generation`, or of one
    /// that was dropped and must still be rolled back.
    private var mayHaveTurn = false
    /// Whether the session is reading ahead.
    private var isReading = false
    /// The conversation's pictures. The library removes them when it rolls a first turn back; they
    /// are then added again.
    private var images: [VLMImage] = []
    private var hasLostImages = false
    /// Instructions before the conversation, which the library counts as a message.
    private let system: String?
    /// Whether the picture belongs to the whole conversation and to no message.
    private let keepsImages: Bool

    public nonisolated var unownedExecutor: UnownedSerialExecutor {
        EngineThread.shared.asUnownedSerialExecutor()
    }

    init(
        handle: Handle, options: GenerationOptions, system: String?, keepsImages: Bool,
        transcript: [Turn] = []
    ) {
        self.handle = handle
        self.options = options
        self.system = system
        self.keepsImages = keepsImages
        self.transcript = transcript
        appliedOptions = options
    }

    /// Answers a question.
    ///
    /// - Parameters:
    ///   - prompt: The question.
    ///   - images: The pictures it refers to; see ``ModelInfo/maxImages``.
    ///   - options: Options for this answer; `nil`: ``options``.
    /// - Throws: `CancellationError` if the task is cancelled; ``VLMError``. The turn is then
    ///   rolled back, with its pictures, and the session can take the next question.
    public func respond(
        to prompt: String, images: [VLMImage] = [], options: GenerationOptions? = nil
    ) async throws -> Response {
        try await stream(prompt, images: images, options: options).response()
    }

    /// Answers a question as a stream of events; see ``GenerationStream``. The question is asked
    /// when the first event is requested.
    public nonisolated func stream(
        _ prompt: String, images: [VLMImage] = [], options: GenerationOptions? = nil
    ) -> GenerationStream {
        GenerationStream(
            session: self,
            request: Request(
                question: .new(Turn(role: .user, text: prompt), images), options: options))
    }

    /// Answers prompt text unchanged, for prompts in a format of your own. Control tokens spelled
    /// in the text are control tokens. Nothing is added around it, except the `<s>` at the start of
    /// the whole prompt if it is missing. The answer is not trimmed at the start.
    ///
    /// Do not use it for text from users; ``stream(_:images:options:)`` never turns text into
    /// control tokens.
    public nonisolated func stream(
        rawPrompt prompt: String, images: [VLMImage] = [], options: GenerationOptions? = nil
    ) -> GenerationStream {
        GenerationStream(
            session: self,
            request: Request(
                question: .new(Turn(role: .prompt, text: prompt), images), options: options))
    }

    /// Answers the last question again and replaces its answer, for example with another seed. If
    /// this is cancelled, the question is rolled back as well.
    public nonisolated func regenerate(options: GenerationOptions? = nil) -> GenerationStream {
        GenerationStream(session: self, request: Request(question: .again, options: options))
    }

    /// Cancels the answer that is being generated, within a step: its stream throws
    /// ``VLMError/cancelled(_:)``. Does nothing if there is none. Cancelling the task has the same
    /// effect.
    public nonisolated func cancel() {
        handle.cancel()
    }

    /// Reads the pictures and the conversation ahead of time, while the user types a question, so
    /// that the first token of the answer comes sooner.
    ///
    /// Other sessions continue in the meantime.
    ///
    /// - Throws: ``VLMError/invalidState(_:)`` if there is nothing to read. If it throws for any
    ///   reason, `images` are not part of the conversation: pass them again.
    public func prewarm(
        images: [VLMImage] = [], timeout: Duration? = nil, progress: ProgressHandler? = nil
    ) async throws {
        try claim()
        isReading = true
        defer { isReading = false }
        do {
            try restoreImages()
            try add(images)
            try await Operation(timeout: timeout, progress: progress).runAside { [handle] op in
                try handle.call { moxin_session_prefill($0, op, $1) }
            }
            self.images += images
        } catch {
            // On failure the pictures stay in the library's session.
            try forgetQuestion()
            throw error
        }
    }

    /// Returns the number of positions that the prompt for a question would have, with the
    /// conversation so far and all pictures. Nothing is computed, and the question is not asked.
    ///
    /// - Throws: ``VLMError/contextFull(_:)`` if its length already shows that it cannot fit;
    ///   ``VLMError/sessionBusy(_:)`` while this session answers.
    public func promptTokens(for prompt: String, images: [VLMImage] = []) throws -> Int {
        try claim()
        try restoreImages()
        var tokens: UInt32 = 0
        let counted = Result {
            try add(images)
            try handle.add(.user, prompt)
            try handle.call { moxin_session_prompt_tokens($0, &tokens, $1) }
        }
        try forgetQuestion()
        try counted.get()
        return Int(tokens)
    }

    /// Copies the session with its conversation so far, for example to ask two questions about one
    /// picture without reading it twice.
    ///
    /// - Throws: ``VLMError/sessionBusy(_:)`` while this one answers; ``VLMError/outOfMemory(_:)``.
    public func fork() throws -> VLMSession {
        try claim()
        try restoreImages()
        let copy = try Handle(free: moxin_session_free) { place, error in
            handle.use { moxin_session_fork($0, place, error) }
        }
        return VLMSession(copying: self, handle: copy)
    }

    private init(copying session: isolated VLMSession, handle: Handle) {
        self.handle = handle
        options = session.options
        appliedOptions = session.appliedOptions
        system = session.system
        keepsImages = session.keepsImages
        transcript = session.transcript
        images = session.images
    }

    /// Returns the number of messages in the library's session for the first `count` of the
    /// transcript.
    private func messages(_ count: Int) -> Int {
        count + (system == nil ? 0 : 1)
    }

    /// Removes what was added since the last answer and is not being answered.
    private func forgetQuestion() throws {
        if transcript.isEmpty {
            try handle.call(moxin_session_reset)
            if let system {
                try handle.add(.system, system)
            }
            hasLostImages = true
        } else {
            try handle.call { [kept = messages(transcript.count)] in
                moxin_session_rewind($0, kept, $1)
            }
        }
    }

    /// Removes all but the first messages, with their pictures; a picture that comes before all
    /// messages, as with Moxin, stays. The part of the prompt that still matches is not read again.
    ///
    /// - Throws: ``VLMError/invalidArgument(_:)`` if there are fewer messages, or a question would
    ///   stay without its answer.
    public func rewind(toCount count: Int) throws {
        guard (0...transcript.count).contains(count), count.isMultiple(of: 2) else {
            throw VLMError.invalidArgument(
                .init(
                    message:
                        "\(count) of \(transcript.count) messages cannot be kept: give an even number, no larger"
                ))
        }
        try claim()
        try handle.call { [kept = messages(count)] in moxin_session_rewind($0, kept, $1) }
        transcript.removeLast(transcript.count - count)
        if count == 0, !keepsImages {
            images = []
        }
    }

    /// Removes the whole conversation and its pictures; the options stay.
    public func reset() throws {
        guard generation == nil, !isReading else { throw VLMError.busy }
        try handle.call(moxin_session_reset)
        if let system {
            try handle.add(.system, system)
        }
        mayHaveTurn = false
        transcript = []
        images = []
        hasLostImages = false
    }

    /// Replaces all options. Applies from the next answer.
    ///
    /// - Throws: ``VLMError/invalidArgument(_:)`` naming the option; ``VLMError/outOfMemory(_:)``
    ///   if there is no room for the context.
    public func setOptions(_ options: GenerationOptions) throws {
        try claim()
        try apply(options)
        self.options = options
    }

    /// Counts and times of the latest turn, even while an answer is being generated.
    public var stats: GenerationStats {
        get throws { try GenerationStats(session: handle) }
    }

    // MARK: Turns

    /// Performs a step of an answer. Waits while the library is suspended.
    func next(of generation: Generation) async throws -> GenerationEvent? {
        while true {
            do {
                return try step(of: generation)
            } catch VLMError.suspended {
                // The library does not signal when it resumes. A cancelled task does not wait: its
                // next step works all the same.
                try? await Task.sleep(for: .milliseconds(20))
            }
        }
    }

    private func step(of generation: Generation) throws -> GenerationEvent? {
        switch generation.phase {
        case .fresh: try begin(generation)
        case .running: break
        case .finishing(let event):
            generation.phase = .ended
            return event
        case .ended: return nil
        }
        do {
            return try compute(generation)
        } catch VLMError.suspended(let details) {
            throw VLMError.suspended(details)
        } catch {
            generation.end()
            takenBack()
            throw error
        }
    }

    private func begin(_ generation: Generation) throws {
        do {
            try Task.checkCancellation()
            try claim()
            try apply(generation.request.options ?? options)
            mayHaveTurn = true
            switch generation.request.question {
            case .new(let prompt, let images):
                // Pictures first, as models expect it.
                do {
                    try restoreImages()
                    try add(images)
                    try handle.add(prompt.role, prompt.text)
                } catch {
                    try forgetQuestion()
                    throw error
                }
                generation.question = prompt
            case .again:
                guard let last = transcript.dropLast().last else {
                    throw VLMError.invalidState(.init(message: "there is no answer yet"))
                }
                try handle.call { [kept = messages(transcript.count - 1)] in
                    moxin_session_rewind($0, kept, $1)
                }
                transcript.removeLast(2)
                generation.question = last
            }
        } catch {
            generation.end()
            throw error
        }
        self.generation = generation
        generation.begin(on: handle)
    }

    private func compute(_ generation: Generation) throws -> GenerationEvent {
        var event = moxin_event()
        event.struct_size = MemoryLayout<moxin_event>.size
        try handle.call { moxin_session_step($0, &event, $1) }
        switch event.kind {
        case MOXIN_EVENT_KIND_PREFILL:
            return .prefill(done: Int(event.done), total: Int(event.total))
        case MOXIN_EVENT_KIND_TEXT:
            let text = String(event.text)
            generation.text += text
            return .text(text, Token(event))
        default:
            return try finish(generation, event)
        }
    }

    private func finish(_ generation: Generation, _ event: moxin_event) throws -> GenerationEvent {
        guard let reason = StopReason(event.finish) else {
            throw Task.isCancelled
                ? CancellationError()
                : VLMError.cancelled(.init(message: "the answer was cancelled"))
        }
        let rest = String(event.text)
        let finished = GenerationEvent.finished(try GenerationStats(session: handle), reason)
        if case .new(_, let images) = generation.request.question {
            self.images += images
        }
        transcript.append(generation.question)
        transcript.append(Turn(role: .assistant, text: generation.text + rest))
        mayHaveTurn = false
        self.generation = nil
        generation.end(rest.isEmpty ? .ended : .finishing(finished))
        return rest.isEmpty ? finished : .text(rest, nil)
    }

    /// Makes sure that nothing is running on this session; a turn whose loop was left is rolled
    /// back.
    private func claim() throws {
        guard generation == nil, !isReading else { throw VLMError.busy }
        guard mayHaveTurn else { return }
        handle.cancel()
        var event = moxin_event()
        event.struct_size = MemoryLayout<moxin_event>.size
        // If the turn was already rolled back, there is nothing to answer.
        try? handle.call { moxin_session_step($0, &event, $1) }
        takenBack()
        mayHaveTurn = false
    }

    /// Updates the state after the library has rolled a turn back.
    private func takenBack() {
        generation = nil
        hasLostImages = transcript.isEmpty
    }

    private func restoreImages() throws {
        guard hasLostImages else { return }
        try add(images)
        hasLostImages = false
    }

    private func add(_ images: [VLMImage]) throws {
        for image in images {
            try image.add(to: handle)
        }
    }

    private func apply(_ options: GenerationOptions) throws {
        guard options != appliedOptions else { return }
        try options.withParams { params in
            try handle.call { moxin_session_set_params($0, params, $1) }
        }
        appliedOptions = options
    }
}

extension Handle {
    /// Ends a session's answer.
    func cancel() {
        use { moxin_session_cancel($0) }
    }

    /// Adds a text to a session's conversation.
    func add(_ role: Turn.Role, _ text: String) throws {
        let role: moxin_role? =
            switch role {
            case .system: moxin_role(MOXIN_ROLE_SYSTEM)
            case .user: moxin_role(MOXIN_ROLE_USER)
            case .assistant: moxin_role(MOXIN_ROLE_ASSISTANT)
            case .prompt: nil
            }
        try withBytes(of: text) { start, count in
            try call { session, error in
                guard let role else {
                    return moxin_session_add_prompt(session, start, count, error)
                }
                return moxin_session_add_text(session, role, start, count, error)
            }
        }
    }
}
