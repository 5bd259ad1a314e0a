//! OCI hooks: programs of the host's by which clients such as nerdctl set up a container's network.

use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::{Result, ensure};
use serde_json::{Value, json};

use super::case::{Case, cases};
use crate::bed::process::until;
use crate::client::shim;
use crate::client::stage::Stage;
use crate::client::task::Task;

pub(super) const CASES: &[Case] = cases![hooks_run_at_their_moments, a_hook_that_fails];

/// The address that the hook gives the container.
const ADDRESS: &str = "10.251.7.2";

/// A container that `ctr run --config` makes, with `hooks`, and the script it runs.
fn write_config(
    stage: &Stage,
    task: &Task<'_>,
    dir: &Path,
    script: &str,
    hooks: &Value,
) -> Result<()> {
    let rootfs = dir.join("rootfs");
    shim::make_root(stage, &rootfs, &["sh", "sleep", "ip", "grep"])?;
    let mut config = shim::spec(stage, &task.id, script);
    config["root"]["path"] = json!(rootfs);
    config["linux"]["cgroupsPath"] = json!(task.cgroup());
    config["hooks"] = hooks.clone();
    fs::write(dir.join("config.json"), config.to_string())?;
    Ok(())
}

/// A hook that runs `script`; `$state` is what it reads, `$pid` the process that the state names.
fn hook(script: &str) -> Value {
    let read = r#"state=$(cat); pid=$(echo "$state" | sed -n 's/.*"pid": *\([0-9]*\).*/\1/p');"#;
    json!([{
        "path": "/bin/sh",
        "args": ["sh", "-c", format!("{read} {script}")],
        "env": ["PATH=/usr/sbin:/usr/bin:/sbin:/bin"],
        "timeout": 60,
    }])
}

/// Each kind once and in its order, with the container's id; and what a hook has made of the network
/// before the container started is what the container has.
fn hooks_run_at_their_moments(stage: &Stage) -> Result<()> {
    let task = Task::new(stage);
    let dir = stage.folder()?;
    let seen = dir.join("seen");
    let note = |name: &str| {
        let (id, seen) = (&task.id, seen.display());
        format!("echo \"$state\" | grep -qF '{id}' && echo {name} >> {seen};")
    };
    // The peer stays in the container's namespace too and ends with it.
    let network = format!(
        "nsenter --net=/proc/$pid/ns/net sh -c 'ip link add hk0 type veth peer name hk1 && \
         ip addr add {ADDRESS}/24 dev hk0 && ip link set hk0 up && ip link set hk1 up'"
    );
    let hooks = json!({
        "prestart": hook(&note("prestart")),
        "createRuntime": hook(&format!("{} {network}", note("createRuntime"))),
        "poststart": hook(&note("poststart")),
        "poststop": hook(&note("poststop")),
    });
    let script = format!("ip addr show | grep -F {ADDRESS}/ && exec sleep 1000; exit 3");
    write_config(stage, &task, &dir, &script, &hooks)?;
    let config = dir.join("config.json").display().to_string();
    task.run_config(&["--detach"], &config).ok()?;
    let noted = || fs::read_to_string(&seen).unwrap_or_default();
    until("the hooks of the start have run", Duration::from_secs(20), || {
        Ok((noted() == "prestart\ncreateRuntime\npoststart\n").then_some(()))
    })?;
    let exec = ["exec", "--exec-id", "network", &task.id, "ip", "addr", "show"];
    let shown = task.tasks(&exec).ok()?;
    ensure!(shown.contains(ADDRESS), "the hook's address is missing: {shown}");
    task.tasks(&["rm", "--force", &task.id]).ok()?;
    until("poststop has run", Duration::from_secs(20), || {
        Ok((noted() == "prestart\ncreateRuntime\npoststart\npoststop\n").then_some(()))
    })?;
    fs::remove_dir_all(&dir)?;
    Ok(())
}

/// The creation fails with what the hook wrote, and nothing of the container is left.
fn a_hook_that_fails(stage: &Stage) -> Result<()> {
    let task = Task::new(stage);
    let dir = stage.folder()?;
    let hooks = json!({"createRuntime": hook("echo no address is left >&2; exit 7")});
    write_config(stage, &task, &dir, "exec sleep 1000", &hooks)?;
    let config = dir.join("config.json").display().to_string();
    let done = task.run_config(&["--detach"], &config).finish()?;
    let error = done.err();
    ensure!(done.code() != 0, "a container runs whose hook failed");
    ensure!(error.contains("hook"), "the error names no hook: {error}");
    let listed = task.tasks(&["ls"]).ok()?;
    ensure!(!listed.contains(&task.id), "the task is there: {listed}");
    fs::remove_dir_all(&dir)?;
    Ok(())
}
