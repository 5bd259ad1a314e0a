//! What the installed runsc can do, asked once per binary.

use std::collections::BTreeSet;
use std::fs;
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use sandbox_host::{Classified, Command, Host, HostError, Kind, record};
use serde::{Deserialize, Serialize};

/// The limit of each question.
const ASK: Duration = Duration::from_secs(20);
/// The date from which runsc distinguishes a Pod's network namespace from the host's by a file
/// that newer kernels still have in the host's alone.
const NAMESPACE_TEST_FIXED: u32 = 20_241_001;
/// The date from which a forwarded port whose answer comes in large pieces does not crash the
/// sandbox (gVisor's pull request 12521 of 2026-01-21, and some weeks until it was released).
const PORT_FORWARD_FIXED: u32 = 20_260_301;
/// What stands before a build's date in a binary that was made from a Go module, which calls
/// itself by no version (the build information of `go version -m`).
const MODULE: &[u8] = b"gvisor.dev/gvisor\tv0.0.0-";
/// How much of a binary is looked through at once.
const CHUNK: usize = 1 << 20;

/// What is known of a runsc binary.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Probe {
    /// What `runsc --version` calls itself.
    pub(crate) version: String,
    /// The build's date as `YYYYMMDD`, where the version has it.
    pub(crate) date: Option<u32>,
    /// Its subcommands.
    pub(crate) subcommands: BTreeSet<String>,
    /// Its global flags.
    pub(crate) flags: BTreeSet<String>,
}

/// Why runsc cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ProbeError {
    /// No directory of `PATH` has it.
    #[error(
        "runsc is not in PATH; install it (Debian: apt install runsc) or set runsc = \"/path\" in \
         the handler's file"
    )]
    NotInPath,
    /// The binary cannot be read.
    #[error("runsc {path} cannot be used; set runsc in the handler's file to an installed binary")]
    Unusable {
        /// The binary.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// It is no program.
    #[error("runsc {path} is not executable; chmod +x it or set runsc in the handler's file")]
    NotExecutable {
        /// The binary.
        path: PathBuf,
    },
    /// It could not be started, or did not exit in time.
    #[error("asking {path} for its version and flags")]
    Ask {
        /// The binary.
        path: PathBuf,
        /// The cause.
        source: HostError,
    },
    /// It failed when it was asked what every runsc answers.
    #[error(
        "{path} does not answer as runsc does (`{path} {question}` exited with status {status}: {words})"
    )]
    NotRunsc {
        /// The binary.
        path: PathBuf,
        /// Its argument.
        question: &'static str,
        /// Its exit status.
        status: u32,
        /// The last line that it wrote.
        words: String,
    },
    /// The host lacks what the handler's platform needs.
    #[error("platform = \"kvm\" needs /dev/kvm, which this host lacks; use \"systrap\"")]
    NoKvm,
    /// The build does not know a flag of the handler's.
    #[error("{path} (version {version}) does not know --{flag}; remove it from flags")]
    UnknownFlag {
        /// The binary.
        path: PathBuf,
        /// Its version.
        version: String,
        /// The flag, without dashes.
        flag: String,
    },
}

impl Classified for ProbeError {
    fn kind(&self) -> Kind {
        match self {
            Self::UnknownFlag { .. } => Kind::InvalidArgument,
            Self::NoKvm
            | Self::NotInPath
            | Self::Unusable { .. }
            | Self::NotExecutable { .. }
            | Self::Ask { .. }
            | Self::NotRunsc { .. } => Kind::Unavailable,
        }
    }
}

impl Probe {
    /// Whether this build takes every network namespace for the host's on kernels that show
    /// `rmem_default` in all of them (6.11 and later), and refuses to start a Pod's network.
    pub(crate) fn mistakes_namespaces(&self) -> bool {
        match self.date {
            Some(date) => date < NAMESPACE_TEST_FIXED,
            // Builds without a date (from Go modules) came after `update` did.
            None => !self.subcommands.contains("update"),
        }
    }

    /// Whether the sandbox may end with a panic when it forwards a port.
    pub(crate) fn panics_on_port_forward(&self) -> bool {
        self.date.is_none_or(|date| date < PORT_FORWARD_FIXED)
    }

    /// The first of `wanted` that this build does not know.
    pub(crate) fn unknown_flag<'a>(
        &self,
        mut wanted: impl Iterator<Item = &'a String>,
    ) -> Option<&'a String> {
        // Without a list nothing is known.
        wanted.find(|flag| !self.flags.is_empty() && !self.flags.contains(*flag))
    }
}

