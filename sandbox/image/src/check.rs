//! Checks the steps of a pull one by one, to find the one that fails.

use crate::platform::Platform;
use crate::pull::{self, PullError};
use crate::reference::Reference;
use crate::registry::{
    Challenge, Client, Dialed, Endpoint, RegistryError, RegistryHost, Repository, dial,
};
use crate::text;

/// The outcome of a step.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Success, with what was found.
    Fine(String),
    /// Failure, with the reason and what to do.
    Failed(String),
    /// Not attempted, since an earlier step failed.
    NotReached,
}

/// One step of a check.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Step {
    /// One of `name`, `TCP`, `TLS`, `token server`, `credential`, `image` and `platform`.
    pub name: &'static str,
    /// The outcome.
    pub outcome: Outcome,
}

/// The check of one host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostCheck {
    /// The base URL of its API.
    pub url: String,
    /// Whether it is a host other than the one in the image reference.
    pub mirror: bool,
    /// The steps, in order.
    pub steps: Vec<Step>,
}

impl HostCheck {
    /// Whether every step succeeded.
    pub fn is_fine(&self) -> bool {
        self.steps.iter().all(|step| matches!(step.outcome, Outcome::Fine(_)))
    }
}

const NAMES: [&str; 7] = ["name", "TCP", "TLS", "token server", "credential", "image", "platform"];

/// Checks every host that serves an image's registry.
///
/// # Errors
///
/// When the configuration is invalid or cannot be read.
pub async fn check(
    client: &Client,
    reference: &Reference,
    platform: &Platform,
) -> Result<Vec<HostCheck>, RegistryError> {
    let mut checks = Vec::new();
    for host in client.hosts(reference.place())? {
        checks.push(check_host(client, reference, platform, host).await?);
    }
    Ok(checks)
}

async fn check_host(
    client: &Client,
    reference: &Reference,
    platform: &Platform,
    host: RegistryHost,
) -> Result<HostCheck, RegistryError> {
    let mut outcomes = Vec::new();
    let mirror = host.mirror;
    let reachable = connect(&host, &mut outcomes).await?;
    let mut url = host.url.to_string();
    if reachable {
        let endpoint = client.endpoint(reference.place(), host).await?;
        url = endpoint.url();
        request(endpoint, reference, platform, &mut outcomes).await;
    }
    let mut outcomes = outcomes.into_iter();
    let step = |name| Step { name, outcome: outcomes.next().unwrap_or(Outcome::NotReached) };
    Ok(HostCheck { url, mirror, steps: NAMES.map(step).into() })
}

/// The steps `name`, `TCP` and `TLS`.
async fn connect(host: &RegistryHost, outcomes: &mut Vec<Outcome>) -> Result<bool, RegistryError> {
    let name = host.authority();
    let fine = |text: String| Outcome::Fine(text);
    match dial(host).await? {
        Dialed::NoName(why) => {
            let why = format!(
                "{name} has no address ({why}); is the name right, and does DNS work here?"
            );
            outcomes.push(Outcome::Failed(why));
            Ok(false)
        }
        Dialed::NoTcp { addresses, why } => {
            let listed: Vec<String> = addresses.iter().map(|it| it.ip().to_string()).collect();
            outcomes.push(fine(listed.join(", ")));
            let why =
                format!("{why}; is the registry up, the port right, and no firewall between?");
            outcomes.push(Outcome::Failed(why));
            Ok(false)
        }
        Dialed::NoTls { address, plain: true, .. } if host.allows_http => {
            outcomes.push(fine(address.ip().to_string()));
            outcomes.push(fine(address.to_string()));
            outcomes.push(fine("none: plain http, loopback host".to_owned()));
            Ok(true)
        }
        Dialed::NoTls { address, why, .. } => {
            outcomes.push(fine(address.ip().to_string()));
            outcomes.push(fine(address.to_string()));
            outcomes.push(Outcome::Failed(format!("{name}: {why}")));
            Ok(false)
        }
        Dialed::Up { address, version } => {
            outcomes.push(fine(address.ip().to_string()));
            outcomes.push(fine(address.to_string()));
            let verified = if host.tls.skip_verify { ", NOT verified (skip_verify)" } else { "" };
            outcomes.push(fine(match version {
                Some(version) => format!("{version}{verified}"),
                None => "none: plain http, set in hosts.toml".to_owned(),
            }));
            Ok(true)
        }
    }
}

/// The steps that need requests: `token server` to `platform`.
async fn request(
    endpoint: Endpoint,
    reference: &Reference,
    platform: &Platform,
    outcomes: &mut Vec<Outcome>,
) {
    let repository = Repository::single(endpoint);
    let result = pull::resolve_config(&repository, reference, platform).await;
    let Some(endpoint) = repository.endpoints().first() else { return };
    let challenge = endpoint.challenge().await;
    let server = match &challenge {
        Some(Challenge::Bearer { realm, .. }) => text::line(realm),
        Some(Challenge::Basic) => {
            "none: the registry itself checks username and password".to_owned()
        }
        None => "not needed".to_owned(),
    };
    let credential = match endpoint.candidate().await {
        Some(candidate) => {
            format!("{} of {}", candidate.credential.described(), candidate.origin)
        }
        None => "not needed".to_owned(),
    };
    let fine = Outcome::Fine;
    match result {
        Ok((document, found)) => {
            let digest = document.descriptor.digest();
            let digest = fine(digest.to_string());
            outcomes.extend([fine(server), fine(credential), digest, fine(found)]);
        }
        Err(PullError::Registry(error @ RegistryError::TokenServer { .. })) => {
            outcomes.push(Outcome::Failed(error.to_string()));
        }
        Err(PullError::Registry(
            error @ (RegistryError::Refused { .. }
            | RegistryError::NoCredential { .. }
            | RegistryError::Credential(_)),
        )) => outcomes.extend([fine(server), Outcome::Failed(error.to_string())]),
        Err(error @ PullError::NoPlatform { .. }) => {
            let image = reference.to_string();
            outcomes.extend([
                fine(server),
                fine(credential),
                fine(image),
                Outcome::Failed(error.to_string()),
            ]);
        }
        Err(error) => {
            let failed = Outcome::Failed(error.to_string());
            outcomes.extend([fine(server), fine(credential), failed]);
        }
    }
}
