import CMoxinVLM

/// How a session generates.
public struct GenerationOptions: Sendable, Equatable {
    /// 0: always the likeliest token. Higher: more varied.
    public var temperature: Float = 0
    /// Draw from so many of the likeliest tokens. `nil`: from all.
    public var topK: Int?
    /// Draw from the likeliest tokens that together have this probability. 1: from all.
    public var topP: Float = 1
    /// Draw from tokens at least this fraction as likely as the likeliest. 0: from all.
    public var minP: Float = 0
    /// Above 1: makes tokens that came up before less likely.
    public var repetitionPenalty: Float = 1
    /// How many of the latest tokens count as come up before. `nil`: all of the conversation.
    public var repetitionWindow: Int?
    /// The same seed draws the same tokens.
    public var seed: UInt64 = 0
    /// Tokens of one answer at most.
    public var maxTokens: Int = 512
    /// Positions of the whole conversation at most, image tokens included. `nil`: 4096, more
    /// where a picture alone takes so many, fewer where the model was made for fewer.
    public var maxContext: Int?
    /// Positions of the prompt that one step works through.
    public var prefillChunk: Int = 256
    /// How many of the likeliest tokens each ``Token`` lists, 0 to 20.
    public var alternatives: Int = 0
    /// Texts that end an answer; they are not part of it. At most 64, of 1 to 1,024 bytes of UTF-8
    /// each.
    public var stop: [String] = []

    /// The defaults: the likeliest token always, 512 of them at most.
    public init() {}

    /// The defaults with another temperature, length, seed or stop texts; the rest are properties.
    public init(temperature: Float = 0, maxTokens: Int = 512, seed: UInt64 = 0, stop: [String] = [])
    {
        self.temperature = temperature
        self.maxTokens = maxTokens
        self.seed = seed
        self.stop = stop
    }

    /// Calls `body` with the library's form of it.
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
                params.seed = seed
                params.max_tokens = UInt32(positive: maxTokens)
                params.max_context = maxContext.map(UInt32.init(positive:)) ?? 0
                params.prefill_chunk = UInt32(positive: prefillChunk)
                params.logprobs = UInt32(exactly: alternatives) ?? .max
                params.stop = stop.baseAddress
                params.stop_count = stop.count
                return try body(&params)
            }
        }
    }
}
