//! Pulls by the runtime.

mod ingest;

use std::collections::HashMap;

use k8s_cri::v1::{AuthConfig, ImageSpec, PodSandboxConfig, PullImageRequest};
use sandbox_image::CredentialError;
use sandbox_image::ReferenceError;
use sandbox_image::{Candidate, Reference, Sources};

use crate::credentials;
use crate::cri::{Cri, CriError};

/// From this annotation containerd 1.7 and later choose the handler's snapshotter.
const HANDLER_ANNOTATION: &str = "io.containerd.cri.runtime-handler";

/// Why the runtime did not pull an image.
#[derive(Debug, thiserror::Error)]
pub enum PullError {
    /// The image reference is not valid.
    #[error(transparent)]
    Reference(#[from] ReferenceError),
    /// A credential cannot be read.
    #[error(transparent)]
    Credential(#[from] CredentialError),
    /// A call to the runtime failed.
    #[error(transparent)]
    Cri(#[from] CriError),
    /// The pull failed with every credential.
    #[error("not pulled with {} (`bulkhead pull --check` shows why)", .tries.join(", nor with "))]
    Refused {
        /// The credentials that were tried, each with its origin.
        tries: Vec<String>,
        /// The failure with the last one.
        source: CriError,
    },
    /// The runtime has no such handler.
    #[error("the runtime has no handler {handler:?}; it has {}", .known.join(", "))]
    Handler {
        /// The requested handler.
        handler: String,
        /// The runtime's handlers.
        known: Vec<String>,
    },
}

/// What the runtime is to pull.
#[derive(Clone, Copy, Debug)]
pub struct ImageRequest<'a> {
    /// The image as it was written.
    pub image: &'a str,
    /// The same, parsed.
    pub reference: &'a Reference,
    /// The handler whose snapshotter unpacks it; empty for the default one.
    pub handler: &'a str,
    /// The Pod that it is pulled for.
    pub sandbox: Option<&'a PodSandboxConfig>,
}

/// Pulls with each credential for the image in turn, anonymously if there is none; returns the image's id.
///
/// # Errors
///
/// [`PullError`]; with several credentials the last one's failure.
pub async fn pull(
    cri: &Cri,
    wanted: ImageRequest<'_>,
    sources: &Sources,
) -> Result<String, PullError> {
    let place = wanted.reference.place();
    let candidates = credentials::candidates(sources, place).await?;
    if wanted.sandbox.is_none() && !wanted.handler.is_empty() {
        known_handler(cri, wanted.handler).await?;
    }
    let progress = cri.reporter().pull();
    let _watch = ingest::watch(cri, &progress);
    progress.line(&format!("pulling {}", wanted.image));
    let attempt = async |candidate: Option<&Candidate>| {
        let auth = candidate.map(|it| credentials::auth(&it.credential, place));
        cri.pull(wanted.image, request(wanted, auth)).await
    };
    let Some((last, others)) = candidates.split_last() else { return Ok(attempt(None).await?) };
    let described = |it: &Candidate| format!("{} of {}", it.credential.described(), it.origin);
    let mut tries = Vec::new();
    for candidate in others {
        match attempt(Some(candidate)).await {
            Ok(id) => return Ok(id),
            Err(error) => progress.line(&format!("not with {}: {error}", described(candidate))),
        }
        tries.push(described(candidate));
    }
    attempt(Some(last)).await.map_err(|source| {
        tries.push(described(last));
        PullError::Refused { tries, source }
    })
}

fn request(wanted: ImageRequest<'_>, auth: Option<AuthConfig>) -> PullImageRequest {
    let mut sandbox = wanted.sandbox.cloned().unwrap_or_default();
    let mut image = ImageSpec { image: wanted.image.to_owned(), ..ImageSpec::default() };
    if !wanted.handler.is_empty() {
        let entry = (HANDLER_ANNOTATION.to_owned(), wanted.handler.to_owned());
        image.annotations = HashMap::from([entry.clone()]);
        wanted.handler.clone_into(&mut image.runtime_handler);
        sandbox.annotations.extend([entry]);
    }
    PullImageRequest { image: Some(image), auth, sandbox_config: Some(sandbox) }
}

async fn known_handler(cri: &Cri, handler: &str) -> Result<(), PullError> {
    let known = cri.handlers().await?;
    if known.is_empty() || known.iter().any(|it| it == handler) {
        return Ok(());
    }
    Err(PullError::Handler { handler: handler.to_owned(), known })
}

#[cfg(test)]
mod tests {
    use std::error::Error as _;

    use tonic::Status;

    use super::*;

    #[test]
    fn a_refusal_names_every_credential_and_has_the_last_failure_as_its_cause() {
        let tries = ["user \"bob\" of a.yaml", "user \"eve\" of b.yaml"].map(str::to_owned);
        let status = Box::new(Status::unknown("401 Unauthorized"));
        let source = CriError::Call { verb: "pull image", object: "reg.example/a".into(), status };
        let error = PullError::Refused { tries: tries.into(), source };
        assert_eq!(
            error.to_string(),
            "not pulled with user \"bob\" of a.yaml, nor with user \"eve\" of b.yaml \
             (`bulkhead pull --check` shows why)"
        );
        let cause = error.source().unwrap().to_string();
        assert_eq!(cause, "pull image reg.example/a: 401 Unauthorized");
    }

    #[test]
    fn every_field_that_runtimes_read_names_the_handler() {
        let reference: Reference = "reg.example/a".parse().unwrap();
        let wanted = ImageRequest {
            image: "reg.example/a",
            reference: &reference,
            handler: "gvisor",
            sandbox: None,
        };
        let named = request(wanted, None);
        let image = named.image.unwrap();
        assert_eq!(
            (image.image.as_str(), image.runtime_handler.as_str()),
            ("reg.example/a", "gvisor")
        );
        assert_eq!(named.sandbox_config.unwrap().annotations[HANDLER_ANNOTATION], "gvisor");
        let plain = request(ImageRequest { handler: "", ..wanted }, None);
        assert!(plain.image.unwrap().annotations.is_empty());
        assert!(plain.sandbox_config.unwrap().annotations.is_empty());
    }
}
