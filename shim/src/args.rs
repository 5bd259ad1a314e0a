//! The command line containerd uses: Go's flags (one dash or two), then an action.

use std::path::PathBuf;

use sandbox_core::{Error, Id, Kind, Result};

/// What the binary is asked to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Action {
    /// `start`: make sure that a shim serves the Pod, and print its address.
    Start,
    /// `delete`: clean up after a container whose shim is gone.
    Delete,
    /// `serve`: be that shim.
    Serve,
    /// `-v`.
    Version,
    /// `-info`.
    Info,
}

/// The checked command line.
#[derive(Debug)]
pub(crate) struct Args {
    pub(crate) action: Action,
    /// The name under which this program was called.
    pub(crate) program: PathBuf,
    namespace: String,
    id: String,
    /// containerd's gRPC address.
    pub(crate) address: String,
    /// The bundle; given with `delete` alone.
    pub(crate) bundle: Option<PathBuf>,
    pub(crate) debug: bool,
}

impl Args {
    /// Reads the program's name and its arguments. Flags that are not known are ignored with
    /// their value: a newer containerd may send them.
    pub(crate) fn parse(args: impl IntoIterator<Item = String>) -> Result<Self> {
        let mut parsed = Self {
            action: Action::Serve,
            program: PathBuf::new(),
            namespace: String::new(),
            id: String::new(),
            address: String::new(),
            bundle: None,
            debug: false,
        };
        let mut words = Vec::new();
        let mut args = args.into_iter().peekable();
        parsed.program = args.next().unwrap_or_default().into();
        while let Some(arg) = args.next() {
            let Some(flag) = arg.strip_prefix("--").or_else(|| arg.strip_prefix('-')) else {
                words.push(arg);
                continue;
            };
            let (name, inline) = match flag.split_once('=') {
                Some((name, value)) => (name, Some(value.to_owned())),
                None => (flag, None),
            };
            match name {
                "v" | "version" => return Ok(Self { action: Action::Version, ..parsed }),
                "info" => return Ok(Self { action: Action::Info, ..parsed }),
                "debug" => parsed.debug = inline.is_none_or(|value| value == "true"),
                _ => {
                    let follows = |next: &String| !next.starts_with('-');
                    let value = inline.or_else(|| args.next_if(follows)).unwrap_or_default();
                    parsed.set(name, value);
                }
            }
        }
        parsed.action = action(&words)?;
        Ok(parsed)
    }

    fn set(&mut self, name: &str, value: String) {
        match name {
            "namespace" => self.namespace = value,
            "id" => self.id = value,
            "address" => self.address = value,
            "bundle" => self.bundle = Some(value.into()),
            // -publish-binary, -socket and what may come: nothing here needs them.
            _ => {}
        }
    }

    /// The container's id.
    pub(crate) fn id(&self) -> Result<Id> {
        checked("-id", &self.id)
    }

    /// containerd's namespace.
    pub(crate) fn namespace(&self) -> Result<Id> {
        checked("-namespace", &self.namespace)
    }
}

fn checked(flag: &str, value: &str) -> Result<Id> {
    Id::new(value).map_err(|e| Error::new(Kind::InvalidArgument, format!("{flag}: {e}")))
}

fn action(words: &[String]) -> Result<Action> {
    match words.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["start"] => Ok(Action::Start),
        ["delete"] => Ok(Action::Delete),
        ["serve"] => Ok(Action::Serve),
        _ => Err(Error::new(
            Kind::InvalidArgument,
            format!(
                "{words:?} is no action: containerd calls this program with start or delete; \
                 -v prints the version"
            ),
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Result<Args> {
        Args::parse(["shim"].into_iter().chain(line.split_whitespace()).map(str::to_owned))
    }

    #[test]
    fn reads_what_every_containerd_sends() {
        let line = "-namespace k8s.io -address /run/c.sock -publish-binary /usr/bin/containerd \
                    -id abc -bundle /b -debug delete";
        let args = parse(line).unwrap();
        assert_eq!(args.action, Action::Delete);
        assert_eq!((args.id().unwrap().as_str(), args.address.as_str()), ("abc", "/run/c.sock"));
        assert!(args.debug && args.bundle == Some("/b".into()));
        let args = parse("--namespace=n --id=i -future-flag value start").unwrap();
        assert_eq!((args.action, args.namespace().unwrap().as_str()), (Action::Start, "n"));
        assert_eq!(parse("-v").unwrap().action, Action::Version);
        assert_eq!(parse("-info").unwrap().action, Action::Info);
    }

    #[test]
    fn bad_words_are_named() {
        assert!(parse("").unwrap_err().to_string().contains("is no action"));
        assert!(parse("-id x stop").unwrap_err().to_string().contains("stop"));
        let error = parse("-id a/b start").unwrap().id().unwrap_err();
        assert_eq!(error.kind(), Kind::InvalidArgument);
        assert!(error.to_string().starts_with("-id: id \"a/b\" is not allowed"), "{error}");
    }
}
