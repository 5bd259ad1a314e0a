//! A pseudo terminal with a program on it.

use std::fs::File;
use std::io::{Read, Write};
use std::process::{Child, Stdio};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use nix::pty::{Winsize, openpty};
use parking_lot::Mutex;

use crate::bed::process::{Run, kill_group, until, wait};

/// The master side, what came out so far, and the program.
#[derive(Debug)]
pub(crate) struct Terminal {
    master: File,
    slave_name: String,
    seen: Arc<Mutex<Vec<u8>>>,
    child: Child,
}

impl Terminal {
    /// Starts `run` with a terminal of `rows` and `cols` as its controlling terminal.
    pub(crate) fn start(run: &Run, rows: u16, cols: u16) -> Result<Self> {
        let size = Winsize { ws_row: rows, ws_col: cols, ws_xpixel: 0, ws_ypixel: 0 };
        let pty = openpty(Some(&size), None).context("openpty")?;
        let slave_name = nix::unistd::ttyname(&pty.slave)?.display().to_string();
        let master = File::from(pty.master);
        let slave = File::from(pty.slave);
        let wrapped = Run::new("setsid").args(["--wait", "--ctty"]).args(run.words());
        let wrapped = wrapped.clean_env().env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin");
        let child = wrapped.env("TERM", "xterm").spawn(
            Stdio::from(slave.try_clone()?),
            Stdio::from(slave.try_clone()?),
            Stdio::from(slave),
        )?;
        let seen = Arc::new(Mutex::new(Vec::new()));
        let mut reader = master.try_clone()?;
        let sink = Arc::clone(&seen);
        std::thread::spawn(move || {
            let mut buffer = [0; 4096];
            while let Ok(count) = reader.read(&mut buffer) {
                if count == 0 {
                    return;
                }
                sink.lock().extend_from_slice(&buffer[..count]);
            }
        });
        Ok(Self { master, slave_name, seen, child })
    }

    /// Types `text`.
    pub(crate) fn send(&mut self, text: &str) -> Result<()> {
        self.master.write_all(text.as_bytes()).context("write to the terminal")
    }

    /// Everything that was shown so far.
    pub(crate) fn shown(&self) -> String {
        let seen = self.seen.lock();
        String::from_utf8_lossy(&seen).into_owned()
    }

    /// Waits until `text` was shown.
    pub(crate) fn expect(&self, text: &str) -> Result<()> {
        let shown =
            until(text, Duration::from_secs(20), || Ok(self.shown().contains(text).then_some(())));
        shown.with_context(|| format!("the terminal showed {:?}", self.shown()))
    }

    /// Changes the size and sends the program SIGWINCH.
    pub(crate) fn resize(&self, rows: u16, cols: u16) -> Result<()> {
        let size = [rows.to_string(), cols.to_string()];
        let stty = Run::new("stty").args(["-F", &self.slave_name]);
        stty.args(["rows", &size[0], "cols", &size[1]]).ok().map(drop)
    }

    /// Waits until the program exits; returns its exit code.
    pub(crate) fn end(&mut self) -> Result<i32> {
        match wait(&mut self.child, Duration::from_secs(30))? {
            Some(status) => Ok(status.code().unwrap_or(-1)),
            None => bail!("the program on the terminal did not exit; shown: {:?}", self.shown()),
        }
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        kill_group(&mut self.child);
    }
}
