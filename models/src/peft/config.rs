//! `adapter_config.json`.

use std::path::Path;

use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::{PeftError, Projection};

/// The settings of a LoRA adapter that we read and write.
#[derive(Clone, Debug, PartialEq)]
pub struct PeftConfig {
    /// What the adapter was trained on, for people and for PEFT's automatic loading.
    pub base_model: Option<String>,
    /// The rank, `r`.
    pub rank: usize,
    /// The numerator of the scale.
    pub alpha: f32,
    /// Dropout on the input of A while training.
    pub dropout: f32,
    /// Whether the scale is `alpha / sqrt(rank)` instead of `alpha / rank`.
    pub rslora: bool,
    /// The adapted projections, in the order of a block.
    pub targets: Vec<Projection>,
}

impl Default for PeftConfig {
    /// PEFT's own defaults: rank 8, alpha 8, on queries and values.
    fn default() -> Self {
        Self {
            base_model: None,
            rank: 8,
            alpha: 8.0,
            dropout: 0.0,
            rslora: false,
            targets: vec![Projection::Query, Projection::Value],
        }
    }
}

/// The fields that change what an adapter computes.
#[derive(Deserialize)]
struct Raw {
    peft_type: String,
    base_model_name_or_path: Option<String>,
    #[serde(default = "default_rank")]
    r: usize,
    #[serde(default = "default_alpha")]
    lora_alpha: f64,
    #[serde(default)]
    lora_dropout: f32,
    #[serde(default)]
    use_rslora: bool,
    target_modules: Option<Value>,
}

fn default_rank() -> usize {
    8
}

fn default_alpha() -> f64 {
    8.0
}

/// Which modules a configuration names.
pub(super) enum Targets {
    /// These, by the end of their names.
    Named(Vec<String>),
    /// `all-linear`, or a regular expression: whatever the tensors are for.
    ByPattern,
}

/// Settings that must be off, and what the message says of them.
const MUST_BE_OFF: [(&str, &str); 15] = [
    ("use_dora", "plain LoRA is"),
    ("use_qalora", "plain LoRA is"),
    ("use_bdlora", "plain LoRA is"),
    ("lora_bias", "adapters without a bias are"),
    ("fan_in_fan_out", "linear layers are"),
    (
        "modules_to_save",
        "adapters that replace no whole module are",
    ),
    ("layers_to_transform", "adapters on every layer are"),
    ("layer_replication", "models with their own layers are"),
    ("rank_pattern", "one rank for all projections is"),
    ("alpha_pattern", "one alpha for all projections is"),
    ("exclude_modules", "adapters on every layer are"),
    ("target_parameters", "adapters on modules are"),
    (
        "trainable_token_indices",
        "adapters that train no tokens are",
    ),
    ("alora_invocation_tokens", "adapters that are always on are"),
    ("arrow_config", "single adapters are"),
];

impl PeftConfig {
    /// What the product of the factors is multiplied by.
    pub fn scale(&self) -> f32 {
        let rank = self.rank as f32;
        self.alpha / if self.rslora { rank.sqrt() } else { rank }
    }

    /// Reads the text of `adapter_config.json`; `path` is for messages.
    pub(super) fn parse(text: &str, path: &Path) -> Result<(Self, Targets), PeftError> {
        let wrong = |reason: String| PeftError::Config {
            path: path.to_owned(),
            reason,
        };
        let json: Map<String, Value> =
            serde_json::from_str(text).map_err(|e| wrong(e.to_string()))?;
        let raw =
            Raw::deserialize(Value::Object(json.clone())).map_err(|e| wrong(e.to_string()))?;
        refuse_what_we_lack(&raw, &json, path)?;
        if raw.r == 0 || raw.r > 65_536 {
            return Err(wrong(format!("rank {} is not from 1 to 65536", raw.r)));
        }
        let alpha = raw.lora_alpha as f32;
        if !alpha.is_finite() || !(0.0..1.0).contains(&raw.lora_dropout) {
            return Err(wrong(format!(
                "alpha {alpha} or dropout {} makes no sense",
                raw.lora_dropout
            )));
        }
        let config = Self {
            base_model: raw.base_model_name_or_path,
            rank: raw.r,
            alpha,
            dropout: raw.lora_dropout,
            rslora: raw.use_rslora,
            targets: Vec::new(),
        };
        let targets = match raw.target_modules {
            Some(Value::String(_)) => Targets::ByPattern,
            Some(Value::Array(names)) => Targets::Named(
                names
                    .iter()
                    .map(|name| name.as_str().map(str::to_owned))
                    .collect::<Option<_>>()
                    .ok_or_else(|| wrong("target_modules is no list of names".to_owned()))?,
            ),
            _ => return Err(wrong("it has no target_modules".to_owned())),
        };
        Ok((config, targets))
    }

