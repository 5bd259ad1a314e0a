//! One private containerd: its configuration, its process, its `ctr`.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Child;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use parking_lot::Mutex;
use sha2::{Digest, Sha256};

use super::gomod::GoTools;
use super::handler::Paths;
use super::packages::Packages;
use super::place::Place;
use super::process::{self, Run, until, wait};
use super::version::Version;
use super::vm::VmTools;
use super::{cni, config, handler, image};
use crate::client::cri::Cri;

/// The namespace in which cases use `ctr run`; CRI's own is `k8s.io`.
pub(crate) const NAMESPACE: &str = "bed";

/// A containerd that is up, or can be brought up again.
#[derive(Debug)]
pub(crate) struct Node {
    /// Which line of releases.
    pub(crate) version: Version,
    place: Place,
    bin: PathBuf,
    busybox: PathBuf,
    registry: PathBuf,
    runtimes: Vec<(handler::Handler, PathBuf)>,
    guest: Option<PathBuf>,
    daemon: Mutex<Option<Child>>,
    shim_sockets: Mutex<BTreeSet<String>>,
}

impl Node {
    /// Writes the configuration below `place`, starts containerd and imports the images.
    pub(crate) fn up(
        place: &Place,
        version: Version,
        packages: &Packages,
        newest: Option<&GoTools>,
        vm: Option<&VmTools>,
        images: &Path,
    ) -> Result<Self> {
        let mut node = Self {
            version,
            place: place.clone(),
            bin: packages.containerd(version),
            busybox: packages.busybox(),
            registry: packages.registry(),
            runtimes: Vec::new(),
            guest: vm.map(|tools| tools.guest.clone()),
            daemon: Mutex::new(None),
            shim_sockets: Mutex::default(),
        };
        let made = [node.run(), node.certs(), node.run().join("bin"), node.lib().join("logs")];
        for dir in made {
            fs::create_dir_all(&dir).with_context(|| format!("cannot make {}", dir.display()))?;
        }
        node.link_programs(packages, newest)?;
        let paths = Paths {
            packages,
            newest: newest.map(|tools| tools.runsc.clone()),
            dir: node.handlers(),
            runsc_root: node.runsc_root(),
            runsc_logs: node.lib().join("runsc"),
            vm,
            vm_root: node.vm_root(),
        };
        node.runtimes =
            handler::Handler::ALL.iter().filter_map(|h| Some((*h, paths.runtime(*h)?))).collect();
        let entries = paths.write()?;
        cni::write(place, version.short(), &node.cni())?;
        fs::write(
            node.run().join("config.toml"),
            config::text(version, &node.run(), &node.lib(), &packages.cni(), &entries),
        )?;
        let scratch = config::scratch(&node.lib());
        Run::new("mkfs.ext4").args(["-q", "-F"]).arg(&scratch).arg("64M").ok()?;
        node.start()?;
        for namespace in ["k8s.io", NAMESPACE] {
            let import = node.ctr(namespace).args(["images", "import"]).arg(images);
            import.ok().context("import of the test images")?;
        }
        Ok(node)
    }

    /// Sockets, bundles and configuration of this containerd.
    pub(crate) fn run(&self) -> PathBuf {
        self.place.run().join(self.version.short())
    }

    /// Content, snapshots and logs of this containerd.
    pub(crate) fn lib(&self) -> PathBuf {
        self.place.lib().join(self.version.short())
    }

    /// The bed of this containerd.
    pub(crate) fn place(&self) -> &Place {
        &self.place
    }

    /// The gRPC socket.
    pub(crate) fn socket(&self) -> PathBuf {
        self.run().join("c.sock")
    }

    /// The ttrpc socket, for events.
    pub(crate) fn ttrpc_socket(&self) -> PathBuf {
        self.run().join("c.sock.ttrpc")
    }

    /// The folder with a `hosts.toml` for each registry, which directs pulls.
    pub(crate) fn hosts(&self) -> PathBuf {
        self.run().join("certs.d")
    }

    /// Where NRI plugins connect; containerd 1.6 has no NRI.
    pub(crate) fn nri_socket(&self) -> PathBuf {
        self.run().join("nri.sock")
    }

    /// The folder of bundles of `namespace`.
    pub(crate) fn bundles(&self, namespace: &str) -> PathBuf {
        self.run().join("state/io.containerd.runtime.v2.task").join(namespace)
    }

    /// The CNI folder: `net.d` and the address store.
    pub(crate) fn cni(&self) -> PathBuf {
        self.run().join("cni")
    }

    /// Bulkhead's handler files.
    pub(crate) fn handlers(&self) -> PathBuf {
        self.run().join("handlers")
    }

    /// runsc's state.
    pub(crate) fn runsc_root(&self) -> PathBuf {
        self.place.run().join(format!("r{}", self.version.short()))
    }

    /// The folders of the VMs.
    pub(crate) fn vm_root(&self) -> PathBuf {
        self.place.run().join(format!("v{}", self.version.short()))
    }

    /// The low-level runtime or VMM of `handler`, `None` where it cannot run here.
    pub(crate) fn runtime(&self, handler: handler::Handler) -> Option<&Path> {
        let found = self.runtimes.iter().find(|(name, _)| *name == handler);
        found.map(|(_, path)| path.as_path())
    }

