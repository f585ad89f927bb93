//! Devices: which there are, what a device can do, and how much memory it has free.
//!
//! | `--device` | is | needs a build with |
//! |---|---|---|
//! | `cpu` | the CPU, with the kernels of `vgen-kernels` | |
//! | `cuda`, `cuda:1` | an NVIDIA GPU, by its number among the visible ones (`CUDA_VISIBLE_DEVICES`) | `--features cuda`, better `cuda,flash-attn` |
//! | `metal` | the GPU of a Mac | `--features metal` |
//! | `auto` | the NVIDIA GPU with the most free memory, else `metal`, else `cpu`, of what this build has and what works; the message when the model is ready says which, and why none of the others | |
//!
//! A GPU works if it computes a product, one with quantised weights, a norm and a softmax as the CPU does: a driver also
//! opens GPUs that the kernels of the build were not made for.
//!
//! Several devices (`--devices cuda:0,cuda:1`) are of one kind and compute in one type, which fits the one with the least
//! memory and which the oldest can compute in. Engines on one device share its memory.
//!
//! A CUDA build links the driver (`libcuda.so.1`): it doesn't start where there is none, so build two programs, one with
//! the feature and one without.
//!
//! | feature | adds |
//! |---|---|
//! | `cuda` | NVIDIA GPUs: candle's kernels and cuBLAS |
//! | `flash-attn` | flash attention over paged keys and values, for bf16 and f16 from compute capability 8.0 |
//! | `cudnn` | cuDNN in candle; no operation of this network uses it (the patch convolution is a product) |
//! | `nccl` | NCCL in candle, for programs on top of the library; `--devices` needs none, its engines share nothing |
//! | `metal` | Apple GPUs |
//! | `accelerate` | Apple's BLAS under candle's product on the CPU; the CPU kernels don't use it |
//!
//! # What can go wrong
//!
//! | code | means |
//! |---|---|
//! | `device.feature` | the build has no support for the device |
//! | `device.none` | the driver says that there is no such device, or there is no driver |
//! | `device.unavailable` | the device is there and refuses: in use by another, out of memory, a broken driver |
//! | `device.dtype` | the device can't compute in the type |
//! | `device.capability` | the GPU is older than the type or the build needs, or the build is for another GPU or a newer driver |
//! | `device.mixed` | the devices of a run are of different kinds |
//!
//! # What is promised about neighbours
//!
//! On the CPU a row's answer has the same bits whatever else runs. On a GPU the sums are done by libraries that choose
//! a kernel, and with it the order of a sum, by the shape of a product; NVIDIA promises the same bits for the same
//! call on the same kind of GPU, not for a row among other rows. With `--fixed-shapes true`, the default, every product
//! of the text layers has 64 rows (filled up with zeros, or cut), prompts are read in pieces that depend on the prompt
//! alone, images are encoded one by one, and the keys of a row are filled up to a power of two that depends on the row
//! alone. A row's numbers then depend on its neighbours only if a kernel treats the rows of one product differently,
//! which the usual tiled kernels don't; `vgen verify` finds out for a GPU at hand. The same code is held to equal bits
//! on the CPU (`tests/invariance.rs`). What it costs: prompts longer than 64 tokens read the weights several times;
//! steps that only continue up to 64 answers cost nothing more. `--fixed-shapes false` gives that up for speed: answers
//! may then differ in the last bits, and after many tokens in words, with the batch that a row happened to be in.
//!
//! Attention is not among these products. Flash attention reads the pages of each sequence by itself, and which rows it
//! reads depends on each row alone. Without it (a build without `flash-attn`, Metal, keys of another type) the attention
//! of answers is a batch of products, one for each row and key head, of a shape that is the row's own: the promise holds
//! as far as the library's choice for a batch doesn't depend on how many products are in it, which NVIDIA does not
//! promise for cuBLAS. Build with `flash-attn` where answers must not move; prompts are read one by one either way.
//!
//! # What leaves a GPU
//!
//! A step copies one thing back: a number for each answer that takes the highest logit, half a kilobyte for each that
//! draws with `top_k` (below 65), `top_p` or `min_p`, from which the host chooses what it would choose from all logits. An
//! answer whose logits these few don't settle needs all of them (513 kB), in a second copy: with a temperature alone or
//! `typical_p` alone, with penalties, `logit_bias`, `bad_words`, `min_new_tokens`, a constraint or log-probabilities, and
//! now and then where a limit falls on the border of the list or of rounding.

