//! Tools that only Go modules hold: built from a pinned version into the cache when Go is there.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};

use super::process::Run;

const GO_MOD: &str = include_str!("../../go/go.mod");
const GO_SUM: &str = include_str!("../../go/go.sum");
const TOOLS: &str = include_str!("../../go/tools.go");

/// What was built.
#[derive(Debug, Clone)]
pub struct GoTools {
    /// The newest runsc.
    pub runsc: PathBuf,
    /// gVisor's own shim, for comparison.
    pub gvisor_shim: PathBuf,
}

/// Builds the tools under `cache`, or tells in the error why this machine cannot.
pub fn build(cache: &Path) -> Result<GoTools> {
    let version = pinned("gvisor.dev/gvisor")?;
    let dir = cache.join("go").join(version);
    let tools =
        GoTools { runsc: dir.join("runsc"), gvisor_shim: dir.join("containerd-shim-runsc-v1") };
    if tools.runsc.exists() && tools.gvisor_shim.exists() {
        return Ok(tools);
    }
    check_go()?;
    fs::create_dir_all(&dir)?;
    for (name, text) in [("go.mod", GO_MOD), ("go.sum", GO_SUM), ("tools.go", TOOLS)] {
        fs::write(dir.join(name), text)?;
    }
    for (package, output) in [("runsc", &tools.runsc), ("shim", &tools.gvisor_shim)] {
        eprintln!("building gvisor.dev/gvisor/{package} {version} (minutes, once)");
        let part = output.with_extension("part");
        let build =
            Run::new("go").arg("build").args(["-trimpath", "-ldflags=-s -w", "-o"]).arg(&part);
        let build = build.arg(format!("gvisor.dev/gvisor/{package}")).dir(&dir);
        build.env("CGO_ENABLED", "0").deadline(Duration::from_secs(1200)).ok()?;
        fs::rename(&part, output)?;
    }
    Ok(tools)
}

/// The version that `go.mod` pins `module` to.
fn pinned(module: &str) -> Result<&'static str> {
    let line =
        GO_MOD.lines().find_map(|l| l.trim().trim_start_matches("require ").strip_prefix(module));
    line.map(str::trim).with_context(|| format!("tests/go/go.mod does not require {module}"))
}

fn check_go() -> Result<()> {
    let text = Run::new("go").arg("version").ok().context("Go is not installed")?;
    let version = text.split_whitespace().nth(2).unwrap_or_default().trim_start_matches("go");
    let mut parts = version.split('.').map(|part| part.parse::<u32>().unwrap_or(0));
    let have = (parts.next().unwrap_or(0), parts.next().unwrap_or(0));
    if have < (1, 26) {
        bail!("Go is {version}, and gVisor's newest module wants 1.26 or later");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gvisor_is_pinned() {
        assert!(pinned("gvisor.dev/gvisor").unwrap().starts_with("v0.0.0-2026"));
        assert!(pinned("no/such").is_err());
    }
}
