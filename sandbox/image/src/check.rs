//! A pull's way, walked step by step, so that the step that fails is told.

use crate::platform::Platform;
use crate::pull::{self, PullError};
use crate::reference::Reference;
use crate::registry::{Challenge, Client, Dialed, Endpoint, RegistryError, RegistryHost, dial};

/// How a step went.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Well; what was found.
    Fine(String),
    /// Not; why, and what to do.
    Failed(String),
    /// An earlier one failed.
    NotReached,
}

/// One step.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Step {
    /// Its name: `name`, `TCP`, `TLS`, `token server`, `credential`, `image`, `platform`.
    pub name: &'static str,
    /// How it went.
    pub outcome: Outcome,
}

/// The walk to one host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostCheck {
    /// The address of its API.
    pub url: String,
    /// Another host than the image's own.
    pub mirror: bool,
    /// Its steps, in order.
    pub steps: Vec<Step>,
}

impl HostCheck {
    /// Whether every step went well.
    pub fn is_fine(&self) -> bool {
        self.steps.iter().all(|step| matches!(step.outcome, Outcome::Fine(_)))
    }
}

const NAMES: [&str; 7] = ["name", "TCP", "TLS", "token server", "credential", "image", "platform"];

/// Walks to every host that answers for an image's registry.
///
/// # Errors
///
/// When the configuration cannot be read.
pub async fn check(
    client: &Client,
    reference: &Reference,
    platform: &Platform,
) -> Result<Vec<HostCheck>, RegistryError> {
    let mut checks = Vec::new();
    for host in client.hosts(reference.place())? {
        checks.push(walk(client, reference, platform, host).await?);
    }
    Ok(checks)
}

async fn walk(
    client: &Client,
    reference: &Reference,
    platform: &Platform,
    host: RegistryHost,
) -> Result<HostCheck, RegistryError> {
    let mut outcomes = Vec::new();
    let mirror = host.mirror;
    let up = reach(&host, &mut outcomes).await?;
    let mut url = host.url.to_string();
    if up {
        let endpoint = client.endpoint(reference.place(), host).await?;
        url = endpoint.url();
        ask(endpoint, reference, platform, &mut outcomes).await;
    }
    let mut outcomes = outcomes.into_iter();
    let step = |name| Step { name, outcome: outcomes.next().unwrap_or(Outcome::NotReached) };
    Ok(HostCheck { url, mirror, steps: NAMES.map(step).into() })
}

/// Name, TCP and TLS.
async fn reach(host: &RegistryHost, outcomes: &mut Vec<Outcome>) -> Result<bool, RegistryError> {
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
        Dialed::NoTls { address, plain: true, .. } if host.may_be_plain => {
            outcomes.push(fine(address.ip().to_string()));
            outcomes.push(fine(address.to_string()));
            outcomes.push(fine("none: plain http, on this machine".to_owned()));
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
                None => "none: plain http, as hosts.toml says".to_owned(),
            }));
            Ok(true)
        }
    }
}

/// What the registry itself says.
async fn ask(
    endpoint: Endpoint,
    reference: &Reference,
    platform: &Platform,
    outcomes: &mut Vec<Outcome>,
) {
    let repository = endpoint.alone();
    let result = pull::resolve_config(&repository, reference, platform).await;
    let Some(endpoint) = repository.endpoints().first() else { return };
    let challenge = endpoint.challenge().await;
    let server = match &challenge {
        Some(Challenge::Bearer { realm, .. }) => crate::text::line(realm),
        Some(Challenge::Basic) => "none: the registry takes user and password itself".to_owned(),
        None => "none is needed".to_owned(),
    };
    let shown = match endpoint.candidate().await {
        Some(candidate) => {
            format!("{} of {}", candidate.credential.described(), candidate.origin)
        }
        None => "none is needed".to_owned(),
    };
    let fine = Outcome::Fine;
    match result {
        Ok((document, found)) => {
            let digest = document.descriptor.digest();
            outcomes.extend([fine(server), fine(shown), fine(digest.to_string()), fine(found)]);
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
                fine(shown),
                fine(image),
                Outcome::Failed(error.to_string()),
            ]);
        }
        Err(error) => {
            outcomes.extend([fine(server), fine(shown), Outcome::Failed(error.to_string())]);
        }
    }
}
