//! What can be wrong with a backend's settings.

use std::fmt::Display;

/// A setting that cannot be used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    /// The setting's name.
    pub key: String,
    /// Its value.
    pub value: String,
    /// Why not, and what to write instead.
    pub reason: String,
}

/// Faults, collected.
#[derive(Debug, Default)]
pub struct Faults(Vec<Fault>);

impl Faults {
    /// Notes one.
    pub fn add(&mut self, key: &str, value: impl Display, reason: &str) {
        let (key, value) = (key.to_owned(), value.to_string());
        self.0.push(Fault { key, value, reason: reason.to_owned() });
    }

    /// Checks that `program` is an absolute path or a bare name.
    pub fn check_program(&mut self, key: &str, program: &std::path::Path) {
        if !program.is_absolute() && program.components().count() != 1 {
            let reason = "must be an absolute path or a bare name to find in PATH";
            self.add(key, program.display(), reason);
        }
    }

    /// Checks a time limit.
    pub fn check_seconds(&mut self, key: &str, seconds: u64) {
        if !(1..=3600).contains(&seconds) {
            self.add(key, seconds, "must be 1 to 3600 seconds");
        }
    }

    /// All of them, in the order they were found.
    pub fn into_vec(self) -> Vec<Fault> {
        self.0
    }
}
