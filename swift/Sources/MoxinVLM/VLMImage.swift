import CMoxinVLM
import Foundation

/// A picture to ask about: a file, the bytes of one, pixels, or an embedding.
///
/// Files may be PNG, JPEG, WebP, GIF (first frame), BMP or TIFF. The format is detected from the
/// content, and pictures are turned upright according to their metadata.
public struct VLMImage: Sendable {
    /// The layout of pixels in memory.
    public enum PixelFormat: Sendable {
        /// Three bytes: red, green, blue.
        case rgb8
        /// Four bytes: red, green, blue, alpha. Alpha is ignored, not composited.
        case rgba8
        /// Four bytes: blue, green, red, alpha. Alpha is ignored.
        case bgra8
        /// One byte: gray.
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

    /// How large a picture may be when it reaches the encoder. Models whose pictures all have one
    /// size ignore everything but `maxTokens`.
    public struct PixelBudget: Sendable, Equatable {
        /// Smaller pictures are enlarged to at least this many pixels, by models that take any size.
        /// `nil`: the value from the model folder.
        public var minPixels: UInt64?
        /// Larger pictures are reduced to at most this many pixels, in all their tiles together.
        /// `nil`: the value from the model folder.
        public var maxPixels: UInt64?
        /// The maximum number of positions that a picture takes. A larger picture is reduced, or cut
        /// into fewer tiles; a model that cannot do this refuses it. `nil`: no maximum.
        public var maxTokens: UInt64?
        /// Whether pictures are cut into tiles, by models that do this.
        public var tiles: Bool

        /// Creates a budget.
        public init(
            minPixels: UInt64? = nil, maxPixels: UInt64? = nil, maxTokens: UInt64? = nil,
            tiles: Bool = true
        ) {
            self.minPixels = minPixels
            self.maxPixels = maxPixels
            self.maxTokens = maxTokens
            self.tiles = tiles
        }

        /// Calls `body` with the library's struct.
        func withRaw<R>(_ body: (UnsafePointer<moxin_pixel_budget>) throws -> R) rethrows -> R {
            var budget = moxin_pixel_budget()
            budget.struct_size = MemoryLayout<moxin_pixel_budget>.size
            budget.min_pixels = minPixels ?? 0
            budget.max_pixels = maxPixels ?? 0
            budget.max_tokens = maxTokens ?? 0
            budget.no_tiles = tiles ? 0 : 1
            return try body(&budget)
        }
    }

    private enum Source: Sendable {
        case file(URL)
        case data(Data)
        case pixels(Data, width: Int, height: Int, bytesPerRow: Int, PixelFormat)
        case embedding(ImageEmbedding)
        case video(VLMVideo)
    }

    private var source: Source

    /// The maximum number of pixels in a file; a larger picture is refused after its header is
    /// read. Ignored for pixels and embeddings.
    public var maxPixels: UInt64 = 100_000_000

    /// Whether the orientation in a file's metadata is ignored. Has no effect on pixels and
    /// embeddings.
    public var ignoresOrientation = false

    /// How large the picture may be when it reaches the encoder. `nil`: the budget in the session's
    /// options. Ignored for embeddings.
    public var pixelBudget: PixelBudget?

    /// Creates a picture from a file, which is read when the picture is used.
    public init(contentsOf url: URL) {
        source = .file(url)
    }

    /// Creates a picture from the bytes of a file.
    public init(data: Data) {
        source = .data(data)
    }

    /// Creates a picture from pixels, with rows from top to bottom. `bytesPerRow` is the distance
    /// from the start of a row to the start of the next; `nil`: rows are contiguous.
    public init(pixels: Data, width: Int, height: Int, bytesPerRow: Int? = nil, format: PixelFormat)
    {
        let bytesPerRow =
            bytesPerRow
            ?? (width.multipliedReportingOverflow(by: format.bytesPerPixel).partialValue)
        source = .pixels(pixels, width: width, height: height, bytesPerRow: bytesPerRow, format)
    }

    /// Creates a picture that was already encoded by the same model.
    public init(_ embedding: ImageEmbedding) {
        source = .embedding(embedding)
    }

    /// Lets a video take a picture's place. All of this picture's properties are ignored.
    public init(_ video: VLMVideo) {
        source = .video(video)
    }

    /// Reads and decodes the picture, and returns its size in pixels after it was turned upright.
    ///
    /// - Throws: ``VLMError/unsupportedImage(_:)``, ``VLMError/notFound(_:)``;
    ///   ``VLMError/invalidArgument(_:)`` for an embedding or a video.
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
        } else if case .video(let video) = source {
            try video.add(to: session)
        } else {
            try pixelBudget.withRaw { budget in
                try decode().use { image in
                    try session.call { moxin_session_add_image($0, image, budget, $1) }
                }
            }
        }
    }

    /// Returns the library's object for a picture that is not encoded.
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
        case .video:
            throw VLMError.invalidArgument(.init(message: "a video is no picture"))
        }
    }

    /// The library cannot know the number of bytes.
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

extension Optional where Wrapped == VLMImage.PixelBudget {
    /// Calls `body` with the library's struct, or with NULL.
    func withRaw<R>(_ body: (UnsafePointer<moxin_pixel_budget>?) throws -> R) rethrows -> R {
        guard let budget = self else { return try body(nil) }
        return try budget.withRaw { try body($0) }
    }
}
