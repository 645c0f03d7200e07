import PictureChatLogic
import SwiftUI

@main
struct PictureChatApp: App {
    @State private var app = PictureChat()

    init() {
        // A program without a bundle, as `swift run` makes it, has no place in the Dock and gets no
        // keys.
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