use std::fmt;
use std::str::FromStr;

use vgen_core::Fault;
use vgen_mllama::{DType, Device};

/// Where to compute.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum DeviceChoice {
    /// The best device that this build has and that works.
    #[default]
    Auto,
    /// The CPU.
    Cpu,
    /// An NVIDIA GPU by number.
    Cuda(usize),
    /// An Apple GPU.
    Metal,
}

/// A device that is ready.
#[derive(Clone, Debug)]
pub struct OpenDevice {
    /// The device.
    pub device: Device,
    /// Its name, and if it was chosen why not another.
    pub description: String,
    /// What an NVIDIA GPU can do.
    pub compute_capability: Option<(i32, i32)>,
}

/// The compute capability that bf16 and flash attention need.
const AMPERE: (i32, i32) = (8, 0);

impl DeviceChoice {
    /// Opens the device.
    ///
    /// # Errors
    /// A stop fault that says why it can't be used.
    pub fn open(self) -> Result<OpenDevice, Fault> {
        match self {
            Self::Auto => open_best(),
            Self::Cpu => {
                Ok(OpenDevice { device: Device::Cpu, description: "cpu".to_owned(), compute_capability: None })
            }
            Self::Cuda(number) => open_cuda(number),
            Self::Metal => open_metal(),
        }
    }
}

/// Opens devices of one kind: `cpu,cpu`, or several GPUs.
///
/// # Errors
/// `device.mixed`, and those of [`DeviceChoice::open`].
pub fn open_all(choices: &[DeviceChoice]) -> Result<Vec<OpenDevice>, Fault> {
    let devices = choices.iter().map(|choice| choice.open()).collect::<Result<Vec<_>, _>>()?;
    let kind = |open: &OpenDevice| std::mem::discriminant(&open.device.location());
    match devices.iter().find(|open| kind(open) != kind(&devices[0])) {
        None => Ok(devices),
        Some(other) => {
            let message = format!("{} and {} would answer differently", devices[0].description, other.description);
            Err(Fault::stop("device.mixed", message).with_hint("name devices of one kind, or run a shard on each"))
        }
    }
}

/// GPUs that `auto` looks at.
const MOST_GPUS: usize = 16;

/// The NVIDIA GPU with the most free memory of those that work, or the Apple GPU, or the CPU with the reasons.
fn open_best() -> Result<OpenDevice, Fault> {
    let (mut reasons, mut working) = (Vec::new(), Vec::new());
    for number in 0..MOST_GPUS {
        match open_cuda(number) {
            Ok(open) => working.push(open),
            Err(fault) => {
                let last = matches!(fault.code.as_ref(), "device.none" | "device.feature");
                if fault.code != "device.feature" && !(last && number > 0) {
                    reasons.push(fault.message);
                }
                if last {
                    break;
                }
            }
        }
    }
    if let Some(best) = most_free(working) {
        return Ok(best);
    }
    match open_metal() {
        Ok(open) => return Ok(open),
        Err(fault) if fault.code == "device.feature" => {}
        Err(fault) => reasons.push(fault.message),
    }
    let mut open = DeviceChoice::Cpu.open()?;
    if reasons.is_empty() {
        reasons.push("a build without GPUs".to_owned());
    }
    open.description = format!("cpu ({})", reasons.join("; "));
    Ok(open)
}

