// swift-tools-version: 6.0
import PackageDescription

// On Linux the library is found by pkg-config: PKG_CONFIG_PATH must include lib/pkgconfig of the
// folder that `cargo xtask dist` makes. On Apple systems it is an xcframework: during development
// the one in this folder named by $MOXIN_VLM_XCFRAMEWORK, otherwise that of a release.
#if os(Linux)
    let library = Target.systemLibrary(
        name: "CMoxinVLM", path: "swift/CMoxinVLM", pkgConfig: "moxin_vlm-swift")
#else
    /// The location of this version's xcframework, once it is released.
    let release: (url: String, checksum: String)? = nil

    func findLibrary() -> Target {
        if let path = Context.environment["MOXIN_VLM_XCFRAMEWORK"] {
            return .binaryTarget(name: "CMoxinVLM", path: path)
        }
        guard let release else {
            fatalError(
                "Set MOXIN_VLM_XCFRAMEWORK to CMoxinVLM.xcframework, relative to \(Context.packageDirectory): see docs/apple.md"
            )
        }
        return .binaryTarget(name: "CMoxinVLM", url: release.url, checksum: release.checksum)
    }

    let library = findLibrary()
#endif

let package = Package(
    name: "MoxinVLM",
    platforms: [.macOS(.v14), .iOS(.v17)],
    products: [
        .library(name: "MoxinVLM", targets: ["MoxinVLM"]),
        .executable(name: "describe", targets: ["describe"]),
    ],
    targets: [
        library,
        .target(name: "MoxinVLM", dependencies: ["CMoxinVLM"], path: "swift/Sources/MoxinVLM"),
        .executableTarget(
            name: "describe", dependencies: ["MoxinVLM"], path: "swift/Examples/describe"),
        .testTarget(
            name: "MoxinVLMTests", dependencies: ["MoxinVLM", "CMoxinVLM"],
            path: "swift/Tests/MoxinVLMTests"),
    ],
    swiftLanguageModes: [.v6]
)
