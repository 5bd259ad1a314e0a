//! TLS configuration of a host.

use std::path::Path;
use std::sync::{Arc, OnceLock};

use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::CryptoProvider;
use rustls::{ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};

use super::error::RegistryError;
use super::host::TlsFiles;

/// The system's certificate authorities, read once.
fn system_roots() -> &'static RootCertStore {
    static ROOTS: OnceLock<RootCertStore> = OnceLock::new();
    ROOTS.get_or_init(|| {
        let mut roots = RootCertStore::empty();
        let found = rustls_native_certs::load_native_certs();
        for error in &found.errors {
            tracing::debug!("system certificates: {error}");
        }
        roots.add_parsable_certificates(found.certs);
        roots
    })
}

fn provider() -> Arc<CryptoProvider> {
    static PROVIDER: OnceLock<Arc<CryptoProvider>> = OnceLock::new();
    Arc::clone(PROVIDER.get_or_init(|| Arc::new(rustls::crypto::ring::default_provider())))
}

/// For the registry's own host: its authorities and the client certificate.
pub(super) fn config(files: &TlsFiles) -> Result<ClientConfig, RegistryError> {
    build(files, files.client.is_some(), files.skip_verify)
}

/// For token servers and redirect targets: the same authorities, but no client certificate and no
/// `skip_verify`.
pub(super) fn config_for_others(files: &TlsFiles) -> Result<ClientConfig, RegistryError> {
    build(files, false, false)
}

fn build(files: &TlsFiles, identity: bool, skip: bool) -> Result<ClientConfig, RegistryError> {
    let versions = ClientConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .map_err(|error| RegistryError::Tls(error.to_string()))?;
    let builder = if skip {
        let verifier = Arc::new(Unverified(provider()));
        versions.dangerous().with_custom_certificate_verifier(verifier)
    } else {
        versions.with_webpki_verifier(verifier(files)?)
    };
    match &files.client {
        Some((certificate, key)) if identity => {
            let chain = certificates(certificate)?;
            let key = private_key(key.as_deref().unwrap_or(certificate))?;
            let error = |error: rustls::Error| invalid(certificate, &error.to_string());
            builder.with_client_auth_cert(chain, key).map_err(error)
        }
        _ => Ok(builder.with_no_client_auth()),
    }
}

fn verifier(files: &TlsFiles) -> Result<Arc<WebPkiServerVerifier>, RegistryError> {
    let mut roots = system_roots().clone();
    for path in &files.ca {
        for certificate in certificates(path)? {
            roots.add(certificate).map_err(|error| invalid(path, &error.to_string()))?;
        }
    }
    if roots.is_empty() {
        // rustls refuses an empty store with a less helpful error.
        let why = "no certificate authorities: install ca-certificates, or name one in hosts.toml";
        return Err(RegistryError::Tls(why.to_owned()));
    }
    WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider())
        .build()
        .map_err(|error| RegistryError::Tls(error.to_string()))
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, RegistryError> {
    let pem = read(path)?;
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&pem).collect();
    let found = found.map_err(|_| invalid(path, "it is not PEM"))?;
    if found.is_empty() { Err(invalid(path, "it contains no PEM certificate")) } else { Ok(found) }
}

fn private_key(path: &Path) -> Result<PrivateKeyDer<'static>, RegistryError> {
    let pem = sandbox_core::Secret::new(read(path)?);
    PrivateKeyDer::from_pem_slice(pem.expose())
        .map_err(|_| invalid(path, "it contains no PEM private key"))
}

fn read(path: &Path) -> Result<Vec<u8>, RegistryError> {
    std::fs::read(path).map_err(|source| RegistryError::ReadHosts { path: path.to_owned(), source })
}

fn invalid(path: &Path, why: &str) -> RegistryError {
    RegistryError::Certificate { path: path.to_owned(), why: why.to_owned() }
}

/// The verifier for `skip_verify = true`: accepts any certificate.
#[derive(Debug)]
struct Unverified(Arc<CryptoProvider>);

impl ServerCertVerifier for Unverified {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        rustls::crypto::verify_tls12_signature(message, certificate, signed, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, certificate, signed, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
