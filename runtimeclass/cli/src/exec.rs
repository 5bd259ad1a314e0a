//! `bulkhead exec` and `bulkhead attach`.

use std::time::Duration;

use k8s_cri::v1::{Container, ContainerState};
use pod_runner::{Cri, CriError, TTY_ANNOTATION};

use crate::args::RunArgs;
use crate::find::{self, FindError};
use crate::output;
use crate::stream::{self, StreamError, Wanted};

/// How often, and at which interval, a container's state is read after its streams were closed.
const EXIT_LOOKS: u32 = 20;
const EXIT_PAUSE: Duration = Duration::from_millis(25);

/// Why a command could not be run, or a container not be attached to.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ExecError {
    #[error(transparent)]
    Cri(#[from] CriError),
    #[error(transparent)]
    Find(#[from] FindError),
    #[error(transparent)]
    Stream(#[from] StreamError),
    #[error("cannot print the command's output")]
    Print(#[from] std::io::Error),
}

/// Runs a command in the container that `name` selects, by default the Pod's first; returns its exit code.
pub(crate) async fn run(
    cri: &Cri,
    name: &str,
    args: &RunArgs,
    command: &[String],
    timeout: Option<u32>,
) -> Result<u8, ExecError> {
    let container = container(cri, name).await?;
    if args.stdin || args.tty {
        let wanted = Wanted { stdin: args.stdin, tty: args.tty };
        let url = cri.exec_url(&container.id, command.to_vec(), args.stdin, args.tty).await?;
        return Ok(stream::run(&url, wanted).await?);
    }
    let timeout = timeout.unwrap_or_default().into();
    let answer = cri.exec(&container.id, command.to_vec(), timeout).await?;
    output::print(&answer.stdout, &answer.stderr)?;
    Ok(u8::try_from(answer.exit_code).unwrap_or(u8::MAX))
}

/// Attaches to a container's own process; returns its exit code if it exited.
pub(crate) async fn attach(cri: &Cri, name: &str, stdin: bool) -> Result<u8, ExecError> {
    let container = container(cri, name).await?;
    let tty = container.annotations.contains_key(TTY_ANNOTATION);
    let url = cri.attach_url(&container.id, stdin, tty).await?;
    let code = stream::run(&url, Wanted { stdin, tty }).await?;
    if code != 0 {
        return Ok(code);
    }
    // The stream closes shortly before the runtime notices the exit, or because the input was closed.
    for _ in 0..EXIT_LOOKS {
        let status = cri.container_status(&container.id).await?;
        if status.state == i32::from(ContainerState::ContainerExited) {
            return Ok(u8::try_from(status.exit_code).unwrap_or(u8::MAX));
        }
        tokio::time::sleep(EXIT_PAUSE).await;
    }
    Ok(0)
}

/// The selected container; of a whole Pod the first one that runs.
async fn container(cri: &Cri, name: &str) -> Result<Container, FindError> {
    let mut containers = find::find(cri, name).await?.containers;
    let running = |it: &Container| it.state == i32::from(ContainerState::ContainerRunning);
    let at = containers.iter().position(running).unwrap_or_default();
    if containers.is_empty() {
        return Err(FindError::Missing(name.to_owned()));
    }
    Ok(containers.swap_remove(at))
}
