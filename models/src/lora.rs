//! The adapter: which tensors it has, how it begins, and its views for each block.

use crate::config::ModelConfig;
use crate::ops::{Dropout, GroupGrads, GroupLora, Host, PartB, is_cpu, tensor_on};
use crate::peft::{PeftAdapter, PeftConfig, PeftError, PeftTensor, Projection};
use burn::tensor::{Device, Tensor};
use fedllm_shared::{
    Adapter, AdapterError, Factors, Layout, LayoutError, LoraSpec, ParseTargetsError, Target,
    Targets, TensorSpec, is_trained,
};
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};
use std::ops::Range;
use std::sync::Arc;

/// Projections that read one input, in the order of their outputs.
const GROUPS: [&[Target]; 4] = [
    &[Target::Q, Target::K, Target::V],
    &[Target::O],
    &[Target::Gate, Target::Up],
    &[Target::Down],
];

/// Projections with a low-rank path, in every layer of a model.
///
/// The tensors of one group lie together, first all `A`, then all `B`, so that the `A`
/// factors of a group are one matrix of the flat vector. Names are PEFT's.
///
/// # Errors
///
/// [`LayoutError`] if the model is larger than a layout may be.
pub fn layout(config: &ModelConfig, spec: &LoraSpec) -> Result<Layout, LayoutError> {
    let mut tensors = Vec::new();
    for layer in 0..config.layers {
        for group in GROUPS {
            for factor in ['A', 'B'] {
                for target in adapted(group, spec.targets) {
                    let (out, input) = shape(config, target);
                    let (rows, cols) = if factor == 'A' {
                        (spec.rank as usize, input)
                    } else {
                        (out, spec.rank as usize)
                    };
                    let name = tensor_name(layer, target, factor);
                    tensors.push(TensorSpec {
                        name,
                        rows: rows as u32,
                        cols: cols as u32,
                    });
                }
            }
        }
    }
    Layout::new(tensors)
}

/// A new adapter as PEFT begins it: `A` uniform in ±1/√in (Kaiming with a = √5), `B`
/// zero, so that the model is at first the base. `A` depends on the seed and the
/// tensor's name only.
///
/// # Errors
///
/// [`AdapterError`] if the layout does not hold the values, which it does by
/// construction.
pub fn init(layout: &Arc<Layout>, seed: u64) -> Result<Adapter, AdapterError> {
    let mut values = vec![0.0; layout.len()];
    for (index, tensor) in layout.tensors().iter().enumerate() {
        if tensor.name.ends_with("lora_A.weight") {
            let bound = 1.0 / f64::from(tensor.cols).sqrt();
            let mut hash = blake3::Hasher::new();
            hash.update(&seed.to_le_bytes())
                .update(tensor.name.as_bytes());
            let mut random = ChaCha8Rng::from_seed(*hash.finalize().as_bytes());
            for value in &mut values[layout.range(index)] {
                let uniform = f64::from(random.next_u32() >> 8) / f64::from(1u32 << 24);
                *value = (bound * (2.0 * uniform - 1.0)) as f32;
            }
        }
    }
    Adapter::new(layout.clone(), values)
}

/// The settings and values of an adapter that was read from a PEFT directory.
///
/// # Errors
///
/// [`LoraError`] names the tensor that the model lacks or shapes differently.
pub fn from_peft(
    config: &ModelConfig,
    peft: &PeftAdapter,
) -> Result<(LoraSpec, Adapter), LoraError> {
    let names: Vec<&str> = peft
        .config
        .targets
        .iter()
        .map(|projection| projection.target())
        .collect();
    let spec = LoraSpec {
        rank: peft.config.rank as u32,
        alpha: peft.config.alpha,
        dropout: peft.config.dropout,
        rslora: peft.config.rslora,
        targets: names.join(",").parse()?,
        seed: 0,
        train: Factors::Both,
    };
    let layout = Arc::new(layout(config, &spec)?);
    let mut values = vec![0.0; layout.len()];
    let mut seen = 0;
    for tensor in &peft.tensors {
        let place = layout.find(&tensor.name).filter(|&index| {
            let expected = &layout.tensors()[index];
            (expected.rows as usize, expected.cols as usize) == (tensor.rows, tensor.cols)
        });
        let Some(index) = place else {
            let (rows, cols) = (tensor.rows, tensor.cols);
            return Err(LoraError::OtherModel {
                tensor: tensor.name.clone(),
                rows,
                cols,
            });
        };
        values[layout.range(index)].copy_from_slice(&tensor.values);
        seen += 1;
    }
    if seen < layout.tensors().len() {
        return Err(LoraError::Missing {
            got: seen,
            expected: layout.tensors().len(),
        });
    }
    Ok((spec, Adapter::new(layout, values)?))
}

