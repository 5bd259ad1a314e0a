//! Mirrors, redirects and TLS: which hosts receive a credential.

use sandbox_image::{Candidate, Outcome, Platform, Reference, check};

use crate::bed::{Bed, no_credentials, user};
use crate::image::Image;
use crate::pki::Authority;
use crate::server::{Reply, Request, Server};

type Fault = Box<dyn Fn(&Request) -> Reply + Send + Sync>;

/// Requires bob's password for the image.
fn private(image: Image) -> impl Fn(&Request) -> Reply {
    move |request| match request.header("authorization") {
        Some("Basic Ym9iOmh1bnRlcjI=") => image.answer(request),
        _ => Reply::new(401, "").with("WWW-Authenticate", "Basic realm=\"r\""),
    }
}

#[tokio::test]
async fn a_mirror_receives_only_credentials_for_the_mirror() {
    let bed = Bed::new();
    let image = Image::single(&[1000, 2000]);
    let upstream = Server::plain(private(image.clone()));
    // It also requires bob's password.
    let mirror = Server::plain(private(image.clone()));
    let host = upstream.host();
    let name = format!("{host}/team/app:1");
    bed.hosts(&host, &format!(
        "server = \"http://{host}\"\n[host.\"http://{}\".header]\nX-Mirror = \"for the mirror\"\n",
        mirror.host()
    ));
    let client = bed.client(vec![user(&host, "bob", "hunter2")]);
    let pulled = bed.pull(&client, &name).await.unwrap();
    bed.assert_complete(&pulled, &name);
    assert!(mirror.saw("/v2/team/app/") > 0);
    assert_eq!(mirror.saw("uthorization"), 0);
    assert_eq!(mirror.saw(&format!("ns={}", host.replace(':', "%3A"))), mirror.asked().len());
    assert_eq!(mirror.saw("for the mirror"), mirror.asked().len());
    assert_eq!(upstream.saw("for the mirror"), 0);
    // Credentials stored for the mirror's name are sent to it only.
    let other = Bed::new();
    other.hosts(
        &host,
        &format!("server = \"http://{host}\"\n[host.\"http://{}\"]\n", mirror.host()),
    );
    let before = upstream.asked().len();
    let client = other.client(vec![user(&mirror.host(), "bob", "hunter2")]);
    let pulled = other.pull(&client, &name).await.unwrap();
    other.assert_complete(&pulled, &name);
    assert_eq!(upstream.asked().len(), before);
}

#[tokio::test]
async fn the_next_host_is_tried_when_a_mirror_fails() {
    let image = Image::single(&[70_000]);
    let (digest, bytes) = image.largest();
    let digest = digest.clone();
    let mut bytes = bytes.clone();
    bytes[1000] ^= 1;
    let mut corrupt = image.clone();
    corrupt.blobs.insert(digest, bytes);
    let faults: [(&str, Fault); 4] = [
        ("absent", Box::new(|_| Reply::new(404, ""))),
        ("broken", Box::new(|_| Reply::new(500, ""))),
        ("limited", Box::new(|_| Reply::new(429, "").with("Retry-After", "99"))),
        ("corrupt", Box::new(move |request| corrupt.answer(request))),
    ];
    for (name, fault) in faults {
        let bed = Bed::new();
        let served = image.clone();
        let mirror = Server::plain(fault);
        let upstream = Server::plain(move |request| served.answer(request));
        let host = upstream.host();
        bed.hosts(
            &host,
            &format!("server = \"http://{host}\"\n[host.\"http://{}\"]\n", mirror.host()),
        );
        let reference = format!("{host}/app:1");
        let pulled = bed
            .pull(&bed.client(no_credentials()), &reference)
            .await
            .unwrap_or_else(|e| panic!("{name}: {e}"));
        bed.assert_complete(&pulled, &reference);
        assert!(!mirror.asked().is_empty(), "{name}");
    }
}

