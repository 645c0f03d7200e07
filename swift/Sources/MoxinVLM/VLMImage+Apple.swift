// Pictures from Apple's frameworks. Pixels are copied immediately, into sRGB, so that no framework
// object is kept.

#if canImport(CoreGraphics)
    import CoreGraphics
    import Foundation
    import ImageIO

    extension VLMImage {
        /// Copies a Core Graphics image and turns it upright; `orientation` is that in its file.
        ///
        /// - Throws: ``VLMError/unsupportedImage(_:)`` if it is empty or cannot be drawn.
        public init(_ image: CGImage, orientation: CGImagePropertyOrientation = .up) throws {
            let turned = orientation.swapsAxes
            let (width, height) = turned ? (image.height, image.width) : (image.width, image.height)
            var pixels = Data(count: width * height * 4)
            let drawn = pixels.withUnsafeMutableBytes { bytes in
                guard
                    let space = CGColorSpace(name: CGColorSpace.sRGB),
                    let context = CGContext(
                        data: bytes.baseAddress, width: width, height: height, bitsPerComponent: 8,
                        bytesPerRow: width * 4, space: space,
                        bitmapInfo: CGImageAlphaInfo.noneSkipLast.rawValue)
                else { return false }
                context.concatenate(
                    orientation.transform(toWidth: CGFloat(width), height: CGFloat(height)))
                context.draw(
                    image, in: CGRect(x: 0, y: 0, width: image.width, height: image.height))
                return true
            }
            guard drawn else {
                throw VLMError.unsupportedImage(
                    .init(
                        message:
                            "an image of \(image.width) x \(image.height) pixels cannot be drawn"))
            }
            self.init(pixels: pixels, width: width, height: height, format: .rgba8)
        }
    }

    extension CGImagePropertyOrientation {
        fileprivate var swapsAxes: Bool {
            switch self {
            case .left, .right, .leftMirrored, .rightMirrored: true
            default: false
            }
        }

        /// Maps a stored image to an upright one of this size, in coordinates that start at the
        /// bottom left. Each case is a rotation about the origin and back into the first quadrant;
        /// mirrored images are mirrored first.
        fileprivate func transform(toWidth width: CGFloat, height: CGFloat) -> CGAffineTransform {
            switch self {
            case .up: .identity
            case .upMirrored: CGAffineTransform(a: -1, b: 0, c: 0, d: 1, tx: width, ty: 0)
            case .down: CGAffineTransform(a: -1, b: 0, c: 0, d: -1, tx: width, ty: height)
            case .downMirrored: CGAffineTransform(a: 1, b: 0, c: 0, d: -1, tx: 0, ty: height)
            case .leftMirrored: CGAffineTransform(a: 0, b: -1, c: -1, d: 0, tx: width, ty: height)
            case .right: CGAffineTransform(a: 0, b: -1, c: 1, d: 0, tx: 0, ty: height)
            case .rightMirrored: CGAffineTransform(a: 0, b: 1, c: 1, d: 0, tx: 0, ty: 0)
            case .left: CGAffineTransform(a: 0, b: 1, c: -1, d: 0, tx: width, ty: 0)
            @unknown default: .identity
            }
        }
    }
#endif

#if canImport(CoreImage)
    import CoreImage

    extension VLMImage {
        /// Renders a finite Core Image image.
        ///
        /// - Throws: ``VLMError/unsupportedImage(_:)`` if it is infinite or cannot be rendered.
        public init(_ image: CIImage, orientation: CGImagePropertyOrientation = .up) throws {
            let upright = image.oriented(orientation)
            guard !upright.extent.isInfinite,
                let rendered = CIContext().createCGImage(upright, from: upright.extent)
            else {
                throw VLMError.unsupportedImage(
                    .init(message: "a Core Image image of \(upright.extent) cannot be rendered"))
            }
            try self.init(rendered)
        }
    }
#endif

#if canImport(CoreVideo) && canImport(CoreImage)
    import CoreVideo

    extension VLMImage {
        /// Copies a frame from a camera or video, in any of Core Video's formats.
        ///
        /// - Throws: ``VLMError/unsupportedImage(_:)`` if it cannot be rendered.
        public init(_ buffer: CVPixelBuffer, orientation: CGImagePropertyOrientation = .up) throws {
            try self.init(CIImage(cvPixelBuffer: buffer), orientation: orientation)
        }
    }
#endif

#if canImport(AppKit) && !targetEnvironment(macCatalyst)
    import AppKit

    extension VLMImage {
        /// Copies an AppKit image, in its largest representation.
        ///
        /// - Throws: ``VLMError/unsupportedImage(_:)`` if it has none that can be drawn.
        public init(_ image: NSImage) throws {
            let largest = image.representations.max { $0.pixelsWide < $1.pixelsWide }
            var rect = CGRect(
                x: 0, y: 0, width: largest?.pixelsWide ?? 0, height: largest?.pixelsHigh ?? 0)
            let hasPixels = rect.width > 0 && rect.height > 0
            guard
                let drawn = hasPixels
                    ? image.cgImage(forProposedRect: &rect, context: nil, hints: nil)
                    : image.cgImage(forProposedRect: nil, context: nil, hints: nil)
            else {
                throw VLMError.unsupportedImage(
                    .init(message: "an NSImage of \(image.size) cannot be drawn"))
            }
            try self.init(drawn)
        }
    }
#endif

#if canImport(UIKit)
    import UIKit

    extension VLMImage {
        /// Copies a UIKit image and turns it upright.
        ///
        /// - Throws: ``VLMError/unsupportedImage(_:)`` if it has no pixels.
        public init(_ image: UIImage) throws {
            if let stored = image.cgImage {
                try self.init(stored, orientation: image.imageOrientation.inFiles)
            } else if let stored = image.ciImage {
                try self.init(stored, orientation: image.imageOrientation.inFiles)
            } else {
                throw VLMError.unsupportedImage(
                    .init(message: "a UIImage of \(image.size) has no pixels"))
            }
        }
    }

    extension UIImage.Orientation {
        fileprivate var inFiles: CGImagePropertyOrientation {
            switch self {
            case .up: .up
            case .upMirrored: .upMirrored
            case .down: .down
            case .downMirrored: .downMirrored
            case .left: .left
            case .leftMirrored: .leftMirrored
            case .right: .right
            case .rightMirrored: .rightMirrored
            @unknown default: .up
            }
        }
    }
#endif
