//! The program `vgen-local`.

fn main() -> std::process::ExitCode {
    vgen_cli::vgen_local(std::env::args_os())
}
