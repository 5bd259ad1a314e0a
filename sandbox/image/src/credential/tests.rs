use std::os::unix::fs::symlink;
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use sandbox_core::Classified;
use sandbox_host::{FakeHost, Scripted};

use async_trait::async_trait;
use sandbox_core::Secret;

use super::*;
use crate::reference::Reference;

fn wait<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(future)
}

/// The credentials for an image: `user:password`, `identity:token` or `registry:token`.
fn found(source: &dyn CredentialSource, image: &str) -> Vec<String> {
    let reference: Reference = image.parse().unwrap();
    let found = wait(source.find(Wanted::Place(reference.place()))).unwrap();
    found.iter().map(|it| plain(&it.credential)).collect()
}

fn plain(credential: &Credential) -> String {
    let kind = match credential {
        Credential::Basic { username, .. } => username,
        Credential::Identity(_) => "identity",
        Credential::Registry(_) => "registry",
    };
    format!("{kind}:{}", credential.secret().expose_text().unwrap())
}

fn config(text: &str) -> DockerConfig {
    DockerConfig::parse("f", &Secret::new(text), None).unwrap()
}

#[test]
fn every_kind_of_entry() {
    let config = config(
        r#"{"auths": {
            "a.example": {"auth": "dTpwOnE="},
            "b.example": {"username": "u", "password": "p", "email": "x@y"},
            "c.example": {"auth": "PHRva2VuPjo=", "identitytoken": "it"},
            "d.example": {"registrytoken": "rt"},
            "e.example": {},
            "f.example": {"auth": "dTpw", "username": "x", "password": "y"},
            "g.example": {"auth": "dTpwAAA="},
            "https://index.docker.io/v1/": {"auth": "aHViOmE"}
        }, "HttpHeaders": {"x": "y"}, "proxies": {}}"#,
    );
    for (image, wanted) in [
        ("a.example/x", vec!["u:p:q"]),
        ("b.example/x", vec!["u:p"]),
        ("c.example/x", vec!["identity:it"]),
        ("d.example/x", vec!["registry:rt"]),
        ("e.example/x", vec![]),
        ("f.example/x", vec!["u:p"]),
        ("g.example/x", vec!["u:p"]),
        ("busybox", vec!["hub:a"]),
        ("z.example/x", vec![]),
    ] {
        assert_eq!(found(&config, image), wanted, "{image}");
    }
}

