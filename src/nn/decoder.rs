//! The decoder of the Llama family. Mistral, Llama, Qwen2, Gemma and others differ only in its
//! settings.

use std::ops::Range;

use super::{
    Activation, Embedding, GatedMlp, KVCache, KeyValueCache, Linear, Matrix, RmsNorm, Rope,
    rotary::Angles,
};
use crate::{
    Error, Result,
    checkpoint::Weights,
    device::{
        Dtype, Tensor, inject_into,
        ops::{self, Sees, cap_softly, concat, slice, split_heads},
    },
};

/// The number of rows in each MLP call, which limits the memory of a long pass.
pub(crate) const MLP_ROWS: usize = 1024;

/// The settings of a decoder.
#[derive(Debug, Clone, PartialEq)]
pub struct DecoderSettings {
    /// The number of rows in the embedding.
    pub vocab_size: usize,
    /// The number of values per token.
    pub hidden_size: usize,
    /// The number of values inside the MLP.
    pub intermediate_size: usize,
    /// The number of layers.
    pub layers: usize,
    /// The number of query heads.
    pub heads: usize,
    /// The number of key and value heads; divides the number of query heads.
    pub kv_heads: usize,
    /// The number of values per head; even.
    pub head_dim: usize,
    /// Whether the query, key and value projections have biases, as in Qwen2.
    pub qkv_bias: bool,
    /// Whether each head's queries and keys are normalized before they are rotated, as in Qwen3 and
    /// Gemma 3.
    pub qk_norm: bool,
    /// The epsilon of the norms.
    pub norm_eps: f32,
    /// Whether the norms multiply by `1 + weight`, as in Gemma.
    pub norm_adds_one: bool,
    /// Whether norms follow attention and MLP too, as in Gemma 2.
    pub post_norms: bool,
    /// The activation of the MLP's gate.
    pub gate: Activation,
    /// The factor of token embeddings; it does not apply to features of media.
    pub embedding_scale: Option<f32>,
    /// Whether the output head shares the embedding's weights.
    pub tied_head: bool,
    /// The factor of attention scores.
    pub attention_scale: f32,
    /// The soft cap of attention scores.
    pub attention_softcap: Option<f32>,
    /// The soft cap of logits.
    pub final_softcap: Option<f32>,
    /// How many positions a token attends to in each layer, including itself. If the list is
    /// shorter than the number of layers, it repeats.
    pub windows: Vec<Option<usize>>,
    /// The rotary positions of each layer; the list repeats in the same way.
    pub ropes: Vec<Rope>,
}

/// A position of a prompt.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Row {
    /// The token; a placeholder in rows of features.
    pub id: u32,
    /// The frame, row and column; all three are equal for text.
    pub position: [i32; 3],
    /// The first row that it attends to regardless of a window, counted from the start of the
    /// conversation: itself, or the start of its span if spans exceed windows.
    pub from: u32,
    /// The end of the rows that it may attend to: its own index plus one if attention is causal,
    /// the end of its span if that is bidirectional.
    pub reach: u32,
}

impl Row {
    /// The id of a row that has no token, not even a placeholder.
    pub const NO_ID: u32 = u32::MAX;

    /// Creates the `i`th row of a conversation, which attends to itself and earlier rows.
    pub fn causal(id: u32, position: [i32; 3], i: usize) -> Row {
        Row {
            id,
            position,
            from: i as u32,
            reach: i as u32 + 1,
        }
    }
}

/// The features of a medium, from vision encoder and projector.
#[derive(Debug, Clone)]
pub struct Features {
    /// `[features, hidden]`, evaluated.
    pub rows: Tensor,
}

impl Features {
    /// Evaluates the features of one picture, `[1, features, hidden]`.
    pub fn from_batch(batch: &Tensor) -> Result<Features> {
        let rows = batch.reshape(&[batch.dim(1), batch.dim(2)])?;
        rows.eval()?;
        Ok(Features { rows })
    }

    /// Returns the size in bytes.
    pub fn bytes(&self) -> u64 {
        self.rows.nbytes() as u64
    }
}

