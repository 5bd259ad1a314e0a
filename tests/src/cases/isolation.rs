//! What a container sees and may do: users, capabilities, filesystems, sysctls, processes.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use k8s_cri::v1 as api;

use super::case::{Case, cases};
use crate::bed::handler::Handler;
use crate::bed::image;
use crate::bed::process::until;
use crate::client::pod::{Pod, bind, pod_config, security, shell};
use crate::client::stage::Stage;

pub(super) const CASES: &[Case] = cases![
    whose_kernel,
    shared_pid_namespace,
    own_pid_namespace,
    user_and_groups,
    user_of_the_image,
    capabilities,
    readonly_root,
    sysctls,
    shared_memory,
    empty_dir_is_shared,
    host_path,
    environment_and_workdir,
    hostname_and_dns,
];

/// `uname` and `dmesg` are those of the sandbox's kernel, not of the host's.
fn whose_kernel(stage: &Stage) -> Result<()> {
    let pod = Pod::run(stage)?;
    let mut config = shell("sleep 1000");
    // A guest's kernel keeps its log from ordinary containers, as the host's does.
    let capabilities = security(&mut config).capabilities.get_or_insert_default();
    capabilities.add_capabilities = vec!["SYSLOG".to_owned()];
    let container = pod.start("kernel", config)?;
    let seen = container.out("uname -r")?;
    let version = container.out("cat /proc/version")?;
    let host = std::fs::read_to_string("/proc/sys/kernel/osrelease")?;
    if stage.handler == Handler::Runc {
        ensure!(seen == host.trim(), "{seen} on {host}");
        return Ok(());
    }
    if stage.handler.is_vm() {
        // The guest may run a kernel of the host's release, but has booted by itself.
        const BOOT: &str = "/proc/sys/kernel/random/boot_id";
        let boot = container.out(&format!("cat {BOOT}"))?;
        let hosts = std::fs::read_to_string(BOOT)?;
        ensure!(boot != hosts.trim(), "the host's kernel: {seen}, boot {boot}");
    } else {
        ensure!(seen != host.trim(), "the host's kernel: {seen}");
    }
    ensure!(version.contains(&seen), "uname prints {seen}, /proc/version has {version}");
    if stage.handler.is_vm() {
        let manifest = stage.node.guest().context("no guest")?.join("guest.json");
        let manifest: serde_json::Value = serde_json::from_slice(&std::fs::read(manifest)?)?;
        ensure!(manifest["kernel"]["release"] == seen.as_str(), "{seen}, booted {manifest}");
        let log = container.out("dmesg | head -n 5")?;
        ensure!(log.contains(&seen), "the kernel's log: {log}");
    }
    Ok(())
}

fn shared_pid_namespace(stage: &Stage) -> Result<()> {
    let mut config = pod_config(stage)?;
    let shared = api::NamespaceOption { pid: api::NamespaceMode::Pod.into(), ..Default::default() };
    let linux = config.linux.get_or_insert_default();
    linux.security_context.get_or_insert_default().namespace_options = Some(shared.clone());
    let pod = Pod::run_config(stage, config)?;
    let with = |script: &str| {
        let mut config = shell(script);
        security(&mut config).namespace_options = Some(shared.clone());
        config
    };
    let _one = pod.start("one", with("exec sleep 4711"))?;
    let two = pod.start("two", with("exec sleep 4712"))?;
    let seen = until("the other container's process", Duration::from_secs(10), || {
        let seen = two.out("ps -o pid,args")?;
        Ok(seen.contains("sleep 4711").then_some(seen))
    })?;
    ensure!(seen.contains("2147483647"), "the sandbox's process is not there: {seen}");
    Ok(())
}

fn own_pid_namespace(stage: &Stage) -> Result<()> {
    let pod = Pod::run(stage)?;
    let _one = pod.start("one", shell("exec sleep 4711"))?;
    let two = pod.start("two", shell("exec sleep 4712"))?;
    let seen = two.out("ps -o pid,args")?;
    ensure!(!seen.contains("sleep 4711"), "the other container's process is visible: {seen}");
    ensure!(two.out("cat /proc/1/cmdline")?.starts_with("sleep"), "PID 1 is not the container's");
    Ok(())
}

