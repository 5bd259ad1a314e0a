//! The two implementations of virtiofsd and their command lines.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::sys::resource::{Resource, getrlimit};
use sandbox_host::{Command, Host, HostError, record};
use serde::{Deserialize, Serialize};

use crate::error::ShareError;

/// Where distributions install it: the Rust one (Debian 13, Fedora, RHEL 9, Arch; Ubuntu), then
/// QEMU's own (Debian 12).
const PLACES: [&str; 5] = [
    "/usr/libexec/virtiofsd",
    "/usr/lib/virtiofsd",
    "/usr/local/bin/virtiofsd",
    "/usr/bin/virtiofsd",
    "/usr/lib/qemu/virtiofsd",
];

/// Deadline for `--help`.
const HELP_DEADLINE: Duration = Duration::from_secs(10);

/// virtiofsd's own default limit of open files.
const OPEN_FILES: u64 = 1_000_000;

/// Bit of CAP_SYS_RESOURCE, which lets a process raise its limits.
const SYS_RESOURCE: u32 = 24;

/// An installed virtiofsd and the kind of its options.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Virtiofsd {
    program: PathBuf,
    dialect: Dialect,
}

/// The syntax of its options.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
enum Dialect {
    /// The virtio-fs project's, in Rust: `--shared-dir`.
    Rust,
    /// QEMU's, in C, up to 7.2: `-o source=`.
    Qemu,
}

impl Virtiofsd {
    /// Finds the program, at `configured` or in the known places, and runs its `--help` to learn its
    /// options, unless the result is in the directory `cache`.
    ///
    /// # Errors
    ///
    /// [`ShareError::Missing`] names the places, [`ShareError::Unfit`] what the program lacks.
    pub async fn find(
        host: &dyn Host,
        configured: Option<&Path>,
        cache: &Path,
    ) -> Result<Self, ShareError> {
        let places: Vec<&Path> = match configured {
            Some(path) => vec![path],
            None => PLACES.iter().map(Path::new).collect(),
        };
        let Some(program) = places.iter().find(|path| path.is_file()) else {
            let looked: Vec<_> = places.iter().map(|p| p.display().to_string()).collect();
            return Err(ShareError::Missing(looked.join(", ")));
        };
        let found = |dialect| Self { program: program.to_path_buf(), dialect };
        let key = record::cache_path(cache, "virtiofsd", program);
        let key = key.map_err(ShareError::io("reading", program))?;
        if let Ok(Some(dialect)) = record::load(&key) {
            return Ok(found(dialect));
        }
        let help = Command::new(*program).arg("--help");
        let output = match host.run(help, HELP_DEADLINE).await {
            Err(HostError::Spawn { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
                return Err(ShareError::Missing(program.display().to_string()));
            }
            other => other?,
        };
        let unfit = |reason| ShareError::Unfit { program: program.to_path_buf(), reason };
        if !output.success() {
            return Err(unfit(format!("its --help exited with status {}", output.exit.status)));
        }
        let text = [output.stdout, output.stderr].concat();
        let dialect = classify(&String::from_utf8_lossy(&text)).map_err(unfit)?;
        record::cache(&key, &dialect);
        Ok(found(dialect))
    }

    /// The command that serves `directory` on the listening socket `fd`.
    pub(crate) fn command(&self, directory: &Path, fd: i32) -> Command {
        let files = open_files();
        let (fd, files) = (format!("--fd={fd}"), format!("--rlimit-nofile={files}"));
        let command = Command::new(&self.program);
        match self.dialect {
            Dialect::Rust => command
                .arg(format!("--shared-dir={}", directory.display()))
                .args([fd, files])
                .args(["--sandbox=namespace", "--seccomp=kill", "--cache=auto"])
                .args(["--announce-submounts", "--xattr", "--posix-acl", "--log-level=warn"]),
            Dialect::Qemu => command
                .args(["-f".to_owned(), fd, files, "-o".to_owned()])
                .arg(format!("source={}", directory.display()))
                .args(["-o", "sandbox=namespace", "-o", "cache=auto", "-o", "announce_submounts"])
                .args(["-o", "xattr", "-o", "posix_acl", "-o", "log_level=warn"]),
        }
    }
}

/// Arguments that identify a process that serves `directory`.
pub(crate) fn signatures(directory: &Path) -> [String; 2] {
    let directory = directory.display();
    [format!("--shared-dir={directory}"), format!("source={directory}")]
}

/// Classifies a program by its `--help`.
fn classify(help: &str) -> Result<Dialect, String> {
    let (dialect, needed) = if help.contains("--shared-dir") {
        (Dialect::Rust, ["--fd", "--announce-submounts", "--posix-acl", "--rlimit-nofile"])
    } else if help.contains("-o source=") {
        (Dialect::Qemu, ["--fd", "announce_submounts", "posix_acl", "--rlimit-nofile"])
    } else {
        return Err("its --help is not that of a virtiofsd".into());
    };
    match needed.iter().find(|option| !help.contains(**option)) {
        Some(option) => Err(format!("it does not know {option}; a newer one does")),
        None => Ok(dialect),
    }
}

/// How many files virtiofsd may hold open: a guest's looked-up inodes are open files.
fn open_files() -> u64 {
    let read = |path| std::fs::read_to_string(path).ok();
    let highest = read("/proc/sys/fs/nr_open").and_then(|text| text.trim().parse().ok());
    let hard = getrlimit(Resource::RLIMIT_NOFILE).map_or(1024, |(_, hard)| hard);
    let may_raise = read("/proc/self/status").is_some_and(|status| has_sys_resource(&status));
    OPEN_FILES.min(if may_raise { highest.unwrap_or(hard) } else { hard })
}

fn has_sys_resource(status: &str) -> bool {
    let effective = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    let bits = effective.and_then(|text| u64::from_str_radix(text.trim(), 16).ok());
    bits.is_some_and(|bits| bits >> SYS_RESOURCE & 1 == 1)
}

#[cfg(test)]
mod tests {
    use sandbox_core::{Classified, Kind};
    use sandbox_host::{FakeHost, Scripted};

