//! Strips the signature at a module's end.
//!
//! Its verification takes most of the time of loading a module, and adds nothing in a guest:
//! Debian's kernel loads unsigned modules as well, and their integrity is ensured by apt's
//! verification of the package and by the image's digest.

/// The end of a signed module (`MODULE_SIG_STRING` of Linux's `module_signature.h`).
const MAGIC: &[u8] = b"~Module signature appended~\n";

/// Size in bytes of `struct module_signature`, which precedes the magic and ends with the signature's
/// length, big-endian.
const TRAILER: usize = 12;

/// Removes the signature, if there is one.
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
    fn exactly_the_signature_is_removed() {
        let stripped = |mut bytes: Vec<u8>| {
            strip(&mut bytes);
            bytes
        };
        assert_eq!(stripped(signed(b"code", &[9; 264])), b"code");
        assert_eq!(stripped(b"code".to_vec()), b"code");
        // A length that is longer than the file: not a signature.
        let unsigned = [&b"x\0\0\0\0\0\0\0\0\0\0\x01\0"[..], MAGIC].concat();
        assert_eq!(stripped(unsigned.clone()), unsigned);
        assert_eq!(stripped(MAGIC.to_vec()), MAGIC);
    }
}
