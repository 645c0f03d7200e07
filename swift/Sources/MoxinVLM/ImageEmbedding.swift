import CMoxinVLM

/// A picture's tokens in the space of the model that made them: for asking about one picture in
/// several sessions without encoding it twice, also after the model was loaded anew. It needs
/// nothing else to stay alive.
public struct ImageEmbedding: Sendable {
    /// Positions it takes in a prompt.
    public let tokenCount: Int
    /// Numbers a token.
    public let hiddenSize: Int
    /// The fingerprint of the model that made it: see ``ModelInfo/fingerprint``.
    public let modelFingerprint: UInt64
    /// Tells pictures apart.
    public let imageHash: UInt64

    let handle: Handle

    init(handle: Handle) throws {
        var info = moxin_embedding_info()
        info.struct_size = MemoryLayout<moxin_embedding_info>.size
        try handle.call { moxin_embedding_info_get($0, &info, $1) }
        tokenCount = Int(info.token_count)
        hiddenSize = Int(info.hidden_size)
        modelFingerprint = info.model_fingerprint
        imageHash = info.image_hash
        self.handle = handle
    }

    /// Its numbers, token after token.
    public func values() async throws -> [Float] {
        try await Engine.run {
            try [Float](unsafeUninitializedCapacity: tokenCount * hiddenSize) { buffer, count in
                try handle.call { moxin_embedding_copy($0, buffer.baseAddress, buffer.count, $1) }
                count = buffer.count
            }
        }
    }
}
