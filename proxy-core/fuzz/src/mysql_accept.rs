//! A MySQL client's login, driven by any bytes; TLS and the look-up of secrets are played here.
//!
//! Input: options, seed of the cuts, what the client sends.
//!
//! Properties: no panic; the same bytes in any cut take the same steps; nothing is read as encrypted that came in
//! clear; nobody logs in without knowing the password, or in clear where TLS is required; a fault is one whole packet.

use pinion::{
    buffer::Buffer,
    config::ClientAuthType,
    protocol::{
        Accept, AcceptOptions, AcceptStep, Arrival, CancelKey,
        mysql::{
            codec::{Capabilities, ErrPacket, Extended, HEADER_BYTES, write_payload},
            handshake::{Handshake, MyAccept, MyHello},
        },
    },
};

use super::wire::{Cut, PASSWORD, USER, mock, secret, split};

const OFFER_TLS: u8 = 1;
const REQUIRE_TLS: u8 = 2;
const NATIVE: u8 = 4;
const CLEAR: u8 = 8;
const KNOWN: u8 = 16;
const FULL: u8 = 32;
const MARIADB: u8 = 64;

/// The body.
pub fn run(data: &[u8]) {
    let ([options, seed], bytes) = split(data);
    let whole = play(options, bytes, Cut::Whole);
    for cut in [Cut::Bytes, Cut::Random(seed.into())] {
        assert_eq!(whole, play(options, bytes, cut), "cut {cut:?}");
    }
}

/// Whole packets: number and payload of each.
pub fn packets(mut bytes: &[u8]) -> Vec<(u8, &[u8])> {
    let mut found = Vec::new();
    while let Some(&[a, b, c, seq]) = bytes.first_chunk() {
        let len = u32::from_le_bytes([a, b, c, 0]) as usize;
        found.push((seq, &bytes[HEADER_BYTES..HEADER_BYTES + len]));
        bytes = &bytes[HEADER_BYTES + len..];
    }
    assert!(bytes.is_empty(), "half a packet");
    found
}

/// Everything that could be seen of one login, without what is random.
fn play(options: u8, bytes: &[u8], cut: Cut) -> Vec<String> {
    let (offer_tls, require_tls) = (options & OFFER_TLS != 0, options & REQUIRE_TLS != 0);
    let method = match options & (NATIVE | CLEAR) {
        0 => ClientAuthType::MysqlCachingSha2Password,
        NATIVE => ClientAuthType::MysqlNativePassword,
        _ => ClientAuthType::MysqlClearPassword,
    };
    let capabilities = Capabilities(if options & MARIADB != 0 { 0x81ff_f7fe } else { 0xdfff_ffff });
    let hello = MyHello { version: "8".into(), capabilities, extended: Extended(0x1d), collation: 45 };
    let arrival = Arrival {
        hello,
        key: CancelKey { id: 7, secret: 8 },
        peer: std::net::Ipv4Addr::LOCALHOST.into(),
        method,
        force_full_authentication: options & FULL != 0,
    };
    let mut accept = MyAccept::begin(AcceptOptions { offer_tls, require_tls }, arrival);
    let (mut input, mut out) = (Buffer::default(), Vec::new());
    let mut trace = Vec::new();
    let mut encrypted = false;
    let mut rest = bytes;
    loop {
        let step = accept.advance(&mut input, &mut out);
        trace.extend(packets(&out).iter().map(|(seq, payload)| format!("{seq} {}", payload.len())));
        out.clear();
        let want = match step {
            Ok(AcceptStep::NeedBytes) => usize::MAX,
            Ok(AcceptStep::NeedAtMost(n)) => n,
            Ok(AcceptStep::NeedWork(work)) => {
                work();
                continue;
            }
            Ok(AcceptStep::StartTls) => {
                assert!(input.is_empty() && offer_tls, "bytes in clear would be read as encrypted");
                encrypted = true;
                accept.tls_started(None, None).expect("nothing is asked of TLS");
                trace.push("tls".to_owned());
                continue;
            }
            Ok(AcceptStep::NeedCredentials(user)) => {
                trace.push(format!("credentials of {user:?}"));
                let secret = (options & KNOWN != 0 && user == USER).then(secret);
                let Err(fault) = accept.credentials(method, secret, mock(), &mut out) else { continue };
                trace.push(format!("{fault:?}"));
                return trace;
            }
            Ok(step) => {
                if matches!(step, AcceptStep::Login(_)) {
                    assert!(options & KNOWN != 0, "an unknown user logged in");
                    assert!(encrypted || !require_tls, "in clear");
                    let told = bytes.windows(PASSWORD.len()).any(|bytes| bytes == PASSWORD.as_bytes());
                    assert!(told && encrypted, "an answer out of nothing");
                }
                trace.push(format!("{step:?}"));
                return trace;
            }
            Err(fault) => {
                accept.write_fault(&fault, &mut out);
                let [(_, payload)] = packets(&out)[..] else { panic!("one packet") };
                trace.push(format!("{:?}", ErrPacket::read(payload).expect("an ERR packet")));
                return trace;
            }
        };
        // As many as may be read, in pieces that follow from the cut.
        let piece = match cut.pieces(rest).first() {
            Some(piece) => piece.len().min(want),
            None => 0,
        };
        if piece == 0 {
            return trace;
        }
        let (now, later) = rest.split_at(piece);
        input.extend(now);
        rest = later;
    }
}

