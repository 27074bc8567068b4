use crate::protocol::{Facts,PinReasons,StatementKind};
pub(super) fn unknown(t: String) -> Facts { Facts{kind:StatementKind::Unknown,statements:1,read_only:false,pins:PinReasons::NONE,clears:PinReasons::NONE,rds_pins:PinReasons::NONE,taints:false,needs_session_function:false,drops_all_prepared:false,prepared_names:vec![],is_deallocate_one:false,ends_transaction:false,digest_text:t} }
pub(super) fn from_tree(_: &pg_query::protobuf::ParseResult, t: String) -> Facts { unknown(t) }
