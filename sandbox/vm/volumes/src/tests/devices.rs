//! Devices.

use super::*;

#[test]
fn null_is_the_guests_own() {
    let null = Source::Character { major: 1, minor: 3 };
    let case = container().bind("/etc/empty", "/dev/null", &["bind"]).source("/dev/null", null);
    let plan = case.plan().unwrap();
    assert_eq!(mount(&plan, "/etc/empty")["source"], "/dev/null");
}

fn device(kind: &str, path: &str, major: u64, minor: u64) -> Value {
    json!({"type": kind, "path": path, "major": major, "minor": minor, "fileMode": 0o660, "gid": 6})
}

#[test]
fn devices_are_sorted() {
    let mut case = container();
    case.facts.blocks.insert((8, 16), "/dev/sdb".into());
    case.spec["linux"]["devices"] =
        json!([device("c", "/dev/fuse", 10, 229), device("b", "/dev/xvda", 8, 16)]);
    for (access, read_only) in [("rwm", false), ("rm", true)] {
        case.spec["linux"]["resources"]["devices"] = json!([
            {"allow": false, "access": "rwm"},
            {"allow": true, "type": "b", "major": 8, "minor": 16, "access": access},
        ]);
        let plan = case.plan().unwrap();
        assert_eq!(plan.spec["linux"]["devices"].as_array().unwrap().len(), 1);
        let [disk] = &plan.disks[..] else { panic!("{:?}", plan.disks) };
        assert_eq!((disk.path.as_path(), disk.read_only), (Path::new("/dev/sdb"), read_only));
        assert!(disk.id.len() <= 20 && disk.id.bytes().all(|b| b.is_ascii_alphanumeric()));
        let node = &plan.devices[0];
        assert_eq!((node.serial.as_str(), node.path.as_str()), (disk.id.as_str(), "/dev/xvda"));
        assert_eq!((node.mode, node.gid, node.read_only), (0o660, 6, read_only));
    }
    case.spec["linux"]["devices"] = json!([device("b", "/dev/xvda", 8, 32)]);
    assert_eq!(case.refused().0, Kind::InvalidArgument);
    case.spec["linux"]["devices"] = json!([device("c", "/dev/kvm", 10, 232)]);
    let (kind, text) = case.refused();
    assert_eq!(kind, Kind::Unimplemented);
    assert!(text.starts_with("linux.devices /dev/kvm: character device 10:232"), "{text}");
}

#[test]
fn a_privileged_container_gets_none_of_the_hosts_devices() {
    let mut case = container();
    case.facts.blocks.insert((8, 16), "/dev/sdb".into());
    case.spec["linux"]["resources"]["devices"] = json!([{"allow": true, "access": "rwm"}]);
    let disk = device("b", "/dev/sdb", 8, 16);
    case.spec["linux"]["devices"] = json!([disk]);
    assert_eq!(case.plan().unwrap().disks.len(), 1, "a volume of its own stays");
    case.spec["linux"]["devices"] =
        json!([disk, device("c", "/dev/mem", 1, 1), device("c", "/dev/null", 1, 3),]);
    let plan = case.plan().unwrap();
    assert!(plan.disks.is_empty());
    assert_eq!(plan.left_out, ["device /dev/sdb of the host", "device /dev/mem of the host"]);
    assert_eq!(plan.spec["linux"]["devices"][0]["path"], "/dev/null");
}
