import Foundation
import Testing

@testable import MoxinVLM

extension All {
    /// Models, pictures and memory.
    @Suite struct Models {
        @Test func aFolderIsInspectedAndEstimated() async throws {
            try await leavingNothing {
                let info = try await VLMModel.inspect(tiny)
                #expect(
                    info.modelType == "prismatic" && info.tokensPerImage == 64
                        && info.hiddenSize == 192)
                #expect(
                    info.fingerprint == 0 && info.quantization == nil && info.backend != .automatic
                        && info.dtype != .automatic)
                let estimate = try await VLMModel.estimate(tiny)
                #expect(
                    estimate.fits && estimate.weights > info.weightBytes / 2
                        && estimate.total > estimate.weights)
                var short = GenerationOptions()
                short.maxContext = 100
                let less = try await VLMModel.estimate(tiny, session: short)
                #expect(
                    less.keyValues < estimate.keyValues
                        && less.keyValuesPerToken == estimate.keyValuesPerToken)

                let model = try await VLMModel.load(from: tiny)
                let loaded = await model.info
                #expect(loaded.fingerprint != 0 && loaded.parameterCount == info.parameterCount)
                #expect(try await model.metadata("model_type") == "prismatic")
                #expect(
                    await failure { _ = try await model.metadata("nothing.of.it") }?.name
                        == "notFound")
            }
        }

        @Test func boxesAreInThePixelsOfThePicture() async throws {
            try await leavingNothing {
                let folder = repository.appendingPathComponent("tests/models/qwen2_vl/model")
                let model = try await VLMModel.load(from: folder)
                #expect(await model.info.grounding)
                let found = try await model.locate(
                    in: "the cat(100,200),(300,400)", width: 2000, height: 1000)
                #expect(found.map(\.label) == ["the cat"])
                #expect(
                    found.first?.place == .box(left: 200, top: 200, right: 600, bottom: 400))
                let point = try await model.locate(
                    in: #"{"point_2d": [500, 5000]}"#, width: 2000, height: 1000)
                #expect(point.first?.place == .point(x: 1000, y: 1000))
                #expect(try await model.locate(in: "", width: 20, height: 10).isEmpty)
            }
            try await withModel { model in
                #expect(
                    await failure { _ = try await model.locate(in: "", width: 9, height: 9) }?.name
                        == "invalidState")
            }
        }

        @Test func aPromptIsCountedWithoutAskingIt() async throws {
            try await withModel { model in
                let session = try await model.makeSession()
                let tokens = try await session.promptTokens(for: written, images: [picture])
                #expect(await session.transcript.isEmpty)
                let response = try await session.respond(to: written, images: [picture])
                #expect(response.stats.promptTokens == tokens && response.text == "The word FISH.")
                let second = try await session.promptTokens(for: describe)
                let answer = try await session.respond(to: describe)
                #expect(answer.stats.promptTokens == second && second > tokens)
            }
        }

        @Test func anEndedConversationIsContinued() async throws {
            try await withModel(LoadOptions(prefixCacheBytes: 1 << 20)) { model in
                var reused: [Int] = []
                for scope in [0, 0, 1] as [UInt64] {
                    var options = GenerationOptions(maxTokens: 4)
                    options.prefixScope = scope
                    options.frequencyPenalty = 0.5
                    let session = try await model.makeSession(options: options)
                    let response = try await session.respond(to: written, images: [picture])
                    reused.append(response.stats.reusedTokens)
                }
                #expect(reused[0] == 0 && reused[1] > 64 && reused[2] == 0)
                #expect(try VLMRuntime.memory().prefixCache > 0)
            }
        }

        @Test func loadingReportsProgress() async throws {
            try await leavingNothing {
                let told = Locked<[VLMProgress]>([])
                _ = try await VLMModel.load(from: tiny) { progress in
                    told.with { $0.append(progress) }
                }
                let fractions = told.value.map(\.fraction)
                #expect(
                    told.value.allSatisfy { $0.stage == .load } && fractions == fractions.sorted()
                        && fractions.last == 1)
            }
        }

        @Test func aModelIsQuantizedSavedAndLoadedAgain() async throws {
            try await withFolder { folder in
                try await withModel { model in
                    let saved = folder.appendingPathComponent("tiny-8bit")
                    let stages = Locked<Set<VLMProgress.Stage>>([])
                    let tell: ProgressHandler = { progress in
                        stages.with { _ = $0.insert(progress.stage) }
                    }
                    var quantization = Quantization(.affine(bits: 8, groupSize: 32))
                    quantization.modules = [
                        "language_model.lm_head": .affine(bits: 4),
                        "language_model.model.layers.0": nil,
                    ]
                    try await model.quantize(quantization, progress: tell)
                    #expect(await model.info.quantization == .affine(bits: 8, groupSize: 32))
                    try await model.save(to: saved, progress: tell)
                    #expect(stages.value == [.quantize, .save])
                    #expect(
                        await failure { try await model.save(to: saved) }?.name == "invalidArgument"
                    )
                    try await model.save(to: saved, overwriting: true)

                    let again = try await VLMModel.load(from: saved)
                    #expect(await again.info.quantization == .affine(bits: 8, groupSize: 32))
                    let (here, there) = (
                        try await model.makeSession(), try await again.makeSession()
                    )
                    let expected = try await here.respond(to: describe, images: [picture])
                    let found = try await there.respond(to: describe, images: [picture])
                    #expect(found.tokens == expected.tokens)
                    let config = try String(
                        contentsOf: saved.appendingPathComponent("config.json"), encoding: .utf8)
                    #expect(config.contains("language_model.lm_head"))
                }
                try await leavingNothing {
                    let model = try await VLMModel.load(
                        from: tiny, options: LoadOptions(quantization: .mxfp8))
                    #expect(await model.info.quantization == .mxfp8)
                    let whole = try await VLMModel.load(from: tiny)
                    try await whole.quantize(bits: 4)
                    #expect(await whole.info.quantization == .affine(bits: 4, groupSize: 64))
                    #expect(
                        await failure { try await whole.quantize(bits: 4) }?.name == "invalidState")
                }
            }
        }

        @Test func anEmbeddingReplacesItsPicture() async throws {
            try await withModel { model in
                let embedding = try await model.encode(picture)
                #expect(embedding.tokenCount == 64 && embedding.hiddenSize == 192)
                let fingerprint = await model.info.fingerprint
                #expect(embedding.modelFingerprint == fingerprint)
                let values = try await embedding.values()
                #expect(
                    values.count == 64 * 192 && values.allSatisfy(\.isFinite)
                        && Set(values).count > 1000)
                for _ in 0..<2 {
                    let session = try await model.makeSession()
                    let response = try await session.respond(
                        to: written, images: [VLMImage(embedding)])
                    #expect(response.text == "The word FISH." && response.stats.vision == .zero)
                }
                #expect(
                    await failure { _ = try await VLMImage(embedding).size() }?.name
                        == "invalidArgument")
            }
        }

        @Test func aVideoTakesAPicturesPlace() async throws {
            let videos = repository.appendingPathComponent("tests/video")
            let gif = videos.appendingPathComponent("equal.gif")
            var clip = VLMVideo(contentsOf: gif)
            clip.framesPerSecond = nil
            let info = try await clip.info()
            #expect(info.frameCount == 12 && info.width == 48 && info.height == 36)
            let data = VLMVideo(data: try Data(contentsOf: gif))
            #expect(try await data.info().frameCount == 4)
            let frames = [picture, picture, picture]
            let timed = VLMVideo(frames: frames, times: [0, 0.5, 2])
            #expect(try await timed.info().framesPerSecond == 1)
            for wrong in [
                VLMVideo(frames: frames, times: [0]), VLMVideo(frames: [], framesPerSecond: 1),
                VLMVideo(frames: frames, framesPerSecond: 0),
            ] {
                #expect(await failure { _ = try await wrong.info() }?.name == "invalidArgument")
            }
            let qwen = repository.appendingPathComponent("tests/models/qwen2_vl/model")
            try await leavingNothing {
                let model = try await VLMModel.load(from: qwen)
                #expect(await model.info.takesVideos)
                let options = GenerationOptions(maxTokens: 6)
                var answers: [String] = []
                let embedding = try await model.encode(data)
                for image in [VLMImage(data), VLMImage(embedding)] {
                    let session = try await model.makeSession(options: options)
                    answers.append(
                        try await session.respond(to: "What moves?", images: [image]).text)
                }
                #expect(!answers[0].isEmpty && answers[0] == answers[1])
            }
            try await withModel { model in
                #expect(await !model.info.takesVideos)
                let session = try await model.makeSession()
                let refused = await failure {
                    _ = try await session.respond(to: written, images: [VLMImage(timed)])
                }
                #expect(refused?.name == "invalidArgument")
            }
        }

        @Test func aPictureComesInManyForms() async throws {
            try await withModel { model in
                let data = try Data(
                    contentsOf: repository.appendingPathComponent("models/demo.png"))
                let expected = try await model.encode(picture).imageHash
                #expect(try await model.encode(VLMImage(data: data)).imageHash == expected)
                #expect(try await picture.size() == (448, 448))

                // The same pixels in any byte order are one picture.
                let (width, height) = (30, 20)
                var (rgb, rgba, bgra, padded) = (Data(), Data(), Data(), Data())
                for place in 0..<width * height {
                    let (red, green, blue) = (
                        UInt8(place % 251), UInt8(place % 83), UInt8(place % 7)
                    )
                    rgb += [red, green, blue]
                    rgba += [red, green, blue, 255]
                    bgra += [blue, green, red, 9]
                    padded += [red, green, blue]
                    if place % width == width - 1 { padded += [1, 2, 3, 4, 5] }
                }
                let image = VLMImage(pixels: rgb, width: width, height: height, format: .rgb8)
                let hash = try await model.encode(image).imageHash
                #expect(hash != expected)
                for image in [
                    VLMImage(pixels: rgba, width: width, height: height, format: .rgba8),
                    VLMImage(pixels: bgra, width: width, height: height, format: .bgra8),
                    VLMImage(
                        pixels: padded, width: width, height: height, bytesPerRow: width * 3 + 5,
                        format: .rgb8),
                ] {
                    #expect(try await model.encode(image).imageHash == hash)
                }
                let gray = VLMImage(
                    pixels: Data(repeating: 128, count: 600), width: 30, height: 20, format: .gray8)
                #expect(try await gray.size() == (30, 20))

                let tooFew = VLMImage(
                    pixels: Data(count: 599), width: 30, height: 20, format: .gray8)
                #expect(await failure { _ = try await tooFew.size() }?.name == "invalidArgument")
                let none = VLMImage(pixels: Data(), width: 0, height: -1, format: .rgb8)
                #expect(await failure { _ = try await none.size() }?.name == "invalidArgument")
                let huge = VLMImage(pixels: Data(), width: .max, height: .max, format: .rgba8)
                #expect(await failure { _ = try await huge.size() }?.name == "invalidArgument")
                for bytes in [Data(), Data([1, 2, 3])] {
                    #expect(
                        await failure { _ = try await VLMImage(data: bytes).size() }?.name
                            == "unsupportedImage")
                }
                var limited = picture
                limited.maxPixels = 1000
                #expect(
                    await failure { [limited] in _ = try await limited.size() }?.name
                        == "unsupportedImage")
                #expect(
                    await failure {
                        _ = try await VLMImage(contentsOf: URL(fileURLWithPath: "/nowhere.png"))
                            .size()
                    }?.name == "notFound")
            }
        }

        @Test func aBudgetBelongsToAPictureOrASession() async throws {
            try await withModel { model in
                let few = VLMImage.PixelBudget(maxTokens: 1)
                #expect(try await model.imageTokens(width: 9, height: 5) == 64)
                #expect(
                    await failure {
                        _ = try await model.imageTokens(width: 9, height: 5, budget: few)
                    }?.name == "invalidArgument")
                var options = GenerationOptions()
                options.imageBudget = few
                let session = try await model.makeSession(options: options)
                #expect(
                    await failure {
                        _ = try await session.respond(to: written, images: [picture])
                    }?.name == "invalidArgument")
                var own = picture
                own.pixelBudget = VLMImage.PixelBudget(tiles: false)
                let response = try await session.respond(to: written, images: [own])
                #expect(response.text == "The word FISH.")
            }
        }

        @Test func picturesAreTurnedUprightUnlessDisabled() async throws {
            try await leavingNothing {
                for orientation in 1...8 {
                    var image = VLMImage(
                        contentsOf: turned.appendingPathComponent("orientation-\(orientation).jpg"))
                    let upright = try await image.size()
                    image.ignoresOrientation = true
                    let stored = try await image.size()
                    #expect(upright == (orientation < 5 ? stored : (stored.height, stored.width)))
                    #expect(stored.width != stored.height)
                }
            }
        }

        private let turned = repository.appendingPathComponent("tests/image")

        @Test func memoryIsReportedLimitedAndReleased() async throws {
            try await withModel { model in
                _ = try await answered(model)
                let before = try model.memory()
                #expect(
                    before.active > 0 && before.peak >= before.active && before.imageCache > 0
                        && before.limit == nil)
                model.trim()
                for _ in 0..<100 where try model.memory().imageCache > 0 {
                    try await Task.sleep(for: .milliseconds(5))
                }
                #expect(try model.memory().imageCache == 0)

                try VLMRuntime.setMemoryLimits(total: before.active, cache: nil)
                #expect(try model.memory().limit == before.active)
                #expect(
                    await failure { _ = try await VLMModel.load(from: tiny) }?.name == "outOfMemory"
                )
                try VLMRuntime.setMemoryLimits(total: nil, cache: nil)

                try await model.unload()
                #expect(try model.memory().active < before.active / 2)
            }
        }

        @Test func theLibraryDescribesItself() throws {
            #expect(VLMRuntime.version.contains("."))
            let info = try #require(
                JSONSerialization.jsonObject(with: Data(VLMRuntime.buildInfo.utf8))
                    as? [String: Any])
            #expect(info["version"] as? String == VLMRuntime.version)
            #expect((info["models"] as? [String])?.contains("prismatic") == true)
            #expect(VLMBackend.automatic.isAvailable && VLMBackend.cpu.isAvailable)
        }

        @Test func messagesReachTheHandlerWhichIsReleased() async throws {
            final class Ear: Sendable {
                let messages = Locked<[VLMLog.Message]>([])
            }
            try await leavingNothing {
                weak var gone: Ear?
                do {
                    let ear = Ear()
                    gone = ear
                    try VLMLog.set(.debug) { message in ear.messages.with { $0.append(message) } }
                    _ = try await VLMModel.load(from: tiny)
                    _ = await failure {
                        _ = try await VLMModel.load(from: URL(fileURLWithPath: "/nowhere"))
                    }
                    for _ in 0..<200
                    where !ear.messages.value.contains(where: { $0.text.contains("/nowhere") }) {
                        try await Task.sleep(for: .milliseconds(5))
                    }
                    #expect(
                        ear.messages.value.contains {
                            $0.level == .info && $0.target.hasPrefix("moxin_vlm")
                        })
                    #expect(
                        ear.messages.value.contains {
                            $0.level == .debug && $0.text.contains("/nowhere")
                        })
                    try VLMLog.set(.off, handler: nil)
                }
                for _ in 0..<200 where gone != nil { try await Task.sleep(for: .milliseconds(5)) }
                #expect(gone == nil)
            }
        }
    }
}
