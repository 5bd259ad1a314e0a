//! Progress reports of a pull.

use std::fmt::Debug;

use oci_spec::image::Descriptor;

/// The role of a blob in its image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// The image's configuration.
    Config,
    /// A layer.
    Layer,
}

/// Receives the progress of a pull.
pub trait Progress: Debug + Send + Sync {
    /// The image needs `blob`.
    fn begin(&self, blob: &Descriptor, part: Part);
    /// The layout already has `blob`.
    fn present(&self, blob: &Descriptor);
    /// `bytes` of `blob` were received in total; not yet verified.
    fn reached(&self, blob: &Descriptor, bytes: u64);
    /// `blob` is complete and verified.
    fn done(&self, blob: &Descriptor);
}

/// Discards progress reports.
#[derive(Clone, Copy, Debug, Default)]
pub struct NoProgress;

impl Progress for NoProgress {
    fn begin(&self, _: &Descriptor, _: Part) {}
    fn present(&self, _: &Descriptor) {}
    fn reached(&self, _: &Descriptor, _: u64) {}
    fn done(&self, _: &Descriptor) {}
}
