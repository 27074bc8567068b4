#![allow(clippy::unwrap_used)]

use std::sync::OnceLock;

use zeroize::Zeroizing;

use super::{
    super::codec::{EOF, OK, put_lenenc_bytes},
    *,
};
use crate::config::ClientAuthType::{MysqlCachingSha2Password, MysqlClearPassword, MysqlNativePassword};

/// MySQL Source Documentation, "Protocol::HandshakeV10": a server 5.6.4.
const MYSQL_56: &[u8] = b"\x50\0\0\0\x0a5.6.4-m7-log\0\x56\x0a\0\0RB3vz&Gr\0\xff\xff\x08\x02\0\x0f\xc0\x15\
    \0\0\0\0\0\0\0\0\0\0+yD&/ZZ305ZG\0mysql_native_password\0";

/// As captured from MariaDB 10.11.19.
const MARIADB_1011: &[u8] =
    b"\x64\0\0\0\x0a5.5.5-10.11.19-MariaDB-0+deb12u1\0\x05\0\0\0K;\":<_J6\0\xfe\xff\x08\
    \x02\0\xff\x81\x15\0\0\0\0\0\0\x1d\0\0\0lBA^9?q>|wa`\0mysql_native_password\0";

/// MySQL Source Documentation, "Protocol::HandshakeResponse41".
const RESPONSE_41: &[u8] =
    b"\x54\0\0\x01\x8d\xa6\x0f\0\0\0\0\x01\x08\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\
    pam\0\x14\xab\x09\xee\xf6\xbc\xb1\x32\x3e\x61\x14\x38\x65\xc0\x99\x1d\x95\x7d\x75\xd4\x47test\0\
    mysql_native_password\0";

/// A greeting of MySQL 8.4, put together from the manual: the default method is `caching_sha2_password`, every bit up
/// to `MULTI_FACTOR_AUTHENTICATION` is set, and `CLIENT_MYSQL` with them.
fn mysql_84() -> Vec<u8> {
    let mut out = Vec::new();
    Handshake {
        version: b"8.4.3",
        connection_id: 9,
        nonce: b"abcdefghijklmnopqrst".to_vec(),
        capabilities: Capabilities(0xdfff_ffff),
        extended: Extended::NONE,
        collation: 255,
        status: Status::AUTOCOMMIT,
        plugin: b"caching_sha2_password",
    }
    .write(&mut out);
    out
}

fn hello(greeting: &[u8]) -> MyHello {
    let greeting = Handshake::read(&greeting[4..]).unwrap();
    MyHello {
        version: std::str::from_utf8(greeting.version).unwrap().into(),
        capabilities: greeting.capabilities,
        extended: greeting.extended,
        collation: greeting.collation,
    }
}

fn secret(password: &str) -> Arc<Secret> {
    Arc::new(Secret::new("app".to_owned(), Zeroizing::new(password.to_owned())).unwrap())
}

fn mock() -> &'static MockKey {
    static MOCK: OnceLock<MockKey> = OnceLock::new();
    MOCK.get_or_init(|| MockKey::random().unwrap())
}

fn arrival(hello: MyHello, method: ClientAuthType, full: bool) -> Arrival<MyHello> {
    Arrival {
        hello,
        key: CancelKey { id: 77, secret: 1 },
        peer: "10.1.2.3".parse().unwrap(),
        method,
        force_full_authentication: full,
    }
}

#[test]
fn greetings_are_read_and_written() {
    let greeting = Handshake::read(&MYSQL_56[4..]).unwrap();
    assert_eq!((greeting.version, greeting.connection_id), (b"5.6.4-m7-log".as_slice(), 2646));
    assert_eq!(greeting.nonce, b"RB3vz&Gr+yD&/ZZ305ZG");
    assert_eq!((greeting.collation, greeting.status), (8, Status::AUTOCOMMIT));
    assert_eq!(greeting.plugin, b"mysql_native_password");
    assert_eq!(greeting.capabilities, Capabilities(0xc00f_ffff));
    assert!(!greeting.capabilities.is_mariadb());

    let greeting = Handshake::read(&MARIADB_1011[4..]).unwrap();
    assert_eq!(greeting.version, b"5.5.5-10.11.19-MariaDB-0+deb12u1");
    assert!(greeting.capabilities.is_mariadb());
    let all = Capabilities::SSL | Capabilities::SESSION_TRACK | Capabilities::DEPRECATE_EOF;
    assert!(greeting.capabilities.contains(all));
    assert_eq!(
        greeting.extended,
        Extended::PROGRESS
            | Extended::STMT_BULK_OPERATIONS
            | Extended::EXTENDED_METADATA
            | Extended::CACHE_METADATA
    );
    for whole in [MYSQL_56, MARIADB_1011, &mysql_84()] {
        let mut out = Vec::new();
        let greeting = Handshake::read(&whole[4..]).unwrap();
        greeting.write(&mut out);
        assert_eq!(out.escape_ascii().to_string(), whole.escape_ascii().to_string());
        for cut in 4..whole.len() - 22 {
            // Up to the methods everything counts; 22 bytes is the name of the shortest with its end.
            let cut = Handshake::read(&whole[4..cut]);
            assert!(cut.is_none_or(|cut| cut.nonce.len() <= 8 || cut.plugin.len() < 21));
        }
    }
    assert_eq!(Handshake::read(b"\x095.0\0"), None);
    assert_eq!(Handshake::read(b""), None);
}

