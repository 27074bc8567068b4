#![allow(clippy::unwrap_used)]

use std::sync::OnceLock;

use aws_lc_rs::signature::{ED25519 as ED25519_SIGNATURE, UnparsedPublicKey};

use super::*;
use crate::config::ClientAuthType::{MysqlCachingSha2Password, MysqlClearPassword, MysqlNativePassword};

const PASSWORD: &[u8] = b"hunter2";
const NONCE: Nonce = Nonce(*b"!\"#z%&'()*+,-./01234");

fn secret(password: &str) -> Arc<Secret> {
    Arc::new(Secret::new("app".to_owned(), Zeroizing::new(password.to_owned())).unwrap())
}

fn mock() -> &'static MockKey {
    static MOCK: OnceLock<MockKey> = OnceLock::new();
    MOCK.get_or_init(|| MockKey::random().unwrap())
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn unhex(text: &str) -> Vec<u8> {
    (0..text.len()).step_by(2).map(|at| u8::from_str_radix(&text[at..at + 2], 16).unwrap()).collect()
}

#[test]
fn answers_are_those_of_other_implementations() {
    // Made with Python's hashlib from the formulas in the manual.
    assert_eq!(hex(&native_answer(PASSWORD, &NONCE.0)), "0fa883b394a78857ae95599eb0b7b86695aaaa2b");
    assert_eq!(
        hex(&caching_sha2_answer(PASSWORD, &NONCE.0)),
        "e3b7e02070a6ebcc283069de0b434e174b82af3c46d0906af44bf0434074720d"
    );
}

#[test]
fn ed25519_signs_as_the_rfc_does_with_a_seed_for_a_password() {
    // RFC 8032, 7.1, tests 1 to 3.
    for (seed, message, signature) in [
        (
            "9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60",
            "",
            "e5564300c360ac729086e2cc806e828a84877f1eb8e5d974d873e065224901555fb8821590a33bacc61e39701cf9b46b\
             d25bf5f0595bbe24655141438e7a100b",
        ),
        (
            "4ccd089b28ff96da9db6c346ec114e0f5b8a319f35aba624da8cf6ed4fb8a6fb",
            "72",
            "92a009a9f0d4cab8720e820b5f642540a2b27b5416503f8fb3762223ebdb69da085ac1e43e15996e458f3613d0f11d8c\
             387b2eaeb4302aeeb00d291612bb0c00",
        ),
        (
            "c5aa8df43f9f837bedb7442f31dcb7b166d38535076f094b85ce3a2e0b4458f7",
            "af82",
            "6291d657deec24024827e69c3abe01a30ce548a284743a445e3680d7db5ac3ac18ff9b538d16f290ae67f760984dc659\
             4a7c15e9716ed28dc027beceea1ec40a",
        ),
    ] {
        assert_eq!(hex(&ed25519_answer(&unhex(seed), &unhex(message))), signature.replace(' ', ""));
    }
}

#[test]
fn ed25519_answers_are_good_for_the_servers_public_key() {
    // MariaDB knowledge base, "Authentication Plugin - ed25519": the key of the password `secret`.
    let key = STANDARD.decode("ZIgUREUg5PVgQ6LskhXmO+eZLS0nC8be6HPjYWR4YJY=").unwrap();
    let key = UnparsedPublicKey::new(&ED25519_SIGNATURE, key);
    let nonce = [7; ED25519_NONCE_BYTES];
    key.verify(&nonce, &ed25519_answer(b"secret", &nonce)).unwrap();
    assert!(key.verify(&nonce, &ed25519_answer(b"secret2", &nonce)).is_err());
}

#[test]
fn nonces_are_text_without_the_dollar_and_never_twice_the_same() {
    let one = Nonce::random().unwrap();
    assert_ne!(one, Nonce::random().unwrap());
    for _ in 0..100 {
        let Nonce(bytes) = Nonce::random().unwrap();
        assert!(bytes.iter().all(|byte| (1..0x80).contains(byte) && *byte != b'$'));
    }
}

#[test]
fn a_public_key_goes_to_pem_and_back() {
    make_rsa_key();
    let key = RSA_KEY.get().unwrap().as_ref().unwrap();
    let back = public_key(key.public.as_bytes()).unwrap();
    assert_eq!(back.key_size_bits(), 2048);
    assert!(key.public.lines().all(|line| line.len() <= 64));
    for cut in 0..key.public.len() - 1 {
        assert!(public_key(&key.public.as_bytes()[..cut]).is_none(), "cut at {cut}");
    }
    assert!(public_key(b"-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n").is_none());
}

