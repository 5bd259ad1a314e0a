//! Conversion of this backend's plans to messages of the agent's protocol.

use std::net::IpAddr;

use agent_api::agent::{self, ConfigureRequest, CreateContainerRequest};
use agent_api::{SHARE_MOUNT, SHARE_TAG};
use sandbox_core::StdioPaths;
use vm_network::{GuestNetwork, Prefix};
use vm_volumes::{BlockDevice, ContainerPlan, GuestDisk, Rootfs, Storage, StorageSource, Tmpfs};

use super::configuration::Configuration;

/// The agent's first call; the caller adds the protocol's version and the clock.
pub(super) fn configure(configuration: &Configuration<'_>) -> ConfigureRequest {
    let plan = configuration.plan;
    let network = configuration.network;
    let share = agent::Share {
        tag: SHARE_TAG.to_owned(),
        mount_point: SHARE_MOUNT.to_owned(),
        ..agent::Share::default()
    };
    ConfigureRequest {
        hostname: configuration.hostname.clone(),
        sysctls: plan.sysctls.clone().into_iter().collect(),
        entropy: configuration.entropy.clone(),
        interfaces: interfaces(network),
        routes: routes(network),
        neighbours: neighbours(network),
        shares: vec![share],
        stream_write_max: configuration.stream_write_max.unwrap_or(0),
        shm_size: plan.shm.as_ref().map_or(0, |(_, size)| *size),
        debug: configuration.debug,
        ..ConfigureRequest::default()
    }
}

/// A container to make.
pub(super) fn create_container(
    id: &str,
    plan: ContainerPlan,
    paths: &StdioPaths,
) -> CreateContainerRequest {
    CreateContainerRequest {
        container: id.to_owned(),
        spec: plan.spec.to_string().into_bytes(),
        rootfs: Some(rootfs(plan.rootfs)).into(),
        storages: plan.storages.into_iter().map(storage).collect(),
        devices: plan.devices.into_iter().map(device).collect(),
        stdio: Some(stdio(paths)).into(),
        shared_pid: plan.shared_pid,
        ..CreateContainerRequest::default()
    }
}

/// The guest's interfaces.
fn interfaces(network: &GuestNetwork) -> Vec<agent::Interface> {
    let interfaces = network.interfaces.iter().map(|interface| agent::Interface {
        name: interface.name.clone(),
        mac: interface.mac.to_vec(),
        mtu: interface.mtu,
        addresses: interface.addresses.iter().map(Prefix::to_string).collect(),
        ..agent::Interface::default()
    });
    interfaces.collect()
}

/// The guest's routes.
fn routes(network: &GuestNetwork) -> Vec<agent::Route> {
    let text = |ip: Option<IpAddr>| ip.map(|ip| ip.to_string()).unwrap_or_default();
    let routes = network.routes.iter().map(|route| agent::Route {
        destination: route.destination.map(|to| to.to_string()).unwrap_or_default(),
        gateway: text(route.gateway),
        interface: route.interface.clone(),
        source: text(route.source),
        scope: route.scope.into(),
        protocol: route.protocol.into(),
        priority: route.priority,
        onlink: route.onlink,
        ipv6: route.ipv6,
        mtu: route.mtu,
        ..agent::Route::default()
    });
    routes.collect()
}

/// The guest's permanent neighbour entries.
fn neighbours(network: &GuestNetwork) -> Vec<agent::Neighbour> {
    let neighbours = network.neighbours.iter().map(|neighbour| agent::Neighbour {
        address: neighbour.ip.to_string(),
        mac: neighbour.mac.to_vec(),
        interface: neighbour.interface.clone(),
        ..agent::Neighbour::default()
    });
    neighbours.collect()
}

/// A container's root file system.
fn rootfs(rootfs: Rootfs) -> agent::Rootfs {
    let mut message = agent::Rootfs::default();
    match rootfs {
        Rootfs::Path(path) => message.set_path(path),
        Rootfs::Layers { lower, upper } => message.set_layers(agent::Layers {
            lower: lower.into_iter().map(disk).collect(),
            upper: upper.map(disk).into(),
            ..agent::Layers::default()
        }),
    }
    message
}

/// A file system of the guest that mounts refer to.
fn storage(storage: Storage) -> agent::Storage {
    let mut message =
        agent::Storage { mount_point: storage.mount_point, ..agent::Storage::default() };
    match storage.source {
        StorageSource::Tmpfs(Tmpfs { size, mode, uid, gid }) => {
            message.set_tmpfs(agent::Tmpfs { size, mode, uid, gid, ..agent::Tmpfs::default() });
        }
        StorageSource::Disk(source) => message.set_disk(disk(source)),
    }
    message
}

fn disk(disk: GuestDisk) -> agent::Disk {
    agent::Disk {
        serial: disk.serial,
        fs_type: disk.fs_type,
        options: disk.options,
        read_only: disk.read_only,
        ..agent::Disk::default()
    }
}

