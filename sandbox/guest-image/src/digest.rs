//! SHA-256 digests.

use std::fmt;
use std::io::{self, Read, Write};
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

/// A SHA-256 digest; 64 lower-case hexadecimal digits as text.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Digest([u8; 32]);

/// A text that is not a digest.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a SHA-256 digest, which has 64 lower-case hexadecimal digits")]
pub struct DigestError(String);

impl Digest {
    /// The digest of `bytes`.
    pub fn of(bytes: &[u8]) -> Self {
        Self(Sha256::digest(bytes).into())
    }

    /// Reads `source` to its end. Returns the digest and the number of bytes.
    ///
    /// # Errors
    ///
    /// The error of `source`.
    pub fn read(source: &mut impl Read) -> io::Result<(Self, u64)> {
        let mut hasher = Sha256::new();
        let mut chunk = vec![0; 256 * 1024];
        let mut size = 0;
        loop {
            match source.read(&mut chunk) {
                Ok(0) => return Ok((Self(hasher.finalize().into()), size)),
                Ok(read) => {
                    hasher.write_all(&chunk[..read])?;
                    size += read as u64;
                }
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
    }
}

impl FromStr for Digest {
    type Err = DigestError;

    fn from_str(text: &str) -> Result<Self, DigestError> {
        let nibble = |digit: u8| match digit {
            b'0'..=b'9' => Some(digit - b'0'),
            b'a'..=b'f' => Some(digit - b'a' + 10),
            _ => None,
        };
        let parse = || {
            let mut bytes = [0; 32];
            if text.len() != 2 * bytes.len() {
                return None;
            }
            for (byte, pair) in bytes.iter_mut().zip(text.as_bytes().chunks_exact(2)) {
                *byte = nibble(pair[0])? << 4 | nibble(pair[1])?;
            }
            Some(Self(bytes))
        };
        parse().ok_or_else(|| DigestError(text.to_owned()))
    }
}

impl TryFrom<String> for Digest {
    type Error = DigestError;

    fn try_from(text: String) -> Result<Self, DigestError> {
        text.parse()
    }
}

impl From<Digest> for String {
    fn from(digest: Digest) -> Self {
        digest.to_string()
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// FIPS 180-4's example of one block.
    const ABC: &str = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";

    #[test]
    fn a_digest_is_sha256_and_parses_from_its_text() {
        assert_eq!(Digest::of(b"abc").to_string(), ABC);
        assert_eq!(ABC.parse(), Ok(Digest::of(b"abc")));
        let long = vec![7; 600_000];
        assert_eq!(Digest::read(&mut &long[..]).unwrap(), (Digest::of(&long), 600_000));
    }

    #[test]
    fn other_texts_are_refused() {
        for bad in ["", "abc", &ABC.to_uppercase(), &ABC[1..], &format!("{}zz", &ABC[2..])] {
            let error = bad.parse::<Digest>().unwrap_err().to_string();
            assert!(error.starts_with(&format!("{bad:?} is not a SHA-256 digest")), "{error}");
        }
    }
}
