//! Scripts of packets through a tracker, each cut at every byte. Packets of servers that do not run where the tests do
//! (MySQL 8) are built from the MySQL Source Documentation.
#![allow(clippy::unwrap_used)]

use super::*;
use crate::protocol::{
    Compression, FaultKind, Protocol, ServerState, StateChange,
    mysql::{
        auth::{NONCE_BYTES, Nonce},
        codec::Extended,
        handshake::{MyHello, ServerLogin, write_greeting},
    },
};

/// What servers and clients of today agree on.
const NEW: Capabilities = Capabilities(
    OLD.0
        | Capabilities::SESSION_TRACK.0
        | Capabilities::DEPRECATE_EOF.0
        | Capabilities::MULTI_STATEMENTS.0
        | Capabilities::MULTI_RESULTS.0
        | Capabilities::PS_MULTI_RESULTS.0,
);
/// What those of MySQL 5.6 did.
const OLD: Capabilities = Capabilities(Capabilities::PROTOCOL_41.0 | Capabilities::TRANSACTIONS.0);

/// A tracker with a server connection, and the packets that go through, escaped, behind their sequence numbers.
struct Talk {
    shared: Shared,
    tracker: MyTracker,
    server: MyServer,
    up: Pipe,
    down: Pipe,
    /// Bytes fed at once; the scripts run with every size.
    step: usize,
    client_has: Capabilities,
    server_has: (Capabilities, Extended),
}

impl Talk {
    fn new(step: usize, client: Capabilities, server: Capabilities, extended: Extended) -> Self {
        Self {
            shared: MySql::shared(8),
            tracker: tracker(client),
            server: new_server(server, extended),
            up: Pipe::default(),
            down: Pipe::default(),
            step,
            client_has: client,
            server_has: (server, extended),
        }
    }

    /// The client sends this; what goes to the server.
    fn client(&mut self, bytes: &[u8]) -> String {
        let mut sent = Vec::new();
        let mut waits = None;
        // With nothing new, what was left waiting is looked at again.
        let pieces = if bytes.is_empty() { vec![bytes] } else { bytes.chunks(self.step).collect() };
        for piece in pieces {
            self.up.input_mut().extend(piece);
            while waits.is_none() {
                let event = self
                    .tracker
                    .on_client(&self.shared, &mut self.up, Some(&mut self.server), &mut self.down)
                    .unwrap();
                sent.extend(self.up.take_output());
                match event {
                    ClientEvent::Statement(_) => self.tracker.admit(true),
                    ClientEvent::NeedBytes => break,
                    other => waits = Some(format!(" {other:?}")),
                }
            }
        }
        format!("{}{}", shown(&sent), waits.unwrap_or_default()).trim_start().to_owned()
    }

    /// The client sends this while it has no server; what it is told, and what else there is to do.
    fn alone(&mut self, bytes: &[u8]) -> String {
        let mut waits = String::new();
        for piece in bytes.chunks(self.step) {
            self.up.input_mut().extend(piece);
            while waits.is_empty() {
                match self.tracker.on_client(&self.shared, &mut self.up, None, &mut self.down).unwrap() {
                    ClientEvent::Statement(_) => self.tracker.admit(true),
                    ClientEvent::AnsweredHere => {}
                    ClientEvent::NeedBytes => break,
                    ClientEvent::NeedServer => waits = "server! ".to_owned(),
                    other => panic!("{other:?}"),
                }
            }
        }
        assert_eq!(self.up.take_output(), b"");
        waits + &self.local()
    }

    /// The server sends this; what goes to the client.
    fn server(&mut self, bytes: &[u8]) -> String {
        let mut sent = Vec::new();
        for piece in bytes.chunks(self.step) {
            self.down.input_mut().extend(piece);
            while let ServerEvent::Answered { .. } =
                self.tracker.on_server(&mut self.down, &mut self.server).unwrap()
            {}
            sent.extend(self.down.take_output());
        }
        shown(&sent)
    }

    /// What our own answers wait for the client.
    fn local(&mut self) -> String {
        shown(&self.down.take_output())
    }

    /// The client is served by another connection of the same kind.
    fn move_on(&mut self) {
        assert!(self.server.is_quiet(), "{:?}", self.server);
        let (server, extended) = self.server_has;
        self.server = new_server(server, extended);
        self.tracker.attach(&self.server);
    }

    /// What was learned of the session, and pins.
    fn learned(&mut self) -> String {
        let Learned { changes, pins, .. } = self.tracker.take_learned();
        let changes: Vec<String> = changes
            .into_iter()
            .map(|change| match change {
                StateChange::Made(_, statement) => statement.into(),
                other => format!("{other:?}"),
            })
            .collect();
        format!("{} {pins:?}", changes.join("; ")).trim_start().to_owned()
    }
}

