//! Joining the interfaces of a Pod's network namespace to a guest's taps, and undoing it.

use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use parking_lot::Mutex;
use sandbox_netlink::Netlink;
use sandbox_netns::bpf::{ProgramKind, load_program};
use sandbox_netns::{Dial, Namespace, PortForward, inside, inside_blocking};
use serde::{Deserialize, Serialize};
use vm_driver::Nic;

use crate::bpf;
use crate::error::NetworkError;
use crate::guest::{self, Endpoint, GuestNetwork};
use crate::snapshot::{self, Snapshot};
use crate::tap::{self, Tap};
use crate::tc::{self, Direction};

/// A Pod's network with a tap for each interface. No frame passes before [`Network::connect`].
#[derive(Debug)]
pub struct Prepared {
    /// The configuration for the guest.
    pub guest: GuestNetwork,
    /// The interfaces for the driver to plug in.
    pub nics: Vec<Nic>,
    /// Connects the taps, and undoes everything.
    pub network: Network,
}

/// The changes to a Pod's network namespace: enough to undo them in another process.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetworkRecord {
    netns: PathBuf,
    /// The namespace's inode: the path may have been reused for another one.
    inode: u64,
    links: Vec<JoinedLink>,
}

/// An interface and its tap.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct JoinedLink {
    index: u32,
    name: String,
    tap_index: u32,
    tap_name: String,
    /// Whether the `clsact` qdisc is ours.
    opened: bool,
}

/// The changes to a Pod's network namespace. Dropping it without [`Network::leave`] undoes them too,
/// and blocks for a few milliseconds.
#[derive(Debug)]
pub struct Network {
    netns: PathBuf,
    inode: u64,
    /// Serialises changes to the namespace: `leave` blocks while `connect` is in progress.
    state: Arc<Mutex<State>>,
}

#[derive(Debug)]
struct State {
    /// In the order of `links`.
    endpoints: Vec<Endpoint>,
    links: Vec<JoinedLink>,
    left: bool,
}

/// Creates a tap for each interface with an address in the Pod's network namespace at `netns`. When
/// it fails or is cancelled, the namespace is as before.
///
/// # Errors
///
/// [`NetworkError::HostNetwork`] when `netns` is empty or the host's own namespace;
/// [`NetworkError::NotEthernet`] when a guest cannot have an interface; [`NetworkError::Kernel`]
/// when the host's kernel lacks a feature; others name the failed step.
pub async fn prepare(netns: &Path) -> Result<Prepared, NetworkError> {
    let path = netns.to_owned();
    inside(netns, Namespace::open(netns)?, move |namespace| {
        let mut netlink = Netlink::open().map_err(unread)?;
        let snapshot = Snapshot::read(&mut netlink)?;
        let endpoints = guest::endpoints(&snapshot)?;
        let guest = guest::network(&snapshot, &endpoints);
        let mut links = Vec::new();
        let mut nics = Vec::new();
        for (number, endpoint) in endpoints.iter().enumerate() {
            // A tap is removed with its descriptor, so a failure from here on leaves none.
            let tap = tap::make(&mut netlink, endpoint.link.mtu)?;
            links.push(JoinedLink::new(endpoint, &tap));
            nics.push(Nic {
                id: format!("net{number}"),
                mac: endpoint.mac,
                mtu: endpoint.link.mtu,
                tap: tap.fd,
            });
        }
        let inode = namespace.inode();
        let state = Arc::new(Mutex::new(State { endpoints, links, left: false }));
        Ok(Prepared { guest, nics, network: Network { netns: path, inode, state } })
    })
    .await
}

/// Removes the taps and programs of `record`. Idempotent; it skips namespaces and interfaces that
/// are gone.
///
/// # Errors
///
/// The first failure; all other steps are done nevertheless.
pub async fn undo(record: &NetworkRecord) -> Result<(), NetworkError> {
    let Some(namespace) = Namespace::find(&record.netns, record.inode)? else { return Ok(()) };
    let links = record.links.clone();
    inside(&record.netns, namespace, move |_| undo_links(&links)).await
}

impl JoinedLink {
    fn new(endpoint: &Endpoint, tap: &Tap) -> Self {
        Self {
            index: endpoint.link.index,
            name: endpoint.link.name.clone(),
            tap_index: tap.index,
            tap_name: tap.name.clone(),
            opened: false,
        }
    }
}

impl Network {
    /// The changes so far, for the Pod's record. [`Network::connect`] adds to them.
    pub fn record(&self) -> NetworkRecord {
        let links = self.state.lock().links.clone();
        NetworkRecord { netns: self.netns.clone(), inode: self.inode, links }
    }

    /// Joins every interface to its tap: from now on the guest is the Pod on the wire. This waits
    /// for the host's kernel several times and is not part of [`prepare`], so that the VM can boot
    /// meanwhile.
    ///
    /// # Errors
    ///
    /// As [`prepare`]. [`Network::leave`] undoes what was done before the failure.
    pub async fn connect(&self) -> Result<(), NetworkError> {
        let Some(namespace) = Namespace::find(&self.netns, self.inode)? else {
            let source = io::Error::from(io::ErrorKind::NotFound);
            return Err(NetworkError::Read { what: "the Pod's network namespace", source });
        };
        let state = Arc::clone(&self.state);
        inside(&self.netns, namespace, move |_| {
            let State { endpoints, links, left } = &mut *state.lock();
            // `leave` was called before this began.
            if *left || links.is_empty() {
                return Ok(());
            }
            let mut netlink = Netlink::open().map_err(unread)?;
            endpoints
                .iter()
                .zip(links)
                .try_for_each(|(endpoint, link)| connect(&mut netlink, endpoint, link))
        })
        .await
    }