#[test]
fn responses_are_read_at_every_cut() {
    let response = Response::read(&RESPONSE_41[4..]).unwrap();
    assert_eq!(
        (response.user.as_slice(), response.database.as_slice()),
        (b"pam".as_slice(), b"test".as_slice())
    );
    assert_eq!((response.collation, response.answer.len()), (8, 20));
    assert_eq!(response.plugin.as_deref(), Some(NATIVE.as_bytes()));
    for cut in 4..RESPONSE_41.len() {
        // A method's name without its end is one, too: some clients leave it out.
        let read = Response::read(&RESPONSE_41[4..cut]);
        let before_method = cut < RESPONSE_41.len() - 22;
        assert_eq!(read.is_none(), before_method, "cut at {cut}");
    }
}

fn response(capabilities: Capabilities, tail: &[u8]) -> Option<Response> {
    let mut payload = capabilities.0.to_le_bytes().to_vec();
    payload.extend([0, 0, 0, 1, 45]);
    payload.extend([0; 19]);
    payload.extend(5_u32.to_le_bytes());
    payload.extend(tail);
    Response::read(&payload)
}

#[test]
fn what_a_response_holds_depends_on_its_flags() {
    let old = Capabilities::PROTOCOL_41 | Capabilities::LONG_PASSWORD;
    let secure = old | Capabilities::SECURE_CONNECTION;
    let lenenc = secure | Capabilities::PLUGIN_AUTH | Capabilities::PLUGIN_AUTH_LENENC;
    let attributes = lenenc | Capabilities::CONNECT_ATTRS;
    let show = |response: Option<Response>| match response {
        None => "none".to_owned(),
        Some(r) => format!(
            "{} {} {} {} {} {} {}",
            r.user.escape_ascii(),
            r.answer.escape_ascii(),
            r.database.escape_ascii(),
            r.plugin.map_or("-".to_owned(), |plugin| plugin.escape_ascii().to_string()),
            r.program.escape_ascii(),
            r.zstd_level,
            r.extended.0
        ),
    };
    for (flags, tail, want) in [
        (old, b"app\0abc\0".as_slice(), "app abc  -  0 0"),
        (secure, b"app\0\x03abc", "app abc  -  0 0"),
        (secure | Capabilities::CONNECT_WITH_DB, b"app\0\0shop\0", "app  shop -  0 0"),
        (secure | Capabilities::CONNECT_WITH_DB, b"app\0\0shop", "none"),
        (lenenc, b"app\0\x01axy\0", "app a  xy  0 0"),
        (lenenc, b"app\0\x01axy", "app a  xy  0 0"),
        (lenenc, b"app\0\xfc\x01\0axy", "app a  xy  0 0"),
        (lenenc, b"app\0\xfbaxy", "none"),
        (lenenc, b"app\0\x09a", "none"),
        (attributes, b"app\0\0xy\0\x12\x0cprogram_name\x04tool", "app   xy tool 0 0"),
        (attributes, b"app\0\0xy\0\x05\x01a\x01b\x00", "none"),
        (attributes, b"app\0\0xy\0\x09\x01a", "none"),
        (attributes, b"app\0\0xy\0", "app   xy  0 0"),
        (attributes | Capabilities::ZSTD_COMPRESSION_ALGORITHM, b"app\0\0xy\0\0\x07", "app   xy  7 0"),
        // MariaDB's own flags count without `CLIENT_MYSQL` only.
        (secure.without(Capabilities::LONG_PASSWORD), b"app\0\0", "app   -  0 5"),
        (Capabilities::SECURE_CONNECTION, b"app\0\0", "none"),
        (secure, b"app", "none"),
        (secure, b"", "none"),
    ] {
        assert_eq!(show(response(flags, tail)), want, "{flags:?} {}", tail.escape_ascii());
    }
}

