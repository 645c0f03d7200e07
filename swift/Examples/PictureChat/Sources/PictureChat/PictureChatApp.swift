import PictureChatLogic
import SwiftUI

@main
struct PictureChatApp: App {
    @State private var app = PictureChat()

    init() {
        // A program without a bundle, as built by `swift run`, has no icon in the Dock and receives
        // no keys.
        NSApplication.shared.setActivationPolicy(.regular)
    }

    var body: some Scene {
        WindowGroup("Picture Chat") {
            ContentView(app: app)
                .frame(minWidth: 720, minHeight: 480)
                .task { await app.watchMemory() }
        }
    }
}
