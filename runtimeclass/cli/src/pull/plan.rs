//! `--dry-run` and `--check`: what a pull would do, and what goes wrong with it.

use sandbox_image::{
    Candidate, Client, HostCheck, Outcome, Platform, Reference, RegistryHost, check as walk,
};

use super::error::PullError;

/// The exit code of a check that found something.
const FOUND: u8 = 1;

/// Prints which credential of which file would go to which host.
pub(super) async fn print(client: &Client, reference: &Reference) -> Result<(), PullError> {
    println!("image       {reference}");
    for host in client.hosts(reference.place())? {
        let candidates = client.candidates(reference.place(), &host).await?;
        for line in lines(&host, &candidates) {
            println!("{line}");
        }
    }
    Ok(())
}

fn lines(host: &RegistryHost, candidates: &[Candidate]) -> Vec<String> {
    let mirror = if host.mirror { " (mirror)" } else { "" };
    let origin = host.origin.as_ref().map(|it| format!(", by {}", it.display()));
    let origin = origin.unwrap_or_default();
    let mut lines = vec![format!("host        {}{mirror}{origin}", host.url)];
    for candidate in candidates {
        lines.push(format!(
            "credential  {} for {} of {}",
            candidate.credential.described(),
            candidate.pattern,
            candidate.origin
        ));
    }
    if candidates.is_empty() {
        lines.push("credential  none".to_owned());
    }
    lines
}

/// Prints each step of a pull from every host; the exit code is 0 if all steps succeed for one host.
pub(super) async fn check(
    client: &Client,
    reference: &Reference,
    platform: &Platform,
) -> Result<u8, PullError> {
    println!("image         {reference} for {platform}");
    let checks = walk(client, reference, platform).await?;
    for check in &checks {
        let mirror = if check.mirror { " (mirror)" } else { "" };
        println!("host          {}{mirror}", check.url);
        for line in steps(check) {
            println!("{line}");
        }
    }
    Ok(if checks.iter().any(HostCheck::is_fine) { 0 } else { FOUND })
}

fn steps(check: &HostCheck) -> Vec<String> {
    let line = |step: &sandbox_image::Step| {
        let (word, text) = match &step.outcome {
            Outcome::Fine(text) => ("ok", text.as_str()),
            Outcome::Failed(why) => ("FAIL", why.as_str()),
            Outcome::NotReached => ("-", "not reached"),
        };
        format!("{word:<4} {:<13}{text}", step.name)
    };
    check.steps.iter().map(line).collect()
}

#[cfg(test)]
mod tests {
    use sandbox_core::Secret;
    use sandbox_image::{Credential, HostsDirectories, Pattern};

    use super::*;

    #[test]
    fn a_plan_shows_everything_but_the_secret() {
        let reference: Reference = "reg.example/team/app:1".parse().unwrap();
        let host = HostsDirectories::default().hosts(reference.place()).unwrap().remove(0);
        let candidate = Candidate {
            credential: Credential::Basic {
                username: "bob".to_owned(),
                password: Secret::new("hunter2"),
            },
            pattern: Pattern::parse("reg.example/team").unwrap(),
            origin: "pull.yaml: entry \"reg.example/team\"".to_owned(),
        };
        assert_eq!(
            lines(&host, &[candidate]),
            [
                "host        https://reg.example/v2",
                "credential  user \"bob\" for reg.example/team of pull.yaml: entry \"reg.example/team\"",
            ]
        );
        assert_eq!(lines(&host, &[])[1], "credential  none");
    }
}
