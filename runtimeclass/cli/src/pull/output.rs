//! `--output`: without a runtime, by our own client.

use std::fs::{self, File};
use std::io::BufReader;
use std::path::Path;
use std::str::FromStr as _;

use nix::unistd::geteuid;
use oci_spec::image::Digest;
use sandbox_image::{
    Client, Limits, Platform, PullOptions, Pulled, Reference, Stage, Unpacker, pull,
};

use super::args::Output;
use super::error::PullError;
use crate::bars::{Bars, size};

/// Pulls; the digest of the image's manifest.
pub(super) async fn pull_to(
    client: &Client,
    reference: &Reference,
    platform: Platform,
    output: &Output,
    bars: &Bars,
) -> Result<String, PullError> {
    bars.line(&format!("pulling {reference}"));
    let options = PullOptions { platform, ..PullOptions::default() };
    let pulled = match output {
        Output::Oci(directory) => {
            let stage = Stage::open(directory)?;
            pull(client, reference, &options, stage, bars).await?
        }
        Output::Rootfs(directory) => {
            let root = Root::make(directory)?;
            let layout = tempfile::tempdir_in(
                directory
                    .parent()
                    .filter(|it| !it.as_os_str().is_empty())
                    .unwrap_or(Path::new(".")),
            );
            let layout = layout.map_err(|source| file(directory, source))?;
            let stage = Stage::open(layout.path())?;
            let pulled = pull(client, reference, &options, stage, bars).await?;
            unpack(&pulled, layout.path(), directory, bars)?;
            root.keep();
            pulled
        }
    };
    Ok(pulled.manifest.digest().to_string())
}

fn file(path: &Path, source: std::io::Error) -> PullError {
    PullError::File { path: path.to_owned(), source }
}

fn unpack(pulled: &Pulled, layout: &Path, root: &Path, bars: &Bars) -> Result<(), PullError> {
    let mut unpacker = Unpacker::open(root, Limits::default(), geteuid().is_root())?;
    let diff_ids = pulled.config.rootfs().diff_ids();
    for (at, layer) in pulled.layers.iter().enumerate() {
        let digest = layer.digest();
        let path = layout.join("blobs").join(digest.algorithm().as_ref()).join(digest.digest());
        let blob = File::open(&path).map_err(|source| file(&path, source))?;
        let diff_id = diff_ids.get(at).and_then(|it| Digest::from_str(it).ok());
        unpacker.layer(BufReader::with_capacity(1 << 17, blob), diff_id.as_ref())?;
    }
    let total = unpacker.total();
    bars.line(&format!("unpacked {} entries, {}", total.entries, size(total.bytes)));
    if total.devices > 0 {
        bars.line(&format!("note: {} devices of the image were not made", total.devices));
    }
    Ok(())
}

/// An empty directory, emptied again on failure.
struct Root<'a> {
    path: &'a Path,
    made: bool,
    kept: bool,
}

impl<'a> Root<'a> {
    fn make(path: &'a Path) -> Result<Self, PullError> {
        let made = match fs::create_dir(path) {
            Ok(()) => true,
            Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => false,
            Err(source) => return Err(file(path, source)),
        };
        let mut entries = fs::read_dir(path).map_err(|source| file(path, source))?;
        if entries.next().is_some() {
            return Err(PullError::NotEmpty { path: path.to_owned() });
        }
        Ok(Self { path, made, kept: false })
    }

    fn keep(mut self) {
        self.kept = true;
    }
}

impl Drop for Root<'_> {
    fn drop(&mut self) {
        if self.kept {
            return;
        }
        let emptied = fs::read_dir(self.path).and_then(|entries| {
            for entry in entries {
                let entry = entry?;
                if entry.file_type()?.is_dir() {
                    fs::remove_dir_all(entry.path())?;
                } else {
                    fs::remove_file(entry.path())?;
                }
            }
            if self.made { fs::remove_dir(self.path) } else { Ok(()) }
        });
        if let Err(error) = emptied {
            eprintln!("bulkhead: {} could not be emptied again: {error}", self.path.display());
        }
    }
}
