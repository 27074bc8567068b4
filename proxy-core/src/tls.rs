//! rustls, set up for both sides: [`ClientTls`] is what clients see, [`TargetTls`] how servers are seen.
//!
//! TLS 1.2 and 1.3, ALPN `postgresql`, aws-lc-rs underneath. No socket is touched here.

use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};

use arc_swap::ArcSwap;
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, RootCertStore, ServerConfig, SignatureScheme,
    client::{
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
        verify_server_cert_signed_by_trust_anchor, verify_server_name,
    },
    crypto::{self, aws_lc_rs},
    pki_types::{
        CertificateDer, PrivateKeyDer, ServerName, SubjectPublicKeyInfoDer, UnixTime, pem::PemObject,
    },
    server::ParsedCertificate,
};
use sha2::{Digest, Sha224, Sha256, Sha384, Sha512};
use x509_parser::{
    oid_registry::{
        OID_HASH_SHA1, OID_NIST_HASH_SHA256, OID_NIST_HASH_SHA384, OID_NIST_HASH_SHA512, OID_PKCS1_RSASSAPSS,
        Oid,
    },
    prelude::{FromDer, X509Certificate},
    signature_algorithm::SignatureAlgorithm,
};
use zeroize::Zeroizing;

use crate::{
    config::{ServerTlsConfig, TargetConfig, TlsMode},
    secrets::{Stamp, read_stamped},
};

/// PostgreSQL's ALPN name, asked for by clients since version 17.
const ALPN: &[u8] = b"postgresql";

/// A certificate, key or CA file may have at most this many bytes.
const MAX_PEM_BYTES: u64 = 4 * 1024 * 1024;

/// Makes aws-lc-rs the process's TLS provider, unless one is set already. What is made here does not
/// need it; other users of rustls in the process may.
pub fn install_provider() {
    // An error means that somebody was first, which is as good.
    let _ = aws_lc_rs::default_provider().install_default();
}

/// TLS towards clients: a certificate that is replaced while running.
#[derive(Debug)]
pub struct ClientTls {
    files: ServerTlsConfig,
    current: ArcSwap<ClientTlsState>,
    seen: Mutex<Seen>,
}

/// One certificate in use.
#[derive(Debug)]
pub struct ClientTlsState {
    /// For new connections.
    pub config: Arc<ServerConfig>,
    /// `tls-server-end-point` hash of the leaf, see [`end_point_of`].
    pub end_point: Option<Arc<[u8]>>,
}

/// The files as last looked at.
#[derive(Debug)]
struct Seen {
    /// As last read; `None` reads again whatever they look like.
    read: Option<[Stamp; 2]>,
    /// Hash of what is in use.
    contents: [u8; 32],
    /// As they were when reading failed last, so that one failure is reported once.
    reported: Option<[Option<Stamp>; 2]>,
}

impl ClientTls {
    /// Reads chain and key, PEM. Errors: any but those of CAs and host names.
    pub fn new(files: &ServerTlsConfig) -> Result<Self, TlsError> {
        let loaded = load(files)?;
        Ok(Self {
            files: files.clone(),
            current: ArcSwap::from_pointee(loaded.state),
            seen: Mutex::new(Seen { read: loaded.stamps, contents: loaded.contents, reported: None }),
        })
    }

    /// What a new connection is to use.
    pub fn current(&self) -> Arc<ClientTlsState> {
        self.current.load_full()
    }

    /// Looks whether either file changed and takes up the new pair; `true` when there was one. Costs two
    /// `stat` calls when nothing changed, but for the first seconds after a change.
    ///
    /// Errors: why the new pair cannot be used, such as a key that does not match because the files are
    /// replaced one after the other. The old pair stays in use, the files are tried again at the next call,
    /// and the error is not repeated until they have changed.
    pub fn refresh(&self) -> Result<bool, TlsError> {
        // The data is whole between any two statements, so a panic elsewhere spoils nothing.
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        let now = [&self.files.certificate, &self.files.key]
            .map(|path| fs::metadata(path).ok().map(|metadata| Stamp::of(&metadata)));
        if seen.read.is_some_and(|read| read.map(Some) == now) {
            return Ok(false);
        }
        match load(&self.files) {
            Ok(loaded) => {
                let new = loaded.contents != seen.contents;
                *seen = Seen { read: loaded.stamps, contents: loaded.contents, reported: None };
                if new {
                    self.current.store(Arc::new(loaded.state));
                }
                Ok(new)
            }
            Err(error) => {
                seen.read = None;
                if seen.reported == Some(now) {
                    return Ok(false);
                }
                seen.reported = Some(now);
                Err(error)
            }
        }
    }
}

