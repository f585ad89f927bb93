//! [`DeviceModel`]: devices by their data sheets, to count for what isn't at hand.

use std::str::FromStr;

use serde::Serialize;

/// A device by its data sheet.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct DeviceModel {
    /// What `--device-model` calls it.
    pub name: &'static str,
    /// What it is.
    pub title: &'static str,
    /// FLOPs a second of dense products of bf16 with sums in f32.
    pub flops: f64,
    /// Bytes a second from its memory.
    pub bandwidth: f64,
    /// Bytes of memory that a process may take.
    pub memory: u64,
    /// Seconds that the host needs to launch an operation: an assumption.
    pub launch: f64,
    /// Whether there is a kernel for attention over pages.
    pub reads_pages: bool,
}

/// The devices that there are data sheets of.
pub const DEVICE_MODELS: [DeviceModel; 8] = [
    DeviceModel {
        name: "h100",
        title: "NVIDIA H100 SXM, 80 GB",
        flops: 989e12,
        bandwidth: 3.35e12,
        memory: 80_000_000_000,
        launch: 5e-6,
        reads_pages: true,
    },
    DeviceModel {
        name: "a100",
        title: "NVIDIA A100 SXM, 80 GB",
        flops: 312e12,
        bandwidth: 2.039e12,
        memory: 80_000_000_000,
        launch: 5e-6,
        reads_pages: true,
    },
    DeviceModel {
        name: "4090",
        title: "NVIDIA GeForce RTX 4090, 24 GB",
        flops: 165e12,
        bandwidth: 1.008e12,
        memory: 24_000_000_000,
        launch: 5e-6,
        reads_pages: true,
    },
    DeviceModel {
        name: "m3",
        title: "Apple M3 Max, 40 cores, 128 GB",
        flops: 14.2e12,
        bandwidth: 400e9,
        memory: 96_000_000_000,
        launch: 10e-6,
        reads_pages: false,
    },
    DeviceModel {
        name: "h200",
        title: "NVIDIA H200 SXM, 141 GB",
        flops: 989e12,
        bandwidth: 4.8e12,
        memory: 141_000_000_000,
        launch: 5e-6,
        reads_pages: true,
    },
    DeviceModel {
        name: "l40s",
        title: "NVIDIA L40S, 48 GB",
        flops: 362e12,
        bandwidth: 864e9,
        memory: 48_000_000_000,
        launch: 5e-6,
        reads_pages: true,
    },
    DeviceModel {
        name: "a10",
        title: "NVIDIA A10, 24 GB",
        flops: 125e12,
        bandwidth: 600e9,
        memory: 24_000_000_000,
        launch: 5e-6,
        reads_pages: true,
    },
    DeviceModel {
        name: "l4",
        title: "NVIDIA L4, 24 GB",
        flops: 121e12,
        bandwidth: 300e9,
        memory: 24_000_000_000,
        launch: 5e-6,
        reads_pages: true,
    },
];

impl FromStr for DeviceModel {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let found = DEVICE_MODELS.iter().find(|model| model.name == text);
        found.copied().ok_or_else(|| {
            let names: Vec<_> = DEVICE_MODELS.iter().map(|model| model.name).collect();
            format!("{text:?} is no device with a data sheet: {} are", names.join(", "))
        })
    }
}
