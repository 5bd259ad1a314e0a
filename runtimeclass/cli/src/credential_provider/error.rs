//! Why the kubelet gets no answer.

use sandbox_image::CredentialError;
use sandbox_image::ReferenceError;

use super::message::MessageError;
use crate::pull::PullError;

/// Why the kubelet gets no answer.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ProviderError {
    #[error(transparent)]
    Message(#[from] MessageError),
    #[error("the kubelet's request")]
    Image(#[from] ReferenceError),
    #[error(transparent)]
    Sources(#[from] PullError),
    #[error(transparent)]
    Credential(#[from] CredentialError),
    #[error("cannot read the kubelet's request")]
    Read(#[source] std::io::Error),
    #[error("cannot write the answer")]
    Write(#[source] std::io::Error),
    #[error("cannot write the configuration as YAML")]
    Yaml(#[source] serde_norway::Error),
}
