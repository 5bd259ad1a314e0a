//! The guest's clocks.

use std::time::Duration;

use nix::sys::time::TimeSpec;
use nix::time::{ClockId, clock_gettime, clock_settime};

use crate::error::{Doing, Result, invalid};

const NANOS: i64 = 1_000_000_000;

/// Nanoseconds since the kernel started.
pub fn since_boot() -> u64 {
    u64::try_from(read(ClockId::CLOCK_BOOTTIME)).unwrap_or(0)
}

/// Nanoseconds since 1970, UTC.
pub fn now() -> i64 {
    read(ClockId::CLOCK_REALTIME)
}

/// 0 if the kernel lacks the clock, which no supported kernel does.
fn read(clock: ClockId) -> i64 {
    clock_gettime(clock).map_or(0, |t| t.tv_sec().saturating_mul(NANOS).saturating_add(t.tv_nsec()))
}

/// Sets the clock to `ns` nanoseconds since 1970, UTC.
///
/// # Errors
///
/// `InvalidArgument` for a time before 1970; the kernel's refusal.
pub fn set_clock(ns: i64) -> Result<()> {
    let valid = u64::try_from(ns).ok().filter(|ns| *ns > 0);
    let since = valid.ok_or_else(|| invalid(format!("clock_ns {ns} is not after 1970")))?;
    clock_settime(ClockId::CLOCK_REALTIME, TimeSpec::from_duration(Duration::from_nanos(since)))
        .doing(|| format!("setting the clock to {ns} ns since 1970"))
}
