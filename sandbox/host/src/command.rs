//! The description of a process to start.

use std::ffi::OsString;
use std::os::fd::OwnedFd;
use std::path::PathBuf;

pub use nix::sys::resource::Resource;

use crate::confine::Paths;
use crate::exit::Exit;

/// The user a process runs as.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct User {
    /// UID, and GID of the same number.
    pub id: u32,
    /// Supplementary groups.
    pub groups: Vec<u32>,
}

/// A process to start. Its environment is a `PATH` and what [`Command::env`] adds.
#[derive(Debug)]
pub struct Command {
    pub(crate) program: PathBuf,
    /// Its `argv[0]`, if not the program.
    pub(crate) arg0: Option<OsString>,
    pub(crate) args: Vec<OsString>,
    pub(crate) env: Vec<(OsString, OsString)>,
    pub(crate) cwd: Option<PathBuf>,
    pub(crate) stdio: [Option<OwnedFd>; 3],
    pub(crate) fds: Vec<(i32, OwnedFd)>,
    pub(crate) mask_proc_sys_net: bool,
    pub(crate) dies_with_parent: bool,
    pub(crate) new_session: bool,
    pub(crate) netns: Option<OwnedFd>,
    pub(crate) without_privileges: bool,
    pub(crate) limits: Vec<(Resource, u64)>,
    pub(crate) paths: Option<Paths>,
    /// The mount namespace it runs in, if not this process's; set by the host that starts it.
    pub(crate) mounts: Option<OwnedFd>,
    /// Whether it runs in this process's mount namespace, whatever that of the host is.
    pub(crate) in_own_mounts: bool,
    pub(crate) user: Option<User>,
}

impl Command {
    /// Runs `program`, an absolute path or a name looked up in `PATH`.
    pub fn new(program: impl Into<PathBuf>) -> Self {
        Self {
            program: program.into(),
            arg0: None,
            args: Vec::new(),
            env: Vec::new(),
            cwd: None,
            stdio: [None, None, None],
            fds: Vec::new(),
            mask_proc_sys_net: false,
            dies_with_parent: true,
            new_session: false,
            netns: None,
            without_privileges: false,
            limits: Vec::new(),
            paths: None,
            mounts: None,
            in_own_mounts: false,
            user: None,
        }
    }

    /// Sets the name that it is started with, its `argv[0]`; the default is the program.
    #[must_use]
    pub fn arg0(mut self, name: impl Into<OsString>) -> Self {
        self.arg0 = Some(name.into());
        self
    }

    /// Runs the process in this process's mount namespace, even if the host that starts it has
    /// another ([`crate::Host::with_private_mounts`]).
    #[must_use]
    pub fn in_own_mounts(mut self) -> Self {
        self.in_own_mounts = true;
        self
    }

    /// Adds an argument.
    #[must_use]
    pub fn arg(mut self, arg: impl Into<OsString>) -> Self {
        self.args.push(arg.into());
        self
    }

    /// Adds arguments.
    #[must_use]
    pub fn args<A: Into<OsString>>(mut self, args: impl IntoIterator<Item = A>) -> Self {
        self.args.extend(args.into_iter().map(Into::into));
        self
    }

    /// Sets an environment variable.
    #[must_use]
    pub fn env(mut self, key: impl Into<OsString>, value: impl Into<OsString>) -> Self {
        self.env.push((key.into(), value.into()));
        self
    }

    /// Sets the working directory.
    #[must_use]
    pub fn cwd(mut self, path: impl Into<PathBuf>) -> Self {
        self.cwd = Some(path.into());
        self
    }

    /// Sets its standard input; the default is `/dev/null`.
    #[must_use]
    pub fn stdin(mut self, fd: OwnedFd) -> Self {
        self.stdio[0] = Some(fd);
        self
    }

    /// Sets its standard output.
    #[must_use]
    pub fn stdout(mut self, fd: OwnedFd) -> Self {
        self.stdio[1] = Some(fd);
        self
    }

    /// Sets its standard error.
    #[must_use]
    pub fn stderr(mut self, fd: OwnedFd) -> Self {
        self.stdio[2] = Some(fd);
        self
    }

    /// Passes `fd` to it as descriptor `number` (3 or more).
    #[must_use]
    pub fn fd(mut self, number: i32, fd: OwnedFd) -> Self {
        self.fds.push((number, fd));
        self
    }

    /// Runs the process in a mount namespace of its own in which `/proc/sys/net` is empty.
    #[must_use]
    pub fn mask_proc_sys_net(mut self, mask: bool) -> Self {
        self.mask_proc_sys_net = mask;
        self
    }

    /// Lets the process outlive this one; by default it gets SIGKILL when this process dies.
    #[must_use]
    pub fn outlives_parent(mut self) -> Self {
        self.dies_with_parent = false;
        self
    }

    /// Makes the process a session leader.
    #[must_use]
    pub fn new_session(mut self) -> Self {
        self.new_session = true;
        self
    }

    /// Runs the process in this network namespace; it does not start if that cannot be entered.
    #[must_use]
    pub fn netns(mut self, netns: OwnedFd) -> Self {
        self.netns = Some(netns);
        self
    }

    /// Starts the process without capabilities and without a way to gain any: its bounding and
    /// inheritable sets are empty and `no_new_privs` is set. A process with UID 0 still owns root's
    /// files. If any of this fails the process does not start.
    #[must_use]
    pub fn without_privileges(mut self) -> Self {
        self.without_privileges = true;
        self
    }

    /// Runs the process as `user`. Descriptors passed to it stay open.
    #[must_use]
    pub fn user(mut self, user: User) -> Self {
        self.user = Some(user);
        self
    }

    /// Restricts its file system access to `paths` with Landlock. A kernel without Landlock does
    /// not enforce it, see [`crate::can_confine`]. Descriptors passed to it stay usable.
    #[must_use]
    pub fn confined(mut self, paths: Paths) -> Self {
        self.paths = Some(paths);
        self
    }

    /// Sets the soft and the hard limit of `resource` (`setrlimit(2)`).
    #[must_use]
    pub fn limit(mut self, resource: Resource, most: u64) -> Self {
        self.limits.push((resource, most));
        self
    }

    /// The program: a path or a name.
    pub fn program(&self) -> &std::path::Path {
        &self.program
    }

    /// The arguments, for logs and tests; bytes that are not UTF-8 are replaced.
    pub fn arguments(&self) -> Vec<String> {
        self.args.iter().map(|arg| arg.to_string_lossy().into_owned()).collect()
    }

    /// Program name and first argument that is not a flag, for messages.
    pub fn summary(&self) -> String {
        let name = self.program.file_name().unwrap_or(self.program.as_os_str()).to_string_lossy();
        match self.arguments().into_iter().find(|arg| !arg.starts_with('-')) {
            Some(verb) => format!("{name} {verb}"),
            None => name.into_owned(),
        }
    }
}

/// Exit and output of a process.
#[derive(Debug, Clone)]
pub struct Output {
    /// Its exit status and time.
    pub exit: Exit,
    /// The last 64 KiB of its standard output, if it was captured.
    pub stdout: Vec<u8>,
    /// The last 64 KiB of its standard error, if it was captured.
    pub stderr: Vec<u8>,
}

impl Output {
    /// Whether it exited with status 0.
    pub fn success(&self) -> bool {
        self.exit.status == 0
    }
}
