//! Our login to a server, driven by any bytes of that server.
//!
//! Input: options, seed of the cuts, what the server sends. With [`HONEST`] set a real server goes on from there.
//!
//! Properties: no panic; the same bytes in any cut give the same result and the same output; the password never goes
//! out in clear over a connection without TLS; a greeting holds whole ParameterStatus messages and nothing else.

use std::sync::OnceLock;

use pinion::{
    buffer::Buffer,
    config::ClientAuthType,
    protocol::{
        Connect, ConnectStep, PoolKey, Protocol, ServerState,
        postgres::{
            Postgres, Shared,
            auth::{ClientLogin, LoginStep},
            handshake::PgConnect,
        },
    },
};

use super::wire::{
    Cut, END_POINT, PASSWORD, USER, authentication, login_messages, message, messages, mock, secret, split,
    strings,
};

const TLS: u8 = 1;
const BINDING: u8 = 2;
const HONEST: u8 = 4;
const MD5: u8 = 8;
const CLEARTEXT: u8 = 16;

/// The body.
pub fn run(data: &[u8]) {
    let ([options, seed], bytes) = split(data);
    let whole = play(options, bytes, Cut::Whole);
    for cut in [Cut::Bytes, Cut::Random(seed.into())] {
        assert_eq!(whole, play(options, bytes, cut), "cut {cut:?}");
    }
}

/// A login whose server says what `bytes` are.
struct Login {
    connect: PgConnect,
    input: Buffer,
    out: Vec<u8>,
    result: Option<String>,
}

impl Login {
    /// True while the login goes on.
    fn feed(&mut self, bytes: &[u8], cut: Cut) -> bool {
        for piece in cut.pieces(bytes) {
            self.input.extend(piece);
            match self.connect.advance(&mut self.input, &mut self.out) {
                Ok(ConnectStep::NeedBytes) => {}
                Ok(ConnectStep::Done) => {
                    self.result = Some("done".to_owned());
                    return false;
                }
                Ok(step) => panic!("whether there is TLS was settled before: {step:?}"),
                Err(error) => {
                    self.result = Some(format!("{error:?}"));
                    return false;
                }
            }
        }
        true
    }

    /// What a real server with [`USER`]'s password does.
    fn answer_honestly(&mut self, options: u8, startup: usize, cut: Cut) {
        let over_tls = options & TLS != 0;
        let binding = (options & BINDING != 0).then_some(END_POINT);
        let method = match options & (MD5 | CLEARTEXT) {
            0 => ClientAuthType::PostgresScramSha256,
            MD5 => ClientAuthType::PostgresMd5,
            _ => ClientAuthType::PostgresCleartext,
        };
        let mut said = Vec::new();
        let server = ClientLogin::start(method, USER, Some(secret()), binding, over_tls, mock(), &mut said);
        let Ok(mut server) = server else { return };
        let mut heard = self.out.len().max(startup);
        loop {
            if !self.feed(&said, cut) {
                return;
            }
            said.clear();
            let (found, rest) = messages(&self.out[heard..]).expect("what we write is well-formed");
            let Some(&(_, body)) = found.first() else { return };
            heard = self.out.len() - rest.len();
            match server.advance(body, &mut said) {
                Ok(LoginStep::Continue(next)) => server = next,
                Ok(LoginStep::Done) => break,
                Err(_) => return,
            }
        }
        said.extend(welcome());
        self.feed(&said, cut);
    }
}

fn play(options: u8, bytes: &[u8], cut: Cut) -> Vec<String> {
    static SHARED: OnceLock<Shared> = OnceLock::new();
    let key = PoolKey { user: USER.into(), parameters: strings(&[b"database", b"shop"]).into() };
    let tls = (options & TLS != 0).then(|| (options & BINDING != 0).then(|| END_POINT.to_vec()));
    let mut out = Vec::new();
    let connect = PgConnect::start(&key, secret(), tls, &mut out);
    let startup = out.len();
    let mut login = Login { connect, input: Buffer::default(), out, result: None };
    if login.feed(bytes, cut) && options & HONEST != 0 && login.input.is_empty() {
        login.answer_honestly(options, startup, cut);
    }
    let Login { connect, out, result, .. } = login;
    if options & TLS == 0 {
        assert!(!out.windows(PASSWORD.len()).any(|w| w == PASSWORD.as_bytes()), "the password in clear");
        assert!(!out.windows(4).any(|w| w == b"\x28md5"), "an MD5 answer in clear");
    }
    let mut trace = login_messages(&out[startup..]);
    trace.push(format!("{result:?}"));
    if result.as_deref() == Some("done") {
        let server = connect.finish(SHARED.get_or_init(|| Postgres::shared(10)));
        let greeting = server.greeting();
        let (parameters, rest) = messages(&greeting.bytes).expect("a greeting is well-formed");
        assert!(rest.is_empty() && parameters.iter().all(|(tag, _)| *tag == b'S'), "{greeting:?}");
        trace.push(format!("{} {:?}", greeting.bytes.escape_ascii(), server.key()));
        assert!(server.is_quiet() && !server.is_tainted());
    }
    trace
}

