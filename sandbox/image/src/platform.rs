//! Platforms, and the choice of an image from an index.

use std::fmt;
use std::str::FromStr;

use oci_spec::image::{Descriptor, ImageConfiguration, ImageIndex};
use sandbox_core::{Classified, Kind};

/// An operating system, an architecture and its variant, named as in the image specification.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Platform {
    os: String,
    architecture: String,
    variant: Option<String>,
}

/// A text is not a valid platform.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("platform {0:?} is not OS/ARCHITECTURE[/VARIANT], such as linux/amd64 or linux/arm/v7")]
pub struct PlatformError(String);

impl Classified for PlatformError {
    fn kind(&self) -> Kind {
        Kind::InvalidArgument
    }
}

impl Platform {
    /// Linux on the architecture that this program was compiled for.
    pub fn of_this_machine() -> Self {
        let architecture = match std::env::consts::ARCH {
            "x86_64" => "amd64",
            "x86" => "386",
            "aarch64" => "arm64",
            "powerpc64" => "ppc64le",
            other => other,
        };
        Self { os: "linux".to_owned(), architecture: architecture.to_owned(), variant: None }
    }

    /// The image for this platform in an index: the closest variant; the first of several.
    pub(crate) fn choose<'a>(&self, index: &'a ImageIndex) -> Option<&'a Descriptor> {
        let fit = |image: &&Descriptor| {
            let platform = image.platform().as_ref()?;
            let same = platform.os().to_string() == self.os
                && platform.architecture().to_string() == self.architecture;
            same.then(|| self.distance(platform.variant().as_deref())).flatten()
        };
        index.manifests().iter().filter(|it| fit(it).is_some()).min_by_key(fit)
    }

    /// Whether an image's configuration is for this platform.
    pub(crate) fn runs(&self, config: &ImageConfiguration) -> bool {
        config.os().to_string() == self.os
            && config.architecture().to_string() == self.architecture
            && self.distance(config.variant().as_deref()).is_some()
    }

    /// The distance of a variant from the wanted one; `None` if it cannot run on it.
    fn distance(&self, variant: Option<&str>) -> Option<u32> {
        let number = |variant: Option<&str>| -> Option<u32> {
            match variant.filter(|variant| !variant.is_empty()) {
                Some(variant) => variant.strip_prefix('v')?.parse().ok(),
                // The default variant, by the specification and by convention.
                None if self.architecture == "arm64" => Some(8),
                None if self.architecture == "arm" => Some(7),
                None => Some(1),
            }
        };
        if variant == self.variant.as_deref() {
            return Some(0);
        }
        // A processor also runs code for earlier variants.
        number(self.variant.as_deref())?.checked_sub(number(variant)?)
    }
}

impl fmt::Display for Platform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.os, self.architecture)?;
        match &self.variant {
            Some(variant) => write!(f, "/{variant}"),
            None => Ok(()),
        }
    }
}

impl FromStr for Platform {
    type Err = PlatformError;

    fn from_str(text: &str) -> Result<Self, PlatformError> {
        let fine = |part: &&str| {
            let plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b"_-.".contains(&b);
            !part.is_empty() && part.bytes().all(plain)
        };
        let parts: Vec<&str> = text.split('/').collect();
        let (os, architecture, variant) = match parts.as_slice() {
            [os, architecture] => (os, architecture, None),
            [os, architecture, variant] => (os, architecture, Some((*variant).to_owned())),
            _ => return Err(PlatformError(text.to_owned())),
        };
        if !parts.iter().all(fine) {
            return Err(PlatformError(text.to_owned()));
        }
        Ok(Self { os: (*os).to_owned(), architecture: (*architecture).to_owned(), variant })
    }
}

/// The platforms in an index, for messages.
pub(crate) fn listed(index: &ImageIndex) -> String {
    let name = |image: &Descriptor| {
        let platform = image.platform().as_ref()?;
        let os = platform.os().to_string();
        let architecture = platform.architecture().to_string();
        let variant = platform.variant().as_ref().map(|it| format!("/{it}")).unwrap_or_default();
        // Attestations are listed as images for the platform unknown/unknown.
        (os != "unknown").then(|| format!("{os}/{architecture}{variant}"))
    };
    let mut names: Vec<String> = index.manifests().iter().filter_map(name).collect();
    names.dedup();
    if names.is_empty() { "no platform".to_owned() } else { crate::text::line(&names.join(", ")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn index(platforms: &[&str]) -> ImageIndex {
        let manifests: Vec<_> = platforms
            .iter()
            .enumerate()
            .map(|(at, platform)| {
                let mut parts = platform.split('/');
                let mut fields = serde_json::json!({
                    "os": parts.next().unwrap(), "architecture": parts.next().unwrap(),
                });
                if let Some(variant) = parts.next() {
                    fields["variant"] = variant.into();
                }
                serde_json::json!({
                    "mediaType": "application/vnd.oci.image.manifest.v1+json", "size": at,
                    "digest": format!("sha256:{}", "0".repeat(64)), "platform": fields,
                })
            })
            .collect();
        let text = serde_json::json!({ "schemaVersion": 2, "manifests": manifests });
        serde_json::from_value(text).unwrap()
    }

    fn chosen(wanted: &str, platforms: &[&str]) -> Option<u64> {
        let platform: Platform = wanted.parse().unwrap();
        platform.choose(&index(platforms)).map(Descriptor::size)
    }

    #[test]
    fn the_closest_variant_is_chosen() {
        let arms = ["linux/arm/v5", "linux/arm/v6", "linux/arm/v7", "linux/arm64/v8"];
        assert_eq!(chosen("linux/arm/v7", &arms), Some(2));
        assert_eq!(chosen("linux/arm", &arms), Some(2));
        assert_eq!(chosen("linux/arm/v6", &arms), Some(1));
        assert_eq!(chosen("linux/arm64", &arms), Some(3));
        assert_eq!(chosen("linux/arm64/v8", &["linux/arm64"]), Some(0));
        assert_eq!(chosen("linux/amd64", &arms), None);
        let all = ["unknown/unknown", "windows/amd64", "linux/amd64/v3", "linux/amd64"];
        assert_eq!(chosen("linux/amd64", &all), Some(3));
        assert_eq!(chosen("linux/amd64", &all[..3]), None);
        assert_eq!(chosen("linux/amd64/v4", &all), Some(2));
        assert_eq!(listed(&index(&all)), "windows/amd64, linux/amd64/v3, linux/amd64");
    }

    #[test]
    fn platforms_are_parsed() {
        for text in ["linux/amd64", "linux/arm/v7"] {
            assert_eq!(text.parse::<Platform>().unwrap().to_string(), text);
        }
        for text in ["", "linux", "linux/", "linux/arm/v7/x", "Linux/amd64", "linux/am d64"] {
            assert!(text.parse::<Platform>().is_err(), "{text}");
        }
    }
}
