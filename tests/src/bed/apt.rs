//! Debian packages without changes to the system: the machine's own sources name its archive, a
//! private apt reads other suites of the same archive, and `dpkg -x` unpacks into the cache.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};

use super::process::Run;

/// One archive that apt reads: its address, its suites and the key that must have signed it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Source {
    /// Base URIs, each ending before `/dists`.
    pub(crate) uris: Vec<String>,
    /// Suites or code names.
    pub(crate) suites: Vec<String>,
    /// Components, such as `main`.
    pub(crate) components: Vec<String>,
    /// The value of Signed-By: a path, or an armoured key over several lines.
    pub(crate) signed_by: Option<String>,
}

/// Reads a file of the deb822 form (`*.sources`); disabled and source-only stanzas are left out.
pub(crate) fn parse_deb822(text: &str) -> Vec<Source> {
    let live = text.lines().filter(|line| !line.starts_with('#'));
    let text = live.collect::<Vec<_>>().join("\n");
    text.split("\n\n").filter_map(stanza).collect()
}

fn stanza(text: &str) -> Option<Source> {
    let mut fields: Vec<(String, String)> = Vec::new();
    for line in text.lines().filter(|line| !line.trim().is_empty()) {
        if line.starts_with([' ', '\t']) {
            let (_, value) = fields.last_mut()?;
            value.push('\n');
            value.push_str(line);
        } else {
            let (key, value) = line.split_once(':')?;
            fields.push((key.trim().to_ascii_lowercase(), value.trim().to_owned()));
        }
    }
    let field = |key: &str| fields.iter().find(|(k, _)| k == key).map(|(_, v)| v.clone());
    let words = |key: &str| -> Vec<String> {
        field(key).unwrap_or_default().split_whitespace().map(str::to_owned).collect()
    };
    if !words("types").iter().any(|t| t == "deb") || field("enabled").is_some_and(|e| e == "no") {
        return None;
    }
    Some(Source {
        uris: words("uris"),
        suites: words("suites"),
        components: words("components"),
        signed_by: field("signed-by"),
    })
}

/// Reads a file of the one-line form (`*.list`).
pub(crate) fn parse_list(text: &str) -> Vec<Source> {
    text.lines().filter_map(one_line).collect()
}

fn one_line(line: &str) -> Option<Source> {
    let line = line.split('#').next()?.trim();
    let rest = line.strip_prefix("deb ")?.trim_start();
    let (options, rest) = match rest.strip_prefix('[') {
        Some(rest) => rest.split_once(']')?,
        None => ("", rest),
    };
    let signed_by = options.split_whitespace().find_map(|o| o.strip_prefix("signed-by="));
    let mut words = rest.split_whitespace().map(str::to_owned);
    Some(Source {
        uris: vec![words.next()?],
        suites: vec![words.next()?],
        components: words.collect(),
        signed_by: signed_by.map(str::to_owned),
    })
}

/// Every source that the machine's apt is configured with; `etc` is `/etc/apt`.
pub(crate) fn configured(etc: &Path) -> Result<Vec<Source>> {
    let mut files = vec![etc.join("sources.list")];
    if let Ok(dir) = fs::read_dir(etc.join("sources.list.d")) {
        files.extend(dir.filter_map(|entry| Some(entry.ok()?.path())));
    }
    files.sort();
    let mut sources = Vec::new();
    for file in files {
        let parse = match file.extension().and_then(|e| e.to_str()) {
            Some("list") => parse_list,
            Some("sources") => parse_deb822,
            _ => continue,
        };
        match fs::read_to_string(&file) {
            Ok(text) => sources.extend(parse(&text)),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {}
            Err(e) => return Err(e).with_context(|| format!("cannot read {}", file.display())),
        }
    }
    Ok(sources)
}

/// An apt of our own: its sources, lists and cache are under one folder.
#[derive(Debug)]
pub(crate) struct PrivateApt {
    dir: PathBuf,
}

impl PrivateApt {
    /// Writes the private configuration under `dir` for `suites` of the archive that the machine's
    /// own `codename` comes from, and reads the package lists.
    pub(crate) fn open(dir: &Path, codename: &str, suites: &[&str]) -> Result<Self> {
        let sources = configured(Path::new("/etc/apt"))?;
        let ours = |s: &&Source| {
            s.suites.iter().any(|suite| suite == codename)
                && s.components.iter().any(|c| c == "main")
        };
        let Some(source) = sources.iter().find(ours) else {
            bail!("no apt source below /etc/apt names suite {codename:?} with component main");
        };
        for sub in ["lists/partial", "archives/partial", "sources.d"] {
            fs::create_dir_all(dir.join(sub))?;
        }
        fs::write(dir.join("sources.d/bed.sources"), stanza_text(source, suites))?;
        let apt = Self { dir: dir.to_owned() };
        apt.run("apt-get").arg("update").deadline(Duration::from_secs(300)).ok()?;
        Ok(apt)
    }

