//! The images that the suite names, made here under the same names. The suite has the names built
//! in, and checks the contents of some: which tags are one image, which user it has.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use crate::bed::image::{Archive, BUSYBOX, Blob, Layer, PAUSE};
use crate::bed::packages::Packages;
use crate::bed::process::Run;

const TOOLS: &str = include_str!("../../critest/tools.c");

const STAGING: &str = "gcr.io/k8s-staging-cri-tools";
const E2E: &str = "registry.k8s.io/e2e-test-images";

/// The repository of the image that the suite pulls by digest.
pub(super) const BY_DIGEST: &str = "test-image-digest";

const PASSWD: &str = "root:x:0:0:root:/root:/bin/sh\nwww-data:x:33:33:www-data:/var/www:/bin/false\n\
    nobody:x:65534:65534:nobody:/home:/bin/false\n";
const GROUP: &str = "root:x:0:\nwww-data:x:33:\nusers:x:100:\nnogroup:x:65534:\n";

/// What images are made of.
#[derive(Debug)]
pub(super) struct Parts {
    /// The static busybox and the names of its applets.
    busybox: Vec<u8>,
    applets: Vec<String>,
    /// The shell, and the libraries it is linked with by their paths.
    shell: Vec<u8>,
    libraries: Vec<(String, Vec<u8>)>,
    /// The program of `tools.c`.
    tools: Vec<u8>,
}

/// Two OCI archives: all the images, which are pulled, and those that are imported beforehand.
#[derive(Debug)]
pub(super) struct Images {
    /// Every image under all its names.
    pub(super) all: Vec<u8>,
    /// The images of containers that no spec pulls.
    pub(super) imported: Vec<u8>,
    /// The digest of the manifest that the suite pulls by digest.
    pub(super) by_digest: String,
}

impl Parts {
    /// Gathers the programs; `dir` is where `tools.c` is compiled.
    pub(super) fn gather(packages: &Packages, cache: &Path, dir: &Path) -> Result<Self> {
        let read = |path: &Path| fs::read(path).with_context(|| format!("read {}", path.display()));
        let busybox = packages.busybox();
        let list = Run::new(&busybox).arg("--list").ok()?;
        // The web server is called httpd as well.
        let other = |applet: &&str| !["busybox", "httpd", "sh"].contains(applet);
        let applets = list.lines().filter(other).map(str::to_owned).collect();
        let shell = packages.shell(cache)?;
        let libraries = libraries(&Run::new("ldd").arg(&shell).ok()?);
        ensure!(!libraries.is_empty(), "ldd {}: names no library", shell.display());
        let with_content = |path: PathBuf| -> Result<_> {
            Ok((path.display().to_string().trim_start_matches('/').to_owned(), read(&path)?))
        };
        Ok(Self {
            busybox: read(&busybox)?,
            applets,
            shell: read(&shell)?,
            libraries: libraries.into_iter().map(with_content).collect::<Result<_>>()?,
            tools: read(&compile(dir)?)?,
        })
    }

    /// Makes the images.
    pub(super) fn images(&self) -> Result<Images> {
        let mut all = Archive::new();
        let mut imported = Archive::new();
        let by_digest = self.write(&mut all, true)?;
        self.write(&mut imported, false)?;
        Ok(Images { all: all.finish()?, imported: imported.finish()?, by_digest })
    }

    /// Adds the images that are imported, and `pulled` ones too if asked for; returns the digest
    /// of the one that the suite pulls by digest.
    fn write(&self, archive: &mut Archive, pulled: bool) -> Result<String> {
        let base = archive.layer(&self.base()?)?;
        let shell = json!({ "Cmd": ["sh"] });
        let pause = archive.layer(&self.pause()?)?;
        let sleep = json!({ "Entrypoint": ["/busybox", "sleep", "2147483647"] });
        // Specs remove pause:3.9 and count its tags, so that Pods must run another image.
        let mut own = sleep.clone();
        own["Labels"] = json!({ "bulkhead.test": "the Pods' own" });
        archive.image(&[PAUSE], std::slice::from_ref(&pause), &own)?;
        archive.image(&[BUSYBOX], std::slice::from_ref(&base), &shell)?;
        self.servers(archive, &base)?;
        users(archive, &base)?;
        if !pulled {
            return Ok(String::new());
        }
        let pauses = ["registry.k8s.io/pause:3.9", "k8s.gcr.io/pause:3.9"];
        archive.image(&pauses, &[pause], &sleep)?;
        for name in ["test-image-1", "test-image-2", "test-image-3", "test-image-latest"] {
            one_file(archive, &base, &[&format!("{name}:latest")], name)?;
        }
        for tag in ["test", "all"] {
            one_file(archive, &base, &[&format!("test-image-tag:{tag}")], tag)?;
        }
        let tags = ["test-image-tags:1", "test-image-tags:2", "test-image-tags:3"];
        one_file(archive, &base, &tags, "tags")?;
        one_file(archive, &base, &[&format!("{BY_DIGEST}:latest")], BY_DIGEST)
    }

