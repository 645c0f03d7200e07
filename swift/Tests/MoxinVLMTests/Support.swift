import Foundation
import Testing

@testable import MoxinVLM

/// All tests, one after the other, because they count the library's objects, and the count is per
/// process.
@Suite(.serialized)
enum All {}

let repository = URL(fileURLWithPath: #filePath).deletingLastPathComponent()
    .deletingLastPathComponent().deletingLastPathComponent()
    .deletingLastPathComponent()
let tiny = repository.appendingPathComponent("models/tiny")
let picture = VLMImage(contentsOf: repository.appendingPathComponent("models/demo.png"))

let written = "What is written?"
let describe = "Describe the picture."

/// All tokens are about equally likely, and with this seed the first thousand do not end the
/// answer.
let endless = GenerationOptions(temperature: 50, maxTokens: 4000, seed: 1)

/// Provides the small model, and checks that no library object is left behind.
func withModel(
    _ options: LoadOptions = LoadOptions(), isolation: isolated (any Actor)? = #isolation,
    _ body: (VLMModel) async throws -> Void
) async throws {
    try await leavingNothing {
        try await body(try await VLMModel.load(from: tiny, options: options))
    }
}

/// Checks that no library object is left behind. Objects that a task released may take a moment to
/// be freed.
func leavingNothing(isolation: isolated (any Actor)? = #isolation, _ body: () async throws -> Void)
    async throws
{
    try await body()
    for _ in 0..<200 where try VLMRuntime.memory().liveHandles > 0 {
        try await Task.sleep(for: .milliseconds(10))
    }
    #expect(try VLMRuntime.memory().liveHandles == 0)
}

/// Returns a session with the picture that has answered a question about it.
func answered(_ model: VLMModel, options: GenerationOptions = GenerationOptions()) async throws
    -> VLMSession
{
    let session = try await model.makeSession(options: options)
    _ = try await session.respond(to: written, images: [picture])
    return session
}

/// Returns the status that `body` fails with, or nothing if it succeeds.
func failure(isolation: isolated (any Actor)? = #isolation, _ body: () async throws -> Void) async
    -> VLMError?
{
    do {
        try await body()
        return nil
    } catch {
        return error as? VLMError
    }
}

/// Returns the number of threads in this process; `nil` if the system does not list them.
func threadCount() -> Int? {
    try? FileManager.default.contentsOfDirectory(atPath: "/proc/self/task").count
}

/// Provides a folder that is removed when the test ends.
func withFolder(_ body: (URL) async throws -> Void) async throws {
    let folder = FileManager.default.temporaryDirectory.appendingPathComponent(UUID().uuidString)
    try FileManager.default.createDirectory(at: folder, withIntermediateDirectories: true)
    defer { try? FileManager.default.removeItem(at: folder) }
    try await body(folder)
}

extension VLMError {
    /// The name of the case.
    var name: String {
        String(String(describing: self).prefix { $0 != "(" })
    }
}

/// A value for several threads.
final class Locked<Value: Sendable>: @unchecked Sendable {
    private let lock = NSLock()
    private var held: Value

    init(_ value: Value) { held = value }

    var value: Value { with { $0 } }

    func with<R>(_ body: (inout Value) throws -> R) rethrows -> R {
        try lock.withLock { try body(&held) }
    }
}
