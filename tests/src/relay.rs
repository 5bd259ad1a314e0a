//! Cases in nested VMs. With emulated virtualisation a nested host's kernel panics now and then; the
//! cases that had not been played by then are played in another VM.

use std::collections::VecDeque;

use anyhow::{Result, bail, ensure};

use crate::bed::nested::Outcome;
use crate::runner::Counts;

/// Plays the cases `names` by `run`, which plays cases in a new VM. A case in which two VMs crash has
/// failed.
///
/// # Errors
///
/// Those of `run`, and an exit code that no failed case explains.
pub(crate) fn play(
    names: Vec<String>,
    mut run: impl FnMut(&[String]) -> Result<Outcome>,
) -> Result<Counts> {
    let mut counts = Counts::default();
    let mut left = VecDeque::from(names);
    let mut crashed_in = None;
    while !left.is_empty() {
        let outcome = run(left.make_contiguous())?;
        for line in &outcome.printed {
            let Some((name, count)) = result(line, &mut counts) else { continue };
            *count += 1;
            left.retain(|other| other != name);
        }
        match (outcome.code, left.front()) {
            (Some(0) | None, None) => break,
            (Some(code), Some(name)) => bail!("{name} was not played, and the exit code is {code}"),
            (Some(code), None) => {
                ensure!(counts.failed > 0, "no case failed, and the exit code is {code}");
                break;
            }
            (None, Some(name)) if crashed_in.as_ref() == Some(name) => {
                println!("{name} ... FAILED\n  a second VM crashed in it");
                counts.failed += 1;
                left.pop_front();
            }
            (None, Some(name)) => {
                println!("the nested VM crashed in {name}: another one continues with it");
                crashed_in = Some(name.clone());
            }
        }
    }
    Ok(counts)
}

/// The case whose result a line is, and its count.
fn result<'a, 'b>(line: &'a str, counts: &'b mut Counts) -> Option<(&'a str, &'b mut u32)> {
    let (name, how) = line.split_once(" ... ")?;
    match how.split_whitespace().next()? {
        "ok" => Some((name, &mut counts.passed)),
        "FAILED" => Some((name, &mut counts.failed)),
        "skipped:" => Some((name, &mut counts.skipped)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Plays `a` to `d` with what each VM prints; a VM that crashed has no code.
    fn played(vms: &[(Option<u8>, &str)]) -> (Counts, Vec<String>) {
        let mut vms = vms.iter();
        let mut asked = Vec::new();
        let names = ["a", "b", "c", "d"].map(str::to_owned).into();
        let counts = play(names, |names| {
            asked.push(names.concat());
            let (code, printed) = vms.next().unwrap();
            Ok(Outcome { code: *code, printed: printed.lines().map(str::to_owned).collect() })
        });
        assert!(vms.next().is_none());
        (counts.unwrap(), asked)
    }

    #[test]
    fn another_vm_continues() {
        let whole = "a ... ok (1 s)\n[  1.0] kvm\nb ... FAILED (2 s)\n  why ... so\nc ... skipped: no\n\
            d ... ok (1 s)\nno_trace ... ok (1 s)\n3 passed";
        let counts = Counts { passed: 3, failed: 1, skipped: 1 };
        assert_eq!(played(&[(Some(1), whole)]), (counts, vec!["abcd".to_owned()]));

        let first = "a ... ok (1 s)\npanic";
        let second = "b ... ok (1 s)\nc ... ok (1 s)";
        let (counts, asked) = played(&[(None, first), (None, second), (None, "")]);
        assert_eq!(counts, Counts { passed: 3, failed: 1, skipped: 0 });
        assert_eq!(asked, ["abcd", "bcd", "d"]);
    }

    #[test]
    fn an_exit_code_is_explained() {
        let outcome = |code, line: &str| {
            let names = vec!["a".to_owned()];
            play(names, |_| Ok(Outcome { code: Some(code), printed: vec![line.to_owned()] }))
        };
        let unplayed = outcome(0, "0 passed").unwrap_err().to_string();
        assert_eq!(unplayed, "a was not played, and the exit code is 0");
        outcome(1, "a ... ok (1 s)").unwrap_err();
        assert_eq!(outcome(0, "a ... ok (1 s)").unwrap().passed, 1);
    }
}
