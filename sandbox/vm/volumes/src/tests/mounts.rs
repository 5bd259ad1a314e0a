//! Volumes: which are shared, and how.

use super::*;

#[test]
fn what_the_host_has_below_a_read_only_volume_stays_writable() {
    let options = |option: &str, source: &str, found| {
        let mut case = container().bind("/v", source, &["rbind", option]).source(source, found);
        case.facts.nesting.insert(source.into());
        mount(&case.plan().unwrap(), "/v")["options"].clone()
    };
    assert_eq!(options("ro", "/srv", Source::Directory), json!(["rbind", "rprivate"]));
    assert_eq!(options("rro", "/srv", Source::Directory), json!(["rbind", "rprivate", "ro"]));
    let in_guest = Source::Tmpfs(TMPFS);
    assert_eq!(options("ro", MEMORY, in_guest), json!(["rbind", "rprivate", "ro"]));
}

#[test]
fn volumes_are_shared_as_they_were_asked_for() {
    let how = |read_only, propagation, recursive| Bind { recursive, read_only, propagation };
    for (options, wanted, guest) in [
        (
            &["rbind", "rprivate", "rw"][..],
            how(ReadOnly::No, Propagation::Private, true),
            json!(["rbind", "rprivate", "rw"]),
        ),
        (
            &["rbind", "rslave", "ro"],
            how(ReadOnly::Top, Propagation::Slave, true),
            json!(["rbind", "rprivate", "ro"]),
        ),
        (
            &["rbind", "rprivate", "rro", "nosuid"],
            how(ReadOnly::All, Propagation::Private, true),
            json!(["rbind", "rprivate", "ro", "nosuid"]),
        ),
        (&["bind"], how(ReadOnly::No, Propagation::Private, false), json!(["rbind", "rprivate"])),
    ] {
        for source in [Source::Directory, Source::File, Source::Tmpfs(TMPFS)] {
            let case = container().bind("/v", SECRET, options).source(SECRET, source);
            let plan = case.plan().unwrap();
            let last = plan.volumes.last().unwrap();
            assert_eq!((last.source.to_str(), last.how), (Some(SECRET), wanted), "{options:?}");
            let planned = mount(&plan, "/v");
            assert_eq!(planned["options"], guest);
            assert_eq!(planned["source"], shared_at(&last.name));
            assert!(
                planned["source"].as_str().unwrap().starts_with("/run/bulkhead/share/.volumes/v")
            );
        }
    }
}

#[test]
fn an_empty_dir_is_one_mount_for_those_who_write_and_those_who_read() {
    const CACHE: &str = "/var/lib/kubelet/pods/u/volumes/kubernetes.io~empty-dir/cache";
    let plan = |options: &[&str]| {
        container().bind("/v", CACHE, options).source(CACHE, Source::Directory).plan().unwrap()
    };
    let (writes, mut reads) = (plan(&["rbind", "rw"]), plan(&["rbind", "ro"]));
    assert_eq!(writes.volumes.last().unwrap().how, reads.volumes.last().unwrap().how);
    assert_eq!(mount(&reads, "/v")["options"], json!(["rbind", "rprivate", "ro"]));
    let asked = reads.volumes.last().unwrap().name.clone();
    rename(&mut reads.spec, &[("other".into(), "no".into()), (asked, "first".into())]);
    assert_eq!(mount(&reads, "/v")["source"], "/run/bulkhead/share/.volumes/first");
    assert_ne!(mount(&reads, "/etc/resolv.conf")["source"], "/run/bulkhead/share/.volumes/first");
}

#[test]
fn a_memory_volume_is_the_guests_and_one_for_the_pod() {
    let facts = Tmpfs { size: 32 << 20, mode: 0o2777, uid: 0, gid: 1000 };
    let case = container()
        .bind("/a", MEMORY, &["rbind", "rprivate", "rw"])
        .bind("/b", MEMORY, &["rbind", "rprivate", "ro"])
        .source(MEMORY, Source::Tmpfs(facts));
    let plan = case.plan().unwrap();
    assert_eq!(plan.storages.len(), 1);
    let storage = &plan.storages[0];
    assert_eq!(storage.source, StorageSource::Tmpfs(facts));
    assert!(storage.mount_point.starts_with("/run/bulkhead/ephemeral/"));
    assert_eq!(mount(&plan, "/a")["source"], storage.mount_point.as_str());
    assert_eq!(mount(&plan, "/b")["options"], json!(["rbind", "rprivate", "ro"]));
    let other = container().bind("/x", MEMORY, &["rbind"]).source(MEMORY, Source::Tmpfs(facts));
    assert_eq!(other.plan().unwrap().storages, plan.storages, "the same in every container");

    // On /dev/shm it is still the volume, not the Pod's.
    for mut case in [container(), sandbox()] {
        case.spec["mounts"] = json!([]);
        let case = case.bind("/dev/shm", MEMORY, &["rbind"]).source(MEMORY, Source::Tmpfs(facts));
        let plan = case.plan().unwrap();
        assert_eq!(mount(&plan, "/dev/shm")["source"], plan.storages[0].mount_point.as_str());
    }
}