fn user_and_groups(stage: &Stage) -> Result<()> {
    let pod = Pod::run(stage)?;
    let mut config = shell("sleep 1000");
    let context = security(&mut config);
    context.run_as_user = Some(api::Int64Value { value: 1234 });
    context.run_as_group = Some(api::Int64Value { value: 2345 });
    context.supplemental_groups = vec![3456, 4567];
    let container = pod.start("main", config)?;
    ensure!(container.out("id -u")? == "1234", "{}", container.out("id")?);
    ensure!(container.out("id -g")? == "2345", "{}", container.out("id")?);
    let groups = container.out("id -G")?;
    for group in ["2345", "3456", "4567"] {
        ensure!(groups.split(' ').any(|g| g == group), "group {group} is not in {groups:?}");
    }
    ensure!(container.exec("echo > /etc/passwd")?.exit_code != 0, "it may write /etc/passwd");
    Ok(())
}

fn user_of_the_image(stage: &Stage) -> Result<()> {
    let pod = Pod::run(stage)?;
    let mut config = shell("id; sleep 1000");
    config.image = Some(api::ImageSpec { image: image::USER.to_owned(), ..Default::default() });
    let container = pod.start("main", config)?;
    ensure!(container.out("id -u; id -g")? == "1000\n1000", "{}", container.out("id")?);
    Ok(())
}

fn capabilities(stage: &Stage) -> Result<()> {
    let pod = Pod::run(stage)?;
    let mut dropped = shell("sleep 1000");
    security(&mut dropped).capabilities = Some(api::Capability {
        drop_capabilities: vec!["ALL".to_owned()],
        add_capabilities: vec!["NET_BIND_SERVICE".to_owned()],
        ..Default::default()
    });
    let dropped = pod.start("dropped", dropped)?;
    let caps = dropped.out("grep CapEff /proc/self/status")?;
    ensure!(caps.ends_with("0000000000000400"), "{caps}");
    ensure!(dropped.exec("chown 1:1 /tmp")?.exit_code != 0, "chown without CAP_CHOWN");
    let plain = pod.start("plain", shell("sleep 1000"))?;
    ensure!(plain.exec("chown 1:1 /tmp")?.exit_code == 0, "chown with CAP_CHOWN");
    Ok(())
}

fn readonly_root(stage: &Stage) -> Result<()> {
    let pod = Pod::run(stage)?;
    let volume = stage.folder()?;
    let mut config = shell("sleep 1000");
    security(&mut config).readonly_rootfs = true;
    config.mounts = vec![bind(&volume, "/v", false)];
    let container = pod.start("main", config)?;
    // Not /tmp: runsc puts a tmpfs on an empty one.
    for path in ["/x", "/etc/x", "/etc/passwd"] {
        let write = container.exec(&format!("echo x >> {path}"))?;
        ensure!(write.exit_code != 0, "a read-only root was written at {path}");
    }
    ensure!(container.exec("echo x > /v/x")?.exit_code == 0, "a volume is not writable");
    Ok(())
}

/// A container on a kernel may set what has a namespace; gVisor knows `fs.nr_open` and little more.
fn sysctls(stage: &Stage) -> Result<()> {
    let mut config = pod_config(stage)?;
    let linux = config.linux.get_or_insert_default();
    let wanted = match stage.handler {
        Handler::Runc | Handler::KataContainers => {
            [("net.ipv4.ip_forward", "1"), ("net.ipv4.ip_local_port_range", "40000\t50000")]
                .to_vec()
        }
        Handler::Gvisor | Handler::GvisorNew | Handler::GvisorGo => vec![("fs.nr_open", "54321")],
    };
    linux.sysctls = wanted.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
    let pod = Pod::run_config(stage, config)?;
    let container = pod.shell("sleep 1000")?;
    for (key, value) in wanted {
        let path = format!("/proc/sys/{}", key.replace('.', "/"));
        let got = container.out(&format!("cat {path}"))?;
        ensure!(got.split_whitespace().eq(value.split_whitespace()), "{key} is {got:?}");
    }
    Ok(())
}

