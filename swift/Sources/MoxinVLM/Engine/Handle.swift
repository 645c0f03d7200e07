import CMoxinVLM

/// An object of the library, freed with its last owner. No free function blocks: MLX objects are
/// passed to the library's own thread.
final class Handle: @unchecked Sendable {
    private let pointer: OpaquePointer
    private let free: @Sendable (OpaquePointer?) -> Void

    /// Takes the handle that `make` writes to its first argument; its second receives the error.
    init(
        free: @escaping @Sendable (OpaquePointer?) -> Void,
        make: (UnsafeMutablePointer<OpaquePointer?>, UnsafeMutablePointer<OpaquePointer?>) ->
            moxin_status
    ) throws {
        var made: OpaquePointer?
        try check { make(&made, $0) }
        guard let made else {
            throw VLMError.internalFailure(.init(message: "the library returned no object"))
        }
        pointer = made
        self.free = free
    }

    deinit {
        free(pointer)
    }

    /// Calls `body` with the pointer, which stays valid until it returns.
    func use<R>(_ body: (OpaquePointer) throws -> R) rethrows -> R {
        try withExtendedLifetime(self) { try body(pointer) }
    }

    /// Calls a function of the library and throws its error.
    func call(_ body: (OpaquePointer, UnsafeMutablePointer<OpaquePointer?>) -> moxin_status) throws
    {
        try use { pointer in try check { body(pointer, $0) } }
    }
}

/// Calls a function of the library, whose argument receives the error, and throws that.
func check(_ body: (UnsafeMutablePointer<OpaquePointer?>) -> moxin_status) throws {
    var error: OpaquePointer?
    let status = body(&error)
    defer { moxin_error_free(error) }
    guard status == MOXIN_STATUS_OK else {
        throw VLMError(status: status.rawValue, details: VLMError.Details(error))
    }
}

/// Calls `body` with the bytes of a text and their number. The pointer is valid even if there are
/// none.
func withBytes<R>(of text: String, _ body: (UnsafePointer<CChar>, Int) throws -> R) rethrows -> R {
    var text = text
    return try text.withUTF8 { bytes in
        try withStart(of: UnsafeRawBufferPointer(bytes)) { start in
            try body(start.assumingMemoryBound(to: CChar.self), bytes.count)
        }
    }
}

/// Calls `body` with the start of bytes, which is not NULL even if there are none.
func withStart<R>(of bytes: UnsafeRawBufferPointer, _ body: (UnsafeRawPointer) throws -> R)
    rethrows -> R
{
    try withUnsafePointer(to: 0 as UInt8) { empty in
        try body(bytes.baseAddress ?? UnsafeRawPointer(empty))
    }
}

extension String {
    init(_ text: moxin_str) {
        let bytes = UnsafeRawBufferPointer(start: text.data, count: text.len)
        self = String(decoding: bytes, as: UTF8.self)
    }
}
