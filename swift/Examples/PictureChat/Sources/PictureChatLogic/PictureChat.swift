import Foundation
import MoxinVLM

#if canImport(Darwin)
    import Observation
#endif

/// All that the app does: a model, a picture, and the chat about it.
@MainActor
#if canImport(Darwin)
    @Observable
#endif
public final class PictureChat {
    /// What has become of the model.
    public enum ModelState: Equatable {
        case none
        /// The part of it that is loaded.
        case loading(Double)
        case ready(ModelInfo)
    }

    public private(set) var modelState = ModelState.none
    /// The picture that is talked about, as it came.
    public private(set) var picture: Data?
    /// Whether the picture is being read, so that answers come at once.
    public private(set) var isReading = false
    public private(set) var chat: VLMChat?
    /// What went wrong last, and what to do about it.
    public private(set) var problem: String?
    public private(set) var memory: MemorySnapshot?

    private var model: VLMModel?
    private var task: Task<Void, Never>?

    public init() {}

    /// Loads the model in a folder, in the place of the one before. Where it does not fit as it is,
    /// it is quantized to 4 bits while it is read.
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

    /// Ends the loading, or forgets the model.
    public func close() {
        task?.cancel()
        chat?.stop()
        (model, chat) = (nil, nil)
        modelState = .none
    }

    /// Begins a chat about a picture: the bytes of its file.
    public func show(_ data: Data) {
        picture = data
        guard model != nil else { return }  // the chat begins when it is loaded
        chat?.stop()
        chat = nil
        replaceTask { [self] in try await beginChat() }
    }

    /// Does something when what was under way before has ended.
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

    /// Whether there is something to send, and somebody to send it to.
    public var canSend: Bool { !isReading && chat?.canSend == true }

    /// Asks what the chat's draft says.
    public func send() {
        guard canSend else { return }
        chat?.send()
    }

    /// What the last answer took: `32 tokens, 18.4 a second`.
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

    /// Waits until nothing is loaded or read any more.
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
