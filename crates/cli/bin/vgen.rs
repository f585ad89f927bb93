//! The program `vgen`.

fn main() -> std::process::ExitCode {
    vgen_cli::vgen(std::env::args_os())
}
