import MoxinVLM
import PictureChatLogic
import SwiftUI

/// The messages, and a field for the next question.
struct ChatView: View {
    let app: PictureChat
    @Bindable var chat: VLMChat

    var body: some View {
        VStack(alignment: .leading) {
            ScrollView {
                LazyVStack(alignment: .leading, spacing: 8) {
                    ForEach(chat.messages) { message in
                        MessageView(message: message)
                    }
                }
                .padding()
            }
            .defaultScrollAnchor(.bottom)
            if let error = chat.error {
                Text(error.localizedDescription).foregroundStyle(.red).padding(.horizontal)
            }
            HStack {
                TextField("Ask about the picture", text: $chat.draft)
                    .onSubmit { app.send() }
                if chat.phase == .idle {
                    Button("Ask") { app.send() }.disabled(!app.canSend)
                } else {
                    Button("Stop") { chat.stop() }
                }
            }
            .padding()
        }
        .frame(minWidth: 320, maxWidth: .infinity, maxHeight: .infinity)
    }
}

/// One message.
struct MessageView: View {
    let message: VLMChat.Message

    var body: some View {
        Text(message.text.isEmpty ? "…" : message.text)
            .fontWeight(message.role == .user ? .semibold : .regular)
            .textSelection(.enabled)
            .frame(maxWidth: .infinity, alignment: .leading)
    }
}