/// Finds `wanted` as an absolute path; a bare name is looked up in the directories of `path`.
pub(crate) fn find(wanted: &Path, path: &str) -> Result<PathBuf, ProbeError> {
    let candidates: Vec<PathBuf> = if wanted.is_absolute() {
        vec![wanted.to_owned()]
    } else {
        path.split(':').filter(|d| d.starts_with('/')).map(|d| Path::new(d).join(wanted)).collect()
    };
    let mut refused = ProbeError::NotInPath;
    for candidate in candidates {
        match fs::metadata(&candidate) {
            Ok(file) if file.is_file() && file.mode() & 0o111 != 0 => return Ok(candidate),
            Ok(_) => refused = ProbeError::NotExecutable { path: candidate },
            Err(source) if wanted.is_absolute() => {
                refused = ProbeError::Unusable { path: candidate, source };
            }
            Err(_) => {}
        }
    }
    Err(refused)
}

/// Asks the runsc at `binary`, or reads what it answered before from the directory `cache`.
pub(crate) async fn ask(binary: &Path, cache: &Path, host: &dyn Host) -> Result<Probe, ProbeError> {
    let key = record::cache_path(cache, "runsc", binary)
        .map_err(|source| ProbeError::Unusable { path: binary.to_owned(), source })?;
    if let Ok(Some(known)) = record::load(&key) {
        return Ok(known);
    }
    let mut probe = Probe::from_answers(
        &answer(binary, "--version", host).await?,
        &answer(binary, "help", host).await?,
        &answer(binary, "flags", host).await?,
    );
    if probe.date.is_none() {
        let path = binary.to_owned();
        let read = tokio::task::spawn_blocking(move || module_date(&path)).await;
        let read = read.unwrap_or_else(|error| Err(error.into()));
        probe.date =
            read.map_err(|source| ProbeError::Unusable { path: binary.to_owned(), source })?;
    }
    record::cache(&key, &probe);
    Ok(probe)
}

/// The last line a program wrote, for an error message.
fn last_words(output: &[u8]) -> String {
    let text = String::from_utf8_lossy(output);
    match text.lines().rev().find(|line| !line.trim().is_empty()) {
        Some(line) => line.trim().chars().take(200).collect(),
        None => "no output".to_owned(),
    }
}

async fn answer(
    binary: &Path,
    question: &'static str,
    host: &dyn Host,
) -> Result<String, ProbeError> {
    let path = || binary.to_owned();
    let asked = host.run(Command::new(binary).arg(question), ASK).await;
    let output = asked.map_err(|source| ProbeError::Ask { path: path(), source })?;
    if !output.success() {
        let status = output.exit.status;
        let words = last_words(&output.stderr);
        return Err(ProbeError::NotRunsc { path: path(), question, status, words });
    }
    // Some answers are printed as if they were errors.
    let both = [output.stdout, output.stderr].concat();
    Ok(String::from_utf8_lossy(&both).into_owned())
}

impl Probe {
    fn from_answers(version: &str, help: &str, flags: &str) -> Self {
        let name = version.lines().find_map(|line| line.strip_prefix("runsc version "));
        let version = name.unwrap_or("unknown").trim().to_owned();
        let date = date(&version);
        // Subcommands stand behind a tab, flags behind a dash, their descriptions further in.
        let word = |line: &str| line.split_whitespace().next().map(str::to_owned);
        let subcommands =
            help.lines().filter_map(|l| l.strip_prefix('\t')).filter_map(word).collect();
        let flags = flags.lines().filter_map(|l| l.strip_prefix("  -")).filter_map(word).collect();
        Self { version, date, subcommands, flags }
    }
}

/// The date of the module that the Go binary at `path` was made from. Blocks.
fn module_date(path: &Path) -> io::Result<Option<u32>> {
    let mut file = fs::File::open(path)?;
    let finder = memchr::memmem::Finder::new(MODULE);
    let mut window = Vec::with_capacity(2 * CHUNK);
    loop {
        let read = (&mut file).take(CHUNK as u64).read_to_end(&mut window)?;
        let found = finder.find_iter(&window).find_map(|at| {
            let digits = window.get(at + MODULE.len()..at + MODULE.len() + 8)?;
            std::str::from_utf8(digits).ok().and_then(date)
        });
        if found.is_some() || read == 0 {
            return Ok(found);
        }
        // What is looked for may lie across two chunks.
        window.drain(..window.len().saturating_sub(MODULE.len() + 8));
    }
}

