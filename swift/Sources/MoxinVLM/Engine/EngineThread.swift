import Foundation

/// The one thread on which the package makes library calls that may block. On Swift's own threads,
/// of which there are as many as CPU cores, a few simultaneous answers would block the rest of the
/// app.
final class EngineThread: SerialExecutor, @unchecked Sendable {
    static let shared = EngineThread()

    /// Guards `jobs`.
    private let condition = NSCondition()
    private var jobs: [UnownedJob] = []

    private init() {
        let thread = Thread { [unowned self] in work() }
        thread.name = "moxin-vlm-swift"
        thread.qualityOfService = .userInitiated
        thread.start()
    }

    func enqueue(_ job: consuming ExecutorJob) {
        let job = UnownedJob(job)
        condition.withLock {
            jobs.append(job)
            condition.signal()
        }
    }

    private func work() -> Never {
        while true {
            for job in waitForJobs() {
                pooled { job.runSynchronously(on: asUnownedSerialExecutor()) }
            }
        }
    }

    private func waitForJobs() -> [UnownedJob] {
        condition.withLock {
            while jobs.isEmpty {
                condition.wait()
            }
            defer { jobs.removeAll() }
            return jobs
        }
    }

    /// On Apple systems, objects that a job autoreleases are released when it ends.
    private func pooled(_ job: () -> Void) {
        #if canImport(ObjectiveC)
            autoreleasepool(invoking: job)
        #else
            job()
        #endif
    }
}

/// Runs work on the engine's thread that belongs to no model or session.
@globalActor
actor Engine {
    static let shared = Engine()

    nonisolated var unownedExecutor: UnownedSerialExecutor {
        EngineThread.shared.asUnownedSerialExecutor()
    }

    @Engine
    static func run<R: Sendable>(_ body: @Sendable () throws -> R) throws -> R {
        try body()
    }
}

/// Runs a call that must not wait for the engine thread on a thread of its own.
func aside<R: Sendable>(_ body: @escaping @Sendable () throws -> R) async throws -> R {
    try await withCheckedThrowingContinuation { continuation in
        Thread.detachNewThread { continuation.resume(with: Result(catching: body)) }
    }
}
