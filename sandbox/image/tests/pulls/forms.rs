//! The encoded forms in which a secret could leak.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

/// Plain, as in a Basic header, and within longer base64 text such as the data of a Secret.
pub(crate) fn forms(user: &str, secret: &str) -> Vec<String> {
    let pair = STANDARD.encode(format!("{user}:{secret}"));
    let encoded = [within_base64(secret), within_base64(&pair)].concat();
    [vec![secret.to_owned(), pair], encoded].concat()
}

/// The part of base64 that depends on `text` alone, for each alignment of its start.
fn within_base64(text: &str) -> [String; 3] {
    [0, 1, 2].map(|before| {
        let whole = STANDARD.encode([&vec![0; before], text.as_bytes()].concat());
        let first = (before * 8).div_ceil(6);
        let end = (before + text.len()) * 8 / 6;
        whole[first..end].to_owned()
    })
}

#[test]
fn secrets_are_found_at_every_alignment() {
    for before in ["", "a", "ab", "abc"] {
        let pair = STANDARD.encode("bob:hunter2");
        for text in [format!("{before}hunter2 more"), format!("{before}{pair} more")] {
            for shown in [text.clone(), STANDARD.encode(&text)] {
                let found = forms("bob", "hunter2").iter().any(|form| shown.contains(form));
                assert!(found, "{shown}");
            }
        }
    }
    assert!(!forms("bob", "hunter2").iter().any(|form| "another one".contains(form)));
}
