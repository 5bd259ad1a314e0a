//! `bulkhead install`: prints the files that a node and a cluster need for the handlers, or with `--write` writes those
//! of the node.

use std::fs;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use crate::args::{Handler, InstallArgs};
use crate::credential_provider::args::{CacheKey, ProviderArgs};
use crate::credential_provider::{ProviderError, config};

/// How long the kubelet caches an answer.
const CACHE_SECONDS: u32 = 300;

/// Why the installation failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum InstallError {
    #[error(
        "{path} exists with other content; compare it with `bulkhead install`, then remove or keep it"
    )]
    Other { path: PathBuf },
    #[error("{verb} {path}")]
    Io { verb: &'static str, path: PathBuf, source: io::Error },
    #[error(transparent)]
    Provider(#[from] ProviderError),
}

/// A file of the node.
#[derive(Debug, PartialEq, Eq)]
struct NodeFile {
    path: String,
    text: &'static str,
}

/// The files that ship for a handler.
struct Shipped {
    name: &'static str,
    file: &'static str,
    /// For containerd 1.6 and 1.7, and for 2.x.
    drop_ins: [&'static str; 2],
    manifest: &'static str,
}

macro_rules! shipped {
    ($name:literal) => {
        Shipped {
            name: $name,
            file: include_str!(concat!("../../handlers/", $name, ".toml")),
            drop_ins: [
                include_str!(concat!("../../containerd/", $name, "-v2.toml")),
                include_str!(concat!("../../containerd/", $name, "-v3.toml")),
            ],
            manifest: include_str!(concat!("../../manifests/", $name, ".yaml")),
        }
    };
}

impl Handler {
    fn shipped(self) -> Shipped {
        match self {
            Self::Gvisor => shipped!("gvisor"),
            Self::KataContainers => shipped!("kata-containers"),
        }
    }
}

/// Prints what `args` ask for, or writes it.
pub(crate) fn run(args: &InstallArgs) -> Result<u8, InstallError> {
    let files = node_files(args);
    if args.write {
        write(&args.root, &files)?;
    } else {
        print(&files);
    }
    println!("# In containerd's config.toml, above its tables, unless it is set:");
    println!("#   imports = [\"/etc/containerd/conf.d/*.toml\"]");
    println!("# Then: systemctl restart containerd. Running Pods stay.\n");
    println!("# For the cluster (kubectl apply -f -), and the nodes' labels that it selects:");
    let manifests: Vec<&str> = args.handlers().map(|handler| handler.shipped().manifest).collect();
    println!("{}", manifests.join("---\n"));
    if !args.match_image.is_empty() {
        println!("# For the kubelet:");
        print!("{}", kubelet(args)?);
    }
    Ok(0)
}

fn node_files(args: &InstallArgs) -> Vec<NodeFile> {
    let drop_in = usize::from(args.containerd >= 2);
    let of = |handler: Handler| {
        let shipped = handler.shipped();
        let name = shipped.name;
        [
            NodeFile { path: format!("/etc/bulkhead/{name}.toml"), text: shipped.file },
            NodeFile {
                path: format!("/etc/containerd/conf.d/bulkhead-{name}.toml"),
                text: shipped.drop_ins[drop_in],
            },
        ]
    };
    args.handlers().flat_map(of).collect()
}

fn print(files: &[NodeFile]) {
    for NodeFile { path, text } in files {
        println!("# ---- {path}\n{text}");
    }
}

/// Writes nothing if a file exists with other content.
fn write(root: &Path, files: &[NodeFile]) -> Result<(), InstallError> {
    let mut missing = Vec::new();
    for file in files {
        let path = root.join(file.path.trim_start_matches('/'));
        match fs::read_to_string(&path) {
            Ok(text) if text == file.text => println!("# {} is in place", path.display()),
            Ok(_) => return Err(InstallError::Other { path }),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                missing.push((path, file.text));
            }
            Err(source) => return Err(InstallError::Io { verb: "reading", path, source }),
        }
    }
    for (path, text) in missing {
        create(&path, text).map_err(|source| {
            let path = path.clone();
            InstallError::Io { verb: "writing", path, source }
        })?;
        println!("# wrote {}", path.display());
    }
    Ok(())
}

fn create(path: &Path, text: &str) -> io::Result<()> {
    if let Some(dir) = path.parent() {
        fs::create_dir_all(dir)?;
    }
    let mut file = fs::File::create_new(path)?;
    let written = file.write_all(text.as_bytes());
    if written.is_err() {
        // The next run would take a partial file for the administrator's.
        let _ = fs::remove_file(path);
    }
    written
}

/// The kubelet's flags and configuration for the credentials that `args` name.
fn kubelet(args: &InstallArgs) -> Result<String, ProviderError> {
    config::text(&ProviderArgs {
        files: args.files.clone(),
        cache_key: CacheKey::Image,
        cache_duration: CACHE_SECONDS,
        print_config: true,
        match_image: args.match_image.clone(),
    })
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;
    use crate::args::{Cli, Command};

    fn args(line: &[&str]) -> InstallArgs {
        let line = ["bulkhead", "install"].iter().chain(line);
        match Cli::try_parse_from(line).unwrap().command {
            Command::Install(args) => args,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn files_are_those_of_the_handlers_and_the_containerd() {
        let all = node_files(&args(&[]));
        let paths: Vec<&str> = all.iter().map(|file| file.path.as_str()).collect();
        assert_eq!(
            paths,
            [
                "/etc/bulkhead/gvisor.toml",
                "/etc/containerd/conf.d/bulkhead-gvisor.toml",
                "/etc/bulkhead/kata-containers.toml",
                "/etc/containerd/conf.d/bulkhead-kata-containers.toml",
            ]
        );
        assert!(all[1].text.contains("version = 3") && all[1].text.contains(paths[0]));
        let old = node_files(&args(&["--containerd", "1", "--handler", "kata-containers"]));
        assert_eq!(old.len(), 2);
        assert!(old[1].text.contains("version = 2") && old[1].text.contains(paths[2]));
    }

    #[test]
    fn an_existing_file_is_not_replaced_and_nothing_else_written() {
        let root = tempfile::tempdir().unwrap();
        let place = |path: &str| root.path().join(path);
        let files = node_files(&args(&["--handler", "gvisor"]));
        write(root.path(), &files).unwrap();
        let handler = place("etc/bulkhead/gvisor.toml");
        assert_eq!(fs::read_to_string(&handler).unwrap(), files[0].text);
        write(root.path(), &files).unwrap();
        fs::write(place("etc/containerd/conf.d/bulkhead-gvisor.toml"), "# mine\n").unwrap();
        fs::remove_file(&handler).unwrap();
        let refused = write(root.path(), &files).unwrap_err();
        assert!(refused.to_string().contains("bulkhead-gvisor.toml exists"), "{refused}");
        assert!(!handler.exists());
    }

    #[test]
    fn the_kubelet_is_configured_with_the_credentials() {
        let line = ["--match-image", "reg.example:5000", "--secret-dir", "/etc/bulkhead/secrets"];
        let text = kubelet(&args(&line)).unwrap();
        assert!(text.contains("--image-credential-provider-config=FILE"), "{text}");
        assert!(text.contains("- reg.example:5000"), "{text}");
        assert!(text.contains("--secret-dir=/etc/bulkhead/secrets"), "{text}");
    }
}