/// An adapter as a PEFT directory holds it; `base` is the base model's name, for people.
///
/// # Errors
///
/// [`PeftError`] if the adapter is not one of PEFT's shape, which ours are.
pub fn to_peft(spec: &LoraSpec, adapter: &Adapter, base: &str) -> Result<PeftAdapter, PeftError> {
    let targets = Projection::ALL.into_iter().filter(|projection| {
        spec.targets
            .iter()
            .any(|target| target.module() == projection.target())
    });
    let config = PeftConfig {
        base_model: Some(base.to_owned()),
        rank: spec.rank as usize,
        alpha: spec.alpha,
        dropout: spec.dropout,
        rslora: spec.rslora,
        targets: targets.collect(),
    };
    let layout = adapter.layout();
    let tensors = layout
        .tensors()
        .iter()
        .enumerate()
        .map(|(index, tensor)| PeftTensor {
            name: tensor.name.clone(),
            rows: tensor.rows as usize,
            cols: tensor.cols as usize,
            values: adapter.values()[layout.range(index)].to_vec(),
        });
    PeftAdapter::new(config, tensors.collect())
}

/// The PEFT key of a factor of a layer's projection.
pub fn tensor_name(layer: usize, target: Target, factor: char) -> String {
    let parent = match target {
        Target::Q | Target::K | Target::V | Target::O => "self_attn",
        Target::Gate | Target::Up | Target::Down => "mlp",
    };
    format!(
        "base_model.model.model.layers.{layer}.{parent}.{}.lora_{factor}.weight",
        target.module()
    )
}

/// Output and input features of a projection.
fn shape(config: &ModelConfig, target: Target) -> (usize, usize) {
    let (query, key) = (
        config.heads * config.head_dim,
        config.kv_heads * config.head_dim,
    );
    match target {
        Target::Q => (query, config.hidden),
        Target::K | Target::V => (key, config.hidden),
        Target::O => (config.hidden, query),
        Target::Gate | Target::Up => (config.ffn, config.hidden),
        Target::Down => (config.hidden, config.ffn),
    }
}

fn adapted(group: &'static [Target], targets: Targets) -> impl Iterator<Item = Target> {
    group
        .iter()
        .copied()
        .filter(move |target| targets.contains(*target))
}

/// The adapters of one block's four groups.
pub struct BlockLora {
    pub(crate) qkv: Option<GroupLora>,
    pub(crate) out: Option<GroupLora>,
    pub(crate) gate_up: Option<GroupLora>,
    pub(crate) down: Option<GroupLora>,
}

/// Gradients of one block's adapters.
#[derive(Default)]
pub struct BlockGrads {
    pub(crate) qkv: Option<GroupGrads>,
    pub(crate) out: Option<GroupGrads>,
    pub(crate) gate_up: Option<GroupGrads>,
    pub(crate) down: Option<GroupGrads>,
}

impl BlockGrads {
    /// The gradients of what is trained one after another, in the order of the layout.
    pub(crate) fn flatten(self) -> Vec<Tensor<1>> {
        [self.qkv, self.out, self.gate_up, self.down]
            .into_iter()
            .flatten()
            .flat_map(|group| group.a.into_iter().chain(group.b))
            .map(Tensor::flatten_all)
            .collect()
    }
}

/// A reshape to one dimension that reads well in a chain.
trait FlattenAll {
    fn flatten_all(self) -> Tensor<1>;
}

impl FlattenAll for Tensor<2> {
    fn flatten_all(self) -> Tensor<1> {
        let len = self.dims().iter().product::<usize>();
        self.reshape([len])
    }
}

