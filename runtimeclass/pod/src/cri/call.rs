//! Deadlines, errors and repetition of calls.

use std::time::{Duration, Instant};

use tonic::{Request, Response, Status};

use super::error::CriError;
use crate::reporter::Reporter;

/// Deadline of calls that only read.
pub(super) const READ: Duration = Duration::from_secs(30);
/// Deadline of calls that start or stop something.
pub(super) const CHANGE: Duration = Duration::from_secs(240);
/// Deadline of a pull.
pub(super) const PULL: Duration = Duration::from_secs(1800);
/// How long a runtime may be unavailable, as during its restart, which Pods survive.
const UNAVAILABLE: Duration = Duration::from_secs(60);
/// The pause between attempts meanwhile.
const RETRY: Duration = Duration::from_millis(200);

pub(super) fn deadline<T>(message: T, after: Duration) -> Request<T> {
    let mut request = Request::new(message);
    request.set_timeout(after);
    request
}

pub(super) fn answer<T>(
    verb: &'static str,
    object: &str,
    result: Result<Response<T>, Status>,
) -> Result<T, CriError> {
    result.map(Response::into_inner).map_err(|status| CriError::Call {
        verb,
        object: object.to_owned(),
        status: Box::new(status),
    })
}

/// Makes an idempotent call, and repeats it while the runtime is unavailable.
pub(super) async fn retried<M: Clone, T, F>(
    reporter: &dyn Reporter,
    verb: &'static str,
    object: &str,
    message: M,
    after: Duration,
    call: impl Fn(Request<M>) -> F,
) -> Result<T, CriError>
where
    F: Future<Output = Result<Response<T>, Status>>,
{
    let mut since = None;
    loop {
        let result = answer(verb, object, call(deadline(message.clone(), after)).await);
        let unavailable = result.as_ref().is_err_and(CriError::is_unavailable);
        if unavailable && since.is_none() {
            reporter.line("the container runtime is unavailable; waiting for it");
        }
        let start = *since.get_or_insert_with(Instant::now);
        if !unavailable || start.elapsed() > UNAVAILABLE {
            return result;
        }
        tokio::time::sleep(RETRY).await;
    }
}
