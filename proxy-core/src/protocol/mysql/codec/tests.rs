#![allow(clippy::unwrap_used)]

use super::*;

const MODERN: Capabilities =
    Capabilities(Capabilities::PROTOCOL_41.0 | Capabilities::TRANSACTIONS.0 | Capabilities::SESSION_TRACK.0);

#[test]
fn headers_are_read_at_every_cut() {
    let whole = b"\x05\0\0\x07hello";
    for cut in 0..HEADER_BYTES {
        assert_eq!(Header::read(&whole[..cut]), None);
    }
    for cut in HEADER_BYTES..whole.len() {
        assert_eq!(Header::read(&whole[..cut]), Some(Header { len: 5, seq: 7 }));
        assert_eq!(whole_packet(&whole[..cut], 5), Ok(None));
    }
    assert_eq!(whole_packet(whole, 5).unwrap().unwrap().1, b"hello");
    assert!(whole_packet(&whole[..4], 4).is_err());
    assert!(Header::read(b"\xff\xff\xff\0").unwrap().continues());
}

#[test]
fn numbers_are_written_in_the_shortest_form_and_read_at_every_cut() {
    for (value, want) in [
        (0, b"\0".as_slice()),
        (250, b"\xfa"),
        (251, b"\xfc\xfb\0"),
        (0xffff, b"\xfc\xff\xff"),
        (0x1_0000, b"\xfd\0\0\x01"),
        (0xff_ffff, b"\xfd\xff\xff\xff"),
        (0x100_0000, b"\xfe\0\0\0\x01\0\0\0\0"),
        (u64::MAX, b"\xfe\xff\xff\xff\xff\xff\xff\xff\xff"),
    ] {
        let mut out = Vec::new();
        put_lenenc(&mut out, value);
        assert_eq!(out, want, "{value}");
        for cut in 0..out.len() {
            let mut reader = Reader::new(&out[..cut]);
            assert_eq!(reader.lenenc(), None, "{value} cut at {cut}");
            assert_eq!(reader.rest(), &out[..cut], "nothing is taken");
        }
        assert_eq!(Reader::new(&out).lenenc(), Some(value));
    }
    // NULL, and what begins an ERR packet.
    for bad in [b"\xfb\0\0".as_slice(), b"\xff\0\0", b""] {
        assert_eq!(Reader::new(bad).lenenc(), None);
    }
}

#[test]
fn readers_stay_where_they_are_when_there_is_too_little() {
    let mut reader = Reader::new(b"\x02\x01ab\0c");
    assert_eq!(reader.u64(), None);
    assert_eq!(reader.u24(), Some(0x61_0102));
    assert_eq!(reader.null_bytes(), Some(b"b".as_slice()));
    assert_eq!(reader.null_bytes(), None);
    assert_eq!(reader.u16(), None);
    assert_eq!(reader.take_rest(), b"c");
    assert!(reader.is_empty());
    // Lengths that no memory holds.
    assert_eq!(Reader::new(b"\xfe\xff\xff\xff\xff\xff\xff\xff\xffabc").lenenc_bytes(), None);
    let mut row = Reader::new(b"\xfb\x011\0");
    let columns = [row.column(), row.column(), row.column(), row.column()];
    assert_eq!(columns, [Some(None), Some(Some(b"1".as_slice())), Some(Some(b"".as_slice())), None]);
}

#[test]
fn long_payloads_go_in_several_packets() {
    for (len, packets) in [(0, 1), (1, 1), (MAX_PAYLOAD - 1, 1), (MAX_PAYLOAD, 2), (MAX_PAYLOAD + 1, 2)] {
        let mut out = b"before".to_vec();
        let next = write_packet(&mut out, 254, |body| body.resize(body.len() + len, b'x'));
        assert_eq!(next, 254_u8.wrapping_add(packets));
        let mut rest = out.strip_prefix(b"before").unwrap();
        let (mut seq, mut total) = (254_u8, 0);
        loop {
            let (header, body) = whole_packet(rest, MAX_PAYLOAD).unwrap().unwrap();
            assert_eq!(header.seq, seq);
            seq = seq.wrapping_add(1);
            total += body.len();
            rest = &rest[header.total()..];
            if !header.continues() {
                break;
            }
        }
        assert_eq!((rest.len(), total, seq), (0, len, next));
    }
    let mut out = Vec::new();
    assert_eq!(write_payload(&mut out, 3, b"ab"), 4);
    assert_eq!(out, b"\x02\0\0\x03ab");
    put_null_bytes(&mut out, b"a\0hidden");
    assert!(out.ends_with(b"a\0"));
}

/// One line of what an OK packet says.
fn ok(payload: &[u8], agreed: Capabilities) -> String {
    match OkPacket::read(payload, agreed) {
        Err(error) => error.to_string(),
        Ok(ok) => {
            let changes: Vec<_> =
                session_state(ok.session_state).map(|change| change.map_or("bad".into(), show)).collect();
            format!(
                "{} {} {:?} {} {:?} {}",
                ok.affected_rows,
                ok.last_insert_id,
                ok.status,
                ok.warnings,
                String::from_utf8_lossy(ok.info),
                changes.join(" ")
            )
        }
    }
}

