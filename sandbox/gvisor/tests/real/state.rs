//! Memory, disks, limits and checkpoints.

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use sandbox_core::{Kind, RootfsMount};
use sandbox_host::cgroup::Cgroup;
use serde_json::json;

use crate::bed::{Bed, ended, running, stop, until};

#[tokio::test]
#[ignore = "needs root, env:BULKHEAD_RUNSC"]
async fn containers_of_a_pod_share_volumes_and_shared_memory() {
    let bed = Bed::new().await;
    let shm = bed.dir.path().join("shm");
    let volume = bed.dir.path().join("volume");
    for dir in [&shm, &volume] {
        fs::create_dir(dir).unwrap();
    }
    let with_mounts = |args: &[&str]| {
        let mut spec = bed.spec(args);
        let mounts = spec["mounts"].as_array_mut().unwrap();
        let bind = |to: &str, from: &PathBuf| json!({"destination": to, "type": "bind", "source": from, "options": ["rbind", "rw"]});
        mounts.push(bind("/dev/shm", &shm));
        mounts.push(bind("/data", &volume));
        spec
    };
    let spec = with_mounts(&["sleep", "100000"]);
    let (sandbox, pause) = bed.launch_pod(bed.request("pod", &spec)).await;
    let mut members = Vec::new();
    for id in ["a", "b"] {
        let request = bed.request(id, &with_mounts(&["sleep", "100000"]));
        members.push(running(&sandbox, request).await);
    }
    for place in ["/dev/shm", "/data"] {
        for (from, to) in [(0, 1), (1, 0)] {
            let write = format!("echo {from} >> {place}/f");
            assert_eq!(bed.exec(&members[from], &["sh", "-c", &write]).await.0.status, 0);
            let read = format!("cat {place}/f");
            let (_, text) = bed.exec(&members[to], &["sh", "-c", &read]).await;
            assert!(text.ends_with(&format!("{from}\n")), "{place}: {text:?}");
        }
    }
    assert_eq!(fs::read_to_string(volume.join("f")).unwrap(), "0\n1\n", "volumes are the host's");
    fs::write(volume.join("host"), "from the host").unwrap();
    let (_, text) = bed.exec(&members[0], &["cat", "/data/host"]).await;
    assert_eq!(text, "from the host");
    assert_eq!(fs::read_dir(&shm).unwrap().count(), 0, "shared memory is the sandbox's");
    let (_, text) = bed.exec(&members[0], &["sh", "-c", "grep /dev/shm /proc/mounts"]).await;
    assert!(text.contains("tmpfs"), "{text}");
    stop(&sandbox, [&pause, &members[0], &members[1]]).await;
    bed.assert_clean();
}

#[tokio::test]
#[ignore = "needs root, env:BULKHEAD_RUNSC"]
async fn the_root_file_system_is_mounted_and_unmounted() {
    let bed = Bed::new().await;
    let mut request = bed.script("c", "echo x > /tmp/written; exit 4");
    let image = bed.dir.path().join("image");
    fs::rename(bed.bundle("c").join("rootfs"), &image).unwrap();
    request.rootfs = vec![RootfsMount {
        kind: "bind".into(),
        source: image.to_str().unwrap().into(),
        options: vec!["rbind".into(), "rw".into()],
    }];
    let (_sandbox, task) = bed.launch(request).await.unwrap();
    task.start().await;
    assert_eq!(ended(&task.init).await.status, 4);
    task.delete().await;
    assert_eq!(fs::read_dir(bed.bundle("c").join("rootfs")).unwrap().count(), 0);
    assert_eq!(fs::read_dir(image.join("tmp")).unwrap().count(), 0, "writes went to the overlay");
    bed.assert_clean();
}

#[tokio::test]
#[ignore = "needs root, env:BULKHEAD_RUNSC"]
async fn a_checkpoint_goes_on_where_it_was() {
    let bed = Bed::new().await;
    let image = bed.dir.path().join("image");
    let script = "n=0; while :; do n=$((n+1)); echo $n; sleep 0.05; done";
    let mut request = bed.script("c", script);
    let (stdio, log) = bed.log("log");
    request.stdio = stdio;
    let (sandbox, task) = bed.launch(request).await.unwrap();
    task.start().await;
    let last = |log: &PathBuf| {
        let text = fs::read_to_string(log).unwrap_or_default();
        text.lines().last().and_then(|line| line.parse::<u32>().ok()).unwrap_or(0)
    };
    until("ticks", || last(&log) >= 3).await;
    task.container.checkpoint(image.clone(), false).await.unwrap();
    let saved = last(&log);
    until("more ticks", || last(&log) > saved + 2).await;
    stop(&sandbox, [&task]).await;

    let mut request = bed.script("d", script);
    let (stdio, log) = bed.log("log2");
    request.stdio = stdio;
    request.checkpoint = Some(image);
    let (sandbox, task) = bed.launch(request).await.unwrap();
    task.start().await;
    until("ticks after restore", || last(&log) > 0).await;
    let first = fs::read_to_string(&log).unwrap();
    let first: u32 = first.lines().next().unwrap().parse().unwrap();
    assert!(first >= saved && first > 1, "starts at {first}, saved at {saved}");
    assert_eq!(bed.exec(&task, &["true"]).await.0.status, 0);
    stop(&sandbox, [&task]).await;

    let (sandbox, pause) = bed.pod().await;
    let member = running(&sandbox, bed.script("m", "sleep 1000")).await;
    let error = member.container.checkpoint(bed.dir.path().join("other"), true).await.unwrap_err();
    assert_eq!(error.kind(), Kind::Unimplemented, "{error}");
    stop(&sandbox, [&pause, &member]).await;
    bed.assert_clean();
}

