//! Private images: the Secret and the Pod that people have, from a registry with users and TLS of
//! its own authority, through the node admin's tool.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use k8s_cri::v1 as api;

use super::case::{Case, cases};
use crate::bed::process::{Finished, Run, until};
use crate::bed::registry::{self, PASSWORD, Registry, USER};
use crate::bed::version::Version;
use crate::bed::{image, place, traces};
use crate::client::pod::{Pod, shell};
use crate::client::stage::{Stage, skip};

pub(super) const CASES: &[Case] = cases![private_image, private_layout_is_imported];

/// How long one command of the tool may take; a VM may be emulated.
const PATIENCE: Duration = Duration::from_secs(200);
/// What `bulkhead` exits with when it could not do what it was asked.
const FAILED: i32 = 125;
/// Larger files are blobs and file systems of images.
const SEARCHED: u64 = 64 << 20;

/// A private registry with one image, and the tool beside it.
struct Shop {
    registry: Registry,
    bulkhead: PathBuf,
    dir: PathBuf,
}

impl Shop {
    fn open(stage: &Stage) -> Result<Self> {
        let Some(bulkhead) = place::built("bulkhead") else {
            return skip("bulkhead has not been built");
        };
        let dir = stage.folder()?;
        let program = stage.node.registry();
        let open = Registry::open(program, &dir)?;
        let name = format!("{}/team/busybox:1", open.host());
        let push = stage.node.ctr("k8s.io").args(["images", "push", "--plain-http"]);
        push.args([&name, image::BUSYBOX]).ok()?;
        drop(open);
        let shop = Self { registry: Registry::private(program, &dir)?, bulkhead, dir };
        let hosts = stage.node.certs().join(shop.registry.host());
        fs::create_dir_all(&hosts)?;
        let ca = registry::authority(&shop.dir);
        // containerd 1.6 needs the host named.
        let url = format!("https://{}", shop.registry.host());
        let text = format!("server = \"{url}\"\n\n[host.\"{url}\"]\nca = {ca:?}\n");
        fs::write(hosts.join("hosts.toml"), text)?;
        Ok(shop)
    }

    fn image(&self) -> String {
        format!("{}/team/busybox:1", self.registry.host())
    }

    /// The tool on the stage's containerd, its state in a folder of this case's.
    fn bulkhead(&self, stage: &Stage, words: &[&str]) -> Result<Finished> {
        let run = Run::new(&self.bulkhead).clean_env().env("HOME", &self.dir);
        let run = run.env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin");
        let run = run.arg("--runtime-endpoint").arg(stage.node.socket());
        let run = run.arg("--state-dir").arg(self.dir.join("state"));
        let done = run.args(words).deadline(PATIENCE).finish()?;
        clean("the tool's output", &[done.stdout.as_slice(), &done.stderr].concat())?;
        Ok(done)
    }

    /// As `kubectl create secret docker-registry` writes it, for bob with that password.
    fn secret(&self, password: &str) -> String {
        let auth = STANDARD.encode(format!("{USER}:{password}"));
        let config = format!(
            "{{\"auths\":{{\"{}\":{{\"username\":\"{USER}\",\"password\":\"{password}\",\"auth\":\"{auth}\"}}}}}}",
            self.registry.host()
        );
        format!(
            "apiVersion: v1\nkind: Secret\nmetadata:\n  name: pull\n\
             type: kubernetes.io/dockerconfigjson\ndata:\n  .dockerconfigjson: {}\n",
            STANDARD.encode(&config)
        )
    }

    /// A file of two documents: the Secret, if there is one, and the Pod that names it.
    fn write(&self, stage: &Stage, name: &str, secret: &str) -> Result<String> {
        let path = self.dir.join(format!("{name}.yaml"));
        let text = format!(
            "{secret}---\napiVersion: v1\nkind: Pod\nmetadata:\n  name: {name}\nspec:\n\
             \x20 runtimeClassName: {}\n  restartPolicy: Never\n  imagePullSecrets:\n    - name: pull\n\
             \x20 containers:\n    - name: main\n      image: {}\n      imagePullPolicy: Always\n\
             \x20     command: [sh, -c, \"echo hello from a private image; exec sleep 1000\"]\n",
            stage.handler.name(),
            self.image()
        );
        fs::write(&path, text)?;
        Ok(path.display().to_string())
    }
}

/// Removes the Secrets: the next case searches the whole bed for their password.
impl Drop for Shop {
    fn drop(&mut self) {
        if let Err(e) = fs::remove_dir_all(&self.dir) {
            eprintln!("    clean-up of {}: {e}", self.dir.display());
        }
    }
}

