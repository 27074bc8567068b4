//! A client's login, driven by any bytes; TLS and the look-up of secrets are played here.
//!
//! Input: options, seed of the cuts, what the client sends. With [`HONEST`] set a real client's answers follow.
//!
//! Properties: no panic; the same bytes in any cut take the same steps and give the same output; nothing is read as
//! encrypted that came in clear; nobody logs in without knowing the password, or in clear where TLS is required.

use pinion::{
    buffer::Buffer,
    config::ClientAuthType,
    protocol::{
        Accept, AcceptOptions, AcceptStep,
        postgres::{
            auth::ServerLogin,
            handshake::{ALPN, PgAccept},
        },
    },
};

use super::wire::{
    CANCEL_REQUEST, Cut, END_POINT, GSSENC_REQUEST, PASSWORD, PROTOCOL_3_0, SSL_REQUEST, USER,
    login_messages, message, messages, mock, packet, secret, split, strings,
};

const OFFER_TLS: u8 = 1;
const REQUIRE_TLS: u8 = 2;
const MD5: u8 = 4;
const CLEARTEXT: u8 = 8;
const KNOWN: u8 = 16;
const DIRECT_TLS: u8 = 32;
const BINDING: u8 = 64;
const HONEST: u8 = 128;

/// The body.
pub fn run(data: &[u8]) {
    let ([options, seed], bytes) = split(data);
    let whole = Login::play(options, bytes, Cut::Whole);
    for cut in [Cut::Bytes, Cut::Random(seed.into())] {
        assert_eq!(whole, Login::play(options, bytes, cut), "cut {cut:?}");
    }
}

struct Login {
    accept: PgAccept,
    options: u8,
    input: Buffer,
    out: Vec<u8>,
    /// What was answered with one byte: requests for encryption.
    single: Vec<u8>,
    encrypted: bool,
    user: Option<String>,
    trace: Vec<String>,
}

impl Login {
    /// Everything that could be seen of one login.
    fn play(options: u8, bytes: &[u8], cut: Cut) -> Vec<String> {
        let (offer_tls, require_tls) = (options & OFFER_TLS != 0, options & REQUIRE_TLS != 0);
        let mut login = Self {
            accept: PgAccept::new(AcceptOptions { offer_tls, require_tls }),
            options,
            input: Buffer::default(),
            out: Vec::new(),
            single: Vec::new(),
            encrypted: false,
            user: None,
            trace: Vec::new(),
        };
        login.through(bytes, cut);
        login.trace.push(login.single.escape_ascii().to_string());
        login.trace.extend(login_messages(&login.out));
        login.trace
    }

    fn through(&mut self, bytes: &[u8], cut: Cut) {
        if self.options & DIRECT_TLS != 0 {
            match self.accept.direct_tls() {
                Ok(()) => {
                    if !self.start_tls() {
                        return;
                    }
                }
                Err(fault) => return self.trace.push(format!("{fault:?}")),
            }
        }
        // A read that goes on behind a request for encryption is an attack, so there the stream is always cut.
        let (requests, rest) = bytes.split_at(requests_len(bytes));
        for request in requests.chunks(8) {
            for piece in cut.pieces(request) {
                if !self.feed(piece) {
                    return;
                }
            }
        }
        for piece in cut.pieces(rest) {
            if !self.feed(piece) {
                return;
            }
        }
        if self.options & HONEST != 0 && self.input.is_empty() {
            self.answer_honestly(cut);
        }
    }

