//! Uses a known credential in every way and searches all output for it.

use std::fs;
use std::path::Path;
use std::sync::Once;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use parking_lot::Mutex;
use sandbox_core::Secret;
use sandbox_image::{Credential, Platform, Reference, check};

use crate::bed::{Bed, candidate, user};
use crate::forms::forms;
use crate::image::Image;
use crate::server::{Reply, Request, Server};

/// The log of all crates at all levels.
static LOG: Mutex<String> = Mutex::new(String::new());

/// Records `log` records and, since there is no subscriber, `tracing` events.
struct Recorder;

impl log::Log for Recorder {
    fn enabled(&self, _: &log::Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &log::Record<'_>) {
        let line = format!("{} {} {}\n", record.level(), record.target(), record.args());
        LOG.lock().push_str(&line);
    }

    fn flush(&self) {}
}

fn record_log() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        log::set_logger(&Recorder).unwrap();
        log::set_max_level(log::LevelFilter::Trace);
    });
}

const PLANTED: &str = "planted-zaphod-42";
const IDENTITY: &str = "identity-zaphod-43";

fn assert_clean(what: &str, text: &str) {
    for form in [forms("bob", PLANTED), forms("eve", PLANTED), forms("bob", IDENTITY)].concat() {
        assert!(!text.contains(&form), "{what} contains a credential: {text}");
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
async fn a_credential_does_not_leak() {
    record_log();
    let bed = Bed::new();
    let image = Image::single(&[50_000, 10]);
    let bob = format!("Basic {}", STANDARD.encode(format!("bob:{PLANTED}")));
    let tokens = Server::plain(move |request: &Request| {
        let identity = request.whole().contains(IDENTITY);
        match request.header("authorization") {
            Some(sent) if sent == bob => Reply::new(200, r#"{"token":"TOKEN"}"#),
            // Echoes the credential, as careless servers do.
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
    let host = server.host();
    let name = format!("{host}/app:1");
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
    let reference: Reference = name.parse().unwrap();
    let platform = Platform::of_this_machine();
    for source in [wrong(), vec![right()]] {
        let checks = check(&other.client(source), &reference, &platform).await.unwrap();
        assert_clean("a check", &format!("{checks:?}"));
    }
    search(bed.dir.path());
    search(other.dir.path());
    let own = |name: &str| {
        String::from_utf8_lossy(&fs::read(format!("/proc/self/{name}")).unwrap()).into_owned()
    };
    assert_clean("argv", &own("cmdline"));
    assert_clean("the environment", &own("environ"));
    let log = LOG.lock().clone();
    assert!(
        log.contains("DEBUG sandbox_image") && log.contains("/v2/app/manifests/1 status=200"),
        "{log}"
    );
    assert_clean("the log", &log);
}
