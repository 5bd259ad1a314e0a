//! The fuzz targets: each parses untrusted bytes and asserts invariants of the result. The tests
//! replay the kept inputs.

use std::fs;

use reqwest::header::{HeaderMap, HeaderValue, WWW_AUTHENTICATE};
use sandbox_core::Secret;
use tar::Header;

use crate::credential::{DockerConfig, Pattern, secret_text};
use crate::registry::{Challenge, Content, parse_challenge, parse_manifest};
use crate::unpack::{Limits, Unpacker};
use crate::{Candidate, Platform, Reference, digest, platform};

/// The block size of tar.
const BLOCK: usize = 512;

/// Upper bound on the length of error messages.
const MESSAGE: usize = 4096;

/// An image reference: its full form parses to the same reference.
pub fn reference(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    match text.parse::<Reference>() {
        Ok(reference) => {
            let whole = reference.to_string();
            assert_eq!(whole.parse().as_ref(), Ok(&reference), "{text:?} is {whole:?}");
            // It is used in URLs and paths.
            let plain = |c: char| c.is_ascii_alphanumeric() || "/-_.".contains(c);
            let repository = reference.place().repository();
            assert!(repository.chars().all(plain) && !repository.contains(".."), "{repository:?}");
            assert!(!reference.selector().contains('/'), "{whole:?}");
        }
        Err(error) => assert!(error.to_string().len() < MESSAGE, "{error}"),
    }
}

/// A configuration of Docker or podman.
pub fn docker_config(data: &[u8]) {
    let text = Secret::new(data);
    match DockerConfig::parse("f", &text, None) {
        Ok(config) => config.into_stored().iter().for_each(candidate),
        Err(error) => assert!(error.to_string().starts_with("f: "), "{error}"),
    }
}

/// A file with Kubernetes Secrets.
pub fn secret_yaml(data: &[u8]) {
    match secret_text("f", &Secret::new(data)) {
        Ok(found) => found.iter().for_each(candidate),
        Err(error) => assert!(error.to_string().starts_with("f: "), "{error}"),
    }
}

/// The displayed pattern parses again, and the displayed credential does not contain the secret.
fn candidate(found: &Candidate) {
    let shown = found.pattern.to_string();
    assert!(Pattern::parse(&shown).is_ok(), "{shown:?}");
    assert!(!found.credential.secret().is_empty(), "{found:?}");
    let debug = format!("{:?}", found.credential.secret());
    assert!(debug.len() < 40, "{debug}");
}

/// `WWW-Authenticate` headers, one per line.
pub fn challenge(data: &[u8]) {
    let mut headers = HeaderMap::new();
    for line in data.split(|byte| *byte == b'\n').take(20) {
        if let Ok(value) = HeaderValue::from_bytes(line) {
            headers.append(WWW_AUTHENTICATE, value);
        }
    }
    if let Some(Challenge::Bearer { realm, service, scope, error }) = parse_challenge(&headers) {
        let longest = data.len();
        let parts = [Some(realm), service, scope, error];
        assert!(parts.iter().flatten().all(|part| part.len() <= longest));
    }
}

/// A manifest or an index, with several values of `Content-Type`.
pub fn manifest(data: &[u8]) {
    for kind in [
        "",
        "application/vnd.oci.image.manifest.v1+json",
        "application/vnd.docker.distribution.manifest.list.v2+json",
    ] {
        let Ok(document) = parse_manifest(data.to_vec(), kind, digest::sha256(data)) else {
            continue;
        };
        assert!(document.bytes == data && document.descriptor.size() == data.len() as u64);
        let blobs = match &document.content {
            Content::Manifest(manifest) => {
                [manifest.layers().as_slice(), std::slice::from_ref(manifest.config())].concat()
            }
            Content::Index(index) => {
                let chosen = Platform::of_this_machine().choose(index);
                assert!(chosen.is_none_or(|it| index.manifests().contains(it)));
                assert!(!platform::listed(index).contains('\n'));
                index.manifests().clone()
            }
        };
        for blob in blobs {
            // It is used in file names and URLs.
            let name = blob.digest().to_string();
            let plain = |c: char| c.is_ascii_alphanumeric() || "+._-:=".contains(c);
            assert!(name.chars().all(plain) && !name.contains(".."), "{name:?}");
        }
    }
}

