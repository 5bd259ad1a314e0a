//! Token servers: tokens for users, for identity tokens and for anonymous requests.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use sandbox_core::Secret;
use sandbox_image::Credential;

use crate::bed::{Bed, candidate, no_credentials, user};
use crate::image::Image;
use crate::server::{Reply, Request, Server};

/// Creates a credential with a secret.
type Made = fn(&str) -> Credential;

/// A token server that issues `TOKEN-n` for bob, for the identity token `good`, and if `anonymous`
/// also without a credential.
fn token_server(anonymous: bool) -> Server {
    let count = AtomicUsize::new(0);
    let bob = format!("Basic {}", STANDARD.encode("bob:hunter2"));
    Server::plain(move |request: &Request| {
        let body = String::from_utf8_lossy(&request.body).into_owned();
        let granted = match (request.method.as_str(), request.header("authorization")) {
            ("GET", Some(sent)) => sent == bob,
            ("GET", None) => anonymous,
            _ => body.contains("refresh_token=good") && body.contains("grant_type=refresh_token"),
        };
        if !granted {
            let body = r#"{"error":"invalid_grant","error_description":"the token has expired"}"#;
            return Reply::new(if request.method == "POST" { 400 } else { 401 }, body);
        }
        let number = count.fetch_add(1, Ordering::SeqCst);
        Reply::new(200, format!(r#"{{"token":"TOKEN-{number}","expires_in":60}}"#))
    })
}

/// A registry that accepts the tokens for which `accepts` is true, with the token server `realm`.
fn registry(
    image: Image,
    realm: String,
    accepts: impl Fn(&str) -> bool + Send + Sync + 'static,
) -> Server {
    Server::plain(move |request: &Request| {
        match request.header("authorization").and_then(|it| it.strip_prefix("Bearer ")) {
            Some(token) if accepts(token) => image.answer(request),
            rejected => {
                let error = if rejected.is_some() { ",error=\"invalid_token\"" } else { "" };
                let challenge = format!(
                    "Bearer realm=\"{realm}\",service=\"the service\",scope=\"repository:app:pull\"{error}"
                );
                let body =
                    r#"{"errors":[{"code":"UNAUTHORIZED","message":"authentication required"}]}"#;
                Reply::new(401, body).with("WWW-Authenticate", challenge)
            }
        }
    })
}

fn realm(server: &Server) -> String {
    format!("http://{}/token", server.host())
}

#[tokio::test]
async fn tokens_for_users_identity_tokens_and_anonymous_requests() {
    for (anonymous, identity) in [(true, None), (false, None), (false, Some("good"))] {
        let bed = Bed::new();
        let tokens = token_server(anonymous);
        let server = registry(Image::multi(&[1000, 2000]), realm(&tokens), |it| it == "TOKEN-0");
        let host = server.host();
        let image = format!("{host}/app:multi");
        let source = match (anonymous, identity) {
            (true, _) => no_credentials(),
            (false, None) => vec![user(&host, "bob", "hunter2")],
            (false, Some(token)) => {
                vec![candidate(&host, Credential::Identity(Secret::new(token)))]
            }
        };
        let pulled = bed.pull(&bed.client(source), &image).await.unwrap();
        bed.assert_complete(&pulled, &image);
        // One token for all requests, with the service and scope of the challenge.
        let asked = tokens.asked();
        assert_eq!(asked.len(), 1, "{asked:?}");
        let whole = asked[0].whole();
        assert!(whole.contains("service=the+service"), "{whole}");
        assert!(whole.contains("scope=repository%3Aapp%3Apull"), "{whole}");
        // The registry receives the token, not the credential.
        let bob = STANDARD.encode("bob:hunter2");
        assert_eq!(server.saw("hunter2") + server.saw(&bob) + server.saw("good"), 0);
    }
}

#[tokio::test]
async fn an_expired_token_is_renewed() {
    let bed = Bed::new();
    let tokens = token_server(false);
    // Each token is valid for three requests.
    let uses = Arc::new(AtomicUsize::new(0));
    let accepts = move |token: &str| {
        let now = uses.load(Ordering::SeqCst) / 3;
        let good = token == format!("TOKEN-{now}");
        uses.fetch_add(usize::from(good), Ordering::SeqCst);
        good
    };
    let server = registry(Image::single(&[1000; 8]), realm(&tokens), accepts);
    let host = server.host();
    let image = format!("{host}/app:1");
    let client = bed.client(vec![user(&host, "bob", "hunter2")]);
    let pulled = bed.pull(&client, &image).await.unwrap();
    bed.assert_complete(&pulled, &image);
    assert!((3..=6).contains(&tokens.asked().len()), "{}", tokens.asked().len());
}

#[tokio::test]
async fn refused_tokens() {
    let tokens = token_server(false);
    let from = |host: &str| format!("of secret.yaml: entry \"{host}\"");
    let cases: [(&str, Made, &str); 4] = [
        (
            "password",
            |it| Credential::Basic { username: "bob".to_owned(), password: Secret::new(it) },
            "its token server returned 401 Unauthorized: invalid_grant, the token has expired",
        ),
        (
            "identity",
            |it| Credential::Identity(Secret::new(it)),
            "expired or revoked, its token server returned 400 Bad Request: invalid_grant, the token has expired",
        ),
        ("registry", |it| Credential::Registry(Secret::new(it)), "authentication required"),
        ("none", |it| Credential::Identity(Secret::new(it)), "expired or revoked"),
    ];
    for (name, credential, reason) in cases {
        let bed = Bed::new();
        let server = registry(Image::single(&[10]), realm(&tokens), |_| false);
        let host = server.host();
        let image = format!("{host}/app:1");
        let secret = format!("planted-{name}");
        let client = bed.client(vec![candidate(&host, credential(&secret))]);
        let error = bed.pull(&client, &image).await.unwrap_err();
        assert!(error.starts_with(&format!("{host} refuses access to app: ")), "{error}");
        assert!(error.contains(reason) && error.contains(&from(&host)), "{name}: {error}");
        assert!(!error.contains("planted"), "{error}");
        bed.assert_clean();
    }
    // The anonymous token is rejected, and there is no credential.
    let bed = Bed::new();
    let server = registry(Image::single(&[10]), realm(&tokens), |_| false);
    let error = bed
        .pull(&bed.client(no_credentials()), &format!("{}/app:1", server.host()))
        .await
        .unwrap_err();
    assert!(error.ends_with("requires a credential for app, and no source has one"), "{error}");
    // The first token is rejected.
    let server = registry(Image::single(&[10]), realm(&tokens), |_| false);
    let client = bed.client(vec![user(&server.host(), "bob", "hunter2")]);
    let error = bed.pull(&client, &format!("{}/app:1", server.host())).await.unwrap_err();
    assert!(
        error.contains("user \"bob\"") && error.ends_with("authentication required"),
        "{error}"
    );
}

#[tokio::test]
async fn failing_token_servers() {
    let redirecting = token_server(true);
    let elsewhere = realm(&redirecting);
    let faulty: [(Server, &str); 4] = [
        (Server::plain(|_| Reply::new(500, "")), "it returned 500"),
        (Server::plain(|_| Reply::new(200, "hunter2")), "its response contains no token"),
        (Server::plain(|_| Reply::new(200, "{\"token\":\"\"}")), "its response contains no token"),
        (
            Server::plain(move |_| Reply::new(307, "").with("Location", elsewhere.clone())),
            "it returned 307",
        ),
    ];
    for (tokens, part) in &faulty {
        let bed = Bed::new();
        let server = registry(Image::single(&[10]), realm(tokens), |_| true);
        let client = bed.client(vec![user(&server.host(), "bob", "hunter2")]);
        let error = bed.pull(&client, &format!("{}/app:1", server.host())).await.unwrap_err();
        let start = format!("token server {} of {}: ", realm(tokens), server.host());
        assert!(error.starts_with(&start) && error.contains(part), "{error}");
        assert!(!error.contains("hunter2"), "{error}");
        bed.assert_clean();
    }
    assert_eq!(redirecting.asked().len(), 0);
}

#[tokio::test]
async fn untrusted_realms_receive_no_credential() {
    for (realm, why) in [
        ("http://auth.example/token", "no credential is sent to it: it is plain http"),
        (
            "https://auth.example/token",
            "it is another host, and the registry did not name it over verified TLS",
        ),
        ("ftp://127.0.0.1/token", "neither https nor http"),
        ("http://bob:x@127.0.0.1/token", "its URL contains a user"),
        ("no URL", "relative URL"),
    ] {
        let bed = Bed::new();
        let server = registry(Image::single(&[10]), realm.to_owned(), |_| true);
        let client = bed.client(vec![user(&server.host(), "bob", "hunter2")]);
        let error = bed.pull(&client, &format!("{}/app:1", server.host())).await.unwrap_err();
        assert!(error.contains(why), "{realm}: {error}");
        bed.assert_clean();
    }
}