/// Everything from AuthenticationOk to ReadyForQuery.
pub fn welcome() -> Vec<u8> {
    [
        authentication(0, b""),
        message(b'S', &strings(&[b"client_encoding", b"UTF8"])),
        message(b'S', &strings(&[b"standard_conforming_strings", b"on"])),
        message(b'K', &[0, 0, 0, 42, 1, 2, 3, 4]),
        message(b'Z', b"I"),
    ]
    .concat()
}

/// The committed corpus.
pub fn seeds() -> Vec<(String, Vec<u8>)> {
    let ok = authentication(0, b"");
    let ready = message(b'Z', b"I");
    let error = |code: &[u8]| message(b'E', &[b"SFATAL\0VFATAL\0C", code, b"\0Mno\0\0"].concat());
    let scram = authentication(10, &strings(&[b"SCRAM-SHA-256", b""]));
    let seed = |name: &str, options: u8, parts: &[&[u8]]| {
        (name.to_owned(), [&[options, 5], parts.concat().as_slice()].concat())
    };
    vec![
        seed("empty", 0, &[]),
        seed("trust", 0, &[&welcome()]),
        seed("scram", HONEST, &[]),
        seed("scram_over_tls", HONEST | TLS, &[]),
        seed("scram_plus", HONEST | TLS | BINDING, &[]),
        seed("md5", HONEST | TLS | MD5, &[]),
        seed("cleartext", HONEST | TLS | CLEARTEXT, &[]),
        seed("md5_in_clear", 0, &[&authentication(5, &[1, 2, 3, 4])]),
        seed("cleartext_in_clear", 0, &[&authentication(3, b"")]),
        seed("cleartext_then_ok", TLS, &[&authentication(3, b""), &welcome()]),
        seed("cleartext_twice", TLS, &[&authentication(3, b""), &authentication(3, b"")]),
        seed("sasl_then_ok", 0, &[&scram, &welcome()]),
        seed("sasl_continue", 0, &[&scram, &authentication(11, b"r=abc,s=c2FsdA==,i=4096")]),
        seed("sasl_final_early", 0, &[&scram, &authentication(12, b"v=AAAA")]),
        seed(
            "sasl_plus_without_tls",
            0,
            &[&authentication(10, &strings(&[b"SCRAM-SHA-256-PLUS", b"SCRAM-SHA-256", b""]))],
        ),
        seed("sasl_unknown", TLS, &[&authentication(10, &strings(&[b"OAUTHBEARER", b""]))]),
        seed("sasl_no_end", TLS, &[&authentication(10, b"SCRAM-SHA-256")]),
        seed("kerberos", 0, &[&authentication(2, b"")]),
        seed("gss", TLS, &[&authentication(7, b"")]),
        seed("sspi", TLS, &[&authentication(9, b"")]),
        seed("method_unknown", TLS, &[&authentication(99, b"")]),
        seed("ok_twice", 0, &[&ok, &ok, &ready]),
        seed("ok_with_data", 0, &[&authentication(0, b"x")]),
        seed("ready_first", 0, &[&ready]),
        seed("key_without_secret", 0, &[&ok, &message(b'K', &[0, 0, 0, 1]), &ready]),
        seed("key_long", 0, &[&ok, &message(b'K', &[5; 260]), &ready]),
        seed(
            "notice_and_version",
            0,
            &[
                &message(b'v', &[0, 3, 0, 0, 0, 0, 0, 0]),
                &message(b'N', b"SNOTICE\0C00000\0Mhello\0\0"),
                &welcome(),
            ],
        ),
        seed("parameter_before_ok", 0, &[&message(b'S', b"a\0b\0"), &welcome()]),
        seed("parameter_malformed", 0, &[&ok, &message(b'S', b"a"), &ready]),
        seed("error_password", 0, &[&error(b"28P01")]),
        seed("error_starting", 0, &[&error(b"57P03")]),
        seed("error_full", 0, &[&ok, &error(b"53300")]),
        seed("error_cut_off", 0, &[&message(b'E', b"SFATAL\0C42")]),
        seed("length_3", 0, &[b"R\0\0\0\x03"]),
        seed("length_huge", 0, &[b"R\x7f\xff\xff\xff"]),
        seed("length_65541", 0, &[b"S\0\x01\0\x05"]),
        seed("row", 0, &[&ok, &message(b'D', &[0, 0])]),
    ]
}
