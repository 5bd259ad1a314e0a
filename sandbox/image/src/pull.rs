//! A pull: from a reference to verified blobs in a layout.

mod blob;
mod error;
mod progress;

use std::collections::BTreeSet;

use futures::stream::{self, StreamExt as _, TryStreamExt as _};
use oci_spec::image::{Descriptor, ImageConfiguration, ImageManifest, MediaType};

pub use error::PullError;
pub use progress::{Part, Progress, Silent};

use crate::layout::Stage;
use crate::platform::{self, Platform};
use crate::reference::Reference;
use crate::registry::{Client, Content, Document, RegistryError, Repository};

/// The largest configuration of an image.
const CONFIG_LIMIT: u64 = 8 << 20;
/// An index in an index in an index is not something that a tool writes.
const INDEX_DEPTH: usize = 3;

/// How a pull is done.
#[derive(Clone, Debug)]
pub struct PullOptions {
    /// Which image of several.
    pub platform: Platform,
    /// How many blobs at once.
    pub parallel: usize,
    /// The largest image, in bytes as they are sent.
    pub limit: u64,
}

impl Default for PullOptions {
    fn default() -> Self {
        Self { platform: Platform::of_this_machine(), parallel: 3, limit: 64 << 30 }
    }
}

/// What was pulled.
#[derive(Clone, Debug)]
pub struct Pulled {
    /// The image's manifest.
    pub manifest: Descriptor,
    /// Its configuration.
    pub config: ImageConfiguration,
    /// Its layers, the lowest first.
    pub layers: Vec<Descriptor>,
}

/// Pulls an image into a layout and commits it there.
///
/// # Errors
///
/// What went wrong first; the layout is then as it was.
pub async fn pull(
    client: &Client,
    reference: &Reference,
    options: &PullOptions,
    mut stage: Stage,
    progress: &dyn Progress,
) -> Result<Pulled, PullError> {
    let repository = client.open(reference.place()).await?;
    let document = resolve(&repository, reference, &options.platform).await?;
    let pulled = content(&repository, &document, options, &mut stage, progress).await?;
    stage.add(document.descriptor.digest(), &document.bytes)?;
    stage.commit(&document.descriptor, reference)?;
    Ok(pulled)
}

/// The manifest of the image for a platform.
pub(crate) async fn resolve(
    repository: &Repository,
    reference: &Reference,
    platform: &Platform,
) -> Result<Document, PullError> {
    let mut document = repository.manifest(reference.selector(), reference.digest()).await?;
    for _ in 0..INDEX_DEPTH {
        let Content::Index(index) = &document.content else { return Ok(document) };
        let chosen = platform.choose(index).ok_or_else(|| PullError::NoPlatform {
            image: reference.to_string(),
            wanted: platform.to_string(),
            there: platform::listed(index),
        })?;
        let (digest, size) = (chosen.digest().clone(), chosen.size());
        document = repository.manifest(digest.as_ref(), Some(&digest)).await?;
        if document.descriptor.size() != size {
            return Err(PullError::Size {
                what: format!("manifest {digest}"),
                is: document.descriptor.size(),
                should_be: size,
            });
        }
    }
    Err(PullError::NoImage {
        image: reference.to_string(),
        why: "its indexes are nested too deeply".to_owned(),
    })
}

/// The manifest in a document that [`resolve`] gave.
pub(crate) fn manifest(document: &Document) -> Result<&ImageManifest, PullError> {
    match &document.content {
        Content::Manifest(manifest) => Ok(manifest),
        Content::Index(_) => Err(PullError::NoImage {
            image: document.descriptor.digest().to_string(),
            why: "it is an index".to_owned(),
        }),
    }
}

