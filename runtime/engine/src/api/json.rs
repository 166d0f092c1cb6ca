//! Reads JSON as Go's `encoding/json` does: keys in any case, `null` for the zero value, and its
//! words for what does not fit.

use std::fmt;

use berth_base::error::{Error, Result};
use serde::{
    Deserialize, Deserializer,
    de::{self, DeserializeOwned, Visitor},
    forward_to_deserialize_any,
};
use serde_json::{Map, Value};

/// Objects whose keys are data. A `null` in them says that the key is there.
const MAPS: [&str; 5] =
    ["PortBindings", "ExposedPorts", "Volumes", "EndpointsConfig", "DeviceOptions"];

/// Parses the whole of a body into an object.
///
/// # Errors
/// `InvalidArgument` in dockerd's words; `go_type` is the type that they name.
pub(crate) fn object(body: &[u8], go_type: &str) -> Result<Map<String, Value>> {
    if body.iter().all(u8::is_ascii_whitespace) {
        return Err(invalid("got EOF while reading request body"));
    }
    let mut deserializer = serde_json::Deserializer::from_slice(body);
    let value = Value::deserialize(&mut deserializer).map_err(|error| match error.is_eof() {
        true => invalid("unexpected EOF"),
        false => invalid(error),
    })?;
    deserializer.end().map_err(|_| Error::invalid("unexpected content after JSON"))?;
    match value {
        Value::Object(fields) => Ok(fields),
        Value::Null => Ok(Map::new()),
        other => Err(invalid(format!(
            "json: cannot unmarshal {} into Go value of type {go_type}",
            kind(&other)
        ))),
    }
}

fn invalid(why: impl fmt::Display) -> Error {
    Error::invalid(format!("invalid JSON: {why}"))
}

/// Reads the fields of `T` out of an object, and leaves the others alone. `place` is the struct as
/// Go's errors name it.
///
/// # Errors
/// `InvalidArgument` with the first field that has the wrong type.
pub(crate) fn fields<T: DeserializeOwned>(
    object: &mut Map<String, Value>,
    place: &str,
) -> Result<T> {
    let mut own = Map::new();
    for name in names::<T>() {
        if let Some(value) = take(object, name).filter(|value| !value.is_null()) {
            own.insert((*name).to_owned(), without_nulls(name, value));
        }
    }
    match serde_json::from_value(Value::Object(own.clone())) {
        Ok(fields) => Ok(fields),
        Err(error) => Err(misfit::<T>(&own, place).unwrap_or_else(|| invalid(error))),
    }
}

/// Removes a key in the case that it has, or in any other.
pub(crate) fn take(object: &mut Map<String, Value>, name: &str) -> Option<Value> {
    object.remove(name).or_else(|| {
        let key = object.keys().find(|key| key.eq_ignore_ascii_case(name))?.clone();
        object.remove(&key)
    })
}

fn without_nulls(key: &str, value: Value) -> Value {
    match value {
        Value::Object(fields) => fields
            .into_iter()
            .filter(|(_, value)| MAPS.contains(&key) || !value.is_null())
            .map(|(key, value)| {
                let value = without_nulls(&key, value);
                (key, value)
            })
            .collect::<Map<_, _>>()
            .into(),
        Value::Array(items) => items.into_iter().map(|item| without_nulls("", item)).collect(),
        other => other,
    }
}

/// Go's words for the field that does not fit.
fn misfit<T: DeserializeOwned>(fields: &Map<String, Value>, place: &str) -> Option<Error> {
    fields.iter().find_map(|(name, value)| {
        let alone = Value::Object(Map::from_iter([(name.clone(), value.clone())]));
        let error = serde_json::from_value::<T>(alone).err()?.to_string();
        let wanted = error.split("expected ").nth(1)?;
        let go_type = match wanted {
            _ if wanted.starts_with("a string") => "string",
            _ if wanted.starts_with("a sequence") => "[]string",
            _ if wanted.starts_with("a map") => "map[string]string",
            _ if wanted.starts_with("a boolean") => "bool",
            _ if wanted.starts_with("struct ") => wanted.trim_start_matches("struct "),
            _ => wanted,
        };
        let kind = kind(value);
        Some(invalid(format!(
            "json: cannot unmarshal {kind} into Go struct field {place}.{name} of type {go_type}"
        )))
    })
}

fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "bool",
        Value::Number(_) => "number",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    }
}

/// The names that the fields of a struct have in JSON.
pub(crate) fn names<T: DeserializeOwned>() -> &'static [&'static str] {
    struct Names<'a>(&'a mut &'static [&'static str]);

    impl<'de> Deserializer<'de> for Names<'_> {
        type Error = de::value::Error;

        fn deserialize_any<V: Visitor<'de>>(self, _: V) -> Result<V::Value, Self::Error> {
            Err(de::Error::custom("only the names are wanted"))
        }

        fn deserialize_struct<V: Visitor<'de>>(
            self,
            _: &'static str,
            fields: &'static [&'static str],
            visitor: V,
        ) -> Result<V::Value, Self::Error> {
            *self.0 = fields;
            self.deserialize_any(visitor)
        }

        forward_to_deserialize_any! {
            bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf
            option unit unit_struct newtype_struct seq tuple tuple_struct map enum identifier
            ignored_any
        }
    }

    let mut names: &'static [&'static str] = &[];
    // It always fails: nothing is read.
    let _ = T::deserialize(Names(&mut names));
    names
}
