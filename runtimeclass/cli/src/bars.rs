//! The progress of a pull: a bar for each layer on a terminal, a line for each elsewhere.

use std::collections::BTreeMap;
use std::fmt;

use indicatif::{MultiProgress, ProgressBar, ProgressStyle};
use oci_spec::image::Descriptor;
use parking_lot::Mutex;
use pod_runner::PullProgress;
use sandbox_image::{Part, Progress};

/// The digits of a digest that are shown.
const SHORT: usize = 12;
const TEMPLATE: &str = "{prefix} {bar:32} {bytes:>10} of {total_bytes:<10} {bytes_per_sec}";

/// Progress on the standard error.
pub(crate) struct Bars {
    terminal: bool,
    all: MultiProgress,
    layers: Mutex<BTreeMap<String, ProgressBar>>,
}

impl fmt::Debug for Bars {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Bars").field("terminal", &self.terminal).finish_non_exhaustive()
    }
}

impl Bars {
    pub(crate) fn new(terminal: bool) -> Self {
        Self { terminal, all: MultiProgress::new(), layers: Mutex::default() }
    }

    /// Prints a line, above the bars.
    pub(crate) fn line(&self, text: &str) {
        let line = format!("bulkhead: {text}");
        if !self.terminal || self.all.println(&line).is_err() {
            eprintln!("{line}");
        }
    }

    /// Sets a layer's progress.
    fn layer(&self, digest: &str, total: u64, bytes: u64) {
        let mut layers = self.layers.lock();
        if !layers.contains_key(digest) {
            layers.insert(digest.to_owned(), self.bar(digest, total));
        }
        if let Some(bar) = layers.get(digest) {
            bar.set_length(total);
            bar.set_position(bytes);
        }
    }

    /// Completes a layer's progress.
    fn finished(&self, digest: &str, total: u64) {
        self.layer(digest, total, total);
        let layers = self.layers.lock();
        if let Some(bar) = layers.get(digest).filter(|bar| !bar.is_finished()) {
            bar.finish();
            drop(layers);
            if !self.terminal {
                self.line(&format!("layer {} {}", short(digest), size(total)));
            }
        }
    }

    fn bar(&self, digest: &str, total: u64) -> ProgressBar {
        if !self.terminal {
            return ProgressBar::hidden();
        }
        let bar = self.all.add(ProgressBar::new(total));
        // The test below checks that the template parses.
        if let Ok(style) = ProgressStyle::with_template(TEMPLATE) {
            bar.set_style(style.progress_chars("=> "));
        }
        bar.set_prefix(short(digest).to_owned());
        bar
    }
}

fn short(digest: &str) -> &str {
    let hex = digest.split_once(':').map_or(digest, |(_, hex)| hex);
    hex.get(..SHORT).unwrap_or(hex)
}

/// A size with its unit.
pub(crate) fn size(bytes: u64) -> String {
    indicatif::HumanBytes(bytes).to_string()
}

impl PullProgress for Bars {
    fn line(&self, text: &str) {
        self.line(text);
    }

    fn layer(&self, digest: &str, total: u64, bytes: u64) {
        self.layer(digest, total, bytes);
    }

    fn layer_complete(&self, digest: &str, total: u64) {
        self.finished(digest, total);
    }
}

impl Progress for Bars {
    fn begin(&self, blob: &Descriptor, part: Part) {
        if part == Part::Layer {
            self.layer(blob.digest().as_ref(), blob.size(), 0);
        }
    }

    fn present(&self, blob: &Descriptor) {
        self.done(blob);
    }

    fn reached(&self, blob: &Descriptor, bytes: u64) {
        let layers = self.layers.lock();
        if let Some(bar) = layers.get(blob.digest().as_ref()) {
            bar.set_position(bytes);
        }
    }

    fn done(&self, blob: &Descriptor) {
        let digest = blob.digest().as_ref();
        let layer = {
            let layers = self.layers.lock();
            layers.contains_key(digest)
        };
        if layer {
            self.finished(digest, blob.size());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_template_parses() {
        assert!(ProgressStyle::with_template(TEMPLATE).is_ok());
        assert_eq!(short("sha256:0123456789abcdef"), "0123456789ab");
        assert_eq!(short("sha256:01"), "01");
    }

    #[test]
    fn a_layer_finishes_once() {
        let bars = Bars::new(false);
        bars.layer("sha256:aa", 10, 3);
        bars.finished("sha256:aa", 10);
        bars.finished("sha256:aa", 10);
        let layers = bars.layers.lock();
        assert!(layers["sha256:aa"].is_finished() && layers["sha256:aa"].position() == 10);
    }
}
