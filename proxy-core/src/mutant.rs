//! Faults on purpose: a Pinion built with the feature `twin-mutants` has the one that `PINION_MUTANT` names, to prove
//! that the twin tests see it. Without the feature there are none, and nothing is read.

/// What may be broken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mutant {
    /// Whatever a server connection wears is taken to fit.
    Labels,
    /// What others have left on a server connection stays there.
    Reset,
    /// Servers are not asked how a session stands.
    Probe,
}

/// True when this is broken.
#[cfg(not(feature = "twin-mutants"))]
#[must_use]
pub const fn is(_: Mutant) -> bool {
    false
}

/// True when this is broken.
#[cfg(feature = "twin-mutants")]
#[must_use]
pub fn is(mutant: Mutant) -> bool {
    static CHOSEN: std::sync::LazyLock<Option<Mutant>> = std::sync::LazyLock::new(|| {
        let name = std::env::var("PINION_MUTANT").ok()?;
        let known = [("labels", Mutant::Labels), ("reset", Mutant::Reset), ("probe", Mutant::Probe)];
        let found = known.iter().find(|(known, _)| *known == name);
        let (_, mutant) = found.unwrap_or_else(|| panic!("PINION_MUTANT names none of {known:?}"));
        Some(*mutant)
    });
    *CHOSEN == Some(mutant)
}
