//! Reads a kernel module's `.modinfo` section.

use super::elf::{Elf, ElfError};

/// The fields of a module's `.modinfo` that are needed here.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Modinfo {
    /// The release of the kernel that it was built for.
    pub(super) release: Option<String>,
    /// Modules that must be loaded before it.
    pub(super) depends: Vec<String>,
    /// Modules that should be loaded before it, if they exist.
    pub(super) soft_depends: Vec<String>,
}

impl Modinfo {
    pub(super) fn read(module: &[u8]) -> Result<Option<Self>, ElfError> {
        Ok(Elf::parse(module)?.section(".modinfo")?.map(Self::parse))
    }

    /// Parses a list of NUL-terminated `key=value` fields.
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
                    // `pre: a b post: c`; only those to be loaded before are of interest.
                    let words = value.split_whitespace().skip_while(|word| *word != "pre:");
                    info.soft_depends
                        .extend(names(words.skip(1).take_while(|word| *word != "post:")));
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

/// A module's name as the kernel spells it, with `_` for `-`.
pub(super) fn canonical(name: &str) -> String {
    name.replace('-', "_")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_parsed() {
        let section =
            b"license=GPL\0softdep=pre: crc32c-generic other post: late\0depends=jbd2,mb-cache\0\
            vermagic=6.1.0 SMP mod_unload \0retpoline=Y\0";
        let info = Modinfo::parse(section);
        assert_eq!(info.release.as_deref(), Some("6.1.0"));
        assert_eq!(info.depends, ["jbd2", "mb_cache"]);
        assert_eq!(info.soft_depends, ["crc32c_generic", "other"]);
        assert_eq!(Modinfo::parse(b"depends=\0"), Modinfo::default());
    }
}
