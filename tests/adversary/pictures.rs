//! Pictures that need far more memory than their size suggests, and the memory limit of decoding.

use std::{
    fs,
    io::{Cursor, Write},
};

use flate2::{Compression, write::ZlibEncoder};
use image::{DynamicImage, ImageFormat};
use moxin_vlm::{
    DecodeOptions, Error, Picture, PixelFormat, Result,
    device::{available_memory, set_memory_limits},
};

use crate::{
    child::{Limits, in_child, in_children, memory},
    programs::in_repository,
};

fn decode(bytes: &[u8]) -> Result<Picture> {
    Picture::decode(bytes, &DecodeOptions::default())
}

fn sample(name: &str) -> Vec<u8> {
    fs::read(in_repository("tests/image").join(name)).unwrap()
}

/// Returns so many zeros, compressed to a few hundredths of a percent.
fn zeros(count: usize) -> Vec<u8> {
    let mut encoder = ZlibEncoder::new(Vec::new(), Compression::fast());
    let block = vec![0; 1 << 20];
    let mut left = count;
    while left > 0 {
        encoder.write_all(&block[..left.min(block.len())]).unwrap();
        left -= left.min(block.len());
    }
    encoder.finish().unwrap()
}

/// Makes a black PNG, or one without pixels if there would be many, with these chunks before them.
pub fn png(width: u32, height: u32, chunks: &[Vec<u8>]) -> Vec<u8> {
    let header = [
        &width.to_be_bytes()[..],
        &height.to_be_bytes(),
        &[8, 2, 0, 0, 0],
    ]
    .concat();
    let pixels = if width > 5000 {
        0
    } else {
        (width as usize * 3 + 1) * height as usize
    };
    let begin = [b"\x89PNG\r\n\x1a\n".to_vec(), chunk(b"IHDR", &header)].concat();
    [
        begin,
        chunks.concat(),
        chunk(b"IDAT", &zeros(pixels)),
        chunk(b"IEND", &[]),
    ]
    .concat()
}

fn chunk(kind: &[u8; 4], data: &[u8]) -> Vec<u8> {
    let body = [kind, data].concat();
    let mut crc = flate2::Crc::new();
    crc.update(&body);
    [
        &(data.len() as u32).to_be_bytes()[..],
        &body,
        &crc.sum().to_be_bytes(),
    ]
    .concat()
}

/// Makes a TIFF of 4 x 4 gray pixels with these additional tags: a number, a type, a count, and a
/// value or the offset of the values. After the tags, at 512, follows `data`.
fn tiff(tags: &[(u16, u16, u32, u32)], data: &[u8]) -> Vec<u8> {
    let mut all = vec![
        (256, 3, 1, 4),
        (257, 3, 1, 4),
        (258, 3, 1, 8),
        (259, 3, 1, 1),
        (262, 3, 1, 1),
        (273, 4, 1, 512),
        (277, 3, 1, 1),
        (279, 4, 1, 16),
    ];
    all.retain(|(tag, ..)| tags.iter().all(|(other, ..)| other != tag));
    all.extend(tags);
    all.sort();
    let mut file = [
        &b"II\x2a\0\x08\0\0\0"[..],
        &(all.len() as u16).to_le_bytes(),
    ]
    .concat();
    for (tag, kind, count, value) in all {
        file.extend(
            [
                &tag.to_le_bytes()[..],
                &kind.to_le_bytes(),
                &count.to_le_bytes(),
                &value.to_le_bytes(),
            ]
            .concat(),
        );
    }
    file.resize(512, 0);
    [&file, data].concat()
}

/// Makes a RIFF file.
fn riff(chunks: &[(&[u8; 4], &[u8])]) -> Vec<u8> {
    let chunk = |(name, content): &(&[u8; 4], &[u8])| {
        let padding = vec![0; content.len() % 2];
        [
            &name[..],
            &(content.len() as u32).to_le_bytes(),
            content,
            &padding,
        ]
        .concat()
    };
    let body = [b"WEBP".to_vec(), chunks.iter().flat_map(chunk).collect()].concat();
    [&b"RIFF"[..], &(body.len() as u32).to_le_bytes(), &body].concat()
}

