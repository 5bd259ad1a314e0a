//! Basic authentication by the registry itself.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use sandbox_core::Secret;
use sandbox_image::Credential;

use crate::bed::{Bed, candidate, no_credentials, user};
use crate::image::Image;
use crate::server::{Reply, Request, Server};

/// A registry with the user bob.
fn basic(image: Image) -> Server {
    let wanted = format!("Basic {}", STANDARD.encode("bob:hunter2"));
    Server::plain(move |request: &Request| match request.header("authorization") {
        Some(sent) if sent == wanted => image.answer(request),
        Some(sent) => {
            // Echoes the credential, which must not end up in messages.
            let body =
                format!(r#"{{"errors":[{{"code":"DENIED","message":"no access with {sent}"}}]}}"#);
            Reply::new(401, body).with("WWW-Authenticate", "Basic realm=\"r\"")
        }
        None => Reply::new(401, "").with("WWW-Authenticate", "Basic realm=\"r\""),
    })
}

#[tokio::test]
async fn public_images_are_pulled_anonymously() {
    let bed = Bed::new();
    let single = Image::single(&[10_000, 0, 300_000]);
    let multi = Image::multi(&[5_000]);
    let one = single.clone();
    let two = multi.clone();
    let server = Server::plain(move |request| match request.path.contains("/single/") {
        true => one.answer(request),
        false => two.answer(request),
    });
    let host = server.host();
    // A credential is not sent to a host that does not ask for one.
    let client = bed.client(vec![user(&host, "bob", "hunter2")]);
    for (image, tag, name) in [(&single, "1", "single"), (&multi, "multi", "multi")] {
        let by_tag = format!("{host}/{name}:{tag}");
        let pulled = bed.pull(&client, &by_tag).await.unwrap();
        bed.assert_complete(&pulled, &by_tag);
        let by_digest = format!("{host}/{name}@{}", image.digest(tag));
        let pulled = bed.pull(&client, &by_digest).await.unwrap();
        bed.assert_complete(&pulled, &by_digest);
    }
    assert_eq!(server.saw("uthorization"), 0);
    // Blobs in the layout are not downloaded again.
    let before = server.saw("/blobs/");
    bed.pull(&client, &format!("{host}/single:1")).await.unwrap();
    assert_eq!(server.saw("/blobs/"), before);
}

#[tokio::test]
async fn the_right_one_of_several_is_found() {
    let bed = Bed::new();
    let server = basic(Image::single(&[1000]));
    let host = server.host();
    let image = format!("{host}/team/app:1");
    let client = bed.client(vec![
        user(&format!("{host}/team"), "eve", "wrong-one"),
        candidate(&format!("{host}/team"), Credential::Identity(Secret::new("a-token"))),
        user(&host, "bob", "hunter2"),
        user("other.example", "carol", "not-for-this"),
    ]);
    let pulled = bed.pull(&client, &image).await.unwrap();
    bed.assert_complete(&pulled, &image);
    assert_eq!(server.saw("a-token") + server.saw("not-for-this"), 0);
    // Later requests use only the accepted credential.
    let sent: Vec<_> = server
        .asked()
        .iter()
        .filter_map(|it| it.header("authorization").map(str::to_owned))
        .collect();
    let wrong = format!("Basic {}", STANDARD.encode("eve:wrong-one"));
    assert_eq!(sent.iter().filter(|it| **it == wrong).count(), 1);
}

#[tokio::test]
async fn no_credential() {
    let bed = Bed::new();
    let server = basic(Image::single(&[10]));
    let host = server.host();
    let image = format!("{host}/app:1");
    let port = host.rsplit(':').next().unwrap();
    for source in [
        no_credentials(),
        vec![
            user(&format!("localhost:{port}"), "bob", "hunter2"),
            user("127.0.0.1", "bob", "hunter2"),
        ],
    ] {
        let error = bed.pull(&bed.client(source), &image).await.unwrap_err();
        assert_eq!(error, format!("{host} requires a credential for app, and no source has one"));
        bed.assert_clean();
    }
    assert_eq!(server.saw("uthorization"), 0);
}

#[tokio::test]
async fn every_rejected_credential_is_reported_without_its_secret() {
    let bed = Bed::new();
    let server = basic(Image::single(&[10]));
    let host = server.host();
    let image = format!("{host}/app:1");
    let client = bed.client(vec![
        user(&host, "bob", "hunter3"),
        user(&host, "eve", "hunter4"),
        candidate(&host, Credential::Registry(Secret::new("hunter5"))),
    ]);
    let error = bed.pull(&client, &image).await.unwrap_err();
    let reason = |name: &str| format!("{name} of secret.yaml: entry \"{host}\": no access with");
    assert!(error.starts_with(&format!("{host} refuses access to app: ")), "{error}");
    for name in ["user \"bob\"", "user \"eve\"", "a registry token"] {
        assert!(error.contains(&reason(name)), "{error}");
    }
    for secret in ["hunter3", "hunter4", "hunter5", &STANDARD.encode("bob:hunter3")] {
        assert!(!error.contains(secret), "{error}");
        assert_eq!(server.saw(secret), usize::from(secret != "hunter3" && secret != "hunter4"));
    }
    bed.assert_clean();
}

#[tokio::test]
async fn forbidden_without_a_challenge() {
    let bed = Bed::new();
    let server = Server::plain(|_| Reply::new(403, r#"{"errors":[{"message":"go away"}]}"#));
    let image = format!("{}/app:1", server.host());
    let error = bed.pull(&bed.client(no_credentials()), &image).await.unwrap_err();
    assert_eq!(error, format!("{} refuses access to app: go away", server.host()));
    bed.assert_clean();
}
