//! Both sides of SCRAM, each against a peer that sends anything, and an exchange in which one message is changed.
//!
//! Input: what is played, mechanism and binding; then messages with the byte 0xff between them, which no SCRAM message
//! has. `{r}` in the second stands for the nonce of the first answer. Or, for the changed exchange: number of the
//! message, place, what is done there, and a byte.
//!
//! Properties: no panic; no peer is believed that does not hold the keys; no changed message goes unnoticed.

use pinion::protocol::postgres::scram::{
    ClientBinding, MAX_ITERATIONS, Mechanism, ScramClient, ScramServer, salted_password,
};
use zeroize::Zeroizing;

use super::wire::{END_POINT, PASSWORD, mock, secret, split};

const CLIENT: u8 = 1;
const CHANGED: u8 = 2;
const PLUS: u8 = 4;
const BINDING: u8 = 8;
const UNKNOWN: u8 = 16;

/// The body.
pub fn run(data: &[u8]) {
    let ([options], bytes) = split(data);
    match options & (CLIENT | CHANGED) {
        0 => server(options, bytes),
        CLIENT => client(options, bytes),
        _ => changed(options, bytes),
    }
}

fn parts(bytes: &[u8]) -> (&[u8], &[u8]) {
    let end = bytes.iter().position(|byte| *byte == 0xff).unwrap_or(bytes.len());
    (&bytes[..end], bytes.get(end + 1..).unwrap_or_default())
}

/// `message` with `nonce` for each `{r}`.
fn with_nonce(message: &[u8], nonce: &str) -> Vec<u8> {
    let mut out = Vec::new();
    let mut rest = message;
    while let Some(at) = rest.windows(3).position(|window| window == b"{r}") {
        out.extend_from_slice(&rest[..at]);
        out.extend_from_slice(nonce.as_bytes());
        rest = &rest[at + 3..];
    }
    out.extend_from_slice(rest);
    out
}

/// The value of the first attribute `r`.
fn nonce(message: &str) -> &str {
    message.split(',').find_map(|attribute| attribute.strip_prefix("r=")).unwrap_or_default()
}

fn mechanism(options: u8) -> Mechanism {
    if options & PLUS != 0 { Mechanism::ScramSha256Plus } else { Mechanism::ScramSha256 }
}

fn server(options: u8, bytes: &[u8]) {
    let (first, last) = parts(bytes);
    let known = options & UNKNOWN == 0;
    let keys = if known { secret().scram_keys().clone() } else { mock().keys_for("stranger") };
    let binding = (options & BINDING != 0).then_some(END_POINT);
    let Ok((server, answer)) = ScramServer::begin(mechanism(options), first, &keys, known, binding) else {
        return;
    };
    assert!(answer.starts_with("r=") && answer.ends_with(",i=4096"), "{answer}");
    let last = with_nonce(last, nonce(&answer));
    let finished = server.finish(&last);
    assert!(finished.is_err(), "believed {}", last.escape_ascii());
}

fn client(options: u8, bytes: &[u8]) {
    let (first, last) = parts(bytes);
    let binding = match options & (PLUS | BINDING) {
        0 => ClientBinding::Unsupported,
        PLUS => ClientBinding::NotOffered,
        _ => ClientBinding::EndPoint(END_POINT.to_vec()),
    };
    let Ok((client, hello)) = ScramClient::begin(&binding) else { return };
    let first = with_nonce(first, nonce(&hello));
    let salted = |salt: &[u8], iterations: u32| {
        assert!(!salt.is_empty() && (1..=MAX_ITERATIONS).contains(&iterations));
        Zeroizing::new([9; 32])
    };
    let Ok((client, answer)) = client.answer(&first, salted) else { return };
    assert!(nonce(&answer).starts_with(nonce(&hello)) && nonce(&answer).len() > nonce(&hello).len());
    let finished = client.finish(last);
    assert!(finished.is_err(), "believed {}", last.escape_ascii());
}

fn changed(options: u8, bytes: &[u8]) {
    let ([which, place, action, byte], _) = split(bytes);
    let bound = options & PLUS != 0;
    let binding = if bound {
        ClientBinding::EndPoint(END_POINT.to_vec())
    } else if options & BINDING != 0 {
        ClientBinding::Unsupported
    } else {
        ClientBinding::NotOffered
    };
    let offered = bound.then_some(END_POINT);
    let mut number = 0;
    // The messages were as they had been sent, or like the last one they only grew by an extension.
    let mut same = true;
    let mut wire = |message: &str| {
        let mut bytes = message.as_bytes().to_vec();
        if number == which % 4 {
            let at = usize::from(place) % (bytes.len() + 1);
            match action % 4 {
                0 if at < bytes.len() => bytes[at] ^= byte,
                1 => bytes.insert(at, byte),
                2 if at < bytes.len() => drop(bytes.remove(at)),
                3 => bytes.truncate(at),
                _ => {}
            }
        }
        same &= bytes == message.as_bytes()
            || (number == 3 && bytes.starts_with(message.as_bytes()) && bytes[message.len()] == b',');
        number += 1;
        bytes
    };
    let salted = |salt: &[u8], iterations: u32| match iterations {
        4096 => secret().salted_password(salt, iterations),
        // Not the right key, which nobody needs then.
        _ => salted_password(PASSWORD, salt, 1),
    };
    let keys = secret().scram_keys().clone();
    let outcome = (|| {
        let (client, first) = ScramClient::begin(&binding)?;
        let (server, answer) = ScramServer::begin(mechanism(options), &wire(&first), &keys, true, offered)?;
        let (client, last) = client.answer(&wire(&answer), salted)?;
        let signature = server.finish(&wire(&last))?;
        client.finish(&wire(&signature))
    })();
    assert!(same || outcome.is_err(), "a changed message went unnoticed");
    assert!(!same || number < 4 || outcome.is_ok() || which % 4 == 3, "{outcome:?}");
}

