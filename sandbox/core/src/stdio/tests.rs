use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::OpenOptionsExt;
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use sandbox_host::RealHost;

use super::*;
use crate::Id;

/// Bound on waits; generous, for slow machines.
const SOON: Duration = Duration::from_secs(20);

struct Bed {
    dir: tempfile::TempDir,
    host: RealHost,
    owner: Owner,
}

impl Bed {
    fn new() -> Self {
        let owner = Owner { namespace: Id::new("ns").unwrap(), container: Id::new("c1").unwrap() };
        Self { dir: tempfile::tempdir().unwrap(), host: RealHost::new().unwrap(), owner }
    }

    fn path(&self, name: &str) -> String {
        self.dir.path().join(name).display().to_string()
    }

    fn fifo(&self, name: &str) -> String {
        let path = self.path(name);
        nix::unistd::mkfifo(path.as_str(), nix::sys::stat::Mode::S_IRWXU).unwrap();
        path
    }

    async fn open(&self, paths: &StdioPaths) -> Result<(ProcessFds, Streams), StdioError> {
        open(paths, &self.owner, &self.host).await
    }
}

fn reader(path: &str) -> File {
    File::options().read(true).custom_flags(libc::O_NONBLOCK).open(path).unwrap()
}

/// Whether the pipe has no writer any more.
fn at_end_of_file(pipe: &File) -> bool {
    let mut fds = [PollFd::new(pipe.as_fd(), PollFlags::POLLIN)];
    poll(&mut fds, PollTimeout::ZERO).unwrap();
    fds[0].revents().unwrap().contains(PollFlags::POLLHUP)
}

fn read_all(mut file: File) -> String {
    let mut text = String::new();
    file.read_to_string(&mut text).unwrap();
    text
}

#[tokio::test]
async fn a_reader_after_the_exit_gets_the_output() {
    let bed = Bed::new();
    let paths = StdioPaths { stdout: Some(bed.fifo("out")), ..StdioPaths::default() };
    let (fds, streams) = bed.open(&paths).await.unwrap();
    File::from(fds.stdout).write_all(b"last words").unwrap();
    streams.finish().await;
    // Blocks until end-of-file, so until the hold has seen the reader and closed its writer.
    let path = bed.path("out");
    let late = tokio::task::spawn_blocking(move || read_all(File::open(path).unwrap()));
    let text = tokio::time::timeout(SOON, late).await;
    assert_eq!(text.unwrap().unwrap(), "last words");
}

#[tokio::test]
async fn a_reader_after_an_exit_without_output_sees_end_of_file() {
    let bed = Bed::new();
    let paths = StdioPaths { stdout: Some(bed.fifo("out")), ..StdioPaths::default() };
    let (fds, streams) = bed.open(&paths).await.unwrap();
    drop(fds);
    streams.finish().await;
    // Blocks in open(2) until there is a writer, as containerd does.
    let path = bed.path("out");
    let (done, late) = tokio::sync::oneshot::channel();
    std::thread::spawn(move || done.send(read_all(File::open(path).unwrap())));
    let text = tokio::time::timeout(SOON, late).await;
    assert_eq!(text.unwrap().unwrap(), "");
}

#[tokio::test]
async fn a_reader_sees_end_of_file_at_once() {
    let bed = Bed::new();
    let paths = StdioPaths { stdout: Some(bed.fifo("out")), ..StdioPaths::default() };
    let client = reader(&bed.path("out"));
    let (fds, streams) = bed.open(&paths).await.unwrap();
    File::from(fds.stdout).write_all(b"x").unwrap();
    streams.finish().await;
    assert_eq!(read_all(client), "x");
}

#[tokio::test]
async fn stdin_stays_open_until_it_is_closed() {
    let bed = Bed::new();
    let paths = StdioPaths { stdin: Some(bed.fifo("in")), ..StdioPaths::default() };
    let (fds, streams) = bed.open(&paths).await.unwrap();
    let mut client = File::options().write(true).open(bed.path("in")).unwrap();
    client.write_all(b"typed").unwrap();
    drop(client);
    let mut process = File::from(fds.stdin);
    let mut typed = [0; 5];
    process.read_exact(&mut typed).unwrap();
    assert_eq!(&typed, b"typed");
    // Empty, but with a writer: poll reports neither data nor a hang-up.
    assert!(!at_end_of_file(&process), "end-of-file before CloseIO");
    streams.close_stdin();
    assert!(at_end_of_file(&process));
    assert_eq!(read_all(process), "");
}

#[tokio::test]
async fn files_are_appended_to() {
    let bed = Bed::new();
    std::fs::write(bed.path("log"), "old\n").unwrap();
    let uri = format!("file://{}", bed.path("log"));
    let paths =
        StdioPaths { stdout: Some(uri.clone()), stderr: Some(uri), ..StdioPaths::default() };
    let (fds, streams) = bed.open(&paths).await.unwrap();
    File::from(fds.stdout).write_all(b"out\n").unwrap();
    File::from(fds.stderr).write_all(b"err\n").unwrap();
    streams.finish().await;
    assert_eq!(std::fs::read_to_string(bed.path("log")).unwrap(), "old\nout\nerr\n");
}

