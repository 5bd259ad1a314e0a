//! The guest's answers, none of which is trusted.

use agent_api::PROTOCOL;
use agent_api::agent::{Counters, StatsResponse};
use sandbox_core::{Classified, Interface, Kind, Stats};

use crate::dial::DialError;

/// How many characters of a guest's text are kept for an error or a log.
const TEXT_MAX: usize = 400;

/// How many interfaces of an answer are read.
const LIST_MAX: usize = 4096;

/// A call to the agent that failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum GuestError {
    #[error("the guest could not {verb}: {message}")]
    Refused { verb: &'static str, kind: Kind, message: String },
    #[error("the guest's agent is gone")]
    Gone,
    #[error("the guest did not {verb} within {seconds} s")]
    Deadline { verb: &'static str, seconds: u64 },
    #[error(
        "the guest's agent speaks protocol {theirs}, this shim {PROTOCOL}; rebuild the guest image \
         with `bulkhead guest build`"
    )]
    Protocol { theirs: u32 },
    #[error(transparent)]
    Dial(#[from] DialError),
}

impl Classified for GuestError {
    fn kind(&self) -> Kind {
        match self {
            Self::Refused { kind, .. } => *kind,
            Self::Gone => Kind::Unavailable,
            Self::Deadline { .. } => Kind::DeadlineExceeded,
            Self::Protocol { .. } => Kind::FailedPrecondition,
            Self::Dial(error) => error.kind(),
        }
    }
}

/// Classifies a refusal of the agent, or the lack of an answer.
pub(super) fn classify(verb: &'static str, error: ttrpc::Error) -> GuestError {
    use ttrpc::Code;
    let ttrpc::Error::RpcStatus(status) = error else { return GuestError::Gone };
    let kind = match status.code.enum_value() {
        Ok(Code::INVALID_ARGUMENT) => Kind::InvalidArgument,
        Ok(Code::NOT_FOUND) => Kind::NotFound,
        Ok(Code::ALREADY_EXISTS) => Kind::AlreadyExists,
        Ok(Code::FAILED_PRECONDITION) => Kind::FailedPrecondition,
        Ok(Code::UNIMPLEMENTED) => Kind::Unimplemented,
        Ok(Code::UNAVAILABLE) => Kind::Unavailable,
        Ok(Code::DEADLINE_EXCEEDED) => Kind::DeadlineExceeded,
        Ok(Code::PERMISSION_DENIED) => Kind::PermissionDenied,
        Ok(_) | Err(_) => Kind::Internal,
    };
    GuestError::Refused { verb, kind, message: clean(&status.message) }
}

/// A guest's text, fit for a log: short, on one line, without control characters.
fn clean(text: &str) -> String {
    let printable = |c: char| if c.is_control() { ' ' } else { c };
    text.chars().take(TEXT_MAX).map(printable).collect()
}

/// A container's resource usage.
pub(super) fn stats(answer: StatsResponse) -> Stats {
    let interface = |c: Counters| Interface {
        name: clean(&c.name).chars().take(15).collect(),
        rx_bytes: c.rx_bytes,
        rx_packets: c.rx_packets,
        rx_errors: c.rx_errors,
        rx_dropped: c.rx_dropped,
        tx_bytes: c.tx_bytes,
        tx_packets: c.tx_packets,
        tx_errors: c.tx_errors,
        tx_dropped: c.tx_dropped,
    };
    Stats {
        cpu_total_ns: answer.cpu_total_ns,
        cpu_user_ns: answer.cpu_user_ns,
        cpu_system_ns: answer.cpu_system_ns,
        cpu_periods: answer.cpu_periods,
        cpu_throttled_periods: answer.cpu_throttled_periods,
        cpu_throttled_ns: answer.cpu_throttled_ns,
        memory_usage: answer.memory_usage,
        memory_peak: answer.memory_peak,
        memory_limit: answer.memory_limit,
        memory_inactive_file: answer.memory_inactive_file,
        memory_anon: answer.memory_anon,
        memory_file: answer.memory_file,
        memory_pgfault: answer.memory_pgfault,
        memory_pgmajfault: answer.memory_pgmajfault,
        oom_kills: answer.oom_kills,
        pids: answer.pids,
        pids_limit: answer.pids_limit,
        network: answer.network.into_iter().take(LIST_MAX).map(interface).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_keeps_its_code_and_its_text_is_cleaned() {
        let status =
            ttrpc::get_status(ttrpc::Code::NOT_FOUND, format!("no\n\x1b[2J{}", "x".repeat(999)));
        let error = classify("do it", ttrpc::Error::RpcStatus(status));
        assert_eq!(error.kind(), Kind::NotFound);
        let text = error.to_string();
        assert!(text.starts_with("the guest could not do it: no  [2Jxxx"), "{text}");
        assert!(text.len() < 500);
        assert!(matches!(classify("do it", ttrpc::Error::Eof), GuestError::Gone));
    }
}
