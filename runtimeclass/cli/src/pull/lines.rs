//! `--verbose`: what our own crates log, on the standard error.

use std::fmt::{self, Write as _};

use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Metadata, Subscriber};

/// Prints the events of our own crates; has no spans.
struct Lines;

fn is_ours(target: &str) -> bool {
    target.starts_with("sandbox_")
}

impl Subscriber for Lines {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        !metadata.is_span()
            && *metadata.level() <= tracing::Level::DEBUG
            && is_ours(metadata.target())
    }

    fn event(&self, event: &Event<'_>) {
        let mut line = Line::default();
        event.record(&mut line);
        eprintln!("bulkhead: {}{}", line.message, line.fields);
    }

    fn new_span(&self, _attributes: &Attributes<'_>) -> Id {
        Id::from_u64(1)
    }

    fn record(&self, _span: &Id, _values: &Record<'_>) {}

    fn record_follows_from(&self, _span: &Id, _follows: &Id) {}

    fn enter(&self, _span: &Id) {}

    fn exit(&self, _span: &Id) {}
}

/// One event as text: the message, then ` name=value` for each field.
#[derive(Default)]
struct Line {
    message: String,
    fields: String,
}

impl Visit for Line {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        // Writing to a String cannot fail.
        let _infallible = match field.name() {
            "message" => write!(self.message, "{value:?}"),
            name => write!(self.fields, " {name}={value:?}"),
        };
    }
}

/// The same for crates that use `log`.
impl log::Log for Lines {
    fn enabled(&self, metadata: &log::Metadata<'_>) -> bool {
        is_ours(metadata.target())
    }

    fn log(&self, record: &log::Record<'_>) {
        if log::Log::enabled(self, record.metadata()) {
            eprintln!("bulkhead: {}", record.args());
        }
    }

    fn flush(&self) {}
}

/// Prints every step from now on.
pub(super) fn print_steps() {
    static LINES: Lines = Lines;
    // Fails only if a test has set another one.
    let _set = tracing::subscriber::set_global_default(Lines);
    if log::set_logger(&LINES).is_ok() {
        log::set_max_level(log::LevelFilter::Debug);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_events_of_our_crates_are_printed() {
        tracing::subscriber::with_default(Lines, || {
            assert!(tracing::enabled!(target: "sandbox_image::pull", tracing::Level::DEBUG));
            assert!(!tracing::enabled!(target: "sandbox_image::pull", tracing::Level::TRACE));
            assert!(!tracing::enabled!(target: "hyper", tracing::Level::ERROR));
        });
    }
}
