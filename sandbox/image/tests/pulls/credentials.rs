//! User and password, asked for by the registry itself.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use sandbox_core::Secret;
use sandbox_image::Credential;

use crate::bed::{Bed, candidate, nobody, user};
use crate::image::Image;
use crate::server::{Reply, Request, Server};

/// A registry that knows bob.
fn basic(image: Image) -> Server {
    let wanted = format!("Basic {}", STANDARD.encode("bob:hunter2"));
    Server::plain(move |request: &Request| match request.header("authorization") {
        Some(shown) if shown == wanted => image.answer(request),
        Some(shown) => {
            // The worst that a server can do: to say what it was shown.
            let said =
                format!(r#"{{"errors":[{{"code":"DENIED","message":"no access with {shown}"}}]}}"#);
            Reply::new(401, said).with("WWW-Authenticate", "Basic realm=\"r\"")
        }
        None => Reply::new(401, "").with("WWW-Authenticate", "Basic realm=\"r\""),
    })
}

#[tokio::test]
async fn anybody_pulls_what_is_public() {
    let bed = Bed::new();
    let (single, multi) = (Image::single(&[10_000, 0, 300_000]), Image::multi(&[5_000]));
    let (one, two) = (single.clone(), multi.clone());
    let server = Server::plain(move |request| match request.path.contains("/single/") {
        true => one.answer(request),
        false => two.answer(request),
    });
    let host = server.host();
    // A credential is not shown to a host that does not ask, whether it is for it or not.
    let client = bed.client(vec![user(&host, "bob", "hunter2")]);
    for (image, tag, name) in [(&single, "1", "single"), (&multi, "multi", "multi")] {
        let by_tag = format!("{host}/{name}:{tag}");
        let pulled = bed.pull(&client, &by_tag).await.unwrap();
        bed.whole(&pulled, &by_tag);
        let by_digest = format!("{host}/{name}@{}", image.digest(tag));
        let pulled = bed.pull(&client, &by_digest).await.unwrap();
        bed.whole(&pulled, &by_digest);
    }
    assert_eq!(server.saw("uthorization"), 0);
    // What is there is not fetched again.
    let before = server.saw("/blobs/");
    bed.pull(&client, &format!("{host}/single:1")).await.unwrap();
    assert_eq!(server.saw("/blobs/"), before);
}

#[tokio::test]
async fn the_right_one_of_several_is_found() {
    let bed = Bed::new();
    let server = basic(Image::single(&[1000]));
    let (host, image) = (server.host(), format!("{}/team/app:1", server.host()));
    let client = bed.client(vec![
        user(&format!("{host}/team"), "eve", "wrong-one"),
        candidate(&format!("{host}/team"), Credential::Identity(Secret::new("a-token"))),
        user(&host, "bob", "hunter2"),
        user("other.example", "carol", "not-for-this"),
    ]);
    let pulled = bed.pull(&client, &image).await.unwrap();
    bed.whole(&pulled, &image);
    assert_eq!(server.saw("a-token") + server.saw("not-for-this"), 0);
    // Once the right one is known it is the only one.
    let shown: Vec<_> = server
        .asked()
        .iter()
        .filter_map(|it| it.header("authorization").map(str::to_owned))
        .collect();
    let wrong = format!("Basic {}", STANDARD.encode("eve:wrong-one"));
    assert_eq!(shown.iter().filter(|it| **it == wrong).count(), 1);
}

#[tokio::test]
async fn no_credential() {
    let bed = Bed::new();
    let server = basic(Image::single(&[10]));
    let (host, image) = (server.host(), format!("{}/app:1", server.host()));
    let port = host.rsplit(':').next().unwrap();
    for source in [
        nobody(),
        vec![
            user(&format!("localhost:{port}"), "bob", "hunter2"),
            user("127.0.0.1", "bob", "hunter2"),
        ],
    ] {
        let error = bed.pull(&bed.client(source), &image).await.unwrap_err();
        assert_eq!(
            error,
            format!("{host} wants a credential for app, and no source has one for it")
        );
        bed.clean();
    }
    assert_eq!(server.saw("uthorization"), 0);
}

#[tokio::test]
async fn wrong_passwords_are_all_told_and_never_shown() {
    let bed = Bed::new();
    let server = basic(Image::single(&[10]));
    let (host, image) = (server.host(), format!("{}/app:1", server.host()));
    let client = bed.client(vec![
        user(&host, "bob", "hunter3"),
        user(&host, "eve", "hunter4"),
        candidate(&host, Credential::Registry(Secret::new("hunter5"))),
    ]);
    let error = bed.pull(&client, &image).await.unwrap_err();
    let said = |who: &str| format!("{who} of secret.yaml: entry \"{host}\": no access with");
    assert!(error.starts_with(&format!("{host} refuses access to app: ")), "{error}");
    for who in ["user \"bob\"", "user \"eve\"", "a registry token"] {
        assert!(error.contains(&said(who)), "{error}");
    }
    for secret in ["hunter3", "hunter4", "hunter5", &STANDARD.encode("bob:hunter3")] {
        assert!(!error.contains(secret), "{error}");
        assert_eq!(server.saw(secret), usize::from(secret != "hunter3" && secret != "hunter4"));
    }
    bed.clean();
}

#[tokio::test]
async fn forbidden_without_a_challenge() {
    let bed = Bed::new();
    let server = Server::plain(|_| Reply::new(403, r#"{"errors":[{"message":"go away"}]}"#));
    let image = format!("{}/app:1", server.host());
    let error = bed.pull(&bed.client(nobody()), &image).await.unwrap_err();
    assert_eq!(error, format!("{} refuses access to app: go away", server.host()));
    bed.clean();
}
