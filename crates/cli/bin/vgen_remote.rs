//! The program `vgen-remote`.

fn main() -> std::process::ExitCode {
    vgen_cli::vgen_remote(std::env::args_os())
}
