import CMoxinVLM
import Foundation

/// A message of a conversation.
public struct Turn: Sendable, Equatable, Codable {
    /// Whose a message is.
    public enum Role: String, Sendable, Codable {
        /// Instructions before the conversation.
        case system
        /// A question.
        case user
        /// An answer.
        case assistant
        /// Prompt text that is used as it is: see ``VLMSession/stream(rawPrompt:images:options:)``.
        case prompt
    }

    /// Whose it is.
    public var role: Role
    /// What it says.
    public var text: String

    /// A message.
    public init(role: Role, text: String) {
        self.role = role
        self.text = text
    }
}

/// A conversation with a model, about a picture.
///
/// One operation at a time: a second one meanwhile throws ``VLMError/sessionBusy(_:)``. For two
/// answers at once take two sessions.
public actor VLMSession {
    /// The messages so far. A question appears with its complete answer; one that was cancelled, or
    /// failed, does not.
    public private(set) var transcript: [Turn]
    /// How answers are generated unless asked otherwise.
    public private(set) var options: GenerationOptions

    private let handle: Handle
    /// What the library's session has been told.
    private var appliedOptions: GenerationOptions
    private weak var generation: Generation?
    /// Whether the library's session may have a turn under way: that of `generation`, or of one
    /// that is gone and is still to be taken back.
    private var mayHaveTurn = false
    /// Whether it is reading ahead.
    private var isReading = false
    /// The conversation's pictures. The library forgets them with a first turn that is taken back;
    /// then they are added again.
    private var images: [VLMImage] = []
    private var hasLostImages = false
    /// Instructions before the conversation, which the library counts as a message.
    private let system: String?
    /// Whether the picture belongs to the whole conversation, and to no message.
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
    ///   - images: What it is about; see ``ModelInfo/maxImages``.
    ///   - options: How this answer is generated; `nil`: as ``options`` say.
    /// - Throws: `CancellationError` where the task is cancelled; ``VLMError``. The turn is taken
    ///   back then, its picture too, and the session goes on with the next.
    public func respond(
        to prompt: String, images: [VLMImage] = [], options: GenerationOptions? = nil
    ) async throws -> Response {
        try await stream(prompt, images: images, options: options).response()
    }

    /// Answers a question as a stream of events; see ``GenerationStream``. Nothing is asked before
    /// the first event is.
    public nonisolated func stream(
        _ prompt: String, images: [VLMImage] = [], options: GenerationOptions? = nil
    ) -> GenerationStream {
        GenerationStream(
            session: self,
            request: Request(
                question: .new(Turn(role: .user, text: prompt), images), options: options))
    }

    /// Answers prompt text in a format of your own, which is used as it is: control tokens spelt in
    /// it are control tokens, and nothing is put around it but the `<s>` in front of the whole
    /// prompt, where it does not begin with one. The answer is not trimmed in front.
    ///
    /// What a user types goes to ``stream(_:images:options:)``, which makes no control token of it.
    public nonisolated func stream(
        rawPrompt prompt: String, images: [VLMImage] = [], options: GenerationOptions? = nil
    ) -> GenerationStream {
        GenerationStream(
            session: self,
            request: Request(
                question: .new(Turn(role: .prompt, text: prompt), images), options: options))
    }

    /// Answers the last question once more, in place of its answer: with another seed, say. Where
    /// that is cancelled, the question is taken back as well.
    public nonisolated func regenerate(options: GenerationOptions? = nil) -> GenerationStream {
        GenerationStream(session: self, request: Request(question: .again, options: options))
    }

    /// Ends the answer that is being generated, within a step: its stream throws
    /// ``VLMError/cancelled(_:)``. Where there is none it does nothing. A task's own cancellation
    /// does the same.
    public nonisolated func cancel() {
        handle.cancel()
    }

    /// Reads the picture and the conversation ahead, so that the first token of the answer comes at
    /// once, while a question is being typed.
    ///
    /// Other sessions go on meanwhile.
    ///
    /// - Throws: ``VLMError/invalidState(_:)`` where there is nothing to read. Where it throws, for
    ///   whatever reason, `images` are not part of the conversation: pass them again.
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
            // A failure leaves the pictures with the library's session.
            try forgetQuestion()
            throw error
        }
    }

    /// A session of its own whose conversation has been the same until now: to ask two things about
    /// one picture without reading it twice.
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

    /// Messages of the library's session that stand for those before `count` of the transcript.
    private func messages(_ count: Int) -> Int {
        count + (system == nil ? 0 : 1)
    }

    /// Takes back what was added since the last answer and is not being answered.
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

    /// Forgets all but the first messages, with the pictures in them; a picture that stands before
    /// all messages, as with Moxin, stays. What was read and still holds is not read again.
    ///
    /// - Throws: ``VLMError/invalidArgument(_:)`` where there are fewer messages, or a question
    ///   would stay without its answer.
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

    /// Forgets the conversation and its picture; the options stay.
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

    /// Has answers from the next on generated with other options.
    ///
    /// - Throws: ``VLMError/invalidArgument(_:)`` naming the option; ``VLMError/outOfMemory(_:)``
    ///   where there is no room for the context.
    public func setOptions(_ options: GenerationOptions) throws {
        try claim()
        try apply(options)
        self.options = options
    }

    /// Counts and times of the latest turn; also while an answer is being generated.
    public var stats: GenerationStats {
        get throws { try GenerationStats(session: handle) }
    }

    // MARK: Turns

    /// A step of an answer. While the library is suspended it waits.
    func next(of generation: Generation) async throws -> GenerationEvent? {
        while true {
            do {
                return try step(of: generation)
            } catch VLMError.suspended {
                // The library tells nobody when it resumes. A task that is cancelled does not wait:
                // its next step works all the same.
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
                // Pictures first, as models are used to it.
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

    /// Makes sure that nothing is under way on this session; a turn whose loop was left is taken
    /// back.
    private func claim() throws {
        guard generation == nil, !isReading else { throw VLMError.busy }
        guard mayHaveTurn else { return }
        handle.cancel()
        var event = moxin_event()
        event.struct_size = MemoryLayout<moxin_event>.size
        // Where the turn has been taken back already there is nothing to answer.
        try? handle.call { moxin_session_step($0, &event, $1) }
        takenBack()
        mayHaveTurn = false
    }

    /// What the library has forgotten with a turn.
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
    /// Of a session: ends its answer.
    func cancel() {
        use { moxin_session_cancel($0) }
    }

    /// Of a session: adds a text to its conversation.
    func add(_ role: Turn.Role, _ text: String) throws {
        let role: moxin_role? =
            switch role {
            case .system: moxin_role(MOXIN_ROLE_SYSTEM)
            case .user: moxin_role(MOXIN_ROLE_USER)
            case .assistant: moxin_role(MOXIN_ROLE_ASSISTANT)
            case .prompt: nil
            }
        var text = text
        try text.withUTF8 { bytes in
            try bytes.withMemoryRebound(to: CChar.self) { bytes in
                let start = bytes.baseAddress
                try withUnsafePointer(to: 0 as CChar) { empty in
                    let start = start ?? empty
                    try call { session, error in
                        guard let role else {
                            return moxin_session_add_prompt(session, start, bytes.count, error)
                        }
                        return moxin_session_add_text(session, role, start, bytes.count, error)
                    }
                }
            }
        }
    }
}
