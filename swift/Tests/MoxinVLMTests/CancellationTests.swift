import Foundation
import Testing

@testable import MoxinVLM

extension All {
    /// Streams that end early, in every way.
    @Suite struct Cancellation {
        @Test func noStepIsTakenAhead() async throws {
            try await withModel { model in
                let session = try await model.makeSession()
                var consumed = 0
                for try await event in session.stream(describe, images: [picture]) {
                    guard case .text = event else { continue }
                    consumed += 1
                    try await Task.sleep(for: .milliseconds(5))
                    #expect(try await session.stats.generatedTokens <= consumed + 1)
                    if consumed == 5 { break }
                }
                #expect(consumed == 5)
            }
        }

        @Test func aStreamThatIsNotReadAsksNothing() async throws {
            try await withModel { model in
                let session = try await model.makeSession()
                _ = session.stream(describe, images: [picture])
                _ = session.stream(describe, images: [picture]).makeAsyncIterator()
                #expect(
                    try await session.respond(to: written, images: [picture]).text
                        == "The word FISH.")
            }
        }

        @Test func cancelledBeforeItStarts() async throws {
            try await withModel { model in
                let session = try await model.makeSession()
                let task = Task {
                    while !Task.isCancelled { await Task.yield() }
                    return try await session.respond(to: describe, images: [picture])
                }
                task.cancel()
                await #expect(throws: CancellationError.self) { try await task.value }
                #expect(try await session.stats.promptTokens == 0)
                #expect(
                    try await session.respond(to: written, images: [picture]).text
                        == "The word FISH.")
            }
        }

        @Test func cancelledInPrefill() async throws {
            try await withModel { model in
                var options = GenerationOptions()
                options.prefillChunk = 8
                let session = try await model.makeSession(options: options)
                let prefills = Locked(0)
                let task = Task {
                    for try await event in session.stream(describe, images: [picture]) {
                        guard case .prefill(let done, let total) = event else { return false }
                        prefills.with { $0 += 1 }
                        if done > 0, done < total {
                            withUnsafeCurrentTask { $0?.cancel() }
                        }
                    }
                    return true
                }
                await #expect(throws: CancellationError.self) { try await task.value }
                // The picture's encoding, one chunk, and no step after the cancellation except the
                // last.
                #expect(prefills.value == 2)
                #expect(try await session.stats.generatedTokens == 0)
                #expect(await session.transcript.isEmpty)
                #expect(
                    try await session.respond(to: written, images: [picture]).text
                        == "The word FISH.")
            }
        }

        @Test func cancelledWhileAStepIsComputed() async throws {
            try await withModel { model in
                let session = try await answered(model)
                for wait in [0, 1, 3, 7, 15, 30] {
                    let texts = Locked(0)
                    let task = Task {
                        for try await _ in session.stream(describe, options: endless).text {
                            texts.with { $0 += 1 }
                        }
                    }
                    try await Task.sleep(for: .milliseconds(wait))
                    task.cancel()
                    let atCancel = texts.value
                    await #expect(throws: CancellationError.self) { try await task.value }
                    #expect(
                        texts.value <= atCancel + 2,
                        "one step was under way, and one text may have been on its way here")
                    #expect(await session.transcript.count == 2)
                }
                #expect(try await session.respond(to: written).text == "The word FISH.")
            }
        }

        @Test func cancelledFromElsewhere() async throws {
            try await withModel { model in
                let session = try await answered(model)
                session.cancel()
                let task = Task {
                    var texts = 0
                    for try await _ in session.stream(describe, options: endless).text {
                        texts += 1
                        if texts == 3 { session.cancel() }
                        #expect(texts <= 3)
                    }
                }
                #expect(await failure { try await task.value }?.name == "cancelled")
                #expect(try await session.respond(to: written).text == "The word FISH.")
            }
        }

        @Test func leavingTheLoopRollsTheTurnBack() async throws {
            try await withModel { model in
                let session = try await model.makeSession()
                for length in 0..<6 {
                    var count = 0
                    for try await _ in session.stream(describe, images: [picture]) {
                        if count == length { break }
                        count += 1
                    }
                    #expect(await session.transcript.isEmpty)
                }
                #expect(
                    try await session.respond(to: written, images: [picture]).text
                        == "The word FISH.")
            }
        }

        @Test func aPictureThatWasReadAheadSurvivesACancelledQuestion() async throws {
            try await withModel { model in
                let session = try await model.makeSession()
                try await session.prewarm(images: [picture])
                for try await _ in session.stream(describe) { break }
                let response = try await session.respond(to: written)
                #expect(response.text == "The word FISH." && response.stats.imageTokens == 64)
                for try await _ in session.regenerate() { break }
                #expect(await session.transcript.isEmpty)
                #expect(try await session.respond(to: written).text == "The word FISH.")
            }
        }

        @Test func oneTurnAtATime() async throws {
            try await withModel { model in
                let session = try await model.makeSession()
                var first = session.stream(describe, images: [picture]).makeAsyncIterator()
                _ = try await first.next()
                #expect(
                    await failure { _ = try await session.respond(to: written) }?.name
                        == "sessionBusy")
                #expect(await failure { _ = try await session.fork() }?.name == "sessionBusy")
                #expect(
                    await failure { try await session.rewind(toCount: 0) }?.name == "sessionBusy")
                #expect(await failure { try await session.reset() }?.name == "sessionBusy")
                #expect(await failure { try await session.prewarm() }?.name == "sessionBusy")
                // The first one has not noticed.
                var text = ""
                while let event = try await first.next() {
                    if case .text(let delta, _) = event { text += delta }
                }
                #expect(text.hasPrefix("A red circle at the top left"))
            }
        }

        @Test func aCancelledLoadLeavesNothing() async throws {
            try await leavingNothing {
                let task = Task {
                    try await VLMModel.load(from: tiny) { _ in
                        withUnsafeCurrentTask { $0?.cancel() }
                    }
                }
                await #expect(throws: CancellationError.self) { _ = try await task.value }
                #expect(
                    await failure { _ = try await VLMModel.load(from: tiny, timeout: .zero) }?.name
                        == "timedOut")
            }
        }

        @Test func readingAheadBlocksNobodyAndCanBeCancelled() async throws {
            try await withModel { model in
                let other = try await answered(model)
                let session = try await model.makeSession()
                let reading = Locked(false)
                let release = DispatchSemaphore(value: 0)
                let task = Task {
                    try await session.prewarm(images: [picture]) { _ in
                        let isFirst = reading.with { reading in
                            defer { reading = true }
                            return !reading
                        }
                        if isFirst { _ = release.wait(timeout: .now() + 5) }
                    }
                }
                while !reading.value { try await Task.sleep(for: .milliseconds(1)) }
                #expect(
                    await failure { _ = try await session.respond(to: written) }?.name
                        == "sessionBusy")
                #expect(try await other.respond(to: describe).text.hasSuffix("at the bottom."))
                task.cancel()
                release.signal()
                await #expect(throws: CancellationError.self) { try await task.value }
                #expect(
                    try await session.respond(to: written, images: [picture]).text
                        == "The word FISH.")
            }
        }

        @Test func unloadingEndsAStream() async throws {
            try await withModel { model in
                let session = try await model.makeSession()
                let error = await failure {
                    for try await event in session.stream(describe, images: [picture]) {
                        if case .text = event { try await model.unload() }
                    }
                }
                #expect(error?.name == "invalidState")
                #expect(
                    await failure { _ = try await session.respond(to: written) }?.name
                        == "invalidState")
                #expect(await failure { _ = try await model.makeSession() }?.name == "invalidState")
                #expect(
                    await failure { _ = try await model.encode(picture) }?.name == "invalidState")
            }
        }

        @Test func aSuspendedLibraryPausesAnswers() async throws {
            try await withModel { model in
                let session = try await model.makeSession()
                let texts = Locked(0)
                let task = Task {
                    try await session.stream(describe, images: [picture]).text.reduce(into: "") {
                        text, delta in
                        text += delta
                        texts.with { $0 += 1 }
                        if texts.value == 3 { try await VLMRuntime.quiesce() }
                    }
                }
                while texts.value < 3 { try await Task.sleep(for: .milliseconds(1)) }
                try await Task.sleep(for: .milliseconds(50))
                #expect(texts.value == 3)
                #expect(await failure { _ = try await model.encode(picture) }?.name == "suspended")

                // A paused answer can be cancelled.
                let other = try await model.makeSession()
                let waiting = Task { try await other.respond(to: describe, images: [picture]) }
                try await Task.sleep(for: .milliseconds(30))
                waiting.cancel()
                await #expect(throws: CancellationError.self) { _ = try await waiting.value }

                VLMRuntime.resume()
                #expect(try await task.value.hasSuffix("a blue triangle at the bottom."))
            }
        }

        @Test func quiescingOvertakesALoad() async throws {
            try await leavingNothing {
                let (begun, isLate) = (Locked(false), Locked(false))
                let release = DispatchSemaphore(value: 0)
                let load = Task {
                    try await VLMModel.load(from: tiny) { _ in
                        // The call blocks the package's thread until the library is idle.
                        if begun.with({ begun in
                            defer { begun = true }
                            return !begun
                        }), release.wait(timeout: .now() + 5) == .timedOut {
                            isLate.with { $0 = true }
                        }
                    }
                }
                while !begun.value { try await Task.sleep(for: .milliseconds(1)) }
                try await VLMRuntime.quiesce()
                release.signal()
                #expect(!isLate.value, "it waited for the load")
                // The library's own thread may have finished it by then.
                let ending = await failure { _ = try await load.value }
                #expect(ending == nil || ending?.name == "suspended")
                VLMRuntime.resume()
            }
        }
    }
}
