//! Cases in nested machines, one after the other: an emulated processor loses a host's state now
//! and then, and its kernel panics. What had not been played is played in another machine.

use std::collections::VecDeque;

use anyhow::{Result, bail, ensure};

use crate::bed::nested::Ended;
use crate::runner::Counts;

/// Plays the cases `names` by `run`, which plays those that it is given in a new machine. A case in
/// which two machines die has failed.
///
/// # Errors
///
/// Those of `run`, and an exit code that the cases do not explain.
pub fn play(names: Vec<String>, mut run: impl FnMut(&[String]) -> Result<Ended>) -> Result<Counts> {
    let mut counts = Counts::default();
    let mut left = VecDeque::from(names);
    let mut died_in = None;
    while !left.is_empty() {
        let ended = run(left.make_contiguous())?;
        for line in &ended.printed {
            let Some((name, count)) = outcome(line, &mut counts) else { continue };
            *count += 1;
            left.retain(|other| other != name);
        }
        match (ended.code, left.front()) {
            (Some(0) | None, None) => break,
            (Some(code), Some(name)) => bail!("{name} was not played, and the exit code is {code}"),
            (Some(code), None) => {
                ensure!(counts.failed > 0, "no case failed, and the exit code is {code}");
                break;
            }
            (None, Some(name)) if died_in.as_ref() == Some(name) => {
                println!("{name} ... FAILED\n  a second machine died in it");
                counts.failed += 1;
                left.pop_front();
            }
            (None, Some(name)) => {
                println!("the nested machine died in {name}: another one goes on with it");
                died_in = Some(name.clone());
            }
        }
    }
    Ok(counts)
}

/// The case that a line tells the end of, and where it counts.
fn outcome<'a, 'b>(line: &'a str, counts: &'b mut Counts) -> Option<(&'a str, &'b mut u32)> {
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

    /// Plays `a` to `d` with what each machine prints; a machine that died has no code.
    fn played(machines: &[(Option<u8>, &str)]) -> (Counts, Vec<String>) {
        let mut machines = machines.iter();
        let mut asked = Vec::new();
        let names = ["a", "b", "c", "d"].map(str::to_owned).into();
        let counts = play(names, |names| {
            asked.push(names.concat());
            let (code, printed) = machines.next().unwrap();
            Ok(Ended { code: *code, printed: printed.lines().map(str::to_owned).collect() })
        });
        assert!(machines.next().is_none());
        (counts.unwrap(), asked)
    }

    #[test]
    fn another_machine_goes_on() {
        let whole = "a ... ok (1 s)\n[  1.0] kvm\nb ... FAILED (2 s)\n  why ... so\nc ... skipped: no\n\
            d ... ok (1 s)\nno_trace ... ok (1 s)\n3 passed";
        let counts = Counts { passed: 3, failed: 1, skipped: 1 };
        assert_eq!(played(&[(Some(1), whole)]), (counts, vec!["abcd".to_owned()]));

        let (first, second) = ("a ... ok (1 s)\npanic", "b ... ok (1 s)\nc ... ok (1 s)");
        let (counts, asked) = played(&[(None, first), (None, second), (None, "")]);
        assert_eq!(counts, Counts { passed: 3, failed: 1, skipped: 0 });
        assert_eq!(asked, ["abcd", "bcd", "d"]);
    }

    #[test]
    fn an_exit_code_is_explained() {
        let ended = |code, line: &str| {
            let names = vec!["a".to_owned()];
            play(names, |_| Ok(Ended { code: Some(code), printed: vec![line.to_owned()] }))
        };
        let unplayed = ended(0, "0 passed").unwrap_err().to_string();
        assert_eq!(unplayed, "a was not played, and the exit code is 0");
        ended(1, "a ... ok (1 s)").unwrap_err();
        assert_eq!(ended(0, "a ... ok (1 s)").unwrap().passed, 1);
    }
}
