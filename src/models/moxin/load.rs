//! A Prismatic folder to a model.

use std::path::{Path, PathBuf};

use mlx_rs::Dtype;
use serde_json::Value;

use super::{FusedMLPProjector, MemoryNeeds, MistralDecoder, MoxinVLM, VLMConfig, load_projector};
use crate::{
    Error, Result,
    checkpoint::{Checkpoint, LoadContext, Plan, QuantizationConfig, Weights, open_folder, parse_file},
    device::{Arithmetic, Backend, Device, require},
    file::{self, Folder},
    nn::{Matrix, ViTConfig, ViTEncoder, load_vit_encoder},
};

/// Where the encoders' tensors stand, in the order in which their features are concatenated.
pub(super) const ENCODERS: [&str; 2] = ["vision_backbone.featurizer", "vision_backbone.fused_featurizer"];

/// Loads a model for the calling thread, on the best backend there is.
///
/// # Errors
/// Names the file and the field or tensor at fault; see [`Error`].
///
/// # Example
/// ```
/// # fn main() -> moxin_vlm::Result<()> {
/// let model = moxin_vlm::load_model("models/tiny")?;
/// assert_eq!(model.image_tokens(), 64);
/// # Ok(()) }
/// ```
pub fn load_model(folder: impl AsRef<Path>) -> Result<MoxinVLM> {
    let device = Device::new(Backend::Auto)?;
    device.run(|| load_model_on(folder.as_ref(), &device, None, &|_, _| Ok(())))
}

/// Loads a model for `device`. The progress callback is given the bytes loaded and their total; an error from it ends the loading.
///
/// Refuses a model that takes more than `memory_limit` bytes to load, or than are available.
pub fn load_model_on(
    folder: &Path,
    device: &Device,
    memory_limit: Option<u64>,
    progress: &dyn Fn(u64, u64) -> Result<()>,
) -> Result<MoxinVLM> {
    Ok(Source::open(folder)?.load(device, memory_limit, &|_, _| None, progress)?.0)
}

/// A folder whose configuration and headers were read: all that is known of a model before its weights are.
pub(crate) struct Source {
    pub folder: Folder,
    config_path: PathBuf,
    pub config: VLMConfig,
    /// config.json as it stands.
    pub config_json: Value,
    /// How the matrices are quantized that are.
    pub stored: QuantizationConfig,
    /// Under the names that the modules use, without what the forward pass never reads.
    pub checkpoint: Checkpoint,
    /// All of it, under its own names.
    pub stored_checkpoint: Checkpoint,
    /// Blocks of each encoder, the last one, which is not run, included.
    depths: [usize; 2],
    /// Numbers in all tensors of the folder, and their bytes.
    pub parameters: u64,
    pub bytes: u64,
}

impl Source {
    /// Reads and checks the configuration and the headers of the weights.
    pub fn open(folder: &Path) -> Result<Source> {
        let opened = open_folder(folder)?;
        let config_path = folder.join("config.json");
        let bytes = file::read_json(&config_path, "the model's configuration", file::MAX_JSON_BYTES)?;
        let config = VLMConfig::parse(&config_path, &bytes)?;
        let config_json = parse_file(&config_path, &bytes)?;
        let stored = QuantizationConfig::from_config(&config_path, &config_json)?;
        let checkpoint = Checkpoint::open(folder)?;
        let (parameters, bytes) = (parameters(&checkpoint, &stored), checkpoint.total_bytes());
        let stored_checkpoint = checkpoint.clone();
        let (checkpoint, depths) = name_canonically(checkpoint)?;
        check_layers(&checkpoint, config.text_config.num_hidden_layers).map_err(|what| Error::corrupt(&config_path, what))?;
        Ok(Source { folder: opened, config_path, config, config_json, stored, checkpoint, stored_checkpoint, depths, parameters, bytes })
    }

    /// What the model takes, computed so, and its matrices quantized as `plan` says.
    pub fn memory(&self, arithmetic: Arithmetic, plan: Plan) -> MemoryNeeds {
        MemoryNeeds::reckon(&self.checkpoint, &self.config, arithmetic, plan)
    }

