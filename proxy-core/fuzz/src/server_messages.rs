//! A client that keeps to the protocol, and a server that does not.
//!
//! Input: kind, seed of the cuts, steps of the client's script; the script, two bytes a step; then what the server
//! says, or with [`CHANGED`] what is done to the right answers: two bytes for each message of them, an action and a
//! byte.
//!
//! Properties: no panic; what the client gets is whole messages and the front of one more; how reads are cut changes
//! nothing of it.

use super::{
    client_messages::step_bytes,
    wire::{Cut, Random, message, messages, split, strings},
    world::{Options, World},
};

const CHANGED: u8 = 1;

/// Most steps of a script.
const MAX_STEPS: u8 = 16;

/// The body.
pub fn run(data: &[u8]) {
    let ([kind, cuts, steps], rest) = split(data);
    let (script, said) = rest.split_at(rest.len().min(2 * usize::from(steps % MAX_STEPS)));
    let whole = play(kind, script, said, Cut::Whole);
    for cut in [Cut::Bytes, Cut::Random(cuts.into())] {
        assert_eq!(whole, play(kind, script, said, cut), "cut {cut:?}");
    }
}

fn play(kind: u8, script: &[u8], said: &[u8], cut: Cut) -> (Vec<u8>, Option<String>) {
    let options = Options { cut, max_prepared: 2, seed: 1, refusals: false, eager: false };
    let mut world = World::new(options, 1);
    for step in script.chunks_exact(2) {
        let bytes = step_bytes(&world, 0, step[0] & 31, step[1]);
        world.send(0, &bytes);
        if step[0] & 64 != 0 {
            world.settle(0);
        }
    }
    if kind & CHANGED == 0 {
        world.hear(0, said);
    } else {
        let answers = world.honest_answers(0);
        world.hear(0, &changed(&answers, said));
    }
    let client = &world.clients[0];
    let (_, rest) = messages(&client.got).expect("well-formed messages");
    assert!(rest.is_empty() || client.over.is_some() || world.is_mid_message(0), "{}", rest.escape_ascii());
    (client.got.clone(), client.over.clone())
}

/// `answers`, each message treated as two bytes of `actions` say; the rest goes through as it is.
fn changed(answers: &[u8], actions: &[u8]) -> Vec<u8> {
    let (found, _) = messages(answers).expect("a good server's answers");
    let mut out = Vec::new();
    for (at, (tag, body)) in found.into_iter().enumerate() {
        let &[action, byte] = actions.get(2 * at..2 * at + 2).unwrap_or(&[0, 0]) else { continue };
        let mut bytes = message(tag, body);
        match action % 8 {
            1 => bytes.clear(),
            2 => bytes.extend(bytes.clone()),
            3 => bytes[0] = byte,
            4 => bytes[4] ^= byte,
            5 => bytes.extend(message(b'E', b"SERROR\0C42601\0Mno\0\0")),
            6 => bytes.extend(message(byte, b"")),
            7 if bytes.len() > 5 => bytes[5] ^= byte,
            _ => {}
        }
        out.extend(bytes);
    }
    out
}

