//! Scaled dot-product attention and its masks.

use mlx_rs::{
    Array,
    error::Result,
    fast::{ScaledDotProductAttentionMask, rope, scaled_dot_product_attention},
    ops::{arange, indexing::TryIndexOp},
};

use crate::device;

/// Which keys a query may see.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mask {
    /// All of them.
    None,
    /// Those up to its own position, the last query standing at the last key.
    Causal,
    /// Of those up to its own position the last ones, so many. At least 1.
    Window(usize),
}

/// Computes attention of `[batch, heads, queries, head width]` over `[batch, kv heads, keys, head width]`, scaled by the head width's inverse
/// square root; gives `[batch, queries, heads · head width]`.
pub fn attention(queries: &Array, keys: &Array, values: &Array, mask: Mask) -> Result<Array> {
    let (&[batch, heads, tokens, width], &[_, _, all, _]) = (queries.shape(), keys.shape()) else {
        let shapes = [queries.shape(), keys.shape()];
        return Err(format!("attention over queries and keys of shape {shapes:?}: four axes are needed").as_str().into());
    };
    let scale = (width as f32).sqrt().recip();
    if let Some(kernels) = device::kernels(queries) {
        let window = match mask {
            Mask::None => None,
            Mask::Causal => Some(usize::MAX),
            Mask::Window(window) => Some(window),
        };
        return kernels.attention([queries, keys, values], scale, window);
    }
    let attend = |keys: &Array, values: &Array, mask| scaled_dot_product_attention(queries, keys, values, scale, mask, None);
    let mixed = match mask {
        Mask::None => attend(keys, values, None)?,
        Mask::Causal => attend(keys, values, Some(ScaledDotProductAttentionMask::Causal))?,
        Mask::Window(window) => {
            // The last query sees the last keys, the first one as many before its own.
            let seen = all.min(tokens.saturating_sub(1).saturating_add(i32::try_from(window).unwrap_or(i32::MAX)));
            let [keys, values] = [keys, values].map(|array| array.try_index((.., .., all - seen.., ..)));
            let array = window_mask(tokens, seen, window)?;
            attend(&keys?, &values?, Some(ScaledDotProductAttentionMask::Array(&array)))?
        }
    };
    mixed.transpose_axes(&[0, 2, 1, 3])?.reshape(&[batch, tokens, heads * width])
}

/// Makes the mask of the last queries over the last keys, `[queries, keys]`, true where a query sees a key.
fn window_mask(queries: i32, keys: i32, window: usize) -> Result<Array> {
    let own = arange::<_, i32>(keys - queries, keys, None)?.reshape(&[queries, 1])?;
    let other = arange::<_, i32>(0, keys, None)?.reshape(&[1, keys])?;
    let near = other.gt(&own.subtract(Array::from_int(i32::try_from(window).unwrap_or(i32::MAX)))?)?;
    near.logical_and(other.le(&own)?)
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

/// Returns the mask of `tokens` queries that follow `offset` earlier positions, with a sliding window: position i sees j where
/// i - window < j <= i
/// (<https://github.com/huggingface/transformers/blob/v4.46.0/src/transformers/models/mistral/modeling_mistral.py>, `_update_causal_mask`).
pub fn causal_mask(tokens: usize, offset: usize, window: Option<usize>) -> Mask {
    match window {
        Some(window) if offset.saturating_add(tokens) > window => Mask::Window(window),
        _ if tokens == 1 => Mask::None,
        _ => Mask::Causal,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::{Backend, CpuKernels, Device};

    /// Queries of zeros give the mean of the values that they see, here the keys' positions. What is hidden counts for almost nothing.
    #[test]
    fn a_window_counts_the_query_itself() {
        for kernels in [CpuKernels::Own, CpuKernels::Mlx] {
            let device = Device::new(Backend::Cpu).unwrap().with_cpu_kernels(kernels);
            let means = |tokens: i32, offset: i32, mask: Mask| {
                device.run(|| {
                    let keys = tokens + offset;
                    let positions: Vec<f32> = (0..keys).flat_map(|i| [i as f32; 2]).collect();
                    let values = Array::from_slice(&positions, &[1, 1, keys, 2]);
                    let queries = Array::from_slice(&vec![0.0f32; 4 * tokens as usize], &[1, 2, tokens, 2]);
                    let mixed = attention(&queries, &values, &values, mask).unwrap().to_vec_cast::<f32>().unwrap();
                    mixed.chunks(4).map(|token| (token[3] * 16.0).round() / 16.0).collect::<Vec<_>>()
                })
            };
            assert_eq!(means(3, 2, Mask::Window(2)), [1.5, 2.5, 3.5], "{kernels:?}");
            assert_eq!(means(3, 0, Mask::Window(2)), [0.0, 0.5, 1.5], "{kernels:?}");
            assert_eq!(means(1, 6, Mask::Window(3)), [5.0], "{kernels:?}");
            assert_eq!(means(2, 1, Mask::Window(1)), [1.0, 2.0], "{kernels:?}");
            assert_eq!(means(2, 2, Mask::Window(usize::MAX)), means(2, 2, Mask::Causal), "{kernels:?}");
            assert_eq!(means(2, 2, Mask::None), [1.5, 1.5], "{kernels:?}");
        }
    }

    #[test]
    fn no_mask_where_none_is_needed() {
        assert_eq!(causal_mask(1, 7, Some(8)), Mask::None);
        assert_eq!(causal_mask(1, 7, None), Mask::None);
        assert_eq!(causal_mask(4, 4, Some(8)), Mask::Causal);
        assert_eq!(causal_mask(1, 8, Some(8)), Mask::Window(8));
    }
}
