//! A MySQL client that keeps to the protocol, and a server that does not.
//!
//! Input: kind, seed of the cuts, steps of the client's script; the script, two bytes a step; then what the server
//! says, or with [`CHANGED`] what is done to the right answers: two bytes for each packet of them, an action and a byte.
//!
//! Properties: no panic; what the client gets is whole packets and the front of one more; how reads are cut changes
//! nothing of it.

use super::{
    mysql_client_messages::step_bytes,
    mysql_fake::{command, whole},
    mysql_world::{Options, World},
    wire::{Cut, Random, split},
};

const CHANGED: u8 = 1;
const OLD_SERVERS: u8 = 4;
const OLD_CLIENTS: u8 = 8;

/// Most steps of a script.
const MAX_STEPS: u8 = 16;

/// The body.
pub fn run(data: &[u8]) {
    let ([kind, cuts, steps], rest) = split(data);
    let (script, said) = rest.split_at(rest.len().min(2 * usize::from(steps % MAX_STEPS)));
    let all = play(kind, script, said, Cut::Whole);
    for cut in [Cut::Bytes, Cut::Random(cuts.into())] {
        let other = play(kind, script, said, cut);
        let same = all.0.iter().zip(&other.0).take_while(|(one, other)| one == other).count();
        assert!(
            all == other,
            "cut {cut:?}, after {same} bytes: {} {:?} or {} {:?}",
            all.0[same..].escape_ascii(),
            all.1,
            other.0[same..].escape_ascii(),
            other.1
        );
    }
}

fn play(kind: u8, script: &[u8], said: &[u8], cut: Cut) -> (Vec<u8>, Option<String>) {
    let options = Options {
        cut,
        max_prepared: 2,
        seed: 1,
        refusals: false,
        new_servers: kind & OLD_SERVERS == 0,
        new_clients: kind & OLD_CLIENTS == 0,
    };
    let mut world = World::new(options, 1);
    world.clients[0].refused = true;
    for step in script.chunks_exact(2) {
        world.settle(0);
        world.send_through_only(0, &step_bytes(step[0] & 31, step[1]));
    }
    if kind & CHANGED == 0 {
        world.hear(0, said);
    } else {
        let answers = world.honest_answers(0);
        world.hear(0, &changed(&answers, said));
    }
    let client = &world.clients[0];
    let (_, rest) = whole(&client.got);
    assert!(rest.is_empty() || client.over.is_some() || world.is_mid_message(0), "{}", rest.escape_ascii());
    (client.got.clone(), client.over.clone())
}

/// `answers`, each packet treated as two bytes of `actions` say; the rest goes through as it is.
fn changed(answers: &[u8], actions: &[u8]) -> Vec<u8> {
    let (found, _) = whole(answers);
    let mut out = Vec::new();
    for (at, packet) in found.into_iter().enumerate() {
        let mut bytes = packet.to_vec();
        let &[action, byte] = actions.get(2 * at..2 * at + 2).unwrap_or(&[0, 0]) else { continue };
        match action % 8 {
            1 => bytes.clear(),
            2 => bytes.extend(packet),
            3 => bytes[3] = byte,
            4 => bytes[0] ^= byte,
            5 => bytes.extend(b"\x09\0\0\x02\xff\x28\x04#42000"),
            6 if bytes.len() > 4 => bytes[4] = byte,
            7 => {
                let last = bytes.len() - 1;
                bytes[last] ^= byte;
            }
            _ => {}
        }
        out.extend(bytes);
    }
    out
}

