//! The CRI log format: `<time> <stdout|stderr> <F|P> <text>`, where `P` means that the line continues.

/// Which stream of the container.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stream {
    Stdout,
    Stderr,
}

/// One entry of a log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Entry<'a> {
    pub(super) stream: Stream,
    /// Whether the container's line ends here.
    pub(super) full: bool,
    pub(super) text: &'a [u8],
}

/// Splits bytes that arrive in portions of any size into entries.
#[derive(Debug, Default)]
pub(super) struct Lines {
    rest: Vec<u8>,
}

impl Lines {
    /// Passes on every complete entry; fails with the shortened text of a line that is none.
    pub(super) fn feed(
        &mut self,
        bytes: &[u8],
        mut each: impl FnMut(Entry<'_>),
    ) -> Result<(), String> {
        let mut bytes = bytes;
        while let Some(at) = bytes.iter().position(|&byte| byte == b'\n') {
            let line = &bytes[..at];
            let after = &bytes[at + 1..];
            if self.rest.is_empty() {
                each(parse(line)?);
            } else {
                self.rest.extend_from_slice(line);
                let line = std::mem::take(&mut self.rest);
                each(parse(&line)?);
            }
            bytes = after;
        }
        self.rest.extend_from_slice(bytes);
        Ok(())
    }
}

fn parse(line: &[u8]) -> Result<Entry<'_>, String> {
    let wrong = || String::from_utf8_lossy(&line[..line.len().min(120)]).into_owned();
    let mut parts = line.splitn(4, |&byte| byte == b' ');
    let _time = parts.next();
    let stream = match parts.next() {
        Some(b"stdout") => Stream::Stdout,
        Some(b"stderr") => Stream::Stderr,
        Some(_) | None => return Err(wrong()),
    };
    // Tags may be several, separated by colons; the first one is F or P.
    let full = match parts.next().and_then(<[u8]>::first) {
        Some(b'F') => true,
        Some(b'P') => false,
        Some(_) | None => return Err(wrong()),
    };
    Ok(Entry { stream, full, text: parts.next().unwrap_or_default() })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(portions: &[&str]) -> Result<Vec<(Stream, bool, String)>, String> {
        let mut lines = Lines::default();
        let mut entries = Vec::new();
        for portion in portions {
            lines.feed(portion.as_bytes(), |entry| {
                let text = String::from_utf8(entry.text.to_vec()).unwrap();
                entries.push((entry.stream, entry.full, text));
            })?;
        }
        Ok(entries)
    }

    #[test]
    fn portions_do_not_matter() {
        let log = "t stdout F one two\nt stderr P a\nt stderr F:x b\nt stdout F \nt stdout F\n";
        let wanted = [
            (Stream::Stdout, true, "one two".to_owned()),
            (Stream::Stderr, false, "a".to_owned()),
            (Stream::Stderr, true, "b".to_owned()),
            (Stream::Stdout, true, String::new()),
            (Stream::Stdout, true, String::new()),
        ];
        assert_eq!(read(&[log]).unwrap(), wanted);
        for cut in 1..log.len() {
            assert_eq!(read(&[&log[..cut], &log[cut..]]).unwrap(), wanted, "{cut}");
        }
    }

    #[test]
    fn other_lines_are_refused() {
        for line in ["", "x", "t stdin F x", "t stdout X x", "t stdout"] {
            assert_eq!(read(&[&format!("{line}\n")]), Err(line.to_owned()));
        }
    }
}
