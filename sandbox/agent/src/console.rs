//! Lines on the guest's console, by way of the kernel's log, and the machine's end.

use std::fs::OpenOptions;
use std::io::Write;
use std::sync::atomic::{AtomicBool, Ordering};

use nix::sys::reboot::{RebootMode, reboot};

static DEBUG: AtomicBool = AtomicBool::new(false);

/// A line of the kernel's log holds no more.
const LINE_MAX: usize = 900;

/// Whether debug messages are wanted.
pub(crate) fn set_debug(wanted: bool) {
    DEBUG.store(wanted, Ordering::Relaxed);
}

/// What an operator must see, even where the console is quiet.
pub(crate) fn error(message: &str) {
    write(3, message);
}

/// What is worth a line.
pub(crate) fn info(message: &str) {
    write(6, message);
}

/// A line when the host asked for them.
pub(crate) fn debug(message: impl FnOnce() -> String) {
    if DEBUG.load(Ordering::Relaxed) {
        write(3, &message());
    }
}

/// Nothing is left to tell when the kernel's log cannot be written to.
fn write(level: u8, message: &str) {
    let text: String = message.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    let end = (0..=text.len().min(LINE_MAX)).rev().find(|at| text.is_char_boundary(*at));
    let line = format!("<{level}>bulkhead-agent: {}\n", &text[..end.unwrap_or(0)]);
    let log = OpenOptions::new().write(true).open("/dev/kmsg");
    let written = log.and_then(|mut log| log.write_all(line.as_bytes()));
    if written.is_err() {
        if let Ok(mut console) = OpenOptions::new().write(true).open("/dev/console") {
            let _ = console.write_all(line.as_bytes());
        }
    }
}

/// PID 1 must not die: the kernel would only panic, without saying why.
pub(crate) fn power_off_on_panic() {
    if std::process::id() != 1 {
        return;
    }
    std::panic::set_hook(Box::new(|panic| {
        error(&format!("panic: {panic}"));
        power_off();
    }));
}

/// Ends the machine. Returns only where the kernel refuses every way.
pub(crate) fn power_off() {
    nix::unistd::sync();
    for mode in [RebootMode::RB_POWER_OFF, RebootMode::RB_AUTOBOOT] {
        // It returns only when it failed.
        let Err(refused) = reboot(mode);
        error(&format!("the kernel refuses to end ({mode:?}): {refused}"));
    }
}
