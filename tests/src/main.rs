//! `bulkhead-testbed`: brings up a private containerd and plays the cases on it.
#![forbid(unsafe_code)]

use std::process::ExitCode;

fn main() -> ExitCode {
    bulkhead_tests::main()
}
