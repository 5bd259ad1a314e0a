//! Registry credentials as CRI wants them.

use k8s_cri::v1::AuthConfig;
use kube_manifest::{Manifest, Pod};
use sandbox_image::{Candidate, Credential, Place, Sources};
use sandbox_image::{CredentialError, CredentialSource as _, Wanted, pull_secret};

/// The credentials of the Pod's `imagePullSecrets`; Secrets that are not in the files are left out.
pub(crate) fn pull_secrets(manifest: &Manifest, pod: &Pod) -> Result<Sources, CredentialError> {
    let mut sources = Sources::none();
    for name in &pod.image_pull_secrets {
        if let Some(secret) = manifest.secret(&pod.meta.namespace, name) {
            sources.push(pull_secret(&secret.document, &secret.kind, &secret.data)?);
        }
    }
    Ok(sources)
}

/// The credentials for a repository, in the order in which they are tried.
pub(crate) async fn candidates(
    sources: &Sources,
    place: &Place,
) -> Result<Vec<Candidate>, CredentialError> {
    sources.find(Wanted::Place(place)).await
}

/// The credential for the runtime, bound to the registry's host: without the address the runtime would send it to
/// mirrors too.
pub(crate) fn auth(credential: &Credential, place: &Place) -> AuthConfig {
    let secret = credential.secret().expose_text().unwrap_or_default().to_owned();
    let bound = AuthConfig {
        server_address: format!("https://{}", place.server()),
        ..AuthConfig::default()
    };
    match credential {
        Credential::Basic { username, .. } => {
            AuthConfig { username: username.clone(), password: secret, ..bound }
        }
        Credential::Identity(_) => AuthConfig { identity_token: secret, ..bound },
        Credential::Registry(_) => AuthConfig { registry_token: secret, ..bound },
    }
}

#[cfg(test)]
mod tests {
    use kube_manifest::{Findings, read_text};
    use sandbox_core::Secret;
    use sandbox_image::Reference;

    use super::*;

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

    fn auths(manifest: &Manifest, image: &str) -> Vec<(String, String, String)> {
        let reference: Reference = image.parse().unwrap();
        let sources = pull_secrets(manifest, &manifest.pods[0]).unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let found = runtime.block_on(candidates(&sources, reference.place())).unwrap();
        let auth = found.iter().map(|it| auth(&it.credential, reference.place()));
        auth.map(|it| (it.username, it.password, it.server_address)).collect()
    }

    #[test]
    fn a_credential_is_only_for_its_host() {
        let config = r#"{"auths":{"reg.example:5000":{"username":"u","password":"p"},"https://index.docker.io/v1/":{"auth":"aHViOmE6Yg=="}}}"#;
        let manifest = manifest("kubernetes.io/dockerconfigjson", ".dockerconfigjson", config);
        let user = |name: &str, password: &str, server: &str| {
            vec![(name.to_owned(), password.to_owned(), format!("https://{server}"))]
        };
        let hub = user("hub", "a:b", "registry-1.docker.io");
        assert_eq!(auths(&manifest, "reg.example:5000/a/b:1"), user("u", "p", "reg.example:5000"));
        assert_eq!(auths(&manifest, "busybox"), hub);
        assert_eq!(auths(&manifest, "library/busybox"), hub);
        for other in
            ["reg.example/a/b", "reg.example:5001/a", "x.reg.example:5000/a", "localhost/a"]
        {
            assert_eq!(auths(&manifest, other), [], "{other}");
        }
    }

    #[test]
    fn the_old_form_is_read_too() {
        let config = r#"{"reg.example":{"auth":"dTpw"}}"#;
        let manifest = manifest("kubernetes.io/dockercfg", ".dockercfg", config);
        let wanted = [("u".to_owned(), "p".to_owned(), "https://reg.example".to_owned())];
        assert_eq!(auths(&manifest, "reg.example/a"), wanted);
    }

    #[test]
    fn tokens_have_fields_of_their_own() {
        let reference: Reference = "reg.example/a".parse().unwrap();
        let identity = auth(&Credential::Identity(Secret::new("it")), reference.place());
        assert_eq!((identity.identity_token.as_str(), identity.password.as_str()), ("it", ""));
        let registry = auth(&Credential::Registry(Secret::new("rt")), reference.place());
        assert_eq!(registry.registry_token, "rt");
    }

    #[test]
    fn faults_name_the_document_and_never_a_value() {
        for (kind, key, config, wanted) in [
            (
                "Opaque",
                "x",
                "hunter2",
                "f: document 1 (Secret default/pull): Secret of type \"Opaque\" cannot be an imagePullSecret",
            ),
            (
                "kubernetes.io/dockerconfigjson",
                "x",
                "hunter2",
                "f: document 1 (Secret default/pull): data[\".dockerconfigjson\"]: is missing",
            ),
            (
                "kubernetes.io/dockercfg",
                ".dockercfg",
                r#"{"h":{"auth":"hunter2"}}"#,
                "f: document 1 (Secret default/pull): data[\".dockercfg\"]: entry \"h\": it has neither",
            ),
        ] {
            let manifest = manifest(kind, key, config);
            let error = pull_secrets(&manifest, &manifest.pods[0]).unwrap_err().to_string();
            assert!(error.starts_with(wanted) && !error.contains("hunter2"), "{error}");
        }
    }
}
