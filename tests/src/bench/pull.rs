//! Pulls: `bulkhead pull` into an OCI layout beside `skopeo copy` into a directory, in turn, from
//! the same registry on this machine's loopback.

use std::fs::{self, File};
use std::io::Write;
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use flate2::Compression;
use flate2::write::GzEncoder;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use crate::bed::image::hex;
use crate::bed::packages::Packages;
use crate::bed::place::{self, Place};
use crate::bed::process::{Run, hold_if_stopping, kill_group, patience};
use crate::bed::registry::Registry;
use crate::bed::sweep::sweep;

/// How long one pull may take.
const PATIENCE: Duration = Duration::from_secs(600);
/// How often a running program's memory is looked at; the kernel keeps the peak itself.
const LOOK: Duration = Duration::from_millis(2);
/// The aims: at least as fast as skopeo, in so much memory.
const RATIO_AIM: f64 = 1.0;
const MEMORY_AIM_KIB: u64 = 64 << 10;

/// What to measure.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Plan {
    /// How often each client pulls.
    pub(crate) rounds: u32,
    /// The image's layers.
    pub(crate) layers: u32,
    /// The size of each, in MiB.
    pub(crate) layer_mib: u32,
}

/// One pull.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Sample {
    seconds: f64,
    peak_kib: u64,
}

/// What was measured.
#[derive(Debug, Default)]
pub(crate) struct Report {
    facts: Vec<String>,
    ours: Vec<Sample>,
    skopeo: Vec<Sample>,
}

/// Serves one image from a registry at `place`, measures both clients on it, removes the bed.
pub(crate) fn run(plan: &Plan, place: &Place) -> Result<Report> {
    let packages = Packages::fetch(&place::cache())?;
    let bulkhead = place::built("bulkhead").context("bulkhead has not been built")?;
    let measured = measure(plan, &place.lib().join("pull"), &packages, &bulkhead);
    let left = sweep(place);
    ensure!(left.is_empty(), "could not be removed:\n  {}", left.join("\n  "));
    measured
}

fn measure(plan: &Plan, dir: &Path, packages: &Packages, bulkhead: &Path) -> Result<Report> {
    fs::create_dir_all(dir)?;
    let registry = Registry::open(&packages.registry(), dir)?;
    let image = format!("{}/bench:1", registry.host());
    let bytes = fill(plan, &dir.join("layout"), &packages.skopeo(), &image)?;
    let one = dir.join("ours");
    let other = dir.join("skopeo");
    let ours = || {
        let output = format!("oci:{}", one.display());
        Run::new(bulkhead).args(["pull", "--anonymous", "--output", &output, &image])
    };
    let theirs = || {
        let run = Run::new(packages.skopeo()).args(["--insecure-policy", "copy"]);
        let source = format!("docker://{image}");
        run.args(["--src-tls-verify=false", &source]).arg(format!("dir:{}", other.display()))
    };
    let mut report = Report { facts: facts(plan, packages, bytes)?, ..Report::default() };
    for round in 0..plan.rounds {
        hold_if_stopping();
        eprintln!("pulls: round {} of {}", round + 1, plan.rounds);
        // Each is the first in every other round.
        for turn in 0..2 {
            let (samples, sample) = match (round + turn) % 2 {
                0 => (&mut report.ours, pull(ours(), &one, bytes)?),
                _ => (&mut report.skopeo, pull(theirs(), &other, bytes)?),
            };
            samples.push(sample);
        }
    }
    Ok(report)
}

/// Runs one pull, checks the size of its result, and removes it.
fn pull(run: Run, into: &Path, bytes: u64) -> Result<Sample> {
    let line = run.line();
    let errors = into.with_extension("stderr");
    let begun = Instant::now();
    let mut child = run.spawn(Stdio::null(), Stdio::null(), File::create(&errors)?.into())?;
    let status = format!("/proc/{}/status", child.id());
    let mut peak_kib = 0;
    let limit = patience(PATIENCE);
    let exit = loop {
        if let Some(exit) = child.try_wait()? {
            break exit;
        }
        if begun.elapsed() > limit {
            kill_group(&mut child);
            bail!("{line}: still ran after {limit:?}");
        }
        peak_kib = peak_kib.max(peak(&fs::read_to_string(&status).unwrap_or_default()));
        std::thread::sleep(LOOK);
    };
    let seconds = begun.elapsed().as_secs_f64();
    ensure!(exit.success(), "{line}: {exit}: {}", fs::read_to_string(&errors)?);
    let made = size(into)?;
    ensure!(made >= bytes, "{line}: made {made} bytes of {bytes}");
    fs::remove_dir_all(into)?;
    Ok(Sample { seconds, peak_kib })
}