/// TLS towards one target.
#[derive(Debug)]
pub struct TargetTls {
    mode: TlsMode,
    config: Arc<ClientConfig>,
    server_name: ServerName<'static>,
}

impl TargetTls {
    /// Sets up the target's mode, and reads the trusted roots if it verifies chains.
    ///
    /// With a CA file, a certificate in that file is also trusted as the server's own, which is what a
    /// self-signed server certificate comes to. Errors: those of the CA file or the system's roots;
    /// [`TlsError::ServerName`] when names are to be verified and the host can be none.
    pub fn new(target: &TargetConfig) -> Result<Self, TlsError> {
        let provider = Arc::new(aws_lc_rs::default_provider());
        let verifies_chain = matches!(target.tls, TlsMode::VerifyCa | TlsMode::VerifyFull);
        let trust = match (&target.ca, verifies_chain) {
            (_, false) => Trust::Anybody,
            (Some(path), true) => trust_in_file(path)?,
            (None, true) => trust_in_system()?,
        };
        let verifier = TargetVerifier {
            trust,
            verify_name: target.tls == TlsMode::VerifyFull,
            algorithms: provider.signature_verification_algorithms,
        };
        let mut config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(verifier))
            .with_no_client_auth();
        config.alpn_protocols = vec![ALPN.to_vec()];
        let server_name = match ServerName::try_from(target.host.clone()) {
            Ok(name) => name,
            Err(_) if target.tls == TlsMode::VerifyFull => {
                return Err(TlsError::ServerName(target.host.clone()));
            }
            // Such as an address with a zone. Nobody looks at the name; the server is not told it either.
            Err(_) => {
                config.enable_sni = false;
                ServerName::try_from("invalid").expect("a label is a DNS name")
            }
        };
        Ok(Self { mode: target.tls, config: Arc::new(config), server_name })
    }

    /// As configured. With [`TlsMode::Disabled`] the caller is not to start TLS at all.
    pub fn mode(&self) -> TlsMode {
        self.mode
    }

    /// For new connections; shared, so that sessions are resumed.
    pub fn config(&self) -> Arc<ClientConfig> {
        Arc::clone(&self.config)
    }

    /// The name to connect as.
    pub fn server_name(&self) -> ServerName<'static> {
        self.server_name.clone()
    }
}

/// Why TLS cannot be set up. No variant carries contents of a file.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// Missing, unreadable, too large, or changing under the reader.
    #[error("{}: {source}", path.display())]
    File {
        /// As configured.
        path: PathBuf,
        /// What the operating system says.
        source: io::Error,
    },
    /// The file holds no certificate in PEM, or a broken one.
    #[error("{}: no certificate in PEM, or a broken one", .0.display())]
    Certificate(PathBuf),
    /// The file holds no private key in PEM (PKCS#8, PKCS#1 or SEC1, not encrypted), or a broken one.
    #[error("{}: no unencrypted private key in PEM, or a broken one", .0.display())]
    Key(PathBuf),
    /// Certificate and key are each well formed but cannot be used together, or at all.
    #[error("{} with {}: {source}", certificate.display(), key.display())]
    Pair {
        /// Of the chain.
        certificate: PathBuf,
        /// Of the key.
        key: PathBuf,
        /// What rustls says.
        source: rustls::Error,
    },
    /// The system has no trusted roots to offer.
    #[error("no trusted root certificates on this system: name a file in the target's `ca`")]
    NoSystemRoots,
    /// The host can be no name in a certificate.
    #[error("host `{0}` is neither a DNS name nor an IP address")]
    ServerName(String),
    /// The provider does not do the protocol versions.
    #[error("TLS setup: {0}")]
    Setup(#[from] rustls::Error),
}

