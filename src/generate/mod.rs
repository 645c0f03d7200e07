//! From logits to text: choosing tokens and knowing when to stop.

pub mod sampler;
pub mod stop;