async fn content(
    repository: &Repository,
    document: &Document,
    options: &PullOptions,
    stage: &mut Stage,
    progress: &dyn Progress,
) -> Result<Pulled, PullError> {
    let manifest = manifest(document)?;
    check(repository, manifest, options)?;
    let config = fetch_config(repository, manifest, &options.platform, stage, progress).await?;
    let mut unseen = BTreeSet::from([manifest.config().digest().to_string()]);
    let mut jobs = Vec::new();
    for layer in manifest.layers() {
        if !unseen.insert(layer.digest().to_string()) {
            continue;
        }
        progress.begin(layer, Part::Layer);
        if stage.has(layer)? {
            progress.present(layer);
        } else {
            jobs.push((layer, stage.file(layer.digest())?));
        }
    }
    let fetch = |(layer, (file, path))| blob::fetch(repository, layer, file, path, progress);
    let fetches = stream::iter(jobs.into_iter().map(fetch));
    fetches.buffer_unordered(options.parallel.max(1)).try_collect::<()>().await?;
    let (manifest_descriptor, layers) = (document.descriptor.clone(), manifest.layers().clone());
    Ok(Pulled { manifest: manifest_descriptor, config, layers })
}

/// What a manifest may not ask for.
fn check(
    repository: &Repository,
    manifest: &ImageManifest,
    options: &PullOptions,
) -> Result<(), PullError> {
    let image = repository.place().to_string();
    let kind = manifest.config().media_type();
    let docker = "application/vnd.docker.container.image.v1+json";
    if *kind != MediaType::ImageConfig && kind.to_string() != docker {
        let why = format!("its configuration is of type {:?}", crate::text::line(kind.as_ref()));
        return Err(PullError::NoImage { image, why });
    }
    let config = manifest.config().size();
    if config > CONFIG_LIMIT {
        let what = "the image's configuration".to_owned();
        return Err(PullError::TooLarge { what, is: config, limit: CONFIG_LIMIT });
    }
    let mut size = config;
    for layer in manifest.layers() {
        size = size.saturating_add(layer.size());
    }
    if size > options.limit {
        let what = format!("image {image}");
        return Err(PullError::TooLarge { what, is: size, limit: options.limit });
    }
    Ok(())
}

async fn fetch_config(
    repository: &Repository,
    manifest: &ImageManifest,
    platform: &Platform,
    stage: &mut Stage,
    progress: &dyn Progress,
) -> Result<ImageConfiguration, PullError> {
    let descriptor = manifest.config();
    progress.begin(descriptor, Part::Config);
    if stage.has(descriptor)? {
        progress.present(descriptor);
    } else {
        let (file, path) = stage.file(descriptor.digest())?;
        blob::fetch(repository, descriptor, file, path, progress).await?;
    }
    read_config(repository, &stage.read(descriptor.digest())?, platform)
}

/// Reads an image's configuration, which must be for the platform.
fn read_config(
    repository: &Repository,
    bytes: &[u8],
    platform: &Platform,
) -> Result<ImageConfiguration, PullError> {
    let image = repository.place().to_string();
    let config: ImageConfiguration =
        serde_json::from_slice(bytes).map_err(|error| PullError::NoImage {
            image: image.clone(),
            why: format!("its configuration is none: {}", crate::text::line(&error.to_string())),
        })?;
    if platform.runs(&config) {
        return Ok(config);
    }
    let (wanted, there) = (platform.to_string(), platform_of(&config));
    Err(PullError::NoPlatform { image, wanted, there })
}

fn platform_of(config: &ImageConfiguration) -> String {
    let variant = config.variant().as_ref().map(|it| format!("/{it}")).unwrap_or_default();
    crate::text::line(&format!("{}/{}{variant}", config.os(), config.architecture()))
}

/// The manifest of an image, and the platform that its configuration is for; nothing is kept.
pub(crate) async fn resolve_config(
    repository: &Repository,
    reference: &Reference,
    platform: &Platform,
) -> Result<(Document, String), PullError> {
    let document = resolve(repository, reference, platform).await?;
    let manifest = manifest(&document)?;
    check(repository, manifest, &PullOptions::default())?;
    let bytes = blob::fetch_small(repository, manifest.config()).await?;
    let config = read_config(repository, &bytes, platform)?;
    Ok((document, platform_of(&config)))
}

impl From<RegistryError> for PullError {
    fn from(error: RegistryError) -> Self {
        Self::Registry(error)
    }
}