    fn servers(&self, archive: &mut Archive, base: &Blob) -> Result<()> {
        let mut add = |names: &[&str], program: &str, mode: u32, config: Value| -> Result<()> {
            let mut layer = Layer::new();
            layer.file(program, &self.tools, mode)?;
            let layer = archive.layer(&layer.finish()?)?;
            archive.image(names, &[base.clone(), layer], &config)?;
            Ok(())
        };
        let port = json!({ "80/tcp": {} });
        let nginx = json!({ "Cmd": ["nginx", "-g", "daemon off;"], "ExposedPorts": port });
        add(&[&format!("{E2E}/nginx:1.14-2")], "usr/sbin/nginx", 0o755, nginx)?;
        let architecture = crate::bed::image::architecture();
        let host_nginx = format!("{STAGING}/hostnet-nginx-{architecture}:latest");
        add(&[&host_nginx], "usr/sbin/nginx", 0o755, json!({ "Cmd": ["nginx", "12003"] }))?;
        let httpd = json!({ "Cmd": ["/usr/sbin/httpd"], "ExposedPorts": port });
        add(&[&format!("{E2E}/httpd:2.4.39-4")], "usr/sbin/httpd", 0o755, httpd)?;
        let entry = json!({ "Entrypoint": ["/nonewprivs"] });
        add(&[&format!("{E2E}/nonewprivs:1.3")], "nonewprivs", 0o4755, entry)
    }

    /// Programs as hard links: a spec mounts over one of them, which must not change the others.
    fn base(&self) -> Result<Vec<u8>> {
        let mut layer = Layer::new();
        for dir in [
            "bin", "dev", "etc", "home", "proc", "run", "sbin", "sys", "usr", "usr/bin", "usr/sbin",
        ] {
            layer.dir(dir, 0o755)?;
        }
        for dir in ["var", "var/run"] {
            layer.dir(dir, 0o755)?;
        }
        layer.dir("root", 0o700)?;
        layer.dir("tmp", 0o1777)?;
        layer.file("bin/busybox", &self.busybox, 0o755)?;
        for applet in &self.applets {
            layer.hard_link(&format!("bin/{applet}"), "bin/busybox")?;
        }
        layer.file("bin/sh", &self.shell, 0o755)?;
        for (path, content) in &self.libraries {
            for (at, _) in path.match_indices('/') {
                layer.dir(&path[..at], 0o755)?;
            }
            layer.file(path, content, 0o755)?;
        }
        layer.file("bin/ipcs", &self.tools, 0o755)?;
        layer.hard_link("bin/pgrep", "bin/ipcs")?;
        layer.link("usr/bin/env", "../../bin/env")?;
        layer.file("etc/passwd", PASSWD.as_bytes(), 0o644)?;
        layer.file("etc/group", GROUP.as_bytes(), 0o644)?;
        layer.finish()
    }

    fn pause(&self) -> Result<Vec<u8>> {
        let mut layer = Layer::new();
        for dir in ["dev", "etc", "proc", "sys"] {
            layer.dir(dir, 0o755)?;
        }
        layer.file("busybox", &self.busybox, 0o755)?;
        layer.finish()
    }
}

/// An image of its own digest: the base and a file that is called `file`.
fn one_file(archive: &mut Archive, base: &Blob, names: &[&str], file: &str) -> Result<String> {
    let mut layer = Layer::new();
    layer.file(file, b"", 0o644)?;
    let layer = archive.layer(&layer.finish()?)?;
    let names: Vec<String> = names.iter().map(|name| format!("{STAGING}/{name}")).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    archive.image(&names, &[base.clone(), layer], &json!({ "Cmd": ["sh"] }))
}

