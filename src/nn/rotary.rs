//! Rotary positions (<https://arxiv.org/abs/2104.09864>).

use super::Row;
use crate::{
    Result,
    device::{
        Tensor,
        ops::{RotaryTable, rotate_heads, rotate_heads_by},
    },
};

/// The rotation of a layer's queries and keys.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Rope {
    /// The base of the frequencies.
    pub theta: f32,
    /// The reduction of the frequencies.
    pub scaling: RopeScaling,
    /// The component of a row's position that each frequency uses.
    pub kind: RopeKind,
}

/// The reduction of frequencies for contexts longer than those first trained with.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum RopeScaling {
    /// All are divided by a number; 1 for none.
    Linear(f32),
    /// Llama 3.1's: frequencies with more than `high` turns in `context` positions stay, those with
    /// less than `low` are divided by `factor`, and those in between change gradually
    /// (<https://github.com/huggingface/transformers/blob/v4.57.0/src/transformers/modeling_rope_utils.py>,
    /// `_compute_llama3_parameters`).
    ByTurns {
        /// The divisor of low frequencies.
        factor: f32,
        /// The number of turns below which a frequency is low.
        low: f32,
        /// The number of turns above which a frequency is high; more than `low`.
        high: f32,
        /// The number of positions first trained with.
        context: f32,
    },
}

impl RopeScaling {
    /// Returns the reduced frequency.
    fn reduce(self, frequency: f32) -> f32 {
        match self {
            RopeScaling::Linear(factor) => frequency / factor,
            RopeScaling::ByTurns {
                factor,
                low,
                high,
                context,
            } => {
                let turns = context * frequency / std::f32::consts::TAU;
                let kept = ((turns - low) / (high - low)).clamp(0.0, 1.0);
                (1.0 - kept) * frequency / factor + kept * frequency
            }
        }
    }
}

/// The component of a row's position that each frequency uses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RopeKind {
    /// The first component for all frequencies, as in text.
    Sequential,
    /// Each component for so many frequencies, in order; they add up to half a head's width
    /// (Qwen2-VL's M-RoPE, <https://arxiv.org/abs/2409.12191>).
    Sections([usize; 3]),
}

/// The angles of some rows.
pub(super) enum Angles {
    /// Consecutive positions from here on, and their divisor.
    From(usize, f32),
    Table(RotaryTable),
}

impl Rope {
    /// Returns the angles of rows, for heads of this width.
    pub(super) fn angles(&self, rows: &[Row], width: usize) -> Angles {
        match (rows.first(), self.scaling) {
            (Some(first), RopeScaling::Linear(scaling)) if self.are_sequential(rows) => {
                Angles::From(first.position[0] as usize, scaling)
            }
            _ => Angles::Table(self.table(rows, width)),
        }
    }

    fn are_sequential(&self, rows: &[Row]) -> bool {
        let first = rows.first().map_or(0, |row| row.position[0]);
        let is_next = |(i, row): (usize, &Row)| {
            let [t, h, w] = row.position;
            t == first + i as i32 && (self.kind == RopeKind::Sequential || h == t && w == t)
        };
        rows.iter().enumerate().all(is_next)
    }

    fn table(&self, rows: &[Row], width: usize) -> RotaryTable {
        let half = width / 2;
        // As in transformers: frequencies and angles are computed in float32.
        let frequencies: Vec<f32> = (0..half)
            .map(|i| 1.0 / self.theta.powf((2 * i) as f32 / width as f32))
            .map(|frequency| self.scaling.reduce(frequency))
            .collect();
        let axes: Vec<usize> = (0..half).map(|i| self.kind.axis(i)).collect();
        let angle = |row: &Row, i: usize| row.position[axes[i]] as f32 * frequencies[i];
        RotaryTable::new(
            rows.iter()
                .flat_map(|row| (0..half).map(move |i| (row, i)))
                .map(|(row, i)| angle(row, i)),
        )
    }

