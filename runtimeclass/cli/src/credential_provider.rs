//! `bulkhead credential-provider`: the kubelet's exec plugin, a request on the standard input and
//! its answer on the standard output.

pub(crate) mod args;
pub(crate) mod config;
mod error;
mod message;

use std::io::{Read as _, Write as _};

use sandbox_core::Secret;
use sandbox_image::{CredentialSource as _, Wanted};
use sandbox_image::{Reference, Sources};

use crate::pull::{keep_out_of_core_dumps, sources};
use args::{CacheKey, ProviderArgs};
pub(crate) use error::ProviderError;

/// The largest request; a service account's token is the largest part of it.
const REQUEST_LIMIT: u64 = 1 << 20;

/// Answers one request, or prints the configuration to go with it.
pub(crate) async fn run(args: &ProviderArgs) -> Result<u8, ProviderError> {
    keep_out_of_core_dumps();
    if args.print_config {
        print!("{}", config::text(args)?);
        return Ok(0);
    }
    let mut bytes = Vec::with_capacity(64 * 1024);
    std::io::stdin().take(REQUEST_LIMIT).read_to_end(&mut bytes).map_err(ProviderError::Read)?;
    let sources = sources::stored(&args.files)?;
    let answer = answer(&Secret::new(bytes), &sources, args).await?;
    let mut out = std::io::stdout().lock();
    out.write_all(answer.expose()).and_then(|()| out.flush()).map_err(ProviderError::Write)?;
    Ok(0)
}

async fn answer(
    request: &Secret,
    sources: &Sources,
    args: &ProviderArgs,
) -> Result<Secret, ProviderError> {
    let request = message::read(request)?;
    let reference: Reference = request.image.parse()?;
    let place = reference.place();
    // An answer that is cached for the whole registry must have all of its credentials.
    let wanted = match args.cache_key {
        CacheKey::Image => Wanted::Place(place),
        CacheKey::Registry => Wanted::Host(place.host()),
    };
    let found = sources.find(wanted).await?;
    for candidate in message::unfit(&found) {
        eprintln!(
            "bulkhead: {} of {} cannot be passed to the kubelet, which takes users and passwords only",
            candidate.credential.described(),
            candidate.origin
        );
    }
    Ok(message::answer(&request.version, &found, args)?)
}

#[cfg(test)]
mod tests;
