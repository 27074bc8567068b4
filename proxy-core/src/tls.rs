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
        let trust = match (target.tls, &target.ca) {
            // Nobody, should this ever be used by mistake.
            (TlsMode::Disabled, _) => Trust::Roots { roots: RootCertStore::empty(), own: Vec::new() },
            (TlsMode::Preferred | TlsMode::Required, _) => Trust::Anybody,
            (TlsMode::VerifyCa | TlsMode::VerifyFull, Some(path)) => trust_in_file(path)?,
            (TlsMode::VerifyCa | TlsMode::VerifyFull, None) => trust_in_system()?,
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

    /// As configured. With [`TlsMode::Disabled`] the caller is not to start TLS at all; the configuration
    /// then trusts no server.
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

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};
    use rustls::{
        ClientConnection, ServerConnection,
        pki_types::PrivatePkcs8KeyDer,
        sign::{CertifiedKey, SingleCertAndKey},
        version::{TLS12, TLS13},
    };
    use tempfile::TempDir;

    use super::*;

    const HOST: &str = "db.example.com";
    const MODES: [TlsMode; 5] =
        [TlsMode::Disabled, TlsMode::Preferred, TlsMode::Required, TlsMode::VerifyCa, TlsMode::VerifyFull];

    /// A certificate authority, and files it makes.
    struct Ca {
        dir: TempDir,
        issuer: Issuer<'static, KeyPair>,
        path: PathBuf,
    }

    /// A leaf certificate and its key.
    #[derive(Clone)]
    struct Leaf {
        certificate: CertificateDer<'static>,
        key: Vec<u8>,
        certificate_pem: String,
        key_pem: String,
    }

    impl Leaf {
        fn new(certificate: rcgen::Certificate, key: &KeyPair) -> Self {
            Self {
                certificate: certificate.der().clone(),
                key: key.serialize_der(),
                certificate_pem: certificate.pem(),
                key_pem: key.serialize_pem(),
            }
        }

        fn self_signed(params: &CertificateParams) -> Self {
            let key = KeyPair::generate().unwrap();
            Self::new(params.self_signed(&key).unwrap(), &key)
        }

        fn certified_key(&self) -> CertifiedKey {
            let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(self.key.clone()));
            // Not `from_der`: servers in these tests may show what rustls would not.
            CertifiedKey::new(
                vec![self.certificate.clone()],
                aws_lc_rs::sign::any_supported_type(&key).unwrap(),
            )
        }

        /// A server that shows this certificate.
        fn server(&self) -> Arc<ServerConfig> {
            server(self.certified_key(), &[&TLS13, &TLS12])
        }

        fn write(&self, files: &ServerTlsConfig) {
            fs::write(&files.certificate, &self.certificate_pem).unwrap();
            fs::write(&files.key, &self.key_pem).unwrap();
        }
    }

    fn server(
        key: CertifiedKey,
        versions: &[&'static rustls::SupportedProtocolVersion],
    ) -> Arc<ServerConfig> {
        let config = ServerConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
            .with_protocol_versions(versions)
            .unwrap()
            .with_no_client_auth()
            .with_cert_resolver(Arc::new(SingleCertAndKey::from(key)));
        Arc::new(config)
    }

    impl Ca {
        fn new() -> Self {
            Self::named("a CA")
        }

        fn named(name: &str) -> Self {
            let mut params = CertificateParams::new(Vec::new()).unwrap();
            params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
            params.distinguished_name.push(DnType::CommonName, name);
            let key = KeyPair::generate().unwrap();
            let certificate = params.self_signed(&key).unwrap();
            let dir = TempDir::new().unwrap();
            let path = dir.path().join("ca.crt");
            fs::write(&path, certificate.pem()).unwrap();
            Self { dir, issuer: Issuer::new(params, key), path }
        }

        fn sign(&self, params: &CertificateParams) -> Leaf {
            let key = KeyPair::generate().unwrap();
            Leaf::new(params.signed_by(&key, &self.issuer).unwrap(), &key)
        }

        fn leaf(&self, names: &[&str]) -> Leaf {
            self.sign(&params(names))
        }

        fn files(&self) -> ServerTlsConfig {
            ServerTlsConfig {
                certificate: self.dir.path().join("tls.crt"),
                key: self.dir.path().join("tls.key"),
            }
        }
    }

    fn params(names: &[&str]) -> CertificateParams {
        CertificateParams::new(names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>()).unwrap()
    }

    fn target(tls: TlsMode, host: &str, ca: Option<&Path>) -> TargetTls {
        let target = TargetConfig { host: host.to_owned(), port: 5432, tls, ca: ca.map(Path::to_owned) };
        TargetTls::new(&target).unwrap()
    }

    /// A whole handshake in memory; the client's reason when it refuses, else the server's.
    fn handshake(
        client: Arc<ClientConfig>,
        name: ServerName<'static>,
        server: Arc<ServerConfig>,
    ) -> Result<(ClientConnection, ServerConnection), rustls::Error> {
        let mut client = ClientConnection::new(client, name).unwrap();
        let mut server = ServerConnection::new(server).unwrap();
        let mut refused = None;
        for _ in 0..10 {
            let mut wire = Vec::new();
            while client.wants_write() {
                client.write_tls(&mut wire).unwrap();
            }
            let mut unread = &wire[..];
            while !unread.is_empty() {
                server.read_tls(&mut unread).unwrap();
                if let Err(error) = server.process_new_packets() {
                    return Err(refused.unwrap_or(error));
                }
            }
            let mut wire = Vec::new();
            while server.wants_write() {
                server.write_tls(&mut wire).unwrap();
            }
            let mut unread = &wire[..];
            while !unread.is_empty() && refused.is_none() {
                client.read_tls(&mut unread).unwrap();
                refused = client.process_new_packets().err();
            }
        }
        assert!(!client.is_handshaking() && !server.is_handshaking());
        Ok((client, server))
    }

    fn connect(target: &TargetTls, server: Arc<ServerConfig>) -> Result<(), rustls::Error> {
        handshake(target.config(), target.server_name(), server).map(|_| ())
    }

    #[test]
    fn each_mode_verifies_what_its_name_says() {
        let (ca, other_ca) = (Ca::new(), Ca::new());
        let server = ca.leaf(&[HOST, "192.0.2.7"]).server();
        // Accepted with: the right CA and name, a wrong name, a wrong CA, both wrong.
        for (mode, accepted) in [
            (TlsMode::Disabled, [false; 4]),
            (TlsMode::Preferred, [true; 4]),
            (TlsMode::Required, [true; 4]),
            (TlsMode::VerifyCa, [true, true, false, false]),
            (TlsMode::VerifyFull, [true, false, false, false]),
        ] {
            let cases =
                [(&ca, HOST), (&ca, "db.example.org"), (&other_ca, HOST), (&other_ca, "db.example.org")];
            let got = cases.map(|(ca, host)| {
                let target = target(mode, host, Some(&ca.path));
                assert_eq!(target.mode(), mode);
                connect(&target, Arc::clone(&server)).is_ok()
            });
            assert_eq!(got, accepted, "{mode:?}");
        }
        assert!(
            connect(&target(TlsMode::VerifyFull, "192.0.2.7", Some(&ca.path)), Arc::clone(&server)).is_ok()
        );
        assert!(connect(&target(TlsMode::VerifyFull, "192.0.2.8", Some(&ca.path)), server).is_err());
    }

    #[test]
    fn refusals_say_why() {
        let ca = Ca::new();
        let server = ca.leaf(&[HOST]).server();
        let refusal = |tls, host, ca: &Ca| {
            connect(&target(tls, host, Some(&ca.path)), Arc::clone(&server)).unwrap_err()
        };
        assert_eq!(
            refusal(TlsMode::VerifyCa, HOST, &Ca::named("another CA")),
            rustls::Error::InvalidCertificate(CertificateError::UnknownIssuer)
        );
        // One that only calls itself the same.
        assert_eq!(
            refusal(TlsMode::VerifyCa, HOST, &Ca::new()),
            rustls::Error::InvalidCertificate(CertificateError::BadSignature)
        );
        assert!(matches!(
            refusal(TlsMode::VerifyFull, "other.example.com", &ca),
            rustls::Error::InvalidCertificate(CertificateError::NotValidForNameContext { .. })
        ));
    }

    #[test]
    fn expired_certificates_are_refused_where_the_chain_is_verified() {
        let ca = Ca::new();
        let mut expired = params(&[HOST]);
        expired.not_after = rcgen::date_time_ymd(2001, 1, 1);
        let mut early = params(&[HOST]);
        early.not_before = rcgen::date_time_ymd(3000, 1, 1);
        for (params, own_error) in
            [(expired, CertificateError::Expired), (early, CertificateError::NotValidYet)]
        {
            let server = ca.sign(&params).server();
            for mode in [TlsMode::VerifyCa, TlsMode::VerifyFull] {
                assert!(connect(&target(mode, HOST, Some(&ca.path)), Arc::clone(&server)).is_err());
            }
            assert!(connect(&target(TlsMode::Required, HOST, None), server).is_ok());

            let own = Leaf::self_signed(&params);
            let path = ca.dir.path().join("own.crt");
            fs::write(&path, &own.certificate_pem).unwrap();
            assert_eq!(
                connect(&target(TlsMode::VerifyCa, HOST, Some(&path)), own.server()),
                Err(rustls::Error::InvalidCertificate(own_error))
            );
        }
    }

    #[test]
    fn a_self_signed_certificate_named_as_ca_is_trusted_as_the_servers() {
        let ca = Ca::new();
        for is_ca in [IsCa::NoCa, IsCa::Ca(BasicConstraints::Unconstrained)] {
            let mut params = params(&[HOST]);
            params.is_ca = is_ca;
            let own = Leaf::self_signed(&params);
            let path = ca.dir.path().join("own.crt");
            fs::write(&path, &own.certificate_pem).unwrap();
            assert_eq!(connect(&target(TlsMode::VerifyFull, HOST, Some(&path)), own.server()), Ok(()));
            assert_eq!(
                connect(&target(TlsMode::VerifyCa, "other.example.com", Some(&path)), own.server()),
                Ok(())
            );
            assert!(
                connect(&target(TlsMode::VerifyFull, "other.example.com", Some(&path)), own.server())
                    .is_err()
            );
            // Another one with the same names is not.
            let stranger = Leaf::self_signed(&params);
            assert!(connect(&target(TlsMode::VerifyCa, HOST, Some(&path)), stranger.server()).is_err());
        }
    }

    #[test]
    fn a_server_without_the_key_is_refused_in_every_mode() {
        let ca = Ca::new();
        let (leaf, other) = (ca.leaf(&[HOST]), ca.leaf(&[HOST]));
        let thief = Leaf { key: other.key, ..leaf };
        for mode in MODES {
            for version in [&TLS12, &TLS13] {
                let refused =
                    connect(&target(mode, HOST, Some(&ca.path)), server(thief.certified_key(), &[version]));
                let expected = match mode {
                    TlsMode::Disabled => CertificateError::UnknownIssuer,
                    _ => CertificateError::BadSignature,
                };
                assert_eq!(refused, Err(rustls::Error::InvalidCertificate(expected)), "{mode:?} {version:?}");
            }
        }
    }

    #[test]
    fn both_tls_versions_are_spoken() {
        let ca = Ca::new();
        let leaf = ca.leaf(&[HOST]);
        let files = ca.files();
        leaf.write(&files);
        let client_tls = ClientTls::new(&files).unwrap();
        for mode in &MODES[1..] {
            let target = target(*mode, HOST, Some(&ca.path));
            for version in [&TLS12, &TLS13] {
                let (client, _) = handshake(
                    target.config(),
                    target.server_name(),
                    server(leaf.certified_key(), &[version]),
                )
                .unwrap();
                assert_eq!(client.protocol_version(), Some(version.version));
            }
            let (client, server) =
                handshake(target.config(), target.server_name(), Arc::clone(&client_tls.current().config))
                    .unwrap();
            assert_eq!(client.alpn_protocol(), Some(ALPN));
            assert_eq!(server.alpn_protocol(), Some(ALPN));
        }
    }

    #[test]
    fn clients_need_no_alpn_but_not_another() {
        let ca = Ca::new();
        let files = ca.files();
        ca.leaf(&[HOST]).write(&files);
        let server = Arc::clone(&ClientTls::new(&files).unwrap().current().config);
        let target = target(TlsMode::VerifyFull, HOST, Some(&ca.path));
        let with_alpn = |protocols: &[&[u8]]| {
            let mut config = ClientConfig::clone(&target.config());
            config.alpn_protocols = protocols.iter().map(|protocol| protocol.to_vec()).collect();
            handshake(Arc::new(config), target.server_name(), Arc::clone(&server)).is_ok()
        };
        assert!(with_alpn(&[]));
        assert!(with_alpn(&[b"h2", b"postgresql"]));
        assert!(!with_alpn(&[b"h2"]));
    }

    #[test]
    fn both_ends_bind_to_the_same_hash_also_when_resuming() {
        let ca = Ca::new();
        let files = ca.files();
        ca.leaf(&[HOST]).write(&files);
        let state = ClientTls::new(&files).unwrap().current();
        let target = target(TlsMode::Required, HOST, None);
        for _ in 0..3 {
            let (client, _) =
                handshake(target.config(), target.server_name(), Arc::clone(&state.config)).unwrap();
            let seen = end_point_of(&client.peer_certificates().unwrap()[0]);
            assert_eq!(seen.as_deref(), state.end_point.as_deref());
            assert_eq!(seen.unwrap().len(), 32);
        }
    }

    #[test]
    fn version_1_certificates_are_taken_where_nothing_is_verified() {
        let ca = Ca::new();
        let leaf = ca.leaf(&[HOST]);
        let old = Leaf { certificate: as_version_1(&leaf.certificate), ..leaf };
        for mode in [TlsMode::Preferred, TlsMode::Required] {
            assert_eq!(connect(&target(mode, HOST, None), server(old.certified_key(), &[&TLS13])), Ok(()));
        }
        assert!(connect(&target(TlsMode::VerifyCa, HOST, Some(&ca.path)), old.server()).is_err());
        let thief = Leaf { key: ca.leaf(&[HOST]).key, ..old };
        assert!(connect(&target(TlsMode::Required, HOST, None), thief.server()).is_err());
    }

    #[test]
    fn certificates_that_are_none_are_refused_in_every_mode() {
        let ca = Ca::new();
        let leaf = ca.leaf(&[HOST]);
        for cut in [0, 1, 2, 40, leaf.certificate.len() / 2, leaf.certificate.len() - 1] {
            let broken = Leaf { certificate: leaf.certificate[..cut].to_vec().into(), ..leaf.clone() };
            for mode in MODES {
                assert!(
                    connect(&target(mode, HOST, Some(&ca.path)), broken.server()).is_err(),
                    "{mode:?} {cut}"
                );
            }
        }
    }

    #[test]
    fn targets_that_cannot_be_set_up_are_refused() {
        let ca = Ca::new();
        let absent = ca.dir.path().join("absent.crt");
        let empty = ca.dir.path().join("empty.crt");
        fs::write(&empty, "no certificate in here").unwrap();
        let broken = ca.dir.path().join("broken.crt");
        fs::write(&broken, "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n").unwrap();
        let refused = |tls, host: &str, ca: &Path| {
            TargetTls::new(&TargetConfig { host: host.into(), port: 5432, tls, ca: Some(ca.to_owned()) })
                .unwrap_err()
        };
        for mode in [TlsMode::VerifyCa, TlsMode::VerifyFull] {
            assert!(matches!(refused(mode, HOST, &absent), TlsError::File { .. }));
            assert!(matches!(refused(mode, HOST, &empty), TlsError::Certificate(_)));
            assert!(matches!(refused(mode, HOST, &broken), TlsError::Certificate(_)));
        }
        assert!(matches!(refused(TlsMode::VerifyFull, "fe80::1%eth0", &ca.path), TlsError::ServerName(_)));
        // Where names do not count, hosts that are none do not either.
        let server = ca.leaf(&[HOST]).server();
        assert_eq!(
            connect(&target(TlsMode::VerifyCa, "fe80::1%eth0", Some(&ca.path)), Arc::clone(&server)),
            Ok(())
        );
        assert_eq!(connect(&target(TlsMode::Required, "fe80::1%eth0", Some(&absent)), server), Ok(()));
    }

    #[test]
    fn system_roots_do_not_know_our_ca() {
        let ca = Ca::new();
        let made = TargetTls::new(&TargetConfig {
            host: HOST.into(),
            port: 5432,
            tls: TlsMode::VerifyFull,
            ca: None,
        });
        match made {
            Ok(target) => assert!(connect(&target, ca.leaf(&[HOST]).server()).is_err()),
            Err(error) => assert!(matches!(error, TlsError::NoSystemRoots), "{error}"),
        }
    }

    /// What clients of `tls` are shown.
    fn shown(tls: &ClientTls) -> CertificateDer<'static> {
        let target = target(TlsMode::Required, HOST, None);
        let (client, _) =
            handshake(target.config(), target.server_name(), Arc::clone(&tls.current().config)).unwrap();
        client.peer_certificates().unwrap()[0].clone()
    }

    #[test]
    fn changed_files_are_taken_up() {
        let ca = Ca::new();
        let files = ca.files();
        let (old, new) = (ca.leaf(&[HOST]), ca.leaf(&[HOST]));
        old.write(&files);
        let tls = ClientTls::new(&files).unwrap();
        assert_eq!(shown(&tls), old.certificate);
        assert!(!tls.refresh().unwrap());
        let state = tls.current();
        assert!(!tls.refresh().unwrap());
        assert!(Arc::ptr_eq(&state, &tls.current()));

        new.write(&files);
        assert!(tls.refresh().unwrap());
        assert_eq!(shown(&tls), new.certificate);
        assert_eq!(tls.current().end_point.as_deref(), end_point_of(&new.certificate).as_deref());
        assert!(!tls.refresh().unwrap());
    }

    #[test]
    fn files_replaced_one_after_the_other_are_taken_up_when_they_match() {
        let ca = Ca::new();
        let files = ca.files();
        let (old, new) = (ca.leaf(&[HOST]), ca.leaf(&[HOST]));
        old.write(&files);
        let tls = ClientTls::new(&files).unwrap();
        let replace = |path: &Path, contents: &str| {
            let fresh = ca.dir.path().join("fresh");
            fs::write(&fresh, contents).unwrap();
            fs::rename(&fresh, path).unwrap();
        };
        replace(&files.certificate, &new.certificate_pem);
        let error = tls.refresh().unwrap_err();
        assert!(matches!(error, TlsError::Pair { .. }), "{error}");
        assert!(!tls.refresh().unwrap(), "an error is told once");
        assert_eq!(shown(&tls), old.certificate);
        replace(&files.key, &new.key_pem);
        assert!(tls.refresh().unwrap());
        assert_eq!(shown(&tls), new.certificate);
    }

    #[test]
    fn the_old_pair_stays_while_the_files_are_bad() {
        let ca = Ca::new();
        let files = ca.files();
        let leaf = ca.leaf(&[HOST]);
        leaf.write(&files);
        let tls = ClientTls::new(&files).unwrap();
        let state = tls.current();
        let kept = |expected: fn(&TlsError) -> bool| {
            let error = tls.refresh().unwrap_err();
            assert!(expected(&error), "{error}");
            assert!(Arc::ptr_eq(&state, &tls.current()));
        };
        fs::remove_file(&files.key).unwrap();
        kept(|error| matches!(error, TlsError::File { .. }));
        fs::write(&files.key, &leaf.key_pem[..leaf.key_pem.len() / 2]).unwrap();
        kept(|error| matches!(error, TlsError::Key(_)));
        fs::write(&files.key, &leaf.certificate_pem).unwrap();
        kept(|error| matches!(error, TlsError::Key(_)));
        fs::write(&files.certificate, "").unwrap();
        kept(|error| matches!(error, TlsError::Certificate(_)));
        leaf.write(&files);
        assert!(!tls.refresh().unwrap(), "the same pair as before");
        assert!(Arc::ptr_eq(&state, &tls.current()));
    }

    #[test]
    fn unchanged_files_are_not_read_again() {
        let ca = Ca::new();
        let files = ca.files();
        ca.leaf(&[HOST]).write(&files);
        let tls = ClientTls::new(&files).unwrap();
        // As after a read of files that have been as they are for a while, in which there is something else.
        let stamps = [&files.certificate, &files.key].map(|path| Stamp::of(&fs::metadata(path).unwrap()));
        *tls.seen.lock().unwrap() = Seen { read: Some(stamps), contents: [0; 32], reported: None };
        assert!(!tls.refresh().unwrap());
        tls.seen.lock().unwrap().read = None;
        assert!(tls.refresh().unwrap());
    }

    #[test]
    fn errors_do_not_repeat_the_key() {
        let ca = Ca::new();
        let files = ca.files();
        let leaf = ca.leaf(&[HOST]);
        leaf.write(&files);
        let secret_line = leaf.key_pem.lines().nth(1).unwrap();
        for bad in [
            leaf.key_pem.replace("-----END", "----END"),
            leaf.key_pem.replace(secret_line, &secret_line[1..]),
        ] {
            fs::write(&files.key, bad).unwrap();
            let error = ClientTls::new(&files).unwrap_err();
            let told = format!("{error} {error:?}");
            assert!(!told.contains(&secret_line[1..20]), "{told}");
        }
        leaf.write(&files);
        assert!(!format!("{:?}", ClientTls::new(&files).unwrap()).contains(&secret_line[1..20]));
    }

    #[test]
    fn the_provider_may_be_installed_twice() {
        install_provider();
        install_provider();
        assert!(crypto::CryptoProvider::get_default().is_some());
    }

    /// A certificate as by `openssl req -x509 -newkey rsa:1024 -sha384 -sigopt rsa_padding_mode:pss`.
    const PSS_SHA384: &[u8] = b"-----BEGIN CERTIFICATE-----\n\
MIICXjCCAZOgAwIBAgIUWEzfIq83xUTFWNEW6irPvzygW4EwQQYJKoZIhvcNAQEK\n\
MDSgDzANBglghkgBZQMEAgIFAKEcMBoGCSqGSIb3DQEBCDANBglghkgBZQMEAgIF\n\
AKIDAgFOMAwxCjAIBgNVBAMMAXAwIBcNMjYxMTIzMTk0OTQ2WhgPMjEyNjEwMzAx\n\
OTQ5NDZaMAwxCjAIBgNVBAMMAXAwgZ8wDQYJKoZIhvcNAQEBBQADgY0AMIGJAoGB\n\
ALhytupILH6Ec37ObanNFbom7R02MnFhRoKueUxSW/kMSxGaF9SvxKP9iZHp7UXV\n\
/H6Ih4s95Ss5+Nspw46GFN/HTfcWKwzYqjxNWlXgJ0odlkidcyAP1ISPv7geCG1E\n\
o0hqxQwoVwQ3vb0IW/lPdqJwd1nQfwvjsw6c8pvWEL8XAgMBAAGjUzBRMB0GA1Ud\n\
DgQWBBQ6gRfO4hbGd3pnaaI8Fgn1kKUu9jAfBgNVHSMEGDAWgBQ6gRfO4hbGd3pn\n\
aaI8Fgn1kKUu9jAPBgNVHRMBAf8EBTADAQH/MEEGCSqGSIb3DQEBCjA0oA8wDQYJ\n\
YIZIAWUDBAICBQChHDAaBgkqhkiG9w0BAQgwDQYJYIZIAWUDBAICBQCiAwIBTgOB\n\
gQCgSv1UDJaohTGmRfn4CmK2IDbnE3Fb4Ni0csBeEBTQ7xvTLFr7wxeNG23CeKJD\n\
ZSocIvcD/g3Ny45ndoH8Yv+Q6UtaSx/mdCvEByLlYz4Sl9zitvihA8qha2Naxr2H\n\
S8fIobarseCIBs1MBRI+tCVzNRUz4WbbAiVQZGPlTbefcQ==\n\
-----END CERTIFICATE-----\n";

    #[test]
    fn end_points_are_hashed_as_the_certificate_was() {
        let check =
            |certificate: &[u8], expected: Option<Vec<u8>>| assert_eq!(end_point_of(certificate), expected);
        let sha256 = |certificate: &[u8]| Some(Sha256::digest(certificate).to_vec());
        let sha384 = |certificate: &[u8]| Some(Sha384::digest(certificate).to_vec());
        let sha512 = |certificate: &[u8]| Some(Sha512::digest(certificate).to_vec());
        let made = |algorithm| {
            let key = KeyPair::generate_for(algorithm).unwrap();
            params(&[HOST]).self_signed(&key).unwrap().der().to_vec()
        };
        let certificate = made(&rcgen::PKCS_ECDSA_P256_SHA256);
        check(&certificate, sha256(&certificate));
        let certificate = made(&rcgen::PKCS_ECDSA_P384_SHA384);
        check(&certificate, sha384(&certificate));
        let certificate = made(&rcgen::PKCS_ECDSA_P521_SHA512);
        check(&certificate, sha512(&certificate));
        check(&made(&rcgen::PKCS_ED25519), None);

        // The RSA signature algorithms differ in one byte; nobody checks the signature here.
        let certificate = made(&rcgen::PKCS_RSA_SHA256);
        let with = |algorithm: u8| {
            replace_all(&certificate, b"\x2a\x86\x48\x86\xf7\x0d\x01\x01\x0b", 8, algorithm, |_| true)
        };
        check(&certificate, sha256(&certificate));
        for (algorithm, hash) in
            [(4, &sha256 as &dyn Fn(&[u8]) -> Option<Vec<u8>>), (5, &sha256), (12, &sha384), (13, &sha512)]
        {
            check(&with(algorithm), hash(&with(algorithm)));
        }
        check(&with(14), Some(Sha224::digest(with(14)).to_vec()));
        check(&with(2), None);
        check(&with(15), None);
    }

    #[test]
    fn pss_end_points_need_one_hash() {
        let certificate = CertificateDer::from_pem_slice(PSS_SHA384).unwrap();
        assert_eq!(end_point_of(&certificate), Some(Sha384::digest(&certificate).to_vec()));
        // The mask is made with SHA-512: in each pair of hash identifiers the second one is the mask's.
        let sha384 = b"\x60\x86\x48\x01\x65\x03\x04\x02\x02";
        let mixed = replace_all(&certificate, sha384, 8, 3, |nth| nth % 2 == 1);
        assert_ne!(mixed, *certificate);
        assert_eq!(end_point_of(&mixed), None);
        let both = replace_all(&certificate, sha384, 8, 3, |_| true);
        assert_eq!(end_point_of(&both), Some(Sha512::digest(&both).to_vec()));
    }

    #[test]
    fn what_is_no_certificate_has_no_end_point() {
        let certificate = Leaf::self_signed(&params(&[HOST])).certificate;
        for cut in 0..certificate.len() {
            assert_eq!(end_point_of(&certificate[..cut]), None, "cut after {cut} bytes");
        }
        assert_eq!(end_point_of(&[&certificate[..], b"\0"].concat()), None);
        for position in 0..certificate.len() {
            let mut changed = certificate.to_vec();
            changed[position] ^= 0xff;
            // Most bytes do not matter to the structure; those that do must not be trusted to.
            assert_ne!(end_point_of(&changed), end_point_of(&certificate), "byte {position}");
        }
    }

    /// Sets the byte at `offset` of each place where `pattern` occurs and `which` agrees to its number.
    fn replace_all(
        bytes: &[u8],
        pattern: &[u8],
        offset: usize,
        to: u8,
        which: impl Fn(usize) -> bool,
    ) -> Vec<u8> {
        let mut out = bytes.to_vec();
        let places = (0..bytes.len()).filter(|&at| bytes[at..].starts_with(pattern));
        for (_, at) in places.enumerate().filter(|&(nth, _)| which(nth)) {
            out[at + offset] = to;
        }
        out
    }

    /// The same certificate without version and extensions; the signature no longer fits.
    fn as_version_1(certificate: &[u8]) -> CertificateDer<'static> {
        let outer = elements(elements(certificate)[0].1);
        let fields = elements(outer[0].1);
        let kept = fields.iter().filter(|(element, _)| element[0] != 0xa0 && element[0] != 0xa3);
        let body: Vec<u8> = kept.flat_map(|(element, _)| element.iter().copied()).collect();
        let rest = [outer[1].0, outer[2].0].concat();
        sequence(&[sequence(&body), rest].concat()).into()
    }

    /// The DER elements in `der`: each whole, and its contents.
    fn elements(mut der: &[u8]) -> Vec<(&[u8], &[u8])> {
        let mut found = Vec::new();
        while let [_, first, ..] = *der {
            let (header, len) = match usize::from(first) {
                short @ ..0x80 => (2, short),
                long => {
                    let octets = long & 0x7f;
                    let len = der[2..2 + octets].iter().fold(0, |len, &octet| len << 8 | usize::from(octet));
                    (2 + octets, len)
                }
            };
            let (element, rest) = der.split_at(header + len);
            found.push((element, &element[header..]));
            der = rest;
        }
        found
    }

    fn sequence(body: &[u8]) -> Vec<u8> {
        let len = u16::try_from(body.len()).unwrap().to_be_bytes();
        [&[0x30, 0x82][..], &len, body].concat()
    }
}
