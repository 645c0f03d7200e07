//! The video of the pictures in a folder, for the examples that take one.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use moxin_vlm::{DecodeOptions, Picture, Video};

/// Reads the pictures in a folder, in the order of their names, as a video with `fps` frames per
/// second.
pub fn read(folder: &Path, fps: f64, options: &DecodeOptions) -> Result<Video> {
    let entries =
        std::fs::read_dir(folder).with_context(|| format!("reading {}", folder.display()))?;
    let paths = entries.map(|entry| Ok(entry?.path()));
    let mut paths = paths.collect::<Result<Vec<PathBuf>>>()?;
    paths.sort();
    let frames = paths.iter().map(|path| Picture::open(path, options));
    Ok(Video::from_frames(frames.collect::<Result<_, _>>()?, fps)?)
}
