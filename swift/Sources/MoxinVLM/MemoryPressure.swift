import Foundation

/// Releases memory when the system reports memory pressure. Linux does not report it.
enum MemoryPressure {
    #if canImport(Darwin)
        private static let watcher = Watcher()
    #endif

    /// Responds from the first call on.
    static func respond() {
        #if canImport(Darwin)
            _ = watcher
        #endif
    }
}

#if canImport(Darwin)
    private final class Watcher: @unchecked Sendable {
        private let source = DispatchSource.makeMemoryPressureSource(
            eventMask: [.warning, .critical], queue: .global(qos: .utility))

        init() {
            source.setEventHandler { VLMRuntime.trim() }
            source.activate()
        }
    }
#endif
