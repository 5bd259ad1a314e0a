//! containerd's configuration, in the two forms that its releases read.

use std::path::{Path, PathBuf};

use super::handler::Entry;
use super::image;
use super::version::Version;

/// The text for a containerd with its sockets in `run` and its data in `lib`, CNI plugins in
/// `plugins` and the handlers of `entries`.
pub(super) fn text(
    version: Version,
    run: &Path,
    lib: &Path,
    plugins: &Path,
    entries: &[Entry],
) -> String {
    let run = run.display().to_string();
    let bins = plugins.display().to_string();
    let mut text = common_config(&run, &lib.display().to_string(), version);
    let plugin = match version {
        Version::V16 | Version::V17 => {
            text.push_str(&cri_config_1(&run, &bins));
            "io.containerd.grpc.v1.cri"
        }
        Version::V21 => {
            text.push_str(&cri_config_2(&run, &bins));
            "io.containerd.cri.v1.runtime"
        }
    };
    for entry in entries {
        let table = format!("plugins.\"{plugin}\".containerd.runtimes.{}", entry.name);
        text.push_str(&format!("[{table}]\nruntime_type = \"{}\"\n", entry.runtime_type));
        if let Some(path) = &entry.runtime_path {
            text.push_str(&format!("runtime_path = \"{}\"\n", path.display()));
        }
        if entry.own_devices {
            text.push_str("privileged_without_host_devices = true\n");
        }
        text.push_str(&format!("[{table}.options]\n"));
        for (key, value) in &entry.options {
            text.push_str(&format!("{key} = \"{value}\"\n"));
        }
    }
    text
}

/// The empty file system that the blockfile snapshotter copies for each snapshot.
pub(super) fn scratch(lib: &Path) -> PathBuf {
    lib.join("scratch.ext4")
}

fn common_config(run: &str, lib: &str, version: Version) -> String {
    let format = if version == Version::V21 { 3 } else { 2 };
    let mut text = format!(
        "version = {format}\nroot = \"{lib}/root\"\nstate = \"{run}/state\"\n\
         [grpc]\naddress = \"{run}/c.sock\"\n[ttrpc]\naddress = \"{run}/c.sock.ttrpc\"\n\
         [debug]\nlevel = \"debug\"\n\
         [plugins.\"io.containerd.internal.v1.opt\"]\npath = \"{run}/opt\"\n"
    );
    if version != Version::V16 {
        let scratch = scratch(Path::new(lib)).display().to_string();
        text.push_str(&format!(
            "[plugins.\"io.containerd.snapshotter.v1.blockfile\"]\nscratch_file = \"{scratch}\"\n\
             fs_type = \"ext4\"\nmount_options = []\nrecreate_scratch = true\n\
             [plugins.\"io.containerd.nri.v1.nri\"]\ndisable = false\nsocket_path = \"{run}/nri.sock\"\n\
             plugin_path = \"{run}/nri/plugins\"\nplugin_config_path = \"{run}/nri/conf.d\"\n"
        ));
    }
    text
}

/// `restrict_oom_score_adj` lets Pods start on a machine without CAP_SYS_RESOURCE.
fn cri_config_1(run: &str, bins: &str) -> String {
    format!(
        "[plugins.\"io.containerd.grpc.v1.cri\"]\nsandbox_image = \"{}\"\n\
         disable_tcp_service = true\nstream_server_address = \"127.0.0.1\"\n\
         stream_server_port = \"0\"\ndisable_apparmor = true\nrestrict_oom_score_adj = true\n\
         netns_mounts_under_state_dir = true\n\
         [plugins.\"io.containerd.grpc.v1.cri\".cni]\nbin_dir = \"{bins}\"\n\
         conf_dir = \"{run}/cni/net.d\"\n\
         [plugins.\"io.containerd.grpc.v1.cri\".registry]\nconfig_path = \"{run}/certs.d\"\n\
         [plugins.\"io.containerd.grpc.v1.cri\".containerd]\ndefault_runtime_name = \"runc\"\n",
        image::PAUSE
    )
}

fn cri_config_2(run: &str, bins: &str) -> String {
    format!(
        "[plugins.\"io.containerd.cri.v1.images\".pinned_images]\nsandbox = \"{}\"\n\
         [plugins.\"io.containerd.cri.v1.images\".registry]\nconfig_path = \"{run}/certs.d\"\n\
         [plugins.\"io.containerd.grpc.v1.cri\"]\ndisable_tcp_service = true\n\
         stream_server_address = \"127.0.0.1\"\nstream_server_port = \"0\"\n\
         [plugins.\"io.containerd.cri.v1.runtime\"]\ndisable_apparmor = true\n\
         restrict_oom_score_adj = true\nnetns_mounts_under_state_dir = true\n\
         [plugins.\"io.containerd.cri.v1.runtime\".cni]\nbin_dirs = [\"{bins}\"]\n\
         conf_dir = \"{run}/cni/net.d\"\n\
         [plugins.\"io.containerd.cri.v1.runtime\".containerd]\n\
         default_runtime_name = \"runc\"\n",
        image::PAUSE
    )
}
