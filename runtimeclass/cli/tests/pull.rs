#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]
#![allow(dead_code, reason = "the server and the images are those of the image crate's tests")]
//! `bulkhead pull` as a program: its output, its exit code, the files it leaves, and that none of them has a credential.

#[path = "../../../sandbox/image/tests/pulls/forms.rs"]
mod forms;
#[path = "../../../sandbox/image/tests/pulls/image.rs"]
mod image;
#[path = "../../../sandbox/image/tests/pulls/server.rs"]
mod server;

use std::fs;
use std::io::Write as _;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use sandbox_host::{Command, Host as _, Output, RealHost};
use serde_json::{Value, json};
use tempfile::TempDir;

use forms::forms;
use image::{Image, digest};
use server::{Reply, Request, Server};

const PLANTED: &str = "planted-zaphod-42";
const SOON: Duration = Duration::from_secs(60);

/// What other users see of a process.
#[derive(Clone, Debug, Default)]
struct Seen(Arc<Mutex<String>>);

impl Seen {
    /// Looks at every process that was started with `word`.
    fn look(&self, word: &str) {
        for process in fs::read_dir("/proc").unwrap().flatten() {
            let read = |name: &str| fs::read(process.path().join(name)).unwrap_or_default();
            let line = String::from_utf8_lossy(&read("cmdline")).into_owned();
            if line.contains(word) {
                let whole = format!("{line}\n{}\n", String::from_utf8_lossy(&read("environ")));
                self.0.lock().unwrap().push_str(&whole);
            }
        }
    }
}

/// A registry that bob may pull from, and that echoes any other credential in its error.
fn registry(image: Image, seen: &Seen) -> Server {
    let bob = format!("Basic {}", STANDARD.encode(format!("bob:{PLANTED}")));
    let seen = seen.clone();
    Server::plain(move |request: &Request| {
        seen.look(request.header("host").unwrap());
        match request.header("authorization") {
            Some(sent) if sent == bob => image.answer(request),
            sent => {
                let body = json!({ "errors": [{ "message": format!("no {sent:?} {PLANTED}") }] });
                Reply::new(401, body.to_string()).with("WWW-Authenticate", "Basic realm=\"r\"")
            }
        }
    })
}

struct Bed {
    dir: TempDir,
    host: RealHost,
}

impl Bed {
    fn new() -> Self {
        Self { dir: tempfile::tempdir().unwrap(), host: RealHost::new().unwrap() }
    }

    fn path(&self, name: &str) -> String {
        self.dir.path().join(name).display().to_string()
    }

    /// Runs `bulkhead` with nothing in its environment but a home.
    async fn run(&self, args: &[&str], stdin: &str) -> (Output, String) {
        let path = self.path("stdin");
        fs::write(&path, stdin).unwrap();
        let stdin: OwnedFd = fs::File::open(&path).unwrap().into();
        fs::remove_file(&path).unwrap();
        let command = Command::new(env!("CARGO_BIN_EXE_bulkhead"))
            .args(args.iter().copied())
            .env("HOME", self.path("home"))
            .stdin(stdin);
        let output = self.host.run(command, SOON).await.unwrap();
        let text = [output.stdout.as_slice(), output.stderr.as_slice()].concat();
        let text = String::from_utf8(text).unwrap();
        clean("the output", &text);
        (output, text)
    }

    fn secret(&self, host: &str, username: &str) -> String {
        let auths = json!({ "auths": { host: { "username": username, "password": PLANTED } } });
        let secret = json!({
            "apiVersion": "v1", "kind": "Secret", "type": "kubernetes.io/dockerconfigjson",
            "metadata": { "name": "pull" },
            "data": { ".dockerconfigjson": STANDARD.encode(auths.to_string()) },
        });
        let path = self.path(&format!("{username}.yaml"));
        fs::write(&path, secret.to_string()).unwrap();
        path
    }
}

/// No form of the password is in a text.
fn clean(what: &str, text: &str) {
    for form in [forms("bob", PLANTED), forms("eve", PLANTED)].concat() {
        assert!(!text.contains(&form), "{what} shows the password: {text}");
    }
}

fn clean_files(directory: &Path) {
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            clean_files(&path);
        } else if path.extension().is_none_or(|it| it != "yaml") {
            clean(&path.display().to_string(), &String::from_utf8_lossy(&fs::read(&path).unwrap()));
        }
    }
}

