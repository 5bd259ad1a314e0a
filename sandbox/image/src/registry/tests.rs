use reqwest::Url;
use sandbox_core::{Classified as _, Kind};

use super::response::redact;
use super::token::may_have_credential;
use super::transport::Transport;
use super::*;
use crate::credential::Credential;
use crate::digest::sha256;
use crate::reference::Reference;

fn transport(server: &str, skip_verify: bool) -> Transport {
    let dir = tempfile::tempdir().unwrap();
    std::fs::create_dir(dir.path().join("_default")).unwrap();
    let text = format!("server = {server:?}\nskip_verify = {skip_verify}\n");
    std::fs::write(dir.path().join("_default/hosts.toml"), text).unwrap();
    let place = "reg.example/a".parse::<Reference>().unwrap().place().clone();
    let hosts = HostsDirectories::new([dir.path().to_owned()]).hosts(&place).unwrap();
    Transport::new(&hosts[0]).unwrap()
}

#[test]
fn token_servers_that_may_have_a_credential() {
    for (server, skip, realm, may) in [
        ("https://reg.example", false, "https://reg.example/token", true),
        ("https://reg.example", false, "https://auth.example/token", true),
        ("https://reg.example", false, "http://reg.example/token", false),
        ("https://reg.example", false, "http://auth.example/token", false),
        ("https://reg.example", false, "http://127.0.0.1/token", false),
        ("https://reg.example", false, "ftp://reg.example/token", false),
        ("https://reg.example", true, "https://reg.example/token", true),
        ("https://reg.example", true, "https://auth.example/token", false),
        ("http://reg.example", false, "http://reg.example:5001/token", true),
        ("http://reg.example", false, "http://auth.example/token", false),
        ("http://reg.example", false, "https://auth.example/token", false),
        ("http://127.0.0.1:5000", false, "http://127.0.0.1:5001/token", true),
        ("http://127.0.0.1:5000", false, "http://localhost:5001/token", true),
        ("http://127.0.0.1:5000", false, "http://auth.example/token", false),
        ("http://127.0.0.1:5000", false, "https://auth.example/token", false),
        ("http://127.0.0.1:5000", false, "http://127.0.0.1.evil.example/token", false),
    ] {
        let result = may_have_credential(&transport(server, skip), &Url::parse(realm).unwrap());
        assert_eq!(result.is_ok(), may, "{server} skip_verify {skip} -> {realm}: {result:?}");
    }
}

fn document(text: &str, kind: &str) -> Result<Content, String> {
    let digest = sha256(text.as_bytes());
    parse_manifest(text.as_bytes().to_vec(), kind, digest).map(|it| it.content)
}

#[test]
fn documents() {
    const OCI: &str = "application/vnd.oci.image.manifest.v1+json";
    const INDEX: &str = "application/vnd.oci.image.index.v1+json";
    const LIST: &str = "application/vnd.docker.distribution.manifest.list.v2+json";
    let blob = format!(r#"{{"mediaType":"x","size":1,"digest":"sha256:{}"}}"#, "0".repeat(64));
    let image = format!(r#"{{"schemaVersion":2,"config":{blob},"layers":[]}}"#);
    for kind in [OCI, "", "application/json", "text/plain"] {
        assert!(matches!(document(&image, kind), Ok(Content::Manifest(_))), "{kind}");
    }
    let index = r#"{"schemaVersion":2,"manifests":[]}"#;
    for kind in [INDEX, LIST, ""] {
        assert!(matches!(document(index, kind), Ok(Content::Index(_))), "{kind}");
    }
    let many = format!(
        r#"{{"schemaVersion":2,"config":{blob},"layers":[{}]}}"#,
        vec![blob.as_str(); 600].join(",")
    );
    let traversal = image.replace(&format!("sha256:{}", "0".repeat(64)), "../../etc/passwd");
    for (text, kind, part) in [
        ("", OCI, "not a manifest"),
        ("[]", OCI, "not a manifest"),
        (r#"{"schemaVersion":1}"#, OCI, "version 1"),
        (
            &*image.replace("\"layers\"", "\"manifests\":[],\"layers\""),
            OCI,
            "both a manifest and an index",
        ),
        (&*index.replace('}', &format!(r#","mediaType":"{INDEX}"}}"#)), OCI, "but its mediaType"),
        (
            &*index.replace('}', r#","mediaType":"application/x"}"#),
            "",
            "is not the media type of an image",
        ),
        (&many, OCI, "more than 512 layers"),
        (&traversal, OCI, "not a manifest"),
        (index, OCI, "not a manifest"),
        (&image, INDEX, "not a manifest"),
    ] {
        let error = document(text, kind).unwrap_err();
        assert!(error.contains(part), "{text}: {error}");
    }
}

#[test]
fn an_echoed_secret_is_redacted() {
    let credential = Credential::Basic {
        username: "u".to_owned(),
        password: sandbox_core::Secret::new("hunter2"),
    };
    let text = "bad hunter2 in Basic dTpodW50ZXIy";
    assert_eq!(redact(text, Some(&credential)), "bad [secret] in Basic [secret]");
}

#[test]
fn kinds() {
    let refused = RegistryError::NoCredential { host: "h".to_owned(), repository: "r".to_owned() };
    assert_eq!(refused.kind(), Kind::PermissionDenied);
    assert_eq!(refused.to_string(), "h requires a credential for r, and no source has one");
    let limited = |after| RegistryError::RateLimited { host: "h".to_owned(), after }.to_string();
    assert!(limited(Some(std::time::Duration::from_secs(90))).ends_with("try again in 90 s"));
    assert!(limited(None).ends_with("try again later, or with a credential"));
}
