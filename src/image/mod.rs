//! From bytes to pixels. A picture is decoded to upright RGB ([`Picture`]); the primitives here
//! turn it into an encoder's input: [`resize`], [`crop`], [`center_crop`], [`pad`], [`planes`],
//! [`patchify`].
//! This module knows no model; each model composes its own processor from the primitives.
//!
//! The results are exactly those of Pillow 12.0.0 and of transformers' processors that use it.

mod animation;
mod bounds;
mod crop;
mod jpeg;
mod patches;
mod picture;
mod resize;
mod values;
mod video;
mod vp8l;

pub use animation::VideoOptions;
pub use crop::{center_crop, crop, pad};
pub use patches::{Patches, patchify, smart_resize};
pub use picture::{DecodeOptions, Picture, PictureHash, PixelFormat};
pub(crate) use resize::{Axis, Canvas, resize_memory, resize_weights, resize_window};
pub use resize::{Filter, resize};
pub use values::{Normalization, Pixels, planes, rescale};
pub use video::{MAX_FRAMES, Medium, Video, frame_indices};
