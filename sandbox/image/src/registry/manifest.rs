//! Manifests and indexes, as bytes that were verified and as what they say.

use oci_spec::image::{Descriptor, Digest, ImageIndex, ImageManifest, MediaType};
use reqwest::header::CONTENT_TYPE;
use serde::Deserialize;

use super::{Endpoint, RegistryError, body};
use crate::digest;

/// The largest manifest, as registries have it.
pub const MANIFEST_LIMIT: usize = 4 << 20;
/// More layers than any runtime can stack.
const LAYER_LIMIT: usize = 512;

const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
const DOCKER_LIST: &str = "application/vnd.docker.distribution.manifest.list.v2+json";
const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";
const ACCEPTED: &[&str] = &[OCI_INDEX, OCI_MANIFEST, DOCKER_LIST, DOCKER_MANIFEST];

/// A manifest or an index: what its digest names, and what it says.
#[derive(Clone, Debug)]
pub struct Document {
    /// Its type, size and digest.
    pub descriptor: Descriptor,
    /// The bytes that the digest is of.
    pub bytes: Vec<u8>,
    /// What they say.
    pub content: Content,
}

/// What a document says.
#[derive(Clone, Debug)]
pub enum Content {
    /// One image.
    Manifest(Box<ImageManifest>),
    /// One image for each of several platforms.
    Index(Box<ImageIndex>),
}

/// The parts that tell one kind from the other.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Shape {
    schema_version: u32,
    media_type: Option<String>,
    config: Option<serde::de::IgnoredAny>,
    layers: Option<serde::de::IgnoredAny>,
    manifests: Option<serde::de::IgnoredAny>,
}

/// Gets one from one host.
pub(super) async fn fetch(
    endpoint: &Endpoint,
    selector: &str,
    digest: Option<&Digest>,
) -> Result<Document, RegistryError> {
    let what = format!("image {}:{selector}", endpoint.place().repository());
    let response = endpoint.get(&format!("manifests/{selector}"), ACCEPTED, 0, &what).await?;
    let host = endpoint.host();
    let kind = response.headers().get(CONTENT_TYPE).and_then(|value| value.to_str().ok());
    let kind = kind.and_then(|kind| kind.split(';').next()).unwrap_or_default().trim().to_owned();
    let bytes = body(response, MANIFEST_LIMIT).await?;
    if let Some(digest) = digest {
        if !digest::is_of(digest, &bytes) {
            let is = digest::sha256(&bytes);
            let why = format!("its digest is {is}, not {digest}");
            return Err(RegistryError::Corrupt { host, what, why });
        }
    }
    let digest = digest.cloned().unwrap_or_else(|| digest::sha256(&bytes));
    read(bytes, &kind, digest).map_err(|why| RegistryError::Corrupt { host, what, why })
}

/// Reads a document of that type; a type that is not known is taken from the text.
pub(crate) fn read(bytes: Vec<u8>, kind: &str, digest: Digest) -> Result<Document, String> {
    let shape: Shape =
        serde_json::from_slice(&bytes).map_err(|error| format!("not a manifest: {error}"))?;
    if shape.schema_version != 2 {
        return Err(format!(
            "manifest version {} is not supported, only 2 is",
            shape.schema_version
        ));
    }
    let (manifest, index) =
        (shape.config.is_some() || shape.layers.is_some(), shape.manifests.is_some());
    // One text must not be two things to two readers.
    if manifest && index {
        return Err("it is both a manifest and an index".to_owned());
    }
    if let Some(own) =
        shape.media_type.as_deref().filter(|own| ACCEPTED.contains(&kind) && *own != kind)
    {
        return Err(format!("it is sent as {kind:?} and says that it is {own:?}"));
    }
    let own = shape.media_type.as_deref().unwrap_or(match kind {
        kind if ACCEPTED.contains(&kind) => kind,
        _ if index => OCI_INDEX,
        _ => OCI_MANIFEST,
    });
    let json = |error: serde_json::Error| format!("not a manifest: {error}");
    let content = match own {
        OCI_INDEX | DOCKER_LIST => {
            Content::Index(Box::new(serde_json::from_slice(&bytes).map_err(json)?))
        }
        OCI_MANIFEST | DOCKER_MANIFEST => {
            let manifest: ImageManifest = serde_json::from_slice(&bytes).map_err(json)?;
            if manifest.layers().len() > LAYER_LIMIT {
                return Err(format!("it has more than {LAYER_LIMIT} layers"));
            }
            Content::Manifest(Box::new(manifest))
        }
        other => return Err(format!("{other:?} is no image's type")),
    };
    let size = bytes.len() as u64;
    let descriptor = Descriptor::new(MediaType::from(own), size, digest);
    Ok(Document { descriptor, bytes, content })
}