/// Returns the compressed pixels of a WebP, and its header when the file has other chunks.
fn webp_parts(name: &str, flags: u8) -> (Vec<u8>, Vec<u8>) {
    let bytes = sample(name);
    let picture = decode(&bytes).unwrap();
    let side = |side: u32| (side - 1).to_le_bytes()[..3].to_vec();
    let at = bytes
        .windows(4)
        .position(|name| name == b"VP8L" || name == b"VP8 ")
        .unwrap();
    let size = u32::from_le_bytes(bytes[at + 4..at + 8].try_into().unwrap()) as usize;
    (
        bytes[at + 8..at + 8 + size].to_vec(),
        [
            vec![flags, 0, 0, 0],
            side(picture.width()),
            side(picture.height()),
        ]
        .concat(),
    )
}

/// Bits, lowest first.
#[derive(Default)]
struct Bits {
    bytes: Vec<u8>,
    count: usize,
}

impl Bits {
    fn write(&mut self, number: u32, bits: usize) {
        for bit in 0..bits {
            if self.count.is_multiple_of(8) {
                self.bytes.push(0);
            }
            self.bytes[self.count / 8] |= ((number >> bit & 1) as u8) << (self.count % 8);
            self.count += 1;
        }
    }

    /// Writes a code with one symbol, which takes no bits.
    fn write_single(&mut self, symbol: u32) {
        self.write(0b101, 3);
        self.write(symbol, 8);
    }

    /// Writes a code in which each of the first symbols has so many bits.
    fn write_even(&mut self, length: u32, symbols: u32) {
        // The lengths are encoded by a code with one symbol, the sixteenth of its alphabet's order
        // for 13.
        const ORDER: [u32; 19] = [
            17, 18, 0, 1, 2, 3, 4, 5, 16, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15,
        ];
        self.write(0, 1);
        self.write(15, 4);
        ORDER
            .iter()
            .for_each(|symbol| self.write(u32::from(*symbol == length), 3));
        self.write(1, 1);
        self.write(5, 3);
        self.write(symbols - 2, 12);
    }
}

/// Makes lossless pixels in which one block declares 40,000 groups of codes, each with tables of
/// tens of kilobytes.
fn code_tables(side: Option<u32>) -> Vec<u8> {
    let mut bits = Bits::default();
    if let Some(side) = side {
        bits.write(0x2f, 8);
        bits.write(side - 1, 14);
        bits.write(side - 1, 14);
        bits.write(0, 4);
    }
    bits.write(0, 1); // no transform
    bits.write(1, 1);
    bits.write(11, 4); // a color cache, whose colors have symbols too
    bits.write(1, 1);
    bits.write(7, 3); // groups of codes, in blocks of 512 pixels
    bits.write(0, 1);
    [40_000 & 0xff, 40_000 >> 8, 0, 0, 0]
        .into_iter()
        .for_each(|symbol| bits.write_single(symbol));
    for _ in 0..40_001 {
        bits.write_even(11, 2048);
        (0..3).for_each(|_| bits.write_even(8, 256));
        bits.write_even(5, 32);
    }
    bits.bytes
}

/// Makes a JPEG with these segments after its start.
fn jpeg(segments: impl Iterator<Item = (u8, Vec<u8>)>) -> Vec<u8> {
    let bytes = sample("rgb.jpg");
    let segments = segments.flat_map(|(kind, data)| {
        [
            vec![0xff, kind],
            (data.len() as u16 + 2).to_be_bytes().to_vec(),
            data,
        ]
        .concat()
    });
    [bytes[..2].to_vec(), segments.collect(), bytes[2..].to_vec()].concat()
}

/// Makes a GIF with a frame of another size than its own, compressed in a few bytes.
fn gif(width: u16, height: u16, frame_width: u16, frame_height: u16, extensions: &[u8]) -> Vec<u8> {
    let sizes = |width: u16, height: u16| [width.to_le_bytes(), height.to_le_bytes()].concat();
    let header = [
        &b"GIF89a"[..],
        &sizes(width, height),
        &[0x80, 0, 0],
        &[0; 6],
    ]
    .concat();
    let frame = [
        &[0x2c, 0, 0, 0, 0][..],
        &sizes(frame_width, frame_height),
        &[0, 2, 3, 0x04, 0x00, 0x05, 0],
    ]
    .concat();
    [&header, extensions, &frame, b";"].concat()
}

