//! Finding played containers by name.

use k8s_cri::v1::{Container, PodSandbox};
use pod_runner::{CONTAINER_LABEL, Cri, CriError, NAME_LABEL, NAMESPACE_LABEL, sandboxes};

/// Why a name selects no container.
#[derive(Debug, thiserror::Error)]
pub(crate) enum FindError {
    /// A call to the runtime failed.
    #[error(transparent)]
    Cri(#[from] CriError),
    /// Too many or empty parts.
    #[error("{0:?} is not [NAMESPACE/]POD[/CONTAINER]")]
    Form(String),
    /// Nothing of that name.
    #[error("no played Pod is named {0:?}; `bulkhead ps` lists them")]
    Missing(String),
    /// The Pod has no such container.
    #[error("Pod {pod} has no container {container:?}; it has {known}")]
    Container {
        /// The Pod.
        pod: String,
        /// The requested name.
        container: String,
        /// The names of its containers.
        known: String,
    },
    /// Several Pods have that name.
    #[error("{name:?} could be {found}; add the namespace and the container")]
    Ambiguous {
        /// The requested name.
        name: String,
        /// The candidates.
        found: String,
    },
}

/// A played Pod and the selected containers, in the order of their creation.
#[derive(Debug)]
pub(crate) struct Found {
    pub(crate) sandbox: PodSandbox,
    pub(crate) containers: Vec<Container>,
}

/// The Pod's namespace and name as one text.
pub(crate) fn pod_name(sandbox: &PodSandbox) -> String {
    let label = |key| sandbox.labels.get(key).map_or("", String::as_str);
    format!("{}/{}", label(NAMESPACE_LABEL), label(NAME_LABEL))
}

/// The container's name in the Pod.
pub(crate) fn container_name(container: &Container) -> &str {
    container.labels.get(CONTAINER_LABEL).map_or("", String::as_str)
}

/// Whether `parts` select a Pod, and which container of it; `Some(None)` is all of them.
fn selection<'a>(parts: &[&'a str], namespace: &str, name: &str) -> Option<Option<&'a str>> {
    match *parts {
        [pod] if pod == name => Some(None),
        [first, second] if first == namespace && second == name => Some(None),
        [pod, container] if pod == name => Some(Some(container)),
        [first, pod, container] if first == namespace && pod == name => Some(Some(container)),
        _ => None,
    }
}

/// The Pod and containers that `text` selects.
pub(crate) async fn find(cri: &Cri, text: &str) -> Result<Found, FindError> {
    let parts: Vec<&str> = text.split('/').collect();
    if parts.len() > 3 || parts.iter().any(|part| part.is_empty()) {
        return Err(FindError::Form(text.to_owned()));
    }
    let mut matches = Vec::new();
    for sandbox in sandboxes(cri, None).await? {
        let label = |key| sandbox.labels.get(key).cloned().unwrap_or_default();
        if let Some(container) = selection(&parts, &label(NAMESPACE_LABEL), &label(NAME_LABEL)) {
            matches.push((sandbox, container));
        }
    }
    if matches.len() > 1 {
        let found: Vec<String> = matches.iter().map(|(sandbox, _)| pod_name(sandbox)).collect();
        return Err(FindError::Ambiguous { name: text.to_owned(), found: found.join(" or ") });
    }
    let (sandbox, wanted) = matches.pop().ok_or_else(|| FindError::Missing(text.to_owned()))?;
    let mut containers = cri.containers(&sandbox.id).await?;
    containers.sort_by_key(|container| container.created_at);
    let Some(wanted) = wanted else { return Ok(Found { sandbox, containers }) };
    let known: Vec<String> = containers.iter().map(|it| container_name(it).to_owned()).collect();
    containers.retain(|container| container_name(container) == wanted);
    if containers.is_empty() {
        return Err(FindError::Container {
            pod: pod_name(&sandbox),
            container: wanted.to_owned(),
            known: known.join(", "),
        });
    }
    Ok(Found { sandbox, containers })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_select() {
        for (parts, wanted) in [
            (&["web"][..], Some(None)),
            (&["ns", "web"], Some(None)),
            (&["web", "main"], Some(Some("main"))),
            (&["ns", "web", "main"], Some(Some("main"))),
            (&["other"], None),
            (&["other", "web"], None),
            (&["other", "web", "main"], None),
        ] {
            assert_eq!(selection(parts, "ns", "web"), wanted, "{parts:?}");
        }
    }
}
