//! What the fuzz targets call: each reads bytes from others and asserts what must hold whatever
//! they are. The kept inputs are replayed by the tests here.

use std::fs;

use reqwest::header::{HeaderMap, HeaderValue, WWW_AUTHENTICATE};
use sandbox_core::Secret;
use tar::Header;

use crate::credential::{DockerConfig, Pattern, secret_text};
use crate::registry::{Challenge, Content, read_challenge, read_document};
use crate::unpack::{Limits, Unpacker};
use crate::{Candidate, Platform, Reference, digest, platform};

/// Of a tar.
const BLOCK: usize = 512;

/// The longest message about one input.
const MESSAGE: usize = 4096;

/// An image reference: what it is filled in to is one too, and the same.
pub fn reference(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    match text.parse::<Reference>() {
        Ok(reference) => {
            let whole = reference.to_string();
            assert_eq!(whole.parse().as_ref(), Ok(&reference), "{text:?} is {whole:?}");
            // It becomes a part of a URL and of a path.
            let plain = |c: char| c.is_ascii_alphanumeric() || "/-_.".contains(c);
            let repository = reference.place().repository();
            assert!(repository.chars().all(plain) && !repository.contains(".."), "{repository:?}");
            assert!(!reference.selector().contains('/'), "{whole:?}");
        }
        Err(error) => assert!(error.to_string().len() < MESSAGE, "{error}"),
    }
}

/// A configuration of docker or podman.
pub fn docker_config(data: &[u8]) {
    let text = Secret::new(data);
    match DockerConfig::parse("f", &text, None) {
        Ok(config) => config.into_stored().iter().for_each(candidate),
        Err(error) => assert!(error.to_string().starts_with("f: "), "{error}"),
    }
}

/// Kubernetes Secrets, or whatever else the file holds.
pub fn secret_yaml(data: &[u8]) {
    match secret_text("f", &Secret::new(data)) {
        Ok(found) => found.iter().for_each(candidate),
        Err(error) => assert!(error.to_string().starts_with("f: "), "{error}"),
    }
}

/// What is printed of a credential can be read again, and is not the secret.
fn candidate(found: &Candidate) {
    let shown = found.pattern.to_string();
    assert!(Pattern::parse(&shown).is_ok(), "{shown:?}");
    assert!(!found.credential.secret().is_empty(), "{found:?}");
    let debug = format!("{:?}", found.credential.secret());
    assert!(debug.len() < 40, "{debug}");
}

/// `WWW-Authenticate` headers, one a line.
pub fn challenge(data: &[u8]) {
    let mut headers = HeaderMap::new();
    for line in data.split(|byte| *byte == b'\n').take(20) {
        if let Ok(value) = HeaderValue::from_bytes(line) {
            headers.append(WWW_AUTHENTICATE, value);
        }
    }
    if let Some(Challenge::Bearer { realm, service, scope, error }) = read_challenge(&headers) {
        let longest = data.len();
        let parts = [Some(realm), service, scope, error];
        assert!(parts.iter().flatten().all(|part| part.len() <= longest));
    }
}

/// A manifest or an index, under each type that a registry may send it as.
pub fn manifest(data: &[u8]) {
    for kind in [
        "",
        "application/vnd.oci.image.manifest.v1+json",
        "application/vnd.docker.distribution.manifest.list.v2+json",
    ] {
        let Ok(document) = read_document(data.to_vec(), kind, digest::sha256(data)) else {
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
            // It becomes the name of a file and a part of a URL.
            let name = blob.digest().to_string();
            let plain = |c: char| c.is_ascii_alphanumeric() || "+._-:=".contains(c);
            assert!(name.chars().all(plain) && !name.contains(".."), "{name:?}");
        }
    }
}

/// The same with the checksum of every header as it should be, which no mutation would hit: all
/// but the headers of a tar would never be reached.
fn with_checksums(data: &[u8]) -> Vec<u8> {
    let (mut tar, mut at) = (data.to_vec(), 0usize);
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
        // None is past every end.
        at = next.checked_next_multiple_of(BLOCK).unwrap_or(usize::MAX);
    }
    tar
}

/// A layer, in whatever compression, onto a directory beside which nothing may change.
pub fn layer(data: &[u8]) {
    let compressed = [[0x1f, 0x8b].as_slice(), &[0x28, 0xb5, 0x2f, 0xfd]];
    let data = match compressed.iter().any(|magic| data.starts_with(magic)) {
        true => data.to_vec(),
        false => with_checksums(data),
    };
    let data = data.as_slice();
    let Ok(place) = tempfile::tempdir() else { return };
    let (root, outside) = (place.path().join("root"), place.path().join("outside"));
    let made = fs::create_dir(&root).and_then(|()| fs::write(&outside, "untouched"));
    if made.is_err() {
        return;
    }
    let limits = Limits { entries: 100, bytes: 1 << 20 };
    let mut unpacker = match Unpacker::open(&root, limits, false) {
        Ok(unpacker) => unpacker,
        Err(error) => panic!("{error}"),
    };
    // Twice, so that it also meets what it left itself.
    for _ in 0..2 {
        if let Err(error) = unpacker.layer(data, None) {
            assert!(error.to_string().len() < 3 * MESSAGE, "{error}");
        }
    }
    assert!(fs::read(&outside).is_ok_and(|it| it == b"untouched"), "something got out");
    assert_eq!(fs::read_dir(place.path()).map_or(0, Iterator::count), 2, "something got out");
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    type Target = fn(&[u8]);

    /// Each target with the folder of its kept inputs.
    const TARGETS: [(&str, Target); 6] = [
        ("reference", super::reference),
        ("docker_config", super::docker_config),
        ("secret_yaml", super::secret_yaml),
        ("challenge", super::challenge),
        ("manifest", super::manifest),
        ("layer", super::layer),
    ];

    #[test]
    fn the_kept_inputs() {
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
    fn every_target_is_one_of_cargo_fuzz() {
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
