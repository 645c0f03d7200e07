//! Crops and padding.

use super::Picture;
use crate::{Error, Result, device::room};

/// Crops `width` x `height` pixels from the center. A smaller picture is padded with black first.
/// If the difference is odd, the smaller half is cut at the left and top, as in transformers'
/// `center_crop`
/// (<https://github.com/huggingface/transformers/blob/v4.57.0/src/transformers/image_transforms.py>).
///
/// # Errors
/// [`Error::InvalidArgument`] if a side is 0 or more than 65,535 pixels; [`Error::OutOfMemory`].
pub fn center_crop(picture: &Picture, width: usize, height: usize) -> Result<Picture> {
    let (from_x, from_y) = (picture.width() as usize, picture.height() as usize);
    // The padding has its larger half at the left and top, the crop its smaller one.
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

/// Cuts out `width` x `height` pixels from this column and row on. What lies beyond the picture is
/// black.
///
/// # Errors
/// As for [`center_crop`].
pub fn crop(
    picture: &Picture,
    [left, above]: [usize; 2],
    [width, height]: [usize; 2],
) -> Result<Picture> {
    let before = |from: usize| -(from.min(MAX_SIDE) as isize);
    place(
        picture,
        [width, height],
        [before(left), before(above)],
        [0; 3],
    )
}

/// Pads a picture with one color. `border` has the pixels at the left, top, right and bottom.
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

/// The maximum side of the result.
const MAX_SIDE: usize = 65_535;

fn too_large([width, height]: [usize; 2]) -> Error {
    Error::InvalidArgument(format!(
        "a picture of {width} x {height} pixels; each side must be 1 to {MAX_SIDE}"
    ))
}

/// Returns a picture of another size with this one at a position, cut off at the edges.
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
