import CMoxinVLM

/// How a model is loaded.
public struct LoadOptions: Sendable, Equatable {
    /// Bytes that loading may take; a model that needs more is refused before it is read. `nil`:
    /// what is available.
    public var memoryLimit: UInt64?
    /// Bytes for the tokens of pictures that were encoded before, so that the same picture need not
    /// be again. 0: none are kept.
    public var imageCacheBytes: UInt64
    /// Where it computes.
    public var backend: VLMBackend
    /// The type of activations.
    public var dtype: VLMDType
    /// Quantizes the language model while it is read, so that all of it is never in memory as it is
    /// stored.
    public var quantization: Quantization.Scheme?
    /// A chat template, in Jinja, that takes the place of the folder's. `nil`: the folder's.
    public var chatTemplate: String?

    /// The defaults: what is available, 64 MiB for pictures, the best backend, weights and template
    /// as they are stored.
    public init(
        memoryLimit: UInt64? = nil, imageCacheBytes: UInt64 = 64 << 20,
        backend: VLMBackend = .automatic, dtype: VLMDType = .automatic,
        quantization: Quantization.Scheme? = nil, chatTemplate: String? = nil
    ) {
        self.memoryLimit = memoryLimit
        self.imageCacheBytes = imageCacheBytes
        self.backend = backend
        self.dtype = dtype
        self.quantization = quantization
        self.chatTemplate = chatTemplate
    }

    /// Calls `body` with the library's form of it.
    func withParams<R>(_ body: (UnsafePointer<moxin_model_params>) throws -> R) rethrows -> R {
        var params = moxin_model_params()
        moxin_model_params_init(&params, MemoryLayout<moxin_model_params>.size)
        params.memory_limit = memoryLimit ?? 0
        params.image_cache_bytes = imageCacheBytes
        params.backend = backend.rawValue
        params.dtype = dtype.rawValue
        if let quantization {
            params.quant_mode = quantization.mode
            params.quant_bits = quantization.bits
            params.quant_group_size = quantization.groupSize
        }
        guard let chatTemplate else { return try body(&params) }
        return try chatTemplate.withCString {
            params.chat_template = $0
            return try body(&params)
        }
    }
}

/// What of a model is quantized, and how.
public struct Quantization: Sendable, Equatable {
    /// How numbers are told.
    public enum Scheme: Sendable, Equatable, Hashable {
        /// A whole number of 2, 3, 4, 5, 6 or 8 bits, times a scale, plus a bias; 32, 64 or 128
        /// neighbours share scale and bias.
        case affine(bits: Int, groupSize: Int = 64)
        /// Floats of 4 bits; 32 share a power of two.
        case mxfp4
        /// Floats of 8 bits; 32 share a power of two.
        case mxfp8
        /// Floats of 4 bits; 16 share one of 8 bits.
        case nvfp4
    }

    /// The scheme of what has no other.
    public var scheme: Scheme
    /// The token embedding too.
    public var embedding: Bool
    /// The output head too.
    public var head: Bool
    /// Vision encoders and projector too, where the group size divides their widths.
    public var vision: Bool
    /// Exceptions by a module's path in the checkpoint, such as `language_model.lm_head`, or the
    /// beginning of several up to a dot; `nil`: it is not quantized. Of several that fit a module
    /// the longest counts.
    public var modules: [String: Scheme?]

    /// The defaults, those of MLX's community: the language model with its embedding and output
    /// head, in 4 bits and groups of 64.
    public init(
        _ scheme: Scheme = .affine(bits: 4), embedding: Bool = true, head: Bool = true,
        vision: Bool = false, modules: [String: Scheme?] = [:]
    ) {
        self.scheme = scheme
        self.embedding = embedding
        self.head = head
        self.vision = vision
        self.modules = modules
    }

    /// Calls `body` with the library's form of it.
    func withParams<R>(_ body: (UnsafePointer<moxin_quant_params>) throws -> R) rethrows -> R {
        let paths = modules.keys.sorted()
        return try withCStrings(paths) { pointers in
            let exceptions = zip(paths, pointers).map { path, pointer in
                let scheme = modules[path] ?? nil
                return moxin_module_quant(
                    path: pointer, bits: scheme?.bits ?? 0, group_size: scheme?.groupSize ?? 0,
                    mode: scheme?.mode ?? moxin_quant_mode(MOXIN_QUANT_MODE_AFFINE), reserved: 0)
            }
            return try exceptions.withUnsafeBufferPointer { exceptions in
                var params = moxin_quant_params()
                moxin_quant_params_init(&params, MemoryLayout<moxin_quant_params>.size)
                params.mode = scheme.mode
                params.bits = scheme.bits
                params.group_size = scheme.groupSize
                params.embedding = embedding ? 1 : 0
                params.head = head ? 1 : 0
                params.vision = vision ? 1 : 0
                params.modules = exceptions.baseAddress
                params.module_count = exceptions.count
                return try body(&params)
            }
        }
    }
}

extension Quantization.Scheme {
    /// What the library tells of a model; `nil` where nothing is quantized.
    init?(mode: moxin_quant_mode, bits: UInt32, groupSize: UInt32) {
        guard bits > 0 else { return nil }
        switch mode {
        case moxin_quant_mode(MOXIN_QUANT_MODE_MXFP4): self = .mxfp4
        case moxin_quant_mode(MOXIN_QUANT_MODE_MXFP8): self = .mxfp8
        case moxin_quant_mode(MOXIN_QUANT_MODE_NVFP4): self = .nvfp4
        default: self = .affine(bits: Int(bits), groupSize: Int(groupSize))
        }
    }

    var mode: moxin_quant_mode {
        switch self {
        case .affine: moxin_quant_mode(MOXIN_QUANT_MODE_AFFINE)
        case .mxfp4: moxin_quant_mode(MOXIN_QUANT_MODE_MXFP4)
        case .mxfp8: moxin_quant_mode(MOXIN_QUANT_MODE_MXFP8)
        case .nvfp4: moxin_quant_mode(MOXIN_QUANT_MODE_NVFP4)
        }
    }

    /// The library does not look at it in other modes, but it must not be 0.
    var bits: UInt32 {
        switch self {
        case .affine(let bits, _): UInt32(positive: bits)
        case .mxfp4, .nvfp4: 4
        case .mxfp8: 8
        }
    }

    var groupSize: UInt32 {
        switch self {
        case .affine(_, let groupSize): UInt32(positive: groupSize)
        case .mxfp4, .mxfp8: 32
        case .nvfp4: 16
        }
    }
}

extension UInt32 {
    /// A number that 0 does not stand for: what is none becomes one that the library refuses.
    init(positive number: Int) {
        self = number > 0 ? UInt32(clamping: number) : .max
    }
}

/// Calls `body` with NUL-terminated copies of texts.
func withCStrings<R>(_ texts: [String], _ body: ([UnsafePointer<CChar>?]) throws -> R) rethrows -> R
{
    let copies = texts.map { $0.utf8CString }
    var pointers: [UnsafePointer<CChar>?] = []
    func next(_ index: Int) throws -> R {
        guard index < copies.count else { return try body(pointers) }
        return try copies[index].withUnsafeBufferPointer {
            pointers.append($0.baseAddress)
            return try next(index + 1)
        }
    }
    return try next(0)
}