/// One packet.
pub fn packet(seq: u8, payload: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    write_payload(&mut out, seq, payload);
    out
}

/// A response up to the user.
fn start(capabilities: Capabilities) -> Vec<u8> {
    [&capabilities.0.to_le_bytes()[..], &[0, 0, 0, 1, 45], &[0; 23]].concat()
}

/// The committed corpus.
pub fn seeds() -> Vec<(String, Vec<u8>)> {
    let modern = Capabilities::PROTOCOL_41
        | Capabilities::SECURE_CONNECTION
        | Capabilities::PLUGIN_AUTH
        | Capabilities::PLUGIN_AUTH_LENENC
        | Capabilities::CONNECT_WITH_DB
        | Capabilities::CONNECT_ATTRS;
    let ssl = packet(1, &start(modern | Capabilities::SSL));
    let response = |seq: u8, flags: Capabilities, answer: &[u8], plugin: &[u8]| {
        let len = [u8::try_from(answer.len()).expect("short")];
        let attributes = b"\x12\x0cprogram_name\x04tool";
        let parts: [&[u8]; 7] =
            [&start(flags), b"app\0", &len, answer, b"shop\0", &[plugin, b"\0"].concat(), attributes];
        packet(seq, &parts.concat())
    };
    let clear = [PASSWORD.as_bytes(), b"\0"].concat();
    let known = OFFER_TLS | KNOWN;
    let seed = |name: &str, options: u8, parts: &[&[u8]]| {
        (name.to_owned(), [&[options, 3], parts.concat().as_slice()].concat())
    };
    let tls = modern | Capabilities::SSL;
    let sha2 = b"caching_sha2_password";
    vec![
        seed("empty", known, &[]),
        seed("native", known | NATIVE, &[&response(1, modern, &[5; 20], b"mysql_native_password")]),
        seed("sha2", known, &[&response(1, modern, &[5; 32], sha2)]),
        seed("no_password", known, &[&response(1, modern, b"", sha2)]),
        seed(
            "switch",
            known,
            &[&response(1, modern, &[5; 20], b"mysql_native_password"), &packet(3, &[5; 32])],
        ),
        seed("full_tls", known | FULL, &[&ssl, &response(2, tls, &[5; 32], sha2), &packet(4, &clear)]),
        seed("full_tls_wrong", known | FULL, &[&ssl, &response(2, tls, &[5; 32], sha2), &packet(4, b"x\0")]),
        seed(
            "full_tls_unknown",
            OFFER_TLS | FULL,
            &[&ssl, &response(2, tls, &[5; 32], sha2), &packet(4, &clear)],
        ),
        seed(
            "full_rsa",
            known | FULL,
            &[&response(1, modern, &[5; 32], sha2), &packet(3, &[2]), &packet(5, &[9; 256])],
        ),
        seed("full_in_clear", known | FULL, &[&response(1, modern, &[5; 32], sha2), &packet(3, &clear)]),
        seed("clear_tls", known | CLEAR, &[&ssl, &response(2, tls, &clear, b"mysql_clear_password")]),
        seed("clear_in_clear", known | CLEAR, &[&response(1, modern, &clear, b"mysql_clear_password")]),
        seed("tls_required", known | REQUIRE_TLS, &[&response(1, modern, &[5; 32], sha2)]),
        seed("tls_not_offered", KNOWN, &[&ssl, &response(2, tls, &[5; 32], sha2)]),
        seed("mariadb", known | MARIADB, &[&response(1, modern, &[5; 20], b"mysql_native_password")]),
        seed(
            "old_client",
            known,
            &[&packet(1, &[&start(Capabilities::PROTOCOL_41)[..], b"app\0abc\0"].concat())],
        ),
        seed("before_41", known, &[&packet(1, b"\x85\xa6\0\0\0app\0abc")]),
        seed("out_of_order", known, &[&response(2, modern, &[5; 32], sha2)]),
        seed("http", known, &[b"GET / HTTP/1.1\r\n\r\n"]),
        seed("too_long", known, &[b"\xff\xff\xff\x01"]),
        seed(
            "attributes_malformed",
            known,
            &[&packet(1, &[&start(modern)[..], b"app\0\0\0\0\x09\x01a"].concat())],
        ),
    ]
}

/// A greeting of a server.
pub fn greeting(capabilities: Capabilities, extended: Extended, plugin: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    Handshake {
        version: b"8.4.3",
        connection_id: 9,
        nonce: b"abcdefghijklmnopqrst".to_vec(),
        capabilities,
        extended,
        collation: 255,
        status: pinion::protocol::mysql::codec::Status::AUTOCOMMIT,
        plugin,
    }
    .write(&mut out);
    out
}