type Started = Result<(ClientAuth, AuthStep), AuthError>;

/// A client's login of one method over a plain or encrypted connection.
struct Case {
    method: ClientAuthType,
    known: bool,
    over_tls: bool,
    full: bool,
}

impl Case {
    fn start(&self, plugin: Option<&str>, answer: &[u8]) -> (Started, Vec<Vec<u8>>) {
        let mut out = Vec::new();
        let first = FirstAnswer { plugin: plugin.map(str::as_bytes), answer: Some(answer), nonce: NONCE };
        let secret = self.known.then(|| secret("hunter2"));
        let started =
            ClientAuth::start(self.method, "app", secret, first, self.over_tls, self.full, mock(), &mut out);
        (started, out)
    }
}

const PLAIN: Case = Case { method: MysqlCachingSha2Password, known: true, over_tls: false, full: false };

/// What a login that ends with its first answer comes to.
fn at_once(case: &Case, plugin: &str, answer: &[u8]) -> String {
    match case.start(Some(plugin), answer) {
        (Ok((_, step)), out) => format!("{step:?} {out:?}"),
        (Err(error), out) => {
            assert!(out.is_empty());
            format!("{error:?}")
        }
    }
}

#[test]
fn right_answers_are_let_in_and_wrong_ones_not() {
    let native = Case { method: MysqlNativePassword, ..PLAIN };
    let clear = Case { method: MysqlClearPassword, over_tls: true, ..PLAIN };
    let sha2_right = caching_sha2_answer(PASSWORD, &NONCE.0);
    let native_right = native_answer(PASSWORD, &NONCE.0);
    assert_eq!(at_once(&PLAIN, CACHING_SHA2, &sha2_right), "Done [[1, 3]]");
    assert_eq!(at_once(&native, NATIVE, &native_right), "Done []");
    assert_eq!(at_once(&clear, CLEAR, b"hunter2\0"), "Done []");

    let wrong = "WrongPassword { given: true }";
    let none = "WrongPassword { given: false }";
    let asked = "Continue [[1, 4]]";
    for (case, plugin, answer, want) in [
        (&PLAIN, CACHING_SHA2, caching_sha2_answer(b"hunter3", &NONCE.0).as_slice(), asked),
        (&PLAIN, CACHING_SHA2, b"", none),
        (&PLAIN, CACHING_SHA2, b"\0", none),
        (&PLAIN, CACHING_SHA2, &sha2_right[1..], "Malformed"),
        (&native, NATIVE, &native_answer(b"hunter3", &NONCE.0), wrong),
        (&native, NATIVE, &native_answer(PASSWORD, &[1; 20]), wrong),
        (&native, NATIVE, b"", none),
        (&native, NATIVE, b"12345678", "Malformed"),
        (&clear, CLEAR, b"hunter3\0", wrong),
        (&clear, CLEAR, b"hunter\0", wrong),
        (&clear, CLEAR, b"\0", none),
        (&clear, CLEAR, b"hunter2", "Malformed"),
        (&clear, CLEAR, b"", "Malformed"),
    ] {
        assert_eq!(at_once(case, plugin, answer), want);
    }
    // An unknown user looks the same, even with the password of somebody.
    for (case, plugin, answer, want) in [
        (&PLAIN, CACHING_SHA2, sha2_right.as_slice(), asked),
        (&native, NATIVE, &native_right, wrong),
        (&clear, CLEAR, b"hunter2\0", wrong),
    ] {
        assert_eq!(at_once(&Case { known: false, ..*case }, plugin, answer), want);
    }
}

#[test]
fn a_client_of_another_method_is_switched() {
    let (started, out) = PLAIN.start(Some(NATIVE), &native_answer(PASSWORD, &NONCE.0));
    let (mut auth, step) = started.unwrap();
    assert_eq!(step, AuthStep::Continue);
    let [payload] = out.as_slice() else { panic!("one packet") };
    let nonce = payload.strip_prefix(b"\xfecaching_sha2_password\0").unwrap();
    let (0, nonce) = nonce.split_last().map(|(end, nonce)| (*end, nonce)).unwrap() else { panic!("no end") };
    assert_eq!(nonce.len(), NONCE_BYTES);
    assert_ne!(nonce, NONCE.0, "a nonce serves once");
    let mut out = Vec::new();
    assert_eq!(auth.advance(&caching_sha2_answer(PASSWORD, nonce), &mut out), Ok(AuthStep::Done));
    assert_eq!(out, [[1, 3]]);
    assert_eq!(auth.advance(b"more", &mut out), Err(AuthError::Malformed));
}

