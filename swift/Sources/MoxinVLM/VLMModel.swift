import CMoxinVLM
import Foundation

/// A model in memory.
///
/// Its work is done on one thread of the package, so nothing blocks the threads on which Swift runs
/// tasks.
public actor VLMModel {
    /// The properties of the model.
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

    /// Loads a model from a Hugging Face folder: config.json, the weights, tokenizer.json, and
    /// preprocessor_config.json if it takes pictures.
    ///
    /// - Parameters:
    ///   - directory: The folder.
    ///   - options: Options for loading.
    ///   - timeout: The time limit.
    ///   - progress: Receives progress.
    /// - Throws: `CancellationError` if the task is cancelled; ``VLMError/outOfMemory(_:)`` before
    ///   any weight is read; ``VLMError/notFound(_:)``, ``VLMError/corruptModel(_:)`` and
    ///   ``VLMError/unsupportedModel(_:)``, naming the file and the field or tensor.
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

    /// Describes the model in a folder without loading it, from the headers of its files.
    public static func inspect(_ directory: URL) async throws -> ModelInfo {
        try VLMRuntime.requireABI()
        return try await Engine.run {
            try ModelInfo { moxin_model_inspect(directory.path, $0, $1) }
        }
    }

    /// Estimates the memory that the model in a folder needs with one session, without loading it,
    /// from the headers of its files.
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

    /// Starts a conversation.
    ///
    /// - Parameters:
    ///   - system: Instructions before the conversation; see ``ModelInfo/takesSystem``.
    ///   - options: The default options of answers.
    ///   - transcript: Earlier messages: questions, or raw prompts, and answers in alternation,
    ///     starting with a question and ending with an answer.
    /// - Throws: ``VLMError/invalidArgument(_:)`` naming the option; ``VLMError/invalidState(_:)``
    ///   for system text if the model does not support it; ``VLMError/outOfMemory(_:)`` if a
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
    /// still in the model's cache. The embedding can take the picture's place in any session of
    /// this model.
    public func encode(
        _ image: VLMImage, timeout: Duration? = nil, progress: ProgressHandler? = nil
    ) async throws -> ImageEmbedding {
        try await Operation(timeout: timeout, progress: progress).run { [handle] op in
            let decoded = try image.decode()
            let embedding = try Handle(free: moxin_embedding_free) { place, error in
                image.pixelBudget.withRaw { budget in
                    handle.use { model in
                        decoded.use {
                            moxin_model_encode_image(model, $0, budget, op, place, error)
                        }
                    }
                }
            }
            return try ImageEmbedding(handle: embedding)
        }
    }

    /// Runs the vision encoder on a video, for use in any session of this model.
    ///
    /// - Throws: ``VLMError/invalidArgument(_:)`` if the model reads no videos.
    public func encode(
        _ video: VLMVideo, timeout: Duration? = nil, progress: ProgressHandler? = nil
    ) async throws -> ImageEmbedding {
        try await Operation(timeout: timeout, progress: progress).run { [handle] op in
            let decoded = try video.decode()
            let embedding = try Handle(free: moxin_embedding_free) { place, error in
                video.pixelBudget.withRaw { budget in
                    handle.use { model in
                        decoded.use {
                            moxin_model_encode_video(model, $0, budget, op, place, error)
                        }
                    }
                }
            }
            return try ImageEmbedding(handle: embedding)
        }
    }

    /// Returns the number of positions that a picture of this size takes in a conversation.
    ///
    /// - Throws: ``VLMError/invalidArgument(_:)`` if the model cannot take the size or the budget.
    public func imageTokens(width: Int, height: Int, budget: VLMImage.PixelBudget = .init()) throws
        -> Int
    {
        let (width, height) = try sides(width, height)
        var tokens: UInt32 = 0
        try budget.withRaw { budget in
            try handle.call { moxin_model_image_tokens($0, width, height, budget, &tokens, $1) }
        }
        return Int(tokens)
    }

    /// Returns the boxes and points in an answer about one picture of this size, which was in the
    /// conversation with this budget. Places outside the picture are moved to its edge; the last
    /// box of an answer that was cut off is left out.
    ///
    /// - Throws: ``VLMError/invalidState(_:)`` if the model was not trained to write boxes or
    ///   points: ``ModelInfo/grounding``; ``VLMError/invalidArgument(_:)`` if it cannot take the
    ///   size or the budget.
    public func locate(
        in answer: String, width: Int, height: Int, budget: VLMImage.PixelBudget = .init()
    ) throws -> [Location] {
        let (width, height) = try sides(width, height)
        let handle = handle
        let found = try budget.withRaw { budget in
            try withBytes(of: answer) { start, count in
                try Handle(free: moxin_locations_free) { place, error in
                    handle.use {
                        moxin_model_locate($0, start, count, width, height, budget, place, error)
                    }
                }
            }
        }
        return try found.use { locations in
            try (0..<moxin_locations_count(locations)).map { index in
                var location = moxin_location()
                location.struct_size = MemoryLayout<moxin_location>.size
                try check { moxin_locations_get(locations, index, &location, $0) }
                return Location(location)
            }
        }
    }

    /// Returns a field of the model's config.json by its path, such as
    /// `text_config.num_hidden_layers`: a string without quotes, anything else as JSON.
    public func metadata(_ key: String) throws -> String {
        var value = moxin_str()
        return try handle.use { model in
            try check { moxin_model_metadata(model, key, &value, $0) }
            return String(value)
        }
    }

    // MARK: Changing it

    /// Quantizes the model in memory, one matrix at a time. Matrices that are already quantized
    /// stay as they are; sessions continue.
    ///
    /// - Throws: ``VLMError/invalidArgument(_:)`` if MLX does not have the scheme;
    ///   ``VLMError/invalidState(_:)`` if nothing is left to quantize. On error the model stays as
    ///   it was.
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

    /// Quantizes the language model to integers of so many bits, in groups that share a scale.
    public func quantize(
        bits: Int, groupSize: Int = 64, timeout: Duration? = nil, progress: ProgressHandler? = nil
    ) async throws {
        try await quantize(
            Quantization(.affine(bits: bits, groupSize: groupSize)), timeout: timeout,
            progress: progress)
    }

    /// Saves the model in its current form to a folder that
    /// ``load(from:options:timeout:progress:)`` can read, in the format of mlx-community. The
    /// folder appears only after everything is written.
    ///
    /// With `overwriting`, an empty folder or a model folder is replaced, with all its files; a
    /// model folder has only files, among them a config.json with a `model_type`. At every moment
    /// there is a complete model at the path. Tokenizer, settings, README.md and licenses are
    /// copied; other files are not.
    ///
    /// - Throws: ``VLMError/invalidArgument(_:)`` if the path exists and `overwriting` is false, if
    ///   it is not such a folder, or if it is or contains the folder that the model was loaded
    ///   from.
    public func save(
        to directory: URL, overwriting: Bool = false, timeout: Duration? = nil,
        progress: ProgressHandler? = nil
    ) async throws {
        try await Operation(timeout: timeout, progress: progress).run { [handle] op in
            try handle.call { moxin_model_save($0, directory.path, overwriting, op, $1) }
        }
    }

    // MARK: Memory

    /// Returns the memory that the library uses in this process.
    public nonisolated func memory() throws -> MemorySnapshot {
        try VLMRuntime.memory()
    }

    /// Releases memory kept for reuse; see ``VLMRuntime/trim()``.
    public nonisolated func trim() {
        VLMRuntime.trim()
    }

    /// Releases the memory of the weights while sessions stay; calls that need the weights then
    /// throw ``VLMError/invalidState(_:)``. Waits for the current step.
    public func unload() async throws {
        try handle.call(moxin_model_unload)
    }
}

/// Returns the sides of a picture as the library takes them.
private func sides(_ width: Int, _ height: Int) throws -> (UInt32, UInt32) {
    guard let columns = UInt32(exactly: width), let rows = UInt32(exactly: height) else {
        throw VLMError.invalidArgument(
            .init(message: "a picture of \(width) x \(height) pixels"))
    }
    return (columns, rows)
}