/// Images whose config names a user.
fn users(archive: &mut Archive, base: &Blob) -> Result<()> {
    let named = [
        ("uid", "1002"),
        ("username", "www-data"),
        ("uid-group", "1003:1004"),
        ("username-group", "www-data:1004"),
    ];
    for (kind, user) in named {
        let name = format!("{STAGING}/test-image-user-{kind}:latest");
        let config = json!({ "Cmd": ["sh"], "User": user });
        archive.image(&[&name], std::slice::from_ref(base), &config)?;
    }
    let mut layer = Layer::new();
    let passwd = format!("{PASSWD}default-user:x:1000:1000::/home/default-user:/bin/sh\n");
    let group = "default-user:x:1000:\ngroup-defined-in-image:x:50000:default-user\n";
    layer.file("etc/passwd", passwd.as_bytes(), 0o644)?;
    layer.file("etc/group", format!("{GROUP}{group}").as_bytes(), 0o644)?;
    let layer = archive.layer(&layer.finish()?)?;
    let name = format!("{STAGING}/test-image-predefined-group:latest");
    let config = json!({ "Cmd": ["sh"], "User": "1000" });
    archive.image(&[&name], &[base.clone(), layer], &config)?;
    Ok(())
}

/// Compiles `tools.c` in `dir`.
fn compile(dir: &Path) -> Result<PathBuf> {
    let source = dir.join("tools.c");
    let program = dir.join("tools");
    fs::create_dir_all(dir)?;
    fs::write(&source, TOOLS)?;
    let cc = Run::new("cc").args(["-static", "-O2", "-s", "-o"]).arg(&program).arg(&source);
    cc.ok().context("the images' own program: are gcc and libc6-dev installed?")?;
    Ok(program)
}

/// The files that `ldd` printed.
fn libraries(text: &str) -> Vec<PathBuf> {
    let paths = text.split_whitespace().filter(|word| word.starts_with('/'));
    paths.map(PathBuf::from).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;
    use std::io::Read;

    fn parts() -> Parts {
        Parts {
            busybox: b"busybox".to_vec(),
            applets: vec!["ls".into()],
            shell: b"shell".to_vec(),
            libraries: vec![("lib/t/libc.so.6".into(), b"c".to_vec())],
            tools: b"tools".to_vec(),
        }
    }

    /// Manifest digests by name.
    fn names(archive: &[u8]) -> BTreeMap<String, String> {
        let mut tar = tar::Archive::new(archive);
        let mut index = String::new();
        for entry in tar.entries().unwrap() {
            let mut entry = entry.unwrap();
            if entry.path().unwrap().ends_with("index.json") {
                entry.read_to_string(&mut index).unwrap();
            }
        }
        let index: Value = serde_json::from_str(&index).unwrap();
        let text = |value: &Value| value.as_str().unwrap().to_owned();
        let manifests = index["manifests"].as_array().unwrap().iter();
        let named = manifests
            .map(|m| (text(&m["annotations"]["io.containerd.image.name"]), text(&m["digest"])));
        named.collect()
    }

    #[test]
    fn tags_are_one_image_or_several_as_the_specs_say() {
        let images = parts().images().unwrap();
        let all = names(&images.all);
        let of = |name: &str| &all[&format!("{STAGING}/{name}")];
        assert_eq!(of("test-image-tags:1"), of("test-image-tags:3"));
        assert_ne!(of("test-image-tag:test"), of("test-image-tag:all"));
        assert_ne!(of("test-image-1:latest"), of("test-image-2:latest"));
        assert_eq!(all["registry.k8s.io/pause:3.9"], all["k8s.gcr.io/pause:3.9"]);
        assert_ne!(all["registry.k8s.io/pause:3.9"], all[PAUSE]);
        assert_eq!(&images.by_digest, of("test-image-digest:latest"));
    }

    #[test]
    fn what_a_spec_pulls_is_not_there_beforehand() {
        let imported = names(&parts().images().unwrap().imported);
        assert!(imported.contains_key(BUSYBOX) && imported.contains_key(PAUSE));
        let pulled = |name: &&String| name.contains("test-image-t") || name.contains("pause:3.9");
        assert_eq!(imported.keys().find(pulled), None);
    }

    #[test]
    fn libraries_are_told_by_their_paths() {
        let text = "\tlinux-vdso.so.1 (0x7)\n\tlibc.so.6 => /lib/t/libc.so.6 (0x7)\n\t/lib64/ld.so.2 (0x7)\n";
        assert_eq!(libraries(text), [Path::new("/lib/t/libc.so.6"), Path::new("/lib64/ld.so.2")]);
    }
}