/// Corrects the checksum of every header; with wrong ones, mutated archives would be rejected
/// early.
fn with_checksums(data: &[u8]) -> Vec<u8> {
    let mut tar = data.to_vec();
    let mut at = 0usize;
    while let Some(block) = tar.get_mut(at..at.saturating_add(BLOCK)) {
        let mut size = 0;
        if block.iter().any(|byte| *byte != 0) {
            let mut header = Header::new_old();
            header.as_mut_bytes().copy_from_slice(block);
            header.set_cksum();
            block.copy_from_slice(header.as_bytes());
            size = header.entry_size().ok().and_then(|it| it.try_into().ok()).unwrap_or(0);
        }
        let next = at.saturating_add(BLOCK).saturating_add(size);
        // An overflow ends the loop.
        at = next.checked_next_multiple_of(BLOCK).unwrap_or(usize::MAX);
    }
    tar
}

/// A layer, compressed or not; nothing outside the root directory may change.
pub fn layer(data: &[u8]) {
    let compressed = [[0x1f, 0x8b].as_slice(), &[0x28, 0xb5, 0x2f, 0xfd]];
    let data = match compressed.iter().any(|magic| data.starts_with(magic)) {
        true => data.to_vec(),
        false => with_checksums(data),
    };
    let data = data.as_slice();
    let Ok(place) = tempfile::tempdir() else { return };
    let root = place.path().join("root");
    let outside = place.path().join("outside");
    let made = fs::create_dir(&root).and_then(|()| fs::write(&outside, "untouched"));
    if made.is_err() {
        return;
    }
    let limits = Limits { entries: 100, bytes: 1 << 20 };
    let mut unpacker = match Unpacker::open(&root, limits, false) {
        Ok(unpacker) => unpacker,
        Err(error) => panic!("{error}"),
    };
    // The second time onto the result of the first.
    for _ in 0..2 {
        if let Err(error) = unpacker.layer(data, None) {
            assert!(error.to_string().len() < 3 * MESSAGE, "{error}");
        }
    }
    assert!(fs::read(&outside).is_ok_and(|it| it == b"untouched"), "a change outside the root");
    assert_eq!(
        fs::read_dir(place.path()).map_or(0, Iterator::count),
        2,
        "a change outside the root"
    );
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    type Target = fn(&[u8]);

    /// Each target, by the name of its folder of kept inputs.
    const TARGETS: [(&str, Target); 6] = [
        ("reference", super::reference),
        ("docker_config", super::docker_config),
        ("secret_yaml", super::secret_yaml),
        ("challenge", super::challenge),
        ("manifest", super::manifest),
        ("layer", super::layer),
    ];

    #[test]
    fn kept_inputs() {
        let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus");
        for (name, target) in TARGETS {
            let mut inputs = 0;
            for entry in std::fs::read_dir(corpus.join(name)).unwrap() {
                target(&std::fs::read(entry.unwrap().path()).unwrap());
                inputs += 1;
            }
            assert!(inputs >= 5, "{name}: {inputs} inputs");
        }
    }

    #[test]
    fn every_target_has_a_binary() {
        let targets = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/fuzz_targets");
        let mut names: Vec<_> = std::fs::read_dir(targets)
            .unwrap()
            .map(|it| it.unwrap().path().file_stem().unwrap().to_str().unwrap().to_owned())
            .collect();
        names.sort();
        let mut wanted = TARGETS.map(|(name, _)| name);
        wanted.sort_unstable();
        assert_eq!(names, wanted);
    }
}