/// The `tls-server-end-point` channel binding data of a certificate: the hash of its DER under the hash
/// of its signature, SHA-256 in place of MD5 and SHA-1.
///
/// `None` when that is not defined: a signature without a hash of its own such as Ed25519, RSASSA-PSS with
/// two different hashes, an algorithm unknown here, or no certificate. Source: RFC 5929, section 4.1.
pub fn end_point_of(cert_der: &[u8]) -> Option<Vec<u8>> {
    let (rest, certificate) = X509Certificate::from_der(cert_der).ok()?;
    if !rest.is_empty() {
        return None;
    }
    let algorithm = &certificate.signature_algorithm;
    // Asked first: x509-parser reports algorithms it does not know on standard error in debug builds.
    let hash = match signature_hash(&algorithm.algorithm) {
        Some(hash) => hash,
        None if algorithm.algorithm == OID_PKCS1_RSASSAPSS => {
            let SignatureAlgorithm::RSASSA_PSS(parameters) = SignatureAlgorithm::try_from(algorithm).ok()?
            else {
                return None;
            };
            let mask_hash = parameters.mask_gen_algorithm().ok()?.hash;
            if *parameters.hash_algorithm_oid() != mask_hash {
                return None;
            }
            digest_of(&mask_hash)?
        }
        None => return None,
    };
    Some(match hash {
        Hash::Sha224 => Sha224::digest(cert_der).to_vec(),
        Hash::Sha256 => Sha256::digest(cert_der).to_vec(),
        Hash::Sha384 => Sha384::digest(cert_der).to_vec(),
        Hash::Sha512 => Sha512::digest(cert_der).to_vec(),
    })
}

/// A hash that channel binding data is made with.
#[derive(Clone, Copy)]
enum Hash {
    Sha224,
    Sha256,
    Sha384,
    Sha512,
}

/// By signature algorithm, for those that name their hash. Source: RFC 3279, 4055, 5758.
fn signature_hash(oid: &Oid<'_>) -> Option<Hash> {
    Some(match oid.to_id_string().as_str() {
        // With RSA: MD5, SHA-1. With DSA and ECDSA: SHA-1.
        "1.2.840.113549.1.1.4" | "1.2.840.113549.1.1.5" | "1.2.840.10040.4.3" | "1.2.840.10045.4.1" => {
            Hash::Sha256
        }
        "1.2.840.113549.1.1.14" | "1.2.840.10045.4.3.1" => Hash::Sha224,
        "1.2.840.113549.1.1.11" | "1.2.840.10045.4.3.2" => Hash::Sha256,
        "1.2.840.113549.1.1.12" | "1.2.840.10045.4.3.3" => Hash::Sha384,
        "1.2.840.113549.1.1.13" | "1.2.840.10045.4.3.4" => Hash::Sha512,
        _ => return None,
    })
}

/// By hash algorithm, as in the parameters of RSASSA-PSS.
fn digest_of(oid: &Oid<'_>) -> Option<Hash> {
    [
        (OID_HASH_SHA1, Hash::Sha256),
        (OID_NIST_HASH_SHA256, Hash::Sha256),
        (OID_NIST_HASH_SHA384, Hash::Sha384),
        (OID_NIST_HASH_SHA512, Hash::Sha512),
    ]
    .into_iter()
    .find_map(|(known, hash)| (known == *oid).then_some(hash))
}

