//! Printing entries of several logs without mixing their lines.

use std::io::{self, Write};
use std::sync::{Arc, Mutex, PoisonError};

use super::format::{Entry, Stream};

/// How much of a line that does not end is held back while its container has a prefix.
const LONGEST_HELD: usize = 256 * 1024;

/// Where the two streams go.
pub(crate) struct Output {
    streams: Mutex<[Box<dyn Write + Send>; 2]>,
    #[cfg(test)]
    memory: [Arc<Mutex<Vec<u8>>>; 2],
}

impl std::fmt::Debug for Output {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Output")
    }
}

impl Output {
    /// This program's own standard output and error.
    pub(crate) fn standard() -> Self {
        Self {
            streams: Mutex::new([Box::new(io::stdout()), Box::new(io::stderr())]),
            #[cfg(test)]
            memory: Default::default(),
        }
    }

    fn write(&self, stdout: &[u8], stderr: &[u8]) -> io::Result<()> {
        let mut streams = self.streams.lock().unwrap_or_else(PoisonError::into_inner);
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
pub(crate) struct Printer {
    output: Arc<Output>,
    prefix: Option<String>,
    ready: [Vec<u8>; 2],
    /// The beginning of a line whose end has not come, only with a prefix.
    held: [Vec<u8>; 2],
}

impl Printer {
    /// A printer that writes `[prefix] ` before each line, if there is one.
    pub(crate) fn new(output: Arc<Output>, prefix: Option<String>) -> Self {
        Self { output, prefix, ready: Default::default(), held: Default::default() }
    }

    /// Takes an entry over.
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

    /// Writes whole lines out.
    pub(super) fn write(&mut self) -> io::Result<()> {
        let result = self.output.write(&self.ready[0], &self.ready[1]);
        self.ready.iter_mut().for_each(Vec::clear);
        result
    }

    /// Writes everything out.
    pub(super) fn end(&mut self) -> io::Result<()> {
        for at in [0, 1] {
            if !self.held[at].is_empty() {
                self.release(at);
            }
        }
        self.write()
    }

    fn release(&mut self, at: usize) {
        let (ready, held) = (&mut self.ready[at], &mut self.held[at]);
        if let Some(prefix) = &self.prefix {
            ready.extend_from_slice(format!("[{prefix}] ").as_bytes());
        }
        ready.append(held);
        ready.push(b'\n');
    }
}

#[cfg(test)]
impl Output {
    pub(crate) fn memory() -> Self {
        #[derive(Clone, Default)]
        struct Shared(Arc<Mutex<Vec<u8>>>);
        impl Write for Shared {
            fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
                self.0.lock().unwrap().write(bytes)
            }
            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        let (out, err) = (Shared::default(), Shared::default());
        let memory = [Arc::clone(&out.0), Arc::clone(&err.0)];
        Self { streams: Mutex::new([Box::new(out), Box::new(err)]), memory }
    }

    pub(crate) fn taken(&self) -> (String, String) {
        let take = |at: usize| {
            String::from_utf8(std::mem::take(&mut *self.memory[at].lock().unwrap())).unwrap()
        };
        (take(0), take(1))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(stream: Stream, full: bool, text: &str) -> Entry<'_> {
        Entry { stream, full, text: text.as_bytes() }
    }

    #[test]
    fn without_prefix_parts_are_shown_at_once() {
        let output = Arc::new(Output::memory());
        let mut printer = Printer::new(Arc::clone(&output), None);
        printer.add(&entry(Stream::Stdout, false, "a"));
        printer.write().unwrap();
        assert_eq!(output.taken(), ("a".to_owned(), String::new()));
        printer.add(&entry(Stream::Stdout, true, "b"));
        printer.add(&entry(Stream::Stderr, true, "e"));
        printer.end().unwrap();
        assert_eq!(output.taken(), ("b\n".to_owned(), "e\n".to_owned()));
    }

    #[test]
    fn with_prefix_lines_stay_whole() {
        let output = Arc::new(Output::memory());
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
        assert_eq!(output.taken(), (wanted, String::new()));
    }
}
