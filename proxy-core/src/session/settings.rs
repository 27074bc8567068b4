//! What a client's statements do to the settings that move with it, and what the server is asked about them.
//!
//! Where a text says it, and nothing could have undone it, the text is taken at its word. Everything else (settings made
//! in a transaction, by code that no text shows, in a text of several statements of which one failed) is asked of the
//! server, once the client has its answer and before the connection may serve another. The same question ends pins: by
//! what the server still holds, not by what texts may have meant.

use std::{future::poll_fn, task::Poll, time::Instant};

use tracing::debug;

use super::{Cause, Pending, Rare, Session, SessionError, channels::pass_on};
use crate::{
    config::Profile,
    mutant::{self, Mutant},
    protocol::{
        Facts, Findings, Moves, PinReason, PinReasons, Protocol, ServerState, StateChange, Statement,
        StatementKind, Survey, Tracker, Tx,
    },
    proxy::Activity,
    server::ServerError,
    state::{Settings, Worn},
};

/// What a statement does to the settings that are replayed.
#[derive(Debug)]
pub(super) enum Change {
    /// Variable, and the statement that sets it.
    Made(Box<str>, Box<str>),
    /// A variable is what it was after login.
    Reset(Box<str>),
    /// Those are that a statement takes back which clears these pins.
    Cleared(PinReasons),
}

/// What the server is to be asked.
#[derive(Debug, Default)]
pub(super) struct Question {
    /// About these settings,
    names: Vec<Box<str>>,
    /// those that code of the database may change,
    code: bool,
    /// and any others that there may be.
    all: bool,
    /// Such code was called,
    calls: bool,
    /// or may have run behind statements that wrote,
    behind_writes: bool,
    /// and nothing else raised it.
    only_code: bool,
    /// The last statement that raised it.
    cause: Cause,
}

/// Most names that are asked about singly.
const MOST_NAMES: usize = 2 * Settings::MOST;

/// SQLSTATE of a statement that was cancelled, as it stands at the front of an error.
const CANCELLED: &str = "57014";

impl<P: Protocol> Session<P> {
    /// Of the pins that a text would set, those that need not be: what they stand for moves with the client.
    pub(super) fn moved(&self, facts: &Facts, smart: bool, in_transaction: bool) -> PinReasons {
        if !smart || P::PROVABLE.is_empty() || facts.moves == Moves::Nothing {
            return PinReasons::NONE;
        }
        let moved = PinReasons::only(PinReason::SessionVariable)
            .union(PinReasons::only(PinReason::SessionIdentity))
            .union(PinReasons::only(PinReason::PreparedStatement));
        // Nobody could be asked what was loaded.
        match facts.statements == 1 && facts.moves == Moves::ByText && !in_transaction {
            true => moved.union(PinReasons::only(PinReason::Library)),
            false => moved,
        }
    }