    /// True while the login goes on.
    fn feed(&mut self, piece: &[u8]) -> bool {
        self.input.extend(piece);
        loop {
            let before = self.out.len();
            let step = self.accept.advance(&mut self.input, &mut self.out);
            if matches!(self.out.get(before..), Some(b"S" | b"N")) {
                self.single.extend(self.out.drain(before..));
            }
            match step {
                Ok(AcceptStep::NeedBytes) => return true,
                Ok(AcceptStep::StartTls) => {
                    assert!(self.input.is_empty(), "bytes in clear would be read as encrypted");
                    if !self.start_tls() {
                        return false;
                    }
                }
                Ok(AcceptStep::NeedCredentials(user)) => {
                    self.trace.push(format!("credentials of {user:?}"));
                    self.user = Some(user);
                    let method = match self.options & (MD5 | CLEARTEXT) {
                        0 => ClientAuthType::PostgresScramSha256,
                        MD5 => ClientAuthType::PostgresMd5,
                        _ => ClientAuthType::PostgresCleartext,
                    };
                    let secret = (self.options & KNOWN != 0).then(secret);
                    if let Err(fault) = self.accept.credentials(method, secret, mock(), &mut self.out) {
                        self.trace.push(format!("{fault:?}"));
                        return false;
                    }
                }
                Ok(step) => {
                    if matches!(step, AcceptStep::Login(_)) {
                        assert!(self.options & KNOWN != 0, "an unknown user logged in");
                        assert!(self.encrypted || self.options & REQUIRE_TLS == 0, "in clear");
                        let scram = self.options & (MD5 | CLEARTEXT) == 0;
                        assert!(!scram || self.options & HONEST != 0, "a proof out of nothing");
                    }
                    self.trace.push(format!("{step:?}"));
                    return false;
                }
                Err(fault) => {
                    self.trace.push(format!("{fault:?}"));
                    return false;
                }
            }
        }
    }

    fn start_tls(&mut self) -> bool {
        self.encrypted = true;
        let end_point = (self.options & BINDING != 0).then_some(END_POINT);
        let agreed = self.accept.tls_started(end_point, Some(ALPN));
        self.trace.push(format!("tls {agreed:?}"));
        agreed.is_ok()
    }

    /// Does what a real client would, with the right password.
    fn answer_honestly(&mut self, cut: Cut) {
        let Some(user) = self.user.clone() else { return };
        let binding = (self.options & BINDING != 0).then(|| END_POINT.to_vec());
        let mut client = ServerLogin::new(&user, secret(), self.encrypted, binding);
        let mut answered = 0;
        loop {
            let mut answer = Vec::new();
            let (found, rest) = messages(&self.out[answered..]).expect("what we write is well-formed");
            for (_, body) in found.into_iter().filter(|(tag, _)| *tag == b'R') {
                if client.advance(body, &mut answer).is_err() {
                    return;
                }
            }
            answered = self.out.len() - rest.len();
            if answer.is_empty() {
                return;
            }
            for piece in cut.pieces(&answer) {
                if !self.feed(piece) {
                    return;
                }
            }
        }
    }
}

/// Bytes of whole SSLRequests and GSSENCRequests at the front.
fn requests_len(bytes: &[u8]) -> usize {
    let known = [packet(SSL_REQUEST, b""), packet(GSSENC_REQUEST, b"")];
    8 * bytes.chunks(8).take_while(|chunk| known.iter().any(|request| request == chunk)).count()
}

