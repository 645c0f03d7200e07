// swift-tools-version: 6.0
import PackageDescription

// The app, for macOS: `swift run PictureChat`, or open this folder in Xcode. Its logic without
// views is a target of its own, which is also built and tested on Linux.
var targets: [Target] = [
    .target(
        name: "PictureChatLogic", dependencies: [.product(name: "MoxinVLM", package: "moxin-vlm")]),
    .testTarget(name: "PictureChatLogicTests", dependencies: ["PictureChatLogic"]),
]
#if !os(Linux)
    targets.append(.executableTarget(name: "PictureChat", dependencies: ["PictureChatLogic"]))
#endif

let package = Package(
    name: "PictureChat",
    platforms: [.macOS(.v14)],
    dependencies: [.package(name: "moxin-vlm", path: "../../..")],
    targets: targets,
    swiftLanguageModes: [.v6]
)
