//! The binary: parse, run, exit code.
use lowkey::mem::confined::Heap;

#[global_allocator]
static HEAP: Heap = Heap;

fn main() -> std::process::ExitCode {
    lowkey::cli::main(std::env::args_os()).into()
}
