//! What policy plugins have to say about a client's statements, and what observers are told of them.

use std::{
    collections::VecDeque,
    sync::Arc,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use super::{Session, SessionError, Turn};
use crate::{
    config::Profile,
    plugin::{
        Ask, Completion, Decision, Emitted, Event, Hook, PinVerdict, QueryVerdict, RouteVerdict,
        SessionEvent, SessionNames,
    },
    protocol::{
        Facts, Fault, FaultKind, PinReason, PinReasons, Protocol, Rewritten, Role, Severity, Statement,
        Tracker, Upcoming, Watch,
    },
    router::Route,
};

/// Statements of one request that observers are told of; what comes after them is counted as lost.
const MAX_NOTES: usize = 1024;
/// Bytes of text of one request that observers are told; of what comes after them the text is left out.
const MAX_NOTED_BYTES: usize = 1 << 20;
/// A request is read this far ahead before it is routed.
const MAX_AHEAD_BYTES: usize = 64 * 1024;
/// Statements of one request that are asked about before it is routed; with more of them the writer gets it.
const MAX_ROUTED: usize = 64;

/// Events that wait for room.
pub(super) type Backlog = VecDeque<Event>;

/// What is kept of the statements of a request for observers.
#[derive(Debug, Default)]
pub(super) struct Notes {
    statements: Vec<Note>,
    /// Of their texts.
    bytes: usize,
    lost: u64,
    /// Of the request as a whole.
    decisions: Vec<Decision>,
}

#[derive(Debug)]
struct Note {
    facts: Arc<Facts>,
    digest: u128,
    text: Option<Box<[u8]>>,
    hint: Box<str>,
    in_transaction: bool,
    decisions: Vec<Decision>,
    /// The code of the error that policy answered with.
    rejected: Option<Box<str>>,
}

/// What policy makes of the pins that a statement would set.
#[derive(Debug, Default)]
pub(super) struct PinPolicy {
    /// Set them, whatever profile and filters say.
    pub(super) pin: PinReasons,
    /// Leave them, and lose what they stand for.
    pub(super) ignore: PinReasons,
    /// Leave them, since what they stand for is made again by what the server says of it.
    pub(super) follow: PinReasons,
    /// Leave it, and run the statement again elsewhere: the variable and the statement.
    pub(super) replay: Option<(Box<str>, Box<str>)>,
}

impl<P: Protocol> Session<P> {
    /// Tells the tracker what the plugins loaded now want to see.
    pub(super) fn watch(&mut self) {
        let plugins = &self.endpoint.proxy.plugins;
        self.tracker.watch(Watch {
            runs: plugins.asks(Hook::Query),
            prepares: plugins.rewrites(),
            generation: plugins.generation(),
            outcomes: plugins.asks(Hook::Events),
            asks_for_nothing: self.endpoint.proxy.settings().profile == Profile::Rds,
        });
    }

    /// Asks policy about a statement, decides what it will do to the session, and lets it run or refuses it.
    pub(super) fn consult(&mut self, statement: Statement) {
        let mut decisions = Vec::new();
        let mut statement = statement;
        let verdict = self
            .ask(&mut statement, &mut decisions)
            .and_then(|()| if statement.prepares { Ok(()) } else { self.decide(&statement, &mut decisions) });
        let settled = decisions.iter().all(|decision| decision.verdict != "failed");
        let rejected = verdict.as_ref().err().map(P::fault_code);
        if rejected.is_some() || !(statement.prepares || statement.within) {
            self.note(&statement, decisions, rejected);
        }
        match verdict {
            Ok(()) => self.tracker.admit(settled),
            Err(fault) => {
                self.received.get_or_insert_with(Instant::now);
                self.reject(&fault);
            }
        }
    }

    /// The chain's verdict; a rewrite is taken over into `statement`.
    fn ask(&mut self, statement: &mut Statement, decisions: &mut Vec<Decision>) -> Result<(), Fault> {
        let in_transaction = self.in_transaction() || self.tracker.opens_transactions();
        let proxy = &self.endpoint.proxy;
        if !proxy.plugins.asks(Hook::Query) {
            return Ok(());
        }
        let mut from = 0;
        loop {
            let text = self.tracker.text(&self.up);
            let ask = Ask {
                names: &self.names,
                dialect: P::DIALECT,
                digest: statement.digest,
                facts: &statement.facts,
                text,
                hint: self.tracker.hint(text),
                in_transaction,
                prepares: statement.prepares,
            };
            match proxy.plugins.on_query(&ask, from, decisions) {
                QueryVerdict::Pass => return Ok(()),
                QueryVerdict::Reject(fault) => return Err(fault),
                QueryVerdict::Rewrite { text, next } => {
                    match self.tracker.rewrite(&proxy.shared, text) {
                        Rewritten::Known(known) => *statement = known,
                        Rewritten::Settled => {}
                        Rewritten::Impossible => {
                            return Err(Fault::error(
                                FaultKind::PluginFailed,
                                "A policy plugin rewrites a statement that cannot be rewritten.",
                            ));
                        }
                    }
                    from = next;
                }
            }
        }
    }

    /// The chain's verdicts on the pins that a statement would set, reason by reason.
    pub(super) fn ask_pins(
        &self,
        statement: &Statement,
        wanted: PinReasons,
        decisions: &mut Vec<Decision>,
    ) -> Result<PinPolicy, Fault> {
        let plugins = &self.endpoint.proxy.plugins;
        let mut policy = PinPolicy::default();
        if wanted.is_empty() || !plugins.asks(Hook::Pin) {
            return Ok(policy);
        }
        let in_transaction = self.in_transaction();
        let smart = self.endpoint.proxy.settings().profile == Profile::Smart;
        let facts = &*statement.facts;
        let text = self.tracker.text(&self.up);
        let ask = Ask {
            names: &self.names,
            dialect: P::DIALECT,
            digest: statement.digest,
            facts,
            text,
            hint: self.tracker.hint(text),
            in_transaction,
            prepares: false,
        };
        for reason in wanted.iter() {
            let subjects = if reason == PinReason::SessionVariable {
                self.variables(facts, text)
            } else {
                vec![String::new()]
            };
            let mut verdicts = Vec::with_capacity(subjects.len());
            let before = decisions.len();
            for subject in &subjects {
                match plugins.on_pin(&ask, reason, subject, decisions) {
                    PinVerdict::Reject(fault) => return Err(fault),
                    verdict => verdicts.push(verdict),
                }
            }
            let all = |verdict| verdicts.iter().all(|v| *v == verdict);
            let only = PinReasons::only(reason);
            let of_variable = reason == PinReason::SessionVariable;
            let replay = || replayable(statement, &subjects, text).filter(|_| !in_transaction);
            if all(PinVerdict::Pass) {
                continue;
            } else if of_variable && all(PinVerdict::Ignore) {
                policy.ignore = policy.ignore.union(only);
            } else if all(PinVerdict::Replay) && self.moved(facts, smart, in_transaction).contains(reason) {
                // As it does anyway.
            } else if of_variable
                && all(PinVerdict::Replay)
                && P::TELLS_SETTINGS
                && !facts.pins.contains(reason)
            {
                policy.follow = policy.follow.union(only);
            } else if of_variable
                && all(PinVerdict::Replay)
                && let Some(replay) = replay()
            {
                policy.replay = Some(replay);
            } else {
                policy.pin = policy.pin.union(only);
                // Observers are told what became of it.
                for decision in &mut decisions[before..] {
                    if matches!(decision.verdict, "replay" | "ignore") {
                        decision.verdict = "pin";
                    }
                }
            }
        }
        Ok(policy)
    }

    /// Names of all variables that a statement sets; one that is empty stands for those that cannot be told.
    fn variables(&self, facts: &Facts, text: &[u8]) -> Vec<String> {
        let mut names = facts.variables.clone();
        if facts.variables_in_literals {
            let in_literals = self.tracker.literal_variables(text);
            if in_literals.is_empty() {
                names.push(String::new());
            }
            names.extend(in_literals);
        }
        if names.is_empty() {
            names.push(String::new());
        }
        names
    }

    /// Answers the statement last reported with an error.
    fn reject(&mut self, fault: &Fault) {
        let fault = Fault { severity: Severity::Error, ..fault.clone() };
        let server = self.link.as_deref_mut().map(|connection| &mut connection.state);
        let answered_here = self.tracker.reject(&fault, &mut self.up, server, &mut self.down);
        if answered_here && self.link.is_some() {
            self.answered_here(Some(&fault));
        }
    }

    /// Where the request at the front should run. `None`: more of it must come first.
    fn ask_route(&mut self, decisions: &mut Vec<Decision>) -> Option<Result<Route, Fault>> {
        let proxy = &self.endpoint.proxy;
        // Plugins are asked once, when there is all that they can be asked about.
        if self.tracker.extent(&self.up) == Upcoming::Partial && self.up.unread().len() < MAX_AHEAD_BYTES {
            return None;
        }
        let mut verdicts: Vec<RouteVerdict> = Vec::new();
        let mut asked = 0_usize;
        let (tracker, names) = (&self.tracker, &self.names);
        let seen = tracker.upcoming(&proxy.shared, &self.up, &mut |statement, text| {
            asked += 1;
            if asked > MAX_ROUTED {
                return;
            }
            let ask = Ask {
                names,
                dialect: P::DIALECT,
                digest: statement.digest,
                facts: &statement.facts,
                text,
                hint: tracker.hint(text),
                in_transaction: tracker.opens_transactions(),
                prepares: statement.prepares,
            };
            let verdict = proxy.plugins.on_route(&ask, decisions);
            if !verdicts.contains(&verdict) {
                verdicts.push(verdict);
            }
        });
        if let Some(RouteVerdict::Reject(fault)) =
            verdicts.iter().find(|verdict| matches!(verdict, RouteVerdict::Reject(_)))
        {
            return Some(Err(fault.clone()));
        }
        // What is not known whole may hold anything, and statements that disagree must not part.
        let agreed = match &verdicts[..] {
            [one] if seen == Upcoming::Whole && asked <= MAX_ROUTED => one.clone(),
            [RouteVerdict::Target(name)] => RouteVerdict::Target(name.clone()),
            [RouteVerdict::Pass] | [] => RouteVerdict::Pass,
            _ => RouteVerdict::Writer,
        };
        Some(Ok(match agreed {
            RouteVerdict::Pass | RouteVerdict::Reject(_) => Route::Endpoint,
            RouteVerdict::Writer => Route::Writer,
            RouteVerdict::Reader => Route::Reader,
            RouteVerdict::Target(name) => Route::Target(name.into()),
        }))
    }

    /// Lets policy say where the next request runs. False when that cannot be told yet and the client's bytes should
    /// be read on.
    pub(super) async fn route(&mut self) -> Result<Result<bool, Fault>, SessionError> {
        if !self.endpoint.proxy.plugins.asks(Hook::Route) {
            self.route = Route::Endpoint;
            return Ok(Ok(true));
        }
        let mut decisions = Vec::new();
        match self.ask_route(&mut decisions) {
            Some(Ok(route)) => {
                self.route = route;
                self.note_decisions(decisions);
                Ok(Ok(true))
            }
            Some(Err(fault)) => {
                self.note_decisions(decisions);
                Ok(Err(fault))
            }
            None => {
                match self.turn().await? {
                    Turn::Signal => self.on_signal()?,
                    Turn::Client | Turn::Answered { .. } | Turn::Free | Turn::Question => {}
                }
                Ok(Ok(false))
            }
        }
    }

    /// Keeps what observers will want to know of a statement.
    fn note(&mut self, statement: &Statement, decisions: Vec<Decision>, rejected: Option<Box<str>>) {
        let plugins = &self.endpoint.proxy.plugins;
        if !plugins.asks(Hook::Events) {
            self.notes = None;
            return;
        }
        let in_transaction = self.in_transaction();
        let text = self.tracker.text(&self.up);
        let hint = self.tracker.hint(text).into();
        let notes = self.notes.get_or_insert_default();
        let wanted = plugins.wants_text_in_events() && notes.bytes + text.len() <= MAX_NOTED_BYTES;
        let text: Option<Box<[u8]>> = wanted.then(|| text.into());
        notes.bytes += text.as_ref().map_or(0, |text| text.len());
        if notes.statements.len() >= MAX_NOTES {
            notes.lost += 1;
            return;
        }
        let (facts, digest) = (statement.facts.clone(), statement.digest);
        notes.statements.push(Note { facts, digest, text, hint, in_transaction, decisions, rejected });
    }

    /// Keeps what was decided about the request as a whole.
    fn note_decisions(&mut self, decisions: Vec<Decision>) {
        if !decisions.is_empty() && self.endpoint.proxy.plugins.asks(Hook::Events) {
            self.notes.get_or_insert_default().decisions.extend(decisions);
        }
    }

    /// Tells observers of the request that has just been answered, by a server or, with `fault`, here.
    pub(super) fn observe(
        &mut self,
        received: Instant,
        sent: Option<Instant>,
        now: Instant,
        fault: Option<&Fault>,
    ) {
        let mut outcomes = self.tracker.take_outcomes().into_iter();
        let Some(notes) = self.notes.take() else { return };
        let duration = now.saturating_duration_since(received);
        let at_ms = unix_ms().saturating_sub(millis(duration));
        let (target, role) = match &self.link {
            Some(connection) => {
                let target = connection.target();
                (Some(target.name.clone()), target.role())
            }
            None => (None, Role::Unknown),
        };
        let database = match target {
            Some(_) => now.saturating_duration_since(sent.unwrap_or(received)),
            None => Duration::ZERO,
        };
        let mut route = notes.decisions;
        for note in notes.statements {
            // What was rejected never ran.
            let ran = note.rejected.is_none();
            let outcome = if ran { outcomes.next() } else { None };
            let error = match (note.rejected, &outcome, fault) {
                (Some(code), ..) => code.into(),
                (None, Some(outcome), _) => outcome.error.as_deref().unwrap_or_default().to_owned(),
                (None, None, Some(fault)) => P::fault_code(fault).into(),
                // It never ran: something before it failed.
                (None, None, None) => continue,
            };
            let mut decisions = note.decisions;
            decisions.append(&mut route);
            self.emit(Event::Completion(Box::new(Completion {
                at_ms,
                names: SessionNames::clone(&self.names),
                dialect: P::DIALECT,
                digest: note.digest,
                facts: note.facts,
                text: note.text,
                hint: note.hint,
                in_transaction: note.in_transaction,
                duration,
                database: if ran { database } else { Duration::ZERO },
                rows: outcome.map_or(0, |outcome| outcome.rows),
                error,
                target: target.clone().filter(|_| ran),
                role: if ran { role } else { Role::Unknown },
                pinned: self.is_pinned(),
                decisions,
            })));
        }
        if notes.lost > 0 {
            self.endpoint.proxy.plugins.lost_events(notes.lost);
        }
    }

    /// Tells observers that the session begins.
    pub(super) fn observe_start(&mut self) {
        if self.endpoint.proxy.plugins.asks(Hook::Events) {
            let (at_ms, names) = (unix_ms(), SessionNames::clone(&self.names));
            self.emit(Event::SessionStart(SessionEvent { at_ms, names, reason: String::new() }));
        }
    }

    /// Tells observers that the session is over, and waits for room for what they have not been told yet.
    pub(super) async fn observe_end(&mut self, ended: &Result<(), SessionError>) {
        if self.endpoint.proxy.plugins.asks(Hook::Events) {
            let reason = ended.as_ref().err().map(ToString::to_string).unwrap_or_default();
            let (at_ms, names) = (unix_ms(), SessionNames::clone(&self.names));
            self.emit(Event::SessionEnd(SessionEvent { at_ms, names, reason }));
        }
        self.relieve().await;
    }

    fn emit(&mut self, event: Event) {
        // In order: what waits goes first.
        if let Some(backlog) = &mut self.backlog {
            backlog.push_back(event);
            return;
        }
        match self.endpoint.proxy.plugins.emit(event) {
            Emitted::Done | Emitted::Lost => {}
            Emitted::Full(event) => self.backlog.get_or_insert_default().push_back(event),
        }
    }

    /// True when observers or the audit sink cannot keep up, and are configured to hold up clients.
    pub(super) fn is_pressed(&self) -> bool {
        // The client has its answers first.
        !self.down.has_output() && (self.backlog.is_some() || self.endpoint.proxy.plugins.is_pressed())
    }

    /// Waits until observers and the audit sink have caught up.
    pub(super) async fn relieve(&mut self) {
        let plugins = &self.endpoint.proxy.plugins;
        for event in self.backlog.take().into_iter().flat_map(|backlog| *backlog) {
            plugins.emit_when_room(event).await;
        }
        plugins.relieve().await;
    }

    pub(super) fn in_transaction(&self) -> bool {
        use crate::protocol::{ServerState as _, Tx};
        self.tracker.deferred() != Tx::Idle
            || self.link.as_ref().is_some_and(|c| c.state.tx() != Tx::Idle || c.state.is_request_under_way())
    }
}

/// Milliseconds since 1970-01-01 UTC.
fn unix_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, millis)
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// The variable and the statement, when running that statement again elsewhere does what it does here.
fn replayable(statement: &Statement, variables: &[String], text: &[u8]) -> Option<(Box<str>, Box<str>)> {
    let facts = &statement.facts;
    let alone = facts.is_plain_set
        && facts.pins == PinReasons::only(PinReason::SessionVariable)
        && statement.extra_pins.is_empty();
    match variables {
        [variable] if alone && !variable.is_empty() && !text.is_empty() => {
            Some((variable.as_str().into(), std::str::from_utf8(text).ok()?.into()))
        }
        _ => None,
    }
}
