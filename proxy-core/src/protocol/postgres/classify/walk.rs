//! Visits a whole parse tree.
//!
//! The tree has hundreds of structures, and one that a hand-written walk forgot would be one in which a pin can
//! hide. They can all be serialised, so the walk is a serialiser that writes nothing: it meets every field.

use std::fmt;

use serde::{
    Serialize,
    ser::{self, Impossible},
};

/// What is told of a tree on the way through.
pub(super) trait Visit {
    /// True when [`Visit::structure`] needs the value of this field; `sofar` are the wanted fields before it. Names are
    /// those of `pg_query::protobuf`.
    fn wants(&self, structure: &'static str, field: &'static str, sofar: &[(&'static str, Value)]) -> bool;
    /// Any string in the tree.
    fn text(&mut self, text: &str);
    /// One structure, after all that is in it, with the fields that were wanted.
    fn structure(&mut self, structure: &'static str, fields: &[(&'static str, Value)]);
}

/// Walks through `tree`. Errors: there is something of a shape in it that is not known here.
pub(super) fn walk<V: Visit>(tree: &impl Serialize, visit: &mut V) -> Result<(), fmt::Error> {
    tree.serialize(&mut Walker { visit, keep: 0 }).map(|_| ())
}

/// Part of a tree, as deep as it was of use.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Value {
    /// Nothing, or not kept.
    Nothing,
    Bool(bool),
    Integer(i64),
    Text(String),
    List(Vec<Self>),
    /// A `oneof` by the name of the one.
    One(&'static str, Box<Self>),
    Structure(Vec<(&'static str, Self)>),
}

impl Value {
    /// All strings in it, in order.
    pub(super) fn strings(&self) -> Vec<&str> {
        match self {
            Self::Text(text) => vec![text],
            Self::List(list) => list.iter().flat_map(Self::strings).collect(),
            Self::One(_, value) => value.strings(),
            Self::Structure(fields) => fields.iter().flat_map(|(_, value)| value.strings()).collect(),
            Self::Nothing | Self::Bool(_) | Self::Integer(_) => Vec::new(),
        }
    }

    /// Of a list.
    pub(super) fn list(&self) -> &[Self] {
        match self {
            Self::List(list) => list,
            _ => &[],
        }
    }

    pub(super) fn integer(&self) -> Option<i64> {
        match self {
            Self::Integer(value) => Some(*value),
            _ => None,
        }
    }

    /// Of a node that is a string literal and nothing more.
    pub(super) fn string_constant(&self) -> Option<&str> {
        match self.constant()? {
            ("Sval", value) => match value.field("sval")? {
                Self::Text(text) => Some(text),
                _ => None,
            },
            _ => None,
        }
    }

    /// True for a node that is the word `true` and nothing more.
    pub(super) fn is_constant_true(&self) -> bool {
        matches!(
            self.constant(),
            Some(("Boolval", value)) if value.field("boolval") == Some(&Self::Bool(true))
        )
    }

    fn constant(&self) -> Option<(&'static str, &Self)> {
        let Self::One("AConst", constant) = self.field("node")? else { return None };
        match constant.field("val")? {
            Self::One(name, value) => Some((*name, &**value)),
            _ => None,
        }
    }

    fn field(&self, name: &str) -> Option<&Self> {
        match self {
            Self::Structure(fields) => fields.iter().find(|(key, _)| *key == name).map(|(_, value)| value),
            _ => None,
        }
    }
}

/// Levels of a wanted field that are kept: a list, a node, a constant in it, its value.
const KEPT_LEVELS: u8 = 7;

struct Walker<'v, V> {
    visit: &'v mut V,
    /// Levels from here on that are kept.
    keep: u8,
}

impl<V: Visit> Walker<'_, V> {
    /// Goes into `value`, keeping `levels` of it.
    fn enter<T: Serialize + ?Sized>(&mut self, value: &T, levels: u8) -> Result<Value, fmt::Error> {
        let outside = std::mem::replace(&mut self.keep, levels);
        let entered = value.serialize(&mut *self);
        self.keep = outside;
        entered
    }

    fn kept(&self, value: impl FnOnce() -> Value) -> Result<Value, fmt::Error> {
        Ok(if self.keep > 0 { value() } else { Value::Nothing })
    }
}

/// A list or a structure under way.
struct Within<'w, 'v, V> {
    walker: &'w mut Walker<'v, V>,
    name: &'static str,
    list: Vec<Value>,
    fields: Vec<(&'static str, Value)>,
    wanted: Vec<(&'static str, Value)>,
}

impl<'w, 'v, V> Within<'w, 'v, V> {
    fn new(walker: &'w mut Walker<'v, V>, name: &'static str) -> Self {
        Self { walker, name, list: Vec::new(), fields: Vec::new(), wanted: Vec::new() }
    }
}

impl<V: Visit> ser::SerializeSeq for Within<'_, '_, V> {
    type Ok = Value;
    type Error = fmt::Error;

    fn serialize_element<T: Serialize + ?Sized>(&mut self, value: &T) -> Result<(), fmt::Error> {
        let levels = self.walker.keep.saturating_sub(1);
        let value = self.walker.enter(value, levels)?;
        if levels > 0 {
            self.list.push(value);
        }
        Ok(())
    }

    fn end(self) -> Result<Value, fmt::Error> {
        self.walker.kept(|| Value::List(self.list))
    }
}

impl<V: Visit> ser::SerializeStruct for Within<'_, '_, V> {
    type Ok = Value;
    type Error = fmt::Error;

    fn serialize_field<T: Serialize + ?Sized>(
        &mut self,
        key: &'static str,
        value: &T,
    ) -> Result<(), fmt::Error> {
        let wanted = self.walker.visit.wants(self.name, key, &self.wanted);
        let levels = self.walker.keep.saturating_sub(1);
        let value = self.walker.enter(value, if wanted { levels.max(KEPT_LEVELS) } else { levels })?;
        if levels > 0 {
            self.fields.push((key, value.clone()));
        }
        if wanted {
            self.wanted.push((key, value));
        }
        Ok(())
    }

    fn end(self) -> Result<Value, fmt::Error> {
        self.walker.visit.structure(self.name, &self.wanted);
        self.walker.kept(|| Value::Structure(self.fields))
    }
}

impl<'w, 'v, V: Visit> ser::Serializer for &'w mut Walker<'v, V> {
    type Ok = Value;
    type Error = fmt::Error;
    type SerializeSeq = Within<'w, 'v, V>;
    type SerializeStruct = Within<'w, 'v, V>;
    // The tree has none of these; should a later version have one, its text is not understood.
    type SerializeTuple = Impossible<Value, fmt::Error>;
    type SerializeTupleStruct = Impossible<Value, fmt::Error>;
    type SerializeTupleVariant = Impossible<Value, fmt::Error>;
    type SerializeMap = Impossible<Value, fmt::Error>;
    type SerializeStructVariant = Impossible<Value, fmt::Error>;

    fn serialize_bool(self, value: bool) -> Result<Value, fmt::Error> {
        self.kept(|| Value::Bool(value))
    }
    fn serialize_i8(self, value: i8) -> Result<Value, fmt::Error> {
        self.serialize_i64(value.into())
    }
    fn serialize_i16(self, value: i16) -> Result<Value, fmt::Error> {
        self.serialize_i64(value.into())
    }
    fn serialize_i32(self, value: i32) -> Result<Value, fmt::Error> {
        self.serialize_i64(value.into())
    }
    fn serialize_i64(self, value: i64) -> Result<Value, fmt::Error> {
        self.kept(|| Value::Integer(value))
    }
    fn serialize_u8(self, value: u8) -> Result<Value, fmt::Error> {
        self.serialize_i64(value.into())
    }
    fn serialize_u16(self, value: u16) -> Result<Value, fmt::Error> {
        self.serialize_i64(value.into())
    }
    fn serialize_u32(self, value: u32) -> Result<Value, fmt::Error> {
        self.serialize_i64(value.into())
    }
    fn serialize_u64(self, _: u64) -> Result<Value, fmt::Error> {
        Ok(Value::Nothing)
    }
    fn serialize_f32(self, _: f32) -> Result<Value, fmt::Error> {
        Ok(Value::Nothing)
    }
    fn serialize_f64(self, _: f64) -> Result<Value, fmt::Error> {
        Ok(Value::Nothing)
    }
    fn serialize_char(self, value: char) -> Result<Value, fmt::Error> {
        self.serialize_str(value.encode_utf8(&mut [0; 4]))
    }
    fn serialize_str(self, value: &str) -> Result<Value, fmt::Error> {
        self.visit.text(value);
        self.kept(|| Value::Text(value.to_owned()))
    }
    fn serialize_bytes(self, _: &[u8]) -> Result<Value, fmt::Error> {
        Ok(Value::Nothing)
    }
    fn serialize_none(self) -> Result<Value, fmt::Error> {
        Ok(Value::Nothing)
    }
    fn serialize_some<T: Serialize + ?Sized>(self, value: &T) -> Result<Value, fmt::Error> {
        value.serialize(self)
    }
    fn serialize_unit(self) -> Result<Value, fmt::Error> {
        Ok(Value::Nothing)
    }
    fn serialize_unit_struct(self, _: &'static str) -> Result<Value, fmt::Error> {
        Ok(Value::Nothing)
    }
    fn serialize_unit_variant(self, _: &'static str, _: u32, _: &'static str) -> Result<Value, fmt::Error> {
        Ok(Value::Nothing)
    }
    fn serialize_newtype_struct<T: Serialize + ?Sized>(
        self,
        _: &'static str,
        value: &T,
    ) -> Result<Value, fmt::Error> {
        value.serialize(self)
    }
    fn serialize_newtype_variant<T: Serialize + ?Sized>(
        self,
        _: &'static str,
        _: u32,
        variant: &'static str,
        value: &T,
    ) -> Result<Value, fmt::Error> {
        let keep = self.keep;
        let value = self.enter(value, keep)?;
        self.kept(|| Value::One(variant, Box::new(value)))
    }
    fn serialize_seq(self, _: Option<usize>) -> Result<Self::SerializeSeq, fmt::Error> {
        Ok(Within::new(self, ""))
    }
    fn serialize_struct(self, name: &'static str, _: usize) -> Result<Self::SerializeStruct, fmt::Error> {
        Ok(Within::new(self, name))
    }
    fn serialize_tuple(self, _: usize) -> Result<Self::SerializeTuple, fmt::Error> {
        Err(fmt::Error)
    }
    fn serialize_tuple_struct(
        self,
        _: &'static str,
        _: usize,
    ) -> Result<Self::SerializeTupleStruct, fmt::Error> {
        Err(fmt::Error)
    }
    fn serialize_tuple_variant(
        self,
        _: &'static str,
        _: u32,
        _: &'static str,
        _: usize,
    ) -> Result<Self::SerializeTupleVariant, fmt::Error> {
        Err(fmt::Error)
    }
    fn serialize_map(self, _: Option<usize>) -> Result<Self::SerializeMap, fmt::Error> {
        Err(fmt::Error)
    }
    fn serialize_struct_variant(
        self,
        _: &'static str,
        _: u32,
        _: &'static str,
        _: usize,
    ) -> Result<Self::SerializeStructVariant, fmt::Error> {
        Err(fmt::Error)
    }
}