/// The work to be done for one conversation.
pub struct Segment<'a, C> {
    /// The source of the rows' embeddings.
    pub input: Input<'a>,
    /// The rows that follow those in the cache.
    pub rows: &'a [Row],
    /// Features in some of these rows: the rows, the features, and the index of the first feature.
    pub features: &'a [(Range<usize>, &'a Features, usize)],
    /// Keys and values, one cache per layer.
    pub cache: &'a mut [C],
    /// The rows whose logits are wanted.
    pub want: Want,
}

/// The source of embeddings.
#[derive(Debug, Clone, Copy)]
pub enum Input<'a> {
    /// The rows' ids.
    Ids,
    /// Given, `[batch, rows, hidden]`.
    Embeddings(&'a Tensor),
}

/// The rows whose logits are wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Want {
    /// None: the cache is filled.
    None,
    /// The last: all that generation needs of a prompt.
    Last,
    /// All rows.
    All,
}

/// A language model.
#[derive(Debug, Clone)]
pub struct Decoder {
    settings: DecoderSettings,
    embedding: Embedding,
    blocks: Vec<Block>,
    norm: RmsNorm,
    /// `None`: the embedding is used as the head.
    head: Option<Linear>,
    dtype: Dtype,
}

impl Decoder {
    /// Loads `model.*` and `lm_head`. `dtype` is that of the activations.
    ///
    /// # Errors
    /// [`Error::CorruptModel`] naming the tensor that is missing or has another shape.
    pub fn load(weights: &Weights, settings: DecoderSettings, dtype: Dtype) -> Result<Decoder> {
        let model = weights.at("model");
        let (vocabulary, hidden) = (settings.vocab_size, settings.hidden_size);
        let embedding = Embedding::load(&model.at("embed_tokens"), vocabulary, hidden, dtype)?;
        let head = match settings.tied_head {
            true => None,
            false => Some(Linear::load(
                &weights.at("lm_head"),
                vocabulary,
                hidden,
                dtype,
            )?),
        };
        let layers = model.at("layers");
        let blocks = (0..settings.layers)
            .map(|i| Block::load(&layers.at(i), &settings, dtype))
            .collect::<Result<_>>()?;
        let norm = load_norm(&model, "norm", hidden, &settings, dtype)?;
        Ok(Decoder {
            settings,
            embedding,
            blocks,
            norm,
            head,
            dtype,
        })
    }

    /// Returns the settings.
    pub fn settings(&self) -> &DecoderSettings {
        &self.settings
    }

    /// Returns an empty cache for one conversation, one entry per layer.
    pub fn new_cache(&self) -> Vec<KVCache> {
        vec![KVCache::new(); self.blocks.len()]
    }

    /// Adds the matrices, by the paths of their modules.
    pub(crate) fn matrices<'a>(&'a mut self, path: &str, all: &mut Vec<(String, &'a mut Matrix)>) {
        all.push((
            format!("{path}.model.embed_tokens"),
            &mut self.embedding.weight,
        ));
        for (i, block) in self.blocks.iter_mut().enumerate() {
            let path = format!("{path}.model.layers.{i}");
            let linears = [
                ("self_attn.q_proj", &mut block.attention.queries),
                ("self_attn.k_proj", &mut block.attention.keys),
                ("self_attn.v_proj", &mut block.attention.values),
                ("self_attn.o_proj", &mut block.attention.output),
                ("mlp.gate_proj", &mut block.mlp.gate),
                ("mlp.up_proj", &mut block.mlp.up),
                ("mlp.down_proj", &mut block.mlp.down),
            ];
            all.extend(
                linears.map(|(name, linear)| (format!("{path}.{name}"), &mut linear.weight)),
            );
        }
        all.extend(
            self.head
                .as_mut()
                .map(|head| (format!("{path}.lm_head"), &mut head.weight)),
        );
    }

