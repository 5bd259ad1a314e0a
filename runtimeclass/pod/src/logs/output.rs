//! Printing entries of several logs without mixing their lines.

use std::io::{self, Write};
use std::sync::Arc;

use parking_lot::Mutex;

use super::format::{Entry, Stream};

/// Upper bound on the part of an unfinished line that is held back if there is a prefix, in bytes.
const LONGEST_HELD: usize = 256 * 1024;

/// The destinations of the containers' two streams.
pub struct Output {
    streams: Mutex<[Box<dyn Write + Send>; 2]>,
}

impl std::fmt::Debug for Output {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Output")
    }
}

impl Output {
    /// Prints to the process's own standard output and error.
    pub fn standard() -> Self {
        Self::new(io::stdout(), io::stderr())
    }

    fn new(stdout: impl Write + Send + 'static, stderr: impl Write + Send + 'static) -> Self {
        Self { streams: Mutex::new([Box::new(stdout), Box::new(stderr)]) }
    }

    fn write(&self, stdout: &[u8], stderr: &[u8]) -> io::Result<()> {
        let mut streams = self.streams.lock();
        for (stream, bytes) in streams.iter_mut().zip([stdout, stderr]) {
            if !bytes.is_empty() {
                stream.write_all(bytes)?;
                stream.flush()?;
            }
        }
        Ok(())
    }
}

/// Prints the entries of one container's log.
#[derive(Debug)]
pub struct Printer {
    output: Arc<Output>,
    prefix: Option<String>,
    ready: [Vec<u8>; 2],
    /// The beginning of an unfinished line, only with a prefix.
    held: [Vec<u8>; 2],
}

impl Printer {
    /// Prints `[prefix] ` before each line, if there is a prefix.
    pub fn new(output: Arc<Output>, prefix: Option<String>) -> Self {
        Self { output, prefix, ready: Default::default(), held: Default::default() }
    }

    /// Adds an entry.
    pub(super) fn add(&mut self, entry: &Entry<'_>) {
        let at = match entry.stream {
            Stream::Stdout => 0,
            Stream::Stderr => 1,
        };
        if self.prefix.is_none() {
            self.ready[at].extend_from_slice(entry.text);
            if entry.full {
                self.ready[at].push(b'\n');
            }
            return;
        }
        self.held[at].extend_from_slice(entry.text);
        if entry.full || self.held[at].len() >= LONGEST_HELD {
            self.release(at);
        }
    }

    /// Prints complete lines.
    pub(super) fn write(&mut self) -> io::Result<()> {
        let result = self.output.write(&self.ready[0], &self.ready[1]);
        self.ready.iter_mut().for_each(Vec::clear);
        result
    }

    /// Prints everything.
    pub(super) fn end(&mut self) -> io::Result<()> {
        for at in [0, 1] {
            if !self.held[at].is_empty() {
                self.release(at);
            }
        }
        self.write()
    }

    fn release(&mut self, at: usize) {
        let ready = &mut self.ready[at];
        let held = &mut self.held[at];
        if let Some(prefix) = &self.prefix {
            ready.extend_from_slice(format!("[{prefix}] ").as_bytes());
        }
        ready.append(held);
        ready.push(b'\n');
    }
}

#[cfg(test)]
pub(super) mod testing {
    use super::*;

    /// Both streams in memory.
    #[derive(Clone, Default)]
    pub(in crate::logs) struct Memory([Stored; 2]);

    #[derive(Clone, Default)]
    struct Stored(Arc<Mutex<Vec<u8>>>);

    impl Write for Stored {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().write(bytes)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    impl Memory {
        /// An output into memory, and the memory.
        pub(in crate::logs) fn output() -> (Output, Self) {
            let memory = Self::default();
            let [stdout, stderr] = memory.0.clone();
            (Output::new(stdout, stderr), memory)
        }

        /// Takes out what was printed since the last call.
        pub(in crate::logs) fn take(&self) -> (String, String) {
            let [stdout, stderr] = &self.0;
            let take = |it: &Stored| String::from_utf8(std::mem::take(&mut *it.0.lock())).unwrap();
            (take(stdout), take(stderr))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::testing::Memory;
    use super::*;

    fn entry(stream: Stream, full: bool, text: &str) -> Entry<'_> {
        Entry { stream, full, text: text.as_bytes() }
    }

    #[test]
    fn without_prefix_parts_are_shown_at_once() {
        let (output, streams) = Memory::output();
        let output = Arc::new(output);
        let mut printer = Printer::new(Arc::clone(&output), None);
        printer.add(&entry(Stream::Stdout, false, "a"));
        printer.write().unwrap();
        assert_eq!(streams.take(), ("a".to_owned(), String::new()));
        printer.add(&entry(Stream::Stdout, true, "b"));
        printer.add(&entry(Stream::Stderr, true, "e"));
        printer.end().unwrap();
        assert_eq!(streams.take(), ("b\n".to_owned(), "e\n".to_owned()));
    }

    #[test]
    fn with_prefix_lines_stay_whole() {
        let (output, streams) = Memory::output();
        let output = Arc::new(output);
        let mut web = Printer::new(Arc::clone(&output), Some("web".to_owned()));
        let mut db = Printer::new(Arc::clone(&output), Some("db".to_owned()));
        web.add(&entry(Stream::Stdout, false, "a"));
        web.write().unwrap();
        db.add(&entry(Stream::Stdout, true, "x"));
        db.write().unwrap();
        web.add(&entry(Stream::Stdout, true, "b"));
        web.add(&entry(Stream::Stdout, false, "rest"));
        web.end().unwrap();
        db.end().unwrap();
        let wanted = "[db] x\n[web] ab\n[web] rest\n".to_owned();
        assert_eq!(streams.take(), (wanted, String::new()));
    }
}
