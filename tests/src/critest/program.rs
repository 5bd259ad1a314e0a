//! The suite's program: the one on PATH, or built from the pinned Go module.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::bed::gomod;
use crate::bed::process::Run;

const GO_MOD: &str = include_str!("../../go/critest/go.mod");
const GO_SUM: &str = include_str!("../../go/critest/go.sum");
const TOOLS: &str = include_str!("../../go/critest/tools.go");

const MODULE: &str = "sigs.k8s.io/cri-tools";

/// The digest by which the suite pulls one image, from a registry on the Internet.
const DIGEST: &str = "9700f9a2f5bf2c45f2f605a0bd3bce7cf37420ec9d3ed50ac2758413308766bf";

/// A critest and its version.
#[derive(Debug, Clone)]
pub(super) struct Program {
    pub(super) path: PathBuf,
    pub(super) version: String,
}

impl Program {
    /// `critest` of PATH, else built under `cache`; or why this machine cannot build it.
    pub(super) fn find(cache: &Path) -> Result<Result<Self, String>> {
        if let Some(path) = on_path("critest") {
            let text = Run::new(&path).args(["-version", "-test.run", "TestCRISuite"]).ok()?;
            let named = text.lines().find_map(|line| line.strip_prefix("critest version: "));
            let version = named.unwrap_or("of unknown version").trim().to_owned();
            return Ok(Ok(Self { path, version }));
        }
        let version = gomod::version_in(GO_MOD, MODULE)?;
        let dir = cache.join("go").join(format!("critest-{version}"));
        let path = dir.join("critest");
        if !path.exists() {
            if let Err(lack) = gomod::check_go("critest") {
                return Ok(Err(format!("{lack:#}")));
            }
            eprintln!("building {MODULE}/cmd/critest {version} (minutes, once)");
            gomod::write_files(
                &dir,
                &[("go.mod", GO_MOD), ("go.sum", GO_SUM), ("tools.go", TOOLS)],
            )?;
            let part = path.with_extension("part");
            let go = Run::new("go").args(["test", "-c", "-trimpath", "-ldflags=-s -w", "-o"]);
            let go = go.arg(&part).arg(format!("{MODULE}/cmd/critest")).dir(&dir);
            go.env("CGO_ENABLED", "0").deadline(Duration::from_secs(1200)).ok()?;
            fs::rename(&part, &path)?;
        }
        Ok(Ok(Self { path, version: version.to_owned() }))
    }

    /// Copies the program to `into` with [`DIGEST`] replaced by `digest`: no image can be made to
    /// have a given digest.
    pub(super) fn with_digest(&self, digest: &str, into: &Path) -> Result<()> {
        let mut bytes = fs::read(&self.path).with_context(|| self.path.display().to_string())?;
        let digest = digest.trim_start_matches("sha256:");
        let found = replace(&mut bytes, DIGEST.as_bytes(), digest.as_bytes())?;
        ensure!(found > 0, "{}: does not contain {DIGEST}", self.path.display());
        fs::write(into, bytes).with_context(|| into.display().to_string())?;
        fs::set_permissions(into, fs::Permissions::from_mode(0o755))?;
        Ok(())
    }
}

fn on_path(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).map(|dir| dir.join(program)).find(|path| path.is_file())
}

/// Replaces `old` by `new`, which is as long; returns how often.
fn replace(bytes: &mut [u8], old: &[u8], new: &[u8]) -> Result<usize> {
    ensure!(old.len() == new.len(), "{} bytes cannot replace {}", new.len(), old.len());
    let mut found = 0;
    let mut at = 0;
    while at + old.len() <= bytes.len() {
        if bytes[at..].starts_with(old) {
            bytes[at..at + old.len()].copy_from_slice(new);
            found += 1;
            at += old.len();
        } else {
            at += 1;
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_place_is_replaced_and_nothing_moves() {
        let mut bytes = b"-aab-aab-aa".to_vec();
        assert_eq!(replace(&mut bytes, b"aab", b"xyz").unwrap(), 2);
        assert_eq!(bytes, b"-xyz-xyz-aa");
        assert!(replace(&mut bytes, b"xyz", b"four").unwrap_err().to_string().contains('4'));
    }

    #[test]
    fn the_suite_is_pinned() {
        assert!(gomod::version_in(GO_MOD, MODULE).unwrap().starts_with("v1."));
    }
}
