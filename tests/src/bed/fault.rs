//! Handlers that are broken on purpose.

/// Ways to break a handler, each registered as `NAME-FAULT`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fault {
    /// The low-level runtime does not exist.
    Missing,
    /// The low-level runtime prints [`FAILING_TEXT`] and exits with 1.
    Failing,
    /// The low-level runtime never exits.
    Hanging,
    /// The handler's file does not exist.
    NoFile,
    /// The handler's file has an unknown key.
    UnknownKey,
}

impl Fault {
    /// Every fault.
    pub(crate) const ALL: [Self; 5] =
        [Self::Missing, Self::Failing, Self::Hanging, Self::NoFile, Self::UnknownKey];

    /// The suffix of the handler's name.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Missing => "missing",
            Self::Failing => "failing",
            Self::Hanging => "hanging",
            Self::NoFile => "nofile",
            Self::UnknownKey => "unknownkey",
        }
    }
}

/// The error text of the failing runtime.
pub(crate) const FAILING_TEXT: &str = "this runtime fails on purpose";
