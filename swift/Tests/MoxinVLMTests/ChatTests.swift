import Foundation
import Testing

@testable import MoxinVLM

extension All {
    /// The chat behind a view.
    @MainActor @Suite struct Chats {
        @Test func aQuestionIsSentAndAnswered() async throws {
            try await withModel { model in
                let chat = VLMChat(session: try await model.makeSession())
                #expect(!chat.canSend)
                chat.send()
                #expect(chat.phase == .idle && chat.messages.isEmpty)
                chat.draft = written
                #expect(chat.canSend)
                chat.send(images: [picture])
                #expect(
                    chat.phase == .reading(done: 0, total: 0) && chat.draft.isEmpty && !chat.canSend
                )
                #expect(chat.messages.map(\.text) == [written, ""])
                await chat.settle()
                #expect(chat.phase == .idle && chat.error == nil)
                #expect(chat.messages.map(\.text) == [written, "The word FISH."])
                #expect(
                    chat.messages.map(\.role) == [.user, .assistant]
                        && chat.messages.map(\.id) == [0, 1])
                #expect(chat.stats?.generatedTokens ?? 0 > 3)

                chat.draft = "What is below it?"
                chat.send()
                await chat.settle()
                let transcript = await chat.session.transcript
                #expect(chat.messages.map(\.text) == transcript.map(\.text))
                #expect(
                    VLMChat(session: chat.session, transcript: transcript).messages == chat.messages
                )
            }
        }

        @Test func aStoppedTurnGoesBackToTheDraft() async throws {
            try await withModel { model in
                let chat = VLMChat(session: try await answered(model), interval: .zero)
                chat.draft = describe
                chat.send(options: endless)
                while chat.phase != .answering { try await Task.sleep(for: .milliseconds(1)) }
                chat.stop()
                await chat.settle()
                #expect(
                    chat.messages.isEmpty && chat.draft == describe && chat.error == nil
                        && chat.phase == .idle)
                chat.send()
                await chat.settle()
                #expect(chat.messages.last?.text.hasSuffix("at the bottom.") == true)
            }
        }

        @Test func aFailureIsReported() async throws {
            try await withModel { model in
                let chat = VLMChat(session: try await answered(model))
                chat.draft = describe
                chat.send(images: [picture])
                await chat.settle()
                #expect((chat.error as? VLMError)?.name == "invalidState")
                #expect(chat.messages.isEmpty && chat.draft == describe)
                chat.send()
                await chat.settle()
                #expect(chat.error == nil && chat.messages.count == 2)
            }
        }

        @Test func textsThatFollowEachOtherQuicklyAreOneChange() async throws {
            try await withModel { model in
                let session = try await answered(model)
                @MainActor func changes(_ interval: Duration) async throws -> Int {
                    let chat = VLMChat(session: session, interval: interval)
                    chat.draft = describe
                    chat.send()
                    var seen: Set<String> = []
                    while chat.phase != .idle {
                        seen.insert(chat.messages.last?.text ?? "")
                        await Task.yield()
                    }
                    #expect(chat.messages.last?.text.hasSuffix("at the bottom.") == true)
                    return seen.count
                }
                let all = try await changes(.zero)
                let few = try await changes(.seconds(10))
                #expect(few <= 4 && all > 10)
            }
        }

        @Test func aReleasedChatEndsItsAnswer() async throws {
            try await withModel { model in
                let session = try await answered(model)
                var chat: VLMChat? = VLMChat(session: session)
                chat?.draft = describe
                chat?.send(options: endless)
                while chat?.phase != .answering { try await Task.sleep(for: .milliseconds(1)) }
                chat = nil
                try await Task.sleep(for: .milliseconds(50))
                #expect(try await session.respond(to: written).text == "The word FISH.")
            }
        }
    }
}
