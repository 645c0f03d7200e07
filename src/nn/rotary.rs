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
    /// The divisor of positions; 1 for none.
    pub scaling: f32,
    /// The component of a row's position that each frequency uses.
    pub kind: RopeKind,
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
    /// Consecutive positions from here on.
    From(usize),
    Table(RotaryTable),
}

impl Rope {
    /// Returns the angles of rows, for heads of this width.
    pub(super) fn angles(&self, rows: &[Row], width: usize) -> Angles {
        match rows.first() {
            Some(first) if self.are_sequential(rows) => Angles::From(first.position[0] as usize),
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
            .map(|i| 1.0 / self.theta.powf((2 * i) as f32 / width as f32) / self.scaling)
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
            Angles::From(offset) => {
                rotate_heads(x, width as i32, self.theta, self.scaling, *offset)
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
                    scaling,
                    kind,
                };
                device.run(|| {
                    let x = floats(&numbers, &[1, 3, 16]);
                    assert!(matches!(rope.angles(&rows, 8), Angles::From(5)));
                    let fast = rope
                        .rotate(&x, 8, &Angles::From(5))
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
                scaling: 1.0,
                kind: RopeKind::Sections([1, 1, 1])
            }
            .angles(&apart, 6),
            Angles::Table(_)
        ));
    }
}
