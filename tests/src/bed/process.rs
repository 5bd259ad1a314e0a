//! Running programs: every process of the bed is started here, with a deadline.

use std::fs::File;
use std::io::{Read, Write};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

/// How long a program may take by default.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// How long a finished program's children may hold its output open.
const INHERITED: Duration = Duration::from_secs(10);

/// The variable whose value every deadline is multiplied by, for slow machines.
pub(crate) const PATIENCE_FACTOR: &str = "BULKHEAD_PATIENCE";

/// `time`, multiplied by [`PATIENCE_FACTOR`].
pub(crate) fn patience(time: Duration) -> Duration {
    static FACTOR: OnceLock<u32> = OnceLock::new();
    let named = || std::env::var(PATIENCE_FACTOR).ok().and_then(|factor| factor.parse().ok());
    time * (*FACTOR.get_or_init(|| named().unwrap_or(1))).max(1)
}

static STOPPING: AtomicBool = AtomicBool::new(false);

/// From now on [`Run::daemon`] and [`hold_if_stopping`] do not return: the bed is being removed.
pub(crate) fn stop() {
    STOPPING.store(true, Ordering::SeqCst);
}

/// Does not return once [`stop`] was called; another thread exits the process.
pub(crate) fn hold_if_stopping() {
    while STOPPING.load(Ordering::SeqCst) {
        std::thread::park();
    }
}

/// A command line with its environment, input and deadline.
#[derive(Debug)]
pub(crate) struct Run {
    command: Command,
    stdin: Option<Vec<u8>>,
    deadline: Duration,
}

/// The output and status of a program that has exited.
#[derive(Debug)]
pub(crate) struct Finished {
    /// Bytes of standard output.
    pub(crate) stdout: Vec<u8>,
    /// Bytes of standard error.
    pub(crate) stderr: Vec<u8>,
    /// Its exit status.
    pub(crate) status: ExitStatus,
}

impl Finished {
    /// The exit code as in a shell: 128 + signal for a killed program.
    pub(crate) fn code(&self) -> i32 {
        match (self.status.code(), self.status.signal()) {
            (Some(code), _) => code,
            (None, Some(signal)) => 128 + signal,
            (None, None) => -1,
        }
    }

    /// Standard output as text.
    pub(crate) fn out(&self) -> String {
        String::from_utf8_lossy(&self.stdout).into_owned()
    }

    /// Standard error as text.
    pub(crate) fn err(&self) -> String {
        String::from_utf8_lossy(&self.stderr).into_owned()
    }
}

impl Run {
    /// A command for `program`, found on PATH unless it has a slash.
    pub(crate) fn new(program: impl AsRef<std::ffi::OsStr>) -> Self {
        #[expect(clippy::disallowed_methods, reason = "every process of the bed is started here")]
        let command = Command::new(program);
        Self { command, stdin: None, deadline: PATIENCE }
    }

    /// Adds one argument.
    pub(crate) fn arg(mut self, arg: impl AsRef<std::ffi::OsStr>) -> Self {
        self.command.arg(arg);
        self
    }

    /// Adds several arguments.
    pub(crate) fn args<S: AsRef<std::ffi::OsStr>>(
        mut self,
        args: impl IntoIterator<Item = S>,
    ) -> Self {
        self.command.args(args);
        self
    }

    /// Sets one variable.
    pub(crate) fn env(mut self, key: &str, value: impl AsRef<std::ffi::OsStr>) -> Self {
        self.command.env(key, value);
        self
    }

    /// Starts from an empty environment.
    pub(crate) fn clean_env(mut self) -> Self {
        self.command.env_clear();
        self
    }

    /// Runs in `dir`.
    pub(crate) fn dir(mut self, dir: &Path) -> Self {
        self.command.current_dir(dir);
        self
    }

    /// Feeds `bytes` to standard input, then closes it.
    pub(crate) fn stdin(mut self, bytes: impl Into<Vec<u8>>) -> Self {
        self.stdin = Some(bytes.into());
        self
    }

    /// Kills the program and fails when it takes longer than this times [`PATIENCE_FACTOR`].
    pub(crate) fn deadline(mut self, deadline: Duration) -> Self {
        self.deadline = deadline;
        self
    }

    /// The command line, for messages.
    pub(crate) fn line(&self) -> String {
        let mut line = self.command.get_program().to_string_lossy().into_owned();
        for arg in self.command.get_args() {
            line.push(' ');
            line.push_str(&arg.to_string_lossy());
        }
        line
    }

    /// The program and its arguments, to be run by another program.
    pub(crate) fn words(&self) -> Vec<std::ffi::OsString> {
        let args = self.command.get_args();
        [self.command.get_program()].into_iter().chain(args).map(Into::into).collect()
    }

