//! Faults in a backend's settings.

use std::fmt::Display;

/// A setting that cannot be used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    /// The setting's name.
    pub key: String,
    /// Its value.
    pub value: String,
    /// Why not, and what is allowed.
    pub reason: String,
}

/// Collects faults, so that all are reported at once.
#[derive(Debug, Default)]
pub struct Faults(Vec<Fault>);

impl Faults {
    /// Adds a fault.
    pub fn add(&mut self, key: &str, value: impl Display, reason: &str) {
        self.0.push(Fault {
            key: key.to_owned(),
            value: value.to_string(),
            reason: reason.to_owned(),
        });
    }

    /// Checks that `program` is an absolute path or a bare name.
    pub fn check_program(&mut self, key: &str, program: &std::path::Path) {
        if !program.is_absolute() && program.components().count() != 1 {
            let reason = "must be an absolute path or a bare name to find in PATH";
            self.add(key, program.display(), reason);
        }
    }

    /// Checks that a time limit is between a second and an hour.
    pub fn check_seconds(&mut self, key: &str, seconds: u64) {
        if !(1..=3600).contains(&seconds) {
            self.add(key, seconds, "must be 1 to 3600 seconds");
        }
    }

    /// The faults, in the order they were added.
    pub fn into_vec(self) -> Vec<Fault> {
        self.0
    }
}
