//! Which target a request goes to.

/// Where a request should run.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Route {
    /// As the endpoint's role says.
    #[default]
    Endpoint,
    /// The writer.
    Writer,
    /// A reader, or the writer when there is none.
    Reader,
    /// The target of this name.
    Target(Box<str>),
}
