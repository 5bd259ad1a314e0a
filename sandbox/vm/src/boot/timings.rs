//! How long each phase of a boot takes, for one line of the log.

use std::time::{Duration, Instant};

/// How long each phase took.
#[derive(Debug)]
pub(super) struct Timings {
    pub(super) begun: Instant,
    /// VMM, share and taps, which are made side by side.
    pub(super) sides: [Duration; 3],
    pub(super) launched: Duration,
    /// The network's connection, beside the VM's start.
    pub(super) network: Duration,
    pub(super) booted: Duration,
    pub(super) connected: Duration,
}

pub(super) async fn timed<T>(work: impl Future<Output = T>) -> (T, Duration) {
    let begun = Instant::now();
    (work.await, begun.elapsed())
}

/// Logs one line with every phase, in milliseconds. The agent started `agent_started` after its
/// kernel, and the guest took `waited` of the configuration.
pub(super) fn report(
    prepared: Duration,
    timings: &Timings,
    whole: Duration,
    agent_started: Duration,
    waited: Duration,
) {
    let ms = |duration: Duration| duration.as_secs_f64() * 1e3;
    tracing::info!(
        "boot: host preparation {:.1} ms, VMM start {:.1} ms (VMM process {:.1} ms, share {:.1} ms, \
         taps {:.1} ms), VM started {:.1} ms (network beside it {:.1} ms), kernel to agent \
         {:.1} ms (by the guest's clock {:.1} ms), configure {:.1} ms (the guest's part {:.1} ms), \
         in all {:.1} ms",
        ms(prepared),
        ms(timings.launched),
        ms(timings.sides[0]),
        ms(timings.sides[1]),
        ms(timings.sides[2]),
        ms(timings.booted.saturating_sub(timings.launched)),
        ms(timings.network),
        ms(timings.connected.saturating_sub(timings.booted)),
        ms(agent_started),
        ms(whole.saturating_sub(timings.connected)),
        ms(waited),
        ms(prepared + whole),
    );
}
