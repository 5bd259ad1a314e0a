//! Images: found on this node, or pulled.

use std::collections::BTreeMap;
use std::io::{IsTerminal as _, stderr};
use std::sync::Arc;

use k8s_cri::v1::{Image, PodSandboxConfig};
use sandbox_image::Reference;

use crate::cri::{Cri, CriError};
use crate::manifest::{Manifest, Pod, PullPolicy};
use crate::pod::{ImageFacts, handler};
use crate::pull::{Bars, PullError, Wanted, into_runtime};
use crate::registry;

/// Why an image is not there.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ImageError {
    /// The runtime refused.
    #[error(transparent)]
    Cri(#[from] CriError),
    /// It was not pulled.
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

/// Makes sure of every image of the Pod; what is known of each comes back by its reference.
pub(super) async fn ensure(
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
    let sources = registry::pull_secrets(manifest, pod).map_err(PullError::from)?;
    let (bars, handler) = (Arc::new(Bars::new(stderr().is_terminal())), handler(manifest, pod));
    let wanted = Wanted { image, reference: &reference, handler: &handler, sandbox: Some(sandbox) };
    into_runtime(cri, wanted, &sources, &bars).await?;
    cri.image(image).await?.ok_or_else(|| ImageError::Lost(image.to_owned()))
}
