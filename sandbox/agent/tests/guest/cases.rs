//! Containers and execs.

use agent_api::agent::*;
use serde_json::json;

use crate::host::*;

pub(crate) async fn configure(host: &Host) {
    let early = host.request(&spec(&["true"]), shared(), outputs());
    let (early, _) = code(host.client.create_container(ctx(), &early).await.unwrap_err());
    assert_eq!(early, ttrpc::Code::FAILED_PRECONDITION);
    let mut request = ConfigureRequest {
        protocol: agent_api::PROTOCOL,
        hostname: "pod".into(),
        clock_ns: 1_900_000_000_000_000_000,
        entropy: vec![7; 64],
        stream_write_max: 16 * 1024,
        shm_size: 8 << 20,
        debug: true,
        ..Default::default()
    };
    request.interfaces.push(Interface {
        name: "eth0".into(),
        mac: vec![2, 0, 0, 0, 0, 7],
        mtu: 1400,
        addresses: vec!["10.0.2.15/24".into(), "fd00::15/64".into()],
        ..Default::default()
    });
    request.routes.push(Route {
        gateway: "10.0.2.2".into(),
        interface: "eth0".into(),
        ..Default::default()
    });
    request.neighbours.push(Neighbour {
        address: "10.0.2.2".into(),
        mac: vec![2, 0, 0, 0, 0, 9],
        interface: "eth0".into(),
        ..Default::default()
    });
    request.shares.push(Share {
        tag: agent_api::SHARE_TAG.into(),
        mount_point: agent_api::SHARE_MOUNT.into(),
        ..Default::default()
    });
    request.sysctls.insert("net.ipv4.ip_unprivileged_port_start".into(), "80".into());
    let response = host.client.configure(ctx(), &request).await;
    let response = response.unwrap_or_else(|error| panic!("{error}\n{}", host.console()));
    assert_eq!(response.protocol, agent_api::PROTOCOL);
    assert!(response.agent_started_ns > 0 && response.configured_ns > response.agent_started_ns);
    println!(
        "kernel {}, agent after {} ms, configured after {} ms",
        response.kernel,
        response.agent_started_ns / 1_000_000,
        response.configured_ns / 1_000_000
    );
    let (again, _) = code(host.client.configure(ctx(), &request).await.unwrap_err());
    assert_eq!(again, ttrpc::Code::FAILED_PRECONDITION);
}

pub(crate) async fn output_and_exit_code(host: &Host) {
    let script = "echo out; echo err >&2; hostname; id -G; pwd; ip -4 addr show eth0; ip route; \
                  cat /proc/sys/net/ipv4/ip_unprivileged_port_start; date +%Y; echo $$; touch /new; exit 7";
    let mut spec = spec(&["sh", "-c", script]);
    spec["process"]["cwd"] = json!("/not/there/yet");
    spec["linux"]["sysctl"] = json!({"net.ipv4.ip_unprivileged_port_start": "90"});
    spec["linux"]["rootfsPropagation"] = json!("rslave");
    let mut container = host.create(host.request(&spec, shared(), outputs())).await;
    host.start(&container.id, "").await;
    let exit = host.wait(&container.id, "").await;
    let out = read(&mut container.stdout).await;
    assert_eq!(read(&mut container.stderr).await, "err\n");
    assert_eq!((exit.status, exit.oom_killed), (7, false), "{out}");
    assert!(exit.at_ns > 1_900_000_000_000_000_000);
    for expected in [
        "out\n",
        "pod\n",
        "0 10\n",
        "/not/there/yet\n",
        "10.0.2.15/24",
        "default via 10.0.2.2",
        "\n90\n",
        "\n2030\n1\n",
        "mtu 1400",
    ] {
        assert!(out.contains(expected), "{expected:?} is not in {out}");
    }
    assert!(!host.share().join("rootfs/new").exists());
    host.delete(&container.id).await;
}