/// A block device in a container.
fn device(device: BlockDevice) -> agent::BlockDevice {
    agent::BlockDevice {
        serial: device.serial,
        path: device.path,
        mode: device.mode,
        uid: device.uid,
        gid: device.gid,
        read_only: device.read_only,
        ..agent::BlockDevice::default()
    }
}

/// The streams that the guest has to create for `paths`.
pub(super) fn stdio(paths: &StdioPaths) -> agent::Stdio {
    agent::Stdio {
        stdin: paths.stdin.is_some() && !paths.terminal,
        stdout: paths.stdout.is_some() && !paths.terminal,
        stderr: paths.stderr.is_some() && !paths.terminal,
        terminal: paths.terminal,
        ..agent::Stdio::default()
    }
}

#[cfg(test)]
mod tests {
    use vm_network::{Interface, Neighbour, Route};

    use super::*;

    #[test]
    fn the_plans_paths_are_the_protocols() {
        assert_eq!(vm_volumes::GUEST_ROOT, agent_api::GUEST_ROOT);
        assert_eq!(vm_volumes::SHARE_MOUNT, agent_api::SHARE_MOUNT);
    }

    #[test]
    fn file_systems_are_written_whole() {
        let disk = |serial: &str, fs_type: &str| GuestDisk {
            serial: serial.into(),
            fs_type: fs_type.into(),
            options: vec!["noatime".into()],
            read_only: fs_type == "erofs",
        };
        let layers = |upper| rootfs(Rootfs::Layers { lower: vec![disk("d1", "erofs")], upper });
        let message = layers(Some(disk("d2", "ext4")));
        let lower = &message.layers().lower[0];
        assert_eq!((lower.serial.as_str(), lower.fs_type.as_str()), ("d1", "erofs"));
        assert_eq!((&lower.options[..], lower.read_only), (&["noatime".to_owned()][..], true));
        assert_eq!(message.layers().upper.serial, "d2");
        assert!(layers(None).layers().upper.is_none());
        assert_eq!(rootfs(Rootfs::Path("/run/bulkhead/x".into())).path(), "/run/bulkhead/x");

        let at = |source| storage(Storage { mount_point: "/run/bulkhead/x".into(), source });
        let tmpfs = Tmpfs { size: 1, mode: 2, uid: 3, gid: 4 };
        let message = at(StorageSource::Tmpfs(tmpfs));
        assert_eq!(message.mount_point, "/run/bulkhead/x");
        let message = message.tmpfs();
        assert_eq!((message.size, message.mode, message.uid, message.gid), (1, 2, 3, 4));
        assert_eq!(at(StorageSource::Disk(disk("d3", "xfs"))).disk().serial, "d3");

        let path = "/dev/xvda".to_owned();
        let node =
            BlockDevice { serial: "d4".into(), path, mode: 1, uid: 2, gid: 3, read_only: true };
        let message = device(node);
        assert_eq!((message.serial.as_str(), message.path.as_str()), ("d4", "/dev/xvda"));
        assert_eq!((message.mode, message.uid, message.gid, message.read_only), (1, 2, 3, true));
    }

    #[test]
    fn a_network_is_written_as_text() {
        let ip = |text: &str| text.parse::<IpAddr>().unwrap();
        let network = GuestNetwork {
            interfaces: vec![Interface {
                name: "eth0".into(),
                mac: [2, 0, 0, 0, 0, 1],
                mtu: 1450,
                addresses: vec![Prefix { ip: ip("10.1.2.3"), length: 24 }],
            }],
            routes: vec![Route {
                destination: None,
                gateway: Some(ip("fe80::1")),
                interface: "eth0".into(),
                source: None,
                scope: 253,
                protocol: 3,
                priority: 7,
                onlink: true,
                ipv6: true,
                mtu: 1400,
            }],
            neighbours: vec![Neighbour {
                ip: ip("169.254.1.1"),
                mac: [0xee; 6],
                interface: "eth0".into(),
            }],
        };
        let interface = &interfaces(&network)[0];
        assert_eq!((interface.name.as_str(), interface.mtu), ("eth0", 1450));
        assert_eq!(
            (&interface.mac[..], interface.addresses[0].as_str()),
            (&[2, 0, 0, 0, 0, 1][..], "10.1.2.3/24")
        );
        let route = &routes(&network)[0];
        assert_eq!((route.destination.as_str(), route.gateway.as_str()), ("", "fe80::1"));
        assert_eq!((route.source.as_str(), route.interface.as_str()), ("", "eth0"));
        assert_eq!((route.scope, route.protocol, route.priority, route.mtu), (253, 3, 7, 1400));
        assert!(route.onlink && route.ipv6);
        let neighbour = &neighbours(&network)[0];
        assert_eq!(neighbour.address, "169.254.1.1");
        assert_eq!((&neighbour.mac[..], neighbour.interface.as_str()), (&[0xee; 6][..], "eth0"));
    }
}
