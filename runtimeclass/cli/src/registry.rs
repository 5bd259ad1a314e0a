//! Registry credentials from `imagePullSecrets`.
//!
//! A credential is handed out only for exactly the host that it was stored for.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use k8s_cri::v1::AuthConfig;
use serde_json::Value;

use crate::manifest::{Manifest, Pod, Secret};
use crate::sensitive::Sensitive;

/// The host that an image reference without one means.
const DEFAULT_HOST: &str = "docker.io";

/// A user of a registry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Credential {
    host: String,
    username: String,
    password: Sensitive,
}

/// Why a Secret holds no credentials.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum CredentialError {
    /// Another type of Secret.
    #[error(
        "{document}: Secret of type {kind:?} cannot be an imagePullSecret; it must be kubernetes.io/dockerconfigjson or kubernetes.io/dockercfg"
    )]
    Type {
        /// The Secret's document.
        document: String,
        /// Its type.
        kind: String,
    },
    /// The content is not what the type says.
    #[error("{document}: data[{key:?}] is not a Docker configuration: {why}")]
    Content {
        /// The Secret's document.
        document: String,
        /// The key.
        key: &'static str,
        /// What is wrong, without any value.
        why: &'static str,
    },
}

impl Credential {
    /// The message for the runtime, bound to the registry's host.
    pub(crate) fn auth(&self) -> AuthConfig {
        AuthConfig {
            username: self.username.clone(),
            password: self.password.expose_text().unwrap_or_default().to_owned(),
            server_address: format!("https://{}", server(&self.host)),
            ..AuthConfig::default()
        }
    }
}

/// All credentials of the Pod's `imagePullSecrets` for the image's registry, in order.
pub(crate) fn credentials(
    manifest: &Manifest,
    pod: &Pod,
    image: &str,
) -> Result<Vec<Credential>, CredentialError> {
    let host = image_host(image);
    let mut found = Vec::new();
    for name in &pod.image_pull_secrets {
        if let Some(secret) = manifest.secret(&pod.meta.namespace, name) {
            found.extend(read(secret)?.into_iter().filter(|credential| credential.host == host));
        }
    }
    Ok(found)
}

/// The registry's host, with its port, in an image reference.
fn image_host(image: &str) -> String {
    let first = image.split_once('/').map(|(first, _)| first);
    let host = first.filter(|first| first.contains(['.', ':']) || *first == "localhost");
    canonical(host.unwrap_or(DEFAULT_HOST))
}

/// Docker's own registry has several names.
fn canonical(host: &str) -> String {
    match host {
        "index.docker.io" | "registry-1.docker.io" => DEFAULT_HOST.to_owned(),
        other => other.to_ascii_lowercase(),
    }
}

fn server(host: &str) -> &str {
    if host == DEFAULT_HOST { "registry-1.docker.io" } else { host }
}

fn read(secret: &Secret) -> Result<Vec<Credential>, CredentialError> {
    let (key, nested) = match secret.kind.as_str() {
        "kubernetes.io/dockerconfigjson" => (".dockerconfigjson", true),
        "kubernetes.io/dockercfg" => (".dockercfg", false),
        kind => {
            let (document, kind) = (secret.document.clone(), kind.to_owned());
            return Err(CredentialError::Type { document, kind });
        }
    };
    let wrong = |why| CredentialError::Content { document: secret.document.clone(), key, why };
    let bytes = secret.data.get(key).ok_or_else(|| wrong("the key is missing"))?;
    let config: Value =
        serde_json::from_slice(bytes.expose()).map_err(|_| wrong("it is not JSON"))?;
    let entries = if nested { config.get("auths") } else { Some(&config) };
    let entries = entries.and_then(Value::as_object).ok_or_else(|| wrong("it has no hosts"))?;
    let credential = |(place, entry): (&String, &Value)| {
        let host = canonical(host_of(place));
        let (username, password) = user(entry).ok_or_else(|| {
            wrong("an entry has neither username and password nor a base64 auth of both")
        })?;
        Ok(Credential { host, username, password: Sensitive::new(password) })
    };
    entries.iter().map(credential).collect()
}

