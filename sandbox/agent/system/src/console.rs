//! Messages on the guest's console, through the kernel's log, and power-off.

use std::fs::OpenOptions;
use std::io::Write;
use std::sync::atomic::{AtomicBool, Ordering};

use nix::sys::reboot::{RebootMode, reboot};

static DEBUG: AtomicBool = AtomicBool::new(false);

/// Upper bound in bytes on a line of the kernel's log.
const LINE_MAX: usize = 900;

/// Enables or disables debug messages.
pub(crate) fn set_debug(wanted: bool) {
    DEBUG.store(wanted, Ordering::Relaxed);
}

/// Writes an error, which a console with `quiet` shows as well.
pub fn log_error(message: &str) {
    write(3, message);
}

/// Writes an informational message.
pub fn log_info(message: &str) {
    write(6, message);
}

/// Writes a debug message if the host has enabled them.
pub fn log_debug(message: impl FnOnce() -> String) {
    if DEBUG.load(Ordering::Relaxed) {
        write(3, &message());
    }
}

/// Falls back to the console itself; if that fails too, the message is lost.
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

/// Logs panics and powers off: if PID 1 exits, the kernel panics without a reason.
pub fn power_off_on_panic() {
    if std::process::id() != 1 {
        return;
    }
    std::panic::set_hook(Box::new(|panic| {
        log_error(&format!("panic: {panic}"));
        power_off();
    }));
}

/// Powers the VM off. Returns only if the kernel refuses.
pub fn power_off() {
    nix::unistd::sync();
    for mode in [RebootMode::RB_POWER_OFF, RebootMode::RB_AUTOBOOT] {
        let Err(errno) = reboot(mode);
        log_error(&format!("the kernel refuses to power off ({mode:?}): {errno}"));
    }
}
