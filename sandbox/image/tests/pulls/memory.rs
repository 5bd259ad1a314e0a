//! A dropped credential is not in the memory of the process, and so not in a core dump.

use std::fs::{self, File};
use std::io::{Read as _, Seek as _, SeekFrom};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use sandbox_core::Secret;
use sandbox_image::{CredentialSource as _, DockerConfig, Reference, Wanted};

use crate::bed::Bed;

/// The secrets searched for are kept masked, so that the search does not find itself.
const MASK: u8 = 0x5a;

fn masked(text: &[u8]) -> Vec<u8> {
    text.iter().map(|byte| byte ^ MASK).collect()
}

/// How often the unmasked text is in the writable memory of this process.
fn count(wanted: &[u8]) -> usize {
    let maps = fs::read_to_string("/proc/self/maps").unwrap();
    let mut memory = File::open("/proc/self/mem").unwrap();
    let mut found = 0;
    for line in maps.lines().filter(|line| line.contains(" rw")) {
        let (from, to) = line.split(' ').next().unwrap().split_once('-').unwrap();
        let number = |hex| u64::from_str_radix(hex, 16).unwrap();
        let from = number(from);
        let to = number(to);
        // Masked below: this copy must not be found.
        let mut bytes = vec![0; usize::try_from(to - from).unwrap().min(64 << 20)];
        memory.seek(SeekFrom::Start(from)).unwrap();
        // The mapping may have been removed.
        let Ok(read) = memory.read(&mut bytes) else { continue };
        bytes.truncate(read);
        bytes.iter_mut().for_each(|byte| *byte ^= MASK);
        found += bytes.windows(wanted.len()).filter(|part| *part == wanted).count();
        // Wiped: a later search that masks this copy again would find the secret in its own buffer.
        drop(Secret::new(bytes));
    }
    found
}

#[tokio::test]
async fn dropped_credentials_are_wiped() {
    let bed = Bed::new();
    let path = bed.path("config.json");
    let seed: Vec<u8> = (0..24).map(|at| b'a' + (at * 7 + 3) % 26).collect();
    let password = masked(&seed);
    let pair = {
        let text = Secret::new([b"bob:".as_slice(), &seed].concat());
        let pair = Secret::new(STANDARD.encode(text.expose()));
        let entry = [br#"{"auths":{"reg.example":{"auth":""#.as_slice(), pair.expose(), br#""}}}"#];
        let whole = Secret::new(entry.concat());
        fs::write(&path, whole.expose()).unwrap();
        masked(pair.expose())
    };
    drop(Secret::new(seed));
    let reference: Reference = "reg.example/app".parse().unwrap();
    let config = DockerConfig::read(&path, None).unwrap();
    let candidates = config.find(Wanted::Place(reference.place())).await.unwrap();
    assert_eq!(candidates.len(), 1);
    assert!(count(&password) > 0, "the search does not find the password in use");
    drop(candidates);
    drop(config);
    assert_eq!(count(&password), 0, "the password is still in memory");
    assert_eq!(count(&pair), 0, "the encoded password is still in memory");
}
