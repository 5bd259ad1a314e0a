//! Token servers: tokens for users, for identity tokens and for nobody, and where none is asked.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use sandbox_core::Secret;
use sandbox_image::Credential;

use crate::bed::{Bed, candidate, nobody, user};
use crate::image::Image;
use crate::server::{Reply, Request, Server};

/// Makes a credential of a secret.
type Made = fn(&str) -> Credential;

/// A token server that gives `TOKEN-n` to bob, to the identity token `good`, and to nobody if
/// `anonymous`.
fn token_server(anonymous: bool) -> Server {
    let count = AtomicUsize::new(0);
    let bob = format!("Basic {}", STANDARD.encode("bob:hunter2"));
    Server::plain(move |request: &Request| {
        let body = String::from_utf8_lossy(&request.body).into_owned();
        let granted = match (request.method.as_str(), request.header("authorization")) {
            ("GET", Some(shown)) => shown == bob,
            ("GET", None) => anonymous,
            _ => body.contains("refresh_token=good") && body.contains("grant_type=refresh_token"),
        };
        if !granted {
            let said = r#"{"error":"invalid_grant","error_description":"the token has expired"}"#;
            return Reply::new(if request.method == "POST" { 400 } else { 401 }, said);
        }
        let number = count.fetch_add(1, Ordering::SeqCst);
        Reply::new(200, format!(r#"{{"token":"TOKEN-{number}","expires_in":60}}"#))
    })
}

/// A registry that takes the tokens that `takes` says, and names `realm`.
fn registry(
    image: Image,
    realm: String,
    takes: impl Fn(&str) -> bool + Send + Sync + 'static,
) -> Server {
    Server::plain(move |request: &Request| {
        match request.header("authorization").and_then(|it| it.strip_prefix("Bearer ")) {
            Some(token) if takes(token) => image.answer(request),
            shown => {
                let error = if shown.is_some() { ",error=\"invalid_token\"" } else { "" };
                let challenge = format!(
                    "Bearer realm=\"{realm}\",service=\"the service\",scope=\"repository:app:pull\"{error}"
                );
                let said =
                    r#"{"errors":[{"code":"UNAUTHORIZED","message":"authentication required"}]}"#;
                Reply::new(401, said).with("WWW-Authenticate", challenge)
            }
        }
    })
}

fn realm(server: &Server) -> String {
    format!("http://{}/token", server.host())
}

#[tokio::test]
async fn a_token_for_everybody_who_may() {
    for (anonymous, identity) in [(true, None), (false, None), (false, Some("good"))] {
        let bed = Bed::new();
        let tokens = token_server(anonymous);
        let server = registry(Image::multi(&[1000, 2000]), realm(&tokens), |it| it == "TOKEN-0");
        let (host, image) = (server.host(), format!("{}/app:multi", server.host()));
        let source = match (anonymous, identity) {
            (true, _) => nobody(),
            (false, None) => vec![user(&host, "bob", "hunter2")],
            (false, Some(token)) => {
                vec![candidate(&host, Credential::Identity(Secret::new(token)))]
            }
        };
        let pulled = bed.pull(&bed.client(source), &image).await.unwrap();
        bed.whole(&pulled, &image);
        // One token for all of it, for the service and scope that were named.
        let asked = tokens.asked();
        assert_eq!(asked.len(), 1, "{asked:?}");
        let whole = asked[0].whole();
        assert!(whole.contains("service=the+service"), "{whole}");
        assert!(whole.contains("scope=repository%3Aapp%3Apull"), "{whole}");
        // The registry sees the token and never what it was given for.
        let bob = STANDARD.encode("bob:hunter2");
        assert_eq!(server.saw("hunter2") + server.saw(&bob) + server.saw("good"), 0);
    }
}

#[tokio::test]
async fn a_token_that_runs_out_is_renewed() {
    let bed = Bed::new();
    let tokens = token_server(false);
    // Each token is good for three requests.
    let uses = Arc::new(AtomicUsize::new(0));
    let takes = move |token: &str| {
        let now = uses.load(Ordering::SeqCst) / 3;
        let good = token == format!("TOKEN-{now}");
        uses.fetch_add(usize::from(good), Ordering::SeqCst);
        good
    };
    let server = registry(Image::single(&[1000; 8]), realm(&tokens), takes);
    let (host, image) = (server.host(), format!("{}/app:1", server.host()));
    let client = bed.client(vec![user(&host, "bob", "hunter2")]);
    let pulled = bed.pull(&client, &image).await.unwrap();
    bed.whole(&pulled, &image);
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
            "its token server answers 401 Unauthorized: invalid_grant, the token has expired",
        ),
        (
            "identity",
            |it| Credential::Identity(Secret::new(it)),
            "expired or revoked, its token server says 400 Bad Request: invalid_grant, the token has expired",
        ),
        ("registry", |it| Credential::Registry(Secret::new(it)), "authentication required"),
        ("none", |it| Credential::Identity(Secret::new(it)), "expired or revoked"),
    ];
    for (name, credential, said) in cases {
        let bed = Bed::new();
        let server = registry(Image::single(&[10]), realm(&tokens), |_| false);
        let (host, image) = (server.host(), format!("{}/app:1", server.host()));
        let secret = format!("planted-{name}");
        let client = bed.client(vec![candidate(&host, credential(&secret))]);
        let error = bed.pull(&client, &image).await.unwrap_err();
        assert!(error.starts_with(&format!("{host} refuses access to app: ")), "{error}");
        assert!(error.contains(said) && error.contains(&from(&host)), "{name}: {error}");
        assert!(!error.contains("planted"), "{error}");
        bed.clean();
    }
    // Nobody gets none, and there is nobody else.
    let bed = Bed::new();
    let server = registry(Image::single(&[10]), realm(&tokens), |_| false);
    let error =
        bed.pull(&bed.client(nobody()), &format!("{}/app:1", server.host())).await.unwrap_err();
    assert!(error.ends_with("wants a credential for app, and no source has one for it"), "{error}");
    // A token that was given is not taken: expired before it was of use.
    let server = registry(Image::single(&[10]), realm(&tokens), |_| false);
    let client = bed.client(vec![user(&server.host(), "bob", "hunter2")]);
    let error = bed.pull(&client, &format!("{}/app:1", server.host())).await.unwrap_err();
    assert!(
        error.contains("user \"bob\"") && error.ends_with("authentication required"),
        "{error}"
    );
}

