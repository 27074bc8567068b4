//! Clients, trackers and obedient servers, moved as a session moves them but step by step.
//!
//! Every client has a second server of its own that hears what it says directly: what the client gets through the
//! proxy must be what that one answers.

use std::collections::HashMap;

use pinion::{
    buffer::{Buffer, Pipe},
    protocol::{
        Absorbed, ClientEvent, Connect, Fault, FaultKind, Greeting, PinReason, PinReasons, PoolKey, Protocol,
        ServerEvent, ServerState, Statement, Tracker, Tx,
        postgres::{Postgres, Shared, handshake::PgConnect, server::PgServer, tracker::PgTracker},
    },
};

use super::{
    connect::welcome,
    fake::Fake,
    wire::{Cut, Random, messages, secret},
};

/// How a conversation is played.
#[derive(Debug, Clone, Copy)]
pub struct Options {
    /// Of everything that is read.
    pub cut: Cut,
    /// Prepared statements on one server connection.
    pub max_prepared: usize,
    /// Which server is lent when, and who is refused.
    pub seed: u64,
    /// Some requests get no server.
    pub refusals: bool,
    /// Answers come as soon as they can, even between the pieces of a message.
    pub eager: bool,
}

/// Everybody.
pub struct World {
    options: Options,
    shared: Shared,
    random: Random,
    /// Its servers; more than can be in use at once.
    pub servers: Vec<Server>,
    /// Its clients.
    pub clients: Vec<Client>,
}

/// A server connection, both ends.
pub struct Server {
    /// Their end.
    pub fake: Fake,
    state: PgServer,
    used_by: Option<usize>,
    lent: bool,
    tainted: bool,
}

/// A client, the proxy's end of it and what it ought to see.
pub struct Client {
    tracker: PgTracker,
    up: Pipe,
    down: Pipe,
    link: Option<usize>,
    foreign: bool,
    forget_on_borrow: bool,
    pins: PinReasons,
    pending: Pending,
    /// Sent to the server that is held and not looked at yet.
    wire: Vec<u8>,
    /// The server that it would have without a proxy.
    pub direct: Fake,
    /// What that one answered.
    pub wanted: Vec<u8>,
    /// What the proxy answered.
    pub got: Vec<u8>,
    /// Why its connection ended.
    pub over: Option<String>,
    /// A request of it was refused.
    pub refused: bool,
}

#[derive(Default)]
struct Pending {
    sets: PinReasons,
    clears: PinReasons,
    taints: bool,
    statements: u32,
    answers: u32,
    in_transaction: bool,
}

impl World {
    /// So many clients that have just logged in, and a server more than they can use.
    pub fn new(options: Options, clients: usize) -> Self {
        let shared = Postgres::shared(options.max_prepared);
        let servers: Vec<_> = (0..=clients).map(|_| Server::new(&shared)).collect();
        let greeting = servers[0].state.greeting();
        Self {
            options,
            random: Random::new(options.seed),
            servers,
            clients: (0..clients).map(|_| Client::new(&greeting)).collect(),
            shared,
        }
    }

    /// A client sends this; how many requests were thereby answered to it directly.
    pub fn send(&mut self, who: usize, bytes: &[u8]) -> usize {
        let client = &mut self.clients[who];
        client.direct.feed(bytes);
        let answer = client.direct.take();
        client.wanted.extend_from_slice(&answer);
        self.send_through_only(who, bytes);
        // What drops all statements is answered before more is sent: see `docs/fuzzing.md`.
        if bytes.windows(5).any(|window| window == b" ALL\0") {
            self.settle(who);
        }
        let (answers, _) = messages(&answer).expect("well-formed messages");
        answers.iter().filter(|(tag, _)| *tag == b'Z').count()
    }

    /// A client sends this, and nobody asks what it would get without a proxy.
    pub fn send_through_only(&mut self, who: usize, bytes: &[u8]) {
        for piece in self.options.cut.pieces(bytes) {
            self.clients[who].up.input_mut().extend(piece);
            self.serve(who);
            if self.options.eager {
                self.settle(who);
            }
        }
    }

