//! The shim's log: lines in logfmt to the `log` fifo in the bundle, which containerd copies to its
//! own log. Every line names the Pod, and in a call the call's container and exec.

use std::fmt::{self, Write as _};
use std::fs::File;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::time::SystemTime;

use nix::fcntl::OFlag;
use sandbox_core::{Bundle, Id};
use tracing::field::{Field, Visit};
use tracing::level_filters::LevelFilter;
use tracing::span::{Attributes, Record};
use tracing::{Event, Subscriber};
use tracing_log::LogTracer;
use tracing_subscriber::layer::{Context, Layer, SubscriberExt};
use tracing_subscriber::registry::{LookupSpan, Registry};

/// Lines longer than this are cut: a write of up to 4096 bytes to a fifo is never torn (pipe(7)).
const LINE_MAX: usize = 4000;

/// The annotations in which CRI names the Pod.
const POD_NAMESPACE: &str = "io.kubernetes.cri.sandbox-namespace";
const POD_NAME: &str = "io.kubernetes.cri.sandbox-name";

/// Writes events as lines.
struct Logfmt {
    fifo: File,
    /// The fields of every line: the shim's id, the handler's backend, the Pod.
    pod: String,
}

/// The fields of a span, as they stand on a line.
struct Fields(String);

/// Starts to log. Without a fifo (containerd makes it) there is nowhere to log to. `backend` is
/// `None` when the bundle's record of its handler cannot be read.
pub(crate) fn init(bundle: &Path, id: &Id, backend: Option<&str>, debug: bool) {
    // Both ends: containerd may be away for a while, and its absence must not fail a write.
    let fifo = File::options()
        .read(true)
        .write(true)
        .custom_flags(OFlag::O_NONBLOCK.bits())
        .open(bundle.join("log"));
    let Ok(fifo) = fifo else { return };
    let level = if debug { LevelFilter::DEBUG } else { LevelFilter::INFO };
    let layer = Logfmt { fifo, pod: pod(bundle, id, backend) };
    let subscriber = Registry::default().with(level).with(layer);
    if tracing::subscriber::set_global_default(subscriber).is_err() {
        return;
    }
    // Libraries log by the crate `log`.
    let library = if debug { log::LevelFilter::Debug } else { log::LevelFilter::Info };
    if let Err(error) = LogTracer::builder().with_max_level(library).init() {
        tracing::warn!("what libraries log is not shown: {error}");
    }
    std::panic::set_hook(Box::new(|panic| tracing::error!("{panic}")));
}

/// The fields that name the Pod. A bundle that cannot be read is reported by what needs it.
fn pod(bundle: &Path, id: &Id, backend: Option<&str>) -> String {
    let mut fields = String::new();
    append(&mut fields, "id", &id);
    append(&mut fields, "runtime", &"io.containerd.bulkhead.v2");
    if let Some(backend) = backend {
        append(&mut fields, "handler", &backend);
    }
    if let Ok(config) = Bundle::load(bundle) {
        for (name, annotation) in [("namespace", POD_NAMESPACE), ("pod", POD_NAME)] {
            if let Some(value) = config.annotation(annotation) {
                append(&mut fields, name, &value);
            }
        }
    }
    fields
}

impl<S: Subscriber + for<'a> LookupSpan<'a>> Layer<S> for Logfmt {
    fn on_new_span(&self, attributes: &Attributes<'_>, id: &tracing::Id, context: Context<'_, S>) {
        let mut line = Line::default();
        attributes.record(&mut line);
        if let Some(span) = context.span(id) {
            span.extensions_mut().insert(Fields(line.fields));
        }
    }

    fn on_record(&self, id: &tracing::Id, values: &Record<'_>, context: Context<'_, S>) {
        let mut line = Line::default();
        values.record(&mut line);
        if let Some(span) = context.span(id) {
            if let Some(fields) = span.extensions_mut().get_mut::<Fields>() {
                fields.0.push_str(&line.fields);
            }
        }
    }

    fn on_event(&self, event: &Event<'_>, context: Context<'_, S>) {
        let mut line = Line::default();
        event.record(&mut line);
        for span in context.event_scope(event).into_iter().flatten() {
            if let Some(fields) = span.extensions().get::<Fields>() {
                line.fields.push_str(&fields.0);
            }
        }
        line.fields.push_str(&self.pod);
        let text = line.render(SystemTime::now(), event.metadata().level().as_str());
        // A full fifo has no reader: a log must not stop the Pod.
        let _ = (&self.fifo).write(text.as_bytes());
    }
}

