//! Builds images.

use std::collections::BTreeMap;
use std::io::Write as _;

use flate2::Compression;
use flate2::write::GzEncoder;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use crate::server::{Reply, Request};

pub(crate) const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
pub(crate) const INDEX: &str = "application/vnd.oci.image.index.v1+json";

/// The content of a repository.
#[derive(Clone, Debug, Default)]
pub(crate) struct Image {
    /// Digest to bytes.
    pub(crate) blobs: BTreeMap<String, Vec<u8>>,
    /// Tag or digest to type and bytes.
    pub(crate) manifests: BTreeMap<String, (String, Vec<u8>)>,
}

pub(crate) fn digest(bytes: &[u8]) -> String {
    format!("sha256:{:x}", Sha256::digest(bytes))
}

/// The architecture of this host, by its name in images.
pub(crate) fn here() -> &'static str {
    if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" }
}

/// Incompressible bytes.
pub(crate) fn noise(length: usize, mut seed: u64) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(length);
    while bytes.len() < length {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        bytes.extend_from_slice(&seed.to_le_bytes());
    }
    bytes.truncate(length);
    bytes
}

impl Image {
    /// An image for this host's platform with the tag `1` and layers of these sizes.
    pub(crate) fn single(sizes: &[usize]) -> Self {
        let mut image = Self::default();
        let (kind, bytes) = image.platform(here(), sizes);
        image.tag("1", &kind, bytes);
        image
    }

    /// An index with the tag `multi`: another platform first, an attestation last.
    pub(crate) fn multi(sizes: &[usize]) -> Self {
        let mut image = Self::default();
        let mut entries = Vec::new();
        for (os, architecture) in [("linux", "s390x"), ("linux", here()), ("unknown", "unknown")] {
            let (kind, bytes) = image.platform(architecture, sizes);
            entries.push(json!({
                "mediaType": kind, "size": bytes.len(), "digest": digest(&bytes),
                "platform": { "os": os, "architecture": architecture },
            }));
            image.tag(&digest(&bytes), &kind, bytes.clone());
        }
        let index = json!({ "schemaVersion": 2, "mediaType": INDEX, "manifests": entries });
        image.tag("multi", INDEX, serde_json::to_vec(&index).unwrap());
        image
    }

    /// Adds an image for a platform; the media type and bytes of its manifest.
    fn platform(&mut self, architecture: &str, sizes: &[usize]) -> (String, Vec<u8>) {
        let mut layers = Vec::new();
        let mut diff_ids = Vec::new();
        for (at, size) in sizes.iter().enumerate() {
            let seed = (at as u64 + 1) * 7919 + architecture.len() as u64;
            let tar = tar(&format!("file-{at}"), &noise(*size, seed));
            diff_ids.push(digest(&tar));
            let mut gzip = GzEncoder::new(Vec::new(), Compression::fast());
            gzip.write_all(&tar).unwrap();
            let kind = "application/vnd.oci.image.layer.v1.tar+gzip";
            layers.push(self.blob(kind, gzip.finish().unwrap()));
        }
        let config = json!({
            "architecture": architecture, "os": "linux", "config": {},
            "rootfs": { "type": "layers", "diff_ids": diff_ids },
        });
        let config = serde_json::to_vec(&config).unwrap();
        let config = self.blob("application/vnd.oci.image.config.v1+json", config);
        let manifest = json!({
            "schemaVersion": 2, "mediaType": MANIFEST, "config": config, "layers": layers,
        });
        (MANIFEST.to_owned(), serde_json::to_vec(&manifest).unwrap())
    }

    fn blob(&mut self, kind: &str, bytes: Vec<u8>) -> Value {
        let digest = digest(&bytes);
        let descriptor = json!({ "mediaType": kind, "size": bytes.len(), "digest": digest });
        self.blobs.insert(digest, bytes);
        descriptor
    }

    pub(crate) fn tag(&mut self, tag: &str, kind: &str, bytes: Vec<u8>) {
        self.manifests.insert(digest(&bytes), (kind.to_owned(), bytes.clone()));
        self.manifests.insert(tag.to_owned(), (kind.to_owned(), bytes));
    }

    /// The digest of a tag.
    pub(crate) fn digest(&self, tag: &str) -> String {
        digest(&self.manifests[tag].1)
    }

    /// The largest blob.
    pub(crate) fn largest(&self) -> (&String, &Vec<u8>) {
        self.blobs.iter().max_by_key(|(_, bytes)| bytes.len()).unwrap()
    }

    /// The response of a registry that has this image in every repository.
    pub(crate) fn answer(&self, request: &Request) -> Reply {
        let path = request.path.split('?').next().unwrap();
        if let Some((_, digest)) = path.rsplit_once("/blobs/") {
            return match self.blobs.get(digest) {
                Some(bytes) => ranged(request, bytes),
                None => Reply::new(404, r#"{"errors":[{"code":"BLOB_UNKNOWN"}]}"#),
            };
        }
        let selector = path.rsplit_once("/manifests/").map(|(_, selector)| selector);
        match selector.and_then(|selector| self.manifests.get(selector)) {
            Some((kind, bytes)) => Reply::new(200, bytes.clone()).with("Content-Type", kind),
            None => Reply::new(404, r#"{"errors":[{"code":"MANIFEST_UNKNOWN"}]}"#),
        }
    }
}

/// The requested range.
pub(crate) fn ranged(request: &Request, bytes: &[u8]) -> Reply {
    let from = request.header("range").and_then(|it| it.strip_prefix("bytes="));
    match from.and_then(|it| it.trim_end_matches('-').parse::<usize>().ok()) {
        Some(from) => {
            let range = format!("bytes {from}-{}/{}", bytes.len() - 1, bytes.len());
            Reply::new(206, &bytes[from..]).with("Content-Range", range)
        }
        None => Reply::new(200, bytes),
    }
}

fn tar(name: &str, data: &[u8]) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_ustar();
    header.set_mode(0o644);
    header.set_size(data.len() as u64);
    builder.append_data(&mut header, name, data).unwrap();
    builder.into_inner().unwrap()
}
