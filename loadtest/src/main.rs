//! The `loadtest` command; [`loadtest::cli`] has it all.

use std::process::ExitCode;

fn main() -> ExitCode {
    loadtest::cli::main()
}
