//! A VM with KVM and cgroup v2, on a host that lacks them: QEMU emulates a processor with AMD's
//! virtualisation, and Debian's kernel on it has `/dev/kvm` and cgroup v2 alone. Its root is the
//! host's, read-only under a writable layer, so that every program is there.

use std::ffi::OsString;
use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

use super::packages::Packages;
use super::place::{self, Place};
use super::process::{Run, kill_group, until, wait};
use super::{kernel, vm};

const INIT: &str = include_str!("../../nested/init.sh");
const SESSION: &str = include_str!("../../nested/session.sh");

/// The modules that the initramfs loads, each with its dependencies.
const MODULES: [&str; 4] = ["virtio_pci", "virtiofs", "overlay", "virtio_rng"];

/// What to run in the VM, and how.
#[derive(Debug)]
pub(crate) struct Plan {
    /// The program and its arguments.
    pub(crate) command: Vec<OsString>,
    /// Variables of its environment.
    pub(crate) environment: Vec<(&'static str, OsString)>,
    /// How many processors it has.
    pub(crate) processors: u32,
    /// Memory in MiB.
    pub(crate) memory_mib: u32,
    /// How long the VM may run.
    pub(crate) deadline: Duration,
}

/// The outcome of a VM.
#[derive(Debug)]
pub(crate) struct Outcome {
    /// The command's exit code; `None` where the VM crashed before.
    pub(crate) code: Option<u8>,
    /// The lines of its console.
    pub(crate) printed: Vec<String>,
}

/// Runs `plan` in a nested VM whose files are below `place`, and prints its console.
pub(crate) fn run(
    place: &Place,
    packages: &Packages,
    cache: &Path,
    plan: &Plan,
) -> Result<Outcome> {
    ensure!(cfg!(target_arch = "x86_64"), "the nested VM is an x86-64 one");
    let filling = place::fills(cache)?;
    let kernel = Kernel::unpacked(cache)?;
    let emulator = packages.emulator(cache)?;
    drop(filling);
    let sockets = place.run().join("nested");
    let out = place.lib().join("nested");
    for dir in [&sockets, &out] {
        if dir.exists() {
            // An earlier VM's, with its exit code.
            fs::remove_dir_all(dir).with_context(|| format!("cannot remove {}", dir.display()))?;
        }
        fs::create_dir_all(dir).with_context(|| format!("cannot make {}", dir.display()))?;
    }
    let initramfs = initramfs(&kernel, &packages.busybox(), &place.lib().join("initramfs"))?;
    write_session(&out, &kernel, &packages.busybox(), plan)?;
    let shares = [("hostroot", Path::new("/"), "always"), ("out", out.as_path(), "none")];
    let mut servers = Vec::new();
    for (tag, dir, cache) in shares {
        servers.push(share(
            &sockets.join(tag),
            dir,
            cache,
            &place.lib().join(format!("{tag}.log")),
        )?);
    }
    let printed = boot(emulator, &kernel, &initramfs, &sockets, plan);
    for server in &mut servers {
        kill_group(server);
    }
    let printed = printed?;
    let code = match fs::read_to_string(out.join("code")) {
        Ok(code) => Some(code.trim().parse()?),
        Err(_) => None,
    };
    Ok(Outcome { code, printed })
}

/// An unpacked kernel package.
#[derive(Debug)]
struct Kernel {
    tree: PathBuf,
    release: String,
}

impl Kernel {
    /// Unpacks the package under `cache` unless it has been unpacked.
    fn unpacked(cache: &Path) -> Result<Self> {
        let deb = kernel::deb(cache)?;
        let tree = cache.join("nested").join(deb.file_stem().context("a file without a name")?);
        if !tree.exists() {
            let part = tree.with_extension("part");
            let _ = fs::remove_dir_all(&part);
            fs::create_dir_all(&part)?;
            Run::new("dpkg").arg("-x").arg(&deb).arg(&part).ok()?;
            if !part.join("lib").exists() {
                std::os::unix::fs::symlink("usr/lib", part.join("lib"))?;
            }
            Run::new("depmod").arg("-b").arg(&part).arg(release(&part)?).ok()?;
            fs::rename(&part, &tree)?;
        }
        Ok(Self { release: release(&tree)?, tree })
    }

