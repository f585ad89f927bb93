//! [`Precision`]: from `--dtype` to types of activations, weights, keys and values.

use std::fmt;
use std::str::FromStr;

use vgen_core::Fault;
use vgen_mllama::{Config, DType, Device, Stored, WeightType, WeightTypes, expected};

use super::{LocalOptions, MemoryPlan};

/// Type of weights and activations.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum DTypeChoice {
    /// On the CPU the best that fits: weights as the checkpoint has them, else 8 bits, else 4. On a GPU bf16.
    #[default]
    Auto,
    /// 32 bits.
    F32,
    /// bfloat16.
    Bf16,
    /// Half precision; GPUs only.
    F16,
    /// Weights of 8 bits in blocks of 32; the CPU only.
    Q8_0,
    /// Weights of 4 bits in blocks of 256; the CPU only.
    Q4K,
}

const DTYPES: [(&str, DTypeChoice); 6] = [
    ("auto", DTypeChoice::Auto),
    ("f32", DTypeChoice::F32),
    ("bf16", DTypeChoice::Bf16),
    ("f16", DTypeChoice::F16),
    ("q8_0", DTypeChoice::Q8_0),
    ("q4_k", DTypeChoice::Q4K),
];

impl FromStr for DTypeChoice {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let found = DTYPES.iter().find(|(name, _)| *name == text).map(|(_, dtype)| *dtype);
        found.ok_or_else(|| format!("{text:?} is no type: auto, f32, bf16, f16, q8_0 and q4_k are"))
    }
}

impl fmt::Display for DTypeChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(DTYPES.iter().find(|(_, dtype)| dtype == self).map_or("", |(name, _)| name))
    }
}

/// Type of keys and values, of text and of images.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum KvDTypeChoice {
    /// f32 where weights are f32, else bf16.
    #[default]
    Auto,
    /// 32 bits.
    F32,
    /// bfloat16.
    Bf16,
    /// Half precision.
    F16,
}

impl FromStr for KvDTypeChoice {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "auto" => Ok(Self::Auto),
            "f32" => Ok(Self::F32),
            "bf16" => Ok(Self::Bf16),
            "f16" => Ok(Self::F16),
            _ => Err(format!("{text:?} is no type of keys and values: auto, f32, bf16 and f16 are")),
        }
    }
}

/// The types that a model computes in.
#[derive(Clone, Debug, PartialEq)]
pub struct Precision {
    /// Of activations; of weights too where no kernel of the CPU has them.
    pub activations: DType,
    /// Of matrices on the CPU.
    pub weights: WeightTypes,
    /// bf16 matrices stay in the memory map of their file, because they don't fit in memory.
    pub in_place: bool,
    /// Of keys and values.
    pub kv: DType,
    /// Bytes that all weights take.
    pub weight_bytes: u64,
}

impl fmt::Display for Precision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.weights.all {
            _ if self.activations != DType::F32 => f.write_str(self.activations.as_str()),
            Some(weights) => write!(f, "{weights}"),
            None => f.write_str("the checkpoint's types"),
        }?;
        f.write_str(if self.in_place { " (weights in place)" } else { "" })
    }
}

impl Precision {
    /// What the options come to for a model on a device. `stored` tells how the checkpoint holds a tensor; `free` is
    /// the memory that there is, if that is known.
    ///
    /// # Errors
    /// A stop fault if the device can't compute so.
    pub fn choose(
        options: &LocalOptions,
        device: &Device,
        config: &Config,
        stored: &dyn Fn(&str) -> Stored,
        free: Option<u64>,
    ) -> Result<Self, Fault> {
        let kernels = device.is_cpu() && !options.portable;
        let dtype = options.dtype;
        if !kernels {
            let activations = match dtype {
                DTypeChoice::Auto if device.is_cpu() => DType::F32,
                DTypeChoice::Auto | DTypeChoice::Bf16 => DType::BF16,
                DTypeChoice::F32 => DType::F32,
                DTypeChoice::F16 => DType::F16,
                DTypeChoice::Q8_0 | DTypeChoice::Q4K => {
                    return Err(Fault::stop("device.dtype", format!("{dtype} weights are for the kernels of the CPU"))
                        .with_hint("use --device cpu, or --dtype bf16"));
                }
            };
            if device.is_cpu() && activations != DType::F32 {
                return Err(Fault::stop(
                    "device.dtype",
                    format!("the portable path can't compute in {dtype} on the CPU"),
                )
                .with_hint("use --dtype f32 or auto"));
            }
            return Ok(Self::of(options, config, stored, activations, WeightType::F32.into(), false));
        }
        let cpu = |all: Option<WeightType>, in_place: bool| {
            let weights = WeightTypes { all, overrides: options.weight_overrides.clone() };
            Self::of(options, config, stored, DType::F32, weights, in_place)
        };
        let limit = options.memory.or(free);
        let fits =
            |precision: &Self| limit.is_none_or(|limit| MemoryPlan::new(config, precision, options).least() <= limit);
        match dtype {
            DTypeChoice::F32 => Ok(cpu(Some(WeightType::F32), false)),
            DTypeChoice::Q8_0 => Ok(cpu(Some(WeightType::Q8_0), false)),
            DTypeChoice::Q4K => Ok(cpu(Some(WeightType::Q4K), false)),
            DTypeChoice::F16 => Err(Fault::stop("device.dtype", "the CPU can't compute in f16")
                .with_hint("use --dtype bf16, f32 or auto; f16 checkpoints load as f32")),
            DTypeChoice::Bf16 => {
                let packed = cpu(Some(WeightType::Bf16), false);
                Ok(if fits(&packed) { packed } else { cpu(Some(WeightType::Bf16), true) })
            }
            DTypeChoice::Auto => {
                let smallest = || cpu(Some(WeightType::Q4K), false);
                let larger = [None, Some(WeightType::Q8_0)].map(|all| cpu(all, false));
                Ok(larger.into_iter().find(fits).unwrap_or_else(smallest))
            }
        }
    }

    fn of(
        options: &LocalOptions,
        config: &Config,
        stored: &dyn Fn(&str) -> Stored,
        activations: DType,
        weights: WeightTypes,
        in_place: bool,
    ) -> Self {
        let kv = match options.kv_dtype {
            KvDTypeChoice::F32 => DType::F32,
            KvDTypeChoice::Bf16 => DType::BF16,
            KvDTypeChoice::F16 => DType::F16,
            KvDTypeChoice::Auto if activations != DType::F32 => activations,
            KvDTypeChoice::Auto if weights.all == Some(WeightType::F32) => DType::F32,
            KvDTypeChoice::Auto => DType::BF16,
        };
        let specs = expected(config);
        let weight_bytes = match activations {
            DType::F32 => specs
                .iter()
                .filter(|spec| !(in_place && spec.shape.len() > 1 && stored(&spec.name) == Stored::Bf16))
                .map(|spec| weights.bytes(spec, stored(&spec.name)))
                .sum(),
            dtype => specs.iter().map(|spec| spec.elements() * dtype.size_in_bytes() as u64).sum(),
        };
        Self { activations, weights, in_place, kv, weight_bytes }
    }
}
