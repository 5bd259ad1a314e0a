//! What the host and a guest's agent say to each other.
//!
//! # Calls
//!
//! The agent dials the host's vsock port [`CONTROL_PORT`] when it is ready, and serves
//! [`agent_ttrpc::Agent`] (ttrpc) on that one connection; the host is the one who calls. With the
//! hybrid vsock of cloud-hypervisor and `vhost-device-vsock` the host listens on the unix socket
//! `<vsock socket>_1024`.
//!
//! # Streams
//!
//! Streams are connections of their own, which the host dials (on the hybrid vsock: connect to
//! the unix socket, send `CONNECT <port>\n`, read `OK <n>\n`). The host then writes one header
//! line and reads one byte, [`ACCEPTED`] or [`REFUSED`]; bytes flow after it.
//!
//! * [`STREAM_PORT`]: `<container> <exec or -> <stdin|stdout|stderr|terminal>\n`, between the
//!   call that makes the process and its start. `stdin` runs to the guest and ends when either
//!   side shuts it down, `stdout` and `stderr` run to the host and end with the last writer,
//!   `terminal` runs both ways.
//! * [`FORWARD_PORT`]: `<port>\n`, a TCP connection to that port of the guest's loopback, first
//!   127.0.0.1 and then ::1; refused when neither accepts.

#![forbid(unsafe_code)]

/// The messages.
#[allow(warnings, clippy::all, clippy::pedantic, clippy::restriction, reason = "generated")]
pub mod agent {
    include!(concat!(env!("OUT_DIR"), "/agent.rs"));
}

/// The service: the trait the agent implements and the client that the host calls.
#[allow(warnings, clippy::all, clippy::pedantic, clippy::restriction, reason = "generated")]
pub mod agent_ttrpc {
    include!(concat!(env!("OUT_DIR"), "/agent_ttrpc.rs"));
}

/// As a literal, for texts.
macro_rules! protocol {
    () => {
        1
    };
}

/// The version of this protocol. Both sides must speak the same one.
pub const PROTOCOL: u32 = protocol!();

/// A text that every agent's program carries, so that its version and protocol can be read from
/// the file without running it. The agent keeps it by saying it where it does not run.
pub const AGENT_MARK: &str = concat!(
    "bulkhead-agent-mark version=",
    env!("CARGO_PKG_VERSION"),
    " protocol=",
    protocol!(),
    ";"
);

/// What [`AGENT_MARK`] starts with; the version follows.
pub const AGENT_MARK_START: &str = "bulkhead-agent-mark version=";

/// The host's port that the agent dials.
pub const CONTROL_PORT: u32 = 1024;

/// The guest's port for the streams of processes.
pub const STREAM_PORT: u32 = 1025;

/// The guest's port for forwarded TCP connections.
pub const FORWARD_PORT: u32 = 1026;

/// The guest's answer to a stream's header that it accepts.
pub const ACCEPTED: u8 = 0;

/// The guest's answer to a stream's header that it refuses; the connection ends after it.
pub const REFUSED: u8 = 1;

/// The longest header line, its end included.
pub const HEADER_MAX: usize = 256;

/// Below it is everything in the guest that the host names.
pub const GUEST_ROOT: &str = "/run/bulkhead";

/// Where the Pod's shared directory is mounted in the guest.
pub const SHARE_MOUNT: &str = "/run/bulkhead/share";

/// The tag of the Pod's shared directory.
pub const SHARE_TAG: &str = "bulkhead";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mark_says_version_and_protocol() {
        let rest = AGENT_MARK.strip_prefix(AGENT_MARK_START).unwrap();
        assert_eq!(rest, format!("{} protocol={PROTOCOL};", env!("CARGO_PKG_VERSION")));
    }
}
