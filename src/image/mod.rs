//! Bytes to pixels: a picture is decoded to oriented RGB ([`Picture`]), and the primitives here
//! make of it what encoders take: [`resize`], [`center_crop`], [`pad`], [`planes`], [`patchify`].
//! Nothing here knows a model; each composes its own processor of them.
//!
//! The numbers are those of Pillow 12.0.0 and of transformers' processors over it, to the last bit.

mod bounds;
mod crop;
mod jpeg;
mod patches;
mod picture;
mod resize;
mod values;
mod vp8l;

pub use crop::{center_crop, pad};
pub use patches::{Patches, patchify, smart_resize};
pub use picture::{DecodeOptions, Picture, PictureHash, PixelFormat};
pub(crate) use resize::{Axis, Canvas, resize_memory, resize_window};
pub use resize::{Filter, resize};
pub use values::{Normalization, Pixels, planes, rescale};
