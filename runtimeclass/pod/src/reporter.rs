//! What a user should see while Pods are started, watched and removed.

use std::fmt::Debug;
use std::sync::Arc;

/// Shows progress and notes to the user.
pub trait Reporter: Debug + Send + Sync {
    /// Shows one line that is no error.
    fn line(&self, text: &str);

    /// A pull begins; its progress is shown until the returned value is dropped.
    fn pull(&self) -> Arc<dyn PullProgress>;
}

/// Shows the progress of one pull.
pub trait PullProgress: Debug + Send + Sync {
    /// Shows one line beside the progress.
    fn line(&self, text: &str);

    /// `bytes` of a layer's `total` have arrived.
    fn layer(&self, digest: &str, total: u64, bytes: u64);

    /// A layer of `total` bytes is complete. May be called more than once.
    fn layer_complete(&self, digest: &str, total: u64);
}
