//! Checks of what the configuration points to: secrets, certificates, keys. Messages never show contents.

use std::{io::Read as _, path::Path, sync::Arc};

use rustls::{
    RootCertStore, ServerConfig,
    crypto::aws_lc_rs,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _},
};
use serde_json::Value;
use zeroize::{Zeroize as _, Zeroizing};

/// AWS Secrets Manager's own limit, 64 KiB.
const SECRET_BYTES: u64 = 64 << 10;
/// Far above the largest bundle of roots, 16 MiB.
const PEM_BYTES: u64 = 16 << 20;

/// Checks a secret file: JSON with a string `username`, equal to the one given, and a string `password`.
pub(super) fn check_secret_file(path: &Path, username: &str) -> Result<(), String> {
    check_secret(&read(path, SECRET_BYTES)?, username)
}

/// Checks a secret's text, wherever it comes from.
pub(super) fn check_secret(json: &[u8], username: &str) -> Result<(), String> {
    let mut secret: serde_json::Map<String, Value> = serde_json::from_slice(json).map_err(|error| {
        // The error's own text may quote a value.
        if error.is_data() {
            "is not a JSON object".to_owned()
        } else {
            format!("is not JSON (line {} column {})", error.line(), error.column())
        }
    })?;
    let password = match secret.get_mut("password") {
        Some(Value::String(password)) if password.is_empty() => Err("has an empty password"),
        Some(Value::String(password)) => {
            password.zeroize();
            Ok(())
        }
        Some(_) => Err("has a password that is not a string"),
        None => Err("has no password"),
    };
    match secret.get("username") {
        Some(Value::String(found)) if found == username => password.map_err(str::to_owned),
        Some(Value::String(_)) => Err(format!("has a username other than {username:?}")),
        Some(_) => Err("has a username that is not a string".to_owned()),
        None => Err("has no username".to_owned()),
    }
}

/// Reads a file that holds a token and nothing else but white space around it.
pub(super) fn read_token_file(path: &Path) -> Result<Zeroizing<String>, String> {
    read_token(&read(path, SECRET_BYTES)?)
}

/// Takes a token out of a text. The message never shows it.
pub(super) fn read_token(text: &[u8]) -> Result<Zeroizing<String>, String> {
    let token = text.trim_ascii();
    match std::str::from_utf8(token) {
        Ok(token)
            if token.bytes().all(|byte| byte.is_ascii_graphic()) && (16..=512).contains(&token.len()) =>
        {
            Ok(Zeroizing::new(token.to_owned()))
        }
        _ => Err("is no token".to_owned()),
    }
}

/// Which of the two files is at fault.
pub(super) enum TlsFault {
    Certificate(String),
    Key(String),
}

/// Checks that both files are PEM and that the key is the leaf certificate's.
pub(super) fn check_server_tls(certificate: &Path, key: &Path) -> Result<(), Vec<TlsFault>> {
    let chain = read(certificate, PEM_BYTES).and_then(|pem| certificates(&pem));
    let key = read(key, PEM_BYTES).and_then(|pem| {
        PrivateKeyDer::from_pem_slice(&pem).map_err(|_| "has no private key in PEM".to_owned())
    });
    let (chain, key) = match (chain, key) {
        (Ok(chain), Ok(key)) => (chain, key),
        (chain, key) => {
            let faults = [chain.err().map(TlsFault::Certificate), key.err().map(TlsFault::Key)];
            return Err(faults.into_iter().flatten().collect());
        }
    };
    let config = ServerConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()
        .expect("the provider has suites for the default versions")
        .with_no_client_auth()
        .with_single_cert(chain, key);
    match config {
        Ok(_) => Ok(()),
        Err(rustls::Error::InconsistentKeys(_)) => {
            Err(vec![TlsFault::Key("is not the key of the certificate".to_owned())])
        }
        Err(rustls::Error::InvalidCertificate(_)) => {
            Err(vec![TlsFault::Certificate("has a certificate that cannot be parsed".to_owned())])
        }
        Err(_) => Err(vec![TlsFault::Key("has a key that cannot be used".to_owned())]),
    }
}

/// Checks that the file is PEM and that every certificate in it can be a root.
pub(super) fn check_roots(path: &Path) -> Result<(), String> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates(&read(path, PEM_BYTES)?)? {
        roots.add(certificate).map_err(|_| "has a certificate that cannot be parsed".to_owned())?;
    }
    Ok(())
}

/// Checks that there is a regular file that can be opened.
pub(super) fn check_readable(path: &Path) -> Result<(), String> {
    let refused = |error: std::io::Error| format!("cannot be read: {error}");
    // Asked before opening: opening a named pipe would wait for its writer.
    if !std::fs::metadata(path).map_err(refused)?.is_file() {
        return Err("is not a file".to_owned());
    }
    std::fs::File::open(path).map(drop).map_err(refused)
}

fn certificates(pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, String> {
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
    match found {
        Ok(found) if found.is_empty() => Err("has no certificate in PEM".to_owned()),
        Ok(found) => Ok(found),
        Err(_) => Err("is not valid PEM".to_owned()),
    }
}

/// Reads a regular file of at most `most` bytes.
fn read(path: &Path, most: u64) -> Result<Zeroizing<Vec<u8>>, String> {
    let refused = |error: std::io::Error| format!("cannot be read: {error}");
    // Asked before opening: opening a named pipe would wait for its writer.
    let metadata = std::fs::metadata(path).map_err(refused)?;
    if !metadata.is_file() {
        return Err("is not a file".to_owned());
    }
    let mut bytes =
        Zeroizing::new(Vec::with_capacity(usize::try_from(metadata.len().min(most)).unwrap_or(0)));
    std::fs::File::open(path)
        .and_then(|file| file.take(most + 1).read_to_end(&mut bytes))
        .map_err(refused)?;
    if bytes.len() as u64 > most {
        return Err(format!("is over {most} bytes"));
    }
    Ok(bytes)
}
