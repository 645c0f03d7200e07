import CMoxinVLM

/// The device that a model runs on.
public enum VLMBackend: Sendable, CaseIterable {
    /// The GPU if there is one, otherwise the CPU.
    case automatic
    /// The CPU.
    case cpu
    /// An Apple GPU.
    case metal
    /// An Nvidia GPU.
    case cuda

    /// Whether models can run on it now.
    public var isAvailable: Bool { moxin_backend_available(rawValue) }

    var rawValue: moxin_backend {
        switch self {
        case .automatic: moxin_backend(MOXIN_BACKEND_AUTO)
        case .cpu: moxin_backend(MOXIN_BACKEND_CPU)
        case .metal: moxin_backend(MOXIN_BACKEND_METAL)
        case .cuda: moxin_backend(MOXIN_BACKEND_CUDA)
        }
    }
}

/// The type of activations.
public enum VLMDType: Sendable, CaseIterable {
    /// The best type for the backend: bfloat16 on a GPU, float32 on the CPU.
    case automatic
    /// float16: more precise than bfloat16, with a smaller range.
    case float16
    /// bfloat16, the type that checkpoints are stored in.
    case bfloat16
    /// float32.
    case float32

    var rawValue: moxin_dtype {
        switch self {
        case .automatic: moxin_dtype(MOXIN_DTYPE_AUTO)
        case .float16: moxin_dtype(MOXIN_DTYPE_F16)
        case .bfloat16: moxin_dtype(MOXIN_DTYPE_BF16)
        case .float32: moxin_dtype(MOXIN_DTYPE_F32)
        }
    }
}

/// Properties of a model.
public struct ModelInfo: Sendable, Equatable {
    /// The architecture as named in config.json, such as `prismatic`.
    public var modelType: String
    /// The number of values in all tensors of the folder.
    public var parameterCount: UInt64
    /// The size of these tensors in bytes.
    public var weightBytes: UInt64
    /// Identifies the weights that encode pictures: embeddings can be exchanged between models with
    /// the same fingerprint. 0 for a model that is not loaded.
    public var fingerprint: UInt64
    /// The number of positions that the decoder was made for.
    public var contextLength: Int
    /// The number of rows of the token embedding.
    public var vocabularySize: Int
    /// The number of values per token.
    public var hiddenSize: Int
    /// The edge in pixels of the square that pictures are resized to; 0 if the size depends on the
    /// picture, or if there are no pictures.
    public var imageSize: Int
    /// The number of positions per picture; 0 if it depends on the picture (see
    /// ``VLMModel/imageTokens(width:height:budget:)``), or if there are no pictures.
    public var tokensPerImage: Int
    /// The maximum number of pictures in a conversation; `nil`: as many as fit into the context; 0:
    /// the model reads text only.
    public var maxImages: Int?
    /// Whether the model reads videos: ``VLMVideo``.
    public var takesVideos: Bool
    /// Whether the model supports system text.
    public var takesSystem: Bool
    /// Whether a conversation can continue after an answer.
    public var takesTurns: Bool
    /// Whether answers can have boxes and points: ``VLMModel/locate(in:width:height:budget:)``.
    public var grounding: Bool
    /// The prompt to use when the user asks nothing, in the words that the model was trained with.
    public var defaultPrompt: String
    /// The device that the model runs on, or would run on; never ``VLMBackend/automatic``.
    public var backend: VLMBackend
    /// The type of activations; never ``VLMDType/automatic``.
    public var dtype: VLMDType
    /// The scheme of most quantized matrices; `nil` if none is quantized.
    public var quantization: Quantization.Scheme?

    init(_ info: moxin_model_info) {
        modelType = withUnsafeBytes(of: info.model_type) {
            String(decoding: $0.prefix { $0 != 0 }, as: UTF8.self)
        }
        parameterCount = info.parameter_count
        weightBytes = info.weight_bytes
        fingerprint = info.fingerprint
        contextLength = Int(info.context_length)
        vocabularySize = Int(info.vocab_size)
        hiddenSize = Int(info.hidden_size)
        imageSize = Int(info.image_size)
        tokensPerImage = Int(info.tokens_per_image)
        maxImages = info.max_images == 0 && info.text_only == 0 ? nil : Int(info.max_images)
        takesVideos = info.takes_videos != 0
        takesSystem = info.takes_system != 0
        takesTurns = info.takes_turns != 0
        grounding = info.grounding != 0
        defaultPrompt = withUnsafeBytes(of: info.default_prompt) {
            String(decoding: $0.prefix { $0 != 0 }, as: UTF8.self)
        }
        backend = VLMBackend.allCases.first { $0.rawValue == info.backend } ?? .automatic
        dtype = VLMDType.allCases.first { $0.rawValue == info.dtype } ?? .automatic
        quantization = Quantization.Scheme(
            mode: info.quant_mode, bits: info.quant_bits, groupSize: info.quant_group_size)
    }

    init(
        call: (UnsafeMutablePointer<moxin_model_info>, UnsafeMutablePointer<OpaquePointer?>) ->
            moxin_status
    ) throws {
        var info = moxin_model_info()
        info.struct_size = MemoryLayout<moxin_model_info>.size
        try check { call(&info, $0) }
        self.init(info)
    }
}

/// The memory that a model in a folder needs, in bytes, estimated from the headers of its files.
public struct MemoryEstimate: Sendable, Equatable {
    /// The loaded weights.
    public var weights: UInt64
    /// Keys and values per position of a conversation.
    public var keyValuesPerToken: UInt64
    /// Keys and values of a conversation of ``GenerationOptions/maxContext`` positions.
    public var keyValues: UInt64
    /// The peak while loading.
    public var loadPeak: UInt64
    /// The temporary memory of encoding a picture, in addition to the weights.
    public var visionPeak: UInt64
    /// The temporary memory of a step, in addition to weights, keys and values.
    public var stepPeak: UInt64
    /// The overall peak: loading the model, encoding a picture, and one conversation.
    public var total: UInt64
    /// The memory available now.
    public var available: UInt64

    /// Whether the overall peak fits into the available memory.
    public var fits: Bool { total <= available }

    init(_ estimate: moxin_memory_estimate) {
        weights = estimate.weights
        keyValuesPerToken = estimate.kv_per_token
        keyValues = estimate.kv_total
        loadPeak = estimate.load_peak
        visionPeak = estimate.vision_peak
        stepPeak = estimate.step_peak
        total = estimate.total
        available = estimate.available
    }
}