/// The committed corpus.
pub fn seeds() -> Vec<(String, Vec<u8>)> {
    let seed = |name: &str, script: &[u8], said: &[Vec<u8>]| {
        let steps = (script.len() / 2) as u8;
        (name.to_owned(), [&[0, 3, steps], script, said.concat().as_slice()].concat())
    };
    let ready = |status: u8| message(b'Z', &[status]);
    let complete = |tag: &[u8]| message(b'C', &strings(&[tag]));
    let one = |tag: u8| message(tag, b"");
    let row = message(b'D', b"\0\x01\0\0\0\x017");
    let error = message(b'E', b"SERROR\0VERROR\0C42601\0Mno\0\0");
    let (query, batch, prepare): (&[u8], &[u8], &[u8]) = (&[0, 0], &[17, 0], &[20, 1]);
    let mut seeds = vec![
        seed("query", query, &[message(b'T', &[0, 0]), row.clone(), complete(b"SELECT 1"), ready(b'I')]),
        seed("query_fails", query, &[error.clone(), ready(b'I')]),
        seed("query_failed_transaction", query, &[error.clone(), ready(b'E')]),
        seed("query_empty", query, &[one(b'I'), ready(b'I')]),
        seed("batch", batch, &[one(b'1'), one(b'2'), one(b'n'), complete(b"SELECT 0"), ready(b'I')]),
        seed("batch_fails_at_once", batch, &[error.clone(), ready(b'I')]),
        seed("batch_fails_late", batch, &[one(b'1'), one(b'2'), one(b'n'), error.clone(), ready(b'I')]),
        seed("batch_out_of_order", batch, &[one(b'2'), one(b'1'), ready(b'I')]),
        seed("prepare", prepare, &[one(b'1'), ready(b'I')]),
        seed("prepare_twice_answered", prepare, &[one(b'1'), one(b'1'), ready(b'I')]),
        seed("ready_too_many", query, &[complete(b"SELECT 1"), ready(b'I'), ready(b'I')]),
        seed("ready_early", batch, &[ready(b'I')]),
        seed("ready_status", query, &[complete(b"SELECT 1"), ready(b'x')]),
        seed("ready_long", query, &[complete(b"SELECT 1"), message(b'Z', b"II")]),
        seed("copy_in", &[0, 15], &[message(b'G', &[0, 0, 0]), error.clone(), ready(b'I')]),
        seed("copy_both", &[0, 15], &[message(b'W', &[0, 0, 0])]),
        seed(
            "copy_out",
            &[0, 16],
            &[message(b'H', &[0, 0, 0]), message(b'd', b"1\n"), one(b'c'), complete(b"COPY 1"), ready(b'I')],
        ),
        seed(
            "notices",
            query,
            &[
                message(b'N', b"SNOTICE\0\0"),
                message(b'A', b"\0\0\0\x01c\0\0"),
                message(b'S', b"client_encoding\0SJIS\0"),
                complete(b"SELECT 1"),
                ready(b'I'),
            ],
        ),
        seed("parameter_malformed", query, &[message(b'S', b"client_encoding")]),
        seed("discard_all", &[0, 14], &[complete(b"DISCARD ALL"), ready(b'I')]),
        seed("complete_cut_off", query, &[message(b'C', b"SELECT 1")]),
        seed("function", &[13, 0xbb], &[message(b'V', &[255; 4]), ready(b'I')]),
        seed("row_huge", query, &[b"D\x3f\xff\xff\xff\0\x01".to_vec()]),
        seed("complete_huge", query, &[b"C\x3f\xff\xff\xff".to_vec()]),
        seed("length_3", query, &[b"D\0\0\0\x03".to_vec()]),
        seed("length_negative", query, &[b"D\xff\xff\xff\xff".to_vec()]),
        seed("unknown_tag", query, &[one(b'!')]),
        seed("authentication", query, &[message(b'R', &[0; 4])]),
        seed("suspended_in_query", query, &[one(b's')]),
        seed("unasked", &[], &[error]),
    ];
    // Right answers with one message changed in each way there is.
    for action in 0..8_u8 {
        let script = [20, 1, 23, 1, 17, 4, 0, 0];
        let mut actions = vec![0; 10];
        actions[4] = action;
        actions[5] = b'2';
        let head = [CHANGED, 3, (script.len() / 2) as u8];
        seeds.push((format!("changed_{action}"), [&head[..], &script, &actions].concat()));
    }
    for at in 0..4_u8 {
        let bytes = Random::new(at.into()).bytes(48);
        seeds.push((format!("random_{at}"), [&[CHANGED, at, 8], bytes.as_slice()].concat()));
    }
    seeds
}
