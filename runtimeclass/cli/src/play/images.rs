//! Images: found on this node, or pulled.

use std::collections::BTreeMap;

use k8s_cri::v1::{Image, PodSandboxConfig};

use crate::cri::{Cri, CriError};
use crate::manifest::{Manifest, Pod, PullPolicy};
use crate::pod::ImageFacts;
use crate::registry::{self, CredentialError};

/// Why an image is not there.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ImageError {
    /// The runtime refused.
    #[error(transparent)]
    Cri(#[from] CriError),
    /// An imagePullSecret is not one.
    #[error(transparent)]
    Credential(#[from] CredentialError),
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

/// Pulls with each credential for the registry in turn; without any as nobody.
async fn pull(
    cri: &Cri,
    manifest: &Manifest,
    pod: &Pod,
    reference: &str,
    sandbox: &PodSandboxConfig,
) -> Result<Image, ImageError> {
    eprintln!("bulkhead: pulling {reference}");
    let credentials = registry::credentials(manifest, pod, reference)?;
    let mut attempts: Vec<_> = credentials.iter().map(|it| Some(it.auth())).collect();
    if attempts.is_empty() {
        attempts.push(None);
    }
    let mut result = Ok(());
    for auth in attempts {
        result = cri.pull(reference, auth, sandbox).await;
        if result.is_ok() {
            break;
        }
    }
    result?;
    cri.image(reference).await?.ok_or_else(|| ImageError::Lost(reference.to_owned()))
}
