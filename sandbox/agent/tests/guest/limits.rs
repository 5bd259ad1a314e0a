//! Signals, statistics, limits.

use std::time::Duration;

use agent_api::agent::*;
use serde_json::json;
use tokio::time::timeout;

use crate::host::*;

pub(crate) async fn kill(host: &Host) {
    let script = "trap 'exit 9' TERM; echo ready; while true; do sleep 0.1; done";
    let mut first = host.run(&["sh", "-c", script], outputs()).await;
    assert_eq!(line(first.stdout.as_mut().unwrap()).await, "ready");
    host.kill(&first.id, 15, false).await.unwrap();
    assert_eq!(host.wait(&first.id, "").await.status, 9);
    let (kind, _) = code(host.kill(&first.id, 15, false).await.unwrap_err());
    assert_eq!(kind, ttrpc::Code::NOT_FOUND);
    host.delete(&first.id).await;

    let second = host.run(&["sleep", "1000"], Stdio::new()).await;
    let exec = host.exec(&second.id, "e", &exec_spec(&["sleep", "1000"]), Stdio::new()).await;
    host.start(&exec.id, "e").await;
    host.kill(&second.id, 9, true).await.unwrap();
    assert_eq!(host.wait(&second.id, "").await.status, 137);
    assert_eq!(host.wait(&second.id, "e").await.status, 137);
    let (kind, _) = code(host.kill(&second.id, 0, false).await.unwrap_err());
    assert_eq!(kind, ttrpc::Code::INVALID_ARGUMENT);
    host.delete(&second.id).await;

    // One that was never started.
    let third = host.create(host.request(&spec(&["true"]), shared(), Stdio::new())).await;
    host.kill(&third.id, 9, false).await.unwrap();
    assert_eq!(host.wait(&third.id, "").await.status, 137);
    host.delete(&third.id).await;
}

pub(crate) async fn pids_and_stats(host: &Host) {
    let container = host.run(&["sleep", "1000"], Stdio::new()).await;
    let exec = host.exec(&container.id, "e", &exec_spec(&["sleep", "1000"]), Stdio::new()).await;
    host.start(&exec.id, "e").await;
    let stats = host.client.stats(ctx(), &crate::host::container(&container.id)).await.unwrap();
    assert_eq!(stats.pids, Some(2));
    assert!(stats.memory_usage.unwrap() > 0 && stats.cpu_total_ns.unwrap() > 0, "{stats}");
    assert_eq!(stats.memory_limit, None);
    assert_eq!(stats.network[0].name, "eth0");
    host.end(&container.id).await;
}

pub(crate) async fn pause(host: &Host) {
    let script = "n=0; while true; do n=$((n+1)); echo $n; sleep 0.05; done";
    let mut container = host.run(&["sh", "-c", script], outputs()).await;
    let stdout = container.stdout.as_mut().unwrap();
    assert_eq!(line(stdout).await, "1");
    let reference = crate::host::container(&container.id);
    host.client.pause(ctx(), &reference).await.unwrap();
    // Lines that were written before may still arrive.
    while timeout(Duration::from_millis(500), line(stdout)).await.is_ok() {}
    assert!(timeout(Duration::from_secs(1), line(stdout)).await.is_err());
    host.client.resume(ctx(), &reference).await.unwrap();
    assert!(!line(stdout).await.is_empty());
    host.client.pause(ctx(), &reference).await.unwrap();
    // A frozen container can be killed.
    host.end(&container.id).await;
}

pub(crate) async fn update(host: &Host) {
    let container = host.run(&["sleep", "1000"], Stdio::new()).await;
    let resources = json!({
        "cpu": {"shares": 1024, "quota": 50000, "period": 100_000},
        "memory": {"limit": 64 << 20}, "pids": {"limit": 33},
    });
    let mut request = UpdateRequest {
        container: container.id.clone(),
        resources: resources.to_string().into_bytes(),
        ..Default::default()
    };
    host.client.update(ctx(), &request).await.unwrap();
    let stats = host.client.stats(ctx(), &crate::host::container(&container.id)).await.unwrap();
    assert_eq!((stats.memory_limit, stats.pids_limit), (Some(64 << 20), Some(33)));
    let (_, seen) =
        host.sh(&container.id, "cat /sys/fs/cgroup/cpu.max /sys/fs/cgroup/cpu.weight").await;
    assert_eq!(seen, "50000 100000\n39\n");
    request.resources = b"[]x".to_vec();
    let (kind, _) = code(host.client.update(ctx(), &request).await.unwrap_err());
    assert_eq!(kind, ttrpc::Code::INVALID_ARGUMENT);
    host.end(&container.id).await;
}

pub(crate) async fn out_of_memory(host: &Host) {
    let mut limited = spec(&["tail", "/dev/zero"]);
    limited["linux"]["resources"]["memory"] = json!({"limit": 16 << 20, "swap": 16 << 20});
    let container = host.create(host.request(&limited, shared(), Stdio::new())).await;
    host.start(&container.id, "").await;
    let exit = host.wait(&container.id, "").await;
    assert_eq!((exit.status, exit.oom_killed), (137, true));
    host.delete(&container.id).await;
}
