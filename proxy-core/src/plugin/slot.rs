//! One configured plugin: its place in the chain, whatever file runs there now.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::SystemTime,
};

use tracing::{error, info, warn};

use super::{
    Ask, Hook,
    breaker::{Breaker, Leave},
    cache::Asked,
    generation::{Counts, Generation},
    instance::{Failure, TrapKind},
    shared::Shared,
    wit::Event,
};
use crate::config::{FailureMode, OnFailure, PluginConfig};

/// See the module.
#[derive(Debug)]
pub(super) struct Slot {
    pub(super) shared: Arc<Shared>,
    pub(super) breaker: Breaker,
    pub(super) history: Mutex<History>,
}

/// What became of the plugin so far.
#[derive(Debug)]
pub(super) struct History {
    /// As the configuration has it.
    pub(super) wanted: PluginConfig,
    /// Since when the running file runs, or the plugin has failed.
    pub(super) since: SystemTime,
    pub(super) last_error: Option<String>,
    pub(super) applied: u64,
    pub(super) unchanged: u64,
    pub(super) refused: u64,
    /// Hashes of the files that were tried last: the same again change nothing.
    pub(super) tried: Vec<[u8; 32]>,
    /// The last attempt succeeded.
    pub(super) settled: bool,
    pub(super) loading: bool,
    pub(super) shadow_differences: u64,
    /// What generations that are gone did.
    pub(super) before: Counts,
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shared").field("name", &self.name).finish_non_exhaustive()
    }
}

impl Slot {
    pub(super) fn history(&self) -> MutexGuard<'_, History> {
        self.history.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts a failure, says so, and switches the plugin off when it is one too many.
    pub(super) fn failed(&self, hook: Hook, failure: &Failure) {
        let (proxy, plugin) = (&*self.shared.proxy, &*self.shared.name);
        let at = TrapKind::ALL.iter().position(|kind| *kind == failure.kind).unwrap_or_default();
        self.shared.metrics.traps[at].increment(1);
        let (kind, why) = (failure.kind.name(), &failure.why);
        warn!(proxy, plugin, hook = hook.name(), kind, %why, "plugin call failed");
        self.history().last_error = Some(format!("{}: {why} ({kind})", hook.name()));
        if self.breaker.failed(failure.kind) {
            self.shared.metrics.in_state(Some("broken"));
            error!(proxy, plugin, "the plugin failed too often and is switched off; its on_failure holds");
        }
    }

    /// A probe was answered.
    fn works_again(&self) {
        if self.breaker.probed(true) {
            self.shared.metrics.in_state(Some("running"));
            info!(proxy = &*self.shared.proxy, plugin = &*self.shared.name, "the plugin works again");
        }
    }
}

/// A plugin as the chain asks it.
#[derive(Debug, Clone)]
pub(super) struct Member {
    pub(super) slot: Arc<Slot>,
    /// `None` when no file could be loaded.
    pub(super) generation: Option<Arc<Generation>>,
    pub(super) shadow: Option<Arc<Generation>>,
    pub(super) on_failure: OnFailure,
}

impl Member {
    pub(super) fn closes(&self, hook: Hook) -> bool {
        let mode = match hook {
            Hook::Query => self.on_failure.query,
            Hook::Route => self.on_failure.route,
            Hook::Pin => self.on_failure.pin,
            Hook::Events => FailureMode::Open,
        };
        mode == FailureMode::Closed
    }

    /// Whether it has to be asked about `hook` at all.
    pub(super) fn asks(&self, hook: Hook) -> bool {
        self.generation.as_ref().map_or_else(|| self.closes(hook), |generation| generation.asks(hook))
            || self.shadow.as_ref().is_some_and(|shadow| shadow.asks(hook) && hook != Hook::Events)
    }

    /// Asks the plugin, and its shadow beside it. `None` stands for a failure, which has been counted.
    pub(super) fn ask<V: Verdict>(
        &self,
        hook: Hook,
        ask: &Ask<'_>,
        call: impl Fn(&Generation) -> Asked<V>,
    ) -> Option<V> {
        let answered = self.ask_live(hook, ask, &call);
        if let Some(shadow) = &self.shadow {
            self.compare(hook, answered.as_ref(), call(shadow));
        }
        answered
    }