#[tokio::test]
async fn a_private_image_into_a_layout_and_into_a_directory() {
    let bed = Bed::new();
    let seen = Seen::default();
    let image = Image::multi(&[200_000, 10]);
    let server = registry(image.clone(), &seen);
    let name = format!("{}/team/app:multi", server.host());
    let secret = bed.secret(&server.host(), "bob");
    let oci = bed.path("oci");
    let rootfs = bed.path("rootfs");
    let output = format!("oci:{oci}");
    let (done, text) =
        bed.run(&["pull", "--verbose", "--secret", &secret, "--output", &output, &name], "").await;
    assert!(done.success(), "{text}");
    let id = String::from_utf8(done.stdout).unwrap();
    assert!(image.manifests.contains_key(id.trim_end()), "{id}");
    assert!(text.contains("GET http://") && text.contains("bulkhead: layer "), "{text}");
    let index: Value =
        serde_json::from_slice(&fs::read(format!("{oci}/index.json")).unwrap()).unwrap();
    assert_eq!(index["manifests"][0]["digest"], id.trim_end());
    // A password from the standard input.
    let output = format!("rootfs:{rootfs}");
    let typed = ["pull", "--username", "bob", "--password-stdin", "--output", &output, &name];
    let (done, text) = bed.run(&typed, &format!("{PLANTED}\n")).await;
    assert!(done.success() && text.contains("unpacked 2 entries"), "{text}");
    assert_eq!(fs::read(format!("{rootfs}/file-0")).unwrap().len(), 200_000);
    let mut left: Vec<_> =
        fs::read_dir(bed.dir.path()).unwrap().map(|it| it.unwrap().file_name()).collect();
    left.sort();
    assert_eq!(left, ["bob.yaml", "oci", "rootfs"]);
    // docker's default file.
    let config = json!({ "auths": { server.host(): { "auth": STANDARD.encode(format!("bob:{PLANTED}")) } } });
    fs::create_dir_all(bed.path("home/.docker")).unwrap();
    fs::write(bed.path("home/.docker/config.json"), config.to_string()).unwrap();
    let (done, text) = bed.run(&["pull", "--output", &format!("oci:{oci}"), &name], "").await;
    assert!(done.success(), "{text}");
    fs::remove_dir_all(bed.path("home")).unwrap();
    clean_files(bed.dir.path());
    let seen = seen.0.lock().unwrap().clone();
    assert!(seen.contains(&name), "the program was seen while it ran");
    clean("argv and environment", &seen);
}

/// Another tool finds the image by its tag, with every blob intact.
#[tokio::test]
#[ignore = "needs env:BULKHEAD_SKOPEO"]
async fn skopeo_reads_the_layout() {
    let skopeo = std::env::var_os("BULKHEAD_SKOPEO").expect("BULKHEAD_SKOPEO names a skopeo");
    let bed = Bed::new();
    let seen = Seen::default();
    let image = Image::multi(&[200_000, 10]);
    let server = registry(image.clone(), &seen);
    let name = format!("{}/team/app:multi", server.host());
    let secret = bed.secret(&server.host(), "bob");
    let output = format!("oci:{}", bed.path("oci"));
    let (done, text) =
        bed.run(&["pull", "--secret", &secret, "--output", &output, &name], "").await;
    assert!(done.success(), "{text}");
    let id = String::from_utf8(done.stdout).unwrap();
    let skopeo = async |args: &[&str]| {
        let command = Command::new(&skopeo).arg("--insecure-policy").args(args.iter().copied());
        let command = command.env("HOME", bed.path("home"));
        let done = bed.host.run(command, SOON).await.unwrap();
        assert!(done.success(), "{args:?}: {}", String::from_utf8_lossy(&done.stderr));
        done.stdout
    };
    let source = format!("{output}:multi");
    let manifest = skopeo(&["inspect", "--raw", &source]).await;
    assert_eq!(manifest, image.manifests[id.trim_end()].1);
    let copy = bed.path("copy");
    skopeo(&["copy", &source, &format!("dir:{copy}")]).await;
    let manifest: Value = serde_json::from_slice(&manifest).unwrap();
    for layer in manifest["layers"].as_array().unwrap() {
        let digest = layer["digest"].as_str().unwrap();
        let copied = fs::read(format!("{copy}/{}", digest.strip_prefix("sha256:").unwrap()));
        assert_eq!(copied.unwrap(), image.blobs[digest]);
    }
}

#[tokio::test]
async fn a_failure_prints_one_line_and_leaves_nothing() {
    let bed = Bed::new();
    let seen = Seen::default();
    let server = registry(Image::single(&[1000]), &seen);
    let host = server.host();
    let name = format!("{host}/app:1");
    let bob = bed.secret(&host, "bob");
    let eve = bed.secret(&host, "eve");
    let output = format!("oci:{}", bed.path("oci"));
    let missing = format!("{host}/app:2");
    for (args, part) in [
        (vec!["--anonymous", &name], "requires a credential for app, and no source has one"),
        (vec!["--secret", &eve, &name], "refuses access to app: user \"eve\" of "),
        (vec!["--secret", &bob, &missing], "has no image app:2"),
        (
            vec!["--secret", &bob, "--platform", "linux/riscv64", &name],
            "is not available for linux/riscv64",
        ),
        (
            vec!["--secret", "/no/such/file", &name],
            "cannot read the credentials in /no/such/file: No such file",
        ),
        (vec!["--secret", &bob, "no.such.host.invalid/app"], "the name cannot be resolved"),
        (vec!["--secret", &bob, "App"], "image reference \"App\""),
    ] {
        let args = [vec!["pull", "--output", &output], args].concat();
        let (done, text) = bed.run(&args, "").await;
        assert_eq!(done.exit.status, 125, "{text}");
        let line = text.lines().last().unwrap();
        assert!(line.starts_with("bulkhead: ") && line.contains(part), "{part}: {text}");
        assert!(done.stdout.is_empty() && !Path::new(&bed.path("oci")).exists());
    }
    let (done, text) = bed.run(&["pull", "--username", "bob", "--password-stdin", &name], "").await;
    assert!(done.exit.status == 125 && text.contains("it is empty"), "{text}");
    let own = bed.path("");
    let (done, text) = bed.run(&["pull", "--output", &format!("rootfs:{own}"), &name], "").await;
    assert!(done.exit.status == 125 && text.contains("is not an empty directory"), "{text}");
}