/// The committed corpus.
pub fn seeds() -> Vec<(String, Vec<u8>)> {
    let seed = |name: &str, options: u8, parts: &[&[u8]]| {
        (name.to_owned(), [&[options], parts.join(&0xff).as_slice()].concat())
    };
    let hello: &[u8] = b"n,,n=,r=rOprNGfwEbeRWgbNEkqO";
    let bound: &[u8] = b"p=tls-server-end-point,,n=,r=rOprNGfwEbeRWgbNEkqO";
    let proof = b"p=dHzbZapWIk4jUhN+Ute9ytag9zjfMHgsqmmiz7AndVQ=";
    let last = |front: &[u8]| [front, proof].concat();
    let mut seeds =
        vec![
        seed("server_plain", 0, &[hello, &last(b"c=biws,r={r},")]),
        seed("server_unknown_user", UNKNOWN, &[hello, &last(b"c=biws,r={r},")]),
        seed("server_extensions", 0, &[
            b"n,,n=user,r=rOprNGfwEbeRWgbNEkqO,x=1",
            &last(b"c=biws,r={r},e=f,"),
        ]),
        seed("server_mandatory_extension", 0, &[b"n,,m=x,n=,r=abc"]),
        seed("server_plus", PLUS | BINDING, &[
            bound,
            &last(b"c=cD10bHMtc2VydmVyLWVuZC1wb2ludCwsBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwc=,r={r},"),
        ]),
        seed("server_binding_not_offered", 0, &[bound]),
        seed("server_downgrade", BINDING, &[b"y,,n=,r=abcdef"]),
        seed("server_authzid", 0, &[b"n,a=admin,n=,r=abcdef"]),
        seed("server_other_nonce", 0, &[hello, &last(b"c=biws,r={r}x,")]),
        seed("server_no_proof", 0, &[hello, b"c=biws,r={r}"]),
        seed("server_behind_proof", 0, &[hello, &last(b"c=biws,r={r},"), b",x=1"]),
        seed("server_base64", 0, &[hello, b"c=biws,r={r},p=dHzbZ==="]),
        seed("server_not_utf8", 0, &[b"n,,n=\xc3\x28,r=abc"]),
        seed("server_gs2", 0, &[b"z,,n=,r=abc"]),
        seed("server_nonce_spaces", 0, &[b"n,,n=,r=a b"]),
        seed("client_plain", CLIENT, &[b"r={r}ABCD,s=c2FsdHNhbHRzYWx0c2E=,i=4096", b"v=AAAA"]),
        seed("client_signature", CLIENT, &[
            b"r={r}ABCD,s=c2FsdA==,i=1",
            b"v=6rriTRBi23WpRR/wtup+mMhUZUn/dB5nLTJRsjl95G4=",
        ]),
        seed("client_error", CLIENT, &[b"r={r}ABCD,s=c2FsdA==,i=4096", b"e=invalid-proof"]),
        seed("client_error_text", CLIENT, &[b"r={r}ABCD,s=c2FsdA==,i=4096", b"e=a b\0"]),
        seed("client_bound", CLIENT | PLUS | BINDING, &[b"r={r}ABCD,s=c2FsdA==,i=100000", b"v=,x=1"]),
        seed("client_nonce_not_longer", CLIENT, &[b"r={r},s=c2FsdA==,i=4096"]),
        seed("client_nonce_other", CLIENT, &[b"r=ABCD,s=c2FsdA==,i=4096"]),
        seed("client_salt_empty", CLIENT, &[b"r={r}ABCD,s=,i=4096"]),
        seed("client_iterations_0", CLIENT, &[b"r={r}ABCD,s=c2FsdA==,i=0"]),
        seed("client_iterations_many", CLIENT, &[b"r={r}ABCD,s=c2FsdA==,i=99999999999999999999999"]),
        seed("client_mandatory_extension", CLIENT, &[b"m=x,r={r}ABCD,s=c2FsdA==,i=4096"]),
        seed("client_extension", CLIENT | PLUS, &[b"r={r}ABCD,s=c2FsdA==,i=2,x=y"]),
    ];
    // Each message: a bit, a byte more, a byte less, cut short.
    for which in 0..4 {
        for (action, byte) in [(0, 1), (1, b','), (2, 0), (3, 0)] {
            let place = 3 + 7 * which;
            seeds.push(seed(
                &format!("changed_{which}_{action}"),
                CHANGED | PLUS,
                &[&[which, place, action, byte]],
            ));
        }
    }
    seeds.push(seed("unchanged", CHANGED, &[&[0, 0, 0, 0]]));
    seeds
}