/// `https://host/v1/`, `host/path` or `host` to `host`.
fn host_of(place: &str) -> &str {
    let bare = place.strip_prefix("https://").or_else(|| place.strip_prefix("http://"));
    bare.unwrap_or(place).split('/').next().unwrap_or_default()
}

fn user(entry: &Value) -> Option<(String, String)> {
    let text = |key: &str| entry.get(key).and_then(Value::as_str).filter(|text| !text.is_empty());
    if let (Some(username), Some(password)) = (text("username"), text("password")) {
        return Some((username.to_owned(), password.to_owned()));
    }
    let decoded = String::from_utf8(STANDARD.decode(text("auth")?).ok()?).ok()?;
    let (username, password) = decoded.split_once(':')?;
    Some((username.to_owned(), password.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::yaml::{Findings, read_text};

    fn manifest(kind: &str, key: &str, config: &str) -> Manifest {
        let text = format!(
            "apiVersion: v1\nkind: Secret\nmetadata: {{name: pull}}\ntype: {kind}\n\
             stringData: {{{key}: '{config}'}}\n---\napiVersion: v1\nkind: Pod\n\
             metadata: {{name: web}}\nspec: {{containers: [{{name: a, image: b}}], \
             imagePullSecrets: [{{name: pull}}]}}\n"
        );
        let mut manifest = Manifest::default();
        read_text("f", &text, &Findings::default(), &mut manifest).unwrap();
        manifest
    }

    fn users(manifest: &Manifest, image: &str) -> Vec<(String, String)> {
        let found = credentials(manifest, &manifest.pods[0], image).unwrap();
        found.iter().map(Credential::auth).map(|it| (it.username, it.password)).collect()
    }

    #[test]
    fn only_the_exact_host_gets_them() {
        let config = r#"{"auths":{"reg.example:5000":{"username":"u","password":"p"},"https://index.docker.io/v1/":{"auth":"aHViOmE6Yg=="}}}"#;
        let manifest = manifest("kubernetes.io/dockerconfigjson", ".dockerconfigjson", config);
        let user = |name: &str, password: &str| vec![(name.to_owned(), password.to_owned())];
        assert_eq!(users(&manifest, "reg.example:5000/a/b:1"), user("u", "p"));
        assert_eq!(users(&manifest, "busybox"), user("hub", "a:b"));
        assert_eq!(users(&manifest, "library/busybox"), user("hub", "a:b"));
        for other in
            ["reg.example/a/b", "reg.example:5001/a", "x.reg.example:5000/a", "localhost/a"]
        {
            assert_eq!(users(&manifest, other), [], "{other}");
        }
    }

    #[test]
    fn the_old_form_is_read_too() {
        let config = r#"{"reg.example":{"auth":"dTpw"}}"#;
        let manifest = manifest("kubernetes.io/dockercfg", ".dockercfg", config);
        assert_eq!(users(&manifest, "reg.example/a"), [("u".to_owned(), "p".to_owned())]);
    }

    #[test]
    fn faults_never_show_a_value() {
        for (kind, key, config, wanted) in [
            (
                "Opaque",
                "x",
                "hunter2",
                "f: document 1 (Secret default/pull): Secret of type \"Opaque\" cannot be an imagePullSecret; it must be kubernetes.io/dockerconfigjson or kubernetes.io/dockercfg",
            ),
            (
                "kubernetes.io/dockerconfigjson",
                "x",
                "hunter2",
                "f: document 1 (Secret default/pull): data[\".dockerconfigjson\"] is not a Docker configuration: the key is missing",
            ),
            (
                "kubernetes.io/dockercfg",
                ".dockercfg",
                "hunter2",
                "f: document 1 (Secret default/pull): data[\".dockercfg\"] is not a Docker configuration: it is not JSON",
            ),
            (
                "kubernetes.io/dockercfg",
                ".dockercfg",
                r#"{"h":{"auth":"hunter2"}}"#,
                "f: document 1 (Secret default/pull): data[\".dockercfg\"] is not a Docker configuration: an entry has neither username and password nor a base64 auth of both",
            ),
        ] {
            let manifest = manifest(kind, key, config);
            let error = credentials(&manifest, &manifest.pods[0], "h/a").unwrap_err();
            assert_eq!(error.to_string(), wanted);
        }
    }
}
