//! Blocking work, off the agent's one async thread.

use crate::error::{Doing, Result};

/// Runs `work` on the runtime's blocking pool. It is completed even if the caller is cancelled.
///
/// # Errors
///
/// That of `work`.
pub async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    tokio::task::spawn_blocking(work).await.doing(|| "running a blocking task".into())?
}
