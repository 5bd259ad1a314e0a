//! A registry on loopback: Debian's `docker-registry`, first without authentication, to be filled,
//! then for one user, with TLS by a certificate authority that only the case trusts.

use std::fs;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Child;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use rcgen::{
    BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose,
};

use super::process::{Run, kill_group, until};

/// How long it may take to start.
const START: Duration = Duration::from_secs(30);

/// The user who may pull from a private registry.
pub(crate) const USER: &str = "bob";
/// The password of [`USER`], which occurs nowhere else on the machine.
pub(crate) const PASSWORD: &str = "planted-trillian-7Q";
/// bcrypt of [`PASSWORD`].
const HTPASSWD: &str = "bob:$2y$05$sHOstanQjOPAam5cHnlcOO589eZA5LQ54F6/GO181E5QkbnZzCNSq\n";

/// A running registry, killed when dropped; its storage stays.
#[derive(Debug)]
pub(crate) struct Registry {
    address: SocketAddr,
    child: Child,
}

impl Registry {
    /// Serves the storage in `dir` by plain HTTP, to read and write without authentication.
    pub(crate) fn open(program: &Path, dir: &Path) -> Result<Self> {
        Self::start(program, dir, "open", "", "")
    }

    /// Serves the storage in `dir` by TLS, for [`USER`] alone. [`authority`] has signed its
    /// certificate.
    pub(crate) fn private(program: &Path, dir: &Path) -> Result<Self> {
        certify(dir)?;
        let htpasswd = dir.join("htpasswd");
        fs::write(&htpasswd, HTPASSWD)?;
        let file = |name: &str| dir.join(name).display().to_string();
        let tls = format!(
            "  tls: {{certificate: {}, key: {}}}\n",
            file("registry.pem"),
            file("registry.key")
        );
        let auth = format!("auth: {{htpasswd: {{realm: bed, path: {}}}}}\n", htpasswd.display());
        Self::start(program, dir, "private", &tls, &auth)
    }

    fn start(program: &Path, dir: &Path, name: &str, tls: &str, auth: &str) -> Result<Self> {
        let storage = dir.join("storage");
        fs::create_dir_all(&storage)?;
        // The port was free a moment ago.
        let address = TcpListener::bind("127.0.0.1:0")?.local_addr()?;
        let config = dir.join(format!("{name}.yml"));
        let text = format!(
            "version: 0.1\nlog: {{level: debug}}\nstorage: {{filesystem: {{rootdirectory: {}}}}}\n\
             http:\n  addr: {address}\n{tls}{auth}",
            storage.display()
        );
        fs::write(&config, text)?;
        let log = log(dir);
        let child = Run::new(program).clean_env().arg("serve").arg(&config).daemon(&log)?;
        let mut registry = Self { address, child };
        until("the registry's port", START, || {
            if let Some(status) = registry.child.try_wait()? {
                let log = fs::read_to_string(&log).unwrap_or_default();
                bail!("{} exited: {status}: {log}", program.display());
            }
            Ok(TcpStream::connect(address).is_ok().then_some(()))
        })?;
        Ok(registry)
    }

    /// Its address and port, as in an image's name.
    pub(crate) fn host(&self) -> String {
        self.address.to_string()
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        kill_group(&mut self.child);
    }
}

/// The log of the registries of `dir`, at debug level.
pub(crate) fn log(dir: &Path) -> PathBuf {
    dir.join("registry.log")
}

/// The certificate of the authority of the private registry of `dir`.
pub(crate) fn authority(dir: &Path) -> PathBuf {
    dir.join("ca.pem")
}

/// Writes an authority's certificate, and one for 127.0.0.1 that it signed, with its key.
fn certify(dir: &Path) -> Result<()> {
    let mut params = CertificateParams::new(Vec::new())?;
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::DigitalSignature];
    let key = KeyPair::generate()?;
    let certificate = params.self_signed(&key).context("the authority's certificate")?;
    fs::write(authority(dir), certificate.pem())?;
    let issuer = Issuer::new(params, key);
    let mut params = CertificateParams::new(vec!["127.0.0.1".to_owned()])?;
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    let key = KeyPair::generate()?;
    let certificate = params.signed_by(&key, &issuer).context("the registry's certificate")?;
    fs::write(dir.join("registry.pem"), certificate.pem())?;
    fs::write(dir.join("registry.key"), key.serialize_pem())?;
    Ok(())
}
