//! The machine that a bench runs on, by what it is and never by its name.

use super::report::Machine;

/// What is known of this machine.
pub fn machine() -> Machine {
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let field = |text: &str, name: &str| {
        text.lines().find_map(|line| {
            let (key, value) = line.split_once(':')?;
            (key.trim() == name).then(|| value.trim().to_owned())
        })
    };
    let cpu = read("/proc/cpuinfo");
    let memory = field(&read("/proc/meminfo"), "MemTotal");
    Machine {
        processor: field(&cpu, "model name").unwrap_or_else(|| std::env::consts::ARCH.to_owned()),
        cores: std::thread::available_parallelism().map_or(1, usize::from),
        features: features(&field(&cpu, "flags").or_else(|| field(&cpu, "Features")).unwrap_or_default()),
        memory: memory.and_then(|kib| kib.trim_end_matches(" kB").parse::<u64>().ok()).map(|kib| kib << 10),
        system: format!("{} {}", std::env::consts::OS, std::env::consts::ARCH),
    }
}

fn features(flags: &str) -> Vec<String> {
    const MATTER: [&str; 9] =
        ["avx2", "fma", "avx512f", "avx512_vnni", "avx512_bf16", "amx_tile", "asimd", "asimddp", "sve"];
    let has = |feature: &&str| flags.split_whitespace().any(|flag| flag == *feature);
    MATTER.into_iter().filter(has).map(str::to_owned).collect()
}
