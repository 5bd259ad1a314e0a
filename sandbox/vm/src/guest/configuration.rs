//! What the agent is configured with.

use vm_network::GuestNetwork;
use vm_volumes::GuestPlan;

/// What the agent gets in its first call.
#[derive(Debug)]
pub(crate) struct Configuration<'a> {
    pub(crate) hostname: String,
    /// Host name, sysctls and `/dev/shm` of the Pod.
    pub(crate) plan: &'a GuestPlan,
    pub(crate) network: &'a GuestNetwork,
    /// Random bytes for the guest's pool.
    pub(crate) entropy: Vec<u8>,
    /// Bytes that the VMM's vsock takes in one write; `None` for any number.
    pub(crate) stream_write_max: Option<u32>,
    /// Whether the agent logs debug messages.
    pub(crate) debug: bool,
}
