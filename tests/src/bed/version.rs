//! The lines of containerd releases that cases are played on.

/// A line of containerd releases.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Version {
    /// 1.6, from Debian 12.
    V16,
    /// 1.7, from Debian 13.
    V17,
    /// 2.1, from Debian unstable.
    V21,
}

impl Version {
    /// Every version, oldest first.
    pub(crate) const ALL: [Self; 3] = [Self::V16, Self::V17, Self::V21];

    /// As in a case's name: `1.7`.
    pub(crate) fn label(self) -> &'static str {
        match self {
            Self::V16 => "1.6",
            Self::V17 => "1.7",
            Self::V21 => "2.1",
        }
    }

    /// As in a path or an interface's name: `17`.
    pub(crate) fn short(self) -> &'static str {
        match self {
            Self::V16 => "16",
            Self::V17 => "17",
            Self::V21 => "21",
        }
    }

    /// The version with this label.
    pub(crate) fn named(label: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|version| version.label() == label)
    }
}
