//! Energy of the processor by its own counters (RAPL), energy and memory of NVIDIA devices by nvidia-smi, where these
//! can be read.

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread::JoinHandle;
use std::time::Instant;

use super::memory::Told;

const RAPL: &str = "/sys/class/powercap";

/// Milliseconds between two looks at a device.
const LOOK: u32 = 100;

/// A counter of a processor package, in microjoules; it starts again at `range`.
struct Package {
    file: PathBuf,
    range: u64,
    at_begin: u64,
}

/// A measurement that goes on.
pub(super) struct Energy {
    packages: Result<Vec<Package>, String>,
    devices: Result<Devices, String>,
}

/// What a measurement came to.
pub(super) struct Spent {
    /// Joules of the processor packages.
    pub(super) host: Told,
    /// Joules of the NVIDIA devices.
    pub(super) device: Told,
    /// Most bytes in use on NVIDIA devices.
    pub(super) device_bytes: Told,
}

impl Energy {
    pub(super) fn begin() -> Self {
        Self { packages: packages(Path::new(RAPL)), devices: Devices::watch("nvidia-smi") }
    }

    pub(super) fn end(self) -> Spent {
        let joules = self.packages.and_then(|packages| packages.iter().map(Package::joules).sum::<Result<f64, _>>());
        let host = match joules {
            Ok(joules) => Told { value: Some(joules), source: "RAPL, all processor packages".to_owned() },
            Err(reason) => not_readable(reason),
        };
        match self.devices.and_then(Devices::end) {
            Ok((joules, bytes)) => Spent {
                host,
                device: Told { value: Some(joules), source: "nvidia-smi, power by time".to_owned() },
                device_bytes: Told { value: Some(bytes), source: "nvidia-smi, most in use".to_owned() },
            },
            Err(reason) => Spent { host, device: not_readable(reason.clone()), device_bytes: not_readable(reason) },
        }
    }
}

fn not_readable(reason: String) -> Told {
    Told { value: None, source: format!("not readable: {reason}") }
}

fn packages(folder: &Path) -> Result<Vec<Package>, String> {
    let entries = fs::read_dir(folder).map_err(|error| format!("{}: {error}", folder.display()))?;
    let mut packages = Vec::new();
    for path in entries.flatten().map(|entry| entry.path()) {
        let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        // intel-rapl:0 is a package (AMD's too), intel-rapl:0:0 a part of it.
        if name.strip_prefix("intel-rapl:").is_none_or(|number| number.contains(':')) {
            continue;
        }
        let file = path.join("energy_uj");
        let range = number(&path.join("max_energy_range_uj")).unwrap_or(u64::MAX);
        packages.push(Package { at_begin: number(&file)?, file, range });
    }
    if packages.is_empty() { Err(format!("{} names no processor package", folder.display())) } else { Ok(packages) }
}

fn number(file: &Path) -> Result<u64, String> {
    let text = fs::read_to_string(file).map_err(|error| format!("{}: {error}", file.display()))?;
    text.trim().parse().map_err(|_| format!("{}: no number", file.display()))
}

impl Package {
    fn joules(&self) -> Result<f64, String> {
        let now = number(&self.file)?;
        let spent = if now >= self.at_begin { now - self.at_begin } else { now + (self.range - self.at_begin) };
        Ok(spent as f64 / 1e6)
    }
}

/// nvidia-smi, asked again and again.
struct Devices {
    child: Child,
    reader: JoinHandle<(f64, f64)>,
}

impl Devices {
    fn watch(program: &str) -> Result<Self, String> {
        let query = ["--query-gpu=power.draw,memory.used", "--format=csv,noheader,nounits", "--loop-ms"];
        let child = Command::new(program)
            .args(query)
            .arg(LOOK.to_string())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn();
        let mut child = child.map_err(|error| format!("{program}: {error}"))?;
        let Some(output) = child.stdout.take() else { return Err(format!("{program}: no output")) };
        let reader = std::thread::spawn(move || {
            let (mut joules, mut most, mut last) = (0.0, f64::NAN, Instant::now());
            for line in BufReader::new(output).lines().map_while(Result::ok) {
                if let Some((power, used)) = line.split_once(',')
                    && let (Ok(power), Ok(used)) = (power.trim().parse::<f64>(), used.trim().parse::<f64>())
                {
                    joules += power * last.elapsed().as_secs_f64();
                    last = Instant::now();
                    most = used.max(most);
                }
            }
            (joules, most)
        });
        Ok(Self { child, reader })
    }

    /// Joules, and bytes.
    fn end(mut self) -> Result<(f64, f64), String> {
        // Gone already is as good.
        let _ = self.child.kill();
        let _ = self.child.wait();
        match self.reader.join() {
            Ok((joules, most)) if most.is_finite() => Ok((joules, most * f64::from(1 << 20))),
            _ => Err("nvidia-smi told nothing of a device".to_owned()),
        }
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a failed step fails the test")]
mod tests {
    use super::*;

    #[test]
    fn packages_count_once_and_around_their_end() {
        let folder = tempfile::tempdir().unwrap();
        for (name, energy) in [("intel-rapl:0", 900), ("intel-rapl:0:0", 5), ("intel-rapl:1", 100), ("dtpm", 1)] {
            let path = folder.path().join(name);
            fs::create_dir(&path).unwrap();
            fs::write(path.join("energy_uj"), format!("{energy}\n")).unwrap();
            fs::write(path.join("max_energy_range_uj"), "1000\n").unwrap();
        }
        let packages = packages(folder.path()).unwrap();
        assert_eq!(packages.len(), 2);
        fs::write(folder.path().join("intel-rapl:0/energy_uj"), "150").unwrap();
        fs::write(folder.path().join("intel-rapl:1/energy_uj"), "400").unwrap();
        let joules: f64 = packages.iter().map(|package| package.joules().unwrap()).sum();
        assert!((joules - (250.0 + 300.0) / 1e6).abs() < 1e-12);
    }

    #[test]
    fn what_is_not_there_says_so() {
        assert!(packages(Path::new("/nowhere")).err().unwrap().contains("/nowhere"));
        assert!(Devices::watch("no-such-program").err().unwrap().starts_with("no-such-program: "));
    }
}
