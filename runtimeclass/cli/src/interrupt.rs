//! Signals, and calls that must not be cut by one.

use std::future::Future;
use std::io;
use std::sync::Arc;

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::Mutex;

/// The signals that end `play`: with clean-up where that was asked for.
#[derive(Debug)]
pub(crate) struct Signals {
    interrupt: Signal,
    terminate: Signal,
    hangup: Signal,
}

/// A signal that came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Caught {
    pub(crate) name: &'static str,
    /// What a shell would report of a program that the signal ended.
    pub(crate) exit_code: u8,
}

impl Signals {
    /// From now on these signals are caught.
    pub(crate) fn catch() -> io::Result<Self> {
        Ok(Self {
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
            hangup: signal(SignalKind::hangup())?,
        })
    }

    /// Waits for the next one.
    pub(crate) async fn next(&mut self) -> Caught {
        tokio::select! {
            _ = self.interrupt.recv() => Caught { name: "SIGINT", exit_code: 130 },
            _ = self.terminate.recv() => Caught { name: "SIGTERM", exit_code: 143 },
            _ = self.hangup.recv() => Caught { name: "SIGHUP", exit_code: 129 },
        }
    }
}

/// Lets calls run to their end although whoever waits for them gives up.
///
/// A call that creates something must not be dropped half-way: the runtime would go on with it, and what it makes
/// would be found by nobody.
#[derive(Clone, Debug, Default)]
pub(crate) struct Uncut(Arc<Mutex<()>>);

impl Uncut {
    /// Runs a call; when this future is dropped the call goes on.
    pub(crate) async fn run<F>(&self, call: F) -> F::Output
    where
        F: Future + Send + 'static,
        F::Output: Send + 'static,
    {
        let held = Arc::clone(&self.0).lock_owned().await;
        let task = tokio::spawn(async move {
            let output = call.await;
            drop(held);
            output
        });
        match task.await {
            Ok(output) => output,
            Err(error) => std::panic::resume_unwind(error.into_panic()),
        }
    }

    /// Waits until no call runs.
    pub(crate) async fn settled(&self) {
        drop(self.0.lock().await);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_dropped_wait_does_not_cut_the_call() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        runtime.block_on(async {
            let (uncut, done) = (Uncut::default(), Arc::new(AtomicBool::new(false)));
            let set = Arc::clone(&done);
            let call = uncut.run(async move {
                tokio::time::sleep(Duration::from_millis(50)).await;
                set.store(true, Ordering::SeqCst);
            });
            assert!(tokio::time::timeout(Duration::from_millis(5), call).await.is_err());
            assert!(!done.load(Ordering::SeqCst));
            uncut.settled().await;
            assert!(done.load(Ordering::SeqCst));
        });
    }
}