    /// Downloads `package` of `suite` and unpacks it into `into`; returns the version.
    pub(crate) fn unpack(&self, package: &str, suite: &str, into: &Path) -> Result<String> {
        let load = self.dir.join("load");
        let _ = fs::remove_dir_all(&load);
        let deb = self.download(package, suite, &load)?;
        fs::create_dir_all(into)?;
        Run::new("dpkg").arg("-x").arg(&deb).arg(into).ok()?;
        let version = Run::new("dpkg-deb").arg("-f").arg(&deb).arg("Version").ok()?;
        fs::remove_dir_all(&load)?;
        Ok(version.trim().to_owned())
    }

    /// Downloads `package` of `suite` into the empty folder `into`; returns the file.
    pub(crate) fn download(&self, package: &str, suite: &str, into: &Path) -> Result<PathBuf> {
        fs::create_dir_all(into)?;
        let wanted = format!("{package}/{suite}");
        let run = self.run("apt-get").args(["download", &wanted]).dir(into);
        run.deadline(Duration::from_secs(300)).ok()?;
        let Some(deb) = fs::read_dir(into)?.find_map(|e| Some(e.ok()?.path())) else {
            bail!("apt-get download {wanted}: wrote no file");
        };
        Ok(deb)
    }

    /// The first dependency of `package` in `suite`: the package that a metapackage stands for.
    pub(crate) fn first_dependency(&self, package: &str, suite: &str) -> Result<String> {
        let wanted = format!("{package}/{suite}");
        let text = self.run("apt-cache").args(["show", &wanted]).ok()?;
        first_dependency(&text)
            .with_context(|| format!("apt-cache show {wanted}: no dependency: {text}"))
    }

    fn run(&self, program: &str) -> Run {
        let dir = self.dir.display();
        let options = [
            "Dir::Etc::SourceList=/dev/null".to_owned(),
            format!("Dir::Etc::SourceParts={dir}/sources.d"),
            format!("Dir::State::Lists={dir}/lists"),
            format!("Dir::Cache={dir}"),
            "Acquire::Languages=none".to_owned(),
            "Acquire::Retries=3".to_owned(),
            "APT::Sandbox::User=root".to_owned(),
            "APT::Get::List-Cleanup=false".to_owned(),
        ];
        let options = options.iter().flat_map(|o| ["-o", o.as_str()]);
        Run::new(program).args(["-q"]).args(options).env("LC_ALL", "C")
    }
}

fn first_dependency(text: &str) -> Option<String> {
    let depends = text.lines().find_map(|line| line.strip_prefix("Depends:"))?;
    let name = depends.split([',', '(', '|']).next()?.trim();
    (!name.is_empty()).then(|| name.to_owned())
}

fn stanza_text(source: &Source, suites: &[&str]) -> String {
    let mut text = format!(
        "Types: deb\nURIs: {}\nSuites: {}\nComponents: main\n",
        source.uris.join(" "),
        suites.join(" ")
    );
    if let Some(signed_by) = &source.signed_by {
        text.push_str(&format!("Signed-By: {signed_by}\n"));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_deb822() {
        let text = "# why\nTypes: deb deb-src\n# a note\nURIs: http://a.example/debian\n\
            Suites: bookworm bookworm-updates\nComponents: main contrib\n\
            Signed-By: /usr/share/keyrings/k.gpg\n\nTypes: deb\nEnabled: no\nURIs: http://b\n\
            Suites: bookworm\nComponents: main\n\nTypes: deb-src\nURIs: http://c\nSuites: x\n";
        let sources = parse_deb822(text);
        assert_eq!(sources.len(), 1);
        assert_eq!(sources[0].uris, ["http://a.example/debian"]);
        assert_eq!(sources[0].suites, ["bookworm", "bookworm-updates"]);
        assert_eq!(sources[0].signed_by.as_deref(), Some("/usr/share/keyrings/k.gpg"));
    }

    #[test]
    fn a_meta_package_names_its_kernel() {
        let text =
            "Package: linux-image-amd64\nDepends: linux-image-6.1.0-50-amd64 (= 6.1.176-1), x\n";
        assert_eq!(first_dependency(text).as_deref(), Some("linux-image-6.1.0-50-amd64"));
        assert_eq!(first_dependency("Package: a\n"), None);
    }

    #[test]
    fn an_inline_key_survives_the_round_trip() {
        let key = "\n -----BEGIN-----\n .\n abc\n -----END-----";
        let text =
            format!("Types: deb\nURIs: http://a\nSuites: s\nComponents: main\nSigned-By:{key}\n");
        let source = &parse_deb822(&text)[0];
        assert_eq!(parse_deb822(&stanza_text(source, &["s"]))[0], *source);
    }

    #[test]
    fn reads_one_line() {
        let text = "# deb http://no no main\n\
            deb [arch=amd64 signed-by=/k.gpg] http://a/debian bookworm main contrib # tail\n\
            deb-src http://a/debian bookworm main\n";
        let sources = parse_list(text);
        assert_eq!(sources.len(), 1);
        assert_eq!(sources[0].suites, ["bookworm"]);
        assert_eq!(sources[0].components, ["main", "contrib"]);
        assert_eq!(sources[0].signed_by.as_deref(), Some("/k.gpg"));
    }
}
