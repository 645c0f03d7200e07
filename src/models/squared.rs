//! Image processors that resize every picture to one size: SigLIP's ignores the aspect ratio;
//! CLIP's resizes the shorter side and crops the center.

use super::{MediaPlan, MediumSize, ProcessorSettings};
use crate::{
    Error, Result,
    image::{Filter, Normalization, Picture, Pixels, center_crop, planes, resize, resize_memory},
};

/// CLIP's statistics, the defaults of its processor.
pub const CLIP_MEAN: [f64; 3] = [0.481_454_66, 0.457_827_5, 0.408_210_73];
/// CLIP's statistics.
pub const CLIP_STD: [f64; 3] = [0.268_629_54, 0.261_302_58, 0.275_777_11];

/// A processor with a fixed picture size.
#[derive(Debug, Clone, PartialEq)]
pub struct Squared {
    edge: usize,
    /// The length of the shorter side before the center crop. `None`: both sides are resized,
    /// ignoring the aspect ratio.
    shortest: Option<usize>,
    filter: Filter,
    normalization: Normalization,
}

impl Squared {
    /// Reads a processor of SigLIP's kind, for an encoder of pictures with this edge. `filter` is
    /// the default for resizing.
    pub fn read(settings: &ProcessorSettings, edge: usize, filter: Filter) -> Result<Squared> {
        settings.require_steps()?;
        check_square(settings, "size", edge)?;
        Ok(Squared {
            edge,
            shortest: None,
            filter: settings.filter(filter)?,
            normalization: settings.normalization([0.5; 3], [0.5; 3])?,
        })
    }

    /// Reads CLIP's processor, for an encoder of pictures with this edge.
    pub fn read_clip(settings: &ProcessorSettings, edge: usize) -> Result<Squared> {
        settings.require_steps()?;
        settings.require("do_center_crop", true)?;
        check_square(settings, "crop_size", edge)?;
        let shortest = settings
            .count_in("size", "shortest_edge")?
            .or(settings.count("size").ok().flatten())
            .unwrap_or(224);
        if shortest < edge || shortest > 4 * 4096 {
            let what = format!(
                "field `size.shortest_edge` is {shortest}; expected {edge}, the edge of the crop, \
                    to 16384"
            );
            return Err(Error::unsupported(settings.path(), what));
        }
        Ok(Squared {
            edge,
            shortest: Some(shortest),
            filter: settings.filter(Filter::Bicubic)?,
            normalization: settings.normalization(CLIP_MEAN, CLIP_STD)?,
        })
    }

    /// Returns the plan of any picture.
    pub fn plan(&self, features: usize, marker: &str) -> MediaPlan {
        MediaPlan {
            grids: Vec::new(),
            pixels: [self.edge; 2],
            markup: marker.into(),
            runs: vec![features],
            times: Vec::new(),
        }
    }

    /// Makes `[3, edge, edge]` from a picture.
    pub fn process(&self, picture: &Picture) -> Result<Pixels> {
        let (width, height) = (picture.width() as usize, picture.height() as usize);
        let square = match self.shortest {
            None => resize(picture, self.edge, self.edge, self.filter)?,
            Some(shortest) => {
                let [width, height] = with_shortest([width, height], shortest);
                center_crop(
                    &resize(picture, width, height, self.filter)?,
                    self.edge,
                    self.edge,
                )?
            }
        };
        let data = planes(&square, &self.normalization)?;
        Ok(Pixels {
            data,
            channels: 3,
            height: self.edge,
            width: self.edge,
        })
    }

    /// Returns the temporary memory in bytes of [`Squared::process`].
    pub fn memory(&self, size: MediumSize) -> u64 {
        let side = size.width.max(size.height);
        let [width, height] = self.shortest.map_or([self.edge; 2], |shortest| {
            with_shortest([size.width, size.height], shortest)
        });
        resize_memory(width.max(height), side)
    }
}

/// Returns the size with this shorter side and the same aspect ratio, rounded down.
fn with_shortest([width, height]: [usize; 2], shortest: usize) -> [usize; 2] {
    match width <= height {
        true => [shortest, shortest * height / width],
        false => [shortest * width / height, shortest],
    }
}

fn check_square(settings: &ProcessorSettings, field: &str, edge: usize) -> Result<()> {
    let sides = [
        settings.count_in(field, "height")?,
        settings.count_in(field, "width")?,
    ];
    let sides = if sides == [None; 2] {
        [settings.count(field).ok().flatten(); 2]
    } else {
        sides
    };
    match sides.iter().flatten().find(|side| **side != edge) {
        Some(side) => Err(Error::corrupt(
            settings.path(),
            format!(
                "field `{field}` makes pictures of {side} pixels; vision_config.image_size in \
                 config.json is {edge}"
            ),
        )),
        None => Ok(()),
    }
}
