import CMoxinVLM
import Foundation

/// What concerns the library as a whole.
public enum VLMRuntime {
    /// The library's version, such as `0.3.0`.
    public static var version: String { String(cString: moxin_version()) }

    /// What the library is made of, as JSON: `version`, `abi`, `mlx`, `target`, `backends` and
    /// `models`.
    public static var buildInfo: String { String(cString: moxin_build_info()) }

    /// Says where Metal's kernels, mlx.metallib, lie, where they are neither beside the library nor
    /// in `Resources/` beside it. To be called before anything else.
    public static func setMetalLibrary(_ file: URL) throws {
        try requireABI()
        try check { moxin_set_metallib_path(file.path, $0) }
    }

    /// A library with another ABI must not be called.
    static func requireABI() throws {
        let found = moxin_abi_version()
        guard found == UInt32(MOXIN_ABI_VERSION) else {
            throw VLMError.incompatibleLibrary(expected: UInt32(MOXIN_ABI_VERSION), found: found)
        }
    }

    // MARK: Memory

    /// What the library holds now. Never waits.
    public static func memory() throws -> MemorySnapshot {
        var stats = moxin_memory_stats()
        stats.struct_size = MemoryLayout<moxin_memory_stats>.size
        try check { moxin_memory_stats_get(&stats, $0) }
        return MemorySnapshot(stats)
    }

    /// Limits what may be in use, and what MLX keeps for reuse, in bytes; `nil`: no limit but the
    /// machine's.
    ///
    /// What is in use already stays. A load, a session or a picture that would go beyond is refused
    /// with ``VLMError/outOfMemory(_:)`` and both figures, before anything is allocated.
    public static func setMemoryLimits(total: UInt64?, cache: UInt64?) throws {
        try requireABI()
        try check { moxin_memory_set_limits(total ?? .max, cache ?? .max, $0) }
    }

    /// Gives back what is kept for reuse: MLX's free buffers, and tokens of pictures seen before.
    /// Does not wait. On Apple systems it is done by itself when memory is short.
    public static func trim() {
        moxin_memory_trim()
    }

    // MARK: Background

    /// Lets nothing compute from now on: for an app that goes to the background, where iOS refuses
    /// work for the GPU and answers would fail. Returns when nothing is under way any more.
    ///
    /// A load, an encoding or a ``VLMSession/prewarm(images:timeout:progress:)`` throws
    /// ``VLMError/suspended(_:)``; answers pause until ``resume()``, and can be cancelled
    /// meanwhile. Conversations stay as they are.
    ///
    /// - Throws: ``VLMError/timedOut(_:)`` where something is still under way after `timeout`. The
    ///   library is suspended all the same.
    public static func quiesce(timeout: Duration = .seconds(2)) async throws {
        let milliseconds = UInt32(clamping: timeout.wholeMilliseconds)
        try requireABI()
        // Not in line with what it is to end.
        try await aside { try check { moxin_suspend(milliseconds, $0) } }
    }

    /// Ends what ``quiesce(timeout:)`` began.
    public static func resume() {
        moxin_resume()
    }
}

/// What the library holds in this process, in bytes.
public struct MemorySnapshot: Sendable, Equatable {
    /// In use: weights, conversations, embeddings, and what is being computed.
    public var active: UInt64
    /// Kept for reuse; ``VLMRuntime/trim()`` gives it back.
    public var cache: UInt64
    /// The most that was ever in use.
    public var peak: UInt64
    /// What may be in use; `nil`: what the machine has.
    public var limit: UInt64?
    /// What could still be taken: what the machine has available, within the limit.
    public var available: UInt64
    /// Of what is in use, tokens of pictures seen before.
    public var imageCache: UInt64
    /// Not bytes: the library's objects that are in use. An app that has let go of everything finds
    /// 0.
    public var liveHandles: UInt64

    init(_ stats: moxin_memory_stats) {
        active = stats.active
        cache = stats.cache
        peak = stats.peak
        limit = stats.limit == .max ? nil : stats.limit
        available = stats.available
        imageCache = stats.image_cache
        liveHandles = stats.handles
    }
}