#[test]
fn the_most_specific_comes_first_whichever_source_it_is_from() {
    let mut sources = Sources::none();
    let entry = |key: &str, user: &str| {
        let auth = STANDARD.encode(format!("{user}:p"));
        config(&format!(r#"{{"auths": {{"{key}": {{"auth": "{auth}"}}}}}}"#))
    };
    sources.push(entry("*.example", "glob"));
    sources.push(entry("reg.example", "first"));
    sources.push(entry("reg.example/team", "team"));
    sources.push(entry("reg.example", "second"));
    sources.push(entry("reg.example", "first"));
    let all = ["team:p", "first:p", "second:p", "glob:p"];
    assert_eq!(found(&sources, "reg.example/team/app"), all);
    assert_eq!(found(&sources, "reg.example/app"), all[1..]);
    assert_eq!(found(&sources, "other.example/app"), all[3..]);
    assert_eq!(found(&sources, "reg.example:5000/app"), [""; 0]);
}

/// A source that returns a credential for another host is not trusted.
#[test]
fn a_stray_answer_is_dropped() {
    #[derive(Debug)]
    struct Stray;
    #[async_trait]
    impl CredentialSource for Stray {
        async fn find(&self, _: Wanted<'_>) -> Result<Vec<Candidate>, CredentialError> {
            Ok(config(r#"{"auths": {"reg.example": {"auth": "dTpw"}}}"#).into_stored())
        }
    }
    let mut sources = Sources::none();
    sources.push(Stray);
    assert_eq!(found(&sources, "reg.example/a"), ["u:p"]);
    assert_eq!(found(&sources, "other.example/a"), [""; 0]);
}

#[test]
fn errors_contain_no_values() {
    for (text, part) in [
        ("hunter2", "line 1, column 1: invalid JSON"),
        (r#"{"auths": {"h": {"auth": "hunter2"}}}"#, "neither a username and password"),
        (r#"{"auths": {"h": {"username": "hunter2"}}}"#, "neither a username and password"),
        (r#"{"auths": {"h": {"password": "hunter2"}}}"#, "neither a username and password"),
        (r#"{"auths": {"h": "hunter2"}}"#, "unexpected value"),
        (r#"{"auths": "hunter2"}"#, "unexpected value"),
        (r#"{"auths": {"h": {"auth": "hunter2"#, "unexpected end of file"),
        (r#"{"auths": {"": {"username": "u", "password": "hunter2"}}}"#, "is not [https://]HOST"),
    ] {
        let error = DockerConfig::parse("f", &Secret::new(text), None).unwrap_err();
        let shown = format!("{error} {error:?}");
        assert!(shown.contains(part), "{text}: {shown}");
        assert!(shown.starts_with("f: ") && !shown.contains("hunter2"), "{shown}");
    }
    let debug = format!("{:?}", config(r#"{"auths": {"h.x": {"auth": "dTpodW50ZXIy"}}}"#));
    assert!(
        debug.contains("h.x") && !debug.contains("hunter2") && !debug.contains("dTpo"),
        "{debug}"
    );
}

const AUTHS: &str = r#"{"auths":{"reg.example":{"username":"u","password":"p"}}}"#;

fn texts(text: &str) -> Result<Vec<String>, String> {
    let found = kubernetes::secret_text("f", &Secret::new(text)).map_err(|e| e.to_string())?;
    Ok(found.iter().map(|it| format!("{} {}", it.pattern, plain(&it.credential))).collect())
}

#[test]
fn kubernetes_secrets() {
    let encoded = STANDARD.encode(AUTHS);
    let old = STANDARD.encode(r#"{"https://old.example/v1/":{"auth":"bzpw","email":"e"}}"#);
    let new = format!(
        "apiVersion: v1\nkind: Secret\nmetadata: {{name: a}}\ntype: kubernetes.io/dockerconfigjson\ndata:\n  .dockerconfigjson: {encoded}\n"
    );
    assert_eq!(texts(&new).unwrap(), ["reg.example u:p"]);
    let folded = format!(
        "kind: Secret\ntype: kubernetes.io/dockerconfigjson\ndata:\n  .dockerconfigjson: |\n    {}\n    {}\n",
        &encoded[..20],
        &encoded[20..]
    );
    assert_eq!(texts(&folded).unwrap(), ["reg.example u:p"]);
    let plain = format!(
        "kind: Secret\ntype: kubernetes.io/dockerconfigjson\nstringData:\n  .dockerconfigjson: '{AUTHS}'\n"
    );
    assert_eq!(texts(&plain).unwrap(), ["reg.example u:p"]);
    let several = format!(
        "kind: Pod\nmetadata: {{name: p}}\nspec: {{x: [1]}}\ndata: 7\n---\n---\n{new}---\nkind: Secret\ntype: Opaque\ndata: {{x: eA==}}\n---\nkind: Secret\nmetadata: {{name: o, namespace: n}}\ntype: kubernetes.io/dockercfg\ndata: {{.dockercfg: {old}}}\n"
    );
    assert_eq!(texts(&several).unwrap(), ["reg.example u:p", "old.example o:p"]);
    let json = format!(
        r#"{{"apiVersion":"v1","kind":"List","items":[{{"kind":"Secret","type":"kubernetes.io/dockerconfigjson","data":{{".dockerconfigjson":"{encoded}"}}}},{{"kind":"ConfigMap","data":{{"a":"b"}}}}]}}"#
    );
    assert_eq!(texts(&json).unwrap(), ["reg.example u:p"]);
    assert_eq!(texts(AUTHS).unwrap(), ["reg.example u:p"]);
    assert_eq!(texts(r#"{"reg.example":{"auth":"dTpw"}}"#).unwrap(), ["reg.example u:p"]);
}

#[test]
fn files_without_a_pull_secret() {
    for (text, part) in [
        ("kind: Pod\n", "holds no Secret of type kubernetes.io/dockerconfigjson"),
        ("kind: Secret\ntype: Opaque\n", "holds no Secret of type"),
        (
            "kind: Secret\ntype: kubernetes.io/dockerconfigjson\n",
            "data[\".dockerconfigjson\"]: is missing",
        ),
        (
            "kind: Secret\nmetadata: {name: s}\ntype: kubernetes.io/dockerconfigjson\ndata: {.dockerconfigjson: hunter2}\n",
            "f: document 1 (Secret default/s): data[\".dockerconfigjson\"]",
        ),
        (
            "kind: Secret\ntype: kubernetes.io/dockerconfigjson\ndata: {.dockerconfigjson: '%%hunter2'}\n",
            "is not base64",
        ),
        (
            "kind: Secret\ntype: kubernetes.io/dockerconfigjson\nstringData: {.dockerconfigjson: '{}'}\n",
            "it has no auths",
        ),
        (
            "kind: Secret\ntype: kubernetes.io/dockercfg\nstringData: {.dockercfg: hunter2}\n",
            "not a Docker configuration",
        ),
        ("kind: Secret\ndata: hunter2\n", "document 1: "),
        ("kind: Secret\ndata: {a: [hunter2\n", "document 1: "),
        ("hunter2: [", "document 1: "),
        ("\u{0}", "f"),
    ] {
        let error = texts(text).unwrap_err();
        assert!(error.starts_with("f: ") && error.contains(part), "{text}: {error}");
        assert!(!error.contains("hunter2"), "{error}");
    }
    let error = pull_secret("f", "Opaque", &Default::default()).unwrap_err();
    assert_eq!(
        error.to_string(),
        "f: Secret of type \"Opaque\" cannot be an imagePullSecret; it must be kubernetes.io/dockerconfigjson or kubernetes.io/dockercfg"
    );
}

#[test]
fn a_directory_of_mounted_secrets() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    let source = SecretDirectory::new(dir.path());
    assert_eq!(found(&source, "reg.example/a"), [""; 0]);
    // As the kubelet mounts a Secret.
    std::fs::create_dir_all(path("pull/..2026")).unwrap();
    std::fs::write(path("pull/..2026/.dockerconfigjson"), AUTHS).unwrap();
    symlink("..2026", path("pull/..data")).unwrap();
    symlink("..data/.dockerconfigjson", path("pull/.dockerconfigjson")).unwrap();
    std::fs::write(path("notes.txt"), "hunter2").unwrap();
    std::fs::write(path(".dockercfg"), r#"{"old.example":{"auth":"bzpw"}}"#).unwrap();
    assert_eq!(found(&source, "reg.example/a"), ["u:p"]);
    assert_eq!(found(&source, "old.example/a"), ["o:p"]);
    // A changed Secret is read again.
    std::fs::write(path("pull/..2026/.dockerconfigjson"), AUTHS.replace("\"p\"", "\"new\""))
        .unwrap();
    assert_eq!(found(&source, "reg.example/a"), ["u:new"]);
    std::fs::write(path("bad.json"), "hunter2").unwrap();
    let reference: Reference = "reg.example/a".parse().unwrap();
    let error = wait(source.find(Wanted::Place(reference.place()))).unwrap_err().to_string();
    assert!(error.contains("bad.json") && !error.contains("hunter2"), "{error}");
    let none = SecretDirectory::new(path("none"));
    let error = wait(none.find(Wanted::Place(reference.place()))).unwrap_err();
    assert_eq!(error.kind(), sandbox_core::Kind::NotFound);
}

const HELPED: &str = r#"{"auths": {"reg.example": {}}, "credsStore": "desktop",
    "credHelpers": {"gcr.example": "gcloud", "off.example": ""}}"#;

fn helped(script: impl IntoIterator<Item = Scripted>) -> (Arc<FakeHost>, DockerConfig) {
    let host = Arc::new(FakeHost::new(script));
    let helpers = Helpers::new(host.clone(), vec![("HOME".into(), "/root".into())]);
    (host, DockerConfig::parse("f", &Secret::new(HELPED), Some(helpers)).unwrap())
}

#[test]
fn credential_helpers() {
    let answer = |text: &str| Scripted::Ends(0, text.into());
    let (host, config) = helped([
        answer(r#"{"ServerURL":"reg.example","Username":"u","Secret":"p"}"#),
        answer(r#"{"Username":"<token>","Secret":"it"}"#),
        Scripted::Ends(1, b"credentials not found in native keychain\n".to_vec()),
        answer(r#"{"ServerURL":"https://index.docker.io/v1/","Username":"hub","Secret":"h"}"#),
    ]);
    assert_eq!(found(&config, "reg.example/a"), ["u:p"]);
    assert_eq!(found(&config, "gcr.example/a"), ["identity:it"]);
    assert_eq!(found(&config, "other.example/a"), [""; 0]);
    assert_eq!(found(&config, "busybox"), ["hub:h"]);
    assert_eq!(found(&config, "off.example/a"), [""; 0]);
    let run = host.commands();
    let line = |name: &str| vec![format!("docker-credential-{name}"), "get".to_owned()];
    assert_eq!(run, [line("desktop"), line("gcloud"), line("desktop"), line("desktop")]);
}

#[test]
fn helpers_that_fail() {
    let wanted: Reference = "reg.example/a".parse().unwrap();
    for (answer, part) in [
        (Scripted::Missing, "credential helper \"docker-credential-desktop\" (named in f)"),
        (Scripted::Hangs, "credential helper"),
        (Scripted::Ends(1, b"keychain is locked\n".to_vec()), "exited with 1: keychain is locked"),
        (Scripted::Ends(2, b"{\"Secret\":\"hunter2\"}".to_vec()), "exited with 2"),
        (Scripted::Ends(3, Vec::new()), "no output"),
        (Scripted::Ends(0, b"hunter2".to_vec()), "not JSON with ServerURL"),
        (
            Scripted::Ends(
                0,
                br#"{"ServerURL":"evil.example","Username":"u","Secret":"hunter2"}"#.to_vec(),
            ),
            "for \"evil.example\" instead of reg.example",
        ),
    ] {
        let (_, config) = helped([answer]);
        let error = wait(config.find(Wanted::Place(wanted.place()))).unwrap_err();
        let shown = format!("{error} {error:?}");
        assert!(shown.contains(part) && !shown.contains("hunter2"), "{shown}");
    }
    let text = r#"{"credsStore": "../../bin/sh"}"#;
    let helpers = Helpers::new(Arc::new(FakeHost::default()), Vec::new());
    let config = DockerConfig::parse("f", &Secret::new(text), Some(helpers)).unwrap();
    let error = wait(config.find(Wanted::Place(wanted.place()))).unwrap_err().to_string();
    assert!(error.contains("its name must be letters"), "{error}");
    // Without `Helpers` no helper is run.
    assert_eq!(found(&self::config(HELPED), "reg.example/a"), [""; 0]);
    assert!(kubernetes::secret_text("f", &Secret::new(HELPED)).unwrap().is_empty());
}