    /// Splits `[batch, tokens, heads · width]` into heads and rotates them.
    pub(super) fn rotate(&self, x: &Tensor, width: usize, angles: &Angles) -> Result<Tensor> {
        match angles {
            Angles::From(offset, scaling) => {
                rotate_heads(x, width as i32, self.theta, *scaling, *offset)
            }
            Angles::Table(table) => rotate_heads_by(x, width as i32, table),
        }
    }
}

impl RopeKind {
    /// Returns the component that the `i`th frequency uses.
    fn axis(self, i: usize) -> usize {
        match self {
            RopeKind::Sequential => 0,
            RopeKind::Sections([first, second, _]) => {
                usize::from(i >= first) + usize::from(i >= first + second)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::{Backend, CpuKernels, Device, ops::floats};

    /// A table of consecutive positions agrees with the fast path, scaled or not, in our kernels
    /// and MLX's.
    #[test]
    fn both_ways_agree() {
        let numbers: Vec<f32> = (0..3 * 2 * 8).map(|i| (i as f32 * 0.37).sin()).collect();
        let rows: Vec<Row> = (5..8).map(|i| Row::causal(0, [i; 3], i as usize)).collect();
        for kernels in [CpuKernels::Own, CpuKernels::Mlx] {
            let device = Device::new(Backend::Cpu).unwrap().with_cpu_kernels(kernels);
            for (scaling, kind) in [
                (1.0, RopeKind::Sequential),
                (4.0, RopeKind::Sections([1, 2, 1])),
            ] {
                let rope = Rope {
                    theta: 100.0,
                    scaling: RopeScaling::Linear(scaling),
                    kind,
                };
                device.run(|| {
                    let x = floats(&numbers, &[1, 3, 16]);
                    assert!(matches!(rope.angles(&rows, 8), Angles::From(5, _)));
                    let fast = rope
                        .rotate(&x, 8, &Angles::From(5, scaling))
                        .unwrap()
                        .to_vec_cast::<f32>()
                        .unwrap();
                    let table = rope
                        .rotate(&x, 8, &Angles::Table(rope.table(&rows, 8)))
                        .unwrap();
                    let table = table.to_vec_cast::<f32>().unwrap();
                    let difference = fast
                        .iter()
                        .zip(&table)
                        .map(|(a, b)| (a - b).abs())
                        .fold(0.0, f32::max);
                    assert!(difference < 1e-5, "{kernels:?}, {scaling}: {difference}");
                });
            }
        }
    }

    /// The numbers are transformers 5.24's, of the settings of Llama 3.1 8B.
    #[test]
    fn only_slow_frequencies_are_divided() {
        let scaling = RopeScaling::ByTurns {
            factor: 8.0,
            low: 1.0,
            high: 4.0,
            context: 8192.0,
        };
        let frequency = |i: i32| 1.0 / 500_000f32.powf((2 * i) as f32 / 128.0);
        for (i, expected) in [
            (0, 1.0),
            (28, 0.003_211_446),
            (29, 0.002_166_570_6),
            (33, 0.000_312_693_65),
            (36, 0.000_077_846_55),
            (63, 3.068_926e-7),
        ] {
            let found = scaling.reduce(frequency(i));
            assert!(
                (found / expected - 1.0).abs() < 1e-6,
                "{i}: {found} {expected}"
            );
        }
    }

    #[test]
    fn sections_take_their_axes_in_turn() {
        let axes: Vec<usize> = (0..6)
            .map(|i| RopeKind::Sections([1, 2, 3]).axis(i))
            .collect();
        assert_eq!(axes, [0, 1, 1, 2, 2, 2]);
        let apart = [Row::causal(0, [3, 4, 3], 0)];
        assert!(matches!(
            Rope {
                theta: 10.0,
                scaling: RopeScaling::Linear(1.0),
                kind: RopeKind::Sections([1, 1, 1])
            }
            .angles(&apart, 6),
            Angles::Table(_)
        ));
    }
}
