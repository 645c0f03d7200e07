import Foundation
import MoxinVLM
import PictureChatLogic
import Testing

@MainActor @Suite(.serialized) struct PictureChatTests {
    private let models = URL(fileURLWithPath: #filePath).deletingLastPathComponent()
        .appendingPathComponent("../../../../../models").standardized

    private func demo() throws -> Data {
        try Data(contentsOf: models.appendingPathComponent("demo.png"))
    }

    private func ask(_ app: PictureChat, _ question: String) async throws -> String? {
        let chat = try #require(app.chat)
        chat.draft = question
        app.send()
        await chat.settle()
        return chat.messages.last?.text
    }

    @Test func aPictureIsDroppedAndAskedAbout() async throws {
        let app = PictureChat()
        app.show(try demo())
        #expect(app.chat == nil && !app.canSend)
        app.open(models.appendingPathComponent("tiny"))
        #expect(app.modelState == .loading(0))
        await app.settle()
        #expect(app.problem == nil && !app.isReading)
        guard case .ready(let info) = app.modelState else {
            throw VLMError.notFound(.init(message: "no model"))
        }
        #expect(info.modelType == "prismatic")
        #expect(try await ask(app, "What is written?") == "The word FISH.")
        #expect(
            app.chat?.stats?.reusedTokens ?? 0 >= 64,
            "the picture was read before the question came")
        #expect(app.speed?.contains(" tokens, ") == true)
        #expect(try await ask(app, "What is at the top right?") == "A yellow star.")

        let watching = Task { await app.watchMemory(every: .milliseconds(1)) }
        while app.memory == nil { try await Task.sleep(for: .milliseconds(1)) }
        watching.cancel()
        #expect(app.memory?.active ?? 0 > 0)

        // Another picture starts another chat.
        app.show(try demo())
        #expect(app.chat == nil)
        await app.settle()
        #expect(app.chat?.messages.isEmpty == true)
        app.close()
        #expect(app.modelState == .none && app.chat == nil)
    }

    @Test func whatFailsIsExplained() async throws {
        let app = PictureChat()
        app.open(URL(fileURLWithPath: "/nowhere"))
        await app.settle()
        #expect(app.modelState == .none)
        #expect(
            app.problem?.contains("/nowhere") == true
                && app.problem?.contains("Check the path") == true)

        app.open(models.appendingPathComponent("tiny"))
        await app.settle()
        #expect(app.problem == nil)
        app.show(Data([1, 2, 3]))
        await app.settle()
        #expect(app.problem?.contains("Choose another picture") == true)
    }
}
