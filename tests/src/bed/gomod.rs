//! Tools that are distributed only as Go modules: built into the cache from a pinned version where Go is installed.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

use super::process::Run;

const GO_MOD: &str = include_str!("../../go/go.mod");
const GO_SUM: &str = include_str!("../../go/go.sum");
const TOOLS: &str = include_str!("../../go/tools.go");

/// What was built.
#[derive(Debug, Clone)]
pub(crate) struct GoTools {
    /// The newest runsc.
    pub(crate) runsc: PathBuf,
    /// gVisor's own shim, for comparison.
    pub(crate) gvisor_shim: PathBuf,
}

/// Builds the tools under `cache`, or returns why this machine cannot.
pub(crate) fn build(cache: &Path) -> Result<GoTools> {
    let version = pinned("gvisor.dev/gvisor")?;
    let dir = cache.join("go").join(version);
    let shim = if may_lower_oom_score() {
        "containerd-shim-runsc-v1"
    } else {
        "containerd-shim-runsc-v1-keeps-score"
    };
    let tools = GoTools { runsc: dir.join("runsc"), gvisor_shim: dir.join(shim) };
    if tools.runsc.exists() && tools.gvisor_shim.exists() {
        return Ok(tools);
    }
    check_go("gVisor's newest module")?;
    write_module(&dir, "")?;
    for (package, output) in [("runsc", &tools.runsc), ("shim", &tools.gvisor_shim)] {
        if output.exists() {
            continue;
        }
        eprintln!("building gvisor.dev/gvisor/{package} {version} (minutes, once)");
        let part = output.with_extension("part");
        let changed = (package == "shim" && !may_lower_oom_score())
            .then(|| keep_oom_score(&dir))
            .transpose()?;
        let run =
            Run::new("go").arg("build").args(["-trimpath", "-ldflags=-s -w", "-o"]).arg(&part);
        let run = run.arg(format!("gvisor.dev/gvisor/{package}"));
        let run = run.dir(changed.as_deref().unwrap_or(&dir)).env("CGO_ENABLED", "0");
        run.deadline(Duration::from_secs(1200)).ok()?;
        if let Some(changed) = changed {
            fs::remove_dir_all(changed)?;
        }
        fs::rename(&part, output)?;
    }
    Ok(tools)
}

/// Whether a process may lower its OOM score: without CAP_SYS_RESOURCE it may not.
pub(crate) fn may_lower_oom_score() -> bool {
    const CAP_SYS_RESOURCE: u32 = 24;
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let caps = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    let caps = caps.and_then(|caps| u64::from_str_radix(caps.trim(), 16).ok());
    caps.is_some_and(|caps| caps >> CAP_SYS_RESOURCE & 1 == 1)
}

/// Writes the module that requires gVisor into `dir`.
fn write_module(dir: &Path, more: &str) -> Result<()> {
    let go_mod = format!("{GO_MOD}{more}");
    write_files(dir, &[("go.mod", &go_mod), ("go.sum", GO_SUM), ("tools.go", TOOLS)])
}

/// Writes a module's files into the folder `dir`, which it creates.
pub(crate) fn write_files(dir: &Path, files: &[(&str, &str)]) -> Result<()> {
    fs::create_dir_all(dir)?;
    for (name, text) in files {
        fs::write(dir.join(name), text)?;
    }
    Ok(())
}

/// gVisor's own shim does not start where it may not take the score -999. Returns a folder below
/// `dir` with its source changed to take 0.
fn keep_oom_score(dir: &Path) -> Result<PathBuf> {
    let find = Run::new("go").args(["list", "-m", "-f", "{{.Dir}}", "gvisor.dev/gvisor"]);
    let module = find.dir(dir).ok()?;
    let folder = dir.join("keeps-score");
    let _ = fs::remove_dir_all(&folder);
    fs::create_dir_all(&folder)?;
    let copy = folder.join("gvisor");
    // Go makes downloaded files read-only.
    let cp = Run::new("cp").args(["-r", "--no-preserve=mode", module.trim()]).arg(&copy);
    cp.ok()?;
    let source = copy.join("pkg/shim/v1/manager.go");
    let text = fs::read_to_string(&source).with_context(|| format!("{}", source.display()))?;
    let changed = text.replace("oomScoreMax = -999", "oomScoreMax = 0");
    ensure!(changed != text, "{} sets no OOM score of -999", source.display());
    fs::write(&source, changed)?;
    write_module(&folder, "\nreplace gvisor.dev/gvisor => ./gvisor\n")?;
    Ok(folder)
}

/// The version that `go.mod` pins `module` to.
pub(crate) fn pinned(module: &str) -> Result<&'static str> {
    version_in(GO_MOD, module)
}

/// The version that the text of a `go.mod` requires of `module`.
pub(crate) fn version_in<'a>(go_mod: &'a str, module: &str) -> Result<&'a str> {
    let line =
        go_mod.lines().find_map(|l| l.trim().trim_start_matches("require ").strip_prefix(module));
    line.map(str::trim).with_context(|| format!("go.mod does not require {module}"))
}

/// Fails unless Go is there and new enough for `what`.
pub(crate) fn check_go(what: &str) -> Result<()> {
    let text = Run::new("go").arg("version").ok().context("Go is not installed")?;
    let version = text.split_whitespace().nth(2).unwrap_or_default().trim_start_matches("go");
    let mut parts = version.split('.').map(|part| part.parse::<u32>().unwrap_or(0));
    let have = (parts.next().unwrap_or(0), parts.next().unwrap_or(0));
    if have < (1, 26) {
        bail!("Go is {version}, and {what} needs 1.26 or later");
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
