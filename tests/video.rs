//! Compares animations with Pillow: `tests/video/make_videos.py` draws them and writes the expected
//! results.

use std::{collections::BTreeMap, fmt::Write, path::PathBuf};

use moxin_vlm::{
    DecodeOptions, Error, Event, GenerationOptions, LoadOptions, Model, Op, Picture, Role, Video,
    VideoOptions,
    image::{MAX_FRAMES, PixelFormat},
};
use serde::Deserialize;
use sha2::{Digest, Sha256};

#[derive(Deserialize)]
struct Frame {
    duration: f64,
    sha256: String,
}

fn file(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .join("tests/video")
        .join(name)
}

fn open(name: &str, options: &VideoOptions) -> Video {
    Video::open(file(name), options).unwrap()
}

fn all() -> VideoOptions {
    VideoOptions {
        fps: None,
        ..Default::default()
    }
}

fn sha256(frame: &Picture) -> String {
    let mut hex = String::new();
    for byte in Sha256::digest(frame.rgb()) {
        write!(hex, "{byte:02x}").unwrap();
    }
    hex
}

/// Returns the name of each animation, its frames by Pillow, and the time of each in seconds.
fn expected() -> Vec<(String, Vec<Frame>, Vec<f64>)> {
    let json = std::fs::read(file("expected.json")).unwrap();
    let files: BTreeMap<String, Vec<Frame>> = serde_json::from_slice(&json).unwrap();
    assert_eq!(files.len(), 7);
    let with_times = |(name, frames): (String, Vec<Frame>)| {
        // A frame without a duration is shown as long as in a browser.
        let seconds = |frame: &Frame| match frame.duration {
            0.0 => 0.1,
            milliseconds => milliseconds / 1e3,
        };
        let start = |i: usize| frames[..i].iter().map(seconds).sum();
        let times = (0..=frames.len()).map(start).collect();
        (name, frames, times)
    };
    files.into_iter().map(with_times).collect()
}

/// Checks that this is the `i`th frame. The WebP decoder rounds what it blends in another way than
/// libwebp, by one level: it is compared with the PNG, whose frames Pillow decodes to the same.
#[track_caller]
fn same(name: &str, frame: &Picture, i: usize, expected: &Frame) {
    if !name.ends_with(".webp") {
        return assert_eq!(sha256(frame), expected.sha256, "{name}, frame {i}");
    }
    let png = open("equal.png", &all()).frames()[i].clone();
    assert_eq!(sha256(&png), expected.sha256);
    let far = frame
        .rgb()
        .iter()
        .zip(png.rgb())
        .map(|(a, b)| a.abs_diff(*b));
    assert!(far.max().unwrap() <= 1, "{name}, frame {i}");
}

#[test]
fn frames_and_times_are_those_of_pillow() {
    for (name, frames, times) in expected() {
        let video = open(&name, &all());
        assert_eq!(video.frames().len(), frames.len());
        for (i, frame) in video.frames().iter().enumerate() {
            same(&name, frame, i, &frames[i]);
        }
        for (found, expected) in video.times().iter().zip(&times) {
            assert!(
                (found - expected).abs() < 1e-9,
                "{name}: {found} {expected}"
            );
        }
        assert_eq!((video.width(), video.height()), (48, 36));
    }
}

/// Durations count: a frame that is shown for longer is taken more often.
#[test]
fn frames_are_taken_at_equal_times() {
    for (name, frames, times) in expected() {
        for fps in [2.0, 4.0, 5.0] {
            let options = VideoOptions {
                fps: Some(fps),
                ..Default::default()
            };
            let video = open(&name, &options);
            let duration = times[frames.len()];
            let count = ((duration * fps).max(4.0) / 2.0).floor() as usize * 2;
            assert_eq!(video.frames().len(), count, "{name} at {fps}");
            assert!((video.fps() - count as f64 / duration).abs() < 1e-9);
            for (frame, time) in video.frames().iter().zip(video.times()) {
                let shown = times.iter().filter(|start| **start <= time + 1e-9).count() - 1;
                same(&name, frame, shown, &frames[shown]);
            }
        }
    }
    let few = VideoOptions {
        max_frames: 3,
        ..Default::default()
    };
    assert_eq!(open("equal.gif", &few).frames().len(), 2);
    let few = VideoOptions {
        max_frames: 5,
        ..all()
    };
    let video = open("equal.gif", &few);
    assert_eq!(video.times().len(), 4);
    assert!((video.times()[1] - 0.3).abs() < 1e-9);
}