/// Whom a target's certificate must come from.
#[derive(Debug)]
enum Trust {
    /// Whoever answers: encryption against listeners only.
    Anybody,
    /// A chain up to one of the roots; or the server's own certificate is one of `own`.
    Roots { roots: RootCertStore, own: Vec<CertificateDer<'static>> },
}

/// Checks a target's certificate as far as the mode says, and always that the server holds its key.
#[derive(Debug)]
struct TargetVerifier {
    trust: Trust,
    verify_name: bool,
    algorithms: crypto::WebPkiSupportedAlgorithms,
}

impl ServerCertVerifier for TargetVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let Trust::Roots { roots, own } = &self.trust else { return Ok(ServerCertVerified::assertion()) };
        let certificate = ParsedCertificate::try_from(end_entity)?;
        if own.contains(end_entity) {
            check_validity(end_entity, now)?;
        } else {
            verify_server_cert_signed_by_trust_anchor(
                &certificate,
                roots,
                intermediates,
                now,
                self.algorithms.all,
            )?;
        }
        if self.verify_name {
            verify_server_name(&certificate, server_name)?;
        }
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        crypto::verify_tls12_signature(message, cert, dss, &self.algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        match &self.trust {
            Trust::Roots { .. } => crypto::verify_tls13_signature(message, cert, dss, &self.algorithms),
            // By the bare key, since webpki reads no certificate of X.509 version 1, which is what OpenSSL
            // before 3.2 makes by default when a CA signs a request.
            Trust::Anybody => {
                let (_, certificate) = X509Certificate::from_der(cert)
                    .map_err(|_| rustls::Error::InvalidCertificate(CertificateError::BadEncoding))?;
                let key = SubjectPublicKeyInfoDer::from(certificate.public_key().raw);
                crypto::verify_tls13_signature_with_raw_key(message, &key, dss, &self.algorithms)
            }
        }
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}

fn check_validity(certificate: &CertificateDer<'_>, now: UnixTime) -> Result<(), rustls::Error> {
    let (_, certificate) = X509Certificate::from_der(certificate)
        .map_err(|_| rustls::Error::InvalidCertificate(CertificateError::BadEncoding))?;
    let now = i64::try_from(now.as_secs()).unwrap_or(i64::MAX);
    if now < certificate.validity().not_before.timestamp() {
        return Err(rustls::Error::InvalidCertificate(CertificateError::NotValidYet));
    }
    if now > certificate.validity().not_after.timestamp() {
        return Err(rustls::Error::InvalidCertificate(CertificateError::Expired));
    }
    Ok(())
}

/// A chain and key, ready for use.
struct Loaded {
    state: ClientTlsState,
    /// Hash of both files.
    contents: [u8; 32],
    /// `None` when either file changed too recently to rely on its times.
    stamps: Option<[Stamp; 2]>,
}

fn load(files: &ServerTlsConfig) -> Result<Loaded, TlsError> {
    let (chain_pem, chain_stamp) = read_pem(&files.certificate)?;
    let (key_pem, key_stamp) = read_pem(&files.key)?;
    let chain = parse_certificates(&files.certificate, &chain_pem)?;
    let key = PrivateKeyDer::from_pem_slice(&key_pem).map_err(|_| TlsError::Key(files.key.clone()))?;
    let end_point = chain.first().and_then(|leaf| end_point_of(leaf)).map(Arc::from);
    let mut config = ServerConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()?
        .with_no_client_auth()
        .with_single_cert(chain, key)
        .map_err(|source| TlsError::Pair {
            certificate: files.certificate.clone(),
            key: files.key.clone(),
            source,
        })?;
    config.alpn_protocols = vec![ALPN.to_vec()];
    let contents = Sha256::new()
        .chain_update((chain_pem.len() as u64).to_be_bytes())
        .chain_update(&*chain_pem)
        .chain_update(&*key_pem)
        .finalize()
        .into();
    let stamps = chain_stamp.zip(key_stamp).map(|(chain, key)| [chain, key]);
    Ok(Loaded { state: ClientTlsState { config: Arc::new(config), end_point }, contents, stamps })
}

fn read_pem(path: &Path) -> Result<(Zeroizing<Vec<u8>>, Option<Stamp>), TlsError> {
    read_stamped(path, MAX_PEM_BYTES).map_err(|source| TlsError::File { path: path.to_owned(), source })
}

/// All certificates in `pem`, the contents of `path`; at least one.
fn parse_certificates(path: &Path, pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    match CertificateDer::pem_slice_iter(pem).collect::<Result<Vec<_>, _>>() {
        Ok(certificates) if !certificates.is_empty() => Ok(certificates),
        _ => Err(TlsError::Certificate(path.to_owned())),
    }
}

fn trust_in_file(path: &Path) -> Result<Trust, TlsError> {
    let own = parse_certificates(path, &read_pem(path)?.0)?;
    let mut roots = RootCertStore::empty();
    for certificate in &own {
        roots.add(certificate.clone()).map_err(|_| TlsError::Certificate(path.to_owned()))?;
    }
    Ok(Trust::Roots { roots, own })
}

/// Roots the system has but rustls cannot use are left out.
fn trust_in_system() -> Result<Trust, TlsError> {
    let mut roots = RootCertStore::empty();
    let (usable, _) = roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    if usable == 0 {
        return Err(TlsError::NoSystemRoots);
    }
    Ok(Trust::Roots { roots, own: Vec::new() })
}