/// Where the factors of one group lie in the vectors that hold them.
#[derive(Clone, Debug)]
struct GroupPlace {
    /// The stacked `A` factors.
    a: Range<usize>,
    /// Part of the group, place and output features of each `B`.
    b: Vec<(usize, Range<usize>, usize)>,
    input: usize,
}

/// An adapter on a device: one flat vector of what is trained, and where each block's factors
/// lie in it. Where only `B` is trained, the `A` factors lie in a vector of their own, so that
/// gradients, moments and control variates have no part for them.
#[derive(Clone, Debug)]
pub struct Lora {
    layout: Arc<Layout>,
    trained: Arc<Layout>,
    values: Tensor<1>,
    frozen: Option<Frozen>,
    places: Vec<[Option<GroupPlace>; 4]>,
    rank: usize,
    scale: f32,
}

/// The factors that are not trained.
#[derive(Clone, Debug)]
struct Frozen {
    layout: Arc<Layout>,
    values: Tensor<1>,
}

impl Lora {
    /// Puts an adapter with the layout of [`layout`] on a device.
    ///
    /// # Errors
    ///
    /// [`LoraError`] if the adapter's layout is not that of the model and the spec.
    pub fn new(
        config: &ModelConfig,
        spec: &LoraSpec,
        adapter: &Adapter,
        device: &Device,
    ) -> Result<Self, LoraError> {
        let expected = layout(config, spec)?;
        if *adapter.layout().as_ref() != expected {
            return Err(LoraError::OtherLayout);
        }
        let on_device = |layout: &Arc<Layout>| -> Result<Tensor<1>, AdapterError> {
            let values = adapter.select(layout)?.into_values();
            let len = values.len();
            Ok(tensor_on(values, [len], device))
        };
        let (trained, frozen) = match spec.train {
            Factors::Both => (adapter.layout().clone(), None),
            Factors::B => {
                let layout = part(&expected, spec.train, false)?;
                let values = on_device(&layout)?;
                let trained = part(&expected, spec.train, true)?;
                (trained, Some(Frozen { layout, values }))
            }
        };
        let range = |name: &str| {
            let frozen = frozen.as_ref().map(|frozen| &frozen.layout);
            let mut layouts = std::iter::once(&trained).chain(frozen);
            layouts.find_map(|layout| layout.find(name).map(|index| layout.range(index)))
        };
        let of_layer = |layer| GROUPS.map(|group| place(range, config, layer, group, spec.targets));
        Ok(Self {
            places: (0..config.layers).map(of_layer).collect(),
            layout: adapter.layout().clone(),
            values: on_device(&trained)?,
            trained,
            frozen,
            rank: spec.rank as usize,
            scale: spec.scale(),
        })
    }

    /// The tensors of the whole adapter.
    pub fn layout(&self) -> &Arc<Layout> {
        &self.layout
    }

    /// The tensors that are trained, in their order: those of an update and of control variates.
    pub fn trained(&self) -> &Arc<Layout> {
        &self.trained
    }

    /// The flat parameters that training moves, in the order of the layout.
    pub fn values(&self) -> &Tensor<1> {
        &self.values
    }

    /// Takes the trained parameters out, for an optimizer that changes them in place.
    pub(crate) fn take_values(&mut self) -> Tensor<1> {
        let empty = Tensor::zeros([0], &self.values.device());
        std::mem::replace(&mut self.values, empty)
    }

    /// Replaces the trained parameters.
    pub(crate) fn set_values(&mut self, values: Tensor<1>) {
        self.values = values;
    }

    /// The parameters read back to the host.
    ///
    /// # Errors
    ///
    /// [`AdapterError`] if a value is not finite.
    pub fn to_adapter(&self) -> Result<Adapter, AdapterError> {
        let trained = Adapter::new(self.trained.clone(), read_back(self.values.clone()))?;
        let Some(frozen) = &self.frozen else {
            return Ok(trained);
        };
        let frozen = Adapter::new(frozen.layout.clone(), read_back(frozen.values.clone()))?;
        let mut adapter = Adapter::zeros(self.layout.clone());
        adapter.insert(&frozen)?;
        adapter.insert(&trained)?;
        Ok(adapter)
    }

