import CMoxinVLM
import Foundation
import Testing

@testable import MoxinVLM

extension All {
    /// Each status of the library has its Swift case, and each case occurs when it should.
    @Suite struct Errors {
        private static let header = repository.appendingPathComponent("include/moxin_vlm.h")

        /// The case of each status in the header.
        private static let cases = [
            "NULL_ARGUMENT": "nullArgument", "INVALID_ARGUMENT": "invalidArgument",
            "INVALID_STATE": "invalidState", "CANCELLED": "cancelled",
            "TIMEOUT": "timedOut", "BUSY": "sessionBusy", "SUSPENDED": "suspended",
            "NOT_FOUND": "notFound", "IO": "io",
            "CORRUPT_MODEL": "corruptModel", "UNSUPPORTED_MODEL": "unsupportedModel",
            "UNSUPPORTED_IMAGE": "unsupportedImage",
            "CONTEXT_FULL": "contextFull", "OUT_OF_MEMORY": "outOfMemory",
            "BACKEND_UNAVAILABLE": "backendUnavailable", "BACKEND": "backend",
            "PANIC": "internalFailure",
        ]

        /// Returns the differences between a header's statuses and the Swift cases.
        private func drift(_ header: String) -> [String] {
            var found: [String] = []
            var known = Set(Errors.cases.keys)
            for match in header.matches(of: /MOXIN_STATUS_([A-Z_]+) = ([0-9]+),/)
            where match.1 != "OK" {
                let name = String(match.1)
                let error = VLMError(status: UInt32(match.2) ?? 0, details: .init(message: "m"))
                if known.remove(name) == nil || error.name != Errors.cases[name] {
                    found.append("\(name) = \(match.2) is \(error.name)")
                }
            }
            return found + known.map { "\($0) is not in the header" }
        }

