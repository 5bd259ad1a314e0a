//! Bytes that must not be shown: a Secret's values and registry passwords.

use std::fmt;

/// Bytes without a `Display` and with a blank `Debug`, so that no message can carry them by accident; wiped on drop.
#[derive(Clone, Default, PartialEq, Eq)]
pub(crate) struct Sensitive(Vec<u8>);

impl Sensitive {
    /// Takes the bytes over.
    pub(crate) fn new(bytes: impl Into<Vec<u8>>) -> Self {
        Self(bytes.into())
    }

    /// The bytes, for the one place that hands them on.
    pub(crate) fn expose(&self) -> &[u8] {
        &self.0
    }

    /// The bytes as text, if they are UTF-8.
    pub(crate) fn expose_text(&self) -> Option<&str> {
        std::str::from_utf8(&self.0).ok()
    }
}

impl Drop for Sensitive {
    fn drop(&mut self) {
        self.0.fill(0);
        // Without a reader the compiler may leave the zeroes out.
        std::hint::black_box(&self.0);
    }
}

impl fmt::Debug for Sensitive {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Sensitive(..)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn debug_is_blank() {
        assert_eq!(format!("{:?}", Sensitive::new("hunter2")), "Sensitive(..)");
    }
}
