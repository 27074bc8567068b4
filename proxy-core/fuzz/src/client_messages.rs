//! Two clients whose requests go through trackers to obedient servers that they share.
//!
//! Input: kind, prepared statements on a server, seed, seed of the cuts; then the script, two bytes a step, or what
//! one client sends.
//!
//! Properties: no panic, no standstill, no going round in circles; a server gets whole messages, and no statement name
//! of a client's that begins as ours do unless a Close of it stands right before; a server that goes back is idle and
//! has nothing of the client's; the client sees what it would have seen without a proxy, as soon as it would have; how
//! reads are cut changes nothing.

use super::{
    wire::{Cut, Random, message, messages, split, strings},
    world::{Options, World},
};

const RAW: u8 = 1;
const REFUSALS: u8 = 2;

/// Statement texts of the scripts.
pub const TEXTS: [&str; 32] = [
    "SELECT 1",
    "SELECT 2",
    "",
    "SELEC",
    "SELECT 1/0",
    "BEGIN",
    "COMMIT",
    "ROLLBACK",
    "SET x.y = 1",
    "INSERT INTO t VALUES (1)",
    "EXECUTE s1",
    "DEALLOCATE s1",
    "DEALLOCATE s2",
    "DEALLOCATE ALL",
    "DISCARD ALL",
    "COPY t FROM STDIN",
    "COPY t TO STDOUT",
    "SELECT currval('s')",
    "SELECT f()",
    "LISTEN c",
    "SELECT 1; SELECT 2",
    "BEGIN; SELECT 1/0; COMMIT",
    "begin; insert into t values (1)",
    "EXECUTE s2",
    "EXECUTE s1; EXECUTE s2",
    "PREPARE s3 AS SELECT 1",
    "EXECUTE s3",
    "DEALLOCATE s3",
    "SET standard_conforming_strings = off",
    "SELECT 1; SELEC",
    "COMMIT; BEGIN",
    "DISCARD SEQUENCES",
];

/// Statement names of the scripts. The last stands for a name that the proxy has given at some server.
const NAMES: [&[u8]; 6] = [b"", b"s1", b"s2", b"_pinion_x", b"_pinion_forget", b"*"];

/// The body.
pub fn run(data: &[u8]) {
    let ([kind, max_prepared, seed, cuts], script) = split(data);
    let options = Options {
        cut: Cut::Whole,
        max_prepared: 1 + usize::from(max_prepared % 8),
        seed: seed.into(),
        refusals: kind & REFUSALS != 0,
        eager: false,
    };
    let play = |cut, eager| {
        let options = Options { cut, eager, ..options };
        if kind & RAW != 0 { play_bytes(options, script) } else { play_script(options, script) }
    };
    let whole = play(Cut::Whole, false);
    for cut in [Cut::Bytes, Cut::Random(cuts.into())] {
        assert_eq!(whole, play(cut, false), "cut {cut:?}");
    }
    // When answers come early, other messages go to the servers; what clients see is compared in there.
    play(Cut::Whole, true);
    play(Cut::Random(cuts.into()), true);
}

/// What can be seen of a conversation from outside.
type Seen = (Vec<Vec<String>>, Vec<(Vec<u8>, Option<String>)>);

fn seen(world: &World) -> Seen {
    (world.heard(), world.clients.iter().map(|client| (client.got.clone(), client.over.clone())).collect())
}

/// One client that sends anything.
fn play_bytes(options: Options, bytes: &[u8]) -> Seen {
    let bytes = before_short_call(bytes);
    let mut world = World::new(options, 1);
    world.clients[0].refused = true;
    world.send_through_only(0, bytes);
    world.settle(0);
    messages(&world.clients[0].got).expect("well-formed messages");
    seen(&world)
}

/// What stands before a FunctionCall too short for its function: see `docs/fuzzing.md`.
fn before_short_call(bytes: &[u8]) -> &[u8] {
    let mut at = 0;
    while let Some(&[tag, a, b, c, d]) = bytes[at..].first_chunk() {
        let len = u32::from_be_bytes([a, b, c, d]) as usize;
        if tag == b'F' && len < 8 {
            return &bytes[..at];
        }
        at = bytes.len().min(at + 1 + len);
    }
    bytes
}

