//! All objects of all files, and how they refer to each other.

use crate::object::{ConfigMap, RuntimeClass, Secret};
use crate::pod::Pod;
use crate::resources::Amounts;

/// All objects of all files, in the order in which they were read.
#[derive(Debug, Default)]
pub struct Manifest {
    /// `v1` Pods.
    pub pods: Vec<Pod>,
    /// `v1` Secrets.
    pub secrets: Vec<Secret>,
    /// `v1` ConfigMaps.
    pub config_maps: Vec<ConfigMap>,
    /// `node.k8s.io/v1` RuntimeClasses.
    pub runtime_classes: Vec<RuntimeClass>,
}

impl Manifest {
    /// The Secret of that name.
    pub fn secret(&self, namespace: &str, name: &str) -> Option<&Secret> {
        self.secrets.iter().find(|it| it.meta.name == name && it.meta.namespace == namespace)
    }

    /// The ConfigMap of that name.
    pub fn config_map(&self, namespace: &str, name: &str) -> Option<&ConfigMap> {
        self.config_maps.iter().find(|it| it.meta.name == name && it.meta.namespace == namespace)
    }

    /// The RuntimeClass of that name.
    pub fn runtime_class(&self, name: &str) -> Option<&RuntimeClass> {
        self.runtime_classes.iter().find(|it| it.meta.name == name)
    }

    /// The Pod's runtime handler: that of its RuntimeClass if the files have it, else the class's own name. Empty
    /// for the runtime's default handler.
    pub fn handler(&self, pod: &Pod) -> String {
        let name = pod.runtime_class.clone().unwrap_or_default();
        self.runtime_class(&name).map_or(name, |class| class.handler.clone())
    }

    /// The Pod's overhead: its own `spec.overhead`, else its RuntimeClass's.
    pub fn overhead(&self, pod: &Pod) -> Amounts {
        let class = pod.runtime_class.as_deref().and_then(|name| self.runtime_class(name));
        pod.overhead.or(class.map(|class| class.overhead)).unwrap_or_default()
    }
}
