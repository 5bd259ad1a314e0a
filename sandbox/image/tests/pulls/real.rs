//! Pulls from Debian's docker-registry: htpasswd users, TLS with a private authority, tokens.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use ring::rand::SystemRandom;
use ring::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair};
use sandbox_core::Secret;
use sandbox_host::{FakeHost, Scripted};
use sandbox_image::{
    Credential, CredentialSource, DockerConfig, Helpers, Reference, SecretDirectory, Sources,
    Wanted, secret_file,
};
use serde_json::json;

use crate::bed::{Bed, candidate, line, no_credentials, user};
use crate::daemon::{Access, Daemon, PASSWORD, program};
use crate::image::Image;
use crate::pki::Authority;
use crate::server::{Reply, Request, Server};

/// A directory with a registry storage that contains two images.
async fn stored(program: &Path) -> (Bed, Image, Image) {
    let bed = Bed::new();
    let single = Image::single(&[200_000, 10, 40_000]);
    let multi = Image::multi(&[30_000]);
    let public = Daemon::start(program, &bed.path("registry"), Access::Public, None).await;
    public.push("team/single", &single).await;
    public.push("team/multi", &multi).await;
    (bed, single, multi)
}

/// The number of images pulled with each source.
const IMAGES: usize = 4;

/// A source of each kind with bob's password.
fn sources(bed: &Bed, host: &str) -> Vec<(&'static str, Sources)> {
    let auth = STANDARD.encode(format!("bob:{PASSWORD}"));
    let config = format!(r#"{{"auths":{{"{host}":{{"auth":"{auth}"}}}}}}"#);
    let plain = format!(
        r#"{{"auths":{{"https://{host}/team":{{"username":"bob","password":"{PASSWORD}"}}}}}}"#
    );
    let old = format!(r#"{{"{host}":{{"auth":"{auth}","email":"bob@example"}}}}"#);
    let write = |name: &str, text: String| -> PathBuf {
        fs::write(bed.path(name), text).unwrap();
        bed.path(name)
    };
    let yaml = |kind: &str, key: &str, text: &str| {
        format!(
            "apiVersion: v1\nkind: Secret\nmetadata:\n  name: pull\ntype: kubernetes.io/{kind}\ndata:\n  {key}: {}\n",
            STANDARD.encode(text)
        )
    };
    let json = json!({
        "apiVersion": "v1", "kind": "Secret", "metadata": { "name": "pull" },
        "type": "kubernetes.io/dockerconfigjson", "data": { ".dockerconfigjson": STANDARD.encode(&config) },
    });
    fs::create_dir_all(bed.path("mounted/pull")).unwrap();
    write("mounted/pull/.dockerconfigjson", config.clone());
    let answer = format!(r#"{{"ServerURL":"{host}","Username":"bob","Secret":"{PASSWORD}"}}"#);
    let answers = (0..IMAGES).map(|_| Scripted::Ends(0, answer.clone().into()));
    let helpers = Helpers::new(Arc::new(FakeHost::new(answers)), Vec::new());
    let helped = Secret::new(format!(r#"{{"credHelpers":{{"{host}":"test"}}}}"#));
    let file = |name, text: String| secret_file(&write(name, text)).unwrap();
    let docker = |name, text: String| DockerConfig::read(&write(name, text), None).unwrap();
    vec![
        ("config.json", source(docker("config.json", config.clone()))),
        ("auth.json", source(docker("auth.json", plain))),
        (
            "dockerconfigjson.yaml",
            source(file("new.yaml", yaml("dockerconfigjson", ".dockerconfigjson", &config))),
        ),
        ("dockercfg.yaml", source(file("old.yaml", yaml("dockercfg", ".dockercfg", &old)))),
        ("secret.json", source(file("secret.json", json.to_string()))),
        ("mounted secrets", source(SecretDirectory::new(bed.path("mounted")))),
        ("credential helper", source(DockerConfig::parse("f", &helped, Some(helpers)).unwrap())),
        ("candidates", source(vec![user(host, "bob", PASSWORD)])),
    ]
}

/// A list of one source.
fn source(source: impl CredentialSource + 'static) -> Sources {
    let mut sources = Sources::none();
    sources.push(source);
    sources
}

#[tokio::test]
#[ignore = "needs env:BULKHEAD_REGISTRY"]
async fn users_by_every_source() {
    let program = program();
    let (bed, single, multi) = stored(&program).await;
    let authority = Authority::new(&bed.path("pki"));
    let directory = bed.path("registry");
    let daemon = Daemon::start(&program, &directory, Access::Users, Some(&authority)).await;
    let host = daemon.host();
    bed.hosts(&host, &format!("ca = {:?}\n", authority.ca()));
    let images: [String; IMAGES] = [
        format!("{host}/team/single:1"),
        format!("{host}/team/multi:multi"),
        format!("{host}/team/single@{}", single.digest("1")),
        format!("{host}/team/multi@{}", multi.digest("multi")),
    ];
    for (name, source) in sources(&bed, &host) {
        let client = bed.client(source);
        for image in &images {
            let pulled =
                bed.pull(&client, image).await.unwrap_or_else(|e| panic!("{name} {image}: {e}"));
            bed.assert_complete(&pulled, image);
            fs::remove_dir_all(bed.path("layout")).unwrap();
        }
    }
    let log = fs::read_to_string(directory.join("log")).unwrap();
    assert!(log.contains("/v2/team/multi/manifests/"), "the registry was not asked");
}

#[tokio::test]
#[ignore = "needs env:BULKHEAD_REGISTRY"]
async fn errors_report_the_reason() {
    let program = program();
    let (bed, single, _) = stored(&program).await;
    let authority = Authority::new(&bed.path("pki"));
    let directory = bed.path("registry");
    let daemon = Daemon::start(&program, &directory, Access::Users, Some(&authority)).await;
    let host = daemon.host();
    let image = format!("{host}/team/single:1");
    let bob = || vec![user(&host, "bob", PASSWORD)];
    let fails = async |source: Vec<_>, image: &str, part: &str| {
        let error = bed.pull(&bed.client(source), image).await.unwrap_err();
        assert!(error.contains(part) && !error.contains(PASSWORD), "{part}: {error}");
        bed.assert_clean();
    };
    fails(bob(), &image, "signed by an authority that is not trusted here").await;
    bed.hosts(&host, &format!("ca = {:?}\n", authority.ca()));
    fails(no_credentials(), &image, "requires a credential for team/single, and no source has one")
        .await;
    fails(vec![user("reg.example", "bob", PASSWORD)], &image, "no source has one").await;
    fails(vec![user(&host, "bob", "wrong")], &image, "user \"bob\" of secret.yaml").await;
    fails(bob(), &format!("{host}/team/none:1"), "has no image team/none:1").await;
    fails(bob(), &format!("{host}/team/single:2"), "has no image team/single:2").await;
    let localhost = format!("localhost:{}/team/single:1", daemon.address.port());
    bed.hosts(localhost.split('/').next().unwrap(), &format!("ca = {:?}\n", authority.ca()));
    fails(bob(), &localhost, "its certificate is for another host").await;
    // Corrupt the registry's storage.
    let (digest, bytes) = single.largest();
    let hex = digest.strip_prefix("sha256:").unwrap();
    let blob =
        directory.join(format!("storage/docker/registry/v2/blobs/sha256/{}/{hex}/data", &hex[..2]));
    let mut corrupt = bytes.clone();
    corrupt[100_000] ^= 1;
    fs::write(&blob, &corrupt).unwrap();
    fails(bob(), &image, ": its digest is sha256:").await;
    fs::write(&blob, &bytes[..5000]).unwrap();
    fails(bob(), &image, "it has 5000 bytes, but ").await;
    fs::write(&blob, [bytes.as_slice(), b"more"].concat()).unwrap();
    fails(bob(), &image, " in the manifest").await;
    fs::remove_file(&blob).unwrap();
    fails(bob(), &image, "has no blob sha256:").await;
    fs::write(&blob, bytes).unwrap();
    let pulled = bed.pull(&bed.client(bob()), &image).await.unwrap();
    bed.assert_complete(&pulled, &image);
}

/// Signs tokens for docker-registry.
struct Issuer {
    key: EcdsaKeyPair,
    certificate: String,
}

impl Issuer {
    fn new(authority: &Authority) -> Self {
        let (certificate, key) = authority.sign("issuer", "issuer.example");
        let random = SystemRandom::new();
        let key =
            EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &key, &random).unwrap();
        Self { key, certificate: STANDARD.encode(certificate) }
    }

    /// A token to pull from a repository; expired if `seconds` is negative.
    fn token(&self, repository: &str, seconds: i64) -> String {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
        let now = i64::try_from(now).unwrap();
        let header = json!({ "typ": "JWT", "alg": "ES256", "x5c": [self.certificate] });
        let claims = json!({
            "iss": "tests", "sub": "bob", "aud": "reg", "exp": now + seconds, "nbf": now - 600,
            "iat": now - 600, "jti": "1",
            "access": [{ "type": "repository", "name": repository, "actions": ["pull"] }],
        });
        let encode = |it: &serde_json::Value| URL_SAFE_NO_PAD.encode(it.to_string());
        let signed = format!("{}.{}", encode(&header), encode(&claims));
        let signature = self.key.sign(&SystemRandom::new(), signed.as_bytes()).unwrap();
        format!("{signed}.{}", URL_SAFE_NO_PAD.encode(signature))
    }
}

/// A token server with TLS that accepts bob's password and the identity token `identity-1`.
fn token_server(authority: &Authority, seconds: i64) -> Server {
    let issuer = Issuer::new(authority);
    let bob = format!("Basic {}", STANDARD.encode(format!("bob:{PASSWORD}")));
    Server::start(Some(authority.server("127.0.0.1", false)), move |request: &Request| {
        let body = String::from_utf8_lossy(&request.body).into_owned();
        let accepted = request.header("authorization") == Some(&bob)
            || body.contains("refresh_token=identity-1");
        if !accepted {
            return Reply::new(401, r#"{"details":"incorrect username or password"}"#);
        }
        let all = format!("{}&{body}", request.path);
        let repository =
            all.split("scope=repository%3A").nth(1).unwrap().split("%3A").next().unwrap();
        let token = issuer.token(&repository.replace("%2F", "/"), seconds);
        Reply::new(200, json!({ "access_token": token, "expires_in": seconds }).to_string())
    })
}

#[tokio::test]
#[ignore = "needs env:BULKHEAD_REGISTRY"]
async fn tokens_of_a_real_registry() {
    let program = program();
    let (bed, ..) = stored(&program).await;
    let authority = Authority::new(&bed.path("pki"));
    let tokens = token_server(&authority, 300);
    let realm = format!("https://{}/token", tokens.host());
    let directory = bed.path("registry");
    let daemon =
        Daemon::start(&program, &directory, Access::Tokens { realm: &realm }, Some(&authority))
            .await;
    let host = daemon.host();
    bed.hosts(&host, &format!("ca = {:?}\n", authority.ca()));
    let identity = |token: &str| vec![candidate(&host, Credential::Identity(Secret::new(token)))];
    for source in [vec![user(&host, "bob", PASSWORD)], identity("identity-1")] {
        for image in ["team/single:1", "team/multi:multi"] {
            let image = format!("{host}/{image}");
            let pulled = bed.pull(&bed.client(source.clone()), &image).await.unwrap();
            bed.assert_complete(&pulled, &image);
            fs::remove_dir_all(bed.path("layout")).unwrap();
        }
    }
    let image = format!("{host}/team/single:1");
    for (source, part) in [
        (no_credentials(), "requires a credential for team/single"),
        (vec![user(&host, "bob", "wrong")], "401 Unauthorized: incorrect username or password"),
        (identity("identity-0"), "an identity token of secret.yaml"),
    ] {
        let error = bed.pull(&bed.client(source), &image).await.unwrap_err();
        assert!(error.contains(part), "{error}");
        bed.assert_clean();
    }
    let log = fs::read_to_string(directory.join("log")).unwrap();
    assert!(!log.contains(PASSWORD) && !log.contains("identity-1"));
}

#[tokio::test]
#[ignore = "needs env:BULKHEAD_REGISTRY"]
async fn an_expired_token_of_a_real_registry() {
    let program = program();
    let (bed, ..) = stored(&program).await;
    let authority = Authority::new(&bed.path("pki"));
    let tokens = token_server(&authority, -600);
    let realm = format!("https://{}/token", tokens.host());
    let access = Access::Tokens { realm: &realm };
    let daemon = Daemon::start(&program, &bed.path("registry"), access, Some(&authority)).await;
    let host = daemon.host();
    bed.hosts(&host, &format!("ca = {:?}\n", authority.ca()));
    let client = bed.client(vec![user(&host, "bob", PASSWORD)]);
    let error = bed.pull(&client, &format!("{host}/team/single:1")).await.unwrap_err();
    let wanted = format!(
        "{host} refuses access to team/single: user \"bob\" of secret.yaml: entry \"{host}\": "
    );
    let refused = "the token of its token server is refused (invalid_token): ";
    assert!(error.starts_with(&wanted) && error.contains(refused), "{error}");
    bed.assert_clean();
}

#[tokio::test]
async fn an_unreadable_source_is_reported_with_its_path() {
    let bed = Bed::new();
    let mut sources = Sources::none();
    sources.push(SecretDirectory::new(bed.path("none")));
    let reference: Reference = "reg.example/a".parse().unwrap();
    let wanted = Wanted::Place(reference.place());
    let error = tokio::time::timeout(Duration::from_secs(5), sources.find(wanted)).await.unwrap();
    let error = line(&error.unwrap_err());
    assert!(
        error.starts_with(&format!(
            "cannot read the credentials in {}: ",
            bed.path("none").display()
        )),
        "{error}"
    );
}