/// Two clients that keep to the protocol.
fn play_script(options: Options, script: &[u8]) -> Seen {
    let mut world = World::new(options, 2);
    let mut requests = [0, 0];
    for step in script.chunks_exact(2) {
        let who = usize::from(step[0] >> 5 & 1);
        if !world.clients[who].direct.in_batch() && names_live_one(step[1]) {
            world.settle(who);
        }
        let bytes = step_bytes(&world, who, step[0] & 31, step[1]);
        // A Parse waits for the answers to what came before its batch: see `docs/fuzzing.md`.
        let (found, _) = messages(&bytes).expect("well-formed messages");
        if found.iter().any(|(tag, _)| *tag == b'P') {
            world.settle(who);
        }
        requests[who] += world.send(who, &bytes);
        if step[0] & 64 != 0 {
            for who in 0..2 {
                world.settle(who);
                world.compare(who);
            }
        }
    }
    for (who, requests) in requests.iter_mut().enumerate() {
        world.settle(who);
        // Whatever is open is brought to its end.
        if world.clients[who].direct.copies_in() {
            *requests += world.send(who, &message(b'f', b"no\0"));
        }
        *requests += world.send(who, &message(b'S', b""));
        world.settle(who);
        world.compare(who);
        let client = &world.clients[who];
        let (got, rest) = messages(&client.got).expect("well-formed messages");
        assert!(rest.is_empty(), "half a message: {}", rest.escape_ascii());
        // The one thing that is refused: to close a name like ours where the server may know it.
        let over = client.over.as_deref();
        assert!(matches!(over, None | Some("malformed Close message")), "client {who}: {over:?}");
        if client.over.is_none() && !client.refused {
            let answered = got.iter().filter(|(tag, _)| *tag == b'Z').count();
            assert_eq!(answered, *requests, "requests of client {who} and answers");
        }
    }
    seen(&world)
}

/// True when a step with this byte may use a name that the proxy has given.
fn names_live_one(what: u8) -> bool {
    NAMES[usize::from(what) % NAMES.len()] == b"*"
}

