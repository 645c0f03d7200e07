import CMoxinVLM
import Foundation

/// A picture to ask about: a file, the bytes of one, pixels, or what a model made of one.
///
/// Files are PNG, JPEG, WebP, GIF (the first frame), BMP or TIFF, told by their content, and are
/// turned upright as their metadata says.
public struct VLMImage: Sendable {
    /// How pixels lie in memory.
    public enum PixelFormat: Sendable {
        /// Three bytes: red, green, blue.
        case rgb8
        /// Four bytes: red, green, blue, alpha. Alpha is dropped, not composited.
        case rgba8
        /// Four bytes: blue, green, red, alpha. Alpha is dropped.
        case bgra8
        /// One byte: grey.
        case gray8

        var rawValue: moxin_pixel_format {
            switch self {
            case .rgb8: moxin_pixel_format(MOXIN_PIXEL_FORMAT_RGB8)
            case .rgba8: moxin_pixel_format(MOXIN_PIXEL_FORMAT_RGBA8)
            case .bgra8: moxin_pixel_format(MOXIN_PIXEL_FORMAT_BGRA8)
            case .gray8: moxin_pixel_format(MOXIN_PIXEL_FORMAT_GRAY8)
            }
        }

        var bytesPerPixel: Int {
            switch self {
            case .rgb8: 3
            case .rgba8, .bgra8: 4
            case .gray8: 1
            }
        }
    }

    /// How many pixels a picture may have in front of the model's encoder, where the model takes
    /// pictures of any size.
    public struct PixelBudget: Sendable, Equatable {
        /// A picture of fewer is enlarged; `nil`: what the model's folder says.
        public var minPixels: UInt64?
        /// A picture of more is made smaller; `nil`: what the model's folder says.
        public var maxPixels: UInt64?

        /// A budget.
        public init(minPixels: UInt64? = nil, maxPixels: UInt64? = nil) {
            self.minPixels = minPixels
            self.maxPixels = maxPixels
        }

        /// The library's struct.
        var raw: moxin_pixel_budget {
            var budget = moxin_pixel_budget()
            budget.struct_size = MemoryLayout<moxin_pixel_budget>.size
            budget.min_pixels = minPixels ?? 0
            budget.max_pixels = maxPixels ?? 0
            return budget
        }
    }

    private enum Source: Sendable {
        case file(URL)
        case data(Data)
        case pixels(Data, width: Int, height: Int, bytesPerRow: Int, PixelFormat)
        case embedding(ImageEmbedding)
    }

    private var source: Source

    /// Pixels that a file may have; a larger one is refused by its header. Does not count for
    /// pixels and embeddings.
    public var maxPixels: UInt64 = 100_000_000

    /// Leaves a file's picture as it is stored, whatever orientation its metadata gives. Does not
    /// count for pixels and embeddings.
    public var ignoresOrientation = false

    /// How many pixels it may have in front of the encoder. Does not count for embeddings.
    public var pixelBudget = PixelBudget()

    /// A picture in a file, which is read when it is asked about.
    public init(contentsOf url: URL) {
        source = .file(url)
    }

    /// The bytes of a picture's file.
    public init(data: Data) {
        source = .data(data)
    }

    /// Pixels, rows from top to bottom. `bytesPerRow`: from the beginning of a row to the beginning
    /// of the next; `nil`: rows follow each other.
    public init(pixels: Data, width: Int, height: Int, bytesPerRow: Int? = nil, format: PixelFormat)
    {
        let bytesPerRow =
            bytesPerRow
            ?? (width.multipliedReportingOverflow(by: format.bytesPerPixel).partialValue)
        source = .pixels(pixels, width: width, height: height, bytesPerRow: bytesPerRow, format)
    }

    /// A picture that is encoded already, by the model that will be asked about it.
    public init(_ embedding: ImageEmbedding) {
        source = .embedding(embedding)
    }

    /// The picture's size in pixels, upright. Reads and decodes it.
    ///
    /// - Throws: ``VLMError/unsupportedImage(_:)``, ``VLMError/notFound(_:)``;
    ///   ``VLMError/invalidArgument(_:)`` for an embedding.
    public func size() async throws -> (width: Int, height: Int) {
        try VLMRuntime.requireABI()
        return try await Engine.run {
            let image = try decode()
            var (width, height) = (UInt32(), UInt32())
            try image.call { moxin_image_size($0, &width, &height, $1) }
            return (Int(width), Int(height))
        }
    }

    /// Adds the picture to the conversation of a session.
    func add(to session: Handle) throws {
        if case .embedding(let embedding) = source {
            try embedding.handle.use { embedding in
                try session.call { moxin_session_add_embedding($0, embedding, $1) }
            }
        } else {
            var budget = pixelBudget.raw
            try decode().use { image in
                try session.call { moxin_session_add_image($0, image, &budget, $1) }
            }
        }
    }

    /// The library's object for a picture that is not encoded.
    func decode() throws -> Handle {
        var params = moxin_image_params()
        moxin_image_params_init(&params, MemoryLayout<moxin_image_params>.size)
        params.max_pixels = maxPixels
        params.ignore_orientation = ignoresOrientation ? 1 : 0
        switch source {
        case .file(let url):
            return try Handle(free: moxin_image_free) {
                moxin_image_from_file(url.path, &params, $0, $1)
            }
        case .data(let data):
            return try data.withUnsafeBytes { bytes in
                try withStart(of: bytes) { start in
                    try Handle(free: moxin_image_free) {
                        moxin_image_from_bytes(start, bytes.count, &params, $0, $1)
                    }
                }
            }
        case .pixels(let data, let width, let height, let bytesPerRow, let format):
            try requireRoom(data.count, width, height, bytesPerRow, format)
            return try data.withUnsafeBytes { bytes in
                try withStart(of: bytes) { start in
                    try Handle(free: moxin_image_free) {
                        moxin_image_from_pixels(
                            start, UInt32(width), UInt32(height), bytesPerRow, format.rawValue, $0,
                            $1)
                    }
                }
            }
        case .embedding:
            throw VLMError.invalidArgument(.init(message: "an embedding is no picture any more"))
        }
    }

    /// The library cannot know how many bytes there are.
    private func requireRoom(
        _ count: Int, _ width: Int, _ height: Int, _ bytesPerRow: Int, _ format: PixelFormat
    ) throws {
        let edges = 1...65_535
        guard edges.contains(width), edges.contains(height),
            (0...(Int.max >> 17)).contains(bytesPerRow),
            bytesPerRow * (height - 1) + width * format.bytesPerPixel <= count
        else {
            throw VLMError.invalidArgument(
                .init(
                    message:
                        "\(count) bytes are no picture of \(width) x \(height) pixels in rows of \(bytesPerRow) bytes"
                ))
        }
    }
}

/// Calls `body` with the beginning of bytes, which is not NULL where there are none.
private func withStart<R>(of bytes: UnsafeRawBufferPointer, _ body: (UnsafeRawPointer) throws -> R)
    rethrows -> R
{
    try withUnsafePointer(to: 0 as UInt8) { empty in
        try body(bytes.baseAddress ?? UnsafeRawPointer(empty))
    }
}
