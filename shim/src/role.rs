//! The part a container plays in its Pod, which decides whether it launches the sandbox or joins it.

use oci_spec::runtime::Spec;
use sandbox_core::annotation::{CONTAINER_TYPE, SANDBOX_ID};
use sandbox_core::{Id, Result};

/// The part a container plays in its Pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Role {
    /// CRI's pause container: the sandbox is launched with it.
    Pause,
    /// A container that joins the sandbox of the named Pod.
    Member {
        /// The pause container's id.
        sandbox: Id,
    },
    /// A container without a Pod (`ctr run`, nerdctl, BuildKit): launches a sandbox of its own,
    /// or joins that of its group.
    Standalone,
}

impl Role {
    /// Reads the role from the annotations that CRI sets.
    ///
    /// # Errors
    ///
    /// [`sandbox_core::Kind::InvalidArgument`] when the sandbox id is not valid.
    pub(crate) fn of(spec: &Spec) -> Result<Self> {
        let annotation =
            |key| spec.annotations().as_ref().and_then(|all| all.get(key)).map(String::as_str);
        match (annotation(CONTAINER_TYPE), annotation(SANDBOX_ID)) {
            (Some("container"), Some(sandbox)) => Ok(Self::Member { sandbox: Id::new(sandbox)? }),
            (Some("sandbox"), _) => Ok(Self::Pause),
            _ => Ok(Self::Standalone),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn annotations_decide() {
        let of = |annotations: serde_json::Value| {
            let spec = serde_json::json!({"ociVersion": "1.1.0", "annotations": annotations});
            Role::of(&serde_json::from_value(spec).unwrap())
        };
        let sandbox = || Id::new("pod1").unwrap();
        let member = serde_json::json!({CONTAINER_TYPE: "container", SANDBOX_ID: "pod1"});
        assert_eq!(of(member).unwrap(), Role::Member { sandbox: sandbox() });
        let pause = serde_json::json!({CONTAINER_TYPE: "sandbox", SANDBOX_ID: "pod1"});
        assert_eq!(of(pause).unwrap(), Role::Pause);
        assert_eq!(of(serde_json::json!({})).unwrap(), Role::Standalone);
        let bad = serde_json::json!({CONTAINER_TYPE: "container", SANDBOX_ID: "../pod1"});
        assert!(of(bad).is_err());
    }
}
