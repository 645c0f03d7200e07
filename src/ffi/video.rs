//! Videos.

use std::ffi::{c_char, c_void};

use super::{
    MOXIN_STRLEN, Versioned, bytes, free, guard, init_params, into_c, moxin_error, moxin_image,
    moxin_status, out, read_params, retain, text, write_result,
};
use crate::{
    Error, Result,
    runtime::{DecodeOptions, MAX_FRAMES, Video, VideoOptions},
};

/// A video: frames of one size, each with its time.
pub struct moxin_video(pub(super) Video);

/// Options for reading a video from a file.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct moxin_video_params {
    /// sizeof(moxin_video_params)
    pub struct_size: usize,
    /// The number of frames to read per second; 0: all frames of the file. Default: 2, as the models
    /// were trained.
    pub fps: f64,
    /// The maximum number of pixels in a frame. A larger video is refused after its header is read.
    /// Default: 100,000,000.
    pub max_pixels: u64,
    /// The maximum number of frames; a longer video is read with fewer per second. Default: 768.
    pub max_frames: u32,
    /// If not 0, the orientation in the file's metadata is ignored. Default: 0, the frames are
    /// turned upright.
    pub ignore_orientation: u32,
}

// SAFETY: repr(C), starts with its size, otherwise numbers.
unsafe impl Versioned for moxin_video_params {
    fn defaults() -> Self {
        let options = VideoOptions::default();
        moxin_video_params {
            struct_size: size_of::<Self>(),
            fps: options.fps.unwrap_or(0.0),
            max_pixels: options.frame.max_pixels,
            max_frames: options.max_frames as u32,
            ignore_orientation: 0,
        }
    }
}

/// The size of a video.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct moxin_video_info {
    /// sizeof(moxin_video_info)
    pub struct_size: usize,
    /// The number of frames per second, on average.
    pub fps: f64,
    /// The number of frames.
    pub frame_count: u32,
    /// The number of columns.
    pub width: u32,
    /// The number of rows.
    pub height: u32,
    /// Must be ignored.
    pub reserved: u32,
}

// SAFETY: repr(C), starts with its size, otherwise numbers.
unsafe impl Versioned for moxin_video_info {}

/// Sets all parameters to their defaults. struct_size is sizeof(moxin_video_params); nothing beyond
/// it is written.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn moxin_video_params_init(
    params: *mut moxin_video_params,
    struct_size: usize,
) {
    // SAFETY: NULL, or the caller's struct of that size.
    unsafe { init_params(params, struct_size) };
}

/// Reads a video from a file: an animated GIF, WebP or PNG. The format is detected from the content.
/// Frames are taken at equal times: each is the one that is shown then. For other formats, decode
/// the frames and use moxin_video_from_frames.
///
/// path is NUL-terminated UTF-8. params and error may be NULL. *out_video receives a video, which the
/// caller frees with moxin_video_free.
///
/// Errors: NOT_FOUND, IO; UNSUPPORTED_IMAGE if the file is no animation or has too many frames or
/// pixels; INVALID_ARGUMENT if the path is not UTF-8 or a parameter is out of range; OUT_OF_MEMORY
/// if its frames need more memory than is available or than moxin_memory_set_limits allows.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn moxin_video_from_file(
    path: *const c_char,
    params: *const moxin_video_params,
    out_video: *mut *mut moxin_video,
    error: *mut *mut moxin_error,
) -> moxin_status {
    guard(error, || {
        let place = out(out_video, "out_video")?;
        // SAFETY: the caller's NUL-terminated text and struct; the output pointer was checked.
        unsafe {
            let path = text(path, MOXIN_STRLEN, "path")?;
            into_c(place, moxin_video(Video::open(path, &options(params)?)?));
        }
        Ok(())
    })
}