/// The base64 of `text` at each of its three alignments within an encoded text.
fn within_base64(text: &str) -> [String; 3] {
    [0, 1, 2].map(|before| {
        let whole = STANDARD.encode([&vec![0; before], text.as_bytes()].concat());
        let first = (before * 8).div_ceil(6);
        let end = (before + text.len()) * 8 / 6;
        whole[first..end].to_owned()
    })
}

/// Every form in which bob's password could show: as it is, in a header, in a Secret's data.
fn forms() -> Vec<String> {
    let pair = STANDARD.encode(format!("{USER}:{PASSWORD}"));
    let encoded = [within_base64(PASSWORD), within_base64(&pair)].concat();
    [vec![PASSWORD.to_owned(), pair], encoded].concat()
}

fn clean(what: &str, bytes: &[u8]) -> Result<()> {
    for form in forms() {
        ensure!(
            memchr::memmem::find(bytes, form.as_bytes()).is_none(),
            "{what} shows the password"
        );
    }
    Ok(())
}

/// Nothing below `dir` shows the password, but for what this case wrote itself.
fn clean_files(dir: &Path, own: &Path) -> Result<u32> {
    let mut searched = 0;
    for entry in fs::read_dir(dir)?.flatten() {
        let path = entry.path();
        // It may have been removed meanwhile.
        let Ok(found) = path.symlink_metadata() else { continue };
        let written = path.starts_with(own) && path.extension().is_some_and(|it| it == "yaml");
        let stored = path.ends_with("storage") || path.ends_with("rootfs");
        if found.is_dir() && !stored {
            searched += clean_files(&path, own)?;
        } else if found.is_file() && found.len() <= SEARCHED && !written {
            clean(&path.display().to_string(), &fs::read(&path).unwrap_or_default())?;
            searched += 1;
        }
    }
    Ok(searched)
}

/// No process of the bed shows it to other users of the machine.
fn clean_processes(stage: &Stage) -> Result<()> {
    for (pid, line) in traces::processes(stage.node.place()) {
        clean(&format!("the arguments of {line}"), line.as_bytes())?;
        let environ = fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
        clean(&format!("the environment of {line}"), &environ)?;
    }
    Ok(())
}

/// The run failed with one line on the standard error that contains `part`, and left no Pod.
fn refused(stage: &Stage, done: &Finished, part: &str) -> Result<()> {
    let error = done.err();
    ensure!(done.code() == FAILED, "exit code {}: {error}", done.code());
    let chatter = |line: &&str| {
        ["bulkhead: note: ", "bulkhead: pulling "].iter().any(|start| line.starts_with(start))
    };
    let lines: Vec<_> = error.lines().filter(|line| !chatter(line)).collect();
    ensure!(lines.len() == 1 && lines[0].starts_with("bulkhead: "), "not one line: {error}");
    ensure!(lines[0].contains(part), "{error}");
    ensure!(stage.cri.pods()?.is_empty(), "a Pod is left");
    Ok(())
}

/// The Secret and the Pod run as they are; without the Secret, or with a wrong password, one line
/// is the error; and the password is nowhere on the machine but in the file with the Secret.
fn private_image(stage: &Stage) -> Result<()> {
    let shop = Shop::open(stage)?;
    let anonymous = shop.write(stage, "anonymous", "")?;
    let done = shop.bulkhead(stage, &["play", &anonymous])?;
    let expected = match stage.node.version {
        Version::V16 => "401 Unauthorized",
        Version::V17 | Version::V21 => "no basic auth credentials",
    };
    refused(stage, &done, expected)?;
    let wrong = shop.write(stage, "wrong", &shop.secret("not-his-password"))?;
    let done = shop.bulkhead(stage, &["play", &wrong])?;
    refused(stage, &done, "not pulled with user \"bob\" of ")?;
    ensure!(done.err().contains(&format!("pull image {}: ", shop.image())), "{}", done.err());
    ensure!(done.err().contains("401 Unauthorized"), "{}", done.err());
    ensure!(!done.err().contains("not-his-password"), "the wrong password is shown");

    let right = shop.write(stage, "private", &shop.secret(PASSWORD))?;
    pulled(stage, &shop, &right)?;
    let done = shop.bulkhead(stage, &["play", "--detach", &right])?;
    let end = played(stage, &shop, &done);
    let down = shop.bulkhead(stage, &["down", "--grace", "0", "private"])?;
    end?;
    ensure!(down.code() == 0, "down: {}", down.err());
    ensure!(stage.cri.pods()?.is_empty(), "a Pod is left");
    clean_files(&stage.node.lib(), &shop.dir)?;
    Ok(())
}