#[test]
fn clients_are_offered_what_both_of_us_can_do() {
    let mysql = hello(&mysql_84());
    let mariadb = hello(MARIADB_1011);
    let offer = mysql.offer(false);
    assert!(!offer.contains(Capabilities::SSL) && mysql.offer(true).contains(Capabilities::SSL));
    assert!(offer.contains(Capabilities::LONG_PASSWORD | Capabilities::DEPRECATE_EOF | OURS));
    for hidden in [
        Capabilities::MULTI_FACTOR_AUTHENTICATION,
        Capabilities::CAN_HANDLE_EXPIRED_PASSWORDS,
        Capabilities::NO_SCHEMA,
        Capabilities::CAPABILITY_EXTENSION,
    ] {
        assert!(!offer.contains(hidden), "{hidden:?}");
    }
    assert_eq!(mysql.offer_extended(), Extended::NONE);
    assert_eq!(mariadb.offer_extended(), mariadb.extended.intersection(CARRIED_EXTENDED));
    // A server that lacks something takes it from all, and none pretends to be what only some are.
    let old =
        MyHello { capabilities: mysql.capabilities.without(Capabilities::DEPRECATE_EOF), ..mysql.clone() };
    let met = mysql.clone().meet(&old);
    assert!(!met.offer(true).contains(Capabilities::DEPRECATE_EOF));
    assert_eq!(&*met.version, "8.4.3");
    let mixed = mysql.meet(&mariadb);
    assert!(mixed.offer(true).is_mariadb());
    assert_eq!(mixed.offer_extended(), Extended::NONE);
    assert_eq!(&*mixed.with_version("8.0.40").version, "8.0.40");
}

/// One client of ours that logs in to one server of ours, over memory.
#[derive(Clone)]
struct Case {
    /// As the servers behind us say.
    hello: MyHello,
    /// Of most users: what the greeting names.
    usual: ClientAuthType,
    /// Of this one.
    method: ClientAuthType,
    /// With this password; `None` for a user that does not exist.
    known: Option<&'static str>,
    password: &'static str,
    offer_tls: bool,
    require_tls: bool,
    tls: TlsMode,
    full: bool,
    key: PoolKey,
    /// Bytes that arrive at once.
    piece: usize,
    fails_to_track: bool,
}

/// What became of it.
#[derive(Debug)]
struct Outcome {
    login: Option<Login<MyClient>>,
    server: Option<ServerLogin>,
    /// What the client's side came to, when not to a login.
    error: String,
    encrypted: bool,
    /// All that the client's side wrote in clear.
    clear: Vec<u8>,
}

impl Case {
    fn new(method: ClientAuthType) -> Self {
        Self {
            hello: hello(&mysql_84()),
            usual: method,
            method,
            known: Some("hunter2"),
            password: "hunter2",
            offer_tls: false,
            require_tls: false,
            tls: TlsMode::Disabled,
            full: false,
            key: pool_key("app", b"shop", 45, Capabilities::FOUND_ROWS, Extended::NONE),
            piece: usize::MAX,
            fails_to_track: false,
        }
    }

    fn over_tls(self) -> Self {
        Self { offer_tls: true, tls: TlsMode::VerifyFull, ..self }
    }

    fn play(&self) -> Outcome {
        let options = AcceptOptions { offer_tls: self.offer_tls, require_tls: self.require_tls };
        let mut accept = MyAccept::begin(options, arrival(self.hello.clone(), self.usual, self.full));
        let mut connect = MyConnect::begin(&self.key, secret(self.password), self.tls, Purpose::Session);
        let mut outcome =
            Outcome { login: None, server: None, error: String::new(), encrypted: false, clear: Vec::new() };
        let (mut to_server, mut to_client) = (Buffer::default(), Buffer::default());
        let (mut from_server, mut from_client) = (Vec::new(), Vec::new());
        let mut refused = false;
        for _ in 0..100_000 {
            let mut moved = false;
            while outcome.login.is_none() && !refused {
                match accept.advance(&mut to_server, &mut from_server) {
                    Ok(AcceptStep::NeedBytes | AcceptStep::NeedAtMost(_)) => break,
                    Ok(AcceptStep::NeedWork(work)) => work(),
                    Ok(AcceptStep::StartTls) => {
                        assert!(to_server.is_empty());
                        outcome.encrypted = true;
                        accept.tls_started(None, None).unwrap();
                    }
                    Ok(AcceptStep::NeedCredentials(user)) => {
                        assert_eq!(user, "app");
                        let secret = self.known.map(secret);
                        let found = accept.credentials(self.method, secret, mock(), &mut from_server);
                        if let Err(fault) = found {
                            accept.write_fault(&fault, &mut from_server);
                            refused = true;
                        }
                    }
                    Ok(AcceptStep::Login(login)) => {
                        let greeting = Greeting { bytes: b"\x02\0".to_vec() };
                        accept.write_welcome(&greeting, CancelKey { id: 77, secret: 1 }, &mut from_server);
                        outcome.login = Some(login);
                    }
                    Ok(step) => panic!("{step:?}"),
                    Err(fault) => {
                        accept.write_fault(&fault, &mut from_server);
                        refused = true;
                    }
                }
            }
            if outcome.login.is_some() && !to_server.is_empty() {
                self.answer_statements(&mut to_server, &mut from_server);
            }
            let piece: Vec<u8> = from_server.drain(..from_server.len().min(self.piece)).collect();
            moved |= !piece.is_empty();
            to_client.extend(&piece);
            match connect.advance(&mut to_client, &mut from_client) {
                Ok(ConnectStep::NeedBytes | ConnectStep::NeedAtMost(_)) => {}
                Ok(ConnectStep::StartTls) => {
                    // What was written goes before it.
                    outcome.clear.extend_from_slice(&from_client);
                    to_server.extend(&std::mem::take(&mut from_client));
                    connect.tls_started(None);
                    moved = true;
                }
                Ok(ConnectStep::Done) => {
                    outcome.server = Some(connect.login().clone());
                    return outcome;
                }
                Err(error) => {
                    outcome.error = match error {
                        ConnectError::Refused { fault, bad_secret, try_again } => {
                            let (number, state) = super::super::error::code(&fault);
                            format!("{number}/{state} {} {bad_secret} {try_again}", fault.message)
                        }
                        other => other.to_string(),
                    };
                    return outcome;
                }
            }
            let piece: Vec<u8> = from_client.drain(..from_client.len().min(self.piece)).collect();
            moved |= !piece.is_empty();
            if !outcome.encrypted {
                outcome.clear.extend_from_slice(&piece);
            }
            to_server.extend(&piece);
            if !moved {
                outcome.error = "nobody says anything".to_owned();
                return outcome;
            }
        }
        panic!("no end");
    }

