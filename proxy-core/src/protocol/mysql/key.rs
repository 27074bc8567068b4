//! What makes the pool of a MySQL client, besides its user: what a connection cannot change after its login, and what
//! changes the form of requests and replies, so that they can be relayed as they are.
//!
//! Shape of [`PoolKey::parameters`]: `flags: u32 | extended flags: u32 | collation: u16 | database`, integers
//! little-endian.

use super::codec::{Capabilities, Extended, Reader};
use crate::protocol::PoolKey;

/// The capabilities that are part of the key.
pub const KEYED: Capabilities = Capabilities(
    Capabilities::FOUND_ROWS.0
        | Capabilities::IGNORE_SPACE.0
        | Capabilities::INTERACTIVE.0
        | Capabilities::LOCAL_FILES.0
        | Capabilities::QUERY_ATTRIBUTES.0
        | Capabilities::OPTIONAL_RESULTSET_METADATA.0,
);

/// Those of MariaDB's.
pub const KEYED_EXTENDED: Extended =
    Extended(Extended::EXTENDED_METADATA.0 | Extended::CACHE_METADATA.0 | Extended::BULK_UNIT_RESULTS.0);

/// The collation `utf8mb4_general_ci`, which every server has.
pub const UTF8MB4_GENERAL_CI: u16 = 45;

/// Makes a key. Flags that are not part of one are left out.
#[must_use]
pub fn pool_key(
    user: &str,
    database: &[u8],
    collation: u16,
    flags: Capabilities,
    extended: Extended,
) -> PoolKey {
    let mut parameters = Vec::with_capacity(10 + database.len());
    parameters.extend_from_slice(&flags.intersection(KEYED).0.to_le_bytes());
    parameters.extend_from_slice(&extended.intersection(KEYED_EXTENDED).0.to_le_bytes());
    parameters.extend_from_slice(&collation.to_le_bytes());
    parameters.extend_from_slice(database);
    PoolKey { user: user.into(), parameters: parameters.into() }
}

/// The database named at the login; empty for none, and for one whose name is not UTF-8.
#[must_use]
pub fn database(key: &PoolKey) -> &str {
    std::str::from_utf8(database_bytes(key)).unwrap_or_default()
}

/// The same, in the bytes in which it came.
#[must_use]
pub fn database_bytes(key: &PoolKey) -> &[u8] {
    parts(key).map_or(&[], |(.., database)| database)
}

/// The id of the collation named at the login.
#[must_use]
pub fn collation(key: &PoolKey) -> u16 {
    parts(key).map_or(UTF8MB4_GENERAL_CI, |(_, _, collation, _)| collation)
}

/// The capabilities that connections of this key must have: some of [`KEYED`].
#[must_use]
pub fn flags(key: &PoolKey) -> Capabilities {
    parts(key).map_or(Capabilities::NONE, |(flags, ..)| flags)
}

/// Those of MariaDB's: some of [`KEYED_EXTENDED`].
#[must_use]
pub fn extended(key: &PoolKey) -> Extended {
    parts(key).map_or(Extended::NONE, |(_, extended, ..)| extended)
}

fn parts(key: &PoolKey) -> Option<(Capabilities, Extended, u16, &[u8])> {
    let mut reader = Reader::new(&key.parameters);
    Some((Capabilities(reader.u32()?), Extended(reader.u32()?), reader.u16()?, reader.rest()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_gives_back_what_it_is_made_of_and_nothing_else() {
        let all = Capabilities(u32::MAX);
        let key = pool_key("app", b"shop", 255, all, Extended(u32::MAX));
        assert_eq!((&*key.user, database(&key), collation(&key)), ("app", "shop", 255));
        assert_eq!((flags(&key), extended(&key)), (KEYED, KEYED_EXTENDED));
        let plain = pool_key("app", b"", 8, Capabilities::FOUND_ROWS | Capabilities::SSL, Extended::NONE);
        assert_eq!((database(&plain), flags(&plain)), ("", Capabilities::FOUND_ROWS));
        assert_ne!(key, plain);
        let odd = pool_key("app", b"\xe9", 8, Capabilities::NONE, Extended::NONE);
        assert_eq!((database(&odd), database_bytes(&odd)), ("", b"\xe9".as_slice()));
        let none = PoolKey { user: "app".into(), parameters: Box::default() };
        assert_eq!((database(&none), collation(&none), flags(&none)), ("", 45, Capabilities::NONE));
    }
}
