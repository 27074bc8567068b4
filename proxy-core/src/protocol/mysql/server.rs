//! Stands in for what is remembered of one server connection.

use std::sync::Arc;

use super::{
    super::{Absorbed, Greeting, ProtocolError, ServerKey, ServerState, Tx},
    handshake::{ServerLogin, write_greeting},
};
use crate::buffer::Buffer;

/// One server connection.
#[derive(Debug)]
pub struct MyServer(ServerLogin, ServerKey);

impl MyServer {
    /// A connection just logged in.
    pub fn new(login: &ServerLogin, _: &[u8], _: usize) -> Self {
        let key = ServerKey { id: login.connection_id, secret: Vec::new() };
        Self(login.clone(), key)
    }
}

#[rustfmt::skip]
impl ServerState for MyServer {
    fn tx(&self) -> Tx { Tx::Idle }
    fn is_quiet(&self) -> bool { true }
    fn owes_answer(&self) -> bool { false }
    fn is_request_under_way(&self) -> bool { false }
    fn must_retire(&self) -> bool { true }
    fn take_forgot(&mut self) -> bool { false }
    fn is_mid_message(&self) -> bool { false }
    fn has_told_error(&self) -> bool { false }
    fn is_tainted(&self) -> bool { true }
    fn key(&self) -> &ServerKey { &self.1 }
    fn greeting(&self) -> Arc<Greeting> { Arc::new(write_greeting(&self.0)) }
    fn absorb(&mut self, _: &mut Buffer) -> Result<Absorbed, ProtocolError> { Err(ProtocolError::Unexpected('?')) }
    fn absorb_idle(&mut self, _: &mut Buffer) -> Result<(), ProtocolError> { Err(ProtocolError::Unexpected('?')) }
}
