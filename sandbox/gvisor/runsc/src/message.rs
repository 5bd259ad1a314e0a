//! Error texts of runsc and its sandbox, classified in one place. runsc has no error codes: its text
//! is all there is (`runsc/container`, `runsc/sandbox`, `runsc/boot`).

use sandbox_host::{Classified, Kind};
use serde::Deserialize;

/// A runsc command that failed.
#[derive(Debug, thiserror::Error)]
pub enum RunscError {
    /// With runsc's reason.
    #[error("runsc {verb}: {message}")]
    Reason {
        /// The subcommand.
        verb: &'static str,
        /// One line of bounded length.
        message: String,
    },
    /// Without one.
    #[error("runsc {verb} failed ({status}) and gave no reason")]
    Silent {
        /// The subcommand.
        verb: &'static str,
        /// How it exited.
        status: String,
    },
}

impl Classified for RunscError {
    fn kind(&self) -> Kind {
        match self {
            Self::Reason { message, .. } => kind(message),
            Self::Silent { .. } => Kind::Internal,
        }
    }
}

/// Text that appears in a message, and what it means. The first match counts.
const MEANINGS: [(&str, Kind); 31] = [
    ("already has a filestore file", Kind::FailedPrecondition),
    ("container already exists", Kind::AlreadyExists),
    ("cannot load sandbox", Kind::FailedPrecondition),
    ("unknown method", Kind::Unimplemented),
    ("unknown platform", Kind::InvalidArgument),
    ("flag provided but not defined", Kind::InvalidArgument),
    ("invalid value", Kind::InvalidArgument),
    ("error unmarshaling spec", Kind::InvalidArgument),
    ("error finding executable", Kind::NotFound),
    ("failed to load /", Kind::InvalidArgument),
    ("failed to find initial working directory", Kind::InvalidArgument),
    ("error setting up FS", Kind::InvalidArgument),
    ("Error setting up root FS", Kind::InvalidArgument),
    ("failed to stat mount", Kind::InvalidArgument),
    ("no such process", Kind::NotFound),
    ("process has already finished", Kind::NotFound),
    ("no TTY attached", Kind::FailedPrecondition),
    ("loading container", Kind::NotFound),
    ("loading sandbox", Kind::NotFound),
    ("does not exist", Kind::NotFound),
    ("not found", Kind::NotFound),
    ("is deleted", Kind::NotFound),
    ("not started", Kind::FailedPrecondition),
    ("isn't started", Kind::FailedPrecondition),
    ("has stopped", Kind::FailedPrecondition),
    ("in state ", Kind::FailedPrecondition),
    ("cannot run with network enabled in root network namespace", Kind::FailedPrecondition),
    ("runsc version does not match across checkpoint restore", Kind::FailedPrecondition),
    ("connection refused", Kind::Unavailable),
    ("operation not permitted", Kind::PermissionDenied),
    ("permission denied", Kind::PermissionDenied),
];

/// What a message of runsc or its sandbox means.
pub(crate) fn kind(message: &str) -> Kind {
    let known = MEANINGS.iter().find(|(text, _)| message.contains(text));
    known.map_or(Kind::Internal, |(_, kind)| *kind)
}

/// Messages that only follow from another one.
const CONSEQUENCES: [&str; 3] =
    ["waiting for sandbox to start: EOF", "Error reading mounts file", "urpc method"];

#[derive(Deserialize)]
struct Line {
    #[serde(default)]
    level: String,
    #[serde(default)]
    msg: String,
}

/// Reads the log that one runsc call wrote (`--log-format=json`), with its standard error
/// `stderr` for what went wrong before the log was open.
pub(crate) fn failure(verb: &'static str, status: &str, log: &[u8], stderr: &[u8]) -> RunscError {
    let errors = errors(log);
    // The cause comes first; later errors are about how it was noticed.
    let cause = errors.iter().find(|m| !CONSEQUENCES.iter().any(|c| m.contains(c)));
    let message = match cause.or(errors.last()) {
        Some(message) => tidy(message),
        None => first_line(stderr),
    };
    if message.is_empty() {
        RunscError::Silent { verb, status: status.to_owned() }
    } else {
        RunscError::Reason { verb, message }
    }
}

/// The messages of level error: JSON objects one behind the other, with or without newlines.
fn errors(log: &[u8]) -> Vec<String> {
    serde_json::Deserializer::from_slice(log)
        .into_iter::<Line>()
        .map_while(Result::ok)
        .filter(|line| line.level == "error" && !line.msg.is_empty())
        .map(|line| line.msg)
        .collect()
}

/// The first line of plain text that is not empty: usage errors stand above the help text,
/// panics above their stack.
fn first_line(stderr: &[u8]) -> String {
    let text = String::from_utf8_lossy(stderr);
    tidy(text.lines().map(str::trim).find(|line| !line.is_empty()).unwrap_or(""))
}