fn login(capabilities: Capabilities, extended: Extended) -> ServerLogin {
    let baseline = ["utf8mb4", "utf8mb4", "utf8mb4", "utf8mb4_general_ci", "", "1"];
    ServerLogin {
        capabilities,
        extended,
        version: "8.4.0".into(),
        connection_id: 7,
        status: Status::AUTOCOMMIT,
        is_mariadb: false,
        tracks: capabilities.contains(Capabilities::SESSION_TRACK),
        baseline: baseline.map(str::to_owned).to_vec(),
        hello: MyHello { version: "8.4.0".into(), capabilities, extended, collation: 45 },
    }
}

fn new_server(capabilities: Capabilities, extended: Extended) -> MyServer {
    MyServer::new(&login(capabilities, extended), b"", 8)
}

fn tracker(capabilities: Capabilities) -> MyTracker {
    let key = PoolKey { user: "u".into(), parameters: Box::default() };
    let client = MyClient {
        id: 7,
        capabilities,
        extended: Extended::NONE,
        compression: Compression::None,
        encrypted: false,
        nonce: Nonce([0; NONCE_BYTES]),
    };
    MyTracker::new(&key, &write_greeting(&login(NEW, Extended::NONE)), client)
}

/// Packets as `seq:body`.
fn shown(mut bytes: &[u8]) -> String {
    let mut out = Vec::new();
    while let Some(header) = Header::read(bytes) {
        out.push(format!("{}:{}", header.seq, bytes[HEADER_BYTES..header.total()].escape_ascii()));
        bytes = &bytes[header.total()..];
    }
    assert!(bytes.is_empty(), "half a packet was written");
    out.join(" ")
}

/// Packets with these numbers and bodies.
fn packets(bodies: &[(u8, &[u8])]) -> Vec<u8> {
    let mut out = Vec::new();
    for (seq, body) in bodies {
        codec::write_packet(&mut out, *seq, |packet| packet.extend_from_slice(body));
    }
    out
}

/// Numbered packets of an answer.
fn answer(bodies: &[&[u8]]) -> Vec<u8> {
    packets(&(1u8..).zip(bodies.iter().copied()).collect::<Vec<_>>())
}

fn query(sql: &str) -> Vec<u8> {
    packets(&[(0, &[b"\x03", sql.as_bytes()].concat())])
}

const EOF: &[u8] = b"\xfe\0\0\x02\0";
const END: &[u8] = b"\xfe\0\0\x02\0\0\0";
const DONE: &[u8] = b"\0\0\0\x02\0\0\0";
const NO_EXTENSION: Extended = Extended::NONE;

/// Runs the script with pieces of every size.
fn at_every_cut(client: Capabilities, server: Capabilities, extended: Extended, script: impl Fn(&mut Talk)) {
    for step in (1..24).chain([64, usize::MAX]) {
        script(&mut Talk::new(step, client, server, extended));
    }
}

#[test]
fn a_result_is_what_the_client_expects_whatever_the_server_is() {
    let whole: &[&[u8]] = &[b"\x01", b"def", b"\x011", END];
    let whole_old: &[&[u8]] = &[b"\x01", b"def", EOF, b"\x011", EOF];
    let empty: &[&[u8]] = &[b"\x01", b"def", END];
    let empty_old: &[&[u8]] = &[b"\x01", b"def", EOF, EOF];
    for (client, server, said, told) in [
        (NEW, NEW, whole, whole),
        (NEW, OLD, whole_old, whole),
        (OLD, NEW, whole, whole_old),
        (OLD, OLD, whole_old, whole_old),
        (NEW, NEW, empty, empty),
        (NEW, OLD, empty_old, empty),
        (OLD, NEW, empty, empty_old),
        (OLD, OLD, empty_old, empty_old),
    ] {
        at_every_cut(client, server, NO_EXTENSION, |t| {
            assert_eq!(t.client(&query("SELECT 1")), r"0:\x03SELECT 1");
            assert_eq!(t.server(&answer(said)), shown(&answer(told)), "{client:?} over {server:?}");
            assert!(t.server.is_quiet());
        });
    }
}

#[test]
fn several_results_go_on_counting() {
    let more: &[u8] = b"\xfe\0\0\x0a\0\0\0";
    let more_old: &[u8] = b"\xfe\0\0\x0a\0";
    at_every_cut(OLD, NEW, NO_EXTENSION, |t| {
        t.client(&query("CALL p()"));
        let said = answer(&[b"\x01", b"def", b"\x011", more, b"\x01", b"def", b"\x012", more, DONE]);
        let told = answer(&[
            b"\x01", b"def", EOF, b"\x011", more_old, b"\x01", b"def", EOF, b"\x012", more_old, DONE,
        ]);
        assert_eq!(t.server(&said), shown(&told));
        assert!(t.server.is_quiet());
    });
}

/// The sequence number of the last word to a client whose server is lost now.
fn last_word(t: &Talk) -> u8 {
    let mut out = Vec::new();
    t.tracker.write_fault(&Fault::fatal(FaultKind::ServerLost, "lost"), Some(&t.server), &mut out);
    Header::read(&out).unwrap().seq
}