/// The one with the most free memory, of equal ones the first; it says of how many.
fn most_free(mut open: Vec<OpenDevice>) -> Option<OpenDevice> {
    let count = open.len();
    let free: Vec<u64> = open.iter().map(|open| open.free_memory().unwrap_or(0)).collect();
    let best = (0..count).max_by_key(|&at| (free[at], std::cmp::Reverse(at)))?;
    let mut best = open.swap_remove(best);
    if count > 1 {
        best.description = format!("{}, the most free memory of {count} GPUs", best.description);
    }
    Some(best)
}

/// Computes a little: a device that opens may still have no kernels in this build.
#[cfg(any(feature = "cuda", feature = "metal", test))]
fn check_computes(name: &str, model: &str, device: &Device) -> Result<(), Fault> {
    match vgen_mllama::self_check(device) {
        Ok(None) => Ok(()),
        Ok(Some(what)) => Err(Fault::stop("device.unavailable", format!("{name} ({model}) computes {what} wrongly"))
            .with_hint("use another device, and look for errors of the GPU's memory or driver")),
        Err(error) => Err(cannot_compute(name, model, &error.to_string())),
    }
}

/// What a driver says of a first computation.
#[cfg(any(feature = "cuda", feature = "metal", test))]
fn cannot_compute(name: &str, model: &str, error: &str) -> Fault {
    const OTHER_GPU: [&str; 3] =
        ["CUDA_ERROR_INVALID_PTX", "CUDA_ERROR_NO_BINARY_FOR_GPU", "CUDA_ERROR_UNSUPPORTED_PTX_VERSION"];
    let Some(said) = OTHER_GPU.iter().find(|name| error.contains(**name)) else { return refused(name, error) };
    let built = match option_env!("CUDA_COMPUTE_CAP") {
        Some(capability) => format!("compute capability {capability}"),
        None => "the GPU of the machine that built it".to_owned(),
    };
    let message =
        format!("{name} ({model}) can't run the kernels of this build, made for {built}: the driver says {said}");
    Fault::stop("device.capability", message).with_hint(
        "build with CUDA_COMPUTE_CAP of this GPU, with a CUDA that is no newer than its driver, or use --device cpu",
    )
}

fn without_feature(device: &str, feature: &str) -> Fault {
    Fault::stop("device.feature", format!("this build has no {device} support"))
        .with_hint(format!("use --device cpu, or build with --features {feature}"))
}

/// What a driver says about a device that can't be opened.
#[cfg(any(feature = "cuda", feature = "metal", test))]
fn refused(device: &str, error: &str) -> Fault {
    const NONE: [&str; 6] = [
        "CUDA_ERROR_NO_DEVICE",
        "CUDA_ERROR_INVALID_DEVICE",
        "CUDA_ERROR_STUB_LIBRARY",
        "CUDA_ERROR_INSUFFICIENT_DRIVER",
        "CUDA_ERROR_SYSTEM_DRIVER_MISMATCH",
        "NoDevice",
    ];
    // One line: backtraces are for those who mend the program.
    let line = error.lines().next().unwrap_or_default();
    match NONE.iter().find(|name| error.contains(**name)) {
        Some(name) => Fault::stop("device.none", format!("there is no {device}: the driver says {name}")).with_hint(
            match device {
                "metal" => "use --device cpu; in virtual machines a Mac has no GPU",
                _ => "use --device cpu; nvidia-smi and CUDA_VISIBLE_DEVICES tell which GPUs this process may see",
            },
        ),
        None => Fault::stop("device.unavailable", format!("{device} can't be used: {line}"))
            .with_hint("see whether another process holds it, or use --device cpu"),
    }
}

#[cfg(not(feature = "cuda"))]
fn open_cuda(_: usize) -> Result<OpenDevice, Fault> {
    Err(without_feature("CUDA", "cuda"))
}

