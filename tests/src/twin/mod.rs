//! Twins: scripts of statements that change and read a session's state, run once with a server connection for each
//! client and once through Pinion with a quarter as many. Every reply must be the same.
//!
//! Clients run side by side, each on tables, locks and names of its own, so that what one sees does not depend on when
//! the others run, but which server connection serves it does.

use std::{
    collections::BTreeMap,
    fmt::{self, Debug, Write},
    time::{Duration, Instant},
};

use futures_util::future::join_all;

use crate::Address;

pub mod mysql;

/// Clients that run side by side.
pub const CLIENTS: usize = 8;
/// Server connections that Pinion has for them.
pub const CONNECTIONS: u32 = CLIENTS as u32 / 4;
/// Productions in one client's script.
const PRODUCTIONS: usize = 25;

/// One engine's statements.
pub trait Engine {
    /// One thing that a client does.
    type Action: Clone + Debug;
    /// A logged-in client.
    type Client;

    /// Clears what earlier rounds left and makes what the scripts of `client` use.
    fn setup(client: usize) -> Vec<String>;
    /// A production and its actions, for a client of this number.
    fn produce(random: &mut Random, client: usize) -> (&'static str, Vec<Self::Action>);
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
}

/// A script for `client`.
#[must_use]
pub fn script<E: Engine>(random: &mut Random, client: usize) -> Script<E::Action> {
    let identity = || Step { production: "", action: E::identity() };
    let mut script = vec![identity()];
    for _ in 0..PRODUCTIONS {
        let (production, actions) = E::produce(random, client);
        script.extend(actions.into_iter().map(|action| Step { production, action }));
        if random.once_in(3) {
            script.push(identity());
        }
    }
    script.push(identity());
    script
}

/// Runs a script; one reply a step.
async fn run<E: Engine>(address: &Address, script: &[Step<E::Action>]) -> Vec<String> {
    let mut client = E::connect(address).await;
    let mut replies = Vec::new();
    for step in script {
        replies.push(E::run(&mut client, address, &step.action).await);
    }
    E::leave(client).await;
    replies
}

/// How often each production ran, and how often its client was served by another server connection right after.
#[derive(Debug, Default)]
pub struct Tally(BTreeMap<&'static str, (u64, u64)>);

impl Tally {
    fn count<A>(&mut self, script: &[Step<A>], replies: &[String]) {
        let mut since: Vec<&'static str> = Vec::new();
        let mut last: Option<&str> = None;
        for (step, reply) in script.iter().zip(replies) {
            if !step.production.is_empty() {
                if since.last() != Some(&step.production) {
                    since.push(step.production);
                    self.0.entry(step.production).or_default().0 += 1;
                }
                continue;
            }
            if last.is_some_and(|last| last != reply) {
                for production in &since {
                    self.0.entry(production).or_default().1 += 1;
                }
            }
            since.clear();
            last = Some(reply);
        }
    }

    /// The least that any production ran while its connection changed hands.
    #[must_use]
    pub fn least_moved(&self) -> u64 {
        self.0.values().map(|(_, moved)| *moved).min().unwrap_or(0)
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{:28} {:>9} {:>9}", "production", "ran", "moved")?;
        for (production, (ran, moved)) in &self.0 {
            writeln!(f, "{production:28} {ran:>9} {moved:>9}")?;
        }
        Ok(())
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

async fn prepare<E: Engine>(address: &Address, clients: impl Iterator<Item = usize>)
where
    E::Action: From<String>,
{
    let mut setter = E::connect(address).await;
    for client in clients {
        for statement in E::setup(client) {
            E::run(&mut setter, address, &statement.into()).await;
        }
    }
    E::leave(setter).await;
}

/// Runs all scripts both ways.
pub async fn round<E: Engine>(
    ways: &Ways,
    scripts: &[(usize, Script<E::Action>)],
    tally: &mut Tally,
) -> Option<Difference>
where
    E::Action: From<String>,
{
    prepare::<E>(&ways.direct, scripts.iter().map(|(client, _)| *client)).await;
    prepare::<E>(&ways.behind, scripts.iter().map(|(client, _)| *client)).await;
    let all = |address: &Address| {
        let address = address.clone();
        async move { join_all(scripts.iter().map(|(_, script)| run::<E>(&address, script))).await }
    };
    let direct = all(&ways.direct).await;
    let through = all(&ways.through).await;
    let mut first = None;
    for (((client, script), direct), through) in scripts.iter().zip(&direct).zip(&through) {
        tally.count(script, through);
        let differs = |step: &usize| {
            let (direct, through) = (&direct[*step], &through[*step]);
            !script[*step].production.is_empty() && direct != through && !E::may_differ(direct, through)
        };
        if first.is_none()
            && let Some(step) = (0..script.len()).find(differs)
        {
            let (direct, through) = (direct[step].clone(), through[step].clone());
            first = Some(Difference { client: *client, step, direct, through });
        }
    }
    first
}

/// Leaves out of the script of the client that differs what is not needed for a difference; the others stay as they
/// are. What is left, and the difference it makes.
async fn shrink<E: Engine>(
    ways: &Ways,
    scripts: &[(usize, Script<E::Action>)],
    found: Difference,
    until: Instant,
) -> (Script<E::Action>, Difference)
where
    E::Action: From<String>,
{
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
                let difference = round::<E>(ways, &tried, &mut Tally::default()).await;
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

/// Runs rounds from `seed` on for so long. What was run; or, as a text to read, a difference with the short script that
/// makes it.
pub async fn twin<E: Engine>(ways: &Ways, seed: u64, lasts: Duration) -> Result<Tally, String>
where
    E::Action: From<String>,
{
    let end = Instant::now() + lasts;
    let mut tally = Tally::default();
    let mut number = seed;
    loop {
        let mut random = Random::new(number);
        let scripts: Vec<_> = (0..CLIENTS).map(|client| (client, script::<E>(&mut random, client))).collect();
        if let Some(found) = round::<E>(ways, &scripts, &mut tally).await {
            let mut report = format!("seed {number}, client {}: {found:#?}\n", found.client);
            let until = Instant::now() + Duration::from_secs(60);
            let (script, found) = shrink::<E>(ways, &scripts, found, until).await;
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