    /// Returns the embeddings of token ids `[batch, tokens]`: `[batch, tokens, hidden]`. Ids must
    /// be below the vocabulary size: MLX does not check them.
    pub fn embed(&self, ids: &Tensor) -> Result<Tensor> {
        let embeddings = self.embedding.forward(ids)?;
        match self.settings.embedding_scale {
            Some(factor) => ops::scale(&embeddings, factor),
            None => Ok(embeddings),
        }
    }

    /// Computes segments, each with a cache of its own. Returns the wanted logits of each,
    /// `[batch, rows, vocabulary]`.
    ///
    /// Calls `poll(i)` for the `i`th segment before every layer and before the head. If it or
    /// anything else fails, only that segment ends with the error, and its cache is unchanged.
    /// After [`Error::Backend`] a cache cannot be used: after a failure, MLX treats everything
    /// evaluated with it as computed.
    pub fn forward<C: KeyValueCache>(
        &self,
        batch: &mut [Segment<C>],
        poll: &dyn Fn(usize) -> Result<()>,
    ) -> Vec<Result<Option<Tensor>>> {
        let starts: Vec<i32> = batch
            .iter()
            .map(|segment| segment.cache.first().map_or(0, |cache| cache.offset()))
            .collect();
        let mut states: Vec<Result<State>> =
            batch.iter().map(|segment| self.begin(segment)).collect();
        for (layer, block) in self.blocks.iter().enumerate() {
            for (i, (state, segment)) in states.iter_mut().zip(batch.iter_mut()).enumerate() {
                if let Ok(work) = state
                    && let Err(error) = poll(i).and_then(|()| {
                        work.pass(block, layer, &self.settings, &mut segment.cache[layer])
                    })
                {
                    *state = Err(error);
                }
            }
        }
        let ends = states.into_iter().zip(batch.iter()).enumerate();
        let results: Vec<_> = ends
            .map(|(i, (state, segment))| {
                state.and_then(|work| self.end(work, segment.want, || poll(i)))
            })
            .collect();
        for ((result, segment), start) in results.iter().zip(batch).zip(starts) {
            if result.is_err() {
                // The first error is returned.
                segment
                    .cache
                    .iter_mut()
                    .for_each(|cache| drop(cache.truncate(start)));
            }
        }
        results
    }

    /// Checks a segment, and prepares its embeddings and what all layers need of its rows.
    fn begin<C: KeyValueCache>(&self, segment: &Segment<C>) -> Result<State> {
        if segment.cache.len() != self.blocks.len() {
            let what = format!(
                "the cache has {} layers; the decoder has {}",
                segment.cache.len(),
                self.blocks.len()
            );
            return Err(Error::InvalidArgument(what));
        }
        let start = segment.cache.first().map_or(0, |cache| cache.offset()) as usize;
        let rows = segment.rows;
        let x = match segment.input {
            Input::Ids => self.embed_rows(rows, segment.features)?,
            Input::Embeddings(embeddings) => embeddings.clone(),
        };
        let end = start + rows.len();
        if rows.is_empty()
            || x.dim(1) as usize != rows.len()
            || rows
                .iter()
                .enumerate()
                .any(|(i, row)| !sees_itself(row, start + i, end))
        {
            return Err(Error::InvalidArgument(format!(
                "{} rows after {start} that do not attend to themselves, or attend beyond the end",
                rows.len()
            )));
        }
        let is_causal = rows
            .iter()
            .enumerate()
            .all(|(i, row)| row.from as usize == start + i && row.reach as usize == start + i + 1);
        // Otherwise a GPU's operations would be queued for all layers, and `poll` could not stop
        // them. A single token takes no longer than one layer of a long prompt.
        let by_layers = self.dtype == Dtype::Float32 || rows.len() > 1;
        let mut angles: Vec<(Rope, Angles)> = Vec::new();
        for rope in &self.settings.ropes {
            if angles.iter().all(|(known, _)| known != rope) {
                angles.push((*rope, rope.angles(rows, self.settings.head_dim)));
            }
        }
        let spans = if is_causal {
            Vec::new()
        } else {
            rows.iter()
                .map(|row| row.from as usize..row.reach as usize)
                .collect()
        };
        Ok(State {
            x,
            start,
            rows: rows.len(),
            spans,
            angles,
            by_layers,
        })
    }

