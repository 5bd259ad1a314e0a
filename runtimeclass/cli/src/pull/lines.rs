//! `--verbose`: what our own crates log, on the standard error.

use log::{LevelFilter, Log, Metadata, Record};

#[derive(Debug)]
struct Lines;

impl Log for Lines {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.target().starts_with("sandbox_")
    }

    fn log(&self, record: &Record<'_>) {
        if self.enabled(record.metadata()) {
            eprintln!("bulkhead: {}", record.args());
        }
    }

    fn flush(&self) {}
}

/// From now on every step is told.
pub(super) fn on() {
    static LINES: Lines = Lines;
    // Another logger can only be a test's.
    if log::set_logger(&LINES).is_ok() {
        log::set_max_level(LevelFilter::Debug);
    }
}
