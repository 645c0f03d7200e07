import CMoxinVLM

/// A complete answer.
public struct Response: Sendable, Equatable {
    /// The answer.
    public var text: String
    /// The tokens of the answer.
    public var tokens: [Token]
    /// Why the answer ended.
    public var stopReason: StopReason
    /// Counts and times.
    public var stats: GenerationStats
}

/// Why an answer ended. An answer that was cancelled or failed throws instead.
public enum StopReason: Sendable, Equatable {
    /// The model ended its turn.
    case endOfTurn
    /// A stop text was generated.
    case stopSequence
    /// The answer reached its maximum length.
    case maxTokens
    /// The conversation fills the context.
    case contextFull

    init?(_ reason: moxin_finish_reason) {
        switch reason {
        case MOXIN_FINISH_REASON_END_OF_TURN: self = .endOfTurn
        case MOXIN_FINISH_REASON_STOP_SEQUENCE: self = .stopSequence
        case MOXIN_FINISH_REASON_MAX_TOKENS: self = .maxTokens
        case MOXIN_FINISH_REASON_CONTEXT_FULL: self = .contextFull
        default: return nil
        }
    }
}

/// One token of an answer.
public struct Token: Sendable, Equatable {
    /// A candidate for the token.
    public struct Candidate: Sendable, Equatable {
        /// The token id.
        public var id: Int32
        /// Its log-probability, before temperature and filters.
        public var logProbability: Float
    }

    /// The token id.
    public var id: Int32
    /// Its log-probability, before temperature and filters.
    public var logProbability: Float
    /// The most likely tokens in descending order: as many as ``GenerationOptions/alternatives``.
    public var alternatives: [Candidate]

    init(_ event: moxin_event) {
        id = event.token_id
        logProbability = event.logprob
        let top = UnsafeBufferPointer(start: event.top, count: event.top_count)
        alternatives = top.map { Candidate(id: $0.token_id, logProbability: $0.logprob) }
    }
}

/// Counts and times of a session's latest turn.
public struct GenerationStats: Sendable, Equatable {
    /// Positions of the prompt: the whole conversation, including image tokens.
    public var promptTokens: Int
    /// Prompt positions that belong to pictures.
    public var imageTokens: Int
    /// Prompt positions that were reused from earlier turns.
    public var reusedTokens: Int
    /// Generated tokens.
    public var generatedTokens: Int
    /// Pictures that were found in the cache and not encoded again.
    public var cachedImages: Int
    /// Messages in the conversation, including the answer once it is complete.
    public var messageCount: Int
    /// Time in the vision encoders.
    public var vision: Duration
    /// Time in prefill, without vision.
    public var prefill: Duration
    /// Time from the first step of the turn to its first token.
    public var firstToken: Duration
    /// Time in the steps after the first token.
    public var decode: Duration
    /// Prompt positions read per second, without reused ones.
    public var prefillRate: Double
    /// Tokens per second after the first token.
    public var decodeRate: Double
    /// Peak memory of all models in the process, in bytes.
    public var peakBytes: UInt64

    init(session: Handle) throws {
        var stats = moxin_stats()
        stats.struct_size = MemoryLayout<moxin_stats>.size
        try session.call { moxin_session_stats($0, &stats, $1) }
        promptTokens = Int(stats.prompt_tokens)
        imageTokens = Int(stats.image_tokens)
        reusedTokens = Int(stats.reused_tokens)
        generatedTokens = Int(stats.generated_tokens)
        cachedImages = Int(stats.cached_images)
        messageCount = Int(stats.message_count)
        vision = .milliseconds(stats.vision_ms)
        prefill = .milliseconds(stats.prefill_ms)
        firstToken = .milliseconds(stats.first_token_ms)
        decode = .milliseconds(stats.decode_ms)
        prefillRate = stats.prefill_tps
        decodeRate = stats.decode_tps
        peakBytes = stats.peak_bytes
    }
}
