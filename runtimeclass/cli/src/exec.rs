//! `bulkhead exec` and `bulkhead attach`.

use std::time::Duration;

use k8s_cri::v1::{Container, ContainerState};

use crate::args::RunArgs;
use crate::cri::Cri;
use crate::find::{self, FindError};
use crate::play::{self, PlayError};
use crate::pod::TTY_ANNOTATION;
use crate::stream::{self, Wanted};

/// How often, and how far apart, a container is looked at once its streams have ended.
const EXIT_LOOKS: u32 = 20;
const EXIT_PAUSE: Duration = Duration::from_millis(25);

/// Runs a command in the container that `name` names, the Pod's first by default; its exit code comes back.
pub(crate) async fn run(
    cri: &Cri,
    name: &str,
    args: &RunArgs,
    command: &[String],
    timeout: Option<u32>,
) -> Result<u8, PlayError> {
    let container = container(cri, name).await?;
    if args.stdin || args.tty {
        let wanted = Wanted { stdin: args.stdin, tty: args.tty };
        let url = cri.exec_url(&container.id, command.to_vec(), args.stdin, args.tty).await?;
        return Ok(stream::run(&url, wanted).await?);
    }
    let timeout = timeout.unwrap_or_default().into();
    let answer = cri.exec(&container.id, command.to_vec(), timeout).await?;
    play::print(&answer.stdout, &answer.stderr)?;
    Ok(u8::try_from(answer.exit_code).unwrap_or(u8::MAX))
}

/// Connects with a container's own process; its exit code comes back if it ended.
pub(crate) async fn attach(cri: &Cri, name: &str, stdin: bool) -> Result<u8, PlayError> {
    let container = container(cri, name).await?;
    let tty = container.annotations.contains_key(TTY_ANNOTATION);
    let url = cri.attach_url(&container.id, stdin, tty).await?;
    let code = stream::run(&url, Wanted { stdin, tty }).await?;
    if code != 0 {
        return Ok(code);
    }
    // The stream ends a moment before the runtime knows of the exit, or because the input ended.
    for _ in 0..EXIT_LOOKS {
        let status = cri.container_status(&container.id).await?;
        if status.state == i32::from(ContainerState::ContainerExited) {
            return Ok(u8::try_from(status.exit_code).unwrap_or(u8::MAX));
        }
        tokio::time::sleep(EXIT_PAUSE).await;
    }
    Ok(0)
}

/// The container that was named; of a whole Pod the first one that runs.
async fn container(cri: &Cri, name: &str) -> Result<Container, FindError> {
    let mut containers = find::find(cri, name).await?.containers;
    let running = |it: &Container| it.state == i32::from(ContainerState::ContainerRunning);
    let at = containers.iter().position(running).unwrap_or_default();
    if containers.is_empty() {
        return Err(FindError::Missing(name.to_owned()));
    }
    Ok(containers.swap_remove(at))
}
