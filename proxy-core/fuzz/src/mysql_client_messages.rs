//! Two MySQL clients whose requests go through trackers to obedient servers that they share.
//!
//! Input: kind, prepared statements on a server, seed, seed of the cuts; then the script, two bytes a step, or what one
//! client sends.
//!
//! Properties: no panic, no standstill, no going round in circles; a server that goes back is idle and has no more
//! statements than it may; the client sees what it would have seen without a proxy, packet by packet; how reads are cut
//! changes no byte that a client or a server gets.

use super::{
    mysql_fake::{command, execution, parameters, whole},
    mysql_world::{Options, World},
    wire::{Cut, Random, split},
};

const RAW: u8 = 1;
const REFUSALS: u8 = 2;
const OLD_SERVERS: u8 = 4;
const OLD_CLIENTS: u8 = 8;

/// Texts of the scripts. All that begin with `SELECT` or `INSERT` can be prepared.
pub const TEXTS: [&str; 12] = [
    "SELECT 1",
    "SELECT ?",
    "INSERT INTO t VALUES (?, ?)",
    "SELEC",
    "BEGIN",
    "COMMIT",
    "ROLLBACK",
    "INSERT INTO t VALUES (1)",
    "SELECT 1; INSERT INTO t VALUES (1); SELECT 2",
    "LOAD DATA LOCAL INFILE 'f' INTO TABLE t",
    "SELECT 1; SELEC; SELECT 2",
    "CALL p()",
];

/// The body.
pub fn run(data: &[u8]) {
    let ([kind, max_prepared, seed, cuts], script) = split(data);
    let play = |cut| {
        let options = Options {
            cut,
            max_prepared: 1 + usize::from(max_prepared % 8),
            seed: seed.into(),
            refusals: kind & REFUSALS != 0,
            new_servers: kind & OLD_SERVERS == 0,
            new_clients: kind & OLD_CLIENTS == 0,
        };
        if kind & RAW != 0 { play_bytes(options, script) } else { play_script(options, script) }
    };
    let all = play(Cut::Whole);
    for cut in [Cut::Bytes, Cut::Random(cuts.into())] {
        assert_eq!(all, play(cut), "cut {cut:?}");
    }
}

/// What can be seen of a conversation from outside.
type Seen = (Vec<Vec<u8>>, Vec<(Vec<u8>, Option<String>)>);

fn seen(world: &World) -> Seen {
    (world.heard(), world.clients.iter().map(|client| (client.got.clone(), client.over.clone())).collect())
}

/// One client that sends anything.
fn play_bytes(options: Options, bytes: &[u8]) -> Seen {
    let mut world = World::new(options, 1);
    world.clients[0].refused = true;
    world.send_through_only(0, bytes);
    world.settle(0);
    let (_, rest) = whole(&world.clients[0].got);
    assert!(rest.is_empty(), "half a packet: {}", rest.escape_ascii());
    seen(&world)
}

/// Two clients that keep to the protocol.
fn play_script(options: Options, script: &[u8]) -> Seen {
    let mut world = World::new(options, 2);
    for step in script.chunks_exact(2) {
        let who = usize::from(step[0] >> 5 & 1);
        let bytes = step_bytes(step[0] & 31, step[1]);
        world.send(who, &bytes);
        if step[0] & 64 != 0 || asks_for_file(&world, who) {
            settle(&mut world, who);
        }
    }
    for who in 0..2 {
        settle(&mut world, who);
    }
    seen(&world)
}

fn asks_for_file(world: &World, who: usize) -> bool {
    world.clients[who].direct.wants_file().is_some()
}

/// Everything is answered, files too.
fn settle(world: &mut World, who: usize) {
    world.settle(who);
    while let Some(seq) = world.clients[who].direct.wants_file().filter(|_| world.clients[who].over.is_none())
    {
        if world.clients[who].refused {
            world.clients[who].over = Some("sends no file to whom it is not asked for".to_owned());
            return;
        }
        let mut file = vec![5, 0, 0, seq];
        file.extend_from_slice(b"a\nb\nc");
        file.extend_from_slice(&[0, 0, 0, seq.wrapping_add(1)]);
        world.send(who, &file);
        world.settle(who);
    }
    world.compare(who);
}

/// What one step of a script sends: `what` it is, and what about.
pub fn step_bytes(what: u8, about: u8) -> Vec<u8> {
    let text = TEXTS[usize::from(about) % TEXTS.len()].as_bytes();
    // Ids are given in order, from 1.
    let id = u32::from(about >> 4) % 5 + 1;
    let id_bytes = id.to_le_bytes();
    match what {
        0..=6 => command(0x03, text),
        7..=10 => command(0x16, TEXTS[usize::from(about) % 4].as_bytes()),
        // Whether its types come along, and how many parameters it is given, may be wrong.
        11..=15 => {
            let n = parameters(TEXTS[usize::from(about) % 3].as_bytes());
            execution(id, n, u8::from(what == 15), what != 14, b"value")
        }
        16 | 17 => command(0x18, &[&id_bytes[..], &[about & 1, 0], b"long"].concat()),
        18 => command(0x1a, &id_bytes),
        19 => command(0x19, &id_bytes),
        20 | 21 => command(0x1c, &[id_bytes, u32::from(about & 3).to_le_bytes()].concat()),
        22 => command(0x0e, b""),
        23 => command(0x09, b""),
        24 => command(0x1b, &[about & 1, 0]),
        25 => command(0x1f, b""),
        26 => command(0x04, b"t\0"),
        27 => command(0x02, b"shop"),
        28 => command(0x03, b"SELECT ';'"),
        29 => command(0x00, b""),
        _ => command(0x03, b"SET @a = 1"),
    }
}