    /// Answers the statements of a new connection as a server does.
    fn answer_statements(&self, input: &mut Buffer, out: &mut Vec<u8>) {
        let agreed = self.hello.capabilities.intersection(WANTED);
        while let Some((header, payload)) = whole_packet(input.filled(), MAX_LOGIN_BYTES).unwrap() {
            assert_eq!((header.seq, payload[0]), (0, Command::Query as u8));
            if &payload[1..] == TRACK.as_bytes() {
                assert!(agreed.contains(Capabilities::SESSION_TRACK));
                let status = Status::AUTOCOMMIT | Status::SESSION_STATE_CHANGED;
                if self.fails_to_track {
                    codec::write_err(1193, "HY000", "Unknown system variable", 1, agreed, out);
                } else {
                    let ok = OkPacket { status, session_state: b"\x02\x011", ..OkPacket::default() };
                    ok.write(OK, 1, agreed, out);
                }
            } else {
                assert_eq!(&payload[1..], BASELINE.as_bytes());
                let mut seq = write_packet(out, 1, |body| body.push(6));
                for _ in 0..6 {
                    seq = write_packet(out, seq, |body| {
                        body.extend_from_slice(b"\x03def\0\0\0\x01a\0\x0c\x21\0\x0c\0\0\0\xfd\0\0\0\0\0");
                    });
                }
                let deprecated = agreed.contains(Capabilities::DEPRECATE_EOF);
                let end = codec::EofPacket { warnings: 0, status: Status::AUTOCOMMIT };
                if !deprecated {
                    seq = end.write(seq, agreed, out);
                }
                seq = write_packet(out, seq, |body| {
                    for value in ["utf8mb4", "utf8mb4", "", "utf8mb4_general_ci", "ANSI", "1"] {
                        put_lenenc_bytes(body, value.as_bytes());
                    }
                });
                if deprecated {
                    let ok = OkPacket { status: Status::AUTOCOMMIT, ..OkPacket::default() };
                    ok.write(EOF, seq, agreed, out);
                } else {
                    end.write(seq, agreed, out);
                }
            }
            input.consume(header.total());
        }
    }
}

/// Plays it whole and byte by byte, which must come to the same.
fn play(case: &Case) -> Outcome {
    let whole = case.play();
    let bytes = Case { piece: 1, ..case.clone() }.play();
    assert_eq!(whole.error, bytes.error);
    assert_eq!(whole.server.is_some(), bytes.server.is_some());
    whole
}

const METHODS: [ClientAuthType; 3] = [MysqlCachingSha2Password, MysqlNativePassword, MysqlClearPassword];

#[test]
fn every_method_lets_the_right_password_in_and_no_other() {
    for method in METHODS {
        for usual in METHODS {
            for full in [false, true] {
                for tls in [false, true] {
                    if method == MysqlClearPassword && !tls {
                        continue;
                    }
                    let right = Case { usual, full, ..Case::new(method) };
                    let right = if tls { right.over_tls() } else { right };
                    let outcome = play(&right);
                    assert!(outcome.login.is_some(), "{method:?} {usual:?} {full} {tls}: {}", outcome.error);
                    assert_eq!(outcome.encrypted, tls);
                    assert!(!outcome.clear.windows(7).any(|bytes| bytes == b"hunter2"));

                    let want =
                        "1045/28000 Access denied for user 'app'@'10.1.2.3' (using password: YES) true false";
                    let wrong = play(&Case { password: "hunter3", ..right.clone() });
                    assert_eq!(wrong.error, want, "{method:?} {usual:?} {full} {tls}");
                    let unknown = play(&Case { known: None, ..right.clone() });
                    assert_eq!(unknown.error, want, "{method:?} {usual:?} {full} {tls}");
                }
            }
        }
    }
}

