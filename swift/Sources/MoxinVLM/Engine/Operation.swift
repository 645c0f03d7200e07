import CMoxinVLM

/// What a long operation is doing.
public struct VLMProgress: Sendable, Equatable {
    /// The parts that operations have.
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

    /// What is being done.
    public var stage: Stage
    /// The part of it that is done, 0 to 1.
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

/// Told how far an operation is, on a thread of the package: hop to the main actor before touching
/// a view.
public typealias ProgressHandler = @Sendable (VLMProgress) -> Void

/// A long operation: it can be cancelled with its task, has a time limit, and tells how far it is.
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

    /// Runs the operation on a thread of its own, for one that shall not hold up what others do.
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
        let teller = Teller(handler: progress)
        return try withExtendedLifetime((teller, cancel)) {
            var op = moxin_op()
            op.struct_size = MemoryLayout<moxin_op>.size
            op.cancel = cancel.pointer
            op.timeout_ms = timeout.map(\.wholeMilliseconds) ?? 0
            if progress != nil {
                op.user_data = Unmanaged.passUnretained(teller).toOpaque()
                op.progress = { teller, stage, fraction in
                    guard let teller else { return true }
                    return Unmanaged<Teller>.fromOpaque(teller).takeUnretainedValue().tell(
                        stage, fraction)
                }
            }
            return try body(&op)
        }
    }
}

/// What the library's progress callback calls.
private final class Teller {
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
    /// At least 1, for 0 stands for no limit.
    var wholeMilliseconds: UInt64 {
        let (seconds, attoseconds) = components
        guard seconds >= 0, attoseconds >= 0 else { return 1 }
        let (product, overflow) = UInt64(seconds).multipliedReportingOverflow(by: 1000)
        return overflow ? .max : max(1, product &+ UInt64(attoseconds / 1_000_000_000_000_000))
    }
}
