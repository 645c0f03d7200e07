// Asks a model about a picture and streams the answers: describe photo.jpg "What is this?" "And
// what is below it?"

import Foundation
import MoxinVLM

let usage = """
    usage: describe [--model FOLDER] [--max-tokens N] [--temperature T] [--seed N] [--quantize BITS] PICTURE QUESTION [QUESTION ...]

    The model is a Hugging Face folder [default: $MOXIN_MODEL, else models/tiny]. Ctrl-C ends the program.
    """

struct Arguments {
    var model = ProcessInfo.processInfo.environment["MOXIN_MODEL"] ?? "models/tiny"
    var options = GenerationOptions()
    var load = LoadOptions()
    var picture = ""
    var questions: [String] = []

    init?(_ words: [String]) {
        var words = words[...]
        var others: [String] = []
        while let word = words.popFirst() {
            guard word.hasPrefix("--") else {
                others.append(word)
                continue
            }
            guard let value = words.popFirst(), take(word, value) else { return nil }
        }
        guard others.count > 1 else { return nil }
        picture = others.removeFirst()
        questions = others
    }

    /// Returns false for an unknown flag, or an invalid value.
    private mutating func take(_ flag: String, _ value: String) -> Bool {
        switch flag {
        case "--model": model = value
        case "--max-tokens":
            guard let number = Int(value) else { return false }
            options.maxTokens = number
        case "--temperature":
            guard let number = Float(value) else { return false }
            options.temperature = number
        case "--seed":
            guard let number = UInt64(value) else { return false }
            options.seed = number
        case "--quantize":
            guard let number = Int(value) else { return false }
            load.quantization = .affine(bits: number)
        default: return false
        }
        return true
    }
}

/// Writes immediately: `print` waits for the end of a line.
func write(_ text: String, to file: FileHandle = .standardOutput) {
    file.write(Data(text.utf8))
}

func run(_ arguments: Arguments) async throws {
    let model = try await VLMModel.load(
        from: URL(fileURLWithPath: arguments.model), options: arguments.load
    ) { progress in
        write(
            "\rloading \(Int(progress.fraction * 100)) %\(progress.fraction == 1 ? "\n" : "")",
            to: .standardError)
    }
    let session = try await model.makeSession(options: arguments.options)
    try await session.prewarm(images: [
        VLMImage(contentsOf: URL(fileURLWithPath: arguments.picture))
    ])
    for question in arguments.questions {
        write("> \(question)\n")
        for try await event in session.stream(question) {
            switch event {
            case .prefill: break
            case .text(let text, _): write(text)
            case .finished(let stats, _):
                write("\n")
                write(
                    "[\(stats.generatedTokens) tokens, \(Int(stats.decodeRate)) a second]\n",
                    to: .standardError)
            }
        }
    }
}

guard let arguments = Arguments(Array(CommandLine.arguments.dropFirst())) else {
    write(usage + "\n", to: .standardError)
    exit(2)
}
do {
    try await run(arguments)
} catch {
    let suggestion = (error as? VLMError)?.recoverySuggestion ?? ""
    write("describe: \(error.localizedDescription)\n\(suggestion)\n", to: .standardError)
    exit(1)
}
