//! Whole builds from fake packages.

use std::collections::BTreeMap;
use std::error::Error as _;
use std::fs;
use std::io::Read as _;
use std::path::Path;

use agent_api::AGENT_MARK;

use super::fixtures::{self, RELEASE, Segment, deb, elf, module, module_for, plain, xz, zstd};
use super::*;

const CONTROL: &str =
    "Package: linux-image-6.1.0-9-cloud-amd64\nVersion: 6.1.27-1\nArchitecture: amd64\n";

fn agent(dir: &Path) -> AgentProgram {
    let mut bytes = elf(&[Segment::Load(b"agent")]);
    bytes.extend_from_slice(AGENT_MARK.as_bytes());
    fs::write(dir.join("agent"), bytes).unwrap();
    AgentProgram::read(&dir.join("agent")).unwrap()
}

/// The files of a package whose virtio_pci, fuse and overlay are modules.
fn files() -> Vec<(String, Vec<u8>)> {
    let dir = format!("./usr/lib/modules/{RELEASE}");
    let names = ["virtio_blk", "virtio_net", "vmw_vsock_virtio_transport", "virtiofs", "erofs"];
    let builtin =
        names.map(|name| format!("kernel/x/{name}.ko\n")).concat() + "kernel/fs/ext4/ext4.ko\n";
    vec![
        (format!("./boot/vmlinuz-{RELEASE}"), fixtures::bzimage(&fixtures::vmlinux_6_1())),
        (format!("{dir}/modules.builtin"), builtin.into_bytes()),
        (format!("{dir}/kernel/virtio_pci.ko"), module("virtio,virtio-ring")),
        (format!("{dir}/kernel/virtio-ring.ko.xz"), xz(&fixtures::signed(&module("virtio"), b"s"))),
        (format!("{dir}/kernel/virtio.ko"), module("")),
        (format!("{dir}/kernel/fuse.ko"), module("")),
        (format!("{dir}/kernel/overlay.ko"), module(";softdep=pre: late absent post: never")),
        (format!("{dir}/kernel/late.ko"), module("")),
        (format!("{dir}/kernel/never.ko"), module("")),
        (format!("{dir}/kernel/veth.ko"), module("")),
    ]
}

fn package(files: &[(String, Vec<u8>)]) -> Vec<u8> {
    let files: Vec<_> = files.iter().map(|(path, bytes)| (path.as_str(), bytes.clone())).collect();
    deb(CONTROL, &files, plain)
}

fn plan(dir: &Path, package: &[u8]) -> Plan {
    fs::write(dir.join("kernel.deb"), package).unwrap();
    let kernel = KernelSource::Deb(dir.join("kernel.deb"));
    Plan {
        output: dir.join("guest"),
        kernel,
        agent: agent(dir),
        extra_modules: Vec::new(),
        keep_signatures: false,
    }
}

fn run(plan: &Plan) -> Result<GuestImage, BuildError> {
    build(plan, &mut |_| ControlFlow::Continue(()))
}

/// The error of a build from these package files, with its sources.
fn refusal(bytes: &[u8]) -> String {
    let dir = tempfile::tempdir().unwrap();
    let error = run(&plan(dir.path(), bytes)).unwrap_err();
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(next) = source {
        text = format!("{text}: {next}");
        source = next.source();
    }
    let mut left = names(dir.path());
    left.retain(|name| name != "agent" && name != "kernel.deb");
    assert_eq!(left, [""; 0], "nothing remains");
    text.replace(&dir.path().display().to_string(), "DIR")
}

fn names(dir: &Path) -> Vec<String> {
    let entries = fs::read_dir(dir).unwrap();
    entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
}

/// The archive's files: path to mode, device numbers and content.
fn unpack(mut bytes: &[u8]) -> BTreeMap<String, (u32, u32, Vec<u8>)> {
    let mut files = BTreeMap::new();
    loop {
        let mut reader = cpio::NewcReader::new(bytes).unwrap();
        let entry = reader.entry();
        if entry.is_trailer() {
            return files;
        }
        assert_eq!((entry.uid(), entry.gid(), entry.mtime()), (0, 0, 0));
        let device = entry.rdev_major() << 8 | entry.rdev_minor();
        let (name, mode) = (entry.name().to_owned(), entry.mode());
        let mut content = Vec::new();
        reader.read_to_end(&mut content).unwrap();
        files.insert(name, (mode, device, content));
        bytes = reader.finish().unwrap();
    }
}