#[test]
fn the_last_word_counts_on_from_what_the_client_has() {
    let more: &[u8] = b"\xfe\0\0\x0a\0\0\0";
    let more_old: &[u8] = b"\xfe\0\0\x0a\0";
    let results: &[&[u8]] = &[b"\x01", b"def", b"\x011", more, b"\x01", b"def", more, DONE];
    let results_old: &[&[u8]] =
        &[b"\x01", b"def", EOF, b"\x011", more_old, b"\x01", b"def", EOF, more_old, DONE];
    let ok = prepared(9);
    let definitions: &[&[u8]] = &[&ok, b"?", b"def"];
    let definitions_old: &[&[u8]] = &[&ok, b"?", EOF, b"def", EOF];
    let (call, prepare) = (query("CALL p()"), packets(&[(0, PREPARE)]));
    for (client, server, request, said) in [
        (NEW, NEW, &call, results),
        (OLD, NEW, &call, results),
        (NEW, OLD, &call, results_old),
        (OLD, OLD, &call, results_old),
        (NEW, NEW, &prepare, definitions),
        (OLD, NEW, &prepare, definitions),
        (NEW, OLD, &prepare, definitions_old),
    ] {
        at_every_cut(client, server, NO_EXTENSION, |t| {
            t.client(request);
            assert_eq!(last_word(t), 1, "{client:?} over {server:?}");
            for (seq, body) in (1..).zip(said) {
                let told = t.server(&packets(&[(seq, body)]));
                let Some((last, _)) = told.rsplit(' ').next().and_then(|packet| packet.split_once(':'))
                else {
                    continue;
                };
                let expected = if t.server.is_quiet() { 1 } else { last.parse::<u8>().unwrap() + 1 };
                assert_eq!(last_word(t), expected, "{client:?} over {server:?}, behind {told}");
            }
            // What came of a packet in part has not been told.
            t.client(request);
            let said = packets(&[(1, said[0])]);
            let (_, part) = said.split_last().unwrap();
            t.server(part);
            assert_eq!(last_word(t), 1);
        });
    }
}

#[test]
fn who_sends_a_file_or_a_long_request_gets_the_last_word_behind_it() {
    at_every_cut(NEW | Capabilities::LOCAL_FILES, NEW | Capabilities::LOCAL_FILES, NO_EXTENSION, |t| {
        t.client(&query("LOAD DATA LOCAL INFILE 'x' INTO TABLE t"));
        t.server(&answer(&[b"\xfbx"]));
        for (seq, piece) in (2_u8..).zip([b"a" as &[u8], b"b", b"c"]) {
            t.client(&packets(&[(seq, piece)]));
            assert!(t.tracker.is_deaf(&t.server) && t.server.is_mid_message());
        }
        t.client(&packets(&[(5, b"")]));
        assert!(!t.tracker.is_deaf(&t.server) && !t.server.is_mid_message());
        assert_eq!(last_word(t), 6);
    });
    let mut t = Talk::new(usize::MAX, NEW, NEW, NO_EXTENSION);
    let mut long = query("SELECT 1").split_off(HEADER_BYTES);
    long.resize(codec::MAX_PAYLOAD, b' ');
    let long = packets(&[(0, &long)]);
    let (first, second) = long.split_at(long.len() - HEADER_BYTES);
    t.client(first);
    assert!(t.tracker.is_deaf(&t.server));
    t.client(second);
    assert!(!t.tracker.is_deaf(&t.server));
    assert_eq!(last_word(&t), 2);
    t.server(&packets(&[(2, DONE)]));
    assert_eq!(last_word(&t), 1);
}

#[test]
fn what_the_server_reports_is_learned_and_told_to_those_who_asked_as_by_default() {
    // As in MySQL 8: variables, schema, state change, GTIDs (kind 3), characteristics (4), state (5).
    let entries: &[u8] = b"\x00\x0e\x08sql_mode\x04ANSI";
    let gtids: &[u8] = b"\x03\x09\x00\x0700:1-10";
    let schema: &[u8] = b"\x01\x05\x04shop";
    let changed: &[u8] = b"\x02\x02\x011";
    let zone: &[u8] = b"\x00\x11\x09time_zone\x06+01:00";
    let all = [entries, gtids, schema, changed, zone].concat();
    let mut ok = b"\0\0\0\x02\x40\0\0\0".to_vec();
    ok.push(u8::try_from(all.len()).unwrap());
    ok.extend_from_slice(&all);
    let usual = [schema, zone].concat();
    let mut told = b"\0\0\0\x02\x40\0\0\0".to_vec();
    told.push(u8::try_from(usual.len()).unwrap());
    told.extend_from_slice(&usual);
    for (client, told) in [(NEW, &*told), (OLD, DONE)] {
        at_every_cut(client, NEW, NO_EXTENSION, |t| {
            t.client(&query("CALL p()"));
            assert_eq!(t.server(&answer(&[&ok])), shown(&answer(&[told])));
            let learned = "SET SESSION `sql_mode` = 'ANSI'; USE `shop`; SET SESSION `time_zone` = '+01:00'";
            let got = t.learned();
            assert!(got.starts_with(learned), "{got}");
            assert!(t.tracker.mode.ansi_quotes, "texts are read as the server reads them now");
        });
    }
}