    /// The matrix of a module as the folder has it.
    pub fn matrix(&self, path: &str, rows: usize, columns: usize, dtype: Dtype) -> Result<Matrix> {
        let context = LoadContext::new(&self.checkpoint, &|_, _| Ok(())).with_quantization(&self.stored, &|_, _| None);
        Matrix::load(&context.weights().at(path), rows, columns, dtype)
    }

    /// Tokens that a picture takes.
    pub fn image_tokens(&self) -> Result<usize> {
        let context = LoadContext::new(&self.checkpoint, &|_, _| Ok(()));
        let vit = ViTConfig { image_size: self.config.image_sizes[0], ..shapes_of(&context.weights().at(ENCODERS[0]))? };
        Ok(vit.num_patches())
    }

    /// Loads the model, and returns with it a hash of the weights that make the tokens of a
    /// picture, as they are stored.
    ///
    /// Fails with [`Error::CorruptModel`] where a file of weights changes meanwhile.
    pub fn load(
        &self,
        device: &Device,
        memory_limit: Option<u64>,
        plan: Plan,
        progress: &dyn Fn(u64, u64) -> Result<()>,
    ) -> Result<(MoxinVLM, blake3::Hash)> {
        let (config, path, dtype) = (&self.config, &self.config_path, device.dtype);
        let what = format!("loading the model in {}", path.parent().unwrap_or(path).display());
        require(&what, self.memory(device.arithmetic(), plan).load, memory_limit.unwrap_or(u64::MAX))?;
        let context = LoadContext::new(&self.checkpoint, progress).with_quantization(&self.stored, plan).with_hashing(&is_vision);
        let weights = context.weights();
        let encoders = (0..config.timm_model_ids.len())
            .map(|i| load_encoder(&weights, config, i, self.depths[i], path, dtype))
            .collect::<Result<Vec<_>>>()?;
        let projector = load_projector_for(&weights, &encoders, config, path, dtype)?;
        let decoder = MistralDecoder::load(&weights.at("language_model"), &config.text_config, dtype)?;
        let unused = context.unused();
        if !unused.is_empty() {
            log::warn!("{} tensors are not used, among them {}: does config.json describe these weights?", unused.len(), unused[0]);
        }
        if !self.checkpoint.is_unchanged() {
            return Err(Error::corrupt(self.checkpoint.path(), "the weights changed while they were loaded; load the model again"));
        }
        Ok((MoxinVLM { encoders, projector, decoder, dtype }, context.hash()))
    }
}

/// Whether a tensor or module has a part in what a picture's tokens are.
pub(crate) fn is_vision(name: &str) -> bool {
    !name.starts_with("language_model.")
}

/// The decoder's layers must be there before anything is done for each of them.
fn check_layers(checkpoint: &Checkpoint, expected: usize) -> Result<(), String> {
    const LAYERS: &str = "language_model.model.layers";
    let context = LoadContext::new(checkpoint, &|_, _| Ok(()));
    let found = context.weights().count(LAYERS);
    if found >= expected {
        return Ok(());
    }
    Err(format!(
        "text_config.num_hidden_layers is {expected} and the weights have {found} layers; tensors of `{LAYERS}.{found}.` are missing"
    ))
}

/// Numbers in all tensors, those of quantized matrices unpacked.
fn parameters(checkpoint: &Checkpoint, stored: &QuantizationConfig) -> u64 {
    let count = |name: &str| {
        let tensor = checkpoint.info(name)?;
        let module = name.strip_suffix(".scales").or_else(|| name.strip_suffix(".biases"));
        if module.is_some_and(|module| checkpoint.info(&format!("{module}.scales")).is_some()) {
            return None;
        }
        let elements = tensor.shape.iter().product::<usize>() as u64;
        let module = name.strip_suffix(".weight").filter(|_| tensor.dtype == safetensors::Dtype::U32);
        Some(match module.and_then(|module| stored.of(&[module])) {
            Some(quantization) => elements * 32 / quantization.bits as u64,
            None => elements,
        })
    };
    checkpoint.tensor_names().filter_map(count).sum()
}

/// Gives the weights the names that the modules use, without those that the forward pass never reads: progress and memory are
/// reckoned by what remains. Gives the encoders' depths too, which what remains does not tell.
fn name_canonically(checkpoint: Checkpoint) -> Result<(Checkpoint, [usize; 2])> {
    let checkpoint = checkpoint.rename(|name| Some(canonical_name(name)))?;
    let depths = ENCODERS.map(|encoder| depth(&checkpoint, encoder));
    let checkpoint = checkpoint.rename(|name| {
        let name = canonical_name(name);
        (!is_unused(&name, depths)).then_some(name)
    })?;
    Ok((checkpoint, depths))
}

