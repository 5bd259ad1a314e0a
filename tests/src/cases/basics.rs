//! Containers of a Pod: their output, their execs, their exits.

use anyhow::{Result, ensure};
use k8s_cri::v1 as api;

use super::case::{Case, cases};
use crate::bed::process::until;
use crate::client::pod::{Container, Pod, bind, pod_config, security, shell};
use crate::client::stage::Stage;

pub(super) const CASES: &[Case] = cases![
    pod_of_two_containers,
    logs_keep_streams_and_order,
    exec_streams_and_exit_codes,
    container_exit_codes,
    immediate_exit,
    container_restarts_in_its_pod,
    many_execs_at_once,
    exec_in_a_dead_container,
    stop_in_a_shared_process_namespace,
];

/// Two containers reach each other over localhost and share a volume.
fn pod_of_two_containers(stage: &Stage) -> Result<()> {
    let pod = Pod::run(stage)?;
    let volume = stage.folder()?;
    let mut server = shell("echo hello > /v/index.html; exec httpd -f -p 8080 -h /v");
    server.mounts = vec![bind(&volume, "/v", false)];
    let mut client = shell("sleep 1000");
    client.mounts = vec![bind(&volume, "/w", true)];
    let server = pod.start("server", server)?;
    let client = pod.start("client", client)?;
    let page = until("the page over localhost", std::time::Duration::from_secs(20), || {
        Ok(client.out("wget -q -O - http://127.0.0.1:8080/").ok())
    })?;
    ensure!(page == "hello", "page {page:?}");
    ensure!(client.out("cat /w/index.html")? == "hello", "the volume is not shared");
    ensure!(client.exec("echo no > /w/x")?.exit_code != 0, "a read-only mount was written");
    server.out("echo two > /v/two")?;
    ensure!(std::fs::read_to_string(volume.join("two"))? == "two\n", "the host does not see it");
    ensure!(client.out("cat /w/two")? == "two", "the other container does not see it");
    Ok(())
}

fn logs_keep_streams_and_order(stage: &Stage) -> Result<()> {
    let pod = Pod::run(stage)?;
    let script = "for i in 1 2 3 4 5; do echo out$i; echo err$i >&2; done; printf tail";
    let container = pod.shell(script)?;
    ensure!(container.exited()?.exit_code == 0);
    container.logged("tail")?;
    let of = |stream: &str| -> Result<Vec<String>> {
        let lines = container.log()?.into_iter().filter(|line| line.stream == stream);
        Ok(lines.map(|line| line.text).collect())
    };
    let out = of("stdout")?;
    let err = of("stderr")?;
    ensure!(out == ["out1", "out2", "out3", "out4", "out5", "tail"], "stdout: {out:?}");
    ensure!(err == ["err1", "err2", "err3", "err4", "err5"], "stderr: {err:?}");
    Ok(())
}

fn exec_streams_and_exit_codes(stage: &Stage) -> Result<()> {
    let pod = Pod::run(stage)?;
    let container = pod.shell("sleep 1000")?;
    let done = container.exec("echo o; echo e >&2")?;
    ensure!(done.stdout == b"o\n" && done.stderr == b"e\n" && done.exit_code == 0, "{done:?}");
    for (script, code) in [("true", 0), ("false", 1), ("exit 42", 42)] {
        let done = container.exec(script)?;
        ensure!(done.exit_code == code, "{script:?}: {done:?}");
    }
    for (signal, code) in [(9, 137), (15, 143)] {
        let done = container.exec(&format!("kill -{signal} $$; sleep 9"))?;
        ensure!(done.exit_code == code, "signal {signal}: {done:?}");
    }
    let nothing = stage.cri.exec(&container.id, &["/no/such/program"], 20);
    match nothing {
        Err(_) => Ok(()),
        Ok(done) => {
            ensure!(done.exit_code != 0, "a program that is not there: {done:?}");
            Ok(())
        }
    }
}

fn container_exit_codes(stage: &Stage) -> Result<()> {
    let pod = Pod::run(stage)?;
    let ends = [("ok", "exit 0", 0), ("one", "sleep 0.2; exit 1", 1)];
    for (name, script, code) in ends {
        let status = pod.start(name, shell(script))?.exited()?;
        ensure!(status.exit_code == code, "{script:?}: {}", status.exit_code);
        let reason = if code == 0 { "Completed" } else { "Error" };
        ensure!(status.reason == reason, "{script:?}: reason {:?}", status.reason);
        // The two times are taken by two programs; an exit at once may seem a little early.
        let lived = status.finished_at - status.started_at;
        ensure!(lived > -1_000_000_000, "{script:?}: finished {lived} ns after its start");
    }
    // A signal before the trap is set would kill either of them.
    let wait = "echo ready; while :; do sleep 0.1; done";
    let kind = pod.start("term", shell(&format!("trap 'exit 143' TERM; {wait}")))?;
    kind.logged("ready")?;
    stage.cri.stop(&kind.id, 20)?;
    ensure!(kind.exited()?.exit_code == 143, "SIGTERM: {}", kind.status()?.exit_code);
    let deaf = pod.start("kill", shell(&format!("trap '' TERM; {wait}")))?;
    deaf.logged("ready")?;
    stage.cri.stop(&deaf.id, 1)?;
    ensure!(deaf.exited()?.exit_code == 137, "SIGKILL: {}", deaf.status()?.exit_code);
    Ok(())
}

