//! `hack/test-runner` on scripts that print what a test program prints.
#![forbid(unsafe_code)]
#![expect(clippy::unwrap_used, reason = "a panic is how a test fails")]

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Output;

const RUNNER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../hack/test-runner");

/// Appends the arguments to a file, then prints a run without or with `--ignored`. The string is
/// one that every test program has.
const PROGRAM: &str = r#"#!/bin/sh
# RUST_TEST_THREADS
printf '%s\n' "$*" >>"$0.calls"
case $* in
    *--ignored*) printf '%s\n' "$SECOND"; exit "$SECOND_CODE" ;;
    *) printf '%s\n' "$FIRST"; exit "$FIRST_CODE" ;;
esac
"#;

const FIRST: &str = "
running 7 tests
test plain ... ok
test result: ok. of another run, printed by a test
test slow ... ignored, slow
test a::met ... ignored, needs env:MET, env:MET_TOO
test b::met - should panic ... ignored, needs env:MET
test half ... ignored, needs env:MET, env:UNMET
test unmet ... ignored, needs env:UNMET

test result: ok. 2 passed; 0 failed; 5 ignored; 0 measured; 4 filtered out; finished in 1.95s
";

/// A folder with a program in `place` (such as `deps`) that `hack/test-runner` is asked to run.
struct Bed {
    program: PathBuf,
}

impl Bed {
    fn new(test: &str, place: &str) -> Self {
        let dir = Path::new(env!("CARGO_TARGET_TMPDIR")).join(test).join(place);
        let _ = fs::remove_dir_all(&dir);
        fs::create_dir_all(&dir).unwrap();
        let program = dir.join("program-0123456789abcdef");
        fs::write(&program, PROGRAM).unwrap();
        fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
        Self { program }
    }

    /// Runs with `args`; the program prints `first`, then `second`, and exits with their codes.
    #[expect(clippy::disallowed_methods, reason = "no container is run")]
    fn run(&self, args: &[&str], first: (&str, u8), second: (&str, u8)) -> Output {
        std::process::Command::new(RUNNER)
            .arg(&self.program)
            .args(args)
            .env("FIRST", first.0)
            .env("FIRST_CODE", first.1.to_string())
            .env("SECOND", second.0)
            .env("SECOND_CODE", second.1.to_string())
            .env("MET", "1")
            .env("MET_TOO", "1")
            .env_remove("UNMET")
            .output()
            .unwrap()
    }

    fn calls(&self) -> Vec<String> {
        let text = fs::read_to_string(self.program.with_extension("calls")).unwrap();
        text.lines().map(str::to_owned).collect()
    }
}

fn second(passed: u32, failed: u32) -> String {
    let verdict = if failed == 0 { "ok" } else { "FAILED" };
    format!(
        "\nrunning 2 tests\ntest a::met ... done\n\ntest result: {verdict}. {passed} passed; {failed} failed; \
         0 ignored; 0 measured; 9 filtered out; finished in 0.08s\n"
    )
}