/// `VmHWM` of a process's status, in KiB; 0 once the process is gone.
fn peak(status: &str) -> u64 {
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    line.and_then(|it| it.trim().strip_suffix(" kB")?.parse().ok()).unwrap_or(0)
}

fn size(path: &Path) -> Result<u64> {
    let found = path.symlink_metadata()?;
    if !found.is_dir() {
        return Ok(found.len());
    }
    fs::read_dir(path)?.try_fold(0, |sum, entry| Ok(sum + size(&entry?.path())?))
}

fn facts(plan: &Plan, packages: &Packages, bytes: u64) -> Result<Vec<String>> {
    let skopeo = Run::new(packages.skopeo()).arg("--version").ok()?;
    let cpus = std::thread::available_parallelism()?;
    Ok(vec![
        format!(
            "{} MiB in {} layers, {} rounds, {cpus} CPUs",
            bytes >> 20,
            plan.layers,
            plan.rounds
        ),
        format!("docker-registry {} on loopback; {}", packages.version("registry"), skopeo.trim()),
    ])
}

/// Makes the image and pushes it; returns the bytes of its layers.
fn fill(plan: &Plan, layout: &Path, skopeo: &Path, image: &str) -> Result<u64> {
    let bytes = write_layout(plan, layout)?;
    let run = Run::new(skopeo).args(["--insecure-policy", "copy", "--dest-tls-verify=false"]);
    let run = run.arg(format!("oci:{}:1", layout.display())).arg(format!("docker://{image}"));
    run.deadline(PATIENCE).ok().context("push of the image")?;
    fs::remove_dir_all(layout)?;
    Ok(bytes)
}

fn write_layout(plan: &Plan, layout: &Path) -> Result<u64> {
    let blobs = layout.join("blobs/sha256");
    fs::create_dir_all(&blobs)?;
    let mut layers = Vec::new();
    let mut diff_ids = Vec::new();
    let mut bytes = 0;
    for number in 0..plan.layers {
        let (descriptor, diff_id) = write_layer(&blobs, number, u64::from(plan.layer_mib) << 20)?;
        bytes += descriptor["size"].as_u64().unwrap_or(0);
        layers.push(descriptor);
        diff_ids.push(diff_id);
    }
    let blob = |kind: &str, value: &Value| -> Result<Value> {
        let text = serde_json::to_vec(value)?;
        let digest = hex(&Sha256::digest(&text));
        fs::write(blobs.join(&digest), &text)?;
        let kind = format!("application/vnd.oci.image.{kind}.v1+json");
        Ok(json!({ "mediaType": kind, "size": text.len(), "digest": format!("sha256:{digest}") }))
    };
    let config = blob(
        "config",
        &json!({
            "architecture": if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" },
            "os": "linux", "config": {},
            "rootfs": { "type": "layers", "diff_ids": diff_ids },
        }),
    )?;
    let kind = "application/vnd.oci.image.manifest.v1+json";
    let mut manifest = blob(
        "manifest",
        &json!({ "schemaVersion": 2, "mediaType": kind, "config": config, "layers": layers }),
    )?;
    manifest["annotations"] = json!({ "org.opencontainers.image.ref.name": "1" });
    let index = json!({ "schemaVersion": 2, "manifests": [manifest] });
    fs::write(layout.join("index.json"), serde_json::to_vec(&index)?)?;
    fs::write(layout.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#)?;
    Ok(bytes)
}

/// A writer that hashes what it writes.
struct Hashed<W> {
    hash: Sha256,
    into: W,
    bytes: u64,
}

impl<W> Hashed<W> {
    fn new(into: W) -> Self {
        Self { hash: Sha256::new(), into, bytes: 0 }
    }
}

impl<W: Write> Write for Hashed<W> {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.into.write_all(bytes)?;
        self.hash.update(bytes);
        self.bytes += bytes.len() as u64;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.into.flush()
    }
}

/// A layer of one file of noise, so that no compression makes it smaller; its descriptor and the
/// digest of its tar.
fn write_layer(blobs: &Path, number: u32, size: u64) -> Result<(Value, String)> {
    let path = blobs.join(format!("layer-{number}"));
    let file = Hashed::new(File::create(&path)?);
    let gzip = Hashed::new(GzEncoder::new(file, Compression::none()));
    let mut tar = tar::Builder::new(gzip);
    let mut header = tar::Header::new_ustar();
    header.set_mode(0o644);
    header.set_size(size);
    tar.append_data(&mut header, format!("noise-{number}"), Noise::new(number, size))?;
    let gzip = tar.into_inner()?;
    let diff_id = format!("sha256:{}", hex(&gzip.hash.finalize()));
    let file = gzip.into.finish()?;
    let digest = hex(&file.hash.finalize());
    fs::rename(&path, blobs.join(&digest))?;
    let kind = "application/vnd.oci.image.layer.v1.tar+gzip";
    let digest = format!("sha256:{digest}");
    Ok((json!({ "mediaType": kind, "size": file.bytes, "digest": digest }), diff_id))
}