#[test]
fn a_package_becomes_an_image() {
    let dir = tempfile::tempdir().unwrap();
    let plan =
        Plan { extra_modules: vec!["veth".to_owned()], ..plan(dir.path(), &package(&files())) };
    let guest = run(&plan).unwrap();
    assert_eq!(guest.dir(), plan.output);
    let manifest = guest.manifest();
    let order = ["virtio", "virtio_ring", "virtio_pci", "fuse", "late", "overlay", "veth"];
    assert_eq!(manifest.modules, order);
    assert_eq!(manifest.kernel.release, RELEASE);
    assert_eq!(manifest.kernel.package.as_deref(), Some("linux-image-6.1.0-9-cloud-amd64"));
    assert_eq!(manifest.kernel.version.as_deref(), Some("6.1.27-1"));
    assert_eq!(manifest.protocol, agent_api::PROTOCOL);
    assert_eq!(manifest.agent.sha256, Digest::of(&plan.agent.bytes));
    guest.verify().unwrap();
    assert_eq!(fs::read(guest.kernel()).unwrap(), fixtures::vmlinux_6_1());

    let archive = unpack(&fs::read(guest.initramfs()).unwrap());
    let list: String = order.iter().map(|name| format!("/modules/{name}.ko\n")).collect();
    assert_eq!(archive["modules.list"], (0o100_644, 0, list.into_bytes()));
    assert_eq!(archive["init"], (0o100_755, 0, plan.agent.bytes.clone()));
    assert_eq!(archive["modules/virtio_ring.ko"], (0o100_644, 0, module("virtio")));
    assert_eq!(archive["dev/console"], (0o020_600, 5 << 8 | 1, Vec::new()));
    assert_eq!(archive["tmp"].0, 0o041_777);
    let mut places = names(dir.path());
    places.sort();
    assert_eq!(places, ["agent", "guest", "kernel.deb"], "no other file remains");
}

#[test]
fn builds_are_reproducible() {
    let one = tempfile::tempdir().unwrap();
    let other = tempfile::tempdir().unwrap();
    let first = plan(one.path(), &package(&files()));
    let mut reversed = files();
    reversed.reverse();
    let second = plan(other.path(), &package(&reversed));
    let first = run(&first).unwrap();
    let second = run(&second).unwrap();
    for name in ["guest.json", "vmlinux", "initramfs.cpio"] {
        let bytes = |guest: &GuestImage| fs::read(guest.dir().join(name)).unwrap();
        assert!(bytes(&first) == bytes(&second), "{name}");
    }
}

#[test]
fn modules_may_keep_their_signatures() {
    let dir = tempfile::tempdir().unwrap();
    let plan = Plan { keep_signatures: true, ..plan(dir.path(), &package(&files())) };
    let archive = unpack(&fs::read(run(&plan).unwrap().initramfs()).unwrap());
    let signed = fixtures::signed(&module("virtio"), b"s");
    assert_eq!(archive["modules/virtio_ring.ko"].2, signed);
}

#[test]
fn kernel_and_modules_from_files() {
    let dir = tempfile::tempdir().unwrap();
    let mut plan = plan(dir.path(), b"");
    let kernel = dir.path().join("vmlinuz");
    let modules = dir.path().join("modules");
    for (path, bytes) in files() {
        let path = path.trim_start_matches("./usr/lib/modules/");
        let path = if path.starts_with("./boot") { kernel.clone() } else { modules.join(path) };
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, bytes).unwrap();
    }
    plan.kernel = KernelSource::File { kernel: kernel.clone(), modules: Some(modules) };
    let manifest = run(&plan).unwrap().manifest().clone();
    assert_eq!(manifest.modules.len(), 6);
    assert_eq!(manifest.kernel, Kernel { package: None, version: None, release: RELEASE.into() });
    plan.kernel = KernelSource::File { kernel, modules: None };
    assert_eq!(run(&plan).unwrap().manifest().modules, [""; 0]);
    plan.extra_modules = vec!["veth".to_owned(), "tun".to_owned()];
    assert_eq!(
        run(&plan).unwrap_err().to_string(),
        "the modules veth, tun are requested without a directory to take them from; use --modules DIR with --kernel"
    );
}

