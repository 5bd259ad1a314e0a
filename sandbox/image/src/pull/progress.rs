//! How far a pull is, for whoever watches.

use std::fmt::Debug;

use oci_spec::image::Descriptor;

/// What a blob is in its image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// The image's configuration.
    Config,
    /// A layer.
    Layer,
}

/// Is told how far a pull is.
pub trait Progress: Debug + Send + Sync {
    /// A blob is needed.
    fn begin(&self, blob: &Descriptor, part: Part);
    /// It is there already.
    fn present(&self, blob: &Descriptor);
    /// So many bytes of it came; it is verified only when it is done.
    fn reached(&self, blob: &Descriptor, bytes: u64);
    /// It is whole and verified.
    fn done(&self, blob: &Descriptor);
}

/// Nobody watches.
#[derive(Clone, Copy, Debug, Default)]
pub struct Silent;

impl Progress for Silent {
    fn begin(&self, _: &Descriptor, _: Part) {}
    fn present(&self, _: &Descriptor) {}
    fn reached(&self, _: &Descriptor, _: u64) {}
    fn done(&self, _: &Descriptor) {}
}