    /// A client's server answers all it has been sent, and the proxy goes on until nothing moves.
    pub fn settle(&mut self, who: usize) {
        while self.clients[who].over.is_none() && self.answer(who) {
            self.serve(who);
        }
    }

    /// What the client gets must be what a server of its own would have said: everything that one has let go, and
    /// nothing that one has not at least thought of.
    pub fn compare(&self, who: usize) {
        let client = &self.clients[who];
        if client.over.is_some() || client.refused {
            return;
        }
        let (got, wanted) = (&client.got, &client.wanted);
        let all = [wanted, client.direct.held()].concat();
        let shown = |bytes: &[u8]| {
            let (found, rest) = messages(bytes).unwrap_or_default();
            let one = |(tag, body): &(u8, &[u8])| format!("{} {}", char::from(*tag), body.escape_ascii());
            found.iter().map(one).collect::<Vec<_>>().join("\n") + &rest.escape_ascii().to_string()
        };
        assert!(
            got.starts_with(wanted) && all.starts_with(got),
            "client {who} got\n{}\nwanted\n{}\nheld\n{}",
            shown(got),
            shown(wanted),
            shown(client.direct.held())
        );
    }

    /// What each server was sent, statement names of ours numbered as they come.
    pub fn heard(&self) -> Vec<Vec<String>> {
        self.servers.iter().map(|server| with_numbered_names(server.fake.heard())).collect()
    }

    /// The client's tracker looks at what is there, and gets what it asks for.
    fn serve(&mut self, who: usize) {
        for _ in 0..100_000 {
            let client = &mut self.clients[who];
            if client.over.is_some() {
                return;
            }
            let server = client.link.map(|at| &mut self.servers[at].state);
            let event = client.tracker.on_client(&self.shared, &mut client.up, server, &mut client.down);
            client.collect();
            match event {
                Ok(ClientEvent::Statement(statement)) => {
                    self.decide(who, &statement);
                    let client = &mut self.clients[who];
                    client.collect();
                    client.tracker.admit(true);
                }
                Ok(ClientEvent::NeedServer) => self.lend(who),
                Ok(ClientEvent::NeedAnswer) => {
                    assert!(self.answer(who), "the tracker waits for an answer that nobody owes");
                }
                Ok(ClientEvent::AnsweredHere) => client.pending = Pending::default(),
                Ok(ClientEvent::NeedBytes) => return,
                Ok(ClientEvent::Quit) => client.over = Some("quit".to_owned()),
                Ok(event) => panic!("PostgreSQL has nothing like {event:?}"),
                Err(error) => client.over = Some(error.to_string()),
            }
        }
        panic!("the tracker goes round in circles");
    }

    /// As a session does before a statement runs.
    fn decide(&mut self, who: usize, statement: &Statement) {
        let client = &mut self.clients[who];
        let server = client.link.map(|at| &mut self.servers[at]);
        let facts = &statement.facts;
        let in_transaction =
            server.as_ref().is_some_and(|s| s.state.tx() != Tx::Idle || s.state.owes_answer());
        let function = PinReasons::only(PinReason::SessionFunction);
        let sets = facts.pins.union(statement.extra_pins).without(function);
        if facts.needs_session_function && client.link.is_none() {
            client.forget_on_borrow = true;
        }
        client.pending.taints |= facts.taints;
        if let Some(server) = server {
            if facts.needs_session_function && client.foreign {
                client.tracker.write_forget_session_functions(&mut server.state, &mut client.up);
                client.foreign = false;
            }
            server.tainted |= std::mem::take(&mut client.pending.taints);
        }
        client.pending.sets = client.pending.sets.union(sets);
        if !in_transaction {
            client.pending.clears = client.pending.clears.union(facts.clears);
        }
        client.pending.statements += u32::from(facts.statements.max(1));
        client.pending.in_transaction |= in_transaction;
    }

