//! Faults of registries, networks and disks.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use sandbox_core::RootfsMount;
use sandbox_host::{Host as _, RealHost};
use serde_json::{Value, json};

use crate::bed::{Bed, no_credentials};
use crate::image::{Image, MANIFEST, here, ranged};
use crate::server::{Reply, Request, Server};

/// A registry whose largest blob is served by `fault`, which receives its bytes.
fn faulty(
    image: Image,
    fault: impl Fn(&Request, &[u8]) -> Reply + Send + Sync + 'static,
) -> Server {
    let (digest, bytes) = image.largest();
    let digest = digest.clone();
    let bytes = bytes.clone();
    Server::plain(move |request| match request.path.ends_with(&digest) {
        true => fault(request, &bytes),
        false => image.answer(request),
    })
}

async fn error(server: &Server) -> String {
    let bed = Bed::new();
    let error = bed
        .pull(&bed.client(no_credentials()), &format!("{}/app:1", server.host()))
        .await
        .unwrap_err();
    bed.assert_clean();
    error
}

#[tokio::test]
async fn invalid_blobs() {
    let image = Image::single(&[300_000, 10]);
    let (digest, bytes) = image.largest();
    let size = bytes.len();
    let invalid = |server: &Server, why: &str| {
        format!("{} returned an invalid blob {digest}: {why}", server.host())
    };
    let corrupted = faulty(image.clone(), |request, bytes| {
        let mut bytes = bytes.to_vec();
        bytes[200_000] ^= 1;
        ranged(request, &bytes)
    });
    assert!(error(&corrupted).await.starts_with(&invalid(&corrupted, "its digest is sha256:")));
    let shorter = faulty(image.clone(), |_, bytes| Reply::new(200, &bytes[..1000]));
    assert_eq!(
        error(&shorter).await,
        invalid(&shorter, &format!("it has 1000 bytes, but {size} in the manifest"))
    );
    let longer = faulty(image.clone(), |_, bytes| Reply::new(200, [bytes, b"x"].concat()));
    assert_eq!(
        error(&longer).await,
        invalid(&longer, &format!("it has {} bytes, but {size} in the manifest", size + 1))
    );
    // Every response ends at the same offset.
    let truncated = faulty(image.clone(), move |request, bytes| {
        let reply = ranged(request, bytes);
        let length = reply.body.len();
        let rest = 100_000usize.saturating_sub(size - length);
        Reply { body: reply.body[..rest].to_vec(), length: Some(length), ..reply }
    });
    let text = error(&truncated).await;
    assert!(
        text.starts_with(&invalid(&truncated, &format!("it ends after 100000 of {size} bytes ("))),
        "{text}"
    );
    let elsewhere = faulty(image.clone(), |request, bytes| match request.header("range") {
        None => Reply { length: Some(bytes.len()), ..Reply::new(200, &bytes[..100_000]) },
        Some(_) => Reply::new(206, &bytes[50_000..])
            .with("Content-Range", format!("bytes 50000-{}/{}", bytes.len() - 1, bytes.len())),
    });
    assert!(error(&elsewhere).await.contains("has another range"));
    let missing = faulty(image.clone(), |_, _| Reply::new(404, ""));
    assert_eq!(error(&missing).await, format!("{} has no blob {digest}", missing.host()));
}