#[tokio::test]
async fn a_redirect_is_followed_without_the_credential() {
    let bed = Bed::new();
    let image = Image::single(&[1000, 2000]);
    let blobs = image.clone();
    let store = Server::plain(move |request| blobs.answer(request));
    let target = store.host();
    let answer = private(image);
    let registry = Server::plain(move |request| {
        let reply = answer(request);
        if reply.status == 200 && request.path.contains("/blobs/") {
            let location = format!("http://{target}{}?signature=s3cret", request.path);
            return Reply::new(307, "").with("Location", location);
        }
        reply
    });
    let host = registry.host();
    let name = format!("{host}/app:1");
    bed.hosts(
        &host,
        &format!("server = \"http://{host}\"\n[header]\nX-Own = \"for the registry\"\n"),
    );
    let client = bed.client(vec![user(&host, "bob", "hunter2")]);
    let pulled = bed.pull(&client, &name).await.unwrap();
    bed.assert_complete(&pulled, &name);
    assert_eq!(store.asked().len(), 3);
    assert_eq!(store.saw("uthorization") + store.saw("for the registry"), 0);
    assert_eq!(registry.saw("for the registry"), registry.asked().len());
}

#[tokio::test]
async fn redirects_that_are_not_followed() {
    let bed = Bed::new();
    let authority = Authority::new(&bed.path("pki"));
    let victim = Server::plain(|_| Reply::new(200, "internal"));
    for (location, why) in [
        (format!("http://{}/x?token=s3cret", victim.host()), "it is plain http"),
        ("http://reg.example/".to_owned(), "it is plain http"),
        ("file:///etc/passwd".to_owned(), "it is neither https nor http"),
        (format!("https://bob:x@{}/x", victim.host()), "it contains a user"),
        ("https://".to_owned(), "it is not a valid URL"),
        ("/v2/app/manifests/1".to_owned(), "too many redirects"),
    ] {
        let to = location.clone();
        let server = Server::start(Some(authority.server("127.0.0.1", false)), move |_| {
            Reply::new(302, "").with("Location", to.clone())
        });
        let ca = authority.ca();
        bed.hosts(&server.host(), &format!("ca = {ca:?}\n"));
        let error = bed
            .pull(&bed.client(no_credentials()), &format!("{}/app:1", server.host()))
            .await
            .unwrap_err();
        assert!(
            error.contains("which is not followed: ") && error.ends_with(why),
            "{location}: {error}"
        );
        assert!(!error.contains("s3cret"), "{error}");
        bed.assert_clean();
    }
    assert_eq!(victim.asked().len(), 0);
}

#[tokio::test]
async fn certificates() {
    let bed = Bed::new();
    let authority = Authority::new(&bed.path("pki"));
    let image = Image::single(&[1000]);
    let serve = |image: &Image, host: &str, mutual| {
        let image = image.clone();
        Server::start(Some(authority.server(host, mutual)), move |request| image.answer(request))
    };
    let good = serve(&image, "127.0.0.1", false);
    let wrong = serve(&image, "reg.example", false);
    let mutual = serve(&image, "127.0.0.1", true);
    authority.sign("client", "client.example");
    let ca = authority.ca();
    let pem = bed.path("pki/client.pem");
    let key = bed.path("pki/client.key");
    let both = bed.path("pki/both.pem");
    std::fs::write(&both, [std::fs::read(&pem).unwrap(), std::fs::read(&key).unwrap()].concat())
        .unwrap();
    for (server, text, part) in [
        (
            &good,
            String::new(),
            "signed by an authority that is not trusted here; name the authority as `ca` in hosts.toml",
        ),
        (&good, format!("ca = {ca:?}\n"), ""),
        (&good, "skip_verify = true\n".to_owned(), ""),
        (&wrong, format!("ca = {ca:?}\n"), "its certificate is for another host"),
        (&mutual, format!("ca = {ca:?}\n"), "it may require a client certificate"),
        (&mutual, format!("ca = {ca:?}\nclient = [[{pem:?}, {key:?}]]\n"), ""),
        (&mutual, format!("ca = {ca:?}\nclient = {both:?}\n"), ""),
        (&good, format!("ca = {key:?}\n"), "it contains no PEM certificate"),
        (&good, "ca = \"none.pem\"\n".to_owned(), "cannot read "),
        (&good, format!("ca = {ca:?}\nclient = {pem:?}\n"), "it contains no PEM private key"),
    ] {
        bed.hosts(&server.host(), &text);
        let name = format!("{}/app:1", server.host());
        let result = bed.pull(&bed.client(no_credentials()), &name).await;
        match result {
            Ok(pulled) => {
                assert_eq!(part, "", "{text}");
                bed.assert_complete(&pulled, &name);
                std::fs::remove_dir_all(bed.path("layout")).unwrap();
            }
            Err(error) => {
                assert!(!part.is_empty() && error.contains(part), "{text}: {error}");
                bed.assert_clean();
            }
        }
    }
}

