import PictureChatLogic
import SwiftUI
import UniformTypeIdentifiers

/// The picture on the left, the chat on the right, and a status bar below.
struct ContentView: View {
    let app: PictureChat
    @State private var isChoosingFolder = false

    var body: some View {
        VStack(spacing: 0) {
            HSplitView {
                PictureView(app: app)
                if let chat = app.chat {
                    ChatView(app: app, chat: chat)
                } else {
                    ContentUnavailableView(
                        "Choose a model and drop a picture", systemImage: "photo"
                    )
                    .frame(maxWidth: .infinity, maxHeight: .infinity)
                }
            }
            Divider()
            StatusBar(app: app)
        }
        .toolbar { modelButton }
        .fileImporter(isPresented: $isChoosingFolder, allowedContentTypes: [.folder]) { result in
            if case .success(let folder) = result {
                app.open(folder)
            }
        }
    }

    private var modelButton: some View {
        Group {
            if case .loading(let fraction) = app.modelState {
                ProgressView(value: fraction).frame(width: 120)
                Button("Cancel") { app.close() }
            } else {
                Button("Model …") { isChoosingFolder = true }
            }
        }
    }
}

/// A drop target for pictures.
struct PictureView: View {
    let app: PictureChat

    var body: some View {
        ZStack {
            if let data = app.picture, let image = NSImage(data: data) {
                Image(nsImage: image).resizable().scaledToFit()
            } else {
                ContentUnavailableView("Drop a picture here", systemImage: "arrow.down.doc")
            }
            if app.isReading {
                ProgressView()
            }
        }
        .frame(minWidth: 240, maxWidth: .infinity, maxHeight: .infinity)
        .dropDestination(for: URL.self) { urls, _ in
            guard let url = urls.first, let data = try? Data(contentsOf: url) else { return false }
            app.show(data)
            return true
        }
    }
}

/// Memory, speed, and errors.
struct StatusBar: View {
    let app: PictureChat

    var body: some View {
        HStack {
            if let memory = app.memory {
                Text("\(Int64(memory.active).formatted(.byteCount(style: .memory))) in use")
            }
            if let speed = app.speed {
                Text(speed)
            }
            Spacer()
            if let problem = app.problem {
                Text(problem).foregroundStyle(.red)
            }
        }
        .font(.caption)
        .padding(6)
    }
}
