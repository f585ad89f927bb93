//! Energy of the processor by its own counters (RAPL), energy and memory of NVIDIA devices by nvidia-smi, where these
//! can be read.

use std::collections::BTreeMap;
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
        let host = told(joules, "RAPL, all processor packages");
        let (joules, bytes) = match self.devices {
            Ok(devices) => devices.end(),
            Err(reason) => (Err(reason.clone()), Err(reason)),
        };
        Spent {
            host,
            device: told(joules, "nvidia-smi, power by time, all devices"),
            device_bytes: told(bytes, "nvidia-smi, most in use on all devices together"),
        }
    }
}

fn told(value: Result<f64, String>, source: &str) -> Told {
    match value {
        Ok(value) => Told { value: Some(value), source: source.to_owned() },
        Err(reason) => Told { value: None, source: format!("not readable: {reason}") },
    }
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

/// nvidia-smi, asked again and again. Ends when dropped.
struct Devices {
    child: Child,
    reader: Option<JoinHandle<Meter>>,
}

impl Devices {
    fn watch(program: &str) -> Result<Self, String> {
        let query = ["--query-gpu=index,power.draw,memory.used", "--format=csv,noheader,nounits", "--loop-ms"];
        let child = Command::new(program)
            .args(query)
            .arg(LOOK.to_string())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn();
        let child = child.map_err(|error| format!("{program}: {error}"))?;
        let mut devices = Self { child, reader: None };
        let Some(output) = devices.child.stdout.take() else { return Err(format!("{program}: no output")) };
        let begun = Instant::now();
        devices.reader = Some(std::thread::spawn(move || {
            let mut meter = Meter::default();
            for line in BufReader::new(output).lines().map_while(Result::ok) {
                meter.line(&line, begun.elapsed().as_secs_f64());
            }
            meter
        }));
        Ok(devices)
    }

    /// Joules, and bytes.
    fn end(mut self) -> (Result<f64, String>, Result<f64, String>) {
        self.kill();
        let meter = self.reader.take().and_then(|reader| reader.join().ok()).unwrap_or_default();
        let none = |what: &str| format!("nvidia-smi told no {what} of a device");
        (meter.joules().ok_or_else(|| none("power")), meter.bytes().ok_or_else(|| none("memory")))
    }

    fn kill(&mut self) {
        // Gone already is as good.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for Devices {
    fn drop(&mut self) {
        self.kill();
    }
}

/// What the lines of nvidia-smi come to: one for each device, again and again.
#[derive(Debug, Default)]
struct Meter {
    devices: BTreeMap<u32, Device>,
    /// Most that all devices together had in use, in MiB.
    most: Option<f64>,
}

/// A device, as it was last seen.
#[derive(Debug, Default)]
struct Device {
    /// Seconds since the measurement began.
    at: f64,
    joules: Option<f64>,
    used: Option<f64>,
}

impl Meter {
    /// A line `index, watts, MiB`, read so many seconds after the beginning. What a device doesn't tell is no number.
    fn line(&mut self, line: &str, at: f64) {
        let mut fields = line.split(',').map(str::trim);
        let Some(index) = fields.next().and_then(|index| index.parse().ok()) else { return };
        let mut number = || fields.next().and_then(|field| field.parse::<f64>().ok()).filter(|n| n.is_finite());
        let (power, used) = (number(), number());
        let device = self.devices.entry(index).or_default();
        if let Some(power) = power {
            *device.joules.get_or_insert(0.0) += power * (at - device.at);
        }
        device.at = at;
        device.used = used.or(device.used);
        let together = self.devices.values().filter_map(|device| device.used).reduce(|a, b| a + b);
        self.most = together.into_iter().chain(self.most).reduce(f64::max);
    }

    /// Energy of all devices that tell it.
    fn joules(&self) -> Option<f64> {
        self.devices.values().filter_map(|device| device.joules).reduce(|a, b| a + b)
    }

    fn bytes(&self) -> Option<f64> {
        self.most.map(|most| most * f64::from(1 << 20))
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
    fn devices_are_added_up() {
        let mut meter = Meter::default();
        for (at, line) in [
            (1.0, "0, 100.00, 1000"),
            (1.0, "1, 200.00, 500"),
            (2.0, "0, 300.00, 700"),
            (2.0, "1, 200.00, 900"),
            (2.5, "no line of a device"),
            (4.0, "0, 100.00, 600"),
            (4.0, "1, [N/A], 600"),
        ] {
            meter.line(line, at);
        }
        // 100 + 300 + 2 * 100 of the first, 200 + 200 of the second.
        assert_eq!(meter.joules(), Some(1000.0));
        assert_eq!(meter.bytes(), Some(1600.0 * f64::from(1 << 20)));
        let mut silent = Meter::default();
        silent.line("0, [N/A], [N/A]", 1.0);
        assert_eq!((silent.joules(), silent.bytes(), Meter::default().bytes()), (None, None, None));
    }

    /// A program that stands for nvidia-smi is ended also where nobody asks what it told.
    #[test]
    #[cfg(target_os = "linux")]
    fn nothing_goes_on_after_it() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("smi");
        fs::write(&path, "#!/bin/sh\necho '0, 50.0, 3'\nexec sleep 600\n").unwrap();
        let executable = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        fs::set_permissions(&path, executable).unwrap();
        let devices = loop {
            match Devices::watch(path.to_str().unwrap()) {
                // Another test may be starting a program, which has the file open for a moment.
                Err(error) if error.contains("busy") => continue,
                devices => break devices.unwrap(),
            }
        };
        let process = format!("/proc/{}", devices.child.id());
        assert!(Path::new(&process).exists());
        drop(devices);
        assert!(!Path::new(&process).exists());
    }

    #[test]
    fn what_is_not_there_says_so() {
        assert!(packages(Path::new("/nowhere")).err().unwrap().contains("/nowhere"));
        assert!(Devices::watch("no-such-program").err().unwrap().starts_with("no-such-program: "));
    }
}
