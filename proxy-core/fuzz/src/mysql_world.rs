//! MySQL clients, trackers and obedient servers, moved as a session moves them but step by step; as `world.rs` does for
//! PostgreSQL. What a session makes again elsewhere is a pin here, since these servers have no settings.

use pinion::{
    buffer::{Buffer, Pipe},
    protocol::{
        Absorbed, ClientEvent, Compression, Fault, FaultKind, Greeting, Killed, PinReason, PinReasons,
        PoolKey, Protocol, ServerEvent, ServerState, StateChange, Statement, Tracker, Tx,
        mysql::{
            MySql, Shared,
            auth::Nonce,
            codec::{Capabilities, Extended, Status},
            handshake::{MyClient, MyHello, ServerLogin},
            key::pool_key,
            server::MyServer,
            tracker::MyTracker,
        },
    },
};

use super::{
    mysql_fake::{Fake, whole},
    wire::{Cut, Random},
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
    /// The servers know DEPRECATE_EOF.
    pub new_servers: bool,
    /// So do the clients.
    pub new_clients: bool,
}

const OLD: Capabilities = Capabilities(
    Capabilities::PROTOCOL_41.0
        | Capabilities::TRANSACTIONS.0
        | Capabilities::LOCAL_FILES.0
        | Capabilities::MULTI_RESULTS.0
        | Capabilities::PS_MULTI_RESULTS.0,
);

fn of_clients(options: &Options, who: usize) -> Capabilities {
    OLD.with(Capabilities::DEPRECATE_EOF, options.new_clients)
        .with(Capabilities::SESSION_TRACK, options.new_clients)
        .with(Capabilities::MULTI_STATEMENTS, who == 0)
}

fn of_servers(options: &Options) -> Capabilities {
    OLD.with(Capabilities::DEPRECATE_EOF, options.new_servers)
        .with(Capabilities::SESSION_TRACK, true)
        .with(Capabilities::MULTI_STATEMENTS, true)
}

/// Everybody.
pub struct World {
    options: Options,
    shared: Shared,
    random: Random,
    /// Its servers; more than can be in use at once.
    pub servers: Vec<Server>,
    /// Its clients. The first may send several statements in one.
    pub clients: Vec<Client>,
}

/// A server connection, both ends.
pub struct Server {
    /// Their end.
    pub fake: Fake,
    state: MyServer,
    lent: bool,
    tainted: bool,
}

/// A client, the proxy's end of it and what it ought to see.
pub struct Client {
    tracker: MyTracker,
    up: Pipe,
    down: Pipe,
    link: Option<usize>,
    pins: PinReasons,
    pending: PinReasons,
    undecided: bool,
    taints: bool,
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

impl World {
    /// So many clients that have just logged in, and a server more than they can use.
    pub fn new(options: Options, clients: usize) -> Self {
        let servers: Vec<_> = (0..=clients).map(|_| Server::new(&options)).collect();
        let greeting = servers[0].state.greeting();
        Self {
            options,
            shared: MySql::shared(options.max_prepared),
            random: Random::new(options.seed),
            servers,
            clients: (0..clients).map(|who| Client::new(&greeting, of_clients(&options, who))).collect(),
        }
    }

    /// A client sends this.
    pub fn send(&mut self, who: usize, bytes: &[u8]) {
        let client = &mut self.clients[who];
        client.direct.feed(bytes);
        let answer = client.direct.take();
        client.wanted.extend_from_slice(&answer);
        self.send_through_only(who, bytes);
    }

    /// A client sends this, and nobody asks what it would get without a proxy.
    pub fn send_through_only(&mut self, who: usize, bytes: &[u8]) {
        for piece in self.options.cut.pieces(bytes) {
            self.clients[who].up.input_mut().extend(piece);
            self.serve(who);
        }
    }

    /// A client's server answers all it has been sent, and the proxy goes on until nothing moves.
    pub fn settle(&mut self, who: usize) {
        while self.clients[who].over.is_none() && self.answer(who) {
            self.serve(who);
        }
    }

    /// Once everything is answered, what the client got must be what a server of its own has said.
    pub fn compare(&self, who: usize) {
        let client = &self.clients[who];
        if client.over.is_some() || client.refused {
            return;
        }
        let (got, wanted) = (whole(&client.got), whole(&client.wanted));
        let same = got.0.iter().zip(&wanted.0).take_while(|(one, other)| one == other).count();
        let shown = |(packets, rest): &(Vec<&[u8]>, &[u8])| {
            let packets = packets.iter().skip(same).map(|packet| packet.escape_ascii().to_string());
            packets.collect::<Vec<_>>().join("\n") + &rest.escape_ascii().to_string()
        };
        assert!(
            client.got == client.wanted,
            "client {who}, behind {same} packets, got\n{}\nwanted\n{}",
            shown(&got),
            shown(&wanted)
        );
    }

    /// What each server was sent.
    pub fn heard(&self) -> Vec<Vec<u8>> {
        self.servers.iter().map(|server| server.fake.heard().to_vec()).collect()
    }