fn show(change: SessionChange<'_>) -> String {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    match change {
        SessionChange::Variable { name, value } => format!("{}={}", text(name), text(value)),
        SessionChange::Schema(name) => format!("schema {}", text(name)),
        SessionChange::State(state) => format!("state {}", text(state)),
        SessionChange::Gtids(gtids) => format!("gtids {}", text(gtids)),
        SessionChange::Characteristics(statements) => format!("[{}]", text(statements)),
        SessionChange::Transaction(state) => format!("tx {}", text(state)),
        SessionChange::Other { kind, data } => format!("{kind}:{}", data.escape_ascii()),
    }
}

#[test]
fn ok_packets_say_what_they_say_by_what_was_agreed() {
    let plain = Capabilities::PROTOCOL_41;
    for (payload, agreed, want) in [
        // After COM_QUIT's like; the shortest there is.
        (b"\0\0\0\x02\0\0\0".as_slice(), MODERN, "0 0 AUTOCOMMIT 0 \"\" "),
        (b"\0\0\0\x02\0\0\0", plain, "0 0 AUTOCOMMIT 0 \"\" "),
        (b"\0\x03\xfc\x10\x27\x03\0\x01\0", plain, "3 10000 IN_TRANS|AUTOCOMMIT 1 \"\" "),
        // Servers write the text with a length in either case; the manual has it without.
        (b"\0\x01\0\x02\0\0\0\x05Rows!", plain, "1 0 AUTOCOMMIT 0 \"Rows!\" "),
        (b"\0\x01\0\x02\0\0\0Rows matched", plain, "1 0 AUTOCOMMIT 0 \"Rows matched\" "),
        (b"\0\x01\0\x02\0\0\0\x05Rows!", MODERN, "1 0 AUTOCOMMIT 0 \"Rows!\" "),
        // MySQL Source Documentation, "Session State Information": SET autocommit, USE, and a flag.
        (
            b"\0\0\0\x02\x40\0\0\0\x11\0\x0f\x0aautocommit\x03OFF",
            MODERN,
            "0 0 AUTOCOMMIT|SESSION_STATE_CHANGED 0 \"\" autocommit=OFF",
        ),
        (
            b"\0\0\0\x02\x40\0\0\0\x0a\x01\x05\x04test\x02\x01\x31",
            MODERN,
            "0 0 AUTOCOMMIT|SESSION_STATE_CHANGED 0 \"\" schema test state 1",
        ),
        // GTIDs with their way of writing, characteristics, state, and a type of tomorrow.
        (
            b"\0\0\0\x03\x40\0\0\0\x1a\x03\x04\0\x02\x3a\x31\x04\x03\x02B;\x05\x09\x08T_R_____\x09\x02xy",
            MODERN,
            "0 0 IN_TRANS|AUTOCOMMIT|SESSION_STATE_CHANGED 0 \"\" gtids :1 [B;] tx T_R_____ 9:xy",
        ),
        // Two variables in one entry.
        (
            b"\0\0\0\x02\x40\0\0\0\x0a\0\x08\x01a\x011\x01b\x012",
            MODERN,
            "0 0 AUTOCOMMIT|SESSION_STATE_CHANGED 0 \"\" a=1 b=2",
        ),
        // In place of an EOF packet.
        (b"\xfe\0\0\x22\0\0\0", MODERN, "0 0 AUTOCOMMIT|NO_INDEX 0 \"\" "),
        // Before protocol 4.1.
        (b"\0\x01\0\x02\0", Capabilities::TRANSACTIONS, "1 0 AUTOCOMMIT 0 \"\" "),
        (b"\0\x01\0", Capabilities::NONE, "1 0 0x0 0 \"\" "),
        (b"\x01\0\0\x02\0\0\0", plain, "malformed OK message"),
        (b"\0\0\0\x02\x40\0\0\0\xff", MODERN, "malformed OK message"),
        (b"\0\0\0\x02\x40\0\0", MODERN, "0 0 AUTOCOMMIT|SESSION_STATE_CHANGED 0 \"\" "),
    ] {
        assert_eq!(ok(payload, agreed), want, "{}", payload.escape_ascii());
        for cut in 0..payload.len() {
            // Whatever it is, it is not more than the whole.
            if let Ok(cut) = OkPacket::read(&payload[..cut], agreed) {
                assert!(session_state(cut.session_state).count() <= 8);
            }
        }
    }
}

#[test]
fn session_state_that_does_not_parse_ends_with_an_error() {
    let whole = b"\0\x04\x01a\x011\x01\x03\x02db\x02\x011";
    fn changes(bytes: &[u8]) -> Vec<Result<SessionChange<'_>, ProtocolError>> {
        session_state(bytes).collect()
    }
    assert_eq!(changes(whole).len(), 3);
    for cut in 1..whole.len() {
        let changes = changes(&whole[..cut]);
        let boundary = matches!(cut, 6 | 11);
        assert_eq!(changes.last().unwrap().is_err(), !boundary, "cut at {cut}: {changes:?}");
        assert!(changes[..changes.len() - 1].iter().all(Result::is_ok));
    }
    assert!(changes(b"").is_empty());
}

