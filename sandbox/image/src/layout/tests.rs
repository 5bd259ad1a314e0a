use oci_spec::image::MediaType;

use super::*;
use crate::digest::sha256;

fn blob(bytes: &[u8]) -> Descriptor {
    Descriptor::new(MediaType::ImageManifest, bytes.len() as u64, sha256(bytes))
}

fn entries(path: &Path) -> Vec<String> {
    let mut names: Vec<String> = fs::read_dir(path)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

fn commit(dir: &Path, bytes: &[u8], name: &str) {
    let mut stage = Stage::open(dir).unwrap();
    let blob = blob(bytes);
    assert!(!stage.has(&blob).unwrap());
    stage.add(blob.digest(), bytes).unwrap();
    stage.commit(&blob, &name.parse().unwrap()).unwrap();
}

fn names(dir: &Path) -> Vec<String> {
    let text = fs::read_to_string(dir.join("index.json")).unwrap();
    let index: ImageIndex = serde_json::from_str(&text).unwrap();
    let name = |it: &Descriptor| it.annotations().as_ref().unwrap()[IMAGE_NAME].clone();
    index.manifests().iter().map(name).collect()
}

#[test]
fn images_are_added_and_replaced() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("layout");
    commit(&path, b"one", "reg.example/a:1");
    commit(&path, b"two", "reg.example/a:2");
    assert_eq!(names(&path), ["reg.example/a:1", "reg.example/a:2"]);
    commit(&path, b"three", "reg.example/a:1");
    assert_eq!(names(&path), ["reg.example/a:2", "reg.example/a:1"]);
    commit(&path, b"four", "other.example/b:2");
    assert_eq!(names(&path), ["reg.example/a:1", "other.example/b:2"]);
    assert_eq!(entries(&path), ["blobs", "index.json", "oci-layout"]);
    assert_eq!(fs::read_to_string(path.join("oci-layout")).unwrap(), MARKER);
    let stage = Stage::open(&path).unwrap();
    assert!(stage.has(&blob(b"two")).unwrap());
    // A corrupt blob counts as missing.
    let rotten = stage.place(blob(b"two").digest());
    fs::write(&rotten, b"owt").unwrap();
    assert!(!stage.has(&blob(b"two")).unwrap());
    fs::write(&rotten, b"tw").unwrap();
    assert!(!stage.has(&blob(b"two")).unwrap());
}

#[test]
fn a_dropped_stage_changes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("layout");
    let mut stage = Stage::open(&path).unwrap();
    stage.add(blob(b"x").digest(), b"x").unwrap();
    drop(stage);
    assert!(!path.exists());
    fs::create_dir(&path).unwrap();
    drop(Stage::open(&path).unwrap());
    assert_eq!(entries(&path), [""; 0]);
    commit(&path, b"one", "reg.example/a:1");
    let before = fs::read(path.join("index.json")).unwrap();
    let mut stage = Stage::open(&path).unwrap();
    stage.add(blob(b"x").digest(), b"x").unwrap();
    drop(stage);
    assert_eq!(entries(&path), ["blobs", "index.json", "oci-layout"]);
    assert_eq!(fs::read(path.join("index.json")).unwrap(), before);
    assert_eq!(entries(&path.join("blobs/sha256")).len(), 1);
}

#[test]
fn the_next_pull_removes_the_stage_of_a_killed_one() {
    let dir = tempfile::tempdir().unwrap();
    let mut stage = Stage::open(dir.path()).unwrap();
    stage.add(blob(b"x").digest(), b"x").unwrap();
    // As after a kill: the lock is released and the folder stays.
    drop(std::mem::replace(&mut stage._lock, File::open("/dev/null").unwrap()));
    std::mem::forget(stage);
    assert_eq!(entries(dir.path()), [STAGE]);
    commit(dir.path(), b"one", "reg.example/a:1");
    assert_eq!(entries(dir.path()), ["blobs", "index.json", "oci-layout"]);
}

#[test]
fn other_pulls_and_foreign_directories_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let stage = Stage::open(dir.path()).unwrap();
    assert!(matches!(Stage::open(dir.path()), Err(LayoutError::Busy { .. })));
    drop(stage);
    fs::write(dir.path().join("mine"), "x").unwrap();
    let error = Stage::open(dir.path()).unwrap_err();
    assert!(error.to_string().ends_with("use another directory"), "{error}");
    assert_eq!(entries(dir.path()), ["mine"]);
    let error = Stage::open(&dir.path().join("no/such")).unwrap_err();
    assert!(error.to_string().starts_with("cannot create "), "{error}");
    fs::remove_file(dir.path().join("mine")).unwrap();
    fs::write(dir.path().join("oci-layout"), MARKER).unwrap();
    fs::write(dir.path().join("index.json"), "[").unwrap();
    let mut stage = Stage::open(dir.path()).unwrap();
    stage.add(blob(b"x").digest(), b"x").unwrap();
    let error = stage.commit(&blob(b"x"), &"a".parse().unwrap()).unwrap_err();
    assert!(error.to_string().contains("is not the index"), "{error}");
    assert_eq!(entries(dir.path()), ["index.json", "oci-layout"]);
}
