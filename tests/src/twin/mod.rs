//! Twins: scripts of statements that change and read a session's state, run once with a server connection for each
//! client and once through Pinion with a quarter as many. Every reply must be the same.
//!
//! Clients run side by side, each on tables, locks and names of its own, so that what one sees does not depend on when
//! the others run, but which server connection serves it does.
//!
//! With [`Faults`] server connections are killed and clients' sockets dropped meanwhile. Whom that hits is not compared
//! any more from there on; all others are.

use std::{
    any::Any,
    cell::{Cell, RefCell},
    collections::BTreeMap,
    fmt::{self, Debug, Write},
    panic::AssertUnwindSafe,
    str::FromStr,
    time::{Duration, Instant},
};

use futures_util::{
    FutureExt,
    future::{join, join_all},
};
use tokio::time::{sleep, timeout};

use crate::{Address, until};

pub mod mysql;
pub mod postgres;

/// Clients that run side by side.
pub const CLIENTS: usize = 8;
/// Server connections that Pinion has for them.
pub const CONNECTIONS: u32 = CLIENTS as u32 / 4;
/// Productions in one client's script.
const PRODUCTIONS: usize = 25;
/// Longest pause between two server connections killed.
const KILL_WITHIN_MS: usize = 100;
/// A client's socket is dropped after so long at most.
const DROP_WITHIN_MS: usize = 1500;

/// How a reply begins that the client could not read.
const GAVE_UP: &str = "the client gave up: ";

/// One engine's statements.
pub trait Engine {
    /// One thing that a client does.
    type Action: Clone + Debug + From<String>;
    /// A logged-in client.
    type Client;

    /// The names of all productions, and how often each comes up among the others.
    const PRODUCTIONS: &'static [(&'static str, usize)];
    /// Those that only run when asked for by name: what Pinion does not do yet.
    const PENDING: &'static [&'static str];

    /// Those whose clients rest on the way: where server connections are killed, few of them come to their end.
    const RESTING: &'static [&'static str] = &[];

    /// Makes what the scripts of `client` use, on a server that has nothing of it.
    fn create(client: usize) -> Vec<String>;
    /// Puts that back to what it was before a round: one text.
    fn renew(client: usize) -> String;
    /// The actions of a production, for a client of this number.
    fn produce(production: &str, random: &mut Random, client: usize) -> Vec<Self::Action>;
    /// What asks for the server connection's number; its reply is not compared.
    fn identity() -> Self::Action;
    /// Logs in.
    fn connect(address: &Address) -> impl Future<Output = Self::Client>;
    /// Does it; the reply, as a line to compare.
    fn run(
        client: &mut Self::Client,
        address: &Address,
        action: &Self::Action,
    ) -> impl Future<Output = String>;
    /// Says goodbye.
    fn leave(client: Self::Client) -> impl Future<Output = ()>;
    /// True where the replies may differ, and why that is right. All such places stand in this one function.
    fn may_differ(direct: &str, through: &str) -> bool;
    /// True of what a client is told whose server connection is lost, see `docs/errors.md`.
    fn is_loss(reply: &str) -> bool;
    /// Kills one of the server connections of others of the same user: which one, `number` decides. False if there is
    /// none.
    fn kill(setter: &mut Self::Client, number: u64) -> impl Future<Output = bool>;
    /// True when no other session of the same user does anything on the server.
    fn is_quiet(setter: &mut Self::Client) -> impl Future<Output = bool>;
}

/// A step of a script: its production, and what is done.
#[derive(Debug, Clone)]
pub struct Step<A> {
    /// Which production it comes from; empty for [`Engine::identity`].
    pub production: &'static str,
    /// What is done.
    pub action: A,
}

/// What one client does.
pub type Script<A> = Vec<Step<A>>;

/// The same numbers for the same seed (SplitMix64, by its published constants).
#[derive(Debug, Clone)]
pub struct Random(u64);

impl Random {
    /// Starts from `seed`.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// The next number.
    pub fn number(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `n`.
    pub fn below(&mut self, n: usize) -> usize {
        (self.number() % n as u64) as usize
    }

    /// One of these.
    pub fn pick<'a, T: ?Sized>(&mut self, of: &[&'a T]) -> &'a T {
        of[self.below(of.len())]
    }

    /// True once in `n` times.
    pub fn once_in(&mut self, n: usize) -> bool {
        self.below(n) == 0
    }

    /// A time shorter than so many milliseconds.
    fn within(&mut self, milliseconds: usize) -> Duration {
        Duration::from_millis(self.below(milliseconds) as u64)
    }
}

