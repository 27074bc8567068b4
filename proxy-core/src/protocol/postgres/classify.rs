//! What a statement text does, by PostgreSQL's own grammar.