    /// True when the client has been given the front of a packet and not yet its end.
    pub fn is_mid_message(&self, who: usize) -> bool {
        self.clients[who].link.is_some_and(|at| self.servers[at].state.is_mid_message())
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
                Ok(ClientEvent::Statement(statement)) => self.decide(who, &statement),
                Ok(ClientEvent::NeedServer) => self.lend(who),
                Ok(ClientEvent::NeedAnswer) => {
                    assert!(self.answer(who), "the tracker waits for an answer that nobody owes");
                }
                Ok(ClientEvent::AnsweredHere) => {
                    (client.undecided, client.pending, client.taints) = (false, PinReasons::NONE, false)
                }
                Ok(ClientEvent::NeedBytes) => return,
                Ok(ClientEvent::Kill(_)) => {
                    client.tracker.killed(Killed::Unknown, &mut client.up, &mut client.down);
                    client.undecided = false;
                    client.collect();
                }
                Ok(ClientEvent::LogIn) => client.over = Some("logs in".to_owned()),
                Ok(ClientEvent::Quit) => client.over = Some("quit".to_owned()),
                Err(error) => client.over = Some(error.to_string()),
            }
        }
        panic!("the tracker goes round in circles");
    }

    /// As a session does before a statement runs.
    fn decide(&mut self, who: usize, statement: &Statement) {
        let client = &mut self.clients[who];
        client.pending = client.pending.union(statement.facts.pins).union(statement.extra_pins);
        client.taints |= statement.facts.taints;
        client.undecided = true;
        client.tracker.admit(true);
    }

    fn lend(&mut self, who: usize) {
        let refused = self.options.refusals && self.random.below(4) == 0;
        let free: Vec<usize> = (0..self.servers.len()).filter(|at| !self.servers[*at].lent).collect();
        let at = free[self.random.below(free.len())];
        let client = &mut self.clients[who];
        if refused {
            client.refused = true;
            client.pending = PinReasons::NONE;
            client.undecided = false;
            let fault = Fault::error(FaultKind::BorrowTimeout, "no");
            client.tracker.refuse(&fault, &mut client.up, &mut client.down);
            client.collect();
            return;
        }
        let server = &mut self.servers[at];
        server.lent = true;
        client.tracker.attach(&server.state);
        client.link = Some(at);
        client.collect();
    }

    /// The server held hears what was sent and answers; true when something came of it.
    fn answer(&mut self, who: usize) -> bool {
        let answers = self.honest_answers(who);
        self.hear(who, &answers);
        self.release_if_free(who) || !answers.is_empty()
    }

    /// What the server held would say now, were it as good as the others.
    pub fn honest_answers(&mut self, who: usize) -> Vec<u8> {
        let client = &mut self.clients[who];
        let Some(at) = client.link else { return Vec::new() };
        let fake = &mut self.servers[at].fake;
        fake.feed(&std::mem::take(&mut client.wire));
        fake.take()
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
                    Ok(ServerEvent::Answered { failed, .. }) => client.answered(failed, server),
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
            && !client.undecided
            && !client.tracker.is_mid_message()
            && client.down.unread().is_empty();
        if client.over.is_some() || !free {
            return false;
        }
        client.link = None;
        server.lent = false;
        assert!(server.fake.is_idle(), "a server goes back that is not done");
        // Those that were in use when there was one too many are still there.
        let most = self.options.max_prepared + 8;
        assert!(server.fake.prepared() <= most, "{} statements on a server", server.fake.prepared());
        if server.state.must_retire() {
            *server = Server::new(&self.options);
        } else if server.tainted | server.state.is_tainted() {
            server.reset();
        }
        true
    }
}

impl Server {
    fn new(options: &Options) -> Self {
        let agreed = of_servers(options);
        let login = ServerLogin {
            capabilities: agreed,
            extended: Extended::NONE,
            version: "11.4.2-MariaDB".into(),
            connection_id: 9,
            status: Status::AUTOCOMMIT,
            is_mariadb: true,
            tracks: true,
            baseline: ["utf8mb4", "utf8mb4", "utf8mb4", "utf8mb4_general_ci", "", "1"]
                .map(str::to_owned)
                .into(),
            hello: MyHello {
                version: "11.4.2-MariaDB".into(),
                capabilities: agreed,
                extended: Extended::NONE,
                collation: 45,
            },
        };
        let state = MyServer::new(&login, b"shop", options.max_prepared);
        Self { fake: Fake::new(agreed), state, lent: false, tainted: false }
    }

    fn reset(&mut self) {
        let mut out = Vec::new();
        MySql::write_reset(&mut self.state, &mut out);
        self.fake.feed(&out);
        let mut input = Buffer::default();
        input.extend(&self.fake.take());
        let absorbed = self.state.absorb(&mut input).expect("a good answer to a reset");
        assert!(matches!(absorbed, Absorbed::Done { error: None, .. }), "{absorbed:?}");
        assert!(input.is_empty(), "more answers than were asked for");
        self.tainted = false;
    }
}

impl Client {
    fn new(greeting: &Greeting, agreed: Capabilities) -> Self {
        let key: PoolKey = pool_key("app", b"shop", 45, agreed, Extended::NONE);
        let client = MyClient {
            capabilities: agreed,
            extended: Extended::NONE,
            compression: Compression::None,
            encrypted: false,
            nonce: Nonce(*b"01234567890123456789"),
            id: 77,
        };
        Self {
            tracker: MyTracker::new(&key, greeting, client),
            up: Pipe::default(),
            down: Pipe::default(),
            link: None,
            pins: PinReasons::NONE,
            pending: PinReasons::NONE,
            undecided: false,
            taints: false,
            wire: Vec::new(),
            direct: Fake::new(agreed),
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

    /// As a session does after a whole answer.
    fn answered(&mut self, failed: bool, server: &mut Server) {
        self.undecided = false;
        self.pins = self.pins.union(std::mem::take(&mut self.pending));
        server.tainted |= std::mem::take(&mut self.taints) || !self.pins.is_empty();
        let learned = self.tracker.take_learned();
        self.pins = self.pins.union(learned.pins);
        for change in learned.changes {
            match change {
                StateChange::Made(..) => self.pins.insert(PinReason::SessionVariable),
                StateChange::ResetAll => self.pins = PinReasons::NONE,
            }
        }
        server.tainted |= !self.pins.is_empty();
        if failed {
            self.tracker.write_question(&mut server.state, &mut self.up);
            self.collect();
        }
    }
}