#[test]
fn a_login_tells_both_sides_what_was_agreed() {
    let outcome = play(&Case::new(MysqlCachingSha2Password));
    let login = outcome.login.unwrap();
    assert_eq!(&*login.key.user, "app");
    assert_eq!(key::database(&login.key), "shop");
    assert_eq!(key::collation(&login.key), 45);
    assert_eq!(key::flags(&login.key), Capabilities::FOUND_ROWS);
    assert_eq!(login.compression, Compression::None);
    assert!(login.client.capabilities.contains(Capabilities::FOUND_ROWS | Capabilities::DEPRECATE_EOF));
    assert!(!login.client.encrypted);
    let server = outcome.server.unwrap();
    assert_eq!((server.connection_id, &*server.version, server.is_mariadb), (77, "8.4.3", false));
    assert_eq!(server.baseline, ["utf8mb4", "utf8mb4", "", "utf8mb4_general_ci", "ANSI", "1"]);
    assert_eq!(server.status, Status::AUTOCOMMIT);
    let greeting = write_greeting(&server);
    assert_eq!(read_greeting(&greeting).0, Status::AUTOCOMMIT);
    assert_eq!(read_greeting(&greeting).1, server.baseline);
    assert_eq!(read_greeting(&Greeting::default()), (Status::AUTOCOMMIT, Vec::new()));
}

/// A server that greets as `greeting` and lets everybody in.
fn connect_to(greeting: &[u8], key: &PoolKey, case: &Case) -> (ServerLogin, Vec<u8>) {
    let mut connect = MyConnect::begin(key, secret("hunter2"), TlsMode::Disabled, Purpose::Session);
    let (mut input, mut out) = (Buffer::default(), Vec::new());
    input.extend(greeting);
    assert!(matches!(connect.advance(&mut input, &mut out), Ok(ConnectStep::NeedBytes)));
    let response = std::mem::take(&mut out);
    input.extend(b"\x07\0\0\x02\0\0\0\x02\0\0\0");
    assert!(matches!(connect.advance(&mut input, &mut out), Ok(ConnectStep::NeedBytes)));
    let (mut asked, mut answers) = (Buffer::default(), Vec::new());
    asked.extend(&out);
    case.answer_statements(&mut asked, &mut answers);
    for cut in 0..answers.len() {
        input.extend(&answers[cut..=cut]);
        let step = connect.advance(&mut input, &mut out).unwrap();
        assert_eq!(matches!(step, ConnectStep::Done), cut + 1 == answers.len());
    }
    (connect.login().clone(), response)
}

#[test]
fn servers_of_every_kind_are_logged_in_to() {
    let key = pool_key("app", b"", 255, Capabilities::INTERACTIVE, Extended::NONE);
    let mut mariadb = Case::new(MysqlNativePassword);
    mariadb.hello = hello(MARIADB_1011);
    let (login, response) = connect_to(MARIADB_1011, &key, &mariadb);
    assert!(login.is_mariadb && login.tracks);
    assert_eq!(login.extended, Extended::STMT_BULK_OPERATIONS);
    assert_eq!(&*login.hello.version, "5.5.5-10.11.19-MariaDB-0+deb12u1");
    let response = Response::read(&response[4..]).unwrap();
    assert!(response.capabilities.is_mariadb());
    assert_eq!(response.extended, Extended::STMT_BULK_OPERATIONS);
    assert!(response.capabilities.contains(Capabilities::INTERACTIVE));
    assert!(!response.capabilities.contains(Capabilities::CONNECT_WITH_DB));
    assert_eq!((response.collation, response.database.len()), (255, 0));

    // Neither DEPRECATE_EOF nor SESSION_TRACK.
    let mut old = Case::new(MysqlNativePassword);
    old.hello = hello(MYSQL_56);
    let (login, response) = connect_to(MYSQL_56, &key, &old);
    assert!(!login.is_mariadb && !login.tracks);
    let response = Response::read(&response[4..]).unwrap();
    assert!(!response.capabilities.contains(Capabilities::DEPRECATE_EOF));
    assert!(!response.capabilities.contains(Capabilities::SESSION_TRACK));

    let mut untracked = Case::new(MysqlCachingSha2Password);
    untracked.fails_to_track = true;
    let outcome = play(&untracked);
    assert!(!outcome.server.unwrap().tracks);
}

#[test]
fn a_server_that_lacks_what_was_promised_is_refused() {
    let flags = Capabilities::QUERY_ATTRIBUTES;
    let key = pool_key("app", b"", 45, flags, Extended::NONE);
    let mut connect = MyConnect::begin(&key, secret("x"), TlsMode::Disabled, Purpose::Session);
    let mut input = Buffer::default();
    input.extend(MARIADB_1011);
    let error = connect.advance(&mut input, &mut Vec::new()).unwrap_err().to_string();
    assert!(error.ends_with("promised: QUERY_ATTRIBUTES 0x0"), "{error}");
}

