//! Scripts of messages through a tracker, each cut at every byte.

use super::*;
use crate::protocol::{Protocol, ServerKey, ServerState};

/// A tracker with a server connection, and the messages that go through in short form.
struct Talk {
    shared: Shared,
    tracker: PgTracker,
    server: PgServer,
    up: Pipe,
    down: Pipe,
    /// Bytes fed at once; the scripts run with every size.
    step: usize,
    answered: usize,
}

impl Talk {
    fn new(step: usize, max_prepared: usize) -> Self {
        Self {
            shared: Postgres::shared(max_prepared),
            tracker: client(),
            server: new_server(max_prepared),
            up: Pipe::default(),
            down: Pipe::default(),
            step,
            answered: 0,
        }
    }

    /// The client sends this; what goes to the server, in short form.
    fn client(&mut self, bytes: &[u8]) -> String {
        let mut sent = Vec::new();
        // With nothing new, what was left waiting is looked at again.
        let pieces = if bytes.is_empty() { vec![bytes] } else { bytes.chunks(self.step).collect() };
        let mut pieces = pieces.into_iter();
        while let Some(piece) = pieces.next() {
            self.up.input_mut().extend(piece);
            loop {
                let event = self
                    .tracker
                    .on_client(&self.shared, &mut self.up, Some(&mut self.server), &mut self.down)
                    .unwrap();
                sent.extend(self.up.take_output());
                match event {
                    ClientEvent::Statement(_) => self.tracker.admit(true),
                    ClientEvent::NeedBytes => break,
                    other => {
                        pieces.for_each(|piece| self.up.input_mut().extend(piece));
                        return format!("{} {other:?}", short(&sent));
                    }
                }
            }
        }
        short(&sent)
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

    /// The server sends this; what goes to the client, in short form.
    fn server(&mut self, bytes: &[u8]) -> String {
        let mut sent = Vec::new();
        for piece in bytes.chunks(self.step) {
            self.down.input_mut().extend(piece);
            while let ServerEvent::Answered { .. } =
                self.tracker.on_server(&mut self.down, &mut self.server).unwrap()
            {
                self.answered += 1;
            }
            sent.extend(self.down.take_output());
        }
        short(&sent)
    }

    /// What our own answers wait for the client.
    fn local(&mut self) -> String {
        short(&self.down.take_output())
    }

    /// Another client gets the same server connection.
    fn change_hands(&mut self) {
        assert!(self.server.is_quiet(), "{:?}", self.server);
        self.tracker = client();
    }
}

fn client() -> PgTracker {
    let key = PoolKey { user: "u".into(), parameters: Box::default() };
    PgTracker::new(&key, &Greeting::default(), ())
}

fn new_server(max_prepared: usize) -> PgServer {
    PgServer::new(ServerKey::default(), Arc::default(), max_prepared, Arc::default())
}

/// Messages by tag; the names in Parse, Bind, Describe and Close, ours without their number.
fn short(mut bytes: &[u8]) -> String {
    let mut out = Vec::new();
    while let Some(header) = Header::read(bytes).unwrap() {
        let body = &bytes[HEADER_BYTES..header.total()];
        let name = |b: &[u8]| {
            let name = cstr(b).map(|(n, _)| String::from_utf8_lossy(n).into_owned()).unwrap_or_default();
            if name.starts_with("_pinion_") && name != "_pinion_forget" { "#".to_owned() } else { name }
        };
        out.push(match header.tag {
            b'P' => format!("P({})", name(body)),
            b'B' => {
                let (portal, rest) = cstr(body).unwrap();
                format!("B({},{})", String::from_utf8_lossy(portal), name(rest))
            }
            b'D' | b'C'
                if matches!(body.first(), Some(b'S' | b'P')) && body.len() > 1 && body.last() == Some(&0) =>
            {
                if body.starts_with(b"SELECT") {
                    "C".to_owned()
                } else {
                    format!("{}({}{})", char::from(header.tag), char::from(body[0]), name(&body[1..]))
                }
            }
            b'Z' => format!("Z{}", char::from(body[0])),
            tag => char::from(tag).to_string(),
        });
        bytes = &bytes[header.total()..];
    }
    assert!(bytes.is_empty(), "half a message was written");
    out.join(" ")
}

fn message(tag: u8, body: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    write_message(&mut out, tag, |b| b.extend_from_slice(body));
    out
}

fn query(sql: &str) -> Vec<u8> {
    message(b'Q', format!("{sql}\0").as_bytes())
}

fn parse(name: &str, sql: &str) -> Vec<u8> {
    message(b'P', format!("{name}\0{sql}\0\0\0").as_bytes())
}

fn bind(portal: &str, name: &str) -> Vec<u8> {
    message(b'B', format!("{portal}\0{name}\0\0\0\0\x01\0\0\0\x05value\0\0").as_bytes())
}

fn describe(kind: char, name: &str) -> Vec<u8> {
    message(b'D', format!("{kind}{name}\0").as_bytes())
}

fn close(name: &str) -> Vec<u8> {
    message(b'C', format!("S{name}\0").as_bytes())
}

fn execute() -> Vec<u8> {
    message(b'E', b"\0\0\0\0\0")
}

fn sync() -> Vec<u8> {
    message(b'S', b"")
}

/// The server's answers, by their tags.
fn answers(tags: &str) -> Vec<u8> {
    tags.split_whitespace()
        .flat_map(|tag| match tag.as_bytes() {
            [b'Z', status] => message(b'Z', &[*status]),
            b"C" => message(b'C', b"SELECT 1\0"),
            b"E" => message(b'E', b"SERROR\0C42601\0Mno\0\0"),
            b"D" => message(b'D', b"\0\x01\0\0\0\x011"),
            b"T" => message(b'T', b"\0\0"),
            b"G" => message(b'G', b"\0\0\0"),
            [tag] => message(*tag, b""),
            _ => panic!("{tag}"),
        })
        .collect()
}

/// ParameterDescription of one parameter and RowDescription of one column of this type.
fn description(oid: u8) -> Vec<u8> {
    let column = [b"\0\x01n\0\0\0\0\x07\0\x01\0\0\0", &[oid][..], b"\0\x04\xff\xff\xff\xff\0\0"].concat();
    [message(b't', b"\0\x01\0\0\0\x19"), message(b'T', &column)].concat()
}

/// The server's answers, with descriptions of one parameter, as [`bind`] has, and one column of type `oid` for `*`.
fn describing(tags: &str, oid: u8) -> Vec<u8> {
    let pieces = tags.split_inclusive('*');
    pieces
        .flat_map(|piece| match piece.strip_suffix('*') {
            Some(before) => [answers(before), description(oid)].concat(),
            None => answers(piece),
        })
        .collect()
}

/// Runs `script` with the streams cut into pieces of every size up to a whole message and beyond.
fn at_every_cut(max_prepared: usize, script: impl Fn(&mut Talk)) {
    for step in (1..=40).chain([64, 4096]) {
        script(&mut Talk::new(step, max_prepared));
    }
}

#[test]
fn a_simple_query_passes_as_it_is() {
    at_every_cut(9, |t| {
        assert_eq!(t.client(&query("SELECT 1")), "Q");
        assert!(!t.server.is_quiet());
        assert_eq!(t.server(&answers("T D D C ZI")), "T D D C ZI");
        assert!(t.server.is_quiet());
        assert_eq!(t.answered, 1);
    });
}

#[test]
fn a_named_statement_is_sent_under_our_name_once_for_all_clients() {
    at_every_cut(9, |t| {
        let request = [parse("s0", "SELECT $1"), describe('S', "s0"), sync()].concat();
        assert_eq!(t.client(&request), "P(#) D(S#) S");
        assert_eq!(t.server(&answers("1 t T ZI")), "1 t T ZI");
        assert_eq!(t.client(&[bind("", "s0"), execute(), sync()].concat()), "B(,#) E S");
        assert_eq!(t.server(&answers("2 D C ZI")), "2 D C ZI");
        t.change_hands();
        // Prepared already, so the Parse is answered here.
        assert_eq!(t.client(&[parse("mine", "SELECT $1"), sync()].concat()), "S");
        assert_eq!(format!("{} {}", t.local(), t.server(&answers("ZI"))), "1 ZI");
    });
}

#[test]
fn a_statement_follows_its_client_to_another_connection() {
    at_every_cut(9, |t| {
        t.client(&[parse("s0", "SELECT $1"), sync()].concat());
        t.server(&answers("1 ZI"));
        t.server = new_server(9);
        assert_eq!(t.client(&[bind("", "s0"), execute(), sync()].concat()), "P(#) B(,#) E S");
        assert_eq!(t.server(&answers("1 2 D C ZI")), "2 D C ZI");
    });
}

#[test]
fn the_unnamed_statement_follows_too_and_never_meets_another_clients() {
    at_every_cut(9, |t| {
        assert_eq!(t.client(&[parse("", "SELECT 1"), sync()].concat()), "P() S");
        t.server(&answers("1 ZI"));
        assert_eq!(t.client(&[bind("", ""), execute(), sync()].concat()), "B(,) E S");
        t.server(&answers("2 D C ZI"));
        t.change_hands();
        // This client has no unnamed statement, so the server must not have one either.
        assert_eq!(t.client(&[bind("", ""), sync()].concat()), "C(S) B(,) S");
        assert_eq!(t.server(&answers("3 E ZI")), "E ZI");
        let mut other = new_server(9);
        t.client(&[parse("", "SELECT 2"), sync()].concat());
        t.server(&answers("1 ZI"));
        std::mem::swap(&mut t.server, &mut other);
        assert_eq!(t.client(&[bind("", ""), sync()].concat()), "P() B(,) S");
        assert_eq!(t.server(&answers("1 2 ZI")), "2 ZI");
    });
}

#[test]
fn a_simple_query_drops_the_unnamed_statement() {
    at_every_cut(9, |t| {
        t.client(&[parse("", "SELECT 1"), sync()].concat());
        t.server(&answers("1 ZI"));
        t.client(&query("SELECT 2"));
        t.server(&answers("T D C ZI"));
        assert_eq!(t.client(&[bind("", ""), sync()].concat()), "C(S) B(,) S");
    });
}

#[test]
fn a_name_never_given_finds_nothing_even_if_it_is_ours() {
    at_every_cut(9, |t| {
        t.client(&[parse("s0", "SELECT 1"), sync()].concat());
        t.server(&answers("1 ZI"));
        let ours = {
            let (_, known) = t.server.prepared.iter().next().unwrap();
            let mut name = Vec::new();
            known.statement.write_name(0, &mut name);
            String::from_utf8(name).unwrap()
        };
        t.change_hands();
        assert_eq!(t.client(&[bind("", "nosuch"), sync()].concat()), "C(Snosuch) B(,nosuch) S");
        assert_eq!(t.server(&answers("3 E ZI")), "E ZI");
        // Nobody's name in place of ours: short() shows both as #.
        let sent = {
            t.up.input_mut().extend(&[describe('S', &ours), sync()].concat());
            t.tracker.on_client(&t.shared, &mut t.up, Some(&mut t.server), &mut t.down).unwrap();
            t.up.take_output()
        };
        assert!(memchr::memmem::find(&sent, ours.as_bytes()).is_none(), "{}", sent.escape_ascii());
        assert!(memchr::memmem::find(&sent, NOBODY).is_some());
        assert_eq!(t.server(&answers("E ZI")), "E ZI");
        assert_eq!(t.server.prepared.len(), 1);
    });
}

#[test]
fn close_is_answered_here_and_in_its_turn() {
    at_every_cut(9, |t| {
        t.client(&[parse("s0", "SELECT 1"), sync()].concat());
        t.server(&answers("1 ZI"));
        assert_eq!(t.client(&[bind("", "s0"), execute(), close("s0"), sync()].concat()), "B(,#) E S");
        assert_eq!(t.local(), "");
        assert_eq!(t.server(&answers("2 C ZI")), "2 C 3 ZI");
        assert_eq!(t.client(&[bind("", "s0"), sync()].concat()), "C(Ss0) B(,s0) S");
    });
}

#[test]
fn an_error_takes_back_what_the_server_then_skipped() {
    at_every_cut(9, |t| {
        let batch = [bind("", "bad"), parse("s1", "SELECT 1"), execute(), sync()].concat();
        assert_eq!(t.client(&batch), "C(Sbad) B(,bad) P(#) E S");
        assert_eq!(t.server(&answers("3 E ZI")), "E ZI");
        assert!(t.server.pending.is_empty());
        assert_eq!(t.client(&[bind("", "s1"), sync()].concat()), "C(Ss1) B(,s1) S");
        t.server(&answers("3 E ZI"));
        assert_eq!(t.client(&[parse("s1", "SELECT 1"), sync()].concat()), "P(#) S");
        t.server(&answers("1 ZI"));
        // A close that was skipped did not happen.
        assert_eq!(t.client(&[bind("", "bad"), close("s1"), sync()].concat()), "C(Sbad) B(,bad) S");
        assert_eq!(t.server(&answers("3 E ZI")), "E ZI");
        assert_eq!(t.client(&[bind("", "s1"), sync()].concat()), "B(,#) S");
    });
}

#[test]
fn after_an_error_everything_up_to_sync_is_skipped() {
    at_every_cut(9, |t| {
        let flush = message(b'H', b"");
        assert_eq!(t.client(&[parse("", "SELEC"), flush].concat()), "P() H");
        assert_eq!(t.server(&answers("E")), "E");
        assert_eq!(t.client(&[bind("", ""), execute()].concat()), "");
        assert!(!t.server.is_quiet());
        assert_eq!(t.client(&sync()), "S");
        assert_eq!(t.server(&answers("ZI")), "ZI");
        assert!(t.server.is_quiet());
    });
}

#[test]
fn a_request_waits_until_the_one_before_is_answered() {
    for first in [&query("SELECT 1")[..], &sync(), &message(b'F', b"\0\0\x03\xb8\0\0\0\0\0\0")] {
        for second in [query("SELECT 2"), parse("", "SELECT 2"), bind("", ""), sync(), message(b'H', b"")] {
            let mut t = Talk::new(4096, 9);
            let sent = t.client(&[first, &second].concat());
            assert!(sent.ends_with("NeedAnswer"), "{sent}");
            t.server(&answers("ZI"));
            assert!(!t.client(b"").ends_with("NeedAnswer"));
        }
    }
}

#[test]
fn a_long_batch_waits_for_some_of_its_answers_and_asks_for_them() {
    let mut t = Talk::new(1 << 20, 9);
    let batch = [parse("", "SELECT 1"), bind("", ""), execute()].concat().repeat(6000);
    t.up.input_mut().extend(&batch);
    loop {
        match t.tracker.on_client(&t.shared, &mut t.up, Some(&mut t.server), &mut t.down).unwrap() {
            ClientEvent::Statement(_) => t.tracker.admit(true),
            ClientEvent::NeedAnswer => break,
            other => panic!("{other:?}"),
        }
    }
    assert!(short(&t.up.take_output()).ends_with(" H"), "a Flush of ours, since no Sync has come yet");
    assert_eq!(t.client(b""), " NeedAnswer", "and only one");
    t.server(&answers("1 2 C"));
    let sent = t.client(b"");
    assert!(sent.ends_with("H NeedAnswer") && sent.len() > "H NeedAnswer".len() + 4, "{sent}");
}

#[test]
fn a_sync_that_a_failed_copy_may_have_left_is_expected_and_the_connection_not_lent_again() {
    let mut t = Talk::new(4096, 9);
    t.client(&[parse("", "COPY v FROM STDIN"), bind("", ""), execute(), sync()].concat());
    assert_eq!(t.server(&answers("1 2 G E ZI")), "1 2 G E ZI");
    assert!(t.server.must_retire());
}

#[test]
fn what_follows_deallocate_all_in_a_batch_waits_for_it() {
    let mut t = Talk::new(4096, 9);
    t.client(&[parse("s1", "SELECT 1"), sync()].concat());
    t.server(&answers("1 ZI"));
    let batch =
        [parse("", "DEALLOCATE ALL"), bind("", ""), execute(), parse("s2", "SELECT 1"), sync()].concat();
    assert_eq!(t.client(&batch), "P() B(,) E H NeedAnswer");
    let done = message(b'C', b"DEALLOCATE ALL\0");
    t.server(&[answers("1 2"), done].concat());
    assert_eq!(t.client(b""), "P(#) S", "under a name not used before");
    assert_eq!(t.server.epoch, 1);
}

#[test]
fn after_a_change_of_settings_in_a_batch_text_is_not_trusted() {
    let mut t = Talk::new(4096, 9);
    let set = [parse("", "SET LOCAL standard_conforming_strings = off"), bind("", ""), execute()].concat();
    t.client(&set);
    t.up.input_mut().extend(&[parse("", "SELECT 1"), bind("", ""), execute()].concat());
    let event = t.tracker.on_client(&t.shared, &mut t.up, Some(&mut t.server), &mut t.down).unwrap();
    let ClientEvent::Statement(statement) = event else { panic!("{event:?}") };
    assert!(statement.facts.pins.contains(PinReason::Unknown), "{statement:?}");
}

#[test]
fn what_follows_the_end_of_a_transaction_in_a_batch_is_read_where_nothing_was_set_in_it() {
    let one = |sql: &str| [parse("", sql), bind("", ""), execute()].concat();
    for (sql, want) in [
        ("UPDATE t SET a = 1", false),
        ("SET LOCAL standard_conforming_strings = off", true),
        ("SELECT f()", true),
    ] {
        for end in ["COMMIT", "ROLLBACK", "ROLLBACK TO s", "COMMIT AND CHAIN"] {
            let mut t = Talk::new(4096, 9);
            t.client(&[one("BEGIN READ WRITE"), one(sql), sync()].concat());
            t.server(&answers("1 2 C 1 2 C ZT"));
            t.client(&one(end));
            t.up.input_mut().extend(&one("SELECT 'a'"));
            let event = t.tracker.on_client(&t.shared, &mut t.up, Some(&mut t.server), &mut t.down).unwrap();
            let ClientEvent::Statement(statement) = event else { panic!("{event:?}") };
            assert_eq!(statement.facts.pins.contains(PinReason::Unknown), want, "{sql}; {end}");
        }
    }
}

#[test]
fn a_statement_read_in_another_mode_than_the_servers_pins() {
    let mut t = Talk::new(4096, 9);
    t.client(&[parse("s1", "SELECT 'a'"), sync()].concat());
    t.server(&answers("1 ZI"));
    t.server = new_server(9);
    t.server.mode.standard_conforming_strings = false;
    t.tracker.attach(&t.server);
    t.up.input_mut().extend(&[bind("", "s1"), execute()].concat());
    let event = t.tracker.on_client(&t.shared, &mut t.up, Some(&mut t.server), &mut t.down).unwrap();
    let ClientEvent::Statement(statement) = event else { panic!("{event:?}") };
    assert!(statement.facts.pins.contains(PinReason::Unknown), "{statement:?}");
}

#[test]
fn sql_that_names_a_statement_of_ours_makes_all_of_them_uncertain() {
    let mut t = Talk::new(4096, 9);
    t.client(&[parse("s1", "SELECT 1"), sync()].concat());
    t.server(&answers("1 ZI"));
    assert_eq!(t.client(&query("DEALLOCATE _pinion_1")), "Q");
    assert_eq!(t.server.prepared.len(), 0);
    assert!(t.server.is_tainted());
}

#[test]
fn a_syntax_error_of_the_text_itself_ran_nothing() {
    for (error, want) in [
        (&b"SERROR\0C42601\0Mno\0Rscanner_yyerror\0\0"[..], true),
        (b"SERROR\0C42601\0Mno\0Win a function\0Rscanner_yyerror\0\0", false),
        // Other places raise the same code when something has run.
        (b"SERROR\0C42601\0Mno\0RtransformSubLink\0\0", false),
        (b"SERROR\0C42601\0Mno\0\0", false),
        (b"SERROR\0C42501\0Mno\0\0", false),
    ] {
        let mut t = Talk::new(4096, 9);
        t.client(&query("SELECT 1"));
        t.down.input_mut().extend(&[message(b'E', error), answers("ZI")].concat());
        let got = t.tracker.on_server(&mut t.down, &mut t.server).unwrap();
        assert_eq!(got, ServerEvent::Answered { failed: true, nothing_ran: want });
    }
}

#[test]
fn a_taken_name_is_refused_by_the_server() {
    at_every_cut(9, |t| {
        t.client(&[parse("s1", "SELECT 1"), sync()].concat());
        t.server(&answers("1 ZI"));
        assert_eq!(t.client(&[parse("s1", "SELECT 2"), sync()].concat()), "C(S#) P(#) P(#) S");
        let taken =
            message(b'E', b"SERROR\0C42P05\0Mprepared statement \"_pinion_taken\" already exists\0\0");
        t.down.input_mut().extend(&[answers("3 1"), taken, answers("ZI")].concat());
        while let ServerEvent::Answered { .. } = t.tracker.on_server(&mut t.down, &mut t.server).unwrap() {}
        let told = t.down.take_output();
        assert!(memchr::memmem::find(&told, b"prepared statement \"s1\" already exists").is_some());
        assert_eq!(short(&told), "E ZI");
        assert!(!t.server.is_tainted(), "nothing is left under a name that clients may use");
        assert_eq!(t.client(&[bind("", "s1"), sync()].concat()), "B(,#) S");
    });
}

#[test]
fn the_least_used_statement_makes_room() {
    at_every_cut(2, |t| {
        for (name, sql) in [("a", "SELECT 1"), ("b", "SELECT 2, 2")] {
            t.client(&[parse(name, sql), sync()].concat());
            t.server(&answers("1 ZI"));
        }
        t.client(&[bind("", "a"), sync()].concat());
        t.server(&answers("2 ZI"));
        assert_eq!(t.client(&[parse("c", "SELECT 3, 3, 3"), sync()].concat()), "C(S#) P(#) S");
        assert_eq!(t.server(&answers("3 1 ZI")), "1 ZI");
        assert_eq!(t.client(&[bind("", "a"), sync()].concat()), "B(,#) S");
        t.server(&answers("2 ZI"));
        assert_eq!(t.client(&[bind("", "b"), sync()].concat()), "C(S#) P(#) B(,#) S");
        assert_eq!(t.server(&answers("3 1 2 ZI")), "2 ZI");
    });
}

#[test]
fn the_servers_word_drops_all_statements() {
    at_every_cut(9, |t| {
        t.client(&[parse("a", "SELECT 1"), sync()].concat());
        t.server(&answers("1 ZI"));
        assert_eq!(t.client(&query("DISCARD ALL")), "Q");
        let reply = [message(b'C', b"DISCARD ALL\0"), message(b'Z', b"I")].concat();
        t.server(&reply);
        assert_eq!(t.client(&[bind("", "a"), sync()].concat()), "C(Sa) B(,a) S");
        t.server(&answers("3 E ZI"));
        assert_eq!(t.client(&[parse("a", "SELECT 1"), sync()].concat()), "P(#) S");
        assert_eq!(t.server.epoch, 1, "under a name not used before");
    });
}

#[test]
fn sync_during_copy_in_is_ignored_as_the_server_does() {
    at_every_cut(9, |t| {
        // libpq sends Sync with the Execute; the server reads it as part of the copied data.
        t.client(&[parse("", "COPY t FROM STDIN"), bind("", ""), execute(), sync()].concat());
        assert_eq!(t.server(&answers("1 2 G")), "1 2 G");
        assert!(!t.server.is_quiet());
        assert_eq!(t.client(&[message(b'd', b"1\n"), message(b'c', b""), sync()].concat()), "d c S");
        assert_eq!(t.server(&answers("C ZI")), "C ZI");
        assert!(t.server.is_quiet(), "{:?}", t.server);
    });
}

#[test]
fn copy_data_without_a_copy_goes_nowhere() {
    at_every_cut(9, |t| {
        t.client(&query("COPY t FROM STDIN"));
        assert_eq!(t.server(&answers("G E ZI")), "G E ZI");
        assert!(t.server.is_quiet());
        assert_eq!(t.client(&[message(b'd', b"1\n"), message(b'c', b"")].concat()), "");
    });
}

#[test]
fn copy_data_cut_by_the_servers_error_stays_with_its_connection() {
    let mut t = Talk::new(4096, 9);
    t.client(&query("COPY t FROM STDIN"));
    assert_eq!(t.server(&answers("G")), "G");
    let data = message(b'd', b"half of it is sent before the server answers");
    t.up.input_mut().extend(&data[..20]);
    t.tracker.on_client(&t.shared, &mut t.up, Some(&mut t.server), &mut t.down).unwrap();
    assert_eq!(t.up.take_output().len(), 20);
    assert_eq!(t.server(&answers("E ZI")), "E ZI");
    assert!(t.server.is_quiet());
    assert!(t.tracker.is_mid_message(), "so the connection must not be given back");
    t.up.input_mut().extend(&data[20..]);
    t.tracker.on_client(&t.shared, &mut t.up, Some(&mut t.server), &mut t.down).unwrap();
    assert!(!t.tracker.is_mid_message());
}

#[test]
fn an_execute_of_what_only_the_server_knows_pins() {
    let mut t = Talk::new(4096, 9);
    t.up.input_mut().extend(&message(b'E', b"cursor\0\0\0\0\0"));
    let event = t.tracker.on_client(&t.shared, &mut t.up, Some(&mut t.server), &mut t.down).unwrap();
    let ClientEvent::Statement(statement) = event else { panic!("{event:?}") };
    assert!(statement.facts.pins.contains(PinReason::Unknown), "{statement:?}");
}

#[test]
fn a_pipelined_copy_keeps_its_sync() {
    at_every_cut(9, |t| {
        let data = [message(b'd', b"1\n"), message(b'c', b"")].concat();
        let batch = [parse("", "COPY t FROM STDIN"), bind("", ""), execute(), data, sync()].concat();
        assert_eq!(t.client(&batch), "P() B(,) E d c S");
        assert_eq!(t.server(&answers("1 2 G C ZI")), "1 2 G C ZI");
        assert!(t.server.is_quiet());
    });
}

#[test]
fn deallocate_of_a_virtual_statement_is_answered_here() {
    at_every_cut(9, |t| {
        t.client(&[parse("s1", "SELECT 1"), sync()].concat());
        t.server(&answers("1 ZI"));
        assert_eq!(t.client(&query("DEALLOCATE s1")), "");
        assert_eq!(t.local(), "C ZI");
        assert_eq!(t.client(&query("DEALLOCATE s1")), "Q", "the server says that there is none");
    });
}

#[test]
fn execute_by_sql_finds_a_protocol_level_statement() {
    at_every_cut(9, |t| {
        t.client(&[parse("s1", "SELECT 1"), sync()].concat());
        t.server(&answers("1 ZI"));
        assert_eq!(t.client(&query("EXECUTE s1")), "P(s1) S Q");
        assert_eq!(t.server(&answers("1 ZI D C ZI")), "D C ZI");
        assert_eq!(t.answered, 2);
        assert!(t.server.is_tainted());
    });
}

#[test]
fn messages_that_no_one_may_send_end_the_session() {
    let cases: [(&str, Vec<u8>); 7] = [
        ("unexpected message 'p'", message(b'p', b"x\0")),
        ("unexpected message 'Z'", message(b'Z', b"I")),
        ("malformed Query message", message(b'Q', b"no end")),
        ("malformed Query message", message(b'Q', b"a\0b\0")),
        ("malformed Parse message", message(b'P', b"name only")),
        ("malformed Bind message", message(b'B', b"p\0no end")),
        ("malformed Describe message", message(b'D', b"")),
    ];
    for (want, bytes) in cases {
        let mut t = Talk::new(1, 9);
        t.up.input_mut().extend(&bytes);
        let got = t.tracker.on_client(&t.shared, &mut t.up, Some(&mut t.server), &mut t.down);
        assert_eq!(got.unwrap_err().to_string(), want);
    }
}

#[test]
fn answers_that_nobody_asked_for_end_the_connection() {
    for tags in ["ZI", "1", "2", "3", "C", "G", "K", "s"] {
        let mut t = Talk::new(1, 9);
        t.down.input_mut().extend(&answers(tags));
        assert!(t.tracker.on_server(&mut t.down, &mut t.server).is_err(), "{tags}");
    }
}

#[test]
fn a_parse_that_a_server_has_accepted_needs_no_server() {
    let mut t = Talk::new(4096, 9);
    t.client(&[parse("s1", "SELECT 1"), sync()].concat());
    t.server(&answers("1 ZI"));
    t.tracker = client();
    t.up.input_mut().extend(&[parse("s9", "SELECT 1"), sync()].concat());
    let event = t.tracker.on_client(&t.shared, &mut t.up, None, &mut t.down).unwrap();
    assert!(matches!(event, ClientEvent::NeedBytes));
    assert_eq!(t.local(), "1 ZI");
    // A name that is taken is the server's to refuse, and so is what another pool's server accepted.
    t.up.input_mut().extend(&parse("s9", "SELECT 1"));
    let event = t.tracker.on_client(&t.shared, &mut t.up, None, &mut t.down).unwrap();
    assert!(matches!(event, ClientEvent::NeedServer));
    let key = PoolKey { user: "v".into(), parameters: Box::default() };
    let mut stranger = PgTracker::new(&key, &Greeting::default(), ());
    let event = stranger.on_client(&t.shared, &mut t.up, None, &mut t.down).unwrap();
    assert!(matches!(event, ClientEvent::NeedServer));
}

#[test]
fn a_stale_plan_is_not_given_to_who_prepares_again() {
    at_every_cut(9, |t| {
        t.client(&[parse("s1", "SELECT 1"), sync()].concat());
        t.server(&answers("1 ZI"));
        t.client(&[bind("", "s1"), sync()].concat());
        let stale = message(b'E', b"SERROR\0C0A000\0Mcached plan must not change result type\0\0");
        assert_eq!(t.server(&[stale, answers("ZI")].concat()), "E ZI");
        t.client(&close("s1"));
        assert_eq!(t.local(), "3");
        assert_eq!(t.client(&[parse("s1", "SELECT 1"), sync()].concat()), "P(#) S");
        assert_eq!(t.server(&answers("1 ZI")), "1 ZI");
        assert_eq!(t.client(&[bind("", "s1"), sync()].concat()), "B(,#) S");
    });
}

#[test]
fn a_refused_batch_is_skipped_up_to_its_sync() {
    let mut t = Talk::new(4096, 9);
    let fault = Fault::error(FaultKind::BorrowTimeout, "no");
    t.up.input_mut().extend(&[parse("s1", "SELECT 1"), bind("", "s1"), execute(), sync()].concat());
    let event = t.tracker.on_client(&t.shared, &mut t.up, None, &mut t.down).unwrap();
    assert!(matches!(event, ClientEvent::NeedServer));
    t.tracker.refuse(&fault, &mut t.up, &mut t.down);
    let event = t.tracker.on_client(&t.shared, &mut t.up, None, &mut t.down).unwrap();
    assert!(matches!(event, ClientEvent::NeedBytes));
    assert_eq!(t.local(), "E ZI");
    t.up.input_mut().extend(&query("SELECT 1"));
    assert!(matches!(
        t.tracker.on_client(&t.shared, &mut t.up, None, &mut t.down).unwrap(),
        ClientEvent::Statement(_)
    ));
    t.tracker.admit(true);
    t.tracker.on_client(&t.shared, &mut t.up, None, &mut t.down).unwrap();
    t.tracker.refuse(&fault, &mut t.up, &mut t.down);
    assert_eq!(t.local(), "E ZI");
}

/// What begins a transaction that the client was told of.
const BEGINS: &str = "P() B(,) E C(P)";

#[test]
fn a_begin_is_answered_here_and_goes_out_before_what_needs_a_server() {
    at_every_cut(9, |t| {
        assert_eq!(t.alone(&query("BEGIN")), "C ZT");
        assert_eq!(t.tracker.deferred(), Tx::Open);
        assert_eq!(t.alone(&sync()), "ZT");
        assert_eq!(t.alone(&query("COMMIT")), "C ZI");
        assert_eq!(t.tracker.deferred(), Tx::Idle);
        assert_eq!(t.client(&query("COMMIT")), "Q");
        assert_eq!(t.server(&answers("C ZI")), "C ZI");

        assert_eq!(t.alone(&query("BEGIN")), "C ZT");
        assert_eq!(t.client(&query("SELECT 1")), format!("{BEGINS} Q"));
        assert_eq!((t.tracker.deferred(), t.server.tx()), (Tx::Idle, Tx::Open));
        assert_eq!(t.server(&answers("1 2 C 3 T D C ZT")), "T D C ZT");
        assert_eq!(t.client(&query("COMMIT")), "Q");
        assert_eq!(t.server(&answers("C ZI")), "C ZI");
        assert!(t.server.is_quiet());

        assert_eq!(t.alone(&query("BEGIN")), "C ZT");
        let request = [parse("", "SELECT $1"), bind("", ""), execute(), sync()].concat();
        assert_eq!(t.client(&request), format!("{BEGINS} P() B(,) E S"));
        assert_eq!(t.server(&answers("1 2 C 3 1 2 D C ZT")), "1 2 D C ZT");
    });
}

#[test]
fn what_is_sent_as_begin_is_the_very_text() {
    let mut t = Talk::new(4096, 9);
    t.alone(&query("/* who */ Begin Read Only ;"));
    t.up.input_mut().extend(&query("SELECT 1"));
    for _ in 0..2 {
        let server = Some(&mut t.server);
        t.tracker.on_client(&t.shared, &mut t.up, server, &mut t.down).unwrap();
        t.tracker.admit(true);
    }
    let sent = t.up.take_output();
    assert!(
        sent.starts_with(&message(b'P', b"\0/* who */ Begin Read Only ;\0\0\0")),
        "{}",
        sent.escape_ascii()
    );
}

#[test]
fn a_begin_that_fails_keeps_the_query_behind_it_from_running() {
    at_every_cut(9, |t| {
        t.alone(&query("BEGIN"));
        t.client(&query("INSERT INTO t VALUES (1)"));
        // A server skips everything behind an error up to a Sync, which nobody sends here.
        assert_eq!(t.server(&answers("1 2 E")), "E ZE");
        assert_eq!(t.answered, 1);
        assert!(t.server.is_quiet() && t.server.must_retire());
        assert_eq!((t.tracker.deferred(), t.server.tx()), (Tx::Failed, Tx::Idle));
        t.server = new_server(9);
        assert_eq!(t.alone(&query("SELECT 1")), "E ZE");
        assert_eq!(t.alone(&query("COMMIT")), "C ZI");
    });
}

#[test]
fn a_begin_that_fails_in_a_batch_leaves_a_failed_transaction() {
    at_every_cut(9, |t| {
        t.alone(&query("BEGIN"));
        t.client(&[parse("s0", "SELECT $1"), bind("", "s0"), execute()].concat());
        assert_eq!(t.server(&answers("1 2 E")), "E");
        assert_eq!(t.client(&sync()), "S");
        assert_eq!(t.server(&answers("ZI")), "ZE");
        assert!(t.server.is_quiet() && !t.server.must_retire());
        assert_eq!((t.tracker.deferred(), t.server.tx()), (Tx::Failed, Tx::Idle));
        // A name of what was not prepared.
        assert_eq!(t.alone(&[bind("", "s0"), sync()].concat()), "server! ");
    });
}

#[test]
fn a_goodbye_that_nobody_asked_for_is_told_only_to_who_cannot_do_without_the_connection() {
    at_every_cut(9, |t| {
        let goodbye = message(b'E', b"SFATAL\0VFATAL\0C57P01\0Mbye\0\0");
        let last_word = |t: &Talk, kind| {
            let mut out = Vec::new();
            t.tracker.write_fault(&Fault::fatal(kind, "lost"), Some(&t.server), &mut out);
            out
        };
        t.client(&query("SELECT 1"));
        assert_eq!(t.server(&[answers("T D C ZI"), goodbye.clone()].concat()), "T D C ZI");
        assert!(t.server.is_quiet() && t.server.must_retire() && !t.server.has_told_error());
        assert_eq!(last_word(t, FaultKind::ServerLost), goodbye);
        assert_ne!(last_word(t, FaultKind::ShuttingDown), goodbye);
        // The answer to a request is the client's, whatever it is.
        t.server = new_server(9);
        t.client(&query("SELECT 1"));
        assert_eq!(t.server(&goodbye), "E");
        assert!(t.server.has_told_error() && !t.server.is_quiet());
        // Nor does it stand for a transaction that could not begin.
        t.server = new_server(9);
        t.tracker = client();
        t.alone(&query("BEGIN"));
        t.client(&query("SELECT 1"));
        assert_eq!(t.server(&goodbye), "E");
        assert!(t.server.has_told_error() && !t.server.is_quiet());
    });
    let mut t = Talk::new(usize::MAX, 9);
    t.down.input_mut().extend(&message(b'E', b"SERROR\0VERROR\0C42601\0Mno\0\0"));
    t.tracker.on_server(&mut t.down, &mut t.server).unwrap_err();
}

#[test]
fn what_fails_without_a_server_fails_the_transaction_there_too() {
    at_every_cut(9, |t| {
        t.alone(&query("BEGIN"));
        assert_eq!(t.alone(&query("SELECT 1")), "server! ");
        let fault = Fault::error(FaultKind::BorrowTimeout, "no");
        t.tracker.refuse(&fault, &mut t.up, &mut t.down);
        assert_eq!(t.local(), "E ZE");
        assert_eq!(t.alone(&query("")), "I ZE");
        assert_eq!(t.alone(&[parse("", "SELECT $1"), bind("", ""), execute(), sync()].concat()), "E ZE");
        // What may end it or fail otherwise is the server's, in a transaction that has failed there.
        assert_eq!(t.alone(&query("ROLLBACK TO a")), "server! ");
        assert_eq!(t.client(b""), format!("{BEGINS} P(_pinion_forget) S Q"));
        assert_eq!(t.server.tx(), Tx::Failed);
        assert_eq!(t.server(&answers("1 2 C 3 E ZE")), "");
        assert_eq!(t.server(&answers("E ZE")), "E ZE");
        assert_eq!(t.client(&query("ROLLBACK")), "Q");
        assert_eq!(t.server(&answers("C ZI")), "C ZI");
        assert!(t.server.is_quiet());
    });
}

#[test]
fn what_names_a_statement_waits_for_the_begin_before_it() {
    at_every_cut(9, |t| {
        t.client(&[parse("s0", "SELECT $1"), sync()].concat());
        t.server(&answers("1 ZI"));
        t.alone(&query("BEGIN"));
        assert_eq!(t.client(&query("EXECUTE s0")), format!("{BEGINS} S NeedAnswer"));
        assert_eq!(t.server(&answers("1 2 C 3 ZT")), "");
        assert_eq!(t.client(b""), "P(s0) S Q");
    });
}

/// A client prepares `s0` and is told of it; then comes another, without a server.
fn described_by_a_neighbour(t: &mut Talk) {
    t.client(&[parse("s0", "SELECT n FROM t"), describe('S', "s0"), sync()].concat());
    assert_eq!(t.server(&describing("1 * ZI", 23)), "1 t T ZI");
    t.change_hands();
}

#[test]
fn a_description_that_a_server_has_given_needs_no_server() {
    at_every_cut(9, |t| {
        described_by_a_neighbour(t);
        let request = [parse("mine", "SELECT n FROM t"), describe('S', "mine"), sync()].concat();
        t.up.input_mut().extend(&request);
        let event = t.tracker.on_client(&t.shared, &mut t.up, None, &mut t.down).unwrap();
        assert!(matches!(event, ClientEvent::NeedBytes));
        let told = t.down.take_output();
        assert_eq!(short(&told), "1 t T ZI");
        assert!(memchr::memmem::find(&told, &description(23)).is_some(), "word for word");
        // The connection that has said so needs no question, nor does one whose client was told nothing.
        assert_eq!(t.client(&[bind("", "mine"), execute(), sync()].concat()), "B(,#) E S");
        assert_eq!(t.server(&answers("2 D C ZI")), "2 D C ZI");
        t.change_hands();
        let _first = std::mem::replace(&mut t.server, new_server(9));
        assert_eq!(t.alone(&[parse("mine", "SELECT n FROM t"), sync()].concat()), "1 ZI");
        assert_eq!(t.client(&[bind("", "mine"), execute(), sync()].concat()), "P(#) B(,#) E S");
    });
}

#[test]
fn what_only_a_server_knows_of_a_statement_it_is_asked() {
    let known = "SELECT n FROM t";
    let asks = |prepare: &dyn Fn(&mut Talk)| {
        let mut t = Talk::new(4096, 9);
        described_by_a_neighbour(&mut t);
        prepare(&mut t);
        t.alone(&[parse("s1", known), describe('S', "s1")].concat()).ends_with("server! ")
            || !t.up.unread().is_empty()
    };
    assert!(!asks(&|_| ()));
    assert!(asks(&|t| {
        t.shared.schema.fetch_add(1, Ordering::Relaxed);
    }));
    assert!(asks(&|t| t.tracker.unsettled = true));
    assert!(asks(&|t| t.tracker.standing.insert(PinReason::TemporaryTable)));
    assert!(asks(&|t| t.tracker.mode.standard_conforming_strings = false));
    assert!(asks(&|t| {
        let path = Settings::with(None, "search_path", "SET search_path = other");
        t.tracker.settled(path.as_ref());
    }));
    // In a failed transaction it refuses.
    let mut t = Talk::new(4096, 9);
    described_by_a_neighbour(&mut t);
    t.alone(&[parse("s1", known), sync()].concat());
    t.alone(&query("BEGIN"));
    assert_eq!(t.alone(&[describe('S', "s1"), sync()].concat()), "t T ZT");
    t.tracker.fail_deferred();
    assert_eq!(t.alone(&describe('S', "s1")), "server! ");
    // A portal, a name that nobody gave, the unnamed statement.
    for name in [describe('P', ""), describe('S', "nosuch"), describe('S', "")] {
        let mut t = Talk::new(4096, 9);
        described_by_a_neighbour(&mut t);
        assert_eq!(t.alone(&name), "server! ");
    }
}

#[test]
fn where_a_statement_is_prepared_anew_the_server_must_say_the_same_of_it() {
    at_every_cut(9, |t| {
        described_by_a_neighbour(t);
        t.alone(&[parse("mine", "SELECT n FROM t"), describe('S', "mine"), sync()].concat());
        t.server = new_server(9);
        let run = [bind("", "mine"), execute(), sync()].concat();
        assert_eq!(t.client(&run), "P(#) D(S#) H NeedAnswer");
        assert_eq!(t.client(b""), " NeedAnswer", "once is enough");
        assert_eq!(t.server(&describing("1 *", 23)), "");
        assert_eq!(t.client(b""), "B(,#) E S");
        assert_eq!(t.server(&answers("2 D C ZI")), "2 D C ZI");
        assert_eq!(t.client(&run), "B(,#) E S", "from now on the server sees to it");
    });
}

#[test]
fn parameters_are_counted_before_a_statement_is_prepared_anew() {
    at_every_cut(9, |t| {
        described_by_a_neighbour(t);
        t.alone(&[parse("mine", "SELECT n FROM t"), describe('S', "mine"), sync()].concat());
        t.server = new_server(9);
        let none = message(b'B', b"\0mine\0\0\0\0\0\0\0");
        assert_eq!(t.client(&[none.clone(), execute(), sync()].concat()), "S");
        assert_eq!(t.local(), "E");
        assert_eq!(t.server(&answers("ZI")), "ZI");
        // Not before what is still to be answered, and within a batch by the server.
        assert_eq!(t.client(&[query("SELECT 1"), none.clone(), sync()].concat()), "Q NeedAnswer");
        assert_eq!(t.local(), "");
        assert_eq!(t.server(&answers("C ZI")), "C ZI");
        assert_eq!(t.client(b""), "S");
        assert_eq!(t.local(), "E");
        assert_eq!(t.server(&answers("ZI")), "ZI");
        let batch = [parse("", "INSERT INTO t VALUES (1)"), bind("", ""), execute(), none, sync()].concat();
        assert_eq!(t.client(&batch), "P() B(,) E P(_pinion_forget) S");
        assert_eq!(t.server(&answers("1 2 C E ZI")), "1 2 C E ZI");
    });
}

#[test]
fn rows_that_would_be_read_by_an_old_description_are_refused() {
    at_every_cut(9, |t| {
        described_by_a_neighbour(t);
        let prepare = [parse("mine", "SELECT n FROM t"), describe('S', "mine"), sync()].concat();
        assert_eq!(t.alone(&prepare), "1 t T ZI");
        t.server = new_server(9);
        let run = [bind("", "mine"), execute(), sync()].concat();
        t.client(&run);
        t.server(&describing("1 *", 20));
        // What came before in its batch has to be undone by the server, so it gets something to trip over.
        assert_eq!(t.client(b""), "P(_pinion_forget) S");
        t.down.input_mut().extend(&answers("E ZI"));
        while let ServerEvent::Answered { .. } = t.tracker.on_server(&mut t.down, &mut t.server).unwrap() {}
        let told = t.down.take_output();
        assert_eq!(short(&told), "E ZI");
        assert!(memchr::memmem::find(&told, STALE_PLAN_FIELDS).is_some());
        // On a connection that is known to differ nothing has run yet.
        assert_eq!(t.client(&run), "S");
        assert_eq!(t.local(), "E");
        assert_eq!(t.server(&answers("ZI")), "ZI");
        // The remedy.
        assert_eq!(t.alone(&close("mine")), "3");
        assert_eq!(t.client(&prepare), "P(#) D(S#) S");
        assert_eq!(t.server(&describing("1 * ZI", 20)), "1 t T ZI");
        assert_eq!(t.client(&run), "B(,#) E S");
        t.server(&answers("2 D C ZI"));
        t.change_hands();
        assert_eq!(t.alone(&prepare), "1 t T ZI", "which is what others are told, too");
    });
}

#[test]
fn what_a_client_was_told_by_a_server_is_held_against_the_next_one() {
    at_every_cut(9, |t| {
        described_by_a_neighbour(t);
        // Told by this connection, be it that another client was told otherwise.
        t.server = new_server(9);
        t.client(&[parse("mine", "SELECT n FROM t"), describe('S', "mine"), sync()].concat());
        assert_eq!(t.server(&describing("1 * ZI", 20)), "1 t T ZI");
        let run = [bind("", "mine"), execute(), sync()].concat();
        assert_eq!(t.client(&run), "B(,#) E S");
        t.server(&answers("2 D C ZI"));
        t.server = new_server(9);
        assert_eq!(t.client(&run), "P(#) D(S#) H NeedAnswer");
        t.server(&describing("1 *", 20));
        assert_eq!(t.client(b""), "B(,#) E S");
        t.server(&answers("2 D C ZI"));
    });
}

#[test]
fn a_server_that_refuses_to_say_is_heard_by_the_client() {
    at_every_cut(9, |t| {
        described_by_a_neighbour(t);
        t.alone(&[parse("mine", "SELECT n FROM t"), describe('S', "mine"), sync()].concat());
        t.server = new_server(9);
        let run = [bind("", "mine"), execute(), sync()].concat();
        t.client(&run);
        assert_eq!(t.server(&answers("1 t E")), "E");
        assert_eq!(t.client(b""), "S");
        assert_eq!(t.server(&answers("ZI")), "ZI");
        assert!(t.server.is_quiet(), "{:?}", t.server);
        assert_eq!(t.client(&run), "D(S#) H NeedAnswer");
    });
}

#[test]
fn what_a_text_means_to_one_session_alone_is_told_to_no_other() {
    let run = |t: &mut Talk, sql: &str| {
        assert_eq!(t.client(&query(sql)), "Q");
        t.server(&answers("C ZT"));
    };
    for sql in
        ["CREATE TEMP TABLE t (n int)", "SELECT f()", "ALTER TABLE t ADD m int", "SET LOCAL work_mem = 9999"]
    {
        let mut t = Talk::new(4096, 9);
        run(&mut t, "BEGIN READ WRITE");
        run(&mut t, sql);
        t.client(&[parse("s0", "SELECT n FROM t"), describe('S', "s0"), sync()].concat());
        assert_eq!(t.server(&describing("1 * ZT", 23)), "1 t T ZT");
        run(&mut t, "COMMIT");
        t.server(&answers(""));
        t.tracker = client();
        let waits = t.alone(&[parse("mine", "SELECT n FROM t"), describe('S', "mine")].concat());
        assert!(waits.starts_with("server! "), "{sql}: {waits}");
    }
}

#[test]
fn a_name_that_sql_gives_twice_is_the_servers_to_refuse() {
    at_every_cut(9, |t| {
        t.client(&[parse("s1", "SELECT 1"), sync()].concat());
        t.server(&answers("1 ZI"));
        assert_eq!(t.client(&query("PREPARE s1 AS SELECT 2")), "P(s1) S Q");
        assert_eq!(t.server(&answers("1 ZI E ZI")), "E ZI");
        // Nothing is left there under the client's name.
        t.tracker.write_question(&mut t.server, &mut t.up);
        assert_eq!(short(&t.up.take_output()), "C(Ss1) S");
        assert_eq!(t.server(&answers("3 ZI")), "");
        assert!(t.server.is_quiet() && !t.server.is_tainted());

        assert_eq!(t.client(&query("PREPARE p AS SELECT 2")), "Q");
        t.server(&answers("C ZI"));
        assert_eq!(t.client(&[parse("p", "SELECT 3"), sync()].concat()), "P(p) C(Sp) P(#) S");
        assert_eq!(t.server(&answers("E ZI")), "E ZI");
        assert_eq!(t.client(&[parse("q", "SELECT 3"), sync()].concat()), "P(q) C(Sq) P(#) S");
        assert_eq!(t.server(&answers("1 3 1 ZI")), "1 ZI");
    });
}