const BOMBS: usize = 23;

/// Returns files of at most some megabytes that show a few pixels, by number, with a description.
fn bomb(number: usize) -> Option<(&'static str, Vec<u8>)> {
    let mebibytes = |count: usize| vec![7; count << 20];
    let text = |keyword: &str, between: &[u8], text: Vec<u8>| {
        [keyword.as_bytes(), between, &text].concat()
    };
    let (lossless, header) = webp_parts("rgb.webp", 0x20);
    let (lossy, lossy_header) = webp_parts("lossy.webp", 0x2c);
    let mut large = lossy.clone();
    large[6..10].copy_from_slice(&[0xff, 0x3f, 0xff, 0x3f]);
    let frame = |pixels: &[u8]| {
        let chunk = [&b"VP8 "[..], &(pixels.len() as u32).to_le_bytes(), pixels].concat();
        [&[0; 6][..], &lossy_header[4..10], &[100, 0, 0, 0], &chunk].concat()
    };
    let blocks = || {
        (0..30_000)
            .flat_map(|_| [vec![255], vec![7; 255]].concat())
            .collect::<Vec<u8>>()
    };
    let extension = |start: &[u8]| [&[0x21, 0xff, 11][..], start, &blocks(), &[0]].concat();
    let many_texts = || {
        (0..100_000)
            .map(|i: u32| chunk(b"tEXt", format!("k{i}\0text").as_bytes()))
            .collect::<Vec<_>>()
    };
    let bomb = match number {
        0 => (
            "a PNG's profile of 200 MiB",
            png(
                4,
                4,
                &[chunk(b"iCCP", &text("profile", b"\0\0", zeros(200 << 20)))],
            ),
        ),
        1 => (
            "a PNG's compressed text of 200 MiB",
            png(
                4,
                4,
                &[chunk(
                    b"zTXt",
                    &text("Raw profile type iptc", b"\0\0", zeros(200 << 20)),
                )],
            ),
        ),
        2 => (
            "a PNG's Unicode text of 200 MiB",
            png(
                4,
                4,
                &[chunk(
                    b"iTXt",
                    &text("XML:com.adobe.xmp", b"\0\x01\0\0\0", zeros(200 << 20)),
                )],
            ),
        ),
        3 => (
            "a PNG's EXIF data",
            png(4, 4, &[chunk(b"eXIf", &mebibytes(8))]),
        ),
        4 => ("a PNG's many texts", png(4, 4, &many_texts())),
        5 => (
            "an animated PNG",
            png(4, 4, &[chunk(b"acTL", &[255, 255, 255, 255, 0, 0, 0, 0])]),
        ),
        6 => (
            "a TIFF's strips",
            tiff(
                &[(273, 1, 8 << 20, 528), (279, 1, 8 << 20, 528)],
                &mebibytes(9),
            ),
        ),
        7 => (
            "a TIFF's orientation",
            tiff(&[(274, 1, 8 << 20, 528)], &mebibytes(9)),
        ),
        8 => (
            "a TIFF's tile",
            tiff(
                &[
                    (259, 3, 1, 8),
                    (322, 4, 1, 150 << 20),
                    (323, 4, 1, 16),
                    (324, 4, 1, 512),
                    (325, 4, 1, 1 << 20),
                ],
                &zeros(200 << 20),
            ),
        ),
        9 => (
            "a TIFF's samples",
            tiff(&[(259, 3, 1, 8), (277, 3, 1, 65_535)], &zeros(1 << 20)),
        ),
        10 => (
            "a TIFF's profile",
            tiff(&[(34_675, 7, 8 << 20, 528)], &mebibytes(9)),
        ),
        11 => (
            "a JPEG in a TIFF",
            tiff(&[(259, 3, 1, 7), (279, 4, 1, 4 << 10)], &sample("rgb.jpg")),
        ),
        12 => (
            "a JPEG's profile",
            jpeg((0..100).map(|i| {
                (
                    0xe2,
                    [&b"ICC_PROFILE\0"[..], &[i + 1, 100], &[7; 60_000]].concat(),
                )
            })),
        ),
        13 => (
            "a JPEG's descriptions",
            jpeg((0..150).map(|_| {
                (
                    0xe1,
                    [&b"http://ns.adobe.com/xmp/extension/\0"[..], &[7; 60_000]].concat(),
                )
            })),
        ),
        14 => (
            "a JPEG's comments",
            jpeg((0..150).map(|_| (0xfe, vec![7; 60_000]))),
        ),
        15 => (
            "a WebP's profile",
            riff(&[
                (b"VP8X", &header),
                (b"ICCP", &mebibytes(8)),
                (b"VP8L", &lossless),
                (b"EXIF", &mebibytes(4)),
            ]),
        ),
        16 => (
            "a WebP of another size",
            riff(&[
                (b"VP8X", &[&[0; 4], &lossy_header[4..]].concat()),
                (b"VP8 ", &large),
            ]),
        ),
        17 => (
            "an animated WebP of another size",
            riff(&[
                (b"VP8X", &[&[2, 0, 0, 0], &lossy_header[4..]].concat()),
                (b"ANIM", &[0; 6]),
                (b"ANMF", &frame(&large)),
            ]),
        ),
        18 => ("a GIF's frame", gif(2, 2, 16_000, 16_000, &[])),
        19 => (
            "a GIF's description",
            gif(2, 2, 2, 2, &extension(b"XMP DataXMP")),
        ),
        20 => (
            "a GIF's profile",
            gif(2, 2, 2, 2, &extension(b"ICCRGBG1012")),
        ),
        21 => (
            "a lossless WebP's code tables",
            riff(&[(b"VP8L", &code_tables(Some(4)))]),
        ),
        22 => ("the code tables of a WebP's alpha plane", {
            let alpha = [vec![1], code_tables(None)].concat();
            riff(&[
                (b"VP8X", &[&[0x10, 0, 0, 0], &lossy_header[4..]].concat()),
                (b"ALPH", &alpha),
                (b"VP8 ", &lossy),
            ])
        }),
        _ => return None,
    };
    Some(bomb)
}