    use super::*;

    /// The relevant lines of the programs' `--help`.
    const RUST_1_14: &str = "Launch a virtiofsd backend.\n\nUsage: virtiofsd --shared-dir \
        <SHARED_DIR> --socket-path <SOCKET_PATH> [OPTIONS]\n      --fd <FD>\n      \
        --announce-submounts\n      --posix-acl[=<never|auto|always>]\n      --rlimit-nofile \
        <RLIMIT_NOFILE>\n";
    const QEMU_7_2: &str = "usage: /usr/lib/qemu/virtiofsd [options]\n    --rlimit-nofile=<num>\n \
        -o announce_submounts\n    -o posix_acl/no_posix_acl\n    -o source=PATH\n    --fd=FDNUM\n";

    #[test]
    fn the_programs_are_classified() {
        assert_eq!(classify(RUST_1_14), Ok(Dialect::Rust));
        assert_eq!(classify(QEMU_7_2), Ok(Dialect::Qemu));
        let old = QEMU_7_2.replace("announce_submounts", "");
        assert!(classify(&old).unwrap_err().contains("announce_submounts"));
        assert!(classify("usage: cat [OPTION]").unwrap_err().contains("not that of a virtiofsd"));
    }

    #[tokio::test]
    async fn a_missing_or_foreign_program_is_named() {
        let host = FakeHost::new([
            Scripted::Ends(0, b"usage: sh".to_vec()),
            Scripted::Ends(137, RUST_1_14.into()),
            Scripted::Ends(0, QEMU_7_2.into()),
        ]);
        let cache = tempfile::tempdir().unwrap();
        let find = |path| Virtiofsd::find(&host, Some(Path::new(path)), cache.path());
        let missing = find("/no/virtiofsd").await.unwrap_err();
        assert_eq!(missing.kind(), Kind::Unavailable);
        assert!(missing.to_string().starts_with("no virtiofsd at /no/virtiofsd;"), "{missing}");
        let foreign = find("/bin/sh").await.unwrap_err();
        assert_eq!(foreign.kind(), Kind::FailedPrecondition);
        assert!(foreign.to_string().starts_with("/bin/sh cannot serve"), "{foreign}");
        let killed = find("/bin/sh").await.unwrap_err();
        assert!(killed.to_string().ends_with("its --help exited with status 137"), "{killed}");
        let asked = find("/bin/sh").await.unwrap();
        assert_eq!(find("/bin/sh").await.unwrap(), asked, "its --help runs once");
        assert_eq!(asked.dialect, Dialect::Qemu);
        assert_eq!(host.commands().len(), 3);
    }

    #[test]
    fn a_process_is_identified_by_its_arguments() {
        let directory = Path::new("/run/x/share");
        for dialect in [Dialect::Rust, Dialect::Qemu] {
            let command = Virtiofsd { program: "/v".into(), dialect }.command(directory, 3);
            let known = signatures(directory);
            assert!(command.arguments().iter().any(|arg| known.contains(arg)), "{dialect:?}");
            assert!(!command.arguments().iter().any(|arg| arg.contains("tag")));
        }
    }

    #[test]
    fn capabilities_are_read() {
        assert!(has_sys_resource("Name:\tx\nCapEff:\t000001ffffffffff\n"));
        assert!(!has_sys_resource("CapEff:\t00000000a80425fb\n"));
        assert!(open_files() > 0);
    }
}
