//! The protocol between the host and a guest's agent.
//!
//! # Calls
//!
//! When it is ready, the agent connects to the host's vsock port [`CONTROL_PORT`] and serves
//! [`agent_ttrpc::Agent`] (ttrpc) on that one connection; the host is the client. With the hybrid
//! vsock of cloud-hypervisor and `vhost-device-vsock` the host listens on the Unix socket
//! `<vsock socket>_1024`.
//!
//! # Streams
//!
//! Each stream has its own connection, which the host opens (on the hybrid vsock: connect to the
//! Unix socket, send `CONNECT <port>\n`, read `OK <n>\n`). The host then writes one header line and
//! reads one byte, [`ACCEPTED`] or [`REFUSED`]; the data follows.
//!
//! * [`STREAM_PORT`]: `<container> <exec or -> <stdin|stdout|stderr|terminal>\n`, between the
//!   call that creates the process and its start. `stdin` carries data to the guest until either
//!   side shuts it down, `stdout` and `stderr` to the host until the last writer has closed them,
//!   `terminal` both ways.
//! * [`FORWARD_PORT`]: `<port>\n`, a TCP connection to that port of the guest's loopback, first
//!   127.0.0.1 and then ::1; refused if neither accepts.

#![forbid(unsafe_code)]

/// The messages, generated from `proto/agent.proto`.
#[allow(warnings, clippy::all, clippy::pedantic, clippy::restriction, reason = "generated")]
pub mod agent {
    include!(concat!(env!("OUT_DIR"), "/agent.rs"));
}

/// The service, generated from `proto/agent.proto`: the agent's trait and the host's client.
#[allow(warnings, clippy::all, clippy::pedantic, clippy::restriction, reason = "generated")]
pub mod agent_ttrpc {
    include!(concat!(env!("OUT_DIR"), "/agent_ttrpc.rs"));
}

/// [`PROTOCOL`] as a literal, for `concat!`.
macro_rules! protocol {
    () => {
        1
    };
}

/// The version of this protocol, which must be the same on both sides.
pub const PROTOCOL: u32 = protocol!();

/// A text in every agent's binary, from which its version and protocol are read without running it.
/// The agent uses it in an error message, so that the linker keeps it.
pub const AGENT_MARK: &str = concat!(
    "bulkhead-agent-mark version=",
    env!("CARGO_PKG_VERSION"),
    " protocol=",
    protocol!(),
    ";"
);

/// The start of [`AGENT_MARK`], before the version.
pub const AGENT_MARK_START: &str = "bulkhead-agent-mark version=";

/// The host's port that the agent connects to.
pub const CONTROL_PORT: u32 = 1024;

/// The guest's port for processes' streams.
pub const STREAM_PORT: u32 = 1025;

/// The guest's port for forwarded TCP connections.
pub const FORWARD_PORT: u32 = 1026;

/// The guest's response to a stream's header that it accepts.
pub const ACCEPTED: u8 = 0;

/// The guest's response to a stream's header that it refuses, before it closes the connection.
pub const REFUSED: u8 = 1;

/// Upper bound in bytes on a header line, including its newline.
pub const HEADER_MAX: usize = 256;

/// The directory of all paths in the guest that the host names.
pub const GUEST_ROOT: &str = "/run/bulkhead";

/// The mount point of the Pod's shared directory in the guest.
pub const SHARE_MOUNT: &str = "/run/bulkhead/share";

/// The virtio-fs tag of the Pod's shared directory.
pub const SHARE_TAG: &str = "bulkhead";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mark_has_version_and_protocol() {
        let rest = AGENT_MARK.strip_prefix(AGENT_MARK_START).unwrap();
        assert_eq!(rest, format!("{} protocol={PROTOCOL};", env!("CARGO_PKG_VERSION")));
    }
}