    /// Waits for the exit and returns both streams, whatever the exit code.
    pub(crate) fn finish(mut self) -> Result<Finished> {
        let line = self.line();
        self.command.stdin(if self.stdin.is_some() { Stdio::piped() } else { Stdio::null() });
        self.command.stdout(Stdio::piped()).stderr(Stdio::piped()).process_group(0);
        let mut child = self.command.spawn().with_context(|| format!("cannot start {line}"))?;
        let feeder = feed(&mut child, self.stdin.take());
        let stdout = drain(child.stdout.take());
        let stderr = drain(child.stderr.take());
        let Some(status) = wait(&mut child, self.deadline)? else {
            kill_group(&mut child);
            bail!("{line}: killed after {:?}", patience(self.deadline));
        };
        drop(feeder);
        let stdout = collect(&line, "output", stdout)?;
        let stderr = collect(&line, "error", stderr)?;
        Ok(Finished { stdout, stderr, status })
    }

    /// Waits for the exit and fails unless the code is 0; returns standard output.
    pub(crate) fn ok(self) -> Result<String> {
        let line = self.line();
        let done = self.finish()?;
        if !done.status.success() {
            bail!("{line}: exit code {}: {}{}", done.code(), done.err(), done.out());
        }
        Ok(done.out())
    }

    /// Starts a program that outlives this call, in a process group of its own, output to `log`.
    pub(crate) fn daemon(mut self, log: &Path) -> Result<Child> {
        hold_if_stopping();
        let line = self.line();
        let file = File::options().create(true).append(true).open(log)?;
        self.command.stdin(Stdio::null()).stdout(file.try_clone()?).stderr(file).process_group(0);
        self.command.spawn().with_context(|| format!("cannot start {line}"))
    }

    /// Starts a program with the given stdio; the caller owns it.
    pub(crate) fn spawn(mut self, stdin: Stdio, stdout: Stdio, stderr: Stdio) -> Result<Child> {
        let line = self.line();
        self.command.stdin(stdin).stdout(stdout).stderr(stderr);
        self.command.spawn().with_context(|| format!("cannot start {line}"))
    }
}

/// Waits for `child` until `deadline` has passed; `None` if it still runs.
pub(crate) fn wait(child: &mut Child, deadline: Duration) -> Result<Option<ExitStatus>> {
    let end = Instant::now() + patience(deadline);
    let mut pause = Duration::from_millis(1);
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(Some(status));
        }
        if Instant::now() >= end {
            return Ok(None);
        }
        std::thread::sleep(pause);
        pause = (pause * 2).min(Duration::from_millis(20));
    }
}

/// Kills the child's process group and reaps the child.
pub(crate) fn kill_group(child: &mut Child) {
    if let Ok(pid) = i32::try_from(child.id()) {
        let group = nix::unistd::Pid::from_raw(pid);
        let _ = nix::sys::signal::killpg(group, nix::sys::signal::Signal::SIGKILL);
    }
    let _ = child.kill();
    let _ = child.wait();
}

/// Calls `check` every 50 ms until it returns a value; fails with `what` when `deadline` passes.
pub(crate) fn until<T>(
    what: &str,
    deadline: Duration,
    mut check: impl FnMut() -> Result<Option<T>>,
) -> Result<T> {
    let deadline = patience(deadline);
    let end = Instant::now() + deadline;
    loop {
        if let Some(value) = check()? {
            return Ok(value);
        }
        if Instant::now() >= end {
            bail!("{what}: not so after {deadline:?}");
        }
        std::thread::sleep(Duration::from_millis(50));
    }
}

fn feed(child: &mut Child, bytes: Option<Vec<u8>>) -> Option<JoinHandle<()>> {
    let mut pipe = child.stdin.take()?;
    let bytes = bytes?;
    Some(std::thread::spawn(move || {
        // The program may exit without reading all of it.
        let _ = pipe.write_all(&bytes);
    }))
}

fn drain(pipe: Option<impl Read + Send + 'static>) -> Receiver<Vec<u8>> {
    let (sender, receiver) = channel();
    if let Some(mut pipe) = pipe {
        std::thread::spawn(move || {
            let mut bytes = Vec::new();
            let _ = pipe.read_to_end(&mut bytes);
            let _ = sender.send(bytes);
        });
    }
    receiver
}

fn collect(line: &str, which: &str, bytes: Receiver<Vec<u8>>) -> Result<Vec<u8>> {
    bytes.recv_timeout(patience(INHERITED)).map_err(|_| {
        anyhow::anyhow!(
            "{line}: exited, but a process that it started holds its standard {which} open"
        )
    })
}

/// The path of `program` in the directories of root's usual PATH.
pub(crate) fn in_path(program: &str) -> Option<PathBuf> {
    let dirs = ["/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin"];
    dirs.map(|dir| Path::new(dir).join(program)).into_iter().find(|path| path.is_file())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gives_streams_and_code() {
        let done =
            Run::new("sh").args(["-c", "cat; echo e >&2; exit 3"]).stdin("in").finish().unwrap();
        assert_eq!((done.out(), done.err(), done.code()), ("in".into(), "e\n".into(), 3));
    }

    #[test]
    fn tells_a_signal_as_a_shell_does() {
        assert_eq!(Run::new("sh").args(["-c", "kill -9 $$"]).finish().unwrap().code(), 137);
    }

    #[test]
    fn kills_at_the_deadline() {
        let begun = Instant::now();
        let end = Run::new("sleep").arg("60").deadline(Duration::from_millis(100)).finish();
        assert!(end.unwrap_err().to_string().contains("killed after"));
        assert!(begun.elapsed() < Duration::from_secs(10));
    }
}