#[test]
fn a_server_that_reports_nothing_pins_what_may_change_the_session() {
    let none = format!("{:?}", PinReasons::NONE);
    for (statement, pins) in [
        ("SELECT 1", false),
        ("INSERT INTO t VALUES (1)", false),
        ("COMMIT", false),
        ("SET sql_mode = ''", true),
        ("USE shop", true),
        ("CALL p()", true),
        ("SELECT f(1)", true),
    ] {
        at_every_cut(NEW, OLD, NO_EXTENSION, |t| {
            t.client(&query(statement));
            t.server(&answer(&[DONE]));
            assert_eq!(!t.learned().ends_with(&none), pins, "{statement}");
        });
    }
}

#[test]
fn attributes_go_with_their_text_and_our_own_statements_have_none() {
    let named = NEW | Capabilities::QUERY_ATTRIBUTES;
    at_every_cut(named, named, NO_EXTENSION, |t| {
        let said = packets(&[(0, b"\x03\x01\x01\0\x01\xfe\0\x05trace\x02abSELECT 1")]);
        assert_eq!(t.client(&said), shown(&said));
        assert_eq!(t.server(&answer(&[DONE])), shown(&answer(&[DONE])));
        assert_eq!(t.client(&packets(&[(0, b"\x03\x01\x01\0")])), "");
        assert_eq!(t.local(), r"1:\xff+\x07#HY000Malformed communication packet");
        t.server.doubtful = false;
        let mut own = Vec::new();
        MySql::write_query(&mut t.server, "SELECT 2", &mut own);
        assert_eq!(shown(&own), r"0:\x03\x00\x01SELECT 2");
    });
    // What policy puts in place of the text goes with the attributes.
    let mut t = Talk::new(usize::MAX, named, named, NO_EXTENSION);
    t.up.input_mut().extend(&packets(&[(0, b"\x03\x01\x01\0\x01\xfe\0\x05trace\x02abSELECT 1")]));
    let event = t.tracker.on_client(&t.shared, &mut t.up, Some(&mut t.server), &mut t.down).unwrap();
    assert!(matches!(event, ClientEvent::Statement(_)));
    assert_eq!(t.tracker.text(&t.up), b"SELECT 1");
    assert!(matches!(t.tracker.rewrite(&t.shared, "SELECT 2".into()), Rewritten::Known(_)));
    t.tracker.admit(true);
    assert_eq!(t.client(b""), r"0:\x03\x01\x01\x00\x01\xfe\x00\x05trace\x02abSELECT 2");
}

/// COM_STMT_PREPARE's OK for statement `id` with one parameter and one column.
fn prepared(id: u8) -> Vec<u8> {
    vec![0, id, 0, 0, 0, 1, 0, 1, 0, 0, 0, 0]
}

const PREPARE: &[u8] = b"\x16SELECT ?";
/// An execution of the client's first statement that sends the type of its parameter, and one that does not.
const TYPED: &[u8] = b"\x17\x01\0\0\0\0\x01\0\0\0\0\x01\x03\0\x2a\0\0\0";
const UNTYPED: &[u8] = b"\x17\x01\0\0\0\0\x01\0\0\0\0\0\x2b\0\0\0";

#[test]
fn a_prepared_statement_moves_with_the_types_of_its_parameters() {
    for (client, server) in [(NEW, NEW), (OLD, NEW), (NEW, OLD), (OLD, OLD)] {
        let definitions = |id, has: Capabilities| {
            let ok = prepared(id);
            if has.contains(Capabilities::DEPRECATE_EOF) {
                answer(&[&ok, b"?", b"def"])
            } else {
                answer(&[&ok, b"?", EOF, b"def", EOF])
            }
        };
        at_every_cut(client, server, NO_EXTENSION, |t| {
            assert_eq!(t.client(&packets(&[(0, PREPARE)])), r"0:\x16SELECT ?");
            assert_eq!(t.server(&definitions(9, server)), shown(&definitions(1, t.client_has)));
            assert_eq!(
                t.client(&packets(&[(0, TYPED)])),
                r"0:\x17\t\x00\x00\x00\x00\x01\x00\x00\x00\x00\x01\x03\x00*\x00\x00\x00"
            );
            t.server(&answer(&[DONE]));
            t.move_on();
            // Prepared first where it is not, and nothing of that reaches the client.
            let up = t.client(&packets(&[(0, UNTYPED)]));
            assert_eq!(up, r"0:\x16SELECT ? NeedAnswer");
            assert_eq!(t.server(&definitions(3, server)), "");
            assert_eq!(
                t.client(b""),
                r"0:\x17\x03\x00\x00\x00\x00\x01\x00\x00\x00\x00\x01\x03\x00+\x00\x00\x00"
            );
            assert_eq!(t.server(&answer(&[DONE])), shown(&answer(&[DONE])));
            // The types are known there now.
            assert_eq!(
                t.client(&packets(&[(0, UNTYPED)])),
                r"0:\x17\x03\x00\x00\x00\x00\x01\x00\x00\x00\x00\x00+\x00\x00\x00"
            );
            t.server(&answer(&[DONE]));
            assert_eq!(t.client(&packets(&[(0, b"\x19\x01\0\0\0")])), r"0:\x19\x03\x00\x00\x00");
            assert_eq!(t.client(&packets(&[(0, UNTYPED)])), "");
            assert_eq!(
                t.local(),
                r"1:\xff\xdb\x04#HY000Unknown prepared statement handler (1) given to mysqld_stmt_execute"
            );
        });
    }
}

