//! The binary: parse, run, exit code.
fn main() -> std::process::ExitCode {
    lowkey::cli::main(std::env::args_os()).into()
}
