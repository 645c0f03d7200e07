import Foundation
import MoxinVLM

#if canImport(Darwin)
    import Observation
#endif

/// The app's logic: a model, a picture, and the chat about it.
@MainActor
#if canImport(Darwin)
    @Observable
#endif
public final class PictureChat {
    /// The state of the model.
    public enum ModelState: Equatable {
        case none
        /// The fraction that is loaded.
        case loading(Double)
        case ready(ModelInfo)
    }

    public private(set) var modelState = ModelState.none
    /// The bytes of the current picture.
    public private(set) var picture: Data?
    /// Whether the picture is being read ahead of the first question.
    public private(set) var isReading = false
    public private(set) var chat: VLMChat?
    /// The last error, and what to do about it.
    public private(set) var problem: String?
    public private(set) var memory: MemorySnapshot?

    private var model: VLMModel?
    private var task: Task<Void, Never>?

    public init() {}

    /// Loads the model in a folder and replaces the previous one. If it does not fit as stored, it
    /// is quantized to 4 bits while loading.
    public func open(_ folder: URL) {
        close()
        modelState = .loading(0)
        replaceTask { [self] in
            modelState = .loading(0)
            defer { if case .loading = modelState { modelState = .none } }
            var options = LoadOptions()
            if try await !VLMModel.estimate(folder).fits,
                try await VLMModel.inspect(folder).quantization == nil
            {
                options.quantization = .affine(bits: 4)
            }
            let loaded = try await VLMModel.load(from: folder, options: options) { progress in
                Task { @MainActor [weak self] in self?.show(progress) }
            }
            model = loaded
            modelState = .ready(await loaded.info)
            try await beginChat()
        }
    }

    /// Cancels the loading, or releases the model.
    public func close() {
        task?.cancel()
        chat?.stop()
        (model, chat) = (nil, nil)
        modelState = .none
    }

    /// Starts a chat about a picture, given as the bytes of its file.
    public func show(_ data: Data) {
        picture = data
        guard model != nil else { return }  // the chat starts when the model is loaded
        chat?.stop()
        chat = nil
        replaceTask { [self] in try await beginChat() }
    }

    /// Runs work after the previous task has ended.
    private func replaceTask(_ work: @escaping () async throws -> Void) {
        problem = nil
        let before = task
        before?.cancel()
        task = Task {
            await before?.value
            do { try await work() } catch { explain(error) }
        }
    }

    private func beginChat() async throws {
        guard let model, let picture else { return }
        let session = try await model.makeSession()
        chat = VLMChat(session: session)
        isReading = true
        defer { isReading = false }
        try await session.prewarm(images: [VLMImage(data: picture)])
    }

    /// Whether there is something to send, and a chat to send it to.
    public var canSend: Bool { !isReading && chat?.canSend == true }

    /// Asks the question in the chat's draft.
    public func send() {
        guard canSend else { return }
        chat?.send()
    }

    /// A summary of the last answer: `32 tokens, 18.4 per second`.
    public var speed: String? {
        chat?.stats.map {
            "\($0.generatedTokens) tokens, \(String(format: "%.1f", $0.decodeRate)) a second"
        }
    }

    /// Keeps `memory` up to date.
    public func watchMemory(every interval: Duration = .seconds(1)) async {
        while !Task.isCancelled {
            memory = try? VLMRuntime.memory()
            try? await Task.sleep(for: interval)
        }
    }

    /// Waits until nothing is being loaded or read.
    public func settle() async {
        await task?.value
    }

    private func show(_ progress: VLMProgress) {
        if case .loading(let before) = modelState {
            modelState = .loading(max(before, progress.fraction))
        }
    }

    private func explain(_ error: any Error) {
        guard !(error is CancellationError) else { return }
        let suggestion = (error as? VLMError)?.recoverySuggestion
        problem = [error.localizedDescription, suggestion].compactMap(\.self).joined(
            separator: "\n")
    }
}