    /// Returns the embeddings of rows, `[1, rows, hidden]`: those of tokens, and features in their
    /// rows.
    fn embed_rows(
        &self,
        rows: &[Row],
        features: &[(Range<usize>, &Features, usize)],
    ) -> Result<Tensor> {
        let mut parts = Vec::new();
        let mut done = 0;
        for (range, features, first) in features {
            parts.extend(self.embed_tokens(&rows[done..range.start])?);
            let (first, count) = (*first as i32, range.len() as i32);
            let taken = slice(&features.rows, 0, first..first + count)?;
            parts.push(taken.as_dtype(self.dtype)?.reshape(&[1, count, -1])?);
            done = range.end;
        }
        parts.extend(self.embed_tokens(&rows[done..])?);
        match parts.len() {
            1 => Ok(parts.remove(0)),
            _ => concat(&parts.iter().collect::<Vec<_>>(), 1),
        }
    }

    /// Ids outside of the vocabulary are refused: MLX would read past the table.
    fn embed_tokens(&self, rows: &[Row]) -> Result<Option<Tensor>> {
        let vocabulary = self.settings.vocab_size;
        if let Some(Row { id, .. }) = rows.iter().find(|row| row.id as usize >= vocabulary) {
            return Err(Error::InvalidArgument(format!(
                "token id {id} is outside the model's vocabulary of {vocabulary}"
            )));
        }
        let ids: Vec<u32> = rows.iter().map(|row| row.id).collect();
        (!ids.is_empty())
            .then(|| self.embed(&ops::ids(&ids)))
            .transpose()
    }

    fn end(
        &self,
        state: State,
        want: Want,
        poll: impl Fn() -> Result<()>,
    ) -> Result<Option<Tensor>> {
        let State { x, rows, .. } = state;
        let x = match want {
            Want::None => {
                x.eval()?;
                return Ok(None);
            }
            Want::Last => slice(&x, 1, rows as i32 - 1..rows as i32)?,
            Want::All => x,
        };
        poll()?;
        let x = self.norm.forward(&x)?;
        let logits = match &self.head {
            Some(head) => head.forward(&x)?,
            None => self.embedding.as_head(&x)?,
        };
        let logits = match self.settings.final_softcap {
            Some(cap) => cap_softly(&logits, cap)?,
            None => logits,
        };
        inject_into("head", logits).map(Some)
    }
}

fn sees_itself(row: &Row, i: usize, end: usize) -> bool {
    row.from as usize <= i && (i + 1..=end).contains(&(row.reach as usize))
}

/// A segment between two layers.
struct State {
    /// `[batch, rows, hidden]`
    x: Tensor,
    /// The number of rows in the cache before.
    start: usize,
    rows: usize,
    /// For each row, if any row is in a span.
    spans: Vec<Range<usize>>,
    /// One entry per kind of rotary position.
    angles: Vec<(Rope, Angles)>,
    /// Whether each layer is evaluated before the next starts.
    by_layers: bool,
}

impl State {
    fn pass<C: KeyValueCache>(
        &mut self,
        block: &Block,
        layer: usize,
        settings: &DecoderSettings,
        cache: &mut C,
    ) -> Result<()> {
        let window = settings.windows[layer % settings.windows.len()];
        let rope = settings.ropes[layer % settings.ropes.len()];
        let ranges = self.ranges(window);
        let sees = match (&ranges, window) {
            (Some(ranges), _) => Sees::Ranges(ranges),
            (None, Some(window)) if self.start + self.rows > window => Sees::Window(window),
            _ if self.rows == 1 => Sees::All,
            _ => Sees::Past,
        };
        let none = Angles::From(self.start, 1.0);
        let angles = self
            .angles
            .iter()
            .find(|(known, _)| *known == rope)
            .map_or(&none, |(_, angles)| angles);
        let x = block.forward(&self.x, &rope, angles, sees, cache)?;
        self.x = inject_into("decoder", x)?;
        if self.by_layers {
            self.x.eval()?; // on the CPU too: frees the weights widened for this layer before the next one
        }
        Ok(())
    }

