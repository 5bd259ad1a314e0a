//! The phases of a VM's boot, which the shim logs in one line.

use anyhow::{Context, Result};

use super::stats::Samples;
use crate::client::stage::Stage;

/// The phases in their order, and the words of the log before each time.
const PHASES: [(&str, &str); 11] = [
    ("host preparation", "host preparation "),
    ("VMM process started", "VMM process "),
    ("virtiofsd and share", "share "),
    ("taps made", "taps "),
    ("VMM start (those three side by side)", "VMM start "),
    ("VM started", "VM started "),
    ("network connected (beside it)", "network beside it "),
    ("kernel to agent", "kernel to agent "),
    ("configure", "configure "),
    ("of it the guest's part", GUESTS),
    ("all of it", WHOLE),
];

/// The phases of the line after it: the Pod's sandbox container.
const FIRST: [(&str, &str); 2] =
    [("first container", MADE), ("of its making the guest's part", GUESTS)];

/// Words of the log that other code refers to.
const WHOLE: &str = "in all ";
const MADE: &str = "first container ";
/// The guest's own part of the phase before it.
const GUESTS: &str = "the guest's part ";

/// The part of the host and the agent: all but the guest's kernel.
const OURS: &str = "all but kernel to agent (aim: ≤ 40 without emulation)";

/// The same without the guest, which alone is emulated where there is no KVM.
const HOSTS: &str = "of it outside the guest";

/// Adds the phases of the boot of Pod `pod` to `into`, in milliseconds; the log had `offset` bytes
/// when it began.
pub(super) fn measure(stage: &Stage, pod: &str, offset: u64, into: &mut Samples) -> Result<()> {
    let log = stage.node.log_since(offset);
    let line = |words: &str| {
        let found = log.lines().find(|line| line.contains(words) && line.contains(pod));
        found.with_context(|| format!("the log has no {words:?} of {pod}"))
    };
    let boot = line(WHOLE)?;
    let made = line(MADE)?;
    let column = stage.handler.name();
    for (line, rows) in [(boot, &PHASES[..]), (made, &FIRST[..])] {
        for (row, words) in rows {
            into.add(row, column, phase(line, words)?);
        }
    }
    let ours = phase(boot, WHOLE)? - phase(boot, "kernel to agent ")? + phase(made, MADE)?;
    into.add(OURS, column, ours);
    into.add(HOSTS, column, ours - phase(boot, GUESTS)? - phase(made, GUESTS)?);
    Ok(())
}

fn phase(line: &str, words: &str) -> Result<f64> {
    millis(line, words).with_context(|| format!("no {words:?} in {line:?}"))
}

/// The number after `words`.
fn millis(line: &str, words: &str) -> Option<f64> {
    let (_, rest) = line.split_once(words)?;
    rest.split_once(" ms")?.0.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_phase_is_read() {
        let line = "time=\"2026\" level=info msg=\"boot: host preparation 2.5 ms, VMM start 142.4 ms \
            (VMM process 120.0 ms, share 30.5 ms, taps 1.1 ms), VM started 0.9 ms (network \
            beside it 9.1 ms), kernel to agent 3161.1 ms (by the guest's clock 2651.2 ms), \
            configure 111.2 ms (the guest's part 101.5 ms), in all 3415.7 ms\" id=8f7f";
        let found: Vec<_> = PHASES.iter().map(|(_, words)| millis(line, words)).collect();
        let wanted = [2.5, 120.0, 30.5, 1.1, 142.4, 0.9, 9.1, 3161.1, 111.2, 101.5, 3415.7];
        assert_eq!(found, wanted.map(Some));
        assert_eq!(millis(line, "nothing "), None);
    }
}