#[test]
fn an_execution_with_attributes_moves_with_names_and_types() {
    let named = NEW | Capabilities::QUERY_ATTRIBUTES;
    at_every_cut(named, named, NO_EXTENSION, |t| {
        t.client(&packets(&[(0, PREPARE)]));
        t.server(&answer(&[&prepared(9), b"?", b"def"]));
        let typed = b"\x17\x01\0\0\0\x08\x01\0\0\0\x02\0\x01\x03\0\0\xfe\0\x01n\x2a\0\0\0\x01v";
        assert_eq!(
            t.client(&packets(&[(0, typed)])),
            r"0:\x17\t\x00\x00\x00\x08\x01\x00\x00\x00\x02\x00\x01\x03\x00\x00\xfe\x00\x01n*\x00\x00\x00\x01v"
        );
        t.server(&answer(&[DONE]));
        t.move_on();
        t.client(&packets(&[(0, b"\x17\x01\0\0\0\x08\x01\0\0\0\x02\0\0\x2b\0\0\0\x01w")]));
        t.server(&answer(&[&prepared(3), b"?", b"def"]));
        assert_eq!(
            t.client(b""),
            r"0:\x17\x03\x00\x00\x00\x08\x01\x00\x00\x00\x02\x00\x01\x03\x00\x00\xfe\x00\x01n+\x00\x00\x00\x01w"
        );
    });
}

#[test]
fn definitions_that_the_session_does_not_want_do_not_come() {
    let optional = NEW | Capabilities::OPTIONAL_RESULTSET_METADATA;
    at_every_cut(optional, optional, NO_EXTENSION, |t| {
        t.client(&query("SELECT 1"));
        let without = answer(&[b"\x01\0", b"\x011", END]);
        assert_eq!(t.server(&without), shown(&without));
        t.client(&query("SELECT 1"));
        let with = answer(&[b"\x01\x01", b"def", b"\x011", END]);
        assert_eq!(t.server(&with), shown(&with));
        t.client(&packets(&[(0, PREPARE)]));
        let mut ok = prepared(1);
        ok.push(0);
        assert_eq!(t.server(&answer(&[&ok])), shown(&answer(&[&ok])));
        assert!(t.server.is_quiet());
    });
}

#[test]
fn definitions_left_out_by_a_server_that_told_them_to_another_are_put_in() {
    for client in [NEW, OLD] {
        at_every_cut(client, NEW, Extended::CACHE_METADATA, |t| {
            let eof = !client.contains(Capabilities::DEPRECATE_EOF);
            t.client(&packets(&[(0, PREPARE)]));
            t.server(&answer(&[&prepared(9), b"?", b"def one"]));
            t.client(&packets(&[(0, TYPED)]));
            let told = match eof {
                true => answer(&[b"\x01\0", EOF, b"\0\0a", EOF]),
                false => answer(&[b"\x01\0", b"\0\0a", END]),
            };
            assert_eq!(t.server(&answer(&[b"\x01\0", b"\0\0a", END])), shown(&told));
            // Elsewhere the table looks otherwise; that server knows nothing of what this client was told.
            t.move_on();
            t.client(&packets(&[(0, TYPED)]));
            t.server(&answer(&[&prepared(3), b"?", b"def two"]));
            t.client(b"");
            let told = match eof {
                true => answer(&[b"\x01\x01", b"def two", EOF, b"\0\0a", EOF]),
                false => answer(&[b"\x01\x01", b"def two", b"\0\0a", END]),
            };
            assert_eq!(t.server(&answer(&[b"\x01\0", b"\0\0a", END])), shown(&told));
            // Now it has been told.
            t.client(&packets(&[(0, TYPED)]));
            let told = match eof {
                true => answer(&[b"\x01\0", EOF, b"\0\0a", EOF]),
                false => answer(&[b"\x01\0", b"\0\0a", END]),
            };
            assert_eq!(t.server(&answer(&[b"\x01\0", b"\0\0a", END])), shown(&told));
            // And what the server tells of itself counts.
            t.client(&packets(&[(0, TYPED)]));
            t.server(&answer(&[b"\x01\x01", b"def three", b"\0\0a", END]));
            t.move_on();
            t.client(&packets(&[(0, TYPED)]));
            t.server(&answer(&[&prepared(4), b"?", b"def three"]));
            t.client(b"");
            assert_eq!(t.server(&answer(&[b"\x01\0", b"\0\0a", END])), shown(&told));
        });
    }
}

