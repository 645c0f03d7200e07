import Foundation
import Testing

@testable import MoxinVLM

extension All {
    /// Compares answers with those of the C example.
    @Suite struct Answers {
        @Test func aQuestionIsAnswered() async throws {
            try await withModel { model in
                let session = try await model.makeSession()
                let response = try await session.respond(to: written, images: [picture])
                #expect(response.text == "The word FISH.")
                #expect(response.stopReason == .endOfTurn)
                #expect(response.tokens.count == response.stats.generatedTokens)
                #expect(response.stats.imageTokens == 64)
                #expect(response.stats.messageCount == 2)
                #expect(
                    await session.transcript == [
                        Turn(role: .user, text: written),
                        Turn(role: .assistant, text: response.text),
                    ])

                let next = try await session.respond(to: "What is below it?")
                #expect(next.stats.reusedTokens > 64)
                #expect(try await session.stats == next.stats)
            }
        }

        @Test func aRawPromptIsUsedUnchanged() async throws {
            try await withModel { model in
                let session = try await model.makeSession()
                let response = try await session.stream(
                    rawPrompt: "In: \(written)\nOut:", images: [picture]
                ).response()
                #expect(response.text == " The word FISH.")
                #expect(await session.transcript.map(\.role) == [.prompt, .assistant])
                let next = try await session.respond(to: "What is below it?")
                #expect(next.stats.reusedTokens > 64)
                let again = try await model.makeSession(transcript: await session.transcript)
                #expect(await again.transcript == session.transcript)
            }
        }

        private struct Answer: Decodable {
            var text: String
            var tokens: [Int32]
            var logprobs: [Float]
            var finish: String
        }

        private static let expected = ProcessInfo.processInfo.environment["MOXIN_C_ANSWERS"]

        @Test(
            .enabled(
                if: expected != nil,
                "MOXIN_C_ANSWERS names no output of examples/c/describe.c --json"))
        func tokensMatchTheCExample() async throws {
            let file = URL(fileURLWithPath: try #require(Answers.expected))
            let answers = try #require(
                JSONDecoder().decode([String: [Answer]].self, from: Data(contentsOf: file))[
                    "answers"])
            #expect(answers.count > 1)
            try await withModel { model in
                let session = try await model.makeSession()
                for (number, (question, answer)) in zip(questions, answers).enumerated() {
                    let response = try await session.respond(
                        to: question, images: number == 0 ? [picture] : [])
                    #expect(response.text == answer.text)
                    #expect(response.tokens.map(\.id) == answer.tokens)
                    #expect(response.tokens.map(\.logProbability) == answer.logprobs)
                    #expect(answer.finish == "EndOfTurn" && response.stopReason == .endOfTurn)
                }
            }
        }

        /// The questions that `cargo xtask swift-test` passes to the C example.
        private let questions = [
            "Describe the picture.", "What is at the top right?", "What is left of it?",
        ]

        @Test func eventsComeInOrderAndMakeUpTheAnswer() async throws {
            try await withModel { model in
                let session = try await model.makeSession()
                var kinds = ""
                var text = ""
                for try await event in session.stream(written, images: [picture]) {
                    switch event {
                    case .prefill(let done, let total):
                        kinds += "p"
                        #expect(done <= total)
                    case .text(let delta, _):
                        kinds += "t"
                        text += delta
                    case .finished(let stats, let reason):
                        kinds += "f"
                        #expect(reason == .endOfTurn)
                        #expect(stats.generatedTokens == kinds.filter { $0 == "t" }.count)
                    }
                }
                #expect(kinds.contains(/^p+t+f$/))
                #expect(text == "The word FISH.")

                // A stream is cold: it may be used again, and asks again.
                let stream = session.stream(written)
                let first = try await stream.response().text
                var second = ""
                for try await delta in stream.text {
                    #expect(!delta.isEmpty)
                    second += delta
                }
                #expect(first == "The word FISH." && second == first)
                #expect(await session.transcript.count == 6)
            }
        }

