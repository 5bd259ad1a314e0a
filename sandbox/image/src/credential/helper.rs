//! Docker's credential helpers: `docker-credential-NAME get` with the server name on stdin.

use std::ffi::OsString;
use std::io::Write as _;
use std::sync::Arc;
use std::time::Duration;

use sandbox_core::Secret;
use sandbox_host::{Command, Host, Output};
use serde::Deserialize;

use super::error::CredentialError;
use super::pattern::Pattern;
use super::source::{Candidate, Credential};

/// Some helpers query a cloud provider.
const TIMEOUT: Duration = Duration::from_secs(30);
/// The username that marks the secret as an identity token.
const TOKEN_USER: &str = "<token>";
/// What a helper prints, with exit code 1, when it has no credential.
const NOT_FOUND: &str = "credentials not found";
/// Upper bound on a server name; far below the capacity of a pipe, so writing it cannot block.
const SERVER_LIMIT: usize = 1024;

/// Runs credential helpers.
#[derive(Clone, Debug)]
pub struct Helpers {
    host: Arc<dyn Host>,
    environment: Vec<(OsString, OsString)>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct HelperOutput {
    #[serde(rename = "ServerURL", default)]
    server: String,
    username: String,
    secret: Secret,
}

impl Helpers {
    /// Runs helpers through `host` with this environment (they need `HOME`, `PATH` and the
    /// variables of a cloud provider).
    pub fn new(host: Arc<dyn Host>, environment: Vec<(OsString, OsString)>) -> Self {
        Self { host, environment }
    }

    /// Runs a helper to get the credential for `server`; `location` is the file that names the
    /// helper.
    pub(super) async fn ask(
        &self,
        name: &str,
        server: &str,
        location: &str,
    ) -> Result<Option<Candidate>, CredentialError> {
        let program = format!("docker-credential-{name}");
        let location = location.to_owned();
        let wrong = |why: String| CredentialError::Helper {
            program: program.clone(),
            location: location.clone(),
            why,
        };
        let fine = |b: u8| b.is_ascii_alphanumeric() || b"-_.".contains(&b);
        if !name.bytes().all(fine) {
            return Err(wrong("its name must be letters, digits, '-', '_' and '.'".to_owned()));
        }
        let pattern = Pattern::parse(server).map_err(|error| wrong(error.to_string()))?;
        let command = self.command(&program, server).map_err(|error| wrong(error.to_string()))?;
        let output = self.host.run(command, TIMEOUT).await.map_err(|source| {
            CredentialError::Run { program: program.clone(), location: location.clone(), source }
        })?;
        let Some(credential) = read(output, &pattern).map_err(wrong)? else { return Ok(None) };
        let origin = format!("{location}: {program}");
        Ok(Some(Candidate { credential, pattern, origin }))
    }

    fn command(&self, program: &str, server: &str) -> std::io::Result<Command> {
        if server.len() > SERVER_LIMIT {
            return Err(std::io::Error::other("the server's name is too long"));
        }
        let (reader, writer) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?;
        std::fs::File::from(writer).write_all(server.as_bytes())?;
        let mut command = Command::new(program).arg("get").stdin(reader);
        for (key, value) in &self.environment {
            command = command.env(key, value);
        }
        Ok(command)
    }
}

fn read(output: Output, asked: &Pattern) -> Result<Option<Credential>, String> {
    let success = output.success();
    let status = output.exit.status;
    let stdout = Secret::new(output.stdout);
    if !success {
        let text = stdout.expose_text().unwrap_or_default().trim();
        return match text {
            text if text.starts_with(NOT_FOUND) => Ok(None),
            "" => Err(format!("it exited with {status} and no output")),
            _ if text.contains(['{', '"']) => Err(format!("it exited with {status}")),
            text => Err(format!("it exited with {status}: {}", crate::text::line(text))),
        };
    }
    let wrong = "its output is not JSON with ServerURL, Username and Secret";
    let parsed: HelperOutput =
        serde_json::from_slice(stdout.expose()).map_err(|_| wrong.to_owned())?;
    let server = Pattern::parse(&parsed.server);
    if !parsed.server.is_empty() && !server.is_ok_and(|server| server == *asked) {
        let server = crate::text::line(&parsed.server);
        return Err(format!("it returned a credential for {server:?} instead of {asked}"));
    }
    if parsed.secret.is_empty() {
        return Ok(None);
    }
    Ok(Some(match parsed.username.as_str() {
        TOKEN_USER => Credential::Identity(parsed.secret),
        username => Credential::Basic { username: username.to_owned(), password: parsed.secret },
    }))
}