#[test]
fn what_a_set_statement_has_put_back_is_awaited_until_the_server_tells_of_a_change() {
    let changed: &[u8] = b"\0\0\0\x02\x40\0\0\0\x04\x02\x02\x011";
    at_every_cut(NEW, NEW, NO_EXTENSION, |t| {
        t.client(&query("SET STATEMENT max_statement_time = 5 FOR SELECT 1"));
        t.server(&answer(&[changed]));
        assert!(t.server.restores);
        t.client(&query("SELECT 1"));
        t.server(&answer(&[DONE]));
        assert!(t.server.restores);
        t.client(&query("SET @a = 1"));
        t.server(&answer(&[changed]));
        assert!(!t.server.restores);
    });
}

#[test]
fn a_user_variable_of_others_is_unset_before_it_is_read() {
    at_every_cut(NEW, NEW, NO_EXTENSION, |t| {
        t.client(&query("SELECT 1"));
        t.server(&answer(&[DONE]));
        // The next client of this connection.
        t.tracker = tracker(NEW);
        assert_eq!(
            t.client(&query("SELECT @a, @B")),
            r"0:\x03SET @`a` = NULL, @`b` = NULL 0:\x03SELECT @a, @B"
        );
        assert_eq!(t.server(&packets(&[(1, DONE), (1, DONE)])), shown(&answer(&[DONE])));
        assert_eq!(t.client(&query("SELECT @a")), r"0:\x03SELECT @a");
        t.server(&answer(&[DONE]));
        // What it has set itself is made wherever it is served.
        t.client(&query("SET @c = 1"));
        t.server(&answer(&[DONE]));
        t.tracker.attach(&t.server);
        assert_eq!(t.client(&query("SELECT @c")), r"0:\x03SELECT @c");
    });
}

#[test]
fn after_an_error_in_a_transaction_the_server_is_asked() {
    at_every_cut(NEW, NEW, NO_EXTENSION, |t| {
        t.client(&query("BEGIN"));
        t.server(&answer(&[b"\0\0\0\x03\0\0\0"]));
        assert_eq!(t.server.tx(), Tx::Open);
        t.client(&query("UPDATE t SET a = 1"));
        t.server(&answer(&[b"\xff\xbd\x04#40001Deadlock found"]));
        assert_eq!(t.server.tx(), Tx::Open, "nobody knows yet");
        t.tracker.write_question(&mut t.server, &mut t.up);
        assert_eq!(shown(&t.up.take_output()), r"0:\x0e");
        assert_eq!(t.server(&answer(&[DONE])), "");
        assert_eq!(t.server.tx(), Tx::Idle);
    });
}

#[test]
fn after_an_error_that_undoes_its_statement_alone_the_server_is_asked_only_where_the_statement_moves_transactions()
 {
    for (statement, asked) in [("INSERT INTO t VALUES (1)", ""), ("COMMIT", r"0:\x0e")] {
        at_every_cut(NEW, NEW, NO_EXTENSION, |t| {
            t.client(&query("BEGIN"));
            t.server(&answer(&[b"\0\0\0\x03\0\0\0"]));
            t.client(&query(statement));
            t.server(&answer(&[b"\xff\x26\x04#23000Duplicate entry"]));
            assert_eq!(t.server.tx(), Tx::Open);
            t.tracker.write_question(&mut t.server, &mut t.up);
            assert_eq!(shown(&t.up.take_output()), asked);
        });
    }
}

#[test]
fn a_connection_is_not_quiet_while_a_statement_has_something_on_it() {
    at_every_cut(NEW, NEW, NO_EXTENSION, |t| {
        t.client(&packets(&[(0, PREPARE)]));
        t.server(&answer(&[&prepared(9), b"?", b"def"]));
        assert!(t.server.is_quiet());
        assert_eq!(
            t.client(&packets(&[(0, b"\x18\x01\0\0\0\0\0long")])),
            r"0:\x18\t\x00\x00\x00\x00\x00long"
        );
        assert!(!t.server.is_quiet(), "long data waits for its execution");
        t.client(&packets(&[(0, TYPED)]));
        t.server(&answer(&[DONE]));
        assert!(t.server.is_quiet());
        let with_cursor = [&TYPED[..5], b"\x01", &TYPED[6..]].concat();
        t.client(&packets(&[(0, &with_cursor)]));
        // CURSOR_EXISTS
        t.server(&answer(&[b"\x01", b"def", b"\xfe\0\0\x42\0\0\0"]));
        assert!(!t.server.is_quiet(), "the cursor has rows");
        assert_eq!(
            t.client(&packets(&[(0, b"\x1c\x01\0\0\0\x02\0\0\0")])),
            r"0:\x1c\t\x00\x00\x00\x02\x00\x00\x00"
        );
        // LAST_ROW_SENT
        t.server(&answer(&[b"\0\0a", b"\xfe\0\0\x82\0\0\0"]));
        assert!(t.server.is_quiet());
    });
}