#[tokio::test]
async fn a_broken_download_is_resumed() {
    for ranges in [true, false] {
        let bed = Bed::new();
        let image = Image::single(&[700_000, 10]);
        let starts = Arc::new(Mutex::new(Vec::new()));
        let seen = Arc::clone(&starts);
        let server = faulty(image, move |request, bytes| {
            let reply = if ranges { ranged(request, bytes) } else { Reply::new(200, bytes) };
            let mut starts = seen.lock().unwrap();
            starts.push(request.header("range").map(str::to_owned));
            let length = reply.body.len();
            let part = match (ranges, starts.len()) {
                (true, _) => 200_000,
                // Without ranges each attempt starts at 0 and gets further.
                (false, attempt) => attempt * 300_000,
            };
            Reply { body: reply.body[..length.min(part)].to_vec(), length: Some(length), ..reply }
        });
        let name = format!("{}/app:1", server.host());
        let pulled = bed.pull(&bed.client(no_credentials()), &name).await.unwrap();
        bed.assert_complete(&pulled, &name);
        let starts = starts.lock().unwrap();
        assert!(starts.len() >= 3, "{starts:?}");
        assert_eq!(starts[0], None);
        if ranges {
            assert_eq!(starts[1].as_deref(), Some("bytes=200000-"));
        }
    }
}

#[tokio::test]
async fn rate_limits_are_waited_for_up_to_a_bound() {
    let bed = Bed::new();
    let image = Image::single(&[1000]);
    let count = AtomicUsize::new(0);
    let server = Server::plain(move |request| match count.fetch_add(1, Ordering::SeqCst) {
        0 => Reply::new(429, "").with("Retry-After", "1"),
        1 => Reply::new(503, ""),
        _ => image.answer(request),
    });
    let name = format!("{}/app:1", server.host());
    let start = Instant::now();
    let pulled = bed.pull(&bed.client(no_credentials()), &name).await.unwrap();
    bed.assert_complete(&pulled, &name);
    assert!(start.elapsed() >= Duration::from_secs(1));
    let forever = Server::plain(|_| Reply::new(429, "").with("Retry-After", "3600"));
    let limits = |server: &Server| format!("{} limits the rate of requests (429); ", server.host());
    assert_eq!(error(&forever).await, limits(&forever) + "try again in 3600 s");
    assert_eq!(forever.asked().len(), 1);
    let again = Server::plain(|_| Reply::new(429, ""));
    assert_eq!(error(&again).await, limits(&again) + "try again later, or with a credential");
    assert_eq!(again.asked().len(), 3);
}

