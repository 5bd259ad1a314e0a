//! The two `securityContext`s.

use std::collections::BTreeMap;

use crate::fields::Fields;
use crate::security::{ContainerSecurity, Identity, PodSecurity, Profile, SeLinux};

const ID: std::ops::RangeInclusive<i64> = 0..=2_147_483_647;

const WINDOWS: (&str, &str) = ("windowsOptions", "play runs Linux containers");

/// Reads the Pod's `securityContext`.
pub(super) fn pod(spec: &mut Fields<'_>) -> PodSecurity {
    let Some(mut fields) = spec.fields("securityContext") else { return PodSecurity::default() };
    let identity = identity(&mut fields);
    let fs_group = fields.integer_in("fsGroup", ID);
    let supplemental_groups = groups(&mut fields);
    let strict = fields.word("supplementalGroupsPolicy", &[("Merge", false), ("Strict", true)]);
    let mut sysctls = BTreeMap::new();
    for mut sysctl in fields.objects("sysctls") {
        let name = sysctl.required("name");
        let value = sysctl.required("value");
        sysctl.finish();
        sysctls.insert(name.replace('/', "."), value);
    }
    // Volumes of a played Pod are new each time, so both policies do the same.
    fields.word("fsGroupChangePolicy", &[("Always", ()), ("OnRootMismatch", ())]);
    fields.word("seLinuxChangePolicy", &[("Recursive", ()), ("MountOption", ())]);
    fields.finish_refusing(&[WINDOWS]);
    PodSecurity {
        identity,
        fs_group,
        supplemental_groups,
        strict_groups: strict.unwrap_or_default(),
        sysctls,
    }
}

fn groups(fields: &mut Fields<'_>) -> Vec<i64> {
    let path = "supplementalGroups";
    let mut groups = Vec::new();
    for node in fields.list(path) {
        match node.integer() {
            Some(group) if ID.contains(&group) => groups.push(group),
            Some(group) => node.fault(format!("{group} is not a group id")),
            None => {}
        }
    }
    groups
}

/// Reads a container's `securityContext`.
pub(super) fn container(container: &mut Fields<'_>) -> ContainerSecurity {
    let Some(mut fields) = container.fields("securityContext") else {
        return ContainerSecurity::default();
    };
    let privileged = fields.boolean("privileged").unwrap_or_default();
    let escalation = fields.boolean("allowPrivilegeEscalation");
    let mut security = ContainerSecurity {
        identity: identity(&mut fields),
        privileged,
        no_new_privs: escalation == Some(false),
        read_only_root: fields.boolean("readOnlyRootFilesystem").unwrap_or_default(),
        unmasked_proc: fields
            .word("procMount", &[("Default", false), ("Unmasked", true)])
            .unwrap_or_default(),
        ..ContainerSecurity::default()
    };
    if let Some(mut capabilities) = fields.fields("capabilities") {
        security.add = capability_names(&mut capabilities, "add");
        security.drop = capability_names(&mut capabilities, "drop");
        capabilities.finish();
    }
    let admin = security.add.iter().any(|name| name == "SYS_ADMIN");
    if security.no_new_privs && (privileged || admin) {
        let text = "must not be false when the container is privileged or adds SYS_ADMIN";
        fields.fault("allowPrivilegeEscalation", text);
    }
    fields.finish_refusing(&[WINDOWS]);
    security
}

/// CRI takes the names without `CAP_`; manifests use both forms.
fn capability_names(fields: &mut Fields<'_>, key: &str) -> Vec<String> {
    let bare = |name: String| {
        let upper = name.to_ascii_uppercase();
        upper.strip_prefix("CAP_").map_or_else(|| upper.clone(), str::to_owned)
    };
    fields.strings(key).into_iter().map(bare).collect()
}

fn identity(fields: &mut Fields<'_>) -> Identity {
    Identity {
        user: fields.integer_in("runAsUser", ID),
        group: fields.integer_in("runAsGroup", ID),
        non_root: fields.boolean("runAsNonRoot"),
        seccomp: profile(fields, "seccompProfile"),
        apparmor: profile(fields, "appArmorProfile"),
        selinux: selinux(fields),
    }
}

#[derive(Clone, Copy)]
enum ProfileKind {
    RuntimeDefault,
    Unconfined,
    Localhost,
}

fn profile(object: &mut Fields<'_>, key: &str) -> Option<Profile> {
    let mut fields = object.fields(key)?;
    let kinds = [
        ("RuntimeDefault", ProfileKind::RuntimeDefault),
        ("Unconfined", ProfileKind::Unconfined),
        ("Localhost", ProfileKind::Localhost),
    ];
    let kind = fields.word("type", &kinds);
    let file = fields.string("localhostProfile");
    let profile = match (kind, file) {
        (Some(ProfileKind::Localhost), Some(file)) => Some(Profile::Localhost(file)),
        (Some(ProfileKind::Localhost), None) => {
            fields.fault("localhostProfile", "is required with type Localhost");
            None
        }
        (_, Some(file)) => {
            fields.fault("localhostProfile", format!("{file:?} needs type Localhost"));
            None
        }
        (Some(ProfileKind::RuntimeDefault), None) => Some(Profile::RuntimeDefault),
        (Some(ProfileKind::Unconfined), None) => Some(Profile::Unconfined),
        (None, None) => None,
    };
    fields.finish();
    profile
}

fn selinux(object: &mut Fields<'_>) -> Option<SeLinux> {
    let mut fields = object.fields("seLinuxOptions")?;
    let mut text = |key| fields.string(key).unwrap_or_default();
    let options = SeLinux {
        user: text("user"),
        role: text("role"),
        kind: text("type"),
        level: text("level"),
    };
    fields.finish();
    Some(options)
}
