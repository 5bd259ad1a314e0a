//! runsc's command lines.

use std::ffi::OsString;
use std::path::Path;

use crate::settings::{FileAccess, HostUds, Network, Platform, Settings};

/// Global flags that are set from elsewhere than [`Settings::flags`], which may not name them.
pub const OWN_FLAGS: [&str; 16] = [
    "root",
    "log",
    "log-fd",
    "log-format",
    "debug",
    "debug-log",
    "platform",
    "network",
    "overlay2",
    "overlay",
    "oci-seccomp",
    "host-uds",
    "file-access",
    "directfs",
    "ignore-cgroups",
    "rootless",
];

/// The flags that come before every subcommand. runsc does not store them, so `create`, `start`
/// and `restore` must get the same. `network` is the Pod's, `log` is where this one call reports
/// its errors.
pub(crate) fn globals(
    settings: &Settings,
    network: Network,
    root: &Path,
    log: &Path,
) -> Vec<OsString> {
    let mut args = vec![
        path_flag("root", root),
        path_flag("log", log),
        flag("log-format", "json"),
        // The shim has put itself into the Pod's cgroup, and whatever it starts starts there.
        flag("ignore-cgroups", "true"),
        flag("platform", platform(settings.platform)),
        flag("network", network_text(network)),
        flag("overlay2", &settings.overlay2),
        flag("file-access", file_access(settings.file_access)),
        flag("host-uds", host_uds(settings.host_uds)),
        flag("directfs", bool_text(settings.directfs)),
        flag("oci-seccomp", bool_text(settings.oci_seccomp)),
    ];
    if settings.debug {
        args.push(flag("debug", "true"));
    }
    if let Some(path) = &settings.debug_log {
        args.push(path_flag("debug-log", path));
    }
    args.extend(settings.flags.iter().map(|(name, value)| flag(name, value)));
    args
}

/// `create`, with `console` as the socket that gets the terminal's master.
pub(crate) fn create(
    id: &str,
    bundle: &Path,
    pid_file: &Path,
    console: Option<&Path>,
) -> Vec<OsString> {
    let mut args = vec!["create".into(), path_flag("bundle", bundle)];
    args.push(path_flag("pid-file", pid_file));
    args.extend(console.map(|path| path_flag("console-socket", path)));
    args.push(id.into());
    args
}

/// `start`.
pub(crate) fn start(id: &str) -> Vec<OsString> {
    vec!["start".into(), id.into()]
}

/// `restore` of a created container from the directory `image`.
pub(crate) fn restore(id: &str, bundle: &Path, image: &Path) -> Vec<OsString> {
    vec![
        "restore".into(),
        path_flag("bundle", bundle),
        path_flag("image-path", image),
        flag("detach", "true"),
        id.into(),
    ]
}

/// `checkpoint` into the directory `image`.
pub(crate) fn checkpoint(id: &str, image: &Path, leave_running: bool) -> Vec<OsString> {
    let mut args = vec!["checkpoint".into(), path_flag("image-path", image)];
    if leave_running {
        args.push(flag("leave-running", "true"));
    }
    args.push(id.into());
    args
}

/// `delete`; with `force` whatever the container's state.
pub(crate) fn delete(id: &str, force: bool) -> Vec<OsString> {
    let mut args = vec![OsString::from("delete")];
    if force {
        args.push("--force".into());
    }
    args.push(id.into());
    args
}

fn flag(name: &str, value: &str) -> OsString {
    format!("--{name}={value}").into()
}

fn path_flag(name: &str, path: &Path) -> OsString {
    let mut text = OsString::from(format!("--{name}="));
    text.push(path);
    text
}

fn bool_text(value: bool) -> &'static str {
    if value { "true" } else { "false" }
}

fn platform(platform: Platform) -> &'static str {
    match platform {
        Platform::Systrap => "systrap",
        Platform::Ptrace => "ptrace",
        Platform::Kvm => "kvm",
    }
}

fn network_text(network: Network) -> &'static str {
    match network {
        Network::Sandbox => "sandbox",
        Network::Host => "host",
        Network::None => "none",
    }
}

fn file_access(access: FileAccess) -> &'static str {
    match access {
        FileAccess::Exclusive => "exclusive",
        FileAccess::Shared => "shared",
    }
}

fn host_uds(uds: HostUds) -> &'static str {
    match uds {
        HostUds::None => "none",
        HostUds::Open => "open",
        HostUds::Create => "create",
        HostUds::All => "all",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(args: &[OsString]) -> String {
        args.iter().map(|a| a.to_str().unwrap()).collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn settings_are_spelled() {
        let settings = Settings {
            platform: Platform::Ptrace,
            network: Network::None,
            host_uds: HostUds::Open,
            debug: true,
            debug_log: Some("/var/log/gv/".into()),
            flags: [("net-raw".to_owned(), "true".to_owned())].into(),
            ..Settings::example()
        };
        assert_eq!(
            text(&globals(&settings, Network::None, Path::new("/r/k8s.io"), Path::new("/b/log"))),
            "--root=/r/k8s.io --log=/b/log --log-format=json --ignore-cgroups=true \
             --platform=ptrace --network=none --overlay2=root:self --file-access=exclusive \
             --host-uds=open --directfs=true --oci-seccomp=true --debug=true \
             --debug-log=/var/log/gv/ --net-raw=true"
        );
    }

    #[test]
    fn no_flag_is_set_twice() {
        let settings =
            Settings { debug: true, debug_log: Some("/l".into()), ..Settings::example() };
        for arg in globals(&settings, Network::None, Path::new("/r"), Path::new("/b/log")) {
            let name = arg.to_str().unwrap().trim_start_matches("--").split('=').next().unwrap();
            assert!(OWN_FLAGS.contains(&name), "{name} could be set by `flags` as well");
        }
    }

    #[test]
    fn subcommands_are_spelled() {
        let bundle = Path::new("/b");
        let pid = Path::new("/b/pid");
        let console = Some(Path::new("/b/c.sock"));
        let calls = [
            (create("x", bundle, pid, None), "create --bundle=/b --pid-file=/b/pid x"),
            (
                create("x", bundle, pid, console),
                "create --bundle=/b --pid-file=/b/pid --console-socket=/b/c.sock x",
            ),
            (start("x"), "start x"),
            (
                restore("x", bundle, Path::new("/i")),
                "restore --bundle=/b --image-path=/i --detach=true x",
            ),
            (
                checkpoint("x", Path::new("/i"), true),
                "checkpoint --image-path=/i --leave-running=true x",
            ),
            (checkpoint("x", Path::new("/i"), false), "checkpoint --image-path=/i x"),
            (delete("x", true), "delete --force x"),
            (delete("x", false), "delete x"),
        ];
        for (args, expected) in calls {
            assert_eq!(text(&args), expected);
        }
    }
}
