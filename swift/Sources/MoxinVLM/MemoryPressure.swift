import Foundation

/// Gives memory back when the system says that it is short. Linux does not say so.
enum MemoryPressure {
    #if canImport(Darwin)
        private static let watcher = Watcher()
    #endif

    /// From the first call on.
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