/// Resolves the spellings of the format: timm's own (`gamma`), the native training checkpoints' (`dino_featurizer`, `projector.projector.0`,
/// `llm_backbone.llm`), and newer transformers' (`model.` in front).
pub(super) fn canonical_name(name: &str) -> String {
    let parts = ["vision_backbone.", "projector.", "language_model."];
    let name = name.strip_prefix("model.").filter(|rest| parts.iter().any(|part| rest.starts_with(part))).unwrap_or(name);
    let mut name = name
        .replace("vision_backbone.dino_featurizer.", "vision_backbone.featurizer.")
        .replace("vision_backbone.siglip_featurizer.", "vision_backbone.fused_featurizer.")
        .replace("llm_backbone.llm.", "language_model.")
        .replace("projector.projector.", "projector.");
    for (position, layer) in [("0", "fc1"), ("2", "fc2"), ("4", "fc3")] {
        name = name.replace(&format!("projector.{position}."), &format!("projector.{layer}."));
    }
    if name.starts_with("vision_backbone.")
        && let Some(stem) = name.strip_suffix(".gamma")
    {
        name = format!("{stem}.scale_factor");
    }
    match name.strip_prefix("language_model.") {
        Some(rest) if !rest.starts_with("model.") && !rest.starts_with("lm_head.") => format!("language_model.model.{rest}"),
        None if name.starts_with("lm_head.") => format!("language_model.{name}"),
        _ => name,
    }
}

/// Blocks of an encoder, the last one counted by its number: a gap before it is then a missing tensor, not a shallower model.
fn depth(checkpoint: &Checkpoint, encoder: &str) -> usize {
    let prefix = format!("{encoder}.blocks.");
    let blocks = checkpoint.tensor_names().filter_map(|name| name.strip_prefix(&prefix)?.split('.').next()?.parse::<usize>().ok());
    blocks.max().map_or(0, |last| last.saturating_add(1))
}

/// The last block of an encoder, its final norm and its pooling head are in the file but features are taken before them; rotary frequencies
/// are computed.
fn is_unused(name: &str, depths: [usize; 2]) -> bool {
    if name.ends_with("rotary_emb.inv_freq") {
        return true;
    }
    ENCODERS.iter().zip(depths).any(|(encoder, depth)| {
        let Some(rest) = name.strip_prefix(encoder).and_then(|rest| rest.strip_prefix('.')) else { return false };
        let last = format!("blocks.{}.", depth.saturating_sub(1));
        rest.starts_with("norm.") || rest.starts_with("attn_pool.") || rest.starts_with("head.") || rest.starts_with(&last)
    })
}

fn load_encoder(weights: &Weights, config: &VLMConfig, i: usize, depth: usize, config_path: &Path, dtype: Dtype) -> Result<ViTEncoder> {
    let weights = weights.at(ENCODERS[i]);
    let unsupported = |what: String| Error::unsupported(config_path, what);
    let vit = ViTConfig {
        num_heads: config.num_heads(i).map_err(unsupported)?,
        activation: config.activation(i).map_err(unsupported)?,
        image_size: config.image_sizes[i],
        depth,
        ..shapes_of(&weights)?
    };
    check_encoder(&vit, i).map_err(|what| Error::corrupt(config_path, what))?;
    load_vit_encoder(&weights, vit, dtype)
}

/// What the shapes of an encoder's tensors tell.
fn shapes_of(weights: &Weights) -> Result<ViTConfig> {
    let size = |name: &str, axis: usize| -> Result<usize> {
        // Where an axis is missing any size will do: loading compares whole shapes.
        Ok(weights.shape(name)?.get(axis).copied().unwrap_or(1))
    };
    Ok(ViTConfig {
        embed_dim: size("patch_embed.proj.weight", 0)?,
        patch_size: size("patch_embed.proj.weight", 3)?,
        num_positions: size("pos_embed", 1)?,
        intermediate_dim: size("blocks.0.mlp.fc1.weight", 0)?,
        has_cls_token: weights.has("cls_token"),
        num_registers: if weights.has("reg_token") { size("reg_token", 1)? } else { 0 },
        has_layer_scale: weights.has("blocks.0.ls1.scale_factor"),
        ..ViTConfig::dinov2_large()
    })
}

