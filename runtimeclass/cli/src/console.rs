//! Notes and progress on the standard error.

use std::io::{IsTerminal as _, stderr};
use std::sync::Arc;

use pod_runner::{Cri, CriError, PullProgress, Reporter};

use crate::bars::Bars;

/// Shows what the Pods' runner reports.
#[derive(Debug)]
struct Console;

impl Reporter for Console {
    fn line(&self, text: &str) {
        eprintln!("bulkhead: {text}");
    }

    fn pull(&self) -> Arc<dyn PullProgress> {
        Arc::new(Bars::new(stderr().is_terminal()))
    }
}

/// Connects to the runtime; what it reports is shown on the standard error.
pub(crate) async fn connect(endpoint: &str) -> Result<Cri, CriError> {
    Cri::connect(endpoint, Arc::new(Console)).await
}
