//! `bulkhead down`: which Pods are meant, and removing them.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use crate::args::DownArgs;
use crate::cri::Cri;
use crate::down;
use crate::find::FindError;
use crate::manifest::{Manifest, Metadata};
use crate::play::PlayError;
use crate::yaml::{self, Findings};

/// Removes the Pods that were named; fails if anything of one stays.
pub(crate) async fn down(cri: &Cri, state: &Path, args: &DownArgs) -> Result<u8, PlayError> {
    let all = down::all_pods(cri, state)
        .await
        .map_err(|source| PlayError::Down { pod: "--all".to_owned(), source: Box::new(source) })?;
    let mut pods = BTreeSet::new();
    if args.all {
        pods = all;
    } else {
        for target in &args.targets {
            pods.extend(meant(target, &all)?);
        }
    }
    let mut failed = None;
    for (namespace, name) in pods {
        let removed = down::remove(cri, state, (&namespace, &name), args.grace).await;
        let meta = Metadata { namespace, name, ..Metadata::default() };
        match removed {
            Ok(true) => eprintln!("bulkhead: Pod {meta} removed"),
            Ok(false) => eprintln!("bulkhead: Pod {meta} is not there"),
            Err(errors) => {
                for error in &errors {
                    eprintln!("bulkhead: Pod {meta}: {}", crate::chain(error));
                }
                failed = Some(meta);
            }
        }
    }
    Ok(u8::from(failed.is_some()))
}

/// The Pods of a file, or the one Pod of that name.
fn meant(
    target: &str,
    all: &BTreeSet<(String, String)>,
) -> Result<BTreeSet<(String, String)>, PlayError> {
    if target == "-" || Path::new(target).is_file() {
        // Only the names count here: what play would refuse may still have to go.
        let findings = Findings::default();
        let mut manifest = Manifest::default();
        yaml::read_file(&PathBuf::from(target), &findings, &mut manifest)?;
        let names = manifest.pods.into_iter().map(|pod| (pod.meta.namespace, pod.meta.name));
        return Ok(names.collect());
    }
    let named = |(namespace, name): &&(String, String)| match target.split_once('/') {
        Some((first, second)) => first == namespace && second == name,
        None => target == name,
    };
    let found: BTreeSet<_> = all.iter().filter(named).cloned().collect();
    match found.len() {
        0 => Err(FindError::Missing(target.to_owned()).into()),
        1 => Ok(found),
        _ => {
            let names: Vec<String> =
                found.iter().map(|(namespace, name)| format!("{namespace}/{name}")).collect();
            let (name, found) = (target.to_owned(), names.join(" or "));
            Err(FindError::Ambiguous { name, found }.into())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pods(names: &[(&str, &str)]) -> BTreeSet<(String, String)> {
        names.iter().map(|(a, b)| ((*a).to_owned(), (*b).to_owned())).collect()
    }

    #[test]
    fn names_and_files() {
        let all = pods(&[("a", "web"), ("b", "web"), ("a", "db")]);
        assert_eq!(meant("db", &all).unwrap(), pods(&[("a", "db")]));
        assert_eq!(meant("b/web", &all).unwrap(), pods(&[("b", "web")]));
        let error = meant("web", &all).unwrap_err().to_string();
        assert_eq!(error, "\"web\" could be a/web or b/web; say the namespace and the container");
        let error = meant("none.yaml", &all).unwrap_err().to_string();
        assert_eq!(error, "no played Pod is named \"none.yaml\"; `bulkhead ps` lists them");
        let file = tempfile::NamedTempFile::new().unwrap();
        let text = "{apiVersion: v1, kind: Pod, metadata: {name: x}, spec: {wrong: 1}}";
        std::fs::write(file.path(), text).unwrap();
        assert_eq!(meant(file.path().to_str().unwrap(), &all).unwrap(), pods(&[("default", "x")]));
    }
}