fn check_encoder(vit: &ViTConfig, i: usize) -> Result<(), String> {
    let encoder = ENCODERS[i];
    if vit.num_heads == 0 || !vit.embed_dim.is_multiple_of(vit.num_heads) {
        return Err(format!("{encoder} is {} wide, which {} attention heads do not divide", vit.embed_dim, vit.num_heads));
    }
    let patches = vit.num_patches();
    if patches == 0 {
        return Err(format!(
            "image_sizes[{i}] is {}, less than one patch of {} pixels: {encoder} would make nothing of a picture",
            vit.image_size, vit.patch_size
        ));
    }
    let with_class_token = vit.has_cls_token && vit.num_registers == 0 && vit.num_positions == patches + 1;
    if vit.num_positions != patches && !with_class_token {
        return Err(format!(
            "image_sizes[{i}] is {}, which makes {patches} patches of {} pixels; {encoder}.pos_embed has {} positions",
            vit.image_size, vit.patch_size, vit.num_positions
        ));
    }
    Ok(())
}

fn load_projector_for(
    weights: &Weights,
    encoders: &[ViTEncoder],
    config: &VLMConfig,
    config_path: &Path,
    dtype: Dtype,
) -> Result<FusedMLPProjector> {
    let patches: Vec<usize> = encoders.iter().map(|encoder| encoder.config.num_patches()).collect();
    if patches.windows(2).any(|pair| pair[0] != pair[1]) {
        return Err(Error::corrupt(
            config_path,
            format!("the encoders make {patches:?} patches of a picture; the same number is expected"),
        ));
    }
    let width = encoders.iter().map(|encoder| encoder.config.embed_dim).sum();
    load_projector(&weights.at("projector"), width, config.text_config.hidden_size, dtype)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_spelling_has_one_name() {
        for (stored, name) in [
            ("vision_backbone.featurizer.blocks.0.ls1.gamma", "vision_backbone.featurizer.blocks.0.ls1.scale_factor"),
            ("vision_backbone.dino_featurizer.cls_token", "vision_backbone.featurizer.cls_token"),
            ("vision_backbone.siglip_featurizer.norm.bias", "vision_backbone.fused_featurizer.norm.bias"),
            ("model.vision_backbone.fused_featurizer.pos_embed", "vision_backbone.fused_featurizer.pos_embed"),
            ("projector.0.weight", "projector.fc1.weight"),
            ("projector.projector.4.bias", "projector.fc3.bias"),
            ("model.projector.fc2.bias", "projector.fc2.bias"),
            ("language_model.model.layers.0.mlp.up_proj.weight", "language_model.model.layers.0.mlp.up_proj.weight"),
            ("llm_backbone.llm.model.layers.3.mlp.up_proj.weight", "language_model.model.layers.3.mlp.up_proj.weight"),
            ("llm_backbone.llm.lm_head.weight", "language_model.lm_head.weight"),
            ("model.language_model.layers.3.mlp.up_proj.weight", "language_model.model.layers.3.mlp.up_proj.weight"),
            ("model.language_model.embed_tokens.weight", "language_model.model.embed_tokens.weight"),
            ("lm_head.weight", "language_model.lm_head.weight"),
        ] {
            assert_eq!(canonical_name(stored), name);
        }
    }

    #[test]
    fn the_forward_pass_needs_no_last_block() {
        let depths = [24, 27];
        assert!(is_unused("vision_backbone.featurizer.blocks.23.mlp.fc1.bias", depths));
        assert!(!is_unused("vision_backbone.featurizer.blocks.22.mlp.fc1.bias", depths));
        assert!(!is_unused("vision_backbone.featurizer.blocks.2.norm1.bias", depths));
        assert!(is_unused("vision_backbone.fused_featurizer.blocks.26.norm1.bias", depths));
        assert!(is_unused("vision_backbone.fused_featurizer.attn_pool.latent", depths));
        assert!(is_unused("vision_backbone.featurizer.norm.bias", depths));
        assert!(!is_unused("language_model.model.norm.weight", depths));
    }
}
