//! The agent's binary.

use std::fmt;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use agent_api::{AGENT_MARK_START, PROTOCOL};
use memchr::memmem;

use super::elf::{Elf, ElfError};

/// An agent's binary that can be a guest's `/init`.
#[derive(Clone, PartialEq, Eq)]
pub struct AgentProgram {
    /// Its version.
    pub version: String,
    /// The protocol it speaks.
    pub protocol: u32,
    pub(super) bytes: Vec<u8>,
}

/// An error of reading an agent.
#[derive(Debug, thiserror::Error)]
pub enum AgentError {
    /// It cannot be read.
    #[error("cannot read the agent {path}; `hack/guest` builds it, `--agent` sets its path")]
    Read {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// It is not a program for x86-64.
    #[error("the agent {path} is not a program for x86-64 Linux")]
    Elf {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: ElfError,
    },
    /// It needs a dynamic linker, which a guest does not have.
    #[error(
        "the agent {path} is dynamically linked (it needs {interpreter}), and a guest has no \
         libraries; link it statically, with RUSTFLAGS=\"-C target-feature=+crt-static\" and an explicit --target"
    )]
    Dynamic {
        /// The file.
        path: PathBuf,
        /// The dynamic linker that it needs.
        interpreter: String,
    },
    /// It is another program.
    #[error(
        "{path} is not a bulkhead-agent: it does not contain the text {AGENT_MARK_START:?} with a \
         version and a protocol"
    )]
    NoMark {
        /// The file.
        path: PathBuf,
    },
    /// It speaks another protocol than the shim of this version.
    #[error(
        "the agent {path} (version {version}) speaks protocol {found}, the shim of this version \
         {PROTOCOL}; use the agent of this version"
    )]
    Protocol {
        /// The file.
        path: PathBuf,
        /// The agent's version.
        version: String,
        /// Its protocol.
        found: u32,
    },
}

impl AgentProgram {
    /// Reads an agent and checks that a guest can run it: a static program for x86-64 that speaks
    /// this version's protocol.
    ///
    /// # Errors
    ///
    /// [`AgentError`] names the file, the problem and the remedy.
    pub fn read(path: &Path) -> Result<Self, AgentError> {
        let path = path.to_owned();
        let bytes = match fs::read(&path) {
            Ok(bytes) => bytes,
            Err(source) => return Err(AgentError::Read { path, source }),
        };
        let interpreter = match Elf::parse(&bytes).and_then(|elf| elf.interpreter()) {
            Ok(interpreter) => interpreter,
            Err(source) => return Err(AgentError::Elf { path, source }),
        };
        if let Some(interpreter) = interpreter {
            return Err(AgentError::Dynamic { path, interpreter });
        }
        match mark(&bytes) {
            None => Err(AgentError::NoMark { path }),
            Some((version, found)) if found != PROTOCOL => {
                Err(AgentError::Protocol { path, version, found })
            }
            Some((version, protocol)) => Ok(Self { version, protocol, bytes }),
        }
    }
}

impl fmt::Debug for AgentProgram {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { version, protocol, bytes } = self;
        write!(f, "AgentProgram({version}, protocol {protocol}, {} bytes)", bytes.len())
    }
}

/// Version and protocol from [`agent_api::AGENT_MARK`].
fn mark(bytes: &[u8]) -> Option<(String, u32)> {
    let start = AGENT_MARK_START.as_bytes();
    memmem::find_iter(bytes, start).find_map(|at| {
        let rest = &bytes[at + start.len()..];
        let end = rest.iter().take(64).position(|byte| *byte == b';')?;
        let text = std::str::from_utf8(&rest[..end]).ok()?;
        let (version, protocol) = text.split_once(" protocol=")?;
        let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b".+-".contains(&byte);
        if version.is_empty() || !version.bytes().all(allowed) {
            return None;
        }
        Some((version.to_owned(), protocol.parse().ok()?))
    })
}

#[cfg(test)]
mod tests {
    use agent_api::AGENT_MARK;

    use super::*;
    use crate::build::fixtures::{Segment, elf};

    fn read(bytes: &[u8]) -> Result<AgentProgram, String> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("agent");
        fs::write(&path, bytes).unwrap();
        let text = |error: AgentError| {
            let source = std::error::Error::source(&error).map(|it| format!(": {it}"));
            format!("{error}{}", source.unwrap_or_default())
        };
        let place = path.display().to_string();
        AgentProgram::read(&path).map_err(|error| text(error).replace(&place, "AGENT"))
    }

    #[test]
    fn a_static_program_with_the_mark_is_an_agent() {
        let mut bytes = elf(&[Segment::Load(b"code")]);
        bytes.extend_from_slice(format!("{AGENT_MARK_START} no {AGENT_MARK}").as_bytes());
        let agent = read(&bytes).unwrap();
        assert_eq!((agent.version.as_str(), agent.protocol), (env!("CARGO_PKG_VERSION"), PROTOCOL));
    }

    #[test]
    fn others_are_refused() {
        let interpreter = Segment::Interpreter(b"/lib64/ld-linux-x86-64.so.2\0");
        let dynamic = read(&elf(&[interpreter])).unwrap_err();
        assert!(dynamic.starts_with(
            "the agent AGENT is dynamically linked (it needs /lib64/ld-linux-x86-64.so.2), and"
        ));
        let unmarked = read(&elf(&[Segment::Load(b"code")])).unwrap_err();
        assert!(unmarked.starts_with("AGENT is not a bulkhead-agent: it"), "{unmarked}");
        let script = read(b"#!/bin/sh\n").unwrap_err();
        assert_eq!(
            script,
            "the agent AGENT is not a program for x86-64 Linux: it is not an ELF file"
        );
        let mut arm = elf(&[]);
        arm[18] = 183;
        assert_eq!(
            read(&arm).unwrap_err(),
            "the agent AGENT is not a program for x86-64 Linux: it is for machine type 183, not 62 (x86-64)"
        );
        let mut other = elf(&[]);
        other.extend_from_slice(format!("{AGENT_MARK_START}9.9 protocol=77;").as_bytes());
        assert_eq!(
            read(&other).unwrap_err(),
            "the agent AGENT (version 9.9) speaks protocol 77, the shim of this version 1; use the agent of this version"
        );
    }
}
