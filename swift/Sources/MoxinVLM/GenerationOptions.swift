import CMoxinVLM

/// Options of a session.
public struct GenerationOptions: Sendable, Equatable {
    /// 0: always the most likely token. Higher values: more variety.
    public var temperature: Float = 0
    /// Samples from this many of the most likely tokens. `nil`: from all.
    public var topK: Int?
    /// Samples from the most likely tokens that together have this probability. 1: from all.
    public var topP: Float = 1
    /// Samples from tokens at least this fraction as likely as the most likely one. 0: from all.
    public var minP: Float = 0
    /// A value above 1 makes tokens that already occurred less likely.
    public var repetitionPenalty: Float = 1
    /// The number of latest tokens that the penalty looks at. `nil`: the whole conversation.
    public var repetitionWindow: Int?
    /// Is subtracted from a token's logit once for each time that the answer already contains it: -2
    /// to 2.
    public var frequencyPenalty: Float = 0
    /// Is subtracted from the logits of all tokens that the answer already contains: -2 to 2.
    public var presencePenalty: Float = 0
    /// The same seed samples the same tokens.
    public var seed: UInt64 = 0
    /// The maximum number of tokens in an answer.
    public var maxTokens: Int = 512
    /// The maximum number of positions in the whole conversation, including image tokens. `nil`:
    /// 4096, more if a single picture needs more, less if the model was made for less.
    public var maxContext: Int?
    /// The budget of each picture that has none of its own.
    public var imageBudget = VLMImage.PixelBudget()
    /// The number of prompt positions read per step.
    public var prefillChunk: Int = 256
    /// Separates conversations in the cache of ended ones (``LoadOptions/prefixCacheBytes``): one is
    /// only continued by those with the same number.
    public var prefixScope: UInt64 = 0
    /// The number of most likely tokens that each ``Token`` lists, 0 to 20.
    public var alternatives: Int = 0
    /// Texts that end an answer and are not part of it. At most 64, of 1 to 1,024 bytes of UTF-8
    /// each.
    public var stop: [String] = []

    /// Creates the default options: always the most likely token, at most 512 tokens.
    public init() {}

    /// Creates options with this temperature, length, seed or stop texts; the others are
    /// properties.
    public init(temperature: Float = 0, maxTokens: Int = 512, seed: UInt64 = 0, stop: [String] = [])
    {
        self.temperature = temperature
        self.maxTokens = maxTokens
        self.seed = seed
        self.stop = stop
    }

    /// Calls `body` with the library's parameter struct.
    func withParams<R>(_ body: (UnsafePointer<moxin_session_params>) throws -> R) throws -> R {
        for (name, number) in [("topK", topK), ("repetitionWindow", repetitionWindow)]
        where (number ?? 1) < 1 {
            throw VLMError.invalidArgument(
                .init(message: "\(name) is \(number ?? 0); 1 or more is expected, or nil for all"))
        }
        return try withCStrings(stop) { stop in
            try stop.withUnsafeBufferPointer { stop in
                var params = moxin_session_params()
                moxin_session_params_init(&params, MemoryLayout<moxin_session_params>.size)
                params.temperature = temperature
                params.top_k = topK.map(UInt32.init(positive:)) ?? 0
                params.top_p = topP
                params.min_p = minP
                params.repetition_penalty = repetitionPenalty
                params.repetition_window = repetitionWindow.map(UInt32.init(positive:)) ?? 0
                params.frequency_penalty = frequencyPenalty
                params.presence_penalty = presencePenalty
                params.prefix_scope = prefixScope
                params.seed = seed
                params.max_tokens = UInt32(positive: maxTokens)
                params.max_context = maxContext.map(UInt32.init(positive:)) ?? 0
                params.prefill_chunk = UInt32(positive: prefillChunk)
                params.logprobs = UInt32(exactly: alternatives) ?? .max
                params.stop = stop.baseAddress
                params.stop_count = stop.count
                return try imageBudget.withRaw { budget in
                    params.image_budget = budget
                    return try body(&params)
                }
            }
        }
    }
}
