//! Activation functions, from plain operations: mlx-rs's own are compiled, and on the CPU MLX compiles with a C++ compiler at run time.

use mlx_rs::{Array, error::Result, ops};

use crate::device;

/// The activation between the two layers of an MLP.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Activation {
    /// The exact GELU, through the error function.
    Gelu,
    /// The tanh approximation of GELU.
    GeluTanh,
    /// `x · sigmoid(1.702 x)`, as CLIP has it.
    QuickGelu,
}

impl Activation {
    /// The activation that timm or transformers call `name`.
    pub fn from_name(name: &str) -> Option<Activation> {
        match name {
            "gelu" | "gelu_erf" => Some(Activation::Gelu),
            "gelu_tanh" | "gelu_pytorch_tanh" => Some(Activation::GeluTanh),
            "quick_gelu" => Some(Activation::QuickGelu),
            _ => None,
        }
    }

    /// Applies it to every element; the shape stays.
    pub fn apply(self, x: &Array) -> Result<Array> {
        if let Some(kernels) = device::kernels(x) {
            return match self {
                Activation::Gelu => kernels.gelu(x),
                Activation::GeluTanh => kernels.gelu_tanh(x),
                Activation::QuickGelu => kernels.quick_gelu(x),
            };
        }
        match self {
            Activation::Gelu => {
                let gate = ops::erf(scaled(x, std::f32::consts::FRAC_1_SQRT_2)?)?;
                scaled(x, 0.5)?.multiply(gate.add(like(1.0, x)?)?)
            }
            Activation::GeluTanh => {
                let cubic = x.multiply(x)?.multiply(x)?.multiply(like(0.044715, x)?)?;
                let inner = scaled(&x.add(cubic)?, (2.0 / std::f32::consts::PI).sqrt())?;
                scaled(x, 0.5)?.multiply(ops::tanh(inner)?.add(like(1.0, x)?)?)
            }
            Activation::QuickGelu => x.multiply(ops::sigmoid(scaled(x, 1.702)?)?),
        }
    }
}

/// `x · sigmoid(x)`.
pub fn silu(x: &Array) -> Result<Array> {
    match device::kernels(x) {
        Some(kernels) => kernels.silu(x),
        None => x.multiply(ops::sigmoid(x)?),
    }
}

/// `silu(gate) · up`, the heart of SwiGLU (<https://arxiv.org/abs/2002.05202>).
pub fn silu_times(gate: &Array, up: &Array) -> Result<Array> {
    match device::kernels(gate) {
        Some(kernels) => kernels.silu_times(gate, up),
        None => silu(gate)?.multiply(up),
    }
}

fn scaled(x: &Array, factor: f32) -> Result<Array> {
    x.multiply(like(factor, x)?)
}

/// A scalar of x's dtype: a float32 one would promote everything after it.
fn like(value: f32, x: &Array) -> Result<Array> {
    Array::from_f32(value).as_dtype(x.dtype())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Values from torch.nn.functional.gelu (both forms), torch.nn.functional.silu and x * sigmoid(1.702 x), in float64.
    #[test]
    fn agree_with_pytorch() {
        let x = Array::from_slice(&[-3.0f32, -0.5, 0.0, 0.7, 2.0], &[5]);
        let check = |y: Array, expected: [f32; 5]| {
            for (y, e) in y.as_slice::<f32>().iter().zip(expected) {
                assert!((y - e).abs() < 1e-6, "{y} {e}");
            }
        };
        check(Activation::Gelu.apply(&x).unwrap(), [-0.004_049_7, -0.154_268_77, 0.0, 0.530_625_4, 1.954_499_7]);
        check(Activation::GeluTanh.apply(&x).unwrap(), [-0.003_637_392, -0.154_286, 0.0, 0.530_570_15, 1.954_597_7]);
        check(Activation::QuickGelu.apply(&x).unwrap(), [-0.018_071_31, -0.149_611_56, 0.0, 0.536_893_96, 1.935_658_6]);
        check(silu(&x).unwrap(), [-0.142_277_6, -0.188_770_33, 0.0, 0.467_731_48, 1.761_594_2]);
    }

    #[test]
    fn bfloat16_stays_bfloat16() {
        let x = Array::from_slice(&[0.5f32], &[1]).as_dtype(mlx_rs::Dtype::Bfloat16).unwrap();
        for activation in [Activation::Gelu, Activation::GeluTanh, Activation::QuickGelu] {
            assert_eq!(activation.apply(&x).unwrap().dtype(), mlx_rs::Dtype::Bfloat16);
        }
    }
}