/// The committed corpus.
pub fn seeds() -> Vec<(String, Vec<u8>)> {
    let (query, prepare, load): (&[u8], &[u8], &[u8]) = (&[0, 0], &[7, 1], &[0, 9]);
    let packet = |seq: u8, payload: &[u8]| {
        let mut packet = command(0, payload);
        packet.remove(4);
        packet[0] -= 1;
        packet[3] = seq;
        packet
    };
    let column = packet(2, b"\x03def\0\0\0\x01n\x01n\x0c\x3f\0\x0b\0\0\0\x03\0\0\0\0\0");
    let ok: &[u8] = b"\0\0\0\x02\0\0\0";
    let mut seeds = Vec::new();
    for (suffix, kind) in [("", 0), ("_old_servers", 4), ("_old_clients", 8)] {
        let seed = |name: &str, script: &[u8], said: &[Vec<u8>]| {
            let head = [kind, 3, (script.len() / 2) as u8];
            (format!("{name}{suffix}"), [&head[..], script, said.concat().as_slice()].concat())
        };
        let rows =
            [packet(1, b"\x01"), column.clone(), packet(3, b"\x017"), packet(4, b"\xfe\0\0\x02\0\0\0")];
        let old = [
            packet(1, b"\x01"),
            column.clone(),
            packet(3, b"\xfe\0\0\x02\0"),
            packet(4, b"\x017"),
            packet(5, b"\xfe\0\0\x02\0"),
        ];
        seeds.extend([
            seed("rows", query, &rows),
            seed("rows_old", query, &old),
            seed("more_to_come", query, &[packet(1, b"\0\0\0\x0a\0\0\0"), packet(2, ok)]),
            seed("error", query, &[packet(1, b"\xff\x28\x04#42000no")]),
            seed("error_among_rows", query, &[rows[..3].concat(), packet(4, b"\xff\x28\x04#42000no")]),
            seed("error_cut", query, &[packet(1, b"\xff\x28")]),
            seed("ok_twice", query, &[packet(1, ok), packet(2, ok)]),
            seed("tracked", query, &[packet(1, b"\0\0\0\x02\x40\0\0\0\x0f\0\x0d\x0aautocommit\x03OFF")]),
            seed(
                "tracked_malformed",
                query,
                &[packet(1, b"\0\0\0\x02\x40\0\0\0\x0f\0\x0d\x7fautocommit\x03OFF")],
            ),
            seed("tracked_schema", query, &[packet(1, b"\0\0\0\x02\x40\0\0\0\x07\x01\x05\x04shop")]),
            seed("wants_file", load, &[packet(1, b"\xfb/etc/passwd")]),
            seed("columns_none", query, &[packet(1, b"\xfc\0\0")]),
            seed(
                "columns_many",
                query,
                &[packet(1, b"\xfe\xff\xff\xff\xff\xff\xff\xff\x7f"), column.clone()],
            ),
            seed(
                "prepared",
                prepare,
                &[packet(1, b"\0\x01\0\0\0\x01\0\x01\0\0\0\0"), column.clone(), packet(3, b"x")],
            ),
            seed("prepared_cut", prepare, &[packet(1, b"\0\x01\0")]),
            seed("empty", query, &[packet(1, b"")]),
            seed("row_huge", query, &[rows[..2].concat(), b"\xff\xff\xff\x03\xfe".to_vec()]),
            seed("ok_huge", query, &[b"\xff\xff\xff\x01\0".to_vec()]),
            seed("eof_huge", query, &[rows[..2].concat(), b"\xfe\xff\xff\x03\xfe".to_vec()]),
            seed("unasked", &[], &[packet(0, ok)]),
        ]);
    }
    // Right answers with one packet changed in each way there is.
    for action in 0..8_u8 {
        let script = [7, 1, 11, 1];
        let mut actions = vec![0; 10];
        actions[4] = action;
        actions[5] = 0xfe;
        seeds.push((format!("changed_{action}"), [&[CHANGED, 3, 2][..], &script, &actions].concat()));
    }
    for at in 0..4_u8 {
        let bytes = Random::new(at.into()).bytes(48);
        seeds.push((format!("random_{at}"), [&[CHANGED | (4 * at), at, 8], bytes.as_slice()].concat()));
    }
    seeds
}
