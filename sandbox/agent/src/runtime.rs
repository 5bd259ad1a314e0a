//! The runtime process: this binary again, single-threaded, which calls libcontainer.
//!
//! It writes its report to the descriptor that is its first argument, one line of JSON per
//! message: libcontainer's error logs (`log`), and last the new process's PID (`pid`) or the
//! error (`error`).

use std::error::Error as StdError;
use std::fmt::{Debug, Write as _};
use std::fs::{self, File};
use std::io::Write;
use std::mem::ManuallyDrop;
use std::os::fd::FromRawFd;
use std::path::Path;
use std::sync::atomic::{AtomicI32, Ordering};

use libcontainer::capabilities::drop_privileges;
use libcontainer::container::builder::ContainerBuilder;
use libcontainer::oci_spec::runtime::{LinuxCapabilities, LinuxSeccomp, Spec};
use libcontainer::seccomp::initialize_seccomp;
use libcontainer::syscall::syscall::{SyscallType, create_syscall};
use libcontainer::workload::default::get_executor;
use libcontainer::workload::{Executor, ExecutorError, ExecutorValidationError};
use serde_json::{Value, json};
use tracing::field::{Field, Visit};
use tracing::span;

/// The first argument of a runtime process.
pub(crate) const VERB: &str = "container";

/// The descriptor of the report; -1 until it is known.
static REPORT: AtomicI32 = AtomicI32::new(-1);

/// A file beside an exec's process.json with the settings that libcontainer does not apply.
pub(crate) const LATE: &str = "late.json";

type Outcome<T> = Result<T, Box<dyn StdError>>;

/// Runs the call in `arguments` and returns the exit code.
pub(crate) fn run(arguments: Vec<String>) -> i32 {
    let Some((descriptor, arguments)) = arguments.split_first() else { return 2 };
    let Some(descriptor) = descriptor.parse().ok().filter(|fd| *fd > 2) else { return 2 };
    REPORT.store(descriptor, Ordering::Relaxed);
    std::panic::set_hook(Box::new(|panic| report("error", &panic.to_string())));
    // This is the only subscriber that is set.
    let _ = tracing::subscriber::set_global_default(Logs);
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let done = match arguments.as_slice() {
        ["create", id, states, bundle, console] => create(id, states, bundle, console),
        ["exec", id, states, process, console] => exec(id, states, process, console),
        other => Err(format!("unknown runtime call {other:?}").into()),
    };
    match done {
        Ok(pid) => {
            line(&json!({ "pid": pid }));
            0
        }
        Err(error) => {
            report("error", &chain(&*error));
            1
        }
    }
}

fn builder(id: &str, states: &str, console: &str) -> Outcome<ContainerBuilder> {
    let console = Some(console).filter(|console| !console.is_empty());
    let builder = ContainerBuilder::new(id.to_owned(), SyscallType::default());
    Ok(builder.with_root_path(states)?.with_console_socket(console).validate_id()?)
}

fn create(id: &str, states: &str, bundle: &str, console: &str) -> Outcome<i32> {
    let builder = builder(id, states, console)?.as_init(bundle).with_systemd(false);
    let container = builder.build()?;
    let pid = container.pid().ok_or("libcontainer created a container without a process")?;
    Ok(pid.as_raw())
}

fn exec(id: &str, states: &str, process: &str, console: &str) -> Outcome<i32> {
    let late = Path::new(process).with_file_name(LATE);
    let executor = LateExecutor::load(&late)?;
    let builder = builder(id, states, console)?.with_executor(executor).as_tenant();
    let pid = builder.with_detach(true).with_process(Some(process)).build()?;
    Ok(pid.as_raw())
}

/// Loads the seccomp filter, which libcontainer leaves out of execs, right before the program is
/// executed. Where the kernel asks for it, the process has `CAP_SYS_ADMIN` until then; its own
/// capabilities are set after that.
#[derive(Debug, Clone)]
struct LateExecutor {
    seccomp: Option<LinuxSeccomp>,
    capabilities: Option<LinuxCapabilities>,
}

impl LateExecutor {
    fn load(path: &Path) -> Outcome<Self> {
        let mut late: Value = serde_json::from_slice(&fs::read(path)?)?;
        let seccomp = serde_json::from_value(late["seccomp"].take())?;
        let capabilities = serde_json::from_value(late["capabilities"].take())?;
        Ok(Self { seccomp, capabilities })
    }
}

impl Executor for LateExecutor {
    fn exec(&self, spec: &Spec) -> Result<(), ExecutorError> {
        let failed = |error: &dyn StdError| ExecutorError::Other(chain(error));
        if let Some(seccomp) = &self.seccomp {
            initialize_seccomp(seccomp).map_err(|error| failed(&error))?;
        }
        if let Some(capabilities) = &self.capabilities {
            drop_privileges(capabilities, create_syscall().as_ref())
                .map_err(|error| failed(&error))?;
        }
        get_executor().exec(spec)
    }

    fn validate(&self, spec: &Spec) -> Result<(), ExecutorValidationError> {
        get_executor().validate(spec)
    }
}

fn chain(error: &dyn StdError) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        let own = error.to_string();
        // Some of libcontainer's errors already include their source's text.
        if !text.contains(&own) {
            let _ = write!(text, ": {own}");
        }
        source = error.source();
    }
    text
}

fn report(kind: &str, text: &str) {
    line(&json!({ kind: text }));
}

/// Forked processes write here as well; each line is one write, so lines are not interleaved.
fn line(value: &Value) {
    let descriptor = REPORT.load(Ordering::Relaxed);
    // SAFETY: the agent starts runtime processes with this descriptor open, and nothing closes it
    // before the program in the container is executed; `ManuallyDrop` does not close it either.
    let mut report = ManuallyDrop::new(unsafe { File::from_raw_fd(descriptor) });
    // The agent may have closed its end after a timeout.
    let _ = report.write_all(format!("{value}\n").as_bytes());
}

/// Reports libcontainer's error logs: its errors cross from process to process with their
/// outermost text only, and the logs name the cause.
struct Logs;

impl tracing::Subscriber for Logs {
    fn enabled(&self, metadata: &tracing::Metadata<'_>) -> bool {
        *metadata.level() == tracing::Level::ERROR
    }

    fn new_span(&self, _: &span::Attributes<'_>) -> span::Id {
        span::Id::from_u64(1)
    }

    fn record(&self, _: &span::Id, _: &span::Record<'_>) {}

    fn record_follows_from(&self, _: &span::Id, _: &span::Id) {}

    fn event(&self, event: &tracing::Event<'_>) {
        let mut text = Text::default();
        event.record(&mut text);
        report("log", &text.0);
    }

    fn enter(&self, _: &span::Id) {}

    fn exit(&self, _: &span::Id) {}
}

#[derive(Default)]
struct Text(String);

impl Visit for Text {
    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        let separator = if self.0.is_empty() { "" } else { ", " };
        let _ = match field.name() {
            "message" => write!(self.0, "{separator}{value:?}"),
            name => write!(self.0, "{separator}{name} {value:?}"),
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_source_already_in_the_text_is_not_repeated() {
        #[derive(Debug, thiserror::Error)]
        #[error("outer: inner")]
        struct Outer(#[source] std::io::Error);
        assert_eq!(chain(&Outer(std::io::Error::other("inner"))), "outer: inner");
        assert_eq!(chain(&Outer(std::io::Error::other("why"))), "outer: inner: why");
    }
}
