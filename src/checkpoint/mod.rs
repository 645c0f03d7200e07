//! Model folders.
