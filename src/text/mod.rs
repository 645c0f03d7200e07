//! Tokens and text.
