//! Stands in for what is remembered of one client.

use super::{
    super::{
        ClientEvent, Fault, Greeting, Outcome, PinReason, PinReasons, PoolKey, ProtocolError, Rewritten,
        ServerEvent, Statement, Tracker, Upcoming, Watch,
    },
    MySql, Shared,
    handshake::MyClient,
    server::MyServer,
};
use crate::buffer::Pipe;

/// One client.
#[derive(Debug)]
pub struct MyTracker;

#[rustfmt::skip]
impl Tracker<MySql> for MyTracker {
    fn new(_: &PoolKey, _: &Greeting, _: MyClient) -> Self { Self }
    fn on_client(&mut self, _: &Shared, _: &mut Pipe, _: Option<&mut MyServer>, _: &mut Pipe) -> Result<ClientEvent, ProtocolError> { Ok(ClientEvent::Quit) }
    fn attach(&mut self, _: &MyServer) {}
    fn admit(&mut self, _: bool) {}
    fn watch(&mut self, _: Watch) {}
    fn text<'a>(&'a self, _: &'a Pipe) -> &'a [u8] { &[] }
    fn hint<'a>(&self, _: &'a [u8]) -> &'a str { "" }
    fn literal_variables(&self, _: &[u8]) -> Vec<String> { Vec::new() }
    fn rewrite(&mut self, _: &Shared, _: String) -> Rewritten { Rewritten::Impossible }
    fn reject(&mut self, _: &Fault, _: &mut Pipe, _: Option<&mut MyServer>, _: &mut Pipe) -> bool { true }
    fn extent(&self, _: &Pipe) -> Upcoming { Upcoming::OpenEnded }
    fn upcoming(&self, _: &Shared, _: &Pipe, _: &mut dyn FnMut(&Statement, &[u8])) -> Upcoming { Upcoming::OpenEnded }
    fn take_outcomes(&mut self) -> Vec<Outcome> { Vec::new() }
    fn on_server(&mut self, _: &mut Pipe, _: &mut MyServer) -> Result<ServerEvent, ProtocolError> { Ok(ServerEvent::NeedBytes) }
    fn is_mid_message(&self) -> bool { false }
    fn standing_pins(&self) -> PinReasons { PinReasons::only(PinReason::Unknown) }
    fn refuse(&mut self, _: &Fault, _: &mut Pipe, _: &mut Pipe) {}
    fn write_forget_session_functions(&mut self, _: &mut MyServer, _: &mut Pipe) {}
}
