//! `ContainerConfig`.

use std::path::Path;

use k8s_cri::v1::{
    ContainerConfig, ContainerMetadata, ImageSpec, KeyValue, LinuxContainerConfig, Mount,
    MountPropagation,
};

use kube_manifest::{Container, Propagation, SubPath, VolumeMount};

use super::env::{self, Environment};
use super::expand::expand;
use super::input::{ContainerFacts, ConvertError, Source};
use super::{resources, sandbox, security};
use crate::directory::log_path;
use crate::labels::{CONTAINER_LABEL, TTY_ANNOTATION};

/// The message that creates a container; its mounts are added by the caller.
pub(crate) fn container_config(
    source: Source<'_>,
    container: &Container,
    facts: &ContainerFacts<'_>,
) -> Result<ContainerConfig, ConvertError> {
    let environment = env::environment(source, container, facts.pod_ips)?;
    let expanded = |words: &[String]| -> Vec<String> {
        words.iter().map(|word| expand(word, |name| environment.get(name), |_| {})).collect()
    };
    let mut labels = sandbox::labels(source);
    labels.insert(CONTAINER_LABEL.to_owned(), container.name.clone());
    let terminal = container.tty.then(|| (TTY_ANNOTATION.to_owned(), "true".to_owned()));
    let annotations = terminal.into_iter().collect();
    Ok(ContainerConfig {
        metadata: Some(ContainerMetadata { name: container.name.clone(), attempt: 0 }),
        image: Some(ImageSpec {
            image: facts.image.id.clone(),
            user_specified_image: container.image.clone(),
            ..ImageSpec::default()
        }),
        command: expanded(&container.command),
        args: expanded(&container.args),
        working_dir: container.working_dir.clone().unwrap_or_default(),
        labels,
        annotations,
        log_path: log_path(&container.name),
        stdin: container.stdin,
        stdin_once: container.stdin_once,
        tty: container.tty,
        linux: Some(LinuxContainerConfig {
            resources: Some(resources::container(
                source.pod,
                &container.resources,
                source.node.memory,
            )),
            security_context: Some(security::container(source, container, facts)?),
        }),
        envs: pairs(environment),
        ..ContainerConfig::default()
    })
}

fn pairs(environment: Environment) -> Vec<KeyValue> {
    let pair = |(key, value)| KeyValue { key, value };
    environment.into_pairs().into_iter().map(pair).collect()
}

/// The mount's path inside the volume, with `subPathExpr` expanded by the container's variables.
pub(crate) fn sub_path(
    source: Source<'_>,
    container: &Container,
    mount: &VolumeMount,
    pod_ips: &[String],
) -> Result<Option<String>, ConvertError> {
    let expression = match &mount.sub_path {
        None => return Ok(None),
        Some(SubPath::Plain(path)) => return Ok(Some(path.clone())),
        Some(SubPath::Expression(expression)) => expression,
    };
    let environment = env::environment(source, container, pod_ips)?;
    let mut missing = false;
    let expanded = expand(expression, |name| environment.get(name), |_| missing = true);
    let path = mount.path.clone();
    if missing {
        return Err(ConvertError::Expression { path, expression: expression.clone() });
    }
    if expanded.starts_with('/') || expanded.split('/').any(|part| part == "..") {
        return Err(ConvertError::Escape { path, expanded });
    }
    Ok(Some(expanded))
}

/// One mount of the volume at `host_path`.
pub(crate) fn volume_mount(mount: &VolumeMount, host_path: &Path, read_only: bool) -> Mount {
    let propagation = match mount.propagation {
        Propagation::Private => MountPropagation::PropagationPrivate,
        Propagation::HostToContainer => MountPropagation::PropagationHostToContainer,
        Propagation::Bidirectional => MountPropagation::PropagationBidirectional,
    };
    Mount {
        container_path: mount.target.clone(),
        host_path: host_path.display().to_string(),
        readonly: mount.read_only || read_only,
        propagation: propagation.into(),
        ..Mount::default()
    }
}