#[test]
fn what_no_client_may_send_ends_the_session_or_is_refused() {
    for (bytes, told) in [
        (packets(&[(0, b"\x0f")]), r"1:\xff\x17\x04#08S01Unknown command"),
        (
            packets(&[(0, b"\x12\0\0\0\0")]),
            r"1:\xff\xd3\x04#42000COM_BINLOG_DUMP is not supported by this proxy",
        ),
        (packets(&[(0, b"\xaa")]), r"1:\xff\x17\x04#08S01Unknown command"),
        (packets(&[(0, b"\x1b\x07\0")]), r"1:\xff\x17\x04#08S01Unknown command"),
        (packets(&[(0, b"\x0c\0")]), r"1:\xff\x17\x04#08S01Unknown command"),
        (
            packets(&[(0, b"\x17")]),
            r"1:\xff\xdb\x04#HY000Unknown prepared statement handler (0) given to mysqld_stmt_execute",
        ),
        (packets(&[(0, b"\x0e")]), r"1:\x00\x00\x00\x02\x00\x00\x00"),
    ] {
        at_every_cut(NEW, NEW, NO_EXTENSION, |t| {
            assert_eq!(t.client(&bytes), "");
            assert_eq!(t.local(), told);
        });
    }
    for bytes in [packets(&[(1, b"\x0e")]), b"\0\0\0\0".to_vec()] {
        let mut t = Talk::new(usize::MAX, NEW, NEW, NO_EXTENSION);
        t.up.input_mut().extend(&bytes);
        t.tracker.on_client(&t.shared, &mut t.up, Some(&mut t.server), &mut t.down).unwrap_err();
    }
}

#[test]
fn what_no_server_may_say_ends_the_connection() {
    for said in [
        &[b"".as_slice()] as &[&[u8]],
        &[b"\0"],
        &[b"\xff"],
        &[b"\xfd\x01"],
        &[b"\x01", b"def", b"\xfe"],
        // A local session state longer than its packet.
        &[b"\0\0\0\x02\x40\0\0\0\x09\x00\x07"],
        // Nobody has asked for a second answer.
        &[DONE, DONE],
    ] {
        let mut t = Talk::new(usize::MAX, NEW, NEW, NO_EXTENSION);
        t.client(&query("SELECT 1"));
        t.down.input_mut().extend(&answer(said));
        let end = loop {
            match t.tracker.on_server(&mut t.down, &mut t.server) {
                Ok(ServerEvent::Answered { .. }) => {}
                other => break other,
            }
        };
        assert!(end.is_err(), "{said:?}: {end:?}");
    }
}

/// OK in a transaction.
const IN_TRANSACTION: &[u8] = b"\0\0\0\x03\0\0\0";

#[test]
fn a_begin_is_answered_here_and_goes_out_before_what_needs_a_server() {
    at_every_cut(NEW, NEW, NO_EXTENSION, |t| {
        assert_eq!(t.alone(&query("BEGIN")), shown(&answer(&[IN_TRANSACTION])));
        assert_eq!(t.tracker.deferred(), Tx::Open);
        let ping = packets(&[(0, b"\x0e")]);
        assert_eq!(t.alone(&ping), shown(&answer(&[IN_TRANSACTION])));
        assert_eq!(t.alone(&query("COMMIT")), shown(&answer(&[DONE])));
        assert_eq!(t.tracker.deferred(), Tx::Idle);
        let read_only = b"\0\0\0\x03\x20\0\0";
        assert_eq!(t.alone(&query("START TRANSACTION READ ONLY;")), shown(&answer(&[read_only])));
        assert_eq!(t.alone(&query("SELECT 1")), "server! ");
        // Should it fail, what is behind it must not run outside of the transaction.
        assert_eq!(t.client(b""), r"0:\x03START TRANSACTION READ ONLY; NeedAnswer");
        assert_eq!(t.server.tx(), Tx::Open);
        assert_eq!(t.server(&answer(&[read_only])), "");
        assert_eq!(t.client(b""), r"0:\x03SELECT 1");
        assert_eq!(t.server(&answer(&[IN_TRANSACTION])), shown(&answer(&[IN_TRANSACTION])));
    });
}