/// One line of bounded length.
fn tidy(message: &str) -> String {
    const MAX: usize = 600;
    let line = message.split_whitespace().collect::<Vec<_>>().join(" ");
    let mut short: String = line.chars().take(MAX).collect();
    if short.len() < line.len() {
        short.push_str("...");
    }
    short
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Logs as runsc 20240729 (Debian) and a build of February 2026 wrote them.
    const RECORDED: [(&str, Kind, &str); 11] = [
        (
            r#"{"msg":"creating container: cannot lock container metadata file: container already exists","level":"error","time":"2026-11-23T16:55:04.7521419Z"}"#,
            Kind::AlreadyExists,
            "container already exists",
        ),
        (
            r#"{"msg":"loading container: file does not exist","level":"error","time":"2026-11-23T16:55:04.786929352Z"}"#,
            Kind::NotFound,
            "file does not exist",
        ),
        (
            r#"{"msg":"reading spec: error unmarshaling spec from file \"/b/config.json\": unexpected end of JSON input\n {","level":"error","time":"2026-11-23T16:55:04.818997713Z"}"#,
            Kind::InvalidArgument,
            "unexpected end of JSON input {",
        ),
        (
            r#"{"msg":"starting container: cannot start container \"sb\" in state running","level":"error","time":"x"}"#,
            Kind::FailedPrecondition,
            "in state running",
        ),
        (
            r#"{"msg":"creating container: cannot load sandbox: open /r/sb_sandbox:sb.state: no such file or directory","level":"error","time":"x"}"#,
            Kind::FailedPrecondition,
            "cannot load sandbox",
        ),
        (
            r#"{"msg":"starting container: starting root container: starting sandbox: error finding executable \"nope\" in PATH [/bin]: no such file or directory","level":"error","time":"x"}"#,
            Kind::NotFound,
            "error finding executable \"nope\"",
        ),
        (
            r#"{"msg":"starting container: starting root container: starting sandbox: creating process: failed to load /etc: permission denied","level":"error","time":"x"}"#,
            Kind::InvalidArgument,
            "failed to load /etc: permission denied",
        ),
        (
            // Three objects without newlines; the first holds the cause.
            r#"{"msg":"error setting up FS: mounting {Destination:/x Type:bind Source:/nope Options:[] UIDMappings:[] GIDMappings:[]}: stat(\"/nope\") failed: stat /nope: no such file or directory","level":"error","time":"x"}{"msg":"Error reading mounts file: error unmarshaling mounts: unexpected end of JSON input\nJSON bytes:\n","level":"error","time":"x"}{"msg":"creating container: cannot create sandbox: cannot read client sync file: waiting for sandbox to start: EOF","level":"error","time":"x"}"#,
            Kind::InvalidArgument,
            "stat(\"/nope\") failed",
        ),
        (
            r#"{"msg":"creating container: failed to stat mount \"/gone\" to see if it were a directory: stat /gone: no such file or directory","level":"error","time":"x"}"#,
            Kind::InvalidArgument,
            "failed to stat mount \"/gone\"",
        ),
        (
            r#"{"msg":"creating container: cannot create gofer process: creating gofer filestore files: \"/p/rootfs\" mount source already has a filestore file at \"/proc/29117/root/p/rootfs/.gvisor.filestore.sb\"; repeated submounts are not supported with overlay optimizations","level":"error","time":"x"}"#,
            Kind::FailedPrecondition,
            "already has a filestore file",
        ),
        (
            r#"{"msg":"starting container: setting up network: creating interfaces from net namespace \"/proc/9/ns/net\": cannot run with network enabled in root network namespace","level":"error","time":"x"}"#,
            Kind::FailedPrecondition,
            "root network namespace",
        ),
    ];

    #[test]
    fn recorded_messages_are_understood() {
        for (log, kind, text) in RECORDED {
            let error = failure("start", "exit status 128", log.as_bytes(), b"");
            assert_eq!(error.kind(), kind, "{log}");
            assert!(error.to_string().contains(text), "{error}");
        }
    }

    #[test]
    fn the_sandbox_own_answers_are_understood() {
        let answers = [
            ("container \"ct\" not started", Kind::FailedPrecondition),
            ("container \"zz\" not found", Kind::NotFound),
            ("signaling process in container \"ct\" PID 0: no such process", Kind::NotFound),
            ("waiting for PID 3: no such process", Kind::NotFound),
            ("unknown method", Kind::Unimplemented),
            (
                "error finding executable \"nope\" in PATH [/bin]: no such file or directory",
                Kind::NotFound,
            ),
            ("container \"ct\" has stopped", Kind::FailedPrecondition),
            ("something new", Kind::Internal),
        ];
        for (text, expected) in answers {
            assert_eq!(kind(text), expected, "{text}");
        }
    }

    #[test]
    fn usage_errors_and_silence_are_told() {
        let usage = b"flag provided but not defined: -bogusflag\nUsage: runsc <flags>\n";
        let error = failure("create", "exit status 2", b"", usage);
        assert_eq!(error.kind(), Kind::InvalidArgument);
        assert_eq!(error.to_string(), "runsc create: flag provided but not defined: -bogusflag");
        let silent = failure("create", "signal 9", b"{\"level\":\"info\"}", b" \n");
        assert_eq!(silent.to_string(), "runsc create failed (signal 9) and gave no reason");
        let long = format!("{{\"level\":\"error\",\"msg\":\"{}\"}}", "x".repeat(5000));
        assert!(failure("create", "", long.as_bytes(), b"").to_string().len() < 700);
    }
}