/// The first eight digits in a row that start with 20.
fn date(version: &str) -> Option<u32> {
    version
        .split(|c: char| !c.is_ascii_digit())
        .filter(|digits| digits.len() == 8 && digits.starts_with("20"))
        .find_map(|digits| digits.parse().ok())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use sandbox_host::{FakeHost, Scripted};

    use super::*;

    const OLD: &str = "runsc version 0.0~20240729.0\nspec: 1.2.0\n";
    const HELP: &str = "Usage: runsc <flags> <subcommand> <subcommand args>\n\nSubcommands:\n\
        \tcheckpoint       checkpoint current state\n\tupdate           update constraints\n\n\
        Subcommands for debug:\n\tusage            Usage shows\n\n\
        Use \"runsc flags\" for a list of top-level flags\n";
    const FLAGS: &str = "  -allow-suid\n    \tallows ID elevation - in a way\n  -debug-log string\n\
        \x20   \tadditional location\n  -h\tequivalent to the 'help' flag\n";

    #[test]
    fn answers_are_read() {
        let probe = Probe::from_answers(OLD, HELP, FLAGS);
        assert_eq!((probe.version.as_str(), probe.date), ("0.0~20240729.0", Some(20_240_729)));
        let words = |set: &BTreeSet<String>| set.iter().cloned().collect::<Vec<_>>().join(" ");
        assert_eq!(words(&probe.subcommands), "checkpoint update usage");
        assert_eq!(words(&probe.flags), "allow-suid debug-log h");
        assert!(probe.mistakes_namespaces());
    }

    #[test]
    fn unknown_versions_are_judged_by_what_they_can() {
        let new = Probe::from_answers("runsc version VERSION_MISSING\n", HELP, FLAGS);
        assert_eq!(new.date, None);
        assert!(!new.mistakes_namespaces());
        let older = Probe::from_answers("", "\twait\twaits\n", "");
        assert_eq!(older.version, "unknown");
        assert!(older.mistakes_namespaces());
        let release = Probe::from_answers("runsc version release-20250319.0\n", "", "");
        assert!(!release.mistakes_namespaces());
    }

    #[test]
    fn a_build_without_a_version_is_dated_by_its_module() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("runsc");
        let dated = |before: usize, text: &str| {
            let bytes = [&vec![b'x'; before][..], text.as_bytes(), b" tail"].concat();
            fs::write(&path, bytes).unwrap();
            module_date(&path).unwrap()
        };
        let line = "dep\tgvisor.dev/gvisor\tv0.0.0-20260905035102-160fafc42237\t";
        for before in [0, 7, CHUNK - 30, CHUNK - 20, CHUNK, 2 * CHUNK - 5] {
            assert_eq!(dated(before, line), Some(20_260_905), "{before}");
        }
        assert_eq!(dated(10, "gvisor.dev/gvisor\tv0.0.0-none"), None);
        let probe = |date| Probe { date, ..Probe::from_answers(OLD, HELP, FLAGS) };
        assert!(probe(Some(20_240_729)).panics_on_port_forward());
        assert!(probe(None).panics_on_port_forward(), "nothing is known of it");
        assert!(!probe(Some(20_260_905)).panics_on_port_forward());
    }

    #[test]
    fn flags_are_checked_against_the_build() {
        let probe = Probe::from_answers(OLD, HELP, FLAGS);
        let wanted = ["debug-log".to_owned(), "typo".to_owned()];
        assert_eq!(probe.unknown_flag(wanted.iter()), Some(&wanted[1]));
        let silent = Probe::from_answers(OLD, HELP, "");
        assert_eq!(silent.unknown_flag(wanted.iter()), None);
    }

    #[test]
    fn a_missing_binary_is_named_with_the_remedy() {
        let dir = tempfile::tempdir().unwrap();
        let runsc = dir.path().join("runsc");
        let error = |wanted: &Path, path: &str| {
            let error = sandbox_host::Error::from(find(wanted, path).unwrap_err());
            assert_eq!(error.kind(), Kind::Unavailable);
            error.to_string()
        };
        assert!(error(&runsc, "").contains("set runsc in the handler's file"));
        assert!(error(Path::new("runsc"), "/nonexistent:relative").contains("apt install runsc"));
        fs::write(&runsc, "").unwrap();
        assert!(error(&runsc, "").contains("is not executable; chmod +x"));
        let search = format!("/nonexistent:{}", dir.path().display());
        assert!(error(Path::new("runsc"), &search).contains("is not executable"));
        fs::set_permissions(&runsc, fs::Permissions::from_mode(0o755)).unwrap();
        assert_eq!(find(Path::new("runsc"), &search).unwrap(), runsc);
    }

    #[tokio::test]
    async fn a_binary_is_asked_once() {
        let dir = tempfile::tempdir().unwrap();
        let runsc = dir.path().join("runsc");
        let cache = dir.path().join("cache");
        fs::write(&runsc, "x").unwrap();
        let answers = [OLD, HELP, FLAGS].map(|text| Scripted::Ends(0, text.into()));
        let host = FakeHost::new(answers);
        let first = ask(&runsc, &cache, &host).await.unwrap();
        assert_eq!(ask(&runsc, &cache, &host).await.unwrap(), first);
        assert_eq!(host.commands().len(), 3);
        fs::write(&runsc, "another build").unwrap();
        let host = FakeHost::new([Scripted::Ends(1, vec![])]);
        let wrong = ask(&runsc, &cache, &host).await.unwrap_err();
        assert!(matches!(wrong, ProbeError::NotRunsc { question: "--version", .. }));
    }
}
