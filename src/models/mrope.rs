//! M-RoPE's positions (<https://arxiv.org/abs/2409.12191>, 2.1): text advances all three components
//! together; a picture has one time, a video one for each of its patches in time, and their features
//! have their rows and columns; what follows starts after the largest of them.

use crate::models::PlacedMedium;

/// Returns the positions of a prompt's rows.
pub fn positions(rows: usize, media: &[PlacedMedium], merge: u32) -> Vec<[i32; 3]> {
    let mut all: Vec<[i32; 3]> = Vec::with_capacity(rows);
    let mut next = 0;
    let text_until = |all: &mut Vec<[i32; 3]>, end: usize, next: &mut i32| {
        while all.len() < end {
            all.push([*next; 3]);
            *next += 1;
        }
    };
    let mut runs: Vec<_> = media
        .iter()
        .flat_map(|medium| {
            let grids = medium.runs.iter().zip(&medium.plan.grids);
            grids.map(|(run, grid)| (run, grid, &medium.plan.times))
        })
        .collect();
    runs.sort_by_key(|(run, ..)| run.start);
    for (run, [frames, height, width], times) in runs {
        text_until(&mut all, run.start.min(rows), &mut next);
        let (height, width) = ((height / merge) as i32, (width / merge) as i32);
        let start = next;
        for t in 0..*frames as usize {
            let t = times.get(t).map_or(0, |time| *time as i32);
            for (h, w) in (0..height).flat_map(|h| (0..width).map(move |w| (h, w))) {
                all.push([start + t, start + h, start + w]);
                next = next.max(start + t.max(h).max(w) + 1);
            }
        }
    }
    text_until(&mut all, rows, &mut next);
    all.truncate(rows);
    all
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::models::MediaPlan;

    fn at_2_to_8(plan: &MediaPlan) -> PlacedMedium<'_> {
        let run = 2..8;
        PlacedMedium {
            runs: vec![run],
            plan,
        }
    }

    /// The example of transformers' `get_rope_index`, for a picture of 2 x 3 features.
    #[test]
    fn text_goes_on_behind_the_picture() {
        let plan = MediaPlan {
            grids: vec![[1, 4, 6]],
            pixels: [84, 56],
            markup: String::new(),
            runs: vec![6],
            times: Vec::new(),
        };
        let media = [at_2_to_8(&plan)];
        let expected = [
            [0, 0, 0],
            [1, 1, 1],
            [2, 2, 2],
            [2, 2, 3],
            [2, 2, 4],
            [2, 3, 2],
            [2, 3, 3],
            [2, 3, 4],
            [5, 5, 5],
            [6, 6, 6],
        ];
        assert_eq!(positions(10, &media, 2), expected);
        assert_eq!(positions(8, &media, 2), expected[..8]);
    }

    /// Transformers 4.57.6's `get_rope_index`; 5.3 to 5.24 go on at 4 instead, so that a cached step
    /// and a whole prompt differ (<https://github.com/huggingface/transformers/pull/43972>).
    #[test]
    fn text_goes_on_behind_the_last_time_of_a_video() {
        let plan = MediaPlan {
            grids: vec![[3, 2, 4]],
            pixels: [56, 28],
            markup: String::new(),
            runs: vec![6],
            times: vec![0, 3, 6],
        };
        let media = [at_2_to_8(&plan)];
        let expected = [
            [0, 0, 0],
            [1, 1, 1],
            [2, 2, 2],
            [2, 2, 3],
            [5, 2, 2],
            [5, 2, 3],
            [8, 2, 2],
            [8, 2, 3],
            [9, 9, 9],
        ];
        assert_eq!(positions(9, &media, 2), expected);
    }
}