#[test]
fn each_fault_of_a_package_has_its_error() {
    let good = package(&files());
    let is = |bytes: &[u8], wanted: &str| assert_eq!(refusal(bytes), wanted);
    let starts = |bytes: &[u8], wanted: &str| {
        let text = refusal(bytes);
        assert!(text.starts_with(wanted), "{text}");
    };
    starts(b"", "DIR/kernel.deb is not a Debian package");
    starts(
        b"hello",
        "DIR/kernel.deb is not a Debian package, or damaged or truncated (in its list of parts); download",
    );
    let files_of = |packed: fn(&[u8]) -> Vec<u8>| {
        let files = files();
        let files: Vec<_> =
            files.iter().map(|(path, bytes)| (path.as_str(), bytes.clone())).collect();
        deb(CONTROL, &files, packed)
    };
    for packed in [plain, xz, zstd, fixtures::gzip] {
        let whole = files_of(packed);
        starts(
            &whole[..whole.len() * 2 / 3],
            "DIR/kernel.deb is not a Debian package, or damaged or truncated (in data.tar.x); download it again: ",
        );
    }
    let mut damaged = files_of(xz);
    let end = damaged.len() - 200;
    damaged[end] ^= 1;
    starts(
        &damaged,
        "DIR/kernel.deb is not a Debian package, or damaged or truncated (in data.tar.x)",
    );
    is(
        &deb("", &[], plain)[..8],
        "DIR/kernel.deb is not a Debian package: it has no control.tar with a control file",
    );
    let arm = CONTROL.replace("amd64\n", "arm64\n");
    is(
        &deb(&arm.replace("-amd64", "-arm64"), &[], xz),
        "DIR/kernel.deb is the package linux-image-6.1.0-9-cloud-arm64 for arm64, not for amd64; use the one for amd64",
    );
    starts(
        &deb(&CONTROL.replace("6.1.0-9-", ""), &[("./usr/share/doc/x", vec![1])], zstd),
        "DIR/kernel.deb is the package linux-image-cloud-amd64, which contains no kernel (boot/vmlinuz-*); use",
    );
    assert!(!good.is_empty());
}

#[test]
fn each_fault_of_a_module_has_its_error() {
    let with = |name: &str, bytes: Option<Vec<u8>>| {
        let mut files = files();
        let place = files.iter().position(|(path, _)| path.ends_with(name)).unwrap();
        match bytes {
            Some(bytes) => files[place].1 = bytes,
            None => drop(files.remove(place)),
        }
        refusal(&package(&files))
    };
    let missing = with("/fuse.ko", None);
    assert!(
        missing.starts_with(
            "DIR/kernel.deb has no module fuse and does not list it in modules.builtin; use"
        ),
        "{missing}"
    );
    let missing = with("/virtio.ko", None);
    assert!(
        missing
            .starts_with("DIR/kernel.deb has no module virtio (which virtio_pci depends on) and"),
        "{missing}"
    );
    assert_eq!(
        with("/fuse.ko", Some(module_for("6.12.1", ""))),
        format!(
            "the module fuse.ko was built for kernel 6.12.1, not {RELEASE}; use modules and kernel of one build"
        )
    );
    assert_eq!(
        with("/fuse.ko", Some(elf(&[]))),
        "the module fuse.ko has no section .modinfo; it is not a kernel module"
    );
    let cut = with("/virtio-ring.ko.xz", Some(xz(&module(""))[..60].to_vec()));
    assert!(cut.starts_with("the module virtio-ring.ko.xz cannot be unpacked: "), "{cut}");
    assert_eq!(
        with("/fuse.ko", Some(b"text".to_vec())),
        "the module fuse.ko is not a module for x86-64: it is not an ELF file"
    );
    let no_pvh = fixtures::bzimage(&elf(&[Segment::Load(b"x")]));
    assert!(
        with(&format!("vmlinuz-{RELEASE}"), Some(no_pvh))
            .starts_with("the kernel has no PVH entry")
    );
}

#[test]
fn only_an_image_is_replaced_and_only_by_a_complete_one() {
    let dir = tempfile::tempdir().unwrap();
    let mut plan = plan(dir.path(), &package(&files()));
    fs::create_dir(&plan.output).unwrap();
    fs::write(plan.output.join("precious"), "").unwrap();
    let foreign = run(&plan).unwrap_err().to_string();
    assert!(
        foreign.contains("guest exists and is not a guest image, so it is not replaced"),
        "{foreign}"
    );
    assert!(plan.output.join("precious").exists());
    fs::remove_file(plan.output.join("precious")).unwrap();

    let first = run(&plan).unwrap();
    plan.extra_modules = vec!["absent".to_owned()];
    let text = run(&plan).unwrap_err().to_string();
    assert!(
        text.contains("has no module absent, and does not list it in modules.builtin; correct"),
        "{text}"
    );
    for stop in 0..4 {
        plan.extra_modules = vec!["veth".to_owned()];
        let mut steps = 0;
        let stopped = build(&plan, &mut |_| {
            steps += 1;
            if steps > stop { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        });
        assert!(matches!(stopped, Err(BuildError::Stopped)), "{stop}");
        assert_eq!(GuestImage::open(&plan.output).unwrap(), first, "the previous image remains");
        assert_eq!(names(dir.path()).len(), 3, "no temporary directory remains");
    }
    let second = run(&plan).unwrap();
    assert_eq!(second.manifest().modules.len(), 7);
    assert_eq!(names(dir.path()).len(), 3, "the previous image is removed");
}