/// The messages of one step.
pub fn step_bytes(world: &World, who: usize, step: u8, what: u8) -> Vec<u8> {
    let given = || world.servers.iter().flat_map(|server| server.fake.names());
    // The newest, by number: names differ from run to run, their order does not.
    let number = |name: &[u8]| {
        let digits = name.strip_prefix(b"_pinion_")?.split(|byte| *byte == b'_').next()?;
        u64::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()
    };
    let newest = || given().filter(|name| number(name).is_some()).max_by_key(|name| (number(name), *name));
    let own = || newest().unwrap_or(b"_pinion_ffffffff");
    let name = match NAMES[usize::from(what) % NAMES.len()] {
        // Not while its Parse is under way: see `docs/fuzzing.md`.
        b"*" if world.clients[who].direct.in_batch() => b"_pinion_x",
        b"*" => own(),
        name => name,
    };
    let text = TEXTS[usize::from(what) % TEXTS.len()].as_bytes();
    let portal: &[u8] = if what & 64 == 0 { b"" } else { b"c1" };
    let of_statement = |tag, name: &[u8]| message(tag, &[b"S", name, b"\0"].concat());
    let of_portal = |tag| message(tag, &[b"P", portal, b"\0"].concat());
    let direct = &world.clients[who].direct;
    // Servers may have statements under the client's own names.
    let in_sql = direct.heard().windows(4).any(|bytes| matches!(bytes, b"UTE " | b"ARE "));
    let native = in_sql || direct.had_duplicate();
    let permitted = |text: &'static [u8]| -> &'static [u8] {
        match text {
            // See `docs/fuzzing.md`.
            b"EXECUTE s1" | b"EXECUTE s2" | b"EXECUTE s1; EXECUTE s2" if direct.had_duplicate() => {
                b"SELECT 2"
            }
            // Where requests may be refused, nobody knows whether data is due.
            b"COPY t FROM STDIN" if world.refuses() => b"SELECT 2",
            text => text,
        }
    };
    let text = permitted(text);
    let query = || message(b'Q', &strings(&[text]));
    let parse = |name: &[u8], text: &'static [u8]| {
        // SQL within the protocol's statements that names others, and names given twice: see `docs/fuzzing.md`.
        let names_others = text.starts_with(b"DEALLOCATE s")
            || text.starts_with(b"EXECUTE")
            || text.ends_with(b" ALL") && !(17..=19).contains(&step);
        let text = if names_others { b"SELECT 2" } else { permitted(text) };
        let twice = direct.names().any(|known| known == name);
        let risky = native || direct.has_failed() || direct.in_batch() || name.starts_with(b"_pinion_");
        let fails = text == b"SELEC" || text.contains(&b';');
        let name = if twice && (risky || fails) { b"" } else { name };
        message(b'P', &[&strings(&[name, text]), &[0, 0][..]].concat())
    };
    let bind = |portal: &[u8], name: &[u8]| message(b'B', &[&strings(&[portal, name]), &[0; 6][..]].concat());
    let execute =
        |portal: &[u8], rows: u8| message(b'E', &[&strings(&[portal]), &[0, 0, 0, rows][..]].concat());
    let sync = message(b'S', b"");
    // No unnamed statement, where servers may have statements under the client's own names: see `docs/fuzzing.md`.
    let unnamed = |name: &[u8]| name.is_empty() && native && !direct.names().any(<[u8]>::is_empty);
    let step = if unnamed(name) && matches!(step, 4 | 5 | 23..=26 | 28) { 10 } else { step };
    let copying = world.clients[who].direct.copies_in();
    // Anything else would break off the COPY, see `docs/fuzzing.md`.
    let step = if copying && !matches!(step, 10..=12 | 14..=16) { 14 } else { step };
    match step {
        // One that drops a named statement drops the unnamed one too: see `docs/fuzzing.md`.
        0 | 1 if text.starts_with(b"DEALLOCATE s") => {
            let [drop_it, close] = [query(), of_statement(b'C', b"")];
            if native { sync } else { [close, sync, drop_it].concat() }
        }
        // A Query within a batch: see `docs/fuzzing.md`.
        0 | 1 if world.clients[who].direct.in_batch() => [sync, query()].concat(),
        0 | 1 => query(),
        // Name and text both from the one byte, each in its own way.
        // What a failed batch would have sent under a client's own name: see `docs/fuzzing.md`.
        2 | 3 | 20..=22 | 30 if direct.skips() => sync,
        2 | 3 => parse(name, TEXTS[usize::from(what / 6) % TEXTS.len()].as_bytes()),
        4 => bind(portal, name),
        5 => of_statement(b'D', name),
        6 => of_portal(b'D'),
        7 => execute(portal, what >> 7),
        // See `docs/fuzzing.md`.
        8 | 27 | 30 if native => sync,
        8 => of_statement(b'C', name),
        9 => of_portal(b'C'),
        10 | 11 => sync,
        12 => message(b'H', b""),
        13 => message(b'F', &[0, 0, 3, what, 0, 0, 0, 0, 0, 0]),
        14 if copying => message(b'd', b"1\n"),
        15 | 14 => message(b'c', b""),
        16 => message(b'f', b"no\0"),
        17..=19 => [parse(b"", text), bind(b"", b""), of_portal(b'D'), execute(b"", 0), sync].concat(),
        20..=22 => [parse(name, TEXTS[usize::from(what / 6) % TEXTS.len()].as_bytes()), sync].concat(),
        23..=26 => [bind(b"", name), execute(b"", 0), sync].concat(),
        27 => [of_statement(b'C', name), sync].concat(),
        28 => [of_statement(b'D', name), sync].concat(),
        29 => [parse(b"", text), bind(portal, b""), execute(portal, 1)].concat(),
        30 => [of_statement(b'C', name), parse(name, b"SELECT 2")].concat(),
        _ => [parse(b"", text), message(b'H', b"")].concat(),
    }
}

