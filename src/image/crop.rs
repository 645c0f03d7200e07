//! Cutting the middle out of a picture, and putting a border around it.

use super::Picture;
use crate::{Error, Result, device::room};

/// Cuts `width` x `height` pixels out of the middle; where the picture is smaller it gets a black
/// border first. Of an odd difference the smaller half is cut on the left and above, as
/// transformers' `center_crop` does
/// (<https://github.com/huggingface/transformers/blob/v4.57.0/src/transformers/image_transforms.py>).
///
/// # Errors
/// [`Error::InvalidArgument`] for a side of 0 or of more than 65,535 pixels;
/// [`Error::OutOfMemory`].
pub fn center_crop(picture: &Picture, width: usize, height: usize) -> Result<Picture> {
    let (from_x, from_y) = (picture.width() as usize, picture.height() as usize);
    // Of the border the larger half lies on the left and above, and of the cut the smaller.
    let before = |from: usize, to: usize| {
        let whole = from.max(to);
        let border = (whole - from).div_ceil(2);
        border as isize - ((whole - to) / 2) as isize
    };
    place(
        picture,
        [width, height],
        [before(from_x, width), before(from_y, height)],
        [0; 3],
    )
}

/// Puts a border of one colour around a picture: pixels on the left, above, on the right and below.
///
/// # Errors
/// As for [`center_crop`].
pub fn pad(
    picture: &Picture,
    [left, above, right, below]: [usize; 4],
    fill: [u8; 3],
) -> Result<Picture> {
    let side = |inside: u32, before: usize, after: usize| {
        before.saturating_add(after).saturating_add(inside as usize)
    };
    let size = [
        side(picture.width(), left, right),
        side(picture.height(), above, below),
    ];
    if [left, above].iter().any(|before| *before > MAX_SIDE) {
        return Err(too_large(size));
    }
    place(picture, size, [left as isize, above as isize], fill)
}

/// The longest side of the result.
const MAX_SIDE: usize = 65_535;

fn too_large([width, height]: [usize; 2]) -> Error {
    Error::InvalidArgument(format!(
        "a picture of {width} x {height} pixels; 1 to {MAX_SIDE} are possible on each side"
    ))
}

/// A picture of another size, into which this one is put at a place, cut off where it does not fit.
fn place(
    picture: &Picture,
    [width, height]: [usize; 2],
    [x, y]: [isize; 2],
    fill: [u8; 3],
) -> Result<Picture> {
    if [width, height]
        .iter()
        .any(|side| !(1..=MAX_SIDE).contains(side))
    {
        return Err(too_large([width, height]));
    }
    let row_bytes = width * 3;
    let mut rgb = room(row_bytes * height, || {
        format!("a picture of {width} x {height} pixels")
    })?;
    rgb.extend(fill.iter().cycle().take(row_bytes * height));
    let columns =
        x.max(0) as usize..((x + picture.width() as isize).clamp(0, width as isize)) as usize;
    for (i, row) in picture
        .rgb()
        .chunks_exact(picture.width() as usize * 3)
        .enumerate()
    {
        let Some(to) = usize::try_from(y + i as isize)
            .ok()
            .filter(|to| *to < height)
        else {
            continue;
        };
        if columns.is_empty() {
            break;
        }
        let from = (columns.start as isize - x) as usize * 3;
        let bytes = columns.len() * 3;
        rgb[to * row_bytes + columns.start * 3..][..bytes]
            .copy_from_slice(&row[from..from + bytes]);
    }
    Ok(Picture::from_rgb(rgb, width, height))
}