        @Test func optionsAreRespected() async throws {
            try await withModel { model in
                let session = try await answered(model)
                let brief = try await session.respond(
                    to: describe, options: GenerationOptions(maxTokens: 3))
                #expect(brief.stopReason == .maxTokens && brief.stats.generatedTokens == 3)
                try await session.rewind(toCount: 2)

                let stopped = try await session.respond(
                    to: describe, options: GenerationOptions(stop: ["never", " star"]))
                #expect(stopped.stopReason == .stopSequence && stopped.text.hasSuffix("a yellow"))
                try await session.rewind(toCount: 2)

                // Options for one answer apply only to it.
                let whole = try await session.respond(to: describe)
                #expect(whole.stopReason == .endOfTurn && whole.text.contains("star"))

                var options = GenerationOptions()
                options.alternatives = 2
                try await session.setOptions(options)
                let tokens = try await session.respond(to: written).tokens
                for token in tokens {
                    #expect(token.alternatives.count == 2)
                    #expect(
                        token.alternatives[0].id == token.id
                            && token.alternatives[0].logProbability == token.logProbability)
                    #expect(token.alternatives[1].logProbability <= token.logProbability)
                }
                #expect(await session.options == options)
            }
        }

        @Test func theSameSeedSamplesTheSameTokens() async throws {
            try await withModel { model in
                let session = try await model.makeSession()
                try await session.prewarm(images: [picture])
                func draw(_ seed: UInt64) async throws -> [Int32] {
                    let response = try await session.respond(
                        to: describe,
                        options: GenerationOptions(temperature: 3, maxTokens: 20, seed: seed))
                    try await session.rewind(toCount: 0)
                    return response.tokens.map(\.id)
                }
                let first = try await draw(7)
                #expect(try await draw(7) == first)
                #expect(try await draw(8) != first)
            }
        }

        @Test func aFullContextEndsAnAnswer() async throws {
            try await withModel { model in
                var options = GenerationOptions()
                options.maxContext = 90
                let session = try await model.makeSession(options: options)
                #expect(
                    try await session.respond(to: describe, images: [picture]).stopReason
                        == .contextFull)
            }
        }

        @Test func aForkIsIndependent() async throws {
            try await withModel { model in
                let session = try await answered(model)
                let fork = try await session.fork()
                #expect(await fork.transcript == session.transcript)
                let here = try await session.respond(to: describe)
                let there = try await fork.respond(to: "What is at the top right?")
                #expect(here.text != there.text && there.text == "A yellow star.")
                #expect(there.stats.reusedTokens > 64)
                #expect(await session.transcript.count == 4)
                #expect(await fork.transcript.last == Turn(role: .assistant, text: there.text))
            }
        }

        @Test func aConversationIsRewoundRepeatedAndReset() async throws {
            try await withModel { model in
                let session = try await answered(model)
                let first = try await session.respond(to: describe)
                let again = try await session.regenerate().response()
                #expect(
                    again.text == first.text && again.tokens.map(\.id) == first.tokens.map(\.id))
                #expect(
                    await session.transcript.map(\.text) == [
                        written, "The word FISH.", describe, first.text,
                    ])

                for count in [-1, 1, 3, 5, 6] {
                    #expect(
                        await failure { try await session.rewind(toCount: count) }?.name
                            == "invalidArgument")
                }
                try await session.rewind(toCount: 0)
                #expect(
                    try await session.respond(to: describe).text == first.text, "the picture stays")
                try await session.reset()
                #expect(await session.transcript.isEmpty)
                let elsewhere = try await session.respond(to: describe, images: [picture])
                #expect(elsewhere.text == first.text && elsewhere.stats.cachedImages == 1)
                try await session.reset()
                #expect(
                    await failure { _ = try await session.regenerate().response() }?.name
                        == "invalidState")
            }
        }

        @Test func aTranscriptIsContinued() async throws {
            try await withModel { model in
                let session = try await model.makeSession()
                _ = try await session.respond(to: written)
                let transcript = await session.transcript
                let later = try await model.makeSession(transcript: transcript)
                let (expected, found) = try await (
                    session.respond(to: describe), later.respond(to: describe)
                )
                #expect(
                    found.text == expected.text
                        && found.tokens.map(\.id) == expected.tokens.map(\.id))
                #expect(await later.transcript == session.transcript)
                let half = Array(transcript.dropLast())
                #expect(
                    await failure { _ = try await model.makeSession(transcript: half) }?.name
                        == "invalidArgument")
            }
        }

        @Test func textReadAheadIsNotReadAgain() async throws {
            try await withModel { model in
                let session = try await model.makeSession()
                let told = Locked<[VLMProgress]>([])
                try await session.prewarm(images: [picture]) { progress in
                    told.with { $0.append(progress) }
                }
                #expect(
                    told.value.contains { $0.stage == .encode }
                        && told.value.contains { $0.stage == .prefill && $0.fraction == 1 })
                let response = try await session.respond(to: written)
                #expect(response.text == "The word FISH." && response.stats.reusedTokens > 64)
                #expect(
                    await failure { try await session.prewarm(images: [picture]) }?.name
                        == "invalidState")
            }
        }
    }
}