    fn image(&self) -> PathBuf {
        self.tree.join("boot").join(format!("vmlinuz-{}", self.release))
    }

    fn modules(&self) -> PathBuf {
        self.tree.join("lib/modules").join(&self.release)
    }

    /// The files of `module` and its dependencies, in the order in which they are loaded.
    fn files(&self, module: &str) -> Result<Vec<PathBuf>> {
        let run = Run::new("modprobe").arg("-d").arg(&self.tree).args(["-S", &self.release]);
        let text = run.args(["--show-depends", module]).ok()?;
        let files = text.lines().filter_map(|line| line.strip_prefix("insmod "));
        Ok(files.filter_map(|rest| Some(PathBuf::from(rest.split_whitespace().next()?))).collect())
    }
}

fn release(tree: &Path) -> Result<String> {
    let dir = tree.join("lib/modules");
    let mut found = fs::read_dir(&dir).with_context(|| dir.display().to_string())?;
    let entry = found.next().with_context(|| format!("{} is empty", dir.display()))??;
    Ok(entry.file_name().to_string_lossy().into_owned())
}

/// Packs `/init`, a busybox and the modules; returns the archive.
fn initramfs(kernel: &Kernel, busybox: &Path, dir: &Path) -> Result<PathBuf> {
    for below in ["bin", "modules"] {
        fs::create_dir_all(dir.join(below))?;
    }
    fs::copy(busybox, dir.join("bin/busybox"))?;
    executable(&dir.join("init"), INIT)?;
    let mut order: Vec<String> = Vec::new();
    for module in MODULES {
        for file in kernel.files(module)? {
            let name = file.file_stem().unwrap_or_default().to_string_lossy().into_owned();
            let name = format!("{}.ko", name.trim_end_matches(".ko"));
            if order.contains(&name) {
                continue;
            }
            let to = dir.join("modules").join(&name);
            match file.extension().is_some_and(|ending| ending == "xz") {
                true => fs::write(&to, Run::new("xz").arg("-dc").arg(&file).finish()?.stdout)?,
                false => fs::copy(&file, &to).map(drop)?,
            }
            order.push(name);
        }
    }
    fs::write(dir.join("modules/order"), format!("{}\n", order.join("\n")))?;
    let list = Run::new("find").arg(".").dir(dir).ok()?;
    let packed = Run::new("cpio").args(["-o", "-H", "newc", "--quiet"]).dir(dir).stdin(list);
    let packed = packed.finish()?;
    ensure!(packed.status.success(), "cpio: {}", packed.err());
    let archive = dir.with_extension("cpio");
    fs::write(&archive, packed.stdout)?;
    Ok(archive)
}

/// Writes what the VM reads from the shared folder `out`.
fn write_session(out: &Path, kernel: &Kernel, busybox: &Path, plan: &Plan) -> Result<()> {
    let here = std::env::current_dir()?;
    let mut script = format!("cd {}\n", quoted(here.as_os_str())?);
    for (key, value) in &plan.environment {
        script.push_str(&format!("export {key}={}\n", quoted(value)?));
    }
    let words = plan.command.iter().map(|word| quoted(word)).collect::<Result<Vec<_>>>()?;
    script.push_str(&format!("exec {}\n", words.join(" ")));
    fs::write(out.join("command.sh"), script)?;
    fs::write(out.join("modules"), kernel.modules().display().to_string())?;
    fs::copy(busybox, out.join("busybox"))?;
    executable(&out.join("session.sh"), SESSION)
}

fn executable(path: &Path, text: &str) -> Result<()> {
    use std::os::unix::fs::PermissionsExt;
    fs::write(path, text)?;
    Ok(fs::set_permissions(path, fs::Permissions::from_mode(0o755))?)
}

/// Quotes `word` for a shell.
fn quoted(word: &std::ffi::OsStr) -> Result<String> {
    let text = word.to_str().with_context(|| format!("{word:?} is no UTF-8"))?;
    Ok(format!("'{}'", text.replace('\'', "'\\''")))
}

/// A virtiofsd that serves `dir` on `socket`.
fn share(socket: &Path, dir: &Path, cache: &str, log: &Path) -> Result<Child> {
    let program = vm::virtiofsd()?;
    let run = Run::new(&program);
    // Debian 12 has the C implementation, which was a part of QEMU.
    let run = if program.starts_with("/usr/lib/qemu") {
        let path = |key: &str, value: &Path| format!("{key}{}", value.display());
        let run = run.args(["-f", &path("--socket-path=", socket), "-o", &path("source=", dir)]);
        run.args(["-o", &format!("cache={cache}"), "-o", "sandbox=chroot"])
    } else {
        let run = run.arg("--socket-path").arg(socket).arg("--shared-dir").arg(dir);
        run.args(["--cache", cache, "--sandbox", "none", "--inode-file-handles=never"])
    };
    let mut child = run.daemon(log)?;
    let listens = until("virtiofsd listens", Duration::from_secs(10), || {
        if let Some(status) = child.try_wait()? {
            let text = fs::read_to_string(log).unwrap_or_default();
            bail!("{} exited: {status}: {text}", program.display());
        }
        Ok(socket.exists().then_some(()))
    });
    listens.inspect_err(|_| kill_group(&mut child))?;
    Ok(child)
}

/// Boots, prints the serial console, and waits until QEMU exits. Returns what it printed.
fn boot(
    (program, firmware): (PathBuf, Vec<PathBuf>),
    kernel: &Kernel,
    initramfs: &Path,
    sockets: &Path,
    plan: &Plan,
) -> Result<Vec<String>> {
    let memory = plan.memory_mib.to_string();
    let mut run = Run::new(program)
        .args(["-nodefaults", "-no-user-config", "-display", "none", "-serial", "stdio"])
        .args(["-no-reboot", "-m", &memory, "-smp", &plan.processors.to_string()])
        .args(["-accel", "tcg,thread=multi,tb-size=512"])
        .args(["-M", "q35,memory-backend=mem,vmport=off,hpet=off", "-cpu", "max,+svm,+npt"])
        .args(["-object", &format!("memory-backend-memfd,id=mem,size={memory}M,share=on")])
        .arg("-kernel")
        .arg(kernel.image())
        .arg("-initrd")
        .arg(initramfs)
        .args([
            "-append",
            "console=ttyS0 quiet panic=-1 cryptomgr.notests mitigations=off nokaslr \
            no_timer_check tsc=reliable apparmor=0 kvm_amd.npt=1",
        ])
        .args(["-device", "virtio-rng-pci"]);
    for dir in firmware {
        run = run.arg("-L").arg(dir);
    }
    for tag in ["hostroot", "out"] {
        let socket = sockets.join(tag);
        let chardev = format!("socket,id={tag},path={}", socket.display());
        let device = format!("vhost-user-fs-pci,chardev={tag},tag={tag},queue-size=512");
        run = run.args(["-chardev", &chardev, "-device", &device]);
    }
    let mut child = run.spawn(Stdio::null(), Stdio::piped(), Stdio::inherit())?;
    let console = child.stdout.take().context("QEMU without an output")?;
    let printer = std::thread::spawn(move || {
        let mut reader = BufReader::new(console);
        let mut line = Vec::new();
        let mut printed = Vec::new();
        while reader.read_until(b'\n', &mut line).is_ok_and(|count| count > 0) {
            let text = String::from_utf8_lossy(&line).trim_end().to_owned();
            println!("{text}");
            printed.push(text);
            line.clear();
        }
        printed
    });
    let exited = wait(&mut child, plan.deadline);
    kill_group(&mut child);
    let printed = printer.join().unwrap_or_default();
    match exited? {
        Some(status) => ensure!(status.success(), "QEMU exited: {status}"),
        None => bail!("the nested VM still ran after {:?}", plan.deadline),
    }
    Ok(printed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shell_reads_a_quoted_word_as_it_is() {
        let word = "it's $HOME `x` \"y\" \\";
        let script = format!("printf %s {}", quoted(word.as_ref()).unwrap());
        assert_eq!(Run::new("sh").args(["-c", &script]).ok().unwrap(), word);
    }
}
