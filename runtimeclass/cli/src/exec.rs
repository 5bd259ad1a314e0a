//! `bulkhead exec`: a command in a running container.

use crate::cri::Cri;
use crate::find;
use crate::play::{self, PlayError};

/// Runs a command in the container that `name` names, the Pod's first by default; its exit code comes back.
pub(crate) async fn run(
    cri: &Cri,
    name: &str,
    command: &[String],
    timeout: Option<u32>,
) -> Result<u8, PlayError> {
    let found = find::find(cri, name).await?;
    let running = |container: &&k8s_cri::v1::Container| {
        container.state == i32::from(k8s_cri::v1::ContainerState::ContainerRunning)
    };
    let container = found.containers.iter().find(running).or(found.containers.first());
    let container = container.ok_or_else(|| find::FindError::Missing(name.to_owned()))?;
    let answer =
        cri.exec(&container.id, command.to_vec(), timeout.unwrap_or_default().into()).await?;
    play::print(&answer.stdout, &answer.stderr)?;
    Ok(u8::try_from(answer.exit_code).unwrap_or(u8::MAX))
}
