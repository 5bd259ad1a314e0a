//! Debian's `docker-registry`.

use std::fs;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use sandbox_host::{Command, Host as _, RealHost};

use crate::image::{Image, digest};
use crate::pki::Authority;

/// Deadline of its start.
const START: Duration = Duration::from_secs(20);
/// The user bob with the bcrypt hash of [`PASSWORD`].
const BOB: &str = "bob:$2y$05$JMGmt.P3vJCQzeNb.KW2Leuo3wqAZLhU95Nq1ZV..OcMoiLtL/L06";
pub(crate) const PASSWORD: &str = "hunter2-p@ss";

/// The registry's program.
pub(crate) fn program() -> PathBuf {
    std::env::var_os("BULKHEAD_REGISTRY")
        .expect("BULKHEAD_REGISTRY is set to the path of docker-registry")
        .into()
}

/// Access control for pulls.
pub(crate) enum Access<'a> {
    Public,
    /// The user bob with his password.
    Users,
    /// Tokens of the realm, signed by the authority.
    Tokens {
        realm: &'a str,
    },
}

/// A running registry; killed on drop.
pub(crate) struct Daemon {
    pub(crate) address: SocketAddr,
    pid: u32,
    /// Reaps the process.
    _host: RealHost,
}

impl Daemon {
    /// Starts a registry with the storage in `directory`, with TLS if there is an authority.
    pub(crate) async fn start(
        program: &Path,
        directory: &Path,
        access: Access<'_>,
        authority: Option<&Authority>,
    ) -> Self {
        fs::create_dir_all(directory.join("storage")).unwrap();
        fs::write(directory.join("htpasswd"), BOB).unwrap();
        // The kernel does not reuse the port of a closed listener immediately.
        let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let mut config = format!(
            "version: 0.1\nlog: {{level: debug}}\nstorage: {{filesystem: {{rootdirectory: {}}}}}\nhttp:\n  addr: {address}\n",
            directory.join("storage").display()
        );
        if let Some(authority) = authority {
            let name = format!("registry-{}", address.port());
            authority.sign(&name, "127.0.0.1");
            let file = |ending: &str| authority.ca().with_file_name(format!("{name}.{ending}"));
            config.push_str(&format!(
                "  tls: {{certificate: {}, key: {}}}\n",
                file("pem").display(),
                file("key").display()
            ));
        }
        match (access, authority) {
            (Access::Public, _) => {}
            (Access::Users, _) => {
                let file = directory.join("htpasswd");
                config.push_str(&format!("auth: {{htpasswd: {{realm: r, path: {}}}}}\n", file.display()));
            }
            (Access::Tokens { realm }, Some(authority)) => config.push_str(&format!(
                "auth: {{token: {{realm: {realm:?}, service: reg, issuer: tests, rootcertbundle: {}}}}}\n",
                authority.ca().display()
            )),
            (Access::Tokens { .. }, None) => panic!("tokens require an authority"),
        }
        let path = directory.join(format!("config-{}.yml", address.port()));
        fs::write(&path, config).unwrap();
        let log =
            fs::OpenOptions::new().create(true).append(true).open(directory.join("log")).unwrap();
        let command = Command::new(program)
            .arg("serve")
            .arg(&path)
            .stdout(log.try_clone().unwrap().into())
            .stderr(log.into());
        let host = RealHost::new().unwrap();
        let pid = host.spawn(command).unwrap().pid;
        let daemon = Self { address, pid, _host: host };
        let start = Instant::now();
        while TcpStream::connect(address).is_err() {
            let log = || fs::read_to_string(directory.join("log")).unwrap_or_default();
            assert!(start.elapsed() < START, "docker-registry did not start: {}", log());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        daemon
    }

    pub(crate) fn host(&self) -> String {
        self.address.to_string()
    }

    /// Pushes an image to a registry with public access.
    pub(crate) async fn push(&self, repository: &str, image: &Image) {
        let base = format!("http://{}/v2/{repository}", self.address);
        // Required even without TLS; fails if another test has installed it.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let client = reqwest::Client::builder().no_proxy().build().unwrap();
        for (name, bytes) in &image.blobs {
            let upload = client.post(format!("{base}/blobs/uploads/")).send().await.unwrap();
            let location = upload.headers()["location"].to_str().unwrap().to_owned();
            let put = client.put(format!("{location}&digest={name}")).body(bytes.clone());
            assert_eq!(put.send().await.unwrap().status(), 201);
        }
        // An index is accepted only after its manifests.
        let mut manifests: Vec<_> = image.manifests.iter().collect();
        manifests.sort_by_key(|(_, (kind, _))| kind == crate::image::INDEX);
        for (selector, (kind, bytes)) in manifests {
            let put =
                client.put(format!("{base}/manifests/{selector}")).header("content-type", kind);
            let status = put.body(bytes.clone()).send().await.unwrap().status();
            assert_eq!(status, 201, "{selector} {}", digest(bytes));
        }
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let pid = Pid::from_raw(i32::try_from(self.pid).unwrap());
        // Fails if the process has already exited.
        let _ = kill(pid, Signal::SIGKILL);
    }
}