/// Moves this process into a cgroup of its own, and back.
struct Group {
    own: Cgroup,
    home: Vec<PathBuf>,
}

impl Group {
    fn enter() -> (String, Self) {
        let mount = PathBuf::from(sandbox_host::cgroup::MOUNT);
        let places = fs::read_to_string("/proc/self/cgroup").unwrap();
        let places = places.lines().map(|line| line.splitn(3, ':').collect::<Vec<_>>());
        let place = |line: Vec<&str>| mount.join(line[1]).join(line[2].trim_start_matches('/'));
        let home = places.map(place).map(|dir| dir.join("cgroup.procs")).collect();
        let path = format!("/bulkhead-gvisor-test-{}", std::process::id());
        let own = Cgroup::new(&path).unwrap();
        own.create().unwrap();
        own.join().unwrap();
        (path, Self { own, home })
    }

    async fn leave(self) {
        for file in self.home.iter().filter(|file| file.exists()) {
            fs::write(file, std::process::id().to_string()).unwrap();
        }
        self.own.remove().await.unwrap();
    }
}

#[tokio::test]
#[ignore = "needs root, env:BULKHEAD_RUNSC"]
async fn usage_is_split_and_limits_are_summed() {
    let bed = Bed::new().await;
    let (path, group) = Group::enter();
    let mut spec = bed.spec(&["sleep", "100000"]);
    spec["linux"]["cgroupsPath"] = json!(path);
    let (sandbox, pause) = bed.launch_pod(bed.request("pod", &spec)).await;
    let member = async |id: &str, script: &str, limit: i64| {
        let mut spec = bed.spec(&["sh", "-c", script]);
        spec["linux"]["resources"] = json!({"memory": {"limit": limit}});
        running(&sandbox, bed.request(id, &spec)).await
    };
    let busy = member("busy", "while :; do :; done", 64 << 20).await;
    let idle = member("idle", "sleep 100000", 32 << 20).await;
    tokio::time::sleep(Duration::from_secs(2)).await;
    let limit = || group.own.stats().memory_limit.unwrap();
    let around = |mib: u64| {
        (mib << 20) + bed.config.memory_overhead..((mib + 16) << 20) + bed.config.memory_overhead
    };
    assert!(around(96).contains(&limit()), "{}", limit());
    let busy_now = busy.container.stats().await.unwrap();
    let idle_now = idle.container.stats().await.unwrap();
    let rest = pause.container.stats().await.unwrap();
    assert_eq!(busy_now.memory_limit, Some(64 << 20));
    let cpu = |stats: &sandbox_core::Stats| stats.cpu_total_ns.unwrap();
    assert!(cpu(&busy_now) > 1_000_000_000, "{busy_now:?}");
    assert!(cpu(&busy_now) > 10 * cpu(&idle_now), "{busy_now:?} {idle_now:?}");
    assert!(idle_now.memory_usage.unwrap() > 0 && rest.memory_usage.unwrap() > 0);
    assert_eq!(busy_now.pids, Some(1));
    let again = busy.container.stats().await.unwrap();
    assert!(cpu(&again) >= cpu(&busy_now));

    let update = serde_json::from_value(json!({"memory": {"limit": 128 << 20}})).unwrap();
    busy.container.update(&update).await.unwrap();
    assert!(around(160).contains(&limit()), "{}", limit());
    assert_eq!(busy.container.stats().await.unwrap().memory_limit, Some(128 << 20));
    stop(&sandbox, [&pause, &busy, &idle]).await;
    group.leave().await;
    bed.assert_clean();
}

#[tokio::test]
#[ignore = "needs root, env:BULKHEAD_RUNSC"]
async fn running_out_of_memory_is_reported() {
    let bed = Bed::new().await;
    let (path, group) = Group::enter();
    let mut spec = bed.spec(&["sleep", "100000"]);
    spec["linux"]["cgroupsPath"] = json!(path);
    // As the kubelet does; the group holds this test's own process too.
    spec["process"]["oomScoreAdj"] = json!(900);
    let (sandbox, pause) = bed.launch_pod(bed.request("pod", &spec)).await;
    let mut spec = bed.spec(&["sh", "-c", "sleep 1; dd if=/dev/zero of=/dev/null bs=200M"]);
    spec["linux"]["resources"] = json!({"memory": {"limit": 15 << 20}});
    spec["process"]["oomScoreAdj"] = json!(900);
    let member = running(&sandbox, bed.request("m", &spec)).await;
    assert_eq!(ended(&member.init).await.status, 137);
    assert!(member.oom_killed());
    stop(&sandbox, [&pause, &member]).await;
    group.leave().await;
    bed.assert_clean();
}
