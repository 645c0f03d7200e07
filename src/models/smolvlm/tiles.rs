//! Idefics3's image processor: a picture is resized so that its longer side has a fixed length, cut
//! into square tiles, and followed by a square of the whole
//! (<https://arxiv.org/abs/2408.12637>, 4.2).

use crate::{
    Error, Result,
    device::room,
    image::{Filter, Normalization, Picture, Pixels, crop, planes, resize, resize_weights},
    models::{MediumSize, ProcessorSettings},
};

/// The maximum number of tiles on a side; published models have 4.
const MAX_TILES: usize = 32;

/// The maximum of the longer side, transformers' `MAX_IMAGE_SIZE`
/// (<https://github.com/huggingface/transformers/blob/v4.57.0/src/transformers/models/idefics3/image_processing_idefics3.py>).
const MAX_SIDE: usize = 4096;

/// The processor.
#[derive(Debug, Clone, PartialEq)]
pub struct Tiler {
    /// The edge of a tile, in pixels.
    edge: usize,
    /// The length that the longer side of every picture is resized to, also of smaller ones.
    longest: usize,
    /// Whether pictures are cut into tiles at all.
    splits: bool,
    filter: Filter,
    normalization: Normalization,
}

impl Tiler {
    /// Reads the processor of an encoder of pictures with this edge.
    pub fn read(settings: &ProcessorSettings, edge: usize) -> Result<Tiler> {
        settings.require_steps()?;
        let side = |field: &str, default: usize| -> Result<usize> {
            match settings.count_in(field, "longest_edge")? {
                Some(side) => Ok(side),
                None if settings
                    .values()
                    .get(field)
                    .is_some_and(|size| !size.is_null()) =>
                {
                    let what = format!("field `{field}` has no longest_edge");
                    Err(Error::corrupt(settings.path(), what))
                }
                None => Ok(default),
            }
        };
        let tile = side("max_image_size", 364)?;
        if tile != edge {
            let what = format!(
                "field `max_image_size` makes tiles of {tile} pixels; vision_config.image_size in \
                 config.json is {edge}"
            );
            return Err(Error::unsupported(settings.path(), what));
        }
        let longest = side("size", 4 * 364)?;
        let most = MAX_SIDE.min(MAX_TILES * edge);
        if longest > most {
            let what = format!("field `size.longest_edge` is {longest}; expected 1 to {most}");
            return Err(Error::unsupported(settings.path(), what));
        }
        Ok(Tiler {
            edge,
            longest,
            splits: settings.switch("do_image_splitting", true)?,
            filter: settings.filter(Filter::Lanczos)?,
            normalization: settings.normalization([0.5; 3], [0.5; 3])?,
        })
    }

    /// Returns the columns and rows of tiles for a picture of this size: as many as `permits`
    /// allows. One tile is always allowed.
    pub fn grid(&self, size: MediumSize, permits: impl Fn([usize; 2]) -> bool) -> [usize; 2] {
        if !self.splits {
            return [1, 1];
        }
        (1..=self.longest.div_ceil(self.edge))
            .rev()
            .map(|most| self.grid_of(with_longest(size, self.longest.min(most * self.edge))))
            .find(|grid| permits(*grid))
            .unwrap_or([1, 1])
    }

    /// Returns the columns and rows of tiles for a picture that was resized to this size.
    fn grid_of(&self, [width, height]: [usize; 2]) -> [usize; 2] {
        // The side that is not the longer one keeps the ratio, and is then rounded up.
        let aspect = width as f64 / height as f64;
        let tiles = |side: f64| (side as usize).div_ceil(self.edge).max(1);
        if width >= height {
            let columns = width.div_ceil(self.edge);
            [columns, tiles((columns * self.edge) as f64 / aspect)]
        } else {
            let rows = height.div_ceil(self.edge);
            [tiles((rows * self.edge) as f64 * aspect), rows]
        }
    }

    /// Returns the size in pixels of so many columns and rows of tiles.
    pub fn pixels(&self, grid: [usize; 2]) -> [usize; 2] {
        grid.map(|tiles| tiles * self.edge)
    }

    /// Returns the size that a picture is resized to first, if all its tiles together have so many
    /// pixels. Fewer tiles are those of a smaller longer side.
    fn resized(&self, size: MediumSize, [width, height]: [usize; 2]) -> [usize; 2] {
        let longest = match width.max(height) {
            side if side > self.edge => side.min(self.longest),
            _ => self.longest,
        };
        with_longest(size, longest)
    }

    /// Makes the planes of each tile, row by row, and then of the square of the whole picture,
    /// which is made from the resized one. If there is one tile, it is that square.
    pub fn process(&self, picture: &Picture, [width, height]: [usize; 2]) -> Result<Pixels> {
        let size = MediumSize {
            width: picture.width() as usize,
            height: picture.height() as usize,
        };
        let [across, down] = self.resized(size, [width, height]);
        let resized = resize(picture, across, down, self.filter)?;
        let whole = resize(&resized, width, height, self.filter)?;
        drop(resized);
        let (columns, rows) = (width / self.edge, height / self.edge);
        let places = (0..rows).flat_map(|row| (0..columns).map(move |column| [column, row]));
        let count = tiles([columns, rows]);
        let mut data = room(count * 3 * self.edge.pow(2), || {
            "the tiles of a picture".into()
        })?;
        for place in places.take(count - 1) {
            let tile = crop(&whole, self.pixels(place), [self.edge; 2])?;
            data.extend(planes(&tile, &self.normalization)?);
        }
        let square = resize(&whole, self.edge, self.edge, self.filter)?;
        data.extend(planes(&square, &self.normalization)?);
        Ok(Pixels {
            data,
            channels: 3 * count,
            height: self.edge,
            width: self.edge,
        })
    }

    /// Returns the temporary memory in bytes of [`Tiler::process`].
    pub fn memory(&self, size: MediumSize, pixels: [usize; 2]) -> u64 {
        let area = |[width, height]: [usize; 2]| width as u64 * height as u64;
        let resized = self.resized(size, pixels);
        let square = area([self.edge; 2]);
        // A resize needs sums and its result; then a tile is cut out, and its planes are made.
        let steps = [
            (12 + 3) * area(resized),
            3 * area(resized) + (12 + 3) * area(pixels),
            3 * area(pixels) + (3 + 12 + 3) * square,
        ];
        let weights = resize_weights(&[
            size.width,
            size.height,
            resized[0],
            resized[1],
            pixels[0],
            pixels[1],
        ]);
        steps.into_iter().fold(0, u64::max).saturating_add(weights)
    }
}

/// Returns the number of tiles in so many columns and rows, including that of the whole picture.
pub fn tiles([columns, rows]: [usize; 2]) -> usize {
    match columns * rows {
        1 => 1,
        tiles => tiles + 1,
    }
}

/// Returns the size with this longer side and the same aspect ratio; the shorter side is rounded
/// down, and up to an even number.
fn with_longest(MediumSize { width, height }: MediumSize, longest: usize) -> [usize; 2] {
    let aspect = width as f64 / height as f64;
    let even = |side: f64| (side as usize).next_multiple_of(2).max(1);
    match width >= height {
        true => [longest, even(longest as f64 / aspect)],
        false => [even(longest as f64 * aspect), longest],
    }
}