/// The committed corpus.
pub fn seeds() -> Vec<(String, Vec<u8>)> {
    let login = packet(PROTOCOL_3_0, &strings(&[b"user", USER.as_bytes(), b"database", b"shop", b""]));
    let ssl = packet(SSL_REQUEST, b"");
    let gss = packet(GSSENC_REQUEST, b"");
    let first = b"n,,n=,r=rOprNGfwEbeRWgbNEkqO";
    let sasl = |mechanism: &[u8], first: &[u8]| {
        let len = u32::try_from(first.len()).expect("short").to_be_bytes();
        message(b'p', &[&strings(&[mechanism]), &len[..], first].concat())
    };
    let last = message(b'p', b"c=biws,r=rOprNGfwEbeRWgbNEkqO,p=dHzbZapWIk4jUhN+Ute9ytag9zjfMHgsqmmiz7AndVQ=");
    let known = OFFER_TLS | KNOWN;
    let seed = |name: &str, options: u8, parts: &[&[u8]]| {
        (name.to_owned(), [&[options, 3], parts.concat().as_slice()].concat())
    };
    vec![
        seed("empty", known, &[]),
        seed("login_scram", known | HONEST, &[&login]),
        seed("login_scram_unknown_user", OFFER_TLS | HONEST, &[&login]),
        seed("login_scram_over_tls", known | HONEST | REQUIRE_TLS, &[&ssl, &login]),
        seed("login_scram_plus", known | HONEST | BINDING, &[&ssl, &login]),
        seed("login_scram_direct_tls", known | HONEST | BINDING | DIRECT_TLS, &[&login]),
        seed("login_md5", known | HONEST | MD5, &[&ssl, &login]),
        seed("login_md5_in_clear", known | HONEST | MD5, &[&login]),
        seed("login_cleartext", known | HONEST | CLEARTEXT, &[&ssl, &login]),
        seed(
            "password_cleartext",
            known | CLEARTEXT,
            &[&ssl, &login, &message(b'p', &strings(&[PASSWORD.as_bytes()]))],
        ),
        seed("password_wrong", known | CLEARTEXT, &[&ssl, &login, &message(b'p', b"wrong\0")]),
        seed("password_empty", known | CLEARTEXT, &[&ssl, &login, &message(b'p', b"\0")]),
        seed("cleartext_in_clear", known | CLEARTEXT, &[&login]),
        seed("scram_whole", known, &[&login, &sasl(b"SCRAM-SHA-256", first), &last]),
        seed(
            "scram_mechanism_alone",
            known | HONEST,
            &[&login, &message(b'p', b"SCRAM-SHA-256\0\xff\xff\xff\xff"), &message(b'p', first), &last],
        ),
        seed(
            "scram_plus_in_clear",
            known,
            &[&login, &sasl(b"SCRAM-SHA-256-PLUS", b"p=tls-server-end-point,,n=,r=abcdef")],
        ),
        seed("scram_unknown_mechanism", known, &[&login, &sasl(b"SCRAM-SHA-1", first)]),
        seed("gss_then_ssl", known | HONEST, &[&gss, &ssl, &login]),
        seed("ssl_twice", known, &[&ssl, &ssl, &login]),
        seed("ssl_not_offered", KNOWN | HONEST, &[&ssl, &login]),
        seed("tls_required", known | REQUIRE_TLS, &[&login]),
        seed("direct_tls_not_offered", KNOWN | DIRECT_TLS, &[&login]),
        seed("cancel", known, &[&packet(CANCEL_REQUEST, &[0, 0, 0, 1, 0, 0, 0, 2])]),
        seed("cancel_long_key", known, &[&packet(CANCEL_REQUEST, &[9; 36])]),
        seed(
            "version_3_2",
            known | HONEST,
            &[&packet(PROTOCOL_3_0 | 2, &strings(&[b"user", b"app", b"_pq_.wish", b"1", b""]))],
        ),
        seed("version_2", known, &[&packet(2 << 16, b"app\0")]),
        seed(
            "replication",
            known,
            &[&packet(PROTOCOL_3_0, &strings(&[b"user", b"app", b"replication", b"database", b""]))],
        ),
        seed(
            "parameters",
            known | HONEST,
            &[&packet(
                PROTOCOL_3_0,
                &strings(&[
                    b"user",
                    b"app",
                    b"DateStyle",
                    b"ISO",
                    b"options",
                    b"-c a=b",
                    b"datestyle",
                    b"SQL",
                    b"",
                ]),
            )],
        ),
        seed("user_missing", known, &[&packet(PROTOCOL_3_0, &strings(&[b"database", b"shop", b""]))]),
        seed("terminator_missing", known, &[&packet(PROTOCOL_3_0, b"user\0app\0")]),
        seed("terminator_early", known, &[&packet(PROTOCOL_3_0, b"user\0app\0\0x")]),
        seed("length_7", known, &[&[0, 0, 0, 7, 0, 3, 0, 0]]),
        seed("length_10001", known, &[&[0, 0, 0x27, 0x11, 0, 3, 0, 0]]),
        seed("quit_at_password", known, &[&login, &message(b'X', b"")]),
        seed("query_at_password", known, &[&login, &message(b'Q', b"SELECT 1\0")]),
        seed("password_too_long", known, &[&login, b"p\0\0\x27\x15"]),
    ]
}
