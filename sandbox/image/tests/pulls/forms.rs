//! The forms in which a secret could show.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

/// As it is, in a header, and in the middle of whatever was encoded, such as a Secret's data.
pub(crate) fn forms(user: &str, secret: &str) -> Vec<String> {
    let pair = STANDARD.encode(format!("{user}:{secret}"));
    let encoded = [within_base64(secret), within_base64(&pair)].concat();
    [vec![secret.to_owned(), pair], encoded].concat()
}

/// The part of base64 that tells of `text`, by where it begins in what was encoded.
fn within_base64(text: &str) -> [String; 3] {
    [0, 1, 2].map(|before| {
        let whole = STANDARD.encode([&vec![0; before], text.as_bytes()].concat());
        let (first, end) = ((before * 8).div_ceil(6), (before + text.len()) * 8 / 6);
        whole[first..end].to_owned()
    })
}

#[test]
fn a_secret_is_found_wherever_it_is() {
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
