import CMoxinVLM

/// What a model computes on.
public enum VLMBackend: Sendable, CaseIterable {
    /// The GPU where there is one, else the CPU.
    case automatic
    /// The processor.
    case cpu
    /// An Apple GPU.
    case metal
    /// An Nvidia GPU.
    case cuda

    /// Whether models can run on it, here and now.
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
    /// What the backend does best: bfloat16 on a GPU, float32 on the CPU.
    case automatic
    /// 16 bits, more precise and of smaller range than bfloat16.
    case float16
    /// bfloat16, as the checkpoints are stored.
    case bfloat16
    /// 32 bits.
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

/// What a model is.
public struct ModelInfo: Sendable, Equatable {
    /// The architecture, as config.json names it, such as `prismatic`.
    public var modelType: String
    /// Numbers in all tensors of the folder.
    public var parameterCount: UInt64
    /// Bytes of these tensors.
    public var weightBytes: UInt64
    /// The same for models whose embeddings may stand for each other's; 0 for a model that is not
    /// loaded.
    public var fingerprint: UInt64
    /// Positions that the decoder was made for.
    public var contextLength: Int
    /// Rows of the token embedding.
    public var vocabularySize: Int
    /// Width of a token.
    public var hiddenSize: Int
    /// Edge of the square that a picture is brought to, in pixels; 0 where that depends on the
    /// picture.
    public var imageSize: Int
    /// Positions that a picture takes; 0 where that depends on the picture: see
    /// ``VLMModel/imageTokens(width:height:budget:)``.
    public var tokensPerImage: Int
    /// Pictures that a conversation may have; `nil` for as many as fit into the context.
    public var maxImages: Int?
    /// Whether the model takes system text.
    public var takesSystem: Bool
    /// Whether a conversation goes on after an answer.
    public var takesTurns: Bool
    /// What to ask about a picture where a user has no question, in the words that the model was
    /// made for.
    public var defaultPrompt: String
    /// Where the model computes, or would; never ``VLMBackend/automatic``.
    public var backend: VLMBackend
    /// The type of activations; never ``VLMDType/automatic``.
    public var dtype: VLMDType
    /// The scheme that most quantized matrices have; `nil` where none is quantized.
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
        maxImages = info.max_images == 0 ? nil : Int(info.max_images)
        takesSystem = info.takes_system != 0
        takesTurns = info.takes_turns != 0
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

/// What a model in a folder will take, in bytes: reckoned from its files' headers alone.
public struct MemoryEstimate: Sendable, Equatable {
    /// The weights, once loaded.
    public var weights: UInt64
    /// Keys and values of one position of a conversation.
    public var keyValuesPerToken: UInt64
    /// Keys and values of a conversation of ``GenerationOptions/maxContext`` positions.
    public var keyValues: UInt64
    /// The most while loading.
    public var loadPeak: UInt64
    /// What encoding a picture takes beyond the weights, for the time.
    public var visionPeak: UInt64
    /// What a step of a conversation takes beyond weights, keys and values, for the time.
    public var stepPeak: UInt64
    /// The most in all: to load the model, encode a picture, and have one conversation.
    public var total: UInt64
    /// What could be taken now.
    public var available: UInt64

    /// Whether all of it fits what could be taken now.
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
