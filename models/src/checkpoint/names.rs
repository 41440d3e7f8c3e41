//! Tensor names: Hugging Face's, and GGUF's for the same tensors.

use crate::{Architecture, ModelConfig};

/// A Hugging Face tensor name, taken apart.
pub(super) enum TensorName<'a> {
    /// `model.embed_tokens.weight`
    Embedding,
    /// `model.norm.weight`
    FinalNorm,
    /// `lm_head.weight`
    Head,
    /// `model.layers.{layer}.{part}`
    Layer { layer: usize, part: &'a str },
}

impl<'a> TensorName<'a> {
    pub(super) fn parse(name: &'a str) -> Option<Self> {
        match name {
            "model.embed_tokens.weight" => Some(Self::Embedding),
            "model.norm.weight" => Some(Self::FinalNorm),
            "lm_head.weight" => Some(Self::Head),
            _ => {
                let (layer, part) = name.strip_prefix("model.layers.")?.split_once('.')?;
                let layer = layer.parse().ok()?;
                Some(Self::Layer { layer, part })
            }
        }
    }

    /// The name in a GGUF file; a name that no file has where there is none.
    pub(super) fn gguf(&self, architecture: Architecture) -> String {
        match self {
            Self::Embedding => "token_embd.weight".to_owned(),
            Self::FinalNorm => "output_norm.weight".to_owned(),
            Self::Head => "output.weight".to_owned(),
            Self::Layer { layer, part } => {
                let (module, kind) = part.rsplit_once('.').unwrap_or((part, ""));
                let module = gguf_module(module, architecture);
                format!("blk.{layer}.{module}.{kind}")
            }
        }
    }
}

/// Gemma has norms after attention and after the feed-forward network too; the one that
/// Llama calls post-attention norm is the one before the feed-forward network.
pub(crate) fn gguf_module(module: &str, architecture: Architecture) -> &str {
    match module {
        "input_layernorm" => "attn_norm",
        "self_attn.q_proj" => "attn_q",
        "self_attn.k_proj" => "attn_k",
        "self_attn.v_proj" => "attn_v",
        "self_attn.o_proj" => "attn_output",
        "self_attn.q_norm" => "attn_q_norm",
        "self_attn.k_norm" => "attn_k_norm",
        "post_attention_layernorm" if architecture.is_gemma() => "post_attention_norm",
        "post_attention_layernorm" | "pre_feedforward_layernorm" => "ffn_norm",
        "post_feedforward_layernorm" => "post_ffw_norm",
        "mlp.gate_proj" => "ffn_gate",
        "mlp.up_proj" => "ffn_up",
        "mlp.down_proj" => "ffn_down",
        other => other,
    }
}

/// Every tensor of the architecture with its rows and columns.
pub(super) fn expected(
    config: &ModelConfig,
) -> impl Iterator<Item = (String, (usize, usize))> + '_ {
    let table = (config.vocab, config.hidden);
    let whole = [
        ("model.embed_tokens.weight", table),
        ("model.norm.weight", (1, config.hidden)),
    ];
    let head = (!config.tied).then_some(("lm_head.weight", table));
    let whole = whole.into_iter().chain(head);
    let layer = layer_tensors(config);
    whole
        .map(|(name, shape)| (name.to_owned(), shape))
        .chain((0..config.layers).flat_map(move |index| {
            let named = |&(part, shape): &_| (format!("model.layers.{index}.{part}"), shape);
            layer.iter().map(named).collect::<Vec<_>>()
        }))
}

fn layer_tensors(config: &ModelConfig) -> Vec<(&'static str, (usize, usize))> {
    let (hidden, ffn) = (config.hidden, config.ffn);
    let (query, kv) = (config.query_dim(), config.kv_dim());
    let mut tensors = vec![
        ("input_layernorm.weight", (1, hidden)),
        ("self_attn.q_proj.weight", (query, hidden)),
        ("self_attn.k_proj.weight", (kv, hidden)),
        ("self_attn.v_proj.weight", (kv, hidden)),
        ("self_attn.o_proj.weight", (hidden, query)),
        ("post_attention_layernorm.weight", (1, hidden)),
        ("mlp.gate_proj.weight", (ffn, hidden)),
        ("mlp.up_proj.weight", (ffn, hidden)),
        ("mlp.down_proj.weight", (hidden, ffn)),
    ];
    if config.attention_bias {
        tensors.extend([
            ("self_attn.q_proj.bias", (1, query)),
            ("self_attn.k_proj.bias", (1, kv)),
            ("self_attn.v_proj.bias", (1, kv)),
        ]);
    }
    if config.qk_norm {
        tensors.extend([
            ("self_attn.q_norm.weight", (1, config.head_dim)),
            ("self_attn.k_norm.weight", (1, config.head_dim)),
        ]);
    }
    if config.post_norms {
        tensors.extend([
            ("pre_feedforward_layernorm.weight", (1, hidden)),
            ("post_feedforward_layernorm.weight", (1, hidden)),
        ]);
    }
    tensors
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_map_to_gguf() {
        let gguf = |name, architecture| {
            let name: Option<TensorName<'_>> = TensorName::parse(name);
            name.map(|name| name.gguf(architecture))
        };
        let llama = |name| gguf(name, Architecture::Llama).unwrap();
        let gemma = |name| gguf(name, Architecture::Gemma2).unwrap();
        assert_eq!(
            llama("model.layers.12.self_attn.o_proj.weight"),
            "blk.12.attn_output.weight"
        );
        assert_eq!(
            llama("model.layers.0.self_attn.q_proj.bias"),
            "blk.0.attn_q.bias"
        );
        let norm = "model.layers.3.post_attention_layernorm.weight";
        assert_eq!(llama(norm), "blk.3.ffn_norm.weight");
        assert_eq!(gemma(norm), "blk.3.post_attention_norm.weight");
        assert_eq!(
            gemma("model.layers.3.pre_feedforward_layernorm.weight"),
            "blk.3.ffn_norm.weight"
        );
        assert_eq!(
            gguf("model.layers.x.mlp.up_proj.weight", Architecture::Llama),
            None
        );
        assert_eq!(gguf("visual.patch", Architecture::Llama), None);
    }
}