#[test]
fn tls_goes_by_the_targets_mode() {
    for (tls, offered, want) in [
        (TlsMode::Disabled, true, "plain"),
        (TlsMode::Preferred, false, "plain"),
        (TlsMode::Preferred, true, "encrypted"),
        (TlsMode::Required, true, "encrypted"),
        (TlsMode::VerifyCa, true, "encrypted"),
        (TlsMode::VerifyFull, true, "encrypted"),
        (TlsMode::Required, false, "the server does not offer TLS, which this target requires"),
        (TlsMode::VerifyCa, false, "the server does not offer TLS, which this target requires"),
        (TlsMode::VerifyFull, false, "the server does not offer TLS, which this target requires"),
    ] {
        let outcome = play(&Case { tls, offer_tls: offered, ..Case::new(MysqlCachingSha2Password) });
        let got = match (outcome.server.is_some(), outcome.encrypted) {
            (true, true) => "encrypted",
            (true, false) => "plain",
            (false, _) => &outcome.error,
        };
        assert_eq!(got, want, "{tls:?} {offered}");
        if tls != TlsMode::Disabled {
            assert!(!outcome.clear.windows(3).any(|bytes| bytes == b"app") || !offered, "the user in clear");
        }
    }
    let required = Case { require_tls: true, offer_tls: true, ..Case::new(MysqlCachingSha2Password) };
    assert_eq!(play(&required).error, "3159/HY000 This proxy requires TLS connections. false false");
    let clear = Case::new(MysqlClearPassword);
    assert_eq!(play(&clear).error, "3159/HY000 A cleartext password needs TLS. false false");
}

#[test]
fn a_server_without_tls_is_never_given_the_password_in_clear() {
    let mut connect = MyConnect::begin(
        &pool_key("app", b"", 45, Capabilities::NONE, Extended::NONE),
        secret("hunter2"),
        TlsMode::Disabled,
        Purpose::Session,
    );
    let (mut input, mut out) = (Buffer::default(), Vec::new());
    input.extend(MYSQL_56);
    connect.advance(&mut input, &mut out).unwrap();
    input.extend(b"\x17\0\0\x02\xfemysql_clear_password\0x");
    let error = connect.advance(&mut input, &mut out).unwrap_err().to_string();
    assert!(error.contains("without TLS"), "{error}");
    assert!(!out.windows(7).any(|bytes| bytes == b"hunter2"));
}

/// A client that sends `bytes` after the greeting, and what it is told.
fn send(options: AcceptOptions, bytes: &[u8]) -> String {
    let mut accept = MyAccept::begin(options, arrival(hello(&mysql_84()), MysqlNativePassword, false));
    let (mut input, mut out) = (Buffer::default(), Vec::new());
    let first = accept.advance(&mut input, &mut out).unwrap();
    let at_most = matches!(first, AcceptStep::NeedAtMost(HEADER_BYTES));
    assert_eq!(at_most, options.offer_tls, "{first:?}");
    let (header, greeting) = whole_packet(&out, 1000).unwrap().unwrap();
    assert_eq!((header.seq, Handshake::read(greeting).unwrap().connection_id), (0, 77));
    input.extend(bytes);
    out.clear();
    match accept.advance(&mut input, &mut out) {
        Ok(step) => format!("{step:?}"),
        Err(fault) => {
            accept.write_fault(&fault, &mut out);
            let (header, payload) = whole_packet(&out, 1000).unwrap().unwrap();
            let error = ErrPacket::read(payload).unwrap();
            format!("{} {} {} {}", header.seq, error.code, error.sqlstate, error.message)
        }
    }
}

#[test]
fn what_is_no_response_is_refused() {
    const PLAIN: AcceptOptions = AcceptOptions { offer_tls: false, require_tls: false };
    const TLS: AcceptOptions = AcceptOptions { offer_tls: true, require_tls: false };
    let bad = "2 1043 08S01 Bad handshake";
    let packet = |seq: u8, payload: &[u8]| {
        let mut out = Vec::new();
        codec::write_payload(&mut out, seq, payload);
        out
    };
    let mut ssl = (Capabilities::SSL | Capabilities::PROTOCOL_41).0.to_le_bytes().to_vec();
    ssl.resize(SSL_REQUEST_BYTES, 0);
    assert_eq!(send(TLS, &packet(1, &ssl)), "StartTls");
    assert_eq!(send(PLAIN, RESPONSE_41), "NeedCredentials(\"pam\")");
    // More behind it, not offered, and of another length.
    assert_eq!(send(TLS, &[packet(1, &ssl), b"x".to_vec()].concat()), bad);
    assert_eq!(send(PLAIN, &packet(1, &ssl)), bad);
    assert_eq!(send(TLS, &packet(1, &[&ssl[..], b"app\0"].concat())), bad);
    assert_eq!(send(PLAIN, &packet(1, b"")), bad);
    assert_eq!(send(PLAIN, &packet(1, &[0; 31])), bad);
    assert_eq!(send(PLAIN, b"\xff\xff\xff\x01"), bad);
    assert_eq!(send(PLAIN, b"\x01\0\0\x02x"), "3 1156 08S01 Got packets out of order");
    assert_eq!(send(PLAIN, b"GET / HTTP/1.1\r\n"), "33 1156 08S01 Got packets out of order");
    for cut in 0..RESPONSE_41.len() {
        assert_eq!(send(PLAIN, &RESPONSE_41[..cut]), "NeedBytes");
    }
    // Nothing beyond the first packet is read as long as it may be a request for TLS.
    assert_eq!(send(TLS, &RESPONSE_41[..4]), "NeedAtMost(84)");
    assert_eq!(send(TLS, &RESPONSE_41[..3]), "NeedAtMost(1)");
    assert_eq!(send(TLS, &RESPONSE_41[..84]), "NeedAtMost(4)");
}