    fn lend(&mut self, who: usize) {
        let refused = self.options.refusals && self.random.below(4) == 0;
        let free: Vec<usize> = (0..self.servers.len()).filter(|at| !self.servers[*at].lent).collect();
        let at = free[self.random.below(free.len())];
        let client = &mut self.clients[who];
        if refused {
            client.refused = true;
            client.forget_on_borrow = false;
            client.pending = Pending::default();
            let fault = Fault::error(FaultKind::BorrowTimeout, "no");
            client.tracker.refuse(&fault, &mut client.up, &mut client.down);
            client.collect();
            return;
        }
        let server = &mut self.servers[at];
        server.lent = true;
        client.foreign = server.used_by != Some(who);
        client.tracker.attach(&server.state);
        client.link = Some(at);
        if std::mem::take(&mut client.forget_on_borrow) && client.foreign {
            client.tracker.write_forget_session_functions(&mut server.state, &mut client.up);
            client.foreign = false;
        }
        server.tainted |= std::mem::take(&mut client.pending.taints);
        client.collect();
    }

    /// The server held hears what was sent and answers; true when something came of it.
    fn answer(&mut self, who: usize) -> bool {
        let client = &mut self.clients[who];
        let Some(at) = client.link else { return false };
        let sent = std::mem::take(&mut client.wire);
        let server = &mut self.servers[at];
        server.fake.feed(&sent);
        let answers = server.fake.take();
        self.hear(who, &answers);
        self.release_if_free(who) || !answers.is_empty()
    }

    /// True when some requests get no server.
    pub fn refuses(&self) -> bool {
        self.options.refusals
    }

    /// What the server held would say now, were it as good as the others.
    pub fn honest_answers(&mut self, who: usize) -> Vec<u8> {
        let client = &mut self.clients[who];
        let Some(at) = client.link else { return Vec::new() };
        let fake = &mut self.servers[at].fake;
        fake.feed(&std::mem::take(&mut client.wire));
        fake.take()
    }

    /// True when the client has been given the front of a message and not yet its end.
    pub fn is_mid_message(&self, who: usize) -> bool {
        self.clients[who].link.is_some_and(|at| self.servers[at].state.is_mid_message())
    }

    /// The server held sends this.
    pub fn hear(&mut self, who: usize, bytes: &[u8]) {
        for piece in self.options.cut.pieces(bytes) {
            let client = &mut self.clients[who];
            let Some(at) = client.link.filter(|_| client.over.is_none()) else { return };
            client.down.input_mut().extend(piece);
            loop {
                let client = &mut self.clients[who];
                let server = &mut self.servers[at];
                let event = client.tracker.on_server(&mut client.down, &mut server.state);
                client.collect();
                match event {
                    Ok(ServerEvent::NeedBytes) => break,
                    Ok(ServerEvent::Answered { failed, nothing_ran }) => {
                        client.pending.answers += 1;
                        if !server.state.owes_answer() {
                            client.settle_pins(failed, nothing_ran, &mut server.tainted);
                        }
                    }
                    Err(error) => {
                        client.over = Some(format!("server: {error}"));
                        return;
                    }
                }
            }
        }
    }

    /// A server that is clean as far as the proxy can tell goes back.
    fn release_if_free(&mut self, who: usize) -> bool {
        let client = &mut self.clients[who];
        let Some(at) = client.link else { return false };
        let server = &mut self.servers[at];
        let free = server.state.tx() == Tx::Idle
            && server.state.is_quiet()
            && client.pins.is_empty()
            && client.wire.is_empty()
            && client.pending.statements == 0
            && !client.tracker.is_mid_message()
            && client.down.unread().is_empty();
        if client.over.is_some() || !free {
            return false;
        }
        client.link = None;
        server.used_by = Some(who);
        server.lent = false;
        assert!(server.fake.is_idle(), "a server goes back that is not done");
        if server.state.must_retire() || server.tainted | server.state.is_tainted() {
            server.reset();
        }
        for name in server.fake.names() {
            assert!(
                name.is_empty() || name.starts_with(b"_pinion_") && name != b"_pinion_forget",
                "a server goes back with the client's {}",
                name.escape_ascii()
            );
        }
        true
    }
}