    /// Returns the keys that each row attends to, if attention is not causal.
    fn ranges(&self, window: Option<usize>) -> Option<Vec<Range<usize>>> {
        let near = |i: usize| (self.start + i + 1).saturating_sub(window.unwrap_or(usize::MAX));
        let range = |(i, span): (usize, &Range<usize>)| span.start.min(near(i))..span.end;
        (!self.spans.is_empty()).then(|| self.spans.iter().enumerate().map(range).collect())
    }
}

fn load_norm(
    weights: &Weights,
    name: &str,
    width: usize,
    settings: &DecoderSettings,
    dtype: Dtype,
) -> Result<RmsNorm> {
    let (weights, eps) = (weights.at(name), settings.norm_eps);
    match settings.norm_adds_one {
        true => RmsNorm::load_plus_one(&weights, width, eps, dtype),
        false => RmsNorm::load(&weights, width, eps, dtype),
    }
}

#[derive(Debug, Clone)]
struct Block {
    before_attention: RmsNorm,
    attention: Attention,
    after_attention: Option<RmsNorm>,
    before_mlp: RmsNorm,
    mlp: GatedMlp,
    after_mlp: Option<RmsNorm>,
}

impl Block {
    /// With norms after each block, `post_attention_layernorm` is the one after attention, as in
    /// Gemma 2; otherwise it is the one before the MLP.
    fn load(weights: &Weights, settings: &DecoderSettings, dtype: Dtype) -> Result<Block> {
        let (hidden, inner) = (settings.hidden_size, settings.intermediate_size);
        let norm = |name: &str| load_norm(weights, name, hidden, settings, dtype);
        let post_norm = |name: &str| settings.post_norms.then(|| norm(name)).transpose();
        Ok(Block {
            before_attention: norm("input_layernorm")?,
            attention: Attention::load(&weights.at("self_attn"), settings, dtype)?,
            after_attention: post_norm("post_attention_layernorm")?,
            before_mlp: norm(if settings.post_norms {
                "pre_feedforward_layernorm"
            } else {
                "post_attention_layernorm"
            })?,
            mlp: GatedMlp::load(&weights.at("mlp"), hidden, inner, settings.gate, dtype)?,
            after_mlp: post_norm("post_feedforward_layernorm")?,
        })
    }

    /// Maps `[batch, rows, hidden]` to the same shape.
    fn forward<C: KeyValueCache>(
        &self,
        x: &Tensor,
        rope: &Rope,
        angles: &Angles,
        sees: Sees,
        cache: &mut C,
    ) -> Result<Tensor> {
        let normalized = |norm: &Option<RmsNorm>, x: Tensor| {
            norm.as_ref().map_or(Ok(x.clone()), |norm| norm.forward(&x))
        };
        let attended = self.attention.forward(
            &self.before_attention.forward(x)?,
            rope,
            angles,
            sees,
            cache,
        )?;
        let x = x.add(normalized(&self.after_attention, attended)?)?;
        let fed = self.feed_forward(&self.before_mlp.forward(&x)?)?;
        Ok(x.add(normalized(&self.after_mlp, fed)?)?)
    }

    /// Runs the MLP, in parts if there are many rows.
    fn feed_forward(&self, x: &Tensor) -> Result<Tensor> {
        let rows = x.dim(1);
        if rows as usize <= MLP_ROWS {
            return self.mlp.forward(x);
        }
        let mut parts = Vec::new();
        for from in (0..rows).step_by(MLP_ROWS) {
            let part = self
                .mlp
                .forward(&slice(x, 1, from..rows.min(from + MLP_ROWS as i32))?)?;
            part.eval()?;
            parts.push(part);
        }
        concat(&parts.iter().collect::<Vec<_>>(), 1)
    }
}