    /// The adapters of one block; with dropout while training.
    pub fn block(&self, layer: usize, dropout: Option<Dropout>) -> BlockLora {
        let [qkv, out, gate_up, down] = &self.places[layer];
        let group = |index: u64, place: &Option<GroupPlace>| {
            place.as_ref().map(|place| {
                // One mask for each block and group: the seed is spread by an odd factor.
                let salt = (layer as u64 * 4 + index + 1).wrapping_mul(0xD1B5_4A32_D192_ED03);
                let dropout = dropout.map(|drop| Dropout {
                    seed: drop.seed ^ salt,
                    ..drop
                });
                self.group(place, dropout)
            })
        };
        BlockLora {
            qkv: group(0, qkv),
            out: group(1, out),
            gate_up: group(2, gate_up),
            down: group(3, down),
        }
    }

    fn group(&self, place: &GroupPlace, dropout: Option<Dropout>) -> GroupLora {
        let matrix = |values: &Tensor<1>, range: &Range<usize>, cols: usize| {
            values
                .clone()
                .slice([range.clone()])
                .reshape([range.len() / cols, cols])
        };
        let of_a = match &self.frozen {
            Some(frozen) => &frozen.values,
            None => &self.values,
        };
        let b = place
            .b
            .iter()
            .enumerate()
            .map(|(i, (part, range, _))| PartB {
                part: *part,
                ranks: i * self.rank..(i + 1) * self.rank,
                b: matrix(&self.values, range, self.rank),
            });
        GroupLora {
            a: matrix(of_a, &place.a, place.input),
            b: b.collect(),
            scale: self.scale,
            dropout,
            trains_a: self.frozen.is_none(),
        }
    }
}

/// An adapter that does not fit its model.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LoraError {
    /// The model's adapter would be larger than a layout may be.
    #[error(transparent)]
    Layout(#[from] LayoutError),
    /// A target of the adapter is none of the seven projections.
    #[error(transparent)]
    Targets(#[from] ParseTargetsError),
    /// The adapter's values are not finite.
    #[error(transparent)]
    Adapter(#[from] AdapterError),
    /// The model has no such tensor.
    #[error("{tensor} [{rows}, {cols}] does not fit the model")]
    OtherModel {
        /// The adapter's tensor.
        tensor: String,
        /// Its rows.
        rows: usize,
        /// Its columns.
        cols: usize,
    },
    /// Some layers of the model have no adapter.
    #[error("the adapter has {got} tensors, the model needs {expected}")]
    Missing {
        /// Tensors of the adapter.
        got: usize,
        /// Tensors that the model needs.
        expected: usize,
    },
    /// The adapter has other tensors than the model and its settings call for.
    #[error("the adapter's tensors are not those of this model with this rank and these targets")]
    OtherLayout,
}

/// The values of a tensor in host memory, row-major.
pub fn read_back<const D: usize>(tensor: Tensor<D>) -> Vec<f32> {
    let tensor = if is_cpu(&tensor.device()) {
        tensor
    } else {
        tensor.to_device(&Device::flex())
    };
    Host::of(tensor).into_values()
}

/// The tensors that are trained, or those that are not.
fn part(layout: &Layout, train: Factors, trained: bool) -> Result<Arc<Layout>, LayoutError> {
    let tensors = layout.tensors().iter();
    let tensors = tensors.filter(|tensor| is_trained(&tensor.name, train) == trained);
    Ok(Arc::new(Layout::new(tensors.cloned().collect())?))
}

/// Where a group's factors lie; `range` knows that of a tensor by its name.
fn place(
    range: impl Fn(&str) -> Option<Range<usize>>,
    config: &ModelConfig,
    layer: usize,
    group: &'static [Target],
    targets: Targets,
) -> Option<GroupPlace> {
    let range = |target, factor| range(&tensor_name(layer, target, factor));
    let mut of_a = adapted(group, targets).filter_map(|target| range(target, 'A'));
    let first = of_a.next()?;
    let end = of_a.last().map_or(first.end, |last| last.end);
    let b = group.iter().enumerate().filter_map(|(part, &target)| {
        let range = range(target, 'B')?;
        Some((part, range, shape(config, target).0))
    });
    Some(GroupPlace {
        a: first.start..end,
        b: b.collect(),
        input: shape(config, group[0]).1,
    })
}
