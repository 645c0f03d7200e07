//! Boxes and points in answers.

use std::ffi::{CString, c_char};

use super::{
    Versioned, c_string, free, guard,
    image::{moxin_pixel_budget, pixel_budget},
    into_c, moxin_error, moxin_model, moxin_status, moxin_str, out, retain, text, view,
    write_result,
};
use crate::{
    Error,
    runtime::{Location, Place},
};

/// The boxes and points in an answer.
pub struct moxin_locations(Vec<(CString, Place)>);

/// Something in a picture that an answer names. Pixels of the upright original picture, from its
/// top left corner.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct moxin_location {
    /// sizeof(moxin_location)
    pub struct_size: usize,
    /// The label; empty if the answer has none. Lives as long as the moxin_locations.
    pub label: moxin_str,
    /// The left edge of a box; the x of a point.
    pub left: f32,
    /// The top edge of a box; the y of a point.
    pub top: f32,
    /// The right edge of a box, not less than left; equal to left for a point.
    pub right: f32,
    /// The bottom edge of a box, not less than top; equal to top for a point.
    pub bottom: f32,
    /// Not 0 if it is a point.
    pub is_point: u32,
    /// Must be ignored.
    pub reserved: u32,
}

// SAFETY: repr(C), starts with its size, otherwise numbers and a pointer that may be NULL.
unsafe impl Versioned for moxin_location {}

/// Reads the boxes and points in an answer about one picture. width, height and budget are those of
/// the picture in the conversation. Places outside the picture are moved to its edge; the last box
/// of an answer that was cut off is left out.
///
/// The models write boxes in different forms: PaliGemma as `<loc0123>` tokens if the prompt is
/// "detect cat ; dog", Qwen-VL as pairs or as JSON if the prompt asks for it.
///
/// budget and error may be NULL. *out_locations receives the locations, in the order of the answer,
/// which the caller frees with moxin_locations_free.
///
/// Errors: INVALID_STATE if the model was not trained to write boxes or points:
/// moxin_model_info.grounding; INVALID_ARGUMENT if the answer is not UTF-8, or the model cannot take
/// the size or the budget.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn moxin_model_locate(
    model: *const moxin_model,
    answer: *const c_char,
    answer_len: usize,
    width: u32,
    height: u32,
    budget: *const moxin_pixel_budget,
    out_locations: *mut *mut moxin_locations,
    error: *mut *mut moxin_error,
) -> moxin_status {
    guard(error, || {
        let place = out(out_locations, "out_locations")?;
        // SAFETY: NULL, or a handle of this library that was not freed, the caller's text of that
        // length and its initialized struct; the output pointer was checked.
        unsafe {
            let model = retain(model, "model")?;
            let answer = text(answer, answer_len, "answer")?;
            let budget = pixel_budget(budget, "budget")?;
            let found = model
                .model
                .locate(answer, width as usize, height as usize, budget)?;
            let found = found.into_iter();
            let found = found.map(|Location { label, place }| (c_string(&label), place));
            into_c(place, moxin_locations(found.collect()));
        }
        Ok(())
    })
}

/// Returns the number of locations; 0 for NULL.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn moxin_locations_count(locations: *const moxin_locations) -> usize {
    // SAFETY: NULL, or a handle of this library that was not freed.
    unsafe { locations.as_ref() }.map_or(0, |locations| locations.0.len())
}

/// Gets a location. out_location->struct_size must be set.
///
/// Errors: INVALID_ARGUMENT if index is not less than moxin_locations_count.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn moxin_locations_get(
    locations: *const moxin_locations,
    index: usize,
    out_location: *mut moxin_location,
    error: *mut *mut moxin_error,
) -> moxin_status {
    guard(error, || {
        let written = out(out_location, "out_location")?;
        // SAFETY: NULL, or a handle of this library that was not freed.
        let locations = unsafe { retain(locations, "locations")? };
        let Some((label, place)) = locations.0.get(index) else {
            return Err(Error::InvalidArgument(format!(
                "index is {index}; there are {} locations",
                locations.0.len()
            )));
        };
        let ([left, top, right, bottom], is_point) = match *place {
            Place::Box {
                left,
                top,
                right,
                bottom,
            } => ([left, top, right, bottom], 0),
            Place::Point { x, y } => ([x, y, x, y], 1),
        };
        let location = moxin_location {
            label: view(label),
            left,
            top,
            right,
            bottom,
            is_point,
            ..moxin_location::defaults()
        };
        // SAFETY: `out` was checked; it is the caller's struct with its size.
        unsafe { write_result(written, location, "out_location") }
    })
}

/// Frees locations. NULL is ignored.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn moxin_locations_free(locations: *mut moxin_locations) {
    // SAFETY: NULL, or a handle of this library, which the caller does not use again.
    unsafe { free(locations, drop) };
}
