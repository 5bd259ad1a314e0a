//! Removing played Pods: what the runtime holds, then what this node holds.

use std::collections::{BTreeSet, HashMap};
use std::path::{Path, PathBuf};

use k8s_cri::v1::PodSandbox;

use crate::cgroup;
use crate::cri::{Cri, CriError};
use crate::host::HostError;
use crate::pod::{
    DIRECTORY_ANNOTATION, GRACE_ANNOTATION, NAME_LABEL, NAMESPACE_LABEL, PLAY_LABEL, UID_LABEL,
};
use crate::state::{self, StateError};

/// The grace of a Pod that does not say.
const DEFAULT_GRACE: i64 = 30;

/// Why a Pod could not be removed whole. Whatever could be removed is gone.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DownError {
    /// The runtime refused.
    #[error(transparent)]
    Cri(#[from] CriError),
    /// The directory or a cgroup stays.
    #[error(transparent)]
    State(#[from] StateError),
    /// The directory or a cgroup stays.
    #[error(transparent)]
    Host(#[from] HostError),
}

/// Every sandbox of play, or those of one Pod.
pub(crate) async fn sandboxes(
    cri: &Cri,
    pod: Option<(&str, &str)>,
) -> Result<Vec<PodSandbox>, CriError> {
    let mut labels = HashMap::from([(PLAY_LABEL.to_owned(), "true".to_owned())]);
    if let Some((namespace, name)) = pod {
        labels.insert(NAMESPACE_LABEL.to_owned(), namespace.to_owned());
        labels.insert(NAME_LABEL.to_owned(), name.to_owned());
    }
    cri.sandboxes(labels).await
}

/// The names of all Pods of which anything is left: known to the runtime or by their directory.
pub(crate) async fn all_pods(
    cri: &Cri,
    state: &Path,
) -> Result<BTreeSet<(String, String)>, DownError> {
    let mut pods = BTreeSet::new();
    for sandbox in sandboxes(cri, None).await? {
        let label = |key| sandbox.labels.get(key).cloned().unwrap_or_default();
        pods.insert((label(NAMESPACE_LABEL), label(NAME_LABEL)));
    }
    for record in state::records(state)? {
        pods.insert((record.namespace, record.name));
    }
    Ok(pods)
}

/// Removes one Pod; whether there was anything of it. Goes on after an error, and gives all of them back.
pub(crate) async fn remove(
    cri: &Cri,
    state: &Path,
    (namespace, name): (&str, &str),
    grace: Option<i64>,
) -> Result<bool, Vec<DownError>> {
    let mut errors = Vec::new();
    let mut uids = BTreeSet::new();
    let mut directories = BTreeSet::from([state::pod_directory(state, namespace, name)]);
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
    for directory in directories {
        match state::record(&directory) {
            Ok(record) => uids.extend(record.map(|record| record.uid)),
            Err(error) => errors.push(error.into()),
        }
        match state::remove(&directory, namespace, name) {
            Ok(removed) => present |= removed,
            Err(error) => errors.push(error.into()),
        }
    }
    for uid in uids {
        if let Err(error) = cgroup::remove(&uid).await {
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
    for container in gone_is_fine(cri.containers(&sandbox.id).await)? {
        let cri = cri.clone();
        stops.spawn(async move { cri.stop_container(&container.id, grace).await });
    }
    let stopped = stops.join_all().await.into_iter().try_for_each(gone_is_fine);
    // The sandbox takes with it whatever could not be stopped alone.
    gone_is_fine(cri.stop_sandbox(&sandbox.id).await)?;
    gone_is_fine(cri.remove_sandbox(&sandbox.id).await)?;
    stopped
}

/// Somebody else may remove the same Pod: what is gone is what it had to become.
fn gone_is_fine<T: Default>(result: Result<T, CriError>) -> Result<T, CriError> {
    match result {
        Err(error) if error.code() == Some(tonic::Code::NotFound) => Ok(T::default()),
        result => result,
    }
}
