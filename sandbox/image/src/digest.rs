//! Verification of content by digest.

use std::str::FromStr as _;

use oci_spec::image::{Digest, DigestAlgorithm};
use sha2::{Digest as _, Sha256, Sha384, Sha512};

/// Parses a digest of a supported algorithm.
pub(crate) fn parse(text: &str) -> Result<Digest, &'static str> {
    const EXPECTED: &str = "the digest must be sha256:, sha384: or sha512: \
         followed by the right number of lower-case hexadecimal digits";
    let digest = Digest::from_str(text).map_err(|_| EXPECTED)?;
    if Verifier::new(&digest).is_some() { Ok(digest) } else { Err(EXPECTED) }
}

/// Hashes content incrementally.
#[derive(Clone, Debug)]
pub(crate) enum Verifier {
    Sha256(Sha256),
    Sha384(Sha384),
    Sha512(Sha512),
}

impl Verifier {
    /// A verifier for the algorithm of `digest`; `None` if it is not supported.
    pub(crate) fn new(digest: &Digest) -> Option<Self> {
        match digest.algorithm() {
            DigestAlgorithm::Sha256 => Some(Self::Sha256(Sha256::new())),
            DigestAlgorithm::Sha384 => Some(Self::Sha384(Sha384::new())),
            DigestAlgorithm::Sha512 => Some(Self::Sha512(Sha512::new())),
            // The enum is non-exhaustive.
            _ => None,
        }
    }

    pub(crate) fn update(&mut self, bytes: &[u8]) {
        match self {
            Self::Sha256(hash) => hash.update(bytes),
            Self::Sha384(hash) => hash.update(bytes),
            Self::Sha512(hash) => hash.update(bytes),
        }
    }

    /// The digest of the content.
    pub(crate) fn finish(self) -> String {
        match self {
            Self::Sha256(hash) => format!("sha256:{:x}", hash.finalize()),
            Self::Sha384(hash) => format!("sha384:{:x}", hash.finalize()),
            Self::Sha512(hash) => format!("sha512:{:x}", hash.finalize()),
        }
    }
}

/// The sha256 digest of `bytes`.
pub(crate) fn sha256(bytes: &[u8]) -> Digest {
    let hash: [u8; 32] = Sha256::digest(bytes).into();
    let text: String = hash.iter().map(|byte| format!("{byte:02x}")).collect();
    match Digest::from_str(&format!("sha256:{text}")) {
        Ok(digest) => digest,
        Err(_) => unreachable!("a hash in hexadecimal is a digest"),
    }
}

/// Whether `bytes` have the digest `digest`.
pub(crate) fn matches(digest: &Digest, bytes: &[u8]) -> bool {
    Verifier::new(digest).is_some_and(|mut verifier| {
        verifier.update(bytes);
        verifier.finish() == digest.as_ref()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_hashes() {
        let empty256 = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
        let abc512 = "sha512:ddaf35a193617abacc417349ae20413112e6fa4e89a97ea20a9eeee64b55d39a2192992a274fc1a836ba3c23a3feebbd454d4423643ce80e2a9ac94fa54ca49f";
        let abc384 = "sha384:cb00753f45a35e8bb5a03d699ac65007272c32ab0eded1631a8b605a43ff5bed8086072ba1e7cc2358baeca134c825a7";
        assert!(matches(&parse(empty256).unwrap(), b""));
        assert!(matches(&parse(abc512).unwrap(), b"abc"));
        assert!(matches(&parse(abc384).unwrap(), b"abc"));
        assert!(!matches(&parse(empty256).unwrap(), b"abc"));
        assert_eq!(sha256(b"").as_ref(), empty256);
    }

    #[test]
    fn unsupported_digests_are_rejected() {
        for text in
            ["", "sha256", "sha256:", "sha256:AB", "md5:d41d8cd98f00b204e9800998ecf8427e", "x:../y"]
        {
            assert!(parse(text).is_err(), "{text}");
        }
    }
}