#[cfg(feature = "cuda")]
fn open_cuda(number: usize) -> Result<OpenDevice, Fault> {
    let name = format!("cuda:{number}");
    // The driver's library may panic where it finds nothing.
    let opened = std::panic::catch_unwind(|| Device::new_cuda(number));
    let device = match opened {
        Ok(Ok(device)) => device,
        Ok(Err(error)) => return Err(refused(&name, &error.to_string())),
        Err(_) => return Err(refused(&name, "the driver's library failed")),
    };
    let Device::Cuda(cuda) = &device else { return Err(refused(&name, "it is no CUDA device")) };
    let stream = cuda.cuda_stream();
    let context = stream.context();
    let capability = context.compute_capability().map_err(|error| refused(&name, &error.to_string()))?;
    let model = context.name().unwrap_or_else(|_| "unknown GPU".to_owned());
    if cfg!(feature = "flash-attn") && capability < AMPERE {
        return Err(too_old(&model, capability, "a build with flash-attn").with_hint("use a build without flash-attn"));
    }
    check_computes(&name, &model, &device)?;
    let (major, minor) = capability;
    let description = format!("{name} ({model}, compute capability {major}.{minor})");
    Ok(OpenDevice { device, description, compute_capability: Some(capability) })
}

#[cfg(not(feature = "metal"))]
fn open_metal() -> Result<OpenDevice, Fault> {
    Err(without_feature("Metal", "metal"))
}

#[cfg(feature = "metal")]
fn open_metal() -> Result<OpenDevice, Fault> {
    let opened = std::panic::catch_unwind(|| Device::new_metal(0));
    let device = match opened {
        Ok(Ok(device)) => device,
        Ok(Err(error)) => return Err(refused("metal", &error.to_string())),
        Err(_) => return Err(refused("metal", "NoDevice")),
    };
    let model = match &device {
        Device::Metal(metal) => metal.metal_device().architecture_name(),
        _ => String::new(),
    };
    check_computes("metal", &model, &device)?;
    Ok(OpenDevice { device, description: format!("metal ({model})"), compute_capability: None })
}

fn too_old(model: &str, (major, minor): (i32, i32), what: &str) -> Fault {
    let message = format!("{model} has compute capability {major}.{minor}, {what} needs 8.0");
    Fault::stop("device.capability", message)
}

impl OpenDevice {
    /// Whether it can compute in a type.
    ///
    /// # Errors
    /// `device.capability`.
    pub fn check(&self, dtype: DType) -> Result<(), Fault> {
        match self.compute_capability {
            Some(capability) if dtype == DType::BF16 && capability < AMPERE => {
                Err(too_old(&self.description, capability, "bf16").with_hint("use --dtype f16 or f32"))
            }
            _ => Ok(()),
        }
    }

    /// The type that `--dtype auto` takes on a GPU.
    pub fn best_half(&self) -> DType {
        if self.check(DType::BF16).is_ok() { DType::BF16 } else { DType::F16 }
    }

    /// Bytes that are free on it, where that is known.
    pub fn free_memory(&self) -> Option<u64> {
        match &self.device {
            Device::Cpu => super::free_memory(),
            #[cfg(feature = "cuda")]
            Device::Cuda(cuda) => {
                let (free, _) = cuda.cuda_stream().context().mem_get_info().ok()?;
                Some(free as u64)
            }
            #[cfg(feature = "metal")]
            Device::Metal(metal) => {
                let device = metal.metal_device();
                let most = device.recommended_max_working_set_size();
                Some(most.saturating_sub(device.current_allocated_size()) as u64)
            }
            #[allow(unreachable_patterns, reason = "what there is depends on the features")]
            _ => None,
        }
    }
}

impl FromStr for DeviceChoice {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.split_once(':').unwrap_or((text, "0")) {
            ("auto", "0") => Ok(Self::Auto),
            ("cpu", "0") => Ok(Self::Cpu),
            ("metal", "0") => Ok(Self::Metal),
            ("cuda", number) if number.parse::<usize>().is_ok() => Ok(Self::Cuda(number.parse().unwrap_or(0))),
            _ => Err(format!("{text:?} is no device: auto, cpu, cuda, cuda:1 and metal are")),
        }
    }
}