fn stdout(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

/// The lines that begin as libtest's result does.
fn results(output: &Output) -> Vec<String> {
    let text = stdout(output);
    text.lines().filter(|line| line.starts_with("test result: ")).map(str::to_owned).collect()
}

#[test]
fn ignored_tests_with_met_needs_are_run_and_counted() {
    let bed = Bed::new("counted", "deps");
    let args = ["word", "--test-threads", "1", "--skip", "other", "--nocapture"];
    let output = bed.run(&args, (FIRST, 0), (&second(2, 0), 0));
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    assert_eq!(
        bed.calls(),
        [args.join(" ").as_str(), "--test-threads 1 --nocapture --ignored --exact a::met b::met"]
    );
    let printed_by_a_test = "test result: ok. of another run, printed by a test";
    let sum = "test result: ok. 4 passed; 0 failed; 3 ignored; 0 measured; 4 filtered out; \
               finished in 2.03s";
    assert_eq!(results(&output), [printed_by_a_test, sum]);
    let text = stdout(&output);
    assert!(text.contains("\ntest a::met ... done\n"), "{text}");
    assert!(text.contains("\nignored: env:UNMET: not set (2 tests)\ntest result: "), "{text}");
}

#[test]
fn a_failure_of_either_run_is_a_failure_of_both() {
    let bed = Bed::new("failure", "deps");
    let output = bed.run(&[], (FIRST, 0), (&second(1, 1), 101));
    assert_eq!(output.status.code(), Some(101));
    assert!(results(&output)[1].starts_with("test result: FAILED. 3 passed; 1 failed; 3 ignored;"));

    let failed = FIRST.replace("ok. 2 passed; 0 failed", "FAILED. 1 passed; 1 failed");
    let output = bed.run(&[], (&failed, 101), (&second(2, 0), 0));
    assert_eq!(output.status.code(), Some(101));
    assert!(results(&output)[1].starts_with("test result: FAILED. 3 passed; 1 failed; 3 ignored;"));
}

#[test]
fn a_program_that_dies_is_a_failure() {
    let bed = Bed::new("dies", "deps");
    let output = bed.run(&[], ("\nrunning 1 test\n", 134), ("", 0));
    assert_eq!(output.status.code(), Some(134));
    assert_eq!(bed.calls().len(), 1);

    let output = bed.run(&[], (FIRST, 0), ("\nrunning 2 tests\n", 134));
    assert_eq!(output.status.code(), Some(101));
    assert!(results(&output)[1].starts_with("test result: FAILED. 2 passed; 2 failed; 3 ignored;"));
    assert!(String::from_utf8_lossy(&output.stderr).contains("exited with 134 before its 2 tests"));
}

#[test]
fn an_unknown_need_is_an_error() {
    let first = FIRST.replace("needs env:UNMET", "needs luck");
    let output = Bed::new("unknown", "deps").run(&[], (&first, 0), (&second(2, 0), 0));
    assert_eq!(output.status.code(), Some(101));
    assert_eq!(String::from_utf8_lossy(&output.stderr), "test-runner: unknown need \"luck\"\n");
}

#[test]
fn other_programs_and_callers_that_choose_are_left_alone() {
    let bed = Bed::new("alone", "release");
    let output = bed.run(&["--word"], (FIRST, 7), ("", 0));
    assert_eq!((output.status.code(), stdout(&output)), (Some(7), format!("{FIRST}\n")));

    for flag in ["--list", "--exact", "--quiet", "--format=terse", "--bench"] {
        let bed = Bed::new(&format!("alone{flag}"), "deps");
        let output = bed.run(&[flag], (FIRST, 7), ("", 0));
        assert_eq!((output.status.code(), stdout(&output)), (Some(7), format!("{FIRST}\n")));
        assert_eq!(bed.calls(), [flag]);
    }
    let bed = Bed::new("alone-ignored", "deps");
    assert_eq!(stdout(&bed.run(&["--ignored"], ("", 0), ("second", 0))), "second\n");
}

#[test]
fn every_need_answers() {
    let script = fs::read_to_string(RUNNER).unwrap();
    let defined =
        script.lines().filter_map(|line| line.strip_prefix("need_")?.strip_suffix("() {"));
    let mut lines = String::from("\n");
    let mut needs: Vec<String> = Vec::new();
    for name in defined {
        let argument = match name {
            "program" => ":sh",
            "env" => ":MET",
            _ => "",
        };
        needs.push(format!("{name}{argument}"));
        lines += &format!("test {name} ... ignored, needs {name}{argument}\n");
    }
    let count = needs.len();
    let first = format!(
        "{lines}\ntest result: ok. 0 passed; 0 failed; {count} ignored; 0 measured; 0 filtered out; \
         finished in 0.00s\n"
    );
    let bed = Bed::new("needs", "deps");
    let output = bed.run(&[], (&first, 0), (&second(0, 0), 0));
    assert_eq!(String::from_utf8_lossy(&output.stderr), "");
    let run = bed.calls().last().unwrap().clone();
    let text = stdout(&output);
    for (need, name) in needs.iter().map(|need| (need, need.split(':').next().unwrap())) {
        let is_run = run.split(' ').any(|word| word == name);
        let has_reason = text.lines().any(|line| {
            line.strip_prefix(&format!("ignored: {need}: ")).is_some_and(|why| why != "(1 tests)")
        });
        assert!(is_run != has_reason, "{need}: {run}\n{text}");
    }
    assert!(run.contains(" program") && run.contains(" env"), "{run}");
}
