//! What containers of a Pod share, and the guest itself.

use agent_api::agent::*;
use serde_json::json;

use crate::host::*;

/// The Pod's first container, whose PID namespace is the Pod's until it exits.
pub(crate) async fn first(host: &Host) {
    let mut request = host.request(&spec(&["sleep", "100000"]), shared(), Stdio::new());
    request.container = "first".into();
    request.shared_pid = true;
    let first = host.create(request).await;
    host.start(&first.id, "").await;
}

/// Containers have their own PID namespace, unless asked to share the Pod's.
pub(crate) async fn shared_processes(host: &Host) {
    for share in [false, true] {
        let mut request = host.request(&spec(&["sh", "-c", "ps; echo $$"]), shared(), outputs());
        request.shared_pid = share;
        let mut container = host.create(request).await;
        host.start(&container.id, "").await;
        let seen = read(&mut container.stdout).await;
        assert_eq!(seen.contains("sleep 100000"), share, "{seen}");
        assert_eq!(seen.ends_with("\n1\n"), !share, "{seen}");
        assert_eq!(host.wait(&container.id, "").await.status, 0);
        host.delete(&container.id).await;
    }
    host.end("first").await;
    let mut request = host.request(&spec(&["true"]), shared(), Stdio::new());
    request.shared_pid = true;
    let (kind, text) = code(host.client.create_container(ctx(), &request).await.unwrap_err());
    assert_eq!(kind, ttrpc::Code::FAILED_PRECONDITION, "{text}");
}

/// /dev/shm is the Pod's, with the configured size.
pub(crate) async fn shared_memory(host: &Host) {
    let mut writable = spec(&["sleep", "1000"]);
    writable["mounts"][4]["options"] = json!(["rbind", "nosuid"]);
    let first = host.create(host.request(&writable, shared(), Stdio::new())).await;
    host.start(&first.id, "").await;
    let second = host.create(host.request(&writable, shared(), Stdio::new())).await;
    host.start(&second.id, "").await;
    assert_eq!(host.sh(&first.id, "echo hello >/dev/shm/x").await.0, 0);
    assert_eq!(
        host.sh(&second.id, "cat /dev/shm/x; stat -f -c %b /dev/shm").await.1,
        "hello\n2048\n"
    );
    host.end(&first.id).await;
    host.end(&second.id).await;
}

pub(crate) async fn storages(host: &Host) {
    let point = "/run/bulkhead/volumes/cache";
    let mut storage = Storage { mount_point: point.into(), ..Default::default() };
    storage.set_tmpfs(Tmpfs { size: 1 << 20, mode: 0o1777, uid: 5, gid: 6, ..Default::default() });
    let mut with_volume = spec(&["sleep", "1000"]);
    let mounts = with_volume["mounts"].as_array_mut().unwrap();
    mounts.push(json!({"destination": "/cache", "type": "bind", "source": point, "options": ["rbind", "rw"]}));
    let mut containers = Vec::new();
    for _ in 0..2 {
        let mut request = host.request(&with_volume, shared(), Stdio::new());
        request.storages.push(storage.clone());
        let container = host.create(request).await;
        host.start(&container.id, "").await;
        containers.push(container);
    }
    let (_, seen) = host.sh(&containers[0].id, "stat -c '%a %u %g' /cache; echo x >/cache/y").await;
    assert_eq!(seen, "1777 5 6\n");
    host.end(&containers[0].id).await;
    assert_eq!(host.sh(&containers[1].id, "cat /cache/y").await.1, "x\n");
    host.end(&containers[1].id).await;
    // It was unmounted with the last of them.
    let mut request = host.request(&with_volume, shared(), Stdio::new());
    request.storages.push(storage);
    let third = host.create(request).await;
    host.start(&third.id, "").await;
    assert_eq!(host.sh(&third.id, "ls /cache").await.1, "");
    host.end(&third.id).await;
}

pub(crate) async fn delete(host: &Host) {
    let mut request = host.request(&spec(&["sleep", "1000"]), shared(), Stdio::new());
    request.container = "again".into();
    for round in 0..10 {
        host.create(request.clone()).await;
        if round % 2 == 0 {
            host.start("again", "").await;
        }
        // In any state, and again.
        host.delete("again").await;
        host.delete("again").await;
    }
    let (kind, _) = code(host.client.stats(ctx(), &container("again")).await.unwrap_err());
    assert_eq!(kind, ttrpc::Code::NOT_FOUND);
}

pub(crate) async fn online_and_clock(host: &Host) {
    let online =
        host.client.online(ctx(), &OnlineRequest { vcpus: 1, ..Default::default() }).await.unwrap();
    assert_eq!(online.vcpus, 1);
    let clock_ns = 1_950_000_000_000_000_000;
    host.client
        .set_clock(ctx(), &SetClockRequest { clock_ns, ..Default::default() })
        .await
        .unwrap();
    let mut container = host.run(&["date", "+%s"], outputs()).await;
    let now: i64 = read(&mut container.stdout).await.trim().parse().unwrap();
    assert!((0..600).contains(&(now - 1_950_000_000)), "{now}");
    host.wait(&container.id, "").await;
    host.delete(&container.id).await;
}
