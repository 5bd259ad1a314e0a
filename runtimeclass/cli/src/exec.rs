//! `bulkhead exec` and `bulkhead attach`.

use k8s_cri::v1::{Container, ContainerState};

use crate::args::RunArgs;
use crate::cri::Cri;
use crate::find::{self, FindError};
use crate::play::{self, PlayError};
use crate::pod::TTY_ANNOTATION;
use crate::stream::{self, Wanted};

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

/// Connects with a container's own process until it ends or the input does.
pub(crate) async fn attach(cri: &Cri, name: &str, stdin: bool) -> Result<u8, PlayError> {
    let container = container(cri, name).await?;
    let tty = container.annotations.contains_key(TTY_ANNOTATION);
    let url = cri.attach_url(&container.id, stdin, tty).await?;
    Ok(stream::run(&url, Wanted { stdin, tty }).await?)
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