#[tokio::test]
async fn plans_and_checks() {
    let bed = Bed::new();
    let seen = Seen::default();
    let image = Image::single(&[1000]);
    let server = registry(image.clone(), &seen);
    let host = server.host();
    let name = format!("{host}/app:1");
    let bob = bed.secret(&host, "bob");
    let eve = bed.secret(&host, "eve");
    let (done, text) =
        bed.run(&["pull", "--dry-run", "--secret", &eve, "--secret", &bob, &name], "").await;
    assert!(done.success());
    let place = |file: &str| {
        format!(
            "{file}: document 1 (Secret default/pull): data[\".dockerconfigjson\"]: entry {host:?}"
        )
    };
    let wanted = format!(
        "image       {name}\nhost        https://{host}/v2\ncredential  user \"eve\" for {host} of {}\ncredential  user \"bob\" for {host} of {}\n",
        place(&eve),
        place(&bob)
    );
    assert_eq!(text, wanted);
    assert_eq!(server.asked().len(), 0);
    let (done, text) = bed.run(&["pull", "--check", "--secret", &bob, &name], "").await;
    assert!(done.success(), "{text}");
    for line in [
        "ok   name",
        "ok   TCP",
        "ok   TLS          none: plain http, loopback host",
        "ok   credential   user \"bob\"",
        "ok   platform     linux/",
    ] {
        assert!(text.contains(line), "{line}: {text}");
    }
    assert!(text.contains(&digest(&image.manifests["1"].1)), "{text}");
    let (done, text) = bed.run(&["pull", "--check", "--secret", &eve, &name], "").await;
    assert_eq!(done.exit.status, 1);
    assert!(
        text.contains("FAIL credential") && text.contains("-    image        not reached"),
        "{text}"
    );
}

#[tokio::test]
async fn a_signal_stops_a_pull_and_nothing_stays() {
    use nix::sys::signal::{Signal, kill};
    let bed = Bed::new();
    let image = Image::single(&[1000]);
    let largest = image.largest().0.clone();
    let served = image.clone();
    let (asked, wait) = std::sync::mpsc::channel();
    let (_hold, held) = std::sync::mpsc::channel::<()>();
    let held = Mutex::new(held);
    let server = Server::plain(move |request: &Request| {
        let mut reply = served.answer(request);
        if request.path.ends_with(&largest) {
            asked.send(()).unwrap();
            // The reply is held back until the test is over.
            assert!(held.lock().unwrap().recv().is_err());
            reply.length = Some(reply.body.len() + 1);
        }
        reply
    });
    let name = format!("{}/app:1", server.host());
    let output = format!("oci:{}", bed.path("oci"));
    let command = Command::new(env!("CARGO_BIN_EXE_bulkhead")).args([
        "pull",
        "--anonymous",
        "--output",
        &output,
        &name,
    ]);
    let child = bed.host.spawn(command).unwrap();
    tokio::task::spawn_blocking(move || wait.recv_timeout(SOON).unwrap()).await.unwrap();
    assert!(Path::new(&bed.path("oci/.pull")).exists());
    kill(nix::unistd::Pid::from_raw(i32::try_from(child.pid).unwrap()), Signal::SIGTERM).unwrap();
    let exit = tokio::time::timeout(SOON, child.exit.wait()).await.unwrap();
    assert_eq!(exit.status, 143);
    assert!(!Path::new(&bed.path("oci")).exists());
}

#[tokio::test]
async fn the_kubelet_is_answered() {
    let bed = Bed::new();
    let secret = bed.secret("reg.example", "bob");
    let request = json!({
        "kind": "CredentialProviderRequest", "apiVersion": "credentialprovider.kubelet.k8s.io/v1",
        "image": "reg.example/team/app:1",
    });
    let path = bed.path("request");
    fs::File::create(&path).unwrap().write_all(request.to_string().as_bytes()).unwrap();
    let command = Command::new(env!("CARGO_BIN_EXE_bulkhead"))
        .args(["credential-provider", "--secret", &secret])
        .stdin(fs::File::open(&path).unwrap().into());
    let done = bed.host.run(command, SOON).await.unwrap();
    assert!(done.success() && done.stderr.is_empty());
    let answer: Value = serde_json::from_slice(&done.stdout).unwrap();
    assert_eq!(
        answer["auth"],
        json!({ "reg.example": { "username": "bob", "password": PLANTED } })
    );
    let (done, text) = bed.run(&["credential-provider", "--secret", &secret], "not json").await;
    assert!(done.exit.status == 125 && done.stdout.is_empty(), "{text}");
}
