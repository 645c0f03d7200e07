import CMoxinVLM
import Foundation

/// A model in memory.
///
/// What it is asked is done on one thread of the package: nothing blocks the threads on which Swift
/// runs tasks.
public actor VLMModel {
    /// What the model is.
    public private(set) var info: ModelInfo

    private let handle: Handle

    public nonisolated var unownedExecutor: UnownedSerialExecutor {
        EngineThread.shared.asUnownedSerialExecutor()
    }

    private init(handle: Handle) throws {
        self.handle = handle
        info = try VLMModel.info(of: handle)
    }

    private static func info(of handle: Handle) throws -> ModelInfo {
        try handle.use { model in try ModelInfo { moxin_model_info_get(model, $0, $1) } }
    }

    // MARK: Folders

    /// Loads a model from a Hugging Face folder: config.json, the weights, tokenizer.json,
    /// preprocessor_config.json.
    ///
    /// - Parameters:
    ///   - directory: The folder.
    ///   - options: How it is loaded.
    ///   - timeout: The longest it may take.
    ///   - progress: Told how far it is.
    /// - Throws: `CancellationError` where the task is cancelled. ``VLMError/outOfMemory(_:)``
    ///   before any weight is read; ``VLMError/notFound(_:)``, ``VLMError/corruptModel(_:)``,
    ///   ``VLMError/unsupportedModel(_:)`` naming the file and the field or tensor.
    public static func load(
        from directory: URL, options: LoadOptions = LoadOptions(), timeout: Duration? = nil,
        progress: ProgressHandler? = nil
    ) async throws -> VLMModel {
        MemoryPressure.respond()
        let handle = try await Operation(timeout: timeout, progress: progress).run { op in
            try options.withParams { params in
                try Handle(free: moxin_model_free) { place, error in
                    moxin_model_load(directory.path, params, op, place, error)
                }
            }
        }
        return try await Engine.run { try VLMModel(handle: handle) }
    }

    /// What the model in a folder is, without loading it: from its files' headers alone.
    public static func inspect(_ directory: URL) async throws -> ModelInfo {
        try VLMRuntime.requireABI()
        return try await Engine.run {
            try ModelInfo { moxin_model_inspect(directory.path, $0, $1) }
        }
    }

    /// What the model in a folder will take with one session, without loading it: from its files'
    /// headers alone.
    public static func estimate(
        _ directory: URL, options: LoadOptions = LoadOptions(),
        session: GenerationOptions = GenerationOptions()
    ) async throws -> MemoryEstimate {
        try VLMRuntime.requireABI()
        return try await Engine.run {
            var estimate = moxin_memory_estimate()
            estimate.struct_size = MemoryLayout<moxin_memory_estimate>.size
            try options.withParams { params in
                try session.withParams { session in
                    try check {
                        moxin_model_estimate(directory.path, params, session, &estimate, $0)
                    }
                }
            }
            return MemoryEstimate(estimate)
        }
    }

    // MARK: Using it

    /// Begins a conversation.
    ///
    /// - Parameters:
    ///   - system: Instructions before it; see ``ModelInfo/takesSystem``.
    ///   - options: How answers are generated unless asked otherwise.
    ///   - transcript: What was said already: questions, or raw prompts, and answers in turn,
    ///     beginning with a question and ending with an answer.
    /// - Throws: ``VLMError/invalidArgument(_:)`` naming the option; ``VLMError/invalidState(_:)``
    ///   for a system text that the model does not take; ``VLMError/outOfMemory(_:)`` where a
    ///   conversation of ``GenerationOptions/maxContext`` positions would not fit.
    public func makeSession(
        system: String? = nil, options: GenerationOptions = GenerationOptions(),
        transcript: [Turn] = []
    ) throws -> VLMSession {
        let answers = transcript.indices.map { !$0.isMultiple(of: 2) }
        let hasSystem = transcript.contains { $0.role == .system }
        guard transcript.map({ $0.role == .assistant }) == answers,
            transcript.count.isMultiple(of: 2), !hasSystem
        else {
            throw VLMError.invalidArgument(
                .init(
                    message:
                        "a transcript has questions and answers in turn, and ends with an answer"))
        }
        let session = try options.withParams { params in
            try Handle(free: moxin_session_free) { place, error in
                handle.use { moxin_session_new($0, params, place, error) }
            }
        }
        if let system {
            try session.add(.system, system)
        }
        for turn in transcript {
            try session.add(turn.role, turn.text)
        }
        return VLMSession(
            handle: session, options: options, system: system, keepsImages: info.maxImages == 1,
            transcript: transcript)
    }

    /// Runs the vision encoders on a picture, unless the same picture was encoded before and is
    /// still in the model's cache. What comes of it can stand for the picture in any session of
    /// this model.
    public func encode(
        _ image: VLMImage, timeout: Duration? = nil, progress: ProgressHandler? = nil
    ) async throws -> ImageEmbedding {
        try await Operation(timeout: timeout, progress: progress).run { [handle] op in
            let decoded = try image.decode()
            var budget = image.pixelBudget.raw
            let embedding = try Handle(free: moxin_embedding_free) { place, error in
                handle.use { model in
                    decoded.use { moxin_model_encode_image(model, $0, &budget, op, place, error) }
                }
            }
            return try ImageEmbedding(handle: embedding)
        }
    }

    /// Positions that a picture of this size takes in a conversation.
    ///
    /// - Throws: ``VLMError/invalidArgument(_:)`` for a size or a budget that the model cannot
    ///   take.
    public func imageTokens(width: Int, height: Int, budget: VLMImage.PixelBudget = .init()) throws
        -> Int
    {
        guard let width = UInt32(exactly: width), let height = UInt32(exactly: height) else {
            throw VLMError.invalidArgument(
                .init(message: "a picture of \(width) x \(height) pixels"))
        }
        var budget = budget.raw
        var tokens: UInt32 = 0
        try handle.call { moxin_model_image_tokens($0, width, height, &budget, &tokens, $1) }
        return Int(tokens)
    }

    /// A field of the model's config.json by its path, such as `text_config.num_hidden_layers`: a
    /// text as it is, all else as JSON.
    public func metadata(_ key: String) throws -> String {
        var value = moxin_str()
        return try handle.use { model in
            try check { moxin_model_metadata(model, key, &value, $0) }
            return String(value)
        }
    }

    // MARK: Changing it

    /// Quantizes the model in memory, a matrix at a time. What is quantized already stays as it is;
    /// conversations go on.
    ///
    /// - Throws: ``VLMError/invalidArgument(_:)`` for a scheme that MLX does not have;
    ///   ``VLMError/invalidState(_:)`` where nothing is left to quantize. A failure leaves the
    ///   model as it was.
    public func quantize(
        _ quantization: Quantization = Quantization(), timeout: Duration? = nil,
        progress: ProgressHandler? = nil
    ) async throws {
        try await Operation(timeout: timeout, progress: progress).run { [handle] op in
            try quantization.withParams { params in
                try handle.call { moxin_model_quantize($0, params, op, $1) }
            }
        }
        info = try VLMModel.info(of: handle)
    }

    /// Quantizes the language model to whole numbers of some bits, in groups that share a scale.
    public func quantize(
        bits: Int, groupSize: Int = 64, timeout: Duration? = nil, progress: ProgressHandler? = nil
    ) async throws {
        try await quantize(
            Quantization(.affine(bits: bits, groupSize: groupSize)), timeout: timeout,
            progress: progress)
    }

    /// Writes the model as it is now to a folder that ``load(from:options:timeout:progress:)``
    /// reads, in the form of MLX's community. Nothing is at the place before all is written.
    ///
    /// With `overwriting` an empty folder is replaced, or a model's: one that holds files alone,
    /// among them a config.json with a `model_type`. All its files go. A whole model is at the
    /// place at any moment. Tokenizer, settings, README.md and licences are copied, other files
    /// not.
    ///
    /// - Throws: ``VLMError/invalidArgument(_:)`` where something is there and `overwriting` is
    ///   false, where it is something else than such a folder, and where it is the folder that the
    ///   model comes from or holds that.
    public func save(
        to directory: URL, overwriting: Bool = false, timeout: Duration? = nil,
        progress: ProgressHandler? = nil
    ) async throws {
        try await Operation(timeout: timeout, progress: progress).run { [handle] op in
            try handle.call { moxin_model_save($0, directory.path, overwriting, op, $1) }
        }
    }

    // MARK: Memory

    /// What the library holds in this process.
    public nonisolated func memory() throws -> MemorySnapshot {
        try VLMRuntime.memory()
    }

    /// Gives back what is kept for reuse; see ``VLMRuntime/trim()``.
    public nonisolated func trim() {
        VLMRuntime.trim()
    }

    /// Gives the memory of the weights back, though sessions remain: what they compute fails then
    /// with ``VLMError/invalidState(_:)``. A step that is under way ends first.
    public func unload() async throws {
        try handle.call(moxin_model_unload)
    }
}
