//! Container images made here, without network: an OCI archive that `ctr images import` reads.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use flate2::Compression;
use flate2::write::GzEncoder;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tar::{Builder, EntryType, Header};

use super::process::Run;

/// The image that the cases run.
pub(crate) const BUSYBOX: &str = "registry.k8s.io/e2e-test-images/busybox:1.29-2";

/// The image whose config names user 1000 and supplementary group 50000.
pub(crate) const USER: &str = "bulkhead.test/user:1";

/// The sandbox image that the bed's containerds are configured with.
pub(crate) const PAUSE: &str = "registry.k8s.io/pause:3.10";

/// Writes the archive of every image under `cache` unless it is there; returns its path.
pub(crate) fn archive(cache: &Path, busybox: &Path) -> Result<PathBuf> {
    let program = fs::read(busybox).with_context(|| format!("read {}", busybox.display()))?;
    // The name has the recipe's version, so that an archive of an older recipe is not used.
    let name = format!("images-3-{}.tar", &hex(&Sha256::digest(&program))[..12]);
    let path = cache.join(name);
    if !path.exists() {
        let list = Run::new(busybox).arg("--list").ok()?;
        let applets: Vec<&str> = list.lines().filter(|a| *a != "busybox").collect();
        let part = path.with_extension("part");
        fs::write(&part, build(&program, &applets)?)?;
        fs::rename(&part, &path)?;
    }
    Ok(path)
}

fn build(busybox: &[u8], applets: &[&str]) -> Result<Vec<u8>> {
    let mut archive = Archive::new();
    let base = archive.layer(&root_filesystem(busybox, applets)?)?;
    let base = std::slice::from_ref(&base);
    let pause_layer = archive.layer(&pause_filesystem(busybox)?)?;
    let pause = json!({ "Entrypoint": ["/busybox", "sleep", "2147483647"] });
    let pauses = ["3.6", "3.8", "3.9", "3.10"].map(|tag| format!("registry.k8s.io/pause:{tag}"));
    archive.image(&pauses.each_ref().map(String::as_str), &[pause_layer], &pause)?;
    let shell = json!({ "Cmd": ["sh"] });
    let names = [BUSYBOX, "docker.io/library/busybox:latest", "docker.io/library/busybox:1"];
    archive.image(&names, base, &shell)?;
    archive.image(&[USER], base, &json!({ "Cmd": ["sh"], "User": "1000:1000" }))?;
    archive.finish()
}

const PASSWD: &str = "root:x:0:0:root:/root:/bin/sh\nwww-data:x:33:33::/var/www:/bin/false\n\
    guest:x:1000:1000::/home/guest:/bin/sh\nnobody:x:65534:65534::/home:/bin/false\n";
const GROUP: &str =
    "root:x:0:\nwww-data:x:33:\nguest:x:1000:\nextra:x:50000:guest\nnogroup:x:65534:\n";

fn root_filesystem(busybox: &[u8], applets: &[&str]) -> Result<Vec<u8>> {
    let mut layer = Layer::new();
    for dir in ["bin", "dev", "etc", "home", "proc", "run", "sbin", "sys", "usr", "usr/bin", "var"]
    {
        layer.dir(dir, 0o755)?;
    }
    layer.dir("root", 0o700)?;
    layer.dir("tmp", 0o1777)?;
    layer.file("bin/busybox", busybox, 0o755)?;
    for applet in applets {
        layer.link(&format!("bin/{applet}"), "busybox")?;
    }
    layer.link("usr/bin/env", "../../bin/busybox")?;
    layer.file("etc/passwd", PASSWD.as_bytes(), 0o644)?;
    layer.file("etc/group", GROUP.as_bytes(), 0o644)?;
    layer.finish()
}

/// The sandbox image holds one program, which sleeps for 68 years.
fn pause_filesystem(busybox: &[u8]) -> Result<Vec<u8>> {
    let mut layer = Layer::new();
    for dir in ["dev", "etc", "proc", "sys"] {
        layer.dir(dir, 0o755)?;
    }
    layer.file("busybox", busybox, 0o755)?;
    layer.finish()
}

/// A tar of a layer's files, or of an image archive's.
pub(crate) struct Layer(Builder<Vec<u8>>);

impl Layer {
    /// An empty tar.
    pub(crate) fn new() -> Self {
        Self(Builder::new(Vec::new()))
    }

    fn add(&mut self, path: &str, kind: EntryType, mode: u32, data: &[u8]) -> Result<()> {
        let mut header = Header::new_ustar();
        header.set_entry_type(kind);
        header.set_mode(mode);
        header.set_size(data.len() as u64);
        self.0.append_data(&mut header, path, data)?;
        Ok(())
    }

    /// Adds a folder.
    pub(crate) fn dir(&mut self, path: &str, mode: u32) -> Result<()> {
        self.add(path, EntryType::Directory, mode, &[])
    }

    /// Adds a file.
    pub(crate) fn file(&mut self, path: &str, data: &[u8], mode: u32) -> Result<()> {
        self.add(path, EntryType::Regular, mode, data)
    }

    /// Adds a symbolic link.
    pub(crate) fn link(&mut self, path: &str, target: &str) -> Result<()> {
        self.refer(EntryType::Symlink, path, target)
    }

    /// Adds another name of the file that was added as `target`.
    pub(crate) fn hard_link(&mut self, path: &str, target: &str) -> Result<()> {
        self.refer(EntryType::Link, path, target)
    }

