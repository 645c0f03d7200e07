import Foundation
import Testing

@testable import MoxinVLM

extension All {
    /// Many streams, and their effect on the rest of a program.
    @Suite struct Load {
        /// The same numbers in each run.
        private struct Dice: RandomNumberGenerator {
            var state: UInt64

            mutating func next() -> UInt64 {
                state = state &* 6_364_136_223_846_793_005 &+ 1_442_695_040_888_963_407
                return state ^ (state >> 29)
            }
        }

        @Test func aThousandAbandonedStreamsLeaveNothing() async throws {
            try await withModel { model in
                _ = try await answered(model)
                let threads = threadCount()
                var dice = Dice(state: 1)
                let embedding = VLMImage(try await model.encode(picture))
                var session = try await model.makeSession()
                for number in 0..<1000 {
                    if number.isMultiple(of: 50) { session = try await model.makeSession() }
                    let stream = session.stream(describe, images: [embedding])
                    switch Int.random(in: 0..<4, using: &dice) {
                    case 0:
                        var left = Int.random(in: 0..<8, using: &dice)
                        for try await _ in stream {
                            if left == 0 { break }
                            left -= 1
                        }
                    case 1:
                        let task = Task { try await stream.response() }
                        try await Task.sleep(
                            for: .microseconds(Int.random(in: 0..<4000, using: &dice)))
                        task.cancel()
                        await #expect(throws: CancellationError.self) { try await task.value }
                    case 2:
                        let task = Task { try await stream.response() }
                        task.cancel()
                        await #expect(throws: CancellationError.self) { try await task.value }
                    default:
                        var iterator = stream.makeAsyncIterator()
                        _ = try await iterator.next()
                        session.cancel()
                        await #expect(throws: VLMError.self) { [generation = iterator.generation] in
                            while try await generation.next() != nil {}
                        }
                    }
                    #expect(await session.transcript.isEmpty)
                }
                #expect(
                    try await session.respond(to: written, images: [embedding]).text
                        == "The word FISH.")
                #if os(Linux)
                    // Threads of Swift's own pool come and go.
                    #expect(try #require(threadCount()) <= #require(threads) + 2)
                #endif
            }
        }

        @Test func sessionsTakeTurns() async throws {
            try await withModel { model in
                let order = Locked<[Int]>([])
                try await withThrowingTaskGroup(of: Void.self) { group in
                    for number in 0..<2 {
                        let session = try await answered(model)
                        group.addTask {
                            for try await _ in session.stream(describe).text {
                                order.with { $0.append(number) }
                            }
                        }
                    }
                    try await group.waitForAll()
                }
                let changes = zip(order.value, order.value.dropFirst()).filter { $0 != $1 }.count
                #expect(changes > order.value.count / 4, "\(order.value)")
            }
        }

        /// Returns the maximum delay of a timer on Swift's own threads, of some hundreds, while
        /// `body` runs.
        private func lateness(_ body: () async throws -> Void) async throws -> (
            worst: Duration, median: Duration
        ) {
            let ticks = Locked<[Duration]>([])
            let timer = Task {
                while !Task.isCancelled {
                    let start = ContinuousClock.now
                    try? await Task.sleep(for: .milliseconds(2))
                    ticks.with { $0.append(ContinuousClock.now - start - .milliseconds(2)) }
                }
            }
            try await body()
            timer.cancel()
            let sorted = ticks.value.sorted()
            return (sorted.last ?? .zero, sorted.isEmpty ? .zero : sorted[sorted.count / 2])
        }

        @Test func theThreadsOfSwiftStayFree() async throws {
            try await withModel { model in
                let idle = try await lateness { try await Task.sleep(for: .milliseconds(300)) }
                let long = String(repeating: "What is written? ", count: 400)
                var options = GenerationOptions(maxTokens: 60)
                options.prefillChunk = 4096
                let sessions = [
                    try await model.makeSession(options: options),
                    try await model.makeSession(options: options),
                ]
                let busy = try await lateness {
                    try await withThrowingTaskGroup(of: Void.self) { group in
                        for session in sessions {
                            group.addTask { _ = try await session.respond(to: long) }
                        }
                        try await group.waitForAll()
                    }
                }
                let longest = try await sessions[0].stats.prefill
                print(
                    "a timer of 2 ms is late by \(idle) while nothing runs, by \(busy) while two sessions answer; one step took \(longest)"
                )
                // Long relative to the timer, even on a fast machine; otherwise the test would show
                // nothing.
                #expect(longest > .milliseconds(20))
                #expect(busy.median < .milliseconds(20))
                #expect(busy.worst < longest / 2)
            }
        }
    }
}