#[test]
fn a_begin_that_fails_is_the_next_commands_error_and_tried_again() {
    at_every_cut(NEW, NEW, NO_EXTENSION, |t| {
        let error = answer(&[b"\xff\x25\x05#70100Query execution was interrupted"]);
        t.alone(&query("BEGIN"));
        assert_eq!(t.client(&query("INSERT INTO t VALUES (1)")), r"0:\x03BEGIN NeedAnswer");
        assert_eq!(t.server(&error), "");
        assert_eq!(t.client(b""), "AnsweredHere");
        assert_eq!(t.local(), shown(&error));
        assert_eq!(t.tracker.deferred(), Tx::Open);
        assert_eq!(t.client(&query("INSERT INTO t VALUES (2)")), r"0:\x03BEGIN NeedAnswer");
        assert_eq!(t.server(&answer(&[IN_TRANSACTION])), "");
        assert_eq!(t.client(b""), r"0:\x03INSERT INTO t VALUES (2)");
    });
}

#[test]
fn a_reset_ends_a_transaction_that_no_server_has_begun() {
    at_every_cut(NEW, NEW, NO_EXTENSION, |t| {
        t.alone(&query("BEGIN"));
        let reset = packets(&[(0, b"\x1f")]);
        assert_eq!(t.alone(&reset), "server! ");
        assert!(t.client(b"").starts_with(r"0:\x1f "));
        assert_eq!(t.tracker.deferred(), Tx::Idle);
    });
}

#[test]
fn only_control_that_no_server_refuses_is_answered_here() {
    let mut t = Talk::new(usize::MAX, NEW, NEW, NO_EXTENSION);
    for text in [
        "START TRANSACTION WITH CONSISTENT SNAPSHOT",
        "START TRANSACTION /*!40100 WITH CONSISTENT SNAPSHOT */",
        "START TRANSACTION READ WRITE",
        "BEGIN; SELECT 1",
        "COMMIT",
        "ROLLBACK",
    ] {
        assert_eq!(t.alone(&query(text)), "server! ", "{text}");
        t.tracker = tracker(NEW);
        t.up = Pipe::default();
    }
    for text in
        ["COMMIT AND CHAIN", "ROLLBACK RELEASE", "ROLLBACK TO a", "SAVEPOINT a", "BEGIN", "XA START 'x'"]
    {
        t.alone(&query("BEGIN"));
        assert_eq!(t.alone(&query(text)), "server! ", "{text}");
        t.tracker = tracker(NEW);
        t.up = Pipe::default();
    }
}

#[test]
fn behind_a_lock_given_up_the_server_is_asked_and_the_client_hears_nothing_of_it() {
    let lock = PinReason::AdvisoryLock;
    let row = |value: &'static [u8]| [b"\x01".as_slice(), b"\x03def", value, END];
    at_every_cut(NEW, NEW, NO_EXTENSION, |t| {
        assert_eq!(t.client(&query("SELECT GET_LOCK('a', 0)")), r"0:\x03SELECT GET_LOCK(\'a\', 0)");
        t.server(&answer(&row(b"\x011")));
        t.tracker.write_question(&mut t.server, &mut t.up);
        assert_eq!(shown(&t.up.take_output()), "", "it was got");
        for (held, ended) in [(b"\x011", false), (b"\x010", true)] {
            assert_eq!(
                t.client(&query("SELECT RELEASE_LOCK('a')")),
                r"0:\x03SELECT RELEASE_LOCK(\'a\') 0:\x03SELECT IS_USED_LOCK(\'a\') <=> CONNECTION_ID()"
            );
            let mine = answer(&row(b"\x011"));
            assert_eq!(t.server(&mine), shown(&mine));
            assert!(!t.server.is_quiet(), "the answer of ours is to come");
            assert_eq!(t.server(&answer(&row(held))), "");
            assert_eq!(t.tracker.take_learned().ended.contains(lock), ended);
            assert!(t.server.is_quiet());
        }
    });
}

#[test]
fn a_named_statement_is_prepared_where_it_is_run() {
    at_every_cut(NEW, NEW, NO_EXTENSION, |t| {
        t.client(&query("PREPARE s FROM 'SELECT 1'"));
        t.server(&answer(&[DONE]));
        assert!(t.tracker.take_learned().pins.is_empty());
        assert_eq!(t.client(&query("EXECUTE s")), r"0:\x03EXECUTE s");
        t.server(&answer(&[DONE]));
        t.move_on();
        let waits = r"0:\x03PREPARE s FROM \'SELECT 1\' NeedAnswer";
        assert_eq!(t.client(&query("EXECUTE s")), waits);
        // The server's own error is the client's.
        t.server(&answer(&[b"\xff\x7a\x04#42S02Gone"]));
        assert_eq!(t.client(b""), "");
        assert_eq!(t.local(), r"1:\xffz\x04#42S02Gone");
        assert_eq!(t.client(&query("EXECUTE s")), waits);
        t.server(&answer(&[DONE]));
        assert_eq!(t.client(b""), r"0:\x03EXECUTE s");
        t.server(&answer(&[DONE]));
        // Another client of the connection has none of that name.
        t.tracker = tracker(NEW);
        let sent = t.client(&query("EXECUTE s"));
        assert!(sent.starts_with(r"0:\x03DEALLOCATE PREPARE `s`") && sent.ends_with("EXECUTE s"), "{sent}");
    });
}
