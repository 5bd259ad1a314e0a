//! Joining the interfaces of a Pod's network namespace to a guest's taps, and undoing it.

use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use parking_lot::Mutex;
use sandbox_netns::bpf::{ProgramKind, load_program};
use sandbox_netns::{Dial, Namespace, PortForward, inside, inside_blocking};
use serde::{Deserialize, Serialize};

use vm_driver::Nic;

use crate::bpf;
use crate::error::NetworkError;
use crate::guest::{self, Endpoint, GuestNetwork};
use crate::netlink::Netlink;
use crate::snapshot::{self, Snapshot};
use crate::tap::{self, Tap};
use crate::tc::{self, Direction};

/// A Pod's network with a tap for each interface of a guest that is yet to come. Nothing passes
/// before [`Network::connect`].
#[derive(Debug)]
pub struct Prepared {
    /// What the agent is told.
    pub guest: GuestNetwork,
    /// What the driver plugs in.
    pub nics: Vec<Nic>,
    /// How it is connected, and left again.
    pub network: Network,
}

/// What was done to a Pod's network namespace: enough to undo it in another process.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetworkRecord {
    netns: PathBuf,
    /// Of the namespace: a path can come to mean another one.
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
    /// Whether nobody else had programs on the interface.
    opened: bool,
}

/// The guest's part of a Pod's network. Dropping it without [`Network::leave`] undoes it too, and
/// blocks for the few milliseconds that takes.
#[derive(Debug)]
pub struct Network {
    netns: PathBuf,
    inode: u64,
    /// Held by who changes the namespace, so that leaving waits for a connection half-way.
    state: Arc<Mutex<State>>,
}

#[derive(Debug)]
struct State {
    /// Of `links`, in their order.
    endpoints: Vec<Endpoint>,
    links: Vec<JoinedLink>,
    left: bool,
}

/// Makes a tap for every interface of the Pod's network namespace at `netns` that has an address.
/// When it fails, or nobody waits for it any more, the namespace is as it was.
///
/// # Errors
///
/// [`NetworkError::HostNetwork`] when `netns` is empty or the host's own namespace;
/// [`NetworkError::NotEthernet`] when a guest cannot have an interface; [`NetworkError::Kernel`]
/// when the host's kernel lacks a part; others name what was refused.
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
            // A tap goes with its descriptor: what fails from here on leaves none.
            let tap = tap::make(&mut netlink, endpoint.link.mtu)?;
            links.push(JoinedLink::new(endpoint, &tap));
            let (id, mac, mtu) = (format!("net{number}"), endpoint.mac, endpoint.link.mtu);
            nics.push(Nic { id, mac, mtu, tap: tap.fd });
        }
        let inode = namespace.inode();
        let state = Arc::new(Mutex::new(State { endpoints, links, left: false }));
        Ok(Prepared { guest, nics, network: Network { netns: path, inode, state } })
    })
    .await
}

/// Undoes what `record` tells of: removes the taps and the programs. Idempotent; a namespace or
/// an interface that is gone needs nothing.
///
/// # Errors
///
/// [`NetworkError`] names what was refused first; everything else was tried.
pub async fn undo(record: &NetworkRecord) -> Result<(), NetworkError> {
    let Some(namespace) = Namespace::find(&record.netns, record.inode)? else { return Ok(()) };
    let links = record.links.clone();
    inside(&record.netns, namespace, move |_| undo_links(&links)).await
}

impl JoinedLink {
    fn new(endpoint: &Endpoint, tap: &Tap) -> Self {
        let (index, name) = (endpoint.link.index, endpoint.link.name.clone());
        Self { index, name, tap_index: tap.index, tap_name: tap.name.clone(), opened: false }
    }
}

impl Network {
    /// What another process needs to undo it, for the Pod's record; another one once it is
    /// connected.
    pub fn record(&self) -> NetworkRecord {
        let links = self.state.lock().links.clone();
        NetworkRecord { netns: self.netns.clone(), inode: self.inode, links }
    }

    /// Joins every interface to its tap: from now on the guest is the Pod on the wire. This waits
    /// for the host's kernel several times, which is why it is not part of [`prepare`]: the machine
    /// can start meanwhile.
    ///
    /// # Errors
    ///
    /// As [`prepare`]. What is half-way done goes with [`Network::leave`].
    pub async fn connect(&self) -> Result<(), NetworkError> {
        let Some(namespace) = Namespace::find(&self.netns, self.inode)? else {
            let source = io::Error::from(io::ErrorKind::NotFound);
            return Err(NetworkError::Read { what: "the Pod's network namespace", source });
        };
        let state = Arc::clone(&self.state);
        inside(&self.netns, namespace, move |_| {
            let State { endpoints, links, left } = &mut *state.lock();
            // Who left did not wait for this.
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

    /// Undoes it, as [`undo`] does.
    ///
    /// # Errors
    ///
    /// As [`undo`].
    pub async fn leave(&self) -> Result<(), NetworkError> {
        let Some(namespace) = Namespace::find(&self.netns, self.inode)? else { return Ok(()) };
        let state = Arc::clone(&self.state);
        inside(&self.netns, namespace, move |_| leave(&state)).await
    }

    /// Takes connections to the loopback of the Pod's namespace to the guest, for as long as the
    /// answer lives. `guest` connects to a port of the guest's loopback. Where that cannot be,
    /// a warning says so and nothing is forwarded.
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
            let error = sandbox_core::Error::from(error);
            tracing::warn!("leaving network namespace {}: {error}", self.netns.display());
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
    let (link, tap) = (&endpoint.link, joined.tap_index);
    let guard = load("guard", &bpf::guard(link.index, &endpoint.sources, endpoint.outwards()))?;
    let inwards = load("redirect", &bpf::redirect(tap, endpoint.inwards()))?;
    let only_guest = load("only_from", &bpf::only_from(tap))?;
    // The guest is held to its addresses before its tap can carry anything.
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
            NetworkError::Kernel { part: "bpf(2)", mend: "CONFIG_BPF_SYSCALL", source }
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

/// Parts of the kernel and what brings them.
const CLSACT: (&str, &str) =
    ("traffic control on ingress", "the module sch_ingress (CONFIG_NET_SCH_INGRESS)");
const CLS_BPF: (&str, &str) = ("BPF classifier", "the module cls_bpf (CONFIG_NET_CLS_BPF)");

/// `ENOENT` is the kernel's answer for a kind of traffic control that it does not know.
fn lacking(
    source: io::Error,
    (part, mend): (&'static str, &'static str),
    name: &str,
) -> NetworkError {
    match source.raw_os_error() {
        Some(libc::ENOENT | libc::EOPNOTSUPP) => NetworkError::Kernel { part, mend, source },
        _ => NetworkError::Link {
            verb: "attaching a program to interface",
            name: name.into(),
            source,
        },
    }
}

/// Undoes `links` in this thread's namespace, the last one first; every step is tried.
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
            let failed = failed("taking the programs off interface", &joined.name);
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