    /// Notes what a statement does to the settings that move, and what must be asked after it.
    pub(super) fn follow(
        &mut self,
        statement: &Statement,
        replay: Option<(Box<str>, Box<str>)>,
        ignored: bool,
        sets: &mut PinReasons,
        in_transaction: bool,
    ) {
        let facts = &statement.facts;
        self.pending.writes |= facts.writes || facts.kind == StatementKind::Copy;
        if replay.is_some() {
            self.follow_replayed(statement, replay, sets, in_transaction);
            return;
        }
        if facts.moves == Moves::Nothing
            && facts.clears.is_empty()
            && facts.may_end.is_empty()
            && !facts.taints
        {
            return;
        }
        let mut names: Vec<Box<str>> = facts.moved.iter().map(|name| name.as_str().into()).collect();
        let text = self.tracker.text(&self.up);
        if facts.variables_in_literals && facts.moves != Moves::Nothing {
            names.extend(self.tracker.literal_variables(text).into_iter().map(String::into_boxed_str));
        }
        let text = std::str::from_utf8(text).ok().filter(|text| P::is_repeatable(text));
        if facts.pins.contains(PinReason::Library)
            && text.is_none_or(|text| text.len() > Settings::MOST_BYTES)
        {
            sets.insert(PinReason::Library);
        }
        if sets.contains(PinReason::Library) {
            // The connection is this client's to its end.
            return;
        }
        let pending = self.pending.rare();
        if ignored && facts.moves != Moves::Nothing {
            pending.unsettles = true;
            return;
        }
        let changes_before = pending.settings.len();
        match (facts.moves, &names[..], text) {
            (Moves::Nothing, ..) if facts.clears.is_empty() => {}
            (Moves::Nothing, ..) => pending.settings.push(Change::Cleared(facts.clears)),
            (Moves::ByText, [name], Some(text)) if text.len() <= Settings::MOST_BYTES => {
                pending.settings.push(Change::Made(name.clone(), text.into()));
            }
            (Moves::Back, [name], _) => pending.settings.push(Change::Reset(name.clone())),
            (Moves::Unseen, ..) => {
                pending.asks = true;
                pending.asks_all = true;
            }
            (Moves::ByText | Moves::Back | Moves::ByValue, ..) => pending.asks = true,
        }
        pending.asks |= in_transaction && pending.settings.len() > changes_before;
        // Among others it has taken back whatever there was.
        pending.asks_all |= facts.moves != Moves::Nothing && !facts.clears.is_empty();
        pending.calls |= facts.taints_by_calls;
        pending.asks |= facts.taints && !facts.taints_by_calls;
        pending.ran_code |= facts.taints && !facts.taints_by_calls;
        pending.touched.extend(names);
        pending.may_end = pending.may_end.union(facts.may_end);
        if pending.touched.len() > MOST_NAMES || pending.settings.len() > MOST_NAMES {
            pending.touched.clear();
            pending.settings.truncate(1);
            pending.asks = true;
            pending.asks_all = true;
        }
    }

    /// Notes a `SET` that policy has replayed, and what else changes such settings. One that cannot be followed pins, or
    /// where it may not, leaves the connection unfit for replays.
    pub(super) fn follow_replayed(
        &mut self,
        statement: &Statement,
        replay: Option<(Box<str>, Box<str>)>,
        sets: &mut PinReasons,
        in_transaction: bool,
    ) {
        let facts = &statement.facts;
        let variable = PinReason::SessionVariable;
        if let Some((name, text)) = replay {
            if self.pending.rare().settings.len() < Settings::MOST && text.len() <= Settings::MOST_BYTES {
                self.pending.rare().settings.push(Change::Made(name, text));
            } else {
                sets.insert(variable);
            }
            return;
        }
        let following = self.pending.rare.as_ref().is_some_and(|rare| !rare.settings.is_empty());
        let replays = self.settings.is_some() || following;
        if P::TELLS_SETTINGS || !replays || !facts.changes_session_settings() || sets.contains(variable) {
            return;
        }
        let resets_one = facts.statements == 1 && facts.pins.is_empty() && facts.clears.is_empty();
        match &facts.variables[..] {
            _ if in_transaction => sets.insert(variable),
            _ if facts.clears.contains(variable) => {
                self.pending.rare().settings.push(Change::Cleared(facts.clears));
            }
            [one] if resets_one && facts.kind == StatementKind::Session => {
                self.pending.rare().settings.push(Change::Reset(one.as_str().into()));
            }
            _ if facts.pins.contains(variable) => self.pending.rare().unsettles = true,
            _ => sets.insert(variable),
        }
        let rare = self.pending.rare();
        if rare.settings.len() > 2 * Settings::MOST {
            rare.settings.truncate(1);
            sets.insert(variable);
            rare.unsettles = true;
        }
    }

