//! M-RoPE's positions (<https://arxiv.org/abs/2409.12191>, 2.1): text advances all three components
//! together; a picture has one time, and its features have their rows and columns; what follows
//! starts after the largest of them.

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
        .flat_map(|medium| medium.runs.iter().zip(&medium.plan.grids))
        .collect();
    runs.sort_by_key(|(run, _)| run.start);
    for (run, [frames, height, width]) in runs {
        text_until(&mut all, run.start.min(rows), &mut next);
        let (height, width) = ((height / merge) as i32, (width / merge) as i32);
        let start = next;
        for t in 0..*frames as i32 {
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

    /// The example of transformers' `get_rope_index`, for a picture of 2 x 3 features.
    #[test]
    fn text_goes_on_behind_the_picture() {
        let plan = MediaPlan {
            grids: vec![[1, 4, 6]],
            pixels: [84, 56],
            markup: String::new(),
            runs: vec![6],
        };
        let run = 2..8;
        let media = [PlacedMedium {
            runs: vec![run],
            plan: &plan,
        }];
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
}