pub(crate) async fn layers(host: &Host) {
    for upper in [None, Some("upper0")] {
        let mut layers = Layers::new();
        layers.lower.push(Disk {
            serial: "layer0".into(),
            fs_type: "erofs".into(),
            ..Default::default()
        });
        layers.upper = upper
            .map(|serial| Disk {
                serial: serial.into(),
                fs_type: "ext4".into(),
                ..Default::default()
            })
            .into();
        let mut rootfs = Rootfs::new();
        rootfs.set_layers(layers);
        let script = "touch /new && ls /; grep ' / ' /proc/mounts; ls -l /dev/null /dev/ptmx /dev/fd; cat /proc/keys; touch /proc/sys/x; \
                      head -c 4 /dev/disk0 | wc -c; mknod /dev/mem0 c 1 1 && head -c 1 /dev/mem0";
        let mut request = host.request(&spec(&["sh", "-c", script]), rootfs, outputs());
        request.devices.push(BlockDevice {
            serial: "layer0".into(),
            path: "/dev/disk0".into(),
            mode: 0o600,
            ..Default::default()
        });
        let mut container = host.create(request).await;
        host.start(&container.id, "").await;
        let out = read(&mut container.stdout).await;
        let err = read(&mut container.stderr).await;
        assert!(out.contains("new\n") && out.contains("overlay / overlay"), "{out}{err}");
        assert!(err.contains("/proc/sys/x"), "{err}");
        // Its own disk can be read; a node for another device can be created but not opened.
        assert!(out.ends_with("\n4\n"), "{out}{err}");
        assert!(err.contains("/dev/mem0: Operation not permitted"), "{err}");
        host.wait(&container.id, "").await;
        host.delete(&container.id).await;
    }
}

pub(crate) async fn execs(host: &Host) {
    let container = host.run(&["sleep", "1000"], Stdio::new()).await;
    let id = &container.id;
    assert_eq!(host.sh(id, "exit 3").await, (3, String::new()));
    assert_eq!(
        host.sh(id, "echo $PATH; echo $$ >/tmp/x; ls /proc/1/exe >/dev/null && echo one").await.1,
        "/bin\none\n"
    );
    let process_spec = json!({
        "user": {"uid": 1000, "gid": 1000}, "args": ["sh", "-c", "id -u; pwd; echo $A"],
        "cwd": "/tmp", "env": ["A=b"],
    });
    let mut exec = host.exec(id, "user", &process_spec, outputs()).await;
    host.start(id, "user").await;
    let out = read(&mut exec.stdout).await;
    assert_eq!(out, "1000\n/tmp\nb\n", "{}", read(&mut exec.stderr).await);
    assert_eq!(host.wait(id, "user").await.status, 0);

    let _missing = host.exec(id, "missing", &exec_spec(&["nothing"]), Stdio::new()).await;
    let (kind, text) = code(host.client.start(ctx(), &process(id, "missing")).await.unwrap_err());
    assert_eq!(kind, ttrpc::Code::INVALID_ARGUMENT, "{text}");
    assert!(text.contains("nothing") && text.contains("not found in $PATH"), "{text}");
    let (kind, _) = code(host.client.wait(ctx(), &process(id, "missing")).await.unwrap_err());
    assert_eq!(kind, ttrpc::Code::NOT_FOUND);

    let began = std::time::Instant::now();
    for _ in 0..10 {
        assert_eq!(host.sh(id, "true").await.0, 0);
    }
    println!("an exec takes {} ms", began.elapsed().as_millis() / 10);
    host.end(id).await;
}

