//! Finding played containers by the names that people type.

use k8s_cri::v1::{Container, PodSandbox};

use crate::cri::{Cri, CriError};
use crate::down;
use crate::pod::{CONTAINER_LABEL, NAME_LABEL, NAMESPACE_LABEL};

/// Why a name leads to no container.
#[derive(Debug, thiserror::Error)]
pub(crate) enum FindError {
    /// The runtime refused.
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
        /// The name that was given.
        container: String,
        /// The names that would do.
        known: String,
    },
    /// Several things have that name.
    #[error("{name:?} could be {found}; say the namespace and the container")]
    Ambiguous {
        /// The name that was given.
        name: String,
        /// What it could be.
        found: String,
    },
}

/// A played Pod and those of its containers that were meant, in the order of their creation.
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

/// Whether a Pod can be what `parts` name, and which container of it: `None` is any.
fn meaning<'a>(parts: &[&'a str], namespace: &str, name: &str) -> Option<Option<&'a str>> {
    match *parts {
        [pod] if pod == name => Some(None),
        [first, second] if first == namespace && second == name => Some(None),
        [pod, container] if pod == name => Some(Some(container)),
        [first, pod, container] if first == namespace && pod == name => Some(Some(container)),
        _ => None,
    }
}

/// The Pod and containers that `text` names.
pub(crate) async fn find(cri: &Cri, text: &str) -> Result<Found, FindError> {
    let parts: Vec<&str> = text.split('/').collect();
    if parts.len() > 3 || parts.iter().any(|part| part.is_empty()) {
        return Err(FindError::Form(text.to_owned()));
    }
    let mut matches = Vec::new();
    for sandbox in down::sandboxes(cri, None).await? {
        let label = |key| sandbox.labels.get(key).cloned().unwrap_or_default();
        if let Some(container) = meaning(&parts, &label(NAMESPACE_LABEL), &label(NAME_LABEL)) {
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
        let (pod, container) = (pod_name(&sandbox), wanted.to_owned());
        return Err(FindError::Container { pod, container, known: known.join(", ") });
    }
    Ok(Found { sandbox, containers })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_mean() {
        for (parts, wanted) in [
            (&["web"][..], Some(None)),
            (&["ns", "web"], Some(None)),
            (&["web", "main"], Some(Some("main"))),
            (&["ns", "web", "main"], Some(Some("main"))),
            (&["other"], None),
            (&["other", "web"], None),
            (&["other", "web", "main"], None),
        ] {
            assert_eq!(meaning(parts, "ns", "web"), wanted, "{parts:?}");
        }
    }
}
