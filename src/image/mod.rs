//! Bytes to pixels: a picture is decoded to oriented RGB ([`Picture`]), then resized and normalized into what the image encoders take
//! ([`Processor`]). Nothing here knows a model beyond the settings in its `preprocessor_config.json`.
//!
//! The numbers are those of the checkpoints' own processor (transformers and torchvision over Pillow 12.0.0), to the last bit, from the
//! same RGB pixels.

mod bounds;
mod picture;
mod processor;
mod resize;
mod vp8l;

pub use picture::{DecodeOptions, Picture, PictureHash, PixelFormat};
pub use processor::{Pixels, Processor, Strategy, normalize};
