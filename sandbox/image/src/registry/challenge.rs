//! `WWW-Authenticate`: what a registry wants to be shown.

use http_auth::parser::ChallengeParser;
use reqwest::header::{HeaderMap, WWW_AUTHENTICATE};

/// The longest header that is looked at.
const LENGTH_LIMIT: usize = 16 * 1024;

/// What a registry asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Challenge {
    /// User and password with each request.
    Basic,
    /// A token of the server at `realm`.
    Bearer {
        realm: String,
        service: Option<String>,
        scope: Option<String>,
        /// What was wrong with the token that was shown.
        error: Option<String>,
    },
}

/// The challenge that is met: a token if one is asked for, since it is the lesser secret.
pub(crate) fn read(headers: &HeaderMap) -> Option<Challenge> {
    let values = headers.get_all(WWW_AUTHENTICATE).iter().filter_map(|value| value.to_str().ok());
    let mut basic = None;
    for value in values.filter(|value| value.len() <= LENGTH_LIMIT) {
        // After a syntax error nothing that follows can be trusted to mean what it seems to.
        for challenge in ChallengeParser::new(value).map_while(Result::ok) {
            let param = |name: &str| {
                let found = challenge.params.iter().find(|(key, _)| key.eq_ignore_ascii_case(name));
                found.map(|(_, value)| value.to_unescaped())
            };
            if challenge.scheme.eq_ignore_ascii_case("basic") {
                basic = Some(Challenge::Basic);
            } else if challenge.scheme.eq_ignore_ascii_case("bearer") {
                if let Some(realm) = param("realm") {
                    let (service, scope, error) =
                        (param("service"), param("scope"), param("error"));
                    return Some(Challenge::Bearer { realm, service, scope, error });
                }
            }
        }
    }
    basic
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(values: &[&str]) -> Option<Challenge> {
        let mut headers = HeaderMap::new();
        for value in values {
            headers.append(WWW_AUTHENTICATE, value.parse().unwrap());
        }
        read(&headers)
    }

    fn bearer(realm: &str, service: Option<&str>, scope: Option<&str>) -> Option<Challenge> {
        let owned = |text: Option<&str>| text.map(str::to_owned);
        let realm = realm.to_owned();
        Some(Challenge::Bearer { realm, service: owned(service), scope: owned(scope), error: None })
    }

    #[test]
    fn what_registries_send() {
        let hub = r#"Bearer realm="https://auth.docker.io/token",service="registry.docker.io",scope="repository:a/b:pull""#;
        let wanted = bearer(
            "https://auth.docker.io/token",
            Some("registry.docker.io"),
            Some("repository:a/b:pull"),
        );
        assert_eq!(parsed(&[hub]), wanted);
        assert_eq!(parsed(&[r#"Basic realm="x""#, hub]), wanted);
        assert_eq!(parsed(&[&format!(r#"basic realm="x, y", {hub}"#)]), wanted);
        assert_eq!(parsed(&[r#"bearer Realm="https://a""#]), bearer("https://a", None, None));
        assert_eq!(parsed(&[r#"Basic realm="Registry Realm""#]), Some(Challenge::Basic));
        assert_eq!(parsed(&["BASIC"]), Some(Challenge::Basic));
    }

    #[test]
    fn what_is_no_challenge() {
        for value in
            ["", "Digest realm=\"x\"", "Bearer", "Bearer service=\"x\"", "=", "Bearer realm=\"x"]
        {
            assert_eq!(parsed(&[value]), None, "{value}");
        }
        assert_eq!(parsed(&[]), None);
        let long = format!("Bearer realm=\"{}\"", "x".repeat(LENGTH_LIMIT));
        assert_eq!(parsed(&[&long]), None);
    }
}