/// Bytes that do not compress, the same for the same seed.
struct Noise {
    state: u64,
    left: u64,
}

impl Noise {
    fn new(seed: u32, size: u64) -> Self {
        Self { state: 0x9e37_79b9_7f4a_7c15 ^ (u64::from(seed) + 1), left: size }
    }
}

impl std::io::Read for Noise {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let length = buffer.len().min(usize::try_from(self.left).unwrap_or(usize::MAX));
        for part in buffer[..length].chunks_mut(8) {
            self.state ^= self.state << 13;
            self.state ^= self.state >> 7;
            self.state ^= self.state << 17;
            part.copy_from_slice(&self.state.to_le_bytes()[..part.len()]);
        }
        self.left -= length as u64;
        Ok(length)
    }
}

fn median(samples: &[Sample]) -> f64 {
    let mut all: Vec<f64> = samples.iter().map(|sample| sample.seconds).collect();
    all.sort_by(f64::total_cmp);
    all.get(all.len() / 2).copied().unwrap_or(f64::NAN)
}

fn most(samples: &[Sample]) -> u64 {
    samples.iter().map(|sample| sample.peak_kib).max().unwrap_or(0)
}

impl Report {
    /// For a reader: each client's median time and its peak memory, and the aims.
    pub(crate) fn markdown(&self) -> String {
        let mut lines: Vec<String> = self.facts.iter().map(|fact| format!("- {fact}")).collect();
        lines.push("\n| client | median s | each s | peak MiB |".to_owned());
        lines.push("| --- | --- | --- | --- |".to_owned());
        for (name, samples) in
            [("bulkhead pull --output oci:", &self.ours), ("skopeo copy dir:", &self.skopeo)]
        {
            let each: Vec<_> = samples.iter().map(|it| format!("{:.2}", it.seconds)).collect();
            let each = each.join(" ");
            let peak = most(samples) as f64 / 1024.0;
            lines.push(format!("| {name} | {:.2} | {each} | {peak:.1} |", median(samples)));
        }
        let ratio = median(&self.ours) / median(&self.skopeo);
        let mark = |reached: bool| if reached { "reached" } else { "MISSED" };
        lines.push(format!(
            "\nTime, ours to skopeo's: {ratio:.2} (aim ≤ {RATIO_AIM:.2}: {})",
            mark(ratio <= RATIO_AIM)
        ));
        let peak = most(&self.ours);
        lines.push(format!(
            "Memory at its peak: {:.1} MiB (aim ≤ {} MiB: {})",
            peak as f64 / 1024.0,
            MEMORY_AIM_KIB >> 10,
            mark(peak > 0 && peak <= MEMORY_AIM_KIB)
        ));
        lines.join("\n")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_layout_of_this_making_is_whole() {
        let dir = std::env::temp_dir().join(format!("bulkhead-bench-{}", std::process::id()));
        let plan = Plan { rounds: 1, layers: 2, layer_mib: 1 };
        let bytes = write_layout(&plan, &dir).unwrap();
        assert!(bytes > 2 << 20 && bytes < 3 << 20, "{bytes}");
        let blobs = fs::read_dir(dir.join("blobs/sha256")).unwrap();
        let blobs: Vec<_> = blobs.map(|it| it.unwrap().path()).collect();
        assert_eq!(blobs.len(), 4);
        for blob in blobs {
            let name = blob.file_name().unwrap().to_string_lossy().into_owned();
            assert_eq!(hex(&Sha256::digest(fs::read(&blob).unwrap())), name);
        }
        fs::remove_dir_all(dir).unwrap();
    }

    #[test]
    fn the_numbers_are_what_was_measured() {
        assert_eq!(peak("Name:\tx\nVmHWM:\t   20480 kB\nVmRSS:\t 1 kB\n"), 20480);
        assert_eq!(peak(""), 0);
        let sample = |seconds, peak_kib| Sample { seconds, peak_kib };
        let report = Report {
            facts: vec!["here".to_owned()],
            ours: vec![sample(3.0, 1024), sample(2.0, 2048), sample(9.0, 1024)],
            skopeo: vec![sample(6.0, 4096)],
        };
        let text = report.markdown();
        assert!(text.contains("| 3.00 | 3.00 2.00 9.00 | 2.0 |"), "{text}");
        assert!(text.contains("0.50 (aim ≤ 1.00: reached)"), "{text}");
        assert!(text.contains("2.0 MiB (aim ≤ 64 MiB: reached)"), "{text}");
    }
}
