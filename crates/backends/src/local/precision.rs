//! [`Precision`]: from `--dtype` to types of activations, weights, keys and values.

use std::fmt;
use std::str::FromStr;

use vgen_core::Fault;
use vgen_mllama::{Config, DType, Stored, TensorSpec, WeightType, WeightTypes, expected};

use super::{LocalOptions, MemoryPlan, OpenDevice};

/// Type of weights and activations.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum DTypeChoice {
    /// The best that fits: weights as the checkpoint has them (on a GPU bf16, or f16 where it is too old for that), else
    /// 8 bits, else 4.
    #[default]
    Auto,
    /// 32 bits.
    F32,
    /// bfloat16.
    Bf16,
    /// Half precision; GPUs only.
    F16,
    /// Weights of 8 bits in blocks of 32.
    Q8_0,
    /// Weights of 4 bits in blocks of 256.
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
    /// Whether the model computes by operations that every device has.
    pub portable: bool,
    /// Whether rows are in the memory of a GPU, apart from images that wait.
    pub on_gpu: bool,
    /// Of activations; there of weights too, unless these are quantised.
    pub activations: DType,
    /// Of matrices.
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
            Some(weights @ (WeightType::Q8_0 | WeightType::Q4K)) => write!(f, "{weights}"),
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
        device: &OpenDevice,
        config: &Config,
        stored: &dyn Fn(&str) -> Stored,
        free: Option<u64>,
    ) -> Result<Self, Fault> {
        let on_cpu = device.device.is_cpu();
        let limit = options.memory.or(free);
        let dtype = options.dtype;
        if !on_cpu || options.portable {
            let half = if on_cpu { DType::F32 } else { device.best_half() };
            let placed = if on_cpu { Placed::OnDevice } else { Placed::OnGpu };
            let precision = Self::on_device(options, half, placed, config, stored, limit);
            if on_cpu && precision.activations != DType::F32 {
                return Err(Fault::stop(
                    "device.dtype",
                    format!("the portable path can't compute in {dtype} on the CPU"),
                )
                .with_hint("use --dtype f32, q8_0, q4_k or auto"));
            }
            device.check(precision.activations)?;
            device.check(precision.kv)?;
            precision.check_overrides(device)?;
            return Ok(precision);
        }
        let fits =
            |precision: &Self| limit.is_none_or(|limit| MemoryPlan::new(config, precision, options).needed() <= limit);
        let cpu = |all: Option<WeightType>, in_place: bool| {
            let weights = WeightTypes { all, overrides: options.weight_overrides.clone() };
            let placed = if in_place { Placed::InMap } else { Placed::InMemory };
            Self::of(options, config, stored, DType::F32, weights, placed)
        };
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

    /// On a GPU, and on the portable path, a tensor is quantised or in the type of the activations.
    fn check_overrides(&self, device: &OpenDevice) -> Result<(), Fault> {
        let honoured = |wanted: WeightType| match wanted {
            WeightType::F32 => self.activations == DType::F32,
            WeightType::Bf16 => self.activations == DType::BF16,
            WeightType::Q8_0 | WeightType::Q4K => true,
        };
        match self.weights.overrides.iter().find(|wanted| !honoured(wanted.weight_type())) {
            None => Ok(()),
            Some(wanted) => {
                let (name, activations) = (&device.description, self.activations.as_str());
                let message = format!("{wanted}: on {name} tensors are q8_0, q4_k or in the run's {activations}");
                Err(Fault::stop("device.dtype", message)
                    .with_hint(format!("leave it out for {activations}, or use --dtype for all tensors")))
            }
        }
    }

    /// On a device of which only the memory is known: the types that a GPU with bf16 takes.
    pub(crate) fn on_gpu(
        options: &LocalOptions,
        config: &Config,
        stored: &dyn Fn(&str) -> Stored,
        limit: Option<u64>,
    ) -> Self {
        Self::on_device(options, DType::BF16, Placed::OnGpu, config, stored, limit)
    }

    /// For operations that every device has, with activations in `half` unless the options say another type.
    fn on_device(
        options: &LocalOptions,
        half: DType,
        placed: Placed,
        config: &Config,
        stored: &dyn Fn(&str) -> Stored,
        limit: Option<u64>,
    ) -> Self {
        let fits =
            |precision: &Self| limit.is_none_or(|limit| MemoryPlan::new(config, precision, options).needed() <= limit);
        let of = |activations, all: WeightType| {
            let weights = WeightTypes { all: Some(all), overrides: options.weight_overrides.clone() };
            Self::of(options, config, stored, activations, weights, placed)
        };
        match options.dtype {
            DTypeChoice::Auto => {
                let larger = [WeightType::F32, WeightType::Q8_0].map(|all| of(half, all));
                larger.into_iter().find(fits).unwrap_or_else(|| of(half, WeightType::Q4K))
            }
            DTypeChoice::F32 => of(DType::F32, WeightType::F32),
            DTypeChoice::Bf16 => of(DType::BF16, WeightType::F32),
            DTypeChoice::F16 => of(DType::F16, WeightType::F32),
            DTypeChoice::Q8_0 => of(half, WeightType::Q8_0),
            DTypeChoice::Q4K => of(half, WeightType::Q4K),
        }
    }

    /// Bytes of a tensor that the checkpoint holds as `stored`.
    pub(crate) fn bytes(&self, spec: &TensorSpec, stored: Stored) -> u64 {
        if self.in_place && spec.shape.len() > 1 && stored == Stored::Bf16 {
            0
        } else if self.portable {
            let dense = spec.elements() * self.activations.size_in_bytes() as u64;
            // A table that is a matrix too is there twice.
            let table = if spec.role.is_table() && spec.role.is_matrix() { dense } else { 0 };
            table + self.weights.block_bytes(spec, stored).unwrap_or(dense)
        } else {
            self.weights.bytes(spec, stored)
        }
    }

    fn of(
        options: &LocalOptions,
        config: &Config,
        stored: &dyn Fn(&str) -> Stored,
        activations: DType,
        weights: WeightTypes,
        placed: Placed,
    ) -> Self {
        let kv = match options.kv_dtype {
            KvDTypeChoice::F32 => DType::F32,
            KvDTypeChoice::Bf16 => DType::BF16,
            KvDTypeChoice::F16 => DType::F16,
            KvDTypeChoice::Auto if activations != DType::F32 => activations,
            KvDTypeChoice::Auto if weights.all == Some(WeightType::F32) => DType::F32,
            KvDTypeChoice::Auto => DType::BF16,
        };
        let on_gpu = placed == Placed::OnGpu;
        let (portable, in_place) = (on_gpu || placed == Placed::OnDevice, placed == Placed::InMap);
        let mut precision = Self { portable, on_gpu, activations, weights, in_place, kv, weight_bytes: 0 };
        precision.weight_bytes = expected(config).iter().map(|spec| precision.bytes(spec, stored(&spec.name))).sum();
        precision
    }
}

