import PictureChatLogic
import SwiftUI

@main
struct PictureChatApp: App {
    @State private var app = PictureChat()

    var body: some Scene {
        WindowGroup("Picture Chat") {
            ContentView(app: app)
                .frame(minWidth: 720, minHeight: 480)
                .task { await app.watchMemory() }
        }
    }
}
