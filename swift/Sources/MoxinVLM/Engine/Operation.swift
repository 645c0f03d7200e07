import CMoxinVLM

/// The progress of a long operation.
public struct VLMProgress: Sendable, Equatable {
    /// The stages of operations.
    public enum Stage: Sendable, Equatable {
        /// Reading weights.
        case load
        /// Running the vision encoders.
        case encode
        /// Reading the prompt.
        case prefill
        /// Quantizing matrices.
        case quantize
        /// Writing weights.
        case save
    }

    /// The stage.
    public var stage: Stage
    /// The fraction of the stage that is complete, 0 to 1.
    public var fraction: Double

    init?(stage: moxin_stage, fraction: Float) {
        switch stage {
        case moxin_stage(MOXIN_STAGE_LOAD): self.stage = .load
        case moxin_stage(MOXIN_STAGE_ENCODE): self.stage = .encode
        case moxin_stage(MOXIN_STAGE_PREFILL): self.stage = .prefill
        case moxin_stage(MOXIN_STAGE_QUANTIZE): self.stage = .quantize
        case moxin_stage(MOXIN_STAGE_SAVE): self.stage = .save
        default: return nil
        }
        self.fraction = Double(fraction)
    }
}

/// Receives progress on a thread of the package: switch to the main actor before you update a view.
public typealias ProgressHandler = @Sendable (VLMProgress) -> Void

/// A long operation: it is cancelled with its task, can have a time limit, and reports progress.
struct Operation: Sendable {
    var timeout: Duration?
    var progress: ProgressHandler?

    /// Runs the operation on the engine's thread.
    func run<R: Sendable>(_ body: @escaping @Sendable (UnsafePointer<moxin_op>) throws -> R)
        async throws -> R
    {
        try await cancellable { cancel in
            try await Engine.run { try withOp(cancel, body) }
        }
    }

    /// Runs the operation on a thread of its own, so that it does not delay others.
    func runAside<R: Sendable>(_ body: @escaping @Sendable (UnsafePointer<moxin_op>) throws -> R)
        async throws -> R
    {
        try await cancellable { cancel in
            try await aside { try withOp(cancel, body) }
        }
    }

    private func cancellable<R: Sendable>(_ body: (Cancel) async throws -> R) async throws -> R {
        try Task.checkCancellation()
        try VLMRuntime.requireABI()
        let cancel = Cancel()
        do {
            return try await withTaskCancellationHandler {
                try await body(cancel)
            } onCancel: {
                cancel.trigger()
            }
        } catch VLMError.cancelled where Task.isCancelled {
            throw CancellationError()
        }
    }

    private func withOp<R>(_ cancel: Cancel, _ body: (UnsafePointer<moxin_op>) throws -> R) rethrows
        -> R
    {
        let target = ProgressTarget(handler: progress)
        return try withExtendedLifetime((target, cancel)) {
            var op = moxin_op()
            op.struct_size = MemoryLayout<moxin_op>.size
            op.cancel = cancel.pointer
            op.timeout_ms = timeout.map(\.wholeMilliseconds) ?? 0
            if progress != nil {
                op.user_data = Unmanaged.passUnretained(target).toOpaque()
                op.progress = { target, stage, fraction in
                    guard let target else { return true }
                    return Unmanaged<ProgressTarget>.fromOpaque(target).takeUnretainedValue().tell(
                        stage, fraction)
                }
            }
            return try body(&op)
        }
    }
}

/// The target of the library's progress callback.
private final class ProgressTarget {
    private let handler: ProgressHandler?

    init(handler: ProgressHandler?) {
        self.handler = handler
    }

    func tell(_ stage: moxin_stage, _ fraction: Float) -> Bool {
        if let progress = VLMProgress(stage: stage, fraction: fraction) {
            handler?(progress)
        }
        return true
    }
}

/// The library's cancel object.
private final class Cancel: @unchecked Sendable {
    let pointer = moxin_cancel_new()

    func trigger() {
        moxin_cancel_trigger(pointer)
    }

    deinit {
        moxin_cancel_free(pointer)
    }
}

extension Duration {
    /// At least 1, because 0 means no limit.
    var wholeMilliseconds: UInt64 {
        let (seconds, attoseconds) = components
        guard seconds >= 0, attoseconds >= 0 else { return 1 }
        let (product, overflow) = UInt64(seconds).multipliedReportingOverflow(by: 1000)
        return overflow ? .max : max(1, product &+ UInt64(attoseconds / 1_000_000_000_000_000))
    }
}