#[test]
fn small_pictures_need_little_memory() {
    assert!(bomb(BOMBS).is_none());
    in_children(
        "pictures::small_pictures_need_little_memory",
        Limits::mebibytes(220),
        BOMBS,
        |i| {
            let (what, bytes) = bomb(i).unwrap();
            let before = memory("VmRSS:").unwrap_or(0);
            // Making the bombs must not be measured.
            let reset = fs::write("/proc/self/clear_refs", "5").is_ok();
            let pixels = match decode(&bytes) {
                Ok(picture) => picture.rgb().len() as u64,
                Err(Error::UnsupportedImage { .. }) => 0,
                Err(error) => panic!("{what}: {error:?}"),
            };
            let taken = memory("VmHWM:").unwrap_or(0).saturating_sub(before);
            println!(
                "NOTE: {what}: {} bytes, {} KiB taken",
                bytes.len(),
                taken >> 10
            );
            assert!(
                !reset || taken < (16 << 20) + 3 * bytes.len() as u64 + 8 * pixels,
                "{what}: {taken} bytes taken"
            );
        },
    );
}

/// Metadata is no reason to refuse a picture.
#[test]
fn pictures_with_much_metadata_are_decoded() {
    in_child(
        "pictures::pictures_with_much_metadata_are_decoded",
        Limits::default(),
        || {
            for (what, bytes) in (0..).map_while(bomb) {
                if [
                    "profile",
                    "text",
                    "EXIF",
                    "comments",
                    "descriptions",
                    "animated PNG",
                ]
                .iter()
                .any(|word| what.contains(word))
                {
                    decode(&bytes).unwrap_or_else(|error| panic!("{what}: {error}"));
                }
            }
        },
    );
}

/// Encodes a large picture in every format.
fn large(format: ImageFormat, image: &DynamicImage) -> Vec<u8> {
    let mut bytes = Cursor::new(Vec::new());
    image.write_to(&mut bytes, format).unwrap();
    bytes.into_inner()
}

