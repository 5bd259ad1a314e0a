//! The signature at a module's end.
//!
//! It is taken off. Checking it is most of what loading a module costs, and in a guest it is
//! worth nothing: Debian's kernel loads unsigned modules as well, and what vouches for them is
//! apt's check of the package and the image's digest.

/// What a signed module ends with (`MODULE_SIG_STRING` of Linux's `module_signature.h`).
const MAGIC: &[u8] = b"~Module signature appended~\n";

/// The size of `struct module_signature`, which stands before the magic and ends with the
/// signature's length, big-endian.
const TRAILER: usize = 12;

/// Cuts the signature off, if there is one.
pub(super) fn strip(module: &mut Vec<u8>) {
    if let Some(size) = unsigned_size(module) {
        module.truncate(size);
    }
}

fn unsigned_size(module: &[u8]) -> Option<usize> {
    let rest = module.strip_suffix(MAGIC)?;
    let (_, length) = rest.split_last_chunk::<4>()?;
    let length = usize::try_from(u32::from_be_bytes(*length)).ok()?;
    rest.len().checked_sub(TRAILER)?.checked_sub(length)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::build::fixtures::signed;

    #[test]
    fn exactly_the_signature_goes() {
        let stripped = |mut bytes: Vec<u8>| {
            strip(&mut bytes);
            bytes
        };
        assert_eq!(stripped(signed(b"code", &[9; 264])), b"code");
        assert_eq!(stripped(b"code".to_vec()), b"code");
        // A length that is longer than the file: not a signature.
        let lying = [&b"x\0\0\0\0\0\0\0\0\0\0\x01\0"[..], MAGIC].concat();
        assert_eq!(stripped(lying.clone()), lying);
        assert_eq!(stripped(MAGIC.to_vec()), MAGIC);
    }
}
