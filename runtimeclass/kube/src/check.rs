//! Checks that need more than one object: unique names and references.

use std::collections::HashSet;

use crate::container::{Container, EnvValue};
use crate::findings::Findings;
use crate::manifest::Manifest;
use crate::object::{DataKind, DataSource, Secret};
use crate::pod::Pod;
use crate::volume::VolumeSource;

/// Adds a fault for every duplicate name and every reference to something missing.
pub(crate) fn references(manifest: &Manifest, findings: &Findings) {
    References { manifest, findings }.check();
}

struct References<'a> {
    manifest: &'a Manifest,
    findings: &'a Findings,
}

impl References<'_> {
    fn check(&self) {
        let Self { manifest, findings } = self;
        if manifest.pods.is_empty() && !findings.has_faults() {
            findings.fault("the files", "", "there is no Pod in them, so there is nothing to run");
        }
        let secrets =
            manifest.secrets.iter().map(|it| (&it.document, "Secret", it.meta.to_string()));
        let maps =
            manifest.config_maps.iter().map(|it| (&it.document, "ConfigMap", it.meta.to_string()));
        let classes = manifest
            .runtime_classes
            .iter()
            .map(|it| (&it.document, "RuntimeClass", it.meta.name.clone()));
        let pods = manifest.pods.iter().map(|it| (&it.document, "Pod", it.meta.to_string()));
        let mut seen = HashSet::new();
        for (document, kind, name) in secrets.chain(maps).chain(classes).chain(pods) {
            if !seen.insert((kind, name)) {
                findings.fault(document, "metadata.name", "is used twice in the files; rename one");
            }
        }
        for pod in &manifest.pods {
            self.check_pod(pod);
        }
    }

    fn check_pod(&self, pod: &Pod) {
        let mut names = HashSet::new();
        for container in pod.all_containers() {
            if !names.insert(container.name.as_str()) && !container.name.is_empty() {
                let text = format!("{:?} is used by two containers of the Pod", container.name);
                self.findings.fault(&pod.document, &format!("{}.name", container.path), text);
            }
            self.check_container(pod, container);
        }
        let mut names = HashSet::new();
        for volume in &pod.volumes {
            if !names.insert(volume.name.as_str()) && !volume.name.is_empty() {
                let text = format!("{:?} is used by two volumes of the Pod", volume.name);
                self.findings.fault(&pod.document, &format!("{}.name", volume.path), text);
            }
            if let VolumeSource::Data { source, items, .. } = &volume.source {
                self.check_source(pod, source);
                for item in items.iter().flatten() {
                    self.check_key(pod, source, &item.key);
                }
            }
        }
        for name in
            pod.image_pull_secrets.iter().filter(|name| self.pull_secret(pod, name).is_none())
        {
            let text =
                format!("Secret {name:?} is not in the files; its registry gets no credentials");
            self.findings.note(&pod.document, "spec.imagePullSecrets", text);
        }
    }

    fn pull_secret(&self, pod: &Pod, name: &str) -> Option<&Secret> {
        self.manifest.secret(&pod.meta.namespace, name)
    }

    fn check_container(&self, pod: &Pod, container: &Container) {
        for from in &container.env_from {
            self.check_source(pod, &from.source);
        }
        for var in &container.env {
            if let EnvValue::Key { source, key } = &var.value {
                self.check_source(pod, source);
                self.check_key(pod, source, key);
            }
        }
        let mut targets = HashSet::new();
        for mount in &container.mounts {
            if !pod.volumes.iter().any(|volume| volume.name == mount.volume) {
                let text = format!("no volume {:?} in spec.volumes", mount.volume);
                self.findings.fault(&pod.document, &format!("{}.name", mount.path), text);
            }
            if !targets.insert(mount.target.as_str()) {
                let text = format!("{:?} is mounted twice", mount.target);
                self.findings.fault(&pod.document, &format!("{}.mountPath", mount.path), text);
            }
        }
    }

    fn check_source(&self, pod: &Pod, source: &DataSource) {
        let namespace = &pod.meta.namespace;
        let found = match source.kind {
            DataKind::ConfigMap => self.manifest.config_map(namespace, &source.name).is_some(),
            DataKind::Secret => self.manifest.secret(namespace, &source.name).is_some(),
        };
        if !found && !source.optional && !source.name.is_empty() {
            let text = format!(
                "{} {:?} is not in the files (namespace {namespace}); add its document, or set optional: true",
                source.kind, source.name
            );
            self.findings.fault(&pod.document, &source.path, text);
        }
    }

    fn check_key(&self, pod: &Pod, source: &DataSource, key: &str) {
        let namespace = &pod.meta.namespace;
        let missing = match source.kind {
            DataKind::ConfigMap => self
                .manifest
                .config_map(namespace, &source.name)
                .is_some_and(|it| it.bytes(key).is_none()),
            DataKind::Secret => self
                .manifest
                .secret(namespace, &source.name)
                .is_some_and(|it| !it.data.contains_key(key)),
        };
        if missing && !source.optional && !key.is_empty() {
            let text = format!("{} {:?} has no key {key:?}", source.kind, source.name);
            self.findings.fault(&pod.document, &source.path, text);
        }
    }
}