/// Checks the only host of an image; the name and outcome of each step.
async fn steps(bed: &Bed, source: Vec<Candidate>, image: &str) -> Vec<(String, String)> {
    let reference: Reference = image.parse().unwrap();
    let platform = Platform::of_this_machine();
    let checks = check(&bed.client(source), &reference, &platform).await.unwrap();
    assert_eq!(checks.len(), 1);
    checks[0]
        .steps
        .iter()
        .map(|step| {
            let text = match &step.outcome {
                Outcome::Fine(_) => "fine".to_owned(),
                Outcome::Failed(why) => format!("FAILED {why}"),
                Outcome::NotReached => "not reached".to_owned(),
            };
            (step.name.to_owned(), text)
        })
        .collect()
}

#[tokio::test]
async fn a_check_reports_the_step_that_fails() {
    let bed = Bed::new();
    let authority = Authority::new(&bed.path("pki"));
    let ca = authority.ca();
    let image = Image::multi(&[1000]);
    let server = Server::start(Some(authority.server("127.0.0.1", false)), private(image));
    let host = server.host();
    let bob = || vec![user(&host, "bob", "hunter2")];
    let trusted = format!("ca = {ca:?}\n");
    let closed =
        std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
    for (name, hosts, source, failing, why) in [
        (format!("{host}/app:multi"), trusted.as_str(), bob(), "", ""),
        ("no.such.host.invalid/app".to_owned(), "", no_credentials(), "name", "has no address"),
        (format!("{closed}/app"), "", no_credentials(), "TCP", "is the registry up"),
        (format!("{host}/app:multi"), "", bob(), "TLS", "not trusted"),
        (
            format!("{host}/app:multi"),
            &trusted,
            no_credentials(),
            "credential",
            "no source has one",
        ),
        (
            format!("{host}/app:multi"),
            &trusted,
            vec![user(&host, "bob", "wrong")],
            "credential",
            "user \"bob\"",
        ),
        (format!("{host}/app:none"), &trusted, bob(), "image", "has no image app:none"),
    ] {
        let place = name.split('/').next().unwrap();
        bed.hosts(place, hosts);
        let steps = steps(&bed, source, &name).await;
        let names: Vec<_> = steps.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(
            names,
            ["name", "TCP", "TLS", "token server", "credential", "image", "platform"]
        );
        let at = names.iter().position(|it| *it == failing).unwrap_or(names.len());
        for (index, (step, outcome)) in steps.iter().enumerate() {
            let fits = match index.cmp(&at) {
                std::cmp::Ordering::Less => outcome == "fine",
                std::cmp::Ordering::Equal => outcome.starts_with("FAILED") && outcome.contains(why),
                std::cmp::Ordering::Greater => outcome == "not reached",
            };
            assert!(fits, "{name} {failing}: {step}: {outcome}");
        }
    }
    let reference: Reference = format!("{host}/app:multi").parse().unwrap();
    let other = "linux/riscv64".parse().unwrap();
    let checks = check(&bed.client(bob()), &reference, &other).await.unwrap();
    let last = checks[0].steps.last().unwrap();
    let Outcome::Failed(why) = &last.outcome else { panic!("{last:?}") };
    assert!(
        last.name == "platform"
            && why.contains("is not available for linux/riscv64, only for linux/s390x, linux/"),
        "{why}"
    );
}