#[tokio::test]
async fn token_servers_that_do_not_work() {
    let redirecting = token_server(true);
    let elsewhere = realm(&redirecting);
    let faulty: [(Server, &str); 4] = [
        (Server::plain(|_| Reply::new(500, "")), "it answers 500"),
        (Server::plain(|_| Reply::new(200, "hunter2")), "its answer holds no token"),
        (Server::plain(|_| Reply::new(200, "{\"token\":\"\"}")), "its answer holds no token"),
        (
            Server::plain(move |_| Reply::new(307, "").with("Location", elsewhere.clone())),
            "it answers 307",
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
        bed.clean();
    }
    assert_eq!(redirecting.asked().len(), 0);
}

#[tokio::test]
async fn a_realm_that_may_not_be_trusted_gets_nothing() {
    for (realm, why) in [
        ("http://auth.example/token", "no credential is sent there: it is plain http"),
        (
            "https://auth.example/token",
            "it is another host, and the registry did not name it over verified TLS",
        ),
        ("ftp://127.0.0.1/token", "neither https nor http"),
        ("http://bob:x@127.0.0.1/token", "its address names a user"),
        ("no address", "relative URL"),
    ] {
        let bed = Bed::new();
        let server = registry(Image::single(&[10]), realm.to_owned(), |_| true);
        let client = bed.client(vec![user(&server.host(), "bob", "hunter2")]);
        let error = bed.pull(&client, &format!("{}/app:1", server.host())).await.unwrap_err();
        assert!(error.contains(why), "{realm}: {error}");
        bed.clean();
    }
}
