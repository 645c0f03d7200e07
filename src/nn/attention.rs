//! Scaled dot-product attention and its masks.

use mlx_rs::{
    Array,
    error::Result,
    fast::{ScaledDotProductAttentionMask, rope, scaled_dot_product_attention},
};

use crate::device;

/// Which keys a query may see.
#[derive(Debug, Clone)]
pub enum Mask {
    /// All of them.
    None,
    /// Those up to its own position, the last query standing at the last key.
    Causal,
    /// `[queries, keys]`, true where the key is seen.
    Array(Array),
}

/// Attention of `[batch, heads, queries, head width]` over `[batch, kv heads, keys, head width]`, scaled by the head width's inverse square
/// root; gives `[batch, queries, heads · head width]`.
pub fn attention(queries: &Array, keys: &Array, values: &Array, mask: &Mask) -> Result<Array> {
    let &[batch, heads, tokens, width] = queries.shape() else {
        return Err(format!("attention over queries of shape {:?}: four axes are needed", queries.shape()).as_str().into());
    };
    let scale = (width as f32).sqrt().recip();
    if let Some(kernels) = device::kernels(queries) {
        let array = if let Mask::Array(mask) = mask { Some(mask) } else { None };
        return kernels.attention([queries, keys, values], scale, matches!(mask, Mask::Causal), array);
    }
    let mask = match mask {
        Mask::None => None,
        Mask::Causal => Some(ScaledDotProductAttentionMask::Causal),
        Mask::Array(mask) => Some(ScaledDotProductAttentionMask::Array(mask)),
    };
    let mixed = match mask {
        Some(mask) => scaled_dot_product_attention(queries, keys, values, scale, mask, None)?,
        None => scaled_dot_product_attention(queries, keys, values, scale, NO_MASK, None)?,
    };
    mixed.transpose_axes(&[0, 2, 1, 3])?.reshape(&[batch, tokens, heads * width])
}

/// `[batch, tokens, heads · width]` to `[batch, heads, tokens, width]`.
pub fn split_heads(x: &Array, width: i32) -> Result<Array> {
    x.reshape(&[x.dim(0), x.dim(1), -1, width])?.transpose_axes(&[0, 2, 1, 3])
}

/// [`split_heads`] and rotary positions (<https://arxiv.org/abs/2104.09864>), the two halves of a head rotated against each other (not
/// "traditional" pairs). The first token stands at `offset`.
pub fn rotate_heads(x: &Array, width: i32, theta: f32, offset: i32) -> Result<Array> {
    match device::kernels(x) {
        Some(kernels) => kernels.rope(x, width as usize, theta, offset as usize),
        None => rope(split_heads(x, width)?, width, false, theta, 1.0, offset, None),
    }
}

const NO_MASK: Option<ScaledDotProductAttentionMask<'static>> = None;

/// The mask of `tokens` queries that follow `offset` earlier positions, with a sliding window: position i sees j where i - window < j <= i
/// (<https://github.com/huggingface/transformers/blob/v4.46.0/src/transformers/models/mistral/modeling_mistral.py>, `_update_causal_mask`).
pub fn causal_mask(tokens: usize, offset: usize, window: Option<usize>) -> Mask {
    let total = offset + tokens;
    match window {
        Some(window) if total > window => {
            let sees = |i: usize, j: usize| j <= i && j + window > i;
            let rows = (offset..total).flat_map(|i| (0..total).map(move |j| sees(i, j)));
            let rows: Vec<bool> = rows.collect();
            Mask::Array(Array::from_slice(&rows, &[tokens as i32, total as i32]))
        }
        _ if tokens == 1 => Mask::None,
        _ => Mask::Causal,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_window_counts_the_query_itself() {
        let Mask::Array(mask) = causal_mask(3, 2, Some(2)) else { panic!("a mask array") };
        let rows: Vec<&[bool]> = mask.as_slice::<bool>().chunks(5).collect();
        assert_eq!(rows[0], [false, true, true, false, false]);
        assert_eq!(rows[1], [false, false, true, true, false]);
        assert_eq!(rows[2], [false, false, false, true, true]);
    }

    #[test]
    fn no_mask_where_none_is_needed() {
        assert!(matches!(causal_mask(1, 7, Some(8)), Mask::None));
        assert!(matches!(causal_mask(1, 7, None), Mask::None));
        assert!(matches!(causal_mask(4, 4, Some(8)), Mask::Causal));
        assert!(matches!(causal_mask(1, 8, Some(8)), Mask::Array(_)));
    }
}
