//! What reading found wrong or worth mentioning.

use std::cell::RefCell;
use std::fmt;

/// One thing in a document that is wrong or not supported.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// The file and document, such as `pod.yaml: document 2 (Pod default/web)`.
    pub document: String,
    /// The field, such as `spec.containers[0].image`; empty for the document itself.
    pub path: String,
    /// What is wrong, with the value and the remedy.
    pub text: String,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: ", self.document)?;
        if !self.path.is_empty() {
            write!(f, "{}: ", self.path)?;
        }
        f.write_str(&self.text)
    }
}

/// Faults and notes about the documents that were read.
#[derive(Debug, Default)]
pub struct Findings {
    faults: RefCell<Vec<Fault>>,
    notes: RefCell<Vec<Fault>>,
    /// Names of fields to leave out instead of reporting a fault.
    ignored: Vec<String>,
}

impl Findings {
    /// Leaves out fields of these names where they would be a fault.
    pub fn ignoring(names: Vec<String>) -> Self {
        Self { ignored: names, ..Self::default() }
    }

    /// Whether fields of this name are to be left out.
    pub(crate) fn ignores(&self, name: &str) -> bool {
        self.ignored.iter().any(|ignored| ignored == name)
    }

    /// Whether the document's field at `path` has a fault.
    pub(crate) fn has_fault_at(&self, document: &str, path: &str) -> bool {
        self.faults.borrow().iter().any(|it| it.document == document && it.path == path)
    }

    /// Takes out the faults found so far.
    pub fn take_faults(&self) -> Vec<Fault> {
        self.faults.take()
    }

    /// Whether there are faults.
    pub(crate) fn has_faults(&self) -> bool {
        !self.faults.borrow().is_empty()
    }

    /// Takes out the notes found so far.
    pub fn take_notes(&self) -> Vec<Fault> {
        self.notes.take()
    }

    /// Records a fault.
    pub(crate) fn fault(&self, document: &str, path: &str, text: impl Into<String>) {
        self.faults.borrow_mut().push(Fault {
            document: document.to_owned(),
            path: path.to_owned(),
            text: text.into(),
        });
    }

    /// Records something that the user should know but that is no fault.
    pub(crate) fn note(&self, document: &str, path: &str, text: impl Into<String>) {
        self.notes.borrow_mut().push(Fault {
            document: document.to_owned(),
            path: path.to_owned(),
            text: text.into(),
        });
    }
}
