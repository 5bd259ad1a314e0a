//! What a core dump would hold: a credential that was dropped is in no memory of this process.

use std::fs::{self, File};
use std::io::{Read as _, Seek as _, SeekFrom};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use sandbox_core::Secret;
use sandbox_image::CredentialSource as _;
use sandbox_image::credential::{DockerConfig, Wanted};

use crate::bed::Bed;

/// What is looked for is in no constant either.
const MASK: u8 = 0x5a;

/// A password that nobody wrote down, masked.
fn masked(text: &[u8]) -> Vec<u8> {
    text.iter().map(|byte| byte ^ MASK).collect()
}

/// How often a masked text is in the writable memory of this process, unmasked.
fn found(wanted: &[u8]) -> usize {
    let maps = fs::read_to_string("/proc/self/maps").unwrap();
    let mut memory = File::open("/proc/self/mem").unwrap();
    let mut count = 0;
    for line in maps.lines().filter(|line| line.contains(" rw")) {
        let (from, to) = line.split(' ').next().unwrap().split_once('-').unwrap();
        let number = |hex| u64::from_str_radix(hex, 16).unwrap();
        let (from, to) = (number(from), number(to));
        // Masked at once: this copy must not be found in turn.
        let mut bytes = vec![0; usize::try_from(to - from).unwrap().min(64 << 20)];
        memory.seek(SeekFrom::Start(from)).unwrap();
        // A mapping may be gone meanwhile.
        let Ok(read) = memory.read(&mut bytes) else { continue };
        bytes.truncate(read);
        bytes.iter_mut().for_each(|byte| *byte ^= MASK);
        count += bytes.windows(wanted.len()).filter(|part| *part == wanted).count();
    }
    count
}

#[tokio::test]
async fn what_was_dropped_is_wiped() {
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
    let reference: sandbox_image::Reference = "reg.example/app".parse().unwrap();
    let config = DockerConfig::read(&path, None).unwrap();
    let candidates = config.find(Wanted::Place(reference.place())).await.unwrap();
    assert_eq!(candidates.len(), 1);
    assert!(found(&password) > 0, "what is in use is found");
    drop(candidates);
    drop(config);
    assert_eq!((found(&password), found(&pair)), (0, 0), "what was dropped is still there");
}
