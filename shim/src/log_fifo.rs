//! The shim's log: lines in logfmt to the `log` fifo in the bundle, which containerd copies to its
//! own log.

use std::fs::File;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::time::SystemTime;

use log::{LevelFilter, Log, Metadata, Record};
use nix::fcntl::OFlag;

/// Lines longer than this are cut: a write of up to 4096 bytes to a fifo is never torn (pipe(7)).
const LINE_MAX: usize = 4000;

struct LogFifo {
    fifo: File,
    id: String,
}

/// Starts to log. Without a fifo (containerd makes it) there is nowhere to log to.
pub(crate) fn init(bundle: &Path, id: &str, debug: bool) {
    // Both ends: containerd may be away for a while, and its absence must not fail a write.
    let fifo = File::options()
        .read(true)
        .write(true)
        .custom_flags(OFlag::O_NONBLOCK.bits())
        .open(bundle.join("log"));
    let Ok(fifo) = fifo else { return };
    let level = if debug { LevelFilter::Debug } else { LevelFilter::Info };
    let logger = LogFifo { fifo, id: id.to_owned() };
    if log::set_boxed_logger(Box::new(logger)).is_ok() {
        log::set_max_level(level);
        std::panic::set_hook(Box::new(|panic| log::error!("{panic}")));
    }
}

impl Log for LogFifo {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.level() <= log::max_level()
    }

    fn log(&self, record: &Record<'_>) {
        if !self.enabled(record.metadata()) {
            return;
        }
        let line = line(SystemTime::now(), record.level().as_str(), &self.id, record.args());
        // A full fifo means that nobody reads: a log must not stop the Pod.
        let _ = (&self.fifo).write(line.as_bytes());
    }

    fn flush(&self) {}
}

fn line(at: SystemTime, level: &str, id: &str, message: &dyn std::fmt::Display) -> String {
    let time = humantime::format_rfc3339_micros(at);
    let mut text = message.to_string();
    if text.len() > LINE_MAX {
        let end = (0..=LINE_MAX).rev().find(|at| text.is_char_boundary(*at)).unwrap_or(0);
        text.truncate(end);
    }
    // Debug's quoting escapes quotes and line ends, which is what logfmt asks for.
    let level = level.to_lowercase();
    format!(
        "time=\"{time}\" level={level} msg={text:?} id={id} runtime=io.containerd.bulkhead.v2\n"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_logfmt() {
        let text = line(SystemTime::UNIX_EPOCH, "WARN", "abc", &"a \"b\"\nc");
        assert_eq!(
            text,
            "time=\"1970-01-01T00:00:00.000000Z\" level=warn msg=\"a \\\"b\\\"\\nc\" id=abc \
             runtime=io.containerd.bulkhead.v2\n"
        );
        assert!(line(SystemTime::UNIX_EPOCH, "WARN", "abc", &"ä".repeat(9000)).len() < 4200);
    }
}
