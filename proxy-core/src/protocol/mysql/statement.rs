//! Prepared statements as Pinion knows them: a client's id stands for a text, which is prepared on whatever server
//! connection serves the client.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

use super::{
    super::{Facts, PinReasons, Statement as Submitted},
    classify::LexMode,
};

static NEXT_ID: AtomicU64 = AtomicU64::new(1);

/// A prepared statement.
#[derive(Debug)]
pub struct Statement {
    /// Unique in this process.
    pub id: u64,
    /// As the server gets it.
    pub text: Box<[u8]>,
    /// What the grammar says of it.
    pub facts: Arc<Facts>,
    /// Of the text.
    pub digest: u128,
    /// How the text was read; in another mode it may mean something else.
    pub mode: LexMode,
}

impl Statement {
    /// A statement of its own: what the server knows of parameter types belongs to one client alone.
    #[must_use]
    pub fn new(text: &[u8], mode: LexMode, facts: Arc<Facts>, digest: u128) -> Self {
        Self { id: NEXT_ID.fetch_add(1, Ordering::Relaxed), text: text.into(), facts, digest, mode }
    }

    /// As it is reported when it runs.
    #[must_use]
    pub fn submitted(&self, extra_pins: PinReasons) -> Submitted {
        Submitted {
            facts: self.facts.clone(),
            digest: self.digest,
            bytes: self.text.len(),
            extra_pins,
            prepares: false,
            within: false,
        }
    }
}

/// What a client's statement id stands for.
#[derive(Debug, Clone)]
pub(super) struct Prepared {
    pub(super) statement: Arc<Statement>,
    pub(super) parameters: u16,
    /// The types of its parameters as the client last sent them, two bytes each.
    pub(super) types: Box<[u8]>,
}
