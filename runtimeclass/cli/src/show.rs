//! `bulkhead ps` and `bulkhead logs`.

use std::path::PathBuf;
use std::sync::Arc;

use k8s_cri::v1::{ContainerState, ContainerStatus, PodSandbox, PodSandboxState};
use pod_runner::{
    Cri, CriError, Follower, LogError, Output, Printer, StartedContainer, WaitError, print_log,
    sandboxes, until_exit,
};

use crate::find::{self, FindError, container_name, pod_name};
use crate::output;

/// Why Pods or logs could not be shown.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ShowError {
    #[error(transparent)]
    Cri(#[from] CriError),
    #[error(transparent)]
    Find(#[from] FindError),
    #[error(transparent)]
    Log(#[from] LogError),
    #[error(transparent)]
    Wait(#[from] WaitError),
    #[error("cannot print")]
    Print(#[from] std::io::Error),
}

/// Lists the played Pods with their handlers, states and containers.
pub(crate) async fn ps(cri: &Cri) -> Result<u8, ShowError> {
    let mut rows = vec![["POD", "HANDLER", "STATE", "IP", "CONTAINERS"].map(str::to_owned)];
    for sandbox in sandboxes(cri, None).await? {
        match row(cri, sandbox).await {
            Ok(row) => rows.push(row),
            // Removed since it was listed.
            Err(error) if error.code() == Some(tonic::Code::NotFound) => {}
            Err(error) => return Err(error.into()),
        }
    }
    output::print(table(&rows).as_bytes(), b"")?;
    Ok(0)
}

async fn row(cri: &Cri, sandbox: PodSandbox) -> Result<[String; 5], CriError> {
    let dash = |text: String| if text.is_empty() { "-".to_owned() } else { text };
    let ready = sandbox.state == i32::from(PodSandboxState::SandboxReady);
    let network = cri.sandbox_status(&sandbox.id).await?.network.unwrap_or_default();
    let mut containers = cri.containers(&sandbox.id).await?;
    containers.sort_by_key(|container| container.created_at);
    let mut states = Vec::new();
    for container in &containers {
        let status = cri.container_status(&container.id).await?;
        states.push(format!("{}={}", container_name(container), state(&status)));
    }
    Ok([
        pod_name(&sandbox),
        dash(sandbox.runtime_handler),
        if ready { "Ready" } else { "NotReady" }.to_owned(),
        dash(network.ip),
        dash(states.join(",")),
    ])
}

fn state(status: &ContainerStatus) -> String {
    match ContainerState::try_from(status.state) {
        Ok(ContainerState::ContainerCreated) => "Created".to_owned(),
        Ok(ContainerState::ContainerRunning) => "Running".to_owned(),
        Ok(ContainerState::ContainerExited) => format!("Exited({})", status.exit_code),
        Ok(ContainerState::ContainerUnknown) | Err(_) => "Unknown".to_owned(),
    }
}

fn table<const N: usize>(rows: &[[String; N]]) -> String {
    let mut text = String::new();
    for row in rows {
        let mut line = String::new();
        for (at, cell) in row.iter().enumerate() {
            let width = rows.iter().map(|row| row[at].len()).max().unwrap_or_default();
            line.push_str(&format!("{cell:width$}  "));
        }
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

/// Prints the logs of a Pod's containers; with `follow` until they exit.
pub(crate) async fn logs(cri: &Cri, name: &str, follow: bool) -> Result<u8, ShowError> {
    let found = find::find(cri, name).await?;
    let output = Arc::new(Output::standard());
    let several = found.containers.len() > 1;
    let mut waits = tokio::task::JoinSet::new();
    for container in &found.containers {
        let path = PathBuf::from(cri.container_status(&container.id).await?.log_path);
        let prefix = several.then(|| container_name(container).to_owned());
        let printer = Printer::new(Arc::clone(&output), prefix);
        if !follow {
            print_log(&path, printer)?;
            continue;
        }
        let started = StartedContainer {
            pod: pod_name(&found.sandbox),
            name: container_name(container).to_owned(),
            id: container.id.clone(),
            log: Some(Follower::start(&path, printer)?),
            message: PathBuf::new(),
        };
        let cri = cri.clone();
        waits.spawn(async move { until_exit(&cri, started).await });
    }
    while let Some(result) = waits.join_next().await {
        match result {
            Ok(result) => drop(result?),
            Err(error) => std::panic::resume_unwind(error.into_panic()),
        }
    }
    Ok(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_line_up() {
        let rows = [["A", "B"], ["long", "x"]].map(|row| row.map(str::to_owned));
        assert_eq!(table(&rows), "A     B\nlong  x\n");
    }
}