    /// Takes over what the statements just answered have done to the settings that move. Where that cannot be told, the
    /// server is asked, or the client keeps its connection until it takes all settings back.
    pub(super) fn settle_settings(&mut self, pending: &mut Pending, failed: bool, nothing_ran: bool) {
        let Some(rare) = pending.rare.as_deref_mut() else { return };
        let changes = std::mem::take(&mut rare.settings);
        let unsettles = rare.unsettles;
        let Some(connection) = &mut self.link else { return };
        if nothing_ran {
            return;
        }
        if unsettles {
            connection.worn = Worn::Uncertain;
        }
        let mut lasts = false;
        for change in &changes {
            if let Change::Made(name, _) = change
                && P::is_lasting(name)
            {
                // Even if it failed, nobody knows how far it came.
                connection.keep_lasting(name);
                lasts = true;
            }
        }
        let outside = connection.state.tx() == Tx::Idle && !pending.in_transaction;
        let lone_failure = failed && pending.statements <= 1 && outside;
        if changes.is_empty() || lone_failure {
            return;
        }
        let takes_back = changes.iter().any(|change| matches!(change, Change::Cleared(_)));
        let mut settings = self.settings.clone();
        let mut followed = outside && !failed && !pending.is_entangled();
        let mut certain = !matches!(connection.worn, Worn::Uncertain);
        for change in changes {
            settings = match change {
                Change::Cleared(pins) => {
                    let all = pins.contains(PinReason::SessionVariable)
                        && pins.contains(PinReason::SessionIdentity);
                    certain |= all && !unsettles;
                    settings.and_then(|before| Settings::retain(&before, |name| !P::takes_back(pins, name)))
                }
                Change::Reset(variable) => settings.and_then(|before| Settings::without(&before, &variable)),
                Change::Made(variable, statement) => {
                    let after = Settings::with(settings.as_ref(), &variable, &statement);
                    followed &= after.is_some();
                    after.or(settings)
                }
            };
        }
        let can_ask = !P::PROVABLE.is_empty() && self.endpoint.proxy.settings().profile == Profile::Smart;
        if lasts && !followed {
            pending.sets.insert(PinReason::Library);
        }
        if followed {
            if certain {
                connection.worn = Worn::from(settings.clone());
            } else if can_ask {
                let rare = pending.rare();
                (rare.asks, rare.asks_all) = (true, true);
            }
            self.settings = settings;
        } else if can_ask {
            let rare = pending.rare();
            rare.asks = true;
            rare.asks_all |= takes_back;
        } else {
            connection.worn = Worn::Uncertain;
            pending.sets.insert(PinReason::SessionVariable);
        }
    }

    /// What the server must be asked after the statements just answered.
    pub(super) fn question_about(
        &mut self,
        pending: &Pending,
        failed: bool,
        nothing_ran: bool,
    ) -> Option<Box<Question>> {
        let connection = self.link.as_mut()?;
        let smart = self.endpoint.proxy.settings().profile == Profile::Smart;
        if !smart || P::PROVABLE.is_empty() || nothing_ran {
            return None;
        }
        let outside = connection.state.tx() == Tx::Idle && !pending.in_transaction;
        let lone = pending.statements <= 1 && outside;
        // One statement that failed has not set anything, but for what no rollback undoes.
        let nothing = Rare::default();
        let rare = pending.rare.as_deref().unwrap_or(&nothing);
        let survey = match pending.writes || rare.calls {
            true => connection.known_survey(Instant::now()),
            false => None,
        };
        let calls = rare.calls && survey.is_none_or(Survey::leaves);
        let behind_writes = pending.writes && survey.is_none_or(Survey::leaves_behind_writes);
        let asks = if failed && lone { rare.asks_all || rare.ran_code } else { rare.asks };
        let ends = !rare.may_end.intersection(self.pins).intersection(P::PROVABLE).is_empty();
        let doubtful = !lone && !pending.sets.intersection(P::PROVABLE).is_empty();
        if !(asks || ends || doubtful || calls || behind_writes) {
            return None;
        }
        let only_code = !(asks || ends || doubtful);
        if asks {
            // Until it has been asked, nobody knows.
            connection.worn = Worn::Uncertain;
        }
        let cause = Cause { digest: pending.digest, text: pending.text.clone(), plugin: rare.plugin.clone() };
        let names = if asks { rare.touched.clone() } else { Vec::new() };
        let (code, all) = (calls || behind_writes || asks && rare.ran_code, asks && rare.asks_all);
        Some(Box::new(Question { names, code, all, calls, behind_writes, only_code, cause }))
    }

    /// Adds to what the server is to be asked.
    pub(super) fn raise(&mut self, question: Option<Box<Question>>) {
        let Some(mut question) = question else { return };
        if let Some(before) = self.question.take() {
            question.names.extend(before.names);
            question.code |= before.code;
            question.behind_writes |= before.behind_writes;
            question.calls |= before.calls;
            question.only_code &= before.only_code;
            question.all |= before.all;
        }
        question.names.sort_unstable();
        question.names.dedup();
        if question.names.len() > MOST_NAMES {
            question.names.clear();
            question.all = true;
        }
        self.question = Some(question);
    }