    /// The text of `adapter_config.json`, with every field that PEFT 0.21 writes.
    pub(super) fn to_json(&self) -> String {
        // PEFT annotates alpha as a whole number and writes it so where it is one.
        let alpha = match self.alpha {
            alpha if alpha.fract() == 0.0 && alpha.abs() < 1e9 => json!(alpha as i64),
            alpha => decimal(alpha),
        };
        let targets: Vec<&str> = self.targets.iter().map(|t| t.target()).collect();
        let fields = json!({
            "alora_invocation_tokens": null,
            "alpha_pattern": {},
            "arrow_config": null,
            "auto_mapping": null,
            "base_model_name_or_path": self.base_model,
            "bias": "none",
            "corda_config": null,
            "ensure_weight_tying": false,
            "eva_config": null,
            "exclude_modules": null,
            "fan_in_fan_out": false,
            "inference_mode": true,
            "init_lora_weights": true,
            "layer_replication": null,
            "layers_pattern": null,
            "layers_to_transform": null,
            "loftq_config": {},
            "lora_alpha": alpha,
            "lora_bias": false,
            "lora_dropout": decimal(self.dropout),
            "megatron_config": null,
            "megatron_core": "megatron.core",
            "modules_to_save": null,
            "peft_type": "LORA",
            "peft_version": "0.21.2",
            "qalora_group_size": 16,
            "r": self.rank,
            "rank_pattern": {},
            "revision": null,
            "target_modules": targets,
            "target_parameters": null,
            "task_type": "CAUSAL_LM",
            "trainable_token_indices": null,
            "use_dora": false,
            "use_qalora": false,
            "use_rslora": self.rslora,
        });
        format!("{fields:#}\n")
    }
}

/// The shortest decimal that reads back as `value`: `0.1`, not `0.10000000149011612`.
fn decimal(value: f32) -> Value {
    value
        .to_string()
        .parse::<f64>()
        .map_or(Value::Null, Value::from)
}

fn refuse_what_we_lack(raw: &Raw, json: &Map<String, Value>, path: &Path) -> Result<(), PeftError> {
    let unsupported = |setting, got: String, supported| PeftError::Unsupported {
        path: path.to_owned(),
        setting,
        got,
        supported,
    };
    if raw.peft_type != "LORA" {
        let got = raw.peft_type.clone();
        return Err(unsupported("peft_type", got, "LORA is"));
    }
    for (setting, supported) in MUST_BE_OFF {
        if let Some(value) = json.get(setting).filter(|value| is_on(value)) {
            return Err(unsupported(setting, value.to_string(), supported));
        }
    }
    let bias = json.get("bias").and_then(Value::as_str).unwrap_or("none");
    if bias != "none" {
        return Err(unsupported("bias", bias.to_owned(), "none is"));
    }
    // The others change the base model's weights, or store something else than A and B.
    match json.get("init_lora_weights") {
        None | Some(Value::Bool(_) | Value::Null) => Ok(()),
        Some(Value::String(how)) if matches!(how.as_str(), "gaussian" | "eva" | "orthogonal") => {
            Ok(())
        }
        Some(other) => Err(unsupported(
            "init_lora_weights",
            other.to_string(),
            "true, gaussian, eva and orthogonal are, or save it converted to plain LoRA",
        )),
    }
}

fn is_on(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(false) => false,
        Value::Array(items) => !items.is_empty(),
        Value::Object(fields) => !fields.is_empty(),
        _ => true,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<(PeftConfig, Targets), PeftError> {
        PeftConfig::parse(text, Path::new("adapter_config.json"))
    }

    fn refusal(more: &str) -> String {
        let text = format!(r#"{{"peft_type":"LORA","target_modules":["q_proj"]{more}}}"#);
        parse(&text)
            .err()
            .map(|e| e.to_string())
            .unwrap_or_default()
    }

    #[test]
    fn what_is_written_is_read() {
        let config = PeftConfig {
            base_model: Some("org/base".to_owned()),
            rank: 6,
            alpha: 12.5,
            dropout: 0.1,
            rslora: true,
            targets: vec![Projection::Query],
        };
        let json = config.to_json();
        assert!(json.contains("\"lora_alpha\": 12.5") && json.contains("\"lora_dropout\": 0.1"));
        let (read, targets) = parse(&json).unwrap();
        assert!(matches!(targets, Targets::Named(names) if names == ["q_proj"]));
        let targets = config.targets.clone();
        assert_eq!(PeftConfig { targets, ..read }, config);
        assert!((config.scale() - 12.5 / 6f32.sqrt()).abs() < 1e-6);
    }

    #[test]
    fn what_we_lack_is_named() {
        for (more, word) in [
            (r#","use_dora":true"#, "use_dora"),
            (r#","bias":"all""#, "bias"),
            (r#","modules_to_save":["lm_head"]"#, "lm_head"),
            (r#","rank_pattern":{"q_proj":4}"#, "rank_pattern"),
            (r#","layers_to_transform":[1]"#, "layers_to_transform"),
            (r#","fan_in_fan_out":true"#, "fan_in_fan_out"),
            (r#","init_lora_weights":"pissa""#, "pissa"),
            (r#","r":0"#, "rank 0"),
            (r#","lora_alpha":"x""#, "PEFT configuration"),
        ] {
            let text = refusal(more);
            assert!(text.contains(word), "{text:?} does not name {word:?}");
        }
        let ia3 = parse(r#"{"peft_type":"IA3","target_modules":["q_proj"]}"#);
        assert!(ia3.err().unwrap().to_string().contains("IA3"));
        assert!(parse("{").is_err());
        assert_eq!(refusal(""), "");
    }
}
