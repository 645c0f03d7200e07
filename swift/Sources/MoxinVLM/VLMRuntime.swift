import CMoxinVLM
import Foundation

/// Functions for the library as a whole.
public enum VLMRuntime {
    /// The library's version, such as `0.3.0`.
    public static var version: String { String(cString: moxin_version()) }

    /// A description of the build, as JSON: `version`, `abi`, `mlx`, `target`, `backends` and
    /// `models`.
    public static var buildInfo: String { String(cString: moxin_build_info()) }

    /// Sets the path of Metal's kernels, mlx.metallib, if the file is neither next to the library
    /// nor in `Resources/` next to it. Call it before anything else.
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

    /// Returns the memory that the library uses now. Never blocks.
    public static func memory() throws -> MemorySnapshot {
        var stats = moxin_memory_stats()
        stats.struct_size = MemoryLayout<moxin_memory_stats>.size
        try check { moxin_memory_stats_get(&stats, $0) }
        return MemorySnapshot(stats)
    }

    /// Sets the limits of the memory in use and of MLX's buffer cache, in bytes; `nil`: only the
    /// machine limits it.
    ///
    /// Memory that is already in use stays allocated. A load, a session or a picture that would
    /// exceed the limit is refused with ``VLMError/outOfMemory(_:)`` and both figures, before
    /// anything is allocated.
    public static func setMemoryLimits(total: UInt64?, cache: UInt64?) throws {
        try requireABI()
        try check { moxin_memory_set_limits(total ?? .max, cache ?? .max, $0) }
    }

    /// Releases memory kept for reuse: MLX's free buffers and the cache of encoded pictures. Does
    /// not block. On Apple systems this happens automatically under memory pressure.
    public static func trim() {
        moxin_memory_trim()
    }

    // MARK: Background

    /// Stops all computing, for an app that moves to the background, where iOS does not allow GPU
    /// work. Returns when nothing is running any more.
    ///
    /// A load, an encoding or a ``VLMSession/prewarm(images:timeout:progress:)`` throws
    /// ``VLMError/suspended(_:)``; answers pause until ``resume()``, and can be cancelled in the
    /// meantime. Conversations are kept.
    ///
    /// - Throws: ``VLMError/timedOut(_:)`` if something is still running after `timeout`. The
    ///   library is suspended all the same.
    public static func quiesce(timeout: Duration = .seconds(2)) async throws {
        let milliseconds = UInt32(clamping: timeout.wholeMilliseconds)
        try requireABI()
        // Does not wait behind the work that it should stop.
        try await aside { try check { moxin_suspend(milliseconds, $0) } }
    }

    /// Resumes computing after ``quiesce(timeout:)``.
    public static func resume() {
        moxin_resume()
    }
}

/// The memory that the library uses in this process, in bytes.
public struct MemorySnapshot: Sendable, Equatable {
    /// In use: weights, conversations, embeddings and intermediate results.
    public var active: UInt64
    /// Free buffers kept for reuse; ``VLMRuntime/trim()`` releases them.
    public var cache: UInt64
    /// The highest value that ``active`` ever had.
    public var peak: UInt64
    /// The limit for memory in use; `nil`: only the machine limits it.
    public var limit: UInt64?
    /// The memory that can still be allocated within the limit.
    public var available: UInt64
    /// The part of ``active`` that caches encoded pictures.
    public var imageCache: UInt64
    /// Not bytes: the number of library objects in use. 0 in an app that has released everything.
    public var liveHandles: UInt64
    /// The part of ``active`` that keeps ended conversations for others.
    public var prefixCache: UInt64

    init(_ stats: moxin_memory_stats) {
        active = stats.active
        cache = stats.cache
        peak = stats.peak
        limit = stats.limit == .max ? nil : stats.limit
        available = stats.available
        imageCache = stats.image_cache
        liveHandles = stats.handles
        prefixCache = stats.prefix_cache
    }
}
