//! What a kernel module says about itself.

use super::elf::{Elf, ElfError};

/// A module's `.modinfo`, as far as it is needed here.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Modinfo {
    /// The release of the kernel it is made for.
    pub(super) release: Option<String>,
    /// Modules that must be loaded before.
    pub(super) depends: Vec<String>,
    /// Modules that should be loaded before, where they exist.
    pub(super) wants: Vec<String>,
}

impl Modinfo {
    pub(super) fn read(module: &[u8]) -> Result<Option<Self>, ElfError> {
        Ok(Elf::parse(module)?.section(".modinfo")?.map(Self::parse))
    }

    /// The section is a list of `key=value`, each ended by a zero byte.
    fn parse(section: &[u8]) -> Self {
        let mut info = Self::default();
        for field in section.split(|byte| *byte == 0) {
            let field = String::from_utf8_lossy(field);
            match field.split_once('=') {
                Some(("vermagic", value)) => {
                    info.release = value.split_whitespace().next().map(str::to_owned);
                }
                Some(("depends", value)) => info.depends.extend(names(value.split(','))),
                Some(("softdep", value)) => {
                    // `pre: a b post: c`; what comes after is for who loads on demand.
                    let words = value.split_whitespace().skip_while(|word| *word != "pre:");
                    info.wants.extend(names(words.skip(1).take_while(|word| *word != "post:")));
                }
                _ => {}
            }
        }
        info
    }
}

fn names<'a>(words: impl Iterator<Item = &'a str>) -> Vec<String> {
    words.filter(|word| !word.is_empty()).map(canonical).collect()
}

/// The kernel's own spelling of a module's name: `-` and `_` are the same.
pub(super) fn canonical(name: &str) -> String {
    name.replace('-', "_")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields() {
        let section =
            b"license=GPL\0softdep=pre: crc32c-generic other post: late\0depends=jbd2,mb-cache\0\
            vermagic=6.1.0 SMP mod_unload \0retpoline=Y\0";
        let info = Modinfo::parse(section);
        assert_eq!(info.release.as_deref(), Some("6.1.0"));
        assert_eq!(info.depends, ["jbd2", "mb_cache"]);
        assert_eq!(info.wants, ["crc32c_generic", "other"]);
        assert_eq!(Modinfo::parse(b"depends=\0"), Modinfo::default());
    }
}
