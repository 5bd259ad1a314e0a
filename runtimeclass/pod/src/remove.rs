//! Removing Pods: from the runtime, then from this node.

use std::collections::{BTreeSet, HashMap};
use std::path::{Path, PathBuf};

use k8s_cri::v1::PodSandbox;
use sandbox_host::cgroup::CgroupError;

use crate::cgroup;
use crate::cri::{Cri, CriError};
use crate::directory::{self, DirectoryError};
use crate::labels::{
    DIRECTORY_ANNOTATION, GRACE_ANNOTATION, NAME_LABEL, NAMESPACE_LABEL, PLAY_LABEL, UID_LABEL,
};
use crate::node_error::NodeError;

/// The grace period of a Pod without the annotation, in seconds.
const DEFAULT_GRACE: i64 = 30;

/// Why a Pod could not be removed completely. Everything else of it was removed.
#[derive(Debug, thiserror::Error)]
pub enum RemoveError {
    /// A call to the runtime failed.
    #[error(transparent)]
    Cri(#[from] CriError),
    /// The Pod's directory could not be removed.
    #[error(transparent)]
    Directory(#[from] DirectoryError),
    /// A directory's record could not be read.
    #[error(transparent)]
    Node(#[from] NodeError),
    /// The Pod's cgroup could not be removed.
    #[error(transparent)]
    Cgroup(#[from] CgroupError),
}

/// Every sandbox of this crate, or those of one Pod (namespace and name).
///
/// # Errors
///
/// [`CriError`] when they cannot be listed.
pub async fn sandboxes(cri: &Cri, pod: Option<(&str, &str)>) -> Result<Vec<PodSandbox>, CriError> {
    let mut labels = HashMap::from([(PLAY_LABEL.to_owned(), "true".to_owned())]);
    if let Some((namespace, name)) = pod {
        labels.insert(NAMESPACE_LABEL.to_owned(), namespace.to_owned());
        labels.insert(NAME_LABEL.to_owned(), name.to_owned());
    }
    cri.sandboxes(labels).await
}

/// Namespaces and names of all Pods that the runtime knows or that have a directory below `state`.
///
/// # Errors
///
/// [`RemoveError`] when they cannot be listed.
pub async fn all_pods(cri: &Cri, state: &Path) -> Result<BTreeSet<(String, String)>, RemoveError> {
    let mut pods = BTreeSet::new();
    for sandbox in sandboxes(cri, None).await? {
        let label = |key| sandbox.labels.get(key).cloned().unwrap_or_default();
        pods.insert((label(NAMESPACE_LABEL), label(NAME_LABEL)));
    }
    for record in directory::records(state)? {
        pods.insert((record.namespace, record.name));
    }
    Ok(pods)
}

/// Removes one Pod (namespace and name); returns whether it existed. `grace` overrides the Pod's own grace period, in
/// seconds.
///
/// # Errors
///
/// All errors: an error does not keep the rest of the Pod from being removed, except that volumes stay while a
/// sandbox may use them.
pub async fn remove(
    cri: &Cri,
    state: &Path,
    (namespace, name): (&str, &str),
    grace: Option<i64>,
) -> Result<bool, Vec<RemoveError>> {
    let mut errors = Vec::new();
    let mut uids = BTreeSet::new();
    let mut directories = BTreeSet::from([directory::pod_directory(state, namespace, name)]);
    let found = match sandboxes(cri, Some((namespace, name))).await {
        Ok(found) => found,
        Err(error) => return Err(vec![error.into()]),
    };
    let mut present = !found.is_empty();
    for sandbox in &found {
        uids.extend(sandbox.labels.get(UID_LABEL).cloned());
        directories.extend(sandbox.annotations.get(DIRECTORY_ANNOTATION).map(PathBuf::from));
        if let Err(error) = remove_sandbox(cri, sandbox, grace).await {
            errors.push(error.into());
        }
    }
    if !errors.is_empty() {
        // Containers may still use the volumes.
        return Err(errors);
    }
    for path in directories {
        match directory::record(&path) {
            Ok(record) => uids.extend(record.map(|record| record.uid)),
            Err(error) => errors.push(error.into()),
        }
        match directory::remove(&path, namespace, name) {
            Ok(removed) => present |= removed,
            Err(error) => errors.push(error.into()),
        }
    }
    for uid in uids {
        if let Err(error) = cgroup::remove(&uid, cri.reporter()).await {
            errors.push(error.into());
        }
    }
    if errors.is_empty() { Ok(present) } else { Err(errors) }
}

async fn remove_sandbox(
    cri: &Cri,
    sandbox: &PodSandbox,
    grace: Option<i64>,
) -> Result<(), CriError> {
    let own = sandbox.annotations.get(GRACE_ANNOTATION).and_then(|text| text.parse().ok());
    let grace = grace.or(own).unwrap_or(DEFAULT_GRACE);
    let mut stops = tokio::task::JoinSet::new();
    for container in unless_gone(cri.containers(&sandbox.id).await)? {
        let cri = cri.clone();
        stops.spawn(async move { cri.stop_container(&container.id, grace).await });
    }
    let stopped = stops.join_all().await.into_iter().try_for_each(unless_gone);
    // Stopping the sandbox also stops containers that could not be stopped one by one.
    unless_gone(cri.stop_sandbox(&sandbox.id).await)?;
    unless_gone(cri.remove_sandbox(&sandbox.id).await)?;
    stopped
}

/// The same Pod may be removed concurrently: not found is success.
fn unless_gone<T: Default>(result: Result<T, CriError>) -> Result<T, CriError> {
    match result {
        Err(error) if error.code() == Some(tonic::Code::NotFound) => Ok(T::default()),
        result => result,
    }
}
