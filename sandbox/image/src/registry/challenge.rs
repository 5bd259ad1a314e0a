//! Parsing of `WWW-Authenticate`.

use http_auth::parser::ChallengeParser;
use reqwest::header::{HeaderMap, WWW_AUTHENTICATE};

/// Longer headers are ignored.
const LENGTH_LIMIT: usize = 16 * 1024;

/// The authentication scheme that a registry requires.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Challenge {
    /// Username and password with each request.
    Basic,
    /// A token from the server at `realm`.
    Bearer {
        realm: String,
        service: Option<String>,
        scope: Option<String>,
        /// Why the token of the request was rejected.
        error: Option<String>,
    },
}

/// The challenge to answer: Bearer if offered, since a token reveals less than a password.
pub(crate) fn parse(headers: &HeaderMap) -> Option<Challenge> {
    let values = headers.get_all(WWW_AUTHENTICATE).iter().filter_map(|value| value.to_str().ok());
    let mut basic = None;
    for value in values.filter(|value| value.len() <= LENGTH_LIMIT) {
        // What follows a syntax error may be parsed wrongly, so it is ignored.
        for challenge in ChallengeParser::new(value).map_while(Result::ok) {
            let param = |name: &str| {
                let found = challenge.params.iter().find(|(key, _)| key.eq_ignore_ascii_case(name));
                found.map(|(_, value)| value.to_unescaped())
            };
            if challenge.scheme.eq_ignore_ascii_case("basic") {
                basic = Some(Challenge::Basic);
            } else if challenge.scheme.eq_ignore_ascii_case("bearer") {
                if let Some(realm) = param("realm") {
                    return Some(Challenge::Bearer {
                        realm,
                        service: param("service"),
                        scope: param("scope"),
                        error: param("error"),
                    });
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
        parse(&headers)
    }

    fn bearer(realm: &str, service: Option<&str>, scope: Option<&str>) -> Option<Challenge> {
        let owned = |text: Option<&str>| text.map(str::to_owned);
        let realm = realm.to_owned();
        Some(Challenge::Bearer { realm, service: owned(service), scope: owned(scope), error: None })
    }

    #[test]
    fn challenges_of_registries() {
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
    fn invalid_challenges() {
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