    /// True when there is something to ask and the server can be asked now.
    pub(super) fn must_ask(&mut self) -> bool {
        let ends = P::PROVABLE
            .union(PinReasons::only(PinReason::SessionVariable))
            .union(PinReasons::only(PinReason::SessionIdentity))
            .union(PinReasons::only(PinReason::SessionFunction));
        if mutant::is(Mutant::Probe) {
            self.question = None;
        }
        if self.question.is_some() && !self.pins.without(ends).is_empty() {
            // The connection is this client's to its end, whatever the answer.
            self.question = None;
        }
        self.question.is_some()
            && self.link.as_ref().is_some_and(|c| c.state.tx() == Tx::Idle && c.state.is_quiet())
            && self.pending.statements == 0
            && self.nothing_is_halfway()
    }

    /// Asks the server how the session stands, and takes its word for it.
    pub(super) async fn ask_server(&mut self) -> Result<(), SessionError> {
        let Some(question) = self.question.take() else { return Ok(()) };
        // The client has its answer first.
        let (down, client) = (&mut self.down, &mut self.client);
        poll_fn(|cx| match down.poll_flush(client, cx) {
            Poll::Ready(Err(error)) => Poll::Ready(Err(SessionError::ClientGone(error))),
            Poll::Ready(Ok(())) | Poll::Pending => Poll::Ready(Ok(())),
        })
        .await?;
        let before = self.pins;
        if !self.is_answered_by_survey(&question).await? {
            match self.inquire(&question).await? {
                Some(findings) => self.take_findings(findings),
                None => {
                    if let Some(connection) = &mut self.link {
                        connection.worn = Worn::Uncertain;
                        connection.tainted = true;
                    }
                    self.pins.insert(PinReason::SessionVariable);
                }
            }
        }
        let now = Instant::now();
        let Some(connection) = &self.link else { return Ok(()) };
        let id = connection.state.key().id;
        self.tracker.settled(self.settings.as_ref());
        self.note_pins(before, question.cause, now, id);
        let activity = if self.pins.is_empty() { Activity::Other } else { Activity::Pinned };
        self.handle.set_activity(activity);
        if self.is_free() {
            self.release(now);
        }
        Ok(())
    }

    /// True when nothing need be asked since no code can have run that leaves anything.
    async fn is_answered_by_survey(&mut self, question: &Question) -> Result<bool, SessionError> {
        if !(question.calls || question.behind_writes) {
            return Ok(false);
        }
        let Some(connection) = &mut self.link else { return Ok(false) };
        let survey = connection.survey(Instant::now()).await.map_err(lost)?;
        let behind_writes = question.behind_writes && survey.leaves_behind_writes();
        connection.tainted |= behind_writes;
        pass_on::<P>(&connection.state.take_heard(), &self.listening, &mut self.down);
        Ok(question.only_code && !behind_writes && !(question.calls && survey.leaves()))
    }

    /// The answer to a question; `None` when there is none that could be used.
    async fn inquire(&mut self, question: &Question) -> Result<Option<Findings>, SessionError> {
        let Some(connection) = &mut self.link else { return Ok(None) };
        let mut names = question.names.clone();
        let mut all = question.all;
        if question.code || all {
            let survey = connection.survey(Instant::now()).await.map_err(lost)?;
            all |= survey.others;
            names.extend(survey.names);
            names.extend(P::IDENTITY.iter().map(|name| Box::from(*name)));
            pass_on::<P>(&connection.state.take_heard(), &self.listening, &mut self.down);
        }
        if let Some(settings) = self.settings.as_ref().filter(|_| all || question.code) {
            names.extend(settings.names().map(Box::from));
        }
        names.sort_unstable();
        names.dedup();
        let names: Vec<&str> = names.iter().map(|name| &**name).collect();
        let mut request = Vec::new();
        // A cancel that the client has sent may hit the question instead.
        for _ in 0..2 {
            request.clear();
            if !P::write_inquiry(&mut connection.state, &names, all, &mut request) {
                return Ok(None);
            }
            let outcome = connection.exchange(&request).await;
            pass_on::<P>(&connection.state.take_heard(), &self.listening, &mut self.down);
            match outcome.map_err(lost)? {
                (row, None) => return Ok(P::read_inquiry(&row, &names, &self.key.user)),
                (_, Some(error)) => {
                    debug!(client = self.handle.number, %error, "the server does not say how its session stands");
                    if !error.starts_with(CANCELLED) {
                        return Ok(None);
                    }
                }
            }
        }
        Ok(None)
    }

