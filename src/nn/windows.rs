//! Attention within windows of a picture (Qwen2.5-VL, <https://arxiv.org/abs/2502.13923>, 2.1.1).

/// Which blocks of an encoder attend within windows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Windows {
    /// The edge of a window, in merged squares.
    pub edge: usize,
    /// The blocks that attend to the whole frame.
    pub full_blocks: Vec<usize>,
}

/// The merged squares of some grids, one window after the other.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct WindowOrder {
    /// The square at each place of the new order, counted in the order of the grids.
    pub squares: Vec<u32>,
    /// The number of squares in each window.
    pub sizes: Vec<usize>,
}

impl Windows {
    /// Orders the squares of grids, each frames by rows by columns of patches. Windows begin at the
    /// top left corner of each frame; those at the right and the bottom may be smaller.
    pub(super) fn order(&self, grids: &[[u32; 3]], merge: usize) -> WindowOrder {
        let (mut squares, mut sizes, mut first) = (Vec::new(), Vec::new(), 0);
        for [frames, rows, columns] in grids.iter().map(|grid| grid.map(|side| side as usize)) {
            let (rows, columns) = (rows / merge, columns / merge);
            for _ in 0..frames {
                for (top, left) in starts(rows, columns, self.edge) {
                    let before = squares.len();
                    for y in top..rows.min(top + self.edge) {
                        let row = first + y * columns;
                        let end = columns.min(left + self.edge);
                        squares.extend((row + left..row + end).map(|square| square as u32));
                    }
                    sizes.push(squares.len() - before);
                }
                first += rows * columns;
            }
        }
        WindowOrder { squares, sizes }
    }
}

/// Returns the top left corners of the windows, row by row.
fn starts(rows: usize, columns: usize, edge: usize) -> impl Iterator<Item = (usize, usize)> {
    let across = move |top| (0..columns).step_by(edge).map(move |left| (top, left));
    (0..rows).step_by(edge).flat_map(across)
}

impl WindowOrder {
    /// Returns the place of each square in the new order.
    pub fn places(&self) -> Vec<u32> {
        let mut places = vec![0; self.squares.len()];
        for (place, square) in self.squares.iter().enumerate() {
            places[*square as usize] = place as u32;
        }
        places
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn windows_are_cut_at_the_edges() {
        let windows = Windows {
            edge: 2,
            full_blocks: Vec::new(),
        };
        // Two frames of 3 by 3 squares, and one of 1 by 2.
        let order = windows.order(&[[2, 6, 6], [1, 2, 4]], 2);
        let frame = [0, 1, 3, 4, 2, 5, 6, 7, 8];
        let second = frame.map(|square| square + 9);
        assert_eq!(order.squares, [&frame[..], &second, &[18, 19]].concat());
        assert_eq!(order.sizes, [4, 2, 2, 1, 4, 2, 2, 1, 2]);
        assert_eq!(order.places()[..9], [0, 1, 4, 2, 3, 5, 6, 7, 8]);
    }
}
