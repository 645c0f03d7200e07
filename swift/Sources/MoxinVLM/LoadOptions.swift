import CMoxinVLM

/// Options for loading a model.
public struct LoadOptions: Sendable, Equatable {
    /// The maximum number of bytes for loading; a model that needs more is refused before it is
    /// read. `nil`: the available memory.
    public var memoryLimit: UInt64?
    /// The size in bytes of the cache of encoded pictures. A cached picture is not encoded again. 0
    /// disables the cache.
    public var imageCacheBytes: UInt64
    /// The size in bytes of the cache of ended conversations. When a session ends, its conversation
    /// stays there, and a new session that starts with the same prompt reads only the rest. 0 keeps
    /// none.
    public var prefixCacheBytes: UInt64
    /// The device.
    public var backend: VLMBackend
    /// The type of activations.
    public var dtype: VLMDType
    /// Quantizes the language model while loading, so that the full weights are never in memory.
    public var quantization: Quantization.Scheme?
    /// A Jinja chat template to use instead of the folder's. `nil`: the folder's.
    public var chatTemplate: String?

    /// Creates options. The defaults: the available memory, 64 MiB for pictures, no ended
    /// conversations, the best backend, weights and template as stored.
    public init(
        memoryLimit: UInt64? = nil, imageCacheBytes: UInt64 = 64 << 20,
        prefixCacheBytes: UInt64 = 0,
        backend: VLMBackend = .automatic, dtype: VLMDType = .automatic,
        quantization: Quantization.Scheme? = nil, chatTemplate: String? = nil
    ) {
        self.memoryLimit = memoryLimit
        self.imageCacheBytes = imageCacheBytes
        self.prefixCacheBytes = prefixCacheBytes
        self.backend = backend
        self.dtype = dtype
        self.quantization = quantization
        self.chatTemplate = chatTemplate
    }

    /// Calls `body` with the library's parameter struct.
    func withParams<R>(_ body: (UnsafePointer<moxin_model_params>) throws -> R) rethrows -> R {
        var params = moxin_model_params()
        moxin_model_params_init(&params, MemoryLayout<moxin_model_params>.size)
        params.memory_limit = memoryLimit ?? 0
        params.image_cache_bytes = imageCacheBytes
        params.prefix_cache_bytes = prefixCacheBytes
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

/// Which modules are quantized, and how.
public struct Quantization: Sendable, Equatable {
    /// How a group encodes its values.
    public enum Scheme: Sendable, Equatable, Hashable {
        /// An integer of 2, 3, 4, 5, 6 or 8 bits, times a scale, plus a bias; 32, 64 or 128
        /// neighbors share scale and bias.
        case affine(bits: Int, groupSize: Int = 64)
        /// 4-bit floats; 32 share a power of two.
        case mxfp4
        /// 8-bit floats; 32 share a power of two.
        case mxfp8
        /// 4-bit floats; 16 share an 8-bit scale.
        case nvfp4
    }

    /// The scheme of modules that are not in ``modules``.
    public var scheme: Scheme
    /// Whether the token embedding is quantized.
    public var embedding: Bool
    /// Whether the output head is quantized.
    public var head: Bool
    /// Whether vision encoders and projector are quantized, if the group size divides their widths.
    public var vision: Bool
    /// Exceptions by a module's path in the checkpoint, such as `language_model.lm_head`, or a
    /// prefix of several that ends before a dot; `nil`: not quantized. If several match a module,
    /// the longest applies.
    public var modules: [String: Scheme?]

    /// Creates the settings. The defaults are those of mlx-community: the language model with its
    /// embedding and output head, with 4 bits and a group size of 64.
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

    /// Calls `body` with the library's parameter struct.
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
    /// Converts the library's scheme of a model; `nil` if nothing is quantized.
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

    /// The library ignores it in other modes, but it must not be 0.
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
    /// Converts a number that must not be 0: a number that is not positive becomes one that the
    /// library refuses.
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