    /// Takes over what the server has found.
    fn take_findings(&mut self, findings: Findings) {
        let Some(connection) = &mut self.link else { return };
        let mut settings = self.settings.clone();
        let mut pins = findings.pins;
        for (name, made) in findings.settings {
            settings = match made {
                None => settings.and_then(|before| Settings::without(&before, &name)),
                Some(made) if settings.as_ref().is_some_and(|s| s.get(&name) == Some(&made)) => settings,
                Some(made) => {
                    let after = Settings::with(settings.as_ref(), &name, &made);
                    if after.is_none() {
                        pins.insert(PinReason::SessionVariable);
                    }
                    after.or(settings)
                }
            };
        }
        self.settings = settings;
        connection.worn = match pins.contains(PinReason::SessionVariable) {
            true => Worn::Uncertain,
            false => Worn::from(self.settings.clone()),
        };
        self.pins = self.pins.without(findings.covers).union(pins).union(self.tracker.standing_pins());
    }

    /// Takes over what the server itself has said of the session. No text could be wrong about that, nor a rollback undo
    /// it.
    pub(super) fn take_over(&mut self, pending: &mut Pending, failed: bool) {
        let learned = self.tracker.take_learned();
        if !learned.doubtful.is_empty() {
            let rare = pending.rare();
            rare.asks = true;
            rare.touched.extend(learned.doubtful);
        }
        let lets_go = pending.rare.as_ref().map_or(PinReasons::NONE, |rare| rare.lets_go);
        let gone = learned.pins.intersection(lets_go);
        let mut pins = learned.pins.without(gone);
        let smart = self.endpoint.proxy.settings().profile == Profile::Smart;
        if !smart {
            pins = pins.without(PinReasons::only(PinReason::SessionFunction));
        }
        pending.sets = pending.sets.union(pins);
        if smart {
            pending.ended = learned.ended;
        }
        let Some(connection) = &mut self.link else { return };
        // What is let go must still not reach another client.
        connection.tainted |= !gone.is_empty();
        if failed && P::TELLS_SETTINGS {
            // It tells nothing with an error, and a trigger or half of a `SET` may have run.
            connection.tainted |= pending
                .text
                .as_ref()
                .is_none_or(|text| !matches!(text.kind, StatementKind::Transaction | StatementKind::Empty));
        }
        if learned.changes.is_empty() {
            return;
        }
        let mut certain = !matches!(connection.worn, Worn::Uncertain);
        for change in learned.changes {
            match change {
                StateChange::ResetAll => {
                    self.endpoint.proxy.sessions.disown(&self.handle);
                    self.settings = None;
                    certain = true;
                    // In a transaction, too, which is over.
                    if let Some(text) = &pending.text
                        && smart
                    {
                        pending.clears = pending.clears.union(text.clears);
                    }
                }
                StateChange::Made(variable, statement) => {
                    match Settings::with(self.settings.as_ref(), &variable, &statement) {
                        Some(settings) => self.settings = Some(settings),
                        None => {
                            certain = false;
                            pending.sets.insert(PinReason::SessionVariable);
                        }
                    }
                }
            }
        }
        connection.worn = if certain { Worn::from(self.settings.clone()) } else { Worn::Uncertain };
    }
}

/// The held connection failed while it was asked.
pub(super) fn lost(error: ServerError) -> SessionError {
    match error {
        ServerError::Protocol(error) => SessionError::Server(error),
        ServerError::Io(error) => SessionError::ServerLost(error),
        error => SessionError::ServerLost(std::io::Error::other(error.to_string())),
    }
}