    /// The directory of the image that VMs boot, `None` where they cannot run here.
    pub(crate) fn guest(&self) -> Option<&Path> {
        self.guest.as_deref()
    }

    /// The containerd program itself.
    pub(crate) fn program(&self) -> PathBuf {
        self.bin.join("containerd")
    }

    /// A static busybox, for roots made by hand.
    pub(crate) fn busybox(&self) -> &Path {
        &self.busybox
    }

    /// The program of a registry.
    pub(crate) fn registry(&self) -> &Path {
        &self.registry
    }

    /// Where containerd looks for a `hosts.toml` of each registry.
    pub(crate) fn certs(&self) -> PathBuf {
        self.run().join("certs.d")
    }

    /// containerd's log.
    pub(crate) fn log(&self) -> PathBuf {
        self.lib().join("containerd.log")
    }

    /// A `ctr` of the daemon's own version, in `namespace`.
    pub(crate) fn ctr(&self, namespace: &str) -> Run {
        let run = Run::new(self.bin.join("ctr")).clean_env().env("PATH", self.path());
        run.arg("--address").arg(self.socket()).args(["--namespace", namespace])
    }

    /// Starts the daemon and waits until CRI answers.
    pub(crate) fn start(&self) -> Result<()> {
        let mut daemon = self.daemon.lock();
        if daemon.is_some() {
            bail!("containerd {} already runs", self.version.label());
        }
        let run = Run::new(self.program()).arg("--config").arg(self.run().join("config.toml"));
        let run = run.clean_env().env("HOME", "/root").env("LANG", "C.UTF-8");
        let mut child = run.env("PATH", self.path()).daemon(&self.log())?;
        let ready = until("containerd ready", Duration::from_secs(60), || {
            if let Some(status) = child.try_wait()? {
                bail!("containerd exited: {status}: {}", self.log_tail(0));
            }
            Ok(self.answers().then_some(()))
        });
        *daemon = Some(child);
        ready
    }

    /// Stops the daemon with `signal` and waits for its exit; shims and containers stay.
    pub(crate) fn stop(&self, signal: Signal) -> Result<()> {
        let Some(mut child) = self.daemon.lock().take() else { return Ok(()) };
        let pid = Pid::from_raw(i32::try_from(child.id())?);
        kill(pid, signal).context("signal containerd")?;
        if wait(&mut child, Duration::from_secs(30))?.is_none() {
            process::kill_group(&mut child);
            bail!("containerd {} still runs 30 s after {signal}", self.version.label());
        }
        Ok(())
    }

    /// Notes that there may be a shim for the Pod or container `id`. Its socket, by the convention
    /// of all shims, is named by a hash of the daemon's address, the namespace and the id.
    pub(crate) fn expect_shim(&self, namespace: &str, id: &str) {
        let socket = self.shim_socket(namespace, id);
        self.shim_sockets.lock().insert(socket);
    }

    /// Where the shim for `id` listens.
    pub(crate) fn shim_socket(&self, namespace: &str, id: &str) -> String {
        let key = format!("{}/{namespace}/{id}", self.socket().display());
        format!("/run/containerd/s/{}", image::hex(&Sha256::digest(key)))
    }

    /// The sockets of every shim that was expected so far.
    pub(crate) fn shim_sockets(&self) -> BTreeSet<String> {
        self.shim_sockets.lock().clone()
    }

    /// Where containerd's log ends now, to cut an excerpt from later.
    pub(crate) fn log_len(&self) -> u64 {
        fs::metadata(self.log()).map_or(0, |m| m.len())
    }

    /// What the log got after `offset`.
    pub(crate) fn log_since(&self, offset: u64) -> String {
        let bytes = fs::read(self.log()).unwrap_or_default();
        let from = usize::try_from(offset).unwrap_or(0).min(bytes.len());
        String::from_utf8_lossy(&bytes[from..]).into_owned()
    }

    /// The last lines, but those of debug level, that the log got after `offset`.
    pub(crate) fn log_tail(&self, offset: u64) -> String {
        let text = self.log_since(offset);
        let relevant =
            |line: &&str| !line.contains("level=debug") && !line.contains("loading plugin");
        let lines: Vec<String> =
            text.lines().filter(relevant).map(|line| line.chars().take(400).collect()).collect();
        lines[lines.len().saturating_sub(20)..].join("\n")
    }

    /// CRI answers some time after the socket exists.
    fn answers(&self) -> bool {
        self.socket().exists() && Cri::new(&self.socket()).is_ok_and(|cri| cri.pods().is_ok())
    }

    fn link_programs(&self, packages: &Packages, newest: Option<&GoTools>) -> Result<()> {
        let runc = ("runc", packages.runc());
        let shim = handler::shim().map(|path| ("containerd-shim-bulkhead-v2", path));
        let peer = newest.map(|tools| ("containerd-shim-runsc-v1", tools.gvisor_shim.clone()));
        for (name, path) in [runc].into_iter().chain(shim).chain(peer) {
            let link = self.run().join("bin").join(name);
            std::os::unix::fs::symlink(&path, &link)
                .with_context(|| format!("cannot link {}", link.display()))?;
        }
        Ok(())
    }

    fn path(&self) -> String {
        let own = format!("{}:{}", self.run().join("bin").display(), self.bin.display());
        format!("{own}:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin")
    }
}