fn shared_memory(stage: &Stage) -> Result<()> {
    let pod = Pod::run(stage)?;
    let one = pod.start("one", shell("sleep 1000"))?;
    let two = pod.start("two", shell("sleep 1000"))?;
    let blocks = one.out("df -k /dev/shm | tail -n 1 | awk '{print $2}'")?;
    ensure!(blocks == "65536", "/dev/shm has {blocks} KiB");
    one.out("echo shared > /dev/shm/word")?;
    let word = two.out("cat /dev/shm/word")?;
    ensure!(word == "shared", "the other container reads {word:?}");
    Ok(())
}

fn empty_dir_is_shared(stage: &Stage) -> Result<()> {
    let pod = Pod::run(stage)?;
    // Where kubelet has them.
    let volume = stage.folder()?.join("volumes/kubernetes.io~empty-dir/cache");
    std::fs::create_dir_all(&volume)?;
    let with = |read_only: bool| {
        let mut config = shell("sleep 1000");
        config.mounts = vec![bind(&volume, "/cache", read_only)];
        config
    };
    let watcher = pod.start("watcher", with(true))?;
    let writer = pod.start("writer", with(false))?;
    let reader = pod.start("reader", with(false))?;
    for round in 0..5 {
        writer.out(&format!(
            "mkdir -p /cache/d; echo {round} > /cache/d/f.new; \
            mv /cache/d/f.new /cache/d/f"
        ))?;
        for (name, container) in [("reader", &reader), ("watcher", &watcher)] {
            let got = container.out("cat /cache/d/f")?;
            ensure!(got == round.to_string(), "round {round}: the {name} sees {got:?}");
        }
    }
    ensure!(watcher.exec("echo no > /cache/d/g")?.exit_code != 0, "read-only, yet written");
    reader.out("rm -r /cache/d")?;
    ensure!(writer.exec("test -e /cache/d")?.exit_code == 1, "a removal is not seen");
    Ok(())
}

fn host_path(stage: &Stage) -> Result<()> {
    let pod = Pod::run(stage)?;
    let folder = stage.folder()?;
    std::fs::write(folder.join("file"), "from the host\n")?;
    let mut config = shell("sleep 1000");
    config.mounts =
        vec![bind(&folder, "/dir", false), bind(&folder.join("file"), "/etc/one-file", true)];
    let container = pod.start("main", config)?;
    ensure!(container.out("cat /dir/file")? == "from the host");
    ensure!(container.out("cat /etc/one-file")? == "from the host");
    ensure!(container.exec("echo no > /etc/one-file")?.exit_code != 0, "read-only, yet written");
    container.out("echo from the guest > /dir/back")?;
    let back = std::fs::read_to_string(folder.join("back"))?;
    ensure!(back == "from the guest\n", "{back:?}");
    Ok(())
}

fn environment_and_workdir(stage: &Stage) -> Result<()> {
    let pod = Pod::run(stage)?;
    let mut config = shell("echo \"$GREETING $PWD\"; sleep 1000");
    let greeting = "two words = \"quoted\" \u{e9}";
    config.envs = vec![api::KeyValue { key: "GREETING".to_owned(), value: greeting.to_owned() }];
    config.working_dir = "/usr/bin".to_owned();
    let container = pod.start("main", config)?;
    container.logged(&format!("{greeting} /usr/bin"))?;
    let seen = container.out("echo \"$GREETING $PWD\"")?;
    ensure!(seen == format!("{greeting} /usr/bin"), "exec: {seen:?}");
    Ok(())
}

fn hostname_and_dns(stage: &Stage) -> Result<()> {
    let pod = Pod::run(stage)?;
    let container = pod.shell("sleep 1000")?;
    ensure!(container.out("hostname")? == "bed-pod", "{}", container.out("hostname")?);
    let resolv = container.out("cat /etc/resolv.conf")?;
    ensure!(resolv.contains("192.0.2.53") && resolv.contains("bed.test"), "{resolv}");
    Ok(())
}