#[tokio::test]
async fn invalid_responses() {
    let image = Image::single(&[10]);
    let unknown = {
        let image = image.clone();
        Server::plain(move |request| image.answer(request))
    };
    let bed = Bed::new();
    let client = bed.client(no_credentials());
    let pull = async |name: String| bed.pull(&client, &name).await.unwrap_err();
    let host = unknown.host();
    assert_eq!(pull(format!("{host}/app:2")).await, format!("{host} has no image app:2"));
    let other = format!("sha256:{}", "1".repeat(64));
    assert_eq!(
        pull(format!("{host}/app@{other}")).await,
        format!("{host} has no image app:{other}")
    );
    // Content with another digest.
    let bytes = image.manifests["1"].1.clone();
    let mismatched =
        Server::plain(move |_| Reply::new(200, bytes.clone()).with("Content-Type", MANIFEST));
    let text = pull(format!("{}/app@{other}", mismatched.host())).await;
    assert!(text.contains("returned an invalid image app:sha256:"), "{text}");
    let huge = Server::plain(|_| Reply::new(200, vec![b' '; 5 << 20]));
    assert!(pull(format!("{}/app", huge.host())).await.contains("larger than 4194304 bytes"));
    let html = Server::plain(|_| Reply::new(200, "<html>log in, please</html>"));
    assert!(pull(format!("{}/app", html.host())).await.contains("not a manifest"));
    let teapot = Server::plain(|_| {
        Reply::new(418, r#"{"errors":[{"message":"short\nand\u001b[31m stout"}]}"#)
    });
    let text = pull(format!("{}/app", teapot.host())).await;
    assert_eq!(
        text,
        format!("{} returned status 418 for image app:latest: short and [31m stout", teapot.host())
    );
    let closed = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let text = pull(format!("{closed}/app")).await;
    assert!(text.starts_with(&format!("{closed}: cannot connect (")), "{text}");
    let text = pull("no.such.host.invalid/app".to_owned()).await;
    assert_eq!(
        text,
        "no.such.host.invalid: the name cannot be resolved; is it right, and does DNS work here?"
    );
    bed.assert_clean();
}

/// A registry with a modified manifest.
fn registry_of(change: impl Fn(&mut Value)) -> Server {
    let mut image = Image::single(&[10]);
    let mut manifest: Value = serde_json::from_slice(&image.manifests["1"].1).unwrap();
    change(&mut manifest);
    image.tag("1", MANIFEST, serde_json::to_vec(&manifest).unwrap());
    Server::plain(move |request| image.answer(request))
}

#[tokio::test]
async fn images_over_a_limit_or_of_another_kind() {
    let gigantic = registry_of(|it| it["layers"][0]["size"] = json!(1u64 << 50));
    assert!(error(&gigantic).await.contains("more than the limit of 68719476736"));
    let overflow = registry_of(|it| {
        it["layers"][0]["size"] = json!(u64::MAX);
        it["layers"] = json!([it["layers"][0], it["layers"][0]]);
    });
    assert!(error(&overflow).await.contains("more than the limit of"));
    let config = registry_of(|it| it["config"]["size"] = json!(100 << 20));
    assert!(error(&config).await.starts_with("the image's configuration has "));
    let chart = registry_of(|it| {
        it["config"]["mediaType"] = json!("application/vnd.cncf.helm.config.v1+json")
    });
    assert!(error(&chart).await.contains("is not a container image: its configuration is of type"));
    let traversal =
        registry_of(|it| it["layers"][0]["digest"] = json!("sha256:../../../../etc/passwd"));
    assert!(error(&traversal).await.contains("not a manifest"));
    let unverifiable =
        registry_of(|it| it["layers"][0]["digest"] = json!("md5:d41d8cd98f00b204e9800998ecf8427e"));
    assert!(error(&unverifiable).await.contains("the algorithm of its digest is not supported"));
    let mut image = Image::default();
    let blob =
        json!({ "mediaType": MANIFEST, "size": 2, "digest": format!("sha256:{}", "0".repeat(64)) });
    let platforms: BTreeMap<_, _> = [("os", "linux"), ("architecture", "s390x")].into();
    let mut entry = blob.clone();
    entry["platform"] = json!(platforms);
    let index = json!({ "schemaVersion": 2, "manifests": [entry] });
    image.tag("1", crate::image::INDEX, serde_json::to_vec(&index).unwrap());
    let foreign = Server::plain(move |request| image.answer(request));
    assert_eq!(
        error(&foreign).await,
        format!(
            "{}/app:1 is not available for linux/{}, only for linux/s390x",
            foreign.host(),
            here()
        )
    );
}

/// On a file system of 1 MiB.
#[tokio::test]
#[ignore = "needs mount"]
async fn a_full_disk() {
    let bed = Bed::new();
    let small = bed.path("small");
    std::fs::create_dir(&small).unwrap();
    let host = RealHost::new().unwrap();
    let mount = RootfsMount {
        kind: "tmpfs".to_owned(),
        source: "tmpfs".to_owned(),
        options: vec!["size=1m".to_owned()],
    };
    host.mount(&mount, &small).unwrap();
    let image = Image::single(&[100_000, 3_000_000]);
    let server = Server::plain(move |request| image.answer(request));
    let name = format!("{}/app:1", server.host());
    let client = bed.client(no_credentials());
    let layout = small.join("layout");
    let result = bed.pull_to(&client, &name, layout.clone()).await;
    let leaked = std::fs::read_dir(&small).map(Iterator::count);
    host.unmount_all(&small).unwrap();
    let text = result.unwrap_err();
    let start = format!("cannot write {}/.pull/sha256-", layout.display());
    assert!(
        text.starts_with(&start) && text.contains("the file system is full; free some space"),
        "{text}"
    );
    assert_eq!(leaked.unwrap(), 0);
    // With enough space it succeeds.
    bed.pull_to(&client, &name, layout).await.unwrap();
}
