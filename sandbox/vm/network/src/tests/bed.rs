//! Two network namespaces joined by a veth pair: the Pod's and one outside.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use sandbox_host::{Command, Host, RealHost, spawn_detached};
use sandbox_netlink::Netlink;
use sandbox_netns::{Namespace, NetnsError, inside};

use crate::snapshot;

const DEADLINE: Duration = Duration::from_secs(20);

/// A Pod's namespace with `eth0`, and one outside with `out`, the other end.
pub(super) struct Bed {
    host: RealHost,
    pod: String,
    out: String,
}

impl Bed {
    /// Makes the namespaces; the interfaces have no addresses and are down.
    pub(super) async fn new(tag: &str) -> Self {
        let host = RealHost::new().unwrap();
        let name = format!("bhnet-{}-{tag}", std::process::id());
        let bed = Self { host, pod: name.clone(), out: format!("{name}-out") };
        bed.run("ip", &["netns", "add", &bed.pod]).await.unwrap();
        bed.run("ip", &["netns", "add", &bed.out]).await.unwrap();
        // Link-local addresses are ready at once, and nothing is sent unsolicited.
        for ns in [&bed.pod, &bed.out] {
            for key in ["default.accept_dad=0", "default.router_solicitations=0"] {
                let key = format!("net.ipv6.conf.{key}");
                bed.run("ip", &["netns", "exec", ns, "sysctl", "-q", "-w", &key]).await.unwrap();
            }
        }
        bed.out(&format!("link add out type veth peer name eth0 netns {}", bed.pod)).await;
        bed.pod("link set lo up").await;
        bed
    }

    async fn run(&self, program: &str, args: &[&str]) -> Result<String, String> {
        let command = Command::new(program).args(args.iter().copied()).outlives_parent();
        let output = self.host.run(command, DEADLINE).await;
        let output = output.map_err(|error| sandbox_host::Error::from(error).to_string())?;
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        if output.exit.status == 0 {
            Ok(text(&output.stdout))
        } else {
            Err(format!("{program} {args:?}: {}", text(&output.stderr)))
        }
    }

    /// `ip` in the Pod's namespace.
    pub(super) async fn pod(&self, args: &str) -> String {
        self.ip(&self.pod, args).await
    }

    /// `ip` outside.
    pub(super) async fn out(&self, args: &str) -> String {
        self.ip(&self.out, args).await
    }

    async fn ip(&self, ns: &str, args: &str) -> String {
        let v6 = if args.contains("fd00") { &["-6"][..] } else { &[] };
        let args: Vec<_> = ["-n", ns].iter().chain(v6).copied().chain(args.split(' ')).collect();
        self.run("ip", &args).await.unwrap()
    }

    async fn exec(&self, ns: &str, command: &str) -> Result<String, String> {
        let args: Vec<_> = ["netns", "exec", ns].into_iter().chain(command.split(' ')).collect();
        self.run("ip", &args).await
    }

    /// A program in the Pod's namespace.
    pub(super) async fn pod_exec(&self, command: &str) -> String {
        self.exec(&self.pod, command).await.unwrap()
    }

    /// Runs a program outside.
    pub(super) async fn out_exec(&self, command: &str) -> String {
        self.exec(&self.out, command).await.unwrap()
    }

    /// Brings both ends up, and waits until the kernel has configured them.
    pub(super) async fn up(&self) {
        self.out("link set out up").await;
        self.pod("link set eth0 up").await;
        let deadline = Instant::now() + DEADLINE;
        loop {
            let state = self.pod("addr show dev eth0").await;
            if state.contains("state UP") && state.contains("fe80:") {
                return;
            }
            assert!(Instant::now() < deadline, "{state}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Puts the Pod's end of the cable outside, and a macvlan on the other end in its place.
    pub(super) async fn macvlan_to_pod(&self, name: &str) {
        self.pod(&format!("link set eth0 netns {} name cable", self.out)).await;
        self.out("link set cable up").await;
        self.out(&format!("link set {name} netns {} name eth0", self.pod)).await;
    }

    pub(super) fn pod_path(&self) -> PathBuf {
        Path::new("/run/netns").join(&self.pod)
    }

    fn out_path(&self) -> PathBuf {
        Path::new("/run/netns").join(&self.out)
    }

    /// Runs `work` on a thread outside.
    pub(super) async fn outside<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> T {
        Self::within(&self.out_path(), work).await
    }

    /// Runs `work` on a thread in the Pod's namespace.
    pub(super) async fn inside_pod<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> T {
        Self::within(&self.pod_path(), work).await
    }

    async fn within<T: Send + 'static>(
        path: &Path,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> T {
        inside(path, Namespace::open(path).unwrap(), move |_| Ok::<_, NetnsError>(work()))
            .await
            .unwrap()
    }

    /// Everything in the Pod's namespace that joining could change.
    pub(super) async fn state(&self) -> String {
        let mut state = self.pod("addr show").await;
        state += &self.pod("route show").await;
        state += &self.pod_exec("tc qdisc show").await;
        for link in ["eth0", "eth1"] {
            for way in ["ingress", "egress"] {
                let filters = format!("tc filter show dev {link} {way}");
                state += &self.exec(&self.pod, &filters).await.unwrap_or_default();
            }
        }
        state
    }

    /// Whether a thread of this process is in the Pod's namespace.
    pub(super) fn threads_in_netns(&self) -> bool {
        let id = |path: &Path| {
            use std::os::unix::fs::MetadataExt;
            std::fs::metadata(path).ok().map(|found| found.ino())
        };
        let pod = id(&self.pod_path());
        let mut tasks = std::fs::read_dir("/proc/self/task").unwrap().filter_map(Result::ok);
        tasks.any(|task| id(&task.path().join("ns/net")) == pod)
    }

    /// The Ethernet address of the outer end.
    pub(super) async fn out_mac(&self) -> [u8; 6] {
        let links = self.outside(|| snapshot::links(&mut Netlink::open().unwrap()).unwrap()).await;
        let out = links.into_iter().find(|link| link.name == "out").unwrap();
        out.mac.try_into().unwrap()
    }

    /// The MTU of the first tap.
    pub(super) async fn tap_mtu(&self) -> u32 {
        let read = || snapshot::links(&mut Netlink::open().unwrap()).unwrap();
        let links = self.inside_pod(read).await;
        links.into_iter().find(|link| link.name == "tap0").unwrap().mtu
    }

    /// Removes the namespaces, and waits for it.
    pub(super) async fn close(self) {
        for ns in [&self.pod, &self.out] {
            self.run("ip", &["netns", "del", ns]).await.unwrap();
        }
    }
}

impl Drop for Bed {
    fn drop(&mut self) {
        for ns in [&self.pod, &self.out] {
            if Path::new("/run/netns").join(ns).exists() {
                let command = Command::new("ip").args(["netns", "del", ns]).outlives_parent();
                spawn_detached(command).unwrap();
            }
        }
    }
}
