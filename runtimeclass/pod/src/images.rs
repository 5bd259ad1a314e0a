//! Images: found on this node, or pulled.

use std::collections::BTreeMap;

use k8s_cri::v1::{Image, PodSandboxConfig};
use kube_manifest::{Manifest, Pod, PullPolicy};
use sandbox_image::Reference;

use crate::convert::ImageFacts;
use crate::credentials;
use crate::cri::{Cri, CriError};
use crate::pull::{self, ImageRequest, PullError};

/// Why an image is not available.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    /// A call to the runtime failed.
    #[error(transparent)]
    Cri(#[from] CriError),
    /// The pull failed.
    #[error(transparent)]
    Pull(#[from] PullError),
    /// The policy forbids a pull.
    #[error(
        "image {0:?} is not on this node, and the pull policy is Never; import it, or pass --pull missing"
    )]
    Never(String),
    /// A pull succeeded, but there is no image.
    #[error("image {0:?} was pulled, but the runtime does not find it")]
    Lost(String),
}

/// Finds or pulls every image of the Pod; returns each by its reference.
pub(crate) async fn ensure(
    cri: &Cri,
    manifest: &Manifest,
    pod: &Pod,
    policy: Option<PullPolicy>,
    sandbox: &PodSandboxConfig,
) -> Result<BTreeMap<String, ImageFacts>, ImageError> {
    let mut images = BTreeMap::new();
    for container in pod.all_containers() {
        let reference = &container.image;
        if images.contains_key(reference) {
            continue;
        }
        let policy = policy.or(container.pull).unwrap_or(PullPolicy::Missing);
        let present = cri.image(reference).await?;
        let image = match (policy, present) {
            (PullPolicy::Missing | PullPolicy::Never, Some(image)) => image,
            (PullPolicy::Never, None) => return Err(ImageError::Never(reference.clone())),
            (PullPolicy::Missing, None) | (PullPolicy::Always, _) => {
                pull(cri, manifest, pod, reference, sandbox).await?
            }
        };
        images.insert(reference.clone(), facts(image));
    }
    Ok(images)
}

fn facts(image: Image) -> ImageFacts {
    ImageFacts { id: image.id, uid: image.uid.map(|uid| uid.value), username: image.username }
}

/// Pulls with the Pod's `imagePullSecrets`, for the Pod's handler.
async fn pull(
    cri: &Cri,
    manifest: &Manifest,
    pod: &Pod,
    image: &str,
    sandbox: &PodSandboxConfig,
) -> Result<Image, ImageError> {
    let reference: Reference = image.parse().map_err(PullError::from)?;
    let sources = credentials::pull_secrets(manifest, pod).map_err(PullError::from)?;
    let handler = manifest.handler(pod);
    let request =
        ImageRequest { image, reference: &reference, handler: &handler, sandbox: Some(sandbox) };
    pull::pull(cri, request, &sources).await?;
    cri.image(image).await?.ok_or_else(|| ImageError::Lost(image.to_owned()))
}