/// The committed corpus.
pub fn seeds() -> Vec<(String, Vec<u8>)> {
    let script = |name: &str, kind: u8, max_prepared: u8, steps: &[(u8, u8)]| {
        let steps: Vec<u8> = steps.iter().flat_map(|(what, about)| [*what, *about]).collect();
        (name.to_owned(), [&[kind, max_prepared, 1, 3], steps.as_slice()].concat())
    };
    let other = 32;
    let now = 64;
    let mut seeds = Vec::new();
    for (suffix, kind) in [("", 0), ("_old_servers", 4), ("_old_clients", 8), ("_old", 12)] {
        let named = |name: &str| format!("{name}{suffix}");
        seeds.extend([
            script(
                &named("queries"),
                kind,
                4,
                &[(0, 0), (0, 3), (0, 7), (0, 8), (0, 10), (other, 8), (0, 11), (28, 0)],
            ),
            script(
                &named("transactions"),
                kind,
                4,
                &[(0, 4), (0, 3), (other | now, 0), (0, 5), (0, 4), (0, 6)],
            ),
            script(
                &named("prepared"),
                kind,
                4,
                &[
                    (7, 1),
                    (7, 2),
                    (11, 1),
                    (other | 7, 0),
                    (other | 11, 0),
                    (14 | now, 1),
                    (11, 0x12),
                    (19, 0),
                    (11, 1),
                ],
            ),
            script(
                &named("prepared_elsewhere"),
                kind,
                0,
                &[
                    (7, 1),
                    (11 | now, 1),
                    (other | now, 4),
                    (14 | now, 1),
                    (7 | now, 2),
                    (11 | now, 0x12),
                    (14 | now, 1),
                ],
            ),
            script(
                &named("long_data"),
                kind,
                1,
                &[(7, 2), (16, 0), (17, 1), (14, 2), (16, 0), (18, 0), (11, 2)],
            ),
            script(
                &named("cursors"),
                kind,
                1,
                &[(7, 0), (15, 0), (20, 1), (0, 0), (20, 2), (20, 3), (20, 3), (15, 0), (18, 0), (20, 1)],
            ),
            script(&named("files"), kind, 1, &[(0, 9), (0, 0), (other, 9), (0, 4), (0, 9), (0, 5)]),
            script(
                &named("commands"),
                kind,
                1,
                &[(22, 0), (23, 0), (24, 0), (0, 8), (24, 1), (0, 8), (25, 0), (26, 0), (27, 0), (29, 0)],
            ),
            script(
                &named("refused"),
                kind | REFUSALS,
                1,
                &[(0, 0), (7, 1), (0, 0), (11, 1), (0, 0), (16, 0), (22, 0)],
            ),
        ]);
    }
    let raw = |name: &str, bytes: &[u8]| (name.to_owned(), [&[RAW, 1, 1, 3], bytes].concat());
    seeds.extend([
        raw("raw_empty_packet", b"\0\0\0\0"),
        raw("raw_out_of_turn", b"\x01\0\0\x05\x0e"),
        raw("raw_execute_short", b"\x03\0\0\0\x17\x01\0"),
        raw(
            "raw_prepare_and_execute_short",
            &[command(0x16, b"SELECT ?"), command(0x17, b"\x01\0\0\0\0")].concat(),
        ),
        raw("raw_kill", &command(0x0c, b"\x07\0\0\0")),
        raw("raw_kill_text", &command(0x03, b"KILL QUERY 7")),
        raw("raw_change_user", &command(0x11, b"app\0\0shop\0")),
        raw(
            "raw_bulk",
            &[command(0x16, b"SELECT ?"), command(0xfa, b"\x01\0\0\0\x80\0\xfd\0\0\x01a")].concat(),
        ),
        raw(
            "raw_file",
            &[command(0x03, b"LOAD DATA LOCAL INFILE 'f' INTO TABLE t"), b"\x01\0\0\x02a\0\0\0\x03".to_vec()]
                .concat(),
        ),
        raw("raw_long", b"\xff\xff\xff\0\x03SELECT"),
        raw("raw_connection_id", &command(0x03, b"SELECT CONNECTION_ID()")),
    ]);
    for at in 0..4_u8 {
        seeds.push((
            format!("random_{at}"),
            [&[4 * at, at, at, at], Random::new(at.into()).bytes(40).as_slice()].concat(),
        ));
    }
    seeds
}
