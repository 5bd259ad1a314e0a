//! The names that Kubernetes allows.

/// Why a text cannot be a name.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum NameError {
    /// A DNS label (RFC 1123) was wanted.
    #[error(
        "{0:?} is not a DNS label: at most 63 of a-z, 0-9 and '-', starting and ending with a letter or digit"
    )]
    Label(String),
    /// A DNS subdomain (RFC 1123) was wanted.
    #[error(
        "{0:?} is not a DNS subdomain: at most 253 of a-z, 0-9, '-' and '.', every part starting and ending with a letter or digit"
    )]
    Subdomain(String),
    /// A key of a ConfigMap or Secret was wanted.
    #[error(
        "{0:?} is not a valid key: at most 253 of A-Z, a-z, 0-9, '-', '_' and '.', neither \".\" nor starting with \"..\""
    )]
    Key(String),
}

/// A DNS label: the names of Pods, namespaces, containers and volumes here.
///
/// Kubernetes takes subdomains for Pods, but a Pod's name becomes its hostname, and the kubelet warns about dots.
pub(crate) fn label(text: &str) -> Result<(), NameError> {
    if text.len() <= 63 && is_part(text) { Ok(()) } else { Err(NameError::Label(text.to_owned())) }
}

/// A DNS subdomain: the names of ConfigMaps, Secrets and RuntimeClasses.
pub(crate) fn subdomain(text: &str) -> Result<(), NameError> {
    if text.len() <= 253 && text.split('.').all(is_part) {
        Ok(())
    } else {
        Err(NameError::Subdomain(text.to_owned()))
    }
}

/// A key of a ConfigMap or Secret: it becomes a file's name.
pub(crate) fn key(text: &str) -> Result<(), NameError> {
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    if !text.is_empty()
        && text.len() <= 253
        && text.chars().all(allowed)
        && text != "."
        && !text.starts_with("..")
    {
        Ok(())
    } else {
        Err(NameError::Key(text.to_owned()))
    }
}

fn is_part(text: &str) -> bool {
    let alphanumeric = |c: u8| c.is_ascii_lowercase() || c.is_ascii_digit();
    let bytes = text.as_bytes();
    bytes.first().is_some_and(|&c| alphanumeric(c))
        && bytes.last().is_some_and(|&c| alphanumeric(c))
        && bytes.iter().all(|&c| alphanumeric(c) || c == b'-')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels() {
        for good in ["a", "web-1", "0", &"x".repeat(63)] {
            assert_eq!(label(good), Ok(()), "{good}");
        }
        for bad in ["", "-a", "a-", "A", "a.b", "a/b", "a_b", "é", &"x".repeat(64)] {
            assert_eq!(label(bad), Err(NameError::Label(bad.to_owned())));
        }
    }

    #[test]
    fn subdomains_and_keys() {
        assert_eq!(subdomain("a.b-c.d"), Ok(()));
        for bad in ["", "a..b", ".a", "a.", "A"] {
            assert!(subdomain(bad).is_err(), "{bad}");
        }
        for good in ["key", "K.e_y-1", ".hidden", "tls.crt"] {
            assert_eq!(key(good), Ok(()), "{good}");
        }
        for bad in ["", ".", "..", "..data", "a/b", "a b"] {
            assert!(key(bad).is_err(), "{bad}");
        }
    }
}