#[test]
fn a_client_that_is_refused_before_its_greeting_gets_no_state() {
    let options = AcceptOptions { offer_tls: false, require_tls: false };
    let mut accept = MyAccept::begin(options, arrival(hello(&mysql_84()), MysqlNativePassword, false));
    let mut out = Vec::new();
    accept.write_fault(&Fault::fatal(FaultKind::TooManyClients, "no"), &mut out);
    assert_eq!(out, b"\x05\0\0\0\xff\x10\x04no");
}

#[test]
fn what_no_server_says_ends_the_login() {
    let key = pool_key("app", b"", 45, Capabilities::NONE, Extended::NONE);
    let switch_then = |payload: &[u8]| {
        let mut bytes = MYSQL_56.to_vec();
        codec::write_payload(&mut bytes, 2, payload);
        bytes
    };
    for (bytes, want) in [
        (b"\x01\0\0\0\x09".to_vec(), "server login failed: malformed greeting"),
        (b"\0\0\0\0".to_vec(), "server login failed: malformed greeting"),
        (b"\x01\0\0\x01\x0a".to_vec(), "server login failed: packets out of order"),
        (b"\xff\xff\xff\0".to_vec(), "server login failed: message '\\0' has invalid length 16777215"),
        (
            b"\x17\0\0\0\xff\x10\x04Too many connections".to_vec(),
            "server refused the login: Too many connections",
        ),
        (b"\x02\0\0\0\xff\x10".to_vec(), "server login failed: malformed ERR message"),
        (switch_then(b"\xff\x19\x04#42000Unknown database"), "server refused the login: Unknown database"),
        (switch_then(b"\x07"), "server login failed: malformed authentication packet"),
        (switch_then(b""), "server login failed: malformed authentication packet"),
        (switch_then(b"\0"), "server login failed: malformed OK message"),
        (switch_then(b"\x01\x03"), "server login failed: authentication packet at the wrong time"),
        (
            switch_then(b"\xfe"),
            "server login failed: the server asks for the authentication of servers before 4.1, which is not \
             supported",
        ),
    ] {
        for cut in 0..=bytes.len() {
            let mut connect = MyConnect::begin(&key, secret("x"), TlsMode::Disabled, Purpose::Session);
            let (mut input, mut out) = (Buffer::default(), Vec::new());
            let mut error = String::new();
            for piece in [&bytes[..cut], &bytes[cut..]] {
                input.extend(piece);
                if let Err(refused) = connect.advance(&mut input, &mut out) {
                    error = refused.to_string();
                    break;
                }
            }
            assert_eq!(error, want, "cut at {cut} of {}", bytes.escape_ascii());
        }
    }
    // Sent in clear behind a greeting that promises TLS.
    let mut connect = MyConnect::begin(&key, secret("x"), TlsMode::Required, Purpose::Session);
    let mut input = Buffer::default();
    input.extend(&[MARIADB_1011, b"x"].concat());
    let error = connect.advance(&mut input, &mut Vec::new()).unwrap_err().to_string();
    assert_eq!(error, "server login failed: unencrypted data behind the greeting");
}

#[test]
fn errors_of_servers_say_whether_to_try_again() {
    for (code, bad_secret, try_again) in [
        (1045, true, false),
        (1698, true, false),
        (1040, false, true),
        (1203, false, true),
        (1049, false, false),
    ] {
        let error = ErrPacket { code, sqlstate: "HY000".into(), message: "no".into() };
        let ConnectError::Refused { fault, bad_secret: bad, try_again: again } = refused(&error) else {
            panic!("not refused")
        };
        assert_eq!((bad, again), (bad_secret, try_again), "{code}");
        assert_eq!(super::super::error::code(&fault), (code, "HY000"));
    }
}