/// The same file is a credential for `pull`, whose output has the user and the host.
fn pulled(stage: &Stage, shop: &Shop, file: &str) -> Result<()> {
    let handler = stage.handler.name();
    let image = shop.image();
    let certs = stage.node.certs().display().to_string();
    let pull = |words: &[&str]| {
        let all = [&["pull", "--secret", file, "--certs-dir", &certs], words, &[&image]].concat();
        shop.bulkhead(stage, &all)
    };
    let done = pull(&["--verbose", "--handler", handler])?;
    ensure!(done.code() == 0 && done.out().starts_with("sha256:"), "pull: {}", done.err());
    let done = pull(&["--handler", "no-such-handler"])?;
    refused(stage, &done, "the runtime has no handler \"no-such-handler\"; it has ")?;
    let done = pull(&["--dry-run"])?;
    let planned = done.out().contains("credential  user \"bob\" for 127.0.0.1:");
    ensure!(done.code() == 0 && planned, "--dry-run: {}{}", done.out(), done.err());
    let done = pull(&["--check"])?;
    let fine = ["TLS", "credential", "image", "platform"].map(|step| format!("ok   {step:<13}"));
    let passed = fine.iter().all(|line| done.out().contains(line));
    ensure!(done.code() == 0 && passed, "--check: {}{}", done.out(), done.err());
    Ok(())
}

fn played(stage: &Stage, shop: &Shop, done: &Finished) -> Result<()> {
    ensure!(done.code() == 0, "play: exit code {}: {}", done.code(), done.err());
    let pods = stage.cri.pods()?;
    ensure!(pods.len() == 1, "Pods {pods:?}");
    stage.node.expect_shim("k8s.io", &pods[0]);
    until("the container's output", Duration::from_secs(60), || {
        let logs = shop.bulkhead(stage, &["logs", "private"])?;
        Ok(logs.out().contains("hello from a private image").then_some(()))
    })?;
    clean_processes(stage)?;
    let run = stage.node.run();
    let lib = stage.node.lib();
    let searched = clean_files(&run, &shop.dir)? + clean_files(&lib, &shop.dir)?;
    let log = fs::read_to_string(stage.node.log())?;
    ensure!(
        searched > 10 && log.contains("level=debug") && log.contains(&shop.image()),
        "{searched} files searched, and containerd's log does not have the pull"
    );
    let log = fs::read_to_string(registry::log(&shop.dir))?;
    ensure!(log.contains("/v2/team/busybox/blobs/"), "the registry was not asked for the image");
    Ok(())
}

/// What `bulkhead pull --output oci:` wrote is an image for containerd: imported it runs.
fn private_layout_is_imported(stage: &Stage) -> Result<()> {
    let shop = Shop::open(stage)?;
    let secret = shop.dir.join("secret.yaml");
    fs::write(&secret, shop.secret(PASSWORD))?;
    let image = shop.image();
    let layout = shop.dir.join("layout");
    let secret = secret.display().to_string();
    let certs = stage.node.certs().display().to_string();
    let output = format!("oci:{}", layout.display());
    let words = ["pull", "--secret", &secret, "--certs-dir", &certs, "--output", &output, &image];
    let done = shop.bulkhead(stage, &words)?;
    ensure!(done.code() == 0, "pull: {}", done.err());
    let archive = shop.dir.join("layout.tar");
    Run::new("tar").arg("-C").arg(&layout).arg("-cf").arg(&archive).arg(".").ok()?;
    stage.node.ctr("k8s.io").args(["images", "import"]).arg(&archive).ok()?;
    let listed = stage.node.ctr("k8s.io").args(["images", "ls"]).ok()?;
    let line = listed.lines().find(|line| line.starts_with(&image)).context("not imported")?;
    let digest = done.out().trim().to_owned();
    ensure!(line.contains(&digest), "the image is not {digest}: {line}");
    let pod = Pod::run(stage)?;
    let mut config = shell("echo imported");
    config.image = Some(api::ImageSpec { image, ..Default::default() });
    let container = pod.start("main", config)?;
    container.logged("imported")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_password_is_found_wherever_it_is() {
        for before in ["", "a", "ab", "abc"] {
            let text = format!("{before}{PASSWORD} and more");
            for shown in [text.clone(), STANDARD.encode(&text)] {
                assert!(clean("it", shown.as_bytes()).is_err(), "{shown}");
            }
            let pair = STANDARD.encode(format!("{USER}:{PASSWORD}"));
            let twice = STANDARD.encode(format!("{before}{pair} and more"));
            assert!(clean("it", twice.as_bytes()).is_err(), "{twice}");
        }
        assert!(clean("it", b"another password").is_ok());
    }
}