#[derive(Debug, Clone)]
struct Attention {
    queries: Linear,
    keys: Linear,
    values: Linear,
    output: Linear,
    query_norm: Option<RmsNorm>,
    key_norm: Option<RmsNorm>,
    width: usize,
    factor: f32,
    softcap: Option<f32>,
}

impl Attention {
    fn load(weights: &Weights, settings: &DecoderSettings, dtype: Dtype) -> Result<Attention> {
        let (hidden, width) = (settings.hidden_size, settings.head_dim);
        let (queries, keys) = (settings.heads * width, settings.kv_heads * width);
        let projection = |name: &str, rows: usize| {
            let linear = Linear::load(&weights.at(name), rows, hidden, dtype)?;
            // Loaded for its error, which says what is missing and what exists.
            if settings.qkv_bias && !linear.has_bias() {
                weights.at(name).shape("bias")?;
            }
            Ok::<_, Error>(linear)
        };
        let norm = |name: &str| {
            let norm = || load_norm(weights, name, width, settings, dtype);
            settings.qk_norm.then(norm).transpose()
        };
        Ok(Attention {
            queries: projection("q_proj", queries)?,
            keys: projection("k_proj", keys)?,
            values: projection("v_proj", keys)?,
            output: Linear::load(&weights.at("o_proj"), hidden, queries, dtype)?,
            query_norm: norm("q_norm")?,
            key_norm: norm("k_norm")?,
            width,
            factor: settings.attention_scale,
            softcap: settings.attention_softcap,
        })
    }

    /// Maps `[batch, rows, hidden]` to the same shape.
    fn forward<C: KeyValueCache>(
        &self,
        x: &Tensor,
        rope: &Rope,
        angles: &Angles,
        sees: Sees,
        cache: &mut C,
    ) -> Result<Tensor> {
        let rotate = |x: Tensor, norm: &Option<RmsNorm>| {
            rope.rotate(&self.normalized(x, norm)?, self.width, angles)
        };
        let (queries, keys) = (
            rotate(self.queries.forward(x)?, &self.query_norm)?,
            rotate(self.keys.forward(x)?, &self.key_norm)?,
        );
        let values = split_heads(&self.values.forward(x)?, self.width as i32)?;
        let (keys, values) = cache.update_and_fetch(keys, values)?;
        self.output.forward(&ops::attention(
            [&queries, &keys, &values],
            self.factor,
            self.softcap,
            sees,
        )?)
    }