/// What goes wrong while scripts run through Pinion.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Faults {
    /// Sockets of clients close, whatever they are doing.
    pub drop: bool,
    /// Server connections are killed, whatever they are doing.
    pub kill: bool,
}

impl FromStr for Faults {
    type Err = String;

    /// Names with commas between them; none of an empty text.
    fn from_str(text: &str) -> Result<Self, String> {
        let mut faults = Self::default();
        for name in text.split(',').filter(|name| !name.is_empty()) {
            match name {
                "drop" => faults.drop = true,
                "kill" => faults.kill = true,
                other => return Err(format!("no fault is called {other}; there are drop and kill")),
            }
        }
        Ok(faults)
    }
}

/// How [`twin`] runs.
#[derive(Debug, Default, Clone)]
pub struct Options {
    /// Of the first round; each later one has the next number.
    pub seed: u64,
    /// Rounds begin for so long.
    pub lasts: Duration,
    /// What goes wrong meanwhile.
    pub faults: Faults,
    /// Only these productions; empty for all but the pending ones.
    pub only: Vec<String>,
    /// These pending ones, too; `all` is all of them.
    pub with: Vec<String>,
    /// A difference is cut down to a short script for so long.
    pub shrinks: Duration,
}

impl Options {
    /// The productions that run, and how often each comes up.
    fn productions<E: Engine>(&self) -> Vec<(&'static str, usize)> {
        let wants = |name: &str| {
            let named = |list: &[String]| list.iter().any(|wanted| wanted == name || wanted == "all");
            match self.only.is_empty() {
                true => !E::PENDING.contains(&name) || named(&self.with),
                false => named(&self.only),
            }
        };
        let chosen: Vec<_> = E::PRODUCTIONS.iter().copied().filter(|(name, _)| wants(name)).collect();
        assert!(!chosen.is_empty(), "no production is called {:?}: {:?}", self.only, E::PRODUCTIONS);
        chosen
    }
}