/// Reads a video from the bytes of a file, as moxin_video_from_file does. The bytes may be freed
/// when the call returns.
///
/// Errors: UNSUPPORTED_IMAGE, INVALID_ARGUMENT, OUT_OF_MEMORY, as for moxin_video_from_file.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn moxin_video_from_bytes(
    data: *const c_void,
    len: usize,
    params: *const moxin_video_params,
    out_video: *mut *mut moxin_video,
    error: *mut *mut moxin_error,
) -> moxin_status {
    guard(error, || {
        let place = out(out_video, "out_video")?;
        // SAFETY: the caller's bytes and struct; the output pointer was checked.
        unsafe {
            let data = bytes(data.cast(), len, "data")?;
            into_c(place, moxin_video(Video::decode(data, &options(params)?)?));
        }
        Ok(())
    })
}

/// Makes a video of frame_count pictures of one size, which share their pixels with it and may be
/// freed when the call returns. The model reads all of them.
///
/// times: the time of each frame in seconds, each greater than the one before, or NULL: the frames
/// follow each other fps times per second. fps is ignored if there are times.
///
/// Errors: INVALID_ARGUMENT if there are no frames or more than 4096, if they differ in size, or if
/// the times or fps are not as described.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn moxin_video_from_frames(
    frames: *const *const moxin_image,
    frame_count: usize,
    times: *const f64,
    fps: f64,
    out_video: *mut *mut moxin_video,
    error: *mut *mut moxin_error,
) -> moxin_status {
    guard(error, || {
        let place = out(out_video, "out_video")?;
        if frame_count > MAX_FRAMES {
            return Err(Error::InvalidArgument(format!(
                "frame_count is {frame_count}; expected 1 to {MAX_FRAMES}"
            )));
        }
        if frames.is_null() {
            return Err(Error::NullArgument("frames"));
        }
        // SAFETY: the caller's array of that many images, each NULL or a handle of this library that
        // was not freed, and of that many times; the output pointer was checked.
        unsafe {
            let frame = |i| Ok(retain(frames.add(i).read(), "frames")?.0.clone());
            let pictures = (0..frame_count).map(frame).collect::<Result<_>>()?;
            let video = match times.is_null() {
                true => Video::from_frames(pictures, fps)?,
                false => {
                    let times = (0..frame_count).map(|i| times.add(i).read()).collect();
                    Video::from_timed_frames(pictures, times)?
                }
            };
            into_c(place, moxin_video(video));
        }
        Ok(())
    })
}

/// Gets the size of a video. out_info->struct_size must be set.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn moxin_video_info_get(
    video: *const moxin_video,
    out_info: *mut moxin_video_info,
    error: *mut *mut moxin_error,
) -> moxin_status {
    guard(error, || {
        let place = out(out_info, "out_info")?;
        // SAFETY: NULL, or a handle of this library that was not freed.
        let video = unsafe { retain(video, "video")? };
        let info = moxin_video_info {
            fps: video.0.fps(),
            frame_count: video.0.frames().len() as u32,
            width: video.0.width(),
            height: video.0.height(),
            ..moxin_video_info::defaults()
        };
        // SAFETY: `out` was checked; it is the caller's struct with its size.
        unsafe { write_result(place, info, "out_info") }
    })
}

/// Frees a video. NULL is ignored.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn moxin_video_free(video: *mut moxin_video) {
    // SAFETY: NULL, or a handle of this library, which the caller does not use again.
    unsafe { free(video, drop) };
}

/// # Safety
/// As for [`read_params`].
unsafe fn options(params: *const moxin_video_params) -> Result<VideoOptions> {
    // SAFETY: the caller upholds this function's contract.
    let params = unsafe { read_params(params, "params")? };
    Ok(VideoOptions {
        fps: (params.fps != 0.0).then_some(params.fps),
        max_frames: params.max_frames as usize,
        frame: DecodeOptions {
            apply_orientation: params.ignore_orientation == 0,
            max_pixels: params.max_pixels,
        },
    })
}
