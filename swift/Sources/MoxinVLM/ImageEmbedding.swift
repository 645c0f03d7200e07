import CMoxinVLM

/// The features of a picture in the embedding space of the model that encoded it. Use it to ask
/// about one picture in several sessions without encoding it twice, even after the model is loaded
/// again. It does not keep the model alive.
public struct ImageEmbedding: Sendable {
    /// The number of prompt positions it takes.
    public let tokenCount: Int
    /// The number of values per token.
    public let hiddenSize: Int
    /// The fingerprint of the model that made it; see ``ModelInfo/fingerprint``.
    public let modelFingerprint: UInt64
    /// A hash that identifies the picture.
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

    /// Returns the values, token by token.
    public func values() async throws -> [Float] {
        try await Engine.run {
            try [Float](unsafeUninitializedCapacity: tokenCount * hiddenSize) { buffer, count in
                try handle.call { moxin_embedding_copy($0, buffer.baseAddress, buffer.count, $1) }
                count = buffer.count
            }
        }
    }
}