        @Test func eachStatusHasItsCase() throws {
            let header = try String(contentsOf: Errors.header, encoding: .utf8)
            #expect(drift(header) == [])
            #expect(VLMError.statuses.count == Errors.cases.count)
            for status in VLMError.statuses.keys {
                #expect(String(cString: moxin_status_name(status)).hasPrefix("MOXIN_STATUS_"))
            }

            // The differences that must be found.
            let more = header.replacing(
                "MOXIN_STATUS_PANIC = 17,",
                with: "MOXIN_STATUS_PANIC = 17,\n    MOXIN_STATUS_NEW = 18,")
            #expect(drift(more) == ["NEW = 18 is unknown"])
            #expect(
                drift(header.replacing("MOXIN_STATUS_BUSY = 6,", with: "MOXIN_STATUS_BUSY = 60,"))
                    == ["BUSY = 60 is unknown"])
            #expect(
                drift(header.replacing("MOXIN_STATUS_IO = 9,", with: "")) == [
                    "IO is not in the header"
                ])
            #expect(
                drift(header.replacing("MOXIN_STATUS_IO = 9", with: "MOXIN_STATUS_IO = 8")) == [
                    "IO = 8 is notFound"
                ])
        }

        @Test func everyEventAndReasonIsKnown() throws {
            let header = try String(contentsOf: Errors.header, encoding: .utf8)
            #expect(header.matches(of: #/MOXIN_EVENT_KIND_[A-Z_]+ = /#).count == 3)
            let reasons = header.matches(of: /MOXIN_FINISH_REASON_([A-Z_]+) = ([0-9]+),/)
            let ends = reasons.filter {
                StopReason(moxin_finish_reason(rawValue: UInt32($0.2) ?? 99)) != nil
            }
            #expect(
                ends.map(\.1) == ["END_OF_TURN", "STOP_SEQUENCE", "MAX_TOKENS", "CONTEXT_FULL"])
            #expect(reasons.count == ends.count + 3, "NONE, CANCELLED and ERROR end no answer")
        }

        @Test func eachErrorSaysWhatToDo() {
            for (status, make) in VLMError.statuses {
                let error = make(.init(message: "what happened", causes: ["near", "far"]))
                #expect(error.localizedDescription == "what happened")
                #expect(error.failureReason == "far")
                #expect(error.recoverySuggestion?.hasSuffix(".") == true, "\(status)")
            }
            let other = VLMError.incompatibleLibrary(expected: 2, found: 3)
            #expect(other.localizedDescription.contains("ABI 3") && other.recoverySuggestion != nil)
        }

        @Test func foldersWithoutModels() async throws {
            try await leavingNothing {
                let missing = await failure {
                    _ = try await VLMModel.load(from: URL(fileURLWithPath: "/nowhere"))
                }
                #expect(
                    missing?.name == "notFound"
                        && missing?.errorDescription?.contains("/nowhere") == true)
                try await withFolder { folder in
                    for name in try FileManager.default.contentsOfDirectory(atPath: tiny.path) {
                        try FileManager.default.copyItem(
                            at: tiny.appendingPathComponent(name),
                            to: folder.appendingPathComponent(name))
                    }
                    let config = folder.appendingPathComponent("config.json")
                    let text = try String(contentsOf: config, encoding: .utf8)
                    try text.replacing("prismatic", with: "another").write(
                        to: config, atomically: true, encoding: .utf8)
                    #expect(
                        await failure { _ = try await VLMModel.load(from: folder) }?.name
                            == "unsupportedModel")
                    try "{".write(to: config, atomically: true, encoding: .utf8)
                    let corrupt = await failure { _ = try await VLMModel.load(from: folder) }
                    #expect(
                        corrupt?.name == "corruptModel"
                            && corrupt?.errorDescription?.contains("config.json") == true)
                    let model = try await VLMModel.load(from: tiny)
                    let unwritable = await failure {
                        try await model.save(to: config.appendingPathComponent("below a file"))
                    }
                    #expect(unwritable?.name == "io" && unwritable?.failureReason != nil)
                }
            }
        }

        @Test func loadsThatAreRefused() async throws {
            try await leavingNothing {
                let small = LoadOptions(memoryLimit: 1000)
                #expect(
                    await failure { _ = try await VLMModel.load(from: tiny, options: small) }?.name
                        == "outOfMemory")
                for backend in VLMBackend.allCases where !backend.isAvailable {
                    let options = LoadOptions(backend: backend)
                    #expect(
                        await failure { _ = try await VLMModel.load(from: tiny, options: options) }?
                            .name == "backendUnavailable")
                }
                let template = LoadOptions(chatTemplate: "{{ messages }}")
                #expect(
                    await failure { _ = try await VLMModel.load(from: tiny, options: template) }?
                        .name == "invalidArgument")
                for scheme in [
                    Quantization.Scheme.affine(bits: 7), .affine(bits: 0),
                    .affine(bits: 4, groupSize: -1),
                ] {
                    let options = LoadOptions(quantization: scheme)
                    #expect(
                        await failure { _ = try await VLMModel.load(from: tiny, options: options) }?
                            .name == "invalidArgument")
                }
            }
        }

        @Test func optionsOutOfTheirRange() async throws {
            try await withModel { model in
                let session = try await model.makeSession()
                let wrong: [(inout GenerationOptions) -> Void] = [
                    { $0.temperature = -1 }, { $0.topK = 0 }, { $0.topP = 2 }, { $0.minP = -0.5 },
                    { $0.repetitionPenalty = 0 },
                    { $0.repetitionWindow = -1 }, { $0.maxTokens = 0 }, { $0.maxContext = 0 },
                    { $0.prefillChunk = -3 },
                    { $0.alternatives = 21 }, { $0.alternatives = -1 }, { $0.stop = [""] },
                ]
                for change in wrong {
                    var options = GenerationOptions()
                    change(&options)
                    let checked = options
                    #expect(
                        await failure { try await session.setOptions(checked) }?.name
                            == "invalidArgument", "\(checked)")
                    #expect(
                        await failure {
                            _ = try await session.respond(to: written, options: checked)
                        }?.name == "invalidArgument")
                }
                #expect(
                    try await session.respond(to: written, images: [picture]).text
                        == "The word FISH.")
            }
        }

        @Test func unsupportedMessages() async throws {
            try await withModel { model in
                #expect(
                    await failure { _ = try await model.makeSession(system: "Be brief.") }?.name
                        == "invalidState")
                let session = try await model.makeSession()
                #expect(
                    await failure {
                        _ = try await session.respond(to: written, images: [picture, picture])
                    }?.name == "invalidState")
                #expect(await session.transcript.isEmpty)
                #expect(
                    try await session.respond(to: written, images: [picture]).text
                        == "The word FISH.")
                #expect(
                    await failure {
                        _ = try await session.respond(to: describe, images: [picture])
                    }?.name == "invalidState")
                #expect(try await session.respond(to: written).text == "The word FISH.")

                var options = GenerationOptions()
                options.maxContext = 70
                let long = String(repeating: "What is written? ", count: 50)
                #expect(
                    await failure { _ = try await session.respond(to: long, options: options) }?
                        .name == "contextFull")
                #expect(try await session.respond(to: written).text == "The word FISH.")
            }
        }
    }
}
