use clap::Parser as _;
use sandbox_image::DockerConfig;
use serde_json::{Value, json};

use super::*;
use crate::args::{Cli, Command};

/// A request of Kubernetes 1.34's kubelet, with a service account's token.
const REQUEST: &str = r#"{"kind":"CredentialProviderRequest","apiVersion":"credentialprovider.kubelet.k8s.io/v1","image":"reg.example:5000/team/app:1","serviceAccountToken":"hunter2","serviceAccountAnnotations":{"a":"b"}}"#;

fn args(more: &[&str]) -> ProviderArgs {
    let line = ["bulkhead", "credential-provider"].iter().chain(more);
    match Cli::try_parse_from(line).unwrap().command {
        Command::CredentialProvider(args) => args,
        other => panic!("{other:?}"),
    }
}

fn sources() -> Sources {
    let text = r#"{"auths": {
        "reg.example:5000": {"username": "all", "password": "p\"1"},
        "reg.example:5000/team": {"auth": "dGVhbTpw"},
        "reg.example:5000/other": {"auth": "b3RoZXI6cA=="},
        "reg.example:5000/token": {"identitytoken": "hunter3"},
        "*.example:5000/team": {"auth": "Z2xvYjpw"},
        "elsewhere.example": {"auth": "ZWxzZTpw"}
    }}"#;
    let mut sources = Sources::none();
    sources.push(DockerConfig::parse("f", &Secret::new(text), None).unwrap());
    sources
}

fn ask(request: &str, more: &[&str]) -> Result<Value, String> {
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let answer = runtime.block_on(answer(&Secret::new(request), &sources(), &args(more)));
    let answer = answer.map_err(|error| crate::chain(&error))?;
    Ok(serde_json::from_slice(answer.expose()).unwrap())
}

#[test]
fn what_the_kubelet_gets() {
    let user = |name: &str, password: &str| json!({ "username": name, "password": password });
    assert_eq!(
        ask(REQUEST, &[]).unwrap(),
        json!({
            "kind": "CredentialProviderResponse",
            "apiVersion": "credentialprovider.kubelet.k8s.io/v1",
            "cacheKeyType": "Image",
            "cacheDuration": "300s",
            "auth": {
                "reg.example:5000": user("all", "p\"1"),
                "reg.example:5000/team": user("team", "p"),
                "*.example:5000/team": user("glob", "p"),
            },
        })
    );
    let kept = ask(REQUEST, &["--cache-key", "registry", "--cache-duration", "0"]).unwrap();
    assert_eq!((&kept["cacheKeyType"], &kept["cacheDuration"]), (&json!("Registry"), &json!("0s")));
    // All credentials of the registry that the kubelet can take.
    let keys: Vec<_> = kept["auth"].as_object().unwrap().keys().collect();
    assert_eq!(
        keys,
        [
            "*.example:5000/team",
            "reg.example:5000",
            "reg.example:5000/other",
            "reg.example:5000/team"
        ]
    );
    let none = REQUEST.replace("reg.example:5000", "unknown.example");
    assert_eq!(ask(&none, &[]).unwrap()["auth"], json!({}));
    let old = REQUEST.replace("k8s.io/v1", "k8s.io/v1beta1");
    assert_eq!(ask(&old, &[]).unwrap()["apiVersion"], "credentialprovider.kubelet.k8s.io/v1beta1");
}

#[test]
fn invalid_requests() {
    for (request, part) in [
        ("", "not a CredentialProviderRequest: line 1"),
        ("hunter2", "not a CredentialProviderRequest: line 1"),
        ("{\"image\":\"hunter2\"}", "not a CredentialProviderRequest"),
        (
            &*REQUEST.replace("ProviderRequest", "ProviderResponse"),
            "kind \"CredentialProviderResponse\"",
        ),
        (&*REQUEST.replace("k8s.io/v1", "k8s.io/v9"), "is not supported"),
        (&*REQUEST.replace("app:1", "App"), "the kubelet's request: image reference"),
    ] {
        let error = ask(request, &[]).unwrap_err();
        assert!(error.contains(part) && !error.contains("hunter2"), "{request}: {error}");
    }
}

#[test]
fn the_configuration_is_the_kubelets() {
    let line = [
        "--secret-dir",
        "/etc/bulkhead/secrets",
        "--print-config",
        "--match-image",
        "*.example:5000",
        "--cache-key",
        "registry",
    ];
    let text = config::text(&args(&line)).unwrap();
    assert!(text.contains("#   --image-credential-provider-config=FILE\n"));
    let config: Value = serde_norway::from_str(&text).unwrap();
    assert_eq!(
        config,
        json!({
            "apiVersion": "kubelet.config.k8s.io/v1",
            "kind": "CredentialProviderConfig",
            "providers": [{
                "name": "bulkhead",
                "apiVersion": "credentialprovider.kubelet.k8s.io/v1",
                "matchImages": ["*.example:5000"],
                "defaultCacheDuration": "300s",
                "args": [
                    "credential-provider", "--secret-dir=/etc/bulkhead/secrets",
                    "--cache-key=registry", "--cache-duration=300",
                ],
            }],
        })
    );
    // The configured arguments are valid.
    let called: Vec<_> = config["providers"][0]["args"].as_array().unwrap()[1..]
        .iter()
        .map(|it| it.as_str().unwrap())
        .collect();
    assert_eq!(args(&called).cache_key, CacheKey::Registry);
    assert!(Cli::try_parse_from(["bulkhead", "credential-provider", "--print-config"]).is_err());
}
