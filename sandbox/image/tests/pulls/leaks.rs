//! A credential is planted, everything is done with it that can be done, and then it is looked for.

use std::fs;
use std::path::Path;
use std::sync::{Mutex, Once, PoisonError};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use sandbox_core::Secret;
use sandbox_image::{Credential, Platform, Reference, check};

use crate::bed::{Bed, candidate, user};
use crate::forms::forms;
use crate::image::Image;
use crate::server::{Reply, Request, Server};

/// Every line that any crate logs, at every level.
static LOG: Mutex<String> = Mutex::new(String::new());

struct Everything;

impl log::Log for Everything {
    fn enabled(&self, _: &log::Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &log::Record<'_>) {
        let line = format!("{} {} {}\n", record.level(), record.target(), record.args());
        LOG.lock().unwrap_or_else(PoisonError::into_inner).push_str(&line);
    }

    fn flush(&self) {}
}

fn listen() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        log::set_logger(&Everything).unwrap();
        log::set_max_level(log::LevelFilter::Trace);
    });
}

const PLANTED: &str = "planted-zaphod-42";
const IDENTITY: &str = "identity-zaphod-43";

fn assert_clean(what: &str, text: &str) {
    for form in [forms("bob", PLANTED), forms("eve", PLANTED), forms("bob", IDENTITY)].concat() {
        assert!(!text.contains(&form), "{what} shows a credential: {text}");
    }
}

fn search(directory: &Path) {
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            search(&path);
        } else {
            let text = String::from_utf8_lossy(&fs::read(&path).unwrap()).into_owned();
            assert_clean(&path.display().to_string(), &text);
        }
    }
}

#[tokio::test]
async fn a_planted_credential_is_found_nowhere() {
    listen();
    let bed = Bed::new();
    let image = Image::single(&[50_000, 10]);
    let bob = format!("Basic {}", STANDARD.encode(format!("bob:{PLANTED}")));
    let tokens = Server::plain(move |request: &Request| {
        let said = request.whole();
        let identity = said.contains(IDENTITY);
        match request.header("authorization") {
            Some(shown) if shown == bob => Reply::new(200, r#"{"token":"TOKEN"}"#),
            // It says what it was shown, as a careless server does.
            _ => Reply::new(
                if identity { 400 } else { 401 },
                format!(
                    r#"{{"error":"denied {} {IDENTITY}"}}"#,
                    request.header("authorization").unwrap_or_default()
                ),
            ),
        }
    });
    let realm = format!("http://{}/token", tokens.host());
    let server = Server::plain(move |request: &Request| match request.header("authorization") {
        Some("Bearer TOKEN") => image.answer(request),
        _ => Reply::new(401, "").with("WWW-Authenticate", format!("Bearer realm=\"{realm}\"")),
    });
    let (host, name) = (server.host(), format!("{}/app:1", server.host()));
    let right = || user(&host, "bob", PLANTED);
    let wrong = || {
        vec![
            user(&host, "eve", PLANTED),
            candidate(&host, Credential::Identity(Secret::new(IDENTITY))),
        ]
    };
    let debug = format!("{:?} {:#?}", right(), wrong());
    assert_clean("Debug", &debug);
    let client = bed.client([wrong(), vec![right()]].concat());
    assert_clean("Debug of the client", &format!("{client:?}"));
    bed.pull(&client, &name).await.unwrap();
    assert!(tokens.saw(IDENTITY) == 1 && tokens.asked().len() == 3, "the credentials were used");
    let other = Bed::new();
    let error = other.pull(&other.client(wrong()), &name).await.unwrap_err();
    assert!(error.contains("[secret]"), "{error}");
    assert_clean("an error", &error);
    let (reference, platform): (Reference, _) =
        (name.parse().unwrap(), Platform::of_this_machine());
    for source in [wrong(), vec![right()]] {
        let walked = check(&other.client(source), &reference, &platform).await.unwrap();
        assert_clean("a check", &format!("{walked:?}"));
    }
    search(bed.dir.path());
    search(other.dir.path());
    let own = |name: &str| {
        String::from_utf8_lossy(&fs::read(format!("/proc/self/{name}")).unwrap()).into_owned()
    };
    assert_clean("argv", &own("cmdline"));
    assert_clean("the environment", &own("environ"));
    let log = LOG.lock().unwrap_or_else(PoisonError::into_inner).clone();
    assert!(
        log.contains("DEBUG sandbox_image") && log.contains("/v2/app/manifests/1: 200"),
        "{log}"
    );
    assert_clean("the log", &log);
}
