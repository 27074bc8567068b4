//! Prepared statements as Pinion knows them: a client's id stands for a text, which is prepared on whatever server
//! connection serves the client.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

use super::{
    super::Facts,
    classify::{Classified, Details, LexMode},
    server::Definitions,
};

static NEXT_ID: AtomicU64 = AtomicU64::new(1);

/// A prepared statement of one client: what a server knows of the types of its parameters is nobody else's.
#[derive(Debug)]
pub struct Statement {
    /// Unique in this process.
    pub id: u64,
    /// As the server gets it.
    pub text: Box<[u8]>,
    /// What the grammar says of it.
    pub facts: Arc<Facts>,
    /// What only this protocol asks.
    pub details: Arc<Details>,
    /// Of the text.
    pub digest: u128,
    /// How the text was read; in another mode it may mean something else.
    pub mode: LexMode,
}

impl Statement {
    /// What is `known` of `text`, read in `mode`.
    #[must_use]
    pub fn new(text: &[u8], mode: LexMode, known: Classified) -> Self {
        let id = NEXT_ID.fetch_add(1, Ordering::Relaxed);
        let Classified { digest, facts, details } = known;
        Self { id, text: text.into(), facts, details, digest, mode }
    }
}

/// What a client's statement id stands for.
#[derive(Debug, Clone)]
pub(super) struct Prepared {
    pub(super) statement: Arc<Statement>,
    pub(super) parameters: u16,
    pub(super) types: Types,
    /// The definitions of its columns as the client was last told, where servers may leave them out.
    pub(super) columns: Option<Definitions>,
}

/// The types of a statement's parameters as its client last sent them; empty before that.
#[derive(Debug, Clone, Default)]
pub(super) struct Types {
    /// How many.
    pub(super) count: u64,
    /// As in an execution.
    pub(super) bytes: Box<[u8]>,
}