    fn refer(&mut self, kind: EntryType, path: &str, target: &str) -> Result<()> {
        let mut header = Header::new_ustar();
        header.set_entry_type(kind);
        header.set_mode(0o777);
        header.set_size(0);
        self.0.append_link(&mut header, path, target)?;
        Ok(())
    }

    /// The tar.
    pub(crate) fn finish(self) -> Result<Vec<u8>> {
        Ok(self.0.into_inner()?)
    }
}

/// A layer that is in the archive.
#[derive(Debug, Clone)]
pub(crate) struct Blob {
    descriptor: Value,
    diff_id: String,
}

/// An OCI archive that is being written.
pub(crate) struct Archive {
    tar: Layer,
    manifests: Vec<Value>,
}

impl Archive {
    /// Without images.
    pub(crate) fn new() -> Self {
        Self { tar: Layer::new(), manifests: Vec::new() }
    }

    fn blob(&mut self, media_type: &str, data: &[u8]) -> Result<Value> {
        let digest = hex(&Sha256::digest(data));
        self.tar.file(&format!("blobs/sha256/{digest}"), data, 0o644)?;
        Ok(json!({
            "mediaType": media_type,
            "digest": format!("sha256:{digest}"),
            "size": data.len(),
        }))
    }

    /// Adds a layer with the files of `tar`.
    pub(crate) fn layer(&mut self, tar: &[u8]) -> Result<Blob> {
        let mut gzip = GzEncoder::new(Vec::new(), Compression::new(6));
        gzip.write_all(tar)?;
        let data = gzip.finish()?;
        let descriptor = self.blob("application/vnd.oci.image.layer.v1.tar+gzip", &data)?;
        Ok(Blob { descriptor, diff_id: format!("sha256:{}", hex(&Sha256::digest(tar))) })
    }

    /// Adds an image of these layers under these names; returns its manifest's digest.
    pub(crate) fn image(
        &mut self,
        names: &[&str],
        layers: &[Blob],
        config: &Value,
    ) -> Result<String> {
        let mut config = config.clone();
        config["Env"] =
            json!(["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"]);
        let history = json!({ "created": CREATED, "created_by": "bulkhead-tests" });
        let diff_ids: Vec<&str> = layers.iter().map(|layer| layer.diff_id.as_str()).collect();
        let image = json!({
            "architecture": architecture(),
            "os": "linux",
            "created": CREATED,
            "config": config,
            "rootfs": { "type": "layers", "diff_ids": diff_ids },
            "history": vec![history; layers.len()],
        });
        let config_type = "application/vnd.oci.image.config.v1+json";
        let config = self.blob(config_type, &serde_json::to_vec(&image)?)?;
        let manifest_type = "application/vnd.oci.image.manifest.v1+json";
        let manifest = serde_json::to_vec(&json!({
            "schemaVersion": 2,
            "mediaType": manifest_type,
            "config": config,
            "layers": layers.iter().map(|layer| &layer.descriptor).collect::<Vec<_>>(),
        }))?;
        let descriptor = self.blob(manifest_type, &manifest)?;
        for name in names {
            let mut descriptor = descriptor.clone();
            descriptor["platform"] = json!({ "architecture": architecture(), "os": "linux" });
            descriptor["annotations"] = json!({ "io.containerd.image.name": name });
            self.manifests.push(descriptor);
        }
        Ok(descriptor["digest"].as_str().unwrap_or_default().to_owned())
    }

    /// The archive.
    pub(crate) fn finish(mut self) -> Result<Vec<u8>> {
        let index = json!({ "schemaVersion": 2, "manifests": self.manifests });
        self.tar.file("oci-layout", br#"{"imageLayoutVersion":"1.0.0"}"#, 0o644)?;
        self.tar.file("index.json", &serde_json::to_vec(&index)?, 0o644)?;
        self.tar.finish()
    }
}

/// The creation time in every image.
const CREATED: &str = "2020-01-01T00:00:00Z";

/// This machine, as images name it.
pub(crate) fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

/// Lower-case hexadecimal.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashMap;
    use std::io::Read;

    #[test]
    fn every_descriptor_names_a_blob_of_its_digest_and_size() {
        let bytes = build(b"#!busybox", &["sh", "ls"]).unwrap();
        let mut files = HashMap::new();
        for entry in tar::Archive::new(bytes.as_slice()).entries().unwrap() {
            let mut entry = entry.unwrap();
            let mut data = Vec::new();
            entry.read_to_end(&mut data).unwrap();
            files.insert(entry.path().unwrap().display().to_string(), data);
        }
        let check = |descriptor: &Value| -> Value {
            let digest = descriptor["digest"].as_str().unwrap().strip_prefix("sha256:").unwrap();
            let data = &files[&format!("blobs/sha256/{digest}")];
            assert_eq!(hex(&Sha256::digest(data)), digest);
            assert_eq!(descriptor["size"], data.len());
            serde_json::from_slice(data).unwrap_or(Value::Null)
        };
        let index: Value = serde_json::from_slice(&files["index.json"]).unwrap();
        let manifests = index["manifests"].as_array().unwrap();
        assert!(manifests.iter().any(|m| m["annotations"]["io.containerd.image.name"] == BUSYBOX));
        for descriptor in manifests {
            let manifest = check(descriptor);
            let config = check(&manifest["config"]);
            check(&manifest["layers"][0]);
            assert!(config["rootfs"]["diff_ids"][0].as_str().unwrap().starts_with("sha256:"));
        }
    }

    #[test]
    fn the_recipe_is_deterministic() {
        assert_eq!(build(b"x", &["sh"]).unwrap(), build(b"x", &["sh"]).unwrap());
    }
}
