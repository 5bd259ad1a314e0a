//! The one way in which the runtime is made to pull, by `pull` and by `play`.

use std::collections::HashMap;
use std::sync::Arc;

use k8s_cri::v1::{AuthConfig, ImageSpec, PodSandboxConfig, PullImageRequest};
use sandbox_image::{Candidate, Reference, Sources};

use super::bars::Bars;
use super::{PullError, ingest};
use crate::cri::Cri;
use crate::registry;

/// By this containerd 1.7 and later choose the handler's snapshotter.
const HANDLER_ANNOTATION: &str = "io.containerd.cri.runtime-handler";

/// What the runtime is to pull.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Wanted<'a> {
    /// The image as it was written.
    pub(crate) image: &'a str,
    /// The same, understood.
    pub(crate) reference: &'a Reference,
    /// The handler; the runtime's default one if it is empty.
    pub(crate) handler: &'a str,
    /// The Pod that wants it.
    pub(crate) sandbox: Option<&'a PodSandboxConfig>,
}

/// Pulls with each credential for the image in turn, without any as nobody; the image's id.
pub(crate) async fn into_runtime(
    cri: &Cri,
    wanted: Wanted<'_>,
    sources: &Sources,
    bars: &Arc<Bars>,
) -> Result<String, PullError> {
    let place = wanted.reference.place();
    let candidates = registry::candidates(sources, place).await?;
    if wanted.sandbox.is_none() && !wanted.handler.is_empty() {
        known_handler(cri, wanted.handler).await?;
    }
    let _watch = ingest::watch(cri, bars);
    bars.say(&format!("pulling {}", wanted.image));
    let attempt = async |candidate: Option<&Candidate>| {
        let auth = candidate.map(|it| registry::auth(&it.credential, place));
        cri.pull(wanted.image, request(wanted, auth)).await
    };
    let Some((last, others)) = candidates.split_last() else { return Ok(attempt(None).await?) };
    let shown = |it: &Candidate| format!("{} of {}", it.credential.described(), it.origin);
    let mut tries = Vec::new();
    for candidate in others {
        match attempt(Some(candidate)).await {
            Ok(id) => return Ok(id),
            Err(error) => bars.say(&format!("not with {}: {error}", shown(candidate))),
        }
        tries.push(shown(candidate));
    }
    attempt(Some(last)).await.map_err(|source| {
        tries.push(shown(last));
        PullError::Refused { tries, source }
    })
}

fn request(wanted: Wanted<'_>, auth: Option<AuthConfig>) -> PullImageRequest {
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
    let there = cri.handlers().await?;
    if there.is_empty() || there.iter().any(|it| it == handler) {
        return Ok(());
    }
    Err(PullError::Handler { handler: handler.to_owned(), there })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_handler_is_told_in_each_way_that_a_runtime_reads() {
        let reference: Reference = "reg.example/a".parse().unwrap();
        let wanted = Wanted {
            image: "reg.example/a",
            reference: &reference,
            handler: "gvisor",
            sandbox: None,
        };
        let told = request(wanted, None);
        let image = told.image.unwrap();
        assert_eq!(
            (image.image.as_str(), image.runtime_handler.as_str()),
            ("reg.example/a", "gvisor")
        );
        assert_eq!(told.sandbox_config.unwrap().annotations[HANDLER_ANNOTATION], "gvisor");
        let plain = request(Wanted { handler: "", ..wanted }, None);
        assert!(plain.image.unwrap().annotations.is_empty());
        assert!(plain.sandbox_config.unwrap().annotations.is_empty());
    }
}