    /// Undoes everything, as [`undo`] does.
    ///
    /// # Errors
    ///
    /// As [`undo`].
    pub async fn leave(&self) -> Result<(), NetworkError> {
        let Some(namespace) = Namespace::find(&self.netns, self.inode)? else { return Ok(()) };
        let state = Arc::clone(&self.state);
        inside(&self.netns, namespace, move |_| leave(&state)).await
    }

    /// Forwards connections to the loopback of the Pod's namespace until the result is dropped.
    /// `guest` connects to a port of the guest's loopback. Where the host cannot do that, a warning
    /// is logged and nothing is forwarded.
    pub async fn forward_ports(&self, guest: Arc<dyn Dial>) -> Option<PortForward> {
        PortForward::offer(&self.netns, guest).await
    }

    fn leave_blocking(&self) -> Result<(), NetworkError> {
        match Namespace::find(&self.netns, self.inode)? {
            Some(namespace) => inside_blocking(&self.netns, &namespace, || leave(&self.state)),
            None => Ok(()),
        }
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        let done = |state: &State| state.left || state.links.is_empty();
        if done(&self.state.lock()) {
            return;
        }
        if let Err(error) = self.leave_blocking() {
            let error = sandbox_host::Error::from(error);
            tracing::warn!(netns = %self.netns.display(), "leaving a network namespace: {error}");
        }
    }
}

fn leave(state: &Mutex<State>) -> Result<(), NetworkError> {
    let mut state = state.lock();
    undo_links(&state.links)?;
    state.left = true;
    Ok(())
}

fn unread(source: io::Error) -> NetworkError {
    NetworkError::Read { what: "interfaces", source }
}

/// Joins one interface to its tap.
fn connect(
    netlink: &mut Netlink,
    endpoint: &Endpoint,
    joined: &mut JoinedLink,
) -> Result<(), NetworkError> {
    let link = &endpoint.link;
    let tap = joined.tap_index;
    let guard = load("guard", &bpf::guard(link.index, &endpoint.sources, endpoint.outwards()))?;
    let inwards = load("redirect", &bpf::redirect(tap, endpoint.inwards()))?;
    let only_guest = load("only_from", &bpf::only_from(tap))?;
    // The guest is restricted to its addresses before its tap can carry a frame.
    open(netlink, tap, &joined.tap_name)?;
    attach(netlink, tap, &joined.tap_name, Direction::Ingress, &guard)?;
    tap::bring_up(netlink, tap, &joined.tap_name)?;
    joined.opened = open(netlink, link.index, &link.name)?;
    attach(netlink, link.index, &link.name, Direction::Ingress, &inwards)?;
    attach(netlink, link.index, &link.name, Direction::Egress, &only_guest)
}

fn load(name: &'static str, code: &[u64]) -> Result<OwnedFd, NetworkError> {
    let loaded = load_program(ProgramKind::TRAFFIC, name, code);
    loaded.map_err(|source| match source.raw_os_error() {
        Some(libc::ENOSYS) => {
            NetworkError::Kernel { part: "bpf(2)", fix: "CONFIG_BPF_SYSCALL", source }
        }
        _ => NetworkError::Program { name, source },
    })
}

fn open(netlink: &mut Netlink, link: u32, name: &str) -> Result<bool, NetworkError> {
    tc::open(netlink, link).map_err(|source| lacking(source, CLSACT, name))
}

fn attach(
    netlink: &mut Netlink,
    link: u32,
    name: &str,
    direction: Direction,
    program: &OwnedFd,
) -> Result<(), NetworkError> {
    tc::attach(netlink, link, direction, program).map_err(|source| lacking(source, CLS_BPF, name))
}

/// Features of the kernel and what provides them.
const CLSACT: (&str, &str) =
    ("traffic control on ingress", "the module sch_ingress (CONFIG_NET_SCH_INGRESS)");
const CLS_BPF: (&str, &str) = ("BPF classifier", "the module cls_bpf (CONFIG_NET_CLS_BPF)");

/// The kernel answers `ENOENT` for an unknown kind of traffic control.
fn lacking(
    source: io::Error,
    (part, fix): (&'static str, &'static str),
    name: &str,
) -> NetworkError {
    match source.raw_os_error() {
        Some(libc::ENOENT | libc::EOPNOTSUPP) => NetworkError::Kernel { part, fix, source },
        _ => NetworkError::Link {
            verb: "attaching a program to interface",
            name: name.into(),
            source,
        },
    }
}

/// Undoes `links` in this thread's namespace, the last one first; a failure does not stop it.
fn undo_links(links: &[JoinedLink]) -> Result<(), NetworkError> {
    let mut netlink = Netlink::open().map_err(unread)?;
    let present = snapshot::links(&mut netlink).map_err(unread)?;
    let is_there =
        |index, name: &str| present.iter().any(|link| link.index == index && link.name == name);
    let mut first = Ok(());
    for joined in links.iter().rev() {
        let failed = |verb, name: &str| {
            let name = name.to_owned();
            move |source| NetworkError::Link { verb, name, source }
        };
        if is_there(joined.index, &joined.name) {
            let failed = failed("removing the programs of interface", &joined.name);
            first = first.and(take_off(&mut netlink, joined).map_err(failed));
        }
        if is_there(joined.tap_index, &joined.tap_name) {
            let removed = tap::remove(&mut netlink, joined.tap_index);
            first = first.and(removed.map_err(failed("removing", &joined.tap_name)));
        }
    }
    first
}

fn take_off(netlink: &mut Netlink, joined: &JoinedLink) -> io::Result<()> {
    if joined.opened {
        return tc::close(netlink, joined.index);
    }
    let ingress = tc::detach(netlink, joined.index, Direction::Ingress);
    ingress.and(tc::detach(netlink, joined.index, Direction::Egress))
}