/// The frames are turned as the metadata of the file says, which the decoder does not see.
#[test]
fn frames_are_turned_upright() {
    let whole = std::fs::read(file("equal.png")).unwrap();
    // Orientation 6, in a chunk behind the header: the top of the scene is on the right.
    let exif = b"II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x06\0\0\0\0\0\0\0";
    let mut chunk = (exif.len() as u32).to_be_bytes().to_vec();
    chunk.extend(b"eXIf");
    chunk.extend(exif);
    chunk.extend([0; 4]); // a checksum, which nobody reads
    let turned = [&whole[..33], &chunk, &whole[33..]].concat();
    let as_stored = VideoOptions {
        frame: DecodeOptions {
            apply_orientation: false,
            ..Default::default()
        },
        ..Default::default()
    };
    let stored = Video::decode(&turned, &as_stored).unwrap();
    let upright = Video::decode(&turned, &VideoOptions::default()).unwrap();
    assert_eq!((stored.width(), stored.height()), (48, 36));
    assert_eq!((upright.width(), upright.height()), (36, 48));
    // The pixel at the bottom left comes to the top left.
    let (stored, upright) = (stored.frames()[0].rgb(), upright.frames()[0].rgb());
    assert_eq!(stored[3 * 48 * 35..][..3], upright[..3]);
}

#[track_caller]
fn refused(result: moxin_vlm::Result<Video>, what: &str) {
    let error = result.unwrap_err();
    assert!(matches!(error, Error::UnsupportedImage { .. }), "{error:?}");
    assert!(error.to_string().contains(what), "{error}");
}

#[test]
fn what_is_no_animation_is_refused() {
    let options = VideoOptions::default();
    refused(
        Video::decode(b"\0\0\0\x20ftypisom", &options),
        "GIF, WebP and PNG",
    );
    refused(Video::decode(b"", &options), "GIF, WebP and PNG");
    let demo = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("models/demo.png");
    refused(Video::open(demo, &options), "not animated");
    assert!(matches!(
        Video::open(file("missing.gif"), &options),
        Err(Error::NotFound { .. })
    ));
    let small = VideoOptions {
        frame: DecodeOptions {
            max_pixels: 1000,
            ..Default::default()
        },
        ..Default::default()
    };
    for name in ["equal.gif", "equal.webp", "equal.png"] {
        refused(Video::open(file(name), &small), "at most 1000");
    }
    for options in [
        VideoOptions {
            fps: Some(0.0),
            ..Default::default()
        },
        VideoOptions {
            max_frames: MAX_FRAMES + 1,
            ..Default::default()
        },
    ] {
        let result = Video::open(file("equal.gif"), &options);
        assert!(matches!(result, Err(Error::InvalidArgument(_))));
    }
}

/// Every truncated file, and many with a wrong byte, end in a video or an error.
#[test]
fn damaged_animations_are_errors() {
    for name in ["unequal.gif", "unequal.webp", "unequal.png"] {
        let whole = std::fs::read(file(name)).unwrap();
        for end in (0..whole.len()).step_by(7) {
            let _ = Video::decode(&whole[..end], &all());
        }
        for at in (0..whole.len()).step_by(5) {
            let mut bytes = whole.clone();
            bytes[at] ^= 0xff;
            let _ = Video::decode(&bytes, &all());
        }
        let half = Video::decode(&whole[..whole.len() / 2], &all());
        assert!(half.is_err(), "{name}");
    }
}

