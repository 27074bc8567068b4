//! Our login to a MySQL server, driven by any bytes of that server; TLS is played here.
//!
//! Input: options, seed of the cuts, what the server sends.
//!
//! Properties: no panic; the same bytes in any cut give the same result and the same output; the password never goes
//! out in clear over a connection without TLS.

use pinion::{
    buffer::Buffer,
    config::TlsMode,
    protocol::{
        Connect, ConnectStep, Purpose,
        mysql::{
            codec::{Capabilities, Extended, HEADER_BYTES},
            handshake::MyConnect,
            key::pool_key,
        },
    },
};

use super::{
    mysql_accept::{greeting, packet, packets},
    wire::{Cut, PASSWORD, USER, secret, split},
};

const TLS: u8 = 1;
const REQUIRED: u8 = 2;
const CANCEL: u8 = 4;
const DATABASE: u8 = 8;

/// The body.
pub fn run(data: &[u8]) {
    let ([options, seed], bytes) = split(data);
    let whole = play(options, bytes, Cut::Whole);
    for cut in [Cut::Bytes, Cut::Random(seed.into())] {
        assert_eq!(whole, play(options, bytes, cut), "cut {cut:?}");
    }
}

fn play(options: u8, bytes: &[u8], cut: Cut) -> Vec<String> {
    let database: &[u8] = if options & DATABASE != 0 { b"shop" } else { b"" };
    let key = pool_key(USER, database, 45, Capabilities::FOUND_ROWS, Extended::NONE);
    let mode = match options & (TLS | REQUIRED) {
        0 => TlsMode::Disabled,
        TLS => TlsMode::Preferred,
        _ => TlsMode::Required,
    };
    let purpose = if options & CANCEL != 0 { Purpose::Cancel } else { Purpose::Session };
    let mut connect = MyConnect::begin(&key, secret(), mode, purpose);
    let (mut input, mut out) = (Buffer::default(), Vec::new());
    let mut trace = Vec::new();
    let mut encrypted = false;
    // A read that goes on behind a greeting is an attack where TLS follows, so there the stream is always cut.
    let first = match bytes.first_chunk() {
        Some(&[a, b, c, _]) => HEADER_BYTES + u32::from_le_bytes([a, b, c, 0]) as usize,
        None => bytes.len(),
    };
    let (first, rest) = bytes.split_at(first.min(bytes.len()));
    for piece in cut.pieces(first).into_iter().chain(cut.pieces(rest)) {
        input.extend(piece);
        loop {
            let step = connect.advance(&mut input, &mut out);
            for (seq, payload) in packets(&out) {
                let told = payload.windows(PASSWORD.len()).any(|bytes| bytes == PASSWORD.as_bytes());
                assert!(!told || encrypted, "the password in clear");
                // What is encrypted by RSA is never twice the same.
                let shown = if payload.len() == 256 { b"" } else { payload };
                trace.push(format!("{seq} {}", shown.escape_ascii()));
            }
            out.clear();
            match step {
                Ok(ConnectStep::NeedBytes | ConnectStep::NeedAtMost(_)) => break,
                Ok(ConnectStep::StartTls) => {
                    assert!(input.is_empty(), "bytes in clear would be read as encrypted");
                    encrypted = true;
                    connect.tls_started(None);
                }
                Ok(ConnectStep::Done) => {
                    let login = connect.login();
                    let columns = login.baseline.len();
                    assert!(columns == 6 || options & CANCEL != 0, "{columns} columns");
                    trace.push(format!("{login:?}"));
                    return trace;
                }
                Err(error) => {
                    trace.push(format!("{error:?}"));
                    return trace;
                }
            }
        }
    }
    trace
}

/// The committed corpus.
pub fn seeds() -> Vec<(String, Vec<u8>)> {
    let (mysql, mariadb) = (Capabilities(0xdfff_ffff), Capabilities(0x81ff_fffe));
    let sha2 = greeting(mysql, Extended::NONE, b"caching_sha2_password");
    let native = greeting(mariadb, Extended(0x1d), b"mysql_native_password");
    let ok = b"\0\0\0\x02\0\0\0".as_slice();
    let column = packet(2, b"\x03def\0\0\0\x01a\0\x0c\x21\0\x0c\0\0\0\xfd\0\0\0\0\0");
    let columns: Vec<u8> = (2..8)
        .flat_map(|seq| {
            let mut column = column.clone();
            column[3] = seq;
            column
        })
        .collect();
    let baseline = [
        packet(1, b"\x06"),
        columns,
        packet(8, b"\x07utf8mb4\x07utf8mb4\xfb\x09utf8mb4_x\0\x011"),
        packet(9, b"\xfe\0\0\x02\0\0\0"),
    ]
    .concat();
    let set_up = [packet(1, b"\0\0\0\x02\x40\0\0\0\x03\x02\x011"), baseline.clone()].concat();
    let seed = |name: &str, options: u8, parts: &[&[u8]]| {
        (name.to_owned(), [&[options, 5], parts.concat().as_slice()].concat())
    };
    vec![
        seed("empty", 0, &[]),
        seed("native", DATABASE, &[&native, &packet(2, ok), &set_up]),
        seed("sha2_fast", 0, &[&sha2, &packet(2, b"\x01\x03"), &packet(3, ok), &set_up]),
        seed("sha2_tls", TLS, &[&sha2, &packet(3, b"\x01\x04"), &packet(5, ok), &set_up]),
        seed("sha2_key_malformed", 0, &[&sha2, &packet(2, b"\x01\x04"), &packet(4, b"\x01no key")]),
        seed("switch_ed25519", 0, &[&native, &packet(2, &[b"\xfeclient_ed25519\0", &[7; 32][..]].concat())]),
        seed("switch_clear", 0, &[&native, &packet(2, b"\xfemysql_clear_password\0")]),
        seed("switch_clear_tls", TLS, &[&native, &packet(3, b"\xfemysql_clear_password\0")]),
        seed("switch_unknown", 0, &[&native, &packet(2, b"\xfedialog\0x")]),
        seed("switch_old", 0, &[&native, &packet(2, b"\xfe")]),
        seed("refused", 0, &[&native, &packet(2, b"\xff\x15\x04#28000Access denied")]),
        seed("full", 0, &[&packet(0, b"\xff\x10\x04Too many connections")]),
        seed("tls_not_offered", REQUIRED, &[&greeting(Capabilities(0x81ff_f7fe), Extended::NONE, b"x")]),
        seed("no_tracking", 0, &[&native, &packet(2, ok), &packet(1, b"\xff\xa9\x04#HY000no"), &baseline]),
        seed(
            "baseline_refused",
            0,
            &[&native, &packet(2, ok), &packet(1, ok), &packet(1, b"\xff\xa9\x04#HY000no")],
        ),
        seed("cancel", CANCEL, &[&native, &packet(2, ok)]),
        seed(
            "old_server",
            0,
            &[&greeting(Capabilities(0x0000_f7ff), Extended::NONE, b""), &packet(2, ok), &baseline],
        ),
        seed("before_41", 0, &[&packet(0, b"\x0a4.0\0\x01\0\0\0abcdefgh\0\x2c\x20")]),
        seed("version_9", 0, &[&packet(0, b"\x093.2\0\x01\0\0\0abcdefgh\0")]),
        seed("greeting_cut", 0, &[&packet(0, &native[4..40])]),
        seed("too_long", 0, &[b"\xff\xff\xff\0"]),
    ]
}