/// Execs are confined by the container's seccomp filter and by their own capabilities.
pub(crate) async fn exec_confinement(host: &Host) {
    let mut spec = spec(&["sleep", "1000"]);
    spec["linux"]["seccomp"] = json!({
        "defaultAction": "SCMP_ACT_ALLOW", "architectures": ["SCMP_ARCH_X86_64"],
        "syscalls": [{"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 38}],
    });
    let container = host.create(host.request(&spec, shared(), Stdio::new())).await;
    host.start(&container.id, "").await;
    let id = &container.id;
    for (name, no_new_privileges, user) in
        [("a", false, 0), ("b", true, 0), ("c", false, 1000), ("d", true, 1000)]
    {
        let caps = if user == 0 { json!(["CAP_KILL"]) } else { json!([]) };
        let process_spec = json!({
            "user": {"uid": user, "gid": user}, "cwd": "/", "env": ["PATH=/bin"],
            "args": ["sh", "-c", "mkdir /tmp/d; grep -E 'Seccomp:|CapEff|CapPrm|CapBnd|NoNewPrivs' /proc/self/status"],
            "noNewPrivileges": no_new_privileges,
            "capabilities": {"bounding": ["CAP_KILL"], "effective": caps, "permitted": caps},
        });
        let mut exec = host.exec(id, name, &process_spec, outputs()).await;
        host.start(id, name).await;
        let out = read(&mut exec.stdout).await;
        let err = read(&mut exec.stderr).await;
        assert!(err.contains("Function not implemented"), "{name}: {out}{err}");
        assert!(out.contains("Seccomp:\t2"), "{name}: {out}");
        assert!(out.contains("CapBnd:\t0000000000000020"), "{name}: {out}");
        let effective = if user == 0 { "0000000000000020" } else { "0000000000000000" };
        assert!(out.contains(&format!("CapEff:\t{effective}")), "{name}: {out}");
        assert!(out.contains(&format!("CapPrm:\t{effective}")), "{name}: {out}");
        assert!(
            out.contains(&format!("NoNewPrivs:\t{}", u32::from(no_new_privileges))),
            "{name}: {out}"
        );
    }
    host.end(id).await;
}

pub(crate) async fn errors(host: &Host) {
    let container = host.run(&["sleep", "1000"], Stdio::new()).await;
    let id = container.id.clone();
    let mut again = host.request(&spec(&["true"]), shared(), Stdio::new());
    again.container = id.clone();
    let (kind, text) = code(host.client.create_container(ctx(), &again).await.unwrap_err());
    assert_eq!(kind, ttrpc::Code::ALREADY_EXISTS, "{text}");
    let (kind, text) = code(host.client.start(ctx(), &process(&id, "")).await.unwrap_err());
    assert_eq!(kind, ttrpc::Code::FAILED_PRECONDITION, "{text}");
    let (kind, _) = code(host.client.wait(ctx(), &process("absent", "")).await.unwrap_err());
    assert_eq!(kind, ttrpc::Code::NOT_FOUND);
    host.end(&id).await;

    // A container that cannot be created leaves nothing behind, and its error names the cause.
    let mut bad = spec(&["true"]);
    bad["mounts"][6] = json!({"destination": "/data", "type": "bind", "source": "/run/bulkhead/share/none", "options": ["rbind"]});
    let mut request = host.request(&bad, shared(), Stdio::new());
    let (_, text) = code(host.client.create_container(ctx(), &request).await.unwrap_err());
    assert!(text.contains("/run/bulkhead/share/none"), "{text}");
    println!("a mount without a source: {text}");
    request.spec = spec(&["/no/such/program"]).to_string().into_bytes();
    let (kind, text) = code(host.client.create_container(ctx(), &request).await.unwrap_err());
    assert_eq!(kind, ttrpc::Code::INVALID_ARGUMENT, "{text}");
    request.spec = spec(&["true"]).to_string().into_bytes();
    let container = host.create(request).await;
    host.start(&container.id, "").await;
    assert_eq!(host.wait(&container.id, "").await.status, 0);
    let (kind, _) = code(host.kill(&container.id, 9, false).await.unwrap_err());
    assert_eq!(kind, ttrpc::Code::NOT_FOUND);
    host.delete(&container.id).await;
    // A process with unconnected streams does not start.
    let request = host.request(&spec(&["true"]), shared(), outputs());
    host.client.create_container(ctx(), &request).await.unwrap();
    let (kind, text) =
        code(host.client.start(ctx(), &process(&request.container, "")).await.unwrap_err());
    assert_eq!(kind, ttrpc::Code::FAILED_PRECONDITION, "{text}");
    for header in ["x - stdout", "nonsense", &format!("{} - stdin", request.container)] {
        assert_eq!(
            host.connect(agent_api::STREAM_PORT, header).await.1,
            agent_api::REFUSED,
            "{header}"
        );
    }
    host.delete(&request.container).await;
}