/// Returns the bytes that a refusal says are needed.
fn needed(result: &Result<Picture>) -> Option<u64> {
    match result {
        Ok(_) => None,
        Err(Error::OutOfMemory { needed, limit, .. }) if needed > limit => Some(*needed),
        Err(error) => panic!("{error:?}"),
    }
}

/// Below the limit nothing is decoded; within it no more memory is used than was reported as
/// needed.
#[test]
fn decoding_respects_the_limit() {
    let formats = [
        ImageFormat::Png,
        ImageFormat::Jpeg,
        ImageFormat::Gif,
        ImageFormat::WebP,
        ImageFormat::Bmp,
        ImageFormat::Tiff,
    ];
    in_children(
        "pictures::decoding_respects_the_limit",
        Limits::default(),
        2 * formats.len(),
        |i| {
            let (format, deep) = (formats[i / 2], i % 2 == 1);
            let paint = |x: u32, y: u32| [(x / 7) as u8, (y / 5) as u8, (x * y / 999) as u8];
            let image = image::RgbImage::from_fn(2000, 1500, |x, y| image::Rgb(paint(x, y)));
            let image = match (format, deep) {
                (_, false) => DynamicImage::ImageRgb8(image),
                (ImageFormat::Png | ImageFormat::Tiff, true) => {
                    DynamicImage::ImageRgba16(DynamicImage::ImageRgb8(image).into_rgba16())
                }
                (ImageFormat::Jpeg, true) => {
                    DynamicImage::ImageLuma8(DynamicImage::ImageRgb8(image).into_luma8())
                }
                (_, true) => DynamicImage::ImageRgba8(DynamicImage::ImageRgb8(image).into_rgba8()),
            };
            let bytes = large(format, &image);
            drop(image);
            let limit = |bytes| set_memory_limits(bytes, u64::MAX).unwrap();
            let mut said = 0;
            let picture = loop {
                let before = memory("VmRSS:").unwrap_or(0);
                let reset = fs::write("/proc/self/clear_refs", "5").is_ok();
                limit(said);
                let result = decode(&bytes);
                let taken = memory("VmHWM:").unwrap_or(0).saturating_sub(before);
                println!("NOTE: {format:?} {deep}: {said} said, {taken} taken");
                assert!(
                    !reset || taken < said + (4 << 20),
                    "{format:?}: {taken} bytes taken, {said} said"
                );
                match needed(&result) {
                    Some(needed) => said = needed,
                    None => {
                        assert!(
                            !reset || said < 4 * taken + (8 << 20),
                            "{format:?}: {taken} bytes taken, {said} said"
                        );
                        break result.unwrap();
                    }
                }
            };
            assert_eq!((picture.width(), picture.height()), (2000, 1500));
            assert!(said >= 9_000_000, "{format:?}: {said}");
        },
    );
}

/// The limit set by a program applies to every way of reading a picture.
#[test]
fn the_memory_limit_applies_to_pictures() {
    in_child(
        "pictures::the_memory_limit_applies_to_pictures",
        Limits::mebibytes(200),
        || {
            set_memory_limits(64 << 20, u64::MAX).unwrap();
            let folder = tempfile::TempDir::new().unwrap();
            let bytes = png(9000, 9000, &[]);
            fs::write(folder.path().join("large.png"), &bytes).unwrap();
            let file = fs::File::create(folder.path().join("long.png")).unwrap();
            file.set_len(1 << 30).unwrap();
            for name in ["large.png", "long.png"] {
                let result = Picture::open(folder.path().join(name), &DecodeOptions::default());
                assert!(
                    needed(&result).is_some_and(|needed| needed > 200_000_000),
                    "{name}"
                );
            }
            assert!(needed(&decode(&bytes)).is_some());
            let pixels = vec![0; 25_000_000];
            let result = Picture::from_pixels(&pixels, 5000, 5000, 5000, PixelFormat::Gray8);
            assert_eq!(needed(&result), Some(75_000_000));
            assert_eq!(available_memory().unwrap(), 64 << 20);
            decode(&png(1000, 1000, &[])).unwrap();
        },
    );
}