impl Server {
    fn new(shared: &Shared) -> Self {
        let key = PoolKey { user: "app".into(), parameters: Box::default() };
        let mut connect = PgConnect::start(&key, secret(), None, &mut Vec::new());
        let mut input = Buffer::default();
        input.extend(&welcome());
        connect.advance(&mut input, &mut Vec::new()).expect("a good welcome");
        let state = connect.finish(shared);
        Self { fake: Fake::behind_proxy(), state, used_by: None, lent: false, tainted: false }
    }

    fn reset(&mut self) {
        let mut out = Vec::new();
        Postgres::write_reset(&mut self.state, &mut out);
        self.fake.feed(&out);
        let mut input = Buffer::default();
        input.extend(&self.fake.take());
        let absorbed = self.state.absorb(&mut input).expect("a good answer to a reset");
        assert_eq!(absorbed, Absorbed::Done { row: Vec::new(), error: None });
        self.tainted = false;
    }
}

impl Client {
    fn new(greeting: &Greeting) -> Self {
        let key = PoolKey { user: "app".into(), parameters: Box::default() };
        Self {
            tracker: PgTracker::new(&key, greeting, ()),
            up: Pipe::default(),
            down: Pipe::default(),
            link: None,
            foreign: false,
            forget_on_borrow: false,
            pins: PinReasons::NONE,
            pending: Pending::default(),
            wire: Vec::new(),
            direct: Fake::default(),
            wanted: Vec::new(),
            got: Vec::new(),
            over: None,
            refused: false,
        }
    }

    /// Takes what was put into the pipes.
    fn collect(&mut self) {
        let sent = self.up.take_output();
        assert!(sent.is_empty() || self.link.is_some(), "sent to no server: {}", sent.escape_ascii());
        self.wire.extend(sent);
        self.got.extend(self.down.take_output());
    }

    /// As a session does after a whole answer, but that a failure counts for the one request only.
    fn settle_pins(&mut self, failed: bool, nothing_ran: bool, tainted: &mut bool) {
        let pending = std::mem::take(&mut self.pending);
        let before = self.pins;
        let mut sets = pending.sets;
        if nothing_ran {
            sets = PinReasons::NONE;
        } else if failed && pending.answers <= 1 && pending.statements <= 1 && !pending.in_transaction {
            sets = sets.without(PinReasons::ROLLED_BACK);
            *tainted |= sets != pending.sets;
        }
        if !failed {
            self.pins = self.pins.without(pending.clears);
        }
        self.pins = self.pins.union(sets);
        *tainted |= !before.is_empty() && self.pins.is_empty();
    }
}

/// Messages in one line each; the proxy's statement names become numbers, in the order in which they come.
fn with_numbered_names(bytes: &[u8]) -> Vec<String> {
    let (found, rest) = messages(bytes).expect("well-formed messages");
    let mut numbers = HashMap::new();
    let mut lines: Vec<String> = found
        .into_iter()
        .map(|(tag, body)| {
            let text = body.escape_ascii().to_string();
            let mut line = format!("{} ", char::from(tag));
            for (at, part) in text.split("_pinion_").enumerate() {
                let end = part.find(|c: char| !c.is_ascii_hexdigit()).unwrap_or(part.len());
                let (id, after) = part.split_at(end);
                if at == 0 {
                    line += part;
                } else if id.is_empty() || after.starts_with(char::is_alphabetic) {
                    line += &format!("_pinion_{part}");
                } else {
                    let next = numbers.len();
                    line += &format!("#{}{after}", numbers.entry(id.to_owned()).or_insert(next));
                }
            }
            line
        })
        .collect();
    lines.push(format!("and {} bytes", rest.len()));
    lines
}