#[test]
fn a_cancel_logs_in_and_does_nothing_else() {
    let key = pool_key("app", b"", 45, Capabilities::NONE, Extended::NONE);
    let mut connect = MyConnect::begin(&key, secret("hunter2"), TlsMode::Disabled, Purpose::Cancel);
    let (mut input, mut out) = (Buffer::default(), Vec::new());
    input.extend(MARIADB_1011);
    connect.advance(&mut input, &mut out).unwrap();
    out.clear();
    input.extend(b"\x07\0\0\x02\0\0\0\x02\0\0\0");
    assert!(matches!(connect.advance(&mut input, &mut out), Ok(ConnectStep::Done)));
    assert!(out.is_empty());
    write_cancel(5, &mut out);
    assert_eq!(out, b"\x0d\0\0\0\x03KILL QUERY 5\x01\0\0\0\x01");
    assert_eq!(cancel_error(b"\x07\0\0\x01\0\0\0\x02\0\0\0"), None);
    assert_eq!(cancel_error(b"\x0b\0\0\x01\xff\x46\x04#HY000no"), None, "it is gone");
    assert_eq!(cancel_error(b"\x0b\0\0\x01\xff\x47\x04#HY000no"), Some("no".to_owned()), "not the owner");
    assert_eq!(cancel_error(b""), None);
}

#[test]
fn a_change_of_user_is_a_login_with_the_nonce_told_before() {
    let client = MyClient {
        capabilities: Capabilities::PROTOCOL_41
            | Capabilities::SECURE_CONNECTION
            | Capabilities::PLUGIN_AUTH
            | Capabilities::CONNECT_ATTRS,
        extended: Extended::NONE,
        compression: Compression::None,
        encrypted: false,
        nonce: Nonce(*b"01234567890123456789"),
        id: 77,
    };
    let arrival = arrival(hello(&mysql_84()), MysqlNativePassword, false);
    let request = b"\x11other\0\x03abcshop\0\xff\0mysql_native_password\0\x12\x0cprogram_name\x04tool";
    let (mut accept, step) = MyAccept::change_user(&arrival, client, 45, request, 0).unwrap();
    assert!(matches!(step, AcceptStep::NeedCredentials(user) if user == "other"));
    let mut out = Vec::new();
    accept.credentials(MysqlNativePassword, Some(secret("hunter2")), mock(), &mut out).unwrap();
    let (header, payload) = whole_packet(&out, 1000).unwrap().unwrap();
    assert_eq!(header.seq, 1);
    let nonce = payload.strip_prefix(b"\xfemysql_native_password\0").unwrap();
    assert_eq!(nonce, b"01234567890123456789\0");
    let mut input = Buffer::default();
    let mut answer = Vec::new();
    codec::write_payload(&mut answer, 2, &auth::native_answer(b"hunter2", &nonce[..20]));
    input.extend(&answer);
    out.clear();
    let Ok(AcceptStep::Login(login)) = accept.advance(&mut input, &mut out) else { panic!("no login") };
    assert_eq!((&*login.key.user, key::database(&login.key), &*login.application), ("other", "shop", "tool"));
    assert_eq!(key::collation(&login.key), 255);
    accept.write_welcome(&Greeting::default(), CancelKey { id: 77, secret: 1 }, &mut out);
    assert_eq!(out, b"\x07\0\0\x03\0\0\0\x02\0\0\0");
    // One that follows its session is told where it has landed.
    let follows = MyClient { capabilities: client.capabilities | Capabilities::SESSION_TRACK, ..client };
    let (mut accept, _) = MyAccept::change_user(&arrival, follows, 45, request, 0).unwrap();
    out.clear();
    accept.credentials(MysqlNativePassword, Some(secret("hunter2")), mock(), &mut out).unwrap();
    input.extend(&answer);
    assert!(matches!(accept.advance(&mut input, &mut out), Ok(AcceptStep::Login(_))));
    out.clear();
    accept.write_welcome(&Greeting::default(), CancelKey { id: 77, secret: 1 }, &mut out);
    assert_eq!(out, b"\x10\0\0\x03\0\0\0\x02\x40\0\0\0\x07\x01\x05\x04shop");

    let read = |payload: &[u8]| MyAccept::change_user(&arrival, client, 45, payload, 0).is_ok();
    for cut in 0..request.len() {
        // What old clients send ends behind the answer or behind the database; a method needs no end.
        let fine = matches!(cut, 11 | 16) || (18..=40).contains(&cut);
        assert_eq!(read(&request[..cut]), fine, "cut at {cut}");
    }
}

#[test]
fn compression_is_what_the_client_asks_for() {
    let accept = |asked: Capabilities| {
        let options = AcceptOptions { offer_tls: false, require_tls: false };
        let mut accept = MyAccept::begin(options, arrival(hello(MARIADB_1011), MysqlNativePassword, false));
        accept.greet(&mut Vec::new()).unwrap();
        let response =
            Response { capabilities: asked, zstd_level: 9, user: b"app".to_vec(), ..Response::default() };
        accept.login(response).compression
    };
    let (zlib, zstd) = (Capabilities::COMPRESS, Capabilities::ZSTD_COMPRESSION_ALGORITHM);
    assert_eq!(accept(Capabilities::PROTOCOL_41), Compression::None);
    assert_eq!(accept(zlib), Compression::Zlib);
    assert_eq!(accept(zstd), Compression::Zstd(9));
    assert_eq!(accept(zlib | zstd), Compression::Zlib);
}