#[test]
fn ok_packets_are_written_for_those_who_read_them() {
    let whole = OkPacket {
        affected_rows: 1,
        last_insert_id: 251,
        status: Status::AUTOCOMMIT | Status::SESSION_STATE_CHANGED,
        warnings: 2,
        info: b"hi",
        session_state: b"\x02\x011",
    };
    let written = |agreed, header| {
        let mut out = Vec::new();
        assert_eq!(whole.write(header, 5, agreed, &mut out), 6);
        out
    };
    assert_eq!(written(MODERN, EOF), b"\x10\0\0\x05\xfe\x01\xfc\xfb\0\x02\x40\x02\0\x02hi\x03\x02\x011");
    assert_eq!(written(Capabilities::PROTOCOL_41, OK), b"\x0c\0\0\x05\0\x01\xfc\xfb\0\x02\0\x02\0\x02hi");
    assert_eq!(written(Capabilities::TRANSACTIONS, OK), b"\x0a\0\0\x05\0\x01\xfc\xfb\0\x02\0\x02hi");
    assert_eq!(OkPacket::read(&written(MODERN, OK)[4..], MODERN).unwrap(), whole);
}

#[test]
fn eof_packets_are_told_from_rows() {
    let plain = Capabilities::PROTOCOL_41;
    let eof = EofPacket { warnings: 1, status: Status::AUTOCOMMIT | Status::MORE_RESULTS };
    let mut out = Vec::new();
    assert_eq!(eof.write(255, plain, &mut out), 0);
    assert_eq!(out, b"\x05\0\0\xff\xfe\x01\0\x0a\0");
    assert_eq!(EofPacket::read(&out[4..], plain), Ok(eof));
    assert_eq!(EofPacket::read(b"\xfe", Capabilities::NONE), Ok(EofPacket::default()));
    for bad in [b"".as_slice(), b"\xfe", b"\xfe\0\0\0", b"\0\0\0\0\0", b"\xfe\0\0\0\0\0\0\0\x01"] {
        assert!(EofPacket::read(bad, plain).is_err(), "{bad:?}");
    }
    assert!(EofPacket::is(EOF, 5) && !EofPacket::is(EOF, 9) && !EofPacket::is(OK, 5));
}

#[test]
fn err_packets_are_read_with_and_without_a_state() {
    let read = |payload: &[u8]| {
        ErrPacket::read(payload)
            .map_or_else(|error| error.to_string(), |e| format!("{} {} {}", e.code, e.sqlstate, e.message))
    };
    assert_eq!(read(b"\xff\x15\x04#28000Access denied"), "1045 28000 Access denied");
    // In place of a greeting.
    assert_eq!(read(b"\xff\x10\x04Too many connections"), "1040 HY000 Too many connections");
    assert_eq!(read(b"\xff\x10\x04"), "1040 HY000 ");
    assert_eq!(read(b"\xff\x10\x04#2800"), "1040 HY000 #2800");
    assert_eq!(read(b"\xff\x10"), "malformed ERR message");
    assert_eq!(read(b"\0\x10\x04"), "malformed ERR message");
    let mut out = Vec::new();
    let error = ErrPacket { code: 1049, sqlstate: "42000".into(), message: "no".into() };
    assert_eq!(error.write(2, Capabilities::PROTOCOL_41, &mut out), 3);
    assert_eq!(out, b"\x0b\0\0\x02\xff\x19\x04#42000no");
    assert_eq!(ErrPacket::read(&out[4..]), Ok(error));
    out.clear();
    write_err(1, "1", "", 0, Capabilities::PROTOCOL_41, &mut out);
    assert_eq!(out, b"\x09\0\0\0\xff\x01\0#10000");
}

#[test]
fn flags_show_their_names() {
    let flags = Capabilities::SSL | Capabilities::PROTOCOL_41;
    assert_eq!(format!("{flags:?}"), "PROTOCOL_41|SSL");
    assert_eq!(format!("{:?} {:?}", Status(6), Capabilities::NONE), "AUTOCOMMIT|0x4 0x0");
    assert!(flags.contains(Capabilities::SSL) && !flags.contains(Capabilities::SSL | Capabilities::COMPRESS));
    assert!(flags.is_mariadb());
}

#[test]
fn commands_are_what_their_bytes_say() {
    assert_eq!(Command::from_byte(0x16), Some(Command::StmtPrepare));
    assert_eq!(Command::from_byte(0xfa).map(Command::name), Some("COM_STMT_BULK_EXECUTE"));
    assert_eq!(Command::from_byte(0x80), None);
    for byte in 0..=u8::MAX {
        assert!(Command::from_byte(byte).is_none_or(|command| command as u8 == byte));
    }
}
