//! How far containerd is with what it pulls: CRI does not tell, its content store does, on the same socket.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::task::JoinHandle;
use tonic::codegen::http::uri::PathAndQuery;
use tonic::{Code, Request};
use tonic_prost::ProstCodec;

use super::bars::Bars;
use crate::cri::Cri;

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

/// Ends when it is dropped.
#[derive(Debug)]
pub(super) struct Watch(JoinHandle<()>);

impl Drop for Watch {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Shows what comes in until the answer is dropped. A runtime that is not containerd shows nothing.
pub(super) fn watch(cri: &Cri, bars: &Arc<Bars>) -> Watch {
    let (cri, bars) = (cri.clone(), Arc::clone(bars));
    Watch(tokio::spawn(async move {
        let mut known: BTreeMap<String, (u64, u64)> = BTreeMap::new();
        loop {
            tokio::time::sleep(LOOK).await;
            let Some(statuses) = statuses(&cri).await else { return };
            let now = layers(&statuses);
            for (digest, (offset, total)) in &now {
                bars.layer(digest, *total, *offset);
            }
            // What is no longer coming in is there.
            for (digest, (_, total)) in &known {
                if !now.contains_key(digest) {
                    bars.finished(digest, *total);
                }
            }
            known = now;
        }
    }))
}

/// None where nobody can say.
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
        // It is only busy.
        Err(status) if status.code() == Code::DeadlineExceeded => Some(Vec::new()),
        Err(_) => None,
    }
}

/// Layers that come in: digest to bytes that are there and bytes in all.
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