impl fmt::Display for DeviceChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Auto => f.write_str("auto"),
            Self::Cpu => f.write_str("cpu"),
            Self::Cuda(number) => write!(f, "cuda:{number}"),
            Self::Metal => f.write_str("metal"),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)] // a failed call is a failed test

    use super::*;

    #[test]
    fn devices_have_names() {
        for text in ["auto", "cpu", "cuda:1", "metal"] {
            assert_eq!(text.parse::<DeviceChoice>().unwrap().to_string(), text);
        }
        assert_eq!("cuda".parse(), Ok(DeviceChoice::Cuda(0)));
        assert!("cuda:x".parse::<DeviceChoice>().is_err());
    }

    #[test]
    fn what_a_driver_says_becomes_one_sentence() {
        let fault = refused("cuda:0", "DriverError(CUDA_ERROR_NO_DEVICE, \"no CUDA-capable device\")\n   0: backtrace");
        assert_eq!(fault.code, "device.none");
        assert_eq!(fault.message, "there is no cuda:0: the driver says CUDA_ERROR_NO_DEVICE");
        let fault = refused("cuda:0", "DriverError(CUDA_ERROR_OUT_OF_MEMORY, \"out of memory\")\n   0: backtrace");
        assert_eq!(fault.code, "device.unavailable");
        assert!(!fault.message.contains("backtrace"), "{}", fault.message);
    }

    #[test]
    fn a_build_for_another_gpu_says_so() {
        check_computes("cpu", "this", &Device::Cpu).unwrap();
        let error = "tensor operation: DriverError(CUDA_ERROR_NO_BINARY_FOR_GPU, \"no kernel image\")\n   0: backtrace";
        let fault = cannot_compute("cuda:0", "NVIDIA A100", error);
        assert_eq!(fault.code, "device.capability");
        assert!(fault.message.contains("NVIDIA A100") && !fault.message.contains("backtrace"), "{}", fault.message);
        assert_eq!(cannot_compute("cuda:0", "NVIDIA A100", "CUDA_ERROR_UNKNOWN").code, "device.unavailable");
        let metal = refused("metal", "NoDevice");
        assert!(!metal.hint.unwrap().contains("nvidia"));
    }

    #[test]
    fn devices_of_a_run_are_of_one_kind() {
        let all = open_all(&[DeviceChoice::Cpu, DeviceChoice::Auto]).unwrap();
        assert_eq!(all.len(), 2);
        assert_eq!(most_free(all).unwrap().description, "cpu, the most free memory of 2 GPUs");
        assert!(most_free(Vec::new()).is_none());
    }

    #[test]
    fn old_gpus_compute_in_f16() {
        let open = |capability| OpenDevice {
            device: Device::Cpu,
            description: "cuda:0 (Tesla T4)".to_owned(),
            compute_capability: Some(capability),
        };
        assert_eq!(open((7, 5)).best_half(), DType::F16);
        assert_eq!(open((9, 0)).best_half(), DType::BF16);
        let fault = open((7, 5)).check(DType::BF16).unwrap_err();
        assert_eq!(fault.code, "device.capability");
        assert!(fault.message.contains("7.5") && fault.message.contains("Tesla T4"), "{}", fault.message);
    }

    #[test]
    #[cfg(not(any(feature = "cuda", feature = "metal")))]
    fn a_build_without_the_feature_says_so() {
        assert_eq!(DeviceChoice::Cuda(0).open().unwrap_err().code, "device.feature");
        assert_eq!(DeviceChoice::Metal.open().unwrap_err().code, "device.feature");
        let open = DeviceChoice::Auto.open().unwrap();
        assert!(open.device.is_cpu());
        assert_eq!(open.description, "cpu (a build without GPUs)");
    }
}
