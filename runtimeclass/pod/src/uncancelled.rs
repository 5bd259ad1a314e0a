//! Calls that must not be cancelled.

use std::future::Future;
use std::sync::Arc;

use tokio::sync::Mutex;

/// Runs calls to completion even if their caller is cancelled.
///
/// A call that creates something must not be dropped half-way: the runtime would go on with it, and nothing would
/// know of what it creates.
#[derive(Clone, Debug, Default)]
pub(crate) struct Uncancelled(Arc<Mutex<()>>);

impl Uncancelled {
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
    pub(crate) async fn idle(&self) {
        drop(self.0.lock().await);
    }
}

#[cfg(test)]
mod tests {
    use std::task::Poll;

    use tokio::sync::oneshot;

    use super::*;

    #[test]
    fn a_dropped_future_does_not_cancel_the_call() {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(async {
            let calls = Uncancelled::default();
            let (release, released) = oneshot::channel::<()>();
            let (complete, completed) = oneshot::channel();
            let call = async move {
                released.await.unwrap();
                complete.send(()).unwrap();
            };
            let mut run = Box::pin(calls.run(call));
            // Polled until the call waits for its release.
            std::future::poll_fn(|context| {
                assert!(run.as_mut().poll(context).is_pending());
                Poll::Ready(())
            })
            .await;
            tokio::task::yield_now().await;
            drop(run);
            release.send(()).unwrap();
            calls.idle().await;
            completed.await.unwrap();
        });
    }
}
