//! Sanitising of untrusted text for messages.

/// The longest untrusted text in a message, in bytes.
const LIMIT: usize = 300;

/// The text in one line of bounded length without control characters.
pub(crate) fn line(text: &str) -> String {
    let mut line = String::new();
    for word in text.split(|c: char| c.is_whitespace() || c.is_control()).filter(|w| !w.is_empty())
    {
        if line.len() + word.len() > LIMIT {
            let room = LIMIT.saturating_sub(line.len());
            line.extend(word.chars().take(room));
            line.push_str("...");
            break;
        }
        if !line.is_empty() {
            line.push(' ');
        }
        line.push_str(word);
    }
    line
}

/// As [`line`], with every occurrence of a secret replaced.
pub(crate) fn redacted<'a>(text: &str, secrets: impl IntoIterator<Item = &'a str>) -> String {
    let mut text = text.to_owned();
    for secret in secrets.into_iter().filter(|secret| !secret.is_empty()) {
        text = text.replace(secret, "[secret]");
    }
    line(&text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_bounded_line() {
        assert_eq!(line(" a\n\x1b[31mb\t c\r\n"), "a [31mb c");
        let long = line(&"x".repeat(10_000));
        assert!(long.len() < 310 && long.ends_with("..."), "{long}");
        assert_eq!(
            redacted("no hunter2 here, hunter2!", ["hunter2", ""]),
            "no [secret] here, [secret]!"
        );
    }
}
