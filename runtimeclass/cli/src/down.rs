//! `bulkhead down`: removes the Pods that files or names select.

use std::collections::BTreeSet;
use std::path::Path;

use kube_manifest::{Findings, Manifest, Metadata, ReadError, read_file};
use pod_runner::{Cri, RemoveError, all_pods, remove};

use crate::args::DownArgs;
use crate::error_chain::chain;
use crate::find::FindError;

/// Why no Pod was selected.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DownError {
    #[error(transparent)]
    Read(#[from] ReadError),
    #[error(transparent)]
    Find(#[from] FindError),
    #[error("cannot list the Pods of this node")]
    List(#[from] RemoveError),
}

/// Removes the selected Pods; the exit code is 1 if a part of one stays.
pub(crate) async fn down(cri: &Cri, state: &Path, args: &DownArgs) -> Result<u8, DownError> {
    let all = all_pods(cri, state).await?;
    let mut pods = BTreeSet::new();
    if args.all {
        pods = all;
    } else {
        for target in &args.targets {
            pods.extend(selected(target, &all)?);
        }
    }
    let mut failed = None;
    for (namespace, name) in pods {
        let removed = remove(cri, state, (&namespace, &name), args.grace).await;
        let meta = Metadata { namespace, name, ..Metadata::default() };
        match removed {
            Ok(true) => eprintln!("bulkhead: Pod {meta} removed"),
            Ok(false) => eprintln!("bulkhead: Pod {meta} does not exist"),
            Err(errors) => {
                for error in &errors {
                    eprintln!("bulkhead: Pod {meta}: {}", chain(error));
                }
                failed = Some(meta);
            }
        }
    }
    Ok(u8::from(failed.is_some()))
}

/// The Pods of a file, or the one Pod of that name.
fn selected(
    target: &str,
    all: &BTreeSet<(String, String)>,
) -> Result<BTreeSet<(String, String)>, DownError> {
    if target == "-" || Path::new(target).is_file() {
        // Only the names matter here: a Pod of a file that play would refuse may still have to be removed.
        let findings = Findings::default();
        let mut manifest = Manifest::default();
        read_file(Path::new(target), &findings, &mut manifest)?;
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
            Err(FindError::Ambiguous { name: target.to_owned(), found: names.join(" or ") }.into())
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
        assert_eq!(selected("db", &all).unwrap(), pods(&[("a", "db")]));
        assert_eq!(selected("b/web", &all).unwrap(), pods(&[("b", "web")]));
        let error = selected("web", &all).unwrap_err().to_string();
        assert_eq!(error, "\"web\" could be a/web or b/web; add the namespace and the container");
        let error = selected("none.yaml", &all).unwrap_err().to_string();
        assert_eq!(error, "no played Pod is named \"none.yaml\"; `bulkhead ps` lists them");
        let file = tempfile::NamedTempFile::new().unwrap();
        let text = "{apiVersion: v1, kind: Pod, metadata: {name: x}, spec: {wrong: 1}}";
        std::fs::write(file.path(), text).unwrap();
        assert_eq!(
            selected(file.path().to_str().unwrap(), &all).unwrap(),
            pods(&[("default", "x")])
        );
    }
}
