import CMoxinVLM
import Foundation

/// A video to ask about: frames, or an animated GIF, WebP or PNG. It is given to a session as a
/// picture: `VLMImage(video)`. ``ModelInfo/takesVideos`` says which models read videos.
public struct VLMVideo: Sendable {
    private enum Source: Sendable {
        case file(URL)
        case data(Data)
        case frames([VLMImage], times: [Double]?, framesPerSecond: Double)
    }

    /// The size of a video.
    public struct Info: Sendable, Equatable {
        /// The number of frames.
        public let frameCount: Int
        /// The number of frames per second, on average.
        public let framesPerSecond: Double
        /// The number of columns.
        public let width: Int
        /// The number of rows.
        public let height: Int
    }

    private var source: Source

    /// The number of frames to read per second of a file; `nil`: all of them. Ignored for frames,
    /// which are all read.
    public var framesPerSecond: Double? = 2

    /// The maximum number of frames of a file; a longer one is read with fewer per second.
    public var maxFrames = 768

    /// The maximum number of pixels in a frame of a file.
    public var maxPixels: UInt64 = 100_000_000

    /// How large each frame may be when it reaches the encoder; `maxTokens` is that of the whole
    /// video. `nil`: the budget in the session's options.
    public var pixelBudget: VLMImage.PixelBudget?

    /// Creates a video from a file, which is read when the video is used.
    public init(contentsOf url: URL) {
        source = .file(url)
    }

    /// Creates a video from the bytes of a file.
    public init(data: Data) {
        source = .data(data)
    }

    /// Creates a video from frames of one size, which follow each other so many times per second.
    public init(frames: [VLMImage], framesPerSecond: Double) {
        source = .frames(frames, times: nil, framesPerSecond: framesPerSecond)
    }

    /// Creates a video from frames of one size, with the time of each in seconds. Each is greater
    /// than the one before.
    public init(frames: [VLMImage], times: [Double]) {
        source = .frames(frames, times: times, framesPerSecond: 0)
    }

    /// Reads and decodes the video, and returns its size.
    ///
    /// - Throws: ``VLMError/unsupportedImage(_:)``, ``VLMError/notFound(_:)``;
    ///   ``VLMError/invalidArgument(_:)`` if frames differ in size, or times are not as described.
    public func info() async throws -> Info {
        try VLMRuntime.requireABI()
        return try await Engine.run {
            let video = try decode()
            var info = moxin_video_info()
            info.struct_size = MemoryLayout<moxin_video_info>.size
            try video.call { moxin_video_info_get($0, &info, $1) }
            return Info(
                frameCount: Int(info.frame_count), framesPerSecond: info.fps,
                width: Int(info.width), height: Int(info.height))
        }
    }

    /// Adds the video to the conversation of a session.
    func add(to session: Handle) throws {
        try pixelBudget.withRaw { budget in
            try decode().use { video in
                try session.call { moxin_session_add_video($0, video, budget, $1) }
            }
        }
    }

    /// Returns the library's object for the video.
    func decode() throws -> Handle {
        var params = moxin_video_params()
        moxin_video_params_init(&params, MemoryLayout<moxin_video_params>.size)
        params.fps = framesPerSecond ?? 0
        params.max_frames = UInt32(clamping: maxFrames)
        params.max_pixels = maxPixels
        switch source {
        case .file(let url):
            return try Handle(free: moxin_video_free) {
                moxin_video_from_file(url.path, &params, $0, $1)
            }
        case .data(let data):
            return try data.withUnsafeBytes { bytes in
                try withStart(of: bytes) { start in
                    try Handle(free: moxin_video_free) {
                        moxin_video_from_bytes(start, bytes.count, &params, $0, $1)
                    }
                }
            }
        case .frames(let frames, let times, let framesPerSecond):
            guard (times ?? []).count == (times == nil ? 0 : frames.count) else {
                throw VLMError.invalidArgument(
                    .init(message: "\(times?.count ?? 0) times for \(frames.count) frames"))
            }
            let decoded = try frames.map { try $0.decode() }
            // The handles live until the library has what it needs of them.
            return try withExtendedLifetime(decoded) {
                let images = decoded.map { $0.use { Optional($0) } } + [nil]
                return try Handle(free: moxin_video_free) { place, error in
                    moxin_video_from_frames(
                        images, frames.count, times, framesPerSecond, place, error)
                }
            }
        }
    }
}