/// A script for `client`.
#[must_use]
pub fn script<E: Engine>(
    productions: &[(&'static str, usize)],
    random: &mut Random,
    client: usize,
) -> Script<E::Action> {
    let identity = || Step { production: "", action: E::identity() };
    let weights = productions.iter().map(|(_, weight)| weight).sum();
    let mut script = vec![identity()];
    for _ in 0..PRODUCTIONS {
        let mut at = random.below(weights);
        let chosen = productions.iter().find(|(_, weight)| {
            let here = at < *weight;
            at = at.saturating_sub(*weight);
            here
        });
        let (production, _) = *chosen.expect("below the sum of the weights");
        let actions = E::produce(production, random, client);
        script.extend(actions.into_iter().map(|action| Step { production, action }));
        if random.once_in(2) {
            script.push(identity());
        }
    }
    script.push(identity());
    script
}

/// What a client was told; shorter than its script where that did not come to its end.
#[derive(Debug, Default)]
struct Told {
    replies: Vec<String>,
    /// The last reply is the news that the connection is lost.
    lost: bool,
}

/// Runs a script up to its end, or to the loss of the connection.
async fn run<E: Engine>(address: &Address, script: &[Step<E::Action>], told: &RefCell<Told>) {
    let mut client = E::connect(address).await;
    for step in script {
        let reply = E::run(&mut client, address, &step.action).await;
        let lost = E::is_loss(&reply);
        let mut told = told.borrow_mut();
        told.replies.push(reply);
        told.lost = lost;
        if lost {
            return;
        }
    }
    E::leave(client).await;
}

/// [`run`] through Pinion: a reply that the client cannot read is one as well. With `until` its socket closes then.
async fn run_through<E: Engine>(
    address: &Address,
    script: &[Step<E::Action>],
    until: Option<Duration>,
) -> Told {
    let told = RefCell::default();
    let running = AssertUnwindSafe(run::<E>(address, script, &told)).catch_unwind();
    let outcome = match until {
        Some(until) => timeout(until, running).await.unwrap_or(Ok(())),
        None => running.await,
    };
    let mut told = told.into_inner();
    if let Err(panic) = outcome {
        told.replies.truncate(script.len() - 1);
        let reply = format!("{GAVE_UP}{}", said(&*panic));
        told.lost = E::is_loss(&reply);
        told.replies.push(reply);
    }
    told
}

fn said(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("for no reason")
}

/// How often each production ran, and how often its client was served by another server connection right after.
#[derive(Debug, Default)]
pub struct Tally {
    productions: BTreeMap<&'static str, (u64, u64)>,
    rounds: u64,
    dropped: u64,
    killed: u64,
    lost: u64,
}

impl Tally {
    fn new(productions: &[(&'static str, usize)]) -> Self {
        let productions = productions.iter().map(|(name, _)| (*name, (0, 0))).collect();
        Self { productions, ..Self::default() }
    }

    fn count<A>(&mut self, script: &[Step<A>], replies: &[String]) {
        let mut since: Vec<&'static str> = Vec::new();
        let mut last: Option<&str> = None;
        for (step, reply) in script.iter().zip(replies) {
            if !step.production.is_empty() {
                if since.last() != Some(&step.production) {
                    since.push(step.production);
                    self.productions.entry(step.production).or_default().0 += 1;
                }
                continue;
            }
            if last.is_some_and(|last| last != reply) {
                for production in &since {
                    self.productions.entry(production).or_default().1 += 1;
                }
            }
            since.clear();
            last = Some(reply);
        }
    }

    /// The production, `but` for these, that ran least often while its connection changed hands, and how often.
    #[must_use]
    pub fn least_moved(&self, but: &[&str]) -> (&'static str, u64) {
        let productions = self.productions.iter().filter(|(name, _)| !but.contains(name));
        let moved = productions.map(|(name, (_, moved))| (*name, *moved));
        moved.min_by_key(|(_, moved)| *moved).unwrap_or_default()
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{:28} {:>9} {:>9}", "production", "ran", "moved")?;
        for (production, (ran, moved)) in &self.productions {
            writeln!(f, "{production:28} {ran:>9} {moved:>9}")?;
        }
        write!(f, "{} rounds; {} clients dropped; ", self.rounds, self.dropped)?;
        writeln!(f, "{} server connections killed, by which {} clients lost theirs", self.killed, self.lost)
    }
}

/// The first reply of a client that differs.
#[derive(Debug)]
pub struct Difference {
    /// Which client.
    pub client: usize,
    /// Which step of its script.
    pub step: usize,
    /// Replies of a server connection of its own.
    pub direct: String,
    /// Replies through Pinion.
    pub through: String,
}

/// Where the two ways lead: a server alone, and a Pinion in front of another that is its equal.
#[derive(Debug)]
pub struct Ways {
    /// Straight to a server.
    pub direct: Address,
    /// The server behind Pinion, for setting up.
    pub behind: Address,
    /// Through Pinion.
    pub through: Address,
}

/// Both ways, set up.
struct Twins<'a, E: Engine> {
    ways: &'a Ways,
    faults: Faults,
    /// Set up the one server and the other, and kill connections there.
    direct: E::Client,
    behind: E::Client,
    /// Connections killed in the round before: the last of them may not be found dead before this round.
    killed_before: u64,
}

impl<'a, E: Engine> Twins<'a, E> {
    async fn new(ways: &'a Ways, faults: Faults) -> Self {
        let set_up = async |address: &Address| {
            let mut setter = E::connect(address).await;
            for statement in (0..CLIENTS).flat_map(E::create) {
                E::run(&mut setter, address, &statement.into()).await;
            }
            setter
        };
        let (direct, behind) = join(set_up(&ways.direct), set_up(&ways.behind)).await;
        Self { ways, faults, direct, behind, killed_before: 0 }
    }

    async fn renew(&mut self, scripts: &[(usize, Script<E::Action>)]) {
        let renew = async |setter: &mut E::Client, address: &Address| {
            for (client, _) in scripts {
                E::run(setter, address, &E::renew(*client).into()).await;
            }
        };
        let (direct, behind) = (&mut self.direct, &mut self.behind);
        join(renew(direct, &self.ways.direct), renew(behind, &self.ways.behind)).await;
    }

    /// Runs all scripts both ways; `chance` decides about the faults.
    async fn round(
        &mut self,
        scripts: &[(usize, Script<E::Action>)],
        chance: &mut Random,
        tally: &mut Tally,
    ) -> Option<Difference> {
        self.renew(scripts).await;
        let straight = join_all(scripts.iter().map(async |(_, script)| {
            let told = RefCell::default();
            run::<E>(&self.ways.direct, script, &told).await;
            told.into_inner()
        }));
        let drops: Vec<Option<Duration>> = scripts
            .iter()
            .map(|_| (self.faults.drop && chance.once_in(3)).then(|| chance.within(DROP_WITHIN_MS)))
            .collect();
        let over = Cell::new(false);
        let through = async {
            let all = scripts.iter().zip(&drops);
            let all = all.map(|((_, script), until)| run_through::<E>(&self.ways.through, script, *until));
            let told = join_all(all).await;
            over.set(true);
            told
        };
        let behind = &mut self.behind;
        let kills = async {
            let mut killed = 0;
            while self.faults.kill && !over.get() {
                sleep(chance.within(KILL_WITHIN_MS)).await;
                killed += u64::from(!over.get() && E::kill(behind, chance.number()).await);
            }
            killed
        };
        let (direct, (through, killed)) = join(straight, join(through, kills)).await;
        if self.faults != Faults::default() {
            // What a dropped client has sent may not have ended with it.
            until("nothing runs behind Pinion", async || E::is_quiet(&mut self.behind).await).await;
        }
        let lost = through.iter().filter(|told| told.lost).count() as u64;
        tally.rounds += 1;
        tally.killed += killed;
        tally.lost += lost;
        tally.dropped += drops.iter().flatten().count() as u64;
        // One killed connection is lost by one client at most.
        let mut unexplained = lost.saturating_sub(killed + self.killed_before);
        self.killed_before = killed;
        let mut first = None;
        for (((client, script), direct), through) in scripts.iter().zip(&direct).zip(&through) {
            tally.count(script, &through.replies);
            let mut compared = through.replies.len();
            if through.lost && unexplained == 0 {
                compared -= 1;
            } else if through.lost {
                unexplained -= 1;
            }
            let differs = |step: &usize| {
                let here = direct.replies.get(*step).map_or("", String::as_str);
                let there = through.replies[*step].as_str();
                let is_compared =
                    !script[*step].production.is_empty() || E::is_loss(there) || there.starts_with(GAVE_UP);
                is_compared && here != there && !E::may_differ(here, there)
            };
            if first.is_none()
                && let Some(step) = (0..compared).find(differs)
            {
                let direct = direct.replies.get(step).cloned().unwrap_or_default();
                first = Some(Difference {
                    client: *client,
                    step,
                    direct,
                    through: through.replies[step].clone(),
                });
            }
        }
        first
    }

    /// Leaves out of the script of the client that differs what is not needed for a difference; the others stay as they
    /// are. What is left, and the difference it makes.
    async fn shrink(
        &mut self,
        scripts: &[(usize, Script<E::Action>)],
        chance: &mut Random,
        found: Difference,
        until: Instant,
    ) -> (Script<E::Action>, Difference) {
        let at = scripts.iter().position(|(client, _)| *client == found.client).unwrap_or(0);
        let mut all = scripts.to_vec();
        let mut found = found;
        all[at].1.truncate(found.step + 1);
        let mut chunk = (all[at].1.len() / 2).max(1);
        while Instant::now() < until {
            let mut begin = 0;
            let mut less = false;
            while begin < all[at].1.len() && Instant::now() < until {
                let mut tried = all.clone();
                let end = (begin + chunk).min(tried[at].1.len());
                tried[at].1.drain(begin..end);
                // Who is served by which connection is a matter of chance.
                let mut smaller = None;
                for _ in 0..3 {
                    let difference = self.round(&tried, chance, &mut Tally::default()).await;
                    smaller = difference.filter(|difference| {
                        let kind = |script: &Script<_>, at: usize| script.get(at).map(|step| step.production);
                        difference.client == found.client
                            && kind(&tried[at].1, difference.step) == kind(&all[at].1, found.step)
                    });
                    if smaller.is_some() {
                        break;
                    }
                }
                match smaller {
                    Some(difference) => {
                        tried[at].1.truncate(difference.step + 1);
                        (all, found, less) = (tried, difference, true);
                    }
                    None => begin = end,
                }
            }
            if !less && chunk == 1 {
                break;
            }
            chunk = (chunk / 2).max(1);
        }
        (all.swap_remove(at).1, found)
    }
}

/// Runs rounds. What was run; or, as a text to read, a difference with the short script that makes it.
pub async fn twin<E: Engine>(ways: &Ways, options: &Options) -> Result<Tally, String> {
    let end = Instant::now() + options.lasts;
    let productions = options.productions::<E>();
    let mut tally = Tally::new(&productions);
    let mut twins = Twins::<E>::new(ways, options.faults).await;
    let mut number = options.seed;
    loop {
        let mut random = Random::new(number);
        let scripts: Vec<_> =
            (0..CLIENTS).map(|client| (client, script::<E>(&productions, &mut random, client))).collect();
        if let Some(found) = twins.round(&scripts, &mut random, &mut tally).await {
            let mut report = format!("seed {number}, client {}: {found:#?}\n", found.client);
            let until = Instant::now() + options.shrinks;
            let (script, found) = twins.shrink(&scripts, &mut random, found, until).await;
            writeln!(report, "shortest script found:").ok();
            for step in &script {
                writeln!(report, "  {:24} {:?}", step.production, step.action).ok();
            }
            writeln!(report, "direct:  {}\nthrough: {}", found.direct, found.through).ok();
            return Err(report);
        }
        number += 1;
        if Instant::now() >= end {
            return Ok(tally);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{mysql::MariaDb, postgres::Postgres, *};

    #[test]
    fn faults_have_names() {
        assert_eq!("".parse(), Ok(Faults::default()));
        assert_eq!("kill,drop".parse(), Ok(Faults { drop: true, kill: true }));
        assert!("kil".parse::<Faults>().is_err());
    }

    #[test]
    fn what_comes_before_a_change_of_connections_has_moved() {
        let step = |production| Step { production, action: () };
        let script = ["", "a", "a", "b", "", "a", ""].map(step);
        let mut tally = Tally::default();
        tally.count(&script, &["1", "", "", "", "2", "", "2"].map(str::to_owned));
        assert_eq!(tally.productions, BTreeMap::from([("a", (2, 1)), ("b", (1, 1))]));
        assert_eq!(tally.least_moved(&[]).1, 1);
    }

    #[test]
    fn pending_productions_run_only_when_named() {
        fn runs<E: Engine>(only: &str, with: &str) -> Vec<&'static str> {
            let list = |name: &str| Vec::from_iter((!name.is_empty()).then(|| name.to_owned()));
            let options = Options { only: list(only), with: list(with), ..Options::default() };
            options.productions::<E>().into_iter().map(|(name, _)| name).collect()
        }
        fn check<E: Engine>() {
            let all: Vec<_> = E::PRODUCTIONS.iter().map(|(name, _)| *name).collect();
            assert!(E::PENDING.iter().all(|name| all.contains(name)));
            assert_eq!(runs::<E>("", "all"), all);
            assert_eq!(runs::<E>("", "").len() + E::PENDING.len(), all.len());
            for name in E::PENDING {
                assert_eq!(runs::<E>(name, ""), [*name]);
            }
            let mut random = Random::new(1);
            for name in all {
                assert!((0..50).all(|_| !E::produce(name, &mut random, 0).is_empty()), "{name}");
            }
        }
        check::<Postgres>();
        check::<MariaDb>();
    }

    #[test]
    fn a_loss_is_told_in_the_words_that_are_documented() {
        let lost = r#"["E FATAL 08006 The connection to the database server was lost.", "closed"]"#;
        assert!(Postgres::is_loss(lost));
        assert!(!Postgres::is_loss(r#"["closed"]"#));
        assert!(!Postgres::is_loss(
            r#"["E ERROR 57P01 terminating connection due to administrator command", "Z I"]"#
        ));
        assert!(MariaDb::is_loss("[1105 (08S01) The connection to the database server was lost.]"));
        assert!(!MariaDb::is_loss("[1146 (42S02) Table 'appdb.x' doesn't exist]"));
    }
}
