//! Pulls an image: from a reference to verified blobs in a layout.

mod blob;
mod error;
mod progress;

use std::collections::BTreeSet;

use futures::stream::{self, StreamExt as _, TryStreamExt as _};
use oci_spec::image::{Descriptor, ImageConfiguration, ImageManifest, MediaType};

pub use error::PullError;
pub use progress::{NoProgress, Part, Progress};

use crate::layout::Stage;
use crate::platform::{self, Platform};
use crate::reference::Reference;
use crate::registry::{Client, Content, Document, Repository};

/// The largest image configuration, in bytes.
const CONFIG_LIMIT: u64 = 8 << 20;
/// Upper bound on nested indexes; tools do not nest them.
const INDEX_DEPTH: usize = 3;

/// Options of a pull.
#[derive(Clone, Debug)]
pub struct PullOptions {
    /// The platform to choose from an index.
    pub platform: Platform,
    /// The number of concurrent downloads.
    pub parallel: usize,
    /// The largest image, in compressed bytes.
    pub limit: u64,
}

impl Default for PullOptions {
    fn default() -> Self {
        Self { platform: Platform::of_this_machine(), parallel: 3, limit: 64 << 30 }
    }
}

/// A pulled image.
#[derive(Clone, Debug)]
pub struct Pulled {
    /// The image's manifest.
    pub manifest: Descriptor,
    /// The configuration.
    pub config: ImageConfiguration,
    /// The layers, the lowest first.
    pub layers: Vec<Descriptor>,
}

/// Pulls an image into a layout and commits it there.
///
/// # Errors
///
/// The first error; the layout is then unchanged.
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

/// Gets the manifest of the image for a platform.
async fn resolve(
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
            available: platform::listed(index),
        })?;
        let digest = chosen.digest().clone();
        let expected = chosen.size();
        document = repository.manifest(digest.as_ref(), Some(&digest)).await?;
        let actual = document.descriptor.size();
        if actual != expected {
            let what = format!("manifest {digest}");
            return Err(PullError::Size { what, actual, expected });
        }
    }
    Err(PullError::NotAnImage {
        image: reference.to_string(),
        why: "its indexes are nested too deeply".to_owned(),
    })
}

/// The manifest in a document from [`resolve`].
fn manifest(document: &Document) -> Result<&ImageManifest, PullError> {
    match &document.content {
        Content::Manifest(manifest) => Ok(manifest),
        Content::Index(_) => Err(PullError::NotAnImage {
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
    let layers = manifest.layers().clone();
    Ok(Pulled { manifest: document.descriptor.clone(), config, layers })
}

/// Checks media types and size limits.
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
        return Err(PullError::NotAnImage { image, why });
    }
    let config = manifest.config().size();
    if config > CONFIG_LIMIT {
        let what = "the image's configuration".to_owned();
        return Err(PullError::TooLarge { what, actual: config, limit: CONFIG_LIMIT });
    }
    let mut size = config;
    for layer in manifest.layers() {
        size = size.saturating_add(layer.size());
    }
    if size > options.limit {
        let what = format!("image {image}");
        return Err(PullError::TooLarge { what, actual: size, limit: options.limit });
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

/// Parses an image's configuration and checks its platform.
fn read_config(
    repository: &Repository,
    bytes: &[u8],
    platform: &Platform,
) -> Result<ImageConfiguration, PullError> {
    let image = repository.place().to_string();
    let config: ImageConfiguration =
        serde_json::from_slice(bytes).map_err(|error| PullError::NotAnImage {
            image: image.clone(),
            why: format!("its configuration is invalid: {}", crate::text::line(&error.to_string())),
        })?;
    if platform.runs(&config) {
        return Ok(config);
    }
    let wanted = platform.to_string();
    Err(PullError::NoPlatform { image, wanted, available: platform_of(&config) })
}

fn platform_of(config: &ImageConfiguration) -> String {
    let variant = config.variant().as_ref().map(|it| format!("/{it}")).unwrap_or_default();
    crate::text::line(&format!("{}/{}{variant}", config.os(), config.architecture()))
}

/// Gets the manifest of an image and the platform in its configuration, without storing anything.
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