#[test]
fn a_client_that_cannot_be_switched_is_told() {
    assert_eq!(PLAIN.start(None, &native_answer(PASSWORD, &NONCE.0)).0.unwrap_err(), AuthError::OldClient);
    let native = Case { method: MysqlNativePassword, ..PLAIN };
    let (started, _) = native.start(None, &native_answer(PASSWORD, &NONCE.0));
    assert_eq!(started.unwrap().1, AuthStep::Done);
    let clear = Case { method: MysqlClearPassword, ..PLAIN };
    assert_eq!(clear.start(Some(CLEAR), b"hunter2\0").0.unwrap_err(), AuthError::ClearWithoutTls);
    let foreign = Case { method: ClientAuthType::PostgresMd5, ..PLAIN };
    assert_eq!(foreign.start(Some(NATIVE), b"").0.unwrap_err(), AuthError::Foreign);
}

/// A login up to the question for the password itself.
fn asked_in_full(known: bool, over_tls: bool) -> ClientAuth {
    let case = Case { known, over_tls, full: true, ..PLAIN };
    let (started, out) = case.start(Some(CACHING_SHA2), &caching_sha2_answer(b"whatever", &NONCE.0));
    let (auth, step) = started.unwrap();
    assert_eq!((step, out), (AuthStep::Continue, vec![vec![1, 4]]));
    auth
}

#[test]
fn the_password_itself_is_taken_over_tls() {
    for (known, payload, want) in [
        (true, b"hunter2\0".as_slice(), Ok(AuthStep::Done)),
        (true, b"hunter3\0", Err(AuthError::WrongPassword { given: true })),
        (true, b"\0", Err(AuthError::WrongPassword { given: false })),
        (true, b"hunter2", Err(AuthError::Malformed)),
        (false, b"hunter2\0", Err(AuthError::WrongPassword { given: true })),
    ] {
        assert_eq!(asked_in_full(known, true).advance(payload, &mut Vec::new()), want);
    }
}

#[test]
fn the_password_itself_is_taken_encrypted_without_tls() {
    make_rsa_key();
    for (known, password, want) in [
        (true, "hunter2", Ok(AuthStep::Done)),
        (true, "hunter3", Err(AuthError::WrongPassword { given: true })),
        (false, "hunter2", Err(AuthError::WrongPassword { given: true })),
    ] {
        let mut server = asked_in_full(known, false);
        let mut out = Vec::new();
        let (mut client, plugin, _) =
            ServerAuth::start(secret(password), CACHING_SHA2.as_bytes(), &NONCE.0, false);
        assert_eq!(plugin, CACHING_SHA2);
        let please = client.advance(&[1, 4]).unwrap().unwrap();
        assert_eq!(please, [2]);
        assert_eq!(server.advance(&please, &mut out), Ok(AuthStep::Continue));
        let encrypted = client.advance(&out[0]).unwrap().unwrap();
        assert_eq!(encrypted.len(), 256);
        assert!(!encrypted.windows(7).any(|window| window == password.as_bytes()));
        assert_eq!(server.advance(&encrypted, &mut out), want);
    }
    // Encrypted with some other key, in clear, no password, and the key twice.
    let wrong = Err(AuthError::WrongPassword { given: true });
    assert_eq!(asked_in_full(true, false).advance(&[0x55; 256], &mut Vec::new()), wrong);
    assert_eq!(asked_in_full(true, false).advance(b"hunter2\0", &mut Vec::new()), wrong);
    let none = Err(AuthError::WrongPassword { given: false });
    assert_eq!(asked_in_full(true, false).advance(b"\0", &mut Vec::new()), none);
    let mut twice = asked_in_full(true, false);
    assert_eq!(twice.advance(&[2], &mut Vec::new()), Ok(AuthStep::Continue));
    assert_eq!(twice.advance(&[2], &mut Vec::new()), Err(AuthError::Malformed));
}