fn immediate_exit(stage: &Stage) -> Result<()> {
    let pod = Pod::run(stage)?;
    for round in 0..3 {
        let container = pod.start(&format!("c{round}"), shell("exit 7"))?;
        let status = container.exited()?;
        ensure!(status.exit_code == 7, "round {round}: {}", status.exit_code);
    }
    Ok(())
}

fn container_restarts_in_its_pod(stage: &Stage) -> Result<()> {
    let pod = Pod::run(stage)?;
    let other = pod.start("other", shell("sleep 1000"))?;
    for attempt in 0..3 {
        let mut config = shell(&format!("echo attempt {attempt}; exit {attempt}"));
        config.metadata = Some(api::ContainerMetadata { name: "main".to_owned(), attempt });
        let container: Container<'_> = pod.create(config)?;
        stage.cri.start(&container.id)?;
        let code = container.exited()?.exit_code;
        ensure!(u32::try_from(code)? == attempt, "attempt {attempt}: exit code {code}");
        container.logged(&format!("attempt {attempt}"))?;
        stage.cri.remove(&container.id)?;
    }
    ensure!(other.out("echo still")? == "still");
    Ok(())
}

fn many_execs_at_once(stage: &Stage) -> Result<()> {
    let pod = Pod::run(stage)?;
    let container = pod.shell("sleep 1000")?;
    let socket = stage.node.socket();
    let codes = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..16)
            .map(|code| {
                let socket = &socket;
                let id = &container.id;
                scope.spawn(move || -> Result<i32> {
                    let cri = crate::client::cri::Cri::new(socket)?;
                    let script = format!("echo {code}; exit {code}");
                    let done = cri.exec(id, &["sh", "-c", &script], 60)?;
                    ensure!(done.stdout == format!("{code}\n").as_bytes(), "{code}: {done:?}");
                    Ok(done.exit_code)
                })
            })
            .collect();
        threads.into_iter().map(|t| t.join().map_err(|_| anyhow::anyhow!("panicked"))?).collect()
    });
    let codes: Vec<i32> = Result::from_iter::<Vec<Result<i32>>>(codes)?;
    ensure!(codes == (0..16).collect::<Vec<_>>(), "codes {codes:?}");
    Ok(())
}

fn exec_in_a_dead_container(stage: &Stage) -> Result<()> {
    let pod = Pod::run(stage)?;
    let container = pod.shell("exit 0")?;
    container.exited()?;
    let refused = stage.cri.exec(&container.id, &["true"], 20);
    ensure!(refused.is_err(), "exec in an exited container: {refused:?}");
    Ok(())
}

/// What a container's first process leaves in a process namespace that the Pod shares is killed with
/// it: it would hold the container's output open, whose end containerd waits for. The Pod's other
/// containers stay.
fn stop_in_a_shared_process_namespace(stage: &Stage) -> Result<()> {
    let shared = api::NamespaceOption { pid: api::NamespaceMode::Pod.into(), ..Default::default() };
    let mut config = pod_config(stage)?;
    if let Some(linux) = &mut config.linux {
        let security = linux.security_context.get_or_insert_default();
        security.namespace_options = Some(shared.clone());
    }
    let pod = Pod::run_config(stage, config)?;
    let sharing = |script: &str| {
        let mut config = shell(script);
        security(&mut config).namespace_options = Some(shared.clone());
        config
    };
    let other = pod.start("other", sharing("sleep 10000 & echo up; wait"))?;
    other.logged("up")?;
    for round in 0..5 {
        let name = format!("parent{round}");
        let parent = pod.start(&name, sharing("sleep 10000 & echo forked; sleep 10000"))?;
        parent.logged("forked")?;
        stage.cri.stop(&parent.id, 1)?;
        let status = parent.exited()?;
        ensure!(matches!(status.exit_code, 137 | 143), "exit code {}", status.exit_code);
        stage.cri.remove(&parent.id)?;
    }
    ensure!(other.is_running()?, "the Pod's other container was killed");
    Ok(())
}
