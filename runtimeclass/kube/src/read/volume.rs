//! `volumes`.

use super::relative::escapes;
use crate::fields::Fields;
use crate::names;
use crate::node::Node;
use crate::object::{DataKind, DataSource};
use crate::quantity::Quantity;
use crate::volume::{HostPathType, Item, Volume, VolumeSource};

const DEFAULT_MODE: u32 = 0o644;

const NEEDS_CLUSTER: &str = "this kind of volume needs a cluster; use emptyDir or hostPath";
const UNSUPPORTED: &[(&str, &str)] = &[
    ("persistentVolumeClaim", NEEDS_CLUSTER),
    ("csi", NEEDS_CLUSTER),
    ("ephemeral", NEEDS_CLUSTER),
    ("nfs", NEEDS_CLUSTER),
    ("iscsi", NEEDS_CLUSTER),
    (
        "projected",
        "play does not support projected volumes; mount the ConfigMaps and Secrets one by one",
    ),
    ("downwardAPI", "play does not support downwardAPI volumes; use env with fieldRef"),
    ("image", "play does not support image volumes"),
];

#[derive(Clone, Copy, PartialEq, Eq)]
enum Medium {
    Disk,
    Memory,
}

/// Reads one volume.
pub(super) fn volume(mut fields: Fields<'_>) -> Option<Volume> {
    let path = fields.path().to_owned();
    let name = fields.required("name");
    match names::label(&name) {
        Err(error) if !name.is_empty() => fields.fault("name", error.to_string()),
        Ok(()) | Err(_) => {}
    }
    let known = ["emptyDir", "hostPath", "configMap", "secret"];
    let set: Vec<String> = fields.keys();
    let sources = [
        empty_dir(&mut fields),
        host_path(&mut fields),
        data(&mut fields, DataKind::ConfigMap),
        data(&mut fields, DataKind::Secret),
    ];
    let chosen = set.iter().filter(|key| known.contains(&key.as_str())).count();
    if chosen > 1 {
        fields.fault_here(format!("volume {name:?} must have one source, not {}", set.join(", ")));
    }
    if set.is_empty() {
        fields.fault_here(format!(
            "volume {name:?} has no source; use emptyDir: {{}} for an empty one"
        ));
    }
    fields.finish_refusing(UNSUPPORTED);
    let source = sources.into_iter().flatten().next()?;
    Some(Volume { path, name, source })
}

fn empty_dir(volume: &mut Fields<'_>) -> Option<VolumeSource> {
    let mut fields = volume.fields("emptyDir")?;
    let media = [("", Medium::Disk), ("Memory", Medium::Memory)];
    let medium = fields.word("medium", &media).unwrap_or(Medium::Disk);
    let size = fields.take("sizeLimit").and_then(|node| node.quantity());
    if medium == Medium::Disk && size.is_some() {
        fields.note("sizeLimit", "is enforced by play only with medium: Memory");
    }
    fields.finish();
    Some(match medium {
        Medium::Disk => VolumeSource::EmptyDir,
        Medium::Memory => VolumeSource::Memory { size: size.map(Quantity::units) },
    })
}

fn host_path(volume: &mut Fields<'_>) -> Option<VolumeSource> {
    let mut fields = volume.fields("hostPath")?;
    let path = fields.required("path");
    if !path.is_empty() && (!path.starts_with('/') || path.split('/').any(|part| part == "..")) {
        fields.fault("path", format!("{path:?} must be absolute and without \"..\""));
    }
    let kind = fields.word(
        "type",
        &[
            ("DirectoryOrCreate", HostPathType::DirectoryOrCreate),
            ("Directory", HostPathType::Directory),
            ("FileOrCreate", HostPathType::FileOrCreate),
            ("File", HostPathType::File),
            ("Socket", HostPathType::Socket),
            ("CharDevice", HostPathType::CharDevice),
            ("BlockDevice", HostPathType::BlockDevice),
        ],
    );
    fields.finish();
    Some(VolumeSource::HostPath { path, kind: kind.unwrap_or(HostPathType::Unchecked) })
}

fn data(volume: &mut Fields<'_>, kind: DataKind) -> Option<VolumeSource> {
    let (key, name_key) = match kind {
        DataKind::ConfigMap => ("configMap", "name"),
        DataKind::Secret => ("secret", "secretName"),
    };
    let mut fields = volume.fields(key)?;
    let source = DataSource {
        path: fields.path().to_owned(),
        kind,
        name: fields.required(name_key),
        optional: fields.boolean("optional").unwrap_or_default(),
    };
    let mode = fields.mode("defaultMode").unwrap_or(DEFAULT_MODE);
    let items = fields
        .take("items")
        .map(|node| node.list().into_iter().filter_map(Node::fields).map(item).collect());
    fields.finish();
    Some(VolumeSource::Data { source, items, mode })
}

fn item(mut fields: Fields<'_>) -> Item {
    let key = fields.required("key");
    let path = fields.required("path");
    if let Some(text) = escapes(&path) {
        fields.fault("path", text);
    }
    let mode = fields.mode("mode");
    fields.finish();
    Item { key, path, mode }
}