#[tokio::test]
async fn loggers_get_both_streams_and_the_owner() {
    let bed = Bed::new();
    let script = bed.path("logger");
    let body = format!(
        "#!/bin/sh\nexec 5>&-\n(echo $1 $2 $CONTAINER_NAMESPACE/$CONTAINER_ID; cat <&3; cat <&4) > {}\n",
        bed.path("log")
    );
    std::fs::write(&script, body).unwrap();
    std::fs::set_permissions(&script, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let uri = format!("binary://{script}?--to=x");
    let paths =
        StdioPaths { stdout: Some(uri.clone()), stderr: Some(uri), ..StdioPaths::default() };
    let (fds, streams) = bed.open(&paths).await.unwrap();
    File::from(fds.stdout).write_all(b"out\n").unwrap();
    File::from(fds.stderr).write_all(b"err\n").unwrap();
    streams.finish().await;
    let log = std::fs::read_to_string(bed.path("log")).unwrap();
    assert_eq!(log, "--to x ns/c1\nout\nerr\n");
}

#[tokio::test]
async fn errors_name_the_path() {
    let bed = Bed::new();
    let open = async |uri: String| {
        let paths = StdioPaths { stdout: Some(uri), ..StdioPaths::default() };
        sandbox_host::Error::from(bed.open(&paths).await.unwrap_err()).to_string()
    };
    assert_eq!(
        open("ftp://x".into()).await,
        "stdout ftp://x is not supported: use a fifo's path, file:// or binary://"
    );
    assert!(open(bed.path("none")).await.starts_with("opening stdout /"));
    assert!(open("binary:///no/logger".into()).await.starts_with("starting the logger /no/logger"));
    assert!(open("binary:///bin/false".into()).await.contains("/bin/false did not become ready"));
}

#[tokio::test]
async fn a_terminal_copies_both_ways_and_resizes() {
    let bed = Bed::new();
    let paths = StdioPaths {
        stdin: Some(bed.fifo("in")),
        stdout: Some(bed.fifo("out")),
        terminal: true,
        ..StdioPaths::default()
    };
    let (slave, streams) = open_terminal(&paths, &bed.owner, &bed.host).await.unwrap();
    streams.resize(97, 31).unwrap();
    let client = reader(&bed.path("out"));
    let mut typing = File::options().write(true).open(bed.path("in")).unwrap();
    let copies = ["-i", "-o", "-e"].map(|_| slave.try_clone().unwrap());
    drop(slave);
    let [stdin, stdout, stderr] = copies;
    let command = sandbox_host::Command::new("/bin/sh")
        .args(["-c", "stty size; read line; echo got $line"])
        .stdin(stdin)
        .stdout(stdout)
        .stderr(stderr);
    let child = bed.host.spawn(command).unwrap();
    let mut output = String::new();
    let size = async {
        while !output.contains("97") {
            tokio::time::sleep(Duration::from_millis(10)).await;
            // WouldBlock until the shell has written.
            let _ = (&client).read_to_string(&mut output);
        }
    };
    tokio::time::timeout(SOON, size).await.unwrap();
    let mut typed = streams.typed_signals().unwrap();
    typing.write_all(b"\x1c").unwrap();
    assert_eq!(typed.recv().await, Some(libc::SIGQUIT));
    typing.write_all(b"hello\n").unwrap();
    assert_eq!(child.exit.wait().await.status, 0);
    streams.finish().await;
    drop(streams);
    let output = (output + &read_all(client)).replace('\r', "");
    assert_eq!(output, "31 97\n^\\hello\ngot hello\n", "{output:?}");
}

#[tokio::test]
async fn a_stalled_reader_delays_the_finish_of_a_terminal_by_no_more_than_its_deadline() {
    let bed = Bed::new();
    let paths =
        StdioPaths { stdout: Some(bed.fifo("out")), terminal: true, ..StdioPaths::default() };
    let (slave, streams) = open_terminal(&paths, &bed.owner, &bed.host).await.unwrap();
    let stdout = slave.try_clone().unwrap();
    drop(slave);
    let command = sandbox_host::Command::new("/bin/sh")
        .args(["-c", "yes | head -c 200000; exit 4"])
        .stdout(stdout);
    let child = bed.host.spawn(command).unwrap();
    // More than pipe and terminal hold together: the process blocks until it is killed.
    let _client = reader(&bed.path("out"));
    let writer = File::options().write(true).open(bed.path("out")).unwrap();
    let full = async {
        while !is_full(&writer) {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(SOON, full).await.unwrap();
    assert!(sandbox_host::ProcessRef::of(child.pid).unwrap().kill());
    assert_eq!(child.exit.wait().await.status, 137);
    let started = std::time::Instant::now();
    tokio::time::timeout(SOON, streams.finish()).await.unwrap();
    assert!(started.elapsed() >= terminal::DRAIN, "output was left, so it waits for the reader");
}

/// Whether a write to the pipe would block. Its free bytes do not say so: every write that is
/// shorter than a page can leave a gap in one of its buffers.
fn is_full(writer: &File) -> bool {
    let mut fds = [PollFd::new(writer.as_fd(), PollFlags::POLLOUT)];
    poll(&mut fds, PollTimeout::ZERO).unwrap() == 0
}