/// A line that is being put together.
#[derive(Default)]
struct Line {
    message: String,
    /// Each with a space before it.
    fields: String,
}

impl Line {
    fn render(&self, at: SystemTime, level: &str) -> String {
        let time = humantime::format_rfc3339_micros(at);
        let room = LINE_MAX.saturating_sub(self.fields.len());
        // Escapes take room too: they are counted before the text is cut.
        let mut message = format!("{:?}", self.message);
        if message.len() > room {
            let end = (0..=room).rev().find(|at| message.is_char_boundary(*at)).unwrap_or(0);
            message.truncate(end);
            // Not in the middle of an escape.
            while message.ends_with('\\') {
                message.pop();
            }
            message.push('"');
        }
        let mut line =
            format!("time=\"{time}\" level={} msg={message}{}", level.to_lowercase(), self.fields);
        if line.len() > LINE_MAX {
            let end = (0..=LINE_MAX).rev().find(|at| line.is_char_boundary(*at)).unwrap_or(0);
            line.truncate(end);
        }
        line.push('\n');
        line
    }
}

impl Visit for Line {
    fn record_str(&mut self, field: &Field, value: &str) {
        self.record_debug(field, &format_args!("{value}"));
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        match field.name() {
            // Writing to a string cannot fail.
            "message" => drop(write!(self.message, "{value:?}")),
            // Where a library's record comes from.
            name if name.starts_with("log.") => {}
            name => append(&mut self.fields, name, &format_args!("{value:?}")),
        }
    }
}

/// Adds ` name=value`, quoted where logfmt asks for it.
fn append(fields: &mut String, name: &str, value: &dyn fmt::Display) {
    let text = value.to_string();
    let plain = |c: char| c.is_ascii_graphic() && !matches!(c, '"' | '=' | '\\');
    // Writing to a string cannot fail.
    let _ = if !text.is_empty() && text.chars().all(plain) {
        write!(fields, " {name}={text}")
    } else {
        write!(fields, " {name}={text:?}")
    };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_logfmt() {
        let mut line = Line { message: "a \"b\"\nc".to_owned(), fields: String::new() };
        append(&mut line.fields, "container", &"abc");
        append(&mut line.fields, "program", &"a b=c");
        assert_eq!(
            line.render(SystemTime::UNIX_EPOCH, "WARN"),
            "time=\"1970-01-01T00:00:00.000000Z\" level=warn msg=\"a \\\"b\\\"\\nc\" \
             container=abc program=\"a b=c\"\n"
        );
    }

    #[test]
    fn lines_fit_into_one_write() {
        for text in ["ä".repeat(9000), "\n".repeat(9000), "x".repeat(9000)] {
            let mut line = Line { message: text, fields: String::new() };
            append(&mut line.fields, "id", &"abc");
            let text = line.render(SystemTime::UNIX_EPOCH, "WARN");
            assert!(text.len() <= LINE_MAX + 1 && text.ends_with('\n'), "{}", text.len());
        }
        let fields = format!(" a={}", "y".repeat(9000));
        let line = Line { message: "m".to_owned(), fields };
        assert!(line.render(SystemTime::UNIX_EPOCH, "WARN").len() <= LINE_MAX + 1);
    }

    #[test]
    fn every_line_names_its_call_and_its_pod() {
        let dir = tempfile::tempdir().unwrap();
        let config = serde_json::json!({
            "ociVersion": "1.1.0",
            "annotations": {POD_NAMESPACE: "default", POD_NAME: "web-0"},
        });
        std::fs::write(dir.path().join("config.json"), config.to_string()).unwrap();
        let path = dir.path().join("lines");
        let fifo = File::create(&path).unwrap();
        let layer = Logfmt { fifo, pod: pod(dir.path(), &Id::new("abc").unwrap(), Some("gvisor")) };
        let subscriber = Registry::default().with(LevelFilter::INFO).with(layer);
        tracing::subscriber::with_default(subscriber, || {
            let span = tracing::info_span!("call", verb = "start", exec = tracing::field::Empty);
            let _entered = span.enter();
            span.record("exec", "e1");
            tracing::debug!("not shown");
            tracing::warn!(container = %"c1", "it failed: {}", 7);
        });
        let text = std::fs::read_to_string(path).unwrap();
        let (_, line) = text.split_once(" level=").unwrap();
        assert_eq!(
            line,
            "warn msg=\"it failed: 7\" container=c1 verb=start exec=e1 id=abc \
             runtime=io.containerd.bulkhead.v2 handler=gvisor namespace=default pod=web-0\n"
        );
    }
}