/// A small file may have any number of frames, and a canvas of any size.
#[test]
fn a_gif_of_a_million_frames_is_refused() {
    // A canvas of one pixel and two colors.
    let mut gif = b"GIF89a\x01\0\x01\0\x80\0\0\0\0\0\xff\xff\xff".to_vec();
    // A pixel as large as the canvas: clear, color 0, end.
    let frame = b"\x2c\0\0\0\0\x01\0\x01\0\0\x02\x02\x44\x01\0";
    gif.extend(frame);
    gif.push(b';');
    assert_eq!(Video::decode(&gif, &all()).unwrap().frames().len(), 1);
    gif.pop();
    gif.extend(frame.repeat(1_000_000));
    refused(
        Video::decode(&gif, &Default::default()),
        "more than 20000 frames",
    );
    // The canvas stands behind the signature.
    let mut huge = std::fs::read(file("equal.gif")).unwrap();
    huge[6..10].copy_from_slice(&[0xff; 4]);
    refused(
        Video::decode(&huge, &Default::default()),
        "at most 100000000",
    );
}

/// A clip that the small video model has not seen, and a question about it.
#[derive(Deserialize)]
struct Item {
    row: usize,
    question: String,
    answer: String,
}

/// The frames of a clip lie side by side, one clip in each row.
fn unseen_clip(sheet: &Picture, row: usize) -> Video {
    const EDGE: usize = 56;
    let stride = 3 * sheet.width() as usize;
    let frames = (0..8).map(|i| {
        let first = row * EDGE * stride + 3 * EDGE * i;
        let (edge, format) = (EDGE as u32, PixelFormat::Rgb8);
        Picture::from_pixels(&sheet.rgb()[first..], edge, edge, stride, format)
    });
    Video::from_frames(frames.collect::<Result<_, _>>().unwrap(), 2.0).unwrap()
}

#[test]
fn the_small_model_says_what_moves_in_unseen_clips() {
    let models = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("models");
    let folder = models.join("video");
    let files = std::fs::read_dir(&folder).unwrap();
    let bytes: u64 = files
        .map(|file| file.unwrap().metadata().unwrap().len())
        .sum();
    assert!(bytes <= 6_000_000, "{bytes}");
    let training = models.join("video-training");
    let sheet = Picture::open(training.join("heldout.png"), &Default::default()).unwrap();
    let lines = std::fs::read_to_string(training.join("heldout.jsonl")).unwrap();
    let items: Vec<Item> = lines
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    assert_eq!(items.len(), 300);
    let model = Model::load(&folder, LoadOptions::default(), Op::default()).unwrap();
    let ask = |video: Video, question: &str| {
        let session = model.session(GenerationOptions::default()).unwrap();
        session.add_video(video).unwrap();
        session.add_text(Role::User, question).unwrap();
        let mut answer = String::new();
        for event in session.generate() {
            if let Event::Text { text, .. } | Event::Finished { text, .. } = event.unwrap() {
                answer += &text;
            }
        }
        answer
    };
    let is_right = |item: &&Item| ask(unseen_clip(&sheet, item.row), &item.question) == item.answer;
    let right = items.iter().filter(is_right).count();
    println!("{right} of 300 answers are right");
    assert!(right >= 270, "{right} of 300");
    let demo = Video::open(models.join("demo.gif"), &Default::default()).unwrap();
    assert_eq!(ask(demo, "Which way does it move?"), "to the left");
}

/// A picture is a frame like any other, and frames from elsewhere make the same video.
#[test]
fn frames_from_memory_make_the_same_video() {
    let video = open("equal.gif", &all());
    let copies = video
        .frames()
        .iter()
        .map(|frame| Picture::from_pixels(frame.rgb(), 48, 36, 3 * 48, PixelFormat::Rgb8).unwrap());
    let times = video.times().to_vec();
    let same = Video::from_timed_frames(copies.collect(), times).unwrap();
    assert_eq!(same.hash(), video.hash());
}
