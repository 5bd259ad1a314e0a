//! The directories of a client, and assertions on the result of a pull.

use std::error::Error;
use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use sandbox_core::Secret;
use sandbox_image::{
    Candidate, Client, Credential, CredentialSource, HostsDirectories, NoProgress, Pattern,
    PullOptions, Pulled, Reference, Retry, Stage, pull,
};
use serde_json::Value;
use tempfile::TempDir;

use crate::image::digest;

/// Deadline of a pull.
const DEADLINE: Duration = Duration::from_secs(60);
/// Short pauses, so that tests of retries are fast.
pub(crate) const RETRY: Retry =
    Retry { attempts: 3, pause: Duration::from_millis(10), longest: Duration::from_millis(1500) };

pub(crate) struct Bed {
    pub(crate) dir: TempDir,
}

impl Bed {
    pub(crate) fn new() -> Self {
        Self { dir: tempfile::tempdir().unwrap() }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Writes the `hosts.toml` of a registry.
    pub(crate) fn hosts(&self, host: &str, text: &str) {
        let folder = self.path("certs.d").join(host);
        fs::create_dir_all(&folder).unwrap();
        fs::write(folder.join("hosts.toml"), text).unwrap();
    }

    pub(crate) fn client(&self, source: impl CredentialSource + 'static) -> Client {
        Client::new(HostsDirectories::new([self.path("certs.d")]), source, RETRY)
    }

    /// Pulls into `layout`; errors are in one line.
    pub(crate) async fn pull(&self, client: &Client, image: &str) -> Result<Pulled, String> {
        self.pull_to(client, image, self.path("layout")).await
    }

    pub(crate) async fn pull_to(
        &self,
        client: &Client,
        image: &str,
        layout: PathBuf,
    ) -> Result<Pulled, String> {
        let reference: Reference = image.parse().unwrap();
        let stage = Stage::open(&layout).map_err(|error| line(&error))?;
        let options = PullOptions::default();
        let pulling = pull(client, &reference, &options, stage, &NoProgress);
        let result =
            tokio::time::timeout(DEADLINE, pulling).await.expect("the pull takes too long");
        result.map_err(|error| line(&error))
    }

    /// Asserts that the layout contains the image with intact blobs, and no temporary files.
    pub(crate) fn assert_complete(&self, pulled: &Pulled, name: &str) {
        let layout = self.path("layout");
        let mut top: Vec<_> =
            fs::read_dir(&layout).unwrap().map(|it| it.unwrap().file_name()).collect();
        top.sort();
        assert_eq!(top, ["blobs", "index.json", "oci-layout"]);
        for blob in fs::read_dir(layout.join("blobs/sha256")).unwrap() {
            let path = blob.unwrap().path();
            let actual = digest(&fs::read(&path).unwrap());
            assert_eq!(actual.strip_prefix("sha256:"), path.file_name().unwrap().to_str());
        }
        let manifest = pulled.manifest.digest().digest();
        let manifest: Value =
            serde_json::from_slice(&fs::read(layout.join("blobs/sha256").join(manifest)).unwrap())
                .unwrap();
        let layers = manifest["layers"].as_array().unwrap();
        for blob in layers.iter().chain([&manifest["config"]]) {
            let digest = blob["digest"].as_str().unwrap().strip_prefix("sha256:").unwrap();
            let size = fs::metadata(layout.join("blobs/sha256").join(digest)).unwrap().len();
            assert_eq!(Some(size), blob["size"].as_u64());
        }
        let index: Value =
            serde_json::from_slice(&fs::read(layout.join("index.json")).unwrap()).unwrap();
        let entry = index["manifests"].as_array().unwrap().last().unwrap();
        assert_eq!(entry["digest"], pulled.manifest.digest().to_string());
        assert_eq!(entry["annotations"]["io.containerd.image.name"], name);
    }

    /// Asserts that a failed pull left no files.
    pub(crate) fn assert_clean(&self) {
        assert!(!self.path("layout").exists(), "the layout exists after a failed pull");
    }
}

/// An error and its causes in one line.
pub(crate) fn line(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    assert!(!text.contains('\n'), "more than one line: {text}");
    text
}

/// No credentials.
pub(crate) fn no_credentials() -> Vec<Candidate> {
    Vec::new()
}

pub(crate) fn candidate(key: &str, credential: Credential) -> Candidate {
    let pattern = Pattern::parse(key).unwrap();
    Candidate { credential, pattern, origin: format!("secret.yaml: entry {key:?}") }
}

pub(crate) fn user(key: &str, username: &str, password: &str) -> Candidate {
    let password = Secret::new(password);
    candidate(key, Credential::Basic { username: username.to_owned(), password })
}
