//! Manifests and indexes: verified bytes and their parsed content.

use oci_spec::image::{Descriptor, Digest, ImageIndex, ImageManifest, MediaType};
use reqwest::header::CONTENT_TYPE;
use serde::Deserialize;

use super::endpoint::Endpoint;
use super::error::RegistryError;
use super::response::read_body;
use crate::digest;

/// The largest manifest, as in registries.
const MANIFEST_LIMIT: usize = 4 << 20;
/// Upper bound on layers; no runtime supports more.
const LAYER_LIMIT: usize = 512;

const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
const DOCKER_LIST: &str = "application/vnd.docker.distribution.manifest.list.v2+json";
const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";
const ACCEPTED: &[&str] = &[OCI_INDEX, OCI_MANIFEST, DOCKER_LIST, DOCKER_MANIFEST];

/// A manifest or an index.
#[derive(Clone, Debug)]
pub(crate) struct Document {
    /// Media type, size and digest.
    pub(crate) descriptor: Descriptor,
    /// The bytes, to which the digest applies.
    pub(crate) bytes: Vec<u8>,
    /// The parsed content.
    pub(crate) content: Content,
}

/// The content of a document.
#[derive(Clone, Debug)]
pub(crate) enum Content {
    /// One image.
    Manifest(Box<ImageManifest>),
    /// One image for each of several platforms.
    Index(Box<ImageIndex>),
}

/// The fields that distinguish a manifest from an index.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Shape {
    schema_version: u32,
    media_type: Option<String>,
    config: Option<serde::de::IgnoredAny>,
    layers: Option<serde::de::IgnoredAny>,
    manifests: Option<serde::de::IgnoredAny>,
}

/// Gets a document from a host.
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
    let bytes = read_body(response, MANIFEST_LIMIT).await?;
    if let Some(digest) = digest {
        if !digest::matches(digest, &bytes) {
            let is = digest::sha256(&bytes);
            let why = format!("its digest is {is}, not {digest}");
            return Err(RegistryError::Corrupt { host, what, why });
        }
    }
    let digest = digest.cloned().unwrap_or_else(|| digest::sha256(&bytes));
    parse(bytes, &kind, digest).map_err(|why| RegistryError::Corrupt { host, what, why })
}

/// Parses a document with the `Content-Type` `kind`; an unknown one is ignored in favour of the
/// document's own media type.
pub(crate) fn parse(bytes: Vec<u8>, kind: &str, digest: Digest) -> Result<Document, String> {
    let shape: Shape =
        serde_json::from_slice(&bytes).map_err(|error| format!("not a manifest: {error}"))?;
    if shape.schema_version != 2 {
        return Err(format!(
            "manifest version {} is not supported, only 2 is",
            shape.schema_version
        ));
    }
    let manifest = shape.config.is_some() || shape.layers.is_some();
    let index = shape.manifests.is_some();
    // Other implementations could interpret such a document differently.
    if manifest && index {
        return Err("it is both a manifest and an index".to_owned());
    }
    if let Some(own) =
        shape.media_type.as_deref().filter(|own| ACCEPTED.contains(&kind) && *own != kind)
    {
        return Err(format!("its Content-Type is {kind:?}, but its mediaType {own:?}"));
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
        other => return Err(format!("{other:?} is not the media type of an image")),
    };
    let size = bytes.len() as u64;
    let descriptor = Descriptor::new(MediaType::from(own), size, digest);
    Ok(Document { descriptor, bytes, content })
}
