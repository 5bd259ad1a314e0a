//! This program's own output.

use std::io::{self, Write as _};

/// Prints what a command wrote to its two streams.
pub(crate) fn print(stdout: &[u8], stderr: &[u8]) -> io::Result<()> {
    let mut out = io::stdout().lock();
    out.write_all(stdout).and_then(|()| out.flush())?;
    io::stderr().lock().write_all(stderr)
}
