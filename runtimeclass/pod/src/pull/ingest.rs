//! The progress of containerd's pulls: CRI does not report it, containerd's content store does, on the same socket.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::task::JoinHandle;
use tonic::codegen::http::uri::PathAndQuery;
use tonic::{Code, Request};
use tonic_prost::ProstCodec;

use crate::cri::Cri;
use crate::reporter::PullProgress;

const METHOD: &str = "/containerd.services.content.v1.Content/ListStatuses";
/// The namespace of CRI's images.
const NAMESPACE: &str = "k8s.io";
const LOOK: Duration = Duration::from_millis(200);

#[derive(Clone, PartialEq, prost::Message)]
struct ListStatusesRequest {
    #[prost(string, repeated, tag = "1")]
    filters: Vec<String>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct ListStatusesResponse {
    #[prost(message, repeated, tag = "1")]
    statuses: Vec<Status>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Status {
    #[prost(string, tag = "3")]
    reference: String,
    #[prost(int64, tag = "4")]
    offset: i64,
    #[prost(int64, tag = "5")]
    total: i64,
}

/// Stops the watch when dropped.
#[derive(Debug)]
pub(super) struct Watch(JoinHandle<()>);

impl Drop for Watch {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Shows the layers that arrive until the returned value is dropped. Other runtimes than containerd show nothing.
pub(super) fn watch(cri: &Cri, progress: &Arc<dyn PullProgress>) -> Watch {
    let cri = cri.clone();
    let progress = Arc::clone(progress);
    Watch(tokio::spawn(async move {
        let mut known: BTreeMap<String, (u64, u64)> = BTreeMap::new();
        loop {
            tokio::time::sleep(LOOK).await;
            let Some(statuses) = statuses(&cri).await else { return };
            let now = layers(&statuses);
            for (digest, (offset, total)) in &now {
                progress.layer(digest, *total, *offset);
            }
            // A layer that is no longer arriving is complete.
            for (digest, (_, total)) in &known {
                if !now.contains_key(digest) {
                    progress.layer_complete(digest, *total);
                }
            }
            known = now;
        }
    }))
}

/// `None` if the runtime has no such service.
async fn statuses(cri: &Cri) -> Option<Vec<Status>> {
    let mut grpc = tonic::client::Grpc::new(cri.channel());
    grpc.ready().await.ok()?;
    let mut request = Request::new(ListStatusesRequest::default());
    request.set_timeout(Duration::from_secs(5));
    request.metadata_mut().insert("containerd-namespace", NAMESPACE.parse().ok()?);
    let codec = ProstCodec::<ListStatusesRequest, ListStatusesResponse>::default();
    let answer = grpc.unary(request, PathAndQuery::from_static(METHOD), codec).await;
    match answer {
        Ok(answer) => Some(answer.into_inner().statuses),
        // The runtime is only busy.
        Err(status) if status.code() == Code::DeadlineExceeded => Some(Vec::new()),
        Err(_) => None,
    }
}

/// Layers that arrive: digest to bytes present and bytes in total.
fn layers(statuses: &[Status]) -> BTreeMap<String, (u64, u64)> {
    let layer = |status: &Status| {
        let digest = status.reference.strip_prefix("layer-")?;
        let number = |it: i64| u64::try_from(it).unwrap_or(0);
        Some((digest.to_owned(), (number(status.offset), number(status.total))))
    };
    statuses.iter().filter_map(layer).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_layers_count() {
        let status =
            |reference: &str, offset| Status { reference: reference.to_owned(), offset, total: 9 };
        let all = [
            status("layer-sha256:aa", 5),
            status("manifest-sha256:bb", 1),
            status("layer-sha256:cc", -1),
        ];
        let wanted = [("sha256:aa".to_owned(), (5, 9)), ("sha256:cc".to_owned(), (0, 9))];
        assert_eq!(layers(&all), wanted.into());
    }
}
