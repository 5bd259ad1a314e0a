//! The Pod's network namespace, before, during and after.

use std::io::Read;
use std::net::TcpListener;
use std::time::Duration;

use sandbox_core::{Backend, Id, Kind};
use sandbox_gvisor::Network;
use sandbox_host::{Command, Host};
use serde_json::json;

use crate::bed::{Bed, SOON, ended};

/// A network namespace with one end of a veth pair, whose other end is on the host. Addresses
/// are of TEST-NET-2 (RFC 5737).
struct Wire<'a> {
    bed: &'a Bed,
    name: String,
}

impl<'a> Wire<'a> {
    async fn lay(bed: &'a Bed) -> Self {
        let name = format!("bhgv{}", std::process::id());
        let wire = Self { bed, name: name.clone() };
        let peer = format!("{name}h");
        for line in [
            format!("netns add {name}"),
            format!("link add {peer} type veth peer name eth0 netns {name}"),
            format!("addr add 198.51.100.1/30 dev {peer}"),
            format!("link set {peer} up"),
            format!("-n {name} addr add 198.51.100.2/30 dev eth0"),
            format!("-n {name} link set lo up"),
            format!("-n {name} link set eth0 up"),
            format!("-n {name} route add default via 198.51.100.1"),
        ] {
            assert_eq!(wire.ip(&line).await.0, 0, "ip {line}");
        }
        wire
    }

    async fn ip(&self, line: &str) -> (u32, String) {
        let command = Command::new("ip").args(line.split(' '));
        let output = self.bed.host.run(command, SOON).await.unwrap();
        (output.exit.status, String::from_utf8(output.stdout).unwrap())
    }

    fn path(&self) -> String {
        format!("/run/netns/{}", self.name)
    }

    /// The IPv4 addresses and routes in the namespace.
    async fn inside(&self) -> (String, String) {
        let addresses = self.ip(&format!("-n {} -4 -o addr show dev eth0", self.name)).await.1;
        let routes = self.ip(&format!("-n {} -4 route", self.name)).await.1;
        (addresses, routes)
    }

    async fn cut(self) {
        self.ip(&format!("netns del {}", self.name)).await;
        self.ip(&format!("link del {}h", self.name)).await;
    }
}

#[tokio::test]
#[ignore = "needs root, env:BULKHEAD_RUNSC"]
async fn addresses_work_inside_and_come_back() {
    let mut bed = Bed::new().await;
    bed.config.network = Network::Sandbox;
    let wire = Wire::lay(&bed).await;
    let before = wire.inside().await;
    assert!(before.0.contains("198.51.100.2/30") && before.1.contains("default via"));
    let mut spec = bed.spec(&["sleep", "100000"]);
    let network = json!({"type": "network", "path": wire.path()});
    spec["linux"]["namespaces"].as_array_mut().unwrap()[4] = network;
    let (_sandbox, pause) = bed.launch_pod(bed.request("pod", &spec)).await;
    assert_eq!(wire.inside().await.0, "", "runsc has taken the address");

    let listener = TcpListener::bind("198.51.100.1:0").unwrap();
    let port = listener.local_addr().unwrap().port().to_string();
    let heard = std::thread::spawn(move || {
        let mut text = String::new();
        listener.accept().unwrap().0.read_to_string(&mut text).unwrap();
        text
    });
    let script = format!("echo through | busybox nc -w 5 198.51.100.1 {port}");
    let args = ["sh", "-c", &script];
    let call = bed.exec(&pause, &args);
    let (exit, text) = tokio::time::timeout(Duration::from_secs(30), call).await.unwrap();
    assert_eq!(exit.status, 0, "{text}");
    assert_eq!(heard.join().unwrap(), "through\n");
    let stats = pause.container.stats().await.unwrap();
    let eth0 = stats.network.iter().find(|i| i.name == "eth0").unwrap();
    assert!(eth0.tx_bytes > 0 && eth0.rx_bytes > 0);

    pause.init.kill(9, false).await.unwrap();
    ended(&pause.init).await;
    assert_eq!(wire.inside().await, before, "as it was, before the exit is reported");
    pause.delete().await;

    // And once more by another process, which has only the bundle.
    let (_sandbox, pause) = bed.launch_pod(bed.request("pod", &spec)).await;
    let id = Id::new("pod").unwrap();
    bed.backend().purge(&id, &bed.bundle("pod")).await.unwrap();
    assert_eq!(wire.inside().await, before);
    ended(&pause.init).await;
    wire.cut().await;
    bed.assert_clean();
}

#[tokio::test]
#[ignore = "needs root, env:BULKHEAD_RUNSC"]
async fn the_hosts_network_is_refused() {
    let mut bed = Bed::new().await;
    bed.config.network = Network::Sandbox;
    let mut spec = bed.spec(&["true"]);
    spec["linux"]["namespaces"].as_array_mut().unwrap().truncate(4);
    let error = bed.launch(bed.request("c", &spec)).await.err().unwrap();
    assert_eq!(error.kind(), Kind::InvalidArgument);
    assert!(error.to_string().contains("allow_host_network = true"), "{error}");
    bed.assert_clean();
}

#[tokio::test]
#[ignore = "needs root, env:BULKHEAD_RUNSC"]
async fn a_new_namespace_of_its_own_works() {
    let mut bed = Bed::new().await;
    bed.config.network = Network::Sandbox;
    let script = "ip -4 address show dev lo | grep -q 'inet 127.0.0.1/8' && exit 6";
    let (_sandbox, task) = bed.launch(bed.script("c", script)).await.unwrap();
    task.start().await;
    assert_eq!(ended(&task.init).await.status, 6);
    task.delete().await;
    bed.assert_clean();
}
