import CMoxinVLM

/// Something in a picture that an answer names: see ``VLMModel/locate(in:width:height:budget:)``.
public struct Location: Sendable, Equatable {
    /// A place in pixels of the upright original picture, from its top left corner.
    public enum Place: Sendable, Equatable {
        /// A box, by its edges.
        case box(left: Float, top: Float, right: Float, bottom: Float)
        /// A point.
        case point(x: Float, y: Float)
    }

    /// The label; empty if the answer has none.
    public var label: String
    /// The place.
    public var place: Place

    init(_ location: moxin_location) {
        label = String(location.label)
        place =
            location.is_point != 0
            ? .point(x: location.left, y: location.top)
            : .box(
                left: location.left, top: location.top, right: location.right,
                bottom: location.bottom)
    }
}