/// The committed corpus.
pub fn seeds() -> Vec<(String, Vec<u8>)> {
    const RUN: u8 = 64;
    const OTHER: u8 = 32;
    let seed = |name: &str, kind: u8, steps: &[(u8, u8)]| {
        let script = steps.iter().flat_map(|(step, what)| [*step, *what]);
        (name.to_owned(), [kind, 2, 7, 9].into_iter().chain(script).collect())
    };
    // Of a name's number and a text's, the byte that means both.
    let both = |name: u8, text: u8| (0..=255).find(|b| b % 6 == name && b / 6 % 32 == text).unwrap_or(name);
    let raw = |name: &str, messages: &[Vec<u8>]| {
        (name.to_owned(), [vec![RAW, 2, 7, 9], messages.concat()].concat())
    };
    let sync = message(b'S', b"");
    let mut seeds = vec![
        seed("queries", 0, &[(RUN, 0), (RUN, 2), (RUN, 3), (RUN, 4), (RUN, 20)]),
        seed("pipelined_queries", 0, &[(0, 0), (0, 4), (0, 1), (RUN, 3)]),
        seed("transaction", 0, &[(RUN, 5), (RUN, 9), (OTHER | RUN, 0), (RUN, 6)]),
        seed("failed_transaction", 0, &[(RUN, 5), (RUN, 4), (20 | RUN, both(1, 0)), (RUN, 0), (RUN, 7)]),
        seed("unnamed", 0, &[(17 | RUN, 0), (17 | RUN, 4), (18, 0), (18 | RUN, 2), (23 | RUN, 0)]),
        seed(
            "named_shared",
            0,
            &[
                (20 | RUN, both(1, 0)),
                (20 | OTHER | RUN, both(2, 0)),
                (23, 1),
                (23 | OTHER | RUN, 2),
                (28 | RUN, 1),
                (27 | RUN, 1),
                (23 | RUN, 1),
            ],
        ),
        seed("named_twice", 0, &[(20 | RUN, both(1, 0)), (20 | RUN, both(1, 1)), (23 | RUN, 1)]),
        seed(
            "evicted",
            0,
            &[
                (20, both(1, 0)),
                (20, both(2, 1)),
                (20 | RUN, both(3, 2)),
                (23, 1),
                (23, 2),
                (23, 3),
                (23 | RUN, 1),
            ],
        ),
        seed(
            "names_like_ours",
            0,
            &[
                (20 | RUN, both(1, 0)),
                (23 | RUN, 3),
                (23 | RUN, 4),
                (23 | RUN, 5),
                (28 | OTHER | RUN, 5),
                (23 | RUN, 1),
            ],
        ),
        seed("our_name_taken", 0, &[(20 | RUN, both(1, 0)), (20 | RUN, both(5, 1)), (23, 5), (23 | RUN, 1)]),
        seed("parse_fails_in_batch", 0, &[(2, both(1, 3)), (4, 1), (7, 0), (10 | RUN, 0), (23 | RUN, 1)]),
        seed(
            "close_undone",
            0,
            &[(20 | RUN, both(1, 0)), (2, both(2, 3)), (8, 1), (10 | RUN, 0), (23 | RUN, 1)],
        ),
        seed("close_and_parse", 0, &[(20 | RUN, both(1, 0)), (30, 1), (10 | RUN, 0), (23 | RUN, 1)]),
        seed("flush", 0, &[(31 | RUN, 0), (4 | RUN, 0), (12 | RUN, 0), (7, 0), (12 | RUN, 0), (10 | RUN, 0)]),
        seed("portal_by_rows", 0, &[(RUN, 5), (29 | RUN, 64), (7, 64 + 128), (12 | RUN, 0), (10 | RUN, 0)]),
        seed("copy_in", 0, &[(RUN, 15), (14, 0), (14 | RUN, 0), (15 | RUN, 0), (RUN, 0)]),
        seed("copy_in_fails", 0, &[(RUN, 15), (14 | RUN, 0), (16 | RUN, 0), (14, 0), (RUN, 0)]),
        seed("copy_in_extended", 0, &[(29, 15), (10 | RUN, 0), (14 | RUN, 0), (15, 0), (10 | RUN, 0)]),
        seed("copy_out", 0, &[(RUN, 16), (17 | RUN, 16)]),
        seed(
            "execute_in_sql",
            0,
            &[(20 | RUN, both(1, 0)), (RUN, 10), (RUN, 10), (RUN, 11), (RUN, 10), (OTHER | RUN, 10)],
        ),
        seed(
            "deallocate",
            0,
            &[
                (20 | RUN, both(1, 0)),
                (RUN, 11),
                (23 | RUN, 1),
                (20 | RUN, both(2, 0)),
                (RUN, 13),
                (23 | RUN, 2),
            ],
        ),
        seed("discard_all", 0, &[(20 | RUN, both(1, 0)), (RUN, 14), (23 | RUN, 1), (20 | RUN, both(1, 1))]),
        seed("prepare_in_sql", 0, &[(RUN, 25), (RUN, 26), (OTHER | RUN, 26), (RUN, 27), (RUN, 26)]),
        seed("session_function", 0, &[(RUN, 17), (OTHER | RUN, 17), (18 | RUN, 17), (19 | OTHER | RUN, 17)]),
        seed("tainted", 0, &[(RUN, 18), (OTHER | RUN, 0), (RUN, 18), (RUN, 0)]),
        seed(
            "pinned",
            0,
            &[(RUN, 8), (OTHER | RUN, 8), (RUN, 19), (20 | RUN, both(1, 0)), (RUN, 14), (RUN, 0)],
        ),
        seed("function_call", 0, &[(13 | RUN, 0xbb), (13 | RUN, 0), (13 | OTHER | RUN, 0xbc)]),
        seed("refused", REFUSALS, &[(0, 0), (0, 1), (17, 0), (17, 1), (20, both(1, 0)), (23 | RUN, 1)]),
        seed("refused_pipeline", REFUSALS, &[(2, both(1, 0)), (4, 1), (7, 0), (10, 0), (0, 0), (0, 0)]),
        raw("raw_query", &[message(b'Q', b"SELECT 1\0"), message(b'X', b"")]),
        raw(
            "raw_batch",
            &[
                message(b'P', b"s1\0SELECT $1\0\0\x01\0\0\0\x17"),
                message(b'B', b"\0s1\0\0\x01\0\0\0\x01\0\0\0\x011\0\x01\0\0"),
                message(b'E', b"\0\0\0\0\0"),
                sync.clone(),
            ],
        ),
        raw("raw_no_terminator", &[message(b'Q', b"SELECT 1")]),
        raw("raw_behind_terminator", &[message(b'Q', b"SELECT 1\0x")]),
        raw("raw_bad_describe", &[message(b'D', b"x\0"), sync.clone()]),
        raw("raw_empty_close", &[message(b'C', b"")]),
        raw("raw_short_call", &[message(b'F', b"\0\0")]),
        raw("raw_bind_names", &[message(b'B', b"portal"), sync.clone()]),
        raw("raw_our_name", &[message(b'B', b"\0_pinion_1\0\0\0\0\0\0\0"), sync.clone()]),
        raw("raw_length_3", &[b"Q\0\0\0\x03".to_vec()]),
        raw("raw_sync_too_long", &[b"S\0\0\x27\x15".to_vec()]),
        raw("raw_password", &[message(b'p', b"secret\0")]),
        raw("raw_copy_data_astray", &[message(b'd', b"1\n"), message(b'c', b""), message(b'Q', b"\0")]),
    ];
    for at in 0..8_u8 {
        let script = Random::new(at.into()).bytes(64);
        seeds.push((format!("random_{at}"), [&[0, at, at, at], script.as_slice()].concat()));
    }
    seeds
}
