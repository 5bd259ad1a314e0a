//! What a case is.

use std::time::Duration;

use anyhow::Result;

use crate::client::stage::Stage;

/// One property that must hold.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Case {
    /// Its name within `CONTAINERD/HANDLER/`.
    pub(crate) name: &'static str,
    /// Plays it; the error is the difference from what is expected.
    pub(crate) play: fn(&Stage) -> Result<()>,
    /// How long it may take.
    pub(crate) deadline: Duration,
}

/// A case from a function, named as the function is.
macro_rules! cases {
    ($($function:ident),* $(,)?) => {
        &[$($crate::cases::case::Case {
            name: stringify!($function),
            play: $function,
            deadline: std::time::Duration::from_secs(120),
        }),*]
    };
}
pub(super) use cases;