/// The greeting's plugin and nonce, then each payload of the server with what we say to it.
fn play(over_tls: bool, plugin: &str, nonce: &[u8], payloads: &[&[u8]]) -> String {
    let (mut auth, plugin, answer) = ServerAuth::start(secret("hunter2"), plugin.as_bytes(), nonce, over_tls);
    let mut said = vec![format!("{plugin} {}", hex(&answer))];
    for payload in payloads {
        said.push(match auth.advance(payload) {
            Ok(None) => "-".to_owned(),
            Ok(Some(answer)) => hex(&answer),
            Err(error) => format!("{error:?}"),
        });
    }
    said.join(", ")
}

#[test]
fn servers_are_answered_by_the_method_they_ask_for() {
    let nonce = [&NONCE.0[..], b"\0"].concat();
    let native = "0fa883b394a78857ae95599eb0b7b86695aaaa2b";
    let sha2 = "e3b7e02070a6ebcc283069de0b434e174b82af3c46d0906af44bf0434074720d";
    let clear = hex(b"hunter2\0");
    let switch = |plugin: &str, nonce: &[u8]| [b"\xfe", plugin.as_bytes(), b"\0", nonce].concat();
    for (over_tls, plugin, payloads, want) in [
        (false, NATIVE, vec![], format!("{NATIVE} {native}")),
        (false, CACHING_SHA2, vec![b"\x01\x03".to_vec()], format!("{CACHING_SHA2} {sha2}, -")),
        (true, CACHING_SHA2, vec![b"\x01\x04".to_vec()], format!("{CACHING_SHA2} {sha2}, {clear}")),
        (false, CACHING_SHA2, vec![b"\x01\x04".to_vec()], format!("{CACHING_SHA2} {sha2}, 02")),
        // A method of the greeting that cannot be answered: the server is to ask for what it really wants.
        (false, "sha256_password", vec![switch(CACHING_SHA2, &nonce)], format!("{NATIVE} {native}, {sha2}")),
        (false, "", vec![switch(NATIVE, &nonce)], format!("{NATIVE} {native}, {native}")),
        (true, NATIVE, vec![switch(CLEAR, b"")], format!("{NATIVE} {native}, {clear}")),
        (false, NATIVE, vec![switch(CLEAR, b"")], format!("{NATIVE} {native}, ClearWithoutTls")),
        (
            true,
            NATIVE,
            vec![switch(ED25519, &[7; 32])],
            format!("{NATIVE} {native}, {}", hex(&ed25519_answer(PASSWORD, &[7; 32]))),
        ),
        (true, NATIVE, vec![switch(ED25519, &nonce)], format!("{NATIVE} {native}, Malformed")),
        (true, NATIVE, vec![switch(NATIVE, &nonce[..9])], format!("{NATIVE} {native}, Malformed")),
        (true, NATIVE, vec![switch("dialog", b"")], format!("{NATIVE} {native}, Unsupported(\"dialog\")")),
        (true, NATIVE, vec![b"\xfe".to_vec()], format!("{NATIVE} {native}, TooOld")),
        (true, NATIVE, vec![b"\xfenone".to_vec()], format!("{NATIVE} {native}, Malformed")),
        (true, NATIVE, vec![b"\x01\x04".to_vec()], format!("{NATIVE} {native}, Unexpected")),
        (true, CACHING_SHA2, vec![b"\x01\x05".to_vec()], format!("{CACHING_SHA2} {sha2}, Unexpected")),
        (
            false,
            CACHING_SHA2,
            vec![b"\x01\x04".to_vec(), b"\x01no key".to_vec()],
            format!("{CACHING_SHA2} {sha2}, 02, Key"),
        ),
        (
            true,
            NATIVE,
            vec![b"".to_vec(), b"\x07".to_vec()],
            format!("{NATIVE} {native}, Malformed, Malformed"),
        ),
    ] {
        let payloads: Vec<_> = payloads.iter().map(Vec::as_slice).collect();
        assert_eq!(play(over_tls, plugin, &nonce, &payloads), want, "{plugin} {payloads:?}");
    }
}

#[test]
fn nothing_secret_is_shown() {
    let auth = asked_in_full(true, true);
    let (server, ..) = ServerAuth::start(secret("hunter2"), NATIVE.as_bytes(), &NONCE.0, true);
    let shown = format!("{auth:?} {server:?}");
    assert!(!shown.contains("hunter2"), "{shown}");
}