    fn ask_live<V: Verdict>(
        &self,
        hook: Hook,
        ask: &Ask<'_>,
        call: impl Fn(&Generation) -> Asked<V>,
    ) -> Option<V> {
        let metrics = &self.slot.shared.metrics;
        let failed = || {
            metrics.answered(hook as usize, "failed");
            None
        };
        let Some(generation) = &self.generation else {
            return if self.closes(hook) { failed() } else { Some(V::PASS) };
        };
        let leave = self.slot.breaker.leave();
        if leave == Leave::No {
            let wanted = generation.filters(hook).iter().any(|filter| filter.wants(ask));
            return if wanted { failed() } else { Some(V::PASS) };
        }
        match call(generation) {
            Asked::Unwanted => {
                if leave == Leave::Probe {
                    self.slot.breaker.probed(false);
                }
                Some(V::PASS)
            }
            Asked::Kept(verdict) => {
                if leave == Leave::Probe {
                    self.slot.breaker.probed(false);
                }
                Some(verdict)
            }
            Asked::Verdict(verdict) => {
                if leave == Leave::Probe {
                    self.slot.works_again();
                }
                metrics.answered(hook as usize, verdict.name());
                Some(verdict)
            }
            Asked::Failed(failure) => {
                self.slot.failed(hook, &failure);
                failed()
            }
        }
    }

    fn compare<V: Verdict>(&self, hook: Hook, live: Option<&V>, shadow: Asked<V>) {
        let (shadow, why) = match shadow {
            Asked::Unwanted => (Some(V::PASS), String::new()),
            Asked::Kept(verdict) | Asked::Verdict(verdict) => (Some(verdict), String::new()),
            Asked::Failed(failure) => (None, failure.why),
        };
        if shadow.as_ref() == live {
            return;
        }
        self.slot.shared.metrics.shadow_differences[hook as usize].increment(1);
        let count = {
            let mut history = self.slot.history();
            history.shadow_differences += 1;
            history.shadow_differences
        };
        // The first ones and then ever fewer: 1, 2, 4, 8, …
        if count.is_power_of_two() {
            let name = |verdict: Option<&V>| verdict.map_or("failed", V::name);
            warn!(
                proxy = &*self.slot.shared.proxy,
                plugin = &*self.slot.shared.name,
                hook = hook.name(),
                verdict = name(live),
                shadow = name(shadow.as_ref()),
                %why,
                differences = count,
                "the shadow decided differently"
            );
        }
    }
}

/// What the three hooks' verdicts have in common.
pub(super) trait Verdict: PartialEq {
    const PASS: Self;
    /// As metrics and observers call it.
    fn name(&self) -> &'static str;
}

/// A plugin that is told events.
#[derive(Debug)]
pub(super) struct Observer {
    slot: Arc<Slot>,
    generation: Arc<Generation>,
}

impl Observer {
    pub(super) fn of(member: &Member) -> Option<Self> {
        let generation = member.generation.clone().filter(|generation| generation.asks(Hook::Events))?;
        Some(Self { slot: member.slot.clone(), generation })
    }

    pub(super) fn generation(&self) -> &Generation {
        &self.generation
    }

    pub(super) fn tell(&self, events: Vec<Event>) {
        let leave = self.slot.breaker.leave();
        let told =
            if leave == Leave::No { Err(None) } else { self.generation.on_events(events).map_err(Some) };
        match told {
            Ok(()) => {
                if leave == Leave::Probe {
                    self.slot.works_again();
                }
                self.slot.shared.metrics.answered(Hook::Events as usize, "pass");
            }
            Err(failure) => {
                self.slot.shared.metrics.answered(Hook::Events as usize, "failed");
                if let Some(failure) = failure {
                    self.slot.failed(Hook::Events, &failure);
                }
            }
        }
    }
}