    /// Normalizes every head of `[batch, rows, heads · width]`, if there is a norm.
    fn normalized(&self, x: Tensor, norm: &Option<RmsNorm>) -> Result<Tensor> {
        let Some(norm) = norm else {
            return Ok(x);
        };
        let heads = x.reshape(&[x.dim(0), x.dim(1), -1, self.width as i32])?;
        Ok(norm.forward(&heads)?.reshape(x.shape())?)
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use safetensors::tensor::{Dtype as StoredDtype, TensorView};
    use tempfile::TempDir;

    use super::*;
    use crate::{
        checkpoint::{Checkpoint, LoadContext},
        device::{Backend, CpuKernels, Device},
        nn::{RopeKind, RopeScaling},
    };

    fn settings(qk_norm: bool) -> DecoderSettings {
        DecoderSettings {
            vocab_size: 5,
            hidden_size: 8,
            intermediate_size: 12,
            layers: 1,
            heads: 2,
            kv_heads: 1,
            head_dim: 6,
            qkv_bias: false,
            qk_norm,
            norm_eps: 1e-6,
            norm_adds_one: false,
            post_norms: false,
            gate: Activation::Silu,
            embedding_scale: None,
            tied_head: true,
            attention_scale: 1.0,
            attention_softcap: None,
            final_softcap: None,
            windows: vec![None],
            ropes: vec![Rope {
                theta: 100.0,
                scaling: RopeScaling::Linear(1.0),
                kind: RopeKind::Sequential,
            }],
        }
    }

    /// Writes one layer whose query and key projections are multiplied by `factor`.
    fn checkpoint(factor: f32) -> (TempDir, Checkpoint) {
        let sizes: [(&str, &[usize]); 13] = [
            ("embed_tokens", &[5, 8]),
            ("norm", &[8]),
            ("layers.0.input_layernorm", &[8]),
            ("layers.0.post_attention_layernorm", &[8]),
            ("layers.0.self_attn.q_proj", &[12, 8]),
            ("layers.0.self_attn.k_proj", &[6, 8]),
            ("layers.0.self_attn.v_proj", &[6, 8]),
            ("layers.0.self_attn.o_proj", &[8, 12]),
            ("layers.0.self_attn.q_norm", &[6]),
            ("layers.0.self_attn.k_norm", &[6]),
            ("layers.0.mlp.gate_proj", &[12, 8]),
            ("layers.0.mlp.up_proj", &[12, 8]),
            ("layers.0.mlp.down_proj", &[8, 12]),
        ];
        let tensor = |(name, shape): (&str, &[usize])| {
            let scaled = name.ends_with("q_proj") || name.ends_with("k_proj");
            let number = |i: usize| (i as f32 * 0.37 + name.len() as f32).sin();
            let bytes: Vec<u8> = (0..shape.iter().product())
                .map(|i| number(i) * if scaled { factor } else { 1.0 })
                .flat_map(f32::to_le_bytes)
                .collect();
            (format!("model.{name}.weight"), shape.to_vec(), bytes)
        };
        let tensors: Vec<_> = sizes.into_iter().map(tensor).collect();
        let views = tensors.iter().map(|(name, shape, bytes)| {
            let view = TensorView::new(StoredDtype::F32, shape.clone(), bytes).unwrap();
            (name, view)
        });
        let folder = TempDir::new().unwrap();
        let bytes = safetensors::serialize(views, None).unwrap();
        fs::write(folder.path().join("model.safetensors"), bytes).unwrap();
        let checkpoint = Checkpoint::open(folder.path()).unwrap();
        (folder, checkpoint)
    }

    /// Returns the logits of four tokens, read in chunks of this size.
    fn logits(settings: DecoderSettings, factor: f32, chunk: usize) -> Vec<f32> {
        let (_folder, checkpoint) = checkpoint(factor);
        let progress = |_, _| Ok(());
        let context = LoadContext::new(&checkpoint, &progress);
        let decoder = Decoder::load(&context.weights(), settings, Dtype::Float32).unwrap();
        let rows: Vec<Row> = (0..4)
            .map(|i| Row::causal(i as u32, [i; 3], i as usize))
            .collect();
        let mut cache = decoder.new_cache();
        let mut all = Vec::new();
        for rows in rows.chunks(chunk) {
            let segment = Segment {
                input: Input::Ids,
                rows,
                features: &[],
                cache: &mut cache[..],
                want: Want::All,
            };
            let logits = decoder.forward(&mut [segment], &|_| Ok(())).remove(0);
            all.extend(logits.unwrap().unwrap().to_vec_cast::<f32>().unwrap());
        }
        all
    }

    /// With norms of queries and keys, the scale of their projections does not matter.
    #[test]
    fn norms_of_queries_and_keys_take_their_scale() {
        let difference = |a: &[f32], b: &[f32]| {
            let pairs = a.iter().zip(b);
            pairs.map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
        };
        for kernels in [CpuKernels::Own, CpuKernels::Mlx] {
            let device = Device::new(Backend::Cpu).unwrap().with_cpu_kernels(kernels);
            device.run(|| {
                for (qk_norm, least, most) in [(true, 0.0, 1e-4), (false, 0.05, 100.0)] {
                    let [small, large] = [1.0, 3.0].map(|x| logits(settings(qk_norm), x, 4));
                    let moved = difference(&small, &large);
                    assert!((least..most).contains(&moved), "{kernels:?}: {moved}");
                    let single = logits(settings(qk_norm), 1.0, 1);
                    assert!(difference(&small, &single) < 1e-4, "{kernels:?}");
                }
            });
        }
    }
}