/// Where weights are.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Placed {
    /// In tensors of a GPU.
    OnGpu,
    /// In tensors of the CPU.
    OnDevice,
    /// Packed for the kernels of the CPU.
    InMemory,
    /// bf16 matrices in the file's map.
    InMap,
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)] // a failed call is a failed test

    use super::*;
    use crate::local::{DeviceChoice, ModelSource};

    fn with(overrides: &[&str]) -> LocalOptions {
        let mut options = LocalOptions::new(ModelSource::Named("model".into()));
        options.weight_overrides = overrides.iter().map(|text| text.parse().unwrap()).collect();
        options
    }

    fn config() -> Config {
        Config::from_json(include_str!("../../docs/llama-3.2-11b-vision.json")).unwrap()
    }

    #[test]
    fn a_type_that_is_not_honoured_is_refused() {
        let (config, cpu) = (config(), DeviceChoice::Cpu.open().unwrap());
        let choose = |text: &str| {
            let options = LocalOptions { portable: true, ..with(&[text]) };
            Precision::choose(&options, &cpu, &config, &|_| Stored::Bf16, None)
        };
        choose("*lm_head*=f32").unwrap();
        choose("*lm_head*=q4_k").unwrap();
        let fault = choose("*lm_head*=bf16").unwrap_err();
        assert_eq!(fault.code, "device.dtype");
        assert!(fault.message.contains("*lm_head*=bf16"), "{}", fault.message);
    }

    #[test]
    fn single_quantised_tensors_count_as_that() {
        let config = config();
        let bytes = |options: &LocalOptions| Precision::on_gpu(options, &config, &|_| Stored::Bf16, None).weight_bytes;
        let dense = bytes(&with(&[]));
        let head = (config.text.vocab_size * config.text.hidden_size) as u64;
        // 34 bytes for 32 weights, instead of 64.
        assert_eq!(dense - bytes(&with(&["language_model.lm_head.weight=q8_0"])), head * 30 / 32);
        let quantised = LocalOptions { dtype: DTypeChoice::Q8_0, ..with(&[]) };
        assert!(bytes(&quantised) < dense * 6 / 10);
    }
}
